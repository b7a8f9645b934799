package fetch

import (
	"slices"

	"postern/ike/pki"
)

// Cached visits the files of the cache that have proved authentic, as they were fetched.
func (q *Queue) Cached(visit func(kind pki.FetchKind, body []byte)) {
	for _, e := range q.cache.list {
		if e.proven {
			visit(e.kind, e.body)
		}
	}
}

// Flush forgets the files of a kind, in memory and on the disk, and what has failed: who asks for
// one again gets a new one. What is under way goes on.
func (q *Queue) Flush(kind pki.FetchKind) {
	for _, e := range slices.Clone(q.cache.list) {
		if e.kind != kind {
			continue
		}
		q.cache.drop(e)
		if q.disk.files != nil {
			q.disk.queue = slices.DeleteFunc(q.disk.queue, func(x *entry) bool { return x.key == e.key })
			q.disk.queue = append(q.disk.queue, &entry{key: e.key}) // an empty file is none
		}
	}
	q.disk.flushed[kind] = true
	q.failed = nil
	q.write()
}
