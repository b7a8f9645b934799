package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"testing"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// fakeState keeps things in memory.
type fakeState struct {
	kept   map[string][]byte
	load   error
	store  error
	stores int
}

func (s *fakeState) Load(name string) ([]byte, error) {
	if s.load != nil {
		return nil, s.load
	}
	b, ok := s.kept[name]
	if !ok {
		return nil, fmt.Errorf("load %s: %w", name, fs.ErrNotExist)
	}
	return b, nil
}

func (s *fakeState) Store(name string, b []byte) error {
	s.stores++
	if s.store != nil {
		return s.store
	}
	s.kept[name] = append([]byte(nil), b...)
	return nil
}

func (s *fakeState) Close() error { return nil }

func newKeeper(dir State, seed uint64) (*keeper, *logLines) {
	text := &logLines{}
	return &keeper{dir: dir, log: log.New(text, log.Info), random: testRandom(seed)}, text
}

func TestSecretIsTheSameAfterARestart(t *testing.T) {
	s := &fakeState{kept: map[string][]byte{}}
	k, _ := newKeeper(s, 1)
	first := k.secret(stateQCD, qcdSecretLen)
	k, text := newKeeper(s, 2)
	if again := k.secret(stateQCD, qcdSecretLen); !bytes.Equal(first, again) || len(first) != qcdSecretLen || s.stores != 1 {
		t.Fatalf("the secret differs after a restart, or was written %d times: flash does not like that", s.stores)
	}
	if len(text.all()) != 0 {
		t.Fatalf("an ordinary start says: %s", text.all())
	}
	s.kept[stateQCD] = []byte("cut off")
	if again := k.secret(stateQCD, qcdSecretLen); len(again) != qcdSecretLen || bytes.Equal(first, again) {
		t.Fatal("a secret of the wrong length is used")
	}
}

func TestWithoutAStateDirectoryTheDaemonWorksAndSaysSoOnce(t *testing.T) {
	for name, s := range map[string]*fakeState{
		"unreadable": {load: errors.New("others may read it"), kept: map[string][]byte{}},
		"read-only":  {store: errors.New("read-only file system"), kept: map[string][]byte{}},
	} {
		k, text := newKeeper(s, 1)
		if b := k.secret(stateQCD, qcdSecretLen); len(b) != qcdSecretLen || bytes.Equal(b, make([]byte, qcdSecretLen)) {
			t.Errorf("%s: no secret", name)
		}
		if n := len(text.all()); n != 1 {
			t.Errorf("%s: %d lines, want one:\n%s", name, n, text.all())
		}
	}
	k, text := newKeeper(nil, 1)
	if len(k.secret(stateQCD, qcdSecretLen)) != qcdSecretLen || len(text.all()) != 0 {
		t.Error("without a directory there is no secret")
	}
}

func TestPacketsWithoutAnSAAreToldToTheLoopAtALimitedRate(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	peer, here := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.1")
	packet := func(spi byte, port uint16) esp.Datagram {
		b := make([]byte, 100)
		b[0], b[3] = 0xc0, spi
		return esp.Datagram{Buf: b, N: len(b), Local: here, Remote: netip.AddrPortFrom(peer, port)}
	}
	for i := range 100 {
		tp.now = time.Second + time.Duration(i)*time.Millisecond
		tp.receive(sockNATT4, packet(byte(i), 30000))
	}
	tp.now = 2 * time.Second
	tp.receive(sockESP4, packet(0xee, 0))
	want := []unknownPacket{
		{0xc0000000, ike.Path{Local: netip.AddrPortFrom(here, 4500), Remote: netip.AddrPortFrom(peer, 30000), NATT: true}},
		{0xc00000ee, ike.Path{Local: netip.AddrPortFrom(here, 500), Remote: netip.AddrPortFrom(peer, 500)}},
	}
	if len(tp.unknowns) != len(want) || tp.unknowns[0] != want[0] || tp.unknowns[1] != want[1] {
		t.Fatalf("the loop was told of %v, want %v", tp.unknowns, want)
	}
}

func TestTicketKeysRotate(t *testing.T) {
	random := testRandom(3)
	now := time.Unix(clockSet+1000, 0)
	var k ticketKeys
	if !k.age(now, random) || len(k.list) != 1 {
		t.Fatal("there is no first key")
	}
	first := k.list[0]
	for h := range 24 * 7 {
		if k.age(now.Add(time.Duration(h)*time.Hour), random) {
			t.Fatalf("the key changes after %d hours", h)
		}
	}
	now = now.Add(ticketKeySeals)
	if !k.age(now, random) || len(k.list) != 2 || k.list[0].Key == first.Key || k.list[1] != first {
		t.Fatal("after a week the key is not a new one beside the old one")
	}
	var again ticketKeys
	again.decode(k.encode())
	if len(again.list) != 2 || again.list[0] != k.list[0] || again.list[1] != k.list[1] {
		t.Fatal("the keys do not survive being kept")
	}
	if again.age(now.Add(23*time.Hour), random) || !again.age(now.Add(24*time.Hour), random) || len(again.list) != 1 {
		t.Fatal("the old key is not dropped when the last of its tickets has expired, or before")
	}
	// The daemon was off for a month.
	if !k.age(now.Add(30*24*time.Hour), random) || len(k.list) != 1 {
		t.Fatal("keys of a month ago still open tickets")
	}
	// A clock that was wrong.
	if !k.age(now, random) || k.list[0].made != now.Unix() || len(k.list) != 1 {
		t.Fatal("a key from the future is used")
	}
}

func TestTicketKeysWaitForTheClock(t *testing.T) {
	var k ticketKeys
	k.age(time.Unix(100, 0), testRandom(3))
	first := k.list[0]
	if k.age(time.Unix(100, 0).Add(100*24*time.Hour), testRandom(4)) || first.made != 0 {
		t.Fatal("a key ages by a clock that is not set")
	}
	if !k.age(time.Unix(clockSet+5, 0), testRandom(4)) || k.list[0].Key != first.Key || k.list[0].made != clockSet+5 {
		t.Fatal("a key does not begin to age when the clock is set")
	}
}

func TestDamagedTicketKeysAreNotUsed(t *testing.T) {
	var k ticketKeys
	k.age(time.Unix(clockSet, 0), testRandom(3))
	good := k.encode()
	for name, b := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "longer": append(bytes.Clone(good), 1), "other version": append([]byte{9}, good[1:]...),
		"too many": append(append(bytes.Clone(good), good[1:]...), good[1:]...),
	} {
		var got ticketKeys
		if got.decode(b); len(got.list) != 0 {
			t.Errorf("%s: %d keys", name, len(got.list))
		}
	}
}
