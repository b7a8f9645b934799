package platform

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"postern/esp"
)

// coalesce returns what would be written for the packets, each write with its header.
func coalesce(t testing.TB, g *groPlan, packets [][]byte) (writes []string, sent [][]byte) {
	t.Helper()
	bufs := make([][]byte, len(packets))
	const off = 3 // not aligned
	for i, p := range packets {
		bufs[i] = append(make([]byte, off), p...)
	}
	g.plan(bufs, off)
	seen := map[uint8]bool{}
	for i := range g.n {
		to := &g.groups[i]
		at, desc := to.first, ""
		var joined []byte
		var h vnetHdr
		if to.n > 1 {
			var b [groHeaderSize]byte
			n := to.header(b[:], bufs[to.first][off:])
			h.decode((*[vnetHdrSize]byte)(b[:]))
			joined = append(joined, b[vnetHdrSize:n]...)
		}
		for k := range to.n {
			if seen[at] {
				t.Fatalf("packet %d is written twice", at)
			}
			seen[at] = true
			desc += fmt.Sprint(at, " ")
			if to.n > 1 {
				joined = append(joined, bufs[at][off+to.hdr:]...)
			} else {
				sent = append(sent, packets[at])
			}
			if k == to.n-1 && at != to.last {
				t.Fatalf("the last of a group is %d, want %d", at, to.last)
			}
			at = g.next[at]
		}
		if to.n > 1 {
			if len(joined) != to.total {
				t.Fatalf("a joined packet of %d octets, want %d", len(joined), to.total)
			}
			sent = append(sent, split(t, h, joined)...)
		}
		writes = append(writes, desc[:len(desc)-1])
	}
	if len(seen) != len(packets) {
		t.Fatalf("%d of %d packets are written", len(seen), len(packets))
	}
	for i, p := range packets {
		if !bytes.Equal(bufs[i][off:], p) {
			t.Fatalf("packet %d of the caller's was changed", i)
		}
	}
	return writes, sent
}

// atomic4 tells that a packet's IPv4 identification means nothing.
func atomic4(p []byte) bool { return len(p) >= 20 && p[0]>>4 == 4 && p[6]&0x40 != 0 }

// sameFlow is the sorting key of packets whose order counts.
func sameFlow(p []byte) string {
	if len(p) < 24 || p[0]>>4 != 4 && len(p) < 44 {
		return "other"
	}
	l4, proto := transport(p)
	addresses := 12
	if l4 == 40 {
		addresses = 8
	}
	return fmt.Sprint(proto, p[addresses:l4+4])
}

// without returns a packet without its identification, if that means nothing.
func without(p []byte) string {
	if atomic4(p) {
		p = bytes.Clone(p)
		p[4], p[5], p[10], p[11] = 0, 0, 0, 0
	}
	return string(p)
}

// assertSame checks that every flow has the same packets in the same order.
func assertSame(t testing.TB, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets came back, want %d", len(got), len(want))
	}
	flows := map[string][]string{}
	for _, p := range want {
		flows[sameFlow(p)] = append(flows[sameFlow(p)], without(p))
	}
	for _, p := range got {
		f := sameFlow(p)
		if len(flows[f]) == 0 || flows[f][0] != without(p) {
			want := "nothing"
			if len(flows[f]) > 0 {
				want = fmt.Sprintf("%.80x", flows[f][0])
			}
			t.Fatalf("a packet came back changed or out of its place:\n%.80x\nwant\n%s", p, want)
		}
		flows[f] = flows[f][1:]
	}
}

func newPlan() *groPlan { return &groPlan{tcp: true, udp: true} }

// run makes n consecutive packets.
func (s packetSpec) run(n, size int) []packetSpec {
	out := make([]packetSpec, n)
	for i := range out {
		out[i] = s
		out[i].id += uint16(i)
		out[i].seq += uint32(i * size)
		out[i].payload = bytes.Repeat([]byte{byte(i)}, size)
	}
	return out
}

func build(specs ...packetSpec) [][]byte {
	out := make([][]byte, len(specs))
	for i, s := range specs {
		out[i] = s.build()
	}
	return out
}

func TestConsecutivePacketsAreJoined(t *testing.T) {
	tcp := packetSpec{flags: tcpACK, ttl: 64, id: 0xfffe, seq: 0xffffff00, window: 9, options: make([]byte, 12)}
	udp := packetSpec{udp: true, ttl: 64, id: 3}
	for name, s := range map[string]packetSpec{"TCP": tcp, "UDP": udp} {
		for _, v6 := range []bool{false, true} {
			s.v6 = v6
			specs := s.run(5, 500)
			specs[4].payload = specs[4].payload[:100]
			specs[4].flags |= tcpPSH
			p := build(specs...)
			writes, sent := coalesce(t, newPlan(), p)
			if len(writes) != 1 {
				t.Errorf("%s, IPv6 %v: %d writes (%q), want one of five packets", name, v6, len(writes), writes)
			}
			assertSame(t, sent, p)
		}
	}
}

func TestInterleavedFlowsAreJoinedEach(t *testing.T) {
	var specs []packetSpec
	a := packetSpec{flags: tcpACK, flow: 1}.run(4, 100)
	b := packetSpec{udp: true, flow: 1}.run(4, 100)
	c := packetSpec{v6: true, flags: tcpACK, flow: 2}.run(4, 100)
	for i := range 4 {
		specs = append(specs, a[i], b[i], c[i])
	}
	writes, sent := coalesce(t, newPlan(), build(specs...))
	if fmt.Sprint(writes) != "[0 3 6 9 1 4 7 10 2 5 8 11]" || len(writes) != 3 {
		t.Errorf("writes are %q, want one for each of three flows", writes)
	}
	assertSame(t, sent, build(specs...))
}

// Of three packets, the second or third differs: all that would get lost in joining.
func TestUnlikePacketsStayApart(t *testing.T) {
	tcp := packetSpec{flags: tcpACK, ttl: 64, id: 7, window: 9, options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}}
	tcp6, udp, udp6 := tcp, packetSpec{udp: true, ttl: 64, id: 3}, packetSpec{udp: true, v6: true, ttl: 64}
	tcp6.v6 = true
	for _, c := range []struct {
		name   string
		s      packetSpec
		change func(s []packetSpec)
		damage func(p [][]byte)
		want   string
	}{
		{"sequence number", tcp, func(s []packetSpec) { s[1].seq++ }, nil, "[0|1|2]"},
		{"acknowledgement", tcp, nil, func(p [][]byte) { p[1][31]++; fix(p[1]) }, "[0|1|2]"},
		{"window", tcp6, func(s []packetSpec) { s[1].window++ }, nil, "[0|1|2]"},
		{"options", tcp, func(s []packetSpec) { s[2].options = bytes.Clone(s[2].options); s[2].options[7]++ }, nil, "[0 1|2]"},
		{"length of options", tcp, func(s []packetSpec) { s[2].options = nil }, nil, "[0 1|2]"},
		{"urgent pointer", tcp, nil, func(p [][]byte) { p[2][39]++; fix(p[2]) }, "[0 1|2]"},
		{"reserved flag", tcp, nil, func(p [][]byte) { p[2][32] |= 1; fix(p[2]) }, "[0 1|2]"},
		{"SYN", tcp, func(s []packetSpec) { s[1].flags |= 2 }, nil, "[0|1|2]"},
		{"FIN", tcp, func(s []packetSpec) { s[2].flags |= tcpFIN }, nil, "[0 1|2]"},
		{"RST", tcp, func(s []packetSpec) { s[1].flags |= 4 }, nil, "[0|1|2]"},
		{"URG", tcp, func(s []packetSpec) { s[1].flags |= 0x20 }, nil, "[0|1|2]"},
		{"CWR", tcp, func(s []packetSpec) { s[0].flags |= tcpCWR }, nil, "[0|1 2]"},
		{"ECE", tcp, func(s []packetSpec) { s[2].flags |= tcpECE }, nil, "[0 1|2]"},
		{"push in the middle", tcp, func(s []packetSpec) { s[1].flags |= tcpPSH }, nil, "[0 1|2]"},
		{"push at first", tcp6, func(s []packetSpec) { s[0].flags |= tcpPSH }, nil, "[0|1 2]"},
		{"no payload", tcp, func(s []packetSpec) { s[1].payload = nil }, nil, "[0|1|2]"},
		{"short in the middle", tcp, func(s []packetSpec) { s[1].payload = s[1].payload[:50]; s[2].seq -= 50 }, nil, "[0 1|2]"},
		{"longer than the first", udp, func(s []packetSpec) { s[1].payload = make([]byte, 101) }, nil, "[0|1 2]"},
		{"time to live", tcp, func(s []packetSpec) { s[2].ttl-- }, nil, "[0 1|2]"},
		{"hop limit", udp6, func(s []packetSpec) { s[2].ttl-- }, nil, "[0 1|2]"},
		{"traffic class", tcp, func(s []packetSpec) { s[2].tos = 3 }, nil, "[0 1|2]"},
		{"traffic class, IPv6", tcp6, func(s []packetSpec) { s[2].tos = 3 }, nil, "[0 1|2]"},
		{"flow label", udp6, nil, func(p [][]byte) { p[2][3]++ }, "[0 1|2]"},
		{"identification", udp, func(s []packetSpec) { s[2].id++ }, nil, "[0 1|2]"},
		{"equal identification", udp, func(s []packetSpec) { s[1].id = s[0].id }, nil, "[0|1|2]"},
		{"don't fragment", udp, func(s []packetSpec) { s[2].df = true }, nil, "[0 1|2]"},
		{"equal, then counted identification", udp, func(s []packetSpec) { s[0].df, s[1].df, s[2].df = true, true, true; s[1].id = s[0].id }, nil, "[0 1|2]"},
		{"port", udp, func(s []packetSpec) { s[2].flow = 9 }, nil, "[0 1|2]"},
		{"no UDP checksum", udp, nil, func(p [][]byte) { p[1][26], p[1][27] = 0, 0 }, "[0|1|2]"},
		{"UDP length", udp, nil, func(p [][]byte) { p[2][25]-- }, "[0 1|2]"},
		{"damaged payload", udp6, nil, func(p [][]byte) { p[1][60]++ }, "[0|1|2]"},
		{"damaged first payload", tcp, nil, func(p [][]byte) { p[0][60]++ }, "[0|1 2]"},
		{"damaged IP header", tcp, nil, func(p [][]byte) { p[2][10]++ }, "[0 1|2]"},
		{"an option in IP", tcp, nil, func(p [][]byte) { p[2][0]++ }, "[0 1|2]"},
		{"a fragment", udp, nil, func(p [][]byte) { p[1][6] = 0x20; fix(p[1]) }, "[0|1|2]"},
		{"trailing octets", udp, nil, func(p [][]byte) { p[1] = append(p[1], 0) }, "[0|1|2]"},
		{"cut off", udp, nil, func(p [][]byte) { p[1] = p[1][:30] }, "[0|1|2]"},
		{"empty", udp, nil, func(p [][]byte) { p[1] = nil }, "[0|1|2]"},
		{"TCP header beyond the end", tcp, nil, func(p [][]byte) { p[2][32] = 0xf0; p[2] = p[2][:56]; p[2][3] = 56; fix(p[2]) }, "[0 1|2]"},
	} {
		specs := c.s.run(3, 100)
		if c.change != nil {
			c.change(specs)
		}
		p := build(specs...)
		if c.damage != nil {
			c.damage(p)
		}
		writes, sent := coalesce(t, newPlan(), p)
		got := "["
		for i, w := range writes {
			if i > 0 {
				got += "|"
			}
			got += w
		}
		got += "]"
		if got != c.want {
			t.Errorf("%s: writes are %s, want %s", c.name, got, c.want)
		}
		assertSame(t, sent, p)
	}
}

// fix makes the checksums of an IPv4 TCP or UDP packet right again.
func fix(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^refChecksum(p[:20]))
	field := p[36:]
	if p[9] == esp.ProtoUDP {
		field = p[26:]
	}
	field[0], field[1] = 0, 0
	binary.BigEndian.PutUint16(field, ^refChecksum(refPseudo(p, p[9], len(p)-20), p[20:]))
}

func TestEqualIdentificationsOfAtomicPacketsAreJoined(t *testing.T) {
	specs := packetSpec{udp: true, df: true}.run(4, 100)
	for i := range specs {
		specs[i].id = 0
	}
	writes, sent := coalesce(t, newPlan(), build(specs...))
	if len(writes) != 1 {
		t.Errorf("%d writes, want one", len(writes))
	}
	assertSame(t, sent, build(specs...))
}

func TestJoinedPacketsFitAnIPPacket(t *testing.T) {
	for _, s := range []packetSpec{{flags: tcpACK}, {udp: true}, {udp: true, v6: true}} {
		p := build(s.run(100, 1400)...)
		writes, sent := coalesce(t, newPlan(), p)
		if len(writes) != 3 {
			t.Errorf("%d writes of 100 packets of 1400 octets, want 3 of at most 64 KiB", len(writes))
		}
		assertSame(t, sent, p)
	}
}

func TestNothingIsMovedAcrossWhatIsUnknown(t *testing.T) {
	specs := packetSpec{flags: tcpACK}.run(4, 100)
	p := build(specs...)
	other := bytes.Clone(p[0])
	other[9] = 47
	writes, _ := coalesce(t, newPlan(), [][]byte{p[0], p[1], other, p[2], p[3]})
	if fmt.Sprint(writes) != "[0 1 2 3 4]" || len(writes) != 3 {
		t.Errorf("writes are %q, want two, the unknown one, two", writes)
	}
}

func TestWhatIsOffIsNotJoined(t *testing.T) {
	p := append(build(packetSpec{flags: tcpACK}.run(3, 100)...), build(packetSpec{udp: true}.run(3, 100)...)...)
	if w, _ := coalesce(t, &groPlan{tcp: true}, p); len(w) != 4 {
		t.Errorf("without USO: writes are %q, want one of TCP and three of UDP", w)
	}
	if w, _ := coalesce(t, &groPlan{}, p); len(w) != 6 {
		t.Errorf("with nothing: writes are %q, want six", w)
	}
}

// randomTraffic makes packets that often, but not always, can be joined.
func randomTraffic(r *rand.Rand, n int) [][]byte {
	var flows [6]packetSpec
	for i := range flows {
		flows[i] = packetSpec{v6: i%2 == 1, udp: i%3 == 2, flow: byte(i), ttl: 64, flags: tcpACK, df: r.IntN(2) == 0,
			id: uint16(r.Uint32()), seq: r.Uint32(), window: 100, options: make([]byte, 4*r.IntN(4))}
	}
	out := make([][]byte, n)
	for i := range out {
		s := &flows[r.IntN(1+r.IntN(len(flows)))]
		p := *s
		p.payload = random(r, []int{200, 200, 200, 200, 200, 1, 0, 199, 1400}[r.IntN(9)])
		switch r.IntN(30) {
		case 0:
			p.flags |= byte(1 << r.IntN(8))
		case 1:
			p.seq++
		case 2:
			p.ttl--
		case 3:
			p.tos = byte(r.IntN(4))
		case 4:
			p.window++
		case 5:
			p.id += uint16(r.IntN(3))
		}
		out[i] = p.build()
		if r.IntN(40) == 0 {
			out[i][r.IntN(len(out[i]))] ^= 1 << r.IntN(8)
		}
		s.seq = p.seq + uint32(len(p.payload))
		if s.id = p.id; !p.df || s.flow > 2 {
			s.id++
		}
	}
	return out
}

func TestSplittingIsTheInverseOfJoining(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	g := newPlan()
	packets, writes := 0, 0
	for range 120 {
		p := randomTraffic(r, 1+r.IntN(groWindow))
		w, sent := coalesce(t, g, p)
		assertSame(t, sent, p)
		packets += len(p)
		writes += len(w)
	}
	if writes*4 > packets*3 {
		t.Errorf("%d writes for %d packets: the traffic does not test joining", writes, packets)
	}
}

// FuzzCoalesce changes octets of packets that could be joined, then joins and cuts them up.
func FuzzCoalesce(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(2), []byte{1, 0, 13, 8, 3, 0, 9, 17})
	g := newPlan()
	f.Fuzz(func(t *testing.T, seed uint64, changes []byte) {
		p := randomTraffic(rand.New(rand.NewPCG(seed, 0)), 24)
		for ; len(changes) >= 4; changes = changes[4:] {
			b := p[int(changes[0])%len(p)]
			at := int(binary.BigEndian.Uint16(changes[1:])) % len(b)
			if changes[2]&0x80 != 0 {
				b = b[:at]
				p[int(changes[0])%len(p)] = b
				if len(b) == 0 {
					p[int(changes[0])%len(p)] = []byte{0x45}
				}
				continue
			}
			b[at] = changes[3]
			if b[0] == 0x45 && len(b) >= 40 && (b[9] == esp.ProtoUDP || b[9] == esp.ProtoTCP) {
				fix(b)
			}
		}
		_, sent := coalesce(t, g, p)
		assertSame(t, sent, p)
	})
}
