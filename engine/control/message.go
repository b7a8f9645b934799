package control

import (
	"fmt"
	"strconv"
	"strings"
)

// Message is a VICI message: an ordered tree of key/values, lists and sections. The
// zero value is an empty message. Reading methods also work on a nil message and find
// nothing. A message is not safe for concurrent change.
type Message struct {
	elems []Element
}

// ElementKind tells what an element of a message is.
type ElementKind uint8

// The kinds of elements.
const (
	KindValue ElementKind = iota
	KindList
	KindSection
)

// Element is one element of a message, in the order of the wire.
type Element struct {
	Kind    ElementKind
	Name    string
	Value   string   // of KindValue
	Items   []string // of KindList
	Section *Message // of KindSection
}

// Elements returns the elements in their order. The caller must not change them.
func (m *Message) Elements() []Element {
	if m == nil {
		return nil
	}
	return m.elems
}

// Set gives key the value, in the place where key already stands or else at the end,
// and returns m.
func (m *Message) Set(key, value string) *Message {
	for i := range m.elems {
		if m.elems[i].Kind == KindValue && m.elems[i].Name == key {
			m.elems[i].Value = value
			return m
		}
	}
	m.elems = append(m.elems, Element{Kind: KindValue, Name: key, Value: value})
	return m
}

// SetInt is Set with a number.
func (m *Message) SetInt(key string, v int64) *Message {
	return m.Set(key, strconv.FormatInt(v, 10))
}

// SetUint is Set with a number that is never negative.
func (m *Message) SetUint(key string, v uint64) *Message {
	return m.Set(key, strconv.FormatUint(v, 10))
}

// SetBool is Set with yes or no.
func (m *Message) SetBool(key string, v bool) *Message { return m.Set(key, yesNo(v)) }

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// Section appends an empty section and returns it.
func (m *Message) Section(name string) *Message {
	s := new(Message)
	m.elems = append(m.elems, Element{Kind: KindSection, Name: name, Section: s})
	return s
}

// List appends a list, which keeps the slice, and returns m.
func (m *Message) List(name string, items ...string) *Message {
	m.elems = append(m.elems, Element{Kind: KindList, Name: name, Items: items})
	return m
}

// find returns the first element of that kind and name.
func (m *Message) find(kind ElementKind, name string) *Element {
	if m != nil {
		for i := range m.elems {
			if e := &m.elems[i]; e.Kind == kind && e.Name == name {
				return e
			}
		}
	}
	return nil
}

// Lookup returns the value of key and whether there is one.
func (m *Message) Lookup(key string) (string, bool) {
	if e := m.find(KindValue, key); e != nil {
		return e.Value, true
	}
	return "", false
}

// Get returns the value of key, "" if there is none.
func (m *Message) Get(key string) string {
	v, _ := m.Lookup(key)
	return v
}

// GetUint returns the value of key as a number; ok is false if it is missing or none.
func (m *Message) GetUint(key string) (v uint64, ok bool) {
	v, err := strconv.ParseUint(m.Get(key), 10, 64)
	return v, err == nil
}

// GetInt is GetUint for numbers that may be negative.
func (m *Message) GetInt(key string) (v int64, ok bool) {
	v, err := strconv.ParseInt(m.Get(key), 10, 64)
	return v, err == nil
}

// GetBool tells whether key has the value yes (or true, enabled, 1, as charon takes them).
func (m *Message) GetBool(key string) bool {
	switch m.Get(key) {
	case "yes", "true", "enabled", "1":
		return true
	}
	return false
}

// Sub returns the section of that name, nil if there is none.
func (m *Message) Sub(name string) *Message {
	if e := m.find(KindSection, name); e != nil {
		return e.Section
	}
	return nil
}

// Items returns the items of the list of that name.
func (m *Message) Items(name string) []string {
	if e := m.find(KindList, name); e != nil {
		return e.Items
	}
	return nil
}

// Success returns the response to a command that went well.
func Success() *Message { return new(Message).Set(KeySuccess, "yes") }

// Failure returns the response to a command that failed.
func Failure(err error) *Message {
	// Of several errors each has a line; clients show a text with line ends as octets.
	return new(Message).Set(KeySuccess, "no").Set(KeyErrmsg, clip(strings.ReplaceAll(err.Error(), "\n", "; "), maxValue))
}

// clip shortens a text that has to fit.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// CommandError is what a daemon answered to a command that failed.
type CommandError struct {
	Command string
	Reason  string
}

func (e *CommandError) Error() string {
	if e.Reason == "" {
		return "the daemon refused " + strconv.Quote(e.Command) + " without a reason: look into its log"
	}
	return e.Reason
}

// Check returns a *CommandError if resp, the response to command, says success = no.
func Check(command string, resp *Message) error {
	if v, ok := resp.Lookup(KeySuccess); ok && v != "yes" {
		return &CommandError{command, resp.Get(KeyErrmsg)}
	}
	return nil
}

// String returns the message as text, for tests and error messages.
func (m *Message) String() string {
	var b []byte
	return string(m.text(b))
}

func (m *Message) text(b []byte) []byte {
	for i, e := range m.Elements() {
		if i > 0 {
			b = append(b, ' ')
		}
		switch e.Kind {
		case KindValue:
			b = fmt.Appendf(b, "%s=%q", e.Name, e.Value)
		case KindList:
			b = fmt.Appendf(b, "%s=%q", e.Name, e.Items)
		case KindSection:
			b = append(b, e.Name...)
			b = append(b, '{')
			b = e.Section.text(b)
			b = append(b, '}')
		}
	}
	return b
}
