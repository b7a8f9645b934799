package ike

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"postern/esp"
	"postern/ike/pki"
)

// Machine speaks IKEv2 for one host. Call one method at a time, from one goroutine;
// after each of Configure, Datagram, Command, Timeout, Done, Fetched and Resolved, take the outputs with
// Next until it returns false, then wait for the next input or for Deadline.
type Machine struct {
	// Trace, if it is set and returns true, makes the machine tell about each message with
	// an EvTrace.
	Trace func() bool

	env      Env
	ports    Ports
	now      Time
	wake     time.Duration
	out      []Output
	outHead  int
	sas      []ikeSA
	children []childSA
	conns    []*connState
	names    []*peerName
	secrets  []Secret
	trust    *pki.Trust
	floor    time.Time
	ppks     []PPK
	encap    bool // for every connection
	pools    []*livePool
	assigned []*Assigned // to connections of ours, as client

	leasesMax     int  // of each pool
	leasesChanged bool // since the last output

	lateUntil time.Duration // until then exchanges may end for children that have gone
	msg       Message       // the datagram at hand

	counts      Counters
	halfOpenMax int
	aggFrags    int
	cookieFrom  int
	cookies     cookieJar
	notices     limiter
	qcd         qcdState
	tickets     ticketJar
	auths       []authRate // of the peers that have lately made IKE SAs

	endIKE    uint32 // the IKE SA that was destroyed last, or is being
	endErr    error  // and why
	nextIKE   uint32
	nextChild uint32
	workSeq   uint64
}

// New makes a machine with tables of the given size. At most 65,536 IKE SAs.
func New(env Env, lim Limits) *Machine {
	return &Machine{
		env: env, wake: never,
		sas:         make([]ikeSA, min(max(lim.IKESAs, 2), 1<<slotBits)),
		children:    make([]childSA, max(lim.ChildSAs, 2)),
		halfOpenMax: max(lim.HalfOpen, 1),
		aggFrags:    lim.AggFrags,
		leasesMax:   max(lim.Leases, leasesLeast),
		cookieFrom:  max(lim.Cookies, 0),
		ports:       Ports{500, 4500},
		msg:         Message{},
	}
}

// Configure takes a configuration in place of the one before; what has not changed goes on
// undisturbed (reload.go). It starts what is to be started.
func (m *Machine) Configure(now Time, cfg Config) error {
	m.now = now
	m.ports = Ports{500, 4500}
	if cfg.Ports.IKE != 0 {
		m.ports.IKE = cfg.Ports.IKE
	}
	if cfg.Ports.NATT != 0 {
		m.ports.NATT = cfg.Ports.NATT
	}
	m.encap = cfg.Encap
	m.configureQCD(cfg.QCDSecret)
	oldSecrets, oldPPKs := m.secrets, m.ppks
	m.secrets, m.ppks = cfg.Secrets, cfg.PPKs
	m.trust, m.floor = cfg.Trust, cfg.Floor
	m.configurePools(cfg.Pools, cfg.Leases)
	fresh := m.configureConns(cfg.Conns, oldSecrets, oldPPKs, cfg.Change == ChangeCreds)
	for _, s := range m.conns {
		for _, c := range s.conn.Children {
			if cfg.Change != ChangeAny && !fresh[c] {
				continue
			}
			if c.StartAction == StartStart && !s.held[c] {
				m.want(s, wish{cfg: c})
			}
		}
	}
	m.finish()
	return nil
}

// sameKey tells whether a connection authenticates with the same key as before.
func sameKey(old, now []Secret, c *Conn) bool {
	a, b := findSecret(old, c.LocalID, c.exactRemote()), findSecret(now, c.LocalID, c.exactRemote())
	if a == nil || b == nil {
		return a == b
	}
	return constantEqual(a.Key, b.Key)
}

// closeConn ends all that belongs to a connection that is configured no more.
func (m *Machine) closeConn(s *connState) {
	for _, w := range s.wanted {
		m.settle(w.waiters, ErrTerminated)
	}
	s.wanted, s.retryAt, s.dial.waiting = nil, never, false
	s.dropTicket()
	for i := range m.sas {
		sa := &m.sas[i]
		switch {
		case sa.state == StateConnecting && sa.conns == s:
			sa.conns = nil
			m.closeIKE(sa, ErrTerminated, nil)
		case sa.state != StateFree && (sa.conn == s.conn || sa.connName() == s.conn.Name && m.leftOver(sa)):
			m.closeIKE(sa, ErrTerminated, nil)
		}
	}
}

// Next returns the next thing to do.
func (m *Machine) Next() (Output, bool) {
	if m.outHead == len(m.out) {
		clear(m.out)
		m.out, m.outHead = m.out[:0], 0
		return Output{}, false
	}
	o := m.out[m.outHead]
	m.outHead++
	return o, true
}

// finish ends every input: tasks that became possible start.
func (m *Machine) finish() {
	for _, s := range m.conns {
		if s.dial.replaced {
			m.closeReplaced(s)
		}
	}
	if m.now.Mono < m.lateUntil {
		m.dropLate()
	}
	m.runTasks()
	m.unassign()
}

func (m *Machine) event(e Event) {
	m.out = append(m.out, Output{Kind: OutEvent, Event: e})
}

// drop tells of a datagram that leads nowhere: of every one, so that they can be counted.
func (m *Machine) drop(p Path, err error) {
	m.event(Event{Kind: EvDropped, Path: p, Err: err})
}

func (m *Machine) send(p Path, b []byte) {
	m.out = append(m.out, Output{Kind: OutSend, Path: p, Data: b})
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// Datagram takes a message from the network, without its non-ESP marker. b is the
// machine's until it returns, and is overwritten by decryption.
func (m *Machine) Datagram(now Time, p Path, b []byte) {
	m.now = now
	p.Local = netip.AddrPortFrom(p.Local.Addr().Unmap(), p.Local.Port())
	p.Remote = netip.AddrPortFrom(p.Remote.Addr().Unmap(), p.Remote.Port())
	m.datagram(p, b)
	m.finish()
}

func (m *Machine) datagram(p Path, b []byte) {
	h, err := ParseHeader(b)
	if err != nil {
		m.count(nil, CountInvalid)
		m.drop(p, err)
		return
	}
	if h.Major != versionMajor {
		m.otherVersion(p, &h)
		return
	}
	response := h.Flags&FlagResponse != 0
	if (h.Exchange == ExchangeInit || h.Exchange == ExchangeSessionResume) && h.SPIr == 0 && !response {
		m.initRequest(p, &h, b)
		return
	}
	sa := m.lookup(&h)
	if sa == nil {
		m.unknownSPI(p, &h, b)
		return
	}
	if h.Exchange == ExchangeInit {
		m.initResponse(sa, p, &h, b)
		return
	}
	if h.Exchange == ExchangeSessionResume {
		m.resumeResponse(sa, p, &h, b)
		return
	}
	inner, parseErr := m.open(sa, b)
	if !inner {
		if parseErr == ErrUnprotected {
			parseErr = m.unprotected(sa, p)
		}
		if parseErr != nil && parseErr != errPart {
			m.count(sa, CountInvalid)
			m.drop(p, parseErr)
		}
		return
	}
	if sa.lastIn = m.now.Mono; sa.lastIn == 0 {
		sa.lastIn = 1
	}
	if parseErr == errPart {
		return // the rest of the message is still to come
	}
	if response {
		m.response(sa, p, parseErr)
	} else {
		m.request(sa, p, parseErr)
	}
}

// open decrypts an encrypted message of sa into m.msg. authentic tells whether its
// integrity check passed; err, for an authentic message, what is wrong with its payloads.
func (m *Machine) open(sa *ikeSA, b []byte) (authentic bool, err error) {
	outer := m.msg.Parse(b)
	var critical *CriticalError
	if outer != nil && !errors.As(outer, &critical) {
		return false, outer
	}
	if m.msg.fragment() != nil {
		return m.openFragment(sa, b, outer)
	}
	if m.msg.SKOff == 0 || sa.opener == nil {
		return false, ErrUnprotected
	}
	ivOff := m.msg.SKOff + payloadHdr
	inner, err := sa.openerOf(&m.msg.Header).open(b, m.msg.SKOff, ivOff)
	if err != nil {
		return false, err
	}
	m.msg.skBits = b[m.msg.SKOff+1]
	if err := m.msg.ParseInner(m.msg.SKNext, inner); err != nil {
		return true, err
	}
	return true, outer
}

// otherVersion handles messages of other versions of IKE (RFC 7296 section 2.5): a
// higher one is answered with our version, an older one cannot be answered in a way
// that it understands.
func (m *Machine) otherVersion(p Path, h *Header) {
	m.drop(p, &VersionError{h.Major, h.Minor})
	if h.Major < versionMajor || h.Flags&FlagResponse != 0 || !m.notices.allow(m.now.Mono) {
		return
	}
	m.notice(p, h, NotifyInvalidMajorVersion, nil)
}

// unknownSPI handles messages for an IKE SA that we do not have (RFC 7296 sections 1.5
// and 2.21.4): a request is answered, at a limited rate, so that a peer whose SA we have
// forgotten learns it.
func (m *Machine) unknownSPI(p Path, h *Header, b []byte) {
	if h.Flags&FlagResponse == 0 && h.Exchange == ExchangeInformational && m.msg.Parse(b) == nil && !m.msg.Encrypted() {
		if n, ok := m.msg.FindNotify(NotifyInvalidSPI); ok {
			m.invalidSPI(p, &n)
			return
		}
	}
	m.count(nil, CountInvalidSPI)
	m.drop(p, ErrUnknownSPI)
	if h.Flags&FlagResponse != 0 || !h.Exchange.known() || h.Exchange == ExchangeSessionResume {
		return
	}
	token := m.qcdAnswer(p, h, b)
	if token == nil && !m.notices.allow(m.now.Mono) {
		return
	}
	m.noticeWith(p, h, func(b *Builder) {
		b.Notify(NotifyInvalidIKESPI, ProtoNone, nil, nil)
		if token != nil {
			writeToken(b, token)
		}
	})
}

// notice answers a request outside of any IKE SA with a single, unprotected notify:
// same SPIs, exchange and message ID (RFC 7296 section 1.5).
func (m *Machine) notice(p Path, h *Header, t NotifyType, data []byte) {
	m.noticeWith(p, h, func(b *Builder) { b.Notify(t, ProtoNone, nil, data) })
}

// noticeWith is notice with the payloads that fill writes.
func (m *Machine) noticeWith(p Path, h *Header, fill func(*Builder)) {
	r := Header{SPIi: h.SPIi, SPIr: h.SPIr, Major: versionMajor, Exchange: h.Exchange, ID: h.ID,
		Flags: FlagResponse | ^h.Flags&FlagInitiator}
	b := NewBuilder(nil, r)
	fill(b)
	out := b.Finish()
	m.traceMessage("sending", p, nil, out)
	m.send(p, out)
}

// request handles an authentic request. perr tells what its parsing found.
func (m *Machine) request(sa *ikeSA, p Path, perr error) {
	h := &m.msg.Header
	sent := sa.replyTo(h.ID)
	switch {
	case sent != nil:
		m.repeatReply(sa, p, sent) // our response got lost
		return
	case !sa.inWindow(h.ID):
		m.drop(p, ErrMessageID)
		return
	case sa.computing(h.ID):
		return // its answer is being computed
	case !sa.expects(h.Exchange):
		m.drop(p, ErrUnexpected)
		return
	}
	sa.window.at = h.ID
	m.tracePayloads("received", p, sa)
	if !sa.initiator && sa.state == StateConnecting {
		sa.path = p // the initiator may have moved to port 4500 (RFC 7296 section 2.23)
	}
	m.heard(sa, p, false)
	var critical *CriticalError
	if errors.As(perr, &critical) {
		m.count(sa, CountInvalid)
		m.refuse(sa, p, h.Exchange, &refusal{t: NotifyUnsupportedCriticalPayload, data: []byte{byte(critical.Type)}, err: perr})
		return
	}
	if perr == nil {
		perr = checkRules(&m.msg, h.Exchange, false, true)
	}
	m.countParsed(sa, perr)
	var rule *RuleError
	if errors.As(perr, &rule) && h.Exchange == ExchangeAuth && rule.Payload == PayloadAuth && rule.Count == 0 {
		m.refuse(sa, p, h.Exchange, &refusal{t: NotifyAuthenticationFailed, err: ErrNoAuth}) // it asks for EAP
		m.destroy(sa, ErrNoAuth)
		return
	}
	if perr != nil {
		m.refuse(sa, p, h.Exchange, &refusal{t: NotifyInvalidSyntax, err: perr})
		m.destroy(sa, perr) // RFC 7296 section 2.21.3
		return
	}
	switch h.Exchange {
	case ExchangeAuth:
		m.authRequest(sa, p)
	case ExchangeCreateChild:
		m.createRequest(sa, p)
	case ExchangeInformational:
		m.infoRequest(sa, p)
	case ExchangeIntermediate:
		m.interRequest(sa, p)
	case ExchangeFollowupKE:
		m.followRequest(sa, p)
	default:
		m.refuse(sa, p, h.Exchange, &refusal{t: NotifyInvalidSyntax, err: ErrUnexpected})
	}
}

// response handles an authentic response.
func (m *Machine) response(sa *ikeSA, p Path, perr error) {
	h := &m.msg.Header
	sa.recallID(h.ID)
	if !sa.req.active || h.ID != sa.req.id || h.Exchange != sa.req.exchange {
		m.drop(p, ErrMessageID)
		return
	}
	if sa.jobs[laneOurs] != jobNone {
		return
	}
	m.tracePayloads("received", p, sa)
	m.heard(sa, p, true)
	if perr == nil {
		perr = checkRules(&m.msg, h.Exchange, true, true)
	}
	m.countParsed(sa, perr)
	sa.req.due = 0
	m.rearm(sa)
	if perr != nil {
		m.event(Event{Kind: EvRefused, Conn: sa.connName(), IKE: sa.unique, Path: p, Err: perr})
		m.destroy(sa, perr)
		return
	}
	switch h.Exchange {
	case ExchangeAuth:
		m.authResponse(sa, p)
	case ExchangeCreateChild:
		m.createResponse(sa)
	case ExchangeInformational:
		m.infoResponse(sa, p)
	case ExchangeIntermediate:
		m.interResponse(sa)
	case ExchangeFollowupKE:
		m.followResponse(sa)
	}
}

// want brings a CHILD SA up: at once where there is an IKE SA or none is being tried,
// otherwise when the next attempt is due.
func (m *Machine) want(s *connState, w wish) {
	if w.cfg != nil && !slices.Contains(s.conn.Children, w.cfg) {
		m.settle(w.waiters, ErrTerminated) // it is configured no more
		return
	}
	delete(s.held, w.cfg)
	if sa := m.established(s.conn); sa != nil {
		if w.cfg == nil {
			m.settle(w.waiters, nil)
			return
		}
		for i := range m.children {
			c := &m.children[i]
			if c.ike == sa.slot && c.cfg == w.cfg && (c.state == ChildInstalled || c.state == ChildRekeying) && c.serves(0) &&
				(!w.flow.Local.IsValid() || esp.MatchFlow(c.local, c.remote, &w.flow)) {
				m.settle(w.waiters, nil)
				return
			}
		}
		m.queue(sa, task{kind: taskCreateChild, cfg: w.cfg, flow: w.flow, waiters: w.waiters})
		return
	}
	i := slices.IndexFunc(s.wanted, func(o wish) bool { return o.cfg == w.cfg })
	if i < 0 {
		s.wanted = append(s.wanted, w)
	} else {
		s.wanted[i].waiters = append(s.wanted[i].waiters, w.waiters...)
	}
	if s.retryAt == never && !m.busy(s) {
		m.connect(s)
	}
}

// retry is the next attempt after a failed one.
func (m *Machine) retry(s *connState) {
	if m.established(s.conn) != nil && !s.dial.moving {
		wanted := s.wanted
		s.wanted = nil
		for _, w := range wanted {
			m.want(s, w)
		}
		return
	}
	if len(s.wanted) > 0 && !m.busy(s) {
		m.connect(s)
	}
}

// Back-off between attempts: after a refusal or a lost route, from the first delay,
// doubled up to the last. An attempt that timed out has already taken long.
const (
	retryFirst = 2 * time.Second
	retryLast  = time.Minute
)

// backoff returns the delay before the attempt that follows n failed ones, with up to
// a quarter of jitter so that many peers of a gateway that comes back do not come at once.
func (m *Machine) backoff(n int) time.Duration {
	d := retryFirst << min(n-1, 10)
	d = min(max(d, retryFirst), retryLast)
	return d + m.random(d/4)
}

// random returns a random duration below d.
func (m *Machine) random(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	var b [8]byte
	m.env.Random(b[:])
	return time.Duration(be64(b[:]) % uint64(d))
}

// limiter lets a bounded number of unprotected notices through per second.
type limiter struct {
	since time.Duration
	n     int
}

const noticesPerSecond = 10

func (l *limiter) allow(now time.Duration) bool {
	if now-l.since >= time.Second || now < l.since {
		l.since, l.n = now, 0
	}
	l.n++
	return l.n <= noticesPerSecond
}
