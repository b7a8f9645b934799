package engine

// The way in. One goroutine per socket does all of it for a batch of datagrams:
//
//  1. read a batch from the socket
//  2. tell apart NAT keepalives, IKE (handed to the IKE loop) and ESP
//  3. find the SA in the slot that the SPI names; if it is being negotiated, wait (hold.go)
//  4. check the window, open the packet where it is, update the window, and make the IP packet whole
//     that the SA's protocol and mode have taken apart
//  5. parse its flow
//  6. check the inner addresses against the SA's selectors (RFC 4301 section 5.2); a fragment
//     without ports may have those of its first one (frags.go)
//  7. carry over a congestion mark of the outer header (RFC 6040), and what else of the headers
//     has to be changed (headers.go)
//  8. choose a queue of the TUN device by the inner flow, or the device that the SA has of its
//     own (devices.go)
//  9. write what is left of the batch to each queue in one go
//
// ESP that was in AH takes step 4 again after step 6 (nest.go).
//
// What steps 5, 6 and 8 find out about a packet of TCP or UDP holds for those right behind it that came
// through the same SA and have the same addresses, ports and protocol.
//
// Steps 2 and 3 go over the whole batch before the others, for the reason that out.go gives.
//
// The packets of an SA arrive at one socket, as long as the system steers by SPI, and those
// of a flow go to one queue: their order is kept. The kernel then sends the other direction
// of the flow through that queue, so that the flows of a single peer spread over all
// workers on the way out. No more than the speed depends on either.

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// innerRoom is how many octets in front of an inner packet the TUN device may use: the
// headers of an ESP packet, SPI, sequence number and 8 octets of IV. What has no IV is moved.
const innerRoom = 16

// inbound is the state of the goroutine that reads one socket. Nobody else may use it.
type inbound struct {
	d     *datapath
	sock  sockID
	ctx   int // its number in package esp; only where ESP arrives
	bufs  [][]byte
	batch []esp.Datagram
	found []inPacket
	room  []byte       // for packets out of AGGFRAG payloads; nil: there was none yet
	used  int          // of it
	out   [][][]byte   // per queue of the TUN device, each packet behind innerRoom octets
	via   *childDevice // whose packets are in apart
	apart [][]byte
	flow  esp.Flow
	now   time.Duration

	// What settles a packet right behind another with the same SA and flow:
	last  *inSA   // of the packet before; nil: there is none that settles anything
	key   flowKey // of flow, if last is not nil
	queue int     // of the TUN device, by the flow

	inner  esp.Datagram // ESP that was in AH (nest.go)
	nested bool         // it is being opened
	// settling: the packets come from the queue of those that were held, which is locked.
	settling bool

	octets uint64 // of the inner packets in out
	tally  tally  // of SAs that serve several entries of the SPD
}

// inPacket is a packet of the batch that has an SA.
type inPacket struct {
	sa    *inSA
	i     int  // in the batch
	other bool // it has another SA than the packet before
}

func newInbound(d *datapath, sock sockID, ctx int, bufs [][]byte) *inbound {
	n := len(bufs)
	in := &inbound{d: d, sock: sock, ctx: ctx, bufs: bufs, batch: make([]esp.Datagram, n)}
	if sock.carriesESP() {
		in.found = make([]inPacket, 0, n)
		in.out = make([][][]byte, d.workers)
		for q := range in.out {
			in.out[q] = make([][]byte, 0, n)
		}
		in.apart = make([][]byte, 0, n)
	}
	return in
}

// run reads until the socket is closed.
func (in *inbound) run(sock Socket) {
	used := len(in.batch) // how many are to be made anew: what the last read filled, at first all
	for {
		for i := range used {
			in.batch[i] = esp.Datagram{Buf: in.bufs[i]}
		}
		n, err := sock.ReadBatch(in.batch)
		used = n
		if n > 0 {
			in.process(n)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
		in.d.counts.inc(cReadErrors)
		if in.d.mayNote(noteRead, in.d.clock()) {
			in.d.log.Log(log.Net, log.Warn, "a socket could not be read", log.Str("socket", in.sock.String()), log.Err(err))
		}
		time.Sleep(readErrorPause)
	}
}

// process takes the first n datagrams of the batch through steps 2 to 9.
func (in *inbound) process(n int) {
	d := in.d
	if !in.sock.carriesESP() {
		for i := range n {
			in.ike(&in.batch[i], 0)
		}
		return
	}
	in.now = d.clock()
	in.found = in.found[:0]
	in.fetch(n)
	for i := range n {
		in.demux(i)
	}
	var last *inSA
	for i := range in.found {
		p := &in.found[i]
		if p.other = p.sa != last; p.other {
			esp.Prefetch(unsafe.Pointer(p.sa.in), 2)
		}
		last = p.sa
	}
	for k := -2 * fetchAhead; k < len(in.found); k++ {
		if f := k + 2*fetchAhead; f < len(in.found) && in.found[f].other {
			in.found[f].sa.in.Near(in.ctx)
		}
		if f := k + fetchAhead; f >= 0 && f < len(in.found) && in.found[f].other {
			in.found[f].sa.in.Ahead(in.ctx)
		}
		if k >= 0 {
			p := &in.found[k]
			in.esp(p.sa, &in.batch[p.i], in.bufs[p.i])
		}
	}
	in.deliver()
}

// fetch has the processor fetch the SAs of the batch, whose lines demux then reads.
func (in *inbound) fetch(n int) {
	var last *inSA
	for i := range n {
		g := &in.batch[i]
		sa := in.d.sad.peek(esp.SPIOf(g.Buf[:g.N]))
		if sa != last {
			esp.Prefetch(unsafe.Pointer(sa), 1)
		}
		last = sa
	}
}

// nonESPMarker precedes IKE on the NAT traversal port, where ESP has its SPI (RFC 3948
// section 2.2).
const nonESPMarker = 4

// demux does steps 2 and 3 for datagram i of the batch.
func (in *inbound) demux(i int) {
	d, g := in.d, &in.batch[i]
	spi, proto := g.SPI()
	if in.sock < sockESP4 && spi == 0 {
		if g.N == 1 && g.Buf[0] == 0xff {
			d.counts.inc(cInKeepalive)
			return
		}
		if g.N >= nonESPMarker && binary.BigEndian.Uint32(g.Buf) == 0 {
			in.ike(g, nonESPMarker)
			return
		}
	}
	if spi == 0 {
		d.counts.inc(cInShort)
		return
	}
	sa := d.sad.lookup(spi)
	if sa == nil {
		if sa = in.missing(g, spi); sa == nil {
			return
		}
	}
	if sa.proto != proto {
		in.stranger(g, spi)
		return
	}
	in.found = append(in.found, inPacket{sa: sa, i: i})
}

// missing does step 3 for a packet whose SPI has no SA. It returns the SA if that has just
// come up.
func (in *inbound) missing(g *esp.Datagram, spi uint32) *inSA {
	d := in.d
	if sa := d.sad.elsewhere(spi); sa != nil {
		return sa
	}
	if in.hold(g, spi) {
		return nil
	}
	if sa := d.sad.lookup(spi); sa != nil {
		return sa
	}
	in.stranger(g, spi)
	return nil
}

// stranger counts a packet that has no SA.
func (in *inbound) stranger(g *esp.Datagram, spi uint32) {
	d := in.d
	d.counts.inc(cInUnknownSPI)
	if d.mayNote(noteUnknownSPI, in.now) {
		d.log.Log(log.ESP, log.Info, "ESP packet for an SA that is not here: the peer may not know that it is gone",
			log.AddrPort("peer", g.Remote), log.Hex32("spi_in", spi))
	}
	in.tellUnknown(g, spi)
}

// ikeHeader is the length of an IKE header (RFC 7296 section 3.1): nothing shorter is
// worth the IKE loop's time.
const ikeHeader = 28

// ike hands a datagram to the IKE loop.
func (in *inbound) ike(g *esp.Datagram, off int) {
	d := in.d
	if g.N < off+ikeHeader {
		d.counts.inc(cIKEShort)
		return
	}
	path := ike.Path{NATT: in.sock.carriesESP(), Remote: g.Remote}
	port := d.ports.IKE
	if path.NATT {
		port = d.ports.NATT
	}
	path.Local = netip.AddrPortFrom(g.Local, port)
	d.counts.inc(cIKEIn)
	if !d.ikeq.push(path, g.Buf[off:g.N]) {
		d.counts.inc(cIKEQueueFull)
	}
}

// esp does steps 4 to 8.
func (in *inbound) esp(sa *inSA, g *esp.Datagram, spare []byte) {
	d := in.d
	if sa.is.has(inAround) && !in.nested {
		in.bare(sa, g)
		return
	}
	if sa.in.Formed() && len(g.Buf) < g.N+esp.OpenRoom {
		if len(spare) < g.N {
			d.counts.inc(cInNoRoom)
			return
		}
		copy(spare, g.Buf[:g.N])
		g.Buf = spare
	}
	if sa.is.has(inAgg) {
		in.openAgg(sa, g)
		return
	}
	pkt, err := sa.in.OpenPacket(in.ctx, g, innerRoom)
	if !in.authentic(sa, g, err) {
		return
	}
	if err != nil {
		in.unusable(err)
		return
	}
	in.take(sa, pkt, g, spare)
}

// authentic tells whether a packet is, by what opening it has come to, and notes that and from where it
// came; one that is not is counted.
func (in *inbound) authentic(sa *inSA, g *esp.Datagram, err error) bool {
	if err != nil && !esp.Accepted(err) {
		in.refused(sa, g, err)
		return false
	}
	if now := int64(in.now); sa.lastIn.Load() != now { // of a batch it is the same, and to write costs more
		sa.lastIn.Store(now)
	}
	if sa.in.Due() {
		sa.limits.reached(in.d, sa.spi, false, in.now)
	}
	in.checkMoved(sa, g)
	return true
}

// take does steps 5 to 8 for an IP packet behind innerRoom octets that came through sa, in the
// datagram g as it arrived.
func (in *inbound) take(sa *inSA, pkt []byte, g *esp.Datagram, spare []byte) {
	d := in.d
	inner := pkt[innerRoom:]
	var key flowKey
	plain := plainKey(inner, false, &key)
	if !plain || sa != in.last || !in.key.is(&key) {
		in.last = nil
		if !in.covered(sa, inner) {
			return
		}
		if n := len(d.tuns); n > 1 {
			if !plain {
				key = keyOf(&in.flow)
			}
			in.queue = int(key.hash(d.seed) % uint32(n))
		}
		if plain {
			in.last, in.key = sa, key
		}
	}
	if sa.is.has(inMixed) {
		if sa.came != nil {
			in.learn(sa, inner)
		}
		if !in.permitted(sa, len(inner)) {
			return
		}
	}
	if in.flow.Proto == esp.ProtoESP && sa.proto == esp.AH && in.flow.Local == g.Local.Unmap() && !in.nested {
		in.unwrap(sa, pkt, spare)
		return
	}
	bits := headerBits(sa.headers.Load())
	if !d.headersIn(inner, bits, g.TOS) {
		return
	}
	if in.flow.Proto == esp.ProtoTCP {
		d.clamp(inner, bits)
	}
	in.octets += uint64(len(inner))
	if sa.routed {
		in.route(sa.via, pkt)
		return
	}
	in.out[in.queue] = append(in.out[in.queue], pkt)
}

// covered does steps 5 and 6. It returns false if the packet was dropped.
func (in *inbound) covered(sa *inSA, inner []byte) bool {
	d := in.d
	if err := esp.ParseFlow(inner, false, &in.flow); err != nil {
		in.unusable(err)
		return false
	}
	if sa.ported && esp.MayBeFragment(inner) && !in.fragment(sa, inner) {
		return false
	}
	if sa.nets.has(&in.flow) || esp.MatchFlow(sa.localTS, sa.remoteTS, &in.flow) {
		return true
	}
	d.counts.inc(cInSelectors)
	if d.mayNote(noteSelectors, in.now) {
		d.log.Log(log.ESP, log.Warn, "packet dropped: the peer sent it through a CHILD SA whose selectors do not cover it",
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.Addr("src", in.flow.Remote), log.Addr("dst", in.flow.Local), log.Int("proto", int(in.flow.Proto)))
	}
	return false
}

// unusable counts an authentic packet that is not to be delivered.
func (in *inbound) unusable(err error) {
	d := in.d
	switch err {
	case esp.ErrDummy:
		d.counts.inc(cInDummy)
	case esp.ErrNextHeader:
		d.counts.inc(cInNextHeader)
	case esp.ErrPadding:
		d.counts.inc(cInPadding)
	case esp.ErrChain:
		d.counts.inc(cInChain)
	default:
		d.counts.inc(cInMalformed)
	}
}

// permitted looks up what came through an SA whose selectors do not settle it. The first
// entry has to be one that protects: what the SPD discards, or has pass in clear, does not
// belong into an SA. RFC 4301 section 5.2 leaves that to selectors without overlaps, which the
// negotiation does not have.
func (in *inbound) permitted(sa *inSA, n int) bool {
	d := in.d
	pol := d.spd.lookupIn(&in.flow)
	if pol == nil {
		return true // the SA knows more than a table that had no room
	}
	if pol.Action == esp.Protect {
		in.tally.add(pol.hits, uint64(n), (*hits).in)
		return true
	}
	d.counts.inc(cInPolicy)
	if d.mayNote(notePolicy, in.now) {
		d.log.Log(log.ESP, log.Warn, "packet dropped: it came through a CHILD SA, but an earlier policy does not protect such packets",
			log.Str("policy", pol.label()), log.Str("action", pol.Action.String()), log.Str("conn", sa.conn), log.Str("child", sa.child),
			log.Addr("src", in.flow.Remote), log.Addr("dst", in.flow.Local), log.Int("proto", int(in.flow.Proto)))
	}
	return false
}

// unknownInterval is the least time between two tellings of packets without an SA, so that
// a flood of them does not keep the IKE loop busy.
const unknownInterval = 100 * time.Millisecond

// tellUnknown tells the IKE loop of a packet without an SA: its sender may not know that we
// have restarted. The way back is the one that it came, or IKE's if it was not in UDP.
func (in *inbound) tellUnknown(g *esp.Datagram, spi uint32) {
	d := in.d
	last := d.unknownAt.Load()
	if last != 0 && in.now-time.Duration(last) < unknownInterval || !d.unknownAt.CompareAndSwap(last, int64(max(in.now, 1))) {
		return
	}
	p := ike.Path{Local: netip.AddrPortFrom(g.Local, d.ports.NATT), Remote: g.Remote, NATT: true}
	if in.sock >= sockESP4 {
		p = ike.Path{Local: netip.AddrPortFrom(g.Local, d.ports.IKE), Remote: netip.AddrPortFrom(g.Remote.Addr(), 500)}
	}
	d.unknown(spi, p)
}

// refused counts a packet that Open did not accept.
func (in *inbound) refused(sa *inSA, g *esp.Datagram, err error) {
	d := in.d
	switch {
	case errors.Is(err, esp.ErrReplay):
		d.counts.inc(cInReplay)
	case errors.Is(err, esp.ErrHeaders) || errors.Is(err, esp.ErrFragment):
		d.counts.inc(cInHeaders)
	case errors.Is(err, esp.ErrNoRoom):
		d.counts.inc(cInNoRoom)
	case errors.Is(err, esp.ErrShort):
		d.counts.inc(cInShort)
	case errors.Is(err, esp.ErrExpired):
		d.counts.inc(cInLimit)
		sa.limits.reached(d, sa.spi, true, in.now)
	case errors.Is(err, esp.ErrWiped): // deleted since the look-up
		d.counts.inc(cInUnknownSPI)
	default:
		d.counts.inc(cInAuth)
		if d.mayNote(noteAuth, in.now) {
			d.log.Log(log.ESP, log.Warn, "ESP packet dropped: its integrity check failed; it was forged or damaged on the way",
				log.Str("conn", sa.conn), log.Str("child", sa.child), log.AddrPort("peer", g.Remote), log.Hex32("spi_in", sa.spi))
		}
	}
}

// movedInterval is the least time between two tellings of one SA that it has moved.
const movedInterval = time.Second

// checkMoved tells the IKE loop when an authentic packet came from another address than
// the peer's: its NAT may have given it a new mapping. The machine knows whether to follow.
func (in *inbound) checkMoved(sa *inSA, g *esp.Datagram) {
	if !sa.is.has(inEncap) || in.sock >= sockESP4 || g.Remote == *sa.remote.Load() {
		return
	}
	d := in.d
	d.counts.inc(cInMoved)
	last := sa.movedAt.Load()
	if last != 0 && in.now-time.Duration(last) < movedInterval || !sa.movedAt.CompareAndSwap(last, int64(max(in.now, 1))) {
		return
	}
	d.moved(sa, ike.Path{Local: netip.AddrPortFrom(g.Local, d.ports.NATT), Remote: g.Remote, NATT: true})
}

// deliver does step 9.
func (in *inbound) deliver() {
	in.deliverApart()
	n := 0
	in.used, in.last = 0, nil
	for q := range in.out {
		if len(in.out[q]) > 0 {
			n += len(in.out[q])
			in.write(in.d.tuns[q], in.out[q])
			in.out[q] = in.out[q][:0]
		}
	}
	if in.octets > 0 {
		in.d.counts.add(cInPackets, uint64(n))
		in.d.counts.add(cInBytes, in.octets)
		in.octets = 0
		in.tally.flush((*hits).in)
	}
}

// write writes to one queue of the TUN device. A packet that the device refuses is
// counted and left out; the others still go.
func (in *inbound) write(tun Device, batch [][]byte) {
	d := in.d
	for len(batch) > 0 {
		n, err := tun.WriteBatch(batch, innerRoom)
		batch = batch[min(n, len(batch)):]
		if err == nil && n > 0 {
			continue
		}
		if err == nil || len(batch) == 0 || errors.Is(err, os.ErrClosed) {
			break
		}
		d.counts.inc(cInDeviceError)
		if d.mayNote(noteDevice, in.now) {
			d.log.Log(log.Kernel, log.Warn, "the TUN device refused a packet", log.Err(err))
		}
		batch = batch[1:]
	}
}
