package ike

import (
	"slices"
	"strings"
	"testing"

	"postern/esp"
)

// A responder that answers with more than was offered gets an SA for what was: it may only narrow
// (RFC 7296 section 2.9), and what it adds is neither sent nor taken.
func TestOfSelectorsInAnAnswerThoseOfferedHold(t *testing.T) {
	for _, c := range []struct {
		what          string
		local, remote []esp.Selector
		want          [2]string // "" is no SA
	}{
		{"as offered", []esp.Selector{selector(t, "10.1.0.0/24")}, []esp.Selector{selector(t, "10.2.0.0/24")}, [2]string{"10.1.0.0/24", "10.2.0.0/24"}},
		{"another network beside ours", []esp.Selector{selector(t, "10.9.0.0/24"), selector(t, "10.1.0.0/24")}, []esp.Selector{selector(t, "10.2.0.7/32"), selector(t, "10.8.0.0/24")}, [2]string{"10.1.0.0/24", "10.2.0.7/32"}},
		{"everything", []esp.Selector{selector(t, "0.0.0.0/0")}, []esp.Selector{selector(t, "0.0.0.0/0")}, [2]string{"10.1.0.0/24", "10.2.0.0/24"}},
		{"none of ours", []esp.Selector{selector(t, "10.9.0.0/24")}, []esp.Selector{selector(t, "10.2.0.0/24")}, [2]string{}},
		{"none of theirs", []esp.Selector{selector(t, "10.1.0.0/24")}, []esp.Selector{selector(t, "10.8.0.0/24")}, [2]string{}},
	} {
		p := newPair(t, nil)
		p.up()
		p.a.mangle = func(*Output) bool { return false }
		p.renew(p.a, 2, "net")
		half, _ := newKeyPair(Curve25519, stream("x", 32))
		peer := p.responders()
		data := p.b.m.sealed(peer, peer.header(ExchangeCreateChild, p.a.m.sas[0].req.id, true), func(b *Builder) {
			b.SA(numbered(mustProposals(t, ProtoESP, "aes128gcm16-x25519"), be32(0x12345678)))
			b.Nonce(stream("nonce", 32))
			b.KE(Curve25519, half.public())
			b.TS(PayloadTSi, c.local)
			b.TS(PayloadTSr, c.remote)
		})
		p.a.m.Datagram(p.now, Path{Local: toB.Remote, Remote: toB.Local}, data)
		p.a.drain(p.now)
		var got *ChildSA
		for _, s := range p.a.sas {
			if s.Dir == esp.Out && s.SPI == 0x12345678 {
				got = s
			}
		}
		switch {
		case c.want[0] == "":
			if got != nil {
				t.Errorf("%s: an SA from %v to %v came of it, want none", c.what, got.LocalTS, got.RemoteTS)
			}
		case got == nil:
			t.Errorf("%s: no SA came of it, want one from %s to %s", c.what, c.want[0], c.want[1])
		case !slices.Equal(got.LocalTS, []esp.Selector{selector(t, c.want[0])}) || !slices.Equal(got.RemoteTS, []esp.Selector{selector(t, c.want[1])}):
			t.Errorf("%s: the SA is from %v to %v, want from %s to %s", c.what, got.LocalTS, got.RemoteTS, c.want[0], c.want[1])
		}
	}
}

// OpenIKED asks for an address and names 0.0.0.0 alone as what it wants to send from.
func TestUnspecifiedAddressOfAClientIsTheOneItHasGot(t *testing.T) {
	p, _ := remotePair(t, nil)
	p.up0()
	peer := &p.a.m.sas[0]
	for i, c := range []struct {
		ask  string
		want []esp.Selector
	}{
		{"0.0.0.0/32", hostTS("10.9.0.1")},
		{"::/128", hostTS("fd00:9::1")},
		{"0.0.0.1/32", nil},
		{"10.9.0.2/32", nil},
	} {
		spi, net := 0x12345600+uint32(i), "10.2.0.0/24"
		if strings.Contains(c.ask, ":") {
			net = "fd00:2::/64"
		}
		data := p.a.m.sealed(peer, peer.header(ExchangeCreateChild, p.responders().recvID, false), func(b *Builder) {
			b.SA(numbered(mustProposals(t, ProtoESP, "aes128gcm16-x25519"), be32(spi)))
			b.Nonce(stream("nonce", 32))
			half, _ := newKeyPair(Curve25519, stream("x", 32))
			b.KE(Curve25519, half.public())
			b.TS(PayloadTSi, []esp.Selector{selector(t, c.ask)})
			b.TS(PayloadTSr, []esp.Selector{selector(t, net)})
		})
		p.b.m.Datagram(p.now, toB, data)
		p.b.drain(p.now)
		p.b.out = nil
		var got []esp.Selector
		for _, s := range p.b.sas {
			if s.Dir == esp.Out && s.SPI == spi {
				got = s.RemoteTS
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("asked for %s the gateway has an SA to %v, want %v", c.ask, got, c.want)
		}
	}
}
