package ike

import (
	"bytes"
	"time"

	"postern/esp"
)

// What becomes of an SA when another takes its place, and who wins when both sides act
// at once (RFC 7296 sections 2.8 and 2.25).

const (
	// standbyMax is how long we wait, after we have answered a rekeying, for the peer's
	// DELETE of the old SA before we use the new one all the same.
	standbyMax = 3 * time.Second
	// linger is how long the inbound half of a replaced SA still takes packets that were
	// on their way.
	linger = 5 * time.Second
)

// childRekeyed ends our rekeying of the CHILD SA old by c. If the peer rekeyed it too, the
// SA that came from the exchange with the lowest of the four nonces is closed by the side
// that asked for it (section 2.8.1).
func (m *Machine) childRekeyed(sa *ikeSA, c *childSA, target, rivalID uint32) {
	old, rival := m.findChild(target), m.findChild(rivalID)
	if rival != nil && (rival.state == ChildInstalled || rival.state == ChildRekeying) &&
		bytes.Compare(c.nonceLow, rival.nonceLow) < 0 {
		m.useChild(rival)
		if old != nil {
			m.superseded(old, rival.unique) // the peer deletes it
		}
		c.heir = rival.unique
		m.closeChild(sa, c, ErrReplaced, nil)
		return
	}
	m.event(Event{Kind: EvChildRekeyed, Conn: c.conn.Name, Child: c.cfg.Name, IKE: sa.unique, ChildID: c.unique, Old: target, Path: sa.path})
	if old != nil && old.state != ChildDeleting {
		old.heir = c.unique
		m.closeChild(sa, old, ErrReplaced, nil)
	}
}

// superseded marks a CHILD SA as replaced by the peer's rekeying: the peer deletes it.
func (m *Machine) superseded(old *childSA, heir uint32) {
	sa := &m.sas[old.ike]
	old.state, old.heir = ChildRekeyed, heir
	old.timers[tcRekey] = never
	m.dropChildTasks(sa, old)
	m.event(Event{Kind: EvChildRekeyed, Conn: old.conn.Name, Child: old.cfg.Name, IKE: sa.unique, ChildID: heir, Old: old.unique, Path: sa.path})
	if old.expireAt == 0 {
		m.armChild(old, tcExpire, time.Minute) // should the peer forget
	}
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
	if c.standby {
		c.standby = false
		m.out = append(m.out, Output{Kind: OutUseSA, SPI: c.spiOut, Inbound: c.spiIn})
	}
}

// resolveTwins looks, after a new CHILD SA, for one that does the same and that the other
// side asked for at the same time. The pair with the lower SPI goes; both sides see the
// same two pairs, so both come to the same result.
func (m *Machine) resolveTwins(sa *ikeSA, c *childSA) {
	for i := range m.children {
		o := &m.children[i]
		if o == c || o.ike != c.ike || o.cfg != c.cfg || o.byPeer == c.byPeer ||
			o.state != ChildInstalled && o.state != ChildRekeying ||
			!within(o.local, c.local) || !within(c.local, o.local) || !within(o.remote, c.remote) || !within(c.remote, o.remote) {
			continue
		}
		loser := c
		if min(o.spiIn, o.spiOut) < min(c.spiIn, c.spiOut) {
			loser = o
		}
		winner := c
		if loser == c {
			winner = o
		}
		loser.heir = winner.unique
		m.closeChild(sa, loser, ErrReplaced, nil)
		return
	}
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

// childDown tells that a CHILD SA carries traffic no more.
func (m *Machine) childDown(c *childSA, err error) {
	if c.state == ChildInstalled || c.state == ChildRekeying {
		m.event(Event{Kind: EvChildDown, Conn: c.conn.Name, Child: c.cfg.Name, IKE: m.sas[c.ike].unique, ChildID: c.unique,
			Path: m.sas[c.ike].path, Err: err})
	}
}

// deleteOut takes the outbound half away.
func (m *Machine) deleteOut(c *childSA) {
	if c.outGone {
		return
	}
	if heir := m.findChild(c.heir); heir != nil {
		m.useChild(heir)
	}
	c.outGone = true
	m.out = append(m.out, Output{Kind: OutDelSA, SPI: c.spiOut, Dir: esp.Out, Inbound: c.spiIn})
}

// retire ends a CHILD SA on which the peer and we agree that it is over. One that has been
// replaced still takes what was on its way.
func (m *Machine) retire(c *childSA) {
	m.deleteOut(c)
	ws := c.waiters
	c.waiters = nil
	if c.heir != 0 {
		c.state = ChildRekeyed
		c.timers.clear()
		m.armChild(c, tcGone, linger)
	} else {
		m.removeChild(c)
	}
	m.settle(ws, nil)
}

// removeChild takes a CHILD SA out of the tables.
func (m *Machine) removeChild(c *childSA) {
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
	if s == nil || err == ErrTerminated || err == ErrReplaced {
		return
	}
	action := c.cfg.DPDAction
	switch err {
	case ErrPeerDeleted:
		action = c.cfg.CloseAction
	case ErrLifetime:
		action = ActionRestart
	}
	if action == ActionRestart {
		m.wishAgain(c.conn, c.cfg)
	}
}

// wishAgain has a CHILD SA negotiated again soon.
func (m *Machine) wishAgain(conn *Conn, cfg *Child) {
	s := m.stateOf(conn)
	if s == nil {
		return
	}
	for _, w := range s.wanted {
		if w.cfg == cfg {
			return
		}
	}
	s.wanted = append(s.wanted, wish{cfg: cfg})
	if s.retryAt == never {
		m.armRetry(s, m.random(time.Second))
	}
}
