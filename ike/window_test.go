package ike

import (
	"fmt"
	"testing"
	"time"
)

// shown returns the window that List shows of the one established IKE SA of a host.
func shown(h *host) (n int) {
	h.m.List(func(s *SAInfo) bool {
		if s.State == StateEstablished {
			n = s.Window
		}
		return true
	})
	return n
}

func TestWindowOfThePeerIsRememberedAndOnlyGrows(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	before := shown(p.b)
	tell := func(data ...byte) {
		sa := &p.a.m.sas[0]
		b := NewBuilder(nil, Header{})
		b.Notify(NotifySetWindowSize, ProtoNone, nil, data)
		if got := p.answer(toB, p.sealed(ExchangeInformational, p.peerOf(sa).recvID, PayloadNotify, b.Finish()[headerLen:])); len(got) != 1 {
			t.Fatalf("SET_WINDOW_SIZE got %d answers", len(got))
		}
	}
	for _, c := range []struct {
		data []byte
		want int
	}{
		{[]byte{0, 0, 0, 0}, before}, {[]byte{0, 0, 0, 7}, 7}, {[]byte{0, 0, 0, 2}, 7}, {[]byte{9}, 7}, {[]byte{0, 0, 0, 0, 9}, 7},
		{nil, 7}, {[]byte{255, 255, 255, 255}, 7}, {[]byte{0, 1, 0, 0}, 65536},
	} {
		tell(c.data...)
		if got := shown(p.b); got != c.want {
			t.Errorf("after SET_WINDOW_SIZE %x the window is %d, want %d", c.data, got, c.want)
		}
	}
	p.a.m.sas[0].sendID = p.b.m.sas[0].recvID
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	if got := shown(p.b); got != 1 || before != maxWindow {
		t.Errorf("the first IKE SA begins with a window of %d, want %d; the second with %d, want 1", before, maxWindow, got)
	}
}

// manyChildren returns a change for newPair: n more children, of hosts.
func manyChildren(n int) func(a, b *Conn) {
	return func(a, b *Conn) {
		for i := range n {
			mine, theirs := []TS{sel(fmt.Sprintf("10.1.1.%d/32", i))}, []TS{sel(fmt.Sprintf("10.2.1.%d/32", i))}
			for _, c := range []*Conn{a, b} {
				x := *c.Children[0]
				x.Name = fmt.Sprintf("host%d", i)
				x.LocalTS, x.RemoteTS = mine, theirs
				mine, theirs = theirs, mine
				c.Children = append(c.Children, &x)
			}
		}
	}
}

// hold makes the network keep what h sends, and returns how to let it go, in any order.
func (h *host) hold() (held *[]Output, free func()) {
	held = new([]Output)
	h.mangle = func(o *Output) bool { *held = append(*held, *o); return false }
	return held, func() { h.mangle = nil }
}

// ids returns the message IDs of what is held, without repetitions.
func ids(held []Output) (list []uint32) {
	seen := map[uint32]bool{}
	for i := range held {
		if h, err := ParseHeader(held[i].Data); err == nil && !seen[h.ID] {
			seen[h.ID] = true
			list = append(list, h.ID)
		}
	}
	return list
}

// deliver hands what is held to the other host, in the order of a permutation.
func (p *pair) deliver(to *host, held []Output, order func(n int) []int) {
	for _, i := range order(len(held)) {
		o := held[i]
		to.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, append([]byte(nil), o.Data...))
		to.drain(p.now)
	}
}

func backwards(n int) (order []int) {
	for i := range n {
		order = append(order, n-1-i)
	}
	return order
}

// The children come up beside each other, as many as the window holds, and the requests may
// arrive in any order.
func TestChildrenComeUpBesideEachOther(t *testing.T) {
	for _, window := range []int{0, 1, 2, 3, 4, 100} {
		p := newPair(t, manyChildren(7))
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
		p.run()
		p.same(1)
		sa := &p.a.m.sas[0]
		sa.window.peer = window
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link"})
		held, free := p.a.hold()
		p.run()
		want := min(max(window, 1), maxWindow)
		if got := ids(*held); len(got) != want {
			t.Fatalf("with a window of %d the requests %v are outstanding, want %d", window, got, want)
		}
		p.pass(6 * time.Second) // retransmissions bring no new ones
		if got := ids(*held); len(got) != want || len(*held) != 2*want {
			t.Fatalf("with a window of %d, after a retransmission the requests %v are outstanding in %d datagrams", window, got, len(*held))
		}
		free()
		p.deliver(p.b, *held, backwards)
		p.run()
		p.done(p.a, 2, nil)
		p.same(8)
		if len(sa.window.parked) != 0 || sa.req.active || sa.timers[tRetransmit] != never {
			t.Errorf("something is left: %d parked, active %v, timer %v", len(sa.window.parked), sa.req.active, sa.timers[tRetransmit])
		}
	}
}

// What the peer has not answered bounds the message IDs, not the count alone (RFC 7296
// section 2.3: all requests up through X-N must have been answered).
func TestOneLostResponseHoldsTheWindow(t *testing.T) {
	p := newPair(t, manyChildren(9))
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
	p.run()
	first := p.a.m.sas[0].sendID
	highest := uint32(0)
	p.a.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		highest = max(highest, h.ID)
		return h.ID != first
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link"})
	p.run()
	if want := first + maxWindow - 1; highest != want {
		t.Errorf("while request %d is unanswered, request %d is sent; %d is the last that the window allows", first, highest, want)
	}
	p.a.mangle = nil
	p.pass(10 * time.Second)
	p.done(p.a, 2, nil)
	p.same(10)
}

func TestExchangesAboutOneChildTakeTurnsAndTheIKESAsOwnAreAlone(t *testing.T) {
	p := newPair(t, manyChildren(3))
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	held, free := p.a.hold()
	do := func(k CommandKind, child string) {
		p.a.m.Command(p.now, Command{Kind: k, Conn: "link", Child: child})
		p.run()
	}
	do(CmdTerminate, "net")
	do(CmdInitiate, "net")
	if got := ids(*held); len(got) != 1 {
		t.Errorf("requests %v: a child is deleted and made anew at once", got)
	}
	do(CmdRekey, "host0")
	do(CmdTerminate, "host1")
	if got := ids(*held); len(got) != 3 {
		t.Errorf("requests %v, want three about three children", got)
	}
	do(CmdRekey, "") // the IKE SA
	do(CmdRekey, "host2")
	if got := ids(*held); len(got) != 3 {
		t.Errorf("requests %v: the rekeying of the IKE SA is not alone, or another task has joined those that it waits for", got)
	}
	free()
	p.deliver(p.b, *held, backwards)
	p.run()
	p.pass(30 * time.Second)
	p.same(3) // net, host0 and host2
	if n := p.a.count(EvIKERekeyed); n != 1 {
		t.Errorf("the IKE SA was rekeyed %d times, want once", n)
	}
}

// The receiver repeats as many responses as it has promised, and forgets older ones.
func TestResponsesOfTheWholeWindowAreRepeated(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	msg := func(id uint32) []byte { return p.sealed(ExchangeInformational, id, 0, nil) }
	start := p.b.m.sas[0].recvID
	if got := p.answer(toB, msg(start+maxWindow)); len(got) != 0 {
		t.Fatal("a request beyond the window was answered")
	}
	for i := uint32(maxWindow); i > 0; i-- { // the last one first
		if got := p.answer(toB, msg(start+i-1)); len(got) != 1 || got[0].ID != start+i-1 {
			t.Fatalf("request %d got %d answers", start+i-1, len(got))
		}
	}
	for i := range uint32(maxWindow) {
		if got := p.answer(toB, msg(start+i)); len(got) != 1 || got[0].ID != start+i {
			t.Errorf("the repeated request %d got %d answers", start+i, len(got))
		}
	}
	for i := range uint32(20) {
		if got := p.answer(toB, msg(start+maxWindow+i)); len(got) != 1 {
			t.Fatalf("request %d got %d answers", start+maxWindow+i, len(got))
		}
	}
	if n := len(p.b.m.sas[0].window.older); n >= maxWindow {
		t.Errorf("%d responses are kept beside the last one, want %d", n, maxWindow-1)
	}
	for i := range uint32(20) {
		want := 0
		if 20-i <= maxWindow {
			want = 1
		}
		if got := p.answer(toB, msg(start+maxWindow+i)); len(got) != want {
			t.Errorf("the repeated request %d of %d got %d answers, want %d", i, 20, len(got), want)
		}
	}
}

// An IKE SA that ends while several requests are outstanding gives everything back.
func TestDeadPeerFreesTheWholeWindow(t *testing.T) {
	p := newPair(t, manyChildren(6))
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
	p.run()
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link"})
	p.run()
	if n := len(p.a.spis); n != 1+maxWindow {
		t.Fatalf("%d SPIs are held, want those of one CHILD SA and %d requests", n, maxWindow)
	}
	p.pass(4 * time.Minute)
	p.done(p.a, 2, ErrTimeout)
	if len(p.a.spis) != 0 || len(p.a.sas) != 0 {
		t.Errorf("%d SPIs and %d SAs are left", len(p.a.spis), len(p.a.sas))
	}
}

// What the user closes while it is being made does not come up afterwards, unless it is asked for
// again.
func TestTerminateWhileTheChildIsMade(t *testing.T) {
	for _, c := range []struct {
		name, child string
		again       bool
		n           int
	}{
		{"with IKE_AUTH", "net", false, 0},
		{"by itself", "host0", false, 1},
		{"and asked for again", "host0", true, 2},
	} {
		p := newPair(t, manyChildren(1))
		if c.child != "net" {
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
			p.run()
			p.same(1)
		}
		under := 0
		p.b.mangle = func(o *Output) bool {
			if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeInit {
				return true
			}
			under++
			return false
		}
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link", Child: c.child})
		p.run()
		p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link", Child: c.child})
		p.run()
		p.done(p.a, 3, nil)
		p.done(p.a, 2, ErrTerminated)
		if c.again {
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 4, Conn: "link", Child: c.child})
			p.run()
		}
		if under == 0 {
			t.Fatalf("%s: nothing was under way", c.name)
		}
		p.b.mangle = nil
		p.pass(time.Minute)
		p.same(c.n)
		if c.again {
			p.done(p.a, 4, nil)
		}
	}
}
