//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// postern and charon, in both roles, authenticate each other by every kind of key, with a chain
// over an intermediate authority that only its owner has, and each of the two shows by what.
func TestCertificates(t *testing.T) {
	t.Parallel()
	schemes := map[keyKind]string{
		rsa2048: "RSA_EMSA_PKCS1_SHA2_", rsa3072: "RSA_EMSA_PKCS1_SHA2_", rsa4096: "RSA_EMSA_PKCS1_SHA2_",
		ecdsa256: "ECDSA_WITH_SHA256_DER", ecdsa384: "ECDSA_WITH_SHA384_DER", ecdsa521: "ECDSA_WITH_SHA512_DER", ed25519K: "ED25519",
	}
	for i, kind := range allKeyKinds {
		for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}, {"postern", "postern"}} {
			other := allKeyKinds[len(allKeyKinds)-1-i]
			if p.a == p.b && kind != ecdsa256 || p.a != p.b && (i%2 == 0) != (p.a == "postern") && kind != rsa2048 && kind != ecdsa384 {
				continue // the other role has the other kind
			}
			t.Run(p.String()+"/"+string(kind), func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb, _, _ := certPair(t, kind, other)
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				for i, d := range []daemon{a, b} {
					ours, theirs := schemes[kind], schemes[other]
					if i == 1 {
						ours, theirs = theirs, ours
					}
					if d.kind() == "postern" {
						shows(t, d, "local-auth=[public key "+ours, "remote-auth=[public key "+theirs, "CN="+string("ba"[i])+".example")
					} else if len(matching(d.log(), "authentication of", theirs, "successful")) == 0 {
						t.Errorf("charon did not verify %s%s", theirs, logs(a, b))
					}
				}
			})
		}
	}
}

// shows checks that what a daemon lists of its SAs has the words in it.
func shows(t *testing.T, d daemon, words ...string) {
	t.Helper()
	var out string
	missing := ""
	if !eventually(20*time.Second, func() bool {
		out, _ = rawOurs(d, "--list-sas", "list-sa")
		i := slices.IndexFunc(words, func(w string) bool { return !strings.Contains(out, w) })
		if i >= 0 {
			missing = words[i]
		}
		return i < 0
	}) {
		t.Errorf("%s does not list %q:\n%s%s", d.kind(), missing, out, logs(d))
	}
}

// PSS, raw public keys, a shared key on one side only, and several rounds of either side.
func TestOtherRounds(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
		for _, c := range []struct {
			name  string
			kind  keyKind
			words []string // of postern's list
			alter func(a, b *conn, certA, certB *credential)
		}{
			{"PSS", rsa2048, []string{"public key RSA_EMSA_PSS_SHA2_"}, func(a, b *conn, certA, certB *credential) {
				a.localAuth[0].auth = "rsa/pss-sha256"
				if p.b == "postern" { // charon would have the CA sign so, too
					b.remoteAuth[0].auth = "rsa/pss-sha256"
				}
			}},
			{"raw keys", ed25519K, []string{"public key ED25519]"}, func(a, b *conn, certA, certB *credential) {
				a.localAuth = []round{{auth: "pubkey", cert: certA, raw: true}}
				a.remoteAuth = []round{{auth: "pubkey", cert: certB, raw: true}}
				b.localAuth, b.remoteAuth = a.remoteAuth, a.localAuth
			}},
			{"secret of the initiator", ecdsa256, []string{"pre-shared key", "public key"}, func(a, b *conn, certA, certB *credential) {
				a.localAuth, b.remoteAuth = []round{{auth: "psk"}}, []round{{auth: "psk"}}
			}},
			{"secret of the responder", ecdsa256, []string{"pre-shared key", "public key"}, func(a, b *conn, certA, certB *credential) {
				b.localAuth, a.remoteAuth = []round{{auth: "psk"}}, []round{{auth: "psk"}}
			}},
			{"two rounds of the initiator", ecdsa256, []string{"CN=second.example"}, func(a, b *conn, certA, certB *credential) {
				second := certA.issuer.issue(certSpec{name: "second.example"})
				a.localAuth = append(a.localAuth, round{auth: "pubkey", id: "second.example", cert: second})
				b.remoteAuth = append(b.remoteAuth, round{auth: "pubkey", id: "second.example"})
			}},
			{"two rounds of both", ecdsa256, []string{"CN=second.example", "CN=third.example"}, func(a, b *conn, certA, certB *credential) {
				second, third := certA.issuer.issue(certSpec{name: "second.example"}), certB.issuer.issue(certSpec{name: "third.example"})
				a.localAuth = append(a.localAuth, round{auth: "pubkey", id: "second.example", cert: second})
				b.remoteAuth = append(b.remoteAuth, round{auth: "pubkey", id: "second.example"})
				b.localAuth = append(b.localAuth, round{auth: "pubkey", id: "third.example", cert: third})
				a.remoteAuth = append(a.remoteAuth, round{auth: "pubkey", id: "third.example"})
			}},
		} {
			t.Run(p.String()+"/"+c.name, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb, certA, certB := certPair(t, c.kind, ecdsa384)
				c.alter(&ca.conns[0], &cb.conns[0], certA, certB)
				a, b := startPair(s, p, ca, cb)
				mustInitiate(t, "net", a, b)
				s.mustPing(t, false, a, b)
				d := a
				if p.b == "postern" {
					d = b
				}
				shows(t, d, c.words...)
			})
		}
	}
}

// A certificate of another name, one that has ended, one of another authority, and one that was
// revoked are refused by either daemon; postern's log has the reason, and the peer learns nothing but that it failed.
func TestBadCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
		for _, c := range []struct {
			name, words string
			spoil       func(bad, judge *spec, cert *credential)
		}{
			{"another name", "mallory.example", func(bad, judge *spec, cert *credential) {
				bad.conns[0].localAuth[0].cert = cert.issuer.issue(certSpec{name: "mallory.example"})
				bad.conns[0].localAuth[0].id = "mallory.example"
				judge.conns[0].remoteAuth[0].id = "*." + cert.name // it asks for none by name
			}},
			{"ended", "expired", func(bad, judge *spec, cert *credential) {
				bad.conns[0].localAuth[0].cert = cert.issuer.issue(certSpec{name: cert.name, notBefore: time.Now().Add(-48 * time.Hour), notAfter: time.Now().Add(-time.Hour)})
			}},
			{"another authority", "is not who it says", func(bad, judge *spec, cert *credential) {
				judge.certs.roots = []*credential{newRoot(cert.t, "stranger", ecdsa256)}
			}},
			{"revoked", "revoked", func(bad, judge *spec, cert *credential) {
				judge.conns[0].remoteAuth[0].cas = []*credential{cert.issuer}
				judge.certs.crls = []string{cert.issuer.crl(1, cert)}
				judge.certs.roots = []*credential{cert.issuer}
			}},
		} {
			t.Run(p.String()+"/"+c.name, func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				ca, cb, certA, certB := certPair(t, ecdsa256, ecdsa256)
				bad, judge, cert := &ca, &cb, certA
				if p.a == "postern" {
					bad, judge, cert = &cb, &ca, certB
				}
				c.spoil(bad, judge, cert)
				a, b := startPair(s, p, ca, cb)
				if err := a.initiate("net"); err == nil {
					t.Errorf("the tunnel is up%s", logs(a, b))
				}
				d, other := a, b
				if p.b == "postern" {
					d, other = b, a
				}
				if !eventually(20*time.Second, func() bool { return len(matching(d.log(), c.words)) > 0 }) {
					t.Errorf("postern's log does not say %q%s", c.words, logs(a, b))
				}
				if !eventually(20*time.Second, func() bool { return len(matching(other.log(), "AUTH_FAILED")) > 0 }) {
					t.Errorf("charon was not told AUTHENTICATION_FAILED%s", logs(a, b))
				}
			})
		}
	}
}

// A full IKE_AUTH with three certificates on each side passes over a path that drops fragments of
// IP: IKE's own carry it.
func TestChainOfCertificatesWithoutFragmentsOfIP(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}, {"postern", "postern"}} {
		t.Run(p.String(), func(t *testing.T) {
			ready(t, p)
			s := newSite(t)
			ca, cb, certA, certB := certPair(t, rsa4096, rsa4096)
			ca.conns[0].localAuth[0].cert = certA.issuer.issue(certSpec{name: "north-west", kind: rsa2048, ca: true}).issue(certSpec{name: "a.example", kind: rsa4096})
			cb.conns[0].localAuth[0].cert = certB.issuer.issue(certSpec{name: "south-east", kind: rsa2048, ca: true}).issue(certSpec{name: "b.example", kind: rsa4096})
			s.nft(s.wan, `
table inet whole {
	chain forward {
		type filter hook forward priority -500; policy accept;
		ip frag-off & 0x3fff != 0 drop
		exthdr frag exists drop
	}
}
`)
			rec := s.capture()
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			w := rec.stop()
			list := w.ike("a0", exAuth)
			if whole := slices.IndexFunc(list, func(p packet) bool { return p.ike.parts < 2 }); len(list) < 3 || whole >= 0 {
				t.Errorf("IKE_AUTH took %d datagrams, and number %d is no fragment", len(list), whole)
			}
		})
	}
}
