package ike

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

var errSilent = errors.New("no answer")

// byName makes a's connection call the peer by the name gw.test, whose addresses are *dns; an
// empty list does not resolve.
func byName(t *testing.T, dns *[]netip.Addr, change func(a, b *Conn)) *pair {
	p := newPair(t, func(a, b *Conn) {
		a.RemoteAddrs, a.RemoteNames = nil, []PeerName{{Name: "gw.test"}}
		if change != nil {
			change(a, b)
		}
	})
	p.a.dns = func(name string) ([]netip.Addr, error) {
		if len(*dns) == 0 {
			return nil, errSilent
		}
		return *dns, nil
	}
	return p
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestNameThatDoesNotResolveAtBootIsTriedUntilItDoes(t *testing.T) {
	var dns []netip.Addr
	p := newPair(t, func(a, b *Conn) {
		a.RemoteAddrs, a.RemoteNames = nil, []PeerName{{Name: "gw.test"}}
		a.Children[0].StartAction = StartStart
	})
	p.a.dns = func(string) ([]netip.Addr, error) {
		if len(dns) == 0 {
			return nil, errSilent
		}
		return dns, nil
	}
	p.a.m.Resolved(p.now, "gw.test", nil, 0, errSilent) // the lookup that Configure has asked for
	p.run()
	p.pass(10 * time.Minute)
	// One a second would be 600; the name's own rhythm and that of the connection coincide.
	if p.a.asked < 250 || p.a.asked > 650 {
		t.Errorf("%d lookups in ten minutes, want one or two in two seconds", p.a.asked)
	}
	loud := 0
	for _, e := range p.a.events {
		var r *ResolveError
		if e.Kind == EvFailed {
			if !errors.As(e.Err, &r) || r.Name != "gw.test" || !errors.Is(e.Err, errSilent) || e.Delay == 0 || e.Delay > nameLast {
				t.Fatalf("attempt failed with %v, next in %v", e.Err, e.Delay)
			}
			if r.Times == 1 {
				loud++
			}
		}
	}
	if loud > 1 {
		t.Errorf("%d failed attempts count as the first one", loud)
	}
	dns = addrs("192.0.2.2")
	p.pass(nameLast)
	p.same(1)
	if p.a.count(EvResolved) != 1 {
		t.Errorf("%d events tell that the name resolves again, want 1", p.a.count(EvResolved))
	}
}

func TestInitiateByANameEndsWithTheResolversError(t *testing.T) {
	var dns []netip.Addr
	p := byName(t, &dns, func(a, b *Conn) { a.KeyingTries = 1 })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 5, Conn: "link"})
	p.run()
	var r *ResolveError
	for _, e := range p.a.events {
		if e.Kind == EvDone && errors.As(e.Err, &r) {
			return
		}
	}
	t.Errorf("events %+v: the command did not end with the resolver's error", p.a.events)
}

// All addresses of a name are called, in their order and between the others of the list.
func TestAddressesOfANameStandAtItsPlace(t *testing.T) {
	dns := addrs("203.0.113.2", "203.0.113.3", "2001:db8::1")
	p := byName(t, &dns, func(a, b *Conn) {
		a.LocalAddrs = nil
		a.RemoteAddrs = hosts32("203.0.113.1", "192.0.2.2")
		a.RemoteNames = []PeerName{{"gw.test", 1}}
	})
	var order []netip.Addr
	p.a.mangle = func(o *Output) bool {
		a := o.Path.Remote.Addr()
		if len(order) == 0 || order[len(order)-1] != a {
			order = append(order, a)
		}
		return a == p.b.addr
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(5 * firstPatience)
	want := append(addrs("203.0.113.1"), append(dns, p.b.addr)...)
	if len(order) != len(want) {
		t.Fatalf("called %v, want %v", order, want)
	}
	for i := range want {
		if order[i] != want[i] {
			t.Fatalf("called %v, want %v", order, want)
		}
	}
	p.same(1)
}

func TestKnownAddressIsCalledWhileTheDNSIsSilent(t *testing.T) {
	dns := addrs("192.0.2.2")
	p := byName(t, &dns, nil)
	p.up()
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	dns = nil
	p.pass(2 * nameRefresh)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 3, Conn: "link"})
	p.run()
	p.done(p.a, 3, nil)
	p.same(1)
}

// The record moves to another host of the same identity. The new SA is there before the old
// one is closed, and both children come along.
func TestMovedRecordMovesTheTunnelMakeBeforeBreak(t *testing.T) {
	dns := addrs("192.0.2.2")
	two := func(c *Conn, l, r string) {
		x := *c.Children[0]
		x.Name, x.LocalTS, x.RemoteTS = "second", []TS{sel(l)}, []TS{sel(r)}
		c.Children = append(c.Children, &x)
	}
	p := byName(t, &dns, func(a, b *Conn) {
		b.LocalAddrs = nil
		two(a, "10.3.0.0/24", "10.4.0.0/24")
		two(b, "10.4.0.0/24", "10.3.0.0/24")
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
	p.same(2)
	dns = addrs("192.0.2.99", "2001:db8::99")
	lowest := len(p.a.sas)
	p.a.mangle = func(o *Output) bool { lowest = min(lowest, len(p.a.sas)); return true }
	p.a.events = nil
	p.pass(nameRefresh + linger + time.Second)
	p.same(2)
	if lowest < 4 {
		t.Errorf("for a while there were only %d simplex SAs of 4: the old ones went before the new ones came", lowest)
	}
	for _, s := range p.a.sas {
		if s.Remote.Addr() != dns[0] {
			t.Errorf("an SA leads to %v, want %v", s.Remote, dns[0])
		}
	}
	var down, up int
	for i, e := range p.a.events {
		switch e.Kind {
		case EvIKEUp:
			up = i + 1
		case EvIKEDown:
			down = i + 1
			if e.Err != ErrReplaced {
				t.Errorf("the old IKE SA ended with %v, want %v", e.Err, ErrReplaced)
			}
		}
	}
	if up == 0 || down == 0 || up > down {
		t.Errorf("the new IKE SA is event %d, the end of the old one event %d", up, down)
	}
	p.a.asked = 0
	p.pass(10 * nameRefresh)
	p.same(2)
	if n := p.a.count(EvIKEUp); n != 1 {
		t.Errorf("%d new IKE SAs after one change of the record", n)
	}
	if p.a.asked != 10 {
		t.Errorf("%d lookups in ten minutes of peace, want one a minute", p.a.asked)
	}
}

// A peer that falls silent makes us look its name up at once, long before the next refresh.
func TestSilentPeerMakesUsLookItsNameUp(t *testing.T) {
	dns := addrs("192.0.2.2")
	p := byName(t, &dns, func(a, b *Conn) { b.LocalAddrs, a.DPDDelay, a.RetryTimeout = nil, 10*time.Second, time.Second })
	p.up()
	dns = addrs("192.0.2.99")
	p.a.lastOut = p.now.Mono + time.Millisecond                                 // a packet that gets no answer
	p.a.mangle = func(o *Output) bool { return o.Path.Remote.Addr() == dns[0] } // the old address is dead
	p.pass(11*time.Second + time.Millisecond)                                   // liveness check, and its first repetition
	found := false
	for _, s := range p.a.sas {
		found = found || s.Remote.Addr() == dns[0]
	}
	if !found {
		t.Fatal("a second after the peer fell silent there is no SA with the address that its name has now")
	}
	p.pass(2 * time.Minute)
	if len(p.a.sas) != 2 {
		t.Errorf("%d simplex SAs are left, want 2: the dead one has to go", len(p.a.sas))
	}
}

// That the record gets further addresses, or that the DNS is silent, moves nothing.
func TestTunnelStaysWhileItsAddressIsAmongTheAnswers(t *testing.T) {
	dns := addrs("192.0.2.2")
	p := byName(t, &dns, nil)
	p.up()
	for _, list := range [][]netip.Addr{addrs("192.0.2.99", "192.0.2.2"), nil, addrs("192.0.2.2")} {
		dns = list
		p.pass(2 * nameRefresh)
		if n := p.a.count(EvIKEUp); n != 1 {
			t.Fatalf("with the record %v there were %d IKE SAs, want the first one only", list, n)
		}
		p.same(1)
	}
}

// Where the new address does not answer, the old tunnel stays, and the new address is tried
// again.
func TestTunnelStaysWhileTheNewAddressIsDead(t *testing.T) {
	dns := addrs("192.0.2.2")
	p := byName(t, &dns, func(a, b *Conn) { b.LocalAddrs, a.RetryTries, a.RetryTimeout = nil, 1, time.Second })
	p.up()
	dns = addrs("192.0.2.99")
	dead := true
	p.a.mangle = func(o *Output) bool { return !dead || o.Path.Remote.Addr() != dns[0] }
	p.pass(3 * time.Minute)
	p.same(1)
	if n := p.a.count(EvFailed); n < 2 {
		t.Errorf("%d attempts at the new address in three minutes, want several", n)
	}
	dead = false
	p.pass(2 * time.Minute)
	p.same(1)
	for _, s := range p.a.sas {
		if s.Remote.Addr() != dns[0] {
			t.Errorf("an SA leads to %v, want %v", s.Remote, dns[0])
		}
	}
}

// A responder takes calls from the last known addresses of the name only; a call from
// elsewhere makes it look, at a bounded rate.
func TestNameRestrictsWhoMayCall(t *testing.T) {
	where := addrs("198.51.100.1")
	p := newPair(t, func(a, b *Conn) {
		b.RemoteAddrs, b.RemoteNames = nil, []PeerName{{Name: "site.test"}}
	})
	p.b.dns = func(string) ([]netip.Addr, error) { return where, nil }
	p.pass(time.Second)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	if p.a.count(EvChildUp) != 0 || p.b.count(EvRefused) == 0 {
		t.Fatal("a call from an address that the name does not have was not refused")
	}
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
	p.pass(2 * nameStranger)
	where = append(where, p.a.addr)
	before := p.b.asked
	for i := range uint64(20) {
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 100 + i, Conn: "link"})
		p.run()
	}
	p.done(p.a, 119, nil)
	p.same(1)
	if n := p.b.asked - before; n != 1 {
		t.Errorf("%d lookups after 20 calls, want 1", n)
	}
}

func TestTerminateEndsTheWaitForAName(t *testing.T) {
	var dns []netip.Addr
	p := byName(t, &dns, nil)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	dns = addrs("192.0.2.2")
	p.pass(time.Minute)
	if n := p.a.count(EvInitiate); n != 0 {
		t.Errorf("%d attempts after the user had closed the connection", n)
	}
}

// The name is looked up again when the DNS says that its answer is over, within limits.
func TestNamesAreLookedUpWhenTheirAnswersAreOver(t *testing.T) {
	for ttl, want := range map[time.Duration]int{time.Second: 120, 20 * time.Second: 30, 0: 10, 5 * time.Minute: 2, 365 * 24 * time.Hour: 0} {
		dns := addrs("192.0.2.2")
		p := byName(t, &dns, nil)
		p.a.ttl = ttl
		p.up()
		p.pass(nameRefresh) // what was asked for before the answers had a lifetime
		p.a.asked = 0
		p.pass(10 * time.Minute)
		if n := p.a.asked; n < want-1 || n > want+1 {
			t.Errorf("lifetime %v: %d lookups in ten minutes, want %d", ttl, n, want)
		}
	}
}

// The peer has moved while the SAs were lost already, and its record follows late, with an
// answer that would be good for hours: the attempt under way at the old address is left for
// one at the new.
func TestAttemptFollowsTheRecord(t *testing.T) {
	for name, c := range map[string]struct{ tries int }{"tried for ever": {0}, "tried once": {1}} {
		dns := addrs("192.0.2.2")
		p := byName(t, &dns, func(a, b *Conn) { b.LocalAddrs, a.KeyingTries = nil, c.tries })
		p.a.ttl = 3 * time.Hour
		dead := dns[0]
		p.a.mangle = func(o *Output) bool { return o.Path.Remote.Addr() != dead }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		p.pass(100 * time.Second)
		dns = addrs("192.0.2.99")
		p.pass(3 * time.Second)
		p.done(p.a, 1, nil)
		p.same(1)
		if n := p.a.count(EvIKEUp); n != 1 {
			t.Errorf("%s: %d IKE SAs", name, n)
		}
	}
}

// The peer has moved, its record follows half a minute later, while its SAs are still there:
// the tunnel is back soon after.
func TestSilentPeersNameIsWatchedClosely(t *testing.T) {
	dns := addrs("192.0.2.2")
	p := byName(t, &dns, func(a, b *Conn) { b.LocalAddrs, a.DPDDelay = nil, 10*time.Second })
	p.a.ttl = time.Hour
	p.up()
	dead := dns[0]
	p.a.lastOut = p.now.Mono + time.Millisecond
	p.a.mangle = func(o *Output) bool { return o.Path.Remote.Addr() != dead }
	p.pass(45 * time.Second)
	dns = addrs("192.0.2.99")
	p.pass(3 * time.Second)
	found := false
	for _, s := range p.a.sas {
		found = found || s.Remote.Addr() == dns[0]
	}
	if !found {
		t.Error("three seconds after the record has moved there is no SA with the new address")
	}
}
