package platformtest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"postern/esp"
)

// The shapes that the engine declares; importing it here would turn the rooms around.
var (
	_ interface {
		Name() string
		ReadBatch(bufs [][]byte, sizes []int, off int) (int, error)
		WriteBatch(bufs [][]byte, off int) (int, error)
		Close() error
	} = (*TUN)(nil)
	_ interface {
		ReadBatch(d []esp.Datagram) (int, error)
		WriteBatch(d []esp.Datagram) (int, error)
		Close() error
	} = (*Socket)(nil)
	_ interface {
		Apply(device string, policies []esp.Policy) error
		Clear() error
		Source(remote netip.Addr) (netip.Addr, error)
	} = (*Network)(nil)
)

func udp(t *testing.T, h *Host, port uint16) *Socket {
	t.Helper()
	s, err := h.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, s *Socket, to string, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		d := []esp.Datagram{{Buf: []byte(p), N: len(p), Remote: netip.MustParseAddrPort(to), TOS: 7}}
		if n, err := s.WriteBatch(d); n != 1 || err != nil {
			t.Fatalf("WriteBatch = %d, %v", n, err)
		}
	}
}

// drain reads what is there.
func drain(t *testing.T, s *Socket) []string {
	t.Helper()
	var got []string
	for {
		if n, _ := s.in.count(); n == 0 {
			return got
		}
		d := []esp.Datagram{{Buf: make([]byte, 64)}, {Buf: make([]byte, 64)}}
		n, err := s.ReadBatch(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range d[:n] {
			got = append(got, fmt.Sprintf("%s@%v<%v/%d", d.Buf[:d.N], d.Local, d.Remote, d.TOS))
		}
	}
}

func want(t *testing.T, what string, got []string, list ...string) {
	t.Helper()
	if !slices.Equal(got, list) {
		t.Errorf("%s: got %q, want %q", what, got, list)
	}
}

func TestNetDeliversByAddressAndPort(t *testing.T) {
	n := NewNet(1, 1500)
	a, b := n.Host("192.0.2.1", "192.0.2.11"), n.Host("192.0.2.2", "fd00::2")
	sa, sb, other := udp(t, a, 500), udp(t, b, 500), udp(t, b, 4500)
	send(t, sa, "192.0.2.2:500", "ike")
	send(t, sa, "192.0.2.2:4500", "esp")
	send(t, sa, "192.0.2.9:500", "nobody")
	want(t, "port 500", drain(t, sb), "ike@192.0.2.2<192.0.2.1:500/7")
	want(t, "port 4500", drain(t, other), "esp@192.0.2.2<192.0.2.1:500/7")
	if st := n.Stats(); st.Sent != 3 || st.Unheard != 1 {
		t.Errorf("stats %+v, want 3 sent and 1 unheard", st)
	}
	from := esp.Datagram{Buf: []byte("x"), N: 1, Local: netip.MustParseAddr("192.0.2.11"), Remote: netip.MustParseAddrPort("192.0.2.2:500")}
	if _, err := sa.WriteBatch([]esp.Datagram{from}); err != nil {
		t.Fatal(err)
	}
	want(t, "from the second address", drain(t, sb), "x@192.0.2.2<192.0.2.11:500/0")
	from.Local = netip.MustParseAddr("192.0.2.99")
	if _, err := sa.WriteBatch([]esp.Datagram{from}); err == nil {
		t.Error("sent from an address that the host does not have")
	}
	if _, err := b.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 500)); err == nil {
		t.Error("bound a port twice")
	}
	auto1, auto2 := udp(t, a, 0), udp(t, a, 0)
	if auto1.LocalPort() == auto2.LocalPort() || auto1.LocalPort() == 0 {
		t.Errorf("ports %d and %d were chosen, want two different ones", auto1.LocalPort(), auto2.LocalPort())
	}
}

func TestNetCarriesESPBesideUDP(t *testing.T) {
	n := NewNet(1, 1500)
	a, b := n.Host("fd00::1"), n.Host("fd00::2")
	sa, err1 := a.ListenESP(true)
	sb, err2 := b.ListenESP(true)
	v4, err3 := b.ListenESP(false)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	send(t, sa, "[fd00::2]:4500", "sealed")
	want(t, "raw socket", drain(t, sb), "sealed@fd00::2<[fd00::1]:0/7")
	want(t, "raw socket of the other family", drain(t, v4))
}

func TestNetFaultsDependOnTheSeedAlone(t *testing.T) {
	run := func(seed uint64) (got []string, st Stats) {
		n := NewNet(seed, 64)
		n.SetFaults(300, 100, 100)
		a, b := n.Host("192.0.2.1"), n.Host("192.0.2.2")
		sa, sb := udp(t, a, 1), udp(t, b, 1)
		for i := range 1000 {
			send(t, sa, "192.0.2.2:1", fmt.Sprint(i))
			if i%100 == 0 {
				got = append(got, drain(t, sb)...)
			}
		}
		n.Flush()
		return append(got, drain(t, sb)...), n.Stats()
	}
	one, st := run(7)
	again, _ := run(7)
	if !slices.Equal(one, again) {
		t.Error("the same seed gave two different runs")
	}
	if other, _ := run(8); slices.Equal(one, other) {
		t.Error("two seeds gave the same run")
	}
	if st.Dropped < 250 || st.Dropped > 350 || st.Duplicated < 40 || st.Held < 40 || st.Overflown != 0 {
		t.Errorf("%+v of 1000 packets, want about 300 dropped, 70 duplicated, 60 held", st)
	}
	if len(one) != 1000-st.Dropped+st.Duplicated {
		t.Errorf("%d arrived of 1000 with %d dropped and %d doubled", len(one), st.Dropped, st.Duplicated)
	}
}

func TestNetHookDecides(t *testing.T) {
	n := NewNet(1, 64)
	a, b := n.Host("192.0.2.1"), n.Host("192.0.2.2")
	sa, sb := udp(t, a, 1), udp(t, b, 1)
	n.SetHook(func(p *Packet) Verdict {
		switch {
		case strings.HasPrefix(string(p.Payload), "drop"):
			return Drop
		case strings.HasPrefix(string(p.Payload), "two"):
			return Duplicate
		case strings.HasPrefix(string(p.Payload), "late"):
			return Hold
		case strings.HasPrefix(string(p.Payload), "nat"):
			p.From = netip.MustParseAddrPort("203.0.113.1:1024")
			p.Payload[0] = 'N'
		}
		return Pass
	})
	send(t, sa, "192.0.2.2:1", "drop", "two", "late", "next", "nat")
	const from = "@192.0.2.2<192.0.2.1:1/7"
	want(t, "received", drain(t, sb), "two"+from, "two"+from, "next"+from, "late"+from, "Nat@192.0.2.2<203.0.113.1:1024/7")
	n.SetHook(nil)
	send(t, sa, "192.0.2.2:1", "drop")
	want(t, "without the hook", drain(t, sb), "drop"+from)
}

func TestSocketCloseWakesReaderAndFreesPort(t *testing.T) {
	n := NewNet(1, 64)
	h := n.Host("192.0.2.1")
	s := udp(t, h, 500)
	done := make(chan error)
	go func() {
		_, err := s.ReadBatch([]esp.Datagram{{Buf: make([]byte, 64)}})
		done <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadBatch after Close: %v, want os.ErrClosed", err)
	}
	d := esp.Datagram{Buf: []byte("x"), N: 1, Remote: netip.MustParseAddrPort("192.0.2.1:500")}
	if _, err := s.WriteBatch([]esp.Datagram{d}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WriteBatch after Close: %v, want os.ErrClosed", err)
	}
	udp(t, h, 500)
}

func TestTUNCarriesPacketsBothWays(t *testing.T) {
	tun := NewTUN("tun0", 2, 64)
	if !tun.Send([]byte("E1")) || !tun.Send([]byte("E2")) || tun.Send([]byte("E3")) {
		t.Error("a device of depth 2 must take two packets and lose the third")
	}
	bufs, sizes := [][]byte{make([]byte, 32), make([]byte, 32), make([]byte, 32)}, make([]int, 3)
	n, err := tun.ReadBatch(bufs, sizes, 24)
	if n != 2 || err != nil || string(bufs[1][24:24+sizes[1]]) != "E2" {
		t.Errorf("ReadBatch = %d, %v, want the two packets behind the head room", n, err)
	}
	n, err = tun.WriteBatch([][]byte{[]byte("..E4"), []byte("..\x00x"), []byte("..E5")}, 2)
	if n != 1 || err == nil {
		t.Errorf("WriteBatch = %d, %v, want 1 and an error: the second is no IP packet", n, err)
	}
	var b [64]byte
	if n, ok := tun.Receive(b[:]); !ok || string(b[:n]) != "E4" {
		t.Errorf("Receive = %q, %v", b[:n], ok)
	}
	if _, ok := tun.Receive(b[:]); ok {
		t.Error("Receive of nothing")
	}
	if in, out := tun.Lost(); in != 1 || out != 0 {
		t.Errorf("Lost() = %d, %d, want 1, 0", in, out)
	}
	done := make(chan error, 2)
	go func() { _, err := tun.ReadBatch(bufs, sizes, 0); done <- err }()
	go func() { _, err := tun.ReceiveWait(b[:]); done <- err }()
	tun.Close()
	for range 2 {
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v, want os.ErrClosed", err)
		}
	}
	if _, err := tun.WriteBatch([][]byte{[]byte("E6")}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WriteBatch after Close: %v, want os.ErrClosed", err)
	}
}

func TestNetworkRecordsCalls(t *testing.T) {
	n := NewNetwork(NewNet(1, 64).Host("192.0.2.1", "fd00::1"))
	p := []esp.Policy{{Action: esp.Protect, LocalTS: []esp.Selector{esp.SelectorFromPrefix(netip.MustParsePrefix("10.1.0.0/24"))}}}
	if err := n.Apply("tun0", p); err != nil {
		t.Fatal(err)
	}
	p[0].LocalTS[0].Proto = 6
	broken := errors.New("broken")
	n.Fail(broken)
	if err := errors.Join(n.Apply("tun1", nil), n.Clear()); !errors.Is(err, broken) {
		t.Errorf("Apply and Clear after Fail: %v", err)
	}
	n.Fail(nil)
	if err := n.Clear(); err != nil {
		t.Fatal(err)
	}
	calls, clears := n.Applied()
	if len(calls) != 1 || clears != 1 || calls[0].Device != "tun0" || calls[0].Policies[0].LocalTS[0].Proto != 0 {
		t.Errorf("recorded %+v and %d clears, want the one call as it was made and one clear", calls, clears)
	}
	ip := netip.MustParseAddr
	if src, err := n.Source(ip("203.0.113.1")); err != nil || src != ip("192.0.2.1") {
		t.Errorf("Source = %v, %v, want the host's address", src, err)
	}
	n.SetSource(ip("203.0.113.1"), ip("192.0.2.9"))
	if src, _ := n.Source(ip("203.0.113.1")); src != ip("192.0.2.9") {
		t.Errorf("Source = %v, want the one that was set", src)
	}
	n.SetSource(ip("203.0.113.1"), netip.Addr{})
	if _, err := n.Source(ip("203.0.113.1")); !errors.Is(err, ErrNoRoute) {
		t.Errorf("Source without a route: %v, want ErrNoRoute", err)
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	n := NewNet(1, 1500)
	n.SetFaults(0, 0, 100)
	n.SetHook(func(p *Packet) Verdict { p.TOS++; return Pass })
	h := n.Host("192.0.2.1")
	s := udp(t, h, 500)
	out := []esp.Datagram{{Buf: make([]byte, 100), N: 100, Remote: netip.MustParseAddrPort("192.0.2.1:500")}}
	in := []esp.Datagram{{Buf: make([]byte, 1500)}, {Buf: make([]byte, 1500)}}
	if a := testing.AllocsPerRun(100, func() {
		if _, err := s.WriteBatch(out); err != nil {
			t.Fatal(err)
		}
		n.Flush()
		if _, err := s.ReadBatch(in); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("the network allocates %v times for a datagram, want 0", a)
	}
	tun := NewTUN("tun0", 4, 1500)
	p, bufs, sizes := make([]byte, 100), [][]byte{make([]byte, 1500)}, make([]int, 1)
	p[0] = 0x45
	ps := [][]byte{p}
	if a := testing.AllocsPerRun(100, func() {
		tun.Send(p)
		if _, err := tun.ReadBatch(bufs, sizes, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := tun.WriteBatch(ps, 0); err != nil {
			t.Fatal(err)
		}
		tun.Receive(bufs[0])
	}); a != 0 {
		t.Errorf("the device allocates %v times for a packet, want 0", a)
	}
}
