//go:build linux

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// The packets of VICI, as the README of strongSwan's vici plugin numbers them.
const (
	vCmdRequest = iota
	vCmdResponse
	vCmdUnknown
	vEventRegister
	vEventUnregister
	vEventConfirm
	vEventUnknown
	vEvent
)

// The elements of its messages.
const (
	vSectionStart = 1 + iota
	vSectionEnd
	vKeyValue
	vListStart
	vListItem
	vListEnd
)

// wireClient is a client that sees what swanctl does not show: events that it does not register for, and
// commands that it never sends so. It shares no code with the daemon.
type wireClient struct {
	c net.Conn
	r *bufio.Reader

	mu     sync.Mutex
	events []vnode
	err    error
	done   chan struct{}
}

func dialWire(path string) (*wireClient, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return &wireClient{c: c, r: bufio.NewReader(c)}, nil
}

func (w *wireClient) send(kind byte, name, message string) error {
	p := []byte{kind}
	if kind != vCmdResponse {
		p = append(append(p, byte(len(name))), name...)
	}
	p = append(p, message...)
	w.c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	_, err := w.c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...))
	return err
}

// receive reads a packet: its kind, and as a section what it carries.
func (w *wireClient) receive(deadline time.Time) (byte, vnode, error) {
	w.c.SetReadDeadline(deadline)
	var length [4]byte
	if _, err := io.ReadFull(w.r, length[:]); err != nil {
		return 0, vnode{}, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > 512<<10 {
		return 0, vnode{}, fmt.Errorf("a packet of %d octets", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(w.r, p); err != nil {
		return 0, vnode{}, err
	}
	kind, p := p[0], p[1:]
	m := vnode{kind: vSection}
	if kind == vEvent {
		if len(p) == 0 || len(p) < 1+int(p[0]) {
			return 0, m, errors.New("an event without a name")
		}
		m.name, p = string(p[1:1+p[0]])+" event", p[1+p[0]:]
	}
	if kind == vEvent || kind == vCmdResponse {
		rest, err := m.wire(p, 0)
		if err == nil && len(rest) > 0 {
			err = errors.New("octets after the last element")
		}
		return kind, m, err
	}
	return kind, m, nil
}

var errShort = errors.New("a message that ends within an element")

// wire reads elements up to the end of the section.
func (n *vnode) wire(p []byte, depth int) ([]byte, error) {
	text := func(size int) (string, error) {
		if len(p) < size {
			return "", errShort
		}
		length := int(p[0])
		if size == 2 {
			length = int(binary.BigEndian.Uint16(p))
		}
		if len(p) < size+length {
			return "", errShort
		}
		s := string(p[size : size+length])
		p = p[size+length:]
		return s, nil
	}
	for len(p) > 0 {
		kind := p[0]
		p = p[1:]
		if kind == vSectionEnd {
			if depth == 0 {
				return p, errors.New("the end of a section that did not begin")
			}
			return p, nil
		}
		name, err := text(1)
		if err != nil {
			return p, err
		}
		e := vnode{name: name}
		switch kind {
		case vSectionStart:
			e.kind = vSection
			if p, err = e.wire(p, depth+1); err != nil {
				return p, err
			}
		case vKeyValue:
			e.kind = vValue
			if e.value, err = text(2); err != nil {
				return p, err
			}
		case vListStart:
			e.kind = vList
			var items []string
			for {
				if len(p) == 0 {
					return p, errShort
				}
				kind, p = p[0], p[1:]
				if kind == vListEnd {
					break
				}
				item, err := text(2)
				if err != nil || kind != vListItem {
					return p, fmt.Errorf("no item of list %q: %w", name, errShort)
				}
				items = append(items, item)
			}
			e.value = strings.Join(items, " ")
		default:
			return p, fmt.Errorf("an element of kind %d", kind)
		}
		n.kids = append(n.kids, e)
	}
	if depth > 0 {
		return p, errShort
	}
	return p, nil
}

// call sends a command with a message of key=value words and returns the answer, as text what is none.
func (w *wireClient) call(command string, words ...string) []vnode {
	var m []byte
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		m = append(append(m, vKeyValue, byte(len(key))), key...)
		m = append(binary.BigEndian.AppendUint16(m, uint16(len(value))), value...)
	}
	answer, what := vnode{}, ""
	err := w.send(vCmdRequest, command, string(m))
	if err == nil {
		var kind byte
		kind, answer, err = w.receive(time.Now().Add(20 * time.Second))
		what = map[byte]string{vCmdResponse: "response", vCmdUnknown: "unknown command"}[kind]
	}
	if err != nil {
		what = "error: " + err.Error()
	}
	if what == "response" {
		answer.name = command + " reply"
		return []vnode{answer}
	}
	return []vnode{{kind: vText, value: what}}
}

// register asks for events and returns, as texts, which the daemon knows.
func (w *wireClient) register(names ...string) []vnode {
	var out []vnode
	for _, n := range names {
		what := "error"
		if err := w.send(vEventRegister, n, ""); err == nil {
			kind, m, err := w.receive(time.Now().Add(20 * time.Second))
			for ; err == nil && kind == vEvent; kind, m, err = w.receive(time.Now().Add(20 * time.Second)) {
				w.events = append(w.events, m) // of those that are registered already
			}
			if err == nil {
				what = map[byte]string{vEventConfirm: "confirmed", vEventUnknown: "unknown"}[kind]
			}
		}
		out = append(out, vnode{kind: vText, value: n + ": " + what})
	}
	return out
}

// collect begins to gather the events that arrive, until stop.
func (w *wireClient) collect() {
	w.done = make(chan struct{})
	go func() {
		defer close(w.done)
		for {
			kind, m, err := w.receive(time.Time{})
			w.mu.Lock()
			if err == nil && kind == vEvent {
				w.events = append(w.events, m)
			} else if err == nil {
				err = fmt.Errorf("a packet of kind %d", kind)
			}
			w.err = err
			w.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

// count returns how many events of that name have arrived.
func (w *wireClient) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.events {
		if e.name == name+" event" {
			n++
		}
	}
	return n
}

// stop hangs up and returns the events.
func (w *wireClient) stop() ([]vnode, error) {
	w.c.Close()
	<-w.done
	if w.err != nil && !errors.Is(w.err, net.ErrClosed) && !errors.Is(w.err, io.EOF) {
		return w.events, w.err
	}
	return w.events, nil
}

// What the client reads of packets is what they hold, and what is cut short is an error.
func TestVICIWireIsRead(t *testing.T) {
	message := "\x03\x01a\x00\x01b" + "\x01\x03sec\x04\x02li\x05\x00\x01x\x05\x00\x02yz\x06\x01\x00\x02\x02" + "\x03\x01c\x00\x00"
	n := vnode{kind: vSection, name: "m"}
	if rest, err := n.wire([]byte(message), 0); err != nil || len(rest) > 0 {
		t.Fatalf("%v, %d octets left", err, len(rest))
	}
	if got, want := n.render(), "m {a=b sec {li=[x yz]  {}} c=}"; got != want {
		t.Errorf("read %s, expected %s", got, want)
	}
	whole := map[int]bool{0: true, 6: true, 29: true, len(message): true}
	for i := range len(message) {
		m := vnode{kind: vSection}
		if _, err := m.wire([]byte(message[:i]), 0); (err == nil) != whole[i] {
			t.Errorf("the first %d octets: %v", i, err)
		}
	}
	if _, err := new(vnode).wire([]byte{vSectionEnd}, 0); err == nil {
		t.Error("the end of no section was taken")
	}
}
