package esp

import (
	"encoding/binary"
	"net/netip"
)

// sealForm is SealPacket for all but ESP in tunnel mode.
func (o *Outbound) sealForm(ctx int, seq uint64, buf []byte, off, n int, d *Datagram) error {
	var pl plan
	if err := o.plan(&pl, buf, off, n, d); err != nil {
		return err
	}
	f := o.form
	if f == nil {
		f = &plain
	}
	if f.proto == AH {
		return o.sealAH(ctx, seq, buf, off, &pl, d)
	}

	// What stands where ESP's header will be has to move, and back if nothing comes of it.
	moved := 0
	var under [beetMax]byte
	switch {
	case pl.beet > 0:
		copy(under[:], buf[pl.body:pl.body+pl.beet])
		putBEET(buf[pl.body:], pl.p.n-ipv4MinLen, pl.p.next)
	case f.mode == Transport && pl.head > 0:
		moved = pl.body - int(o.shape.front) - pl.head
		copy(buf[moved:], buf[off:off+pl.p.n])
	}
	start, end, err := o.SealAt(ctx, seq, buf, pl.body, pl.n, pl.next)
	if err != nil {
		switch {
		case pl.beet > 0:
			copy(buf[pl.body:], under[:pl.beet])
		case f.mode == Transport && pl.head > 0:
			copy(buf[off:], buf[moved:moved+pl.p.n])
		}
		return err
	}
	pkt := buf[start-pl.head : end]
	switch {
	case pl.head == 0:
	case f.mode == Transport:
		identify(pkt, seq)
		pl.p.fix(pkt, ProtoESP)
	default:
		h := pl.header(d, ProtoESP, seq)
		h.put(pkt)
	}
	pl.deliver(d, pkt)
	return nil
}

// header returns the outer header that a plan asks for.
func (pl *plan) header(d *Datagram, proto uint8, seq uint64) outerHeader {
	return outerHeader{
		src: d.Local, dst: d.Remote.Addr(), proto: proto,
		tos: pl.tos, ttl: pl.ttl, df: pl.df, id: identification(seq),
	}
}

// deliver completes the datagram that pkt is.
func (pl *plan) deliver(d *Datagram, pkt []byte) {
	d.Buf, d.N, d.Whole = pkt, len(pkt), pl.head > 0
	d.TOS, d.TTL, d.DF = pl.tos, pl.ttl, pl.df
	if pl.routed && d.Whole {
		d.Remote = netip.AddrPortFrom(pl.p.first(pkt), 0)
	}
}

// openForm is OpenPacket for all but ESP in tunnel mode.
func (in *Inbound) openForm(ctx int, d *Datagram, room int) ([]byte, error) {
	f := in.form
	if f == nil {
		f = &plain
	}
	if f.proto == AH {
		return in.openAH(ctx, d, room)
	}

	pkt := d.Buf[:d.N]
	var p prefix
	base := 0 // where ESP begins
	if d.Whole {
		if err := p.find(pkt, ProtoESP); err != nil {
			return nil, err
		}
		base, pkt = p.n+p.skip, pkt[:p.total]
		d.readHeader()
	}
	head := 0 // of the header to be made
	switch {
	case f.mode == BEET:
		head = headerLen(f.local)
	case f.mode == Transport && d.Whole:
		head = p.n
	case f.mode == Transport:
		if !d.Local.IsValid() || !d.Remote.Addr().IsValid() || headerLen(d.Local) != headerLen(d.Remote.Addr()) {
			return nil, ErrHeaders
		}
		head = headerLen(d.Local)
	}
	at := base + int(in.shape.front) // where the payload begins
	if most := len(pkt) - at - trailerLen - int(in.shape.icv); at < room+head && room+head+most > len(d.Buf) {
		return nil, ErrNoRoom
	}

	inner, next, err := in.Open(ctx, pkt[base:])
	if err != nil {
		return nil, err
	}
	if next == ProtoNoNext {
		return nil, ErrDummy
	}
	if f.mode == Tunnel {
		if inner, err = cut(inner, next); err != nil {
			return nil, err
		}
		return behind(d.Buf, at, len(inner), room), nil
	}

	opts := 0
	if f.mode == BEET && next == protoBEET && head == ipv4MinLen {
		var n int
		if n, opts, next, err = cutBEET(inner); err != nil {
			return nil, err
		}
		at, inner = at+n, inner[n:]
	}
	if !fits(head == ipv6Len, head+len(inner)) {
		return nil, ErrMalformed
	}
	if at < room+head {
		copy(d.Buf[room+head:], inner)
		at = room + head
	}
	start, end := at-head, at+len(inner)
	out := d.Buf[start:end]
	switch {
	case f.mode == BEET:
		h := outerHeader{src: f.remote, dst: f.local, proto: next, tos: d.TOS, ttl: d.TTL, df: true}
		h.put(out)
		if opts > 0 {
			out[0] += uint8(opts / 4)
			sumIPv4(out[:ipv4MinLen+opts])
		}
	case d.Whole:
		copy(out, d.Buf[:p.n])
		p.fix(out, next)
	default:
		d.PutHeader(out, next)
	}
	if f.mode == Transport {
		f.mend(out, d.Remote.Port() != 0)
	}
	return d.Buf[start-room : end], nil
}

// The BEET header carries IPv4 options behind ESP (draft-nikander-esp-beet-mode section 5.2.1, as
// Linux has it: the options follow the header and its padding, before the payload):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next header   |  Length       |  Padding: 0/4 |  Reserved: 0  |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Padding, no-operation options; then the options              |
//
// Length is that of all of it in units of 8 octets, without the first.
const (
	protoBEET  = 94
	beetFixed  = 4
	beetMax    = 8
	maxOptions = 40 // octets, of IPv4
)

// beetLen returns the length of the header and its padding before so many octets of options.
func beetLen(opts int) int { return beetMax - opts&4 }

// putBEET writes the header before so many octets of options and what is next.
func putBEET(b []byte, opts int, next uint8) {
	n := beetLen(opts)
	b[0], b[1], b[2], b[3] = next, uint8(opts/8), uint8(n-beetFixed), 0
	for i := beetFixed; i < n; i++ {
		b[i] = optNop
	}
}

// cutBEET reads the header at the beginning of a payload: n octets, before opts of options and
// what is next.
func cutBEET(b []byte) (n, opts int, next uint8, err error) {
	if len(b) < beetFixed {
		return 0, 0, 0, ErrMalformed
	}
	n = beetFixed + int(b[2])
	opts = 8 + int(b[1])*8 - n
	if opts < 0 || opts%4 != 0 || opts > maxOptions || n+opts > len(b) {
		return 0, 0, 0, ErrMalformed
	}
	return n, opts, b[0], nil
}

// Where the checksum that covers the addresses stands in what follows an IP header, and how long
// that header is at least.
func checksumAt(proto uint8, v6 bool) (at, least int) {
	switch {
	case proto == ProtoTCP:
		return 16, 20
	case proto == ProtoUDP || proto == ProtoUDPLite:
		return 6, 8
	case proto == ProtoDCCP:
		return 6, 12
	case proto == ProtoICMPv6 && v6:
		return 2, 4
	}
	return 0, 0
}

// mend makes the checksum of a packet right whose addresses a NAT has changed, which it could not
// do itself behind ESP (RFC 3948 section 3.1.2): by the difference to the addresses that the peer
// knows, or anew where these are unknown and the packet came in UDP. The ICV vouches for what is
// summed up anew. Protocols whose checksum does not cover the addresses stay as they are.
func (f *form) mend(pkt []byte, encap bool) {
	known := f.local.IsValid() || f.remote.IsValid()
	if !known && !encap {
		return
	}
	proto, l4, v6 := uint8(0), []byte(nil), pkt[0]>>4 == 6
	addrs := pkt[12:20]
	if v6 {
		var whole bool
		var err error
		if proto, l4, _, whole, err = walkIPv6(pkt[6], pkt[ipv6Len:]); err != nil || !whole {
			return
		}
		addrs = pkt[8:40]
	} else {
		proto, l4 = pkt[9], pkt[int(pkt[0]&15)*4:]
	}
	at, least := checksumAt(proto, v6)
	if least == 0 || len(l4) < least {
		return
	}
	field := l4[at : at+2]
	old := binary.BigEndian.Uint16(field)
	if proto == ProtoUDP && old == 0 { // it has none
		return
	}
	var acc uint64
	switch {
	case known:
		half := len(addrs) / 2
		src, dst := f.known(f.remote, addrs[:half]), f.known(f.local, addrs[half:])
		if src == 0 && dst == 0 {
			return
		}
		acc = uint64(^old) + src + dst
	case proto == ProtoUDPLite || proto == ProtoDCCP: // they do not cover all that follows
		return
	default:
		if proto == ProtoUDP {
			n := int(binary.BigEndian.Uint16(l4[4:]))
			if n < least || n > len(l4) {
				return
			}
			l4 = l4[:n]
		}
		field[0], field[1] = 0, 0
		acc = sum(addrs, uint64(proto)+uint64(len(l4)))
		acc = sum(l4, acc)
	}
	check := ^fold(acc)
	if check == 0 && proto != ProtoTCP && proto != ProtoICMPv6 { // 0 says that there is none
		check = 0xffff
	}
	binary.BigEndian.PutUint16(field, check)
}

// known returns what has to be added to the complement of a checksum for an address that was
// orig for the peer (RFC 1624); 0: nothing.
func (f *form) known(orig netip.Addr, now []byte) uint64 {
	if !orig.IsValid() {
		return 0
	}
	b := orig.As16()
	was := b[:]
	if orig.Is4() {
		was = b[12:]
	}
	if string(was) == string(now) {
		return 0
	}
	return uint64(^fold(sum(was, 0))) + sum(now, 0)
}
