package control

import (
	"errors"
	"net"
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
	Events  []string // events that clients can register for, at most 64: Events()
	Log     *log.Logger
}

const (
	defaultClients = 8
	defaultQueue   = 256 << 10
	// streamPatience is how long a command waits for its client to read before the
	// client is cut off. Events to all clients never wait.
	streamPatience = 5 * time.Second
	// closePatience bounds how long Close waits for running commands.
	closePatience = 2 * time.Second
	// acceptPause keeps a server that is out of file descriptors from spinning.
	acceptPause = 100 * time.Millisecond
)

// Server serves control clients. A client costs at most three goroutines: one reads,
// one writes, one runs its command. All methods may be called from any goroutine.
type Server struct {
	l       net.Listener
	h       Handler
	log     *log.Logger
	events  []string
	clients int
	queue   int

	wanted [64]atomic.Int32 // registrations per event
	told   func(event string)

	mu     sync.Mutex
	open   map[*client]struct{}
	closed bool
	wg     sync.WaitGroup
}

// NewServer returns a server for the clients that connect to l. It owns l.
func NewServer(l net.Listener, h Handler, o Options) *Server {
	s := &Server{l: l, h: h, log: o.Log, events: o.Events, clients: o.Clients, queue: o.Queue,
		open: make(map[*client]struct{})}
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
		c := &client{s: s, conn: conn, busy: make(chan struct{}, 1), gone: make(chan struct{}),
			wake: make(chan struct{}, 1), space: make(chan struct{}, 1)}
		if !s.enter(c) {
			_ = conn.Close()
			s.log.Log(log.Daemon, log.Warn, "control client refused: too many are connected", log.Int("limit", s.clients))
		}
	}
}

// enter admits a client and starts its goroutines.
func (s *Server) enter(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) >= s.clients {
		return false
	}
	s.open[c] = struct{}{}
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		c.write()
	}()
	go func() {
		defer s.wg.Done()
		c.read()
		c.cut()
		// A client's place is free again when its command has ended: clients that come,
		// ask and go cannot make goroutines pile up.
		c.busy <- struct{}{}
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
	}()
	return true
}

// Wanted tells whether a client has registered for the event, so that nobody has to
// build what nobody reads.
func (s *Server) Wanted(event string) bool {
	i := slices.Index(s.events, event)
	return i >= 0 && s.wanted[i].Load() > 0
}

// Event sends the event to the clients that have registered for it. It never waits: a
// client whose queue is full is cut off.
func (s *Server) Event(event string, m *Message) {
	if !s.Wanted(event) {
		return
	}
	pkt, err := AppendPacket(nil, Event, event, m)
	if err != nil {
		s.log.Log(log.Daemon, log.Error, "control event not sent", log.Str("event", event), log.Err(err))
		return
	}
	bit := uint64(1) << slices.Index(s.events, event)
	s.mu.Lock()
	to := make([]*client, 0, len(s.open))
	for c := range s.open {
		if c.registered.Load()&bit != 0 {
			to = append(to, c)
		}
	}
	s.mu.Unlock()
	for _, c := range to {
		_ = c.enqueue(pkt, 0)
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
	busy       chan struct{} // holds a token while a command runs
	gone       chan struct{} // closed when the client is cut off
	once       sync.Once

	mu     sync.Mutex
	out    [][]byte // packets that wait; shared with other clients, never changed
	queued int      // octets in out and in the writer's hands
	wake   chan struct{}
	space  chan struct{}
}

// cut disconnects the client.
func (c *client) cut() {
	c.once.Do(func() {
		close(c.gone)
		_ = c.conn.Close()
		for i := range c.s.events {
			c.unregister(i)
		}
	})
}

// enqueue hands a packet to the writer. If the queue is full it waits, and then cuts
// the client off.
func (c *client) enqueue(pkt []byte, wait time.Duration) error {
	var timeout <-chan time.Time
	for {
		c.mu.Lock()
		if c.queued == 0 || c.queued+len(pkt) <= c.s.queue {
			c.out = append(c.out, pkt)
			c.queued += len(pkt)
			c.mu.Unlock()
			signal(c.wake)
			select {
			case <-c.gone:
				return ErrGone
			default:
				return nil
			}
		}
		c.mu.Unlock()
		if wait > 0 && timeout == nil {
			t := time.NewTimer(wait)
			defer t.Stop()
			timeout = t.C
		}
		if wait > 0 {
			select {
			case <-c.space:
				continue
			case <-c.gone:
				return ErrGone
			case <-timeout:
			}
		}
		c.s.log.Log(log.Daemon, log.Warn, "control client cut off: it does not read", log.Int("queued", c.s.queue))
		c.cut()
		return ErrGone
	}
}

// signal wakes the receiver of a channel of capacity one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// write sends what is queued until the client is gone.
func (c *client) write() {
	for {
		select {
		case <-c.wake:
		case <-c.gone:
			return
		}
		for {
			c.mu.Lock()
			if len(c.out) == 0 {
				c.out = nil // a burst must not pin its backing array
				c.mu.Unlock()
				break
			}
			pkt := c.out[0]
			c.out[0] = nil
			c.out = c.out[1:]
			c.mu.Unlock()
			if _, err := c.conn.Write(pkt); err != nil {
				c.cut()
				return
			}
			c.mu.Lock()
			c.queued -= len(pkt)
			c.mu.Unlock()
			signal(c.space)
		}
	}
}

// send encodes and queues a packet, waiting for a slow client.
func (c *client) send(op Op, name string, m *Message) error {
	pkt, err := AppendPacket(nil, op, name, m)
	if err != nil {
		return err
	}
	return c.enqueue(pkt, streamPatience)
}

// read takes packets from the client until it is gone or breaks the protocol.
func (c *client) read() {
	var buf []byte
	for {
		var p Packet
		var err error
		if p, buf, err = ReadPacket(c.conn, buf); err != nil {
			if errors.Is(err, ErrPacket) {
				c.s.log.Log(log.Daemon, log.Warn, "control client cut off", log.Err(err))
			}
			return
		}
		switch p.Op {
		case EventRegister, EventUnregister:
			op := EventUnknown
			if c.register(p.Name, p.Op == EventRegister) {
				op = EventConfirm
			}
			err = c.send(op, "", nil)
		case CmdRequest:
			select {
			case c.busy <- struct{}{}:
			case <-c.gone:
				return
			}
			req, bad := Decode(p.Body)
			name := p.Name
			c.s.wg.Add(1)
			go func() {
				defer c.s.wg.Done()
				c.command(name, req, bad)
				<-c.busy
			}()
		default:
			c.s.log.Log(log.Daemon, log.Warn, "control client cut off: only a daemon sends such packets", log.Str("packet", p.Op.String()))
			return
		}
		if err != nil {
			return
		}
		if cap(buf) > 16*readChunk {
			buf = nil // one large request must not cost its memory for ever
		}
	}
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
