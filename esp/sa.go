package esp

import (
	"fmt"
	"net/netip"
)

// EncrID is an encryption transform ID: IANA "IKEv2 Transform Type 1" values,
// which RFC 7296 section 3.3.2 shares between IKE and ESP.
type EncrID uint16

// Encryption transforms. The numbers are IANA's.
const (
	EncrNone             EncrID = 0
	EncrAESCBC           EncrID = 12 // RFC 3602
	EncrAESGCM16         EncrID = 20 // RFC 4106, 16-octet ICV
	EncrChaCha20Poly1305 EncrID = 28 // RFC 7634
)

// IntegID is an integrity transform ID: IANA "IKEv2 Transform Type 3" values.
type IntegID uint16

// Integrity transforms. The numbers are IANA's. IntegNone goes with AEADs.
const (
	IntegNone           IntegID = 0
	IntegHMACSHA196     IntegID = 2  // RFC 2404
	IntegHMACSHA256_128 IntegID = 12 // RFC 4868
	IntegHMACSHA384_192 IntegID = 13 // RFC 4868
	IntegHMACSHA512_256 IntegID = 14 // RFC 4868
)

// Suite is what two peers agreed on for one CHILD SA.
// KeyBits is 0 for ciphers with a fixed key length (ChaCha20-Poly1305).
type Suite struct {
	Encr    EncrID
	KeyBits uint16
	Integ   IntegID
	ESN     bool // 64-bit extended sequence numbers (RFC 4303 section 2.2.1)
}

// Mode is how the SA wraps packets (RFC 4301 section 4.1).
type Mode uint8

// The modes that exist.
const (
	Tunnel    Mode = iota
	Transport      // the payload of packets between the two hosts
	BEET           // the same, with other addresses inside (draft-nikander-esp-beet-mode)
)

// String returns the field's name for the mode.
func (m Mode) String() string {
	switch m {
	case Tunnel:
		return "TUNNEL"
	case Transport:
		return "TRANSPORT"
	case BEET:
		return "BEET"
	}
	return fmt.Sprintf("MODE_%d", uint8(m))
}

// Direction tells whether an SA protects what leaves or opens what arrives.
type Direction uint8

// The two directions of an SA.
const (
	In Direction = iota
	Out
)

// SA describes one simplex security association: all that the data path, in user
// space or in the kernel, needs to carry it. The keys belong to whoever receives the
// value; the sender keeps no copy.
type SA struct {
	SPI          uint32 // 256 to 2^32-1; of the receiver's choice
	Dir          Direction
	Mode         Mode
	Suite        Suite
	EncrKey      []byte         // cipher key; for AEADs followed by the 4-octet salt
	IntegKey     []byte         // empty for AEADs
	Local        netip.AddrPort // our outer address; the ports matter only with Encap
	Remote       netip.AddrPort // the peer's outer address
	Encap        bool           // ESP in UDP (RFC 3948) instead of IP protocol 50
	SeenLocal    netip.Addr     // in transport mode through a NAT: what the peer calls Local,
	SeenRemote   netip.Addr     // and what it calls Remote (RFC 3948 section 3.1.2); else invalid
	ReplayWindow int            // inbound: packets, 64 to 4096; 0 switches the check off
	LocalTS      []Selector     // what may stand on our side of the inner packet
	RemoteTS     []Selector     // what may stand on the peer's side
	Soft         Usage          // from there on Due asks for a successor; zero fields: never
	Hard         Usage          // nothing passes beyond it: ErrExpired; zero fields: no limit
}

// Usage is what has passed through an SA, or may pass through one.
type Usage struct {
	Packets uint64
	Bytes   uint64 // of inner packets
}

// never is a limit that is not there.
const never = 1<<64 - 1

// orNever returns limits in which zero fields cannot be reached.
func (u Usage) orNever() Usage {
	if u.Packets == 0 {
		u.Packets = never
	}
	if u.Bytes == 0 {
		u.Bytes = never
	}
	return u
}
