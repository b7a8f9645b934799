package ike

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// refused returns the reasons for which a host has refused something, and how often.
func (h *host) refused() map[error]int {
	n := map[error]int{}
	for _, e := range h.events {
		if e.Kind == EvRefused {
			n[e.Err]++
		}
	}
	return n
}

// established returns how many IKE SAs of a host are established.
func (h *host) established() (n int) {
	h.m.List(func(s *SAInfo) bool {
		if s.State == StateEstablished {
			n++
		}
		return true
	})
	return n
}

// forget makes a host as it was before it knew its peer, which learns nothing of it.
func (p *pair) forget(t *testing.T, change func(*Conn)) {
	old := p.a
	p.a = &host{t: t, rnd: old.rnd, addr: old.addr, spis: map[uint32]bool{}, sas: map[uint32]*ChildSA{}}
	p.a.m = New(p.a, Limits{IKESAs: 16, HalfOpen: 8, Cookies: 6, ChildSAs: 16})
	c := *old.m.conns[0].conn
	if change != nil {
		change(&c)
	}
	if err := p.a.m.Configure(p.now, Config{Conns: []*Conn{&c}, Secrets: old.m.secrets}); err != nil {
		t.Fatal(err)
	}
}

func TestUniquenessPolicies(t *testing.T) {
	for _, c := range []struct {
		policy  UniquePolicy
		contact bool // the peer says INITIAL_CONTACT
		moved   bool // the peer has another address
		at      int  // IKE SAs of the answering side at once
		later   int  // and after replaceGrace; -1: the new one is refused
	}{
		{UniqueNo, true, false, 1, 1},
		{UniqueNo, false, false, 2, 2},
		{UniqueNever, true, false, 2, 2},
		{UniqueKeep, true, true, 1, 1},
		{UniqueKeep, false, false, 2, 2},
		{UniqueKeep, false, true, 1, -1},
		{UniqueReplace, false, false, 2, 1},
		{UniqueReplace, false, true, 1, 1},
	} {
		t.Run(fmt.Sprintf("%d contact %v moved %v", c.policy, c.contact, c.moved), func(t *testing.T) {
			p := newPair(t, func(a, b *Conn) { b.Unique, b.RemoteAddrs = c.policy, nil })
			p.up()
			p.now.Mono += time.Minute
			p.forget(t, func(x *Conn) {
				if !c.contact {
					x.Unique = UniqueNever
				}
				if c.moved {
					x.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
					p.a.addr = x.LocalAddrs[0]
				}
			})
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
			p.run()
			if got := p.b.established(); c.later >= 0 && got != c.at {
				t.Errorf("%d IKE SAs are left at once, want %d", got, c.at)
			}
			if c.later < 0 {
				if n := p.b.refused(); n[ErrUnique] != 1 || len(p.a.ids()) != 0 {
					t.Errorf("the second one was not refused: %v", n)
				}
				return
			}
			p.done(p.a, 1, nil)
			p.now.Mono += replaceGrace + time.Second
			p.b.m.Timeout(p.now)
			est := p.b.established()
			if est != c.later {
				t.Errorf("%d established IKE SAs are left after a while, want %d", est, c.later)
			}
		})
	}
}

func TestChildless(t *testing.T) {
	const allow, prefer, force, never = ChildlessAllow, ChildlessPrefer, ChildlessForce, ChildlessNever
	for _, c := range []struct {
		a, b Childless
		want string // how the first CHILD SA is made, or ""
	}{
		{allow, allow, "IKE_AUTH"}, {allow, never, "IKE_AUTH"}, {never, allow, "IKE_AUTH"}, {allow, force, ""},
		{prefer, allow, "CREATE_CHILD_SA"}, {prefer, prefer, "CREATE_CHILD_SA"}, {prefer, force, "CREATE_CHILD_SA"}, {prefer, never, "IKE_AUTH"},
		{force, allow, "CREATE_CHILD_SA"}, {force, force, "CREATE_CHILD_SA"}, {force, never, ""},
	} {
		t.Run(fmt.Sprint(c.a, c.b), func(t *testing.T) {
			p := newPair(t, func(a, b *Conn) { a.Childless, b.Childless = c.a, c.b })
			p.a.m.Trace = func() bool { return true }
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
			p.run()
			if c.want == "" {
				p.same(0)
				if n := p.a.established() + p.b.established(); n != 0 {
					t.Errorf("%d IKE SAs are there though the two want different things", n)
				}
				return
			}
			p.done(p.a, 1, nil)
			p.same(1)
			by := ""
			for _, e := range p.a.events {
				if e.Kind == EvTrace && strings.HasPrefix(e.Text, "received "+"IKE_AUTH response") && strings.Contains(e.Text, " SA ") {
					by = "IKE_AUTH"
				}
				if e.Kind == EvTrace && strings.HasPrefix(e.Text, "received "+"CREATE_CHILD_SA response") {
					by = "CREATE_CHILD_SA"
				}
			}
			if by != c.want {
				t.Errorf("the CHILD SA was made by %q, want %s", by, c.want)
			}
			p.now.Mono += time.Minute
			p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2})
			p.run()
			p.pass(2 * linger)
			p.same(1)
		})
	}
}

// An IKE SA without a CHILD SA, of a responder that says nothing of RFC 6023, is refused.
func TestChildlessRequestIsRefusedWhereItIsNever(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.Childless, b.Childless = ChildlessForce, ChildlessNever })
	p.b.m.conns[0].conn.Childless = ChildlessAllow
	p.b.mangle = func(*Output) bool { // between its two answers it changes its mind
		p.b.m.conns[0].conn.Childless = ChildlessNever
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.run()
	if n := p.b.refused(); n[ErrChildless] != 1 || len(p.b.ids()) != 0 {
		t.Errorf("the childless IKE_AUTH was not refused: %v", n)
	}
	p.same(0)
}

// Each side closes a CHILD SA of its own at the same time, so that it is the last one for
// neither: the IKE SA goes all the same.
func TestIdleChildrenOfBothSidesAreClosedAtOnce(t *testing.T) {
	for _, lost := range []bool{false, true} {
		p := newPair(t, func(a, b *Conn) {
			manyChildren(1)(a, b)
			a.Children[0].Inactivity, b.Children[1].Inactivity = 10*time.Minute, 10*time.Minute
		})
		p.a.m.Command(p.now, Command{Kind: CmdInitiate})
		p.run()
		p.same(2)
		start := p.now.Mono
		p.b.mangle = func(o *Output) bool { // its request comes when ours is answered
			h, _ := ParseHeader(o.Data)
			return !lost || h.Response() || p.now.Mono > start+10*time.Minute+time.Second
		}
		p.pass(11 * time.Minute)
		if n, m := len(p.a.ids()), len(p.b.ids()); n != 0 || m != 0 {
			t.Errorf("%d and %d IKE SAs are left without a CHILD SA, want none", n, m)
		}
		p.same(0)
	}
}

func TestIdleChildIsClosed(t *testing.T) {
	for _, kids := range []int{1, 2} {
		p := newPair(t, func(a, b *Conn) {
			a.Children[0].Inactivity, a.Children[0].RekeyTime = 10*time.Minute, 4*time.Minute
			a.Children[0].StartAction, a.Children[0].CloseAction = StartTrap, ActionTrap
			if kids == 2 {
				x, y := *a.Children[0], *b.Children[0]
				x.Name, x.Inactivity, x.LocalTS = "more", 0, []TS{sel("10.3.0.0/24")}
				y.Name, y.RemoteTS = "more", []TS{sel("10.3.0.0/24")}
				a.Children, b.Children = append(a.Children, &x), append(b.Children, &y)
			}
		})
		p.a.m.Command(p.now, Command{Kind: CmdInitiate})
		p.run()
		p.same(kids)
		// Packets one way keep it, new keys do not.
		for range 10 {
			p.pass(5 * time.Minute)
			p.a.lastOut = p.now.Mono
		}
		p.pass(9 * time.Minute)
		p.pass(2 * linger)
		p.same(kids)
		used := p.a.lastOut
		p.pass(used + 10*time.Minute + 4*linger - p.now.Mono)
		p.same(kids - 1)
		if n := len(p.a.ids()); n != kids-1 {
			t.Errorf("with %d children at first: %d IKE SAs are left, want %d: with its last CHILD SA it goes too", kids, n, kids-1)
		}
		for _, e := range p.a.events {
			if e.Kind == EvFailed {
				t.Errorf("an attempt: %+v", e)
			}
		}
		// The next packet brings it back.
		p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
		p.run()
		p.same(kids)
	}
}

// A peer that sends authentic CREATE_CHILD_SA requests without end and deletes nothing: each
// is answered, and the others have room.
func TestFloodsOfAuthenticRequestsAreBounded(t *testing.T) {
	for name, target := range map[string]string{"new CHILD SAs": "", "rekeyed CHILD SAs": "child"} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, nil)
			p.b.m = New(p.b, Limits{IKESAs: 64, HalfOpen: 8, Cookies: 6, ChildSAs: 64})
			other := newPair(t, nil)
			if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{other.b.m.conns[0].conn}, Secrets: other.b.m.secrets}); err != nil {
				t.Fatal(err)
			}
			p.up()
			sa := &p.a.m.sas[0]
			answers, id := map[NotifyType]int{}, uint32(2)
			spi := spiOf(p.a)
			for i := range 2000 {
				m := p.flood(sa, id, target, spi, uint32(i))
				got := p.answer(toB, m)
				if len(got) != 1 {
					t.Fatalf("request %d got %d answers", i, len(got))
				}
				id++
				for _, n := range []NotifyType{NotifyTemporaryFailure, NotifyNoAdditionalSAs} {
					if _, ok := got[0].FindNotify(n); ok {
						answers[n]++
					}
				}
				// What a real peer would name next.
				if target == "child" && got[0].Find(PayloadSA) != nil {
					spi = 0x1000 + uint32(i)
				}
				p.now.Mono += 20 * time.Millisecond
			}
			kids, ikes := 0, 0
			for i := range p.b.m.children {
				if p.b.m.children[i].state != ChildFree {
					kids++
				}
			}
			p.b.m.List(func(*SAInfo) bool { ikes++; return true })
			refused := p.b.refused()
			if n := refused[ErrTooOften] + refused[ErrNotDeleted] + refused[ErrTooMany]; n < 1000 || answers[NotifyTemporaryFailure]+answers[NotifyNoAdditionalSAs] != n {
				t.Errorf("of 2000 requests in 40 s %v were refused and answered by %v", refused, answers)
			}
			if kids > 64*3/4 || ikes > 8 {
				t.Errorf("%d CHILD SAs and %d IKE SAs of one peer are in tables of 64", kids, ikes)
			}
		})
	}
}

// A peer that gives its IKE SA new keys without end and never deletes the old ones.
func TestIKERekeyingWithoutEndIsBounded(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.a.mangle = func(o *Output) bool { return Exchange(o.Data[18]) != ExchangeInformational } // no DELETE
	for i := range 10 {
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link"})
		p.run()
		p.now.Mono += time.Second
	}
	n := 0
	p.b.m.List(func(*SAInfo) bool { n++; return true })
	if n != 1+maxReplaced {
		t.Errorf("the peer has %d IKE SAs in the table, want the last and %d that it has not deleted", n, maxReplaced)
	}
	if p.b.refused()[ErrNotDeleted] == 0 {
		t.Errorf("nothing was refused: %v", p.b.refused())
	}
	p.same(1)
	// When those have gone, it may again.
	p.a.mangle = nil
	p.pass(3 * rekeyedMax)
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 30, Conn: "link"})
	p.run()
	p.done(p.a, 30, nil)
	p.same(1)
}

// spiOf returns the inbound SPI of a host's CHILD SA.
func spiOf(a *host) uint32 {
	for i := range a.m.children {
		if c := &a.m.children[i]; c.state == ChildInstalled {
			return c.spiIn
		}
	}
	return 0
}

// flood makes the i-th CREATE_CHILD_SA request of a's.
func (p *pair) flood(sa *ikeSA, id uint32, target string, spi, i uint32) []byte {
	nonce := make([]byte, nonceLen)
	nonce[0], nonce[1], nonce[2] = byte(i), byte(i>>8), 1
	return p.a.m.sealed(sa, sa.header(ExchangeCreateChild, id, false), func(b *Builder) {
		if target == "child" {
			b.Notify(NotifyRekeySA, ProtoESP, be32(spi), nil)
		}
		b.SA(numbered(withoutDH(sa.conn.Children[0].Proposals), be32(0x1000+i)))
		b.Nonce(nonce)
		b.TS(PayloadTSi, resolveTS(sa.conn.Children[0].LocalTS, sa.path.Local.Addr()))
		b.TS(PayloadTSr, resolveTS(sa.conn.Children[0].RemoteTS, sa.path.Remote.Addr()))
	})
}

// Responses that answer nothing, of another exchange or another message ID, and requests
// outside of the window: dropped, counted, and everything stays as it was.
func TestMessagesOutOfOrderChangeNothing(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	sa := &p.a.m.sas[0]
	snapshot := func() string {
		s := fmt.Sprint(p.b.m.sas[0].recvID, p.b.m.sas[0].sendID, p.b.m.sas[0].state, p.b.m.sas[0].path)
		p.b.m.List(func(i *SAInfo) bool { s += fmt.Sprintf("%+v", *i); return true })
		return s
	}
	// b asks for something, and waits.
	p.b.mangle = func(*Output) bool { return false }
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Conn: "link", Child: "net"})
	p.b.drain(p.now)
	p.b.mangle = nil
	waiting := p.b.m.sas[0].req.id
	before := snapshot()
	del := func(b *Builder) { b.Delete(ProtoIKE, nil) }
	for _, c := range []struct {
		name     string
		exchange Exchange
		id       uint32
		response bool
	}{
		{"a response to a request that was never sent", ExchangeInformational, waiting + 1, true},
		{"a response to one long ago", ExchangeCreateChild, waiting - 1, true},
		{"a response of another exchange", ExchangeInformational, waiting, true},
		{"a response of a wild message ID", ExchangeCreateChild, 1 << 31, true},
		{"a request beyond the window", ExchangeInformational, p.b.m.sas[0].recvID + maxWindow, false},
		{"a request far beyond it", ExchangeInformational, 1<<32 - 1, false},
		{"a request that was answered long ago", ExchangeInformational, 0, false},
	} {
		p.b.events = nil
		msg := p.a.m.sealed(sa, sa.header(c.exchange, c.id, c.response), del)
		if got := p.answer(toB, msg); len(got) != 0 {
			t.Errorf("%s was answered by %s", c.name, got[0].summary())
		}
		if n := p.b.count(EvDropped); n != 1 || !errors.Is(p.b.events[0].Err, ErrMessageID) {
			t.Errorf("%s: events %+v, want one that it was dropped for its message ID", c.name, p.b.events)
		}
		if after := snapshot(); after != before {
			t.Errorf("%s changed\n%s to\n%s", c.name, before, after)
		}
	}
	// Somebody who has no key repeats, and forges, whatever was sent.
	for _, b := range []struct {
		name string
		fill func(*Builder)
	}{{"DELETE of the IKE SA", del}, {"DELETE of the CHILD SA", func(b *Builder) { b.Delete(ProtoESP, []uint32{spiOf(p.a)}) }}} {
		msg := p.a.m.sealed(sa, sa.header(ExchangeInformational, 2, false), b.fill)
		for i := headerLen; i < len(msg); i += 5 {
			p.b.events = nil
			forged := append([]byte(nil), msg...)
			forged[i] ^= 0x40
			if got := p.answer(toB, forged); len(got) != 0 {
				t.Errorf("a %s with octet %d changed was answered", b.name, i)
			}
			if p.b.count(EvDropped) != 1 || snapshot() != before {
				t.Fatalf("a %s with octet %d changed was not just dropped: %+v", b.name, i, p.b.events)
			}
		}
	}
	if len(p.b.sas) != 2 {
		t.Errorf("%d simplex SAs are left, want one pair", len(p.b.sas))
	}
}
