package ike

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// counts returns the counters of a connection that are not zero, by name.
func (h *host) counts(conn string) string {
	out := "none"
	h.m.Counters(func(name string, c *Counters) {
		if name != conn {
			return
		}
		var list []string
		for i, n := range c {
			if n != 0 {
				list = append(list, fmt.Sprintf("%s=%d", Counter(i), n))
			}
		}
		out = strings.Join(list, " ")
	})
	return out
}

func (h *host) wantCounts(conn, want string) {
	h.t.Helper()
	if got := h.counts(conn); got != want {
		h.t.Errorf("counters of %q on %v are\n%s\nwant\n%s", conn, h.addr, got, want)
	}
}

func TestMessagesAreCountedAsStrongSwanCountsThem(t *testing.T) {
	p := newPair(t, nil)
	p.a.wantCounts("link", "none")
	p.up()
	for i, k := range []CommandKind{CmdRekey, CmdRekey} {
		c := Command{Kind: k, Tag: uint64(10 + i), Conn: "link"}
		if i == 0 {
			c.Child = "net"
		}
		p.a.m.Command(p.now, c)
		p.run()
		p.done(p.a, c.Tag, nil)
	}
	const a = "ike-rekey-init=1 child-rekey=1 ike-init-in-resp=1 ike-init-out-req=1 ike-auth-in-resp=1 ike-auth-out-req=1 " +
		"create-child-in-resp=2 create-child-out-req=2 info-in-resp=2 info-out-req=2"
	p.a.wantCounts("link", a)
	p.a.wantCounts("", a)
	// Whose the first messages are is not known before IKE_AUTH has told.
	p.b.wantCounts("link", "ike-rekey-resp=1 child-rekey=1 ike-auth-out-resp=1 create-child-in-req=2 create-child-out-resp=2 info-in-req=2 info-out-resp=2")
	p.b.wantCounts("", "ike-rekey-resp=1 child-rekey=1 ike-init-in-req=1 ike-init-out-resp=1 ike-auth-in-req=1 ike-auth-out-resp=1 "+
		"create-child-in-req=2 create-child-out-resp=2 info-in-req=2 info-out-resp=2")
}

func TestRepeatedMessagesCountOnce(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	lost := 0
	p.b.mangle = func(o *Output) bool { // b's answer gets lost twice
		lost++
		return lost > 2
	}
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
	p.run()
	p.pass(time.Minute)
	p.done(p.a, 2, nil)
	if lost < 3 {
		t.Fatal("nothing was repeated")
	}
	if got := p.b.counts("link"); !strings.Contains(got, "create-child-in-req=1 create-child-out-resp=1") {
		t.Errorf("b has counted %s, want one request and one response: the others are the same ones again", got)
	}
}

func TestInvalidMessagesAreCounted(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	before := p.b.counts("")
	sa := p.a.only()
	path := p.arriving(sa.path)
	forged := p.a.m.sealed(sa, sa.header(ExchangeInformational, sa.sendID, false), nil)
	forged[len(forged)-1] ^= 1
	p.b.m.Datagram(p.now, path, forged)
	p.b.m.Datagram(p.now, path, []byte("no message"))
	stranger := sa.header(ExchangeInformational, 0, false)
	stranger.SPIr ^= 1
	p.b.m.Datagram(p.now, path, NewBuilder(nil, stranger).Finish())
	p.b.drain(p.now)
	p.b.wantCounts("", "invalid=2 invalid-spi=1 "+before)
	if got := p.b.counts("link"); !strings.HasPrefix(got, "invalid=1 ike-auth") {
		t.Errorf("the connection has %s, want the forged message alone among the invalid ones", got)
	}
}

func TestCountersOutliveAReloadAndEndWithAReset(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	had := p.a.counts("link")
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Proposals = mustProposals(t, ProtoIKE, "aes256gcm16-prfsha384-x25519") })
	if got := p.a.counts("link"); !strings.HasPrefix(got, "ike-init-in-resp=") || got == had {
		t.Errorf("after a change of the connection it has %s, want what it had, %s, and the new attempt", got, had)
	}
	p.a.m.ResetCounters("nobody", false)
	p.a.m.ResetCounters("link", false)
	p.a.wantCounts("link", "none")
	if p.a.counts("") == "" {
		t.Error("resetting the counters of a connection has reset those of all messages")
	}
	p.a.m.ResetCounters("", false)
	p.a.wantCounts("", "")
	p.b.m.ResetCounters("", true)
	p.b.wantCounts("link", "none")
	if p.b.counts("") == "" {
		t.Error("resetting the counters of each connection has reset those of all messages: strongSwan keeps them")
	}
}

// What happens to SAs is told with what they were then: when an event is read they may be gone.
func TestEventsShowSAsAsTheyWere(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.a.lastIn = 7 * time.Second
	p.a.events = nil
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link"})
	p.run()
	p.done(p.a, 3, nil)
	var seen []string
	for _, e := range p.a.events {
		switch e.Kind {
		case EvIKERekeyed:
			if e.SA == nil || e.Was == nil || e.Was.Unique != e.Old || e.SA.Unique != e.IKE || !e.SA.Initiator {
				t.Errorf("a rekeyed IKE SA is told with %v after %v", e.SA, e.Was)
			}
			seen = append(seen, "rekeyed")
		case EvIKEDown:
			if e.SA == nil || e.SA.State != StateDeleting || e.SA.SPIi == 0 || len(e.SA.Children) != 0 {
				t.Errorf("the end of an IKE SA is told with %+v, want it whole, without CHILD SAs", e.SA)
			}
			seen = append(seen, "down")
		case EvChildDown:
			if e.SA == nil || len(e.SA.Children) != 1 {
				t.Fatalf("the end of a CHILD SA is told with %+v, want the one", e.SA)
			}
			if c := e.SA.Children[0]; c.Unique != e.ChildID || c.SPIIn == 0 || c.State != ChildInstalled || c.Passed.LastIn != 7*time.Second {
				t.Errorf("it was %+v, want it whole, with what passed", c)
			}
			seen = append(seen, "child down")
		}
	}
	// A client that counts CHILD SAs by their IKE SAs expects strongSwan's order.
	if got := strings.Join(seen, ", "); got != "rekeyed, down, child down" {
		t.Errorf("told: %s; want rekeyed, down, child down", got)
	}
}
