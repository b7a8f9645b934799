package platform

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The way of a packet of the measurement:
//
//	1 Inject puts it into the device's queue through a packet socket: no address, no route
//	  and no rule is needed for that
//	2 TUN.ReadBatch, then the caller's work
//	3 Near.WriteBatch; loopback takes it to Far
//	4 Far.ReadBatch, then the caller's work
//	5 TUN.WriteBatch; the kernel takes it in and drops it, as it is for nobody

// BenchPath is all that a packet passes in a gateway, made for a measurement: a TUN device
// without address or route, and two UDP sockets that reach each other over loopback. It
// stands in a network namespace of its own where one can be had, so that nothing else on
// the machine sees it. All of it vanishes with the process, however that ends.
type BenchPath struct {
	TUN       *TUN
	Near, Far *Socket // of the sender, of the receiver

	private bool
	parts   []io.Closer
	rc      syscall.RawConn // the injector's
	once    sync.Once
	closed  error

	// One message, sent many times over.
	hdrs [injectBatch]mmsghdr
	iov  [2]unix.Iovec
	vnet [vnetHdrSize]byte
	to   unix.RawSockaddrLinklayer
	// The call in flight: how many are to be sent, how many were.
	want, sent int
	errno      unix.Errno
}

// injectBatch is how many packets one call of Inject may bring: fewer than the queue of a
// TUN device holds (500).
const injectBatch = 128

// benchDevice lets the kernel choose the number, so that no other device is in the way.
const benchDevice = "pstbench%d"

// OpenBenchPath makes the path; its device has that MTU. It needs CAP_NET_ADMIN and
// CAP_NET_RAW; the errors say what is missing.
func OpenBenchPath(mtu int) (*BenchPath, error) {
	if err := CheckPrivileges(true); err != nil {
		return nil, err
	}
	if err := checkTUNDevice("for the measurement"); err != nil {
		return nil, err
	}
	p := new(BenchPath)
	open := func() error { return p.open(mtu) }
	ns, err := NewNamespace()
	if err == nil {
		p.private, p.parts = true, append(p.parts, ns)
		err = ns.Do(open)
	} else {
		// Kernels of small routers may have no namespaces, containers not the privilege.
		err = open()
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Private tells whether the path stands in a network namespace of its own.
func (p *BenchPath) Private() bool { return p.private }

// To returns where Near reaches Far.
func (p *BenchPath) To() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Far.LocalPort())
}

func (p *BenchPath) open(mtu int) (err error) {
	if p.TUN, err = OpenTUN(benchDevice, mtu); err != nil {
		return err
	}
	p.parts = append(p.parts, p.TUN)
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if p.Near, err = ListenUDP(any4); err != nil {
		return err
	}
	p.parts = append(p.parts, p.Near)
	if p.Far, err = ListenUDP(any4); err != nil {
		return err
	}
	p.parts = append(p.parts, p.Far)
	nl, err := OpenNetlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	l, err := nl.LinkByName(p.TUN.Name())
	if err != nil {
		return err
	}
	return p.openInjector(l.Index)
}

func (p *BenchPath) openInjector(index int) error {
	// Protocol 0: the socket sends, and hears nothing, which would be paid for per packet.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		hint := ""
		if err == unix.EAFNOSUPPORT {
			hint = "the kernel has no packet sockets (CONFIG_PACKET)"
		}
		return &OpError{Op: "open", Object: "packet socket", Err: err, Hint: hint}
	}
	raw := os.NewFile(uintptr(fd), "packet socket")
	p.parts = append(p.parts, raw)
	if p.rc, err = raw.SyscallConn(); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return &OpError{Op: "set PACKET_VNET_HDR of", Object: "packet socket", Err: err}
	}
	// Not there before Linux 3.14; the queue's discipline does no harm, it only costs.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	p.to = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(index)}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&p.to.Protocol))[:], unix.ETH_P_IP)
	return nil
}

// Inject puts n times (1 to 128) the same IPv4 packet into the device's queue, as if the
// host had routed it there. A segment above 0 says that it is a TCP packet without options
// to be cut into segments of that many octets, and that its checksum holds the sum over
// the pseudo header alone. One goroutine may use it at a time.
func (p *BenchPath) Inject(pkt []byte, n, segment int) error {
	if n < 1 || n > injectBatch || len(pkt) < ipv4Header {
		return fmt.Errorf("inject: %d packets of %d octets, not 1 to %d of at least %d", n, len(pkt), injectBatch, ipv4Header)
	}
	p.vnet = [vnetHdrSize]byte{}
	if segment > 0 {
		p.vnet[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		p.vnet[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
		for i, v := range []int{ipv4Header + tcpHeader, segment, ipv4Header, 16} {
			binary.NativeEndian.PutUint16(p.vnet[2+2*i:], uint16(v))
		}
	}
	setIovec(&p.iov[0], p.vnet[:])
	setIovec(&p.iov[1], pkt)
	for i := range n {
		h := &p.hdrs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&p.to)), unix.SizeofSockaddrLinklayer
		h.Iov = &p.iov[0]
		h.SetIovlen(len(p.iov))
	}
	p.want, p.sent, p.errno = n, 0, 0
	err := p.rc.Write(p.send)
	if err == nil && p.errno != 0 {
		err = p.errno
	}
	if err != nil {
		return &OpError{Op: "inject into", Object: p.TUN.Name(), Err: err}
	}
	return nil
}

func (p *BenchPath) send(fd uintptr) bool {
	for p.sent < p.want {
		n, errno := sendmmsg(fd, p.hdrs[p.sent:p.want])
		switch errno {
		case 0:
			p.sent += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			p.errno = errno
			return true
		}
	}
	return true
}

// Close removes the device and the sockets. What waits in them returns. Any goroutine may
// call it, more than once.
func (p *BenchPath) Close() error {
	p.once.Do(func() {
		for _, c := range p.parts {
			if err := c.Close(); p.closed == nil {
				p.closed = err
			}
		}
	})
	return p.closed
}
