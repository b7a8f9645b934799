package platform

import (
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
	// All of IPv6 is not dropped: a new address is asked for in multicasts.
	f, _ = planFor(t, true, list, "2001:db8::7")
	wantRuns(t, "IPv6", f.own)
}
