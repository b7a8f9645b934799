package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"postern/board"
	"postern/esp"
)

// everySuite returns all that package esp accepts, found by trying.
func everySuite() []esp.Suite {
	var out []esp.Suite
	for encr := range esp.EncrID(64) {
		for integ := range esp.IntegID(64) {
			for _, bits := range []uint16{0, 64, 128, 192, 256, 512} {
				for _, esn := range []bool{false, true} {
					if s := (esp.Suite{Encr: encr, KeyBits: bits, Integ: integ, ESN: esn}); s.Validate() == nil {
						out = append(out, s)
					}
				}
			}
		}
	}
	return out
}

// Whatever the suite, the families inside and outside, and the encapsulation: random packets
// arrive as they were sent, what was cut off, changed or sent again does not, and none is longer than the
// suite promises.
func TestRandomPacketsPassUnderEverySuite(t *testing.T) {
	suites := everySuite()
	if len(suites) < 100 {
		t.Fatalf("only %d suites were found", len(suites))
	}
	for i, s := range suites {
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		for kind := range 8 {
			encap, inner6, outer6 := kind&1 != 0, kind&2 != 0, kind&4 != 0
			if testing.Short() && kind != i%8 {
				continue
			}
			passRandomPackets(t, rng, s, encap, inner6, outer6)
		}
	}
}

func passRandomPackets(t *testing.T, rng *rand.Rand, s esp.Suite, encap, inner6, outer6 bool) {
	t.Helper()
	what := fmt.Sprintf("%s encap=%v inner6=%v outer6=%v", s, encap, inner6, outer6)
	tp := newTestPath(t, board.Tiny)
	tp.outer6 = outer6
	local, remote, peer := "10.1.0.0/16", "10.2.0.0/16", "192.0.2.1:4500"
	if inner6 {
		local, remote = "2001:db8:1::/48", "2001:db8:2::/48"
	}
	if outer6 {
		peer = "[2001:db8::1]:4500"
	}
	tp.spd.set([]policySpec{protect("c", "n", local, remote)})
	_, out := tp.addLoop(t, s, encap, "c", "n", local, remote, true)
	var pkts [][]byte
	for range 3 {
		n := 48 + rng.IntN(1400-48)
		pkt := udp4(srcHost, dstHost, uint16(rng.Uint32()), 502, n)
		body := pkt[28:]
		if inner6 {
			pkt = udp6("2001:db8:1::5", "2001:db8:2::9", uint16(rng.Uint32()), 502, n)
			body = pkt[48:]
		}
		for i := range body {
			body[i] = byte(rng.Uint32())
		}
		pkts = append(pkts, pkt)
	}
	tp.send(pkts...)
	sent := tp.fakes[out.sock()].datagrams()
	if len(sent) != len(pkts) {
		t.Fatalf("%s: %d datagrams left, want %d", what, len(sent), len(pkts))
	}
	clear := s.Encr == esp.EncrNull || s.Encr == esp.EncrNullAuthAESGMAC
	for i := range sent {
		sent[i].Remote = netip.MustParseAddrPort(peer)
		if extra := sent[i].N - len(pkts[i]); extra > s.Overhead() || extra <= 8 {
			t.Errorf("%s: %d octets became %d, the most to be added is %d", what, len(pkts[i]), sent[i].N, s.Overhead())
		}
		if bytes.Contains(sent[i].Buf[:sent[i].N], pkts[i]) != clear {
			t.Errorf("%s: that the packet is found in what left is not %v", what, clear)
		}
	}
	for range 4 { // none of these may arrive
		d := sent[rng.IntN(len(sent))]
		d.Buf = bytes.Clone(d.Buf[:d.N])
		if at := 8 + rng.IntN(d.N-8); rng.IntN(2) == 0 {
			d.Buf[at] ^= 1 << rng.IntN(8)
		} else {
			d.N = at
		}
		tp.receive(out.sock(), d)
	}
	if n := len(tp.tun.packets()); n != 0 {
		t.Fatalf("%s: %d forged or truncated packets arrived", what, n)
	}
	tp.receive(out.sock(), sent...)
	tp.receive(out.sock(), sent...) // again, in vain
	got := tp.tun.packets()
	if len(got) != len(pkts) {
		t.Fatalf("%s: %d packets arrived, want %d", what, len(got), len(pkts))
	}
	for i := range got {
		if !bytes.Equal(got[i], pkts[i]) {
			t.Fatalf("%s: packet %d arrived as %x, was sent as %x", what, i, got[i], pkts[i])
		}
	}
}
