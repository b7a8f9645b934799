package engine

// The way out. One goroutine does all of it for a batch of packets:
//
//  1. read a batch from the TUN device, each packet behind headroom
//  2. parse its flow: addresses, protocol, ports
//  3. find its SPD entry and SA, in the flow cache or in the SPD
//  4. no SA: wait in a bounded queue, and ask the IKE loop for one
//  5. seal it where it is
//  6. group by socket, and write each group in one go
//
// A packet that waited takes steps 3, 5 and 6 in the IKE loop when its SA is there.

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"postern/engine/log"
	"postern/esp"
)

// outbound is the state of one goroutine that seals packets. Nobody else may use it.
type outbound struct {
	d      *datapath
	bufs   [][]byte
	sizes  []int
	cache  flowCache
	flow   esp.Flow
	groups [numSocks][]esp.Datagram
	now    time.Duration
	pause  time.Duration // after a read that failed

	packets, octets uint64 // sealed, and not yet in the counters
}

func newOutbound(d *datapath, bufs [][]byte, cache flowCache) *outbound {
	o := &outbound{d: d, bufs: bufs, sizes: make([]int, len(bufs)), cache: cache, pause: readErrorPause}
	for s := range o.groups {
		if s := sockID(s); s.carriesESP() {
			o.groups[s] = make([]esp.Datagram, 0, len(bufs))
		}
	}
	return o
}

// readErrorPause is the pause after a read that failed, so that an error that stays
// does not take the processor with it.
const readErrorPause = 100 * time.Millisecond

// deviceErrors is how many reads in a row may fail before the device counts as lost.
const deviceErrors = 50

// run reads and seals until the TUN device is closed, and returns nil then, or an
// error when the device is lost.
func (o *outbound) run() error {
	failed := 0
	for {
		n, err := o.d.tun.ReadBatch(o.bufs, o.sizes, esp.HeadRoom)
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

// batch seals and sends the first n packets of bufs.
func (o *outbound) batch(n int) {
	d := o.d
	o.now = d.clock()
	for i := range n {
		o.packet(i)
	}
	for s := range o.groups {
		if len(o.groups[s]) > 0 {
			d.write(sockID(s), o.groups[s], cOutSendError)
			o.groups[s] = o.groups[s][:0]
		}
	}
	o.account()
}

// account adds what was sealed to the counters, once per batch.
func (o *outbound) account() {
	o.d.counts.add(cOutPackets, o.packets)
	o.d.counts.add(cOutBytes, o.octets)
	o.packets, o.octets = 0, 0
}

// packet takes packet i through steps 2 to 5.
func (o *outbound) packet(i int) {
	d, buf, n := o.d, o.bufs[i], o.sizes[i]
	if n > len(buf)-esp.HeadRoom || esp.ParseFlow(buf[esp.HeadRoom:esp.HeadRoom+n], true, &o.flow) != nil {
		d.counts.inc(cOutMalformed)
		return
	}
	// More than once only if the SA was replaced between the look-up and its use, or one
	// came up between the look-up and the queue.
	for range 3 {
		pol, sa, gen := o.cache.lookup(d.spd, &o.flow)
		if sa != nil {
			if o.seal(sa, buf, esp.HeadRoom, n, ctxTUN) {
				return
			}
			continue
		}
		if !o.permitted(pol) {
			return
		}
		if !pol.wait {
			d.counts.inc(cOutNoSA)
			return
		}
		spare, dropped, ok := d.pending.push(buf, esp.HeadRoom, n, o.now, gen)
		if !ok {
			continue
		}
		o.bufs[i] = spare
		d.counts.inc(cOutQueued)
		if dropped {
			d.counts.inc(cOutQueueFull)
		}
		if pol.mayAcquire(o.now) {
			d.counts.inc(cAcquire)
			if !d.acquire(pol, &o.flow) {
				d.counts.inc(cAcquireLost)
				pol.acquired.Store(0)
			}
		}
		return
	}
	d.counts.inc(cOutNoSA)
}

// permitted tells whether the policy protects; if not, the packet is dropped and
// counted under what the policy says.
func (o *outbound) permitted(pol *policy) bool {
	d := o.d
	switch {
	case pol == nil:
		d.counts.inc(cOutNoPolicy)
		// The kernel greets the neighbours of every device.
		if !o.flow.Remote.IsLinkLocalMulticast() && d.mayNote(noteNoPolicy, o.now) {
			d.log.Log(log.ESP, log.Info, "packet dropped: no policy covers it; check local_ts and remote_ts, or what else is routed into the tunnel",
				log.Addr("src", o.flow.Local), log.Addr("dst", o.flow.Remote), log.Int("proto", int(o.flow.Proto)))
		}
		return false
	case pol.Action == esp.Discard:
		d.counts.inc(cOutDiscard)
		return false
	case pol.Action == esp.Bypass:
		d.counts.inc(cOutBypass)
		return false
	}
	return true
}

// seal protects the packet at buf[off:off+n] where it is and adds it to its socket's
// group. It returns false if the SA was deleted meanwhile: the packet is unchanged, and
// another SA may have taken over.
func (o *outbound) seal(sa *outSA, buf []byte, off, n, ctx int) (done bool) {
	d := o.d
	if d.socks[sa.sock] == nil {
		d.counts.inc(cOutNoSocket)
		return true
	}
	next, tos := outerFields(buf[off:])
	start, end, err := sa.out.Seal(ctx, buf, off, n, next)
	if err != nil {
		if errors.Is(err, esp.ErrWiped) {
			return false
		}
		o.sealFailed(sa, err)
		return true
	}
	sa.lastOut.Store(int64(o.now))
	if sa.limits.any && sa.out.Due() {
		sa.limits.reached(d, sa.inbound, false, o.now)
	}
	o.packets++
	o.octets += uint64(n)
	path := sa.path.Load()
	o.groups[sa.sock] = append(o.groups[sa.sock], esp.Datagram{
		Buf: buf[start:end], N: end - start, Local: path.local, Remote: path.remote, TOS: tos,
	})
	return true
}

func (o *outbound) sealFailed(sa *outSA, err error) {
	d := o.d
	if errors.Is(err, esp.ErrExpired) {
		d.counts.inc(cOutLimit)
		sa.limits.reached(d, sa.inbound, true, o.now)
		return
	}
	if !errors.Is(err, esp.ErrSeqExhausted) {
		d.counts.inc(cOutTooBig)
		return
	}
	d.counts.inc(cOutSequence)
	if d.mayNote(noteSequence, o.now) {
		d.log.Log(log.ESP, log.Error, "CHILD SA has used up its sequence numbers and carries nothing more until it is rekeyed: shorten rekey_time or use esn",
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.Hex32("spi_out", sa.spi))
	}
}

// outerFields returns what the tunnel's headers take from the inner packet: its
// protocol number and its traffic class (RFC 4301 section 5.1.2; ECN as in RFC 6040's
// normal mode).
func outerFields(pkt []byte) (next, tos uint8) {
	if pkt[0]>>4 == 4 {
		return esp.ProtoIPv4, pkt[1]
	}
	return esp.ProtoIPv6, pkt[0]<<4 | pkt[1]>>4
}

// flush sends what has waited and has an SA now, and drops what is too old or is not
// to be protected any more. It belongs to the IKE loop, whose outbound o is.
func (o *outbound) flush() {
	d := o.d
	o.now = d.clock()
	d.pending.flush(d.spd.gen.Load(), func(w *waiting) bool {
		if o.now-w.since > pendingMax {
			d.counts.inc(cOutExpired)
			return false
		}
		if esp.ParseFlow(w.buf[w.off:w.off+w.n], true, &o.flow) != nil {
			d.counts.inc(cOutMalformed)
			return false
		}
		pol, sa := d.spd.lookup(&o.flow)
		if sa == nil {
			return o.permitted(pol) && pol.wait
		}
		o.seal(sa, w.buf, w.off, w.n, ctxLoop) // only this goroutine deletes SAs
		if g := o.groups[sa.sock]; len(g) > 0 {
			d.write(sa.sock, g, cOutSendError) // before its buffer is the queue's again
			o.groups[sa.sock] = g[:0]
		}
		return false
	})
	o.account()
}

// outerPathOf returns the socket that carries an SA, and the path of its packets.
func outerPathOf(sa *esp.SA) (sockID, *outerPath) {
	p := &outerPath{sa.Local.Addr(), sa.Remote}
	if sa.Encap {
		return sockNATT4.family(p.remote.Addr()), p
	}
	p.remote = netip.AddrPortFrom(p.remote.Addr(), 0)
	return sockESP4.family(p.remote.Addr()), p
}
