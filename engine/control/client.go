package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// What a Client's errors wrap.
var (
	// ErrNotRunning: nobody listens on the control socket.
	ErrNotRunning = errors.New("no daemon is running there")
	// ErrUnknownCommand: the daemon does not know the command.
	ErrUnknownCommand = errors.New("the daemon does not know the command")
	// ErrUnknownEvent: the daemon has no such event.
	ErrUnknownEvent = errors.New("the daemon has no such event")
	// ErrClosed: the daemon closed the connection, most likely because it ended.
	ErrClosed = errors.New("the daemon closed the connection")
)

// Client is a connection to a daemon. It runs one command at a time and is for one
// goroutine; Close and SetDeadline may be called from others.
type Client struct {
	// Ours has every request ask for the keys that charon does not have (KeyOurs).
	Ours bool

	conn   net.Conn
	buf    []byte
	broken error // after this the stream is out of step
}

// Dial connects to the daemon behind the control socket at path. The error wraps
// ErrNotRunning if there is none, os.ErrPermission if we may not.
func Dial(path string) (*Client, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		return NewClient(conn), nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("control socket %s: %w", path, ErrNotRunning)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("control socket %s: %w", path, os.ErrPermission)
	}
	return nil, fmt.Errorf("control socket %s: %w", path, err)
}

// NewClient returns a client that talks over conn, and owns it.
func NewClient(conn net.Conn) *Client { return &Client{conn: conn} }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// SetDeadline sets when what is under way fails with os.ErrDeadlineExceeded; the zero
// time means never.
func (c *Client) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// Call runs a command and returns its response; req may be nil. What the daemon calls
// a failure (success = no) is a response: see Check.
func (c *Client) Call(name string, req *Message) (*Message, error) {
	return c.call(name, req, "", nil)
}

// CallStream is Call for a command that streams events: it registers for event, has
// fn called with each one, and unregisters. An error of fn is returned after the stream
// has been read to its end.
func (c *Client) CallStream(name, event string, req *Message, fn func(*Message) error) (*Message, error) {
	if err := c.register(EventRegister, event, nil); err != nil {
		return nil, err
	}
	resp, err := c.call(name, req, event, fn)
	if c.broken == nil {
		if e := c.register(EventUnregister, event, nil); err == nil {
			err = e
		}
	}
	return resp, err
}

// Listen registers for the events and has fn called with each one until fn or the
// connection returns an error, which it returns.
func (c *Client) Listen(fn func(event string, m *Message) error, events ...string) error {
	deliver := func(p Packet) error {
		m, err := Decode(p.Body)
		if err != nil {
			return err
		}
		return fn(p.Name, m)
	}
	for _, e := range events {
		if err := c.register(EventRegister, e, deliver); err != nil {
			return err
		}
	}
	for {
		p, err := c.next()
		if err != nil {
			return err
		}
		if p.Op != Event {
			return c.fail(fmt.Errorf("%w: %s without a request", ErrPacket, p.Op))
		}
		if err = deliver(p); err != nil {
			return err
		}
	}
}

func (c *Client) call(name string, req *Message, event string, fn func(*Message) error) (*Message, error) {
	if c.Ours {
		if req == nil {
			req = new(Message)
		}
		req.SetBool(KeyOurs, true)
	}
	if err := c.send(CmdRequest, name, req); err != nil {
		return nil, err
	}
	var failed error
	for {
		p, err := c.next()
		if err != nil {
			return nil, err
		}
		switch p.Op {
		case Event:
			if p.Name != event || fn == nil || failed != nil {
				continue
			}
			m, err := Decode(p.Body)
			if err == nil {
				err = fn(m)
			}
			failed = err
		case CmdResponse:
			m, err := Decode(p.Body)
			if failed != nil {
				err = failed
			}
			return m, err
		case CmdUnknown:
			return nil, fmt.Errorf("%s: %w", name, ErrUnknownCommand)
		default:
			return nil, c.fail(fmt.Errorf("%w: %s in answer to a request", ErrPacket, p.Op))
		}
	}
}

// register registers for an event or unregisters. Events that arrive before the answer
// go to deliver, if there is one.
func (c *Client) register(op Op, event string, deliver func(Packet) error) error {
	if err := c.send(op, event, nil); err != nil {
		return err
	}
	for {
		p, err := c.next()
		if err != nil {
			return err
		}
		switch p.Op {
		case Event:
			if deliver != nil {
				if err = deliver(p); err != nil {
					return err
				}
			}
		case EventConfirm:
			return nil
		case EventUnknown:
			return fmt.Errorf("%s: %w", event, ErrUnknownEvent)
		default:
			return c.fail(fmt.Errorf("%w: %s in answer to a registration", ErrPacket, p.Op))
		}
	}
}

func (c *Client) send(op Op, name string, m *Message) error {
	if c.broken != nil {
		return c.broken
	}
	pkt, err := AppendPacket(nil, op, name, m)
	if err != nil {
		return err
	}
	if _, err = c.conn.Write(pkt); err != nil {
		return c.fail(err)
	}
	return nil
}

func (c *Client) next() (Packet, error) {
	p, buf, err := ReadPacket(c.conn, c.buf)
	c.buf = buf
	if err != nil {
		return p, c.fail(err)
	}
	return p, nil
}

// fail notes that the connection is of no use any more.
func (c *Client) fail(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		err = ErrClosed
	}
	c.broken = err
	return err
}
