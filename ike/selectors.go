package ike

import (
	"net/netip"

	"postern/esp"
)

// Which traffic selectors we offer, and how those of the two sides compare (RFC 7296
// section 2.9). Narrowing itself is in ts.go.

// offerTS returns the selectors that we offer for a CHILD SA: ours and the peer's. The
// packet that asked for it comes first (RFC 7296 section 2.9).
func (m *Machine) offerTS(sa *ikeSA, cfg *Child, flow *esp.Flow) [2][]esp.Selector {
	local := resolveTS(cfg.LocalTS, sa.ourAddrs()...)
	remote := resolveTS(cfg.RemoteTS, sa.theirAddrs()...)
	if flow.Local.IsValid() && esp.MatchFlow(local, remote, flow) {
		local = append([]esp.Selector{flowSelector(local, flow.Local, flow, flow.LocalPort)}, local...)
		remote = append([]esp.Selector{flowSelector(remote, flow.Remote, flow, flow.RemotePort)}, remote...)
	}
	return [2][]esp.Selector{local, remote}
}

// flowSelector selects one side of a packet alone. Where its port cannot be seen, it has the ports
// of the selector in ts that takes such packets: all, or OPAQUE ones.
func flowSelector(ts []esp.Selector, a netip.Addr, f *esp.Flow, port uint16) esp.Selector {
	s := esp.Selector{Proto: f.Proto, StartPort: port, EndPort: port, Start: a, End: a}
	if f.NoPorts || f.Proto == 0 {
		s.StartPort, s.EndPort = 0, 65535
		for i := range ts {
			if ts[i].Matches(a, f.Proto, port, f.NoPorts) {
				s.StartPort, s.EndPort = ts[i].StartPort, ts[i].EndPort
				break
			}
		}
	}
	return s
}

// resolveTS puts the addresses in place of the dynamic selectors. One that is not specified stands
// for all of its family.
func resolveTS(ts []TS, addrs ...netip.Addr) []esp.Selector {
	out := make([]esp.Selector, 0, len(ts)+1)
	for _, t := range ts {
		s := t.Selector
		if !t.Dynamic {
			out = append(out, s)
			continue
		}
		for _, a := range addrs {
			s.Start, s.End = a, a
			if a.IsUnspecified() {
				s.End = esp.SelectorFromPrefix(netip.PrefixFrom(a, 0)).End
			}
			out = append(out, s)
		}
	}
	return out
}

// assignedTS returns the selectors with the address that a client has got in the place of one for the
// unspecified address alone, which no packet has: by that OpenIKED means the address that it asks for.
func assignedTS(ts []esp.Selector, assigned []netip.Addr) []esp.Selector {
	for i, s := range ts {
		for _, a := range assigned {
			if s.Start == s.End && s.Start.IsUnspecified() && s.Start.Is4() == a.Is4() {
				ts[i].Start, ts[i].End = a, a
				break
			}
		}
	}
	return ts
}

// within tells whether every selector is inside one of the offered ones.
func within(got, offered []esp.Selector) bool {
	for _, g := range got {
		ok := false
		for _, o := range offered {
			ok = ok || o.Contains(g)
		}
		if !ok {
			return false
		}
	}
	return len(got) > 0
}

// sharedFamily tells whether a packet can match both sides.
func sharedFamily(local, remote []esp.Selector) bool {
	for _, l := range local {
		for _, r := range remote {
			if l.Start.Is4() == r.Start.Is4() {
				return true
			}
		}
	}
	return false
}
