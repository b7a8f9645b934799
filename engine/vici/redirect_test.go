package vici

import (
	"net/netip"
	"testing"
)

func TestRedirectSelectsByAddress(t *testing.T) {
	for _, c := range []struct {
		selector, in, out string
	}{
		{"192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"192.0.2.0/24", "192.0.2.255", "192.0.3.1"},
		{"192.0.2.5-192.0.2.9", "192.0.2.9", "192.0.2.10"},
		{"2001:db8::1-2001:db8::f", "2001:db8::8", "192.0.2.1"},
		{"192.0.2.0-192.0.2.9", "::ffff:192.0.2.9", "::1"},
	} {
		inside, ok := peerIPs(c.selector)
		if !ok || !inside(netip.MustParseAddr(c.in)) || inside(netip.MustParseAddr(c.out)) {
			t.Errorf("%s: taken %v, must select %s and not %s", c.selector, ok, c.in, c.out)
		}
	}
	if inside, ok := peerIPs(""); !ok || !inside(netip.MustParseAddr("::1")) {
		t.Error("without a selector every address is selected")
	}
	for _, bad := range []string{"x", "192.0.2.1-", "-192.0.2.1", "192.0.2.1-::1", "192.0.2.0/33"} {
		if _, ok := peerIPs(bad); ok {
			t.Errorf("%q is taken as a selector", bad)
		}
	}
}

func TestRedirectSelectsByIdentity(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		fits        bool
	}{
		{"", "a.example", true}, {"*", "a.example", true}, {"*.example", "a.example", true}, {"*@b.example", "a@b.example", true},
		{"a.example", "a.example", true}, {"a.example", "aa.example", false}, {"*.test", "a.example", false},
	} {
		if fitsID(c.pattern, c.id) != c.fits {
			t.Errorf("%q and %q: want %v", c.pattern, c.id, c.fits)
		}
	}
}
