package ike

import (
	"net/netip"
	"strings"
	"testing"

	"postern/esp"
)

// later checks whether the SAs of both hosts take later fragments.
func (p *pair) later(what string, want bool) {
	p.a.t.Helper()
	n := 0
	for _, h := range []*host{p.a, p.b} {
		for _, s := range h.sas {
			if n++; s.Fragments != want {
				p.a.t.Errorf("%s: an SA of %v takes later fragments: %v, want %v", what, h.addr, s.Fragments, want)
			}
		}
	}
	if n == 0 {
		p.a.t.Errorf("%s: there are no SAs", what)
	}
}

// RFC 4301 section 7.3: both sides have to want it, whoever asks, in IKE_AUTH and afterwards, and
// the CHILD SA is made all the same.
func TestLaterFragmentsNeedBothSides(t *testing.T) {
	for _, c := range []struct{ a, b, want bool }{{false, false, false}, {true, false, false}, {false, true, false}, {true, true, true}} {
		for _, childless := range []Childless{ChildlessAllow, ChildlessPrefer} {
			p := newPair(t, func(a, b *Conn) {
				a.Children[0].Fragments, b.Children[0].Fragments = c.a, c.b
				a.Childless = childless
			})
			p.a.traced()
			p.b.traced()
			p.up()
			p.later("at first", c.want)
			for i, h := range []*host{p.a, p.b} {
				h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link", Child: "net"})
				p.run()
				p.done(h, uint64(10+i), nil)
				p.pass(2 * linger)
				p.same(1)
				p.later("after a rekeying", c.want)
			}
			for h, other := range map[*host]bool{p.a: c.b, p.b: c.a} {
				got := strings.Contains(strings.Join(h.told("received"), " "), "NON_FIRST_FRAGMENTS_ALSO")
				if got != other { // at the latest when the other one has asked
					t.Errorf("%+v: %v was told of later fragments: %v", c, h.addr, got)
				}
			}
		}
	}
}

// Transport mode carries no fragments (RFC 4301 section 4.1).
func TestLaterFragmentsAreForTunnelModeAlone(t *testing.T) {
	for _, mode := range []esp.Mode{esp.Tunnel, esp.Transport} {
		p := newPair(t, func(a, b *Conn) {
			hostToHost(mode, mode)(a, b)
			a.Children[0].Fragments, b.Children[0].Fragments = true, true
		})
		p.up()
		p.mode(mode)
		p.later(mode.String(), mode == esp.Tunnel)
	}
}

func TestNarrowingOfTypesAndOpaquePorts(t *testing.T) {
	any4 := selector(t, "10.0.0.0/8")
	opaque := selector(t, "10.0.0.0/8", 17, 65535, 0)
	echo := selector(t, "10.0.0.0/8", 1, 8<<8, 8<<8|255)
	for _, c := range []struct {
		what                string
		configured, offered esp.Selector
		want                string
	}{
		{"OPAQUE of all", any4, opaque, "10.0.0.0/8[udp/OPAQUE]"},
		{"all of OPAQUE", opaque, any4, "10.0.0.0/8[udp/OPAQUE]"},
		{"OPAQUE of all ports", opaque, selector(t, "10.1.0.0/16", 17), "10.1.0.0/16[udp/OPAQUE]"},
		{"OPAQUE of itself", opaque, selector(t, "10.1.0.0/16", 17, 65535, 0), "10.1.0.0/16[udp/OPAQUE]"},
		{"OPAQUE of some ports", opaque, selector(t, "10.1.0.0/16", 17, 1, 65535), ""},
		{"port 65535 of OPAQUE", selector(t, "10.1.0.0/16", 17, 65535, 65535), opaque, ""},
		{"OPAQUE of another protocol", opaque, selector(t, "10.1.0.0/16", 6), ""},
		{"a type of all", any4, echo, "10.0.0.0/8[icmp/8-8(255)]"},
		{"a code of a type", echo, selector(t, "10.1.0.0/16", 1, 8<<8, 8<<8), "10.1.0.0/16[icmp/8]"},
		{"several types", selector(t, "10.0.0.0/8", 1, 3<<8, 8<<8), selector(t, "10.1.0.0/16", 1, 5<<8, 9<<8), "10.1.0.0/16[icmp/5-8]"},
		{"another type", echo, selector(t, "10.1.0.0/16", 1, 0, 255), ""},
		{"a mobility header", any4, selector(t, "10.1.0.0/16", 135, 5<<8, 5<<8), "10.1.0.0/16[mobility-header/5]"},
	} {
		got := ""
		for _, s := range narrowTS([]esp.Selector{c.configured}, []esp.Selector{c.offered}) {
			got += s.String()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// The packet that makes us ask comes first (RFC 7296 section 2.9), and the offer for it is never more
// than what is configured.
func TestOfferForAPacketStaysWithinTheConfiguration(t *testing.T) {
	local, remote := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.2.0.7")
	for _, c := range []struct {
		name string
		ts   esp.Selector
		flow esp.Flow
		want string
	}{
		{"OPAQUE", selector(t, "10.2.0.0/24", 17, 65535, 0), esp.Flow{Proto: 17, NoPorts: true}, "10.2.0.7/32[udp/OPAQUE] 10.2.0.0/24[udp/OPAQUE]"},
		{"a fragment where all ports are meant", selector(t, "10.2.0.0/24"), esp.Flow{Proto: 17, NoPorts: true}, "10.2.0.7/32[udp] 10.2.0.0/24"},
		{"a type", selector(t, "10.2.0.0/24", 1, 8<<8, 8<<8|255), esp.Flow{Proto: 1, LocalPort: 8 << 8, RemotePort: 8 << 8}, "10.2.0.7/32[icmp/8] 10.2.0.0/24[icmp/8-8(255)]"},
		{"a port", selector(t, "10.2.0.0/24", 17, 2000, 3000), esp.Flow{Proto: 17, LocalPort: 9, RemotePort: 2500}, "10.2.0.7/32[udp/2500] 10.2.0.0/24[udp/2000-3000]"},
		{"another port", selector(t, "10.2.0.0/24", 17, 2000, 3000), esp.Flow{Proto: 17, LocalPort: 9, RemotePort: 25}, "10.2.0.0/24[udp/2000-3000]"},
	} {
		p := newPair(t, nil)
		c.flow.Local, c.flow.Remote = local, remote
		got := p.a.m.offerTS(&p.a.m.sas[0], &Child{LocalTS: []TS{sel("10.1.0.0/24")}, RemoteTS: []TS{{Selector: c.ts}}}, &c.flow)
		var list []string
		for _, s := range got[1] {
			list = append(list, s.String())
		}
		if s := strings.Join(list, " "); s != c.want {
			t.Errorf("%s: %s is offered, want %s", c.name, s, c.want)
		}
		if !within(got[1], []esp.Selector{c.ts}) {
			t.Errorf("%s: %v is more than %v", c.name, got[1], c.ts)
		}
	}
}
