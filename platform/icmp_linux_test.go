package platform

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// ipHeaders reads n IPv4 headers of a protocol in a namespace and returns their flags and lengths.
func ipHeaders(t *testing.T, fd, n int) (out []string) {
	t.Helper()
	b := make([]byte, 4096)
	for range n {
		got, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		out = append(out, fmt.Sprintf("%#x %d", b[6]>>5, got))
	}
	return out
}

// What a datagram says of DF is what its header has, in UDP and raw, however they are mixed; and
// what the kernel was told of the path by whomever does not matter to those that have a path of their own.
func TestDatagramsLeaveWithTheirDF(t *testing.T) {
	a, b := twoHosts(t)
	var su *Socket
	in(t, a, func() (err error) {
		su, err = ListenUDP(netip.MustParseAddrPort("0.0.0.0:4500"))
		return err
	})
	defer su.Close()
	for _, c := range []struct {
		name  string
		s     *Socket
		proto int
		to    netip.AddrPort
		head  int
	}{
		{"raw", listenESP(t, a, false), unix.IPPROTO_ESP, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), 0), 20},
		{"UDP", su, unix.IPPROTO_UDP, netip.MustParseAddrPort("192.0.2.2:4500"), 28},
	} {
		var fd int
		in(t, b, func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, c.proto); err != nil {
				return err
			}
			return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
		})
		defer unix.Close(fd)
		var batch []esp.Datagram
		var want []string
		for i, df := range []bool{true, true, false, true, false, false} {
			d := message("", c.to, 0, text(i, 600+8*i))
			d.DF, d.Path = df, 1500
			if i == 5 {
				d.Path = 0 // of IKE
			}
			batch = append(batch, d)
			want = append(want, fmt.Sprintf("%#x %d", map[bool]int{true: 2}[df], c.head+600+8*i))
		}
		mustWrite(t, c.s, batch...)
		if got := ipHeaders(t, fd, len(batch)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: flags and lengths are %v, want %v", c.name, got, want)
		}
		// Longer than the link: with DF that is an error, without the kernel cuts.
		long := message("", c.to, 0, text(7, 2000))
		long.Path, long.DF = 1500, true
		if _, err := c.s.WriteBatch([]esp.Datagram{long}); err == nil {
			t.Errorf("%s: a datagram with DF that is longer than the link was sent", c.name)
		}
		long.DF = false
		mustWrite(t, c.s, long)
		if got := ipHeaders(t, fd, 1); got[0] != fmt.Sprintf("0x0 %d", c.head+2000) {
			t.Errorf("%s: what is longer than the link arrives as %v", c.name, got)
		}
	}
}

// The engine is told what routers say, and nothing else.
func TestICMPSocketReadsTooBig(t *testing.T) {
	a, b := twoHosts(t)
	for _, v6 := range []bool{false, true} {
		var s *Socket
		in(t, a, func() (err error) {
			s, err = ListenICMP(v6)
			return err
		})
		defer s.Close()
		proto, to := unix.IPPROTO_ICMP, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}})
		types := []byte{11, 5, 3}
		if v6 {
			proto, to = unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Addr: netip.MustParseAddr("2001:db8::1").As16()}
			types = []byte{3, 1, 2}
		}
		var fd int
		in(t, b, func() (err error) {
			fd, err = unix.Socket(family2(v6), unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
			return err
		})
		defer unix.Close(fd)
		msg := make([]byte, 48)
		for _, typ := range types {
			msg[0], msg[1] = typ, 0
			if typ == 3 && !v6 {
				msg[1] = 4
			}
			binary.BigEndian.PutUint16(msg[6:], 1300)
			if !v6 {
				msg[2], msg[3] = 0, 0
				native.PutUint16(msg[2:], ^fold(sumBytes(msg, 0)))
			}
			if err := unix.Sendto(fd, msg, 0, to); err != nil {
				t.Fatal(err)
			}
		}
		d := []esp.Datagram{{Buf: make([]byte, 256)}, {Buf: make([]byte, 256)}}
		done := make(chan error, 1)
		var n int
		go func() {
			var err error
			n, err = s.ReadBatch(d)
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("v6 %v: nothing was read", v6)
		}
		last := types[len(types)-1]
		if n != 1 || d[0].N != len(msg) || d[0].Buf[0] != last || !bytes.Equal(d[0].Buf[6:8], []byte{1300 >> 8, 1300 & 255}) {
			t.Errorf("v6 %v: %d messages were read, the first of type %d with %d octets, want the one of type %d", v6, n, d[0].Buf[0], d[0].N, last)
		}
		if !v6 && !esp.ICMPSum(d[0].Buf[:d[0].N]) {
			t.Error("the checksum that the kernel has let pass is wrong")
		}
	}
}

func family2(v6 bool) int { return int(family(v6)) }

// The link counts, whatever the kernel has been told of the path; and the device's MTU can change
// while it is used.
func TestLinkMTUIsThatOfTheLink(t *testing.T) {
	a, _ := twoHosts(t)
	in(t, a, func() error {
		n, err := OpenNetwork()
		if err != nil {
			return err
		}
		defer n.Close()
		for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
			if mtu, err := n.LinkMTU(netip.MustParseAddr(to)); err != nil || mtu != 1500 {
				t.Errorf("the link to %s has %d, %v, want 1500", to, mtu, err)
			}
			if name, err := n.LinkTo(netip.MustParseAddr(to)); err != nil || name != "a0" {
				t.Errorf("the link to %s is %q, %v, want a0", to, name, err)
			}
		}
		if mtu, err := n.LinkMTU(netip.MustParseAddr("198.51.100.1")); err == nil {
			t.Errorf("where no route leads the link has %d", mtu)
		}
		if name, err := n.LinkTo(netip.MustParseAddr("198.51.100.1")); err == nil {
			t.Errorf("where no route leads the link is %s", name)
		}
		tun, err := OpenTUN("mtu0", 1400)
		if err != nil {
			return err
		}
		defer tun.Close()
		if err := n.SetMTU("mtu0", 1280); err != nil {
			return err
		}
		if l, err := n.nl.LinkByName("mtu0"); err != nil || l.MTU != 1280 {
			t.Errorf("the MTU is %d, want 1280: %v", l.MTU, err)
		}
		if err := n.SetMTU("none0", 1280); err == nil {
			t.Error("the MTU of a device that is not there was set")
		}
		return nil
	})
}
