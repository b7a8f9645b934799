package esp

import "encoding/binary"

// Fragment is what an IP packet says of the fragment that it is. Start and End are octets from
// the beginning of what was taken apart: Start is a multiple of 8, End is at most 65535 and more than Start.
type Fragment struct {
	ID         uint32 // 16 bits of IPv4
	Start, End int
	More       bool  // it is not the last one
	Proto      uint8 // what the fragments begin with; of IPv6 this may be an extension header
}

// Ported tells whether the packet may have ports, or what stands for them, in its first fragment.
func (f *Fragment) Ported() bool {
	switch f.Proto {
	case ProtoHopByHop, ProtoRouting, ProtoDstOpts, ProtoHIP, ProtoShim6:
		return true // they may be behind these
	}
	return HasPorts(f.Proto)
}

// MayBeFragment tells whether ParseFragment is worth a call. pkt has passed ParseFlow.
func MayBeFragment(pkt []byte) bool {
	if pkt[0]>>4 == 4 {
		return pkt[6]&0x3f|pkt[7] != 0
	}
	switch pkt[6] {
	case ProtoHopByHop, ProtoRouting, ProtoFragment, ProtoDstOpts, ProtoHIP, ProtoShim6:
		return true
	}
	return false
}

// ParseFragment reads what a packet that has passed ParseFlow says of the fragment that it is.
// ok is false for a whole packet, an atomic fragment of IPv6 included: its fragment header says
// nothing (RFC 6946 section 4).
//
// ErrMalformed, with f undefined: no datagram has such a fragment. It is empty, not the last one and not of
// whole units of 8 octets, ends beyond what IP can carry, or is itself a fragment of a fragment.
func ParseFragment(pkt []byte, f *Fragment) (ok bool, err error) {
	n, err := InnerLen(pkt)
	if err != nil {
		return false, err
	}
	pkt = pkt[:n]
	head := 0 // octets in front of what was taken apart, as far as they count for its length
	if pkt[0]>>4 == 4 {
		head = int(pkt[0]&15) * 4
		if head > n {
			return false, ErrMalformed
		}
		frag := binary.BigEndian.Uint16(pkt[6:])
		if frag&0x3fff == 0 {
			return false, nil
		}
		*f = Fragment{ID: uint32(binary.BigEndian.Uint16(pkt[4:])), Start: int(frag&0x1fff) * 8, More: frag&0x2000 != 0, Proto: pkt[9]}
		pkt = pkt[head:]
	} else {
		if ok, err = f.find(pkt[6], pkt[ipv6Len:]); !ok {
			return false, err
		}
		head = n - ipv6Len - 8 - f.End
		pkt = pkt[n-f.End:]
	}
	f.End = f.Start + len(pkt)
	if len(pkt) == 0 || f.More && len(pkt)%8 != 0 || head+f.End > 65535 {
		return false, ErrMalformed
	}
	return true, nil
}

// find looks for the fragment header in an IPv6 packet's headers. End becomes the number of octets behind it.
func (f *Fragment) find(proto uint8, b []byte) (ok bool, err error) {
	for range maxExtHeaders {
		n := 8
		switch proto {
		case ProtoHopByHop, ProtoRouting, ProtoDstOpts, ProtoHIP, ProtoShim6:
			if len(b) >= 8 {
				n += int(b[1]) * 8
			}
		case ProtoFragment:
		default:
			return ok, nil
		}
		if len(b) < n {
			return false, ErrMalformed
		}
		if proto == ProtoFragment {
			frag := binary.BigEndian.Uint16(b[2:])
			switch {
			case ok:
				return false, ErrMalformed
			case frag&0xfff9 != 0:
				*f = Fragment{ID: binary.BigEndian.Uint32(b[4:]), Start: int(frag &^ 7), End: len(b) - 8, More: frag&1 != 0, Proto: b[0]}
				if f.Start > 0 {
					return true, nil // what follows is no header
				}
				ok = true
			}
		}
		proto, b = b[0], b[n:]
	}
	return false, ErrChain
}
