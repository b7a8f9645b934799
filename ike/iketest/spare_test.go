package iketest

import (
	"testing"
	"time"

	"postern/ike"
)

// Both sides have connected at once, where all IKE SAs are to stay, and the CHILD SA of one of the
// two is closed, on its own or just as an IKE SA is begun in the place of its own. The IKE SA that
// nobody needs any more goes, and so does the new one; the other one goes on.
func TestAnIKESAWithoutChildrenEndsBesideAnother(t *testing.T) {
	for name, n := range map[string]int{"the one that a made": 0, "the one that b made": 1} {
		for when, replaced := range map[string]bool{"in peace": false, "as it is replaced": true} {
			t.Run(name+" "+when, func(t *testing.T) {
				seeds(t, 6, options{reauth: 2 * time.Minute, reauthB: 2 * time.Minute}, func(p *pair) {
					p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
					for _, cfg := range []ike.Config{p.cfgA, p.cfgB} {
						cfg.Conns[0].Unique = ike.UniqueNever
					}
					p.boot()
					p.initiate(p.a)
					p.initiate(p.b)
					p.settle(time.Minute)
					if len(unique(p.a)) != 2 || len(unique(p.b)) != 2 {
						p.Fail("want two IKE SAs: %s", p.Describe())
						return
					}
					h := []*Host{p.a, p.b}[n]
					_ = p.Run(p.Now() + 5*time.Second)
					h.M.List(func(sa *ike.SAInfo) bool {
						if !sa.Initiator {
							return true
						}
						if replaced {
							h.Command("reauthenticate", ike.Command{Kind: ike.CmdReauth, IKE: sa.Unique})
						}
						h.Command("terminate", ike.Command{Kind: ike.CmdTerminate, ChildID: sa.Children[0].Unique})
						return false
					})
					_ = p.Run(p.Now() + 10*time.Minute)
					_ = p.upAndRunning()
				})
			})
		}
	}
}
