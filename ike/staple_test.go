package ike

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// ocspOf returns what a responder of the CA by says of a certificate, for an hour from wall.
func ocspOf(t *testing.T, by, c *pkitest.Cert, status int) []byte {
	t.Helper()
	block, _ := pem.Decode(by.KeyPEM())
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ocsp.CreateResponse(by.X509(), by.X509(), ocsp.Response{
		Status: status, SerialNumber: c.X509().SerialNumber, ThisUpdate: wall.Add(-time.Minute), NextUpdate: wall.Add(time.Hour), RevokedAt: wall.Add(-time.Hour),
	}, key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestOCSPGoesAlong has a side that can fetch nothing insist on knowing that the other's
// certificate is not revoked.
func TestOCSPGoesAlong(t *testing.T) {
	const uri = "http://ocsp.test/"
	mid := testRoot.Issue(pkitest.Spec{Name: "Weir plants", CA: true, Kind: pkitest.P256})
	foreign := otherRoot.Issue(pkitest.Spec{Name: "Lock plants", CA: true, Kind: pkitest.P256})
	for _, c := range []struct {
		name   string
		answer func(x *pkitest.Cert) []byte
		up     bool
		note   string
	}{
		{"good", func(x *pkitest.Cert) []byte { return ocspOf(t, mid, x, ocsp.Good) }, true, ""},
		{"revoked", func(x *pkitest.Cert) []byte { return ocspOf(t, mid, x, ocsp.Revoked) }, false, "is revoked, says its OCSP responder"},
		{"unknown", func(x *pkitest.Cert) []byte { return ocspOf(t, mid, x, ocsp.Unknown) }, false, ""},
		{"of another CA", func(*pkitest.Cert) []byte { return ocspOf(t, foreign, foreign, ocsp.Good) }, false, uri + ": "},
		{"nothing", func(*pkitest.Cert) []byte { return nil }, false, ""},
	} {
		for _, prover := range []string{"a", "b"} {
			t.Run(c.name+" of "+prover, func(t *testing.T) {
				trust, err := pki.NewTrust([]pki.Authority{{Cert: testRoot.Cert}, {Cert: mid.Cert, OCSPURIs: []string{uri}}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				x := mid.Issue(pkitest.Spec{Name: prover + ".test", Kind: pkitest.P256})
				p := signing(t, func(a, b *Conn, ca, cb *Config) {
					a.KeyingTries = 1
					if prover == "a" {
						a.LocalAuth[0] = byCert(x)
						ca.Trust, b.RemoteAuth[0].Revocation = trust, pki.RevokeStrict
						b.RemoteAuth[0].Anchors, cb.Trust = []*pki.Cert{mid.Cert}, nil
					} else {
						b.LocalAuth[0] = byCert(x)
						cb.Trust, a.RemoteAuth[0].Revocation = trust, pki.RevokeStrict
						a.RemoteAuth[0].Anchors, ca.Trust = []*pki.Cert{mid.Cert}, nil
					}
				})
				strict, ours := p.a, p.b
				if prover == "a" {
					strict, ours = p.b, p.a
				}
				asked, kept := 0, 0
				for _, h := range []*host{p.a, p.b} {
					h.outputs = func(o *Output) {
						switch o.Kind {
						case OutFetch:
							var got []pki.Fetched
							for _, f := range o.Fetches {
								g := pki.Fetched{Fetch: f, Err: errors.New("no route")}
								if h == ours {
									asked++
									if b := c.answer(x); b != nil {
										g.Body, g.Err = b, nil
									}
								}
								got = append(got, g)
							}
							h.m.Fetched(p.now, o.FetchID, got)
						case OutKeep:
							if h == ours {
								kept += len(o.Kept)
							}
						}
					}
				}
				err = p.initiate()
				if (err == nil) != c.up {
					t.Fatalf("it ends with %v; %s says %v", err, "the strict side", strict.reason(EvRefused))
				}
				if asked != 1 {
					t.Errorf("the responder was asked %d times, expected once", asked)
				}
				if want := map[bool]int{true: 1}[c.up]; kept != want {
					t.Errorf("%d answers are kept, expected %d", kept, want)
				}
				note := ""
				for _, e := range ours.events {
					if e.Kind == EvTrust {
						note += e.Text
					}
				}
				if c.note == "" && note != "" || !strings.Contains(note, c.note) {
					t.Errorf("the note is %q, expected one with %q", note, c.note)
				}
			})
		}
	}
}

// TestWhatRevokesIsKept looks at what the caller is told to keep after a refusal, too: it must not
// depend on the server whether the next attempt is refused.
func TestWhatRevokesIsKept(t *testing.T) {
	x := testMid.Issue(pkitest.Spec{Name: "a.test", Kind: pkitest.P256, CRL: "http://crl.test/weir.crl"})
	for name, c := range map[string]struct {
		body []byte
		kept int
	}{
		"good": {testMid.CRL(wall.Add(-time.Minute)), 1}, "revoked": {testMid.CRL(wall.Add(-time.Minute), x), 1},
		"of another CA": {otherRoot.CRL(wall.Add(-time.Minute), x), 0}, "nonsense": {[]byte("nonsense"), 0},
	} {
		kept := 0
		p := fetching(t, pki.RevokeRelaxed, nil)
		p.b.outputs = func(o *Output) {
			switch o.Kind {
			case OutFetch:
				p.b.m.Fetched(p.now, o.FetchID, []pki.Fetched{{Fetch: o.Fetches[0], Body: c.body}})
			case OutKeep:
				if len(o.Kept) != 1 || &o.Kept[0].Body[0] != &c.body[0] {
					t.Errorf("%s: not what was handed out is kept: %+v", name, o.Kept)
				}
				kept++
			}
		}
		if err := p.initiate(); (err != nil) != (name == "revoked") {
			t.Errorf("%s: it ends with %v", name, err)
		}
		if kept != c.kept {
			t.Errorf("%s: kept %d times, expected %d", name, kept, c.kept)
		}
	}
}
