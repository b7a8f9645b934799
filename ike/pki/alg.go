package pki

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // the hash of CERTREQ, of AUTH method 1 and of many OCSP requests
	_ "crypto/sha256"
	_ "crypto/sha512"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Contents of OBJECT IDENTIFIERs, as compared with what stands in DER.
const (
	oidPKCS1      = "\x2a\x86\x48\x86\xf7\x0d\x01\x01" // 1.2.840.113549.1.1, of which follow
	oidMGF1       = oidPKCS1 + "\x08"
	oidPSS        = oidPKCS1 + "\x0a"
	oidECDSASHA1  = "\x2a\x86\x48\xce\x3d\x04\x01"
	oidECDSA      = "\x2a\x86\x48\xce\x3d\x04\x03" // 1.2.840.10045.4.3, of which follow
	oidEd25519    = "\x2b\x65\x70"
	oidEd448      = "\x2b\x65\x71"
	oidSHA1       = "\x2b\x0e\x03\x02\x1a"
	oidSHA2       = "\x60\x86\x48\x01\x65\x03\x04\x02" // 2.16.840.1.101.3.4.2, of which follow
	oidMD5        = "\x2a\x86\x48\x86\xf7\x0d\x02\x05"
	oidPBES2      = "\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d"
	oidPBKDF2     = "\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c"
	oidHMAC       = "\x2a\x86\x48\x86\xf7\x0d\x02" // 1.2.840.113549.2, of which follow
	oidAES        = "\x60\x86\x48\x01\x65\x03\x04\x01"
	oidScrypt     = "\x2b\x06\x01\x04\x01\xda\x47\x04\x0b"
	oid3DES       = "\x2a\x86\x48\x86\xf7\x0d\x03\x07"
	oidPBES1      = "\x2a\x86\x48\x86\xf7\x0d\x01\x05" // PBES1's and PKCS #12's begin so
	oidPKCS12     = "\x2a\x86\x48\x86\xf7\x0d\x01\x0c"
	oidOCSPBasic  = "\x2b\x06\x01\x05\x05\x07\x30\x01\x01"
	oidExtensions = "\x55\x1d" // 2.5.29, of which follow
)

// family is how a signature is made.
type family uint8

const (
	famNone family = iota
	famPKCS1
	famPSS
	famECDSA // a DER sequence of r and s
	famEd25519
	famEd448 // recognized, not verified
)

// scheme is a signature algorithm with its hash.
type scheme struct {
	fam  family
	hash Hash
	salt int // RSASSA-PSS: octets
}

// String is the algorithm in charon's words.
func (s scheme) String() string {
	sha := map[Hash]string{SHA1: "SHA1", SHA2_256: "SHA2_256", SHA2_384: "SHA2_384", SHA2_512: "SHA2_512"}[s.hash]
	switch s.fam {
	case famPKCS1:
		return "RSA_EMSA_PKCS1_" + sha
	case famPSS:
		return "RSA_EMSA_PSS_" + sha
	case famECDSA:
		switch s.hash {
		case SHA1:
			return "ECDSA_WITH_SHA1_DER"
		case SHA2_256:
			return "ECDSA_WITH_SHA256_DER"
		case SHA2_384:
			return "ECDSA_WITH_SHA384_DER"
		}
		return "ECDSA_WITH_SHA512_DER"
	case famEd25519:
		return "ED25519"
	case famEd448:
		return "ED448"
	}
	return "UNKNOWN"
}

// function is the hash in Go's terms, 0 for Identity.
func (h Hash) function() crypto.Hash {
	switch h {
	case SHA1:
		return crypto.SHA1
	case SHA2_256:
		return crypto.SHA256
	case SHA2_384:
		return crypto.SHA384
	case SHA2_512:
		return crypto.SHA512
	}
	return 0
}

func (h Hash) sum(b []byte) []byte {
	f := h.function().New()
	f.Write(b)
	return f.Sum(nil)
}

// hashOID is the hash that an OBJECT IDENTIFIER names, 0 if none that we know.
func hashOID(oid []byte) Hash {
	if string(oid) == oidSHA1 {
		return SHA1
	}
	if rest, ok := bytes.CutPrefix(oid, []byte(oidSHA2)); ok && len(rest) == 1 && rest[0] >= 1 && rest[0] <= 3 {
		return SHA2_256 + Hash(rest[0]-1)
	}
	return 0
}

func (h Hash) oid() string {
	if h == SHA1 {
		return oidSHA1
	}
	return oidSHA2 + string([]byte{byte(h - SHA2_256 + 1)})
}

// readAlg reads an AlgorithmIdentifier: the OID and, if present, the parameters with their tag.
func readAlg(s *cryptobyte.String) (oid, params cryptobyte.String, ok bool) {
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) {
		return nil, nil, false
	}
	if !seq.Empty() {
		var tag asn1.Tag
		if !seq.ReadAnyASN1Element(&params, &tag) || !seq.Empty() {
			return nil, nil, false
		}
	}
	return oid, params, true
}

func absentOrNull(params cryptobyte.String) bool {
	return len(params) == 0 || string(params) == "\x05\x00"
}

// parseAlg recognizes a DER AlgorithmIdentifier of a signature (RFC 7427 appendix A, RFC 8420
// appendix A). known is false if it is none of those that we can name; ok is false if it is no
// AlgorithmIdentifier at all.
func parseAlg(der []byte) (s scheme, known, ok bool) {
	in := cryptobyte.String(der)
	oid, params, ok := readAlg(&in)
	if !ok || !in.Empty() {
		return s, false, false
	}
	switch {
	case string(oid) == oidEd25519 && len(params) == 0:
		return scheme{fam: famEd25519, hash: Identity}, true, true
	case string(oid) == oidEd448 && len(params) == 0:
		return scheme{fam: famEd448, hash: Identity}, true, true
	case string(oid) == oidECDSASHA1 && len(params) == 0:
		return scheme{fam: famECDSA, hash: SHA1}, true, true
	case string(oid) == oidPSS:
		s, known = parsePSS(params)
		return s, known, true
	case !absentOrNull(params):
		return s, false, true
	}
	if rest, is := bytes.CutPrefix(oid, []byte(oidPKCS1)); is && len(rest) == 1 {
		switch rest[0] {
		case 5:
			return scheme{fam: famPKCS1, hash: SHA1}, true, true
		case 11, 12, 13:
			return scheme{fam: famPKCS1, hash: SHA2_256 + Hash(rest[0]-11)}, true, true
		}
	}
	if rest, is := bytes.CutPrefix(oid, []byte(oidECDSA)); is && len(rest) == 1 && rest[0] >= 2 && rest[0] <= 4 && len(params) == 0 {
		return scheme{fam: famECDSA, hash: SHA2_256 + Hash(rest[0]-2)}, true, true
	}
	return s, false, true
}

// parsePSS reads RSASSA-PSS-params (RFC 4055 3.1). Only MGF1 with the same hash, and the one
// trailer that is defined, are known.
func parsePSS(params cryptobyte.String) (s scheme, known bool) {
	s = scheme{fam: famPSS, hash: SHA1, salt: 20}
	var seq, f cryptobyte.String
	var has bool
	if !params.ReadASN1(&seq, asn1.SEQUENCE) {
		return s, false
	}
	mgf := SHA1
	if !seq.ReadOptionalASN1(&f, &has, asn1.Tag(0).Constructed().ContextSpecific()) {
		return s, false
	}
	if has {
		oid, p, ok := readAlg(&f)
		if s.hash = hashOID(oid); !ok || s.hash == 0 || !absentOrNull(p) || !f.Empty() {
			return s, false
		}
	}
	if !seq.ReadOptionalASN1(&f, &has, asn1.Tag(1).Constructed().ContextSpecific()) {
		return s, false
	}
	if has {
		oid, p, ok := readAlg(&f)
		if !ok || string(oid) != oidMGF1 || !f.Empty() {
			return s, false
		}
		oid, q, ok := readAlg(&p)
		if mgf = hashOID(oid); !ok || !absentOrNull(q) || !p.Empty() {
			return s, false
		}
	}
	if mgf != s.hash {
		return s, false
	}
	if !seq.ReadOptionalASN1(&f, &has, asn1.Tag(2).Constructed().ContextSpecific()) {
		return s, false
	}
	if has && (!f.ReadASN1Integer(&s.salt) || !f.Empty() || s.salt < 0 || s.salt > maxRSABits/8) {
		return s, false
	}
	if !seq.ReadOptionalASN1(&f, &has, asn1.Tag(3).Constructed().ContextSpecific()) {
		return s, false
	}
	if trailer := 1; has && (!f.ReadASN1Integer(&trailer) || !f.Empty() || trailer != 1) {
		return s, false
	}
	return s, seq.Empty()
}

// alg is the scheme as a DER AlgorithmIdentifier, as RFC 7427 appendix A writes it.
func (s scheme) alg() []byte {
	var b cryptobyte.Builder
	oid := func(b *cryptobyte.Builder, id string) {
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes([]byte(id)) })
	}
	hash := func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { oid(b, s.hash.oid()); b.AddASN1NULL() })
	}
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		switch s.fam {
		case famPKCS1:
			last := byte(5)
			if s.hash != SHA1 {
				last = 11 + byte(s.hash-SHA2_256)
			}
			oid(b, oidPKCS1+string([]byte{last}))
			b.AddASN1NULL()
		case famPSS:
			oid(b, oidPSS)
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if s.hash == SHA1 && s.salt == 20 {
					return
				}
				b.AddASN1(asn1.Tag(0).Constructed().ContextSpecific(), hash)
				b.AddASN1(asn1.Tag(1).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { oid(b, oidMGF1); hash(b) })
				})
				b.AddASN1(asn1.Tag(2).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(s.salt)) })
			})
		case famECDSA:
			if s.hash == SHA1 {
				oid(b, oidECDSASHA1)
			} else {
				oid(b, oidECDSA+string([]byte{2 + byte(s.hash-SHA2_256)}))
			}
		case famEd25519:
			oid(b, oidEd25519)
		}
	})
	return b.BytesOrPanic()
}

// pssScheme has a salt as long as the hash, as RFC 7427 A.4 and everybody else has it.
func pssScheme(h Hash) scheme { return scheme{fam: famPSS, hash: h, salt: h.function().Size()} }
