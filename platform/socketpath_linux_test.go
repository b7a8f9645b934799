package platform

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A router says that an ESP packet is too big. The kernel, which fragments what the raw
// socket sends, has to take notice, however many such messages have come before.
func TestESPLearnsFromPacketTooBig(t *testing.T) {
	a, b := twoHosts(t)
	s := listenESP(t, a, true)
	from, to := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	mtu := func() (n int) {
		in(t, a, func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark); err != nil {
				return err
			}
			if err = unix.Connect(fd, &unix.SockaddrInet6{Addr: to.As16(), Port: 9}); err != nil {
				return err
			}
			n, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
			return err
		})
		return n
	}
	if n := mtu(); n != 1500 {
		t.Fatalf("before any message the path carries %d octets, want 1500", n)
	}
	var icmp int
	in(t, b, func() (err error) {
		icmp, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	})
	defer unix.Close(icmp)
	for _, want := range []int{1450, 1400, 1280} {
		// Type 2, the MTU, and the packet: an IPv6 header and the start of ESP.
		msg := make([]byte, 8+40+64)
		msg[0] = 2
		binary.BigEndian.PutUint32(msg[4:], uint32(want))
		pkt := msg[8:]
		pkt[0], pkt[6], pkt[7] = 0x60, unix.IPPROTO_ESP, 64
		binary.BigEndian.PutUint16(pkt[4:], 1460)
		src, dst := from.As16(), to.As16()
		copy(pkt[8:], src[:])
		copy(pkt[24:], dst[:])
		pkt[40] = 1
		end := time.Now().Add(5 * time.Second)
		for n := 0; n != want; n = mtu() {
			// More than fit the small buffer: the last is heeded like the first.
			for range 50 {
				if err := unix.Sendto(icmp, msg, 0, &unix.SockaddrInet6{Addr: from.As16()}); err != nil {
					t.Fatalf("send packet too big: %v", err)
				}
			}
			if time.Now().After(end) {
				t.Fatalf("after %q of %d octets the path carries %d: large packets of raw ESP would be lost", "packet too big", want, n)
			}
		}
	}
	// The socket itself is not disturbed by it.
	sb := listenESP(t, b, true)
	mustWrite(t, s, message("", netip.AddrPortFrom(to, 0), 0, text(0, 1400)))
	if got := collect(t, sb, 1, 2048, 1)[0]; got.N != 1400 {
		t.Errorf("a packet of 1400 octets arrived with %d", got.N)
	}
}
