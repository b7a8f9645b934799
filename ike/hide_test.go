package ike

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/esp"
)

// aggFrag checks what both ends of the only CHILD SA have agreed on.
func (p *pair) aggFrag(want AggFrag) {
	p.a.t.Helper()
	for _, h := range []*host{p.a, p.b} {
		for _, s := range h.sas {
			if s.AggFrag != want {
				p.a.t.Errorf("%v has agreed on %+v, want %+v", h.addr, s.AggFrag, want)
			}
		}
	}
}

func (p *pair) rekey(h *host, tag uint64) {
	p.a.t.Helper()
	h.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link", Child: "net"})
	p.run()
	p.done(h, tag, nil)
	p.pass(2 * linger)
	p.same(1)
}

// RFC 9347 section 5.1: AGGFRAG payloads need both sides, in IKE_AUTH and whenever keys are
// made anew, whoever asks.
func TestAggFragIsAgreedOn(t *testing.T) {
	for _, c := range []struct {
		a, b AskIPTFS
		on   bool
	}{
		{IPTFSNo, IPTFSNo, false}, {IPTFSYes, IPTFSNo, false}, {IPTFSNo, IPTFSYes, false}, {IPTFSYes, IPTFSYes, true},
		{IPTFSRequire, IPTFSYes, true}, {IPTFSYes, IPTFSRequire, true}, {IPTFSRequire, IPTFSRequire, true},
	} {
		t.Run(fmt.Sprint(c.a, c.b), func(t *testing.T) {
			p := newPair(t, func(x, y *Conn) {
				x.Children[0].Hiding = Hiding{IPTFS: c.a, Mode: IPTFSAggregate}
				y.Children[0].Hiding = Hiding{IPTFS: c.b, Mode: IPTFSAggregate}
			})
			p.up()
			p.aggFrag(AggFrag{On: c.on})
			for i, h := range []*host{p.a, p.b} {
				p.rekey(h, uint64(10+i))
				p.aggFrag(AggFrag{On: c.on})
			}
		})
	}
}

// The flags say what the sender of the notify requires of the other side.
func TestAggFragFlagsReachTheOtherSide(t *testing.T) {
	for _, c := range []struct {
		h    Hiding
		want AggFrag
	}{
		{Hiding{IPTFS: IPTFSYes, Mode: IPTFSAggregate}, AggFrag{On: true}},
		{Hiding{IPTFS: IPTFSYes, Mode: IPTFSAggregate, NoFrags: true}, AggFrag{On: true, PeerNoFrags: true}},
		{Hiding{IPTFS: IPTFSYes, Mode: IPTFSConstant}, AggFrag{On: true, PeerReports: true}},
		{Hiding{IPTFS: IPTFSYes, Mode: IPTFSCongestion, NoFrags: true}, AggFrag{On: true, PeerNoFrags: true, PeerReports: true}},
	} {
		for _, swap := range []bool{false, true} {
			p := newPair(t, func(x, y *Conn) {
				if swap {
					x, y = y, x
				}
				x.Children[0].Hiding, y.Children[0].Hiding = c.h, Hiding{IPTFS: IPTFSRequire, Mode: IPTFSAggregate}
			})
			p.up()
			told, plain := p.b, p.a
			if swap {
				told, plain = plain, told
			}
			for _, s := range told.sas {
				if s.AggFrag != c.want {
					t.Errorf("%+v, swapped %v: the other side knows %+v, want %+v", c.h, swap, s.AggFrag, c.want)
				}
			}
			for _, s := range plain.sas {
				if s.AggFrag != (AggFrag{On: true}) {
					t.Errorf("%+v, swapped %v: requirements came back: %+v", c.h, swap, s.AggFrag)
				}
			}
		}
	}
}

// What one side requires and the other does not have: there is no CHILD SA, on either side, and
// none carries anything meanwhile.
func TestRequiredAggFrag(t *testing.T) {
	for _, c := range []struct {
		a, b  AskIPTFS
		bare  bool // the CHILD SA comes from CREATE_CHILD_SA
		want  string
		event EventKind
	}{
		{IPTFSRequire, IPTFSNo, false, ErrIPTFS.Error(), EvFailed},
		{IPTFSRequire, IPTFSNo, true, ErrIPTFS.Error(), EvFailed},
		{IPTFSNo, IPTFSRequire, false, "the peer answers NO_PROPOSAL_CHOSEN; compare the proposals of both sides", EvFailed},
		{IPTFSNo, IPTFSRequire, true, "the peer answers NO_PROPOSAL_CHOSEN; compare the proposals of both sides", EvFailed},
	} {
		t.Run(fmt.Sprint(c.a, c.b, c.bare), func(t *testing.T) {
			p := newPair(t, func(x, y *Conn) {
				x.Children[0].Hiding, y.Children[0].Hiding = Hiding{IPTFS: c.a}, Hiding{IPTFS: c.b}
				if c.bare {
					x.Childless, y.Childless = ChildlessPrefer, ChildlessAllow
				}
			})
			used := false
			p.a.outputs = func(o *Output) {
				used = used || o.Kind == OutUseSA || o.Kind == OutAddSA && o.Add.Dir == esp.Out && !o.Add.Standby
			}
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
			p.run()
			var ended error
			for _, e := range p.a.events {
				if e.Kind == EvDone && e.Tag == 1 {
					ended = e.Err
				}
			}
			if ended == nil || ended.Error() != c.want {
				t.Errorf("initiating ended with %v, want %q", ended, c.want)
			}
			if p.a.count(c.event) != 1 || p.a.count(EvChildUp) != 0 {
				t.Errorf("%d failures were told and %d CHILD SAs, want 1 and none", p.a.count(c.event), p.a.count(EvChildUp))
			}
			p.pass(2 * linger)
			p.same(0)
			if used {
				t.Error("an outbound SA without AGGFRAG payloads was put to use")
			}
			if p.a.m.sas[0].state != StateEstablished && p.a.m.sas[1].state != StateEstablished {
				t.Error("the IKE SA went with its CHILD SA")
			}
		})
	}
}

// A rekeying that the peer answers without AGGFRAG payloads brings no CHILD SA to use: the old one
// goes on until its end.
func TestRekeyWithoutRequiredAggFrag(t *testing.T) {
	p := newPair(t, func(x, y *Conn) {
		x.Children[0].Hiding, y.Children[0].Hiding = Hiding{IPTFS: IPTFSRequire}, Hiding{IPTFS: IPTFSYes}
	})
	p.up()
	before := p.a.m.children[0].unique
	for i := range p.b.m.children {
		if c := &p.b.m.children[i]; c.state != ChildFree {
			c.cfg.Hiding = Hiding{} // as if the peer had been made anew meanwhile
		}
	}
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 5, Conn: "link", Child: "net"})
	p.run()
	p.pass(linger)
	c := p.a.m.findChild(before)
	if c == nil || c.state != ChildInstalled && c.state != ChildRekeying {
		t.Fatal("the CHILD SA that works has gone")
	}
	for _, s := range p.a.sas {
		if !s.AggFrag.On {
			t.Errorf("an SA without AGGFRAG payloads is there: %08x %v", s.SPI, s.Dir)
		}
	}
}

// asks sends b a request for a CHILD SA in a's name with these notifies, and returns the
// outbound SA that b made of it, or nil.
func (p *pair) asks(write func(b *Builder)) *ChildSA {
	p.a.t.Helper()
	peer := &p.a.m.sas[0]
	path := Path{Local: peer.path.Remote, Remote: peer.path.Local, NATT: peer.path.NATT}
	b := p.b.m.lookup(&Header{SPIi: peer.spiI, SPIr: peer.spiR, Flags: FlagInitiator})
	was := map[uint32]bool{}
	for k := range p.b.sas {
		was[k] = true
	}
	data := p.a.m.sealed(peer, peer.header(ExchangeCreateChild, b.recvID, false), func(b *Builder) {
		write(b)
		b.SA(numbered(mustProposals(p.a.t, ProtoESP, "aes128gcm16"), be32(0x12345678)))
		b.Nonce(make([]byte, 32))
		b.TS(PayloadTSi, []esp.Selector{sel("10.1.0.0/24").Selector})
		b.TS(PayloadTSr, []esp.Selector{sel("10.2.0.0/24").Selector})
	})
	p.b.m.Datagram(p.now, path, data)
	p.b.drain(p.now)
	p.b.out = nil
	for k, s := range p.b.sas {
		if !was[k] && s.Dir == esp.Out {
			return s
		}
	}
	return nil
}

func TestAggFragFlagsThatAreNotKnown(t *testing.T) {
	for _, c := range []struct {
		ask  AskIPTFS
		data []byte
		sa   bool
		want AggFrag
	}{
		{IPTFSYes, []byte{0}, true, AggFrag{On: true}},
		{IPTFSYes, []byte{3}, true, AggFrag{On: true, PeerNoFrags: true, PeerReports: true}},
		{IPTFSYes, []byte{4}, true, AggFrag{}},
		{IPTFSYes, []byte{0x81}, true, AggFrag{}},
		{IPTFSYes, nil, true, AggFrag{}},
		{IPTFSYes, []byte{0, 0}, true, AggFrag{}},
		{IPTFSRequire, []byte{1}, true, AggFrag{On: true, PeerNoFrags: true}},
		{IPTFSRequire, []byte{8}, false, AggFrag{}},
		{IPTFSRequire, nil, false, AggFrag{}},
	} {
		p := newPair(t, func(x, y *Conn) {
			for _, k := range []*Child{x.Children[0], y.Children[0]} {
				k.Hiding = Hiding{IPTFS: c.ask}
				k.Proposals = mustProposals(t, ProtoESP, "aes128gcm16")
			}
		})
		p.up()
		s := p.asks(func(b *Builder) { b.Notify(NotifyUseAGGFRAG, ProtoNone, nil, c.data) })
		if (s != nil) != c.sa {
			t.Errorf("%v, flags %v: there is an SA %v, want %v", c.ask, c.data, s != nil, c.sa)
		} else if s != nil && s.AggFrag != c.want {
			t.Errorf("%v, flags %v: agreed on %+v, want %+v", c.ask, c.data, s.AggFrag, c.want)
		}
	}
}

// RFC 7296 section 3.10.1: who says ESP_TFC_PADDING_NOT_SUPPORTED is sent no padding; dummies are
// another matter. RFC 9347 section 5.1: transport mode has no AGGFRAG payloads.
func TestHidingFollowsThePeerAndTheMode(t *testing.T) {
	wish := Hiding{Padding: 1000, Dummies: time.Second, IPTFS: IPTFSYes}
	for _, c := range []struct {
		name  string
		write func(b *Builder)
		want  Hiding
		agg   bool
	}{
		{"nothing", func(*Builder) {}, wish, false},
		{"no padding", func(b *Builder) { b.Notify(NotifyESPTFCPaddingNotSupported, ProtoNone, nil, nil) },
			Hiding{Dummies: time.Second, IPTFS: IPTFSYes}, false},
		{"AGGFRAG", func(b *Builder) { b.Notify(NotifyUseAGGFRAG, ProtoNone, nil, []byte{0}) }, Hiding{IPTFS: IPTFSYes}, true},
	} {
		p := newPair(t, func(x, y *Conn) {
			for _, k := range []*Child{x.Children[0], y.Children[0]} {
				k.Hiding = Hiding{Padding: 1000, Dummies: time.Second}
				k.Proposals = mustProposals(t, ProtoESP, "aes128gcm16")
			}
			y.Children[0].Hiding.IPTFS = IPTFSYes
		})
		p.up()
		s := p.asks(c.write)
		if s == nil {
			t.Fatalf("%s: no SA was made", c.name)
		}
		if s.Hiding != c.want || s.AggFrag.On != c.agg {
			t.Errorf("%s: the SA hides %+v and has AGGFRAG %v, want %+v and %v", c.name, s.Hiding, s.AggFrag.On, c.want, c.agg)
		}
	}

	p := newPair(t, func(x, y *Conn) {
		hostToHost(esp.Transport, esp.Transport)(x, y)
		x.Children[0].Hiding, y.Children[0].Hiding = wish, wish
	})
	p.b.traced()
	p.up()
	p.mode(esp.Transport)
	for _, h := range []*host{p.a, p.b} {
		for _, s := range h.sas {
			if s.Hiding != (Hiding{}) || s.AggFrag.On {
				t.Errorf("transport mode hides %+v, AGGFRAG %v", s.Hiding, s.AggFrag.On)
			}
		}
	}
	for _, line := range p.b.told("received") {
		if strings.Contains(line, "USE_AGGFRAG") {
			t.Errorf("transport mode was asked for with USE_AGGFRAG: %s", line)
		}
	}
}

// More CHILD SAs with AGGFRAG payloads than there is room for: the next has none, or is refused if it
// must have them. New keys need no more room.
func TestRoomForAggFrag(t *testing.T) {
	for _, limited := range []string{"a", "b"} {
		for _, ask := range []AskIPTFS{IPTFSYes, IPTFSRequire} {
			p := newPair(t, func(x, y *Conn) {
				for i, c := range []*Conn{x, y} {
					k := *c.Children[0]
					nets := [2][]TS{{sel("10.3.0.0/24")}, {sel("10.4.0.0/24")}}
					k.Name, k.LocalTS, k.RemoteTS = "more", nets[i], nets[1-i]
					c.Children = append(c.Children, &k)
					for _, k := range c.Children {
						k.Hiding = Hiding{IPTFS: ask}
					}
				}
			})
			map[string]*host{"a": p.a, "b": p.b}[limited].m.aggFrags = 1
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
			p.run()
			p.done(p.a, 1, nil)
			p.aggFrag(AggFrag{On: true, PeerReports: true})
			for i, h := range []*host{p.a, p.b} {
				p.rekey(h, uint64(10+i))
				p.aggFrag(AggFrag{On: true, PeerReports: true})
			}
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link", Child: "more"})
			p.run()
			p.pass(linger)
			with, without := 0, 0
			for _, s := range p.a.sas {
				if s.AggFrag.On {
					with++
				} else {
					without++
				}
			}
			if want := map[AskIPTFS]int{IPTFSYes: 2, IPTFSRequire: 0}[ask]; with != 2 || without != want {
				t.Errorf("room for one at %s, %v: %d simplex SAs with AGGFRAG payloads and %d without, want 2 and %d", limited, ask, with, without, want)
			}
		}
	}
}

// The MTU leaves room for the header of AGGFRAG payloads, because a peer may take whole packets alone.
func TestLongestPacketWithAggFrag(t *testing.T) {
	sa := esp.SA{Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}, Remote: netip.MustParseAddrPort("192.0.2.1:4500"), Encap: true}
	plain, at1400 := sa.MaxPacket(1500), sa.MaxPacket(1400)
	ah := esp.SA{Proto: esp.AH, Suite: esp.Suite{Integ: esp.IntegHMACSHA256_128}, Remote: sa.Remote}
	for _, c := range []struct {
		h    Hiding
		sa   *esp.SA
		want int
	}{
		{Hiding{}, &sa, plain},
		{Hiding{NoFrags: true, Size: 1400}, &sa, plain},
		{Hiding{IPTFS: IPTFSYes}, &sa, plain - 24},
		{Hiding{IPTFS: IPTFSYes, Size: 600}, &sa, plain - 24},
		{Hiding{IPTFS: IPTFSRequire, NoFrags: true}, &sa, plain - 24},
		{Hiding{IPTFS: IPTFSYes, NoFrags: true, Size: 1400}, &sa, at1400 - 24},
		{Hiding{IPTFS: IPTFSYes, NoFrags: true, Size: 1600}, &sa, plain - 24},
		{Hiding{IPTFS: IPTFSYes}, &ah, ah.MaxPacket(1500)},
		{Hiding{IPTFS: IPTFSYes, NoFrags: true, Size: 60}, &sa, 0},
	} {
		if got := c.h.Longest(c.sa, 1500); got != c.want {
			t.Errorf("%+v: the longest packet has %d octets, want %d", c.h, got, c.want)
		}
	}
}
