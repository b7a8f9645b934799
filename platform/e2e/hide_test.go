//go:build linux

package e2e

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// segments takes apart what a sender has handed to the link in one piece for the card to cut: n
// packets in UDP of one length, behind one header.
func segments(n map[int]int) map[int]int {
	const header = 14 + 20 + 8
	if len(n) == 0 {
		return n
	}
	least := slices.Min(slices.Collect(maps.Keys(n)))
	out := map[int]int{}
	for size, k := range n {
		if parts := (size - header) / (least - header); size > 1514 && (size-header)%parts == 0 {
			size, k = header+(size-header)/parts, k*parts
		}
		out[size] += k
	}
	return out
}

// lengths returns how many ESP packets of each length on the wire left the gateway at a link.
func (w wire) lengths(link string) map[int]int {
	n := map[int]int{}
	for _, p := range w {
		if p.link == link && p.fromGateway(link) && isESP(p) {
			n[p.wire]++
		}
	}
	return n
}

// Whatever passes, every ESP packet of a side that pads has the same length, and so do its dummies
// when nothing passes. The peer cuts the padding off: strongSwan's kernel-libipsec knows it.
func TestTFCPadding(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].more = "tfc_padding = \"mtu\"\ndummy = \"100ms\"\n"
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		w := s.capture()
		for _, n := range []int{56, 57, 300, 999, 1300} {
			if r := s.pings(s.lanA, hostB4, 5, echoOptions{size: n, wait: 10 * time.Second}); r.lost() > 0 {
				t.Errorf("with %d octets: %v%s", n, r, logs(a, b))
			}
		}
		if r := s.pings(s.lanB, hostA4, 5, echoOptions{wait: 10 * time.Second}); r.lost() > 0 {
			t.Errorf("back: %v%s", r, logs(a, b))
		}
		first := a.(*postern).counters()["out_dummy"]
		if !eventually(20*time.Second, func() bool { return a.(*postern).counters()["out_dummy"] >= first+5 }) {
			t.Errorf("%d dummies left while nothing else did, want 5", a.(*postern).counters()["out_dummy"]-first)
		}
		got := w.stop()
		sizes := segments(got.lengths("a0"))
		if len(sizes) != 1 {
			t.Errorf("ESP packets left with these lengths: %v, want one length", sizes)
		}
		for n, k := range sizes {
			t.Logf("%d ESP packets of %d octets", k, n)
			if n < 1400 || k < 35 {
				t.Errorf("%d ESP packets of %d octets, want more than 35 of the path's MTU", k, n)
			}
		}
		if p.b == "postern" {
			if n := b.(*postern).counters()["in_dummy"]; n < 5 {
				t.Errorf("the peer has dropped %d dummies in silence, want 5 or more", n)
			}
		}
		got.nothingInClear(t, []byte(mark))
	})
}
