package ike

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"postern/esp"
)

// host is one end of a loss-free wire without delay, for tests of single exchanges. The
// simulation with loss, reordering and time is in package iketest.
type host struct {
	t               testing.TB
	m               *Machine
	rnd             *rand.Rand
	addr            netip.Addr
	addrs           []netip.Addr // all; nil: unknown
	spis            map[uint32]bool
	sas             map[uint32]*ChildSA // by SPI and direction: inbound as it is, outbound complemented
	events          []Event
	out             []Output
	mangle          func(*Output) bool                      // false drops a datagram
	dns             func(name string) ([]netip.Addr, error) // nil: lookups are counted and not answered
	ttl             time.Duration                           // that it tells
	asked           int
	lastIn, lastOut time.Duration // of all CHILD SAs

	outputs func(*Output) // sees each output, if set

	ran  func(*Result)    // sees the result of each job, if set
	slow func(*Work) bool // true: the job is not done before its time
	held []*Work
}

func (h *host) Random(b []byte) {
	for i := range b {
		b[i] = byte(h.rnd.Uint32())
	}
}

func (h *host) AllocSPI(uint8) (uint32, bool) {
	spi := h.rnd.Uint32() | 1<<31
	h.spis[spi] = true
	return spi, true
}

func (h *host) FreeSPI(spi uint32) {
	if !h.spis[spi] {
		h.t.Errorf("SPI %08x is freed and was not allocated", spi)
	}
	delete(h.spis, spi)
}

func (h *host) Usage(uint32) (in, out esp.Usage, lastIn, lastOut time.Duration) {
	return in, out, h.lastIn, h.lastOut
}

func (h *host) Source(netip.Addr) (netip.Addr, bool) { return h.addr, true }

func (h *host) Addresses() ([]netip.Addr, bool) { return h.addrs, h.addrs != nil }

// drain takes the machine's outputs: jobs run at once, datagrams are kept.
func (h *host) drain(now Time) {
	for {
		o, ok := h.m.Next()
		if !ok {
			return
		}
		if h.outputs != nil {
			h.outputs(&o)
		}
		switch o.Kind {
		case OutWork:
			if h.slow != nil && h.slow(o.Work) {
				h.held = append(h.held, o.Work)
				continue
			}
			r := o.Work.Run()
			if h.ran != nil {
				h.ran(&r)
			}
			h.drain(now)
			h.m.Done(now, r)
		case OutSend:
			o.Data = append([]byte(nil), o.Data...)
			if h.mangle == nil || h.mangle(&o) {
				h.out = append(h.out, o)
			}
		case OutEvent:
			h.events = append(h.events, o.Event)
		case OutResolve:
			h.asked++
			if h.dns != nil {
				h.drain(now)
				addrs, err := h.dns(o.Name)
				h.m.Resolved(now, o.Name, addrs, h.ttl, err)
			}
		case OutAddSA:
			h.sas[key(o.Add.SPI, o.Add.Dir)] = o.Add
		case OutDelSA:
			if h.sas[key(o.SPI, o.Dir)] == nil {
				h.t.Errorf("SA %08x is deleted and was not added", o.SPI)
			}
			delete(h.sas, key(o.SPI, o.Dir))
		}
	}
}

func key(spi uint32, dir esp.Direction) uint32 {
	if dir == esp.Out {
		return ^spi
	}
	return spi
}

// finish does the jobs that were held.
func (h *host) finish(now Time) {
	held := h.held
	h.held = nil
	for _, w := range held {
		r := w.Run()
		h.m.Done(now, r)
		h.drain(now)
	}
}

// pair is two hosts, a and b, and their clock.
type pair struct {
	a, b *host
	now  Time
	nat  map[netip.Addr]netip.Addr // what a host's address becomes on the way out
}

// run carries datagrams until there are none.
func (p *pair) run() {
	for {
		p.a.drain(p.now)
		p.b.drain(p.now)
		if len(p.a.out)+len(p.b.out) == 0 {
			return
		}
		for _, d := range [2][2]*host{{p.a, p.b}, {p.b, p.a}} {
			out := d[0].out
			d[0].out = nil
			for _, o := range out {
				d[1].m.Datagram(p.now, p.arriving(o.Path), o.Data)
				d[1].drain(p.now)
			}
		}
	}
}

// arriving returns the path on which a datagram that left along o comes, through the NAT, if
// there is one.
func (p *pair) arriving(o Path) Path {
	in := Path{Local: o.Remote, Remote: o.Local, NATT: o.NATT}
	if a, ok := p.nat[in.Remote.Addr()]; ok {
		in.Remote = netip.AddrPortFrom(a, in.Remote.Port())
	}
	for inside, outside := range p.nat {
		if in.Local.Addr() == outside {
			in.Local = netip.AddrPortFrom(inside, in.Local.Port())
		}
	}
	return in
}

// pass lets time go by, waking the machines when they want it.
func (p *pair) pass(d time.Duration) {
	end := p.now.Mono + d
	for {
		next := end
		for _, h := range []*host{p.a, p.b} {
			if at, ok := h.m.Deadline(); ok && at < next {
				next = at
			}
		}
		p.now.Mono = max(next, p.now.Mono)
		p.a.m.Timeout(p.now)
		p.b.m.Timeout(p.now)
		p.run()
		if p.now.Mono >= end {
			return
		}
	}
}

func (h *host) count(k EventKind) (n int) {
	for _, e := range h.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func sel(s string) TS { return TS{Selector: esp.SelectorFromPrefix(netip.MustParsePrefix(s))} }

func mustProposals(t testing.TB, proto Protocol, s string) []Proposal {
	p, err := ParseProposal(proto, s, AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newPair makes two hosts with one connection between them, tunnels of which a starts.
// change may edit the connections before they are used.
func newPair(t testing.TB, change func(a, b *Conn)) *pair {
	mk := func(seed uint64, addr string) *host {
		h := &host{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), addr: netip.MustParseAddr(addr),
			spis: map[uint32]bool{}, sas: map[uint32]*ChildSA{}}
		h.m = New(h, Limits{IKESAs: 16, HalfOpen: 8, Cookies: 6, ChildSAs: 16})
		return h
	}
	p := &pair{a: mk(1, "192.0.2.1"), b: mk(2, "192.0.2.2"), now: Time{Mono: time.Second}}
	conn := func(me, peer *host, id, peerID string, l, r string) *Conn {
		return &Conn{
			Name: "link", LocalAddrs: []netip.Addr{me.addr}, RemoteAddrs: []netip.Prefix{netip.PrefixFrom(peer.addr, 32)},
			LocalID: ID{IDFQDN, id}, RemoteID: ID{IDFQDN, peerID},
			Proposals: mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519"),
			Children: []*Child{{Name: "net", LocalTS: []TS{sel(l)}, RemoteTS: []TS{sel(r)},
				Proposals: mustProposals(t, ProtoESP, "aes128gcm16-x25519"), ReplayWindow: 64}},
		}
	}
	ca := conn(p.a, p.b, "a.test", "b.test", "10.1.0.0/24", "10.2.0.0/24")
	cb := conn(p.b, p.a, "b.test", "a.test", "10.2.0.0/24", "10.1.0.0/24")
	if change != nil {
		change(ca, cb)
	}
	secret := []Secret{{IDs: []ID{{IDFQDN, "a.test"}, {IDFQDN, "b.test"}}, Key: []byte("a secret of the two")}}
	if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{cb}, Secrets: secret}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.m.Configure(p.now, Config{Conns: []*Conn{ca}, Secrets: secret}); err != nil {
		t.Fatal(err)
	}
	p.run()
	return p
}

// up initiates from a and checks that all went well.
func (p *pair) up() {
	p.a.t.Helper()
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
	p.same(1)
}

// done checks that the command with the tag ended with err.
func (p *pair) done(h *host, tag uint64, want error) {
	h.t.Helper()
	for _, e := range h.events {
		if e.Kind == EvDone && e.Tag == tag {
			if e.Err != want && (want == nil || e.Err == nil || e.Err.Error() != want.Error()) {
				h.t.Fatalf("command %d ended with %v, want %v", tag, e.Err, want)
			}
			return
		}
	}
	h.t.Fatalf("command %d has not ended", tag)
}

// same checks that both sides have n CHILD SAs, with the same keys.
func (p *pair) same(n int) {
	t := p.a.t
	t.Helper()
	for _, h := range []*host{p.a, p.b} {
		if len(h.sas) != 2*n {
			t.Fatalf("%v has %d simplex SAs, want %d", h.addr, len(h.sas), 2*n)
		}
		if len(h.spis) != n {
			t.Fatalf("%v holds %d SPIs, want %d", h.addr, len(h.spis), n)
		}
	}
	for _, d := range [2][2]*host{{p.a, p.b}, {p.b, p.a}} {
		for _, s := range d[0].sas {
			if s.Dir != esp.In {
				continue
			}
			o := d[1].sas[key(s.SPI, esp.Out)]
			if o == nil || string(o.EncrKey) != string(s.EncrKey) || string(o.IntegKey) != string(s.IntegKey) || o.Suite != s.Suite {
				t.Fatalf("inbound SA %08x has no outbound SA with the same keys at the peer", s.SPI)
			}
		}
	}
}

func TestTunnelComesUpWithTheSameKeysOnBothSides(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	if p.b.count(EvChildUp) != 1 || p.b.count(EvIKEUp) != 1 {
		t.Fatalf("responder's events: %+v", p.b.events)
	}
}

func TestEverySuiteNegotiates(t *testing.T) {
	for _, c := range [][2]string{
		{"aes128gcm16-prfsha256-x25519", "aes128gcm16"},
		{"aes192gcm16-prfsha384-ecp256", "aes192gcm16-ecp256-esn"},
		{"aes256gcm16-prfsha512-ecp384", "aes256gcm16-ecp384"},
		{"chacha20poly1305-prfsha256-ecp521", "chacha20poly1305-ecp521"},
		{"aes128-sha256-modp2048", "aes128-sha256-modp2048"},
		{"aes256-sha384-modp3072", "aes256-sha384"},
		{"aes256-sha512-x25519", "aes256-sha512-x25519-esn"},
		{"aes128-sha1-x25519", "aes128-sha1"},
		{"aes128ccm16-prfsha256-x25519", "aes128ccm16"},
		{"aes192ccm12-prfaesxcbc-x25519", "aes192ccm12-x25519-esn"},
		{"aes256ccm8-prfaescmac-x25519", "aes256ccm8"},
		{"aes128gcm8-prfsha256-x25519", "aes128gcm8-esn"},
		{"aes256gcm12-prfsha256-x25519", "aes256gcm12"},
		{"aes128ctr-sha256-x25519", "aes128ctr-sha256"},
		{"aes256ctr-aesxcbc-x25519", "aes256ctr-aescmac-esn"},
		{"aes128-aesxcbc-x25519", "aes128-aesxcbc"},
		{"aes128-aescmac-x25519", "null-sha256"},
		{"aes128-aescmac-prfaesxcbc-x25519", "null-aesxcbc-esn"},
		{"aes128gcm16-prfsha256-x25519", "aes128gmac"},
		{"aes128gcm16-prfsha256-x25519", "aes256gmac-esn"},
		{"aes128gcm16-prfsha256-x25519", "aes128gcm16iiv-esn"},
		{"aes128gcm16-prfsha256-x25519", "aes128ccm8iiv"},
		{"aes128gcm16-prfsha256-x25519", "chacha20poly1305iiv"},
	} {
		t.Run(c[0]+"_"+c[1], func(t *testing.T) {
			p := newPair(t, func(a, b *Conn) {
				for _, x := range []*Conn{a, b} {
					x.Proposals = mustProposals(t, ProtoIKE, c[0])
					x.Children[0].Proposals = mustProposals(t, ProtoESP, c[1])
				}
			})
			p.up()
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
			p.run()
			p.done(p.a, 2, nil)
			p.pass(2 * linger)
			p.same(1)
		})
	}
}

func TestRekeyOfTheChildLeavesOne(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for i, h := range []*host{p.a, p.b, p.a} {
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link", Child: "net"})
		p.run()
		p.done(h, uint64(10+i), nil)
		p.pass(2 * linger)
		p.same(1)
	}
}

func TestRekeyOfTheIKESAKeepsTheChild(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for i, h := range []*host{p.a, p.b, p.a} {
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), Conn: "link"})
		p.run()
		p.done(h, uint64(20+i), nil)
		for _, x := range []*host{p.a, p.b} {
			n := 0
			x.m.List(func(s *SAInfo) bool {
				n++
				if s.State != StateEstablished || len(s.Children) != 1 {
					t.Errorf("%v after rekey %d: IKE SA %v with %d children", x.addr, i, s.State, len(s.Children))
				}
				return true
			})
			if n != 1 {
				t.Fatalf("%v after rekey %d: %d IKE SAs, want 1", x.addr, i, n)
			}
		}
		p.same(1)
	}
}

func TestBothRekeyTheChildAtOnce(t *testing.T) {
	p := newPair(t, nil)
	for i := range 8 {
		if i == 0 {
			p.up()
		}
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(30 + i), Conn: "link", Child: "net"})
		p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(30 + i), Conn: "link", Child: "net"})
		p.run()
		p.done(p.a, uint64(30+i), nil)
		p.done(p.b, uint64(30+i), nil)
		p.pass(2 * linger)
		p.same(1)
	}
}

func TestBothRekeyTheIKESAAtOnce(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for i := range 8 {
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(40 + i), Conn: "link"})
		p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(40 + i), Conn: "link"})
		p.run()
		p.done(p.a, uint64(40+i), nil)
		p.pass(10 * time.Second)
		p.same(1)
		for _, x := range []*host{p.a, p.b} {
			n := 0
			x.m.List(func(*SAInfo) bool { n++; return true })
			if n != 1 {
				t.Fatalf("%v: %d IKE SAs after both rekeyed, want 1", x.addr, n)
			}
		}
	}
}

// The peer has rekeyed the IKE SA while our own rekeying of it gets no answer, and its DELETE
// of the old one is lost: the new one lives on when the old one is given up.
func TestSuccessorOutlivesTheUnansweredRekeyingOfTheOldIKESA(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return h.Response()
	}
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.a.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return h.Exchange != ExchangeInformational
	}
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	p.pass(4 * time.Minute)
	p.same(1)
	n, kids := 0, 0
	p.b.m.List(func(s *SAInfo) bool { n++; kids += len(s.Children); return true })
	if n != 1 || kids != 1 || p.b.count(EvIKERekeyed) != 1 || p.b.count(EvIKEDown) != 0 {
		t.Errorf("%d IKE SAs with %d children are left; told: %d rekeyed, %d down", n, kids, p.b.count(EvIKERekeyed), p.b.count(EvIKEDown))
	}
}

// The peer, for which the rekeying of the IKE SA is over, closes a CHILD SA under the new one,
// while we still wait for the answer to our own rekeying of the old one.
func TestChildIsDeletedUnderTheSuccessorOfItsIKESA(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	old := p.a.m.sas[0].spiI
	p.a.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return h.Response()
	}
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		return h.Exchange != ExchangeInformational || h.SPIi != old
	}
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.b, 2, nil)
	p.b.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link", Child: "net"})
	p.run()
	p.done(p.b, 3, nil)
	p.same(0)
}

func TestBothConnectAtOnceAndOneStays(t *testing.T) {
	p := newPair(t, nil)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.b.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.run()
	p.done(p.a, 1, nil)
	p.done(p.b, 1, nil)
	p.pass(time.Minute)
	p.same(1)
}

func TestTerminateTakesEverythingDown(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	p.same(0)
	if d := p.b.count(EvIKEDown); d != 1 {
		t.Fatalf("the peer has %d EvIKEDown, want 1", d)
	}
}

func TestWrongSecretEndsInAuthenticationFailed(t *testing.T) {
	p := newPair(t, nil)
	p.a.m.secrets = []Secret{{Key: []byte("another secret")}}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1})
	p.run()
	p.same(0)
	for _, e := range p.a.events {
		if e.Kind == EvDone && isNotify(e.Err, NotifyAuthenticationFailed) {
			return
		}
	}
	t.Fatalf("the command did not end with AUTHENTICATION_FAILED: %+v", p.a.events)
}

func TestInvalidKEIsFollowed(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		a.Proposals = mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-ecp256-x25519-modp2048")
		b.Proposals = mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-modp2048")
		a.Children[0].Proposals = mustProposals(t, ProtoESP, "aes128gcm16-x25519-ecp384")
		b.Children[0].Proposals = mustProposals(t, ProtoESP, "aes128gcm16-ecp384")
	})
	p.up()
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
	p.run()
	p.pass(2 * linger)
	p.same(1)
	p.a.m.List(func(s *SAInfo) bool {
		if s.Suite.DH != MODP2048 || s.Children[0].DH != ECP384 {
			t.Errorf("groups %v and %v, want MODP_2048 and ECP_384", s.Suite.DH, s.Children[0].DH)
		}
		return true
	})
}

// A peer that insists on PFS gets it with the group of the IKE SA from one whose configuration says
// nothing of PFS, whoever rekeys, and with no other group.
func TestPeerThatInsistsOnPFSGetsTheGroupOfTheIKESA(t *testing.T) {
	for group, granted := range map[string]bool{"x25519": true, "ecp384": false} {
		for _, insists := range []string{"a", "b"} {
			p := newPair(t, func(a, b *Conn) {
				strict, other := a, b
				if insists == "b" {
					strict, other = b, a
				}
				strict.Children[0].Proposals = mustProposals(t, ProtoESP, "aes128gcm16-"+group)
				other.Children[0].Proposals = mustProposals(t, ProtoESP, "aes128gcm16")
			})
			p.up()
			for tag := uint64(2); tag < 5; tag++ { // twice in one IKE SA, once in its successor
				p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: tag, Conn: "link", Child: "net"})
				p.run()
				p.pass(2 * linger)
				if tag == 3 {
					p.renew(p.a, 10, "")
					p.pass(2 * linger)
				}
				want := error(nil)
				if !granted {
					want = &NotifyError{Type: NotifyNoProposalChosen}
				}
				p.done(p.a, tag, want)
				p.same(1)
				p.a.m.List(func(s *SAInfo) bool {
					if got := s.Children[0].DH; (got == Curve25519) != granted {
						t.Errorf("%s insists on %s: the rekeyed child has %v", insists, group, got)
					}
					return true
				})
			}
		}
	}
}

func TestCookieIsDemandedAndShown(t *testing.T) {
	p := newPair(t, nil)
	p.b.m.cookieFrom = 0
	p.up()
	if p.b.count(EvCookies) != 1 {
		t.Fatal("the responder did not demand a cookie")
	}
}

func TestPeerThatNeverAnswersIsGivenUpAndTriedAgain(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.Children[0].StartAction, a.Children[0].DPDAction = StartStart, ActionRestart })
	p.a.events = nil
	p.pass(2 * linger)
	p.same(1)
	p.b.mangle = func(*Output) bool { return false }
	p.b.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 9})
	p.a.m.conns[0].conn.DPDDelay = time.Second
	p.a.m.arm(&p.a.m.sas[0], tLiveness, time.Second)
	p.pass(10 * time.Minute)
	if p.a.count(EvIKEDown) != 1 || p.a.count(EvFailed) == 0 || p.a.count(EvRetransmit) == 0 {
		t.Fatalf("want the SA down, retransmissions and failed attempts: %+v", p.a.events)
	}
	p.b.mangle = nil
	p.pass(10 * time.Minute)
	p.same(1)
}

func TestOlderAndNewerVersionsAreAnsweredAsTheRFCSays(t *testing.T) {
	p := newPair(t, nil)
	msg := func(version byte) []byte {
		b := make([]byte, headerLen)
		b[0], b[17], b[18], b[19] = 1, version, 34, FlagInitiator
		binary.BigEndian.PutUint32(b[24:], headerLen)
		return b
	}
	path := Path{Local: netip.MustParseAddrPort("192.0.2.2:500"), Remote: netip.MustParseAddrPort("192.0.2.1:500")}
	p.b.m.Datagram(p.now, path, msg(0x10))
	p.b.drain(p.now)
	if len(p.b.out) != 0 {
		t.Fatal("IKEv1 got an answer: it has no way to understand one")
	}
	p.b.m.Datagram(p.now, path, msg(0x30))
	p.b.drain(p.now)
	if len(p.b.out) != 1 {
		t.Fatal("version 3 got no INVALID_MAJOR_VERSION")
	}
	var m Message
	if err := m.Parse(p.b.out[0].Data); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.FindNotify(NotifyInvalidMajorVersion); !ok || m.Major != 2 {
		t.Fatalf("version 3 was answered by %s", m.summary())
	}
	p.b.out = nil
}
