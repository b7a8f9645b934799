package ike

import (
	"net/netip"
	"slices"
	"time"

	"postern/esp"
)

// What follows when our addresses or routes change, with MOBIKE and without: which paths
// there are, which one is best, and what to do while there is none.

// strandedPoll is how often a path is looked for while there is none. The command that
// tells of changed addresses is faster, where the system has it.
const strandedPoll = time.Second

// owns tells whether an address is ours, as far as is known.
func (m *Machine) owns(a netip.Addr) bool {
	list, known := m.env.Addresses()
	return !known || a.IsLoopback() || slices.Contains(list, a)
}

// passable tells whether a datagram of an IKE SA along p would leave this host.
func (m *Machine) passable(sa *ikeSA, p Path) bool {
	_, ok := m.env.Source(p.Remote.Addr())
	return ok && (p.Local.Addr() == sa.mobike.unlisted || m.owns(p.Local.Addr()))
}

// noteLocal remembers, when an IKE SA is established, if it came about from an address that
// no interface has: a host can be told to take a whole prefix for its own.
func (m *Machine) noteLocal(sa *ikeSA) {
	if a := sa.path.Local.Addr(); len(sa.conn.LocalAddrs) > 0 && !m.owns(a) {
		sa.mobike.unlisted = a
	}
}

// locals returns our addresses from which a connection may reach remote, the one that the
// route says first. unlisted counts as ours.
func (m *Machine) locals(c *Conn, unlisted, remote netip.Addr) []netip.Addr {
	src, ok := m.env.Source(remote)
	if !ok {
		return nil
	}
	src = src.Unmap()
	if len(c.LocalAddrs) == 0 {
		if !m.owns(src) {
			return nil
		}
		return []netip.Addr{src}
	}
	var list []netip.Addr
	for _, a := range c.LocalAddrs {
		switch {
		case a.Is4() != remote.Is4() || !m.owns(a) && a != unlisted:
		case a == src:
			list = slices.Insert(list, 0, a)
		default:
			list = append(list, a)
		}
	}
	return list
}

// paths returns the paths to the peer of an IKE SA that exist here, the best first: to the
// address that is in use before those that are configured and those that the peer told.
func (m *Machine) paths(sa *ikeSA) []Path {
	remotes := make([]netip.Addr, 1, 4)
	remotes[0] = sa.path.Remote.Addr()
	add := func(a netip.Addr) {
		if !slices.Contains(remotes, a) && len(remotes) < maxPeerAddrs {
			remotes = append(remotes, a)
		}
	}
	if sa.leads() {
		first := sa.mobike.first
		add(first)
		// If another gateway has sent us here, those that are configured are its addresses.
		if singles := m.singles(sa.conn); slices.Contains(singles, first) {
			for _, a := range singles {
				add(a)
			}
		}
		for _, a := range sa.mobike.peers {
			add(a)
		}
	} else if !m.passable(sa, sa.path) {
		for _, a := range sa.mobike.peers { // section 3.6: the only use that we have for them
			add(a)
		}
	}
	port := uint16(500)
	switch {
	case sa.path.NATT && sa.conn.RemotePort != 0 && sa.conn.RemotePort != 500 && sa.origin.ours:
		port = sa.conn.RemotePort
	case sa.path.NATT:
		port = 4500
	}
	var list []Path
	for i, r := range remotes {
		to := netip.AddrPortFrom(r, port)
		if i == 0 {
			to = sa.path.Remote
		}
		for _, l := range m.locals(sa.conn, sa.mobike.unlisted, r) {
			p := Path{Local: withAddr(sa.path.Local, l), Remote: to, NATT: sa.path.NATT}
			if !slices.Contains(sa.mobike.refused, p) {
				list = append(list, p)
			}
		}
	}
	return list
}

func withAddr(a netip.AddrPort, addr netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(addr, a.Port())
}

// furtherAddrs returns the addresses beside that of the path at which the peer may reach
// us. Those that the tunnel itself protects are not of this kind.
func (m *Machine) furtherAddrs(sa *ikeSA) []netip.Addr {
	all, _ := m.env.Addresses()
	var list []netip.Addr
	for _, a := range all {
		if a == sa.path.Local.Addr() || !routable(a) || slices.Contains(list, a) || len(list) >= maxOwnAddrs ||
			!sa.conn.uses(a) || inside(sa.conn, a) {
			continue
		}
		list = append(list, a)
	}
	return list
}

// inside tells whether an address is among what a connection protects.
func inside(c *Conn, a netip.Addr) bool {
	for _, k := range c.Children {
		for i := range k.LocalTS {
			if ts := &k.LocalTS[i]; !ts.Dynamic && ts.Proto == 0 && ts.Contains(esp.SelectorFromPrefix(netip.PrefixFrom(a, a.BitLen()))) &&
				!ts.Contains(everything(a)) {
				return true
			}
		}
	}
	return false
}

// everything is all that there is of an address's family.
func everything(a netip.Addr) esp.Selector {
	p, _ := a.Prefix(0)
	return esp.SelectorFromPrefix(p)
}

// cmdAddresses follows the host, whose addresses or routes have changed.
func (m *Machine) cmdAddresses() {
	for i := range m.sas {
		switch sa := &m.sas[i]; {
		case sa.state == StateFree || sa.conn == nil:
		case sa.state == StateConnecting:
			m.roamConnecting(sa)
		default:
			m.roam(sa)
		}
	}
	m.networkChanged()
}

// roamConnecting takes an attempt to connect along when our address changes.
func (m *Machine) roamConnecting(sa *ikeSA) {
	if sa.conns == nil || !sa.initiator {
		return
	}
	p, err := m.pathTo(sa.conns.conn, sa.dialled)
	if err != nil || p.Remote.Addr() != sa.path.Remote.Addr() || p.Local.Addr() == sa.path.Local.Addr() {
		return
	}
	sa.path.Local = withAddr(sa.path.Local, p.Local.Addr())
	sa.frag.size = 0
	sa.conns.last = p
	switch {
	case sa.req.exchange == ExchangeAuth, sa.req.exchange == ExchangeIntermediate:
		sa.mobike.moved = true
		m.resend(sa)
	case sa.req.exchange == ExchangeSessionResume:
		m.initTransmit(sa)
	case sa.jobs[laneOurs] == jobInitShared:
		sa.mobike.moved = true
	case sa.req.data != nil && sa.jobs[laneOurs] == jobNone:
		m.initTransmit(sa) // a new request: the old one's NAT detection is wrong
	}
}

// arrived looks, when an IKE SA is established, whether our address has changed on the way.
func (m *Machine) arrived(sa *ikeSA) {
	if !sa.mobike.moved {
		return
	}
	if sa.mobike.on {
		sa.mobike.moved = false
		m.push(sa, taskUpdate)
		return
	}
	m.arm(sa, tLiveness, 0) // not now: what has come up is told first
}

// roam finds the best path for an IKE SA after a change of our addresses or routes.
func (m *Machine) roam(sa *ikeSA) {
	if !sa.mobike.on {
		if m.passable(sa, sa.path) {
			m.unstrand(sa)
			return
		}
		m.reestablish(sa, ErrAddressGone)
		return
	}
	sa.mobike.refused = nil
	list := m.paths(sa)
	if !sa.origin.ours && m.passable(sa, sa.path) {
		list = []Path{sa.path} // as long as it exists, the peer decides
	}
	switch {
	case len(list) == 0:
		m.strand(sa)
	case list[0] == sa.path:
		m.unstrand(sa)
		if !slices.Equal(m.furtherAddrs(sa), sa.mobike.told) {
			m.push(sa, taskAddresses)
		}
		if _, back := m.wayBack(sa); back && sa.state == StateEstablished && sa.closeErr == nil {
			m.queue(sa, task{kind: taskLiveness}) // it may have become the better one again
		}
	default:
		sa.mobike.stranded = false
		m.moveTo(sa, list[0])
		if sa.origin.ours {
			m.push(sa, taskUpdate)
		} else {
			m.push(sa, taskAddresses) // what the peer makes of it is its affair
		}
	}
}

// strand notes that there is no path: the SAs are kept, nothing is sent.
func (m *Machine) strand(sa *ikeSA) {
	if sa.mobike.stranded {
		return
	}
	sa.mobike.stranded = true
	m.event(Event{Kind: EvStranded, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Count: 1})
}

// unstrand goes on where strand had stopped.
func (m *Machine) unstrand(sa *ikeSA) {
	if !sa.mobike.stranded {
		return
	}
	sa.mobike.stranded = false
	m.event(Event{Kind: EvStranded, Conn: sa.connName(), IKE: sa.unique, Path: sa.path})
	switch {
	case m.resend(sa):
	case sa.leads():
	case sa.state == StateEstablished && sa.closeErr == nil:
		m.queue(sa, task{kind: taskLiveness})
	}
	if sa.leads() {
		m.push(sa, taskUpdate) // a NAT may have forgotten us meanwhile
	}
}

// blocked tells whether there is no path along which our request at hand could be sent. Then
// it waits for one, and that does not count as unanswered.
func (m *Machine) blocked(sa *ikeSA) bool {
	if sa.state == StateConnecting || sa.state == StateDeleting || m.passable(sa, sa.path) {
		return false // of those two there is nothing to keep
	}
	m.strand(sa)
	m.armRetransmit(sa, strandedPoll)
	return true
}

// dispatch sends our request at hand along the path of the IKE SA, if there is one. fresh is
// set when that is done for the first time.
func (m *Machine) dispatch(sa *ikeSA, fresh bool) {
	m.noteSent(sa, &sa.req)
	if !m.sendable(sa) {
		return
	}
	if sa.mobike.stranded {
		sa.mobike.stranded = false
		m.event(Event{Kind: EvStranded, Conn: sa.connName(), IKE: sa.unique, Path: sa.path})
	}
	m.sendParts(sa.path, sa, sa.req.data, sa.req.cut, fresh)
}

// sendable tells whether a request may be sent along the path of the IKE SA.
func (m *Machine) sendable(sa *ikeSA) bool {
	return m.passable(sa, sa.path) || sa.state == StateConnecting && sa.conn != nil && len(sa.conn.LocalAddrs) > 0
}

// detour sends our unanswered request along the other paths, too. The first response shows
// one that works (RFC 4555 section 3.10).
func (m *Machine) detour(sa *ikeSA) {
	if sa.state == StateConnecting {
		return
	}
	var list []Path
	switch {
	case sa.leads() && sa.req.before+sa.req.tries >= 2: // one message may get lost on a good path
		list = m.paths(sa)
	case !sa.mobike.on && sa.mobike.suspect.Remote.IsValid() && m.passable(sa, sa.mobike.suspect):
		list = []Path{sa.mobike.suspect}
	}
	for _, p := range list {
		if p == sa.path {
			continue
		}
		if !slices.Contains(sa.req.detours, p) {
			sa.req.detours = append(sa.req.detours, p)
		}
		// Whichever path the response comes along, it does not tell which one the peer has
		// taken the request from.
		sa.req.stale = sa.req.stale || sa.req.task.kind.ofAddresses()
		m.sendParts(p, sa, sa.req.data, sa.req.cut, false)
	}
}

// wayBack returns the path to the peer's address at which an IKE SA was established, if it
// is another one than that in use.
func (m *Machine) wayBack(sa *ikeSA) (Path, bool) {
	if !sa.leads() || sa.path.Remote.Addr() == sa.mobike.first {
		return Path{}, false
	}
	for _, p := range m.paths(sa) {
		if p.Remote.Addr() == sa.mobike.first {
			return p, true
		}
	}
	return Path{}, false
}

// reestablish replaces an IKE SA that cannot move, because its peer does not have MOBIKE or
// refuses: a new one from the address that we have now, at once. The CHILD SAs are down for
// as long as two exchanges take.
func (m *Machine) reestablish(sa *ikeSA, why error) {
	s := m.stateOf(sa.conn)
	src, ok := m.env.Source(sa.path.Remote.Addr())
	if s == nil || !ok || len(m.locals(sa.conn, sa.mobike.unlisted, sa.path.Remote.Addr())) == 0 {
		m.strand(sa)
		return
	}
	if len(m.singles(s.conn)) == 0 && len(s.conn.RemoteNames) == 0 {
		if src.Unmap() != sa.path.Local.Addr() {
			m.destroy(sa, why) // only the peer can connect, and it does not find us here
		}
		return
	}
	if sa.state == StateEstablished && sa.closeErr == nil {
		for i := range m.children {
			c := &m.children[i]
			if c.state != ChildInstalled && c.state != ChildRekeying || c.ike != sa.slot || s.held[c.cfg] ||
				slices.ContainsFunc(s.wanted, func(w wish) bool { return w.cfg == c.cfg }) {
				continue
			}
			s.wanted = append(s.wanted, wish{cfg: c.cfg})
		}
	}
	m.destroy(sa, why)
	if len(s.wanted) > 0 && m.established(s.conn) == nil && m.attempt(s) == nil {
		m.connect(s)
	}
}

// renewDynamic replaces the CHILD SAs whose selectors hold an address that we had before.
func (m *Machine) renewDynamic(sa *ikeSA) {
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildInstalled && c.ike == sa.slot && outdated(sa, c) {
			m.queue(sa, task{kind: taskCreateChild, cfg: c.cfg})
		}
	}
}

// outdated tells whether a CHILD SA's dynamic selectors hold an address that is not ours
// any more.
func outdated(sa *ikeSA, c *childSA) bool {
	dynamic := slices.ContainsFunc(c.cfg.LocalTS, func(t TS) bool { return t.Dynamic })
	return dynamic && !within(c.local, resolveTS(c.cfg.LocalTS, sa.ourAddrs()...))
}

// dropOutdated closes the CHILD SAs that c takes the place of after we have moved.
func (m *Machine) dropOutdated(sa *ikeSA, c *childSA) {
	for i := range m.children {
		o := &m.children[i]
		if o != c && o.ike == sa.slot && o.cfg == c.cfg && o.state == ChildInstalled && outdated(sa, o) && !outdated(sa, c) {
			m.childDown(o, ErrReplaced)
			o.heir = c.unique
			m.closeChild(sa, o, ErrReplaced, nil)
		}
	}
}
