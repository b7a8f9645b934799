package pki

// ParseDN reads a distinguished name in strongSwan's notation, "C=CH, O=strongSwan, CN=moon" (or
// "/C=CH/O=strongSwan/CN=moon"), into DER. Attributes are the usual short names or OIDs in
// digits; a value with a separator in it stands in double quotes or has a backslash before it.
// wild says that a value is "*".
func ParseDN(text string) (der []byte, wild bool, err error) { return nil, false, errNotYet }

// FormatDN writes a DER name in the notation that [ParseDN] reads, and without control
// characters; what is no name gives "(not a distinguished name)".
func FormatDN(der []byte) string { return "" }

// MatchDN compares two DER names, RDN by RDN in their order: attribute types exactly, values
// without regard to case, to the string's ASN.1 type and to the number of spaces (RFC 5280 7.1).
// A value "*" in pattern matches any value. Names that are not well formed match nothing.
func MatchDN(pattern, der []byte) bool { return false }
