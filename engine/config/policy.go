package config

import (
	"net/netip"

	"postern/esp"
	"postern/ike"
)

// Policies returns the SPD that follows from the children: one PROTECT policy for each
// child, the connections and the children of each in the order of the file. So
// Policies()[i] belongs to the i-th child.
//
// A dynamic selector on the peer's side becomes the addresses in remote_addrs, if these
// are single ones (a name is none); on our side, those in local_addrs, or else what source returns as
// the address from which packets to the peer leave. Source may be nil. Where an address
// is not known until the peer calls, the policy has no selectors and matches nothing;
// it is the CHILD SA that has them then.
func (c *Config) Policies(source func(remote netip.Addr) (netip.Addr, error)) []esp.Policy {
	var out []esp.Policy
	for _, conn := range c.IKE.Conns {
		remote, known := hosts(conn)
		local := conn.LocalAddrs
		if len(local) == 0 && known && source != nil {
			for _, r := range remote {
				if a, err := source(r); err == nil && a.IsValid() {
					local = append(local, a)
				}
			}
		}
		for _, child := range conn.Children {
			p := esp.Policy{
				Action:   esp.Protect,
				LocalTS:  resolve(child.LocalTS, local),
				RemoteTS: resolve(child.RemoteTS, remote),
			}
			if len(p.LocalTS) == 0 || len(p.RemoteTS) == 0 {
				p.LocalTS, p.RemoteTS = nil, nil
			}
			out = append(out, p)
		}
	}
	return out
}

// resolve puts addresses into dynamic selectors; nil if there are none to put in.
func resolve(list []ike.TS, addrs []netip.Addr) []esp.Selector {
	var out []esp.Selector
	for _, ts := range list {
		if !ts.Dynamic {
			out = append(out, ts.Selector)
			continue
		}
		if len(addrs) == 0 {
			return nil
		}
		for _, a := range addrs {
			s := ts.Selector
			s.Start, s.End = a, a
			out = append(out, s)
		}
	}
	return out
}

// hosts returns the addresses of a peer that can only be at single ones; known is false
// if it may call from elsewhere.
func hosts(c *ike.Conn) (addrs []netip.Addr, known bool) {
	if len(c.RemoteNames) > 0 {
		return nil, false
	}
	for _, p := range c.RemoteAddrs {
		if !p.IsSingleIP() {
			return nil, false
		}
		addrs = append(addrs, p.Addr())
	}
	return addrs, len(addrs) > 0
}

// callable tells whether there is an address at which to call the peer.
func callable(c *ike.Conn) bool {
	if len(c.RemoteNames) > 0 {
		return true
	}
	for _, p := range c.RemoteAddrs {
		if p.IsSingleIP() {
			return true
		}
	}
	return false
}
