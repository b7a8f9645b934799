package engine

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// hidden is a CHILD SA whose traffic is hidden.
func hidden(h ike.Hiding) *ike.ChildSA {
	return &ike.ChildSA{SA: esp.SA{Suite: testSuites[0], Remote: netip.MustParseAddrPort("192.0.2.2:4500")}, Hiding: h}
}

// Packets of every length leave with the length of padded ones, longer ones as they are, and come
// out without the padding: RFC 4303 section 2.7, in tunnel mode over either family.
func TestPaddingHidesLengths(t *testing.T) {
	for _, s := range testSuites {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s inner6=%v", s, v6), func(t *testing.T) {
				tp := newTestPath(t, board.Small)
				local, remote := "10.1.0.0/16", "10.2.0.0/16"
				pack := func(n int) []byte { return udp4(srcHost, dstHost, 1000, 502, n) }
				if v6 {
					local, remote = "2001:db8:1::/48", "2001:db8:2::/48"
					pack = func(n int) []byte { return udp6("2001:db8:1::5", "2001:db8:2::9", 1000, 502, n) }
				}
				tp.spd.set([]policySpec{protect("c", "n", local, remote)})
				_, out := tp.addLoop(t, s, true, "c", "n", local, remote, true)
				out.hide = 1000
				var want [][]byte
				for _, n := range []int{48, 100, 571, 999, 1000} {
					want = append(want, pack(n))
				}
				tp.send(want...)
				sent := tp.fakes[out.sock()].datagrams()
				if len(sent) != len(want) {
					t.Fatalf("%d datagrams left, want %d", len(sent), len(want))
				}
				for i := range sent {
					if sent[i].N != sent[0].N || sent[i].N < 1000 {
						t.Errorf("a packet of %d octets left with %d, that of %d with %d", len(want[i]), sent[i].N, len(want[0]), sent[0].N)
					}
					sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
				}
				tp.receive(out.sock(), sent...)
				got := tp.tun.packets()
				if len(got) != len(want) {
					t.Fatalf("%d packets came out, want %d", len(got), len(want))
				}
				for i := range got {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("packet %d came out with %d octets, want the %d that went in", i, len(got[i]), len(want[i]))
					}
				}
				tp.send(pack(1001), pack(1200))
				sent = tp.fakes[out.sock()].datagrams()[len(want):]
				if len(sent) != 2 || sent[1].N-sent[0].N < 180 {
					t.Errorf("packets longer than the padding left with %d and %d octets", sent[0].N, sent[1].N)
				}
			})
		}
	}
}

// A length that the buffers do not have is cut down, and the packet passes.
func TestPaddingEndsWithTheBuffer(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	out.hide = 60000
	tp.send(udp4(srcHost, dstHost, 1, 1, 100))
	tp.want(t, cOutPackets, 1)
	if n := tp.fakes[out.sock()].datagrams()[0].N; n < 1800 || n > board.Tiny.BufferSize {
		t.Errorf("the packet left with %d octets, want about as many as a buffer has", n)
	}
}

func TestPaddingLength(t *testing.T) {
	l := &ikeLoop{mtu: 1400}
	c := hidden(ike.Hiding{})
	for _, x := range []struct {
		n    int
		mode esp.Mode
		p    esp.Protocol
		want uint16
	}{
		{0, esp.Tunnel, esp.ESP, 0}, {1000, esp.Tunnel, esp.ESP, 1000}, {ike.PadMTU, esp.Tunnel, esp.ESP, 1400},
		{9000, esp.Tunnel, esp.ESP, 1400}, {1000, esp.Transport, esp.ESP, 0}, {1000, esp.BEET, esp.ESP, 0}, {1000, esp.Tunnel, esp.AH, 0},
	} {
		c.Hiding.Padding, c.Mode, c.Proto = x.n, x.mode, x.p
		if got := l.padding(c); got != x.want {
			t.Errorf("padding %d in mode %s of %s is %d octets, want %d", x.n, x.mode, x.p, got, x.want)
		}
	}
	l.mtu, c.Mode, c.Proto, c.Hiding.Padding = 1500, esp.Tunnel, esp.ESP, ike.PadMTU
	if got, want := l.padding(c), uint16(c.MaxPacket(pathMTU)); got != want || want >= 1500 {
		t.Errorf("padding to the MTU is %d octets, want %d, which the path takes", got, want)
	}
}

// Dummies leave at times of chance around the mean while the SA is silent, are none of the
// traffic that is counted, and are dropped in silence at the other end.
func TestDummiesLeaveWhileNothingElseDoes(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	l := &ikeLoop{d: tp.datapath, mtu: 1400, out: tp.flusher, dummies: newDummies(tp.made)}
	random := testRandom(3)
	l.dummies.random = func(n int64) int64 {
		var b [8]byte
		random(b[:])
		return int64(uint64(b[0])<<24|uint64(b[1])<<16|uint64(b[2])<<8|uint64(b[3])) * n >> 32
	}
	const mean = 100 * time.Millisecond
	l.dummies.add(hidden(ike.Hiding{Dummies: mean}), out, 1400, tp.now)
	from := tp.now
	var gaps []time.Duration
	for last := tp.now; tp.now < from+100*mean; {
		tp.now = l.dummies.next
		before := tp.counts.get(cOutDummy)
		l.sendDummies(tp.now)
		if tp.counts.get(cOutDummy) != before+1 {
			t.Fatalf("at %v no dummy left", tp.now)
		}
		gaps = append(gaps, tp.now-last)
		last = tp.now
	}
	if n := len(gaps); n < 80 || n > 125 {
		t.Errorf("%d dummies left in 100 times the mean", n)
	}
	sizes := map[int]bool{}
	sent := tp.fakes[out.sock()].datagrams()
	for _, g := range sent {
		sizes[g.N] = true
		g.Remote = netip.MustParseAddrPort("192.0.2.1:4500")
		tp.receive(out.sock(), g)
	}
	if len(sizes) < len(sent)/2 {
		t.Errorf("%d dummies have %d lengths", len(sent), len(sizes))
	}
	tp.want(t, cInDummy, uint64(len(sent)))
	tp.want(t, cInPackets, 0)
	tp.want(t, cOutPackets, 0)
	if _, o, _, last := tp.sad.usage(&tp.turns, out.inbound); o.Bytes != 0 || last != 0 {
		t.Errorf("dummies count as %d octets of traffic, the last at %v: the SA would never be idle", o.Bytes, last)
	}

	// A packet since the last look: no dummy.
	tp.send(udp4(srcHost, dstHost, 1, 1, 100))
	was := tp.counts.get(cOutDummy)
	tp.now = l.dummies.next
	l.sendDummies(tp.now)
	tp.want(t, cOutDummy, was)
	tp.now = l.dummies.next
	l.sendDummies(tp.now)
	tp.want(t, cOutDummy, was+1)
	allServed(t, out)

	// With padding they have the length of all.
	out.hide = 1200
	l.dummies.drop(out)
	if l.dummies.next != 0 {
		t.Error("there is a next dummy, and no SA for it")
	}
	l.dummies.add(hidden(ike.Hiding{Dummies: mean}), out, 1400, tp.now)
	tp.now = l.dummies.next
	l.sendDummies(tp.now)
	tp.send(udp4(srcHost, dstHost, 1, 1, 100))
	sent = tp.fakes[out.sock()].datagrams()
	if n := len(sent); sent[n-1].N != sent[n-2].N {
		t.Errorf("a padded packet has %d octets, a dummy %d", sent[n-1].N, sent[n-2].N)
	}

	// Through an SA that has no keys any more nothing leaves, nor through one on standby.
	out.standby = true
	was = tp.counts.get(cOutDummy)
	for range 3 {
		tp.now = l.dummies.next
		l.sendDummies(tp.now)
	}
	out.standby = false
	out.out.Wipe()
	for range 3 {
		tp.now = l.dummies.next
		l.sendDummies(tp.now)
	}
	tp.want(t, cOutDummy, was)
	allServed(t, out)
}

func TestDummiesAreNotForEverySA(t *testing.T) {
	y := newDummies(nil)
	for _, c := range []*ike.ChildSA{hidden(ike.Hiding{}), {SA: esp.SA{Mode: esp.Transport}, Hiding: ike.Hiding{Dummies: 1}},
		{SA: esp.SA{Proto: esp.AH}, Hiding: ike.Hiding{Dummies: 1}}} {
		if y.add(c, nil, 1400, 1); len(y.list) != 0 {
			t.Errorf("dummies leave through an SA with %+v in mode %s of %s", c.Hiding, c.Mode, c.Proto)
		}
	}
}
