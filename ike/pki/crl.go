package pki

import "time"

// CRL is a certificate revocation list (RFC 5280 5). Its signature has not been checked; that
// needs the CA. It is immutable.
type CRL struct{ raw []byte }

// ParseCRL reads a CRL, DER or PEM.
func ParseCRL(data []byte) (*CRL, error) { return nil, errNotYet }

func (l *CRL) Raw() []byte           { return l.raw }
func (l *CRL) Issuer() string        { return "" }
func (l *CRL) RawIssuer() []byte     { return nil }
func (l *CRL) ThisUpdate() time.Time { return time.Time{} }
func (l *CRL) NextUpdate() time.Time { return time.Time{} } // zero: not said

// CheckSignature says whether the CA made the list: its name, its right to (keyUsage cRLSign)
// and the signature.
func (l *CRL) CheckSignature(ca *Cert) error { return errNotYet }
