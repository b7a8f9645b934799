package engine

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"postern/esp"
)

// The ranges meet what one of the entries meets, and nothing else.
func TestSentFromIsTheUnion(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	selector := func() esp.Selector {
		a := netip.AddrFrom4([4]byte{10, byte(r.IntN(8)), 0, 0})
		if r.IntN(4) == 0 {
			a = netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(8))})
		}
		return esp.SelectorFromPrefix(netip.PrefixFrom(a, 12+r.IntN(6)).Masked())
	}
	for range 5000 {
		var list []*policy
		for range r.IntN(6) {
			p := &policy{Policy: esp.Policy{Action: esp.Protect, LocalTS: []esp.Selector{selector(), selector()}}}
			if r.IntN(4) == 0 {
				p.Action = esp.Bypass
			}
			list = append(list, p)
		}
		ts := []esp.Selector{selector()}
		want := false
		for _, p := range list {
			want = want || p.Action == esp.Protect && meet(p.LocalTS, ts)
		}
		if got := meet(sentFrom(list), ts); got != want {
			t.Fatalf("%v of %d entries: %v, want %v", ts, len(list), got, want)
		}
	}
}
