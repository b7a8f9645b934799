package engine

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"postern/engine/log"
	"postern/esp"
	"postern/esp/aggfrag"
	"postern/ike"
)

// IP-TFS (RFC 9347) on the way out. The workers put packets into the queue of a stream; the pacer,
// one goroutine for all streams, sends them in packets of one size at times that do not
// depend on what is queued (pacer.go).
//
// A stream is that of a child with one peer and outlives its SAs: new keys continue the queue and the rate.

// hideStream as outSA.hide says that packets go into the SA's stream.
const hideStream = 0xffff

// stream is the sending end of AGGFRAG payloads.
type stream struct {
	pack *aggfrag.Packer
	ctl  *aggfrag.Control
	d    *datapath

	// What it was made of.
	hide        ike.Hiding
	agg         ike.AggFrag
	conn, child string
	local       []esp.Selector
	remote      []esp.Selector

	report bool // congestion information is sent
	most   int  // octets of a payload that buffers have room for

	gone    atomic.Bool   // no SA is left
	asked   atomic.Bool   // IPTFSAggregate: the pacer knows that something is queued
	stopped atomic.Bool   // by the circuit breaker
	newest  atomic.Uint32 // number of the newest unpacker that has got something

	sa *outSA // that sends, under the pacer's mu; nil: none is in use yet

	// The pacer's.
	next   time.Duration // when the next packets are due; 0: when there is something to send
	grid   time.Duration // next without what chance has added
	tick   time.Duration // from one grid to the next
	last   time.Duration // when the last ones left
	before *outSA        // through which
	path   *outerPath    // of it
	size   int           // octets of a payload
	big    uint64        // packets that were too big, of which the counter knows
	toldAt time.Duration // when it was last looked whether to complain of losses
}

// Limits of streams, beside board.Profile.Streams.
const (
	// queuePart is how much a stream may queue, in octets for each of Profile.Queue.
	queuePart = 1 << 10
	// longestInner is the longest packet that is put together: jumbo frames of a peer's network.
	longestInner = 9216
	// shortestPayload is the least that makes sense.
	shortestPayload = 64
	// idleReports is how many packets a second report on losses to a peer that asks for it, while
	// there is nothing else to send.
	idleReports = 10
	// leastRate is what congestion control never goes below, in packets per second.
	leastRate = 1
)

var (
	errStreams = errors.New("there is no room for another child with iptfs: choose a larger board, or use iptfs for fewer children")
	errPayload = errors.New("iptfs_size is too small for the cipher")
	// Its packets are made ahead of time and alone, and would leave without AH.
	errNestedStream = errors.New("a policy has AH go around ESP to this peer, which IP-TFS cannot: take iptfs out, or the policy")
)

// newStream makes the stream of an outbound SA.
func (l *ikeLoop) newStream(c *ike.ChildSA, path *outerPath) (*stream, error) {
	p := l.d.pacer
	s := &stream{
		d: l.d, hide: c.Hiding, agg: c.AggFrag, conn: c.Conn, child: c.Child, local: c.LocalTS, remote: c.RemoteTS,
		report: c.AggFrag.PeerReports || c.Hiding.Mode != ike.IPTFSAggregate,
		most:   l.d.pool.size - headRoom - esp.TailRoom,
	}
	size := s.payload(c.Suite, path)
	if size < shortestPayload {
		return nil, errPayload
	}
	if !p.room() {
		return nil, errStreams
	}
	r := aggfrag.Rate{Max: idleReports, Size: size, Min: leastRate}
	if s.hide.Mode != ike.IPTFSAggregate {
		r.Max, r.Adapt = float64(s.hide.Rate)/float64(8*s.outer(int(path.mtu))), s.hide.Mode == ike.IPTFSCongestion
	}
	if s.hide.Mode == ike.IPTFSConstant && s.hide.TripLoss > 0 {
		r.TripLoss, r.TripAfter = uint32(100/s.hide.TripLoss), s.hide.TripTime
	}
	s.pack = aggfrag.NewPacker(l.d.queue*queuePart, s.hide.NoFrags || s.agg.PeerNoFrags)
	s.ctl = aggfrag.NewControl(r, l.d.clock())
	p.add(s)
	l.log.Log(log.Child, log.Info, "IP-TFS is in use", log.Str("conn", c.Conn), log.Str("child", c.Child),
		log.Int("packet", s.outer(int(path.mtu))), log.Int("payload", size), log.Int("rate", int(s.hide.Rate)))
	return s, nil
}

// outer returns the length of the stream's packets with their IP header, along a path that carries mtu
// octets; 0: nobody knows.
func (s *stream) outer(mtu int) int {
	n := pathMTU
	if s.hide.Size > 0 {
		n = s.hide.Size
	}
	if mtu > 0 {
		n = min(n, mtu)
	}
	return n
}

// payload returns the length of the AGGFRAG payloads along a path.
func (s *stream) payload(suite esp.Suite, path *outerPath) int {
	v4, encap := path.remote.Addr().Unmap().Is4(), path.remote.Port() != 0
	space := s.outer(int(path.mtu)) - 40
	if v4 {
		space += 20
	}
	if encap {
		space -= 8
	}
	return min(suite.MaxInner(space), s.most)
}

// joinStream gives a new outbound SA its stream: that of the SA whose place it takes, or a new
// one. It is used from useStream on.
func (l *ikeLoop) joinStream(c *ike.ChildSA, sa *outSA) (err error) {
	if !c.AggFrag.On {
		if c.Hiding.IPTFS != ike.IPTFSNo {
			l.log.Log(log.Child, log.Warn, "IP-TFS is not in use, the peer does not agree to it: sizes and times of packets tell of the traffic; write iptfs = \"require\" to have it or nothing",
				log.Str("conn", c.Conn), log.Str("child", c.Child))
		}
		return nil
	}
	if sa.path.Load().nested {
		return errNestedStream
	}
	for _, s := range l.d.pacer.list() {
		if s.conn == c.Conn && s.child == c.Child && s.hide == c.Hiding && s.agg == c.AggFrag &&
			slices.Equal(s.local, c.LocalTS) && slices.Equal(s.remote, c.RemoteTS) {
			sa.stream = s
			break
		}
	}
	if sa.stream == nil {
		if sa.stream, err = l.newStream(c, sa.path.Load()); err != nil {
			return err
		}
	}
	sa.hide = hideStream
	if slot := l.d.sad.slot(sa.inbound); slot != nil {
		if in := slot.in.Load(); in != nil && in.unpacker != nil {
			in.unpacker.stream.Store(sa.stream)
		}
	}
	return nil
}

// useStream has sa's stream go on through sa.
func (l *ikeLoop) useStream(sa *outSA) {
	if s := sa.stream; s != nil {
		l.d.pacer.use(s, sa)
	}
}

// leaveStream ends the use of an outbound SA that is in the SAD no more. An older one goes on, if there
// is one.
func (l *ikeLoop) leaveStream(sa *outSA) {
	s := sa.stream
	if s == nil {
		return
	}
	var other *outSA
	for i := range l.d.sad.slots {
		if o := l.d.sad.slots[i].out; o != nil && o != sa && o.stream == s {
			if other = o; !o.standby {
				break
			}
		}
	}
	l.d.pacer.leave(s, sa, other)
}

// feed queues a packet in the stream of its SA.
func (o *outbound) feed(p *outPacket) {
	s, d := p.sa.stream, o.d
	if s.gone.Load() || s.stopped.Load() {
		d.counts.inc(cOutStreamStopped)
		return
	}
	if err := s.pack.Put(p.buf[p.off : p.off+p.n]); err != nil {
		if err == aggfrag.ErrFull {
			d.counts.inc(cOutStreamFull)
		} else {
			d.counts.inc(cOutMalformed)
		}
		return
	}
	o.packets++
	o.octets += uint64(p.n)
	if p.sa.mixed.Load() {
		o.tally.add(p.pol.hits, uint64(p.n), (*hits).out)
	}
	if s.hide.Mode == ike.IPTFSAggregate && s.asked.CompareAndSwap(false, true) {
		d.pacer.kick()
	}
}

// burst returns how many packets leave at once, and how long it is to the next ones. What is
// faster than the pacer can sleep leaves in bursts of one size: their times say nothing, either.
func (s *stream) burst(most int) (n int, tick time.Duration) {
	interval := s.ctl.Interval()
	n = min(int((leastTick+interval-1)/interval), most)
	return n, time.Duration(n) * interval
}

// follow sets when the next packets are due after those that left at now, which were due at
// s.next. What is missed is not made up for: bursts would tell of it. It returns the time from one
// to the next if something was missed, and otherwise 0.
func (s *stream) follow(now time.Duration, most int) (tick time.Duration) {
	s.last = now
	if s.hide.Mode == ike.IPTFSAggregate {
		if s.next = 0; s.report {
			s.next = now + s.ctl.Interval()
		}
		return 0
	}
	n, tick := s.burst(most)
	s.tick = tick
	if s.grid += tick; s.grid > now {
		tick = 0
	} else {
		missed := (now-s.grid)/tick + 1
		s.grid += missed * tick
		s.d.counts.add(cOutStreamLate, uint64(int(missed)*n))
	}
	s.next = s.grid + s.dither()
	return tick
}

// dither returns by how much packets leave after their time in the grid. How busy a processor is
// shows in how many microseconds late it is, and what is always on time would show that. Chance that is a
// hundred times larger hides it; that the times are those of chance is known anyway.
func (s *stream) dither() time.Duration {
	return time.Duration(s.d.pacer.random(int64(s.tick/2) + 1))
}

// hasten has packets leave earlier if the rate has risen since their time was set.
func (s *stream) hasten(most int) {
	if _, tick := s.burst(most); s.last != 0 && tick < s.tick {
		s.tick, s.grid = tick, min(s.grid, s.last+tick)
		s.next = min(s.next, s.grid+s.dither())
	}
}

// seal makes up to n packets for the time at, each in a buffer of bufs, and appends them to batch.
func (s *stream) seal(sa *outSA, n int, at time.Duration, bufs [][]byte, batch []esp.Datagram) []esp.Datagram {
	d := s.d
	if path := sa.path.Load(); sa != s.before || path != s.path {
		if sa != s.before {
			s.pack.Restart() // a packet is not cut over two SAs
		}
		s.before, s.path = sa, path
		s.size = s.payload(sa.suite, path)
	}
	to := s.path.datagram()
	for i := range n {
		if packets, _ := s.pack.Queued(); packets == 0 && i > 0 && s.hide.Mode == ike.IPTFSAggregate {
			break
		}
		first, granted := sa.out.Reserve(1, s.size)
		if granted == 0 {
			d.refused(sa, at)
			break
		}
		var h aggfrag.Header
		if s.report {
			s.ctl.Out(at, &h)
		}
		inner := s.pack.Fill(bufs[i][headRoom:headRoom+s.size], &h)
		size := s.size
		if s.hide.Mode == ike.IPTFSAggregate {
			size = h.Len() + inner
		}
		start, end, err := sa.out.SealAt(0, first, bufs[i], headRoom, size, aggfrag.NextHeader)
		if err != nil { // deleted meanwhile
			break
		}
		to.Buf, to.N = bufs[i][start:end], end-start
		batch = append(batch, to)
		d.counts.inc(cOutStream)
		if inner == 0 {
			d.counts.inc(cOutStreamPad)
		} else {
			d.turns.carried(sa, inner, at)
		}
	}
	if big := s.pack.Oversized(); big != s.big {
		d.counts.add(cOutStreamBig, big-s.big)
		s.big = big
	}
	if sa.out.Due() {
		sa.limits.reached(d, sa.inbound, false, at)
	}
	return batch
}

// watch stops the stream if its circuit breaker has tripped, and complains of losses on a path that is
// meant to have none (RFC 9347 section 2.4.1).
func (s *stream) watch(now time.Duration) {
	if s.ctl.Tripped() && !s.stopped.Swap(true) {
		s.d.log.Log(log.Child, log.Error, "IP-TFS is stopped: the path has lost too much for too long; give it more bandwidth or lower iptfs_rate, then terminate and initiate the child",
			log.Str("conn", s.conn), log.Str("child", s.child), log.Int("loss_percent", s.hide.TripLoss))
	}
	if s.hide.Mode != ike.IPTFSConstant || now-s.toldAt < noteInterval {
		return
	}
	s.toldAt = now
	if p := s.ctl.Status().LossPeer; p != 0 && p <= 100 {
		s.d.log.Log(log.Child, log.Warn, "the path loses packets of IP-TFS: give it the bandwidth of iptfs_rate, or lower that",
			log.Str("conn", s.conn), log.Str("child", s.child), log.Int("loss_percent", int(100/p)))
	}
}

// begin sets when a stream that has sent nothing yet begins, at a time of chance within a tick, so that streams
// do not leave all at once.
func (s *stream) begin(now time.Duration) {
	if s.next != 0 || s.hide.Mode == ike.IPTFSAggregate && !s.report {
		return
	}
	s.next = now + 1 + time.Duration(s.d.pacer.random(int64(min(s.ctl.Interval(), time.Second))))
	s.grid = s.next
}

// countsFor tells whether what has come to the unpacker with that number is to be reported: numbers of an SA before
// the newest would be mixed up with those of the newest.
func (s *stream) countsFor(number uint32) bool {
	for {
		newest := s.newest.Load()
		switch {
		case number < newest:
			return false
		case number == newest:
			return true
		case s.newest.CompareAndSwap(newest, number):
			s.ctl.Rekeyed()
			return true
		}
	}
}
