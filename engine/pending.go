package engine

import (
	"sync"
	"time"
)

// pendingMax is how long a packet may wait for an SA. A negotiation that works takes
// less; what its sender has repeated or given up by now is better dropped.
const pendingMax = 10 * time.Second

// waiting is one packet without an SA.
type waiting struct {
	buf    []byte // the queue's; never nil
	off, n int
	since  time.Duration
	via    *childDevice // into which it was routed
}

// pendingQueue holds the packets that wait for an SA, in the order in which they came.
// It is full of buffers from the start: to put a packet in, the reader exchanges its
// buffer for an empty one. It may be used from any goroutine; only packets without an
// SA ever meet its lock.
type pendingQueue struct {
	mu      sync.Mutex
	ring    []waiting
	head, n int
	gen     uint64 // the SPD generation for which it was last flushed
}

// newPendingQueue returns a queue of as many packets as there are buffers.
func newPendingQueue(bufs [][]byte) *pendingQueue {
	q := &pendingQueue{ring: make([]waiting, len(bufs))}
	for i, b := range bufs {
		q.ring[i].buf = b
	}
	return q
}

// push puts in the packet at buf[off:off+n], for which the SPD of generation gen had no
// SA. It returns the buffer that the caller gets for it. If the queue was flushed for
// a later generation meanwhile, ok is false and the caller has to look again: nobody
// would come for the packet. dropped tells whether the oldest packet had to go.
func (q *pendingQueue) push(buf []byte, off, n int, now time.Duration, gen uint64, via *childDevice) (spare []byte, dropped, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if gen < q.gen {
		return buf, false, false
	}
	if len(q.ring) == 0 {
		return buf, true, true
	}
	if q.n == len(q.ring) {
		q.head = (q.head + 1) % len(q.ring)
		q.n--
		dropped = true
	}
	w := &q.ring[(q.head+q.n)%len(q.ring)]
	spare = w.buf
	*w = waiting{buf: buf, off: off, n: n, since: now, via: via}
	q.n++
	return spare, dropped, true
}

// flush shows every packet to visit, the oldest first, and keeps those for which it
// returns true. gen is the SPD generation that visit works with. visit may overwrite a
// packet that it does not keep, and must not call back into the queue.
func (q *pendingQueue) flush(gen uint64, visit func(w *waiting) (keep bool)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gen = gen
	kept := 0
	for i := range q.n {
		w := &q.ring[(q.head+i)%len(q.ring)]
		if !visit(w) {
			continue
		}
		if i != kept { // the buffers change places, so that none gets lost
			to := &q.ring[(q.head+kept)%len(q.ring)]
			*to, *w = *w, *to
		}
		kept++
	}
	q.n = kept
}

// len returns how many packets wait.
func (q *pendingQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}
