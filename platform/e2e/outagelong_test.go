//go:build linux

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"
)

// outageSpan is how long the WAN is away: 60 s with POSTERN_E2E_LONG in the environment.
func outageSpan() time.Duration {
	if os.Getenv("POSTERN_E2E_LONG") != "" {
		return 60 * time.Second
	}
	return 20 * time.Second
}

// The WAN is away for long under a ping, in ways that gwa sees and in ways that it does not,
// and comes back. How long it takes from then on until echoes are answered and no more get
// lost depends on whether the SAs have outlived the outage: with the default retransmissions
// they do for 165 s. Where they have not, the tunnel has to wait for the initiator's next
// message: the packets that wait make it come every 2 s, whatever the retransmissions are.
func TestLongOutageOfTheWAN(t *testing.T) {
	t.Parallel()
	silent := func(s *site, on bool) { s.cut(on) }
	// With a repetition every 2 s the SAs are lost after half the outage and a little more, and the first
	// attempt after that goes on until it has ended.
	limited := func(a, b *spec) {
		tries := int(outageSpan().Seconds()) / 4
		a.retryTries, b.retryTries = tries, tries
	}
	few := func(a, b *spec) { a.retryTries, b.retryTries = 1, 1 }
	for _, c := range []struct {
		name  string
		down  func(s *site, on bool)
		setup func(a, b *spec)
		limit string // retransmit_limit of both
		lost  bool   // the SAs do not outlive it
		cold  bool   // gwa's daemon starts when the WAN is away already
	}{
		{"link down, route gone", func(s *site, on bool) {
			if on {
				s.ip(s.gwA, "link set wan0 down\n")
			} else {
				s.ip(s.gwA, "link set wan0 up\nroute add default via 198.51.100.254\n")
			}
		}, nil, "", false, false},
		{"carrier lost", func(s *site, on bool) {
			s.ip(s.wan, "link set a0 "+map[bool]string{true: "down", false: "up"}[on]+"\n")
		}, nil, "", false, false},
		{"silent, default retransmissions", silent, nil, "", false, false},
		{"silent, SAs lost, retransmit_limit 2s", silent, limited, "2s", true, false},
		{"silent, SAs lost, attempts of few retransmissions without a limit", silent, few, "", true, false},
		{"silent, started meanwhile, default retransmissions", silent, nil, "", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			both(&ca, &cb, func(n *conn) { n.dpdDelay = time.Second })
			ca.conns[0].children[0].start = "start"
			if c.setup != nil {
				c.setup(&ca, &cb)
			}
			b, a := newPostern(s, 'b', cb), newPostern(s, 'a', ca)
			for d, conf := range map[*postern]spec{a: ca, b: cb} {
				text := d.toml(conf)
				if c.limit != "" {
					text = strings.Replace(text, "\ndpd_delay", "\nretransmit_limit = \""+c.limit+"\"\ndpd_delay", 1)
				}
				d.write(text)
			}
			b.start()
			var first childSA
			if !c.cold {
				a.start()
				first = installed(t, a, "net")
			}
			rec := s.capture()
			if c.cold {
				c.down(s, true) // and again below, which changes nothing
				a.start()
			}
			ping := s.startPinger(s.lanA, hostB4, 100)
			if !c.cold && !eventually(5*time.Second, func() bool { return ping.answers() > 20 }) {
				t.Fatalf("no answers before the outage%s", logs(a, b))
			}
			c.down(s, true)
			time.Sleep(outageSpan())
			had := ping.answers()
			time.Sleep(500 * time.Millisecond)
			if now := ping.answers(); now != had {
				t.Errorf("%d echo requests were answered during the outage: there is none", now-had)
			}
			c.down(s, false)
			at := time.Now()
			back := eventually(90*time.Second, func() bool { return ping.answers() > had })
			answer := time.Since(at)
			time.Sleep(recovery)
			r := ping.stop()
			lost, last := ping.lastLoss(at)
			took := max(answer, last)
			t.Logf("recovery: WAN away for %v, %s: %v (first answer after %v, last loss after %v, %d of %d echoes lost)", outageSpan(), c.name,
				took.Round(time.Millisecond), answer.Round(time.Millisecond), max(0, last).Round(time.Millisecond), lost, r.sent)
			if !back || took > recovery {
				t.Errorf("the tunnel took %v to work again, want at most %v%s", took, recovery, logs(a, b))
			}
			if now := installed(t, a, "net"); (now.spiIn != first.spiIn) != c.lost {
				t.Errorf("the CHILD SA was replaced: %v, want %v%s", now.spiIn != first.spiIn, c.lost, logs(a, b))
			}
			s.mustPing(t, false, a, b)
			rec.stop().noClear(t, []byte(mark))
		})
	}
}
