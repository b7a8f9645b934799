package config

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"postern/esp"
	"postern/ike"
	"postern/ike/pool"
)

// Sections [pools.NAME] and what connections say about them.

// Limits of a configuration: each pool has a table of leases of its own, and each static lease a
// place in memory.
const (
	maxPools  = 16
	maxLeases = 1024 // static ones of one pool
)

// poolTable is a pool while it is read.
type poolTable struct {
	*ike.Pool
	t *node
}

var poolSection = &section{
	path: "pools.NAME",
	doc:  "virtual addresses that a gateway gives to its clients, of one address family, and what it tells them besides",
	keys: []key{
		{"addrs", aList, `the addresses: "10.9.0.0/24" (but for its first and last one), "10.9.0.10-10.9.0.99", "fd00:9::/64"; none but those of leases`,
			func(s *scope, n *node) { s.poolAddrs(n) }},
		{"leases", aList, `addresses that only one identity gets, within addrs or not: "alice@example.org=10.9.0.5"; none`,
			func(s *scope, n *node) { s.poolLeases(n) }},
		{"dns", aList, `addresses of resolvers, of any family; none`,
			func(s *scope, n *node) { s.addresses(n, &s.pool.DNS) }},
		{"nbns", aList, `IPv4 addresses of NetBIOS name servers; none`,
			func(s *scope, n *node) { s.nbns(n) }},
		{"subnet", aList, `networks behind the gateway, as a hint for the client's routes: "10.1.0.0/16"; none`,
			func(s *scope, n *node) { s.prefixes(n, &s.pool.Subnets) }},
		{"dns_domains", aList, `split DNS: clients that can ask these resolvers for names in these domains only (RFC 8598): "corp.example"; none, they are for all names`,
			func(s *scope, n *node) { s.poolDomains(n) }},
		{"dnssec_ta", aList, `DNSSEC trust anchors of these domains: the domain, then key tag, algorithm, digest type and digest as in a DS record: "corp.example 20326 8 2 E06D…"; none`,
			func(s *scope, n *node) { s.trustAnchors(n) }},
		{"enc_dns", aList, `encrypted resolvers (RFC 9464), the best first, with the name and, if wanted, a hash of the key of their certificate: "dns.corp.example 10.1.0.53 alpn=dot,h2 port=853 dohpath=/dns-query{?dns} sha256=…"; none`,
			func(s *scope, n *node) { s.encDNS(n) }},
	},
}

// openPool starts a pool.
func (s *scope) openPool(n *node) *scope {
	p := &poolTable{t: n, Pool: &ike.Pool{Name: n.name}}
	s.pools = append(s.pools, p)
	return &scope{loader: s.loader, pool: p}
}

// poolAddrs reads prefixes and ranges.
func (s *scope) poolAddrs(n *node) {
	for _, e := range s.texts(n) {
		var r ike.AddrRange
		if strings.Contains(e.text, "/") {
			p, err := parsePrefix(e.text)
			if err != nil {
				s.problem(e.at, err.hint, "%s", err.what)
				continue
			}
			r = pool.Prefix(p)
		} else {
			first, last, err := parseAddrs(e.text)
			if err != nil {
				s.problem(e.at, `write "10.9.0.0/24" or "10.9.0.10-10.9.0.99"`, "%s", err.what)
				continue
			}
			r = ike.AddrRange{First: first, Last: last}
		}
		if r.First.IsUnspecified() || r.First.IsMulticast() || r.Last.IsMulticast() || r.First.IsLoopback() || r.Last.IsLoopback() {
			s.problem(e.at, "write unicast addresses", "%q holds addresses that no client can have", e.text)
			continue
		}
		for _, o := range s.pool.Ranges {
			if o.Contains(r.First) || r.Contains(o.First) {
				s.problem(e.at, "take one of the two out", "%q has addresses in common with %s-%s", e.text, o.First, o.Last)
			}
		}
		s.pool.Ranges = append(s.pool.Ranges, r)
	}
}

// poolLeases reads "identity=address".
func (s *scope) poolLeases(n *node) {
	for _, e := range s.manyTexts(n, maxLeases) {
		i := strings.LastIndexByte(e.text, '=') // names in certificates have some, too
		if i < 0 {
			s.problem(e.at, `write "alice@example.org=10.9.0.5"`, "%q has no =", e.text)
			continue
		}
		a, ok := s.address(e, strings.TrimSpace(e.text[i+1:]))
		if !ok {
			continue
		}
		var id ike.ID
		if !s.identity(&node{name: n.name, text: strings.TrimSpace(e.text[:i]), at: e.at}, &id) {
			continue
		}
		if slices.ContainsFunc(s.pool.Leases, func(l ike.StaticLease) bool { return l.Addr == a }) {
			s.problem(e.at, "give each identity an address of its own", "%s is twice in leases", a)
			continue
		}
		s.pool.Leases = append(s.pool.Leases, ike.StaticLease{ID: id, Addr: a})
	}
}

// addresses reads a list of addresses of hosts.
func (s *scope) addresses(n *node, to *[]netip.Addr) {
	for _, e := range s.texts(n) {
		if a, ok := s.address(e, e.text); ok && !slices.Contains(*to, a) {
			*to = append(*to, a)
		}
	}
}

func (s *scope) nbns(n *node) {
	s.addresses(n, &s.pool.NBNS)
	if slices.ContainsFunc(s.pool.NBNS, netip.Addr.Is6) {
		s.problem(n.at, "write IPv4 addresses", "NetBIOS has no IPv6")
	}
}

func (s *scope) prefixes(n *node, to *[]netip.Prefix) {
	for _, e := range s.texts(n) {
		p, err := parsePrefix(e.text)
		if err != nil {
			s.problem(e.at, err.hint, "%s", err.what)
		} else if !slices.Contains(*to, p) {
			*to = append(*to, p)
		}
	}
}

func (s *scope) poolDomains(n *node) {
	for _, e := range s.texts(n) {
		d := strings.ToLower(strings.TrimSuffix(e.text, "."))
		if !ike.GoodDomain(d) {
			s.problem(e.at, `write "corp.example"`, "%q is no domain", e.text)
		} else if !slices.Contains(s.pool.Domains, d) {
			s.pool.Domains = append(s.pool.Domains, d)
		}
	}
}

// trustAnchors reads the data of DS records behind their domains.
func (s *scope) trustAnchors(n *node) {
	const hint = `write "corp.example 20326 8 2 E06D…", as in the DS record`
	for _, e := range s.texts(n) {
		w := strings.Fields(e.text)
		if len(w) < 5 {
			s.problem(e.at, hint, "a trust anchor has five parts, %q has %d", e.text, len(w))
			continue
		}
		ta := ike.TrustAnchor{Domain: strings.ToLower(strings.TrimSuffix(w[0], ".")), Hex: strings.Join(w[4:], "")}
		tag, e1 := strconv.ParseUint(w[1], 10, 16)
		alg, e2 := strconv.ParseUint(w[2], 10, 8)
		digest, e3 := strconv.ParseUint(w[3], 10, 8)
		ta.KeyTag, ta.Algorithm, ta.Digest = uint16(tag), uint8(alg), uint8(digest)
		hex := strings.Trim(ta.Hex, "0123456789abcdefABCDEF") == "" && len(ta.Hex)%2 == 0 && len(ta.Hex) <= 128
		if errors.Join(e1, e2, e3) != nil || !hex || !ike.GoodDomain(ta.Domain) {
			s.problem(e.at, hint, "%q is no trust anchor", e.text)
			continue
		}
		s.pool.TrustAnchors = append(s.pool.TrustAnchors, ta)
	}
}

func (s *scope) encDNS(n *node) {
	for _, e := range s.texts(n) {
		r, err := ike.ParseEncryptedDNS(e.text)
		if err != nil {
			s.problem(e.at, `write "dns.corp.example 10.1.0.53 alpn=dot"`, "%v", err)
			continue
		}
		s.pool.EncDNS = append(s.pool.EncDNS, r)
	}
}

// poolNames reads the names of the pools that a peer gets addresses from.
func (s *scope) poolNames(n *node, c *conn) {
	for _, e := range s.texts(n) {
		if slices.Contains(c.Pools, e.text) {
			s.problem(e.at, "take one out", "%q is twice in pools", e.text)
			continue
		}
		c.Pools = append(c.Pools, e.text)
	}
}

// finishPools hands the pools to the machine.
func (l *loader) finishPools() {
	for _, p := range l.pools {
		l.cfg.IKE.Pools = append(l.cfg.IKE.Pools, *p.Pool)
	}
}

// checkPools notes pools that cannot work, and connections that cannot use theirs.
func (l *loader) checkPools() {
	if len(l.pools) > maxPools {
		l.problem(l.pools[maxPools].t.key, "join some: a pool can have several ranges", "%d pools are too many; the most is %d", len(l.pools), maxPools)
	}
	for _, p := range l.pools {
		l.checkPool(p)
	}
	used := map[string]bool{}
	for _, c := range l.conns {
		for i, name := range c.Pools {
			used[name] = true
			if !slices.ContainsFunc(l.pools, func(p *poolTable) bool { return p.Name == name }) {
				l.problem(c.t.get("pools").list[i].at, "add a section [pools."+name+"]", "there is no pool %q", name)
			}
		}
		l.checkPooled(c)
	}
	for _, p := range l.pools {
		if !used[p.Name] {
			l.warn(p.t.key, "name it in pools of a connection, or take it out", "pool %s is used by no connection", p.Name)
		}
	}
}

func (l *loader) checkPool(p *poolTable) {
	if !good(p.t, "addrs", "leases") || p.t.bad {
		return
	}
	var all families
	for _, r := range p.Ranges {
		all.add(r.First)
	}
	for _, s := range p.Leases {
		all.add(s.Addr)
	}
	switch all {
	case 0:
		l.problem(p.t.key, `write addrs = ["10.9.0.0/24"]`, "pool %s has no addresses", p.Name)
	case family4 | family6:
		l.problem(where(p.t, "addrs"), "make two pools of it, and name both in pools of the connection", "pool %s has addresses of both families", p.Name)
	}
	if len(p.Domains) > 0 && len(p.DNS) == 0 && len(p.EncDNS) == 0 && good(p.t, "dns", "enc_dns") {
		l.problem(where(p.t, "dns_domains"), `write dns = ["…"] with the resolvers that know these names`, "pool %s has dns_domains and no resolver (RFC 8598 section 3.2)", p.Name)
	}
	for i, ta := range p.TrustAnchors {
		if good(p.t, "dnssec_ta", "dns_domains") && !slices.Contains(p.Domains, ta.Domain) {
			l.problem(p.t.get("dnssec_ta").list[i].at, "add it there", "the trust anchor's domain %s is not in dns_domains", ta.Domain)
		}
	}
}

// checkPooled notes what pools of a connection do not go with.
func (l *loader) checkPooled(c *conn) {
	if !good(c.t, "vips", "pools") || len(c.Pools) == 0 {
		return
	}
	at := c.t.get("pools")
	if len(c.VIPs) > 0 {
		l.problem(at.key, "make two connections of it", "connection %s has vips and pools: it asks for addresses or gives some, not both", c.Name)
		return
	}
	dynamic := len(c.children) == 0
	for _, ch := range c.children {
		if !slices.ContainsFunc(ch.RemoteTS, isDynamic) {
			continue
		}
		dynamic = true
		if ch.Mode != esp.Tunnel && good(ch.t, "mode") {
			l.problem(where(ch.t, "mode"), `write mode = "tunnel", or leave it out`, "child %s has virtual addresses, which need tunnel mode", ch.Name)
		}
		for _, key := range []string{"start_action", "dpd_action", "close_action"} {
			if n := ch.t.get(key); n != nil && !n.bad && n.text != startWords[ike.StartNone] && n.text != peerWords[ike.ActionClear] {
				l.problem(n.at, "take it out: clients call their gateway", "%s %q has to call the peer, and who calls gives no virtual addresses", key, n.text)
			}
		}
	}
	if !dynamic {
		l.warn(at.key, `write "dynamic" there, or leave it out`, "no child of connection %s has the virtual addresses in its remote_ts", c.Name)
	}
}
