package ike

import (
	"time"

	"postern/esp"
)

// request is our outstanding request: with a window of one (RFC 7296 section 2.3)
// there is at most one, and nothing else is sent until it is answered or given up.
type request struct {
	active   bool
	task     task
	exchange Exchange
	id       uint32
	data     []byte // as sent, for retransmissions; nil while a job is out
	tries    int

	// What CREATE_CHILD_SA must remember until the response.
	offered []Proposal
	group   DHGroup
	pair    *keyPair
	ni, nr  []byte
	spiIn   uint32
	newSlot int // of the IKE SA that it would make, plus one; 0 means none
	ts      [2][]esp.Selector
	chosen  Proposal
	peerSPI []byte
	gotTS   [2][]esp.Selector
	gone    []uint32 // SPIs of the peer that it deleted meanwhile and that we do not know
	rival   uint32   // CHILD SA that the peer made by rekeying the same one meanwhile
}

// reply is the last response that we sent, kept until the peer's next request.
type reply struct {
	valid bool
	id    uint32
	data  []byte
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

// sealed builds an encrypted message.
func (m *Machine) sealed(sa *ikeSA, h Header, fill func(*Builder)) []byte {
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
	skOff := b.SKOff()
	return sa.sealer.seal(out, skOff, skOff+payloadHdr, m.env.Random)
}

// transmit sends our request for the first time.
func (m *Machine) transmit(sa *ikeSA, ex Exchange, data []byte) {
	sa.req.active, sa.req.exchange, sa.req.id, sa.req.data, sa.req.tries = true, ex, sa.sendID, data, 0
	d, _ := m.unanswered(sa, 0)
	m.arm(sa, tRetransmit, d)
	m.armPatience(sa)
	m.send(sa.path, data)
}

// sendRequest builds and sends an encrypted request.
func (m *Machine) sendRequest(sa *ikeSA, ex Exchange, fill func(*Builder)) {
	m.transmit(sa, ex, m.sealed(sa, sa.header(ex, sa.sendID, false), fill))
}

// retransmit repeats our request, or gives the peer up (RFC 7296 section 2.4).
func (m *Machine) retransmit(sa *ikeSA) {
	if !sa.req.active || sa.req.data == nil {
		return
	}
	sa.req.tries++
	d, more := m.unanswered(sa, sa.req.tries)
	if sa.state == StateDeleting && sa.req.tries > deleteTries {
		more = false
	}
	if !more && sa.req.task.kind == taskRekeyIKE && sa.collision.slot != 0 {
		m.createFailed(sa, ErrTimeout) // the IKE SA that the peer's rekeying has made may be alive
		return
	}
	if !more {
		m.destroy(sa, ErrTimeout)
		return
	}
	m.arm(sa, tRetransmit, d)
	if sa.req.tries == 1 && sa.state == StateEstablished && sa.conn != nil {
		m.askAll(sa.conn, nameFresh) // it may have moved
	}
	m.event(Event{Kind: EvRetransmit, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Count: sa.req.tries,
		Text: sa.req.exchange.String()})
	m.send(sa.path, sa.req.data)
}

// answered frees the window after the response to our request.
func (m *Machine) answered(sa *ikeSA) task {
	t := sa.req.task
	sa.req.pair.wipe()
	sa.req = request{}
	sa.sendID++
	sa.timers[tRetransmit] = never
	return t
}

// dropRequest forgets our outstanding request together with what it had reserved.
func (m *Machine) dropRequest(sa *ikeSA, err error) {
	if sa.req.active {
		m.rekeyReset(sa)
		m.releaseSPI(sa.req.spiIn)
		m.settle(sa.req.task.waiters, sa.req.task.outcome(err))
		sa.req.pair.wipe()
	}
	sa.req = request{}
	sa.jobs[laneOurs] = jobNone
	sa.timers[tRetransmit] = never
}

// respond sends the response to the peer's request of message ID recvID and keeps it
// for retransmissions.
func (m *Machine) respond(sa *ikeSA, p Path, ex Exchange, fill func(*Builder)) {
	data := m.sealed(sa, sa.header(ex, sa.recvID, true), fill)
	sa.reply = reply{true, sa.recvID, data}
	sa.recvID++
	m.send(p, data)
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
