package engine

// The way out. One worker per queue of the TUN device does all of it for a batch of
// packets:
//
//  1. read a batch from its queue, each packet behind headroom
//  2. parse their flows: addresses, protocol, ports; a fragment without ports may have those
//     of its first one (frags.go)
//  3. find their SPD entries and SAs, in the worker's flow cache or in the SPD
//  4. no SA: wait in a bounded queue, and ask the IKE loop for one
//  5. reserve sequence numbers and a turn of each SA in the batch (turns.go)
//  6. seal them where they are, grouped by socket; what is longer than its path carries has gone
//     another way before (toobig.go)
//  7. wait for the turn, write each group in one go, and pass the turn on
//
// Steps 2 to 6 each go over the whole batch before the next: where packets of many SAs follow
// each other, the processor is asked early for the memory of each (esp/prefetch.go), so that it
// arrives for several at once, not for one after the other. To read the memory ahead of time
// instead, pass by pass, cost more than it gained.
//
// What steps 2 and 3 find out about a packet of TCP or UDP holds for those right behind it that have the same
// addresses, ports and protocol, so that the segments of one large packet are looked up once.
//
// A packet that waited takes steps 3 and 5 to 7 in the IKE loop when its SA is there. Where AH
// goes around ESP, a packet has two SAs from step 5 on (nest.go).

import (
	"errors"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"postern/engine/log"
	"postern/esp"
)

// headRoom is how many octets are free before a packet from the TUN device: what the largest
// headers need, and a multiple of what the ciphers like.
const headRoom = (esp.HeadRoomWhole + nestRoom + 15) &^ 15

// nestRoom is how much more AH around ESP needs, at most (nest.go).
const nestRoom = 16

// outbound is the state of one goroutine that seals packets. Nobody else may use it.
type outbound struct {
	d      *datapath
	via    *childDevice // whose packets these are; nil: those of the TUN device of all
	ctx    int          // its number: of the queue and the sockets that it uses, and in package esp
	bufs   [][]byte
	sizes  []int
	cache  flowCache
	groups [numSocks][]esp.Datagram
	now    time.Duration
	pause  time.Duration // after a read that failed

	pkts  []outPacket // of the batch
	flows []outFlow   // theirs: as many, and packet i uses the i-th or that of the packet before
	todo  []int       // those that have to be looked up
	found []int       // those that have an SA
	turns []turn      // of the SAs in found

	limited bool // one of these SAs has limits in packets or octets
	lanes   bool // the SPD has lanes: the DSCP is part of a flow

	path  *outerPath   // of the last packet
	empty esp.Datagram // on it

	around esp.Flow // of the ESP for whose AH the IKE loop is asked (nest.go)

	over oversize // for packets that are longer than their path carries

	packets, octets uint64 // sealed, and not yet in the counters
	tally           tally  // of SAs that serve several entries
}

// outPacket is a packet on its way out.
type outPacket struct {
	buf    []byte
	off, n int
	turn   int  // index in turns; -1: dropped
	other  bool // it has another SA than the packet before
	nest   int  // index in turns of the SA of AH around it; -1: there is none
	part   part
	sa     *outSA
	pol    *policy
	path   *outerPath // of the SA; it may move while the packet is sealed
	cut    bool       // it may be cut once it is sealed
	flow   *outFlow   // in flows
	dummy  bool
}

// outFlow is the flow of one packet or of several that follow each other, as the segments do that the
// kernel has handed over as one large one. What is found out about it is found out once.
type outFlow struct {
	esp.Flow
	key  flowKey
	hash uint32 // of key
}

// Out of line, for it is called at three places and seldom.
//
//go:noinline
func newOutbound(d *datapath, ctx int, bufs [][]byte, cache flowCache) *outbound {
	n := len(bufs)
	o := &outbound{
		d: d, ctx: ctx, bufs: bufs, sizes: make([]int, n), cache: cache, pause: readErrorPause,
		pkts: make([]outPacket, n), flows: make([]outFlow, n), todo: make([]int, 0, n), found: make([]int, 0, n), turns: make([]turn, 0, n),
		over: oversize{cut: make([]byte, d.pool.size), big: make([]bigPacket, 0, n)},
	}
	for s := range o.groups {
		if s := sockID(s); s.carriesESP() {
			o.groups[s] = make([]esp.Datagram, 0, n)
		}
	}
	o.cache.worker, o.cache.ask = ctx, o.askLane
	return o
}

// readErrorPause is the pause after a read that failed, so that an error that stays
// does not take the processor with it.
const readErrorPause = 100 * time.Millisecond

// deviceErrors is how many reads in a row may fail before the device counts as lost.
const deviceErrors = 50

// run reads and seals until the TUN device is closed, and returns nil then, or an
// error when the device is lost.
func (o *outbound) run(tun Device) error {
	failed := 0
	for {
		n, err := tun.ReadBatch(o.bufs, o.sizes, headRoom)
		if n > 0 {
			o.batch(n)
			failed = 0
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			return nil
		default:
			if failed++; failed >= deviceErrors {
				return err
			}
			time.Sleep(o.pause)
		}
	}
}

// batch takes the first n packets of bufs through steps 2 to 7.
func (o *outbound) batch(n int) {
	o.now = o.d.clock()
	o.lanes = o.d.spd.lane.Load()
	o.parse(n)
	// More than once only if an SA was replaced between the look-up and its use, or one
	// came up between the look-up and the queue.
	for range 3 {
		if len(o.todo) == 0 {
			break
		}
		o.find()
		if o.via != nil {
			o.dropLooped()
		}
		o.carry()
	}
	if len(o.todo) > 0 {
		o.d.counts.add(cOutNoSA, uint64(len(o.todo)))
	}
	if len(o.over.big) > 0 {
		o.cutBig()
	}
}

// parse does step 2, for the first n packets of bufs.
func (o *outbound) parse(n int) {
	o.todo = o.todo[:0]
	ported := o.d.spd.ported.Load()
	var last *outFlow // of the packet before, if its key was easy to see
	var key flowKey
	for i := range n {
		p, buf, n := &o.pkts[i], o.bufs[i], o.sizes[i]
		if n > len(buf)-headRoom {
			o.d.counts.inc(cOutMalformed)
			continue
		}
		pkt := buf[headRoom : headRoom+n]
		plain := plainKey(pkt, true, &key)
		if plain {
			if o.lanes {
				key.addClass(pkt)
			}
			if last != nil && last.key.is(&key) {
				p.begin(buf, headRoom, n, last)
				o.todo = append(o.todo, i)
				continue
			}
		}
		f := &o.flows[i]
		p.begin(buf, headRoom, n, f)
		if !o.read(p, ported) {
			continue
		}
		if last = f; !plain {
			last, key = nil, keyOf(&f.Flow)
			if o.lanes {
				key.addClass(pkt)
			}
		}
		f.key, f.hash = key, key.hash(o.cache.seed)
		esp.Prefetch(unsafe.Pointer(o.cache.set(f.hash)), 1)
		o.todo = append(o.todo, i)
	}
}

// begin makes p the packet buf[off:off+n]; its flow f may be yet to be read.
func (p *outPacket) begin(buf []byte, off, n int, f *outFlow) {
	p.buf, p.off, p.n, p.part, p.flow = buf, off, n, partNone, f
}

// read reads the flow of one packet. It returns false if the packet was dropped.
func (o *outbound) read(p *outPacket, ported bool) bool {
	pkt := p.buf[p.off : p.off+p.n]
	if err := esp.ParseFlow(pkt, true, &p.flow.Flow); err != nil {
		c := cOutMalformed
		if err == esp.ErrChain {
			c = cOutChain
		}
		o.d.counts.inc(c)
		return false
	}
	return !ported || !esp.MayBeFragment(pkt) || o.fragment(p)
}

// find does steps 3 and 4 for the packets in todo: those with an SA go to found, those
// that have to be looked up again stay. All are looked up in the SPD of one generation,
// so that the packets of a flow do not part.
func (o *outbound) find() {
	gen := o.d.spd.gen.Load()
	o.cache.begin(gen)
	again, found := o.todo[:0], o.found
	var last *outSA
	var flow *outFlow // that pol and sa are of
	var pol *policy
	var sa *outSA
	for _, i := range o.todo {
		p := &o.pkts[i]
		if f := p.flow; f != flow {
			pol, sa = o.cache.lookup(o.d.spd, &f.Flow, &f.key, f.hash, gen)
			flow = f
		}
		if p.part != partNone { // such a packet has its flow to itself
			var ok bool
			if pol, sa, ok = o.follow(p, pol, sa); !ok {
				continue
			}
		}
		switch {
		case sa != nil:
			p.sa, p.pol, p.other = sa, pol, sa != last
			if p.other {
				esp.Prefetch(unsafe.Pointer(sa), 1)
			}
			last = sa
			found = append(found, i)
		case !o.unprotected(i, pol, gen):
			again = append(again, i)
		}
	}
	o.todo, o.found = again, found
}

// fetchAhead is how many packets ahead the memory of an SA's cipher is fetched: so many that it arrives in
// time, and so few that it is not pushed out of the cache again.
const fetchAhead = 4

// unprotected does step 4 for packet i, which has no SA. It returns false if one may have
// come up meanwhile: the packet has to be looked up again.
func (o *outbound) unprotected(i int, pol *policy, gen uint64) (done bool) {
	d, p := o.d, &o.pkts[i]
	if !o.permitted(pol, &p.flow.Flow) {
		return true
	}
	if !pol.wait && !pol.stays() {
		d.counts.inc(cOutNoSA)
		return true
	}
	spare, dropped, ok := d.pending.push(p.buf, p.off, p.n, o.now, gen, o.via)
	if !ok {
		return false
	}
	o.bufs[i] = spare
	d.counts.inc(cOutQueued)
	if dropped {
		d.counts.inc(cOutQueueFull)
	}
	o.ask(pol, &p.flow.Flow)
	return true
}

// ask asks the IKE loop for an SA of the policy, unless that was done lately.
func (o *outbound) ask(pol *policy, f *esp.Flow) {
	if d := o.d; pol.mayAcquire(o.now) {
		d.counts.inc(cAcquire)
		if !d.acquire(pol, f) {
			d.counts.inc(cAcquireLost)
			pol.acquired.Store(0)
		}
	}
}

// permitted tells whether the policy protects; if not, the packet is dropped and
// counted under what the policy says.
func (o *outbound) permitted(pol *policy, f *esp.Flow) bool {
	d := o.d
	switch {
	case o.via == nil && (pol == nil || pol.Action == esp.Bypass) && o.cameInClear(f):
		return false
	case pol == nil:
		d.counts.inc(cOutNoPolicy)
		// The kernel greets the neighbours of every device.
		if !f.Remote.IsLinkLocalMulticast() && d.mayNote(noteNoPolicy, o.now) {
			d.log.Log(log.ESP, log.Info, "packet dropped: no policy covers it; check local_ts and remote_ts, or what else is routed into the tunnel",
				log.Addr("src", f.Local), log.Addr("dst", f.Remote), log.Int("proto", int(f.Proto)))
		}
		return false
	case pol.Action == esp.Discard:
		d.counts.inc(cOutDiscard)
		pol.hits.discarded.Add(1)
		return false
	case pol.Action == esp.Bypass:
		d.counts.inc(cOutBypass)
		return false
	}
	return true
}

// cameInClear tells whether a packet that nothing sends into the tunnel is here because it
// came from outside in clear, although the SPD protects or discards what comes in like that:
// the kernel then hands it to us to be counted.
func (o *outbound) cameInClear(f *esp.Flow) bool {
	d := o.d
	back := esp.Flow{Local: f.Remote, Remote: f.Local, Proto: f.Proto, LocalPort: f.RemotePort, RemotePort: f.LocalPort, NoPorts: f.NoPorts}
	pol := d.spd.lookupIn(&back)
	if pol == nil || pol.Action == esp.Bypass {
		return false
	}
	d.counts.inc(cInClear)
	pol.hits.inClear.Add(1)
	if d.mayNote(noteClear, o.now) {
		what := "packet dropped: it arrived in clear and should have been protected"
		if pol.Action == esp.Discard {
			what = "packet dropped: it arrived in clear and a policy discards it"
		}
		d.log.Log(log.ESP, log.Warn, what, log.Str("policy", pol.label()),
			log.Addr("src", f.Local), log.Addr("dst", f.Remote), log.Int("proto", int(f.Proto)))
	}
	return true
}

// carry does steps 5 to 7 for the packets in found. Those whose SA was deleted meanwhile
// come back to todo unchanged: another SA may have taken over.
func (o *outbound) carry() {
	if len(o.found) == 0 {
		return
	}
	d := o.d
	for _, i := range o.found {
		if p := &o.pkts[i]; p.other {
			esp.Prefetch(unsafe.Pointer(p.sa.out), 1)
		}
	}
	for _, i := range o.found {
		o.join(i)
		if p := &o.pkts[i]; p.other {
			p.sa.out.Near(o.ctx)
		}
	}
	now := d.turns.reserve(o)
	for k := -fetchAhead; k < len(o.found); k++ {
		if f := k + fetchAhead; f < len(o.found) {
			if p := &o.pkts[o.found[f]]; p.other {
				p.sa.out.Ahead(o.ctx)
			}
		}
		if k < 0 {
			continue
		}
		i := o.found[k]
		if p := &o.pkts[i]; p.turn >= 0 && !o.seal(p) {
			o.todo = append(o.todo, i)
		}
	}
	if !now {
		d.turns.wait(o.turns)
	}
	for s := range o.groups {
		if len(o.groups[s]) > 0 {
			d.write(sockID(s), o.ctx, o.groups[s], cOutSendError)
			o.groups[s] = o.groups[s][:0]
		}
	}
	if !o.lanes || serveOwn(o.turns, o.now) {
		d.turns.serve(o.turns, o.now)
	}
	if o.limited {
		o.tellDue()
	}
	o.turns, o.found = o.turns[:0], o.found[:0]
	o.account()
}

// account adds what was sealed to the counters, once per batch.
func (o *outbound) account() {
	o.d.counts.add(cOutPackets, o.packets)
	o.d.counts.add(cOutBytes, o.octets)
	o.packets, o.octets = 0, 0
	o.tally.flush((*hits).out)
}

// join counts packet n in its SA's turn, unless it is clear that it cannot be sent.
func (o *outbound) join(n int) {
	d, p := o.d, &o.pkts[n]
	sa := p.sa
	p.turn, p.nest, p.path, p.cut = -1, -1, sa.path.Load(), false
	if len(d.socks[p.path.sock]) == 0 {
		d.counts.inc(cOutNoSocket)
		return
	}
	if sa.hide != 0 {
		if sa.hide == hideStream {
			o.feed(p)
			return
		}
		p.pad(min(int(sa.hide), int(p.path.most)))
	}
	if err := sa.out.Check(p.buf, p.off, p.n, o.emptyOn(p.path)); err != nil {
		o.unfit(sa, p, err)
		return
	}
	if p.n > int(p.path.most) && !o.tooLong(n) {
		return
	}
	if p.flow.Proto == esp.ProtoTCP {
		d.clamp(p.buf[p.off:p.off+p.n], p.path.bits)
	}
	if p.path.nested {
		ah := o.findAround(p)
		if ah == nil {
			return
		}
		p.nest = o.turnOf(ah, p.n+nestMost)
	}
	p.turn = o.turnOf(sa, p.n)
}

// fit shortens turn i to what a hard limit leaves: packets in their order, but for those that
// are too long for what is left. seal comes to the same packets.
func (o *outbound) fit(i int, left esp.Usage) {
	t := &o.turns[i]
	if uint64(t.n) <= left.Packets && uint64(t.room) <= left.Bytes {
		return
	}
	t.n, t.room = 0, 0
	for _, f := range o.found {
		p := &o.pkts[f]
		n := p.n
		if p.nest == i {
			n += nestMost
		} else if p.turn != i {
			continue
		}
		if uint64(t.n) < left.Packets && uint64(t.room+n) <= left.Bytes {
			t.n++
			t.room += n
		}
	}
}

// tellDue tells the IKE loop of SAs in the batch that have reached their soft limits.
func (o *outbound) tellDue() {
	for i := range o.turns {
		if t := &o.turns[i]; t.octets > 0 && t.sa.out.Due() {
			t.sa.limits.reached(o.d, t.sa.inbound, false, o.now)
		}
	}
	o.limited = false
}

// seal protects a packet where it is and adds it to its socket's group. It returns false
// if the SA was deleted meanwhile: the packet is unchanged.
func (o *outbound) seal(p *outPacket) (done bool) {
	t := &o.turns[p.turn]
	if t.n == 0 || p.n > t.room {
		o.d.refused(t.sa, o.now)
		return true
	}
	if p.nest >= 0 && !o.mayNest(p) {
		return true
	}
	group := &o.groups[p.path.sock]
	at := len(*group)
	*group = append(*group, *o.emptyOn(p.path))
	to := &(*group)[at]
	var err error
	if p.dummy {
		err = o.sealDummy(t.seq, p, to)
	} else {
		err = t.sa.out.SealPacket(o.ctx, t.seq, p.buf, p.off, p.n, to)
	}
	if err != nil {
		*group = (*group)[:at]
		// join has seen that there is room. The number becomes a gap, of an SA that sends
		// nothing more.
		return false
	}
	if p.path.odd || p.cut {
		p.path.outerHeader(to, p.cut)
	}
	t.seq++
	t.n--
	t.room -= p.n
	if p.dummy {
		o.d.counts.inc(cOutDummy) // and not traffic, which the peer would have to answer
	} else {
		t.octets += p.n
		o.packets++
		o.octets += uint64(p.n)
		if t.sa.mixed.Load() {
			o.tally.add(p.pol.hits, uint64(p.n), (*hits).out)
		}
	}
	if p.nest >= 0 && !o.sealAround(p, to) {
		*group = (*group)[:at]
		return true
	}
	if to.Whole {
		if s := sockAH4.family(to.Remote.Addr()); s != p.path.sock {
			*group = (*group)[:at]
			o.groups[s] = append(o.groups[s], *to)
		}
	}
	return true
}

// emptyOn returns the empty datagram on a path, to be read until the next call: most packets take
// the path of the one before.
func (o *outbound) emptyOn(p *outerPath) *esp.Datagram {
	if p != o.path {
		o.path, o.empty = p, p.datagram()
	}
	return &o.empty
}

// refused counts a packet for which its SA had no sequence number, or which goes beyond its
// hard limit.
func (d *datapath) refused(sa *outSA, now time.Duration) {
	if errors.Is(sa.out.Refusal(), esp.ErrExpired) {
		d.counts.inc(cOutLimit)
		sa.limits.reached(d, sa.inbound, true, now)
		return
	}
	d.counts.inc(cOutSequence)
	if d.mayNote(noteSequence, now) {
		what := "CHILD SA has used up its sequence numbers and carries nothing more until it is rekeyed: shorten rekey_time or use esn"
		if sa.ike == 0 {
			what = "manual SA has used up its sequence numbers and carries nothing more: give it new keys at both ends, or esn"
		}
		d.log.Log(log.ESP, log.Error, what,
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.Hex32("spi_out", sa.spi))
	}
}

// unfit counts a packet that its SA cannot carry.
func (o *outbound) unfit(sa *outSA, p *outPacket, err error) {
	d := o.d
	switch {
	case errors.Is(err, esp.ErrNoRoom) || errors.Is(err, esp.ErrTooLong):
		d.counts.inc(cOutTooBig)
		return
	case errors.Is(err, esp.ErrFragment):
		d.counts.inc(cOutFragment)
	default:
		d.counts.inc(cOutUnfit)
	}
	if d.mayNote(noteUnfit, o.now) {
		d.log.Log(log.ESP, log.Warn, "packet dropped: its CHILD SA cannot carry it; tunnel mode carries every packet",
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.Err(err))
	}
}

// flush sends what has waited and has an SA now, and drops what is too old or is not
// to be protected any more. It belongs to the IKE loop, whose outbound o is.
func (o *outbound) flush() {
	d := o.d
	o.now = d.clock()
	p := &o.pkts[0]
	d.pending.flush(d.spd.gen.Load(), func(w *waiting) bool {
		if o.now-w.since > pendingMax {
			d.counts.inc(cOutExpired)
			return false
		}
		p.begin(w.buf, w.off, w.n, &o.flows[0])
		if !o.read(p, d.spd.ported.Load()) {
			return false
		}
		o.via = w.via
		pol, sa, _, _ := d.spd.choose(&p.flow.Flow, w.via, esp.TrafficClass(w.buf[w.off:])>>2, -1)
		if p.part != partNone {
			var ok bool
			if pol, sa, ok = o.follow(p, pol, sa); !ok {
				return false
			}
		}
		if sa == nil {
			return o.permitted(pol, &p.flow.Flow) && (pol.wait || pol.stays())
		}
		// One by one: its buffer is the queue's again when this returns.
		p.sa, p.pol = sa, pol
		o.found = append(o.found, 0)
		o.carry()
		o.cutBig()
		o.todo = o.todo[:0] // empty: only this goroutine deletes SAs
		return false
	})
}

// outerPathOf returns the path of packets of a protocol from local to remote.
func outerPathOf(proto esp.Protocol, local netip.Addr, remote netip.AddrPort, encap bool) *outerPath {
	if encap {
		return &outerPath{sock: sockNATT4.family(remote.Addr()), local: local, remote: remote, most: plainMost}
	}
	s := sockESP4
	if proto == esp.AH {
		s = sockAH4
	}
	return &outerPath{sock: s.family(remote.Addr()), local: local, remote: netip.AddrPortFrom(remote.Addr(), 0), most: plainMost}
}

// datagram returns an empty datagram on the path.
func (p *outerPath) datagram() esp.Datagram {
	return esp.Datagram{Local: p.local, Remote: p.remote, Path: p.mtu, Whole: p.nested}
}
