package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 10 * time.Second

// handlerFunc makes a function a Handler.
type handlerFunc func(name string, req *Message, stream func(string, *Message) error) (*Message, bool)

func (f handlerFunc) Command(name string, req *Message, stream func(string, *Message) error) (*Message, bool) {
	return f(name, req, stream)
}

// echo answers "echo" with its request, "stream" with n list-sa events, "wait" when
// its client is gone or release is closed.
type echo struct {
	release chan struct{}
	waiting chan struct{}
	ended   chan error
}

func newEcho() *echo {
	return &echo{make(chan struct{}), make(chan struct{}, 16), make(chan error, 64)}
}

func (h *echo) Command(name string, req *Message, stream func(string, *Message) error) (*Message, bool) {
	switch name {
	case "echo":
		return req, true
	case "stream":
		n, _ := req.GetInt("n")
		for i := range n {
			if err := stream(EvListSA, new(Message).SetInt("i", i).Set("fill", strings.Repeat("x", 1000))); err != nil {
				h.ended <- err
				return nil, true
			}
		}
		return Success(), true
	case "wait":
		h.waiting <- struct{}{}
		for {
			if err := stream("", nil); err != nil {
				h.ended <- err
				return nil, true
			}
			select {
			case <-h.release:
				return Success(), true
			case <-time.After(time.Millisecond):
			}
		}
	case "huge":
		return new(Message).Set("k", strings.Repeat("x", maxValue+1)), true
	}
	return nil, false
}

func start(t *testing.T, h Handler, o Options) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "vici")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(l, h, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		_ = s.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve ended with %v, want nil after Close", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end after Close")
		}
	})
	return s, path
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually waits for something that other goroutines bring about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestCallReturnsTheResponse(t *testing.T) {
	_, path := start(t, newEcho(), Options{})
	c := dial(t, path)
	m, _ := example()
	resp, err := c.Call("echo", m)
	if err != nil || resp.String() != m.String() {
		t.Errorf("echo returned %v, %v, want %v", resp, err, m)
	}
	if _, err = c.Call("no-such", nil); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("an unknown command gives %v", err)
	}
	if resp, err = c.Call("huge", nil); err != nil || Check("huge", resp) == nil {
		t.Errorf("a response that cannot be encoded gives %v, %v, want success = no", resp, err)
	}
	if _, err = c.Call("echo", nil); err != nil {
		t.Errorf("the connection does not outlive an unknown command: %v", err)
	}
}

func TestBadRequestIsAnsweredAndTheConnectionKept(t *testing.T) {
	_, path := start(t, newEcho(), Options{})
	c := dial(t, path)
	if _, err := c.conn.Write([]byte("\x00\x00\x00\x07\x00\x04echo\x02")); err != nil {
		t.Fatal(err)
	}
	p, err := c.next()
	if err != nil || p.Op != CmdResponse {
		t.Fatalf("a malformed message is answered with %s, %v", p.Op, err)
	}
	m, err := Decode(p.Body)
	if err != nil || m.Get(KeySuccess) != "no" || !strings.Contains(m.Get(KeyErrmsg), "never started") {
		t.Errorf("it is answered with %v, %v, want success = no and the reason", m, err)
	}
	if _, err = c.Call("echo", nil); err != nil {
		t.Errorf("the connection is not kept: %v", err)
	}
}

func TestStreamReachesOnlyTheClientThatAskedAndRegistered(t *testing.T) {
	_, path := start(t, newEcho(), Options{})
	asks, listens, silent := dial(t, path), dial(t, path), dial(t, path)
	if err := listens.register(EventRegister, EvListSA, nil); err != nil {
		t.Fatal(err)
	}
	const n = 1000 // four times the queue: the stream must wait for its reader
	var got int
	resp, err := asks.CallStream("stream", EvListSA, new(Message).SetInt("n", n), func(m *Message) error {
		if i, _ := m.GetInt("i"); i != int64(got) {
			return fmt.Errorf("event %d came in place %d", i, got)
		}
		got++
		return nil
	})
	if err != nil || got != n || resp.Get(KeySuccess) != "yes" {
		t.Errorf("%d of %d events, response %v, %v", got, n, resp, err)
	}
	if _, err = silent.Call("stream", new(Message).SetInt("n", n)); err != nil {
		t.Errorf("a client that did not register: %v", err)
	}
	if resp, err = listens.call("echo", new(Message).Set("k", "v"), EvListSA, func(m *Message) error {
		return errors.New("it got another client's event")
	}); err != nil || resp.Get("k") != "v" {
		t.Errorf("a client that registered and did not ask: %v, %v", resp, err)
	}
	stop := errors.New("enough")
	if _, err = asks.CallStream("stream", EvListSA, new(Message).SetInt("n", 3), func(*Message) error { return stop }); err != stop {
		t.Errorf("the callback's error comes back as %v", err)
	}
	if _, err = asks.Call("echo", nil); err != nil {
		t.Errorf("after it the connection is out of step: %v", err)
	}
}

func TestEventsReachThoseWhoRegistered(t *testing.T) {
	s, path := start(t, newEcho(), Options{})
	a, b := dial(t, path), dial(t, path)
	if s.Wanted(EvLog) {
		t.Error("an event is wanted before anybody registered")
	}
	if err := a.Listen(nil, "no-such-event"); !errors.Is(err, ErrUnknownEvent) {
		t.Errorf("an unknown event gives %v", err)
	}
	if err := a.register(EventUnregister, EvLog, nil); !errors.Is(err, ErrUnknownEvent) {
		t.Errorf("giving up what was never asked for gives %v, charon says EVENT_UNKNOWN", err)
	}
	if err := b.register(EventRegister, EvIKEUpDown, nil); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 4)
	ended := make(chan error, 1)
	go func() {
		ended <- a.Listen(func(event string, m *Message) error {
			got <- event + " " + m.Get(KeyMsg)
			return nil
		}, EvLog, EvControlLog, EvLog)
	}()
	eventually(t, "the registration", func() bool { return s.Wanted(EvLog) && s.Wanted(EvControlLog) })
	s.Event(EvLog, new(Message).Set(KeyMsg, "hello"))
	s.Event("not-declared", new(Message))
	s.Event(EvListConn, new(Message).Set(KeyMsg, "nobody asked"))
	s.Event(EvControlLog, new(Message).Set(KeyMsg, "again"))
	for _, want := range []string{"log hello", "control-log again"} {
		select {
		case g := <-got:
			if g != want {
				t.Errorf("got %q, want %q", g, want)
			}
		case <-time.After(patience):
			t.Fatalf("%q did not come", want)
		}
	}
	_ = a.Close()
	<-ended
	eventually(t, "the end of the registrations of a client that left", func() bool { return !s.Wanted(EvLog) })
	if !s.Wanted(EvIKEUpDown) {
		t.Error("the other client's registration is gone too")
	}
}

func TestSlowReaderIsCutOffAndHoldsNobodyUp(t *testing.T) {
	s, path := start(t, newEcho(), Options{Queue: 64 << 10})
	slow, quick := dial(t, path), dial(t, path)
	if err := slow.register(EventRegister, EvLog, nil); err != nil {
		t.Fatal(err)
	}
	m := new(Message).Set(KeyMsg, strings.Repeat("x", 8000))
	began := time.Now()
	for i := 0; s.Wanted(EvLog); i++ {
		if i == 1000 {
			t.Fatal("8 MB of events went to a client that does not read: its queue has no bound")
		}
		s.Event(EvLog, m)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("events to a client that does not read held their sender up for %v", took)
	}
	if _, err := quick.Call("echo", nil); err != nil {
		t.Errorf("the other client: %v", err)
	}
}

func TestCommandLearnsThatItsClientLeft(t *testing.T) {
	h := newEcho()
	s, path := start(t, h, Options{Clients: 1})
	c := dial(t, path)
	if err := c.send(CmdRequest, "wait", nil); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	_ = c.Close()
	select {
	case err := <-h.ended:
		if err != ErrGone {
			t.Errorf("stream says %v, want ErrGone", err)
		}
	case <-time.After(patience):
		t.Fatal("the command of a client that left runs on")
	}
	eventually(t, "the release of the client's place", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.open) == 0
	})
}

func TestRegistrationIsAnsweredWhileACommandRuns(t *testing.T) {
	h := newEcho()
	_, path := start(t, h, Options{})
	c := dial(t, path)
	if err := c.send(CmdRequest, "wait", nil); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	if err := c.register(EventRegister, EvLog, nil); err != nil {
		t.Errorf("registering during a command: %v", err)
	}
	close(h.release)
	if p, err := c.next(); err != nil || p.Op != CmdResponse {
		t.Errorf("the command's response: %s, %v", p.Op, err)
	}
}

func TestClientsAreLimited(t *testing.T) {
	_, path := start(t, newEcho(), Options{Clients: 2})
	a, b := dial(t, path), dial(t, path)
	for _, c := range []*Client{a, b} {
		if _, err := c.Call("echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	third := dial(t, path)
	resp, err := third.Call("echo", nil)
	if err != nil || Check("echo", resp) == nil || !strings.Contains(resp.Get(KeyErrmsg), "too many") {
		t.Errorf("the third of two clients is answered with %v, %v, want the reason why not", resp, err)
	}
	if _, err = third.Call("echo", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a client for which there is no room is kept: %v", err)
	}
	_ = a.Close()
	eventually(t, "the admission of a client after one has left", func() bool {
		c, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, err = c.Call("echo", nil)
		return err == nil
	})
}

func TestServerOnlyPacketsCutTheClientOff(t *testing.T) {
	_, path := start(t, newEcho(), Options{})
	for _, op := range []Op{CmdResponse, CmdUnknown, EventConfirm, EventUnknown, Event} {
		c := dial(t, path)
		if err := c.send(op, "x", nil); err != nil {
			t.Fatal(err)
		}
		refused(t, c, op.String()+", which only a daemon sends")
	}
}

func TestCloseDisconnectsRemovesTheSocketAndLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	h := newEcho()
	s, path := start(t, h, Options{})
	c := dial(t, path)
	if err := c.send(CmdRequest, "wait", nil); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	idle := dial(t, path)
	if _, err := idle.Call("echo", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := idle.Call("echo", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a client after the end gets %v, want ErrClosed", err)
	}
	if _, err := Dial(path); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dialling after the end gives %v, want ErrNotRunning", err)
	}
	eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestCloseDoesNotWaitForeverForACommand(t *testing.T) {
	block := make(chan struct{})
	began := make(chan struct{})
	s, path := start(t, handlerFunc(func(string, *Message, func(string, *Message) error) (*Message, bool) {
		close(began)
		<-block
		return nil, true
	}), Options{})
	defer close(block)
	c := dial(t, path)
	if err := c.send(CmdRequest, "hang", nil); err != nil {
		t.Fatal(err)
	}
	<-began
	start := time.Now()
	_ = s.Close()
	if took := time.Since(start); took > closePatience+patience/2 {
		t.Errorf("Close waited %v for a command that does not end", took)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	_, path := start(t, newEcho(), Options{})
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v, %v, want a socket with 0600", fi.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".vici*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestListenReplacesADeadSocketAndRefusesALiveOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vici")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close() // as a killed daemon leaves it
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead daemon's socket is in the way: %v", err)
	}
	if _, err = Listen(path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second daemon gets %v, want ErrInUse and the path", err)
	}
	// Somebody else's socket at our path is not ours to remove.
	_ = os.Remove(path)
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err = l.Close(); err != nil {
		t.Error(err)
	}
	if _, err = os.Lstat(path); err != nil {
		t.Errorf("Close removed another daemon's socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "vici")
	if err = os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Listen(file); err == nil {
		t.Error("a regular file was replaced by a socket")
	}
	if _, err = Listen(filepath.Join(t.TempDir(), strings.Repeat("d", 120), "vici")); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a path that does not fit gives %v, want the advice to shorten it", err)
	}
}

// refused wants an answer with the reason, and then the end of the connection.
func refused(t *testing.T, c *Client, reason string) {
	t.Helper()
	p, err := c.next()
	if err != nil || p.Op != CmdResponse {
		t.Errorf("answered with %s, %v, want a response with the reason %q", p.Op, err, reason)
		return
	}
	m, err := Decode(p.Body)
	if err != nil || m.Get(KeySuccess) != "no" || !strings.Contains(m.Get(KeyErrmsg), reason) {
		t.Errorf("answered with %v, %v, want success = no and %q", m, err, reason)
	}
	if p, err = c.next(); !errors.Is(err, ErrClosed) {
		t.Errorf("after %q the connection is kept: %s, %v", reason, p.Op, err)
	}
}

// refusedAsOneTooMany checks that there is no room for another client.
func refusedAsOneTooMany(t *testing.T, path string) {
	t.Helper()
	c := dial(t, path)
	if err := c.send(CmdRequest, "echo", nil); err != nil {
		t.Fatal(err)
	}
	refused(t, c, "too many")
}

// frame puts a length field before what is to be a packet.
func frame(b string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(b)))) + b
}

// Whatever a client sends is answered with what is wrong with it, and nobody else notices.
func TestBadInputIsAnsweredWithItsReason(t *testing.T) {
	h := newEcho()
	s, path := start(t, h, Options{Clients: 100})
	s.receive = 100 * time.Millisecond
	other := dial(t, path)
	waits := dial(t, path)
	if err := waits.send(CmdRequest, "wait", nil); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	const request = "\x00\x04echo"
	for _, tc := range []struct {
		name, in, reason string
		cut              bool
	}{
		{"4 GiB by the header", "\xff\xff\xff\xff\x00", "4294967295 octets announced, the limit is 524288", true},
		{"one octet too many", "\x00\x08\x00\x01\x00", "524289 octets announced", true},
		{"empty packet", "\x00\x00\x00\x00", "it is empty", true},
		{"unknown packet type", frame("\x09"), "unknown packet type 9", true},
		{"name beyond the packet", frame("\x00\xffecho"), "the name of CMD_REQUEST is cut off", true},
		{"name with a line feed", frame("\x03\x03lo\n"), "not printable", true},
		{"half a length field", "\x00\x00", "its rest did not come within 100ms", true},
		{"a packet without its end", "\x00\x00\x01\x00" + request, "its rest did not come within 100ms", true},
		{"a large packet without its end", "\x00\x08\x00\x00" + request, "its rest did not come within 100ms", true},
		{"sections without end", frame(request + strings.Repeat("\x01\x04deep", 1000)), `octet 48, "deep": sections are nested too deep: 8 levels`, false},
		{"section without end", frame(request + "\x01\x04conn"), `octet 6, "conn": the section has no end`, false},
		{"end without section", frame(request + "\x02"), "octet 0: the end of a section that was never started", false},
		{"list in list", frame(request + "\x04\x01a\x04\x01b\x06\x06"), `octet 3, "a": element type 4 inside a list`, false},
		{"section in list", frame(request + "\x04\x01a\x01\x01b\x02\x06"), `octet 3, "a": element type 1 inside a list`, false},
		{"list without end", frame(request + "\x04\x01a\x05\x00\x01x"), `octet 7, "a": the list has no end`, false},
		{"end without list", frame(request + "\x06"), "the end of a list that was never started", false},
		{"item without list", frame(request + "\x05\x00\x01x"), "a list item outside a list", false},
		{"truncated value", frame(request + "\x03\x05child\x00\x09net"), `octet 7, "child": the value is cut off`, false},
		{"truncated length", frame(request + "\x03\x05child\x00"), `"child": the value's length is missing`, false},
		{"truncated name", frame(request + "\x03\x09child"), "octet 1: the element's name is cut off", false},
		{"unknown element", frame(request + "\x2a"), "unknown element type 42", false},
		{"elements without number", frame(request + strings.Repeat("\x03\x00\x00\x00", maxElements+1)), "too many elements: 16384", false},
	} {
		c := dial(t, path)
		if _, err := c.conn.Write([]byte(tc.in)); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if tc.cut {
			refused(t, c, tc.reason)
		} else {
			p, err := c.next()
			m, derr := Decode(p.Body)
			if err != nil || derr != nil || p.Op != CmdResponse || m.Get(KeySuccess) != "no" || !strings.Contains(m.Get(KeyErrmsg), tc.reason) {
				t.Errorf("%s: answered with %s %v, %v, want success = no and %q", tc.name, p.Op, m, err, tc.reason)
			}
			if _, err = c.Call("echo", nil); err != nil {
				t.Errorf("%s: the connection does not outlive it: %v", tc.name, err)
			}
		}
		if t.Failed() {
			t.Fatalf("at: %s", tc.name)
		}
		if _, err := other.Call("echo", nil); err != nil {
			t.Fatalf("%s: the other client: %v", tc.name, err)
		}
	}
	if _, err := other.Call("no-such-command", nil); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("an unknown command gives %v", err)
	}
	if err := other.register(EventRegister, "no-such-event", nil); !errors.Is(err, ErrUnknownEvent) {
		t.Errorf("an unknown event gives %v", err)
	}
	close(h.release)
	if p, err := waits.next(); err != nil || p.Op != CmdResponse {
		t.Errorf("the command that ran all the while: %s, %v", p.Op, err)
	}
	eventually(t, "the release of the places of large requests", func() bool { return len(s.large) == 0 })
}

func TestSecondRequestWaitsForTheFirst(t *testing.T) {
	h := newEcho()
	_, path := start(t, h, Options{})
	c := dial(t, path)
	for _, name := range []string{"wait", "echo"} {
		if err := c.send(CmdRequest, name, new(Message).Set("asked", name)); err != nil {
			t.Fatal(err)
		}
	}
	<-h.waiting
	close(h.release)
	for _, want := range []string{`success="yes"`, `asked="echo"`} {
		p, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		if m, err := Decode(p.Body); err != nil || m.String() != want {
			t.Errorf("response %v, %v, want %s: responses have no names, so they must come in the order of the requests", m, err, want)
		}
	}
}

func TestLargeRequestsTakeTurns(t *testing.T) {
	h := newEcho()
	s, path := start(t, h, Options{Large: 1})
	s.receive = 50 * time.Millisecond
	big := new(Message).Set("k", strings.Repeat("x", largeRequest))
	a, b := dial(t, path), dial(t, path)
	if err := a.send(CmdRequest, "wait", big); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	if _, err := b.Call("echo", new(Message).Set("k", "small")); err != nil {
		t.Errorf("a small request while a large one is executed: %v", err)
	}
	if err := b.send(CmdRequest, "echo", big); err != nil {
		t.Fatal(err)
	}
	refused(t, b, "other large requests")
	s.receive = patience
	c := dial(t, path)
	if err := c.send(CmdRequest, "echo", big); err != nil {
		t.Fatal(err)
	}
	close(h.release)
	if p, err := c.next(); err != nil || p.Op != CmdResponse || len(p.Body) < largeRequest {
		t.Errorf("the large request whose turn has come is answered with %s, %v", p.Op, err)
	}
}

func TestIdleClientMakesRoomForAnother(t *testing.T) {
	h := newEcho()
	s, path := start(t, h, Options{Clients: 4})
	idle, listens, works, fresh := dial(t, path), dial(t, path), dial(t, path), dial(t, path)
	for _, c := range []*Client{idle, fresh} {
		if _, err := c.Call("echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := listens.register(EventRegister, EvLog, nil); err != nil {
		t.Fatal(err)
	}
	if err := works.send(CmdRequest, "wait", nil); err != nil {
		t.Fatal(err)
	}
	<-h.waiting
	refusedAsOneTooMany(t, path)
	// All but the last have been quiet for long, and only the first has nothing to wait for.
	eventually(t, "the end of the commands", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		quiet := 0
		for c := range s.open {
			if len(c.busy) == 0 && c.registered.Load() == 0 {
				quiet++
			}
		}
		return quiet == 2
	})
	s.mu.Lock()
	var last *client
	for c := range s.open {
		if len(c.busy) == 0 && c.registered.Load() == 0 && (last == nil || c.active.Load() > last.active.Load()) {
			last = c
		}
	}
	for c := range s.open {
		if c != last {
			c.active.Add(-2 * int64(idleGrace))
		}
	}
	s.mu.Unlock()
	if _, err := dial(t, path).Call("echo", nil); err != nil {
		t.Errorf("the newcomer gets no place: %v", err)
	}
	if _, err := idle.Call("echo", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("the idle client got %v, want ErrClosed: nobody else was to go", err)
	}
	if _, err := fresh.Call("echo", nil); err != nil {
		t.Errorf("who was active a moment ago: %v", err)
	}
	if err := listens.register(EventUnregister, EvLog, nil); err != nil {
		t.Errorf("who waits for events: %v", err)
	}
	close(h.release)
	if p, err := works.next(); err != nil || p.Op != CmdResponse {
		t.Errorf("whose command runs: %s, %v", p.Op, err)
	}
}

func TestAllQueuesTogetherAreBounded(t *testing.T) {
	const slow, total, event = 50, 32 << 10, 8 << 10
	h := newEcho()
	s, path := start(t, h, Options{Clients: slow + 2, Queue: 64 << 10, Total: total})
	reads := dial(t, path)
	got := make(chan struct{}, 1000)
	go func() {
		_ = reads.Listen(func(string, *Message) error {
			got <- struct{}{}
			return nil
		}, EvLog)
	}()
	i := slices.Index(s.events, EvLog)
	eventually(t, "the registration", func() bool { return s.wanted[i].Load() == 1 })
	var all []*Client
	for range slow {
		c := dial(t, path)
		all = append(all, c)
		for _, ev := range []string{EvListSA, EvLog} {
			if err := c.register(EventRegister, ev, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.send(CmdRequest, "stream", new(Message).SetInt("n", 100000)); err != nil {
			t.Fatal(err)
		}
	}
	last, same := int64(0), 0
	eventually(t, "the queues filling until all streams wait", func() bool {
		if q := s.queued.Load(); q <= total || q != last {
			last, same = q, 0
		}
		same++
		return same > 50
	})
	// Each may have a packet in its hands and one that waits for room.
	const most = total + 2*(slow+1)*(event+1100)
	if last > total+2*(slow+1)*1100 {
		t.Fatalf("%d octets wait for all clients, the limit is %d and what they have in their hands", last, total)
	}
	m := new(Message).Set(KeyMsg, strings.Repeat("x", event))
	for n := range 30 {
		s.Event(EvLog, m)
		if q := s.queued.Load(); q > most {
			t.Fatalf("%d octets wait for all clients, the limit is %d and what they have in their hands", q, total)
		}
		select { // who reads gets on
		case <-got:
		case <-time.After(patience):
			t.Fatalf("the client that reads has not got event %d", n)
		}
	}
	// Events do not wait: who has not read for the longest has to go.
	if n := s.wanted[i].Load(); n == slow+1 || n == 0 {
		t.Errorf("%d of %d clients are left, want some that do not read cut off, and the one that does there", n, slow+1)
	}
	for _, c := range all {
		_ = c.Close()
	}
	eventually(t, "the end of all that waited", func() bool { return s.queued.Load() == 0 })
}

func TestIdleClientsCostOneGoroutineEach(t *testing.T) {
	const n = 200
	before := runtime.NumGoroutine()
	_, path := start(t, newEcho(), Options{Clients: n})
	for range n {
		if _, err := dial(t, path).Call("echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the end of all goroutines but one for each client", func() bool { return runtime.NumGoroutine() <= before+n+2 })
}

func TestManyClientsAtOnce(t *testing.T) {
	s, path := start(t, newEcho(), Options{Clients: 16})
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := Dial(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(patience))
			for j := range 50 {
				n := 0
				resp, err := c.CallStream("stream", EvListSA, new(Message).SetInt("n", int64(j%7)), func(*Message) error { n++; return nil })
				if err != nil || n != j%7 || resp.Get(KeySuccess) != "yes" {
					t.Errorf("client %d, call %d: %d events, %v, %v", i, j, n, resp, err)
					return
				}
				s.Event(EvLog, new(Message))
			}
		}()
	}
	wg.Wait()
	if s.Wanted(EvListSA) {
		t.Error("registrations are left over")
	}
}

func FuzzServer(f *testing.F) {
	seed := func(pkts ...[]byte) {
		var b []byte
		for _, p := range pkts {
			b = append(b, p...)
		}
		f.Add(b)
	}
	pkt := func(op Op, name string, m *Message) []byte {
		b, err := AppendPacket(nil, op, name, m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	m, _ := example()
	seed(pkt(CmdRequest, "echo", m), pkt(CmdRequest, "no-such", nil))
	seed(pkt(EventRegister, EvListSA, nil), pkt(CmdRequest, "stream", new(Message).SetInt("n", 3)), pkt(EventUnregister, EvListSA, nil))
	seed(pkt(EventRegister, "no-such", nil), pkt(EventUnregister, EvLog, nil), pkt(Event, EvLog, m))
	seed([]byte("\x00\x00\x00\x07\x00\x04echo\x02"), []byte("\xff\xff\xff\xff"))
	h := handlerFunc(func(name string, req *Message, stream func(string, *Message) error) (*Message, bool) {
		if name == "stream" {
			for range 3 {
				_ = stream(EvListSA, req)
			}
		}
		return req, name == "echo" || name == "stream"
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		l := &oneConn{conn: theirs, done: make(chan struct{})}
		s := NewServer(l, h, Options{})
		served := make(chan error, 1)
		go func() { served <- s.Serve() }()
		answers := make(chan int)
		go func() {
			n := 0
			var buf []byte
			for {
				p, grown, err := ReadPacket(ours, buf)
				if err != nil {
					if errors.Is(err, ErrPacket) {
						t.Errorf("the server sent what is no packet: %v", err)
					}
					break
				}
				buf = grown
				if p.Op == CmdRequest || p.Op == EventRegister || p.Op == EventUnregister {
					t.Errorf("the server sent %s", p.Op)
				}
				n++
			}
			answers <- n
		}()
		_ = ours.SetWriteDeadline(time.Now().Add(patience))
		_, _ = ours.Write(b)
		_ = ours.Close()
		<-answers
		_ = s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.open) != 0 {
			t.Error("a client is left over")
		}
	})
}

// oneConn is a listener that has one connection to offer.
type oneConn struct {
	conn net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "fuzz", Net: "unix"} }
