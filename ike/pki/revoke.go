package pki

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Revocation is the policy about revoked certificates; the names are strongSwan's, and off.
type Revocation uint8

const (
	RevokeRelaxed Revocation = iota // refuse only what is known to be revoked
	RevokeIfURI                     // refuse what is not known to be good if it names a CRL or a responder
	RevokeStrict                    // refuse what is not known to be good
	RevokeOff                       // do not look
)

// String is "relaxed", "ifuri", "strict" or "off".
func (r Revocation) String() string {
	switch r {
	case RevokeRelaxed:
		return "relaxed"
	case RevokeIfURI:
		return "ifuri"
	case RevokeStrict:
		return "strict"
	}
	return "off"
}

// ParseRevocation reads what String writes.
func ParseRevocation(s string) (Revocation, bool) {
	for r := RevokeRelaxed; r <= RevokeOff; r++ {
		if r.String() == s {
			return r, true
		}
	}
	return 0, false
}

// FetchKind says what a [Fetch] brings.
type FetchKind uint8

const (
	FetchCRL  FetchKind = iota // a GET that brings a DER (or PEM) CRL
	FetchOCSP                  // a POST of application/ocsp-request that brings a DER OCSP response
)

// Fetch is something to get from the network for a verdict. URL begins with "http://", is at
// most 1,024 octets long and has neither spaces nor control characters.
type Fetch struct {
	Kind   FetchKind
	URL    string
	Post   []byte   // FetchOCSP: the DER OCSPRequest
	Issuer [20]byte // the key identifier of the CA that it is about
}

// Same says whether both ask for the same thing.
func (f *Fetch) Same(o *Fetch) bool {
	return f.Kind == o.Kind && f.URL == o.URL && bytes.Equal(f.Post, o.Post)
}

// Fetched is what came of it: a body or an error.
type Fetched struct {
	Fetch
	Body []byte
	Err  error
}

// uris are the places that tell about a certificate: those in it and those of its authority.
// other says that it names some that are not fetched, such as ldap:.
func (t *Trust) uris(c, issuer *Cert) (ocsp, crl []string, other bool) {
	add := func(to *[]string, from []string) {
		for _, u := range from {
			switch {
			case !usableURL(u):
				other = true
			case !slices.Contains(*to, u):
				*to = append(*to, u)
			}
		}
	}
	add(&ocsp, c.x.OCSPServer)
	add(&crl, c.x.CRLDistributionPoints)
	for _, a := range t.Authorities() {
		if a.Cert.Equal(issuer) {
			add(&ocsp, a.OCSPURIs)
			add(&crl, a.CRLURIs)
		}
	}
	return ocsp, crl, other
}

// knowledge is what is known about one certificate.
type knowledge struct {
	good    bool
	revoked error
	why     []string // why it is not known
}

func (k *knowledge) doubt(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); len(k.why) < 4 && !slices.Contains(k.why, s) {
		k.why = append(k.why, s)
	}
}

// revocation asks about every certificate of the chain but the anchor, the CAs first, as what a
// revoked CA says about others is worth nothing. What is at hand decides, and "revoked" outweighs
// "good"; else OCSP is asked for, and CRLs once no responder is left that was not asked.
func (v *verifier) revocation(out *Verdict) error {
	if v.r.Revocation == RevokeOff {
		return nil
	}
	crls := v.crls()
	for i := len(out.Chain) - 2; i >= 0; i-- {
		c, issuer := out.Chain[i], out.Chain[i+1]
		ocsp, crl, other := v.t.uris(c, issuer)
		var k knowledge
		v.askOCSP(c, issuer, &k, out)
		if k.revoked == nil {
			v.askCRLs(c, issuer, append(slices.Clone(crl), c.x.CRLDistributionPoints...), crls, &k, out)
		}
		if k.revoked != nil {
			return fmt.Errorf("%s: %w", c.label(), k.revoked)
		}
		if k.good || v.need(c, issuer, ocsp, crl, out) {
			continue
		}
		if err := v.unknown(c, len(ocsp)+len(crl) > 0 || other, &k, out); err != nil {
			return err
		}
	}
	if len(out.Chain) == 1 && !out.Leaf.SelfSigned() {
		// A pinned certificate whose CA is not at hand.
		if err := v.unknown(out.Leaf, len(out.Leaf.x.OCSPServer)+len(out.Leaf.x.CRLDistributionPoints) > 0,
			&knowledge{why: []string{"its CA is not at hand"}}, out); err != nil {
			return err
		}
	}
	if len(out.Need) > 0 {
		out.Notes = nil // the next verdict has them
	}
	return nil
}

// unknown applies the policy to a certificate about which nothing is known.
func (v *verifier) unknown(c *Cert, hasURI bool, k *knowledge, out *Verdict) error {
	why := strings.Join(k.why, "; ")
	if why == "" && hasURI {
		why = "nothing was fetched"
	} else if why == "" {
		why = "no CRL at hand, and no URI of one that is fetched"
	}
	if v.r.Revocation == RevokeStrict || v.r.Revocation == RevokeIfURI && hasURI {
		return fmt.Errorf("%s: whether it is revoked is not known (policy %v): %s", c.label(), v.r.Revocation, why)
	}
	if hasURI || len(k.why) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%s: whether it is revoked is not known: %s", c.label(), why))
	}
	return nil
}

// need asks for what would tell, unless everything has been asked for or may not.
func (v *verifier) need(c, issuer *Cert, ocsp, crl []string, out *Verdict) bool {
	if v.r.Final {
		return false
	}
	asked := false
	add := func(f Fetch) {
		got := slices.ContainsFunc(v.r.Got, func(g Fetched) bool { return g.Same(&f) })
		if got || len(v.r.Got)+len(out.Need) >= MaxFetches {
			return
		}
		asked = true
		if !slices.ContainsFunc(out.Need, func(n Fetch) bool { return n.Same(&f) }) {
			out.Need = append(out.Need, f)
		}
	}
	for _, u := range ocsp {
		add(Fetch{Kind: FetchOCSP, URL: u, Post: ocspRequest(c, issuer), Issuer: keyID(issuer)})
	}
	if !asked {
		for _, u := range crl {
			add(Fetch{Kind: FetchCRL, URL: u, Issuer: keyID(issuer)})
		}
	}
	return asked
}

// askOCSP looks through the responses that came with the certificates and those fetched.
func (v *verifier) askOCSP(c, issuer *Cert, k *knowledge, out *Verdict) {
	look := func(der []byte, from string, got int) {
		a, err := checkOCSP(der, c, issuer, v.at, v.early)
		if err == errOtherCert && got < 0 {
			return
		}
		if err != nil {
			k.doubt("%s: %v", from, err)
			return
		}
		if got >= 0 && a.Status != OCSPUnknown {
			out.used(got)
		}
		switch {
		case a.Status == OCSPRevoked:
			k.revoked = fmt.Errorf("%w since %s%s (OCSP)", ErrRevoked, day(a.RevokedAt), reasonWords(a.Reason))
		case a.Status != OCSPGood:
			k.doubt("%s: the OCSP responder does not know the certificate", from)
		case !v.early && !a.Fresh(v.r.Now):
			k.doubt("%s: the OCSP response is of %s and out of date", from, day(a.ThisUpdate))
		default:
			k.good = true
		}
	}
	for _, der := range v.r.OCSP[:min(len(v.r.OCSP), MaxCerts)] {
		if look(der, "sent along", -1); k.revoked != nil {
			return
		}
	}
	var want []byte
	for i, g := range v.r.Got {
		if g.Kind != FetchOCSP {
			continue
		}
		if want == nil {
			want = ocspRequest(c, issuer)
		}
		if !bytes.Equal(g.Post, want) {
			continue
		}
		if g.Err != nil {
			k.doubt("%s: %s", clean(g.URL), clean(g.Err.Error()))
		} else if look(g.Body, clean(g.URL), i); k.revoked != nil {
			return
		}
	}
}

func (out *Verdict) used(i int) {
	if !slices.Contains(out.Used, i) {
		out.Used = append(out.Used, i)
	}
}

// list is a CRL at hand.
type list struct {
	crl  *CRL
	err  error
	url  string // "" if it was not fetched
	got  int    // its place in Got, or -1
	from string
}

// crls are all lists at hand, taken apart once: the configuration's, those that came with the
// certificates, and those fetched.
func (v *verifier) crls() []list {
	var all []list
	for _, l := range v.t.crls {
		all = append(all, list{crl: l, got: -1, from: "configured"})
	}
	for _, der := range v.r.CRLs[:min(len(v.r.CRLs), MaxCerts)] {
		l, err := ParseCRL(der)
		all = append(all, list{crl: l, err: err, got: -1, from: "sent along"})
	}
	for i, g := range v.r.Got {
		if g.Kind != FetchCRL {
			continue
		}
		one := list{err: g.Err, url: g.URL, got: i, from: clean(g.URL)}
		if one.err == nil {
			one.crl, one.err = ParseCRL(g.Body)
		}
		all = append(all, one)
	}
	return all
}

// askCRLs looks through the lists of the issuer. A list that is out of date still proves what
// it says is revoked.
func (v *verifier) askCRLs(c, issuer *Cert, urls []string, all []list, k *knowledge, out *Verdict) {
	for _, l := range all {
		if l.err != nil {
			if l.url != "" && slices.Contains(urls, l.url) {
				k.doubt("%s: %s", l.from, clean(l.err.Error()))
			}
			continue
		}
		if !bytes.Equal(l.crl.issuer, c.x.RawIssuer) {
			continue
		}
		if err := l.crl.CheckSignature(issuer); err != nil {
			k.doubt("%s: %v", l.from, err)
			continue
		}
		if l.got >= 0 {
			out.used(l.got)
		}
		const removeFromCRL = 8
		if e, found := l.crl.find(c.x.SerialNumber); found && e.reason != removeFromCRL {
			k.revoked = fmt.Errorf("%w since %s%s (CRL of %s)", ErrRevoked, day(e.at()), reasonWords(e.reason), day(l.crl.this))
			return
		}
		at := urls
		if l.url != "" {
			at = append(slices.Clone(urls), l.url)
		}
		switch {
		case !l.crl.covers(c, at):
			k.doubt("%s: the CRL is about other certificates of the CA only", l.from)
		case v.early:
			k.good = true
		case v.r.Now.Before(l.crl.this.Add(-clockSkew)):
			k.doubt("%s: the CRL is of the future (%s)", l.from, day(l.crl.this))
		case l.crl.next.IsZero():
			k.doubt("%s: the CRL does not say until when it holds", l.from)
		case v.r.Now.After(l.crl.next):
			k.doubt("%s: the CRL is out of date since %s", l.from, day(l.crl.next))
		default:
			k.good = true
		}
	}
}

// reasonWords is a CRLReason in words (RFC 5280 5.3.1).
func reasonWords(n int) string {
	words := [...]string{1: "key compromise", 2: "CA compromise", 3: "affiliation changed", 4: "superseded", 5: "cessation of operation", 6: "on hold", 9: "privilege withdrawn", 10: "attribute authority compromise"}
	if n > 0 && n < len(words) && words[n] != "" {
		return ", " + words[n]
	}
	return ""
}
