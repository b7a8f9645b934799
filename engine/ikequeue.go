package engine

import (
	"sync"

	"postern/ike"
)

// ikeQueue carries IKE datagrams from the readers to the IKE loop. It is bounded and
// made of buffers that it has from the start; when it is full, what arrives is dropped:
// IKE repeats what was lost. Any goroutine may push; the IKE loop alone pops.
type ikeQueue struct {
	mu      sync.Mutex
	ring    []ikeDatagram
	head, n int
	wake    chan struct{} // holds a token while something may be in the queue
}

// ikeDatagram is an IKE message as it came, without the non-ESP marker.
type ikeDatagram struct {
	buf  []byte
	n    int
	path ike.Path
}

func newIKEQueue(bufs [][]byte) *ikeQueue {
	q := &ikeQueue{ring: make([]ikeDatagram, len(bufs)), wake: make(chan struct{}, 1)}
	for i, b := range bufs {
		q.ring[i].buf = b
	}
	return q
}

// push copies a datagram into the queue; ok is false if there is no room for it.
func (q *ikeQueue) push(path ike.Path, b []byte) (ok bool) {
	q.mu.Lock()
	if ok = q.n < len(q.ring); ok {
		d := &q.ring[(q.head+q.n)%len(q.ring)]
		if ok = len(b) <= len(d.buf); ok {
			d.n, d.path = copy(d.buf, b), path
			q.n++
		}
	}
	q.mu.Unlock()
	if ok {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return ok
}

// pop moves the oldest datagram into d, whose buffer the queue takes for it.
func (q *ikeQueue) pop(d *ikeDatagram) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == 0 {
		return false
	}
	e := &q.ring[q.head]
	*d, *e = *e, ikeDatagram{buf: d.buf}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return true
}
