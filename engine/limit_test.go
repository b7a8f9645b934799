package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// The loop is told of each limit once in a while and not with every packet, and nothing
// passes beyond the hard one.
func TestLimitsAreToldAndHold(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.soft, tp.hard = esp.Usage{Packets: 3}, esp.Usage{Packets: 5}
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	pkt := udp4(srcHost, dstHost, 1000, 502, 100)
	soft, hard := fmt.Sprintf("%08x false", out.inbound), fmt.Sprintf("%08x true", out.inbound)
	told := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(tp.limits, want) {
			t.Errorf("%s: the loop was told %v, want %v", what, tp.limits, want)
		}
		tp.limits = nil
	}
	tp.send(pkt, pkt)
	told("two packets out")
	tp.busy = true
	tp.send(pkt)
	told("a busy loop")
	tp.busy = false
	tp.send(pkt)
	told("the packet after the one that found the loop busy", soft)
	tp.send(pkt)
	told("the next", []string(nil)...)
	tp.send(pkt)
	told("the first beyond the hard limit", hard)
	tp.want(t, cOutLimit, 1)
	sent := tp.fakes[out.sock()].datagrams()
	if len(sent) != 5 {
		t.Fatalf("%d packets were sealed, the hard limit is 5", len(sent))
	}
	tp.now += limitInterval
	tp.send(pkt)
	told("after limitInterval", hard)

	for i := range sent {
		sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
	}
	tp.receive(out.sock(), sent[:3]...)
	tp.receive(out.sock(), sent[3:]...)
	told("five packets in", soft)
	if n := tp.counts.get(cInPackets); n != 5 {
		t.Errorf("%d packets were opened, want 5", n)
	}
	// The peer goes on beyond it: another sending end with the same keys and no limit.
	x := testSA(testSuites[0], esp.Out, in.spi, "192.0.2.2:4500", "192.0.2.1:4500")
	free, err := esp.NewOutbound(&x, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		buf := make([]byte, esp.HeadRoom+len(pkt)+esp.TailRoom)
		copy(buf[esp.HeadRoom:], pkt)
		start, end, err := free.Seal(0, buf, esp.HeadRoom, len(pkt), esp.ProtoIPv4)
		if err != nil {
			t.Fatal(err)
		}
		if i == 5 {
			tp.receive(out.sock(), esp.Datagram{Buf: buf[start:end], N: end - start, Remote: sent[0].Remote})
		}
	}
	told("the sixth packet in", hard)
	tp.want(t, cInLimit, 1)
}

func TestLoopHandsLimitsToTheMachine(t *testing.T) {
	tl := newTestLoop(t)
	if !tl.limited(0x1234, true) {
		t.Fatal("an idle loop takes no word of a limit")
	}
	if c := <-tl.wishes; c.Kind != ike.CmdLimit || c.SPI != 0x1234 || !c.Hard {
		t.Errorf("the machine would get %+v", c)
	}
}

// A batch at the limit of octets: what fits goes, packets too long for what is left do not, and
// no number is lost to those.
func TestLimitOfOctetsInTheMiddleOfABatch(t *testing.T) {
	tp, left := newWorkers(t, 2)
	tp.soft, tp.hard = esp.Usage{Bytes: 300}, esp.Usage{Bytes: 1000, Packets: 6}
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	long, short := udp4(srcHost, dstHost, 1, 1, 400), udp4(srcHost, dstHost, 1, 1, 100)
	o := tp.datapath.out[0]
	o.batch(o.fill(long, long, long, short, long)) // 900
	tp.want(t, cOutPackets, 3)
	tp.want(t, cOutLimit, 2)
	o = tp.datapath.out[1]
	o.batch(o.fill(long))
	o.batch(o.fill(short, short))
	tp.want(t, cOutPackets, 4)
	tp.want(t, cOutLimit, 4)
	if n := left.check(t); n != 4 || left.seqs[out.spi][3] != 4 {
		t.Errorf("packets left with the numbers %v, want 1 to 4", left.seqs[out.spi])
	}
	if u, _ := tp.turns.usage(out); u != (esp.Usage{Packets: 4, Bytes: 1000}) {
		t.Errorf("%+v were counted, want 4 packets of 1,000 octets", u)
	}
	if soft := fmt.Sprintf("%08x false", out.inbound); !slices.Contains(tp.limits, soft) {
		t.Errorf("the loop was told %v, want %q among it", tp.limits, soft)
	}
	allServed(t, out)
}

// Workers that send through one SA at once stay within both limits, to the packet.
func TestLimitsHoldForSeveralWorkersAtOnce(t *testing.T) {
	for _, hard := range []esp.Usage{{Packets: 501}, {Bytes: 50_199}, {Packets: 501, Bytes: 60_000}} {
		const workers = 4
		tp, left := newWorkers(t, workers)
		tp.busy, tp.hard = true, hard
		tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
		_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
		pkt := udp4(srcHost, dstHost, 1, 1, 100)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				o := tp.datapath.out[w]
				for range 100 {
					o.batch(o.fill(pkt, pkt, pkt))
				}
			})
		}
		wg.Wait()
		if n := left.check(t); n != 501 || out.out.Seq() != 501 {
			t.Errorf("limit %+v: %d packets of 100 octets left, up to number %d; want 501", hard, n, out.out.Seq())
		}
		tp.want(t, cOutLimit, workers*300-501)
		allServed(t, out)
	}
}
