package platform

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	holderEnv       = "POSTERN_TEST_HOLD_TUN"
	holderQueuesEnv = "POSTERN_TEST_HOLD_QUEUES"
)

// TestMain is also the child process that holds a TUN device until it is killed.
func TestMain(m *testing.M) {
	if name := os.Getenv(holderEnv); name != "" {
		queues, _ := strconv.Atoi(os.Getenv(holderQueuesEnv))
		tun, err := OpenTUNQueues(name, 1400, queues)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		n, err := OpenNetwork()
		if err == nil {
			err = n.Apply(tun[0].Name(), testPolicies())
		}
		fmt.Println("holding", err)
		time.Sleep(time.Minute)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// holdTUN starts a child that opens the device and routes testPolicies into it.
func holdTUN(t *testing.T, ns *Namespace, name string) *exec.Cmd {
	t.Helper()
	return holdTUNQueues(t, ns, name, 1)
}

func holdTUNQueues(t *testing.T, ns *Namespace, name string, n int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holderEnv+"="+name, fmt.Sprintf("%s=%d", holderQueuesEnv, n))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, ns, cmd.Start)
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "holding <nil>\n" {
		t.Fatalf("the child could not set up its device: %q", line)
	}
	return cmd
}

func TestTUNCarriesPacketsBothWays(t *testing.T) {
	ns := newNS(t)
	tun := openTUN(t, ns, "pt%d", 1380)
	if tun.Name() != "pt0" {
		t.Errorf("name is %q, want the kernel's choice pt0", tun.Name())
	}
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	err := ns.Netlink(func(nl *Netlink) error {
		l, err := nl.LinkByName("pt0")
		if l.MTU != 1380 || !l.Up() || l.Kind != "tun" {
			t.Errorf("link is %+v, want mtu 1380, up, kind tun", l)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var conn *net.UDPConn
	in(t, ns, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 4000})
		return err
	})
	defer conn.Close()

	peer := netip.MustParseAddrPort("10.9.0.2:5000")
	for _, s := range []string{"one", "two", "three"} {
		if _, err := conn.WriteToUDPAddrPort([]byte(s), peer); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 24+1500)
	}
	var got []string
	within(t, 5*time.Second, "read what the host sent", func() {
		for len(got) < 3 {
			n, err := tun.ReadBatch(bufs, sizes, 24)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range n {
				p := bufs[i][24 : 24+sizes[i]]
				if p[9] != 17 {
					t.Errorf("a packet that nobody sent came out of the device: % x", p)
					continue
				}
				got = append(got, string(p[28:]))
			}
		}
	})
	if s := strings.Join(got, " "); s != "one two three" {
		t.Errorf("read %q, want the three packets in their order", s)
	}

	local := netip.MustParseAddrPort("10.9.0.1:4000")
	var out [][]byte
	for _, s := range []string{"four", "five"} {
		out = append(out, append(make([]byte, 24), udp4(peer, local, s)...))
	}
	if n, err := tun.WriteBatch(out, 24); n != 2 || err != nil {
		t.Fatalf("WriteBatch = %d, %v, want 2", n, err)
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for _, want := range []string{"four", "five"} {
		var b [64]byte
		n, from, err := conn.ReadFromUDPAddrPort(b[:])
		if err != nil || string(b[:n]) != want || from != peer {
			t.Fatalf("the host received %q from %v, %v, want %q from %v", b[:n], from, err, want, peer)
		}
	}
	if n, err := tun.WriteBatch([][]byte{out[0], {24: 0xff}, out[1]}, 24); n != 1 || err == nil {
		t.Errorf("WriteBatch with a broken second packet = %d, %v, want 1 and an error", n, err)
	}
}

func TestTUNStaysSilent(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	bufs, sizes := [][]byte{make([]byte, 1500)}, make([]int, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, err := tun.ReadBatch(bufs, sizes, 0)
		if err == nil {
			t.Errorf("%d packets came out of a device that nobody sends on: % x", n, bufs[0][:sizes[0]])
		}
	}()
	time.Sleep(1500 * time.Millisecond) // the kernel's first router solicitation would come after at most 1 s
	err := ns.Netlink(func(nl *Netlink) error {
		addrs, err := nl.Addrs(true)
		for _, a := range addrs {
			if a.Index != loopbackIndex {
				t.Errorf("the kernel gave the device an address: %v", a)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	tun.Close()
	<-done
}

// The packet's source is routed elsewhere, and new interfaces filter strictly.
func TestTUNDeliversWhatReversePathFilteringWouldDrop(t *testing.T) {
	ns := newNS(t)
	in(t, ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/default/rp_filter", []byte("1"), 0)
	})
	cable(t, ns, "a0", ns, "b0")
	addAddr(t, ns, "a0", "192.0.2.1/24")
	addAddr(t, ns, "b0")
	tun := openTUN(t, ns, "pt0", 1400)
	var conn *net.UDPConn
	in(t, ns, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4000})
		return err
	})
	defer conn.Close()
	p := udp4(netip.MustParseAddrPort("192.0.2.9:5000"), netip.MustParseAddrPort("192.0.2.1:4000"), "hello")
	if _, err := tun.WriteBatch([][]byte{p}, 0); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	var b [64]byte
	if n, err := conn.Read(b[:]); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v, want the packet out of the tunnel", b[:n], err)
	}
}

func TestTUNCloseWakesReader(t *testing.T) {
	ns := newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	done := make(chan error)
	go func() {
		_, err := tun.ReadBatch([][]byte{make([]byte, 1500)}, make([]int, 1), 0)
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("ReadBatch after Close: %v, want os.ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("ReadBatch still waits after Close")
	}
	if _, err := tun.WriteBatch([][]byte{make([]byte, 20)}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WriteBatch after Close: %v, want os.ErrClosed", err)
	}
	err := ns.Netlink(func(nl *Netlink) error { _, err := nl.LinkByName("pt0"); return err })
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("the device after Close: %v, want ENODEV: it must be gone", err)
	}
}

func TestTUNTakesOverStaleDevice(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	// What another program's killed run may leave: a persistent device that nobody holds.
	in(t, ns, func() error {
		fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("pt0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	})
	tun := openTUN(t, ns, "pt0", 1300)
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	err := ns.Netlink(func(nl *Netlink) error { _, err := nl.LinkByName("pt0"); return err })
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("the device after Close: %v, want ENODEV: a device that was taken over vanishes, too", err)
	}
}

func TestTUNComesBackAfterKill(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	child := holdTUN(t, ns, "pt0")
	before := len(tunDescriptors())
	start := time.Now()
	in(t, ns, func() error {
		_, err := OpenTUN("pt0", 1400)
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another process holds this device") {
			t.Errorf("a device that another process holds: %v, want EBUSY and what to do", err)
		}
		return nil
	})
	if d := time.Since(start); d < tunBusyWait || d > tunBusyWait+3*time.Second {
		t.Errorf("gave up after %v, want about %v", d, tunBusyWait)
	}
	if n := len(tunDescriptors()); n != before {
		t.Errorf("%d descriptors of %s are open, want %d: the failures leaked some", n, tunPath, before)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	openTUN(t, ns, "pt0", 1400)
}

func TestTUNNameOfAnotherInterfaceIsRefused(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	cable(t, ns, "pt0", ns, "pt1")
	in(t, ns, func() error {
		_, err := OpenTUN("pt0", 1400)
		if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "choose another name") {
			t.Errorf("name of a veth: %v, want EEXIST and what to do", err)
		}
		return nil
	})
}

func TestTUNBadArgumentsAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-"} {
		if _, err := OpenTUN(name, 1400); err == nil || !strings.Contains(err.Error(), "no name of an interface") {
			t.Errorf("OpenTUN(%q): %v, want that it is no name", name, err)
		}
	}
	for _, mtu := range []int{-1, 0, 67, 65536} {
		if _, err := OpenTUN("pt0", mtu); err == nil || !strings.Contains(err.Error(), "mtu") {
			t.Errorf("OpenTUN with mtu %d: %v, want that it is out of range", mtu, err)
		}
	}
}

func TestTUNIsNotInherited(t *testing.T) {
	ns := newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	err := control(tun.file, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("the descriptor has no close-on-exec: a child would keep the device alive")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTUNPathDoesNotAllocate(t *testing.T) {
	ns := newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	var conn *net.UDPConn
	in(t, ns, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 4000})
		return err
	})
	defer conn.Close()
	peer, msg := netip.MustParseAddrPort("10.9.0.2:5000"), []byte("hello")
	bufs, sizes := make([][]byte, 4), make([]int, 4)
	for i := range bufs {
		bufs[i] = make([]byte, 1500)
	}
	p := udp4(peer, netip.MustParseAddrPort("10.9.0.1:4001"), "x")
	p[9] = 253 // nobody listens, nobody answers
	out := [][]byte{p}
	if n := testing.AllocsPerRun(200, func() {
		if _, err := conn.WriteToUDPAddrPort(msg, peer); err != nil {
			t.Error(err)
		}
		if _, err := tun.ReadBatch(bufs, sizes, 0); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a read allocates %v times, want 0", n)
	}
	if n := testing.AllocsPerRun(200, func() {
		if _, err := tun.WriteBatch(out, 0); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a write allocates %v times, want 0", n)
	}
}

// The runtime is not told of the calls of the data path (promptcalls_linux.go): one that waited
// would stop the whole process.
func TestDescriptorsOfTheDataPathDoNotBlock(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	var files []*os.File
	for i, vnet := range []bool{true, false} {
		var queues []*TUN
		in(t, ns, func() (err error) {
			queues, err = openTUNWith(fmt.Sprintf("pt%d", i), 1400, 2, vnet, allOffloads)
			return err
		})
		for _, q := range queues {
			defer q.Close()
			files = append(files, q.file)
		}
	}
	for i, addr := range []netip.AddrPort{any4, any6} {
		ah := listen(t, ns, func() (*Socket, error) { return ListenAH(i == 1) })
		files = append(files, listenUDP(t, ns, addr).file, listenESP(t, ns, i == 1).file, ah.file)
	}
	for _, f := range files {
		var flags int
		if err := control(f, func(fd int) (err error) {
			flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s is blocking", f.Name())
		}
	}
}
