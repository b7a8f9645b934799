package engine

import (
	"sync"
	"time"

	"postern/esp"
)

// turns keeps the packets of an SA in the order of their sequence numbers on the wire,
// while several workers seal for it at once. A peer's replay window may have 32 packets
// only: a batch that overtakes another would be lost there.
//
// A worker that has a batch reserves, in one step for all SAs in it, a block of sequence
// numbers and a ticket of each. It seals without any lock, then waits until every one of
// these SAs serves its ticket, sends, and lets the next ticket be served.
//
// No deadlock: since a batch takes all its tickets in one step under mu, all batches are in
// one order, the same for every SA that two of them share. A batch waits for older ones
// alone, and the oldest waits for none. While it has tickets a worker waits for nothing
// else but a socket that takes its packets, and takes no other lock that is held over a
// wait. (The IKE loop waits while it holds that of the pending queue; workers take that
// one only while they have no tickets.)
//
// An SA that one worker owns takes no part in this: its packets leave in their order because one
// goroutine sends them all (lanes.go).
//
// No ticket is left behind: whatever becomes of its packets, who called reserve calls serve.
type turns struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting int // goroutines in changed.Wait
}

// turn is one SA's part of a batch.
type turn struct {
	sa     *outSA
	ticket uint32
	seq    uint64 // the next reserved number
	n      int    // packets in the batch; after reserve, numbers that are left
	room   int    // octets of these packets; after reserve, those that may still be sealed

	octets int // of the packets that were sealed

	own bool // the SA is the worker's own, and takes no turns
}

func (q *turns) init() { q.changed.L = &q.mu }

// reserve takes numbers, octets where these are limited, and a ticket of every SA in o's
// batch. It tells whether it is the batch's turn already.
func (q *turns) reserve(o *outbound) (now bool) {
	now = true
	if o.lanes && !o.reserveOwn() {
		return now
	}
	q.mu.Lock()
	for i := range o.turns {
		t := &o.turns[i]
		if t.own {
			continue
		}
		if t.sa.out.Limited() {
			o.limited = true
			o.fit(i, t.sa.out.Left()) // which stays so until Reserve: this is the only place
		}
		t.seq, t.n = t.sa.out.Reserve(t.n, t.room)
		t.ticket = t.sa.issued
		t.sa.issued++
		now = now && t.sa.served == t.ticket
	}
	q.mu.Unlock()
	return now
}

// wait returns when it is the batch's turn: all older packets of its SAs are sent.
func (q *turns) wait(batch []turn) {
	q.mu.Lock()
	for i := range batch {
		for t := &batch[i]; !t.own && t.sa.served != t.ticket; {
			q.waiting++
			q.changed.Wait()
			q.waiting--
		}
	}
	q.mu.Unlock()
}

// serve ends the batch's turn, and counts what it has carried.
func (q *turns) serve(batch []turn, now time.Duration) {
	q.mu.Lock()
	for i := range batch {
		t := &batch[i]
		if t.own {
			continue
		}
		t.sa.served++
		if t.octets > 0 {
			t.sa.octets += uint64(t.octets)
			t.sa.lastOut = now
		}
	}
	wake := q.waiting > 0
	q.mu.Unlock()
	if wake {
		q.changed.Broadcast()
	}
}

// carried counts what has left through an SA whose packets take no turns.
func (q *turns) carried(sa *outSA, octets int, now time.Duration) {
	q.mu.Lock()
	sa.octets += uint64(octets)
	sa.lastOut = now
	q.mu.Unlock()
}

// usage returns what has left through an SA, and when the last packet did (0: none). The
// packets are the sequence numbers that were taken: none is wasted while the SA lives.
func (q *turns) usage(sa *outSA) (u esp.Usage, last time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u, last = esp.Usage{Packets: sa.out.Seq() - sa.first, Bytes: sa.octets}, sa.lastOut
	if sa.own != nil { // its first batch may have taken a turn all the same
		u.Bytes += sa.own.octets.Load()
		last = max(last, time.Duration(sa.own.lastOut.Load()))
	}
	return u, last
}
