package engine

import (
	"math/rand/v2"
	"time"

	"postern/esp"
	"postern/ike"
)

// What is done to an outbound SA's packets, each alone, against conclusions from their sizes
// and from silence: padding behind the packet inside (RFC 4303 section 2.7) and dummy packets
// (section 2.6). Both are the sender's alone, and only in tunnel mode, where the length of
// what is inside stands there.

// padding returns the length to which the packets of an outbound SA are padded; 0: none are.
// The peer's path takes no longer ones than those that are routed here.
func (l *ikeLoop) padding(c *ike.ChildSA) uint16 {
	n, most := c.Hiding.Padding, l.longest(c)
	if n == 0 || c.Proto != esp.ESP || c.Mode != esp.Tunnel {
		return 0
	}
	if n == ike.PadMTU || n > most {
		n = most
	}
	return uint16(n)
}

// longest returns the length of the longest packet that goes through an outbound SA whole.
func (l *ikeLoop) longest(c *ike.ChildSA) int { return min(l.mtu, c.MaxPacket(pathMTU)) }

// pad fills p up to n octets, as far as its buffer has room.
func (p *outPacket) pad(n int) {
	if n = min(n, len(p.buf)-p.off-esp.TailRoom); n > p.n {
		clear(p.buf[p.off+p.n : p.off+n])
		p.n = n
	}
}

// dummies are the outbound SAs through which dummy packets leave. It is the IKE loop's.
type dummies struct {
	list []dummySA
	next time.Duration // when the first is due; 0: there is none
	buf  []byte
	// random returns a number from 0 to n-1.
	random func(n int64) int64
}

// dummySA is one of them. A dummy leaves at a time that chance chooses, on average a mean
// after the last, unless something else has left in between.
type dummySA struct {
	sa   *outSA
	mean time.Duration
	size int // of all dummies, or 0: by chance up to most
	most int
	due  time.Duration
	seq  uint64 // of the SA when it was looked at last
}

// minDummy is the length of the shortest dummy: of an IPv4 packet with the least inside.
const minDummy = 28

func newDummies(buf []byte) dummies { return dummies{buf: buf, random: rand.Int64N} }

// add has dummies leave through sa as c says.
func (y *dummies) add(c *ike.ChildSA, sa *outSA, most int, now time.Duration) {
	if c.Hiding.Dummies <= 0 || most < minDummy || c.Proto != esp.ESP || c.Mode != esp.Tunnel {
		return
	}
	s := dummySA{sa: sa, mean: c.Hiding.Dummies, size: int(sa.hide), most: most, seq: sa.out.Seq()}
	s.due = now + y.wait(s.mean)
	y.list = append(y.list, s)
	y.plan()
}

// wait returns a time from 1 ns to twice the mean.
func (y *dummies) wait(mean time.Duration) time.Duration {
	return time.Duration(1 + y.random(int64(2*mean)))
}

// drop ends the dummies of sa.
func (y *dummies) drop(sa *outSA) {
	for i := range y.list {
		if y.list[i].sa == sa {
			last := len(y.list) - 1
			y.list[i] = y.list[last]
			y.list[last] = dummySA{}
			y.list = y.list[:last]
			y.plan()
			return
		}
	}
}

// plan finds out when the first is due.
func (y *dummies) plan() {
	y.next = 0
	for i := range y.list {
		if at := y.list[i].due; y.next == 0 || at < y.next {
			y.next = at
		}
	}
}

// dummies sends those that are due.
func (l *ikeLoop) sendDummies(now time.Duration) {
	y := &l.dummies
	if y.next == 0 || now < y.next {
		return
	}
	for i := range y.list {
		s := &y.list[i]
		if now < s.due {
			continue
		}
		s.due = now + y.wait(s.mean)
		if seq := s.sa.out.Seq(); seq == s.seq && !s.sa.standby {
			n := s.size
			if n == 0 {
				n = minDummy + int(y.random(int64(s.most-minDummy+1)))
			}
			l.out.dummy(s.sa, y.buf, n, now)
		}
		s.seq = s.sa.out.Seq()
	}
	y.plan()
}

// dummy sends a dummy packet of n octets through sa, made in buf. Nobody else uses o meanwhile.
func (o *outbound) dummy(sa *outSA, buf []byte, n int, now time.Duration) {
	o.now = now
	p := &o.pkts[0]
	o.flows[0] = outFlow{}
	*p = outPacket{flow: &o.flows[0], buf: buf, off: headRoom, n: min(n, len(buf)-headRoom-esp.TailRoom), sa: sa, dummy: true}
	clear(buf[headRoom : headRoom+p.n])
	o.found = append(o.found, 0)
	o.carry()
	o.todo = o.todo[:0]
	p.dummy = false
}

// sealDummy is SealPacket for a dummy. Its outer header is what that of most packets is.
func (o *outbound) sealDummy(seq uint64, p *outPacket, to *esp.Datagram) error {
	start, end, err := p.sa.out.SealAt(o.ctx, seq, p.buf, p.off, p.n, esp.ProtoNoNext)
	if err == nil {
		to.Buf, to.N, to.DF = p.buf[start:end], end-start, true
	}
	return err
}
