package esp

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"net/netip"
	"testing"
)

var (
	gw4 = Datagram{Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddrPort("10.2.0.2:0")}
	gw6 = Datagram{Local: netip.MustParseAddr("fd00:1::1"), Remote: netip.MustParseAddrPort("[fd00:2::2]:0")}
)

// framed returns a buffer around pkt with the room that always is enough.
func framed(pkt []byte) []byte {
	return append(append(make([]byte, HeadRoomWhole), pkt...), make([]byte, TailRoom)...)
}

// The system would give a header without identification one of its own, behind AH's back.
func TestWholeIPv4PacketsHaveAnIdentification(t *testing.T) {
	pkt := withOptions(ipv4Packet(ProtoUDP, 0, 20), 4)
	for _, s := range []Suite{{Integ: IntegHMACSHA196}, modeSuites[0]} {
		e := newEnds(t, s, func(sa *SA) { sa.Mode = Transport })
		for _, seq := range []uint64{0, 1, 0xfffe, 0xffff, 0x10000, 1<<32 - 1} {
			d, buf := gw4, framed(pkt)
			if err := e.out.SealPacket(0, seq, buf, HeadRoomWhole, len(pkt), &d); err != nil {
				t.Fatal(err)
			}
			if d.Buf[4] == 0 && d.Buf[5] == 0 || fold(sum(d.Buf[:24], 0)) != 0xffff {
				t.Errorf("%v, number %#x: header %x", s, seq, d.Buf[:24])
			}
			in := arrive(d, 0)
			if _, err := e.in.OpenPacket(0, &in, 0); err != nil && seq != 0 {
				t.Errorf("%v, number %#x: %v", s, seq, err)
			}
		}
	}
}

// A source route that has been travelled leaves the destination as it is in the header.
func TestAHKnowsTravelledSourceRoutes(t *testing.T) {
	pkt := withOptions(ipv4Packet(ProtoUDP, 0, 20), 8)
	copy(pkt[20:], []byte{131, 7, 8, 192, 0, 2, 99, 0})
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, func(sa *SA) { sa.Mode = Transport })
	d := e.seal(t, pkt, gw4)
	if d.Remote != gw4.Remote {
		t.Errorf("sent to %v", d.Remote)
	}
	in := arrive(d, 0)
	if _, err := e.in.OpenPacket(0, &in, 0); err != nil {
		t.Errorf("opened: %v", err)
	}
	d = e.seal(t, ipv6Packet(ProtoUDP, ports, ext{ProtoRouting, append([]byte{0, 2, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...)}), gw6)
	in = arrive(d, 0)
	in.Buf[43] = 1 // on the way to somebody else, as it seems
	if _, err := e.in.OpenPacket(0, &in, 0); err != ErrHeaders {
		t.Errorf("a routing header that is not at its end: %v", err)
	}
	in.Buf[43] = 0
	if _, err := e.in.OpenPacket(0, &in, 0); err != nil {
		t.Errorf("opened: %v", err)
	}
}

func TestAHOfAnotherLengthIsRefused(t *testing.T) {
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, func(sa *SA) { sa.Mode = Transport })
	long := ipv4Packet(ProtoUDP, 0, 20)
	// 8 octets of padding where none is needed: an honest ICV does not help (RFC 4302 section 3.3.3.2.1).
	ah, _, _ := refAH(e.sa, false, 1, ProtoUDP)
	ah = append(ah, make([]byte, 8)...)
	ah[1] += 2
	m := append([]byte{}, long[:20]...)
	binary.BigEndian.PutUint16(m[2:], uint16(len(long)+len(ah)))
	m[9] = ProtoAH
	covered := append([]byte{}, m...)
	covered[8] = 0
	tag := refAHICV(e.sa, append(append(covered, ah...), long[20:]...), 1)
	copy(ah[12:], tag)
	pkt := append(append(m, ah...), long[20:]...)
	in := Datagram{Buf: pkt, N: len(pkt), Whole: true}
	if _, err := e.in.OpenPacket(0, &in, 0); err != ErrShort {
		t.Errorf("excess padding gives %v", err)
	}
	good := arrive(e.seal(t, long, gw4), 0)
	for n := range good.N {
		cut := arrive(good, 0)
		cut.N = n
		if _, err := e.in.OpenPacket(0, &cut, 0); err != ErrHeaders {
			t.Errorf("cut to %d octets: %v", n, err)
		}
		binary.BigEndian.PutUint16(cut.Buf[2:], uint16(n)) // and it says so
		if _, err := e.in.OpenPacket(0, &cut, 0); err != ErrHeaders && err != ErrShort && err != ErrAuth {
			t.Errorf("shortened to %d octets: %v", n, err)
		}
	}
	tight := arrive(good, 0)
	if _, err := e.in.OpenPacket(0, &tight, 100); err != ErrNoRoom {
		t.Errorf("more room than there is: %v", err)
	}
	good = arrive(good, 100)
	if pkt, err := e.in.OpenPacket(0, &good, 100); err != nil || !bytes.Equal(pkt[100:], rightSum(long)) {
		t.Errorf("with 100 octets of room: %v\n%x, want\n%x", err, pkt[100:], rightSum(long))
	}
}

// rightSum returns an IPv4 packet without options with its identification and checksum as AH's way makes them.
func rightSum(pkt []byte) []byte {
	out := bytes.Clone(pkt)
	binary.BigEndian.PutUint16(out[4:], identification(1))
	refSum4(out[:20])
	return out
}

// Options that contradict themselves are found before anything is done.
func TestAHRefusesMalformedOptions(t *testing.T) {
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, func(sa *SA) { sa.Mode = Transport })
	four := func(opts ...byte) []byte {
		pkt := withOptions(ipv4Packet(ProtoUDP, 0, 20), (len(opts)+3)&^3)
		copy(pkt[20:], opts)
		return pkt
	}
	six := func(proto uint8, body ...byte) []byte { return ipv6Packet(ProtoUDP, ports, ext{proto, body}) }
	long := ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 60))
	for what, pkt := range map[string][]byte{
		"an option of length 0":       four(7, 0),
		"an option of length 1":       four(7, 1),
		"an option without length":    four(1, 1, 1, 7),
		"an option beyond the header": four(130, 12, 0, 0),
		"a route of no address size":  four(131, 8, 4, 0, 0, 0, 0, 0),
		"a route without pointer":     four(131, 2),
		"two routes":                  four(131, 7, 4, 1, 2, 3, 4, 137, 7, 4, 1, 2, 3, 4),
		"an IPv6 option too long":     six(ProtoHopByHop, 0, 0, 0x3e, 5, 0, 0, 0, 0),
		"an IPv6 option cut off":      six(ProtoHopByHop, 0, 0, 1, 3, 0, 0, 0, 7),
		"a route longer than it is":   six(ProtoRouting, 0, 0, 0, 1, 0, 0, 0, 0),
		"a route of odd length":       six(ProtoRouting, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		"headers too long for it":     long,
	} {
		buf := framed(pkt)
		was, d := bytes.Clone(buf), gw4
		if pkt[0]>>4 == 6 {
			d = gw6
		}
		if err := e.out.SealPacket(0, 1, buf, HeadRoomWhole, len(pkt), &d); err != ErrHeaders || !bytes.Equal(buf, was) {
			t.Errorf("%s: SealPacket gives %v", what, err)
		}
		// And on the way in, where the ICV might even be right.
		ah, _, _ := refAH(e.sa, pkt[0]>>4 == 6, 1, ProtoUDP)
		body := len(ports)
		if pkt[0]>>4 == 4 {
			body = 20
		}
		at := len(pkt) - body
		in := append(append(bytes.Clone(pkt[:at]), ah...), pkt[at:]...)
		switch {
		case pkt[0]>>4 == 4:
			in[9] = ProtoAH
			binary.BigEndian.PutUint16(in[2:], uint16(len(in)))
		default:
			in[40] = ProtoAH
			binary.BigEndian.PutUint16(in[4:], uint16(len(in)-40))
		}
		g := Datagram{Buf: in, N: len(in), Whole: true}
		before := state(e.in)
		if _, err := e.in.OpenPacket(0, &g, 0); err != ErrHeaders && err != ErrAuth || state(e.in) != before {
			t.Errorf("%s: OpenPacket gives %v", what, err)
		}
	}
}

// The keys may go while a packet is on its way: it is given back as it was.
func TestPacketsSurviveWipedKeys(t *testing.T) {
	a, b := gw4.Local, gw4.Remote.Addr()
	pkt := withOptions(ipv4Packet(ProtoUDP, 0, 20), 8)
	for i := range pkt {
		if pkt[i] == 0 && i > 24 {
			pkt[i] = byte(i)
		}
	}
	copy(pkt[20:], []byte{1, 1, 1, 1, 1, 1, 1, 0})
	one := func(a netip.Addr) []Selector { return []Selector{SelectorFromPrefix(netip.PrefixFrom(a, 32))} }
	for _, s := range modeSuites {
		for _, mode := range []Mode{Tunnel, Transport, BEET} {
			for _, whole := range []bool{false, true} {
				e := newEnds(t, s, func(sa *SA) { sa.Mode, sa.LocalTS, sa.RemoteTS = mode, one(a), one(b) })
				e.out.Wipe()
				d, buf := gw4, framed(pkt)
				d.Whole = whole
				if err := e.out.SealPacket(0, 1, buf, HeadRoomWhole, len(pkt), &d); err != ErrWiped || !bytes.Equal(buf[HeadRoomWhole:], framed(pkt)[HeadRoomWhole:]) {
					t.Errorf("%v %v, whole %v: %v; the packet is\n%x, was\n%x", s, mode, whole, err, buf[HeadRoomWhole:], pkt)
				}
			}
		}
	}
}

// A UDP checksum that comes out as 0 is sent as all ones: 0 would say that there is none.
func TestMendedUDPChecksumIsNeverZero(t *testing.T) {
	src, dst, seen := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	for _, known := range []bool{true, false} {
		e := newEnds(t, modeSuites[0], func(sa *SA) {
			sa.Mode, sa.Encap = Transport, true
			if known {
				sa.OrigLocal = src
			}
		})
		l4 := natted(rand.New(rand.NewSource(1)), ProtoUDP, seen, dst, 20)
		// The last two octets make up for the rest.
		rest := binary.BigEndian.Uint16(l4[6:])
		last := uint32(binary.BigEndian.Uint16(l4[18:])) + uint32(rest)
		binary.BigEndian.PutUint16(l4[18:], uint16(last%0xffff))
		refUpper(ProtoUDP, src, dst, l4)
		in := arrive(e.seal(t, rebuilt(false, src, dst, 0, 64, ProtoUDP, nil, l4), Datagram{Local: src, Remote: netip.AddrPortFrom(dst, 4500)}), OpenRoom)
		in.Remote = netip.AddrPortFrom(seen, 4500)
		pkt, err := e.in.OpenPacket(0, &in, 0)
		if err != nil || pkt[26] != 0xff || pkt[27] != 0xff {
			t.Errorf("known: %v: %v, the checksum of %x is not all ones", known, err, pkt)
		}
	}
}

func TestDummiesAndForeignLengthsOutsideTunnels(t *testing.T) {
	a, b := gw4.Local, gw4.Remote.Addr()
	for _, e := range []*ends{newEnds(t, modeSuites[0], func(sa *SA) { sa.Mode = Transport }), beetEnds(t, modeSuites[0], a, b)} {
		pkt := refPacket(e.sa, 1, make([]byte, 30), ProtoNoNext)
		d := gw4
		d.Buf, d.N = append(pkt, make([]byte, OpenRoom)...), len(pkt)
		if _, err := e.in.OpenPacket(0, &d, 16); err != ErrDummy {
			t.Errorf("%v: a dummy gives %v", e.sa.Mode, err)
		}
		pkt = refPacket(e.sa, 2, make([]byte, 65520), ProtoUDP)
		d.Buf, d.N = append(pkt, make([]byte, OpenRoom)...), len(pkt)
		if _, err := e.in.OpenPacket(0, &d, 16); err != ErrMalformed {
			t.Errorf("%v: what IPv4 cannot describe gives %v", e.sa.Mode, err)
		}
		d.Local = gw6.Local
		pkt = refPacket(e.sa, 3, make([]byte, 20), ProtoUDP)
		d.Buf, d.N = append(pkt, make([]byte, OpenRoom)...), len(pkt)
		if _, err := e.in.OpenPacket(0, &d, 16); (err == ErrHeaders) != (e.sa.Mode == Transport) {
			t.Errorf("%v: outer addresses of two families give %v", e.sa.Mode, err)
		}
	}
	buf := framed(ipv4Packet(ProtoUDP, 0, 20))
	for _, e := range []*ends{beetEnds(t, modeSuites[0], b, b), beetEnds(t, modeSuites[0], a, a)} {
		if err := e.out.Check(buf, HeadRoomWhole, 40, &Datagram{Local: a, Remote: gw4.Remote}); err != ErrAddresses {
			t.Errorf("BEET for %v and %v: %v", e.sa.LocalTS[0], e.sa.RemoteTS[0], err)
		}
	}
}

func TestWholePacketsCostNoAllocation(t *testing.T) {
	a, b := gw4.Local, gw4.Remote.Addr()
	all := []*ends{beetEnds(t, modeSuites[0], a, b)}
	for _, s := range append(ahSuites(), modeSuites...) {
		all = append(all, newEnds(t, s, nil), newEnds(t, s, func(sa *SA) { sa.Mode, sa.OrigLocal = Transport, netip.MustParseAddr("192.0.2.1") }))
	}
	for _, e := range all {
		for _, pkt := range [][]byte{ipv4Packet(ProtoUDP, 0, 500), withOptions(ipv4Packet(ProtoTCP, 0, 500), 12), ipv6Packet(ProtoTCP, make([]byte, 500), opts(ProtoHopByHop, 0))} {
			d := gw4
			if pkt[0]>>4 == 6 {
				if e.sa.Mode == BEET {
					continue
				}
				d = gw6
			}
			buf, arrived := framed(pkt), make([]byte, 1000)
			var err error
			noAllocs(t, e.sa.Suite.String()+" "+e.sa.Mode.String(), func() {
				copy(buf[HeadRoomWhole:], pkt)
				e.seq++
				out := d
				if err = e.out.SealPacket(0, e.seq, buf, HeadRoomWhole, len(pkt), &out); err != nil {
					return
				}
				out.Buf = arrived[:copy(arrived, out.Buf)]
				out.Buf = out.Buf[:cap(out.Buf)]
				out.Local, out.Remote = d.Remote.Addr(), netip.AddrPortFrom(d.Local, 0)
				_, err = e.in.OpenPacket(0, &out, 16)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// MaxPacket is exact: one octet more no longer fits.
func TestMaxPacketIsTheLongestThatFits(t *testing.T) {
	suites := append(append([]Suite{}, modeSuites...), Suite{Integ: IntegHMACSHA196}, Suite{Integ: IntegHMACSHA256_128}, Suite{Integ: IntegAES256GMAC})
	in4, in6 := mustSelector("10.1.0.1/32"), mustSelector("fd00:1::1/128")
	to4, to6 := mustSelector("10.2.0.2/32"), mustSelector("fd00:2::2/128")
	for _, s := range suites {
		for _, mode := range []Mode{Tunnel, Transport, BEET} {
			for i := range 8 {
				inner6, outer6, encap := i&1 != 0, i&2 != 0, i&4 != 0
				if s.Encr == EncrNone && (encap || mode == BEET) || mode == Transport && inner6 != outer6 {
					continue
				}
				d := gw4
				if outer6 {
					d = gw6
				}
				local, remote := in4, to4
				if inner6 {
					local, remote = in6, to6
				}
				e := newEnds(t, s, func(sa *SA) {
					sa.Mode, sa.Remote, sa.Encap = mode, d.Remote, encap
					sa.LocalTS, sa.RemoteTS = []Selector{local}, []Selector{remote}
				})
				for mtu := 576; mtu < 576+40; mtu++ {
					n := e.sa.MaxPacket(mtu)
					for _, n := range []int{n, n + 1} {
						pkt := ipv4Packet(ProtoUDP, 0, n-20)
						if inner6 {
							pkt = ipv6Packet(ProtoUDP, make([]byte, n-40))
						}
						out := e.seal(t, pkt, d)
						size := out.N
						if !out.Whole {
							size += headerLen(d.Local)
						}
						if encap {
							size += 8
						}
						if fits := size <= mtu; fits != (n == e.sa.MaxPacket(mtu)) {
							t.Fatalf("%v %v, inner IPv6 %v, outer IPv6 %v, UDP %v: %d octets become %d, MTU %d", s, mode, inner6, outer6, encap, n, size, mtu)
						}
					}
				}
			}
		}
	}
	if n := (&SA{Proto: AH, Suite: Suite{Integ: IntegHMACSHA196}}).MaxPacket(20); n != 0 {
		t.Errorf("%d octets fit into 20", n)
	}
}
