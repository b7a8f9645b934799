package engine

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"postern/board"
	"postern/esp"
)

// portTS selects some ports of a protocol at a prefix.
func portTS(prefix string, proto uint8, first, last uint16) []esp.Selector {
	s := sel(prefix)
	s[0].Proto, s[0].StartPort, s[0].EndPort = proto, first, last
	return s
}

// protectPorts is an entry for a child of connection c, from 10.1.0.0/16 to what is given.
func protectPorts(child string, remote []esp.Selector) policySpec {
	p := protect("c", child, "10.1.0.0/16", "10.2.0.0/16")
	p.RemoteTS = remote
	return p
}

// addPorted installs a pair of SAs with these selectors on the far side.
func (tp *testPath) addPorted(t testing.TB, child string, remote []esp.Selector, frags bool) (*inSA, *outSA) {
	t.Helper()
	isa, osa := tp.addLoop(t, testSuites[0], true, "c", child, "10.1.0.0/16", "10.2.0.0/16", false)
	isa.localTS, isa.nets, osa.remoteTS = remote, netPairOf(remote, isa.remoteTS), remote
	isa.ported, osa.ported, isa.frags, osa.frags = ported(remote), ported(remote), frags, frags
	tp.spd.bind(osa)
	return isa, osa
}

// bring takes a packet through an SA to the way in, whatever the SPD says, and tells whether it arrived.
func (tp *testPath) bring(t testing.TB, osa *outSA, pkt []byte) bool {
	t.Helper()
	buf := make([]byte, 2048)
	n := copy(buf[esp.HeadRoom:], pkt)
	start, end, err := osa.out.Seal(tp.ctxLoop(), buf, esp.HeadRoom, n, esp.ProtoIPv4+pkt[0]>>4/6*37)
	if err != nil {
		t.Fatal(err)
	}
	was := tp.tun.count()
	tp.receive(sockNATT4, esp.Datagram{Buf: buf[start:end], N: end - start, Remote: netip.MustParseAddrPort("192.0.2.1:4500")})
	return tp.tun.count() > was
}

// through sends a packet and returns the SPI that it left under; 0: it did not.
func (tp *testPath) through(pkt []byte) uint32 {
	was := len(tp.fakes[sockNATT4].datagrams())
	tp.send(pkt)
	if got := tp.fakes[sockNATT4].datagrams()[was:]; len(got) == 1 {
		return esp.SPIOf(got[0].Buf)
	}
	return 0
}

// datagram4 is a UDP datagram of n octets behind the IPv4 header, with an identification.
func datagram4(id uint16, sport, dport uint16, n int) []byte {
	p := udp4(srcHost, dstHost, sport, dport, 20+n)
	binary.BigEndian.PutUint16(p[4:], id)
	return p
}

// fragment6 cuts a piece out of an IPv6 packet; from counts octets behind the header.
func fragment6(pkt []byte, id uint32, from, n int, more bool) []byte {
	h := make([]byte, 8)
	h[0] = pkt[6]
	binary.BigEndian.PutUint16(h[2:], uint16(from))
	if more {
		h[3] |= 1
	}
	binary.BigEndian.PutUint32(h[4:], id)
	f := append(append(append([]byte(nil), pkt[:40]...), h...), pkt[40+from:40+from+n]...)
	f[6] = esp.ProtoFragment
	binary.BigEndian.PutUint16(f[4:], uint16(len(f)-40))
	return f
}

// RFC 4301 section 7.3, on the way out: a later fragment goes where its first one went, also
// where an entry for all ports stands behind, after a rekeying, and after the wait for an SA.
func TestLaterFragmentsLeaveWithTheirFirstOne(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	some := portTS("10.2.0.0/16", 17, 2000, 3000)
	tp.spd.set([]policySpec{protectPorts("some", some), protectPorts("rest", sel("10.2.0.0/16"))})
	_, a := tp.addPorted(t, "some", some, true)
	_, b := tp.addPorted(t, "rest", sel("10.2.0.0/16"), false)
	want := func(what string, pkt []byte, sa *outSA) {
		t.Helper()
		if got := tp.through(pkt); got != sa.spi {
			t.Errorf("%s left under SPI %08x, want %08x (child %s); counters: %v", what, got, sa.spi, sa.child, tp.nonZero())
		}
	}
	one, two := datagram4(1, 40000, 2500, 2000), datagram4(2, 40000, 53, 2000)
	want("a later fragment that comes first", fragment4(one, 1000, 1000, false), b)
	want("the first fragment to port 2500", fragment4(one, 0, 1000, true), a)
	want("the first fragment to port 53", fragment4(two, 0, 1000, true), b)
	want("a later one to port 2500", fragment4(one, 1000, 504, true), a)
	want("a later one to port 53", fragment4(two, 1000, 504, true), b)
	_, a2 := tp.addPorted(t, "some", some, true)
	want("one after a rekeying", fragment4(one, 1504, 496, false), a2)
	one[9] = 6
	want("one of another protocol with the same identification", fragment4(one, 1504, 496, false), b)
	one[9] = 17
	tp.now += fragLife
	want("one after its time", fragment4(one, 1504, 496, false), b)

	// The identification is used again: the new first fragment counts.
	again := datagram4(2, 40000, 2600, 2000)
	want("a new first fragment", fragment4(again, 0, 1000, true), a2)
	want("a later one of it", fragment4(again, 1000, 1000, false), a2)

	// Without an SA all of the datagram waits for one.
	tp.spd.unbind(a)
	tp.spd.unbind(a2)
	three := datagram4(3, 40000, 2500, 2000)
	tp.send(fragment4(three, 0, 1000, true), fragment4(three, 1000, 1000, false))
	tp.want(t, cOutQueued, 2)
	was := len(tp.fakes[sockNATT4].datagrams())
	_, a3 := tp.addPorted(t, "some", some, true)
	tp.flusher.flush()
	got := tp.fakes[sockNATT4].datagrams()[was:]
	if len(got) != 2 || esp.SPIOf(got[0].Buf) != a3.spi || esp.SPIOf(got[1].Buf) != a3.spi {
		t.Errorf("%d fragments left when the SA came up, want both through it", len(got))
	}
}

// An SA whose peer did not agree gets no later fragment, whatever was seen before.
func TestLaterFragmentsNeedTheirPeersAgreement(t *testing.T) {
	some := portTS("10.2.0.0/16", 17, 2000, 3000)
	d := datagram4(1, 40000, 2500, 2000)
	first, later := fragment4(d, 0, 1000, true), fragment4(d, 1000, 1000, false)
	for _, c := range []struct {
		name   string
		behind []esp.Selector // of another child
		other  bool           // which takes the later fragment
	}{
		{"alone", nil, false},
		{"OPAQUE behind it", portTS("10.2.0.0/16", 17, 65535, 0), true},
		{"all ports behind it", sel("10.2.0.0/16"), true},
		{"other ports behind it", portTS("10.2.0.0/16", 17, 1, 1999), false},
	} {
		tp := newTestPath(t, board.Tiny)
		spec := []policySpec{protectPorts("some", some)}
		if c.behind != nil {
			spec = append(spec, protectPorts("more", c.behind))
		}
		tp.spd.set(spec)
		_, a := tp.addPorted(t, "some", some, false)
		want := uint32(0)
		if c.behind != nil {
			_, b := tp.addPorted(t, "more", c.behind, false)
			if c.other {
				want = b.spi
			}
		}
		if got := tp.through(first); got != a.spi {
			t.Errorf("%s: the first fragment left under %08x, want %08x", c.name, got, a.spi)
		}
		if got := tp.through(later); got != want {
			t.Errorf("%s: a later fragment left under %08x, want %08x", c.name, got, want)
		}
		if want == 0 {
			tp.want(t, cOutFragRefused, 1)
		}
		// And what the peer sends all the same is not taken.
		if !tp.bring(t, a, first) || tp.bring(t, a, later) {
			t.Errorf("%s: of what the SA brought, not the first fragment alone arrived", c.name)
		}
		tp.want(t, cInFragRefused, 1)
	}
}

// What the kernel hands over because it sees no ports is not sent in clear, and counted.
func TestFragmentsThatNothingProtectsAreCounted(t *testing.T) {
	some := portTS("10.2.0.0/16", 17, 2000, 3000)
	tp := newTestPath(t, board.Tiny)
	bypass := protectPorts("", portTS("10.2.0.0/16", 17, 443, 443))
	bypass.Action, bypass.conn = esp.Bypass, ""
	tp.spd.set([]policySpec{protectPorts("some", some), bypass})
	tp.addPorted(t, "some", some, true)
	d, e := datagram4(1, 40000, 53, 2000), datagram4(2, 40000, 443, 2000)
	d6 := udp6("2001:db8:1::5", "2001:db8:2::9", 1, 2, 340)
	d6[6] = esp.ProtoDstOpts
	d6[40], d6[41] = esp.ProtoUDP, 0 // options of 8 octets, then UDP
	for _, c := range []struct {
		pkt []byte
		c   counter
	}{
		{fragment4(d, 1000, 1000, false), cOutFragFirst},
		{fragment4(d, 0, 1000, true), cOutFragClear},
		{fragment4(d, 1000, 1000, false), cOutFragClear},
		{fragment4(e, 0, 1000, true), cOutFragClear},
		{fragment4(e, 1000, 1000, false), cOutFragClear},
		{fragment6(d6, 7, 0, 8, true), cOutFragTiny},
		{datagram4(3, 40000, 53, 100), cOutNoPolicy},
		{datagram4(3, 40000, 443, 100), cOutBypass},
	} {
		was := tp.counts.get(c.c)
		if spi := tp.through(c.pkt); spi != 0 {
			t.Errorf("what is to be counted as %s left under SPI %08x", c.c, spi)
		}
		if n := tp.counts.get(c.c) - was; n != 1 {
			t.Errorf("%s rose by %d, want 1; counters: %v", c.c, n, tp.nonZero())
		}
	}
}

// What an SA with selectors for ports brings in pieces: each kind of bad fragment is dropped and
// has a counter of its own.
func TestBadFragmentsAreCountedByReason(t *testing.T) {
	some := append(portTS("10.2.0.0/16", 17, 2000, 3000), portTS("10.2.0.0/16", 6, 2000, 3000)...)
	some = append(some, portTS("2001:db8:2::/48", 17, 2000, 3000)...)
	six := udp6("2001:db8:1::5", "2001:db8:2::9", 40000, 2500, 40+64)
	options := slices.Clone(six)
	options[6], options[40], options[41] = esp.ProtoDstOpts, esp.ProtoUDP, 0
	tcp := datagram4(1, 40000, 2500, 64)
	tcp[9] = 6
	d, strange := datagram4(1, 40000, 2500, 2000), datagram4(1, 40000, 53, 2000)
	set := func(pkt []byte, at int, b ...byte) []byte { p := slices.Clone(pkt); copy(p[at:], b); return p }
	odd := fragment4(d, 0, 1003, true)
	twice := fragment6(fragment6(six, 9, 0, 64, false), 9, 0, 72, true)
	binary.BigEndian.PutUint16(twice[50:], 8) // a piece of a piece
	chain := udp6("2001:db8:1::5", "2001:db8:2::9", 0, 0, 40+9*8)
	chain[6] = esp.ProtoDstOpts
	for i := range 9 {
		chain[40+8*i], chain[41+8*i] = esp.ProtoDstOpts, 0
	}
	first := fragment4(d, 0, 1000, true)
	for _, c := range []struct {
		name   string
		before [][]byte // arrive
		pkt    []byte
		c      counter
	}{
		{"a later one before the first", nil, fragment4(d, 1000, 1000, false), cInFragFirst},
		{"the first again", [][]byte{first}, first, cInFragOverlap},
		{"a first one with other ports", [][]byte{first}, fragment4(datagram4(1, 40000, 2600, 2000), 0, 1000, true), cInFragOverlap},
		{"one over the first", [][]byte{first}, fragment4(d, 992, 1008, false), cInFragOverlap},
		{"one over a later one", [][]byte{first, fragment4(d, 1504, 496, false)}, fragment4(d, 1000, 512, true), cInFragOverlap},
		{"one behind the last", [][]byte{first, fragment4(d, 1504, 400, false)}, fragment4(d, 1904, 96, false), cInFragOverlap},
		{"a last one before the end", [][]byte{first, fragment4(d, 1504, 400, true)}, fragment4(d, 1000, 504, false), cInFragOverlap},
		{"more gaps than one has on its way", [][]byte{first, fragment4(d, 1008, 8, true), fragment4(d, 1024, 8, true), fragment4(d, 1040, 8, true)},
			fragment4(d, 1056, 8, true), cInFragOverlap},
		{"one of a datagram that is complete", [][]byte{first, fragment4(d, 1000, 1000, false)}, fragment4(d, 1000, 1000, false), cInFragFirst},
		{"one of another port's datagram", nil, fragment4(strange, 0, 1000, true), cInSelectors},
		{"one behind it", nil, fragment4(strange, 1000, 1000, false), cInFragFirst},
		{"one of another network", nil, set(fragment4(d, 1000, 1000, false), 12, 10, 9, 9, 9), cInSelectors},
		{"TCP without its flags", nil, fragment4(tcp, 0, 8, true), cInFragTiny},
		{"TCP over its flags", [][]byte{fragment4(tcp, 0, 16, true)}, fragment4(tcp, 8, 56, false), cInFragTiny},
		{"not whole units", nil, odd, cInFragMalformed},
		{"nothing in it", [][]byte{first}, fragment4(d, 1000, 0, false), cInFragMalformed},
		{"beyond what IP can carry", nil, set(fragment4(d, 1000, 1000, false), 6, 0x1f, 0xff), cInFragMalformed},
		{"IPv6, no ports in the first one", nil, fragment6(options, 9, 0, 8, true), cInFragTiny},
		{"IPv6, a later one before the first", nil, fragment6(six, 9, 8, 56, false), cInFragFirst},
		{"IPv6, one over the first", [][]byte{fragment6(six, 9, 0, 32, true)}, fragment6(six, 9, 24, 40, false), cInFragOverlap},
		{"IPv6, pieces of pieces", nil, twice, cInFragMalformed},
		{"IPv6, headers without end", nil, chain, cInChain},
		{"IPv6, options cut off", nil, fragment6(set(options, 41, 200), 9, 0, 64, true), cInMalformed},
	} {
		tp := newTestPath(t, board.Tiny)
		isa, osa := tp.addPorted(t, "some", some, true)
		isa.remoteTS = append(slices.Clone(isa.remoteTS), sel("2001:db8:1::/48")...)
		for i, p := range c.before {
			if !tp.bring(t, osa, p) {
				t.Errorf("%s: number %d of what is right did not arrive; counters: %v", c.name, i, tp.nonZero())
			}
		}
		if tp.bring(t, osa, c.pkt) {
			t.Errorf("%s arrived", c.name)
		}
		if tp.counts.get(c.c) != 1 {
			t.Errorf("%s: %s is %d, want 1; counters: %v", c.name, c.c, tp.counts.get(c.c), tp.nonZero())
		}
		if c.c == cInFragOverlap && tp.bring(t, osa, fragment4(d, 1960, 8, true)) {
			t.Errorf("%s: more of that datagram arrived (RFC 5722)", c.name)
		}
	}
}

// What is right arrives: in order, in another order, over IPv6, over a rekeying, each
// datagram through the SA of its ports, and one after the other under the same identification.
func TestFragmentsArriveThroughTheSAOfTheirFirstOne(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	low, high := portTS("10.2.0.0/16", 17, 2000, 2999), portTS("10.2.0.0/16", 17, 3000, 3999)
	_, a := tp.addPorted(t, "low", low, true)
	_, b := tp.addPorted(t, "high", high, true)
	_, opaque := tp.addPorted(t, "opaque", portTS("10.2.0.0/16", 17, 65535, 0), false)
	arrives := func(what string, osa *outSA, pkt []byte, want bool) {
		t.Helper()
		if got := tp.bring(t, osa, pkt); got != want {
			t.Errorf("%s through the SA of child %s arrived: %v; counters: %v", what, osa.child, got, tp.nonZero())
		}
	}
	d := datagram4(1, 40000, 2500, 2000)
	for range 3 {
		arrives("the first", a, fragment4(d, 0, 1000, true), true)
		arrives("a later one", b, fragment4(d, 1000, 504, true), false)
		arrives("a later one", a, fragment4(d, 1504, 496, false), true)
		arrives("one in the gap", a, fragment4(d, 1000, 504, true), true)
	}
	e := datagram4(2, 40000, 3500, 2000)
	arrives("the first", a, fragment4(e, 0, 1000, true), false)
	arrives("the first", b, fragment4(e, 0, 1000, true), true)
	_, b2 := tp.addPorted(t, "high", high, true)
	arrives("one after a rekeying", b2, fragment4(e, 1000, 504, true), true)
	arrives("a later one, stateless,", opaque, fragment4(e, 1504, 496, false), true)
	tp.now += fragLife
	arrives("one that is too late", b2, fragment4(e, 1504, 496, false), false)

	// An atomic fragment is a whole packet (RFC 6946), and no later one belongs to it.
	six := portTS("2001:db8:2::/48", 17, 2000, 3000)
	isa, osa := tp.addPorted(t, "six", six, true)
	isa.remoteTS = sel("2001:db8:1::/48")
	p := udp6("2001:db8:1::5", "2001:db8:2::9", 40000, 2500, 40+64)
	arrives("an atomic fragment", osa, fragment6(p, 5, 0, 64, false), true)
	arrives("a later one", osa, fragment6(p, 5, 32, 32, false), false)
	arrives("the first", osa, fragment6(p, 5, 0, 32, true), true)
	arrives("another atomic one", osa, fragment6(p, 5, 0, 64, false), true)
	arrives("a later one", osa, fragment6(p, 5, 32, 32, false), true)
	p[42], p[43] = 0, 53
	arrives("an atomic one to another port", osa, fragment6(p, 5, 0, 64, false), false)
}

// fragModel is what fragTable.accept has to answer, by maps of single units and without bounds.
type fragModel map[flowKey]*modelDatagram

type modelDatagram struct {
	since    time.Duration
	sa       *inSA
	flow     esp.Flow
	units    map[int]bool
	end      int
	poisoned bool
}

func (m fragModel) accept(k flowKey, f *esp.Flow, fr *esp.Fragment, sa *inSA, now time.Duration) counter {
	e := m[k]
	if e != nil && now-e.since >= fragLife {
		delete(m, k)
		e = nil
	}
	if e != nil && e.sa.child != sa.child {
		if fr.Start == 0 {
			return cInFragOverlap
		}
		return cInFragFirst
	}
	if e == nil {
		if fr.Start > 0 {
			return cInFragFirst
		}
		e = &modelDatagram{since: now, sa: sa, flow: *f, units: map[int]bool{}}
		m[k] = e
	}
	from, to := fr.Start/8, (fr.End+7)/8
	bad := e.poisoned || e.end > 0 && (to > e.end || !fr.More && to != e.end)
	for u := range e.units {
		bad = bad || u >= from && u < to || !fr.More && u >= to
	}
	all := maps.Clone(e.units)
	for u := from; u < to; u++ {
		all[u] = true
	}
	runs := 0
	for u := range all {
		if !all[u-1] {
			runs++
		}
	}
	if bad || runs > fragSpans {
		e.poisoned = true
		return cInFragOverlap
	}
	e.units = all
	if !fr.More {
		e.end = to
	}
	*f = e.flow
	if e.end > 0 && len(all) == e.end {
		delete(m, k)
	}
	return numCounters
}

// The table answers as a slow and boundless model does, whatever comes.
func TestFragmentTableAgreesWithASlowModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 59))
	sas := []*inSA{{conn: "c", child: "a"}, {conn: "c", child: "a"}, {conn: "c", child: "b"}}
	answers := map[counter]int{}
	for range 300 {
		// The keys are fewer than one set holds: nothing is forgotten.
		table, model := newFragTable(64, rng.Uint64()), fragModel{}
		now := time.Second
		size := 4 + rng.IntN(12)
		for range 200 {
			now += time.Duration(rng.IntN(1000)) * time.Millisecond
			fr := esp.Fragment{ID: uint32(rng.IntN(2)), Proto: 17, More: true}
			fr.Start = rng.IntN(size) * 8
			if rng.IntN(3) == 0 {
				fr.Start = 0
			}
			fr.End = fr.Start + 8*(1+rng.IntN(3))
			if fr.More = rng.IntN(4) > 0; !fr.More {
				fr.End -= rng.IntN(8)
			}
			f := esp.Flow{Local: netip.MustParseAddr(srcHost), Remote: netip.MustParseAddr(dstHost), Proto: 17, NoPorts: fr.Start > 0}
			if fr.Start == 0 {
				f.LocalPort, f.RemotePort = uint16(rng.IntN(9)), 7
			}
			sa := sas[0]
			if rng.IntN(5) == 0 {
				sa = sas[1+rng.IntN(2)]
			}
			k, g := fragKey(&f, &fr, true), f
			want := model.accept(k, &f, &fr, sa, now)
			got, forgot := table.accept(&k, &g, &fr, sa, now)
			if got != want || forgot || got == numCounters && f != g {
				t.Fatalf("%+v through %s at %v: %v and %+v, the model says %v and %+v", fr, sa.child, now, got, g, want, f)
			}
			answers[got]++
		}
	}
	for _, c := range []counter{numCounters, cInFragFirst, cInFragOverlap} {
		if answers[c] < 1000 {
			t.Errorf("answer %d came %d times: this test proves little", c, answers[c])
		}
	}
}

// A flood of first fragments takes the place of others and nothing else, and no fragment costs memory.
func TestFragmentTableIsBounded(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	some := portTS("10.2.0.0/16", 17, 2000, 3000)
	tp.spd.set([]policySpec{protectPorts("some", some)})
	_, osa := tp.addPorted(t, "some", some, true)
	room := len(tp.frags.sets) * fragWays
	if room < board.Tiny.FlowCache/shareFrags || room > 4096 {
		t.Errorf("there is room for %d datagrams", room)
	}
	d := datagram4(0, 40000, 2500, 2000)
	pkts := [][]byte{fragment4(d, 0, 1000, true), fragment4(d, 1000, 1000, false)}
	for i := range pkts { // what the worker keeps of the SA
		tp.send(pkts[i])
		tp.bring(t, osa, pkts[i])
	}
	tp.quiet()
	id := uint16(0)
	if n := testing.AllocsPerRun(4*room, func() {
		id++
		for i, p := range pkts {
			binary.BigEndian.PutUint16(p[4:], id)
			tp.put(i, p)
		}
		tp.out.batch(2)
	}); n != 0 {
		t.Errorf("fragments on their way out cost %v allocations, want 0", n)
	}
	sent := tp.counts.get(cOutPackets)
	if want := uint64(2 * (4*room + 2)); sent != want {
		t.Errorf("%d fragments left, want all of %d: the first one is in the table when the next comes", sent, want)
	}
	if forgot := tp.counts.get(cFragsForgotten); forgot < uint64(2*room) {
		t.Errorf("%d were forgotten of %d in a table for %d", forgot, 4*room, room)
	}
	f := esp.Flow{Local: netip.MustParseAddr(srcHost), Remote: netip.MustParseAddr(dstHost), Proto: 17, LocalPort: 1, RemotePort: 2}
	sa := new(inSA)
	fr := esp.Fragment{End: 8, More: true, Proto: 17}
	if n := testing.AllocsPerRun(4*room, func() {
		fr.ID++
		k, g := fragKey(&f, &fr, true), f
		if drop, _ := tp.frags.accept(&k, &g, &fr, sa, tp.now); drop != numCounters {
			t.Fatalf("a first fragment counts as %s", drop)
		}
	}); n != 0 {
		t.Errorf("fragments on their way in cost %v allocations, want 0", n)
	}
}

// FuzzInnerFragments brings arbitrary packets through an SA for some ports: whatever arrives is
// no fragment, or one that belongs to a datagram of these ports and overlaps nothing.
func FuzzInnerFragments(f *testing.F) {
	some := append(portTS("10.2.0.0/16", 17, 2000, 3000), portTS("2001:db8:2::/48", 17, 2000, 3000)...)
	d := datagram4(1, 40000, 2500, 200)
	six := udp6("2001:db8:1::5", "2001:db8:2::9", 40000, 2500, 40+64)
	f.Add(fragment4(d, 0, 104, true), fragment4(d, 104, 96, false), fragment4(d, 96, 104, false))
	f.Add(fragment6(six, 9, 0, 32, true), fragment6(six, 9, 32, 32, false), fragment6(six, 9, 0, 64, false))
	f.Add(fragment4(d, 104, 96, false), d, d[:19])
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		tp := newTestPath(t, board.Tiny)
		tp.quiet()
		isa, osa := tp.addPorted(t, "some", some, true)
		isa.remoteTS = append(slices.Clone(isa.remoteTS), sel("2001:db8:1::/48")...)
		units, ends := map[string]map[int]bool{}, map[string]int{}
		for _, p := range [][]byte{a, b, c} {
			if len(p) == 0 || len(p) > 1500 {
				return
			}
			p = slices.Clone(p)
			if !tp.bring(t, osa, p) {
				continue
			}
			var flow esp.Flow
			var fr esp.Fragment
			if err := esp.ParseFlow(p, false, &flow); err != nil {
				t.Fatalf("a packet arrived that is %v: %x", err, p)
			}
			is, err := esp.ParseFragment(p, &fr)
			if err != nil {
				t.Fatalf("a fragment arrived that is %v: %x", err, p)
			}
			name := fmt.Sprint(flow.Local, flow.Remote, fr.ID, fr.Proto)
			if !is || fr.Start == 0 {
				if flow.NoPorts || flow.LocalPort < 2000 || flow.LocalPort > 3000 {
					t.Fatalf("a packet arrived that is not for the SA's ports: %+v", flow)
				}
			}
			if !is {
				continue
			}
			have := units[name]
			if have == nil {
				if fr.Start > 0 {
					t.Fatalf("a later fragment arrived before its first one: %x", p)
				}
				have = map[int]bool{}
				units[name] = have
			}
			for u := fr.Start / 8; u*8 < fr.End; u++ {
				if have[u] {
					t.Fatalf("two fragments arrived that overlap: %x", p)
				}
				have[u] = true
			}
			if !fr.More {
				ends[name] = (fr.End + 7) / 8
			}
			if len(have) == ends[name] { // complete: the identification may be used again
				delete(units, name)
				delete(ends, name)
			}
		}
	})
}

// The table serves all workers at once: a later fragment gets the ports of its own first one, whoever else
// is at it.
func TestFragmentTableServesManyWorkers(t *testing.T) {
	table := newFragTable(4096, 1)
	sa := new(inSA)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				in := i%2 == 0
				f := esp.Flow{Local: netip.MustParseAddr(srcHost), Remote: netip.MustParseAddr(dstHost), Proto: 17, LocalPort: uint16(i), RemotePort: uint16(w)}
				later := f
				later.LocalPort, later.RemotePort, later.NoPorts = 0, 0, true
				fr := esp.Fragment{ID: uint32(w<<20 | i), End: 8, More: true, Proto: 17}
				k := fragKey(&f, &fr, in)
				if in {
					table.accept(&k, &f, &fr, sa, time.Second)
					fr.Start, fr.End = 8, 16
					table.accept(&k, &later, &fr, sa, time.Second)
				} else {
					table.follow(&k, &f, true, time.Second)
					table.follow(&k, &later, false, time.Second)
				}
				if !later.NoPorts && later != f { // the other workers may have pushed it out
					t.Errorf("a later fragment got the ports of another one: %+v, want %+v", later, f)
					return
				}
			}
		})
	}
	wg.Wait()
}
