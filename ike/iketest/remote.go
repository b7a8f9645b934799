package iketest

import (
	"net/netip"
	"slices"

	"postern/ike"
)

// remote does what the machine says about virtual addresses.
func (h *Host) remote(o *ike.Output) {
	switch o.Kind {
	case ike.OutAssign:
		a := o.Assigned
		if was := h.Assigned[a.Conn]; was != nil && slices.Equal(was.Addrs, a.Addrs) && slices.Equal(was.DNS, a.DNS) {
			h.sim.Fail("%s is told twice that %s has %v", h.Name, a.Conn, a.Addrs)
		}
		if h.Assigned == nil {
			h.Assigned = map[string]*ike.Assigned{}
		}
		h.Assigned[a.Conn] = a
	case ike.OutUnassign:
		if h.Assigned[o.Name] == nil {
			h.sim.Fail("%s takes addresses of %s away that it does not have", h.Name, o.Name)
		}
		delete(h.Assigned, o.Name)
	case ike.OutLeases:
		h.Kept = h.Kept[:0]
		online := map[netip.Addr]ike.ID{}
		h.M.Leases(func(l ike.Lease) bool {
			h.Kept = append(h.Kept, l)
			if _, twice := online[l.Addr]; twice {
				h.sim.Fail("%s has two leases of %v", h.Name, l.Addr)
			}
			if l.Online {
				online[l.Addr] = l.ID
			}
			return true
		})
		h.M.List(func(sa *ike.SAInfo) bool {
			for _, a := range sa.RemoteVIPs {
				if online[a] != sa.RemoteID {
					h.sim.Fail("%s: the IKE SA #%d of %v has %v, which is leased to %v", h.Name, sa.Unique, sa.RemoteID, a, online[a])
				}
			}
			return true
		})
	}
}
