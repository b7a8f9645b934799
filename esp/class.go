package esp

import "encoding/binary"

// The ECN field of the traffic class (RFC 3168 section 5).
const (
	NotECT  = 0
	ECT1    = 1
	ECT0    = 2
	CE      = 3
	ECNMask = 3
)

// ECNVerdict is what RFC 6040 section 4.2 says of a pair of inner and outer ECN field.
type ECNVerdict uint8

// The verdicts.
const (
	ECNNormal ECNVerdict = iota
	ECNOdd               // does not come about by itself: to be counted
	ECNDrop              // the mark cannot be handed on: the packet has to be dropped
)

// ecnTable is figure 4 of RFC 6040: what leaves the tunnel for each inner (the row) and outer
// (the column) field, in the order of their numbers.
var ecnTable = [4][4]struct {
	to      uint8
	verdict ECNVerdict
}{
	NotECT: {{NotECT, ECNNormal}, {NotECT, ECNOdd}, {NotECT, ECNOdd}, {NotECT, ECNDrop}},
	ECT1:   {{ECT1, ECNNormal}, {ECT1, ECNNormal}, {ECT1, ECNOdd}, {CE, ECNNormal}},
	ECT0:   {{ECT0, ECNNormal}, {ECT1, ECNNormal}, {ECT0, ECNNormal}, {CE, ECNNormal}},
	CE:     {{CE, ECNNormal}, {CE, ECNOdd}, {CE, ECNNormal}, {CE, ECNNormal}},
}

// CombineECN returns the ECN field that a packet has when it leaves a tunnel, of the inner and the
// outer traffic class that it came with.
func CombineECN(inner, outer uint8) (ecn uint8, v ECNVerdict) {
	e := &ecnTable[inner&ECNMask][outer&ECNMask]
	return e.to, e.verdict
}

// TrafficClass returns the DSCP and ECN fields of an IP packet.
func TrafficClass(pkt []byte) uint8 {
	if pkt[0]>>4 == 4 {
		return pkt[1]
	}
	return pkt[0]<<4 | pkt[1]>>4
}

// SetTrafficClass sets both fields in an IP packet of at least 20 octets; IPv4's checksum stays as
// right or wrong as it was (RFC 1624).
func SetTrafficClass(pkt []byte, class uint8) {
	if pkt[0]>>4 == 6 {
		pkt[0], pkt[1] = 6<<4|class>>4, class<<4|pkt[1]&15
		return
	}
	old := binary.BigEndian.Uint16(pkt)
	pkt[1] = class
	mendIPv4(pkt, old, binary.BigEndian.Uint16(pkt))
}

// SetOuter sets hop limit (0: it stays) and, in IPv4, DF of the outer header of a Whole datagram.
// Both and the traffic class are fields that AH does not cover (RFC 4302 section 3.3.3.1).
func (d *Datagram) SetOuter(ttl uint8, df bool) {
	pkt := d.Buf[:d.N]
	if pkt[0]>>4 == 6 {
		if ttl != 0 {
			pkt[7] = ttl
		}
		return
	}
	if ttl != 0 {
		old := binary.BigEndian.Uint16(pkt[8:])
		pkt[8] = ttl
		mendIPv4(pkt, old, binary.BigEndian.Uint16(pkt[8:]))
	}
	old := binary.BigEndian.Uint16(pkt[6:])
	now := old &^ ipv4DF
	if df {
		now |= ipv4DF
	}
	binary.BigEndian.PutUint16(pkt[6:], now)
	mendIPv4(pkt, old, now)
}

// mendIPv4 makes up in a header's checksum for a word that was exchanged.
func mendIPv4(pkt []byte, was, is uint16) {
	field := pkt[10:]
	binary.BigEndian.PutUint16(field, ^fold(uint64(^binary.BigEndian.Uint16(field))+uint64(^was)+uint64(is)))
}
