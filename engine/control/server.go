package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/engine/log"
)

// Handler executes commands.
type Handler interface {
	// Command runs the command name and returns its response; ok is false if there is no
	// such command. It runs on a goroutine of the client that asked, so several commands
	// may run at once, but only one per client.
	//
	// stream sends an event to that client if it has registered for it. It waits a while
	// for a client that reads slowly, so it must not be called with a lock held, and
	// returns ErrGone once the client is gone: the command should then end. With a nil
	// message stream sends nothing and only tells whether the client is still there.
	Command(name string, req *Message, stream func(event string, m *Message) error) (resp *Message, ok bool)
}

// ErrGone means that the client has closed its connection or was cut off.
var ErrGone = errors.New("the control client is gone")

// Options are the limits of a server; zero fields mean the values in the comments.
type Options struct {
	Clients int      // connections at once: 8
	Queue   int      // octets that may wait for one client: 256 KiB
	Total   int      // octets that may wait for all of them together: twice Queue
	Large   int      // requests over 4 KiB that are received or executed at once: 1
	Events  []string // events that clients can register for, at most 64: Events()
	Log     *log.Logger
}

const (
	defaultClients = 8
	defaultQueue   = 256 << 10
	// streamPatience is how long a command waits for its client to read before the
	// client is cut off. Events to all clients never wait.
	streamPatience = 5 * time.Second
	// receivePatience is how long the rest of a packet may take once it has begun, and how
	// long a large one waits for its turn. Between packets a client may be silent for ever.
	receivePatience = 10 * time.Second
	// largeRequest is the size in octets from which on requests take turns: a decoded one
	// takes a multiple of its size, and each client could have one.
	largeRequest = 4 << 10
	// idleGrace is how long a client must have been silent to make room for another.
	idleGrace = 10 * time.Second
	// turnedAway is how many clients at once are told that there is no room for them; it
	// takes refusePatience at most.
	turnedAway     = 4
	refusePatience = time.Second
	// closePatience bounds how long Close waits for running commands.
	closePatience = 2 * time.Second
	// crowd is from how many clients on their memory is given back to the system when most of
	// them have gone: the collector by itself takes minutes, on a router that has other uses for it.
	crowd = 16
	// acceptPause keeps a server that is out of file descriptors from spinning.
	acceptPause = 100 * time.Millisecond
)

// Server serves control clients. A client costs one goroutine, which reads, and two more
// while its command runs and while something is written to it. All methods may be called from
// any goroutine.
type Server struct {
	l       net.Listener
	h       Handler
	log     *log.Logger
	events  []string
	clients int
	queue   int
	total   int64
	receive time.Duration // receivePatience
	large   chan struct{} // holds a token for each large request
	refusal chan struct{} // holds a token for each client that is turned away

	queued atomic.Int64 // octets of all packets that wait, each counted once

	wanted [64]atomic.Int32 // registrations per event
	told   func(event string)

	mu     sync.Mutex
	open   map[*client]struct{}
	most   int // open at once, since there were few
	closed bool
	wg     sync.WaitGroup
}

// NewServer returns a server for the clients that connect to l. It owns l.
func NewServer(l net.Listener, h Handler, o Options) *Server {
	s := &Server{l: l, h: h, log: o.Log, events: o.Events, clients: o.Clients, queue: o.Queue, total: int64(o.Total), receive: receivePatience,
		large: make(chan struct{}, max(o.Large, 1)), refusal: make(chan struct{}, turnedAway), open: make(map[*client]struct{})}
	if s.events == nil {
		s.events = Events()
	}
	if len(s.events) > len(s.wanted) {
		s.events = s.events[:len(s.wanted)]
	}
	if s.clients <= 0 {
		s.clients = defaultClients
	}
	if s.queue <= 0 {
		s.queue = defaultQueue
	}
	if s.total <= 0 {
		s.total = 2 * int64(s.queue)
	}
	return s
}

// Serve accepts clients until Close, and then returns nil.
func (s *Server) Serve() error {
	for {
		conn, err := s.l.Accept()
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			switch {
			case closed:
				return nil
			case errors.Is(err, net.ErrClosed):
				return err
			}
			s.log.Log(log.Daemon, log.Warn, "control client not accepted", log.Err(err))
			time.Sleep(acceptPause)
			continue
		}
		c := &client{s: s, conn: conn, busy: make(chan struct{}, 1), gone: make(chan struct{}), space: make(chan struct{}, 1)}
		c.touch()
		if !s.enter(c) {
			s.log.Log(log.Daemon, log.Warn, "control client refused: too many are connected", log.Int("limit", s.clients))
			s.turnAway(conn)
		}
	}
}

// enter admits a client and starts its goroutine. Another one may have to go for it.
func (s *Server) enter(c *client) bool {
	s.mu.Lock()
	ok, madeRoom := s.admit(c)
	s.mu.Unlock()
	// Not with the lock held: the line may go to clients that read the log.
	if madeRoom {
		s.log.Log(log.Daemon, log.Info, "control client disconnected to make room for another: it has asked nothing for long")
	}
	return ok
}

// admit is enter with the lock held.
func (s *Server) admit(c *client) (ok, madeRoom bool) {
	if s.closed {
		return false, false
	}
	if len(s.open) >= s.clients {
		if !s.makeRoom() {
			return false, false
		}
		madeRoom = true
	}
	s.open[c] = struct{}{}
	s.most = max(s.most, len(s.open))
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c.read()
		c.cut()
		// A client's place is free again when its command has ended: clients that come,
		// ask and go cannot make goroutines pile up.
		c.busy <- struct{}{}
		s.mu.Lock()
		delete(s.open, c)
		over := s.most >= crowd && len(s.open) <= s.most/4
		if over {
			s.most = len(s.open)
		}
		s.mu.Unlock()
		if over {
			debug.FreeOSMemory()
		}
	}()
	return true, madeRoom
}

// makeRoom disconnects the client that has been idle the longest, or else those that somebody
// opened and forgot would lock everybody out. One that waits for events is not idle, nor is one
// that has just been active. It runs with the lock held.
func (s *Server) makeRoom() bool {
	var oldest *client
	for c := range s.open {
		if len(c.busy) == 0 && c.registered.Load() == 0 && (oldest == nil || c.active.Load() < oldest.active.Load()) {
			oldest = c
		}
	}
	if oldest == nil || now()-oldest.active.Load() < int64(idleGrace) {
		return false
	}
	delete(s.open, oldest)
	oldest.cut()
	return true
}

// turnAway answers the first request of a client for which there is no room, and closes the
// connection. (Closing it at once would tell the client no reason.)
func (s *Server) turnAway(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.refusal <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	if s.closed {
		_ = conn.Close()
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { <-s.refusal }()
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(refusePatience))
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err == nil {
			if pkt, err := AppendPacket(nil, CmdResponse, "", Failure(errTooMany)); err == nil {
				_, _ = conn.Write(pkt)
			}
		}
	}()
}

var errTooMany = errors.New("too many control clients are connected: end some of them")

// epoch makes times of the monotonic clock fit into a word.
var epoch = time.Now()

func now() int64 { return int64(time.Since(epoch)) }

// Wanted tells whether a client has registered for the event, so that nobody has to
// build what nobody reads.
func (s *Server) Wanted(event string) bool {
	i := slices.Index(s.events, event)
	return i >= 0 && s.wanted[i].Load() > 0
}

// Event sends the event to the clients that have registered for it. It never waits: a client
// whose queue is full is cut off, and so are those that have not read for the longest when
// all queues together are too long.
func (s *Server) Event(event string, m *Message) {
	if !s.Wanted(event) {
		return
	}
	pkt, err := AppendPacket(nil, Event, event, m)
	if err != nil {
		s.log.Log(log.Daemon, log.Error, "control event not sent", log.Str("event", event), log.Err(err))
		return
	}
	s.deliver(event, pkt, func(*client) bool { return true })
}

// deliver queues a packet for those clients that have registered for the event and that take it.
func (s *Server) deliver(event string, pkt []byte, takes func(*client) bool) {
	bit := uint64(1) << slices.Index(s.events, event)
	s.mu.Lock()
	to := make([]*client, 0, len(s.open))
	for c := range s.open {
		if c.registered.Load()&bit != 0 && takes(c) {
			to = append(to, c)
		}
	}
	s.mu.Unlock()
	p := s.hold(pkt)
	for _, c := range to {
		_ = c.enqueue(p, 0)
	}
	s.release(p)
}

// packet is an encoded packet that waits, for several clients perhaps. It is never changed.
type packet struct {
	b    []byte
	refs atomic.Int32
}

// hold makes a packet count until it is released as often as it was held.
func (s *Server) hold(b []byte) *packet {
	p := &packet{b: b}
	p.refs.Store(1)
	s.queued.Add(int64(len(b)))
	return p
}

func (s *Server) release(p *packet) {
	if p.refs.Add(-1) == 0 {
		s.queued.Add(-int64(len(p.b)))
	}
}

// Close ends the server: it stops listening, removes the socket, disconnects every
// client and waits a bounded time for commands that still run.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for c := range s.open {
		c.cut()
	}
	s.mu.Unlock()
	err := s.l.Close()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(closePatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.log.Log(log.Daemon, log.Warn, "control command still runs at the end")
	}
	return err
}

// client is one connection of a server.
type client struct {
	s          *Server
	conn       net.Conn
	registered atomic.Uint64 // bit i: s.events[i]
	active     atomic.Int64  // when it last asked for something, by now()
	busy       chan struct{} // holds a token while a command runs
	gone       chan struct{} // closed when the client is cut off
	head       [4]byte

	mu      sync.Mutex
	closed  bool // cut off: nothing is queued any more
	writing bool // write runs
	out     []*packet
	queued  int   // octets in out and in the writer's hands
	since   int64 // by now(): for how long it has taken nothing of them
	space   chan struct{}
}

func (c *client) touch() { c.active.Store(now()) }

// cut disconnects the client.
func (c *client) cut() {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	for _, p := range c.out {
		c.s.release(p)
	}
	c.out, c.queued = nil, 0
	c.mu.Unlock()
	if was {
		return
	}
	close(c.gone)
	_ = c.conn.Close()
	for i := range c.s.events {
		c.unregister(i)
	}
}

// enqueue hands a packet to the writer. If the queue is full it waits, and then cuts the
// client off. An empty queue takes any packet, so that those who read always get on.
func (c *client) enqueue(p *packet, wait time.Duration) error {
	var timeout <-chan time.Time
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return ErrGone
		}
		full := c.queued+len(p.b) > c.s.queue
		if c.queued == 0 || !full && c.s.queued.Load() <= c.s.total {
			p.refs.Add(1)
			if c.queued == 0 {
				c.since = now()
			}
			c.out = append(c.out, p)
			c.queued += len(p.b)
			if !c.writing {
				// There is no writer after cut, and before it the reader is still counted.
				c.writing = true
				c.s.wg.Add(1)
				go c.write()
			}
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if wait > 0 && timeout == nil {
			t := time.NewTimer(wait)
			defer t.Stop()
			timeout = t.C
		}
		slow := c
		if wait > 0 {
			select {
			case <-c.space:
				continue
			case <-c.gone:
				return ErrGone
			case <-timeout:
			}
		} else if !full {
			slow = c.s.slowest(c)
		}
		slow.cut()
		c.s.log.Log(log.Daemon, log.Warn, "control client cut off: it does not read", log.Int("queued", c.s.queue))
	}
}

// slowest returns the client that has left unread for the longest what waits for it.
func (s *Server) slowest(c *client) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := now()
	for o := range s.open {
		o.mu.Lock()
		if o.queued > 0 && o.since < since {
			since, c = o.since, o
		}
		o.mu.Unlock()
	}
	return c
}

// signal wakes the receiver of a channel of capacity one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// write sends what is queued, and ends.
func (c *client) write() {
	defer c.s.wg.Done()
	for {
		c.mu.Lock()
		if len(c.out) == 0 {
			c.out = nil // a burst must not pin its backing array
			c.writing = false
			c.mu.Unlock()
			return
		}
		p := c.out[0]
		c.out[0] = nil
		c.out = c.out[1:]
		c.mu.Unlock()
		_, err := c.conn.Write(p.b)
		c.s.release(p)
		if err != nil {
			c.cut()
			continue
		}
		c.mu.Lock()
		if !c.closed {
			c.queued -= len(p.b)
			c.since = now()
		}
		c.mu.Unlock()
		signal(c.space)
	}
}

// send encodes and queues a packet, waiting for a slow client.
func (c *client) send(op Op, name string, m *Message) error {
	pkt, err := AppendPacket(nil, op, name, m)
	if err != nil {
		return err
	}
	p := c.s.hold(pkt)
	defer c.s.release(p)
	return c.enqueue(p, streamPatience)
}

// next reads a packet. large tells that it has taken a place among the large ones, also with
// an error.
func (c *client) next(buf []byte) (p Packet, grown []byte, large bool, err error) {
	n, err := c.conn.Read(c.head[:])
	if err != nil {
		return p, buf, false, err
	}
	c.touch()
	_ = c.conn.SetReadDeadline(time.Now().Add(c.s.receive))
	if _, err = io.ReadFull(c.conn, c.head[n:]); err != nil {
		return p, buf, false, err
	}
	left, err := packetLength(c.head[:])
	if err != nil {
		return p, buf, false, err
	}
	if left > largeRequest {
		// What waits for this client's own command keeps no place from others. Nobody else
		// starts one.
		select {
		case c.busy <- struct{}{}:
			<-c.busy
		case <-c.gone:
			return p, buf, false, ErrGone
		}
		t := time.NewTimer(c.s.receive)
		defer t.Stop()
		select {
		case c.s.large <- struct{}{}:
			large = true
		case <-c.gone:
			return p, buf, false, ErrGone
		case <-t.C:
			return p, buf, false, errLarge
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.receive))
	}
	p, grown, err = readBody(c.conn, left, buf)
	_ = c.conn.SetReadDeadline(time.Time{})
	return p, grown, large, err
}

var errLarge = errors.New("other large requests are still being received or executed: try again")

// read takes packets from the client until it is gone or breaks the protocol.
func (c *client) read() {
	var buf []byte
	for {
		var p Packet
		var err error
		var large bool
		release := func() {
			if large {
				<-c.s.large
			}
		}
		if p, buf, large, err = c.next(buf); err != nil {
			release()
			c.broken(err)
			return
		}
		c.touch()
		switch p.Op {
		case EventRegister, EventUnregister:
			op := EventUnknown
			if c.register(p.Name, p.Op == EventRegister) {
				op = EventConfirm
			}
			release()
			err = c.send(op, "", nil)
		case CmdRequest:
			select {
			case c.busy <- struct{}{}:
			case <-c.gone:
				release()
				return
			}
			req, bad := Decode(p.Body)
			name := p.Name
			c.s.wg.Add(1)
			go func() {
				defer c.s.wg.Done()
				c.command(name, req, bad)
				release()
				c.touch()
				<-c.busy
			}()
		default:
			release()
			c.broken(fmt.Errorf("%w: %s, which only a daemon sends", ErrPacket, p.Op))
			return
		}
		if err != nil {
			return
		}
		if cap(buf) > readChunk {
			buf = nil // one large request must not cost its memory for ever
		}
	}
}

// broken tells the client why it is cut off, if it can still be told, and the log.
func (c *client) broken(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: its rest did not come within %v", ErrPacket, c.s.receive)
	} else if !errors.Is(err, ErrPacket) && err != errLarge {
		return
	}
	c.s.log.Log(log.Daemon, log.Warn, "control client cut off", log.Err(err))
	if c.send(CmdResponse, "", Failure(err)) == nil {
		// What a client does not take within a moment it will not read at all.
		t := time.NewTimer(refusePatience)
		defer t.Stop()
		for c.pending() {
			select {
			case <-c.space:
			case <-c.gone:
				return
			case <-t.C:
				return
			}
		}
	}
}

// pending tells whether something waits to be written.
func (c *client) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued > 0
}

// register notes that the client wants an event or does not want it any more. As in
// charon, giving up what was never asked for is an error.
func (c *client) register(event string, on bool) bool {
	i := slices.Index(c.s.events, event)
	if i < 0 {
		return false
	}
	bit := uint64(1) << i
	if on {
		if c.registered.Or(bit)&bit == 0 {
			c.s.count(i, 1)
		}
		select {
		case <-c.gone: // cut may have taken our registrations back before this one
			c.unregister(i)
		default:
		}
		return true
	}
	return c.unregister(i)
}

// unregister takes back the registration for event i, if there is one.
func (c *client) unregister(i int) bool {
	bit := uint64(1) << i
	if c.registered.And(^bit)&bit == 0 {
		return false
	}
	c.s.count(i, -1)
	return true
}

// command runs one request and answers it.
func (c *client) command(name string, req *Message, bad error) {
	if bad != nil {
		_ = c.send(CmdResponse, "", Failure(bad))
		return
	}
	resp, ok := c.s.h.Command(name, req, c.stream)
	if !ok {
		_ = c.send(CmdUnknown, "", nil)
		return
	}
	if err := c.send(CmdResponse, "", resp); err != nil && !errors.Is(err, ErrGone) {
		c.s.log.Log(log.Daemon, log.Error, "control response not sent", log.Str("command", name), log.Err(err))
		_ = c.send(CmdResponse, "", Failure(err))
	}
}

// stream is what a command sends its events through.
func (c *client) stream(event string, m *Message) error {
	select {
	case <-c.gone:
		return ErrGone
	default:
	}
	if m == nil {
		return nil
	}
	i := slices.Index(c.s.events, event)
	if i < 0 || c.registered.Load()>>i&1 == 0 {
		return nil
	}
	return c.send(Event, event, m)
}
