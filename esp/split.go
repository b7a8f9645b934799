package esp

import "encoding/binary"

const (
	ipv4More    = 0x2000 // more fragments follow
	ipv4Offset  = 0x1fff // in units of 8 octets
	optCopied   = 0x80   // the option goes into every fragment (RFC 791 section 3.1)
	maxIPv4Head = 60
)

// SplitIPv4 writes to dst the fragment of the IPv4 packet pkt, which may be one itself, that begins
// with octet from of its payload and is no longer than most octets (RFC 791 section 3.2). It
// returns its length and where the next one begins, 0 after the last. The length is 0 where
// that cannot be done: pkt is malformed or must not be fragmented, most leaves no room for 8 octets of payload,
// or dst is shorter than most. dst and pkt do not overlap.
func SplitIPv4(dst, pkt []byte, from, most int) (n, next int) {
	total, err := InnerLen(pkt)
	if err != nil || pkt[0]>>4 != 4 || len(dst) < most {
		return 0, 0
	}
	head := int(pkt[0]&15) * 4
	frag := binary.BigEndian.Uint16(pkt[6:])
	body := pkt[head:total]
	if frag&ipv4DF != 0 || from < 0 || from >= len(body) || from&7 != 0 || most < maxIPv4Head+8 {
		return 0, 0
	}
	n = copy(dst, pkt[:head])
	if from > 0 {
		n = laterHead(dst, pkt[:head])
	}
	size := len(body) - from
	more := frag & ipv4More
	if n+size > most {
		size = (most - n) &^ 7
		more, next = ipv4More, from+size
	}
	at := int(frag&ipv4Offset) + from/8
	if at > ipv4Offset {
		return 0, 0
	}
	n += copy(dst[n:], body[from:from+size])
	binary.BigEndian.PutUint16(dst[2:], uint16(n))
	binary.BigEndian.PutUint16(dst[6:], frag&0x8000|more|uint16(at))
	sumIPv4(dst[:int(dst[0]&15)*4])
	return n, next
}

// laterHead writes the header of a later fragment: without the options that only the first one has.
func laterHead(dst, head []byte) int {
	n := copy(dst, head[:ipv4MinLen])
	for at := ipv4MinLen; at < len(head) && head[at] != optEnd; {
		size := 1
		if head[at] != optNop {
			if at+1 >= len(head) {
				break
			}
			if size = int(head[at+1]); size < 2 || at+size > len(head) {
				break
			}
		}
		if head[at]&optCopied != 0 {
			n += copy(dst[n:], head[at:at+size])
		}
		at += size
	}
	for n&3 != 0 {
		dst[n] = optEnd
		n++
	}
	dst[0] = 4<<4 | uint8(n/4)
	return n
}
