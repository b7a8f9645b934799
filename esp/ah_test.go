package esp

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"math/rand"
	"net/netip"
	"testing"
)

// ahSuites returns every suite of AH, without and with ESN.
func ahSuites() []Suite {
	var out []Suite
	for _, esn := range []bool{false, true} {
		for _, i := range []IntegID{IntegHMACSHA196, IntegHMACSHA256_128, IntegHMACSHA384_192, IntegHMACSHA512_256,
			IntegAESXCBC96, IntegAESCMAC96, IntegAES128GMAC, IntegAES192GMAC, IntegAES256GMAC} {
			out = append(out, Suite{Integ: i, ESN: esn})
		}
	}
	return out
}

// ends are both ends of an SA, and a sequence number for it.
type ends struct {
	sa  *SA // as the sender has it
	out *Outbound
	in  *Inbound
	seq uint64
}

// newEnds makes both ends of an SA of the suite, which change turns into what is to be tested. The
// receiver gets it with the sides exchanged.
func newEnds(t testing.TB, s Suite, change func(sa *SA)) *ends {
	t.Helper()
	sa := testSA(s, Out)
	if s.Encr == EncrNone {
		sa.Proto = AH
	}
	if change != nil {
		change(sa)
	}
	rev := *sa
	rev.Dir, rev.LocalTS, rev.RemoteTS = In, sa.RemoteTS, sa.LocalTS
	rev.OrigLocal, rev.OrigRemote = sa.OrigRemote, sa.OrigLocal
	e := &ends{sa: sa}
	var err error
	if e.out, err = NewOutbound(sa, 1); err != nil {
		t.Fatal(err)
	}
	if e.in, err = NewInbound(&rev, 1); err != nil {
		t.Fatal(err)
	}
	return e
}

// seal seals a packet between src and dst under the next sequence number.
func (e *ends) seal(t testing.TB, pkt []byte, d Datagram) Datagram {
	t.Helper()
	buf := make([]byte, HeadRoomWhole+len(pkt)+TailRoom)
	copy(buf[HeadRoomWhole:], pkt)
	if err := e.out.Check(buf, HeadRoomWhole, len(pkt), &d); err != nil {
		t.Fatalf("%v %v: Check: %v of %x", e.sa.Suite, e.sa.Mode, err, pkt)
	}
	var n int
	if e.seq, n = e.out.Reserve(1, len(pkt)); n != 1 {
		t.Fatal("no number")
	}
	if err := e.out.SealPacket(0, e.seq, buf, HeadRoomWhole, len(pkt), &d); err != nil {
		t.Fatalf("%v %v: SealPacket: %v of %x", e.sa.Suite, e.sa.Mode, err, pkt)
	}
	return d
}

// arrive makes of a sealed datagram the one that the receiver gets, in a buffer of its own.
func arrive(d Datagram, extra int) Datagram {
	in := d
	in.Buf = make([]byte, d.N+extra)
	copy(in.Buf, d.Buf[:d.N])
	in.Local, in.Remote = d.Remote.Addr(), netip.AddrPortFrom(d.Local, d.Remote.Port())
	return in
}

// refAHICV is the ICV of AH over covered, the packet as RFC 4302 wants it covered.
func refAHICV(sa *SA, covered []byte, seq uint64) []byte {
	if sa.Suite.ESN {
		covered = append(covered, be(seq>>32, 4)...)
	}
	switch sa.Suite.Integ {
	case IntegAES128GMAC, IntegAES192GMAC, IntegAES256GMAC:
		n := len(sa.IntegKey) - 4
		gcm, err := cipher.NewGCM(refBlock(sa.IntegKey[:n]))
		if err != nil {
			panic(err)
		}
		return gcm.Seal(nil, append(append([]byte{}, sa.IntegKey[n:]...), be(seq, 8)...), nil, covered)
	}
	return refMAC(sa.Suite.Integ, sa.IntegKey, covered)
}

// refAH returns AH with zeros where the ICV will be, and how many octets of IV and ICV it has.
func refAH(sa *SA, v6 bool, seq uint64, next uint8) (ah []byte, iv, icv int) {
	icv = len(refAHICV(sa, nil, 0))
	switch sa.Suite.Integ {
	case IntegAES128GMAC, IntegAES192GMAC, IntegAES256GMAC:
		iv = 8
	}
	n := 12 + iv + icv
	for n%4 != 0 || v6 && n%8 != 0 {
		n++
	}
	ah = append([]byte{next, byte(n/4 - 2), 0, 0}, be(uint64(sa.SPI), 4)...)
	ah = append(ah, be(seq, 4)...)
	return append(ah, make([]byte, n-12)...), iv, icv
}

// refAHPacket puts AH between a prefix, which covered is as the ICV covers it, and a body. Lengths and
// next header are right in both.
func refAHPacket(sa *SA, v6 bool, seq uint64, prefix, covered, body []byte, next uint8) []byte {
	ah, iv, icv := refAH(sa, v6, seq, next)
	all := append(append(append([]byte{}, covered...), ah...), body...)
	tag := refAHICV(sa, all, seq)
	if iv > 0 {
		copy(ah[12:], be(seq, 8))
	}
	copy(ah[12+iv:12+iv+icv], tag)
	return append(append(append([]byte{}, prefix...), ah...), body...)
}

func makeAny(r *rand.Rand, v6, options bool, n int) *made {
	if v6 {
		return make6(r, options, n)
	}
	return make4(r, options, n)
}

func rounds(full int) int {
	if testing.Short() {
		return max(full/10, 2)
	}
	return full
}

func TestAHTransportAgreesWithReference(t *testing.T) {
	r := rand.New(rand.NewSource(4302))
	for _, s := range ahSuites() {
		e := newEnds(t, s, func(sa *SA) { sa.Mode = Transport })
		for i := range rounds(200) {
			m := makeAny(r, i%2 == 1, i%4 > 1, r.Intn(200))
			d := e.seal(t, m.packet(), Datagram{Local: m.src, Remote: netip.AddrPortFrom(m.dst, 0)})
			ah, _, _ := refAH(e.sa, m.v6, e.seq, m.proto)
			m.set(m.nextAt, ProtoAH)
			m.lengths(len(ah))
			want := refAHPacket(e.sa, m.v6, e.seq, m.leaves, m.covered, m.payload, m.proto)
			if !d.Whole || !bytes.Equal(d.Buf[:d.N], want) {
				t.Fatalf("%v: sealed\n%x, want\n%x", s, d.Buf[:d.N], want)
			}
			if first := (&prefix{v6: m.v6}).first(want); d.Remote.Addr() != first {
				t.Fatalf("%v: sent to %v, the header says %v", s, d.Remote, first)
			}

			// What the routers have made of it opens to the packet, and no second time.
			in := arrive(d, r.Intn(2)*OpenRoom)
			copy(in.Buf, m.arrives)
			if spi, proto := in.SPI(); spi != e.sa.SPI || proto != AH {
				t.Fatalf("%v: SPI %08x of %v", s, spi, proto)
			}
			again := arrive(in, 0)
			pkt, err := e.in.OpenPacket(0, &in, 16)
			m.set(m.nextAt, m.proto)
			if want := m.received(); err != nil || !bytes.Equal(pkt[16:], want) {
				t.Fatalf("%v: opened %v\n%x, want\n%x", s, err, pkt, want)
			}
			if _, err := e.in.OpenPacket(0, &again, 16); err != ErrReplay {
				t.Fatalf("%v: the second copy gives %v", s, err)
			}
		}
	}
}

func TestAHTunnelAgreesWithReference(t *testing.T) {
	r := rand.New(rand.NewSource(4302))
	gw := [2][2]netip.Addr{
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")},
		{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::7")},
	}
	for _, s := range ahSuites() {
		e := newEnds(t, s, nil)
		for i := range rounds(80) {
			outer := gw[i%2]
			v6 := i%2 == 1
			m := makeAny(r, i&2 != 0, i&4 != 0, r.Intn(200))
			pkt := m.packet()
			if !m.v6 { // tunnel mode carries fragments as well
				binary.BigEndian.PutUint16(pkt[6:], 0x2007)
				refSum4(pkt[:len(m.leaves)])
			}
			d := e.seal(t, pkt, Datagram{Local: outer[0], Remote: netip.AddrPortFrom(outer[1], 0)})
			next := uint8(ProtoIPv4)
			if m.v6 {
				next = ProtoIPv6
			}
			ah, _, _ := refAH(e.sa, v6, e.seq, next)
			got := d.Buf[:d.N]
			var head, covered []byte
			if v6 {
				tos := d.TOS
				n := be(uint64(len(ah)+len(pkt)), 2)
				src, dst := outer[0].As16(), outer[1].As16()
				addrs := append(src[:], dst[:]...)
				head = append([]byte{0x60 | tos>>4, tos << 4, 0, 0, n[0], n[1], 51, 64}, addrs...)
				covered = append([]byte{0x60, 0, 0, 0, n[0], n[1], 51, 0}, addrs...)
			} else {
				n := be(uint64(20+len(ah)+len(pkt)), 2)
				id := got[4:6]
				if id[0] == 0 && id[1] == 0 {
					t.Fatal("the outer header has no identification: the system would replace it")
				}
				df := byte(0)
				if d.DF {
					df = 0x40
				}
				src, dst := outer[0].As4(), outer[1].As4()
				addrs := append(src[:], dst[:]...)
				head = append([]byte{0x45, d.TOS, n[0], n[1], id[0], id[1], df, 0, 64, 51, 0, 0}, addrs...)
				covered = append([]byte{0x45, 0, n[0], n[1], id[0], id[1], 0, 0, 0, 51, 0, 0}, addrs...)
				refSum4(head)
			}
			want := refAHPacket(e.sa, v6, e.seq, head, covered, pkt, next)
			if !bytes.Equal(got, want) {
				t.Fatalf("%v: sealed\n%x, want\n%x", s, got, want)
			}
			if m.v6 != d.DF {
				t.Fatalf("%v: DF is %v for an inner packet of IPv6: %v", s, d.DF, m.v6)
			}
			in := arrive(d, 0)
			in.TOS, in.TTL = 99, 99
			opened, err := e.in.OpenPacket(0, &in, 16)
			if in.TOS != d.TOS || in.TTL != 64 {
				t.Fatalf("the header says TOS %#x and TTL 64, the datagram %#x and %d", d.TOS, in.TOS, in.TTL)
			}
			if err != nil || !bytes.Equal(opened[16:], pkt) {
				t.Fatalf("%v: opened %v\n%x, want\n%x", s, err, opened, pkt)
			}
		}
	}
}

// Every bit of every octet that RFC 4302 does not call mutable counts.
func TestAHRejectsEveryImmutableBitFlipped(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for _, s := range ahSuites() {
		if s.Integ != IntegHMACSHA256_128 && s.Integ != IntegAES128GMAC {
			continue
		}
		e := newEnds(t, s, func(sa *SA) { sa.Mode = Transport })
		for i := range rounds(24) {
			m := makeAny(r, i%2 == 1, i%4 > 1, 20)
			d := e.seal(t, m.packet(), Datagram{Local: m.src, Remote: netip.AddrPortFrom(m.dst, 0)})
			m.set(m.nextAt, ProtoAH)
			m.lengths(d.N - len(m.leaves) - len(m.payload))
			good := arrive(d, 0)
			copy(good.Buf, m.arrives)
			before := state(e.in)
			for at := range good.Buf {
				for bit := range 8 {
					if at < len(m.covered) && m.isMutable(at, bit) {
						continue
					}
					bad := arrive(good, 0)
					bad.Buf[at] ^= 1 << bit
					if _, err := e.in.OpenPacket(0, &bad, 16); err == nil {
						t.Fatalf("%v: octet %d bit %d of %x flipped, and it opens", s, at, bit, good.Buf)
					}
					if after := state(e.in); after != before {
						t.Fatalf("%v: octet %d bit %d: the state went from %s to %s", s, at, bit, before, after)
					}
				}
			}
			if _, err := e.in.OpenPacket(0, &good, 16); err != nil {
				t.Fatalf("%v: after its forgeries the packet gives %v", s, err)
			}
		}
	}
}

// isMutable tells whether a bit of the prefix may change on the way: its octet was built so, but for
// the version in IPv6's first.
func (m *made) isMutable(at, bit int) bool {
	if m.v6 && at == 0 {
		return bit < 4
	}
	return at < len(m.loose) && m.loose[at]
}

func TestAHNeedsWholePackets(t *testing.T) {
	s := Suite{Integ: IntegHMACSHA256_128}
	for _, pkt := range [][]byte{
		ipv4Packet(ProtoUDP, 0x2000, 40), ipv4Packet(ProtoUDP, 3, 40),
		ipv6Packet(ProtoUDP, make([]byte, 40), fragHeader(0, true)), ipv6Packet(ProtoUDP, make([]byte, 40), fragHeader(5, false)),
	} {
		for _, change := range []func(*SA){
			func(sa *SA) { sa.Mode = Transport },
			func(sa *SA) { sa.Mode, sa.Proto, sa.Suite = Transport, ESP, Suite{Encr: EncrAESGCM16, KeyBits: 128} },
		} {
			sa := testSA(s, Out)
			sa.Proto = AH
			change(sa)
			encr, integ := sa.Suite.KeyLens()
			sa.EncrKey, sa.IntegKey = make([]byte, encr), make([]byte, integ)
			o, err := NewOutbound(sa, 1)
			if err != nil {
				t.Fatal(err)
			}
			var f Flow
			if err := ParseFlow(pkt, true, &f); err != nil {
				t.Fatal(err)
			}
			d := Datagram{Local: f.Local, Remote: netip.AddrPortFrom(f.Remote, 0)}
			buf := append(append(make([]byte, HeadRoomWhole), pkt...), make([]byte, TailRoom)...)
			was := bytes.Clone(buf)
			if err := o.Check(buf, HeadRoomWhole, len(pkt), &d); err != ErrFragment {
				t.Errorf("%v: Check of a fragment gives %v", sa.Proto, err)
			}
			if err := o.SealPacket(0, 1, buf, HeadRoomWhole, len(pkt), &d); err != ErrFragment || !bytes.Equal(buf, was) {
				t.Errorf("%v: SealPacket of a fragment gives %v", sa.Proto, err)
			}
		}
	}
	// In: a router has cut it, or says so.
	e := newEnds(t, s, func(sa *SA) { sa.Mode = Transport })
	pkt := ipv4Packet(ProtoUDP, 0, 40)
	d := e.seal(t, pkt, Datagram{Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddrPort("10.2.0.2:0")})
	for _, frag := range []uint16{0x2000, 1, 0x2001} {
		in := arrive(d, 0)
		binary.BigEndian.PutUint16(in.Buf[6:], frag)
		if _, err := e.in.OpenPacket(0, &in, 16); err != ErrFragment {
			t.Errorf("flags and offset %#x give %v", frag, err)
		}
	}
}

// A fragment header that says that the packet is whole is not covered (RFC 4302 appendix A2).
func TestAHPassesOverFragmentHeaderOfWholePacket(t *testing.T) {
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, func(sa *SA) { sa.Mode = Transport })
	to := Datagram{Local: netip.MustParseAddr("fd00:1::1"), Remote: netip.MustParseAddrPort("[fd00:2::2]:0")}
	plain := ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0))
	d := e.seal(t, ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0), fragHeader(0, false)), to)
	in := arrive(d, 0)
	if pkt, err := e.in.OpenPacket(0, &in, 0); err != nil || !bytes.Equal(pkt, plain) {
		t.Fatalf("sealed with a fragment header, the packet opens as %x, %v; want %x", pkt, err, plain)
	}
	d = e.seal(t, plain, to)
	in = arrive(d, 8)
	in.N += 8
	copy(in.Buf[56:], d.Buf[48:d.N])
	copy(in.Buf[48:], fragHeader(0, false).body)
	in.Buf[40], in.Buf[48] = ProtoFragment, ProtoAH
	binary.BigEndian.PutUint16(in.Buf[4:], uint16(in.N-40))
	if pkt, err := e.in.OpenPacket(0, &in, 0); err != nil || !bytes.Equal(pkt, plain) {
		t.Fatalf("arrived with a fragment header, the packet opens as %x, %v; want %x", pkt, err, plain)
	}
}

// The pieces at their limits: what Seal and Open, which are ESP's, make of an SA of AH.
func TestESPAndAHDoNotMix(t *testing.T) {
	ah := newEnds(t, Suite{Integ: IntegHMACSHA196}, nil)
	buf := make([]byte, 500)
	if _, _, err := ah.out.Seal(0, buf, 200, 100, ProtoIPv4); err != ErrNoRoom {
		t.Errorf("Seal under AH gives %v", err)
	}
	if _, _, err := ah.in.Open(0, buf); err != ErrShort {
		t.Errorf("Open under AH gives %v", err)
	}
	esp := newEnds(t, Suite{Encr: EncrAESGCM16, KeyBits: 128}, nil)
	to := Datagram{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:0")}
	a, b := ah.seal(t, ipv4Packet(ProtoUDP, 0, 40), to), esp.seal(t, ipv4Packet(ProtoUDP, 0, 40), to)
	ina, inb := arrive(a, 0), arrive(b, 0)
	if _, err := ah.in.OpenPacket(0, &inb, 0); err != ErrHeaders {
		t.Errorf("ESP under AH gives %v", err)
	}
	if _, err := esp.in.OpenPacket(0, &ina, 0); err != ErrHeaders {
		t.Errorf("AH under ESP gives %v", err)
	}
}

func TestAHAcrossTheLowHalfsWrap(t *testing.T) {
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128, ESN: true}, nil)
	e.out.seq.Store(1<<32 - 3)
	e.in.win.top.Store(1<<32 - 3)
	to := Datagram{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:0")}
	for range 6 {
		in := arrive(e.seal(t, ipv4Packet(ProtoUDP, 0, 40), to), 0)
		if _, err := e.in.OpenPacket(0, &in, 0); err != nil {
			t.Fatalf("number %#x: %v", e.seq, err)
		}
	}
	if top := e.in.win.top.Load(); top != 1<<32+3 {
		t.Errorf("the window is at %#x", top)
	}
}

// Around ESP: AH in transport mode covers an ESP packet, which the receiver finds as a packet again.
func TestAHAroundESP(t *testing.T) {
	r := rand.New(rand.NewSource(9))
	for i := range rounds(200) {
		mode := []Mode{Tunnel, Transport}[i/2%2]
		m := makeAny(r, i%2 == 1, i%8 > 3, 100)
		esp := newEnds(t, Suite{Encr: EncrAESGCM16, KeyBits: 128}, func(sa *SA) { sa.Mode = mode })
		ah := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, func(sa *SA) { sa.Mode = Transport })
		pkt := m.packet()
		buf := append(append(make([]byte, 200), pkt...), make([]byte, TailRoom)...)
		d := Datagram{Local: m.src, Remote: netip.AddrPortFrom(m.dst, 0), Whole: true}
		if err := esp.out.SealPacket(0, 1, buf, 200, len(pkt), &d); err != nil {
			t.Fatal(err)
		}
		off := cap(buf) - cap(d.Buf)
		d.Remote = netip.AddrPortFrom(m.dst, 0)
		if err := ah.out.SealPacket(0, 1, buf, off, d.N, &d); err != nil {
			t.Fatal(err)
		}
		in := arrive(d, 0)
		if m.routed && mode == Transport {
			copy(in.Buf, m.arrives)
			m.set(m.nextAt, ProtoAH)
			m.lengths(d.N - len(m.leaves) - len(m.payload))
			copy(in.Buf, m.arrives)
			m.set(m.nextAt, m.proto)
			m.lengths(0)
		}
		inner, err := ah.in.OpenPacket(0, &in, 0)
		if err != nil {
			t.Fatal(err)
		}
		d = Datagram{Buf: inner, N: len(inner), Whole: true}
		if spi, proto := d.SPI(); spi != esp.sa.SPI || proto != ESP {
			t.Fatalf("inside is SPI %08x of %v", spi, proto)
		}
		got, err := esp.in.OpenPacket(0, &d, 0)
		want := pkt
		if m.routed && mode == Transport {
			want = m.received()
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v: %v\n%x, want\n%x", mode, err, got, want)
		}
	}
}

func TestAHErrorsAreSentinels(t *testing.T) {
	e := newEnds(t, Suite{Integ: IntegHMACSHA256_128}, nil)
	e.out.Wipe()
	d := Datagram{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:0")}
	buf := append(append(make([]byte, HeadRoomWhole), ipv4Packet(ProtoUDP, 0, 40)...), make([]byte, TailRoom)...)
	was := bytes.Clone(buf)
	if err := e.out.SealPacket(0, 1, buf, HeadRoomWhole, 60, &d); !errors.Is(err, ErrWiped) || !bytes.Equal(buf, was) {
		t.Errorf("SealPacket without keys: %v", err)
	}
	e.in.Wipe()
	d.Buf, d.N, d.Whole = buf, 60, true
	if _, err := e.in.OpenPacket(0, &d, 0); err != ErrWiped {
		t.Errorf("OpenPacket without keys: %v", err)
	}
}
