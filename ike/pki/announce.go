package pki

import (
	"bytes"
	"errors"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// Announced is one authentication method that a peer announces in SUPPORTED_AUTH_METHODS (RFC
// 9593 3.2).
//
//	+--------+-------------+-----------+----------------------+
//	| Length | Auth Method | Cert Link | AlgorithmIdentifier  |
//	+--------+-------------+-----------+----------------------+
//
// Length counts itself. Methods without public keys end after Auth Method, the old signatures
// after Cert Link.
type Announced struct {
	Method uint8
	// CertLink, if not 0, ties the method to the CA at that place (from 1) among the key
	// identifiers of the same peer's CERTREQ payloads.
	CertLink  uint8
	Algorithm []byte // DER AlgorithmIdentifier of method 14, else nil
}

// ParseAnnounced reads the data of a SUPPORTED_AUTH_METHODS notify. Announcements that are not
// understood are left out, as RFC 9593 3.2 wants; a length that does not fit is an error. The
// result is never nil without an error, as nil means "not announced" in [Offer.Methods]; it does
// not alias data.
func ParseAnnounced(data []byte) ([]Announced, error) {
	list := []Announced{}
	in := cryptobyte.String(data)
	for !in.Empty() {
		var n uint8
		var body []byte
		if !in.ReadUint8(&n) || n < 2 || !in.ReadBytes(&body, int(n)-1) {
			return nil, errors.New("an announced authentication method has a length that does not fit")
		}
		a := Announced{Method: body[0]}
		if len(body) > 1 {
			a.CertLink = body[1]
		}
		if len(body) > 2 {
			a.Algorithm = bytes.Clone(body[2:])
			if _, _, ok := parseAlg(a.Algorithm); !ok || a.Method != MethodSignature {
				continue
			}
		}
		// What follows the method has to be of that method's form (RFC 9593 3.2.1 to 3.2.3).
		switch a.Method {
		case MethodSignature:
			if a.Algorithm == nil {
				continue
			}
		case MethodRSA, MethodECDSA256, MethodECDSA384, MethodECDSA521:
			if len(body) != 2 {
				continue
			}
		default:
			if len(body) != 1 {
				continue
			}
		}
		if len(list) < maxAnnounced {
			list = append(list, a)
		}
	}
	return list, nil
}

// AppendAnnounced appends the data of a SUPPORTED_AUTH_METHODS notify to b. An Algorithm is at
// most 252 octets long.
func AppendAnnounced(b []byte, list []Announced) []byte {
	for _, a := range list {
		switch {
		case len(a.Algorithm) > 252:
		case a.Method == MethodSignature:
			b = append(b, byte(3+len(a.Algorithm)), a.Method, a.CertLink)
			b = append(b, a.Algorithm...)
		case a.Method == MethodRSA || a.Method >= MethodECDSA256 && a.Method <= MethodECDSA521:
			b = append(b, 3, a.Method, a.CertLink)
		default:
			b = append(b, 2, a.Method)
		}
	}
	return b
}

// OurMethods is what [PublicKey.Verify] takes under the constraint only (nil: no constraint), to
// be announced; psk puts the shared key first. The old method of RSA is left out, as whoever can
// announce can do better.
func OurMethods(psk bool, only []Hash) []Announced {
	var list []Announced
	if psk {
		list = append(list, Announced{Method: MethodPSK})
	}
	add := func(s scheme) {
		if only == nil || slices.Contains(only, s.hash) {
			list = append(list, Announced{Method: MethodSignature, Algorithm: s.alg()})
		}
	}
	add(scheme{fam: famEd25519, hash: Identity})
	sha2 := []Hash{SHA2_512, SHA2_384, SHA2_256}
	for _, h := range sha2 {
		add(scheme{fam: famECDSA, hash: h})
	}
	for _, h := range sha2 {
		add(pssScheme(h))
	}
	for _, h := range sha2 {
		add(scheme{fam: famPKCS1, hash: h})
	}
	return list
}
