package platform

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

func sel(p string) esp.Selector { return esp.SelectorFromPrefix(netip.MustParsePrefix(p)) }

func ported(p string, proto uint8, first, last uint16) esp.Selector {
	s := sel(p)
	s.Proto, s.StartPort, s.EndPort = proto, first, last
	return s
}

func policy(a esp.Action, l, r esp.Selector) esp.Policy {
	return esp.Policy{Action: a, LocalTS: []esp.Selector{l}, RemoteTS: []esp.Selector{r}}
}

// testPolicies: a LAN to another, a hole for SSH in front, a wall behind.
func testPolicies() []esp.Policy {
	list := []esp.Policy{
		policy(esp.Bypass, sel("10.1.0.0/24"), ported("10.2.0.0/24", 6, 22, 22)),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Protect, sel("fd01::/64"), sel("fd02::/64")),
		policy(esp.Discard, sel("10.1.0.0/24"), sel("10.3.0.0/24")),
	}
	list[3].Count = true
	return list
}

// gateway is a host with a LAN (10.1.0.1/24, fd01::1/64 on lan), an outer network
// (192.0.2.1/24, 2001:db8::1/64 on wan) whose other end is peer, and default routes there.
type gateway struct {
	t          *testing.T
	ns, peer   *Namespace
	net        *Network
	peer4      netip.Addr
	peer6      netip.Addr
	lan4, lan6 netip.Addr
	wan4, wan6 netip.Addr
}

func newGateway(t *testing.T) *gateway {
	ip := netip.MustParseAddr
	g := &gateway{t: t, ns: newNS(t), peer: newNS(t),
		peer4: ip("192.0.2.2"), peer6: ip("2001:db8::2"), lan4: ip("10.1.0.1"), lan6: ip("fd01::1"),
		wan4: ip("192.0.2.1"), wan6: ip("2001:db8::1")}
	cable(t, g.ns, "wan", g.peer, "p0")
	cable(t, g.ns, "lan", g.peer, "p1")
	addAddr(t, g.peer, "p0", "192.0.2.2/24", "2001:db8::2/64")
	addAddr(t, g.peer, "p1")
	addAddr(t, g.ns, "wan", "192.0.2.1/24", "2001:db8::1/64")
	addAddr(t, g.ns, "lan", "10.1.0.1/24", "fd01::1/64")
	mustNetlink(t, g.ns, func(nl *Netlink) error {
		main := Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC}
		v4, v6 := main, main
		v4.Dst, v4.Gateway = netip.MustParsePrefix("0.0.0.0/0"), g.peer4
		v6.Dst, v6.Gateway = netip.MustParsePrefix("::/0"), g.peer6
		return errors.Join(nl.AddRoute(v4), nl.AddRoute(v6))
	})
	in(t, g.ns, func() error {
		_ = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0)
		return nil
	})
	g.net = g.openNetwork()
	return g
}

func (g *gateway) openNetwork() *Network {
	g.t.Helper()
	var n *Network
	in(g.t, g.ns, func() (err error) { n, err = OpenNetwork(); return err })
	g.t.Cleanup(func() { n.Close() })
	return n
}

func (g *gateway) apply(device string, p ...esp.Policy) {
	g.t.Helper()
	if err := g.net.Apply(device, p); err != nil {
		g.t.Fatal(err)
	}
}

// query is a packet whose way is asked for. The zero source is one not chosen yet; one
// that comes in from the LAN, or by the interface named, is forwarded.
type query struct {
	src, dst string
	forward  bool
	iif      string
	proto    uint8
	sport    uint16
	dport    uint16
	mark     uint32
}

// way asks the kernel: the interface and the source, or why there is none.
func (g *gateway) way(q query) string {
	g.t.Helper()
	out := ""
	mustNetlink(g.t, g.ns, func(nl *Netlink) error {
		dst := netip.MustParseAddr(q.dst)
		srcBits := 0
		if q.src != "" {
			srcBits = dst.BitLen()
		}
		r := newRequest(unix.RTM_GETROUTE, 0).raw(family(dst.Is6()), byte(dst.BitLen()), byte(srcBits), 0, 0, 0, 0, 0).u32(0)
		r.attrAddr(unix.RTA_DST, dst)
		if q.src != "" {
			r.attrAddr(unix.RTA_SRC, netip.MustParseAddr(q.src))
		}
		if q.mark != 0 {
			r.attrU32(unix.RTA_MARK, q.mark)
		}
		if q.proto != 0 {
			r.attrU8(unix.RTA_IP_PROTO, q.proto)
		}
		if q.sport != 0 {
			r.attr(unix.RTA_SPORT, []byte{byte(q.sport >> 8), byte(q.sport)})
		}
		if q.dport != 0 {
			r.attr(unix.RTA_DPORT, []byte{byte(q.dport >> 8), byte(q.dport)})
		}
		if q.forward || q.iif != "" {
			l, err := nl.LinkByName(cmp.Or(q.iif, "lan"))
			if err != nil {
				return err
			}
			r.attrU32(unix.RTA_IIF, uint32(l.Index))
		}
		m, err := nl.get(r, "look up", q.dst)
		switch {
		case errors.Is(err, unix.EHOSTUNREACH):
			out = "unreachable"
			return nil
		case errors.Is(err, unix.EINVAL):
			out = "blackhole"
			return nil
		case err != nil:
			return err
		}
		rt, err := parseRoute(m.body)
		if rt.Type == unix.RTN_UNREACHABLE {
			out = "unreachable"
			return err
		}
		if rt.Type == unix.RTN_BLACKHOLE {
			out = "blackhole"
			return err
		}
		for _, name := range []string{"lo", "wan", "lan", "pt0"} {
			if l, err := nl.LinkByName(name); err == nil && l.Index == rt.Index {
				out = name
			}
		}
		if q.src == "" && rt.PrefSrc.IsValid() {
			out += " from " + rt.PrefSrc.String()
		}
		return err
	})
	return out
}

func (g *gateway) wantWays(when string, ways map[query]string) {
	g.t.Helper()
	for q, want := range ways {
		if got := g.way(q); got != want {
			g.t.Errorf("%s: %+v goes to %q, want %q", when, q, got, want)
		}
	}
}

// state lists every rule and the routes that Apply could have touched.
func (g *gateway) state() string {
	g.t.Helper()
	var b strings.Builder
	mustNetlink(g.t, g.ns, func(nl *Netlink) error {
		for _, v6 := range []bool{false, true} {
			rules, err := nl.Rules(v6)
			if err != nil {
				return err
			}
			for _, r := range rules {
				fmt.Fprintln(&b, r)
			}
			for _, table := range append([]uint32{unix.RT_TABLE_MAIN}, tables()...) {
				routes, err := nl.Routes(v6, table)
				if err != nil {
					return err
				}
				for _, r := range routes {
					if r.Protocol != unix.RTPROT_KERNEL { // comes and goes with addresses
						fmt.Fprintln(&b, r)
					}
				}
			}
		}
		return nil
	})
	return b.String()
}

func tables() []uint32 {
	var list []uint32
	for t := uint32(tableFirst); t <= tableFirst+maxSources; t++ {
		list = append(list, t)
	}
	return list
}

// ways of testPolicies where the tunnel is up; what is protected is "pt0".
func (g *gateway) testWays(protected string) map[query]string {
	own4, own6 := protected, protected
	if protected == "pt0" {
		own4, own6 = "pt0 from 10.1.0.1", "pt0 from fd01::1"
	}
	return map[query]string{
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true}:                          protected,
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 6, dport: 502}:    protected,
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 6, dport: 22}:     "wan",
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 17, dport: 22}:    protected,
		{src: "10.1.0.5", dst: "10.3.0.7", forward: true}:                          protected,
		{src: "10.1.0.5", dst: "203.0.113.9", forward: true}:                       "wan",
		{src: "10.9.0.5", dst: "10.2.0.7", forward: true}:                          "wan",
		{src: "10.1.0.5", dst: "10.1.0.1", forward: true}:                          "lo",
		{src: "10.1.0.1", dst: "10.2.0.7"}:                                         protected,
		{src: "192.0.2.1", dst: "10.2.0.7"}:                                        "wan",
		{dst: "10.2.0.7"}:                                                          own4,
		{dst: "10.2.0.7", proto: 6, dport: 502}:                                    own4,
		{dst: "203.0.113.9"}:                                                       "wan from 192.0.2.1",
		{src: "10.1.0.1", dst: "10.2.0.7", mark: Mark}:                             "wan",
		{src: "10.1.0.1", dst: "10.2.0.7", mark: Mark | 0x3f01}:                    "wan",
		{src: "10.1.0.1", dst: "10.2.0.7", mark: 0x3f01}:                           protected,
		{src: "fd01::5", dst: "fd02::7", forward: true}:                            protected,
		{src: "fd01::5", dst: "fd03::7", forward: true}:                            "wan",
		{src: "fd09::5", dst: "fd02::7", forward: true}:                            "wan",
		{src: "fd01::1", dst: "fd02::7"}:                                           protected,
		{src: "2001:db8::1", dst: "fd02::7"}:                                       "wan",
		{dst: "fd02::7"}:                                                           own6,
		{src: "fd01::1", dst: "fd02::7", mark: Mark}:                               "wan",
		{src: "fd01::1", dst: "fd02::7", proto: 6, dport: 22}:                      protected,
		{src: "2001:db8::1", dst: "2001:db8::2", proto: 17, dport: 500}:            "wan",
		{src: "10.1.0.1", dst: "10.1.0.5"}:                                         "lan",
		{src: "10.1.0.5", dst: "192.0.2.2", forward: true, proto: 17, dport: 4500}: "wan",
		{src: "10.1.0.5", dst: "10.2.1.7", forward: true}:                          "wan",
		{src: "10.1.1.5", dst: "10.2.0.7", forward: true}:                          "wan",
		{src: "192.0.2.1", dst: "10.3.0.7"}:                                        "wan",
		{src: "10.1.0.1", dst: "10.3.0.7"}:                                         protected,
		{src: "fd01::5", dst: "fd02:0:0:1::7", forward: true, proto: 17, dport: 9}: "wan",
		// What arrives in clear and should not.
		{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan"}:                      "blackhole",
		{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan", proto: 6, dport: 22}: "blackhole",
		{src: "10.2.0.7", dst: "10.1.0.5", iif: "wan", proto: 6, sport: 22}: "lan",
		{src: "10.3.0.7", dst: "10.1.0.5", iif: "wan"}:                      protected,
		{src: "10.2.1.7", dst: "10.1.0.5", iif: "wan"}:                      "lan",
		{src: "203.0.113.9", dst: "10.1.0.5", iif: "wan"}:                   "lan",
		{src: "fd02::7", dst: "fd01::5", iif: "wan"}:                        "blackhole",
		{src: "fd03::7", dst: "fd01::5", iif: "wan"}:                        "lan",
		// Nothing keeps it from this host's own addresses.
		{src: "10.2.0.7", dst: "10.1.0.1", iif: "wan"}: "lo",
	}
}

func TestApplyRoutesWhatThePoliciesSayAndNothingElse(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	before := g.state()
	g.apply("pt0", testPolicies()...)
	g.wantWays("with the tunnel", g.testWays("pt0"))
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	if after := g.state(); after != before {
		t.Errorf("after Clear:\n%s\nwant as before Apply:\n%s", after, before)
	}
	if got := g.way(query{src: "10.1.0.1", dst: "10.2.0.7"}); got != "wan" {
		t.Errorf("after Clear a packet goes to %q, want the ordinary route", got)
	}
}

// changes counts the kernel's announcements about rules, and about routes of ours, while f
// runs. Its own routes, such as those of link-local addresses, come when they come.
func (g *gateway) changes(f func()) (n int) {
	g.t.Helper()
	var fd int
	in(g.t, g.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		groups := uint32(unix.RTMGRP_IPV4_RULE | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | 1<<(unix.RTNLGRP_IPV6_RULE-1))
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	defer unix.Close(fd)
	f()
	var b [8192]byte
	for {
		size, _, err := unix.Recvfrom(fd, b[:], 0)
		if err != nil {
			return n
		}
		if size < unix.SizeofNlMsghdr+unix.SizeofRtMsg {
			g.t.Fatalf("an announcement has %d octets", size)
		}
		switch typ := native.Uint16(b[4:]); {
		case typ != unix.RTM_NEWROUTE && typ != unix.RTM_DELROUTE, b[unix.SizeofNlMsghdr+5] == routeProtocol:
			n++
		}
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	if n := g.changes(func() { g.apply("pt0", testPolicies()...) }); n < 10 {
		t.Fatalf("the first Apply was announced %d times: this test would not see changes", n)
	}
	if n := g.changes(func() { g.apply("pt0", testPolicies()...) }); n != 0 {
		t.Errorf("the second Apply changed the kernel %d times, want 0", n)
	}
	if n := g.changes(func() {
		if err := g.openNetwork().Apply("pt0", testPolicies()); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("Apply by a new process changed the kernel %d times, want 0", n)
	}
	one := policy(esp.Protect, sel("10.1.0.0/24"), sel("10.4.0.0/24"))
	if n := g.changes(func() { g.apply("pt0", slices.Insert(testPolicies(), 2, one)...) }); n != 3 {
		t.Errorf("one more policy changed the kernel %d times, want 3: a rule for each way of forwarded packets, one for own packets", n)
	}
	g.wantWays("after the change", g.testWays("pt0"))
}

func TestPoliciesAreFailClosedAfterKill(t *testing.T) {
	needTUN(t)
	g := newGateway(t)
	before := g.state()
	child := holdTUN(t, g.ns, "pt0")
	g.wantWays("while the daemon runs", g.testWays("pt0"))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait()
	g.wantWays("after kill -9", g.testWays("unreachable"))
	// A real packet, too: the application gets an error, the wire gets nothing.
	in(t, g.ns, func() error {
		_, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 1, 0, 1)}, &net.UDPAddr{IP: net.IPv4(10, 2, 0, 7), Port: 9})
		if !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("a protected packet without a tunnel: %v, want EHOSTUNREACH", err)
		}
		return nil
	})
	// The next start finds its own and needs nothing of what is not there.
	openTUN(t, g.ns, "pt0", 1400)
	fewer := testPolicies()[:2]
	g.apply("pt0", fewer...)
	for q, want := range map[query]string{
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true}: "pt0",
		{src: "10.1.0.5", dst: "10.3.0.7", forward: true}: "wan",
		{src: "fd01::5", dst: "fd02::7", forward: true}:   "wan",
		{dst: "10.2.0.7"}: "pt0 from 10.1.0.1",
	} {
		if got := g.way(q); got != want {
			t.Errorf("after the next start %+v goes to %q, want %q", q, got, want)
		}
	}
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	if after := g.state(); after != before {
		t.Errorf("after Clear:\n%s\nwant as before everything:\n%s", after, before)
	}
}

func TestClearCleansUpAfterKill(t *testing.T) {
	needTUN(t)
	g := newGateway(t)
	before := g.state()
	child := holdTUN(t, g.ns, "pt0")
	child.Process.Kill()
	child.Wait()
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	if after := g.state(); after != before {
		t.Errorf("after Clear:\n%s\nwant as before everything:\n%s", after, before)
	}
}

func TestApplyWithoutDeviceDrops(t *testing.T) {
	g := newGateway(t)
	g.apply("", testPolicies()...)
	g.wantWays("without a device", g.testWays("unreachable"))
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	if err := g.net.Apply("pt9", testPolicies()); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "pt9") {
		t.Errorf("a device that is not there: %v, want ENODEV and its name", err)
	}
	g.wantWays("with a device that is not there", g.testWays("unreachable"))
	openTUN(t, g.ns, "pt0", 1400)
	g.apply("pt0", testPolicies()...)
	g.wantWays("once it is there", g.testWays("pt0"))
}

// Everything that the host sends is protected, its peer's own address included.
func TestOwnSocketsPassByTheTunnel(t *testing.T) {
	g := newGateway(t)
	tun := openTUN(t, g.ns, "pt0", 1400)
	g.apply("pt0", policy(esp.Protect, sel("0.0.0.0/0"), sel("0.0.0.0/0")), policy(esp.Protect, sel("::/0"), sel("::/0")))
	for _, c := range []struct {
		any      netip.AddrPort
		from, to netip.Addr
	}{{any4, g.wan4, g.peer4}, {any6, g.wan6, g.peer6}} {
		ours, theirs := listenUDP(t, g.ns, c.any), listenUDP(t, g.peer, c.any)
		for _, local := range []string{"", c.from.String()} {
			mustWrite(t, ours, message(local, netip.AddrPortFrom(c.to, theirs.LocalPort()), 0, "through"))
			d := receive(t, theirs, 1, 64)[0]
			if d.Remote.Addr() != c.from {
				t.Errorf("came from %v, want %v", d.Remote, c.from)
			}
			mustWrite(t, theirs, d)
			receive(t, ours, 1, 64)
		}
		src, err := g.net.Source(c.to)
		if err != nil || src != c.from {
			t.Errorf("Source(%v) = %v, %v, want %v", c.to, src, err, c.from)
		}
	}
	for _, v6 := range []bool{false, true} {
		ours, theirs := listenESP(t, g.ns, v6), listenESP(t, g.peer, v6)
		to, from := g.peer4, g.wan4
		if v6 {
			to, from = g.peer6, g.wan6
		}
		mustWrite(t, ours, message(from.String(), netip.AddrPortFrom(to, 0), 0, "12345678"))
		receive(t, theirs, 1, 64)
	}
	// An ordinary program's packets go into the tunnel.
	in(t, g.ns, func() error {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 9})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("clear"))
		return err
	})
	within(t, 5*time.Second, "read from the tunnel", func() {
		bufs, sizes := [][]byte{make([]byte, 1500)}, make([]int, 1)
		for {
			if _, err := tun.ReadBatch(bufs, sizes, 0); err != nil {
				t.Error(err)
				return
			}
			if p := bufs[0][:sizes[0]]; p[0]>>4 == 4 && strings.HasSuffix(string(p), "clear") {
				return
			}
		}
	})
}

func TestSourceWithoutRouteIsAnError(t *testing.T) {
	ns := newNS(t)
	var n *Network
	in(t, ns, func() (err error) { n, err = OpenNetwork(); return err })
	defer n.Close()
	for _, ip := range []string{"203.0.113.1", "2001:db8::1"} {
		if src, err := n.Source(netip.MustParseAddr(ip)); err == nil || !strings.Contains(err.Error(), ip) {
			t.Errorf("Source(%s) = %v, %v, want an error that names it", ip, src, err)
		}
	}
	if src, err := n.Source(netip.MustParseAddr("::ffff:127.0.0.1")); err != nil || src != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("Source(mapped loopback) = %v, %v", src, err)
	}
}

// An address that the host gets after Apply is a source with the next one.
func TestApplyFollowsTheHostsAddresses(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	p := policy(esp.Protect, sel("10.5.0.0/24"), sel("10.2.0.0/24"))
	g.apply("pt0", p)
	if got := g.way(query{dst: "10.2.0.7"}); got != "wan from 192.0.2.1" {
		t.Errorf("without an address in 10.5.0.0/24 the host's packet goes to %q, want the ordinary route", got)
	}
	addAddr(t, g.ns, "lan", "10.5.0.1/24", "10.5.0.2/24")
	g.apply("pt0", p)
	if got := g.way(query{dst: "10.2.0.7"}); got != "pt0 from 10.5.0.1" {
		t.Errorf("with one the packet goes to %q, want the tunnel", got)
	}
	mustNetlink(t, g.ns, func(nl *Netlink) error {
		l, err := nl.LinkByName("lan")
		if err != nil {
			return err
		}
		return nl.DeleteAddr(Addr{Index: l.Index, Prefix: netip.MustParsePrefix("10.5.0.1/24")})
	})
	// Until the next Apply the packet still goes into the tunnel, from an address that is
	// no longer here; in clear would be worse.
	if got := g.way(query{dst: "10.2.0.7"}); got != "pt0 from 10.5.0.1" && got != "unreachable" {
		t.Errorf("after the address is gone the packet goes to %q, want anything but clear", got)
	}
	g.apply("pt0", p)
	if got := g.way(query{dst: "10.2.0.7"}); got != "wan from 192.0.2.1" {
		t.Errorf("after the next Apply the host's packet goes to %q, want the ordinary route", got)
	}
}

func TestApplyLeavesForeignRulesAlone(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	foreign := []Rule{
		{Priority: 500, To: netip.MustParsePrefix("10.77.0.0/16"), Action: unix.FR_ACT_TO_TBL, Table: 254, Protocol: 4},
		{Priority: 5000, To: netip.MustParsePrefix("10.78.0.0/16"), Action: unix.FR_ACT_UNREACHABLE, Protocol: routeProtocol},
	}
	mustNetlink(t, g.ns, func(nl *Netlink) error {
		return errors.Join(nl.AddRule(foreign[0]), nl.AddRule(foreign[1]))
	})
	g.apply("pt0", testPolicies()...)
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	mustNetlink(t, g.ns, func(nl *Netlink) error {
		rules, err := nl.Rules(false)
		got := slices.DeleteFunc(rules, func(r Rule) bool { return !slices.Contains(foreign, r) })
		if !reflect.DeepEqual(got, foreign) {
			t.Errorf("of the rules of others %v are left, want all of %v", got, foreign)
		}
		return err
	})
}

func TestApplyRefusesBeforeItChanges(t *testing.T) {
	g := newGateway(t)
	before := g.state()
	bad := append(testPolicies(), policy(esp.Bypass, sel("10.1.0.0/24"), ported("10.2.0.0/24", 1, 8<<8, 8<<8)))
	if err := g.net.Apply("", bad); err == nil {
		t.Fatal("a policy that rules cannot express was taken")
	}
	if after := g.state(); after != before {
		t.Errorf("after the refusal:\n%s\nwant no change:\n%s", after, before)
	}
}

// The kernel's delete takes what a request does not name for "any".
func TestApplyDeletesTheRuleThatIsMeant(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	tcp := policy(esp.Protect, sel("10.1.0.0/24"), ported("10.2.0.0/24", 6, 0, 65535))
	udp := policy(esp.Protect, sel("10.1.0.0/24"), ported("10.2.0.0/24", 17, 0, 65535))
	all := policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24"))
	any := policy(esp.Protect, sel("0.0.0.0/0"), sel("10.2.0.0/24"))
	g.apply("pt0", tcp, udp, all, any)
	g.apply("pt0", tcp, udp)
	g.wantWays("with the special ones left", map[query]string{
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 6, dport: 9}:  "pt0",
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 17, dport: 9}: "pt0",
		{src: "10.1.0.5", dst: "10.2.0.7", forward: true, proto: 1}:            "wan",
		{src: "10.9.0.5", dst: "10.2.0.7", forward: true, proto: 6, dport: 9}:  "wan",
	})
	if n := g.changes(func() { g.apply("pt0", tcp, udp) }); n != 0 {
		t.Errorf("the same again changed the kernel %d times, want 0", n)
	}
}

// Where the whole host filters, the rules themselves are the route back.
func TestTunnelPassesStrictReversePathFiltering(t *testing.T) {
	g := newGateway(t)
	tun := openTUN(t, g.ns, "pt0", 1400)
	var conn *net.UDPConn
	in(t, g.ns, func() (err error) {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0); err != nil {
			return err
		}
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 1, 0, 1), Port: 4000})
		return err
	})
	defer conn.Close()
	for i, remote := range []esp.Selector{sel("10.2.0.0/24"), ported("10.2.0.0/24", 17, 5000, 5000)} {
		g.apply("pt0", policy(esp.Protect, sel("10.1.0.0/24"), remote))
		p := udp4(netip.MustParseAddrPort("10.2.0.9:5000"), netip.MustParseAddrPort("10.1.0.1:4000"), fmt.Sprint("hello", i))
		if _, err := tun.WriteBatch([][]byte{p}, 0); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		var b [64]byte
		if n, err := conn.Read(b[:]); err != nil || string(b[:n]) != fmt.Sprint("hello", i) {
			t.Errorf("remote %v: read %q, %v, want the packet out of the tunnel", remote, b[:n], err)
		}
	}
}
