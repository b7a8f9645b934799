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
