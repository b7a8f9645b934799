package engine

import (
	"net/netip"
	"slices"

	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// Nested SAs (RFC 4301 section 4.1 and appendix E): where the first entry of the SPD that
// matches ESP between two gateways protects, and names the protocol ESP, AH goes around it:
//
//	IP | AH | ESP | packet
//
// On the way out the SA's path tells that there is such an entry; which SA of AH it is, the SPD
// tells. On the way in ESP that is not in AH is refused then. The depth is two: AH is never
// looked up again. An entry for all protocols does not count: a child between the two hosts
// themselves is usual, and means what they say, not what they carry for others.

// nestMost is how many octets ESP adds to a packet at most, its IP header included.
const nestMost = esp.HeadRoom + esp.TailRoom + 40

// espFlow is the flow of ESP packets between two hosts.
func espFlow(local, remote netip.Addr) esp.Flow {
	return esp.Flow{Local: local.Unmap().WithZone(""), Remote: remote.Unmap().WithZone(""), Proto: esp.ProtoESP, NoPorts: true}
}

// nests tells whether the SPD has AH go around ESP of that flow.
func (s *spd) nests(f *esp.Flow, in bool) bool {
	p := s.cur.Load().first(f, in)
	isESP := func(sel esp.Selector) bool { return sel.Proto == esp.ProtoESP }
	return p != nil && p.Action == esp.Protect && (slices.ContainsFunc(p.LocalTS, isESP) || slices.ContainsFunc(p.RemoteTS, isESP))
}

// nestIn sets whether an inbound SA has to be in AH.
func (l *ikeLoop) nestIn(sa *inSA, local netip.Addr) {
	f := espFlow(local, sa.remote.Load().Addr())
	sa.is.set(inAround, sa.proto == esp.ESP && l.d.spd.nests(&f, true))
}

// pathOf returns the path of packets from local to remote, with AH around them if that is to be.
func (l *ikeLoop) pathOf(proto esp.Protocol, local netip.Addr, remote netip.AddrPort, encap bool) *outerPath {
	s := l.d.sad
	f := espFlow(local, remote.Addr())
	if proto != esp.ESP || !l.d.spd.nests(&f, false) {
		return s.pathOf(proto, local, remote, encap)
	}
	p := outerPathOf(proto, local, remote, encap)
	p.nested = true
	if !encap {
		p.sock = sockAH4.family(remote.Addr())
	}
	if s.path == nil || *s.path != *p {
		s.path = p
	}
	return s.path
}

// renest looks again whether a pair of SAs has to be in AH.
func (l *ikeLoop) renest(slot *sadSlot) {
	if slot.out == nil {
		return
	}
	p := slot.out.path.Load()
	if now := l.pathOf(slot.out.proto, p.local, p.remote, p.encap()); now.nested != p.nested {
		l.fit(slot.out, now)
	}
	if in := slot.in.Load(); in != nil {
		l.nestIn(in, p.local)
	}
}

// encap tells whether packets on the path are in UDP.
func (p *outerPath) encap() bool { return p.remote.Port() != 0 }

// turnOf counts a packet of n octets in an SA's turn of the batch, and returns its index.
func (o *outbound) turnOf(sa *outSA, n int) int {
	// The mark is right if the turn there is this SA's, and is left from another batch if not.
	i := int(sa.mark[o.ctx])
	if i >= len(o.turns) || o.turns[i].sa != sa {
		i = len(o.turns)
		o.turns = append(o.turns, turn{sa: sa})
		sa.mark[o.ctx] = uint16(i)
	}
	o.turns[i].n++
	o.turns[i].room += n
	return i
}

// findAround finds the SA of AH that goes around a packet's ESP. Without one the packet is dropped
// and counted: ESP alone is not what the policy asks for.
func (o *outbound) findAround(p *outPacket) *outSA {
	d := o.d
	if p.path.encap() {
		d.counts.inc(cOutUnfit)
		if d.mayNote(noteUnfit, o.now) {
			d.log.Log(log.ESP, log.Warn, "packet dropped: a policy has AH go around ESP to this peer, which it cannot with ESP in UDP; take encap out, or the policy",
				log.Str("conn", p.sa.conn), log.Str("child", p.sa.child))
		}
		return nil
	}
	f := espFlow(p.path.local, p.path.remote.Addr())
	pol, ah := d.spd.lookup(&f)
	switch {
	case ah != nil && ah.proto == esp.AH:
		return ah
	case pol != nil && pol.wait:
		o.around = f // which would be allocated
		o.ask(pol, &o.around)
	}
	d.counts.inc(cOutNoSA)
	return nil
}

// mayNest tells whether the SA around a packet has a number for it.
func (o *outbound) mayNest(p *outPacket) bool {
	t := &o.turns[p.nest]
	if t.n > 0 && p.n+nestMost <= t.room {
		return true
	}
	o.d.refused(t.sa, o.now)
	return false
}

// sealAround puts AH around the ESP packet to, which is in p's buffer.
func (o *outbound) sealAround(p *outPacket, to *esp.Datagram) (done bool) {
	t := &o.turns[p.nest]
	n := to.N
	to.Remote = p.path.remote // not the first stop of a source route, which comes again
	if err := t.sa.out.SealPacket(o.ctx, t.seq, p.buf, cap(p.buf)-cap(to.Buf), n, to); err != nil {
		if err == esp.ErrWiped { // it was deleted meanwhile
			o.d.counts.inc(cOutNoSA)
		} else {
			o.unfit(t.sa, p, err)
		}
		return false
	}
	t.seq++
	t.n--
	t.room -= p.n + nestMost
	t.octets += n
	return true
}

// unwrap opens ESP that was in an SA of AH: pkt is the packet, behind innerRoom octets, and
// in.flow its flow.
func (in *inbound) unwrap(ah *inSA, pkt, spare []byte) {
	d := in.d
	g := &in.inner
	*g = esp.Datagram{Buf: pkt[innerRoom:], N: len(pkt) - innerRoom, Local: in.flow.Local, Remote: netip.AddrPortFrom(in.flow.Remote, 0), Whole: true}
	spi, proto := g.SPI()
	// Which SA of AH it has to be, the SPD knows (RFC 4301 section 5.2); who is in it, AH does.
	pol := d.spd.lookupIn(&in.flow)
	right := pol != nil && pol.carriedBy(ah.conn, ah.child)
	if right && !in.settling && in.hold(g, spi) {
		return
	}
	sa := d.sad.lookup(spi)
	if sa == nil || proto != esp.ESP || sa.proto != esp.ESP {
		in.stranger(g, spi)
		return
	}
	if sa.remote.Load().Addr().Unmap() != in.flow.Remote || sa.is.has(inAround) && !right {
		in.bare(sa, g)
		return
	}
	in.nested = true
	in.esp(sa, g, spare)
	in.nested = false
}

// wasNested tells whether a packet that was held had come in the AH that it needs: through that
// socket no other ESP comes, and unwrap holds no other.
func (h *heldPacket) wasNested(sa *inSA) bool {
	return h.sock >= sockAH4 && sa.proto == esp.ESP && sa.remote.Load().Addr().Unmap() == h.g.Remote.Addr()
}

// bare counts a packet that came without the AH that a policy demands around it.
func (in *inbound) bare(sa *inSA, g *esp.Datagram) {
	d := in.d
	d.counts.inc(cInBare)
	if d.mayNote(noteBare, in.now) {
		d.log.Log(log.ESP, log.Warn, "ESP packet dropped: a policy demands AH around it, and it came without; check that the peer has the same policy",
			log.Str("conn", sa.conn), log.Str("child", sa.child), log.AddrPort("peer", g.Remote), log.Hex32("spi_in", sa.spi))
	}
}

// nestOctets returns how many octets AH takes that goes around the ESP of other children, the
// most that any child of the configuration proposes; 0: none does.
func nestOctets(conns []*ike.Conn) (most int) {
	const mtu = 1500
	for _, conn := range conns {
		for _, child := range conn.Children {
			if !slices.ContainsFunc(child.LocalTS, func(ts ike.TS) bool { return ts.Proto == esp.ProtoESP }) {
				continue
			}
			for i := range child.Proposals {
				for _, sa := range proposedSAs(&child.Proposals[i]) {
					if sa.Proto == esp.AH {
						sa.Mode, sa.Remote = esp.Transport, netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
						most = max(most, mtu-sa.MaxPacket(mtu))
					}
				}
			}
		}
	}
	return most
}
