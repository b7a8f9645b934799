package ike

import (
	"fmt"
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

// What made fragments small is forgotten with the path, on both sides, and with the keys.
func TestFragmentsGrowAgainOnAnotherPath(t *testing.T) {
	shrunk := func() *pair {
		p := newMobilePair(t, nil)
		for _, h := range []*host{p.a, p.b} {
			h.only().frag.on, h.only().frag.size = true, fragmentLow
		}
		return p
	}
	sizes := func(p *pair) [2]int { return [2]int{p.a.only().fragmentSize(), p.b.only().fragmentSize()} }
	whole := [2]int{fragmentSize, fragmentSize}

	p := shrunk()
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.run()
	if got := sizes(p); got != [2]int{fragmentLow, fragmentLow} {
		t.Errorf("sizes %v although the path is the same, want %d", got, fragmentLow)
	}
	p.move(p.a, "192.0.2.77")
	if got := sizes(p); got != whole {
		t.Errorf("sizes %v after a move to another path, want %d", got, fragmentSize)
	}

	p = shrunk()
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 9, Conn: "link"})
	p.run()
	p.done(p.a, 9, nil)
	if got := sizes(p); got != whole {
		t.Errorf("sizes %v with new keys, want %d", got, fragmentSize)
	}
}
