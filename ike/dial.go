package ike

import (
	"errors"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// The way to a peer: which of its addresses is called when, how often a request is
// repeated, and how long we wait between attempts.
//
// The addresses of a connection are called in rounds. A round calls each of them once, the
// one that worked last before the others, and goes on to the next as soon as one fails.
// While there are others, an address that does not answer gets firstPatience in the first
// round, and twice as long in each later one up to the whole time of the retransmissions:
// a dead address at the head of the list costs seconds, and one that answers slowly is
// reached all the same. Only the time between rounds backs off.

const (
	// firstPatience is how long an address may leave a request unanswered in the first round
	// when there are others. It has room for three transmissions.
	firstPatience = 3 * time.Second
	// hurry is the longest first retransmission when there are others.
	hurry = time.Second
	// nextAddress is the time between an attempt that failed and the one at the next
	// address of the round: as good as none, and yet no loop.
	nextAddress = 10 * time.Millisecond
	// hastenInterval is the least time between two attempts that news of the network cause
	// although our way to the peer is the same: routes may come and go every second.
	hastenInterval = 10 * time.Second
	// pressPace is the least time between two transmissions, or between the end of an attempt
	// and the next one, that packets which wait for the tunnel cause. With it the tunnel is
	// back within three seconds after the network is.
	pressPace = 2 * time.Second
	// pressLife is how long a waiting packet counts: the data path tells of them every second
	// for as long as more come.
	pressLife = 3 * time.Second
	// briefLife is how long an IKE SA lasts for sure that is of use. After briefMost in a row
	// that did not, the next attempt backs off: a peer that takes us in and closes at once,
	// without end, costs both a Diffie-Hellman exchange each time.
	briefLife = 10 * time.Second
	briefMost = 3
	// jitterMax bounds RetryJitter, as charon does.
	jitterMax = 20
)

// dialing is the part of a connState that knows the ways to the peer.
type dialing struct {
	addrs  []netip.Addr // of this round, in the order in which they are called
	failed int          // how many of them have failed in this round
	rounds int          // rounds since the last success
	worked netip.Addr   // the last one by which the peer was reached
	lost   bool         // it was found dead since

	pressed time.Duration // when a packet last asked for the tunnel
	silent  bool          // an address of this round did not answer
	spoke   time.Duration // when an attempt last sent something
	upAt    time.Duration // when the last one led to the peer
	brief   int           // IKE SAs in a row that did not last for briefLife

	hastened time.Duration // news of the network that change nothing here do not count before

	waiting  bool // for the addresses of the peer's names
	nameless bool // the last attempt failed for want of one
	moving   bool // a new IKE SA is being made beside the one that there is
	replaced bool // it is there, and the old one is to be closed
}

// singles returns the peer's single addresses, as far as they are known, in the order of
// the configuration.
func (m *Machine) singles(c *Conn) []netip.Addr {
	var list []netip.Addr
	add := func(addrs ...netip.Addr) {
		for _, a := range addrs {
			if !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	names := func(at int) {
		for _, r := range c.RemoteNames {
			if n := m.nameOf(r.Name); r.At == at && n != nil {
				add(n.addrs...)
			}
		}
	}
	for i, p := range c.RemoteAddrs {
		names(i)
		if p.IsSingleIP() {
			add(p.Addr())
		}
	}
	names(len(c.RemoteAddrs))
	return list
}

// callable tells whether a connection says where the peer is.
func (m *Machine) callable(c *Conn) bool { return len(m.singles(c)) > 0 || len(c.RemoteNames) > 0 }

// newRound takes the peer's addresses as they are now.
func (m *Machine) newRound(s *connState) {
	d := &s.dial
	d.addrs, d.failed, d.silent = m.singles(s.conn), 0, false
	if to := s.redirect.to; to.IsValid() {
		d.addrs = []netip.Addr{to}
		return
	}
	i := slices.Index(d.addrs, d.worked)
	if i < 0 {
		return
	}
	if d.lost {
		i = (i + 1) % len(d.addrs)
	}
	d.addrs = append(d.addrs[i:len(d.addrs):len(d.addrs)], d.addrs[:i]...)
}

// busy tells whether an attempt of the connection is under way.
func (m *Machine) busy(s *connState) bool { return s.dial.waiting || m.attempt(s) != nil }

// hurried tells whether another address waits for this attempt to fail.
func (sa *ikeSA) hurried() bool {
	return sa.state == StateConnecting && sa.conns != nil && sa.reauth.old == 0 && len(sa.conns.dial.addrs) > 1
}

// reached notes that an attempt of ours has led to the peer.
func (m *Machine) reached(s *connState, sa *ikeSA) {
	d := &s.dial
	d.failed, d.rounds, d.lost, d.nameless, d.waiting = 0, 0, false, false, false
	d.upAt = m.now.Mono
	if sa.conns == s {
		d.worked = sa.dialled
		d.replaced, d.moving = d.replaced || d.moving, false
	}
}

// afterLoss returns when to connect again after an SA that was up has been lost.
func (m *Machine) afterLoss(s *connState) time.Duration {
	d := &s.dial
	if d.brief++; m.now.Mono-d.upAt >= briefLife {
		d.brief = 0
	}
	if d.brief > briefMost {
		return m.backoff(d.brief - briefMost)
	}
	return m.random(time.Second)
}

// unanswered returns how long to wait for the response to transmission n of a request (0
// is the first), and whether another one may follow.
func (m *Machine) unanswered(sa *ikeSA, n int) (time.Duration, bool) {
	c := sa.conn
	atMost := time.Duration(0)
	switch {
	case sa.hurried():
		atMost = hurry
	case sa.leaving():
		atMost = deletePace
	}
	d, more := c.retryDelay(n, atMost)
	if c != nil && c.RetryJitter > 0 {
		d -= m.random(d / 100 * time.Duration(min(c.RetryJitter, jitterMax)))
	}
	return d, more
}

// armPatience bounds the time that an exchange of an attempt may take when there is
// another address to call.
func (m *Machine) armPatience(sa *ikeSA) {
	if sa.hurried() {
		n := sa.conns.dial.rounds
		if m.pressing(sa.conns) {
			n = bits.TrailingZeros(uint(n + 1)) // mostly short ones: another address may be back
		}
		m.arm(sa, tPatience, firstPatience<<min(n, 6))
	}
}

// press notes that a packet waits for a CHILD SA of the connection. What the peer
// has left unanswered is repeated at once, and then as often as packets come, beside the
// schedule of the retransmissions, which goes on as it is: when the peer is given up, and how
// the waits grow while nobody wants anything, does not change. The next attempt comes as
// soon, unless the peer has refused the last one. So a network that is back, of which nothing
// tells, is noticed within pressPace, and a dead peer gets no more than one datagram in that
// time. A tunnel that nobody uses waits for the next retransmission or the next attempt: up
// to 76 s with the default ones (RetryLimit makes that shorter), and up to retryLast and a
// quarter between attempts.
func (m *Machine) press(s *connState) {
	d := &s.dial
	d.pressed = max(m.now.Mono, 1)
	sa := m.attempt(s)
	if sa == nil {
		sa = m.established(s.conn)
	}
	if sa != nil {
		m.repeatPressed(sa)
		return
	}
	if at := max(d.spoke+pressPace, m.now.Mono); d.silent && !d.waiting && at < s.retryAt && s.retryAt != never {
		m.armRetry(s, at-m.now.Mono)
	}
}

// pressing tells whether packets wait.
func (m *Machine) pressing(s *connState) bool {
	return s.dial.pressed != 0 && m.now.Mono-s.dial.pressed <= pressLife
}

// noteSent remembers that a request of ours leaves now.
func (m *Machine) noteSent(sa *ikeSA, r *request) {
	if r.sent = m.now.Mono; sa.conns != nil {
		sa.conns.dial.spoke = r.sent
	}
}

// repeatPressed repeats what is unanswered for as long as packets wait.
func (m *Machine) repeatPressed(sa *ikeSA) {
	s := m.stateOf(sa.conn)
	if s == nil || !m.pressing(s) || !m.sendable(sa) {
		return
	}
	next := never
	sa.outstanding(func(r *request) bool {
		if r.data == nil || r.due == 0 {
			return false // its job is out
		}
		if r.sent+pressPace <= m.now.Mono {
			m.noteSent(sa, r)
			m.sendParts(sa.path, sa, r.data, r.cut, false)
		}
		next = min(next, r.sent+pressPace)
		return false
	})
	if next != never {
		m.arm(sa, tPress, next-m.now.Mono)
	}
}

// outOfPatience goes on to the next address, unless the peer has answered meanwhile.
func (m *Machine) outOfPatience(sa *ikeSA) {
	if sa.hurried() && sa.timers[tRetransmit] != never {
		m.leave(sa, ErrTimeout)
	}
}

// leave ends an attempt in favour of the next address. One in IKE_AUTH is given up with a
// DELETE, should the answer come: the peer may have the IKE SA already. The request is
// repeated for that as long as a responder keeps an unfinished one; if nothing comes by then,
// the INITIAL_CONTACT of the attempt that succeeds clears up, or the peer's liveness check.
func (m *Machine) leave(sa *ikeSA, err error) {
	if !m.giveUp(sa, err) {
		m.destroy(sa, err)
		return
	}
	sa.timers[tPatience] = never
	m.arm(sa, tConnect, halfOpenLife)
}

// unreachable takes the system's word that nothing can be sent along p. Where that is the
// only address, the retransmissions go on: the way may come back before the next attempt.
func (m *Machine) unreachable(p Path) {
	for i := range m.sas {
		if sa := &m.sas[i]; sa.hurried() && sa.path == p && sa.timers[tRetransmit] != never {
			m.leave(sa, ErrNoRoute)
		}
	}
}

// networkChanged acts on news of this host's addresses, routes or links for connections
// that have no IKE SA: what waits for a next attempt starts it, if the way to the peer is
// another one than it was, and an attempt under way is repeated at once. The chance in the
// delay keeps a router of many connections from calling all peers in one instant.
func (m *Machine) networkChanged() {
	for i := range m.sas {
		m.hastenReauth(&m.sas[i])
	}
	for _, s := range m.conns {
		if sa := m.attempt(s); sa != nil {
			m.hastened(sa)
			continue
		}
		if s.retryAt == never || s.dial.waiting || m.established(s.conn) != nil {
			continue // nothing waits, or it waits for the peer's mind to change
		}
		if p, err := m.nextPath(s); !s.dial.nameless && (err != nil || p == s.last && m.now.Mono < s.dial.hastened) {
			continue // nothing is different for it, as far as can be seen from here
		}
		s.dial.failed, s.dial.rounds, s.dial.hastened = 0, 0, m.now.Mono+hastenInterval
		if d := m.random(time.Second / 4); m.now.Mono+d < s.retryAt {
			m.armRetry(s, d)
		}
	}
}

// nextPath returns the path that the first call of a new round takes.
func (m *Machine) nextPath(s *connState) (Path, error) {
	addrs := m.singles(s.conn)
	if slices.Contains(addrs, s.dial.worked) && !s.dial.lost {
		return m.pathTo(s.conn, s.dial.worked)
	}
	if len(addrs) == 0 {
		return Path{}, ErrNoRemote
	}
	return m.pathTo(s.conn, addrs[0])
}

// hastened repeats the request of an attempt at once, unless that happens soon anyway.
func (m *Machine) hastened(sa *ikeSA) {
	if at := sa.timers[tRetransmit]; at != never && at > m.now.Mono+time.Second {
		m.armRetransmit(sa, 0)
		m.armPatience(sa)
	}
}

// attemptFailed ends an attempt of a connection. Another address of the round is called at
// once; otherwise commands learn why, and if the peer is to be tried again, the time for
// that is set.
func (m *Machine) attemptFailed(s *connState, err error) {
	if m.stateOf(s.conn) != s {
		return
	}
	s.tries++
	m.redirectEnds(s, false)
	d := &s.dial
	d.silent = d.silent || err == ErrTimeout
	d.failed++
	more := d.failed < len(d.addrs)
	if !more {
		d.failed = 0
		d.rounds++
	}
	again := more || s.conn.KeyingTries == 0 || d.rounds < s.conn.KeyingTries
	var delay time.Duration
	if len(s.wanted) > 0 && again {
		delay = nextAddress
		var r *ResolveError
		d.nameless = errors.As(err, &r)
		switch {
		case d.nameless:
			delay = nameLast
			if r.Times <= 1 {
				delay = nameFirst
			}
		case !more:
			if noAddress(err) {
				delay = addressRetry + m.random(addressRetry/4)
			} else if delay = m.backoff(d.rounds); d.silent && m.pressing(s) {
				delay = min(delay, max(d.spoke+pressPace-m.now.Mono, nextAddress))
			}
		}
		m.armRetry(s, delay)
	}
	if err == nil {
		return
	}
	m.event(Event{Kind: EvFailed, Conn: s.conn.Name, Count: s.tries, Delay: delay, Err: err})
	if more {
		return
	}
	if d.moving {
		// The old one is still there; the names tell whether it is tried again.
		d.moving = false
		for _, n := range m.namesOf(s.conn) {
			n.next = m.now.Mono + delay
		}
	}
	for i := range s.wanted {
		m.settle(s.wanted[i].waiters, err)
		s.wanted[i].waiters = nil
	}
	if !again {
		s.wanted, s.tries, d.rounds = nil, 0, 0
	}
}
