package ike

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"postern/esp"
)

// maxSelectors is how many selectors a payload can count.
const maxSelectors = 255

// maxNarrowed bounds the selectors of one side of a CHILD SA that we answer with: both
// directions of the SA keep a copy of them, and the data path may look at each.
const maxNarrowed = 64

// Traffic Selector types (RFC 7296 section 3.13.1) and the lengths of their substructures.
const (
	tsIPv4Range  = 7
	tsIPv6Range  = 8
	tsHeaderLen  = 4
	tsIPv4Octets = 8 + 2*4
	tsIPv6Octets = 8 + 2*16
)

// ParseTS reads the body of a Traffic Selector payload. Selectors of types other than
// IPv4 and IPv6 ranges are skipped, so that the result may be empty. A range of
// addresses or ports that ends before it starts is a SyntaxError, except for the ports
// 65535 to 0, OPAQUE.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Number of TSs |                 RESERVED                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                       <Traffic Selectors>                     ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// and each selector
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   TS Type     |IP Protocol ID |       Selector Length         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Start Port          |           End Port            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                         Starting Address                      ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                         Ending Address                        ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseTS(b []byte) ([]esp.Selector, error) {
	c := cursor{b: b}
	count := int(c.u8())
	c.skip(3)
	if !c.ok() {
		return nil, syntax(PayloadNone, "list of traffic selectors", errShort)
	}
	if count == 0 || c.left() < count*tsHeaderLen {
		return nil, syntax(PayloadNone, "number of traffic selectors", errLength)
	}
	list := make([]esp.Selector, 0, min(count, c.left()/tsIPv4Octets))
	for range count {
		kind, proto, n := c.u8(), c.u8(), int(c.u16())
		s := c.sub(n - tsHeaderLen)
		if !c.ok() {
			return nil, syntax(PayloadNone, "traffic selector", errLength)
		}
		addrLen := 4
		switch kind {
		case tsIPv4Range:
		case tsIPv6Range:
			addrLen = 16
		default:
			continue
		}
		sel := esp.Selector{Proto: proto, StartPort: s.u16(), EndPort: s.u16()}
		sel.Start, _ = netip.AddrFromSlice(s.take(addrLen))
		sel.End, _ = netip.AddrFromSlice(s.take(addrLen))
		if !s.ok() || s.left() != 0 {
			return nil, syntax(PayloadNone, "traffic selector", errLength)
		}
		if !sel.Valid() {
			return nil, syntax(PayloadNone, "range of a traffic selector", errValue)
		}
		list = append(list, sel)
	}
	if c.left() != 0 {
		return nil, syntax(PayloadNone, "last traffic selector", errTrailing)
	}
	return list, nil
}

// appendSelector appends one selector's substructure. Its addresses are of one family.
func appendSelector(b []byte, s *esp.Selector) []byte {
	e := binary.BigEndian
	kind, n := byte(tsIPv4Range), uint16(tsIPv4Octets)
	if s.Start.Is6() {
		kind, n = tsIPv6Range, tsIPv6Octets
	}
	b = append(b, kind, s.Proto)
	b = e.AppendUint16(b, n)
	b = e.AppendUint16(b, s.StartPort)
	b = e.AppendUint16(b, s.EndPort)
	b = append(b, s.Start.AsSlice()...)
	return append(b, s.End.AsSlice()...)
}

// narrowTS returns what both the configured and the offered selectors select (RFC 7296
// section 2.9), none if that is nothing. What lies in the first of offered, which may be
// the selector of the packet that made the peer ask, comes first, and survives where the
// result is cut at maxNarrowed; otherwise the order is that of offered. No selector of
// the result lies within another.
func narrowTS(configured []esp.Selector, offered []esp.Selector) []esp.Selector {
	var out []esp.Selector
	for _, o := range offered {
		for _, c := range configured {
			if both, ok := o.Intersect(c); ok {
				out = addSelector(out, both)
			}
		}
	}
	return out
}

// addSelector adds s to the list. If it covers members of the list, it takes the place
// of the first and the others go. If it does not and the list is full, it is left out:
// bounding the list here also bounds the comparisons that a peer can ask for.
func addSelector(list []esp.Selector, s esp.Selector) []esp.Selector {
	at := -1
	for i := 0; i < len(list); {
		switch {
		case list[i].Contains(s):
			return list
		case !s.Contains(list[i]):
			i++
		case at < 0:
			at = i
			i++
		default:
			list = slices.Delete(list, i, i+1)
		}
	}
	switch {
	case at >= 0:
		list[at] = s
	case len(list) < maxNarrowed:
		list = append(list, s)
	}
	return list
}
