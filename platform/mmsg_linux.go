package platform

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// mmsghdr is struct mmsghdr; Go pads it as C does on every architecture.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// Control messages of both directions: the packet information of the larger family, the
// traffic class, the hop limit, and the size of segments. On 64 bits these are 40 octets and three
// times 24.
const controlSize = 112

// msgSlot is the storage that one mmsghdr points to. The control messages come first,
// since they must be aligned.
type msgSlot struct {
	control [controlSize]byte
	name    unix.RawSockaddrInet6 // or a RawSockaddrInet4, which is smaller
	iov     [2]unix.Iovec         // of what is received
	ip      [20]byte              // raw IPv4: where the IP header goes
	seg     int                   // UDP_GRO: what the kernel joined has segments of this size
}

// msgBatch is the call of the reader in flight. run is made once, since a closure for
// each call would be an allocation for each call.
type msgBatch struct {
	run   func(fd uintptr) bool
	d     []esp.Datagram
	hdrs  []mmsghdr
	slots []msgSlot
	n     int
	err   unix.Errno
}

// begin takes the datagrams of a call and grows the arrays to hold them.
func (b *msgBatch) begin(d []esp.Datagram) {
	b.d, b.n, b.err = d, 0, 0
	if len(b.hdrs) < len(d) {
		b.hdrs = make([]mmsghdr, len(d))
		b.slots = make([]msgSlot, len(d))
	}
}

// errno is the call's error without the interface value that would be allocated for no
// error.
func (b *msgBatch) errno() error {
	if b.err == 0 {
		return nil
	}
	return b.err
}

// readReady is called when the socket is readable; false waits again.
func (s *Socket) readReady(fd uintptr) bool {
	b := &s.rx
	for i := range b.d {
		s.point(i, &b.d[i], &b.hdrs[i], &b.slots[i])
	}
	for {
		n, errno := s.receive(fd, b.hdrs[:len(b.d)])
		switch errno {
		case 0:
			b.n = n
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN,
			unix.EPROTO, unix.ENOPROTOOPT, unix.EMSGSIZE, unix.EOPNOTSUPP, unix.ENONET:
			// What an ICMP message left on the socket, read once and gone. Anybody can
			// send such a message; nothing is to be concluded from it.
		default:
			b.err = errno
			return true
		}
	}
}

func (s *Socket) receive(fd uintptr, hdrs []mmsghdr) (int, unix.Errno) {
	if s.intercept != nil {
		if errno := s.intercept(false, hdrs); errno != 0 {
			return 0, errno
		}
	}
	if !s.oneByOne.Load() {
		n, errno := recvmmsg(fd, hdrs)
		if !refusesMany(errno) {
			return n, errno
		}
		s.oneByOne.Store(true)
	}
	for i := range hdrs {
		n, errno := recvmsg(fd, &hdrs[i].hdr)
		if errno != 0 {
			if i > 0 {
				return i, 0
			}
			return 0, errno
		}
		hdrs[i].n = uint32(n)
	}
	return len(hdrs), 0
}

// refusesMany tells that the kernel does not know the call, or that a filter forbids it.
func refusesMany(errno unix.Errno) bool { return errno == unix.ENOSYS || errno == unix.EPERM }

// send returns how many messages left, and the error only if it was none.
func (s *Socket) send(fd uintptr, hdrs []mmsghdr) (int, unix.Errno) {
	if s.intercept != nil {
		if errno := s.intercept(true, hdrs); errno != 0 {
			return 0, errno
		}
	}
	if !s.oneByOne.Load() {
		n, errno := sendmmsg(fd, hdrs)
		if errno == 0 {
			return n, 0
		}
		if !refusesMany(errno) {
			return 0, errno
		}
		// EPERM is also what a firewall's verdict on the packet looks like, so it alone
		// does not end the calls for many; the plain call below tells which it was.
		if errno == unix.ENOSYS {
			s.oneByOne.Store(true)
		}
	}
	if _, errno := sendmsg(fd, &hdrs[0].hdr); errno != 0 {
		return 0, errno
	}
	return 1, 0
}

// point makes header i receive into a datagram's Buf. The kernel overwrites the lengths,
// so it is done before every call.
func (s *Socket) point(i int, d *esp.Datagram, h *mmsghdr, m *msgSlot) {
	n := 1
	switch {
	case s.gro.on:
		body := s.gro.body(i)
		setIovec(&m.iov[0], d.Buf[:min(len(d.Buf), groHead)])
		setIovec(&m.iov[1], body)
		n = 2
	case s.whole && s.v6:
		setIovec(&m.iov[0], d.Buf[min(len(d.Buf), ipv6HeaderLen):])
	case s.raw && !s.v6 && !s.whole:
		setIovec(&m.iov[0], m.ip[:])
		setIovec(&m.iov[1], d.Buf)
		n = 2
	default:
		setIovec(&m.iov[0], d.Buf)
	}
	h.hdr.Iov = &m.iov[0]
	h.hdr.SetIovlen(n)
	h.hdr.Name = (*byte)(unsafe.Pointer(&m.name))
	h.hdr.Namelen = unix.SizeofSockaddrInet6
	h.hdr.Control = &m.control[0]
	h.hdr.SetControllen(controlSize)
	h.hdr.Flags = 0
}

func setIovec(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// finish turns what the kernel wrote into the datagram's fields.
func (s *Socket) finish(d *esp.Datagram, h *mmsghdr, m *msgSlot) {
	d.N, d.TOS, d.TTL, d.Local = int(h.n), 0, 0, netip.Addr{}
	if h.hdr.Flags&unix.MSG_TRUNC != 0 {
		d.N = 0
	}
	if s.v6 {
		ip := s.zones.add(netip.AddrFrom16(m.name.Addr), m.name.Scope_id)
		d.Remote = netip.AddrPortFrom(ip, networkPort(m.name.Port))
	} else {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&m.name))
		d.Remote = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), networkPort(sa.Port))
	}
	if s.raw {
		d.Remote = netip.AddrPortFrom(d.Remote.Addr(), 0) // the kernel puts the protocol there
	}
	m.seg = 0
	s.readControl(d, m, m.control[:min(int(h.hdr.Controllen), controlSize)])
	switch d.Whole = s.whole; {
	case s.whole && s.v6:
		if d.N > 0 {
			d.N += ipv6HeaderLen
			d.PutHeader(d.Buf[:d.N], esp.ProtoAH)
		}
	case s.whole:
		if d.N > 0 {
			d.TOS = d.Buf[1]
		}
	case s.raw && !s.v6:
		stripIPv4(d, &m.ip)
	}
}

// ipv6HeaderLen is the length of the header that the kernel takes off on IPv6.
const ipv6HeaderLen = 40

// stripIPv4 takes the IP header off what a raw socket received. Its first 20 octets went
// to ip; options, which hardly anybody sends, are at the start of Buf.
func stripIPv4(d *esp.Datagram, ip *[20]byte) {
	options := int(ip[0]&0x0f)*4 - len(ip)
	n := d.N - len(ip)
	if ip[0]>>4 != 4 || options < 0 || n < options {
		d.N = 0
		return
	}
	d.TOS, d.TTL = ip[1], ip[8]
	d.N = copy(d.Buf, d.Buf[options:n])
}

// A sockaddr has its port in network order.
func networkPort(p uint16) uint16 {
	var b [2]byte
	native.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

// A control message: its length (a size_t), level, type, then the value, each message
// aligned to the word size.
const (
	cmsgHeader = unix.SizeofCmsghdr
	wordSize   = int(unsafe.Sizeof(uintptr(0)))
)

func wordAlign(n int) int { return (n + wordSize - 1) &^ (wordSize - 1) }

func (s *Socket) readControl(d *esp.Datagram, m *msgSlot, b []byte) {
	for len(b) >= cmsgHeader {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < cmsgHeader || n > len(b) {
			return
		}
		s.readOne(d, m, h.Level, h.Type, b[cmsgHeader:n])
		b = b[min(wordAlign(n), len(b)):]
	}
}

func (s *Socket) readOne(d *esp.Datagram, m *msgSlot, level, typ int32, v []byte) {
	switch {
	case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(v) >= unix.SizeofInet4Pktinfo:
		// The header's destination; in_pktinfo's other address is where to answer from
		// when that is a multicast or broadcast address.
		ip := netip.AddrFrom4([4]byte(v[8:12]))
		if ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			ip = netip.AddrFrom4([4]byte(v[4:8]))
		}
		d.Local = ip
	case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(v) >= 1:
		d.TOS = v[0] // one octet
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(v) >= unix.SizeofInet6Pktinfo:
		d.Local = s.zones.add(netip.AddrFrom16([16]byte(v[:16])), native.Uint32(v[16:]))
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(v) >= 4:
		d.TOS = uint8(native.Uint32(v)) // an int
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_HOPLIMIT && len(v) >= 4:
		d.TTL = uint8(native.Uint32(v)) // an int
	case level == unix.IPPROTO_UDP && typ == unix.UDP_GRO && len(v) >= 4:
		m.seg = int(int32(native.Uint32(v))) // an int
	}
}

// check tells whether the socket can send a datagram at all.
func (s *Socket) check(d *esp.Datagram) error {
	to := d.Remote.Addr().Unmap()
	switch {
	case !to.IsValid() || to.Is6() != s.v6 || d.Local.IsValid() && d.Local.Unmap().Is6() != s.v6:
		return &OpError{Op: "send on", Object: s.object + " to " + d.Remote.String(), Err: unix.EINVAL,
			Hint: "the addresses are not of the socket's family"}
	case d.N < 0 || d.N > len(d.Buf):
		return &OpError{Op: "send on", Object: s.object + " to " + d.Remote.String(), Err: unix.EINVAL,
			Hint: "the datagram is longer than its buffer"}
	}
	return nil
}

// prepare fills in a header to send datagrams that are alike: the first gives addresses
// and traffic class, iovs what is sent. seg is the size of the segments that the kernel
// is to cut it into, 0 for one datagram.
func (s *Socket) prepare(d *esp.Datagram, iovs []unix.Iovec, seg int, h *mmsghdr, m *msgSlot) {
	to := d.Remote.Addr().Unmap()
	port := d.Remote.Port()
	if s.raw {
		port = 0
	}
	var namelen uint32
	if s.v6 {
		m.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkPort(port), Addr: to.As16(), Scope_id: s.zones.index(to)}
		namelen = unix.SizeofSockaddrInet6
	} else {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&m.name)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkPort(port), Addr: to.As4()}
		namelen = unix.SizeofSockaddrInet4
	}
	h.hdr.Iov = &iovs[0]
	h.hdr.SetIovlen(len(iovs))
	h.hdr.Name = (*byte)(unsafe.Pointer(&m.name))
	h.hdr.Namelen = namelen
	h.hdr.Control = &m.control[0]
	h.hdr.SetControllen(s.writeControl(d, seg, m.control[:]))
	h.hdr.Flags = 0
}

// writeControl writes the traffic class and, where they are valid, the hop limit, the packet
// information and the size of segments; it returns their length.
func (s *Socket) writeControl(d *esp.Datagram, seg int, b []byte) int {
	var class [4]byte
	native.PutUint32(class[:], uint32(d.TOS))
	local := d.Local.Unmap()
	n := 0
	if s.v6 {
		n = putControl(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, class[:])
		if local.IsValid() {
			var info [unix.SizeofInet6Pktinfo]byte
			ip := local.As16()
			copy(info[:], ip[:])
			native.PutUint32(info[16:], s.zones.index(local))
			n += putControl(b[n:], unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info[:])
		}
	} else {
		n = putControl(b, unix.IPPROTO_IP, unix.IP_TOS, class[:])
		if local.IsValid() {
			var info [unix.SizeofInet4Pktinfo]byte
			ip := local.As4()
			copy(info[4:], ip[:])
			n += putControl(b[n:], unix.IPPROTO_IP, unix.IP_PKTINFO, info[:])
		}
	}
	if d.TTL != 0 {
		level, typ := int32(unix.IPPROTO_IP), int32(unix.IP_TTL)
		if s.v6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
		}
		native.PutUint32(class[:], uint32(d.TTL))
		n += putControl(b[n:], level, typ, class[:])
	}
	if seg > 0 {
		var size [2]byte
		native.PutUint16(size[:], uint16(seg))
		n += putControl(b[n:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
	return n
}

func putControl(b []byte, level, typ int32, v []byte) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(cmsgHeader + len(v))
	copy(b[cmsgHeader:], v)
	return wordAlign(cmsgHeader + len(v))
}
