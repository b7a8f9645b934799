package engine

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"postern/board"
	"postern/engine/fetch"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// machine is the part of *ike.Machine that the loop uses. Tests script it.
type machine interface {
	Configure(now ike.Time, cfg ike.Config) error
	Datagram(now ike.Time, p ike.Path, b []byte)
	Command(now ike.Time, c ike.Command)
	Timeout(now ike.Time)
	Done(now ike.Time, r ike.Result)
	Resolved(now ike.Time, name string, addrs []netip.Addr, ttl time.Duration, err error)
	Fetched(now ike.Time, id uint64, got []pki.Fetched)
	Next() (ike.Output, bool)
	Deadline() (at time.Duration, ok bool)
	List(visit func(*ike.SAInfo) bool)
	SetTicketKeys(keys []ike.TicketKey)
	Leases(visit func(ike.Lease) bool)
	Pools(visit func(ike.PoolInfo))
	Counters(visit func(conn string, c *ike.Counters))
	ResetCounters(conn string, each bool)
}

// Limits of the loop.
const (
	// commandQueue is how many wishes of the data path may wait for the loop. What finds
	// no room is asked for again by the next packet.
	commandQueue = 16
	// datagramTurn is how many datagrams the loop takes before it looks at its timers and
	// at everybody else.
	datagramTurn = 16
	// idleWake is when a loop without any deadline looks at the clock again.
	idleWake = time.Hour
	// closeTime bounds how long the loop waits at the end for the peers to confirm that
	// their SAs are deleted.
	closeTime = 3 * time.Second
)

var errStopping = errors.New("the daemon is stopping")

// ikeLoop owns the IKE machine, and with it the writing side of SAD and SPD. One
// goroutine, run, does everything; others reach it through its queues and through do.
//
// Each turn takes one input (datagrams, a wish, a result, a call, the clock), gives it
// to the machine, and then does what the machine says, strictly in its order, so that
// an inbound SA is in the SAD before the message that announces it leaves.
type ikeLoop struct {
	m       machine
	d       *datapath
	out     *outbound // for packets that have waited
	early   *inbound  // for packets that came before their SA
	net     Network
	device  string
	log     *log.Logger
	applied []esp.Policy // what the kernel was told last
	now     func() ike.Time

	wishes  chan ike.Command
	calls   chan func()
	feed    chan *ike.Work
	results chan ike.Result
	stopped chan struct{} // closed when run has returned
	// addressed tells that the host's addresses have changed, which readdress follows.
	addressed chan struct{}
	readdress func()
	// rotate looks every hour whether the ticket keys are too old; nil: nobody does.
	rotate   func()
	rotateAt time.Duration
	// manual are the SAs that nobody negotiates. reserve gives one more numbers and tells
	// whether there is one; noteTops looks after them with each tick. nil: nobody does.
	manual   []*manualSA
	reserve  func(spi uint32) bool
	noteTops func()

	busy     atomic.Int32 // workers that compute
	jobs     []*ike.Work  // no worker has taken these; at most two per IKE SA
	waiters  map[uint64]func(error)
	tag      uint64
	limit    *log.Limiter
	traced   traceBudget
	patience time.Duration    // closeTime
	rekeySeq uint64           // rekeySequence
	onEvent  func(*ike.Event) // told of every event, on the loop's goroutine; may be nil

	dgram    ikeDatagram
	sendBuf  []byte
	sendOne  [1]esp.Datagram
	nextTick time.Duration
	nat      map[uint32]*natState
	lookups  lookups
	fetches  *fetch.Queue
	noWay    []ike.Path   // along which the system could not send, to be told to the machine
	pacer    addressPacer // of readdress
	roamer   addressPacer // of what the machine is told
	addrs    hostAddrs
	links    links
	// keepAlive is the longest silence towards a NAT; 0: no keepalives.
	keepAlive time.Duration
	// exportKeys keeps the keys of SAs that are made from now on for the control socket.
	exportKeys bool
	devices    map[string]*childDevice // by name
	updowns    updowns
	// leases are those of the address pools; saveLeases writes them down when it is time.
	leases     leaseKeeper
	saveLeases func(now time.Duration)
	// assigned is what gateways have assigned; assign and unassign change it.
	assigned  assignments
	assign    func(*ike.Assigned)
	unassign  func(conn string)
	dummies   dummies
	reqids    map[childKey]int // see reqid
	lastReqid int
	mtu       int // of the TUN device
	unpackers uint32
}

// newIKELoop makes the loop. The machine is set by the caller, whose Env is env().
func newIKELoop(d *datapath, net Network, lg *log.Logger, now func() ike.Time) *ikeLoop {
	l := &ikeLoop{
		d: d, net: net, log: lg, now: now,
		// One buffer: what waits leaves it one by one, before the next is sealed.
		out:     newOutbound(d, d.ctxLoop(), make([][]byte, 1), flowCache{}),
		early:   newInbound(d, sockNATT4, d.ctxEarly(), make([][]byte, d.held.share)),
		wishes:  make(chan ike.Command, commandQueue),
		calls:   make(chan func()),
		feed:    make(chan *ike.Work),
		results: make(chan ike.Result),
		stopped: make(chan struct{}),
		// One is enough: it is not said what has changed.
		addressed: make(chan struct{}, 1),
		waiters:   make(map[uint64]func(error)),
		patience:  closeTime,
		rekeySeq:  rekeySequence,
		limit:     log.NewLimiter(eventInterval, eventKeys),
		dgram:     ikeDatagram{buf: make([]byte, d.udp.size)},
		nat:       make(map[uint32]*natState),
		roamer:    addressPacer{every: roamInterval},
		keepAlive: keepaliveInterval,
		lookups:   newLookups(),
		links:     newLinks(),
		devices:   make(map[string]*childDevice),
		dummies:   newDummies(d.made),
		mtu:       minMTU,
	}
	l.fetches = l.newFetches(OS{}, board.Profile{})
	return l
}

// acquire hands the data path's wish for an SA to the loop.
func (l *ikeLoop) acquire(p *policy, f *esp.Flow) bool {
	select {
	case l.wishes <- ike.Command{Kind: ike.CmdAcquire, Conn: p.conn, Child: p.child, Flow: *f}:
		return true
	default:
		return false
	}
}

// moved tells the loop that the peer of an SA sends from another address.
func (l *ikeLoop) moved(sa *inSA, p ike.Path) bool {
	select {
	case l.wishes <- ike.Command{Kind: ike.CmdMoved, SPI: sa.spi, Path: p}:
		return true
	default:
		return false
	}
}

// unknown tells the loop that a packet came for an SPI that is not here.
func (l *ikeLoop) unknown(spi uint32, p ike.Path) bool {
	return l.wish(ike.Command{Kind: ike.CmdInvalidSPI, SPI: spi, Path: p})
}

// limited tells the loop that a pair of SAs has reached its soft or its hard limit.
func (l *ikeLoop) limited(spi uint32, hard bool) bool {
	return l.wish(ike.Command{Kind: ike.CmdLimit, SPI: spi, Hard: hard})
}

// wish hands a command to the loop without waiting; false if it is too busy.
func (l *ikeLoop) wish(c ike.Command) bool {
	select {
	case l.wishes <- c:
		return true
	default:
		return false
	}
}

// do runs f on the loop's goroutine and returns when it has. It must not be called
// from there.
//
//go:noinline
func (l *ikeLoop) do(f func()) error {
	done := make(chan struct{})
	select {
	case l.calls <- func() { f(); close(done) }:
	case <-l.stopped:
		return errStopping
	}
	select {
	case <-done:
		return nil
	case <-l.stopped:
		return errStopping
	}
}

// work computes what the machine finds too slow, until stop is closed.
func (l *ikeLoop) work(stop <-chan struct{}) {
	for {
		select {
		case w := <-l.feed:
			l.busy.Add(1)
			r := w.Run()
			l.busy.Add(-1)
			select {
			case l.results <- r:
			case <-stop:
				return
			}
		case <-stop:
			return
		}
	}
}

// run is the loop. When stop is closed it terminates every SA, waits for the peers a
// bounded time, and returns.
func (l *ikeLoop) run(stop <-chan struct{}) {
	defer close(l.stopped)
	defer l.lookups.cancel()
	defer l.fetches.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var end <-chan time.Time
	over := false
	l.nextTick = l.now().Mono + l.tickEvery()
	for !over {
		now := l.now()
		wake := now.Mono + idleWake
		if l.d.sad.used() > 0 {
			wake = l.nextTick // nothing to look after otherwise: let the device sleep
		}
		if at, ok := l.m.Deadline(); ok {
			wake = min(wake, at)
		}
		if l.dummies.next != 0 {
			wake = min(wake, l.dummies.next)
		}
		for _, p := range []*addressPacer{&l.pacer, &l.roamer} {
			if p.next != 0 {
				wake = min(wake, p.next)
			}
		}
		if at, ok := l.leases.due(); ok {
			wake = min(wake, at)
		}
		timer.Reset(max(wake-now.Mono, 0))

		feed, job := chan *ike.Work(nil), (*ike.Work)(nil)
		if len(l.jobs) > 0 {
			feed, job = l.feed, l.jobs[0]
		}
		select {
		case <-l.d.ikeq.wake:
			l.datagrams()
		case c := <-l.wishes:
			if c.Kind == ike.CmdLimit && l.reserve != nil && l.reserve(c.SPI) {
				break
			}
			l.m.Command(l.now(), c)
			l.drain()
		case t := <-l.links.news:
			l.tooBig(t)
		case f := <-l.calls:
			f()
		case <-l.addressed:
			l.addrs.stale()
			l.pacer.changed(l.now().Mono)
			l.roamer.changed(l.now().Mono)
		case r := <-l.results:
			l.m.Done(l.now(), r)
			l.drain()
		case a := <-l.lookups.answers:
			l.lookups.answered()
			l.m.Resolved(l.now(), a.name, a.addrs, a.ttl, a.err)
			l.drain()
		case e := <-l.fetches.Events():
			l.fetches.Handle(e)
			l.drain()
		case feed <- job:
			l.jobs[0] = nil
			l.jobs = l.jobs[1:]
		case <-timer.C:
			now := l.now()
			l.m.Timeout(now)
			l.drain()
			l.sendDummies(now.Mono)
			if l.saveLeases != nil {
				l.saveLeases(now.Mono)
			}
			if l.roamer.due(now.Mono) {
				l.m.Command(now, ike.Command{Kind: ike.CmdAddresses})
				l.drain()
			}
			if l.pacer.due(now.Mono) {
				l.readdress()
				l.m.Command(now, ike.Command{Kind: ike.CmdAddresses})
				l.drain()
			}
			if now.Mono >= l.nextTick {
				l.tick(now.Mono)
				l.nextTick = now.Mono + l.tickEvery()
			}
		case <-stop:
			stop = nil
			t := time.NewTimer(l.patience)
			defer t.Stop()
			end = t.C
			l.command(ike.Command{Kind: ike.CmdTerminate}, func(error) { over = true })
		case <-end:
			l.log.Log(log.IKE, log.Warn, "not every peer has confirmed the end of its SAs; they will find out by their liveness checks")
			l.m.Command(l.now(), ike.Command{Kind: ike.CmdTerminate, Force: true}) // whoever has not been told yet
			l.drain()
			over = true
		}
	}
	for _, done := range l.waiters {
		done(errStopping)
	}
}

// datagrams gives waiting datagrams to the machine.
func (l *ikeLoop) datagrams() {
	for range datagramTurn {
		if !l.d.ikeq.pop(&l.dgram) {
			return
		}
		l.m.Datagram(l.now(), l.dgram.path, l.dgram.buf[:l.dgram.n])
		l.drain()
	}
	select { // there may be more
	case l.d.ikeq.wake <- struct{}{}:
	default:
	}
}

// command gives a command to the machine and calls done with its outcome, now or later,
// on the loop's goroutine. It returns the tag by which forget gives up waiting.
func (l *ikeLoop) command(c ike.Command, done func(error)) (tag uint64) {
	l.tag++
	c.Tag = l.tag
	l.waiters[c.Tag] = done
	l.m.Command(l.now(), c)
	l.drain()
	return c.Tag
}

// forget stops waiting for a command, which goes on all the same.
func (l *ikeLoop) forget(tag uint64) { delete(l.waiters, tag) }

// drain does what the machine says, in its order.
func (l *ikeLoop) drain() {
	for again := true; again; {
		l.drainOnce()
		again = l.tellNoWay()
		again = l.tellFetched() || again
	}
}

func (l *ikeLoop) drainOnce() {
	for o, ok := l.m.Next(); ok; o, ok = l.m.Next() {
		switch o.Kind {
		case ike.OutSend:
			l.send(o.Path, o.Data)
		case ike.OutAddSA:
			l.addSA(o.Add)
		case ike.OutDelSA:
			l.delSA(o.SPI, o.Inbound, o.Dir)
		case ike.OutUseSA:
			l.useSA(o.SPI, o.Inbound)
		case ike.OutMoveSA:
			l.moveSA(o.Inbound, o.Path, o.Encap)
		case ike.OutWork:
			l.jobs = append(l.jobs, o.Work)
		case ike.OutEvent:
			l.event(&o.Event)
		case ike.OutAssign:
			l.assign(o.Assigned)
		case ike.OutUnassign:
			l.unassign(o.Name)
		case ike.OutLeases:
			l.leases.changed = true
		case ike.OutResolve:
			l.lookups.ask(o.Name)
		case ike.OutFetch:
			l.fetches.Ask(o.FetchID, o.Fetches)
		case ike.OutKeep:
			l.fetches.Keep(o.Kept)
		}
	}
}

// send sends an IKE message through the socket of its path.
func (l *ikeLoop) send(p ike.Path, b []byte) {
	s := sockIKE4
	l.sendBuf = l.sendBuf[:0]
	if p.NATT {
		s = sockNATT4
		l.sendBuf = append(l.sendBuf, 0, 0, 0, 0) // the non-ESP marker
	}
	l.sendBuf = append(l.sendBuf, b...)
	if l.transmit(s.family(p.Remote.Addr()), p, l.sendBuf) {
		l.d.counts.inc(cIKEOut)
	}
}

// transmit sends one datagram along a path.
func (l *ikeLoop) transmit(s sockID, p ike.Path, b []byte) bool {
	if len(l.d.socks[s]) == 0 {
		l.d.counts.inc(cIKESendError)
		if l.d.mayNote(noteSend, l.now().Mono) {
			l.log.Log(log.Net, log.Warn, "nothing can be sent to the peer: its address family is not available here",
				log.AddrPort("to", p.Remote), log.Str("socket", s.String()))
		}
		return false
	}
	local := p.Local.Addr()
	if local.IsUnspecified() {
		local = netip.Addr{}
	}
	l.sendOne[0] = esp.Datagram{Buf: b, N: len(b), Local: local, Remote: p.Remote}
	sent, err := l.d.write(s, 0, l.sendOne[:], cIKESendError)
	if errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) {
		l.noWay = append(l.noWay, p)
	}
	return sent == 1
}

// tellNoWay tells the machine along which paths its messages could not leave.
func (l *ikeLoop) tellNoWay() bool {
	if len(l.noWay) == 0 {
		return false
	}
	for _, p := range l.noWay {
		l.m.Command(l.now(), ike.Command{Kind: ike.CmdUnreachable, Path: p})
	}
	l.noWay = l.noWay[:0]
	return true
}

// env is what the machine asks its surroundings for. The machine calls it only from
// within its own methods, so on the loop's goroutine.
type env struct{ l *ikeLoop }

func (e env) Random(b []byte) {
	_, _ = rand.Read(b) // it never fails: since Go 1.24 the process ends instead
}

func (e env) AllocSPI(worker uint8) (uint32, bool) {
	n := len(e.l.d.socks[sockNATT4])
	if worker == 0 || int(worker) > n {
		return e.l.d.sad.alloc()
	}
	return e.l.d.sad.allocFor(uint32(worker-1), uint32(n))
}

func (e env) FreeSPI(spi uint32) {
	in, out := e.l.d.sad.release(spi)
	e.l.retire(in, out)
	e.l.unhold(spi)
}

func (e env) Usage(spi uint32) (in, out esp.Usage, lastIn, lastOut time.Duration) {
	return e.l.d.sad.usage(&e.l.d.turns, spi)
}

func (e env) Source(remote netip.Addr) (netip.Addr, bool) {
	a, err := e.l.net.Source(remote)
	if err != nil {
		e.l.log.Log(log.Net, log.Debug, "no route to the peer", log.Addr("peer", remote), log.Err(err))
		return netip.Addr{}, false
	}
	return a.Unmap(), a.IsValid()
}

func (e env) Addresses() ([]netip.Addr, bool) { return e.l.addrs.get(e.l.now().Mono) }
