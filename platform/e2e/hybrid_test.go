//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The exchanges of additional key exchanges (RFC 9242, RFC 9370).
const exIntermediate, exFollowup = 43, 44

// dropFragments has the network between the gateways drop what IP has fragmented.
func (s *site) dropFragments() {
	s.t.Helper()
	s.nft(s.wan, `
table inet fragments {
  chain forward {
    type filter hook forward priority -450;
    ip frag-off & 0x3fff != 0 drop
    exthdr frag exists drop
  }
}
`)
}

// mustSay checks that both ways of asking a postern for its SAs tell of the methods.
func mustSay(t *testing.T, d daemon, words ...string) {
	t.Helper()
	raw, err := command("swanctl", "--list-sas", "--raw", "--uri", d.control())
	if err != nil {
		t.Fatal(err)
	}
	status, err := d.(*postern).cli("status")
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range words {
		if key := fmt.Sprintf("ke%d-alg=%s", i+1, w); !strings.Contains(raw, key) {
			t.Errorf("list-sas does not say %s: %s", key, raw)
		}
		if word := fmt.Sprintf("KE%d_%s", i+1, w); !strings.Contains(status, word) {
			t.Errorf("postern status does not say %s:\n%s", word, status)
		}
	}
}

// Two posterns that are told nothing about algorithms add ML-KEM to their key exchange, and its
// large messages pass a network that drops IP fragments, whatever size they are cut to.
func TestDefaultIsPostQuantum(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 576} {
		for _, outer6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("size %d, IPv6 %v", size, outer6), func(t *testing.T) {
				p := pair{"postern", "postern"}
				ready(t, p)
				s := newSite(t)
				s.dropFragments()
				ca, cb := pairSpecs(outer6, false)
				both(&ca, &cb, func(c *conn) { c.ike, c.fragmentSize = "default", size })
				rec := s.capture()
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				w := rec.stop()
				limit := size
				if size == 0 {
					limit = 1280
				}
				list := w.ike("a0", exIntermediate)
				if len(list) < 2 {
					t.Errorf("%d datagrams of IKE_INTERMEDIATE, want a message in two fragments or more", len(list))
				}
				for _, x := range list {
					if n := x.wire - 14; n > limit || x.ike.parts < 2 {
						t.Errorf("an IKE_INTERMEDIATE datagram of %d octets, part of %d; the size is %d", n, x.ike.parts, limit)
					}
				}
				for _, x := range w.ike("a0", exInit) {
					if n := x.wire - 14; n > 1000 {
						t.Errorf("IKE_SA_INIT, which cannot be cut, has %d octets", n)
					}
				}
				for _, d := range []daemon{a, b} {
					mustSay(t, d, "ML_KEM_768")
					if lines := matching(d.log(), "IKE SA established", "/CURVE_25519/KE1_ML_KEM_768"); len(lines) != 1 {
						t.Errorf("the log does not say once what was agreed on: %q%s", lines, logs(d))
					}
				}
				b.stop()
				a.stop()
			})
		}
	}
}

// IKE SA and CHILD SA change their keys again and again, each time with ML-KEM, and no echo is
// lost.
func TestRekeyingStaysPostQuantum(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"initiator", "responder", "both"} {
		t.Run(by, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			s.dropFragments()
			ca, cb := pairSpecs(false, false)
			both(&ca, &cb, func(c *conn) {
				c.ike = "default"
				c.children[0].esp = "aes128gcm16-x25519-ke1_mlkem768-ke2_mlkem1024"
			})
			for who, c := range map[string]*spec{"initiator": &ca, "responder": &cb} {
				if by == who || by == "both" {
					c.conns[0].rekeyTime = 5 * time.Second
					c.conns[0].children[0].rekeyTime = 3 * time.Second
				}
			}
			rec := s.capture()
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			m := s.meter(t, a, b)
			ping := s.startPinger(s.lanA, hostB4, 50)
			done := func() bool {
				la, lb := a.log(), b.log()
				return len(matching(la, "IKE SA rekeyed", "/KE1_ML_KEM_768")) > 0 && len(matching(lb, "IKE SA rekeyed", "/KE1_ML_KEM_768")) > 0 &&
					len(matching(la, "CHILD SA rekeyed", "/KE1_ML_KEM_768/KE2_ML_KEM_1024")) > 1 &&
					len(matching(lb, "CHILD SA rekeyed", "/KE1_ML_KEM_768/KE2_ML_KEM_1024")) > 1
			}
			if !eventually(20*time.Second, done) {
				t.Errorf("the keys were not changed with ML-KEM%s", logs(a, b))
			}
			m.noneLost(ping.stop())
			if n := len(rec.stop().ike("a0", exFollowup)); n < 1+2*2 {
				t.Errorf("%d datagrams of IKE_FOLLOWUP_KE, want five messages or more", n)
			}
			if !eventually(20*time.Second, func() bool {
				raw, err := command("swanctl", "--list-sas", "--raw", "--uri", a.control())
				return err == nil && strings.Contains(raw, "ke2-alg=ML_KEM_1024")
			}) {
				t.Errorf("list-sas does not say how the CHILD SA got its keys%s", logs(a))
			}
		})
	}
}

// strongSwan 5.9.8 knows nothing of it: with our default it gets the same without, in both roles,
// and who demands it gets nothing with a reason.
func TestPeerWithoutPostQuantum(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
		for _, demands := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, demanded %v", p, demands), func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				mine, its := &ca, &cb
				if p.a == "charon" {
					mine, its = &cb, &ca
				}
				mine.conns[0].ike, its.conns[0].ike = "default", "default"
				both(&ca, &cb, func(c *conn) { c.keyingTries = 1 })
				if demands {
					mine.conns[0].ike = "aes128gcm16-prfsha256-x25519-ke1_mlkem768"
				}
				a, b := startPair(s, p, ca, cb)
				if !demands {
					mustInitiate(t, "net", a, b)
					s.mustPing(t, false, a, b)
					return
				}
				if err := a.initiate("net"); err == nil {
					t.Errorf("it is up without what one side demands%s", logs(a, b))
				}
				d := a
				if p.b == "postern" {
					d = b
				}
				if len(matching(d.log(), "NO_PROPOSAL_CHOSEN")) == 0 {
					t.Errorf("the log does not say why%s", logs(d))
				}
			})
		}
	}
}
