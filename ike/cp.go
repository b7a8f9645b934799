package ike

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// CFGType says what a Configuration payload is (RFC 7296 section 3.15).
type CFGType uint8

// The types of Configuration payloads.
const (
	CFGRequest CFGType = 1
	CFGReply   CFGType = 2
	CFGSet     CFGType = 3
	CFGAck     CFGType = 4
)

// AttrType is the type of a configuration attribute (RFC 7296 section 3.15.1, RFC 8598
// section 7, RFC 9464 section 8).
type AttrType uint16

// The attributes that we know.
const (
	AttrIP4Address  AttrType = 1
	AttrIP4Netmask  AttrType = 2
	AttrIP4DNS      AttrType = 3
	AttrIP4NBNS     AttrType = 4
	AttrIP4DHCP     AttrType = 6
	AttrVersion     AttrType = 7
	AttrIP6Address  AttrType = 8
	AttrIP6DNS      AttrType = 10
	AttrIP6DHCP     AttrType = 12
	AttrIP4Subnet   AttrType = 13
	AttrSupported   AttrType = 14
	AttrIP6Subnet   AttrType = 15
	AttrDNSDomain   AttrType = 25
	AttrDNSSECTA    AttrType = 26
	AttrEncDNS4     AttrType = 27
	AttrEncDNS6     AttrType = 28
	AttrEncDNSHash  AttrType = 29
	attrTypeMask             = 0x7fff // the highest bit is reserved
	maxDomainLength          = 253
)

// supportedAttrs are those that a gateway of ours can send, for SUPPORTED_ATTRIBUTES.
var supportedAttrs = [...]AttrType{AttrIP4Address, AttrIP4DNS, AttrIP4NBNS, AttrIP6Address, AttrIP6DNS, AttrIP4Subnet, AttrSupported,
	AttrIP6Subnet, AttrDNSDomain, AttrDNSSECTA, AttrEncDNS4, AttrEncDNS6, AttrEncDNSHash}

// Limits of what is taken from one Configuration payload. A site has a handful of
// each; what exceeds them is left out.
const (
	maxVIPs         = 4 // addresses of one family, for one IKE SA
	maxResolvers    = 8 // in clear, and as many encrypted ones
	maxDomains      = 64
	maxTrustAnchors = 32
	maxSubnets      = 64
	maxALPN         = 8
	maxDigests      = 4 // for one encrypted resolver
)

// Attr is one configuration attribute.
type Attr struct {
	Type  AttrType
	Value []byte // aliases the message that it was read from
}

// CP is a Configuration payload whose attributes have been checked: each is whole, and those of
// addresses have lengths that they may have.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   CFG Type    |                    RESERVED                   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                    Configuration Attributes                   ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// and each attribute
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|R|         Attribute Type      |            Length             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                             Value                             ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type CP struct {
	Type  CFGType
	attrs []byte
}

// ParseCP reads the body of a Configuration payload. It allocates nothing; the CP aliases b.
func ParseCP(b []byte) (CP, error) {
	c := cursor{b: b}
	p := CP{Type: CFGType(c.u8())}
	c.skip(3)
	p.attrs = c.b
	for c.ok() && c.left() > 0 {
		t := AttrType(c.u16()) & attrTypeMask
		n := int(c.u16())
		if c.take(n); c.ok() && !t.goodLen(n) {
			return CP{}, syntax(PayloadCP, "attribute", errLength)
		}
	}
	if !c.ok() {
		return CP{}, syntax(PayloadCP, "payload", errShort)
	}
	return p, nil
}

// goodLen tells whether a value of that many octets can be one of the type. An empty one asks
// for a value, or has none to offer.
func (t AttrType) goodLen(n int) bool {
	switch t {
	case AttrIP4Address, AttrIP4Netmask, AttrIP4DNS, AttrIP4NBNS, AttrIP4DHCP:
		return n == 0 || n == 4
	case AttrIP6DNS, AttrIP6DHCP:
		return n == 0 || n == 16
	case AttrIP6Address, AttrIP6Subnet:
		return n == 0 || n == 17
	case AttrIP4Subnet:
		return n == 0 || n == 8
	case AttrSupported:
		return n%2 == 0
	}
	return true
}

// Each calls visit with the attributes in their order until it returns false.
func (p CP) Each(visit func(Attr) bool) {
	for c := (cursor{b: p.attrs}); c.left() > 0; {
		a := Attr{Type: AttrType(c.u16()) & attrTypeMask}
		a.Value = c.take(int(c.u16()))
		if !visit(a) {
			return
		}
	}
}

// has tells whether there is an attribute of that type.
func (p CP) has(t AttrType) (found bool) {
	p.Each(func(a Attr) bool { found = found || a.Type == t; return !found })
	return found
}

// CP appends a Configuration payload.
func (b *Builder) CP(t CFGType, list []Attr) {
	off := b.begin(PayloadCP)
	b.b = append(b.b, byte(t), 0, 0, 0)
	for _, a := range list {
		if len(a.Value) > 65535 {
			b.fail(errTooBig)
			return
		}
		b.b = binary.BigEndian.AppendUint16(b.b, uint16(a.Type))
		b.b = binary.BigEndian.AppendUint16(b.b, uint16(len(a.Value)))
		b.b = append(b.b, a.Value...)
	}
	b.end(off)
}

// addrAttr is an attribute that holds an address, or, of one that is not specified, asks for any.
func addrAttr(v4, v6 AttrType, a netip.Addr) Attr {
	t, v := v4, []byte(nil)
	if a.Is6() {
		t = v6
	}
	if !a.IsUnspecified() {
		if v = a.AsSlice(); t == AttrIP6Address {
			v = append(v, 128) // we assign addresses, and no links
		}
	}
	return Attr{t, v}
}

// subnetAttr is INTERNAL_IP4_SUBNET, with a mask, or INTERNAL_IP6_SUBNET, with a length.
func subnetAttr(p netip.Prefix) Attr {
	v := p.Masked().Addr().AsSlice()
	if p.Addr().Is6() {
		return Attr{AttrIP6Subnet, append(v, byte(p.Bits()))}
	}
	return Attr{AttrIP4Subnet, binary.BigEndian.AppendUint32(v, ^uint32(0)<<(32-p.Bits()))}
}

// addr reads the address at the front of a value.
func (a *Attr) addr() (netip.Addr, bool) {
	n := 16
	switch a.Type {
	case AttrIP4Address, AttrIP4DNS, AttrIP4NBNS, AttrIP4Subnet:
		n = 4
	}
	if len(a.Value) < n {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(a.Value[:n])
}

// subnet reads INTERNAL_IP4_SUBNET or INTERNAL_IP6_SUBNET; a mask with holes is none.
func (a *Attr) subnet() (netip.Prefix, bool) {
	addr, ok := a.addr()
	if !ok {
		return netip.Prefix{}, false
	}
	bits := int(a.Value[len(a.Value)-1])
	if addr.Is4() {
		mask := binary.BigEndian.Uint32(a.Value[4:])
		for bits = 0; bits < 32 && mask&(1<<31) != 0; bits++ {
			mask <<= 1
		}
		if mask != 0 {
			return netip.Prefix{}, false
		}
	}
	p, err := addr.Prefix(bits)
	return p, err == nil
}

// usable tells whether a host can have the address, or be spoken to under it.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// domain reads a name of the DNS in presentation format. Whatever cannot stand in the file of a
// resolver is none: labels are letters, digits, hyphens and underscores (A-labels among them).
func domain(b []byte) (string, bool) {
	s := strings.ToLower(strings.TrimSuffix(string(b[:min(len(b), maxDomainLength+2)]), "."))
	if s == "" || len(s) > maxDomainLength {
		return "", false
	}
	label := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.' && label > 0 && s[i-1] != '-':
			label = -1
		case c == '-' && label > 0, c == '_', c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	return s, label > 0 && s[len(s)-1] != '-'
}

// GoodDomain tells whether s is a name of the DNS that INTERNAL_DNS_DOMAIN can carry, in small
// letters and without a final dot.
func GoodDomain(s string) bool {
	d, ok := domain([]byte(s))
	return ok && d == s
}

// Service parameters of an encrypted resolver (RFC 9460 section 14.3.2, RFC 9461 section 5).
const (
	svcMandatory = 0
	svcALPN      = 1
	svcPort      = 3
	svcIP4Hint   = 4
	svcIP6Hint   = 6
	svcDoHPath   = 7
)

// appendBody appends the value of ENCDNS_IP4 or ENCDNS_IP6 (RFC 9464 section 3.1).
//
//	+-------------------------------+---------------+---------------+
//	|       Service Priority        | Num Addresses |  ADN Length   |
//	+-------------------------------+---------------+---------------+
//	~                        IP Address(es)                         ~
//	+---------------------------------------------------------------+
//	~                  Authentication Domain Name                   ~
//	+---------------------------------------------------------------+
//	~                 Service Parameters (SvcParams)                ~
//	+---------------------------------------------------------------+
func (e *EncryptedDNS) appendBody(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, e.Priority)
	b = append(b, byte(len(e.Addrs)), byte(len(e.ADN)))
	for _, a := range e.Addrs {
		b = append(b, a.AsSlice()...)
	}
	b = append(b, e.ADN...)
	param := func(key uint16, v []byte) {
		b = binary.BigEndian.AppendUint16(b, key)
		b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
		b = append(b, v...)
	}
	if len(e.ALPN) > 0 {
		var v []byte
		for _, p := range e.ALPN {
			v = append(append(v, byte(len(p))), p...)
		}
		param(svcALPN, v)
	}
	if e.Port != 0 {
		param(svcPort, binary.BigEndian.AppendUint16(nil, e.Port))
	}
	if e.DoHPath != "" {
		param(svcDoHPath, []byte(e.DoHPath))
	}
	return b
}

// parseEncDNS reads ENCDNS_IP4 or ENCDNS_IP6. A resolver that cannot be used, or that
// demands what we do not know, is none.
func parseEncDNS(a *Attr) (e EncryptedDNS, ok bool) {
	c := cursor{b: a.Value}
	e.Priority = c.u16()
	count, nameLen, n := int(c.u8()), int(c.u8()), 16
	if a.Type == AttrEncDNS4 {
		n = 4
	}
	for range count {
		addr, _ := netip.AddrFromSlice(c.take(n))
		if !usable(addr) {
			return e, false
		}
		if len(e.Addrs) < maxResolvers {
			e.Addrs = append(e.Addrs, addr)
		}
	}
	if e.ADN, ok = domain(c.take(nameLen)); !ok || e.Priority == 0 || count == 0 {
		return e, false // there is no AliasMode, and nothing to check a certificate against
	}
	last := -1
	for c.ok() && c.left() > 0 {
		key := int(c.u16())
		v := c.sub(int(c.u16()))
		if !c.ok() || key <= last { // RFC 9460 section 2.2
			return e, false
		}
		switch last = key; key {
		case svcMandatory:
			for v.left() > 0 {
				if k := v.u16(); k != svcALPN && k != svcPort && k != svcDoHPath {
					return e, false
				}
			}
		case svcALPN:
			for v.left() > 0 {
				p := string(v.take(int(v.u8())))
				if !graphic(p) {
					return e, false
				}
				if len(e.ALPN) < maxALPN {
					e.ALPN = append(e.ALPN, p)
				}
			}
		case svcPort:
			e.Port = v.u16()
		case svcIP4Hint, svcIP6Hint:
			return e, false // RFC 9464 section 3.1
		case svcDoHPath:
			e.DoHPath = string(v.rest())
			if !graphic(e.DoHPath) || e.DoHPath[0] != '/' {
				return e, false
			}
		}
		if !v.ok() {
			return e, false
		}
	}
	return e, c.ok()
}

// graphic tells whether a text is not empty and of printable ASCII alone, without spaces and
// quotes.
func graphic(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return s != ""
}

// appendDigest appends the value of ENCDNS_DIGEST_INFO in a CFG_REPLY (RFC 9464 section 3.2).
//
//	+---------------+---------------+-------------------------------+
//	| Num Hash Algs |  ADN Length   |  Authentication Domain Name   ~
//	+---------------+---------------+-------------------------------+
//	| Hash Algorithm Identifier     |       Certificate Digest      ~
//	+-------------------------------+-------------------------------+
func (d *DNSDigest) appendDigest(b []byte, adn string) []byte {
	b = append(b, 1, byte(len(adn)))
	b = append(b, adn...)
	b = binary.BigEndian.AppendUint16(b, d.Hash)
	return append(b, d.Sum...)
}

// digestLen is the length of the hashes that a digest may be of, by the numbers of RFC 7427; 0:
// there is none of that number.
func digestLen(hash uint16) int {
	if hash < 2 || hash > 4 {
		return 0
	}
	return 16 * int(hash)
}

// takeDigest reads ENCDNS_DIGEST_INFO and gives it to the resolvers that it is of.
func (p *Assigned) takeDigest(a *Attr) {
	c := cursor{b: a.Value}
	algs, nameLen := c.u8(), int(c.u8())
	name := c.take(nameLen)
	d := DNSDigest{Hash: c.u16(), Sum: slices.Clone(c.rest())}
	adn, ok := domain(name)
	if algs != 1 || !ok && nameLen > 0 || digestLen(d.Hash) != len(d.Sum) || len(d.Sum) == 0 {
		return
	}
	for i := range p.EncDNS {
		if e := &p.EncDNS[i]; (nameLen == 0 || e.ADN == adn) && len(e.Digests) < maxDigests {
			e.Digests = append(e.Digests, d)
		}
	}
}

// goodTrustAnchor tells whether b is key tag, algorithm, digest type and a digest in hexadecimal
// (RFC 8598 section 4.2).
func goodTrustAnchor(b []byte) bool {
	if len(b) <= 4 || len(b) > 4+2*64 {
		return false
	}
	for _, c := range b[4:] {
		if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f') {
			return false
		}
	}
	return true
}

// put appends v unless it is there already or the list is full.
func put[T comparable](list []T, v T, most int) []T {
	if len(list) >= most || slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}

// assigned reads a CFG_REPLY to a request for n4 IPv4 and n6 IPv6 addresses. What is of no use
// or more than was asked for is left out.
func (p CP) assigned(n4, n6 int) Assigned {
	var as Assigned
	owner, bare := "", false // the domain that a trust anchor would be of
	p.Each(func(a Attr) bool {
		if a.Type != AttrDNSDomain && a.Type != AttrDNSSECTA {
			bare = false
		}
		switch a.Type {
		case AttrIP4Address, AttrIP6Address:
			addr, ok := a.addr()
			left := &n4
			if a.Type == AttrIP6Address {
				left = &n6
			}
			if ok && usable(addr) && *left > 0 && !slices.Contains(as.Addrs, addr) {
				as.Addrs = append(as.Addrs, addr)
				*left--
			}
		case AttrIP4DNS, AttrIP6DNS:
			if addr, ok := a.addr(); ok && usable(addr) {
				as.DNS = put(as.DNS, addr, maxResolvers)
			}
		case AttrIP4Subnet, AttrIP6Subnet:
			if s, ok := a.subnet(); ok {
				as.Subnets = put(as.Subnets, s, maxSubnets)
			}
		case AttrDNSDomain:
			if owner, bare = domain(a.Value); bare {
				as.Domains = put(as.Domains, owner, maxDomains)
				bare = slices.Contains(as.Domains, owner)
			}
		case AttrDNSSECTA:
			if bare && goodTrustAnchor(a.Value) && len(as.TrustAnchors) < maxTrustAnchors {
				as.TrustAnchors = append(as.TrustAnchors, slices.Clone(a.Value))
				as.TrustNames = append(as.TrustNames, owner)
			}
		case AttrEncDNS4, AttrEncDNS6:
			if e, ok := parseEncDNS(&a); ok && len(as.EncDNS) < maxResolvers {
				as.EncDNS = append(as.EncDNS, e)
			}
		}
		return true
	})
	sort.SliceStable(as.EncDNS, func(i, j int) bool { return as.EncDNS[i].Priority < as.EncDNS[j].Priority })
	p.Each(func(a Attr) bool { // they may stand before the resolvers
		if a.Type == AttrEncDNSHash {
			as.takeDigest(&a)
		}
		return true
	})
	return as
}

// ParseEncryptedDNS reads an encrypted resolver as configurations write it: the name of its
// certificate, its addresses, and "alpn=dot,h2", "port=853", "dohpath=/dns-query{?dns}" and
// "sha256=" with the hash of its SubjectPublicKeyInfo in hexadecimal. The error says what is
// wrong with which word.
func ParseEncryptedDNS(text string) (EncryptedDNS, error) {
	var e EncryptedDNS
	bad := func(word, why string) (EncryptedDNS, error) {
		return EncryptedDNS{}, &attrError{word, why}
	}
	words := strings.Fields(text)
	if len(words) == 0 || !GoodDomain(words[0]) {
		return bad(text, `starts with no name such as "dns.example.org"`)
	}
	e.ADN = words[0]
	for _, w := range words[1:] {
		key, v, found := strings.Cut(w, "=")
		switch {
		case !found:
			a, err := netip.ParseAddr(w)
			if err != nil || !usable(a) || a.Zone() != "" {
				return bad(w, "is no address")
			}
			if len(e.Addrs) > 0 && a.Is4() != e.Addrs[0].Is4() {
				return bad(w, "is of another family than the address before: make two resolvers of it")
			}
			if len(e.Addrs) == maxResolvers {
				return bad(w, "is one address too many")
			}
			e.Addrs = append(e.Addrs, a)
		case key == "alpn":
			e.ALPN = strings.Split(v, ",")
			if len(v) > 64 || len(e.ALPN) > maxALPN || slices.ContainsFunc(e.ALPN, func(p string) bool { return !graphic(p) }) {
				return bad(w, `is no list of protocols such as "alpn=dot,h2"`)
			}
		case key == "port":
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil || n == 0 {
				return bad(w, "is no port")
			}
			e.Port = uint16(n)
		case key == "dohpath":
			if !graphic(v) || v[0] != '/' || len(v) > 255 {
				return bad(w, `is no path such as "/dns-query{?dns}"`)
			}
			e.DoHPath = v
		case key == "sha256":
			sum, ok := unhex(v)
			if !ok || len(sum) != digestLen(2) || len(e.Digests) == maxDigests {
				return bad(w, "is no hash of 32 octets in hexadecimal")
			}
			e.Digests = append(e.Digests, DNSDigest{2, sum})
		default:
			return bad(w, "is not known: use alpn, port, dohpath or sha256")
		}
	}
	if len(e.Addrs) == 0 {
		return bad(text, "has no address")
	}
	return e, nil
}

// unhex reads hexadecimal digits.
func unhex(s string) (b []byte, ok bool) {
	for ; len(s) >= 2; s = s[2:] {
		n, err := strconv.ParseUint(s[:2], 16, 8)
		if err != nil {
			return nil, false
		}
		b = append(b, byte(n))
	}
	return b, s == ""
}

// attrError is what is wrong with a word of the configuration.
type attrError struct{ word, why string }

func (e *attrError) Error() string { return strconv.Quote(e.word) + " " + e.why }
