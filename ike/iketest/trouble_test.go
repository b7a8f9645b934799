package iketest

import (
	"errors"
	"testing"
	"time"

	"postern/ike"
)

// The peer dies. Where something is sent to it, it is asked for after DPDDelay, and where
// nothing is after four times that; 4 s × (1 + 1.8 + … + 1.8^5) = 165 s of retransmissions
// follow. Not before and not after that it is given up.
func TestDeadPeerIsFound(t *testing.T) {
	for name, wait := range map[string]time.Duration{"sending": 10 * time.Second, "idle": 40 * time.Second} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 5, options{children: 2, dpd: 10 * time.Second}, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				p.b.Crash()
				died := p.Now()
				if name == "sending" {
					var send func()
					send = func() {
						p.a.Send(p.flows[1].Src, p.flows[1].Dst, p.flows[1].Port)
						p.After(3*time.Second, send)
					}
					p.After(time.Second, send)
				}
				early := died + 6*time.Second
				if name == "idle" {
					early = died + 28*time.Second // the last packet came 10 s before
				}
				p.Run(early)
				if !p.a.quiet() {
					p.Fail("%v after the peer died a asks for it already, with dpd_delay 10 s", p.Now()-died)
				}
				p.Run(died + wait + 2*time.Second)
				if p.a.quiet() {
					p.Fail("%v after the peer died a does not ask for it", p.Now()-died)
				}
				p.Run(died + wait + 168*time.Second)
				_ = p.CheckEmpty(p.a)
			})
		})
	}
}

// A peer that only listens is asked no more often than one to which nothing is sent; one that
// is sent to and is silent as often as dpd_delay says.
func TestLivenessChecksAreAsManyAsNeeded(t *testing.T) {
	for name, want := range map[string][2]int{"idle": {22, 34}, "one way": {85, 130}} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 3, options{dpd: 10 * time.Second}, func(p *pair) {
				p.cfgB.Conns[0].DPDDelay = 0
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				if name == "one way" {
					var send func()
					send = func() {
						p.a.Send(p.flows[0].Src, p.flows[0].Dst, p.flows[0].Port)
						p.After(time.Second, send)
					}
					p.After(0, send)
				}
				before := p.Stats().Sent
				p.Run(p.Now() + 20*time.Minute)
				if n := (p.Stats().Sent - before) / 2; n < want[0] || n > want[1] {
					p.Fail("%d liveness checks in 20 minutes, want %d to %d", n, want[0], want[1])
				}
			})
		})
	}
}

func TestTrafficIsProofOfLife(t *testing.T) {
	seeds(t, 3, options{dpd: 10 * time.Second}, func(p *pair) {
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		p.Run(p.Now() + 15*time.Second)
		p.Traffic(p.flows[0], time.Second, p.Now()+10*time.Minute)
		p.Run(p.Now() + 5*time.Second)
		before := p.Stats().Sent
		p.Run(p.Now() + 9*time.Minute)
		if n := p.Stats().Sent - before; n > 0 {
			p.Fail("%d IKE messages were exchanged in nine minutes of traffic both ways", n)
		}
	})
}

func TestPeerThatComesBack(t *testing.T) {
	for name, away := range map[string]time.Duration{"at once": 0, "soon": 20 * time.Second, "late": 20 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 10, options{children: 2, start: ike.StartStart, dpd: 10 * time.Second, dpdAction: ike.ActionRestart}, func(p *pair) {
				p.boot()
				p.Run(time.Second)
				_ = p.upAndRunning()
				p.b.Crash()
				p.Run(p.Now() + away)
				p.b.Boot(p.cfgB)
				p.Run(p.Now() + 5*time.Minute)
				_ = p.upAndRunning()
			})
		})
	}
}

// The initiator restarts: INITIAL_CONTACT makes the responder forget the former life.
func TestInitialContactReplacesFormerLife(t *testing.T) {
	seeds(t, 10, options{children: 2, start: ike.StartStart}, func(p *pair) {
		p.boot()
		p.Run(time.Second)
		_ = p.upAndRunning()
		p.a.Boot(p.cfgA)
		p.Run(p.Now() + time.Second)
		_ = p.upAndRunning()
	})
}

func TestCutAndHealed(t *testing.T) {
	for name, cut := range map[string]time.Duration{"short": 30 * time.Second, "long": 30 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 10, options{children: 2, start: ike.StartStart, startB: ike.StartStart, dpd: 15 * time.Second,
				dpdAction: ike.ActionRestart, rekeyChild: 3 * time.Minute, rekeyIKE: 10 * time.Minute}, func(p *pair) {
				p.boot()
				p.Run(time.Minute)
				p.Cut(p.a, p.b, true)
				p.Run(p.Now() + cut)
				p.Cut(p.a, p.b, false)
				p.Run(p.Now() + 5*time.Minute)
				_ = p.upAndRunning()
			})
		})
	}
}

// With no room for all children, those that fit work, the others are refused, and
// nothing is left of the refused ones.
func TestFullTable(t *testing.T) {
	for name, set := range map[string]func(p *pair){
		"CHILD SAs of the responder": func(p *pair) { p.b.Limits.ChildSAs = 3 },
		"CHILD SAs of the initiator": func(p *pair) { p.a.Limits.ChildSAs = 3 },
		"SAD of the responder":       func(p *pair) { p.b.Slots = 2 },
		"SAD of the initiator":       func(p *pair) { p.a.Slots = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 10, options{children: 6}, func(p *pair) {
				set(p)
				p.boot()
				var cmds []*Command
				for _, c := range p.children {
					cmds = append(cmds, p.a.Command("initiate "+c, ike.Command{Kind: ike.CmdInitiate, Conn: connName, Child: c}))
					p.Run(p.Now() + p.between(time.Second))
				}
				p.settle(5 * time.Minute)
				_ = p.CheckPair(p.a, p.b, connName, "net0", "net1")
				_ = p.CheckTraffic(p.flows[:2]...)
				for i, c := range cmds {
					if p.Err() == nil && (!c.Done || (c.Err == nil) != (i < 2)) {
						p.Fail("%q: done %v, %v; there is room for two", c.What, c.Done, c.Err)
					}
				}
				p.terminate(p.a)
				_ = p.nothingLeft()
			})
		})
	}
}

// A full CHILD SA table keeps a place so that tunnels which are up can be rekeyed.
func TestFullTableStillRekeys(t *testing.T) {
	seeds(t, 10, options{children: 4, esp: "aes128gcm16-x25519"}, func(p *pair) {
		p.a.Limits.ChildSAs, p.b.Limits.ChildSAs = 4, 4
		p.boot()
		p.initiate(p.a)
		p.settle(5 * time.Minute)
		p.Run(p.Now() + time.Minute)
		_ = p.CheckPair(p.a, p.b, connName, "net0", "net1", "net2")
		for _, h := range []*Host{p.a, p.b} {
			c := p.rekeyChild(h, "net1")
			p.settle(5 * time.Minute)
			_ = p.CheckPair(p.a, p.b, connName, "net0", "net1", "net2")
			p.ended(c, nil)
		}
		_ = p.CheckTraffic(p.flows[:3]...)
	})
}

func TestWrongKeyLeavesNothing(t *testing.T) {
	seeds(t, 5, options{keyB: "another secret", tries: 3, start: ike.StartStart}, func(p *pair) {
		p.boot()
		c := p.initiate(p.a)
		p.Run(10 * time.Minute)
		_ = p.CheckEmpty(p.a)
		_ = p.CheckEmpty(p.b)
		var n *ike.NotifyError
		if p.Err() == nil && (!c.Done || !errors.As(c.Err, &n) || n.Type != ike.NotifyAuthenticationFailed) {
			p.Fail("the command ended with %v, want AUTHENTICATION_FAILED", c.Err)
		}
		if p.Stats().Installed > 0 {
			p.Fail("CHILD SAs were installed without a common secret")
		}
	})
}

func TestNothingInCommon(t *testing.T) {
	for name, c := range map[string]struct {
		o    options
		want ike.NotifyType
	}{
		"IKE proposals": {options{ikeB: "aes256-sha512-ecp384"}, ike.NotifyNoProposalChosen},
		"ESP proposals": {options{espB: "aes256-sha512"}, ike.NotifyNoProposalChosen},
		"selectors":     {options{}, ike.NotifyTSUnacceptable},
	} {
		c.o.tries = 2
		t.Run(name, func(t *testing.T) {
			seeds(t, 3, c.o, func(p *pair) {
				if c.want == ike.NotifyTSUnacceptable {
					p.cfgB.Conns[0].Children[0].RemoteTS[0] = p.net(9, 9, false)
				}
				p.boot()
				cmd := p.initiate(p.a)
				p.Run(10 * time.Minute)
				var n *ike.NotifyError
				if p.Err() == nil && (!cmd.Done || !errors.As(cmd.Err, &n) || n.Type != c.want) {
					p.Fail("the command ended with %v, want %v", cmd.Err, c.want)
				}
				p.terminate(p.a)
				_ = p.nothingLeft()
			})
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	seeds(t, 3, options{tries: 2}, func(p *pair) {
		p.a.Boot(p.cfgA)
		c := p.initiate(p.a)
		p.Run(30 * time.Minute)
		_ = p.CheckEmpty(p.a)
		if p.Err() == nil && (!c.Done || !errors.Is(c.Err, ike.ErrTimeout)) {
			p.Fail("the command ended with %v, want %v", c.Err, ike.ErrTimeout)
		}
	})
}

// A slow way in one direction and a fast one in the other, slower than the first
// retransmission.
func TestAsymmetricDelay(t *testing.T) {
	seeds(t, 10, options{children: 2, esp: "aes128gcm16-x25519"}, func(p *pair) {
		*p.Link(p.a, p.b) = Link{Delay: 6 * time.Second, Jitter: 3 * time.Second}
		*p.Link(p.b, p.a) = Link{Delay: 20 * time.Millisecond}
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		p.rekeyChild(p.a, "net0")
		p.rekeyChild(p.b, "net0")
		p.rekeyIKE(p.b)
		p.settle(10 * time.Minute)
		p.Run(p.Now() + time.Minute)
		_ = p.upAndRunning()
	})
}

// A peer that loses its power while packets go to it is found out and replaced in the time
// that a few messages take, whoever of the two it was.
func TestPowerCycledPeerIsReplacedAtOnce(t *testing.T) {
	for name, initiator := range map[string]bool{"the responder": false, "the initiator": true} {
		t.Run(name, func(t *testing.T) {
			// Long liveness checks, so that they cannot be what helps.
			o := options{children: 2, start: ike.StartStart, dpd: 20 * time.Minute, dpdAction: ike.ActionRestart, qcd: true}
			if initiator {
				o.start = ike.StartNone // or it would connect by itself
			}
			var worst time.Duration
			seeds(t, 10, o, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				gone, cfg, flow := p.b, p.cfgB, p.flows[0]
				if initiator {
					gone, cfg = p.a, p.cfgA
					flow.From, flow.To, flow.Src, flow.Dst = flow.To, flow.From, flow.Dst, flow.Src
				}
				p.Traffic(flow, 100*time.Millisecond, p.Now()+3*time.Minute)
				gone.Crash()
				p.Run(p.Now() + time.Minute)
				gone.Boot(cfg)
				back := p.Now()
				found := func() bool {
					left := 0
					flow.From.M.List(func(sa *ike.SAInfo) bool {
						if sa.Established != 0 && sa.State == ike.StateEstablished && sa.Established < flow.From.clock().Mono-(p.Now()-back) {
							left++
						}
						return true
					})
					return left == 0
				}
				if !p.RunUntil(3*time.Second, found) {
					p.Fail("3 s after the peer is back, its former life is still believed in: %s", p.Describe())
				}
				worst = max(worst, p.Now()-back)
				if initiator {
					p.initiate(p.a)
				}
				p.Run(p.Now() + 3*time.Second)
				_ = p.CheckPair(p.a, p.b, connName, p.children...)
			})
			t.Logf("found out within %v", worst)
		})
	}
}
