package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"postern/board"
	"postern/esp"
)

// addPair installs SAs of any protocol and mode between two hosts, each other's peer. a is the
// address outside of the one that sends.
func (tp *testPath) addPair(t *testing.T, sa esp.SA, a, b netip.Addr, local, remote string) {
	t.Helper()
	spi, ok := tp.sad.alloc()
	if !ok {
		t.Fatal("SAD is full")
	}
	e, i := sa.Suite.KeyLens()
	sa.SPI, sa.ReplayWindow = spi, 64
	sa.EncrKey, sa.IntegKey = bytes.Repeat([]byte{1}, e), bytes.Repeat([]byte{2}, i)
	there := sa
	sa.Dir, sa.Local, sa.Remote = esp.Out, netip.AddrPortFrom(a, 4500), netip.AddrPortFrom(b, 4500)
	sa.LocalTS, sa.RemoteTS = sel(local), sel(remote)
	there.Dir, there.Local, there.Remote = esp.In, sa.Remote, sa.Local
	there.LocalTS, there.RemoteTS = sa.RemoteTS, sa.LocalTS
	o, err := esp.NewOutbound(&sa, tp.outContexts())
	if err != nil {
		t.Fatal(err)
	}
	in, err := esp.NewInbound(&there, tp.inContexts())
	if err != nil {
		t.Fatal(err)
	}
	osa := &outSA{spi: spi, proto: sa.Proto, inbound: spi, out: o, localTS: sa.LocalTS, remoteTS: sa.RemoteTS, conn: "c", child: "k"}
	osa.path.Store(outerPathOf(sa.Proto, a, sa.Remote, sa.Encap))
	isa := &inSA{spi: spi, proto: sa.Proto, in: in, localTS: there.LocalTS, remoteTS: there.RemoteTS, conn: "c", child: "k"}
	isa.is.set(inEncap, sa.Encap)
	isa.remote.Store(&there.Remote)
	if err := tp.sad.addIn(isa); err != nil {
		t.Fatal(err)
	}
	if _, err := tp.sad.addOut(osa); err != nil {
		t.Fatal(err)
	}
	tp.spd.bind(osa)
}

// Every protocol and mode takes a packet through the way out, the socket that it belongs to, and
// the way in.
func TestEveryModeCarriesPackets(t *testing.T) {
	gcm := esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}
	ah := esp.Suite{Integ: esp.IntegHMACSHA256_128}
	for _, c := range []struct {
		name string
		sa   esp.SA
		sock sockID
	}{
		{"ESP tunnel", esp.SA{Suite: gcm}, sockESP4},
		{"ESP tunnel in UDP", esp.SA{Suite: gcm, Encap: true}, sockNATT4},
		{"ESP transport", esp.SA{Suite: gcm, Mode: esp.Transport}, sockESP4},
		{"ESP transport in UDP", esp.SA{Suite: gcm, Mode: esp.Transport, Encap: true}, sockNATT4},
		{"BEET", esp.SA{Suite: gcm, Mode: esp.BEET}, sockESP4},
		{"BEET in UDP", esp.SA{Suite: gcm, Mode: esp.BEET, Encap: true}, sockNATT4},
		{"AH transport", esp.SA{Suite: ah, Proto: esp.AH, Mode: esp.Transport}, sockAH4},
		{"AH tunnel", esp.SA{Suite: ah, Proto: esp.AH}, sockAH4},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", c.name, v6), func(t *testing.T) {
				a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
				local, remote := "10.1.0.5", "10.2.0.5"
				pack, bits := udp4, "/32"
				if v6 {
					a, b = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
					local, remote, pack, bits = "2001:db8:1::5", "2001:db8:2::5", udp6, "/128"
				}
				if c.sa.Mode == esp.Transport {
					local, remote = a.String(), b.String()
				}
				tp := newTestPath(t, board.Small)
				tp.spd.set([]policySpec{protect("c", "k", local+bits, remote+bits)})
				tp.addPair(t, c.sa, a, b, local+bits, remote+bits)
				pkt := pack(local, remote, 1000, 2000, 300)
				if !v6 {
					binary.BigEndian.PutUint16(pkt[4:], 77) // identification: AH's senders must not have 0
					pkt[10], pkt[11] = 0, 0
					binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
				}
				tp.send(pkt, pkt)
				sock := c.sock.family(a)
				sent := tp.fakes[sock].datagrams()
				if len(sent) != 2 {
					t.Fatalf("%d datagrams left through %v, want 2; counters: %v", len(sent), sock, tp.nonZero())
				}
				for _, d := range sent {
					if d.Whole != (c.sa.Proto == esp.AH) {
						t.Errorf("the datagram has its IP header: %v", d.Whole)
					}
					if bytes.Contains(d.Buf[:d.N], pkt[40:80]) != (c.sa.Proto == esp.AH) {
						t.Error("the packet's content is in clear in ESP, or not in AH")
					}
				}
				for i := range sent {
					d := sent[i]
					if !d.Whole {
						d.TTL = 64
					}
					d.Local, d.Remote = b, netip.AddrPortFrom(a, sent[i].Remote.Port())
					tp.receive(sock, d)
				}
				got := tp.tun.packets()
				if len(got) != 2 {
					t.Fatalf("%d packets came through, want 2; counters: %v", len(got), tp.nonZero())
				}
				for _, g := range got {
					if !v6 && c.sa.Proto == esp.ESP && c.sa.Mode != esp.Tunnel {
						// The header is made anew: only what identifies the packet may be another.
						copy(g[4:8], pkt[4:8])
						copy(g[10:12], pkt[10:12])
					}
					if !bytes.Equal(g, pkt) {
						t.Errorf("arrived %x, want %x", g, pkt)
					}
				}
			})
		}
	}
}

// What transport mode cannot carry is dropped and counted by its reason.
func TestTransportModeRefusesFragments(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	tp := newTestPath(t, board.Small)
	tp.spd.set([]policySpec{protect("c", "k", "192.0.2.1/32", "192.0.2.2/32")})
	tp.addPair(t, esp.SA{Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}, Mode: esp.Transport}, a, b, "192.0.2.1/32", "192.0.2.2/32")
	pkt := udp4("192.0.2.1", "192.0.2.2", 1, 2, 100)
	pkt[6] |= 0x20 // more fragments
	tp.send(pkt)
	tp.want(t, cOutFragment, 1)
	tp.want(t, cOutPackets, 0)
}

// An SPI belongs to one protocol: AH with the SPI of an ESP SA, and the reverse, find nothing.
func TestSPIBelongsToItsProtocol(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	tp := newTestPath(t, board.Small)
	tp.addPair(t, esp.SA{Suite: esp.Suite{Integ: esp.IntegHMACSHA256_128}, Proto: esp.AH}, a, b, "10.1.0.0/24", "10.2.0.0/24")
	var spi uint32
	for i := range tp.sad.slots {
		if s := tp.sad.slots[i].spi; s != 0 {
			spi = s
		}
	}
	buf := make([]byte, 64)
	binary.BigEndian.PutUint32(buf, spi)
	tp.receive(sockESP4, esp.Datagram{Buf: buf, N: 64, Local: b, Remote: netip.AddrPortFrom(a, 0)})
	tp.want(t, cInUnknownSPI, 1)
	tp.want(t, cInAuth, 0)
}

// nonZero lists the counters that have counted something.
func (tp *testPath) nonZero() (list []string) {
	for c := range numCounters {
		if n := tp.counts.get(c); n > 0 {
			list = append(list, fmt.Sprintf("%s %d", c, n))
		}
	}
	return list
}
