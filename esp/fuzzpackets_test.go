package esp

import (
	"bytes"
	"math/rand"
	"net/netip"
	"testing"
)

// fuzzPackets adds packets of every kind to the seeds.
func fuzzPackets(f *testing.F) {
	r := rand.New(rand.NewSource(1))
	f.Add(uint8(0), []byte{})
	for i := range 16 {
		f.Add(uint8(i), makeAny(r, i%2 == 1, i%4 > 1, 40).packet())
	}
	f.Add(uint8(1), ipv6Packet(ProtoUDP, ports, fragHeader(0, false)))
	f.Add(uint8(2), ipv4Packet(ProtoUDP, 0x2000, 40))
	f.Add(uint8(9), ipv4Packet(ProtoNoNext, 0, 40))
	f.Add(uint8(67), ipv6Packet(ProtoNoNext, nil))
	f.Add(uint8(3), append([]byte{17, 0, 4, 0, 1, 1, 1, 1}, ports...))
	f.Add(uint8(4), append([]byte{6, 1, 0, 0, 7, 4, 4, 0, 1, 1, 1, 1}, make([]byte, 40)...))
}

// ownEnds returns the addresses between which a packet in transport mode travels.
func ownEnds(pkt []byte) (d Datagram, ok bool) {
	var p prefix
	if p.split(pkt) != nil {
		return d, false
	}
	last, err := p.last(pkt)
	if err != nil {
		return d, false
	}
	return Datagram{Local: p.source(pkt), Remote: netip.AddrPortFrom(last, 0)}, true
}

// sameBut tells whether two packets are the same but for what a header made anew may not keep: IPv4's
// identification and checksum.
func sameBut(a, b []byte) bool {
	if len(a) != len(b) || len(a) < 20 {
		return false
	}
	a, b = bytes.Clone(a), bytes.Clone(b)
	if a[0]>>4 == 4 {
		for _, pkt := range [][]byte{a, b} {
			clear(pkt[4:6])
			clear(pkt[10:12])
		}
	}
	return bytes.Equal(a, b)
}

// FuzzOpenAH feeds a packet to AH as it is, which must be rejected without a trace, and as what is to
// be protected: what SealPacket takes OpenPacket has to give back.
func FuzzOpenAH(f *testing.F) {
	fuzzPackets(f)
	suites := ahSuites()
	r := rand.New(rand.NewSource(2))
	for i, s := range suites {
		e := newEnds(f, s, func(sa *SA) { sa.Mode = Transport })
		m := makeAny(r, i%2 == 1, i%4 > 1, 40)
		pkt := m.packet()
		d, buf := Datagram{Local: m.src, Remote: netip.AddrPortFrom(m.dst, 0)}, framed(pkt)
		if err := e.out.SealPacket(0, 1<<20, buf, HeadRoomWhole, len(pkt), &d); err != nil {
			f.Fatal(err)
		}
		d.Buf[len(d.Buf)-1] ^= 1
		f.Add(uint8(i), bytes.Clone(d.Buf))
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		mode := Mode(which / 128)
		e := newEnds(t, suites[int(which)%len(suites)], func(sa *SA) { sa.Mode = mode })
		before := state(e.in)
		d := Datagram{Buf: bytes.Clone(data), N: len(data), Whole: true}
		d.SPI()
		if _, err := e.in.OpenPacket(0, &d, 16); err == nil || state(e.in) != before {
			t.Fatalf("%x: %v", data, err)
		}
		to, ok := gw4, true
		if mode == Transport {
			to, ok = ownEnds(data)
		}
		buf := framed(data)
		was := bytes.Clone(buf)
		out := to
		err := e.out.Check(buf, HeadRoomWhole, len(data), &out)
		if got := e.out.SealPacket(0, 1, buf, HeadRoomWhole, len(data), &out); got != err || err == nil && !ok {
			t.Fatalf("Check gives %v, SealPacket %v", err, got)
		}
		if err != nil {
			if !bytes.Equal(buf, was) {
				t.Fatalf("%v changed the packet", err)
			}
			return
		}
		var p prefix
		if mode == Transport && p.split(data) == nil && p.v6 {
			if left, _ := p.routeLeft(data); left > 0 { // it has to be travelled first
				return
			}
		}
		if out.Remote != to.Remote {
			return
		}
		in := arrive(out, 0)
		pkt, err := e.in.OpenPacket(0, &in, 16)
		if err != nil {
			t.Fatalf("sealed %x, opened: %v", out.Buf, err)
		}
		n, _ := InnerLen(data)
		if mode == Transport && p.split(data) == nil && p.skip == 0 && !sameBut(pkt[16:], data[:n]) || mode == Tunnel && !bytes.Equal(pkt[16:], data[:n]) {
			t.Fatalf("sealed\n%x, opened\n%x", data, pkt[16:])
		}
	})
}

// FuzzTransport does the same to transport mode and BEET, and takes the data for the payload of an
// authentic packet too: whatever comes of it is one whole IP packet.
func FuzzTransport(f *testing.F) {
	fuzzPackets(f)
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		s := modeSuites[int(which)%len(modeSuites)]
		to := gw4
		if which&16 != 0 {
			to = gw6
		}
		if which&32 != 0 {
			to.Remote = netip.AddrPortFrom(to.Remote.Addr(), 4500)
		}
		e := newEnds(t, s, func(sa *SA) { sa.Mode, sa.OrigRemote = Transport, gw4.Local })
		if which&64 != 0 {
			e = beetEnds(t, s, gw4.Local, gw4.Remote.Addr())
		}
		next := which
		if len(data) > 0 {
			next = data[0]
		}
		for i, next := range []uint8{next, 94, ProtoDstOpts, ProtoTCP, ProtoUDP} {
			arrived := refPacket(e.sa, uint64(i+1), data, next)
			d := Datagram{Buf: append(arrived, make([]byte, OpenRoom)...), N: len(arrived), Local: to.Local, Remote: to.Remote, TOS: which, TTL: 9}
			pkt, err := e.in.OpenPacket(0, &d, 16)
			if err != nil {
				if err != ErrMalformed && err != ErrDummy {
					t.Fatalf("an authentic packet gives %v", err)
				}
				continue
			}
			if n, err := InnerLen(pkt[16:]); err != nil || n != len(pkt)-16 {
				t.Fatalf("not a packet: %x", pkt[16:])
			}
			if h := pkt[16:]; h[0]>>4 == 4 && fold(sum(h[:int(h[0]&15)*4], 0)) != 0xffff {
				t.Fatalf("wrong checksum: %x", h)
			}
		}

		own, ok := ownEnds(data)
		if !ok || which&64 != 0 {
			own = to
		}
		buf := framed(data)
		was := bytes.Clone(buf)
		out := own
		err := e.out.Check(buf, HeadRoomWhole, len(data), &out)
		if got := e.out.SealPacket(0, 9, buf, HeadRoomWhole, len(data), &out); got != err {
			t.Fatalf("Check gives %v, SealPacket %v", err, got)
		}
		if err != nil {
			if !bytes.Equal(buf, was) {
				t.Fatalf("%v changed the packet", err)
			}
			return
		}
		in := arrive(out, OpenRoom)
		pkt, err := e.in.OpenPacket(0, &in, 16)
		var p prefix
		if err == ErrDummy && p.split(data) == nil && p.next == ProtoNoNext {
			return // what has no payload says the same as what only hides traffic
		}
		if err != nil {
			t.Fatalf("sealed %x of %x, opened: %v", out.Buf, data, err)
		}
		n, _ := InnerLen(data)
		if p.split(data) == nil && p.skip == 0 && p.n+len(pkt)-16 < n {
			t.Fatalf("sealed\n%x, opened\n%x", data, pkt[16:])
		}
	})
}
