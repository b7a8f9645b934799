package platform

import "errors"

// ErrUnsupported is wrapped by the errors of systems that a feature is not built for.
var ErrUnsupported = errors.New("not supported on this operating system: postern's data path needs Linux")

// OpError is a call to the operating system that failed. It unwraps to the cause,
// usually a syscall.Errno.
type OpError struct {
	Op     string // what was tried: "bind", "add rule"
	Object string // to what: "UDP port 500", "default dev postern0 table 2204"
	Err    error
	Hint   string // what to do about it; may be empty
}

// Error returns one line: what happened, to what, and what to do next.
func (e *OpError) Error() string {
	s := e.Op
	if e.Object != "" {
		s += " " + e.Object
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
