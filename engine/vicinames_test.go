package engine

import (
	"net/netip"
	"strings"
	"testing"

	"postern/engine/control"
	"postern/ike"
)

// list-conns shows the peer's names where remote_addrs has them.
func TestListConnsShowsNamesInTheirPlace(t *testing.T) {
	m := new(control.Message)
	connMessage(m.Section("c"), &ike.Conn{
		RemoteAddrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("10.0.0.0/8")},
		RemoteNames: []ike.PeerName{{Name: "first.example"}, {Name: "gw.example", At: 1}, {Name: "last.example", At: 2}},
	})
	got := strings.Join(m.Section("c").Items(control.KeyRemoteAddrs), " ")
	if want := "first.example 192.0.2.1 gw.example 10.0.0.0/8 last.example"; got != want {
		t.Errorf("remote_addrs is %q, want %q", got, want)
	}
}
