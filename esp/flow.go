package esp

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers that this package looks into or names (IANA "Protocol Numbers").
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoIGMP     = 2
	ProtoIPv4     = 4 // as ESP's next header: an IPv4 packet in tunnel mode
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoDCCP     = 33
	ProtoIPv6     = 41 // as ESP's next header: an IPv6 packet in tunnel mode
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoGRE      = 47
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNoNext   = 59 // as ESP's next header: a dummy packet (RFC 4303 section 2.6)
	ProtoDstOpts  = 60
	ProtoOSPF     = 89
	ProtoVRRP     = 112
	ProtoL2TP     = 115
	ProtoSCTP     = 132
	ProtoMobility = 135
	ProtoUDPLite  = 136
	ProtoHIP      = 139
	ProtoShim6    = 140
)

const (
	ipv4MinLen = 20
	ipv6Len    = 40

	// maxExtHeaders bounds the walk over IPv6 extension headers. RFC 8200 section 4.1
	// recommends an order in which at most seven stand before the next layer.
	maxExtHeaders = 8
)

// InnerLen returns how long the IP packet at the beginning of pkt is by its own header, so
// that padding which follows it (traffic-flow confidentiality, RFC 4303 section 2.7) can be
// cut off. ErrMalformed: it is neither IPv4 nor IPv6, or longer than pkt.
func InnerLen(pkt []byte) (int, error) {
	if len(pkt) == 0 {
		return 0, ErrMalformed
	}
	n, least := 0, 0
	switch pkt[0] >> 4 {
	case 4:
		if len(pkt) < ipv4MinLen {
			return 0, ErrMalformed
		}
		n, least = int(binary.BigEndian.Uint16(pkt[2:])), int(pkt[0]&15)*4
		if least < ipv4MinLen {
			return 0, ErrMalformed
		}
	case 6:
		if len(pkt) < ipv6Len {
			return 0, ErrMalformed
		}
		n, least = ipv6Len+int(binary.BigEndian.Uint16(pkt[4:])), ipv6Len
	}
	if n < least || n == 0 || n > len(pkt) {
		return 0, ErrMalformed
	}
	return n, nil
}

// CutInner returns the IP packet in a payload that Open gave back with next, without what
// follows it. ErrMalformed: next is not 4 or 41, the packet is of the other IP version,
// or longer than the payload.
func CutInner(payload []byte, next uint8) ([]byte, error) {
	n, err := InnerLen(payload)
	if err != nil {
		return nil, err
	}
	if v := payload[0] >> 4; (next != ProtoIPv4 || v != 4) && (next != ProtoIPv6 || v != 6) {
		return nil, ErrMalformed
	}
	return payload[:n], nil
}

// ParseFlow reads the 5-tuple of an IP packet into f. outbound says that the source is the
// local side; otherwise the sides are exchanged. It allocates nothing and keeps no
// reference to pkt.
//
// The "ports" of ICMP and ICMPv6 are type<<8 | code, of the mobility header type<<8, on
// both sides (RFC 4301 section 4.4.1.1, RFC 7296 section 3.13.1). NoPorts is set where the
// packet has none to see: fragments after the first, first fragments that end before
// them, and protocols without ports, to which ESP and AH belong here. For such a fragment
// of an IPv6 packet, Proto is what the fragment header names, which may be an extension
// header.
//
// ErrMalformed, with f undefined: the packet is truncated, its lengths contradict each
// other, or, as ErrChain, it has more extension headers than anyone needs.
func ParseFlow(pkt []byte, outbound bool, f *Flow) error {
	n, err := InnerLen(pkt)
	if err != nil {
		return err
	}
	pkt = pkt[:n] // what follows is not the packet's
	*f = Flow{}

	var l4 []byte         // from the next layer's header on
	var first, whole bool // first: l4 begins with that header; whole: not a fragment
	if pkt[0]>>4 == 4 {
		f.Local = netip.AddrFrom4([4]byte(pkt[12:16]))
		f.Remote = netip.AddrFrom4([4]byte(pkt[16:20]))
		f.Proto = pkt[9]
		l4 = pkt[int(pkt[0]&15)*4:]
		frag := binary.BigEndian.Uint16(pkt[6:])
		first, whole = frag&0x1fff == 0, frag&0x3fff == 0
	} else {
		f.Local = netip.AddrFrom16([16]byte(pkt[8:24]))
		f.Remote = netip.AddrFrom16([16]byte(pkt[24:40]))
		if f.Proto, l4, first, whole, err = walkIPv6(pkt[6], pkt[ipv6Len:]); err != nil {
			return err
		}
	}
	if !outbound {
		f.Local, f.Remote = f.Remote, f.Local
	}
	return f.readPorts(l4, outbound, first, whole)
}

// walkIPv6 goes over the extension headers to the next layer (RFC 8200 section 4). In a
// later fragment it stops at the fragment header, behind which no header is to be found.
func walkIPv6(proto uint8, b []byte) (next uint8, l4 []byte, first, whole bool, err error) {
	first, whole = true, true
	for range maxExtHeaders {
		n := 0
		switch proto {
		case ProtoHopByHop, ProtoRouting, ProtoDstOpts, ProtoHIP, ProtoShim6:
			if len(b) < 8 {
				return 0, nil, false, false, ErrMalformed
			}
			n = 8 + int(b[1])*8
		case ProtoFragment:
			if len(b) < 8 {
				return 0, nil, false, false, ErrMalformed
			}
			n = 8
			frag := binary.BigEndian.Uint16(b[2:])
			first = frag&0xfff8 == 0
			whole = whole && frag&0xfff9 == 0
		default:
			return proto, b, first, whole, nil
		}
		if len(b) < n {
			return 0, nil, false, false, ErrMalformed
		}
		proto, b = b[0], b[n:]
		if !first {
			return proto, b, first, whole, nil
		}
	}
	return 0, nil, false, false, ErrChain
}

// portsLen returns how many octets of a protocol's header hold the ports, or what stands for
// them; 0 if there are none.
func portsLen(proto uint8) int {
	switch proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP, ProtoDCCP, ProtoUDPLite:
		return 4
	case ProtoICMP, ProtoICMPv6:
		return 2
	case ProtoMobility:
		return 3
	}
	return 0
}

// HasPorts tells whether a protocol has ports, or ICMP's type and code or the type of a mobility
// header in their place (RFC 4301 section 4.4.1.1).
func HasPorts(proto uint8) bool { return portsLen(proto) > 0 }

// readPorts fills in the ports from the next layer's header.
func (f *Flow) readPorts(l4 []byte, outbound, first, whole bool) error {
	need := portsLen(f.Proto)
	if need == 0 || !first {
		f.NoPorts = true
		return nil
	}
	if len(l4) < need {
		if whole {
			return ErrMalformed
		}
		f.NoPorts = true
		return nil
	}
	src := binary.BigEndian.Uint16(l4)
	dst := src
	switch need {
	case 3:
		src = uint16(l4[2]) << 8
		dst = src
	case 4:
		dst = binary.BigEndian.Uint16(l4[2:])
	}
	if !outbound {
		src, dst = dst, src
	}
	f.LocalPort, f.RemotePort = src, dst
	return nil
}
