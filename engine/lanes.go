package engine

import (
	"slices"
	"sync/atomic"
	"time"

	"postern/engine/config"
	"postern/esp"
	"postern/ike"
)

// Lanes: several SAs with the same selectors for one entry of the SPD, one for each class of
// packets or one for each worker (RFC 4301 section 4.1, RFC 9611). Which of them a packet takes
// is decided where the SPD is looked up, so that the flow cache remembers it: that of each worker
// is its own, and where there are classes, that of a packet is part of the flow's key. Packets of
// entries without lanes pay nothing for it but one look, per packet, at whether there are any.
//
//   - An entry with classes: the newest SA of the class, or the one for packets without a class,
//     or any.
//   - An entry with an SA for each worker: the newest of the worker, or the one that all share,
//     for which packets wait if it is gone. Nobody else sends through a worker's own, so that it
//     takes no turn with it (turns.go).
//   - An entry without either, whose peer has made several: what has come in through one of
//     them goes back through the same, class by class; the rest through the first.

const (
	// laneInterval is after what time an entry asks again for an SA for a lane: what it asks
	// for is under way, or could not be had.
	laneInterval = 10 * time.Second
	maxLanes     = ike.MaxLanes
	numDSCP      = 64
)

// laneSpec is what the child of an entry of the SPD has lanes for. It is immutable.
type laneSpec struct {
	workers int            // with an own SA; 0: by class
	class   [numDSCP]uint8 // the lane of each DSCP; 0: none
	names   []string       // of the classes, as they are configured
}

// lane returns the lane of a packet with that DSCP that the worker has read; a worker below 0
// has none.
func (l *laneSpec) lane(dscp uint8, worker int) uint8 {
	switch {
	case l == nil:
	case l.workers == 0:
		return l.class[dscp&(numDSCP-1)]
	case worker >= 0 && worker < l.workers:
		return uint8(worker + 1)
	}
	return 0
}

// laneAsked is when an entry asked for each of its lanes; 0: it did not.
type laneAsked [maxLanes + 1]atomic.Int64

// ownUse is what an SA that one worker owns has carried. That one alone writes it.
type ownUse struct {
	octets  atomic.Uint64
	lastOut atomic.Int64
}

// cameBy are the classes that have come in through an SA and those that it has replaced: the set
// bits are their DSCPs.
type cameBy struct{ dscps atomic.Uint64 }

func (c *cameBy) has(dscp uint8) bool { return c.dscps.Load()>>(dscp&(numDSCP-1))&1 != 0 }

// choose returns the first entry of a device (nil: of none) that the flow of a packet going out matches and, if that is
// PROTECT, the SA for a packet with that DSCP that the worker (below 0: none) has read; both are
// nil if there is none. want is the lane that the packet has to go without, if lacks. It may be
// called from any goroutine.
func (s *spd) choose(f *esp.Flow, via *childDevice, dscp uint8, worker int) (p *policy, sa *outSA, want uint8, lacks bool) {
	if t := s.cur.Load(); via == nil {
		p = t.first(f, false)
	} else {
		p = t.firstVia(f, via)
	}
	if p == nil || p.Action != esp.Protect {
		return p, nil, 0, false
	}
	list := p.sas.Load()
	if list == nil {
		return p, nil, 0, false
	}
	want = p.lanes.lane(dscp, worker)
	several := p.several.Load()
	var first, any *outSA
	for _, sa := range *list {
		switch {
		case !esp.MatchFlow(sa.localTS, sa.remoteTS, f):
		case sa.came != nil && sa.came.has(dscp):
			return p, sa, want, false
		case sa.lane == want && !several:
			return p, sa, want, false
		case (sa.lane == want || sa.lane == 0) && (first == nil || first.lane != want && sa.lane == want):
			first = sa
		case sa.own == nil && any == nil:
			any = sa
		}
	}
	switch {
	case first != nil:
	case any != nil:
		first = any
	case p.stays():
		return p, nil, 0, true
	}
	return p, first, want, first != nil && first.lane != want && p.lanes != nil
}

// stays tells whether a packet without an SA waits for one whatever the entry has of its own to
// say: there are SAs, but each is one worker's.
func (p *policy) stays() bool { return p.lanes != nil && p.lanes.workers > 0 && p.bound() > 0 }

// hasLanes tells whether the lane of a packet can matter: an entry has lanes, or a peer has made
// several SAs for one.
func (s *spd) hasLanes() bool {
	for i := range s.spec {
		if s.spec[i].lanes != nil {
			return true
		}
	}
	for _, sa := range s.sas {
		if sa.lane > 0 {
			return true
		}
	}
	return false
}

// retryLanes has the entries asked for again through which packets go without their lane.
func (s *spd) retryLanes() {
	again := false
	for _, p := range s.cur.Load().list {
		again = p.lacks.Swap(false) || again
	}
	if again {
		s.gen.Add(1)
	}
}

// sibling returns an SA that the one with these selectors has come beside or instead of, with
// the same lane, or nil.
func (s *spd) sibling(conn, child string, lane uint8, local, remote []esp.Selector) *outSA {
	for _, sa := range s.sas {
		if sa.lane == lane && sa.conn == conn && sa.child == child && slices.Equal(sa.localTS, local) && slices.Equal(sa.remoteTS, remote) {
			return sa
		}
	}
	return nil
}

// lanesOf returns what a child has lanes for; nil: nothing.
func (s *spd) lanesOf(conn, child string) *laneSpec {
	for i := range s.spec {
		if s.spec[i].protects(conn, child) {
			return s.spec[i].lanes
		}
	}
	return nil
}

// laneOf fills in what a new SA is for. The classes that have come by one that it replaces
// belong to it, too.
func (l *ikeLoop) laneOf(c *ike.ChildSA) (came *cameBy) {
	if c.Lane == 0 || c.PerCPU || l.d.spd.lanesOf(c.Conn, c.Child) != nil {
		return nil
	}
	if sa := l.d.spd.sibling(c.Conn, c.Child, c.Lane, c.LocalTS, c.RemoteTS); sa != nil && sa.came != nil {
		return sa.came
	}
	return new(cameBy)
}

// learn notes by which SA a class of packets comes.
func (in *inbound) learn(sa *inSA, inner []byte) {
	bit := uint64(1) << (esp.TrafficClass(inner) >> 2)
	if sa.came.dscps.Load()&bit == 0 && sa.came.dscps.Or(bit)&bit == 0 {
		in.d.spd.gen.Add(1) // what the flow caches remember may be wrong
	}
}

// askLane asks the IKE loop for an SA for a lane, while packets go through another one.
func (o *outbound) askLane(p *policy, f *esp.Flow, lane uint8) {
	p.lacks.Store(true)
	last := p.asked[lane].Load()
	if o.d.grow == nil || last != 0 && o.now-time.Duration(last) < laneInterval ||
		!p.asked[lane].CompareAndSwap(last, int64(max(o.now, 1))) {
		return
	}
	o.d.counts.inc(cAcquire)
	if !o.d.grow(p, f, lane) {
		o.d.counts.inc(cAcquireLost)
		p.asked[lane].Store(last)
	}
}

// grow hands the data path's wish for an SA for a lane to the loop.
func (l *ikeLoop) grow(p *policy, f *esp.Flow, lane uint8) bool {
	return l.wish(ike.Command{Kind: ike.CmdAcquire, Conn: p.conn, Child: p.child, Flow: *f, Grow: true, Lane: lane})
}

// reserveOwn takes numbers of the SAs in the batch that are the worker's own. It tells whether
// there are others.
func (o *outbound) reserveOwn() (others bool) {
	for i := range o.turns {
		t := &o.turns[i]
		if t.sa.own == nil {
			others = true
			continue
		}
		t.own = true
		if t.sa.out.Limited() {
			o.limited = true
			o.fit(i, t.sa.out.Left())
		}
		t.seq, t.n = t.sa.out.Reserve(t.n, t.room)
	}
	return others
}

// serveOwn counts what SAs of the worker's own have carried. It tells whether there are others.
func serveOwn(batch []turn, now time.Duration) (others bool) {
	for i := range batch {
		t := &batch[i]
		if !t.own {
			others = true
		} else if t.octets > 0 {
			t.sa.own.octets.Add(uint64(t.octets))
			t.sa.own.lastOut.Store(int64(now))
		}
	}
	return others
}

// allocFor is alloc of an SPI that is worker modulo n, if there is one: by that number the
// NAT-T sockets of n workers share what arrives.
func (s *sad) allocFor(worker, n uint32) (uint32, bool) {
	low := n & -n // of which the slot decides
	for k := range min(s.nfree, 2*maxQueues) {
		at := &s.free[(s.head+k)%len(s.free)]
		if (*at^worker)&(low-1)&s.mask == 0 {
			s.free[s.head], *at = *at, s.free[s.head]
			return s.take(worker, n)
		}
	}
	return s.alloc()
}

// ownLanes returns how many workers have SAs of their own where that is configured: all, or
// none if there is but one, which shares them with nobody.
func (e *Engine) ownLanes() int {
	if n := len(e.d.tuns); n > 1 {
		return min(n, maxLanes)
	}
	return 0
}

// lanes returns what a child has lanes for; nil: nothing.
func (e *Engine) lanes(c *ike.Child, k *config.Classes) *laneSpec {
	switch {
	case c.PerCPU && e.ownLanes() > 0:
		return &laneSpec{workers: e.ownLanes()}
	case k != nil:
		return &laneSpec{class: k.Lane, names: k.Names}
	}
	return nil
}

// className returns what a lane is for, as it is configured; "" if that is not known.
func (l *laneSpec) className(lane uint8) string {
	if l == nil || lane == 0 || int(lane) > len(l.names) {
		return ""
	}
	return l.names[lane-1]
}
