package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

var errStateSize = errors.New("it is larger than anything that belongs there")

// loadOwn reads a file that ReplaceFile wrote. The error wraps fs.ErrNotExist if there is none,
// and is errOpen for one that has one of the forbidden permission bits.
func loadOwn(path string, most int64, forbidden fs.FileMode, errOpen error) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&forbidden != 0 {
		return nil, fmt.Errorf("%s: %w", path, errOpen)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: %w", path, errStateSize)
	}
	return b, err
}

// ReplaceFile writes a file as a whole, with a name that ends in ".new" on the way: after a power
// cut either it or what was there before is found.
func ReplaceFile(path string, data []byte, mode fs.FileMode) error {
	next := path + ".new"
	_ = os.Remove(next)
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = Rename(next, path)
	}
	if err != nil {
		_ = os.Remove(next)
	}
	return err
}

// Rename gives a file or directory another name, which survives a power cut where the file system
// can do that.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if d, err := os.Open(filepath.Dir(to)); err == nil {
		_ = d.Sync() // some have nothing to sync here
		_ = d.Close()
	}
	return nil
}
