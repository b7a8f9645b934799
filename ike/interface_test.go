package ike

import (
	"fmt"
	"testing"

	"postern/esp"
)

// withDevices gives both sides the child "all", which has a device, before or behind "net",
// whose selectors lie within its own.
func withDevices(first bool) func(a, b *Conn) {
	return func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			all := *c.Children[0]
			all.Name, all.LocalTS, all.RemoteTS, all.Interface = "all", []TS{sel("0.0.0.0/0")}, []TS{sel("0.0.0.0/0")}, "ipsec0"
			if first {
				c.Children = []*Child{&all, c.Children[0]}
			} else {
				c.Children = append(c.Children, &all)
			}
		}
	}
}

// initiateAll brings both children up from a.
func (p *pair) initiateAll() {
	p.a.t.Helper()
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
	p.same(2)
}

// The order of children with different devices says nothing about packets, so it must not
// decide either which of them the peer has meant.
func TestPeerGetsTheChildWithTheDeviceThatItMeans(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("the wide one first=%v", first), func(t *testing.T) {
			p := newPair(t, withDevices(first))
			p.initiateAll()
			for _, h := range []*host{p.a, p.b} {
				for _, s := range h.sas {
					want := map[string]string{"all": "ipsec0", "net": ""}[s.Child]
					if s.Interface != want {
						t.Errorf("%v: an SA of child %s is handed on with the device %q, want %q", h.addr, s.Child, s.Interface, want)
					}
				}
			}
			for _, child := range []string{"all", "net"} {
				o := p.b.sas[key(p.a.inbound(child), esp.Out)]
				if o == nil || o.Child != child {
					t.Errorf("b took child %s of a for another one: %+v", child, o)
				}
			}
		})
	}
}

// A child that gets another device gets other SAs: theirs do not change.
func TestAnotherDeviceMeansOtherSAs(t *testing.T) {
	p := newPair(t, withDevices(false))
	p.initiateAll()
	net, all := p.a.inbound("net"), p.a.inbound("all")
	p.reload(p.a, func(c *Conn, _ *Secret) { c.Children[1].Interface = "ipsec1" })
	if now := p.a.inbound("net"); now != net {
		t.Error("the child that stayed as it is has other SAs")
	}
	now := p.a.inbound("all")
	if now == all || p.a.sas[key(now, esp.In)].Interface != "ipsec1" {
		t.Errorf("the child with another device has the SA %08x of %q, and before %08x", now, p.a.sas[key(now, esp.In)].Interface, all)
	}
}
