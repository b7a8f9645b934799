package config

import (
	"cmp"
	"net/netip"
	"slices"

	"postern/esp"
	"postern/ike"
)

// Entry is one entry of the SPD, in its order.
type Entry struct {
	esp.Policy
	// Conn and Child name whose SAs carry what is protected (both empty: any SA whose
	// selectors fit), or the child that is a shunt.
	Conn, Child string
	// Carrier is that child; nil for a shunt, for any SA, and where nothing is protected.
	Carrier *ike.Child
	// Classes of packets for which Carrier has SAs of their own; nil: none.
	Classes *Classes
	// Dynamic: the selectors, or more of them, follow from the CHILD SA.
	Dynamic bool
	// Device is the child's own TUN device: the entry is for what is routed into that, and
	// for nothing else. "": for everything.
	Device string
	// Manual: Child is a manual SA, which has no Carrier.
	Manual bool
	// Loaded: a control client has loaded the connection.
	Loaded bool

	// Parked: a control client has loaded the shunt without a start_action; as with strongSwan it
	// is nothing until somebody installs it by hand.
	Parked bool

	at       pos
	priority uint32
}

// SPD returns the entries in which the first match decides (RFC 4301 section 4.4.1): those of
// [policies], then children with mode "pass", then the other children and the manual SAs that no
// entry of [policies] names, then children with mode "drop". Source is what Policies wants.
func (c *Config) SPD(source func(remote netip.Addr) (netip.Addr, error)) []Entry {
	return c.SPDOf(source, nil)
}

// SPDOf is SPD with the virtual addresses of connections that have asked a gateway for some:
// dynamic local selectors of theirs become virtual(name of the connection). An unspecified address
// there means that, in that family, there is none yet: it stands for packets whose source is yet
// to be chosen. With nil such entries have no selectors.
func (c *Config) SPDOf(source func(remote netip.Addr) (netip.Addr, error), virtual func(conn string) []netip.Addr) []Entry {
	type key struct{ conn, child string }
	children := map[key]Entry{}
	var behind []Entry
	policies := c.policies(source, virtual)
	i := 0
	for _, conn := range c.IKE.Conns {
		for _, child := range conn.Children {
			e := Entry{Policy: policies[i], Conn: conn.Name, Child: child.Name, Carrier: child, Device: child.Interface, Classes: c.marks[i].classes, at: c.marks[i].child, Loaded: c.marks[i].child.loaded(), priority: c.marks[i].priority,
				Dynamic: slices.ContainsFunc(child.LocalTS, isDynamic) || slices.ContainsFunc(child.RemoteTS, isDynamic)}
			children[key{conn.Name, child.Name}] = e
			behind = append(behind, e)
			i++
		}
	}
	for _, e := range c.manualEntries() {
		children[key{e.Conn, e.Child}] = e
		behind = append(behind, e)
	}
	var out []Entry
	placed := map[key]bool{}
	for i := range c.table {
		t := &c.table[i]
		k := key{t.conn, t.child}
		e, ok := children[k]
		if !ok {
			e = Entry{Policy: esp.Policy{LocalTS: anyAddress(), RemoteTS: anyAddress()}}
		}
		placed[k] = ok
		if ok && !e.Manual && (t.local != nil || t.remote != nil) {
			e.Dynamic = false // checkCarrier has seen to it that the other side is known
			e.LocalTS, e.RemoteTS = resolve(e.Carrier.LocalTS, nil), resolve(e.Carrier.RemoteTS, nil)
		}
		if t.local != nil {
			e.LocalTS, e.Own, e.Virtual = t.local, false, false
		}
		if t.remote != nil {
			e.RemoteTS = t.remote
		}
		e.Name, e.Action, e.Dir, e.at = t.name, t.action, t.dir, t.at
		out = append(out, e)
	}
	out = c.appendShunts(out, esp.Bypass)
	for _, e := range behind {
		if !placed[key{e.Conn, e.Child}] {
			out = append(out, e)
		}
	}
	out = c.appendShunts(out, esp.Discard)
	if slices.ContainsFunc(out, func(e Entry) bool { return e.priority > 0 }) {
		slices.SortStableFunc(out[len(c.table):], func(a, b Entry) int { return cmp.Compare(a.rank(), b.rank()) })
	}
	return out
}

// rank is the place of an entry whose priority somebody may have fixed. strongSwan computes
// what it is else from the selectors, between 100000 and 400000, more or less; people fix it below that
// for what is to come first.
func (e *Entry) rank() uint32 {
	if e.priority == 0 {
		return 200_000
	}
	return e.priority
}

func (c *Config) appendShunts(list []Entry, action esp.Action) []Entry {
	for _, s := range c.shunts {
		if s.action == action {
			list = append(list, Entry{
				Policy: esp.Policy{Action: s.action, LocalTS: s.local, RemoteTS: s.remote},
				Conn:   s.conn, Child: s.child, at: s.at, priority: s.priority, Parked: s.parked,
			})
		}
	}
	return list
}

// entries returns how many entries the SPD has, without those that CHILD SAs add.
func (c *Config) entries() int {
	placed := map[[2]string]bool{}
	for i := range c.table {
		if t := &c.table[i]; t.child != "" {
			placed[[2]string{t.conn, t.child}] = true
		}
	}
	return len(c.table) + len(c.shunts) + len(c.marks) + len(c.Manual) - len(placed)
}

// Decide returns the index of the first entry that a flow matches, or -1. in says that the
// packet comes in. Entries with a device of their own do not count: the system's routes decide
// about what goes there.
func Decide(list []Entry, f *esp.Flow, in bool) int {
	return slices.IndexFunc(list, func(e Entry) bool {
		way := e.Dir.Out()
		if in {
			way = e.Dir.In()
		}
		return way && e.Device == "" && esp.MatchFlow(e.LocalTS, e.RemoteTS, f)
	})
}

// Policies returns what the children protect: one PROTECT policy for each child, the
// connections and the children of each in the order of the file. So Policies()[i] belongs to
// the i-th child.
//
// A dynamic selector on the peer's side becomes the addresses in remote_addrs, if these
// are single ones (a name is none); on our side, those in local_addrs, or else what source returns as
// the address from which packets to the peer leave. While no way leads to the peer, what is between
// the two hosts alone is from any address, and what goes elsewhere from the unspecified one, which
// with Own stands for what is yet to be chosen: or packets would leave in clear from the moment on
// when there is a way again, until postern has noticed it. Source may be nil. Where an address
// is not known until the peer calls, the policy has no selectors and matches nothing;
// it is the CHILD SA that has them then.
func (c *Config) Policies(source func(remote netip.Addr) (netip.Addr, error)) []esp.Policy {
	return c.policies(source, nil)
}

func (c *Config) policies(source func(remote netip.Addr) (netip.Addr, error), virtual func(conn string) []netip.Addr) []esp.Policy {
	var out []esp.Policy
	for _, conn := range c.IKE.Conns {
		remote, known := hosts(conn)
		local := conn.LocalAddrs
		var lost []netip.Addr
		if len(local) == 0 && known && source != nil {
			for _, r := range remote {
				if a, err := source(r); err == nil && a.IsValid() {
					local = append(local, a)
				} else {
					lost = append(lost, anyOf(r))
				}
			}
		}
		if len(conn.Pools) > 0 {
			remote = nil // dynamic selectors of the peer are what it gets of them
		}
		for _, child := range conn.Children {
			ours := local
			if !slices.ContainsFunc(child.RemoteTS, isFixed) {
				ours = slices.Concat(local, lost)
			}
			p := esp.Policy{
				Action:   esp.Protect,
				Own:      len(conn.LocalAddrs) == 0 && !slices.ContainsFunc(child.LocalTS, isFixed),
				LocalTS:  resolve(child.LocalTS, ours),
				RemoteTS: resolve(child.RemoteTS, remote),
			}
			if p.Own && len(p.LocalTS) == 0 && len(lost) > 0 {
				p.LocalTS = resolve(child.LocalTS, lost)
				for i := range p.LocalTS {
					p.LocalTS[i].End = p.LocalTS[i].Start
				}
			}
			if isVirtual(conn, child) {
				p.Own, p.Virtual, p.LocalTS = true, true, nil
				if virtual != nil {
					p.LocalTS = single(child.LocalTS, virtual(conn.Name))
				}
			}
			if len(p.LocalTS) == 0 || len(p.RemoteTS) == 0 {
				p.LocalTS, p.RemoteTS = nil, nil
			}
			out = append(out, p)
		}
	}
	return out
}

// resolve puts addresses into dynamic selectors, an unspecified one for all of its family; nil if
// there are none to put in.
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
			if a.IsUnspecified() {
				s.End = esp.SelectorFromPrefix(netip.PrefixFrom(a, 0)).End
			}
			out = append(out, s)
		}
	}
	return out
}

// isVirtual tells whether the gateway assigns the addresses of a child's local selectors.
func isVirtual(conn *ike.Conn, child *ike.Child) bool {
	return len(conn.VIPs) > 0 && slices.ContainsFunc(child.LocalTS, isDynamic)
}

// single is resolve in which an unspecified address stays one.
func single(list []ike.TS, addrs []netip.Addr) []esp.Selector {
	var out []esp.Selector
	for _, ts := range list {
		if !ts.Dynamic {
			out = append(out, ts.Selector)
			continue
		}
		for _, a := range addrs {
			s := ts.Selector
			s.Start, s.End = a, a
			out = append(out, s)
		}
	}
	return out
}

func isFixed(ts ike.TS) bool { return !ts.Dynamic }

// anyOf stands for any address of the family of a.
func anyOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
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
