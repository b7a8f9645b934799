package esp

import "encoding/binary"

// cover writes to dst, which has maxPrefix octets, the prefix of pkt as AH's ICV covers it, and
// returns it (RFC 4302 section 3.3.3.1): what may change on the way is zero, and what
// changes as the sender can foresee is as it will be on arrival. total is the length of the packet
// without what p skips. arrived tells that the packet is there.
func (p *prefix) cover(dst, pkt []byte, total int, arrived bool) ([]byte, error) {
	if p.n > len(dst) {
		return nil, ErrHeaders
	}
	h := dst[:p.n]
	copy(h, pkt)
	h[p.nextAt] = ProtoAH
	if p.v6 {
		binary.BigEndian.PutUint16(h[4:], uint16(total-ipv6Len))
		return h, p.cover6(h, arrived)
	}
	binary.BigEndian.PutUint16(h[2:], uint16(total))
	return h, cover4(h, arrived)
}

// cover4 is cover for IPv4 (section 3.3.3.1.1): an option that is not known to be immutable is
// zeroed from its kind to its end.
func cover4(h []byte, arrived bool) error {
	h[1], h[8] = 0, 0 // DSCP and ECN; TTL
	h[6], h[7] = 0, 0 // flags and offset
	h[10], h[11] = 0, 0
	if len(h) == ipv4MinLen {
		return nil
	}
	if !arrived {
		end, err := routeEnd(h)
		if err != nil {
			return err
		}
		if end != 0 {
			copy(h[16:20], h[end:end+4])
		}
	}
	for at := ipv4MinLen; ; {
		kind, n, ok, err := nextOption(h, at)
		if err != nil || !ok {
			return err
		}
		switch kind {
		case optNop, optSecurity, optExtSecurity, optCommercial, optRouterAlert, optDirected:
		default:
			clear(h[at : at+n])
		}
		at += n
	}
}

// cover6 is cover for IPv6 (section 3.3.3.1.2). Extension headers are walked as find and split
// have found them.
func (p *prefix) cover6(h []byte, arrived bool) error {
	binary.BigEndian.PutUint32(h, 6<<28) // traffic class and flow label
	h[7] = 0                             // hop limit
	left, err := p.routeLeft(h)
	switch {
	case err != nil:
		return err
	case left > 0 && arrived: // for somebody else
		return ErrHeaders
	case left > 0:
		p.travel(h, left)
	}
	next := h[6]
	for at := ipv6Len; at < len(h); {
		n := 8 + int(h[at+1])*8
		if next != ProtoRouting {
			if err := eachMutable(h[at+2:at+n], zero); err != nil {
				return err
			}
		}
		next = h[at]
		at += n
	}
	return nil
}

// travel turns header and routing header into what arrives when the left stops have exchanged
// destination and address (RFC 2460 section 4.4).
func (p *prefix) travel(h []byte, left int) {
	r := h[p.route:]
	r[3] = 0
	end := 8 + int(r[1])*8
	from := end - 16*left
	var first, last [16]byte
	copy(first[:], h[24:40])
	copy(last[:], r[end-16:end])
	copy(r[from+16:end], r[from:end-16])
	copy(r[from:], first[:])
	copy(h[24:40], last[:])
}

// covers tells whether cover will do the prefix of pkt, whose source route last has read.
func (p *prefix) covers(pkt []byte) error {
	if p.n > maxPrefix {
		return ErrHeaders
	}
	if !p.v6 {
		return nil
	}
	next := pkt[6]
	for at := ipv6Len; at < p.n; {
		n := 8 + int(pkt[at+1])*8
		if next != ProtoRouting {
			if err := eachMutable(pkt[at+2:at+n], nil); err != nil {
				return err
			}
		}
		next = pkt[at]
		at += n
	}
	return nil
}

// optMutable is the bit in the type of an IPv6 option which says that its data may change on the
// way (RFC 8200 section 4.2).
const optMutable = 0x20

// eachMutable calls do with the data of each mutable option in the options of an IPv6 extension
// header.
func eachMutable(opts []byte, do func([]byte)) error {
	for at := 0; at < len(opts); {
		if opts[at] == 0 { // Pad1, which has no length
			at++
			continue
		}
		if at+1 >= len(opts) || at+2+int(opts[at+1]) > len(opts) {
			return ErrHeaders
		}
		end := at + 2 + int(opts[at+1])
		if do != nil && opts[at]&optMutable != 0 {
			do(opts[at+2 : end])
		}
		at = end
	}
	return nil
}

// zero overwrites b.
func zero(b []byte) { clear(b) }
