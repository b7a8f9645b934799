package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// scriptedMachine answers every input with the outputs that the test has put there.
type scriptedMachine struct {
	inputs   []string
	next     []ike.Output
	script   func(m *scriptedMachine, input string)
	deadline time.Duration
	sas      []ike.SAInfo
}

func (m *scriptedMachine) input(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	m.inputs = append(m.inputs, s)
	if m.script != nil {
		m.script(m, s)
	}
}

func (m *scriptedMachine) Configure(now ike.Time, cfg ike.Config) error {
	m.input("configure")
	return nil
}
func (m *scriptedMachine) Datagram(now ike.Time, p ike.Path, b []byte) {
	m.input("datagram %s", p.Remote)
}
func (m *scriptedMachine) Command(now ike.Time, c ike.Command) {
	m.input("command %d %s %s %d", c.Kind, c.Conn, c.Child, c.ChildID)
	if c.Tag != 0 {
		m.next = append(m.next, ike.Output{Kind: ike.OutEvent, Event: ike.Event{Kind: ike.EvDone, Tag: c.Tag}})
	}
}
func (m *scriptedMachine) SetTicketKeys(keys []ike.TicketKey) { m.input("keys %d", len(keys)) }

func (m *scriptedMachine) Leases(func(ike.Lease) bool) {}
func (m *scriptedMachine) ResetCounters(string, bool)  {}

func (m *scriptedMachine) Counters(func(string, *ike.Counters)) {}
func (m *scriptedMachine) Pools(func(ike.PoolInfo))             {}
func (m *scriptedMachine) Timeout(now ike.Time)                 { m.input("timeout") }
func (m *scriptedMachine) Done(now ike.Time, r ike.Result)      { m.input("done") }
func (m *scriptedMachine) Resolved(now ike.Time, name string, addrs []netip.Addr, ttl time.Duration, err error) {
	m.input("resolved %s %v %v", name, addrs, err)
}
func (m *scriptedMachine) Fetched(now ike.Time, id uint64, got []pki.Fetched) {
	for i := range got {
		m.input("fetched %d %s %q %v", id, got[i].URL, got[i].Body, got[i].Err)
	}
}
func (m *scriptedMachine) Next() (ike.Output, bool) {
	if len(m.next) == 0 {
		return ike.Output{}, false
	}
	o := m.next[0]
	m.next = m.next[1:]
	return o, true
}
func (m *scriptedMachine) Deadline() (time.Duration, bool) { return m.deadline, m.deadline != 0 }
func (m *scriptedMachine) List(visit func(*ike.SAInfo) bool) {
	for i := range m.sas {
		if !visit(&m.sas[i]) {
			return
		}
	}
}

// testLoop is an IKE loop over a scripted machine, driven by hand.
type testLoop struct {
	*ikeLoop
	*testPath
	m    *scriptedMachine
	host *fakeHost
	text *logLines
}

func newTestLoop(t *testing.T) *testLoop {
	t.Helper()
	return newTestLoopOf(t, 1)
}

// newTestLoopOf has a data path of so many workers.
func newTestLoopOf(t *testing.T, workers int) *testLoop {
	t.Helper()
	tp := newTestPathOf(t, board.Tiny, workers)
	text := &logLines{}
	lg := log.New(text, log.Debug)
	tp.datapath.log = lg
	host := (&fakeWire{}).host("192.0.2.1")
	tl := &testLoop{testPath: tp, m: &scriptedMachine{}, host: host, text: text}
	tl.ikeLoop = newIKELoop(tp.datapath, (*fakeNetwork)(host), lg, func() ike.Time { return ike.Time{Mono: tp.now} })
	tl.ikeLoop.m = tl.m
	tl.device = "fake0"
	tp.datapath.acquire = tl.ikeLoop.acquire
	return tl
}

// outputs has the loop do what a machine says.
func (tl *testLoop) outputs(list ...ike.Output) {
	tl.m.next = append(tl.m.next, list...)
	tl.drain()
}

// child returns both directions of a CHILD SA as the machine hands them out.
func (tl *testLoop) child(t *testing.T, id uint32, standby bool) (in, out ike.Output) {
	t.Helper()
	spi, ok := env{tl.ikeLoop}.AllocSPI(0)
	if !ok {
		t.Fatal("the SAD is full")
	}
	mk := func(dir esp.Direction, s uint32) ike.Output {
		sa := testSA(testSuites[0], dir, s, "192.0.2.1:4500", "192.0.2.2:4500")
		sa.Encap, sa.LocalTS, sa.RemoteTS = true, sel("10.1.0.0/16"), sel("10.2.0.0/16")
		return ike.Output{Kind: ike.OutAddSA, Add: &ike.ChildSA{SA: sa, Inbound: spi, Conn: "c", Child: "n", IKE: 1, ID: id, Standby: standby && dir == esp.Out}}
	}
	return mk(esp.In, spi), mk(esp.Out, 0x1000+id)
}

func TestLoopInstallsBeforeItSends(t *testing.T) {
	tl := newTestLoop(t)
	tl.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in, out := tl.child(t, 1, false)
	spi, installed := in.Add.SPI, false
	tl.fakes[sockNATT4].route = func(d *esp.Datagram) {
		installed = tl.sad.lookup(spi) != nil
		if !bytes.Equal(d.Buf[:d.N], []byte("\x00\x00\x00\x00response")) {
			t.Errorf("sent %q, want the message behind four zero octets", d.Buf[:d.N])
		}
	}
	path := ike.Path{Local: netip.MustParseAddrPort("192.0.2.1:4500"), Remote: netip.MustParseAddrPort("192.0.2.2:4500"), NATT: true}
	tl.outputs(in, out, ike.Output{Kind: ike.OutSend, Path: path, Data: []byte("response")})
	if !installed {
		t.Error("the response left before the inbound SA that it announces was there")
	}
	path.NATT = false
	tl.outputs(ike.Output{Kind: ike.OutSend, Path: path, Data: []byte("plain")})
	if d := tl.fakes[sockIKE4].datagrams(); len(d) != 1 || string(d[0].Buf) != "plain" || d[0].Local != path.Local.Addr() {
		t.Errorf("through the IKE socket left %v, want the bare message from %s", d, path.Local.Addr())
	}
	for _, sa := range []*ike.ChildSA{in.Add, out.Add} {
		if !bytes.Equal(sa.EncrKey, make([]byte, len(sa.EncrKey))) {
			t.Error("the key is still in the machine's value after the cipher has it")
		}
	}
}

func TestStandbySAWaitsForUse(t *testing.T) {
	tl := newTestLoop(t)
	tl.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in1, out1 := tl.child(t, 1, false)
	tl.outputs(in1, out1)
	tl.testPath.send(udp4(srcHost, dstHost, 1, 2, 60))
	in2, out2 := tl.child(t, 2, true)
	tl.outputs(in2, out2)
	spiOf := func() uint32 {
		_, sa := tl.spd.lookup(flowTo(dstHost))
		if sa == nil {
			return 0
		}
		return sa.spi
	}
	if got := spiOf(); got != out1.Add.SPI {
		t.Errorf("packets take %08x before the peer can receive on the new SA, want %08x", got, out1.Add.SPI)
	}
	use := ike.Output{Kind: ike.OutUseSA, SPI: out2.Add.SPI, Inbound: in2.Add.SPI}
	tl.outputs(use, use)
	if got := spiOf(); got != out2.Add.SPI {
		t.Errorf("packets take %08x after UseSA, want %08x", got, out2.Add.SPI)
	}
	del := func(spi, inbound uint32, dir esp.Direction) ike.Output {
		return ike.Output{Kind: ike.OutDelSA, SPI: spi, Inbound: inbound, Dir: dir}
	}
	tl.outputs(del(out1.Add.SPI, in1.Add.SPI, esp.Out))
	if _, out, _, last := tl.sad.usage(&tl.datapath.turns, in1.Add.SPI); out.Packets != 1 || last == 0 {
		t.Errorf("once its outbound SA is deleted the pair has sent %d packets, last at %v; want the 1 that it did", out.Packets, last)
	}
	tl.outputs(del(in1.Add.SPI, in1.Add.SPI, esp.In))
	env{tl.ikeLoop}.FreeSPI(in1.Add.SPI)
	if got := spiOf(); got != out2.Add.SPI || tl.sad.used() != 1 {
		t.Errorf("after the old SA was deleted packets take %08x and %d slots are used", got, tl.sad.used())
	}
	// FreeSPI alone, with its outputs still to come, leaves nothing behind either.
	env{tl.ikeLoop}.FreeSPI(in2.Add.SPI)
	tl.outputs(del(out2.Add.SPI, in2.Add.SPI, esp.Out), del(in2.Add.SPI, in2.Add.SPI, esp.In))
	if spiOf() != 0 || tl.sad.used() != 0 || len(tl.spd.sas) != 0 {
		t.Error("an SA whose SPI was given back is still there")
	}
}

func TestKeepaliveRhythm(t *testing.T) {
	tl := newTestLoop(t)
	tl.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in, out := tl.child(t, 1, false)
	tl.outputs(in, out)
	remote := netip.MustParseAddrPort("192.0.2.2:4500")
	tl.m.sas = []ike.SAInfo{{
		Unique: 1, State: ike.StateEstablished, NATLocal: true,
		Path:     ike.Path{Local: netip.MustParseAddrPort("10.0.0.1:4500"), Remote: remote, NATT: true},
		Children: []ike.ChildInfo{{SPIIn: in.Add.SPI}},
	}}
	sent := func() (n int) {
		for _, d := range tl.fakes[sockNATT4].datagrams() {
			if d.N == 1 && d.Buf[0] == 0xff && d.Remote == remote {
				n++
			}
		}
		return n
	}
	tick := func() { tl.testPath.now += tickInterval; tl.tick(tl.testPath.now) }
	start := tl.testPath.now
	for range 7 {
		tick()
	}
	if n, want := sent(), int((tl.testPath.now-start)/keepaliveInterval); n != want {
		t.Errorf("%d keepalives in %v of silence, want %d", n, tl.testPath.now-start, want)
	}
	// Packets in every interval make keepalives needless.
	before := sent()
	for range 6 {
		tl.testPath.send(udp4(srcHost, dstHost, 1, 2, 60))
		tick()
	}
	if n := sent() - before; n != 0 {
		t.Errorf("%d keepalives beside a packet every %v, want none", n, tickInterval)
	}
	tick()
	if n := sent() - before; n != 1 {
		t.Errorf("%d keepalives once packets stopped, want 1 within %v", n, keepaliveInterval)
	}
	tl.m.sas[0].NATLocal = false
	before = sent()
	for range 4 {
		tick()
	}
	if n := sent() - before; n != 0 {
		t.Errorf("%d keepalives without a NAT in front of us, want none", n)
	}
	tl.m.sas = nil
	tick()
	if len(tl.nat) != 0 {
		t.Error("the loop remembers IKE SAs that are gone")
	}
}

func TestBrokenSAIsReportedAndHarmless(t *testing.T) {
	tl := newTestLoop(t)
	in, out := tl.child(t, 1, false)
	in.Add.EncrKey = in.Add.EncrKey[:3]
	tl.outputs(in)
	out.Add.Inbound++ // not reserved
	tl.outputs(out)
	lines := strings.Join(tl.text.all(), "")
	if strings.Count(lines, "CHILD SA could not be installed") != 2 {
		t.Errorf("two SAs that cannot be installed are not told: %s", lines)
	}
	if tl.sad.lookup(in.Add.SPI) != nil || len(tl.spd.sas) != 0 {
		t.Error("a broken SA is in the tables")
	}
}

func TestEveryEventHasALine(t *testing.T) {
	if n := int(ike.EvNoPPK) + 1; len(eventLines) != n {
		t.Fatalf("%d lines for %d kinds of events", len(eventLines), n)
	}
	for k := range eventLines {
		kind := ike.EventKind(k)
		if _, msg := eventText(&ike.Event{Kind: kind, Text: "sending a message"}); (msg == "") != (kind == ike.EvDone) {
			t.Errorf("event %d has the line %q", k, msg)
		}
	}
	if _, msg := eventText(&ike.Event{Kind: 200}); msg != "" {
		t.Errorf("an unknown event has the line %q", msg)
	}
	for _, c := range []struct {
		e    ike.Event
		want log.Level
	}{
		{ike.Event{Kind: ike.EvIKEDown, Err: ike.ErrTerminated}, log.Info},
		{ike.Event{Kind: ike.EvIKEDown, Err: ike.ErrTimeout}, log.Warn},
		{ike.Event{Kind: ike.EvChildDown, Err: ike.ErrPeerDeleted}, log.Info},
		{ike.Event{Kind: ike.EvRetransmit, Count: 1}, log.Debug},
		{ike.Event{Kind: ike.EvRetransmit, Count: retransmitsToTell}, log.Info},
		{ike.Event{Kind: ike.EvFailed, Delay: time.Second}, log.Warn},
		{ike.Event{Kind: ike.EvFailed}, log.Error},
		{ike.Event{Kind: ike.EvCookies, Count: 1}, log.Warn},
		{ike.Event{Kind: ike.EvCookies}, log.Info},
	} {
		if got, _ := eventText(&c.e); got != c.want {
			t.Errorf("event %+v has level %v, want %v", c.e, got, c.want)
		}
	}
}

func TestEventLinesNameConnectionAndReason(t *testing.T) {
	tl := newTestLoop(t)
	peer := netip.MustParseAddrPort("192.0.2.2:500")
	tl.outputs(ike.Output{Kind: ike.OutEvent, Event: ike.Event{
		Kind: ike.EvFailed, Conn: "plant", Child: "net", IKE: 7, Path: ike.Path{Remote: peer}, Count: 3, Delay: 8 * time.Second, Err: errors.New("no answer")}})
	line := tl.text.all()[0]
	for _, want := range []string{"level=warn", "conn=plant", "child=net", `msg="the tunnel could not be established"`, "ike=7", "peer=192.0.2.2:500", "attempt=3", "next_in=8s", `err="no answer"`} {
		if !strings.Contains(line, want) {
			t.Errorf("the line lacks %s: %s", want, line)
		}
	}
}

func TestLinesThatAnybodyCanCauseAreLimited(t *testing.T) {
	tl := newTestLoop(t)
	for i := range 1000 {
		tl.outputs(ike.Output{Kind: ike.OutEvent, Event: ike.Event{Kind: ike.EvDropped, Err: fmt.Errorf("reason %d", i%100)}})
	}
	if n := len(tl.text.all()); n > eventKeys+1 {
		t.Errorf("1,000 forged messages caused %d lines, want at most %d", n, eventKeys+1)
	}
}

func TestDataPathWishesReachTheMachineAndAreBounded(t *testing.T) {
	tl := newTestLoop(t)
	p := &policy{conn: "c", child: "n"}
	for i := range commandQueue {
		if !tl.acquire(p, flowTo(dstHost)) {
			t.Fatalf("wish %d found no room in a queue of %d", i, commandQueue)
		}
	}
	if tl.acquire(p, flowTo(dstHost)) {
		t.Error("a full queue took another wish: the reader would have to wait")
	}
	stop := make(chan struct{})
	go tl.run(stop)
	eventually(t, "the wishes were taken", func() bool { return len(tl.wishes) == 0 })
	close(stop)
	<-tl.stopped
	want := fmt.Sprintf("command %d c n 0", ike.CmdAcquire)
	if n := len(slices.DeleteFunc(slices.Clone(tl.m.inputs), func(s string) bool { return s != want })); n != commandQueue {
		t.Errorf("the machine got %d wishes, want %d: %v", n, commandQueue, tl.m.inputs)
	}
	if err := tl.do(func() {}); !errors.Is(err, errStopping) {
		t.Errorf("do after the end: %v, want an error and no hanging", err)
	}
}

func TestLoopFiresTheMachinesTimer(t *testing.T) {
	tl := newTestLoop(t)
	begin := time.Now()
	tl.ikeLoop.now = func() ike.Time { return ike.Time{Mono: time.Since(begin) + time.Second} }
	tl.m.deadline = time.Second + 50*time.Millisecond
	fired := make(chan time.Duration, 1)
	tl.m.script = func(m *scriptedMachine, s string) {
		if now := tl.ikeLoop.now().Mono; s == "timeout" && now >= m.deadline && m.deadline != 0 {
			m.deadline = 0
			fired <- now
		}
	}
	stop := make(chan struct{})
	go tl.run(stop)
	select {
	case <-fired:
	case <-time.After(5 * time.Second):
		t.Error("the machine's deadline passed without Timeout")
	}
	close(stop)
	<-tl.stopped
}

func TestSequenceNumbersRunningOutCauseARekey(t *testing.T) {
	tl := newTestLoop(t)
	tl.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in, out := tl.child(t, 5, false)
	tl.outputs(in, out)
	tl.tick(tl.testPath.now)
	if len(tl.m.inputs) != 0 {
		t.Fatalf("a fresh SA caused %v", tl.m.inputs)
	}
	tl.rekeySeq = 3
	for range 3 {
		tl.testPath.send(udp4(srcHost, dstHost, 1, 2, 60))
	}
	tl.tick(tl.testPath.now)
	tl.tick(tl.testPath.now)
	if want := fmt.Sprintf("command %d c  5", ike.CmdRekey); len(tl.m.inputs) != 1 || tl.m.inputs[0] != want {
		t.Errorf("an SA near its last sequence number caused %v, want %q once", tl.m.inputs, want)
	}
}

// That the system has no way to the peer is told to the machine, which may have another
// address to call; other refusals (a full buffer, a firewall) are not.
func TestMachineLearnsThatThereIsNoWay(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{{syscall.ENETUNREACH, true}, {syscall.EHOSTUNREACH, true}, {syscall.EPERM, false}, {syscall.EAGAIN, false}} {
		tl := newTestLoop(t)
		tl.fakes[sockIKE4].err = c.err
		p := ike.Path{Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.MustParseAddrPort("192.0.2.2:500")}
		tl.outputs(ike.Output{Kind: ike.OutSend, Path: p, Data: []byte("x")}, ike.Output{Kind: ike.OutSend, Path: p, Data: []byte("y")})
		told := slices.Contains(tl.m.inputs, fmt.Sprintf("command %d   0", ike.CmdUnreachable))
		if told != c.want {
			t.Errorf("%v: the machine was told %v (%q), want %v", c.err, told, tl.m.inputs, c.want)
		}
	}
}

// Lookups run beside the loop, at most maxLookups at once, and end with it.
func TestLookupsAreBoundedAndEndWithTheLoop(t *testing.T) {
	tl := newTestLoop(t)
	var now, most atomic.Int32
	release := make(chan struct{})
	tl.lookups.resolve = func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		select {
		case <-release:
			return []netip.Addr{netip.MustParseAddr("192.0.2.9")}, 0, nil
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	const names = 3 * maxLookups
	for i := range names {
		tl.outputs(ike.Output{Kind: ike.OutResolve, Name: fmt.Sprintf("n%d.example", i)})
	}
	for now.Load() < maxLookups {
		time.Sleep(time.Millisecond)
	}
	for range names - 1 {
		release <- struct{}{}
		a := <-tl.lookups.answers
		tl.lookups.answered()
		if a.err != nil || len(a.addrs) != 1 {
			t.Fatalf("answer %+v", a)
		}
	}
	if most.Load() != maxLookups {
		t.Errorf("%d lookups at once, want %d", most.Load(), maxLookups)
	}
	tl.lookups.cancel()
	for now.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}
