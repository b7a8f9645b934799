//go:build linux

package e2e

import (
	"testing"
	"time"
)

// gwB4Other is another address of the gateway on side b: the same daemon, but for the
// client another gateway.
const gwB4Other = "203.0.113.2"

// A gateway sends its client to another address, in its first answer and in a session, with
// strongSwan on either side.
func TestRedirect(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		p       pair
		session bool // not in the first answer
	}{
		{"in a session", pair{"postern", "charon"}, true},
		{"in a session", pair{"charon", "postern"}, true},
		{"in the first answer", pair{"charon", "postern"}, false},
		{"in the first answer", pair{"postern", "postern"}, false},
	} {
		t.Run(c.p.String()+" "+c.name, func(t *testing.T) {
			ready(t, c.p)
			s := newSite(t)
			s.ip(s.gwB, "addr add "+gwB4Other+"/24 dev wan0\n")
			ca, cb := pairSpecs(false, false)
			cb.conns[0].local += "," + gwB4Other
			if !c.session {
				cb.conns[0].redirectTo = gwB4Other
			}
			a, b := startPair(s, c.p, ca, cb)
			cap := s.capture()
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			if c.session {
				m := s.meter(t, a, b)
				ping := s.startPinger(s.lanA, hostB4, 50)
				var err error
				switch d := b.(type) {
				case *charon:
					err = d.do("--redirect", "--ike", "site", "--gateway", gwB4Other)
				case *postern:
					_, err = d.cli("redirect", "site", gwB4Other)
				}
				if err != nil {
					t.Fatalf("redirect: %v%s", err, logs(a, b))
				}
				defer func() {
					if r := ping.stop(); c.p.a == "postern" {
						m.noneLost(r)
					} else {
						m.c.stop() // charon as client breaks before it makes
					}
				}()
			}
			at := ""
			if !eventually(5*time.Second, func() bool {
				list, err := listSAs(a)
				if err == nil && len(list) == 1 {
					at = list[0].remoteHost
				}
				other, err := listSAs(b)
				return at == gwB4Other && err == nil && len(other) == 1
			}) {
				t.Errorf("%s, the client, has its IKE SA with %q, want %s%s", a.kind(), at, gwB4Other, logs(a, b))
			}
			s.mustPing(t, false, a, b)
			cap.stop().noClear(t, []byte(mark))
		})
	}
}
