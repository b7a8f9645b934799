package ike

import (
	"bytes"
	"slices"
	"time"

	"postern/esp"
)

// What becomes of an SA when another takes its place, and who wins when both sides act
// at once (RFC 7296 sections 2.8 and 2.25).

const (
	// standbyMax is how long we wait, after we have answered a rekeying, for the peer's
	// DELETE of the old SA before we use the new one all the same.
	standbyMax = 30 * time.Second
	// linger is how long the inbound half of a replaced SA still takes packets that were
	// on their way.
	linger = 5 * time.Second
	// crossMax is how old a CHILD SA of ours is at most that the peer may not have known when it asked
	// for the same: its request may have been lost three times. Should it be later still, both pairs may
	// go, and are made anew.
	crossMax = 30 * time.Second
)

// childRekeyed ends our rekeying of the CHILD SA old by c. If the peer rekeyed it too, the
// SA that came from the exchange with the lowest of the four nonces is closed by the side
// that asked for it (section 2.8.1).
//
// The loser never carries a packet of ours, and the winner, if it is the peer's, only when
// the peer's DELETE of the old one shows that it has our answer.
func (m *Machine) childRekeyed(sa *ikeSA, c *childSA, req *request, loses bool) {
	old, rival := m.findChild(req.task.target), m.findChild(req.rival)
	if loses && rival == nil { // the peer's is still under way
		if old != nil && old.state == ChildRekeying {
			old.state = ChildInstalled
			m.armChild(old, tcRekey, followLife) // should it come to nothing
		}
		m.closeChild(sa, c, ErrReplaced, nil)
		return
	}
	if loses {
		m.superseded(old, rival) // the peer deletes it
		c.heir = rival.unique
		m.closeChild(sa, c, ErrReplaced, nil)
		return
	}
	m.inheritUse(old, c)
	before := old
	if rival != nil && rival.told {
		before = rival
	}
	m.announce(c, before)
	if rival != nil && rival.state != ChildDeleting {
		m.yield(rival, c.unique) // the peer deletes it
	}
	if old != nil && (old.state == ChildInstalled || old.state == ChildRekeying) {
		old.heir = c.unique
		m.closeChild(sa, old, ErrReplaced, nil)
	}
}

// lowest returns the lower of the two nonces of an exchange, by which collisions are decided.
func lowest(ni, nr []byte) []byte {
	if bytes.Compare(nr, ni) < 0 {
		return nr
	}
	return ni
}

// announce tells that c carries traffic, in place of old if there is one of which that
// was told.
func (m *Machine) announce(c, old *childSA) {
	if c.told {
		return
	}
	sa := &m.sas[c.ike]
	e := Event{Kind: EvChildUp, Conn: c.conn.Name, Child: c.cfg.Name, IKE: sa.unique, ChildID: c.unique, Path: sa.path, Suite: c.algorithms()}
	if old != nil && old.told {
		e.Kind, e.Old = EvChildRekeyed, old.unique
		m.count(sa, CountChildRekey)
		old.told = false
	} else {
		sa.live.unused, sa.live.lost = false, false
	}
	c.told = true
	m.tell(e)
}

// superseded makes heir, which came from the peer's rekeying, the successor of old, which
// the peer deletes or has deleted (then it may be nil).
func (m *Machine) superseded(old, heir *childSA) {
	m.announce(heir, old)
	if old != nil && (old.state == ChildInstalled || old.state == ChildRekeying) {
		m.yield(old, heir.unique)
	}
}

// rivalOf returns the CHILD SA by which the peer has rekeyed c while our own rekeying of
// c is unanswered, or nil.
func (m *Machine) rivalOf(c *childSA) *childSA {
	req := m.sas[c.ike].outstanding(func(r *request) bool { return r.rival != 0 && r.task.target == c.unique })
	if req == nil {
		return nil
	}
	return m.findChild(req.rival)
}

// yield leaves a CHILD SA that has a successor to the peer's DELETE.
func (m *Machine) yield(c *childSA, heir uint32) {
	c.state, c.heir = ChildRekeyed, heir
	c.timers[tcRekey] = never
	m.dropChildTasks(&m.sas[c.ike], c)
	m.armChild(c, tcExpire, rekeyedMax) // should the peer forget
}

// dropChildTasks takes the rekeying of a CHILD SA out of the queue.
func (m *Machine) dropChildTasks(sa *ikeSA, c *childSA) {
	kept := sa.tasks[:0]
	for _, t := range sa.tasks {
		if t.kind == taskRekeyChild && t.target == c.unique {
			m.settle(t.waiters, nil)
			continue
		}
		kept = append(kept, t)
	}
	sa.tasks = kept
}

// useChild makes a standby outbound SA the one that is used.
func (m *Machine) useChild(c *childSA) {
	c.timers[tcUse] = never
	if c.standby && !c.outGone {
		c.standby = false
		m.out = append(m.out, Output{Kind: OutUseSA, SPI: c.spiOut, Inbound: c.spiIn})
	}
}

// resolveTwins looks, when a CHILD SA has come up, for another one that does the same: both
// sides may have asked for one at the same time, or a rekeying was answered after a new one
// had been asked for. If each side has made one the pair with the lower SPI goes: both
// see the same two pairs, so both come to the same result, and if only one of them takes them
// for twins it acts alone. If ours is older than crossMax, though, the peer has asked again because it
// has lost that one. Of two that we have made, one after the other, we want the later
// one. What the peer has made beside another one of its own is its affair: it may want one for
// each class of packets (RFC 4301 section 4.1). target is the CHILD SA of another IKE SA in
// whose place c comes, if it does.
func (m *Machine) resolveTwins(sa *ikeSA, c *childSA, target uint32) {
	old := m.findChild(target)
	moved := old != nil && old.ike != c.ike
	for i := range m.children {
		o := &m.children[i]
		if c.state != ChildInstalled && c.state != ChildRekeying {
			return
		}
		if o == c || o.ike != c.ike || o.cfg != c.cfg || sa.rivaled(o.unique) != nil ||
			o.state != ChildInstalled && o.state != ChildRekeying || !sameTS(c, o) || !c.twin(o, moved) {
			continue
		}
		winner, loser := c, o
		if lost := c.byPeer && m.now.Mono-o.installed > crossMax; o.byPeer != c.byPeer && !lost && min(o.spiIn, o.spiOut) > min(c.spiIn, c.spiOut) {
			winner, loser = o, c
		}
		m.childDown(loser, ErrReplaced)
		loser.heir = winner.unique
		m.closeChild(sa, loser, ErrReplaced, nil)
	}
}

// sameTS tells whether two CHILD SAs have the same selectors.
func sameTS(a, b *childSA) bool {
	return within(a.local, b.local) && within(b.local, a.local) && within(a.remote, b.remote) && within(b.remote, a.remote)
}

// ensure has a CHILD SA that is to be up for ever negotiated again if, in the course of
// several replacements at once, none of its kind is left.
func (m *Machine) ensure(conn *Conn, cfg *Child) {
	if cfg.StartAction != StartStart {
		return
	}
	for i := range m.children {
		if o := &m.children[i]; o.conn == conn && o.cfg == cfg && (o.state == ChildInstalled || o.state == ChildRekeying) {
			return
		}
	}
	m.wishAgain(conn, cfg)
}

// closeChild ends a CHILD SA in agreement with the peer. w, if any, learns of the end.
func (m *Machine) closeChild(sa *ikeSA, c *childSA, err error, w *waiter) {
	if w != nil {
		c.waiters = append(c.waiters, w)
	}
	if c.state == ChildDeleting {
		return
	}
	if c.heir == 0 {
		m.childDown(c, err)
	}
	m.dropChildTasks(sa, c)
	c.state = ChildDeleting
	c.timers.clear()
	m.armChild(c, tcExpire, 10*time.Minute) // should the exchange never come to an end
	m.queue(sa, task{kind: taskDeleteChild, target: c.unique})
}

// childDown tells that a CHILD SA carries traffic no more, unless that has been told.
func (m *Machine) childDown(c *childSA, err error) {
	if c.told {
		c.told = false
		m.sas[c.ike].live.lost = true
		m.tell(Event{Kind: EvChildDown, Conn: c.conn.Name, Child: c.cfg.Name, IKE: m.sas[c.ike].unique, ChildID: c.unique,
			Path: m.sas[c.ike].path, Err: err})
	}
}

// deleteOut takes the outbound half away.
func (m *Machine) deleteOut(c *childSA) {
	if c.outGone {
		return
	}
	if heir := m.findChild(c.heir); heir != nil && !c.standby {
		m.useChild(heir)
	}
	c.outGone = true
	m.out = append(m.out, Output{Kind: OutDelSA, SPI: c.spiOut, Dir: esp.Out, Inbound: c.spiIn})
}

// retire ends a CHILD SA on which the peer and we agree that it is over. One that has been
// replaced still takes what was on its way.
func (m *Machine) retire(c *childSA) {
	m.childDown(c, ErrReplaced)
	m.deleteOut(c)
	ws := c.waiters
	c.waiters = nil
	if c.heir != 0 {
		c.state = ChildRekeyed
		c.timers.clear()
		m.armChild(c, tcGone, linger)
		m.ensure(c.conn, c.cfg)
	} else {
		m.removeChild(c)
	}
	m.settle(ws, nil)
}

// removeChild takes a CHILD SA out of the tables.
func (m *Machine) removeChild(c *childSA) {
	m.childDown(c, ErrReplaced)
	m.deleteOut(c)
	m.out = append(m.out, Output{Kind: OutDelSA, SPI: c.spiIn, Dir: esp.In, Inbound: c.spiIn})
	m.env.FreeSPI(c.spiIn)
	ws := c.waiters
	*c = childSA{}
	m.settle(ws, nil)
}

// childLost does what the configuration says should follow when a CHILD SA ends for
// the reason err, which was not the user's wish.
func (m *Machine) childLost(c *childSA, err error) {
	s := m.stateOf(c.conn)
	if heir := m.findChild(c.heir); heir != nil && heir.state != ChildDeleting || m.carriedOn(c) {
		return // that one carries the traffic
	}
	if s == nil || err == ErrTerminated || err == ErrReplaced || err == ErrInactive {
		return
	}
	action := c.cfg.DPDAction
	switch err {
	case ErrPeerDeleted:
		action = c.cfg.CloseAction
	case ErrLifetime:
		action = ActionRestart
	case ErrPeerRestarted:
		// It is there, so whoever brought the tunnel up does so again.
		if m.sas[c.ike].origin.ours || c.cfg.StartAction == StartStart {
			action = ActionRestart
		}
	}
	if action == ActionRestart {
		m.wishAgain(c.conn, c.cfg)
	}
}

// wishAgain has a CHILD SA negotiated again soon.
func (m *Machine) wishAgain(conn *Conn, cfg *Child) {
	s := m.stateOf(conn)
	if s == nil || s.held[cfg] || !slices.Contains(conn.Children, cfg) {
		return
	}
	if !m.callable(conn) {
		return // the peer has to call us
	}
	for _, w := range s.wanted {
		if w.cfg == cfg {
			return
		}
	}
	s.wanted = append(s.wanted, wish{cfg: cfg})
	if s.retryAt == never {
		m.armRetry(s, m.afterLoss(s))
	}
}

// algorithms returns what was agreed on for a CHILD SA, in charon's words.
func (c *childSA) algorithms() string {
	s := c.suite.String()
	if c.dh != DHNone {
		s += "/" + c.dh.String() + c.ke.String()
	}
	return s
}
