package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// sockID names one of the engine's sockets: what it is for, and its address family.
type sockID uint8

// The sockets. Those of IPv6 follow those of IPv4 of the same kind.
const (
	sockIKE4  sockID = iota // UDP port 500: IKE alone
	sockIKE6                //
	sockNATT4               // UDP port 4500: IKE behind a marker, and ESP (RFC 3948)
	sockNATT6               //
	sockESP4                // IP protocol 50
	sockESP6                //
	sockAH4                 // IP protocol 51, and whatever leaves with an IP header of its own
	sockAH6                 //
	numSocks
)

// family moves an IPv4 socket's name to that of the address's family.
func (s sockID) family(a netip.Addr) sockID {
	if a.Is4() || a.Is4In6() {
		return s
	}
	return s + 1
}

// carriesESP tells whether ESP or AH arrives at the socket.
func (s sockID) carriesESP() bool { return s >= sockNATT4 }

var sockNames = [numSocks]string{"UDP IKE IPv4", "UDP IKE IPv6", "UDP NAT-T IPv4", "UDP NAT-T IPv6", "ESP IPv4", "ESP IPv6", "AH IPv4", "AH IPv6"}

func (s sockID) String() string { return sockNames[s] }

// maxQueues bounds the workers of the data path: Profile.Queues is 1 to maxQueues.
const maxQueues = 8

// datapath is what the workers share: the tables, the queues to the IKE loop, and the
// way out. Its fields are set before the first worker starts and stay as they are.
//
// Workers are numbered from 0. A worker reads the queue of the TUN device and sends through
// the NAT-T sockets that have its number, modulo how many there are. By their numbers, package
// esp tells goroutines apart that use an SA at the same time. Outbound: the workers, and the
// IKE loop, ctxLoop, when it flushes what has waited. Inbound: the reader of each socket that
// carries ESP, since a packet of any SA may arrive at any of them, and the IKE loop, ctxEarly,
// when it opens what came before its SA.
type datapath struct {
	workers int
	sad     *sad
	spd     *spd
	turns   turns
	counts  *counters
	pacer   *pacer
	pending *pendingQueue
	held    *holdQueue
	frags   *fragTable
	ikeq    *ikeQueue
	tuns    []Device           // the queues of the TUN device: 1 to workers
	socks   [numSocks][]Socket // empty: this one is not there; of NAT-T 1 to workers, else 1
	ports   ike.Ports
	log     *log.Logger
	clock   func() time.Duration
	seed    uint64 // of the hash that spreads inner flows over queues

	// acquire hands a wish for an SA to the IKE loop, without waiting; false if it
	// is too busy.
	acquire func(p *policy, f *esp.Flow) bool
	// grow does the same for an SA for a lane, of a packet that has another one.
	grow func(p *policy, f *esp.Flow, lane uint8) bool
	// moved tells the IKE loop, without waiting, that an authentic packet came along
	// another path; false if it is too busy.
	moved func(sa *inSA, p ike.Path) bool
	// unknown tells the IKE loop, without waiting, that a packet for an SPI that is not
	// here came along a path; false if it is too busy.
	unknown func(spi uint32, p ike.Path) bool

	// limit tells the IKE loop, without waiting, that the pair with that inbound SPI has
	// reached its soft limit, or its hard one; false if it is too busy.
	limit func(spi uint32, hard bool) bool

	// noted limits each kind of line that a packet can cause.
	noted [numNotes]atomic.Int64
	// unknownAt is when unknown was called last.
	unknownAt atomic.Int64
	pool      *pool
	udp       *pool
	queue     int                  // board.Profile.Queue
	made      []byte               // where the IKE loop makes packets
	out       []*outbound          // of each worker
	in        [numSocks][]*inbound // of each socket that there may be
}

// shares of Profile.Buffers: what a worker on the way out, each socket with ESP and each
// socket with IKE alone read at once. A super-packet of the kernel's has some 45 segments of the
// usual size, a joined UDP message 64 at most; a large board reads two whole ones at once.
// A socket with IKE reads no more than mostIKE, as nothing comes in bulk there. The queue to the
// IKE loop has four times as many, but no less than leastIKE: all fragments of the largest
// message arrive together, and where there is one processor the reader may well see them all
// before the loop sees the first.
const (
	shareTUN = 4
	shareESP = 4
	shareIKE = 16
	mostIKE  = 16
	leastIKE = 32
)

// shareFrags: of FlowCache, how many datagrams in pieces are remembered.
const shareFrags = 4

// ctxLoop is the IKE loop's number on the way out.
func (d *datapath) ctxLoop() int { return d.workers }

// outContexts and inContexts are how many goroutines may use an SA at once.
func (d *datapath) outContexts() int { return d.workers + 1 }

func (d *datapath) inContexts() int { return d.ctxEarly() + 1 }

// ctxEarly is the IKE loop's number on the way in.
func (d *datapath) ctxEarly() int {
	n := 0
	for s := sockNATT4; s < numSocks; s++ {
		n += len(d.in[s])
	}
	return n
}

// newDatapath makes tables and buffers of the profile's size for so many workers; none
// grows afterwards.
func newDatapath(p board.Profile, workers int, random func([]byte)) (*datapath, error) {
	for _, n := range []int{p.ChildSAs, p.FlowCache} {
		if n <= 0 || n&(n-1) != 0 {
			return nil, fmt.Errorf("board profile %q: ChildSAs and FlowCache must be powers of two, not %d", p.Name, n)
		}
	}
	if workers < 1 || workers > maxQueues {
		return nil, fmt.Errorf("board profile %q: Queues must be 1 to %d, not %d", p.Name, maxQueues, workers)
	}
	nTUN, nESP, nIKE := max(p.Buffers/shareTUN, 2), max(p.Buffers/shareESP, 2), min(max(p.Buffers/shareIKE, 2), mostIKE)
	nAH := nIKE // hardly anybody has any
	queue := max(4*nIKE, leastIKE)
	d := &datapath{
		workers: workers,
		sad:     newSAD(p.ChildSAs, random),
		spd:     newSPD(p.Policies),
		counts:  new(counters),
		seed:    rand.Uint64(),
		// The queues have their own buffers: packets that wait must not take those that move.
		pool: newPool(workers*nTUN+2*nESP+2*nAH+2*p.Queue+1, p.BufferSize),
		udp:  newPool(workers*2*nESP+2*nIKE+queue, max(p.BufferSize, minUDPBuffer)),
	}
	d.turns.init()
	d.made = d.pool.take(1)[0]
	d.queue, d.pacer = p.Queue, newPacer(d, p.Streams(), nTUN)
	d.pending = newPendingQueue(d.pool.take(p.Queue))
	d.held = newHoldQueue(d.pool.take(p.Queue))
	d.frags = newFragTable(p.FlowCache/shareFrags, rand.Uint64())
	d.ikeq = newIKEQueue(d.udp.take(queue))
	for w := range workers {
		d.out = append(d.out, newOutbound(d, w, d.pool.take(nTUN), newFlowCache(p.FlowCache, rand.Uint64())))
	}
	ctx := 0
	for s := range numSocks {
		n, bufs, take := 1, nIKE, d.udp.take
		switch {
		case s >= sockAH4:
			bufs, take = nAH, d.pool.take
		case s >= sockESP4:
			bufs, take = nESP, d.pool.take
		case s.carriesESP():
			n, bufs = workers, nESP
		}
		for range n {
			d.in[s] = append(d.in[s], newInbound(d, s, ctx, take(bufs)))
			if s.carriesESP() {
				ctx++
			}
		}
	}
	return d, nil
}

// note is a kind of line that packets can cause.
type note uint8

// The kinds of lines.
const (
	noteUnknownSPI note = iota
	noteAuth
	noteBare
	noteSelectors
	notePolicy
	noteNoPolicy
	noteClear
	noteSequence
	noteUnfit
	noteFragment
	noteSend
	noteDevice
	noteRead
	noteLoop
	numNotes
)

// noteInterval is the least time between two lines of a kind. What happens between
// them is in the counters.
const noteInterval = 10 * time.Second

// mayNote tells whether a line of that kind may be written at now.
func (d *datapath) mayNote(n note, now time.Duration) bool {
	last := d.noted[n].Load()
	if last != 0 && now-time.Duration(last) < noteInterval {
		return false
	}
	return d.noted[n].CompareAndSwap(last, int64(max(now, 1)))
}

// write sends a batch through the socket of worker w. A datagram that the socket refuses
// is counted and left out; the others still go. refused is the last refusal, if there was
// one.
func (d *datapath) write(s sockID, w int, batch []esp.Datagram, failed counter) (sent int, refused error) {
	sock := d.socks[s][w%len(d.socks[s])]
	for len(batch) > 0 {
		n, err := sock.WriteBatch(batch)
		sent += n
		batch = batch[n:]
		if err == nil && n > 0 {
			continue
		}
		if err == nil || len(batch) == 0 || errors.Is(err, os.ErrClosed) {
			break
		}
		d.counts.inc(failed)
		refused = err
		if now := d.clock(); d.mayNote(noteSend, now) {
			d.log.Log(log.Net, log.Warn, "a packet could not be sent: check the route to the peer and the firewall",
				log.AddrPort("to", batch[0].Remote), log.Str("socket", s.String()), log.Err(err))
		}
		batch = batch[1:]
	}
	return sent, refused
}
