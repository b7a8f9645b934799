//go:build linux

package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// keyKind is a kind of private key that certificates are made for.
type keyKind string

const (
	rsa2048  keyKind = "rsa2048"
	rsa3072  keyKind = "rsa3072"
	rsa4096  keyKind = "rsa4096"
	ecdsa256 keyKind = "ecdsa256"
	ecdsa384 keyKind = "ecdsa384"
	ecdsa521 keyKind = "ecdsa521"
	ed25519K keyKind = "ed25519"
)

// allKeyKinds are the kinds of keys that both daemons know.
var allKeyKinds = []keyKind{rsa2048, rsa3072, rsa4096, ecdsa256, ecdsa384, ecdsa521, ed25519K}

// keysMade keeps the keys of a run by kind and owner, because RSA keys take a while. No two
// owners have the same one: a signature with the wrong key must not pass.
var keysMade sync.Map

// keyOf returns the private key of that kind that belongs to the name.
func keyOf(t *testing.T, kind keyKind, name string) crypto.Signer {
	t.Helper()
	id := string(kind) + " " + name
	if k, ok := keysMade.Load(id); ok {
		return k.(crypto.Signer)
	}
	var k crypto.Signer
	var err error
	switch kind {
	case rsa2048:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case rsa3072:
		k, err = rsa.GenerateKey(rand.Reader, 3072)
	case rsa4096:
		k, err = rsa.GenerateKey(rand.Reader, 4096)
	case ecdsa256:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ecdsa384:
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ecdsa521:
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case ed25519K:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no kind of key: %q", kind)
	}
	if err != nil {
		t.Fatalf("make a key %s: %v", kind, err)
	}
	kept, _ := keysMade.LoadOrStore(id, k)
	return kept.(crypto.Signer)
}

// credential is a certificate with its private key and the way up to its root.
type credential struct {
	t      *testing.T
	name   string // the common name, and the stem of file names
	key    crypto.Signer
	cert   *x509.Certificate
	issuer *credential // nil: signed by itself
}

// certSpec says what a certificate shall be. The zero value with a name is an end entity
// with a P-256 key and the name as its DNS name.
type certSpec struct {
	name      string
	kind      keyKind // "": ecdsa256
	ca        bool
	dns       []string // nil with no other names: the name; empty but not nil: none
	emails    []string
	addrs     []string
	notBefore time.Time // zero: an hour ago
	notAfter  time.Time // zero: in a day
	crlURIs   []string
	ocspURIs  []string
	ekus      []x509.ExtKeyUsage
	// alter changes what was set, right before it is signed.
	alter func(*x509.Certificate)
}

// newRoot makes a certificate authority that signs itself.
func newRoot(t *testing.T, name string, kind keyKind) *credential {
	t.Helper()
	return sign(t, nil, certSpec{name: name, kind: kind, ca: true})
}

// issue makes a certificate below this one.
func (c *credential) issue(s certSpec) *credential {
	c.t.Helper()
	return sign(c.t, c, s)
}

// sign makes a certificate; without an issuer it signs itself.
func sign(t *testing.T, issuer *credential, s certSpec) *credential {
	t.Helper()
	if s.kind == "" {
		s.kind = ecdsa256
	}
	if s.notBefore.IsZero() {
		s.notBefore = time.Now().Add(-time.Hour)
	}
	if s.notAfter.IsZero() {
		s.notAfter = time.Now().Add(24 * time.Hour)
	}
	if s.dns == nil && s.emails == nil && s.addrs == nil && !s.ca {
		s.dns = []string{s.name}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Country: []string{"CH"}, Organization: []string{"Weir and Lock"}, CommonName: s.name},
		NotBefore:             s.notBefore,
		NotAfter:              s.notAfter,
		BasicConstraintsValid: s.ca,
		IsCA:                  s.ca,
		DNSNames:              s.dns,
		EmailAddresses:        s.emails,
		CRLDistributionPoints: s.crlURIs,
		OCSPServer:            s.ocspURIs,
		ExtKeyUsage:           s.ekus,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	if s.ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	for _, a := range s.addrs {
		ip := net.ParseIP(a)
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
	}
	if s.alter != nil {
		s.alter(tmpl)
	}
	key := keyOf(t, s.kind, s.name)
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatalf("certificate of %s: %v", s.name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("certificate of %s: %v", s.name, err)
	}
	return &credential{t: t, name: s.name, key: key, cert: cert, issuer: issuer}
}

// certPEM returns the certificate alone.
func (c *credential) certPEM() string { return pemText("CERTIFICATE", c.cert.Raw) }

// chainPEM returns the certificate and those above it, but not the root.
func (c *credential) chainPEM() string {
	var b strings.Builder
	b.WriteString(c.certPEM())
	for _, i := range c.intermediates() {
		b.WriteString(i.certPEM())
	}
	return b.String()
}

// intermediates returns what lies between the certificate and its root, the nearest first.
func (c *credential) intermediates() []*credential {
	var list []*credential
	for i := c.issuer; i != nil && i.issuer != nil; i = i.issuer {
		list = append(list, i)
	}
	return list
}

// keyPEM returns the private key as PKCS#8.
func (c *credential) keyPEM() string {
	c.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return pemText("PRIVATE KEY", der)
}

// publicPEM returns the public key as SubjectPublicKeyInfo.
func (c *credential) publicPEM() string { return pemText("PUBLIC KEY", c.cert.RawSubjectPublicKeyInfo) }

// crl returns a revocation list of this authority that is valid for an hour.
func (c *credential) crl(number int64, revoked ...*credential) string {
	c.t.Helper()
	list := &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
	}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.cert.SerialNumber, RevocationTime: time.Now().Add(-2 * time.Minute), ReasonCode: 1,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	if err != nil {
		c.t.Fatalf("revocation list of %s: %v", c.name, err)
	}
	return pemText("X509 CRL", der)
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// round is one authentication of one side (RFC 4739 has several).
type round struct {
	auth string // psk, or as swanctl.conf has it: pubkey, rsa, ecdsa-sha384, rsa/pss-sha256, …
	id   string // "": the connection's for the first round, the subject of the certificate behind it
	// cert is what a side proves itself with, or of the other side the only one that is accepted.
	cert *credential
	raw  bool // the public key alone instead of its certificate (RFC 7670)
	// of the other side only:
	cas        []*credential // what the chain must pass
	revocation string        // strict, ifuri, relaxed; "": the default
}

// credentials are the files that a daemon has beside its configuration.
type credentials struct {
	roots []*credential // trusted
	crls  []string      // as PEM
}

// usesCerts tells whether anybody proves himself with a key.
func (c spec) usesCerts() bool {
	for _, n := range c.conns {
		if len(n.localAuth) > 0 || len(n.remoteAuth) > 0 {
			return true
		}
	}
	return false
}

// usesSecret tells whether one of the sides of a connection proves itself with the secret.
func (n conn) usesSecret() bool {
	if len(n.localAuth)+len(n.remoteAuth) == 0 {
		return true
	}
	for _, r := range append(append([]round(nil), n.localAuth...), n.remoteAuth...) {
		if r.auth == "psk" {
			return true
		}
	}
	return false
}

// certPair returns the configurations of pairSpecs with certificates instead of a secret: each
// side has one of that kind, issued by an intermediate authority of its own that only it
// has; both trust the root above the two.
func certPair(t *testing.T, kindA, kindB keyKind) (a, b spec, certA, certB *credential) {
	t.Helper()
	a, b = pairSpecs(false, false)
	root := newRoot(t, "root", ecdsa256)
	certA = root.issue(certSpec{name: "north", ca: true}).issue(certSpec{name: "a.example", kind: kindA})
	certB = root.issue(certSpec{name: "south", ca: true}).issue(certSpec{name: "b.example", kind: kindB})
	a.conns[0].localAuth, a.conns[0].remoteAuth = []round{{auth: "pubkey", cert: certA}}, []round{{auth: "pubkey"}}
	b.conns[0].localAuth, b.conns[0].remoteAuth = []round{{auth: "pubkey", cert: certB}}, []round{{auth: "pubkey"}}
	a.certs.roots, b.certs.roots = []*credential{root}, []*credential{root}
	return a, b, certA, certB
}

// file returns a name that differs between credentials of one name.
func (c *credential) file() string {
	return fmt.Sprintf("%s-%x.pem", c.name, c.cert.SerialNumber.Bytes()[:4])
}

// writeFile writes a file of a daemon's directory, below a folder that is made.
func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// charonCredentials lays out what swanctl --load-creds reads below its directory. Intermediate
// authorities stand beside the roots, where charon finds those that it has to send; it trusts
// them then, so no two sides should share one.
func charonCredentials(t *testing.T, dir string, c spec) {
	t.Helper()
	for _, sub := range []string{"x509", "x509ca", "x509crl", "private", "pubkey"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	public := func(r round) {
		if r.raw {
			writeFile(t, dir, "pubkey/"+r.cert.file(), r.cert.publicPEM())
		} else {
			writeFile(t, dir, "x509/"+r.cert.file(), r.cert.certPEM())
		}
	}
	for _, n := range c.conns {
		for _, r := range n.localAuth {
			if r.cert == nil {
				continue
			}
			public(r)
			writeFile(t, dir, "private/"+r.cert.file(), r.cert.keyPEM())
			if !r.raw {
				for _, i := range r.cert.intermediates() {
					writeFile(t, dir, "x509ca/"+i.file(), i.certPEM())
				}
			}
		}
		for _, r := range n.remoteAuth {
			if r.cert != nil {
				public(r)
			}
			for _, ca := range r.cas {
				writeFile(t, dir, "x509ca/"+ca.file(), ca.certPEM())
			}
		}
	}
	for _, ca := range c.certs.roots {
		writeFile(t, dir, "x509ca/"+ca.file(), ca.certPEM())
	}
	for i, crl := range c.certs.crls {
		writeFile(t, dir, fmt.Sprintf("x509crl/%d.pem", i), crl)
	}
}

// charonRounds returns the local and remote sections of a connection.
func charonRounds(n conn) string {
	var b strings.Builder
	write := func(side string, i int, r round, id string) {
		fmt.Fprintf(&b, "    %s-%d {\n      round = %d\n      auth = %s\n", side, i+1, i+1, r.auth)
		if r.id != "" {
			id = r.id
		} else if i > 0 {
			id = ""
		}
		if id != "" {
			fmt.Fprintf(&b, "      id = %q\n", id)
		}
		if r.cert != nil && r.raw {
			fmt.Fprintf(&b, "      pubkeys = %s\n", r.cert.file())
		} else if r.cert != nil {
			fmt.Fprintf(&b, "      certs = %s\n", r.cert.file())
		}
		if len(r.cas) > 0 {
			var names []string
			for _, ca := range r.cas {
				names = append(names, ca.file())
			}
			fmt.Fprintf(&b, "      cacerts = %s\n", strings.Join(names, ","))
		}
		if r.revocation != "" {
			fmt.Fprintf(&b, "      revocation = %s\n", r.revocation)
		}
		b.WriteString("    }\n")
	}
	for i, r := range n.localAuth {
		write("local", i, r, n.localID)
	}
	for i, r := range n.remoteAuth {
		write("remote", i, r, n.remoteID)
	}
	return b.String()
}

// posternCredentials writes the files that posternRounds names.
func posternCredentials(t *testing.T, dir string, c spec) {
	t.Helper()
	for _, n := range c.conns {
		for _, r := range append(append([]round(nil), n.localAuth...), n.remoteAuth...) {
			if r.cert != nil {
				writeFile(t, dir, "certs/"+r.cert.file(), r.cert.chainPEM())
				writeFile(t, dir, "pubkeys/"+r.cert.file(), r.cert.publicPEM())
			}
			for _, ca := range r.cas {
				writeFile(t, dir, "cacerts/"+ca.file(), ca.certPEM())
			}
		}
		for _, r := range n.localAuth {
			if r.cert != nil {
				writeFile(t, dir, "private/"+r.cert.file(), r.cert.keyPEM())
			}
		}
	}
	for _, ca := range c.certs.roots {
		writeFile(t, dir, "cacerts/"+ca.file(), ca.certPEM())
	}
	for i, crl := range c.certs.crls {
		writeFile(t, dir, fmt.Sprintf("crls/%d.pem", i), crl)
	}
}

// posternRounds returns the local and remote sections of a connection.
func posternRounds(n conn) string {
	var b strings.Builder
	write := func(side string, i int, r round, id string) {
		fmt.Fprintf(&b, "[connections.%s.%s", n.name, side)
		if i > 0 {
			fmt.Fprintf(&b, "-%d", i+1)
			id = ""
		}
		fmt.Fprintf(&b, "]\nauth = %q\n", r.auth)
		if r.id != "" {
			id = r.id
		}
		if id != "" {
			fmt.Fprintf(&b, "id = %q\n", id)
		}
		if r.cert != nil && r.raw {
			fmt.Fprintf(&b, "pubkeys = [%q]\n", "pubkeys/"+r.cert.file())
		} else if r.cert != nil {
			fmt.Fprintf(&b, "certs = [%q]\n", "certs/"+r.cert.file())
		}
		if r.cert != nil && side == "local" {
			fmt.Fprintf(&b, "key = %q\n", "private/"+r.cert.file())
		}
		if len(r.cas) > 0 {
			var names []string
			for _, ca := range r.cas {
				names = append(names, fmt.Sprintf("%q", "cacerts/"+ca.file()))
			}
			fmt.Fprintf(&b, "cacerts = [%s]\n", strings.Join(names, ", "))
		}
		if r.revocation != "" {
			fmt.Fprintf(&b, "revocation = %q\n", r.revocation)
		}
	}
	for i, r := range n.localAuth {
		write("local", i, r, n.localID)
	}
	for i, r := range n.remoteAuth {
		write("remote", i, r, n.remoteID)
	}
	return b.String()
}

// posternAuthorities returns the sections of the trusted roots; revocation lists go with the first.
func posternAuthorities(c spec) string {
	var b strings.Builder
	for i, ca := range c.certs.roots {
		fmt.Fprintf(&b, "\n[authorities.ca%d]\ncacert = %q\n", i, "cacerts/"+ca.file())
		if i == 0 && len(c.certs.crls) > 0 {
			var names []string
			for j := range c.certs.crls {
				names = append(names, fmt.Sprintf("%q", fmt.Sprintf("crls/%d.pem", j)))
			}
			fmt.Fprintf(&b, "crls = [%s]\n", strings.Join(names, ", "))
		}
	}
	return b.String()
}

// The files that tests hand to the daemons are what other daemons take: charon with charon, each
// kind of key on either side, over an intermediate authority that the peer has to be sent.
func TestCharonPairWithCertificates(t *testing.T) {
	needCharon(t)
	for i, kind := range allKeyKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			ca, cb, _, _ := certPair(t, kind, allKeyKinds[len(allKeyKinds)-1-i])
			a, b := startPair(s, pair{"charon", "charon"}, ca, cb)
			mustInitiate(t, "net", a, b)
			for _, d := range []daemon{a, b} {
				if len(matching(d.log(), "authentication of", "with", "successful")) == 0 || len(matching(d.log(), "pre-shared")) > 0 {
					t.Errorf("%s did not verify a signature%s", d.kind(), logs(d))
				}
			}
		})
	}
}

// A list of revoked certificates beside charon's files, a certificate of another root and one
// that has expired are refused: the fixture tests something.
func TestCharonRefusesBadCertificates(t *testing.T) {
	needCharon(t)
	for _, c := range []struct {
		name, words string
		spoil       func(a, b *spec, certA *credential)
	}{
		{"revoked", "certificate was revoked", func(a, b *spec, certA *credential) {
			b.certs.crls = []string{certA.issuer.crl(1, certA)}
		}},
		{"other root", "no issuer certificate found", func(a, b *spec, certA *credential) {
			b.certs.roots = []*credential{newRoot(certA.t, "stranger", ecdsa256)}
		}},
		{"expired", "subject certificate invalid", func(a, b *spec, certA *credential) {
			a.conns[0].localAuth[0].cert = certA.issuer.issue(certSpec{
				name: "a.example", notBefore: time.Now().Add(-48 * time.Hour), notAfter: time.Now().Add(-time.Hour),
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			ca, cb, certA, _ := certPair(t, ecdsa256, ecdsa256)
			c.spoil(&ca, &cb, certA)
			a, b := startPair(s, pair{"charon", "charon"}, ca, cb)
			if err := a.initiate("net"); err == nil {
				t.Errorf("the tunnel is up%s", logs(a, b))
			}
			if len(matching(b.log(), c.words)) == 0 {
				t.Errorf("the responder did not refuse because %q%s", c.words, logs(b))
			}
		})
	}
}

// Public keys without certificates, a secret on one side only, and two rounds of one side.
func TestCharonPairWithOtherRounds(t *testing.T) {
	needCharon(t)
	for _, c := range []struct {
		name  string
		words []string // of the responder's log
		alter func(a, b *conn, certA, certB *credential)
	}{
		{"raw keys", []string{"a.example", "ED25519", "successful"}, func(a, b *conn, certA, certB *credential) {
			a.localAuth = []round{{auth: "pubkey", cert: certA, raw: true}}
			a.remoteAuth = []round{{auth: "pubkey", cert: certB, raw: true}}
			b.localAuth, b.remoteAuth = a.remoteAuth, a.localAuth
		}},
		{"secret and certificate", []string{"a.example", "pre-shared key", "successful"}, func(a, b *conn, certA, certB *credential) {
			a.localAuth, b.remoteAuth = []round{{auth: "psk"}}, []round{{auth: "psk"}}
		}},
		{"two rounds", []string{"second.example", "ECDSA", "successful"}, func(a, b *conn, certA, certB *credential) {
			second := certA.issuer.issue(certSpec{name: "second.example"})
			a.localAuth = append(a.localAuth, round{auth: "pubkey", id: "second.example", cert: second})
			b.remoteAuth = append(b.remoteAuth, round{auth: "pubkey", id: "second.example"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			ca, cb, certA, certB := certPair(t, ed25519K, ecdsa384)
			c.alter(&ca.conns[0], &cb.conns[0], certA, certB)
			a, b := startPair(s, pair{"charon", "charon"}, ca, cb)
			mustInitiate(t, "net", a, b)
			if len(matching(b.log(), append([]string{"authentication of"}, c.words...)...)) == 0 {
				t.Errorf("the responder's log has no line with %q%s", c.words, logs(b))
			}
		})
	}
}

// A certificate reads back as the PEM files have it.
func TestCredentialFiles(t *testing.T) {
	c := newRoot(t, "root", ed25519K).issue(certSpec{name: "mid", ca: true}).issue(certSpec{name: "leaf.example"})
	block, rest := pem.Decode([]byte(c.chainPEM()))
	next, _ := pem.Decode(rest)
	if !bytes.Equal(block.Bytes, c.cert.Raw) || !bytes.Equal(next.Bytes, c.issuer.cert.Raw) {
		t.Error("a chain does not begin with the certificate, followed by its issuer")
	}
	block, _ = pem.Decode([]byte(c.keyPEM()))
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil || !c.key.(*ecdsa.PrivateKey).Equal(k) {
		t.Errorf("the private key does not read back: %v", err)
	}
	if err := c.cert.CheckSignatureFrom(c.issuer.cert); err != nil {
		t.Error(err)
	}
}
