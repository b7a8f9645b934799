package esp

import "encoding/binary"

// ipv4Packet returns an IPv4 packet without options, 10.1.0.1 to 10.2.0.2, with a
// payload of n octets that begins with the ports 1234 and 502. frag is its flags and offset.
func ipv4Packet(proto uint8, frag uint16, n int) []byte {
	pkt := make([]byte, 20+n)
	pkt[0] = 0x45
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(pkt[6:], frag)
	pkt[8], pkt[9] = 64, proto
	copy(pkt[12:], []byte{10, 1, 0, 1, 10, 2, 0, 2})
	copy(pkt[20:], []byte{1234 >> 8, 1234 & 255, 502 >> 8, 502 & 255})
	return pkt
}
