package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// plant is the CA hierarchy of most tests: a root, an intermediate, an end entity.
type plant struct {
	root, mid, leaf *party
	trust           *Trust
}

func newPlant(t testing.TB, change func(*x509.Certificate)) *plant {
	p := new(plant)
	p.root = issue(t, "root", edKey("root"), nil, asCA)
	p.mid = issue(t, "mid", ecKey(t, elliptic.P384(), "mid"), p.root, asCA)
	p.leaf = issue(t, "moon", ecKey(t, elliptic.P256(), "moon"), p.mid, change)
	p.trust = mustTrust(t, []Authority{{Cert: p.root.cert}})
	return p
}

func (p *plant) request() *Request {
	return &Request{Now: theDay, Certs: ders(p.leaf, p.mid), IDType: idFQDN, IDData: []byte("moon.example.org")}
}

func TestChainIsFoundWhateverTheOrder(t *testing.T) {
	p := newPlant(t, nil)
	other := issue(t, "other", edKey("other"), nil, asCA)
	twin := issue(t, "mid", edKey("twin"), other, asCA) // the same name by another CA
	for name, r := range map[string]*Request{
		"in order":                  {Certs: ders(p.leaf, p.mid)},
		"with the root":             {Certs: ders(p.leaf, p.root, p.mid)},
		"twice the same":            {Certs: ders(p.leaf, p.mid, p.mid, p.leaf)},
		"with a namesake before it": {Certs: ders(p.leaf, twin, other, p.mid)},
	} {
		r.Now = theDay
		v, err := p.trust.Verify(r)
		if err != nil {
			t.Errorf("%s: refused: %v", name, err)
			continue
		}
		if len(v.Chain) != 3 || !v.Chain[0].Equal(p.leaf.cert) || !v.Chain[1].Equal(p.mid.cert) || !v.Chain[2].Equal(p.root.cert) {
			t.Errorf("%s: the chain has %d certificates, or the wrong ones", name, len(v.Chain))
		}
		if v.Key.String() != "ECDSA P-256" || v.Leaf != v.Chain[0] || !v.NotAfter.Equal(p.leaf.cert.NotAfter()) || len(v.Need) > 0 || len(v.Notes) > 0 {
			t.Errorf("%s: verdict %+v", name, v)
		}
	}
	local := mustTrust(t, []Authority{{Cert: p.root.cert}}, p.mid.cert)
	if _, err := local.Verify(&Request{Now: theDay, Certs: ders(p.leaf)}); err != nil {
		t.Errorf("the intermediate of the configuration does not fill the hole: %v", err)
	}
	if got := local.Issuing(p.leaf.cert); len(got) != 1 || !got[0].Equal(p.mid.cert) {
		t.Errorf("to be sent with the end entity: %d certificates instead of the intermediate alone", len(got))
	}
}

// TestRefusals is a table of everything for which a peer's certificates are refused.
func TestRefusals(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	mid := func(f ...func(*x509.Certificate)) *party {
		return issue(t, "mid", ecKey(t, elliptic.P384(), "mid"), root, also(append([]func(*x509.Certificate){asCA}, f...)...))
	}
	leaf := func(by *party, f ...func(*x509.Certificate)) *party {
		return issue(t, "moon", ecKey(t, elliptic.P256(), "moon"), by, also(f...))
	}
	plain := mid()
	tr := mustTrust(t, []Authority{{Cert: root.cert}})
	ask := func(parties ...*party) *Request {
		return &Request{Now: theDay, Certs: ders(parties...), IDType: idFQDN, IDData: []byte("moon.example.org")}
	}
	critical := func(value []byte, oid ...int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oid, Critical: true, Value: value})
		}
	}
	until := func(d time.Time) func(*x509.Certificate) { return func(c *x509.Certificate) { c.NotAfter = d } }
	from := func(d time.Time) func(*x509.Certificate) { return func(c *x509.Certificate) { c.NotBefore = d } }
	past, future := theDay.Add(-time.Hour), theDay.Add(time.Hour)
	permit := func(f func(*x509.Certificate)) func(*x509.Certificate) { return f }
	subject := func(org string) []byte {
		der, _, err := ParseDN("C=CH, O=" + org)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	dirConstraint := func(excluded bool, dn []byte) []byte {
		tag := 0
		if excluded {
			tag = 1
		}
		sub, _ := asn1.Marshal(asn1.RawValue{Class: 2, Tag: 4, IsCompound: true, Bytes: dn})
		tree, _ := asn1.Marshal(asn1.RawValue{Tag: 16, IsCompound: true, Bytes: sub})
		list, _ := asn1.Marshal(asn1.RawValue{Class: 2, Tag: tag, IsCompound: true, Bytes: tree})
		out, _ := asn1.Marshal(asn1.RawValue{Tag: 16, IsCompound: true, Bytes: list})
		return out
	}
	nameConstraints := []int{2, 5, 29, 30}
	patched := func(p *party, old, new string) []byte {
		der := bytes.Replace(bytes.Clone(p.cert.Raw()), []byte(old), []byte(new), -1)
		if bytes.Equal(der, p.cert.Raw()) {
			t.Fatal("nothing was patched")
		}
		return der
	}
	_, block, _ := net.ParseCIDR("10.1.0.0/16")

	r2048 := issue(t, "rsa root", rsaKey(t, "rsa2048.pem"), nil, asCA)
	rtrust := mustTrust(t, []Authority{{Cert: r2048.cert}})
	weakCA := issue(t, "weak", rsaKey(t, "rsa1024.pem"), root, asCA)
	loopA := issue(t, "a", edKey("a"), issue(t, "b", edKey("b"), nil, asCA), asCA)
	loopB := issue(t, "b", edKey("b"), loopA, asCA)
	var many []*party
	for i, by := 0, root; i < 10; i++ {
		by = issue(t, fmt.Sprint("level ", i), edKey(fmt.Sprint("level ", i)), by, asCA)
		many = append(many, by)
	}
	slices.Reverse(many)
	stranger := issue(t, "root", edKey("stranger"), nil, asCA) // the same name, another key

	for _, c := range []struct {
		name string
		r    *Request
		by   *Trust
		want string // in the error
	}{
		{"no certificate", ask(), nil, "sent no certificate"},
		{"no DER", &Request{Now: theDay, Certs: [][]byte{{1, 2, 3}}}, nil, "damaged certificate"},
		{"17 certificates", &Request{Now: theDay, Certs: slices.Repeat(ders(plain), 17)}, nil, "at most 10"},
		{"oversized", &Request{Now: theDay, Certs: [][]byte{plain.cert.Raw(), make([]byte, MaxCertOctets)}}, nil, "at most 65536"},
		{"no trust at all", ask(leaf(plain), plain), new(Trust), "not at hand"},
		{"issuer missing", ask(leaf(plain)), nil, `its issuer "C=CH, O=plant, CN=mid" is not at hand`},
		{"self-signed", ask(leaf(nil)), nil, "self-signed and not a CA that is trusted"},
		{"root of the same name", ask(leaf(stranger), stranger), nil, "signature is wrong"},
		{"expired", ask(leaf(plain, until(past)), plain), nil, `certificate "C=CH, O=plant, CN=moon": the certificate has expired on 2026-06-01 11:00`},
		{"not yet valid", ask(leaf(plain, from(future)), plain), nil, "not valid before 2026-06-01 13:00"},
		{"expired intermediate", ask(leaf(mid(until(past))), mid(until(past))), nil, `CN=mid": the certificate has expired`},
		{"another name", &Request{Now: theDay, Certs: ders(leaf(plain), plain), IDType: idFQDN, IDData: []byte("sun.example.org")}, nil, `does not name "sun.example.org", but DNS:moon.example.org`},
		{"key usage", ask(leaf(plain, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), plain), nil, "key usage allows no signatures"},
		{"extended key usage", ask(leaf(plain, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), plain), nil, "extended key usage"},
		{"extended key usage of the CA", ask(leaf(mid(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} })),
			mid(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} })), nil, "CA's extended key usage"},
		{"critical extension", ask(leaf(plain, critical([]byte{5, 0}, 1, 2, 3, 4)), plain), nil, "critical extension (1.2.3.4)"},
		{"critical extension of the CA", ask(leaf(plain), mid(critical([]byte{5, 0}, 1, 2, 3, 4))), nil, `CN=mid": it has a critical extension`},
		{"explicit policies", ask(leaf(plain), mid(critical([]byte{0x30, 3, 0x80, 1, 0}, 2, 5, 29, 36))), nil, "explicit certificate policies"},
		{"issuer is no CA", ask(issue(t, "moon", edKey("x"), leaf(plain), nil), leaf(plain), plain), nil, "is not a CA's"},
		{"issuer may not issue", ask(leaf(mid(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })), mid(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })), nil, "does not allow it to issue"},
		{"path length", ask(leaf(issue(t, "low", edKey("low"), mid(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), asCA)),
			issue(t, "low", edKey("low"), mid(), asCA), mid(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })), nil, "allows 0 CAs below it"},
		{"loop", ask(leaf(loopA), loopA, loopB), nil, "not at hand"},
		{"too deep", ask(append([]*party{leaf(many[0])}, many[:9]...)...), nil, "longer than 10"},
		{"signature changed", &Request{Now: theDay, Certs: [][]byte{patched(leaf(plain), "moon.example.org", "noon.example.org"), plain.cert.Raw()}}, nil, "signature is wrong"},
		{"MD5", &Request{Now: theDay, Certs: [][]byte{patched(leaf(r2048), oidPKCS1+"\x0b", oidPKCS1+"\x04")}}, rtrust, "MD5 is too weak"},
		{"SHA-1 (RSA)", ask(leaf(r2048, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA })), rtrust, "SHA-1 is too weak"},
		{"SHA-1 (ECDSA)", ask(leaf(plain, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), plain), nil, "SHA-1 is too weak"},
		{"RSA 1024", ask(issue(t, "moon", rsaKey(t, "rsa1024.pem"), plain, nil), plain), nil, "RSA key has 1024 bits"},
		{"RSA 1024 of the CA", ask(leaf(weakCA), weakCA), nil, `CN=weak": the RSA key has 1024 bits`},
		{"P-224", ask(issue(t, "moon", ecKey(t, elliptic.P224(), "p224"), plain, nil), plain), nil, "curve other than"},
		{"DNS name not permitted", ask(leaf(plain), mid(permit(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }))), nil, `name "moon.example.org" is outside of the permitted names of certificate "C=CH, O=plant, CN=mid"`},
		{"DNS name excluded", ask(leaf(plain), mid(permit(func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"EXAMPLE.org"} }))), nil, `name "moon.example.org" is excluded`},
		{"address not permitted", &Request{Now: theDay, Certs: ders(leaf(plain, func(c *x509.Certificate) { c.IPAddresses = []net.IP{{10, 2, 0, 1}} }), mid(func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{block} }))}, nil, "10.2.0.1 is outside"},
		{"e-mail excluded", &Request{Now: theDay, Certs: ders(leaf(plain, func(c *x509.Certificate) { c.EmailAddresses = []string{"joe@bad.example"} }), mid(func(c *x509.Certificate) { c.ExcludedEmailAddresses = []string{".example"} }))}, nil, `"joe@bad.example" is excluded`},
		{"URI excluded", &Request{Now: theDay, Certs: ders(leaf(plain, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "a.example:8080"}} }), mid(func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"a.example"} }))}, nil, "is excluded"},
		{"too many names", &Request{Now: theDay, Certs: ders(leaf(plain, func(c *x509.Certificate) { c.DNSNames = slices.Repeat([]string{"moon.example.org"}, 100) }),
			mid(func(c *x509.Certificate) { c.PermittedDNSDomains = slices.Repeat([]string{"example.org"}, 100) }))}, nil, "more names than are compared"},
		{"directory name not permitted", ask(leaf(plain), mid(critical(dirConstraint(false, subject("other")), nameConstraints...))), nil, `name "C=CH, O=plant, CN=moon" is outside`},
		{"directory name excluded", ask(leaf(plain), mid(critical(dirConstraint(true, subject("PLANT")), nameConstraints...))), nil, `name "C=CH, O=plant, CN=moon" is excluded`},
		{"pinned to another", &Request{Now: theDay, Certs: ders(leaf(plain), plain), Pinned: []*Cert{plain.cert}}, nil, "not one of the certificates"},
		{"anchor not passed", &Request{Now: theDay, Certs: ders(leaf(plain), plain), Anchors: []*Cert{r2048.cert}}, nil, "passes no CA that is configured"},
		{"clock wrong, but expired anyhow", &Request{Now: time.Unix(0, 0), Floor: theDay, Certs: ders(leaf(plain, until(past)), plain)}, nil, "has expired"},
	} {
		by := c.by
		if by == nil {
			by = tr
		}
		v, err := by.Verify(c.r)
		switch {
		case err == nil:
			t.Errorf("%s: accepted, with a chain of %d", c.name, len(v.Chain))
		case !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: refused with %q, which does not say %q", c.name, err, c.want)
		}
	}
}

func TestNameConstraintsLetTheirOwnPass(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	_, block, _ := net.ParseCIDR("10.1.0.0/16")
	mid := issue(t, "mid", edKey("mid"), root, also(asCA, func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical = true
		c.PermittedDNSDomains = []string{"example.com", "example.org"}
		c.PermittedIPRanges = []*net.IPNet{block}
		c.PermittedEmailAddresses = []string{"example.org"}
		c.ExcludedDNSDomains = []string{"secret.example.org"}
	}))
	leaf := issue(t, "moon", edKey("moon"), mid, func(c *x509.Certificate) {
		c.DNSNames = []string{"moon.example.org", "notsecret.example.org"}
		c.IPAddresses = []net.IP{{10, 1, 2, 3}}
		c.EmailAddresses = []string{"joe@EXAMPLE.org"}
	})
	if _, err := mustTrust(t, []Authority{{Cert: root.cert}}).Verify(&Request{Now: theDay, Certs: ders(leaf, mid)}); err != nil {
		t.Fatalf("names within the constraints are refused: %v", err)
	}
}

func TestUsualPurposesAreTaken(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	tr := mustTrust(t, []Authority{{Cert: root.cert}})
	for name, f := range map[string]func(*x509.Certificate){
		"no key usage":    func(c *x509.Certificate) { c.KeyUsage = 0 },
		"non-repudiation": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment },
		"server":          func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"client":          func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
		"any":             func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"IKE":             func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{ekuIPsecIKE} },
		"IKE of old":      func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{ekuIntermediate} },
	} {
		if _, err := tr.Verify(&Request{Now: theDay, Certs: ders(issue(t, "moon", edKey("moon"), root, f))}); err != nil {
			t.Errorf("%s: refused: %v", name, err)
		}
	}
}

func TestPinnedAndRequiredAnchors(t *testing.T) {
	p := newPlant(t, nil)
	own := issue(t, "alone", edKey("alone"), nil, nil)
	empty := mustTrust(t, nil)
	if v, err := empty.Verify(&Request{Now: theDay, Certs: ders(own), Pinned: []*Cert{own.cert}, Revocation: RevokeStrict}); err != nil || len(v.Chain) != 1 {
		t.Errorf("a self-signed certificate that is pinned is refused: %v", err)
	}
	if _, err := empty.Verify(&Request{Now: theDay, Certs: ders(p.leaf), Pinned: []*Cert{p.leaf.cert}}); err != nil {
		t.Errorf("a pinned certificate without its CA is refused: %v", err)
	}
	if _, err := empty.Verify(&Request{Now: theDay, Certs: ders(p.leaf), Pinned: []*Cert{p.leaf.cert}, Revocation: RevokeStrict}); err == nil {
		t.Error("policy strict takes a pinned certificate of which nobody can tell whether it is revoked")
	}
	if _, err := empty.Verify(&Request{Now: theDay.AddDate(2, 0, 0), Certs: ders(own), Pinned: []*Cert{own.cert}}); err == nil {
		t.Error("an expired certificate is taken because it is pinned")
	}
	if v, err := p.trust.Verify(&Request{Now: theDay, Certs: ders(p.leaf, p.mid), Anchors: []*Cert{p.mid.cert}}); err != nil || len(v.Chain) != 3 {
		t.Errorf("a chain that passes the required anchor to the root: %v", err)
	}
	if v, err := empty.Verify(&Request{Now: theDay, Certs: ders(p.leaf), Anchors: []*Cert{p.mid.cert}}); err != nil || len(v.Chain) != 2 {
		t.Errorf("a chain that ends at the required anchor: %v", err)
	}
	other := issue(t, "mid2", edKey("mid2"), p.root, asCA)
	if _, err := p.trust.Verify(&Request{Now: theDay, Certs: ders(p.leaf, p.mid), Anchors: []*Cert{other.cert}}); err == nil {
		t.Error("a chain beside the required intermediate is taken because the root is trusted")
	}
}

func TestClockBeforeFloorExcusesTheFutureOnly(t *testing.T) {
	p := newPlant(t, nil)
	r := p.request()
	r.Now = time.Unix(60, 0)
	if _, err := p.trust.Verify(r); err == nil {
		t.Error("without a floor a clock in 1970 is believed, and the certificates are not yet valid")
	}
	r.Floor = theDay
	v, err := p.trust.Verify(r)
	if err != nil {
		t.Fatalf("with a floor the certificates are refused: %v", err)
	}
	if len(v.Notes) != 1 || !strings.Contains(v.Notes[0], "clock (1970-01-01") {
		t.Errorf("the log does not hear of the clock: %q", v.Notes)
	}
	// Before the certificates begin, but after the floor, nothing is excused.
	r.Now, r.Floor = theDay.AddDate(-2, 0, 0), theDay.AddDate(-3, 0, 0)
	if _, err := p.trust.Verify(r); err == nil {
		t.Error("a clock after the floor is not believed")
	}
	// The age of a CRL is excused, what it says is not.
	old := p.mid.revoke(t, theDay.AddDate(0, -2, 0), theDay.AddDate(0, -1, 0))
	none := p.root.revoke(t, theDay.AddDate(0, -2, 0), theDay.AddDate(0, -1, 0))
	r = p.request()
	r.Revocation, r.CRLs = RevokeStrict, [][]byte{old, none}
	if _, err := p.trust.Verify(r); err == nil {
		t.Error("policy strict takes CRLs that are out of date")
	}
	r.Now, r.Floor = time.Unix(60, 0), theDay
	if _, err := p.trust.Verify(r); err != nil {
		t.Errorf("with a wrong clock the age of CRLs is not excused: %v", err)
	}
	r.CRLs[0] = p.mid.revoke(t, theDay.AddDate(0, -2, 0), theDay.AddDate(0, -1, 0), p.leaf.cert.x.SerialNumber)
	if _, err := p.trust.Verify(r); err == nil {
		t.Error("with a wrong clock a revoked certificate is taken")
	}
}

func TestNewTrustRefusesWhatCannotServe(t *testing.T) {
	leaf := issue(t, "moon", edKey("moon"), nil, nil)
	weak := issue(t, "weak", rsaKey(t, "rsa1024.pem"), nil, asCA)
	ca := issue(t, "root", edKey("root"), nil, asCA)
	for want, a := range map[string]Authority{
		"without a certificate": {},
		"is not a CA's":         {Cert: leaf.cert},
		"1024 bits":             {Cert: weak.cert},
		"not an http:// URI":    {Cert: ca.cert, CRLURIs: []string{"ldap://x/"}},
	} {
		if _, err := NewTrust([]Authority{a}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v instead of %q", err, want)
		}
	}
	tr := mustTrust(t, []Authority{{Cert: ca.cert}, {Cert: ca.cert}})
	if ids := tr.KeyIDs(); len(ids) != 1 || ids[0] != ca.cert.key.KeyID() {
		t.Errorf("key identifiers for CERTREQ: %x", ids)
	}
}

// TestHostileChainIsBounded gives the search as many ways as a peer can make.
func TestHostileChainIsBounded(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	tr := mustTrust(t, []Authority{{Cert: root.cert}})
	var list []*party
	// Nine CAs of one name whose keys differ: each could have issued each.
	for i := range 9 {
		list = append(list, issue(t, "x", edKey(fmt.Sprint("x", i)), issue(t, "x", edKey(fmt.Sprint("x", (i+1)%9)), nil, asCA), asCA))
	}
	leaf := issue(t, "moon", edKey("moon"), list[0], nil)
	v := &verifier{t: tr, r: &Request{Now: theDay}, known: new(Checked), links: make(map[[2]*Cert]error), at: theDay, anchors: []*Cert{root.cert}}
	for _, p := range list {
		v.pool = append(v.pool, p.cert)
	}
	if v.search([]*Cert{leaf.cert}, true) != nil {
		t.Fatal("a chain was found where there is none")
	}
	if v.checks > maxChecks+81 || v.why == nil {
		t.Errorf("%d signatures were looked at, error %v", v.checks, v.why)
	}
	done := 0
	for _, err := range v.links {
		if err == nil || !strings.Contains(err.Error(), "no chain was found within") {
			done++
		}
	}
	if done > maxChecks {
		t.Errorf("%d signatures were checked; at most %d may be", done, maxChecks)
	}
}

// TestRefusalsStayShort gives names of a stranger that would fill a log.
func TestRefusalsStayShort(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	tr := mustTrust(t, []Authority{{Cert: root.cert}})
	long := strings.Repeat("x", 3000)
	for name, r := range map[string]*Request{
		"subject":  {Certs: ders(issue(t, long, edKey("x"), nil, func(c *x509.Certificate) { c.DNSNames = nil }))},
		"names":    {Certs: ders(issue(t, "moon", edKey("x"), root, func(c *x509.Certificate) { c.DNSNames = slices.Repeat([]string{long}, 10) })), IDType: idFQDN, IDData: []byte("a")},
		"identity": {Certs: ders(issue(t, "moon", edKey("x"), root, nil)), IDType: idFQDN, IDData: []byte(long)},
	} {
		r.Now = theDay
		if _, err := tr.Verify(r); err == nil || len(err.Error()) > 2000 {
			t.Errorf("%s: the refusal has %d octets", name, len(fmt.Sprint(err)))
		}
	}
}

// TestQuestionsShareTheirChecks asks for many connections about the certificates of one stranger.
func TestQuestionsShareTheirChecks(t *testing.T) {
	root := issue(t, "root", edKey("root"), nil, asCA)
	mid := issue(t, "mid", edKey("mid"), root, asCA)
	moon := issue(t, "moon", edKey("moon"), mid, nil)
	tr := mustTrust(t, []Authority{{Cert: root.cert}})
	known := new(Checked)
	for range 3 {
		if _, err := tr.Verify(&Request{Now: theDay, Certs: ders(moon, mid), Checked: known}); err != nil {
			t.Fatal(err)
		}
	}
	if len(known.links) != 2 {
		t.Errorf("%d signatures were checked for a chain of two", len(known.links))
	}

	var list []*party
	for i := range 9 {
		list = append(list, issue(t, "x", edKey(fmt.Sprint("x", i)), issue(t, "x", edKey(fmt.Sprint("x", (i+1)%9)), nil, asCA), asCA))
	}
	strange := ders(append([]*party{issue(t, "moon", edKey("moon"), list[0], nil)}, list...)...)
	known = new(Checked)
	for range 16 {
		if _, err := tr.Verify(&Request{Now: theDay, Certs: strange, Checked: known}); err == nil {
			t.Fatal("a chain was found where there is none")
		}
	}
	if n := len(known.links); n == 0 || n > maxChecked {
		t.Errorf("%d signatures were checked for 16 questions; at most %d may be", n, maxChecked)
	}
}
