package esp

import (
	"encoding/binary"
	"net/netip"
)

const (
	udpLen   = 8
	ipMaxLen = 65535 // of an IPv4 packet, and of what follows IPv6's header

	// maxPrefix is how many octets the headers before AH may have together. IPv4 needs 60,
	// IPv6 376 for the longest routing header that makes sense (23 addresses).
	maxPrefix = 512

	ipv4Fragment = 0x3fff // more fragments, and the offset
	ipv4DF       = 0x4000

	// defaultTTL is the hop limit of headers that are made here and have none to copy, IANA's
	// default for IP.
	defaultTTL = 64
)

// prefix is what stands in a packet before AH or ESP, or will: the IP header with its options
// or extension headers.
type prefix struct {
	v6     bool
	n      int   // octets
	skip   int   // octets behind it that do not count: a fragment header of a whole packet
	nextAt int   // where the number of what follows stands
	next   uint8 // that number
	total  int   // the packet's length by its header
	route  int   // IPv6: where the routing header begins; 0: there is none
}

// split finds where AH or ESP belongs in a packet that has neither yet (RFC 4302 section
// 3.1.1, RFC 4303 section 3.1.1): behind hop-by-hop options, routing header and the options that
// are for its stops; other destination options are the payload's. ErrFragment: only whole
// packets are taken.
func (p *prefix) split(pkt []byte) error {
	if err := p.begin(pkt); err != nil || !p.v6 {
		return err
	}
	for range maxExtHeaders {
		switch p.next {
		case ProtoDstOpts:
			if len(pkt) < p.n+8 || pkt[p.n] != ProtoRouting {
				return nil
			}
		case ProtoHopByHop, ProtoRouting:
		case ProtoFragment:
			return p.skipFragment(pkt)
		default:
			return nil
		}
		if err := p.extension(pkt); err != nil {
			return err
		}
	}
	return ErrHeaders
}

// find finds AH or ESP, whichever proto is, in a packet that has arrived. No more extension
// headers may precede it than RFC 8200 section 4.1 lets stand there.
func (p *prefix) find(pkt []byte, proto uint8) error {
	if err := p.begin(pkt); err != nil {
		return err
	}
	for range maxExtHeaders {
		switch {
		case p.next == proto:
			return nil
		case !p.v6:
			return ErrHeaders
		}
		switch p.next {
		case ProtoHopByHop, ProtoRouting, ProtoDstOpts:
			if err := p.extension(pkt); err != nil {
				return err
			}
		case ProtoFragment:
			if err := p.skipFragment(pkt); err != nil {
				return err
			}
			if p.next == proto {
				return nil
			}
			return ErrHeaders
		default:
			return ErrHeaders
		}
	}
	return ErrHeaders
}

// begin reads the IP header.
func (p *prefix) begin(pkt []byte) error {
	n, err := InnerLen(pkt)
	if err != nil {
		return ErrHeaders
	}
	if pkt[0]>>4 == 4 {
		*p = prefix{n: int(pkt[0]&15) * 4, nextAt: 9, next: pkt[9], total: n}
		if binary.BigEndian.Uint16(pkt[6:])&ipv4Fragment != 0 {
			return ErrFragment
		}
		return nil
	}
	*p = prefix{v6: true, n: ipv6Len, nextAt: 6, next: pkt[6], total: n}
	return nil
}

// extension takes the extension header that follows into the prefix.
func (p *prefix) extension(pkt []byte) error {
	if p.total < p.n+8 {
		return ErrHeaders
	}
	n := 8 + int(pkt[p.n+1])*8
	if p.total < p.n+n {
		return ErrHeaders
	}
	if p.next == ProtoRouting {
		if p.route != 0 {
			return ErrHeaders
		}
		p.route = p.n
	}
	p.nextAt, p.next = p.n, pkt[p.n]
	p.n += n
	return nil
}

// skipFragment passes over the fragment header of a packet that is whole all the same: RFC
// 4302 appendix A2 has it removed.
func (p *prefix) skipFragment(pkt []byte) error {
	if p.total < p.n+8 {
		return ErrHeaders
	}
	if binary.BigEndian.Uint16(pkt[p.n+2:])&0xfff9 != 0 {
		return ErrFragment
	}
	p.next, p.skip = pkt[p.n], 8
	return nil
}

// source returns the source address of the packet whose prefix p is.
func (p *prefix) source(pkt []byte) netip.Addr {
	if p.v6 {
		return netip.AddrFrom16([16]byte(pkt[8:24]))
	}
	return netip.AddrFrom4([4]byte(pkt[12:16]))
}

// first returns the destination address in the header: of the next stop of a source route.
func (p *prefix) first(pkt []byte) netip.Addr {
	if p.v6 {
		return netip.AddrFrom16([16]byte(pkt[24:40]))
	}
	return netip.AddrFrom4([4]byte(pkt[16:20]))
}

// last returns the destination address that the header will have on arrival.
func (p *prefix) last(pkt []byte) (netip.Addr, error) {
	if p.v6 {
		left, err := p.routeLeft(pkt)
		if err != nil || left == 0 {
			return p.first(pkt), err
		}
		end := p.route + 8 + int(pkt[p.route+1])*8
		return netip.AddrFrom16([16]byte(pkt[end-16 : end])), nil
	}
	at, err := routeEnd(pkt[:p.n])
	if err != nil || at == 0 {
		return p.first(pkt), err
	}
	return netip.AddrFrom4([4]byte(pkt[at : at+4])), nil
}

// routeLeft returns how many stops of the routing header are still ahead. What the header of a
// type other than 0 and 2 looks like on arrival is not known here.
func (p *prefix) routeLeft(pkt []byte) (int, error) {
	if p.route == 0 {
		return 0, nil
	}
	h := pkt[p.route:]
	left := int(h[3])
	if left > 0 && (h[2] != 0 && h[2] != 2 || h[1]%2 != 0 || left > int(h[1])/2) {
		return 0, ErrHeaders
	}
	return left, nil
}

// Kinds of IPv4 options that matter to AH (RFC 4302 appendix A1), as octets: copied flag, class
// and number.
const (
	optEnd         = 0
	optNop         = 1
	optSecurity    = 130
	optLooseRoute  = 131
	optExtSecurity = 133
	optCommercial  = 134
	optStrictRoute = 137
	optRouterAlert = 148
	optDirected    = 149
)

// nextOption returns the kind and length of the option at h[at]; ok is false behind the last
// one, and the error is ErrHeaders for one that is not whole.
func nextOption(h []byte, at int) (kind uint8, n int, ok bool, err error) {
	if at >= len(h) || h[at] == optEnd {
		return 0, 0, false, nil
	}
	if h[at] == optNop {
		return optNop, 1, true, nil
	}
	if at+1 >= len(h) || h[at+1] < 2 || at+int(h[at+1]) > len(h) {
		return 0, 0, false, ErrHeaders
	}
	return h[at], int(h[at+1]), true, nil
}

// routeEnd returns where in an IPv4 header the last address of a source route stands that is
// still to be travelled; 0: there is none.
func routeEnd(h []byte) (end int, err error) {
	for at := ipv4MinLen; ; {
		kind, n, ok, err := nextOption(h, at)
		if err != nil || !ok {
			return end, err
		}
		if kind == optLooseRoute || kind == optStrictRoute {
			switch {
			case n < 3 || (n-3)%4 != 0 || end != 0:
				return 0, ErrHeaders
			case int(h[at+2]) <= n-3:
				end = at + n - 4
			}
		}
		at += n
	}
}

// outerHeader is what an IP header is made of that is not copied.
type outerHeader struct {
	src, dst netip.Addr
	proto    uint8
	tos, ttl uint8
	df       bool
	id       uint16
}

// headerLen returns the length of the header that put writes.
func headerLen(a netip.Addr) int {
	if a.Is4() || a.Is4In6() {
		return ipv4MinLen
	}
	return ipv6Len
}

// put writes an IP header without options for a packet that fills pkt.
func (h *outerHeader) put(pkt []byte) {
	ttl := h.ttl
	if ttl == 0 {
		ttl = defaultTTL
	}
	if headerLen(h.dst) == ipv6Len {
		src, dst := h.src.As16(), h.dst.As16()
		binary.BigEndian.PutUint32(pkt, 6<<28|uint32(h.tos)<<20)
		binary.BigEndian.PutUint16(pkt[4:], uint16(len(pkt)-ipv6Len))
		pkt[6], pkt[7] = h.proto, ttl
		copy(pkt[8:], src[:])
		copy(pkt[24:], dst[:])
		return
	}
	src, dst := h.src.Unmap().As4(), h.dst.Unmap().As4()
	pkt[0], pkt[1] = 0x45, h.tos
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(pkt[4:], h.id)
	binary.BigEndian.PutUint16(pkt[6:], 0)
	if h.df {
		pkt[6] = ipv4DF >> 8
	}
	pkt[8], pkt[9] = ttl, h.proto
	copy(pkt[12:], src[:])
	copy(pkt[16:], dst[:])
	sumIPv4(pkt[:ipv4MinLen])
}

// fix completes a prefix that has been moved: pkt is the packet that it heads now, followed by
// proto.
func (p *prefix) fix(pkt []byte, proto uint8) {
	pkt[p.nextAt] = proto
	if p.v6 {
		binary.BigEndian.PutUint16(pkt[4:], uint16(len(pkt)-ipv6Len))
		return
	}
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	sumIPv4(pkt[:p.n])
}

// identify gives an IPv4 header an identification if it has none: where the system gets
// the whole header it replaces 0 by a number of its own, which AH would not have covered.
func identify(pkt []byte, seq uint64) {
	if pkt[0]>>4 == 4 && binary.BigEndian.Uint16(pkt[4:]) == 0 {
		binary.BigEndian.PutUint16(pkt[4:], identification(seq))
	}
}

// identification makes one of a sequence number: any but 0.
func identification(seq uint64) uint16 { return uint16(seq%0xffff) + 1 }

// fits tells whether a packet of n octets can be described by its header.
func fits(v6 bool, n int) bool {
	if v6 {
		n -= ipv6Len
	}
	return n <= ipMaxLen
}

// sum adds the 16-bit words of b to acc, as RFC 1071 does.
func sum(b []byte, acc uint64) uint64 {
	for len(b) >= 4 {
		acc += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		acc += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		acc += uint64(b[0]) << 8
	}
	return acc
}

// fold makes 16 bits of a sum.
func fold(acc uint64) uint16 {
	for acc > 0xffff {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

// sumIPv4 writes the checksum of an IPv4 header.
func sumIPv4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(h, 0)))
}
