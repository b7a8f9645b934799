package pki

import "io"

// Methods of an AUTH payload (RFC 7296 3.8, RFC 4754, RFC 7427).
const (
	MethodRSA       = 1  // RSASSA-PKCS1-v1_5, SHA-1 by default
	MethodPSK       = 2  // not made here; for announcements
	MethodECDSA256  = 9  // ECDSA with SHA-256 on P-256
	MethodECDSA384  = 10 // ECDSA with SHA-384 on P-384
	MethodECDSA521  = 11 // ECDSA with SHA-512 on P-521
	MethodSignature = 14 // Digital Signature: the data names its algorithm
)

// Offer is what the peer can verify, and how we are configured to sign. The zero value is an
// old peer that knows the per-algorithm methods only.
type Offer struct {
	Hashes  []Hash      // the peer's SIGNATURE_HASH_ALGORITHMS; nil: it does not speak RFC 7427
	Methods []Announced // the peer's SUPPORTED_AUTH_METHODS (RFC 9593); nil: not announced
	PSS     bool        // we are configured to sign with RSASSA-PSS; without it PKCS#1 v1.5 is preferred
	Only    []Hash      // configured: sign with these only; nil: any
}

// Sign makes the method and the data of an AUTH payload over octets (RFC 7296 2.15). With a peer
// that speaks RFC 7427 it is method 14 with the hash that fits the key's strength best among
// those that the peer takes, never SHA-1; else the old method of the key, where RSA has SHA-1.
// ECDSA is deterministic (RFC 6979); rand is read for the salt of RSASSA-PSS only.
func (k *Key) Sign(o *Offer, octets []byte, rand io.Reader) (method uint8, data []byte, err error) {
	return 0, nil, errNotYet
}

// Verify checks the data of an AUTH payload of that method over octets. only, if not nil, are
// the hashes that the configuration takes ([Identity] stands for Ed25519). scheme is the
// algorithm in charon's words ("RSA_EMSA_PSS_SHA2_256"), also with an error if it was
// recognized. The errors are [ErrSignature] and [ErrScheme], wrapped with words for the log.
func (p *PublicKey) Verify(method uint8, data, octets []byte, only []Hash) (scheme string, err error) {
	return "", errNotYet
}
