//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// class says what a frame on the WAN is.
type class uint8

const (
	classLink      class = iota // ARP, neighbour discovery, multicast listener reports
	classIKE                    // UDP 500, or 4500 behind the non-ESP marker
	classESP                    // IP protocol 50
	classUDPESP                 // ESP in UDP 4500
	classKeepalive              // one octet 0xff in UDP 4500
	classError                  // ICMP error about one of the above
	classAH                     // IP protocol 51, which hides nothing
	classClear                  // anything else
)

var classNames = [...]string{"link", "IKE", "ESP", "ESP-in-UDP", "keepalive", "ICMP error", "AH", "clear"}

func (c class) String() string { return classNames[c] }

// The exchanges of RFC 7296 section 3.1, and two notify types, as the bench reads them.
const (
	exInit, exAuth, exChild, exInfo = 34, 35, 36, 37

	notifyInvalidMajor = 5
	notifyInvalidKE    = 17
	notifyCookie       = 16390
)

// packet is a frame and what the bench makes of it.
type packet struct {
	frame
	class    class
	what     string // in words
	src, dst netip.Addr
	sport    uint16
	dport    uint16
	first    bool // not a later fragment
	spi, seq uint32
	ike      ikeHeader
}

// ikeHeader is what stands in clear of an IKE message.
type ikeHeader struct {
	spiI, spiR uint64
	version    uint8
	exchange   uint8
	response   bool
	initiator  bool // sent by the original initiator
	id         uint32
	notifies   []uint16 // of IKE_SA_INIT
	ke         uint16   // group of the KE payload of IKE_SA_INIT
	part       uint16   // Fragment Number and Total Fragments (RFC 7383 section 2.5);
	parts      uint16   // 0 of a message in one piece
}

// fromGateway tells whether the frame came to wan on that link, judged by its source: on b0
// everything that wan forwards has another one. Behind a NAT this holds as well.
func (p packet) fromGateway(link string) bool {
	if link == "a0" {
		return p.src == gwA4 || p.src == gwA6
	}
	return p.src == gwB4 || p.src == gwB6
}

// from tells which side's gateway a packet comes from, 0 for wan itself.
func (p packet) from() byte {
	for _, prefix := range []string{lanA4, lanA6, "198.51.100.1/32", "2001:db8:a::1/128"} {
		if netip.MustParsePrefix(prefix).Contains(p.src) {
			return 'a'
		}
	}
	for _, prefix := range []string{lanB4, lanB6, lanC4, "203.0.113.1/32", "2001:db8:b::1/128"} {
		if netip.MustParsePrefix(prefix).Contains(p.src) {
			return 'b'
		}
	}
	return 0
}

// fragment identifies the datagram that a fragment belongs to.
type fragment struct {
	src, dst netip.Addr
	id       uint32
}

// classify tells for each frame what it is.
func classify(frames []frame) wire {
	w := make(wire, 0, len(frames))
	known := map[fragment]packet{}
	for _, f := range frames {
		p := packet{frame: f, class: classClear, first: true}
		if len(f.data) < 14 {
			p.what = "a frame of less than 14 octets"
			w = append(w, p)
			continue
		}
		switch t := binary.BigEndian.Uint16(f.data[12:]); t {
		case 0x0806:
			p.class, p.what = classLink, "ARP"
		case 0x0800:
			p.ipv4(f.data[14:], known)
		case 0x86dd:
			p.ipv6(f.data[14:], known)
		default:
			p.what = fmt.Sprintf("Ethernet type %04x", t)
		}
		w = append(w, p)
	}
	return w
}

// ipv4 reads a packet that starts with an IPv4 header.
func (p *packet) ipv4(b []byte, known map[fragment]packet) {
	if len(b) < 20 || b[0]>>4 != 4 || len(b) < int(b[0]&15)*4 {
		p.what = "a malformed IPv4 packet"
		return
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	id := fragment{p.src, p.dst, uint32(binary.BigEndian.Uint16(b[4:]))}
	frag := binary.BigEndian.Uint16(b[6:])
	p.fragmented(b[int(b[0]&15)*4:], b[9], frag&0x1fff != 0, frag&0x2000 != 0, id, known)
}

// ipv6 reads a packet that starts with an IPv6 header.
func (p *packet) ipv6(b []byte, known map[fragment]packet) {
	if len(b) < 40 || b[0]>>4 != 6 {
		p.what = "a malformed IPv6 packet"
		return
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	next, b := b[6], b[40:]
	for next == 0 && len(b) >= 8 { // hop-by-hop options stand before listener reports
		n := (int(b[1]) + 1) * 8
		if len(b) < n {
			break
		}
		next, b = b[0], b[n:]
	}
	if next != 44 || len(b) < 8 {
		p.transport(b, next)
		return
	}
	off := binary.BigEndian.Uint16(b[2:])
	id := fragment{p.src, p.dst, binary.BigEndian.Uint32(b[4:])}
	p.fragmented(b[8:], b[0], off&0xfff8 != 0, off&1 != 0, id, known)
}

// fragmented gives later fragments the class of the first one.
func (p *packet) fragmented(b []byte, proto uint8, later, more bool, id fragment, known map[fragment]packet) {
	if !later {
		p.transport(b, proto)
		if more {
			known[id] = *p
		}
		return
	}
	p.first = false
	head, ok := known[id]
	if !ok {
		p.what = fmt.Sprintf("%v > %v: a fragment without its first one, protocol %d", p.src, p.dst, proto)
		return
	}
	p.class, p.what, p.spi, p.seq = head.class, head.what+", later fragment", head.spi, head.seq
}

// transport reads what stands behind the IP header.
func (p *packet) transport(b []byte, proto uint8) {
	p.what = fmt.Sprintf("%v > %v: protocol %d", p.src, p.dst, proto)
	switch proto {
	case 17:
		p.udp(b)
	case 50:
		p.esp(b, classESP)
	case 51:
		if len(b) >= 12 {
			p.esp(b[4:], classAH)
		}
	case 1: // ICMP: errors are types 3, 11 and 12 and carry the packet that they are about
		if len(b) >= 8 && slices.Contains([]uint8{3, 11, 12}, b[0]) {
			p.icmpError(b[8:], packet.ipv4Inner)
		} else if len(b) > 0 {
			p.what = fmt.Sprintf("%v > %v: ICMP type %d", p.src, p.dst, b[0])
		}
	case 58:
		switch {
		case len(b) < 8:
		case b[0] >= 133 && b[0] <= 137, b[0] >= 130 && b[0] <= 132, b[0] == 143:
			p.class, p.what = classLink, "neighbour discovery or listener report"
		case b[0] < 128:
			p.icmpError(b[8:], packet.ipv6Inner)
		default:
			p.what = fmt.Sprintf("%v > %v: ICMPv6 type %d", p.src, p.dst, b[0])
		}
	}
}

func (p packet) ipv4Inner(b []byte) packet { p.ipv4(b, map[fragment]packet{}); return p }
func (p packet) ipv6Inner(b []byte) packet { p.ipv6(b, map[fragment]packet{}); return p }

// icmpError judges an ICMP error by the packet in it: one about a clear packet tells that
// there was a clear packet.
func (p *packet) icmpError(b []byte, read func(packet, []byte) packet) {
	inner := read(packet{class: classClear, first: true}, b)
	if inner.class == classClear {
		p.what = fmt.Sprintf("%v > %v: an ICMP error about %s", p.src, p.dst, inner.what)
		return
	}
	p.class, p.what = classError, "ICMP error about "+inner.class.String()
}

// udp reads a UDP header: only the ports of IKE are not clear.
func (p *packet) udp(b []byte) {
	if len(b) < 8 {
		return
	}
	p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	p.what = fmt.Sprintf("%v > %v: UDP %d > %d", p.src, p.dst, p.sport, p.dport)
	b = b[8:]
	switch {
	case p.sport == 500 || p.dport == 500:
		p.ikeMessage(b)
	case p.sport == 4500 || p.dport == 4500:
		switch {
		case len(b) == 1 && b[0] == 0xff:
			p.class = classKeepalive
		case len(b) >= 4 && binary.BigEndian.Uint32(b) == 0:
			p.ikeMessage(b[4:])
		default:
			p.esp(b, classUDPESP)
		}
	}
}

// esp reads the ESP header (RFC 4303 section 2).
func (p *packet) esp(b []byte, c class) {
	if len(b) < 8 {
		return
	}
	p.spi, p.seq = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if p.spi >= 256 && p.seq > 0 {
		p.class = c
		p.what += fmt.Sprintf(", ESP %08x #%d", p.spi, p.seq)
	}
}

// ikeMessage reads the IKE header (RFC 7296 section 3.1) and the payloads of IKE_SA_INIT.
func (p *packet) ikeMessage(b []byte) {
	if len(b) < 28 || b[17]>>4 != 2 && b[17]>>4 != 1 {
		return
	}
	h := &p.ike
	h.spiI, h.spiR = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	h.version, h.exchange = b[17], b[18]
	h.initiator, h.response = b[19]&0x08 != 0, b[19]&0x20 != 0
	h.id = binary.BigEndian.Uint32(b[20:])
	p.class = classIKE
	p.what += fmt.Sprintf(", IKE exchange %d", h.exchange)
	if b[16] == 53 && len(b) >= 36 {
		h.part, h.parts = binary.BigEndian.Uint16(b[32:]), binary.BigEndian.Uint16(b[34:])
	}
	if h.exchange != exInit {
		return
	}
	for next, b := b[16], b[28:]; next != 0 && len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return
		}
		switch {
		case next == 41 && n >= 8:
			h.notifies = append(h.notifies, binary.BigEndian.Uint16(b[6:]))
		case next == 34 && n >= 8:
			h.ke = binary.BigEndian.Uint16(b[4:])
		}
		next, b = b[0], b[n:]
	}
}

func TestClassifierKnowsClearFromProtected(t *testing.T) {
	eth := func(typ uint16, b []byte) frame {
		d := append(make([]byte, 12), byte(typ>>8), byte(typ))
		return frame{link: "a0", data: append(d, b...), wire: 14 + len(b)}
	}
	ip4 := func(proto byte, frag uint16, payload []byte) []byte {
		h := []byte{0x45, 0, 0, 0, 0, 7, byte(frag >> 8), byte(frag), 64, proto, 0, 0, 198, 51, 100, 1, 203, 0, 113, 1}
		return append(h, payload...)
	}
	ip6 := func(next byte, payload []byte) []byte {
		h := append([]byte{0x60, 0, 0, 0, 0, 0, next, 64}, gwA6.AsSlice()...)
		return append(append(h, gwB6.AsSlice()...), payload...)
	}
	udp := func(port uint16, payload ...byte) []byte {
		return append([]byte{0x30, 0x39, byte(port >> 8), byte(port), 0, 0, 0, 0}, payload...)
	}
	espBytes := []byte{1, 2, 3, 4, 0, 0, 0, 9, 0xaa, 0xbb}
	ike := make([]byte, 28)
	ike[17], ike[18] = 0x20, exInfo
	icmp := func(b []byte) []byte { return append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, b...) }
	for _, c := range []struct {
		name string
		f    frame
		want class
	}{
		{"ARP", eth(0x0806, nil), classLink},
		{"neighbour solicitation", eth(0x86dd, ip6(58, []byte{135, 0, 0, 0, 0, 0, 0, 0})), classLink},
		{"listener report", eth(0x86dd, ip6(0, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, 143, 0, 0, 0, 0, 0, 0, 1))), classLink},
		{"raw ESP", eth(0x0800, ip4(50, 0, espBytes)), classESP},
		{"raw ESP, IPv6", eth(0x86dd, ip6(50, espBytes)), classESP},
		{"first fragment of ESP", eth(0x0800, ip4(50, 0x2000, espBytes)), classESP},
		{"its later fragment", eth(0x0800, ip4(50, 0x00b9, []byte{9, 9})), classESP},
		{"ESP in UDP", eth(0x0800, ip4(17, 0, udp(4500, espBytes...))), classUDPESP},
		{"keepalive", eth(0x0800, ip4(17, 0, udp(4500, 0xff))), classKeepalive},
		{"IKE on 500", eth(0x0800, ip4(17, 0, udp(500, ike...))), classIKE},
		{"IKE on 4500", eth(0x86dd, ip6(17, udp(4500, append(make([]byte, 4), ike...)...))), classIKE},
		{"error about ESP", eth(0x0800, ip4(1, 0, icmp(ip4(50, 0, espBytes)))), classError},
		{"error about clear", eth(0x0800, ip4(1, 0, icmp(ip4(6, 0, espBytes)))), classClear},
		{"ping", eth(0x0800, ip4(1, 0, []byte{8, 0, 0, 0, 0, 0, 0, 0})), classClear},
		{"ping, IPv6", eth(0x86dd, ip6(58, []byte{128, 0, 0, 0, 0, 0, 0, 0})), classClear},
		{"Modbus", eth(0x0800, ip4(6, 0, []byte{0, 1, 1, 0xf6})), classClear},
		{"SNMP", eth(0x0800, ip4(17, 0, udp(161, 0x30))), classClear},
		{"no IKE on 500", eth(0x0800, ip4(17, 0, udp(500, 'h', 'e', 'l', 'l', 'o'))), classClear},
		{"SPI of less than 256", eth(0x0800, ip4(50, 0, []byte{0, 0, 0, 200, 0, 0, 0, 1})), classClear},
		{"sequence number 0", eth(0x0800, ip4(50, 0, []byte{1, 0, 0, 200, 0, 0, 0, 0})), classClear},
		{"another Ethernet type", eth(0x88cc, nil), classClear},
	} {
		frames := []frame{c.f}
		if c.name == "its later fragment" {
			frames = []frame{eth(0x0800, ip4(50, 0x2000, espBytes)), c.f}
		}
		w := classify(frames)
		if got := w[len(w)-1]; got.class != c.want {
			t.Errorf("%s: taken for %v (%s), want %v", c.name, got.class, got.what, c.want)
		}
	}
	if w := classify([]frame{eth(0x0800, ip4(50, 0x00b9, []byte{9, 9}))}); w[0].class != classClear {
		t.Errorf("a later fragment whose first one was not seen: taken for %v, want clear", w[0].class)
	}
}
