// Package bench measures what a device can do: each ESP transform by itself, and the whole
// way of a packet through a gateway. The operating system comes in through [System].
//
// A run goes like this:
//
//  1. each transform, sealing and opening by turns, for its share of the time
//  2. the path is made: TUN device, injector, two sockets; if it cannot be, the run ends
//     here and says why
//  3. each kind of traffic passes the path, the sender's half and the receiver's by turns
//  4. the path is closed
//
// Everything happens in one goroutine, so every figure is that of one core.
package bench

import (
	"errors"
	"net/netip"
	"runtime"
	"time"

	"postern/board"
	"postern/esp"
	"postern/esp/chapoly"
	"postern/ike"
)

// AES says how AES and GHASH are computed here.
type AES uint8

// The ways, the worst last.
const (
	AESUnknown     AES = iota
	AESHardware        // by instructions of the processor: fast, in constant time
	AESConstant        // by code without tables: in constant time
	numAESVariants     // not a way
)

var aesNames = [numAESVariants]string{
	"unknown", "processor's instructions, constant time", "plain code, constant time",
}

// String says it to a person.
func (a AES) String() string { return aesNames[min(a, numAESVariants-1)] }

// ConstantTime tells whether the time is known to depend on lengths alone.
func (a AES) ConstantTime() bool { return a != AESUnknown }

// System is what a run needs of the operating system and of the program's choices.
type System struct {
	// Model is the processor's name, "" if unknown; Arch what the program was built for.
	Model, Arch string
	Cores       int
	AES         AES
	Memory      uint64 // octets of RAM; 0: unknown
	// Now is a clock that only goes forward.
	Now func() time.Duration
	// ThreadTime is how long the calling thread has had a processor; nil, or a result of
	// 0, if that cannot be known.
	ThreadTime func() time.Duration
	// Proposals are the proposals of the word "default" on this device.
	Proposals func(ike.Protocol) []ike.Proposal
	// OpenPath makes the path for packets of up to mtu octets. Its error says what is
	// missing. nil: no path on this system.
	OpenPath func(mtu int) (*Path, error)
}

// Device is the TUN device: engine.Device, what is used of it.
type Device interface {
	ReadBatch(bufs [][]byte, sizes []int, off int) (int, error)
	WriteBatch(bufs [][]byte, off int) (int, error)
}

// Socket is a UDP socket: engine.Socket, what is used of it.
type Socket interface {
	ReadBatch(d []esp.Datagram) (int, error)
	WriteBatch(d []esp.Datagram) (int, error)
}

// Path is a TUN device with an injector, and two sockets that reach each other.
type Path struct {
	Device    Device
	Near, Far Socket         // of the sender, of the receiver
	To        netip.AddrPort // where Near reaches Far
	// Inject queues n times (1 to 64) the same packet, for Device to read; segment: the
	// kernel, or Device, cuts it into TCP segments of that many octets, 0: it does not.
	Inject func(pkt []byte, n, segment int) error
	// Close may be called by any goroutine, more than once. What waits returns.
	Close func() error
	// What was found to work, in words.
	TUNFeatures, UDPFeatures string
	Private                  bool // stands where nothing else sees it
}

// Options are what the user may choose.
type Options struct {
	Budget  time.Duration // the whole run takes about that long
	Profile board.Profile // its batches are used
	// Stop ends the run early; nil: nothing does.
	Stop <-chan struct{}
}

// Result is what was measured.
type Result struct {
	Routine    string // of ChaCha20-Poly1305
	Algorithms []Algorithm
	// Share is how many hundredths of one core the algorithms had while they were
	// measured; 0: unknown.
	Share int
	// PathSuite is what protected the traffic of Flows.
	PathSuite string
	Flows     []Flow
	// PathErr is why there are no Flows, or not all.
	PathErr                  error
	TUNFeatures, UDPFeatures string // "" where there was no path
	Private                  bool
	Choice                   Choice
}

// Cost is the time of one core that a packet takes, in nanoseconds: at the sender (Seal),
// at the receiver (Open). 0: not measured.
type Cost struct{ Seal, Open int64 }

// Algorithm is one ESP transform.
type Algorithm struct {
	Name  string // as a person writes it
	Suite esp.Suite
	Small Cost // of SmallPacket octets
	Large Cost // of LargePacket octets
}

// The sizes of payloads at which the algorithms are measured, in octets.
const (
	SmallPacket = 64
	LargePacket = 1400
)

// Flow is one kind of traffic on the whole path.
type Flow struct {
	Name    string
	Payload int // octets of payload in each packet
	Cost    Cost
}

// ErrStopped is the error of a run that Stop ended.
var ErrStopped = errors.New("interrupted")

// What part of the time each algorithm at each size, and each kind of traffic gets. Half of
// it goes to the eight of the former, two fifths to the three of the latter; without a path
// the algorithms get no more, the figures would hardly change.
const (
	partsAlgorithm = 16
	partsFlow      = 7
)

// Run measures. The error is ErrStopped, or that of a transform that does not work; that
// there is no path is Result.PathErr instead.
func Run(sys System, o Options) (*Result, error) {
	// The thread's time is only that of the work if the goroutine stays on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &Result{Routine: chapoly.Current().String()}
	began, had := sys.Now(), sys.threadTime()
	for _, a := range algorithms {
		var err error
		if a.Small, err = measureSuite(&sys, a.Suite, SmallPacket, o.Budget/partsAlgorithm, o.Stop); err != nil {
			return nil, err
		}
		if a.Large, err = measureSuite(&sys, a.Suite, LargePacket, o.Budget/partsAlgorithm, o.Stop); err != nil {
			return nil, err
		}
		r.Algorithms = append(r.Algorithms, a)
	}
	if wall := sys.Now() - began; had > 0 && wall > 0 {
		r.Share = int(min(100, 100*(sys.threadTime()-had)/wall))
	}
	r.Choice = choose(&sys, r.Algorithms)
	if err := r.path(&sys, o); errors.Is(err, ErrStopped) {
		return nil, err
	} else if err != nil {
		r.PathErr = err
	}
	return r, nil
}

func (s *System) threadTime() time.Duration {
	if s.ThreadTime == nil {
		return 0
	}
	return s.ThreadTime()
}

// Not inlined: it is called at many places, where only room counts.
//
//go:noinline
func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop: // a nil channel is never ready
		return true
	default:
		return false
	}
}
