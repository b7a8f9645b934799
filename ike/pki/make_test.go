package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"testing"
	"time"
)

// The RSA keys in testdata were made with "openssl genpkey -algorithm RSA"; the others follow
// from their names.

// theDay is when the tests take place.
var theDay = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// zeros is a source without randomness: whatever is made with it is the same every time.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func edKey(name string) ed25519.PrivateKey {
	sum := sha512.Sum512([]byte(name))
	return ed25519.NewKeyFromSeed(sum[:32])
}

func ecKey(t testing.TB, c elliptic.Curve, name string) *ecdsa.PrivateKey {
	t.Helper()
	sum := sha512.Sum512([]byte(name))
	n := (c.Params().BitSize + 7) / 8
	raw := make([]byte, n)
	copy(raw[max(n-32, 0):], sum[:32])
	raw[max(n-32, 0)] &= 0x7f
	k, err := ecdsa.ParseRawPrivateKey(c, raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, file string) crypto.Signer {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k.(crypto.Signer)
}

// party is a certificate with its key.
type party struct {
	cert *Cert
	key  crypto.Signer
}

var serials int64 = 1000

// issue makes a certificate: an end entity's unless change makes it something else. A nil issuer
// means self-signed.
func issue(t testing.TB, cn string, key crypto.Signer, issuer *party, change func(*x509.Certificate)) *party {
	t.Helper()
	serials++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serials),
		Subject:      pkix.Name{Country: []string{"CH"}, Organization: []string{"plant"}, CommonName: cn},
		NotBefore:    theDay.AddDate(-1, 0, 0),
		NotAfter:     theDay.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     []string{cn + ".example.org"},
	}
	if change != nil {
		change(tmpl)
	}
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.cert.x, issuer.key
	}
	der, err := x509.CreateCertificate(zeros{}, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatalf("certificate %s: %v", cn, err)
	}
	c, err := ParseCert(der)
	if err != nil {
		t.Fatalf("certificate %s: %v", cn, err)
	}
	return &party{c, key}
}

// asCA makes a CA of a certificate.
func asCA(c *x509.Certificate) {
	c.BasicConstraintsValid, c.IsCA = true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	c.DNSNames = nil
	c.MaxPathLen = -1
}

func also(f ...func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, g := range f {
			g(c)
		}
	}
}

// revoke makes a CRL.
func (p *party) revoke(t testing.TB, this, next time.Time, serials ...*big.Int) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: this, NextUpdate: next}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: s, RevocationTime: theDay.AddDate(0, -1, 0), ReasonCode: 1})
	}
	return p.crl(t, l)
}

func (p *party) crl(t testing.TB, l *x509.RevocationList) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(zeros{}, l, p.cert.x, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func mustCRL(t testing.TB, der []byte) *CRL {
	t.Helper()
	l, err := ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustTrust(t testing.TB, as []Authority, between ...*Cert) *Trust {
	t.Helper()
	tr, err := NewTrust(as, between)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func ders(parties ...*party) (list [][]byte) {
	for _, p := range parties {
		list = append(list, p.cert.Raw())
	}
	return list
}

// responseOf makes an OCSP response by x/crypto's form of RFC 6960: by is the responder, and
// sent along if it is not the issuer.
type ocspAnswer struct {
	status       int // 0 good, 1 revoked, 2 unknown
	this, next   time.Time
	sha256       bool
	badSignature bool
	serial       *big.Int
}

func respond(t testing.TB, issuer, by *party, c *Cert, a ocspAnswer) []byte {
	t.Helper()
	hash, oid := SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	if a.sha256 {
		hash, oid = SHA2_256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	}
	name, key := ocspHashes(hash, issuer.cert)
	type certID struct {
		Hash      pkix.AlgorithmIdentifier
		Name, Key []byte
		Serial    *big.Int
	}
	type revoked struct {
		At     time.Time       `asn1:"generalized"`
		Reason asn1.Enumerated `asn1:"explicit,tag:0,optional"`
	}
	type single struct {
		ID      certID
		Good    asn1.Flag `asn1:"tag:0,optional"`
		Revoked revoked   `asn1:"tag:1,optional"`
		Unknown asn1.Flag `asn1:"tag:2,optional"`
		This    time.Time `asn1:"generalized"`
		Next    time.Time `asn1:"generalized,explicit,tag:0,optional"`
	}
	type data struct {
		Responder asn1.RawValue
		Produced  time.Time `asn1:"generalized"`
		Responses []single
	}
	s := single{ID: certID{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}, name, key, c.x.SerialNumber}, This: a.this.UTC(), Next: a.next.UTC()}
	if a.serial != nil {
		s.ID.Serial = a.serial
	}
	switch a.status {
	case 0:
		s.Good = true
	case 1:
		s.Revoked = revoked{theDay.AddDate(0, -1, 0), 4}
	default:
		s.Unknown = true
	}
	tbs, err := asn1.Marshal(data{
		Responder: asn1.RawValue{Class: 2, Tag: 1, IsCompound: true, Bytes: by.cert.x.RawSubject},
		Produced:  a.this.UTC(), Responses: []single{s},
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(by.key)
	if err != nil {
		t.Fatal(err)
	}
	sch := scheme{fam: famEd25519, hash: Identity}
	switch {
	case k.rsa != nil:
		sch = scheme{fam: famPKCS1, hash: SHA2_256}
	case k.ec != nil:
		sch = scheme{fam: famECDSA, hash: SHA2_256}
	}
	sig, err := k.sign(sch, tbs, zeros{})
	if err != nil {
		t.Fatal(err)
	}
	if a.badSignature {
		sig[len(sig)-1] ^= 1
	}
	basic := struct {
		TBS   asn1.RawValue
		Alg   asn1.RawValue
		Sig   asn1.BitString
		Certs []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}{TBS: asn1.RawValue{FullBytes: tbs}, Alg: asn1.RawValue{FullBytes: sch.alg()}, Sig: asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}}
	if by != issuer {
		basic.Certs = []asn1.RawValue{{FullBytes: by.cert.Raw()}}
	}
	body, err := asn1.Marshal(basic)
	if err != nil {
		t.Fatal(err)
	}
	type rb struct {
		Type asn1.ObjectIdentifier
		Body []byte
	}
	out, err := asn1.Marshal(struct {
		Status asn1.Enumerated
		Bytes  rb `asn1:"explicit,tag:0"`
	}{0, rb{asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}, body}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var errDown = errors.New("connection refused")

// serve answers what a verdict needs from a map of URLs; what is not in it is down.
func serve(need []Fetch, bodies map[string][]byte) (got []Fetched) {
	for _, f := range need {
		g := Fetched{Fetch: f, Body: bodies[f.URL]}
		if g.Body == nil {
			g.Err = errDown
		}
		got = append(got, g)
	}
	return got
}
