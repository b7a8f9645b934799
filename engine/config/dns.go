package config

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"postern/ike"
)

// DNSMode is who is told of the name servers that gateways assign.
type DNSMode uint8

const (
	DNSNone       DNSMode = iota // nobody
	DNSFile                      // a resolv.conf
	DNSResolvconf                // systemd-resolved or resolvconf
	DNSDnsmasq                   // a servers-file of dnsmasq
)

var dnsWords = []string{DNSNone: "none", DNSFile: "file", DNSResolvconf: "resolvconf", DNSDnsmasq: "dnsmasq"}

// String returns the word of the configuration.
func (m DNSMode) String() string { return dnsWords[m] }

const defaultResolvConf = "/etc/resolv.conf"

// anyDomain stands for all domains in dns_domains.
const anyDomain = "."

// DNSDomains returns the domains for which the gateway of a connection may be asked where not
// everything goes through the tunnel: in small letters, without a final dot; "." alone stands for all.
func (c *Config) DNSDomains(conn string) []string { return c.domains[conn] }

// Conn returns the connection of that name, or nil.
func (c *Config) Conn(name string) *ike.Conn {
	if i := slices.IndexFunc(c.IKE.Conns, func(conn *ike.Conn) bool { return conn.Name == name }); i >= 0 {
		return c.IKE.Conns[i]
	}
	return nil
}

// virtualAddrs reads the addresses to ask a gateway for.
func (s *scope) virtualAddrs(n *node, to *[]netip.Addr) {
	for _, e := range s.texts(n) {
		a, err := netip.ParseAddr(e.text)
		if err != nil || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLoopback() || slices.Contains(*to, a) {
			s.problem(e.at, `write "0.0.0.0" or "::" for any, or the address that you would like, each once`, "%q is no address to ask for, or is there twice", e.text)
			continue
		}
		*to = append(*to, a)
	}
}

// dnsFile reads the path of a file, which has to be one from the root.
func (s *scope) dnsFile(n *node, to *string) {
	if !filepath.IsAbs(n.text) || strings.HasSuffix(n.text, "/") || strings.ContainsFunc(n.text, func(r rune) bool { return r < ' ' }) {
		s.problem(n.at, "write a path from the root, such as "+strconv.Quote(defaultResolvConf), "%q is no file", n.text)
		return
	}
	*to = n.text
}

// dnsDomains reads names of domains.
func (s *scope) dnsDomains(n *node) {
	var list []string
	for _, e := range s.texts(n) {
		name := anyDomain
		if e.text != anyDomain {
			var ok bool
			if name, ok = DomainName(e.text); !ok {
				s.problem(e.at, `write names of domains such as "plant.example", or "." for all`, "%q is no domain", e.text)
				continue
			}
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	if s.cfg.domains == nil {
		s.cfg.domains = map[string][]string{}
	}
	s.cfg.domains[s.conn.Name] = list
}

// DomainName returns a domain name (RFC 1035 section 2.3.1; underscores are taken as well) in small
// letters and without a final dot; ok is false for anything that is none.
func DomainName(text string) (name string, ok bool) {
	name = strings.ToLower(strings.TrimSuffix(text, "."))
	if name == "" || len(name) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return "", false
		}
	}
	return name, true
}

// checkDNS fills in the file that a mode has by default, and notes where there is none.
func (l *loader) checkDNS(t *node) {
	d := &l.cfg.Daemon
	n := t.get("dns_file")
	switch {
	case !good(t, "dns", "dns_file"):
	case d.DNS == DNSFile && n == nil:
		d.DNSFile = defaultResolvConf
	case d.DNS == DNSDnsmasq && n == nil:
		l.problem(t.get("dns").at, `name it, such as dns_file = "/tmp/postern.servers", and give dnsmasq the same as servers-file`,
			"dns \"dnsmasq\" needs a file of its own")
	case n != nil && (d.DNS == DNSNone || d.DNS == DNSResolvconf):
		l.problem(n.at, `write dns = "file" or dns = "dnsmasq" beside it, or take it out`, "dns_file is not used with dns %q", d.DNS)
	}
}

// checkVirtual notes what does not go with virtual addresses.
func (l *loader) checkVirtual(c *conn) {
	if n := c.t.get("dns_domains"); n != nil && len(c.VIPs) == 0 && good(c.t, "vips") {
		l.problem(n.at, `write vips = ["0.0.0.0"] beside it`, "without vips the gateway of connection %s is not asked for name servers", c.Name)
	}
	for _, ch := range c.children {
		if len(c.VIPs) > 0 && ch.StartAction == ike.StartTrap && slices.ContainsFunc(ch.LocalTS, isDynamic) && good(ch.t, "start_action", "local_ts") {
			l.warn(where(ch.t, "start_action"), `write start_action = "start"`,
				"no packet of this host can start child %s: it has no address to send it from until the gateway has assigned one; until then such packets are dropped", ch.Name)
		}
	}
}
