package engine

import (
	"fmt"
	"net/netip"
	"slices"
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
	sent := tp.fakes[out.sock].datagrams()
	if len(sent) != 5 {
		t.Fatalf("%d packets were sealed, the hard limit is 5", len(sent))
	}
	tp.now += limitInterval
	tp.send(pkt)
	told("after limitInterval", hard)

	for i := range sent {
		sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
	}
	tp.receive(out.sock, sent[:3]...)
	tp.receive(out.sock, sent[3:]...)
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
			tp.receive(out.sock, esp.Datagram{Buf: buf[start:end], N: end - start, Remote: sent[0].Remote})
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
