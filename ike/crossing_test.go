package ike

import (
	"fmt"
	"testing"
	"time"
)

// one checks that both sides have one and the same IKE SA, and one CHILD SA.
func (p *pair) one() {
	p.a.t.Helper()
	p.same(1)
	for _, h := range []*host{p.a, p.b} {
		if ids := h.ids(); len(ids) != 1 {
			p.a.t.Fatalf("%v has the IKE SAs %v, want one", h.addr, ids)
		}
	}
	if a, b := p.a.only(), p.b.only(); a.spiI != b.spiI || a.spiR != b.spiR {
		p.a.t.Fatalf("the two have different IKE SAs")
	}
}

// A reauthentication in the very moment in which the IKE SA has been established, whichever
// side had connected and whichever side does it: the new one stays, the old one goes, and
// that again and again, so that the order of the SPIs, which decides crossings, plays no part.
func TestReauthenticationAtOnceIsNoCrossing(t *testing.T) {
	for _, side := range []string{"a", "b", "in turn"} {
		for _, unique := range []UniquePolicy{UniqueNo, UniqueKeep, UniqueReplace, UniqueNever} {
			t.Run(fmt.Sprint(side, unique), func(t *testing.T) {
				p := newPair(t, func(a, b *Conn) { a.Unique, b.Unique = unique, unique })
				p.up()
				for i := range 12 {
					h := p.a
					if side == "b" || side == "in turn" && i%2 == 1 {
						h = p.b
					}
					was := p.b.only().origin.spiI
					h.m.Command(p.now, Command{Kind: CmdReauth, Tag: uint64(20 + i), Conn: "link"})
					p.run()
					p.pass(2 * time.Second) // the side that was called waits for a sign that the other has its answer
					p.done(h, uint64(20+i), nil)
					now := p.b.established()
					if now != 1 || p.b.only().origin.spiI == was {
						t.Fatalf("reauthentication %d: %d IKE SAs, want the new one alone", i, now)
					}
					p.pass(2 * linger)
					p.one()
				}
			})
		}
	}
}

// Both sides connect at once, and one kind of message gets lost for a while, longer than what
// could be told apart by time: however the two attempts overlap, one IKE SA is left, and it
// is the same for both.
func TestBothConnectAndMessagesAreLost(t *testing.T) {
	for _, lost := range []struct {
		what     string
		ex       Exchange
		response bool
	}{
		{"first message", ExchangeInit, false}, {"answer to the first message", ExchangeInit, true},
		{"IKE_AUTH", ExchangeAuth, false}, {"answer to IKE_AUTH", ExchangeAuth, true},
	} {
		for _, by := range []string{"a", "b", "both"} {
			for _, unique := range []UniquePolicy{UniqueNo, UniqueKeep, UniqueReplace} {
				for _, wait := range []time.Duration{2 * time.Second, 9 * time.Second, 20 * time.Second} {
					t.Run(fmt.Sprint(lost.what, " of ", by, unique, wait), func(t *testing.T) {
						p := newPair(t, func(a, b *Conn) { a.Unique, b.Unique = unique, unique })
						start := p.now.Mono
						drop := func(o *Output) bool {
							h, _ := ParseHeader(o.Data)
							return h.Exchange != lost.ex || h.Response() != lost.response || p.now.Mono-start >= wait
						}
						if by != "b" {
							p.a.mangle = drop
						}
						if by != "a" {
							p.b.mangle = drop
						}
						p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
						p.b.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
						p.run()
						p.pass(2 * time.Minute)
						p.done(p.a, 1, nil)
						p.done(p.b, 1, nil)
						p.one()
					})
				}
			}
		}
	}
}

// The peer was restarted and says so while the IKE SA is a moment old: it has lost that one,
// though it had not connected itself before.
func TestPeerThatIsRestartedAtOnceHasLostOurs(t *testing.T) {
	for i := range 8 {
		p := newPair(t, nil)
		for range i { // other SPIs
			p.a.Random(make([]byte, 1))
		}
		p.b.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
		p.run()
		p.one()
		was := p.b.only().spiI
		p.forget(t, nil)
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
		p.run()
		p.done(p.a, 1, nil)
		p.pass(20 * time.Second)
		if p.b.established() != 1 || p.b.only().spiI == was {
			t.Fatalf("b has %d IKE SAs, want the new one alone", p.b.established())
		}
		p.pass(2 * time.Minute)
		p.one()
	}
}
