package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/esp"
)

// leaving keeps in which order packets leave, whichever socket they take.
type leaving struct {
	mu   sync.Mutex
	seqs map[uint32][]uint32 // sequence numbers by SPI
}

func (l *leaving) route(d *esp.Datagram) {
	l.mu.Lock()
	spi := esp.SPIOf(d.Buf)
	l.seqs[spi] = append(l.seqs[spi], binary.BigEndian.Uint32(d.Buf[4:]))
	l.mu.Unlock()
}

// check tells of packets that left in another order than that of their numbers, and
// returns how many left.
func (l *leaving) check(t *testing.T) (n int) {
	t.Helper()
	for spi, seqs := range l.seqs {
		n += len(seqs)
		for i, seq := range seqs {
			if i > 0 && seq <= seqs[i-1] {
				t.Errorf("SPI %08x: number %d left after %d; a peer with a small replay window drops it", spi, seq, seqs[i-1])
				break
			}
		}
	}
	return n
}

// newWorkers is a data path of w workers that have a socket of each kind each.
func newWorkers(t testing.TB, w int) (*testPath, *leaving) {
	tp := newTestPathOf(t, board.Tiny, w)
	tp.datapath.acquire = func(*policy, *esp.Flow) bool { return true }
	l := &leaving{seqs: map[uint32][]uint32{}}
	for s := sockNATT4; s <= sockNATT6; s++ {
		tp.socks[s] = nil
		for range w {
			f := newFakeSocket()
			f.route = func(d *esp.Datagram) {
				runtime.Gosched() // others may come in between
				l.route(d)
			}
			tp.socks[s] = append(tp.socks[s], f)
		}
	}
	return tp, l
}

// fill puts packets into a worker's batch.
func (o *outbound) fill(pkts ...[]byte) int {
	for i, p := range pkts {
		o.sizes[i] = copy(o.bufs[i][headRoom:], p)
	}
	return len(pkts)
}

// allServed tells of SAs whose next batch would wait for ever.
func allServed(t *testing.T, sas ...*outSA) {
	t.Helper()
	for _, sa := range sas {
		if sa.issued != sa.served {
			t.Errorf("SA %08x has given out %d tickets and served %d", sa.spi, sa.issued, sa.served)
		}
	}
}

func TestPacketsOfOneSALeaveInTheOrderOfTheirNumbers(t *testing.T) {
	const workers, rounds = 4, 300
	tp, left := newWorkers(t, workers)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	var sent atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			o, r := tp.datapath.out[w], rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				n := 1 + r.IntN(len(o.bufs))
				for i := range n {
					o.sizes[i] = copy(o.bufs[i][headRoom:], udp4(srcHost, dstHost, uint16(w), uint16(i), 60+r.IntN(1000)))
				}
				o.batch(n)
				sent.Add(int64(n))
			}
		})
	}
	wg.Wait()
	n := left.check(t)
	if n != int(sent.Load()) || out.out.Seq() != uint64(n) {
		t.Errorf("%d of %d packets left, the last number is %d: want all, without gaps", n, sent.Load(), out.out.Seq())
	}
	allServed(t, out)
	if u, last := tp.turns.usage(out); u.Packets != uint64(n) || last != tp.now {
		t.Errorf("usage is %+v at %v, want %d packets at %v", u, last, n, tp.now)
	}
}

// TestManySAsAndWorkersWhileSAsComeAndGo has the IKE loop's part replace SAs all the time.
func TestManySAsAndWorkersWhileSAsComeAndGo(t *testing.T) {
	const workers, children, rounds = 4, 12, 200
	tp, left := newWorkers(t, workers)
	var spec []policySpec
	for c := range children {
		spec = append(spec, protect("c", fmt.Sprint(c), "10.1.0.0/16", fmt.Sprintf("10.2.%d.0/24", c)))
	}
	tp.spd.set(spec)
	var all []*outSA
	now := make([]*outSA, children)
	install := func(c int) {
		_, now[c] = tp.addLoop(t, testSuites[c%2], true, "c", fmt.Sprint(c), "10.1.0.0/16", fmt.Sprintf("10.2.%d.0/24", c), true)
		all = append(all, now[c])
		tp.flusher.flush()
	}
	for c := range children {
		install(c)
	}
	var sent atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			o, r := tp.datapath.out[w], rand.New(rand.NewPCG(uint64(w), 2))
			for range rounds {
				n := 1 + r.IntN(len(o.bufs))
				for i := range n {
					o.sizes[i] = copy(o.bufs[i][headRoom:], udp4(srcHost, fmt.Sprintf("10.2.%d.1", r.IntN(children)), uint16(w), 1, 100))
				}
				o.batch(n)
				sent.Add(int64(n))
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	r := rand.New(rand.NewPCG(9, 9))
	for replacing := true; replacing; {
		select {
		case <-done:
			replacing = false
		default:
		}
		c := r.IntN(children)
		old := now[c]
		if r.IntN(2) == 0 { // make before break, as rekeying does
			install(c)
		}
		tp.spd.unbind(old)
		old.out.Wipe()
		tp.sad.release(old.inbound)
		if now[c] == old {
			install(c)
		}
	}
	tp.flusher.flush()
	n := left.check(t)
	if lost := int(sent.Load()) - n; lost != int(tp.counts.get(cOutNoSA)+tp.counts.get(cOutQueueFull)) {
		t.Errorf("%d of %d packets left, and %d have been counted as dropped", n, sent.Load(), tp.counts.get(cOutNoSA)+tp.counts.get(cOutQueueFull))
	}
	if uint64(n) != tp.counts.get(cOutPackets) {
		t.Errorf("%d packets left and %d are counted", n, tp.counts.get(cOutPackets))
	}
	if n == 0 || len(all) < 2*children {
		t.Errorf("%d packets left and %d SAs were made: the test has tested little", n, len(all))
	}
	allServed(t, all...)
}

// hold makes a socket's writes wait until it is let go or closed.
type hold struct {
	*fakeSocket
	entered chan struct{}
	release chan struct{}
}

func newHold(f *fakeSocket) *hold {
	return &hold{f, make(chan struct{}, 16), make(chan struct{})}
}

func (h *hold) WriteBatch(d []esp.Datagram) (int, error) {
	h.entered <- struct{}{}
	select {
	case <-h.release:
		return h.fakeSocket.WriteBatch(d)
	case <-h.closed:
		return 0, os.ErrClosed
	}
}

// waitFor waits until so many batches wait for their turn.
func (q *turns) waitFor(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d batches wait for their turn", n), func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.waiting == n
	})
}

// blockedPath has two SAs and three workers; the first worker's socket blocks, and two
// batches wait for it: of the second worker and of the IKE loop.
func blockedPath(t *testing.T) (tp *testPath, left *leaving, h *hold, sas [2]*outSA, wg *sync.WaitGroup) {
	tp, left = newWorkers(t, 3)
	tp.spd.set([]policySpec{protect("c", "0", "10.1.0.0/16", "10.2.0.0/24"), protect("c", "1", "10.1.0.0/16", "10.2.1.0/24")})
	for i := range sas {
		_, sas[i] = tp.addLoop(t, testSuites[0], true, "c", fmt.Sprint(i), "10.1.0.0/16", fmt.Sprintf("10.2.%d.0/24", i), true)
	}
	h = newHold(tp.socks[sockNATT4][0].(*fakeSocket))
	tp.socks[sockNATT4][0] = h
	to0 := udp4(srcHost, "10.2.0.1", 1, 1, 100)
	wg = new(sync.WaitGroup)
	wg.Go(func() { tp.datapath.out[0].batch(tp.datapath.out[0].fill(to0, to0)) })
	<-h.entered
	wg.Go(func() { tp.datapath.out[1].batch(tp.datapath.out[1].fill(to0)) })
	tp.turns.waitFor(t, 1)
	buf := make([]byte, 2048)
	n := copy(buf[headRoom:], to0)
	if _, _, ok := tp.pending.push(buf, headRoom, n, tp.now, tp.spd.gen.Load(), nil); !ok {
		t.Fatal("the queue takes nothing")
	}
	// The loop's number has the first socket, as worker 0 does: it is let through there.
	wg.Go(tp.flusher.flush)
	tp.turns.waitFor(t, 2)
	return tp, left, h, sas, wg
}

func TestBlockedSocketHoldsUpOnlyItsPeers(t *testing.T) {
	tp, left, h, sas, wg := blockedPath(t)
	to1 := udp4(srcHost, "10.2.1.1", 1, 1, 100)
	o := tp.datapath.out[2]
	o.batch(o.fill(to1, to1, to1))
	left.mu.Lock()
	if n, other := len(left.seqs[sas[1].spi]), len(left.seqs[sas[0].spi]); n != 3 || other != 0 {
		t.Errorf("%d packets to the other peer left and %d to the blocked one, want 3 and 0", n, other)
	}
	left.mu.Unlock()
	close(h.release)
	wg.Wait()
	if left.check(t); len(left.seqs[sas[0].spi]) != 4 {
		t.Errorf("the packets %d left to the peer that was blocked, want 4", left.seqs[sas[0].spi])
	}
	allServed(t, sas[:]...)
}

func TestClosingEndsTheWaitForATurn(t *testing.T) {
	tp, _, h, sas, wg := blockedPath(t)
	for _, s := range tp.socks[sockNATT4] {
		_ = s.Close()
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("workers still wait for their turn after the sockets were closed")
	}
	if len(h.entered) == 0 {
		t.Error("nobody else got to the closed socket: the test has tested little")
	}
	allServed(t, sas[:]...)
}

func TestSequenceNumbersEndInTheMiddleOfABatch(t *testing.T) {
	tp, left := newWorkers(t, 2)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	const remaining = 5
	for range 4 {
		out.out.Reserve(1<<30-2, 0)
	}
	out.out.Reserve(8-1-remaining, 0)
	pkt := udp4(srcHost, dstHost, 1, 1, 100)
	for w := range 2 {
		o := tp.datapath.out[w]
		o.batch(o.fill(pkt, pkt, pkt))
	}
	o := tp.datapath.out[0]
	o.batch(o.fill(pkt, pkt))
	tp.want(t, cOutPackets, remaining)
	tp.want(t, cOutSequence, 3)
	if n := left.check(t); n != remaining || left.seqs[out.spi][remaining-1] != 1<<32-1 {
		t.Errorf("%d packets left, the last with number %#x; want %d up to 0xffffffff", n, left.seqs[out.spi][n-1], remaining)
	}
	allServed(t, out)
}

func TestPacketWithoutRoomCostsNoNumber(t *testing.T) {
	tp, left := newWorkers(t, 1)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	o := tp.out
	o.batch(o.fill(udp4(srcHost, dstHost, 1, 1, 100), udp4(srcHost, dstHost, 1, 1, len(o.bufs[1])-headRoom), udp4(srcHost, dstHost, 1, 1, 100)))
	tp.want(t, cOutTooBig, 1)
	if n := left.check(t); n != 2 || out.out.Seq() != 2 {
		t.Errorf("%d packets left up to number %d, want 2 up to 2", n, out.out.Seq())
	}
	allServed(t, out)
}

func TestInnerFlowsSpreadOverQueuesAndKeepTheirOrder(t *testing.T) {
	const workers, flows, each = 4, 40, 3
	tp := newTestPathOf(t, board.Small, workers)
	var devs []*fakeDevice
	tp.tuns = nil
	for range workers {
		devs = append(devs, newFakeDevice())
		tp.tuns = append(tp.tuns, devs[len(devs)-1])
	}
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	for i := range each {
		for f := range flows {
			pkt := udp4(srcHost, dstHost, uint16(f), 502, 100)
			pkt[40] = byte(i)
			tp.send(pkt)
		}
	}
	sent := tp.fakes[sockNATT4].datagrams()
	for i, d := range sent {
		// Through one reader and then another, as if the SA had moved to it.
		in := tp.datapath.in[sockNATT4][i*workers/len(sent)]
		in.batch[0] = esp.Datagram{Buf: in.bufs[0], N: copy(in.bufs[0], d.Buf), Remote: d.Remote}
		in.process(1)
	}
	queue, next := map[uint16]int{}, map[uint16]byte{}
	used := map[int]bool{}
	for q, dev := range devs {
		for _, p := range dev.packets() {
			f := binary.BigEndian.Uint16(p[20:])
			if was, seen := queue[f]; seen && was != q {
				t.Fatalf("flow %d went to queue %d and %d: its packets may overtake each other", f, was, q)
			}
			if p[40] != next[f] {
				t.Errorf("flow %d: packet %d came when %d was to come", f, p[40], next[f])
			}
			queue[f], used[q] = q, true
			next[f]++
		}
	}
	if len(queue) != flows || len(used) != workers {
		t.Errorf("%d flows arrived through %d queues, want %d through %d", len(queue), len(used), flows, workers)
	}
	tp.want(t, cInPackets, flows*each)
}

// manyQueues is the host's system with as many sockets as are asked for, and a TUN device of
// fewer queues than that.
func manyQueues(h *fakeHost, queues int) (OS, *[]*fakeDevice) {
	system, devs := h.os(), []*fakeDevice{h.tun}
	system.OpenTUN = func(_ string, mtu, asked int) ([]Device, error) {
		out := []Device{h.tun}
		for len(out) < min(asked, queues) {
			d := newFakeDevice()
			devs, out = append(devs, d), append(out, d)
		}
		return out, nil
	}
	plain := system.ListenUDP
	system.ListenUDP = func(a netip.AddrPort, n int) (socks []Socket, err error) {
		for range n {
			s, err := plain(a, 1)
			if err != nil {
				return nil, err
			}
			socks = append(socks, s...)
		}
		return socks, nil
	}
	return system, &devs
}

func TestDeviceWithFewerQueuesThanWorkers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	before := runtime.NumGoroutine()
	wire := &fakeWire{}
	host := wire.host("192.0.2.1")
	system, devs := manyQueues(host, 2)
	a := startEngineOn(t, host, system, parse(t, fmt.Sprintf(confA, "encap = true", "aes128gcm16", "trap")), board.Small)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	host.tun.in <- udp4(srcHost, dstHost, 1, 502, 100)
	eventually(t, "the first packet arrived", func() bool { return b.host.tun.count() == 1 })
	const n = 200
	for i := range n {
		(*devs)[i%2].in <- udp4(srcHost, dstHost, uint16(i), 502, 100)
		b.host.tun.in <- udp4(dstHost, srcHost, 502, uint16(i), 100)
	}
	eventually(t, "all packets arrived at b", func() bool { return b.host.tun.count() == n+1 })
	eventually(t, "all packets arrived at a", func() bool { return (*devs)[0].count()+(*devs)[1].count() == n })
	if len(*devs) != 2 || (*devs)[0].count() == 0 || (*devs)[1].count() == 0 {
		t.Errorf("the packets arrived at %d and %d of %d queues, want at both", (*devs)[0].count(), (*devs)[1].count(), len(*devs))
	}
	if s, _ := a.command(control.CmdStats, control.KeyOurs, "yes"); !strings.Contains(s, `data-path{workers="2" sockets="4" tun="fake-tun" udp="fake-socket" esp="fake-socket" `) {
		t.Errorf("stats do not tell what the data path has: %s", s)
	}
	ready := 0
	for _, l := range a.log.all() {
		if strings.Contains(l, "data path") && strings.Contains(l, "workers=2") && strings.Contains(l, "fake-tun") {
			ready++
		}
	}
	if ready != 1 {
		t.Errorf("%d lines of the log tell what the data path has, want 1", ready)
	}
	a.end()
	b.end()
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}

// mallocs returns how often memory was allocated and collected so far.
func mallocs() (n uint64, cycles uint32) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs, m.NumGC
}

func TestPacketsFeedNoCollector(t *testing.T) {
	const packets = 100_000
	tp, pkts := benchPath(t, 16, 16, 200)
	in := tp.in[sockNATT4]
	sealed, at := make([][]byte, len(tp.out.bufs)), 0
	for i := range sealed {
		sealed[i] = make([]byte, 0, 2048)
	}
	tp.fakes[sockNATT4].route = func(d *esp.Datagram) {
		sealed[at] = append(sealed[at][:0], d.Buf[:d.N]...)
		at++
	}
	run := func(n int) {
		for done := 0; done < n; done += len(sealed) {
			for i := range sealed {
				tp.put(i, pkts[(done+i)%len(pkts)])
			}
			at = 0
			tp.out.batch(len(sealed))
			for from := 0; from < at; from += len(in.bufs) {
				k := min(len(in.bufs), at-from)
				for i := range k {
					in.batch[i] = esp.Datagram{Buf: in.bufs[i], N: copy(in.bufs[i], sealed[from+i])}
				}
				in.process(k)
			}
		}
	}
	run(1000) // what each worker keeps of each SA
	runtime.GC()
	m0, gc0 := mallocs()
	run(packets)
	m1, gc1 := mallocs()
	// The runtime itself allocates now and then, whatever the program does.
	if m1-m0 > 100 || gc1 != gc0 {
		t.Errorf("%d packets in both directions caused %d allocations and %d collections, want none", packets, m1-m0, gc1-gc0)
	}
	if tp.counts.get(cInPackets) < packets {
		t.Errorf("%d packets went through, want %d", tp.counts.get(cInPackets), packets)
	}
}

func TestFloodOfGarbageCostsNoMemory(t *testing.T) {
	wire := &fakeWire{}
	var mu sync.Mutex
	var init, live []byte
	wire.seen = func(from, to netip.AddrPort, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case to.Port() == 500 && init == nil:
			init = bytes.Clone(b)
		case to.Port() == 4500 && from.Addr().String() == "192.0.2.1" && esp.SPIOf(b) != 0:
			live = bytes.Clone(b)
		}
	}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "encap = true", "aes128gcm16", "trap")), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.host.tun.in <- udp4(srcHost, dstHost, 1, 502, 100)
	eventually(t, "the tunnel is up", func() bool { return b.host.tun.count() == 1 })
	a.host.tun.in <- udp4(srcHost, dstHost, 1, 502, 100)
	eventually(t, "packets pass", func() bool { return b.host.tun.count() == 2 })
	mu.Lock()
	msg, pkt := bytes.Clone(init), bytes.Clone(live)
	mu.Unlock()
	r := rand.New(rand.NewPCG(5, 5))
	random := testRandom(6)
	ike, natt := b.host.socks[500], b.host.socks[4500]
	flood := func(n int) {
		for i := range n {
			d := make([]byte, 20+r.IntN(200))
			sock := natt
			switch i % 5 {
			case 0: // of no SA
				random(d)
				d[0] |= 1
			case 1:
				d = d[:r.IntN(8)]
			case 2:
				d, sock = bytes.Clone(msg), ike
				random(d[:8])
			case 3:
				d = bytes.Clone(pkt)
			case 4: // damaged, and ahead of the window
				d = bytes.Clone(pkt)
				binary.BigEndian.PutUint32(d[4:], uint32(1000+i))
			}
			remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), uint16(1024+r.IntN(60000)))
			sock.in <- esp.Datagram{Buf: d, N: len(d), Local: b.host.addr, Remote: remote}
		}
		eventually(t, "the flood was taken in", func() bool { return len(ike.in)+len(natt.in) == 0 })
		_ = b.loop.do(func() {})
	}
	heap := func() (octets uint64, goroutines int) {
		for _, e := range []*running{a, b} {
			e.log.mu.Lock()
			e.log.lines = nil
			e.log.mu.Unlock()
		}
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
			time.Sleep(20 * time.Millisecond)
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	flood(2000) // half-open IKE SAs, up to as many as there may be
	h0, g0 := heap()
	flood(10000)
	h1, g1 := heap()
	if h1 > h0+64<<10 {
		t.Errorf("10,000 datagrams of garbage left the heap %d KiB larger (%d KiB before)", (h1-h0)>>10, h0>>10)
	}
	if g1 > g0 {
		t.Errorf("%d goroutines after the flood, %d before", g1, g0)
	}
	for _, c := range []counter{cInUnknownSPI, cInShort, cInReplay, cInAuth, cIKEIn} {
		if n := b.d.counts.get(c); n < 1000 {
			t.Errorf("counter %s is %d: the flood did not reach what it was to reach", c, n)
		}
	}
	if n := b.d.sad.used(); n > board.Tiny.ChildSAs {
		t.Errorf("%d slots are used", n)
	}
	a.host.tun.in <- udp4(srcHost, dstHost, 1, 502, 100)
	eventually(t, "packets pass after the flood", func() bool { return b.host.tun.count() == 3 })
}
