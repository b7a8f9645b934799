package esp

import (
	"encoding/binary"
	"math/rand"
	"net/netip"
)

// made is a random IP packet, put together from pieces of which it is known what becomes of
// them: leaves is its prefix as the sender has it, arrives the same after a way on which routers have
// changed whatever they may, covered what AH's ICV covers of it. No piece is parsed
// again to find out.
type made struct {
	v6                       bool
	leaves, arrives, covered []byte
	nextAt                   int
	proto                    uint8 // of payload
	payload                  []byte
	src, dst                 netip.Addr // of the packet's whole way
	routed, options          bool
	loose                    []bool // per octet of the prefix: anybody may change it
}

// add appends a piece that nobody changes.
func (m *made) add(b ...byte) {
	m.leaves, m.arrives, m.covered = append(m.leaves, b...), append(m.arrives, b...), append(m.covered, b...)
}

// mutable appends n octets that anybody may change.
func (m *made) mutable(r *rand.Rand, n int) {
	m.leaves, m.arrives = append(m.leaves, random(r, n)...), append(m.arrives, random(r, n)...)
	m.covered = append(m.covered, make([]byte, n)...)
	m.loose = append(m.loose, make([]bool, len(m.covered)-len(m.loose))...)
	for i := len(m.loose) - n; i < len(m.loose); i++ {
		m.loose[i] = true
	}
}

// set changes an octet in all three.
func (m *made) set(at int, b byte) { m.leaves[at], m.arrives[at], m.covered[at] = b, b, b }

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	r.Read(b)
	return b
}

// lengths writes the packet's length, with more octets between prefix and payload, into all
// three; IPv4's checksum is right in leaves alone, since nobody covers it.
func (m *made) lengths(more int) {
	n := len(m.leaves) + more + len(m.payload)
	at := 2
	if m.v6 {
		n, at = n-40, 4
	}
	m.set(at, byte(n>>8))
	m.set(at+1, byte(n))
	if !m.v6 {
		refSum4(m.leaves)
	}
}

// refSum4 writes an IPv4 header's checksum, word by word with the carry added at once.
func refSum4(h []byte) {
	h[10], h[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}

// packet returns the packet as it comes from the sender's system.
func (m *made) packet() []byte {
	m.lengths(0)
	return append(append([]byte{}, m.leaves...), m.payload...)
}

// received returns the packet as the receiver's system has to get it.
func (m *made) received() []byte {
	m.lengths(0)
	pkt := append(append([]byte{}, m.arrives...), m.payload...)
	if !m.v6 {
		refSum4(pkt[:len(m.arrives)])
	}
	return pkt
}

// make4 returns an IPv4 packet, with options if there should be some.
func make4(r *rand.Rand, withOptions bool, n int) *made {
	m := &made{nextAt: 9, payload: random(r, n), proto: []uint8{ProtoTCP, ProtoUDP, ProtoICMP, ProtoGRE, ProtoIPv6, ProtoESP}[r.Intn(6)]}
	m.src = netip.AddrFrom4([4]byte(append([]byte{10}, random(r, 3)...)))
	m.dst = netip.AddrFrom4([4]byte(append([]byte{192}, random(r, 3)...)))
	src, dst := m.src.As4(), m.dst.As4()
	m.add(0x45)
	m.mutable(r, 1) // DSCP and ECN
	m.add(0, 0)     // length
	m.add(random(r, 1)...)
	m.add(byte(1 + r.Intn(255))) // identification, not 0
	m.mutable(r, 2)              // flags
	for _, h := range [][]byte{m.leaves, m.arrives} {
		h[6], h[7] = h[6]&0x40, 0
	}
	m.mutable(r, 1) // TTL
	m.leaves[8] |= 1
	m.add(m.proto)
	m.mutable(r, 2) // checksum
	m.add(src[:]...)
	m.add(dst[:]...)
	if !withOptions {
		return m
	}
	m.options = true
	for len(m.leaves) < 60 && r.Intn(6) > 0 {
		room := 60 - len(m.leaves)
		n := min(2+r.Intn(11), room)
		switch k := r.Intn(8); {
		case k == 0 || n < 3:
			m.add(optNop)
		case k < 3: // security, extended and commercial security, router alert, directed delivery
			m.add([]byte{130, 133, 134, 148, 149}[r.Intn(5)], byte(n))
			m.add(random(r, n-2)...)
		case k == 3 && !m.routed && room >= 7:
			stops := 1 + r.Intn((room-3)/4)
			m.route4(r, stops)
		default: // record route, timestamp, traceroute, stream ID, and what nobody knows
			at := len(m.leaves)
			m.mutable(r, n)
			m.leaves[at], m.leaves[at+1] = []byte{7, 68, 82, 136, 0x99}[r.Intn(5)], byte(n)
			copy(m.arrives[at:], m.leaves[at:at+2])
		}
	}
	if len(m.leaves)%4 != 0 || len(m.leaves) == 20 {
		m.add(optEnd)
	}
	for len(m.leaves)%4 != 0 {
		m.add(0)
	}
	m.set(0, 0x40|byte(len(m.leaves)/4))
	return m
}

// route4 adds a source route over so many stops, the last of them being the destination.
func (m *made) route4(r *rand.Rand, stops int) {
	m.routed = true
	n := 3 + 4*stops
	at := len(m.leaves)
	m.mutable(r, n)
	m.leaves[at], m.leaves[at+1], m.leaves[at+2] = []byte{131, 137}[r.Intn(2)], byte(n), 4
	m.arrives[at], m.arrives[at+1], m.arrives[at+2] = m.leaves[at], byte(n), byte(n+1)
	dst := m.dst.As4()
	copy(m.leaves[at+n-4:], dst[:])
	copy(m.leaves[16:20], []byte{172, 16, 0, 1}) // the first stop
}

// make6 returns an IPv6 packet, with extension headers if there should be some.
func make6(r *rand.Rand, withOptions bool, n int) *made {
	m := &made{v6: true, nextAt: 6, payload: random(r, n), proto: []uint8{ProtoTCP, ProtoUDP, ProtoICMPv6, ProtoGRE, ProtoIPv6, ProtoESP}[r.Intn(6)]}
	m.src = netip.AddrFrom16([16]byte(append([]byte{0xfd}, random(r, 15)...)))
	m.dst = netip.AddrFrom16([16]byte(append([]byte{0x20}, random(r, 15)...)))
	src, dst := m.src.As16(), m.dst.As16()
	m.mutable(r, 4) // version, traffic class, flow label
	m.leaves[0], m.arrives[0], m.covered[0] = 0x60|m.leaves[0]&15, 0x60|m.arrives[0]&15, 0x60
	m.add(0, 0, m.proto)
	m.mutable(r, 1) // hop limit
	m.leaves[7] |= 1
	m.add(src[:]...)
	m.add(dst[:]...)
	if !withOptions {
		return m
	}
	m.options = true
	which := 1 + r.Intn(7)
	if which&1 != 0 {
		m.options6(r, ProtoHopByHop)
	}
	if which&4 != 0 {
		if which&2 != 0 {
			m.options6(r, ProtoDstOpts)
		}
		m.route6(r)
	} else if which&2 != 0 { // for the destination alone: behind AH and ESP
		body := append([]byte{m.proto, 0}, 1, 4, 0, 0, 0, 0)
		m.payload = append(body, m.payload...)
		m.proto = ProtoDstOpts
		m.set(m.nextAt, m.proto)
		m.options = which != 2
	}
	return m
}

// extension6 begins an extension header of n octets.
func (m *made) extension6(proto uint8, n int) {
	m.set(m.nextAt, proto)
	m.nextAt = len(m.leaves)
	m.add(m.proto, byte(n/8-1))
}

// options6 adds hop-by-hop or destination options.
func (m *made) options6(r *rand.Rand, proto uint8) {
	n := 8 * (1 + r.Intn(4))
	end := len(m.leaves) + n
	m.extension6(proto, n)
	for len(m.leaves) < end {
		room := end - len(m.leaves)
		data := 0
		if room >= 2 {
			data = r.Intn(room - 1)
		}
		switch k := r.Intn(3); {
		case room == 1:
			m.add(0) // Pad1
		case k == 0:
			m.add(0x1e, byte(data)) // immutable
			m.add(random(r, data)...)
		case k == 1:
			m.add(0x3e, byte(data)) // mutable
			m.mutable(r, data)
		default:
			m.add(1, byte(data)) // PadN
			m.add(make([]byte, data)...)
		}
	}
}

// route6 adds a routing header of type 0 or 2 that is still to be travelled, or one of another
// type that is not.
func (m *made) route6(r *rand.Rand) {
	kind, stops := byte(0), 1+r.Intn(4)
	switch r.Intn(3) {
	case 1:
		kind, stops = 2, 1
	case 2:
		m.extension6(ProtoRouting, 8)
		m.add(append([]byte{4, 0}, random(r, 4)...)...)
		return
	}
	m.routed = true
	m.extension6(ProtoRouting, 8+16*stops)
	m.add(kind)
	m.leaves, m.arrives, m.covered = append(m.leaves, byte(stops)), append(m.arrives, 0), append(m.covered, 0)
	m.add(random(r, 4)...)
	dst := m.dst.As16()
	// The way goes over hops[0], hops[1] ... to dst.
	var hops [][]byte
	for range stops {
		hops = append(hops, append([]byte{0x20, 0x02}, random(r, 14)...))
	}
	copy(m.leaves[24:], hops[0])
	for i := range hops {
		ahead := dst[:]
		if i+1 < stops {
			ahead = hops[i+1]
		}
		m.leaves = append(m.leaves, ahead...)
		m.arrives, m.covered = append(m.arrives, hops[i]...), append(m.covered, hops[i]...)
	}
}
