package fetch

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"postern/ike/pki"
)

var testNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// ocspAnswer returns an OCSPResponse about one certificate for each life; 0: without nextUpdate.
// Nothing in it is signed: a Queue does not look.
func ocspAnswer(lives ...time.Duration) []byte {
	var b cryptobyte.Builder
	explicit := func(n uint8) asn1.Tag { return asn1.Tag(n).Constructed().ContextSpecific() }
	sequence := func(b *cryptobyte.Builder, f func(*cryptobyte.Builder)) { b.AddASN1(asn1.SEQUENCE, f) }
	sequence(&b, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			sequence(b, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 1})
				b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					sequence(b, func(b *cryptobyte.Builder) {
						sequence(b, func(b *cryptobyte.Builder) {
							b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(make([]byte, 20)) })
							b.AddASN1GeneralizedTime(testNow)
							sequence(b, func(b *cryptobyte.Builder) {
								for _, life := range lives {
									sequence(b, func(b *cryptobyte.Builder) {
										sequence(b, func(b *cryptobyte.Builder) {})
										b.AddASN1(asn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) {})
										b.AddASN1GeneralizedTime(testNow)
										if life != 0 {
											b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(testNow.Add(life)) })
										}
									})
								}
							})
						})
					})
				})
			})
		})
	})
	return b.BytesOrPanic()
}

func TestLifetimeOfOCSPAnswers(t *testing.T) {
	for _, c := range []struct {
		lives []time.Duration
		next  time.Time
	}{
		{[]time.Duration{time.Hour}, testNow.Add(time.Hour)},
		{[]time.Duration{3 * time.Hour, time.Hour, 2 * time.Hour}, testNow.Add(time.Hour)},
		{[]time.Duration{0}, time.Time{}},
		{[]time.Duration{time.Hour, 0}, time.Time{}},
	} {
		this, next, err := ocspLifetime(ocspAnswer(c.lives...))
		if err != nil || !this.Equal(testNow) || !next.Equal(c.next) {
			t.Errorf("%v: from %v to %v (%v)", c.lives, this, next, err)
		}
	}
	good := ocspAnswer(time.Hour)
	for n := range good {
		if _, _, err := ocspLifetime(good[:n]); err == nil {
			t.Errorf("the first %d of %d octets are an answer", n, len(good))
		}
	}
	if _, _, err := ocspLifetime([]byte{0x30, 3, 10, 1, 6}); !errors.Is(err, errResponder) {
		t.Errorf("error %v, expected that the responder refuses", err)
	}
	if _, _, err := ocspLifetime(ocspAnswer()); err == nil {
		t.Error("an answer about nothing is taken")
	}
}

func FuzzOCSPLifetime(f *testing.F) {
	f.Add(ocspAnswer(time.Hour, 0))
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = ocspLifetime(b) })
}

// memory is Files without a disk.
type memory struct {
	mu     sync.Mutex
	kept   map[string][]byte
	stores int
}

func (m *memory) Load(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.kept[name]; ok {
		return bytes.Clone(b), nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Store(name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[name] = bytes.Clone(b)
	m.stores++
	return nil
}

func (m *memory) stored() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stores
}

// testQueue is a Queue with its owner and a clock that stands.
type testQueue struct {
	*Queue
	t     *testing.T
	mono  time.Duration
	asked atomic.Int32 // requests that servers have had
	told  []Outcome
	files *memory
	ids   uint64
}

const server = "192.0.2.1:80"

// newQueue returns a Queue whose one server answers so; nil: there is none.
func newQueue(t *testing.T, answer func() []byte) *testQueue {
	q := &testQueue{t: t, files: &memory{kept: map[string][]byte{}}}
	s := servers{}
	if answer != nil {
		s[server] = func(string) string { q.asked.Add(1); return withBody(string(answer())) }
	}
	q.restart(s)
	return q
}

// restart makes the Queue anew. What is on the disk stays.
func (q *testQueue) restart(s servers) {
	if q.Queue != nil {
		q.Close()
	}
	q.Queue = NewQueue(Options{
		Client: *s.client(), MaxCRL: 1 << 16, Room: 4,
		Clock: func() (time.Duration, time.Time) { return q.mono, testNow.Add(q.mono) },
		Told:  func(o Outcome) { q.told = append(q.told, o) },
	})
	q.SetFiles(q.files)
	q.t.Cleanup(q.Close)
}

func ocspOf(urls ...string) (list []pki.Fetch) {
	for _, u := range urls {
		list = append(list, pki.Fetch{Kind: pki.FetchOCSP, URL: u, Post: []byte("about a certificate")})
	}
	return list
}

// get asks, and does the owner's work until the answer is there.
func (q *testQueue) get(list ...pki.Fetch) []pki.Fetched {
	q.t.Helper()
	q.ids++
	q.Ask(q.ids, list)
	return q.answer(q.ids)
}

func (q *testQueue) answer(want uint64) []pki.Fetched {
	q.t.Helper()
	for {
		if id, got, ok := q.Next(); ok {
			if id != want {
				q.t.Fatalf("the answer to %d, expected that to %d", id, want)
			}
			return got
		}
		q.step()
	}
}

// step takes one report.
func (q *testQueue) step() {
	q.t.Helper()
	select {
	case e := <-q.Events():
		q.Handle(e)
	case <-time.After(time.Minute):
		q.t.Fatal("nothing is reported")
	}
}

// settle takes reports until nothing is under way.
func (q *testQueue) settle() {
	q.t.Helper()
	for q.running > 0 || q.disk.busy {
		q.step()
	}
}

func (q *testQueue) wantAsked(n int32, why string) {
	q.t.Helper()
	if got := q.asked.Load(); got != n {
		q.t.Errorf("the server was asked %d times, expected %d: %s", got, n, why)
	}
}

func TestQueueServesAuthenticAnswersUntilTheyEnd(t *testing.T) {
	answer := ocspAnswer(time.Hour)
	q := newQueue(t, func() []byte { return answer })
	got := q.get(ocspOf("http://192.0.2.1/")...)
	if len(got) != 1 || !bytes.Equal(got[0].Body, answer) || got[0].Err != nil || got[0].URL != "http://192.0.2.1/" || string(got[0].Post) != "about a certificate" {
		t.Fatalf("%+v", got)
	}
	q.Keep(got)
	q.settle()
	q.mono = 59 * time.Minute
	if again := q.get(ocspOf("http://192.0.2.1/")...); !bytes.Equal(again[0].Body, answer) {
		t.Fatalf("%+v", again)
	}
	q.wantAsked(1, "the answer is still good")
	q.mono = 61 * time.Minute
	q.get(ocspOf("http://192.0.2.1/")...)
	q.wantAsked(2, "the answer has ended")
	other := ocspOf("http://192.0.2.1/")
	other[0].Post = []byte("about another one")
	q.get(other...)
	q.wantAsked(3, "it is about another certificate")
}

func TestQueueForgetsWhatNobodyVouchedFor(t *testing.T) {
	q := newQueue(t, func() []byte { return ocspAnswer(time.Hour) })
	q.get(ocspOf("http://192.0.2.1/")...)
	q.mono = 59 * time.Second
	q.get(ocspOf("http://192.0.2.1/")...)
	q.wantAsked(1, "whoever asks at the same time gets the same")
	q.mono = 61 * time.Second
	q.get(ocspOf("http://192.0.2.1/")...)
	q.wantAsked(2, "somebody on the way could have made it")
	q.settle()
	if q.files.stored() != 0 {
		t.Error("what no verdict has found authentic was written to the disk")
	}
}

func TestQueueKeepsOnlyTheBodyThatWasLookedAt(t *testing.T) {
	q := newQueue(t, func() []byte { return ocspAnswer(time.Hour) })
	first := q.get(ocspOf("http://192.0.2.1/")...)
	q.mono = 61 * time.Second
	q.get(ocspOf("http://192.0.2.1/")...) // another body, which nobody has looked at
	q.Keep(first)
	q.mono = 130 * time.Second
	q.get(ocspOf("http://192.0.2.1/")...)
	q.wantAsked(3, "the verdict was about another body")
}

func TestQueueRemembersFailuresForAMinute(t *testing.T) {
	for name, answer := range map[string]string{
		"status 404":     "HTTP/1.1 404 Not Found\r\n\r\n",
		"not an answer":  withBody("<html>"),
		"empty":          withBody(""),
		"too large":      withBody(strings.Repeat("a", maxOCSP+1)),
		"try again":      withBody("\x30\x03\x0a\x01\x03"),
		"not even HTTP":  "hello\r\n",
		"no such server": "",
	} {
		q := newQueue(t, nil)
		url := "http://192.0.2.1/"
		if answer == "" {
			url = "http://no.example/"
		}
		q.restart(servers{server: func(string) string { q.asked.Add(1); return answer }})
		got := q.get(ocspOf(url)...)
		if got[0].Err == nil || got[0].Body != nil || !strings.HasPrefix(got[0].Err.Error(), url) {
			t.Fatalf("%s: %+v", name, got)
		}
		if len(q.told) != 1 || q.told[0].Err == nil {
			t.Errorf("%s: told %+v", name, q.told)
		}
		asked := q.asked.Load()
		q.mono = 59 * time.Second
		if again := q.get(ocspOf(url)...); !errors.Is(again[0].Err, got[0].Err) {
			t.Errorf("%s: then %+v", name, again)
		}
		q.wantAsked(asked, name)
		q.SetTrust(nil)
		q.get(ocspOf(url)...)
		q.wantAsked(2*asked, "the configuration is new")
		q.mono = 120 * time.Second
		q.get(ocspOf(url)...)
		q.wantAsked(3*asked, "the minute is over")
	}
}

func TestQueueJoinsWhoAsksForTheSame(t *testing.T) {
	open := make(chan bool)
	q := newQueue(t, func() []byte { <-open; return ocspAnswer(time.Hour) })
	for id := range uint64(3) {
		q.Ask(id+1, ocspOf("http://192.0.2.1/a", "http://192.0.2.1/a"))
	}
	close(open)
	for id := range uint64(3) {
		got := q.answer(id + 1)
		if len(got) != 2 || got[0].Err != nil || got[1].Err != nil || &got[0].Body[0] != &got[1].Body[0] {
			t.Errorf("%+v", got)
		}
	}
	q.wantAsked(1, "all six want the same")
}

func TestQueueBoundsWhatRunsAndWaits(t *testing.T) {
	open := make(chan bool)
	var now, most atomic.Int32
	q := newQueue(t, func() []byte {
		most.Store(max(most.Load(), now.Add(1)))
		<-open
		now.Add(-1)
		return ocspAnswer(time.Hour)
	})
	var list []pki.Fetch
	for i := range 20 {
		list = append(list, ocspOf(fmt.Sprintf("http://192.0.2.1/%d", i))...)
	}
	q.Ask(1, list[:10])
	q.Ask(2, list[10:])
	if q.running != maxRunning || len(q.waiting) != q.o.Room {
		t.Errorf("%d run and %d wait, expected %d and %d", q.running, len(q.waiting), maxRunning, q.o.Room)
	}
	close(open)
	got := map[uint64][]pki.Fetched{}
	for len(got) < 2 {
		if id, list, ok := q.Next(); ok {
			got[id] = list
			continue
		}
		q.step()
	}
	done, busy := 0, 0
	for _, g := range slices.Concat(got[1], got[2]) {
		switch {
		case g.Err == nil:
			done++
		case errors.Is(g.Err, errBusy):
			busy++
		}
	}
	if done != q.o.Room+maxRunning || done+busy != len(list) || most.Load() > maxRunning {
		t.Errorf("%d were fetched, %d of them at once, and %d were too many", done, most.Load(), busy)
	}
	if len(q.jobs)+len(q.asks)+q.running != 0 {
		t.Errorf("%d jobs, %d asks and %d running are left", len(q.jobs), len(q.asks), q.running)
	}
}

func TestQueueAnswersWhoIsLate(t *testing.T) {
	open := make(chan bool)
	q := newQueue(t, func() []byte { <-open; return ocspAnswer(time.Hour) })
	q.Ask(7, ocspOf("http://192.0.2.1/a"))
	q.Handle(Event{late: 7})
	if got := q.answer(7); !errors.Is(got[0].Err, errLate) {
		t.Errorf("%+v", got)
	}
	q.Handle(Event{late: 7}) // a second time, and of nobody
	q.Handle(Event{late: 8})
	close(open)
	q.settle()
	if _, _, ok := q.Next(); ok {
		t.Error("there is a second answer")
	}
	if got := q.get(ocspOf("http://192.0.2.1/a")...); got[0].Err != nil {
		t.Errorf("%v: what came late is of use to others", got[0].Err)
	}
	q.wantAsked(1, "it has come")
}

func TestQueueFindsOnTheDiskWhatItKept(t *testing.T) {
	answer := ocspAnswer(time.Hour)
	q := newQueue(t, func() []byte { return answer })
	q.Keep(q.get(ocspOf("http://192.0.2.1/")...))
	q.settle()
	if q.files.stored() != 1 {
		t.Fatalf("the disk was written %d times", q.files.stored())
	}
	q.restart(servers{}) // and the server is away
	got := q.get(ocspOf("http://192.0.2.1/")...)
	if got[0].Err != nil || !bytes.Equal(got[0].Body, answer) {
		t.Fatalf("%+v", got)
	}
	q.Keep(got)
	q.settle()
	if q.files.stored() != 1 {
		t.Error("what was read from the disk was written there again")
	}
	if len(q.told) != 1 {
		t.Errorf("told %+v: the disk is no fetch", q.told)
	}
	if b, err := q.Queue.disk.files.Load((&key{kind: pki.FetchOCSP, url: "http://192.0.2.1/x"}).fileName()); err == nil {
		t.Errorf("another URL has the same file: %q", b)
	}
}

func TestQueueServesWhatHasEndedIfThereIsNothingBetter(t *testing.T) {
	answer := ocspAnswer(time.Hour)
	q := newQueue(t, func() []byte { return answer })
	q.Keep(q.get(ocspOf("http://192.0.2.1/")...))
	q.settle()
	q.mono = 2 * time.Hour
	failing := servers{server: func(string) string { q.asked.Add(1); return "HTTP/1.1 500 No\r\n\r\n" }}
	for _, why := range []string{"from memory", "from the disk"} {
		if why == "from the disk" {
			q.restart(failing)
		} else {
			q.o.Client = *failing.client()
		}
		for range 2 {
			if got := q.get(ocspOf("http://192.0.2.1/")...); got[0].Err != nil || !bytes.Equal(got[0].Body, answer) {
				t.Errorf("%s: %+v: what it says of revoked certificates is still true", why, got)
			}
		}
	}
	q.wantAsked(3, "once for each run, since a failure is remembered")
}

func TestQueueDoesNotGoBackToOlderAnswers(t *testing.T) {
	old := ocspAnswer(100 * time.Hour)
	c := cache{octets: 1000, files: 4}
	k := key{url: "http://192.0.2.1/"}
	now := &entry{key: k, body: old, this: testNow, next: testNow.Add(time.Hour), proven: true}
	c.put(now, 0, testNow)
	if c.put(&entry{key: k, body: []byte("older"), this: testNow.Add(-time.Hour), next: testNow.Add(9 * time.Hour)}, 0, testNow) || c.find(k) != now {
		t.Error("an older file took the place of the newer one: a revocation is undone")
	}
	if !c.put(&entry{key: k, body: []byte("newer"), this: testNow.Add(time.Hour), next: testNow.Add(9 * time.Hour)}, 0, testNow) {
		t.Error("a newer file was not taken")
	}
}

func TestCacheStaysWithinItsBounds(t *testing.T) {
	c := cache{octets: 100, files: 3}
	put := func(name string, n int, at time.Duration) {
		c.put(&entry{key: key{url: name}, body: make([]byte, n), proven: true, next: testNow.Add(time.Hour)}, at, testNow)
	}
	here := func(want string) {
		t.Helper()
		var names []string
		held := 0
		for _, e := range c.list {
			names = append(names, e.url)
			held += len(e.body)
		}
		slices.Sort(names)
		if got := strings.Join(names, ""); got != want || held != c.held || held > c.octets {
			t.Errorf("the cache has %q with %d octets (it says %d), expected %q", got, held, c.held, want)
		}
	}
	put("a", 10, 1)
	put("b", 10, 2)
	put("c", 10, 3)
	here("abc")
	c.get(key{url: "a"}, 4, testNow)
	put("d", 10, 5)
	here("acd") // b was not used for longest
	put("e", 90, 6)
	here("de")
	put("f", 101, 7)
	here("de")
	put("d", 20, 8)
	here("d")
}

func TestRenewalComesInTime(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{
		time.Minute: soonest, time.Hour: 30 * time.Minute, 365 * 24 * time.Hour: oldest,
	} {
		e := &entry{next: testNow.Add(life), proven: true}
		e.soon(0, testNow)
		if e.stale(want-1) || !e.stale(want) {
			t.Errorf("a list for %v is renewed after %v, expected %v", life, e.renew, want)
		}
	}
}
