package iketest

import (
	"bytes"

	"postern/ike"
)

// ppks gives the two sides of a life post-quantum pre-shared keys, or one of them, or none, the
// same or others: always so that a tunnel comes up, with one or without. It has a generator of
// its own, as dialing has.
func (l *life) ppks(seed uint64) {
	r := New(seed^0x8784, false).Rand
	id := func(s string) ike.PPKID { return ike.PPKID{Type: ike.PPKIDFixed, Data: s} }
	one := ike.PPK{ID: id("one"), Key: bytes.Repeat([]byte{1}, 32)}
	two := ike.PPK{ID: id("two"), Key: bytes.Repeat([]byte{2}, 32)}
	a, b := l.cfgA.Conns[0], l.cfgB.Conns[0]
	what := r.IntN(10)
	switch what {
	case 0: // only one side has it
		a.PPK, l.cfgA.PPKs = one.ID, []ike.PPK{one}
	case 1:
		b.PPK, l.cfgB.PPKs = one.ID, []ike.PPK{one}
	case 2: // both fall back to NO_PPK_AUTH
		a.PPK, l.cfgA.PPKs = one.ID, []ike.PPK{one}
		b.PPK, l.cfgB.PPKs = two.ID, []ike.PPK{two}
	case 3: // only a names one
		a.PPK, l.cfgA.PPKs = two.ID, []ike.PPK{one, two}
		b.PPKAny, l.cfgB.PPKs = true, []ike.PPK{one, two}
	case 4, 5, 6:
		a.PPK, l.cfgA.PPKs = one.ID, []ike.PPK{one}
		b.PPK, l.cfgB.PPKs = one.ID, []ike.PPK{two, one}
		a.PPKRequired, b.PPKRequired = r.IntN(2) == 0, r.IntN(2) == 0
	default:
		return
	}
	l.tell("PPK %d, required %v and %v", what, a.PPKRequired, b.PPKRequired)
	l.checkPPKs = func() {
		onA, onB := l.ppkOf(l.a), l.ppkOf(l.b)
		for spi, got := range onA {
			if other, both := onB[spi]; both && got != other {
				l.Fail("the PPK of the IKE SA %016x is %q on a and %q on b", spi, got, other)
			}
			want := got
			switch {
			case what <= 2:
				want = ike.PPKID{}
			case what >= 4:
				want = one.ID
			}
			if got != want {
				l.Fail("the PPK of the IKE SA %016x is %q, want %q", spi, got, want)
			}
			if got != (ike.PPKID{}) {
				l.stats.Mixed++
			}
		}
	}
}

// ppkOf returns the PPKs of the IKE SAs of h, by initiator's SPI.
func (l *life) ppkOf(h *Host) map[uint64]ike.PPKID {
	out := map[uint64]ike.PPKID{}
	h.M.List(func(sa *ike.SAInfo) bool {
		if sa.State == ike.StateEstablished {
			out[sa.SPIi] = sa.PPK
		}
		return true
	})
	return out
}
