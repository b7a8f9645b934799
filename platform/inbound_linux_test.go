package platform

import (
	"testing"

	"postern/esp"
)

// What the tunnel's device brings is let in, from one tunnel into another as well; the same
// packets from elsewhere are not.
func TestOnlyTheTunnelBringsWhatIsProtected(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	hub, six := sel("10.0.0.0/8"), sel("fd00::/8")
	g.apply("pt0", policy(esp.Protect, hub, sel("10.2.0.0/24")), policy(esp.Protect, hub, sel("10.3.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), ported("10.4.0.0/24", 17, 161, 161)),
		policy(esp.Protect, sel("10.1.0.0/24"), ported("10.5.0.0/24", 17, 1024, 65535)),
		policy(esp.Protect, six, sel("fd02::/64")), policy(esp.Protect, six, sel("fd03::/64")),
		policy(esp.Protect, sel("fd01::/64"), ported("fd04::/64", 17, 161, 161)))
	g.wantWays("at a hub", map[query]string{
		{src: "10.2.0.7", dst: "10.1.0.5", iif: "pt0"}:    "lan",
		{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan"}:    "blackhole",
		{src: "10.2.0.7", dst: "203.0.113.9", iif: "pt0"}: "wan",
		{src: "10.2.0.7", dst: "10.3.0.7", iif: "pt0"}:    "pt0",
		{src: "10.3.0.7", dst: "10.2.0.7", iif: "pt0"}:    "pt0",
		{src: "10.2.0.7", dst: "10.3.0.7", iif: "wan"}:    "blackhole",
		{src: "10.3.0.7", dst: "10.2.0.7", iif: "wan"}:    "blackhole",
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true}: "pt0",
		{src: "fd02::7", dst: "fd01::5", iif: "pt0"}:      "lan",
		{src: "fd02::7", dst: "fd03::7", iif: "pt0"}:      "pt0",
		{src: "fd03::7", dst: "fd02::7", iif: "wan"}:      "blackhole",
		{src: "fd01::5", dst: "fd02::7", forward: true}:   "pt0",
		{src: "2001:db8::9", dst: "fd01::5", iif: "wan"}:  "lan",
		{src: "203.0.113.9", dst: "10.1.0.5", iif: "wan"}: "lan",
		{src: "10.9.0.7", dst: "10.1.0.5", forward: true}: "lan",
		{src: "192.0.2.1", dst: "10.1.0.5"}:               "lan",
		{src: "2001:db8::1", dst: "fd01::5"}:              "lan",
		{src: "10.1.0.1", dst: "10.1.0.5"}:                "lan",
		{src: "10.2.0.7", dst: "10.1.0.1", iif: "pt0"}:    "lo",
		{src: "10.4.0.7", dst: "10.1.0.5", iif: "pt0"}:    "lan",
		{src: "10.1.0.5", dst: "10.4.0.7", forward: true}: "pt0", // which the kernel takes for UDP without ports
		{src: "10.1.0.5", dst: "203.0.113.9", iif: "lan"}: "wan",
		{src: "203.0.113.9", dst: "10.2.0.7", iif: "wan"}: "wan",
		{src: "10.2.0.7", dst: "10.2.0.9", forward: true}: "blackhole",
		{src: "2001:db8::9", dst: "fd02::7", iif: "wan"}:  "wan",
		{src: "fd01::5", dst: "2001:db8::9", iif: "lan"}:  "wan",
	})
	// With ports: that port, what shows none, and nothing else.
	for _, c := range []struct{ from, to string }{{"10.4.0.7", "10.1.0.5"}, {"fd04::7", "fd01::5"}} {
		g.wantWays("an entry with ports", map[query]string{
			{src: c.from, dst: c.to, iif: "wan", proto: 17, sport: 161, dport: 4000}: "blackhole",
			{src: c.from, dst: c.to, iif: "wan", proto: 17, sport: 162, dport: 4000}: "lan",
			{src: c.from, dst: c.to, iif: "wan", proto: 17, sport: 4000, dport: 161}: "lan",
			{src: c.from, dst: c.to, iif: "wan", proto: 17}:                          "blackhole",
			{src: c.from, dst: c.to, iif: "pt0", proto: 17}:                          "lan",
			{src: c.from, dst: c.to, iif: "wan", proto: 6}:                           "lan",
			// On the way out, too: what shows none is told apart behind the device.
			{src: c.to, dst: c.from, forward: true, proto: 17, sport: 4000, dport: 161}: "pt0",
			{src: c.to, dst: c.from, forward: true, proto: 17, sport: 4000, dport: 162}: "wan",
			{src: c.to, dst: c.from, forward: true, proto: 17, sport: 161, dport: 4000}: "wan",
			{src: c.to, dst: c.from, forward: true, proto: 17}:                          "pt0",
			{src: c.to, dst: c.from, iif: "pt0", proto: 17}:                             "pt0",
			{src: c.to, dst: c.from, forward: true, proto: 17, mark: Mark}:              "wan",
			{src: c.to, dst: c.from, forward: true, proto: 6}:                           "wan",
		})
	}
	g.wantWays("ports that rules cannot tell", map[query]string{
		{src: "10.5.0.7", dst: "10.1.0.5", iif: "wan", proto: 17, sport: 65535, dport: 9}: "blackhole",
		{src: "10.5.0.7", dst: "10.1.0.5", iif: "wan", proto: 6, sport: 65535, dport: 9}:  "lan",
		{src: "10.1.0.5", dst: "10.5.0.7", iif: "lan", proto: 17, dport: 65535}:           "pt0",
	})
}

// An entry that protects ports of one protocol leaves what is bypassed by ports of another
// as it is.
func TestBypassedPortsComeInBesideProtectedOnes(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	lan, far := "10.1.0.0/24", "10.2.0.0/24"
	g.apply("pt0", policy(esp.Bypass, sel(lan), ported(far, 6, 22, 22)), policy(esp.Protect, sel(lan), sel(far)),
		policy(esp.Protect, sel(lan), ported("10.4.0.0/24", 17, 161, 161)))
	from := query{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan", proto: 6, dport: 4000}
	bypassed, other := from, from
	bypassed.sport, other.sport = 22, 23
	g.wantWays("beside protected ports", map[query]string{bypassed: "lan", other: "blackhole", from: "blackhole"})
}

// What shows no ports is taken by entries with OPAQUE ports, and what shows some passes them by.
func TestOpaquePortsAreWhatShowsNone(t *testing.T) {
	opaque := ported("10.2.0.0/24", 17, 65535, 0)
	p := &planner{policies: []esp.Policy{policy(esp.Bypass, sel("10.1.0.0/24"), opaque)}}
	if _, err := p.plan(false); err == nil {
		t.Error("a BYPASS entry with OPAQUE ports would let first fragments of any ports through, but there was no error")
	}
	f, _ := planFor(t, false, []esp.Policy{policy(esp.Protect, ported("10.1.0.0/24", 17, 53, 53), opaque)}, "10.1.0.1")
	if len(f.spd)+len(f.in)+len(f.own)+len(f.leave)+len(f.frag) != 0 {
		t.Error("there are rules for an entry that no packet fits: one end shows its port, the other one none")
	}
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	before := g.state()
	for _, e := range []esp.Policy{policy(esp.Protect, sel("10.1.0.0/24"), opaque), policy(esp.Discard, sel("10.1.0.0/24"), opaque)} {
		g.apply("pt0", e)
		out, in := query{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 17}, query{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan", proto: 17}
		whole, answer, tcp := out, in, out
		whole.dport, answer.sport, tcp.proto = 53, 53, 6
		g.wantWays(e.Action.String()+" alone", map[query]string{out: "pt0", whole: "wan", tcp: "wan", in: "blackhole", answer: "lan"})
		g.apply("pt0", policy(esp.Protect, sel("10.1.0.0/24"), ported("10.2.0.0/24", 17, 53, 53)), e)
		g.wantWays(e.Action.String()+" behind ports", map[query]string{out: "pt0", whole: "pt0", tcp: "wan", in: "blackhole", answer: "blackhole"})
	}
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	if after := g.state(); after != before {
		t.Errorf("after Clear:\n%s\nwant as before:\n%s", after, before)
	}
}
