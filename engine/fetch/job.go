package fetch

import (
	"context"
	"time"

	"postern/ike/pki"
)

// maxOCSP bounds the answer of a responder. One with the responder's certificate has some
// two thousand octets.
const maxOCSP = 16 << 10

const ocspRequest = "application/ocsp-request"

// job is one thing to fetch. Once it runs, the goroutine owns all but key and waiters until it
// reports.
type job struct {
	key
	fetch   pki.Fetch
	waiters []waiter
	ca      *pki.Cert // refreshed in advance, so its signature is to be checked by this CA
	old     []byte    // what was had before, though it has ended; nil: nothing

	body       []byte
	this, next time.Time // of body, and after an error of old, where the disk had it
	octets     int       // that the server sent
	err        error
	onDisk     bool // it was there
	proven     bool // it is known to be authentic
}

// run gets what j names, and reports.
func (q *Queue) run(j *job, files Files, wall time.Time) {
	if j.ca == nil {
		j.fromDisk(files, wall)
	}
	if !j.onDisk {
		j.fromServer(q.ctx, &q.o)
	}
	q.tell(Event{job: j})
}

// fromDisk takes what an earlier run of the daemon has kept, unless there is a newer one by now.
// It had proved authentic before it was kept, and verdicts look at it again.
func (j *job) fromDisk(files Files, wall time.Time) {
	if files == nil {
		return
	}
	b, err := files.Load(j.fileName())
	if err != nil || len(b) == 0 {
		return
	}
	this, next, err := lifetime(j.kind, b)
	if err != nil {
		return
	}
	if next.IsZero() || wall.After(next) {
		if j.old == nil {
			j.old, j.this, j.next = b, this, next
		}
		return
	}
	j.body, j.this, j.next, j.onDisk, j.proven = b, this, next, true, true
}

// fromServer asks the server.
func (j *job) fromServer(ctx context.Context, o *Options) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := Request{URL: j.url, Max: o.MaxCRL}
	if j.kind == pki.FetchOCSP {
		r.Post, r.Type, r.Max = j.fetch.Post, ocspRequest, min(maxOCSP, o.MaxCRL)
		if r.Post == nil {
			r.Post = []byte{}
		}
	}
	if j.body, j.err = o.Do(ctx, &r); j.err != nil {
		return
	}
	j.octets = len(j.body)
	this, next, err := lifetime(j.kind, j.body)
	if err != nil {
		j.err = &Error{j.url, err}
		return
	}
	j.this, j.next = this, next
	if j.ca == nil {
		return
	}
	list, err := pki.ParseCRL(j.body)
	if err == nil {
		err = list.CheckSignature(j.ca)
	}
	if err != nil {
		j.err = &Error{j.url, err}
		return
	}
	j.proven = true
}
