package platform

import (
	"net/netip"
	"slices"
	"testing"

	"postern/esp"
)

// Between the loss of the address that an entry is for and the notice of the next one, what the
// host sends to the other side of the entry is dropped, and not sent in clear from the new address.
func TestPlanDropsOwnPacketsWhileTheirSourceIsNotKnown(t *testing.T) {
	list := []esp.Policy{
		policy(esp.Bypass, sel("0.0.0.0/0"), sel("10.2.0.9/32")),
		policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.2.0.8/32")),
		policy(esp.Protect, sel("192.0.2.1/32"), sel("10.2.0.0/24")),
		policy(esp.Protect, sel("2001:db8::1/128"), sel("::/0")),
	}
	list[2].Own, list[3].Own = true, true
	f, _ := planFor(t, false, list, "192.0.2.7", "10.1.0.1")
	wantRuns(t, "without the address", f.own, "0: from 0.0.0.0/32 to 10.2.0.8/32 goto 999", "1: from 0.0.0.0/32 to 10.2.0.0/24 blackhole")
	f, _ = planFor(t, false, list, "192.0.2.1", "192.0.2.7")
	if n := len(f.own); n != 1 || f.own[0].kind == blackhole {
		t.Errorf("with the address: %v", f.own)
	}
	list[2].Own = false
	f, _ = planFor(t, false, list, "192.0.2.7")
	wantRuns(t, "an address that is configured", f.own)
	// Before the first address there is only the unspecified one.
	never := policy(esp.Protect, sel("0.0.0.0/32"), sel("10.9.0.0/24"))
	never.Own = true
	f, _ = planFor(t, false, []esp.Policy{never}, "192.0.2.7")
	wantRuns(t, "no address yet", f.own, "0: from 0.0.0.0/32 to 10.9.0.0/24 blackhole")
	// Of IPv6 all is dropped but what stays on the link: a new address is asked for in multicasts.
	f, _ = planFor(t, true, list, "2001:db8::7")
	if len(f.own) != 1 || f.own[0].kind != blackhole {
		t.Fatalf("IPv6: %v, want one run that drops", f.own)
	}
	for to, dropped := range map[string]bool{
		"::1": true, "64:ff9b::1": true, "2001:db8::9": true, "fd00::1": true, "fe00::1": true, "fec0::1": true,
		"fe80::1": false, "febf::1": false, "ff02::1:2": false, "ff0e::1": false,
	} {
		got := slices.ContainsFunc(f.own[0].rules, func(r Rule) bool {
			return r.From == (netip.Prefix{}) && r.To.Contains(netip.MustParseAddr(to))
		})
		if got != dropped {
			t.Errorf("IPv6 to %s: dropped %v, want %v", to, got, dropped)
		}
	}
}
