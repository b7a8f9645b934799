package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

func FuzzParseKey(f *testing.F) {
	for _, name := range []string{"p256.pem", "p256-aes256.pem", "p256-aes128-sha1.der", "rsa2048.pem"} {
		f.Add(read(f, name))
	}
	sec1, _ := x509.MarshalECPrivateKey(ecKey(f, elliptic.P256(), "k"))
	f.Add(sec1)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		k, err := ParseKey(data, nil) // no passphrase, so that nobody waits for PBKDF2
		if (k == nil) == (err == nil) {
			t.Fatal("neither a key nor an error, or both")
		}
		if err != nil && clean(err.Error()) != err.Error() {
			t.Fatalf("the error has control characters: %q", err)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	for _, k := range []any{ecKey(f, elliptic.P521(), "k").Public(), edKey("k").Public(), rsaKey(f, "rsa2048.pem").Public()} {
		p, err := NewPublicKey(k)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.SPKI())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePublicKey(data)
		if err != nil {
			return
		}
		again, err := ParsePublicKey(p.SPKI())
		if err != nil || !again.Equal(p) {
			t.Fatalf("what was read does not come back: %v", err)
		}
	})
}

func FuzzCertificates(f *testing.F) {
	p := newPlant(f, places(ocspURL, crlURL))
	f.Add(p.leaf.cert.Raw(), p.mid.cert.Raw())
	f.Add(p.mid.cert.Raw(), p.root.cert.Raw())
	constrained := issue(f, "mid", edKey("mid"), p.root, also(asCA, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }))
	f.Add(issue(f, "moon", edKey("moon"), constrained, nil).cert.Raw(), constrained.cert.Raw())
	if _, err := p.trust.Verify(p.request()); err != nil { // what the library computes once is computed now
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, leaf, mid []byte) {
		if _, err := ParseCerts(leaf); err != nil && clean(err.Error()) != err.Error() {
			t.Fatalf("the error has control characters: %q", err)
		}
		v, err := p.trust.Verify(&Request{Now: theDay, Certs: [][]byte{leaf, mid}, IDType: idFQDN, IDData: []byte("moon.example.org")})
		if err != nil {
			if clean(err.Error()) != err.Error() {
				t.Fatalf("the error has control characters: %q", err)
			}
			return
		}
		// Whoever is let in carries names that one of our CAs signed.
		for i, c := range v.Chain[:len(v.Chain)-1] {
			if err := c.x.CheckSignatureFrom(v.Chain[i+1].x); err != nil {
				t.Fatalf("accepted, but the library says %v", err)
			}
		}
		if !v.Chain[len(v.Chain)-1].Equal(p.root.cert) {
			t.Fatal("accepted without an anchor")
		}
	})
}

func FuzzVerifyAuth(f *testing.F) {
	octets := []byte("octets")
	var keys []*Key
	for _, k := range []any{rsaKey(f, "rsa2048.pem"), ecKey(f, elliptic.P256(), "k"), edKey("k")} {
		key, err := NewKey(k)
		if err != nil {
			f.Fatal(err)
		}
		keys = append(keys, key)
		for _, o := range []*Offer{{}, {Hashes: Hashes()}, {Hashes: Hashes(), PSS: true}} {
			if method, data, err := key.Sign(o, octets, zeros{}); err == nil {
				f.Add(method, data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		for _, k := range keys {
			name, err := k.Public().Verify(method, data, octets, nil)
			if err == nil && name == "" {
				t.Fatal("verified without a name for the algorithm")
			}
			if _, err := k.Public().Verify(method, data, []byte("others"), nil); err == nil {
				t.Fatalf("%x verifies for octets that were never signed", data)
			}
		}
	})
}

func FuzzDN(f *testing.F) {
	for _, s := range []string{"C=CH, O=strongSwan, CN=moon", `/C=CH/O="a, b"/CN=*`, "2.5.4.3=#0c0161", `CN=a\,b`, "0.0=#0C0100", "CN=#0c03e2808b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		der, wild, err := ParseDN(s)
		if err != nil {
			return
		}
		if !EqualDN(der, der) || !MatchDN(der, der) {
			t.Fatalf("%q does not match itself (%x)", s, der)
		}
		out := FormatDN(der)
		if clean(out) != out {
			t.Fatalf("%q is written with control characters: %q", s, out)
		}
		again, _, err := ParseDN(out)
		if err != nil && len(out) <= maxDNOctets {
			t.Fatalf("%q is written as %q, which is not read: %v", s, out, err)
		}
		if err == nil && !wild && !EqualDN(der, again) {
			t.Fatalf("%q comes back as %q", s, FormatDN(again))
		}
	})
}

func FuzzMatchDN(f *testing.F) {
	a, _, _ := ParseDN("C=CH, O=strongSwan, CN=*")
	b, _, _ := ParseDN("C=CH, O=strongSwan, CN=moon")
	f.Add(a, b)
	f.Fuzz(func(t *testing.T, pattern, der []byte) {
		if EqualDN(pattern, der) && (!EqualDN(der, pattern) || !MatchDN(pattern, der)) {
			t.Fatal("equal one way only")
		}
		if s := FormatDN(der); clean(s) != s {
			t.Fatalf("control characters: %q", s)
		}
	})
}

func FuzzCRL(f *testing.F) {
	ca := issue(f, "root", edKey("root"), nil, asCA)
	f.Add(ca.revoke(f, theDay, theDay.AddDate(0, 0, 1), big.NewInt(5)))
	signed := ca.revoke(f, theDay, theDay.AddDate(0, 0, 1), big.NewInt(6))
	genuine := mustCRL(f, signed)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseCRL(data)
		if err != nil {
			return
		}
		l.Revoked(func(s *big.Int, _ time.Time, _ int) bool {
			if _, found := l.find(s); !found && s.Sign() != 0 {
				t.Fatalf("serial %v is listed and not found", s)
			}
			return true
		})
		if l.CheckSignature(ca.cert) == nil && !bytes.Equal(l.tbs, genuine.tbs) && len(l.revoked) == 0 {
			t.Fatal("a list that the CA never signed verifies")
		}
	})
}

func FuzzOCSP(f *testing.F) {
	p := newPlant(f, nil)
	delegate := issue(f, "responder", edKey("responder"), p.mid, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	f.Add(respond(f, p.mid, delegate, p.leaf.cert, ocspAnswer{status: 1, this: theDay, next: theDay.AddDate(0, 0, 1)}))
	f.Add(respond(f, p.mid, delegate, p.leaf.cert, ocspAnswer{status: 2, this: theDay, sha256: true}))
	f.Add(respond(f, p.mid, p.mid, p.leaf.cert, ocspAnswer{status: 1, this: theDay}))
	// What the library computes once is computed now, or every input would look as if it reached it.
	for _, by := range []*party{p.mid, delegate} {
		if _, err := CheckOCSP(respond(f, p.mid, by, p.leaf.cert, ocspAnswer{status: 1, this: theDay}), p.leaf.cert, p.mid.cert, theDay); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		// Nothing that was signed here says "good", so nothing may come out so.
		if a, err := CheckOCSP(data, p.leaf.cert, p.mid.cert, theDay); err == nil && a.Status == OCSPGood {
			t.Fatal("a revoked certificate has become good")
		}
	})
}

func FuzzAnnounced(f *testing.F) {
	f.Add(AppendAnnounced(nil, OurMethods(true, nil)))
	f.Add([]byte{3, 1, 3, 3, 9, 0, 2, 13})
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseAnnounced(data)
		if err != nil {
			return
		}
		again, err := ParseAnnounced(AppendAnnounced(nil, list))
		if err != nil || len(again) != len(list) {
			t.Fatalf("%d announcements come back as %d: %v", len(list), len(again), err)
		}
	})
}
