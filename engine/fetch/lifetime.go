package fetch

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"postern/ike/pki"
)

var (
	errOCSP      = errors.New("it is no answer of an OCSP responder")
	errResponder = errors.New("the OCSP responder refuses to answer")
)

// lifetime tells when what was fetched was made, and when there will be a newer one (zero: not
// said). The error says that it is not what it should be. No signature is looked at.
func lifetime(kind pki.FetchKind, b []byte) (this, next time.Time, err error) {
	if kind == pki.FetchOCSP {
		return ocspLifetime(b)
	}
	list, err := pki.ParseCRL(b)
	if err != nil {
		return this, next, fmt.Errorf("it is no revocation list: %w", err)
	}
	return list.ThisUpdate(), list.NextUpdate(), nil
}

// ocspLifetime reads an OCSPResponse (RFC 6960 section 4.2.1) as far as its times. Of several
// certificates in it the shortest life counts.
//
//	OCSPResponse  ::= SEQUENCE { responseStatus ENUMERATED, [0] SEQUENCE { OID, OCTET STRING } }
//	BasicOCSPResponse ::= SEQUENCE { tbsResponseData, … }
//	ResponseData  ::= SEQUENCE { [0] version OPTIONAL, responderID, producedAt GeneralizedTime,
//	                             responses SEQUENCE OF SingleResponse, … }
//	SingleResponse ::= SEQUENCE { certID, certStatus, thisUpdate GeneralizedTime,
//	                              nextUpdate [0] GeneralizedTime OPTIONAL, … }
func ocspLifetime(b []byte) (this, next time.Time, err error) {
	var out, bytes, basic, data, list cryptobyte.String
	var status int
	in := cryptobyte.String(b)
	explicit := func(n uint8) asn1.Tag { return asn1.Tag(n).Constructed().ContextSpecific() }
	if !in.ReadASN1(&out, asn1.SEQUENCE) || !in.Empty() || !out.ReadASN1Enum(&status) {
		return this, next, errOCSP
	}
	if status != 0 {
		return this, next, fmt.Errorf("%w (status %d)", errResponder, status)
	}
	if !out.ReadASN1(&bytes, explicit(0)) || !bytes.ReadASN1(&bytes, asn1.SEQUENCE) || !bytes.SkipASN1(asn1.OBJECT_IDENTIFIER) ||
		!bytes.ReadASN1(&basic, asn1.OCTET_STRING) || !basic.ReadASN1(&basic, asn1.SEQUENCE) || !basic.ReadASN1(&data, asn1.SEQUENCE) ||
		!data.SkipOptionalASN1(explicit(0)) || !data.ReadAnyASN1(&out, new(asn1.Tag)) || !data.SkipASN1(asn1.GeneralizedTime) ||
		!data.ReadASN1(&list, asn1.SEQUENCE) || list.Empty() {
		return this, next, errOCSP
	}
	unsaid := false
	for !list.Empty() {
		var one, end cryptobyte.String
		var t, n time.Time
		var has bool
		if !list.ReadASN1(&one, asn1.SEQUENCE) || !one.SkipASN1(asn1.SEQUENCE) || !one.ReadAnyASN1(&out, new(asn1.Tag)) ||
			!one.ReadASN1GeneralizedTime(&t) || !one.ReadOptionalASN1(&end, &has, explicit(0)) || has && !end.ReadASN1GeneralizedTime(&n) {
			return this, next, errOCSP
		}
		if t.After(this) {
			this = t
		}
		if has && (next.IsZero() || n.Before(next)) {
			next = n
		}
		unsaid = unsaid || !has
	}
	if unsaid {
		next = time.Time{}
	}
	return this, next, nil
}
