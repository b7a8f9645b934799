package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// earlyPeer is the other end of a CHILD SA that it has before we have it.
type earlyPeer struct {
	t   testing.TB
	out *esp.Outbound
}

// newEarlyPeer returns the other end of the CHILD SA that tl.child has returned.
func newEarlyPeer(t testing.TB, spi uint32) *earlyPeer {
	t.Helper()
	sa := testSA(testSuites[0], esp.Out, spi, "192.0.2.2:4500", "192.0.2.1:4500")
	out, err := esp.NewOutbound(&sa, 1)
	if err != nil {
		t.Fatal(err)
	}
	return &earlyPeer{t, out}
}

// seal returns the ESP packet with an inner packet of that number.
func (p *earlyPeer) seal(number uint16) esp.Datagram {
	p.t.Helper()
	return p.sealPacket(udp4(dstHost, srcHost, number, 502, 100))
}

func (p *earlyPeer) sealPacket(pkt []byte) esp.Datagram {
	p.t.Helper()
	buf := make([]byte, 2048)
	n := copy(buf[esp.HeadRoom:], pkt)
	start, end, err := p.out.Seal(0, buf, esp.HeadRoom, n, esp.ProtoIPv4)
	if err != nil {
		p.t.Fatal(err)
	}
	return esp.Datagram{Buf: buf[start:end], N: end - start, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:4500")}
}

// numbers returns those of the packets that the TUN device has got.
func (tl *testLoop) numbers() (list []uint16) {
	for _, p := range tl.tun.packets() {
		list = append(list, binary.BigEndian.Uint16(p[20:]))
	}
	return list
}

func TestPacketsBeforeTheirSAAreDeliveredWithIt(t *testing.T) {
	tl := newTestLoop(t)
	in, out := tl.child(t, 1, false)
	peer := newEarlyPeer(t, in.Add.SPI)
	first := peer.seal(1)
	tl.receive(sockNATT4, first, peer.seal(2))
	tl.receive(sockESP4, peer.seal(3))
	marked := peer.sealPacket(bytes.Clone(udp4(dstHost, srcHost, 4, 502, 100)))
	marked.TOS = esp.CE // the inner packet cannot carry it
	tl.receive(sockNATT4, marked)
	tl.testPath.now += holdMax
	if n := tl.tun.count(); n != 0 || tl.held.len() != 4 {
		t.Fatalf("%d packets were delivered and %d are held before their SA is there, want 0 and 4", n, tl.held.len())
	}
	tl.want(t, cInHeld, 4)
	tl.outputs(in, out)
	tl.receive(sockNATT4, peer.seal(5), first)
	if got := tl.numbers(); len(got) != 4 || got[0] != 1 || got[1] != 2 || got[2] != 3 || got[3] != 5 {
		t.Errorf("the TUN device got the packets %v, want 1 to 3 that came before the SA and then 5", got)
	}
	if !bytes.Equal(tl.tun.packets()[0], udp4(dstHost, srcHost, 1, 502, 100)) {
		t.Error("a packet that was held is not what the peer sent")
	}
	tl.want(t, cInPackets, 4)
	tl.want(t, cInBytes, 400)
	tl.want(t, cInECN, 1)
	tl.want(t, cInReplay, 1)
	tl.want(t, cInUnknownSPI, 0)
	if len(tl.unknowns) != 0 {
		t.Errorf("the IKE machine was told %d times that the peer sends for an SA that is gone, want never", len(tl.unknowns))
	}
	if u, _, last, _ := tl.sad.usage(&tl.datapath.turns, in.Add.SPI); u.Packets != 5 || last != tl.testPath.now {
		t.Errorf("the SA has counted %d packets, the last at %v, want 5 and %v", u.Packets, last, tl.testPath.now)
	}
}

func TestHeldPacketsAreCheckedLikeAnyOther(t *testing.T) {
	tl := newTestLoop(t)
	in, _ := tl.child(t, 1, false)
	peer := newEarlyPeer(t, in.Add.SPI)
	good := peer.seal(1)
	forged := peer.seal(2)
	forged.Buf[20] ^= 1
	moved := peer.seal(3)
	moved.Remote = netip.MustParseAddrPort("192.0.2.99:1024")
	var told []ike.Path
	tl.datapath.moved = func(_ *inSA, p ike.Path) bool { told = append(told, p); return true }
	tl.receive(sockNATT4, good, forged)
	tl.receive(sockNATT4, good, peer.sealPacket(udp4("10.7.0.1", srcHost, 9, 502, 100)))
	tl.receive(sockESP4, moved) // not in UDP: of no interest
	tl.receive(sockNATT4, moved)
	moved = peer.seal(4)
	moved.Remote = netip.MustParseAddrPort("192.0.2.99:1024")
	tl.receive(sockNATT4, moved)
	tl.outputs(in)
	tl.want(t, cInPackets, 3)
	tl.want(t, cInAuth, 1)
	tl.want(t, cInReplay, 2)
	tl.want(t, cInSelectors, 1)
	tl.want(t, cInMoved, 1)
	if len(told) != 1 || told[0].Remote != moved.Remote {
		t.Errorf("the loop was told %v, want the address from which the peer sent before its answer came", told)
	}
}

func TestHoldQueueIsBounded(t *testing.T) {
	tl := newTestLoop(t)
	share, room := tl.held.share, len(tl.held.ring)
	if share*holdPart != room || room != board.Tiny.Queue {
		t.Fatalf("a queue of %d with a share of %d, want %d and its %dth part", room, share, board.Tiny.Queue, holdPart)
	}
	var ins []ike.Output
	var peers []*earlyPeer
	for i := range holdPart + 1 {
		in, _ := tl.child(t, uint32(i), false)
		ins, peers = append(ins, in), append(peers, newEarlyPeer(t, in.Add.SPI))
	}
	huge := esp.Datagram{Buf: make([]byte, minUDPBuffer), N: minUDPBuffer}
	binary.BigEndian.PutUint32(huge.Buf, ins[0].Add.SPI)
	tl.receive(sockNATT4, huge)
	tl.want(t, cInHoldFull, 1)
	for i := range share + 3 {
		for _, p := range peers[:holdPart] {
			tl.receive(sockNATT4, p.seal(uint16(i)))
		}
	}
	tl.want(t, cInHeld, uint64(room))
	tl.want(t, cInHoldFull, 1+3*holdPart)
	tl.receive(sockNATT4, peers[holdPart].seal(0))
	tl.want(t, cInHoldFull, 2+3*holdPart)
	for i, in := range ins {
		tl.outputs(in)
		if n := tl.held.len(); n != max(room-share*(i+1), 0) {
			t.Errorf("%d packets are held after %d SAs came up", n, i+1)
		}
	}
	got := tl.numbers()
	if len(got) != room {
		t.Fatalf("%d packets were delivered, want the %d that were held", len(got), room)
	}
	for i, n := range got {
		if int(n) != i%share {
			t.Fatalf("packet %d is number %d, want %d: the first ones were to be kept, in their order", i, n, i%share)
		}
	}
	seen := map[*byte]bool{}
	for i := range tl.held.ring {
		seen[&tl.held.ring[i].g.Buf[0]] = true
	}
	if len(seen) != room {
		t.Errorf("%d distinct buffers after the queue was used, want %d", len(seen), room)
	}
}

func TestHeldPacketsGoWithTheirReservation(t *testing.T) {
	tl := newTestLoop(t)
	failed, _ := tl.child(t, 1, false)
	other, _ := tl.child(t, 2, false)
	a, b := newEarlyPeer(t, failed.Add.SPI), newEarlyPeer(t, other.Add.SPI)
	tl.receive(sockNATT4, a.seal(1), b.seal(2), a.seal(3))
	env{tl.ikeLoop}.FreeSPI(failed.Add.SPI)
	tl.want(t, cInReleased, 2)
	tl.receive(sockNATT4, a.seal(4))
	tl.want(t, cInUnknownSPI, 1)
	if len(tl.unknowns) != 1 || tl.unknowns[0].spi != failed.Add.SPI {
		t.Errorf("the IKE machine was told of %v, want of %08x, which is reserved no more", tl.unknowns, failed.Add.SPI)
	}
	tl.outputs(failed) // too late
	tl.outputs(other)
	if got := tl.numbers(); len(got) != 1 || got[0] != 2 || tl.held.len() != 0 {
		t.Errorf("the packets %v were delivered and %d are held, want 2 alone and none", got, tl.held.len())
	}
}

// An SA that was deleted keeps its SPI for a while, and nothing waits for it to come back.
func TestPacketsForADeletedSAAreNotHeld(t *testing.T) {
	tl := newTestLoop(t)
	in, out := tl.child(t, 1, false)
	peer := newEarlyPeer(t, in.Add.SPI)
	tl.outputs(in, out, ike.Output{Kind: ike.OutDelSA, SPI: in.Add.SPI, Inbound: in.Add.SPI, Dir: esp.In})
	tl.receive(sockNATT4, peer.seal(1))
	tl.want(t, cInHeld, 0)
	tl.want(t, cInUnknownSPI, 1)
	if len(tl.unknowns) != 1 {
		t.Errorf("the IKE machine was told %d times of a peer that still uses an SA that is gone, want once", len(tl.unknowns))
	}
}

func TestHeldPacketsExpire(t *testing.T) {
	tl := newTestLoop(t)
	in, _ := tl.child(t, 1, false)
	peer := newEarlyPeer(t, in.Add.SPI)
	for i := range tl.held.share {
		tl.receive(sockNATT4, peer.seal(uint16(i)))
	}
	tl.testPath.now += holdMax
	tl.receive(sockNATT4, peer.seal(100))
	tl.want(t, cInHoldFull, 1)
	tl.testPath.now++
	tl.receive(sockNATT4, peer.seal(101)) // what is too old makes room
	tl.want(t, cInExpired, uint64(tl.held.share))
	tl.testPath.now += holdMax
	tl.receive(sockNATT4, peer.seal(102))
	tl.testPath.now++
	tl.outputs(in)
	tl.want(t, cInExpired, uint64(tl.held.share)+1)
	if got := tl.numbers(); len(got) != 1 || got[0] != 102 {
		t.Errorf("the packets %v were delivered, want 102 alone: the others were too old", got)
	}
}

func TestPacketWhoseSAHasJustComeUpIsNotHeld(t *testing.T) {
	tl := newTestLoop(t)
	in, _ := tl.child(t, 1, false)
	r, g := tl.testPath.in[sockNATT4], newEarlyPeer(t, in.Add.SPI).seal(1)
	// A reader that looked for the SA before this goes on after it.
	tl.outputs(in)
	if tl.held.push(tl.datapath, sockNATT4, &g, in.Add.SPI, tl.testPath.now) {
		t.Error("the queue took a packet whose SA is there: nobody would come for it")
	}
	if sa := r.missing(&g, in.Add.SPI); sa == nil || sa != tl.sad.lookup(in.Add.SPI) {
		t.Error("a packet is given up although its SA has come up since it was looked for")
	}
	tl.want(t, cInHeld, 0)
	tl.want(t, cInUnknownSPI, 0)
}

// Readers of several sockets get the first packets of an SA at the moment at which it is
// installed, or its SPI given back: none is lost, none left behind, none overtakes another.
func TestNoPacketIsLostWhileItsSAIsInstalled(t *testing.T) {
	const workers, rounds = 2, 1000
	tl := newTestLoopOf(t, workers)
	tl.datapath.unknown = func(uint32, ike.Path) bool { return true }
	per := tl.held.share / workers
	readers := tl.datapath.in[sockNATT4]
	for round := range rounds {
		in, out := tl.child(t, uint32(round), false)
		peer := newEarlyPeer(t, in.Add.SPI)
		pkts := make([][]esp.Datagram, workers)
		for i := range per {
			for w := range pkts {
				pkts[w] = append(pkts[w], peer.seal(uint16(w<<8|i)))
			}
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for w, r := range readers {
			wg.Go(func() {
				<-start
				for i := range pkts[w] {
					g := pkts[w][i]
					r.batch[0] = esp.Datagram{Buf: r.bufs[0], N: copy(r.bufs[0], g.Buf), Local: g.Local, Remote: g.Remote}
					r.process(1)
				}
			})
		}
		before, some := tl.counts.get(cInHeld), uint64(round%(workers*per))
		close(start)
		for tl.counts.get(cInHeld)-before < some {
			runtime.Gosched()
		}
		installed := round%4 != 3
		if installed {
			tl.outputs(in, out)
		} else {
			env{tl.ikeLoop}.FreeSPI(in.Add.SPI)
		}
		wg.Wait()
		got := tl.numbers()
		tl.tun.written = nil
		if n := tl.held.len(); n != 0 {
			t.Fatalf("round %d: %d packets are left in the queue, and nobody comes for them", round, n)
		}
		if !installed {
			continue
		}
		env{tl.ikeLoop}.FreeSPI(in.Add.SPI)
		if len(got) != workers*per {
			t.Fatalf("round %d: %d packets were delivered, want %d: %v", round, len(got), workers*per, got)
		}
		var next [workers]int
		for _, n := range got {
			if w := n >> 8; int(n&0xff) != next[w] {
				t.Fatalf("round %d: the packets of a reader were delivered in another order than they came: %v", round, got)
			}
			next[n>>8]++
		}
	}
	tl.want(t, cInHoldFull, 0)
	tl.want(t, cInReplay, 0)
	tl.want(t, cInAuth, 0)
}

func TestHoldingAllocatesNothing(t *testing.T) {
	tl := newTestLoop(t)
	in, _ := tl.child(t, 1, false)
	g := newEarlyPeer(t, in.Add.SPI).seal(1)
	r := tl.testPath.in[sockNATT4]
	if n := testing.AllocsPerRun(200, func() {
		r.batch[0] = esp.Datagram{Buf: r.bufs[0], N: copy(r.bufs[0], g.Buf), Local: g.Local, Remote: g.Remote}
		r.process(1)
		if tl.held.len() == tl.held.share {
			tl.testPath.now += 2 * holdMax // the next one finds room
		}
	}); n != 0 {
		t.Errorf("a packet that is held, or finds no room, costs %v allocations, want 0", n)
	}
	if tl.counts.get(cInHeld) != 201 || tl.counts.get(cInExpired) == 0 {
		t.Errorf("%d packets were held, %d of them too long: the measurement is of something else", tl.counts.get(cInHeld), tl.counts.get(cInExpired))
	}
	tl.quiet()
	sa := &inSA{spi: in.Add.SPI}
	tl.testPath.now += 2 * holdMax
	if n := testing.AllocsPerRun(100, func() {
		if err := tl.publish(sa); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("looking for what was held costs %v allocations, want 0", n)
	}
}
