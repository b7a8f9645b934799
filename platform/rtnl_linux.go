package platform

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// dumpTries is how often a dump is repeated that the kernel says changed under way
// (NLM_F_DUMP_INTR). A router whose routes never rest gets the last one as it is.
const dumpTries = 8

// replyTimeout bounds the wait for the kernel, in seconds. It answers at once; a lost
// reply must not hold up the daemon for ever.
const replyTimeout = 5

// Netlink is a connection to rtnetlink in the network namespace of the thread that
// opened it. Its methods may be called from several goroutines.
type Netlink struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// OpenNetlink connects to rtnetlink.
func OpenNetlink() (*Netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &OpError{Op: "open", Object: "rtnetlink socket", Err: err}
	}
	// Refused by old kernels, and only a nicety: words with the errors, no copy of the
	// request in them, and dumps that the kernel filters by table.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	tv := unix.NsecToTimeval(replyTimeout * 1e9)
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})); err != nil {
		unix.Close(fd)
		return nil, &OpError{Op: "bind", Object: "rtnetlink socket", Err: err}
	}
	return &Netlink{fd: fd, buf: make([]byte, 32<<10)}, nil
}

// Close closes the connection.
func (c *Netlink) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// do sends a request and waits for its acknowledgement. Names for the error: what is
// done, and to what.
func (c *Netlink) do(r *request, op, object string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.exchange(r, unix.NLM_F_ACK)
	return opError(op, object, err)
}

// get sends a request that is answered by one message.
func (c *Netlink) get(r *request, op, object string) (nlMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ms, err := c.exchange(r, unix.NLM_F_ACK)
	if err == nil && len(ms) == 0 {
		err = errors.New("the kernel sent no answer")
	}
	if err != nil {
		return nlMessage{}, opError(op, object, err)
	}
	return ms[0], nil
}

// dump asks for a whole table. The messages are copies.
func (c *Netlink) dump(r *request, object string) ([]nlMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for try := 1; ; try++ {
		ms, err := c.exchange(r, unix.NLM_F_DUMP)
		if errors.Is(err, errDumpInterrupted) {
			if try < dumpTries {
				continue
			}
			err = nil
		}
		return ms, opError("list", object, err)
	}
}

func opError(op, object string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		hint = "run as root or with CAP_NET_ADMIN"
	}
	return &OpError{Op: op, Object: object, Err: err, Hint: hint}
}

var errDumpInterrupted = errors.New("the table changed while it was listed")

// kernelError is an errno with the kernel's explanation.
type kernelError struct {
	errno unix.Errno
	words string
}

func (e *kernelError) Error() string { return fmt.Sprintf("%v (%s)", e.errno, e.words) }
func (e *kernelError) Unwrap() error { return e.errno }

// exchange sends r and collects the answers up to the acknowledgement or the end of the
// dump.
func (c *Netlink) exchange(r *request, flags uint16) ([]nlMessage, error) {
	if c.fd < 0 {
		return nil, os.ErrClosed
	}
	c.seq++
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := ignoringEINTR(func() error { return unix.Sendto(c.fd, r.finish(c.seq, flags), 0, kernel) }); err != nil {
		return nil, err
	}
	var got []nlMessage
	interrupted := false
	for {
		b, err := c.receive()
		if err != nil {
			return nil, err
		}
		for len(b) > 0 {
			var m nlMessage
			if m, b, err = nextMessage(b); err != nil {
				return nil, err
			}
			if m.seq != c.seq {
				continue // of an exchange that was given up
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_NOOP:
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if err := endOfExchange(m); err != nil {
					return nil, err
				}
				if interrupted {
					return got, errDumpInterrupted
				}
				return got, nil
			default:
				m.body = append([]byte(nil), m.body...)
				got = append(got, m)
			}
		}
	}
}

// endOfExchange returns the error that an NLMSG_ERROR or NLMSG_DONE carries.
func endOfExchange(m nlMessage) error {
	if m.typ == unix.NLMSG_DONE {
		if len(m.body) >= 4 {
			if code := int32(native.Uint32(m.body)); code < 0 {
				return unix.Errno(-int64(code))
			}
		}
		return nil
	}
	errno, words, err := parseNetlinkError(m)
	switch {
	case err != nil:
		return err
	case errno == 0:
		return nil
	case words != "":
		return &kernelError{errno, words}
	}
	return errno
}

// receive reads one datagram of the kernel's. A datagram of another process is thrown
// away; one larger than the buffer makes the buffer grow, since the kernel sizes its
// dumps by what it saw being read.
func (c *Netlink) receive() ([]byte, error) {
	for {
		var n int
		var from unix.Sockaddr
		err := ignoringEINTR(func() (err error) {
			n, _, err = unix.Recvfrom(c.fd, c.buf, unix.MSG_PEEK|unix.MSG_TRUNC)
			return err
		})
		if err == nil && n > len(c.buf) {
			c.buf = make([]byte, n)
		}
		if err == nil {
			err = ignoringEINTR(func() (err error) {
				n, from, err = unix.Recvfrom(c.fd, c.buf, 0)
				return err
			})
		}
		if err == unix.EAGAIN {
			return nil, errors.New("the kernel did not answer in time")
		}
		if err != nil {
			return nil, err
		}
		if sa, ok := from.(*unix.SockaddrNetlink); ok && sa.Pid == 0 {
			return c.buf[:n], nil
		}
	}
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// AddressWatch tells when the host's addresses or links change: the route that the host's
// own traffic takes into the tunnel depends on the addresses (see [Network.Apply]), and
// the kernel forgets the routes of a device that was set down.
type AddressWatch struct{ f *os.File }

// WatchAddresses subscribes to changes of IPv4 and IPv6 addresses and of links.
func WatchAddresses() (*AddressWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &OpError{Op: "open", Object: "rtnetlink socket", Err: err}
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, &OpError{Op: "watch", Object: "addresses", Err: err}
	}
	return &AddressWatch{os.NewFile(uintptr(fd), "rtnetlink")}, nil
}

// Wait blocks until an address or a link may have come, gone or changed. After Close its error wraps
// os.ErrClosed. One goroutine may wait.
func (w *AddressWatch) Wait() error {
	var b [4096]byte
	_, err := w.f.Read(b[:])
	if errors.Is(err, unix.ENOBUFS) {
		return nil // so many changes that some were lost: that is a change
	}
	return err
}

// Close ends the subscription; a Wait returns.
func (w *AddressWatch) Close() error { return w.f.Close() }
