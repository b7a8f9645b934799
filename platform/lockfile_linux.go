package platform

import (
	"os"
	"syscall"
)

// LockFile takes the file for this process alone, and makes it if it is not there; it does not
// wait. The lock goes with the process at the latest, so a power cut leaves none. The error
// wraps EAGAIN if another process has it.
func LockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &OpError{Op: "lock", Object: path, Err: err, Hint: "another postern works with it: wait until that has ended"}
	}
	return func() { _ = f.Close() }, nil
}
