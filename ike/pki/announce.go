package pki

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
func ParseAnnounced(data []byte) ([]Announced, error) { return nil, errNotYet }

// AppendAnnounced appends the data of a SUPPORTED_AUTH_METHODS notify to b.
func AppendAnnounced(b []byte, list []Announced) []byte { return b }

// OurMethods is everything that [PublicKey.Verify] takes under the constraint only (nil: no
// constraint), to be announced; psk puts the shared key first.
func OurMethods(psk bool, only []Hash) []Announced { return nil }
