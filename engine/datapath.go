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
	numSocks
)

// family moves an IPv4 socket's name to that of the address's family.
func (s sockID) family(a netip.Addr) sockID {
	if a.Is4() || a.Is4In6() {
		return s
	}
	return s + 1
}

// carriesESP tells whether ESP arrives at the socket.
func (s sockID) carriesESP() bool { return s >= sockNATT4 }

var sockNames = [numSocks]string{"UDP IKE IPv4", "UDP IKE IPv6", "UDP NAT-T IPv4", "UDP NAT-T IPv6", "ESP IPv4", "ESP IPv6"}

func (s sockID) String() string { return sockNames[s] }

// Contexts are the numbers by which package esp tells goroutines apart that use an SA
// at the same time. Outbound: the reader of the TUN device, and the IKE loop when it
// flushes what has waited. Inbound: the reader of each socket that carries ESP.
const (
	ctxTUN = iota
	ctxLoop
	numOutContexts
)

const numInContexts = int(numSocks - sockNATT4)

func (s sockID) context() int { return int(s - sockNATT4) }

// datapath is what the readers share: the tables, the queues to the IKE loop, and the
// way out. Its fields are set before the first reader starts and stay as they are.
type datapath struct {
	sad     *sad
	spd     *spd
	counts  *counters
	pending *pendingQueue
	ikeq    *ikeQueue
	tun     Device
	socks   [numSocks]Socket // nil: this one is not there
	ports   ike.Ports
	log     *log.Logger
	clock   func() time.Duration

	// acquire hands a wish for an SA to the IKE loop, without waiting; false if it
	// is too busy.
	acquire func(p *policy, f *esp.Flow) bool
	// moved tells the IKE loop, without waiting, that an authentic packet came along
	// another path; false if it is too busy.
	moved func(sa *inSA, p ike.Path) bool

	// limit tells the IKE loop, without waiting, that the pair with that inbound SPI has
	// reached its soft limit, or its hard one; false if it is too busy.
	limit func(spi uint32, hard bool) bool

	// noted limits each kind of line that a packet can cause.
	noted [numNotes]atomic.Int64
	pool  *pool
	udp   *pool
	out   *outbound
	in    [numSocks]*inbound
}

// shares of Profile.Buffers: what the TUN reader, each socket with ESP and each socket
// with IKE alone read at once; the queue to the IKE loop has four times the last.
const (
	shareTUN = 4
	shareESP = 8
	shareIKE = 16
)

// newDatapath makes tables and buffers of the profile's size; none grows afterwards.
func newDatapath(p board.Profile, random func([]byte)) (*datapath, error) {
	for _, n := range []int{p.ChildSAs, p.FlowCache} {
		if n <= 0 || n&(n-1) != 0 {
			return nil, fmt.Errorf("board profile %q: ChildSAs and FlowCache must be powers of two, not %d", p.Name, n)
		}
	}
	nTUN, nESP, nIKE := max(p.Buffers/shareTUN, 2), max(p.Buffers/shareESP, 2), max(p.Buffers/shareIKE, 2)
	d := &datapath{
		sad:    newSAD(p.ChildSAs, random),
		spd:    newSPD(p.Policies),
		counts: new(counters),
		// The queue has its own buffers: packets that wait must not take those that move.
		pool: newPool(nTUN+2*nESP+p.Queue, p.BufferSize),
		udp:  newPool(2*nESP+6*nIKE, max(p.BufferSize, minUDPBuffer)),
	}
	d.pending = newPendingQueue(d.pool.take(p.Queue))
	d.ikeq = newIKEQueue(d.udp.take(4 * nIKE))
	d.out = newOutbound(d, d.pool.take(nTUN), newFlowCache(p.FlowCache, rand.Uint64()))
	for s := range numSocks {
		switch {
		case s >= sockESP4:
			d.in[s] = newInbound(d, s, d.pool.take(nESP))
		case s.carriesESP():
			d.in[s] = newInbound(d, s, d.udp.take(nESP))
		default:
			d.in[s] = newInbound(d, s, d.udp.take(nIKE))
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
	noteSelectors
	noteNoPolicy
	noteSequence
	noteSend
	noteDevice
	noteRead
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

// write sends a batch through a socket. A datagram that the socket refuses is counted
// and left out; the others still go.
func (d *datapath) write(s sockID, batch []esp.Datagram, failed counter) (sent int) {
	sock := d.socks[s]
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
		if now := d.clock(); d.mayNote(noteSend, now) {
			d.log.Log(log.Net, log.Warn, "a packet could not be sent: check the route to the peer and the firewall",
				log.AddrPort("to", batch[0].Remote), log.Str("socket", s.String()), log.Err(err))
		}
		batch = batch[1:]
	}
	return sent
}
