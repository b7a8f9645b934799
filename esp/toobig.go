package esp

import (
	"encoding/binary"
	"net/netip"
)

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  3, or 2 (v6) |  4, or 0 (v6) |           Checksum            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  IPv4: unused, then the MTU in 16 bits; IPv6: the MTU         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                 The packet, as much as fits                   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// ICMP "fragmentation needed" (RFC 1191 section 4) and ICMPv6 "packet too big" (RFC 4443 section
// 3.2).
const (
	icmpLen          = 8
	icmpUnreachable  = 3
	icmpFragNeeded   = 4
	icmp6TooBig      = 2
	icmp6Redirect    = 137
	icmp6FirstAnswer = 128 // below it are the errors

	// What a message of ours is no longer than (RFC 1812 section 4.3.2.3, RFC 4443 section 3.2).
	icmpMost  = 576
	icmp6Most = 1280
)

// TooBig is what an ICMP message says of a packet that did not fit a link, and what the packet
// that it quotes shows of itself. Nothing of it is authentic.
type TooBig struct {
	MTU    int            // of the link; 0: the router did not tell
	Len    int            // of the quoted packet, by its header
	Local  netip.AddrPort // its source, with port 0 where it is not in UDP
	Remote netip.AddrPort // its destination
	Proto  Protocol
	SPI    uint32
}

// ParseTooBig reads an ICMP message of IPv4, or of IPv6, that begins at b[0] and ends with b; its
// checksum is not looked at. told is false for every other message. The error is ErrMalformed, with
// t undefined: what is quoted does not show an SPI, or is not a packet in ESP, AH or ESP in UDP.
func ParseTooBig(b []byte, v6 bool, t *TooBig) (told bool, err error) {
	if len(b) < icmpLen {
		return false, ErrMalformed
	}
	*t = TooBig{}
	if v6 {
		if b[0] != icmp6TooBig {
			return false, nil
		}
		t.MTU = int(min(binary.BigEndian.Uint32(b[4:]), ipMaxLen))
	} else {
		if b[0] != icmpUnreachable || b[1] != icmpFragNeeded {
			return false, nil
		}
		t.MTU = int(binary.BigEndian.Uint16(b[6:]))
	}
	return true, t.quoted(b[icmpLen:], v6)
}

// quoted reads the packet that a message quotes, cut off or whole.
func (t *TooBig) quoted(pkt []byte, v6 bool) error {
	var proto uint8
	var l4 []byte
	var src, dst netip.Addr
	switch {
	case v6:
		if len(pkt) < ipv6Len || pkt[0]>>4 != 6 {
			return ErrMalformed
		}
		var first bool
		var err error
		if proto, l4, first, _, err = walkIPv6(pkt[6], pkt[ipv6Len:]); err != nil || !first {
			return ErrMalformed
		}
		src, dst = netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40]))
		t.Len = ipv6Len + int(binary.BigEndian.Uint16(pkt[4:]))
	default:
		if len(pkt) < ipv4MinLen || pkt[0]>>4 != 4 {
			return ErrMalformed
		}
		n := int(pkt[0]&15) * 4
		if n < ipv4MinLen || n > len(pkt) || binary.BigEndian.Uint16(pkt[6:])&0x1fff != 0 {
			return ErrMalformed
		}
		proto, l4 = pkt[9], pkt[n:]
		src, dst = netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20]))
		t.Len = int(binary.BigEndian.Uint16(pkt[2:]))
	}
	var sport, dport uint16
	at := 0 // of the SPI
	switch proto {
	case ProtoESP:
	case ProtoAH:
		t.Proto, at = AH, 4
	case ProtoUDP:
		if at = udpLen; len(l4) >= at {
			sport, dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		}
	default:
		return ErrMalformed
	}
	if len(l4) < at+4 {
		return ErrMalformed
	}
	t.SPI = binary.BigEndian.Uint32(l4[at:])
	t.Local, t.Remote = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return nil
}

// ICMPSum tells whether the checksum of an ICMP message of IPv4 is right.
func ICMPSum(b []byte) bool { return fold(sum(b, 0)) == 0xffff }

// AnswerTooBig writes to dst the ICMP message that tells the sender of the IP packet pkt, whose flow
// is f, that it is longer than mtu octets, and returns its length, 0 where there must not be
// one: it does not fit dst, for which 1280 octets are always enough, or RFC 1122 section 3.2.2 and
// RFC 4443 section 2.4 forbid it, to errors, to many receivers, to later fragments and to senders
// that are not one host. The message comes from the packet's destination: an address of this host
// would be refused by it at the device that leads to the tunnel.
func AnswerTooBig(dst, pkt []byte, f *Flow, mtu int) int {
	v6 := f.Local.Is6()
	if !oneHost(f.Local) || !oneHost(f.Remote) || answersError(pkt, f, v6) {
		return 0
	}
	head, most, mine := ipv4MinLen, icmpMost, uint8(ProtoICMP)
	if v6 {
		head, most, mine = ipv6Len, icmp6Most, ProtoICMPv6
	}
	n := min(head+icmpLen+len(pkt), most)
	if n > len(dst) {
		return 0
	}
	out := dst[:n]
	msg := out[head:]
	clear(msg[:icmpLen])
	copy(msg[icmpLen:], pkt)
	if v6 {
		msg[0] = icmp6TooBig
		binary.BigEndian.PutUint32(msg[4:], uint32(mtu))
	} else {
		msg[0], msg[1] = icmpUnreachable, icmpFragNeeded
		binary.BigEndian.PutUint16(msg[6:], uint16(mtu))
	}
	h := outerHeader{src: f.Remote, dst: f.Local, proto: mine}
	h.put(out)
	acc := uint64(0)
	if v6 {
		acc = sum(out[8:ipv6Len], uint64(len(msg))+ProtoICMPv6)
	}
	binary.BigEndian.PutUint16(msg[2:], ^fold(sum(msg, acc)))
	return n
}

// oneHost tells whether an address is that of a single host.
//
//go:noinline
func oneHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// answersError tells whether a packet is an ICMP error, or may be one: a fragment without its
// beginning, and a first one that ends too early.
func answersError(pkt []byte, f *Flow, v6 bool) bool {
	if !v6 && binary.BigEndian.Uint16(pkt[6:])&0x1fff != 0 {
		return true
	}
	if v6 {
		if _, _, first, _, err := walkIPv6(pkt[6], pkt[ipv6Len:]); err != nil || !first {
			return true
		}
	}
	typ := f.LocalPort >> 8
	switch {
	case f.Proto == ProtoICMPv6 && v6:
		return f.NoPorts || typ < icmp6FirstAnswer || typ == icmp6Redirect
	case f.Proto == ProtoICMP:
		// Unreachable, source quench, redirect, time exceeded, parameter problem.
		return f.NoPorts || typ == 3 || typ == 4 || typ == 5 || typ == 11 || typ == 12
	}
	return false
}
