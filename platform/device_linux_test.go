package platform

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A device inside a tunnel gets its addresses, is no way to a peer, and its addresses are not
// among those that peers are told.
func TestDeviceInsideATunnel(t *testing.T) {
	ns, far := newNS(t), newNS(t)
	openTUN(t, ns, "ipsec0", 1400)
	cable(t, ns, "wan0", far, "wan1")
	addAddr(t, far, "wan1", "192.0.2.2/24")
	addAddr(t, ns, "wan0", "192.0.2.1/24")
	var n *Network
	in(t, ns, func() (err error) { n, err = OpenNetwork(); return err })
	defer n.Close()

	listed := func() (list []string) {
		t.Helper()
		addrs, err := n.Addresses()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if !a.IsLoopback() && (!a.IsLinkLocalUnicast() || a == netip.MustParseAddr("fe80::1")) {
				list = append(list, a.String())
			}
		}
		slices.Sort(list)
		return list
	}
	var index int
	has := func() string {
		t.Helper()
		var list []string
		err := ns.Netlink(func(nl *Netlink) error {
			l, err := nl.LinkByName("ipsec0")
			index = l.Index
			for _, v6 := range []bool{false, true} {
				addrs, aerr := nl.Addrs(v6)
				err = errors.Join(err, aerr)
				for _, a := range addrs {
					if a.Index == l.Index {
						list = append(list, a.Prefix.String())
					}
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		return fmt.Sprint(list)
	}
	prefixes := func(list ...string) (ps []netip.Prefix) {
		for _, s := range list {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	set := func(addrs, had []netip.Prefix, want string) {
		t.Helper()
		if err := n.SetDevice("ipsec0", addrs, had); err != nil {
			t.Fatalf("SetDevice: %v", err)
		}
		if got := has(); got != want {
			t.Errorf("the device has %s, want %s", got, want)
		}
	}
	set(prefixes("10.255.0.1/30", "fe80::1/64"), nil, "[10.255.0.1/30 fe80::1/64]")
	set(prefixes("10.255.0.1/30", "fd00::1/64"), prefixes("10.255.0.1/30", "fe80::1/64", "10.9.9.9/24"), "[10.255.0.1/30 fd00::1/64]")
	if got := fmt.Sprint(listed()); got != "[192.0.2.1]" {
		t.Errorf("Addresses lists %s, want the one outside alone", got)
	}

	peer := netip.MustParseAddr("198.51.100.7")
	mustNetlink(t, ns, func(nl *Netlink) error {
		return nl.ReplaceRoute(Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC, Dst: netip.PrefixFrom(peer, 32), Index: index})
	})
	if a, err := n.Source(peer); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("over a route into the device the source is %v, %v; want EHOSTUNREACH", a, err)
	}
	n.ForgetDevice("ipsec0")
	if a, err := n.Source(peer); err != nil || a != netip.MustParseAddr("10.255.0.1") {
		t.Errorf("when the device is forgotten the source is %v, %v; want 10.255.0.1", a, err)
	}
	if got := len(listed()); got != 3 {
		t.Errorf("when the device is forgotten %d addresses are listed, want 3", got)
	}
	if err := n.SetDevice("ipsec9", nil, nil); !errors.Is(err, unix.ENODEV) {
		t.Errorf("SetDevice of a device that is not there: %v", err)
	}
}
