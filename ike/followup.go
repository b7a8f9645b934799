package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4): the additional key exchanges after a CREATE_CHILD_SA,
// one for each that it has agreed on. What the CREATE_CHILD_SA asked for is made when the last
// one is over.
//
//	ours:    createKeyed -> followFirst -> followNext -> (key pair) -> followSend
//	         ... followResponse -> (shared) -> followKeyed -> the next one, or createDone
//	theirs:  createRespond -> followBegin
//	         ... followRequest -> (key pair and shared) -> followRespond -> the next one, or the SA
//
// Both sides hold what they have reserved for the new SA meanwhile: its SPI, and a place in the
// table for an IKE SA. We remember a series of the peer's by the message ID of its
// CREATE_CHILD_SA and how far it has come, which is what ADDITIONAL_KEY_EXCHANGE says in both
// directions. A series that does not go on is forgotten after followLife, and the peer's next
// request then answered with STATE_NOT_FOUND.
//
// If both sides rekey the same at once, the one whose exchange has the lowest nonce learns it
// from the answer to its CREATE_CHILD_SA and goes no further; whoever asks when the other is
// past that point gets TEMPORARY_FAILURE.

const (
	// followLife is how long a series may stand still: at the upper end of what section 2.2.4
	// thinks appropriate, so that a slow peer can repeat a lost request twice.
	followLife = 20 * time.Second
	// maxFollow is how many series of the peer's there may be at once. More than its window
	// takes it cannot mean.
	maxFollow = maxWindow
	// followTries is how many STATE_NOT_FOUND in a row we take before the IKE SA is closed.
	followTries = 5
	// maxLink bounds the peer's ADDITIONAL_KEY_EXCHANGE, which we have to send back.
	maxLink = 1024
)

// Errors of a series. The IKE SA stays as it was.
var (
	errNoLink   = errors.New("ike: the peer does not say how its key exchanges are linked")
	errNoSeries = errors.New("request of a series of key exchanges that is not known, or was given up")
)

// followup is a series of the peer's that waits for its next request.
type followup struct {
	peerCreate
	expires time.Duration
}

// rest is what CREATE_CHILD_SA leaves for IKE_FOLLOWUP_KE, on either side.
type rest struct {
	more    []DHGroup // methods of the key exchanges that are still to be done
	shared  []byte    // SK(0)
	secrets []byte    // SK(1) | SK(2) | ... so far
	newSlot int       // of the IKE SA that it would make, plus one; 0 means none
}

// wipe overwrites the secrets.
func (r *rest) wipe() {
	clear(r.shared)
	clear(r.secrets)
	r.shared, r.secrets = nil, nil
}

// wipe overwrites what is secret of a request of ours.
func (r *request) wipe() {
	r.pair.wipe()
	r.rest.wipe()
}

// following tells whether the CREATE_CHILD_SA of our request was answered and key exchanges
// are to follow.
func (r *request) following() bool { return r.shared != nil }

// link is what stands in ADDITIONAL_KEY_EXCHANGE for the next request of the series.
func (r *peerCreate) link() []byte {
	return append(be32(r.first), byte(len(r.more)))
}

// inSeries tells whether the peer's request is part of a series that has begun.
func (r *peerCreate) inSeries() bool { return r.shared != nil }

// series calls visit with each series of the peer's, also those whose job is out.
func (sa *ikeSA) series(visit func(*peerCreate)) {
	for i := range sa.follow {
		visit(&sa.follow[i].peerCreate)
	}
	if sa.peer.inSeries() {
		visit(&sa.peer)
	}
	for i := range sa.window.peers {
		if r := &sa.window.peers[i].peer; r.inSeries() {
			visit(r)
		}
	}
}

// seriesFor returns the peer's series by which it rekeys what our task is about, or nil.
func (sa *ikeSA) seriesFor(t *task) (found *peerCreate) {
	sa.series(func(r *peerCreate) {
		if r.kind == t.kind && (t.kind == taskRekeyIKE || t.kind == taskRekeyChild && r.target == t.target) {
			found = r
		}
	})
	return found
}

// heldBack tells whether a task has to wait for the end of a series of the peer's: of the one
// that rekeys what it is about, and of that which rekeys the IKE SA, after which CHILD SAs are
// another one's.
func (sa *ikeSA) heldBack(t *task) (held bool) {
	switch t.kind {
	case taskCreateChild, taskRekeyChild, taskDeleteChild, taskRekeyIKE:
		sa.series(func(r *peerCreate) {
			held = held || r.kind == taskRekeyIKE || t.kind == taskRekeyChild && r.kind == t.kind && r.target == t.target
		})
	}
	return held
}

// release gives back what a series of the peer's has reserved.
func (m *Machine) release(r *peerCreate) {
	m.releaseSPI(r.spiIn)
	r.spiIn = 0
	m.freeSlot(&r.rest)
	r.wipe()
}

// freeSlot gives back the slot of an IKE SA that will not be.
func (m *Machine) freeSlot(r *rest) {
	if i := r.newSlot - 1; i >= 0 {
		nsa := &m.sas[i]
		*nsa = ikeSA{slot: i, spiI: nsa.spiI, spiR: nsa.spiR}
		nsa.timers.clear()
	}
	r.newSlot = 0
}

// dropFollow forgets all series of the peer's, because the IKE SA ends.
func (m *Machine) dropFollow(sa *ikeSA) {
	sa.series(m.release)
	sa.follow = nil
}

// dropSeries forgets the series of the peer's, among those that wait, for which match is true.
func (m *Machine) dropSeries(sa *ikeSA, match func(*followup) bool) {
	sa.follow = slices.DeleteFunc(sa.follow, func(f followup) bool {
		if !match(&f) {
			return false
		}
		m.release(&f.peerCreate)
		return true
	})
}

// expireFollow forgets the series of the peer's that stand still.
func (m *Machine) expireFollow(sa *ikeSA) {
	m.dropSeries(sa, func(f *followup) bool { return f.expires <= m.now.Mono })
	for i := range sa.follow {
		m.arm(sa, tFollow, min(sa.follow[i].expires, sa.timers[tFollow])-m.now.Mono)
	}
}

// wait keeps a series until its next request comes.
func (m *Machine) wait(sa *ikeSA, r *peerCreate) {
	sa.follow = append(sa.follow, followup{*r, m.now.Mono + followLife})
	if sa.timers[tFollow] == never {
		m.arm(sa, tFollow, followLife)
	}
}

// takeLink keeps what the peer says about the next request of the series, if there is one.
func (m *Machine) takeLink(r *request, left int) error {
	if left == 0 {
		return nil
	}
	n, ok := m.msg.FindNotify(NotifyAdditionalKeyExchange)
	if !ok || len(n.Data) > maxLink {
		return errNoLink
	}
	r.link = append([]byte(nil), n.Data...)
	return nil
}

// followFirst goes on to the additional key exchanges after our CREATE_CHILD_SA, unless the peer
// rekeys the same and ours has the lowest nonce.
func (m *Machine) followFirst(sa *ikeSA, shared []byte) {
	req := &sa.req
	req.shared = append([]byte(nil), shared...)
	if m.followLoses(sa) {
		m.followYield(sa)
		return
	}
	m.followNext(sa)
}

// followLoses tells whether the peer's rekeying of what our answered request is about takes
// precedence. If ours does, the peer goes no further with a series that waits for it.
func (m *Machine) followLoses(sa *ikeSA) bool {
	req := &sa.req
	low := lowest(req.ni, req.nr)
	if rival := m.findChild(req.rival); rival != nil && rival.up() && bytes.Compare(low, rival.nonceLow) < 0 {
		return true
	}
	if req.task.kind == taskRekeyIKE && m.rival(sa) != nil && bytes.Compare(low, sa.collision.low) < 0 {
		return true
	}
	r := sa.seriesFor(&req.task)
	if r == nil {
		return false
	}
	if bytes.Compare(low, lowest(r.ni, r.nr)) < 0 || !slices.ContainsFunc(sa.follow, func(f followup) bool { return f.first == r.first }) {
		return true
	}
	first := r.first
	m.dropSeries(sa, func(f *followup) bool { return f.first == first })
	return false
}

// followYield leaves a rekeying to the peer's own. Should that come to nothing, ours is tried
// again.
func (m *Machine) followYield(sa *ikeSA) {
	req := sa.req
	m.createReset(sa)
	rival := m.findChild(req.rival)
	crossed := req.task.kind == taskRekeyIKE && sa.collision.slot != 0
	m.answered(sa)
	switch {
	case crossed:
		m.adoptRival(sa)
		m.settle(req.task.waiters, nil)
	case rival != nil && rival.up():
		m.superseded(m.findChild(req.task.target), rival)
		m.settle(req.task.waiters, nil)
	default:
		m.again(sa, req.task)
	}
}

// followNext begins the next of our additional key exchanges.
func (m *Machine) followNext(sa *ikeSA) {
	if sa.state != StateEstablished || sa.closeErr != nil {
		m.createAbandoned(sa)
		return
	}
	req := &sa.req
	req.pair.wipe()
	req.pair, req.data, req.due, req.before, req.detours = nil, nil, 0, 0, nil
	m.startWork(sa, laneOurs, jobFollowPair, req.more[0], nil, nil)
}

// followSend sends our request once the key pair is there.
func (m *Machine) followSend(sa *ikeSA, r Result) {
	if r.err != nil {
		m.createFailed(sa, r.err)
		return
	}
	sa.req.pair, sa.req.waits = r.pair, true
	m.followTransmit(sa)
}

// followTransmit sends our request at hand when the peer's window has room for its message ID.
func (m *Machine) followTransmit(sa *ikeSA) {
	if sa.state != StateEstablished || sa.closeErr != nil {
		m.createAbandoned(sa)
		return
	}
	oldest := sa.sendID
	sa.outstanding(func(r *request) bool {
		if r.data != nil && r.id-oldest > 1<<31 {
			oldest = r.id
		}
		return false
	})
	if sa.sendID-oldest >= uint32(min(sa.window.size(), maxWindow)) {
		return
	}
	req := &sa.req
	req.waits = false
	m.sendRequest(sa, ExchangeFollowupKE, func(b *Builder) {
		b.KE(req.more[0], req.pair.public())
		b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, req.link)
	})
}

// followWaiting sends what has waited for room in the peer's window.
func (m *Machine) followWaiting(sa *ikeSA) {
	waits := func(r *request) bool { return r.waits }
	if sa.state == StateFree || sa.outstanding(waits) == nil {
		return
	}
	if !waits(&sa.req) {
		sa.recall(waits)
	}
	m.followTransmit(sa)
}

// followResponse handles the peer's answer.
func (m *Machine) followResponse(sa *ikeSA) {
	req := &sa.req
	if err := m.notifyError(); err != nil {
		m.createFailed(sa, err)
		return
	}
	k := m.msg.Find(PayloadKE)
	if k == nil {
		m.createFailed(sa, ErrGroup)
		return
	}
	g, ke, err := ParseKE(k.Body)
	if err == nil && g != req.more[0] {
		err = ErrGroup
	}
	if err == nil && len(ke) != g.answerLen() {
		err = ErrKELength
	}
	if err == nil {
		err = m.takeLink(req, len(req.more)-1)
	}
	if err != nil {
		m.createFailed(sa, err)
		return
	}
	if req.task.kind == taskRekeyIKE && len(req.more) == 1 {
		req.token = m.sentToken()
	}
	m.startWork(sa, laneOurs, jobFollowShared, g, req.pair, ke)
}

// followKeyed takes the shared secret, and goes on or makes the SA.
func (m *Machine) followKeyed(sa *ikeSA, r Result) {
	if r.err != nil {
		m.createFailed(sa, r.err)
		return
	}
	req := &sa.req
	req.more = req.more[1:]
	req.addSecret(r.shared)
	if len(req.more) > 0 {
		m.followNext(sa)
		return
	}
	sa.lost = 0
	m.createDone(sa, req.shared)
}

// addSecret appends the shared secret of an additional key exchange to those before it.
func (r *rest) addSecret(shared []byte) {
	all := slices.Concat(r.secrets, shared)
	clear(r.secrets)
	r.secrets = all
}

// seriesLost tells whether an answer to our request means that the peer has forgotten the
// series, and closes the IKE SA if it does so again and again.
func (m *Machine) seriesLost(sa *ikeSA, err error) bool {
	if !isNotify(err, NotifyStateNotFound) {
		return false
	}
	if sa.lost++; sa.lost > followTries && sa.closeErr == nil {
		m.closeIKE(sa, err, nil)
	}
	return true
}

// followable tells, of a CREATE_CHILD_SA request of the peer, whether it can become a series
// now, and forgets those in whose place it comes.
func (m *Machine) followable(sa *ikeSA, req *peerCreate) *refusal {
	t := task{kind: req.kind, target: req.target}
	if req.kind != taskCreateChild && sa.outstanding(func(r *request) bool { return r.following() && r.task.same(&t) }) != nil {
		return busy(ErrRekeying) // ours is further (section 2.2.4)
	}
	// The IKE SA is rekeyed while nothing else is under way, and one that is rekeyed again was
	// given up before.
	m.dropSeries(sa, func(f *followup) bool {
		return f.kind == taskRekeyIKE || f.kind == taskRekeyChild && req.kind == f.kind && f.target == req.target
	})
	if len(sa.follow) >= maxFollow && len(req.more) > 0 {
		return busy(ErrTooMany)
	}
	return nil
}

// followBegin answers a CREATE_CHILD_SA of the peer after which additional key exchanges are due.
func (m *Machine) followBegin(sa *ikeSA, req *peerCreate, r Result) {
	req.shared = append([]byte(nil), r.shared...)
	req.first = req.id
	if req.kind == taskRekeyIKE {
		m.followBeginIKE(sa, req, r)
		return
	}
	lane, no := m.theirLane(sa, req)
	ok := no == nil
	if ok {
		if req.spiIn, ok = m.allocSPI(req.kind == taskRekeyChild, req.cfg, lane.n); !ok {
			no = (&refusal{t: NotifyNoAdditionalSAs, err: ErrTableFull}).forLane(m, sa, req)
		}
	}
	if no != nil {
		m.release(req)
		m.refuse(sa, req.path, ExchangeCreateChild, no)
		return
	}
	req.lane = lane
	m.respond(sa, req.path, ExchangeCreateChild, func(b *Builder) {
		m.writeCreated(b, sa, &childSA{cfg: req.cfg, mode: req.mode, frags: req.frags, agg: req.agg, lane: lane,
			local: req.local, remote: req.remote, spiIn: req.spiIn}, req, r.pair)
		b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, req.link())
	})
	m.wait(sa, req)
}

// followBeginIKE is followBegin where the IKE SA is rekeyed. Its place is taken as an initiator's
// is, so that nobody takes it for a peer that has not authenticated yet.
func (m *Machine) followBeginIKE(sa *ikeSA, req *peerCreate, r Result) {
	nsa := m.newSA(true, true)
	if nsa == nil {
		m.release(req)
		m.refuse(sa, req.path, ExchangeCreateChild, &refusal{t: NotifyNoAdditionalSAs, err: ErrTableFull})
		return
	}
	req.newSlot = nsa.slot + 1
	m.respond(sa, req.path, ExchangeCreateChild, func(b *Builder) {
		b.SA([]Proposal{{Num: req.chosen.Num, Proto: ProtoIKE, SPI: binary.BigEndian.AppendUint64(nil, nsa.spiI), Transforms: req.chosen.Transforms}})
		b.Nonce(req.nr)
		b.KE(req.dh, r.pair.public())
		b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, req.link())
	})
	m.wait(sa, req)
}

// followRequest handles an IKE_FOLLOWUP_KE request of the peer.
func (m *Machine) followRequest(sa *ikeSA, p Path) {
	n, _ := m.msg.FindNotify(NotifyAdditionalKeyExchange)
	i := slices.IndexFunc(sa.follow, func(f followup) bool { return bytes.Equal(f.link(), n.Data) })
	if i < 0 {
		m.refuse(sa, p, ExchangeFollowupKE, &refusal{t: NotifyStateNotFound, err: errNoSeries})
		return
	}
	req := sa.follow[i].peerCreate
	sa.follow = slices.Delete(sa.follow, i, i+1)
	g, ke, err := ParseKE(m.msg.Find(PayloadKE).Body)
	if err == nil && g != req.more[0] {
		err = ErrGroup
	}
	if err == nil && len(ke) != g.publicLen() {
		err = ErrKELength
	}
	if err != nil {
		m.release(&req)
		m.refuse(sa, p, ExchangeFollowupKE, &refusal{t: NotifyInvalidSyntax, err: err})
		return
	}
	req.id, req.path = m.msg.ID, p
	sa.parkPeer()
	sa.peer = req
	m.startWork(sa, lanePeers, jobFollowRespond, g, nil, ke)
}

// followRespond answers once the shared secret is there; with the last of the series the new SA
// is made.
func (m *Machine) followRespond(sa *ikeSA, r Result) {
	req := sa.peer
	sa.peer, sa.window.at = peerCreate{}, req.id
	defer r.pair.wipe()
	if no := m.stillWanted(sa, &req, r.err); no != nil {
		m.release(&req)
		m.refuse(sa, req.path, ExchangeFollowupKE, no)
		return
	}
	g := req.more[0]
	req.more = req.more[1:]
	req.addSecret(r.shared)
	if len(req.more) > 0 {
		m.respond(sa, req.path, ExchangeFollowupKE, func(b *Builder) {
			b.KE(g, r.pair.public())
			b.Notify(NotifyAdditionalKeyExchange, ProtoNone, nil, req.link())
		})
		m.wait(sa, &req)
		return
	}
	defer req.wipe()
	if req.kind == taskRekeyIKE {
		m.followRekeyed(sa, &req, g, r.pair)
		return
	}
	c, no := m.createChild(sa, &req, req.shared)
	if no != nil {
		m.refuse(sa, req.path, ExchangeFollowupKE, no)
		return
	}
	m.respond(sa, req.path, ExchangeFollowupKE, func(b *Builder) { b.KE(g, r.pair.public()) })
	if sa.rivaled(c.unique) == nil {
		m.resolveTwins(sa, c, 0)
	}
}

// followRekeyed makes the new IKE SA of a series, and answers its last request.
func (m *Machine) followRekeyed(sa *ikeSA, req *peerCreate, g DHGroup, pair *keyPair) {
	nsa := &m.sas[req.newSlot-1]
	nsa.initiator = false
	if err := m.succeed(sa, nsa, req.ike, &req.rest, req.ni, req.nr, req.peerSPI, nsa.spiI); err != nil {
		m.freeSlot(&req.rest)
		m.refuse(sa, req.path, ExchangeFollowupKE, &refusal{t: NotifyNoProposalChosen, err: err})
		return
	}
	m.respond(sa, req.path, ExchangeFollowupKE, func(b *Builder) {
		b.KE(g, pair.public())
		m.rekeyNotifies(b, nsa, req)
	})
	m.rekeyAnswered(sa, nsa, req)
}
