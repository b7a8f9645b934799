// Package pkitest makes keys and certificates for tests: the same ones for the same names, but
// for those of RSA.
package pkitest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"time"

	"postern/ike/pki"
)

// Kind is a kind of key.
type Kind int

// The kinds.
const (
	Ed25519 Kind = iota
	P256
	P384
	P521
	RSA2048
)

// The times of certificates unless a Spec says otherwise.
var (
	From  = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	Until = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Spec says what a certificate shall be.
type Spec struct {
	Name        string // the common name, and the DNS name of an end entity
	Kind        Kind
	CA          bool
	Emails      []string
	From, Until time.Time // zero: the defaults
	CRL         string    // URI of a revocation list
	Policies    []string  // OIDs of certificate policies
}

// Cert is a certificate with its private key.
type Cert struct {
	*pki.Cert
	Key    *pki.Key
	Issuer *Cert // nil: itself
	x      *x509.Certificate
	signer crypto.Signer
}

var (
	mu   sync.Mutex
	rsas = map[string]*rsa.PrivateKey{}
)

// signer returns the key of that kind and name.
func signer(kind Kind, name string) crypto.Signer {
	seed := sha256.Sum256([]byte("key of " + name))
	curve := func(c elliptic.Curve) crypto.Signer {
		b := make([]byte, (c.Params().BitSize+7)/8)
		copy(b[1:], seed[:]) // below the order of each of the curves
		k, err := ecdsa.ParseRawPrivateKey(c, b)
		must(err)
		return k
	}
	switch kind {
	case P256:
		return curve(elliptic.P256())
	case P384:
		return curve(elliptic.P384())
	case P521:
		return curve(elliptic.P521())
	case RSA2048:
		mu.Lock()
		defer mu.Unlock()
		if rsas[name] == nil {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			must(err)
			rsas[name] = k
		}
		return rsas[name]
	}
	return ed25519.NewKeyFromSeed(seed[:])
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Root makes a CA that signs itself, with an Ed25519 key.
func Root(name string) *Cert { return issue(nil, Spec{Name: name, CA: true}) }

// Issue makes a certificate below this one.
func (c *Cert) Issue(s Spec) *Cert { return issue(c, s) }

func issue(by *Cert, s Spec) *Cert {
	serial := sha256.Sum256([]byte("serial of " + s.Name))
	x := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[1:16]), Subject: pkix.Name{Country: []string{"CH"}, Organization: []string{"Weir"}, CommonName: s.Name},
		NotBefore: From, NotAfter: Until, BasicConstraintsValid: s.CA, IsCA: s.CA, KeyUsage: x509.KeyUsageDigitalSignature, EmailAddresses: s.Emails,
	}
	if s.CA {
		x.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else {
		x.DNSNames = []string{s.Name}
	}
	if !s.From.IsZero() {
		x.NotBefore = s.From
	}
	if !s.Until.IsZero() {
		x.NotAfter = s.Until
	}
	for _, p := range s.Policies {
		oid, err := x509.ParseOID(p)
		must(err)
		x.Policies = append(x.Policies, oid)
	}
	if s.CRL != "" {
		x.CRLDistributionPoints = []string{s.CRL}
	}
	c := &Cert{Issuer: by, signer: signer(s.Kind, s.Name)}
	parent, key := x, c.signer
	if by != nil {
		parent, key = by.x, by.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, x, parent, c.signer.Public(), key)
	must(err)
	c.x, err = x509.ParseCertificate(der)
	must(err)
	c.Cert, err = pki.ParseCert(der)
	must(err)
	c.Key, err = pki.ParseKey(c.KeyPEM(), nil)
	must(err)
	return c
}

// Chain returns the certificate and those that lead from it to the root, without that.
func (c *Cert) Chain() (list []*pki.Cert) {
	for ; c.Issuer != nil; c = c.Issuer {
		list = append(list, c.Cert)
	}
	return list
}

// PEM returns the certificate.
func (c *Cert) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.x.Raw})
}

// KeyPEM returns the private key, in PKCS#8.
func (c *Cert) KeyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(c.signer)
	must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// PublicPEM returns the public key.
func (c *Cert) PublicPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: c.x.RawSubjectPublicKeyInfo})
}

// CRL returns a revocation list of the CA in DER, for an hour from that time.
func (c *Cert) CRL(at time.Time, revoked ...*Cert) []byte {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: at, NextUpdate: at.Add(time.Hour)}
	for _, r := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.x.SerialNumber, RevocationTime: at})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, c.x, c.signer)
	must(err)
	return der
}

// Trust returns the trust in these CAs.
func Trust(roots ...*Cert) *pki.Trust {
	var list []pki.Authority
	for _, r := range roots {
		list = append(list, pki.Authority{Cert: r.Cert})
	}
	t, err := pki.NewTrust(list, nil)
	must(err)
	return t
}
