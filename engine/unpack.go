package engine

import (
	"sync"
	"sync/atomic"

	"postern/esp"
	"postern/esp/aggfrag"
	"postern/ike"
)

// IP-TFS (RFC 9347) on the way in: step 4 of an SA with AGGFRAG payloads gives any number of packets,
// each of which goes its own way from there.

// unpacker is the receiving end of an inbound SA with AGGFRAG payloads.
type unpacker struct {
	sa     *inSA
	number uint32                 // of later SAs it is larger
	stream atomic.Pointer[stream] // of the pair; nil: not yet

	mu     sync.Mutex
	re     *aggfrag.Reassembler
	lost   uint64 // that the counter knows of
	queued bool   // with the pacer, until nothing waits
}

// newUnpacker makes the unpacker of an inbound SA, or nil if it needs none.
func (l *ikeLoop) newUnpacker(c *ike.ChildSA, sa *inSA) *unpacker {
	if !c.AggFrag.On {
		return nil
	}
	l.unpackers++
	r := aggfrag.Limits{Reorder: reorderWindow, Payload: l.d.pool.size, Inner: longestInner, Wait: reorderWait}
	if c.Hiding.NoFrags {
		r.Inner = 0
	}
	return &unpacker{sa: sa, number: l.unpackers, re: aggfrag.NewReassembler(r)}
}

// openAgg does steps 4 to 8 for a datagram of an SA with AGGFRAG payloads.
func (in *inbound) openAgg(sa *inSA, g *esp.Datagram) {
	d := in.d
	if g.Whole {
		d.counts.inc(cInHeaders)
		return
	}
	payload, next, seq, err := sa.in.OpenSeq(in.ctx, g.Buf[:g.N])
	if !in.authentic(sa, g, err) {
		return
	}
	switch {
	case err != nil:
	case next == esp.ProtoNoNext:
		err = esp.ErrDummy
	case next != aggfrag.NextHeader:
		err = esp.ErrNextHeader // RFC 9347 section 2.3
	}
	if err != nil {
		in.unusable(err)
		return
	}
	d.counts.inc(cInAgg)
	u := sa.unpacker
	u.mu.Lock()
	defer u.mu.Unlock()
	var h aggfrag.Header
	err = u.re.Push(in.now, seq, payload, &h)
	if err != aggfrag.ErrShort && err != aggfrag.ErrSubType {
		if s := u.stream.Load(); s != nil && s.countsFor(u.number) && s.ctl.In(in.now, seq, false, &h) {
			d.pacer.kick()
		}
	}
	in.unpacked(err)
	in.unpack(u)
	if _, ok := u.re.Deadline(); ok {
		d.pacer.await(u)
	}
}

// unpack takes the packets that u has, whose lock the caller holds.
func (in *inbound) unpack(u *unpacker) {
	for {
		pkt, err := u.re.Next()
		if pkt == nil && err == nil {
			break
		}
		if in.unpacked(err); err != nil {
			continue
		}
		// Where it lies it cannot stay, and there is no room for the TUN device's header before it.
		n := innerRoom + len(pkt)
		if in.room == nil {
			in.room = make([]byte, unpackRoom)
		}
		if in.used+n > len(in.room) || in.full() {
			in.deliver()
		}
		buf := in.room[in.used : in.used+n : in.used+n]
		copy(buf[innerRoom:], pkt)
		in.used += (n + bufferAlign - 1) &^ (bufferAlign - 1)
		in.inner = esp.Datagram{} // none of it comes from the outer header
		in.take(u.sa, buf, &in.inner, nil)
	}
	if lost := u.re.Lost(); lost != u.lost {
		in.d.counts.add(cInAggLost, lost-u.lost)
		u.lost = lost
	}
}

// full tells whether what is to be delivered has to be first.
func (in *inbound) full() bool {
	for q := range in.out {
		if len(in.out[q]) == cap(in.out[q]) {
			return true
		}
	}
	return len(in.apart) > 0 && len(in.apart) == cap(in.apart)
}

// unpacked counts why something in an AGGFRAG payload was dropped, if it was.
func (in *inbound) unpacked(err error) {
	for _, e := range unpackErrors {
		if err == e.err && err != nil {
			in.d.counts.inc(e.c)
		}
	}
}

var unpackErrors = [...]struct {
	err error
	c   counter
}{
	{aggfrag.ErrShort, cInAggHeader}, {aggfrag.ErrSubType, cInAggHeader}, {aggfrag.ErrLate, cInAggLate},
	{aggfrag.ErrNoRoom, cInAggRoom}, {aggfrag.ErrLost, cInAggPart}, {aggfrag.ErrOffset, cInAggOffset},
	{aggfrag.ErrType, cInAggType}, {aggfrag.ErrLength, cInAggLength}, {aggfrag.ErrTooLong, cInAggTooLong},
}
