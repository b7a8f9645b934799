package ike

import (
	"slices"
	"time"

	"postern/esp"
)

// taskKind names something that we want to do with an IKE SA.
type taskKind uint8

const (
	taskInit taskKind = iota
	taskAuth
	taskCreateChild
	taskRekeyChild
	taskDeleteChild
	taskRekeyIKE
	taskDeleteIKE
	taskLiveness
	taskRedirect
	taskTell         // what the peer should know, in notifies
	taskUpdate       // our addresses have changed
	taskRoutable     // is the peer where it says?
	taskAddresses    // our further addresses have changed
	taskAuthLifetime // when the peer has to authenticate again
)

var taskNames = [...]string{"IKE_INIT", "IKE_AUTH", "CHILD_CREATE", "CHILD_REKEY", "CHILD_DELETE", "IKE_REKEY", "IKE_DELETE", "IKE_DPD",
	"IKE_REDIRECT", "IKE_TELL", "IKE_MOBIKE", "IKE_MOBIKE", "IKE_MOBIKE", "IKE_AUTH_LIFETIME"}

// String returns charon's name of the task.
func (k taskKind) String() string { return enumName(taskNames[:], int(k), "TASK") }

// task is one exchange that we want to start. target is the unique number of the CHILD
// SA that it is about.
type task struct {
	kind      taskKind
	cfg       *Child
	flow      esp.Flow
	target    uint32
	gateway   Gateway // to redirect to
	group     DHGroup // to use after INVALID_KE_PAYLOAD
	tries     int
	lane      uint8 // of the CHILD SA to be made
	notBefore time.Duration
	waiters   []*waiter
}

// same tells whether two tasks would do the same thing.
func (t *task) same(o *task) bool {
	return t.kind == o.kind && t.target == o.target && (t.kind != taskCreateChild || t.cfg == o.cfg && t.lane == o.lane)
}

// outcome is what those who wait for a task learn when its IKE SA ends by err: that the
// IKE SA has a successor is what a rekeying wants.
func (t *task) outcome(err error) error {
	if err == ErrReplaced && t.kind == taskRekeyIKE {
		return nil
	}
	return err
}

// queue appends a task, unless it waits or runs already: then only its waiters join.
func (m *Machine) queue(sa *ikeSA, t task) {
	if sa.state != StateEstablished && t.kind != taskDeleteIKE && t.kind != taskDeleteChild {
		m.settle(t.waiters, ErrTerminated)
		return
	}
	if r := sa.outstanding(func(r *request) bool { return r.task.same(&t) }); r != nil {
		r.task.waiters = append(r.task.waiters, t.waiters...)
		r.dropped = false // it is wanted again
		return
	}
	for i := range sa.tasks {
		if sa.tasks[i].same(&t) {
			sa.tasks[i].waiters = append(sa.tasks[i].waiters, t.waiters...)
			return
		}
	}
	if t.notBefore > m.now.Mono {
		m.arm(sa, tTask, t.notBefore-m.now.Mono)
	}
	sa.tasks = append(sa.tasks, t)
}

// again puts a task off, for a peer that is busy (TEMPORARY_FAILURE, RFC 7296 section
// 2.25) or an exchange that we cannot start now.
func (m *Machine) again(sa *ikeSA, t task) {
	t.tries++
	t.notBefore = m.now.Mono + time.Second<<min(t.tries, 5) + m.random(time.Second)
	m.queue(sa, t)
}

// runTasks starts the next tasks of every IKE SA whose window has room.
func (m *Machine) runTasks() {
	for i := range m.sas {
		m.reauthStep(&m.sas[i]) // may give other IKE SAs something to do
		m.endUnused(&m.sas[i])
	}
	for i := range m.sas {
		sa := &m.sas[i]
		m.followWaiting(sa)
		for len(sa.tasks) > 0 && (sa.state == StateEstablished || sa.state == StateRekeyed) {
			j := m.nextTask(sa)
			if j < 0 {
				first := never
				for _, t := range sa.tasks {
					if t.notBefore > m.now.Mono { // others wait for an answer
						first = min(first, t.notBefore)
					}
				}
				if first != never {
					m.arm(sa, tTask, first-m.now.Mono)
				}
				break
			}
			t := sa.tasks[j]
			sa.tasks = slices.Delete(sa.tasks, j, j+1)
			sa.park()
			m.start(sa, t)
		}
		sa.recallAny()
	}
}

// start begins the exchange of a task.
func (m *Machine) start(sa *ikeSA, t task) {
	switch t.kind {
	case taskCreateChild, taskRekeyChild, taskRekeyIKE:
		m.createStart(sa, t)
	case taskDeleteChild:
		m.deleteChildStart(sa, t)
	case taskDeleteIKE:
		sa.state = StateDeleting
		sa.req.task = t
		m.sendRequest(sa, ExchangeInformational, func(b *Builder) { b.Delete(ProtoIKE, nil) })
	case taskAuthLifetime:
		sa.req.task = t
		left := max(sa.expireAt-m.now.Mono, 0)
		m.sendRequest(sa, ExchangeInformational, func(b *Builder) { m.writeLifetime(b, sa, left) })
	case taskLiveness:
		m.livenessStart(sa, t)
	case taskRedirect:
		sa.req.task = t
		m.sendRequest(sa, ExchangeInformational, func(b *Builder) { b.Notify(NotifyRedirect, ProtoNone, nil, t.gateway.body(nil)) })
	case taskTell:
		sa.req.task = t
		m.sendRequest(sa, ExchangeInformational, func(b *Builder) {
			if sa.qcd.tell {
				m.qcdNotify(b, sa)
			}
			if sa.resume.asked {
				m.askTicket(b, sa)
			}
		})
	case taskUpdate:
		m.updateStart(sa, t)
	case taskRoutable:
		m.routableStart(sa, t)
	case taskAddresses:
		m.addressesStart(sa, t)
	}
}

// deleteTries is how often the DELETE of an IKE SA is repeated: what is gone on our
// side need not be waited for as long as a tunnel that should live.
const deleteTries = 3

// deletePace is the longest wait for the first repetition of the DELETE by which a user ends
// an IKE SA, so that one lost datagram does not outlast the patience at the daemon's end.
const deletePace = 500 * time.Millisecond

// leaving tells whether our request is that DELETE.
func (sa *ikeSA) leaving() bool { return sa.state == StateDeleting && sa.closeErr == ErrTerminated }

// abandon forgets an IKE SA that is being closed, after one DELETE that nobody waits for. If
// another request of ours is unanswered there is not even that: the peer's window has no
// room (RFC 7296 section 2.3).
func (m *Machine) abandon(sa *ikeSA) {
	if (sa.state == StateEstablished || sa.state == StateRekeyed) && !sa.req.active {
		m.start(sa, task{kind: taskDeleteIKE})
	}
	m.destroy(sa, ErrTerminated)
}

// giveUp ends an attempt whose IKE_AUTH is under way, if it is one: the peer may have the IKE
// SA already, and nobody would tell it. Nobody waits for the answer, on which it is deleted.
func (m *Machine) giveUp(sa *ikeSA, err error) bool {
	if !sa.initiator || !sa.req.active || sa.req.exchange != ExchangeAuth {
		return false
	}
	if sa.closeErr != nil {
		return true
	}
	s, old := sa.conns, sa.reauth.old
	sa.closeErr, sa.conns, sa.reauth.old = err, nil, 0
	m.settle(sa.waiters, nil)
	sa.waiters = nil
	switch {
	case s == nil:
	case old != 0:
		m.reauthFailed(s, old, nil)
	case err == ErrTerminated:
		m.attemptFailed(s, nil)
	default:
		m.attemptFailed(s, err)
	}
	return true
}

// closeIKE ends an IKE SA in agreement with the peer. w, if any, learns of the end.
func (m *Machine) closeIKE(sa *ikeSA, err error, w *waiter) {
	if w != nil {
		sa.waiters = append(sa.waiters, w)
	}
	switch sa.state {
	case StateConnecting:
		if !m.giveUp(sa, err) {
			m.destroy(sa, err)
		}
	case StateEstablished, StateRekeyed:
		if sa.mobike.stranded {
			m.destroy(sa, err) // the peer cannot be told
			return
		}
		if slices.ContainsFunc(sa.tasks, func(t task) bool { return t.kind == taskDeleteIKE }) {
			return
		}
		if sa.closeErr == nil {
			sa.closeErr = err
		}
		for _, t := range sa.tasks {
			if t.kind == taskCreateChild && t.cfg.keptUp(err) {
				m.wishAgain(sa.conn, t.cfg)
			}
			m.settle(t.waiters, err)
		}
		sa.tasks = append(sa.tasks[:0], task{kind: taskDeleteIKE})
		sa.timers[tRekey], sa.timers[tReauth], sa.timers[tExpire], sa.timers[tLiveness] = never, never, never, never
	}
}
