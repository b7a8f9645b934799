package platform

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that this process made. It lasts until it is closed
// and the last socket and process in it are gone.
type Namespace struct{ f *os.File }

// NewNamespace makes a network namespace: an empty one, with loopback up. It needs
// CAP_SYS_ADMIN in the process's user namespace.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return &OpError{Op: "make", Object: "network namespace", Err: err}
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		n.f = f
		return nil
	})
	if err == nil {
		err = n.Netlink(func(nl *Netlink) error { return nl.SetLinkUp(loopbackIndex, true) })
	}
	if err != nil {
		_ = n.Close()
		return nil, err
	}
	return n, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error {
	if n.f == nil {
		return nil
	}
	return n.f.Close()
}

// Do runs f inside the namespace. What f opens stays there, and so does a process that
// it starts; a goroutine that it starts does not.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		err := control(n.f, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
		if err != nil {
			return &OpError{Op: "enter", Object: "network namespace", Err: err}
		}
		return f()
	})
}

// Netlink runs f with a connection to rtnetlink inside the namespace.
func (n *Namespace) Netlink(f func(*Netlink) error) error {
	var nl *Netlink
	if err := n.Do(func() (err error) { nl, err = OpenNetlink(); return err }); err != nil {
		return err
	}
	defer nl.Close()
	return f(nl)
}

// onThread runs f on a thread that may change its namespace, and brings it back.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	result := f()
	if err := control(home, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
		// The thread stays locked, so that it ends with this goroutine and nobody else
		// runs in the wrong namespace.
		return errors.Join(result, fmt.Errorf("leave network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return result
}
