//go:build !linux

package platform

// LockFile returns an error that wraps [ErrUnsupported].
func LockFile(path string) (unlock func(), err error) { return nil, unsupported("lock", path) }
