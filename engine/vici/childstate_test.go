package vici

import (
	"net/netip"
	"strings"
	"testing"

	"postern/ike"
)

func TestInitiateFindsTheConnectionByTheAddresses(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	gre, other := []*ike.Child{{Name: "dmvpn"}}, []*ike.Child{{Name: "net"}}
	cfg := &ike.Config{Conns: []*ike.Conn{
		{Name: "else", Children: other, RemoteAddrs: prefixes("192.0.2.2/32")},
		{Name: "spokes", Children: gre},
		{Name: "lan", Children: gre, RemoteAddrs: prefixes("192.0.2.0/24")},
		{Name: "hub", Children: gre, RemoteAddrs: prefixes("192.0.2.2/32"), LocalAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		{Name: "hub6", Children: gre, RemoteAddrs: prefixes("2001:db8::3/128", "192.0.2.3/32")},
	}}
	for _, tc := range []struct{ conn, child, ours, peers, want, err string }{
		{"", "dmvpn", "", "", "spokes", ""},
		{"", "dmvpn", "192.0.2.1", "192.0.2.2", "hub", ""},
		{"", "dmvpn", "", "192.0.2.2", "hub", ""},
		{"", "dmvpn", "192.0.2.9", "192.0.2.3", "hub6", ""},
		{"", "dmvpn", "2001:db8::9", "2001:db8::3", "hub6", ""},
		{"", "dmvpn", "192.0.2.9", "192.0.2.2", "", "no connection with config 'dmvpn' is between 192.0.2.9 and 192.0.2.2"},
		{"", "dmvpn", "", "192.0.2.7", "", "is between %any and 192.0.2.7"}, // a network is nobody's address
		{"", "dmvpn", "192.0.2.1/24", "192.0.2.2", "", `my-host: "192.0.2.1/24" is no address`},
		{"", "dmvpn", "192.0.2.1", "hub.example", "", `other-host: "hub.example" is no address`},
		{"else", "dmvpn", "", "192.0.2.2", "", ""},
		{"else", "", "", "192.0.2.2", "else", ""},
		{"", "none", "", "192.0.2.2", "", ""},
	} {
		got, err := between(cfg, tc.conn, tc.child, tc.ours, tc.peers)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s/%s between %q and %q: %q, %v, want %q, %q", tc.conn, tc.child, tc.ours, tc.peers, got, err, tc.want, tc.err)
		}
	}
}
