//go:build linux

package e2e

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wholeDatagrams lets a UDP socket send datagrams that do not fit the path, in fragments.
func wholeDatagrams(c *net.UDPConn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_WANT)
		} else {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}
	})
	return cmpErr(err, opt)
}

// returns sends every datagram that comes to an address back, until the test ends.
func (s *site) returns(ns string, at netip.AddrPort) {
	s.t.Helper()
	var c *net.UDPConn
	if err := inNamespace(ns, func() (err error) {
		if !eventually(20*time.Second, func() bool { // an address of IPv6 may take its time
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err == nil
		}) {
			return err
		}
		return wholeDatagrams(c, at.Addr().Is6())
	}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
}

// exchange sends datagrams of size octets until so many have come back whole, and tells how many did
// in the time. It stops at the first if none is to come back: after sending some.
func (s *site) exchange(ns string, to netip.AddrPort, size, want int, patience time.Duration) (back int) {
	s.t.Helper()
	var c *net.UDPConn
	if err := inNamespace(ns, func() (err error) {
		if c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)); err != nil {
			return err
		}
		return wholeDatagrams(c, to.Addr().Is6())
	}); err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	text := bytes.Repeat([]byte(mark), size/len(mark)+1)[:size]
	b := make([]byte, 65536)
	for end := time.Now().Add(patience); back < want && time.Now().Before(end); {
		_, _ = c.Write(text)
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := c.Read(b); err == nil && bytes.Equal(b[:n], text) {
			back++
		}
	}
	return back
}

// Datagrams of 4,000 octets come in pieces, of which the first alone shows its ports. Through a child for some
// ports they pass whole if both ends have agreed on that, and not at all if not, and in no case
// in clear: the gateways have no connection tracking, so their kernels see no ports either.
func TestFragmentsThroughAChildForSomePorts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		a, b   string // fragments
		v6     bool
		strict bool // filtering by reverse paths
		pieces bool // another child for OPAQUE ports
		passes bool
	}{
		{"also at both ends", "also", "also", false, false, false, true},
		{"strict filters", "also", "also", false, true, false, true},
		{"also at both ends, IPv6", "also", "also", true, false, false, true},
		{"also at one end", "also", "no", false, false, false, false},
		{"a child of their own", "no", "no", false, false, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			for _, ns := range []string{s.gwA, s.gwB} {
				if c.strict {
					s.sysctl(ns, "net/ipv4/conf/all/rp_filter", "1")
					s.sysctl(ns, "net/ipv4/conf/default/rp_filter", "1")
				}
			}
			ca, cb := pairSpecs(false, c.v6)
			to := netip.AddrPortFrom(hostB4, 2500)
			if c.v6 {
				to = netip.AddrPortFrom(hostB6, 2500)
			}
			x, y := &ca.conns[0].children[0], &cb.conns[0].children[0]
			x.fragments, y.fragments = c.a, c.b
			x.localTS[0] += "[udp]"
			x.remoteTS[0] += "[udp/2000-3000]"
			y.localTS, y.remoteTS = x.remoteTS, x.localTS
			if c.pieces {
				px, py := *x, *y
				px.name, py.name = "pieces", "pieces"
				px.localTS, px.remoteTS = []string{lanA4 + "[udp/opaque]"}, []string{lanB4 + "[udp/opaque]"}
				py.localTS, py.remoteTS = px.remoteTS, px.localTS
				ca.conns[0].children, cb.conns[0].children = append(ca.conns[0].children, px), append(cb.conns[0].children, py)
			}
			other := netip.AddrPortFrom(to.Addr(), 5000)
			s.returns(s.lanB, to)
			s.returns(s.lanB, other)
			da, db := startPair(s, p, ca, cb)
			a, b := da.(*postern), db.(*postern)
			w := s.capture()
			mustInitiate(t, "net", a, b)
			if c.pieces {
				mustInitiate(t, "pieces", a, b)
			}
			if n := s.exchange(s.lanA, to, 400, 3, 20*time.Second); n < 3 {
				t.Fatalf("%d datagrams in one piece came back, want 3%s", n, logs(a, b))
			}
			if c.passes {
				if n := s.exchange(s.lanA, to, 4000, 10, 25*time.Second); n < 10 {
					t.Errorf("%d datagrams in pieces came back, want 10; counters %v and %v%s", n, a.counters(), b.counters(), logs(a, b))
				}
			} else if n := s.exchange(s.lanA, to, 4000, 1, 2*time.Second); n > 0 {
				t.Errorf("%d datagrams in pieces came back, though one end did not agree", n)
			}
			// What is not to be protected would go in clear, but the kernel cannot tell it from the rest.
			if n := s.exchange(s.lanA, other, 4000, 1, time.Second); n > 0 {
				t.Errorf("a datagram in pieces to a port that the child does not select came back")
			}
			if out, err := rawOurs(b, "--list-sas", "list-sa"); err != nil || strings.Contains(out, "fragments=yes") != (c.passes && !c.pieces) {
				t.Errorf("the list of SAs does not tell whether later fragments are taken: %v\n%s", err, out)
			}
			counted := a.counters()
			if got := counted["out_drop_fragment_refused"]; (got == 0) != c.passes {
				t.Errorf("%d later fragments were refused on their way out%s", got, logs(a))
			}
			if counted["out_drop_fragment_clear"] < 2 {
				t.Errorf("%d fragments of another port were counted, want some: %v", counted["out_drop_fragment_clear"], counted)
			}
			for name, n := range counted {
				if c.v6 && name == "out_drop_fragment_no_first" {
					continue // before the sender knows the path's MTU, its first fragments do not fit
				}
				if n > 0 && strings.Contains(name, "drop_fragment") && name != "out_drop_fragment_clear" && name != "out_drop_fragment_refused" {
					t.Errorf("%s is %d, want 0", name, n)
				}
			}
			w.stop().nothingInClear(t, []byte(mark))
		})
	}
}

// strongSwan and postern understand each other's selectors for ports, types and OPAQUE ports, narrowed by either side.
// strongSwan takes no part in NON_FIRST_FRAGMENTS_ALSO, which changes nothing else.
func TestSelectorsWithStrongSwan(t *testing.T) {
	t.Parallel()
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
		t.Run(p.String(), func(t *testing.T) {
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			a0, b0 := ca.conns[0].children[0], cb.conns[0].children[0]
			ca.conns[0].children, cb.conns[0].children = nil, nil
			add := func(name string, la, ra, lb, rb []string) {
				x, y := a0, b0
				x.name, y.name, x.fragments, y.fragments = name, name, "also", "also"
				x.localTS, x.remoteTS, y.localTS, y.remoteTS = la, ra, lb, rb
				ca.conns[0].children, cb.conns[0].children = append(ca.conns[0].children, x), append(cb.conns[0].children, y)
			}
			one := func(ts ...string) []string { return ts }
			// The responder has fewer ports, or more types, than the initiator asks for.
			add("ports", one(lanA4+"[udp]"), one(lanB4+"[udp/1000-2999]"), one(lanB4+"[udp/2000-3000]"), one(lanA4+"[udp]"))
			add("echo", one(lanA4+"[icmp/8]", lanA4+"[icmp/0]"), one(lanB4+"[icmp/8]", lanB4+"[icmp/0]"), one(lanB4+"[icmp/0-2303]"), one(lanA4+"[icmp/0-2303]"))
			add("types", one(lanA4+"[icmp/2560-3071]"), one(lanB4+"[icmp/2560-3071]"), one(lanB4+"[icmp/10-12(255)]"), one(lanA4+"[icmp/11(3)]"))
			add("opaque", one(lanA4+"[udp/opaque]"), one(lanB4+"[udp/opaque]"), one(lanB4+"[udp/opaque]"), one(lanA4+"[udp/opaque]"))
			if p.b == "charon" {
				cb.conns[0].children[2].localTS, cb.conns[0].children[2].remoteTS = one(lanB4+"[icmp/2560-3327]"), one(lanA4+"[icmp/2819]")
			}
			to := netip.AddrPortFrom(hostB4, 2500)
			s.returns(s.lanB, to)
			a, b := startPair(s, p, ca, cb)
			w := s.capture()
			agree := func(child, wantA, wantB string) {
				t.Helper()
				mustInitiate(t, child, a, b)
				for i, d := range []daemon{a, b} {
					local, remote := selectorsOf(t, d, child)
					if i == 1 {
						local, remote = remote, local
					}
					if local != wantA || remote != wantB {
						t.Errorf("%s has %s === %s for child %s, want %s === %s", d.kind(), local, remote, child, wantA, wantB)
					}
				}
			}
			agree("ports", "10.1.0.0/24[udp]", "10.2.0.0/24[udp/2000-2999]")
			agree("echo", "10.1.0.0/24[icmp/0] 10.1.0.0/24[icmp/8]", "10.2.0.0/24[icmp/0] 10.2.0.0/24[icmp/8]")
			if n := s.exchange(s.lanA, to, 400, 3, 20*time.Second); n < 3 {
				t.Errorf("%d datagrams in one piece came back, want 3%s", n, logs(a, b))
			}
			s.mustPing(t, false, a, b)
			w.stop().nothingInClear(t, []byte(mark))
			// kernel-libipsec sends through these what they do not select, so nothing is sent.
			agree("types", "10.1.0.0/24[icmp/11(3)]", "10.2.0.0/24[icmp/10-11(255)]")
			agree("opaque", "10.1.0.0/24[udp/OPAQUE]", "10.2.0.0/24[udp/OPAQUE]")
		})
	}
}

// selectorsOf returns the selectors of a child's SA as its daemon lists them, sorted.
func selectorsOf(t *testing.T, d daemon, child string) (local, remote string) {
	t.Helper()
	out, err := command("swanctl", "--list-sas", "--raw", "--uri", d.control())
	if err != nil {
		t.Fatalf("swanctl --list-sas: %v\n%s", err, out)
	}
	list := func(text, key string) string {
		_, rest, ok := strings.Cut(text, key+"=[")
		if !ok {
			return ""
		}
		// The list ends at the first ] behind which no other selector's bracket is open.
		depth := 0
		for i, r := range rest {
			switch {
			case r == '[':
				depth++
			case r == ']' && depth == 0:
				return rest[:i]
			case r == ']':
				depth--
			}
		}
		return ""
	}
	_, rest, _ := strings.Cut(out, "{name="+child+" ")
	sorted := func(s string) string {
		words := strings.Fields(s)
		slices.Sort(words)
		return strings.Join(words, " ")
	}
	return sorted(list(rest, "local-ts")), sorted(list(rest, "remote-ts"))
}
