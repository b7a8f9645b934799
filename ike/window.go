package ike

import (
	"encoding/binary"
	"math"
	"slices"
	"time"
)

// The message window (RFC 7296 section 2.3): how many requests may be without a response at
// once, in each direction. It is one until the initial exchanges are over, and again on the
// IKE SA that comes of a rekeying.
//
// An IKE SA has one request of ours at hand, sa.req; the others are parked, each with the job
// that it waits for, and one becomes the request at hand when something happens to it. It is
// the same with the requests of the peer that wait for a job: sa.peer is the one at hand. So
// the code of an exchange sees nothing of the others, but for the few places that look for
// collisions.
//
// What runs at once are exchanges about different children of the configuration, and liveness
// checks. About one child there is one exchange at a time, and the ends of an IKE SA, its
// rekeying and its deletion, are alone: so two exchanges of one side never collide, whatever
// the order in which the peer gets them.

// maxWindow is how many requests each side has under way at most, and what we announce. A
// site has a handful of CHILD SAs, and each place costs memory on both sides.
const maxWindow = 4

// window is what an IKE SA keeps for windows larger than one.
type window struct {
	peer   int // how many requests of ours the peer takes at once; 0: it has said nothing
	ours   int // how many of the peer's we take at once; 0: one
	parked []request
	peers  []parkedPeer
	older  []reply // responses before sa.reply that may have to be repeated
	at     uint32  // message ID of the peer's request at hand
}

// parkedPeer is a request of the peer whose job is out.
type parkedPeer struct {
	peer peerCreate
	job  job
	id   uint64 // of the job
}

// size returns how many requests of ours may be outstanding for all that the peer says.
func (w *window) size() int { return max(w.peer, 1) }

// announceWindow says how many requests of the peer we take at once.
func announceWindow(b *Builder) {
	b.Notify(NotifySetWindowSize, ProtoNone, nil, be32(maxWindow))
}

// learnWindow takes what the peer says about its window in m.msg. It can only grow: there is
// no way to take back what has been promised.
func (m *Machine) learnWindow(sa *ikeSA) {
	n, ok := m.msg.FindNotify(NotifySetWindowSize)
	if !ok || len(n.Data) != 4 {
		return
	}
	if v := binary.BigEndian.Uint32(n.Data); v <= math.MaxInt32 {
		sa.window.peer = max(sa.window.peer, int(v))
	}
}

// outstanding returns one of our requests for which match is true, or nil.
func (sa *ikeSA) outstanding(match func(*request) bool) *request {
	if sa.req.active && match(&sa.req) {
		return &sa.req
	}
	for i := range sa.window.parked {
		if r := &sa.window.parked[i]; match(r) {
			return r
		}
	}
	return nil
}

// idle tells whether we have no request under way and none to send.
func (sa *ikeSA) idle() bool {
	return !sa.req.active && len(sa.window.parked) == 0 && len(sa.tasks) == 0
}

// creating tells whether a request of ours for another CHILD SA is without an answer.
func (sa *ikeSA) creating() bool {
	return sa.outstanding(func(r *request) bool { return r.task.kind == taskCreateChild }) != nil
}

// rivaled returns our rekeying that the peer's CHILD SA of that number collides with, or nil.
func (sa *ikeSA) rivaled(unique uint32) *request {
	return sa.outstanding(func(r *request) bool { return r.rival == unique })
}

// park sets our request at hand aside, together with its job.
func (sa *ikeSA) park() {
	if sa.req.active {
		sa.req.job, sa.req.jobID = sa.jobs[laneOurs], sa.jobIDs[laneOurs]
		sa.window.parked = append(sa.window.parked, sa.req)
	}
	sa.req, sa.jobs[laneOurs] = request{}, jobNone
}

// recall makes a parked request of ours the one at hand, if there is one for which match is
// true.
func (sa *ikeSA) recall(match func(*request) bool) {
	i := slices.IndexFunc(sa.window.parked, func(r request) bool { return match(&r) })
	if i < 0 {
		return
	}
	r := sa.window.parked[i]
	sa.window.parked = slices.Delete(sa.window.parked, i, i+1)
	sa.park()
	sa.req, sa.jobs[laneOurs], sa.jobIDs[laneOurs] = r, r.job, r.jobID
}

// recallAny sees to it that a request is at hand if there is one.
func (sa *ikeSA) recallAny() {
	if !sa.req.active && len(sa.window.parked) > 0 {
		sa.recall(func(*request) bool { return true })
	}
}

// recallID makes the request that has been sent with that message ID the one at hand.
func (sa *ikeSA) recallID(id uint32) {
	if sa.req.active && sa.req.data != nil && sa.req.id == id {
		return
	}
	sa.recall(func(r *request) bool { return r.data != nil && r.id == id })
}

// recallJob makes the request at hand, ours or the peer's, that waits for the job id.
func (sa *ikeSA) recallJob(lane int, id uint64) {
	w := &sa.window
	if sa.jobs[lane] != jobNone && sa.jobIDs[lane] == id {
		return
	}
	if lane == laneOurs {
		sa.recall(func(r *request) bool { return r.job != jobNone && r.jobID == id })
		return
	}
	if i := slices.IndexFunc(w.peers, func(p parkedPeer) bool { return p.id == id }); i >= 0 {
		p := w.peers[i]
		w.peers = slices.Delete(w.peers, i, i+1)
		sa.parkPeer()
		sa.peer, sa.jobs[lanePeers], sa.jobIDs[lanePeers] = p.peer, p.job, p.id
	}
}

// parkPeer sets the peer's request at hand aside if its job is out.
func (sa *ikeSA) parkPeer() {
	if sa.jobs[lanePeers] != jobNone {
		sa.window.peers = append(sa.window.peers, parkedPeer{sa.peer, sa.jobs[lanePeers], sa.jobIDs[lanePeers]})
	}
	sa.peer, sa.jobs[lanePeers] = peerCreate{}, jobNone
}

// computing tells whether the answer to the peer's request of that message ID is being made.
func (sa *ikeSA) computing(id uint32) bool {
	if sa.jobs[lanePeers] != jobNone && (sa.state == StateConnecting || sa.peer.id == id) {
		return true
	}
	return slices.ContainsFunc(sa.window.peers, func(p parkedPeer) bool { return p.peer.id == id })
}

// inWindow tells whether a request of the peer with that message ID may come now.
func (sa *ikeSA) inWindow(id uint32) bool {
	return id-sa.recvID < uint32(max(sa.window.ours, 1))
}

// replyTo returns our response to the peer's request of that message ID while it is kept, or
// nil.
func (sa *ikeSA) replyTo(id uint32) *reply {
	if sa.reply.valid && sa.reply.id == id {
		return &sa.reply
	}
	for i := range sa.window.older {
		if r := &sa.window.older[i]; r.id == id {
			return r
		}
	}
	return nil
}

// keepReply keeps our response to the request at hand, and forgets those that nobody may ask
// for any more: a request that lies a window further on has come (RFC 7296 section 2.1).
func (sa *ikeSA) keepReply(r reply) {
	w := &sa.window
	if w.ours > 1 && sa.reply.valid {
		w.older = append(w.older, sa.reply)
	}
	sa.reply = r
	for sa.replyTo(sa.recvID) != nil {
		sa.recvID++
	}
	w.older = slices.DeleteFunc(w.older, func(o reply) bool { return int32(sa.recvID-o.id) > int32(w.ours) })
}

// alone tells whether a task of that kind shares the window with no other.
func (k taskKind) alone() bool {
	switch k {
	case taskCreateChild, taskRekeyChild, taskDeleteChild, taskLiveness:
		return false
	}
	return true
}

// subject returns the name of the child that a task is about, or "": after a change of the
// configuration there may be two of the name.
func (m *Machine) subject(t *task) string {
	cfg := t.cfg
	if cfg == nil && t.target != 0 {
		if c := m.findChild(t.target); c != nil {
			cfg = c.cfg
		}
	}
	if cfg == nil {
		return ""
	}
	return cfg.Name
}

// admits tells whether a task may start beside the requests that are outstanding.
func (m *Machine) admits(sa *ikeSA, t *task) bool {
	if sa.heldBack(t) {
		return false
	}
	if !sa.req.active && len(sa.window.parked) == 0 {
		return true
	}
	if t.kind.alone() {
		return false
	}
	limit := uint32(min(sa.window.size(), maxWindow))
	subject := m.subject(t)
	n, unsent, oldest := uint32(0), uint32(0), sa.sendID
	if sa.outstanding(func(r *request) bool {
		n++
		if r.data == nil {
			unsent++
		} else if r.id-oldest > 1<<31 {
			oldest = r.id
		}
		return r.task.kind.alone() || subject != "" && m.subject(&r.task) == subject
	}) != nil {
		return false
	}
	// A response further back than the window is not there: then the next request waits for
	// it, even if all between have been answered.
	return n < limit && sa.sendID+unsent-oldest < limit
}

// nextTask returns the place of the first task that may start now, or -1. While one that has
// to be alone waits for the others to end, none joins them.
func (m *Machine) nextTask(sa *ikeSA) int {
	due := func(t *task) bool { return t.notBefore <= m.now.Mono }
	busy := sa.req.active || len(sa.window.parked) > 0
	if busy && slices.ContainsFunc(sa.tasks, func(t task) bool { return t.kind.alone() && due(&t) }) {
		return -1
	}
	return slices.IndexFunc(sa.tasks, func(t task) bool { return due(&t) && m.admits(sa, &t) })
}

// armRetransmit sets when our request at hand is repeated.
func (m *Machine) armRetransmit(sa *ikeSA, d time.Duration) {
	sa.req.due = m.now.Mono + d
	m.rearm(sa)
}

// rearm sets the timer to the first of the retransmissions that are due.
func (m *Machine) rearm(sa *ikeSA) {
	first := never
	sa.outstanding(func(r *request) bool {
		if r.due > 0 {
			first = min(first, r.due)
		}
		return false
	})
	sa.timers[tRetransmit] = first
	m.wake = min(m.wake, first)
}

// retransmitDue repeats those of our requests that are due.
func (m *Machine) retransmitDue(sa *ikeSA) {
	due := func(r *request) bool { return r.due > 0 && r.due <= m.now.Mono }
	for sa.state != StateFree && sa.outstanding(due) != nil {
		if !sa.req.active || !due(&sa.req) {
			sa.recall(due)
		}
		sa.req.due = 0
		m.retransmit(sa)
	}
	if sa.state != StateFree {
		m.rearm(sa)
	}
}
