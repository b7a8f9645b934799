package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// CRL is a certificate revocation list (RFC 5280 5). Its signature has not been checked; that
// needs the CA. It is immutable. Its entries stay in DER and are searched one by one: a list in
// pieces would take ten times its octets.
type CRL struct {
	raw, tbs, issuer, alg, sig []byte
	revoked                    cryptobyte.String // the entries
	this, next                 time.Time
	number                     *big.Int

	// What the issuing distribution point limits it to (RFC 5280 5.2.5).
	onlyUser, onlyCA, onlySome bool
	points                     []string // its URIs; nil: it is not of one point only

	by atomic.Pointer[[20]byte] // key identifier of the CA that was found to have signed it
}

// ParseCRL reads a CRL, DER or PEM. Delta CRLs, indirect ones and those with critical extensions
// that are not known are refused, as they must not be used (RFC 5280 5.2).
func ParseCRL(data []byte) (*CRL, error) {
	if len(data) > MaxCRLOctets {
		return nil, errors.New("the CRL is too large")
	}
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, errors.New("damaged PEM: a BEGIN line, but no whole block")
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("this is %s in PEM, not a CRL", kindOfPEM(block.Type))
		}
		data = block.Bytes
	}
	damaged := errors.New("damaged CRL")
	l := &CRL{raw: bytes.Clone(data)}
	in := cryptobyte.String(l.raw)
	var whole, tbs, inner, alg, issuer cryptobyte.String
	if !in.ReadASN1(&whole, asn1.SEQUENCE) || !in.Empty() ||
		!whole.ReadASN1Element(&tbs, asn1.SEQUENCE) || !whole.ReadASN1Element(&alg, asn1.SEQUENCE) ||
		!whole.ReadASN1BitStringAsBytes(&l.sig) || !whole.Empty() {
		return nil, damaged
	}
	l.tbs, l.alg = tbs, alg
	if !tbs.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, damaged
	}
	version := 0
	if tbs.PeekASN1Tag(asn1.INTEGER) && (!tbs.ReadASN1Integer(&version) || version != 1) {
		return nil, errors.New("a CRL of a version that is not known")
	}
	if !tbs.ReadASN1Element(&inner, asn1.SEQUENCE) || !bytes.Equal(inner, alg) ||
		!tbs.ReadASN1Element(&issuer, asn1.SEQUENCE) || !readTime(&tbs, &l.this) {
		return nil, damaged
	}
	l.issuer = issuer
	if (tbs.PeekASN1Tag(asn1.UTCTime) || tbs.PeekASN1Tag(asn1.GeneralizedTime)) && !readTime(&tbs, &l.next) {
		return nil, damaged
	}
	if tbs.PeekASN1Tag(asn1.SEQUENCE) && !tbs.ReadASN1(&l.revoked, asn1.SEQUENCE) {
		return nil, damaged
	}
	var exts cryptobyte.String
	var has bool
	if !tbs.ReadOptionalASN1(&exts, &has, asn1.Tag(0).Constructed().ContextSpecific()) || !tbs.Empty() {
		return nil, damaged
	}
	if has {
		if err := l.extensions(exts); err != nil {
			return nil, err
		}
	}
	for entries := l.revoked; !entries.Empty(); {
		if _, ok := readEntry(&entries); !ok {
			return nil, errors.New("the CRL has a damaged entry, or one with a critical extension that is not known")
		}
	}
	return l, nil
}

// readTime reads UTCTime or GeneralizedTime.
func readTime(s *cryptobyte.String, out *time.Time) bool {
	if s.PeekASN1Tag(asn1.UTCTime) {
		return s.ReadASN1UTCTime(out)
	}
	return s.ReadASN1GeneralizedTime(out)
}

// readExtension reads one Extension (RFC 5280 4.1).
func readExtension(s *cryptobyte.String) (oid []byte, critical bool, value cryptobyte.String, ok bool) {
	var seq, id cryptobyte.String
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1(&id, asn1.OBJECT_IDENTIFIER) ||
		seq.PeekASN1Tag(asn1.BOOLEAN) && !seq.ReadASN1Boolean(&critical) ||
		!seq.ReadASN1(&value, asn1.OCTET_STRING) || !seq.Empty() {
		return nil, false, nil, false
	}
	return id, critical, value, true
}

func (l *CRL) extensions(exts cryptobyte.String) error {
	damaged := errors.New("the CRL has a damaged extension")
	var list cryptobyte.String
	if !exts.ReadASN1(&list, asn1.SEQUENCE) || !exts.Empty() {
		return damaged
	}
	for !list.Empty() {
		oid, critical, value, ok := readExtension(&list)
		if !ok {
			return damaged
		}
		switch {
		case string(oid) == oidExtensions+"\x14": // cRLNumber
			l.number = new(big.Int)
			if !value.ReadASN1Integer(l.number) || l.number.BitLen() > 160 {
				return damaged
			}
		case string(oid) == oidExtensions+"\x1c": // issuingDistributionPoint
			if !l.point(value) {
				return errors.New("the CRL is indirect, or its distribution point is damaged")
			}
		case string(oid) == oidExtensions+"\x1b":
			return errors.New("this is a delta CRL, which is of no use alone")
		case critical:
			return errors.New("the CRL has a critical extension that is not known here")
		}
	}
	return nil
}

// point reads IssuingDistributionPoint (RFC 5280 5.2.5).
func (l *CRL) point(value cryptobyte.String) bool {
	var seq, dp cryptobyte.String
	var has bool
	ctx := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific() }
	if !value.ReadASN1(&seq, asn1.SEQUENCE) || !value.Empty() || !seq.ReadOptionalASN1(&dp, &has, ctx(0).Constructed()) {
		return false
	}
	if has {
		l.points = []string{}
		var full cryptobyte.String
		if !dp.ReadOptionalASN1(&full, &has, ctx(0).Constructed()) {
			return false
		}
		for has && !full.Empty() {
			g, ok := readGeneralName(&full)
			if !ok {
				return false
			}
			if g.kind == nameURI {
				l.points = append(l.points, string(g.value))
			}
		}
	}
	flag := func(n uint8, to *bool) bool {
		var v cryptobyte.String
		var has bool
		if !seq.ReadOptionalASN1(&v, &has, ctx(n)) {
			return false
		}
		*to = has && len(v) == 1 && v[0] != 0
		return true
	}
	var attributes, indirect bool
	var reasons cryptobyte.String
	ok := flag(1, &l.onlyUser) && flag(2, &l.onlyCA) && seq.ReadOptionalASN1(&reasons, &l.onlySome, ctx(3)) &&
		flag(4, &indirect) && flag(5, &attributes) && seq.Empty()
	if attributes {
		l.onlyUser, l.onlyCA = true, true // it covers no certificate of ours
	}
	return ok && !indirect
}

// entry is one revoked certificate. When it was revoked stays in DER: reading the times of a
// long list takes longer than everything else.
type entry struct {
	serial []byte
	when   cryptobyte.String
	reason int // RFC 5280 5.3.1; 0: not said
}

// at is when it was revoked; zero if that is no time.
func (e *entry) at() (t time.Time) {
	when := e.when
	if !readTime(&when, &t) {
		return time.Time{}
	}
	return t
}

func readEntry(s *cryptobyte.String) (e entry, ok bool) {
	var seq, serial cryptobyte.String
	var tag asn1.Tag
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1(&serial, asn1.INTEGER) || len(serial) == 0 ||
		!seq.ReadAnyASN1Element(&e.when, &tag) || tag != asn1.UTCTime && tag != asn1.GeneralizedTime {
		return e, false
	}
	e.serial = serial
	if seq.Empty() {
		return e, true
	}
	var list cryptobyte.String
	if !seq.ReadASN1(&list, asn1.SEQUENCE) || !seq.Empty() {
		return e, false
	}
	for !list.Empty() {
		oid, critical, value, ok := readExtension(&list)
		switch {
		case !ok:
			return e, false
		case string(oid) == oidExtensions+"\x15": // reasonCode
			var v cryptobyte.String
			if !value.ReadASN1(&v, asn1.ENUM) || len(v) != 1 {
				return e, false
			}
			e.reason = int(v[0])
		case critical: // such as certificateIssuer: it is another CA's
			return e, false
		}
	}
	return e, true
}

// Raw is the list in DER. The caller must not change it.
func (l *CRL) Raw() []byte { return l.raw }

// Issuer is the CA's name as charon writes it, RawIssuer the same in DER.
func (l *CRL) Issuer() string    { return FormatDN(l.issuer) }
func (l *CRL) RawIssuer() []byte { return l.issuer }

// ThisUpdate is when it was made; NextUpdate is when the next is due, zero if it does not say.
func (l *CRL) ThisUpdate() time.Time { return l.this }
func (l *CRL) NextUpdate() time.Time { return l.next }

// Number is the CRL number (RFC 5280 5.2.3), nil if it has none. The caller must not change it.
func (l *CRL) Number() *big.Int { return l.number }

// Revoked calls f with each entry until that returns false: the serial number, the time, and the
// reason (RFC 5280 5.3.1; 0: not said).
func (l *CRL) Revoked(f func(serial *big.Int, at time.Time, reason int) bool) {
	for entries := l.revoked; !entries.Empty(); {
		e, ok := readEntry(&entries)
		if !ok || !f(new(big.Int).SetBytes(e.serial), e.at(), e.reason) {
			return
		}
	}
}

// find looks a serial number up.
func (l *CRL) find(serial *big.Int) (entry, bool) {
	want := serial.Bytes()
	for entries := l.revoked; !entries.Empty(); {
		e, ok := readEntry(&entries)
		if !ok {
			break
		}
		if bytes.Equal(bytes.TrimLeft(e.serial, "\x00"), want) {
			return e, true
		}
	}
	return entry{}, false
}

// CheckSignature says whether the CA made the list: its name, its right to (keyUsage cRLSign)
// and the signature.
func (l *CRL) CheckSignature(ca *Cert) error {
	if !bytes.Equal(l.issuer, ca.x.RawSubject) {
		return fmt.Errorf("the CRL is by another CA, %q", brief(l.Issuer()))
	}
	if ca.x.KeyUsage != 0 && ca.x.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fmt.Errorf("%s may not sign CRLs", ca.label())
	}
	if ca.keyErr != nil {
		return ca.keyErr
	}
	id := ca.key.id
	if by := l.by.Load(); by != nil && *by == id {
		return nil
	}
	if err := ca.key.verifyAlg(l.alg, l.sig, l.tbs); err != nil {
		return fmt.Errorf("the CRL of %s: %w", ca.label(), err)
	}
	l.by.Store(&id)
	return nil
}

// verifyAlg checks a signature whose algorithm stands in DER beside it, as in CRLs, OCSP
// responses and certificates.
func (p *PublicKey) verifyAlg(alg, sig, signed []byte) error {
	s, known, ok := parseAlg(alg)
	switch {
	case !ok || !known:
		return fmt.Errorf("%w: it is of a kind that is not known", ErrScheme)
	case s.hash == SHA1:
		return fmt.Errorf("%w: SHA-1 is too weak", ErrScheme)
	case !p.fits(s):
		return fmt.Errorf("%w: %v does not fit a key that is %v", ErrScheme, s, p)
	case !p.verify(s, sig, signed):
		return ErrSignature
	}
	return nil
}

// covers says whether the list speaks for the certificate at all, found at the URL ("" if it
// was not fetched): a list of one distribution point only speaks for the certificates of that.
func (l *CRL) covers(c *Cert, urls []string) bool {
	if l.onlyUser && c.IsCA() || l.onlyCA && !c.IsCA() || l.onlySome {
		return false
	}
	if l.points == nil {
		return true
	}
	for _, p := range l.points {
		for _, u := range urls {
			if p == u {
				return true
			}
		}
	}
	return false
}
