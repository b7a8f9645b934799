package control

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/engine/log"
)

func TestSlowReaderMissesWhatItMayMissAndStays(t *testing.T) {
	changed := make(chan string, 16)
	path := filepath.Join(t.TempDir(), "vici")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(l, newEcho(), Options{Queue: 64 << 10})
	s.OnWanted(func(event string) { changed <- event })
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	defer func() { _ = s.Close(); <-served }()
	slow := dial(t, path)
	for _, event := range []string{EvLog, EvIKEUpDown} {
		if err := slow.register(EventRegister, event, nil); err != nil {
			t.Fatal(err)
		}
		if got := <-changed; got != event {
			t.Errorf("the first registration is told of %q, want %q", got, event)
		}
	}
	m := new(Message).Set(KeyMsg, strings.Repeat("x", 8000))
	for range 1000 {
		s.Spare(EvLog, m)
	}
	s.Event(EvIKEUpDown, m) // there has to be room for it
	if !s.Wanted(EvLog) {
		t.Fatal("a client that reads log lines slowly was cut off")
	}
	lines, last := 0, ""
	for last != EvIKEUpDown {
		p, _, err := ReadPacket(slow.conn, nil)
		if err != nil {
			t.Fatalf("after %d lines: %v; want the other event, which must not be lost", lines, err)
		}
		if last = p.Name; last == EvLog {
			lines++
		}
	}
	if lines == 0 || lines > 900 {
		t.Errorf("a client that does not read got %d of 1000 lines, want a few: its queue has to be bounded", lines)
	}
	_ = slow.Close()
	for range 2 {
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("nobody is told that the last client has gone")
		}
	}
	if s.Wanted(EvLog) || s.Wanted(EvIKEUpDown) {
		t.Error("events are wanted by a client that has gone")
	}
}

func TestServerGoesOnWhileAClientReadsWhatItLogsItself(t *testing.T) {
	lg := log.New(new(bytes.Buffer), log.Error)
	s, path := start(t, newEcho(), Options{Clients: 2, Log: lg})
	cancel := lg.Subscribe(log.Debug, func(l *log.Line) { s.Spare(EvLog, new(Message).Set(KeyMsg, l.Text)) })
	defer cancel()
	reads, idle := dial(t, path), dial(t, path)
	if err := reads.register(EventRegister, EvLog, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Call("echo", nil); err != nil {
		t.Fatal(err)
	}
	refusedAsOneTooMany(t, path)
	eventually(t, "the end of the command", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.open {
			if len(c.busy) > 0 {
				return false
			}
		}
		return true
	})
	s.mu.Lock()
	for c := range s.open {
		c.active.Add(-2 * int64(idleGrace))
	}
	s.mu.Unlock()
	if _, err := dial(t, path).Call("echo", nil); err != nil {
		t.Fatalf("the newcomer gets no answer: %v", err)
	}
	for _, want := range []string{"refused", "make room"} {
		p, _, err := ReadPacket(reads.conn, nil)
		if err != nil || p.Name != EvLog || !strings.Contains(string(p.Body), want) {
			t.Errorf("the client that reads the log got %s %q, %v, want a line with %q", p.Name, p.Body, err, want)
		}
	}
}
