package platform

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// superBuffer is the longest packet that the kernel hands over: 64 KiB behind an IPv6
// header. One octet more tells that there was a longer one.
const superBuffer = ipv6Header + maxPacket + 1

// vnetReader is the state of reading with virtio headers. The next packet may be one
// that fits the caller's buffer or a super-packet, so each read goes to that buffer
// first and on into big: what fits is in its place at once.
type vnetReader struct {
	hdr  [vnetHdrSize]byte
	iov  [3]unix.Iovec
	rest superPacket // in big
	big  [superBuffer]byte
}

// vnetWriter is the state of writing with virtio headers. A packet's own header is
// copied behind the virtio header and changed there, so the caller's buffers need no
// room in front and stay as they are.
type vnetWriter struct {
	plan    groPlan
	hdr     [groHeaderSize]byte
	iov     [1 + groWindow]unix.Iovec
	base    int // of the window: index of its first packet
	size    int // of the window
	group   int // the next group to write
	apart   bool
	at      uint8 // apart: the group's next packet
	written [groWindow]bool
	order   [groWindow][]byte
}

func (t *TUN) readReadyVNet(fd uintptr) bool {
	c, v := &t.rx, t.vrx
	room := min(len(c.bufs), len(c.sizes))
	for c.n < room {
		if v.rest.more() {
			segments := v.rest.index + 1 // with the next one
			n := v.rest.segment(c.bufs[c.n][c.off:])
			if n == 0 {
				v.rest.drop()
				t.dropped.Add(1)
				continue
			}
			c.sizes[c.n] = n
			c.n++
			// What comes next is most likely as long. Torn over two batches it would be two
			// packets for the kernel at the other end, and each costs it a walk through its
			// stack and an acknowledgement.
			if !v.rest.more() && room-c.n < segments {
				return true
			}
			continue
		}
		buf := c.bufs[c.n][c.off:]
		n, errno := v.read(fd, buf)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return c.n > 0
		default:
			if c.n == 0 {
				c.err = errno
			}
			return true
		}
		switch n = v.take(n, buf); {
		case n > 0:
			c.sizes[c.n] = n
			c.n++
		case n < 0:
			t.dropped.Add(1)
		}
	}
	return true
}

// read reads one packet and returns its length, virtio header included.
func (v *vnetReader) read(fd uintptr, buf []byte) (int, unix.Errno) {
	first := min(len(buf), len(v.big))
	pointIovec(&v.iov[0], v.hdr[:])
	pointIovec(&v.iov[1], buf[:first])
	pointIovec(&v.iov[2], v.big[first:])
	return readv(fd, v.iov[:])
}

// take looks at what a read of n octets brought. It returns the length of the packet in
// buf; 0 if the packet is in rest, to be cut up; -1 if it is to be dropped.
func (v *vnetReader) take(n int, buf []byte) int {
	var h vnetHdr
	h.decode(&v.hdr)
	n -= vnetHdrSize
	if n <= 0 || n >= len(v.big) {
		return -1
	}
	if h.gso == unix.VIRTIO_NET_HDR_GSO_NONE {
		if n > len(buf) || !complete(&h, buf[:n]) {
			return -1
		}
		return n
	}
	copy(v.big[:min(n, len(buf))], buf)
	if !v.rest.parse(&h, v.big[:n]) {
		return -1
	}
	return 0
}

func (v *vnetWriter) begin() { v.base, v.size, v.group = 0, 0, 0 }

func (t *TUN) writeReadyVNet(fd uintptr) bool {
	c, v := &t.tx, t.vtx
	for {
		if v.group == v.plan.n || v.size == 0 {
			v.base += v.size
			if !v.window(c.bufs[v.base:], c.off) {
				return true
			}
		}
		switch errno := v.write(fd, c.bufs[v.base:v.base+v.size], c.off); errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.err = errno
			return true
		}
	}
}

// window plans the next window of a batch; false if nothing is left of it.
func (v *vnetWriter) window(bufs [][]byte, off int) bool {
	v.size = min(len(bufs), groWindow)
	v.group, v.apart = 0, false
	if v.size == 0 {
		return false
	}
	clear(v.written[:v.size])
	v.plan.plan(bufs[:v.size], off)
	return true
}

// write writes the next group or, if the kernel refused that, the group's next packet.
func (v *vnetWriter) write(fd uintptr, bufs [][]byte, off int) unix.Errno {
	g := &v.plan.groups[v.group]
	if g.n > 1 && !v.apart {
		errno := v.joined(fd, g, bufs, off)
		if errno == 0 {
			for i, k := g.first, 0; k < g.n; i, k = v.plan.next[i], k+1 {
				v.written[i] = true
			}
			v.group++
			return 0
		}
		if errno != unix.EINTR && errno != unix.EAGAIN {
			v.apart, v.at = true, g.first
			return 0
		}
		return errno
	}
	i := g.first
	if v.apart {
		i = v.at
	}
	clear(v.hdr[:vnetHdrSize])
	pointIovec(&v.iov[0], v.hdr[:vnetHdrSize])
	pointIovec(&v.iov[1], bufs[i][off:])
	if _, errno := writev(fd, v.iov[:2]); errno != 0 {
		return errno
	}
	v.written[i] = true
	if v.apart && i != g.last {
		v.at = v.plan.next[i]
		return 0
	}
	v.apart = false
	v.group++
	return 0
}

// joined writes a group as one packet.
func (v *vnetWriter) joined(fd uintptr, g *groGroup, bufs [][]byte, off int) unix.Errno {
	pointIovec(&v.iov[0], v.hdr[:g.header(v.hdr[:], bufs[g.first][off:])])
	for i, k := g.first, 0; k < g.n; i, k = v.plan.next[i], k+1 {
		pointIovec(&v.iov[1+k], bufs[i][off+g.hdr:])
	}
	_, errno := writev(fd, v.iov[:1+g.n])
	return errno
}

// end fills in how many packets were written, brings them to the front if there was an
// error, the one at fault behind them, and keeps nothing of the caller's.
func (v *vnetWriter) end(c *tunCall) {
	clear(v.iov[:])
	c.n = v.base
	if c.err == nil && v.size == 0 {
		return
	}
	w := c.bufs[v.base : v.base+v.size]
	failed := -1
	if c.err != nil && v.group < v.plan.n {
		failed = int(v.plan.groups[v.group].first)
		if v.apart {
			failed = int(v.at)
		}
	}
	n := 0
	for i, b := range w {
		if v.written[i] {
			v.order[n] = b
			n++
		}
	}
	c.n += n
	if failed >= 0 {
		v.order[n] = w[failed]
		n++
	}
	for i, b := range w {
		if !v.written[i] && i != failed {
			v.order[n] = b
			n++
		}
	}
	copy(w, v.order[:n])
	clear(v.order[:n])
}

func pointIovec(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}
