package ike

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/esp"
	"postern/ike/pool"
)

// remotePair is a pair in which a is a client that asks for virtual addresses, and b a gateway
// with pools for them. change may edit all before it is used.
func remotePair(t testing.TB, change func(a, b *Conn, pools *[]Pool)) (*pair, *[]Output) {
	pools := []Pool{
		{Name: "four", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("10.9.0.0/29"))}, DNS: addrs("10.2.0.53"), NBNS: addrs("10.2.0.54"),
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}, Domains: []string{"corp.test"},
			TrustAnchors: []TrustAnchor{{"corp.test", 20326, 8, 2, "e06d"}},
			EncDNS:       []EncryptedDNS{{ADN: "dns.corp.test", Addrs: addrs("10.2.0.55"), ALPN: []string{"dot"}, Digests: []DNSDigest{{2, make([]byte, 32)}}}}},
		{Name: "six", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("fd00:9::/64"))}, DNS: addrs("10.2.0.53", "fd00:2::53")},
	}
	dynamic := TS{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}
	p := newPair(t, func(a, b *Conn) {
		a.VIPs, b.Pools = addrs("0.0.0.0", "::"), []string{"four", "six"}
		a.Children[0].LocalTS, a.Children[0].RemoteTS = []TS{dynamic}, []TS{sel("10.2.0.0/24"), sel("fd00:2::/64")}
		b.Children[0].LocalTS, b.Children[0].RemoteTS = []TS{sel("10.2.0.0/24"), sel("fd00:2::/64")}, []TS{dynamic}
		if change != nil {
			change(a, b, &pools)
		}
	})
	p.b.m.configurePools(pools, nil)
	seen := new([]Output)
	p.a.outputs = func(o *Output) {
		if o.Kind != OutEvent && o.Kind != OutSend && o.Kind != OutWork {
			*seen = append(*seen, *o)
		}
	}
	return p, seen
}

// leases writes the gateway's leases, those in use with a star.
func (h *host) leases() string {
	var list []string
	h.m.Leases(func(l Lease) bool {
		s := l.ID.String() + "=" + l.Addr.String()
		if l.Online {
			s += "*"
		}
		list = append(list, s)
		return true
	})
	return strings.Join(list, " ")
}

func (h *host) onlySA(t testing.TB) (s SAInfo) {
	t.Helper()
	n := 0
	h.m.List(func(sa *SAInfo) bool { s, n = *sa, n+1; return true })
	if n != 1 {
		t.Fatalf("%v has %d IKE SAs, want 1", h.addr, n)
	}
	return s
}

func hostTS(list ...string) (out []esp.Selector) {
	for _, a := range addrs(list...) {
		out = append(out, esp.SelectorFromPrefix(netip.PrefixFrom(a, a.BitLen())))
	}
	return out
}

func TestVirtualAddressesAreAssigned(t *testing.T) {
	p, seen := remotePair(t, nil)
	p.up()
	if len(*seen) < 3 || (*seen)[0].Kind != OutAssign || (*seen)[1].Kind != OutAddSA {
		t.Fatalf("outputs %+v, want OutAssign before the SAs", *seen)
	}
	as := (*seen)[0].Assigned
	if as.Conn != "link" || !slices.Equal(as.Addrs, addrs("10.9.0.1", "fd00:9::1")) || !slices.Equal(as.DNS, addrs("10.2.0.53", "fd00:2::53")) ||
		!slices.Equal(as.Domains, []string{"corp.test"}) || len(as.TrustAnchors) != 1 || string(as.TrustAnchors[0]) != "\x4f\x66\x08\x02e06d" ||
		len(as.EncDNS) != 1 || as.EncDNS[0].ADN != "dns.corp.test" || len(as.EncDNS[0].Digests) != 1 ||
		!slices.Equal(as.Subnets, []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}) {
		t.Errorf("assigned %+v", as)
	}
	ours, theirs := p.a.onlySA(t), p.b.onlySA(t)
	want := hostTS("10.9.0.1", "fd00:9::1")
	if !slices.Equal(ours.Children[0].LocalTS, want) || !slices.Equal(theirs.Children[0].RemoteTS, want) {
		t.Errorf("selectors %v and %v, want the virtual addresses", ours.Children[0].LocalTS, theirs.Children[0].RemoteTS)
	}
	if !slices.Equal(ours.LocalVIPs, as.Addrs) || !slices.Equal(theirs.RemoteVIPs, as.Addrs) || ours.RemoteVIPs != nil || theirs.LocalVIPs != nil {
		t.Errorf("listed as %v and %v", ours.LocalVIPs, theirs.RemoteVIPs)
	}
	if got := p.b.leases(); got != "a.test=10.9.0.1* a.test=fd00:9::1*" {
		t.Errorf("leases %q", got)
	}
	if p.a.count(EvAssigned) != 1 || p.b.count(EvLeased) != 1 {
		t.Error("no event tells of the addresses")
	}
	*seen = nil
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	if n := len(*seen); n == 0 || (*seen)[n-1].Kind != OutUnassign || (*seen)[n-1].Name != "link" {
		t.Errorf("outputs %+v, want OutUnassign behind all else", *seen)
	}
	if got := p.b.leases(); got != "a.test=10.9.0.1 a.test=fd00:9::1" {
		t.Errorf("leases %q after the end, want them remembered", got)
	}
}

// Rekeying, by whom ever, changes nothing about the addresses, and they go back once.
func TestVirtualAddressesOutliveRekeying(t *testing.T) {
	p, seen := remotePair(t, nil)
	p.up()
	*seen = nil
	for i, h := range []*host{p.a, p.b, p.b, p.a} {
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link"})
		p.run()
		p.done(h, uint64(10+i), nil)
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), Conn: "link", Child: "net"})
		p.run()
		p.done(h, uint64(20+i), nil)
	}
	// Both at once.
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 30, Conn: "link"})
	p.b.m.Command(p.now, Command{Kind: CmdRekey, Tag: 31, Conn: "link"})
	p.run()
	p.pass(3 * rekeyedMax)
	ours := p.a.onlySA(t)
	if !slices.Equal(ours.LocalVIPs, addrs("10.9.0.1", "fd00:9::1")) || !slices.Equal(ours.Children[0].LocalTS, hostTS("10.9.0.1", "fd00:9::1")) {
		t.Errorf("after rekeying we have %v, selectors %v", ours.LocalVIPs, ours.Children[0].LocalTS)
	}
	if got := p.b.leases(); got != "a.test=10.9.0.1* a.test=fd00:9::1*" {
		t.Errorf("leases %q", got)
	}
	for _, o := range *seen {
		if o.Kind == OutAssign || o.Kind == OutUnassign {
			t.Errorf("rekeying makes %+v", o)
		}
	}
	p.b.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
	p.run()
	if got := p.b.leases(); got != "a.test=10.9.0.1 a.test=fd00:9::1" {
		t.Errorf("leases %q after the end", got)
	}
	if g := p.b.m.pools[0].live; g.Online() != 0 {
		t.Errorf("%d addresses are still in use", g.Online())
	}
}

func TestReauthenticationKeepsTheAddress(t *testing.T) {
	for name, unique := range map[string]UniquePolicy{"no": UniqueNo, "never": UniqueNever, "replace": UniqueReplace} {
		t.Run(name, func(t *testing.T) {
			p, seen := remotePair(t, func(a, b *Conn, _ *[]Pool) { a.Unique, b.Unique = unique, unique })
			p.up()
			*seen = nil
			p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2, Conn: "link"})
			p.run()
			p.pass(time.Minute)
			p.done(p.a, 2, nil)
			if p.a.count(EvIKEUp) != 2 {
				t.Fatalf("%d IKE SAs came up, want the first and the one after", p.a.count(EvIKEUp))
			}
			if got := p.b.leases(); got != "a.test=10.9.0.1* a.test=fd00:9::1*" {
				t.Errorf("leases %q", got)
			}
			for _, o := range *seen {
				if o.Kind == OutAssign || o.Kind == OutUnassign {
					t.Errorf("reauthentication to the same addresses makes %+v", o)
				}
			}
			p.same(1)
		})
	}
}

// The pool has changed when the client authenticates anew: it takes what it gets.
func TestReauthenticationToAnotherAddress(t *testing.T) {
	p, seen := remotePair(t, nil)
	p.up()
	*seen = nil
	p.b.m.configurePools([]Pool{{Name: "four", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("10.8.0.0/29"))}},
		{Name: "six", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("fd00:9::/64"))}}}, nil)
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2, Conn: "link"})
	p.run()
	p.pass(time.Minute)
	p.done(p.a, 2, nil)
	var got []Output
	for _, o := range *seen {
		if o.Kind == OutAssign || o.Kind == OutUnassign {
			got = append(got, o)
		}
	}
	if len(got) != 1 || got[0].Kind != OutAssign || !slices.Equal(got[0].Assigned.Addrs, addrs("10.8.0.1", "fd00:9::1")) {
		t.Fatalf("outputs %+v, want one OutAssign with the new address", got)
	}
	if ts := p.a.onlySA(t).Children[0].LocalTS; !slices.Equal(ts, hostTS("10.8.0.1", "fd00:9::1")) {
		t.Errorf("the CHILD SA is for %v", ts)
	}
	if got := p.b.leases(); got != "a.test=10.8.0.1* a.test=fd00:9::1*" {
		t.Errorf("leases %q, want the former address gone from the pool", got)
	}
	if n := len(p.a.events); !strings.Contains(p.a.events[n-1].Text+textOf(p.a, EvAssigned), "and not 10.9.0.1") {
		t.Errorf("the event does not tell that another address was asked for: %q", textOf(p.a, EvAssigned))
	}
}

// textOf returns the text of the last event of a kind.
func textOf(h *host, k EventKind) (s string) {
	for _, e := range h.events {
		if e.Kind == k {
			s = e.Text
		}
	}
	return s
}

func TestFullPoolRefusesTheChildAlone(t *testing.T) {
	p, _ := remotePair(t, func(a, b *Conn, pools *[]Pool) {
		b.Pools = []string{"one"}
		*pools = []Pool{{Name: "one", Ranges: []AddrRange{{First: addrs("10.9.0.1")[0], Last: addrs("10.9.0.1")[0]}}}}
		a.Children[0].StartAction = StartNone
	})
	other := ID{IDFQDN, "other.test"}.owner()
	p.b.m.pools[0].live.Assign(other, netip.Addr{}, func(netip.Addr) bool { return false })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	if p.b.count(EvIKEUp) != 1 || p.b.count(EvRefused) != 1 || p.b.count(EvChildUp) != 0 {
		t.Errorf("the gateway's events %+v, want an IKE SA without a CHILD SA (RFC 7296 section 3.15.4)", p.b.events)
	}
	if p.b.refused()[ErrPoolFull] != 1 {
		t.Errorf("refused %v, want the full pool named", p.b.refused())
	}
	fails := func() (n int, last Event) {
		for _, e := range p.a.events {
			if e.Kind == EvFailed {
				n, last = n+1, e
			}
		}
		return n, last
	}
	n, e := fails()
	if n != 1 || !isNotify(e.Err, NotifyInternalAddressFailure) || e.Delay < addressRetry {
		t.Fatalf("%d failures, the last %+v; want one, and the next attempt in no less than a minute", n, e)
	}
	if len(p.a.m.assigned) != 0 || p.b.count(EvIKEDown) != 1 {
		t.Error("the IKE SA without use stays")
	}
	p.pass(addressRetry - time.Second)
	if n, _ := fails(); n != 1 {
		t.Errorf("%d failures within a minute", n)
	}
	p.b.m.pools[0].live.Release(other, addrs("10.9.0.1")[0])
	p.pass(time.Minute)
	if got := p.b.leases(); got != "a.test=10.9.0.1*" {
		t.Errorf("leases %q", got)
	}
}

func TestClientThatAsksForNothingGetsNoChild(t *testing.T) {
	p, _ := remotePair(t, func(a, b *Conn, _ *[]Pool) { a.VIPs = nil })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	if len(p.b.sas) != 0 || p.b.refused()[ErrNoCP] != 1 {
		t.Errorf("refused %v, %d SAs; want FAILED_CP_REQUIRED", p.b.refused(), len(p.b.sas))
	}
	for _, e := range p.a.events {
		if e.Kind == EvFailed && !strings.Contains(e.Err.Error(), "add vips") {
			t.Errorf("the client is not told what to do: %v", e.Err)
		}
	}
	if p.a.onlySA(t).State != StateEstablished {
		t.Error("the IKE SA is gone (RFC 7296 section 2.19: FAILED_CP_REQUIRED is not fatal to it)")
	}
}

func TestGatewayWithoutPoolsIsNoGateway(t *testing.T) {
	p, seen := remotePair(t, func(a, b *Conn, _ *[]Pool) { b.Pools = nil; b.Children[0].RemoteTS = []TS{sel("0.0.0.0/0")} })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	failed := false
	for _, e := range p.a.events {
		failed = failed || e.Kind == EvFailed && e.Err == ErrNoVIP
	}
	if !failed || len(*seen) != 0 || len(p.b.m.sas) > 0 && p.b.m.sas[0].state != StateFree {
		t.Errorf("events %+v, want ErrNoVIP, no SA and the gateway told", p.a.events)
	}
}

// What the gateway selects for us beyond the address that it assigns is not taken.
func TestSelectorsBeyondTheAddressAreCut(t *testing.T) {
	p, _ := remotePair(t, func(a, b *Conn, _ *[]Pool) { b.Children[0].RemoteTS = []TS{sel("0.0.0.0/0")} })
	p.up0()
	if ts := p.a.onlySA(t).Children[0].LocalTS; !slices.Equal(ts, hostTS("10.9.0.1")) {
		t.Errorf("the CHILD SA is for %v, want the assigned address", ts)
	}
	p, _ = remotePair(t, func(a, b *Conn, _ *[]Pool) { b.Children[0].RemoteTS = []TS{sel("10.8.0.0/24")} })
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, ErrNotAssigned)
}

// up0 initiates without comparing the two sides.
func (p *pair) up0() {
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, nil)
}

// A gateway that assigns what no host can have assigns nothing.
func TestAddressesThatNoHostCanHave(t *testing.T) {
	for _, bad := range []string{"224.0.0.5", "127.0.0.1", "0.0.0.0", "255.255.255.255"} {
		p, seen := remotePair(t, func(a, b *Conn, pools *[]Pool) {
			a.VIPs, b.Pools = addrs("0.0.0.0"), []string{"bad"}
			*pools = []Pool{{Name: "bad", Ranges: []AddrRange{{First: addrs(bad)[0], Last: addrs(bad)[0]}}}}
		})
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if len(*seen) != 0 {
			t.Errorf("%s: outputs %+v, want none", bad, *seen)
		}
	}
}

func TestStaticLeaseAndWantedAddress(t *testing.T) {
	p, _ := remotePair(t, func(a, b *Conn, pools *[]Pool) {
		a.VIPs = addrs("10.9.0.4", "fd00:9::77")
		(*pools)[0].Leases = []StaticLease{{ID{IDFQDN, "a.test"}, addrs("10.7.7.7")[0]}}
	})
	p.up()
	if got := p.b.leases(); got != "a.test=10.7.7.7* a.test=fd00:9::77*" {
		t.Errorf("leases %q, want the static one and the one asked for", got)
	}
	if text := textOf(p.a, EvAssigned); text != "10.7.7.7, fd00:9::77, and not 10.9.0.4" {
		t.Errorf("the event says %q", text)
	}
}

// The leases of an earlier life are those that the machine has told.
func TestLeasesSurviveARestart(t *testing.T) {
	p, _ := remotePair(t, nil)
	p.up()
	var kept []Lease
	p.b.m.Leases(func(l Lease) bool { kept = append(kept, l); return true })
	q, _ := remotePair(t, nil)
	q.b.m.pools = nil
	q.b.m.configurePools([]Pool{{Name: "four", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("10.9.0.0/29"))}},
		{Name: "six", Ranges: []AddrRange{pool.Prefix(netip.MustParsePrefix("fd00:9::/64"))}}}, kept)
	for _, name := range []string{"x.test", "y.test"} {
		if a, _ := q.b.m.pools[0].live.Assign(ID{IDFQDN, name}.owner(), netip.Addr{}, nil); a == addrs("10.9.0.1")[0] {
			t.Errorf("%s gets the address that a had before the restart", name)
		}
	}
	q.up()
	if got := q.b.leases(); got != "a.test=10.9.0.1* x.test=10.9.0.2* y.test=10.9.0.3* a.test=fd00:9::1*" {
		t.Errorf("leases %q", got)
	}
}

// A client that says INITIAL_CONTACT has lost what it had; with it the address is not taken
// twice. Without that word, and from elsewhere, the same identity is another device.
func TestOneIdentityWithSeveralDevices(t *testing.T) {
	for _, c := range []struct {
		name          string
		unique        UniquePolicy
		alone, moved  bool
		want, leases  string
		sameAsOffered bool
	}{
		{"another device", UniqueNever, false, true, "10.9.0.1", "a.test=10.9.0.1* a.test=10.9.0.2* a.test=fd00:9::1*", false},
		{"the same place, another wish", UniqueNever, false, false, "", "a.test=10.9.0.1* a.test=10.9.0.2* a.test=fd00:9::1*", false},
		{"authenticates anew", UniqueNever, false, false, "10.9.0.1", "a.test=10.9.0.1* a.test=fd00:9::1*", true},
		{"initial contact", UniqueNo, true, true, "", "a.test=10.9.0.1* a.test=fd00:9::1*", true},
		{"replace", UniqueReplace, false, true, "", "a.test=10.9.0.1* a.test=fd00:9::1*", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := remotePair(t, func(a, b *Conn, _ *[]Pool) { b.Unique = c.unique })
			p.up()
			old := &p.b.m.sas[0]
			sa := p.b.m.newSA(false, false)
			sa.conn, sa.peerID, sa.path = old.conn, old.peerID, old.path
			if c.moved {
				sa.path.Remote = netip.MustParseAddrPort("192.0.2.77:500")
			}
			var want netip.Addr
			if c.want != "" {
				want = addrs(c.want)[0]
			}
			var g grant
			x, ok := p.b.m.lend(sa, want, true, c.alone, &g)
			if !ok || (x.addr == addrs("10.9.0.1")[0]) != c.sameAsOffered || p.b.leases() != c.leases {
				t.Errorf("it gets %v (%v), leases %q; want %q", x.addr, ok, p.b.leases(), c.leases)
			}
		})
	}
}

// Malformed and strange Configuration payloads of an authenticated peer: an error, or nothing.
func TestHostileConfigurationPayloads(t *testing.T) {
	many := make([]Attr, 500)
	for i := range many {
		many[i] = Attr{AttrIP4Address, nil}
	}
	for _, c := range []struct {
		name string
		body []byte
		want int // leases
	}{
		{"an attribute that is cut", []byte{1, 0, 0, 0, 0, 1, 0, 4, 1}, 0},
		{"a length that cannot be", []byte{1, 0, 0, 0, 0, 1, 0, 3, 1, 2, 3}, 0},
		{"a reply in place of a request", cpBody(CFGReply, Attr{AttrIP4Address, nil}), 0},
		{"five hundred addresses", cpBody(CFGRequest, many...), maxVIPs},
		{"the address of another family", cpBody(CFGRequest, Attr{AttrIP6Address, make([]byte, 17)}), 1},
		{"nothing", cpBody(CFGRequest), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := remotePair(t, nil)
			sa := p.b.m.newSA(false, false)
			sa.conn, sa.peerID = p.b.m.conns[0].conn, ID{IDFQDN, "a.test"}
			b := NewBuilder(nil, Header{Exchange: ExchangeAuth})
			b.Raw(PayloadCP, false, c.body)
			if err := p.b.m.msg.Parse(b.Finish()); err != nil {
				t.Fatal(err)
			}
			_, no := p.b.m.grantAddresses(sa, false)
			if n := len(sa.remoteVIPs()); n != c.want || (no == nil) != (n > 0) {
				t.Errorf("%d addresses, refusal %+v; want %d", n, no, c.want)
			}
			p.b.m.destroy(sa, ErrTerminated)
			if p.b.m.pools[0].live.Online()+p.b.m.pools[1].live.Online() != 0 {
				t.Error("not every address has come back")
			}
		})
	}
}

// CFG_SET is answered, and nothing is taken from it; so are requests outside of IKE_AUTH.
func TestConfigurationInInformational(t *testing.T) {
	p, _ := remotePair(t, nil)
	p.up()
	for _, c := range []struct {
		name      string
		asks      []byte
		wantType  CFGType
		wantAttrs int
	}{
		{"CFG_SET", cpBody(CFGSet, Attr{AttrIP4DNS, []byte{6, 6, 6, 6}}), CFGAck, 0},
		{"what is supported", cpBody(CFGRequest, Attr{AttrSupported, nil}), CFGReply, 1},
		{"an address", cpBody(CFGRequest, Attr{AttrIP4Address, nil}), CFGReply, 0},
		{"nonsense", []byte{1, 0, 0}, 0, 0},
	} {
		b := NewBuilder(nil, Header{Exchange: ExchangeInformational})
		b.Raw(PayloadCP, false, c.asks)
		if err := p.b.m.msg.Parse(b.Finish()); err != nil {
			t.Fatal(err)
		}
		r := NewBuilder(nil, Header{Exchange: ExchangeInformational, Flags: FlagResponse})
		p.b.m.infoCP(r)
		var m Message
		if err := m.Parse(r.Finish()); err != nil {
			t.Fatal(err)
		}
		pl := m.Find(PayloadCP)
		if pl == nil {
			if c.wantType != 0 {
				t.Errorf("%s: no answer", c.name)
			}
			continue
		}
		cp, n := readCP(t, pl.Body), 0
		cp.Each(func(Attr) bool { n++; return true })
		if cp.Type != c.wantType || n != c.wantAttrs {
			t.Errorf("%s: answered by type %d with %d attributes, want %d with %d", c.name, cp.Type, n, c.wantType, c.wantAttrs)
		}
	}
}

// A lost peer is called again, and the addresses stay in place meanwhile.
func TestAddressesStayWhileTheTunnelIsRestarted(t *testing.T) {
	p, seen := remotePair(t, func(a, b *Conn, _ *[]Pool) {
		a.DPDDelay = 10 * time.Second
		a.Children[0].StartAction, a.Children[0].DPDAction = StartStart, ActionRestart
	})
	p.pass(2 * time.Minute) // the first attempt is over before there are pools
	if p.a.count(EvAssigned) != 1 {
		t.Fatalf("events %+v", p.a.events)
	}
	*seen = nil
	p.a.mangle = func(*Output) bool { return false }
	p.pass(20 * time.Minute)
	if p.a.count(EvIKEDown) == 0 {
		t.Fatal("the dead peer was not noticed")
	}
	p.a.mangle = nil
	p.pass(5 * time.Minute)
	for _, o := range *seen {
		if o.Kind == OutAssign || o.Kind == OutUnassign {
			t.Errorf("the restart makes %+v", o)
		}
	}
	if p.a.onlySA(t).State != StateEstablished || p.b.leases() != "a.test=10.9.0.1* a.test=fd00:9::1*" {
		t.Errorf("leases %q", p.b.leases())
	}
}

// A connection that a reload takes away gives its addresses back; one that it changes keeps them.
func TestReloadAndAddresses(t *testing.T) {
	p, seen := remotePair(t, func(a, _ *Conn, _ *[]Pool) { a.Children[0].StartAction = StartStart })
	p.pass(2 * time.Minute)
	*seen = nil
	c := p.a.m.conns[0].conn.clone()
	c.Encap = !c.Encap
	_ = p.a.m.Configure(p.now, Config{Conns: []*Conn{c}, Secrets: p.a.m.secrets})
	p.run()
	p.pass(time.Minute)
	if slices.ContainsFunc(*seen, func(o Output) bool { return o.Kind == OutAssign || o.Kind == OutUnassign }) || p.b.leases() != "a.test=10.9.0.1* a.test=fd00:9::1*" {
		t.Errorf("a changed connection makes %+v, leases %q; want the same addresses as before", *seen, p.b.leases())
	}
	_ = p.a.m.Configure(p.now, Config{})
	p.run()
	if n := len(*seen); n == 0 || (*seen)[n-1].Kind != OutUnassign {
		t.Errorf("outputs %+v, want OutUnassign", *seen)
	}
}
