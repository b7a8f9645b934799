package ike

import (
	"testing"
	"time"
)

// The peer has made the CHILD SA that we have asked for, its answer is lost, and it rekeys
// that CHILD SA: it does not learn that there is none, for on its next answer there is.
func TestChildOfOurUnansweredRequestIsNotDenied(t *testing.T) {
	p := newPair(t, manyChildren(1))
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Child: "net"})
	p.run()
	p.done(p.a, 1, nil)
	lost := true
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return !lost || h.Exchange != ExchangeCreateChild || !h.Response()
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Child: "host0"})
	p.run()
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 3, Child: "host0"})
	p.run()
	lost = false
	p.pass(2 * time.Minute)
	p.done(p.a, 2, nil)
	p.done(p.b, 3, nil)
	p.same(2)
	if p.b.count(EvChildDown) != 0 {
		t.Error("b has closed the CHILD SA, though a has asked for it")
	}
}

// A reauthentication has an IKE SA of its own, and is not over, when the peer sends us
// elsewhere: what comes of that takes the place of both others.
func TestRedirectTakesThePlaceOfAnUnfinishedReauthenticationToo(t *testing.T) {
	p := redirectPair(t, manyChildren(1))
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.run()
	p.done(p.a, 1, nil)
	p.same(2)
	lost := true
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return !lost || h.Exchange != ExchangeCreateChild
	}
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2})
	p.run()
	if n := p.a.established(); n != 2 {
		t.Fatalf("a has %d IKE SAs while one is taking the place of the other, want both", n)
	}
	p.b.m.Command(p.now, Command{Kind: CmdRedirect, Tag: 3, IKE: p.b.ids()[1], Gateway: Gateway{Addr: otherGateway}})
	p.run()
	lost = false
	p.pass(2 * time.Minute)
	if n, m := len(p.a.ids()), len(p.b.ids()); n != 1 || m != 1 {
		t.Errorf("%d and %d IKE SAs are left, want one", n, m)
	}
	if got := peerOf(t, p.a); got != otherGateway {
		t.Errorf("a is connected to %v, want the gateway that it was sent to", got)
	}
	p.same(2)
}

// The peer has connected to us meanwhile, so that nobody waits for our attempt any more when
// it is redirected: the next one begins at the configured address.
func TestRedirectThatNobodyWaitsForIsForgotten(t *testing.T) {
	p := redirectPair(t, func(a, b *Conn) { b.RedirectTo = Gateway{Addr: otherGateway} })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.a.m.conns[0].wanted = nil
	p.run()
	if r := &p.a.m.conns[0].redirect; r.to.IsValid() || p.a.count(EvRedirected) != 1 {
		t.Errorf("after %d redirects the next attempt is to go to %v, want it to begin anew", p.a.count(EvRedirected), r.to)
	}
}

// The peer moves, and until it has answered from there ESP goes to where it was; but not from
// an address that we do not have any more.
func TestHeldESPLeavesFromAnAddressThatWeHave(t *testing.T) {
	p := newMobilePair(t, nil)
	sa := p.b.only()
	old := sa.path
	there := Path{Local: addrPort("198.51.100.9:4500"), Remote: addrPort("203.0.113.66:4500"), NATT: true}
	p.b.addr = there.Local.Addr()
	p.b.addrs = append(p.b.addrs[:0:0], p.b.addr)
	var moves []Path
	p.b.outputs = func(o *Output) {
		if o.Kind == OutMoveSA {
			moves = append(moves, o.Path)
		}
	}
	p.inject(there, false, sa.recvID, func(b *Builder) { b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil) })
	got := sa.espRoute().path
	if got.Remote != old.Remote || got.Local.Addr() != there.Local.Addr() || len(moves) != 1 || moves[0] != got {
		t.Errorf("ESP goes along %v (told: %v), want it to go from %v to %v as before", got, moves, there.Local.Addr(), old.Remote)
	}
}
