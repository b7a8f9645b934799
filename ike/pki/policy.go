package pki

import (
	"crypto/x509"
	"slices"
)

// anyPolicy stands for all policies in the certificate of a CA (RFC 5280 section 4.2.1.4).
const anyPolicy = "2.5.29.32.0"

// HasPolicy tells whether the end entity of a chain, which comes first, was issued under a
// certificate policy, and each CA between it and the last certificate may issue under it. Policies that
// CAs map to others (RFC 5280 section 4.2.1.5) are not.
func HasPolicy(chain []*Cert, oid string) bool {
	for i, c := range chain[:max(1, len(chain)-1)] {
		if !slices.ContainsFunc(c.x.Policies, func(o x509.OID) bool {
			return o.String() == oid || i > 0 && o.String() == anyPolicy
		}) {
			return false
		}
	}
	return len(chain) > 0
}
