package iketest

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"postern/ike"
)

func TestInitiateAndTerminate(t *testing.T) {
	seeds(t, 5, options{children: 2}, func(p *pair) {
		p.boot()
		c := p.initiate(p.a)
		_ = p.upAndRunning()
		p.ended(c, nil)
		c = p.terminate(p.a)
		_ = p.nothingLeft()
		p.ended(c, nil)
	})
}

func TestStartActionNeedsNoCommand(t *testing.T) {
	seeds(t, 5, options{start: ike.StartStart, children: 3}, func(p *pair) {
		p.boot()
		p.Run(time.Second)
		_ = p.upAndRunning()
	})
}

func TestResponderMayTerminate(t *testing.T) {
	seeds(t, 5, options{children: 2}, func(p *pair) {
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		c := p.terminate(p.b)
		_ = p.nothingLeft()
		p.ended(c, nil)
	})
}

// Both sides start at once: what comes of it must be one IKE SA, and one of each CHILD SA.
func TestBothInitiateAtOnce(t *testing.T) {
	for _, apart := range []time.Duration{0, 5 * time.Millisecond, 25 * time.Millisecond, 60 * time.Millisecond} {
		t.Run(fmt.Sprint(apart), func(t *testing.T) {
			seeds(t, 40, options{children: 2, start: ike.StartStart, startB: ike.StartStart, dpd: 20 * time.Second}, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond})
				p.a.WorkTime, p.b.WorkTime = 10*time.Millisecond, 10*time.Millisecond
				p.a.Boot(p.cfgA)
				p.Run(apart)
				p.b.Boot(p.cfgB)
				p.Run(time.Second)
				_ = p.upAndRunning()
			})
		})
	}
}

// Of two IKE SAs that both sides begin one goes, and no packet with it.
func TestBothInitiatingLosesNoPacket(t *testing.T) {
	var twice atomic.Int32
	t.Cleanup(func() {
		if twice.Load() == 0 {
			t.Error("there never were two IKE SAs: this shows nothing")
		}
	})
	for _, apart := range []time.Duration{0, 5 * time.Millisecond, 25 * time.Millisecond, 60 * time.Millisecond} {
		t.Run(fmt.Sprint(apart), func(t *testing.T) {
			seeds(t, 15, options{children: 1, start: ike.StartStart, startB: ike.StartStart}, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: p.between(50 * time.Millisecond)})
				p.a.WorkTime, p.b.WorkTime = 15*time.Millisecond, 15*time.Millisecond
				p.a.Boot(p.cfgA)
				_ = p.Run(apart)
				p.b.Boot(p.cfgB)
				for p.Err() == nil && p.Now() < time.Second && (installed(p.a) == 0 || installed(p.b) == 0) {
					_ = p.Run(p.Now() + time.Millisecond)
				}
				from, both := p.Now(), 0
				p.Traffic(p.flows[0], time.Millisecond, from+2*time.Second)
				for p.Err() == nil && p.Now() < from+2*time.Second {
					_ = p.Run(p.Now() + 10*time.Millisecond)
					both = max(both, installed(p.a))
				}
				_ = p.upAndRunning()
				if lost, sent := p.Undelivered(from, from+2*time.Second); lost > 0 || sent < 2000 {
					p.Fail("%d of %d packets got lost", lost, sent)
				}
				if both > 1 {
					twice.Add(1)
				}
			})
		})
	}
}

// installed counts the CHILD SAs of a host.
func installed(h *Host) (n int) {
	h.M.List(func(sa *ike.SAInfo) bool {
		for _, c := range sa.Children {
			if c.State == ike.ChildInstalled {
				n++
			}
		}
		return true
	})
	return n
}

// On a way that loses nothing and keeps the order, rekeying loses no packet, whoever does it.
func TestRekeyingLosesNoPacket(t *testing.T) {
	type rekeying func(p *pair) []*Command
	for name, r := range map[string]rekeying{
		"child by a": func(p *pair) []*Command { return []*Command{p.rekeyChild(p.a, "net0")} },
		"child by b": func(p *pair) []*Command { return []*Command{p.rekeyChild(p.b, "net0")} },
		"child by both": func(p *pair) []*Command {
			return []*Command{p.rekeyChild(p.a, "net0"), p.rekeyChild(p.b, "net0")}
		},
		"ike by a":    func(p *pair) []*Command { return []*Command{p.rekeyIKE(p.a)} },
		"ike by b":    func(p *pair) []*Command { return []*Command{p.rekeyIKE(p.b)} },
		"ike by both": func(p *pair) []*Command { return []*Command{p.rekeyIKE(p.a), p.rekeyIKE(p.b)} },
		"ike by a, child by b": func(p *pair) []*Command {
			return []*Command{p.rekeyIKE(p.a), p.rekeyChild(p.b, "net0")}
		},
		"child by a, ike by b": func(p *pair) []*Command {
			return []*Command{p.rekeyChild(p.a, "net0"), p.rekeyIKE(p.b)}
		},
		"child and ike by both": func(p *pair) []*Command {
			return []*Command{p.rekeyChild(p.a, "net0"), p.rekeyChild(p.b, "net0"), p.rekeyIKE(p.a), p.rekeyIKE(p.b)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 15, options{children: 1, esp: "aes128gcm16-x25519-esn"}, func(p *pair) {
				delay := p.between(50 * time.Millisecond)
				p.Pair(p.a, p.b, Link{Delay: delay})
				p.a.WorkTime, p.b.WorkTime = 15*time.Millisecond, 15*time.Millisecond
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				before := p.Now()
				p.Traffic(p.flows[0], 5*time.Millisecond, p.Now()+8*time.Second)
				p.Run(p.Now() + time.Second)
				cmds := r(p)
				p.Run(p.Now() + 30*time.Second)
				_ = p.upAndRunning()
				for _, c := range cmds {
					p.ended(c, nil)
				}
				if lost, sent := p.Undelivered(before, p.Now()-time.Second); lost > 0 || sent < 1000 {
					p.Fail("%d of %d packets got lost while rekeying", lost, sent)
				}
			})
		})
	}
}

func TestRekeyedSAsAreNewOnes(t *testing.T) {
	seeds(t, 5, options{children: 2, esp: "aes256gcm16-ecp256"}, func(p *pair) {
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		spis := func() (x [4]uint64) {
			p.a.M.List(func(sa *ike.SAInfo) bool {
				x[0], x[1] = sa.SPIi, sa.SPIr
				for _, c := range sa.Children {
					if c.Name == "net0" {
						x[2], x[3] = uint64(c.SPIIn), uint64(c.SPIOut)
					}
				}
				return true
			})
			return x
		}
		before := spis()
		for _, c := range []func() *Command{
			func() *Command { return p.rekeyChild(p.a, "net0") }, func() *Command { return p.rekeyIKE(p.b) },
		} {
			cmd := c()
			_ = p.upAndRunning()
			p.ended(cmd, nil)
		}
		after := spis()
		for i := range before {
			if before[i] == after[i] && p.Err() == nil {
				p.Fail("SPI %d is %x after rekeying as before: nothing was rekeyed", i, after[i])
			}
		}
	})
}

func TestLifetimesRekeyForDays(t *testing.T) {
	seeds(t, 4, options{children: 2, start: ike.StartStart, rekeyChild: 20 * time.Minute, rekeyIKE: 2 * time.Hour,
		esp: "chacha20poly1305-x25519"}, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond})
		p.boot()
		p.Run(2 * 24 * time.Hour)
		_ = p.upAndRunning()
		// Two children for 48 h with about 19 min each, on two sides.
		if n := p.Stats().Installed; n < 2*2*48*3 || n > 2*2*48*4 {
			p.Fail("%d CHILD SAs were installed in two days of rekeying every 20 min", n)
		}
	})
}

// Both sides rekey by the number of packets or octets: not one is lost, and the keys change as
// often as the limits say.
func TestVolumeLimitsRekeyAndLoseNoPacket(t *testing.T) {
	for name, o := range map[string]options{
		"packets": {rekeyPackets: 300}, "octets": {rekeyBytes: 300 * 40},
		"with PFS": {rekeyPackets: 300, esp: "aes128gcm16-x25519"},
	} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 10, o, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				from, installed := p.Now(), p.Stats().Installed
				p.Traffic(p.flows[0], 20*time.Millisecond, p.Now()+time.Minute)
				_ = p.Run(p.Now() + 90*time.Second)
				if lost, sent := p.Undelivered(from, p.Now()); lost > 0 || sent < 5000 {
					p.Fail("%d of %d packets were lost", lost, sent)
				}
				// 3,000 packets each way, of 40 octets. When both ask at once, two are made.
				if n := (p.Stats().Installed - installed) / 2; n < 9 || n > 24 {
					p.Fail("%d new CHILD SAs in about 3,000 packets each way, want one or two in 300", n)
				}
				_ = p.upAndRunning()
			})
		})
	}
}

// Without a soft limit the hard one ends the CHILD SA, and another one takes its place.
func TestHardVolumeLimitEndsAndReplaces(t *testing.T) {
	seeds(t, 5, options{start: ike.StartStart}, func(p *pair) {
		p.cfgA.Conns[0].Children[0].LifePackets = 50
		p.boot()
		_ = p.Run(time.Second)
		_ = p.upAndRunning()
		installed := p.Stats().Installed
		p.Traffic(p.flows[0], 100*time.Millisecond, p.Now()+time.Minute)
		_ = p.Run(p.Now() + 90*time.Second)
		if n := (p.Stats().Installed - installed) / 2; n < 8 || n > 13 {
			p.Fail("%d new CHILD SAs in 600 packets each way with a hard limit of 50", n)
		}
		_ = p.upAndRunning()
	})
}

func TestHardLifetimeEndsAndReplaces(t *testing.T) {
	seeds(t, 5, options{start: ike.StartStart, life: time.Minute}, func(p *pair) {
		p.boot()
		p.Run(10 * time.Minute)
		_ = p.upAndRunning()
		if n := p.Stats().Installed; n < 2*5 {
			p.Fail("a hard lifetime of a minute installed %d CHILD SAs in ten", n)
		}
	})
}

func TestAdditionalChildren(t *testing.T) {
	seeds(t, 10, options{children: 4, esp: "aes128gcm16-x25519"}, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 10 * time.Millisecond, Jitter: 30 * time.Millisecond})
		p.boot()
		one := func(h *Host, child string) *Command {
			return h.Command("initiate "+child, ike.Command{Kind: ike.CmdInitiate, Conn: connName, Child: child})
		}
		first := one(p.a, "net0")
		p.settle(time.Minute)
		_ = p.CheckPair(p.a, p.b, connName, "net0")
		p.ended(first, nil)
		// The same from both sides at once, and different ones.
		cmds := []*Command{one(p.a, "net1"), one(p.b, "net1"), one(p.b, "net2"), one(p.a, "net3")}
		_ = p.upAndRunning()
		for _, c := range cmds {
			p.ended(c, nil)
		}
	})
}

func TestAcquireInitiatesOnce(t *testing.T) {
	seeds(t, 5, options{start: ike.StartTrap}, func(p *pair) {
		p.boot()
		p.Run(time.Minute)
		if p.Stats().Sent != 0 {
			p.Fail("a trap sent something before any packet came")
		}
		f := p.flows[0]
		for range 3 {
			c := ike.Command{Kind: ike.CmdAcquire, Conn: connName, Child: f.Child}
			c.Flow.Local, c.Flow.Remote, c.Flow.Proto = f.Src, f.Dst, 17
			c.Flow.LocalPort, c.Flow.RemotePort = f.Port, f.Port
			p.a.Command("acquire", c)
		}
		_ = p.upAndRunning()
	})
}

func TestDeleteChild(t *testing.T) {
	one := func(p *pair, h *Host) *Command {
		return h.Command("terminate net1", ike.Command{Kind: ike.CmdTerminate, Conn: connName, Child: "net1"})
	}
	for name, who := range map[string]func(p *pair) []*Host{
		"by a":    func(p *pair) []*Host { return []*Host{p.a} },
		"by b":    func(p *pair) []*Host { return []*Host{p.b} },
		"by both": func(p *pair) []*Host { return []*Host{p.a, p.b} },
	} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 10, options{children: 3}, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				var cmds []*Command
				for _, h := range who(p) {
					cmds = append(cmds, one(p, h))
				}
				p.settle(time.Minute)
				_ = p.CheckPair(p.a, p.b, connName, "net0", "net2")
				_ = p.CheckTraffic(p.flows[0], p.flows[2])
				for _, c := range cmds {
					p.ended(c, nil)
				}
			})
		})
	}
}

func TestBothTerminateAtOnce(t *testing.T) {
	seeds(t, 20, options{children: 2}, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond})
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		x, y := p.terminate(p.a), p.terminate(p.b)
		_ = p.nothingLeft()
		p.ended(x, nil)
		p.ended(y, nil)
	})
}
