package ike

import (
	"testing"
	"time"
)

// reload gives h its configuration again, after change.
func (p *pair) reload(h *host, change func(c *Conn, s *Secret)) {
	p.a.t.Helper()
	c := h.m.conns[0].conn.clone()
	s := Secret{IDs: h.m.secrets[0].IDs, Key: append([]byte(nil), h.m.secrets[0].Key...)}
	change(c, &s)
	if err := h.m.Configure(p.now, Config{Conns: []*Conn{c}, Secrets: []Secret{s}}); err != nil {
		p.a.t.Fatal(err)
	}
	p.run()
}

// withChildren gives both sides three children: net, two and three.
func withChildren(a, b *Conn) {
	for _, n := range []struct{ name, l, r string }{{"two", "10.3.0.0/24", "10.4.0.0/24"}, {"three", "10.5.0.0/24", "10.6.0.0/24"}} {
		x, y := *a.Children[0], *b.Children[0]
		x.Name, x.LocalTS, x.RemoteTS = n.name, []TS{sel(n.l)}, []TS{sel(n.r)}
		y.Name, y.LocalTS, y.RemoteTS = n.name, []TS{sel(n.r)}, []TS{sel(n.l)}
		a.Children, b.Children = append(a.Children, &x), append(b.Children, &y)
	}
}

// inbound returns the SPI of the inbound SA of a child, 0 if it has none; it fails if there
// are several.
func (h *host) inbound(child string) (spi uint32) {
	h.t.Helper()
	for _, s := range h.sas {
		if s.Child == child && key(s.SPI, s.Dir) == s.SPI {
			if spi != 0 {
				h.t.Fatalf("child %s has several inbound SAs", child)
			}
			spi = s.SPI
		}
	}
	return spi
}

func (p *pair) ikes(h *host) (n int) {
	h.m.List(func(*SAInfo) bool { n++; return true })
	return n
}

func TestReloadTouchesOnlyTheChildThatChanged(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*Conn)
		two    string // what becomes of child two: "same", "new" or "gone"
		four   bool   // there is a fourth one
	}{
		{"nothing", func(c *Conn) {}, "same", false},
		{"dpd_delay", func(c *Conn) { c.DPDDelay = 7 * time.Second }, "same", false},
		{"lifetimes", func(c *Conn) {
			c.RekeyTime, c.OverTime, c.Children[1].RekeyTime, c.Children[1].LifeTime = time.Hour, time.Minute, 30*time.Minute, time.Hour
		}, "same", false},
		{"retransmission", func(c *Conn) {
			c.RetryTimeout, c.RetryTries, c.RetryLimit, c.RetryJitter = time.Second, 3, time.Minute, 5
		}, "same", false},
		{"actions", func(c *Conn) { c.Children[1].StartAction, c.Children[1].DPDAction = StartStart, ActionRestart }, "same", false},
		{"another address", func(c *Conn) { c.RemoteAddrs = append(hosts32("203.0.113.1"), c.RemoteAddrs...) }, "same", false},
		{"selectors", func(c *Conn) { c.Children[1].RemoteTS = []TS{sel("10.4.0.0/25")} }, "new", false},
		{"proposals", func(c *Conn) { c.Children[1].ReplayWindow = 128 }, "new", false},
		{"order", func(c *Conn) { c.Children[0], c.Children[2] = c.Children[2], c.Children[0] }, "same", false},
		{"one removed", func(c *Conn) { c.Children = append(c.Children[:1], c.Children[2]) }, "gone", false},
		{"one added", func(c *Conn) {
			x := *c.Children[0]
			x.Name, x.LocalTS, x.RemoteTS, x.StartAction = "four", []TS{sel("10.1.0.0/25")}, []TS{sel("10.2.0.0/25")}, StartStart
			c.Children = append(c.Children, &x)
		}, "same", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			p := newPair(t, withChildren)
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			p.same(3)
			one, two, three := p.a.inbound("net"), p.a.inbound("two"), p.a.inbound("three")
			least := len(p.a.sas)
			p.a.mangle = func(*Output) bool { least = min(least, len(p.a.sas)); return true }
			p.reload(p.a, func(x *Conn, _ *Secret) { c.change(x) })
			p.pass(2 * linger)
			if p.a.inbound("net") != one || p.a.inbound("three") != three {
				t.Error("a child that did not change has another SA")
			}
			if now := p.a.inbound("two"); (now == two) != (c.two == "same") || (now == 0) != (c.two == "gone") {
				t.Errorf("child two had the SA %08x and has %08x, want %s", two, now, c.two)
			}
			if c.two == "new" && least < 6 {
				t.Errorf("for a while there were %d simplex SAs: the old one went before the new one came", least)
			}
			if (p.a.inbound("four") != 0) != c.four {
				t.Errorf("the added child has the SA %08x", p.a.inbound("four"))
			}
			if p.a.count(EvIKEUp) != 1 || p.a.count(EvIKEDown) != 0 || p.ikes(p.a) != 1 {
				t.Errorf("%d IKE SAs came and %d went, want the one from before", p.a.count(EvIKEUp), p.a.count(EvIKEDown))
			}
			// The machine goes on with what it has: rekeying works, with the new values.
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 5, Conn: "link"})
			p.run()
			p.done(p.a, 5, nil)
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 6, Conn: "link", Child: "net"})
			p.run()
			p.done(p.a, 6, nil)
		})
	}
}

func TestReloadTakesLifetimesOverFromWhenTheSAWasMade(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		a.RekeyTime, a.OverTime = 4*time.Hour, time.Hour
		a.Children[0].RekeyTime, a.Children[0].LifeTime = time.Hour, 2*time.Hour
	})
	p.up()
	made := p.now.Mono
	p.pass(20 * time.Minute)
	p.reload(p.a, func(c *Conn, _ *Secret) {
		c.RekeyTime, c.OverTime = time.Hour, 10*time.Minute
		c.Children[0].RekeyTime, c.Children[0].LifeTime = 10*time.Minute, 15*time.Minute
	})
	p.a.m.List(func(s *SAInfo) bool {
		if s.RekeyAt != made+time.Hour || s.ExpireAt != made+70*time.Minute {
			t.Errorf("the IKE SA is rekeyed %v and closed %v after it was made, want 1h and 1h10m", s.RekeyAt-made, s.ExpireAt-made)
		}
		// Twenty minutes are more than its whole life now: it is rekeyed at once, and has time for it.
		if c := s.Children[0]; c.RekeyAt > p.now.Mono+lifeMin || c.ExpireAt < c.RekeyAt+lifeMin {
			t.Errorf("the CHILD SA is rekeyed in %v and closed in %v", c.RekeyAt-p.now.Mono, c.ExpireAt-p.now.Mono)
		}
		return true
	})
	p.pass(lifeMin + 2*linger)
	p.same(1)
	if p.a.count(EvChildRekeyed) != 1 || p.a.count(EvChildDown) != 0 {
		t.Errorf("%d rekeyings, %d ends of the CHILD SA", p.a.count(EvChildRekeyed), p.a.count(EvChildDown))
	}
}

func TestReloadTakesLivenessChecksOver(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.DPDDelay = time.Hour })
	p.up()
	n := 0
	p.a.mangle = func(*Output) bool { n++; return true }
	p.reload(p.a, func(c *Conn, _ *Secret) { c.DPDDelay = 10 * time.Second })
	p.pass((6*idleDelays + 2) * 10 * time.Second)
	if n != 6 {
		t.Errorf("%d checks in six times idleDelays after dpd_delay became 10 s, want 6", n)
	}
	p.reload(p.a, func(c *Conn, _ *Secret) { c.DPDDelay = 0 })
	n = 0
	p.pass(time.Hour)
	if n != 0 {
		t.Errorf("%d checks after dpd_delay became 0", n)
	}
}

// The secret changes on both sides, on the other side first. The old IKE SA goes when the
// new one is there.
func TestReloadOfTheSecretIsMakeBeforeBreak(t *testing.T) {
	p := newPair(t, withChildren)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.same(3)
	least := len(p.a.sas)
	p.a.mangle = func(*Output) bool { least = min(least, len(p.a.sas)); return true }
	other := func(_ *Conn, s *Secret) { s.Key = []byte("another secret of the two") }
	p.b.m.secrets = []Secret{{IDs: p.b.m.secrets[0].IDs, Key: []byte("another secret of the two")}}
	p.reload(p.a, other)
	p.pass(linger + time.Second)
	p.same(3)
	if least < 6 {
		t.Errorf("for a while there were only %d simplex SAs of 6", least)
	}
	if p.ikes(p.a) != 1 || p.a.count(EvIKEUp) != 2 {
		t.Errorf("%d IKE SAs of %d are left, want the second one only", p.ikes(p.a), p.a.count(EvIKEUp))
	}
}

// Where the peer does not take the new secret, what the old one made ends all the same.
func TestReloadEndsTheOldSAWhenThereIsNoNewOne(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.reload(p.a, func(_ *Conn, s *Secret) { s.Key = []byte("a secret that the peer does not have") })
	p.same(1)
	p.pass(replaceMax + time.Second)
	p.same(0)
}

func TestReloadWithoutTheConnectionClosesIt(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	if err := p.a.m.Configure(p.now, Config{}); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.same(0)
	if p.ikes(p.a)+p.ikes(p.b) != 0 {
		t.Error("the IKE SA of a connection that is configured no more is still there")
	}
}

// A child goes while its CREATE_CHILD_SA is under way: what comes of it is closed.
func TestReloadDuringAnExchangeLeavesNoStray(t *testing.T) {
	for _, tag := range []uint64{1, 2} { // IKE_AUTH carries the first child, CREATE_CHILD_SA the second
		p := newPair(t, withChildren)
		var kept []Output
		p.a.mangle = func(o *Output) bool {
			h, _ := ParseHeader(o.Data)
			if tag == 1 && h.Exchange == ExchangeAuth || tag == 2 && h.Exchange == ExchangeCreateChild {
				kept = append(kept, *o)
				return false
			}
			return true
		}
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if len(kept) == 0 {
			t.Fatal("no request was held back")
		}
		p.a.mangle = nil
		p.reload(p.a, func(c *Conn, _ *Secret) { c.Children = []*Child{c.Children[2]} })
		for _, o := range kept {
			p.b.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, o.Data)
		}
		p.run()
		p.pass(2 * linger)
		p.same(1)
		if p.a.inbound("three") == 0 {
			t.Error("the child that stays has no SA")
		}
	}
}

// What the user has closed stays closed over a reload that does not concern it.
func TestReloadDoesNotStartWhatTheUserHasClosed(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.Children[0].StartAction = StartStart })
	p.same(1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.same(0)
	p.reload(p.a, func(c *Conn, _ *Secret) { c.DPDDelay = time.Minute })
	p.pass(time.Minute)
	p.same(0)
}

// What a new secret would have replaced goes with its connection, also if new keys came first.
func TestReloadWithoutTheConnectionClosesWhatWasToBeReplaced(t *testing.T) {
	for _, rekeyed := range []bool{false, true} {
		p := newPair(t, nil)
		p.up()
		p.reload(p.a, func(c *Conn, s *Secret) { s.Key = []byte("another secret of the two") })
		if rekeyed {
			p.b.m.Command(p.now, Command{Kind: CmdRekey, Conn: "link"})
			p.run()
		}
		if p.ikes(p.a) == 0 {
			t.Fatal("the old IKE SA has gone before there is a new one")
		}
		if err := p.a.m.Configure(p.now, Config{}); err != nil {
			t.Fatal(err)
		}
		p.run()
		p.pass(2 * linger)
		p.same(0)
		if n := p.ikes(p.a) + p.ikes(p.b); n != 0 {
			t.Errorf("rekeyed %v: %d IKE SAs of a connection that is configured no more are still there", rekeyed, n)
		}
	}
}
