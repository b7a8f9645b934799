package ike

import "time"

// What follows when nothing comes, or nothing passes: liveness checks (RFC 7296 section 2.4)
// and the end of CHILD SAs that nobody uses.

const (
	// livenessLooks is how often in a DPDDelay it is looked whether an answer is overdue.
	livenessLooks = 4
	// idleDelays is after how many DPDDelays a peer is asked to which nothing was sent.
	idleDelays = 4
)

// livenessState is what is known of the traffic with a peer.
type livenessState struct {
	in, out time.Duration // when the last packet of a CHILD SA arrived, and when one left
	calm    time.Duration // when it was last seen that nothing sent was without an answer
	unused  bool          // a CHILD SA was closed here that nobody used, and none has come since
	lost    bool          // one has gone, for whatever reason, and none has come since
}

// checkLiveness asks a peer whether it is there if something was sent to it and nothing
// authentic has come for the connection's DPDDelay since. Traffic in both directions is proof
// enough. Where nothing was sent either, it is asked after idleDelays as long: a side that
// only listens would never learn otherwise that there is nobody left. Behind a NAT, with
// MOBIKE, it is asked as soon: by the answer a new mapping is seen.
func (m *Machine) checkLiveness(sa *ikeSA) {
	if sa.mobike.moved && sa.state == StateEstablished && sa.conn != nil {
		sa.mobike.moved = false
		m.reestablish(sa, ErrAddressGone)
		return
	}
	if sa.state != StateEstablished || sa.conn == nil || sa.conn.DPDDelay <= 0 {
		return
	}
	l, now, delay := &sa.live, m.now.Mono, sa.conn.DPDDelay
	for i := range m.children {
		if c := &m.children[i]; c.state != ChildFree && c.ike == sa.slot {
			_, _, in, out := m.env.Usage(c.spiIn)
			l.in, l.out = max(l.in, in), max(l.out, out)
		}
	}
	in := max(sa.lastIn, sa.established, l.in)
	var due time.Duration
	if l.out > in {
		// What is without an answer was sent after the last look at which there was nothing
		// such, if not later.
		due = max(in, l.calm) + delay
	} else {
		l.calm = now
		due = in + idleDelays*delay
		if sa.leads() && sa.natLocal {
			due = in + delay // the NAT may have forgotten us: nobody else would notice (RFC 4555 section 3.8)
		}
	}
	if _, back := m.wayBack(sa); back && sa.idle() {
		due = now // a better path may work again
	}
	if now < due {
		m.arm(sa, tLiveness, min(due-now, max(delay/livenessLooks, time.Millisecond)))
		return
	}
	m.arm(sa, tLiveness, delay)
	if sa.idle() {
		m.queue(sa, task{kind: taskLiveness})
	}
}

// lastUse returns when the last packet passed through a CHILD SA or the one that it has
// replaced, in either direction.
func (m *Machine) lastUse(c *childSA) time.Duration {
	_, _, in, out := m.env.Usage(c.spiIn)
	return max(c.used, in, out)
}

// inheritUse lets a CHILD SA count as used when the one was that it replaces: new keys are
// not traffic.
func (m *Machine) inheritUse(old, c *childSA) {
	if old != nil && c.cfg.Inactivity > 0 {
		c.used = m.lastUse(old)
		m.armChild(c, tcIdle, max(c.used+c.cfg.Inactivity-m.now.Mono, time.Second))
	}
}

// checkIdle closes a CHILD SA that nothing has passed through for its Inactivity, and with
// the last one the IKE SA, unless KeepIKE says otherwise: what keeps it alive would be all the
// traffic that is left.
func (m *Machine) checkIdle(c *childSA) {
	if c.cfg.Inactivity <= 0 {
		return
	}
	if left := m.lastUse(c) + c.cfg.Inactivity - m.now.Mono; left > 0 {
		m.armChild(c, tcIdle, left)
		return
	}
	switch c.state {
	case ChildRekeying:
		m.armChild(c, tcIdle, time.Second) // its successor will be as idle
		return
	case ChildInstalled:
	default:
		return
	}
	sa := &m.sas[c.ike]
	if !sa.idle() || m.leanedOn(c) {
		m.armChild(c, tcIdle, time.Second)
		return
	}
	last := sa.state == StateEstablished
	for i := range m.children {
		o := &m.children[i]
		last = last && (o == c || o.state == ChildFree || o.ike != c.ike || o.outGone)
	}
	if last && !c.cfg.KeepIKE {
		m.closeIKE(sa, ErrInactive, nil)
		return
	}
	sa.live.unused = sa.live.unused && !last || !c.cfg.KeepIKE
	m.closeChild(sa, c, ErrInactive, nil)
}

// endUnused closes an IKE SA whose CHILD SAs have been closed, not by us alone: when each side
// closes one that nobody uses neither of the two was the last. It also closes one that is spare.
func (m *Machine) endUnused(sa *ikeSA) {
	if !sa.live.unused && !sa.live.lost || sa.state != StateEstablished || sa.closeErr != nil || !sa.idle() || m.carries(sa, nil) {
		return
	}
	s := m.stateOf(sa.conn)
	switch {
	case s != nil && len(s.wanted) > 0:
	case sa.live.unused:
		m.closeIKE(sa, ErrInactive, nil)
	case len(sa.tasks) == 0 && m.spare(sa):
		m.closeIKE(sa, ErrReplaced, nil)
	}
}

// spare tells whether an IKE SA has lost the CHILD SAs that it had while another one with the
// peer carries some. Nobody would make a new one on it, and it would stay, and be authenticated
// anew, for as long as the peer lives. With UniqueNever, devices at several addresses may share
// an identity.
func (m *Machine) spare(sa *ikeSA) bool {
	if !sa.live.lost || m.carries(sa, nil) {
		return false
	}
	for i := range m.sas {
		o := &m.sas[i]
		if o != sa && o.state == StateEstablished && o.closeErr == nil && o.conn == sa.conn &&
			o.localID.Equal(sa.localID) && o.peerID.Equal(sa.peerID) && m.carries(o, nil) &&
			(sa.conn.Unique != UniqueNever || sameHost(o.path.Remote, sa.path.Remote)) {
			return true
		}
	}
	return false
}
