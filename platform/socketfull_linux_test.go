package platform

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

func setBuffer(t testing.TB, s *Socket, option, size int) {
	t.Helper()
	if err := control(s.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size) }); err != nil {
		t.Fatal(err)
	}
}

// Packets for a neighbour that does not answer fill the send buffer.
func TestRawESPFullSendBufferWaitsAndThenDrops(t *testing.T) {
	for _, c := range []struct {
		v6              bool
		nobody, another string
	}{{false, "192.0.2.77", "192.0.2.2"}, {true, "2001:db8::77", "2001:db8::2"}} {
		t.Run(c.nobody, func(t *testing.T) {
			t.Parallel()
			a, b := twoHosts(t)
			s, sb := listenESP(t, a, c.v6), listenESP(t, b, c.v6)
			setBuffer(t, s, unix.SO_SNDBUF, 4608)
			packets := func(to string, first, n int) []esp.Datagram {
				var d []esp.Datagram
				for i := range n {
					d = append(d, message("", netip.AddrPortFrom(netip.MustParseAddr(to), 0), 0, espPacket(1, first+i, 1300)))
				}
				return d
			}
			start := time.Now()
			n, err := s.WriteBatch(packets(c.nobody, 0, 60))
			if n == 60 || !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "send buffer is full") {
				t.Fatalf("WriteBatch = %d, %v, want the send buffer to be full", n, err)
			}
			if d := time.Since(start); d < sendPatience || d > sendPatience+2*time.Second {
				t.Errorf("it waited %v, want %v", d, sendPatience)
			}
			// The kernel gives up after three seconds, and then there is room again.
			s.patience, s.clogged = 20*time.Second, false
			d := packets(c.another, 100, 30)
			mustWrite(t, s, d...)
			for i, g := range collect(t, sb, len(d), 2000, 8) {
				if string(g.Buf[:g.N]) != string(d[i].Buf) {
					t.Fatalf("packet %d is not the one that was sent: order or content is lost", i)
				}
			}
		})
	}
}

// What does not fit the receive buffer is lost; what does is whole and in order, and the
// socket goes on.
func TestSocketsOutliveAFullReceiveBuffer(t *testing.T) {
	ns := newNS(t)
	for name, c := range map[string]struct {
		s    *Socket
		addr string
	}{
		"UDP":      {listenUDP(t, ns, any4), "127.0.0.1"},
		"UDP IPv6": {listenUDP(t, ns, any6), "::1"},
		"ESP":      {listenESP(t, ns, false), "127.0.0.1"},
		"ESP IPv6": {listenESP(t, ns, true), "::1"},
	} {
		setBuffer(t, c.s, unix.SO_RCVBUF, 64<<10)
		from := c.s
		if !c.s.raw {
			from = listenUDP(t, ns, map[bool]netip.AddrPort{false: any4, true: any6}[c.s.v6])
		}
		to := netip.AddrPortFrom(netip.MustParseAddr(c.addr), c.s.LocalPort())
		const all = 500
		var d []esp.Datagram
		for i := range all {
			d = append(d, message("", to, 0, espPacket(uint32(i+1), i, 1000)))
		}
		mustWrite(t, from, d...)
		got, last := 0, uint32(0)
		for {
			c.s.file.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			b := batch(16, 2000)
			n, err := c.s.ReadBatch(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, g := range b[:n] {
				w := binary.BigEndian.Uint32(g.Buf)
				if w <= last || w > all || string(g.Buf[:g.N]) != string(d[w-1].Buf) {
					t.Fatalf("%s: behind %d came %d of %d octets: order or content is lost", name, last, w, g.N)
				}
				last = w
				got++
			}
		}
		c.s.file.SetReadDeadline(time.Time{})
		if got == 0 || got == all {
			t.Errorf("%s: %d of %d datagrams fitted: the buffer was not full, or nothing arrived", name, got, all)
		}
		mustWrite(t, from, d[7])
		if g := receive(t, c.s, 1, 2000)[0]; string(g.Buf[:g.N]) != string(d[7].Buf) {
			t.Errorf("%s: after the flood came %d octets, not what was sent", name, g.N)
		}
	}
}

// A worker that does not keep up must not cost the tunnel its IKE.
func TestUDPGroupFloodOfOneSocketLeavesTheOthersAlone(t *testing.T) {
	ns := newNS(t)
	group, from := listenGroup(t, ns, any4, 2), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), group[0].LocalPort())
	for _, s := range group {
		setBuffer(t, s, unix.SO_RCVBUF, 64<<10)
	}
	var flood []esp.Datagram
	for i := range 500 {
		flood = append(flood, message("", to, 0, espPacket(1, i, 1000)))
	}
	mustWrite(t, from, flood...)
	ike := []esp.Datagram{message("", to, 0, "\x00\x00\x00\x00IKE"), message("", to, 0, espPacket(2, 1, 1000))}
	for i := range ike {
		mustWrite(t, from, ike[i])
	}
	for i, g := range collect(t, group[0], 2, 2000, 1) {
		if string(g.Buf[:g.N]) != string(ike[i].Buf) {
			t.Errorf("the first socket got % x as number %d, want % x", g.Buf[:min(g.N, 8)], i, ike[i].Buf[:7])
		}
	}
}
