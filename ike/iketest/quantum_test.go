package iketest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ike"
)

// quantum has the two sides of a life agree on additional key exchanges, for the IKE SA, for
// CHILD SAs with a group, or for both. They may want them both or one of them only allow them,
// and prefer other proposals. It has a generator of its own, as dialing has.
func (l *life) quantum(seed uint64) {
	r := New(seed^0x9370, false).Rand
	a, b := l.cfgA.Conns[0], l.cfgB.Conns[0]
	more := func(text string) string {
		words := []string{"-ke1_mlkem768", "-ke1_mlkem768", "-ke1_mlkem1024-ke1_mlkem768", "-ke2_mlkem1024-ke5_mlkem768", "-ke1_mlkem768-ke2_x25519-ke2_ecp256"}
		return text + words[r.IntN(len(words))]
	}
	agree := func(what string, proto ike.Protocol, text string, own, peer *[]ike.Proposal) {
		if r.IntN(2) == 0 || !l.fits(*own, *peer) {
			return
		}
		plain := proposals(proto, text)
		pq := proposals(proto, more(text))
		both, other := slices.Concat(pq, plain), slices.Concat(plain, pq)
		kinds := [][]ike.Proposal{pq, both, both, other, plain}
		x, y := r.IntN(len(kinds)), r.IntN(len(kinds))
		if x == 0 && y == 4 || x == 4 && y == 0 {
			x, y = 1, 1
		}
		*own, *peer = kinds[x], kinds[y]
		l.tell("%s %s or without it: %d and %d", what, pq[0], x, y)
	}
	if l.o.ikeB == "" {
		agree("IKE", ike.ProtoIKE, l.o.ike, &a.Proposals, &b.Proposals)
	}
	for i := range a.Children {
		if l.o.espB == "" && (strings.Contains(l.o.esp, "x25519") || strings.Contains(l.o.esp, "ecp") || strings.Contains(l.o.esp, "modp")) {
			agree("ESP of "+a.Children[i].Name, ike.ProtoESP, l.o.esp, &a.Children[i].Proposals, &b.Children[i].Proposals)
		}
	}
}

// fits tells whether both sides have the same proposals.
func (l *life) fits(a, b []ike.Proposal) bool {
	return slices.EqualFunc(a, b, func(x, y ike.Proposal) bool { return slices.Equal(x.Transforms, y.Transforms) })
}

// The halves of ML-KEM are larger than small fragments, and each has to arrive whole over a
// network that loses, repeats and reorders: both sides end with keys of both exchanges or with
// none.
func TestAdditionalKeysArriveInFragments(t *testing.T) {
	words := "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_mlkem1024"
	seeds(t, 20, options{ike: words, fragA: 576, fragB: 576, start: ike.StartStart, retry: time.Second, retryTries: 8}, func(p *pair) {
		p.Pair(p.a, p.b, Link{Loss: 0.2, Dup: 0.05, Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond})
		p.boot()
		up := func() (yes bool) {
			p.a.M.List(func(sa *ike.SAInfo) bool { yes = sa.State == ike.StateEstablished; return !yes })
			return yes
		}
		if p.Err() == nil && !p.RunUntil(time.Hour, up) {
			p.Fail("there is no IKE SA: %s", p.Describe())
		}
		p.Pair(p.a, p.b, Link{Delay: 10 * time.Millisecond})
		_ = p.upAndRunning()
		// IKE_AUTH with a shared key fits into one: all of these are of IKE_INTERMEDIATE.
		if p.stats.Fragments < 2*(3+3) {
			p.Fail("%d fragments are too few for two exchanges", p.stats.Fragments)
		}
		for _, h := range []*Host{p.a, p.b} {
			h.M.List(func(sa *ike.SAInfo) bool {
				if got := sa.Suite.String(); !strings.HasSuffix(got, "CURVE_25519/KE1_ML_KEM_768/KE2_ML_KEM_1024") {
					p.Fail("%s has agreed on %s", h.Name, got)
				}
				return true
			})
		}
	})
}
