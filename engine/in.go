package engine

// The way in. One goroutine per socket does all of it for a batch of datagrams:
//
//  1. read a batch from the socket
//  2. tell apart NAT keepalives, IKE (handed to the IKE loop) and ESP
//  3. find the SA in the slot that the SPI names
//  4. check the window, open the packet where it is, update the window
//  5. next header and inner length: what it carries must be a whole IP packet
//  6. check the inner addresses against the SA's selectors (RFC 4301 section 5.2)
//  7. carry over a congestion mark of the outer header (RFC 6040)
//  8. write what is left of the batch to the TUN device in one go

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"

	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// innerRoom is how many octets in front of an inner packet the TUN device may use: the
// headers of the shortest ESP packet, SPI, sequence number and 8 octets of IV.
const innerRoom = 16

// inbound is the state of the goroutine that reads one socket. Nobody else may use it.
type inbound struct {
	d     *datapath
	sock  sockID
	bufs  [][]byte
	batch []esp.Datagram
	out   [][]byte // of the TUN device, each innerRoom octets in front of its packet
	flow  esp.Flow
	now   time.Duration

	octets uint64 // of the inner packets in out
}

func newInbound(d *datapath, sock sockID, bufs [][]byte) *inbound {
	return &inbound{d: d, sock: sock, bufs: bufs, batch: make([]esp.Datagram, len(bufs)), out: make([][]byte, 0, len(bufs))}
}

// run reads until the socket is closed.
func (in *inbound) run() {
	for {
		for i := range in.batch {
			in.batch[i] = esp.Datagram{Buf: in.bufs[i]}
		}
		n, err := in.d.socks[in.sock].ReadBatch(in.batch)
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

// process takes the first n datagrams of the batch through steps 2 to 8.
func (in *inbound) process(n int) {
	d := in.d
	if !in.sock.carriesESP() {
		for i := range n {
			in.ike(&in.batch[i], 0)
		}
		return
	}
	in.now = d.clock()
	for i := range n {
		in.demux(&in.batch[i])
	}
	if len(in.out) > 0 {
		in.deliver()
	}
}

// nonESPMarker precedes IKE on the NAT traversal port, where ESP has its SPI (RFC 3948
// section 2.2).
const nonESPMarker = 4

// demux does step 2.
func (in *inbound) demux(g *esp.Datagram) {
	if in.sock < sockESP4 {
		if g.N == 1 && g.Buf[0] == 0xff {
			in.d.counts.inc(cInKeepalive)
			return
		}
		if g.N >= nonESPMarker && binary.BigEndian.Uint32(g.Buf) == 0 {
			in.ike(g, nonESPMarker)
			return
		}
	}
	in.esp(g)
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

// esp does steps 3 to 7.
func (in *inbound) esp(g *esp.Datagram) {
	d := in.d
	pkt := g.Buf[:g.N]
	spi := esp.SPIOf(pkt)
	if spi == 0 {
		d.counts.inc(cInShort)
		return
	}
	sa := d.sad.lookup(spi)
	if sa == nil {
		d.counts.inc(cInUnknownSPI)
		if d.mayNote(noteUnknownSPI, in.now) {
			d.log.Log(log.ESP, log.Info, "ESP packet for an SA that is not here: the peer may not know that it is gone",
				log.AddrPort("peer", g.Remote), log.Hex32("spi_in", spi))
		}
		return
	}
	inner, next, err := sa.in.Open(in.sock.context(), pkt)
	if err != nil {
		in.refused(sa, g, err)
		return
	}
	sa.lastIn.Store(int64(in.now))
	if sa.limits.any && sa.in.Due() {
		sa.limits.reached(d, sa.spi, false, in.now)
	}
	in.checkMoved(sa, g)
	switch next {
	case esp.ProtoIPv4, esp.ProtoIPv6:
	case esp.ProtoNoNext:
		d.counts.inc(cInDummy)
		return
	default:
		d.counts.inc(cInNextHeader)
		return
	}
	if inner, err = esp.CutInner(inner, next); err != nil || esp.ParseFlow(inner, false, &in.flow) != nil {
		d.counts.inc(cInMalformed)
		return
	}
	if !esp.MatchFlow(sa.localTS, sa.remoteTS, &in.flow) {
		d.counts.inc(cInSelectors)
		if d.mayNote(noteSelectors, in.now) {
			d.log.Log(log.ESP, log.Warn, "packet dropped: the peer sent it through a CHILD SA whose selectors do not cover it",
				log.Str("conn", sa.conn), log.Str("child", sa.child), log.Addr("src", in.flow.Remote), log.Addr("dst", in.flow.Local), log.Int("proto", int(in.flow.Proto)))
		}
		return
	}
	if !carryECN(inner, g.TOS) {
		d.counts.inc(cInECN)
		return
	}
	in.octets += uint64(len(inner))
	in.out = append(in.out, pkt[sa.innerOff-innerRoom:sa.innerOff+len(inner)])
}

// refused counts a packet that Open did not accept.
func (in *inbound) refused(sa *inSA, g *esp.Datagram, err error) {
	d := in.d
	switch {
	case errors.Is(err, esp.ErrReplay):
		d.counts.inc(cInReplay)
	case errors.Is(err, esp.ErrPadding):
		d.counts.inc(cInPadding)
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
	if !sa.encap || in.sock >= sockESP4 || g.Remote == *sa.remote.Load() {
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

// The ECN field of the traffic class (RFC 3168 section 5).
const (
	ecnMask = 3
	ecnCE   = 3
)

// carryECN does step 7: where the outer header was marked, the inner one is marked
// too. ok is false if the inner packet does not take part in ECN: a mark that it cannot
// carry means that it has to be dropped (RFC 6040 section 4.2).
func carryECN(pkt []byte, outer uint8) (ok bool) {
	if outer&ecnMask != ecnCE {
		return true
	}
	_, tos := outerFields(pkt)
	switch {
	case tos&ecnMask == 0:
		return false
	case tos&ecnMask == ecnCE:
		return true
	}
	if pkt[0]>>4 == 6 {
		pkt[1] |= ecnCE << 4
		return true
	}
	// RFC 1624: HC' = ~(~HC + ~m + m'), where m is the header's first 16 bits.
	old := binary.BigEndian.Uint16(pkt)
	pkt[1] |= ecnCE
	sum := uint32(^binary.BigEndian.Uint16(pkt[10:])) + uint32(^old) + uint32(binary.BigEndian.Uint16(pkt))
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(pkt[10:], ^uint16(sum))
	return true
}

// deliver does step 8. A packet that the device refuses is counted and left out; the
// others still go.
func (in *inbound) deliver() {
	d, batch := in.d, in.out
	d.counts.add(cInPackets, uint64(len(batch)))
	d.counts.add(cInBytes, in.octets)
	in.octets = 0
	for len(batch) > 0 {
		n, err := d.tun.WriteBatch(batch, innerRoom)
		batch = batch[min(n, len(batch)):]
		if err == nil && n > 0 {
			continue
		}
		if err == nil || len(batch) == 0 || errors.Is(err, os.ErrClosed) {
			break
		}
		d.counts.inc(cInDeviceError)
		if d.mayNote(noteDevice, in.now) {
			d.log.Log(log.Net, log.Warn, "the TUN device refused a packet", log.Err(err))
		}
		batch = batch[1:]
	}
	in.out = in.out[:0]
}
