package ike

import (
	"net/netip"
	"testing"
)

// A network among our addresses matters for who calls; from where we call is the route's choice.
func TestLocalNetworksAdmitCallers(t *testing.T) {
	nets := func(list ...string) func(*Conn) {
		return func(c *Conn) {
			c.LocalAddrs, c.LocalNets = nil, nil
			for _, s := range list {
				c.LocalNets = append(c.LocalNets, netip.MustParsePrefix(s))
			}
		}
	}
	for _, x := range []struct {
		change func(*Conn)
		up     bool
	}{
		{nets("192.0.2.0/24"), true}, {nets("10.0.0.0/8", "192.0.2.2/31"), true}, {nets("10.0.0.0/8"), false}, {nets("2001:db8::/32"), false},
	} {
		p := newPair(t, func(_, b *Conn) { x.change(b) })
		if err := p.initiate(); (err == nil) != x.up {
			t.Errorf("with the networks %v of the responder: %v", p.b.m.conns[0].conn.LocalNets, err)
		}
		p = newPair(t, func(a, _ *Conn) { x.change(a) })
		if err := p.initiate(); err != nil {
			t.Errorf("with the networks %v of the initiator: %v", p.a.m.conns[0].conn.LocalNets, err)
		}
	}
}
