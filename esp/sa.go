package esp

import (
	"fmt"
	"net/netip"
)

// EncrID is an encryption transform ID: IANA "IKEv2 Transform Type 1" values,
// which RFC 7296 section 3.3.2 shares between IKE and ESP.
type EncrID uint16

// Encryption transforms. The numbers are IANA's. Those with an implicit IV are for ESP alone,
// never for IKE (RFC 8750 section 7).
const (
	EncrNone                EncrID = 0  // AH, which does not encrypt
	EncrNull                EncrID = 11 // RFC 2410; only with an integrity transform
	EncrAESCBC              EncrID = 12 // RFC 3602
	EncrAESCTR              EncrID = 13 // RFC 3686
	EncrAESCCM8             EncrID = 14 // RFC 4309, 8-octet ICV
	EncrAESCCM12            EncrID = 15 // RFC 4309, 12-octet ICV
	EncrAESCCM16            EncrID = 16 // RFC 4309, 16-octet ICV
	EncrAESGCM8             EncrID = 18 // RFC 4106, 8-octet ICV
	EncrAESGCM12            EncrID = 19 // RFC 4106, 12-octet ICV
	EncrAESGCM16            EncrID = 20 // RFC 4106, 16-octet ICV
	EncrNullAuthAESGMAC     EncrID = 21 // RFC 4543: authenticates and encrypts nothing
	EncrChaCha20Poly1305    EncrID = 28 // RFC 7634
	EncrAESCCM8IIV          EncrID = 29 // RFC 8750
	EncrAESGCM16IIV         EncrID = 30 // RFC 8750
	EncrChaCha20Poly1305IIV EncrID = 31 // RFC 8750
)

// IntegID is an integrity transform ID: IANA "IKEv2 Transform Type 3" values.
type IntegID uint16

// Integrity transforms. The numbers are IANA's. IntegNone goes with AEADs.
const (
	IntegNone           IntegID = 0
	IntegHMACSHA196     IntegID = 2  // RFC 2404
	IntegAESXCBC96      IntegID = 5  // RFC 3566
	IntegAESCMAC96      IntegID = 8  // RFC 4494
	IntegAES128GMAC     IntegID = 9  // RFC 4543, for AH alone
	IntegAES192GMAC     IntegID = 10 // RFC 4543, for AH alone
	IntegAES256GMAC     IntegID = 11 // RFC 4543, for AH alone
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
	Transport      // the packet's own header stays outside
	BEET           // one fixed address on each side stands for the inner header; ESP alone
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

// Protocol is what protects the SA's packets.
type Protocol uint8

// The two protocols.
const (
	ESP Protocol = iota // RFC 4303
	AH                  // RFC 4302
)

// String returns the protocol's name.
func (p Protocol) String() string {
	switch p {
	case ESP:
		return "ESP"
	case AH:
		return "AH"
	}
	return fmt.Sprintf("PROTO_%d", uint8(p))
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
	Proto        Protocol
	Mode         Mode
	Suite        Suite
	EncrKey      []byte         // cipher key; for AEADs followed by the 4-octet salt
	IntegKey     []byte         // empty for AEADs
	Local        netip.AddrPort // our outer address; the ports matter only with Encap
	Remote       netip.AddrPort // the peer's outer address
	Encap        bool           // ESP in UDP (RFC 3948) instead of IP protocol 50
	ReplayWindow int            // inbound: packets, 64 to 4096; 0 switches the check off
	// Inbound, transport mode through a NAT: our address and the peer's as the peer knows them,
	// which are those of the selectors before they were replaced (RFC 7296 section 2.23.1).
	// Checksums are mended by them. Invalid: not known, or as in the header.
	OrigLocal, OrigRemote netip.Addr

	LocalTS  []Selector // what may stand on our side of the inner packet
	RemoteTS []Selector // what may stand on the peer's side
	Soft     Usage      // from there on Due asks for a successor; zero fields: never
	Hard     Usage      // nothing passes beyond it: ErrExpired; zero fields: no limit

	// For keys that outlive the SA's ends, as manual ones do; negotiated ones leave them empty.

	// Seq is where the numbers go on. Outbound: the last one that may have been used under the
	// keys, and the limits in packets are numbers, too. Inbound: the highest that was accepted;
	// it and what is below it count as seen.
	Seq uint64
	// Cycle, outbound: the 32 bits of the number begin anew after the last one (RFC 4303 section
	// 3.3.3), which only a peer may be sent that does not check for replays.
	Cycle bool
	// IVSeed, outbound: octets that are no secret and differ each time that the same keys are used
	// from number 1 on, so that CBC's IVs do.
	IVSeed []byte
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
