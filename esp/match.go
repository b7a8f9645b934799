package esp

import (
	"net/netip"
	"strconv"
)

// anyPort and opaque tell apart the two port ranges with a meaning of their own.
func (s *Selector) anyPort() bool { return s.StartPort == 0 && s.EndPort == 65535 }
func (s *Selector) opaque() bool  { return s.StartPort == 65535 && s.EndPort == 0 }

// Valid tells whether the selector selects anything: addresses of one family in order, and
// ports in order or OPAQUE.
func (s Selector) Valid() bool {
	return s.Start.IsValid() && s.Start.BitLen() == s.End.BitLen() && s.Start.Compare(s.End) <= 0 &&
		(s.StartPort <= s.EndPort || s.opaque())
}

// Matches tells whether one side of a packet is in the selector: its address, protocol and
// port. A packet whose port cannot be seen (noPorts) matches only any port and OPAQUE,
// and OPAQUE matches only such a packet (RFC 4301 section 4.4.1.1).
func (s *Selector) Matches(addr netip.Addr, proto uint8, port uint16, noPorts bool) bool {
	if s.Proto != 0 && s.Proto != proto {
		return false
	}
	switch {
	case s.anyPort():
	case s.opaque():
		if !noPorts {
			return false
		}
	case noPorts || port < s.StartPort || port > s.EndPort:
		return false
	}
	return s.Start.Compare(addr) <= 0 && addr.Compare(s.End) <= 0
}

// MatchFlow tells whether a flow's local side is in one of local and its remote side in one
// of remote.
func MatchFlow(local, remote []Selector, f *Flow) bool {
	for i := range local {
		if local[i].Matches(f.Local, f.Proto, f.LocalPort, f.NoPorts) {
			for j := range remote {
				if remote[j].Matches(f.Remote, f.Proto, f.RemotePort, f.NoPorts) {
					return true
				}
			}
			return false
		}
	}
	return false
}

// SelectorFromPrefix selects every address of the prefix, any protocol and any port. An
// invalid prefix gives a selector that is not Valid.
func SelectorFromPrefix(p netip.Prefix) Selector {
	if !p.IsValid() {
		return Selector{}
	}
	return Selector{EndPort: 65535, Start: p.Masked().Addr(), End: lastAddr(p)}
}

// lastAddr returns the last address of a valid prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b, from := p.Addr().As16(), p.Bits()
	if p.Addr().Is4() {
		from += 96
	}
	for i := from; i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// Prefixes returns the fewest prefixes that cover the selector's range exactly, in
// order: at most 62 for IPv4 and 254 for IPv6. It is nil for a selector that is not Valid.
func (s Selector) Prefixes() []netip.Prefix {
	if !s.Valid() {
		return nil
	}
	var out []netip.Prefix
	for at := s.Start; ; {
		p := widest(at, s.End)
		out = append(out, p)
		last := lastAddr(p)
		if last.Compare(s.End) >= 0 {
			return out
		}
		at = last.Next()
	}
}

// widest returns the largest prefix that begins at from and does not pass end.
func widest(from, end netip.Addr) netip.Prefix {
	best := netip.PrefixFrom(from, from.BitLen())
	for bits := from.BitLen() - 1; bits >= 0; bits-- {
		p := netip.PrefixFrom(from, bits)
		if p.Masked().Addr() != from || lastAddr(p).Compare(end) > 0 {
			break
		}
		best = p
	}
	return best
}

// Contains tells whether every packet that o matches is matched by s too.
func (s Selector) Contains(o Selector) bool {
	if s.Proto != 0 && s.Proto != o.Proto {
		return false
	}
	switch {
	case s.anyPort():
	case s.opaque() || o.opaque():
		if s.opaque() != o.opaque() {
			return false
		}
	case o.StartPort < s.StartPort || o.EndPort > s.EndPort:
		return false
	}
	return s.Start.BitLen() == o.Start.BitLen() && s.Start.Compare(o.Start) <= 0 && o.End.Compare(s.End) <= 0
}

// Intersect returns what both selectors match; ok is false when that is nothing.
func (s Selector) Intersect(o Selector) (both Selector, ok bool) {
	if s.Proto != 0 && o.Proto != 0 && s.Proto != o.Proto || s.Start.BitLen() != o.Start.BitLen() {
		return Selector{}, false
	}
	both = Selector{Proto: max(s.Proto, o.Proto), Start: s.Start, End: s.End}
	if o.Start.Compare(both.Start) > 0 {
		both.Start = o.Start
	}
	if o.End.Compare(both.End) < 0 {
		both.End = o.End
	}
	switch {
	case s.anyPort():
		both.StartPort, both.EndPort = o.StartPort, o.EndPort
	case o.anyPort():
		both.StartPort, both.EndPort = s.StartPort, s.EndPort
	case s.opaque() != o.opaque():
		return Selector{}, false
	case s.opaque():
		both.StartPort, both.EndPort = s.StartPort, s.EndPort
	default:
		both.StartPort, both.EndPort = max(s.StartPort, o.StartPort), min(s.EndPort, o.EndPort)
		if both.StartPort > both.EndPort {
			return Selector{}, false
		}
	}
	if !both.Valid() {
		return Selector{}, false
	}
	return both, true
}

// ProtoName returns the name that selectors are written with: "tcp", "icmp", "ipv6-icmp",
// or the number for a protocol without one here.
func ProtoName(proto uint8) string {
	switch proto {
	case ProtoICMP:
		return "icmp"
	case ProtoIGMP:
		return "igmp"
	case ProtoIPv4:
		return "ipencap"
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoDCCP:
		return "dccp"
	case ProtoIPv6:
		return "ipv6"
	case ProtoGRE:
		return "gre"
	case ProtoESP:
		return "esp"
	case ProtoAH:
		return "ah"
	case ProtoICMPv6:
		return "ipv6-icmp"
	case ProtoOSPF:
		return "ospf"
	case ProtoVRRP:
		return "vrrp"
	case ProtoL2TP:
		return "l2tp"
	case ProtoSCTP:
		return "sctp"
	case ProtoMobility:
		return "mobility-header"
	case ProtoUDPLite:
		return "udplite"
	}
	return strconv.Itoa(int(proto))
}

// String writes the selector as strongSwan does: "10.1.0.0/24", "10.1.0.1/32[tcp/502]",
// "10.1.0.1..10.1.0.9[udp/100-200]", "fd00::/64[ipv6-icmp/128]", "10.1.0.0/24[tcp/OPAQUE]".
// For ICMP, a code other than 0 follows the type in parentheses; a mobility header has types, too.
func (s Selector) String() string {
	if !s.Start.IsValid() {
		return "none"
	}
	out := s.Start.String() + ".." + s.End.String()
	if s.Valid() {
		if p := widest(s.Start, s.End); lastAddr(p) == s.End {
			out = p.String()
		}
	}
	if s.Proto == 0 && s.anyPort() {
		return out
	}
	out += "["
	if s.Proto != 0 {
		out += ProtoName(s.Proto)
		if !s.anyPort() {
			out += "/"
		}
	}
	switch {
	case s.anyPort():
	case s.opaque():
		out += "OPAQUE"
	case s.StartPort == s.EndPort:
		out += s.portString(s.StartPort)
	default:
		out += s.portString(s.StartPort) + "-" + s.portString(s.EndPort)
	}
	return out + "]"
}

// portString writes a port, or for ICMP its type and code.
func (s *Selector) portString(p uint16) string {
	if s.Proto != ProtoICMP && s.Proto != ProtoICMPv6 && s.Proto != ProtoMobility {
		return strconv.Itoa(int(p))
	}
	out := strconv.Itoa(int(p >> 8))
	if code := int(p & 255); code != 0 {
		out += "(" + strconv.Itoa(code) + ")"
	}
	return out
}
