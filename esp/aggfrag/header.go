package aggfrag

import "encoding/binary"

// NextHeader is what an ESP packet with an AGGFRAG payload has as next header (RFC 9347 section 6.1).
const NextHeader = 144

// Lengths of the two headers, in octets.
const (
	HeaderLen           = 4
	CongestionHeaderLen = 24
)

// What the fields of a congestion control header can say, in microseconds.
const (
	MaxRTT   = 1<<22 - 1
	MaxDelay = 1<<21 - 1
)

const (
	subTypePlain      = 0
	subTypeCongestion = 1

	flagProbe = 2
	flagCE    = 1
)

// Header is the header of an AGGFRAG payload (RFC 9347 section 6.1). Sub-type 0 ends where the
// drawing is divided; sub-type 1 has all of it.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   Sub-type    |  Reserved |P|E|          BlockOffset          |
//	+===============================================================+
//	|                         LossEventRate                         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                    RTT                    |    Echo Delay     :
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	:     Echo Delay      |             Transmit Delay              |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                             TVal                              |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                             TEcho                             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// Of sub-type 0, P and E are reserved as well. Times are in microseconds; what is longer than
// MaxRTT or MaxDelay is written as that. The zero value is a header of sub-type 0.
type Header struct {
	Congestion bool // sub-type 1: the fields behind BlockOffset are there
	Probe      bool // P: a search for the path's MTU is under way, losses may be its doing
	CE         bool // E: congestion marks have gone into LossEventRate

	BlockOffset   uint16 // octets of data blocks before the first that begins here; beyond the end: none does
	LossEventRate uint32 // the inverse of the receiver's loss event rate; 0: no loss
	RTT           uint32 // the sender's round trip; 0: not known yet
	EchoDelay     uint32 // how long ago TEcho arrived
	TransmitDelay uint32 // between two packets of the one who writes this
	TVal, TEcho   uint32 // the clock of the one who writes, and the last one that it has read
}

// Len returns the length of the header that Put writes.
func (h *Header) Len() int {
	if h.Congestion {
		return CongestionHeaderLen
	}
	return HeaderLen
}

// Put writes the header to the first h.Len() octets of b, which must have them.
func (h *Header) Put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.BlockOffset))
	if !h.Congestion {
		return
	}
	b = b[:CongestionHeaderLen]
	b[0] = subTypeCongestion
	if h.Probe {
		b[1] |= flagProbe
	}
	if h.CE {
		b[1] |= flagCE
	}
	binary.BigEndian.PutUint32(b[4:], h.LossEventRate)
	binary.BigEndian.PutUint64(b[8:], uint64(min(h.RTT, MaxRTT))<<42|uint64(min(h.EchoDelay, MaxDelay))<<21|uint64(min(h.TransmitDelay, MaxDelay)))
	binary.BigEndian.PutUint32(b[16:], h.TVal)
	binary.BigEndian.PutUint32(b[20:], h.TEcho)
}

// Parse reads the header of a payload and returns the data blocks behind it, a part of
// payload. Reserved bits are ignored. After ErrShort or ErrSubType h is the zero value.
func (h *Header) Parse(payload []byte) (blocks []byte, err error) {
	*h = Header{}
	if len(payload) < HeaderLen {
		return nil, ErrShort
	}
	switch payload[0] {
	case subTypePlain:
		h.BlockOffset = binary.BigEndian.Uint16(payload[2:])
		return payload[HeaderLen:], nil
	case subTypeCongestion:
	default:
		return nil, ErrSubType
	}
	if len(payload) < CongestionHeaderLen {
		return nil, ErrShort
	}
	times := binary.BigEndian.Uint64(payload[8:])
	*h = Header{
		Congestion:    true,
		Probe:         payload[1]&flagProbe != 0,
		CE:            payload[1]&flagCE != 0,
		BlockOffset:   binary.BigEndian.Uint16(payload[2:]),
		LossEventRate: binary.BigEndian.Uint32(payload[4:]),
		RTT:           uint32(times >> 42),
		EchoDelay:     uint32(times>>21) & MaxDelay,
		TransmitDelay: uint32(times) & MaxDelay,
		TVal:          binary.BigEndian.Uint32(payload[16:]),
		TEcho:         binary.BigEndian.Uint32(payload[20:]),
	}
	return payload[CongestionHeaderLen:], nil
}

// Types of data blocks, the first four bits (RFC 9347 section 6.1.3): a packet's IP version.
const (
	blockPad  = 0
	blockIPv4 = 4
	blockIPv6 = 6
)

const (
	ipv4MinLen = 20
	ipv6Len    = 40

	// maxInner is the longest inner packet: IPv4's limit, for IPv6 as well.
	maxInner = 65535
)

// blockLen returns the length of the inner packet that b begins with; 0: b is too short to tell,
// the rest of the length field is in the next payload. b is not empty and begins with 4 or 6.
//
//	| 4 | IHL |  TOS  |  Total Length |          IPv4: all of the packet
//
//	| 6 | Traffic Class |  Flow Label |
//	| Payload Length  | Next  | ...              IPv6: what follows its 40 octets
//
// IPv6 with a payload length of 0 and hop-by-hop options is a jumbogram (RFC 2675), whose length
// stands elsewhere: ErrLength, as for IPv4 that is shorter than its header and IPv6 that is
// longer than 65,535 octets.
func blockLen(b []byte) (int, error) {
	if b[0]>>4 == blockIPv4 {
		if len(b) < 4 {
			return 0, nil
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if ihl := int(b[0]&15) * 4; ihl < ipv4MinLen || n < ihl {
			return 0, ErrLength
		}
		return n, nil
	}
	if len(b) < 7 {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n == 0 && b[6] == 0 || n > maxInner-ipv6Len {
		return 0, ErrLength
	}
	return ipv6Len + n, nil
}
