package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/engine/log"
	"postern/ike"
)

// An SA may move to another address of ours, to the other family, into UDP and out of it.
// What was sent before still gets in, through whichever socket it comes.
func TestMoveChangesAddressFamilyAndSocket(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	isa, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	l := &ikeLoop{d: tp.datapath}
	opened := uint64(0)
	for _, c := range []struct {
		local, remote string
		encap         bool
		sock          sockID
	}{
		{"192.0.2.1:4500", "192.0.2.2:4500", true, sockNATT4},
		{"192.0.2.7:4500", "192.0.2.2:4500", false, sockESP4},
		{"[2001:db8::7]:4500", "[2001:db8::2]:4500", false, sockESP6},
		{"[2001:db8::7]:4500", "[2001:db8::2]:30000", true, sockNATT6},
		{"192.0.2.1:4500", "192.0.2.2:4500", true, sockNATT4},
	} {
		p := ike.Path{Local: netip.MustParseAddrPort(c.local), Remote: netip.MustParseAddrPort(c.remote), NATT: true}
		l.moveSA(out.inbound, p, c.encap)
		before := len(tp.fakes[c.sock].datagrams())
		tp.send(udp4(srcHost, dstHost, 1, 1, 60))
		sent := tp.fakes[c.sock].datagrams()[before:]
		if len(sent) != 1 {
			t.Fatalf("on %+v %d packets left through %v, want 1", c, len(sent), c.sock)
		}
		to := p.Remote
		if !c.encap {
			to = netip.AddrPortFrom(to.Addr(), 0)
		}
		if d := sent[0]; d.Local != p.Local.Addr() || d.Remote != to {
			t.Errorf("on %+v the packet went from %v to %v", c, d.Local, d.Remote)
		}
		if isa.is.has(inEncap) != c.encap || *isa.remote.Load() != p.Remote {
			t.Errorf("on %+v the inbound SA expects %v, UDP %v", c, *isa.remote.Load(), isa.is.has(inEncap))
		}
		tp.receive(sockESP4, sent[0])
		opened++
		tp.want(t, cInPackets, opened)
	}
}

func TestMachineIsToldOfChangedAddresses(t *testing.T) {
	tl := newTestLoop(t)
	asked := 0
	list := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	var fail error
	tl.addrs.ask = func() ([]netip.Addr, error) { asked++; return list, fail }
	tl.readdress = func() {}
	told := make(chan int, 16)
	tl.m.script = func(m *scriptedMachine, input string) {
		if strings.HasPrefix(input, fmt.Sprintf("command %d ", ike.CmdAddresses)) {
			got, known := env{tl.ikeLoop}.Addresses()
			if _, _ = (env{tl.ikeLoop}).Addresses(); known && slices.Equal(got, list) {
				told <- asked
			} else {
				told <- -1
			}
		}
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { tl.run(stop); close(done) }()
	tl.addressed <- struct{}{}
	select {
	case n := <-told:
		if n != 1 {
			t.Errorf("the system was asked %d times for its addresses (-1: what it said got lost), want once", n)
		}
	case <-time.After(5 * time.Second):
		t.Error("the machine was not told")
	}
	close(stop)
	<-done
	// A second later they are asked for again, and at once when something has changed.
	tl.testPath.now += addressAge
	fail = errors.New("netlink says no")
	if _, known := (env{tl.ikeLoop}).Addresses(); known || asked != 2 {
		t.Errorf("asked %d times, known %v; want 2, and false after an error", asked, known)
	}
	tl.addrs.stale()
	if fail = nil; true {
		if got, known := (env{tl.ikeLoop}).Addresses(); !known || len(got) != 1 || asked != 3 {
			t.Errorf("after a change: %v, known %v, asked %d times", got, known, asked)
		}
	}
}

func TestMachineIsToldFasterThanTheKernel(t *testing.T) {
	for name, p := range map[string]*addressPacer{"machine": {every: roamInterval}, "kernel": {}} {
		var done []time.Duration
		for now := time.Millisecond; now < 3*time.Second; now += time.Millisecond {
			if now == 5*time.Millisecond || now == 30*time.Millisecond { // the address, then its route
				p.changed(now)
			}
			if p.due(now) {
				done = append(done, now)
			}
		}
		want := []time.Duration{5 * time.Millisecond, 5*time.Millisecond + p.interval(), 5*time.Millisecond + 2*p.interval()}
		if !slices.Equal(done, want) {
			t.Errorf("%s: told at %v, want %v", name, done, want)
		}
	}
}

func TestKeepaliveIntervalIsTheConfiguredOne(t *testing.T) {
	for _, c := range []struct {
		every time.Duration
		want  int // in two minutes of silence
	}{{6 * time.Second, 20}, {20 * time.Second, 6}, {40 * time.Second, 3}, {0, 0}} {
		tl := newTestLoop(t)
		tl.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
		tl.keepAlive = c.every
		tl.m.sas = []ike.SAInfo{{Unique: 1, State: ike.StateEstablished, NATLocal: true,
			Path: ike.Path{Local: netip.MustParseAddrPort("10.0.0.1:4500"), Remote: netip.MustParseAddrPort("192.0.2.2:4500"), NATT: true}}}
		for end := tl.testPath.now + 2*time.Minute; tl.testPath.now < end; {
			tl.testPath.now += tl.tickEvery()
			tl.tick(tl.testPath.now)
		}
		if n := len(tl.fakes[sockNATT4].datagrams()); n != c.want {
			t.Errorf("with keep_alive %v, %d keepalives in two minutes, want %d", c.every, n, c.want)
		}
	}
}

func TestMovesAreLoggedForPeople(t *testing.T) {
	path := ike.Path{Local: netip.MustParseAddrPort("192.0.2.7:4500"), Remote: netip.MustParseAddrPort("198.51.100.1:4500"), NATT: true}
	for _, c := range []struct {
		e     ike.Event
		level log.Level
		words []string
	}{
		{ike.Event{Kind: ike.EvRoamed, Conn: "hq", Path: path}, log.Info, []string{"conn=hq", "moved to another path", "local=192.0.2.7:4500", "peer=198.51.100.1:4500"}},
		{ike.Event{Kind: ike.EvMoved, Conn: "hq", Path: path}, log.Info, []string{"conn=hq", "the peer has moved", "peer=198.51.100.1:4500"}},
		{ike.Event{Kind: ike.EvStranded, Conn: "hq", Path: path, Count: 1}, log.Warn, []string{"conn=hq", "no address, route or link leads to the peer", "look at"}},
		{ike.Event{Kind: ike.EvStranded, Conn: "hq", Path: path}, log.Info, []string{"there is a way to the peer again"}},
	} {
		tl := newTestLoop(t)
		tl.event(&c.e)
		line := strings.Join(tl.text.all(), "")
		if level, _ := eventText(&c.e); level != c.level {
			t.Errorf("level of %q is %v, want %v", line, level, c.level)
		}
		for _, w := range c.words {
			if !strings.Contains(line, w) {
				t.Errorf("%q does not say %q", line, w)
			}
		}
	}
}

// charon tells control clients that the ends of an IKE SA have changed; so do we.
func TestControlClientsAreToldOfMoves(t *testing.T) {
	wire := &fakeWire{}
	a, path := withControl(t, wire.host("192.0.2.1"), fmt.Sprintf(confA, "", "aes128gcm16", "none"))
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	listener, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	events := make(chan string, 100)
	go func() {
		_ = listener.Listen(func(ev string, m *control.Message) error {
			events <- ev + " " + m.String()
			return nil
		}, control.EvIKEUpdate)
	}()
	eventually(t, "the client is registered", func() bool { return a.ctl.Wanted(control.EvIKEUpdate) })
	moved := ike.Path{Local: netip.MustParseAddrPort("192.0.2.7:4500"), Remote: netip.MustParseAddrPort("192.0.2.2:4500"), NATT: true}
	for _, k := range []ike.EventKind{ike.EvRoamed, ike.EvMoved} {
		_ = a.loop.do(func() { a.loop.event(&ike.Event{Kind: k, Conn: "plant", IKE: 7, Path: moved}) })
		select {
		case got := <-events:
			want := `ike-update local-host="192.0.2.7" local-port="4500" remote-host="192.0.2.2" remote-port="4500" plant{uniqueid="7"`
			if !strings.HasPrefix(got, want) {
				t.Errorf("the event is\n%s\nwant\n%s", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("event %d was not told", k)
		}
	}
}
