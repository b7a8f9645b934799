package platform

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// State is a directory with small secrets that survive a restart. Only one process at a
// time has it: two daemons with the same secrets could be played off against each other.
type State struct {
	dir  string
	lock *os.File
}

// maxStateLen bounds what Load reads.
const maxStateLen = 64 << 10

var errExposed = errors.New("others may read it, so it is no secret any more")

// OpenState opens the directory and makes it, for the owner alone, if it is not there.
// The errors name the directory.
func OpenState(dir string) (*State, error) {
	fail := func(op, object, hint string, err error) (*State, error) {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return nil, &OpError{Op: op, Object: object, Err: err, Hint: hint}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail("make directory", dir, "name one that can be written as state_dir", err)
	}
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fail("open", name, "name a directory that can be written as state_dir", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return fail("lock", name, "another daemon uses it: give each a state_dir of its own", err)
	}
	return &State{dir: dir, lock: f}, nil
}

// Load returns what Store kept under the name. The error wraps fs.ErrNotExist if that is
// nothing, and refuses what somebody else may have read.
func (s *State) Load(name string) ([]byte, error) {
	return loadOwn(filepath.Join(s.dir, name), maxStateLen, 0o077, errExposed)
}

// Store keeps b under the name, readable by the owner alone. After a power cut either it or
// what was there before is found.
func (s *State) Store(name string, b []byte) error {
	return ReplaceFile(filepath.Join(s.dir, name), b, 0o600)
}

// Close lets another process have the directory.
func (s *State) Close() error { return s.lock.Close() }
