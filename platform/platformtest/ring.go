package platformtest

import (
	"os"
	"sync"
)

// ring is a bounded queue of packets in buffers that are made once. A full ring loses
// what comes, as a device and a socket do.
type ring struct {
	mu     sync.Mutex
	wake   sync.Cond
	slots  []slot
	head   int
	n      int
	lost   int
	closed bool
}

type slot struct {
	buf  []byte
	n    int
	meta meta
}

func newRing(depth, size int) *ring {
	r := &ring{slots: make([]slot, depth)}
	r.wake.L = &r.mu
	for i := range r.slots {
		r.slots[i].buf = make([]byte, size)
	}
	return r
}

// put copies a packet in; false means that it was lost.
func (r *ring) put(b []byte, m meta) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.n == len(r.slots) || len(b) > len(r.slots[0].buf) {
		r.lost++
		return false
	}
	s := &r.slots[(r.head+r.n)%len(r.slots)]
	s.n, s.meta = copy(s.buf, b), m
	r.n++
	r.wake.Signal()
	return true
}

// wait blocks until there is a packet, with r.mu held from then on. After close the
// error is os.ErrClosed, and r.mu is not held.
func (r *ring) wait() error {
	r.mu.Lock()
	for r.n == 0 && !r.closed {
		r.wake.Wait()
	}
	if r.closed {
		r.mu.Unlock()
		return os.ErrClosed
	}
	return nil
}

// take removes the first packet; r.mu is held and there is one. The slot is good until
// r.mu is released.
func (r *ring) take() *slot {
	s := &r.slots[r.head]
	r.head = (r.head + 1) % len(r.slots)
	r.n--
	return s
}

// tryTake copies the first packet to b, if there is one.
func (r *ring) tryTake(b []byte) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 {
		return 0, false
	}
	s := r.take()
	return copy(b, s.buf[:s.n]), true
}

func (r *ring) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	r.closed = true
	r.wake.Broadcast()
	return nil
}

func (r *ring) count() (waiting, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n, r.lost
}
