package engine

// Fragments that show no ports, where entries of the SPD or SAs have selectors for ports (RFC
// 4301 section 7). Of the three approaches, the first and the second (SAs for all ports, and for
// OPAQUE ones) need nothing but selectors. The third is here: a later fragment goes the way that
// its first one took, and is accepted through the SA that brought its first one, if both peers
// have agreed to that (NON_FIRST_FRAGMENTS_ALSO).
//
// Only fragments ever come here, and only while something has selectors for ports. One that comes before
// its first one is dropped: RFC 4301 leaves that open, senders begin with the first one, and ESP
// through one socket keeps their order.

import (
	"net/netip"
	"sync"
	"time"

	"postern/engine/log"
	"postern/esp"
)

const (
	// fragLife is how long a first fragment is remembered: what Linux waits for the others.
	fragLife = 30 * time.Second
	// fragWays is how many datagrams with one hash are remembered.
	fragWays = 4
	// fragSpans is how many pieces with gaps between them a datagram may have on its way in. In
	// order there is one.
	fragSpans = 4
)

// fragTable remembers the first fragments of datagrams. It does not grow; where there is no room,
// the oldest datagram of four is forgotten. It may be used from any goroutine.
type fragTable struct {
	mu   sync.Mutex
	sets [][fragWays]fragEntry
	seed uint64
}

// fragEntry is a datagram that comes in pieces, by its addresses, its identification and its
// protocol.
type fragEntry struct {
	key           flowKey
	since         time.Duration // when its first fragment came; 0: the entry is free
	proto         uint8
	local, remote uint16 // ports

	// On the way in:
	sa    *inSA // that brought the first fragment
	spans [fragSpans]fragSpan
	n     int    // spans in use
	last  uint16 // where the datagram ends, in units of 8 octets; 0: not known yet
	bad   bool   // some of it overlaps: nothing more of it passes (RFC 5722)

	_ [0]func() // nobody compares entries, so there need be no code to do it
}

// fragSpan is what has come without a gap, in units of 8 octets.
type fragSpan struct{ from, to uint16 }

// newFragTable returns a table for n datagrams, n a power of two.
func newFragTable(n int, seed uint64) *fragTable {
	return &fragTable{sets: make([][fragWays]fragEntry, max(n/fragWays, 1)), seed: seed}
}

// fragKey returns the key of a fragment with that flow.
func fragKey(f *esp.Flow, fr *esp.Fragment, in bool) flowKey {
	k := keyOf(f)
	k.rest = k.rest&2 | uint64(fr.ID)<<32 | uint64(fr.Proto)<<8
	if in {
		k.rest |= 4
	}
	return k
}

func (e *fragEntry) live(now time.Duration) bool { return e.since != 0 && now-e.since < fragLife }

// find returns the entry of a key, or nil, and the place that a new one is to take. The table is
// locked.
func (t *fragTable) find(k *flowKey, now time.Duration) (e, place *fragEntry) {
	set := &t.sets[int(k.hash(t.seed))&(len(t.sets)-1)]
	for i := range set {
		x := &set[i]
		switch {
		case !x.live(now):
			x.since = 0
		case x.key == *k:
			return x, x
		}
		if place == nil || x.since < place.since {
			place = x
		}
	}
	return nil, place
}

// begin makes the entry that of a datagram whose first fragment has that flow.
func (e *fragEntry) begin(k *flowKey, f *esp.Flow, sa *inSA, now time.Duration) {
	*e = fragEntry{key: *k, since: max(now, 1), proto: f.Proto, local: f.LocalPort, remote: f.RemotePort, sa: sa}
}

// lend gives a flow the ports that its first fragment had.
func (e *fragEntry) lend(f *esp.Flow) {
	f.Proto, f.LocalPort, f.RemotePort, f.NoPorts = e.proto, e.local, e.remote, false
}

// follow notes a first fragment on its way out, or gives a later one the ports of its first one.
// known is false if that one is not known.
func (t *fragTable) follow(k *flowKey, f *esp.Flow, first bool, now time.Duration) (known, forgot bool) {
	t.mu.Lock()
	e, place := t.find(k, now)
	switch {
	case first: // with an old one, the identification is used again
		forgot = e == nil && place.since != 0
		place.begin(k, f, nil, now)
	case e != nil:
		e.lend(f)
	}
	t.mu.Unlock()
	return first || e != nil, forgot
}

// accept takes a fragment that an SA brings, the first one only if its ports are the SA's. A
// later one gets the ports of the first. The result is numCounters, or what the drop counts as.
func (t *fragTable) accept(k *flowKey, f *esp.Flow, fr *esp.Fragment, sa *inSA, now time.Duration) (drop counter, forgot bool) {
	drop = numCounters
	t.mu.Lock()
	e, place := t.find(k, now)
	if e == nil && fr.Start == 0 {
		forgot = place.since != 0
		place.begin(k, f, sa, now)
		e = place
	}
	switch {
	// SAs of one child replace each other: which of them may bring the ports, its selectors say.
	case e == nil, e.sa.conn != sa.conn || e.sa.child != sa.child:
		drop = cInFragFirst
		if fr.Start == 0 {
			drop = cInFragOverlap
		}
	case !e.take(fr):
		e.bad = true
		drop = cInFragOverlap
	default:
		e.lend(f)
		if e.spans[0] == (fragSpan{0, e.last}) { // complete: its identification is free again
			e.since, e.sa = 0, nil
		}
	}
	t.mu.Unlock()
	return drop, forgot
}

// take adds a fragment to what has come. It returns false if it overlaps with that, ends behind
// the end, or leaves too many gaps.
func (e *fragEntry) take(fr *esp.Fragment) bool {
	from, to := uint16(fr.Start/8), uint16((fr.End+7)/8)
	end := uint16(0)
	if e.n > 0 {
		end = e.spans[e.n-1].to
	}
	switch {
	case e.bad, e.last != 0 && (to > e.last || !fr.More && to != e.last), !fr.More && to < end:
		return false
	}
	i := 0
	for i < e.n && e.spans[i].to < from {
		i++
	}
	// spans[i] is the first that reaches from or is behind it.
	var before, behind bool
	if i < e.n {
		before = e.spans[i].to == from
	}
	next := i
	if before {
		next++
	}
	if next < e.n {
		if e.spans[next].from < to {
			return false
		}
		behind = e.spans[next].from == to
	}
	switch {
	case before && behind:
		e.spans[i].to = e.spans[next].to
		copy(e.spans[next:], e.spans[next+1:e.n])
		e.n--
	case before:
		e.spans[i].to = to
	case behind:
		e.spans[next].from = from
	case e.n == fragSpans:
		return false
	default:
		copy(e.spans[i+1:], e.spans[i:e.n])
		e.spans[i] = fragSpan{from, to}
		e.n++
	}
	if !fr.More {
		e.last = to
	}
	return true
}

// ported tells whether one of the selectors is for some ports, or for OPAQUE ones.
func ported(ts []esp.Selector) bool {
	for i := range ts {
		if ts[i].StartPort != 0 || ts[i].EndPort != 65535 {
			return true
		}
	}
	return false
}

// blind tells whether selectors match a flow if its ports cannot be seen.
func blind(local, remote []esp.Selector, f *esp.Flow) bool {
	b := *f
	b.NoPorts = true
	return esp.MatchFlow(local, remote, &b)
}

// within tells whether an address is in one of the selectors.
func within(ts []esp.Selector, a netip.Addr) bool {
	for i := range ts {
		if ts[i].Start.Compare(a) <= 0 && a.Compare(ts[i].End) <= 0 {
			return true
		}
	}
	return false
}

// dropFragment counts a fragment that is dropped, and tells of it.
func (d *datapath) dropFragment(c counter, what string, src, dst netip.Addr, proto uint8, now time.Duration) {
	d.counts.inc(c)
	if what != "" && d.mayNote(noteFragment, now) {
		d.log.Log(log.ESP, log.Warn, "fragment dropped: "+what, log.Addr("src", src), log.Addr("dst", dst), log.Int("proto", int(proto)))
	}
}

// part is what is known of a packet on its way out that is a fragment.
type part uint8

const (
	partNone    part = iota // it is whole, or nothing depends on ports
	partFirst               // the first one, with its ports
	partLent                // a later one, with the ports of its first one
	partRefused             // the same, but the SA takes no later ones: it has no ports
	partBlind               // a later one whose first one is not known
	partTiny                // the first one, which ends before its ports (RFC 1858)
)

// fragment belongs to step 2: it gives a later fragment the ports of its first one. It returns
// false if the packet was dropped.
func (o *outbound) fragment(p *outPacket) bool {
	d := o.d
	var fr esp.Fragment
	is, err := esp.ParseFragment(p.buf[p.off:p.off+p.n], &fr)
	if err != nil {
		d.counts.inc(cOutFragMalformed)
		return false
	}
	first := fr.Start == 0
	switch {
	case !is || !fr.Ported() || first && p.flow.NoPorts && !esp.HasPorts(p.flow.Proto):
		return true
	case first && p.flow.NoPorts:
		p.part = partTiny
		return true
	}
	k := fragKey(&p.flow.Flow, &fr, false)
	known, forgot := d.frags.follow(&k, &p.flow.Flow, first, o.now)
	if forgot {
		d.counts.inc(cFragsForgotten)
	}
	switch {
	case first:
		p.part = partFirst
	case known:
		p.part = partLent
	default:
		p.part = partBlind
	}
	return true
}

// follow belongs to step 3: it settles which entry and SA a fragment has, given those of its flow.
// ok is false if it was dropped.
func (o *outbound) follow(p *outPacket, pol *policy, sa *outSA) (_ *policy, _ *outSA, ok bool) {
	d, f := o.d, &p.flow.Flow
	if p.part == partLent && sa != nil && !sa.frags && !blind(sa.localTS, sa.remoteTS, f) {
		// An SA for all ports, or for OPAQUE ones, may take it.
		p.part = partRefused
		f.LocalPort, f.RemotePort, f.NoPorts = 0, 0, true
		p.flow.key = keyOf(f)
		p.flow.hash = p.flow.key.hash(o.cache.seed)
		pol, sa = d.spd.lookupVia(f, o.via)
	}
	protected := pol != nil && pol.Action == esp.Protect
	switch {
	case protected && p.part == partTiny && sa != nil && sa.ported:
	case protected || pol != nil && pol.Action == esp.Discard:
		return pol, sa, true
	case o.cameInClear(f):
		return nil, nil, false
	}
	c, what := cOutFragClear, "no policy protects its packet, but the kernel could not tell it from those that are protected; load connection tracking (nf_conntrack), which puts packets together first"
	switch p.part {
	case partTiny:
		c, what = cOutFragTiny, ""
	case partBlind:
		c, what = cOutFragFirst, ""
	case partRefused:
		c, what = cOutFragRefused, refusedText
	}
	d.dropFragment(c, what, f.Local, f.Remote, f.Proto, o.now)
	return nil, nil, false
}

const refusedText = "its CHILD SA is for some ports and not agreed to be for later fragments; write non_first_fragments = \"also\" at both ends, or select all ports"

// tcpLeast is what of TCP a first fragment must have: its flags are in it (RFC 3128).
const tcpLeast = 16

// fragment belongs to step 6: it checks what an SA with selectors for ports brings, and gives a
// later fragment the ports of its first one. It returns false if the packet was dropped.
func (in *inbound) fragment(sa *inSA, pkt []byte) bool {
	d, f := in.d, &in.flow
	var fr esp.Fragment
	is, err := esp.ParseFragment(pkt, &fr)
	first, drop, what := fr.Start == 0, cInFragTiny, ""
	switch {
	case err != nil:
		drop = cInFragMalformed
	case !is || !fr.Ported() || first && f.NoPorts && !esp.HasPorts(f.Proto):
		return true
	case first && f.NoPorts, f.Proto == esp.ProtoTCP && (first && fr.End < tcpLeast || fr.Start == 8):
	default:
		matches := esp.MatchFlow(sa.localTS, sa.remoteTS, f)
		if first && !(matches && sa.frags) || !within(sa.localTS, f.Local) || !within(sa.remoteTS, f.Remote) {
			return true // for which the selectors are enough
		}
		drop, what = cInFragRefused, refusedText
		if sa.frags {
			k := fragKey(f, &fr, true)
			var forgot bool
			if drop, forgot = d.frags.accept(&k, f, &fr, sa, in.now); forgot {
				d.counts.inc(cFragsForgotten)
			}
			what = ""
		}
		if drop == numCounters || matches && drop != cInFragOverlap {
			return true
		}
	}
	d.dropFragment(drop, what, f.Remote, f.Local, f.Proto, in.now)
	return false
}
