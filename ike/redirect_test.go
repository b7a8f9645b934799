package ike

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"
)

var (
	otherGateway = netip.MustParseAddr("192.0.2.9") // of host b, too
	sixGateway   = netip.MustParseAddr("2001:db8::9")
)

// redirectPair is a pair in which b is a gateway of several addresses.
func redirectPair(t testing.TB, change func(a, b *Conn)) *pair {
	return newPair(t, func(a, b *Conn) {
		b.LocalAddrs, a.LocalAddrs = nil, nil
		if change != nil {
			change(a, b)
		}
	})
}

// peerOf returns the address that h has its one established IKE SA with.
func peerOf(t *testing.T, h *host) (a netip.Addr) {
	t.Helper()
	n := 0
	h.m.List(func(s *SAInfo) bool {
		n++
		a = s.Path.Remote.Addr()
		if s.State != StateEstablished {
			t.Errorf("%v: IKE SA %v", h.addr, s.State)
		}
		return true
	})
	if n != 1 {
		t.Fatalf("%v has %d IKE SAs, want 1", h.addr, n)
	}
	return a
}

func TestRedirectInTheFirstAnswerIsFollowed(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) { b.RedirectTo = Gateway{Addr: otherGateway} })
	var from []byte
	p.a.mangle = func(o *Output) bool {
		var m Message
		if m.Parse(o.Data) == nil {
			if n, ok := m.FindNotify(NotifyRedirectedFrom); ok {
				from = append([]byte(nil), n.Data...)
			}
		}
		return true
	}
	p.up()
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
	if want := append([]byte{gatewayIPv4, 4}, p.b.addr.AsSlice()...); !bytes.Equal(from, want) {
		t.Fatalf("REDIRECTED_FROM is %x, want %x (RFC 5685 section 9.3)", from, want)
	}
	if p.a.count(EvRedirected) != 1 || p.a.count(EvFailed) != 0 || p.b.count(EvRedirected) != 1 {
		t.Fatalf("events: %+v", p.a.events)
	}
}

func TestClientThatCannotBeRedirectedIsServed(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) {
		b.RedirectTo = Gateway{Addr: otherGateway}
		a.IgnoreRedirects = true
	})
	p.up()
	if got := peerOf(t, p.a); got != p.b.addr {
		t.Fatalf("the client is connected to %v, want %v", got, p.b.addr)
	}
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 5, Gateway: Gateway{Addr: otherGateway}})
	p.run()
	p.done(p.b, 5, ErrNoRedirect)
}

// Where the address alone does not tell, the gateway waits until it knows who the client is.
func TestRedirectAfterAuthenticationIsFollowed(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) { b.RedirectTo = Gateway{Addr: otherGateway} })
	other := *p.b.m.conns[0].conn
	other.Name, other.RemoteID, other.RedirectTo = "other", ID{IDFQDN, "c.test"}, Gateway{}
	p.b.m.conns = append(p.b.m.conns, &connState{conn: &other, retryAt: never})
	p.up()
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
	peerOf(t, p.b)
	if n := p.a.count(EvIKEUp) + p.b.count(EvIKEUp); n != 2 {
		t.Fatalf("%d IKE SAs were told of as up, want the one on each side that is used", n)
	}
	// A client that does not delete what it was sent away from is not kept for ever.
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	auths := 0
	p.b.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeAuth {
			auths++
			p.a.mangle = func(*Output) bool { return false }
		}
		return auths == 0
	}
	p.run()
	p.pass(10 * time.Minute)
	if n := 0; auths == 0 || func() bool { p.b.m.List(func(*SAInfo) bool { n++; return true }); return n != 0 }() {
		t.Fatalf("%d IKE SAs of a client that vanished after its redirect, after %d answers", n, auths)
	}
}

func TestSessionIsRedirectedWithoutAGap(t *testing.T) {
	p := redirectPair(t, nil)
	p.up()
	least := 100
	watch := func(*Output) bool {
		n := 0
		for _, s := range p.a.sas {
			if s.Dir != 0 {
				n++
			}
		}
		least = min(least, n)
		return true
	}
	p.a.mangle, p.b.mangle = watch, watch
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 5, Conn: "link", Gateway: Gateway{Addr: otherGateway}})
	p.run()
	p.done(p.b, 5, nil)
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
	p.pass(2 * linger)
	p.same(1)
	if least < 1 {
		t.Fatal("between the two gateways the client had no CHILD SA")
	}
	// The client may not send the gateway away (section 10).
	p.a.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 6, Conn: "link", Gateway: Gateway{Addr: p.a.addr}})
	p.run()
	p.done(p.a, 6, ErrNoRedirect)
}

func TestRekeyedSessionCanBeRedirected(t *testing.T) {
	p := redirectPair(t, nil)
	p.up()
	for i, h := range []*host{p.b, p.a} {
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link"})
		p.run()
		p.done(h, uint64(10+i), nil)
	}
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 5, Gateway: Gateway{Addr: otherGateway}})
	p.run()
	p.done(p.b, 5, nil)
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
}

func TestRedirectToAGatewayThatIsNotThereLeavesTheSession(t *testing.T) {
	p := redirectPair(t, nil)
	p.up()
	p.a.mangle = func(o *Output) bool { return o.Path.Remote.Addr() != otherGateway }
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 5, Gateway: Gateway{Addr: otherGateway}})
	p.pass(10 * time.Minute)
	if got := peerOf(t, p.a); got != p.b.addr {
		t.Fatalf("the client is connected to %v, want %v", got, p.b.addr)
	}
	p.same(1)
}

func TestRedirectLoopEnds(t *testing.T) {
	p := redirectPair(t, nil)
	g := []netip.Addr{p.b.addr, otherGateway}
	sent := map[netip.Addr]int{}
	p.a.mangle = func(o *Output) bool { // each of the two says: go to the other one
		sent[o.Path.Remote.Addr()]++
		var m Message
		if m.Parse(o.Data) != nil || m.Exchange != ExchangeInit {
			return false
		}
		to := g[0]
		if o.Path.Remote.Addr() == to {
			to = g[1]
		}
		h := m.Header
		b := NewBuilder(nil, Header{SPIi: h.SPIi, Exchange: ExchangeInit, Flags: FlagResponse})
		b.Notify(NotifyRedirect, ProtoNone, nil, Gateway{Addr: to}.body(m.Find(PayloadNonce).Body))
		p.b.out = append(p.b.out, Output{Kind: OutSend, Path: Path{Local: o.Path.Remote, Remote: o.Path.Local}, Data: b.Finish()})
		return false
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, ErrRedirectLoop)
	if n := sent[g[0]] + sent[g[1]]; n != maxRedirects+1 {
		t.Fatalf("%d requests in a redirect loop, want %d", n, maxRedirects+1)
	}
	// After the back-off it begins again where it is configured to, and does not follow.
	clear(sent)
	p.pass(200 * time.Second)
	if sent[g[1]] != 0 {
		t.Fatal("redirects are followed again before the period is over")
	}
	if sent[g[0]] == 0 || sent[g[0]] > 20 {
		t.Fatalf("%d attempts in 200 s, want some with back-off", sent[g[0]])
	}
	p.pass(200 * time.Second)
	if sent[g[1]] == 0 {
		t.Fatal("redirects are not followed any more, long after the loop")
	}
}

func TestForgedRedirectsAreNotFollowed(t *testing.T) {
	for name, c := range map[string]struct {
		forge func(ni []byte) []byte
		spiR  uint64
		err   error
	}{
		"without the nonce":    {func(ni []byte) []byte { return Gateway{Addr: otherGateway}.body(nil) }, 0, ErrRedirectFake},
		"with another nonce":   {func(ni []byte) []byte { return Gateway{Addr: otherGateway}.body(make([]byte, len(ni))) }, 0, ErrRedirectFake},
		"with a longer nonce":  {func(ni []byte) []byte { return Gateway{Addr: otherGateway}.body(append(bytes.Clone(ni), 0)) }, 0, ErrRedirectFake},
		"with an SPI":          {func(ni []byte) []byte { return Gateway{Addr: otherGateway}.body(ni) }, 5, ErrRedirectFake},
		"of an unknown type":   {func(ni []byte) []byte { return append([]byte{4, 4, 192, 0, 2, 9}, ni...) }, 0, ErrSyntax},
		"with a short address": {func(ni []byte) []byte { return append([]byte{1, 3, 192, 0, 2}, ni...) }, 0, ErrSyntax},
		"cut":                  {func(ni []byte) []byte { return []byte{1, 9, 1} }, 0, ErrSyntax},
		"empty":                {func(ni []byte) []byte { return nil }, 0, ErrSyntax},
	} {
		p := redirectPair(t, nil)
		first := true
		p.a.mangle = func(o *Output) bool {
			var m Message
			if first && m.Parse(o.Data) == nil {
				first = false
				b := NewBuilder(nil, Header{SPIi: m.SPIi, SPIr: c.spiR, Exchange: ExchangeInit, Flags: FlagResponse})
				b.Notify(NotifyRedirect, ProtoNone, nil, c.forge(m.Find(PayloadNonce).Body))
				p.b.out = append(p.b.out, Output{Kind: OutSend, Path: Path{Local: o.Path.Remote, Remote: o.Path.Local}, Data: b.Finish()})
				p.b.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local}, o.Data)
				return false
			}
			return true
		}
		p.up()
		if got := peerOf(t, p.a); got != p.b.addr {
			t.Errorf("%s: a forged redirect was followed to %v", name, got)
		}
		found := false
		for _, e := range p.a.events {
			found = found || e.Kind == EvDropped && errors.Is(e.Err, c.err)
		}
		if !found {
			t.Errorf("%s: the forged redirect was not counted as %v", name, c.err)
		}
	}
}

func TestRedirectsThatCannotBeFollowedSaySo(t *testing.T) {
	for name, c := range map[string]struct {
		to  Gateway
		err error
	}{
		"name":        {Gateway{Name: "gw2.example"}, ErrRedirectName},
		"unspecified": {Gateway{Addr: netip.IPv4Unspecified()}, ErrRedirectAddr},
		"multicast":   {Gateway{Addr: netip.MustParseAddr("224.0.0.1")}, ErrRedirectAddr},
	} {
		p := redirectPair(t, func(a, b *Conn) { b.RedirectTo, a.KeyingTries = c.to, 1 })
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		p.done(p.a, 1, c.err)
		if p.a.count(EvRedirected) != 1 {
			t.Errorf("%s: no event", name)
		}
		// In a session it changes nothing.
		q := redirectPair(t, nil)
		q.up()
		q.b.m.Command(q.now, Command{Kind: CmdRedirect, Gateway: c.to})
		q.run()
		q.same(1)
		if got := peerOf(t, q.a); got != q.b.addr {
			t.Errorf("%s: the client is connected to %v", name, got)
		}
	}
}

func TestGatewayReadsAddressesAndNames(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "010400", "2001:db8::1": "0210", "::ffff:192.0.2.1": "0104", "gw-2.example.org": "0310",
	} {
		g, ok := ParseGateway(text)
		b := g.body([]byte("nonce"))
		got, nonce, err := parseRedirect(b)
		if !ok || err != nil || got != g || string(nonce) != "nonce" || b[0] != want[1]-'0' {
			t.Errorf("%s: %v, %x, %v, %v", text, ok, b, got, err)
		}
	}
	for _, text := range []string{"", ".", "a..", "gw example", "ä.example", "0.0.0.0", "::", "fe80::1%eth0", "ff02::1", "a/b"} {
		if g, ok := ParseGateway(text); ok {
			t.Errorf("%q is taken as gateway %v", text, g)
		}
	}
}

// A gateway of another family than our address fails the attempt, and the next one goes to
// the configured address again.
func TestRedirectToAnotherFamilyFailsTheAttempt(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) { a.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} })
	p.up()
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Gateway: Gateway{Addr: sixGateway}})
	p.run()
	p.pass(time.Minute)
	if got := peerOf(t, p.a); got != p.b.addr {
		t.Fatalf("the client is connected to %v", got)
	}
	p.same(1)
}

func FuzzRedirect(f *testing.F) {
	f.Add(Gateway{Addr: otherGateway}.body([]byte("a nonce of 16 oct")))
	f.Add(Gateway{Addr: sixGateway}.body(nil))
	f.Add(Gateway{Name: "gw.example"}.body(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, nonce, err := parseRedirect(b)
		if err != nil {
			return
		}
		if again := g.body(nonce); !bytes.Equal(again, b) && !(b[0] == gatewayIPv6 && g.Addr.Is4()) {
			t.Fatalf("%x is read as %v and written as %x", b, g, again)
		}
	})
}
