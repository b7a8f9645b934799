package engine

import (
	"sync"
	"time"

	"postern/esp"
)

// What arrives before its inbound SA is there. The peer that answers our request has the new
// SAs before we have them, and may send through them as soon as its answer has left (RFC 7296
// section 2.8): its packets come first where they overtake the answer, where the answer is
// lost and has to be asked for again, or while we still compute the shared secret.

// holdMax is how long a packet may wait for its inbound SA. An answer that was lost comes
// with the first repetition of the request, which is sent after 4 seconds unless configured
// otherwise; what is older has been repeated by its sender, or is of no use to it any more.
const holdMax = 5 * time.Second

// holdPart is which part of the queue the packets of one SPI may take.
const holdPart = 2

// heldPacket is an ESP packet whose inbound SA is still being negotiated.
type heldPacket struct {
	g     esp.Datagram // the buffer is the queue's
	spi   uint32
	sock  sockID // where it arrived
	since time.Duration
}

// holdQueue keeps packets for SPIs that are reserved and have no SA yet, in the order in
// which they came. It is made of buffers that it has from the start. Who guesses a reserved
// SPI can fill the share of that SPI, and no more. Any goroutine may push; everything else
// is the IKE loop's.
//
// No packet is left behind: a reader looks under the queue's lock whether the SPI is still
// awaited, and the IKE loop, which ends that, takes the packets out under the same lock, not
// before it has ended it (unhold) or at once with it (publish).
type holdQueue struct {
	mu      sync.Mutex
	ring    []heldPacket
	head, n int
	share   int // how many packets of one SPI
}

// newHoldQueue returns a queue of as many packets as there are buffers.
func newHoldQueue(bufs [][]byte) *holdQueue {
	q := &holdQueue{ring: make([]heldPacket, len(bufs)), share: max(len(bufs)/holdPart, 1)}
	for i, b := range bufs {
		q.ring[i].g.Buf = b
	}
	return q
}

// at returns the packet that is the i-th to go.
func (q *holdQueue) at(i int) *heldPacket { return &q.ring[(q.head+i)%len(q.ring)] }

// push copies a packet that came through sock into the queue, if its SPI is awaited; if it
// is not, the caller has to look for its SA again. What finds no room is dropped: the packets
// that came first are those that the others of their flow wait for.
func (q *holdQueue) push(d *datapath, sock sockID, g *esp.Datagram, spi uint32, now time.Duration) (awaited bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !d.sad.awaits(spi) {
		return false
	}
	for q.n > 0 && q.at(0).expired(now) {
		q.head = (q.head + 1) % len(q.ring)
		q.n--
		d.counts.inc(cInExpired)
	}
	same := 0
	for i := range q.n {
		if q.at(i).spi == spi {
			same++
		}
	}
	if q.n == len(q.ring) || same >= q.share || g.N > len(q.at(q.n).g.Buf) {
		d.counts.inc(cInHoldFull)
		return true
	}
	h := q.at(q.n)
	h.spi, h.sock, h.since = spi, sock, now
	buf := h.g.Buf
	h.g = *g
	h.g.Buf = buf
	copy(buf, g.Buf[:g.N])
	q.n++
	d.counts.inc(cInHeld)
	return true
}

func (h *heldPacket) expired(now time.Duration) bool { return now-h.since > holdMax }

// settle takes the packets of spi out, showing each to visit, the oldest first, and then
// calls done, while whoever wants to push waits. Until done returns, the packets are
// visit's; neither may call back into the queue.
func (q *holdQueue) settle(spi uint32, visit func(h *heldPacket), done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := 0
	for i := range q.n {
		h := q.at(i)
		if h.spi == spi {
			visit(h)
			continue
		}
		if i != kept { // the buffers change places, so that none gets lost
			to := q.at(kept)
			*to, *h = *h, *to
		}
		kept++
	}
	q.n = kept
	done()
}

// len returns how many packets wait.
func (q *holdQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// hold keeps a packet without an SA if its SA is being negotiated. It returns false if it is
// not, or not any more.
func (in *inbound) hold(g *esp.Datagram, spi uint32) bool {
	// Without the lock first: a flood of strange SPIs must not meet it.
	return in.d.sad.awaits(spi) && in.d.held.push(in.d, in.sock, g, spi, in.now)
}

// publish puts an inbound SA into the SAD, after what has come for it before: a packet that
// arrives from then on does not overtake one that was held.
func (l *ikeLoop) publish(sa *inSA) (err error) {
	if l.d.sad.slot(sa.spi) == nil {
		return errSlot
	}
	in := l.early
	in.now, in.settling = l.d.clock(), true
	l.d.held.settle(sa.spi, func(h *heldPacket) {
		if h.expired(in.now) {
			l.d.counts.inc(cInExpired)
			return
		}
		if _, proto := h.g.SPI(); proto != sa.proto {
			l.d.counts.inc(cInUnknownSPI)
			return
		}
		in.sock = h.sock
		in.nested = h.wasNested(sa)
		in.esp(sa, &h.g, h.g.Buf)
		in.nested = false
	}, func() {
		in.deliver()
		err = l.d.sad.addIn(sa)
	})
	return err
}

// unhold drops what has come for an SPI that was given back.
func (l *ikeLoop) unhold(spi uint32) {
	l.d.held.settle(spi, func(*heldPacket) { l.d.counts.inc(cInReleased) }, func() {})
}
