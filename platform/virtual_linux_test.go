package platform

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// A host whose gateway assigns its addresses: what it sends without having chosen a source
// leaves from the assigned address into the tunnel, or not at all. What stays on a link, what
// has chosen the outer address of IPv4, and the tunnel's own packets go their way.
func TestVirtualAddressesAreTheOnlyWayOut(t *testing.T) {
	ns, far := newNS(t), newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	cable(t, ns, "wan0", far, "wan1")
	addAddr(t, far, "wan1", "192.0.2.2/24", "2001:db8::2/64")
	addAddr(t, ns, "wan0", "192.0.2.1/24", "2001:db8::1/64")
	err := ns.Netlink(func(nl *Netlink) error {
		l, err := nl.LinkByName("wan0")
		if err != nil {
			return err
		}
		return errors.Join(
			nl.AddRoute(Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.2"), Index: l.Index}),
			nl.AddRoute(Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("2001:db8::2"), Index: l.Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	var n *Network
	in(t, ns, func() (err error) { n, err = OpenNetwork(); return err })
	defer n.Close()

	const none = "dropped"
	// way is what a datagram socket without a source gets as one, or that there is no way.
	way := func(to string, mark int, from string) (got string) {
		t.Helper()
		in(t, ns, func() error {
			a := netip.MustParseAddr(to)
			fd, err := unix.Socket(int(family(a.Is6())), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if mark != 0 {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
					return err
				}
			}
			if from != "" {
				if err := unix.Bind(fd, sockaddr(netip.MustParseAddr(from), 0)); err != nil {
					return err
				}
			}
			if err := unix.Connect(fd, sockaddr(a, 9)); err != nil {
				got = none
				return nil
			}
			sa, err := unix.Getsockname(fd)
			switch sa := sa.(type) {
			case *unix.SockaddrInet4:
				got = netip.AddrFrom4(sa.Addr).String()
			case *unix.SockaddrInet6:
				got = netip.AddrFrom16(sa.Addr).String()
			}
			return err
		})
		return got
	}
	apply := func(device string, ts ...string) {
		t.Helper()
		p := esp.Policy{Action: esp.Protect, Own: true, Virtual: true, RemoteTS: []esp.Selector{sel("0.0.0.0/0"), sel("::/0")}}
		for _, s := range ts {
			p.LocalTS = append(p.LocalTS, sel(s))
		}
		if err := n.Apply(device, []esp.Policy{p}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when, want4, want6 string) {
		t.Helper()
		for _, c := range []struct {
			to   string
			mark int
			from string
			want string
		}{
			{"198.51.100.7", 0, "", want4}, {"192.0.2.2", 0, "", want4}, {"2001:db8:9::7", 0, "", want6},
			{"198.51.100.7", Mark, "", "192.0.2.1"}, {"2001:db8:9::7", Mark, "", "2001:db8::1"},
			{"198.51.100.7", 0, "192.0.2.1", "192.0.2.1"}, {"2001:db8:9::7", 0, "2001:db8::1", none},
			{"2001:db8::2", 0, "2001:db8::1", "2001:db8::1"}, // the answer to a neighbour
		} {
			if got := way(c.to, c.mark, c.from); got != c.want {
				t.Errorf("%s: to %s with mark %#x from %q: %s, want %s", when, c.to, c.mark, c.from, got, c.want)
			}
		}
	}
	apply("pt0", "0.0.0.0/32", "::/128")
	check("before the first address", none, none)
	set := func(addrs, had string) {
		t.Helper()
		var list [2][]netip.Prefix
		for i, text := range []string{addrs, had} {
			for _, s := range strings.Fields(text) {
				list[i] = append(list[i], netip.MustParsePrefix(s))
			}
		}
		if err := n.SetDevice("pt0", list[0], list[1]); err != nil {
			t.Fatal(err)
		}
	}
	set("10.9.0.5/32 fd09::5/128", "")
	apply("pt0", "10.9.0.5/32", "fd09::5/128")
	check("with addresses", "10.9.0.5", "fd09::5")
	// Others than before, and still those on the device.
	set("10.9.0.5/32 fd09::5/128 10.9.0.6/32 fd09::6/128", "")
	apply("pt0", "10.9.0.6/32", "fd09::6/128", "10.9.0.5/32", "fd09::5/128")
	check("with other addresses", "10.9.0.6", "fd09::6")
	set("10.9.0.6/32", "10.9.0.5/32 fd09::5/128 10.9.0.6/32 fd09::6/128")
	apply("pt0", "10.9.0.6/32", "::/128", "10.9.0.5/32", "fd09::5/128")
	check("with one of IPv4 alone", "10.9.0.6", none)
	set("10.9.0.6/32 fd09::6/128", "10.9.0.6/32")
	apply("pt0", "0.0.0.0/32", "::/128", "10.9.0.6/32", "fd09::6/128")
	check("when they are about to go", none, none)
	apply("pt0", "10.9.0.6/32", "fd09::6/128")
	check("and here again", "10.9.0.6", "fd09::6")
	// The process is killed: the device goes, and the addresses with it.
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	check("after the device is gone", none, none)
	if err := n.Clear(); err != nil {
		t.Fatal(err)
	}
	if a, b := way("198.51.100.7", 0, ""), way("2001:db8:9::7", 0, ""); a != "192.0.2.1" || b != "2001:db8::1" {
		t.Errorf("in the end packets leave from %s and %s", a, b)
	}
}
