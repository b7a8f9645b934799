package ike

import (
	"math/rand/v2"
	"testing"
)

// A peer that asks for what it has had for long by a request of ours has lost it, as OpenIKED does
// when addresses change: of the two pairs the new one stays, whatever the SPIs.
func TestPeerThatAsksAgainLongAfterOursHasLostIt(t *testing.T) {
	for seed := range uint64(16) {
		p := newPair(t, nil)
		p.a.rnd = rand.New(rand.NewPCG(seed, 2)) // it allocates SPIs
		p.up()
		p.pass(2 * crossMax)
		for i := range p.b.m.children {
			if c := &p.b.m.children[i]; c.up() {
				p.b.m.removeChild(c) // without a word
			}
		}
		p.b.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link", Child: "net"})
		p.run()
		p.done(p.b, 2, nil)
		p.pass(2 * linger)
		p.same(1)
	}
}
