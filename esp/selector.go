package esp

import "net/netip"

// Selector is one traffic selector (RFC 4301 section 4.4.1.1, RFC 7296 section
// 3.13.1): an inclusive address range of one family, a protocol and a port range.
// Proto 0 means any protocol. Ports 0 to 65535 mean any port, and are the only range
// that matches a packet whose ports cannot be seen (a fragment). StartPort 65535 with
// EndPort 0 is OPAQUE. For ICMP the "port" is type<<8 | code, as RFC 4301 says.
type Selector struct {
	Proto     uint8
	StartPort uint16
	EndPort   uint16
	Start     netip.Addr
	End       netip.Addr
}

// Action is what a policy does with the packets that it selects (RFC 4301 section 4.4.1).
type Action uint8

// The three actions.
const (
	Discard Action = iota
	Bypass
	Protect
)

// String returns the action as the configuration names it.
func (a Action) String() string {
	switch a {
	case Bypass:
		return "bypass"
	case Protect:
		return "protect"
	}
	return "discard"
}

// Directions says which packets a policy is for: those that go out, those that come in,
// or both (RFC 4301 section 4.4.1: SPD-O, SPD-I).
type Directions uint8

// The directions.
const (
	BothWays Directions = iota
	OnlyIn
	OnlyOut
)

// Out tells whether packets that go out are meant.
func (d Directions) Out() bool { return d != OnlyIn }

// In tells whether packets that come in are meant.
func (d Directions) In() bool { return d != OnlyOut }

// String returns the directions as the configuration names them.
func (d Directions) String() string {
	switch d {
	case OnlyIn:
		return "in"
	case OnlyOut:
		return "out"
	}
	return "both"
}

// Policy is one entry of the SPD: what it selects and what happens then. A packet
// going out matches when its source is in one of LocalTS and its destination in one of
// RemoteTS; one coming in, the other way round. Name is for people, and empty where the
// entry has none of its own.
//
// Count says that the kernel may hand over what arrives in clear and the entry does not let
// pass, so that it is counted before it is dropped: no policy would have such a packet sent
// into a tunnel. Own says that the local selectors are this host's own address, which may be
// another one by now: what it sends from an address that it has yet to choose is meant as well.
// Virtual says that a gateway assigns that address, so that nothing else of this host may go to
// RemoteTS for want of it.
type Policy struct {
	Name     string
	Action   Action
	Dir      Directions
	Count    bool
	Own      bool
	Virtual  bool
	LocalTS  []Selector
	RemoteTS []Selector
}

// Flow is the 5-tuple of one inner packet, as it leaves (Local is the source) or, on
// the way in, with the two sides exchanged, so that both directions match the same
// selectors.
type Flow struct {
	Local, Remote         netip.Addr
	Proto                 uint8
	LocalPort, RemotePort uint16
	NoPorts               bool // the ports are not in this packet (a later fragment)
}

// Datagram is one datagram of a batch that a socket reads or writes. Buf is borrowed:
// the reader of a batch fills Buf[:N], the writer of a batch sends Buf[:N] and keeps nothing.
type Datagram struct {
	Buf    []byte
	N      int
	Local  netip.Addr     // our address: where it arrived, or where it must leave from
	Remote netip.AddrPort // the peer; port 0 on a raw socket
	TOS    uint8          // outer traffic class (DSCP and ECN)
	TTL    uint8          // outer TTL or hop limit; 0: not known, or any
	DF     bool           // to be sent: it must not be fragmented on the way
	Whole  bool           // Buf begins with the outer IP header
	Path   uint16         // to be sent: octets that the path carries in one packet, IP header included; 0: the system's to know
}
