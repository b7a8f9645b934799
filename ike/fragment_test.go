package ike

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// wideChild returns a change for newPair that makes IKE_AUTH and CREATE_CHILD_SA large:
// n selectors on each side, 16 octets each.
func wideChild(n int, more func(a, b *Conn)) func(a, b *Conn) {
	return func(a, b *Conn) {
		var left, right []TS
		for i := range n {
			left = append(left, sel(fmt.Sprintf("10.1.%d.0/24", i)))
			right = append(right, sel(fmt.Sprintf("10.2.%d.0/24", i)))
		}
		a.Children[0].LocalTS, a.Children[0].RemoteTS = left, right
		b.Children[0].LocalTS, b.Children[0].RemoteTS = right, left
		if more != nil {
			more(a, b)
		}
	}
}

func fragmentSizes(a, b int) func(x, y *Conn) {
	return func(x, y *Conn) { x.FragmentSize, y.FragmentSize = a, b }
}

// watch keeps every datagram that the two send.
func (p *pair) watch() (sent *[2][][]byte) {
	sent = new([2][][]byte)
	for i, h := range []*host{p.a, p.b} {
		h.mangle = func(o *Output) bool {
			sent[i] = append(sent[i], append([]byte(nil), o.Data...))
			return true
		}
	}
	return sent
}

// partOf returns the numbers of a datagram; number is 0 if it is no fragment.
func partOf(t testing.TB, b []byte) (h Header, next PayloadType, number, total uint16) {
	t.Helper()
	var m Message
	if err := m.Parse(append([]byte(nil), b...)); err != nil {
		t.Fatalf("a datagram cannot be parsed: %v", err)
	}
	if f := m.fragment(); f != nil {
		var ok bool
		if number, total, ok = f.numbers(); !ok {
			t.Fatalf("a fragment is sent with the numbers %d of %d", number, total)
		}
	}
	return m.Header, m.SKNext, number, total
}

func TestLargeMessagesTravelInFragmentsOfTheConfiguredSize(t *testing.T) {
	const ip = 20 + 8
	p := newPair(t, fragmentSizes(200, 220))
	sent := p.watch()
	p.up()
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
	p.run()
	p.done(p.a, 2, nil)
	p.pass(2 * linger)
	p.same(1)
	for i, limit := range []int{200, 220} {
		parts := map[Exchange]int{}
		var before Header
		var last uint16
		for _, d := range sent[i] {
			h, next, number, total := partOf(t, d)
			if h.Exchange != ExchangeInit && len(d)+ip > limit {
				t.Errorf("side %d sends %d octets of IP in %v, want at most %d", i, len(d)+ip, h.Exchange, limit)
			}
			if number == 0 {
				continue
			}
			parts[h.Exchange]++
			first := map[Exchange]PayloadType{ExchangeAuth: PayloadIDi, ExchangeCreateChild: PayloadNotify}[h.Exchange]
			if i == 1 {
				first = map[Exchange]PayloadType{ExchangeAuth: PayloadIDr, ExchangeCreateChild: PayloadSA}[h.Exchange]
			}
			switch {
			case h.Next != PayloadSKF || total < 2:
				t.Errorf("a fragment's header names %v, and it is one of %d", h.Next, total)
			case number == 1 && next != first:
				t.Errorf("the first fragment of %v names %v as first payload, want %v", h.Exchange, next, first)
			case number > 1 && next != PayloadNone:
				t.Errorf("fragment %d names %v as next payload, want none (RFC 7383 section 2.5)", number, next)
			case number > 1 && (number != last+1 || h.ID != before.ID || h.Flags != before.Flags || h.SPIi != before.SPIi || h.SPIr != before.SPIr):
				t.Errorf("fragment %d (%+v) does not continue %d (%+v)", number, h, last, before)
			}
			before, last = h, number
		}
		if parts[ExchangeAuth] < 2 || i == 0 && parts[ExchangeCreateChild] < 2 {
			t.Errorf("side %d: fragments %v, want some of IKE_AUTH and CREATE_CHILD_SA", i, parts)
		}
	}
}

// Every cipher, and every size about the borders between one, two and more fragments.
func TestFragmentsUseTheirRoomWithEverySuite(t *testing.T) {
	for _, suite := range []string{"aes128gcm16-prfsha256-x25519", "chacha20poly1305-prfsha256-x25519", "aes256-sha512-x25519",
		"aes128-sha1-x25519", "aes128ccm8-prfaescmac-x25519", "aes128ctr-aesxcbc-x25519", "aes128gcm12-prfsha256-x25519"} {
		p := newPair(t, func(a, b *Conn) {
			a.Proposals = mustProposals(t, ProtoIKE, suite)
			b.Proposals = a.Proposals
		})
		p.up()
		sa, peer := &p.a.m.sas[0], &p.b.m.sas[0]
		for size := 100; size < 1500; size += 1 + size/40 {
			for _, content := range []int{0, 1, 50, 300, 1000, 3001} {
				sa.conn.FragmentSize = size
				data, cut := p.a.m.protected(sa, sa.header(ExchangeInformational, peer.recvID, false), func(b *Builder) {
					b.Raw(PayloadVendor, false, make([]byte, content))
				})
				limit := max(size-28, headerLen+8+sa.sealer.ivLen()+chunkMin+sa.sealer.icvLen)
				n := 0
				for rest := data; len(rest) > 0; n++ {
					var d []byte
					if d, rest = nextDatagram(rest, cut); len(d) > limit {
						t.Fatalf("%s: a datagram of %d octets, at most %d are allowed", suite, len(d), limit)
					}
					if len(rest) > 0 && len(d) <= limit-16 {
						t.Fatalf("%s: a datagram of %d octets is not the last one and leaves room in %d", suite, len(d), limit)
					}
					if authentic, err := p.b.m.open(peer, append([]byte(nil), d...)); !authentic || err != nil && err != errPart {
						t.Fatalf("%s, size %d, content %d: fragment %d: %v", suite, size, content, n+1, err)
					}
				}
				got := p.b.m.msg.Find(PayloadVendor)
				if got == nil || len(got.Body) != content || n == 1 != (cut == 0) {
					t.Fatalf("%s, size %d: %d octets in %d datagrams (cut %d) are not what arrived", suite, size, content, n, cut)
				}
			}
		}
	}
}

func TestFragmentsNeedTheConsentOfBoth(t *testing.T) {
	for _, c := range []struct {
		a, b   Fragmentation
		ab, ba bool
	}{
		{FragmentYes, FragmentYes, true, true}, {FragmentYes, FragmentNo, false, false}, {FragmentNo, FragmentYes, false, false},
		{FragmentYes, FragmentAccept, true, false}, {FragmentAccept, FragmentYes, false, true}, {FragmentAccept, FragmentAccept, false, false},
	} {
		p := newPair(t, func(a, b *Conn) {
			fragmentSizes(200, 200)(a, b)
			a.Fragmentation, b.Fragmentation = c.a, c.b
		})
		sent := p.watch()
		p.up()
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"}) // a new IKE SA inherits it
		p.run()
		p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 3, Conn: "link", Child: "net"})
		p.run()
		p.pass(2 * linger)
		p.same(1)
		for i, want := range []bool{c.ab, c.ba} {
			got := map[Exchange]bool{}
			for _, d := range sent[i] {
				if h, _, number, _ := partOf(t, d); number > 0 {
					got[h.Exchange] = true
				}
			}
			if got[ExchangeAuth] != want || got[ExchangeCreateChild] != want {
				t.Errorf("%d and %d: side %d sends fragments of %v, want %v", c.a, c.b, i, got, want)
			}
		}
		// Whoever has not agreed takes none.
		if !c.ab && c.b == FragmentNo {
			sa := &p.a.m.sas[0]
			for i := range p.a.m.sas {
				if p.a.m.sas[i].state == StateEstablished {
					sa = &p.a.m.sas[i]
				}
			}
			data, cut := p.a.m.split(sa, p.fill(sa, 300), headerLen, 200)
			d, _ := nextDatagram(data, cut)
			p.b.m.Datagram(p.now, toB, append([]byte(nil), d...))
			p.b.drain(p.now)
			if e := p.b.events[len(p.b.events)-1]; e.Kind != EvDropped || e.Err != ErrFragment {
				t.Errorf("a fragment that was not agreed upon led to %+v", e)
			}
		}
	}
}

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

// narrow makes the network drop IP datagrams larger than that.
func narrow(h *host, mtu int) (dropped *int) {
	dropped = new(int)
	h.mangle = func(o *Output) bool {
		if len(o.Data)+o.Path.ipOverhead() > mtu {
			*dropped++
			return false
		}
		return true
	}
	return dropped
}

// A path that silently drops what is larger than 600 octets: smaller fragments are tried
// before the peer counts as dead (RFC 7383 section 2.5.2).
func TestSmallerFragmentsAreTriedWhenThereIsNoAnswer(t *testing.T) {
	for _, suite := range []string{"aes128gcm16-prfsha256-x25519", "aes128-sha256-x25519"} {
		for _, selectors := range []int{16, 60} { // one datagram at first; several
			p := newPair(t, wideChild(selectors, func(a, b *Conn) {
				a.Proposals = mustProposals(t, ProtoIKE, suite)
				b.Proposals = a.Proposals
			}))
			lost := narrow(p.a, 600)
			narrow(p.b, 600)
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			p.pass(20 * time.Second)
			p.done(p.a, 1, nil)
			p.same(1)
			if *lost == 0 {
				t.Fatal("nothing was too large at first")
			}
			said := ""
			for _, e := range p.a.events {
				if e.Kind == EvRetransmit {
					said = fmt.Sprintf("%d %s", e.Count, e.Text)
				}
			}
			if said != "2 IKE_AUTH in smaller fragments" {
				t.Errorf("the last retransmission was told as %q", said)
			}
			if p.b.m.sas[0].frag.size == 0 {
				t.Error("the responder did not follow the initiator's smaller fragments")
			}
			// From now on everything starts small.
			*lost = 0
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
			p.run()
			p.done(p.a, 2, nil)
			if *lost != 0 {
				t.Error("the next exchange did not start with what is known of the path")
			}
		}
	}
}

// Only what the responder sends is too large: it is asked again and again.
func TestResponseThatDoesNotArriveIsRepeatedInSmallerFragments(t *testing.T) {
	p := newPair(t, wideChild(60, nil))
	p.up()
	lost := narrow(p.b, 600)
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
	p.run()
	p.pass(5 * time.Second)
	if len(p.b.sas) != 4 || *lost < 2 {
		t.Fatalf("the first response and its repetition should have been too large: %d lost, %d SAs", *lost, len(p.b.sas))
	}
	p.pass(20 * time.Second)
	p.done(p.a, 2, nil)
	p.same(1)
}

func TestPeerThatIsDeadIsGivenUpAfterSmallerFragments(t *testing.T) {
	p := newPair(t, wideChild(60, func(a, b *Conn) { a.KeyingTries = 1 }))
	p.b.mangle = func(o *Output) bool { h, _ := ParseHeader(o.Data); return h.Exchange == ExchangeInit }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(3 * time.Minute)
	if n := p.a.count(EvRetransmit); n != fragmentTries+retryTries {
		t.Errorf("%d retransmissions, want %d in all", n, fragmentTries+retryTries)
	}
	p.done(p.a, 1, ErrTimeout)
}

func TestTraceNamesFragmentsAsCharonDoes(t *testing.T) {
	p := newPair(t, fragmentSizes(200, 200))
	on := func() bool { return true }
	p.a.m.Trace, p.b.m.Trace = on, on
	p.up()
	text := func(h *host) string {
		var s strings.Builder
		for _, e := range h.events {
			if e.Kind == EvTrace {
				s.WriteString(e.Text + "\n")
			}
		}
		return s.String()
	}
	for _, want := range []string{
		"sending IKE_SA_INIT request 0 [ SA KE Nonce N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(IKEV2_FRAGMENTATION_SUPPORTED) N(REDIRECT_SUPPORTED) ]\n",
		"sending IKE_AUTH request 1 [ IDi N(INITIAL_CONTACT) IDr AUTH SA TSi TSr N(SET_WINDOW_SIZE) ]\nsending IKE_AUTH request 1 [ EF(1/",
		"received IKE_AUTH response 1 [ EF(2/2) ]\nreceived IKE_AUTH response 1 [ IDr AUTH SA TSi TSr N(SET_WINDOW_SIZE) ]\n",
	} {
		if got := text(p.a); !strings.Contains(got, want) {
			t.Errorf("the trace has no %q:\n%s", want, got)
		}
	}
	if got, want := text(p.b), "received IKE_AUTH request 1 [ EF(2/"; !strings.Contains(got, want) {
		t.Errorf("the responder's trace has no %q:\n%s", want, got)
	}
}
