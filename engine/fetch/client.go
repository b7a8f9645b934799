package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// Conn is a stream to a server. After SetDeadline its calls end at that time with an error
// that wraps os.ErrDeadlineExceeded.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// Client fetches. Its fields are set once; it may be used from several goroutines then.
type Client struct {
	// Resolve returns the addresses of a name; nil: only URLs with addresses can be fetched.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error)
	// Dial connects to a server, at the latest when ctx ends. Its errors name no address.
	Dial func(ctx context.Context, to netip.AddrPort) (Conn, error)
}

// Request is what to fetch. Without Post it is a GET.
type Request struct {
	URL  string
	Post []byte
	Type string // media type of Post
	Max  int    // octets of the answer that are taken
}

// Error is a fetch that failed.
type Error struct {
	URL string // where the trouble was, maybe after redirections
	Err error
}

// Error names the URL and the cause.
func (e *Error) Error() string { return e.URL + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Do fetches, until ctx ends at the latest, and returns the body, which is the caller's. It
// blocks, so it is called from a goroutine of its own. The error is an *Error.
func (c *Client) Do(ctx context.Context, r *Request) ([]byte, error) {
	t, err := parse(r.URL)
	if err != nil {
		return nil, &Error{safe(r.URL), err}
	}
	for hop := 0; ; hop++ {
		out, err := c.once(ctx, &t, r, hop)
		switch {
		case err != nil:
		case out.status == 200:
			return out.body, nil
		case out.status == 303 && r.Post != nil:
			err = errMethod
		case out.status == 301, out.status == 302, out.status == 303, out.status == 307, out.status == 308:
			if hop == maxRedirects {
				err = errRedirects
				break
			}
			var next target
			if next, err = t.follow(out.location); err == nil {
				t = next
				continue
			}
			err = fmt.Errorf("it is redirected to %s: %w", safe(out.location), err)
		default:
			err = fmt.Errorf("the server answers with status %d", out.status)
		}
		return nil, &Error{t.String(), err}
	}
}

// once sends one request and reads its answer.
func (c *Client) once(ctx context.Context, t *target, r *Request, hop int) (*response, error) {
	conn, err := c.connect(ctx, t, hop > 0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err = conn.Write(r.encode(t)); err == nil {
		var out *response
		if out, err = readResponse(conn, r.Max); err == nil {
			return out, nil
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errSlow(ctx)
	}
	return nil, err
}

// errSlow says why a call ended when ctx did.
func errSlow(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errors.New("the server does not answer in time")
}

// connect returns a connection to one of the host's addresses. Each gets an equal part of
// the time that is left, so that one that does not answer keeps nobody from the others.
func (c *Client) connect(ctx context.Context, t *target, redirected bool) (Conn, error) {
	list := []netip.Addr{t.addr}
	if t.name != "" {
		if c.Resolve == nil {
			return nil, errNoAddress
		}
		var err error
		if list, _, err = c.Resolve(ctx, t.name); err != nil {
			return nil, err
		}
	}
	list = list[:min(len(list), maxAddrs)]
	err := errNoAddress
	for i, a := range list {
		if a = a.Unmap(); !allowed(a, redirected) {
			err = errPlace
			continue
		}
		one, cancel := share(ctx, len(list)-i)
		var conn Conn
		conn, err = c.Dial(one, netip.AddrPortFrom(a, t.port))
		if err == nil {
			cancel()
			return conn, nil
		}
		if one.Err() != nil {
			err = errSlow(one)
		}
		cancel()
		err = fmt.Errorf("%s: %w", a, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// share gives one of n tries its part of the time that is left.
func share(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok && n > 1 {
		return context.WithTimeout(ctx, time.Until(end)/time.Duration(n))
	}
	return context.WithCancel(ctx)
}

// allowed tells whether a server may be at that address. Whoever answers over HTTP can
// redirect, and anybody on the way can answer: nobody is to send us to services of this host
// or of its links that trust whoever reaches them. A URL of a certificate or of the
// configuration may: its author is trusted.
func allowed(a netip.Addr, redirected bool) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	return !redirected || !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// encode writes the request (RFC 9112 section 3).
func (r *Request) encode(t *target) []byte {
	b := make([]byte, 0, 256+len(t.path)+len(r.Post))
	if r.Post != nil {
		b = append(b, "POST "...)
	} else {
		b = append(b, "GET "...)
	}
	b = append(b, t.path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, t.host...)
	b = append(b, "\r\nUser-Agent: postern\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n"...)
	if r.Post != nil {
		b = append(b, "Content-Type: "...)
		b = append(b, r.Type...)
		b = append(b, "\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(r.Post)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	return append(b, r.Post...)
}

// safe returns a text of somebody else's for a log: short, and without control characters.
func safe(s string) string {
	const most = 128
	b := make([]byte, 0, most)
	for i := 0; i < len(s) && i < most; i++ {
		c := s[i]
		if c < ' ' || c >= 0x7f {
			c = '?'
		}
		b = append(b, c)
	}
	if len(s) > most {
		b = append(b, "..."...)
	}
	return string(b)
}
