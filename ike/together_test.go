package ike

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Features that meet each other: moves with a window of several requests, with fragments,
// with tickets and redirects.

// manyMobile is a pair with MOBIKE and n children, up, a sending fragments of that size.
func manyMobile(t *testing.T, n, size int) *pair {
	t.Helper()
	p := newPair(t, func(a, b *Conn) {
		for _, c := range []*Conn{a, b} { // so many that a request is larger than the smallest fragments
			c.Children[0].Proposals = slices.Repeat(c.Children[0].Proposals, 24)
		}
		manyChildren(n-1)(a, b)
		a.MOBIKE, b.MOBIKE = true, true
		a.LocalAddrs, b.LocalAddrs, b.RemoteAddrs = nil, nil, nil
		a.FragmentSize = size
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
	p.same(n)
	return p
}

// All that is under way when the address changes is repeated from the new one, and the update
// waits for all of it (RFC 4555 section 3.5).
func TestMoveRepeatsEveryRequestOfTheWindow(t *testing.T) {
	p := manyMobile(t, 4, 200)
	for i := range p.a.m.children {
		if c := &p.a.m.children[i]; c.state == ChildInstalled {
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), ChildID: c.unique})
		}
	}
	held, free := p.a.hold()
	p.run()
	under := ids(*held)
	if len(under) != 4 || len(*held) < 8 {
		t.Fatalf("%d requests in %d datagrams are outstanding, want 4 in fragments", len(under), len(*held))
	}
	p.a.events = nil
	p.a.traced()
	*held = nil
	to := netip.MustParseAddr("192.0.2.77")
	p.a.addr, p.a.addrs = to, []netip.Addr{to}
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.a.drain(p.now)
	if got := ids(*held); len(got) != len(under) {
		t.Fatalf("after the move the requests %v were repeated, want %v", got, under)
	}
	for _, o := range *held {
		if o.Path.Local.Addr() != to {
			t.Fatalf("a request left from %v after the move to %v", o.Path.Local, to)
		}
	}
	updates := func() (n int) {
		for _, s := range p.a.told("sending") {
			if strings.Contains(s, "UPDATE_SA_ADDRESSES") {
				n++
			}
		}
		return n
	}
	// Three of the four are answered: the update still waits.
	fourth := slices.Clone(*held)
	fourth = slices.DeleteFunc(fourth, func(o Output) bool { h, _ := ParseHeader(o.Data); return h.ID != under[3] })
	three := slices.DeleteFunc(slices.Clone(*held), func(o Output) bool { h, _ := ParseHeader(o.Data); return h.ID == under[3] })
	p.deliver(p.b, three, backwards)
	for _, o := range p.b.out {
		p.a.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, o.Data)
		p.a.drain(p.now)
	}
	p.b.out = nil
	if n := updates(); n != 0 {
		t.Fatalf("%d updates were sent while a request was unanswered, want none", n)
	}
	free()
	p.deliver(p.b, fourth, backwards)
	p.run()
	if n := updates(); n != 1 {
		t.Errorf("%d updates were sent, want one after all was answered", n)
	}
	if sa := p.b.only(); sa.path.Remote.Addr() != to {
		t.Errorf("b is on %v, want a's new address", sa.path)
	}
	p.pass(2 * linger)
	p.same(4)
}

// A peer with a larger window may have two updates under way. The newer one counts, whichever
// comes first; the older one is answered (RFC 4555 section 3.5), and so it is with lists of
// addresses (section 3.6).
func TestUpdateThatANewerOneOvertookIsOnlyAnswered(t *testing.T) {
	p := newMobilePair(t, nil)
	sa := p.b.only()
	old, next := sa.path, sa.recvID
	at := func(s string) Path { return Path{Local: old.Local, Remote: addrPort(s), NATT: true} }
	update := func(further string) func(*Builder) {
		return func(b *Builder) {
			b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil)
			b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, netip.MustParseAddr(further).AsSlice())
		}
	}
	newer, older := at("203.0.113.66:4500"), at("203.0.113.65:4500")
	p.inject(newer, false, next+1, update("203.0.113.76"))
	p.b.out = nil
	p.inject(older, false, next, update("203.0.113.75"))
	if sa.path != newer || len(sa.mobike.peers) != 1 || sa.mobike.peers[0] != netip.MustParseAddr("203.0.113.76") {
		t.Errorf("b is on %v with the further addresses %v, want what the newer request says", sa.path, sa.mobike.peers)
	}
	answered := slices.ContainsFunc(p.b.out, func(o Output) bool {
		h, _ := ParseHeader(o.Data)
		return h.Response() && h.ID == next && o.Path == older
	})
	if !answered {
		t.Error("the older request was not answered where it came from")
	}
}

// While there is no path a request in fragments neither gets smaller nor runs out.
func TestStrandedFragmentsStayAsTheyAre(t *testing.T) {
	p := manyMobile(t, 3, 700)
	home := p.a.addr
	p.a.mangle = func(*Output) bool { return false }
	for i := range p.a.m.children {
		if c := &p.a.m.children[i]; c.state == ChildInstalled {
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), ChildID: c.unique})
		}
	}
	p.run()
	p.a.mangle = nil
	p.a.addrs = []netip.Addr{netip.MustParseAddr("10.1.0.1")} // and nobody tells the machine
	p.pass(20 * time.Minute)
	sa := p.a.only()
	if n := len(sa.window.parked) + 1; n != 3 || p.a.count(EvRetransmit) != 0 || sa.frag.size != 0 {
		t.Fatalf("%d requests wait, %d retransmissions, fragments of %d; want 3, none and the configured size", n,
			p.a.count(EvRetransmit), sa.frag.size)
	}
	sa.outstanding(func(r *request) bool {
		if r.tries != 0 || r.before != 0 {
			t.Errorf("request %d counts %d and %d transmissions that never were", r.id, r.tries, r.before)
		}
		return false
	})
	p.move(p.a, home.String())
	p.pass(time.Minute)
	for i := range 3 {
		p.done(p.a, uint64(20+i), nil)
	}
	p.same(3)
}

// The address changes while a ticket is unanswered: it is shown again from the new one, with
// NAT detection that is right there.
func TestResumptionFollowsTheAddress(t *testing.T) {
	p := resumePair(t, func(a, b *Conn) {
		a.MOBIKE, b.MOBIKE = true, true
		a.LocalAddrs, b.LocalAddrs, b.RemoteAddrs = nil, nil, nil
	})
	p.restartGateway()
	p.a.mangle = func(*Output) bool { return false }
	p.lose()
	p.run()
	sent := exchanges(p.a)
	p.move(p.a, "192.0.2.77")
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH")
	p.same(1)
	a, b := p.a.only(), p.b.only()
	if a.encap() || b.encap() || b.path.Remote.Addr() != p.a.addr || !resumedUp(p.b) {
		t.Errorf("a (UDP %v) is on %v, b (UDP %v) on %v; want no NAT seen, and the session resumed", a.encap(), a.path, b.encap(), b.path)
	}
	if !a.mobike.on || !b.mobike.on || b.path.Remote.Port() != 4500 {
		t.Errorf("MOBIKE %v and %v on %v, want it on port 4500", a.mobike.on, b.mobike.on, b.path)
	}
}

// Without MOBIKE an address that has gone ends the session; it goes on by its ticket.
func TestSessionWhoseAddressHasGoneIsResumed(t *testing.T) {
	p := resumePair(t, func(a, b *Conn) { a.LocalAddrs, b.LocalAddrs, b.RemoteAddrs = nil, nil, nil })
	sent := exchanges(p.a)
	p.move(p.a, "192.0.2.77")
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH")
	p.same(1)
	if b := p.b.only(); b.path.Remote.Addr() != p.a.addr {
		t.Errorf("b is on %v", b.path)
	}
}

// The ticket is good for the gateway, not for that of its addresses over which it came.
func TestTicketOfAMovedSessionIsShownWhereItBegan(t *testing.T) {
	p := resumePair(t, func(a, b *Conn) {
		a.MOBIKE, b.MOBIKE = true, true
		a.LocalAddrs, b.LocalAddrs, b.RemoteAddrs = nil, nil, nil
	})
	first := p.a.only().path
	second := first
	second.Remote = addrPort("192.0.2.102:4500")
	p.a.m.moveTo(p.a.only(), second)
	p.a.m.push(p.a.only(), taskUpdate)
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 5, Conn: "link"})
	p.run()
	p.done(p.a, 5, nil)
	sa := p.a.m.established(p.a.m.conns[0].conn)
	if sa.path != second || sa.resume.ticket == nil {
		t.Fatalf("a is on %v, ticket %v", sa.path, sa.resume.ticket != nil)
	}
	p.restartGateway()
	sent := exchanges(p.a)
	p.lose()
	p.run()
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH")
	p.same(1)
}

// A client that was sent to another gateway does not look for it at the address of the one
// that sent it.
func TestDetoursAvoidTheGatewayThatRedirected(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) {
		a.MOBIKE, b.MOBIKE = true, true
		a.DPDDelay = 10 * time.Second
		b.RedirectTo = Gateway{Addr: otherGateway}
	})
	p.up()
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
	sent := 0
	p.a.mangle = func(o *Output) bool {
		sent++
		if o.Path.Remote.Addr() != otherGateway {
			t.Errorf("a message went to %v, want all to go to %v", o.Path.Remote, otherGateway)
		}
		return false
	}
	p.pass(2 * time.Minute)
	if sent < 3 {
		t.Errorf("%d messages in two minutes of silence, want retransmissions", sent)
	}
}

// While ESP goes on along the former path, it is there that it is told of as unknown.
func TestHintComesFromWhereESPGoes(t *testing.T) {
	p := newMobilePair(t, nil)
	sa := p.b.only()
	old := sa.path
	there := Path{Local: old.Local, Remote: addrPort("203.0.113.66:4500"), NATT: true}
	p.inject(there, false, sa.recvID, func(b *Builder) { b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil) })
	p.b.out = nil
	var spi uint32
	for _, s := range p.b.sas {
		if s.Inbound != s.SPI {
			spi = s.SPI
		}
	}
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational, Flags: FlagInitiator})
	b.Notify(NotifyInvalidSPI, ProtoNone, nil, be32(spi))
	p.b.m.Datagram(p.now, old, b.Finish())
	p.b.drain(p.now)
	if len(p.b.out) != 1 || p.b.out[0].Path != there {
		t.Errorf("the hint caused %d messages, want the question of where the peer is, along %v, once more", len(p.b.out), there)
	}
}
