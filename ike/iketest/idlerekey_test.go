package iketest

import (
	"testing"
	"time"

	"postern/ike"
)

// One of two children was closed because nothing passed. When both sides then rekey the IKE SA at
// once, the one that is to take its place has no CHILD SA for a moment, and must not end for that.
func TestAnIKESAGoesOnWhenBothRekeyItAfterAChildWasIdle(t *testing.T) {
	seeds(t, 8, options{children: 2}, func(p *pair) {
		p.Pair(p.a, p.b, Link{Delay: 50 * time.Millisecond})
		for _, cfg := range []ike.Config{p.cfgA, p.cfgB} {
			cfg.Conns[0].Children[0].Inactivity = 10 * time.Second
		}
		p.boot()
		p.initiate(p.a)
		p.settle(time.Minute)
		_ = p.Run(p.Now() + 15*time.Second)
		p.rekeyIKE(p.a)
		p.rekeyIKE(p.b)
		p.settle(time.Minute)
		_ = p.CheckPair(p.a, p.b, connName, p.children[1])
	})
}
