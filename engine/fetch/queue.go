package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"postern/ike/pki"
)

// The way of what a verdict needs:
//
//	1 Ask looks into the cache; what is there, or has just failed, is answered at once
//	2 what is under way already is waited for together; the rest waits for its turn (jobs)
//	3 a goroutine looks at the disk, and else asks the server (job.go)
//	4 Handle puts what came into the cache, on probation, and answers whoever asked
//	5 Next hands out the answers that are complete
//	6 Keep ends the probation of what a verdict has found to be authentic, and puts it on the
//	  disk (cache.go)

// Limits of a Queue.
const (
	// maxRunning bounds the fetches that are under way at once, and with them the memory that
	// servers can fill.
	maxRunning = 2
	// patience bounds one fetch, and askPatience what somebody waits who asks for several.
	patience    = 8 * time.Second
	askPatience = 9 * time.Second
	// failureMemory is how long what has failed is not tried again.
	failureMemory = time.Minute
	maxFailures   = 32
)

// Errors of a Queue.
var (
	errBusy = errors.New("too much is being fetched already")
	errLate = errors.New("it was not fetched in time")
)

// Options are what a Queue is made of.
type Options struct {
	Client
	// MaxCRL is how many octets of a revocation list are taken. Twice as many of all files are kept
	// in memory.
	MaxCRL int
	// Room is how many fetches may wait for their turn, and how many files are kept in memory.
	Room int
	// Clock returns the monotonic and the wall clock's time.
	Clock func() (mono time.Duration, wall time.Time)
	// Told is called, by whoever calls the Queue, with the outcome of each fetch from a server.
	Told func(Outcome)
}

// Outcome is what became of a fetch from a server.
type Outcome struct {
	Kind   pki.FetchKind
	URL    string
	Octets int
	Next   time.Time // when there will be a newer one; zero: not said
	Err    error
}

// key says what is fetched.
type key struct {
	kind pki.FetchKind
	url  string
	post [sha256.Size]byte
}

func keyOf(f *pki.Fetch) key {
	k := key{kind: f.Kind, url: f.URL}
	if f.Kind != pki.FetchCRL {
		k.post = sha256.Sum256(f.Post)
	}
	return k
}

// Queue fetches for verdicts. One goroutine, the owner, calls its methods; none of them blocks.
// It starts a few goroutines of its own, whose reports the owner takes from Events.
type Queue struct {
	o       Options
	jobs    map[key]*job // waiting and running
	waiting []*job
	running int
	asks    map[uint64]*ask
	ready   []*ask
	cache   cache
	failed  []failure
	disk    disk
	trust   *pki.Trust
	events  chan Event
	ctx     context.Context
	cancel  context.CancelFunc
}

// ask is somebody who waits for several fetches. There are no more of them than the caller has
// handshakes.
type ask struct {
	id    uint64
	got   []pki.Fetched
	left  int
	timer *time.Timer
}

// waiter is a place in an ask.
type waiter struct {
	ask *ask
	i   int
}

// failure is what has failed not long ago.
type failure struct {
	key
	until time.Duration
	err   error
}

// Event is the report of one of the Queue's goroutines.
type Event struct {
	job  *job
	late uint64 // the ask whose time is up
	kept bool   // the disk has been written
}

// NewQueue returns an empty Queue.
func NewQueue(o Options) *Queue {
	ctx, cancel := context.WithCancel(context.Background())
	return &Queue{
		o: o, jobs: make(map[key]*job), asks: make(map[uint64]*ask), events: make(chan Event), ctx: ctx, cancel: cancel,
		cache: cache{octets: 2 * o.MaxCRL, files: o.Room},
	}
}

// SetFiles says where what has proved authentic is kept over a restart. It is called before
// the first Ask.
func (q *Queue) SetFiles(f Files) { q.disk.files = f }

// SetTrust says which CAs' lists can be refreshed before anybody waits for them. What has
// failed is tried again: a new configuration may be the remedy.
func (q *Queue) SetTrust(t *pki.Trust) {
	q.trust = t
	q.failed = nil
}

// Events is where the Queue's goroutines report; each report goes to Handle.
func (q *Queue) Events() <-chan Event { return q.events }

// Close ends all fetches. Nobody gets an answer any more.
func (q *Queue) Close() {
	q.cancel()
	for _, a := range q.asks {
		a.timer.Stop()
	}
}

// tell hands a report to the owner, unless that has closed the Queue.
func (q *Queue) tell(e Event) {
	select {
	case q.events <- e:
	case <-q.ctx.Done():
	}
}

// Ask starts to get what list names. Next returns the answer under that id, which is no other
// one's, at once or after askPatience at the latest.
func (q *Queue) Ask(id uint64, list []pki.Fetch) {
	mono, wall := q.o.Clock()
	a := &ask{id: id, got: make([]pki.Fetched, len(list)), left: len(list)}
	for i := range list {
		f := &list[i]
		a.got[i].Fetch = *f
		k := keyOf(f)
		if e := q.cache.get(k, mono, wall); e != nil {
			a.answer(i, e.body, nil)
			a.add(i, e.before)
			if e.stale(mono) {
				q.refresh(e, f)
			}
			continue
		}
		if err := q.failure(k, mono); err != nil {
			a.answer(i, q.cache.old(k), err)
			continue
		}
		j := q.jobs[k]
		if j == nil {
			if len(q.waiting) >= q.o.Room {
				a.answer(i, q.cache.old(k), errBusy)
				continue
			}
			j = q.start(k, f)
		}
		j.waiters = append(j.waiters, waiter{a, i})
	}
	if a.left == 0 {
		q.ready = append(q.ready, a)
		return
	}
	q.asks[id] = a
	a.timer = time.AfterFunc(askPatience, func() { q.tell(Event{late: id}) })
	q.next()
}

// answer fills in what came of one of the fetches. An old list is better than none: what it
// says of revoked certificates stays true.
func (a *ask) answer(i int, body []byte, err error) {
	g := &a.got[i]
	if body != nil {
		err = nil
	}
	g.Body, g.Err = body, err
	a.left--
}

// add adds an older file to the answer that is on probation: if that turns out to be forged, it
// must not have taken the place of what is known to be true.
func (a *ask) add(i int, old []byte) {
	if old != nil {
		a.got = append(a.got, pki.Fetched{Fetch: a.got[i].Fetch, Body: old})
	}
}

// start makes a job and puts it last in the queue.
func (q *Queue) start(k key, f *pki.Fetch) *job {
	j := &job{key: k, fetch: *f, old: q.cache.old(k)}
	j.fetch.Post = slices.Clone(f.Post)
	q.jobs[k] = j
	q.waiting = append(q.waiting, j)
	return j
}

// next starts what may run.
func (q *Queue) next() {
	for len(q.waiting) > 0 && q.running < maxRunning {
		j := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		q.running++
		_, wall := q.o.Clock()
		files := q.disk.files
		if q.disk.flushed[j.kind] {
			files = nil
		}
		go q.run(j, files, wall)
	}
}

// refresh gets a newer list than the one that is in the cache, which serves until then. That is
// only done where its signature can be checked here: no verdict will look at it first.
func (q *Queue) refresh(e *entry, f *pki.Fetch) {
	mono, _ := q.o.Clock()
	if q.jobs[e.key] != nil || q.failure(e.key, mono) != nil || len(q.waiting) >= q.o.Room {
		return
	}
	ca := q.issuer(f)
	if ca == nil {
		return
	}
	j := q.start(e.key, f)
	j.ca = ca
	q.next()
}

// issuer returns the trusted CA that a list is fetched of, or nil.
func (q *Queue) issuer(f *pki.Fetch) *pki.Cert {
	if q.trust == nil || f.Kind != pki.FetchCRL {
		return nil
	}
	for _, a := range q.trust.Authorities() {
		if key, err := a.Cert.Public(); err == nil && key.KeyID() == f.Issuer {
			return a.Cert
		}
	}
	return nil
}

// failure returns why k has failed not long ago, or nil.
func (q *Queue) failure(k key, mono time.Duration) error {
	for i := range q.failed {
		if f := &q.failed[i]; f.key == k && mono < f.until {
			return f.err
		}
	}
	return nil
}

func (q *Queue) fail(k key, mono time.Duration, err error) {
	q.failed = slices.DeleteFunc(q.failed, func(f failure) bool { return f.key == k || mono >= f.until })
	if len(q.failed) == maxFailures {
		q.failed = slices.Delete(q.failed, 0, 1)
	}
	q.failed = append(q.failed, failure{k, mono + failureMemory, err})
}

// Handle takes a report.
func (q *Queue) Handle(e Event) {
	switch {
	case e.job != nil:
		q.running--
		delete(q.jobs, e.job.key)
		q.done(e.job)
		q.next()
	case e.kept:
		q.disk.busy = false
		q.write()
	default:
		q.late(e.late)
	}
}

// done takes what became of a job.
func (q *Queue) done(j *job) {
	mono, wall := q.o.Clock()
	if j.err != nil {
		q.fail(j.key, mono, j.err)
		if j.old != nil && q.cache.find(j.key) == nil { // for those who ask before it is tried again
			q.cache.put(&entry{key: j.key, body: j.old, this: j.this, next: j.next, proven: true}, mono, wall)
		}
	} else {
		e := &entry{key: j.key, body: j.body, this: j.this, next: j.next, proven: j.proven}
		if !e.proven {
			e.before = j.old
		}
		e.soon(mono, wall)
		if q.cache.put(e, mono, wall) && j.proven && !j.onDisk {
			q.save(e)
		}
		if old := q.cache.get(j.key, mono, wall); old != nil {
			j.body = old.body // it may be newer
		}
	}
	if q.o.Told != nil && !j.onDisk {
		q.o.Told(Outcome{Kind: j.kind, URL: j.url, Octets: j.octets, Next: j.next, Err: j.err})
	}
	for _, w := range j.waiters {
		if q.asks[w.ask.id] != w.ask {
			continue // it has been told that it is too late
		}
		body := j.body
		if j.err != nil {
			body = j.old
		}
		w.ask.answer(w.i, body, j.err)
		if j.err == nil && !j.proven {
			w.ask.add(w.i, j.old)
		}
		q.finish(w.ask)
	}
}

// late ends an ask whose time is up. What it has waited for goes on: others may want it.
func (q *Queue) late(id uint64) {
	a := q.asks[id]
	if a == nil {
		return
	}
	for i := range a.got {
		if g := &a.got[i]; g.Body == nil && g.Err == nil {
			a.answer(i, q.cache.old(keyOf(&g.Fetch)), errLate)
		}
	}
	q.finish(a)
}

func (q *Queue) finish(a *ask) {
	if a.left == 0 {
		a.timer.Stop()
		delete(q.asks, a.id)
		q.ready = append(q.ready, a)
	}
}

// Next returns an answer that is complete.
func (q *Queue) Next() (id uint64, got []pki.Fetched, ok bool) {
	if len(q.ready) == 0 {
		return 0, nil, false
	}
	a := q.ready[0]
	q.ready = q.ready[1:]
	return a.id, a.got, true
}
