package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"postern/esp"
	"postern/ike"
)

// fault is why a text cannot be read, and what to write instead.
type fault struct{ what, hint string }

func faultf(hint, format string, args ...any) *fault {
	return &fault{fmt.Sprintf(format, args...), hint}
}

const dynamicTS = "dynamic"

// OPAQUE is the port range that stands for ports which cannot be seen (RFC 7296
// section 3.13.1).
const (
	opaqueStart = 65535
	opaqueEnd   = 0
)

// protoAliases are names of protocols beside those of esp.ProtoName.
var protoAliases = map[string]uint8{"icmpv6": esp.ProtoICMPv6, "ipip": esp.ProtoIPv4, "mh": esp.ProtoMobility}

// hasTypes tells whether a protocol has a type, in the upper octet, and a code in place of ports.
func hasTypes(proto uint8) bool {
	return proto == esp.ProtoICMP || proto == esp.ProtoICMPv6 || proto == esp.ProtoMobility
}

// parseTS reads a traffic selector in strongSwan's notation: a prefix, an address, a
// range of addresses or "dynamic", and in brackets, where wanted, the protocol and the
// port or the range of ports: "10.1.0.5/32[tcp/502]".
func parseTS(text string) (ike.TS, *fault) {
	var ts ike.TS
	addrs, tail, bracket := strings.Cut(text, "[")
	sel := esp.Selector{EndPort: 65535}
	if bracket {
		inner, ok := strings.CutSuffix(tail, "]")
		if !ok {
			return ts, faultf(`write "10.1.0.5/32[tcp/502]"`, "%q does not end with ]", text)
		}
		if err := parseProtoPort(inner, &sel); err != nil {
			return ts, err
		}
	}
	ts.Selector = sel
	if addrs == dynamicTS {
		ts.Dynamic = true
		return ts, nil
	}
	start, end, err := parseAddrs(addrs)
	if err != nil {
		return ts, err
	}
	ts.Start, ts.End = start, end
	return ts, nil
}

const tsHint = `write "10.1.0.0/24", "10.1.0.5", "10.0.0.1-10.0.0.9" or "dynamic", then if wanted "[tcp/502]"`

// parseAddrs reads a prefix, an address or a range ("a-b", or "a..b" as it is printed).
func parseAddrs(text string) (start, end netip.Addr, err *fault) {
	if strings.Contains(text, "/") {
		p, err := parsePrefix(text)
		if err != nil {
			return start, end, err
		}
		sel := esp.SelectorFromPrefix(p)
		return sel.Start, sel.End, nil
	}
	low, high, ok := strings.Cut(text, "..")
	if !ok {
		low, high, ok = strings.Cut(text, "-")
	}
	if !ok {
		high = low
	}
	start, e1 := netip.ParseAddr(low)
	end, e2 := netip.ParseAddr(high)
	switch {
	case e1 != nil || e2 != nil || start.Zone() != "" || end.Zone() != "" || start.Is4In6() || end.Is4In6():
		return start, end, faultf(tsHint, "%q is not an address, a prefix or a range", text)
	case start.BitLen() != end.BitLen():
		return start, end, faultf("write two ranges", "%q goes from one address family to the other", text)
	case end.Less(start):
		return start, end, faultf(fmt.Sprintf("write %q", high+"-"+low), "%q ends before it starts", text)
	}
	return start, end, nil
}

// parsePrefix reads a prefix and insists that no bits of a host are set, because
// then it is not clear which of two things was meant.
func parsePrefix(text string) (netip.Prefix, *fault) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, faultf(`write "10.1.0.0/24" or "2001:db8::/32"`, "%q is not a prefix", text)
	case p != p.Masked():
		return p, faultf(fmt.Sprintf("write %q for the network or \"%s/%d\" for the host", p.Masked(), p.Addr(), p.Addr().BitLen()),
			"%q has bits of a host set", text)
	}
	return p, nil
}

// parseProtoPort reads what stands in the brackets: "tcp", "tcp/502", "udp/100-200",
// "icmp/8" (a type), "icmp/3(4)" (with a code), "6/opaque", "tcp/%any".
func parseProtoPort(text string, sel *esp.Selector) *fault {
	proto, port, hasPort := strings.Cut(text, "/")
	num, ok := parseProto(proto)
	if proto == "" && hasPort {
		return faultf("write it with one, such as [tcp/53] and [udp/53]", "a port without a protocol")
	}
	if !ok {
		return faultf("use tcp, udp, icmp, icmpv6, sctp, gre or a number up to 255", "unknown protocol %q", proto)
	}
	sel.Proto = num
	if !hasPort || port == anyAddr || port == "any" {
		return nil
	}
	if !esp.HasPorts(num) {
		return faultf("write the protocol alone; ports go with tcp, udp, sctp, dccp, udplite, icmp, icmpv6 and mh", "protocol %q has no ports", proto)
	}
	if strings.EqualFold(port, "opaque") {
		sel.StartPort, sel.EndPort = opaqueStart, opaqueEnd
		return nil
	}
	low, high, isRange := strings.Cut(port, "-")
	if _, ok := parsePort(num, port); ok { // services have hyphens in their names
		low, isRange = port, false
	}
	if !isRange {
		high = low
	}
	start, ok1 := parsePort(num, low)
	end, ok2 := parsePort(num, high)
	switch {
	case !ok1 || !ok2:
		return faultf("write a number from 0 to 65535 or a range such as 1024-2047", "%q is not a port", port)
	case end < start:
		return faultf("write "+high+"-"+low, "the ports %q end before they start", port)
	}
	sel.StartPort, sel.EndPort = start, end
	return nil
}

// parsePort reads a port. For ICMP, and for a mobility header, a number up to 255 is a type, with its code in
// parentheses if that is not 0; a larger one is both, type times 256 plus code, as
// strongSwan has it.
func parsePort(proto uint8, text string) (uint16, bool) {
	if !hasTypes(proto) {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil && text != "" && text[0]|0x20 >= 'a' && text[0]|0x20 <= 'z' && (proto == esp.ProtoTCP || proto == esp.ProtoUDP) {
			var port int // of a service in /etc/services
			port, err = net.LookupPort(esp.ProtoName(proto), text)
			n = uint64(port)
		}
		return uint16(n), err == nil
	}
	text, tail, hasCode := strings.Cut(text, "(")
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || hasCode && n > 255 {
		return 0, false
	}
	var code uint64
	if hasCode {
		digits, closed := strings.CutSuffix(tail, ")")
		if code, err = strconv.ParseUint(digits, 10, 8); err != nil || !closed {
			return 0, false
		}
	}
	if n <= 255 {
		n = n<<8 | code
	}
	return uint16(n), true
}

// parseProto reads a protocol's name or number. "any" and 0 stand for all protocols.
func parseProto(text string) (uint8, bool) {
	if text == "any" || text == anyAddr {
		return 0, true
	}
	if num, ok := protoAliases[text]; ok {
		return num, true
	}
	if num, err := strconv.ParseUint(text, 10, 8); err == nil {
		return uint8(num), true
	}
	for num := range 256 {
		if esp.ProtoName(uint8(num)) == text {
			return uint8(num), true
		}
	}
	return 0, false
}
