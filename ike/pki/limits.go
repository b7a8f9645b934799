package pki

import "time"

// Limits on what one peer can make us do.
const (
	MaxCerts      = 10         // certificates taken from one peer in one verification
	MaxCertOctets = 64 << 10   // octets of all of them together
	MaxFetches    = 8          // fetches asked for in one verdict
	MaxRounds     = 2          // times that a verdict can ask for fetches: OCSP, then CRLs
	MaxCRLOctets  = 16 << 20   // octets of a CRL that are looked at
	MaxOCSPOctets = 64 << 10   // octets of an OCSP response that are looked at
	maxFileOctets = 4 << 20    // octets of a file of certificates or keys
	maxChecks     = 16         // signatures checked in search of a chain
	maxChecked    = 64         // and in all searches that share a Checked
	maxDepth      = 10         // certificates in a chain, with the anchor
	maxNames      = 4096       // comparisons of a name with a name constraint
	minRSABits    = 2048       // shorter RSA keys are refused everywhere
	maxRSABits    = 8192       // longer ones would cost an unauthenticated peer nothing, and us much
	maxAnnounced  = 64         // announcements of RFC 9593 that are kept
	maxDNOctets   = 4096       // a distinguished name
	maxURLOctets  = 1024       // a URL from a certificate
	maxIterations = 10_000_000 // of PBKDF2 in an encrypted key
)

// clockSkew is how far another's clock may be ahead of ours before its statements count as
// made in the future; and how long an OCSP response without nextUpdate holds.
const clockSkew = 5 * time.Minute
