package engine

import (
	"slices"
	"time"

	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// What the IKE loop does with SAs: into the tables, out of them, and what they need
// from time to time. All of it runs on the loop's goroutine.

// addSA puts one direction of a CHILD SA into the SAD. The keys are overwritten once
// the ciphers have them.
func (l *ikeLoop) addSA(c *ike.ChildSA) {
	err := l.install(c)
	clear(c.EncrKey)
	clear(c.IntegKey)
	if err != nil {
		l.log.Log(log.Child, log.Error, "CHILD SA could not be installed: it will carry nothing; terminate and initiate it again",
			log.Str("conn", c.Conn), log.Str("child", c.Child), log.Hex32("spi", c.SPI), log.Str("suite", c.Suite.String()), log.Err(err))
	}
}

func (l *ikeLoop) install(c *ike.ChildSA) error {
	if c.Dir == esp.In {
		in, err := esp.NewInbound(&c.SA, l.d.inContexts())
		if err != nil {
			return err
		}
		ts := slices.Concat(c.LocalTS, c.RemoteTS) // beside each other in memory
		n := len(c.LocalTS)
		sa := &inSA{
			spi: c.SPI, proto: c.Proto, in: in,
			localTS: ts[:n:n], remoteTS: ts[n:], nets: netPairOf(ts[:n], ts[n:]),
			conn: c.Conn, child: c.Child, export: l.exported(c), came: l.laneOf(c),
			via: l.deviceOf(c.Interface), routed: c.Interface != "",
		}
		sa.ported, sa.frags = ported(ts), c.Fragments
		if in.Limited() {
			sa.limits = new(limits)
		}
		sa.unpacker = l.newUnpacker(c, sa)
		sa.is.set(inEncap, c.Encap)
		sa.is.set(inAgg, sa.unpacker != nil)
		sa.remote.Store(l.d.sad.remoteAt(c.Remote))
		l.nestIn(sa, c.Local.Addr())
		l.judgeIn(sa)
		return l.publish(sa)
	}
	o, err := esp.NewOutbound(&c.SA, l.d.outContexts())
	if err != nil {
		return err
	}
	sa := &outSA{
		spi: c.SPI, inbound: c.Inbound, out: o, proto: c.Proto,
		localTS: c.LocalTS, remoteTS: c.RemoteTS,
		conn: c.Conn, child: c.Child, ike: c.IKE, id: c.ID,
		esn: c.Suite.ESN, standby: c.Standby, mode: c.Mode, suite: c.Suite,
		via: l.deviceOf(c.Interface), first: c.Seq,
	}
	sa.export = l.exported(c)
	sa.ported, sa.frags = ported(sa.localTS) || ported(sa.remoteTS), c.Fragments
	sa.lane = c.Lane
	if c.PerCPU && c.Lane > 0 {
		sa.own = new(ownUse)
	}
	if slot := l.d.sad.slot(c.Inbound); slot != nil {
		if in := slot.in.Load(); in != nil {
			sa.came = in.came // it goes back the way it came
		}
	}
	sa.hide = l.padding(c)
	if o.Limited() {
		sa.limits = new(limits)
	}
	sa.path.Store(l.pathOf(c.Proto, c.Local.Addr(), c.Remote, c.Encap))
	l.fit(sa, sa.path.Load())
	if err := l.joinStream(c, sa); err != nil {
		return err
	}
	l.judgeOut(sa)
	old, err := l.d.sad.addOut(sa)
	if err != nil {
		return err
	}
	l.retire(nil, old)
	l.followNew(sa)
	l.dummies.add(c, sa, l.longest(c), l.d.clock())
	if len(l.d.socks[sa.sock()]) == 0 {
		l.log.Log(log.Net, log.Error, "CHILD SA cannot send: the socket that it needs is not there; let the peer force UDP encapsulation",
			log.Str("conn", c.Conn), log.Str("child", c.Child), log.Str("socket", sa.sock().String()))
	}
	if !sa.standby {
		l.use(sa)
	}
	return nil
}

// use makes an outbound SA the newest of its policy and sends what has waited for it.
func (l *ikeLoop) use(sa *outSA) {
	sa.standby = false
	l.useStream(sa)
	changed, taken := l.d.spd.bind(sa)
	if changed {
		l.rejudge()
		l.apply()
	}
	if !taken {
		l.log.Log(log.Child, log.Warn, "no policy takes the CHILD SA: nothing will be sent through it; check the configuration, or whether the board profile has room for more policies",
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.Hex32("spi_out", sa.spi))
	}
	// Even when nothing waits: the queue must know the generation.
	l.out.flush()
}

// apply tells the kernel the policies as they are now.
func (l *ikeLoop) apply() {
	l.applied = l.d.spd.policies()
	if err := l.net.Apply(l.device, l.applied); err != nil {
		l.log.Log(log.Kernel, log.Error, "the routes for the policies could not be set", log.Err(err))
	}
}

// useSA moves traffic to an outbound SA that was on standby.
func (l *ikeLoop) useSA(spi, inbound uint32) {
	if slot := l.d.sad.findOut(spi, inbound); slot != nil && slot.out.standby {
		l.use(slot.out)
	}
}

// moveSA sends what a pair of SAs protects along another path, in UDP or without it: the
// peer's NAT has given it a new mapping, or one of the two has moved. Local address, family
// and socket may all be others than before.
func (l *ikeLoop) moveSA(inbound uint32, p ike.Path, encap bool) {
	slot := l.d.sad.slot(inbound)
	if slot == nil {
		return
	}
	if in := slot.in.Load(); in != nil {
		in.is.set(inEncap, encap)
		in.remote.Store(l.d.sad.remoteAt(p.Remote))
	}
	if slot.out != nil {
		l.fit(slot.out, l.pathOf(slot.out.proto, p.Local.Addr(), p.Remote, encap))
		l.followNew(slot.out)
	}
	l.renest(slot)
}

// delSA takes one direction of a CHILD SA out of the SAD.
func (l *ikeLoop) delSA(spi, inbound uint32, dir esp.Direction) {
	if dir == esp.In {
		l.retire(l.d.sad.delIn(spi), nil)
		return
	}
	if slot := l.d.sad.findOut(spi, inbound); slot != nil {
		l.retire(nil, slot.delOut())
	}
}

// retire forgets the keys of SAs that are in the SAD no more. A packet that is just
// being sealed or opened is finished; the next one finds no SA.
func (l *ikeLoop) retire(in *inSA, out *outSA) {
	if in != nil {
		in.share.fold(in.in.Usage(), (*hits).in)
		in.in.Wipe()
		clear(in.export)
	}
	if out == nil {
		return
	}
	l.foldOut(out)
	l.dummies.drop(out)
	l.leaveStream(out)
	if !out.standby && l.d.spd.unbind(out) {
		l.rejudge()
		l.apply()
	}
	out.out.Wipe()
	clear(out.export)
	out.export = nil
}

const (
	// tickInterval is half of what RFC 3948 section 4 recommends between NAT keepalives:
	// what happened since the last tick is then known well enough to keep the rhythm.
	tickInterval = 10 * time.Second
	// keepaliveInterval is the longest silence towards a NAT (RFC 3948 section 4), unless
	// another one is configured.
	keepaliveInterval = 20 * time.Second
	// rekeySequence is the sequence number from which on an SA without ESN is rekeyed
	// whatever its lifetime: half a billion packets before the last, so that even a fast
	// line leaves minutes for it.
	rekeySequence = 0xe0000000
)

// tickEvery returns the time between two ticks: twice in the silence that a NAT gets.
func (l *ikeLoop) tickEvery() time.Duration {
	if l.keepAlive <= 0 {
		return tickInterval
	}
	return min(tickInterval, l.keepAlive/2)
}

// natState is how long the way through a NAT to one peer has been silent.
type natState struct {
	packets uint64        // sent through its CHILD SAs until the last tick
	last    time.Duration // the latest time by which something must have been sent
	seen    bool
}

// tick does what has no deadline of its own: NAT keepalives, and rekeying of SAs whose
// sequence numbers run out.
func (l *ikeLoop) tick(now time.Duration) {
	if l.rotate != nil && now >= l.rotateAt {
		l.rotateAt = now + rotateInterval
		l.rotate()
	}
	l.ageLinks(now)
	l.assigned.dns.again()
	if l.noteTops != nil {
		l.noteTops()
	}
	for _, s := range l.nat {
		s.seen = false
	}
	l.m.List(func(sa *ike.SAInfo) bool {
		l.keepalive(sa, now)
		return true
	})
	for id, s := range l.nat {
		if !s.seen {
			delete(l.nat, id)
		}
	}
	l.d.spd.retryLanes()
	for i := range l.d.sad.slots {
		o := l.d.sad.slots[i].out
		if o == nil || o.esn || o.ike == 0 || o.rekeying || o.standby || o.out.Seq() < l.rekeySeq {
			continue
		}
		o.rekeying = true
		l.log.Log(log.Child, log.Info, "CHILD SA is rekeyed early: its sequence numbers run out; esn would avoid it",
			log.Str("conn", o.conn), log.Str("child", o.child), log.Hex32("spi_out", o.spi))
		l.m.Command(l.now(), ike.Command{Kind: ike.CmdRekey, Conn: o.conn, IKE: o.ike, ChildID: o.id})
		l.drain()
	}
}

// keepalive sends a NAT keepalive (RFC 3948 section 2.3) if a NAT is in front of us and
// may have seen nothing for the time that is configured.
func (l *ikeLoop) keepalive(sa *ike.SAInfo, now time.Duration) {
	if sa.State != ike.StateEstablished || !sa.NATLocal || !sa.Path.NATT || l.keepAlive == 0 {
		return
	}
	var packets uint64
	for i := range sa.Children {
		if slot := l.d.sad.slot(sa.Children[i].SPIIn); slot != nil && slot.out != nil {
			packets += slot.out.out.Seq()
		}
	}
	s := l.nat[sa.Unique]
	if s == nil {
		s = &natState{last: now - l.tickEvery(), packets: packets}
		l.nat[sa.Unique] = s
	}
	s.seen = true
	if packets > s.packets { // at some time since the last tick
		s.last = now - l.tickEvery()
	}
	s.packets = packets
	if now-s.last >= l.keepAlive {
		s.last = now
		l.transmit(sockNATT4.family(sa.Path.Remote.Addr()), sa.Path, []byte{0xff})
	}
}
