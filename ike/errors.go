package ike

import (
	"errors"
	"fmt"
)

// Errors of reading a message. Nothing advanced when one is returned: parsing touches
// no state but the Message that it fills.
var (
	// ErrSyntax is what every SyntaxError and RuleError is (errors.Is). RFC 7296
	// section 2.21 answers it with INVALID_SYNTAX, but only where the message has
	// passed its integrity check; before that the message is dropped.
	ErrSyntax = errors.New("invalid syntax")

	// ErrVersion means that the major version is not ours, so that nothing after the
	// header can be understood (RFC 7296 section 2.5). The Header is filled in.
	ErrVersion = errors.New("ike: the major version of the message is not 2")

	errShort    = errors.New("ends too early")
	errTrailing = errors.New("has octets left over at its end")
	errLength   = errors.New("has a length that does not fit")
	errTooMany  = errors.New("is there more often than the limit allows")
	errValue    = errors.New("has a value that is not allowed")
)

// Errors of writing a message; each is a mistake of the caller, and nothing is sent.
var (
	errTooBig   = errors.New("ike: what is to be sent exceeds its length or count field")
	errSelector = errors.New("ike: a traffic selector to be sent is empty or has no addresses")
)

// SyntaxError says where a message departs from its format. It is an ErrSyntax.
type SyntaxError struct {
	Payload PayloadType // the payload, or PayloadNone for the header and the chain
	Field   string      // the part of it that is at fault
	Err     error       // what is wrong with that part
}

// Error names the payload, the field and the fault; it never quotes the message.
func (e *SyntaxError) Error() string {
	if e.Payload == PayloadNone {
		return fmt.Sprintf("ike: malformed message: the %s %v", e.Field, e.Err)
	}
	return fmt.Sprintf("ike: malformed %v payload: the %s %v", e.Payload, e.Field, e.Err)
}

// Is makes every SyntaxError an ErrSyntax.
func (e *SyntaxError) Is(target error) bool { return target == ErrSyntax }

// Unwrap returns the fault without its place.
func (e *SyntaxError) Unwrap() error { return e.Err }

func syntax(t PayloadType, field string, err error) error {
	return &SyntaxError{Payload: t, Field: field, Err: err}
}

// CriticalError means that a payload of an unknown type has its critical bit set. The
// rest of the message has been parsed all the same, so that the request can be answered
// with UNSUPPORTED_CRITICAL_PAYLOAD, whose data is the one octet Type (RFC 7296
// section 2.5).
type CriticalError struct {
	Type PayloadType // the first such payload
}

// Error names the payload's type.
func (e *CriticalError) Error() string {
	return fmt.Sprintf("ike: payload type %d is unknown and marked as critical", uint8(e.Type))
}

// RuleError means that a message lacks a payload that its exchange needs, or has one
// that it must not have. It is an ErrSyntax.
type RuleError struct {
	Exchange Exchange
	Response bool
	Payload  PayloadType // PayloadNone when it is not about one payload
	Count    int         // how many there are
	Min, Max int         // how many there may be
	Why      string      // instead of the counts when not empty
}

// Error says what is missing or too many, or why else the message is out of order.
func (e *RuleError) Error() string {
	kind := "request"
	if e.Response {
		kind = "response"
	}
	switch {
	case e.Why != "":
		return fmt.Sprintf("ike: %v %s: %s", e.Exchange, kind, e.Why)
	case e.Max == 0:
		return fmt.Sprintf("ike: %v %s: has %v, which does not belong there", e.Exchange, kind, e.Payload)
	case e.Count == 0:
		return fmt.Sprintf("ike: %v %s: %v is missing", e.Exchange, kind, e.Payload)
	case e.Count < e.Min:
		return fmt.Sprintf("ike: %v %s: has %d of %v, at least %d are needed", e.Exchange, kind, e.Count, e.Payload, e.Min)
	}
	return fmt.Sprintf("ike: %v %s: has %d of %v, at most %d are allowed", e.Exchange, kind, e.Count, e.Payload, e.Max)
}

// Is makes every RuleError an ErrSyntax.
func (e *RuleError) Is(target error) bool { return target == ErrSyntax }
