package platform

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// What the kernel puts in front of each packet of a device with IFF_VNET_HDR, in the
// machine's byte order (struct virtio_net_hdr):
//
//	0        1        2                 4                 6                 8
//	+--------+--------+-----------------+-----------------+-----------------+-----------------+
//	| flags  |gso_type|     hdr_len     |    gso_size     |   csum_start    |   csum_offset   |
//	+--------+--------+-----------------+-----------------+-----------------+-----------------+
//
// A packet with a gso_type stands for as many packets as gso_size octets of payload for
// each make out of it. With NEEDS_CSUM the octets from csum_start on are yet to be
// summed up, and the field at csum_start+csum_offset holds the pseudo-header's sum.
const vnetHdrSize = 10

type vnetHdr struct {
	flags, gso           uint8
	hdrLen, gsoSize      uint16
	csumStart, csumField uint16
}

func (h *vnetHdr) decode(b *[vnetHdrSize]byte) {
	h.flags, h.gso = b[0], b[1]
	h.hdrLen, h.gsoSize = native.Uint16(b[2:]), native.Uint16(b[4:])
	h.csumStart, h.csumField = native.Uint16(b[6:]), native.Uint16(b[8:])
}

func (h *vnetHdr) encode(b []byte) {
	b[0], b[1] = h.flags, h.gso
	native.PutUint16(b[2:], h.hdrLen)
	native.PutUint16(b[4:], h.gsoSize)
	native.PutUint16(b[6:], h.csumStart)
	native.PutUint16(b[8:], h.csumField)
}

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	udpHeader  = 8

	tcpChecksum = 16 // offsets in the transport header
	udpChecksum = 6

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpECE = 0x40
	tcpCWR = 0x80
)

// complete does what a header without segmentation asks for: it fills in the checksum.
// It returns false if the header lies about the packet.
func complete(h *vnetHdr, pkt []byte) bool {
	if h.gso != unix.VIRTIO_NET_HDR_GSO_NONE || int(h.hdrLen) > len(pkt) {
		return false
	}
	if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return true
	}
	start := int(h.csumStart)
	field := start + int(h.csumField)
	if start >= len(pkt) || field+2 > len(pkt) {
		return false
	}
	sum := ^fold(sumBytes(pkt[start:], 0))
	if sum == 0 {
		sum = 0xffff // the same number; in UDP, 0 is no checksum
	}
	native.PutUint16(pkt[field:], sum)
	return true
}

// superPacket is a packet of the kernel's on its way to become several.
// The zero value has no segment left.
type superPacket struct {
	pkt   []byte // borrowed until the last segment is out; nil: none is left
	v6    bool
	udp   bool
	l4    int    // where the transport header starts
	hdr   int    // octets of all headers
	size  int    // octets of payload of each segment but the last
	next  int    // where the next segment's payload starts
	index int    // of the next segment
	sum   uint64 // of the pseudo-header without the length
}

// parse takes pkt, whose header has a gso_type. It returns false, and has no segment,
// if the header lies, or if it is of a kind that was not asked for. The kernel's hdr_len
// is only a hint, which may cover payload, so the headers tell themselves where they end.
func (s *superPacket) parse(h *vnetHdr, pkt []byte) bool {
	*s = superPacket{}
	if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || h.gsoSize == 0 || int(h.hdrLen) > len(pkt) {
		return false
	}
	v6, proto, l4 := transportAt(pkt, int(h.csumStart))
	if l4 == 0 {
		return false
	}
	hdr, field := 0, 0
	switch h.gso &^ unix.VIRTIO_NET_HDR_GSO_ECN {
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6:
		is6 := h.gso&^unix.VIRTIO_NET_HDR_GSO_ECN == unix.VIRTIO_NET_HDR_GSO_TCPV6
		if is6 != v6 || proto != esp.ProtoTCP || len(pkt) < l4+tcpHeader || pkt[l4+12]>>4 < tcpHeader/4 {
			return false
		}
		hdr, field = l4+int(pkt[l4+12]>>4)*4, tcpChecksum
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		if proto != esp.ProtoUDP {
			return false
		}
		hdr, field = l4+udpHeader, udpChecksum
	default:
		return false
	}
	if int(h.csumField) != field || hdr > len(pkt) {
		return false
	}
	// The field is right also where a routing header or an option changes an address.
	// One's complement subtracts by adding the complement.
	sum := uint64(native.Uint16(pkt[l4+field:])) + uint64(^networkPort(uint16(len(pkt)-l4)))
	*s = superPacket{pkt: pkt, v6: v6, udp: proto == esp.ProtoUDP, l4: l4, hdr: hdr, size: int(h.gsoSize), next: hdr, sum: sum}
	return true
}

// transportAt checks that a transport header starts at octet l4 of a whole IP packet
// that is no fragment; otherwise it returns 0 for l4.
func transportAt(pkt []byte, l4 int) (v6 bool, proto uint8, at int) {
	if len(pkt) < ipv4Header {
		return false, 0, 0
	}
	if pkt[0]>>4 == 4 {
		if l4 < ipv4Header || int(pkt[0]&0x0f)*4 != l4 || l4 > len(pkt) ||
			int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) || binary.BigEndian.Uint16(pkt[6:])&0x3fff != 0 {
			return false, 0, 0
		}
		return false, pkt[9], l4
	}
	if pkt[0]>>4 != 6 || len(pkt) < ipv6Header || int(binary.BigEndian.Uint16(pkt[4:])) != len(pkt)-ipv6Header {
		return false, 0, 0
	}
	proto, at = pkt[6], ipv6Header
	for at < l4 {
		// Hop-by-hop options, routing, destination options: the same layout.
		if proto != 0 && proto != 43 && proto != 60 || at+8 > len(pkt) {
			return false, 0, 0
		}
		proto, at = pkt[at], at+8+int(pkt[at+1])*8
	}
	if at != l4 || at > len(pkt) {
		return false, 0, 0
	}
	return true, proto, at
}

// more tells whether a segment is left.
func (s *superPacket) more() bool { return s.pkt != nil }

// drop forgets the segments that are left.
func (s *superPacket) drop() { *s = superPacket{} }

// segment writes the next segment to b and returns its length; 0 if b is too short for
// it. It is called only when a segment is left.
func (s *superPacket) segment(b []byte) int {
	size := min(s.size, len(s.pkt)-s.next)
	if s.hdr+size > len(b) {
		return 0
	}
	b = b[:s.hdr+size]
	copy(b, s.pkt[:s.hdr])
	copy(b[s.hdr:], s.pkt[s.next:s.next+size])
	last := s.next+size == len(s.pkt)
	if s.v6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Header))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(s.index))
		putIPv4Checksum(b[:s.l4])
	}
	l4 := b[s.l4:]
	field := l4[udpChecksum:]
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else {
		field = l4[tcpChecksum:]
		binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(s.next-s.hdr))
		if !last {
			l4[13] &^= tcpFIN | tcpPSH
		}
		if s.index > 0 {
			l4[13] &^= tcpCWR // said once (RFC 3168 section 6.1.2)
		}
	}
	native.PutUint16(field, 0)
	sum := ^fold(sumBytes(l4, s.sum+uint64(networkPort(uint16(len(l4))))))
	if sum == 0 && s.udp {
		sum = 0xffff // 0 is no checksum
	}
	native.PutUint16(field, sum)
	s.next += size
	s.index++
	if last {
		s.drop()
	}
	return len(b)
}
