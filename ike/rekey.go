package ike

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Rekeying of the IKE SA by CREATE_CHILD_SA (RFC 7296 sections 1.3.2 and 2.18). The new
// IKE SA inherits the CHILD SAs; the old one is deleted by the side that asked.

// rekeyedMax is how long a replaced IKE SA waits for the peer's DELETE.
const rekeyedMax = time.Minute

// ikeCollision remembers the IKE SA that the peer made by rekeying sa while our own
// rekeying of it is unanswered. slot is the table index plus one; 0 means none. The peer may
// have closed that IKE SA already, and another one be in its slot: unique tells.
type ikeCollision struct {
	slot   int
	unique uint32
	low    []byte
	over   bool // the peer has deleted sa, which only waits for what its own rekeying has made
}

// rival returns the IKE SA that the peer made by rekeying sa, or nil if it is there no more.
func (m *Machine) rival(sa *ikeSA) *ikeSA {
	i := sa.collision.slot - 1
	if i < 0 || m.sas[i].unique != sa.collision.unique || m.sas[i].state != StateEstablished {
		return nil
	}
	return &m.sas[i]
}

// outlives tells, when the peer deletes sa, whether sa has to wait for the end of our own
// rekeying of it: it was answered, so that the peer has an IKE SA by it, and expects our
// DELETE if it is the one too many.
func (m *Machine) outlives(sa *ikeSA) bool {
	if !sa.req.active || sa.req.task.kind != taskRekeyIKE || len(sa.req.peerSPI) == 0 || m.rival(sa) == nil {
		return false
	}
	sa.collision.over = true
	return true
}

// rekeySend sends the request once the key pair is there. The slot of the new IKE SA is
// taken now, because its SPI goes into the request.
func (m *Machine) rekeySend(sa *ikeSA) {
	nsa := m.newSA(true, true)
	if nsa == nil {
		m.createFailed(sa, ErrTableFull)
		return
	}
	req := &sa.req
	req.newSlot = nsa.slot + 1
	req.offered = numbered(req.offered, binary.BigEndian.AppendUint64(nil, nsa.spiI))
	m.sendRequest(sa, ExchangeCreateChild, func(b *Builder) {
		b.SA(req.offered)
		b.Nonce(req.ni)
		b.KE(req.group, req.pair.public())
	})
}

// rekeyReset gives back the slot of an IKE SA that will not be.
func (m *Machine) rekeyReset(sa *ikeSA) {
	m.freeSlot(&sa.req.rest)
}

// parseRekeyed takes the new IKE SA of the response into sa.req and returns the peer's
// public value.
func (m *Machine) parseRekeyed(sa *ikeSA) ([]byte, error) {
	req := &sa.req
	body, nr := m.msg.Find(PayloadSA), m.nonceAtHand()
	if body == nil || nr == nil {
		return nil, ErrNonce
	}
	offer, err := ParseSA(body.Body)
	if err != nil {
		return nil, err
	}
	if len(offer) != 1 || !checkChosen(offer[0], req.offered) || len(offer[0].SPI) != 8 || be64(offer[0].SPI) == 0 {
		return nil, ErrNoProposal
	}
	suite, err := offer[0].ikeSuite()
	if err != nil {
		return nil, err
	}
	req.chosen, req.nr = offer[0], bytes.Clone(nr)
	req.peerSPI = append([]byte(nil), offer[0].SPI...)
	req.token = m.sentToken()
	return m.peerKE(suite.DH, req)
}

// rekeyKeyed makes the new IKE SA out of our answered request.
func (m *Machine) rekeyKeyed(sa *ikeSA, shared []byte) {
	req := sa.req
	nsa := &m.sas[req.newSlot-1]
	suite, err := req.chosen.ikeSuite()
	if err == nil {
		err = m.succeed(sa, nsa, suite, &rest{shared: shared, secrets: req.secrets}, req.ni, req.nr, nsa.spiI, be64(req.peerSPI))
	}
	if err != nil {
		m.createFailed(sa, err)
		return
	}
	nsa.takeToken(req.token)
	loses := !req.following() && m.followLoses(sa)
	sa.req.newSlot, sa.req.task.waiters = 0, nil
	m.answered(sa)
	if loses && m.rival(sa) == nil { // the peer's rekeying of it is still under way, and comes before ours
		m.closeIKE(nsa, ErrReplaced, nil)
		m.again(sa, req.task)
		return
	}
	over := sa.collision.over
	if rival := m.rival(sa); rival != nil {
		if bytes.Compare(lowest(req.ni, req.nr), sa.collision.low) < 0 {
			// Ours has the lowest nonce: it is the one too many.
			m.adoptRival(sa)
			m.closeIKE(nsa, ErrReplaced, nil)
			m.settle(req.task.waiters, nil)
			return
		}
		m.await(rival)
	}
	sa.collision = ikeCollision{}
	m.adopt(sa, nsa)
	if m.qcd.secret != nil {
		nsa.qcd.tell = true // ours; the peer's came with the response
		m.queue(nsa, task{kind: taskTell})
	}
	m.settle(req.task.waiters, nil)
	if over {
		m.destroy(sa, ErrReplaced)
		return
	}
	m.closeIKE(sa, ErrReplaced, nil)
}

// parseRekey takes a request to rekey the IKE SA into req, as responder.
func (m *Machine) parseRekey(sa *ikeSA, req *peerCreate, offered []Proposal) *refusal {
	if sa.outstanding(func(r *request) bool {
		return r.task.kind == taskCreateChild || r.task.kind == taskRekeyChild || r.task.kind == taskDeleteChild
	}) != nil {
		return busy(ErrRekeying)
	}
	if sa.collision.slot != 0 {
		return busy(ErrRekeying)
	}
	req.kind = taskRekeyIKE
	_, req.ticket = m.msg.FindNotify(NotifyTicketRequest)
	k := m.msg.Find(PayloadKE)
	if k == nil {
		return &refusal{t: NotifyInvalidSyntax, err: ErrGroup}
	}
	group, ke, err := ParseKE(k.Body)
	if err != nil {
		return &refusal{t: NotifyInvalidSyntax, err: err}
	}
	chosen, ok := chooseProposal(sa.conn.Proposals, offered, group, false)
	if ok {
		req.ike, err = chosen.ikeSuite()
		ok = err == nil && len(chosen.SPI) == 8 && be64(chosen.SPI) != 0
	}
	if !ok {
		return &refusal{t: NotifyNoProposalChosen, err: ErrNoProposal}
	}
	if no := checkKE(req.ike.DH, group, ke); no != nil {
		return no
	}
	req.chosen, req.dh, req.peerSPI = chosen, group, be64(chosen.SPI)
	return nil
}

// rekeyRespond makes the new IKE SA that the peer asked for, and answers.
func (m *Machine) rekeyRespond(sa *ikeSA, req *peerCreate, r Result) {
	nsa := m.newSA(false, true)
	if nsa == nil {
		m.refuse(sa, req.path, ExchangeCreateChild, &refusal{t: NotifyNoAdditionalSAs, err: ErrTableFull})
		return
	}
	if err := m.succeed(sa, nsa, req.ike, &rest{shared: r.shared}, req.ni, req.nr, req.peerSPI, nsa.spiR); err != nil {
		m.destroy(nsa, err)
		m.refuse(sa, req.path, ExchangeCreateChild, &refusal{t: NotifyNoProposalChosen, err: err})
		return
	}
	m.respond(sa, req.path, ExchangeCreateChild, func(b *Builder) {
		b.SA([]Proposal{{Num: req.chosen.Num, Proto: ProtoIKE, SPI: binary.BigEndian.AppendUint64(nil, nsa.spiR), Transforms: req.chosen.Transforms}})
		b.Nonce(req.nr)
		b.KE(req.dh, r.pair.public())
		m.rekeyNotifies(b, nsa, req)
	})
	m.rekeyAnswered(sa, nsa, req)
}

// rekeyNotifies adds to the response that makes a new IKE SA what the peer should have of it.
func (m *Machine) rekeyNotifies(b *Builder, nsa *ikeSA, req *peerCreate) {
	m.qcdNotify(b, nsa)
	if req.ticket {
		m.ticketNotify(b, nsa)
	}
}

// rekeyAnswered makes the IKE SA that the peer asked for the successor of sa, or leaves that to
// the end of our own rekeying of it.
func (m *Machine) rekeyAnswered(sa, nsa *ikeSA, req *peerCreate) {
	sa.collision = ikeCollision{slot: nsa.slot + 1, unique: nsa.unique, low: lowest(req.ni, req.nr)}
	if !sa.req.active || sa.req.task.kind != taskRekeyIKE || !sa.req.counted {
		m.adoptRival(sa)
	}
}

// succeed fills nsa in as the successor of sa (RFC 7296 section 2.18). The CHILD SAs stay
// where they are.
func (m *Machine) succeed(sa, nsa *ikeSA, suite IKESuite, k *rest, ni, nr []byte, spiI, spiR uint64) error {
	nsa.suite, nsa.ni, nsa.nr, nsa.spiI, nsa.spiR = suite, ni, nr, spiI, spiR
	if err := m.keyed(nsa, skeyseedRekey(sa.suite.PRF, sa.keys.d, k.shared, ni, nr, k.secrets)); err != nil {
		return err
	}
	nsa.state, nsa.conn, nsa.origin = StateEstablished, sa.conn, sa.origin
	nsa.redirect, nsa.frag, nsa.ppk = sa.redirect, sa.frag.inherit(), sa.ppk
	nsa.localID, nsa.peerID, nsa.force, nsa.proofs = sa.localID, sa.peerID, sa.force, sa.proofs
	nsa.anchors = sa.anchors
	m.mobikeInherit(sa, nsa)
	nsa.inheritAddresses(sa)
	nsa.reauth.at, nsa.reauth.asked, nsa.reauth.tries = sa.reauth.at, sa.reauth.asked, sa.reauth.tries
	nsa.live, nsa.flood, nsa.replaced = sa.live, sa.flood, sa.replaced
	nsa.live.unused, nsa.live.lost = false, false // it has no CHILD SA yet, and must not end for that
	nsa.established, nsa.lastIn = m.now.Mono, m.now.Mono
	m.armLife(nsa)
	if m.leftOver(sa) {
		nsa.timers[tRekey], nsa.timers[tReauth], nsa.timers[tLiveness] = never, never, never
	}
	if (sa.replaced != 0 || m.leftOver(sa)) && sa.timers[tExpire] < nsa.timers[tExpire] {
		nsa.timers[tExpire] = sa.timers[tExpire] // it ends with new keys, too
	}
	return nil
}

// adopt moves the CHILD SAs, and what is still to be done with them, from sa to nsa.
func (m *Machine) adopt(sa, nsa *ikeSA) {
	newer := nsa.mobike.movedAt > sa.mobike.movedAt
	if !newer {
		m.mobikeInherit(sa, nsa)
	}
	for i := range m.children {
		if c := &m.children[i]; c.state != ChildFree && c.ike == sa.slot {
			c.ike = nsa.slot
		}
	}
	if newer && !nsa.mobike.checking {
		m.moveChildren(nsa)
	}
	for i := range m.sas {
		if o := &m.sas[i]; o.reauth.old == sa.unique {
			o.reauth.old = nsa.unique
		}
	}
	nsa.pfs = sa.pfs
	nsa.live.unused = nsa.live.unused || sa.live.unused
	nsa.live.lost = nsa.live.lost || sa.live.lost
	nsa.reauth.old, nsa.reauth.tried, nsa.reauth.last = sa.reauth.old, sa.reauth.tried, sa.reauth.last
	sa.reauth.old = 0
	tasks := sa.tasks
	sa.tasks = nil
	for _, t := range tasks {
		if t.kind == taskRekeyIKE || t.kind == taskLiveness {
			m.settle(t.waiters, nil)
			continue
		}
		m.queue(nsa, t)
	}
	nsa.waiters, sa.waiters = append(nsa.waiters, sa.waiters...), nil
	if s := m.stateOf(nsa.conn); s != nil && s.redirect.old == sa.unique {
		s.redirect.old = nsa.unique
	}
	if nsa.origin.ours && nsa.conn.Resumption {
		nsa.resume.asked = true
		m.queue(nsa, task{kind: taskTell}) // the ticket is the former IKE SA's
	}
	m.announceIKE(nsa, sa)
}

// announceIKE tells that an IKE SA is established, in place of old if there is one of which
// that was told.
func (m *Machine) announceIKE(sa, old *ikeSA) {
	e := Event{Kind: EvIKEUp, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Suite: sa.suite.String()}
	if old != nil && old.told {
		e.Kind, e.Old, old.told = EvIKERekeyed, old.unique, false
		c := CountRekeyResp
		if sa.initiator {
			c = CountRekeyInit
		}
		m.count(sa, c)
	}
	if old == nil && sa.resume.on {
		e.Text = "resumed by a ticket"
	}
	sa.told = true
	m.tell(e)
}

// adoptRival makes the IKE SA that the peer's rekeying of sa has made its successor.
func (m *Machine) adoptRival(sa *ikeSA) {
	nsa, over := m.rival(sa), sa.collision.over
	sa.collision = ikeCollision{}
	if nsa != nil {
		m.adopt(sa, nsa)
	}
	if over {
		m.destroy(sa, ErrReplaced)
		return
	}
	m.await(sa)
}

// await leaves a replaced IKE SA to the peer's DELETE.
func (m *Machine) await(sa *ikeSA) {
	sa.state, sa.closeErr = StateRekeyed, ErrReplaced
	sa.timers[tRekey], sa.timers[tReauth], sa.timers[tLiveness] = never, never, never
	m.arm(sa, tExpire, rekeyedMax)
}
