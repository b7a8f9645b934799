package ike

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/esp"
)

// followPair is a pair whose IKE SA and whose child have additional key exchanges.
func followPair(t testing.TB, esp string) *pair {
	return hybridPair(t, hybrid, func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			c.Children[0].Proposals = mustProposals(t, ProtoESP, esp)
			c.FragmentSize = 9000
		}
	})
}

const hybridESP = "aes128gcm16-x25519-ke1_mlkem768"

// renew has a host rekey its child, or the IKE SA.
func (p *pair) renew(h *host, tag uint64, child string) {
	h.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link", Child: child})
	p.run()
}

// hybridOnce checks that each side has one IKE SA with one child, with these additional methods, and
// that nothing is left over of what has made them.
func (p *pair) hybridOnce(t *testing.T, ike, child AddKE) {
	t.Helper()
	p.same(1)
	for _, h := range []*host{p.a, p.b} {
		n := 0
		h.m.List(func(s *SAInfo) bool {
			n++
			if s.State != StateEstablished || len(s.Tasks)+len(s.Passive) != 0 || len(s.Children) != 1 || s.Suite.KE != ike || s.Children[0].KE != child {
				t.Errorf("%v: %v, tasks %v %v, %d children, %v, %+v", h.addr, s.State, s.Tasks, s.Passive, len(s.Children), s.Suite, s.Children)
			}
			return true
		})
		used := 0
		for i := range h.m.sas {
			if h.m.sas[i].state != StateFree {
				used++
			}
		}
		if n != 1 || used != 1 {
			t.Fatalf("%v: %d IKE SAs in %d places, want one", h.addr, n, used)
		}
	}
}

func TestFollowupsOfEveryKind(t *testing.T) {
	for words, want := range map[string]AddKE{
		hybridESP: {MLKEM768},
		"aes128gcm16-mlkem1024-ke2_x25519-ke5_mlkem768": {1: Curve25519, 4: MLKEM768},
		"aes128gcm16-x25519-ke1_ecp256-ke2_ecp384-ke3_ecp521-ke4_mlkem768-ke5_mlkem1024-ke6_modp2048-ke7_modp3072": {
			ECP256, ECP384, ECP521, MLKEM768, MLKEM1024, MODP2048, MODP3072},
	} {
		p := followPair(t, words)
		p.up()
		list := exchanges(p.a)
		p.renew(p.a, 2, "net")
		p.done(p.a, 2, nil)
		n := len(want.list())
		if got := strings.Join(*list, " "); got != "CREATE_CHILD_SA"+strings.Repeat(" IKE_FOLLOWUP_KE", n)+" INFORMATIONAL" {
			t.Errorf("%s: %s", words, got)
		}
		p.pass(2 * linger)
		p.hybridOnce(t, AddKE{MLKEM768}, want)
		for i, h := range []*host{p.b, p.a, p.b} {
			p.renew(h, uint64(10+i), "")
			p.done(h, uint64(10+i), nil)
			p.hybridOnce(t, AddKE{MLKEM768}, want)
			p.renew(h, uint64(20+i), "net")
			p.done(h, uint64(20+i), nil)
			p.pass(2 * linger)
			p.hybridOnce(t, AddKE{MLKEM768}, want)
		}
	}
}

func TestFollowupsForAH(t *testing.T) {
	p := hybridPair(t, hybrid, func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			c.Children[0].Proposals = mustProposals(t, ProtoAH, "sha256-x25519-ke1_mlkem768")
		}
	})
	p.up()
	for i, h := range []*host{p.a, p.b} {
		p.renew(h, uint64(2+i), "net")
		p.done(h, uint64(2+i), nil)
		p.pass(2 * linger)
		p.hybridOnce(t, AddKE{MLKEM768}, AddKE{MLKEM768})
	}
}

// KEYMAT = prf+(SK_d, SK(0) | Ni | Nr | SK(1) | ... SK(n)) and SKEYSEED = prf(SK_d, SK(0) | Ni |
// Nr | SK(1) | ... SK(n)), recomputed from what is seen on the wire (RFC 9370 section 2.2.4).
func TestFollowupKeysAsTheRFCHasThem(t *testing.T) {
	p := followPair(t, "aes128gcm16-x25519-ke1_mlkem768-ke3_mlkem1024")
	o := observe(t, p)
	p.up()
	_, second := o.init()
	o.derive(refPRF(PRFHMACSHA256, o.keys[0], slices.Concat(o.secrets[1], o.ni, o.nr)), second[:16])
	o.secrets, o.all = nil, nil
	p.renew(p.a, 2, "net")
	_, in, next := o.message(ExchangeCreateChild, 3, false)
	ni := bytes.Clone(o.body(in, next, PayloadNonce))
	_, in, next = o.message(ExchangeCreateChild, 3, true)
	nr := bytes.Clone(o.body(in, next, PayloadNonce))
	if len(o.secrets) != 3 {
		t.Fatalf("%d jobs of the responder, want 3", len(o.secrets))
	}
	mat := refPlus(PRFHMACSHA256, o.keys[0], slices.Concat(o.secrets[0], ni, nr, o.secrets[1], o.secrets[2]), 40)
	found := false
	for i := range p.a.m.children {
		if c := &p.a.m.children[i]; c.state == ChildInstalled {
			out, in := p.a.sas[key(c.spiOut, esp.Out)], p.a.sas[key(c.spiIn, esp.In)]
			found = bytes.Equal(out.EncrKey, mat[:20]) && bytes.Equal(in.EncrKey, mat[20:])
		}
	}
	if !found {
		t.Error("the keys of the CHILD SA are not those of the RFC's formula")
	}

	old := o.keys
	p.pass(2 * linger)
	o.secrets, o.all = nil, nil
	p.renew(p.a, 3, "")
	_, in, next = o.message(ExchangeCreateChild, 7, false)
	o.ni = bytes.Clone(o.body(in, next, PayloadNonce))
	spiI := o.spi(in, next)
	_, in, next = o.message(ExchangeCreateChild, 7, true)
	o.nr = bytes.Clone(o.body(in, next, PayloadNonce))
	spis := append(spiI, o.spi(in, next)...)
	o.derive(refPRF(PRFHMACSHA256, old[0], slices.Concat(o.secrets[0], o.ni, o.nr, o.secrets[1])), spis)
	sa := p.responders()
	if !bytes.Equal(sa.keys.d, o.keys[0]) || !bytes.Equal(sa.keys.er, o.keys[4]) || !bytes.Equal(sa.keys.pi, o.keys[5]) {
		t.Error("the keys of the rekeyed IKE SA are not those of the RFC's formula")
	}
}

// spi returns the SPI of the first proposal in a chain.
func (o *observer) spi(inner []byte, next PayloadType) []byte {
	b := o.body(inner, next, PayloadSA)
	return bytes.Clone(b[8 : 8+int(b[6])])
}

// Both sides rekey the same at once: one is left on each side, and who has lost goes no further
// than CREATE_CHILD_SA.
func TestBothRekeyAtOnceWithFollowups(t *testing.T) {
	for _, what := range []string{"net", ""} {
		t.Run(fmt.Sprintf("child %q", what), func(t *testing.T) {
			p := followPair(t, hybridESP)
			p.up()
			for i := range 12 {
				la, lb := exchanges(p.a), exchanges(p.b)
				tag := uint64(30 + i)
				p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link", Child: what})
				p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link", Child: what})
				p.run()
				n := strings.Count(strings.Join(append(*la, *lb...), " "), "IKE_FOLLOWUP_KE")
				if n != 1 {
					t.Errorf("round %d: %d IKE_FOLLOWUP_KE requests, want that of the winner: %v and %v", i, n, *la, *lb)
				}
				p.pass(40 * time.Second)
				p.done(p.a, tag, nil)
				p.done(p.b, tag, nil)
				p.hybridOnce(t, AddKE{MLKEM768}, p.childKE())
			}
		})
	}
}

// childKE returns the additional methods of a's CHILD SA.
func (p *pair) childKE() (k AddKE) {
	p.a.m.List(func(s *SAInfo) bool { k = s.Children[0].KE; return true })
	return k
}

// A series that stands still is forgotten together with what it has reserved, and the peer that
// goes on with it then is told so, begins anew and gets its new keys.
func TestForgottenSeriesBeginsAnew(t *testing.T) {
	for _, what := range []string{"net", ""} {
		p := followPair(t, hybridESP)
		p.up()
		late := true
		p.a.mangle = func(o *Output) bool {
			h, _ := ParseHeader(o.Data)
			return !late || h.Exchange != ExchangeFollowupKE
		}
		p.renew(p.a, 2, what)
		sa := p.responders()
		if len(sa.follow) != 1 {
			t.Fatalf("%d series wait, want one", len(sa.follow))
		}
		if len(p.b.spis) != map[string]int{"net": 2, "": 1}[what] {
			t.Errorf("%d SPIs are held", len(p.b.spis))
		}
		spent := followLife + time.Second
		p.pass(spent)
		if len(sa.follow) != 0 || len(p.b.spis) != 1 {
			t.Fatalf("after %v %d series and %d SPIs are still there", spent, len(sa.follow), len(p.b.spis))
		}
		late = false
		p.pass(time.Minute)
		lost := 0
		for _, e := range p.b.events {
			if e.Kind == EvRefused && e.Text == NotifyStateNotFound.String() {
				lost++
			}
		}
		if lost != 1 {
			t.Errorf("STATE_NOT_FOUND was sent %d times, want once", lost)
		}
		p.hybridOnce(t, AddKE{MLKEM768}, p.childKE())
		if sa := &p.a.m.sas[0]; sa.lost != 0 {
			t.Error("a success does not end the count of lost series")
		}
	}
}

// A peer that forgets every series (section 2.2.4: a fatal error after several retries).
func TestPeerThatForgetsEverySeriesLosesTheIKESA(t *testing.T) {
	p := followPair(t, hybridESP)
	p.up()
	p.b.ran = func(*Result) {}
	forget := func() {
		for i := range p.b.m.sas {
			if sa := &p.b.m.sas[i]; sa.state != StateFree {
				p.b.m.dropFollow(sa)
			}
		}
	}
	p.b.mangle = func(*Output) bool { forget(); return true }
	p.renew(p.a, 2, "net")
	for range 200 {
		p.pass(2 * time.Second)
	}
	if p.a.count(EvIKEDown) == 0 {
		t.Error("the IKE SA is still there, and its child has old keys for ever")
	}
	for _, h := range []*host{p.a, p.b} {
		for _, e := range h.events {
			if e.Kind == EvIKEDown && h == p.a && !isNotify(e.Err, NotifyStateNotFound) {
				t.Errorf("it ended by %v", e.Err)
			}
		}
	}
}

// What an authenticated peer may not do in a series; the CHILD SA that is there stays, and
// nothing stays reserved.
func TestHostileFollowups(t *testing.T) {
	good, _ := newKeyPair(MLKEM768, stream("another", 64))
	for _, c := range []struct {
		what string
		fill func(b *Builder, link []byte)
		want NotifyType
	}{
		{"no such series", func(b *Builder, link []byte) {
			b.KE(MLKEM768, good.public())
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, append(bytes.Clone(link), 0))
		}, NotifyStateNotFound},
		{"an empty link", func(b *Builder, link []byte) {
			b.KE(MLKEM768, good.public())
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, nil)
		}, NotifyStateNotFound},
		{"another notify than the link", func(b *Builder, link []byte) {
			b.KE(MLKEM768, good.public())
			b.Notify(NotifyInitialContact, ProtoNone, nil, link)
		}, NotifyStateNotFound},
		{"another method", func(b *Builder, link []byte) {
			b.KE(Curve25519, make([]byte, 32))
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, link)
		}, NotifyInvalidSyntax},
		{"a short key", func(b *Builder, link []byte) {
			b.KE(MLKEM768, good.public()[1:])
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, link)
		}, NotifyInvalidSyntax},
		{"a key that is none", func(b *Builder, link []byte) {
			b.KE(MLKEM768, bytes.Repeat([]byte{255}, 1184))
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, link)
		}, NotifyInvalidSyntax},
	} {
		p := followPair(t, hybridESP)
		p.up()
		var link []byte
		p.a.mangle = func(o *Output) bool {
			h, _ := ParseHeader(o.Data)
			return h.Exchange != ExchangeFollowupKE
		}
		p.renew(p.a, 2, "net")
		sa := p.responders()
		link = sa.follow[0].link()
		id := p.a.m.sas[0].req.id
		got := p.answer(toB, p.crafted(ExchangeFollowupKE, id, func(b *Builder) { c.fill(b, link) }))
		if len(got) != 1 {
			t.Fatalf("%s: %d answers", c.what, len(got))
		}
		if _, ok := got[0].FindNotify(c.want); !ok || got[0].Find(PayloadKE) != nil {
			t.Errorf("%s: answered by %s, want %v", c.what, got[0].summary(), c.want)
		}
		if len(p.b.sas) != 2 {
			t.Errorf("%s: %d SAs", c.what, len(p.b.sas))
		}
		p.now.Mono += followLife + time.Second
		p.b.m.Timeout(p.now)
		p.b.drain(p.now)
		if len(sa.follow) != 0 || len(p.b.spis) != 1 {
			t.Errorf("%s: %d series and %d SPIs are left", c.what, len(sa.follow), len(p.b.spis))
		}
	}
}

// However many series a peer begins and leaves, so many are kept as its window takes, and a
// rekeying of the IKE SA takes one place.
func TestSeriesAreBounded(t *testing.T) {
	p := followPair(t, hybridESP)
	p.up()
	p.a.mangle = func(*Output) bool { return false }
	peer := &p.a.m.sas[0]
	half, _ := newKeyPair(Curve25519, stream("x", 32))
	id := peer.sendID
	send := func(ps []Proposal, child bool, spi []byte) {
		p.b.m.Datagram(p.now, toB, p.crafted(ExchangeCreateChild, id, func(b *Builder) {
			b.SA(numbered(ps, spi))
			b.Nonce(stream(fmt.Sprint(id), 32))
			b.KE(Curve25519, half.public())
			if child {
				b.TS(PayloadTSi, []esp.Selector{sel("10.1.0.0/24").Selector})
				b.TS(PayloadTSr, []esp.Selector{sel("10.2.0.0/24").Selector})
			}
		}))
		p.b.drain(p.now)
		p.b.out = nil
		id++
	}
	sa := p.responders()
	for i := range 20 {
		send(mustProposals(t, ProtoESP, hybridESP), true, be32(0x10000+uint32(i)))
		if len(sa.follow) > maxFollow || len(p.b.spis) > 1+maxFollow {
			t.Fatalf("after %d requests %d series and %d SPIs are held", i+1, len(sa.follow), len(p.b.spis))
		}
	}
	if len(sa.follow) != maxFollow {
		t.Errorf("%d series are held, want %d", len(sa.follow), maxFollow)
	}
	for i := range 5 {
		send(mustProposals(t, ProtoIKE, hybrid), false, binary.BigEndian.AppendUint64(nil, 77+uint64(i)))
		used := 0
		for i := range p.b.m.sas {
			if p.b.m.sas[i].state != StateFree {
				used++
			}
		}
		if used > 2 {
			t.Fatalf("%d places of the table are taken by rekeyings that go no further", used)
		}
	}
	p.now.Mono += followLife + time.Second
	p.b.m.Timeout(p.now)
	p.b.drain(p.now)
	used := 0
	for i := range p.b.m.sas {
		if p.b.m.sas[i].state != StateFree {
			used++
		}
	}
	if len(sa.follow) != 0 || used != 1 || len(p.b.spis) != 1 {
		t.Errorf("%d series, %d places and %d SPIs are left", len(sa.follow), used, len(p.b.spis))
	}
}

// An IKE SA that ends takes with it what its series have reserved.
func TestSeriesEndWithTheirIKESA(t *testing.T) {
	for _, what := range []string{"net", ""} {
		p := followPair(t, hybridESP)
		p.up()
		p.a.mangle = func(o *Output) bool {
			h, _ := ParseHeader(o.Data)
			return h.Exchange != ExchangeFollowupKE
		}
		p.renew(p.a, 2, what)
		p.b.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link"})
		p.run()
		p.pass(20 * time.Second)
		for i := range p.b.m.sas {
			if p.b.m.sas[i].state != StateFree {
				t.Errorf("place %d is still taken: %v", i, p.b.m.sas[i].state)
			}
		}
		if len(p.b.spis) != 0 || len(p.b.sas) != 0 {
			t.Errorf("%d SPIs and %d SAs are left", len(p.b.spis), len(p.b.sas))
		}
	}
}

// The requests of a series take the message IDs that are due, also beside other exchanges of
// the window, and never one beyond it.
func TestFollowupsKeepWithinTheWindow(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		a.Children[0].Proposals, b.Children[0].Proposals = mustProposals(t, ProtoESP, hybridESP), mustProposals(t, ProtoESP, hybridESP)
		manyChildren(3)(a, b)
		for _, c := range []*Conn{a, b} {
			for _, k := range c.Children {
				k.Proposals = mustProposals(t, ProtoESP, hybridESP)
			}
		}
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
	n := len(p.a.m.conns[0].conn.Children)
	p.same(n)
	answered := map[uint32]bool{}
	highest, violated := uint32(0), 0
	base := p.a.m.sas[0].sendID
	p.a.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); !h.Response() {
			oldest := base
			for answered[oldest] {
				oldest++
			}
			if h.ID-oldest >= maxWindow {
				violated++
			}
			highest = max(highest, h.ID)
		}
		return true
	}
	// The first response of a window comes last, whichever it is.
	var held []Output
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		if h.Response() && h.ID == base && len(held) == 0 {
			held = append(held, *o)
			return false
		}
		if h.Response() {
			answered[h.ID] = true
		}
		return true
	}
	for i := range p.a.m.children {
		if c := &p.a.m.children[i]; c.state == ChildInstalled {
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), ChildID: c.unique})
		}
	}
	p.run()
	if len(held) != 1 || violated != 0 || highest-base >= maxWindow {
		t.Fatalf("%d responses are held, %d requests were beyond the window, the highest is %d after %d", len(held), violated, highest, base)
	}
	answered[base] = true
	p.a.m.Datagram(p.now, Path{Local: held[0].Path.Remote, Remote: held[0].Path.Local, NATT: held[0].Path.NATT}, held[0].Data)
	p.run()
	p.pass(30 * time.Second)
	if violated != 0 {
		t.Errorf("%d requests were beyond the window", violated)
	}
	p.same(n)
	for i := range p.a.m.children {
		if c := &p.a.m.children[i]; c.state == ChildInstalled && c.ke != (AddKE{MLKEM768}) {
			t.Errorf("child %s has %v", c.cfg.Name, c.ke)
		}
	}
}

// FuzzFollowup gives a responder whose series waits any payloads in IKE_FOLLOWUP_KE, and one that
// waits for IKE_INTERMEDIATE the same there: neither loses what it has reserved, nor keeps it.
func FuzzFollowup(f *testing.F) {
	half, _ := newKeyPair(MLKEM768, stream("seed", 64))
	b := NewBuilder(nil, Header{})
	b.KE(MLKEM768, half.public())
	b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, []byte{0, 0, 0, 3, 1})
	f.Add(byte(PayloadKE), b.Finish()[headerLen:])
	f.Add(byte(0), []byte(nil))
	f.Fuzz(func(t *testing.T, first byte, chain []byte) {
		for _, ex := range []Exchange{ExchangeFollowupKE, ExchangeIntermediate} {
			p := followPair(t, hybridESP)
			if len(chain) > 8000 {
				return
			}
			if ex == ExchangeFollowupKE {
				p.up()
				p.a.mangle = func(o *Output) bool {
					h, _ := ParseHeader(o.Data)
					return h.Exchange != ExchangeFollowupKE
				}
				p.renew(p.a, 2, "net")
			} else {
				p.a.mangle = func(o *Output) bool { h, _ := ParseHeader(o.Data); return h.Exchange == ExchangeInit }
				p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
				p.run()
			}
			id := p.a.m.sas[0].sendID - 1
			p.b.m.Datagram(p.now, toB, p.sealed(ex, id, PayloadType(first), chain))
			p.b.drain(p.now)
			p.now.Mono += time.Hour
			p.b.m.Timeout(p.now)
			p.b.drain(p.now)
			if sa := p.responders(); sa != nil && len(sa.follow) != 0 {
				t.Fatal("a series is still there")
			}
			kids := 0
			for i := range p.b.m.children {
				if p.b.m.children[i].state != ChildFree {
					kids++
				}
			}
			if len(p.b.spis) > kids {
				t.Fatalf("%d SPIs for %d CHILD SAs", len(p.b.spis), kids)
			}
		}
	})
}
