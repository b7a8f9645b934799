package ike

import (
	"bytes"
	"errors"
	"time"
)

// IKE_SESSION_RESUME (RFC 5723): a client that has lost its IKE SA shows the gateway the
// ticket of it, and both derive new keys from the old ones and two nonces. It takes the
// place of IKE_SA_INIT, without a Diffie-Hellman exchange, and IKE_AUTH follows.
//
//	client:   connect -> resumeStart ... resumeResponse -> authSend
//	gateway:  initRequest -> resumeRequest ... authRequest -> authenticateResumed

// resumeTries is how often the request is repeated before the attempt goes on with
// IKE_SA_INIT: a gateway that does not know the exchange may not answer at all.
const resumeTries = 1

// resumeSA is an IKE SA's part.
type resumeSA struct {
	// on is set while and after the IKE SA comes about by resumption; session and ticket
	// are what it comes from, on the gateway and on the client, until IKE_AUTH is over.
	on      bool
	session *sessionState
	with    *ticket

	ticket *ticket // client: opens the session that follows this one
	asked  bool    // client: a ticket has been asked for
	issued bool    // gateway: a ticket of this IKE SA is out, and
	nonce  [ticketNonceLen]byte
}

// resumeSeed returns SKEYSEED = prf(SK_d_old, "Resumption" | Ni | Nr) (section 5.1).
func resumeSeed(prf PRFID, skd, ni, nr []byte) []byte {
	return prf.sum(skd, []byte("Resumption"), ni, nr)
}

// authData returns the data of an AUTH payload: that of the pre-shared key, or, in a resumed
// session, AUTH = prf(SK_px, <message octets>) (section 4.3.3). The octets are the same.
func (sa *ikeSA) authData(psk, octets []byte, initiators bool) []byte {
	if !sa.resume.on {
		return pskAuth(sa.suite.PRF, psk, octets)
	}
	skp := sa.keys.pr
	if initiators {
		skp = sa.keys.pi
	}
	return sa.suite.PRF.sum(skp, octets)
}

// octets returns what the AUTH payload of the initiator or of the responder is about, whose ID
// payload has that body. What was said in IKE_INTERMEDIATE comes last (RFC 9242 section 3.3.2).
func (sa *ikeSA) octets(initiators bool, idBody []byte) []byte {
	if initiators {
		return append(signedOctets(sa.suite.PRF, sa.init.request, sa.nr, sa.keys.pi, idBody), sa.intAuth()...)
	}
	return append(signedOctets(sa.suite.PRF, sa.init.response, sa.ni, sa.keys.pr, idBody), sa.intAuth()...)
}

// resumeStart sends the ticket of the connection's last session instead of IKE_SA_INIT, if
// there is one that is good for the gateway that sa connects to.
func (m *Machine) resumeStart(sa *ikeSA, s *connState) bool {
	t := s.ticket
	if t == nil {
		return false
	}
	if !s.conn.Resumption || m.now.Mono >= t.expires || s.conn.PPKRequired && t.ppk == (PPKID{}) || !m.anchored(t.anchors) { // must not be presented (section 4.3.1)
		s.dropTicket()
		return false
	}
	if t.gateway != sa.path.Remote.Addr() {
		return false
	}
	sa.resume.with, sa.suite = t, t.suite
	sa.req.exchange = ExchangeSessionResume
	m.initTransmit(sa)
	return true
}

// resumeRequest handles the ticket in m.msg, after initRequest has let the request pass as
// one that may take a place among the half-open IKE SAs.
func (m *Machine) resumeRequest(p Path, h *Header, b, ni []byte) {
	n, ok := m.msg.FindNotify(NotifyTicketOpaque)
	if !ok {
		m.refuseInit(p, h, NotifyInvalidSyntax, nil, errTicketForm)
		return
	}
	s, conn, err := m.redeem(p, n.Data)
	if err != nil {
		m.refuseInit(p, h, NotifyTicketNack, nil, err)
		return
	}
	sa := m.newSA(false, false)
	if sa == nil {
		m.drop(p, ErrTableFull)
		return
	}
	sa.spiI, sa.path, sa.suite, sa.force = h.SPIi, p, s.suite, conn.Encap || m.encap
	sa.ni, sa.nr = bytes.Clone(ni), m.nonce()
	sa.init.from, sa.init.tried, sa.init.bare = p.Remote, conn.Name, conn.Childless != ChildlessNever
	sa.init.request = append([]byte(nil), b...)
	sa.resume.on, sa.resume.session = true, s
	sa.frag.on = m.agreed(conn.announces())
	sa.redirect.able = m.redirectAble()
	m.natDetect(sa, p, 0)
	m.arm(sa, tConnect, halfOpenLife)
	w := NewBuilder(make([]byte, 0, 512), sa.header(ExchangeSessionResume, 0, true))
	m.initReply(sa, w, resumeSeed(sa.suite.PRF, s.skd, sa.ni, sa.nr))
}

// resumeResponse handles the answer to our ticket. It is not authenticated: that it lets us
// fall back to IKE_SA_INIT is all that somebody else can do with it.
func (m *Machine) resumeResponse(sa *ikeSA, p Path, h *Header, b []byte) {
	if !m.initAnswer(sa, p, h, b) {
		return
	}
	if m.msg.Find(PayloadNonce) == nil {
		m.resumeRefused(sa, p)
		return
	}
	nr := m.nonceAtHand()
	if nr == nil || h.SPIr == 0 {
		m.drop(p, ErrNonce)
		return
	}
	t := sa.resume.with
	sa.spiR, sa.nr = h.SPIr, bytes.Clone(nr)
	_, sa.init.bare = m.msg.FindNotify(NotifyChildlessIKEv2Supported)
	sa.init.response = append([]byte(nil), b...)
	sa.frag.on = m.agreed(sa.conn.announces())
	m.natDetect(sa, p, sa.spiR)
	if err := m.keyed(sa, resumeSeed(sa.suite.PRF, t.skd, sa.ni, sa.nr)); err != nil {
		m.destroy(sa, err)
		return
	}
	sa.resume.on, sa.ppk.id = true, t.ppk
	sa.restOn(t.born, t.until, t.anchors)
	if s := sa.conns; s.ticket == t {
		s.ticket = nil // whatever comes of it, it is not shown again
	}
	clear(t.skd)
	m.answered(sa)
	if sa.natKnown && (sa.encap() || sa.conn.MOBIKE) {
		sa.path = m.floated(sa.path)
	}
	m.authSend(sa)
}

// resumeRefused handles an answer without a nonce.
func (m *Machine) resumeRefused(sa *ikeSA, p Path) {
	if m.initRedirected(sa, p) || m.initCookie(sa, p) {
		return
	}
	if _, ok := m.msg.FindNotify(NotifyTicketNack); ok {
		m.resumeFailed(sa, &NotifyError{NotifyTicketNack, ""})
		return
	}
	if err := m.notifyError(); err != nil {
		m.resumeFailed(sa, err)
		return
	}
	m.drop(p, ErrUnexpected)
}

// resumeFailed goes on with IKE_SA_INIT in the same attempt. A ticket that was refused is
// forgotten; one that was not answered may be good yet, since it has not been used.
func (m *Machine) resumeFailed(sa *ikeSA, err error) {
	s := sa.conns
	m.event(Event{Kind: EvNotResumed, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Err: err})
	if !errors.Is(err, ErrTimeout) {
		s.dropTicket()
	}
	sa.resume, sa.suite = resumeSA{}, IKESuite{}
	sa.init.cookie, sa.init.retries, sa.init.request = nil, 0, nil
	sa.spiI = m.newIKESPI(sa.slot) // the gateway may hold half an IKE SA under the former one
	sa.ni = m.nonce()
	sa.timers[tRetransmit] = never
	sa.req = request{active: true, task: sa.req.task, exchange: ExchangeInit}
	m.startWork(sa, laneOurs, jobInitPair, sa.init.group, nil, nil)
}

// authenticateResumed checks, on the gateway, the IKE_AUTH request of a resumed session.
// The identities must be those of the ticket, and the ticket and the configuration still
// what they were a moment ago.
func (m *Machine) authenticateResumed(sa *ikeSA, idi, idr, auth *Payload) error {
	s := sa.resume.session
	peer, asked, method, data, err := parseClaim(idi, idr, auth)
	if err == nil && method != AuthPSK {
		err = ErrAuthMethod
	}
	if err != nil {
		return err
	}
	if want := sa.authData(nil, sa.octets(true, idi.Body), true); !constantEqual(want, data) {
		return &AuthError{Peer: s.client}
	}
	if !peer.Equal(s.client) || idr != nil && !asked.Equal(s.gateway) {
		return &IdentityError{peer, s.client}
	}
	n, ok := m.resumeTicket(sa)
	if !ok {
		return errTicketForm
	}
	_, conn, err := m.redeem(sa.path, n.Data)
	if err != nil {
		return err
	}
	m.revoke(s.nonce) // it is used now (section 4.3.1)
	sa.ppk.id = s.ppkID()
	until := time.Duration(0)
	if s.until != 0 {
		until = max(m.mono(s.until), 1)
	}
	sa.restOn(min(m.mono(s.born), m.now.Mono), until, s.anchors)
	sa.conn, sa.localID, sa.peerID = conn, s.gateway, peer
	return nil
}

// restOn notes what the authentication of a resumed session rests on: it took place at born, and
// ends at until (0: never). Whoever could prolong it by losing the session again and again would
// never have to show that the certificate is still good.
func (sa *ikeSA) restOn(born, until time.Duration, anchors [][keyIDLen]byte) {
	sa.init.auth.born, sa.init.auth.until, sa.init.auth.anchors = born, until, anchors
}

// resumeTicket returns the ticket of the request that sa came about by.
func (m *Machine) resumeTicket(sa *ikeSA) (Notify, bool) {
	var first Message
	if first.Parse(sa.init.request) != nil {
		return Notify{}, false
	}
	return first.FindNotify(NotifyTicketOpaque)
}

// resumed ends the resumption on the gateway: the session that went on is dropped without a
// word to the client, which does not have it any more (section 4.3.4).
func (m *Machine) resumed(sa *ikeSA) {
	s := sa.resume.session
	if s == nil {
		return
	}
	sa.resume.session = nil
	clear(s.skd)
	for i := range m.sas {
		if o := &m.sas[i]; o != sa && o.state != StateFree && o.state != StateConnecting && o.spiI == s.spiI && o.spiR == s.spiR {
			m.destroy(o, ErrReplaced)
		}
	}
}

// dropTicket forgets the ticket of the connection's last session.
func (s *connState) dropTicket() {
	s.ticket.wipe()
	s.ticket = nil
}

// askTicket adds TICKET_REQUEST where we want a ticket and are the client.
func (m *Machine) askTicket(b *Builder, sa *ikeSA) {
	if sa.conn.Resumption {
		sa.resume.asked = true
		b.Notify(NotifyTicketRequest, ProtoNone, nil, nil)
	}
}

// ticketEnds settles what becomes of the tickets of an IKE SA that ends by err. The client
// keeps its own for the next attempt only if the session was not closed, but lost
// (section 6.2). The gateway does not take one back of a session that was closed.
func (m *Machine) ticketEnds(sa *ikeSA, err error) {
	r := &sa.resume
	if r.session != nil {
		clear(r.session.skd)
	}
	if r.issued && (err == ErrTerminated || err == ErrPeerDeleted || err == ErrReplaced) {
		m.revoke(r.nonce)
	}
	if r.ticket == nil {
		return
	}
	s := m.stateOf(sa.conn)
	if s != nil && sa.state == StateEstablished && sa.closeErr == nil &&
		(err == ErrTimeout || err == ErrPeerRestarted || err == ErrAddressGone) {
		s.ticket.wipe()
		s.ticket = r.ticket
		return
	}
	r.ticket.wipe()
}
