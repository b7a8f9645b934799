package ike

import (
	"math"
	"time"
)

// never is the deadline of a timer that is off.
const never = time.Duration(math.MaxInt64)

// expireGrace is how long an IKE SA whose hard lifetime is over may take to tell the peer.
const expireGrace = 5 * time.Second

// saTimer names a deadline of an IKE SA.
type saTimer uint8

const (
	tRetransmit saTimer = iota // our request is unanswered
	tConnect                   // an unfinished responder is forgotten
	tLiveness                  // the peer may be silent
	tRekey                     // soft lifetime
	tReauth                    // soft lifetime of the authentication
	tExpire                    // hard lifetime
	tTask                      // a task that was put off may run
	tFragments                 // an incomplete message is forgotten
	tTicket                    // the ticket will soon be too old
	tReplace                   // the IKE SA that this one takes the place of is closed
	tPatience                  // another address of the peer is to be called
	tPress                     // packets wait: what is unanswered is repeated
	tFollow                    // a series of the peer's is forgotten
	numSATimers
)

// childTimer names a deadline of a CHILD SA.
type childTimer uint8

const (
	tcRekey  childTimer = iota // soft lifetime
	tcExpire                   // hard lifetime
	tcUse                      // a standby outbound SA is used without the peer's word
	tcIdle                     // nothing may have passed for long
	tcGone                     // a replaced inbound SA has lingered long enough
	numChildTimers
)

// deadlines is an array of deadlines on the monotonic clock, indexed by a timer's name.
type saDeadlines [numSATimers]time.Duration
type childDeadlines [numChildTimers]time.Duration

func (d *saDeadlines) clear() {
	for i := range d {
		d[i] = never
	}
}

func (d *childDeadlines) clear() {
	for i := range d {
		d[i] = never
	}
}

// arm sets a timer of sa to fire after d.
func (m *Machine) arm(sa *ikeSA, t saTimer, d time.Duration) {
	sa.timers[t] = m.now.Mono + d
	m.wake = min(m.wake, sa.timers[t])
}

// armChild sets a timer of c to fire after d.
func (m *Machine) armChild(c *childSA, t childTimer, d time.Duration) {
	c.timers[t] = m.now.Mono + d
	m.wake = min(m.wake, c.timers[t])
}

// armRetry sets when a connection is tried again.
func (m *Machine) armRetry(s *connState, d time.Duration) {
	s.retryAt = m.now.Mono + d
	m.wake = min(m.wake, s.retryAt)
}

// Deadline returns the time at which Timeout must be called, at the latest; ok is
// false when nothing is waiting for the clock. It may be earlier than the earliest
// timer: then Timeout does nothing and moves it.
func (m *Machine) Deadline() (at time.Duration, ok bool) {
	return m.wake, m.wake != never
}

// Timeout fires every timer that is due.
func (m *Machine) Timeout(now Time) {
	m.now = now
	if now.Mono < m.wake {
		return
	}
	for i := range m.sas {
		sa := &m.sas[i]
		for t := saTimer(0); t < numSATimers && sa.state != StateFree; t++ {
			if sa.timers[t] <= now.Mono {
				sa.timers[t] = never
				m.fireSA(sa, t)
			}
		}
	}
	for i := range m.children {
		c := &m.children[i]
		for t := childTimer(0); t < numChildTimers && c.state != ChildFree; t++ {
			if c.timers[t] <= now.Mono {
				c.timers[t] = never
				m.fireChild(c, t)
			}
		}
	}
	for i := range m.conns {
		if s := m.conns[i]; s.retryAt <= now.Mono {
			s.retryAt = never
			m.retry(s)
		}
	}
	for _, n := range m.names {
		if n.next <= now.Mono {
			n.next = never
			m.ask(n, nameFresh)
		}
	}
	m.finish()
	m.wake = never
	for i := range m.sas {
		if m.sas[i].state != StateFree {
			for _, d := range m.sas[i].timers {
				m.wake = min(m.wake, d)
			}
		}
	}
	for i := range m.children {
		if m.children[i].state != ChildFree {
			for _, d := range m.children[i].timers {
				m.wake = min(m.wake, d)
			}
		}
	}
	for _, s := range m.conns {
		m.wake = min(m.wake, s.retryAt)
	}
	for _, n := range m.names {
		m.wake = min(m.wake, n.next)
	}
}

func (m *Machine) fireSA(sa *ikeSA, t saTimer) {
	switch t {
	case tRetransmit:
		m.retransmitDue(sa)
	case tConnect:
		m.destroy(sa, ErrTimeout)
	case tLiveness:
		m.checkLiveness(sa)
	case tRekey:
		if sa.state == StateEstablished {
			m.queue(sa, task{kind: taskRekeyIKE})
		}
	case tReauth:
		m.reauthDue(sa)
	case tExpire:
		if sa.state == StateEstablished && sa.closeErr == nil {
			if sa.replaced != 0 && !m.replacedStill(sa) {
				sa.replaced = 0
				if sa.expireAt > m.now.Mono {
					m.arm(sa, tExpire, sa.expireAt-m.now.Mono)
				}
				return
			}
			why := ErrLifetime
			switch {
			case sa.replaced != 0:
				why = ErrReplaced
			case m.stateOf(sa.conn) == nil:
				why = ErrTerminated // it has outlived its configuration
			}
			m.closeIKE(sa, why, nil)
			m.arm(sa, tExpire, expireGrace) // whether the peer answers or not
		} else {
			if sa.collision.slot != 0 && sa.closeErr == ErrLifetime {
				m.adoptRival(sa) // the peer's rekeying of it was answered, and the CHILD SAs are of that one
			}
			m.destroy(sa, ErrLifetime)
		}
	case tTicket:
		if sa.state == StateEstablished {
			sa.resume.asked = true
			m.queue(sa, task{kind: taskTell})
		}
	case tTask, tReplace:
		// runTasks looks after every input.
	case tFragments:
		m.dropFragments(sa)
	case tPatience:
		m.outOfPatience(sa)
	case tFollow:
		m.expireFollow(sa)
	case tPress:
		m.repeatPressed(sa)
	}
}

func (m *Machine) fireChild(c *childSA, t childTimer) {
	sa := &m.sas[c.ike]
	switch t {
	case tcRekey:
		if c.state == ChildInstalled {
			m.queue(sa, task{kind: taskRekeyChild, cfg: c.cfg, target: c.unique})
		}
	case tcExpire:
		switch c.state {
		case ChildInstalled, ChildRekeying:
			if rival := m.rivalOf(c); rival != nil {
				m.superseded(c, rival)
				return
			}
			m.childLost(c, ErrLifetime)
			m.closeChild(sa, c, ErrLifetime, nil)
			m.deleteOut(c)
		default:
			m.removeChild(c)
		}
	case tcUse:
		if m.heirReady(c) {
			m.useChild(c)
		}
	case tcIdle:
		m.checkIdle(c)
	case tcGone:
		m.removeChild(c)
	}
}
