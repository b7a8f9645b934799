//go:build linux

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// matrixPairs are the pairs of daemons that most tests run with, the initiator first.
func matrixPairs() []pair {
	env := os.Getenv("POSTERN_E2E_PAIRS")
	if env == "" {
		return []pair{{"postern", "postern"}, {"postern", "charon"}, {"charon", "postern"}}
	}
	var ps []pair
	for s := range strings.SplitSeq(env, ",") {
		a, b, _ := strings.Cut(s, "-")
		ps = append(ps, pair{a, b})
	}
	return ps
}

// ready skips the test if what the pair needs is not there, and lets it run beside others.
func ready(t *testing.T, p pair, tools ...string) {
	t.Helper()
	need(t, append([]string{"swanctl"}, tools...)...)
	if p.has("charon") {
		needCharon(t)
	}
	t.Parallel()
}

// facing runs f beside other tests for a postern with each kind of peer, at a site of their own.
func facing(t *testing.T, f func(t *testing.T, s *site, p pair)) {
	t.Parallel()
	for _, peer := range []string{"postern", "charon"} {
		p := pair{"postern", peer}
		t.Run(p.String(), func(t *testing.T) {
			ready(t, p)
			f(t, newSite(t), p)
		})
	}
}

// eachPair runs a test with every pair of the matrix.
func eachPair(t *testing.T, f func(t *testing.T, p pair)) {
	t.Helper()
	t.Parallel()
	for _, p := range matrixPairs() {
		t.Run(p.String(), func(t *testing.T) {
			ready(t, p)
			f(t, p)
		})
	}
}

// carries brings the child "net" up, checks on both sides what was agreed on (empty strings:
// anything), sends echo requests both ways, and checks the counters and the WAN.
func carries(t *testing.T, s *site, p pair, ca, cb spec, v6 bool, wantIKE, wantESP string) (daemon, daemon) {
	t.Helper()
	c := s.capture()
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	for _, d := range []daemon{a, b} {
		if got := established(t, d).suite(); wantIKE != "" && got != wantIKE {
			t.Errorf("%s: IKE suite %s, want %s", d.kind(), got, wantIKE)
		}
		ch := installed(t, d, "net")
		if got := ch.suite(); wantESP != "" && got != wantESP {
			t.Errorf("%s: ESP suite %s, want %s", d.kind(), got, wantESP)
		}
		// kernel-libipsec makes its peer believe in a NAT, because it knows UDP only.
		wantUDP := p.has("charon") || ca.conns[0].encap || cb.conns[0].encap
		if ch.encap != wantUDP {
			t.Errorf("%s: CHILD SA says encap=%v, want %v", d.kind(), ch.encap, wantUDP)
		}
	}
	if ia, ib := installed(t, a, "net"), installed(t, b, "net"); ia.spiIn != ib.spiOut || ia.spiOut != ib.spiIn {
		t.Errorf("the SPIs do not match: a has in %s out %s, b has in %s out %s", ia.spiIn, ia.spiOut, ib.spiIn, ib.spiOut)
	}
	s.mustPing(t, v6, a, b)
	for _, d := range []daemon{a, b} {
		if ch := installed(t, d, "net"); ch.packetsIn != 10 || ch.packetsOut != 10 {
			t.Errorf("%s: CHILD SA counts %d packets in and %d out after ten echo requests and their answers, want 10 and 10",
				d.kind(), ch.packetsIn, ch.packetsOut)
		}
	}
	w := c.stop()
	if strings.HasPrefix(installed(t, a, "net").suite(), "NULL") { // which encrypts nothing
		w.nothingInClear(t)
	} else {
		w.nothingInClear(t, []byte(mark))
	}
	want := classESP
	if p.has("charon") || ca.conns[0].encap || cb.conns[0].encap {
		want = classUDPESP
	}
	for _, pk := range w {
		if isESP(pk) && pk.class != want {
			t.Errorf("%s on the WAN, want only %v: %s", pk.class, want, w.summary())
			break
		}
	}
	return a, b
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		outer6, inner6 bool
	}{
		{"IPv4-in-IPv4", false, false},
		{"IPv6-in-IPv4", false, true},
		{"IPv4-in-IPv6", true, false},
		{"IPv6-in-IPv6", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(c.outer6, c.inner6)
				a, b := carries(t, s, p, ca, cb, c.inner6, "", "")
				for _, d := range []daemon{a, b} {
					sa := established(t, d)
					if sa.localID == sa.remoteID || !strings.HasSuffix(sa.localID, ".example") {
						t.Errorf("%s: identities %q and %q", d.kind(), sa.localID, sa.remoteID)
					}
				}
				ts := []string{lanA4, lanB4}
				if c.inner6 {
					ts = []string{lanA6, lanB6}
				}
				for d, want := range map[daemon][]string{a: {ts[0], ts[1]}, b: {ts[1], ts[0]}} {
					ch := installed(t, d, "net")
					if got := append(slices.Clone(ch.localTS), ch.remoteTS...); !slices.Equal(got, want) {
						t.Errorf("%s: selectors %v, want %v", d.kind(), got, want)
					}
				}
				a.stop()
				if !gone(b, 5*time.Second) {
					t.Errorf("%s still has the SA after the other side was stopped, which has to delete it%s", b.kind(), logs(a, b))
				}
				b.stop()
			})
		})
	}
}

func TestCiphers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ ike, esp, wantIKE, wantESP string }{
		{"aes128gcm16-prfsha256", "aes128gcm16", "AES_GCM_16-128/PRF_HMAC_SHA2_256", "AES_GCM_16-128"},
		{"aes256gcm16-prfsha384", "aes256gcm16", "AES_GCM_16-256/PRF_HMAC_SHA2_384", "AES_GCM_16-256"},
		{"chacha20poly1305-prfsha512", "chacha20poly1305", "CHACHA20_POLY1305/PRF_HMAC_SHA2_512", "CHACHA20_POLY1305"},
		{"aes256-sha256", "aes256-sha256", "AES_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256", "AES_CBC-256/HMAC_SHA2_256_128"},
		{"aes256-sha384", "aes256-sha384", "AES_CBC-256/HMAC_SHA2_384_192/PRF_HMAC_SHA2_384", "AES_CBC-256/HMAC_SHA2_384_192"},
		{"aes256-sha512", "aes256-sha512", "AES_CBC-256/HMAC_SHA2_512_256/PRF_HMAC_SHA2_512", "AES_CBC-256/HMAC_SHA2_512_256"},
		{"aes128-sha1", "aes128-sha1", "AES_CBC-128/HMAC_SHA1_96/PRF_HMAC_SHA1", "AES_CBC-128/HMAC_SHA1_96"},
		{"aes128ccm16-prfsha256", "aes128ccm16", "AES_CCM_16-128/PRF_HMAC_SHA2_256", "AES_CCM_16-128"},
		{"aes192ccm12-prfaesxcbc", "aes192ccm12", "AES_CCM_12-192/PRF_AES128_XCBC", "AES_CCM_12-192"},
		{"aes256ccm64-prfaescmac", "aes256ccm64", "AES_CCM_8-256/PRF_AES128_CMAC", "AES_CCM_8-256"},
		{"aes128gcm64-prfsha256", "aes128gcm64", "AES_GCM_8-128/PRF_HMAC_SHA2_256", "AES_GCM_8-128"},
		{"aes256gcm96-prfsha256", "aes256gcm96", "AES_GCM_12-256/PRF_HMAC_SHA2_256", "AES_GCM_12-256"},
		{"aes128ctr-sha256", "aes128ctr-sha256", "AES_CTR-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256", "AES_CTR-128/HMAC_SHA2_256_128"},
		{"aes128-aesxcbc", "aes128-aesxcbc", "AES_CBC-128/AES_XCBC_96/PRF_AES128_XCBC", "AES_CBC-128/AES_XCBC_96"},
		{"aes256ctr-aescmac", "aes256ctr-aescmac", "AES_CTR-256/AES_CMAC_96/PRF_AES128_CMAC", "AES_CTR-256/AES_CMAC_96"},
		{"aes128-sha256", "null-sha256", "AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256", "NULL/HMAC_SHA2_256_128"},
	} {
		t.Run(c.esp, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				ca, cb := pairSpecs(false, false)
				suite(&ca, &cb, c.ike+"-x25519", c.esp)
				carries(t, newSite(t), p, ca, cb, false, c.wantIKE+"/CURVE_25519", c.wantESP)
			})
		})
	}
}

// What kernel-libipsec, or strongSwan altogether, does not have.
func TestCiphersOfOurs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ esp, want string }{
		{"aes128gmac", "NULL_AES_GMAC-128"},
		{"aes128gcm16iiv", "AES_GCM_16_IIV-128"},
		{"aes128ccm8iiv", "AES_CCM_8_IIV-128"},
		{"chacha20poly1305iiv", "CHACHA20_POLY1305_IIV"},
		{"null-aescmac", "NULL/AES_CMAC_96"},
	} {
		t.Run(c.esp, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			ca, cb := pairSpecs(false, false)
			suite(&ca, &cb, usualIKE, c.esp)
			carries(t, newSite(t), p, ca, cb, false, "", c.want)
		})
	}
}

// Extended sequence numbers, which kernel-libipsec does not have.
func TestExtendedSequenceNumbers(t *testing.T) {
	t.Parallel()
	for _, esp := range []string{"aes128gcm16-esn", "aes256-sha256-esn", "chacha20poly1305-esn",
		"aes128ccm16-esn", "aes128gmac-esn", "aes128gcm16iiv-esn", "aes128ctr-aesxcbc-esn", "null-sha256-esn"} {
		t.Run(esp, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			ca, cb := pairSpecs(false, false)
			suite(&ca, &cb, usualIKE, esp)
			carries(t, newSite(t), p, ca, cb, false, "", "")
		})
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ group, want string }{
		{"x25519", "CURVE_25519"}, {"ecp256", "ECP_256"}, {"ecp384", "ECP_384"}, {"ecp521", "ECP_521"},
		{"modp2048", "MODP_2048"}, {"modp3072", "MODP_3072"}, {"modp4096", "MODP_4096"},
	} {
		t.Run(c.group, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				ca, cb := pairSpecs(false, false)
				suite(&ca, &cb, "aes256-sha256-"+c.group, usualESP)
				carries(t, newSite(t), p, ca, cb, false, "AES_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/"+c.want, "")
			})
		})
	}
}

// The initiator's first guess of a group is not the responder's: it is told so, and asks again.
func TestInvalidKERetry(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ a, b, want string }{
		{"aes128gcm16-prfsha256-x25519-ecp384", "aes128gcm16-prfsha256-ecp384", "ECP_384"},
		{"aes128gcm16-prfsha256-ecp256-modp2048", "aes128gcm16-prfsha256-modp2048", "MODP_2048"},
	} {
		t.Run(c.want, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				ca.conns[0].ike, cb.conns[0].ike = c.a, c.b
				cap := s.capture()
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				if got := established(t, a); got.dh != c.want {
					t.Errorf("group %s was agreed on, want %s", got.dh, c.want)
				}
				s.mustPing(t, false, a, b)
				w := cap.stop()
				w.nothingInClear(t, []byte(mark))
				// strongSwan may have to repeat its second request: an answer that comes before it
				// has done with the first one does not count for it.
				answers := w.ike("b0", exInit)
				if len(answers) != 2 && (a.kind() != "charon" || len(answers) < 2) || !slices.Equal(answers[0].ike.notifies, []uint16{notifyInvalidKE}) {
					t.Errorf("want two answers to IKE_SA_INIT, the first with INVALID_KE_PAYLOAD; got %d, notifies %v",
						len(answers), notifiesOf(answers))
				}
			})
		})
	}
}

// notifiesOf lists the notify types of messages.
func notifiesOf(ps []packet) (out [][]uint16) {
	for _, p := range ps {
		out = append(out, p.ike.notifies)
	}
	return out
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, a, b string
		shown      bool // list-sas writes it as it is configured
	}{
		{"fqdn", "pump7.example.org", "control.example.org", true},
		{"email", "pump7@example.org", "control@example.org", true},
		{"ipv4", gwA4.String(), gwB4.String(), true},
		{"ipv6", gwA6.String(), gwB6.String(), true},
		{"keyid", "keyid:pump7", "keyid:control", false},
		{"mixed", "keyid:pump7", gwB6.String(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				ca.conns[0].localID, ca.conns[0].remoteID = c.a, c.b
				cb.conns[0].localID, cb.conns[0].remoteID = c.b, c.a
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				for _, d := range []daemon{a, b} {
					want := []string{c.a, c.b}
					if d == b {
						want = []string{c.b, c.a}
					}
					if sa := established(t, d); c.shown && (sa.localID != want[0] || sa.remoteID != want[1]) {
						t.Errorf("%s: identities %q and %q, want %q", d.kind(), sa.localID, sa.remoteID, want)
					}
				}
			})
		})
	}
}

// The responder takes a part of what the initiator asks for; both go by that part.
func TestSelectorsAreNarrowed(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].localTS, ca.conns[0].children[0].remoteTS = []string{"10.1.0.0/16"}, []string{"10.2.0.0/15"}
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		for d, want := range map[daemon][]string{a: {lanA4, lanB4}, b: {lanB4, lanA4}} {
			ch := installed(t, d, "net")
			if got := append(slices.Clone(ch.localTS), ch.remoteTS...); !slices.Equal(got, want) {
				t.Errorf("%s: selectors %v, want %v", d.kind(), got, want)
			}
		}
		s.mustPing(t, false, a, b)
		if p.a == "postern" {
			// 10.3.0.10 is in postern's own selectors and not in what was agreed on: it must
			// neither go into the tunnel nor in clear.
			if r := s.pings(s.lanA, hostC4, 3, briefly); r.answered != 0 {
				t.Errorf("what the responder had narrowed away got through: %v", r)
			}
		}
		c.stop().nothingInClear(t, []byte(mark))
	})
}

// Without common selectors or algorithms there is no tunnel, and the initiator says why.
func TestNothingInCommon(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(a, b *spec)
		reason string
	}{
		{"selectors", func(a, b *spec) { a.conns[0].children[0].remoteTS = []string{"10.77.0.0/24"} }, "TS_UNACCEPTABLE"},
		{"IKE proposals", func(a, b *spec) { a.conns[0].ike = "aes256-sha512-ecp256" }, "NO_PROPOSAL_CHOSEN"},
		{"ESP proposals", func(a, b *spec) { a.conns[0].children[0].esp = "aes256-sha512" }, "NO_PROPOSAL_CHOSEN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, p pair) {
				s := newSite(t)
				ca, cb := pairSpecs(false, false)
				both(&ca, &cb, func(c *conn) { c.keyingTries = 1 })
				c.change(&ca, &cb)
				a, b := startPair(s, p, ca, cb)
				err := a.initiate("net")
				if err == nil {
					t.Fatalf("%s says that the child is up%s", a.kind(), logs(a, b))
				}
				for _, d := range []daemon{a, b} {
					if d.kind() == "postern" && len(matching(d.log(), c.reason)) == 0 {
						t.Errorf("postern's log does not name the reason, %s:\n%s", c.reason, tail(d.log(), 20))
					}
				}
				if a.kind() == "postern" && !strings.Contains(err.Error(), c.reason) {
					t.Errorf("postern up does not name the reason, %s: %v", c.reason, err)
				}
				if n := len(children(a, "net")) + len(children(b, "net")); n != 0 {
					t.Errorf("%d CHILD SAs are left", n)
				}
			})
		})
	}
}

func TestSeveralChildrenOnOneIKESA(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		ca, cb := pairSpecs(false, false)
		more := func(c *conn, local4, local6, remote4, remote6 string) {
			c.children = append(c.children,
				child{name: "second", localTS: []string{local4}, remoteTS: []string{remote4}, esp: "chacha20poly1305", start: "none"},
				child{name: "six", localTS: []string{local6}, remoteTS: []string{remote6}, esp: "aes256-sha256", start: "none"})
		}
		more(&ca.conns[0], lanA4, lanA6, lanC4, lanB6)
		more(&cb.conns[0], lanC4, lanB6, lanA4, lanA6)
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		for _, name := range []string{"net", "second", "six"} {
			mustInitiate(t, name, a, b)
		}
		for _, d := range []daemon{a, b} {
			if sa := established(t, d); len(sa.children) != 3 {
				t.Errorf("%s: %d CHILD SAs on the IKE SA, want 3", d.kind(), len(sa.children))
			}
		}
		s.mustPing(t, false, a, b)
		s.mustPing(t, true, a, b)
		if r := s.pings(s.lanA, hostC4, 5); r.lost() != 0 {
			t.Errorf("through the second child, %v", r)
		}
		for name, want := range map[string]int{"net": 10, "second": 5, "six": 10} {
			if ch := installed(t, a, name); ch.packetsOut != want || ch.packetsIn != want {
				t.Errorf("child %s carried %d packets out and %d in, want %d: traffic took another child's SA",
					name, ch.packetsOut, ch.packetsIn, want)
			}
		}
		if n := len(c.stop().ike("a0", exAuth)); n != 1 {
			t.Errorf("%d IKE_AUTH requests, want 1 and CREATE_CHILD_SA for the others", n)
		}
	})
}

// postern can be told to put ESP into UDP where no NAT is found.
func TestForcedEncapsulation(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	ca, cb := pairSpecs(false, false)
	ca.conns[0].encap = true
	carries(t, newSite(t), p, ca, cb, false, "", "")
}
