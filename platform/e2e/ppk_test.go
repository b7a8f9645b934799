//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ppkSpec is what a connection has of post-quantum pre-shared keys (RFC 8784).
type ppkSpec struct {
	id       string            // to use; "": none
	required bool              // no tunnel without it
	keys     map[string]string // by id; both daemons read these as texts
}

func (p *ppkSpec) swanctl() string {
	var s string
	if p.id != "" && p.id != "%any" { // charon's responder takes any that it has
		s = fmt.Sprintf("    ppk_id = %s\n", p.id)
	}
	if p.required {
		s += "    ppk_required = yes\n"
	}
	return s
}

func (p *ppkSpec) swanctlSecrets() string {
	var b strings.Builder
	for id, key := range p.keys {
		fmt.Fprintf(&b, "  ppk-%s { id = %s\n secret = %q }\n", id, id, key)
	}
	return b.String()
}

func (p *ppkSpec) toml() string {
	var s string
	if p.id != "" {
		s = fmt.Sprintf("ppk_id = %q\n", p.id)
	}
	if p.required {
		s += "ppk_required = true\n"
	}
	return s
}

func (p *ppkSpec) tomlSections() string {
	var b strings.Builder
	for id, key := range p.keys {
		fmt.Fprintf(&b, "[ppks.%s]\nsecret = %q\n", id, key)
	}
	return b.String()
}

const (
	ppkKey   = "0s1WeVWxxLuyrUIs5ZtxUDrJtGuf9DI9lLlkVNmyPJfjA="
	ppkOther = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
)

// TestPPK negotiates with one on both sides: keys that both have, that only one has, that
// differ, and names that the other side does not know, optional and required.
func TestPPK(t *testing.T) {
	t.Parallel()
	one, other := map[string]string{"one": ppkKey}, map[string]string{"one": ppkOther}
	two := map[string]string{"two": ppkKey}
	for _, c := range []struct {
		name string
		a, b ppkSpec
		up   bool
		used bool
	}{
		{"required", ppkSpec{"one", true, one}, ppkSpec{"one", true, one}, true, true},
		{"one of any", ppkSpec{"one", false, one}, ppkSpec{"%any", false, map[string]string{"one": ppkKey, "two": ppkOther}}, true, true},
		{"the responder has none", ppkSpec{"one", false, one}, ppkSpec{}, true, false},
		{"the initiator has none", ppkSpec{}, ppkSpec{"one", false, one}, true, false},
		{"the responder requires one", ppkSpec{}, ppkSpec{"one", true, one}, false, false},
		{"another id", ppkSpec{"one", false, one}, ppkSpec{"%any", false, two}, true, false}, // charon with "two" instead refuses others
		{"another id, required by the responder", ppkSpec{"one", false, one}, ppkSpec{"two", true, two}, false, false},
		{"another key", ppkSpec{"one", false, one}, ppkSpec{"one", false, other}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				both(&ca, &cb, func(c *conn) { c.keyingTries = 1 })
				ca.conns[0].ppk, cb.conns[0].ppk = c.a, c.b
				a, b := startPair(s, p, ca, cb)
				if !c.up {
					if err := a.initiate("net"); err == nil {
						t.Fatalf("the tunnel came up%s", logs(a, b))
					}
					for _, d := range []daemon{a, b} {
						if !gone(d, 20*time.Second) {
							t.Errorf("%s has an IKE SA%s", d.kind(), logs(a, b))
						}
					}
					return
				}
				mustInitiate(t, "net", a, b)
				for _, d := range []daemon{a, b} {
					if got := established(t, d).ppk; got != c.used {
						t.Errorf("%s: a PPK is in the keys: %v, want %v%s", d.kind(), got, c.used, logs(a, b))
					}
					wanted := c.a.id != "" && d == a || c.b.id != "" && d == b
					said := len(matching(d.log(), "post-quantum")) > 0
					if d.kind() == "postern" && said != (wanted && !c.used) {
						t.Errorf("the log says that no PPK is in use: %v%s", said, logs(d))
					}
				}
				s.mustPing(t, false, a, b)
				if !c.used {
					return
				}
				// The next IKE SA has it by the SK_d of this one, and so has its CHILD SA.
				first := established(t, a).unique
				for _, what := range [][]string{{"--ike", "site"}, {"--child", "net"}} {
					out, err := command("swanctl", append([]string{"--rekey", "--uri", a.control()}, what...)...)
					if err != nil {
						t.Fatalf("swanctl --rekey %v: %v\n%s%s", what, err, out, logs(a, b))
					}
					if !eventually(20*time.Second, func() bool { sas, _ := listSAs(a); return len(sas) == 1 && sas[0].unique != first }) {
						t.Fatalf("the IKE SA was not rekeyed%s", logs(a, b))
					}
				}
				s.mustPing(t, false, a, b)
			})
		})
	}
}
