package pkitool

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"postern/engine/cli"
	"postern/ike/pki"
)

// Lengths of names: of a DNS name and its labels (RFC 1035 2.3.4), and of whatever else.
const (
	maxDNS   = 253
	maxLabel = 63
	maxNames = 64
)

// names are subject alternative names (RFC 5280 4.2.1.6) of the kinds that identities of IKE
// have (RFC 7296 3.5).
type names struct {
	dns    []string
	ips    []net.IP
	emails []string
}

func (n *names) empty() bool { return len(n.dns)+len(n.ips)+len(n.emails) == 0 }

// parseNames reads names; the kind may stand ahead ("dns:", "ip:", "email:"), or it is seen.
func parseNames(texts []string) (names, error) {
	var n names
	if len(texts) > maxNames {
		return n, usageError(fmt.Sprintf("at most %d names fit into a certificate", maxNames))
	}
	for _, text := range texts {
		kind, value, given := strings.Cut(text, ":")
		if !given || kind != "dns" && kind != "ip" && kind != "email" {
			value = text
			switch _, err := netip.ParseAddr(text); {
			case err == nil:
				kind = "ip"
			case strings.Contains(text, "@"):
				kind = "email"
			default:
				kind = "dns"
			}
		}
		switch kind {
		case "ip":
			a, err := netip.ParseAddr(value)
			if err != nil || a.Zone() != "" {
				return n, usageError(fmt.Sprintf("%q is no IP address; write 198.51.100.1 or 2001:db8::1", cli.Clean(value)))
			}
			n.ips = append(n.ips, a.Unmap().AsSlice())
		case "email":
			local, host, ok := strings.Cut(value, "@")
			if !ok || local == "" || !ascii(local) || !hostName(host) {
				return n, usageError(fmt.Sprintf("%q is no mail address; write name@site.example", cli.Clean(value)))
			}
			n.emails = append(n.emails, value)
		default:
			if !hostName(strings.TrimPrefix(value, "*.")) {
				return n, usageError(fmt.Sprintf("%q is no DNS name; write gateway.site.example, names in other scripts as xn--..., and a distinguished name with --dn", cli.Clean(value)))
			}
			n.dns = append(n.dns, value)
		}
	}
	return n, nil
}

// ascii says whether a text is printable ASCII without blanks.
func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// hostName says whether a text has the form of a DNS name.
func hostName(s string) bool {
	if len(s) == 0 || len(s) > maxDNS {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// words are the names for people, as parseNames takes them.
func (n *names) words() []string {
	list := slices.Clone(n.dns)
	for _, ip := range n.ips {
		list = append(list, ip.String())
	}
	return append(list, n.emails...)
}

// parseDN reads a distinguished name without wildcards.
func parseDN(text string) ([]byte, error) {
	der, wild, err := pki.ParseDN(text)
	switch {
	case err != nil:
		return nil, usageError(fmt.Sprintf("--dn: %v", err))
	case wild:
		return nil, usageError("--dn: a certificate has a name without wildcards")
	}
	return der, nil
}

// emptyDN is a name without parts.
var emptyDN = []byte{0x30, 0}

// usage is an extended key usage by the name that strongSwan's pki has for it.
type usage struct {
	name string
	std  x509.ExtKeyUsage // where Go knows it
	oid  asn1.ObjectIdentifier
}

// The extended key usages that matter to IKE (RFC 4945 5.1.3.12, RFC 4809) and to who answers
// for revocation (RFC 6960 4.2.2.2).
var usages = []usage{
	{"serverAuth", x509.ExtKeyUsageServerAuth, nil},
	{"clientAuth", x509.ExtKeyUsageClientAuth, nil},
	{"ipsecIKE", 0, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}},
	{"ikeIntermediate", 0, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}},
	{"ocspSigning", x509.ExtKeyUsageOCSPSigning, nil},
}

// addUsages puts extended key usages into a template.
func addUsages(x *x509.Certificate, names []string) error {
	for _, name := range names {
		i := slices.IndexFunc(usages, func(u usage) bool { return strings.EqualFold(u.name, name) })
		switch {
		case i < 0:
			var known []string
			for _, u := range usages {
				known = append(known, u.name)
			}
			return usageError(fmt.Sprintf("--flag %s is not known; take one of %s", cli.Clean(name), strings.Join(known, ", ")))
		case usages[i].oid != nil:
			x.UnknownExtKeyUsage = append(x.UnknownExtKeyUsage, usages[i].oid)
		default:
			x.ExtKeyUsage = append(x.ExtKeyUsage, usages[i].std)
		}
	}
	return nil
}

// usageNames are the extended key usages of a certificate in words.
func usageNames(x *x509.Certificate) []string {
	var list []string
	for _, e := range x.ExtKeyUsage {
		i := slices.IndexFunc(usages, func(u usage) bool { return u.oid == nil && u.std == e })
		switch {
		case i >= 0:
			list = append(list, usages[i].name)
		case e == x509.ExtKeyUsageAny:
			list = append(list, "any")
		default:
			list = append(list, "other use "+fmt.Sprint(int(e)))
		}
	}
	for _, e := range x.UnknownExtKeyUsage {
		i := slices.IndexFunc(usages, func(u usage) bool { return u.oid.Equal(e) && u.oid != nil })
		if i >= 0 {
			list = append(list, usages[i].name)
		} else {
			list = append(list, e.String())
		}
	}
	return list
}

// reason is why a certificate is revoked (RFC 5280 5.3.1), by strongSwan's name for it.
type reason struct {
	name string
	code int
}

// A certificate on hold would have to be released again, which is not offered.
var reasons = []reason{
	{"unspecified", 0},
	{"key-compromise", 1},
	{"ca-compromise", 2},
	{"affiliation-changed", 3},
	{"superseded", 4},
	{"cessation-of-operation", 5},
	{"privilege-withdrawn", 9},
}

// parseReason finds a reason by name, with or without hyphens.
func parseReason(name string) (reason, error) {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
	var known []string
	for _, r := range reasons {
		if plain(r.name) == plain(name) {
			return r, nil
		}
		known = append(known, r.name)
	}
	return reason{}, usageError(fmt.Sprintf("--reason %s is not known; take one of %s", cli.Clean(name), strings.Join(known, ", ")))
}

// reasonName is the name of a code in a revocation list.
func reasonName(code int) string {
	for _, r := range reasons {
		if r.code == code {
			return r.name
		}
	}
	if code == 6 {
		return "certificate-hold"
	}
	return fmt.Sprintf("reason %d", code)
}
