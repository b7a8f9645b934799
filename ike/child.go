package ike

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"postern/esp"
)

// CREATE_CHILD_SA (RFC 7296 section 1.3): another CHILD SA, or a new one in place of an
// old. The rekeying of the IKE SA itself is in rekey.go; it shares the four steps.
//
//	ours:    createStart -> (key pair) -> createSend ... createResponse -> (g^ir) -> createKeyed
//	theirs:  createRequest -> (key pair and g^ir) -> createRespond

// peerCreate is a CREATE_CHILD_SA request of the peer while its job is out.
type peerCreate struct {
	kind    taskKind // taskCreateChild, taskRekeyChild or taskRekeyIKE
	path    Path
	id      uint32 // message ID
	chosen  Proposal
	suite   esp.Suite
	ike     IKESuite
	dh      DHGroup
	ni, nr  []byte
	cfg     *Child
	local   []esp.Selector
	remote  []esp.Selector
	mode    esp.Mode
	frags   bool
	seen    seenAs
	padding bool
	agg     AggFrag
	target  uint32 // the CHILD SA that is rekeyed
	spiOut  uint32
	peerSPI uint64 // of the new IKE SA
	ticket  bool   // a ticket is asked for
	alone   bool   // the peer has said that it has no other IKE SA with us
	perCPU  bool   // it says that it makes an SA for each CPU
	cp      cpRequest
	spiIn   uint32

	rest         // where additional key exchanges follow
	first uint32 // message ID of the CREATE_CHILD_SA
	lane  laneState
}

// answer is the SA payload's proposal of our response.
func (r *peerCreate) answer(spi uint32) Proposal {
	return Proposal{Num: r.chosen.Num, Proto: r.chosen.Proto, SPI: be32(spi), Transforms: r.chosen.Transforms}
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// createStart begins a CREATE_CHILD_SA of ours.
func (m *Machine) createStart(sa *ikeSA, t task) {
	req := request{active: true, task: t, exchange: ExchangeCreateChild}
	switch t.kind {
	case taskRekeyChild:
		c := m.findChild(t.target)
		if c == nil || c.state != ChildInstalled || c.ike != sa.slot {
			m.settle(t.waiters, nil) // it has been replaced or closed meanwhile
			return
		}
		c.state = ChildRekeying
		req.ts, req.mode = [2][]esp.Selector{c.local, c.remote}, c.mode
		req.offered = sa.offerChild(t.cfg)
		req.group = firstGroup(req.offered)
		if offers(req.offered, c.dh) {
			req.group = c.dh
		}
	case taskCreateChild:
		if m.needless(sa, &t) {
			m.settle(t.waiters, nil)
			return
		}
		req.ts = m.offerTS(sa, t.cfg, &t.flow)
		if old := m.findChild(t.target); old != nil && len(sa.conn.VIPs) == 0 {
			req.ts = [2][]esp.Selector{old.local, old.remote}
		}
		req.mode = m.offerMode(sa, t.cfg.Mode, &req.ts)
		req.offered = sa.offerChild(t.cfg)
		req.group = firstGroup(req.offered)
	case taskRekeyIKE:
		req.offered, req.group = sa.conn.Proposals, sa.suite.DH
		if !offers(req.offered, req.group) {
			req.group = firstGroup(req.offered)
		}
	}
	if t.group != DHNone {
		req.group = t.group
	}
	req.ni = m.nonce()
	sa.req = req
	if req.group == DHNone {
		m.createSend(sa, Result{})
		return
	}
	m.startWork(sa, laneOurs, jobReqPair, req.group, nil, nil)
}

// createSend sends the request once the key pair, if any, is there.
func (m *Machine) createSend(sa *ikeSA, r Result) {
	req := &sa.req
	if r.err != nil {
		m.createFailed(sa, r.err)
		return
	}
	req.pair = r.pair
	t := &req.task
	if sa.state != StateEstablished {
		m.createAbandoned(sa) // the peer's rekeying of the IKE SA was faster
		return
	}
	if t.kind == taskRekeyIKE {
		m.rekeySend(sa)
		return
	}
	var old *childSA
	if t.kind == taskRekeyChild {
		if old = m.findChild(t.target); old == nil || old.state != ChildRekeying {
			m.createAbandoned(sa)
			return
		}
	}
	lane := t.lane
	if old != nil {
		lane = m.heirLane(old).n
	}
	spi, ok := m.allocSPI(old != nil, t.cfg, lane)
	if !ok {
		m.createFailed(sa, ErrTableFull)
		return
	}
	req.spiIn = spi
	req.offered = numbered(req.offered, be32(spi))
	m.sendRequest(sa, ExchangeCreateChild, func(b *Builder) {
		if old != nil {
			b.Notify(NotifyRekeySA, old.proto(), be32(old.spiIn), nil)
		}
		writeMode(b, req.mode)
		writeFragments(b, t.cfg.Fragments)
		writeResource(b, t.cfg, lane)
		m.askAggFrag(b, t.cfg, req.mode, t.target)
		b.SA(req.offered)
		b.Nonce(req.ni)
		if req.pair != nil {
			b.KE(req.group, req.pair.public())
		}
		b.TS(PayloadTSi, req.ts[0])
		b.TS(PayloadTSr, req.ts[1])
	})
}

// createAbandoned frees the window of an exchange that was never sent.
func (m *Machine) createAbandoned(sa *ikeSA) {
	m.settle(sa.req.task.waiters, nil)
	if c := m.findChild(sa.req.task.target); sa.req.task.kind == taskRekeyChild && c != nil && c.state == ChildRekeying {
		m.armChild(c, tcRekey, time.Second) // under the IKE SA that has it now
	}
	m.createReset(sa)
	sa.req.wipe()
	sa.req = request{}
}

// askPFS asks once more for a CHILD SA that the peer refused, now with a key exchange in the group of
// the IKE SA, which the peer has taken: without one in our configuration, that may be all that it
// misses (libreswan's pfs=yes, its default).
func (m *Machine) askPFS(sa *ikeSA, err error) bool {
	t := sa.req.task
	if !isNotify(err, NotifyNoProposalChosen) || t.kind == taskRekeyIKE {
		return false
	}
	if sa.pfs {
		sa.pfs = false // it was not that
		return false
	}
	if withGroup(t.cfg.Proposals, sa.suite.DH) == nil {
		return false
	}
	sa.pfs = true
	m.createReset(sa)
	m.answered(sa)
	sa.tasks = append([]task{t}, sa.tasks...)
	return true
}

// createResponse handles the peer's answer to our CREATE_CHILD_SA.
func (m *Machine) createResponse(sa *ikeSA) {
	req := &sa.req
	if g, asked, err := m.otherGroup(req.offered, req.group); asked {
		t := req.task
		if err == nil && t.tries > maxInitRetries {
			err = ErrTooManyRetries
		}
		if err != nil {
			m.createFailed(sa, err)
			return
		}
		m.createReset(sa)
		m.answered(sa)
		t.group = g
		t.tries++
		sa.tasks = append([]task{t}, sa.tasks...)
		return
	}
	if err := m.notifyError(); err != nil {
		if m.askPFS(sa, err) {
			return
		}
		m.createFailed(sa, err)
		return
	}
	var ke []byte
	var err error
	if req.task.kind == taskRekeyIKE {
		ke, err = m.parseRekeyed(sa)
	} else {
		ke, err = m.parseCreated(sa)
	}
	if err != nil {
		m.createFailed(sa, err)
		return
	}
	req.more = req.chosen.additional().list()
	if err = m.takeLink(req, len(req.more)); err != nil {
		m.createFailed(sa, err)
		return
	}
	if ke == nil {
		m.createKeyed(sa, Result{})
		return
	}
	m.startWork(sa, laneOurs, jobReqShared, req.group, req.pair, ke)
}

// createKeyed installs what our CREATE_CHILD_SA has made.
func (m *Machine) createKeyed(sa *ikeSA, r Result) {
	if r.err != nil {
		m.createFailed(sa, r.err)
		return
	}
	if len(sa.req.more) > 0 {
		m.followFirst(sa, r.shared)
		return
	}
	m.createDone(sa, r.shared)
}

// createDone makes the SA when all key exchanges are over; shared is what CREATE_CHILD_SA has
// given.
func (m *Machine) createDone(sa *ikeSA, shared []byte) {
	if sa.req.task.kind == taskRekeyIKE {
		m.rekeyKeyed(sa, shared)
		return
	}
	m.installOurs(sa, shared)
}

// installOurs puts the CHILD SA of sa.req in place, and the old one, if it replaces one, on
// its way out.
func (m *Machine) installOurs(sa *ikeSA, shared []byte) {
	req := sa.req
	suite, dh, err := req.chosen.childSuite()
	if err == nil && slices.Contains(req.gone, binary.BigEndian.Uint32(req.peerSPI)) {
		err = ErrPeerDeleted // before its making became known to us
	}
	if err != nil {
		m.createFailed(sa, err)
		return
	}
	if req.dropped && req.refused == nil {
		req.refused = ErrTerminated
	}
	rival := m.findChild(req.rival)
	loses := rival != nil && (rival.state == ChildInstalled || rival.state == ChildRekeying) &&
		bytes.Compare(lowest(req.ni, req.nr), rival.nonceLow) < 0
	if !loses && req.task.kind == taskRekeyChild && !req.following() {
		loses = m.followLoses(sa)
	}
	c := m.install(sa, &childParams{
		cfg: req.task.cfg, suite: suite, dh: dh, ke: req.chosen.additional(), secrets: req.secrets, ours: true, standby: loses || req.refused != nil,
		spiIn: req.spiIn, spiOut: binary.BigEndian.Uint32(req.peerSPI),
		ni: req.ni, nr: req.nr, shared: shared, local: req.gotTS[0], remote: req.gotTS[1],
		mode: req.mode, frags: req.frags, seen: req.seen, padding: req.padding, agg: req.agg, lane: m.ownLane(&req),
	})
	if c == nil {
		m.createFailed(sa, ErrTableFull)
		return
	}
	if req.refused != nil {
		sa.req.spiIn = 0
		m.closeChild(sa, c, req.refused, nil)
		m.createFailed(sa, req.refused)
		return
	}
	sa.req.spiIn, sa.req.task.waiters = 0, nil
	if req.counted {
		m.answered(sa)
	} else {
		sa.req = request{} // IKE_AUTH has been accounted for
	}
	if req.task.kind == taskRekeyChild {
		m.childRekeyed(sa, c, &req, loses)
	} else {
		m.announce(c, nil)
		if s := m.stateOf(sa.conn); s != nil {
			s.tries = 0
		}
		m.succeedChild(req.task.target, c)
	}
	m.dropOutdated(sa, c)
	m.resolveTwins(sa, c, req.task.target)
	m.checkLane(sa, c, req.task.target)
	m.settle(req.task.waiters, nil)
}

// createReset undoes the reservations of our exchange and puts what it was to replace
// back to normal.
func (m *Machine) createReset(sa *ikeSA) {
	req := &sa.req
	m.releaseSPI(req.spiIn)
	req.spiIn = 0
	if req.task.kind == taskRekeyChild {
		if c := m.findChild(req.task.target); c != nil && c.state == ChildRekeying {
			c.state = ChildInstalled
		}
	}
	if req.task.kind == taskRekeyIKE {
		m.rekeyReset(sa)
	}
}

// createFailed ends our CREATE_CHILD_SA (or the CHILD SA of IKE_AUTH) without success.
func (m *Machine) createFailed(sa *ikeSA, err error) {
	req := sa.req
	m.createReset(sa)
	sa.req.spiIn = 0
	if req.counted {
		m.answered(sa)
	} else {
		sa.req.wipe()
		sa.req = request{}
	}
	t := req.task
	if req.dropped && t.kind == taskCreateChild {
		m.settle(t.waiters, ErrTerminated)
		return
	}
	if t.kind != taskCreateChild || t.lane > 0 { // EvFailed tells of the others
		m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Text: t.kind.String(), Err: err})
	}
	if t.kind == taskRekeyIKE && sa.collision.slot != 0 {
		m.adoptRival(sa) // the peer's own rekeying took its place
		m.settle(t.waiters, nil)
		return
	}
	if rival := m.findChild(req.rival); rival != nil {
		m.superseded(m.findChild(t.target), rival) // likewise of the CHILD SA
		m.settle(t.waiters, nil)
		return
	}
	if m.laneFailed(sa, &t, err) {
		return
	}
	if isNotify(err, NotifyTemporaryFailure) || m.seriesLost(sa, err) {
		m.again(sa, t)
		return
	}
	switch t.kind {
	case taskCreateChild:
		m.settle(t.waiters, err)
		t.waiters = nil
		s := m.stateOf(sa.conn)
		if s != nil && t.cfg.StartAction == StartStart {
			s.tries++
			s.wanted = append(s.wanted, wish{cfg: t.cfg})
			d := m.backoff(s.tries)
			m.armRetry(s, d)
			m.event(Event{Kind: EvFailed, Conn: sa.connName(), Child: t.cfg.Name, IKE: sa.unique, Count: s.tries, Delay: d, Err: err})
			return
		}
		m.event(Event{Kind: EvFailed, Conn: sa.connName(), Child: t.cfg.Name, IKE: sa.unique, Err: err})
	case taskRekeyChild:
		c := m.findChild(t.target)
		if isNotify(err, NotifyChildSANotFound) {
			// The peer does not have it any more (section 2.25): neither do we.
			m.settle(t.waiters, err)
			if c != nil && c.state == ChildInstalled {
				m.childDown(c, err)
				m.deleteOut(c)
				c.state = ChildRekeyed // what the peer has sent through it may still be on its way
				c.timers.clear()
				m.armChild(c, tcGone, linger)
				if s := m.stateOf(sa.conn); s != nil {
					m.want(s, wish{cfg: t.cfg})
				}
			}
			return
		}
		m.settle(t.waiters, err)
		t.waiters = nil
		if c != nil && c.state == ChildInstalled {
			m.again(sa, t) // until the hard lifetime
		}
	case taskRekeyIKE:
		m.settle(t.waiters, err)
		t.waiters = nil
		if sa.state == StateEstablished {
			m.again(sa, t)
		}
	}
}

// createRequest handles a CREATE_CHILD_SA request of the peer.
func (m *Machine) createRequest(sa *ikeSA, p Path) {
	req := peerCreate{kind: taskCreateChild, path: p, id: m.msg.ID}
	no := m.parseRequest(sa, &req)
	if no != nil {
		m.refuse(sa, p, ExchangeCreateChild, no)
		return
	}
	req.more = req.chosen.additional().list()
	if no := m.followable(sa, &req); no != nil {
		m.refuse(sa, p, ExchangeCreateChild, no)
		return
	}
	req.nr = m.nonce()
	sa.parkPeer()
	sa.peer = req
	if req.dh == DHNone {
		m.createRespond(sa, Result{})
		return
	}
	_, ke, _ := ParseKE(m.msg.Find(PayloadKE).Body)
	m.startWork(sa, lanePeers, jobRespond, req.dh, nil, ke)
}

// busy is the answer to what would collide with something under way (section 2.25).
func busy(err error) *refusal { return &refusal{t: NotifyTemporaryFailure, err: err} }

// parseRequest takes the CREATE_CHILD_SA request of the message into req.
func (m *Machine) parseRequest(sa *ikeSA, req *peerCreate) *refusal {
	if sa.state != StateEstablished || sa.closeErr != nil {
		return busy(ErrClosing)
	}
	body, ni := m.msg.Find(PayloadSA), m.nonceAtHand()
	if body == nil || ni == nil {
		return &refusal{t: NotifyInvalidSyntax, err: ErrNonce}
	}
	req.ni = bytes.Clone(ni)
	offered, err := ParseSA(body.Body)
	if err != nil {
		return &refusal{t: NotifyInvalidSyntax, err: err}
	}
	if len(offered) > 0 && offered[0].Proto == ProtoIKE {
		if no := m.flooded(sa, taskRekeyIKE); no != nil {
			return no
		}
		return m.parseRekey(sa, req, offered)
	}
	if sa.req.active && sa.req.task.kind == taskRekeyIKE || sa.collision.slot != 0 {
		return busy(ErrRekeying)
	}
	if n, ok := m.msg.FindNotify(NotifyRekeySA); ok {
		req.kind = taskRekeyChild
		var c *childSA
		if len(n.SPI) == 4 {
			c = m.childOf(sa, n.Proto, binary.BigEndian.Uint32(n.SPI))
		}
		switch {
		case c == nil && sa.outstanding(func(r *request) bool {
			return r.task.kind == taskCreateChild || r.task.kind == taskRekeyChild
		}) != nil:
			// It may be the one that our unanswered request has made: without it, the peer would
			// lose what we are about to have.
			return busy(ErrUnknownSPI)
		case c == nil || c.state == ChildRekeyed && c.outGone:
			return &refusal{t: NotifyChildSANotFound, proto: n.Proto, spi: n.SPI, err: ErrUnknownSPI}
		case c.state == ChildDeleting || c.state == ChildRekeyed:
			return busy(ErrClosing)
		}
		req.target, req.cfg = c.unique, c.cfg
	}
	_, req.perCPU = m.msg.FindNotify(NotifySAResourceInfo)
	if no := m.flooded(sa, req.kind); no != nil {
		return no.forLane(m, sa, req)
	}
	return m.parseCreate(sa, req, false)
}

// createRespond answers the peer's CREATE_CHILD_SA once the shared secret, if any, is there.
func (m *Machine) createRespond(sa *ikeSA, r Result) {
	req := sa.peer
	sa.peer, sa.window.at = peerCreate{}, req.id
	defer r.pair.wipe()
	no := m.stillWanted(sa, &req, r.err)
	if no == nil && len(req.more) > 0 {
		m.followBegin(sa, &req, r)
		return
	}
	if no == nil && req.kind == taskRekeyIKE {
		m.rekeyRespond(sa, &req, r)
		return
	}
	var c *childSA
	if no == nil {
		c, no = m.createChild(sa, &req, r.shared)
	}
	if no != nil {
		m.refuse(sa, req.path, ExchangeCreateChild, no)
		return
	}
	m.respond(sa, req.path, ExchangeCreateChild, func(b *Builder) { m.writeCreated(b, sa, c, &req, r.pair) })
	if sa.rivaled(c.unique) == nil {
		m.resolveTwins(sa, c, 0)
	}
}

// writeCreated writes what the response says of the CHILD SA c; pair is our half of the key
// exchange, nil if there was none.
func (m *Machine) writeCreated(b *Builder, sa *ikeSA, c *childSA, req *peerCreate, pair *keyPair) {
	writeMode(b, c.mode)
	writeFragments(b, c.frags)
	c.answerResource(b)
	c.cfg.Hiding.write(b, c.agg.On)
	m.writeAddresses(b, sa, &req.cp)
	b.SA([]Proposal{req.answer(c.spiIn)})
	b.Nonce(req.nr)
	if pair != nil {
		b.KE(req.dh, pair.public())
	}
	b.TS(PayloadTSi, c.remote)
	b.TS(PayloadTSr, c.local)
}

// stillWanted checks, after the job, that what the request is about is still there.
func (m *Machine) stillWanted(sa *ikeSA, req *peerCreate, err error) *refusal {
	switch {
	case err != nil:
		return &refusal{t: NotifyInvalidSyntax, err: err}
	case sa.state != StateEstablished || sa.closeErr != nil:
		return busy(ErrClosing)
	case req.kind == taskRekeyIKE && sa.collision.slot != 0:
		return busy(ErrRekeying) // the peer has sent two, and the other one was answered
	case req.kind == taskRekeyChild:
		if c := m.findChild(req.target); c == nil || c.state != ChildInstalled && c.state != ChildRekeying {
			return busy(ErrClosing)
		}
	}
	return nil
}

// createChild installs, as responder, the CHILD SA that req asks for.
func (m *Machine) createChild(sa *ikeSA, req *peerCreate, shared []byte) (*childSA, *refusal) {
	lane, spi, ok := req.lane, req.spiIn, true // reserved, if there were additional key exchanges
	if spi == 0 {
		var no *refusal
		if lane, no = m.theirLane(sa, req); no != nil {
			return nil, no
		}
		spi, ok = m.allocSPI(req.kind == taskRekeyChild, req.cfg, lane.n)
	}
	req.spiIn = 0
	if !ok {
		return nil, (&refusal{t: NotifyNoAdditionalSAs, err: ErrTableFull}).forLane(m, sa, req)
	}
	before := m.ancestor(sa, req)
	c := m.install(sa, &childParams{
		cfg: req.cfg, suite: req.suite, dh: req.dh, ke: req.chosen.additional(), secrets: req.secrets, spiIn: spi, spiOut: req.spiOut,
		ni: req.ni, nr: req.nr, shared: shared, local: req.local, remote: req.remote,
		mode: req.mode, frags: req.frags, seen: req.seen, padding: req.padding, agg: req.agg, lane: lane,
		standby: req.kind == taskRekeyChild || before != nil,
	})
	if c == nil {
		m.env.FreeSPI(spi)
		return nil, (&refusal{t: NotifyNoAdditionalSAs, err: ErrTableFull}).forLane(m, sa, req)
	}
	if req.kind != taskRekeyChild {
		m.announce(c, nil)
		if before != nil {
			m.armHeir(before, c)
		}
		return c, nil
	}
	old := m.findChild(req.target)
	m.inheritUse(old, c)
	if r := sa.outstanding(func(r *request) bool { return r.task.kind == taskRekeyChild && r.task.target == old.unique }); r != nil {
		r.rival = c.unique // decided when our own is answered
		return c, nil
	}
	m.superseded(old, c)
	return c, nil
}
