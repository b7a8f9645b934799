package pki

import "errors"

var errNotYet = errors.New("not built yet")

// Key is a private key: RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519.
// It may be used by several goroutines at once until it is wiped.
type Key struct{ pub *PublicKey }

// ParseKey reads a private key, PEM or DER: PKCS#8 (RFC 5958), also encrypted with PBES2 (RFC
// 8018: PBKDF2 with HMAC and SHA-1 or SHA-2, AES-CBC), PKCS#1 (RSA) or SEC 1 (ECDSA). passphrase
// is used only for an encrypted one. The error says what was found instead, never what is in it.
func ParseKey(data, passphrase []byte) (*Key, error) { return nil, errNotYet }

// ErrPassphrase is wrapped by the error of ParseKey if the key is encrypted and the passphrase
// is missing or wrong.
var ErrPassphrase = errors.New("passphrase")

// Public is the key's public half.
func (k *Key) Public() *PublicKey { return k.pub }

// Wipe overwrites the private numbers as far as Go's library lets us at them. The key must not
// be used afterwards.
func (k *Key) Wipe() {}

// String tells only the kind ("RSA 2048 private key"), and GoString the same.
func (k *Key) String() string   { return "private key" }
func (k *Key) GoString() string { return k.String() }

// PublicKey is a public key of one of the kinds of [Key]. It is immutable.
type PublicKey struct{ spki []byte }

// ParsePublicKey reads a public key, PEM or DER: SubjectPublicKeyInfo (RFC 5280 4.1, and what a
// raw public key in a CERT payload is, RFC 7670) or PKCS#1 RSAPublicKey.
func ParsePublicKey(data []byte) (*PublicKey, error) { return nil, errNotYet }

// SPKI is the key as DER SubjectPublicKeyInfo. The caller must not change it.
func (p *PublicKey) SPKI() []byte { return p.spki }

// KeyID is the SHA-1 of SPKI, as CERTREQ has it (RFC 7296 3.7).
func (p *PublicKey) KeyID() (id [20]byte) { return }

// String is "RSA 2048", "ECDSA P-256", "Ed25519".
func (p *PublicKey) String() string { return "" }

// Equal says whether both are the same key.
func (p *PublicKey) Equal(o *PublicKey) bool { return false }
