package esp

import (
	"net/netip"
	"testing"
	"time"
)

// modeEnds are the ends of an SA in a mode, and the datagram that a packet of it is sent in.
type modeEnds struct {
	*ends
	name string
	d    Datagram
	pkt  []byte
}

// everyMode returns SAs of the suite in every mode that it has, in UDP and without, and with the
// outer header of either family.
func everyMode(t testing.TB, s Suite, size int) (list []modeEnds) {
	for _, c := range []struct {
		name  string
		mode  Mode
		encap bool
	}{
		{"tunnel", Tunnel, false}, {"tunnel-UDP", Tunnel, true}, {"transport", Transport, false},
		{"transport-UDP", Transport, true}, {"BEET", BEET, false}, {"BEET-UDP", BEET, true},
	} {
		if s.Encr == EncrNone && (c.encap || c.mode == BEET) {
			continue
		}
		for _, v6 := range []bool{false, true} {
			m := modeEnds{name: c.name, d: gw4, pkt: ipv4Packet(ProtoUDP, 0, size-ipv4MinLen)}
			if v6 {
				m.name, m.d, m.pkt = c.name+"-IPv6", gw6, ipv6Packet(ProtoUDP, make([]byte, size-ipv6Len))
			}
			if c.encap {
				m.d.Remote = netip.AddrPortFrom(m.d.Remote.Addr(), 4500)
			}
			var p prefix
			if err := p.begin(m.pkt); err != nil {
				t.Fatal(err)
			}
			src, dst := p.source(m.pkt), p.first(m.pkt)
			if c.mode == Transport {
				m.d.Local, m.d.Remote = src, netip.AddrPortFrom(dst, m.d.Remote.Port())
			}
			one := func(a netip.Addr) []Selector { return []Selector{{Start: a, End: a, EndPort: 65535}} }
			m.ends = newEnds(t, s, func(sa *SA) {
				sa.Mode, sa.Encap = c.mode, c.encap
				sa.LocalTS, sa.RemoteTS = one(src), one(dst)
			})
			list = append(list, m)
		}
	}
	return list
}

// seal and open do with a packet what a gateway at each end does. buf is as long as framed makes it.
func (m *modeEnds) seal(buf []byte) (Datagram, error) {
	m.seq++
	d := m.d
	err := m.out.SealPacket(0, m.seq, buf, HeadRoomWhole, len(m.pkt), &d)
	return d, err
}

func (m *modeEnds) open(d *Datagram) ([]byte, error) {
	d.Buf = d.Buf[:min(len(d.Buf)+OpenRoom, cap(d.Buf))]
	d.Local, d.Remote = m.d.Remote.Addr(), netip.AddrPortFrom(m.d.Local, m.d.Remote.Port())
	d.TTL = 64
	return m.in.OpenPacket(0, d, 16)
}

func TestEveryAlgorithmInEveryModeCostsNoAllocation(t *testing.T) {
	for i, s := range append(allSuites(), ahSuites()...) {
		if testing.Short() && i%3 != 0 {
			continue
		}
		for _, m := range everyMode(t, s, 300) {
			buf := framed(m.pkt)
			opened := 0
			if n := testing.AllocsPerRun(5, func() {
				copy(buf[HeadRoomWhole:], m.pkt)
				if d, err := m.seal(buf); err == nil {
					if pkt, err := m.open(&d); err == nil && len(pkt)-16 == len(m.pkt) {
						opened++
					}
				}
			}); n != 0 {
				t.Errorf("%s %s: %v allocations, want 0", s, m.name, n)
			}
			if opened != 6 {
				t.Fatalf("%s %s: %d packets were opened, want 6", s, m.name, opened)
			}
		}
	}
}

// BenchmarkModes has a row for each algorithm: what a packet of 1400 octets costs in each mode,
// sealing and opening together, in nanoseconds of the best batch.
func BenchmarkModes(b *testing.B) {
	const batch = 16
	row := func(s Suite) {
		b.Run(testName(s), func(b *testing.B) {
			b.ReportAllocs()
			list := everyMode(b, s, 1400)
			best := make([]time.Duration, len(list))
			bufs := make([][]byte, len(list))
			for i := range list {
				bufs[i] = framed(list[i].pkt)
				d, err := list[i].seal(bufs[i]) // the state of an SA, once
				if err == nil {
					_, err = list[i].open(&d)
				}
				if err != nil {
					b.Fatalf("%s: %v", list[i].name, err)
				}
			}
			for b.Loop() {
				for i := range list {
					m := &list[i]
					var took time.Duration
					for range batch {
						copy(bufs[i][HeadRoomWhole:], m.pkt)
						from := time.Now()
						d, err := m.seal(bufs[i])
						if err == nil {
							_, err = m.open(&d)
						}
						took += time.Since(from)
						if err != nil {
							b.Fatalf("%s: %v", m.name, err)
						}
					}
					if best[i] == 0 || took < best[i] {
						best[i] = took
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for i := range list {
				b.ReportMetric(float64(best[i].Nanoseconds())/batch, list[i].name)
			}
		})
	}
	for _, s := range append(allSuites(), ahSuites()...) {
		if !benchSkips(s) {
			row(s)
		}
	}
}
