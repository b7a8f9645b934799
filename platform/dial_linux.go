package platform

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Dialer connects over TCP past the tunnel, for what has to be fetched before there is one:
// its packets carry the mark of the tunnel's own. Package net's would have no mark, and brings
// its resolver along. The zero value is ready; it may be used from several goroutines.
type Dialer struct {
	unmarked bool // for tests without privileges
}

// Dial connects to a server and returns the stream. It waits until the connection is there or
// ctx ends. Errors do not say where to: the caller knows. Reads and writes of the stream fail
// once the deadline has passed that was set last, which is none at first.
func (d *Dialer) Dial(ctx context.Context, to netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(int(family(to.Addr().Unmap().Is6())), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, &OpError{Op: "connect", Err: err}
	}
	if !d.unmarked {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark)
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to.Addr(), to.Port()))
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, &OpError{Op: "connect", Err: err}
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err := connected(ctx, f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// connected waits until the socket is connected.
func connected(ctx context.Context, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	var cause error
	err = rc.Write(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			cause = err
		case n != 0:
			cause = unix.Errno(n)
		default:
			if _, err := unix.Getpeername(int(fd)); err != nil {
				return false // not yet: wait until it can be written to
			}
		}
		return true
	})
	switch {
	case !stop() || errors.Is(err, os.ErrDeadlineExceeded):
		cause = errors.New("no answer")
	case err != nil:
		cause = err
	}
	if cause != nil {
		return &OpError{Op: "connect", Err: cause}
	}
	return nil
}
