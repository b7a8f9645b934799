package control

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
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
