package engine

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/board"
	"postern/ike"
	"postern/ike/pki"
)

// fakeFiles keeps files in memory.
type fakeFiles struct {
	mu   sync.Mutex
	kept map[string][]byte
}

func (f *fakeFiles) Load(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.kept[name]; b != nil {
		return b, nil
	}
	return nil, errors.New("there is no such file")
}

func (f *fakeFiles) Store(name string, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept[name] = b
	return nil
}

// ocspAnswer is the least that is an OCSPResponse: about one certificate, from 2026-05-01 until
// 2049-12-31.
const ocspAnswer = "\x30\x60\x0a\x01\x00\xa0\x5b\x30\x59\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x01\x04\x4c" +
	"\x30\x4a\x30\x48\xa2\x03\x04\x01\x00\x18\x0f20260501120000Z\x30\x30\x30\x2e" +
	"\x30\x00\x80\x00\x18\x0f20260501120000Z\xa0\x11\x18\x0f20491231120000Z\x04\x04\x00\x00\x00\x00"

// answers returns a Dial to a server that sends that body to whoever asks.
func answers(body string) func(ctx context.Context, to netip.AddrPort) (Stream, error) {
	return func(ctx context.Context, to netip.AddrPort) (Stream, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			r, err := http.ReadRequest(bufio.NewReader(far))
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\n\r\n"+body)
		}()
		return near, nil
	}
}

// runs drives the loop's goroutine until the test ends.
func (tl *testLoop) runs(t *testing.T) {
	stop := make(chan struct{})
	go tl.run(stop)
	t.Cleanup(func() {
		close(stop)
		<-tl.stopped
	})
}

func TestLoopFetchesForTheMachine(t *testing.T) {
	tl := newTestLoop(t)
	need := []pki.Fetch{{Kind: pki.FetchOCSP, URL: "http://192.0.2.9/ocsp", Post: []byte("?")}, {Kind: pki.FetchCRL, URL: "http://192.0.2.9/ca.crl"}}
	tl.fetches = tl.newFetches(OS{Dial: answers(ocspAnswer)}, board.Tiny)
	tl.runs(t)
	if err := tl.do(func() {
		tl.m.next = append(tl.m.next, ike.Output{Kind: ike.OutFetch, FetchID: 7, Fetches: need})
		tl.drain()
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	eventually(t, "the machine has the answers", func() bool {
		_ = tl.do(func() { got = slices.Clone(tl.m.inputs) })
		return len(got) == 2
	})
	if !strings.HasPrefix(got[0], `fetched 7 http://192.0.2.9/ocsp "`) || !strings.HasSuffix(got[0], "<nil>") {
		t.Errorf("the machine got %s", got[0])
	}
	if !strings.Contains(got[1], `fetched 7 http://192.0.2.9/ca.crl ""`) || !strings.Contains(got[1], "no revocation list") {
		t.Errorf("the machine got %s", got[1])
	}
	if n, failed := tl.counts.get(cFetched), tl.counts.get(cFetchFailed); n != 1 || failed != 1 {
		t.Errorf("%d fetches and %d failures are counted", n, failed)
	}
	said := strings.Join(tl.text.all(), "")
	for _, words := range []string{"http://192.0.2.9/ocsp", "http://192.0.2.9/ca.crl: it is no revocation list", "2049-12-31"} {
		if !strings.Contains(said, words) {
			t.Errorf("the log does not say %q:\n%s", words, said)
		}
	}
}

func TestLoopWithoutDialSaysSo(t *testing.T) {
	tl := newTestLoop(t)
	tl.runs(t)
	if err := tl.do(func() {
		tl.m.next = append(tl.m.next, ike.Output{Kind: ike.OutFetch, FetchID: 1, Fetches: []pki.Fetch{{URL: "http://192.0.2.9/"}}})
		tl.drain()
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the machine has an error", func() (ok bool) {
		_ = tl.do(func() { ok = len(tl.m.inputs) == 1 && strings.Contains(tl.m.inputs[0], errNoDial.Error()) })
		return ok
	})
}

// TestLoopKeepsWhatTheMachineHasVouchedFor looks for it in the state directory.
func TestLoopKeepsWhatTheMachineHasVouchedFor(t *testing.T) {
	tl := newTestLoop(t)
	files := &fakeFiles{kept: map[string][]byte{}}
	tl.fetches = tl.newFetches(OS{Dial: answers(ocspAnswer)}, board.Tiny)
	tl.fetches.SetFiles(files)
	machine := &keepingMachine{scriptedMachine: tl.m}
	tl.ikeLoop.m = machine
	tl.runs(t)
	if err := tl.do(func() {
		tl.m.next = append(tl.m.next, ike.Output{Kind: ike.OutFetch, FetchID: 1, Fetches: []pki.Fetch{{Kind: pki.FetchOCSP, URL: "http://192.0.2.9/"}}})
		tl.drain()
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the answer is kept", func() bool {
		files.mu.Lock()
		defer files.mu.Unlock()
		for _, b := range files.kept {
			return string(b) == ocspAnswer
		}
		return false
	})
}

// keepingMachine vouches for all that it gets.
type keepingMachine struct{ *scriptedMachine }

func (m *keepingMachine) Fetched(now ike.Time, id uint64, got []pki.Fetched) {
	m.next = append(m.next, ike.Output{Kind: ike.OutKeep, Kept: got})
}

func TestStoppingLoopLeavesNoFetchBehind(t *testing.T) {
	tl := newTestLoop(t)
	ended := make(chan struct{})
	tl.fetches = tl.newFetches(OS{Dial: func(ctx context.Context, to netip.AddrPort) (Stream, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}, board.Tiny)
	stop := make(chan struct{})
	go tl.run(stop)
	if err := tl.do(func() {
		tl.m.next = append(tl.m.next, ike.Output{Kind: ike.OutFetch, FetchID: 1, Fetches: []pki.Fetch{{URL: "http://192.0.2.9/"}}})
		tl.drain()
	}); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-tl.stopped
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the fetch goes on")
	}
}
