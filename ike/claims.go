package ike

// What an initiator claims in IKE_AUTH, which connection that fits, and whether it is proved.

// parseClaim reads who an initiator says that it is, whom it asks for (nobody, if idr is nil),
// and the proof.
func parseClaim(idi, idr, auth *Payload) (peer, asked ID, method AuthMethod, proof []byte, err error) {
	if idi == nil {
		return peer, asked, 0, nil, ErrNoIdentity
	}
	if peer, err = parsePeerID(idi.Body); err == nil && idr != nil {
		asked, err = parsePeerID(idr.Body)
	}
	if err != nil {
		return peer, asked, 0, nil, err
	}
	if auth == nil {
		return peer, asked, 0, nil, ErrNoAuth
	}
	method, proof, err = ParseAuth(auth.Body)
	return peer, asked, method, proof, err
}

// judgeMAC checks a claim that was made with a shared key.
func (m *Machine) judgeMAC(sa *ikeSA, c *claim, secret *Secret) error {
	switch {
	case c.method != AuthPSK:
		return ErrAuthMethod
	case secret == nil:
		return ErrNoSecret
	case !constantEqual(pskAuth(sa.suite.PRF, secret.Key, c.octets), c.data):
		return &AuthError{c.peer, sa.ppk.id}
	}
	return nil
}

// candidates finds the connections that the peer's identity and addresses, whom it asks for, and
// how it authenticates fit. With a shared key the first one is the one.
func (m *Machine) candidates(sa *ikeSA, c *claim, asked ID) error {
	var err error = &IdentityError{c.peer, asked}
	for _, s := range m.conns {
		conn := s.conn
		if !m.matches(conn, sa.path) || !conn.RemoteID.Admits(c.peer) {
			continue
		}
		local := conn.ownID(sa.path)
		if asked != (ID{}) && !asked.Equal(local) {
			if !conn.hasName(asked) {
				continue
			}
			local = asked
		}
		if _, ok := chooseProposal(conn.Proposals, []Proposal{sa.suite.proposal()}, sa.suite.DH, false); !ok {
			err = ErrNoProposal
			continue
		}
		rounds := conn.remoteRounds()
		shared := rounds[0].Kind == AuthKindPSK
		switch {
		case shared != (c.method == AuthPSK):
			err = ErrAuthMethod
			continue
		case (len(rounds) > 1) != c.more:
			err = ErrRounds
			continue
		case len(conn.localRounds()) > 1 && !sa.init.auth.many:
			err = ErrOneRound
			continue
		case shared && findSecret(m.secrets, local, c.peer) == nil:
			err = ErrNoSecret
			continue
		}
		ppk, no := m.ppkAdmit(sa, conn)
		if no != nil {
			err = no
			continue
		}
		if len(c.cands) == 0 {
			c.ppk = ppk
		}
		if shared && len(c.cands) > 0 || len(c.cands) >= maxCandidates || ppk != c.ppk {
			continue
		}
		c.cands = append(c.cands, candidate{conn, rounds[0], local})
	}
	if len(c.cands) > 0 {
		return nil
	}
	return err
}

// hasName tells whether a connection without an identity of ours has a certificate of that name.
func (c *Conn) hasName(id ID) bool {
	certs := c.localRounds()[0].Certs
	return c.LocalID == ID{} && len(certs) > 0 && certs[0].Confirms(uint8(id.Type), []byte(id.Data)) == nil
}

// nextRound finds the round that the peer's second or a later claim is about.
func (m *Machine) nextRound(sa *ikeSA, c *claim) error {
	i := sa.init.auth.theirs
	rounds := sa.conn.remoteRounds()
	switch want := sa.conn.peerRoundID(i); {
	case !want.Admits(c.peer):
		return &IdentityError{c.peer, want}
	case (rounds[i].Kind == AuthKindPSK) != (c.method == AuthPSK):
		return ErrAuthMethod
	case c.more != (i+1 < len(rounds)):
		return ErrRounds
	}
	c.cands = []candidate{{sa.conn, rounds[i], sa.localID}}
	return nil
}

// judged goes on with the verdict about a round of the peer's.
func (m *Machine) judged(sa *ikeSA, v *judgement, err error) {
	a := &sa.init.auth
	c := a.claim
	a.claim = nil
	err = sa.ppkDoubt(err)
	if sa.initiator {
		if a.held != nil {
			m.recall(a.held)
			a.held = nil
		}
		m.authJudged(sa, v, err)
		return
	}
	if err == nil && sa.conn == nil {
		k := &c.cands[v.which]
		if m.stateOf(k.conn) == nil {
			err = ErrTerminated // it is configured no more
		} else if p := c.ppk; p != nil && !p.same(m.ppkFor(k.conn, p.ID)) {
			err = ErrPPKUnknown // since the request came
		} else {
			sa.conn, sa.localID, sa.peerID = k.conn, k.local, c.peer
		}
	}
	if err != nil {
		m.authRefuse(sa, err)
		return
	}
	a.limit(m, v)
	m.authTheirs(sa, v.proof)
}

// knows tells whether there is another IKE SA with the peer, in which case we must not
// say INITIAL_CONTACT (RFC 7296 section 2.4).
func (m *Machine) knows(sa *ikeSA, peer ID) bool {
	for i := range m.sas {
		o := &m.sas[i]
		if o != sa && o.state != StateFree && o.state != StateConnecting && o.localID.Equal(sa.localID) &&
			(o.peerID.Equal(peer) || peer == ID{}) {
			return true
		}
	}
	return false
}
