package ike

// Header is the fixed header of every message (RFC 7296 section 3.1).
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       IKE SA Initiator's SPI                  |
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       IKE SA Responder's SPI                  |
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Next Payload | MjVer | MnVer | Exchange Type |     Flags     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                          Message ID                           |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                            Length                             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Header struct {
	SPIi, SPIr   uint64
	Next         PayloadType // type of the first payload
	Major, Minor uint8       // 4 bits each
	Exchange     Exchange
	Flags        uint8 // FlagInitiator, FlagVersion, FlagResponse; other bits are ignored
	ID           uint32
	Length       uint32 // of the whole message, header included
}

// Offsets of header fields that are filled in last.
const (
	offNext   = 16
	offLength = 24
)

// Response tells whether the message is a response.
func (h *Header) Response() bool { return h.Flags&FlagResponse != 0 }

// FromInitiator tells whether the message comes from the original initiator of the IKE SA.
func (h *Header) FromInitiator() bool { return h.Flags&FlagInitiator != 0 }

// ParseHeader reads the header at the front of the datagram b, of any version: IKEv1
// (RFC 2408 section 3.1) has the same layout. It checks bounds only: the message's
// length must be exactly that of the datagram. Otherwise the error is a SyntaxError, and
// the header is filled in if b is long enough to hold one.
func ParseHeader(b []byte) (Header, error) {
	c := cursor{b: b}
	h := Header{SPIi: c.u64(), SPIr: c.u64(), Next: PayloadType(c.u8())}
	version := c.u8()
	h.Major, h.Minor = version>>4, version&15
	h.Exchange = Exchange(c.u8())
	h.Flags = c.u8()
	h.ID = c.u32()
	h.Length = c.u32()
	if !c.ok() {
		return Header{}, syntax(PayloadNone, "header", errShort)
	}
	if uint64(h.Length) != uint64(len(b)) {
		return h, syntax(PayloadNone, "header", errLength)
	}
	return h, nil
}
