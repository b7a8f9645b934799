package iketest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"postern/esp"
	"postern/ike"
)

// packet is one inner packet and its fate.
type packet struct {
	number   uint32
	from, to *Host
	child    string
	content  []byte
	sent     time.Duration
	accepted int
}

// addSA puts one direction of a CHILD SA in place.
func (h *Host) addSA(c *ike.ChildSA) {
	h.note("adds %s SA %08x of %s {%d}%s", direction(c.Dir), c.SPI, c.Child, c.ID, map[bool]string{true: ", on standby"}[c.Standby])
	h.checkNew(c)
	if h.sim.err != nil {
		return
	}
	if c.Dir == esp.In {
		in, err := esp.NewInbound(&c.SA, 1)
		if err != nil {
			h.sim.Fail("%s: the inbound SA %08x cannot be built: %v", h.Name, c.SPI, err)
			return
		}
		t := h.slot(c.SPI)
		t.sa, t.in = c, in
		h.sim.stats.Installed++
		return
	}
	out, err := esp.NewOutbound(&c.SA, 1)
	if err != nil {
		h.sim.Fail("%s: the outbound SA %08x cannot be built: %v", h.Name, c.SPI, err)
		return
	}
	o := &outSA{sa: c, out: out, standby: c.Standby}
	if o.standby {
		h.outs = append(h.outs, o)
	} else {
		h.outs = slices.Insert(h.outs, 0, o)
	}
}

// findOut returns the place of an outbound SA, or -1.
func (h *Host) findOut(spi, inbound uint32) int {
	return slices.IndexFunc(h.outs, func(o *outSA) bool { return o.sa.SPI == spi && o.sa.Inbound == inbound })
}

// delSA takes one direction away.
func (h *Host) delSA(spi, inbound uint32, dir esp.Direction) {
	h.note("deletes %s SA %08x", direction(dir), spi)
	if dir == esp.In {
		t := h.slot(spi)
		if t == nil || t.in == nil {
			h.sim.Fail("%s takes out the inbound SA %08x, which is not there", h.Name, spi)
			return
		}
		t.in.Wipe()
		if t.freed {
			*t = slot{}
		} else {
			*t = slot{spi: spi}
		}
		return
	}
	i := h.findOut(spi, inbound)
	if i < 0 {
		h.sim.Fail("%s takes out the outbound SA %08x of %08x, which is not there", h.Name, spi, inbound)
		return
	}
	h.outs[i].out.Wipe()
	h.outs = slices.Delete(h.outs, i, i+1)
}

// useSA moves traffic to an outbound SA that was kept aside.
func (h *Host) useSA(spi, inbound uint32) {
	h.note("uses outbound SA %08x", spi)
	i := h.findOut(spi, inbound)
	if i < 0 {
		h.sim.Fail("%s is to use the outbound SA %08x of %08x, which is not there", h.Name, spi, inbound)
		return
	}
	o := h.outs[i]
	if !o.standby {
		h.sim.Fail("%s is to use the outbound SA %08x, which is in use already", h.Name, spi)
		return
	}
	o.standby = false
	h.outs = slices.Insert(slices.Delete(h.outs, i, i+1), 0, o)
}

// moveSA sends what an outbound SA protects along another path.
func (h *Host) moveSA(spi, inbound uint32, p ike.Path, encap bool) {
	h.note("moves outbound SA %08x to %v > %v, in UDP: %v", spi, p.Local, p.Remote, encap)
	i := h.findOut(spi, inbound)
	if i < 0 {
		h.sim.Fail("%s is to move the outbound SA %08x of %08x, which is not there", h.Name, spi, inbound)
		return
	}
	o := h.outs[i].sa
	o.Local, o.Remote, o.Encap = p.Local, p.Remote, encap
	if t := h.slot(inbound); t != nil && t.in != nil {
		t.sa.Local, t.sa.Remote, t.sa.Encap = p.Local, p.Remote, encap
	}
}

func direction(d esp.Direction) string {
	if d == esp.In {
		return "inbound"
	}
	return "outbound"
}

// Send seals one UDP packet from src to dst, on the given port at both ends, and sends
// it to whoever holds the other end of the SA. It returns nil when no SA wants it.
func (h *Host) Send(src, dst netip.Addr, port uint16) *packet {
	if !h.up {
		return nil
	}
	s := h.sim
	flow := esp.Flow{Local: src, Remote: dst, Proto: esp.ProtoUDP, LocalPort: port, RemotePort: port}
	i := slices.IndexFunc(h.outs, func(o *outSA) bool {
		return !o.standby && esp.MatchFlow(o.sa.LocalTS, o.sa.RemoteTS, &flow)
	})
	if i < 0 {
		h.acquire(&flow)
		return nil
	}
	o, grow := h.inLane(h.outs[i], &flow)
	if grow != nil {
		defer h.grow(grow)
	}
	if o == nil {
		return nil
	}
	p := &packet{number: uint32(len(s.packets)), from: h, child: o.sa.Child, sent: s.now}
	p.content = inner(src, dst, port, p.number)
	s.packets = append(s.packets, p)
	s.stats.Packets++
	next := uint8(esp.ProtoIPv4)
	if src.Is6() {
		next = esp.ProtoIPv6
	}
	buf := make([]byte, esp.HeadRoom+len(p.content)+esp.TailRoom)
	copy(buf[esp.HeadRoom:], p.content)
	start, end, err := o.out.Seal(0, buf, esp.HeadRoom, len(p.content), next)
	if errors.Is(err, esp.ErrExpired) {
		h.limit(o.sa.Inbound, true)
		return p
	}
	if err != nil {
		s.Fail("%s cannot seal with the SA %08x: %v", h.Name, o.sa.SPI, err)
		return nil
	}
	o.octets += uint64(len(p.content))
	o.last = h.clock().Mono
	if o.out.Due() {
		h.limit(o.sa.Inbound, false)
	}
	local, remote := o.sa.Local, o.sa.Remote
	if !o.sa.Encap {
		local, remote = netip.AddrPortFrom(local.Addr(), 0), netip.AddrPortFrom(remote.Addr(), 0)
	} else if local.Port() != portNATT {
		s.Fail("%s: the SA %08x is to leave in UDP from port %d, which does not carry ESP", h.Name, o.sa.SPI, local.Port())
		return nil
	}
	if !slices.Contains(h.Addrs, local.Addr()) || h.Down {
		return p // the kernel refuses it
	}
	s.transmit(h, datagram{kind: esps, src: local, dst: remote, data: buf[start:end], packet: p})
	return p
}

// acquire asks for the child that traps a packet for which there is no SA, but for each no
// more than once a second.
func (h *Host) acquire(flow *esp.Flow) {
	for _, c := range h.check.cfg.Conns {
		for _, k := range c.Children {
			at, asked := h.acquired[k.Name]
			if k.StartAction != ike.StartTrap || asked && h.sim.now-at < time.Second ||
				!esp.MatchFlow(selectors(k.LocalTS), selectors(k.RemoteTS), flow) {
				continue
			}
			if h.acquired == nil {
				h.acquired = map[string]time.Duration{}
			}
			h.acquired[k.Name] = h.sim.now
			h.sim.stats.Acquired++
			h.note("a packet wants %s", k.Name)
			h.step(func(now ike.Time) {
				h.M.Command(now, ike.Command{Kind: ike.CmdAcquire, Conn: c.Name, Child: k.Name, Flow: *flow})
			})
			return
		}
	}
}

func selectors(list []ike.TS) (out []esp.Selector) {
	for _, t := range list {
		out = append(out, t.Selector)
	}
	return out
}

// limit tells the machine that a pair has reached its soft or its hard limit.
func (h *Host) limit(spi uint32, hard bool) {
	h.note("limit of %08x is reached, hard %v", spi, hard)
	h.step(func(now ike.Time) { h.M.Command(now, ike.Command{Kind: ike.CmdLimit, SPI: spi, Hard: hard}) })
}

// inner makes an IP packet with UDP and its own number inside.
func inner(src, dst netip.Addr, port uint16, number uint32) []byte {
	const payload = 8
	udp := binary.BigEndian.AppendUint16(nil, port)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, 8+payload)
	udp = append(udp, 0, 0, 's', 'i', 'm', ' ')
	udp = binary.BigEndian.AppendUint32(udp, number)
	var ip []byte
	if src.Is4() {
		ip = []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, esp.ProtoUDP, 0, 0}
	} else {
		ip = []byte{0x60, 0, 0, 0, 0, byte(len(udp)), esp.ProtoUDP, 64}
	}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	return append(ip, udp...)
}

// open takes an ESP packet from the network.
func (h *Host) open(d *datagram) {
	s, p := h.sim, d.packet
	spi := esp.SPIOf(d.data)
	t := h.slot(spi)
	if t == nil || t.in == nil {
		s.stats.Stray++
		h.note("has no SA %08x for packet %d", spi, p.number)
		path := ike.Path{Local: netip.AddrPortFrom(d.dst.Addr(), portNATT), Remote: d.src, NATT: true}
		if d.dst.Port() == 0 {
			path = ike.Path{Local: netip.AddrPortFrom(d.dst.Addr(), portIKE), Remote: netip.AddrPortFrom(d.src.Addr(), portIKE)}
		}
		h.step(func(now ike.Time) { h.M.Command(now, ike.Command{Kind: ike.CmdInvalidSPI, SPI: spi, Path: path}) })
		return
	}
	if (d.dst.Port() != 0) != t.sa.Encap {
		h.note("gets packet %d in UDP: %v, which its SA does not expect", p.number, d.dst.Port() != 0)
	}
	payload, next, err := t.in.Open(0, d.data)
	if errors.Is(err, esp.ErrReplay) && p.accepted > 0 {
		return // a copy
	}
	if errors.Is(err, esp.ErrExpired) {
		h.limit(spi, true)
		return
	}
	if err != nil {
		s.Fail("%s cannot open packet %d of %s with the SA %08x of %s {%d}: %v: the keys of the two sides differ, or the window is at fault",
			h.Name, p.number, p.from.Name, spi, t.sa.Child, t.sa.ID, err)
		return
	}
	got, err := esp.CutInner(payload, next)
	if err != nil || !bytes.Equal(got, p.content) {
		s.Fail("%s opens packet %d to something else than was sealed (%v)", h.Name, p.number, err)
		return
	}
	var flow esp.Flow
	if err := esp.ParseFlow(got, false, &flow); err != nil || !esp.MatchFlow(t.sa.LocalTS, t.sa.RemoteTS, &flow) {
		s.Fail("%s gets packet %d through the SA %08x of %s, whose selectors it does not fit (%v)", h.Name, p.number, spi, t.sa.Child, err)
		return
	}
	if p.child != t.sa.Child {
		s.Fail("%s gets packet %d through %s, but it was sent through %s", h.Name, p.number, t.sa.Child, p.child)
		return
	}
	if p.accepted++; p.accepted > 1 {
		s.Fail("%s accepts packet %d twice", h.Name, p.number)
		return
	}
	p.to = h
	t.lastIn = h.clock().Mono
	s.stats.Opened++
	if t.in.Due() {
		h.limit(spi, false)
	}
	if t.sa.Encap && d.dst.Port() != 0 && d.src != t.sa.Remote {
		h.step(func(now ike.Time) {
			h.M.Command(now, ike.Command{Kind: ike.CmdMoved, SPI: spi, Path: ike.Path{Local: d.dst, Remote: d.src, NATT: true}})
		})
	}
}
