package ike

import (
	"net/netip"
	"strings"
	"testing"

	"postern/esp"
)

// hostToHost gives the children of a pair selectors for the two hosts themselves, and modes.
func hostToHost(a, b esp.Mode) func(x, y *Conn) {
	return func(x, y *Conn) {
		any := TS{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}
		for _, c := range []*Conn{x, y} {
			c.Children[0].LocalTS, c.Children[0].RemoteTS = []TS{any}, []TS{any}
		}
		x.Children[0].Mode, y.Children[0].Mode = a, b
	}
}

// mode checks that both directions of the CHILD SAs have that mode at both hosts.
func (p *pair) mode(want esp.Mode) {
	p.a.t.Helper()
	for _, h := range []*host{p.a, p.b} {
		for _, s := range h.sas {
			if s.Mode != want {
				p.a.t.Errorf("%v has an SA in %v mode, want %v", h.addr, s.Mode, want)
			}
		}
	}
}

// RFC 7296 section 1.3.1: a mode needs both sides, or it is tunnel mode.
func TestModeIsAgreedOn(t *testing.T) {
	const tun, tr, beet = esp.Tunnel, esp.Transport, esp.BEET
	for _, c := range []struct{ a, b, want esp.Mode }{
		{tun, tun, tun}, {tr, tr, tr}, {tr, tun, tun}, {tun, tr, tun}, {beet, beet, beet}, {beet, tr, tun}, {tr, beet, tun},
	} {
		t.Run(c.a.String()+" "+c.b.String(), func(t *testing.T) {
			p := newPair(t, hostToHost(c.a, c.b))
			p.up()
			p.mode(c.want)
			for i, h := range []*host{p.a, p.b} {
				h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link", Child: "net"})
				p.run()
				p.done(h, uint64(10+i), nil)
				p.pass(2 * linger)
				p.same(1)
				p.mode(c.want)
			}
		})
	}
}

// Networks behind the hosts cannot be reached in transport mode, so it is not asked for.
func TestTransportModeNeedsTheHostsThemselves(t *testing.T) {
	for _, n := range [][2]string{{"10.1.0.0/24", "10.2.0.1/32"}, {"10.1.0.1/32", "10.2.0.1/32"}} {
		p := newPair(t, func(a, b *Conn) {
			a.Children[0].Mode, b.Children[0].Mode = esp.Transport, esp.Transport
			a.Children[0].LocalTS, b.Children[0].RemoteTS = []TS{sel(n[0])}, []TS{sel(n[0])}
			a.Children[0].RemoteTS, b.Children[0].LocalTS = []TS{sel(n[1])}, []TS{sel(n[1])}
		})
		p.b.traced()
		p.up()
		p.mode(esp.Tunnel)
		if got := strings.Join(p.b.told("received"), " "); got == "" || strings.Contains(got, "USE_TRANSPORT_MODE") {
			t.Errorf("for %s, was asked: %s", n, got)
		}
	}
}

// A responder that grants what nobody asked for would send what we cannot read.
func TestModeThatWasNotAskedForIsRefused(t *testing.T) {
	p := newPair(t, hostToHost(esp.Transport, esp.Transport))
	p.up()
	sa := &p.a.m.sas[0]
	// The message that the machine has read last is the answer that grants transport mode.
	req := request{mode: esp.Tunnel}
	if _, _, err := p.a.m.takeMode(sa, &req, nil, nil); err != ErrMode {
		t.Errorf("takeMode gives %v for a mode that was not asked for, want %v", err, ErrMode)
	}
}

// RFC 7296 section 2.23.1, with a NAT before either host: each side has selectors with the
// addresses that it sees, and knows what the peer calls the two.
func TestTransportModeThroughNAT(t *testing.T) {
	inside, outside := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("192.0.2.1") // a
	inner, public := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.0.2.2")   // b
	p := newPair(t, func(x, y *Conn) {
		hostToHost(esp.Transport, esp.Transport)(x, y)
		x.LocalAddrs, y.LocalAddrs = []netip.Addr{inside}, []netip.Addr{inner}
	})
	p.a.addr, p.b.addr = inside, inner
	p.nat = map[netip.Addr]netip.Addr{inside: outside, inner: public}
	p.up()
	p.mode(esp.Transport)
	check := func(h *host, local, remote, seenLocal, seenRemote netip.Addr) {
		for _, s := range h.sas {
			if s.LocalTS[0].Start != local || s.RemoteTS[0].Start != remote {
				t.Errorf("%v has selectors %v === %v, want %v === %v", h.addr, s.LocalTS, s.RemoteTS, local, remote)
			}
			if s.OrigLocal != seenLocal || s.OrigRemote != seenRemote {
				t.Errorf("%v thinks that the peer calls the two %v and %v, want %v and %v", h.addr, s.OrigLocal, s.OrigRemote, seenLocal, seenRemote)
			}
		}
	}
	check(p.a, inside, public, outside, inner)
	check(p.b, inner, outside, public, inside)
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 3, Conn: "link", Child: "net"})
	p.run()
	p.done(p.b, 3, nil)
	p.pass(2 * linger)
	p.same(1)
	check(p.a, inside, public, outside, inner)
}

// RFC 4555 section 1.2 moves tunnel mode alone.
func TestTransportModeIsMadeAnewWhenTheHostsMove(t *testing.T) {
	p := newPair(t, func(x, y *Conn) {
		hostToHost(esp.Transport, esp.Transport)(x, y)
		x.MOBIKE, y.MOBIKE = true, true
		x.LocalAddrs = nil
		y.RemoteAddrs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	p.up()
	to := netip.MustParseAddr("192.0.2.77")
	sa, other := &p.a.m.sas[0], &p.b.m.sas[0]
	at := sa.path
	at.Local = netip.AddrPortFrom(to, at.Local.Port())
	p.a.addr = to
	p.a.m.now, p.b.m.now = p.now, p.now
	p.a.m.setPath(sa, at)
	p.b.m.setPath(other, Path{Local: at.Remote, Remote: at.Local, NATT: at.NATT})
	p.run()
	p.pass(2 * linger)
	p.same(1)
	p.mode(esp.Transport)
	for _, s := range p.a.sas {
		if s.LocalTS[0].Start != to {
			t.Errorf("the SA is for %v after the host has moved to %v", s.LocalTS, to)
		}
	}
}

// AH has proposals, deletes and rekeying of its own protocol number.
func TestAHIsNegotiated(t *testing.T) {
	for _, words := range []string{"sha256", "sha512-x25519-esn", "aesxcbc", "aes256gmac-ecp256", "sha1-sha384"} {
		for _, mode := range []esp.Mode{esp.Tunnel, esp.Transport} {
			t.Run(words+" "+mode.String(), func(t *testing.T) {
				p := newPair(t, func(x, y *Conn) {
					hostToHost(mode, mode)(x, y)
					x.Children[0].Proposals = mustProposals(t, ProtoAH, words)
					y.Children[0].Proposals = mustProposals(t, ProtoAH, words)
				})
				p.up()
				p.mode(mode)
				for i, h := range []*host{p.a, p.b} {
					h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link", Child: "net"})
					p.run()
					p.done(h, uint64(10+i), nil)
					p.pass(2 * linger)
					p.same(1)
				}
				for _, h := range []*host{p.a, p.b} {
					for _, s := range h.sas {
						if s.Proto != esp.AH || s.Suite.Encr != esp.EncrNone || len(s.EncrKey) != 0 || len(s.IntegKey) == 0 {
							t.Errorf("%v has an SA of %v with %v", h.addr, s.Proto, s.Suite)
						}
					}
				}
				p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link", Child: "net"})
				p.run()
				p.pass(2 * linger)
				p.done(p.a, 3, nil)
				p.same(0)
			})
		}
	}
}

// What one side has for ESP and the other for AH is no CHILD SA, and behind a NAT there is no AH.
func TestAHIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		a, b Protocol
		nat  bool
	}{"ESP for AH": {ProtoAH, ProtoESP, false}, "AH for ESP": {ProtoESP, ProtoAH, false}, "a NAT": {ProtoAH, ProtoAH, true}} {
		t.Run(name, func(t *testing.T) {
			words := map[Protocol]string{ProtoAH: "sha256", ProtoESP: "aes128-sha256"}
			p := newPair(t, func(x, y *Conn) {
				x.Children[0].Proposals = mustProposals(t, c.a, words[c.a])
				y.Children[0].Proposals = mustProposals(t, c.b, words[c.b])
			})
			if c.nat {
				p.nat = map[netip.Addr]netip.Addr{netip.MustParseAddr("192.0.2.77"): p.a.addr}
				p.a.addr = netip.MustParseAddr("192.0.2.77")
				p.a.m.conns[0].conn.LocalAddrs = nil
			}
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			p.done(p.a, 1, &NotifyError{NotifyNoProposalChosen, ""})
			p.same(0)
		})
	}
}
