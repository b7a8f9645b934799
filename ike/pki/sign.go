package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"runtime"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

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

// old are the methods without RFC 7427 of each curve (RFC 4754 7).
var old = map[string]struct {
	method uint8
	hash   Hash
	name   string // charon's
}{
	"P-256": {MethodECDSA256, SHA2_256, "ECDSA-256"},
	"P-384": {MethodECDSA384, SHA2_384, "ECDSA-384"},
	"P-521": {MethodECDSA521, SHA2_512, "ECDSA-521"},
}

// Sign makes the method and the data of an AUTH payload over octets (RFC 7296 2.15). With a peer
// that speaks RFC 7427 it is method 14 with the hash that fits the key's strength best among
// those that the peer takes, never SHA-1; else the old method of the key, where RSA has SHA-1
// unless o.Only says otherwise. What the peer announced (RFC 9593) decides if anything of it
// fits, and is passed over if not. ECDSA is deterministic (RFC 6979); rand is read for the salt
// of RSASSA-PSS only. Errors wrap [ErrScheme] if the peer and the key cannot meet.
func (k *Key) Sign(o *Offer, octets []byte, rand io.Reader) (method uint8, data []byte, err error) {
	if k.rsa == nil && k.ec == nil && k.ed == nil {
		return 0, nil, errors.New("the private key has been wiped")
	}
	if o.Hashes == nil {
		return k.signOld(o, octets)
	}
	s, err := k.choose(o)
	if err != nil {
		return 0, nil, err
	}
	sig, err := k.sign(s, octets, rand)
	if err != nil {
		return 0, nil, err
	}
	// RFC 7427 3: one octet of length, the AlgorithmIdentifier, the signature.
	alg := s.alg()
	data = make([]byte, 0, 1+len(alg)+len(sig))
	data = append(data, byte(len(alg)))
	data = append(data, alg...)
	return MethodSignature, append(data, sig...), nil
}

// signOld signs for a peer without RFC 7427.
func (k *Key) signOld(o *Offer, octets []byte) (uint8, []byte, error) {
	switch {
	case k.rsa != nil:
		if o.PSS {
			return 0, nil, fmt.Errorf("%w: RSASSA-PSS is configured, and the peer does not speak RFC 7427", ErrScheme)
		}
		h := SHA1
		if o.Only != nil && !slices.Contains(o.Only, SHA1) {
			i := slices.IndexFunc(k.pub.ranking(), func(h Hash) bool { return slices.Contains(o.Only, h) })
			if i < 0 {
				return 0, nil, fmt.Errorf("%w: no hash that is configured fits an RSA key", ErrScheme)
			}
			h = k.pub.ranking()[i]
		}
		sig, err := k.sign(scheme{fam: famPKCS1, hash: h}, octets, nil)
		return MethodRSA, sig, err
	case k.ec != nil:
		m := old[k.ec.Curve.Params().Name]
		if o.Only != nil && !slices.Contains(o.Only, m.hash) {
			return 0, nil, fmt.Errorf("%w: the peer does not speak RFC 7427, so an %v key needs %v, which is not configured", ErrScheme, k.pub, m.hash)
		}
		der, err := k.sign(scheme{fam: famECDSA, hash: m.hash}, octets, nil)
		if err != nil {
			return 0, nil, err
		}
		sig, ok := fixedECDSA(der, (k.ec.Curve.Params().BitSize+7)/8)
		if !ok {
			return 0, nil, errors.New("an ECDSA signature of an unknown form")
		}
		return m.method, sig, nil
	}
	return 0, nil, fmt.Errorf("%w: the peer does not speak RFC 7427, which Ed25519 needs", ErrScheme)
}

// ranking is the hashes that a key signs with: the one of its own strength first, then the
// stronger, then the weaker.
func (p *PublicKey) ranking() []Hash {
	bits := 256
	switch {
	case p.ed != nil:
		return []Hash{Identity}
	case p.ec != nil:
		bits = p.ec.Curve.Params().BitSize
	case p.rsa.N.BitLen() > 7680: // strengths of NIST SP 800-57, table 2
		bits = 512
	case p.rsa.N.BitLen() > 3072:
		bits = 384
	}
	switch {
	case bits > 384:
		return []Hash{SHA2_512, SHA2_384, SHA2_256}
	case bits > 256:
		return []Hash{SHA2_384, SHA2_512, SHA2_256}
	}
	return []Hash{SHA2_256, SHA2_384, SHA2_512}
}

// choose finds the scheme for a peer that speaks RFC 7427.
func (k *Key) choose(o *Offer) (scheme, error) {
	var can []scheme
	for _, pss := range []bool{o.PSS, !o.PSS} {
		for _, h := range k.pub.ranking() {
			if !slices.Contains(o.Hashes, h) || o.Only != nil && !slices.Contains(o.Only, h) {
				continue
			}
			switch {
			case k.rsa == nil && pss:
			case k.ec != nil:
				can = append(can, scheme{fam: famECDSA, hash: h})
			case k.ed != nil:
				can = append(can, scheme{fam: famEd25519, hash: h})
			case pss:
				can = append(can, pssScheme(h))
			case !o.PSS:
				can = append(can, scheme{fam: famPKCS1, hash: h})
			}
		}
	}
	for _, s := range can {
		for _, a := range o.Methods {
			if got, known, ok := parseAlg(a.Algorithm); a.Method == MethodSignature && ok && known && got.fam == s.fam && got.hash == s.hash {
				return s, nil
			}
		}
	}
	if len(can) > 0 {
		return can[0], nil
	}
	return scheme{}, fmt.Errorf("%w: the peer takes no hash that an %v key and the configuration allow", ErrScheme, k.pub)
}

// sign makes a signature in the form that RFC 7427 has (ECDSA: DER).
func (k *Key) sign(s scheme, octets []byte, rand io.Reader) ([]byte, error) {
	defer runtime.KeepAlive(k) // its numbers are wiped when nothing refers to it
	switch s.fam {
	case famPKCS1:
		return rsa.SignPKCS1v15(nil, k.rsa, s.hash.function(), s.hash.sum(octets))
	case famPSS:
		if rand == nil {
			return nil, errors.New("RSASSA-PSS needs randomness")
		}
		return rsa.SignPSS(rand, k.rsa, s.hash.function(), s.hash.sum(octets), &rsa.PSSOptions{SaltLength: s.salt})
	case famECDSA:
		// Without a reader it is RFC 6979's: the library takes no reader of ours anyway, and a
		// signature that follows from key and octets cannot give the key away by bad randomness.
		return k.ec.Sign(nil, s.hash.sum(octets), s.hash.function())
	case famEd25519:
		return k.ed.Sign(nil, octets, crypto.Hash(0))
	}
	return nil, ErrScheme
}

// fixedECDSA writes r and s of a DER signature as two integers of n octets (RFC 4754 7).
func fixedECDSA(der []byte, n int) ([]byte, bool) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	r, s := new(big.Int), new(big.Int)
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(r) || !seq.ReadASN1Integer(s) || !seq.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > 8*n || s.BitLen() > 8*n {
		return nil, false
	}
	out := make([]byte, 2*n)
	r.FillBytes(out[:n])
	s.FillBytes(out[n:])
	return out, true
}

// Verify checks the data of an AUTH payload of that method over octets. only, if not nil, are
// the hashes that the configuration takes ([Identity] stands for Ed25519); without it SHA-1 is
// taken under the old method of RSA alone. scheme is the algorithm in charon's words
// ("RSA_EMSA_PSS_SHA2_256"), also with an error if it was recognized. The errors are
// [ErrSignature] and [ErrScheme], wrapped with words for the log.
func (p *PublicKey) Verify(method uint8, data, octets []byte, only []Hash) (scheme string, err error) {
	switch method {
	case MethodRSA:
		return p.verifyRSA(data, octets, only)
	case MethodECDSA256, MethodECDSA384, MethodECDSA521:
		return p.verifyECDSA(method, data, octets, only)
	case MethodSignature:
		return p.verifyNamed(data, octets, only)
	}
	return "", fmt.Errorf("%w: authentication method %d is no signature that is known", ErrScheme, method)
}

// verifyRSA takes any hash: which it is stands inside of the signature, SHA-1 by default (RFC
// 7296 3.8).
func (p *PublicKey) verifyRSA(sig, octets []byte, only []Hash) (string, error) {
	name := scheme{fam: famPKCS1, hash: SHA1}.String()
	if p.rsa == nil {
		return name, fmt.Errorf("%w: an RSA signature, but the peer's key is %v", ErrScheme, p)
	}
	for _, h := range []Hash{SHA1, SHA2_256, SHA2_384, SHA2_512} {
		s := scheme{fam: famPKCS1, hash: h}
		if !p.verify(s, sig, octets) {
			continue
		}
		if only != nil && !slices.Contains(only, h) {
			return s.String(), fmt.Errorf("%w: %v is not among the hashes that are configured", ErrScheme, h)
		}
		return s.String(), nil
	}
	return name, ErrSignature
}

// verifyECDSA takes r and s of fixed length; curve and hash follow from the method (RFC 4754 3).
func (p *PublicKey) verifyECDSA(method uint8, sig, octets []byte, only []Hash) (string, error) {
	for curve, m := range old {
		if m.method != method {
			continue
		}
		if p.ec == nil || p.ec.Curve.Params().Name != curve {
			return m.name, fmt.Errorf("%w: a signature for a key on %s, but the peer's key is %v", ErrScheme, curve, p)
		}
		if only != nil && !slices.Contains(only, m.hash) {
			return m.name, fmt.Errorf("%w: %v is not among the hashes that are configured", ErrScheme, m.hash)
		}
		n := (p.ec.Curve.Params().BitSize + 7) / 8
		if len(sig) != 2*n {
			return m.name, fmt.Errorf("%w: %d octets where there have to be %d", ErrSignature, len(sig), 2*n)
		}
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(new(big.Int).SetBytes(sig[:n]))
			b.AddASN1BigInt(new(big.Int).SetBytes(sig[n:]))
		})
		if !ecdsa.VerifyASN1(p.ec, m.hash.sum(octets), b.BytesOrPanic()) {
			return m.name, ErrSignature
		}
		return m.name, nil
	}
	return "", ErrScheme
}

// verifyNamed reads method 14 (RFC 7427 3).
//
//	+--------------+-----------------------+------------------+
//	| ASN.1 Length | AlgorithmIdentifier   | Signature Value  |
//	+--------------+-----------------------+------------------+
func (p *PublicKey) verifyNamed(data, octets []byte, only []Hash) (string, error) {
	in := cryptobyte.String(data)
	var alg cryptobyte.String
	if !in.ReadUint8LengthPrefixed(&alg) {
		return "", fmt.Errorf("%w: it ends inside of the algorithm's name", ErrSignature)
	}
	s, known, ok := parseAlg(alg)
	switch {
	case !ok:
		return "", fmt.Errorf("%w: the algorithm's name is damaged", ErrSignature)
	case !known && s.fam == famPSS:
		return s.String(), fmt.Errorf("%w: RSASSA-PSS with parameters that are not known", ErrScheme)
	case !known:
		return "", fmt.Errorf("%w: an algorithm that is not known (%x)", ErrScheme, []byte(alg[:min(len(alg), 24)]))
	}
	name := s.String()
	switch {
	case s.hash == SHA1:
		return name, fmt.Errorf("%w: SHA-1 is too weak", ErrScheme)
	case s.fam == famEd448:
		return name, fmt.Errorf("%w: Ed448 is not built in", ErrScheme)
	case only != nil && !slices.Contains(only, s.hash):
		return name, fmt.Errorf("%w: %v is not among the hashes that are configured", ErrScheme, s.hash)
	case !p.fits(s):
		return name, fmt.Errorf("%w: a signature by %s, but the peer's key is %v", ErrScheme, name, p)
	case !p.verify(s, in, octets):
		return name, ErrSignature
	}
	return name, nil
}

// fits says whether the key can make signatures of that family.
func (p *PublicKey) fits(s scheme) bool {
	switch s.fam {
	case famPKCS1, famPSS:
		return p.rsa != nil
	case famECDSA:
		return p.ec != nil
	case famEd25519:
		return p.ed != nil
	}
	return false
}

// verify checks a signature of a scheme that fits the key.
func (p *PublicKey) verify(s scheme, sig, octets []byte) bool {
	if !p.fits(s) {
		return false
	}
	switch s.fam {
	case famPKCS1:
		return rsa.VerifyPKCS1v15(p.rsa, s.hash.function(), s.hash.sum(octets), sig) == nil
	case famPSS:
		// A salt of no octets is 0 in the library, which stands for "any" there: no weaker.
		return rsa.VerifyPSS(p.rsa, s.hash.function(), s.hash.sum(octets), sig, &rsa.PSSOptions{SaltLength: s.salt}) == nil
	case famECDSA:
		return ecdsa.VerifyASN1(p.ec, s.hash.sum(octets), sig)
	case famEd25519:
		return ed25519.Verify(p.ed, octets, sig)
	}
	return false
}
