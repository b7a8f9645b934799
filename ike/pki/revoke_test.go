package pki

import (
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	ocspURL = "http://ocsp.example.org/"
	crlURL  = "http://crl.example.org/mid.crl"
	rootURL = "http://crl.example.org/root.crl"
)

// places puts URIs in a certificate.
func places(ocsp, crl string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		if ocsp != "" {
			c.OCSPServer = []string{ocsp}
		}
		if crl != "" {
			c.CRLDistributionPoints = []string{crl}
		}
	}
}

// settle asks until the verdict is final, fetching from bodies; rounds is how often it fetched.
func settle(t *testing.T, tr *Trust, r *Request, bodies map[string][]byte) (v *Verdict, rounds int, err error) {
	t.Helper()
	for ; ; rounds++ {
		if rounds > MaxRounds {
			t.Fatalf("more than %d rounds of fetching", MaxRounds)
		}
		if v, err = tr.Verify(r); err != nil || len(v.Need) == 0 {
			return v, rounds, err
		}
		r.Got = append(r.Got, serve(v.Need, bodies)...)
	}
}

func TestRevocationPolicies(t *testing.T) {
	p := new(plant)
	p.root = issue(t, "root", edKey("root"), nil, asCA)
	p.mid = issue(t, "mid", ecKey(t, elliptic.P384(), "mid"), p.root, also(asCA, places("", rootURL)))
	p.leaf = issue(t, "moon", ecKey(t, elliptic.P256(), "moon"), p.mid, places(ocspURL, crlURL))
	p.trust = mustTrust(t, []Authority{{Cert: p.root.cert}})
	delegate := issue(t, "responder", edKey("responder"), p.mid, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	impostor := issue(t, "impostor", edKey("impostor"), p.mid, nil)
	serial := p.leaf.cert.x.SerialNumber
	hour := func(n int) time.Time { return theDay.Add(time.Duration(n) * time.Hour) }
	rootCRL := p.root.revoke(t, hour(-1), hour(1))
	good := ocspAnswer{this: hour(-1), next: hour(1)}
	with := func(a ocspAnswer, f func(*ocspAnswer)) ocspAnswer { f(&a); return a }

	for _, c := range []struct {
		name   string
		bodies map[string][]byte
		refuse map[Revocation]string // absent: accepted
		rounds int
	}{
		{"responder and list down", map[string][]byte{rootURL: rootCRL},
			map[Revocation]string{RevokeStrict: "connection refused", RevokeIfURI: "connection refused"}, 2},
		{"good by OCSP", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, good)}, nil, 1},
		{"good by OCSP with SHA-256", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, with(good, func(a *ocspAnswer) { a.sha256 = true }))}, nil, 1},
		{"good by a delegated responder", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.mid, delegate, p.leaf.cert, good)}, nil, 1},
		{"no nextUpdate, just made", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, ocspAnswer{this: theDay.Add(-time.Minute)})}, nil, 1},
		{"good by CRL with OCSP down", map[string][]byte{rootURL: rootCRL, crlURL: p.mid.revoke(t, hour(-1), hour(1), big.NewInt(5))}, nil, 2},
		{"revoked by OCSP", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, with(good, func(a *ocspAnswer) { a.status = 1 }))},
			map[Revocation]string{RevokeStrict: "superseded (OCSP)", RevokeIfURI: "superseded (OCSP)", RevokeRelaxed: "superseded (OCSP)"}, 1},
		{"revoked by CRL", map[string][]byte{rootURL: rootCRL, crlURL: p.mid.revoke(t, hour(-1), hour(1), big.NewInt(5), serial)},
			map[Revocation]string{RevokeStrict: "key compromise (CRL", RevokeIfURI: "key compromise (CRL", RevokeRelaxed: "key compromise (CRL"}, 2},
		{"revoked by an old CRL", map[string][]byte{rootURL: rootCRL, crlURL: p.mid.revoke(t, hour(-3), hour(-2), serial)},
			map[Revocation]string{RevokeStrict: "is revoked", RevokeIfURI: "is revoked", RevokeRelaxed: "is revoked"}, 2},
		{"intermediate revoked", map[string][]byte{rootURL: p.root.revoke(t, hour(-1), hour(1), p.mid.cert.x.SerialNumber), ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: `CN=mid": the certificate is revoked`, RevokeIfURI: "CN=mid", RevokeRelaxed: "CN=mid"}, 1},
		{"old CRL", map[string][]byte{rootURL: rootCRL, crlURL: p.mid.revoke(t, hour(-3), hour(-2))},
			map[Revocation]string{RevokeStrict: "out of date since", RevokeIfURI: "out of date since"}, 2},
		{"CRL of the future", map[string][]byte{rootURL: rootCRL, crlURL: p.mid.revoke(t, hour(2), hour(3))},
			map[Revocation]string{RevokeStrict: "of the future", RevokeIfURI: "of the future"}, 2},
		{"CRL by another key", map[string][]byte{rootURL: rootCRL, crlURL: issue(t, "mid", edKey("false"), nil, asCA).revoke(t, hour(-1), hour(1))},
			map[Revocation]string{RevokeStrict: "refused", RevokeIfURI: "refused"}, 2},
		{"CRL that is none", map[string][]byte{rootURL: rootCRL, crlURL: []byte("<html>")},
			map[Revocation]string{RevokeStrict: "damaged CRL", RevokeIfURI: "damaged CRL"}, 2},
		{"old OCSP", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, ocspAnswer{this: hour(-3), next: hour(-2)})},
			map[Revocation]string{RevokeStrict: "out of date", RevokeIfURI: "out of date"}, 2},
		{"OCSP unknown", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, with(good, func(a *ocspAnswer) { a.status = 2 }))},
			map[Revocation]string{RevokeStrict: "does not know", RevokeIfURI: "does not know"}, 2},
		{"OCSP about another", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, with(good, func(a *ocspAnswer) { a.serial = big.NewInt(5) }))},
			map[Revocation]string{RevokeStrict: "does not speak about", RevokeIfURI: "does not speak about"}, 2},
		{"OCSP about another CA's", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.root, p.mid, p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "does not speak about", RevokeIfURI: "does not speak about"}, 2},
		{"OCSP about a namesake CA's", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, issue(t, "mid", edKey("namesake"), nil, asCA), p.mid, p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "does not speak about", RevokeIfURI: "does not speak about"}, 2},
		{"OCSP about another CA with the same key", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, issue(t, "mid2", p.mid.key, nil, asCA), p.mid, p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "does not speak about", RevokeIfURI: "does not speak about"}, 2},
		{"OCSP with a wrong signature", map[string][]byte{rootURL: rootCRL,
			ocspURL: respond(t, p.mid, p.mid, p.leaf.cert, with(good, func(a *ocspAnswer) { a.badSignature = true }))},
			map[Revocation]string{RevokeStrict: "signature is wrong", RevokeIfURI: "signature is wrong"}, 2},
		{"OCSP by someone not delegated", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.mid, impostor, p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "did not delegate", RevokeIfURI: "did not delegate"}, 2},
		{"OCSP by another CA's responder", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.mid, issue(t, "r", edKey("r"), p.root,
			func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }), p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "not one of this CA", RevokeIfURI: "not one of this CA"}, 2},
		{"OCSP by a responder that expired", map[string][]byte{rootURL: rootCRL, ocspURL: respond(t, p.mid, issue(t, "r", edKey("r"), p.mid,
			func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
				c.NotAfter = hour(-1)
			}), p.leaf.cert, good)},
			map[Revocation]string{RevokeStrict: "responder's certificate has expired", RevokeIfURI: "has expired"}, 2},
		{"OCSP says try later", map[string][]byte{rootURL: rootCRL, ocspURL: {0x30, 3, 0x0a, 1, 3}},
			map[Revocation]string{RevokeStrict: "try later", RevokeIfURI: "try later"}, 2},
	} {
		for _, policy := range []Revocation{RevokeRelaxed, RevokeIfURI, RevokeStrict, RevokeOff} {
			r := p.request()
			r.Revocation = policy
			v, rounds, err := settle(t, p.trust, r, c.bodies)
			want, refuse := c.refuse[policy]
			switch {
			case refuse && err == nil:
				t.Errorf("%s, policy %v: accepted, notes %q", c.name, policy, v.Notes)
			case refuse && !strings.Contains(err.Error(), want):
				t.Errorf("%s, policy %v: refused with %q, which does not say %q", c.name, policy, err, want)
			case !refuse && err != nil:
				t.Errorf("%s, policy %v: refused: %v", c.name, policy, err)
			case policy == RevokeOff && rounds != 0:
				t.Errorf("%s: policy off fetches", c.name)
			case policy != RevokeOff && rounds != c.rounds:
				t.Errorf("%s, policy %v: %d rounds of fetching instead of %d", c.name, policy, rounds, c.rounds)
			case policy == RevokeRelaxed && err == nil && (len(v.Notes) > 0) != (len(c.refuse) > 0):
				t.Errorf("%s: what is not known is not in the notes, or the other way round: %q", c.name, v.Notes)
			case refuse && strings.Contains(want, "revoked") && !errors.Is(err, ErrRevoked):
				t.Errorf("%s: the error is no ErrRevoked", c.name)
			}
		}
	}
}

func TestVerdictSaysWhatIsWorthKeeping(t *testing.T) {
	p := newPlant(t, places(ocspURL, crlURL))
	r := p.request()
	v, err := p.trust.Verify(r)
	if err != nil || len(v.Need) != 1 || v.Need[0].Kind != FetchOCSP || v.Key == nil {
		t.Fatalf("the responder is to be asked, and alone, with a key to check AUTH first: %+v, %v", v, err)
	}
	if v.Need[0].Issuer != p.mid.cert.key.KeyID() {
		t.Error("the fetch does not name its CA")
	}
	r.Got = serve(v.Need, nil)
	if v, err = p.trust.Verify(r); err != nil || len(v.Need) != 1 || v.Need[0].Kind != FetchCRL || v.Need[0].URL != crlURL {
		t.Fatalf("after the responder the CRL is to be fetched: %+v, %v", v, err)
	}
	final := *r
	final.Final = true
	if v, err = p.trust.Verify(&final); err != nil || len(v.Need) != 0 || len(v.Notes) == 0 {
		t.Errorf("with nothing more to fetch there is still something needed, or nothing noted: %+v, %v", v, err)
	}
	r.Got = append(r.Got, serve(v.Need, nil)...)
	r.Got = append(r.Got, Fetched{Fetch: Fetch{Kind: FetchCRL, URL: crlURL}, Body: p.mid.revoke(t, theDay.Add(-time.Hour), theDay.Add(time.Hour))})
	if v, err = p.trust.Verify(r); err != nil || len(v.Need) != 0 || len(v.Used) != 1 || v.Used[0] != 1 {
		t.Errorf("the CRL is authentic and not named as worth keeping: %+v, %v", v, err)
	}
}

func TestFetchesAreBounded(t *testing.T) {
	p := newPlant(t, func(c *x509.Certificate) {
		for range 30 {
			c.OCSPServer = append(c.OCSPServer, "http://x/"+string(rune('a'+len(c.OCSPServer))))
			c.CRLDistributionPoints = append(c.CRLDistributionPoints, "http://y/"+string(rune('a'+len(c.CRLDistributionPoints))))
		}
		c.CRLDistributionPoints = append(c.CRLDistributionPoints, "ldap://x/", "https://x/", "file:///etc/passwd", "http://x/ HTTP/1.1\r\nEvil: 1")
	})
	r := p.request()
	total := 0
	for {
		v, err := p.trust.Verify(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Need) == 0 {
			break
		}
		for _, f := range v.Need {
			if !strings.HasPrefix(f.URL, "http://") || strings.ContainsAny(f.URL, " \r\n") {
				t.Errorf("asks for %q", f.URL)
			}
		}
		total += len(v.Need)
		r.Got = append(r.Got, serve(v.Need, nil)...)
	}
	if total > MaxFetches {
		t.Errorf("%d fetches for one peer", total)
	}
}

func TestConfiguredListsNeedNoNetwork(t *testing.T) {
	p := newPlant(t, places(ocspURL, crlURL))
	lists := func(serials ...*big.Int) []*CRL {
		return []*CRL{mustCRL(t, p.mid.revoke(t, theDay.Add(-time.Hour), theDay.Add(time.Hour), serials...)),
			mustCRL(t, p.root.revoke(t, theDay.Add(-time.Hour), theDay.Add(time.Hour)))}
	}
	r := p.request()
	r.Revocation = RevokeStrict
	v, err := mustTrust(t, []Authority{{Cert: p.root.cert, CRLs: lists()}}).Verify(r)
	if err != nil || len(v.Need) > 0 {
		t.Errorf("lists at hand do not decide: %+v, %v", v, err)
	}
	// An OCSP response sent along that is from before does not hide a revocation.
	r.OCSP = [][]byte{respond(t, p.mid, p.mid, p.leaf.cert, ocspAnswer{this: theDay.Add(-time.Hour), next: theDay.Add(time.Hour)})}
	if _, err = mustTrust(t, []Authority{{Cert: p.root.cert, CRLs: lists(p.leaf.cert.x.SerialNumber)}}).Verify(r); !errors.Is(err, ErrRevoked) {
		t.Errorf("a good OCSP response of the peer outweighs the CRL of the configuration: %v", err)
	}
	// Sent along alone it decides (RFC 4806).
	r.Revocation = RevokeRelaxed
	if v, err = p.trust.Verify(r); err != nil || len(v.Need) > 0 {
		t.Errorf("an OCSP response sent along does not decide: %+v, %v", v, err)
	}
	// The URIs of the authority serve where the certificate has none.
	q := newPlant(t, nil)
	tr := mustTrust(t, []Authority{{Cert: q.mid.cert, OCSPURIs: []string{ocspURL}}})
	r = &Request{Now: theDay, Certs: ders(q.leaf)}
	if v, err = tr.Verify(r); err != nil || len(v.Need) != 1 || v.Need[0].URL != ocspURL {
		t.Errorf("the authority's responder is not asked: %+v, %v", v, err)
	}
	if own := tr.OCSPFor(q.leaf.cert, q.mid.cert); len(own) != 1 || !own[0].Same(&v.Need[0]) {
		t.Errorf("the request for our own certificate: %+v", own)
	}
}

func TestCRLLimits(t *testing.T) {
	p := newPlant(t, places("", crlURL))
	hour := time.Hour
	idp := func(body ...byte) pkix.Extension {
		return pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: append([]byte{0x30, byte(len(body))}, body...)}
	}
	point := func(u string) []byte {
		return append([]byte{0xa0, byte(len(u) + 4), 0xa0, byte(len(u) + 2), 0x86, byte(len(u))}, u...)
	}
	build := func(ext ...pkix.Extension) *x509.RevocationList {
		return &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: theDay.Add(-hour), NextUpdate: theDay.Add(hour), ExtraExtensions: ext}
	}
	for _, c := range []struct {
		name string
		l    *x509.RevocationList
		good bool
	}{
		{"all", build(), true},
		{"of end entities", build(idp(0x81, 1, 0xff)), true},
		{"of CAs", build(idp(0x82, 1, 0xff)), false},
		{"of attribute certificates", build(idp(0x85, 1, 0xff)), false},
		{"of some reasons", build(idp(0x83, 2, 0, 0x40)), false},
		{"of its point", build(idp(point(crlURL)...)), true},
		{"of another point", build(idp(point("http://crl.example.org/b")...)), false},
		{"indirect", build(idp(0x84, 1, 0xff)), false},
		{"delta", build(pkix.Extension{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}), false},
		{"critical extension", build(pkix.Extension{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}), false},
	} {
		r := p.request()
		r.Revocation, r.Final = RevokeIfURI, true
		r.CRLs = [][]byte{p.mid.crl(t, c.l)}
		_, err := p.trust.Verify(r)
		if (err == nil) != c.good {
			t.Errorf("a CRL %s speaks for an end entity: %v, expected %v (%v)", c.name, err == nil, c.good, err)
		}
	}
	// A CA whose key usage lacks cRLSign cannot revoke.
	weak := issue(t, "mid", edKey("nosign"), p.root, also(asCA, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }))
	strong := &party{issue(t, "mid", edKey("nosign"), p.root, asCA).cert, weak.key}
	if err := mustCRL(t, strong.revoke(t, theDay, theDay.Add(hour))).CheckSignature(weak.cert); err == nil || !strings.Contains(err.Error(), "may not sign CRLs") {
		t.Errorf("a CA without cRLSign: %v", err)
	}
	// An entry with a critical extension (another CA's in an indirect list) makes the list unusable.
	l := build()
	l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(9), RevocationTime: theDay,
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}}}
	if _, err := ParseCRL(p.mid.crl(t, l)); err == nil {
		t.Error("a CRL with an entry that is not understood is taken")
	}
	n := 0
	mustCRL(t, p.mid.revoke(t, theDay, theDay.Add(hour), big.NewInt(3), big.NewInt(200))).Revoked(func(s *big.Int, at time.Time, reason int) bool {
		if n++; n == 2 && (s.Int64() != 200 || reason != 1) {
			t.Errorf("entry: serial %v, reason %d", s, reason)
		}
		return true
	})
	if n != 2 {
		t.Errorf("%d entries instead of 2", n)
	}
}

// TestOCSPOfOpenSSL lets OpenSSL answer a request of ours, as the CA and as its delegate.
func TestOCSPOfOpenSSL(t *testing.T) {
	need(t, "openssl")
	p := new(plant)
	p.root = issue(t, "root", rsaKey(t, "rsa2048.pem"), nil, asCA)
	p.leaf = issue(t, "moon", edKey("moon"), p.root, nil)
	delegate := issue(t, "responder", rsaKey(t, "rsa3072.pem"), p.root, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	dir := t.TempDir()
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("ca", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.root.cert.Raw()}))
	put("delegate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: delegate.cert.Raw()}))
	put("ca.key", read(t, "rsa2048.pem"))
	put("delegate.key", read(t, "rsa3072.pem"))
	put("request", ocspRequest(p.leaf.cert, p.root.cert))
	for _, c := range []struct {
		index  string
		status OCSPStatus
	}{
		{"V\t361231000000Z\t\t%X\tunknown\t/CN=moon\n", OCSPGood},
		{"R\t361231000000Z\t260501000000Z,keyCompromise\t%X\tunknown\t/CN=moon\n", OCSPRevoked},
		{"", OCSPUnknown},
	} {
		if c.index != "" {
			n := fmt.Sprintf("%X", p.leaf.cert.x.SerialNumber)
			c.index = strings.Replace(c.index, "%X", strings.Repeat("0", len(n)%2)+n, 1)
		}
		put("index", []byte(c.index))
		for _, signer := range []string{"ca", "delegate"} {
			openssl(t, dir, "ocsp", "-index", "index", "-CA", "ca", "-rsigner", signer, "-rkey", signer+".key", "-reqin", "request", "-respout", "response", "-ndays", "2")
			der, err := os.ReadFile(filepath.Join(dir, "response"))
			if err != nil {
				t.Fatal(err)
			}
			a, err := CheckOCSP(der, p.leaf.cert, p.root.cert, theDay)
			if err != nil || a.Status != c.status || a.NextUpdate.Sub(a.ThisUpdate) != 48*time.Hour {
				t.Errorf("signed by %s: %+v, %v", signer, a, err)
			}
			if c.status == OCSPRevoked && (a.Reason != 1 || a.RevokedAt.Month() != time.May) {
				t.Errorf("revoked: %+v", a)
			}
		}
	}
}

// TestLongCRLStaysInPieces counts allocations: a router reads lists with tens of thousands of
// entries.
func TestLongCRLStaysInPieces(t *testing.T) {
	ca := issue(t, "root", edKey("root"), nil, asCA)
	var serials []*big.Int
	for i := range 3000 {
		serials = append(serials, big.NewInt(int64(1_000_000+i)))
	}
	der := ca.revoke(t, theDay, theDay.AddDate(0, 0, 1), serials...)
	l := mustCRL(t, der)
	if n := testing.AllocsPerRun(3, func() { l.find(big.NewInt(7)) }); n > 10 {
		t.Errorf("looking a serial number up takes %v allocations", n)
	}
	if n := testing.AllocsPerRun(3, func() { ParseCRL(der) }); n > 50 {
		t.Errorf("reading a list of 3,000 takes %v allocations", n)
	}
	if e, found := l.find(serials[2999]); !found || !e.at().Equal(theDay.AddDate(0, -1, 0)) || e.reason != 1 {
		t.Errorf("the last entry: %v, %+v", found, e)
	}
}
