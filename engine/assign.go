package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"postern/engine/config"
	"postern/engine/log"
	"postern/engine/vici"
	"postern/esp"
	"postern/ike"
)

// What a gateway assigns to us (RFC 7296 section 2.19) is put in place on this system and taken
// away again:
//
//   - The addresses go to the TUN device whose children have them as local selectors, and are no
//     way to a peer from then on (see Network.SetDevice).
//   - The policies of these children are for packets from the addresses. A packet whose source
//     is yet to be chosen gets the address as its source on its way into the device. While there
//     is no address such packets are dropped, and so are those from an address of before, which
//     programs may still have: nothing that the remote selectors name leaves in clear, except from
//     a source that a program has chosen itself.
//   - The name servers are handed over to who manages them here (dns.go).
//
// What was put in place is noted in the state directory before it is, so that the next start
// takes away what this process could not: a TUN device usually goes with its process, but not
// one that somebody else has made.

// assignments is what holds at present. It belongs to the IKE loop.
type assignments struct {
	of    map[string]*assignment // by connection
	hold  bool                   // a reload is under way: settle when it is done
	stale bool                   // and there is something to settle
	main  []netip.Prefix         // that the TUN device of all has been given
	kept  string                 // what the state directory has
	dns   dnsTeller
}

// assignment is what the gateway of a connection has assigned.
type assignment struct {
	is   *ike.Assigned // nil: nothing, now
	last []netip.Addr  // addresses that do not hold any more, the latest first
	dns  dnsChoice
}

// lastAddresses bounds assignment.last: programs that still have an older address are lost.
const lastAddresses = 4

// stateAssigned is the name of the note of what was put in place.
const stateAssigned = "assigned"

// maxKept bounds that note. What goes beyond it stays if the process is killed.
const maxKept = 4000

// virtual returns the local addresses of a connection's policies: see config.SPDOf.
func (s *assignments) virtual(conn string) (list []netip.Addr) {
	st := s.of[conn]
	if st != nil && st.is != nil {
		list = slices.Clone(st.is.Addrs)
	}
	// What has no address yet comes before what has none any more: that may still be on the device.
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if !slices.ContainsFunc(list, func(a netip.Addr) bool { return a.Is4() == any.Is4() }) {
			list = append(list, any)
		}
	}
	if st != nil {
		list = append(list, st.last...)
	}
	return list
}

// assign puts in place what a gateway has assigned.
func (e *Engine) assign(a *ike.Assigned) {
	s := &e.loop.assigned
	if s.of == nil {
		s.of = map[string]*assignment{}
	}
	st := s.of[a.Conn]
	if st == nil {
		st = new(assignment)
		s.of[a.Conn] = st
	}
	was := st.is
	st.leave(a.Addrs)
	st.is = a
	e.settle()
	if was != nil && slices.Equal(was.Addrs, a.Addrs) && slices.Equal(was.DNS, a.DNS) && slices.Equal(was.Domains, a.Domains) {
		return
	}
	f := []log.Field{log.Str("conn", a.Conn), log.Str("addresses", join(a.Addrs))}
	add := func(key, v string) {
		if v != "" {
			f = append(f, log.Str(key, v))
		}
	}
	add("dns", join(st.dns.servers))
	add("domains", strings.Join(st.dns.domains, " "))
	add("networks", join(a.Subnets))
	e.o.Log.Log(log.Kernel, log.Info, "what the gateway has assigned is in place", f...)
	st.dns.report(e, a)
}

// leave notes the addresses that hold no more when those of now do.
func (st *assignment) leave(now []netip.Addr) {
	var list []netip.Addr
	if st.is != nil {
		list = append(list, st.is.Addrs...)
	}
	for _, a := range st.last {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	list = slices.DeleteFunc(list, func(a netip.Addr) bool { return slices.Contains(now, a) })
	st.last = list[:min(len(list), lastAddresses)]
}

// unassign takes away what was assigned to a connection.
func (e *Engine) unassign(conn string) {
	st := e.loop.assigned.of[conn]
	if st == nil || st.is == nil {
		return
	}
	st.leave(nil)
	st.is = nil
	e.settle()
	e.o.Log.Log(log.Kernel, log.Info, "the addresses that the gateway had assigned are taken away", log.Str("conn", conn))
}

// settle brings devices, policies and name servers in line with what holds. Addresses come
// before the policies that are for them, and go after these.
func (e *Engine) settle() {
	s := &e.loop.assigned
	if s.hold {
		s.stale = true
		return
	}
	s.stale = false
	for conn, st := range s.of {
		// A connection that is gone has no policies that the addresses of before could be for.
		if st.is == nil && e.cfg.Conn(conn) == nil {
			delete(s.of, conn)
		}
	}
	e.keepAssigned()
	e.placeAddresses(true)
	e.readdress()
	if e.placeAddresses(false) {
		e.loop.apply()
	}
	s.choose(e)
	s.dns.tell(s.wish(e.cfg, e.loop.device))
}

// holdAssigned has what is assigned wait for the end of a reload, which is what it returns: it
// must not be judged by a configuration that is about to go.
func (e *Engine) holdAssigned() (end func()) {
	s := &e.loop.assigned
	s.hold = true
	return func() {
		s.hold = false
		if s.stale || len(s.of) > 0 {
			e.settle()
		}
	}
}

// placeAddresses gives each device its addresses; with union it keeps those that it has. It tells
// whether any was taken away.
func (e *Engine) placeAddresses(union bool) (removed bool) {
	l := e.loop
	place := func(device string, want, had []netip.Prefix, set func([]netip.Prefix) error) {
		gone := slices.ContainsFunc(had, func(p netip.Prefix) bool { return !slices.Contains(want, p) })
		if union {
			for _, p := range had {
				if !slices.Contains(want, p) {
					want = append(want, p)
				}
			}
		}
		if slices.Equal(want, had) {
			return
		}
		removed = removed || gone && !union
		if err := set(want); err != nil {
			l.log.Log(log.Kernel, log.Error, "a device could not be given the addresses that a gateway has assigned", log.Str("device", device), log.Err(err))
		}
	}
	place(l.device, e.virtualOn(""), l.assigned.main, func(want []netip.Prefix) error {
		err := l.net.SetDevice(l.device, want, l.assigned.main)
		l.assigned.main = want
		return err
	})
	for _, d := range e.cfg.Devices() {
		if v := l.devices[d.Name]; v != nil && v.tun.Load() != nil {
			place(d.Name, slices.Concat(d.Addrs, e.virtualOn(d.Name)), v.addrs, func(want []netip.Prefix) error {
				err := l.net.SetDevice(d.Name, want, v.addrs)
				v.addrs = want
				return err
			})
		}
	}
	return removed
}

// virtualOn returns the assigned addresses that belong on the device of that name; "": the one of
// all.
func (e *Engine) virtualOn(device string) (list []netip.Prefix) {
	for _, conn := range e.cfg.IKE.Conns { // in a fixed order
		st := e.loop.assigned.of[conn.Name]
		if st == nil || st.is == nil || !on(conn, device) {
			continue
		}
		for _, a := range st.is.Addrs {
			if p := netip.PrefixFrom(a, a.BitLen()); !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	return list
}

// on tells whether assigned addresses of a connection belong on a device: on those of its
// children that have them as local selectors, or, if there are none, of the first child.
func on(conn *ike.Conn, device string) bool {
	any := false
	for _, ch := range conn.Children {
		if slices.ContainsFunc(ch.LocalTS, func(ts ike.TS) bool { return ts.Dynamic }) {
			if any = true; ch.Interface == device {
				return true
			}
		}
	}
	return !any && (len(conn.Children) == 0 && device == "" || len(conn.Children) > 0 && conn.Children[0].Interface == device)
}

// keepAssigned notes what is about to be put in place, unless that is noted already.
func (e *Engine) keepAssigned() {
	var lines []string
	for _, device := range append([]string{""}, deviceNames(e.cfg)...) {
		name := device
		if name == "" {
			name = e.loop.device
		}
		for _, p := range e.virtualOn(device) {
			lines = append(lines, "addr "+name+" "+p.String())
		}
	}
	if d := &e.cfg.Daemon; len(lines) > 0 && d.DNS != config.DNSNone {
		lines = append(lines, "dns "+d.DNS.String()+" "+e.loop.device+" "+d.DNSFile)
	}
	e.noteAssigned(lines)
}

// noteAssigned adds lines to the note. What stands in it and is not there any more does no harm,
// and flash memory wears out by writing.
func (e *Engine) noteAssigned(lines []string) {
	s := &e.loop.assigned
	all := strings.Split(strings.TrimSuffix(s.kept, "\n"), "\n")
	if !slices.ContainsFunc(lines, func(line string) bool { return !slices.Contains(all, line) }) {
		return
	}
	text := strings.Join(lines, "\n") + "\n"
	for _, line := range all {
		if line != "" && !slices.Contains(lines, line) && len(text)+len(line) < maxKept {
			text += line + "\n"
		}
	}
	s.kept = text[:strings.LastIndexByte(text[:min(len(text), maxKept)], '\n')+1]
	e.keep.store(stateAssigned, []byte(s.kept))
}

func deviceNames(cfg *config.Config) (list []string) {
	for _, d := range cfg.Devices() {
		list = append(list, d.Name)
	}
	return list
}

// cleanAssigned takes away what a process that was killed has left. The TUN devices are open.
func (e *Engine) cleanAssigned() {
	s := &e.loop.assigned
	s.dns.set, s.dns.log = e.o.OS.SetDNS, e.o.Log
	had := map[string][]netip.Prefix{}
	note := string(e.keep.load(stateAssigned))
	for line := range strings.Lines(note) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, rest, _ := strings.Cut(rest, " ")
		switch kind {
		case "addr":
			if p, err := netip.ParsePrefix(rest); err == nil {
				had[name] = append(had[name], p)
			}
		case "dns":
			device, file, _ := strings.Cut(rest, " ")
			s.dns.forget(name, file, device)
		}
	}
	for device, list := range had {
		if err := e.takeBack(device, list); err != nil && !errors.Is(err, syscall.ENODEV) {
			e.o.Log.Log(log.Kernel, log.Warn, "addresses of the run before could not be taken away", log.Str("device", device), log.Err(err))
		}
	}
	// Also without a note, since a state directory is not everywhere.
	if d := &e.cfg.Daemon; d.DNS != config.DNSNone {
		s.dns.forget(d.DNS.String(), d.DNSFile, e.loop.device)
	}
	e.dropNote(note)
}

// dropAssigned takes away what is left at the end.
func (e *Engine) dropAssigned() error {
	s := &e.loop.assigned
	for _, st := range s.of {
		st.is = nil
	}
	e.placeAddresses(false)
	s.dns.stop(dnsWish{how: e.cfg.Daemon.DNS, file: e.cfg.Daemon.DNSFile, device: e.loop.device})
	e.dropNote(s.kept)
	return nil
}

// takeBack takes addresses of a run before away from a device, which may be nobody's now.
func (e *Engine) takeBack(device string, had []netip.Prefix) error {
	var keep []netip.Prefix
	v := e.loop.devices[device]
	if v != nil {
		keep = v.addrs
	}
	err := e.o.OS.Network.SetDevice(device, keep, had)
	if v == nil && device != e.loop.device {
		e.o.OS.Network.ForgetDevice(device)
	}
	return err
}

// dropNote empties the note.
func (e *Engine) dropNote(was string) {
	if was != "" {
		e.keep.store(stateAssigned, nil)
	}
	e.loop.assigned.kept = ""
}

// assignedTo returns what is assigned to a connection, or nil.
func (l *ikeLoop) assignedTo(conn string) *assignment {
	if st := l.assigned.of[conn]; st != nil && st.is != nil {
		return st
	}
	return nil
}

// join writes what has a String with blanks between.
func join[T fmt.Stringer](list []T) string { return strings.Join(vici.Texts(list), " ") }

// protects tells whether an entry of a connection protects what is sent to a port there by UDP.
func (l *ikeLoop) protects(conn string, to netip.Addr, port uint16) bool {
	want := esp.Selector{Start: to, End: to, Proto: esp.ProtoUDP, StartPort: port, EndPort: port}
	return slices.ContainsFunc(l.d.spd.spec, func(sp policySpec) bool {
		return sp.conn == conn && sp.Action == esp.Protect && slices.ContainsFunc(sp.RemoteTS, func(s esp.Selector) bool { return s.Contains(want) })
	})
}

// everything tells whether an entry of a connection protects all of an address family.
func (l *ikeLoop) everything(conn string) bool {
	return slices.ContainsFunc(l.d.spd.spec, func(sp policySpec) bool {
		return sp.conn == conn && sp.Action == esp.Protect && slices.ContainsFunc(sp.RemoteTS, func(s esp.Selector) bool {
			return s.Contains(esp.SelectorFromPrefix(netip.PrefixFrom(netip.IPv4Unspecified(), 0))) ||
				s.Contains(esp.SelectorFromPrefix(netip.PrefixFrom(netip.IPv6Unspecified(), 0)))
		})
	})
}
