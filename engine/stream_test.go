package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/esp"
	"postern/esp/aggfrag"
	"postern/ike"
)

// testStream is a data path with one pair of SAs that has AGGFRAG payloads, and the loop and the
// pacer, driven by hand on the path's clock.
type testStream struct {
	*testPath
	l   *ikeLoop
	c   *ike.ChildSA
	in  *inSA
	out *outSA
}

func newTestStream(t testing.TB, h ike.Hiding) *testStream {
	t.Helper()
	ts := &testStream{testPath: newTestPath(t, board.Small)}
	ts.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	ts.l = &ikeLoop{d: ts.datapath, mtu: 1400, log: log.New(discard{}, log.Error)}
	ts.pacer.sleep = func(d time.Duration) { ts.now += d }
	ts.pacer.random = func(int64) int64 { return 0 }
	h.IPTFS = ike.IPTFSYes
	ts.c = &ike.ChildSA{
		SA:   esp.SA{Suite: testSuites[0], Remote: netip.MustParseAddrPort("192.0.2.2:4500"), Encap: true, LocalTS: sel("10.1.0.0/16"), RemoteTS: sel("10.2.0.0/16")},
		Conn: "c", Child: "n", Hiding: h, AggFrag: ike.AggFrag{On: true},
	}
	ts.keys(t)
	return ts
}

// keys adds a pair of SAs, which take over from those before.
func (ts *testStream) keys(t testing.TB) {
	t.Helper()
	in, out := ts.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", false)
	in.unpacker = ts.l.newUnpacker(ts.c, in)
	in.is.set(inAgg, true)
	if err := ts.l.joinStream(ts.c, out); err != nil {
		t.Fatal(err)
	}
	ts.l.useStream(out)
	ts.spd.bind(out)
	ts.in, ts.out = in, out
}

// run steps the pacer until the given time, and returns when packets left and how long they were.
func (ts *testStream) run(until time.Duration) (at []time.Duration, lengths []int) {
	fake := ts.fakes[ts.out.sock()]
	n := len(fake.datagrams())
	for ts.now < until {
		next := ts.pacer.step(ts.now)
		for _, g := range fake.datagrams()[n:] {
			at, lengths = append(at, ts.now), append(lengths, g.N)
			n++
		}
		if next == 0 {
			ts.now = until
		}
		ts.now = max(ts.now, min(next, until))
	}
	return at, lengths
}

// sent returns what left from the n-th on, as it comes in.
func (ts *testStream) sent(n int) []esp.Datagram {
	list := ts.fakes[ts.out.sock()].datagrams()[n:]
	for i := range list {
		list[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
	}
	return list
}

// arrive takes datagrams through the way in, one by one.
func (ts *testStream) arrive(list ...esp.Datagram) {
	for _, g := range list {
		ts.receive(ts.out.sock(), g)
	}
}

const (
	testRate = 1_000_000
	testTick = 12 * time.Millisecond // of 1500 octets
)

func constant() ike.Hiding { return ike.Hiding{Mode: ike.IPTFSConstant, Rate: testRate} }

// Packets of one length leave at one distance, whether there is nothing to send, something, or more than
// the rate takes, and at the other end is what was put in.
func TestConstantStreamTellsNothing(t *testing.T) {
	ts := newTestStream(t, constant())
	var want [][]byte
	busy := func(n, size int) {
		for i := range n {
			p := udp4(srcHost, dstHost, uint16(i), 502, size+i%7)
			want = append(want, p)
			ts.send(p)
		}
	}
	var last time.Duration
	count := 0
	for round, load := range []func(){func() {}, func() { busy(3, 60) }, func() { busy(20, 1300) }, func() { busy(200, 40) }, func() {}} {
		load()
		at, lengths := ts.run(ts.now + 50*testTick)
		if len(at) < 49 || len(at) > 51 {
			t.Fatalf("round %d: %d packets left in 50 times their distance", round, len(at))
		}
		for i := range at {
			if lengths[i] != 1472 {
				t.Errorf("round %d: a packet has %d octets, want 1472 behind 28 of IP and UDP", round, lengths[i])
			}
			if last != 0 && at[i]-last != testTick {
				t.Fatalf("round %d: packet %d left %v after the one before, want %v", round, i, at[i]-last, testTick)
			}
			last = at[i]
		}
		count += len(at)
	}
	ts.arrive(ts.sent(0)...)
	got := ts.tun.packets()
	if len(got) != len(want) {
		t.Fatalf("%d packets came out, want the %d that went in", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d is not what went in", i)
		}
	}
	ts.want(t, cOutStream, uint64(count))
	ts.want(t, cInAgg, uint64(count))
	ts.want(t, cOutPackets, uint64(len(want)))
	ts.want(t, cInPackets, uint64(len(want)))
	ts.want(t, cInAggLost, 0)
	if pads := ts.counts.get(cOutStreamPad); pads < 100 || pads >= uint64(count) {
		t.Errorf("%d of %d packets were nothing but padding", pads, count)
	}
	if _, o, _, lastOut := ts.sad.usage(&ts.turns, ts.testStreamSPI()); o.Bytes == 0 || lastOut == 0 || lastOut > ts.now-50*testTick {
		t.Errorf("the SA has carried %d octets, the last at %v of %v: padding must not count", o.Bytes, lastOut, ts.now)
	}
}

func (ts *testStream) testStreamSPI() uint32 { return ts.out.inbound }

// Rates beyond what can be slept leave in bursts of one length.
func TestFastStreamLeavesInEqualBursts(t *testing.T) {
	h := constant()
	h.Rate = 100_000_000 // 8333 a second: 9 in 1.08 ms
	ts := newTestStream(t, h)
	at, _ := ts.run(ts.now + 100*time.Millisecond)
	bursts := map[time.Duration]int{}
	for _, x := range at {
		bursts[x]++
	}
	if n := len(at); n < 815 || n > 850 {
		t.Errorf("%d packets left in 100 ms, want 833", n)
	}
	for x, n := range bursts {
		if n != 9 {
			t.Fatalf("%d packets left at %v, want 9 at a time", n, x)
		}
	}
}

// What the pacer came too late for is left out: packets in a row would tell that it was.
func TestLatePacerDoesNotMakeUp(t *testing.T) {
	ts := newTestStream(t, constant())
	at, _ := ts.run(ts.now + 10*testTick)
	grid := at[len(at)-1]
	ts.now = grid + 5*testTick + testTick/3
	at, _ = ts.run(ts.now + 10*testTick)
	if len(at) < 10 || len(at) > 11 {
		t.Fatalf("%d packets left, want one late and one a tick", len(at))
	}
	for i, x := range at[1:] {
		if (x-grid)%testTick != 0 {
			t.Errorf("packet %d left at %v, which is off the grid", i+1, x-grid)
		}
	}
	if late := ts.counts.get(cOutStreamLate); late != 4 {
		t.Errorf("%d packets count as late, want 4", late)
	}
}

// Chance moves each packet by up to half of the distance, and none of those behind it.
func TestStreamTimesAreDithered(t *testing.T) {
	ts := newTestStream(t, constant())
	at, _ := ts.run(ts.now + 2*testTick)
	grid := at[len(at)-1]
	random := testRandom(5)
	ts.pacer.random = func(n int64) int64 {
		var b [2]byte
		random(b[:])
		return (int64(b[0])<<8 | int64(b[1])) * n >> 16
	}
	ts.run(ts.now + testTick + testTick/2)
	at, _ = ts.run(ts.now + 200*testTick)
	if len(at) < 199 || len(at) > 201 {
		t.Fatalf("%d packets left in 200 times their distance", len(at))
	}
	var sum, most time.Duration
	for _, x := range at {
		late := (x - grid) % testTick
		sum, most = sum+late, max(most, late)
	}
	if mean := sum / time.Duration(len(at)); most > testTick/2 || most < testTick*2/5 || mean < testTick/5 || mean > testTick*3/10 {
		t.Errorf("packets leave up to %v late, %v on average, with %v between them; want up to a half", most, mean, testTick)
	}
}

// With several streams each has its own times.
func TestStreamsDoNotWaitForEachOther(t *testing.T) {
	ts := newTestStream(t, constant())
	other := *ts.c
	other.Child, other.Hiding.Rate = "other", 3*testRate
	_, out := ts.addLoop(t, testSuites[0], true, "c", "other", "10.3.0.0/16", "10.4.0.0/16", false)
	if err := ts.l.joinStream(&other, out); err != nil {
		t.Fatal(err)
	}
	ts.l.useStream(out)
	ts.run(ts.now + 100*testTick)
	one, two := ts.out.out.Seq(), out.out.Seq()
	if one < 99 || one > 101 || two < 297 || two > 303 {
		t.Errorf("%d and %d packets left, want 100 and 300", one, two)
	}
	if out.stream == ts.out.stream {
		t.Error("two children have one stream")
	}
}

// In aggregate mode packets leave at once, several in one, nothing leaves while there is
// nothing, and a peer that asks for reports gets them now and then.
func TestAggregateStream(t *testing.T) {
	ts := newTestStream(t, ike.Hiding{Mode: ike.IPTFSAggregate})
	if at, _ := ts.run(ts.now + time.Second); len(at) != 0 {
		t.Errorf("%d packets left of a stream that has nothing to send", len(at))
	}
	var want [][]byte
	for i := range 10 {
		want = append(want, udp4(srcHost, dstHost, uint16(i), 502, 100))
	}
	ts.send(want...)
	start := ts.now
	at, lengths := ts.run(ts.now + 1)
	if len(at) != 1 || at[0] != start || lengths[0] < 1000 || lengths[0] > 1100 {
		t.Fatalf("packets left at %v with %v octets, want one with the ten", at, lengths)
	}
	for i := range 30 { // more than a burst
		want = append(want, udp4(srcHost, dstHost, uint16(i), 502, 1300))
		ts.send(want[len(want)-1])
	}
	if at, _ := ts.run(ts.now + time.Millisecond); len(at) < 27 || len(at) > 31 {
		t.Errorf("%d packets left for 39,000 octets", len(at))
	}
	ts.arrive(ts.sent(0)...)
	if got := ts.tun.packets(); len(got) != len(want) || !bytes.Equal(got[len(got)-1], want[len(want)-1]) {
		t.Errorf("%d packets came out, want %d", len(got), len(want))
	}
	ts.want(t, cOutStreamPad, 0)

	ts = newTestStream(t, ike.Hiding{Mode: ike.IPTFSAggregate})
	ts.l.leaveStream(ts.out)
	ts.c.AggFrag.PeerReports = true
	ts.keys(t)
	at, lengths = ts.run(ts.now + time.Second)
	if len(at) < idleReports-1 || len(at) > idleReports+1 || lengths[0] > 100 {
		t.Errorf("%d reports left in a second, the first with %d octets, want %d short ones", len(at), lengths[0], idleReports)
	}
	ts.arrive(ts.sent(0)...)
	ts.want(t, cInAgg, uint64(len(at)))
	ts.want(t, cInPackets, 0)
}

// New keys: what is queued goes on through the new SA, nothing is cut over two, and the rhythm stays.
func TestStreamGoesOnWithNewKeys(t *testing.T) {
	ts := newTestStream(t, constant())
	ts.run(ts.now + 3*testTick)
	var want [][]byte
	for i := range 40 {
		want = append(want, udp4(srcHost, dstHost, uint16(i), 502, 1000))
		ts.send(want[i])
	}
	at, _ := ts.run(ts.now + 5*testTick)
	old, oldIn := ts.out, ts.in
	before := len(ts.sent(0))
	ts.keys(t)
	if ts.out.stream != old.stream || len(ts.pacer.streams) != 1 {
		t.Fatal("the new keys have a stream of their own")
	}
	for _, o := range []*outSA{old} { // as the loop does when the peer has deleted it
		ts.sad.slot(o.inbound).delOut()
		ts.l.leaveStream(o)
		o.out.Wipe()
	}
	after, _ := ts.run(ts.now + 40*testTick)
	if after[0]-at[len(at)-1] != testTick {
		t.Errorf("the first packet under new keys left %v after the last under old ones, want %v", after[0]-at[len(at)-1], testTick)
	}
	ts.arrive(ts.sent(0)...)
	got := ts.tun.packets()
	if len(got) != len(want) {
		t.Fatalf("%d packets came out, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d is not what went in: its order or its parts are mixed up", i)
		}
	}
	if oldIn.in.Usage().Packets != uint64(before) {
		t.Errorf("%d packets came under the old keys, %d left", oldIn.in.Usage().Packets, before)
	}
	// What still comes under old keys says nothing of losses any more.
	if ts.out.stream.countsFor(oldIn.unpacker.number) || !ts.out.stream.countsFor(ts.in.unpacker.number) {
		t.Error("losses are not those of the newest keys")
	}
	ts.sad.slot(ts.out.inbound).delOut()
	ts.l.leaveStream(ts.out)
	if len(ts.pacer.streams) != 0 || !ts.out.stream.gone.Load() {
		t.Error("the stream has outlived its last SA")
	}
	ts.send(want[0])
	ts.want(t, cOutStreamStopped, 1)
}

// An older SA carries the stream on when a newer one goes.
func TestStreamGoesBackToAnOlderSA(t *testing.T) {
	ts := newTestStream(t, constant())
	old := ts.out
	ts.keys(t)
	ts.sad.slot(ts.out.inbound).delOut()
	ts.l.leaveStream(ts.out)
	ts.out.out.Wipe()
	was := old.out.Seq()
	ts.run(ts.now + 10*testTick)
	if n := old.out.Seq() - was; n < 9 {
		t.Errorf("%d packets left through the older SA, want one a tick", n)
	}
}

// Each packet in a payload is checked as one that came alone: selectors, and what the SPD says.
func TestPacketsOfAStreamAreChecked(t *testing.T) {
	ts := newTestStream(t, constant())
	ts.send(udp4(srcHost, dstHost, 1, 1, 100))
	for _, p := range [][]byte{udp4("192.0.2.9", dstHost, 1, 1, 100), udp4(srcHost, "10.9.0.1", 1, 1, 100)} {
		if err := ts.out.stream.pack.Put(p); err != nil { // past our own SPD, as a peer could
			t.Fatal(err)
		}
	}
	ts.send(udp4(srcHost, dstHost, 2, 1, 100))
	ts.run(ts.now + 3*testTick)
	ts.arrive(ts.sent(0)...)
	ts.want(t, cInPackets, 2)
	ts.want(t, cInSelectors, 2)
}

// A full queue drops what comes, and says so; the stream does not care.
func TestStreamQueueIsBounded(t *testing.T) {
	ts := newTestStream(t, constant())
	room := board.Small.Queue * queuePart
	n := room/1000 + 50
	for range n {
		ts.send(udp4(srcHost, dstHost, 1, 1, 1000))
	}
	if full := ts.counts.get(cOutStreamFull); full < 50 || full > 60 {
		t.Errorf("%d of %d packets found no room in %d octets", full, n, room)
	}
	at, _ := ts.run(ts.now + 10*testTick)
	if len(at) < 9 || len(at) > 11 {
		t.Errorf("%d packets left in ten ticks", len(at))
	}
}

func TestStreamOfWholePackets(t *testing.T) {
	h := constant()
	h.Size, h.NoFrags = 600, true
	ts := newTestStream(t, h)
	ts.send(udp4(srcHost, dstHost, 1, 1, 300), udp4(srcHost, dstHost, 2, 1, 300), udp4(srcHost, dstHost, 3, 1, 900), udp4(srcHost, dstHost, 4, 1, 300))
	ts.run(ts.now + 10*testTick)
	ts.arrive(ts.sent(0)...)
	ts.want(t, cInPackets, 3)
	ts.want(t, cOutStreamBig, 1)
}

// A payload that does not come holds those behind it up for a while, and no longer, whether
// others come or not.
func TestPacerGivesUpLostPayloads(t *testing.T) {
	ts := newTestStream(t, constant())
	for i := range 3 {
		ts.send(udp4(srcHost, dstHost, uint16(i), 1, 1000))
		ts.run(ts.now + 2*testTick)
	}
	list := ts.sent(0)
	lost := -1
	for i := range list {
		if lost < 0 && i > 2 {
			lost = i
			continue
		}
		if i == lost+1 || lost < 0 {
			ts.arrive(list[i])
		}
	}
	ts.l.leaveStream(ts.out) // nothing more leaves
	had := ts.counts.get(cInAgg)
	if len(ts.pacer.waiting) != 1 {
		t.Fatalf("the pacer looks after %d SAs with payloads that wait, want 1", len(ts.pacer.waiting))
	}
	next := ts.pacer.step(ts.now)
	if next <= ts.now || next > ts.now+reorderWait {
		t.Fatalf("the pacer wants to look again in %v, want at most %v", next-ts.now, reorderWait)
	}
	ts.want(t, cInAggLost, 0)
	ts.now = next
	ts.pacer.step(ts.now)
	ts.want(t, cInAggLost, 1)
	if len(ts.pacer.waiting) != 0 || had == 0 {
		t.Error("it goes on looking though nothing waits")
	}
}

// Payloads that lie are dropped by reason, and what is good goes on.
func TestPayloadsThatLie(t *testing.T) {
	ts := newTestStream(t, constant())
	ts.l.leaveStream(ts.out)
	p := udp4(srcHost, dstHost, 1, 1, 100)
	seal := func(next uint8, payload ...byte) esp.Datagram {
		buf := make([]byte, 2048)
		n := copy(buf[headRoom:], payload)
		start, end, err := ts.out.out.Seal(0, buf, headRoom, n, next)
		if err != nil {
			t.Fatal(err)
		}
		return esp.Datagram{Buf: buf[start:end], N: end - start, Remote: netip.MustParseAddrPort("192.0.2.1:4500")}
	}
	good := func() { ts.arrive(seal(aggfrag.NextHeader, append([]byte{0, 0, 0, 0}, p...)...)) }
	cut := append([]byte{0, 0, 0, 0}, p[:60]...)
	rest := func(offset byte, n int) []byte { return append([]byte{0, 0, 0, offset}, p[60:60+n]...) }
	short := append([]byte{0, 0, 0, 0}, p...)
	short[4+3] = 5 // total length
	good()
	for _, c := range []struct {
		name string
		list [][]byte
		next uint8
		want counter
	}{
		{"short", [][]byte{{0, 0}}, aggfrag.NextHeader, cInAggHeader},
		{"unknown", [][]byte{{9, 0, 0, 0, 1}}, aggfrag.NextHeader, cInAggHeader},
		{"no packet", [][]byte{{0, 0, 0, 0, 0x70}}, aggfrag.NextHeader, cInAggType},
		{"shorter than its header", [][]byte{short}, aggfrag.NextHeader, cInAggLength},
		{"rest that does not fit", [][]byte{cut, rest(39, 39)}, aggfrag.NextHeader, cInAggOffset},
		{"a packet alone", [][]byte{p}, esp.ProtoIPv4, cInNextHeader},
		{"dummy", [][]byte{p}, esp.ProtoNoNext, cInDummy},
	} {
		before, passed := ts.counts.get(c.want), ts.counts.get(cInPackets)
		for _, b := range c.list {
			ts.arrive(seal(c.next, b...))
		}
		if n := ts.counts.get(c.want) - before; n != 1 {
			t.Errorf("%s: %s went up by %d, want 1", c.name, c.want, n)
		}
		if c.next != aggfrag.NextHeader { // which leave a gap
			for range reorderWindow + 1 {
				good()
			}
			passed += reorderWindow
		}
		good()
		if n := ts.counts.get(cInPackets) - passed; n < 1 {
			t.Errorf("%s: the good packet behind it did not pass", c.name)
		}
	}
	ts.arrive(seal(aggfrag.NextHeader, cut...), seal(aggfrag.NextHeader, rest(40, 40)...))
	if got := ts.tun.packets(); !bytes.Equal(got[len(got)-1], p) {
		t.Error("a packet in two parts did not come out as it was")
	}
}

// The circuit breaker: the peer reports losses for too long, and nothing leaves any more.
func TestCircuitBreakerStopsTheStream(t *testing.T) {
	h := constant()
	h.TripLoss, h.TripTime = 10, time.Second
	ts := newTestStream(t, h)
	ts.c.AggFrag.PeerReports = true
	lossy := func(d time.Duration, every int) {
		for end := ts.now + d; ts.now < end; {
			n := len(ts.sent(0))
			ts.run(ts.now + testTick)
			for i, g := range ts.sent(n) {
				if every == 0 || (n+i)%every != 0 {
					ts.arrive(g)
				}
			}
		}
	}
	lossy(3*time.Second, 0)
	if ts.out.stream.stopped.Load() {
		t.Fatal("the circuit breaker has tripped without losses")
	}
	lossy(10*time.Second, 3)
	if !ts.out.stream.stopped.Load() {
		t.Fatalf("a third is lost for 10 s, and the circuit breaker does not trip: %+v", ts.out.stream.ctl.Status())
	}
	if at, _ := ts.run(ts.now + time.Second); len(at) != 0 {
		t.Errorf("%d packets left of a stream that is stopped", len(at))
	}
	ts.send(udp4(srcHost, dstHost, 1, 1, 100))
	ts.want(t, cOutStreamStopped, 1)
}

// Congestion control: the rate rises to the limit where nothing is lost, and falls with losses.
func TestStreamFollowsCongestion(t *testing.T) {
	ts := newTestStream(t, ike.Hiding{Mode: ike.IPTFSCongestion, Rate: testRate})
	loss := 0
	carry := func(d time.Duration) int {
		start := len(ts.sent(0))
		for end := ts.now + d; ts.now < end; {
			n := len(ts.sent(0))
			ts.run(min(end, ts.now+5*time.Millisecond))
			for i, g := range ts.sent(n) {
				if loss == 0 || (n+i)%loss != 0 {
					ts.arrive(g) // as if the peer answered at once with what it sends itself
				}
			}
		}
		return len(ts.sent(0)) - start
	}
	carry(20 * time.Second)
	if n := carry(time.Second); n < 80 || n > 85 {
		t.Errorf("%d packets leave in a second without losses, want the 83 of the limit", n)
	}
	loss = 4
	carry(10 * time.Second)
	if n := carry(2 * time.Second); n > 120 {
		t.Errorf("%d packets leave in two seconds while every fourth is lost", n)
	}
}

// No more streams than there is room for, and then a reason that names what to do.
func TestStreamsAreLimited(t *testing.T) {
	ts := newTestStream(t, constant())
	var err error
	n := 0
	for err == nil && n < 1000 {
		c := *ts.c
		c.Child = fmt.Sprint(n)
		if _, err = ts.l.newStream(&c, ts.out.path.Load()); err == nil {
			n++
		}
	}
	if n+1 != 2*board.Small.Streams() || !errors.Is(err, errStreams) {
		t.Errorf("there is room for %d streams (%v), want %d while all are replaced", n+1, err, 2*board.Small.Streams())
	}
	c := *ts.c
	c.Hiding.Size = 100
	if _, err := ts.l.newStream(&c, ts.out.path.Load()); !errors.Is(err, errPayload) {
		t.Errorf("packets of 100 octets: %v", err)
	}
}

// A stream moves with its SA to another path, and keeps its length.
func TestStreamFollowsItsPath(t *testing.T) {
	ts := newTestStream(t, constant())
	ts.run(ts.now + 5*testTick)
	v6 := outerPathOf(esp.ESP, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddrPort("[2001:db8::2]:4500"), true)
	ts.out.path.Store(v6)
	ts.run(ts.now + 5*testTick)
	list := ts.fakes[sockNATT6].datagrams()
	if len(list) < 4 || list[0].N != 1500-40-8 && list[0].N != 1500-40-8-4 {
		t.Errorf("%d packets left over IPv6, the first with %d octets, want 1500 with its headers", len(list), list[0].N)
	}
}

func TestNoAllocationPerPacketOfAStream(t *testing.T) {
	ts := newTestStream(t, constant())
	ts.send(udp4(srcHost, dstHost, 1, 1, 1000))
	ts.run(ts.now + 3*testTick)
	ts.arrive(ts.sent(0)...)
	ts.quiet()
	var last esp.Datagram
	store := make([]byte, 2048)
	ts.fakes[ts.out.sock()].route = func(d *esp.Datagram) {
		last = esp.Datagram{Buf: store, N: copy(store, d.Buf[:d.N]), Remote: netip.MustParseAddrPort("192.0.2.1:4500")}
	}
	pkt := udp4(srcHost, dstHost, 1, 1, 900)
	in := ts.testPath.in[ts.out.sock()]
	if n := testing.AllocsPerRun(200, func() {
		ts.put(0, pkt)
		ts.testPath.out.batch(1)
		for end := ts.now + testTick; ts.now < end; {
			next := ts.pacer.step(ts.now)
			ts.now = max(ts.now, min(next, end))
		}
		in.batch[0] = esp.Datagram{Buf: in.bufs[0], N: copy(in.bufs[0], last.Buf[:last.N]), Remote: last.Remote}
		in.process(1)
	}); n != 0 {
		t.Errorf("a packet through a stream allocates %v times, want 0", n)
	}
	if got := ts.counts.get(cInPackets); got < 150 {
		t.Errorf("%d packets came out in the measurement", got)
	}
}

// Workers feed a stream, its keys change, payloads come and the pacer sends, all at the same time.
func TestStreamUnderEverythingAtOnce(t *testing.T) {
	ts := newTestStream(t, ike.Hiding{Mode: ike.IPTFSConstant, Rate: 50_000_000})
	start := time.Now()
	ts.datapath.clock = func() time.Duration { return time.Since(start) + time.Second }
	ts.pacer.sleep = time.Sleep
	stop, paced := make(chan struct{}), make(chan struct{})
	go func() { ts.pacer.run(stop); close(paced) }()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for i := range 2000 {
			ts.send(udp4(srcHost, dstHost, uint16(i), 502, 200))
			time.Sleep(10 * time.Microsecond)
		}
	}()
	outs, seen := []*outSA{ts.out}, 0
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		list := ts.sent(seen)
		seen += len(list)
		ts.arrive(list...)
		ts.keys(t)
		if n := len(outs); n > 0 {
			ts.sad.slot(outs[n-1].inbound).delOut()
			ts.l.leaveStream(outs[n-1])
			ts.spd.unbind(outs[n-1])
			outs[n-1].out.Wipe()
		}
		outs = append(outs, ts.out)
	}
	<-fed
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if packets, _ := ts.out.stream.pack.Queued(); packets == 0 {
			break
		}
	}
	time.Sleep(5 * time.Millisecond)
	close(stop)
	<-paced
	ts.arrive(ts.sent(seen)...)
	c := ts.counts
	lost := 2000 - int(c.get(cInPackets)) - int(c.get(cOutStreamFull)) - int(c.get(cOutStreamStopped))
	// What was sealed under keys that were deleted in the same moment is lost, and nothing else.
	if lost < 0 || lost > 20*60 || c.get(cInPackets) < 500 {
		t.Errorf("of 2,000 packets %d came out and %d are not accounted for", c.get(cInPackets), lost)
	}
}

// A rate that the processor cannot keep up with takes half of it, and leaves the rest to others.
func TestPacerLeavesHalfOfAProcessorThatIsTooSlow(t *testing.T) {
	ts := newTestStream(t, constant())
	var slept, worked time.Duration
	ts.pacer.sleep = func(d time.Duration) { ts.now += d; slept += d }
	ts.fakes[ts.out.sock()].route = func(*esp.Datagram) {
		const slow = 2 * testTick
		ts.now += slow
		worked += slow
	}
	ts.run(ts.now + 100*testTick)
	if worked > 60*testTick || worked < 40*testTick || slept < 40*testTick {
		t.Errorf("in 100 ticks the pacer has worked for %v and slept for %v, each tick is %v", worked, slept, testTick)
	}
	if late := ts.counts.get(cOutStreamLate); late < 50 {
		t.Errorf("%d packets count as late", late)
	}
}
