package platform

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"postern/esp"
)

var (
	any4 = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	any6 = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
)

func listen(t testing.TB, ns *Namespace, open func() (*Socket, error)) *Socket {
	t.Helper()
	var s *Socket
	in(t, ns, func() (err error) { s, err = open(); return err })
	t.Cleanup(func() { s.Close() })
	return s
}

func listenUDP(t testing.TB, ns *Namespace, addr netip.AddrPort) *Socket {
	t.Helper()
	return listen(t, ns, func() (*Socket, error) { return ListenUDP(addr) })
}

func listenESP(t testing.TB, ns *Namespace, v6 bool) *Socket {
	t.Helper()
	return listen(t, ns, func() (*Socket, error) { return ListenESP(v6) })
}

func batch(n, size int) []esp.Datagram {
	d := make([]esp.Datagram, n)
	for i := range d {
		d[i].Buf = make([]byte, size)
	}
	return d
}

func message(local string, remote netip.AddrPort, tos uint8, b string) esp.Datagram {
	d := esp.Datagram{Buf: []byte(b), N: len(b), Remote: remote, TOS: tos}
	if local != "" {
		d.Local = netip.MustParseAddr(local)
	}
	return d
}

// receive reads exactly n datagrams, however many calls that takes.
func receive(t testing.TB, s *Socket, n, size int) []esp.Datagram {
	t.Helper()
	var got []esp.Datagram
	within(t, 5*time.Second, "receive", func() {
		for len(got) < n {
			d := batch(n-len(got), size)
			k, err := s.ReadBatch(d)
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, d[:k]...)
		}
	})
	if len(got) != n {
		t.FailNow()
	}
	return got
}

func mustWrite(t testing.TB, s *Socket, d ...esp.Datagram) {
	t.Helper()
	if n, err := s.WriteBatch(d); n != len(d) || err != nil {
		t.Fatalf("WriteBatch = %d, %v, want %d", n, err, len(d))
	}
}

// twoHosts are a and b with a cable between, two addresses of each family on both ends.
func twoHosts(t testing.TB) (a, b *Namespace) {
	a, b = newNS(t), newNS(t)
	cable(t, a, "a0", b, "b0")
	addAddr(t, a, "a0", "192.0.2.1/24", "192.0.2.11/24", "2001:db8::1/64", "2001:db8::11/64")
	addAddr(t, b, "b0", "192.0.2.2/24", "192.0.2.12/24", "2001:db8::2/64", "2001:db8::12/64")
	return a, b
}

// Both ends of each pair have a second address that the kernel would not choose.
func TestUDPRepliesLeaveFromTheAddressThatWasAsked(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range []struct {
		name         string
		any          netip.AddrPort
		asker, asked string
	}{
		{"IPv4", any4, "192.0.2.11", "192.0.2.12"},
		{"IPv6", any6, "2001:db8::11", "2001:db8::12"},
	} {
		for _, many := range []bool{true, false} {
			t.Run(c.name+map[bool]string{true: " many", false: " one by one"}[many], func(t *testing.T) {
				sa, sb := listenUDP(t, a, c.any), listenUDP(t, b, c.any)
				sa.oneByOne.Store(!many)
				sb.oneByOne.Store(!many)
				to := netip.AddrPortFrom(netip.MustParseAddr(c.asked), sb.LocalPort())
				from := netip.AddrPortFrom(netip.MustParseAddr(c.asker), sa.LocalPort())
				mustWrite(t, sa,
					message(c.asker, to, 0xb8, "first"),
					message(c.asker, to, 0x01, "second"),
					message(c.asker, to, 0, ""))
				got := receive(t, sb, 3, 64)
				for i, want := range []struct {
					text string
					tos  uint8
				}{{"first", 0xb8}, {"second", 0x01}, {"", 0}} {
					d := got[i]
					if string(d.Buf[:d.N]) != want.text || d.TOS != want.tos || d.Local != to.Addr() || d.Remote != from {
						t.Errorf("datagram %d is %q, tos %#x, at %v from %v, want %q, %#x, %v, %v",
							i, d.Buf[:d.N], d.TOS, d.Local, d.Remote, want.text, want.tos, to.Addr(), from)
					}
				}
				mustWrite(t, sb, got[0])
				if d := receive(t, sa, 1, 64)[0]; d.Remote != to || d.Local != from.Addr() {
					t.Errorf("the reply came from %v to %v, want from %v to %v", d.Remote, d.Local, to, from.Addr())
				}
			})
		}
	}
}

func TestUDPLinkLocalAddressesKeepTheirZone(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	cable(t, a, "a0", b, "b0")
	addAddr(t, a, "a0", "fe80::a/64")
	addAddr(t, b, "b0", "fe80::b/64")
	sa, sb := listenUDP(t, a, any6), listenUDP(t, b, any6)
	// The zone is looked up in the namespace of the caller.
	in(t, a, func() error {
		mustWrite(t, sa, message("fe80::a%a0", netip.AddrPortFrom(netip.MustParseAddr("fe80::b%a0"), sb.LocalPort()), 0, "x"))
		return nil
	})
	in(t, b, func() error {
		d := batch(1, 64)
		if n, err := sb.ReadBatch(d); n != 1 || err != nil {
			t.Fatalf("ReadBatch = %d, %v", n, err)
		}
		if d[0].Remote.Addr().String() != "fe80::a%b0" || d[0].Local.String() != "fe80::b%b0" {
			t.Errorf("from %v at %v, want fe80::a%%b0 and fe80::b%%b0", d[0].Remote, d[0].Local)
		}
		mustWrite(t, sb, d[0])
		return nil
	})
}

func TestUDPDatagramsThatDoNotFitArriveEmpty(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	for _, many := range []bool{true, false} {
		s.oneByOne.Store(!many)
		mustWrite(t, from, message("", to, 0, strings.Repeat("x", 33)), message("", to, 0, strings.Repeat("y", 32)))
		got := receive(t, s, 2, 32)
		if got[0].N != 0 || got[1].N != 32 {
			t.Errorf("sizes %d and %d, want 0 (cut off, so useless) and 32", got[0].N, got[1].N)
		}
	}
}

func TestUDPLargeMessagesAreFragmented(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range []struct {
		any netip.AddrPort
		to  string
	}{{any4, "192.0.2.2"}, {any6, "2001:db8::2"}} {
		sa, sb := listenUDP(t, a, c.any), listenUDP(t, b, c.any)
		text := strings.Repeat("large ", 1000)
		mustWrite(t, sa, message("", netip.AddrPortFrom(netip.MustParseAddr(c.to), sb.LocalPort()), 0, text))
		if d := receive(t, sb, 1, 8000)[0]; string(d.Buf[:d.N]) != text {
			t.Errorf("%d octets arrived at %s, want %d: an IKE message may be larger than the link", d.N, c.to, len(text))
		}
	}
}

func TestUDPReaderOutlivesICMPErrors(t *testing.T) {
	a, b := twoHosts(t)
	sa, sb := listenUDP(t, a, any4), listenUDP(t, b, any4)
	closed := netip.MustParseAddrPort("192.0.2.2:9")
	nobody := netip.MustParseAddrPort("192.0.2.99:9")
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	d := batch(1, 64)
	// Errors are put on the socket as they would be with IP_RECVERR, which makes the
	// kernel report them even on a socket that is not connected.
	err := control(sa.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1) })
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		n, err := sa.ReadBatch(d)
		done <- result{n, err}
	}()
	mustWrite(t, sa, message("", closed, 0, "refused"))
	time.Sleep(50 * time.Millisecond) // the ICMP error comes back and wakes the reader
	_, _ = sa.WriteBatch([]esp.Datagram{message("", nobody, 0, "unreachable")})
	to := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), sa.LocalPort())
	mustWrite(t, sb, message("", to, 0, "hello"))
	select {
	case r := <-done:
		if r.n != 1 || r.err != nil || string(d[0].Buf[:d[0].N]) != "hello" {
			t.Errorf("ReadBatch = %d, %v, %q, want the datagram after the errors", r.n, r.err, d[0].Buf[:d[0].N])
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the reader did not get over the ICMP errors")
	}
}

func TestUDPBatchesLargerThanOneCallGoOut(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	var d []esp.Datagram
	for i := range maxBatch + 10 {
		d = append(d, message("127.0.0.1", to, 0, string(rune('A'+i))))
	}
	mustWrite(t, from, d...)
	got := receive(t, s, len(d), 8)
	for i := range got {
		if !bytes.Equal(got[i].Buf[:got[i].N], d[i].Buf) {
			t.Fatalf("datagram %d is %q, want %q: order or content is lost", i, got[i].Buf[:got[i].N], d[i].Buf)
		}
	}
}

func TestUDPWriteTellsWhichDatagramFailed(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	good := message("", to, 0, "x")
	for name, bad := range map[string]esp.Datagram{
		"no route":       message("", netip.MustParseAddrPort("203.0.113.1:9"), 0, "x"),
		"foreign source": message("203.0.113.7", to, 0, "x"),
		"wrong family":   message("", netip.MustParseAddrPort("[::1]:9"), 0, "x"),
		"N beyond Buf":   {Buf: make([]byte, 1), N: 2, Remote: to},
		"no peer":        {Buf: make([]byte, 1), N: 1},
	} {
		for _, many := range []bool{true, false} {
			from.oneByOne.Store(!many)
			n, err := from.WriteBatch([]esp.Datagram{good, good, bad, good})
			if n != 2 || err == nil {
				t.Errorf("%s: WriteBatch = %d, %v, want 2 and an error: the third is at fault", name, n, err)
			}
			receive(t, s, 2, 8)
		}
	}
}

// refuseMany makes the kernel answer this thread's calls for many datagrams with errno,
// as an old kernel (ENOSYS) or a sandbox (often EPERM) would. It cannot be undone.
func refuseMany(errno unix.Errno) error {
	load := unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}
	is := func(nr uint32, jump uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: jump}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	filter := []unix.SockFilter{
		load, is(unix.SYS_RECVMMSG, 2), is(unix.SYS_SENDMMSG, 1),
		ret(unix.SECCOMP_RET_ALLOW), ret(unix.SECCOMP_RET_ERRNO | uint32(errno)),
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

func TestSocketsFallBackWhereTheKernelRefusesMany(t *testing.T) {
	ns := newNS(t)
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EPERM} {
		s := listenUDP(t, ns, any4)
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // for ever: the thread ends with the goroutine
			if err := refuseMany(errno); err != nil {
				done <- err
				return
			}
			if _, _, e := unix.Syscall6(unix.SYS_SENDMMSG, 0, 0, 0, 0, 0, 0); e != errno {
				done <- fmt.Errorf("the filter answers %v, not %v", e, errno)
				return
			}
			for round := range 3 {
				n, err := s.WriteBatch([]esp.Datagram{message("127.0.0.1", to, 1, "a"), message("", to, 2, "b"), message("", to, 3, "c")})
				if n != 3 || err != nil {
					done <- fmt.Errorf("round %d: WriteBatch = %d, %v, want 3", round, n, err)
					return
				}
				d := batch(4, 16)
				n, err = s.ReadBatch(d)
				if n != 3 || err != nil || d[0].TOS != 1 || string(d[2].Buf[:d[2].N]) != "c" {
					done <- fmt.Errorf("round %d: ReadBatch = %d, %v, %+v, want the three", round, n, err, d[:n])
					return
				}
			}
			done <- nil
		}()
		if err := <-done; err != nil {
			t.Errorf("%v: %v", errno, err)
		}
		if !s.oneByOne.Load() {
			t.Errorf("%v: every batch would try again what the kernel refuses", errno)
		}
	}
}

func TestSocketCloseWakesReader(t *testing.T) {
	ns := newNS(t)
	for name, s := range map[string]*Socket{"UDP": listenUDP(t, ns, any4), "ESP": listenESP(t, ns, false)} {
		done := make(chan error)
		go func() {
			_, err := s.ReadBatch(batch(4, 64))
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: ReadBatch after Close: %v, want os.ErrClosed", name, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: ReadBatch still waits after Close", name)
		}
		if _, err := s.WriteBatch([]esp.Datagram{message("", netip.MustParseAddrPort("127.0.0.1:9"), 0, "x")}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: WriteBatch after Close: %v, want os.ErrClosed", name, err)
		}
	}
}

func TestUDPPortInUseIsSaid(t *testing.T) {
	ns := newNS(t)
	s := listenUDP(t, ns, any4)
	in(t, ns, func() error {
		_, err := ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), s.LocalPort()))
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another program holds the port") {
			t.Errorf("second bind: %v, want EADDRINUSE and what to do", err)
		}
		// The families do not get in each other's way.
		s6, err := ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), s.LocalPort()))
		if err != nil {
			t.Errorf("the same port on IPv6: %v", err)
		} else {
			s6.Close()
		}
		if _, err := ListenUDP(netip.MustParseAddrPort("127.0.0.1:0")); err == nil {
			t.Error("bound to one address: the answer would not come from the address that was asked")
		}
		return nil
	})
}

// The thread gives up its capabilities and ends with the goroutine.
func TestSocketsWithoutPrivilegeSayWhatIsMissing(t *testing.T) {
	ns := newNS(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := ns.Do(func() error {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var all [2]unix.CapUserData
			if err := unix.Capget(&hdr, &all[0]); err != nil {
				return err
			}
			// Only what is needed to leave the namespace again.
			data := all
			data[0].Effective, data[1].Effective = 1<<unix.CAP_SYS_ADMIN, 0
			if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, capArg(&hdr), capData(&data), 0); e != 0 {
				return e
			}
			for name, f := range map[string]func() error{
				"UDP": func() error { _, err := ListenUDP(any4); return err },
				"ESP": func() error { _, err := ListenESP(false); return err },
				"TUN": func() error { _, err := OpenTUN("pt0", 1400); return err },
			} {
				if err := f(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
					t.Errorf("%s: %v, want EPERM and which capability is missing", name, err)
				}
			}
			if err := CheckPrivileges(true); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") || !strings.Contains(err.Error(), "CAP_NET_RAW") {
				t.Errorf("CheckPrivileges: %v, want both capabilities named", err)
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, capArg(&hdr), capData(&all), 0); e != 0 {
				return e
			}
			return CheckPrivileges(true)
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-done
}

func TestRawESPRoundTrip(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range []struct {
		name     string
		v6       bool
		from, to string
	}{
		{"IPv4", false, "192.0.2.11", "192.0.2.12"},
		{"IPv6", true, "2001:db8::11", "2001:db8::12"},
	} {
		for _, many := range []bool{true, false} {
			t.Run(c.name+map[bool]string{true: " many", false: " one by one"}[many], func(t *testing.T) {
				sa, sb := listenESP(t, a, c.v6), listenESP(t, b, c.v6)
				sa.oneByOne.Store(!many)
				sb.oneByOne.Store(!many)
				to := netip.AddrPortFrom(netip.MustParseAddr(c.to), 0)
				packet := "\x12\x34\x56\x78\x00\x00\x00\x01" + strings.Repeat("secret", 10)
				big := packet[:8] + strings.Repeat("b", 3000)
				first := message(c.from, to, 0x02, packet)
				first.TTL = 200
				mustWrite(t, sa, first, message(c.from, to, 0xb9, big))
				got := receive(t, sb, 2, 4000)
				if got[0].TTL != 200 || got[1].TTL != 64 {
					t.Errorf("the hop limits are %d and %d, want 200 as it was set, and the system's 64", got[0].TTL, got[1].TTL)
				}
				for i, want := range []string{packet, big} {
					d := got[i]
					if string(d.Buf[:d.N]) != want || d.TOS != []uint8{0x02, 0xb9}[i] ||
						d.Local != to.Addr() || d.Remote != netip.AddrPortFrom(netip.MustParseAddr(c.from), 0) {
						t.Errorf("packet %d: %d octets, tos %#x, at %v from %v, want %d octets, %#x, %v, %v", i,
							d.N, d.TOS, d.Local, d.Remote, len(want), []uint8{0x02, 0xb9}[i], to.Addr(), c.from)
					}
				}
				if !strings.HasPrefix(string(got[0].Buf), packet[:8]) {
					t.Errorf("Buf starts with % x, want the SPI % x", got[0].Buf[:8], packet[:8])
				}
				mustWrite(t, sb, got[0])
				if d := receive(t, sa, 1, 200)[0]; d.Remote.Addr() != to.Addr() {
					t.Errorf("the reply came from %v, want %v", d.Remote, to.Addr())
				}
			})
		}
	}
}

func TestStripIPv4Header(t *testing.T) {
	header := func(b0 byte) *[20]byte { return &[20]byte{b0, 0x1e} }
	for name, c := range map[string]struct {
		ip   *[20]byte
		n    int
		buf  string
		want string
	}{
		"plain":                  {header(0x45), 24, "ESP!....", "ESP!"},
		"options":                {header(0x47), 32, "options!ESP!....", "ESP!"},
		"options and no more":    {header(0x47), 28, "options!", ""},
		"options cut off":        {header(0x4f), 24, "opti", ""},
		"header length too low":  {header(0x44), 24, "ESP!", ""},
		"not IPv4":               {header(0x65), 24, "ESP!", ""},
		"shorter than a header":  {header(0x45), 19, "ESP!", ""},
		"nothing at all":         {header(0x45), 0, "ESP!", ""},
		"nothing behind header":  {header(0x45), 20, "ESP!", ""},
		"buffer exactly as long": {header(0x45), 28, "ESP!ESP!", "ESP!ESP!"},
	} {
		d := esp.Datagram{Buf: []byte(c.buf), N: c.n}
		stripIPv4(&d, c.ip)
		if string(d.Buf[:d.N]) != c.want {
			t.Errorf("%s: %q is left, want %q", name, d.Buf[:d.N], c.want)
		}
	}
}

func TestSocketPathsDoNotAllocate(t *testing.T) {
	ns := newNS(t)
	addAddr(t, ns, "lo", "fe80::1/64")
	for name, c := range map[string]struct {
		s    *Socket
		addr string
	}{
		"UDP":             {listenUDP(t, ns, any4), "127.0.0.1"},
		"UDP IPv6":        {listenUDP(t, ns, any6), "::1"},
		"UDP link-local":  {listenUDP(t, ns, any6), "fe80::1%lo"},
		"ESP":             {listenESP(t, ns, false), "127.0.0.1"},
		"ESP IPv6":        {listenESP(t, ns, true), "::1"},
		"UDP one by one":  {listenUDP(t, ns, any4), "127.0.0.1"},
		"ESP6 one by one": {listenESP(t, ns, true), "::1"},
	} {
		c.s.oneByOne.Store(strings.HasSuffix(name, "one by one"))
		in(t, ns, func() error {
			out := []esp.Datagram{
				message(c.addr, netip.AddrPortFrom(netip.MustParseAddr(c.addr), c.s.LocalPort()), 4, "12345678"),
				message(c.addr, netip.AddrPortFrom(netip.MustParseAddr(c.addr), c.s.LocalPort()), 4, "87654321"),
			}
			back := batch(8, 200)
			own := slices.Clone(back)
			// The kernel gives a new IPv6 address its route a moment later, and loses what
			// is sent to it until then.
			for try := 0; ; try++ {
				mustWrite(t, c.s, out[0])
				c.s.file.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := c.s.ReadBatch(append(back[:0], own...)); err == nil {
					break
				} else if try == 100 {
					t.Fatalf("%s: nothing arrives: %v", name, err)
				}
			}
			c.s.file.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n := testing.AllocsPerRun(100, func() {
				if n, err := c.s.WriteBatch(out); n != 2 || err != nil {
					t.Fatalf("%s: WriteBatch = %d, %v", name, n, err)
				}
				for got := 0; got < 2; {
					n, err := c.s.ReadBatch(append(back[:0], own...))
					if err != nil {
						t.Fatalf("%s: ReadBatch: %v", name, err)
					}
					got += n
				}
			}); n != 0 {
				t.Errorf("%s: a round allocates %v times, want 0", name, n)
			}
			return nil
		})
	}
}

// What a socket sends must carry the mark, or it would be routed into the tunnel.
func TestSocketsAreMarked(t *testing.T) {
	ns := newNS(t)
	for _, s := range []*Socket{listenUDP(t, ns, any4), listenUDP(t, ns, any6), listenESP(t, ns, false), listenESP(t, ns, true)} {
		err := control(s.file, func(fd int) error {
			mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
			if uint32(mark)&MarkMask != Mark {
				t.Errorf("%s has mark %#x, want %#x", s.object, mark, Mark)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestUDPSpeaksWithOrdinarySockets(t *testing.T) {
	ns := newNS(t)
	s := listenUDP(t, ns, any4)
	var c *net.UDPConn
	in(t, ns, func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(s.LocalPort())})
		return err
	})
	defer c.Close()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	d := receive(t, s, 1, 64)[0]
	d.N = copy(d.Buf, "pong")
	mustWrite(t, s, d)
	var b [16]byte
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(b[:]); err != nil || string(b[:n]) != "pong" {
		t.Errorf("read %q, %v, want pong", b[:n], err)
	}
}
