package ike

import (
	"testing"
	"time"
)

// alone asks a for the IKE SA alone.
func (p *pair) alone(tag uint64) {
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: tag, Conn: "link", Bare: true})
	p.run()
}

// bare checks that both sides have n IKE SAs, and no CHILD SA.
func (p *pair) bare(when string, n int) {
	p.a.t.Helper()
	p.same(0)
	if a, b := p.a.established(), p.b.established(); a != n || b != n {
		p.a.t.Fatalf("%s there are %d and %d IKE SAs, want %d", when, a, b, n)
	}
}

func TestIKESAComesUpAlone(t *testing.T) {
	p := newPair(t, func(a, _ *Conn) { a.Children[0].StartAction = StartTrap })
	p.alone(1)
	p.done(p.a, 1, nil)
	p.bare("after the command", 1)
	sent := p.a.count(EvInitiate)
	p.alone(2)
	p.done(p.a, 2, nil)
	if p.a.count(EvInitiate) != sent {
		t.Error("a second command has begun another IKE SA, though one is there")
	}
	p.pass(time.Hour)
	p.bare("after an hour", 1)
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 3})
	p.run()
	p.pass(time.Minute)
	p.bare("after reauthentication", 1)
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 4})
	p.run()
	p.done(p.a, 4, nil)
	p.bare("after rekeying", 1)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 5, Child: "net"})
	p.run()
	p.done(p.a, 5, nil)
	p.same(1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 6, Child: "net"})
	p.run()
	p.bare("after its only child has gone", 1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 7, Conn: "link"})
	p.run()
	p.done(p.a, 7, nil)
	p.bare("at the end", 0)
	p.pass(time.Hour)
	p.bare("an hour later", 0)
}

// RFC 6023 section 3: who has not said that it takes part must not be asked.
func TestPeerThatTakesNoIKESAAloneIsNotAsked(t *testing.T) {
	for _, tries := range []int{0, 1, 3} {
		p := newPair(t, func(a, b *Conn) { a.KeyingTries, b.Childless = tries, ChildlessNever })
		p.alone(1)
		p.done(p.a, 1, ErrChildless)
		if n := p.b.refused()[ErrChildless]; n != 0 {
			t.Errorf("the peer has refused %d requests, want none to come", n)
		}
		p.pass(10 * time.Minute)
		p.bare("after some attempts", 0)
		if n := p.a.count(EvInitiate); tries > 0 && n != tries || tries == 0 && n < 5 {
			t.Errorf("%d attempts with keyingtries %d", n, tries)
		}
		p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
		n := p.a.count(EvInitiate)
		p.pass(10 * time.Minute)
		if p.a.count(EvInitiate) != n {
			t.Error("the attempts go on though the user has ended them")
		}
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Child: "net"})
		p.run()
		p.done(p.a, 2, nil)
		p.alone(3)
		p.done(p.a, 3, nil)
		p.same(1)
	}
}

// The peer says that it takes part, and refuses all the same.
func TestRefusedIKESAAloneEndsTheCommand(t *testing.T) {
	p := newPair(t, func(a, _ *Conn) { a.KeyingTries = 1 })
	p.b.mangle = func(*Output) bool {
		p.b.m.conns[0].conn.Childless = ChildlessNever
		return true
	}
	p.alone(1)
	p.done(p.a, 1, &NotifyError{NotifyInvalidSyntax, ""})
	p.bare("after the refusal", 0)
}

// Wishes with a child and without one are fulfilled by one attempt, in whatever order they come.
func TestIKESAAloneAndAChildComeUpTogether(t *testing.T) {
	for _, mode := range []Childless{ChildlessAllow, ChildlessPrefer} {
		for _, first := range []bool{false, true} {
			p := newPair(t, func(a, b *Conn) {
				if a.Childless = mode; mode == ChildlessAllow {
					b.Childless = ChildlessNever
				}
			})
			for _, bare := range []bool{first, !first} {
				c := Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Bare: bare}
				if !bare {
					c.Tag, c.Child = 2, "net"
				}
				p.a.m.Command(p.now, c)
			}
			p.run()
			p.done(p.a, 1, nil)
			p.done(p.a, 2, nil)
			p.pass(time.Minute)
			p.same(1)
			if n := p.a.count(EvInitiate); n != 1 || p.a.count(EvChildUp) != 1 {
				t.Errorf("%d attempts and %d CHILD SAs, want one", n, p.a.count(EvChildUp))
			}
		}
	}
}

func TestIKESAAloneMayBeThePeers(t *testing.T) {
	p := newPair(t, func(_, b *Conn) { b.Children[0].StartAction = StartNone })
	p.a.mangle = func(o *Output) bool { // nothing but answers gets through
		h, _ := ParseHeader(o.Data)
		return h.Response()
	}
	p.alone(1)
	p.b.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Bare: true})
	p.run()
	p.done(p.b, 2, nil)
	p.done(p.a, 1, nil)
	p.bare("when the peer has called", 1)
}

func TestTerminateEndsTheWishForAnIKESAAlone(t *testing.T) {
	p := newPair(t, nil)
	p.a.mangle = func(*Output) bool { return false }
	p.alone(1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Child: "net"}) // which is nothing to it
	p.run()
	p.done(p.a, 2, ErrNotFound)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link"})
	p.run()
	p.done(p.a, 1, ErrTerminated)
	p.a.mangle = nil
	p.pass(time.Hour)
	p.bare("an hour later", 0)
}

// A host that has lost an IKE SA alone makes another one, and the peer keeps just that.
func TestIKESAAloneAfterARestart(t *testing.T) {
	p := newPair(t, nil)
	p.alone(1)
	p.forget(t, nil)
	p.alone(2)
	p.done(p.a, 2, nil)
	p.pass(time.Minute)
	p.bare("after the restart", 1)
}

// A changed connection does not leave a command without an answer.
func TestReloadEndsTheWishForAnIKESAAlone(t *testing.T) {
	for _, up := range []bool{false, true} {
		p := newPair(t, func(a, _ *Conn) { a.Children[0].StartAction = StartTrap })
		if up {
			p.up()
			p.a.m.Command(p.now, Command{Kind: CmdTerminate, Child: "net"})
			p.run()
		}
		p.a.mangle = func(*Output) bool { return false }
		p.alone(2)
		p.reload(p.a, func(c *Conn, _ *Secret) { c.DPDDelay, c.RekeyTime = 7*time.Second, 5*time.Hour })
		p.a.mangle = nil
		p.run()
		p.pass(time.Minute)
		found := false
		for _, e := range p.a.events {
			found = found || e.Kind == EvDone && e.Tag == 2
		}
		if !found {
			t.Error("the command has not ended")
		}
	}
}
