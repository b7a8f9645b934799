package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
)

// IKE_SA_INIT (RFC 7296 section 1.2): key exchange, nonces and NAT detection, in clear.

const (
	nonceLen = 32 // ours; at least half the key size of every PRF (section 2.10)
	nonceMin = 16 // theirs (section 3.9)
	nonceMax = 256

	// maxInitRetries is how many COOKIE and INVALID_KE_PAYLOAD answers one attempt
	// follows: anybody can send them.
	maxInitRetries = 8
)

func withPort(a netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), port)
}

// pathTo returns the path to one of the peer's addresses, from the address of ours that
// fits.
func (m *Machine) pathTo(c *Conn, remote netip.Addr) (Path, error) {
	p := Path{Remote: netip.AddrPortFrom(remote, 500), Local: netip.AddrPortFrom(netip.Addr{}, m.ports.IKE)}
	if port := c.RemotePort; port != 0 && port != 500 {
		// Only port 500 speaks without the marker.
		p = Path{Remote: netip.AddrPortFrom(remote, port), Local: netip.AddrPortFrom(netip.Addr{}, m.ports.NATT), NATT: true}
	}
	for _, a := range c.LocalAddrs {
		if a.Is4() == remote.Is4() {
			p.Local = netip.AddrPortFrom(a, p.Local.Port())
			return p, nil
		}
	}
	if len(c.LocalAddrs) > 0 {
		return Path{}, ErrFamily
	}
	local, ok := m.env.Source(remote)
	if !ok {
		return Path{}, ErrNoRoute
	}
	p.Local = netip.AddrPortFrom(local.Unmap(), p.Local.Port())
	return p, nil
}

// connect starts an attempt to establish an IKE SA: a new round, or the next address of the
// one at hand.
func (m *Machine) connect(s *connState) {
	s.retryAt = never
	if s.dial.failed > 0 {
		m.call(s)
		return
	}
	m.askAll(s.conn, nameFresh)
	if s.dial.waiting = m.awaits(s.conn); !s.dial.waiting {
		m.startRound(s)
	}
}

// startRound calls the first address of a new round.
func (m *Machine) startRound(s *connState) {
	if len(s.wanted) == 0 {
		m.redirectEnds(s, false)
		return // nobody wants it any more
	}
	m.newRound(s)
	m.call(s)
}

// call calls the address whose turn it is.
func (m *Machine) call(s *connState) {
	if len(s.dial.addrs) == 0 {
		m.attemptFailed(s, m.unresolved(s.conn))
		return
	}
	addr := s.dial.addrs[s.dial.failed]
	p, err := m.pathTo(s.conn, addr)
	if err != nil {
		s.last = Path{}
		m.attemptFailed(s, err)
		return
	}
	s.last = p
	sa := m.newSA(true, false)
	if sa == nil {
		m.attemptFailed(s, ErrTableFull)
		return
	}
	sa.dialled = addr
	m.begin(s, sa, p)
}

// begin starts an attempt in the slot of sa along p.
func (m *Machine) begin(s *connState, sa *ikeSA, p Path) {
	sa.conn, sa.conns, sa.path, sa.force = s.conn, s, p, s.conn.Encap || m.encap
	sa.req = request{active: true, task: task{kind: taskInit}, exchange: ExchangeInit}
	sa.init.offered = s.conn.Proposals
	sa.init.group = firstGroup(s.conn.Proposals)
	sa.ni = m.nonce()
	m.event(Event{Kind: EvInitiate, Conn: s.conn.Name, IKE: sa.unique, Path: p, Count: s.tries + 1, Old: sa.reauth.old})
	if sa.reauth.old == 0 && m.resumeStart(sa, s) { // a ticket is no authentication
		return
	}
	m.startWork(sa, laneOurs, jobInitPair, sa.init.group, nil, nil)
}

func (m *Machine) nonce() []byte {
	n := make([]byte, nonceLen)
	m.env.Random(n)
	return n
}

// nonceAtHand returns the nonce of the message, of which it is a part, nil if there is none of
// the right length.
func (m *Machine) nonceAtHand() []byte {
	n := m.msg.Find(PayloadNonce)
	if n == nil || len(n.Body) < nonceMin || len(n.Body) > nonceMax {
		return nil
	}
	return n.Body
}

// checkKE tells what is wrong with a peer's public value ke of a group, where the chosen
// proposal has the group want: that group is asked for (section 1.3).
func checkKE(want, group DHGroup, ke []byte) *refusal {
	if want != group {
		return &refusal{t: NotifyInvalidKEPayload, data: binary.BigEndian.AppendUint16(nil, uint16(want)), err: ErrGroup}
	}
	if len(ke) != group.publicLen() {
		return &refusal{t: NotifyInvalidSyntax, err: ErrKELength}
	}
	return nil
}

// otherGroup returns the group that an INVALID_KE_PAYLOAD of the message asks for, in place of
// used. There is an error if that is none which we offered otherwise.
func (m *Machine) otherGroup(offered []Proposal, used DHGroup) (g DHGroup, asked bool, err error) {
	n, asked := m.msg.FindNotify(NotifyInvalidKEPayload)
	if len(n.Data) == 2 {
		g = DHGroup(binary.BigEndian.Uint16(n.Data))
	}
	if asked && (g == used || !offers(offered, g)) {
		err = &NotifyError{n.Type, "asks for a group that we did not offer"}
	}
	return g, asked, err
}

// firstGroup returns the first DH group of the proposals, DHNone if there is none.
func firstGroup(ps []Proposal) DHGroup {
	for _, p := range ps {
		for _, t := range p.Transforms {
			if t.Type == TransformDH && t.ID != 0 {
				return DHGroup(t.ID)
			}
		}
	}
	return DHNone
}

// offers tells whether one of the proposals has the group.
func offers(ps []Proposal, g DHGroup) bool {
	for _, p := range ps {
		for _, t := range p.Transforms {
			if t.Type == TransformDH && DHGroup(t.ID) == g {
				return true
			}
		}
	}
	return false
}

// initSend sends our IKE_SA_INIT request once the key pair is there.
func (m *Machine) initSend(sa *ikeSA, r Result) {
	if r.err != nil {
		m.destroy(sa, r.err)
		return
	}
	sa.init.pair = r.pair
	m.initTransmit(sa)
}

// initTransmit sends our first message: IKE_SA_INIT, or IKE_SESSION_RESUME with the ticket.
func (m *Machine) initTransmit(sa *ikeSA) {
	ex := sa.req.exchange
	b := NewBuilder(make([]byte, 0, 1024), sa.header(ex, 0, false))
	if len(sa.init.cookie) > 0 {
		b.Notify(NotifyCookie, ProtoNone, nil, sa.init.cookie) // first of all (section 2.6)
	}
	if ex == ExchangeSessionResume {
		b.Nonce(sa.ni)
		b.Notify(NotifyTicketOpaque, ProtoNone, nil, sa.resume.with.opaque)
	} else {
		b.SA(numbered(sa.init.offered, nil))
		b.KE(sa.init.group, sa.init.pair.public())
		b.Nonce(sa.ni)
		m.ppkAsk(b, sa)
	}
	m.natNotifies(b, sa, sa.path)
	if sa.conn.announces() {
		fragmentNotify(b)
	}
	if ex == ExchangeInit && offersAddKE(sa.init.offered) {
		b.Notify(NotifyIntermediateSupported, ProtoNone, nil, nil)
	}
	m.redirectNotify(b, sa)
	m.authInit(b, sa)
	sa.init.request = b.Finish()
	m.traceMessage("sending", sa.path, sa, sa.init.request)
	m.countMessage(sa, &Header{Exchange: ex}, true)
	m.transmit(sa, ex, sa.init.request)
}

// numbered returns proposals as they stand in an SA payload: numbered from 1, for the
// protocol, each with the SPI.
func numbered(ps []Proposal, spi []byte) []Proposal {
	out := make([]Proposal, len(ps))
	for i, p := range ps {
		out[i] = Proposal{Num: uint8(i + 1), Proto: p.Proto, SPI: spi, Transforms: p.Transforms}
	}
	return out
}

// uses tells whether an address of ours is one of the connection's.
func (c *Conn) uses(a netip.Addr) bool {
	return len(c.LocalAddrs)+len(c.LocalNets) == 0 || slices.Contains(c.LocalAddrs, a) ||
		slices.ContainsFunc(c.LocalNets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// matches tells whether a connection is for this pair of addresses. Names count with the
// addresses of their last good answer.
func (m *Machine) matches(c *Conn, p Path) bool {
	if !c.uses(p.Local.Addr()) {
		return false
	}
	for _, r := range c.RemoteAddrs {
		if r.Contains(p.Remote.Addr()) {
			return true
		}
	}
	for _, n := range m.namesOf(c) {
		if slices.Contains(n.addrs, p.Remote.Addr()) {
			return true
		}
	}
	return len(c.RemoteAddrs) == 0 && len(c.RemoteNames) == 0
}

// Half-open IKE SAs of one source address: a few, so that one host cannot take all
// places even if it shows cookies, and several sites behind one NAT can start together.
func (m *Machine) halfOpenPerHost() int { return max(5, m.halfOpenMax/8) }

// initRequest handles the first message of a peer. Until its cookie has been checked,
// and it fits one of our connections, nothing is kept of it.
func (m *Machine) initRequest(p Path, h *Header, b []byte) {
	if h.Flags&FlagInitiator == 0 || h.ID != 0 || h.SPIi == 0 {
		m.drop(p, ErrUnexpected)
		return
	}
	half, host := 0, 0
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state == StateFree || sa.initiator {
			continue
		}
		if sa.spiI == h.SPIi && sameHost(sa.init.from, p.Remote) {
			m.initRepeated(sa, p, b)
			return
		}
		if sa.state == StateConnecting {
			half++
			if sameHost(sa.path.Remote, p.Remote) {
				host++
			}
		}
	}
	err := m.msg.Parse(b)
	var critical *CriticalError
	if errors.As(err, &critical) {
		m.count(nil, CountInvalid)
		m.refuseInit(p, h, NotifyUnsupportedCriticalPayload, []byte{byte(critical.Type)}, err)
		return
	}
	if err == nil {
		err = checkRules(&m.msg, h.Exchange, false, false)
	}
	if err != nil {
		m.count(nil, CountInvalid)
		m.refuseInit(p, h, NotifyInvalidSyntax, nil, err)
		return
	}
	m.tracePayloads("received", p, nil)
	saBody, keBody, ni := m.msg.Find(PayloadSA), m.msg.Find(PayloadKE), m.nonceAtHand()
	resume := h.Exchange == ExchangeSessionResume
	if (saBody == nil || keBody == nil) && !resume || ni == nil {
		m.refuseInit(p, h, NotifyInvalidSyntax, nil, ErrNonce)
		return
	}
	if !m.checkCookie(h, p, ni, half) {
		return
	}
	if half >= m.halfOpenMax || host >= m.halfOpenPerHost() {
		m.drop(p, ErrHalfOpen)
		return
	}
	m.countMessage(nil, h, false)
	if m.redirectInit(p, h, ni) {
		return
	}
	if resume {
		m.resumeRequest(p, h, b, ni)
		return
	}
	offered, err := ParseSA(saBody.Body)
	group, ke, kerr := ParseKE(keBody.Body)
	if err == nil {
		err = kerr
	}
	if err != nil {
		m.refuseInit(p, h, NotifyInvalidSyntax, nil, err)
		return
	}
	_, intermediate := m.msg.FindNotify(NotifyIntermediateSupported)
	if !intermediate {
		offered = withoutAddKE(offered)
	}
	var chosen Proposal
	ok, force, fragment, bare := false, false, false, false
	for _, s := range m.conns {
		if m.matches(s.conn, p) {
			if chosen, ok = chooseProposal(s.conn.Proposals, offered, group, false); ok {
				force, fragment, bare = s.conn.Encap, s.conn.announces(), s.conn.Childless != ChildlessNever
				break
			}
		}
	}
	if !ok {
		m.strangers()
		m.refuseInit(p, h, NotifyNoProposalChosen, nil, ErrNoProposal)
		return
	}
	suite, err := chosen.ikeSuite()
	if err == nil && len(chosen.SPI) != 0 {
		err = ErrSPISize
	}
	if err != nil {
		m.refuseInit(p, h, NotifyNoProposalChosen, nil, err)
		return
	}
	if no := checkKE(suite.DH, group, ke); no != nil {
		m.refuseInit(p, h, no.t, no.data, no.err)
		return
	}
	sa := m.newSA(false, false)
	if sa == nil {
		m.drop(p, ErrTableFull)
		return
	}
	sa.spiI, sa.path, sa.suite, sa.force = h.SPIi, p, suite, force || m.encap
	sa.ni, sa.nr = bytes.Clone(ni), m.nonce()
	sa.init.from, sa.init.bare = p.Remote, bare
	sa.init.request = append([]byte(nil), b...)
	sa.init.offered = []Proposal{chosen}
	sa.frag.on = m.agreed(fragment)
	sa.ppk.agreed = m.ppkOffered(p)
	sa.redirect.able = m.redirectAble()
	m.learnAuth(sa)
	m.natDetect(sa, p, 0)
	m.arm(sa, tConnect, halfOpenLife)
	m.startWork(sa, lanePeers, jobInitResponse, group, nil, ke)
}

// refuseInit answers an initial request with an unprotected error notify.
func (m *Machine) refuseInit(p Path, h *Header, t NotifyType, data []byte, err error) {
	if t != NotifyInvalidKEPayload {
		m.event(Event{Kind: EvRefused, Path: p, Text: t.String(), Err: err})
	}
	if t == NotifyInvalidKEPayload || m.notices.allow(m.now.Mono) {
		m.countMessage(nil, &Header{Exchange: h.Exchange, Flags: FlagResponse}, true)
		m.notice(p, h, t, data)
	}
}

// initRepeated handles an initial request whose IKE SA is there already: it is a
// retransmission and gets the same answer, or it is late, or not the same at all.
func (m *Machine) initRepeated(sa *ikeSA, p Path, b []byte) {
	if sa.state == StateConnecting && sa.reply.valid && sa.reply.id == 0 && string(b) == string(sa.init.request) {
		m.send(p, sa.reply.data)
		return
	}
	if sa.jobs[lanePeers] == jobNone {
		m.drop(p, ErrRepeated)
	}
}

// initRespond sends the response once the shared secret is there.
func (m *Machine) initRespond(sa *ikeSA, r Result) {
	if r.err != nil {
		h := Header{SPIi: sa.spiI, Exchange: ExchangeInit, Flags: FlagInitiator}
		m.refuseInit(sa.path, &h, NotifyInvalidSyntax, nil, r.err)
		m.destroy(sa, r.err)
		return
	}
	b := NewBuilder(make([]byte, 0, 1024), sa.header(ExchangeInit, 0, true))
	b.SA(sa.init.offered)
	b.KE(sa.suite.DH, r.pair.public())
	if offersAddKE(sa.init.offered) {
		b.Notify(NotifyIntermediateSupported, ProtoNone, nil, nil)
	}
	r.pair.wipe()
	m.countMessage(sa, &Header{Exchange: ExchangeInit, Flags: FlagResponse}, true)
	m.initReply(sa, b, skeyseed(sa.suite.PRF, sa.ni, sa.nr, r.shared))
}

// initReply sends the response to a first message, of either kind, of which b has what comes
// before the nonce, and makes the keys.
func (m *Machine) initReply(sa *ikeSA, b *Builder, seed []byte) {
	if err := m.keyed(sa, seed); err != nil {
		m.destroy(sa, err)
		return
	}
	b.Nonce(sa.nr)
	m.natNotifies(b, sa, sa.path)
	if sa.frag.on {
		fragmentNotify(b)
	}
	if sa.init.bare {
		b.Notify(NotifyChildlessIKEv2Supported, ProtoNone, nil, nil)
	}
	m.authInit(b, sa)
	sa.ppkAgree(b)
	sa.init.response = b.Finish()
	m.traceMessage("sending", sa.path, sa, sa.init.response)
	sa.reply = reply{valid: true, data: sa.init.response}
	sa.recvID = 1
	m.send(sa.path, sa.init.response)
}

// keyed derives the keys of an IKE SA and makes its ciphers.
func (m *Machine) keyed(sa *ikeSA, skeyseed []byte) (err error) {
	sa.keys = sa.suite.deriveKeys(skeyseed, sa.ni, sa.nr, sa.spiI, sa.spiR)
	clear(skeyseed)
	k := &sa.keys
	i, err := newSKCipher(sa.suite, k.ei, k.ai)
	if err != nil {
		return err
	}
	r, err := newSKCipher(sa.suite, k.er, k.ar)
	if err != nil {
		return err
	}
	if sa.initiator {
		sa.sealer, sa.opener = i, r
	} else {
		sa.sealer, sa.opener = r, i
	}
	return nil
}

// initAnswer tells whether a message can be the answer to our first one, of either kind, and
// leaves it in m.msg.
func (m *Machine) initAnswer(sa *ikeSA, p Path, h *Header, b []byte) bool {
	if !sa.initiator || sa.state != StateConnecting || !sa.req.active || sa.req.exchange != h.Exchange ||
		h.Flags&FlagResponse == 0 || h.ID != 0 || sa.jobs[laneOurs] != jobNone || !sameHost(sa.path.Remote, p.Remote) {
		m.drop(p, ErrUnexpected)
		return false
	}
	err := m.msg.Parse(b)
	if err == nil {
		err = checkRules(&m.msg, h.Exchange, true, false)
	}
	m.countParsed(sa, err)
	if err != nil {
		m.drop(p, err)
		return false
	}
	m.tracePayloads("received", p, sa)
	return true
}

// initResponse handles what comes back for our initial request. It is not
// authenticated: what it says is believed only as far as it makes sense.
func (m *Machine) initResponse(sa *ikeSA, p Path, h *Header, b []byte) {
	if !m.initAnswer(sa, p, h, b) {
		return
	}
	if m.msg.Find(PayloadSA) == nil {
		m.initRefused(sa, p)
		return
	}
	ke, nr := m.msg.Find(PayloadKE), m.nonceAtHand()
	offer, err := ParseSA(m.msg.Find(PayloadSA).Body)
	switch {
	case err != nil:
	case ke == nil || nr == nil || h.SPIr == 0:
		err = ErrNonce
	case len(offer) != 1 || len(offer[0].SPI) != 0 || !checkChosen(offer[0], numbered(sa.init.offered, nil)):
		err = ErrNoProposal
	}
	var group DHGroup
	var pub []byte
	if err == nil {
		sa.suite, err = offer[0].ikeSuite()
	}
	if err == nil {
		group, pub, err = ParseKE(ke.Body)
	}
	if err == nil && (group != sa.init.group || sa.suite.DH != group || len(pub) != group.answerLen()) {
		err = ErrGroup
	}
	if err == nil {
		err = m.ppkAnswer(sa)
	}
	if _, intermediate := m.msg.FindNotify(NotifyIntermediateSupported); err == nil && !intermediate && offer[0].adds() {
		err = ErrNoProposal // it has chosen what it cannot carry out
	}
	if err != nil {
		m.drop(p, err)
		return
	}
	sa.spiR = h.SPIr
	_, sa.init.bare = m.msg.FindNotify(NotifyChildlessIKEv2Supported)
	sa.nr = bytes.Clone(nr)
	sa.init.response = append([]byte(nil), b...)
	sa.timers[tRetransmit] = never
	sa.frag.on = m.agreed(sa.conn.announces())
	m.learnAuth(sa)
	m.natDetect(sa, p, sa.spiR)
	m.startWork(sa, laneOurs, jobInitShared, group, sa.init.pair, pub)
}

// initRefused handles an answer without an SA: COOKIE (section 2.6), INVALID_KE_PAYLOAD
// (section 1.3), or an error.
func (m *Machine) initRefused(sa *ikeSA, p Path) {
	if m.initRedirected(sa, p) || m.initCookie(sa, p) {
		return
	}
	if g, asked, err := m.otherGroup(sa.init.offered, sa.init.group); asked {
		if sa.init.retries++; err == nil && sa.init.retries > maxInitRetries {
			err = ErrTooManyRetries
		}
		if err != nil {
			m.drop(p, err)
			return
		}
		sa.init.group = g
		sa.timers[tRetransmit] = never
		sa.init.pair.wipe()
		m.startWork(sa, laneOurs, jobInitPair, g, nil, nil)
		return
	}
	if err := m.notifyError(); err != nil {
		m.destroy(sa, err)
		return
	}
	m.drop(p, ErrUnexpected)
}

// initCookie sends our first message, of either kind, again with the cookie that the answer asks
// for (section 2.6), if it is one that does.
func (m *Machine) initCookie(sa *ikeSA, p Path) bool {
	n, ok := m.msg.FindNotify(NotifyCookie)
	if !ok || len(n.Data) < 1 || len(n.Data) > 64 {
		return false
	}
	if sa.init.retries++; sa.init.retries > maxInitRetries {
		m.drop(p, ErrTooManyRetries)
		return true
	}
	sa.init.cookie = append([]byte(nil), n.Data...)
	m.initTransmit(sa)
	return true
}

// notifyError returns the first error notify of the message, or nil.
func (m *Machine) notifyError() error {
	var err error
	m.msg.EachNotify(func(n Notify) {
		if err == nil && n.Type.IsError() {
			err = &NotifyError{n.Type, ""}
		}
	})
	return err
}

// initKeyed goes on to IKE_AUTH once the shared secret is there.
func (m *Machine) initKeyed(sa *ikeSA, r Result) {
	err := r.err
	if err == nil {
		err = m.keyed(sa, skeyseed(sa.suite.PRF, sa.ni, sa.nr, r.shared))
	}
	if err != nil {
		m.destroy(sa, err)
		return
	}
	sa.init.pair.wipe()
	sa.init.pair = nil
	m.answered(sa)
	if sa.natKnown && (sa.encap() || sa.conn.MOBIKE) { // RFC 4555 section 3.3
		sa.path = m.floated(sa.path)
	}
	m.interStart(sa)
}
