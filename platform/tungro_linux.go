package platform

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// Coalescing is the kernel's segmentation the other way round, and follows its own rules
// for it (GRO): the packets that are joined are those that segmentation would make out of
// the joined one, octet by octet. The only exception is the IPv4 identification of
// packets that may not be fragmented, which means nothing there (RFC 6864 section 4.1):
// they are also joined when all of them have the same one.
//
// Order inside a flow is kept: a packet joins only the newest group of its flow. A packet
// whose flow cannot be told is a barrier that nothing is moved across.

const (
	// groWindow is how many packets are looked at together, at most 255. A group of full
	// segments ends at 64 KiB earlier; more small ones would gain nothing.
	groWindow = 128

	maxPacket = 65535 // octets of an IP packet
)

// groSegment is what a packet looks like to the coalescer.
type groSegment struct {
	kind    groKind
	v6      bool
	udp     bool
	push    bool
	l4, hdr int    // where the transport header starts, octets of all headers
	payload int    // octets behind them
	key     uint32 // equal within a flow, and rarely between flows
}

type groKind uint8

const (
	groBarrier groKind = iota // not known to be of any flow
	groAlone                  // of a flow, and to be written as it is
	groData                   // may be joined with its neighbours
)

// groGroup are packets of a window to be written together.
type groGroup struct {
	groSegment
	first, last uint8 // packets; the way between goes through groPlan.next
	n           int
	open        bool // takes another packet
	verified    bool // the first packet's checksums are right
	fixedID     bool // IPv4: all identifications are equal
	size        int  // payload of the first packet
	total       int  // octets of the joined packet
}

// groPlan groups the packets of one window.
type groPlan struct {
	tcp, udp bool // what to join
	groups   [groWindow]groGroup
	n        int
	barrier  int // no packet joins a group before this one
	next     [groWindow]uint8
}

// plan groups the packets bufs[i][off:], at most groWindow of them. Groups stand in the
// order in which they are to be written.
func (g *groPlan) plan(bufs [][]byte, off int) {
	g.n, g.barrier = 0, 0
	for i := range bufs {
		pkt := bufs[i][min(off, len(bufs[i])):]
		var s groSegment
		s.look(pkt)
		if s.kind != groBarrier {
			if to := g.find(&s, pkt, bufs, off); to != nil {
				if to.open && s.kind == groData && to.joins(&s, pkt, bufs, off) {
					g.next[to.last] = uint8(i)
					to.last = uint8(i)
					to.n++
					to.total += s.payload
					to.push = s.push
					to.open = s.payload == to.size && !s.push
					continue
				}
				to.open = false
			}
		}
		wanted := s.udp && g.udp || !s.udp && g.tcp
		g.groups[g.n] = groGroup{
			groSegment: s, first: uint8(i), last: uint8(i), n: 1,
			open: wanted && s.kind == groData && !s.push, size: s.payload, total: len(pkt),
		}
		g.n++
		if s.kind == groBarrier {
			g.barrier = g.n
		}
	}
}

// look says what pkt is. Whether its checksums are right is asked when it is to be joined.
func (s *groSegment) look(pkt []byte) {
	at := ipv4Header
	if len(pkt) > 0 && pkt[0]>>4 == 6 {
		at = ipv6Header
	}
	v6, proto, l4 := transportAt(pkt, at)
	if l4 == 0 || proto != esp.ProtoTCP && proto != esp.ProtoUDP {
		return
	}
	s.v6, s.l4, s.udp = v6, l4, proto == esp.ProtoUDP
	t := pkt[l4:]
	if len(t) < udpHeader {
		return
	}
	s.key = native.Uint32(t) ^ native.Uint32(pkt[l4-8:]) ^ native.Uint32(pkt[l4-4:])
	s.kind = groAlone
	if s.udp {
		s.hdr = l4 + udpHeader
		s.payload = len(t) - udpHeader
		// Without a checksum it must stay without.
		if int(binary.BigEndian.Uint16(t[4:])) == len(t) && s.payload > 0 && native.Uint16(t[udpChecksum:]) != 0 {
			s.kind = groData
		}
		return
	}
	if len(t) < tcpHeader {
		s.kind = groBarrier
		return
	}
	n := int(t[12]>>4) * 4
	s.hdr, s.payload = l4+n, len(t)-n
	s.push = t[13]&tcpPSH != 0
	flags := t[13] &^ tcpPSH
	// 0xffff, the other zero, would come back as 0.
	if n >= tcpHeader && s.payload > 0 && (flags == tcpACK || flags == tcpACK|tcpECE) && native.Uint16(t[tcpChecksum:]) != 0xffff {
		s.kind = groData
	}
}

// find returns the newest group of the packet's flow.
func (g *groPlan) find(s *groSegment, pkt []byte, bufs [][]byte, off int) *groGroup {
	for i := g.n - 1; i >= g.barrier; i-- {
		to := &g.groups[i]
		if to.key == s.key && to.v6 == s.v6 && to.udp == s.udp && to.l4 == s.l4 {
			head := bufs[to.first][off:]
			addresses := ipv4Header - 8
			if s.v6 {
				addresses = ipv6Header - 32
			}
			if bytes.Equal(head[addresses:s.l4+4], pkt[addresses:s.l4+4]) { // and ports
				return to
			}
		}
	}
	return nil
}

// joins tells whether pkt, which is of the group's flow, is what segmentation would
// put behind the group's last packet.
func (to *groGroup) joins(s *groSegment, pkt []byte, bufs [][]byte, off int) bool {
	head := bufs[to.first][off:]
	if s.hdr != to.hdr || s.payload > to.size || to.total+s.payload > maxPacket {
		return false
	}
	fixedID := to.fixedID
	if s.v6 {
		// Version, class and flow label; next header is known, hop limit.
		if !bytes.Equal(head[:4], pkt[:4]) || head[7] != pkt[7] {
			return false
		}
	} else {
		// Version and class; flags; time to live.
		if head[1] != pkt[1] || head[6] != pkt[6] || head[8] != pkt[8] {
			return false
		}
		id, first := binary.BigEndian.Uint16(pkt[4:]), binary.BigEndian.Uint16(head[4:])
		if to.n == 1 {
			fixedID = id == first && pkt[6]&0x40 != 0
		}
		if want := first + uint16(to.n); !fixedID && id != want || fixedID && id != first {
			return false
		}
	}
	if !s.udp {
		a, b := head[s.l4:s.hdr], pkt[s.l4:s.hdr]
		seq := binary.BigEndian.Uint32(a[4:]) + uint32(to.total-to.hdr)
		// Acknowledgement number and data offset; flags; window; urgent pointer, options.
		if binary.BigEndian.Uint32(b[4:]) != seq || !bytes.Equal(a[8:13], b[8:13]) || (a[13]^b[13])&^tcpPSH != 0 ||
			!bytes.Equal(a[14:16], b[14:16]) || !bytes.Equal(a[18:], b[18:]) {
			return false
		}
	}
	// The kernel takes the joined packet's checksum for right, so a wrong one must not
	// get into it.
	if !to.verified {
		if !checksumsRight(&to.groSegment, head) {
			to.open = false
			return false
		}
		to.verified = true
	}
	if !checksumsRight(s, pkt) {
		return false
	}
	to.fixedID = fixedID
	return true
}

// checksumsRight verifies the checksums of both headers. An IPv4 header without options
// has the one checksum that segmentation will compute again.
func checksumsRight(s *groSegment, pkt []byte) bool {
	if !s.v6 && (fold(sumBytes(pkt[:s.l4], 0)) != 0xffff || native.Uint16(pkt[10:]) == 0xffff) {
		return false
	}
	proto := uint8(esp.ProtoTCP)
	if s.udp {
		proto = esp.ProtoUDP
	}
	return fold(sumBytes(pkt[s.l4:], sumPseudoHeader(pkt, s.v6, proto, len(pkt)-s.l4))) == 0xffff
}

// groHeaderSize is the most that header writes: the virtio header, IPv6 and TCP with options.
const groHeaderSize = vnetHdrSize + ipv6Header + 60

// header writes the virtio header and the headers of the joined packet to b, of
// groHeaderSize octets, and returns their length. pkt is the group's first packet.
func (to *groGroup) header(b, pkt []byte) int {
	h := vnetHdr{
		flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso: unix.VIRTIO_NET_HDR_GSO_TCPV4,
		hdrLen: uint16(to.hdr), gsoSize: uint16(to.size), csumStart: uint16(to.l4), csumField: tcpChecksum,
	}
	p := b[vnetHdrSize:]
	copy(p, pkt[:to.hdr])
	n := to.total - to.l4
	if to.v6 {
		h.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
		binary.BigEndian.PutUint16(p[4:], uint16(to.total-ipv6Header))
	} else {
		binary.BigEndian.PutUint16(p[2:], uint16(to.total))
		putIPv4Checksum(p[:to.l4])
	}
	t, proto := p[to.l4:], uint8(esp.ProtoTCP)
	if to.udp {
		proto = esp.ProtoUDP
		h.gso, h.csumField = unix.VIRTIO_NET_HDR_GSO_UDP_L4, udpChecksum
		binary.BigEndian.PutUint16(t[4:], uint16(n))
	} else if to.push {
		t[13] |= tcpPSH
	}
	native.PutUint16(t[h.csumField:], fold(sumPseudoHeader(p, to.v6, proto, n)))
	h.encode(b)
	return vnetHdrSize + to.hdr
}
