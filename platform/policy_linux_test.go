package platform

import (
	"net/netip"

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

// testPolicies: a LAN to another, and a hole for SSH in front.
func testPolicies() []esp.Policy {
	return []esp.Policy{
		policy(esp.Bypass, sel("10.1.0.0/24"), ported("10.2.0.0/24", 6, 22, 22)),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Protect, sel("fd01::/64"), sel("fd02::/64")),
	}
}
