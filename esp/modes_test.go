package esp

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"net/netip"
	"testing"
)

// modeSuites are suites of ESP whose headers and blocks differ.
var modeSuites = []Suite{
	{Encr: EncrAESGCM16, KeyBits: 128},
	{Encr: EncrChaCha20Poly1305, ESN: true},
	{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA256_128, ESN: true},
	{Encr: EncrAESCCM8IIV, KeyBits: 128},
}

// refUpper fills in the checksum of a TCP, UDP or ICMPv6 packet's payload for the addresses src and dst, as
// RFC 9293, RFC 768 and RFC 8200 section 8.1 have it.
func refUpper(proto uint8, src, dst netip.Addr, l4 []byte) {
	at := map[uint8]int{ProtoTCP: 16, ProtoUDP: 6, ProtoICMPv6: 2, ProtoUDPLite: 6, ProtoDCCP: 6}[proto]
	l4[at], l4[at+1] = 0, 0
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, be(uint64(len(l4)), 4)...)
	pseudo = append(append(pseudo, 0, 0, 0, proto), l4...)
	if len(pseudo)%2 != 0 {
		pseudo = append(pseudo, 0)
	}
	sum := 0
	for i := 0; i < len(pseudo); i += 2 {
		sum += int(binary.BigEndian.Uint16(pseudo[i:]))
	}
	check := uint16(0xffff - sum%0xffff)
	if check == 0 || check == 0xffff {
		check = 0xffff
		if proto == ProtoTCP || proto == ProtoICMPv6 {
			check = 0
		}
	}
	binary.BigEndian.PutUint16(l4[at:], check)
}

// rebuilt is what a receiver makes of a packet whose header it knows by the addresses, traffic class and
// hop limit alone.
func rebuilt(v6 bool, src, dst netip.Addr, tos, ttl, proto uint8, opts, payload []byte) []byte {
	if v6 {
		pkt := []byte{0x60 | tos>>4, tos << 4, 0, 0, byte(len(payload) >> 8), byte(len(payload)), proto, ttl}
		return append(append(append(pkt, src.AsSlice()...), dst.AsSlice()...), payload...)
	}
	hl := 20 + len(opts)
	n := hl + len(payload)
	pkt := []byte{0x40 | byte(hl/4), tos, byte(n >> 8), byte(n), 0, 0, 0x40, 0, ttl, proto, 0, 0}
	pkt = append(append(append(pkt, src.AsSlice()...), dst.AsSlice()...), opts...)
	refSum4(pkt)
	return append(pkt, payload...)
}

func tosOf(pkt []byte) (tos, ttl uint8) {
	if pkt[0]>>4 == 4 {
		return pkt[1], pkt[8]
	}
	return pkt[0]<<4 | pkt[1]>>4, pkt[7]
}

func TestTransportModeCarriesWhatFollowsTheHeader(t *testing.T) {
	r := rand.New(rand.NewSource(4303))
	for _, s := range modeSuites {
		for i := range rounds(400) {
			port := uint16(i / 2 % 2 * 4500)
			m := makeAny(r, i%2 == 1, i%8 > 3 && port == 0, r.Intn(200))
			pkt := m.packet()
			e := newEnds(t, s, func(sa *SA) { sa.Mode, sa.OrigLocal, sa.OrigRemote = Transport, m.src, m.dst })
			tos, ttl := tosOf(pkt)
			d := e.seal(t, pkt, Datagram{Local: m.src, Remote: netip.AddrPortFrom(m.dst, port)})
			if d.TOS != tos || d.TTL != ttl || d.DF != (m.v6 || pkt[6]&0x40 != 0) {
				t.Fatalf("TOS %#x, TTL %d, DF %v for %x", d.TOS, d.TTL, d.DF, pkt)
			}
			if d.Whole != (len(m.leaves) > 20 && !m.v6 || len(m.leaves) > 40) {
				t.Fatalf("whole is %v with a header of %d octets", d.Whole, len(m.leaves))
			}
			in := arrive(d, OpenRoom)
			want := rebuilt(m.v6, m.src, m.dst, tos, ttl, m.proto, nil, m.payload)
			if d.Whole { // its own headers, as they are when it is there
				m.set(m.nextAt, ProtoESP)
				m.lengths(d.N - len(m.leaves) - len(m.payload))
				if !bytes.Equal(d.Buf[:len(m.leaves)], m.leaves) {
					t.Fatalf("headers\n%x, want\n%x", d.Buf[:len(m.leaves)], m.leaves)
				}
				copy(in.Buf, m.arrives)
				m.set(m.nextAt, m.proto)
				want = m.received()
			}
			got, err := e.in.OpenPacket(0, &in, 16)
			if err != nil || !bytes.Equal(got[16:], want) {
				t.Fatalf("%v: opened %v\n%x, want\n%x", s, err, got, want)
			}
		}
	}
}

func TestTransportModeRefusesWhatIsNotItsOwn(t *testing.T) {
	e := newEnds(t, modeSuites[0], func(sa *SA) { sa.Mode = Transport })
	from, to := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.2")
	from6, to6 := netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:2::2")
	plain4, plain6 := ipv4Packet(ProtoUDP, 0, 20), ipv6Packet(ProtoUDP, ports)
	stranger := netip.MustParseAddr("10.9.9.9")
	bad := ipv4Packet(ProtoUDP, 0, 20)
	bad = withOptions(bad, 4)
	bad[20], bad[21] = 131, 9
	for _, c := range []struct {
		what string
		pkt  []byte
		d    Datagram
		want error
	}{
		{"another source", plain4, Datagram{Local: stranger, Remote: netip.AddrPortFrom(to, 0)}, ErrAddresses},
		{"another destination", plain4, Datagram{Local: from, Remote: netip.AddrPortFrom(stranger, 0)}, ErrAddresses},
		{"another family", plain4, Datagram{Local: from6, Remote: netip.AddrPortFrom(to6, 0)}, ErrAddresses},
		{"another IPv6 destination", plain6, Datagram{Local: from6, Remote: netip.AddrPortFrom(from6, 0)}, ErrAddresses},
		{"options in UDP", withOptions(plain4, 8), Datagram{Local: from, Remote: netip.AddrPortFrom(to, 4500)}, ErrHeaders},
		{"hop-by-hop options in UDP", ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0)), Datagram{Local: from6, Remote: netip.AddrPortFrom(to6, 4500)}, ErrHeaders},
		{"an option beyond the header", bad, Datagram{Local: from, Remote: netip.AddrPortFrom(to, 0)}, ErrHeaders},
		{"a routing header of an unknown kind", ipv6Packet(ProtoUDP, ports, ext{ProtoRouting, []byte{0, 0, 9, 1, 0, 0, 0, 0}}), Datagram{Local: from6, Remote: netip.AddrPortFrom(to6, 0)}, ErrHeaders},
		{"two routing headers", ipv6Packet(ProtoUDP, ports, opts(ProtoRouting, 0), opts(ProtoRouting, 0)), Datagram{Local: from6, Remote: netip.AddrPortFrom(to6, 0)}, ErrHeaders},
		{"nothing", nil, Datagram{Local: from, Remote: netip.AddrPortFrom(to, 0)}, ErrHeaders},
	} {
		buf := append(append(make([]byte, HeadRoomWhole), c.pkt...), make([]byte, TailRoom)...)
		was, d := bytes.Clone(buf), c.d
		if err := e.out.Check(buf, HeadRoomWhole, len(c.pkt), &d); err != c.want {
			t.Errorf("%s: Check gives %v, want %v", c.what, err, c.want)
		}
		if err := e.out.SealPacket(0, 1, buf, HeadRoomWhole, len(c.pkt), &d); err != c.want {
			t.Errorf("%s: SealPacket gives %v, want %v", c.what, err, c.want)
		}
		if !bytes.Equal(buf, was) || d.Buf != nil {
			t.Errorf("%s: something changed", c.what)
		}
	}
}

// natted returns a packet of proto from src to dst, with a right checksum, and its payload.
func natted(r *rand.Rand, proto uint8, src, dst netip.Addr, n int) []byte {
	l4 := random(r, n)
	switch proto {
	case ProtoUDP:
		binary.BigEndian.PutUint16(l4[4:], uint16(n))
	}
	switch proto {
	case ProtoTCP, ProtoUDP, ProtoICMPv6, ProtoUDPLite, ProtoDCCP:
		refUpper(proto, src, dst, l4)
	}
	return l4
}

func TestTransportModeMendsChecksumsBehindNAT(t *testing.T) {
	r := rand.New(rand.NewSource(3948))
	protos := []uint8{ProtoTCP, ProtoUDP, ProtoICMP, ProtoICMPv6, ProtoSCTP, ProtoUDPLite, ProtoDCCP, ProtoGRE}
	for i := range rounds(4000) {
		v6 := i%2 == 1
		addr := func() netip.Addr {
			if v6 {
				return netip.AddrFrom16([16]byte(random(r, 16)))
			}
			return netip.AddrFrom4([4]byte(random(r, 4)))
		}
		// The sender's view and the receiver's: each side may be behind a NAT.
		src, dst := addr(), addr()
		seenSrc, seenDst := src, dst
		if i&2 != 0 {
			seenSrc = addr()
		}
		if i&4 != 0 {
			seenDst = addr()
		}
		known := i&8 != 0
		e := newEnds(t, modeSuites[i%len(modeSuites)], func(sa *SA) {
			sa.Mode, sa.Encap = Transport, true
			if known {
				sa.OrigLocal, sa.OrigRemote = src, dst // exchanged for the receiver
			}
		})
		proto := protos[r.Intn(len(protos))]
		l4 := natted(r, proto, src, dst, 20+r.Intn(100))
		none := proto == ProtoUDP && r.Intn(4) == 0
		if none {
			l4[6], l4[7] = 0, 0
		}
		pkt := rebuilt(v6, src, dst, 0, 64, proto, nil, l4)
		d := e.seal(t, pkt, Datagram{Local: src, Remote: netip.AddrPortFrom(dst, 4500)})
		in := arrive(d, OpenRoom)
		in.Local, in.Remote = seenDst, netip.AddrPortFrom(seenSrc, 4500)
		got, err := e.in.OpenPacket(0, &in, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(l4)
		mended := proto == ProtoTCP || proto == ProtoUDP || proto == ProtoICMPv6 && v6 || known && (proto == ProtoUDPLite || proto == ProtoDCCP)
		if mended && !none {
			refUpper(proto, seenSrc, seenDst, want)
		}
		if !bytes.Equal(got, rebuilt(v6, seenSrc, seenDst, 0, 64, proto, nil, want)) {
			t.Fatalf("round %d, protocol %d, addresses known: %v, changed: %v %v: the packet is\n%x, want this behind its header:\n%x", i, proto, known, src != seenSrc, dst != seenDst, got, want)
		}
	}
}

// A checksum that was wrong before stays wrong where it is mended by the difference: damage between the
// sender's stack and its IPsec does not go unseen.
func TestMendingKeepsDamageVisible(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	src, dst, seen := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	e := newEnds(t, modeSuites[0], func(sa *SA) { sa.Mode, sa.Encap, sa.OrigLocal = Transport, true, src })
	l4 := natted(r, ProtoTCP, src, dst, 40)
	l4[30] ^= 0x10
	in := arrive(e.seal(t, rebuilt(false, src, dst, 0, 64, ProtoTCP, nil, l4), Datagram{Local: src, Remote: netip.AddrPortFrom(dst, 4500)}), OpenRoom)
	in.Remote = netip.AddrPortFrom(seen, 4500)
	got, err := e.in.OpenPacket(0, &in, 0)
	if err != nil {
		t.Fatal(err)
	}
	right := bytes.Clone(got[20:])
	refUpper(ProtoTCP, seen, dst, right)
	if bytes.Equal(right, got[20:]) {
		t.Error("the damaged segment has a right checksum now")
	}
}

// beetEnds are the two ends of an SA in BEET mode.
func beetEnds(t testing.TB, s Suite, src, dst netip.Addr) *ends {
	one := func(a netip.Addr) []Selector { return []Selector{SelectorFromPrefix(netip.PrefixFrom(a, a.BitLen()))} }
	return newEnds(t, s, func(sa *SA) { sa.Mode, sa.LocalTS, sa.RemoteTS = BEET, one(src), one(dst) })
}

func TestBEETRestoresInnerHeader(t *testing.T) {
	r := rand.New(rand.NewSource(94))
	outer := [2][2]netip.Addr{
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")},
		{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::7")},
	}
	for i := range rounds(1000) {
		s, gw := modeSuites[i%len(modeSuites)], outer[i/2%2]
		m := makeAny(r, i%2 == 1, i%8 > 3, r.Intn(200))
		pkt := m.packet()
		hl := len(m.leaves)
		if m.v6 {
			hl = 40
		}
		m.dst = (&prefix{v6: m.v6}).first(pkt) // BEET does not look at source routes
		e := beetEnds(t, s, m.src, m.dst)
		tos, ttl := tosOf(pkt)
		whole := i%16 > 11
		d := e.seal(t, pkt, Datagram{Local: gw[0], Remote: netip.AddrPortFrom(gw[1], uint16(i/4%2*4500)), Whole: whole})
		if d.TOS != tos || d.TTL != ttl || d.Whole != whole {
			t.Fatalf("TOS %#x, TTL %d, whole %v", d.TOS, d.TTL, d.Whole)
		}
		// The options stand behind a header whose lengths say where they end.
		in := arrive(d, OpenRoom)
		at := 0
		if whole {
			at = headerLen(gw[0])
		}
		payload, next, err := newEnds(t, s, nil).in.Open(0, bytes.Clone(in.Buf[at:in.N]))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case m.v6 || hl == 20:
			if next != pkt[m.firstNext()] || !bytes.Equal(payload, pkt[hl:]) {
				t.Fatalf("without options %d carries %x", next, payload)
			}
		default:
			opts := hl - 20
			pad := 4 - opts&4
			want := append([]byte{pkt[9], byte((4+pad+opts)/8 - 1), byte(pad), 0}, bytes.Repeat([]byte{1}, pad)...)
			if want = append(want, pkt[20:]...); next != 94 || len(want)%8 != (len(pkt)-hl)%8 || !bytes.Equal(payload, want) {
				t.Fatalf("with %d octets of options %d carries\n%x, want\n%x", opts, next, payload, want)
			}
		}
		got, err := e.in.OpenPacket(0, &in, 16)
		var options []byte
		if !m.v6 {
			options = pkt[20:hl]
		}
		want := rebuilt(m.v6, m.src, m.dst, tos, ttl, pkt[m.firstNext()], options, pkt[hl:])
		if err != nil || !bytes.Equal(got[16:], want) {
			t.Fatalf("opened %v\n%x, want\n%x", err, got, want)
		}
	}
}

// firstNext is where the packet's own header names what follows it.
func (m *made) firstNext() int {
	if m.v6 {
		return 6
	}
	return 9
}

func TestBEETRefusesOtherAddressesAndHeadersThatLie(t *testing.T) {
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.2")
	gw := Datagram{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:4500")}
	e := beetEnds(t, modeSuites[0], b, a)
	buf := append(append(make([]byte, HeadRoomWhole), ipv4Packet(ProtoUDP, 0, 20)...), make([]byte, TailRoom)...)
	if err := e.out.Check(buf, HeadRoomWhole, 40, &gw); err != ErrAddresses {
		t.Errorf("addresses the wrong way round give %v", err)
	}
	for _, payload := range [][]byte{
		nil, {17, 0, 4}, {17, 0, 4, 0}, {17, 0, 0, 0}, {17, 255, 4, 0}, {17, 0, 9, 0}, {17, 0, 3, 0, 1, 1, 1, 1}, {17, 5, 4, 0},
		append([]byte{17, 6, 4, 0}, make([]byte, 60)...),
	} {
		e := beetEnds(t, modeSuites[0], a, b)
		pkt := refPacket(e.sa, 1, payload, 94)
		d := Datagram{Buf: append(pkt, make([]byte, OpenRoom)...), N: len(pkt), Local: gw.Remote.Addr(), Remote: gw.Remote}
		if _, err := e.in.OpenPacket(0, &d, 16); err != ErrMalformed {
			t.Errorf("BEET header %x gives %v", payload, err)
		}
	}
}

func TestTunnelModeThroughPackets(t *testing.T) {
	r := rand.New(rand.NewSource(7))
	gw := Datagram{Local: netip.MustParseAddr("2001:db8::1"), Remote: netip.MustParseAddrPort("[2001:db8::2]:4500")}
	for i := range rounds(200) {
		e := newEnds(t, modeSuites[i%len(modeSuites)], nil)
		m := makeAny(r, i%2 == 1, i%4 > 1, r.Intn(200))
		pkt := m.packet()
		d := gw
		d.Whole = i%8 > 5
		d = e.seal(t, pkt, d)
		if d.Whole != (i%8 > 5) {
			t.Fatal("whole without being asked to")
		}
		if esp := d.Buf[:d.N]; d.Whole {
			if !bytes.Equal(esp[:40], rebuilt(true, gw.Local, gw.Remote.Addr(), d.TOS, 64, ProtoESP, nil, esp[40:])[:40]) {
				t.Fatalf("outer header %x", esp[:40])
			}
		}
		in := arrive(d, 0)
		got, err := e.in.OpenPacket(0, &in, 16)
		if err != nil || !bytes.Equal(got[16:], pkt) {
			t.Fatalf("%v\n%x, want\n%x", err, got, pkt)
		}
	}
	for next, want := range map[uint8]error{ProtoNoNext: ErrDummy, ProtoTCP: ErrNextHeader, ProtoIPv6: ErrMalformed, ProtoIPv4: nil} {
		e := newEnds(t, modeSuites[0], nil)
		pkt := refPacket(e.sa, 1, ipv4Packet(ProtoUDP, 0, 20), next)
		d := Datagram{Buf: pkt, N: len(pkt)}
		if _, err := e.in.OpenPacket(0, &d, 16); err != want {
			t.Errorf("next header %d gives %v, want %v", next, err, want)
		}
		if top := e.in.win.top.Load(); top != 1 {
			t.Errorf("next header %d: the window is at %d", next, top)
		}
	}
}

// Whatever does not fit is refused before anything changes, on the way out and in.
func TestPacketsNeedRoom(t *testing.T) {
	gw := Datagram{Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddrPort("10.2.0.2:0")}
	pkt := ipv4Packet(ProtoUDP, 0, 100)
	for _, c := range []struct {
		s       Suite
		m       Mode
		opens   bool
		atLeast int
	}{
		{Suite{Integ: IntegHMACSHA512_256}, Tunnel, true, 64}, {Suite{Integ: IntegHMACSHA512_256}, Transport, true, 44},
		{modeSuites[0], Tunnel, true, 16}, {modeSuites[0], Transport, false, 0},
	} {
		e := newEnds(t, c.s, func(sa *SA) { sa.Mode = c.m })
		least := -1
		for room := 0; room <= HeadRoomWhole; room++ {
			buf := append(append(make([]byte, room), pkt...), make([]byte, TailRoom)...)
			was, d := bytes.Clone(buf), gw
			err := e.out.Check(buf, room, len(pkt), &d)
			if err == nil && least < 0 {
				least = room
			}
			if err != nil && (err != ErrNoRoom || e.out.SealPacket(0, 1, buf, room, len(pkt), &d) != ErrNoRoom || !bytes.Equal(buf, was)) {
				t.Fatalf("%v %v: room of %d gives %v", c.s, c.m, room, err)
			}
		}
		if least != c.atLeast {
			t.Errorf("%v %v: %d octets of room are enough, want %d", c.s, c.m, least, c.atLeast)
		}
		d := e.seal(t, pkt, gw)
		in := arrive(d, 0)
		before := state(e.in)
		if _, err := e.in.OpenPacket(0, &in, 16); (err == nil) != c.opens || !c.opens && (err != ErrNoRoom || state(e.in) != before) {
			t.Errorf("%v %v: opened without OpenRoom: %v", c.s, c.m, err)
		}
	}
	e := newEnds(t, Suite{Integ: IntegHMACSHA196}, nil)
	long := make([]byte, 65535)
	copy(long, []byte{0x45, 0, 0xff, 0xff})
	buf := append(append(make([]byte, HeadRoomWhole), long...), make([]byte, TailRoom)...)
	if err := e.out.Check(buf, HeadRoomWhole, len(long), &gw); err != ErrTooLong {
		t.Errorf("a packet of 65535 octets gives %v", err)
	}
}

func TestNewRejectsWrongForms(t *testing.T) {
	gcm, mac := Suite{Encr: EncrAESGCM16, KeyBits: 128}, Suite{Integ: IntegHMACSHA256_128}
	one := []Selector{mustSelector("10.0.0.1/32")}
	for what, change := range map[string]func(sa *SA){
		"AH with a cipher":            func(sa *SA) { sa.Proto = AH },
		"ESP without one":             func(sa *SA) { sa.Suite = mac },
		"AH in BEET mode":             func(sa *SA) { sa.Suite, sa.Proto, sa.Mode, sa.LocalTS, sa.RemoteTS = mac, AH, BEET, one, one },
		"AH in UDP":                   func(sa *SA) { sa.Suite, sa.Proto, sa.Encap = mac, AH, true },
		"an unknown protocol":         func(sa *SA) { sa.Proto = 2 },
		"an unknown mode":             func(sa *SA) { sa.Mode = 3 },
		"BEET without selectors":      func(sa *SA) { sa.Mode = BEET },
		"BEET with a prefix":          func(sa *SA) { sa.Mode, sa.LocalTS, sa.RemoteTS = BEET, one, []Selector{mustSelector("10.0.0.0/24")} },
		"BEET of two families":        func(sa *SA) { sa.Mode, sa.LocalTS, sa.RemoteTS = BEET, one, []Selector{mustSelector("fd00::1/128")} },
		"BEET with two addresses":     func(sa *SA) { sa.Mode, sa.LocalTS, sa.RemoteTS = BEET, one, append(one, mustSelector("10.0.0.2/32")) },
		"AH with an unknown mac":      func(sa *SA) { sa.Suite, sa.Proto = Suite{Integ: 99}, AH },
		"AH with a cipher's key":      func(sa *SA) { sa.Suite, sa.Proto = Suite{Integ: IntegHMACSHA196, KeyBits: 128}, AH },
		"GMAC, which is AH's, in ESP": func(sa *SA) { sa.Suite = Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: IntegAES128GMAC} },
	} {
		sa := testSA(gcm, Out)
		change(sa)
		encr, integ := sa.Suite.KeyLens()
		sa.EncrKey, sa.IntegKey = make([]byte, encr), make([]byte, integ)
		if _, err := NewOutbound(sa, 1); err == nil {
			t.Errorf("%s: NewOutbound takes it", what)
		}
		sa.Dir = In
		if _, err := NewInbound(sa, 1); err == nil {
			t.Errorf("%s: NewInbound takes it", what)
		}
	}
}
