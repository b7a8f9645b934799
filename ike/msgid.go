package ike

import (
	"time"

	"postern/esp"
)

// request is an outstanding request of ours. The window (RFC 7296 section 2.3) says how
// many there may be at once.
type request struct {
	active   bool
	task     task
	exchange Exchange
	id       uint32
	data     []byte // as sent, for retransmissions; nil while a job is out
	cut      int    // of fragments: the length of each but the last
	tries    int
	before   int           // transmissions in larger fragments
	due      time.Duration // when it is repeated; 0: never
	sent     time.Duration // when it left last
	counted  bool          // it has taken its message ID
	job      job           // while it is parked
	jobID    uint64

	// What CREATE_CHILD_SA must remember until the response.
	offered []Proposal
	group   DHGroup
	pair    *keyPair
	ni, nr  []byte
	spiIn   uint32
	rest
	link    []byte // what the peer wants to see in the next IKE_FOLLOWUP_KE
	dropped bool   // the user has closed meanwhile what it makes
	waits   bool   // for room in the window, to send that
	ts      [2][]esp.Selector
	mode    esp.Mode // asked for, then granted
	frags   bool     // granted: see Child.Fragments
	seen    seenAs
	padding bool // the peer takes it
	agg     AggFrag
	refused error // of a CHILD SA that the peer has and that cannot be used, or may not any more
	chosen  Proposal
	peerSPI []byte
	gotTS   [2][]esp.Selector
	gone    []uint32 // SPIs of the peer that it deleted meanwhile and that we do not know
	token   []byte   // the peer's for quick crash detection
	rival   uint32   // CHILD SA that the peer made by rekeying the same one meanwhile
	perCPU  bool     // the peer has answered that it takes an SA for each CPU

	asked // of MOBIKE
}

// reply is a response that we sent, kept until the peer cannot ask for it any more.
type reply struct {
	valid bool
	id    uint32
	data  []byte
	cut   int // of fragments: the length of each but the last
	again int // how often it has been asked for again
}

// Retransmission defaults are strongSwan's: 4 s, then 1.8 times as long each time, and
// after five of them the peer counts as dead, 165 s after the first.
const (
	retryTimeout = 4 * time.Second
	retryBase    = 1.8
	retryTries   = 5
)

// retryDelay returns how long to wait after transmission n (0 is the first), without the
// jitter, and whether another one may follow. The first wait is atMost, unless that is 0.
func (c *Conn) retryDelay(n int, atMost time.Duration) (time.Duration, bool) {
	d, base, tries := retryTimeout, retryBase, retryTries
	if c != nil {
		if c.RetryTimeout > 0 {
			d = c.RetryTimeout
		}
		if c.RetryBase >= 1 {
			base = c.RetryBase
		}
		if c.RetryTries > 0 {
			tries = c.RetryTries
		}
	}
	if atMost > 0 {
		d = min(d, atMost)
	}
	f := float64(d)
	for range n {
		f *= base
	}
	d = time.Duration(min(f, float64(24*time.Hour)))
	if c != nil && c.RetryLimit > 0 {
		d = min(d, c.RetryLimit)
	}
	return d, n <= tries
}

// header returns the header of the next message of an exchange.
func (sa *ikeSA) header(ex Exchange, id uint32, response bool) Header {
	h := Header{SPIi: sa.spiI, SPIr: sa.spiR, Major: versionMajor, Minor: versionMinor, Exchange: ex, ID: id}
	if sa.initiator {
		h.Flags |= FlagInitiator
	}
	if response {
		h.Flags |= FlagResponse
	}
	return h
}

// sealed builds an encrypted message in one piece.
func (m *Machine) sealed(sa *ikeSA, h Header, fill func(*Builder)) []byte {
	out, skOff := m.plain(sa, h, fill)
	return sa.sealer.seal(out, skOff, skOff+payloadHdr, m.env.Random)
}

// plain builds a message that is ready to be sealed.
func (m *Machine) plain(sa *ikeSA, h Header, fill func(*Builder)) (msg []byte, skOff int) {
	b := NewBuilder(make([]byte, 0, 512), h)
	b.BeginSK(sa.sealer.ivLen())
	if fill != nil {
		fill(b)
	}
	out := b.Finish()
	if out == nil {
		// More than a message holds: only a configuration beyond all reason does that.
		b = NewBuilder(nil, h)
		b.BeginSK(sa.sealer.ivLen())
		out = b.Finish()
	}
	m.traceMessage("sending", sa.path, sa, out)
	m.countMessage(sa, &h, true)
	return out, b.SKOff()
}

// transmit sends our request for the first time.
func (m *Machine) transmit(sa *ikeSA, ex Exchange, data []byte) {
	sa.req.active, sa.req.exchange, sa.req.id, sa.req.data, sa.req.tries = true, ex, sa.sendID, data, 0
	d, _ := m.unanswered(sa, 0)
	m.armRetransmit(sa, d)
	m.armPatience(sa)
	if !m.blocked(sa) {
		m.dispatch(sa, true)
	}
}

// sendRequest builds and sends an encrypted request.
func (m *Machine) sendRequest(sa *ikeSA, ex Exchange, fill func(*Builder)) {
	data, cut := m.protected(sa, sa.header(ex, sa.sendID, false), fill)
	sa.req.cut = cut
	m.transmit(sa, ex, data)
	sa.req.counted = true
	sa.sendID++
}

// retransmit repeats our request, or gives the peer up (RFC 7296 section 2.4).
func (m *Machine) retransmit(sa *ikeSA) {
	if !sa.req.active || sa.req.data == nil {
		return
	}
	if sa.mobike.stranded && sa.closeErr != nil {
		m.destroy(sa, sa.closeErr) // it was being closed, and the peer cannot be told any more
		return
	}
	if sa.mobike.stranded && sa.state != StateDeleting {
		m.armRetransmit(sa, strandedPoll)
		m.roam(sa)
		return
	}
	if m.blocked(sa) {
		return
	}
	if sa.req.exchange == ExchangeSessionResume && sa.req.tries >= resumeTries {
		m.resumeFailed(sa, ErrTimeout)
		return
	}
	what := sa.req.exchange.String()
	if sa.req.tries++; sa.req.tries == fragmentTries && m.shrinkRequest(sa) {
		what += " in smaller fragments"
	}
	d, more := m.unanswered(sa, sa.req.tries)
	if sa.state == StateDeleting && sa.req.tries > deleteTries {
		more = false
	}
	if !more && sa.req.task.kind == taskRekeyIKE && sa.collision.slot != 0 {
		m.createFailed(sa, ErrTimeout) // the IKE SA that the peer's rekeying has made may be alive
		return
	}
	if !more {
		m.unheard(sa)
		return
	}
	m.armRetransmit(sa, d)
	if sa.req.tries == 1 && sa.conn != nil {
		m.askAll(sa.conn, nameFresh) // it may have moved
	}
	m.event(Event{Kind: EvRetransmit, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Count: sa.req.before + sa.req.tries,
		Text: what})
	m.dispatch(sa, false)
	m.detour(sa)
}

// unheard ends an IKE SA whose peer does not answer.
func (m *Machine) unheard(sa *ikeSA) {
	err := ErrTimeout
	if sa.ppk.refused {
		err = ErrPPKRefused
	}
	if sa.collision.slot != 0 {
		if m.rival(sa) != nil {
			err = ErrReplaced // the peer's rekeying of it was answered: only what it has replaced is dead
		}
		m.adoptRival(sa)
	}
	m.destroy(sa, err)
}

// answered frees the window after the response to our request.
func (m *Machine) answered(sa *ikeSA) task {
	t := sa.req.task
	sa.req.wipe()
	if !sa.req.counted {
		sa.sendID++
	}
	sa.req = request{}
	m.rearm(sa)
	return t
}

// dropRequest forgets our outstanding request together with what it had reserved.
func (m *Machine) dropRequest(sa *ikeSA, err error) {
	if sa.req.active {
		m.rekeyReset(sa)
		m.releaseSPI(sa.req.spiIn)
		m.settle(sa.req.task.waiters, sa.req.task.outcome(err))
		sa.req.wipe()
	}
	sa.req = request{}
	sa.jobs[laneOurs] = jobNone
	m.rearm(sa)
}

// respond sends the response to the peer's request at hand and keeps it
// for retransmissions.
func (m *Machine) respond(sa *ikeSA, p Path, ex Exchange, fill func(*Builder)) {
	data, cut := m.protected(sa, sa.header(ex, sa.window.at, true), fill)
	sa.keepReply(reply{valid: true, id: sa.window.at, data: data, cut: cut})
	m.sendParts(p, sa, data, cut, true)
}

// refusal is an error notify and the reason for it.
type refusal struct {
	t     NotifyType
	proto Protocol
	spi   []byte
	data  []byte
	err   error
}

func (r *refusal) write(b *Builder) { b.Notify(r.t, r.proto, r.spi, r.data) }

// refuse answers the peer's request with an error notify.
func (m *Machine) refuse(sa *ikeSA, p Path, ex Exchange, no *refusal) {
	m.event(Event{Kind: EvRefused, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: no.t.String(), Err: no.err})
	m.respond(sa, p, ex, no.write)
}
