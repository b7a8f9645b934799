package esp

import (
	"math/rand"
	"net/netip"
	"testing"
)

// mustSelector makes a selector of a prefix, for any protocol and port.
func mustSelector(prefix string) Selector { return SelectorFromPrefix(netip.MustParsePrefix(prefix)) }

// sel makes a selector of a range, a protocol and ports.
func sel(from, to string, proto uint8, low, high uint16) Selector {
	return Selector{Proto: proto, StartPort: low, EndPort: high, Start: netip.MustParseAddr(from), End: netip.MustParseAddr(to)}
}

func TestSelectorString(t *testing.T) {
	for _, c := range []struct {
		s    Selector
		want string
	}{
		{mustSelector("10.1.0.0/24"), "10.1.0.0/24"},
		{mustSelector("10.1.0.77/24"), "10.1.0.0/24"},
		{mustSelector("0.0.0.0/0"), "0.0.0.0/0"},
		{mustSelector("::/0"), "::/0"},
		{mustSelector("fd00:1::/64"), "fd00:1::/64"},
		{sel("10.1.0.1", "10.1.0.1", ProtoTCP, 502, 502), "10.1.0.1/32[tcp/502]"},
		{sel("10.1.0.1", "10.1.0.9", ProtoUDP, 100, 200), "10.1.0.1..10.1.0.9[udp/100-200]"},
		{sel("10.1.0.0", "10.1.0.2", 0, 0, 65535), "10.1.0.0..10.1.0.2"},
		{sel("10.1.0.0", "10.1.0.3", ProtoTCP, 0, 65535), "10.1.0.0/30[tcp]"},
		{sel("10.1.0.0", "10.1.0.3", 0, 80, 80), "10.1.0.0/30[80]"},
		{sel("10.1.0.0", "10.1.0.3", ProtoTCP, 65535, 0), "10.1.0.0/30[tcp/OPAQUE]"},
		{sel("10.1.0.0", "10.1.0.3", 254, 0, 65535), "10.1.0.0/30[254]"},
		{sel("10.1.0.0", "10.1.0.3", ProtoICMP, 8<<8, 8<<8), "10.1.0.0/30[icmp/8]"},
		{sel("10.1.0.0", "10.1.0.3", ProtoICMP, 3<<8|4, 3<<8|4), "10.1.0.0/30[icmp/3(4)]"},
		{sel("fd00::1", "fd00::1", ProtoICMPv6, 128<<8, 129<<8|255), "fd00::1/128[ipv6-icmp/128-129(255)]"},
		{sel("fd00::1", "fd00::3", ProtoGRE, 0, 65535), "fd00::1..fd00::3[gre]"},
		{sel("10.1.0.0", "10.1.0.3", ProtoSCTP, 0, 9), "10.1.0.0/30[sctp/0-9]"},
		{Selector{}, "none"},
	} {
		if got := c.s.String(); got != c.want {
			t.Errorf("String() = %q, want %q", got, c.want)
		}
	}
}

func TestSelectorMatches(t *testing.T) {
	tcp502 := sel("10.1.0.10", "10.1.0.20", ProtoTCP, 502, 502)
	opaque := sel("10.1.0.0", "10.1.0.255", ProtoTCP, 65535, 0)
	icmp := sel("10.1.0.0", "10.1.0.255", ProtoICMP, 8<<8, 8<<8|255)
	for _, c := range []struct {
		s       Selector
		addr    string
		proto   uint8
		port    uint16
		noPorts bool
		want    bool
		why     string
	}{
		{tcp502, "10.1.0.10", ProtoTCP, 502, false, true, "first address"},
		{tcp502, "10.1.0.20", ProtoTCP, 502, false, true, "last address"},
		{tcp502, "10.1.0.9", ProtoTCP, 502, false, false, "address before"},
		{tcp502, "10.1.0.21", ProtoTCP, 502, false, false, "address after"},
		{tcp502, "10.1.0.10", ProtoUDP, 502, false, false, "protocol"},
		{tcp502, "10.1.0.10", ProtoTCP, 501, false, false, "port before"},
		{tcp502, "10.1.0.10", ProtoTCP, 503, false, false, "port after"},
		{tcp502, "10.1.0.10", ProtoTCP, 502, true, false, "a fragment has no port"},
		{tcp502, "::ffff:10.1.0.10", ProtoTCP, 502, false, false, "the other family"},
		{mustSelector("10.1.0.0/24"), "10.1.0.10", ProtoTCP, 0, true, true, "any port takes fragments"},
		{mustSelector("10.1.0.0/24"), "10.1.0.10", ProtoGRE, 0, true, true, "any protocol"},
		{mustSelector("10.1.0.0/24"), "fd00::1", ProtoTCP, 0, false, false, "the other family"},
		{mustSelector("::/0"), "10.1.0.1", ProtoTCP, 0, false, false, "the other family"},
		{mustSelector("0.0.0.0/0"), "::", ProtoTCP, 0, false, false, "the other family"},
		{opaque, "10.1.0.10", ProtoTCP, 0, true, true, "OPAQUE takes what has no port"},
		{opaque, "10.1.0.10", ProtoTCP, 65535, false, false, "OPAQUE takes no port"},
		{opaque, "10.1.0.10", ProtoTCP, 0, false, false, "OPAQUE takes no port"},
		{icmp, "10.1.0.10", ProtoICMP, 8 << 8, false, true, "echo request"},
		{icmp, "10.1.0.10", ProtoICMP, 0, false, false, "echo reply"},
	} {
		if got := c.s.Matches(netip.MustParseAddr(c.addr), c.proto, c.port, c.noPorts); got != c.want {
			t.Errorf("%v on %s, protocol %d, port %d, no ports %v: %v, want %v: %s", c.s, c.addr, c.proto, c.port, c.noPorts, got, c.want, c.why)
		}
	}
}

func TestMatchFlowNeedsBothSides(t *testing.T) {
	local := []Selector{mustSelector("10.1.0.0/24"), sel("10.3.0.1", "10.3.0.1", ProtoTCP, 0, 65535)}
	remote := []Selector{mustSelector("10.2.0.0/24"), sel("10.4.0.1", "10.4.0.9", ProtoTCP, 502, 502)}
	for _, c := range []struct {
		local, remote string
		port          uint16
		want          bool
	}{
		{"10.1.0.5", "10.2.0.5", 80, true},
		{"10.3.0.1", "10.2.0.5", 80, true},
		{"10.3.0.1", "10.4.0.5", 502, true},
		{"10.3.0.1", "10.4.0.5", 503, false},
		{"10.2.0.5", "10.1.0.5", 80, false},
		{"10.3.0.2", "10.2.0.5", 80, false},
	} {
		f := Flow{Local: netip.MustParseAddr(c.local), Remote: netip.MustParseAddr(c.remote), Proto: ProtoTCP, LocalPort: 4000, RemotePort: c.port}
		if got := MatchFlow(local, remote, &f); got != c.want {
			t.Errorf("%s to %s port %d: %v, want %v", c.local, c.remote, c.port, got, c.want)
		}
	}
	if MatchFlow(nil, remote, &Flow{}) || MatchFlow(local, nil, &Flow{}) {
		t.Error("no selectors match something")
	}
}

// An address may be in several selectors of which only a later one fits the other side's
// protocol; the sides are independent, so the first hit decides nothing wrongly.
func TestMatchFlowLooksAtAllSelectors(t *testing.T) {
	local := []Selector{sel("10.1.0.1", "10.1.0.1", ProtoUDP, 0, 65535), sel("10.1.0.1", "10.1.0.1", ProtoTCP, 0, 65535)}
	f := Flow{Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddr("10.2.0.1"), Proto: ProtoTCP}
	if !MatchFlow(local, []Selector{mustSelector("10.3.0.0/16"), mustSelector("10.2.0.0/16")}, &f) {
		t.Error("the second selectors of both sides are not found")
	}
}

func TestPrefixesCoverExactly(t *testing.T) {
	for _, c := range []struct {
		s    Selector
		want []string
	}{
		{mustSelector("10.1.0.0/24"), []string{"10.1.0.0/24"}},
		{mustSelector("0.0.0.0/0"), []string{"0.0.0.0/0"}},
		{mustSelector("::/0"), []string{"::/0"}},
		{sel("10.1.0.1", "10.1.0.9", 0, 0, 65535), []string{"10.1.0.1/32", "10.1.0.2/31", "10.1.0.4/30", "10.1.0.8/31"}},
		{sel("255.255.255.254", "255.255.255.255", 0, 0, 65535), []string{"255.255.255.254/31"}},
		{sel("fd00::ff", "fd00::101", 0, 0, 65535), []string{"fd00::ff/128", "fd00::100/127"}},
	} {
		var got []string
		for _, p := range c.s.Prefixes() {
			got = append(got, p.String())
		}
		if len(got) != len(c.want) {
			t.Errorf("%v: %v, want %v", c.s, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v: %v, want %v", c.s, got, c.want)
			}
		}
	}
	if n := len(sel("0.0.0.1", "255.255.255.254", 0, 0, 65535).Prefixes()); n != 62 {
		t.Errorf("the worst IPv4 range takes %d prefixes, want 62", n)
	}
	if n := len(sel("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", 0, 0, 65535).Prefixes()); n != 254 {
		t.Errorf("the worst IPv6 range takes %d prefixes, want 254", n)
	}
	if got := sel("10.0.0.2", "10.0.0.1", 0, 0, 65535).Prefixes(); got != nil {
		t.Errorf("an inverted range is covered by %v", got)
	}

	rng := rand.New(rand.NewSource(1))
	for range 300 {
		s := randomSelector(rng)
		at := s.Start
		for i, p := range s.Prefixes() {
			if p.Addr() != at || p != p.Masked() {
				t.Fatalf("%v: prefix %d is %v, want one that begins at %v", s, i, p, at)
			}
			at = lastAddr(p).Next()
		}
		if at != s.End.Next() {
			t.Fatalf("%v: the prefixes end before %v", s, at)
		}
	}
}

// randomSelector draws from few addresses, protocols and ports, so that selectors meet.
func randomSelector(rng *rand.Rand) Selector {
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }
	if rng.Intn(3) == 0 {
		addr = func(n int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}) }
	}
	a, b := rng.Intn(20), rng.Intn(20)
	s := Selector{Start: addr(min(a, b)), End: addr(max(a, b)), Proto: [...]uint8{0, 0, ProtoTCP, ProtoUDP}[rng.Intn(4)], EndPort: 65535}
	switch rng.Intn(5) {
	case 0, 1:
		p, q := uint16(rng.Intn(6)), uint16(rng.Intn(6))
		s.StartPort, s.EndPort = min(p, q), max(p, q)
	case 2:
		s.StartPort, s.EndPort = 65535, 0
	}
	return s
}

// Contains and Intersect mean what Matches says, packet by packet.
func TestSelectorAlgebraAgreesWithMatches(t *testing.T) {
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	rng := rand.New(rand.NewSource(2))
	met, contained := 0, 0
	for range rounds {
		a, b := randomSelector(rng), randomSelector(rng)
		both, ok := a.Intersect(b)
		flipped, okFlipped := b.Intersect(a)
		if both != flipped || ok != okFlipped {
			t.Fatalf("%v and %v meet in %v, %v, the other way round in %v, %v", a, b, both, ok, flipped, okFlipped)
		}
		if ok {
			met++
			if !both.Valid() || !a.Contains(both) || !b.Contains(both) {
				t.Fatalf("%v and %v meet in %v, which is not in both", a, b, both)
			}
		}
		inside := a.Contains(b)
		if inside {
			contained++
			if both != b {
				t.Fatalf("%v contains %v, but they meet in %v", a, b, both)
			}
		}
		common := false
		for range 200 {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.Intn(20))})
			if !b.Start.Is4() {
				addr = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(rng.Intn(20))})
			}
			proto, port, none := [...]uint8{ProtoTCP, ProtoUDP, ProtoGRE}[rng.Intn(3)], uint16(rng.Intn(6)), rng.Intn(3) == 0
			inA, inB := a.Matches(addr, proto, port, none), b.Matches(addr, proto, port, none)
			common = common || inA && inB
			if ok && both.Matches(addr, proto, port, none) != (inA && inB) {
				t.Fatalf("%v, protocol %d, port %d, none %v is in %v: %v, in %v: %v, but in their intersection %v: %v", addr, proto, port, none, a, inA, b, inB, both, both.Matches(addr, proto, port, none))
			}
			if inside && inB && !inA {
				t.Fatalf("%v contains %v, but not %v, protocol %d, port %d", a, b, addr, proto, port)
			}
		}
		if !ok && common {
			t.Fatalf("%v and %v have a packet in common and no intersection", a, b)
		}
	}
	if met < rounds/10 || contained < rounds/100 {
		t.Errorf("of %d pairs %d met and %d contained: the test has lost its meaning", rounds, met, contained)
	}
}

func TestSelectorValid(t *testing.T) {
	for _, c := range []struct {
		s    Selector
		want bool
	}{
		{mustSelector("10.0.0.0/8"), true},
		{sel("10.0.0.1", "10.0.0.1", 6, 65535, 0), true},
		{sel("10.0.0.2", "10.0.0.1", 0, 0, 65535), false},
		{sel("10.0.0.1", "fd00::1", 0, 0, 65535), false},
		{sel("10.0.0.1", "10.0.0.1", 6, 9, 8), false},
		{Selector{}, false},
		{SelectorFromPrefix(netip.Prefix{}), false},
	} {
		if got := c.s.Valid(); got != c.want {
			t.Errorf("%+v: valid is %v, want %v", c.s, got, c.want)
		}
	}
}
