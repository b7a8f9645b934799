package ike

import (
	"net/netip"
	"time"

	"postern/esp"
)

// ikeSA is one slot of the IKE SA table.
type ikeSA struct {
	slot      int
	unique    uint32
	state     State
	initiator bool
	conn      *Conn
	conns     *connState // of an attempt that we started; nil otherwise
	spiI      uint64
	spiR      uint64
	path      Path
	dialled   netip.Addr // the peer's address that we have called

	suite   IKESuite
	keys    ikeKeys
	sealer  *skCipher // protects what we send
	opener  *skCipher // opens what the peer sends
	ni, nr  []byte
	localID ID
	peerID  ID

	natLocal bool // a NAT is in front of us
	natPeer  bool // a NAT is in front of the peer
	natKnown bool // the peer takes part in NAT detection
	told     bool // an event has said that it is up, and none that it is not
	origin   origin
	force    bool // UDP encapsulation is wanted even without a NAT
	pfs      bool // the peer refuses CHILD SAs without a key exchange of their own

	init    initState // until IKE_AUTH is over
	inter   intermediate
	follow  []followup // series of the peer's, which it has not ended
	lost    int        // STATE_NOT_FOUND answers in a row
	req     request    // our outstanding request
	sendID  uint32     // message ID of our next request
	recvID  uint32     // message ID of the peer's next request
	reply   reply      // our last response, for retransmissions
	peer    peerCreate
	tasks   []task
	jobs    [numLanes]job
	jobIDs  [numLanes]uint64
	timers  saDeadlines
	waiters []*waiter // commands that wait for this SA's end

	established time.Duration
	rekeyAt     time.Duration
	expireAt    time.Duration
	lastIn      time.Duration // when the last authentic message came

	reauth    reauthState
	live      livenessState
	flood     floodState
	replaced  uint32 // ends because of UniqueReplace: what the one began with that takes its place
	collision ikeCollision
	frag      fragments
	window    window
	qcd       qcdSA
	resume    resumeSA
	ppk       ppkSA
	redirect  redirectSA
	proofs    [2][]Proof       // how we have proved who we are, and the peer
	anchors   [][keyIDLen]byte // CAs of Config.Trust that the latter rests on
	mobike    mobike
	remote    remoteSA
	closeErr  error // why it is being closed
}

// origin is where an IKE SA began: rekeying changes roles and SPIs, and keeps this.
type origin struct {
	ours bool          // we connected
	spiI uint64        // the first initiator's SPI
	at   time.Duration // when it was authenticated

	// The unique number that it began with, and the last one that had been given out when it
	// was established: what came in between tells what was under way at the same time.
	began, done uint32

	dialled netip.Addr // the peer's address that we called; zero if it called

	until time.Duration // when the certificates end that the peer was authenticated by; 0: it does not end
}

// initState is what IKE_SA_INIT leaves for IKE_AUTH.
type initState struct {
	request  []byte // RealMessage1
	response []byte // RealMessage2
	offered  []Proposal
	group    DHGroup
	pair     *keyPair
	cookie   []byte
	retries  int            // COOKIE and INVALID_KE_PAYLOAD answers so far
	child    *Child         // the CHILD SA that IKE_AUTH carries
	from     netip.AddrPort // where the first message came from, as responder
	tried    string         // the connection that the peer's identity is of
	spiIn    uint32
	childTS  [2][]esp.Selector // offered: local, remote
	mode     esp.Mode          // asked for
	auth     authState
	bare     bool   // the peer supports an IKE SA without a CHILD SA, and so do we
	target   uint32 // the CHILD SA whose place child takes, when reauthenticating
	lane     uint8  // of that CHILD SA

	unmixed ikeKeys // SK_d, SK_pi and SK_pr before a PPK went in; else empty
}

// childSA is one slot of the CHILD SA table: a pair of ESP SAs.
type childSA struct {
	unique   uint32
	state    ChildState
	ike      int // slot of its IKE SA
	conn     *Conn
	cfg      *Child
	spiIn    uint32
	spiOut   uint32
	suite    esp.Suite
	dh       DHGroup
	ke       AddKE
	mode     esp.Mode
	frags    bool
	agg      AggFrag
	encap    bool
	local    []esp.Selector
	remote   []esp.Selector
	byPeer   bool // the peer started the exchange that made it
	standby  bool // the outbound SA is not in use yet
	outGone  bool // the outbound SA is deleted already
	told     bool // an event has said that it is up, and none that it is not
	heir     uint32
	mbb      heirState
	lane     laneState
	nonceLow []byte // the lower nonce of its exchange, for collisions
	timers   childDeadlines
	waiters  []*waiter

	installed time.Duration
	used      time.Duration // when it was installed, or the one that it replaces was used last
	rekeyAt   time.Duration
	expireAt  time.Duration
}

// proto returns the protocol of a CHILD SA.
func (c *childSA) proto() Protocol {
	if c.suite.Encr == esp.EncrNone {
		return ProtoAH
	}
	return ProtoESP
}

// keptUp tells whether a child whose making was cut off by the end of its IKE SA, because of
// err, is tried again.
func (c *Child) keptUp(err error) bool {
	return c.StartAction == StartStart && err != ErrTerminated && (err != ErrPeerDeleted || c.CloseAction == ActionRestart)
}

// permanent tells whether no packet is needed, or able, to bring a child up.
func (c *Child) permanent() bool {
	return c.StartAction == StartStart && c.DPDAction != ActionTrap && c.CloseAction != ActionTrap
}

// connState is what the machine knows of a connection beside its SAs.
type connState struct {
	conn     *Conn
	from     *Conn // of which conn is a copy, as configured
	wanted   []wish
	tries    int           // attempts since the last success
	retryAt  time.Duration // next attempt
	dial     dialing
	last     Path    // of the last attempt
	ticket   *ticket // of the last session, if that was lost; nil: none
	redirect redirectState
	counts   *Counters       // nil: nothing was counted
	held     map[*Child]bool // the user has closed these: they come up only when asked for
}

// wish is a CHILD SA that somebody wants up; without cfg it is the IKE SA alone.
type wish struct {
	cfg     *Child
	flow    esp.Flow
	waiters []*waiter
}

// waiter is a command that has not ended. left counts what it still waits for.
type waiter struct {
	tag  uint64
	left int
	err  error
}

// settle tells the waiters that one of the things that they wait for ended.
func (m *Machine) settle(ws []*waiter, err error) {
	for _, w := range ws {
		if w.err == nil {
			w.err = err
		}
		if w.left--; w.left == 0 && w.tag != 0 {
			m.event(Event{Kind: EvDone, Tag: w.tag, Err: w.err})
		}
	}
}

// localSPI is the SPI that the peer must name in the messages that it sends us.
func (sa *ikeSA) localSPI() uint64 {
	if sa.initiator {
		return sa.spiI
	}
	return sa.spiR
}

// encap tells whether the CHILD SAs travel in UDP.
func (sa *ikeSA) encap() bool { return sa.natLocal || sa.natPeer }

// newSA takes a free slot of the IKE SA table. Some slots are kept for rekeying, so
// that a full table never keeps a tunnel from living on.
func (m *Machine) newSA(initiator, rekey bool) *ikeSA {
	free, used := -1, 0
	for i := range m.sas {
		if m.sas[i].state != StateFree {
			used++
		} else if free < 0 {
			free = i
		}
	}
	if free < 0 || !rekey && used >= len(m.sas)-reserve(len(m.sas)) {
		return nil
	}
	sa := &m.sas[free]
	m.nextIKE++
	*sa = ikeSA{slot: free, unique: m.nextIKE, state: StateConnecting, initiator: initiator}
	sa.timers.clear()
	if spi := m.newIKESPI(free); initiator {
		sa.spiI = spi
	} else {
		sa.spiR = spi
	}
	return sa
}

// reserve is the part of a table of n slots that only rekeying may use.
func reserve(n int) int {
	if n < 2 {
		return 0
	}
	return max(1, n/8)
}

// slotBits is how many low bits of an IKE SPI hold the slot; the other 48 are random.
const slotBits = 16

func (m *Machine) newIKESPI(slot int) uint64 {
	for {
		var b [8]byte
		m.env.Random(b[:])
		spi := be64(b[:])>>slotBits<<slotBits | uint64(slot)
		if spi>>slotBits != 0 && spi != m.sas[slot].spiI && spi != m.sas[slot].spiR {
			return spi
		}
	}
}

// lookup returns the IKE SA whose local SPI the header names, or nil.
func (m *Machine) lookup(h *Header) *ikeSA {
	// The Initiator flag tells that the original initiator sent it: then the
	// responder's SPI is ours.
	spi := h.SPIi
	if h.Flags&FlagInitiator != 0 {
		spi = h.SPIr
	}
	slot := int(spi & (1<<slotBits - 1))
	if spi == 0 || slot >= len(m.sas) {
		return nil
	}
	sa := &m.sas[slot]
	if sa.state == StateFree || sa.localSPI() != spi || sa.initiator == (h.Flags&FlagInitiator != 0) {
		return nil
	}
	if sa.initiator && sa.spiR != 0 && h.SPIr != sa.spiR || !sa.initiator && h.SPIi != sa.spiI {
		return nil
	}
	return sa
}

// findChild returns the CHILD SA with that unique number, or nil.
func (m *Machine) findChild(unique uint32) *childSA {
	for i := range m.children {
		if m.children[i].state != ChildFree && m.children[i].unique == unique {
			return &m.children[i]
		}
	}
	return nil
}

// childOf returns the CHILD SA of sa whose outbound SPI (the one that the peer
// receives on and names in REKEY_SA and DELETE) is spi, or nil. For the peer a rekeying of
// the IKE SA may be over, and the CHILD SAs be those of the new one, before it is for us.
func (m *Machine) childOf(sa *ikeSA, proto Protocol, spi uint32) *childSA {
	for i := range m.children {
		c := &m.children[i]
		if c.state != ChildFree && c.spiOut == spi && c.proto() == proto && (c.ike == sa.slot || m.sas[c.ike].collision.slot == sa.slot+1) {
			return c
		}
	}
	return nil
}

// established returns the IKE SA of a connection that carries its CHILD SAs, or nil.
func (m *Machine) established(conn *Conn) *ikeSA {
	var best *ikeSA
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state == StateEstablished && sa.closeErr == nil && sa.conn == conn && (best == nil || sa.unique > best.unique) {
			best = sa
		}
	}
	return best
}

// attempt returns the IKE SA with which we are just connecting, or nil.
func (m *Machine) attempt(s *connState) *ikeSA {
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state == StateConnecting && sa.conns == s {
			return sa
		}
	}
	return nil
}

// stateOf returns the machine's record of a connection, or nil if it is configured no more.
func (m *Machine) stateOf(conn *Conn) *connState {
	for _, s := range m.conns {
		if s.conn == conn {
			return s
		}
	}
	return nil
}

// destroy takes an IKE SA and its CHILD SAs out of the tables without a word to the
// peer, and does what the configuration says should follow. err is the reason.
func (m *Machine) destroy(sa *ikeSA, err error) {
	if sa.state == StateFree {
		return
	}
	was := sa.state
	m.endIKE, m.endErr = sa.unique, err
	if sa.told {
		m.tell(Event{Kind: EvIKEDown, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Err: err})
	}
	m.ticketEnds(sa, err)
	m.bequeath(sa, err)
	for i := range m.children {
		if c := &m.children[i]; c.state != ChildFree && c.ike == sa.slot {
			if c.state == ChildInstalled || c.state == ChildRekeying {
				m.childLost(c, err)
			}
			c.heir = 0
			m.childDown(c, err)
			m.removeChild(c)
		}
	}
	if s := m.stateOf(sa.conn); s != nil && was == StateEstablished && err == ErrTimeout {
		s.dial.lost = true
	}
	lost := sa.tasks
	sa.outstanding(func(r *request) bool { lost = append(lost, r.task); return false })
	for sa.recallAny(); sa.req.active; sa.recallAny() {
		m.dropRequest(sa, err)
	}
	m.dropRequest(sa, err)
	for i := range lost {
		t := &lost[i]
		if t.kind == taskCreateChild && t.cfg.keptUp(err) {
			m.wishAgain(sa.conn, t.cfg)
		}
		if i < len(sa.tasks) { // dropRequest has told those of the request
			m.settle(t.waiters, t.outcome(err))
		}
	}
	waiters, s, old := sa.waiters, sa.conns, sa.reauth.old
	m.returnAddresses(sa)
	m.releaseSPI(sa.init.spiIn)
	m.dropFollow(sa)
	sa.inter.wipe()
	sa.init.pair.wipe()
	sa.keys.wipe()
	sa.init.unmixed.wipe()
	if sa.sealer != nil {
		sa.sealer.wipe()
		sa.opener.wipe()
	}
	*sa = ikeSA{slot: sa.slot, spiI: sa.spiI, spiR: sa.spiR}
	sa.timers.clear()
	if err == ErrTerminated {
		err = nil
	}
	m.settle(waiters, err)
	switch {
	case was != StateConnecting || s == nil:
	case old != 0:
		m.reauthFailed(s, old, err)
	default:
		m.attemptFailed(s, err)
	}
}

func (sa *ikeSA) connName() string {
	if sa.conn == nil {
		return sa.init.tried
	}
	return sa.conn.Name
}

func (m *Machine) releaseSPI(spi uint32) {
	if spi != 0 {
		m.env.FreeSPI(spi)
	}
}

// List calls visit with a snapshot of every IKE SA until it returns false.
func (m *Machine) List(visit func(*SAInfo) bool) {
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state == StateFree || sa.state == StateConnecting && sa.initiator && sa.conn == nil {
			continue // the latter is a place for the outcome of a rekeying
		}
		if !visit(m.info(sa, func(*childSA) bool { return true })) {
			return
		}
	}
}

// info takes a snapshot of an IKE SA with some of its CHILD SAs.
func (m *Machine) info(sa *ikeSA, with func(*childSA) bool) *SAInfo {
	info := &SAInfo{
		Unique: sa.unique, Conn: sa.connName(), State: sa.state, Initiator: sa.initiator,
		SPIi: sa.spiI, SPIr: sa.spiR, Path: sa.path, LocalID: sa.localID, RemoteID: sa.peerID,
		NATLocal: sa.natLocal, NATPeer: sa.natPeer, NATFake: sa.mobike.faked, Encap: sa.encap(), Suite: sa.suite, PPK: sa.ppk.id,
		Established: sa.established, RekeyAt: sa.rekeyAt, ReauthAt: sa.reauth.at, ExpireAt: sa.expireAt, Window: sa.window.size(),
		LocalAuth: sa.proofs[0], RemoteAuth: sa.proofs[1],
		LocalVIPs: sa.remote.vips, RemoteVIPs: sa.remoteVIPs(),
	}
	sa.outstanding(func(r *request) bool { info.Tasks = append(info.Tasks, r.task.kind.String()); return false })
	if sa.jobs[laneOurs] == jobSign && !sa.req.active {
		info.Tasks = append(info.Tasks, taskAuth.String()) // it is being signed
	}
	info.Active = len(info.Tasks)
	for _, t := range sa.tasks {
		info.Tasks = append(info.Tasks, t.kind.String())
	}
	sa.series(func(r *peerCreate) { info.Passive = append(info.Passive, r.kind.String()) })
	if sa.reauth.closeAt != 0 {
		info.Tasks = append(info.Tasks, "IKE_REAUTH_COMPLETE")
	}
	if sa.unique == m.endIKE && m.endErr != ErrTimeout {
		info.State = StateDeleting // as charon has it when it tells of the end
	}
	for j := range m.children {
		c := &m.children[j]
		if c.state == ChildFree || c.ike != sa.slot || !with(c) {
			continue
		}
		state := c.state
		if state == ChildRekeyed && c.outGone {
			state = ChildDeleted
		}
		info.Children = append(info.Children, ChildInfo{
			Unique: c.unique, Name: c.cfg.Name, State: state, Mode: c.mode, SPIIn: c.spiIn, SPIOut: c.spiOut,
			Suite: c.suite, DH: c.dh, KE: c.ke, Encap: c.encap, Fragments: c.frags, LocalTS: c.local, RemoteTS: c.remote,
			Installed: c.installed, RekeyAt: c.rekeyAt, ExpireAt: c.expireAt,
			Lane: c.lane.n, PerCPU: c.lane.perCPU,
		})
	}
	return info
}

// tell is event for what tells of an IKE SA and its CHILD SAs as they are now.
func (m *Machine) tell(e Event) {
	snapshot := func(unique uint32) *SAInfo {
		for i := range m.sas {
			if sa := &m.sas[i]; sa.state != StateFree && sa.unique == unique {
				info := m.info(sa, func(c *childSA) bool { return e.ChildID != 0 && (c.unique == e.ChildID || c.unique == e.Old) })
				for i := range info.Children {
					t := &info.Children[i].Passed
					t.In, t.Out, t.LastIn, t.LastOut = m.env.Usage(info.Children[i].SPIIn)
				}
				return info
			}
		}
		return nil
	}
	e.SA = snapshot(e.IKE)
	if e.Kind == EvIKERekeyed {
		e.Was = snapshot(e.Old)
	}
	m.event(e)
}

// sameHost tells whether two paths lead to the same remote address.
func sameHost(a, b netip.AddrPort) bool { return a.Addr() == b.Addr() }
