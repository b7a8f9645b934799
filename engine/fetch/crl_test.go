package fetch

import (
	"bytes"
	"testing"
	"time"

	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// listOf is the fetch of a CA's list.
func listOf(t *testing.T, ca *pkitest.Cert) pki.Fetch {
	t.Helper()
	key, err := ca.Public()
	if err != nil {
		t.Fatal(err)
	}
	return pki.Fetch{Kind: pki.FetchCRL, URL: "http://192.0.2.1/ca.crl", Issuer: key.KeyID()}
}

// The list of a CA that is trusted is renewed while the old one serves; that of another CA
// is not, since nobody could say whether the new one is authentic.
func TestQueueRenewsListsOfTrustedCAs(t *testing.T) {
	ca, other := pkitest.Root("Weir root"), pkitest.Root("Lock root")
	for name, c := range map[string]struct {
		trust  *pki.Trust
		second []byte
		taken  bool
	}{
		"renewed":         {pkitest.Trust(ca), ca.CRL(testNow.Add(30*time.Minute), other), true},
		"of another CA":   {pkitest.Trust(ca), other.CRL(testNow.Add(30 * time.Minute)), false},
		"older":           {pkitest.Trust(ca), ca.CRL(testNow.Add(-30 * time.Minute)), false},
		"nonsense":        {pkitest.Trust(ca), []byte("nonsense"), false},
		"CA not trusted":  {pkitest.Trust(other), ca.CRL(testNow.Add(30*time.Minute), other), false},
		"nobody trusted":  {nil, ca.CRL(testNow.Add(30*time.Minute), other), false},
		"the same as now": {pkitest.Trust(ca), nil, true},
	} {
		first := ca.CRL(testNow)
		if c.second == nil {
			c.second = first
		}
		now := first
		q := newQueue(t, func() []byte { return now })
		q.SetTrust(c.trust)
		q.Keep(q.get(listOf(t, ca)))
		q.settle()
		now = c.second
		q.mono = 29 * time.Minute
		q.get(listOf(t, ca))
		q.settle()
		q.wantAsked(1, name+": it is too early for another one")
		q.mono = 31 * time.Minute
		if got := q.get(listOf(t, ca)); !bytes.Equal(got[0].Body, first) {
			t.Errorf("%s: nobody waits for the renewal: the old list is still good", name)
		}
		q.settle()
		if got := q.get(listOf(t, ca)); bytes.Equal(got[0].Body, c.second) != c.taken || !c.taken && !bytes.Equal(got[0].Body, first) {
			t.Errorf("%s: the new list is taken: %v, expected %v", name, !c.taken, c.taken)
		}
		q.settle()
		asked := int32(2)
		if q.issuer(&pki.Fetch{Issuer: listOf(t, ca).Issuer}) == nil {
			asked = 1
		}
		q.wantAsked(asked, name+": in vain once in a minute at most")
	}
}

func TestQueueReadsListsFromTheDiskUntilTheyEnd(t *testing.T) {
	ca := pkitest.Root("Weir root")
	list := ca.CRL(testNow)
	q := newQueue(t, func() []byte { return list })
	q.Keep(q.get(listOf(t, ca)))
	q.settle()
	for at, asked := range map[time.Duration]int32{30 * time.Minute: 0, 61 * time.Minute: 1} {
		q.asked.Store(0)
		q.mono = at
		q.restart(servers{server: func(string) string { q.asked.Add(1); return "HTTP/1.1 503 No\r\n\r\n" }})
		if got := q.get(listOf(t, ca)); got[0].Err != nil || !bytes.Equal(got[0].Body, list) {
			t.Errorf("after %v: %+v", at, got)
		}
		q.wantAsked(asked, at.String())
	}
}

// A list that has ended is handed out beside the one that came for it, until that one is proven:
// whoever answers in the server's place must not make a revocation forgotten.
func TestForgedListDoesNotHideARevocation(t *testing.T) {
	ca, other := pkitest.Root("Weir root"), pkitest.Root("Lock root")
	revoked, forged := ca.CRL(testNow, other), other.CRL(testNow.Add(2*time.Hour))
	for _, restart := range []bool{false, true} {
		now := revoked
		q := newQueue(t, func() []byte { return now })
		q.Keep(q.get(listOf(t, ca)))
		q.settle()
		now = forged
		q.mono = 2 * time.Hour
		if restart {
			q.restart(servers{server: func(string) string { q.asked.Add(1); return withBody(string(now)) }})
		}
		q.asked.Store(0)
		// At once, while it is on probation, and after that.
		for i, at := range []time.Duration{0, 0, 2 * time.Minute} {
			q.mono += at
			got := q.get(listOf(t, ca))
			if len(got) != 2 || !bytes.Equal(got[0].Body, forged) || !bytes.Equal(got[1].Body, revoked) || got[1].URL != got[0].URL {
				t.Fatalf("restart %v, time %d: %d answers", restart, i, len(got))
			}
		}
		q.wantAsked(2, "the forged one serves for a minute")
		now = ca.CRL(testNow.Add(2*time.Hour), other)
		q.mono += 2 * time.Minute
		got := q.get(listOf(t, ca))
		q.Keep(got)
		q.settle()
		if got := q.get(listOf(t, ca)); len(got) != 1 || !bytes.Equal(got[0].Body, now) {
			t.Errorf("restart %v: %d answers once there is a proven one", restart, len(got))
		}
		if held := len(q.cache.list[0].body); q.cache.held != held || len(q.cache.list) != 1 {
			t.Errorf("the cache says that it holds %d octets, and has %d", q.cache.held, held)
		}
	}
}
