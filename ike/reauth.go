package ike

import (
	"encoding/binary"
	"slices"
	"time"
)

// Reauthentication, make before break (RFC 7296 section 2.8.3): a new IKE SA from scratch
// with a CHILD SA for each of the old one's, then the old IKE SA is deleted. The side that
// connected first does it; the other one can only ask for it (AUTH_LIFETIME, RFC 4478).
//
//	ours:    reauthDue -> reauthenticate ... (IKE_AUTH) ... reauthStep -> closeIKE(old)
//	theirs:  authRequest -> createChild (on standby) ... the peer's DELETE of the old one
//
// No packet is lost on the way: each side goes on to take what comes through the old CHILD
// SAs until they are deleted, and some time after that (linger); the side that asks sends
// through a new one when it is there, by which time the other has it; the side that is asked
// sends through it when it knows that the peer has it: by a packet, or by the DELETE.

const (
	// heirPoll is how often the side that is asked looks whether the new CHILD SA has brought
	// a packet, and heirMax when it uses it all the same.
	heirPoll = time.Second
	heirMax  = 10 * time.Second
	// reauthPause is how long the old IKE SA stays when all has moved to the new one: what the
	// peer has sent through its CHILD SAs, or received through them and not opened yet, must
	// not be lost with them.
	reauthPause = time.Second
	// lifetimeMargin bounds how long before the time that the peer has set we reauthenticate.
	lifetimeMargin = 5 * time.Minute
	// lifetimeLeast is the shortest AUTH_LIFETIME that is followed: a peer that sets less would
	// have us do nothing else.
	lifetimeLeast = 10 * time.Second
)

// reauthState is what an IKE SA knows of reauthentication.
type reauthState struct {
	at       time.Duration // when it is due; 0: never. Rekeying does not change it
	asked    time.Duration // when it is due at the latest by the peer's AUTH_LIFETIME; 0: it has sent none
	tries    int           // failed attempts
	hastened time.Duration // news of the network do not count before
	old      uint32        // the IKE SA whose place this one is to take; 0: none
	met      bool          // the peer has said something under it since it was authenticated
	wanted   bool          // it was begun, and may have to be begun again
	last     bool          // there may be older ones of ours that it does the work of
	tried    []uint32      // CHILD SAs of old for which one has been asked for here
	closeAt  time.Duration // when old is closed, once there is nothing more to ask for; 0: not known
}

// heirState is what a CHILD SA knows that takes the place of one of another IKE SA.
type heirState struct {
	until time.Duration // the outbound SA is used then at the latest; 0: no such one
}

// overTime is how long after its soft lifetime an IKE SA is closed.
func (c *Conn) overTime() time.Duration {
	if c.OverTime > 0 {
		return c.OverTime
	}
	return max(c.RekeyTime, c.ReauthTime) / 10
}

// armReauth sets when an IKE SA is reauthenticated, and ends it a while after that. Both are
// counted from the first authentication, over all rekeyings.
func (m *Machine) armReauth(sa *ikeSA) {
	if c := sa.conn; c.ReauthTime > 0 {
		if end := max(sa.origin.at+c.ReauthTime, sa.reauth.at) + c.overTime(); end < sa.timers[tExpire] {
			m.arm(sa, tExpire, max(end-m.now.Mono, time.Second))
			sa.expireAt = sa.timers[tExpire]
		}
		if sa.reauth.at == 0 {
			sa.reauth.at = sa.origin.at + c.ReauthTime
			if sa.origin.ours {
				sa.reauth.at -= m.random(c.RandTime)
			}
		}
	}
	if sa.reauth.at != 0 {
		m.arm(sa, tReauth, max(sa.reauth.at-m.now.Mono, time.Second))
	}
}

// writeLifetime tells the peer that connected how long its authentication lasts.
func (m *Machine) writeLifetime(b *Builder, sa *ikeSA, d time.Duration) {
	if sa.conn.ReauthTime > 0 && !sa.origin.ours {
		b.Notify(NotifyAuthLifetime, ProtoNone, nil, be32(uint32(min(max(d/time.Second, 1), 1<<32-1))))
	}
}

// readLifetime takes note of an AUTH_LIFETIME of the peer. Only the side that has connected
// has to follow it (RFC 4478 section 3), and does so in good time, at a random one.
func (m *Machine) readLifetime(sa *ikeSA, n *Notify) {
	if n.Type != NotifyAuthLifetime || len(n.Data) != 4 || !sa.origin.ours || sa.state != StateEstablished {
		return
	}
	life := max(time.Duration(binary.BigEndian.Uint32(n.Data))*time.Second, lifetimeLeast)
	margin := min(max(life/10, 10*time.Second), lifetimeMargin, life/4)
	life -= margin + m.random(margin)
	at := m.now.Mono + life // at least half of it is left
	if sa.reauth.asked == 0 || at < sa.reauth.asked {
		sa.reauth.asked = at
	}
	if sa.reauth.at == 0 || at < sa.reauth.at {
		sa.reauth.at = at
		m.arm(sa, tReauth, at-m.now.Mono)
	}
}

// reauthDue is the end of an authentication's soft lifetime.
func (m *Machine) reauthDue(sa *ikeSA) {
	switch {
	case sa.state != StateEstablished || sa.closeErr != nil:
	case sa.origin.ours || sa.reauth.wanted:
		m.reauthenticate(sa)
	default:
		m.queue(sa, task{kind: taskAuthLifetime}) // once more, before it is too late
	}
}

// reauthenticate starts the IKE SA that is to take the place of sa.
func (m *Machine) reauthenticate(sa *ikeSA) {
	s := m.stateOf(sa.conn)
	if s == nil {
		return
	}
	sa.reauth.wanted = true
	if !sa.origin.ours && sa.unique == sa.origin.began && !sa.reauth.met {
		// The peer may still wait for our answer, and would take the new one for one that was
		// begun at the same time.
		m.queue(sa, task{kind: taskLiveness})
		m.arm(sa, tReauth, time.Second)
		return
	}
	if m.busy(s) || s.dial.moving || m.reauthing(sa.conn) {
		m.arm(sa, tReauth, time.Second) // one at a time: two would leave two IKE SAs
		return
	}
	p, err := m.pathTo(s.conn, sa.path.Remote.Addr())
	var nsa *ikeSA
	if err == nil {
		if nsa = m.newSA(true, true); nsa == nil {
			err = ErrTableFull
		}
	}
	if err != nil {
		m.reauthFailed(s, sa.unique, err)
		return
	}
	// The same peer, at the address where it is now, and from the one where we are.
	p.Remote = withAddr(p.Remote, sa.path.Remote.Addr())
	if m.passable(sa, sa.path) {
		p.Local = withAddr(p.Local, sa.path.Local.Addr())
	}
	nsa.reauth.old, nsa.dialled = sa.unique, sa.origin.dialled
	m.begin(s, nsa, p)
}

// reauthing tells whether an IKE SA of the connection is taking the place of another one.
func (m *Machine) reauthing(conn *Conn) bool {
	for i := range m.sas {
		if o := &m.sas[i]; o.state != StateFree && o.conn == conn && o.reauth.old != 0 {
			return true
		}
	}
	return false
}

// reauthFailed has a reauthentication tried again later. The IKE SA old goes on meanwhile.
func (m *Machine) reauthFailed(s *connState, old uint32, err error) {
	if sa := m.findIKE(old); sa != nil && sa.state == StateEstablished && sa.closeErr == nil {
		sa.reauth.tries++
		d := m.backoff(sa.reauth.tries)
		m.arm(sa, tReauth, d)
		if err != nil {
			m.event(Event{Kind: EvFailed, Conn: s.conn.Name, Old: old, Count: sa.reauth.tries, Delay: d, Err: err})
		}
	}
	if len(s.wanted) > 0 && s.retryAt == never && m.stateOf(s.conn) == s {
		m.armRetry(s, m.backoff(1)) // what has waited for this attempt
	}
}

// hastenReauth tries a reauthentication that has failed again soon, because the network has
// changed.
func (m *Machine) hastenReauth(sa *ikeSA) {
	if sa.state != StateEstablished || sa.closeErr != nil || sa.reauth.tries == 0 || m.now.Mono < sa.reauth.hastened {
		return
	}
	if d := m.random(time.Second / 4); m.now.Mono+d < sa.timers[tReauth] && sa.timers[tReauth] != never {
		sa.reauth.hastened = m.now.Mono + hastenInterval
		m.arm(sa, tReauth, d)
	}
}

// reauthNext returns a CHILD SA of the IKE SA that sa takes the place of for which none has
// been asked for yet, or nil. It counts as asked for from then on.
func (m *Machine) reauthNext(sa *ikeSA) *childSA {
	old := m.findIKE(sa.reauth.old)
	if old == nil {
		return nil
	}
	var next *childSA // that for what has no lane first: the others lean on it
	for i := range m.children {
		c := &m.children[i]
		if c.ike == old.slot && (c.state == ChildInstalled || c.state == ChildRekeying) && !slices.Contains(sa.reauth.tried, c.unique) &&
			(next == nil || c.lane.n < next.lane.n) {
			next = c
		}
	}
	if next != nil {
		sa.reauth.tried = append(sa.reauth.tried, next.unique)
	}
	return next
}

// reauthStep goes on with a reauthentication when nothing else is under way on the new IKE
// SA: with the next CHILD SA, or the end of the old IKE SA.
func (m *Machine) reauthStep(sa *ikeSA) {
	if sa.reauth.old == 0 && !sa.reauth.last || sa.state != StateEstablished || sa.closeErr != nil || !sa.idle() {
		return
	}
	if sa.reauth.old == 0 {
		m.closeDoubles(sa)
		return
	}
	old := m.findIKE(sa.reauth.old)
	// The peer may have closed meanwhile what this one was to carry on, or carry it on itself.
	needless := old == nil || !m.carries(old, nil) && (old.closeErr != nil || m.spare(old))
	if old != nil && old.state == StateEstablished && old.closeErr == nil {
		if c := m.reauthNext(sa); c != nil {
			m.queue(sa, task{kind: taskCreateChild, cfg: c.cfg, target: c.unique, lane: c.ownLane()})
			return
		}
		if old.creating() {
			return // what comes of it is to be moved, too
		}
		if sa.reauth.closeAt == 0 {
			sa.reauth.closeAt = m.now.Mono + reauthPause
			m.arm(sa, tReplace, reauthPause)
		}
		if m.now.Mono < sa.reauth.closeAt {
			return
		}
		m.handTasks(old, sa)
		m.closeIKE(old, ErrReplaced, nil)
	}
	sa.reauth.old, sa.reauth.tried, sa.reauth.closeAt = 0, nil, 0
	if needless && !m.carries(sa, nil) && len(sa.tasks) == 0 {
		m.closeIKE(sa, ErrReplaced, nil)
		return
	}
	m.closeDoubles(sa)
}

// carries tells whether an IKE SA has a CHILD SA of that child, or any if cfg is nil.
func (m *Machine) carries(sa *ikeSA, cfg *Child) bool {
	for i := range m.children {
		c := &m.children[i]
		if c.ike == sa.slot && (c.state == ChildInstalled || c.state == ChildRekeying) && (cfg == nil || c.cfg == cfg) {
			return true
		}
	}
	return false
}

// closeDoubles closes the IKE SAs that we have made for the connection before the new one, as
// soon as that does all that they do. Two that both sides began at once on a slow line may have
// missed each other, and would otherwise both be made anew for ever; and one that was to take
// the place of another may have been closed before it was ready.
func (m *Machine) closeDoubles(sa *ikeSA) {
	sa.reauth.last = false
	if sa.conn.Unique == UniqueNever {
		return
	}
	for i := range m.sas {
		o := &m.sas[i]
		if o == sa || o.state != StateEstablished || o.closeErr != nil || o.conn != sa.conn || !o.origin.ours ||
			!o.peerID.Equal(sa.peerID) || o.origin.began >= sa.origin.began {
			continue
		}
		more := o.reauth.old != 0 || !o.idle() || len(o.tasks) > 0
		for j := range m.children {
			c := &m.children[j]
			more = more || c.state != ChildFree && c.ike == o.slot && c.state != ChildRekeyed && !m.carries(sa, c.cfg)
		}
		if more {
			sa.reauth.last = true // look again
			continue
		}
		m.closeIKE(o, ErrReplaced, nil)
	}
}

// handTasks has the CHILD SAs that are still to be made on an IKE SA made on another one.
func (m *Machine) handTasks(from, to *ikeSA) {
	for i := range from.tasks {
		if t := &from.tasks[i]; t.kind == taskCreateChild {
			m.queue(to, *t)
			t.waiters = nil
		}
	}
}

// succeedChild makes heir the successor of a CHILD SA of the IKE SA that is replaced.
func (m *Machine) succeedChild(old uint32, heir *childSA) {
	if c := m.findChild(old); c != nil && c.ike != heir.ike && (c.state == ChildInstalled || c.state == ChildRekeying) {
		c.heir = heir.unique
		c.timers[tcRekey] = never
		m.inheritUse(c, heir)
	}
}

// ancestor returns the CHILD SA on another IKE SA with the peer whose place the one that req
// asks for seems to take, or nil.
func (m *Machine) ancestor(sa *ikeSA, req *peerCreate) *childSA {
	if req.kind != taskCreateChild || req.alone {
		return nil
	}
	for i := range m.children {
		c := &m.children[i]
		if c.conn != sa.conn || c.cfg != req.cfg || c.ike == sa.slot || c.state != ChildInstalled && c.state != ChildRekeying {
			continue
		}
		o := &m.sas[c.ike]
		if o.localID.Equal(sa.localID) && o.peerID.Equal(sa.peerID) && m.findChild(c.heir) == nil &&
			sameTS(c, &childSA{local: req.local, remote: req.remote}) {
			return c
		}
	}
	return nil
}

// armHeir has a CHILD SA used that was made in place of the one of another IKE SA, as soon as
// the peer is known to have it.
func (m *Machine) armHeir(old, c *childSA) {
	old.heir = c.unique
	m.inheritUse(old, c)
	c.mbb.until = m.now.Mono + heirMax
	m.armChild(c, tcUse, heirPoll)
}

// heirReady tells whether a standby outbound SA may be used now; if not, it is looked at
// again later.
func (m *Machine) heirReady(c *childSA) bool {
	if c.mbb.until <= m.now.Mono {
		return true
	}
	if in, _, _, _ := m.env.Usage(c.spiIn); in.Packets > 0 {
		return true
	}
	m.armChild(c, tcUse, heirPoll)
	return false
}

// useHeirs moves traffic to the CHILD SAs that take the place of those of an IKE SA that the
// peer deletes: once it has our answer it takes nothing more through the old ones.
func (m *Machine) useHeirs(sa *ikeSA) {
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildFree || c.ike != sa.slot || c.standby || c.outGone {
			continue
		}
		if heir := m.findChild(c.heir); heir != nil && heir.ike != sa.slot && heir.state != ChildDeleting {
			m.useChild(heir)
		}
	}
}

// bequeath takes the CHILD SAs that have a successor on another IKE SA out of one that ends because
// of err: they still take what is on its way. If one of two IKE SAs has gone by a DELETE, as where
// both sides had begun at once, the CHILD SAs of the other one that do the same are successors.
func (m *Machine) bequeath(sa *ikeSA, err error) {
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildFree || c.ike != sa.slot {
			continue
		}
		if c.heir == 0 && c.up() && (err == ErrPeerDeleted || err == ErrReplaced && sa.state == StateDeleting) {
			if o := m.double(sa, c); o != nil {
				c.heir = o.unique
				m.inheritUse(c, o)
			}
		}
		if heir := m.findChild(c.heir); heir != nil && heir.ike != sa.slot && heir.state != ChildDeleting && !c.outGone {
			c.ike = heir.ike
			m.retire(c)
		}
	}
}

// double returns a CHILD SA that does on another IKE SA with the same peer what c does on sa, or nil.
func (m *Machine) double(sa *ikeSA, c *childSA) *childSA {
	for i := range m.children {
		o := &m.children[i]
		if !o.up() || o.ike == sa.slot || o.cfg != c.cfg || o.conn != c.conn || o.lane.n != c.lane.n || !sameTS(o, c) {
			continue
		}
		by := &m.sas[o.ike]
		if by.state == StateEstablished && by.closeErr == nil && by.localID.Equal(sa.localID) && by.peerID.Equal(sa.peerID) {
			return o
		}
	}
	return nil
}

// ending tells whether the user is just closing another IKE SA with the peer of sa: what the
// peer had begun in its place before it knew ends with it.
func (m *Machine) ending(sa *ikeSA) bool {
	for i := range m.sas {
		o := &m.sas[i]
		if o != sa && o.state == StateDeleting && o.closeErr == ErrTerminated && o.conn == sa.conn && o.peerID.Equal(sa.peerID) {
			return true
		}
	}
	return false
}

// findIKE returns the IKE SA with that unique number, or nil.
func (m *Machine) findIKE(unique uint32) *ikeSA {
	for i := range m.sas {
		if m.sas[i].state != StateFree && m.sas[i].unique == unique {
			return &m.sas[i]
		}
	}
	return nil
}
