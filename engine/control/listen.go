package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// ErrInUse is returned by Listen when another daemon answers on the socket.
var ErrInUse = errors.New("another daemon answers there")

// maxSocketPath is the longest path of a Unix socket in octets (sun_path without its
// zero octet).
const maxSocketPath = 107

// Listener is a listening control socket. Its Close removes the socket from the file
// system if it is still its own.
type Listener struct {
	*net.UnixListener
	path string
	self os.FileInfo
}

// Listen makes a control socket at path that only its owner can use (mode 0600), and
// the directories above it. The socket of a daemon that was killed is replaced; if a
// daemon still answers there, the error wraps ErrInUse.
func Listen(path string) (*Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	// The socket is made in a directory that nobody else can enter and moved into place
	// when its mode is right: there is no moment at which others could connect.
	private, err := os.MkdirTemp(dir, ".vici")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(private) }()
	tmp := filepath.Join(private, "s")
	if n := max(len(tmp), len(path)); n > maxSocketPath {
		return nil, fmt.Errorf("the path is %d octets too long for a socket: choose a shorter one", n-maxSocketPath)
	}
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	u.SetUnlinkOnClose(false)
	l := &Listener{UnixListener: u, path: path}
	if err = os.Chmod(tmp, 0o600); err == nil {
		if err = os.Rename(tmp, path); err == nil {
			l.self, err = os.Lstat(path)
		}
	}
	if err != nil {
		_ = u.Close()
		return nil, err
	}
	return l, nil
}

// checkFree returns nil if path can be taken: nothing is there, or the socket of a
// process that is gone.
func checkFree(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return errors.New("a file that is no socket is in the way: remove it or choose another path")
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("%w: stop it first, or give this one another socket", ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w, but is too busy to be asked: stop it first", ErrInUse)
	}
	return err
}

// Close stops listening and removes the socket, unless somebody else's stands there now.
func (l *Listener) Close() error {
	if fi, err := os.Lstat(l.path); err == nil && os.SameFile(fi, l.self) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
