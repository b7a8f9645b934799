package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Files is a directory of small files that survive a restart and that are worth no more than
// to be had again: where there is no room, the oldest go. It may be used from several
// goroutines.
type Files struct {
	dir    string
	count  int
	octets int64
	mu     sync.Mutex // held by Store
}

var errShared = errors.New("others may change it")

// maxFilesSeen bounds how many entries of the directory are looked at.
const maxFilesSeen = 1024

// OpenFiles opens the directory, whose files are count at most with that many octets together,
// and makes it, for the owner alone, if it is not there.
func OpenFiles(dir string, count int, octets int64) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &OpError{Op: "make directory", Object: dir, Err: bare(err), Hint: "name one that can be written as state_dir"}
	}
	return &Files{dir: dir, count: count, octets: octets}, nil
}

// bare takes the operation and the path off an error of package os.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Load returns what Store kept under the name. The error wraps fs.ErrNotExist if that is
// nothing. What somebody else may have changed is refused.
func (d *Files) Load(name string) ([]byte, error) {
	return loadOwn(filepath.Join(d.dir, name), d.octets, 0o022, errShared)
}

// Store keeps b under the name, readable by the owner alone. After a power cut either it or
// what was there before is found. Other files go, the oldest first, until there is room.
func (d *Files) Store(name string, b []byte) error {
	if int64(len(b)) > d.octets || d.count < 1 {
		return fmt.Errorf("%s: %w", filepath.Join(d.dir, name), errStateSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.makeRoom(name, int64(len(b)))
	return ReplaceFile(filepath.Join(d.dir, name), b, 0o600)
}

// makeRoom removes the oldest files until one of that name and size has room among the others,
// and what a Store has left that was cut short.
func (d *Files) makeRoom(name string, size int64) {
	type file struct {
		name string
		size int64
		at   time.Time
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	entries, _ := dir.ReadDir(maxFilesSeen)
	var list []file
	total := size
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") {
			_ = os.Remove(filepath.Join(d.dir, e.Name()))
			continue
		}
		st, err := e.Info()
		if err != nil || !st.Mode().IsRegular() || e.Name() == name {
			continue
		}
		list = append(list, file{e.Name(), st.Size(), st.ModTime()})
		total += st.Size()
	}
	for len(list) > 0 && (len(list) >= d.count || total > d.octets) {
		oldest := 0
		for i := range list {
			if list[i].at.Before(list[oldest].at) {
				oldest = i
			}
		}
		_ = os.Remove(filepath.Join(d.dir, list[oldest].name))
		total -= list[oldest].size
		list = append(list[:oldest], list[oldest+1:]...)
	}
}
