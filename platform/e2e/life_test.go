//go:build linux

package e2e

import (
	"testing"
	"time"
)

// postern changes the keys because enough packets or octets have passed.
func TestPosternRekeysByVolume(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "postern"}, {"postern", "charon"}, {"charon", "postern"}} {
		for name, limit := range map[string]func(*child){
			"packets": func(c *child) { c.rekeyPackets = 200 },
			"octets":  func(c *child) { c.rekeyBytes = 20_000 },
		} {
			t.Run(p.String()+"/"+name, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				if p.a == "postern" {
					limit(&ca.conns[0].children[0])
				} else {
					limit(&cb.conns[0].children[0])
				}
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				d := a
				if p.a != "postern" {
					d = b
				}
				underPing(t, s, a, b, func() {
					eventually(30*time.Second, func() bool { return d.(*postern).counters()["out_packets"] >= 600 })
				})
				if n := len(matching(d.log(), "CHILD SA rekeyed")); n < 2 {
					t.Errorf("postern has rekeyed %d times in 600 packets each way, want once in 200%s", n, logs(a, b))
				}
			})
		}
	}
}

// count returns how many IKE SAs a daemon has.
func count(d daemon) int {
	list, err := listSAs(d)
	if err != nil {
		return -1
	}
	return len(list)
}

// The peers authenticate anew, make before break, whoever wants it: not one echo is lost.
func TestReauthentication(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "postern"}, {"postern", "charon"}, {"charon", "postern"}} {
		for _, by := range []string{"initiator", "responder"} {
			t.Run(p.String()+"/"+by, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				ca.retryTimeout, cb.retryTimeout = time.Second, time.Second
				ca.makeBeforeBreak, cb.makeBeforeBreak = true, true
				life := 4 * time.Second
				if by == "initiator" {
					ca.conns[0].reauthTime = life
				} else {
					// postern takes a lifetime of less than 10 s for one of 10, of which it waits half at least.
					over := time.Second
					life = 8 * time.Second
					if p.a == "charon" {
						over *= 2 // it ends the IKE SA when that time is over, whatever has come of the new one
					}
					cb.conns[0].reauthTime = life
					ca.conns[0].overTime = over
				}
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				first := established(t, b)
				m := s.meter(t, a, b)
				if p.a == "charon" || p.b == "charon" && by == "responder" {
					// Who authenticates anew deletes, and charon drops what is on its way to it through
					// the old CHILD SA as it does: at each of the two reauthentications one
					// echo may be just there.
					m.dropped = 2
				}
				ping := s.startPinger(s.lanA, hostB4, 100)
				time.Sleep(life * 5 / 2)
				m.noneLost(ping.stop())
				if !eventually(10*time.Second, func() bool { return count(a) == 1 && count(b) == 1 }) {
					t.Errorf("more than one IKE SA stays%s", logs(a, b))
				}
				if n := atoi(established(t, b).unique) - atoi(first.unique); n < 2 {
					t.Errorf("the IKE SA was replaced %d times in two and a half times its reauth_time of %v%s", n, life, logs(a, b))
				}
			})
		}
	}
}

// The first CHILD SA is made after the IKE SA (RFC 6023), with strongSwan at either end; where
// one side insists and the other refuses, there is none.
func TestChildless(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "postern"}, {"postern", "charon"}, {"charon", "postern"}} {
		for _, c := range []struct {
			a, b            string
			works, together bool // the CHILD SA comes with IKE_AUTH
		}{
			{"force", "allow", true, false}, {"prefer", "force", true, false}, {"prefer", "never", true, true}, {"force", "never", false, false},
		} {
			if p.a == "charon" && c.a == "prefer" {
				continue // strongSwan 5.9.8 does not know it
			}
			t.Run(p.String()+"/"+c.a+"-"+c.b, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				both(&ca, &cb, func(c *conn) { c.keyingTries = 1 })
				ca.conns[0].childless, cb.conns[0].childless = c.a, c.b
				w := s.capture()
				a, b := startPair(s, p, ca, cb)
				err := a.initiate("net")
				if !c.works {
					if err == nil {
						t.Errorf("the tunnel is up though one side forces what the other refuses%s", logs(a, b))
					}
					return
				}
				if err != nil {
					t.Fatalf("%v%s", err, logs(a, b))
				}
				s.mustPing(t, false, a, b)
				if n := len(w.stop().ike("a0", exChild)); (n == 0) != c.together {
					t.Errorf("%d CREATE_CHILD_SA requests, want the CHILD SA with IKE_AUTH %v%s", n, c.together, logs(a, b))
				}
			})
		}
	}
}

// A tunnel that nobody uses is closed, and the next packet brings it back.
func TestInactivity(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].inactivity = 3 * time.Second
		ca.conns[0].children[0].start = "trap"
		a, b := startPair(s, p, ca, cb)
		for range 2 {
			if !eventually(10*time.Second, func() bool { return s.pings(s.lanA, hostB4, 1, briefly).lost() == 0 }) {
				t.Fatalf("no packet brings the tunnel up%s", logs(a, b))
			}
			for range 5 { // longer than the inactivity
				time.Sleep(time.Second)
				if r := s.pings(s.lanA, hostB4, 1, briefly); r.lost() > 0 {
					t.Errorf("the tunnel was closed though it was in use: %v%s", r, logs(a, b))
				}
			}
			established(t, a)
			for _, d := range []daemon{a, b} {
				if !gone(d, 10*time.Second) {
					t.Errorf("%s still has an IKE SA after ten idle seconds with an inactivity of three%s", d.kind(), logs(a, b))
				}
			}
		}
	})
}
