package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Permission bits that a file must not have: of one with a secret, and of one by which somebody is
// trusted.
const (
	openToOthers       = 0o066
	changeableByOthers = 0o022
)

var (
	errNotRegular = errors.New("it is not a regular file")
	errExposed    = errors.New("the group or others can read or change it")
	errTooLong    = errors.New("it is too large for a key")
	errChangeable = errors.New("the group or others can change it")
	errFileSize   = errors.New("it is too large for what it should be")
)

// inFolder returns the path of a file that the configuration names: relative names start in its
// folder.
func (l *loader) inFolder(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(l.cfg.File), path)
}

// readPrivateFile returns what stands in the file of a secret, of at most that many octets.
func readPrivateFile(path string, most int) ([]byte, error) {
	return readLimited(path, most, openToOthers, errExposed, errTooLong)
}

// readPublicFile reads a plain file of at most that many octets that only its owner can change.
func readPublicFile(path string, most int) ([]byte, error) {
	return readLimited(path, most, changeableByOthers, errChangeable, errFileSize)
}

// readLimited reads a regular file that has none of the forbidden permission bits, or returns
// errOpen, and at most that many octets, or returns errSize.
func readLimited(path string, most int, forbidden fs.FileMode, errOpen, errSize error) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&forbidden != 0 {
		return nil, errOpen
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(data) > most {
		err = errSize
	}
	if err != nil {
		clear(data) // it may be a part of a secret
		return nil, err
	}
	return data, nil
}

// openRegular opens a file for reading. It looks before it opens, because opening a
// FIFO or a device can block or have effects.
func openRegular(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errNotRegular
	}
	return os.Open(path)
}
