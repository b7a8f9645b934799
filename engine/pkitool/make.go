package pkitool

import (
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"

	"postern/engine/cli"
	"postern/ike/pki"
)

// serialBits is the length of a serial number: random, so that nobody foretells what is signed.
// It has whole octets but for the first bit: strongSwan 5.9 takes a number with that bit set, which
// DER writes behind an octet of zeros, for another one when it reads an answer of OCSP.
const serialBits = 127

// newSerial returns a random serial number.
func newSerial() *big.Int {
	b := make([]byte, (serialBits+7)/8)
	for {
		_, _ = rand.Read(b) // never fails: Go ends the program if the system has no randomness
		b[0] &= 0xff >> (-serialBits & 7)
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n
		}
	}
}

// serialText writes a serial number as whole octets in hexadecimal.
func serialText(n *big.Int) string { return hex.EncodeToString(n.Bytes()) }

// subjectKeyID is the usual key identifier: SHA-1 over the key's bit string (RFC 5280 4.2.1.2,
// first way). It finds certificates and protects nothing.
func subjectKeyID(spki []byte) ([]byte, error) {
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	id := sha1.Sum(info.Key.Bytes)
	return id[:], nil
}

// goKey is the public key in the form that Go's library signs.
func goKey(p *pki.PublicKey) (crypto.PublicKey, error) { return x509.ParsePKIXPublicKey(p.SPKI()) }

// makeCert signs a certificate with the authority's key, and checks it as a peer would that trusts the
// authority. A nil ca means that the subject signs itself with signer.
func makeCert(tmpl *x509.Certificate, pub *pki.PublicKey, ca *authority, signer crypto.Signer) (*x509.Certificate, error) {
	var err error
	if tmpl.SubjectKeyId, err = subjectKeyID(pub.SPKI()); err != nil {
		return nil, err
	}
	tmpl.SerialNumber = newSerial()
	subject, err := goKey(pub)
	if err != nil {
		return nil, err
	}
	parent := tmpl
	if ca != nil {
		parent, signer = ca.cert, ca.key.Signer()
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, subject, signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if ca == nil {
		return cert, cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	}
	return cert, ca.proves(cert)
}

// proves checks a certificate of this authority as the daemon would of a peer, with nothing but
// the root trusted: names, path lengths and all. Of those that no peer shows, of authorities and
// of who answers for revocation, it checks the signature.
func (ca *authority) proves(cert *x509.Certificate) error {
	if cert.IsCA || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return cert.CheckSignatureFrom(ca.cert)
	}
	root, err := pki.ParseCert(ca.root.Raw)
	if err != nil {
		return err
	}
	trust, err := pki.NewTrust([]pki.Authority{{Cert: root}}, nil)
	if err != nil {
		return err
	}
	certs := append([][]byte{cert.Raw}, ca.chainDER()...)
	_, err = trust.Verify(&pki.Request{Now: later(cert, ca), Certs: certs, Revocation: pki.RevokeOff})
	if err != nil {
		return fmt.Errorf("nobody would take this certificate: %w", err)
	}
	return nil
}

// uris checks addresses for certificates: only http is fetched, since checking a certificate must
// not need another one.
func uris(option string, list []string) ([]string, error) {
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" || u.Host == "" || !ascii(s) {
			return nil, usageError(fmt.Sprintf("--%s %q: write http://HOST/PATH", option, cli.Clean(s)))
		}
	}
	return list, nil
}

// newSigner makes a private key of a kind.
func newSigner(kind string) (crypto.Signer, error) {
	for _, k := range keyKinds {
		if k.name == strings.ToLower(kind) {
			return k.make()
		}
	}
	return nil, usageError(fmt.Sprintf("--type %s is not known; take one of %s", cli.Clean(kind), kindNames()))
}

func kindNames() string {
	var list []string
	for _, k := range keyKinds {
		list = append(list, k.name)
	}
	return strings.Join(list, ", ")
}

// privatePEM is a private key as PKCS#8, which the caller wipes.
func privatePEM(k crypto.Signer, der bool) ([]byte, error) {
	data, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil || der {
		return data, err
	}
	defer clear(data)
	return pemText(pemPrivate, data), nil
}

// derKind finds out what a file in DER is.
func derKind(data []byte) what {
	if _, err := x509.ParseCertificate(data); err == nil {
		return certificate
	}
	if _, err := x509.ParseCertificateRequest(data); err == nil {
		return request
	}
	if _, err := x509.ParseRevocationList(data); err == nil {
		return revocations
	}
	if _, err := pki.ParsePublicKey(data); err == nil {
		return publicKey
	}
	if privateDER(data) {
		return privateKey
	}
	return unknown
}

// privateDER says whether DER has the form of a private key, protected or not: PKCS#8 (RFC 5958),
// PKCS#1 and SEC 1 begin with a version, protected PKCS#8 with an algorithm and an octet string.
func privateDER(data []byte) bool {
	var any []asn1.RawValue
	rest, err := asn1.Unmarshal(data, &any)
	if err != nil || len(rest) > 0 || len(any) < 2 {
		return false
	}
	first, second := any[0].Tag, any[1].Tag
	return first == asn1.TagInteger || first == asn1.TagSequence && second == asn1.TagOctetString
}

// equalKeys says whether a certificate is of that key.
func equalKeys(spki []byte, p *pki.PublicKey) bool { return slices.Equal(spki, p.SPKI()) }
