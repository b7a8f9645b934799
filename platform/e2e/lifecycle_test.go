//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Each side closes the CHILD SA alone, then the whole IKE SA; the other side follows.
func TestDelete(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"initiator", "responder"} {
		t.Run("by the "+side, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				c := s.capture()
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				closer, other := a, b
				if side == "responder" {
					closer, other = b, a
				}
				if err := closer.terminate("net"); err != nil {
					t.Errorf("close the CHILD SA: %v%s", err, logs(a, b))
				}
				if !eventually(5*time.Second, func() bool { return len(children(other, "net")) == 0 }) {
					t.Errorf("%s still has the CHILD SA that %s closed%s", other.kind(), closer.kind(), logs(a, b))
				}
				established(t, a)
				established(t, b)
				// The IKE SA is there for another one.
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				if err := closer.terminate(""); err != nil {
					t.Errorf("close the IKE SA: %v%s", err, logs(a, b))
				}
				for _, d := range []daemon{a, b} {
					if !gone(d, 5*time.Second) {
						t.Errorf("%s still has an IKE SA%s", d.kind(), logs(a, b))
					}
				}
				w := c.stop()
				w.nothingInClear(t, []byte(mark))
				if n := len(w.ike("a0", exInit)); n != 1 {
					t.Errorf("%d IKE_SA_INIT requests, want 1: the second CHILD SA belongs onto the first IKE SA", n)
				}
			})
		})
	}
}

// Idle peers ask each other whether they live, and answer: strongSwan after each second of
// silence, postern after four.
func TestLivenessOfAnIdlePeer(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		ca, cb := pairSpecs(false, false)
		both(&ca, &cb, func(c *conn) { c.dpdDelay = time.Second })
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		time.Sleep(9500 * time.Millisecond)
		s.mustPing(t, false, a, b)
		w := c.stop()
		for _, link := range []string{"a0", "b0"} {
			asked, answered := 0, 0
			for _, k := range w.ike(link, exInfo) {
				if k.ike.response {
					answered++
				} else {
					asked++
				}
			}
			if asked+answered < 2 {
				t.Errorf("%d liveness requests and %d answers came from %s in nine idle seconds with dpd_delay 1 s",
					asked, answered, link)
			}
			if asked > 14 {
				t.Errorf("%d liveness requests came from %s in nine seconds with dpd_delay 1 s", asked, link)
			}
		}
	})
}

// dead is how quickly the tests want a silent peer to be found: asked after a second, and
// given up after three unanswered requests.
func dead(c *spec) {
	c.conns[0].dpdDelay = time.Second
	c.retryTimeout, c.retryTries, c.retryBase = time.Second, 2, 1
}

// The peer stops answering without a word. The SA is given up, one line says so, and where
// that is wanted the tunnel comes back with the peer.
func TestDeadPeerIsFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		watcher, peer string
		action        string
	}{
		{"postern", "charon", "clear"}, {"postern", "charon", "restart"},
		{"postern", "postern", "clear"}, {"postern", "postern", "restart"},
		{"charon", "postern", "clear"}, {"charon", "postern", "restart"},
	} {
		t.Run(c.watcher+" watches "+c.peer+"/"+c.action, func(t *testing.T) {
			p := pair{c.watcher, c.peer}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			dead(&ca)
			ca.conns[0].children[0].dpdAction = c.action
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			cap := s.capture()
			b.freeze()
			if !eventually(15*time.Second, func() bool {
				for _, ch := range children(a, "net") {
					if ch.state == "INSTALLED" {
						return false
					}
				}
				return true
			}) {
				t.Errorf("15 s after the peer went silent %s still has the SA%s", a.kind(), logs(a))
			}
			if a.kind() == "postern" {
				if c.action == "clear" && !gone(a, 5*time.Second) {
					t.Errorf("postern keeps an IKE SA of a dead peer%s", logs(a))
				}
				if n := len(matching(a.log(), "site", "dead")) + len(matching(a.log(), "site", "no answer")) + len(matching(a.log(), "site", "not answer")); n == 0 {
					t.Errorf("postern's log does not say that the peer is dead%s", logs(a))
				}
			}
			b.kill()
			b = start(s, p.b, 'b', cb)
			if c.action == "restart" {
				if !eventually(25*time.Second, func() bool {
					return s.pings(s.lanA, hostB4, 1, briefly).lost() == 0
				}) {
					t.Errorf("the tunnel did not come back 25 s after the peer did%s", logs(a, b))
				}
			}
			w := cap.stop()
			if c.watcher == "postern" {
				w.noClear(t, []byte(mark))
			} else { // what strongSwan does with the packets of a dead peer is its own affair
				w.noClearFrom(t, 'b')
			}
		})
	}
}

// The WAN is down for a while: postern brings the tunnel back by itself, with either peer.
func TestTunnelComesBackAfterAnOutage(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		dead(&ca)
		dead(&cb)
		ca.conns[0].children[0].start = "start"
		ca.conns[0].children[0].dpdAction = "restart"
		a, b := startPair(s, p, ca, cb)
		if !eventually(10*time.Second, func() bool { return len(children(a, "net")) == 1 }) {
			t.Fatalf("no tunnel%s", logs(a, b))
		}
		s.mustPing(t, false, a, b)
		c := s.capture()
		s.cut(true)
		if !eventually(20*time.Second, func() bool { return len(children(a, "net")) == 0 && len(children(b, "net")) == 0 }) {
			t.Errorf("20 s into the outage the SAs are still there%s", logs(a, b))
		}
		s.pings(s.lanA, hostB4, 3, briefly) // must not go in clear meanwhile
		s.cut(false)
		if !eventually(20*time.Second, func() bool {
			return s.pings(s.lanA, hostB4, 1, briefly).lost() == 0
		}) {
			t.Errorf("the tunnel did not come back 20 s after the WAN did%s", logs(a, b))
		}
		c.stop().noClear(t, []byte(mark))
	})
}

// The WAN loses every fifth packet: retransmissions get the negotiation through.
func TestNegotiationOverALossyWAN(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		// Without help of chance: every third message is lost, in either direction.
		s.nft(s.wan, `
table inet lossy {
  chain forward {
    type filter hook forward priority -10;
    udp dport { 500, 4500 } numgen inc mod 3 == 0 drop
  }
}
`)
		ca, cb := pairSpecs(false, false)
		for _, c := range []*spec{&ca, &cb} {
			c.retryTimeout, c.retryTries, c.retryBase = time.Second, 10, 1
		}
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		s.nft(s.wan, "delete table inet lossy\n")
		s.mustPing(t, false, a, b)
		if len(established(t, a).children) != 1 || len(established(t, b).children) != 1 {
			t.Errorf("more than one CHILD SA came of it")
		}
	})
}

// Both sides start the connection at the same time.
func TestBothInitiateAtOnce(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		both(&ca, &cb, func(c *conn) { c.children[0].start = "start" })
		a, b := startPair(s, p, ca, cb)
		if !eventually(10*time.Second, func() bool { return len(children(a, "net")) > 0 && len(children(b, "net")) > 0 }) {
			t.Fatalf("no tunnel%s", logs(a, b))
		}
		// Whoever was first found nobody, and repeats its request after four seconds; what
		// is then there twice may be closed again. After that nothing changes any more.
		spis := func() (list []string) {
			for _, c := range children(a, "net") {
				list = append(list, c.spiIn)
			}
			return list
		}
		time.Sleep(5 * time.Second)
		last, since := spis(), time.Now()
		if !eventually(20*time.Second, func() bool {
			if now := spis(); !slices.Equal(now, last) {
				last, since = now, time.Now()
			}
			return time.Since(since) > 5*time.Second
		}) || len(last) < 1 || len(last) > 2 {
			t.Errorf("the tunnel does not settle: CHILD SAs %v since %v%s", last, time.Since(since), logs(a, b))
		}
		s.mustPing(t, false, a, b)
	})
}

// The two sides do not have the same key: the initiator is told AUTHENTICATION_FAILED, and
// postern, on whichever side, says so in one line that names the connection.
func TestWrongKey(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		ca, cb := pairSpecs(false, false)
		both(&ca, &cb, func(c *conn) { c.keyingTries = 1 })
		ca.conns[0].psk = "not-the-same-key-at-all"
		a, b := startPair(s, p, ca, cb)
		err := a.initiate("net")
		if err == nil {
			t.Fatalf("%s says that the tunnel is up with the wrong key", a.kind())
		}
		for _, d := range []daemon{a, b} {
			if n := len(children(d, "net")); n != 0 {
				t.Errorf("%s has %d CHILD SAs of a peer that it could not authenticate", d.kind(), n)
			}
			if d.kind() != "postern" {
				continue
			}
			lines := matching(d.log(), "AUTHENTICATION_FAILED")
			if len(lines) != 1 {
				t.Errorf("postern's log has %d lines with AUTHENTICATION_FAILED, want one that says it all:%s", len(lines), logs(d))
			} else if !strings.Contains(lines[0], "site") && !strings.Contains(lines[0], "a.example") {
				t.Errorf("the line names neither the connection nor the peer: %s", lines[0])
			}
			for _, secret := range []string{ca.conns[0].psk, cb.conns[0].psk} {
				if strings.Contains(d.log(), secret) {
					t.Errorf("postern's log holds the key")
				}
			}
		}
		if a.kind() == "postern" && !strings.Contains(err.Error(), "AUTHENTICATION_FAILED") {
			t.Errorf("postern up does not say what is wrong: %v", err)
		}
		if a.kind() == "charon" && !strings.Contains(a.log(), "AUTHENTICATION_FAILED") {
			t.Errorf("strongSwan was not told AUTHENTICATION_FAILED:%s", logs(a))
		}
	})
}

// The peer never answers: a bounded number of requests, and a clear line. Where the
// connection is to be tried for ever, attempts go on at a measured pace.
func TestPeerThatNeverAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		cut  bool
	}{
		{"packets are lost", true},
		{"nobody listens", false}, // the peer's kernel answers with ICMP errors
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			if c.cut {
				s.cut(true)
			}
			ca, _ := pairSpecs(false, false)
			ca.retryTimeout, ca.retryTries, ca.retryBase = time.Second, 3, 1
			ca.conns[0].keyingTries = 1
			cap := s.capture()
			a := startPostern(s, 'a', ca)
			begin := time.Now()
			err := a.initiate("net")
			took := time.Since(begin)
			if err == nil || exitOf(err) != 1 {
				t.Errorf("postern up against a silent peer ends with %v, want exit status 1", err)
			}
			if took < 3*time.Second || took > 8*time.Second {
				t.Errorf("postern up gave up after %v, want about 4 s (four requests, a second apart)", took)
			}
			w := cap.stop()
			if n := len(w.ike("a0", exInit)); n != 4 {
				t.Errorf("%d IKE_SA_INIT requests went out, want one and three retransmissions", n)
			}
			if !a.alive() {
				t.Errorf("postern has ended%s", logs(a))
			}
			said := len(matching(a.log(), "site", "answer"))
			if said == 0 || len(strings.Split(a.log(), "\n")) > 25 {
				t.Errorf("postern's log has %d lines that say that the peer does not answer%s", said, logs(a))
			}
			if err != nil && !strings.Contains(err.Error(), "answer") {
				t.Errorf("postern up does not say that the peer does not answer: %v", err)
			}
			if !gone(a, time.Second) {
				t.Errorf("an IKE SA is left of it")
			}
		})
	}
}

// A changed configuration is taken over while the tunnel carries traffic: what did not
// change goes on, what is new can be used, what is gone is closed.
func TestReloadKeepsTheTunnel(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	before := installed(t, a, "net")
	m := s.meter(t, a, b)
	ping := s.startPinger(s.lanA, hostB4, 100)
	time.Sleep(300 * time.Millisecond)
	more := func(c spec, local, remote string) spec {
		extra := c.conns[0]
		extra.name, extra.localID, extra.remoteID = "extra", "extra."+extra.localID, "extra."+extra.remoteID
		extra.children = []child{{name: "second", localTS: []string{local}, remoteTS: []string{remote}, esp: usualESP, start: "none"}}
		c.conns = append(slices.Clone(c.conns), extra)
		return c
	}
	reload := func(d daemon, c spec) {
		t.Helper()
		d.(*postern).write(d.(*postern).toml(c))
		if out, err := d.(*postern).cli("reload"); err != nil {
			t.Errorf("postern reload: %v\n%s%s", err, out, logs(d))
		}
	}
	reload(a, more(ca, lanA4, lanC4))
	reload(b, more(cb, lanC4, lanA4))
	if out, err := a.(*postern).cli("up", "extra", "second"); err != nil {
		t.Errorf("the connection that came with the reload: %v\n%s%s", err, out, logs(a, b))
	}
	if r := s.pings(s.lanA, hostC4, 5); r.lost() != 0 {
		t.Errorf("through the connection that came with the reload, %v%s", r, logs(a, b))
	}
	time.Sleep(300 * time.Millisecond)
	m.noneLost(ping.stop())
	if now := children(a, "net"); len(now) != 1 || now[0].spiIn != before.spiIn {
		t.Errorf("the reload has replaced a CHILD SA whose connection did not change: %+v, now %+v", before, now)
	}
	// Bad news changes nothing.
	a.(*postern).write("[daemon]\nno_such_key = 1\n")
	if out, err := a.(*postern).cli("reload"); err == nil || !strings.Contains(out, "no_such_key") {
		t.Errorf("a reload of a broken configuration ends with %v and says: %s", err, out)
	}
	s.mustPing(t, false, a, b)
	// The second connection is taken out again.
	reload(a, ca)
	if !eventually(5*time.Second, func() bool { return len(children(a, "second")) == 0 && len(children(b, "second")) == 0 }) {
		t.Errorf("the CHILD SA is still there after its configuration has gone%s", logs(a, b))
	}
	s.mustPing(t, false, a, b)
}
