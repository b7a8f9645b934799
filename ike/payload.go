package ike

// Parsers of the simple payloads. Each takes the body of a payload (without the generic
// header), returns views into it, and fails with a *SyntaxError.

// Nonce lengths (RFC 7296 section 3.9).
const (
	minNonce = 16
	maxNonce = 256
)

// maxDeleteSPIs bounds the SPIs of one Delete payload: no IKE SA has more CHILD SAs on a
// board that we know of, and a peer with more to say sends several payloads.
const maxDeleteSPIs = 1024

// ParseKE reads a Key Exchange payload (RFC 7296 section 3.4): the group and the public
// value, whose length is for the group to judge. An empty value is an error.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   Diffie-Hellman Group Num    |           RESERVED            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                       Key Exchange Data                       ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseKE(b []byte) (DHGroup, []byte, error) {
	c := cursor{b: b}
	g := DHGroup(c.u16())
	c.skip(2)
	if !c.ok() || c.left() == 0 {
		return 0, nil, syntax(PayloadKE, "payload", errShort)
	}
	return g, c.rest(), nil
}

// ParseNonce reads a Nonce payload (RFC 7296 section 3.9): 16 to 256 octets.
func ParseNonce(b []byte) ([]byte, error) {
	if len(b) < minNonce || len(b) > maxNonce {
		return nil, syntax(PayloadNonce, "nonce", errLength)
	}
	return b, nil
}

// ParseAuth reads an Authentication payload (RFC 7296 section 3.8). Empty data is an
// error.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Auth Method   |                RESERVED                       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                      Authentication Data                      ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseAuth(b []byte) (AuthMethod, []byte, error) {
	c := cursor{b: b}
	m := AuthMethod(c.u8())
	c.skip(3)
	if !c.ok() || c.left() == 0 {
		return 0, nil, syntax(PayloadAuth, "payload", errShort)
	}
	return m, c.rest(), nil
}

// Delete is a Delete payload (RFC 7296 section 3.11). For the IKE SA there are no SPIs;
// for ESP and AH they are those that the sender expects in packets that it receives. Of
// any other protocol SPIs is empty.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Protocol ID   |   SPI Size    |          Num of SPIs          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~               Security Parameter Index(es) (SPI)              ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Delete struct {
	Proto   Protocol
	SPISize uint8
	SPIs    []uint32
}

// ParseDelete reads a Delete payload of at most maxDeleteSPIs SPIs.
func ParseDelete(b []byte) (Delete, error) {
	c := cursor{b: b}
	d := Delete{Proto: Protocol(c.u8()), SPISize: c.u8()}
	n := int(c.u16())
	if !c.ok() {
		return Delete{}, syntax(PayloadDelete, "header", errShort)
	}
	if c.left() != n*int(d.SPISize) {
		return Delete{}, syntax(PayloadDelete, "list of SPIs", errLength)
	}
	switch d.Proto {
	case ProtoIKE:
		if d.SPISize != 0 || n != 0 {
			return Delete{}, syntax(PayloadDelete, "SPI size of an IKE SA", errValue)
		}
	case ProtoAH, ProtoESP:
		if d.SPISize != 4 {
			return Delete{}, syntax(PayloadDelete, "SPI size", errValue)
		}
		if n > maxDeleteSPIs {
			return Delete{}, syntax(PayloadDelete, "SPI", errTooMany)
		}
		d.SPIs = make([]uint32, n)
		for i := range d.SPIs {
			d.SPIs[i] = c.u32()
		}
	}
	return d, nil
}
