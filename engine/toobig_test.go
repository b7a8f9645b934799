package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/esp"
)

// narrowLoop has an SA along a path of mtu octets, with a child of those keys.
func narrowLoop(t *testing.T, keys string, mtu int) (*testLoop, *outSA) {
	t.Helper()
	tl := newTestLoop(t)
	tl.links.icmp = [2]Socket{newFakeSocket(), newFakeSocket()}
	tl.links.of = func(netip.Addr) (int, error) { return mtu, nil }
	tl.links.cfg = parse(t, fmt.Sprintf(`
[connections.c]
remote_addrs = ["192.0.2.2"]
[connections.c.children.n]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
%s
[secrets.x]
secret = "correct horse battery staple 42"
`, keys))
	p := protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")
	for _, ts := range []*[]esp.Selector{&p.LocalTS, &p.RemoteTS} {
		*ts = append(*ts, sel("2001:db8::/32")...)
		if keys == "#ports" {
			for i := range *ts {
				(*ts)[i].EndPort = 500
			}
		}
	}
	tl.spd.set([]policySpec{p})
	in, out := tl.child(t, 1, false)
	for _, sa := range []*esp.SA{&in.Add.SA, &out.Add.SA} {
		sa.LocalTS, sa.RemoteTS = p.LocalTS, p.RemoteTS
	}
	tl.outputs(in, out)
	sa := tl.sad.findOut(0x1001, 0).out
	if sa == nil {
		t.Fatal("there is no SA")
	}
	return tl, sa
}

// openAll opens what was sent, by an inbound SA with the keys of the outbound one.
func (tl *testLoop) openAll(t *testing.T) (inner [][]byte) {
	t.Helper()
	there := testSA(testSuites[0], esp.In, 0x1001, "192.0.2.2:4500", "192.0.2.1:4500")
	in, err := esp.NewInbound(&there, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tl.fakes[sockNATT4].datagrams() {
		pkt, err := in.OpenPacket(0, &d, 0)
		if err != nil {
			t.Fatal(err)
		}
		inner = append(inner, pkt)
	}
	return inner
}

func withDF(pkt []byte) []byte {
	pkt[6] |= 0x40
	binary.BigEndian.PutUint16(pkt[10:], 0)
	binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
	return pkt
}

// What is longer than the path carries is cut before or after it is sealed, or its sender is told.
func TestPacketsLongerThanTheirPath(t *testing.T) {
	const mtu = 1000
	plain := func() []byte { return udp4(srcHost, dstHost, 7, 9, 1200) }
	v6 := func(n int) func() []byte {
		return func() []byte { return udp6("2001:db8::1", "2001:db8::2", 7, 9, n) }
	}
	df := func() []byte { return withDF(plain()) }
	for _, c := range []struct {
		name, keys string
		pkt        func() []byte
		sent       int  // datagrams
		df         bool // of these
		told       int  // the MTU in the ICMP message
	}{
		{"may be cut", "", plain, 2, false, 0},
		{"may be cut, DF set outside", `df = "set"`, plain, 2, true, 0},
		{"may be cut after", `fragment = "after"`, plain, 1, false, 0},
		{"may be cut, but the SA is for some ports", "#ports", plain, 1, false, 0},
		{"must not be cut", "", df, 0, false, 938},
		{"must not be cut, after", `fragment = "after"`, df, 0, false, 938},
		{"must not be cut, DF set outside", `df = "set"`, df, 0, false, 938},
		{"must not be cut, DF clear outside", `df = "clear"`, df, 1, false, 0},
		{"IPv6", "", v6(1300), 0, false, 1280},
		{"IPv6 of the least size", "", v6(1280), 1, false, 0},
	} {
		tl, sa := narrowLoop(t, c.keys, mtu)
		most := int(sa.path.Load().most)
		if most != 938 {
			t.Fatalf("%s: a path of %d octets has room for packets of %d, want 938: 20 IP, 8 UDP, 8 ESP, 8 IV, 16 ICV and 2 octets of trailer less", c.name, mtu, most)
		}
		pkt := c.pkt()
		tl.testPath.send(bytes.Clone(pkt))
		ds := tl.fakes[sockNATT4].datagrams()
		if len(ds) != c.sent {
			t.Errorf("%s: %d datagrams left, want %d", c.name, len(ds), c.sent)
		}
		var whole []byte
		for i, inner := range tl.openAll(t) {
			if c.sent > 1 && ds[i].N+28 > mtu {
				t.Errorf("%s: a fragment is sealed to %d octets", c.name, ds[i].N+28)
			}
			if ds[i].DF != c.df || ds[i].Path != mtu {
				t.Errorf("%s: it left with DF %v for a path of %d, want %v and %d", c.name, ds[i].DF, ds[i].Path, c.df, mtu)
			}
			head := 20
			if whole == nil {
				head = 0
			}
			whole = append(whole, inner[head:]...)
		}
		if c.sent > 0 {
			if c.sent > 1 { // the header of the first one says that there are more
				copy(whole, pkt[:20])
			}
			if !bytes.Equal(whole, pkt) {
				t.Errorf("%s: what left is not the packet", c.name)
			}
		}
		answers := tl.tun.packets()
		if len(answers) != map[bool]int{true: 1}[c.told > 0] {
			t.Fatalf("%s: the sender got %d messages", c.name, len(answers))
		}
		if c.told == 0 {
			continue
		}
		tl.testPath.want(t, cOutPathMTU, 1)
		tl.testPath.want(t, cOutAnswers, 1)
		head := 20
		if pkt[0]>>4 == 6 {
			head = 40
		}
		if got := int(binary.BigEndian.Uint16(answers[0][head+6:])); got != c.told || !bytes.HasPrefix(pkt, answers[0][head+8:]) {
			t.Errorf("%s: the sender is told %d octets, want %d", c.name, got, c.told)
		}
	}
}

// A flood of packets that are too long is answered at a rate, not one by one.
func TestAnswersToLongPacketsAreLimited(t *testing.T) {
	tl, _ := narrowLoop(t, "", 1000)
	pkt := withDF(udp4(srcHost, dstHost, 7, 9, 1200))
	const n = 3 * answerBurst
	for range n {
		tl.testPath.send(bytes.Clone(pkt))
	}
	tl.testPath.want(t, cOutPathMTU, n)
	tl.testPath.want(t, cOutAnswers, answerBurst)
	tl.testPath.want(t, cOutAnswerRate, n-answerBurst)
	tl.testPath.now += time.Second / answersPerSecond
	tl.testPath.send(bytes.Clone(pkt))
	tl.testPath.want(t, cOutAnswers, answerBurst+1)
}

func TestLongPacketsCostNoAllocation(t *testing.T) {
	for _, keys := range []string{"", `fragment = "after"`} {
		for _, df := range []bool{false, true} {
			tl, _ := narrowLoop(t, keys, 1000)
			tl.quiet()
			pkt := udp4(srcHost, dstHost, 7, 9, 1200)
			if df {
				withDF(pkt)
			}
			if n := testing.AllocsPerRun(100, func() {
				tl.testPath.now += time.Millisecond
				tl.put(0, pkt)
				tl.testPath.out.batch(1)
			}); n != 0 {
				t.Errorf("%s, DF %v: %v allocations for a packet that is too long", keys, df, n)
			}
		}
	}
}

// A packet that waited for its SA is treated as the others are.
func TestLongPacketsThatWaited(t *testing.T) {
	tl, sa := narrowLoop(t, "", 1000)
	tl.spd.unbind(sa)
	tl.testPath.send(udp4(srcHost, dstHost, 7, 9, 1200), withDF(udp4(srcHost, dstHost, 7, 9, 1200)))
	tl.testPath.want(t, cOutQueued, 2)
	tl.use(sa)
	if n := len(tl.fakes[sockNATT4].datagrams()); n != 2 || tl.tun.count() != 1 {
		t.Errorf("%d datagrams left and %d senders were told, want 2 and 1", n, tl.tun.count())
	}
}

func TestOuterHeadersAsTheChildAsks(t *testing.T) {
	const class = 46<<2 | esp.ECT0
	for _, c := range []struct {
		keys  string
		df    bool // of the inner packet
		want  string
		plain bool
	}{
		{"", false, fmt.Sprintf("%#x 0 false", class), true},
		{"", true, fmt.Sprintf("%#x 0 true", class), true},
		{`df = "set"`, false, fmt.Sprintf("%#x 0 true", class), false},
		{`copy_df = false`, true, fmt.Sprintf("%#x 0 false", class), false},
		{`copy_ecn = false`, false, fmt.Sprintf("%#x 0 false", 46<<2), false},
		{`copy_dscp = "no"`, false, fmt.Sprintf("%#x 0 false", esp.ECT0), false},
		{`copy_dscp = "in"`, false, fmt.Sprintf("%#x 0 false", esp.ECT0), false},
		{`copy_dscp = "yes"`, false, fmt.Sprintf("%#x 0 false", class), true},
		{`dscp = 10`, false, fmt.Sprintf("%#x 0 false", 10<<2|esp.ECT0), false},
		{`dscp_map = ["46:34"]`, false, fmt.Sprintf("%#x 0 false", 34<<2|esp.ECT0), false},
		{`hop_limit = 9`, true, fmt.Sprintf("%#x 9 true", class), false},
		{`mss = 1000`, true, fmt.Sprintf("%#x 0 true", class), true},
	} {
		tl, sa := narrowLoop(t, c.keys, 1500)
		pkt := classed(false, class)
		if c.df {
			withDF(pkt)
		}
		tl.testPath.send(bytes.Clone(pkt))
		d := tl.fakes[sockNATT4].datagrams()[0]
		if got := fmt.Sprintf("%#x %d %v", d.TOS, d.TTL, d.DF); got != c.want {
			t.Errorf("%s: traffic class, hop limit and DF outside are %s, want %s", c.keys, got, c.want)
		}
		if sa.path.Load().odd == c.plain {
			t.Errorf("%s: the ordinary case is taken: %v, want %v", c.keys, !sa.path.Load().odd, c.plain)
		}
		if inner := tl.openAll(t)[0]; !bytes.Equal(inner, pkt) {
			t.Errorf("%s: the inner packet was changed, its hop limit is %d", c.keys, inner[8])
		}
	}
}

// Without a socket for ICMP nobody says that a packet with DF was lost.
func TestPacketsLeaveWithoutDFWhereNobodyListens(t *testing.T) {
	for _, c := range []struct {
		keys string
		df   bool
	}{{"", false}, {`df = "set"`, true}} {
		tl, sa := narrowLoop(t, c.keys, 1000)
		tl.links.icmp[0] = nil
		tl.fitAll()
		tl.testPath.send(withDF(udp4(srcHost, dstHost, 7, 9, 1200)))
		if d := tl.fakes[sockNATT4].datagrams(); len(d) != 1 || d[0].DF != c.df || d[0].Path != 0 {
			t.Errorf("%s: there left %v, want a packet with DF %v for a path that is not known", c.keys, d, c.df)
		}
		if bits := sa.path.Load().bits; bits&mssBits == 0 {
			t.Errorf("%s: TCP is not clamped", c.keys)
		}
	}
}

// shown is what a router may quote of the SA of narrowLoop.
func shown(mtu int) esp.TooBig {
	return esp.TooBig{MTU: mtu, Len: 1500, Local: netip.MustParseAddrPort("192.0.2.1:4500"), Remote: netip.MustParseAddrPort("192.0.2.2:4500"), SPI: 0x1001}
}

func TestPathsFollowWhatShowsAPacketOfOurs(t *testing.T) {
	tl, sa := narrowLoop(t, "", 1500)
	var set []int
	tl.links.set = func(device string, mtu int) error {
		if device != "fake0" {
			t.Errorf("the MTU of %s was set", device)
		}
		set = append(set, mtu)
		return nil
	}
	tl.links.now = 1406
	tl.links.configure(tl.links.cfg, 1406)
	forged := func(what string, change func(m *esp.TooBig)) {
		t.Helper()
		m := shown(1200)
		change(&m)
		before := tl.counts.get(cTooBigForged)
		tl.tooBig(m)
		if sa.path.Load().mtu != 1500 || tl.counts.get(cTooBigForged) != before+1 {
			t.Errorf("a message about a packet with %s is believed", what)
		}
	}
	forged("another SPI", func(m *esp.TooBig) { m.SPI++ })
	forged("another source", func(m *esp.TooBig) { m.Local = netip.MustParseAddrPort("192.0.2.3:4500") })
	forged("another destination", func(m *esp.TooBig) { m.Remote = netip.MustParseAddrPort("192.0.2.3:4500") })
	forged("another port", func(m *esp.TooBig) { m.Remote = netip.MustParseAddrPort("192.0.2.2:4501") })
	forged("another port of ours", func(m *esp.TooBig) { m.Local = netip.MustParseAddrPort("192.0.2.1:4501") })
	forged("no ports", func(m *esp.TooBig) {
		m.Local, m.Remote = netip.MustParseAddrPort("192.0.2.1:0"), netip.MustParseAddrPort("192.0.2.2:0")
	})
	forged("another protocol", func(m *esp.TooBig) { m.Proto = esp.AH })
	if len(set) != 0 {
		t.Errorf("forged messages have changed the MTU of the device: %v", set)
	}

	for _, c := range []struct {
		name       string
		mtu, path  int
		taken      bool
		len, inner int
	}{
		{"news", 1400, 1400, true, 1500, 1338},
		{"the same again", 1400, 1400, false, 1500, 1338},
		{"more than is known", 1450, 1400, false, 1500, 1338},
		{"an old router, which does not tell", 0, 1006, true, 1400, 942},
		{"less than any path has", 100, 576, true, 1500, 514},
		{"still less", 68, 576, false, 1500, 514},
	} {
		before := tl.counts.get(cTooBig)
		m := shown(c.mtu)
		m.Len = c.len
		tl.tooBig(m)
		p := sa.path.Load()
		if int(p.mtu) != c.path || (tl.counts.get(cTooBig) != before) != c.taken || int(p.most) != c.inner {
			t.Errorf("%s: the path has %d octets and %d inside, want %d and %d", c.name, p.mtu, p.most, c.path, c.inner)
		}
	}
	if fmt.Sprint(set) != "[1338 1280]" {
		t.Errorf("the MTU of the device was set to %v, want 1338 and then what IPv6 needs", set)
	}
	if bits := sa.path.Load().bits; bits&mssBits != 514-40 || headerBits(tl.sad.lookup(sa.inbound).headers.Load())&mssBits != 514-40 {
		t.Errorf("the MSS is clamped to %d, want 474 in both directions", bits&mssBits)
	}
	// At the least size DF would only lose packets.
	tl.testPath.send(withDF(udp4(srcHost, dstHost, 7, 9, 100)))
	if d := tl.fakes[sockNATT4].datagrams(); d[0].DF {
		t.Error("a packet left with DF along a path of the least size")
	}

	// A new SA along the path knows it, and so does the path when it has moved and come back.
	in, out := tl.child(t, 2, false)
	tl.outputs(in, out)
	if p := tl.sad.findOut(0x1002, 0).out.path.Load(); p.mtu != 576 || p != sa.path.Load() {
		t.Errorf("a new SA along the path takes %d octets, want 576, and the same memory as the first", p.mtu)
	}
	tl.testPath.now += learnedFor - time.Second
	tl.ageLinks(tl.testPath.now)
	if p := sa.path.Load(); p.mtu != 576 {
		t.Errorf("what was learned is forgotten too early: %d", p.mtu)
	}
	tl.testPath.now += time.Second
	tl.ageLinks(tl.testPath.now)
	if p := sa.path.Load(); p.mtu != 1500 || len(tl.links.learned) != 0 {
		t.Errorf("after %v the path has %d octets, want 1500", learnedFor, p.mtu)
	}
	if set[len(set)-1] != 1406 {
		t.Errorf("the MTU of the device was set to %v, want 1406 at the end", set)
	}
	if !strings.Contains(strings.Join(tl.text.all(), "\n"), "the path to the peer carries smaller packets than before") {
		t.Error("nobody is told")
	}
}

// The device keeps its MTU as long as one SA carries it, and follows a configuration at once.
func TestDeviceMTUFollowsTheWidestSA(t *testing.T) {
	tl, sa := narrowLoop(t, "", 1300)
	var set []int
	tl.links.set = func(_ string, mtu int) error { set = append(set, mtu); return nil }
	tl.links.now = 1406
	tl.links.configure(tl.links.cfg, 1406)
	in, out := tl.child(t, 2, false)
	tl.links.of = func(a netip.Addr) (int, error) {
		if a == netip.MustParseAddr("192.0.2.2") {
			return 1300, nil
		}
		return 1500, nil
	}
	out.Add.Remote = netip.MustParseAddrPort("192.0.2.77:4500")
	tl.outputs(in, out)
	tl.fitAll()
	if len(set) != 0 {
		t.Errorf("the MTU was set to %v although one SA carries 1406", set)
	}
	tl.delSA(0x1002, 0, esp.Out)
	tl.ageLinks(tl.testPath.now)
	tl.fitAll()
	if fmt.Sprint(set) != "[1280]" || int(sa.path.Load().most) != 1238 {
		t.Errorf("the MTU was set to %v, want 1280 for an SA of %d", set, sa.path.Load().most)
	}
	fixed := *tl.links.cfg
	fixed.Daemon.MTU = 1380
	tl.links.configure(&fixed, 1380)
	tl.fitAll()
	if set[len(set)-1] != 1380 {
		t.Errorf("what is configured is not set: %v", set)
	}
	// What cannot be set is tried again.
	tl.links.set = func(string, int) error { return errors.New("no") }
	tl.links.configure(tl.links.cfg, 1300)
	tl.fitAll()
	if tl.links.now != 1380 {
		t.Error("what could not be set counts as set")
	}
}

func TestICMPReaderCountsWhatItDoesNotTell(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	told, busy := 0, false
	r := &tooBigReader{d: tp.datapath, tell: func(m esp.TooBig) bool {
		if !busy {
			told++
		}
		return !busy
	}}
	quoted := udp4("192.0.2.1", "192.0.2.2", 4500, 4500, 60)
	msg := append([]byte{3, 4, 0, 0, 0, 0, 5, 20}, quoted...)
	binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	r.message(msg)
	tp.want(t, cTooBigForged, 0)
	if told != 1 {
		t.Fatalf("%d messages were told, want 1", told)
	}
	wrong := bytes.Clone(msg)
	wrong[2]++
	r.message(wrong)
	r.message(msg[:20])
	tp.want(t, cTooBigForged, 2)
	other := bytes.Clone(msg)
	other[1] = 1
	r.message(other) // not about lengths
	for range 3 * tooBigBurst {
		r.message(msg)
	}
	if told != tooBigBurst {
		t.Errorf("%d messages were told at once, want %d", told, tooBigBurst)
	}
	tp.want(t, cTooBigRate, 3*tooBigBurst+1-tooBigBurst)
	tp.now += time.Second
	busy = true
	r.message(msg)
	tp.want(t, cTooBigRate, 2*tooBigBurst+2)
	if n := testing.AllocsPerRun(50, func() { r.message(msg) }); n != 0 {
		t.Errorf("a message costs %v allocations", n)
	}
}

// TCP connections in both directions announce what fits, IPv4 and IPv6.
func TestMSSIsClampedInBothDirections(t *testing.T) {
	syn := func(src, dst string) []byte {
		pkt := udp4(src, dst, 40000, 502, 44)
		pkt[9] = esp.ProtoTCP
		binary.BigEndian.PutUint16(pkt[10:], 0)
		binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
		clear(pkt[24:])
		pkt[32], pkt[33] = 6<<4, 2
		copy(pkt[40:], []byte{2, 4, 0x23, 0x28})
		return pkt
	}
	for _, c := range []struct {
		keys string
		want uint16
	}{{"", 938 - 40}, {"mss = 700", 700}, {"mss = 0", 9000}} {
		tl, sa := narrowLoop(t, c.keys, 1000)
		tl.testPath.send(syn(srcHost, dstHost))
		if got := binary.BigEndian.Uint16(tl.openAll(t)[0][42:]); got != c.want {
			t.Errorf("%s: out goes an MSS of %d, want %d", c.keys, got, c.want)
		}
		peer := newEarlyPeer(t, sa.inbound)
		tl.receive(sockNATT4, peer.sealPacket(syn(dstHost, srcHost)))
		if got := tl.tun.packets(); len(got) != 1 || binary.BigEndian.Uint16(got[0][42:]) != c.want {
			t.Errorf("%s: what came in is %x, want an MSS of %d", c.keys, got, c.want)
		}
		if clamped := tl.counts.get(cMSSClamped); (clamped == 2) != (c.want < 9000) {
			t.Errorf("%s: %d SYNs were clamped", c.keys, clamped)
		}
	}
	h := config.DefaultHeaders()
	tp := newTestPath(t, board.Tiny)
	pkt := udp6("2001:db8::1", "2001:db8::2", 1, 2, 64)
	pkt[6] = esp.ProtoTCP
	pkt[52], pkt[53] = 6<<4, 2
	copy(pkt[60:], []byte{2, 4, 5, 0xb4})
	tp.clamp(pkt, bitsOf(&h, esp.Tunnel, 1200))
	if got := binary.BigEndian.Uint16(pkt[62:]); got != 1140 {
		t.Errorf("over IPv6 the MSS is %d, want 1200 less 60", got)
	}
}

// Whatever SA and path: a packet of the length that is said to fit does, and one octet more does not.
func TestWhatFitsThePathIsExact(t *testing.T) {
	ah := esp.Suite{Integ: esp.IntegHMACSHA256_128}
	for _, suite := range append([]esp.Suite{ah}, testSuites...) {
		for _, encap := range []bool{false, true} {
			for _, remote := range []string{"192.0.2.2:4500", "[2001:db8::2]:4500"} {
				proto := esp.ESP
				if suite == ah {
					if proto = esp.AH; encap {
						continue
					}
				}
				sa := testSA(suite, esp.Out, 0x1000, "192.0.2.1:4500", remote)
				if sa.Proto, sa.Encap = proto, encap; sa.Remote.Addr().Is6() {
					sa.Local = netip.MustParseAddrPort("[2001:db8::1]:4500")
				}
				o, err := esp.NewOutbound(&sa, 1)
				if err != nil {
					t.Fatal(err)
				}
				for mtu := 1280; mtu < 1320; mtu++ {
					most := sa.MaxPacket(mtu)
					for _, n := range []int{most, most + 1} {
						buf := make([]byte, headRoom+n+esp.TailRoom)
						copy(buf[headRoom:], udp4(srcHost, dstHost, 1, 2, n))
						d := esp.Datagram{Local: sa.Local.Addr(), Remote: sa.Remote}
						if !encap {
							d.Remote = netip.AddrPortFrom(sa.Remote.Addr(), 0)
						}
						seq, _ := o.Reserve(1, n)
						if err := o.SealPacket(0, seq, buf, headRoom, n, &d); err != nil {
							t.Fatal(err)
						}
						size := d.N
						if !d.Whole {
							size += map[bool]int{false: 20, true: 40}[sa.Remote.Addr().Is6()] + map[bool]int{true: 8}[encap]
						}
						if (size <= mtu) != (n == most) {
							t.Errorf("%v, UDP %v, to %s: %d octets become %d on a path of %d", suite, encap, remote, n, size, mtu)
						}
					}
				}
			}
		}
	}
}

// What AH has made with its header is patched where AH does not look, and opens all the same.
func TestOuterHeadersOfAH(t *testing.T) {
	h := config.DefaultHeaders()
	h.DF, h.HopLimit, h.ECN, h.DSCP[46] = config.DFSet, 9, false, 34
	for _, remote := range []string{"192.0.2.2:0", "[2001:db8::2]:0"} {
		sa := testSA(esp.Suite{Integ: esp.IntegHMACSHA256_128}, esp.Out, 0x1000, "192.0.2.1:0", remote)
		if sa.Proto = esp.AH; sa.Remote.Addr().Is6() {
			sa.Local = netip.MustParseAddrPort("[2001:db8::1]:0")
		}
		o, err := esp.NewOutbound(&sa, 1)
		if err != nil {
			t.Fatal(err)
		}
		back := sa
		back.Dir, back.Local, back.Remote = esp.In, sa.Remote, sa.Local
		in, err := esp.NewInbound(&back, 1)
		if err != nil {
			t.Fatal(err)
		}
		p := outerPathOf(esp.AH, sa.Local.Addr(), sa.Remote, false)
		p.headers, p.tunnel, p.odd = &h, true, true
		pkt := classed(false, 46<<2|esp.CE)
		buf := make([]byte, headRoom+len(pkt)+esp.TailRoom+esp.OpenRoom)
		copy(buf[headRoom:], pkt)
		to := p.datagram()
		seq, _ := o.Reserve(1, len(pkt))
		if err := o.SealPacket(0, seq, buf, headRoom, len(pkt), &to); err != nil {
			t.Fatal(err)
		}
		p.outerHeader(&to, false)
		head := to.Buf[:to.N]
		v6 := head[0]>>4 == 6
		ttl := head[8]
		if v6 {
			ttl = head[7]
		}
		if esp.TrafficClass(head) != 34<<2 || ttl != 9 || !v6 && (head[6]&0x40 == 0 || checksum(head[:20]) != 0) {
			t.Errorf("to %s: the header is % x, want DSCP 34, no ECN, hop limit 9 and DF", remote, head[:20])
		}
		to.Local, to.Remote = sa.Remote.Addr(), sa.Local
		if inner, err := in.OpenPacket(0, &to, 0); err != nil || !bytes.Equal(inner, pkt) {
			t.Errorf("to %s: it does not open to the packet: %v", remote, err)
		}
	}
}
