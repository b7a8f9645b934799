package ike

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Names of peers. Every round of calls asks for the addresses of the connection's names
// first, and all that come back are called in turn. While the tunnel is up the names are
// asked for again from time to time, and at once when the peer falls silent; if the peer's
// address has gone from the answers, a new IKE SA is made to where they point now, and only
// then the old one is closed.
//
// That a name cannot be resolved is an ordinary state: the router has booted before its
// uplink or its DNS server. A name that has been resolved once keeps its addresses until
// there is a new answer.

const (
	// nameRefresh is how often the addresses of a name are looked up while all is well and
	// nobody has said how long they are good for. Where the DNS has, it is then, but within
	// nameShort and nameLong.
	nameRefresh = time.Minute
	nameShort   = 5 * time.Second
	nameLong    = time.Hour
	// nameFirst and nameLast are the waits after a lookup that failed, the first time and
	// later. They do not grow: with the resolver's own second between queries, a tunnel is
	// up within three seconds after DNS works, and a query every two seconds is nothing.
	// nameLast is also how often we look while the peer leaves us without an answer: it may
	// have moved, and its record follow later.
	nameFirst = time.Second
	nameLast  = 2 * time.Second
	// nameFresh is how old an answer may be to count for another connection that asks, or
	// for the same one again.
	nameFresh = 900 * time.Millisecond
	// nameStranger is how often a call from an address that no name has makes us look.
	nameStranger = 5 * time.Second
	// namesMax bounds the addresses that are taken of one name.
	namesMax = 16
)

// ResolveError is a name of a peer that could not be resolved.
type ResolveError struct {
	Name  string
	Times int // in a row
	Err   error
}

// Error names the name.
func (e *ResolveError) Error() string {
	return fmt.Sprintf("the name %s cannot be resolved: %v", e.Name, e.Err)
}

// Unwrap returns the resolver's error.
func (e *ResolveError) Unwrap() error { return e.Err }

// peerName is what the machine knows of a name.
type peerName struct {
	name  string
	addrs []netip.Addr  // by the last good answer
	asked bool          // an answer is awaited
	at    time.Duration // when the last answer came; 0: none has
	fails int           // answers since the last good one
	err   error         // of the last answer
	next  time.Duration // when it is looked up without being asked for
}

// configureNames makes the list of names, and keeps what is known of those that stay.
func (m *Machine) configureNames() {
	old := m.names
	m.names = nil
	for _, s := range m.conns {
		for _, n := range s.conn.RemoteNames {
			if m.nameOf(n.Name) != nil {
				continue
			}
			i := slices.IndexFunc(old, func(o *peerName) bool { return o.name == n.Name })
			if i < 0 {
				m.names = append(m.names, &peerName{name: n.Name, next: m.now.Mono})
				m.wake = min(m.wake, m.now.Mono)
			} else {
				m.names = append(m.names, old[i])
			}
		}
	}
}

func (m *Machine) nameOf(name string) *peerName {
	for _, n := range m.names {
		if n.name == name {
			return n
		}
	}
	return nil
}

// namesOf returns the names of a connection.
func (m *Machine) namesOf(c *Conn) (list []*peerName) {
	for _, r := range c.RemoteNames {
		if n := m.nameOf(r.Name); n != nil {
			list = append(list, n)
		}
	}
	return list
}

// ask has a name looked up, unless that is under way or its answer is younger than fresh.
func (m *Machine) ask(n *peerName, fresh time.Duration) {
	if n.asked || n.at != 0 && m.now.Mono-n.at < fresh {
		return
	}
	n.asked = true
	m.out = append(m.out, Output{Kind: OutResolve, Name: n.name})
}

func (m *Machine) askAll(c *Conn, fresh time.Duration) {
	for _, n := range m.namesOf(c) {
		m.ask(n, fresh)
	}
}

// awaits tells whether a name of the connection is being looked up.
func (m *Machine) awaits(c *Conn) bool {
	return slices.ContainsFunc(m.namesOf(c), func(n *peerName) bool { return n.asked })
}

// Resolved takes the answer to an OutResolve. An answer without addresses is an error. ttl is
// how long the addresses are good for, 0 if that is not known.
func (m *Machine) Resolved(now Time, name string, addrs []netip.Addr, ttl time.Duration, err error) {
	m.now = now
	if n := m.nameOf(name); n != nil && n.asked {
		m.resolved(n, addrs, ttl, err)
	}
	m.finish()
}

func (m *Machine) resolved(n *peerName, addrs []netip.Addr, ttl time.Duration, err error) {
	n.asked, n.at, n.err = false, max(m.now.Mono, 1), err
	if err == nil && len(addrs) == 0 {
		n.err = ErrNoAddress
	}
	wait := nameRefresh
	if ttl > 0 {
		wait = min(max(ttl, nameShort), nameLong)
	}
	if m.doubted(n) {
		wait = nameLast
	}
	if n.err != nil {
		n.fails++
		wait = nameLast
		if n.fails == 1 {
			wait = nameFirst
		}
	} else {
		var list []netip.Addr
		for _, a := range addrs {
			if a = a.Unmap(); a.IsValid() && !slices.Contains(list, a) && len(list) < namesMax {
				list = append(list, a)
			}
		}
		if n.fails > 0 || len(n.addrs) > 0 && !sameAddrs(list, n.addrs) {
			m.event(Event{Kind: EvResolved, Text: n.name + ": " + addrList(list)})
		}
		n.addrs, n.fails = list, 0
	}
	n.next = m.now.Mono + wait
	m.wake = min(m.wake, n.next)
	for _, s := range m.conns {
		if !slices.ContainsFunc(s.conn.RemoteNames, func(r PeerName) bool { return r.Name == n.name }) {
			continue
		}
		switch {
		case s.dial.waiting:
			if !m.awaits(s.conn) {
				s.dial.waiting = false
				m.startRound(s)
			}
		case n.err == nil && s.dial.nameless && s.retryAt != never:
			m.armRetry(s, 0) // what it has waited for is there
		case n.err == nil:
			m.redial(s)
			m.checkMoved(s)
		}
	}
}

// doubted tells whether a peer of that name has left a request of ours unanswered for some time.
func (m *Machine) doubted(n *peerName) bool {
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state != StateFree && sa.conn != nil && slices.Contains(m.namesOf(sa.conn), n) &&
			sa.outstanding(func(r *request) bool { return r.tries > 0 }) != nil {
			return true
		}
	}
	return false
}

// redial leaves an attempt that waits for an answer from where the names do not point any
// more, for one at where they do.
func (m *Machine) redial(s *connState) {
	sa := m.attempt(s)
	if sa == nil || sa.reauth.old != 0 || sa.timers[tRetransmit] == never || s.redirect.to.IsValid() || m.awaits(s.conn) {
		return
	}
	if list := m.singles(s.conn); len(list) > 0 && !slices.Contains(list, sa.dialled) {
		s.dial.addrs, s.dial.failed = list, -1 // a new round, which comes at once
		m.leave(sa, ErrTimeout)
	}
}

func sameAddrs(a, b []netip.Addr) bool {
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return len(a) == len(b)
}

func addrList(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

// unresolved returns why a connection has no address to call.
func (m *Machine) unresolved(c *Conn) error {
	for _, n := range m.namesOf(c) {
		if n.err != nil && len(n.addrs) == 0 {
			return &ResolveError{n.name, n.fails, n.err}
		}
	}
	return ErrNoRemote
}

// checkMoved makes a new IKE SA for a connection that we have made to an address which the
// peer's names do not have any more.
func (m *Machine) checkMoved(s *connState) {
	old := m.established(s.conn)
	if old == nil || !old.origin.ours || !old.origin.dialled.IsValid() || s.dial.moving || m.busy(s) || m.awaits(s.conn) || m.reauthing(s.conn) {
		return
	}
	for _, n := range m.namesOf(s.conn) {
		if len(n.addrs) == 0 {
			return // it may be the one
		}
	}
	list := m.singles(s.conn)
	if slices.Contains(list, old.origin.dialled) || slices.Contains(list, old.path.Remote.Addr()) {
		return
	}
	m.replace(s, old)
}

// replace starts to make a new IKE SA for the CHILD SAs of old, which goes when those of
// the new one are there.
func (m *Machine) replace(s *connState, old *ikeSA) {
	for i := range m.children {
		c := &m.children[i]
		if c.ike == old.slot && (c.state == ChildInstalled || c.state == ChildRekeying) && c.cfg != nil &&
			slices.Contains(s.conn.Children, c.cfg) && !slices.ContainsFunc(s.wanted, func(w wish) bool { return w.cfg == c.cfg }) {
			s.wanted = append(s.wanted, wish{cfg: c.cfg})
		}
	}
	if len(s.wanted) == 0 {
		return // it carries nothing
	}
	s.dial.moving = true
	s.dial.failed = 0
	m.connect(s)
}

// closeReplaced closes the IKE SAs that a connection had before, once the new one has all
// of its CHILD SAs, or has been refused them.
func (m *Machine) closeReplaced(s *connState) {
	by := m.established(s.conn)
	if by == nil || s.dial.moving || by.creating() ||
		slices.ContainsFunc(by.tasks, func(t task) bool { return t.kind == taskCreateChild && t.tries == 0 }) {
		return
	}
	s.dial.replaced = false
	for i := range m.sas {
		o := &m.sas[i]
		if o != by && o.state == StateEstablished && o.closeErr == nil && o.connName() == s.conn.Name &&
			(o.conn != s.conn || o.origin.ours) {
			m.closeIKE(o, ErrReplaced, nil)
		}
	}
}

// strangers looks the names up again after a call from an address that none of them has:
// the peer may be there before our next lookup.
func (m *Machine) strangers() {
	for _, n := range m.names {
		m.ask(n, nameStranger)
	}
}
