package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Key is a private key: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519.
// It may be used by several goroutines at once until it is wiped.
type Key struct {
	pub *PublicKey
	rsa *rsa.PrivateKey // one of the three
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

// PublicKey is a public key of one of the kinds of [Key]. It is immutable.
type PublicKey struct {
	spki []byte
	id   [20]byte
	rsa  *rsa.PublicKey // one of the three
	ec   *ecdsa.PublicKey
	ed   ed25519.PublicKey
}

// ErrPassphrase is wrapped by the error of ParseKey if the key is encrypted and the passphrase
// is missing or wrong.
var ErrPassphrase = errors.New("passphrase")

// ParseKey reads a private key, PEM or DER: PKCS#8 (RFC 5958), also encrypted with PBES2 (RFC
// 8018: PBKDF2 with HMAC and SHA-1 or SHA-2, AES-CBC), PKCS#1 (RSA) or SEC 1 (ECDSA). passphrase
// is used only for an encrypted one. The error says what was found instead, never what is in it.
// The key is wiped, at the latest, when nothing refers to it any more: a computation may still use
// it after a new configuration has taken its place.
func ParseKey(data, passphrase []byte) (*Key, error) {
	if len(data) > maxFileOctets {
		return nil, errors.New("too large for a private key")
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return parseKeyDER(data, passphrase)
	}
	found := ""
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		k, err := parseKeyBlock(block, passphrase)
		clear(block.Bytes)
		if k != nil || err != nil {
			return k, err
		}
		if found == "" {
			found = block.Type
		}
	}
	if found != "" {
		return nil, fmt.Errorf("this is %s in PEM, not a private key", kindOfPEM(found))
	}
	return nil, errors.New("damaged PEM: a BEGIN line, but no whole block")
}

// parseKeyBlock returns neither key nor error for a block that is something else.
func parseKeyBlock(block *pem.Block, passphrase []byte) (*Key, error) {
	if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, errors.New("encrypted the old way of PEM (MD5), which is not read: convert it with openssl pkcs8 -topk8")
	}
	switch block.Type {
	case "PRIVATE KEY":
		return parsePKCS8(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return parseEncrypted(block.Bytes, passphrase)
	case "RSA PRIVATE KEY":
		return parsePKCS1(block.Bytes)
	case "EC PRIVATE KEY":
		return parseSEC1(block.Bytes)
	case "OPENSSH PRIVATE KEY":
		return nil, errors.New("this is a key in OpenSSH's form: convert it with ssh-keygen -p -m PKCS8")
	case "DSA PRIVATE KEY":
		return nil, errors.New("this is a DSA key; RSA, ECDSA and Ed25519 are taken")
	}
	return nil, nil
}

// kindOfPEM says what a block holds, for errors; only known words are repeated.
func kindOfPEM(t string) string {
	switch t {
	case "CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
		return "a certificate"
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		return "a certificate request"
	case "X509 CRL":
		return "a certificate revocation list"
	case "PUBLIC KEY", "RSA PUBLIC KEY":
		return "a public key"
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY":
		return "a private key"
	case "EC PARAMETERS":
		return "only parameters of a curve"
	}
	return "something else"
}

// kindOfDER says what a DER file holds if it is something that people mix up; "" if unknown.
func kindOfDER(der []byte) string {
	if _, err := x509.ParseCertificate(der); err == nil {
		return "a certificate"
	}
	if _, err := x509.ParseCertificateRequest(der); err == nil {
		return "a certificate request"
	}
	if _, err := ParsePublicKey(der); err == nil {
		return "a public key"
	}
	if _, err := ParseCRL(der); err == nil {
		return "a certificate revocation list"
	}
	return ""
}

// parseKeyDER tells the forms apart by the first element in the sequence: PKCS#8 and PKCS#1
// begin with version 0 (and what follows differs), SEC 1 with version 1 and an octet string,
// EncryptedPrivateKeyInfo with an algorithm.
func parseKeyDER(der, passphrase []byte) (*Key, error) {
	in := cryptobyte.String(der)
	var seq, alg cryptobyte.String
	var version int
	if in.ReadASN1(&seq, asn1.SEQUENCE) && in.Empty() {
		switch {
		case seq.PeekASN1Tag(asn1.SEQUENCE):
			if seq.ReadASN1Element(&alg, asn1.SEQUENCE) && seq.PeekASN1Tag(asn1.OCTET_STRING) {
				return parseEncrypted(der, passphrase)
			}
		case seq.ReadASN1Integer(&version):
			switch {
			case seq.PeekASN1Tag(asn1.SEQUENCE):
				if k, err := parsePKCS8(der); err == nil || kindOfDER(der) == "" {
					return k, err
				}
			case seq.PeekASN1Tag(asn1.OCTET_STRING):
				return parseSEC1(der)
			case seq.PeekASN1Tag(asn1.INTEGER) && version == 0:
				return parsePKCS1(der)
			}
		}
	}
	if kind := kindOfDER(der); kind != "" {
		return nil, fmt.Errorf("this is %s in DER, not a private key", kind)
	}
	return nil, errors.New("no private key: neither PEM nor DER of a form that is known")
}

// The library's errors about private keys name structures, not contents; still only our own words go out.

func parsePKCS8(der []byte) (*Key, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		in := cryptobyte.String(der)
		var seq cryptobyte.String
		var version int
		if in.ReadASN1(&seq, asn1.SEQUENCE) && seq.ReadASN1Integer(&version) {
			if oid, _, ok := readAlg(&seq); ok && !knownKeyOID(oid) {
				return nil, errors.New("the key is of a kind that is not known; RSA, ECDSA and Ed25519 are taken")
			}
		}
		return nil, errors.New("damaged PKCS#8 private key")
	}
	return parsed(k)
}

func knownKeyOID(oid []byte) bool {
	return string(oid) == oidPKCS1+"\x01" || string(oid) == oidEd25519 || string(oid) == "\x2a\x86\x48\xce\x3d\x02\x01"
}

func parsePKCS1(der []byte) (*Key, error) {
	k, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, errors.New("damaged PKCS#1 RSA private key")
	}
	return parsed(k)
}

func parseSEC1(der []byte) (*Key, error) {
	k, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, errors.New("damaged SEC 1 ECDSA private key, or of a curve other than P-256, P-384 and P-521")
	}
	return parsed(k)
}

// NewKey takes a private key of Go's library: *rsa.PrivateKey, *ecdsa.PrivateKey or
// ed25519.PrivateKey. It is kept, not copied. The error says what is wrong with it.
func NewKey(private any) (*Key, error) {
	k := new(Key)
	var err error
	switch p := private.(type) {
	case *rsa.PrivateKey:
		k.rsa = p
		k.pub, err = NewPublicKey(&p.PublicKey)
	case *ecdsa.PrivateKey:
		k.ec = p
		k.pub, err = NewPublicKey(&p.PublicKey)
	case ed25519.PrivateKey:
		k.ed = p
		k.pub, err = NewPublicKey(p.Public())
	default:
		err = errors.New("the key is of a kind that is not known; RSA, ECDSA and Ed25519 are taken")
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// parsed is NewKey for a key that nobody else has.
func parsed(private any) (*Key, error) {
	k, err := NewKey(private)
	if err == nil {
		runtime.SetFinalizer(k, (*Key).Wipe)
	}
	return k, err
}

// Public is the key's public half.
func (k *Key) Public() *PublicKey { return k.pub }

// Wipe overwrites the private numbers as far as Go's library lets us at them (what it computed
// ahead inside of an RSA key it keeps to itself). The key must not be used afterwards.
func (k *Key) Wipe() {
	if k == nil {
		return
	}
	clear(k.ed)
	if k.ec != nil {
		//lint:ignore SA1019 there is no other way at the number to overwrite it
		wipeInt(k.ec.D)
	}
	if k.rsa != nil {
		wipeInt(k.rsa.D)
		for _, p := range k.rsa.Primes {
			wipeInt(p)
		}
		wipeInt(k.rsa.Precomputed.Dp)
		wipeInt(k.rsa.Precomputed.Dq)
		wipeInt(k.rsa.Precomputed.Qinv)
	}
	k.rsa, k.ec, k.ed = nil, nil, nil
	runtime.SetFinalizer(k, nil)
}

func wipeInt(n *big.Int) {
	if n != nil {
		clear(n.Bits())
		n.SetInt64(0)
	}
}

// String tells only the kind ("RSA 2048 private key"), and GoString the same.
func (k *Key) String() string {
	if k == nil || k.pub == nil {
		return "no private key"
	}
	return k.pub.String() + " private key"
}

func (k *Key) GoString() string { return k.String() }

// ParsePublicKey reads a public key, PEM or DER: SubjectPublicKeyInfo (RFC 5280 4.1, and what a
// raw public key in a CERT payload is, RFC 7670) or PKCS#1 RSAPublicKey.
func ParsePublicKey(data []byte) (*PublicKey, error) {
	if len(data) > maxFileOctets {
		return nil, errors.New("too large for a public key")
	}
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, errors.New("damaged PEM: a BEGIN line, but no whole block")
		}
		if block.Type != "PUBLIC KEY" && block.Type != "RSA PUBLIC KEY" {
			kind := kindOfPEM(block.Type)
			clear(block.Bytes) // perhaps a private key
			return nil, fmt.Errorf("this is %s in PEM, not a public key", kind)
		}
		data = block.Bytes
	}
	if p, err := x509.ParsePKCS1PublicKey(data); err == nil {
		return NewPublicKey(p)
	}
	p, err := x509.ParsePKIXPublicKey(data)
	if err != nil {
		in := cryptobyte.String(data)
		var seq cryptobyte.String
		if in.ReadASN1(&seq, asn1.SEQUENCE) && in.Empty() {
			if oid, _, ok := readAlg(&seq); ok && seq.PeekASN1Tag(asn1.BIT_STRING) {
				if knownKeyOID(oid) {
					return nil, errors.New("damaged public key, or of a curve other than P-256, P-384 and P-521")
				}
				return nil, errors.New("the key is of a kind that is not known; RSA, ECDSA and Ed25519 are taken")
			}
		}
		return nil, errors.New("no public key: neither SubjectPublicKeyInfo nor PKCS#1")
	}
	return newPublicKey(p, data)
}

// NewPublicKey takes a public key of Go's library: *rsa.PublicKey, *ecdsa.PublicKey or
// ed25519.PublicKey.
func NewPublicKey(public any) (*PublicKey, error) { return newPublicKey(public, nil) }

// newPublicKey keeps spki if it is given, as the key identifier is a hash of what was sent.
func newPublicKey(public any, spki []byte) (*PublicKey, error) {
	p := new(PublicKey)
	switch k := public.(type) {
	case *rsa.PublicKey:
		switch n := k.N.BitLen(); {
		case n < minRSABits:
			return nil, fmt.Errorf("the RSA key has %d bits; at least %d are needed", n, minRSABits)
		case n > maxRSABits:
			return nil, fmt.Errorf("the RSA key has %d bits; at most %d are taken", n, maxRSABits)
		case k.E < 3 || k.E&1 == 0 || k.N.Bit(0) == 0:
			return nil, errors.New("the numbers of the RSA key make no sense")
		}
		p.rsa = k
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return nil, errors.New("the ECDSA key is on a curve other than P-256, P-384 and P-521")
		}
		p.ec = k
	case ed25519.PublicKey:
		p.ed = k
	default:
		return nil, errors.New("the key is of a kind that is not known; RSA, ECDSA and Ed25519 are taken")
	}
	if spki == nil {
		var err error
		if spki, err = x509.MarshalPKIXPublicKey(public); err != nil {
			return nil, errors.New("the public key cannot be written")
		}
	}
	p.spki = bytes.Clone(spki)
	p.id = sha1.Sum(p.spki)
	return p, nil
}

// SPKI is the key as DER SubjectPublicKeyInfo. The caller must not change it.
func (p *PublicKey) SPKI() []byte { return p.spki }

// KeyID is the SHA-1 of SPKI, as CERTREQ has it (RFC 7296 3.7).
func (p *PublicKey) KeyID() [20]byte { return p.id }

// Any is the key in Go's terms: *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
func (p *PublicKey) Any() any {
	switch {
	case p.rsa != nil:
		return p.rsa
	case p.ec != nil:
		return p.ec
	}
	return p.ed
}

// Bits is the length of the modulus, or of the curve's field.
func (p *PublicKey) Bits() int {
	switch {
	case p.rsa != nil:
		return p.rsa.N.BitLen()
	case p.ec != nil:
		return p.ec.Curve.Params().BitSize
	}
	return 256
}

// String is "RSA 2048", "ECDSA P-256", "Ed25519".
func (p *PublicKey) String() string {
	switch {
	case p == nil:
		return "no key"
	case p.rsa != nil:
		return fmt.Sprint("RSA ", p.rsa.N.BitLen())
	case p.ec != nil:
		return "ECDSA " + p.ec.Curve.Params().Name
	}
	return "Ed25519"
}

// Equal says whether both are the same key.
func (p *PublicKey) Equal(o *PublicKey) bool {
	switch {
	case p == nil || o == nil:
		return p == o
	case p.rsa != nil:
		return o.rsa != nil && p.rsa.Equal(o.rsa)
	case p.ec != nil:
		return o.ec != nil && p.ec.Equal(o.ec)
	}
	return o.ed != nil && p.ed.Equal(o.ed)
}
