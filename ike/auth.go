package ike

import (
	"net/netip"
	"time"

	"postern/esp"
)

// IKE_AUTH (RFC 7296 section 1.2): who is there, and the first CHILD SA.

// halfOpenLife is how long a peer may take between its first message and IKE_AUTH.
const halfOpenLife = 30 * time.Second

// idOfAddr returns the identity that an address is.
func idOfAddr(a netip.Addr) ID {
	if a.Is4() {
		return ID{IDIPv4, string(a.AsSlice())}
	}
	return ID{IDIPv6, string(a.AsSlice())}
}

// ownID returns who we are on a connection: what is configured, else our address.
func (c *Conn) ownID(p Path) ID {
	if c.LocalID == (ID{}) {
		return idOfAddr(p.Local.Addr())
	}
	return c.LocalID
}

// findSecret returns the secret that fits the pair of identities best, or nil.
func findSecret(secrets []Secret, local, remote ID) *Secret {
	var best *Secret
	for i := range secrets {
		if s := &secrets[i]; s.Fits(local, remote) > 0 && (best == nil || s.Fits(local, remote) > best.Fits(local, remote)) {
			best = s
		}
	}
	return best
}

// authSend sends our IKE_AUTH request.
func (m *Machine) authSend(sa *ikeSA) {
	c := sa.conn
	sa.localID = c.ownID(sa.path)
	if sa.resume.on {
		sa.localID = sa.resume.with.local
	}
	secret := findSecret(m.secrets, sa.localID, c.RemoteID)
	if secret == nil {
		m.destroy(sa, ErrNoSecret)
		return
	}
	if c.Childless == ChildlessForce && !sa.init.bare {
		m.destroy(sa, ErrChildless)
		return
	}
	var w wish
	var old *childSA
	bare := sa.init.bare && (c.Childless == ChildlessPrefer || c.Childless == ChildlessForce)
	if !bare {
		old = m.reauthNext(sa)
	}
	switch {
	case bare:
	case old != nil:
		w.cfg, sa.init.target = old.cfg, old.unique
	case len(sa.conns.wanted) > 0:
		w = sa.conns.wanted[0]
	case sa.init.bare && sa.reauth.old != 0:
		bare = true // the old one has no CHILD SA either
	default:
		m.destroy(sa, ErrNoChild)
		return
	}
	if bare {
		m.authTransmit(sa, secret)
		return
	}
	if old != nil {
		sa.init.lane = old.ownLane()
	}
	spi, ok := m.allocSPI(false, w.cfg, sa.init.lane)
	if !ok {
		m.destroy(sa, ErrTableFull)
		return
	}
	sa.init.spiIn = spi
	sa.init.child = w.cfg
	sa.init.childTS = m.offerTS(sa, w.cfg, &w.flow)
	if old != nil {
		sa.init.childTS = [2][]esp.Selector{old.local, old.remote}
	}
	sa.init.mode = m.offerMode(sa, w.cfg.Mode, &sa.init.childTS)
	sa.init.offered = numbered(withoutDH(w.cfg.Proposals), be32(spi))
	m.authTransmit(sa, secret)
}

// authTransmit sends the IKE_AUTH request with the CHILD SA of sa.init, if there is one.
func (m *Machine) authTransmit(sa *ikeSA, secret *Secret) {
	c := sa.conn
	sa.req = request{task: task{kind: taskAuth}}
	idBody := sa.localID.appendBody(nil)
	auth := sa.authData(secret.Key, sa.octets(true, idBody), true)
	m.sendRequest(sa, ExchangeAuth, func(b *Builder) {
		b.ID(PayloadIDi, sa.localID)
		if c.Unique != UniqueNever && !m.knows(sa, c.RemoteID) {
			b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
		}
		if c.RemoteID != (ID{}) {
			b.ID(PayloadIDr, c.RemoteID)
		}
		b.Auth(AuthPSK, auth)
		m.qcdNotify(b, sa)
		m.askTicket(b, sa)
		if sa.init.child != nil {
			writeMode(b, sa.init.mode)
			writeFragments(b, sa.init.child.Fragments)
			writeResource(b, sa.init.child, sa.init.lane)
			m.askAggFrag(b, sa.init.child, sa.init.mode, sa.init.target)
			b.SA(sa.init.offered)
			b.TS(PayloadTSi, sa.init.childTS[0])
			b.TS(PayloadTSr, sa.init.childTS[1])
		}
		announceWindow(b)
		m.mobikeOffer(b, sa)
	})
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

// authRequest handles the peer's IKE_AUTH request.
func (m *Machine) authRequest(sa *ikeSA, p Path) {
	idi, idr, auth := m.msg.Find(PayloadIDi), m.msg.Find(PayloadIDr), m.msg.Find(PayloadAuth)
	check := m.authenticate
	if sa.resume.on {
		check = m.authenticateResumed
	}
	err := check(sa, idi, idr, auth)
	if err != nil {
		// The peer learns nothing but that it failed (section 2.21.2).
		m.refuse(sa, p, ExchangeAuth, &refusal{t: NotifyAuthenticationFailed, err: err})
		m.destroy(sa, err)
		return
	}
	eager, tooMany := m.overrun(sa)
	if tooMany {
		m.refuse(sa, p, ExchangeAuth, busy(ErrTooOften))
		m.destroy(sa, ErrTooOften)
		return
	}
	if m.mobikeAgree(sa, p) {
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
	}
	secret := findSecret(m.secrets, sa.localID, sa.peerID)
	mine := sa.authData(secret.Key, sa.octets(false, sa.localID.appendBody(nil)), false)
	sa.takeToken(m.sentToken())
	_, asked := m.msg.FindNotify(NotifyTicketRequest)
	if m.redirectAuth(sa, p, mine) {
		return
	}
	m.establish(sa)
	var c *childSA
	if !childless && no == nil {
		c, no = m.createChild(sa, &req, nil)
	}
	if no != nil {
		m.event(Event{Kind: EvRefused, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: no.t.String(), Err: no.err})
	}
	m.respond(sa, p, ExchangeAuth, func(b *Builder) {
		b.ID(PayloadIDr, sa.localID)
		b.Auth(AuthPSK, mine)
		m.qcdNotify(b, sa)
		if asked {
			m.ticketNotify(b, sa)
		}
		if !eager {
			m.writeLifetime(b, sa, sa.conn.ReauthTime)
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

// parseClaim reads who an initiator says that it is, whom it asks for (nobody, if idr is nil),
// and the proof.
func parseClaim(idi, idr, auth *Payload) (peer, asked ID, proof []byte, err error) {
	if idi == nil {
		return peer, asked, nil, ErrNoIdentity
	}
	if peer, err = ParseID(idi.Body); err == nil && idr != nil {
		asked, err = ParseID(idr.Body)
	}
	if err != nil {
		return peer, asked, nil, err
	}
	if auth == nil {
		return peer, asked, nil, ErrNoAuth
	}
	method, proof, err := ParseAuth(auth.Body)
	if err == nil && method != AuthPSK {
		err = ErrAuthMethod
	}
	return peer, asked, proof, err
}

// authenticate finds the connection that the peer's identity and addresses fit, and
// checks its AUTH payload. sa.conn is set only if all is well.
func (m *Machine) authenticate(sa *ikeSA, idi, idr, auth *Payload) error {
	peer, asked, data, err := parseClaim(idi, idr, auth)
	if err != nil {
		return err
	}
	err = &IdentityError{peer, asked}
	for _, s := range m.conns {
		c := s.conn
		local := c.ownID(sa.path)
		if !m.matches(c, sa.path) || c.RemoteID != (ID{}) && !c.RemoteID.Equal(peer) || idr != nil && !asked.Equal(local) {
			continue
		}
		if _, ok := chooseProposal(c.Proposals, []Proposal{sa.suite.proposal()}, sa.suite.DH, false); !ok {
			err = ErrNoProposal
			continue
		}
		secret := findSecret(m.secrets, local, peer)
		if secret == nil {
			err = ErrNoSecret
			continue
		}
		want := pskAuth(sa.suite.PRF, secret.Key, sa.octets(true, idi.Body))
		sa.init.tried = c.Name
		if !constantEqual(want, data) {
			return &AuthError{peer}
		}
		sa.conn, sa.localID, sa.peerID = c, local, peer
		return nil
	}
	return err
}

// establish makes an authenticated IKE SA ready for use.
func (m *Machine) establish(sa *ikeSA) {
	sa.state = StateEstablished
	sa.established = m.now.Mono
	sa.lastIn = m.now.Mono
	sa.mobike.first = sa.path.Remote.Addr()
	m.noteLocal(sa)
	sa.origin = origin{ours: sa.initiator, spiI: sa.spiI, at: m.now.Mono, began: sa.unique, done: m.nextIKE, dialled: sa.dialled}
	sa.timers[tConnect] = never
	m.armLife(sa)
	sa.init.wipe()
	m.learnWindow(sa)
	m.announceIKE(sa, nil)
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
	if len(s.wanted) > 0 && !sa.initiator {
		m.armRetry(s, time.Second+m.random(time.Second)) // what the peer has not brought up by then
	}
}

// armLife sets the lifetimes and the liveness check of an IKE SA.
func (m *Machine) armLife(sa *ikeSA) {
	m.armRekey(sa)
	m.armReauth(sa)
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

// authResponse handles the response to our IKE_AUTH request.
func (m *Machine) authResponse(sa *ikeSA, p Path) {
	idr, auth := m.msg.Find(PayloadIDr), m.msg.Find(PayloadAuth)
	refused := m.notifyError()
	if idr == nil || auth == nil {
		if refused == nil {
			refused = ErrNoAuth
		}
		m.destroy(sa, refused)
		return
	}
	if sa.closeErr != nil { // given up meanwhile; who the peer is does not matter
		m.answered(sa)
		m.releaseSPI(sa.init.spiIn)
		sa.init.wipe()
		sa.state = StateEstablished
		m.closeIKE(sa, sa.closeErr, nil)
		return
	}
	peer, err := ParseID(idr.Body)
	if err == nil && sa.conn.RemoteID != (ID{}) && !peer.Equal(sa.conn.RemoteID) {
		err = &IdentityError{peer, sa.conn.RemoteID}
	}
	if err == nil {
		var method AuthMethod
		var data []byte
		method, data, err = ParseAuth(auth.Body)
		secret := findSecret(m.secrets, sa.localID, sa.conn.RemoteID)
		switch {
		case err != nil:
		case method != AuthPSK:
			err = ErrAuthMethod
		case secret == nil:
			err = ErrNoSecret
		case !constantEqual(sa.authData(secret.Key, sa.octets(false, idr.Body), false), data):
			err = &AuthError{peer}
		case sa.resume.on && !peer.Equal(sa.resume.with.remote):
			err = &IdentityError{peer, sa.resume.with.remote}
		}
	}
	m.answered(sa)
	if err != nil {
		// The peer believes in this SA; tell it once that we do not (section 2.21.2).
		m.send(sa.path, m.sealed(sa, sa.header(ExchangeInformational, sa.sendID, false), func(b *Builder) {
			b.Notify(NotifyAuthenticationFailed, ProtoNone, nil, nil)
		}))
		m.destroy(sa, err)
		return
	}
	sa.peerID = peer
	if m.authRedirected(sa, p) {
		return
	}
	sa.takeToken(m.sentToken())
	m.mobikeAgree(sa, p)
	s, cfg, spi, ts, offered, target, lane := sa.conns, sa.init.child, sa.init.spiIn, sa.init.childTS, sa.init.offered, sa.init.target, sa.init.lane
	sa.init.spiIn = 0
	mine := wish{cfg: cfg}
	if cfg != nil && len(s.wanted) > 0 && s.wanted[0].cfg == cfg {
		mine = s.wanted[0]
		s.wanted = s.wanted[1:]
	}
	rest := s.wanted
	s.wanted = nil
	ni, nr, mode := sa.ni, sa.nr, sa.init.mode
	m.establish(sa)
	sa.window.ours = maxWindow
	sa.resume.with = nil
	m.takeTicket(sa)
	if n, ok := m.msg.FindNotify(NotifyAuthLifetime); ok {
		m.readLifetime(sa, &n)
	}
	if cfg == nil {
		m.resolveDuplicates(sa, false)
		for _, w := range rest {
			m.want(s, w)
		}
		m.arrived(sa)
		return
	}
	sa.req.offered, sa.req.spiIn, sa.req.ts, sa.req.ni, sa.req.nr, sa.req.mode = offered, spi, ts, ni, nr, mode
	sa.req.task = task{kind: taskCreateChild, cfg: cfg, target: target, lane: lane, waiters: mine.waiters}
	m.createdFirst(sa, refused)
	m.resolveDuplicates(sa, false)
	for _, w := range rest {
		m.want(s, w)
	}
	m.arrived(sa)
}

// createdFirst takes the CHILD SA out of the IKE_AUTH response. That it is refused
// does not end the IKE SA (section 1.2).
func (m *Machine) createdFirst(sa *ikeSA, refused error) {
	err := refused
	if err == nil && m.msg.Find(PayloadSA) == nil {
		err = ErrNoProposal
	}
	if err == nil {
		_, err = m.parseCreated(sa)
	}
	if err != nil {
		m.createFailed(sa, err)
		return
	}
	m.installOurs(sa, nil)
}

// crosses tells whether two IKE SAs, one that we began and one that the peer began, were
// under way here at the same time: the later one began (for the peer's: its first message
// came) before the earlier one was established. Both sides connected then without knowing
// of the other's attempt. An IKE SA that begins when the other one is established was meant
// to: the peer authenticates anew, or, if it says INITIAL_CONTACT, has lost the other one.
//
// A message that took long may let one side alone see that they cross. It acts alone then,
// and the other side leaves to it what stays; where both see it, both come to the same result.
func (o *origin) crosses(other *origin) bool {
	first, second := o, other
	if second.began < first.began {
		first, second = second, first
	}
	return o.ours != other.ours && second.began <= first.done
}

// resolveDuplicates looks for other IKE SAs between the same two, after sa has been
// established. If the peer says that it knows of no other, those are gone. If both sides
// have connected at once, the SA with the higher initiator's SPI stays.
func (m *Machine) resolveDuplicates(sa *ikeSA, contact bool) {
	for i := range m.sas {
		o := &m.sas[i]
		if o == sa || o.state != StateEstablished || o.closeErr != nil || sa.conn.Unique == UniqueNever ||
			!o.localID.Equal(sa.localID) || !o.peerID.Equal(sa.peerID) || o.unique == sa.reauth.old {
			continue
		}
		both := o.conn == sa.conn && o.origin.ours != sa.origin.ours
		later := both && !sa.origin.ours && !o.origin.crosses(&sa.origin) // the peer began it beside ours, which it had
		loser, winner := o, sa
		switch {
		case later && contact:
			m.handTasks(o, sa) // it had ours, and has lost it
			m.destroy(o, ErrReplaced)
			continue
		case later && sa.conn.Unique == UniqueReplace:
			m.replaceLater(o, sa)
			continue
		case later:
			continue // it knows both, and what it wants: it may be reauthenticating
		case both && sa.origin.spiI < o.origin.spiI:
			loser, winner = sa, o
		case both:
		case contact:
			m.destroy(o, ErrReplaced)
			continue
		case sa.conn.Unique == UniqueReplace && !sa.origin.ours:
			m.replaceLater(o, sa)
			continue
		default:
			continue
		}
		m.handTasks(loser, winner)
		m.closeIKE(loser, ErrReplaced, nil)
	}
}

// wipe forgets what is needed only until IKE_AUTH is over.
func (s *initState) wipe() {
	s.pair.wipe()
	from := s.from
	*s = initState{from: from}
}

// proposal returns the suite as a proposal of one transform for each type.
func (s IKESuite) proposal() Proposal {
	p := Proposal{Proto: ProtoIKE, Transforms: []Transform{{TransformEncr, s.Encr, s.KeyBits}, {Type: TransformPRF, ID: uint16(s.PRF)}}}
	if s.Integ != 0 {
		p.Transforms = append(p.Transforms, Transform{Type: TransformInteg, ID: s.Integ})
	}
	p.Transforms = append(p.Transforms, Transform{Type: TransformDH, ID: uint16(s.DH)})
	return p
}
