package esp

import "encoding/binary"

// TCP's options (RFC 9293 section 3.2).
const (
	tcpMinLen  = 20
	tcpFlagsAt = 13
	tcpSumAt   = 16
	tcpSYN     = 0x02
	tcpEnd     = 0
	tcpNop     = 1
	tcpMSS     = 2
	tcpMSSLen  = 4
)

// ClampMSS lowers the maximum segment size that a TCP SYN announces to most4 over IPv4 and most6
// over IPv6 (0: it stays), so that the segments which answer it fit the tunnel, and mends the
// checksum (RFC 1624). It tells whether anything was changed. A packet that is no SYN, that is
// malformed, that is a fragment without a whole TCP header or that announces less stays as it is.
// pkt is one IP packet in its full length.
func ClampMSS(pkt []byte, most4, most6 uint16) (changed bool) {
	if len(pkt) < ipv4MinLen {
		return false
	}
	most, l4 := most4, []byte(nil)
	if pkt[0]>>4 == 4 {
		n := int(pkt[0]&15) * 4
		if pkt[9] != ProtoTCP || n < ipv4MinLen || n > len(pkt) || binary.BigEndian.Uint16(pkt[6:])&0x1fff != 0 {
			return false
		}
		l4 = pkt[n:]
	} else {
		if len(pkt) < ipv6Len {
			return false
		}
		proto, rest, first, _, err := walkIPv6(pkt[6], pkt[ipv6Len:])
		if err != nil || !first || proto != ProtoTCP {
			return false
		}
		most, l4 = most6, rest
	}
	if most == 0 || len(l4) < tcpMinLen || l4[tcpFlagsAt]&tcpSYN == 0 {
		return false
	}
	end := int(l4[12]>>4) * 4
	if end < tcpMinLen || end > len(l4) {
		return false
	}
	for at := tcpMinLen; at < end; {
		switch l4[at] {
		case tcpEnd:
			return false
		case tcpNop:
			at++
			continue
		}
		if at+1 >= end {
			return false
		}
		n := int(l4[at+1])
		if n < 2 || at+n > end {
			return false
		}
		if l4[at] == tcpMSS && n == tcpMSSLen {
			value := l4[at+2 : at+4]
			old := binary.BigEndian.Uint16(value)
			if old <= most {
				return false
			}
			binary.BigEndian.PutUint16(value, most)
			was, is := old, most
			if at&1 != 0 { // it lies across two words of the sum, which are both turned round then
				was, is = was<<8|was>>8, is<<8|is>>8
			}
			field := l4[tcpSumAt:]
			binary.BigEndian.PutUint16(field, ^fold(uint64(^binary.BigEndian.Uint16(field))+uint64(^was)+uint64(is)))
			return true
		}
		at += n
	}
	return false
}
