package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// OCSPStatus is what a responder says about a certificate.
type OCSPStatus uint8

const (
	OCSPUnknown OCSPStatus = iota
	OCSPGood
	OCSPRevoked
)

// OCSPAnswer is what an authentic OCSP response says about one certificate.
type OCSPAnswer struct {
	Status                 OCSPStatus
	RevokedAt              time.Time
	Reason                 int       // RFC 5280 5.3.1; 0: not said
	ThisUpdate, NextUpdate time.Time // NextUpdate is zero if it does not say
}

// errOtherCert says that a response is about other certificates.
var errOtherCert = errors.New("the OCSP response does not speak about this certificate")

// ocspRequest asks about one certificate (RFC 6960 4.1). The hash is SHA-1, which every
// responder knows (RFC 5019 2.1.1); it names, and protects nothing. There is no nonce: an answer
// with its times is signed data, and one made ahead or cached is as good.
func ocspRequest(cert, issuer *Cert) []byte {
	name, key := ocspHashes(SHA1, issuer)
	var b cryptobyte.Builder
	seq := func(b *cryptobyte.Builder, f cryptobyte.BuilderContinuation) { b.AddASN1(asn1.SEQUENCE, f) }
	seq(&b, func(b *cryptobyte.Builder) { // OCSPRequest
		seq(b, func(b *cryptobyte.Builder) { // TBSRequest
			seq(b, func(b *cryptobyte.Builder) { // requestList
				seq(b, func(b *cryptobyte.Builder) { // Request
					seq(b, func(b *cryptobyte.Builder) { // CertID
						seq(b, func(b *cryptobyte.Builder) {
							b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes([]byte(oidSHA1)) })
							b.AddASN1NULL()
						})
						b.AddASN1OctetString(name)
						b.AddASN1OctetString(key)
						b.AddASN1BigInt(cert.x.SerialNumber)
					})
				})
			})
		})
	})
	return b.BytesOrPanic()
}

// ocspHashes are issuerNameHash and issuerKeyHash of a CertID (RFC 6960 4.1.1): of the name, and
// of the key's bits without their type.
func ocspHashes(h Hash, issuer *Cert) (name, key []byte) {
	return h.sum(issuer.x.RawSubject), h.sum(keyBits(issuer))
}

// keyBits are the contents of the BIT STRING in SubjectPublicKeyInfo.
func keyBits(c *Cert) []byte {
	in := cryptobyte.String(c.x.RawSubjectPublicKeyInfo)
	var seq cryptobyte.String
	var bits []byte
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !seq.SkipASN1(asn1.SEQUENCE) || !seq.ReadASN1BitStringAsBytes(&bits) {
		return nil
	}
	return bits
}

// basicOCSP is a BasicOCSPResponse taken apart (RFC 6960 4.2.1).
type basicOCSP struct {
	tbs, alg, sig []byte
	byName        []byte // ResponderID: one of the two
	byKey         []byte
	responses     cryptobyte.String
	certs         [][]byte
}

func parseOCSP(der []byte) (*basicOCSP, error) {
	if len(der) > MaxOCSPOctets {
		return nil, errors.New("the OCSP response is too large")
	}
	damaged := errors.New("damaged OCSP response")
	ctx := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }
	in := cryptobyte.String(der)
	var seq, outer, rb, oid, body cryptobyte.String
	var status int
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Enum(&status) {
		return nil, damaged
	}
	if status != 0 {
		word := map[int]string{1: "the request is malformed", 2: "internal error", 3: "try later", 5: "a signature is needed", 6: "not for you"}[status]
		if word == "" {
			word = fmt.Sprint("status ", status)
		}
		return nil, fmt.Errorf("the OCSP responder answers: %s", word)
	}
	if !seq.ReadASN1(&outer, ctx(0)) || !seq.Empty() || !outer.ReadASN1(&rb, asn1.SEQUENCE) || !outer.Empty() ||
		!rb.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || !rb.ReadASN1(&body, asn1.OCTET_STRING) || !rb.Empty() {
		return nil, damaged
	}
	if string(oid) != oidOCSPBasic {
		return nil, errors.New("an OCSP response of a kind that is not known")
	}
	r := new(basicOCSP)
	var basic, tbs, alg, certs, rid, exts cryptobyte.String
	var has bool
	if !body.ReadASN1(&basic, asn1.SEQUENCE) || !body.Empty() ||
		!basic.ReadASN1Element(&tbs, asn1.SEQUENCE) || !basic.ReadASN1Element(&alg, asn1.SEQUENCE) ||
		!basic.ReadASN1BitStringAsBytes(&r.sig) || !basic.ReadOptionalASN1(&certs, &has, ctx(0)) || !basic.Empty() {
		return nil, damaged
	}
	r.tbs, r.alg = tbs, alg
	if has {
		var list cryptobyte.String
		if !certs.ReadASN1(&list, asn1.SEQUENCE) {
			return nil, damaged
		}
		for !list.Empty() {
			var c cryptobyte.String
			if !list.ReadASN1Element(&c, asn1.SEQUENCE) {
				return nil, damaged
			}
			if r.certs = append(r.certs, c); len(r.certs) > 4 {
				return nil, errors.New("the OCSP response has too many certificates")
			}
		}
	}
	var version int64
	if !tbs.ReadASN1(&tbs, asn1.SEQUENCE) || !tbs.ReadOptionalASN1(&rid, &has, ctx(0)) {
		return nil, damaged
	}
	if has && (!rid.ReadASN1Integer(&version) || version != 0) {
		return nil, errors.New("an OCSP response of a version that is not known")
	}
	var v cryptobyte.String
	switch {
	case tbs.PeekASN1Tag(ctx(1)):
		if !tbs.ReadASN1(&v, ctx(1)) {
			return nil, damaged
		}
		r.byName = v
	case tbs.PeekASN1Tag(ctx(2)):
		if !tbs.ReadASN1(&v, ctx(2)) || !v.ReadASN1Bytes(&r.byKey, asn1.OCTET_STRING) || !v.Empty() {
			return nil, damaged
		}
	default:
		return nil, damaged
	}
	var produced time.Time
	if !tbs.ReadASN1GeneralizedTime(&produced) || !tbs.ReadASN1(&r.responses, asn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&exts, &has, ctx(1)) || !tbs.Empty() {
		return nil, damaged
	}
	if has && !noCritical(exts) {
		return nil, errors.New("the OCSP response has a critical extension that is not known here")
	}
	return r, nil
}

// noCritical says whether a list of extensions is well formed and has no critical one.
func noCritical(exts cryptobyte.String) bool {
	var list cryptobyte.String
	if !exts.ReadASN1(&list, asn1.SEQUENCE) || !exts.Empty() {
		return false
	}
	for !list.Empty() {
		if _, critical, _, ok := readExtension(&list); !ok || critical {
			return false
		}
	}
	return true
}

// find looks for what the response says about a certificate.
func (r *basicOCSP) find(cert, issuer *Cert) (*OCSPAnswer, error) {
	damaged := errors.New("damaged OCSP response")
	ctx := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific() }
	serial := cert.x.SerialNumber.Bytes()
	for list := r.responses; !list.Empty(); {
		var one, id, name, key, number, v cryptobyte.String
		if !list.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1(&id, asn1.SEQUENCE) {
			return nil, damaged
		}
		oid, params, ok := readAlg(&id)
		if !ok || !id.ReadASN1(&name, asn1.OCTET_STRING) || !id.ReadASN1(&key, asn1.OCTET_STRING) ||
			!id.ReadASN1(&number, asn1.INTEGER) || !id.Empty() {
			return nil, damaged
		}
		h := hashOID(oid)
		if h == 0 || !absentOrNull(params) || !bytes.Equal(bytes.TrimLeft(number, "\x00"), serial) {
			continue
		}
		if n, k := ocspHashes(h, issuer); !bytes.Equal(n, name) || !bytes.Equal(k, key) {
			continue
		}
		a := new(OCSPAnswer)
		switch {
		case one.PeekASN1Tag(ctx(0)):
			if !one.ReadASN1(&v, ctx(0)) {
				return nil, damaged
			}
			a.Status = OCSPGood
		case one.PeekASN1Tag(ctx(1).Constructed()):
			var has bool
			var reason cryptobyte.String
			if !one.ReadASN1(&v, ctx(1).Constructed()) || !v.ReadASN1GeneralizedTime(&a.RevokedAt) ||
				!v.ReadOptionalASN1(&reason, &has, ctx(0).Constructed()) || has && !reason.ReadASN1Enum(&a.Reason) {
				return nil, damaged
			}
			a.Status = OCSPRevoked
		case one.PeekASN1Tag(ctx(2)):
			if !one.ReadASN1(&v, ctx(2)) {
				return nil, damaged
			}
		default:
			return nil, damaged
		}
		var next, exts cryptobyte.String
		var has, hasExts bool
		if !one.ReadASN1GeneralizedTime(&a.ThisUpdate) || !one.ReadOptionalASN1(&next, &has, ctx(0).Constructed()) ||
			has && !next.ReadASN1GeneralizedTime(&a.NextUpdate) ||
			!one.ReadOptionalASN1(&exts, &hasExts, ctx(1).Constructed()) || !one.Empty() {
			return nil, damaged
		}
		if hasExts && !noCritical(exts) {
			return nil, errors.New("the OCSP response has a critical extension that is not known here")
		}
		return a, nil
	}
	return nil, errOtherCert
}

// CheckOCSP reads a DER OCSPResponse (RFC 6960 4.2) and checks that it speaks about cert, which
// issuer issued, and that issuer or a responder that it delegated to (4.2.2.2) signed it. now is
// for the delegated responder's validity; whether the answer is fresh is for [OCSPAnswer.Fresh].
func CheckOCSP(der []byte, cert, issuer *Cert, now time.Time) (*OCSPAnswer, error) {
	return checkOCSP(der, cert, issuer, now, false)
}

// checkOCSP excuses a responder that is not yet valid if the clock is early.
func checkOCSP(der []byte, cert, issuer *Cert, now time.Time, early bool) (*OCSPAnswer, error) {
	r, err := parseOCSP(der)
	if err != nil {
		return nil, err
	}
	a, err := r.find(cert, issuer)
	if err != nil {
		return nil, err
	}
	if r.isResponder(issuer) {
		if issuer.keyErr != nil {
			return nil, issuer.keyErr
		}
		if err = issuer.key.verifyAlg(r.alg, r.sig, r.tbs); err != nil {
			return nil, fmt.Errorf("the OCSP response: %w", err)
		}
		return a, nil
	}
	err = errors.New("the OCSP response is signed by someone whose certificate is not in it")
	for _, raw := range r.certs {
		c, bad := ParseCert(raw)
		if bad != nil || !r.isResponder(c) {
			continue
		}
		if err = delegated(c, issuer, now, early); err == nil {
			if err = c.key.verifyAlg(r.alg, r.sig, r.tbs); err == nil {
				return a, nil
			}
		}
		err = fmt.Errorf("the OCSP response by %s: %w", c.label(), err)
	}
	return nil, err
}

// isResponder says whether the response claims to be by this certificate.
func (r *basicOCSP) isResponder(c *Cert) bool {
	if r.byKey != nil {
		return bytes.Equal(r.byKey, SHA1.sum(keyBits(c)))
	}
	return bytes.Equal(r.byName, c.x.RawSubject)
}

// delegated says whether issuer let c sign OCSP responses. Whether c is revoked is not asked:
// CAs mark such certificates so, or make them short (RFC 6960 4.2.2.2.1).
func delegated(c, issuer *Cert, now time.Time, early bool) error {
	switch {
	case c.keyErr != nil:
		return c.keyErr
	case !bytes.Equal(c.x.RawIssuer, issuer.x.RawSubject):
		return errors.New("the responder is not one of this CA")
	case !slices.Contains(c.x.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return errors.New("the CA did not delegate OCSP to it (no extended key usage OCSPSigning)")
	case !early && now.Before(c.x.NotBefore.Add(-clockSkew)):
		return errors.New("the responder's certificate is not yet valid")
	case now.After(c.x.NotAfter):
		return errors.New("the responder's certificate has expired")
	}
	if err := unhandled(c); err != nil {
		return err
	}
	return issuer.signed(c)
}

// Fresh says whether the answer holds at a time: no longer than it says, or shortly if it does
// not say.
func (a *OCSPAnswer) Fresh(now time.Time) bool {
	end := a.NextUpdate
	if end.IsZero() {
		end = a.ThisUpdate.Add(clockSkew)
	}
	return !now.Before(a.ThisUpdate.Add(-clockSkew)) && !now.After(end)
}

// OCSPFor are the requests that ask about our own certificate cert, issued by issuer, to be
// sent along (RFC 4806); none if neither it nor the authority names a responder.
func (t *Trust) OCSPFor(cert, issuer *Cert) []Fetch {
	var list []Fetch
	ocsp, _, _ := t.uris(cert, issuer)
	for _, u := range ocsp {
		list = append(list, Fetch{Kind: FetchOCSP, URL: u, Post: ocspRequest(cert, issuer), Issuer: keyID(issuer)})
	}
	return list
}
