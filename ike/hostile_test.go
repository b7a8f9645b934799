package ike

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// answer gives b one datagram and returns what it sends back, parsed.
func (p *pair) answer(path Path, data []byte) []*Message {
	p.b.out = nil
	p.b.m.Datagram(p.now, path, data)
	p.b.drain(p.now)
	var list []*Message
	for _, o := range p.b.out {
		m := new(Message)
		if err := m.Parse(append([]byte(nil), o.Data...)); err != nil {
			p.b.t.Fatalf("the answer cannot be read: %v", err)
		}
		if m.SKOff != 0 {
			sa := &p.a.m.sas[0]
			inner, err := sa.opener.open(m.raw, m.SKOff, m.SKOff+payloadHdr)
			if err != nil {
				p.b.t.Fatalf("the answer cannot be decrypted: %v", err)
			}
			if err := m.ParseInner(m.SKNext, inner); err != nil {
				p.b.t.Fatal(err)
			}
		}
		list = append(list, m)
	}
	p.b.out = nil
	return list
}

// sealed makes a request of a's to b with the payload chain, whose first payload is of type
// first, in it.
func (p *pair) sealed(ex Exchange, id uint32, first PayloadType, chain []byte) []byte {
	sa := &p.a.m.sas[0]
	b := NewBuilder(nil, sa.header(ex, id, false))
	b.BeginSK(sa.sealer.ivLen())
	msg := b.Finish()
	msg[b.SKOff()] = byte(first)
	msg = append(msg, chain...)
	return sa.sealer.seal(msg, b.SKOff(), b.SKOff()+payloadHdr, p.a.Random)
}

var toB = Path{Local: netip.MustParseAddrPort("192.0.2.2:500"), Remote: netip.MustParseAddrPort("192.0.2.1:500")}

func TestUnknownPayloads(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	unknown := func(flags byte) []byte { return []byte{0, flags, 0, 8, 1, 2, 3, 4} }
	got := p.answer(toB, p.sealed(ExchangeInformational, 2, 200, unknown(0)))
	if len(got) != 1 || len(got[0].Payloads) != 0 {
		t.Fatalf("an unknown payload that is not critical must be skipped: %v", got[0].summary())
	}
	got = p.answer(toB, p.sealed(ExchangeInformational, 3, 200, unknown(0x80)))
	if len(got) != 1 {
		t.Fatalf("%d answers to an unknown critical payload, want one", len(got))
	}
	n, ok := got[0].FindNotify(NotifyUnsupportedCriticalPayload)
	if !ok || len(n.Data) != 1 || n.Data[0] != 200 {
		t.Fatalf("an unknown critical payload was answered by %s", got[0].summary())
	}
	if len(p.b.sas) != 2 {
		t.Error("the SAs are gone: only the exchange should have failed")
	}
}

func TestRepeatedRequestGetsTheSameAnswerAndOldOnesNone(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	msg := func(id uint32) []byte { return p.sealed(ExchangeInformational, id, 0, nil) }
	first := msg(2)
	p.b.m.Datagram(p.now, toB, append([]byte(nil), first...))
	p.b.drain(p.now)
	a := p.b.out[0].Data
	p.b.out = nil
	p.b.m.Datagram(p.now, toB, append([]byte(nil), first...))
	p.b.drain(p.now)
	if len(p.b.out) != 1 || string(p.b.out[0].Data) != string(a) {
		t.Fatal("a repeated request must get the very same response")
	}
	for _, id := range []uint32{0, 3 + maxWindow, 1 << 31, 1<<32 - 1} {
		if got := p.answer(toB, msg(id)); len(got) != 0 {
			t.Errorf("request %d, where 2 was the last, got an answer: %s", id, got[0].summary())
		}
	}
	forged := msg(3)
	forged[len(forged)-1] ^= 1
	if got := p.answer(toB, forged); len(got) != 0 {
		t.Error("a forged request got an answer")
	}
	if got := p.answer(toB, msg(3)); len(got) != 1 {
		t.Error("after the forged request the authentic one must still be answered")
	}
}

func TestForgedDeleteChangesNothing(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	sa := &p.a.m.sas[0]
	b := NewBuilder(nil, sa.header(ExchangeInformational, 2, false))
	b.Delete(ProtoIKE, nil)
	p.answer(toB, b.Finish()) // in clear
	p.same(1)
	if p.b.count(EvIKEDown) != 0 {
		t.Error("a DELETE without protection closed the IKE SA")
	}
}

func TestMalformedAuthenticRequestClosesTheSA(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	got := p.answer(toB, p.sealed(ExchangeCreateChild, 2, PayloadNonce, []byte{0, 0, 0, 36, 1, 2}))
	if len(got) != 1 {
		t.Fatalf("%d answers, want INVALID_SYNTAX", len(got))
	}
	if _, ok := got[0].FindNotify(NotifyInvalidSyntax); !ok {
		t.Fatalf("a malformed request was answered by %s", got[0].summary())
	}
	if len(p.b.sas) != 0 || len(p.b.spis) != 0 {
		t.Error("INVALID_SYNTAX is fatal for the IKE SA (RFC 7296 section 2.21.3), and its CHILD SAs are still there")
	}
}

func TestUnknownSPIsAreAnsweredAtALimitedRate(t *testing.T) {
	p := newPair(t, nil)
	n := 0
	for i := range 1000 {
		b := NewBuilder(nil, Header{SPIi: uint64(i) + 1, SPIr: 77, Exchange: ExchangeInformational, Flags: FlagInitiator, ID: 5})
		b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
		got := p.answer(toB, b.Finish())
		n += len(got)
		if len(got) > 0 {
			if _, ok := got[0].FindNotify(NotifyInvalidIKESPI); !ok || got[0].ID != 5 || got[0].Flags != FlagResponse {
				t.Fatalf("an unknown SPI was answered by %s, flags %x", got[0].summary(), got[0].Flags)
			}
		}
	}
	if n != noticesPerSecond {
		t.Errorf("%d answers within a second, want %d", n, noticesPerSecond)
	}
}

// A flood of initial requests, first from forged addresses, then from addresses that show
// their cookie, must leave room for those who come after it.
func TestFloodOfInitialRequestsIsBounded(t *testing.T) {
	p := newPair(t, func(_, b *Conn) { b.RemoteAddrs = nil })
	var first []byte
	p.a.mangle = func(o *Output) bool { first = append([]byte(nil), o.Data...); return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate})
	p.run()
	for honest := range 2 {
		for i := range 3000 {
			msg := append([]byte(nil), first...)
			binary.BigEndian.PutUint64(msg, uint64(honest+1)<<40|uint64(i)+1)
			path := toB
			path.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 500)
			got := p.answer(path, msg)
			if honest == 0 || len(got) == 0 {
				continue
			}
			n, ok := got[0].FindNotify(NotifyCookie)
			if !ok {
				continue
			}
			// The same message with the cookie in front.
			b := NewBuilder(nil, Header{SPIi: binary.BigEndian.Uint64(msg), Exchange: ExchangeInit, Flags: FlagInitiator})
			b.Notify(NotifyCookie, ProtoNone, nil, n.Data)
			withCookie := b.Finish()
			withCookie[headerLen] = msg[16]
			withCookie = append(withCookie, msg[headerLen:]...)
			binary.BigEndian.PutUint32(withCookie[24:], uint32(len(withCookie)))
			p.answer(path, withCookie)
		}
		half := 0
		p.b.m.List(func(s *SAInfo) bool {
			if s.State == StateConnecting {
				half++
			}
			return true
		})
		want := p.b.m.cookieFrom
		if honest == 1 {
			want = p.b.m.halfOpenMax
		}
		if half != want {
			t.Errorf("round %d: %d half-open IKE SAs, want %d", honest, half, want)
		}
		p.b.events = nil
	}
	p.a.mangle = nil
	p.pass(2 * halfOpenLife) // a's own attempt goes on meanwhile
	p.same(1)
}

func TestFullTablesRefuseAndRecover(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		for i := range 20 {
			mine, theirs := []TS{sel(fmt.Sprintf("10.1.1.%d/32", i))}, []TS{sel(fmt.Sprintf("10.2.1.%d/32", i))}
			for _, c := range []*Conn{a, b} {
				x := *c.Children[0]
				x.Name = fmt.Sprintf("host%d", i)
				x.LocalTS, x.RemoteTS = mine, theirs
				mine, theirs = theirs, mine
				c.Children = append(c.Children, &x)
			}
		}
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	var failed error
	for _, e := range p.a.events {
		if e.Kind == EvDone && e.Tag == 1 {
			failed = e.Err
		}
	}
	if failed == nil || !errors.Is(failed, ErrTableFull) && !isNotify(failed, NotifyNoAdditionalSAs) {
		t.Fatalf("21 children in a table of 16 ended with %v", failed)
	}
	room := len(p.b.m.children) - reserve(len(p.b.m.children))
	p.same(room)
	// Rekeying has room all the same.
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
	p.run()
	p.done(p.a, 2, nil)
	p.pass(2 * linger)
	p.same(room)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3})
	p.run()
	p.same(0)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 4, Conn: "link", Child: "net"})
	p.run()
	p.done(p.a, 4, nil)
	p.pass(time.Second)
	p.same(1)
}
