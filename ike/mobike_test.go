package ike

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// newMobilePair is newPair with MOBIKE, brought up.
func newMobilePair(t testing.TB, change func(a, b *Conn)) *pair {
	t.Helper()
	p := newPair(t, func(a, b *Conn) {
		a.MOBIKE, b.MOBIKE = true, true
		a.LocalAddrs, b.LocalAddrs, b.RemoteAddrs = nil, nil, nil
		if change != nil {
			change(a, b)
		}
	})
	p.up()
	return p
}

// move gives a host another address and tells its machine.
func (p *pair) move(h *host, to string) {
	h.addr = netip.MustParseAddr(to)
	h.addrs = []netip.Addr{h.addr}
	h.m.Command(p.now, Command{Kind: CmdAddresses})
	p.run()
}

// only returns the one IKE SA of a host.
func (h *host) only() *ikeSA {
	h.t.Helper()
	var sa *ikeSA
	for i := range h.m.sas {
		if h.m.sas[i].state != StateFree {
			if sa != nil {
				h.t.Fatalf("%v has more than one IKE SA", h.addr)
			}
			sa = &h.m.sas[i]
		}
	}
	if sa == nil {
		h.t.Fatalf("%v has no IKE SA", h.addr)
	}
	return sa
}

// traced makes a machine tell what it sends and receives.
func (h *host) traced() { h.m.Trace = func() bool { return true } }

// told returns the messages that the machine told of, with their paths' remote ports.
func (h *host) told(verb string) (list []string) {
	for _, e := range h.events {
		if e.Kind == EvTrace && strings.HasPrefix(e.Text, verb) {
			list = append(list, strings.TrimPrefix(e.Text, verb+" "))
		}
	}
	return list
}

// inject has b take an authentic message of a's side of the IKE SA, along the path.
func (p *pair) inject(path Path, response bool, id uint32, fill func(*Builder)) {
	sa := p.a.only()
	msg := p.a.m.sealed(sa, sa.header(ExchangeInformational, id, response), fill)
	p.b.m.Datagram(p.now, path, msg)
	p.b.drain(p.now)
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestMOBIKEIsAgreedOnInIKEAuth(t *testing.T) {
	for _, c := range []struct{ a, b, on bool }{{true, true, true}, {true, false, false}, {false, true, false}} {
		p := newPair(t, func(a, b *Conn) { a.MOBIKE, b.MOBIKE = c.a, c.b })
		p.a.addrs = []netip.Addr{p.a.addr, netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("2001:db8::50"),
			netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fe80::1")}
		p.a.m.conns[0].conn.LocalAddrs = nil
		p.up()
		a, b := p.a.only(), p.b.only()
		if a.mobike.on != c.on || b.mobike.on != c.on {
			t.Errorf("offered %v, supported %v: a has it %v, b %v", c.a, c.b, a.mobike.on, b.mobike.on)
		}
		// 10.1.0.1 is inside of the tunnel, and a link local address is nobody's.
		want := []netip.Addr{netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("2001:db8::50")}
		if c.on && !slices.Equal(b.mobike.peers, want) {
			t.Errorf("b knows the further addresses %v, want %v", b.mobike.peers, want)
		}
		// RFC 4555 section 3.3: port 4500 from IKE_AUTH on, though there is no NAT.
		if port := a.path.Remote.Port(); (port == 4500) != c.a || a.encap() {
			t.Errorf("with MOBIKE %v the IKE SA is on port %d, UDP encapsulation %v", c.a, port, a.encap())
		}
	}
}

// The responder lets no ESP go to a new address before the peer has answered from there.
func TestRespondersESPWaitsForTheCookie(t *testing.T) {
	p := newMobilePair(t, nil)
	var moves []Output
	var before []string
	p.b.outputs = func(o *Output) {
		if o.Kind == OutMoveSA {
			moves = append(moves, *o)
			before = p.b.told("received")
		}
	}
	p.b.traced()
	p.move(p.a, "192.0.2.77")
	if len(moves) != 1 || moves[0].Path.Remote != addrPort("192.0.2.77:4500") || moves[0].Encap {
		t.Fatalf("b moved its ESP %d times: %+v, want once, to 192.0.2.77 without UDP", len(moves), moves)
	}
	if last := before[len(before)-1]; !strings.HasPrefix(last, "INFORMATIONAL response") || !strings.Contains(last, "N(COOKIE2)") {
		t.Errorf("b moved its ESP after %q, want the answer with COOKIE2", last)
	}
	if sent := strings.Join(p.b.told("sending"), "\n"); !strings.Contains(sent, "INFORMATIONAL request 0 [ N(COOKIE2) ]") {
		t.Errorf("b sent\n%s\nwithout asking for an answer from the new address", sent)
	}
	if got := p.b.told("received")[0]; got != "INFORMATIONAL request 2 [ N(UPDATE_SA_ADDRESSES) N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(NO_ADDITIONAL_ADDRESSES) N(COOKIE2) ]" {
		t.Errorf("the update is %q", got)
	}
}

// Until then it goes on along the old path, even for a CHILD SA that is made meanwhile.
func TestUnansweredCookieKeepsESPWhereItIs(t *testing.T) {
	p := newMobilePair(t, nil)
	sa := p.b.only()
	old := sa.path
	there := Path{Local: old.Local, Remote: addrPort("203.0.113.66:4500"), NATT: true}
	p.inject(there, false, 2, func(b *Builder) { b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil) })
	if sa.path != there || sa.espRoute().path != old {
		t.Fatalf("IKE is on %v, ESP on %v; want %v and the old %v until the peer answers from there", sa.path, sa.espRoute().path, there, old)
	}
	if last := p.b.out[len(p.b.out)-1]; last.Path != there {
		t.Errorf("the question went along %v", last.Path)
	}
	// A wrong cookie ends the IKE SA (section 3.7).
	p.inject(there, true, sa.req.id, func(b *Builder) { b.Notify(NotifyCookie2, ProtoNone, nil, bytes.Repeat([]byte{7}, cookie2Len)) })
	if sa.closeErr != ErrCookie2 {
		t.Errorf("after an answer with another COOKIE2 the IKE SA ends by %v, want %v", sa.closeErr, ErrCookie2)
	}
}

func TestOnlyAnAuthenticUpdateMovesTheResponder(t *testing.T) {
	p := newMobilePair(t, nil)
	sa, a := p.b.only(), p.a.only()
	old := sa.path
	there := Path{Local: old.Local, Remote: addrPort("203.0.113.66:4500"), NATT: true}
	forged := a.header(ExchangeInformational, 2, false)
	msg := p.a.m.sealed(a, forged, func(b *Builder) { b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil) })
	msg[len(msg)-1] ^= 1
	p.b.m.Datagram(p.now, there, msg)
	p.b.drain(p.now)
	if sa.path != old || p.b.count(EvDropped) != 1 {
		t.Errorf("a forged update moved the IKE SA to %v", sa.path)
	}
	sa.natPeer = true // where without MOBIKE the address of any message would be taken over
	// An INFORMATIONAL without the notify tests a path and changes nothing (section 3.8);
	// it is answered to where it came from.
	p.inject(there, false, 2, func(b *Builder) {
		p.a.m.natNotifies(b, a, a.path)
		b.Notify(NotifyCookie2, ProtoNone, nil, []byte("12345678"))
	})
	if sa.path != old || len(p.b.out) != 1 || p.b.out[0].Path != there {
		t.Errorf("a liveness check from elsewhere moved the IKE SA to %v, and was answered by %+v", sa.path, p.b.out)
	}
	// The initiator decides; that the responder asks for a move is not foreseen.
	q := newMobilePair(t, nil)
	ia := q.a.only()
	was := ia.path
	resp := q.b.only()
	q.a.m.Datagram(q.now, Path{Local: was.Local, Remote: addrPort("203.0.113.66:4500"), NATT: true},
		q.b.m.sealed(resp, resp.header(ExchangeInformational, 0, false), func(b *Builder) { b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil) }))
	q.a.drain(q.now)
	if ia.path != was {
		t.Errorf("the responder's UPDATE_SA_ADDRESSES moved the initiator to %v", ia.path)
	}
}

func TestReplayedUpdateMovesNothing(t *testing.T) {
	p := newMobilePair(t, nil)
	var update []byte
	p.a.mangle = func(o *Output) bool {
		if update == nil {
			update = append([]byte(nil), o.Data...)
		}
		return true
	}
	p.move(p.a, "192.0.2.77")
	p.move(p.a, "192.0.2.78")
	sa := p.b.only()
	if sa.path.Remote.Addr() != p.a.addr {
		t.Fatalf("b is on %v", sa.path)
	}
	p.b.m.Datagram(p.now, Path{Local: sa.path.Local, Remote: addrPort("192.0.2.77:4500"), NATT: true}, update)
	p.b.drain(p.now)
	if sa.path.Remote.Addr() != p.a.addr {
		t.Errorf("an old update, sent again, moved b back to %v", sa.path)
	}
}

// What is under way when the address changes is repeated from the new one, and the update
// follows it: the window is one (section 3.5).
func TestUpdateWaitsForTheRequestUnderWay(t *testing.T) {
	p := newMobilePair(t, nil)
	p.a.traced()
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 9, Conn: "link", Child: "net"})
	p.run()
	p.a.mangle = nil
	var from []netip.AddrPort
	p.a.mangle = func(o *Output) bool { from = append(from, o.Path.Local); return true }
	p.move(p.a, "192.0.2.77")
	p.done(p.a, 9, nil)
	sent := p.a.told("sending")
	if len(sent) < 2 || !strings.HasPrefix(sent[0], "CREATE_CHILD_SA request 2") || !strings.Contains(strings.Join(sent[1:], "\n"), "UPDATE_SA_ADDRESSES") {
		t.Errorf("a sent %q, want the rekeying and then the update", sent)
	}
	for _, f := range from {
		if f.Addr() != p.a.addr {
			t.Errorf("a message left from %v after the address had changed", f)
		}
	}
	p.pass(2 * linger)
	p.same(1)
	if sa := p.b.only(); sa.path.Remote.Addr() != p.a.addr {
		t.Errorf("b is on %v", sa.path)
	}
}

// The address changes again before the update is answered: the answer counts for nothing.
func TestOvertakenUpdateIsRepeated(t *testing.T) {
	p := newMobilePair(t, nil)
	p.a.traced()
	p.a.mangle = func(*Output) bool { return false }
	p.move(p.a, "192.0.2.77")
	p.a.mangle = nil
	p.move(p.a, "192.0.2.78")
	n := 0
	for _, s := range p.a.told("sending") {
		if strings.Contains(s, "UPDATE_SA_ADDRESSES") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d updates were made, want 2: the hashes in the first one are those of another address", n)
	}
	for _, h := range []*host{p.a, p.b} {
		if sa := h.only(); sa.encap() || sa.natLocal || sa.natPeer {
			t.Errorf("%v believes in a NAT (%v, %v) after an update that was sent from two addresses", h.addr, sa.natLocal, sa.natPeer)
		}
	}
}

// Without NAT traversal a NAT on the way is not accepted (section 3.9).
func TestNATIsRefusedWhereItIsProhibited(t *testing.T) {
	p := newMobilePair(t, nil)
	sa := p.b.only()
	old := sa.path
	there := Path{Local: old.Local, Remote: addrPort("203.0.113.66:4500"), NATT: true}
	p.b.traced()
	p.inject(there, false, 2, func(b *Builder) {
		b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil)
		b.Notify(NotifyNoNATsAllowed, ProtoNone, nil, noNATs(addrPort("192.0.2.1:4500"), old.Local))
	})
	if sa.path != old {
		t.Errorf("the IKE SA moved to %v although a NAT changed the addresses", sa.path)
	}
	if sent := p.b.told("sending"); len(sent) != 1 || !strings.Contains(sent[0], "[ N(UNEXPECTED_NAT_DETECTED) ]") {
		t.Errorf("b answered %q", sent)
	}
	if p.b.out[0].Path != there {
		t.Errorf("the answer went along %v, want where the request came from", p.b.out[0].Path)
	}
}

// The data of NO_NATS_ALLOWED is 12 octets for IPv4 and 36 for IPv6 (section 4.2.6).
func TestNoNATsAllowedFormat(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"192.0.2.1:500", "198.51.100.7:4500", "c0000201" + "c6336407" + "01f4" + "1194"},
		{"[2001:db8::1]:500", "[2001:db8::2]:4500", "20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "01f4" + "1194"},
	} {
		if got := hex.EncodeToString(noNATs(addrPort(c.from), addrPort(c.to))); got != c.want {
			t.Errorf("%s > %s gives %s, want %s", c.from, c.to, got, c.want)
		}
	}
}

// A local address that is not among the configured ones is not moved to, and the initiator
// gets along with the refusal.
func TestUnacceptableAddressIsRefused(t *testing.T) {
	p := newMobilePair(t, func(a, b *Conn) { b.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.2")} })
	sa := p.b.only()
	old := sa.path
	p.b.traced()
	p.inject(Path{Local: addrPort("192.0.2.3:4500"), Remote: old.Remote, NATT: true}, false, 2, func(b *Builder) {
		b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil)
		b.Notify(NotifyCookie2, ProtoNone, nil, []byte("12345678"))
	})
	if sent := p.b.told("sending"); sa.path != old || len(sent) != 1 || !strings.Contains(sent[0], "[ N(UNACCEPTABLE_ADDRESSES) N(COOKIE2) ]") {
		t.Errorf("b is on %v and answered %q", sa.path, sent)
	}
}

func TestPeersAddressesAreBounded(t *testing.T) {
	p := newMobilePair(t, nil)
	p.inject(p.b.only().path, false, 2, func(b *Builder) {
		for i := range byte(40) {
			b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{198, 51, 100, i})
		}
	})
	if n := len(p.b.only().mobike.peers); n != maxPeerAddrs {
		t.Errorf("%d addresses of the peer are kept, want %d at most", n, maxPeerAddrs)
	}
	p.inject(p.b.only().path, false, 3, func(b *Builder) {
		b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{127, 0, 0, 1})
		b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{224, 0, 0, 1})
		b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{1, 2, 3})
		b.Notify(NotifyAdditionalIP6Address, ProtoNone, nil, make([]byte, 16))
		b.Notify(NotifyAdditionalIP6Address, ProtoNone, nil, []byte{192, 0, 2, 9})
		b.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{192, 0, 2, 9})
	})
	if got := p.b.only().mobike.peers; len(got) != 1 || got[0] != netip.MustParseAddr("192.0.2.9") {
		t.Errorf("the addresses are %v, want the one that is one", got)
	}
	p.inject(p.b.only().path, false, 4, func(b *Builder) { b.Notify(NotifyNoAdditionalAddresses, ProtoNone, nil, nil) })
	if got := p.b.only().mobike.peers; len(got) != 0 {
		t.Errorf("after NO_ADDITIONAL_ADDRESSES %v are left", got)
	}
}

// While no address is left nothing is sent and nothing counts as unanswered.
func TestStrandedRequestsDoNotRunOut(t *testing.T) {
	p := newMobilePair(t, func(a, b *Conn) { a.DPDDelay = 10 * time.Second })
	home := p.a.addr
	p.a.addrs = []netip.Addr{netip.MustParseAddr("10.1.0.1")} // that of the LAN
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.run()
	sent := 0
	p.a.mangle = func(*Output) bool { sent++; return true }
	p.pass(20 * time.Minute)
	if sent != 0 || p.a.count(EvStranded) != 1 || p.a.count(EvRetransmit) != 0 {
		t.Errorf("without a path %d messages were sent, %d retransmissions told, and %d times that there is no way",
			sent, p.a.count(EvRetransmit), p.a.count(EvStranded))
	}
	p.move(p.a, home.String())
	if sent == 0 || p.a.count(EvStranded) != 2 {
		t.Errorf("with the path back, %d messages were sent", sent)
	}
	p.same(1)
	// Whoever closes it while there is no way does not wait for one.
	p.a.addrs = []netip.Addr{netip.MustParseAddr("10.1.0.1")}
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 33, Conn: "link"})
	p.run()
	p.done(p.a, 33, nil)
	if len(p.a.sas) != 0 || len(p.a.spis) != 0 {
		t.Errorf("%d SAs and %d SPIs are left", len(p.a.sas), len(p.a.spis))
	}
}

// A CHILD SA for the host's own address is made anew for the one that it has then.
func TestDynamicSelectorsFollowTheAddress(t *testing.T) {
	p := newMobilePair(t, func(a, b *Conn) {
		a.Children[0].LocalTS = []TS{{Dynamic: true, Selector: sel("0.0.0.0/0").Selector}}
		b.Children[0].RemoteTS = []TS{{Dynamic: true, Selector: sel("0.0.0.0/0").Selector}}
	})
	p.move(p.a, "192.0.2.77")
	p.pass(2 * linger)
	p.same(1)
	for _, s := range p.a.sas {
		if len(s.LocalTS) != 1 || s.LocalTS[0].String() != "192.0.2.77/32" {
			t.Errorf("the local selectors are %v, want the new address", s.LocalTS)
		}
	}
}

// The address changes while the IKE SA is being established.
func TestAddressChangesWhileConnecting(t *testing.T) {
	for name, lose := range map[string]int{"before IKE_SA_INIT is answered": 1, "before IKE_AUTH is answered": 2} {
		for _, mobike := range []bool{true, false} {
			p := newPair(t, func(a, b *Conn) {
				a.MOBIKE, b.MOBIKE = mobike, mobike
				a.LocalAddrs, b.RemoteAddrs = nil, nil
			})
			n := 0
			p.a.mangle = func(o *Output) bool { n++; return n != lose }
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			p.move(p.a, "192.0.2.77")
			p.pass(100 * time.Millisecond)
			p.done(p.a, 1, nil)
			p.same(1)
			for _, h := range []*host{p.a, p.b} {
				if sa := h.only(); sa.natLocal || sa.natPeer {
					t.Errorf("%s, MOBIKE %v: %v believes in a NAT", name, mobike, h.addr)
				}
			}
			if sa := p.b.only(); sa.path.Remote.Addr() != p.a.addr {
				t.Errorf("%s, MOBIKE %v: b is on %v", name, mobike, sa.path)
			}
		}
	}
}

// Both sides are behind NATs, and neither has MOBIKE: one packet from elsewhere makes the
// host ask there, and only the answer makes it follow (RFC 7296 section 2.23).
func TestHostBehindANATAsksBeforeItFollows(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	sa := p.b.only()
	sa.natLocal, sa.natPeer = true, true
	sa.path.NATT = true
	old := sa.path
	there := Path{Local: old.Local, Remote: addrPort("203.0.113.66:30000"), NATT: true}
	var spi uint32
	for s := range p.b.spis {
		spi = s
	}
	p.b.m.Command(p.now, Command{Kind: CmdMoved, SPI: spi, Path: there})
	p.b.drain(p.now)
	if sa.path != old || len(p.b.out) != 1 {
		t.Fatalf("b is on %v and sent %d messages, want the old path and a question", sa.path, len(p.b.out))
	}
	p.b.out = nil
	p.now.Mono += retryTimeout
	p.b.m.Timeout(p.now)
	p.b.drain(p.now)
	if len(p.b.out) != 2 || p.b.out[0].Path != old || p.b.out[1].Path != there {
		t.Fatalf("the question went out as %+v, want along both paths", p.b.out)
	}
	p.inject(there, true, sa.req.id, nil)
	if sa.path != there || p.b.count(EvMoved) != 1 {
		t.Errorf("the peer answered from %v, but b is on %v", there.Remote, sa.path)
	}
}

// An address on no interface, of a prefix that routing makes the host's own, works as long
// as it is configured.
func TestConfiguredAddressNeedNotBeOnAnInterface(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.MOBIKE, b.MOBIKE = true, true })
	p.a.addrs = []netip.Addr{netip.MustParseAddr("10.1.0.1")} // LocalAddrs has 192.0.2.1
	p.up()
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 5, Conn: "link"})
	p.run()
	p.done(p.a, 5, nil)
	if n := p.a.count(EvStranded) + p.a.count(EvRoamed); n != 0 {
		t.Errorf("the IKE SA was moved or left without a path %d times", n)
	}
}

// An update that went out along several paths is repeated along the one that works: the
// peer may have taken it from another one.
func TestUpdateOverSeveralPathsIsRepeated(t *testing.T) {
	p := newMobilePair(t, func(a, b *Conn) { a.RetryTimeout = time.Second })
	other := netip.MustParseAddr("198.51.100.50")
	p.a.only().mobike.peers = []netip.Addr{other}
	var last Path
	p.a.traced()
	p.a.mangle = func(o *Output) bool { last = o.Path; return false }
	p.move(p.a, "192.0.2.77")
	p.pass(3 * time.Second)
	if last.Remote.Addr() != other {
		t.Fatalf("after two retransmissions the last message went to %v, want the peer's other address", last.Remote)
	}
	p.a.mangle = nil
	p.pass(5 * time.Second)
	n := 0
	for _, s := range p.a.told("sending") {
		if strings.Contains(s, "UPDATE_SA_ADDRESSES") {
			n++
		}
	}
	if n < 2 || p.b.only().path.Remote.Addr() != p.a.addr || p.b.only().path.Local != p.a.only().path.Remote {
		t.Errorf("%d updates; a is on %v, b on %v", n, p.a.only().path, p.b.only().path)
	}
}
