package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"unsafe"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

const (
	srcHost = "10.1.0.5"
	dstHost = "10.2.0.9"
)

func TestPacketPassesOutAndIn(t *testing.T) {
	for _, s := range testSuites {
		for _, v6 := range []bool{false, true} {
			for _, encap := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s inner6=%v encap=%v", s, v6, encap), func(t *testing.T) {
					tp := newTestPath(t, board.Tiny)
					local, remote, pkt := "10.1.0.0/16", "10.2.0.0/16", udp4(srcHost, dstHost, 1000, 502, 333)
					if v6 {
						local, remote, pkt = "2001:db8:1::/48", "2001:db8:2::/48", udp6("2001:db8:1::5", "2001:db8:2::9", 1000, 502, 333)
					}
					tp.spd.set([]policySpec{protect("c", "n", local, remote)})
					_, out := tp.addLoop(t, s, encap, "c", "n", local, remote, true)
					tp.send(pkt, pkt)
					sent := tp.fakes[out.sock()].datagrams()
					if len(sent) != 2 {
						t.Fatalf("%d datagrams left through %s, want 2", len(sent), out.sock())
					}
					want := netip.MustParseAddrPort("192.0.2.2:4500")
					if !encap {
						want = netip.AddrPortFrom(want.Addr(), 0)
					}
					if sent[0].Remote != want || sent[0].Local != netip.MustParseAddr("192.0.2.1") {
						t.Errorf("sent %s -> %s, want 192.0.2.1 -> %s", sent[0].Local, sent[0].Remote, want)
					}
					if bytes.Contains(sent[0].Buf, pkt[60:100]) {
						t.Error("the payload left in clear")
					}
					for i := range sent {
						sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
					}
					tp.receive(out.sock(), sent...)
					got := tp.tun.packets()
					if len(got) != 2 || !bytes.Equal(got[0], pkt) || !bytes.Equal(got[1], pkt) {
						t.Fatalf("the TUN device got %d packets, want the 2 that were sent", len(got))
					}
					tp.want(t, cOutPackets, 2)
					tp.want(t, cInPackets, 2)
					tp.want(t, cInBytes, 666)
					if in, o, last, _ := tp.sad.usage(&tp.turns, out.inbound); in.Bytes != 666 || o.Bytes != 666 || last != tp.now {
						t.Errorf("usage is in %+v out %+v at %v, want 666 octets each at %v", in, o, last, tp.now)
					}
					tp.receive(out.sock(), sent[0])
					tp.want(t, cInReplay, 1)
				})
			}
		}
	}
}

func TestNoAllocationPerPacket(t *testing.T) {
	for _, s := range testSuites {
		for _, v6 := range []bool{false, true} {
			tp := newTestPath(t, board.Tiny)
			local, remote, pkt := "10.1.0.0/16", "10.2.0.0/16", udp4(srcHost, dstHost, 1000, 502, 1300)
			if v6 {
				local, remote, pkt = "2001:db8:1::/48", "2001:db8:2::/48", udp6("2001:db8:1::5", "2001:db8:2::9", 1000, 502, 1300)
			}
			tp.spd.set([]policySpec{protect("c", "n", local, remote)})
			_, out := tp.addLoop(t, s, true, "c", "n", local, remote, true)
			tp.send(pkt)
			first := tp.fakes[out.sock()].datagrams()[0]
			tp.receive(out.sock(), first)
			tp.quiet()
			const rounds = 50
			if n := testing.AllocsPerRun(rounds, func() {
				for i := range 4 {
					tp.put(i, pkt)
				}
				tp.out.batch(4)
			}); n != 0 {
				t.Errorf("%s inner6=%v: sealing allocates %v times per batch, want 0", s, v6, n)
			}
			// What was sealed last is fed back each time from a place of its own.
			var sealed [][]byte
			tp.fakes[out.sock()].route = func(d *esp.Datagram) {
				sealed = append(sealed, append([]byte(nil), d.Buf[:d.N]...))
			}
			for range rounds + 1 {
				tp.send(pkt)
			}
			in, k := tp.in[out.sock()], 0
			before := tp.counts.get(cInPackets)
			if n := testing.AllocsPerRun(rounds, func() {
				in.batch[0] = esp.Datagram{Buf: in.bufs[0], N: copy(in.bufs[0], sealed[k]), Remote: first.Remote}
				in.process(1)
				k++
			}); n != 0 {
				t.Errorf("%s inner6=%v: opening allocates %v times per packet, want 0", s, v6, n)
			}
			if got := tp.counts.get(cInPackets) - before; got != rounds+1 {
				t.Errorf("%s: %d packets were opened in the measurement, want %d", s, got, rounds+1)
			}
		}
	}
}

func TestNoAllocationForDroppedPackets(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	spec := protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")
	tp.spd.set([]policySpec{spec, {Policy: esp.Policy{Action: esp.Discard, LocalTS: sel("0.0.0.0/0"), RemoteTS: sel("10.9.0.0/16")}}})
	waits, discarded, strange := udp4(srcHost, dstHost, 1, 2, 200), udp4(srcHost, "10.9.0.1", 1, 2, 200), udp4(srcHost, "8.8.8.8", 1, 2, 200)
	tp.send(waits)
	unknown := make([]byte, 200)
	unknown[0] = 0xc0
	if n := testing.AllocsPerRun(100, func() {
		tp.put(0, waits)
		tp.put(1, discarded)
		tp.put(2, strange)
		tp.out.batch(3)
		in := tp.in[sockESP4]
		in.batch[0] = esp.Datagram{Buf: in.bufs[0], N: copy(in.bufs[0], unknown)}
		in.process(1)
	}); n != 0 {
		t.Errorf("dropping and queueing allocates %v times per batch, want 0: a flood would feed the collector", n)
	}
}

func TestBuffersAreAlignedAndApart(t *testing.T) {
	p := newPool(4, 2046)
	bufs := p.take(4)
	for i, b := range bufs {
		if len(b) != 2048 || cap(b) != 2048 {
			t.Errorf("buffer %d has length %d and capacity %d, want 2048: it must not reach into the next", i, len(b), cap(b))
		}
		if a := uintptr(unsafe.Pointer(&b[headRoom])); a%bufferAlign != 0 {
			t.Errorf("the payload of buffer %d is at %#x, not a multiple of %d", i, a, bufferAlign)
		}
	}
	if p.left() != 0 {
		t.Errorf("%d buffers are left, want 0", p.left())
	}
	for _, prof := range board.All() {
		tp := newTestPath(t, prof)
		if tp.pool.left() != 0 || tp.udp.left() != 0 {
			t.Errorf("profile %s leaves %d and %d buffers that nobody has", prof.Name, tp.pool.left(), tp.udp.left())
		}
	}
}

// One that is torn is two packets for the kernel at the other end.
func TestALargeBoardReadsTwoWholeSuperPacketsAtOnce(t *testing.T) {
	const segments = 64 // of the longest message that the kernel joins
	tp := newTestPath(t, board.Large)
	if n := len(tp.out.bufs); n < 2*segments {
		t.Errorf("a worker reads %d packets at once, want %d at least", n, 2*segments)
	}
	for s := range sockAH4 {
		n := len(tp.in[s].bufs)
		if s.carriesESP() && n < 2*segments {
			t.Errorf("the socket %v reads %d datagrams at once, want %d at least", s, n, 2*segments)
		}
		if !s.carriesESP() && n > mostIKE {
			t.Errorf("the socket %v reads %d datagrams at once, want %d at most: IKE does not come in bulk", s, n, mostIKE)
		}
	}
}

func TestSelectorViolationIsDropped(t *testing.T) {
	for _, c := range []struct{ what, src, dst string }{
		{"foreign source", "10.7.0.1", dstHost},
		{"foreign destination", srcHost, "10.3.0.1"},
		{"reversed", dstHost, srcHost},
	} {
		t.Run(c.what, func(t *testing.T) {
			tp := newTestPath(t, board.Tiny)
			in, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", false)
			out.localTS, out.remoteTS = sel("0.0.0.0/0"), sel("0.0.0.0/0") // the peer breaks its word
			tp.spd.set([]policySpec{protect("c", "n", "0.0.0.0/0", "0.0.0.0/0")})
			tp.spd.bind(out)
			tp.send(udp4(c.src, c.dst, 1, 2, 100))
			tp.receive(sockNATT4, tp.fakes[sockNATT4].datagrams()...)
			if n := len(tp.tun.packets()); n != 0 {
				t.Fatalf("a packet %s -> %s came through an SA for %v -> %v", c.src, c.dst, in.remoteTS, in.localTS)
			}
			tp.want(t, cInSelectors, 1)
			tp.want(t, cInPackets, 0)
		})
	}
}

func TestInboundDropsWhatIsNoPacket(t *testing.T) {
	whole := udp4(srcHost, dstHost, 1, 2, 100)
	cut := bytes.Clone(whole)
	binary.BigEndian.PutUint16(cut[2:], 101) // longer than what is there
	padded := append(bytes.Clone(whole), make([]byte, 300)...)
	for _, c := range []struct {
		what string
		pkt  []byte
		next uint8
		c    counter
		pass int
	}{
		{"dummy", make([]byte, 50), esp.ProtoNoNext, cInDummy, 0},
		{"transport mode", whole[20:], esp.ProtoUDP, cInNextHeader, 0},
		{"version does not fit", whole, esp.ProtoIPv6, cInMalformed, 0},
		{"truncated", cut, esp.ProtoIPv4, cInMalformed, 0},
		{"empty", nil, esp.ProtoIPv4, cInMalformed, 0},
		{"TFC padding", padded, esp.ProtoIPv4, cInPackets, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			tp := newTestPath(t, board.Tiny)
			_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", false)
			buf := make([]byte, 2048)
			n := copy(buf[headRoom:], c.pkt)
			start, end, err := out.out.Seal(0, buf, headRoom, n, c.next)
			if err != nil {
				t.Fatal(err)
			}
			tp.receive(sockNATT4, esp.Datagram{Buf: buf[start:end], N: end - start})
			tp.want(t, c.c, 1)
			got := tp.tun.packets()
			if len(got) != c.pass {
				t.Fatalf("the TUN device got %d packets, want %d", len(got), c.pass)
			}
			if c.pass == 1 && !bytes.Equal(got[0], whole) {
				t.Errorf("the TUN device got %d octets, want the %d of the packet without its padding", len(got[0]), len(whole))
			}
		})
	}
}

func TestDemux(t *testing.T) {
	marked := append(make([]byte, 4), bytes.Repeat([]byte{7}, 40)...)
	plain := marked[4:]
	peer := netip.MustParseAddrPort("192.0.2.7:4501")
	for _, c := range []struct {
		what string
		sock sockID
		b    []byte
		c    counter
		ike  bool
	}{
		{"keepalive", sockNATT4, []byte{0xff}, cInKeepalive, false},
		{"keepalive on the IKE port", sockIKE4, []byte{0xff}, cIKEShort, false},
		{"one octet that is no keepalive", sockNATT4, []byte{0xfe}, cInShort, false},
		{"empty", sockNATT4, nil, cInShort, false},
		{"IKE on the NAT port", sockNATT6, marked, cIKEIn, true},
		{"IKE on the IKE port", sockIKE6, plain, cIKEIn, true},
		{"marker alone", sockNATT4, marked[:4], cIKEShort, false},
		{"ESP of nobody", sockNATT4, plain, cInUnknownSPI, false},
		{"raw ESP of nobody", sockESP4, plain, cInUnknownSPI, false},
		{"raw ESP has no marker", sockESP4, marked, cInShort, false},
		{"raw ESP has no keepalives", sockESP6, []byte{0xff}, cInShort, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			tp := newTestPath(t, board.Tiny)
			tp.receive(c.sock, esp.Datagram{Buf: c.b, N: len(c.b), Local: netip.MustParseAddr("192.0.2.1"), Remote: peer})
			tp.want(t, c.c, 1)
			d := ikeDatagram{buf: make([]byte, 100)}
			if got := tp.ikeq.pop(&d); got != c.ike {
				t.Fatalf("handed to the IKE loop: %v, want %v", got, c.ike)
			}
			if !c.ike {
				return
			}
			if !bytes.Equal(d.buf[:d.n], plain) {
				t.Errorf("the IKE loop got %x, want the message without marker %x", d.buf[:d.n], plain)
			}
			wantPort := uint16(500)
			if c.sock.carriesESP() {
				wantPort = 4500
			}
			if d.path.NATT != c.sock.carriesESP() || d.path.Remote != peer || d.path.Local.Port() != wantPort {
				t.Errorf("path is %+v, want NATT=%v, local port %d, from %s", d.path, c.sock.carriesESP(), wantPort, peer)
			}
		})
	}
}

func TestIKEQueueIsBounded(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	msg := bytes.Repeat([]byte{1}, 100)
	room := len(tp.ikeq.ring)
	for range room + 10 {
		tp.receive(sockIKE4, esp.Datagram{Buf: msg, N: len(msg)})
	}
	tp.want(t, cIKEQueueFull, 10)
	d := ikeDatagram{buf: make([]byte, minUDPBuffer)}
	for i := range room {
		if !tp.ikeq.pop(&d) || d.n != len(msg) {
			t.Fatalf("datagram %d of %d is not in the queue", i, room)
		}
	}
	if tp.ikeq.pop(&d) {
		t.Error("the queue holds more than it has room for")
	}
}

func TestPendingQueueDropsOldestAndFlushes(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	room := board.Tiny.Queue
	for i := range room + 3 {
		tp.send(udp4(srcHost, dstHost, uint16(i), 502, 100))
	}
	if n := tp.pending.len(); n != room {
		t.Fatalf("%d packets wait, want %d: the queue is bounded", n, room)
	}
	tp.want(t, cOutQueueFull, 3)
	if len(tp.acquired) != 1 {
		t.Errorf("asked %d times for an SA within a second, want once", len(tp.acquired))
	}
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.flusher.flush()
	sent := tp.fakes[out.sock()].datagrams()
	if len(sent) != room || tp.pending.len() != 0 {
		t.Fatalf("%d packets left and %d wait after the SA came up, want %d and 0", len(sent), tp.pending.len(), room)
	}
	for i := range sent {
		tp.receive(out.sock(), sent[i])
		if got := binary.BigEndian.Uint16(tp.tun.packets()[i][20:]); got != uint16(i+3) {
			t.Fatalf("packet %d is that of port %d, want %d: the oldest were to be dropped and the order kept", i, got, i+3)
		}
	}
	// Every buffer is still somebody's, and nobody's twice.
	seen := map[*byte]bool{}
	for _, b := range tp.out.bufs {
		seen[&b[0]] = true
	}
	for i := range tp.pending.ring {
		seen[&tp.pending.ring[i].buf[0]] = true
	}
	if want := len(tp.out.bufs) + room; len(seen) != want {
		t.Errorf("%d distinct buffers after the queue was used, want %d", len(seen), want)
	}
}

func TestPendingPacketsExpireAndKeepTheirPlace(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16"), protect("c", "m", "10.1.0.0/16", "10.3.0.0/16")})
	tp.send(udp4(srcHost, dstHost, 1, 1, 100))
	tp.now += pendingMax
	tp.send(udp4(srcHost, "10.3.0.1", 2, 2, 100))
	tp.send(udp4(srcHost, dstHost, 3, 3, 100))
	tp.now += 1
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.flusher.flush()
	tp.want(t, cOutExpired, 1)
	if n := len(tp.fakes[out.sock()].datagrams()); n != 1 {
		t.Errorf("%d packets left, want the one for the SA that came up", n)
	}
	if n := tp.pending.len(); n != 1 {
		t.Errorf("%d packets wait, want the one for the other child", n)
	}
}

func TestPacketQueuedBehindAFlushIsSentAtOnce(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	pkt := udp4(srcHost, dstHost, 1, 1, 100)
	old := tp.spd.gen.Load()
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.flusher.flush()
	if _, _, ok := tp.pending.push(make([]byte, 10), 0, 0, 0, old, nil); ok {
		t.Error("the queue took a packet that was looked up before the flush: nobody would come for it")
	}
	tp.send(pkt)
	if n := len(tp.fakes[out.sock()].datagrams()); n != 1 {
		t.Errorf("%d packets left, want 1", n)
	}
}

func TestPacketWhoseSAIsReplacedMeanwhileTakesTheNewOne(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, old := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	pkt := udp4(srcHost, dstHost, 1, 1, 100)
	tp.put(0, pkt)
	tp.out.parse(1)
	tp.out.find()
	old.out.Wipe()
	tp.out.carry()
	if len(tp.out.todo) != 1 {
		t.Fatal("a packet was given up although another SA may carry it")
	}
	if !bytes.Equal(tp.out.bufs[0][headRoom:headRoom+len(pkt)], pkt) {
		t.Error("the packet was changed by an SA that could not seal it")
	}
	if old.issued != 1 || old.served != 1 {
		t.Errorf("the SA has given out %d tickets and served %d, want 1 and 1: others would wait for ever", old.issued, old.served)
	}
	tp.spd.unbind(old)
	_, fresh := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.out.find()
	tp.out.carry()
	if d := tp.fakes[sockNATT4].datagrams(); len(d) != 1 || esp.SPIOf(d[0].Buf) != fresh.spi {
		t.Errorf("%d packets left, want 1 through the new SA", len(d))
	}

	// One whose SA is gone for good is not looked up for ever.
	fresh.out.Wipe()
	tp.send(pkt, pkt)
	tp.want(t, cOutNoSA, 2)
	tp.want(t, cOutPackets, 1)
}

func TestSendErrorsDoNotStopTheBatch(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.fakes[out.sock()].err = errors.New("no route to host")
	pkt := udp4(srcHost, dstHost, 1, 1, 100)
	tp.send(pkt, pkt, pkt)
	tp.want(t, cOutSendError, 1)
	if n := len(tp.fakes[out.sock()].datagrams()); n != 2 {
		t.Errorf("%d packets left, want the 2 behind the one that was refused", n)
	}
}

// Figure 4 of RFC 6040, in the order of the numbers: not ECT, ECT(1), ECT(0), CE.
func TestECNLeavesTheTunnelAsRFC6040Says(t *testing.T) {
	const drop = 9
	want := [4][4]uint8{{0, 0, 0, drop}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}}
	odd := [4][4]uint64{{0, 1, 1, 0}, {0, 0, 1, 0}, {0, 0, 0, 0}, {0, 1, 0, 0}}
	for _, v6 := range []bool{false, true} {
		for inner := range uint8(4) {
			for outer := range uint8(4) {
				tp := newTestPath(t, board.Tiny)
				pkt := classed(v6, 0xb8|inner)
				ok := tp.headersIn(pkt, 0, 0x28|outer)
				class := esp.TrafficClass(pkt)
				if dropped := want[inner][outer] == drop; ok == dropped {
					t.Errorf("v6=%v inner %d outer %d: passed %v", v6, inner, outer, ok)
				} else if !dropped && class != 0xb8|want[inner][outer] {
					t.Errorf("v6=%v inner %d outer %d: traffic class is %#x, want ECN %d and DSCP unchanged", v6, inner, outer, class, want[inner][outer])
				}
				if got := tp.counts.get(cInECNOdd); got != odd[inner][outer] {
					t.Errorf("v6=%v inner %d outer %d: counted as odd %d times, want %d", v6, inner, outer, got, odd[inner][outer])
				}
				if !v6 && checksum(pkt[:20]) != 0 {
					t.Errorf("inner %d outer %d: the header's checksum is wrong", inner, outer)
				}
				pkt = classed(v6, 0xb8|inner)
				if ok := tp.headersIn(pkt, ecnStays|dscpIn, 0x28|outer); !ok || esp.TrafficClass(pkt) != 0x28|inner {
					t.Errorf("v6=%v inner %d outer %d: without ECN and with the outer DSCP the traffic class is %#x, want %#x", v6, inner, outer, esp.TrafficClass(pkt), 0x28|inner)
				}
			}
		}
	}
}

// classed is a packet of that traffic class.
func classed(v6 bool, class uint8) []byte {
	if v6 {
		pkt := udp6("2001:db8::1", "2001:db8::2", 1, 1, 60)
		pkt[0], pkt[1] = 6<<4|class>>4, class<<4
		return pkt
	}
	pkt := udp4(srcHost, dstHost, 1, 1, 60)
	pkt[1] = class
	binary.BigEndian.PutUint16(pkt[10:], 0)
	binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
	return pkt
}

func TestTrafficClassIsCopiedOut(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	pkt := udp4(srcHost, dstHost, 1, 1, 60)
	pkt[1] = 0xba
	tp.send(pkt)
	if got := tp.fakes[out.sock()].datagrams()[0].TOS; got != 0xba {
		t.Errorf("outer traffic class is %#x, want the inner one's 0xba", got)
	}
}

func TestMovedPeerIsToldOfAndFollowed(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	var told []ike.Path
	tp.moved = func(_ *inSA, p ike.Path) bool { told = append(told, p); return true }
	from := netip.MustParseAddrPort("192.0.2.99:1024")
	for i := range 2 { // the second within the interval
		tp.send(udp4(srcHost, dstHost, 1, 1, 60))
		d := tp.fakes[out.sock()].datagrams()[i]
		d.Remote = from
		tp.receive(out.sock(), d)
	}
	tp.want(t, cInMoved, 2)
	tp.want(t, cInPackets, 2)
	if len(told) != 1 || told[0].Remote != from || !told[0].NATT {
		t.Fatalf("the loop was told %v, want one path from %v", told, from)
	}
	l := &ikeLoop{d: tp.datapath}
	l.moveSA(out.inbound, told[0], true)
	tp.send(udp4(srcHost, dstHost, 1, 1, 60))
	if to := tp.fakes[out.sock()].datagrams()[2].Remote; to != from {
		t.Errorf("after the move packets go to %v, want %v", to, from)
	}
}
