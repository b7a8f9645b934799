package platform

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// The way out of a batch of datagrams:
//
//	1 pack joins those that follow each other and are alike: same addresses, same
//	  traffic class, same size, of which only the last may be shorter
//	2 writeReady sends all messages by one sendmmsg; the kernel cuts each into datagrams
//	  as late as it can, in the network card if that is able to
//	3 where a joined message is refused, its datagrams are sent one by one; if that
//	  goes well, joining was at fault, and blame concludes what to do without

// Limits of one joined message.
const (
	maxSegments = 64 // of the kernel: UDP_MAX_SEGMENTS before Linux 6.9
	// An IP packet of 64 KiB less the headers of the larger family, IPv6 with the room of
	// an extension header.
	maxJoined = 65535 - 40 - 8 - 40
)

// Headers in front of a segment, and the size of packets that every path carries, as
// Linux sees it: net.ipv4.route.min_pmtu, and RFC 8200 section 5.
const (
	udpHeaders4, surePath4 = 20 + 8, 552
	udpHeaders6, surePath6 = 40 + 8, 1280
)

// How long joining is given up after a refusal that may pass: a path of small MTU, which
// the kernel forgets after some minutes, and a lack of memory.
const (
	pathPause   = time.Minute
	memoryPause = time.Second
)

// gso is what a socket knows about UDP_SEGMENT.
type gso struct {
	on atomic.Bool
	// The largest segments to try, until that time; the zero time means any. Both belong
	// to wmu's holder.
	largest int
	until   time.Time
}

// probe asks the kernel. One that does not know the option (before Linux 4.18) would not
// see the control message either, and send the joined message as one large datagram.
func (g *gso) probe(fd int) {
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	g.on.Store(err == nil)
}

// limit returns the largest size of segments that is worth a try.
func (g *gso) limit() int {
	switch {
	case !g.on.Load():
		return 0
	case g.until.IsZero():
		return maxJoined
	case time.Now().After(g.until):
		g.until = time.Time{}
		return maxJoined
	}
	return g.largest
}

// restrict allows segments up to a size for some time.
func (g *gso) restrict(largest int, pause time.Duration) {
	if !g.until.IsZero() {
		largest = min(largest, g.largest)
	}
	g.largest, g.until = largest, time.Now().Add(pause)
}

// sendBatch is the call of a writer in flight. run is made once, since a closure for each
// call would be an allocation for each call.
type sendBatch struct {
	run   func(fd uintptr) bool
	d     []esp.Datagram
	n     int // datagrams sent
	err   unix.Errno
	iovs  []unix.Iovec // of each datagram
	hdrs  []mmsghdr    // of each message
	slots []msgSlot
	count []int // datagrams in each message
	next  int   // hdrs[next:end] are to be sent
	end   int
	alone int // datagrams in front of this one are not joined

	refusal     unix.Errno // why a joined message was refused, until its first datagram left
	refusedSize int        // and the size of its segments

	waited bool    // a deadline was set
	cut    cutting // of all the datagrams
}

// begin takes the datagrams of a call and grows the arrays to hold them.
func (b *sendBatch) begin(d []esp.Datagram) {
	b.d, b.n, b.err, b.alone, b.refusal, b.waited = d, 0, 0, 0, 0, false
	if len(b.hdrs) < len(d) {
		b.iovs = make([]unix.Iovec, len(d))
		b.hdrs = make([]mmsghdr, len(d))
		b.slots = make([]msgSlot, len(d))
		b.count = make([]int, len(d))
	}
}

// pack makes messages of the datagrams that have not been sent. Their fields were
// checked.
func (s *Socket) pack() {
	b := &s.tx
	b.next, b.end = 0, 0
	limit := s.gso.limit()
	for i := b.n; i < len(b.d); {
		n := 1
		if i >= b.alone {
			n = alike(b.d[i:], limit)
		}
		seg := 0
		if n > 1 {
			seg = b.d[i].N
		}
		iovs := b.iovs[i : i+n]
		for k := range iovs {
			d := &b.d[i+k]
			setIovec(&iovs[k], d.Buf[:d.N])
		}
		s.prepare(&b.d[i], iovs, seg, &b.hdrs[b.end], &b.slots[b.end])
		b.count[b.end] = n
		b.end++
		i += n
	}
}

// alike returns how many of the datagrams, at least one, can be joined.
func alike(d []esp.Datagram, limit int) int {
	first := &d[0]
	size := first.N
	if size == 0 || size > limit {
		return 1
	}
	most := min(len(d), maxSegments, maxJoined/size)
	n := 1
	for n < most {
		e := &d[n]
		// Where nothing is left of the last segment the kernel would not send it.
		if e.N > size || e.N == 0 || e.TOS != first.TOS || e.TTL != first.TTL || e.Remote != first.Remote || e.Local != first.Local {
			break
		}
		n++
		if e.N < size {
			break
		}
	}
	return n
}

// writeReady is called when the socket is writable; false waits again.
func (s *Socket) writeReady(fd uintptr) bool {
	b := &s.tx
	if b.cut != s.state && s.setCutting(int(fd), b.cut) != nil {
		b.err = unix.EINVAL
		return true
	}
	for b.next < b.end {
		n, errno := s.send(fd, b.hdrs[b.next:b.end])
		if n > 0 {
			s.clogged = false
			if b.refusal != 0 {
				s.blame(b.refusal, b.refusedSize)
				b.refusal = 0
			}
			for range n {
				b.n += b.count[b.next]
				b.next++
			}
		}
		if errno == unix.ENOBUFS && s.raw {
			errno = unix.EAGAIN // so the kernel calls a full send buffer of raw sockets
		}
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			if s.clogged {
				b.err = errno
				return true
			}
			if !b.waited {
				b.waited = true
				_ = s.file.SetWriteDeadline(time.Now().Add(s.patience)) // fails only after Close
			}
			return false
		default:
			if b.count[b.next] == 1 {
				b.err = errno
				return true
			}
			b.refusal, b.refusedSize = errno, b.d[b.n].N
			b.alone = b.n + b.count[b.next]
			s.pack()
		}
	}
	return true
}

// blame concludes from a joined message that was refused, while its first datagram alone
// was not.
func (s *Socket) blame(errno unix.Errno, size int) {
	headers, sure := udpHeaders4, surePath4
	if s.v6 {
		headers, sure = udpHeaders6, surePath6
	}
	switch errno {
	case unix.EINVAL, unix.EMSGSIZE:
		// Segments are never fragmented, datagrams of their own are: so the kernel refuses
		// those that are larger than the path.
		if size+headers > sure {
			s.gso.restrict(size-1, pathPause)
			return
		}
	case unix.EIO, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		// A device that does not make checksums (before Linux 6.11), or a kernel policy that
		// encrypts what leaves.
	default:
		// No memory in one piece, or a firewall that looks at the length.
		s.gso.restrict(0, memoryPause)
		return
	}
	s.gso.on.Store(false)
}

// Features names what is on at the moment, separated by spaces: UDP_SEGMENT, UDP_GRO,
// sendmmsg/recvmmsg, SPI-steering. It is "" if nothing is. Any goroutine may call it.
func (s *Socket) Features() string { return s.features().String() }

func (s *Socket) features() socketFeatures {
	return socketFeatures{Segment: s.gso.on.Load(), Coalesce: s.gro.on, Batch: !s.oneByOne.Load(), Steer: s.steered}
}
