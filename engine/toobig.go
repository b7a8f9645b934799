package engine

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
)

// Packets that are longer than their path carries. Who comes here, from step 5 of the way out, has
// found one:
//
//	 the packet                                    what becomes of it
//	IPv6 of up to 1280 octets                     cut after it was sealed (RFC 2473 section 7.1)
//	must not be fragmented                        its sender is told, unless df = "clear"
//	may be, in tunnel mode, fragment = "before"   cut, each piece sealed; but not for an SA with ports
//	all others                                    cut after it was sealed, by us or on the way
//
// What AH protects cannot be cut by us once it is sealed: with IPv6 outside, its sender is told.

// answerBurst and answersPerSecond bound the ICMP messages of one worker. Each sender needs one
// for each destination.
const (
	answerBurst      = 50
	answersPerSecond = 200
)

// oversize is the state of a goroutine that seals packets, for those that are too long.
type oversize struct {
	cut    []byte // room for a fragment, or for an ICMP message
	write  [1][]byte
	big    []bigPacket // of the batch, to be cut before they are sealed
	tokens bucket
}

// bigPacket is a packet of a batch that waits to be cut.
type bigPacket struct {
	i    int // in pkts
	most int
}

// bucket lets through so many in a second, and a burst. The zero value is full.
type bucket struct {
	used  int64 // in nanoseconds
	since time.Duration
}

func (b *bucket) take(now time.Duration, perSecond, burst int64) bool {
	cost := int64(time.Second) / perSecond
	b.used = max(b.used-int64(now-b.since), 0)
	b.since = now
	if b.used+cost > cost*burst {
		return false
	}
	b.used += cost
	return true
}

// tooLong decides what becomes of a packet that is longer than its path carries. It returns false
// if it is not to be sealed as it is.
func (o *outbound) tooLong(i int) (seal bool) {
	p := &o.pkts[i]
	pkt := p.buf[p.off : p.off+p.n]
	path := p.path
	v6, most := pkt[0]>>4 == 6, int(path.most)
	h := path.headers
	never := path.sock == sockAH6 // it cannot be cut once it is sealed
	fixed := v6 || pkt[6]&0x40 != 0
	switch {
	case v6 && p.n <= minMTU && !never:
		p.cut = true
	case never && (fixed || !path.tunnel), fixed && (h.DF != config.DFClear || !path.tunnel):
		o.tellTooBig(pkt, &p.flow.Flow, most, v6)
		return false
	case fixed || !path.tunnel || path.after && !never:
		p.cut = true
	default:
		o.over.big = append(o.over.big, bigPacket{i, most})
		return false
	}
	o.d.counts.inc(cOutCutAfter)
	return true
}

// tellTooBig drops a packet and tells its sender what would fit.
func (o *outbound) tellTooBig(pkt []byte, f *esp.Flow, most int, v6 bool) {
	d := o.d
	d.counts.inc(cOutPathMTU)
	if v6 {
		most = max(most, minMTU)
	}
	if !o.over.tokens.take(o.now, answersPerSecond, answerBurst) {
		d.counts.inc(cOutAnswerRate)
		return
	}
	buf := o.over.cut
	n := esp.AnswerTooBig(buf[innerRoom:], pkt, f, most)
	if n == 0 {
		return
	}
	o.over.write[0] = buf[:innerRoom+n]
	tun := d.tuns[o.ctx%len(d.tuns)]
	if o.via != nil {
		own := o.via.tun.Load()
		if own == nil {
			return
		}
		tun = *own
	}
	if _, err := tun.WriteBatch(o.over.write[:], innerRoom); err != nil {
		d.counts.inc(cInDeviceError)
		return
	}
	d.counts.inc(cOutAnswers)
}

// cutBig cuts the packets of the batch that have to be, and seals and sends each piece. It comes
// after the others: what belongs to one flow and fits may overtake what does not.
func (o *outbound) cutBig() {
	for _, b := range o.over.big {
		p := &o.pkts[b.i]
		pkt := p.buf[p.off : p.off+p.n]
		buf, off, n := p.buf, p.off, p.n
		room := o.over.cut[headRoom : len(o.over.cut)-esp.TailRoom]
		o.d.counts.inc(cOutCutBefore)
		for from, first := 0, true; first || from != 0; first = false {
			size, next := esp.SplitIPv4(room, pkt, from, min(b.most, len(room)))
			if size == 0 {
				o.d.counts.inc(cOutTooBig)
				break
			}
			p.buf, p.off, p.n, p.cut = o.over.cut, headRoom, size, false
			o.found = append(o.found[:0], b.i)
			o.carry()
			from = next
		}
		p.buf, p.off, p.n = buf, off, n
	}
	o.over.big = o.over.big[:0]
	o.todo = o.todo[:0] // an SA that went away meanwhile has taken its pieces with it
}

// tooBigReader reads what routers say of packets that did not fit.
type tooBigReader struct {
	d      *datapath
	v6     bool
	tokens bucket
	tell   func(esp.TooBig) bool // hands it to the IKE loop, without waiting
}

// Limits of what is heard of routers: messages in a second, each of which costs the IKE loop a look
// at every SA, and octets of one. A genuine one that is not heard comes again with the next packet.
const (
	tooBigPerSecond = 50
	tooBigBurst     = 20
	tooBigSize      = 1280
	tooBigBatch     = 4
)

// run reads until the socket is closed.
func (r *tooBigReader) run(sock Socket) {
	batch := make([]esp.Datagram, tooBigBatch)
	for i := range batch {
		batch[i].Buf = make([]byte, tooBigSize)
	}
	for {
		n, err := sock.ReadBatch(batch)
		for i := range n {
			r.message(batch[i].Buf[:batch[i].N])
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			r.d.counts.inc(cReadErrors)
			time.Sleep(readErrorPause)
		}
	}
}

// message looks at one message.
func (r *tooBigReader) message(b []byte) {
	d := r.d
	var t esp.TooBig
	told, err := esp.ParseTooBig(b, r.v6, &t)
	switch {
	case !told && err == nil:
		return
	case err != nil || !r.v6 && !esp.ICMPSum(b):
		d.counts.inc(cTooBigForged)
	case !r.tokens.take(d.clock(), tooBigPerSecond, tooBigBurst) || !r.tell(t):
		d.counts.inc(cTooBigRate)
	}
}

// shows tells whether what an ICMP message quotes was sent through the SA, as far as can be seen.
func (sa *outSA) shows(t *esp.TooBig, natt uint16) bool {
	p := sa.path.Load()
	if sa.spi != t.SPI || sa.proto != t.Proto {
		return false
	}
	if p.sock >= sockESP4 {
		natt = 0
	}
	local := netip.AddrPortFrom(onTheWire(p.local), natt)
	if !p.local.IsValid() || p.local.IsUnspecified() { // the system's choice
		local = netip.AddrPortFrom(t.Local.Addr(), natt)
	}
	return t.Local == local && t.Remote == netip.AddrPortFrom(onTheWire(p.remote.Addr()), p.remote.Port())
}

// onTheWire returns an address as it stands in a header. It is not worth its size in every place.
//
//go:noinline
func onTheWire(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// openICMP opens what path MTUs are learned through. Without it nothing is lost but that: packets
// leave without DF then.
func (e *Engine) openICMP(undo *undoList) {
	if e.o.OS.ListenICMP == nil {
		return
	}
	for v := range sockID(2) {
		if len(e.d.socks[sockNATT4+v]) == 0 {
			continue
		}
		sock, err := e.o.OS.ListenICMP(v == 1)
		if err != nil {
			e.o.Log.Log(log.Net, log.Warn, "no raw socket for ICMP: path MTUs are not learned, and packets leave without DF; give the daemon CAP_NET_RAW", log.Err(err))
			continue
		}
		undo.add("ICMP socket", sock.Close)
		e.loop.links.icmp[v] = sock
	}
}
