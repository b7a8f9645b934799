package platform

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Route is an entry of a routing table. Values can be compared: two are the same route
// when all fields are.
type Route struct {
	Table    uint32
	Type     uint8        // RTN_UNICAST, RTN_UNREACHABLE, RTN_BLACKHOLE
	Protocol uint8        // who made it: RTPROT_*
	Dst      netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	Gateway  netip.Addr   // zero value: none
	PrefSrc  netip.Addr   // the source that the host's own packets get; zero value: the kernel chooses
	Index    int          // the outgoing interface, 0 for none
	Metric   uint32
	Onlink   bool // the gateway is taken to be on the interface's link
}

// String names the route as ip(8) does.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Dst.Bits() == 0 {
		s = "default"
	}
	switch r.Type {
	case unix.RTN_UNREACHABLE:
		s = "unreachable " + s
	case unix.RTN_BLACKHOLE:
		s = "blackhole " + s
	}
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	if r.Index != 0 {
		s += fmt.Sprintf(" dev %d", r.Index)
	}
	if r.PrefSrc.IsValid() {
		s += " src " + r.PrefSrc.String()
	}
	return s + fmt.Sprintf(" table %d", r.Table)
}

// tableByte is the table for the header's octet; the attribute has it in full.
func tableByte(table uint32) byte {
	if table < 256 {
		return byte(table)
	}
	return unix.RT_TABLE_UNSPEC
}

func routeRequest(typ, flags uint16, t Route) *request {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	switch {
	case typ == unix.RTM_DELROUTE:
		scope = unix.RT_SCOPE_NOWHERE // any
	case t.Type == unix.RTN_UNICAST && !t.Gateway.IsValid() && t.Dst.Addr().Is4():
		scope = unix.RT_SCOPE_LINK
	}
	var rtFlags uint32
	if t.Onlink {
		rtFlags = unix.RTNH_F_ONLINK
	}
	r := newRequest(typ, flags).
		raw(family(t.Dst.Addr().Is6()), byte(t.Dst.Bits()), 0, 0, tableByte(t.Table), t.Protocol, scope, t.Type).
		u32(rtFlags)
	if t.Dst.Bits() > 0 {
		r.attrAddr(unix.RTA_DST, t.Dst.Masked().Addr())
	}
	r.attrU32(unix.RTA_TABLE, t.Table)
	if t.Metric != 0 {
		r.attrU32(unix.RTA_PRIORITY, t.Metric)
	}
	if t.Gateway.IsValid() {
		r.attrAddr(unix.RTA_GATEWAY, t.Gateway)
	}
	if t.PrefSrc.IsValid() {
		r.attrAddr(unix.RTA_PREFSRC, t.PrefSrc)
	}
	if t.Index != 0 {
		r.attrU32(unix.RTA_OIF, uint32(t.Index))
	}
	return r
}

// AddRoute adds a route; one that is there already gives EEXIST.
func (c *Netlink) AddRoute(t Route) error {
	return c.do(routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, t), "add route", t.String())
}

// ReplaceRoute adds a route in place of the one with the same destination and metric in
// the table, if there is one.
func (c *Netlink) ReplaceRoute(t Route) error {
	return c.do(routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, t), "set route", t.String())
}

// DeleteRoute takes a route away; the error wraps ESRCH if it is not there.
func (c *Netlink) DeleteRoute(t Route) error {
	return c.do(routeRequest(unix.RTM_DELROUTE, 0, t), "delete route", t.String())
}

// Routes lists one table of one family.
func (c *Netlink) Routes(v6 bool, table uint32) ([]Route, error) {
	return c.listRoutes(v6, table, func(t uint32) bool { return t == table })
}

// routesOf lists several tables of one family.
func (c *Netlink) routesOf(v6 bool, tables []uint32) ([]Route, error) {
	if !c.strict {
		// The kernel lists all tables, whichever was asked for.
		return c.listRoutes(v6, 0, func(t uint32) bool { return slices.Contains(tables, t) })
	}
	var list []Route
	for _, t := range tables {
		routes, err := c.Routes(v6, t)
		if err != nil {
			return nil, err
		}
		list = append(list, routes...)
	}
	return list, nil
}

// listRoutes lists a table, or all with 0, as far as wanted says.
func (c *Netlink) listRoutes(v6 bool, table uint32, wanted func(uint32) bool) ([]Route, error) {
	r := newRequest(unix.RTM_GETROUTE, 0).raw(family(v6), 0, 0, 0, tableByte(table), 0, 0, 0).u32(0)
	if table != 0 {
		r.attrU32(unix.RTA_TABLE, table)
	}
	ms, err := c.dump(r, "routes")
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // the kernel has no such table yet
	}
	if err != nil {
		return nil, err
	}
	var list []Route
	for _, m := range ms {
		if m.typ != unix.RTM_NEWROUTE || len(m.body) == 0 || m.body[0] != family(v6) {
			continue
		}
		t, err := parseRoute(m.body)
		if err != nil {
			return nil, opError("list", "routes", err)
		}
		if wanted(t.Table) { // old kernels do not filter
			list = append(list, t)
		}
	}
	return list, nil
}

func parseRoute(b []byte) (Route, error) {
	if len(b) < unix.SizeofRtMsg {
		return Route{}, errNetlinkShort
	}
	bits := b[1]
	t := Route{Table: uint32(b[4]), Protocol: b[5], Type: b[7], Onlink: native.Uint32(b[8:])&unix.RTNH_F_ONLINK != 0}
	switch b[0] {
	case unix.AF_INET:
		t.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	case unix.AF_INET6:
		t.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	default:
		return t, errNetlinkShort
	}
	a := attrs{rest: b[unix.SizeofRtMsg:]}
	for a.next() {
		switch a.typ {
		case unix.RTA_DST:
			t.Dst = a.prefix(bits)
		case unix.RTA_TABLE:
			t.Table = a.u32()
		case unix.RTA_PRIORITY:
			t.Metric = a.u32()
		case unix.RTA_GATEWAY:
			t.Gateway = a.addr()
		case unix.RTA_PREFSRC:
			t.PrefSrc = a.addr()
		case unix.RTA_OIF:
			t.Index = int(int32(a.u32()))
		}
	}
	return t, a.err
}

// errLinkDown is what a route is worth whose link has no carrier: the kernel goes on to
// use it for IPv4 unless something takes it away.
var errLinkDown = errors.New("the link that it leads to is down")

// errInner is what a route to a peer is worth that leads into the tunnel.
var errInner = fmt.Errorf("%w: the route leads into a device inside a tunnel; give the address a route of its own", unix.EHOSTUNREACH)

// RouteSource asks the kernel which source address a packet to dst with that mark would
// leave from. A route over a link without carrier is an error.
func (c *Netlink) RouteSource(dst netip.Addr, mark uint32) (netip.Addr, error) {
	return c.routeSource(dst, mark, func(int) bool { return false })
}

// routeSource is RouteSource that takes no route over one of the interfaces that refuse names
// by their indexes.
func (c *Netlink) routeSource(dst netip.Addr, mark uint32, refuse func(index int) bool) (netip.Addr, error) {
	t, err := c.routeTo(dst, mark)
	if err == nil && refuse(t.Index) {
		err = errInner
	}
	if err == nil && !t.PrefSrc.IsValid() {
		err = errors.New("the route gives no source address")
	}
	if err == nil && t.Index != 0 {
		// Of a link that cannot be looked up nothing bad is known.
		if l, lerr := c.LinkByIndex(t.Index); lerr == nil && !l.connected() {
			err = errLinkDown
		}
	}
	if err != nil {
		return netip.Addr{}, opError("look up route to", dst.String(), err)
	}
	return t.PrefSrc, nil
}

// routeTo asks the kernel which route a packet to dst with that mark would take.
func (c *Netlink) routeTo(dst netip.Addr, mark uint32) (Route, error) {
	r := newRequest(unix.RTM_GETROUTE, 0).
		raw(family(dst.Is6()), byte(dst.BitLen()), 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, 0).u32(0)
	r.attrAddr(unix.RTA_DST, dst.WithZone(""))
	if mark != 0 {
		r.attrU32(unix.RTA_MARK, mark)
	}
	m, err := c.get(r, "look up route to", dst.String())
	if err != nil {
		return Route{}, err
	}
	return parseRoute(m.body)
}
