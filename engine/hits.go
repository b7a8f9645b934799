package engine

import (
	"sync/atomic"

	"postern/esp"
)

// hits is what an entry of the SPD has done. What its SAs alone carry is not counted packet
// by packet: they count themselves, and the IKE loop adds that up. Everything is in
// octets of inner packets.
type hits struct {
	outPackets, outBytes atomic.Uint64
	inPackets, inBytes   atomic.Uint64
	discarded            atomic.Uint64 // packets that a DISCARD entry took
	inClear              atomic.Uint64 // packets that came in clear and should have been protected, or not at all
}

// add counts what went out.
func (h *hits) out(packets, octets uint64) {
	h.outPackets.Add(packets)
	h.outBytes.Add(octets)
}

// in counts what came in.
func (h *hits) in(packets, octets uint64) {
	h.inPackets.Add(packets)
	h.inBytes.Add(octets)
}

// share is the part of one SA in the hits. The IKE loop alone writes it.
type share struct {
	// mixed: not all packets of the SA belong to one entry, or the SPD may forbid some of
	// them. Each is looked up then.
	mixed  bool
	of     *hits     // the entry that all its packets belong to; nil: none, or several
	folded esp.Usage // what of them is in it already, or never will be
}

// fold adds to the entry what the SA has carried since the last time.
func (s *share) fold(u esp.Usage, add func(h *hits, packets, octets uint64)) {
	if s.of != nil && !s.mixed {
		add(s.of, u.Packets-s.folded.Packets, u.Bytes-s.folded.Bytes)
	}
	s.folded = u
}

// tally gathers the hits of one worker's batch, so that workers meet at an entry once for a
// run of packets.
type tally struct {
	of              *hits
	packets, octets uint64
}

func (t *tally) add(h *hits, n uint64, to func(h *hits, packets, octets uint64)) {
	if h != t.of {
		t.flush(to)
		t.of = h
	}
	t.packets++
	t.octets += n
}

func (t *tally) flush(to func(h *hits, packets, octets uint64)) {
	if t.packets > 0 {
		to(t.of, t.packets, t.octets)
	}
	*t = tally{}
}

// judge finds the entries that the packets of an SA with these selectors match: the one that
// all belong to, if there is only one. Of those that come in, some may match an entry that
// does not protect: the SA's selectors are then no longer enough to tell what may pass
// (RFC 4301 section 5.2 has them follow from an SPD without overlaps).
func (s *spd) judge(conn, child string, via *childDevice, local, remote []esp.Selector, in bool) (of *hits, mixed bool) {
	t := s.cur.Load()
	if t.simple {
		return t.byName[childKey{conn, child}], false
	}
	for _, p := range t.list {
		if p.via != via || !p.way(in) || !overlap(p.LocalTS, local) || !overlap(p.RemoteTS, remote) {
			continue
		}
		switch {
		case p.Action != esp.Protect:
			mixed = mixed || in
		case !p.carriedBy(conn, child):
		case of == nil:
			of = p.hits
		case of != p.hits:
			mixed = true
		}
		if contain(p.LocalTS, local) && contain(p.RemoteTS, remote) {
			return of, mixed
		}
	}
	return of, mixed
}

// rejudge looks at every SA again, after the list of entries has changed.
func (l *ikeLoop) rejudge() {
	for i := range l.d.sad.slots {
		slot := &l.d.sad.slots[i]
		if in := slot.in.Load(); in != nil {
			l.judgeIn(in)
		}
		if slot.out != nil {
			l.judgeOut(slot.out)
		}
		l.renest(slot)
	}
}

func (l *ikeLoop) judgeIn(sa *inSA) {
	of, mixed := l.d.spd.judge(sa.conn, sa.child, sa.via, sa.localTS, sa.remoteTS, true)
	mixed = mixed || sa.came != nil // by which it is learnt where each packet belongs
	if s := &sa.share; s.of != of || s.mixed != mixed {
		s.fold(sa.in.Usage(), (*hits).in)
		s.of, s.mixed = of, mixed
		sa.is.set(inMixed, mixed)
	}
}

func (l *ikeLoop) judgeOut(sa *outSA) {
	of, mixed := l.d.spd.judge(sa.conn, sa.child, sa.via, sa.localTS, sa.remoteTS, false)
	if s := &sa.share; s.of != of || s.mixed != mixed {
		l.foldOut(sa)
		s.of, s.mixed = of, mixed
		sa.mixed.Store(mixed)
	}
}

func (l *ikeLoop) foldOut(sa *outSA) {
	u, _ := l.d.turns.usage(sa)
	sa.share.fold(u, (*hits).out)
}

// foldAll brings the hits up to date.
func (l *ikeLoop) foldAll() {
	for i := range l.d.sad.slots {
		slot := &l.d.sad.slots[i]
		if in := slot.in.Load(); in != nil {
			in.share.fold(in.in.Usage(), (*hits).in)
		}
		if slot.out != nil {
			l.foldOut(slot.out)
		}
	}
}
