package ike

import (
	"time"

	"postern/esp"
)

// Several CHILD SAs with the same selectors on one IKE SA. Each carries a part of the packets,
// a lane: those of one class, so that what a queue on the way holds up does not fall out of
// the replay window (RFC 4301 section 4.1), or those of one worker, so that workers share
// nothing (RFC 9611). Lane 0 is for whatever has no lane, or has none yet. It comes up as any
// CHILD SA does, and the others only when packets ask for them, so that an end that deletes
// what it finds idle is not asked again for nothing.
//
// Which lane an SA is for is the affair of each side alone; neither is told the other's. What
// the peer makes takes the lane here that has the fewest SAs: what it carries for the peer and
// what it carries for us need not be the same. Rekeying keeps the lane.
//
// Classes are not negotiated. That there is an SA for each CPU is: both sides say
// SA_RESOURCE_INFO with the first SA, or there are no others.

// MaxLanes is how many lanes a child can have: as many as the data path can have workers.
const MaxLanes = 8

const (
	// maxAlike is how many CHILD SAs with the same selectors the peer may make of a child of
	// ours that has no lanes: one for each of the 8 classes that most networks have, and as
	// many again while both sides ask at once.
	maxAlike = 2 * MaxLanes
	// laneRetry is when lanes are asked for again after one that could not be had.
	laneRetry = 2 * time.Minute
)

// laneState is what a CHILD SA knows of lanes.
type laneState struct {
	n       uint8         // its lane
	perCPU  bool          // both sides have said SA_RESOURCE_INFO
	beside  bool          // the peer has made it beside another one
	crossed bool          // the peer asked for it while we asked for one of the same child
	until   time.Duration // no further lanes are asked for before
	shared  bool          // its successor is to be for whatever has no lane
}

// up tells whether a CHILD SA carries traffic, or its successor soon does.
func (c *childSA) up() bool { return c.state == ChildInstalled || c.state == ChildRekeying }

// serves tells whether packets of a lane may use the CHILD SA. An SA of one CPU is for that
// one alone.
func (c *childSA) serves(lane uint8) bool { return c.lane.n == lane || lane == 0 && !c.lane.perCPU }

// alike calls visit with the CHILD SAs that are up on the IKE SA and have the selectors of c.
func (m *Machine) alike(slot int, c *childSA, visit func(o *childSA)) {
	for i := range m.children {
		if o := &m.children[i]; o.ike == slot && o.cfg == c.cfg && o.up() && sameTS(o, c) {
			visit(o)
		}
	}
}

// wantLane has an SA made for a lane, because a packet asks for it that another SA of the
// child carries meanwhile.
func (m *Machine) wantLane(s *connState, cfg *Child, cmd *Command) {
	if int(cmd.Lane) > cfg.Lanes || s.held[cfg] {
		return
	}
	// A connection may have many peers: the packet tells which it is for. Of two IKE SAs with
	// one, the later takes the place of the other.
	var sa *ikeSA
	var base *childSA
	for i := range m.children {
		c := &m.children[i]
		if c.cfg != cfg || c.state != ChildInstalled || cfg.PerCPU && !c.lane.perCPU || !flowOf(c, cmd) {
			continue
		}
		if o := &m.sas[c.ike]; o.state == StateEstablished && o.closeErr == nil && (sa == nil || o.unique > sa.unique) {
			sa, base = o, c
		}
	}
	if sa == nil {
		return
	}
	have := false
	m.alike(sa.slot, base, func(o *childSA) { have = have || o.lane.n == cmd.Lane || cmd.Lane > 0 && o.lane.until > m.now.Mono })
	if !have {
		m.queue(sa, task{kind: taskCreateChild, cfg: cfg, target: base.unique, lane: cmd.Lane})
	}
}

// flowOf tells whether the CHILD SA carries the packet that a command tells of, if it does.
func flowOf(c *childSA, cmd *Command) bool {
	return !cmd.Flow.Local.IsValid() || esp.MatchFlow(c.local, c.remote, &cmd.Flow)
}

// needless tells whether a task to make a CHILD SA has nothing to do any more: the peer was
// faster, or the SA that it was to come beside is gone.
func (m *Machine) needless(sa *ikeSA, t *task) bool {
	old := m.findChild(t.target)
	switch {
	case t.target != 0 && old == nil:
		return t.lane > 0
	case old != nil && old.ike != sa.slot:
		return false // it is to be moved here, whatever else there is
	}
	for i := range m.children {
		o := &m.children[i]
		switch {
		case o.ike != sa.slot || o.cfg != t.cfg || !o.up() || outdated(sa, o):
		case old != nil && o.lane.n == t.lane && sameTS(o, old),
			old == nil && o.serves(0) && flowOf(o, &Command{Flow: t.flow}):
			return true
		}
	}
	return false
}

// ownLane returns the lane of the CHILD SA that our request has made.
func (m *Machine) ownLane(req *request) laneState {
	if old := m.findChild(req.task.target); old != nil && req.task.kind == taskRekeyChild {
		l := m.heirLane(old)
		l.crossed = false
		return l
	}
	return laneState{n: req.task.lane, perCPU: req.perCPU && req.task.cfg.PerCPU}
}

// heirLane returns the lane of the CHILD SA by which either side rekeys c: the same, unless it
// is to be for all packets and no other one is by now.
func (m *Machine) heirLane(c *childSA) laneState {
	l := c.lane
	if l.shared {
		l.shared = false
		if m.baseless(c) {
			l.n = 0
		}
	}
	return l
}

// baseless tells whether c is one of several that are up, and none of them is for what has no
// lane.
func (m *Machine) baseless(c *childSA) bool {
	none := true
	m.alike(c.ike, c, func(o *childSA) { none = none && o.lane.n > 0 })
	return none
}

// ownLane returns the lane for a CHILD SA that we make in the place of c on another IKE SA. What
// is beyond our lanes only the peer may have wanted: that asks again.
func (c *childSA) ownLane() uint8 {
	if int(c.lane.n) > c.cfg.Lanes {
		return 0
	}
	return c.lane.n
}

// theirLane chooses the lane of the CHILD SA that the peer asks for.
func (m *Machine) theirLane(sa *ikeSA, req *peerCreate) (laneState, *refusal) {
	l := laneState{perCPU: req.perCPU && req.cfg.PerCPU}
	l.crossed = sa.outstanding(func(r *request) bool { return r.task.cfg == req.cfg }) != nil
	if old := m.findChild(req.target); old != nil && req.kind == taskRekeyChild {
		h := m.heirLane(old)
		h.crossed = l.crossed
		return h, nil
	}
	var used [MaxLanes + 1]int
	n := 0
	m.alike(sa.slot, &childSA{cfg: req.cfg, local: req.local, remote: req.remote}, func(o *childSA) {
		n++
		used[o.lane.n]++
	})
	l.beside = n > 0
	lanes, most := req.cfg.Lanes, maxAlike
	switch {
	case req.cfg.PerCPU:
		most = 2 * max(lanes, 1) // what RFC 9611 section 6 has each side allow at the least
	case lanes == 0:
		lanes = MaxLanes
	}
	switch {
	case n > 0 && req.perCPU && (!req.cfg.PerCPU || n > most):
		return l, &refusal{t: NotifyTSMaxQueue, err: ErrTooMany}
	case n > most:
		return l, &refusal{t: NotifyNoAdditionalSAs, err: ErrTooMany}
	case used[0] == 0 || req.cfg.PerCPU && !l.perCPU || lanes == 0:
		return l, nil
	}
	sa.outstanding(func(r *request) bool {
		if r.task.cfg == req.cfg && r.task.kind == taskCreateChild {
			used[r.task.lane]++
		}
		return false
	})
	l.n = 1
	for i := 2; i <= lanes; i++ {
		if used[i] < used[l.n] {
			l.n = uint8(i)
		}
	}
	return l, nil
}

// forLane returns what a peer that asks for one more SA for a CPU is told instead of r, which
// it could take to mean that there is no room for other selectors either (RFC 9611 section 6).
func (r *refusal) forLane(m *Machine, sa *ikeSA, req *peerCreate) *refusal {
	if r.t == NotifyNoAdditionalSAs && req.perCPU && m.carries(sa, req.cfg) {
		r.t = NotifyTSMaxQueue
	}
	return r
}

// writeResource adds to a request that there is to be an SA for each CPU, if there is. The
// number of the lane tells nothing of the processor; it is for the peer's people to see which
// of ours is which (RFC 9611 section 3).
func writeResource(b *Builder, cfg *Child, lane uint8) {
	if cfg.PerCPU {
		notifyResource(b, lane)
	}
}

// answerResource adds the same to the response that announces c.
func (c *childSA) answerResource(b *Builder) {
	if c.lane.perCPU {
		notifyResource(b, c.lane.n)
	}
}

func notifyResource(b *Builder, lane uint8) {
	var data []byte
	if lane > 0 {
		data = be32(uint32(lane))
	}
	b.Notify(NotifySAResourceInfo, ProtoNone, nil, data)
}

// twin tells whether the new CHILD SA c and o, which has the same selectors, are meant for the
// same packets; moved: c comes in the place of one of another IKE SA.
func (c *childSA) twin(o *childSA, moved bool) bool {
	switch {
	case !c.byPeer && !o.byPeer:
		return c.lane.n == o.lane.n && !c.lane.beside && !o.lane.beside
	case !c.byPeer: // did the peer make its own without knowing of ours?
		return c.lane.n == 0 && o.lane.n == 0 && (o.lane.crossed || moved)
	case !o.byPeer: // it has one of ours, and wants another: it may have lost the former
		return o.lane.n == 0 && c.cfg.Lanes == 0 && !c.cfg.PerCPU
	}
	return false
}

// checkLane closes a CHILD SA that we have made beside base, if what the peer has agreed to
// for it is something else (RFC 9611 section 3).
func (m *Machine) checkLane(sa *ikeSA, c *childSA, base uint32) {
	old := m.findChild(base)
	if c.lane.n == 0 || old == nil || old.ike != c.ike || !c.up() || c.suite == old.suite && c.mode == old.mode && sameTS(c, old) {
		return
	}
	old.lane.until = m.now.Mono + laneRetry
	m.closeChild(sa, c, ErrNotAlike, nil)
}

// shareLane has one of the CHILD SAs that are each for one CPU rekeyed as the one for all, because
// the peer makes no more (RFC 9611 sections 4 and 6): it may have closed the one that was for all
// here, which it had for something else, and goes on to count the others. Those of whose lane
// there are more come first. false: there is no need, or no such CHILD SA.
func (m *Machine) shareLane(sa *ikeSA, t *task) bool {
	old := m.findChild(t.target)
	var used [MaxLanes + 1]int
	var best *childSA
	fits := func(c *childSA) bool {
		return c.ike == sa.slot && c.cfg == t.cfg && c.up() && c.lane.perCPU && c.lane.n > 0 &&
			(old != nil && sameTS(c, old) || old == nil && flowOf(c, &Command{Flow: t.flow}))
	}
	for i := range m.children {
		if c := &m.children[i]; fits(c) {
			used[c.lane.n]++
		}
	}
	for i := range m.children {
		c := &m.children[i]
		if !fits(c) || c.state != ChildInstalled || !m.baseless(c) {
			continue
		}
		if best == nil || used[c.lane.n] > used[best.lane.n] || c.lane.shared {
			best = c
		}
		if c.lane.shared {
			break // asked for already
		}
	}
	if best == nil {
		return false
	}
	best.lane.shared = true
	m.queue(sa, task{kind: taskRekeyChild, cfg: best.cfg, target: best.unique, waiters: t.waiters})
	t.waiters = nil
	return true
}

// laneFailed ends our attempt to make a CHILD SA for a lane, if t is one: what has no SA of its
// own goes on through the one that it has, so that there is nothing to repair. false: it is
// none, or is to be tried again as others are.
func (m *Machine) laneFailed(sa *ikeSA, t *task, err error) bool {
	if t.kind == taskCreateChild && t.lane == 0 && t.cfg.PerCPU && isNotify(err, NotifyTSMaxQueue) && m.shareLane(sa, t) {
		return true
	}
	if old := m.findChild(t.target); t.kind != taskCreateChild || t.lane == 0 && (old == nil || old.ike != sa.slot) ||
		isNotify(err, NotifyTemporaryFailure) {
		return false
	}
	for i := range m.children {
		if c := &m.children[i]; c.ike == sa.slot && c.cfg == t.cfg && c.up() {
			c.lane.until = m.now.Mono + laneRetry
		}
	}
	m.settle(t.waiters, nil)
	return true
}

// carriedOn tells whether another CHILD SA carries what c, which is lost, had a lane of its own
// for.
func (m *Machine) carriedOn(c *childSA) bool {
	for i := range m.children {
		if o := &m.children[i]; c.lane.n > 0 && o != c && o.ike == c.ike && o.cfg == c.cfg && o.up() && o.serves(0) && sameTS(o, c) {
			return true
		}
	}
	return false
}

// leanedOn tells whether c is the CHILD SA for what has no lane, and there are others beside it:
// it stays as long as they do.
func (m *Machine) leanedOn(c *childSA) (yes bool) {
	if c.lane.n == 0 {
		m.alike(c.ike, c, func(o *childSA) { yes = yes || o.lane.n > 0 })
	}
	return yes
}
