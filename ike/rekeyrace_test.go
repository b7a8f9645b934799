package ike

import "testing"

// Both sides rekey the IKE SA at once, and the last step of one of them takes long: the other
// one has drawn its conclusions, and deleted what it has to, before that one has made what it
// has asked for. Whoever wins, one IKE SA is left on each side at once, and none of a minute's rest.
func TestBothRekeyTheIKESAAndOneIsSlow(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, nil)
			p.up()
			slow := map[string]*host{"a": p.a, "b": p.b}[name]
			slow.slow = func(w *Work) bool { return w.pair != nil } // what follows the response
			for i := range 16 {
				tag := uint64(40 + i)
				p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link"})
				p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link"})
				p.run()
				if len(slow.held) != 1 {
					t.Fatalf("round %d: %d jobs are held, want the one of the rekeying", i, len(slow.held))
				}
				slow.finish(p.now)
				p.run()
				p.done(p.a, tag, nil)
				p.done(p.b, tag, nil)
				p.same(1)
				for _, x := range []*host{p.a, p.b} {
					n, kids := 0, 0
					x.m.List(func(s *SAInfo) bool { n++; kids += len(s.Children); return true })
					if n != 1 || kids != 1 || x.count(EvIKEDown) != 0 {
						t.Fatalf("round %d: %v: %d IKE SAs with %d children after both have rekeyed, want one with one; %d told to be down", i, x.addr, n, kids, x.count(EvIKEDown))
					}
				}
			}
		})
	}
}
