package iketest

import (
	"testing"
	"time"

	"postern/ike"
)

// The peer has restarted, calls with INITIAL_CONTACT, and asks for one of two children: the other
// one, which only our side starts, is started again on the new IKE SA.
func TestAChildThatWeAloneStartComesBackAfterInitialContact(t *testing.T) {
	for _, caller := range []string{"a", "b"} {
		t.Run(caller, func(t *testing.T) {
			seeds(t, 6, options{children: 2, startB: ike.StartStart}, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
				ask := func() {
					p.a.Command("initiate", ike.Command{Kind: ike.CmdInitiate, Conn: connName, Child: p.children[0]})
				}
				if caller == "a" {
					p.Cut(p.a, p.b, true)
				}
				p.boot()
				if caller == "a" { // b's attempt comes to nothing meanwhile
					_ = p.Run(p.Now() + 3*time.Second)
					p.Cut(p.a, p.b, false)
					ask()
				}
				_ = p.Run(p.Now() + 2*time.Minute)
				_ = p.upAndRunning()
				p.a.Crash()
				_ = p.Run(p.Now() + time.Second)
				p.a.Boot(p.cfgA)
				ask()
				_ = p.Run(p.Now() + 30*time.Second)
				_ = p.upAndRunning()
			})
		})
	}
}
