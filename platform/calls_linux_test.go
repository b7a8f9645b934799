package platform

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// callsWays are the calls that a gateway makes for the data: those of its TUN device and
// those of its socket, in and out.
type callsWays struct{ tunRead, tunWrite, receive, send int }

func (w callsWays) sum() int { return w.tunRead + w.tunWrite + w.receive + w.send }

func (w callsWays) String() string {
	return fmt.Sprintf("%d of TUN reads, %d of TUN writes, %d of the socket in, %d out", w.tunRead, w.tunWrite, w.receive, w.send)
}

// threadIO counts the calls of the calling thread that read or wrote a file, as the kernel
// accounts for them; those that returned EAGAIN are among them. Calls on sockets by
// recvmmsg and sendmmsg are not.
type threadIO struct{ fd, own int }

func openThreadIO(t *testing.T) *threadIO {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/io", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("skipped: the kernel does not account for the calls of a thread (CONFIG_TASK_IO_ACCOUNTING): %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	io := &threadIO{fd: fd}
	first := io.read(t)
	io.own = io.read(t) - first // reading the account is a call, too
	return io
}

func (c *threadIO) read(t *testing.T) int {
	t.Helper()
	var b [512]byte
	n, err := unix.Pread(c.fd, b[:], 0)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for line := range bytes.Lines(b[:n]) {
		var calls int
		if k, _ := fmt.Sscanf(string(line), "syscr: %d", &calls); k == 1 {
			sum += calls
		} else if k, _ := fmt.Sscanf(string(line), "syscw: %d", &calls); k == 1 {
			sum += calls
		}
	}
	return sum
}

// during returns the calls that f makes.
func (c *threadIO) during(t *testing.T, f func()) int {
	t.Helper()
	before := c.read(t)
	f()
	return c.read(t) - before - c.own
}

// callsHost is one gateway with a TUN device and a UDP socket, whose data path the test
// drives step by step in one thread.
type callsHost struct {
	tun   *TUN
	sock  *Socket
	out   *esp.Outbound
	in    *esp.Inbound
	peer  netip.AddrPort
	calls callsWays

	bufs  [][]byte // of the TUN reader; here and in own as many as the engine has on a large board
	sizes []int
	dgram []esp.Datagram
	batch []esp.Datagram
	own   []esp.Datagram // batch as it is before a read
	inner [][]byte
}

// ready tells whether the next read would not wait.
func callsReady(t *testing.T, rc interface{ Control(func(uintptr)) error }) bool {
	t.Helper()
	n := 0
	if err := rc.Control(func(fd uintptr) {
		var err error
		if n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil && err != unix.EINTR {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// callsPatience bounds a read that finds less than poll has seen, such as a packet that is
// thrown away.
const callsPatience = 20 * time.Millisecond

// takeOut moves one batch from the TUN device to the socket; false if there is none.
func (h *callsHost) takeOut(t *testing.T, io *threadIO) bool {
	t.Helper()
	if !(h.tun.vrx != nil && h.tun.vrx.rest.more()) && !callsReady(t, h.tun.rc) {
		return false
	}
	h.tun.file.SetReadDeadline(time.Now().Add(callsPatience))
	var n int
	var err error
	h.calls.tunRead += io.during(t, func() { n, err = h.tun.ReadBatch(h.bufs, h.sizes, esp.HeadRoom) })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	h.dgram = h.dgram[:0]
	for i := range n {
		p := h.bufs[i][esp.HeadRoom:]
		next := uint8(esp.ProtoIPv4)
		if p[0]>>4 == 6 {
			next = esp.ProtoIPv6 // neighbour discovery
		}
		start, end, err := h.out.Seal(0, h.bufs[i], esp.HeadRoom, h.sizes[i], next)
		if err != nil {
			t.Fatal(err)
		}
		h.dgram = append(h.dgram, esp.Datagram{Buf: h.bufs[i][start:end], N: end - start, Remote: h.peer})
	}
	if n, err := h.sock.WriteBatch(h.dgram); n != len(h.dgram) || err != nil {
		t.Fatalf("WriteBatch = %d of %d, %v", n, len(h.dgram), err)
	}
	return true
}

// takeIn moves one batch from the socket to the TUN device; false if there is none.
func (h *callsHost) takeIn(t *testing.T, io *threadIO) bool {
	t.Helper()
	if !h.sock.gro.waiting() && !callsReady(t, h.sock.rc) {
		return false
	}
	h.sock.file.SetReadDeadline(time.Now().Add(callsPatience))
	h.batch = append(h.batch[:0], h.own...)
	n, err := h.sock.ReadBatch(h.batch)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	const room = 16 // SPI, sequence number and IV in front of the packet
	h.inner = h.inner[:0]
	for i := range n {
		pkt := h.batch[i].Buf[:h.batch[i].N]
		inner, next, err := h.in.Open(0, pkt)
		if err != nil {
			t.Fatal(err)
		}
		if inner, err = esp.CutInner(inner, next); err != nil {
			t.Fatal(err)
		}
		h.inner = append(h.inner, pkt[:room+len(inner)])
	}
	h.calls.tunWrite += io.during(t, func() { n, err = h.tun.WriteBatch(h.inner, room) })
	if n != len(h.inner) || err != nil {
		t.Fatalf("TUN WriteBatch = %d of %d, %v", n, len(h.inner), err)
	}
	return true
}

// callsPair makes two gateways joined by a cable, with ESP in UDP between them.
func callsPair(t *testing.T, segments bool) (h [2]*callsHost, ns [2]*Namespace) {
	t.Helper()
	needTUN(t)
	a, b := twoHosts(t)
	ns = [2]*Namespace{a, b}
	key := bytes.Repeat([]byte{7}, 20)
	suite := esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}
	for i := range h {
		c := &callsHost{sock: listenUDP(t, ns[i], any4), bufs: buffers(128, 2048), sizes: make([]int, 128), own: batch(128, 2048)}
		in(t, ns[i], func() error {
			queues, err := openTUNWith("pt0", 1400, 1, segments, allOffloads)
			if err == nil {
				c.tun = queues[0]
			}
			return err
		})
		t.Cleanup(func() { c.tun.Close() })
		if !segments {
			c.sock.gso.on.Store(false)
			coalesceOff(t, c.sock)
		}
		addAddr(t, ns[i], "pt0", fmt.Sprintf("10.9.0.%d/24", i+1))
		// Longer than what TCP has under way at most: nothing is lost, and no count hangs on
		// how the loss was mended.
		in(t, ns[i], func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ifr, err := unix.NewIfreq("pt0")
			if err == nil {
				ifr.SetUint32(20000)
				err = unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, ifr)
			}
			return err
		})
		var err error
		sa := func(dir esp.Direction, spi uint32) *esp.SA {
			return &esp.SA{SPI: spi, Dir: dir, Suite: suite, EncrKey: bytes.Clone(key), ReplayWindow: 64}
		}
		if c.out, err = esp.NewOutbound(sa(esp.Out, uint32(0x1000+i)), 1); err != nil {
			t.Fatal(err)
		}
		if c.in, err = esp.NewInbound(sa(esp.In, uint32(0x1000+1-i)), 1); err != nil {
			t.Fatal(err)
		}
		h[i] = c
	}
	for i := range h {
		h[i].peer = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 2-i)), h[1-i].sock.LocalPort())
	}
	return h, ns
}

// callsForTCP carries octets of one TCP stream from the first gateway to the second and
// returns the calls that each has made.
func callsForTCP(t *testing.T, segments bool, octets int) [2]callsWays {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	io := openThreadIO(t)
	h, ns := callsPair(t, segments)
	if f, s := h[0].tun.features, h[1].sock.features(); segments && !(f.TSO4 && s.Segment && s.Coalesce) {
		t.Skipf("skipped: the kernel has not all of it: the TUN device %v, the socket %v", f, s)
	}
	pump := func() bool {
		moved := false
		for i := range h {
			moved = h[i].takeOut(t, io) || moved
			moved = h[1-i].takeIn(t, io) || moved
		}
		return moved
	}
	// The buffers hold all of it, so that neither end waits for a program of its own.
	var l *net.TCPListener
	addr := &net.TCPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 4000}
	in(t, ns[1], func() (err error) { l, err = net.ListenTCP("tcp4", addr); return err })
	defer l.Close()
	callsBuffer(t, l, unix.SO_RCVBUFFORCE, 8*octets)
	dialed := make(chan *net.TCPConn, 1)
	go ns[0].Do(func() error {
		c, err := net.DialTCP("tcp4", nil, addr)
		if err != nil {
			t.Error(err)
		}
		dialed <- c
		return nil
	})
	var from, to *net.TCPConn
	end := time.Now().Add(30 * time.Second)
	for from == nil || to == nil {
		pump()
		select {
		case from = <-dialed:
			if from == nil {
				t.FailNow()
			}
			defer from.Close()
		default:
		}
		if to == nil {
			l.SetDeadline(time.Now().Add(time.Millisecond))
			to, _ = l.AcceptTCP()
		}
		if time.Now().After(end) {
			t.Fatal("no TCP connection in 30 s")
		}
	}
	defer to.Close()
	callsBuffer(t, from, unix.SO_SNDBUFFORCE, 8*octets)
	for pump() {
	}
	for i := range h {
		h[i].calls = callsWays{}
		h[i].sock.intercept = func(send bool, _ []mmsghdr) unix.Errno {
			if send {
				h[i].calls.send++
			} else {
				h[i].calls.receive++
			}
			return 0
		}
	}
	from.SetWriteDeadline(end)
	if n, err := from.Write(make([]byte, octets)); n != octets || err != nil {
		t.Fatalf("the sender's buffer took %d of %d octets: %v", n, octets, err)
	}
	for arrived := 0; arrived < octets; {
		if !pump() {
			time.Sleep(50 * time.Microsecond)
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d octets have arrived in 30 s", arrived, octets)
		}
		raw, err := to.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { arrived, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for pump() {
	}
	for i := range h {
		if n := h[i].tun.Dropped(); n != 0 {
			t.Errorf("%d packets were dropped", n)
		}
	}
	return [2]callsWays{h[0].calls, h[1].calls}
}

// callsBuffer makes a socket's buffer larger than a limit of the system allows.
func callsBuffer(t *testing.T, c syscall.Conn, option, octets int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, octets) })
	if err != nil || refused != nil {
		t.Fatalf("a buffer of %d octets: %v, %v", octets, err, refused)
	}
}

// The budgets, in system calls for 10^6 octets of TCP payload in packets of 1400 octets.
// They cover the TUN device and the socket of one gateway, and the way back of the
// acknowledgements; what the Go runtime calls to wait is not among them. About 60 are made,
// 130 where super-packets are torn.
const (
	callsBudgetSender   = 100
	callsBudgetReceiver = 100
)

// A megabyte in large packets takes a bounded number of system calls, because many packets
// go with each. One stream is driven by one thread step by step, so the counts hardly
// depend on the machine's speed.
func TestSystemCallsPerMegabyteOfBulk(t *testing.T) {
	const octets = 8 << 20
	perMB := func(w callsWays) float64 { return float64(w.sum()) / (octets / 1e6) }
	for _, segments := range []bool{true, false} {
		name := map[bool]string{true: "segments", false: "plain fallback"}[segments]
		t.Run(name, func(t *testing.T) {
			ways := callsForTCP(t, segments, octets)
			for i, side := range []struct {
				name   string
				budget float64
			}{{"sender", callsBudgetSender}, {"receiver", callsBudgetReceiver}} {
				calls := perMB(ways[i])
				t.Logf("%s: the %s makes %.1f system calls per MB: %v", name, side.name, calls, ways[i])
				if segments && calls > side.budget {
					t.Errorf("the %s makes %.1f system calls per MB, the budget is %.0f: batches are smaller than they could be", side.name, calls, side.budget)
				}
				if !segments && calls < 500 {
					t.Errorf("%.1f system calls per MB without segments, where each of 740 packets is a call on the TUN device: the count misses some", calls)
				}
			}
		})
	}
}
