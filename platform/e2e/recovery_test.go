//go:build linux

package e2e

import (
	"testing"
	"time"
)

// recoveryLimit is how long it may take from the restart of a killed daemon until packets
// pass again.
const recoveryLimit = 3 * time.Second

// A daemon is killed and started again while packets want to go through the tunnel. The
// liveness checks are a minute apart, so they are not what helps.
func TestRecoveryFromARestart(t *testing.T) {
	t.Parallel()
	p := pair{"postern", "postern"}
	for _, c := range []struct {
		name  string
		who   byte
		setup func(a, b *spec)
		said  string // by the daemon that was left
	}{
		{"the responder, with quick crash detection", 'b', func(a, b *spec) {}, "restarted"},
		{"the responder, with quick crash detection and resumption", 'b', func(a, b *spec) {
			both(a, b, func(n *conn) { n.resumption = true })
		}, "resumed by a ticket"},
		{"the initiator, with quick crash detection", 'a', func(a, b *spec) {}, "restarted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			both(&ca, &cb, func(n *conn) {
				n.dpdDelay = time.Minute
				n.children[0].start = "trap"
			})
			c.setup(&ca, &cb)
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			lan, to, killed, left := s.lanA, hostB4, b, a
			if c.who == 'a' {
				lan, to, killed, left = s.lanB, hostA4, a, b
			}
			cap := s.capture()
			ping := s.startPinger(lan, to, 100)
			killed.kill()
			time.Sleep(time.Second)
			begin := time.Now()
			killed.(*postern).launch()
			back := eventually(10*time.Second, func() bool { return s.pings(lan, to, 1, briefly).lost() == 0 })
			took := time.Since(begin)
			ping.stop()
			t.Logf("recovery: %s: packets pass %v after the start of the daemon that was killed", c.name, took.Round(time.Millisecond))
			if !back || took > recoveryLimit {
				t.Errorf("packets pass again after %v, want at most %v%s", took, recoveryLimit, logs(a, b))
			}
			if len(matching(left.log(), "site", c.said)) == 0 {
				t.Errorf("the log of the daemon that was left does not say %q%s", c.said, logs(left))
			}
			s.mustPing(t, false, a, b)
			cap.stop().noClear(t, []byte(mark))
		})
	}
}
