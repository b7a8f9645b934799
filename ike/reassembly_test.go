package ike

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// fill returns an INFORMATIONAL request of a's that is ready to be sealed, with n octets in it.
func (p *pair) fill(sa *ikeSA, n int) []byte {
	msg, _ := p.a.m.plain(sa, sa.header(ExchangeInformational, p.peerOf(sa).recvID, false), func(b *Builder) {
		b.Raw(PayloadVendor, false, make([]byte, n))
	})
	return msg
}

// peerOf returns b's side of an IKE SA of a's.
func (p *pair) peerOf(sa *ikeSA) *ikeSA {
	for i := range p.b.m.sas {
		if o := &p.b.m.sas[i]; o.state != StateFree && o.spiI == sa.spiI && o.spiR == sa.spiR {
			return o
		}
	}
	p.b.t.Fatal("b does not have the IKE SA")
	return nil
}

// parts splits an INFORMATIONAL request of a's with n octets into fragments.
func (p *pair) parts(n, size int) [][]byte {
	sa := &p.a.m.sas[0]
	data, cut := p.a.m.split(sa, p.fill(sa, n), headerLen, size)
	var list [][]byte
	for len(data) > 0 {
		var d []byte
		d, data = nextDatagram(data, cut)
		list = append(list, d)
	}
	return list
}

// give hands b a copy of each datagram and returns how many it sends back.
func (p *pair) give(list ...[]byte) int {
	n := 0
	for _, d := range list {
		n += len(p.answer(toB, append([]byte(nil), d...)))
	}
	return n
}

func TestFragmentsMayComeInAnyOrderAndTwice(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for round := range 200 {
		list := p.parts(800, 150+p.a.rnd.IntN(300))
		for range 1 + p.a.rnd.IntN(3) {
			list = append(list, list[p.a.rnd.IntN(len(list))])
		}
		p.a.rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		peer := &p.b.m.sas[0]
		id := peer.recvID
		p.b.events = nil
		n := p.give(list...)
		if n == 0 || peer.recvID != id+1 || len(peer.frag.in[0]) != 0 {
			t.Fatalf("round %d: %d answers, message ID %d after %d, and %d in the making", round, n, peer.recvID, id, len(peer.frag.in[0]))
		}
		if d := p.b.count(EvDropped); d != 0 {
			t.Fatalf("round %d: duplicates caused %d complaints", round, d)
		}
	}
}

// Only fragment 1 of a request that has been answered asks for the answer (RFC 7383 section
// 2.6.1), and gets the same one.
func TestFirstFragmentAloneAsksForTheResponseAgain(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	list := p.parts(900, 300)
	p.give(list...)
	want := append([]byte(nil), p.b.m.sas[0].reply.data...)
	for i, d := range list {
		got := p.give(d)
		if i == 0 && got != 1 || i > 0 && got != 0 {
			t.Errorf("fragment %d of an answered request got %d answers", i+1, got)
		}
	}
	if !bytes.Equal(want, p.b.m.sas[0].reply.data) {
		t.Error("the repeated response is another one")
	}
	forged := append([]byte(nil), list[0]...)
	forged[len(forged)-1] ^= 1
	if p.give(forged) != 0 {
		t.Error("a forged first fragment got the response")
	}
}

func TestForgedFragmentsDisturbNothing(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	peer := &p.b.m.sas[0]
	for i, d := range p.parts(900, 300) {
		last := i == 3
		kept := 0
		if len(peer.frag.in[0]) > 0 {
			kept = len(peer.frag.in[0][0].parts)
		}
		forge := func(what string, change func(b []byte)) {
			f := append([]byte(nil), d...)
			change(f)
			if p.give(f) != 0 {
				t.Errorf("%s got an answer", what)
			}
			now := 0
			if len(peer.frag.in[0]) > 0 {
				now = len(peer.frag.in[0][0].parts)
			}
			if now != kept {
				t.Fatalf("before fragment %d: %s changed what is kept from %d to %d fragments", i+1, what, kept, now)
			}
		}
		set := func(number, total uint16) func(b []byte) {
			return func(b []byte) {
				binary.BigEndian.PutUint16(b[headerLen+4:], number)
				binary.BigEndian.PutUint16(b[headerLen+6:], total)
			}
		}
		forge("a wrong checksum", func(b []byte) { b[len(b)-1] ^= 1 })
		forge("other content", func(b []byte) { b[len(b)-20] ^= 1 })
		forge("number 0", set(0, 4))
		forge("number 5 of 4", set(5, 4))
		forge("1 of 0", set(1, 0))
		forge("more in total", set(1, 5))
		forge("another number", set(uint16(i+2), 4))
		forge("fewer in total", set(1, 1))
		forge("a huge total", set(1, 65535))
		forge("another next payload", func(b []byte) { b[headerLen] ^= 1 })
		forge("another message ID", func(b []byte) { b[23]++ })
		forge("another exchange", func(b []byte) { b[18] = byte(ExchangeCreateChild) })
		forge("a response", func(b []byte) { b[19] |= FlagResponse })
		forge("a short payload", func(b []byte) {
			binary.BigEndian.PutUint16(b[headerLen+2:], 6)
			binary.BigEndian.PutUint32(b[24:], headerLen+6)
		})
		if got := p.give(d); got != 0 != last {
			t.Fatalf("fragment %d got %d answers", i+1, got)
		}
	}
	if len(p.b.sas) != 2 {
		t.Error("the SAs are gone")
	}
}

// A set with a larger total takes the place of what is there (RFC 7383 section 2.6), one with
// a smaller total is late.
func TestSmallerFragmentsReplaceLargerOnes(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	large, small := p.parts(900, 500), p.parts(900, 200)
	if len(large) < 3 || len(small) <= len(large) {
		t.Fatalf("sets of %d and %d", len(large), len(small))
	}
	peer := &p.b.m.sas[0]
	p.give(large[0], large[1])
	p.give(small[2])
	if r := peer.frag.find(0, peer.recvID); r == nil || int(r.total) != len(small) || len(r.parts) != 1 {
		t.Fatalf("after the first fragment of the new set: %+v", r)
	}
	if p.give(large[2]) != 0 || len(peer.frag.in[0][0].parts) != 1 {
		t.Error("a fragment of the old set was not ignored")
	}
	if p.give(small...) == 0 {
		t.Error("the complete new set got no answer")
	}
}

func TestOnlyTheMessageThatIsDueIsPutTogether(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	sa, peer := &p.a.m.sas[0], &p.b.m.sas[0]
	for _, h := range []Header{
		sa.header(ExchangeInformational, peer.recvID+maxWindow, false), sa.header(ExchangeInformational, peer.recvID-2, false),
		sa.header(ExchangeInformational, 1<<31, false), sa.header(ExchangeAuth, peer.recvID, false),
		sa.header(ExchangeInformational, peer.sendID, true), // we have asked nothing
	} {
		msg, _ := p.a.m.plain(sa, h, func(b *Builder) { b.Raw(PayloadVendor, false, make([]byte, 900)) })
		data, cut := p.a.m.split(sa, msg, headerLen, 300)
		for len(data) > 0 {
			var d []byte
			d, data = nextDatagram(data, cut)
			if p.give(d) != 0 || len(peer.frag.in[0])+len(peer.frag.in[1]) != 0 {
				t.Fatalf("a fragment of %v, message %d, response %v is kept or answered", h.Exchange, h.ID, h.Response())
			}
		}
	}
}

func TestIncompleteMessageIsForgotten(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	list, peer := p.parts(900, 300), &p.b.m.sas[0]
	p.give(list[1:]...)
	if r := peer.frag.find(0, peer.recvID); r == nil || len(r.parts) != len(list)-1 {
		t.Fatal("the fragments were not kept")
	}
	p.pass(fragmentLife)
	if len(peer.frag.in[0]) != 0 {
		t.Fatalf("an incomplete message is still there after %v", fragmentLife)
	}
	if p.give(list[0]) != 0 || p.give(list[1:]...) == 0 {
		t.Error("when all of it is sent again, it must be answered")
	}
}

func TestPayloadsInClearInFrontOfFragmentsAreRefused(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	sa := &p.a.m.sas[0]
	b := NewBuilder(nil, sa.header(ExchangeInformational, p.b.m.sas[0].recvID, false))
	b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
	b.BeginSK(0)
	msg := b.Finish()
	off := b.SKOff()
	msg[headerLen] = byte(PayloadSKF)
	msg = append(msg, 0, 1, 0, 1)
	msg = append(msg, make([]byte, sa.sealer.ivLen())...)
	msg = sa.sealer.seal(msg, off, off+payloadHdr+fragmentHdr, p.a.Random)
	got := p.answer(toB, msg)
	if len(got) != 1 {
		t.Fatalf("%d answers", len(got))
	}
	if _, ok := got[0].FindNotify(NotifyInvalidSyntax); !ok {
		t.Errorf("a payload in clear in an encrypted message was answered by %s", got[0].summary())
	}
}

// A peer that has authenticated cannot make us keep more than one message's worth, in octets
// or in fragments.
func TestOversizedMessageClosesTheIKESA(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	list, peer := p.parts(60000, 1200), &p.b.m.sas[0]
	most := 0
	for _, d := range list {
		p.give(d)
		if len(peer.frag.in[0]) > 0 {
			most = max(most, peer.frag.in[0][0].size())
		}
	}
	if most > 3*maxReassembled/2 {
		t.Errorf("%d octets were kept, the limit is %d", most, maxReassembled)
	}
	if peer.state != StateFree || len(p.b.sas) != 0 {
		t.Errorf("the IKE SA is %v after a message of 60000 octets", peer.state)
	}
	if i := slices.IndexFunc(p.b.events, func(e Event) bool { return e.Kind == EvIKEDown }); i < 0 || p.b.events[i].Err != ErrOversize {
		t.Error("nobody was told why")
	}

	p = newPair(t, nil)
	p.up()
	peer = &p.b.m.sas[0]
	list = p.parts(16000, 100)
	if len(list) <= maxFragments {
		t.Fatalf("only %d fragments", len(list))
	}
	if p.give(list...) != 0 || len(peer.frag.in[0]) != 0 {
		t.Errorf("a message in %d fragments was kept", len(list))
	}
}

// Whoever does a key exchange can send authentic fragments without having shown who it is.
// All of them together must stay within a bound, and must not keep an honest peer out.
func TestFragmentsOfHalfOpenPeersAreBounded(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { b.RemoteAddrs = nil })
	p.b.m = New(p.b, Limits{IKESAs: 64, HalfOpen: 32, Cookies: 60, ChildSAs: 16})
	conn := p.a.m.conns[0].conn
	cb := *conn
	cb.LocalID, cb.RemoteID, cb.LocalAddrs, cb.RemoteAddrs = conn.RemoteID, conn.LocalID, []netip.Addr{p.b.addr}, nil
	cb.Children = []*Child{{Name: "net", LocalTS: conn.Children[0].RemoteTS, RemoteTS: conn.Children[0].LocalTS,
		Proposals: conn.Children[0].Proposals, ReplayWindow: 64}}
	if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{&cb}, Secrets: p.a.m.secrets}); err != nil {
		t.Fatal(err)
	}
	most := 0
	sum := func() (n int) {
		for i := range p.b.m.sas {
			for _, r := range slices.Concat(p.b.m.sas[i].frag.in[0], p.b.m.sas[i].frag.in[1]) {
				n += r.size()
			}
		}
		return n
	}
	for attacker := range 24 {
		// An attacker: a machine of its own, whose IKE_AUTH goes nowhere.
		x := &host{t: t, addr: netip.AddrFrom4([4]byte{198, 51, 100, byte(attacker)}), rnd: p.a.rnd, spis: map[uint32]bool{}, sas: map[uint32]*ChildSA{}}
		x.m = New(x, Limits{IKESAs: 2, HalfOpen: 1, Cookies: 1, ChildSAs: 2})
		cx := *conn
		cx.LocalAddrs, cx.RemotePort = []netip.Addr{x.addr}, 0
		if err := x.m.Configure(p.now, Config{Conns: []*Conn{&cx}, Secrets: p.a.m.secrets}); err != nil {
			t.Fatal(err)
		}
		x.mangle = func(o *Output) bool {
			h, err := ParseHeader(o.Data)
			return err == nil && h.Exchange == ExchangeInit
		}
		q := &pair{a: x, b: p.b, now: p.now}
		x.m.Command(p.now, Command{Kind: CmdInitiate})
		q.run()
		sa := &x.m.sas[0]
		if sa.sealer == nil || !sa.frag.on {
			t.Fatalf("attacker %d has no keys: %+v", attacker, x.events)
		}
		msg, _ := x.m.plain(sa, sa.header(ExchangeAuth, 1, false), func(b *Builder) { b.Raw(PayloadVendor, false, make([]byte, maxReassembled-500)) })
		data, cut := x.m.split(sa, msg, headerLen, 1200)
		_, data = nextDatagram(data, cut) // never the first
		for len(data) > 0 {
			var d []byte
			d, data = nextDatagram(data, cut)
			p.b.m.Datagram(p.now, Path{Local: toB.Local, Remote: netip.AddrPortFrom(x.addr, 500)}, d)
			p.b.drain(p.now)
			most = max(most, sum())
		}
	}
	if most > maxHalfOpenFragments*5/4 || most < maxHalfOpenFragments/2 {
		t.Errorf("half-open peers filled %d octets, want about %d", most, maxHalfOpenFragments)
	}
	conn.FragmentSize = 200
	sent := p.watch()
	p.up()
	if !slices.ContainsFunc(sent[0], func(d []byte) bool { _, _, n, _ := partOf(t, d); return n > 0 }) {
		t.Error("the honest peer has sent no fragments")
	}
	p.pass(2 * halfOpenLife)
	if n := sum(); n != 0 {
		t.Errorf("%d octets are left after the half-open IKE SAs have gone", n)
	}
}
