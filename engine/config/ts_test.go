package config

import (
	"net/netip"
	"testing"

	"postern/esp"
	"postern/ike"
)

// sel builds a selector the long way.
func sel(start, end string, proto uint8, startPort, endPort uint16) esp.Selector {
	return esp.Selector{Proto: proto, StartPort: startPort, EndPort: endPort,
		Start: netip.MustParseAddr(start), End: netip.MustParseAddr(end)}
}

func TestSelectorNotation(t *testing.T) {
	dynamic := func(proto uint8, start, end uint16) ike.TS {
		return ike.TS{Dynamic: true, Selector: esp.Selector{Proto: proto, StartPort: start, EndPort: end}}
	}
	for _, c := range []struct {
		text string
		want ike.TS
	}{
		{"10.1.0.0/24", ike.TS{Selector: sel("10.1.0.0", "10.1.0.255", 0, 0, 65535)}},
		{"0.0.0.0/0", ike.TS{Selector: sel("0.0.0.0", "255.255.255.255", 0, 0, 65535)}},
		{"10.1.0.5", ike.TS{Selector: sel("10.1.0.5", "10.1.0.5", 0, 0, 65535)}},
		{"10.1.0.5/32[tcp/502]", ike.TS{Selector: sel("10.1.0.5", "10.1.0.5", 6, 502, 502)}},
		{"10.0.0.1-10.0.0.9", ike.TS{Selector: sel("10.0.0.1", "10.0.0.9", 0, 0, 65535)}},
		{"10.0.0.1..10.0.0.9[udp/100-200]", ike.TS{Selector: sel("10.0.0.1", "10.0.0.9", 17, 100, 200)}},
		{"2001:db8::/32", ike.TS{Selector: sel("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 0, 0, 65535)}},
		{"2001:db8::1-2001:db8::9[ipv6-icmp/128]", ike.TS{Selector: sel("2001:db8::1", "2001:db8::9", 58, 128<<8, 128<<8)}},
		{"10.0.0.0/8[icmp/3(4)]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 1, 3<<8|4, 3<<8|4)}},
		{"10.0.0.0/8[icmp/2048]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 1, 2048, 2048)}},
		{"10.0.0.0/8[icmp/0-8(255)]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 1, 0, 8<<8|255)}},
		{"10.0.0.0/8[6/opaque]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 6, 65535, 0)}},
		{"10.0.0.0/8[icmp/2048-2303]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 1, 8<<8, 8<<8|255)}},
		{"10.0.0.0/8[udp/OPAQUE]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 17, 65535, 0)}},
		{"fd00::/8[mobility-header/5]", ike.TS{Selector: sel("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 135, 5<<8, 5<<8)}},
		{"fd00::/8[mh/5-6]", ike.TS{Selector: sel("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 135, 5<<8, 6<<8)}},
		{"10.0.0.0/8[47]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 47, 0, 65535)}},
		{"10.0.0.0/8[200]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 200, 0, 65535)}},
		{"10.0.0.0/8[tcp/%any]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 6, 0, 65535)}},
		{"10.0.0.0/8[%any]", ike.TS{Selector: sel("10.0.0.0", "10.255.255.255", 0, 0, 65535)}},
		{"dynamic", dynamic(0, 0, 65535)},
		{"dynamic[udp/161]", dynamic(17, 161, 161)},
		{"dynamic[icmpv6]", dynamic(58, 0, 65535)},
	} {
		got, err := parseTS(c.text)
		if err != nil {
			t.Errorf("%q was refused: %s; %s", c.text, err.what, err.hint)
		} else if got != c.want {
			t.Errorf("%q became %+v, expected %+v", c.text, got, c.want)
		}
	}
}

// TestSelectorsReadWhatTheyPrint matters because people copy selectors from the output
// of status into the configuration.
func TestSelectorsReadWhatTheyPrint(t *testing.T) {
	for proto := range 256 {
		for _, ports := range [][2]uint16{{0, 65535}, {502, 502}, {100, 2000}, {65535, 0}, {0, 0}, {3<<8 | 1, 3<<8 | 1}} {
			if !esp.HasPorts(uint8(proto)) && ports != [2]uint16{0, 65535} {
				continue // RFC 4301 knows no ports of these
			}
			want := sel("10.1.0.1", "10.1.0.9", uint8(proto), ports[0], ports[1])
			got, err := parseTS(want.String())
			if err != nil {
				t.Errorf("%q is printed and cannot be read: %s", want.String(), err.what)
			} else if got.Selector != want {
				t.Errorf("%q is printed for %+v and read as %+v", want.String(), want, got.Selector)
			}
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]string{
		"30s": "30s", "5m": "5m", "4h": "4h", "1d": "1d", "90": "90s", "500ms": "500ms", "0": "0s", "0s": "0s", "24h": "1d",
		"365d": "365d", "120": "2m",
	} {
		d, ok := parseDuration(text)
		if !ok || span(d) != want {
			t.Errorf("%q is read as %v (%v) and written as %s, expected %s", text, d, ok, span(d), want)
		}
	}
	for _, text := range []string{"", "s", "-1s", "+1s", "1.5h", "1h30m", "1 h", "366d", "1w", "18446744073709551615", "99999999999999999999d", "0x10"} {
		if d, ok := parseDuration(text); ok {
			t.Errorf("%q is no duration but was read as %v", text, d)
		}
	}
}

func TestPoliciesFollowTheFile(t *testing.T) {
	c := mustParse(t, `
[connections.z]
local_addrs = ["192.0.2.1"]
remote_addrs = ["198.51.100.7", "198.51.100.8"]
[connections.z.children.b]
remote_ts = ["10.2.0.0/24", "10.3.0.0/24[tcp]"]
[connections.z.children.a]
[connections.m]
[connections.m.children.roaming]
local_ts = ["10.1.0.0/24"]
remote_ts = ["dynamic"]
[connections.m.children.fixed]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.4.0.0/24"]
[connections.a]
remote_addrs = ["198.51.100.9"]
[connections.a.children.host]
[secrets.any]
secret = "an example of 24 octets."
`)
	want := [][2]string{
		{"192.0.2.1/32", "10.2.0.0/24 10.3.0.0/24[tcp]"},
		{"192.0.2.1/32", "198.51.100.7/32 198.51.100.8/32"},
		{"", ""},
		{"10.1.0.0/24", "10.4.0.0/24"},
		{"", ""},
	}
	check := func(got []esp.Policy) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%d policies, expected one for each of the %d children", len(got), len(want))
		}
		for i, p := range got {
			if p.Action != esp.Protect {
				t.Errorf("policy %d does %v, expected PROTECT", i, p.Action)
			}
			if l, r := selectorSet(p.LocalTS), selectorSet(p.RemoteTS); l != want[i][0] || r != want[i][1] {
				t.Errorf("policy %d is %q = %q, expected %q = %q", i, l, r, want[i][0], want[i][1])
			}
		}
	}
	check(c.Policies(nil))
	want[4] = [2]string{"192.0.2.77/32", "198.51.100.9/32"}
	check(c.Policies(func(remote netip.Addr) (netip.Addr, error) {
		if remote != netip.MustParseAddr("198.51.100.9") {
			t.Errorf("the route to %v was asked for, though local_addrs has the answer", remote)
		}
		return netip.MustParseAddr("192.0.2.77"), nil
	}))
	want[4] = [2]string{"0.0.0.0/0", "198.51.100.9/32"} // or packets would leave in clear once there is a way
	check(c.Policies(func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errNotRegular }))
}
