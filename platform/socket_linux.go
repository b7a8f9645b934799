package platform

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// The way of a datagram:
//
//	1 ReadBatch waits for one, then one recvmmsg takes all that are waiting
//	2 the control messages tell where it arrived and its traffic class
//	3 what the kernel joined is cut again (udpgro_linux.go)
//	4 the engine demultiplexes, opens, answers
//	5 WriteBatch joins what is alike (udpgso_linux.go), puts source and traffic class
//	  beside it; sendmmsg sends all

// The mark that all our sockets put on what they send: routing rules let it pass by the
// tunnel. The mask leaves the lower bits to the markers that share a router with us
// (mwan3 takes 0x3f00, pbr and others 0xff0000, traffic shapers the lowest octet).
const (
	Mark     = 0x50000000
	MarkMask = 0xff000000
)

// socketBuffer is what the sockets ask of the kernel for each direction, in octets: some
// 300 full datagrams, or 30 ms at 100 Mbit/s. The kernel charges about twice that.
const socketBuffer = 512 << 10

// maxBatch bounds the datagrams of one system call, and so the memory of a socket: some
// 250 octets for each and direction.
const maxBatch = 128

// sendPatience is how long WriteBatch waits for room in the send buffer. While it waits
// nothing is reordered and the sender behind it is slowed down, which is what TCP wants;
// but the messages of IKE wait too, and a link may be down for good.
const sendPatience = 100 * time.Millisecond

// Socket is a UDP socket, or a raw socket for ESP, of one address family. One goroutine
// may read and several may write at once; neither allocates once the largest batch was
// seen.
type Socket struct {
	object string // for errors: "UDP port 500"
	v6     bool
	raw    bool // IP protocol 50: on IPv4 the kernel delivers the IP header, too
	whole  bool // raw, for datagrams with their IP header
	icmp   bool // raw, for ICMP messages
	cuts   bool // it can be told how datagrams may be cut, see setCutting
	port   uint16
	file   *os.File
	rc     syscall.RawConn
	closed atomic.Bool
	zones  zones
	paths  *os.File // see learnPaths; nil: not needed

	member  bool // of a group, see ListenUDPGroup: it joins when it is bound
	steered bool // the SPI decides which socket of the group gets a datagram

	rx  msgBatch
	gro gro
	wmu sync.Mutex
	tx  sendBatch
	gso gso

	state cutting // how what is sent may be cut at present; it belongs to wmu's holder

	// patience is how long WriteBatch waits for room in the send buffer; clogged is set
	// when that was in vain, until something leaves again. Both belong to wmu's holder.
	patience time.Duration
	clogged  bool
	full     *OpError

	// oneByOne is set when the kernel (or its seccomp filter) refuses the calls for many
	// datagrams.
	oneByOne atomic.Bool

	// intercept is for tests: it sees every call ahead of the kernel, and what it returns
	// instead of 0 is the call's error.
	intercept func(send bool, hdrs []mmsghdr) unix.Errno
}

// ListenUDP binds to the port of addr on all addresses of its family; addr's own address
// is unspecified. Port 0 lets the kernel choose, see LocalPort.
func ListenUDP(addr netip.AddrPort) (*Socket, error) {
	if !addr.Addr().IsUnspecified() {
		return nil, &OpError{
			Op: "listen on UDP", Object: addr.String(), Err: errors.New("neither 0.0.0.0 nor :: was asked for"),
			Hint: "one socket serves all addresses of a family, and answers from the one that was asked",
		}
	}
	return listenPort(addr, false)
}

func listenPort(addr netip.AddrPort, member bool) (*Socket, error) {
	s := &Socket{v6: addr.Addr().Is6(), object: fmt.Sprintf("UDP port %d", addr.Port()), member: member}
	if s.v6 {
		s.object += " (IPv6)"
	}
	if err := s.open(unix.SOCK_DGRAM, unix.IPPROTO_UDP, addr.Port()); err != nil {
		return nil, err
	}
	return s, nil
}

// ListenESP opens a raw socket for IP protocol 50, over IPv4 or IPv6.
func ListenESP(v6 bool) (*Socket, error) {
	s := &Socket{v6: v6, raw: true, object: "raw ESP socket"}
	if v6 {
		s.object += " (IPv6)"
	}
	if err := s.open(unix.SOCK_RAW, unix.IPPROTO_ESP, 0); err != nil {
		return nil, err
	}
	return s, nil
}

// ListenAH opens a raw socket for datagrams that are whole IP packets, over IPv4 or IPv6: it
// receives those of IP protocol 51, with the IP header if IPv4, and with one made of what
// the kernel tells about it if IPv6, without its extension headers. It sends any.
func ListenAH(v6 bool) (*Socket, error) {
	s := &Socket{v6: v6, raw: true, whole: true, object: "raw AH socket"}
	if v6 {
		s.object += " (IPv6)"
	}
	if err := s.open(unix.SOCK_RAW, unix.IPPROTO_AH, 0); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Socket) open(typ, proto int, port uint16) error {
	fd, err := unix.Socket(int(family(s.v6)), typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return s.openError("open", err)
	}
	if err := s.configure(fd, port); err != nil {
		unix.Close(fd)
		return err
	}
	s.file = os.NewFile(uintptr(fd), s.object)
	if s.rc, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return s.openError("open", err)
	}
	s.rx.run, s.tx.run = s.readReady, s.writeReady
	s.patience = sendPatience
	s.full = &OpError{Op: "send on", Object: s.object, Err: unix.EAGAIN,
		Hint: "its send buffer is full: the link is down or slower than what it is asked to carry"}
	if s.raw && s.v6 && !s.whole && !s.icmp {
		s.paths = learnPaths()
	}
	if !s.raw {
		s.gso.probe(fd)
		if port != ikePort {
			s.gro.enable(s, fd)
		}
	}
	return nil
}

// ipv6HdrIncl is IPV6_HDRINCL, of Linux 4.5 and later.
const ipv6HdrIncl = 36

type sockopt struct{ level, name, value int }

// What each family's sockets are told: say where a datagram arrived and with which
// traffic class, and not set DF. IKE messages may be larger than a link; for the
// packets of ESP the engine decides, see setCutting.
var (
	options4 = []sockopt{
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		{unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
	}
	options6 = []sockopt{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
	}
)

func (s *Socket) configure(fd int, port uint16) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark); err != nil {
		return s.openError("mark the packets of", err)
	}
	options := options4
	if s.v6 {
		options = options6
	}
	for _, o := range options {
		// A raw socket has no use for V6ONLY, and older kernels refuse it.
		err := unix.SetsockoptInt(fd, o.level, o.name, o.value)
		if err != nil && (!s.raw || o.name != unix.IPV6_V6ONLY) {
			return s.openError(fmt.Sprintf("set option %d/%d of", o.level, o.name), err)
		}
	}
	if s.raw && s.v6 {
		// On IPv4 the header says it. Transport mode needs it for the header that it makes anew.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	}
	s.cuts = s.knowsCutting(fd)
	if s.whole {
		level, name := unix.IPPROTO_IP, unix.IP_HDRINCL
		if s.v6 {
			level, name = unix.IPPROTO_IPV6, ipv6HdrIncl
		}
		if err := unix.SetsockoptInt(fd, level, name, 1); err != nil {
			return s.openError("send headers on", err)
		}
	}
	// More than rmem_max needs CAP_NET_ADMIN of the first user namespace.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	if s.raw {
		return nil
	}
	if s.member {
		if err := joinGroup(fd); err != nil {
			return s.openError("share", err)
		}
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if s.v6 {
		sa = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return s.openError("bind", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return s.openError("bind", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		s.port = uint16(sa.Port)
	case *unix.SockaddrInet6:
		s.port = uint16(sa.Port)
	}
	return nil
}

func (s *Socket) openError(op string, err error) error {
	e := &OpError{Op: op, Object: s.object, Err: err}
	switch {
	case err == unix.EADDRINUSE:
		e.Hint = "another program holds the port (another IKE daemon? see: ss -lunp); stop it or configure another port"
	case err == unix.EACCES && !s.raw:
		e.Hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE"
	case err == unix.EPERM && s.raw || err == unix.EACCES:
		e.Hint = "run as root or with CAP_NET_RAW and CAP_NET_ADMIN"
	case err == unix.EPERM:
		e.Hint = "run as root or with CAP_NET_ADMIN"
	case err == unix.EAFNOSUPPORT || err == unix.EPROTONOSUPPORT || err == unix.EADDRNOTAVAIL:
		e.Hint = "the kernel lacks this protocol or has it disabled"
	}
	return e
}

// LocalPort returns the UDP port that the socket is bound to, 0 for a raw socket.
func (s *Socket) LocalPort() uint16 { return s.port }

// ReadBatch waits for a datagram, then takes as many as are waiting, at most len(d) and
// at most 128. It fills in N, Local, Remote and TOS, and on a raw socket TTL; there Buf starts with the
// ESP header. Buf may be replaced by memory of the socket, which is the caller's until the
// next call: set it anew before that. Datagrams that the kernel joined are left for the next call
// where not all of them have a Buf. A datagram that does not fit its Buf arrives with N 0. Errors that ICMP
// messages from anybody put on the socket are passed over. After Close the error wraps
// os.ErrClosed.
func (s *Socket) ReadBatch(d []esp.Datagram) (int, error) {
	if len(d) == 0 {
		return 0, nil
	}
	most := maxBatch
	if s.gro.on {
		if s.gro.waiting() && !s.closed.Load() {
			return s.gro.take(d, 0), nil
		}
		most = groMessages
	}
	b := &s.rx
	b.begin(d[:min(len(d), most)])
	err := s.rc.Read(b.run)
	b.d = nil
	if err == nil {
		err = b.errno()
	}
	if err != nil {
		return 0, s.callError("read from", err)
	}
	if s.gro.on {
		return s.cut(d, b.n), nil
	}
	for i := range b.n {
		s.finish(&d[i], &b.hdrs[i], &b.slots[i])
	}
	return b.n, nil
}

// WriteBatch sends the datagrams in their order, each from Local where that is valid and
// with the traffic class TOS, cut on its way as DF and Path say, and returns how many the kernel took before the error, if
// any; the one at fault is the next. Where the send buffer is full it waits for a tenth
// of a second; then, and until something leaves again, the error wraps EAGAIN. After
// Close the error wraps os.ErrClosed.
func (s *Socket) WriteBatch(d []esp.Datagram) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for sent := 0; sent < len(d); {
		part, c := s.alikeCut(d[sent:min(len(d), sent+maxBatch)])
		s.tx.cut = c
		n, err := s.writePart(d[sent : sent+part])
		sent += n
		if err != nil {
			return sent, err
		}
	}
	return len(d), nil
}

func (s *Socket) writePart(d []esp.Datagram) (int, error) {
	ready := len(d)
	var bad error
	for i := range d {
		if bad = s.check(&d[i]); bad != nil {
			ready = i
			break
		}
	}
	if ready == 0 {
		return 0, bad
	}
	b := &s.tx
	b.begin(d[:ready])
	s.pack()
	err := s.rc.Write(b.run)
	b.d = nil
	if b.waited {
		_ = s.file.SetWriteDeadline(time.Time{}) // fails only after Close
	}
	switch {
	case err == nil && b.err == 0:
		return b.n, bad
	case err == nil && b.err == unix.EAGAIN:
		return b.n, s.full
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.clogged = true
		return b.n, s.full
	case err == nil:
		err = b.err
	}
	s.zones.forget() // an interface may have come back with another number
	return b.n, s.callError("send on", err)
}

func (s *Socket) callError(op string, err error) error {
	if s.closed.Load() {
		err = os.ErrClosed
	}
	return &OpError{Op: op, Object: s.object, Err: err}
}

// Close closes the socket. A ReadBatch that waits returns.
func (s *Socket) Close() error {
	if s.closed.Swap(true) {
		return &OpError{Op: "close", Object: s.object, Err: os.ErrClosed}
	}
	if s.paths != nil {
		_ = s.paths.Close()
	}
	return s.file.Close()
}

// learnPaths opens a socket that makes the kernel take notice of ICMPv6 messages "packet
// too big" about ESP. IPv6 fragments at the sender alone, so without them whatever is
// larger than the path is lost; but for a raw socket that is not connected the kernel heeds
// them only if the socket wants to be told of errors. A socket that sends must not want that,
// or errors that anybody can cause stop its calls. This one neither sends nor is read: a
// filter keeps packets from it, and what errors its small buffer has no room for have been
// heeded before. Without it, on whatever fails, paths smaller than the link lose packets.
func learnPaths() *os.File {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ESP)
	if err != nil {
		return nil
	}
	refuse := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &refuse}),
		// The mark decides which route, and so which path, is meant.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	if err != nil {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "ESP path MTU socket")
}
