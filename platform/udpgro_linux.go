package platform

import (
	"runtime"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// With UDP_GRO the kernel hands over datagrams that are alike as one message, and says
// the size of its segments. Each message is received into the Buf of a datagram, and what
// does not fit there into memory of our own:
//
//	      Buf of datagram i            memory of message i
//	+-----------------------+     +-----------+--------------------+
//	| the first octets      |     |  head     |  body: the rest    |
//	+-----------------------+     +-----------+--------------------+
//
// As long as no message has segments, all are where they belong and no octet is copied.
// From the first that has some, the first octets move to the end of the head, so
// that the message is in one piece; then segment after segment takes the place of the Buf
// that is its turn: the caller works on it there, and no octet is copied again. What the caller
// has no Buf for stays for the next call, which makes no system call. A message stays as a
// whole if it can: its datagrams go to the TUN device as one packet when they go in one batch,
// and each packet more costs a walk through the kernel and an acknowledgement of its TCP.
//
// The memory is what bounds the messages of one call. It is not Go's: pages that no
// message has reached take no memory of the device, and those of a socket without joined
// messages never do.
const (
	groMessages = 8        // system calls cost little beside eight packets, even on a small MIPS
	groHead     = 4096     // of Buf
	groBody     = 64 << 10 // the largest UDP datagram, and so the largest message
	groStride   = groHead + groBody
)

// ikePort is IKE's own (RFC 7296 section 2): nothing comes in bulk there.
const ikePort = 500

// gro is what a socket knows about UDP_GRO. It belongs to the reader.
type gro struct {
	on     bool
	memory []byte
	queue  [groMessages]groMessage
	next   int // queue[next:end] are not handed out, or not all of them
	end    int
}

// groMessage is a message that was received, in one piece.
type groMessage struct {
	data []byte       // what is left of it
	left int          // datagrams in data
	seg  int          // their size; the last may be shorter
	cut  bool         // of the last the end is missing
	meta esp.Datagram // addresses and traffic class of each
}

// enable asks the kernel for joined messages; without an answer, or without memory, each
// datagram comes by itself.
func (g *gro) enable(s *Socket, fd int) {
	m, err := unix.Mmap(-1, 0, groMessages*groStride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return
	}
	if unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) != nil {
		_ = unix.Munmap(m)
		return
	}
	g.on, g.memory = true, m
	// Close may come while a reader copies; when nobody has the socket, nobody reads.
	runtime.AddCleanup(s, func(m []byte) { _ = unix.Munmap(m) }, m)
}

// body returns where message i goes on when Buf is full.
func (g *gro) body(i int) []byte { return g.memory[i*groStride+groHead : (i+1)*groStride] }

// waiting tells whether there are datagrams that no Buf was left for.
func (g *gro) waiting() bool { return g.next < g.end }

// cut fills in the datagrams from the n messages that were received, and returns how many
// datagrams it filled in.
func (s *Socket) cut(d []esp.Datagram, n int) int {
	b, g := &s.rx, &s.gro
	for i := range n {
		h, m := &b.hdrs[i], &b.slots[i]
		s.finish(&d[i], h, m)
		size := int(h.n)
		if m.seg <= 0 || m.seg >= size {
			g.single(i, &d[i], size)
			continue
		}
		for k := i; k < n; k++ {
			if k > i {
				s.finish(&d[k], &b.hdrs[k], &b.slots[k])
			}
			g.push(k, &d[k], int(b.hdrs[k].n), b.slots[k].seg, b.hdrs[k].hdr.Flags&unix.MSG_TRUNC != 0)
		}
		return g.take(d, i)
	}
	return n
}

// single completes message i, one datagram of that size, where it is. N is 0 if the
// kernel had to cut it off.
func (g *gro) single(i int, d *esp.Datagram, size int) {
	switch {
	case size > len(d.Buf):
		d.N = 0
	case d.N > groHead:
		copy(d.Buf[groHead:d.N], g.body(i))
	}
}

// push puts message i in one piece and at the end of the queue.
func (g *gro) push(i int, d *esp.Datagram, size, seg int, cut bool) {
	if seg <= 0 || seg > size {
		seg = size
	}
	memory := g.memory[i*groStride : (i+1)*groStride]
	start := groHead - copy(memory[groHead-min(size, len(d.Buf), groHead):groHead], d.Buf)
	m := &g.queue[g.end]
	g.end++
	*m = groMessage{data: memory[start : start+size], left: 1, seg: seg, cut: cut, meta: *d}
	m.meta.Buf = nil
	if seg > 0 {
		m.left = (size + seg - 1) / seg
	}
}

// take hands out datagrams of the queue behind the n that d has already, and returns how many
// it has then. Of a message that does not fit whole into d nothing is handed out, unless it
// comes first: what is left of one that was begun, or one that is larger than d. Their memory
// is the queue's until the next system call.
func (g *gro) take(d []esp.Datagram, n int) int {
	for n < len(d) && g.next < g.end {
		m := &g.queue[g.next]
		if n > 0 && m.left > len(d)-n {
			break
		}
		for ; n < len(d) && m.left > 0; n++ {
			m.datagram(&d[n])
		}
		if m.left == 0 {
			g.next++
		}
	}
	if g.next == g.end {
		g.next, g.end = 0, 0
	}
	return n
}

// datagram fills in the message's next datagram. N is 0 if it is not all there, or would not
// fit its Buf.
func (m *groMessage) datagram(d *esp.Datagram) {
	piece := m.data[:min(m.seg, len(m.data))]
	m.data = m.data[len(piece):]
	m.left--
	own := d.Buf
	*d = m.meta
	d.Buf, d.N = own, 0
	if len(piece) <= len(own) && !(m.cut && m.left == 0) {
		d.Buf, d.N = piece[:len(piece):len(piece)], len(piece)
	}
}
