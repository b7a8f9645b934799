package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"postern/ike/pki"
)

// How long what was fetched serves.
const (
	// probation is how long a file serves that no verdict has found to be authentic: those who
	// ask at the same time get the same.
	probation = time.Minute
	// unsaid is how long one serves that does not say when there will be a newer one.
	unsaid = 5 * time.Minute
	// oldest is after what time we look for a newer one though the old one is still good: a CA
	// makes a new list when something is revoked, and not only when the old one ends.
	oldest  = 24 * time.Hour
	soonest = 10 * time.Minute
)

// entry is a file in the cache.
type entry struct {
	key
	body       []byte
	this, next time.Time
	renew      time.Duration // when to look for a newer one
	until      time.Duration // on the monotonic clock, while it is on probation or does not say
	proven     bool
	used       time.Duration
	// before is, while this one is on probation, the proven file that it came for: it has ended, but
	// what it says of revoked certificates counts until there is another that is proven.
	before []byte
}

func (e *entry) size() int { return len(e.body) + len(e.before) }

// soon sets when to look for a newer file: halfway to when there will be one.
func (e *entry) soon(mono time.Duration, wall time.Time) {
	e.until = mono + unsaid
	if !e.proven {
		e.until = mono + probation
	}
	e.renew = e.until
	if e.proven && !e.next.IsZero() {
		e.renew = mono + min(max(e.next.Sub(wall)/2, soonest), oldest)
	}
}

// good tells whether it may serve.
func (e *entry) good(mono time.Duration, wall time.Time) bool {
	if !e.proven || e.next.IsZero() {
		return mono < e.until
	}
	return !wall.After(e.next)
}

// stale tells whether a newer one should be looked for.
func (e *entry) stale(mono time.Duration) bool { return e.proven && mono >= e.renew }

// cache is what has been fetched, within bounds.
type cache struct {
	list          []*entry
	octets, files int
	held          int // octets
}

func (c *cache) find(k key) *entry {
	for _, e := range c.list {
		if e.key == k {
			return e
		}
	}
	return nil
}

// get returns the file of a key if it may serve.
func (c *cache) get(k key, mono time.Duration, wall time.Time) *entry {
	e := c.find(k)
	if e == nil || !e.good(mono, wall) {
		return nil
	}
	e.used = mono
	return e
}

// old returns the last file of a key that was proven, though it may have ended; nil if there is
// none.
func (c *cache) old(k key) []byte {
	e := c.find(k)
	switch {
	case e == nil:
		return nil
	case e.proven:
		return e.body
	}
	return e.before
}

// put takes a file in, in the place of the one of the same key, and drops those that were not
// used for longest where room is short. A file that is older than a proven one that is still
// good is not taken: somebody on the way could bring it back after something was revoked.
func (c *cache) put(e *entry, mono time.Duration, wall time.Time) bool {
	if old := c.find(e.key); old != nil {
		if old.proven && old.good(mono, wall) && e.this.Before(old.this) {
			old.renew = e.renew
			return false
		}
		c.drop(old)
	}
	if e.size() > c.octets || c.files == 0 {
		return false
	}
	for len(c.list) >= c.files || c.held+e.size() > c.octets {
		c.drop(slices.MinFunc(c.list, func(a, b *entry) int { return int(min(max(a.used-b.used, -1), 1)) }))
	}
	e.used = mono
	c.list = append(c.list, e)
	c.held += e.size()
	return true
}

func (c *cache) drop(e *entry) {
	c.list = slices.DeleteFunc(c.list, func(x *entry) bool { return x == e })
	c.held -= e.size()
}

// Keep ends the probation of files that a verdict has found to be authentic and of use. They are
// those that Next has handed out, with the same body.
func (q *Queue) Keep(list []pki.Fetched) {
	mono, wall := q.o.Clock()
	for i := range list {
		f := &list[i]
		e := q.cache.find(keyOf(&f.Fetch))
		if e == nil || e.proven || len(f.Body) == 0 || len(e.body) != len(f.Body) || &e.body[0] != &f.Body[0] {
			continue
		}
		q.cache.held -= len(e.before)
		e.proven, e.before = true, nil
		e.soon(mono, wall)
		q.save(e)
	}
}

// Files keeps files over a restart, within bounds of its own. It is called from goroutines of
// the Queue, one Store and any number of Loads at a time.
type Files interface {
	Load(name string) ([]byte, error)
	Store(name string, b []byte) error
}

// maxOCSPOnDisk bounds the answers of responders that are kept: they are short-lived, and not
// worth much flash memory.
const maxOCSPOnDisk = 4 << 10

// disk is what is to be written.
type disk struct {
	files Files
	busy  bool // a goroutine writes
	queue []*entry
	// flushed: files of that kind that are there may be ones that were to be forgotten; they are
	// not read any more.
	flushed [pki.FetchOCSP + 1]bool
}

// fileName returns the name under which a file is kept.
func (k *key) fileName() string {
	h := sha256.New()
	_, _ = h.Write([]byte{byte(k.kind)})
	_, _ = h.Write(k.post[:])
	_, _ = h.Write([]byte(k.url))
	name := hex.EncodeToString(h.Sum(nil)[:16])
	if k.kind == pki.FetchOCSP {
		return name + ".ocsp"
	}
	return name + ".crl"
}

// save has a file written to the disk. The queue holds no more than the cache does.
func (q *Queue) save(e *entry) {
	if q.disk.files == nil || e.next.IsZero() || e.kind == pki.FetchOCSP && len(e.body) > maxOCSPOnDisk {
		return
	}
	q.disk.queue = slices.DeleteFunc(q.disk.queue, func(x *entry) bool { return x.key == e.key || len(x.body) > 0 && q.cache.find(x.key) != x })
	q.disk.queue = append(q.disk.queue, e)
	q.write()
}

// write writes the next file, in a goroutine: flash memory can take its time. That it fails is
// no more than a fetch after the next restart.
func (q *Queue) write() {
	if q.disk.busy || len(q.disk.queue) == 0 {
		return
	}
	e := q.disk.queue[0]
	q.disk.queue[0] = nil
	q.disk.queue = q.disk.queue[1:]
	q.disk.busy = true
	files, name, body := q.disk.files, e.fileName(), e.body
	go func() {
		_ = files.Store(name, body)
		q.tell(Event{kept: true})
	}()
}
