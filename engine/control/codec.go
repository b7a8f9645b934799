package control

import (
	"encoding/binary"
	"fmt"
	"strconv"
)

// The element types of a message on the wire. SECTION_START, KEY_VALUE and
// LIST_START have a name behind one octet of length; KEY_VALUE and LIST_ITEM have a
// value behind two.
const (
	wireSectionStart = 1
	wireSectionEnd   = 2
	wireKeyValue     = 3
	wireListStart    = 4
	wireListItem     = 5
	wireListEnd      = 6
)

// Bounds of a message. charon has none for the depth and the number of elements, but
// its own messages stay far below these; they keep one message from costing more than
// a few megabytes.
const (
	maxName     = 255
	maxValue    = 65535
	maxDepth    = 8
	maxElements = 16384 // list items included
)

// SyntaxError says where a received message is not VICI.
type SyntaxError struct {
	Offset  int    // octets from the start of the message
	Element string // the name of the element, as far as it is known
	Reason  string
}

func (e *SyntaxError) Error() string {
	if e.Element == "" {
		return fmt.Sprintf("vici message, octet %d: %s", e.Offset, e.Reason)
	}
	return fmt.Sprintf("vici message, octet %d, %q: %s", e.Offset, e.Element, e.Reason)
}

// Append appends the encoded message to dst. It fails if a name is longer than 255
// octets, a value longer than 65535, or sections are nested deeper than eight levels.
func (m *Message) Append(dst []byte) ([]byte, error) { return m.append(dst, 0) }

func (m *Message) append(b []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return b, fmt.Errorf("vici message: sections nested deeper than %d levels", maxDepth)
	}
	var err error
	for i := range m.Elements() {
		e := &m.elems[i]
		if len(e.Name) > maxName {
			return b, fmt.Errorf("vici message: name %q... has %d octets, the limit is %d", e.Name[:32], len(e.Name), maxName)
		}
		switch e.Kind {
		case KindValue:
			b = appendName(b, wireKeyValue, e.Name)
			if b, err = appendValue(b, e.Name, e.Value); err != nil {
				return b, err
			}
		case KindList:
			b = appendName(b, wireListStart, e.Name)
			for _, item := range e.Items {
				b = append(b, wireListItem)
				if b, err = appendValue(b, e.Name, item); err != nil {
					return b, err
				}
			}
			b = append(b, wireListEnd)
		case KindSection:
			b = appendName(b, wireSectionStart, e.Name)
			if b, err = e.Section.append(b, depth+1); err != nil {
				return b, err
			}
			b = append(b, wireSectionEnd)
		}
	}
	return b, nil
}

func appendName(b []byte, kind byte, name string) []byte {
	b = append(b, kind, byte(len(name)))
	return append(b, name...)
}

func appendValue(b []byte, name, v string) ([]byte, error) {
	if len(v) > maxValue {
		return b, fmt.Errorf("vici message: value of %q has %d octets, the limit is %d", name, len(v), maxValue)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...), nil
}

// Decode reads a message that takes all of b. The message keeps nothing of b. The
// error is a *SyntaxError.
func Decode(b []byte) (*Message, error) {
	r := reader{b: b}
	m := new(Message)
	if err := r.section(m, "", 0); err != nil {
		return nil, err
	}
	return m, nil
}

// reader walks over an encoded message.
type reader struct {
	b     []byte
	off   int
	count int
}

func (r *reader) fail(off int, element, reason string) error {
	return &SyntaxError{off, element, reason}
}

// section reads elements into m until the end of the section called name, or until
// the end of the message at depth 0.
func (r *reader) section(m *Message, name string, depth int) error {
	for {
		at := r.off
		if at == len(r.b) {
			if depth > 0 {
				return r.fail(at, name, "the section has no end")
			}
			return nil
		}
		if err := r.room(at, name); err != nil {
			return err
		}
		kind := r.b[at]
		r.off++
		e := Element{}
		var err error
		switch kind {
		case wireSectionEnd:
			if depth == 0 {
				return r.fail(at, "", "the end of a section that was never started")
			}
			return nil
		case wireSectionStart:
			e.Kind = KindSection
			if e.Name, err = r.name(); err != nil {
				return err
			}
			if depth == maxDepth {
				return r.fail(at, e.Name, "sections are nested too deep: "+strconv.Itoa(maxDepth)+" levels are the limit")
			}
			e.Section = new(Message)
			err = r.section(e.Section, e.Name, depth+1)
		case wireKeyValue:
			e.Kind = KindValue
			if e.Name, err = r.name(); err != nil {
				return err
			}
			e.Value, err = r.value(e.Name)
		case wireListStart:
			e.Kind = KindList
			if e.Name, err = r.name(); err != nil {
				return err
			}
			e.Items, err = r.items(e.Name)
		case wireListItem:
			return r.fail(at, name, "a list item outside a list")
		case wireListEnd:
			return r.fail(at, name, "the end of a list that was never started")
		default:
			return r.fail(at, name, fmt.Sprintf("unknown element type %d", kind))
		}
		if err != nil {
			return err
		}
		m.elems = append(m.elems, e)
	}
}

// items reads list items until the list's end.
func (r *reader) items(name string) ([]string, error) {
	var items []string
	for {
		at := r.off
		if at == len(r.b) {
			return nil, r.fail(at, name, "the list has no end")
		}
		kind := r.b[at]
		r.off++
		switch kind {
		case wireListEnd:
			return items, nil
		case wireListItem:
			if err := r.room(at, name); err != nil {
				return nil, err
			}
			v, err := r.value(name)
			if err != nil {
				return nil, err
			}
			items = append(items, v)
		default:
			return nil, r.fail(at, name, fmt.Sprintf("element type %d inside a list", kind))
		}
	}
}

// room counts one more element.
func (r *reader) room(at int, name string) error {
	if r.count++; r.count > maxElements {
		return r.fail(at, name, "too many elements: "+strconv.Itoa(maxElements)+" are the limit")
	}
	return nil
}

// name reads an element's name. Names end up in error messages and in logs, so only
// printable ASCII is let in, which is what the protocol says they are.
func (r *reader) name() (string, error) {
	at := r.off
	if at >= len(r.b) {
		return "", r.fail(at, "", "the element's name is missing")
	}
	n := int(r.b[at])
	if n > len(r.b)-at-1 {
		return "", r.fail(at, "", "the element's name is cut off")
	}
	s := r.b[at+1 : at+1+n]
	if !printable(s) {
		return "", r.fail(at, "", "the element's name is not printable ASCII")
	}
	r.off += 1 + n
	return string(s), nil
}

func (r *reader) value(name string) (string, error) {
	at := r.off
	if len(r.b)-at < 2 {
		return "", r.fail(at, name, "the value's length is missing")
	}
	n := int(binary.BigEndian.Uint16(r.b[at:]))
	if n > len(r.b)-at-2 {
		return "", r.fail(at, name, "the value is cut off")
	}
	r.off += 2 + n
	return string(r.b[at+2 : at+2+n]), nil
}

func printable(s []byte) bool {
	for _, c := range s {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
