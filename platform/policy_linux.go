package platform

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// Network keeps the kernel's policy routing in step with the SPD: rules and tables of
// our own (plan_linux.go has their layout), nothing in the tables of others. Many
// policies cost a packet little more than one: see shape_linux.go.
//
// What rules cannot do, and what follows from it:
//
//   - The SPD has no notion of "inside" (RFC 4301 has it between two boundaries): with
//     10.1.0.0/24 === 0.0.0.0/0 as the only entry, also what one host of 10.1.0.0/24
//     sends to another through this router, and what the router itself answers from
//     there, goes into the tunnel. An entry before it that bypasses 10.1.0.0/24 ===
//     10.1.0.0/24 keeps the LAN as it is. Packets to addresses of this host are never
//     affected, nor is what a switch forwards without the router.
//   - What arrives in clear and ought to be protected is dropped where it would be
//     forwarded: whatever an entry selects with the ends exchanged, unless the tunnel's
//     device brought it. What is for an address of this host itself is not: the kernel
//     delivers it before any rule is asked. There the answer is protected, and only a
//     firewall can drop the question.
//   - ICMP types, OPAQUE ports and the ports 0 and 65535: see matchOf. What arrives in clear is then
//     dropped by protocol, too, between the networks of that entry, or, of OPAQUE ports,
//     if it shows none.
//   - Rules with ports do not see the fragments of a forwarded packet, unless the kernel's
//     connection tracking puts it together first, as it does on every router with a
//     stateful firewall. Without it all fragments of a protocol between two networks are
//     treated as if an entry that protects some of its ports protected all: on the way out
//     they go into the device, where they can be told apart, on the way in they are
//     dropped, unless an entry before it bypasses them whatever their ports. See
//     fragmentPlan.
//   - Strict reverse path filtering (rp_filter 1) on the outer interface drops ESP when
//     a policy protects what goes from this host's outer address to the peer's own.
//     Loose filtering (2), or none, lets it pass.
//   - Of IPv6, what this host sends to the remote selectors of an entry for virtual addresses
//     is dropped also from other sources of its own, unless that network is on one of its links:
//     see planStray.
//   - Addresses that the host gets later become sources of protected packets only with
//     the next Apply, and the routes of a device that was set down come back with it;
//     [WatchAddresses] tells when it is due.
type Network struct {
	mu    sync.Mutex
	nl    *Netlink
	seen  [2]map[uint32]bool // tables of groups that may have routes, by family; nil: any may
	inner map[string]int     // indexes of the devices inside tunnels, by name (device_linux.go)
}

// OpenNetwork connects to the kernel; it changes nothing.
func OpenNetwork() (*Network, error) {
	nl, err := OpenNetlink()
	if err != nil {
		return nil, err
	}
	return &Network{nl: nl}, nil
}

// Close closes the connection and leaves the routing as it is: fail-closed once the
// device is gone. Clear takes it back.
func (n *Network) Close() error { return n.nl.Close() }

// Apply makes the kernel route what the policies protect into the device, bypass what
// they bypass and drop what they discard, in their order, and touches no other traffic.
// It changes only what is not so already, additions first, so that no packet meets
// anything but the old or the new policies; what a killed process left counts as old.
// With "" for the device, or with one that is not there (which is an error as well),
// what must be protected is dropped.
func (n *Network) Apply(device string, policies []esp.Policy) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	index := 0
	var deviceErr error
	if device != "" {
		l, err := n.nl.LinkByName(device)
		deviceErr = err
		index = l.Index
	}
	p := &planner{policies: policies, tables: map[netip.Addr]uint32{}}
	if index != 0 {
		p.device = device
	}
	var plans []*familyPlan
	states := [2]familyState{{v6: false}, {v6: true}}
	for i := range states {
		st := &states[i]
		wanted := slices.ContainsFunc(policies, func(pol esp.Policy) bool { return hasFamily(pol, st.v6) })
		if err := n.load(st, wanted); err != nil {
			return err
		}
		for _, a := range st.addrs {
			p.hosts = append(p.hosts, a.Prefix.Addr())
			if st.v6 && !a.Prefix.IsSingleIP() && !slices.Contains(p.links, a.Prefix.Masked()) {
				p.links = append(p.links, a.Prefix.Masked())
			}
		}
	}
	// Everything is planned before anything is changed.
	for i := range states {
		st := &states[i]
		p.assign = st.assign
		f := &familyPlan{v6: st.v6}
		if st.present {
			var err error
			if f, err = p.plan(st.v6); err != nil {
				return err
			}
		}
		plans = append(plans, f)
	}
	var errs []error
	for i := range states {
		if states[i].present {
			errs = append(errs, n.applyFamily(&states[i], plans[i], p.tables, index))
		}
	}
	return errors.Join(append(errs, deviceErr)...)
}

func hasFamily(pol esp.Policy, v6 bool) bool {
	of := func(s esp.Selector) bool { return s.Start.Is6() == v6 }
	return slices.ContainsFunc(pol.LocalTS, of) && slices.ContainsFunc(pol.RemoteTS, of)
}

// familyState is what the kernel has of ours in one family.
type familyState struct {
	v6      bool
	present bool // the kernel has the family
	addrs   []Addr
	rules   []Rule  // with the members of groups
	routes  []Route // of all our tables
	used    map[uint32]bool
}

// load reads the state. A kernel without IPv6 has nothing that could go in clear, so
// that is an error only where a policy wants it.
func (n *Network) load(st *familyState, wanted bool) error {
	rules, err := n.nl.Rules(st.v6)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		if !wanted {
			return nil
		}
		if !st.v6 {
			err = &OpError{Op: "list", Object: "rules", Err: err, Hint: "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES)"}
		} else {
			err = &OpError{Op: "list", Object: "IPv6 rules", Err: err, Hint: "the kernel lacks IPv6 or its policy routing (CONFIG_IPV6_MULTIPLE_TABLES), but a policy is for IPv6"}
		}
		return err
	}
	if err != nil {
		return err
	}
	st.present = true
	st.used = map[uint32]bool{}
	if st.rules, st.routes, err = n.withRoutes(st.v6, rules); err != nil {
		return err
	}
	addrs, err := n.nl.Addrs(st.v6)
	if err != nil {
		return err
	}
	st.addrs = slices.DeleteFunc(addrs, func(a Addr) bool { return !a.usable() })
	return nil
}

// list reads our rules, with the members of groups, and the routes of our tables.
func (n *Network) list(v6 bool) ([]Rule, []Route, error) {
	rules, err := n.nl.Rules(v6)
	if err != nil {
		return nil, nil, err
	}
	return n.withRoutes(v6, rules)
}

// withRoutes reads what belongs to those of the rules that are ours.
func (n *Network) withRoutes(v6 bool, rules []Rule) ([]Rule, []Route, error) {
	rules = slices.DeleteFunc(rules, func(r Rule) bool { return !ours(r) })
	seen := &n.seen[familyIndex(v6)]
	first := *seen == nil
	if first {
		*seen = map[uint32]bool{}
	}
	var tables []uint32
	for t := uint32(tableFirst); t <= tableFirst+maxSources; t++ {
		tables = append(tables, t)
	}
	for _, r := range rules {
		if isHead(r) {
			(*seen)[r.Table] = true
		}
	}
	// Another process may have left any of them; after that nobody else makes some.
	for t := uint32(groupFirst); t <= groupLast; t++ {
		if first || (*seen)[t] {
			tables = append(tables, t)
		}
	}
	routes, err := n.nl.routesOf(v6, tables)
	if err != nil {
		if first {
			*seen = nil
		}
		return nil, nil, err
	}
	routes = slices.DeleteFunc(routes, func(r Route) bool { return r.Protocol != routeProtocol })
	for _, r := range routes {
		if isGroup(r.Table) {
			(*seen)[r.Table] = true
		}
	}
	return membersOf(rules, routes), routes, nil
}

func familyIndex(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func ours(r Rule) bool {
	return r.Protocol == routeProtocol && r.Priority >= prioMark && r.Priority <= prioEnd
}

// assign finds the table for a source: the one that it has in the kernel, else one that
// no other source has there, so that no rule in use changes its meaning.
func (st *familyState) assign(src netip.Addr) (uint32, error) {
	taken := func(t uint32) bool {
		return st.used[t] || slices.ContainsFunc(st.routes, func(r Route) bool { return r.Table == t && r.PrefSrc.IsValid() })
	}
	for _, r := range st.routes {
		if r.PrefSrc == src && r.Table > tableFirst && !isGroup(r.Table) && !st.used[r.Table] {
			st.used[r.Table] = true
			return r.Table, nil
		}
	}
	for t := uint32(tableFirst + 1); t <= tableFirst+maxSources; t++ {
		if !taken(t) {
			st.used[t] = true
			return t, nil
		}
	}
	return 0, &OpError{
		Op: "set", Object: "policies", Err: fmt.Errorf("this host's own packets need more than %d different source addresses", maxSources),
		Hint: "give the policies fewer different local selectors that hold addresses of this host",
	}
}

// applyFamily brings one family to its plan: first the routes, so that no rule leads
// into an empty table (which would mean: go on, in clear), then the rules and the members
// of groups, then what is no longer needed.
func (n *Network) applyFamily(st *familyState, f *familyPlan, tables map[netip.Addr]uint32, index int) error {
	add, del, err := ruleDiff(st.rules, f)
	if err != nil {
		return err
	}
	w := &familyRoutes{source: sourceOf(tables, f.v6), index: index}
	w.list = tableRoutes(f, w.source, index)
	rules, routes := st.rules, st.routes
	set, err := n.setMissing(routes, append(w.of(kept(rules, del)), w.list...))
	if err != nil {
		return err
	}
	if set {
		// What was there in its place is gone.
		if rules, routes, err = n.list(f.v6); err != nil {
			return err
		}
	}
	for pass := 0; len(add)+len(del) > 0; pass++ {
		if pass == maxPasses {
			return &OpError{Op: "set", Object: "routing rules", Err: errors.New("somebody else changes them all the time")}
		}
		if err := n.changeRules(add, del, routes, w, f.v6); err != nil {
			return err
		}
		if rules, routes, err = n.list(f.v6); err != nil {
			return err
		}
		if add, del, err = ruleDiff(rules, f); err != nil {
			return err
		}
	}
	want := map[Route]bool{}
	for _, r := range append(w.of(rules), w.list...) {
		want[r] = true
	}
	for _, r := range routes {
		if !want[r] {
			if err := n.nl.DeleteRoute(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// familyRoutes are the routes that a plan wants.
type familyRoutes struct {
	source map[uint32]netip.Addr // of each table
	index  int                   // of the device, or 0
	list   []Route               // of the tables that plain rules look up
}

// of returns the routes of those of the rules that are members of groups.
func (w *familyRoutes) of(rules []Rule) []Route {
	var list []Route
	for _, r := range rules {
		if r.Group != 0 {
			list = append(list, memberRoutes(r, w.source, w.index)...)
		}
	}
	return list
}

// kept returns the rules without those that are to be deleted next.
func kept(rules, del []Rule) []Rule {
	going := make(map[Rule]bool, len(del))
	for _, r := range del {
		going[r] = true
	}
	return slices.DeleteFunc(slices.Clone(rules), func(r Rule) bool { return going[r] || r.Priority == 0 })
}

// setMissing sets the routes that are not there, and tells whether there were any.
func (n *Network) setMissing(have, want []Route) (set bool, err error) {
	there := make(map[Route]bool, len(have))
	for _, r := range have {
		there[r] = true
	}
	for _, r := range want {
		if !there[r] {
			set = true
			if err := n.setRoute(r); err != nil {
				return set, err
			}
		}
	}
	return set, nil
}

func sourceOf(tables map[netip.Addr]uint32, v6 bool) map[uint32]netip.Addr {
	source := map[uint32]netip.Addr{}
	for src, t := range tables {
		if src.Is6() == v6 {
			source[t] = src
		}
	}
	return source
}

// maxPasses bounds how often the rules are compared; two or three passes are usual.
const maxPasses = 200

// changeRules adds, then deletes, in the given order.
func (n *Network) changeRules(add, del []Rule, routes []Route, w *familyRoutes, v6 bool) error {
	for _, r := range add {
		if r.Group != 0 {
			n.seen[familyIndex(v6)][r.Group] = true
			for _, t := range memberRoutes(r, w.source, w.index) {
				if err := n.setRoute(t); err != nil {
					return err
				}
			}
			continue
		}
		if err := n.nl.AddRule(r); err != nil {
			return ruleHint(r, err)
		}
	}
	if err := n.verify(add, v6); err != nil {
		return err
	}
	type dest struct {
		table uint32
		to    netip.Prefix
	}
	members := map[dest][]Route{}
	for _, t := range routes {
		members[dest{t.Table, t.Dst}] = append(members[dest{t.Table, t.Dst}], t)
	}
	for _, r := range del {
		if r.Group == 0 {
			if err := n.nl.DeleteRule(r); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			continue
		}
		// The route that counts goes last.
		list := members[dest{r.Group, r.To}]
		sort.SliceStable(list, func(i, j int) bool { return list[i].Metric > list[j].Metric })
		for _, t := range list {
			if err := n.nl.DeleteRoute(t); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// setRoute puts a route in place of the one with its metric. IPv6 routes of different
// types do not replace each other, so what was there is another route to it.
func (n *Network) setRoute(r Route) error {
	err := n.nl.ReplaceRoute(r)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// tableRoutes lists the routes of all tables that the plan's rules look up.
func tableRoutes(f *familyPlan, source map[uint32]netip.Addr, index int) []Route {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if f.v6 {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	var list []Route
	done := map[uint32]bool{}
	for _, run := range slices.Concat(f.in, f.leave, f.spd, f.own) {
		t := run.kind.table
		if run.kind.action != unix.FR_ACT_TO_TBL || done[t] {
			continue
		}
		done[t] = true
		unreachable := Route{Table: t, Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Dst: dst, Metric: unreachableMetric}
		if f.v6 {
			unreachable.Index = loopbackIndex // where the kernel hangs such routes of IPv6
		}
		list = append(list, unreachable)
		if index != 0 {
			list = append(list, Route{
				Table: t, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: dst,
				Index: index, PrefSrc: source[t], Metric: tableMetric,
			})
		}
	}
	return list
}

// loopbackIndex is lo's number in every network namespace.
const loopbackIndex = 1

// verify reads back what was added. A kernel that is too old ignores, in silence, the
// attributes that it does not know, and such a rule matches far too much.
func (n *Network) verify(added []Rule, v6 bool) error {
	added = slices.DeleteFunc(slices.Clone(added), func(r Rule) bool { return r.Group != 0 })
	if len(added) == 0 {
		return nil
	}
	have, err := n.nl.Rules(v6)
	if err != nil {
		return err
	}
	present := make(map[Rule]bool, len(have))
	for _, r := range have {
		present[r] = true
	}
	for i, r := range added {
		if present[r] {
			continue
		}
		for _, r := range slices.Backward(added[:i+1]) {
			_ = n.nl.DeleteRule(r)
		}
		return &OpError{Op: "add rule", Object: r.String(), Err: errors.New("the kernel took it but does not have it"),
			Hint: "protocols, ports and owners of routing rules need Linux 4.17 or newer"}
	}
	return nil
}

func ruleHint(r Rule, err error) error {
	var op *OpError
	if errors.As(err, &op) && errors.Is(err, unix.EINVAL) && (r.IPProto != 0 || r.SPort != PortRange{} || r.DPort != PortRange{}) {
		op.Hint = "rules for protocols and ports need Linux 4.17 or newer"
	}
	return err
}

// Clear takes back everything that Apply set, now or in a process that was killed. What
// was protected is routed as if there were no tunnel from then on.
func (n *Network) Clear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, v6 := range []bool{false, true} {
		st := familyState{v6: v6}
		if err := n.load(&st, false); err != nil {
			errs = append(errs, err)
			continue
		}
		if st.present {
			errs = append(errs, n.applyFamily(&st, &familyPlan{v6: v6}, nil, 0))
		}
	}
	return errors.Join(errs...)
}

// Addresses lists the host's addresses of both families, but for those of IPv6 that the
// kernel still looks for a second owner of, and those of devices inside tunnels.
func (n *Network) Addresses() ([]netip.Addr, error) {
	var list []netip.Addr
	for _, v6 := range []bool{false, true} {
		addrs, err := n.nl.Addrs(v6)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 && !n.isInner(a.Index) {
				list = append(list, a.Prefix.Addr())
			}
		}
	}
	return list, nil
}

// Source returns the local address that the route to remote leaves from, the tunnel's
// own rules aside. The error wraps ENETUNREACH or EHOSTUNREACH if there is no route, or only
// one into a device that is inside a tunnel.
func (n *Network) Source(remote netip.Addr) (netip.Addr, error) {
	return n.nl.routeSource(remote.Unmap(), Mark, n.isInner)
}
