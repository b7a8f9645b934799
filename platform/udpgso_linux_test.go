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
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// joined returns the size of segments that a message to send asks for, 0 for none.
func joined(h *mmsghdr) int {
	b := unsafe.Slice(h.hdr.Control, int(h.hdr.Controllen))
	for len(b) >= cmsgHeader {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_SEGMENT {
			return int(native.Uint16(b[cmsgHeader:]))
		}
		b = b[min(wordAlign(int(c.Len)), len(b)):]
	}
	return 0
}

// calls counts what goes by a socket's intercept.
type calls struct {
	sends, receives int
	messages        []string // of each send: "7*1200", 7 datagrams in segments of 1200
}

func (c *calls) count(s *Socket) {
	s.intercept = func(send bool, hdrs []mmsghdr) unix.Errno {
		if !send {
			c.receives++
			return 0
		}
		c.sends++
		for i := range hdrs {
			c.messages = append(c.messages, fmt.Sprintf("%d*%d", hdrs[i].hdr.Iovlen, joined(&hdrs[i])))
		}
		return 0
	}
}

// refuseJoined makes a socket's messages with segments fail.
func refuseJoined(s *Socket, errno unix.Errno) (refused *int) {
	refused = new(int)
	s.intercept = func(send bool, hdrs []mmsghdr) unix.Errno {
		if send && joined(&hdrs[0]) > 0 {
			*refused++
			return errno
		}
		return 0
	}
	return refused
}

// text makes content that tells the datagram by its number.
func text(i, size int) string {
	s := fmt.Sprintf("<%d>", i)
	return (s + strings.Repeat(string(rune('a'+i%26)), max(size-len(s), 0)))[:size]
}

// row makes n datagrams that are alike, numbered from first.
func row(first, n, size int, local string, to netip.AddrPort, tos uint8) []esp.Datagram {
	var d []esp.Datagram
	for i := range n {
		d = append(d, message(local, to, tos, text(first+i, size)))
	}
	return d
}

// collect reads exactly n datagrams, step at a time.
func collect(t testing.TB, s *Socket, n, size, step int) []esp.Datagram {
	t.Helper()
	var got []esp.Datagram
	s.file.SetReadDeadline(time.Now().Add(5 * time.Second))
	defer s.file.SetReadDeadline(time.Time{})
	for len(got) < n {
		d := batch(min(step, n-len(got)), size)
		own := slices.Clone(d)
		k, err := s.ReadBatch(d)
		if err != nil {
			t.Fatalf("after %d of %d datagrams: %v", len(got), n, err)
		}
		for i := range d {
			switch same := unsafe.SliceData(d[i].Buf) == unsafe.SliceData(own[i].Buf); {
			case same && len(d[i].Buf) != size:
				t.Fatalf("ReadBatch changed the length of datagram %d's Buf", i)
			case !same && (!s.gro.on || i >= k || cap(d[i].Buf) > size):
				t.Fatalf("datagram %d has another Buf, and it was not cut from a joined message", i)
			case !same: // the socket's, until the next call
				d[i].Buf = append(own[i].Buf[:0], d[i].Buf...)[:size]
			}
		}
		got = append(got, d[:k]...)
	}
	return got
}

func compare(t testing.TB, got, sent []esp.Datagram, port uint16) {
	t.Helper()
	if len(got) != len(sent) {
		t.Fatalf("%d datagrams arrived, want %d", len(got), len(sent))
	}
	for i := range sent {
		g, w := &got[i], &sent[i]
		if !bytes.Equal(g.Buf[:g.N], w.Buf[:w.N]) {
			t.Fatalf("datagram %d is %.20q (%d octets), want %.20q (%d): order, bounds or content are lost", i, g.Buf[:g.N], g.N, w.Buf[:w.N], w.N)
		}
		from := netip.AddrPortFrom(w.Local, port)
		if g.TOS != w.TOS || g.Local != w.Remote.Addr() || g.Remote != from {
			t.Fatalf("datagram %d: tos %#x, at %v from %v, want %#x, %v, %v", i, g.TOS, g.Local, g.Remote, w.TOS, w.Remote.Addr(), from)
		}
	}
}

// mixed is a batch in which each neighbour is unlike in another thing, and the messages
// that it is to be sent as.
func mixed(local, local2 string, to, to2 netip.AddrPort) (d []esp.Datagram, messages []string) {
	add := func(m string, more []esp.Datagram) {
		d = append(d, more...)
		messages = append(messages, m)
	}
	add("7*1200", append(row(0, 6, 1200, local, to, 0), message(local, to, 0, text(6, 333)))) // a shorter last
	add("4*1200", row(7, 4, 1200, local, to, 0))
	add("3*1200", row(11, 3, 1200, local, to, 0x2e))   // traffic class
	add("2*1200", row(14, 2, 1200, local2, to, 0x2e))  // source
	add("3*1200", row(16, 3, 1200, local2, to2, 0x2e)) // destination
	add("1*0", []esp.Datagram{message(local2, to2, 0x2e, text(19, 1201))})
	add("2*1300", append(row(20, 1, 1300, local, to, 0), message(local, to, 0, "\xff"))) // a keepalive ends it
	add("1*0", []esp.Datagram{message(local, to, 0, "")})                                // nothing, which is a datagram too
	add("1*0", []esp.Datagram{message(local, to, 0, "\x00\x00\x00\x00"+text(24, 400))})  // IKE
	add("2*1400", row(25, 2, 1400, local, to, 1))
	add("2*1000", row(27, 2, 1000, local, to, 2))
	add("1*0", []esp.Datagram{message(local, to, 2, "")}) // not a shorter last: it would be lost
	return d, messages
}

var joinRoutes = []struct {
	name                     string
	any                      netip.AddrPort
	lo                       bool
	local, local2, to, other string
}{
	{"IPv4 veth", any4, false, "192.0.2.1", "192.0.2.11", "192.0.2.2", "192.0.2.12"},
	{"IPv6 veth", any6, false, "2001:db8::1", "2001:db8::11", "2001:db8::2", "2001:db8::12"},
	{"IPv4 lo", any4, true, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"},
	{"IPv6 lo", any6, true, "::1", "2001:db8::11", "::1", "2001:db8::1"},
}

func TestUDPJoinedDatagramsArriveAsTheyWereSent(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range joinRoutes {
		there := b
		if c.lo {
			there = a
		}
		// Neighbours that do not know each other yet would answer in any order.
		first, hello := listenUDP(t, a, c.any), listenUDP(t, there, c.any)
		for _, to := range []string{c.to, c.other} {
			mustWrite(t, first, message("", netip.AddrPortFrom(netip.MustParseAddr(to), hello.LocalPort()), 0, "hello"))
			collect(t, hello, 1, 64, 1)
		}
		for _, features := range []socketFeatures{{true, true, true, false}, {true, false, true, false}, {false, true, true, false}, {false, false, true, false}, {true, true, false, false}, {}} {
			for _, step := range []int{1, 3, 64} {
				t.Run(fmt.Sprintf("%s, %v, %d at once", c.name, features, step), func(t *testing.T) {
					sa, sb := listenUDP(t, a, c.any), listenUDP(t, there, c.any)
					if on := sb.features(); !on.Segment || !on.Coalesce || !on.Batch {
						t.Skipf("this kernel has only: %v", on)
					}
					sa.gso.on.Store(features.Segment)
					if !features.Coalesce {
						coalesceOff(t, sb)
					}
					sa.oneByOne.Store(!features.Batch)
					sb.oneByOne.Store(!features.Batch)
					to := netip.AddrPortFrom(netip.MustParseAddr(c.to), sb.LocalPort())
					to2 := netip.AddrPortFrom(netip.MustParseAddr(c.other), sb.LocalPort())
					d, messages := mixed(c.local, c.local2, to, to2)
					var n calls
					n.count(sa)
					mustWrite(t, sa, d...)
					if features.Segment && features.Batch && (n.sends != 1 || strings.Join(n.messages, " ") != strings.Join(messages, " ")) {
						t.Errorf("%d calls for the messages %v, want one for %v", n.sends, n.messages, messages)
					}
					if !features.Segment && features.Batch && (n.sends != 1 || len(n.messages) != len(d)) {
						t.Errorf("%d calls for the messages %v, want one call for %d of one datagram", n.sends, n.messages, len(d))
					}
					compare(t, collect(t, sb, len(d), 3072, step), d, sa.LocalPort())
				})
			}
		}
	}
}

func coalesceOff(t testing.TB, s *Socket) {
	t.Helper()
	if err := control(s.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0) }); err != nil {
		t.Fatal(err)
	}
	s.gro.on = false
}

// Large batches meet the bounds of a message: 64 segments, 64 KiB.
func TestUDPJoinedMessagesKeepTheKernelsBounds(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range joinRoutes[:2] {
		for size, want := range map[int]string{
			1:    "64*1 64*1 22*1",
			200:  "64*200 64*200 22*200",
			1400: "46*1400 46*1400 36*1400 22*1400", // one call is for 128 datagrams
			1023: "63*1023 63*1023 2*1023 22*1023",
		} {
			sa, sb := listenUDP(t, a, c.any), listenUDP(t, b, c.any)
			to := netip.AddrPortFrom(netip.MustParseAddr(c.to), sb.LocalPort())
			// Until the hosts know each other, the kernel keeps less for a neighbour than all of it.
			mustWrite(t, sa, message(c.local, to, 0, "hello"))
			collect(t, sb, 1, 64, 1)
			var n calls
			n.count(sa)
			d := row(0, 150, size, c.local, to, 0)
			mustWrite(t, sa, d...)
			if got := strings.Join(n.messages, " "); got != want {
				t.Errorf("%s: %d octets each: messages %s, want %s", c.name, size, got, want)
			}
			compare(t, collect(t, sb, 150, 3072, 64), d, sa.LocalPort())
		}
	}
}

// What is on the wire is what anybody's socket can read.
func TestUDPJoinedDatagramsReachOrdinarySockets(t *testing.T) {
	ns := newNS(t)
	s := listenUDP(t, ns, any4)
	var c *net.UDPConn
	in(t, ns, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	})
	defer c.Close()
	d := row(0, 20, 700, "127.0.0.1", c.LocalAddr().(*net.UDPAddr).AddrPort(), 0)
	mustWrite(t, s, d...)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for i := range d {
		var b [2000]byte
		if n, err := c.Read(b[:]); err != nil || string(b[:n]) != string(d[i].Buf) {
			t.Fatalf("datagram %d: %.20q (%d octets), %v, want %.20q", i, b[:n], n, err, d[i].Buf)
		}
	}
}

func TestUDPGivesUpJoiningWhereItIsRefused(t *testing.T) {
	ns := newNS(t)
	for _, c := range []struct {
		errno unix.Errno
		size  int
		off   bool // for good
	}{
		{unix.EIO, 1400, true},
		{unix.ENOPROTOOPT, 1400, true},
		{unix.EOPNOTSUPP, 1400, true},
		{unix.EINVAL, 100, true}, // every path carries 100 octets: it is not the MTU
		{unix.EINVAL, 1400, false},
		{unix.EMSGSIZE, 1400, false},
		{unix.ENOBUFS, 1400, false},
		{unix.ENOMEM, 1400, false},
		{unix.EPERM, 1400, false}, // a firewall that counts octets
	} {
		from, s := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
		refused := refuseJoined(from, c.errno)
		from.oneByOne.Store(true) // so that it sees each message
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
		d := append(row(0, 5, c.size, "127.0.0.1", to, 0), row(5, 5, c.size, "127.0.0.1", to, 4)...)
		mustWrite(t, from, d...)
		compare(t, collect(t, s, len(d), 3072, 64), d, from.LocalPort())
		if *refused != 2 {
			t.Errorf("%v: %d joined messages were refused, want each of the two once", c.errno, *refused)
		}
		from.oneByOne.Store(false)
		if on := from.features().Segment; on == c.off {
			t.Errorf("%v at %d octets: joining is on: %v, want %v", c.errno, c.size, on, !c.off)
		}
		var n calls
		n.count(from)
		mustWrite(t, from, d...)
		if n.sends != 1 || len(n.messages) != len(d) {
			t.Errorf("%v at %d octets: the next batch goes out as %v in %d calls: what was refused is not to be tried again at once", c.errno, c.size, n.messages, n.sends)
		}
		compare(t, collect(t, s, len(d), 3072, 64), d, from.LocalPort())
		if c.off {
			continue
		}
		from.gso.until = time.Now().Add(-time.Second)
		n = calls{}
		mustWrite(t, from, d...)
		if got := strings.Join(n.messages, " "); got != fmt.Sprintf("5*%d 5*%[1]d", c.size) {
			t.Errorf("%v at %d octets: after the pause messages %s, want joined ones again", c.errno, c.size, got)
		}
		compare(t, collect(t, s, len(d), 3072, 64), d, from.LocalPort())
	}
}

// The kernel itself refuses segments larger than the link, which as datagrams of their own
// are fragmented.
func TestUDPSegmentsLargerThanTheLinkGoOutFragmented(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range joinRoutes[:2] {
		sa, sb := listenUDP(t, a, c.any), listenUDP(t, b, c.any)
		to := netip.AddrPortFrom(netip.MustParseAddr(c.to), sb.LocalPort())
		fits, large := row(0, 3, 1400, c.local, to, 0), row(10, 4, 1600, c.local, to, 0)
		d := append(append(append([]esp.Datagram{}, fits...), large...), fits...)
		for round := range 3 {
			var n calls
			n.count(sa)
			mustWrite(t, sa, d...)
			compare(t, collect(t, sb, len(d), 3072, 64), d, sa.LocalPort())
			want := "3*1400 1*0 1*0 1*0 1*0 3*1400"
			if got := strings.Join(n.messages, " "); round > 0 && (got != want || n.sends != 1) {
				t.Errorf("%s: round %d: messages %s in %d calls, want %s in one", c.name, round, got, n.sends, want)
			}
		}
		if !sa.features().Segment {
			t.Errorf("%s: one path's MTU has ended joining for all", c.name)
		}
	}
}

func TestUDPWriteTellsWhichJoinedDatagramFailed(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	nowhere := netip.MustParseAddrPort("203.0.113.1:9")
	var d []esp.Datagram
	d = append(append(append(d, row(0, 4, 800, "127.0.0.1", to, 0)...), row(4, 3, 800, "", nowhere, 0)...), row(7, 2, 800, "127.0.0.1", to, 0)...)
	// The engine's way: leave out the one at fault, go on with the next.
	var failed []int
	for rest := 0; rest < len(d); {
		n, err := from.WriteBatch(d[rest:])
		rest += n
		if err != nil {
			if !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("datagram %d: %v, want ENETUNREACH", rest, err)
			}
			failed = append(failed, rest)
			rest++
		}
	}
	if fmt.Sprint(failed) != "[4 5 6]" {
		t.Errorf("the datagrams %v failed, want those to nowhere: 4, 5 and 6", failed)
	}
	compare(t, collect(t, s, 6, 3072, 64), append(d[:4:4], d[7:]...), from.LocalPort())
	if !from.features().Segment || !from.gso.until.IsZero() {
		t.Error("joining was blamed for a route that is not there")
	}
	// A datagram inside a joined message that the kernel would not even send alone.
	from.intercept = func(send bool, hdrs []mmsghdr) unix.Errno {
		first := unsafe.Slice(hdrs[0].hdr.Iov.Base, int(hdrs[0].hdr.Iov.Len))
		if joined(&hdrs[0]) > 0 || bytes.HasPrefix(first, []byte("<2>")) {
			return unix.EMSGSIZE
		}
		hdrs[0].hdr.Flags = 0
		_, errno := sendmsg(fdOf(t, from), &hdrs[0].hdr)
		if errno != 0 {
			return errno
		}
		from.tx.n++
		from.tx.next++
		return unix.EINTR
	}
	n, err := from.WriteBatch(row(0, 4, 800, "127.0.0.1", to, 0))
	if n != 2 || !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("WriteBatch = %d, %v, want 2 and EMSGSIZE: the third is at fault", n, err)
	}
	collect(t, s, 2, 3072, 64)
}

func fdOf(t testing.TB, s *Socket) (fd uintptr) {
	t.Helper()
	if err := control(s.file, func(n int) error { fd = uintptr(n); return nil }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// refuseOptions makes the kernel answer this thread's questions for UDP_SEGMENT and UDP_GRO
// as one that does not know them. It cannot be undone.
func refuseOptions() error {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	is := func(v uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: v, Jt: yes, Jf: no}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	arg2 := uint32(16 + 2*8) // of struct seccomp_data, its lower half
	if native.Uint16([]byte{0, 1}) == 1 {
		arg2 += 4
	}
	filter := []unix.SockFilter{
		load(0), is(unix.SYS_SETSOCKOPT, 1, 0), is(unix.SYS_GETSOCKOPT, 0, 3),
		load(arg2), is(unix.UDP_SEGMENT, 2, 0), is(unix.UDP_GRO, 1, 0),
		ret(unix.SECCOMP_RET_ALLOW), ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOPROTOOPT)),
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

func TestUDPOfOldKernelsIsCarriedWithoutJoining(t *testing.T) {
	ns := newNS(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(home)
		if err := control(ns.f, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
			t.Error(err)
			return
		}
		if err := refuseOptions(); err != nil {
			t.Error(err)
			return
		}
		s, err := ListenUDP(any4)
		if err != nil {
			t.Errorf("the socket does without: %v", err)
			return
		}
		defer s.Close()
		if f := s.features(); f != (socketFeatures{Batch: true}) {
			t.Errorf("on are %v, want sendmmsg alone", f)
		}
		var n calls
		n.count(s)
		d := row(0, 12, 900, "127.0.0.1", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort()), 0)
		mustWrite(t, s, d...)
		compare(t, collect(t, s, len(d), 3072, 64), d, s.LocalPort())
		if n.sends != 1 || n.receives != 1 || len(n.messages) != 12 {
			t.Errorf("%d and %d calls, %v, want one each for 12 messages", n.sends, n.receives, n.messages)
		}
	}()
	<-done
}

// Packets for a neighbour whose hardware address is not known yet fill the send buffer.
func TestUDPFullSendBufferWaitsAndThenDrops(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	s, sb := listenUDP(t, a, any4), listenUDP(t, b, any4)
	if err := control(s.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4608) }); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), sb.LocalPort())
	for name, size := range map[string]int{"joined": 1400, "too large to join": 1600} {
		s.clogged = false
		start := time.Now()
		n, err := s.WriteBatch(row(0, 60, size, "192.0.2.1", to, 0))
		if n == 60 || !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "send buffer is full") {
			t.Fatalf("%s: WriteBatch = %d, %v, want the send buffer to be full", name, n, err)
		}
		if d := time.Since(start); d < sendPatience || d > sendPatience+2*time.Second {
			t.Errorf("%s: it waited %v, want %v: neither dropping at once nor stopping IKE for long", name, d, sendPatience)
		}
		start = time.Now()
		for range 20 {
			if n, err := s.WriteBatch(row(0, 3, size, "192.0.2.1", to, 0)); n != 0 || !errors.Is(err, unix.EAGAIN) {
				t.Fatalf("%s: WriteBatch = %d, %v, want 0 and EAGAIN as nothing has left", name, n, err)
			}
		}
		if d := time.Since(start); d > sendPatience {
			t.Errorf("%s: a buffer that stays full held up 20 batches for %v", name, d)
		}
	}
	// The neighbour appears; the kernel asks once a second.
	s.clogged, s.patience = false, 10*time.Second
	addAddr(t, b, "b0", "192.0.2.77/24")
	d := row(100, 60, 1400, "192.0.2.1", to, 0)
	mustWrite(t, s, d...)
	t.Logf("waited for the neighbour: %v", s.tx.waited)
	var got []esp.Datagram
	for len(got) < len(d) {
		// What was sent before it appeared comes first.
		if g := collect(t, sb, 1, 3072, 1)[0]; len(got) > 0 || string(g.Buf[:g.N]) == string(d[0].Buf) {
			got = append(got, g)
		}
	}
	compare(t, got, d, s.LocalPort())
	// A deadline that stayed would fail this one.
	s.patience, s.clogged = sendPatience, true
	time.Sleep(2 * sendPatience)
	mustWrite(t, s, d[0])
	if s.clogged {
		t.Error("a datagram has left, and the next full buffer would not be waited for")
	}
}

func TestUDPJoinedPathsDoNotAllocate(t *testing.T) {
	ns := newNS(t)
	for name, c := range map[string]struct {
		any  netip.AddrPort
		addr string
	}{"IPv4": {any4, "127.0.0.1"}, "IPv6": {any6, "::1"}} {
		for _, step := range []int{8, 64} {
			for _, refuse := range []unix.Errno{0, unix.ENOBUFS} {
				s := listenUDP(t, ns, c.any)
				if refuse != 0 {
					refuseJoined(s, refuse)
				}
				d := row(0, 64, 1300, c.addr, netip.AddrPortFrom(netip.MustParseAddr(c.addr), s.LocalPort()), 0)
				back := batch(step, 3072)
				own := slices.Clone(back)
				s.file.SetReadDeadline(time.Now().Add(20 * time.Second))
				if n := testing.AllocsPerRun(50, func() {
					s.gso.until = time.Time{}
					if n, err := s.WriteBatch(d); n != 64 || err != nil {
						t.Fatalf("%s: WriteBatch = %d, %v", name, n, err)
					}
					for got := 0; got < 64; {
						n, err := s.ReadBatch(append(back[:0], own...))
						if err != nil {
							t.Fatalf("%s: ReadBatch: %v", name, err)
						}
						got += n
					}
				}); n != 0 {
					t.Errorf("%s, %d at once, refused with %v: a round allocates %v times, want 0", name, step, refuse, n)
				}
			}
		}
	}
}

// Raw ESP cannot be joined, but has one call for many.
func TestRawESPGoesInBatches(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range joinRoutes[:2] {
		sa, sb := listenESP(t, a, c.any.Addr().Is6()), listenESP(t, b, c.any.Addr().Is6())
		if f := sa.features(); f != (socketFeatures{Batch: true}) {
			t.Errorf("on are %v, want sendmmsg alone", f)
		}
		var na, nb calls
		na.count(sa)
		nb.count(sb)
		d := row(0, 60, 1300, c.local, netip.AddrPortFrom(netip.MustParseAddr(c.to), 0), 3)
		mustWrite(t, sa, d...)
		time.Sleep(20 * time.Millisecond) // all have arrived
		compare(t, collect(t, sb, 60, 3072, 64), d, 0)
		if na.sends != 1 || nb.receives > 5 {
			t.Errorf("%s: %d calls to send and %d to receive 60 packets, want one each", c.name, na.sends, nb.receives)
		}
	}
}

func TestFeaturesAreSpelt(t *testing.T) {
	for f, want := range map[socketFeatures]string{
		{}:                       "",
		{Batch: true}:            "sendmmsg/recvmmsg",
		{Segment: true}:          "UDP_SEGMENT",
		{true, true, true, true}: "UDP_SEGMENT UDP_GRO sendmmsg/recvmmsg SPI-steering",
	} {
		if f.String() != want {
			t.Errorf("%#v is %q, want %q", f, f, want)
		}
	}
}

func TestUDPCloseDropsWhatWasNotFetched(t *testing.T) {
	ns := newNS(t)
	s := listenUDP(t, ns, any4)
	mustWrite(t, s, row(0, 20, 500, "127.0.0.1", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort()), 0)...)
	collect(t, s, 3, 3072, 3)
	if !s.gro.waiting() {
		t.Fatal("nothing was left over")
	}
	s.Close()
	if _, err := s.ReadBatch(batch(4, 3072)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadBatch after Close: %v, want os.ErrClosed", err)
	}
}
