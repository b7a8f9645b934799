package ike

import "time"

// establish makes an authenticated IKE SA ready for use.
func (m *Machine) establish(sa *ikeSA) {
	sa.state = StateEstablished
	sa.established = m.now.Mono
	sa.lastIn = m.now.Mono
	sa.mobike.first = sa.path.Remote.Addr()
	m.noteLocal(sa)
	sa.origin = origin{ours: sa.initiator, spiI: sa.spiI, at: m.now.Mono, began: sa.unique, done: m.nextIKE, dialled: sa.dialled}
	if sa.resume.on {
		sa.origin.at = sa.init.auth.born
	}
	sa.anchors = sa.init.auth.anchors
	sa.proofs, sa.origin.until = [2][]Proof{sa.init.auth.ourProofs, sa.init.auth.theirProofs}, sa.init.auth.until
	sa.timers[tConnect] = never
	m.armLife(sa)
	sa.init.wipe()
	sa.inter.wipe()
	m.learnWindow(sa)
	m.announceIKE(sa, nil)
	m.ppkAudit(sa)
	s := m.stateOf(sa.conn)
	if s == nil {
		return
	}
	s.tries, s.retryAt = 0, never
	s.dropTicket()
	if sa.initiator {
		sa.reauth.last = true
		m.redirectEnds(s, true)
	}
	m.reached(s, sa)
	m.grantBare(s)
	if len(s.wanted) > 0 && !sa.initiator {
		m.armRetry(s, time.Second+m.random(time.Second)) // what the peer has not brought up by then
	}
}

// armLife sets the lifetimes and the liveness check of an IKE SA.
func (m *Machine) armLife(sa *ikeSA) {
	m.armRekey(sa)
	m.armReauth(sa)
	m.armCert(sa)
	if c := sa.conn; c.DPDDelay > 0 {
		m.arm(sa, tLiveness, c.DPDDelay)
	}
}

// armRekey sets when an IKE SA is rekeyed, and ends it a while after that.
func (m *Machine) armRekey(sa *ikeSA) {
	if c := sa.conn; c.RekeyTime > 0 {
		soft := c.RekeyTime - m.random(c.RandTime)
		m.arm(sa, tRekey, max(soft, time.Second))
		sa.rekeyAt = sa.timers[tRekey]
		m.arm(sa, tExpire, c.RekeyTime+c.overTime())
		sa.expireAt = sa.timers[tExpire]
	}
}
