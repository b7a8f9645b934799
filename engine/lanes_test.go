package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/esp"
	"postern/ike"
)

const laneTS, laneRemote = "10.1.0.0/16", "10.2.0.0/16"

// twoClasses has the DSCP 46 in lane 1, and 8 to 10 in lane 2.
func twoClasses() *laneSpec {
	l := &laneSpec{names: []string{"46", "8-10"}}
	l.class[46], l.class[8], l.class[9], l.class[10] = 1, 2, 2, 2
	return l
}

// withLanes returns a policy with that for lanes.
func withLanes(l *laneSpec) policySpec {
	p := protect("c", "n", laneTS, laneRemote)
	p.lanes = l
	return p
}

// addLane installs a pair for a lane; own: of one worker.
func (tp *testPath) addLane(t testing.TB, lane uint8, own bool) (*inSA, *outSA) {
	t.Helper()
	in, out := tp.addLoop(t, testSuites[0], true, "c", "n", laneTS, laneRemote, false)
	out.lane = lane
	if own {
		out.own = new(ownUse)
	}
	tp.spd.bind(out)
	return in, out
}

// withDSCP returns a packet of that class.
func withDSCP(dscp uint8, port uint16) []byte {
	p := udp4(srcHost, dstHost, port, 502, 200)
	p[1], p[10], p[11] = dscp<<2, 0, 0
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	return p
}

// carriers returns how many packets each SA has sealed since the last time.
func (tp *testPath) carriers() map[uint32]int {
	f, n := tp.fakes[sockNATT4], map[uint32]int{}
	for _, d := range f.datagrams() {
		n[esp.SPIOf(d.Buf)]++
	}
	f.sent = nil
	return n
}

// grown records what lanes are asked for.
func (tp *testPath) grown() *[]uint8 {
	list := new([]uint8)
	tp.datapath.grow = func(p *policy, f *esp.Flow, lane uint8) bool {
		*list = append(*list, lane)
		return true
	}
	return list
}

func TestEachClassTakesItsSA(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	asked := tp.grown()
	tp.spd.set([]policySpec{withLanes(twoClasses())})
	_, rest := tp.addLane(t, 0, false)
	// Of the same flow: only the DSCP differs.
	all := [][]byte{withDSCP(0, 1), withDSCP(46, 1), withDSCP(8, 1), withDSCP(10, 1)}
	tp.send(all...)
	if n := tp.carriers(); n[rest.spi] != 4 || len(*asked) != 2 {
		t.Errorf("before there are others: %v, asked for the lanes %v; want 4 packets through %08x, and 1 and 2 asked for", n, *asked, rest.spi)
	}
	tp.now += laneInterval - 1
	tp.spd.retryLanes()
	tp.send(all...)
	if len(*asked) != 2 {
		t.Errorf("asked for %v too soon", *asked)
	}
	tp.now += 1
	tp.spd.retryLanes()
	tp.send(all...)
	if len(*asked) != 4 {
		t.Errorf("asked for %v, want both once more", *asked)
	}
	tp.carriers()
	_, voice := tp.addLane(t, 1, false)
	tp.send(all...)
	if n := tp.carriers(); n[rest.spi] != 3 || n[voice.spi] != 1 {
		t.Errorf("%v, want 1 through the SA of the class %08x", n, voice.spi)
	}
	_, bulk := tp.addLane(t, 2, false)
	_, newer := tp.addLane(t, 1, false)
	tp.send(all...)
	if n := tp.carriers(); n[rest.spi] != 1 || n[bulk.spi] != 2 || n[newer.spi] != 1 || n[voice.spi] != 0 {
		t.Errorf("%v, want 1 through %08x, 2 through %08x and 1 through the newer %08x", n, rest.spi, bulk.spi, newer.spi)
	}
	// The first one is gone: any serves, and it is asked for.
	*asked = nil
	tp.now += laneInterval
	tp.spd.unbind(rest)
	tp.send(all...)
	if n := tp.carriers(); n[bulk.spi]+n[newer.spi]+n[voice.spi] != 4 || len(*asked) != 1 || (*asked)[0] != 0 {
		t.Errorf("without the first: %v, asked for %v; want all to go, and lane 0", n, *asked)
	}
	tp.quiet()
	if n := testing.AllocsPerRun(50, func() {
		for i, p := range all {
			tp.put(i, p)
		}
		tp.out.batch(len(all))
	}); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

// Who has no classes sends each class back through the SA by which it came.
func TestClassesGoBackTheWayTheyCame(t *testing.T) {
	a, b := newTestPath(t, board.Tiny), newTestPath(t, board.Tiny) // with the same SPIs and keys
	a.spd.set([]policySpec{withLanes(twoClasses())})
	b.spd.set([]policySpec{withLanes(nil)})
	b.datapath.grow = func(*policy, *esp.Flow, uint8) bool { t.Error("b asks for a lane"); return true }
	var outs [3]*outSA
	for lane := range outs {
		a.addLane(t, uint8(lane), false)
		in, out := b.addLoop(t, testSuites[0], true, "c", "n", laneTS, laneRemote, false)
		out.lane = uint8(lane)
		if lane > 0 {
			in.came = new(cameBy)
			out.came = in.came
			in.is.set(inMixed, true)
		}
		b.spd.bind(out)
		outs[lane] = out
	}
	all := [][]byte{withDSCP(0, 1), withDSCP(46, 1), withDSCP(9, 1), withDSCP(63, 1)}
	b.send(all...)
	if n := b.carriers(); n[outs[0].spi] != 4 {
		t.Errorf("before anything has come: %v, want all through the first", n)
	}
	a.send(all...)
	gen := b.spd.gen.Load()
	b.receive(sockNATT4, a.fakes[sockNATT4].datagrams()...)
	b.want(t, cInPackets, 4)
	if b.spd.gen.Load() != gen+2 {
		t.Errorf("the generation went from %d to %d, want two steps for two classes", gen, b.spd.gen.Load())
	}
	b.send(all...)
	if n := b.carriers(); n[outs[0].spi] != 2 || n[outs[1].spi] != 1 || n[outs[2].spi] != 1 {
		t.Errorf("%v, want 2, 1 and 1 through %08x, %08x and %08x", n, outs[0].spi, outs[1].spi, outs[2].spi)
	}
	a.carriers()
	a.send(all...)
	b.receive(sockNATT4, a.fakes[sockNATT4].datagrams()...)
	if b.spd.gen.Load() != gen+2 {
		t.Error("what is known already changes the generation again")
	}
}

// Workers with SAs of their own take no turns: neither tickets nor the lock that they share.
func TestAWorkersOwnSATakesNoTurn(t *testing.T) {
	const workers, rounds = 4, 200
	tp, left := newWorkers(t, workers)
	tp.spd.set([]policySpec{withLanes(&laneSpec{workers: workers})})
	_, shared := tp.addLane(t, 0, false)
	var own [workers]*outSA
	for w := range own {
		_, own[w] = tp.addLane(t, uint8(w+1), true)
	}
	tp.turns.mu.Lock() // who wants it waits for ever
	var sent [workers]atomic.Int64
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
				sent[w].Add(int64(n))
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a worker waits for the lock of the turns")
	}
	tp.turns.mu.Unlock()
	left.check(t)
	for w, sa := range own {
		u, last := tp.turns.usage(sa)
		if u.Packets != uint64(sent[w].Load()) || u.Bytes == 0 || last != tp.now || sa.issued != 0 {
			t.Errorf("the SA of worker %d has carried %+v, the last at %v, with %d tickets; want its %d packets", w, u, last, sa.issued, sent[w].Load())
		}
	}
	if shared.out.Seq() != 0 {
		t.Errorf("%d packets took the SA that all share", shared.out.Seq())
	}
}

// While the SAs of the workers come and go no number leaves out of order, and none is sent by
// somebody else.
func TestOwnSAsComeAndGoWhileWorkersSend(t *testing.T) {
	const workers, rounds = 4, 300
	tp, left := newWorkers(t, workers)
	tp.datapath.grow = func(*policy, *esp.Flow, uint8) bool { return true }
	tp.spd.set([]policySpec{withLanes(&laneSpec{workers: workers})})
	_, shared := tp.addLane(t, 0, false)
	all := []*outSA{shared}
	var sent, stop atomic.Int64
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
			stop.Add(1)
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	var now [workers]*outSA
	for stop.Load() < workers {
		w := r.IntN(workers)
		if old := now[w]; old != nil {
			tp.spd.unbind(old)
			now[w] = nil
		}
		if r.IntN(2) == 0 && tp.sad.nfree > 0 {
			_, now[w] = tp.addLane(t, uint8(w+1), true)
			all = append(all, now[w])
		}
		time.Sleep(50 * time.Microsecond)
	}
	wg.Wait()
	n := left.check(t)
	var octets, packets uint64
	for _, sa := range all {
		u, _ := tp.turns.usage(sa)
		packets += u.Packets
		octets += u.Bytes
	}
	allServed(t, all...)
	if n != int(sent.Load()) || packets != uint64(n) || octets != tp.counts.get(cOutBytes) {
		t.Errorf("%d of %d packets left, the SAs count %d, and %d of %d octets", n, sent.Load(), packets, octets, tp.counts.get(cOutBytes))
	}
}

// Where nothing but SAs of other workers is left a packet waits, whatever the policy has to say
// of that, and the one that all share is asked for.
func TestPacketsWaitWhereOnlyOthersHaveSAs(t *testing.T) {
	tp := newTestPathOf(t, board.Tiny, 2)
	asked := tp.grown()
	spec := withLanes(&laneSpec{workers: 2})
	spec.wait, spec.acquire = false, false
	tp.spd.set([]policySpec{spec})
	_, other := tp.addLane(t, 2, true)
	tp.send(withDSCP(0, 1)) // worker 0
	if other.out.Seq() != 0 || tp.pending.len() != 1 || len(*asked) != 1 || (*asked)[0] != 0 {
		t.Fatalf("%d packets through the SA of another worker, %d wait, asked for %v", other.out.Seq(), tp.pending.len(), *asked)
	}
	tp.flusher.flush()
	if tp.pending.len() != 1 {
		t.Error("it does not wait until there is one")
	}
	_, shared := tp.addLane(t, 0, false)
	tp.flusher.flush()
	if shared.out.Seq() != 1 || tp.pending.len() != 0 {
		t.Errorf("%d packets left, %d wait", shared.out.Seq(), tp.pending.len())
	}
}

// An SPI for a worker is that worker's modulo the sockets, by which the system steers.
func TestSPIsSuitTheirWorkers(t *testing.T) {
	for _, slots := range []int{8, 16, 256} {
		for n := uint32(1); n <= maxQueues; n++ {
			s := newSAD(slots, testRandom(uint64(n)))
			seen := map[uint32]bool{}
			for i := range uint32(slots) {
				spi, ok := s.allocFor(i%n, n)
				if !ok || seen[spi&s.mask] {
					t.Fatalf("%d slots for %d: no SPI, or a slot twice, after %d", slots, n, i)
				}
				seen[spi&s.mask] = true
				if i < uint32(slots)/2 && spi%n != i%n {
					t.Errorf("%d slots for %d: SPI %08x is not for worker %d", slots, n, spi, i%n)
				}
			}
			if _, ok := s.allocFor(0, n); ok || s.used() != slots {
				t.Error("a full table gives out an SPI")
			}
			for spi := range seen {
				s.release(s.slots[spi].spi)
			}
			if s.used() != 0 {
				t.Error("the table is not empty again")
			}
		}
	}
}

// What the machine says of lanes comes into the tables: whose an SA is, and what has come by one
// and those before it.
func TestLoopInstallsLanes(t *testing.T) {
	tl := newTestLoopOf(t, 2)
	add := func(id uint32, lane uint8, perCPU, standby bool) *outSA {
		in, out := tl.child(t, id, standby)
		for _, o := range []ike.Output{in, out} {
			o.Add.Lane, o.Add.PerCPU = lane, perCPU
		}
		tl.outputs(in, out)
		return tl.sad.slot(in.Add.SPI).out
	}
	tl.spd.set([]policySpec{withLanes(&laneSpec{workers: 2})})
	if sa := add(1, 0, true, false); sa.own != nil || sa.lane != 0 || sa.came != nil {
		t.Error("the SA that all share is one worker's")
	}
	if sa := add(2, 1, true, false); sa.own == nil || sa.lane != 1 || sa.came != nil {
		t.Error("the SA of worker 0 is not its own")
	}
	tl.spd.set([]policySpec{withLanes(twoClasses())})
	if sa := add(3, 2, false, false); sa.own != nil || sa.lane != 2 || sa.came != nil {
		t.Error("the SA of a class is not what it should be")
	}
	tl.spd.set([]policySpec{withLanes(nil)})
	first := add(4, 1, false, false)
	if first.came == nil || !tl.sad.slot(first.inbound).in.Load().is.has(inMixed) {
		t.Fatal("it is not learnt what comes by an SA of which only the peer knows what it is for")
	}
	first.came.dscps.Store(1 << 46)
	if sa := add(5, 1, false, true); sa.came != first.came {
		t.Error("the successor has to learn again what comes by it")
	}
	if sa := add(6, 2, false, false); sa.came == nil || sa.came == first.came {
		t.Error("another lane has the classes of the first")
	}
	if got := (<-func() chan ike.Command {
		tl.datapath.grow = tl.ikeLoop.grow
		tl.datapath.grow(tl.spd.cur.Load().list[0], flowTo(dstHost), 2)
		return tl.wishes
	}()); !got.Grow || got.Lane != 2 || got.Kind != ike.CmdAcquire || got.Conn != "c" || got.Child != "n" {
		t.Errorf("the loop is asked for %+v", got)
	}
}

// Configured lanes become those of the policies, and the workers' number that of the machine.
func TestConfiguredLanes(t *testing.T) {
	text := `[secrets.s]
secret = "0123456789abcdef0123456789abcdef"
[connections.c]
remote_addrs = ["192.0.2.9"]
[connections.c.remote]
id = "b.example"
[connections.c.children.one]
remote_ts = ["10.2.0.0/16"]
dscp_classes = ["46", "8-10"]
[connections.c.children.two]
remote_ts = ["10.3.0.0/16"]
per_cpu_sas = true
`
	cfg, err := config.Parse("x.toml", []byte(text), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	for queues, want := range map[int]int{1: 0, 3: 3, 9: maxLanes} {
		e := &Engine{d: &datapath{tuns: make([]Device, queues)}}
		kids := e.ikeConfig(cfg).Conns[0].Children
		if kids[0].Lanes != 2 || kids[1].Lanes != want {
			t.Errorf("%d queues: %d and %d lanes, want 2 and %d", queues, kids[0].Lanes, kids[1].Lanes, want)
		}
		for _, entry := range cfg.SPD(nil) {
			l := e.lanes(entry.Carrier, entry.Classes)
			switch {
			case entry.Child == "one":
				if l.lane(46, 0) != 1 || l.lane(9, -1) != 2 || l.lane(0, 1) != 0 || l.className(2) != "8-10" {
					t.Errorf("classes %+v", l)
				}
			case want == 0:
				if l != nil {
					t.Error("lanes for one worker")
				}
			default:
				for w := -1; w < 10; w++ {
					lane := w + 1
					if w >= want {
						lane = 0
					}
					if got := l.lane(46, w); int(got) != lane {
						t.Errorf("worker %d of %d has lane %d, want %d", w, want, got, lane)
					}
				}
			}
		}
	}
}
