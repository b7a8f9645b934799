package pki

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Tags of a GeneralName (RFC 5280 4.2.1.6).
const (
	nameEmail = 1
	nameDNS   = 2
	nameDir   = 4
	nameURI   = 6
	nameIP    = 7
)

var (
	extNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}
	extSAN             = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// generalName is a name of a certificate or the base of a constraint.
type generalName struct {
	kind  uint8
	value []byte
}

// readGeneralName reads one; the value of a directoryName is the whole name in DER.
func readGeneralName(s *cryptobyte.String) (generalName, bool) {
	var v cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&v, &tag) || tag&0xc0 != 0x80 {
		return generalName{}, false
	}
	return generalName{uint8(tag & 0x1f), v}, true
}

// constraints are a CA's name constraints (RFC 5280 4.2.1.10).
type constraints struct{ permitted, excluded []generalName }

// readConstraints reads the extension; nil without an error means that there is none.
func readConstraints(c *Cert) (*constraints, error) {
	for _, e := range c.x.Extensions {
		if !e.Id.Equal(extNameConstraints) {
			continue
		}
		in := cryptobyte.String(e.Value)
		var seq, list cryptobyte.String
		var has bool
		n := new(constraints)
		ok := in.ReadASN1(&seq, cbasn1.SEQUENCE) && in.Empty()
		for i, to := range []*[]generalName{&n.permitted, &n.excluded} {
			if !ok || !seq.ReadOptionalASN1(&list, &has, cbasn1.Tag(i).Constructed().ContextSpecific()) {
				return nil, errors.New("its name constraints are damaged")
			}
			for has && !list.Empty() {
				var sub cryptobyte.String
				if !list.ReadASN1(&sub, cbasn1.SEQUENCE) {
					return nil, errors.New("its name constraints are damaged")
				}
				g, good := readGeneralName(&sub)
				if !good || !sub.Empty() { // minimum and maximum are not used (RFC 5280)
					return nil, errors.New("its name constraints are of a form that is not known")
				}
				*to = append(*to, g)
			}
		}
		return n, nil
	}
	return nil, nil
}

// namesOf are all names of a certificate that constraints are about: the alternative names, the
// subject, and its e-mail address if there are no alternative names.
func namesOf(c *Cert) ([]generalName, error) {
	var list []generalName
	san := false
	for _, e := range c.x.Extensions {
		if !e.Id.Equal(extSAN) {
			continue
		}
		san = true
		in := cryptobyte.String(e.Value)
		var seq cryptobyte.String
		if !in.ReadASN1(&seq, cbasn1.SEQUENCE) {
			return nil, errors.New("its alternative names are damaged")
		}
		for !seq.Empty() {
			g, ok := readGeneralName(&seq)
			if !ok {
				return nil, errors.New("its alternative names are damaged")
			}
			list = append(list, g)
		}
	}
	dn, ok := readDN(c.x.RawSubject)
	if !ok {
		return nil, errors.New("its subject is damaged")
	}
	if len(dn) > 0 {
		list = append(list, generalName{nameDir, c.x.RawSubject})
	}
	for _, rdn := range dn {
		for _, a := range rdn {
			if !san && string(a.oid) == oidEmail {
				list = append(list, generalName{nameEmail, a.value})
			}
		}
	}
	return list, nil
}

// checkConstraints says whether every name of a certificate is one that the constraints allow.
// budget bounds the comparisons.
func (n *constraints) check(c *Cert, budget *int) error {
	names, err := namesOf(c)
	if err != nil {
		return err
	}
	for _, name := range names {
		allowed, asked := false, false
		for i, list := range [][]generalName{n.excluded, n.permitted} {
			for _, base := range list {
				if base.kind != name.kind {
					continue
				}
				if *budget--; *budget < 0 {
					return errors.New("it and the name constraints have more names than are compared")
				}
				in, err := name.within(base)
				switch {
				case err != nil:
					return err
				case i == 0 && in:
					return fmt.Errorf("its name %s is excluded by the name constraints", name)
				case i == 1:
					asked = true
					allowed = allowed || in
				}
			}
		}
		if asked && !allowed {
			return fmt.Errorf("its name %s is outside of the permitted names", name)
		}
	}
	return nil
}

func (g generalName) String() string {
	switch g.kind {
	case nameDir:
		return `"` + brief(FormatDN(g.value)) + `"`
	case nameIP:
		if a, ok := netip.AddrFromSlice(g.value); ok {
			return a.String()
		}
		return "(address)"
	case nameEmail, nameDNS, nameURI:
		return `"` + brief(clean(string(g.value))) + `"`
	}
	return "(of a kind that is not known)"
}

// within says whether a name lies in the subtree of a base of the same kind.
func (g generalName) within(base generalName) (bool, error) {
	name, in := strings.TrimSuffix(string(g.value), "."), strings.TrimSuffix(string(base.value), ".")
	switch g.kind {
	case nameDNS:
		return domainWithin(name, in, true), nil
	case nameEmail:
		if strings.Contains(in, "@") {
			return equalFold(name, in), nil
		}
		at := strings.LastIndexByte(name, '@')
		if at < 0 {
			return false, errors.New("one of its e-mail addresses is none")
		}
		return domainWithin(name[at+1:], in, false), nil
	case nameURI:
		_, rest, ok := strings.Cut(name, "://")
		if !ok {
			return false, errors.New("one of its URIs has no host, which name constraints need")
		}
		if i := strings.IndexAny(rest, "/?#"); i >= 0 {
			rest = rest[:i]
		}
		rest = rest[strings.LastIndexByte(rest, '@')+1:]
		if host, _, ok := strings.Cut(rest, ":"); ok {
			rest = host
		}
		if _, err := netip.ParseAddr(rest); rest == "" || err == nil || strings.HasPrefix(rest, "[") {
			return false, errors.New("one of its URIs has no host's name, which name constraints need")
		}
		return domainWithin(rest, in, false), nil
	case nameIP:
		n := len(g.value)
		if len(base.value) != 8 && len(base.value) != 32 || n != 4 && n != 16 {
			return false, errors.New("an address in it or in the name constraints is damaged")
		}
		if len(base.value) != 2*n {
			return false, nil
		}
		for i := range g.value {
			if (g.value[i]^base.value[i])&base.value[n+i] != 0 {
				return false, nil
			}
		}
		return true, nil
	case nameDir:
		return dnWithin(g.value, base.value)
	}
	return false, errors.New("it has a name of a kind that is not known, which the name constraints are about")
}

// domainWithin says whether a host lies in a domain. With a leading dot only what is below it
// does. Without, the domain itself does, and if sub is set what is below too. An empty domain
// takes all.
func domainWithin(host, domain string, sub bool) bool {
	if domain == "" {
		return true
	}
	if domain[0] == '.' {
		return len(host) > len(domain) && equalFold(host[len(host)-len(domain):], domain)
	}
	if equalFold(host, domain) {
		return true
	}
	cut := len(host) - len(domain)
	return sub && cut > 0 && host[cut-1] == '.' && equalFold(host[cut:], domain)
}

// dnWithin says whether a name begins with all RDNs of base.
func dnWithin(name, base []byte) (bool, error) {
	n, ok := readDN(name)
	b, ok2 := readDN(base)
	if !ok || !ok2 {
		return false, errors.New("a distinguished name in it or in the name constraints is damaged")
	}
	if len(b) > len(n) {
		return false, nil
	}
	for i := range b {
		if len(b[i]) != len(n[i]) {
			return false, nil
		}
		for j := range b[i] {
			if !b[i][j].matches(&n[i][j], false) {
				return false, nil
			}
		}
	}
	return true, nil
}

// checkNames holds every CA's name constraints against the certificates below it, except
// self-issued ones that are not the end entity's (RFC 5280 6.1.3 b).
func checkNames(chain []*Cert) (*Cert, error) {
	budget := maxNames
	for i := len(chain) - 1; i > 0; i-- {
		n, err := readConstraints(chain[i])
		if err != nil {
			return chain[i], err
		}
		if n == nil {
			continue
		}
		for j := i - 1; j >= 0; j-- {
			if j > 0 && chain[j].SelfSigned() {
				continue
			}
			if err := n.check(chain[j], &budget); err != nil {
				return chain[j], fmt.Errorf("%w of %s", err, chain[i].label())
			}
		}
	}
	return nil, nil
}

// unhandled are the critical extensions of a certificate that nobody looked at. Name constraints
// are looked at here, whatever they are about.
func unhandled(c *Cert) error {
	for _, id := range c.x.UnhandledCriticalExtensions {
		if !id.Equal(extNameConstraints) {
			return fmt.Errorf("it has a critical extension (%v) that is not known here", id)
		}
	}
	for _, e := range c.x.Extensions {
		// The library reads policy constraints for a kind of validation that is not done here.
		if e.Critical && e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 36}) && c.x.RequireExplicitPolicy >= 0 &&
			!(c.x.RequireExplicitPolicy == 0 && !c.x.RequireExplicitPolicyZero) {
			return errors.New("it wants explicit certificate policies, which are not evaluated here")
		}
	}
	return nil
}
