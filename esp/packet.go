package esp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// A whole IP packet goes out through SealPacket and comes in through OpenPacket, whatever
// protocol and mode its SA has:
//
//	 SA               the datagram that leaves and arrives
//	ESP tunnel       ESP | packet
//	ESP transport    ESP | what follows the packet's IP header
//	ESP BEET         ESP | what follows the packet's IP header, after a BEET header if it had options
//	AH tunnel        IP | AH | packet
//	AH transport     IP, options, extension headers | AH | what follows them
//
// Only AH puts the IP header there by itself (Datagram.Whole): it covers it. ESP does where it is
// asked to, so that AH can go around it, and where a packet in transport mode has options or
// extension headers that belong before ESP. Otherwise whoever sends makes the outer header
// of the datagram's addresses, TOS, TTL and DF, and whoever receives tells them.

// HeadRoomWhole is how many octets must be free before a packet that SealPacket gets, whatever the SA:
// IPv6's header and the longest AH. TailRoom octets after it are always enough.
const HeadRoomWhole = ipv6Len + ahFixedLen + maxAHICV

// OpenRoom is how much longer than a datagram its buffer must be for OpenPacket, whatever the SA, if
// no more than 18 octets of room are asked for: in transport mode IPv6's header takes more
// than ESP has taken off.
const OpenRoom = 40

// form is how an SA differs from ESP in tunnel mode.
type form struct {
	proto Protocol
	mode  Mode
	ah    ahShape

	// BEET: the addresses inside. Transport mode, inbound: those that the peer knows.
	local, remote netip.Addr
}

// esp in tunnel mode, which has no form of its own.
var plain form

// newForm returns the form of sa, nil for ESP in tunnel mode.
func newForm(sa *SA) (*form, error) {
	if (sa.Proto == AH) != (sa.Suite.Encr == EncrNone) {
		return nil, fmt.Errorf("esp: SA %08x: %s is not a suite of %s: AH has an integrity transform alone, ESP a cipher", sa.SPI, sa.Suite, sa.Proto)
	}
	f := &form{proto: sa.Proto, mode: sa.Mode}
	switch {
	case sa.Proto > AH || sa.Mode > BEET:
		return nil, fmt.Errorf("esp: SA %08x: %s in mode %s is not known", sa.SPI, sa.Proto, sa.Mode)
	case sa.Proto == AH && sa.Mode == BEET:
		return nil, fmt.Errorf("esp: SA %08x: BEET is a mode of ESP alone, use tunnel or transport mode with AH", sa.SPI)
	case sa.Proto == AH && sa.Encap:
		return nil, fmt.Errorf("esp: SA %08x: AH cannot be encapsulated in UDP and does not pass a NAT, use ESP", sa.SPI)
	case sa.Proto == AH:
		row, _ := sa.Suite.Integ.row()
		f.ah = ahShape{row.iv, row.icv}
	case sa.Mode == Tunnel:
		return nil, nil
	}
	switch sa.Mode {
	case Transport:
		f.local, f.remote = sa.OrigLocal.Unmap(), sa.OrigRemote.Unmap()
	case BEET:
		var err error
		if f.local, err = onlyAddr(sa, sa.LocalTS); err != nil {
			return nil, err
		}
		if f.remote, err = onlyAddr(sa, sa.RemoteTS); err != nil {
			return nil, err
		}
		if f.local.Is4() != f.remote.Is4() {
			return nil, fmt.Errorf("esp: SA %08x: the inner addresses %s and %s are of two families", sa.SPI, f.local, f.remote)
		}
	}
	return f, nil
}

// onlyAddr returns the one address that selectors of an SA in BEET mode have.
func onlyAddr(sa *SA, ts []Selector) (netip.Addr, error) {
	for i := range ts {
		if ts[i].Start != ts[i].End || ts[i].Start != ts[0].Start {
			return netip.Addr{}, fmt.Errorf("esp: SA %08x: BEET has one address on each side, not %s", sa.SPI, ts[i])
		}
	}
	if len(ts) == 0 || !ts[0].Start.IsValid() {
		return netip.Addr{}, fmt.Errorf("esp: SA %08x: BEET needs selectors with one address on each side", sa.SPI)
	}
	return ts[0].Start, nil
}

// plan is how one packet will be sealed.
type plan struct {
	p       prefix // of the packet in transport mode and BEET
	body, n int    // what follows AH or ESP: buf[body:body+n]
	next    uint8  // what it is
	v6      bool   // the outer header is IPv6's
	head    int    // octets before AH or ESP in the result: nothing unless it is whole
	beet    int    // octets of BEET header, at the beginning of the body
	routed  bool   // the header's destination is not the packet's
	tos     uint8
	ttl     uint8 // 0: the default
	df      bool
}

// plan finds out how to seal the packet buf[off:off+n] and whether that is possible. It changes
// nothing.
func (o *Outbound) plan(pl *plan, buf []byte, off, n int, d *Datagram) error {
	f := o.form
	if f == nil {
		f = &plain
	}
	if uint(n) > uint(len(buf)) || uint(off) > uint(len(buf)-n) {
		return ErrNoRoom
	}
	pkt := buf[off : off+n]
	remote := unzoned(d.Remote.Addr())
	*pl = plan{v6: remote.Is6()}
	var err error
	switch f.mode {
	case Tunnel:
		err = pl.tunnel(pkt)
	case Transport:
		err = pl.transport(pkt, f, d, remote)
	case BEET:
		err = pl.beetMode(pkt, f)
	}
	if err != nil {
		return err
	}
	pl.body += off
	if f.mode != Transport && (d.Whole || f.proto == AH) {
		if !d.Local.IsValid() || unzoned(d.Local).Is6() != pl.v6 {
			return ErrAddresses
		}
		pl.head = headerLen(remote)
	}
	return o.fitsPlan(pl, f, len(buf))
}

// fitsPlan tells whether there is room for what the plan makes, and whether its header can say how
// long it is.
func (o *Outbound) fitsPlan(pl *plan, f *form, size int) error {
	start, end := pl.body, pl.body+pl.n
	if f.proto == AH {
		start -= f.ah.length(pl.v6)
	} else {
		_, last, ok := o.place(size, pl.body, pl.n)
		if !ok {
			return ErrNoRoom
		}
		start, end = start-int(o.shape.front), last
	}
	start -= pl.head
	switch {
	case start < 0:
		return ErrNoRoom
	case !fits(pl.v6, end-start):
		return ErrTooLong
	}
	return nil
}

func (pl *plan) tunnel(pkt []byte) error {
	if _, err := InnerLen(pkt); err != nil {
		return ErrMalformed
	}
	pl.n = len(pkt)
	pl.next, pl.tos, pl.df = outerOf(pkt)
	return nil
}

func (pl *plan) transport(pkt []byte, f *form, d *Datagram, remote netip.Addr) error {
	p := &pl.p
	if err := p.split(pkt); err != nil {
		return err
	}
	last, err := p.last(pkt)
	if err != nil {
		return err
	}
	if p.source(pkt) != unzoned(d.Local) || last != remote {
		return ErrAddresses
	}
	pl.body, pl.next = p.n+p.skip, p.next
	pl.n = p.total - pl.body
	_, pl.tos, pl.df = outerOf(pkt)
	pl.ttl = hopLimit(pkt)
	pl.routed = last != p.first(pkt)
	switch {
	case f.proto == AH:
		pl.head = p.n
		return p.covers(pkt)
	case d.Whole:
		pl.head = p.n
	case p.n == headerLen(remote):
	case d.Remote.Port() != 0: // a UDP header would have to follow the options
		return ErrHeaders
	default:
		pl.head = p.n
	}
	return nil
}

func (pl *plan) beetMode(pkt []byte, f *form) error {
	p := &pl.p
	if err := p.begin(pkt); err != nil {
		return err
	}
	if p.source(pkt) != f.local || p.first(pkt) != f.remote {
		return ErrAddresses
	}
	pl.body, pl.next = p.n, p.next
	if opts := p.n - ipv4MinLen; !p.v6 && opts > 0 {
		pl.beet = beetLen(opts)
		pl.body, pl.next = ipv4MinLen-pl.beet, protoBEET
	}
	pl.n = p.total - pl.body
	_, pl.tos, pl.df = outerOf(pkt)
	pl.ttl = hopLimit(pkt)
	return nil
}

// Check tells whether SealPacket could seal the packet buf[off:off+n] for d, without a change to
// anything: nil, or ErrNoRoom, ErrMalformed, ErrHeaders, ErrFragment, ErrAddresses or ErrTooLong.
func (o *Outbound) Check(buf []byte, off, n int, d *Datagram) error {
	if !o.shape.formed && !d.Whole {
		switch {
		case !o.Fits(buf, off, n):
			return ErrNoRoom
		case n < ipv4MinLen:
			return ErrMalformed
		}
		return nil
	}
	var pl plan
	return o.plan(&pl, buf, off, n, d)
}

// SealPacket protects the IP packet buf[off:off+n] in place, in the SA's protocol and mode, under a
// sequence number that Reserve has granted. HeadRoomWhole octets before the packet and TailRoom
// after it are always enough.
//
// d says where the packet is to go: Local and Remote, the outer addresses, and with port 0
// that there is no UDP around it. In transport mode they must be the packet's own. Whole
// asks for the outer IP header as well. SealPacket sets the rest of d: Buf and N are the result, a
// part of buf; Whole tells that it begins with its IP header; TOS, TTL (0: no matter) and DF are
// what the outer header must carry, or does. A whole packet with a source route has its first
// stop as Remote.
//
// The errors are those of Check, and ErrWiped; each leaves the packet and d as they are.
func (o *Outbound) SealPacket(ctx int, seq uint64, buf []byte, off, n int, d *Datagram) error {
	if o.shape.formed || d.Whole {
		return o.sealForm(ctx, seq, buf, off, n, d)
	}
	if n < ipv4MinLen || uint(off) > uint(len(buf)-n) {
		return o.Check(buf, off, n, d)
	}
	next, tos, df := outerOf(buf[off : off+n])
	start, end, err := o.SealAt(ctx, seq, buf, off, n, next)
	if err != nil {
		return err
	}
	d.Buf, d.N, d.TOS, d.TTL, d.DF = buf[start:end], end-start, tos, 0, df
	return nil
}

// OpenPacket verifies and takes off what SealPacket put around an IP packet, in place. d is the
// datagram as it arrived: Buf[:N] begins with the SPI of ESP, or with the IP header
// if it is Whole, which AH needs; then TOS, TTL and DF are set as it says. Where the IP header has
// been taken off, Local, Remote, TOS and TTL are what it said: in transport mode and BEET it is
// made anew of them. There the packet may not fit where it was: Buf, of which all is free to be used, should have N+OpenRoom octets.
//
// The result is the packet behind room octets that are free as well, all of it in d.Buf. It
// is a single IP packet of the right version and length, and nothing else about it has been
// checked: that it is one which the SA may carry is the caller's to see (RFC 4301 section 5.2).
//
// Of the errors, ErrNextHeader, ErrMalformed, ErrPadding and ErrDummy speak of an authentic packet:
// window and usage have advanced. ErrHeaders, ErrFragment, ErrNoRoom, ErrShort, ErrReplay, ErrAuth,
// ErrExpired and ErrWiped have changed nothing.
func (in *Inbound) OpenPacket(ctx int, d *Datagram, room int) ([]byte, error) {
	if in.shape.formed || d.Whole || int(in.shape.front) < room {
		return in.openForm(ctx, d, room)
	}
	inner, next, err := in.Open(ctx, d.Buf[:d.N])
	if err != nil {
		return nil, err
	}
	if inner, err = cut(inner, next); err != nil {
		return nil, err
	}
	off := int(in.shape.front)
	return d.Buf[off-room : off+len(inner)], nil
}

// Accepted tells whether an error of OpenPacket speaks of an authentic packet.
func Accepted(err error) bool {
	return err == ErrNextHeader || err == ErrMalformed || err == ErrPadding || err == ErrDummy
}

// Formed tells whether OpenPacket may need OpenRoom: for all but ESP in tunnel mode.
func (in *Inbound) Formed() bool { return in.form != nil }

// cut is CutInner with an error that tells dummies and foreign protocols apart.
func cut(inner []byte, next uint8) ([]byte, error) {
	switch next {
	case ProtoIPv4, ProtoIPv6:
		return CutInner(inner, next)
	case ProtoNoNext:
		return nil, ErrDummy
	}
	return nil, ErrNextHeader
}

// outerOf returns what the tunnel's headers take from the inner packet: its protocol number,
// its traffic class (RFC 4301 section 5.1.2; ECN as in RFC 6040's normal mode), and whether
// it must not be fragmented, which holds for all of IPv6.
func outerOf(pkt []byte) (next, tos uint8, df bool) {
	if pkt[0]>>4 == 4 {
		return ProtoIPv4, pkt[1], pkt[6]&(ipv4DF>>8) != 0
	}
	return ProtoIPv6, pkt[0]<<4 | pkt[1]>>4, true
}

// hopLimit returns the TTL or hop limit of an IP packet.
func hopLimit(pkt []byte) uint8 {
	if pkt[0]>>4 == 4 {
		return pkt[8]
	}
	return pkt[7]
}

// unzoned returns an address as it stands in a header.
func unzoned(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// MaxPacket returns the length of the longest IP packet without options and extension headers that
// fits, sealed, into an IP packet of mtu octets: what is in front of it counts as well, IP
// header of Remote's family and with Encap UDP's. It looks at Proto, Mode, Suite, Remote and Encap, and
// with BEET at LocalTS, alone. It is 0 where nothing fits.
func (sa *SA) MaxPacket(mtu int) int {
	head := headerLen(sa.Remote.Addr())
	if sa.Proto == AH {
		row, ok := sa.Suite.Integ.row()
		if !ok {
			return 0
		}
		n := mtu - ahShape{row.iv, row.icv}.length(head == ipv6Len)
		if sa.Mode == Tunnel {
			n -= head
		}
		return max(n, 0)
	}
	space := mtu - head
	if sa.Encap {
		space -= udpLen
	}
	n := sa.Suite.MaxInner(space)
	switch {
	case n == 0 || sa.Mode == Tunnel:
		return n
	case sa.Mode == BEET && len(sa.LocalTS) > 0:
		head = headerLen(sa.LocalTS[0].Start)
	}
	return n + head
}

// SPI returns the SPI of the datagram and the protocol that it belongs to. A Whole one is ESP or
// AH, whichever follows its headers first; otherwise it is ESP. The SPI is 0, which is no SA's,
// where there is none.
func (d *Datagram) SPI() (uint32, Protocol) {
	pkt := d.Buf[:d.N]
	if !d.Whole {
		return SPIOf(pkt), ESP
	}
	var p prefix
	if p.find(pkt, ProtoESP) == nil {
		return SPIOf(pkt[p.n+p.skip : p.total]), ESP
	}
	if p.find(pkt, ProtoAH) != nil || p.total < p.n+p.skip+ahFixedLen {
		return 0, AH
	}
	return binary.BigEndian.Uint32(pkt[p.n+p.skip+4:]), AH
}

// readHeader sets what the header of a Whole datagram that has arrived says.
func (d *Datagram) readHeader() {
	_, d.TOS, d.DF = outerOf(d.Buf)
	d.TTL = hopLimit(d.Buf)
}

// PutHeader writes the IP header that d arrived with to the beginning of pkt, as far as d
// knows it, which is enough for AH: what follows it there, of protocol proto, is already in
// place. It is for sockets that take IPv6's header off.
func (d *Datagram) PutHeader(pkt []byte, proto uint8) {
	h := outerHeader{src: d.Remote.Addr(), dst: d.Local, proto: proto, tos: d.TOS, ttl: d.TTL, df: true}
	h.put(pkt)
}
