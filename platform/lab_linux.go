package platform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// labEnv tells a process that it was started by ReexecForLab.
const labEnv = "POSTERN_LAB"

// LabPrivileged tells whether this process may make network namespaces; if not,
// ReexecForLab may help.
func LabPrivileged() bool {
	ns, err := NewNamespace()
	if err != nil {
		return false
	}
	_ = ns.Close()
	return true
}

// ReexecForLab runs this program again with the arguments, as root of a user namespace
// of its own, in a network namespace of its own; it needs no privilege. It returns the
// exit status. Where user namespaces are forbidden the error says what to do.
func ReexecForLab(args []string) (int, error) {
	if os.Getenv(labEnv) != "" {
		return 1, labForbidden(errors.New("inside the new user namespace the kernel still refuses network namespaces"))
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), labEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, labForbidden(err)
	}
	return 0, nil
}

func labForbidden(err error) error {
	return &OpError{
		Op: "start in", Object: "a user namespace of its own", Err: err,
		Hint: "run as root, or allow it: sysctl -w kernel.unprivileged_userns_clone=1 (Debian), " +
			"kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces=1000; " +
			"in a container: docker run --privileged",
	}
}

// Lab makes hosts out of network namespaces. It needs what LabPrivileged tells.
type Lab struct{ hosts []*LabHost }

// NewLab returns a lab without hosts.
func NewLab() *Lab { return &Lab{} }

// LabHost is a host of a lab: a network namespace.
type LabHost struct {
	name string
	ns   *Namespace
}

// Host makes a host whose loopback is up.
func (l *Lab) Host(name string) (*LabHost, error) {
	ns, err := NewNamespace()
	if err != nil {
		return nil, labForbidden(err)
	}
	h := &LabHost{name, ns}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Close lets go of the hosts; each is gone with its last process.
func (l *Lab) Close() error {
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.ns.Close())
	}
	l.hosts = nil
	return errors.Join(errs...)
}

// Connect lays a cable between two hosts: an interface on each, with its address, up.
func (l *Lab) Connect(a *LabHost, aName string, aAddr netip.Prefix, b *LabHost, bName string, bAddr netip.Prefix) error {
	err := a.ns.Netlink(func(nl *Netlink) error {
		return control(b.ns.f, func(fd int) error { return nl.AddVeth(aName, -1, bName, fd) })
	})
	return errors.Join(err, a.setUp(aName, aAddr), b.setUp(bName, bAddr))
}

func (h *LabHost) setUp(name string, addr netip.Prefix) error {
	return h.ns.Netlink(func(nl *Netlink) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		a := Addr{Index: link.Index, Prefix: addr}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return errors.Join(nl.AddAddr(a), nl.SetLinkUp(link.Index, true))
	})
}

// Route sends what is for dst to the neighbour via.
func (h *LabHost) Route(dst netip.Prefix, via netip.Addr) error {
	return h.ns.Netlink(func(nl *Netlink) error {
		return nl.ReplaceRoute(Route{
			Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Dst: dst, Gateway: via,
		})
	})
}

// Forward makes the host forward IPv4, and IPv6 where the kernel has it.
func (h *LabHost) Forward() error {
	return h.ns.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return &OpError{Op: "switch on", Object: "forwarding on " + h.name, Err: err,
				Hint: "in a container, /proc/sys must be writable: docker run --privileged"}
		}
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0)
		return nil
	})
}

// Start starts a program on the host. It is killed when this process dies, or rather the
// thread that starts it: a caller that locked its thread keeps it for as long.
func (h *LabHost) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return h.ns.Do(cmd.Start)
}

// Listen opens a TCP listener on the host.
func (h *LabHost) Listen(addr netip.AddrPort) (l *net.TCPListener, err error) {
	err = h.ns.Do(func() error {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return l, err
}

// Dial connects from the host by TCP.
func (h *LabHost) Dial(addr netip.AddrPort, timeout time.Duration) (c net.Conn, err error) {
	err = h.ns.Do(func() error {
		c, err = net.DialTimeout("tcp", addr.String(), timeout)
		return err
	})
	return c, err
}

// Capture returns what passes an interface in both directions, from now on.
func (h *LabHost) Capture(device string) (*Capture, error) {
	index := 0
	err := h.ns.Netlink(func(nl *Netlink) error {
		link, err := nl.LinkByName(device)
		index = link.Index
		return err
	})
	if err != nil {
		return nil, err
	}
	var c *Capture
	err = h.ns.Do(func() error {
		c, err = openCapture(device, index)
		return err
	})
	return c, err
}

// Capture is a running capture: an AF_PACKET socket. One goroutine may call Next.
type Capture struct {
	device string
	f      *os.File
	rc     syscall.RawConn
	closed atomic.Bool
}

// captureBuffer holds what arrives while the reader does something else, in octets.
const captureBuffer = 8 << 20

func openCapture(device string, index int) (*Capture, error) {
	failed := func(err error) (*Capture, error) {
		return nil, &OpError{Op: "capture on", Object: device, Err: err}
	}
	// Protocol 0 receives nothing until bind, so no packet of another interface comes in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return failed(err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkPort(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		unix.Close(fd)
		return failed(err)
	}
	c := &Capture{device: device, f: os.NewFile(uintptr(fd), "capture on "+device)}
	if c.rc, err = c.f.SyscallConn(); err != nil {
		c.f.Close()
		return failed(err)
	}
	return c, nil
}

// Next waits for a frame and copies what is behind its link header to buf; it returns
// the EtherType and the length. After Close the error wraps os.ErrClosed.
func (c *Capture) Next(buf []byte) (etherType uint16, n int, err error) {
	var from unix.Sockaddr
	waitErr := c.rc.Read(func(fd uintptr) bool {
		err = ignoringEINTR(func() (err error) {
			n, from, err = unix.Recvfrom(int(fd), buf, 0)
			return err
		})
		return err != unix.EAGAIN
	})
	if c.closed.Load() {
		err = os.ErrClosed
	}
	if err = errors.Join(waitErr, err); err != nil {
		return 0, 0, &OpError{Op: "capture on", Object: c.device, Err: err}
	}
	sa, ok := from.(*unix.SockaddrLinklayer)
	if !ok {
		return 0, 0, &OpError{Op: "capture on", Object: c.device, Err: fmt.Errorf("a frame without an address: %T", from)}
	}
	return networkPort(sa.Protocol), n, nil
}

// Lost returns how many frames the kernel dropped since the last call because the
// reader was too slow.
func (c *Capture) Lost() (int, error) {
	lost := 0
	err := control(c.f, func(fd int) error {
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			lost = int(st.Drops)
		}
		return err
	})
	if err != nil {
		err = &OpError{Op: "count the losses of the capture on", Object: c.device, Err: err}
	}
	return lost, err
}

// Close ends the capture; a Next returns.
func (c *Capture) Close() error {
	c.closed.Store(true)
	return c.f.Close()
}
