package ike

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"time"

	"postern/esp"
	"postern/ike/pki"
)

// IKE_AUTH (RFC 7296 section 1.2): who is there, and the first CHILD SA. Each side has one round
// of authentication or several (RFC 4739, rounds.go); the n-th exchange carries the n-th round of
// both, or of the one that has as many. The first request asks for the CHILD SA, and the last
// response answers that.
//
//	initiator                                 responder
//	authSend
//	authTurn -> prove ... proven
//	authTransmit            ---- IDi ---->    authRequest -> judge ... judged
//	                                          authReply -> prove ... proven
//	authResponse            <--- IDr -----    authRespond, in the last exchange authFinish
//	 -> judge ... judged -> authTurn, in the last exchange authDone
//
// The responder's half is in authreply.go, what an initiator claims in claims.go, and what begins
// with the IKE SA in establish.go.
//
// prove and judge go on at once with shared keys, and after a Work with signatures; the message
// at hand is kept meanwhile.

// halfOpenLife is how long a peer may take between its first message and IKE_AUTH.
const halfOpenLife = 30 * time.Second

// idOfAddr returns the identity that an address is.
func idOfAddr(a netip.Addr) ID {
	if a.Is4() {
		return ID{IDIPv4, string(a.AsSlice())}
	}
	return ID{IDIPv6, string(a.AsSlice())}
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
	if a := &sa.init.auth; len(c.localRounds()) > 1 && !a.many && !sa.resume.on {
		m.destroy(sa, ErrOneRound)
		return
	}
	if c.Childless == ChildlessForce && !sa.init.bare {
		m.destroy(sa, ErrChildless)
		return
	}
	if err := m.ppkStart(sa); err != nil {
		m.destroy(sa, err)
		return
	}
	var w wish
	var old *childSA
	bare := sa.init.bare && (c.Childless == ChildlessPrefer || c.Childless == ChildlessForce)
	if !bare {
		old = m.reauthNext(sa)
	}
	wanted := sa.conns.wanted
	i := slices.IndexFunc(wanted, func(w wish) bool { return w.cfg != nil })
	switch {
	case bare:
	case old != nil:
		w.cfg, sa.init.target = old.cfg, old.unique
	case i >= 0:
		w = wanted[i]
	case sa.init.bare && (len(wanted) > 0 || sa.reauth.old != 0):
		bare = true // there is none to ask for, or the old one has no CHILD SA either
	case len(wanted) > 0:
		m.destroy(sa, ErrChildless) // the peer must not be asked (RFC 6023 section 3)
		return
	default:
		m.destroy(sa, ErrNoChild)
		return
	}
	if bare {
		m.authTurn(sa)
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
	if old != nil && len(c.VIPs) == 0 { // or the addresses may be others now
		sa.init.childTS = [2][]esp.Selector{old.local, old.remote}
	}
	sa.init.mode = m.offerMode(sa, w.cfg.Mode, &sa.init.childTS)
	sa.init.offered = numbered(withoutDH(w.cfg.Proposals), be32(spi))
	m.authTurn(sa)
}

// authTurn sends the next IKE_AUTH request: with our next round, or, if there is none, empty for
// the next one of the peer's.
func (m *Machine) authTurn(sa *ikeSA) {
	c, a := sa.conn, &sa.init.auth
	if rounds := c.localRounds(); a.ours < len(rounds) {
		id := c.ownRoundID(a.ours, sa.localID)
		m.prove(sa, laneOurs, &rounds[a.ours], id, c.exactRemote(), m.authOctets(sa, id)...)
		return
	}
	m.authTransmit(sa, proof{})
}

// authOctets returns what our AUTH payload is about, first, and what other proofs of the same
// identity are that go with it.
func (m *Machine) authOctets(sa *ikeSA, id ID) [][]byte {
	body := id.appendBody(nil)
	octets := [][]byte{sa.octets(sa.initiator, body)}
	if without := sa.octetsWithoutPPK(body); without != nil {
		octets = append(octets, without)
	}
	return octets
}

// proven goes on with the proof of a round of ours.
func (m *Machine) proven(sa *ikeSA, p proof, err error) {
	switch {
	case sa.initiator && err != nil:
		m.destroy(sa, err)
	case sa.initiator:
		m.authTransmit(sa, p)
	case err != nil:
		m.authRefuse(sa, err)
	default:
		m.authRespond(sa, p)
	}
}

// authTransmit sends an IKE_AUTH request: the first one with the CHILD SA of sa.init, if there is
// one, and with what both sides should know of each other.
func (m *Machine) authTransmit(sa *ikeSA, p proof) {
	c, a := sa.conn, &sa.init.auth
	sa.req = request{task: task{kind: taskAuth}}
	m.sendRequest(sa, ExchangeAuth, func(b *Builder) {
		first := !a.begun
		if p.data != nil {
			b.ID(PayloadIDi, c.ownRoundID(a.ours, sa.localID))
			writeCerts(b, c, &c.localRounds()[a.ours], a)
		}
		if first {
			if c.Unique != UniqueNever && !m.knows(sa, c.exactRemote()) {
				b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
			}
			m.certRequests(b, c)
			if id := c.exactRemote(); id != (ID{}) {
				b.ID(PayloadIDr, id)
			}
		}
		if p.data != nil {
			b.Auth(p.method, p.data[0])
			sa.ppkClaim(b, p.data[1:])
		}
		if p.data != nil && !sa.resume.on && a.ours+1 < len(c.localRounds()) {
			b.Notify(NotifyAnotherAuthFollows, ProtoNone, nil, nil)
		}
		if !first {
			return
		}
		if c.rounds() && !sa.resume.on {
			b.Notify(NotifyMultipleAuthSupported, ProtoNone, nil, nil)
		}
		methodsNotify(b, c)
		m.qcdNotify(b, sa)
		m.askTicket(b, sa)
		m.askAddresses(b, sa)
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
	a.begun = true
	if p.data != nil {
		a.proved(c, sa.localID, p)
	}
}

// authState is what the exchanges of IKE_AUTH leave for each other.
type authState struct {
	hashes  []pki.Hash      // the peer's SIGNATURE_HASH_ALGORITHMS; nil: it has sent none
	methods []pki.Announced // its SUPPORTED_AUTH_METHODS; nil: it has sent none
	many    bool            // it takes part in several rounds

	askedCert, askedKey, askedOCSP bool // it asks for certificates, raw public keys, OCSP responses
	shownCert                      bool // it has sent a certificate

	begun        bool // the first request is sent, or has come
	ours, theirs int  // rounds that are over
	eager        bool // see overrun

	path  Path   // of the first request, or of the response at hand
	first *held  // as responder: the first request
	held  *held  // as initiator: the response at hand, while a job is out
	claim *claim // what is being verified

	staple *stapling // see stapleFirst
	ocsp   []byte    // what goes with our certificate

	ourProofs, theirProofs []Proof
	anchors                [][keyIDLen]byte // CAs of Config.Trust that the peer's certificates lead to
	until                  time.Duration    // when the peer's certificates end; 0: no limit
	born                   time.Duration    // of a resumed session: when it was authenticated
}

// proved notes a round of ours.
func (a *authState) proved(c *Conn, first ID, p proof) {
	kind := AuthKindPubkey
	if p.method == AuthPSK {
		kind = AuthKindPSK
	}
	r := Proof{Kind: kind, ID: c.ownRoundID(a.ours, first), Scheme: p.scheme}
	if certs := c.localRounds()[a.ours].Certs; kind == AuthKindPubkey && len(certs) > 0 {
		r.Cert = certs[0].Subject()
	}
	a.ourProofs = append(a.ourProofs, r)
	a.ours++
}

// authRounds returns how many rounds each side has: a resumed session has one.
func (sa *ikeSA) authRounds() (local, remote int) {
	if sa.resume.on {
		return 1, 1
	}
	return len(sa.conn.localRounds()), len(sa.conn.remoteRounds())
}

// held is a message that waits for a job.
type held struct {
	header   Header
	payloads []Payload
}

// hold keeps a copy of the message at hand.
func (m *Machine) hold() *held {
	n := 0
	for i := range m.msg.Payloads {
		n += len(m.msg.Payloads[i].Body)
	}
	h := &held{header: m.msg.Header, payloads: slices.Clone(m.msg.Payloads)}
	buf := make([]byte, 0, n)
	for i := range h.payloads {
		at := len(buf)
		buf = append(buf, h.payloads[i].Body...)
		h.payloads[i].Body = buf[at:len(buf):len(buf)]
	}
	return h
}

// recall makes a message that was kept the one at hand.
func (m *Machine) recall(h *held) {
	m.msg.Header, m.msg.raw = h.header, nil
	m.msg.Payloads = append(m.msg.store[:0], h.payloads...)
}

// proofWriter returns what writes a round of ours, as responder, into a message; nothing if there
// is none.
func (m *Machine) proofWriter(sa *ikeSA, p proof) func(*Builder) {
	c, a := sa.conn, sa.init.auth
	id := sa.localID
	if p.data != nil {
		id = c.ownRoundID(a.ours, id)
	}
	local, _ := sa.authRounds()
	resumed := sa.resume.on
	return func(b *Builder) {
		if p.data == nil {
			return
		}
		b.ID(PayloadIDr, id)
		if !resumed {
			writeCerts(b, c, &c.localRounds()[a.ours], &a)
		}
		b.Auth(p.method, p.data[0])
		sa.ppkConfirm(b)
		if a.ours+1 < local {
			b.Notify(NotifyAnotherAuthFollows, ProtoNone, nil, nil)
		}
	}
}

// authResponse handles the response to an IKE_AUTH request of ours.
func (m *Machine) authResponse(sa *ikeSA, p Path) {
	a := &sa.init.auth
	idr, auth := m.msg.Find(PayloadIDr), m.msg.Find(PayloadAuth)
	refused := m.notifyError()
	a.path = p
	_, remote := sa.authRounds()
	due := a.theirs < remote
	if due && auth == nil || !due && refusesIKE(refused) {
		if refused == nil {
			refused = ErrNoAuth
		}
		m.destroy(sa, refused)
		return
	}
	if sa.closeErr != nil {
		m.authGivenUp(sa)
		return
	}
	if !due {
		if auth != nil {
			m.authFailed(sa, ErrRounds)
			return
		}
		m.authGoOn(sa)
		return
	}
	peer, err := parsePeerID(idr.Body)
	if want := sa.conn.peerRoundID(a.theirs); err == nil && !want.Admits(peer) {
		err = &IdentityError{peer, want}
	}
	if err == nil {
		err = m.ppkVerdict(sa)
	}
	c := &claim{peer: peer, octets: sa.octets(false, idr.Body)}
	if err == nil {
		c.method, c.data, err = ParseAuth(auth.Body)
		c.data = bytes.Clone(c.data)
	}
	if err == nil {
		c.evidence, err = m.takeCerts()
	}
	if err != nil {
		m.authFailed(sa, err)
		return
	}
	_, c.more = m.msg.FindNotify(NotifyAnotherAuthFollows)
	a.claim = c
	j := &judgement{proof: Proof{ID: peer}}
	round := sa.conn.remoteRounds()[a.theirs]
	switch {
	case sa.resume.on && c.method != AuthPSK:
		m.judged(sa, j, ErrAuthMethod)
	case sa.resume.on && !constantEqual(sa.authData(nil, c.octets, false), c.data):
		m.judged(sa, j, &AuthError{Peer: peer})
	case sa.resume.on && !peer.Equal(sa.resume.with.remote):
		m.judged(sa, j, &IdentityError{peer, sa.resume.with.remote})
	case sa.resume.on:
		m.judged(sa, j, nil)
	case round.Kind == AuthKindPSK:
		with := sa.conn.exactRemote()
		if a.theirs > 0 {
			with = peer
		}
		m.judged(sa, j, m.judgeMAC(sa, c, findSecret(m.secrets, sa.localID, with)))
	case c.method == AuthPSK:
		m.judged(sa, j, ErrAuthMethod)
	default:
		c.cands = []candidate{{sa.conn, round, sa.localID}}
		a.held = m.hold()
		m.judge(sa, laneOurs, c)
	}
}

// refusesIKE tells whether an error in a response without AUTH ends the IKE SA, and is not about
// the CHILD SA alone (section 1.2).
func refusesIKE(err error) bool {
	n, ok := errors.AsType[*NotifyError](err)
	if !ok {
		return false
	}
	switch n.Type {
	case NotifyNoProposalChosen, NotifyTSUnacceptable, NotifySinglePairRequired, NotifyInternalAddressFailure, NotifyFailedCPRequired,
		NotifyNoAdditionalSAs:
		return false
	}
	return true
}

// authGivenUp ends an attempt that was given up while the response was on its way: if the peer
// has the IKE SA now it is deleted, whoever the peer is.
func (m *Machine) authGivenUp(sa *ikeSA) {
	a := &sa.init.auth
	_, more := m.msg.FindNotify(NotifyAnotherAuthFollows)
	if local, remote := sa.authRounds(); a.ours < local || more || a.theirs+1 < remote {
		m.destroy(sa, sa.closeErr)
		return
	}
	m.answered(sa)
	m.releaseSPI(sa.init.spiIn)
	sa.init.wipe()
	sa.state = StateEstablished
	m.closeIKE(sa, sa.closeErr, nil)
}

// authFailed ends an attempt because of what the peer has answered. The peer believes in this
// SA; it is told once that we do not (section 2.21.2).
func (m *Machine) authFailed(sa *ikeSA, err error) {
	m.answered(sa)
	m.send(sa.path, m.sealed(sa, sa.header(ExchangeInformational, sa.sendID, false), func(b *Builder) {
		b.Notify(NotifyAuthenticationFailed, ProtoNone, nil, nil)
	}))
	m.destroy(sa, err)
}

// authJudged goes on, as initiator, with the verdict about the response at hand.
func (m *Machine) authJudged(sa *ikeSA, v *judgement, err error) {
	if sa.closeErr != nil {
		m.authGivenUp(sa)
		return
	}
	a := &sa.init.auth
	_, remote := sa.authRounds()
	if _, more := m.msg.FindNotify(NotifyAnotherAuthFollows); err == nil && more != (a.theirs+1 < remote) {
		err = ErrRounds
	}
	if err != nil {
		m.authFailed(sa, err)
		return
	}
	a.limit(m, v)
	if a.theirs++; a.theirs == 1 {
		sa.peerID = v.proof.ID
	}
	a.theirProofs = append(a.theirProofs, v.proof)
	m.authGoOn(sa)
}

// authGoOn goes on with the next exchange of IKE_AUTH, or ends it.
func (m *Machine) authGoOn(sa *ikeSA) {
	a := &sa.init.auth
	refused, p := m.notifyError(), a.path
	m.answered(sa)
	if local, remote := sa.authRounds(); a.ours < local || a.theirs < remote {
		m.authTurn(sa)
		return
	}
	m.authDone(sa, p, refused)
}

// authDone ends IKE_AUTH as initiator with the last response, which is at hand; refused is what
// it says against the CHILD SA.
func (m *Machine) authDone(sa *ikeSA, p Path, refused error) {
	if m.authRedirected(sa, p) {
		return
	}
	if err := m.takeAddresses(sa, refused); err != nil {
		m.addressesRefused(sa, err)
		return
	}
	sa.takeToken(m.sentToken())
	m.mobikeAgree(sa, p)
	s, cfg, spi, ts, offered, target, lane := sa.conns, sa.init.child, sa.init.spiIn, sa.init.childTS, sa.init.offered, sa.init.target, sa.init.lane
	sa.init.spiIn = 0
	mine := wish{cfg: cfg}
	if i := slices.IndexFunc(s.wanted, func(w wish) bool { return w.cfg != nil }); cfg != nil && i >= 0 && s.wanted[i].cfg == cfg {
		mine = s.wanted[i]
		s.wanted = slices.Delete(s.wanted, i, i+1)
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
	sa.req.dropped = target == 0 && s != nil && s.held[cfg]
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

// wipe forgets what is needed only until IKE_AUTH is over.
func (s *initState) wipe() {
	s.pair.wipe()
	s.unmixed.wipe()
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
	p.Transforms = append(p.Transforms, s.KE.transforms()...)
	return p
}
