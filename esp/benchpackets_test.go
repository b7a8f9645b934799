package esp

import (
	"net/netip"
	"testing"
)

// BenchmarkPackets seals and opens whole packets of 1400 octets in each protocol and mode. ESP in
// tunnel mode stands there twice, the other time by SealAt and Open, which the rest is
// to be compared with.
func BenchmarkPackets(b *testing.B) {
	gcm, sha2, gmac := Suite{Encr: EncrAESGCM16, KeyBits: 128}, Suite{Integ: IntegHMACSHA256_128}, Suite{Integ: IntegAES128GMAC}
	pkt := ipv4Packet(ProtoUDP, 0, 1380)
	for _, c := range []struct {
		name string
		s    Suite
		mode Mode
	}{
		{"ESP", gcm, Tunnel}, {"ESP", gcm, Transport}, {"ESP", gcm, BEET},
		{"AH-SHA2", sha2, Tunnel}, {"AH-SHA2", sha2, Transport}, {"AH-GMAC", gmac, Tunnel}, {"AH-GMAC", gmac, Transport},
	} {
		e := newEnds(b, c.s, func(sa *SA) {
			sa.Mode, sa.LocalTS, sa.RemoteTS = c.mode, []Selector{mustSelector("10.1.0.1/32")}, []Selector{mustSelector("10.2.0.2/32")}
		})
		buf := make([]byte, HeadRoomWhole+len(pkt)+TailRoom)
		b.Run(c.name+"/"+c.mode.String(), func(b *testing.B) {
			b.SetBytes(int64(len(pkt)))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf[HeadRoomWhole:], pkt)
				e.seq++
				d := gw4
				if err := e.out.SealPacket(0, e.seq, buf, HeadRoomWhole, len(pkt), &d); err != nil {
					b.Fatal(err)
				}
				d.Buf = d.Buf[:min(len(d.Buf)+OpenRoom, cap(d.Buf))]
				d.Local, d.Remote = d.Remote.Addr(), netip.AddrPortFrom(d.Local, 0)
				if _, err := e.in.OpenPacket(0, &d, 16); err != nil {
					b.Fatal(err)
				}
			}
		})
		if c.name != "ESP" || c.mode != Tunnel {
			continue
		}
		b.Run("ESP/payload", func(b *testing.B) {
			b.SetBytes(int64(len(pkt)))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf[HeadRoomWhole:], pkt)
				e.seq++
				start, end, err := e.out.SealAt(0, e.seq, buf, HeadRoomWhole, len(pkt), ProtoIPv4)
				if err != nil {
					b.Fatal(err)
				}
				inner, next, err := e.in.Open(0, buf[start:end])
				if err != nil {
					b.Fatal(err)
				}
				if _, err := CutInner(inner, next); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
