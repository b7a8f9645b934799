package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"postern/board"
	"postern/esp"
)

// tcp6 is an IPv6 TCP packet of n octets, at least 60.
func tcp6(src, dst string, sport, dport uint16, n int) []byte {
	p := udp6(src, dst, sport, dport, n)
	clear(p[44:60])
	p[6], p[52], p[53] = 6, 5<<4, 0x10
	return p
}

// odd are packets that are like tcp4(srcHost, dstHost, 40000, 443, n) but for one thing, n at least 60.
// Those of another flow have another, or none.
func odd(n int) map[string][]byte {
	list := map[string][]byte{}
	with := func(what string, change func(p []byte)) {
		p := tcp4(srcHost, dstHost, 40000, 443, n)
		change(p)
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:min(max(int(p[0]&15)*4, 20), len(p))]))
		list[what] = p
	}
	with("another source port", func(p []byte) { p[20]++ })
	with("another destination port", func(p []byte) { p[23]++ })
	with("another source", func(p []byte) { p[15]++ })
	with("another destination", func(p []byte) { p[19]++ })
	with("another protocol with ports", func(p []byte) { p[9] = esp.ProtoUDP })
	with("another protocol without ports", func(p []byte) { p[9] = esp.ProtoOSPF })
	with("a later fragment", func(p []byte) { p[7] = 9 })
	with("a later fragment, not the last", func(p []byte) { p[6], p[7] = 0x20, 9 })
	with("options", func(p []byte) { p[0] = 0x46; copy(p[20:], []byte{0x9c, 0x40, 1, 0xbb}) }) // that look like the ports
	with("a header that is too short", func(p []byte) { p[0] = 0x44 })
	with("a length that leaves out the ports", func(p []byte) { p[2], p[3] = 0, 23 })
	with("a length beyond the packet's end", func(p []byte) { binary.BigEndian.PutUint16(p[2:], uint16(n+1)) })
	with("no length", func(p []byte) { p[2], p[3] = 0, 0 })
	with("no IP version", func(p []byte) { p[0] = 0x55 })
	with("the version of IPv6", func(p []byte) { p[0] = 0x65 })
	list["nothing"] = nil
	list["a truncated header"] = tcp4(srcHost, dstHost, 40000, 443, n)[:19]
	list["truncated ports"] = tcp4(srcHost, dstHost, 40000, 443, n)[:23]
	return list
}

// A packet whose key is easy to see has, by the long way, a flow with the same key and nothing that the long
// way alone would have found: whatever else is in it, and in which direction it goes.
func TestPlainKeyIsThatOfTheFlow(t *testing.T) {
	list := map[string][]byte{
		"TCP":       tcp4(srcHost, dstHost, 40000, 443, 60),
		"UDP":       udp4(srcHost, dstHost, 40000, 443, 60),
		"TCP, IPv6": tcp6("2001:db8:1::5", "2001:db8:2::9", 40000, 443, 80),
		"UDP, IPv6": udp6("2001:db8:1::5", "::ffff:10.2.0.9", 40000, 443, 80),
	}
	easy := map[string]bool{"another source port": true, "another destination port": true, "another source": true, "another destination": true, "another protocol with ports": true}
	for what := range list {
		easy[what] = true
	}
	maps.Copy(list, odd(60))
	look := func(pkt []byte) (plain bool) {
		for _, outbound := range []bool{false, true} {
			k := flowKey{addr: [4]uint64{1, 2, 3, 4}, rest: 5} // all of which has to go
			if plain = plainKey(pkt, outbound, &k); !plain {
				continue
			}
			var f esp.Flow
			if err := esp.ParseFlow(pkt, outbound, &f); err != nil {
				t.Fatalf("% x: the key was easy to see, but %v", pkt, err)
			}
			if want := keyOf(&f); k != want || !k.is(&want) {
				t.Fatalf("% x, outbound %v: the key is %x, and that of the flow %x", pkt, outbound, k, want)
			}
			if esp.MayBeFragment(pkt) {
				t.Fatalf("% x may be a fragment, and the key was easy to see", pkt)
			}
		}
		return plain
	}
	r := rand.New(rand.NewPCG(5, 6))
	for what, pkt := range list {
		if got := look(pkt); got != easy[what] {
			t.Errorf("%s: easy to see is %v, want %v", what, got, easy[what])
		}
		head := min(len(pkt), 48)
		for at := range head {
			for v := range 256 {
				p := bytes.Clone(pkt)
				p[at] = byte(v)
				look(p)
				look(p[:r.IntN(len(p)+1)])
			}
		}
		for range 20000 {
			p := bytes.Clone(pkt)
			for range r.IntN(4) {
				if head > 0 {
					p[r.IntN(head)] = byte(r.Uint32())
				}
			}
			look(p[:len(p)-min(len(p), r.IntN(8))])
		}
	}
}

func TestKeysAreTheSameOnlyInAllParts(t *testing.T) {
	a := flowKey{addr: [4]uint64{1, 2, 3, 4}, rest: 5}
	for i := range 5 {
		for bit := range 64 {
			b := a
			if i < 4 {
				b.addr[i] ^= 1 << bit
			} else {
				b.rest ^= 1 << bit
			}
			if a.is(&b) {
				t.Fatalf("keys that differ in bit %d of word %d count as the same", bit, i)
			}
		}
	}
	if b := a; !a.is(&b) {
		t.Error("a key is not the same as itself")
	}
}

// A packet between the segments of a stream leaves as it would alone, whatever it has in common with
// them, and so do they.
func TestPacketsAmongSegmentsLeaveAsAlone(t *testing.T) {
	newPath := func() (tp *testPath, stream, rest uint32) {
		tp = newTestPath(t, board.Large)
		near, far := portTS("10.1.0.5/32", esp.ProtoTCP, 40000, 40000), portTS("10.2.0.9/32", esp.ProtoTCP, 443, 443)
		one := protectPorts("stream", far)
		one.LocalTS = near
		tp.spd.set([]policySpec{one, protect("c", "rest", "10.1.0.0/16", "10.2.0.0/16")})
		_, a := tp.addPorted(t, "stream", far, false)
		_, b := tp.addLoop(t, testSuites[0], true, "c", "rest", "10.1.0.0/16", "10.2.0.0/16", true)
		return tp, a.spi, b.spi
	}
	seg := segments(srcHost, dstHost, 3, 20)
	took := map[uint32]int{}
	for what, pkt := range odd(60) {
		tp, stream, rest := newPath()
		alone := tp.through(pkt)
		took[alone]++
		if alone == stream {
			t.Errorf("%s: it leaves through the stream's SA, so this test shows nothing", what)
		}
		want := []uint32{stream, stream, stream}
		if alone != 0 {
			want = []uint32{stream, stream, alone, stream}
		}
		if alone != 0 && alone != rest {
			t.Fatalf("%s: it left with the SPI %x", what, alone)
		}
		// In a new path nothing is remembered, in the second round of it everything.
		tp, _, _ = newPath()
		for range 2 {
			was := len(tp.fakes[sockNATT4].datagrams())
			tp.send(seg[0], seg[1], pkt, seg[2])
			var got []uint32
			for _, d := range tp.fakes[sockNATT4].datagrams()[was:] {
				got = append(got, esp.SPIOf(d.Buf))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: the packets left with the SPIs %x, want %x", what, got, want)
			}
		}
	}
	_, _, rest := newPath()
	if took[0] < 3 || took[rest] < 3 {
		t.Errorf("of the odd packets %v left by each SPI (0: none did), too few of a kind", took)
	}
}

// The same on the way in: what an SA brings that its selectors do not cover, or that is malformed, is dropped among
// the segments that they cover.
func TestPacketsAmongSegmentsArriveAsAlone(t *testing.T) {
	seg := segments(srcHost, dstHost, 3, 20)
	for what, pkt := range odd(60) {
		if len(pkt) < 20 {
			continue // nothing seals it
		}
		tp := newTestPath(t, board.Large)
		isa, osa := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.5/32", "10.2.0.9/32", false)
		isa.localTS, isa.remoteTS = portTS("10.2.0.9/32", esp.ProtoTCP, 443, 443), portTS("10.1.0.5/32", esp.ProtoTCP, 40000, 40000)
		isa.nets, isa.ported = netPairOf(isa.localTS, isa.remoteTS), true
		if tp.bring(t, osa, pkt) {
			t.Fatalf("%s: it arrives alone, so this test shows nothing", what)
		}
		for _, mixed := range [][][]byte{{seg[0], seg[1], pkt, seg[2]}, {pkt, seg[0], pkt, pkt, seg[1], seg[2]}} {
			var ds []esp.Datagram
			for _, p := range mixed {
				ds = append(ds, sealFor(t, tp, osa, p))
			}
			was := len(tp.tun.packets())
			tp.receive(sockNATT4, ds...)
			if got := tp.tun.packets()[was:]; !slices.EqualFunc(got, seg, bytes.Equal) {
				t.Errorf("%s: %d packets arrived, want the 3 segments alone", what, len(got))
			}
		}
	}
}

// Two SAs that bring the same flow are each judged by their own selectors.
func TestSameFlowThroughAnotherSAIsJudgedAnew(t *testing.T) {
	tp := newTestPath(t, board.Large)
	_, good := tp.addLoop(t, testSuites[0], true, "c", "good", "10.1.0.0/16", "10.2.0.0/16", false)
	_, bad := tp.addLoop(t, testSuites[0], true, "c", "bad", "10.3.0.0/16", "10.2.0.0/16", false)
	seg := segments(srcHost, dstHost, 4, 20)
	tp.receive(sockNATT4, sealFor(t, tp, good, seg[0]), sealFor(t, tp, bad, seg[1]), sealFor(t, tp, bad, seg[2]), sealFor(t, tp, good, seg[3]))
	if got := tp.tun.packets(); len(got) != 2 || !bytes.Equal(got[0], seg[0]) || !bytes.Equal(got[1], seg[3]) {
		t.Errorf("%d packets arrived, want the first and the last: the SA of the others does not cover them", len(got))
	}
	tp.want(t, cInSelectors, 2)
}

// A later fragment that its SA refuses has lost the ports that its first one lent it; a whole packet behind it has
// them still.
func TestSegmentBehindARefusedFragmentLeaves(t *testing.T) {
	tp := newTestPath(t, board.Large)
	one := portTS("10.2.0.9/32", esp.ProtoTCP, 443, 443)
	tp.spd.set([]policySpec{protectPorts("stream", one)})
	tp.addPorted(t, "stream", one, false)
	seg := segments(srcHost, dstHost, 1, 28)[0] // of which a fragment has whole units of 8 octets
	first, later := bytes.Clone(seg), bytes.Clone(seg)
	first[6], later[7] = 0x20, 6
	tp.send(first, later, seg, seg)
	if n := len(tp.fakes[sockNATT4].datagrams()); n != 3 {
		t.Errorf("%d packets left, want 3: all but the later fragment", n)
	}
	tp.want(t, cOutFragRefused, 1)
}

// Where the SPD is asked about each packet, it is asked about the flow of that packet, also behind one that was dropped.
func TestSegmentBehindAnUncoveredPacketIsJudgedByItsOwnFlow(t *testing.T) {
	tp := newTestPath(t, board.Large)
	discard := protect("", "", "10.2.0.9/32", "10.1.0.5/32")
	discard.Action = esp.Discard
	discard.LocalTS[0].Proto, discard.RemoteTS[0].Proto = esp.ProtoUDP, esp.ProtoUDP
	tp.spd.set([]policySpec{discard, protect("c", "n", "10.2.0.0/16", "10.1.0.0/16")})
	isa, osa := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.5/32", "10.2.0.9/32", false)
	isa.localTS[0].Proto, isa.remoteTS[0].Proto = esp.ProtoTCP, esp.ProtoTCP
	isa.nets = netPairOf(isa.localTS, isa.remoteTS)
	isa.is.set(inMixed, true)
	seg := segments(srcHost, dstHost, 2, 20)
	uncovered := odd(60)["another protocol with ports"]
	tp.receive(sockNATT4, sealFor(t, tp, osa, seg[0]), sealFor(t, tp, osa, uncovered), sealFor(t, tp, osa, seg[1]))
	if got := tp.tun.packets(); !slices.EqualFunc(got, seg, bytes.Equal) {
		t.Errorf("%d packets arrived, want the 2 segments", len(got))
	}
	tp.want(t, cInSelectors, 1)
	tp.want(t, cInPolicy, 0)
}

// sealFor returns a datagram with a packet that the SA has sealed, whatever the SPD says.
func sealFor(t testing.TB, tp *testPath, osa *outSA, pkt []byte) esp.Datagram {
	t.Helper()
	buf := make([]byte, 2048)
	next := uint8(esp.ProtoIPv4)
	if pkt[0]>>4 == 6 {
		next = esp.ProtoIPv6
	}
	start, end, err := osa.out.Seal(tp.ctxLoop(), buf, esp.HeadRoom, copy(buf[esp.HeadRoom:], pkt), next)
	if err != nil {
		t.Fatal(err)
	}
	return esp.Datagram{Buf: buf[start:end], N: end - start, Remote: netip.MustParseAddrPort("192.0.2.1:4500")}
}

// roughSocket is a socket that reads as many datagrams as it is told, and spoils all that it may.
type roughSocket struct {
	*fakeSocket
	t    *testing.T
	bufs [][]byte
	read []int // how many, in turn; -1: an error
}

func (r *roughSocket) ReadBatch(d []esp.Datagram) (int, error) {
	for i := range d {
		g := &d[i]
		if &g.Buf[0] != &r.bufs[i][0] || len(g.Buf) != len(r.bufs[i]) || g.N != 0 || g.Remote.IsValid() || g.Local.IsValid() || g.TOS != 0 || g.TTL != 0 || g.Whole || g.DF || g.Path != 0 {
			r.t.Errorf("with %d reads to come, datagram %d is not as new: %+v", len(r.read), i, *g)
		}
	}
	if len(r.read) == 0 {
		return 0, os.ErrClosed
	}
	n := r.read[0]
	r.read = r.read[1:]
	if n < 0 {
		return 0, errors.New("refused")
	}
	for i := range n {
		any := netip.MustParseAddrPort("192.0.2.1:4500")
		d[i] = esp.Datagram{Buf: make([]byte, 50), N: 50, Local: any.Addr(), Remote: any, TOS: 1, TTL: 1, Whole: true, DF: true, Path: 1}
	}
	return n, nil
}

func TestEveryReadGetsEmptyDatagrams(t *testing.T) {
	tp := newTestPath(t, board.Large)
	in := tp.in[sockESP4]
	n := len(in.bufs)
	in.run(&roughSocket{tp.fakes[sockESP4], t, in.bufs, []int{3, n, 1, -1, 2, n, n - 1, 1}})
}
