package ike

import (
	"testing"
	"time"
)

// idlePair has a close its child after ten idle minutes, and keep the IKE SA.
func idlePair(t *testing.T, change func(a, b *Conn)) *pair {
	p := newPair(t, func(a, b *Conn) {
		a.Children[0].Inactivity, a.Children[0].KeepIKE, a.Children[0].StartAction = 10*time.Minute, true, StartTrap
		if change != nil {
			change(a, b)
		}
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	p.run()
	return p
}

// As strongSwan has it, the IKE SA outlives the last CHILD SA that nobody uses.
func TestIdleChildMayLeaveTheIKESA(t *testing.T) {
	for name, change := range map[string]func(a, b *Conn){
		"one side": nil,
		"both sides": func(_, b *Conn) {
			b.Children[0].Inactivity, b.Children[0].KeepIKE, b.Children[0].StartAction = 10*time.Minute, true, StartTrap
		},
		"kept up": func(a, _ *Conn) { a.Children[0].StartAction = StartStart },
		"rekeyed": func(a, _ *Conn) { a.Children[0].RekeyTime, a.RekeyTime = 4*time.Minute, 7*time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			p := idlePair(t, change)
			p.same(1)
			p.pass(11*time.Minute + 2*linger)
			p.bare("when nothing has passed", 1)
			ids := p.a.ids()
			p.pass(time.Hour)
			p.bare("an hour later", 1)
			attempts := p.a.count(EvInitiate)
			p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
			p.run()
			p.same(1)
			if p.a.count(EvInitiate) != attempts || name == "one side" && p.a.ids()[0] != ids[0] {
				t.Error("the next packet has needed another IKE SA")
			}
		})
	}
}

// The user's word is the last one: no packet brings back what is closed and has no trap.
func TestPacketDoesNotBringBackWhatTheUserHasClosed(t *testing.T) {
	p := idlePair(t, func(a, _ *Conn) { a.Children[0].StartAction = StartStart })
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Child: "net"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
	p.run()
	p.pass(time.Minute)
	p.bare("after the user has closed the child", 1)
}

// With a child that takes the IKE SA along, it is the last one that decides.
func TestLastIdleChildDecidesAboutTheIKESA(t *testing.T) {
	for _, keep := range []bool{false, true} {
		p := idlePair(t, func(a, b *Conn) {
			manyChildren(1)(a, b)
			a.Children[1].Inactivity, a.Children[1].KeepIKE = 20*time.Minute, keep
		})
		p.same(2)
		p.pass(21*time.Minute + 2*linger)
		n := 0
		if keep {
			n = 1
		}
		p.bare("when both have gone", n)
	}
}
