package platform

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// refChecksum is the checksum of RFC 1071 of parts that each begin at an even octet.
func refChecksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		sum += uint32(refSums(p)[len(p)])
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// refPseudo is a packet's pseudo-header.
func refPseudo(p []byte, proto byte, n int) []byte {
	tail := []byte{0, proto, byte(n >> 8), byte(n)}
	if p[0]>>4 == 4 {
		return append(bytes.Clone(p[12:20]), tail...)
	}
	return append(bytes.Clone(p[8:40]), tail...)
}

// transport returns where the transport header is, of packets without options and
// extension headers.
func transport(p []byte) (l4 int, proto byte) {
	if p[0]>>4 == 4 {
		return 20, p[9]
	}
	return 40, p[6]
}

// verify checks the lengths and checksums of a TCP or UDP packet.
func verify(t testing.TB, p []byte) {
	t.Helper()
	l4, proto := transport(p)
	if p[0]>>4 == 4 {
		if got := int(binary.BigEndian.Uint16(p[2:])); got != len(p) {
			t.Fatalf("total length %d of a packet of %d octets", got, len(p))
		}
		if refChecksum(p[:20]) != 0xffff {
			t.Fatalf("the checksum of the IPv4 header is wrong: % x", p[:20])
		}
	} else if got := int(binary.BigEndian.Uint16(p[4:])); got != len(p)-40 {
		t.Fatalf("payload length %d of a packet of %d octets", got, len(p))
	}
	if proto == esp.ProtoUDP {
		if got := int(binary.BigEndian.Uint16(p[l4+4:])); got != len(p)-l4 {
			t.Fatalf("UDP length %d of %d octets", got, len(p)-l4)
		}
	}
	if refChecksum(refPseudo(p, proto, len(p)-l4), p[l4:]) != 0xffff {
		t.Fatalf("the checksum of protocol %d is wrong", proto)
	}
}

// packetSpec describes a packet to make.
type packetSpec struct {
	v6, udp bool
	flow    byte // addresses and ports
	id      uint16
	df      bool
	tos     byte
	ttl     byte
	seq     uint32
	flags   byte
	window  uint16
	options []byte // TCP, a multiple of 4
	payload []byte
}

func (s packetSpec) build() []byte {
	n, proto := udpHeader, byte(esp.ProtoUDP)
	if !s.udp {
		n, proto = tcpHeader+len(s.options), esp.ProtoTCP
	}
	n += len(s.payload)
	var p []byte
	if s.v6 {
		p = make([]byte, 40+n)
		p[0], p[1], p[6], p[7] = 0x60|s.tos>>4, s.tos<<4, proto, s.ttl
		binary.BigEndian.PutUint16(p[4:], uint16(n))
		copy(p[8:], []byte{0xfd, 23: s.flow, 24: 0xfd})
		p[39] = 1
	} else {
		p = make([]byte, 20+n)
		p[0], p[1], p[8], p[9] = 0x45, s.tos, s.ttl, proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], s.id)
		if s.df {
			p[6] = 0x40
		}
		copy(p[12:], []byte{10, 0, 0, s.flow, 10, 0, 1, 1})
		binary.BigEndian.PutUint16(p[10:], ^refChecksum(p[:20]))
	}
	l4 := p[len(p)-n:]
	binary.BigEndian.PutUint16(l4, 1000+uint16(s.flow))
	binary.BigEndian.PutUint16(l4[2:], 2000)
	field := l4[6:]
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(n))
		copy(l4[8:], s.payload)
	} else {
		field = l4[16:]
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		binary.BigEndian.PutUint32(l4[8:], 77)
		l4[12], l4[13] = byte(tcpHeader+len(s.options))<<2, s.flags
		binary.BigEndian.PutUint16(l4[14:], s.window)
		copy(l4[20:], s.options)
		copy(l4[20+len(s.options):], s.payload)
	}
	sum := ^refChecksum(refPseudo(p, proto, n), l4)
	if sum == 0 && s.udp {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
	return p
}

// super makes what the kernel would hand over instead of p and those that follow it.
func (s packetSpec) super(size int) (vnetHdr, []byte) {
	p := s.build()
	l4, proto := transport(p)
	h := vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoSize: uint16(size), csumStart: uint16(l4), csumField: tcpChecksum}
	switch {
	case s.udp:
		h.gso, h.csumField = unix.VIRTIO_NET_HDR_GSO_UDP_L4, udpChecksum
	case s.v6:
		h.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		h.gso = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	h.hdrLen = uint16(len(p) - len(s.payload))
	binary.BigEndian.PutUint16(p[l4+int(h.csumField):], refChecksum(refPseudo(p, proto, len(p)-l4)))
	return h, p
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// split cuts a super-packet up.
func split(t testing.TB, h vnetHdr, p []byte) [][]byte {
	t.Helper()
	var s superPacket
	if !s.parse(&h, p) {
		t.Fatalf("a super-packet was refused: %+v, % x", h, p[:min(80, len(p))])
	}
	var out [][]byte
	for s.more() {
		b := make([]byte, maxPacket)
		n := s.segment(b)
		if n == 0 {
			t.Fatal("a segment did not fit 64 KiB")
		}
		out = append(out, b[:n])
	}
	return out
}

func TestSplitMakesWholePackets(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name string
		s    packetSpec
	}{
		{"TCP over IPv4", packetSpec{id: 0xfffe, df: true, seq: 0xfffff000, flags: tcpACK | tcpPSH | tcpFIN | tcpCWR, options: make([]byte, 12)}},
		{"TCP over IPv6", packetSpec{v6: true, seq: 7, flags: tcpACK | tcpPSH | tcpFIN | tcpCWR}},
		{"UDP over IPv4", packetSpec{udp: true, id: 5}},
		{"UDP over IPv6", packetSpec{udp: true, v6: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.s
			s.ttl, s.window, s.tos, s.payload = 64, 500, 0xb9, random(r, 10*1000+1)
			h, p := s.super(1000)
			got := split(t, h, p)
			if len(got) != 11 {
				t.Fatalf("%d packets, want 11: ten of 1000 octets, one of one", len(got))
			}
			for i, g := range got {
				verify(t, g)
				w := s
				w.payload = s.payload[i*1000 : min(i*1000+1000, len(s.payload))]
				w.id, w.seq = s.id+uint16(i), s.seq+uint32(i*1000)
				if i > 0 {
					w.flags &^= tcpCWR
				}
				if i < 10 {
					w.flags &^= tcpFIN | tcpPSH
				}
				if !bytes.Equal(g, w.build()) {
					t.Fatalf("packet %d is\n% x\nwant\n% x", i, g[:60], w.build()[:60])
				}
			}
		})
	}
}

func TestSplitWalksExtensionHeaders(t *testing.T) {
	s := packetSpec{v6: true, udp: true, ttl: 9, payload: make([]byte, 250)}
	h, p := s.super(100)
	ext := []byte{esp.ProtoUDP, 1, 1, 12, 15: 0}
	p = append(append(bytes.Clone(p[:40]), ext...), p[40:]...)
	p[6] = 0 // hop-by-hop options
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	h.csumStart += 16
	got := split(t, h, p)
	if len(got) != 3 {
		t.Fatalf("%d packets, want 3", len(got))
	}
	for i, g := range got {
		n := len(g) - 56
		if !bytes.Equal(g[40:56], ext) || int(binary.BigEndian.Uint16(g[4:])) != 16+n ||
			refChecksum(refPseudo(g, esp.ProtoUDP, n), g[56:]) != 0xffff {
			t.Errorf("packet %d is wrong: % x", i, g)
		}
	}
}

func TestPartialChecksumIsCompleted(t *testing.T) {
	for _, s := range []packetSpec{
		{payload: []byte("hello")}, {v6: true, payload: []byte("x")},
		{udp: true, payload: []byte("hello")}, {udp: true, v6: true, payload: []byte("four")},
	} {
		h, p := s.super(0)
		h.gso, h.hdrLen = 0, 0
		if !complete(&h, p) {
			t.Fatalf("%+v was refused", h)
		}
		if !bytes.Equal(p, s.build()) {
			t.Errorf("got\n% x\nwant\n% x", p, s.build())
		}
	}
	p := []byte{1, 2, 3}
	if h := (vnetHdr{}); !complete(&h, p) || !bytes.Equal(p, []byte{1, 2, 3}) {
		t.Error("a packet that wants nothing was changed or refused")
	}
}

func TestLyingHeadersAreRefused(t *testing.T) {
	tcp := packetSpec{payload: make([]byte, 3000)}
	udp := packetSpec{udp: true, v6: true, payload: make([]byte, 3000)}
	for _, c := range []struct {
		name string
		s    packetSpec
		lie  func(h *vnetHdr, p []byte)
	}{
		{"no gso_size", tcp, func(h *vnetHdr, _ []byte) { h.gsoSize = 0 }},
		{"hdr_len beyond the packet", tcp, func(h *vnetHdr, p []byte) { h.hdrLen = uint16(len(p) + 1) }},
		{"unknown gso_type", tcp, func(h *vnetHdr, _ []byte) { h.gso = 7 }},
		{"UDP fragmentation", udp, func(h *vnetHdr, _ []byte) { h.gso = unix.VIRTIO_NET_HDR_GSO_UDP }},
		{"ECN of nothing", tcp, func(h *vnetHdr, _ []byte) { h.gso = unix.VIRTIO_NET_HDR_GSO_ECN }},
		{"no checksum wanted", tcp, func(h *vnetHdr, _ []byte) { h.flags = 0 }},
		{"csum_start beyond the packet", tcp, func(h *vnetHdr, p []byte) { h.csumStart = uint16(len(p)) }},
		{"csum_start inside the IP header", tcp, func(h *vnetHdr, p []byte) { h.csumStart = 10 }},
		{"csum_start behind the transport header", udp, func(h *vnetHdr, p []byte) { h.csumStart += 8 }},
		{"csum_offset of the other protocol", udp, func(h *vnetHdr, p []byte) { h.csumField = tcpChecksum }},
		{"csum_offset far away", tcp, func(h *vnetHdr, p []byte) { h.csumField = 0xffff }},
		{"TCP over the other IP", tcp, func(h *vnetHdr, p []byte) { h.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6 }},
		{"UDP called TCP", udp, func(h *vnetHdr, p []byte) { h.gso, h.csumField = unix.VIRTIO_NET_HDR_GSO_TCPV6, tcpChecksum }},
		{"TCP called UDP", tcp, func(h *vnetHdr, p []byte) { h.gso, h.csumField = unix.VIRTIO_NET_HDR_GSO_UDP_L4, udpChecksum }},
		{"TCP header too short", tcp, func(h *vnetHdr, p []byte) { p[32] = 0x40 }},
		{"TCP header beyond the packet", packetSpec{payload: make([]byte, 8)}, func(h *vnetHdr, p []byte) { p[32] = 0xf0 }},
		{"a fragment", tcp, func(h *vnetHdr, p []byte) { p[7] = 1 }},
		{"total length", tcp, func(h *vnetHdr, p []byte) { p[3]++ }},
		{"payload length", udp, func(h *vnetHdr, p []byte) { p[5]++ }},
		{"no IP", tcp, func(h *vnetHdr, p []byte) { p[0] = 0x55 }},
	} {
		h, p := c.s.super(1000)
		c.lie(&h, p)
		var s superPacket
		if s.parse(&h, p) || s.more() {
			t.Errorf("%s: the super-packet was taken", c.name)
		}
	}
	for _, c := range []struct {
		name         string
		start, field uint16
		hdrLen       uint16
		gso          uint8
	}{
		{"start at the end", 100, 0, 0, 0},
		{"start beyond", 65535, 65535, 0, 0},
		{"field over the end", 0, 99, 0, 0},
		{"hdr_len", 20, 16, 101, 0},
		{"ECN alone", 20, 16, 0, unix.VIRTIO_NET_HDR_GSO_ECN},
	} {
		h := vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso: c.gso, hdrLen: c.hdrLen, csumStart: c.start, csumField: c.field}
		if complete(&h, make([]byte, 100)) {
			t.Errorf("%s: the packet was taken", c.name)
		}
	}
}

// FuzzSplit gives any header and packet to what the reader does with them.
func FuzzSplit(f *testing.F) {
	for _, s := range []packetSpec{
		{payload: make([]byte, 300), flags: tcpACK | tcpPSH, options: make([]byte, 12)},
		{v6: true, payload: make([]byte, 300)},
		{udp: true, payload: make([]byte, 300)},
		{udp: true, v6: true, payload: make([]byte, 1)},
	} {
		h, p := s.super(100)
		b := make([]byte, vnetHdrSize)
		h.encode(b)
		f.Add(append(b, p...), uint16(1400))
		h.gso = 0
		h.encode(b)
		f.Add(append(b, p...), uint16(1400))
	}
	v := new(vnetReader)
	f.Fuzz(func(t *testing.T, b []byte, room uint16) {
		if len(b) < vnetHdrSize || len(b) > len(v.big) {
			return
		}
		// As readv does.
		copy(v.hdr[:], b)
		pkt := b[vnetHdrSize:]
		buf := make([]byte, room)
		n := copy(buf, pkt)
		if n < len(pkt) {
			copy(v.big[n:], pkt[n:])
		}
		got := v.take(len(b), buf)
		if got > len(buf) || got > len(pkt) {
			t.Fatalf("a packet of %d octets in a buffer of %d", got, len(buf))
		}
		if (got == 0) != v.rest.more() {
			t.Fatalf("take returned %d, and more is %v", got, v.rest.more())
		}
		payload, hdr := 0, v.rest.hdr
		for v.rest.more() {
			k := v.rest.segment(buf)
			if k == 0 {
				v.rest.drop()
				return
			}
			if k < hdr || k > len(buf) {
				t.Fatalf("a segment of %d octets, headers of %d, in a buffer of %d", k, hdr, len(buf))
			}
			payload += k - hdr
			if l4, proto := transport(buf); buf[0] == 0x45 && (proto == esp.ProtoTCP || proto == esp.ProtoUDP) {
				if refChecksum(buf[:l4]) != 0xffff || int(binary.BigEndian.Uint16(buf[2:])) != k {
					t.Fatalf("IPv4 header is wrong: % x", buf[:20])
				}
			}
		}
		if got == 0 && payload != len(pkt)-hdr {
			t.Fatalf("%d octets of payload came out of %d", payload, len(pkt)-hdr)
		}
	})
}
