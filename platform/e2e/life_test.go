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
				underPing(t, s, a, b, func() { time.Sleep(6 * time.Second) })
				d := a
				if p.a != "postern" {
					d = b
				}
				if n := len(matching(d.log(), "CHILD SA rekeyed")); n < 2 {
					t.Errorf("postern has rekeyed %d times in 600 packets each way, want once in 200%s", n, logs(a, b))
				}
			})
		}
	}
}
