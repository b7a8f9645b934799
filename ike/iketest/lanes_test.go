package iketest

import (
	"fmt"
	"testing"
	"time"

	"postern/ike"
)

// lanes gives a life, or not, children with several SAs, on one side or on both. It has a
// generator of its own, as dialing has.
func (l *life) lanes(seed uint64) {
	r := New(seed^0x1a7e5, false).Rand
	if r.IntN(100) >= 30 {
		return
	}
	l.Several = true
	// Of what is closed while others are in use a worker may just have none.
	per := r.IntN(2) == 0 && l.idle == nil
	na, nb := r.IntN(4), r.IntN(4)
	for i, k := range l.cfgA.Conns[0].Children {
		k.Lanes, k.PerCPU = na, per
		l.cfgB.Conns[0].Children[i].Lanes, l.cfgB.Conns[0].Children[i].PerCPU = nb, per && r.IntN(8) > 0
	}
	l.tell("lanes %d and %d, for CPUs %v and %v", na, nb, per, l.cfgB.Conns[0].Children[0].PerCPU)
}

// fillAll has all children carry packets for a while: an SA for one CPU is of no use to the
// packets of others, so that some may be left without.
func (l *life) fillAll() {
	if !l.Several || l.idle != nil || l.Err() != nil {
		return
	}
	for _, f := range l.flows {
		l.Traffic(f, time.Second, l.Now()+time.Minute)
	}
	_ = l.Run(l.Now() + time.Minute)
	l.settle(10 * time.Minute)
}

// held returns how many SAs a host has for each lane of a child.
func (p *pair) held(h *Host, child string) map[uint8]int {
	m := map[uint8]int{}
	h.M.List(func(sa *ike.SAInfo) bool {
		for _, c := range sa.Children {
			if c.Name == child && c.State == ike.ChildInstalled {
				m[c.Lane]++
			}
		}
		return true
	})
	return m
}

// talk sends packets both ways for a while, so that every lane is asked for, and checks that the
// hosts then have SAs for so many lanes of the first child beside the first one.
func (p *pair) talk(a, b int) {
	p.fill()
	for h, n := range map[*Host]int{p.a: a, p.b: b} {
		m := p.held(h, p.children[0])
		for lane := range n + 1 {
			if m[uint8(lane)] == 0 && p.Err() == nil {
				p.Fail("%s has no SA for lane %d, but %v: %s", h.Name, lane, m, p.Describe())
			}
		}
		if n == 0 && len(m) > 1 && m[0] == 0 {
			p.Fail("%s has the lanes %v", h.Name, m)
		}
	}
	_ = p.CheckPair(p.a, p.b, connName, p.children...)
	p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
	_ = p.CheckTraffic(p.flows[0], p.flows[0], p.flows[0])
}

// fill sends packets both ways for a while.
func (p *pair) fill() {
	if p.Err() != nil {
		return
	}
	p.Traffic(p.flows[0], 100*time.Millisecond, p.Now()+30*time.Second)
	_ = p.Run(p.Now() + 40*time.Second)
	p.settle(10 * time.Minute)
}

func laneOptions(a, b int, perCPU bool) options {
	return options{lanesA: a, lanesB: b, perCPU: perCPU, dpd: 20 * time.Second, dpdAction: ike.ActionRestart, retry: 500 * time.Millisecond}
}

// Every lane gets an SA when a packet asks for it, whoever asks first, and the set outlives
// rekeying by both sides at once, a new IKE SA and reauthentication. When all is closed nothing
// is left.
func TestEveryLaneHasAnSA(t *testing.T) {
	for _, per := range []bool{false, true} {
		for _, n := range [][2]int{{2, 2}, {3, 2}, {8, 8}} {
			t.Run(fmt.Sprint(n, per), func(t *testing.T) {
				seeds(t, 12, laneOptions(n[0], n[1], per), func(p *pair) {
					bad := func() { p.Pair(p.a, p.b, Link{Loss: 0.1, Delay: 20 * time.Millisecond, Jitter: 60 * time.Millisecond}) }
					bad()
					p.boot()
					p.initiate(p.a)
					p.settle(time.Minute)
					p.talk(n[0], n[1])
					bad()
					p.rekeyChild(p.a, p.children[0])
					p.rekeyChild(p.b, p.children[0])
					p.settle(10 * time.Minute)
					p.talk(n[0], n[1])
					bad()
					p.rekeyIKE(p.a)
					p.rekeyIKE(p.b)
					p.settle(10 * time.Minute)
					p.talk(n[0], n[1])
					bad()
					p.a.Command("reauthenticate", ike.Command{Kind: ike.CmdReauth, Conn: connName})
					p.settle(10 * time.Minute)
					p.talk(n[0], n[1])
					p.terminate(p.b)
					_ = p.nothingLeft()
				})
			})
		}
	}
}

// The peer is gone, and comes back: the first packets fill the lanes again. So they do after a
// reload that changes the number of lanes.
func TestLanesComeBack(t *testing.T) {
	for _, per := range []bool{false, true} {
		t.Run(fmt.Sprint(per), func(t *testing.T) { lanesComeBack(t, per) })
	}
}

func lanesComeBack(t *testing.T, per bool) {
	o := laneOptions(2, 2, per)
	o.start = ike.StartStart
	seeds(t, 12, o, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond})
		p.boot()
		p.settle(time.Minute)
		p.talk(2, 2)
		p.b.Boot(p.cfgB)
		p.Traffic(p.flows[0], time.Second, p.Now()+2*time.Minute)
		_ = p.Run(p.Now() + 3*time.Minute)
		p.settle(10 * time.Minute)
		p.talk(2, 2)
		more := p.cfgA
		conn := *more.Conns[0]
		kid := *conn.Children[0]
		kid.Lanes = 3
		conn.Children = []*ike.Child{&kid}
		more.Conns = []*ike.Conn{&conn}
		p.a.Configure(more)
		p.settle(10 * time.Minute)
		p.fill()                           // while b still counts the former ones
		_ = p.Run(p.Now() + 2*time.Minute) // laneRetry
		p.talk(3, 2)
	})
}

// A peer that does not know of SAs for CPUs, or does not want them, goes on with the first one.
func TestOnlyOneSAForAPeerWithoutLanes(t *testing.T) {
	seeds(t, 8, laneOptions(4, 0, true), func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
		p.boot()
		p.initiate(p.a)
		p.settle(time.Minute)
		p.talk(0, 0)
		if n := len(p.held(p.a, p.children[0])); n != 1 && p.Err() == nil {
			p.Fail("a has %d SAs for a peer that has not agreed to any but the first", n)
		}
	})
}

// Classes are nobody else's affair: a peer that has none configured takes the SAs all the same.
func TestAPeerWithoutClassesTakesTheSAs(t *testing.T) {
	seeds(t, 8, laneOptions(3, 0, false), func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
		p.boot()
		p.initiate(p.a)
		p.settle(time.Minute)
		p.talk(3, 0)
		if m := p.held(p.b, p.children[0]); len(m) != 4 && p.Err() == nil {
			p.Fail("b holds the lanes %v, want 4", m)
		}
	})
}

// A host takes twice as many SAs for CPUs as it has workers, says TS_MAX_QUEUE to the next one,
// and the other side leaves it at that.
func TestTheNumberOfSAsForCPUsEndsQuietly(t *testing.T) {
	o := laneOptions(8, 2, true)
	seeds(t, 8, o, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
		refused := 0
		p.b.Saw = func(e *ike.Event) {
			if e.Kind == ike.EvRefused && e.Text == ike.NotifyTSMaxQueue.String() {
				refused++
			}
		}
		p.a.Saw = func(e *ike.Event) {
			if e.Kind == ike.EvFailed || e.Kind == ike.EvChildDown {
				p.Fail("a makes a failure of it: %v", e.Err)
			}
		}
		p.boot()
		p.initiate(p.a)
		p.settle(time.Minute)
		p.fill()
		n := 0
		for _, k := range p.held(p.a, p.children[0]) {
			n += k
		}
		if (refused == 0 || refused > 3 || n != 5) && p.Err() == nil {
			p.Fail("%d refusals, %d SAs; want a few, and 1 + 2 x 2", refused, n)
		}
	})
}

// A full table does the same.
func TestAFullTableEndsTheLanesQuietly(t *testing.T) {
	o := laneOptions(8, 8, true)
	seeds(t, 8, o, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
		p.b.Limits.ChildSAs = 6
		p.boot()
		p.initiate(p.a)
		p.settle(time.Minute)
		p.fill()
		if n := len(p.held(p.a, p.children[0])); (n < 2 || n > 5) && p.Err() == nil {
			p.Fail("a has %d SAs with a peer that has room for 5", n)
		}
		_ = p.upAndRunning()
	})
}

// An SA for a lane that nobody uses is closed, and the first one with the last of the others.
func TestIdleLanesEnd(t *testing.T) {
	o := laneOptions(2, 2, false)
	o.start = ike.StartTrap
	seeds(t, 8, o, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
		for _, k := range p.cfgA.Conns[0].Children {
			k.Inactivity = 20 * time.Second
		}
		p.boot()
		p.Traffic(p.flows[0], 100*time.Millisecond, p.Now()+20*time.Second)
		_ = p.Run(p.Now() + 20*time.Second)
		if m := p.held(p.a, p.children[0]); len(m) != 3 && p.Err() == nil {
			p.Fail("a holds the lanes %v, want 3", m)
		}
		_ = p.nothingLeft()
	})
}

// speak sends packets one way.
func (p *pair) speak(f Flow, n int) {
	for range n {
		if p.Err() == nil {
			f.From.Send(f.Src, f.Dst, f.Port)
			_ = p.Run(p.Now() + 700*time.Millisecond)
		}
	}
}

// Both sides ask at once for the SA that is for all workers, and the request of the one comes
// late, when the other has filled its lanes: whichever of the two is closed, both have one for
// all in the end.
func TestBothAskForTheFirstOfTheLanes(t *testing.T) {
	for _, late := range []string{"a", "b"} {
		t.Run(late, func(t *testing.T) {
			o := laneOptions(1, 3, true)
			o.children, o.retry = 2, time.Minute
			seeds(t, 12, o, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
				p.boot()
				ask := func(h *Host, child string) {
					h.Command("initiate", ike.Command{Kind: ike.CmdInitiate, Conn: connName, Child: child})
				}
				ask(p.a, p.children[0])
				p.settle(time.Minute)
				slow, fast, f := p.a, p.b, p.flows[1].reverse()
				if late == "b" {
					slow, fast, f = p.b, p.a, p.flows[1]
				}
				p.Link(slow, fast).Delay = 30 * time.Second
				ask(slow, p.children[1])
				_ = p.Run(p.Now() + time.Millisecond)
				p.Link(slow, fast).Delay = 20 * time.Millisecond
				ask(fast, p.children[1])
				p.speak(f, 30)
				p.settle(time.Minute)
				for range 3 {
					p.Traffic(p.flows[1], 100*time.Millisecond, p.Now()+30*time.Second)
					_ = p.Run(p.Now() + 40*time.Second)
					p.settle(10 * time.Minute)
				}
				for _, h := range []*Host{p.a, p.b} {
					if m := p.held(h, p.children[1]); m[0] == 0 && p.Err() == nil {
						p.Fail("%s has no SA for all workers, but %v: %s", h.Name, m, p.Describe())
					}
				}
			})
		})
	}
}
