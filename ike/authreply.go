package ike

import "bytes"

// The responder's half of IKE_AUTH; auth.go has the whole picture.

// authRefuse answers a request with the only thing that a peer learns whose authentication failed
// (section 2.21.2), and forgets it.
func (m *Machine) authRefuse(sa *ikeSA, err error) {
	m.refuse(sa, sa.path, ExchangeAuth, &refusal{t: NotifyAuthenticationFailed, err: err})
	m.destroy(sa, err)
}

// authRequest handles an IKE_AUTH request of the peer's.
func (m *Machine) authRequest(sa *ikeSA, p Path) {
	a := &sa.init.auth
	idi, idr, auth := m.msg.Find(PayloadIDi), m.msg.Find(PayloadIDr), m.msg.Find(PayloadAuth)
	due := !a.begun
	if a.begun {
		_, remote := sa.authRounds()
		due = a.theirs < remote
	}
	if due != (idi != nil) || a.begun && m.msg.Find(PayloadSA) != nil {
		err := ErrRounds
		if !a.begun {
			err = &RuleError{Exchange: ExchangeAuth, Payload: PayloadIDi, Min: 1, Max: 1}
		}
		m.refuse(sa, p, ExchangeAuth, &refusal{t: NotifyInvalidSyntax, err: err})
		m.destroy(sa, err)
		return
	}
	m.learnAuth(sa)
	first := !a.begun
	if first {
		a.begun, a.path, a.first = true, p, m.hold()
	}
	switch {
	case !due:
		m.authReply(sa)
		return
	case sa.resume.on:
		if err := m.authenticateResumed(sa, idi, idr, auth); err != nil {
			m.authRefuse(sa, err)
			return
		}
		m.authTheirs(sa, Proof{ID: sa.peerID})
		return
	}
	peer, asked, method, data, err := parseClaim(idi, idr, auth)
	c := &claim{peer: peer, method: method, data: bytes.Clone(data), octets: sa.octets(true, idi.Body)}
	_, c.more = m.msg.FindNotify(NotifyAnotherAuthFollows)
	if err == nil && first {
		if err = m.candidates(sa, c, asked); err == nil {
			m.ppkTake(sa, c, idi.Body)
		}
	} else if err == nil {
		err = m.nextRound(sa, c)
	}
	if err == nil {
		c.evidence, err = m.takeCerts()
	}
	if err != nil {
		m.authRefuse(sa, err)
		return
	}
	sa.init.tried = c.cands[0].conn.Name
	a.claim = c
	if k := &c.cands[0]; k.round.Kind == AuthKindPSK {
		m.judged(sa, &judgement{proof: Proof{ID: peer}}, m.judgeMAC(sa, c, findSecret(m.secrets, k.local, peer)))
		return
	}
	m.judge(sa, lanePeers, c)
}

// authTheirs counts a round of the peer's, as responder, and answers it.
func (m *Machine) authTheirs(sa *ikeSA, p Proof) {
	a := &sa.init.auth
	a.theirs++
	a.theirProofs = append(a.theirProofs, p)
	if _, remote := sa.authRounds(); a.theirs == remote {
		var tooMany bool
		if a.eager, tooMany = m.overrun(sa); tooMany {
			m.refuse(sa, sa.path, ExchangeAuth, busy(ErrTooOften))
			m.destroy(sa, ErrTooOften)
			return
		}
	}
	m.authReply(sa)
}

// authReply makes our next round as responder, if there is one.
func (m *Machine) authReply(sa *ikeSA) {
	a := &sa.init.auth
	if local, _ := sa.authRounds(); a.ours < local {
		id := sa.conn.ownRoundID(a.ours, sa.localID)
		m.prove(sa, lanePeers, &sa.conn.localRounds()[a.ours], id, sa.peerID, m.authOctets(sa, id)...)
		return
	}
	m.authRespond(sa, proof{})
}

// authRespond answers an IKE_AUTH request with the proof of our round, if there is one.
func (m *Machine) authRespond(sa *ikeSA, mine proof) {
	a := &sa.init.auth
	ours := a.ours
	if mine.data != nil {
		ours++
	}
	if local, remote := sa.authRounds(); ours == local && a.theirs == remote {
		from := a.path
		m.recall(a.first)
		m.authFinish(sa, from, mine)
		return
	}
	m.respond(sa, sa.path, ExchangeAuth, m.proofWriter(sa, mine))
	if mine.data != nil {
		a.proved(sa.conn, sa.localID, mine)
	}
}

// authFinish ends IKE_AUTH as responder: both sides have authenticated, and the first request,
// which came from that path and is at hand, is answered.
func (m *Machine) authFinish(sa *ikeSA, from Path, mine proof) {
	p := sa.path
	if m.mobikeAgree(sa, from) {
		no := &refusal{t: NotifyUnexpectedNATDetected, err: &NotifyError{NotifyUnexpectedNATDetected, ""}}
		m.refuse(sa, p, ExchangeAuth, no)
		m.destroy(sa, no.err)
		return
	}
	_, contact := m.msg.FindNotify(NotifyInitialContact)
	contact = contact && sa.conn.Unique != UniqueNever
	if m.unwanted(sa, contact) {
		m.refuse(sa, p, ExchangeAuth, &refusal{t: NotifyAuthenticationFailed, err: ErrUnique})
		m.destroy(sa, ErrUnique)
		return
	}
	req := peerCreate{kind: taskCreateChild, ni: sa.ni, nr: sa.nr, alone: contact}
	var no *refusal
	childless := m.msg.Find(PayloadSA) == nil
	if childless && sa.conn.Childless == ChildlessNever || !childless && sa.conn.Childless == ChildlessForce {
		m.refuse(sa, p, ExchangeAuth, &refusal{t: NotifyInvalidSyntax, err: ErrChildless})
		m.destroy(sa, ErrChildless)
		return
	}
	if !childless {
		_, req.perCPU = m.msg.FindNotify(NotifySAResourceInfo)
		no = m.parseCreate(sa, &req, true)
	} else if m.msg.Find(PayloadCP) != nil {
		req.cp, no = m.grantAddresses(sa, contact)
	}
	sa.takeToken(m.sentToken())
	_, asked := m.msg.FindNotify(NotifyTicketRequest)
	write := m.proofWriter(sa, mine)
	if mine.data != nil {
		sa.init.auth.proved(sa.conn, sa.localID, mine)
	}
	if m.redirectAuth(sa, p, write) {
		return
	}
	eager := sa.init.auth.eager
	m.establish(sa)
	var c *childSA
	if !childless && no == nil {
		c, no = m.createChild(sa, &req, nil)
	}
	if no != nil {
		m.event(Event{Kind: EvRefused, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: no.t.String(), Err: no.err})
	}
	m.respond(sa, p, ExchangeAuth, func(b *Builder) {
		write(b)
		m.qcdNotify(b, sa)
		if asked {
			m.ticketNotify(b, sa)
		}
		m.writeAddresses(b, sa, &req.cp)
		if !eager {
			m.writeLifetime(b, sa, sa.origin.at+sa.conn.ReauthTime-m.now.Mono)
		}
		if c != nil {
			writeMode(b, c.mode)
			writeFragments(b, c.frags)
			c.answerResource(b)
			c.cfg.Hiding.write(b, c.agg.On)
			b.SA([]Proposal{req.answer(c.spiIn)})
			b.TS(PayloadTSi, c.remote)
			b.TS(PayloadTSr, c.local)
		} else if no != nil {
			no.write(b)
		}
		announceWindow(b)
		if sa.mobike.on {
			m.mobikeOffer(b, sa)
		}
	})
	sa.window.ours = maxWindow
	m.resumed(sa)
	m.resolveDuplicates(sa, contact)
	if !contact && sa.state == StateEstablished && m.ending(sa) {
		m.closeIKE(sa, ErrTerminated, nil)
	}
}
