package esp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// rawIP is an IP packet of that protocol whose payload is body.
func rawIP(src, dst string, proto uint8, body []byte) []byte {
	h := outerHeader{src: netip.MustParseAddr(src), dst: netip.MustParseAddr(dst), proto: proto, ttl: 64}
	n := headerLen(h.dst)
	pkt := append(make([]byte, n), body...)
	h.put(pkt)
	return pkt
}

// tooBigMessage is the ICMP message of a router about a packet.
func tooBigMessage(pkt []byte, mtu int) []byte {
	if pkt[0]>>4 == 6 {
		return append([]byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, pkt...)
	}
	b := append([]byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, pkt...)
	binary.BigEndian.PutUint16(b[2:], ^fold(sum(b, 0)))
	return b
}

func TestTooBigShowsThePacketThatItQuotes(t *testing.T) {
	spi := []byte{0xc0, 1, 2, 3, 0, 0, 0, 9, 1, 2, 3, 4}
	udp := append([]byte{0x11, 0x94, 0x11, 0x95, 0, 20, 0, 0}, spi...)
	ah := append([]byte{4, 4, 0, 0}, spi...)
	hop := append([]byte{ProtoAH, 0, 1, 4, 0, 0, 0, 0}, ah...)
	const a4, b4, a6, b6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
	for _, c := range []struct {
		name          string
		pkt           []byte
		proto         Protocol
		local, remote string
	}{
		{"ESP", rawIP(a4, b4, ProtoESP, spi), ESP, a4 + ":0", b4 + ":0"},
		{"ESP, IPv6", rawIP(a6, b6, ProtoESP, spi), ESP, "[" + a6 + "]:0", "[" + b6 + "]:0"},
		{"ESP in UDP", rawIP(a4, b4, ProtoUDP, udp), ESP, a4 + ":4500", b4 + ":4501"},
		{"ESP in UDP, IPv6", rawIP(a6, b6, ProtoUDP, udp), ESP, "[" + a6 + "]:4500", "[" + b6 + "]:4501"},
		{"AH", rawIP(a4, b4, ProtoAH, ah), AH, a4 + ":0", b4 + ":0"},
		{"AH, behind options, IPv6", rawIP(a6, b6, ProtoHopByHop, hop), AH, "[" + a6 + "]:0", "[" + b6 + "]:0"},
	} {
		v6 := c.pkt[0]>>4 == 6
		whole := tooBigMessage(c.pkt, 1300)
		var got TooBig
		told, err := ParseTooBig(whole, v6, &got)
		want := TooBig{MTU: 1300, Len: len(c.pkt), Local: netip.MustParseAddrPort(c.local), Remote: netip.MustParseAddrPort(c.remote), Proto: c.proto, SPI: 0xc0010203}
		if !told || err != nil || got != want {
			t.Errorf("%s: %+v, %v, %v, want %+v", c.name, got, told, err, want)
		}
		if !v6 && !ICMPSum(whole) {
			t.Errorf("%s: a right checksum counts as wrong", c.name)
		}
		for n := range whole { // the SPI ends 8 octets before the end
			told, err := ParseTooBig(whole[:n], v6, &got)
			if short := n < len(whole)-8; short != (err != nil) || told && n < icmpLen {
				t.Errorf("%s: of its first %d octets: %v, %v", c.name, n, told, err)
			}
		}
		other := bytes.Clone(whole)
		other[0] = 11
		if told, err := ParseTooBig(other, v6, &got); told || err != nil {
			t.Errorf("%s: another message is told as one: %v", c.name, err)
		}
	}
	later := rawIP(a4, b4, ProtoESP, spi)
	later[7] = 1
	tcp := rawIP(a4, b4, ProtoTCP, udp)
	for name, pkt := range map[string][]byte{"a later fragment": later, "TCP": tcp} {
		if told, err := ParseTooBig(tooBigMessage(pkt, 1300), false, new(TooBig)); !told || err == nil {
			t.Errorf("%s is taken for a packet of an SA", name)
		}
	}
}

func TestSendersOfPacketsThatAreTooBigAreTold(t *testing.T) {
	for _, c := range []struct {
		name     string
		src, dst string
		proto    uint8
		body     []byte
		told     bool
	}{
		{"UDP", "10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 1400), true},
		{"UDP, IPv6", "fd00::1", "fd01::1", ProtoUDP, make([]byte, 1400), true},
		{"short", "10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 8), true},
		{"echo", "10.0.0.1", "10.0.1.1", ProtoICMP, []byte{8, 0, 0, 0}, true},
		{"echo, IPv6", "fd00::1", "fd01::1", ProtoICMPv6, []byte{128, 0, 0, 0}, true},
		{"ICMP error", "10.0.0.1", "10.0.1.1", ProtoICMP, []byte{3, 1, 0, 0}, false},
		{"ICMPv6 error", "fd00::1", "fd01::1", ProtoICMPv6, []byte{1, 0, 0, 0}, false},
		{"ICMPv6 redirect", "fd00::1", "fd01::1", ProtoICMPv6, []byte{137, 0, 0, 0}, false},
		{"multicast", "10.0.0.1", "224.0.0.5", ProtoUDP, make([]byte, 8), false},
		{"multicast, IPv6", "fd00::1", "ff02::5", ProtoUDP, make([]byte, 8), false},
		{"broadcast", "10.0.0.1", "255.255.255.255", ProtoUDP, make([]byte, 8), false},
		{"from nobody", "0.0.0.0", "10.0.1.1", ProtoUDP, make([]byte, 8), false},
		{"from many", "224.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 8), false},
		{"later fragment, IPv6", "fd00::1", "fd01::1", ProtoFragment, []byte{ProtoUDP, 0, 1, 0, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8}, false},
	} {
		pkt := rawIP(c.src, c.dst, c.proto, c.body)
		var f Flow
		if err := ParseFlow(pkt, true, &f); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		buf := make([]byte, 1280)
		n := AnswerTooBig(buf, pkt, &f, 1242)
		if (n > 0) != c.told {
			t.Errorf("%s: the answer has %d octets, expected one: %v", c.name, n, c.told)
		}
		if n == 0 {
			continue
		}
		ans := buf[:n]
		if got, err := InnerLen(ans); err != nil || got != n {
			t.Errorf("%s: the answer is no IP packet of %d octets: %d, %v", c.name, n, got, err)
		}
		v6, head := pkt[0]>>4 == 6, headerLen(f.Local)
		if most := map[bool]int{false: 576, true: 1280}[v6]; n > most || n < most && n != head+8+len(pkt) {
			t.Errorf("%s: the answer has %d octets: neither all of the packet, nor what is allowed", c.name, n)
		}
		acc := uint64(0)
		if v6 {
			acc = sum(ans[8:40], uint64(n-40)+ProtoICMPv6)
		}
		if fold(sum(ans[head:], acc)) != 0xffff || !v6 && fold(sum(ans[:20], 0)) != 0xffff {
			t.Errorf("%s: a checksum of the answer is wrong", c.name)
		}
		mtu := binary.BigEndian.Uint16(ans[head+6:])
		var to Flow
		if err := ParseFlow(ans, false, &to); err != nil || to.Local != f.Local || to.Remote != f.Remote || mtu != 1242 {
			t.Errorf("%s: the answer goes from %v to %v and says %d: %v", c.name, to.Remote, to.Local, mtu, err)
		}
		if !bytes.HasPrefix(pkt, ans[head+8:]) {
			t.Errorf("%s: the answer does not quote the packet", c.name)
		}
		if AnswerTooBig(buf[:n-1], pkt, &f, 1242) != 0 {
			t.Errorf("%s: an answer was written to a buffer that is too short", c.name)
		}
	}
	later := rawIP("10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 100))
	later[7] = 4
	var f Flow
	if err := ParseFlow(later, true, &f); err != nil || AnswerTooBig(make([]byte, 1280), later, &f, 100) != 0 {
		t.Errorf("a later fragment is answered: %v", err)
	}
}

// Fragments put together again are the packet, whatever its options and wherever it begins.
func TestFragmentsMakeUpThePacket(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for round := range 300 {
		opts := []byte{0x94, 4, 0, 0, 1, 7, 7, 4, 0, 0, 0, 0}[:4*r.IntN(4)] // router alert (copied), no-op, record route
		body := make([]byte, 1+r.IntN(4000))
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		pkt := append(make([]byte, 20+len(opts)), body...)
		copy(pkt, rawIP("10.0.0.1", "10.0.1.1", ProtoUDP, nil))
		pkt[0] = 0x40 | byte(20+len(opts))/4
		copy(pkt[20:], opts)
		base := r.IntN(2) * 184
		more := uint16(r.IntN(2)) * ipv4More
		binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
		binary.BigEndian.PutUint16(pkt[6:], more|uint16(base/8))
		sumIPv4(pkt[:20+len(opts)])
		most := 68 + r.IntN(1500)
		got, from, count := []byte(nil), 0, 0
		dst := make([]byte, most)
		for {
			n, next := SplitIPv4(dst, pkt, from, most)
			if n == 0 || n > most || count > 600 {
				t.Fatalf("round %d: a fragment of %d octets from %d of a packet of %d", round, n, from, len(pkt))
			}
			count++
			head := int(dst[0]&15) * 4
			frag := binary.BigEndian.Uint16(dst[6:])
			if int(frag&ipv4Offset)*8 != base+from || (frag&ipv4More != 0) != (next != 0 || more != 0) || fold(sum(dst[:head], 0)) != 0xffff {
				t.Fatalf("round %d: the fragment from %d has %#x, or a wrong checksum", round, from, frag)
			}
			if ln, err := InnerLen(dst[:n]); err != nil || ln != n || !bytes.Equal(dst[12:20], pkt[12:20]) {
				t.Fatalf("round %d: the fragment has a malformed header", round)
			}
			if len(opts) > 0 && dst[20] != 0x94 {
				t.Fatalf("round %d: the option that goes into every fragment is not in that from %d", round, from)
			}
			if from > 0 && head > 24 {
				t.Fatalf("round %d: a later fragment has options of the first", round)
			}
			got = append(got, dst[head:n]...)
			if next == 0 {
				break
			}
			from = next
		}
		if !bytes.Equal(got, body) {
			t.Fatalf("round %d: the fragments make up another packet", round)
		}
	}
	df := rawIP("10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 900))
	df[6] = 0x40
	if n, _ := SplitIPv4(make([]byte, 600), df, 0, 600); n != 0 {
		t.Error("a packet with DF was cut")
	}
}

// tcpSegment is a TCP segment with those options behind a header of the given flags.
func tcpSegment(v6 bool, flags byte, opts []byte) []byte {
	seg := append(make([]byte, 20), opts...)
	seg[12], seg[13] = byte(len(seg)/4)<<4, flags
	src, dst := "10.0.0.1", "10.0.1.1"
	if v6 {
		src, dst = "fd00::1", "fd01::1"
	}
	pkt := rawIP(src, dst, ProtoTCP, seg)
	l4 := pkt[len(pkt)-len(seg):]
	binary.BigEndian.PutUint16(l4[16:], ^fold(sum(l4, pseudo(pkt))))
	return pkt
}

// pseudo is the sum of the pseudo-header.
func pseudo(pkt []byte) uint64 {
	if pkt[0]>>4 == 6 {
		return sum(pkt[8:40], uint64(len(pkt)-40)+ProtoTCP)
	}
	return sum(pkt[12:20], uint64(len(pkt)-20)+ProtoTCP)
}

func TestMSSIsLoweredInSYNs(t *testing.T) {
	const syn, ack = 0x02, 0x10
	mss := func(n int) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	nop := []byte{1}
	for _, c := range []struct {
		name  string
		flags byte
		opts  []byte
		at    int // of the value in the options; -1: nothing changes
	}{
		{"SYN", syn, mss(1460), 2},
		{"SYN ACK", syn | ack, mss(8960), 2},
		{"behind others", syn, cat([]byte{4, 2}, []byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(1460)), 14},
		{"at an odd place", syn, cat(nop, mss(1460), nop, nop, nop), 3},
		{"at an odd place, last", syn, cat(nop, nop, nop, mss(0x1234), nop), 5},
		{"small", syn, mss(1200), -1},
		{"smaller", syn, mss(536), -1},
		{"no SYN", ack, mss(1460), -1},
		{"no options", syn, nil, -1},
		{"behind the end", syn, cat([]byte{0, 0, 0, 0}, mss(1460)), -1},
		{"too short an option", syn, []byte{2, 3, 5, 0xb4}, -1},
		{"cut off", syn, []byte{1, 1, 1, 2}, -1},
		{"an option of no length", syn, cat([]byte{9, 0, 0, 0}, mss(1460)), -1},
		{"an option of length 1", syn, cat([]byte{9, 1, 0, 0}, mss(1460)), -1},
		{"an option beyond the end", syn, []byte{1, 1, 9, 200}, -1},
	} {
		for _, v6 := range []bool{false, true} {
			pkt := tcpSegment(v6, c.flags, c.opts)
			was := bytes.Clone(pkt)
			changed := ClampMSS(pkt, 1200, 1180+20)
			if changed != (c.at >= 0) {
				t.Errorf("%s, v6 %v: changed %v", c.name, v6, changed)
			}
			if !changed {
				if !bytes.Equal(was, pkt) {
					t.Errorf("%s, v6 %v: the packet was changed in silence", c.name, v6)
				}
				continue
			}
			l4 := pkt[len(pkt)-20-len(c.opts):]
			if got := binary.BigEndian.Uint16(l4[20+c.at:]); got != 1200 {
				t.Errorf("%s, v6 %v: the MSS is %d, want 1200", c.name, v6, got)
			}
			if fold(sum(l4, pseudo(pkt))) != 0xffff {
				t.Errorf("%s, v6 %v: the checksum is wrong", c.name, v6)
			}
			if ClampMSS(pkt, 1200, 1200) {
				t.Errorf("%s, v6 %v: lowered twice", c.name, v6)
			}
		}
	}
	for _, v6 := range []bool{false, true} {
		pkt := tcpSegment(v6, syn, mss(1460))
		if ClampMSS(pkt, 0, 0) {
			t.Error("an MSS was lowered although that is off")
		}
		for n := range pkt { // cut off, and with a header that says so
			short := bytes.Clone(pkt[:n])
			ClampMSS(short, 1200, 1200)
		}
	}
	frag := tcpSegment(false, syn, mss(1460))
	frag[7] = 1
	if ClampMSS(frag, 1200, 1200) {
		t.Error("what stands in a later fragment was taken for a TCP header")
	}
}

// Whatever the packet: nothing but one MSS and the checksum change, and the sum stays as right or
// wrong as it was.
func FuzzClampMSS(f *testing.F) {
	f.Add(tcpSegment(false, 2, []byte{1, 2, 4, 5, 0xb4, 1, 1, 1}), uint16(1200))
	f.Add(tcpSegment(true, 2, []byte{2, 4, 5, 0xb4}), uint16(900))
	f.Fuzz(func(t *testing.T, pkt []byte, most uint16) {
		was := bytes.Clone(pkt)
		changed := ClampMSS(pkt, most, most)
		diff := 0
		for i := range pkt {
			if pkt[i] != was[i] {
				diff++
			}
		}
		if diff > 4 || !changed && diff > 0 || changed && diff < 1 {
			t.Fatalf("%d octets were changed, told %v", diff, changed)
		}
		// The sum over a segment that begins at an even octet stays: numbers that differ by a multiple
		// of 0xffff are equal to it.
		if changed && sum(pkt, 0)%0xffff != sum(was, 0)%0xffff {
			t.Fatal("the checksum does not make up for the change")
		}
	})
}

// Nothing in a message of anybody may do harm, and what is taken from it stands in it.
func FuzzParseTooBig(f *testing.F) {
	f.Add(tooBigMessage(rawIP("192.0.2.1", "192.0.2.2", ProtoESP, make([]byte, 12)), 1300), false)
	f.Add(tooBigMessage(rawIP("2001:db8::1", "2001:db8::2", ProtoUDP, make([]byte, 20)), 1300), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		var got TooBig
		told, err := ParseTooBig(b, v6, &got)
		if !told || err != nil {
			return
		}
		if got.MTU < 0 || got.MTU > ipMaxLen || got.Local.Addr().Is6() != v6 || got.Remote.Addr().Is6() != v6 {
			t.Fatalf("%+v", got)
		}
		if got.SPI != 0 && !bytes.Contains(b, binary.BigEndian.AppendUint32(nil, got.SPI)) {
			t.Fatalf("the SPI %08x is not in the message", got.SPI)
		}
	})
}

// Of any packet, fragments have the length that was asked for, and end.
func FuzzSplitIPv4(f *testing.F) {
	f.Add(rawIP("10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 100)), uint16(68))
	f.Fuzz(func(t *testing.T, pkt []byte, most uint16) {
		dst := make([]byte, most)
		from := 0
		for range 1 << 14 {
			n, next := SplitIPv4(dst, pkt, from, int(most))
			if n == 0 {
				return
			}
			if ln, err := InnerLen(dst[:n]); err != nil || ln != n {
				t.Fatalf("a fragment of %d octets says %d, %v", n, ln, err)
			}
			if next == 0 {
				return
			}
			if next <= from {
				t.Fatalf("behind %d comes %d", from, next)
			}
			from = next
		}
		t.Fatal("there is no end")
	})
}

func TestHeadersOfWholeDatagramsAreSet(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		src, dst := "10.0.0.1", "10.0.1.1"
		if v6 {
			src, dst = "fd00::1", "fd01::1"
		}
		for class := range 256 {
			pkt := rawIP(src, dst, ProtoAH, make([]byte, 24))
			d := Datagram{Buf: pkt, N: len(pkt), Whole: true}
			want := bytes.Clone(pkt)
			SetTrafficClass(pkt, uint8(class))
			if TrafficClass(pkt) != uint8(class) {
				t.Fatalf("v6 %v: the traffic class is %#x, want %#x", v6, TrafficClass(pkt), class)
			}
			for _, df := range []bool{true, false} {
				d.SetOuter(uint8(class), df)
				if ttl := hopLimit(pkt); class != 0 && ttl != uint8(class) || !v6 && (pkt[6]&0x40 != 0) != df {
					t.Fatalf("v6 %v: hop limit %d and flags %#x, want %d and DF %v", v6, ttl, pkt[6], class, df)
				}
				if !v6 && fold(sum(pkt[:20], 0)) != 0xffff {
					t.Fatalf("class %#x: the checksum is wrong", class)
				}
			}
			SetTrafficClass(pkt, 0)
			d.SetOuter(64, false)
			if !bytes.Equal(pkt, want) {
				t.Fatalf("v6 %v, class %#x: something else was changed", v6, class)
			}
		}
	}
}

func TestHeaderWorkCostsNoAllocation(t *testing.T) {
	syn := tcpSegment(false, 2, []byte{1, 2, 4, 5, 0xb4, 1, 1, 1})
	big := rawIP("10.0.0.1", "10.0.1.1", ProtoUDP, make([]byte, 1400))
	msg := tooBigMessage(rawIP("192.0.2.1", "192.0.2.2", ProtoESP, make([]byte, 12)), 1300)
	buf := make([]byte, 1280)
	var f Flow
	var tb TooBig
	noAllocs(t, "headers", func() {
		ClampMSS(syn, 1000, 1000)
		_ = ParseFlow(big, true, &f)
		AnswerTooBig(buf, big, &f, 1242)
		SplitIPv4(buf, big, 0, 1000)
		_, _ = ParseTooBig(msg, false, &tb)
	})
}
