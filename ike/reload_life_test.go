package ike

import (
	"testing"
	"time"
)

// Each of these keys is taken over in place; what it means for the SAs that there are is
// tested below.
func TestReloadTakesLifeKeysOverInPlace(t *testing.T) {
	for what, change := range map[string]func(*Conn){
		"reauth_time": func(c *Conn) { c.ReauthTime = time.Hour },
		"unique":      func(c *Conn) { c.Unique = UniqueReplace },
		"childless":   func(c *Conn) { c.Childless = ChildlessForce },
		"inactivity":  func(c *Conn) { c.Children[0].Inactivity = time.Hour },
	} {
		p := newPair(t, nil)
		p.up()
		spi := p.a.inbound("net")
		p.reload(p.a, func(c *Conn, _ *Secret) { change(c) })
		p.pass(2 * linger)
		if p.same(1); p.a.inbound("net") != spi || p.a.count(EvIKEDown) != 0 {
			t.Errorf("%s: the SAs are not those from before", what)
		}
	}
}

// Keys have their limits from their beginning: new limits come with new keys.
func TestReloadBringsNewLimitsWithNewKeys(t *testing.T) {
	p := newPair(t, withChildren)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	two := p.a.inbound("two")
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Children[0].RekeyPackets = 1000 })
	p.pass(lifeMin + 2*linger)
	p.same(3)
	if n := p.a.count(EvChildRekeyed); n != 1 || p.a.inbound("two") != two {
		t.Errorf("%d rekeyings, want that of the child whose limits changed", n)
	}
	for _, s := range p.a.sas {
		soft, hard := uint64(0), uint64(0)
		if s.Child == "net" {
			soft, hard = 1000, 1100
		}
		if s.Soft.Packets != soft || s.Hard.Packets != hard {
			t.Errorf("child %s has the limits %d and %d packets, want %d and %d", s.Child, s.Soft.Packets, s.Hard.Packets, soft, hard)
		}
	}
}

func TestReloadOfInactivityCountsFromTheLastPacket(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.a.lastIn = p.now.Mono
	p.pass(10 * time.Minute)
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Children[0].Inactivity = 15 * time.Minute })
	p.pass(4 * time.Minute)
	p.same(1)
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Children[0].Inactivity = 0 })
	p.pass(time.Hour)
	p.same(1)
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Children[0].Inactivity = 15 * time.Minute })
	p.pass(time.Second)
	if len(p.a.sas) != 0 {
		t.Error("a child that has been idle for an hour stays, with an inactivity of 15 minutes")
	}
}

// A shorter reauth_time is over for an old IKE SA: it is reauthenticated soon, and has time
// for it. The side that was called tells the peer.
func TestReloadOfReauthTimeReauthenticatesAnOldIKESA(t *testing.T) {
	for _, caller := range []bool{true, false} {
		p := newPair(t, nil)
		p.up()
		p.pass(2 * time.Hour)
		h := p.a
		if !caller {
			h = p.b
		}
		p.reload(h, func(c *Conn, _ *Secret) { c.ReauthTime = time.Hour })
		p.pass(lifeMin + 10*time.Minute + 2*linger)
		p.same(1)
		if n := p.a.count(EvIKEUp); n != 2 || p.a.count(EvChildDown) != 1 {
			t.Errorf("reload of the caller %v: %d IKE SAs, and %d ends of a CHILD SA, want the first one and its successor", caller, n, p.a.count(EvChildDown))
		}
		for _, e := range p.a.events {
			if e.Kind == EvIKEDown && e.Err != ErrReplaced {
				t.Errorf("reload of the caller %v: the old IKE SA ended with %v", caller, e.Err)
			}
		}
		p.reload(h, func(c *Conn, _ *Secret) { c.ReauthTime = 0 })
		if at := p.a.m.sas[1].reauth.at; caller && p.a.m.sas[1].state == StateEstablished && at != 0 {
			t.Errorf("reauthentication is due at %v though reauth_time is 0", at)
		}
	}
}

// What the peer demands stays when our own time goes.
func TestReloadKeepsTheLifetimeThatThePeerHasSet(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { b.ReauthTime = time.Hour })
	p.up()
	sa := &p.a.m.sas[0]
	want := sa.reauth.at
	if want == 0 {
		t.Fatal("the peer's AUTH_LIFETIME was not heard")
	}
	for _, d := range []time.Duration{2 * time.Hour, 0, 20 * time.Minute, 0} {
		p.reload(p.a, func(c *Conn, _ *Secret) { c.ReauthTime = d })
		if d == 20*time.Minute != (sa.reauth.at != want) || sa.timers[tReauth] != sa.reauth.at {
			t.Errorf("with our reauth_time %v it is due at %v by the peer's %v, timer %v", d, sa.reauth.at, want, sa.timers[tReauth])
		}
	}
}

// A reauthentication is at the address where the peer is: others of the connection are no
// reason for haste, and neither is news of the network.
func TestReauthenticationHasOneAddress(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RemoteAddrs = append(a.RemoteAddrs, hosts32("203.0.113.1", "203.0.113.2")...) })
	p.up()
	p.a.mangle = func(o *Output) bool {
		if o.Path.Remote.Addr() != p.b.addr {
			t.Errorf("%v was called", o.Path.Remote)
		}
		return false
	}
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2, Conn: "link"})
	p.run()
	p.pass(30 * time.Second)
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.run()
	if p.ikes(p.a) != 2 || p.a.count(EvFailed) != 0 {
		t.Fatalf("%d IKE SAs and %d failures after 30 s without an answer, want the old one and the attempt", p.ikes(p.a), p.a.count(EvFailed))
	}
	p.a.mangle = nil
	p.pass(time.Minute)
	p.same(1)
	if sa := p.a.m.established(p.a.m.conns[0].conn); sa == nil || sa.unique != 2 || sa.origin.dialled != p.b.addr {
		t.Errorf("the IKE SA is %+v, want the second one, called at %v", sa, p.b.addr)
	}
}

// The peer has made its IKE SA when ours is terminated: it is told.
func TestTerminatedWhileAuthenticatingLeavesNothingAtThePeer(t *testing.T) {
	for _, reauth := range []bool{false, true} {
		p := newPair(t, nil)
		cmd := Command{Kind: CmdInitiate, Tag: 1, Conn: "link"}
		if reauth {
			p.up()
			cmd = Command{Kind: CmdReauth, Tag: 2, Conn: "link"}
		}
		p.b.mangle = func(o *Output) bool {
			h, _ := ParseHeader(o.Data)
			return h.Exchange != ExchangeAuth
		}
		p.a.m.Command(p.now, cmd)
		p.run()
		p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 9, Conn: "link"})
		p.run()
		p.done(p.a, 9, nil)
		p.b.mangle = nil
		p.pass(time.Minute)
		if n, m := p.ikes(p.a), p.ikes(p.b); n+m != 0 || len(p.a.sas)+len(p.b.sas)+len(p.a.spis)+len(p.b.spis) != 0 {
			t.Errorf("reauthentication %v: %d and %d IKE SAs, %d and %d SAs are left", reauth, n, m, len(p.a.sas), len(p.b.sas))
		}
	}
}
