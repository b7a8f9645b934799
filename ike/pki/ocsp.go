package pki

import "time"

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
	Reason                 int // RFC 5280 5.3.1
	ThisUpdate, NextUpdate time.Time
}

// CheckOCSP reads a DER OCSPResponse (RFC 6960 4.2) and checks that it speaks about cert, which
// issuer issued, and that issuer or a responder that it delegated to signed it. now is for the
// delegated responder's validity; whether the answer is fresh is the caller's to say.
func CheckOCSP(der []byte, cert, issuer *Cert, now time.Time) (*OCSPAnswer, error) {
	return nil, errNotYet
}

// OCSPFor are the requests that ask about our own certificate cert, issued by issuer, to be
// sent along (RFC 4806); none if neither it nor the authority names a responder.
func (t *Trust) OCSPFor(cert, issuer *Cert) []Fetch { return nil }
