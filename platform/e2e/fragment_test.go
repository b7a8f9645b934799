//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"
)

// What does not fit into fragment_size octets of IP travels in fragments of that size (RFC
// 7383): IKE_AUTH in both directions, and the exchange by which the responder changes the
// child's keys. With that many selectors all of them are large.
func TestLargeMessagesTravelInFragments(t *testing.T) {
	t.Parallel()
	const size = 576
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}, {"postern", "postern"}} {
		for _, c := range []struct {
			name   string
			ike    string
			outer6 bool
			encap  bool
		}{
			{"aead", usualIKE, false, false},
			{"cbc-encap", "aes256-sha256-x25519", false, true},
			{"aead6", usualIKE, true, false},
		} {
			if !p.has("charon") && c.name != "aead" || p.a == "charon" && c.outer6 {
				continue
			}
			t.Run(p.String()+"/"+c.name, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb := pairSpecs(c.outer6, false)
				both(&ca, &cb, func(x *conn) { x.fragmentSize, x.ike, x.encap = size, c.ike, c.encap })
				right := []string{lanB4 + "[icmp]"}
				for i := range 31 {
					right = append(right, fmt.Sprintf("%s[udp/%d]", lanB4, 2000+i))
				}
				ca.conns[0].children[0].remoteTS, cb.conns[0].children[0].localTS = right, right
				rec := s.capture()
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				before := installed(t, b, "net")
				if err := rekeyNow(b, "net"); err != nil {
					t.Fatalf("%s does not rekey: %v%s", b.kind(), err, logs(a, b))
				}
				settles(t, a, b)
				if now := installed(t, b, "net"); now.spiIn == before.spiIn {
					t.Errorf("%s: the CHILD SA is still the old one%s", b.kind(), logs(a, b))
				}
				s.mustPing(t, false, a, b)
				w := rec.stop()
				for _, link := range []string{"a0", "b0"} {
					for exchange, name := range map[uint8]string{exAuth: "IKE_AUTH", exChild: "CREATE_CHILD_SA"} {
						list := w.ike(link, exchange)
						whole := slices.IndexFunc(list, func(p packet) bool { return p.ike.parts < 2 })
						if len(list) == 0 || whole >= 0 {
							t.Errorf("%s on %s: want nothing but fragments, got %d datagrams, and number %d is none", name, link, len(list), whole)
						}
						for _, x := range list {
							if n := x.wire - 14; n > size {
								t.Errorf("%s on %s: a fragment of %d octets, the size is %d", name, link, n, size)
							}
						}
					}
				}
				tsharkAgrees(t, s, "a0")
			})
		}
	}
}

// rekeyNow has a daemon rekey a child.
func rekeyNow(d daemon, child string) error {
	if c, ok := d.(*charon); ok {
		return c.rekey(child)
	}
	_, err := command("swanctl", "--rekey", "--child", child, "--uri", d.control())
	return err
}
