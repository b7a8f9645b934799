package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"postern/esp"
)

func listenGroup(t testing.TB, ns *Namespace, addr netip.AddrPort, n int) []*Socket {
	t.Helper()
	var group []*Socket
	in(t, ns, func() (err error) { group, err = ListenUDPGroup(addr, n); return err })
	t.Cleanup(func() {
		for _, s := range group {
			s.Close()
		}
	})
	return group
}

// espPacket is a datagram that begins with w and names itself behind it.
func espPacket(w uint32, number, size int) string {
	b := binary.BigEndian.AppendUint32(nil, w)
	return string(append(b, text(number, size-4)...))
}

// silent fails the test if a datagram waits at the socket.
func silent(t *testing.T, s *Socket, what string) {
	t.Helper()
	s.file.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	defer s.file.SetReadDeadline(time.Time{})
	d := batch(1, 2048)
	if n, err := s.ReadBatch(d); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %d more datagrams, %v, the first %q", what, n, err, d[0].Buf[:min(d[0].N, 16)])
	}
}

func TestUDPGroupIsSteeredBySPI(t *testing.T) {
	t.Parallel()
	a, b := twoHosts(t)
	for _, c := range []struct {
		any netip.AddrPort
		to  string
	}{{any4, "192.0.2.2"}, {any6, "2001:db8::2"}} {
		for _, n := range []int{1, 2, 3, 12} {
			for _, joined := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/joined=%v", c.to, n, joined), func(t *testing.T) {
					group := listenGroup(t, b, c.any, n)
					if len(group) != n {
						t.Fatalf("%d sockets, want %d", len(group), n)
					}
					for i, s := range group {
						if s.LocalPort() != group[0].LocalPort() {
							t.Errorf("socket %d has port %d, the first %d", i, s.LocalPort(), group[0].LocalPort())
						}
						if strings.Contains(s.Features(), "SPI-steering") != (n > 1) {
							t.Errorf("features of socket %d of %d: %q", i, n, s.Features())
						}
						if !joined {
							coalesceOff(t, s)
						}
					}
					to := netip.AddrPortFrom(netip.MustParseAddr(c.to), group[0].LocalPort())
					want := make([][]string, n)
					// The hash of the addresses must not matter, so there are several sources.
					for source := range 4 {
						from := listenUDP(t, a, c.any)
						var d []esp.Datagram
						send := func(socket int, b string) {
							want[socket] = append(want[socket], b)
							d = append(d, message("", to, 0, b))
						}
						for k, w := range []uint32{1, 2, 3, 255, 256, 0x01000000, 0x80000000, 0xfffffffe, 0xffffffff, 0xdeadbeef + uint32(source)} {
							for i := range 3 { // alike, so they may travel as one
								send(int(w%uint32(n)), espPacket(w, 100*source+10*k+i, 300+k))
							}
						}
						// In a batch of their own, or the first would be the last segment of ESP.
						mustWrite(t, from, d...)
						d = nil
						send(0, "\x00\x00\x00\x00IKE behind its marker")
						send(0, "\x00\x00\x00\x00")
						send(0, "\xff")
						send(0, "\xff\xff\xff")
						send(0, "")
						mustWrite(t, from, d...)
						for i, s := range group {
							var got []string
							for _, g := range collect(t, s, len(want[i]), 2048, 8) {
								if g.Remote.Port() != from.LocalPort() {
									t.Errorf("a datagram is from port %d, want %d", g.Remote.Port(), from.LocalPort())
								}
								got = append(got, string(g.Buf[:g.N]))
							}
							for k := range got {
								if got[k] != want[i][k] {
									t.Fatalf("datagram %d at socket %d begins with % x, want % x: not steered by the SPI, or out of order", k, i,
										got[k][:min(8, len(got[k]))], want[i][k][:min(8, len(want[i][k]))])
								}
							}
							want[i] = nil
						}
						from.Close()
					}
					for i, s := range group {
						silent(t, s, fmt.Sprint("socket ", i))
					}
				})
			}
		}
	}
}

// What one worker sends comes from the port that the peer knows, whichever socket it is.
func TestUDPGroupAnswersFromOnePort(t *testing.T) {
	ns := newNS(t)
	group, peer := listenGroup(t, ns, any4, 3), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), peer.LocalPort())
	for i, s := range group {
		mustWrite(t, s, message("", to, 0, fmt.Sprint("from ", i)))
		if d := receive(t, peer, 1, 64)[0]; d.Remote.Port() != group[0].LocalPort() {
			t.Errorf("socket %d sends from port %d, want %d", i, d.Remote.Port(), group[0].LocalPort())
		}
		err := control(s.file, func(fd int) error {
			mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
			if uint32(mark)&MarkMask != Mark {
				t.Errorf("socket %d has mark %#x, want %#x", i, mark, Mark)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// bindAs binds a socket as another program would.
func bindAs(addr netip.AddrPort, options []int) (fd int, err error) {
	fd, err = unix.Socket(int(family(addr.Addr().Is6())), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, o := range options {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 1))
	}
	if addr.Addr().Is6() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.Bind(fd, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}))
	} else {
		err = errors.Join(err, unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}))
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// Two daemons that share a port would each get a part of the datagrams.
func TestUDPPortIsNeverSharedWithOthers(t *testing.T) {
	ns := newNS(t)
	port := uint16(4500)
	for _, addr := range []string{"0.0.0.0", "127.0.0.1", "::", "::1"} {
		for _, c := range []struct {
			name    string
			options []int
		}{
			{"nothing", nil},
			{"SO_REUSEADDR", []int{unix.SO_REUSEADDR}},
			{"SO_REUSEPORT", []int{unix.SO_REUSEPORT}},
			{"both", []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT}},
		} {
			port++
			other := netip.AddrPortFrom(netip.MustParseAddr(addr), port)
			any := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
			if other.Addr().Is6() {
				any = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
			}
			in(t, ns, func() error {
				fd, err := bindAs(other, c.options)
				if err != nil {
					return err
				}
				for _, n := range []int{1, 2, 12} {
					group, err := ListenUDPGroup(any, n)
					if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another program holds the port") {
						t.Errorf("%d sockets, another program has %v with %s: %v, want EADDRINUSE and what to do", n, other, c.name, err)
					}
					for _, s := range group {
						s.Close()
					}
				}
				unix.Close(fd)
				for _, n := range []int{1, 2, 12} {
					group, err := ListenUDPGroup(any, n)
					if err != nil {
						return err
					}
					if fd, err := bindAs(other, c.options); err == nil {
						unix.Close(fd)
						t.Errorf("beside %d sockets another program got %v with %s", n, other, c.name)
					} else if !errors.Is(err, unix.EADDRINUSE) {
						t.Errorf("beside %d sockets another program with %s: %v, want EADDRINUSE", n, c.name, err)
					}
					for _, k := range []int{1, 3} {
						if _, err := ListenUDPGroup(any, k); !errors.Is(err, unix.EADDRINUSE) {
							t.Errorf("%d sockets beside our own %d: %v, want EADDRINUSE", k, n, err)
						}
					}
					for _, s := range group {
						if err := s.Close(); err != nil {
							t.Error(err)
						}
					}
				}
				return nil
			})
		}
	}
}

// withoutChown runs f on a thread that may not change owners.
func withoutChown(t *testing.T, ns *Namespace, f func() error) {
	t.Helper()
	in(t, ns, func() error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var all [2]unix.CapUserData
		if err := unix.Capget(&hdr, &all[0]); err != nil {
			return err
		}
		less := all
		less[0].Effective &^= 1 << unix.CAP_CHOWN
		if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, capArg(&hdr), capData(&less), 0); e != 0 {
			return e
		}
		err := f()
		if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, capArg(&hdr), capData(&all), 0); e != 0 {
			return e
		}
		return err
	})
}

// The port cannot be closed then, but whoever joins gets nothing that was meant for us.
func TestUDPGroupWithoutChownKeepsItsDatagrams(t *testing.T) {
	ns := newNS(t)
	var group []*Socket
	withoutChown(t, ns, func() (err error) { group, err = ListenUDPGroup(any4, 3); return err })
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), group[0].LocalPort())
	in(t, ns, func() error {
		fd, err := bindAs(netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port()), []int{unix.SO_REUSEPORT})
		if err != nil {
			return fmt.Errorf("the port is closed without the privilege, too; the comment of the group is to be changed: %w", err)
		}
		defer unix.Close(fd)
		from := listenUDP(t, ns, any4)
		for w := range uint32(30) {
			mustWrite(t, from, message("", to, 0, espPacket(w, int(w), 100)))
		}
		for i, s := range group {
			for _, d := range receive(t, s, 10, 200) {
				if w := binary.BigEndian.Uint32(d.Buf); int(w%3) != i {
					t.Errorf("socket %d got SPI %d", i, w)
				}
			}
		}
		if n, _, err := unix.Recvfrom(fd, make([]byte, 100), unix.MSG_DONTWAIT); err != unix.EAGAIN {
			t.Errorf("the other program got %d octets, %v", n, err)
		}
		return nil
	})
	for _, s := range group {
		s.Close()
	}
}

// refuseOption makes the kernel refuse a socket option of level SOL_SOCKET to this thread,
// as one that does not know it would. It cannot be undone.
func refuseOption(name int) error {
	const nr, level, option = 0, 24, 32 // in struct seccomp_data
	low := uint32(0)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		low = 4
	}
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	not := func(v uint32, jump uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: v, Jf: jump}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	filter := []unix.SockFilter{
		load(nr), not(unix.SYS_SETSOCKOPT, 5),
		load(level + low), not(unix.SOL_SOCKET, 3),
		load(option + low), not(uint32(name), 1),
		ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOPROTOOPT)),
		ret(unix.SECCOMP_RET_ALLOW),
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

func TestUDPGroupDoesWithoutWhatTheKernelLacks(t *testing.T) {
	if runtime.GOARCH == "386" {
		t.Skip("socket options go by socketcall, into which a filter cannot look")
	}
	ns := newNS(t)
	for _, c := range []struct {
		name   string
		option int
		want   int // sockets
	}{
		{"SO_REUSEPORT", unix.SO_REUSEPORT, 1},
		{"SO_ATTACH_REUSEPORT_CBPF", unix.SO_ATTACH_REUSEPORT_CBPF, 3},
	} {
		var group []*Socket
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // for ever: the thread ends with the goroutine
			done <- ns.Do(func() error {
				if err := refuseOption(c.option); err != nil {
					return err
				}
				if err := unix.SetsockoptInt(0, unix.SOL_SOCKET, c.option, 1); err != unix.ENOPROTOOPT {
					return fmt.Errorf("the filter does not work: %w", err)
				}
				var err error
				group, err = ListenUDPGroup(any4, 3)
				return err
			})
		}()
		if err := <-done; err != nil {
			t.Fatalf("without %s: %v", c.name, err)
		}
		if len(group) != c.want {
			t.Fatalf("without %s there are %d sockets, want %d", c.name, len(group), c.want)
		}
		got := make(chan string)
		for i, s := range group {
			if strings.Contains(s.Features(), "SPI-steering") {
				t.Errorf("without %s socket %d says %q", c.name, i, s.Features())
			}
			go func() {
				for {
					d := batch(4, 200)
					n, err := s.ReadBatch(d)
					if err != nil {
						return
					}
					for i := range n {
						got <- string(d[i].Buf[:d[i].N])
					}
				}
			}()
		}
		from := listenUDP(t, ns, any4)
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), group[0].LocalPort())
		seen := map[string]bool{}
		for w := range uint32(20) {
			mustWrite(t, from, message("", to, 0, espPacket(w, int(w), 100)))
			select {
			case b := <-got:
				seen[b] = true
			case <-time.After(5 * time.Second):
				t.Fatalf("without %s a datagram got lost", c.name)
			}
		}
		if len(seen) != 20 {
			t.Errorf("without %s %d of 20 datagrams arrived", c.name, len(seen))
		}
		in(t, ns, func() error {
			if fd, err := bindAs(netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port()), []int{unix.SO_REUSEPORT}); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("without %s another program can bind the port: %d, %v", c.name, fd, err)
			}
			return nil
		})
		for _, s := range group {
			s.Close()
		}
	}
}

func TestUDPGroupSocketsCloseOneByOne(t *testing.T) {
	ns := newNS(t)
	group, from := listenGroup(t, ns, any4, 3), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), group[0].LocalPort())
	for i := len(group) - 1; i >= 0; i-- {
		done := make(chan error)
		go func() {
			_, err := group[i].ReadBatch(batch(1, 64))
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		if err := group[i].Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("ReadBatch of socket %d after Close: %v, want os.ErrClosed", i, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("ReadBatch of socket %d still waits after Close", i)
		}
		if i == 0 {
			break
		}
		// IKE is always for the first, which is closed last.
		mustWrite(t, from, message("", to, 0, "\x00\x00\x00\x00IKE"))
		if d := receive(t, group[0], 1, 64)[0]; string(d.Buf[4:d.N]) != "IKE" {
			t.Errorf("with %d sockets left: %q", i, d.Buf[:d.N])
		}
	}
	if again := listenGroup(t, ns, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port()), 2); len(again) != 2 {
		t.Errorf("%d sockets of the port that was closed, want 2", len(again))
	}
}

func TestUDPGroupOfNoSizeIsRefused(t *testing.T) {
	for _, n := range []int{-1, 0, maxGroup + 1} {
		if _, err := ListenUDPGroup(any4, n); err == nil || !strings.Contains(err.Error(), "not 1 to 64") {
			t.Errorf("%d sockets: %v, want that it is out of range", n, err)
		}
	}
}
