//go:build !linux

package platform

import "io/fs"

// LockFile returns an error that wraps [ErrUnsupported].
func LockFile(path string) (unlock func(), err error) { return nil, unsupported("lock", path) }

// ReplaceFile returns an error that wraps [ErrUnsupported].
func ReplaceFile(path string, data []byte, mode fs.FileMode) error { return unsupported("write", path) }

// Rename returns an error that wraps [ErrUnsupported].
func Rename(from, to string) error { return unsupported("rename", from) }
