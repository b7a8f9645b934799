package fetch

import (
	"testing"

	"postern/ike/pki"
)

// What is flushed is fetched anew, though the disk has it; other kinds stay.
func TestFlushForgetsAKind(t *testing.T) {
	q := newQueue(t, nil)
	crl, ocsp := key{kind: pki.FetchCRL, url: "http://192.0.2.1/a.crl"}, key{kind: pki.FetchOCSP, url: "http://192.0.2.1/o"}
	for _, k := range []key{crl, ocsp} {
		e := &entry{key: k, body: []byte("body"), next: testNow.AddDate(1, 0, 0), proven: true}
		if !q.cache.put(e, 0, testNow) {
			t.Fatal("there is no room")
		}
		q.save(e)
		for q.disk.busy {
			q.Handle(<-q.Events())
		}
	}
	kept := func(k key) int { b, _ := q.files.Load(k.fileName()); return len(b) }
	kinds := func() (n [2]int) {
		q.Cached(func(kind pki.FetchKind, _ []byte) { n[kind]++ })
		return n
	}
	if kinds() != [2]int{1, 1} || kept(crl) == 0 {
		t.Fatalf("the cache has %v", kinds())
	}
	q.Flush(pki.FetchCRL)
	for q.disk.busy {
		q.Handle(<-q.Events())
	}
	if kinds() != [2]int{0, 1} || q.cache.held != len("body") {
		t.Errorf("after a flush the cache has %v, %d octets", kinds(), q.cache.held)
	}
	if kept(crl) != 0 || kept(ocsp) == 0 {
		t.Error("the disk has what was flushed, or lacks what was not")
	}
}
