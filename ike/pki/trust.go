package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

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
type Trust struct {
	authorities   []Authority
	intermediates []*Cert
	crls          []*CRL
}

// NewTrust refuses what could never serve: a certificate that is not a CA's, a weak key, a URI
// that is not "http://". intermediates are not trusted themselves; they fill the holes of chains.
func NewTrust(authorities []Authority, intermediates []*Cert) (*Trust, error) {
	t := &Trust{authorities: slices.Clone(authorities), intermediates: slices.Clone(intermediates)}
	for _, a := range authorities {
		switch {
		case a.Cert == nil:
			return nil, errors.New("an authority without a certificate")
		case !a.Cert.IsCA():
			return nil, fmt.Errorf("%s is not a CA's (no basicConstraints CA)", a.Cert.label())
		case a.Cert.keyErr != nil:
			return nil, fmt.Errorf("%s: %w", a.Cert.label(), a.Cert.keyErr)
		}
		for _, u := range slices.Concat(a.CRLURIs, a.OCSPURIs) {
			if !usableURL(u) {
				return nil, fmt.Errorf("authority %s: %q is not an http:// URI", a.Cert.label(), u)
			}
		}
		t.crls = append(t.crls, a.CRLs...)
	}
	return t, nil
}

// KeyIDs are the SHA-1 hashes of the public keys of the CAs, for CERTREQ (RFC 7296 3.7), each
// once.
func (t *Trust) KeyIDs() [][20]byte {
	var ids [][20]byte
	for _, a := range t.Authorities() {
		if id := keyID(a.Cert); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Authorities are the CAs as given to [NewTrust].
func (t *Trust) Authorities() []Authority {
	if t == nil {
		return nil
	}
	return t.authorities
}

// Issuing are the certificates that a chain from leaf needs beyond the leaf: what to send in
// further CERT payloads. They come from the intermediates and the authorities; a self-signed CA
// is left out, as the peer has it or does not trust it (RFC 7296 3.6).
func (t *Trust) Issuing(leaf *Cert) []*Cert {
	if t == nil {
		return nil
	}
	pool := slices.Clone(t.intermediates)
	for _, a := range t.authorities {
		pool = append(pool, a.Cert)
	}
	var out []*Cert
	for c := leaf; len(out) < maxDepth-1 && !c.SelfSigned(); {
		i := slices.IndexFunc(pool, func(p *Cert) bool {
			return bytes.Equal(p.x.RawSubject, c.x.RawIssuer) && p.IsCA() && p.signed(c) == nil && !slices.ContainsFunc(out, p.Equal)
		})
		if i < 0 || pool[i].SelfSigned() {
			break
		}
		c = pool[i]
		out = append(out, c)
	}
	return out
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
	Known      []*Cert // end entities that are trusted without a CA, as others are with one
	Anchors    []*Cert // the chain must end at or pass one of these, which are trusted; nil: those of Trust
	Revocation Revocation
	Got        []Fetched // everything that was fetched for earlier verdicts on the same question
	Final      bool      // nothing more can be fetched: decide

	// Checked, if not nil, is what several questions about the same Certs have found out together.
	Checked *Checked
}

// Checked keeps who signed what, so that the signatures of a stranger's certificates are checked
// once however many questions are asked about them. The zero value knows nothing. It serves one
// question at a time.
type Checked struct{ links map[[sha256.Size]byte]error }

// link returns what check says of the pair, or has said before.
func (k *Checked) link(p, c *Cert, spent *int, check func() error) error {
	h := sha256.New()
	_, _ = h.Write(p.x.Raw)
	_, _ = h.Write(c.x.Raw)
	pair := [sha256.Size]byte(h.Sum(nil))
	err, known := k.links[pair]
	if !known && len(k.links) < maxChecked {
		if *spent++; *spent <= maxChecks {
			if err = check(); k.links == nil {
				k.links = make(map[[sha256.Size]byte]error)
			}
			k.links[pair] = err
			return err
		}
	}
	if !known {
		return fmt.Errorf("%s: no chain was found within %d signatures", c.label(), maxChecks)
	}
	return err
}

// Verdict is the answer.
type Verdict struct {
	Leaf  *Cert
	Chain []*Cert    // from Leaf to the anchor; Leaf alone if it is pinned and no CA is at hand
	Key   *PublicKey // of Leaf

	// Need is not empty if the verdict is not final: everything holds but revocation, and these
	// would tell. Check the AUTH payload with Key first, fetch, append to Got (failures too) and
	// ask again; after at most [MaxRounds] such verdicts comes one without Need.
	Need []Fetch

	Used     []int     // places in Got of what was authentic and told something: worth caching; also with an error
	Notes    []string  // for the log: clock wrong, revocation unknown, …
	NotAfter time.Time // the earliest end of a certificate of the chain
}

// verifier is one question on its way.
type verifier struct {
	t       *Trust
	r       *Request
	early   bool // the clock is before Floor
	anchors []*Cert
	pool    []*Cert // what may stand between
	checks  int
	known   *Checked
	links   map[[2]*Cert]error
	at      time.Time // when the chain that was found is judged
	why     error     // the refusal of the most promising path
	depth   int
}

// Verify finds a chain from the peer's end entity certificate to an anchor (RFC 5280 6, RFC 4945
// 5) and decides. An error is a refusal: it names the certificate and the reason, in words for
// the log.
func (t *Trust) Verify(r *Request) (*Verdict, error) {
	if t == nil {
		t = new(Trust)
	}
	v := &verifier{t: t, r: r, links: make(map[[2]*Cert]error), at: r.Now}
	v.early = !r.Floor.IsZero() && r.Now.Before(r.Floor)
	if v.known = r.Checked; v.known == nil {
		v.known = new(Checked)
	}

	peers, err := v.read()
	if err != nil {
		return nil, err
	}
	leaf := peers[0]
	if err := v.checkLeaf(leaf); err != nil {
		return nil, err
	}
	pinned := slices.ContainsFunc(r.Known, leaf.Equal)
	if r.Pinned != nil {
		if pinned = slices.ContainsFunc(r.Pinned, leaf.Equal); !pinned {
			return nil, fmt.Errorf("%s is not one of the certificates that are configured for the peer", leaf.label())
		}
	}
	for _, a := range t.authorities {
		v.anchors = append(v.anchors, a.Cert)
	}
	v.pool = slices.Concat(r.Anchors, t.intermediates, peers[1:])

	out := &Verdict{Leaf: leaf, Key: leaf.key}
	out.Chain = v.search([]*Cert{leaf}, r.Anchors == nil || slices.ContainsFunc(r.Anchors, leaf.Equal))
	if out.Chain == nil && pinned && r.Anchors == nil {
		if err := v.judge([]*Cert{leaf}); err != nil {
			return nil, err
		}
		out.Chain = []*Cert{leaf}
	}
	if out.Chain == nil {
		return nil, v.why
	}
	if v.early {
		out.Notes = append(out.Notes, fmt.Sprintf("the clock (%s) is plainly wrong: \"not yet valid\" and the age of revocation data were not looked at", day(r.Now)))
	}
	out.NotAfter = leaf.x.NotAfter
	for _, c := range out.Chain[1:] {
		if c.x.NotAfter.Before(out.NotAfter) {
			out.NotAfter = c.x.NotAfter
		}
	}
	if err := v.revocation(out); err != nil {
		return &Verdict{Used: out.Used}, err // what revokes it is worth keeping most of all
	}
	return out, nil
}

// read takes the peer's certificates apart, each once.
func (v *verifier) read() ([]*Cert, error) {
	if len(v.r.Certs) == 0 {
		return nil, errors.New("the peer sent no certificate")
	}
	if len(v.r.Certs) > MaxCerts {
		return nil, fmt.Errorf("the peer sent %d certificates; at most %d are taken", len(v.r.Certs), MaxCerts)
	}
	total := 0
	for _, der := range v.r.Certs {
		total += len(der)
	}
	if total > MaxCertOctets {
		return nil, fmt.Errorf("the peer's certificates have %d octets; at most %d are taken", total, MaxCertOctets)
	}
	var list []*Cert
	for i, der := range v.r.Certs {
		c, err := ParseCert(der)
		if err != nil {
			return nil, fmt.Errorf("the peer's certificate %d: %w", i+1, err)
		}
		if !slices.ContainsFunc(list, c.Equal) {
			list = append(list, c)
		}
	}
	return list, nil
}

// Purposes that a certificate for IKE may be limited to, beside those that Go names: RFC 4945
// 5.1.3.12 has ipsecIKE and any; servers' and clients' are what CAs give out in practice.
var (
	ekuIPsecIKE     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}
	ekuIntermediate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}
)

func forIKE(c *Cert) bool {
	if len(c.x.ExtKeyUsage)+len(c.x.UnknownExtKeyUsage) == 0 {
		return true
	}
	for _, u := range c.x.ExtKeyUsage {
		if u == x509.ExtKeyUsageAny || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageClientAuth {
			return true
		}
	}
	return slices.ContainsFunc(c.x.UnknownExtKeyUsage, func(id asn1.ObjectIdentifier) bool {
		return id.Equal(ekuIPsecIKE) || id.Equal(ekuIntermediate)
	})
}

// checkLeaf looks at what concerns the end entity alone.
func (v *verifier) checkLeaf(c *Cert) error {
	bad := func(err error) error { return fmt.Errorf("%s: %w", c.label(), err) }
	if c.keyErr != nil {
		return bad(c.keyErr)
	}
	if c.x.KeyUsage != 0 && c.x.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return bad(errors.New("its key usage allows no signatures"))
	}
	if !forIKE(c) {
		return bad(errors.New("its extended key usage is for other things than IKE"))
	}
	if err := unhandled(c); err != nil {
		return bad(err)
	}
	if v.r.IDType != 0 {
		return c.Confirms(v.r.IDType, v.r.IDData)
	}
	return nil
}

// refuse keeps the refusal of the path that came furthest; on paths of the same length what is
// wrong with a certificate outweighs that one is missing.
func (v *verifier) refuse(depth int, missing bool, err error) {
	depth *= 2
	if !missing {
		depth++
	}
	if depth > v.depth {
		v.depth, v.why = depth, err
	}
}

// search lengthens the chain to an anchor, depth first; nil if there is no way. passed says
// that the chain has one of the required anchors.
func (v *verifier) search(chain []*Cert, passed bool) []*Cert {
	c := chain[len(chain)-1]
	required := slices.ContainsFunc(v.r.Anchors, c.Equal)
	passed = passed || required
	if passed && slices.ContainsFunc(v.anchors, c.Equal) {
		if v.accept(chain) {
			return chain
		}
		return nil
	}
	found := false
	if len(chain) < maxDepth {
		// Two passes: those whose key identifier fits first (RFC 5280 4.2.1.1 makes it a hint).
		for _, fits := range []bool{true, false} {
			for _, p := range slices.Concat(v.anchors, v.pool) {
				if !bytes.Equal(p.x.RawSubject, c.x.RawIssuer) || sameKeyID(c, p) != fits || inChain(chain, p) {
					continue
				}
				found = true
				if err := v.link(p, c); err != nil {
					v.refuse(len(chain), false, err)
					continue
				}
				if got := v.search(append(slices.Clone(chain), p), passed); got != nil {
					return got
				}
			}
		}
	}
	if required && v.accept(chain) {
		return chain
	}
	switch {
	case !passed && slices.ContainsFunc(v.anchors, c.Equal):
		v.refuse(len(chain), false, fmt.Errorf("%s: its chain ends at %s and passes no CA that is configured for this peer", chain[0].label(), c.label()))
	case len(chain) >= maxDepth:
		v.refuse(len(chain), false, fmt.Errorf("%s: its chain is longer than %d", chain[0].label(), maxDepth))
	case !found && c.SelfSigned():
		v.refuse(len(chain), true, fmt.Errorf("%s is self-signed and not a CA that is trusted for this", c.label()))
	case !found:
		v.refuse(len(chain), true, fmt.Errorf("%s: its issuer %q is not at hand", c.label(), brief(c.Issuer())))
	}
	return nil
}

func sameKeyID(c, p *Cert) bool {
	return len(c.x.AuthorityKeyId) == 0 || len(p.x.SubjectKeyId) == 0 || bytes.Equal(c.x.AuthorityKeyId, p.x.SubjectKeyId)
}

// inChain finds loops: the same name with the same key, in whatever certificate.
func inChain(chain []*Cert, p *Cert) bool {
	return slices.ContainsFunc(chain, func(c *Cert) bool {
		return bytes.Equal(c.x.RawSubject, p.x.RawSubject) && bytes.Equal(c.x.RawSubjectPublicKeyInfo, p.x.RawSubjectPublicKeyInfo)
	})
}

// link says whether p issued c, and might.
func (v *verifier) link(p, c *Cert) error {
	if err, known := v.links[[2]*Cert{p, c}]; known {
		return err
	}
	err := func() error {
		switch {
		case !p.IsCA():
			return fmt.Errorf("%s: its issuer's %s is not a CA's (no basicConstraints CA)", c.label(), p.label())
		case p.x.KeyUsage != 0 && p.x.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("%s: its key usage does not allow it to issue certificates", p.label())
		case p.keyErr != nil:
			return fmt.Errorf("%s: %w", p.label(), p.keyErr)
		}
		return v.known.link(p, c, &v.checks, func() error {
			if err := p.signed(c); err != nil {
				return fmt.Errorf("%s, issued by %q: %w", c.label(), brief(c.Issuer()), err)
			}
			return nil
		})
	}()
	v.links[[2]*Cert{p, c}] = err
	return err
}

// signed says whether p's key made the signature of c.
func (p *Cert) signed(c *Cert) error {
	if p.keyErr != nil {
		return p.keyErr
	}
	alg, ok := outerAlg(c.x.Raw)
	if !ok {
		return errors.New("damaged certificate")
	}
	switch c.x.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA:
		return fmt.Errorf("%w: MD5 is too weak", ErrScheme)
	}
	return p.key.verifyAlg(alg, c.x.Signature, c.x.RawTBSCertificate)
}

// outerAlg is the signature's AlgorithmIdentifier of a certificate, which the library found
// equal to the inner one.
func outerAlg(der []byte) ([]byte, bool) {
	in := cryptobyte.String(der)
	var seq, alg cryptobyte.String
	ok := in.ReadASN1(&seq, cbasn1.SEQUENCE) && seq.SkipASN1(cbasn1.SEQUENCE) && seq.ReadASN1Element(&alg, cbasn1.SEQUENCE)
	return alg, ok
}

// accept judges a whole chain.
func (v *verifier) accept(chain []*Cert) bool {
	if err := v.judge(chain); err != nil {
		v.refuse(len(chain), false, err)
		return false
	}
	return true
}

// judge looks at what takes the whole chain: times, path lengths, names, and the extensions of
// CAs. It sets the time at which the chain is judged.
func (v *verifier) judge(chain []*Cert) error {
	at := v.r.Now
	if v.early {
		at = v.r.Floor
		for _, c := range chain {
			if at.Before(c.x.NotBefore) {
				at = c.x.NotBefore
			}
		}
	}
	below := 0 // CAs below that are not self-issued (RFC 5280 6.1.4 l)
	for i, c := range chain {
		bad := func(err error) error { return fmt.Errorf("%s: %w", c.label(), err) }
		switch {
		case at.After(c.x.NotAfter):
			return bad(fmt.Errorf("%w on %s", ErrExpired, day(c.x.NotAfter)))
		case at.Before(c.x.NotBefore):
			return bad(fmt.Errorf("the certificate is not valid before %s, and it is %s", day(c.x.NotBefore), day(at)))
		}
		if i == 0 {
			continue
		}
		if err := unhandled(c); err != nil {
			return bad(err)
		}
		if i < len(chain)-1 && !forIKE(c) {
			return bad(errors.New("the CA's extended key usage is for other things than IKE"))
		}
		if n := c.x.MaxPathLen; (n > 0 || n == 0 && c.x.MaxPathLenZero) && below > n {
			return bad(fmt.Errorf("the CA allows %d CAs below it, and there are %d", n, below))
		}
		if !c.SelfSigned() {
			below++
		}
	}
	if c, err := checkNames(chain); err != nil {
		return fmt.Errorf("%s: %w", c.label(), err)
	}
	v.at = at
	return nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// keyID is the key identifier of a certificate whose key might not be one that we take.
func keyID(c *Cert) (id [20]byte) {
	if c.key != nil {
		return c.key.id
	}
	copy(id[:], SHA1.sum(c.x.RawSubjectPublicKeyInfo))
	return id
}

// usableURL says whether a URI is one that is fetched: http, of sensible length, without
// characters that break a request apart.
func usableURL(u string) bool {
	return len(u) <= maxURLOctets && len(u) > len("http://") && equalFold(u[:len("http://")], "http://") &&
		!strings.ContainsFunc(u, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
