package pki

import "time"

// Revocation is the policy about revoked certificates; the names are strongSwan's, and off.
type Revocation uint8

const (
	RevokeRelaxed Revocation = iota // refuse only what is known to be revoked
	RevokeIfURI                     // refuse what is not known to be good if it names a CRL or a responder
	RevokeStrict                    // refuse what is not known to be good
	RevokeOff                       // do not look
)

// String is "relaxed", "ifuri", "strict" or "off".
func (r Revocation) String() string { return "" }

// Authority is a CA that we trust, and where it says what it revoked. The URIs add to those
// of the certificates that it issued.
type Authority struct {
	Cert     *Cert
	CRLs     []*CRL
	CRLURIs  []string
	OCSPURIs []string
}

// Trust is the CAs and intermediates of the configuration. It is immutable; several goroutines
// may use it at once. A nil Trust trusts nobody.
type Trust struct{ authorities []Authority }

// NewTrust refuses what could never serve: a certificate that is not a CA's, a weak key.
// intermediates are not trusted themselves; they fill the holes of chains.
func NewTrust(authorities []Authority, intermediates []*Cert) (*Trust, error) {
	return &Trust{authorities: authorities}, nil
}

// KeyIDs are the SHA-1 hashes of the public keys of the CAs, for CERTREQ (RFC 7296 3.7).
func (t *Trust) KeyIDs() [][20]byte { return nil }

// Authorities are the CAs as given to [NewTrust].
func (t *Trust) Authorities() []Authority { return t.authorities }

// Issuing are the certificates that a chain from leaf needs beyond the leaf: what to send in
// further CERT payloads. They come from the intermediates; a self-signed CA is left out (RFC
// 7296 3.6).
func (t *Trust) Issuing(leaf *Cert) []*Cert { return nil }

// FetchKind says what a [Fetch] brings.
type FetchKind uint8

const (
	FetchCRL  FetchKind = iota // a GET that brings a DER (or PEM) CRL
	FetchOCSP                  // a POST of application/ocsp-request that brings a DER OCSP response
)

// Fetch is something to get from the network for a verdict. URL begins with "http://".
type Fetch struct {
	Kind   FetchKind
	URL    string
	Post   []byte   // FetchOCSP: the DER OCSPRequest
	Issuer [20]byte // the key identifier of the CA that it is about
}

// Same says whether both ask for the same thing.
func (f *Fetch) Same(o *Fetch) bool { return false }

// Fetched is what came of it: a body or an error.
type Fetched struct {
	Fetch
	Body []byte
	Err  error
}

// Request is a question to [Trust.Verify].
type Request struct {
	Now   time.Time // wall clock
	Floor time.Time // a time that has surely passed; see the package comment

	Certs [][]byte // DER of the CERT payloads, the end entity's first (RFC 7296 3.6), else any order
	OCSP  [][]byte // OCSP responses of CERT payloads (RFC 4806)
	CRLs  [][]byte // CRLs of CERT payloads

	IDType uint8  // the identity to be proved; 0: none is looked at
	IDData []byte // its data

	Pinned     []*Cert // the end entity must be one of these, which are trusted without a CA; nil: any
	Anchors    []*Cert // the chain must end at or pass one of these, which are trusted; nil: those of Trust
	Revocation Revocation
	Got        []Fetched // everything that was fetched for earlier verdicts on the same question
	Final      bool      // nothing more can be fetched: decide
}

// Verdict is the answer.
type Verdict struct {
	Leaf  *Cert
	Chain []*Cert    // from Leaf to the anchor
	Key   *PublicKey // of Leaf

	// Need is not empty if the verdict is not final: everything holds but revocation, and these
	// would tell. Check the AUTH payload with Key first, fetch, append to Got and ask again;
	// after at most [MaxRounds] such verdicts comes one without Need.
	Need []Fetch

	Used     []int     // places in Got of what was authentic and told something new: worth caching
	Notes    []string  // for the log: clock wrong, revocation unknown, …
	NotAfter time.Time // the earliest end of a certificate of the chain
}

// Verify finds a chain from the peer's end entity certificate to an anchor and decides. An error
// is a refusal: it names the certificate and the reason, in words for the log.
func (t *Trust) Verify(r *Request) (*Verdict, error) { return nil, errNotYet }
