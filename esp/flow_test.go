package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

// ipv4Packet returns an IPv4 packet without options, 10.1.0.1 to 10.2.0.2, with a
// payload of n octets that begins with the ports 1234 and 502. frag is its flags and offset.
func ipv4Packet(proto uint8, frag uint16, n int) []byte {
	pkt := make([]byte, 20+n)
	pkt[0] = 0x45
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(pkt[6:], frag)
	pkt[8], pkt[9] = 64, proto
	copy(pkt[12:], []byte{10, 1, 0, 1, 10, 2, 0, 2})
	copy(pkt[20:], []byte{1234 >> 8, 1234 & 255, 502 >> 8, 502 & 255})
	return pkt
}

// withOptions inserts n octets of IPv4 options, a multiple of 4.
func withOptions(pkt []byte, n int) []byte {
	out := append(append(append([]byte{}, pkt[:20]...), make([]byte, n)...), pkt[20:]...)
	out[0] = 0x40 | byte(5+n/4)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return out
}

// ext is one IPv6 extension header: its number and its octets, whose first is filled in.
type ext struct {
	proto uint8
	body  []byte
}

// ipv6Packet returns an IPv6 packet fd00:1::1 to fd00:2::2 with extension headers and a
// payload.
func ipv6Packet(proto uint8, payload []byte, exts ...ext) []byte {
	pkt := make([]byte, 40)
	pkt[0], pkt[7] = 0x60, 64
	copy(pkt[8:], []byte{0xfd, 0, 0, 1})
	copy(pkt[24:], []byte{0xfd, 0, 0, 2})
	pkt[23], pkt[39] = 1, 2
	at := 6
	for _, e := range exts {
		pkt[at] = e.proto
		at = len(pkt)
		pkt = append(pkt, e.body...)
	}
	pkt[at] = proto
	pkt = append(pkt, payload...)
	binary.BigEndian.PutUint16(pkt[4:], uint16(len(pkt)-40))
	return pkt
}

// opts is an extension header with a length octet, of 8+8*n octets.
func opts(proto uint8, n int) ext {
	body := make([]byte, 8+8*n)
	body[1] = byte(n)
	return ext{proto, body}
}

// fragHeader is a fragment header.
func fragHeader(offset uint16, more bool) ext {
	body := make([]byte, 8)
	binary.BigEndian.PutUint16(body[2:], offset<<3)
	if more {
		body[3] |= 1
	}
	return ext{ProtoFragment, body}
}

var ports = []byte{1234 >> 8, 1234 & 255, 502 >> 8, 502 & 255, 0, 8, 0, 0}

func TestParseFlow(t *testing.T) {
	v4 := [2]string{"10.1.0.1", "10.2.0.2"}
	v6 := [2]string{"fd00:1::1", "fd00:2::2"}
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 0}
	withData := func(pkt []byte, at int, b ...byte) []byte { copy(pkt[at:], b); return pkt }
	for _, c := range []struct {
		name     string
		pkt      []byte
		addrs    [2]string
		proto    uint8
		src, dst uint16
		noPorts  bool
	}{
		{"TCP", ipv4Packet(ProtoTCP, 0, 20), v4, ProtoTCP, 1234, 502, false},
		{"TCP, don't fragment", ipv4Packet(ProtoTCP, 0x4000, 20), v4, ProtoTCP, 1234, 502, false},
		{"UDP with options", withOptions(ipv4Packet(ProtoUDP, 0, 8), 24), v4, ProtoUDP, 1234, 502, false},
		{"UDP with the most options", withOptions(ipv4Packet(ProtoUDP, 0, 8), 40), v4, ProtoUDP, 1234, 502, false},
		{"SCTP", ipv4Packet(ProtoSCTP, 0, 12), v4, ProtoSCTP, 1234, 502, false},
		{"DCCP", ipv4Packet(ProtoDCCP, 0, 12), v4, ProtoDCCP, 1234, 502, false},
		{"UDP-Lite", ipv4Packet(ProtoUDPLite, 0, 8), v4, ProtoUDPLite, 1234, 502, false},
		{"first fragment", ipv4Packet(ProtoUDP, 0x2000, 8), v4, ProtoUDP, 1234, 502, false},
		{"later fragment", ipv4Packet(ProtoUDP, 0x2001, 8), v4, ProtoUDP, 0, 0, true},
		{"last fragment", ipv4Packet(ProtoUDP, 0x00b9, 8), v4, ProtoUDP, 0, 0, true},
		{"first fragment without whole ports", ipv4Packet(ProtoTCP, 0x2000, 3), v4, ProtoTCP, 0, 0, true},
		{"ICMP echo", withData(ipv4Packet(ProtoICMP, 0, 8), 20, 8, 0), v4, ProtoICMP, 8 << 8, 8 << 8, false},
		{"ICMP fragmentation needed", withData(ipv4Packet(ProtoICMP, 0, 8), 20, 3, 4), v4, ProtoICMP, 3<<8 | 4, 3<<8 | 4, false},
		{"GRE", ipv4Packet(ProtoGRE, 0, 8), v4, ProtoGRE, 0, 0, true},
		{"ESP inside", ipv4Packet(ProtoESP, 0, 8), v4, ProtoESP, 0, 0, true},
		{"AH inside", ipv4Packet(ProtoAH, 0, 8), v4, ProtoAH, 0, 0, true},
		{"no payload", ipv4Packet(ProtoESP, 0, 0), v4, ProtoESP, 0, 0, true},
		{"octets behind the packet", append(ipv4Packet(ProtoTCP, 0, 20), 1, 2, 3), v4, ProtoTCP, 1234, 502, false},

		{"TCP over IPv6", ipv6Packet(ProtoTCP, ports), v6, ProtoTCP, 1234, 502, false},
		{"ICMPv6", ipv6Packet(ProtoICMPv6, []byte{128, 0, 0, 0}), v6, ProtoICMPv6, 128 << 8, 128 << 8, false},
		{"ICMPv6 packet too big", ipv6Packet(ProtoICMPv6, []byte{2, 0, 0, 0}), v6, ProtoICMPv6, 2 << 8, 2 << 8, false},
		{"mobility header", ipv6Packet(ProtoMobility, []byte{59, 0, 5, 0, 0, 0, 0, 0}), v6, ProtoMobility, 5 << 8, 5 << 8, false},
		{"hop-by-hop, routing, destination options", ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0), opts(ProtoRouting, 2), opts(ProtoDstOpts, 1)), v6, ProtoUDP, 1234, 502, false},
		{"a long option", ipv6Packet(ProtoUDP, ports, opts(ProtoDstOpts, 255)), v6, ProtoUDP, 1234, 502, false},
		{"first fragment", ipv6Packet(ProtoUDP, ports, fragHeader(0, true)), v6, ProtoUDP, 1234, 502, false},
		{"atomic fragment", ipv6Packet(ProtoUDP, ports, fragHeader(0, false)), v6, ProtoUDP, 1234, 502, false},
		{"later fragment", ipv6Packet(ProtoUDP, ports, fragHeader(1, true)), v6, ProtoUDP, 0, 0, true},
		{"last fragment behind options", ipv6Packet(ProtoTCP, ports, opts(ProtoHopByHop, 0), fragHeader(185, false)), v6, ProtoTCP, 0, 0, true},
		{"later fragment of options", ipv6Packet(ProtoDstOpts, echo, fragHeader(1, false)), v6, ProtoDstOpts, 0, 0, true},
		{"first fragment that ends too early", ipv6Packet(ProtoUDP, ports[:2], fragHeader(0, true)), v6, ProtoUDP, 0, 0, true},
		{"no next header", ipv6Packet(ProtoNoNext, nil), v6, ProtoNoNext, 0, 0, true},
		{"ESP over IPv6", ipv6Packet(ProtoESP, echo), v6, ProtoESP, 0, 0, true},
		{"AH over IPv6 hides the rest", ipv6Packet(ProtoAH, bytes.Repeat(echo, 4)), v6, ProtoAH, 0, 0, true},
		{"seven headers", ipv6Packet(ProtoTCP, ports, opts(0, 0), opts(60, 0), opts(60, 0), opts(60, 0), opts(60, 0), opts(60, 0), opts(60, 0)), v6, ProtoTCP, 1234, 502, false},
	} {
		for _, outbound := range []bool{true, false} {
			f := Flow{Proto: 99, LocalPort: 99, RemotePort: 99, NoPorts: true} // remains of another packet
			if err := ParseFlow(c.pkt, outbound, &f); err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			want := Flow{
				Local: netip.MustParseAddr(c.addrs[0]), Remote: netip.MustParseAddr(c.addrs[1]), Proto: c.proto,
				LocalPort: c.src, RemotePort: c.dst, NoPorts: c.noPorts,
			}
			if !outbound {
				want.Local, want.Remote = want.Remote, want.Local
				want.LocalPort, want.RemotePort = want.RemotePort, want.LocalPort
			}
			if f != want {
				t.Errorf("%s, outbound %v: %+v, want %+v", c.name, outbound, f, want)
			}
		}
	}
}

func TestParseFlowRejectsMalformed(t *testing.T) {
	edit := func(pkt []byte, at int, b byte) []byte { pkt[at] = b; return pkt }
	longer := func(pkt []byte, by int) []byte {
		at, n := 2, len(pkt)
		if pkt[0]>>4 == 6 {
			at, n = 4, len(pkt)-40
		}
		binary.BigEndian.PutUint16(pkt[at:], uint16(n+by))
		return pkt
	}
	many := make([]ext, 40)
	for i := range many {
		many[i] = opts(ProtoDstOpts, 0)
	}
	for _, c := range []struct {
		name string
		pkt  []byte
	}{
		{"nothing", nil},
		{"version 0", edit(ipv4Packet(ProtoTCP, 0, 20), 0, 0x05)},
		{"version 5", edit(ipv4Packet(ProtoTCP, 0, 20), 0, 0x55)},
		{"IPv4, header of 16 octets", edit(ipv4Packet(ProtoTCP, 0, 20), 0, 0x44)},
		{"IPv4, header longer than the packet", edit(ipv4Packet(ProtoTCP, 0, 4), 0, 0x4f)},
		{"IPv4, longer than its octets", longer(ipv4Packet(ProtoTCP, 0, 20), 1)},
		{"IPv4, shorter than its header", longer(ipv4Packet(ProtoTCP, 0, 0), -1)},
		{"IPv4, total length 0", longer(ipv4Packet(ProtoTCP, 0, 20), -40)},
		{"TCP without ports", ipv4Packet(ProtoTCP, 0, 3)},
		{"UDP without ports behind options", withOptions(ipv4Packet(ProtoUDP, 0, 3), 8)},
		{"ICMP without code", ipv4Packet(ProtoICMP, 0, 1)},
		{"IPv6, longer than its octets", longer(ipv6Packet(ProtoTCP, ports), 1)},
		{"IPv6, TCP without ports", ipv6Packet(ProtoTCP, ports[:3])},
		{"IPv6, mobility header without type", ipv6Packet(ProtoMobility, []byte{59, 0})},
		{"IPv6, options that are cut", longer(ipv6Packet(ProtoTCP, ports, opts(ProtoDstOpts, 1)), -9-8)},
		{"IPv6, option header of 7 octets", longer(ipv6Packet(ProtoTCP, nil, opts(ProtoDstOpts, 0)), -1)},
		{"IPv6, fragment header of 7 octets", longer(ipv6Packet(ProtoTCP, nil, fragHeader(1, false)), -1)},
		{"IPv6, options as long as a jumbogram's", edit(ipv6Packet(ProtoTCP, ports, opts(ProtoHopByHop, 0)), 41, 200)},
		{"IPv6, headers without end", ipv6Packet(ProtoTCP, ports, many...)},
	} {
		var f Flow
		if err := ParseFlow(c.pkt, true, &f); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v and %+v, want %v", c.name, err, f, ErrMalformed)
		}
	}
	for _, whole := range [][]byte{ipv4Packet(ProtoTCP, 0, 20), ipv6Packet(ProtoTCP, ports, opts(0, 1), opts(43, 0))} {
		for n := range whole {
			if err := ParseFlow(whole[:n], true, new(Flow)); !errors.Is(err, ErrMalformed) {
				t.Errorf("%d of %d octets: %v, want %v", n, len(whole), err, ErrMalformed)
			}
		}
	}
}

func TestCutInnerCutsTFCPadding(t *testing.T) {
	for _, c := range []struct {
		name    string
		payload []byte
		next    uint8
		n       int // 0: malformed
	}{
		{"IPv4", ipv4Packet(ProtoTCP, 0, 20), ProtoIPv4, 40},
		{"IPv4 with padding", append(ipv4Packet(ProtoTCP, 0, 20), make([]byte, 900)...), ProtoIPv4, 40},
		{"IPv6", ipv6Packet(ProtoUDP, ports), ProtoIPv6, 48},
		{"IPv6 with padding", append(ipv6Packet(ProtoUDP, ports), 1), ProtoIPv6, 48},
		{"IPv4 as IPv6", ipv4Packet(ProtoTCP, 0, 20), ProtoIPv6, 0},
		{"IPv6 as IPv4", ipv6Packet(ProtoUDP, ports), ProtoIPv4, 0},
		{"IPv4 as dummy", ipv4Packet(ProtoTCP, 0, 20), ProtoNoNext, 0},
		{"truncated", ipv4Packet(ProtoTCP, 0, 20)[:39], ProtoIPv4, 0},
		{"nothing", nil, ProtoIPv4, 0},
	} {
		got, err := CutInner(c.payload, c.next)
		if (err != nil) != (c.n == 0) || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(got) != c.n || !bytes.HasPrefix(c.payload, got) {
			t.Errorf("%s: %d octets, want %d", c.name, len(got), c.n)
		}
	}
}
