//go:build linux

package e2e

import "testing"

// Two gateways that are told nothing about algorithms have to come to terms, whatever
// their processors are. POSTERN_BIN with a program built with -tags purego is one that
// knows of no AES instructions.
func TestDefaultProposals(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		ca, cb := pairSpecs(false, false)
		both(&ca, &cb, func(c *conn) {
			c.ike = "default"
			c.children[0].esp = "default"
		})
		a, b := carries(t, s, p, ca, cb, false, "", "")
		t.Logf("%s answers %s: %s, %s", p.b, p.a, established(t, a).suite(), installed(t, a, "net").suite())
		b.stop()
		a.stop()
	})
}
