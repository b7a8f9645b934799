package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"postern/engine/log"
	"postern/ike"
)

func TestEventsHaveGroupsAndGradesOfCharon(t *testing.T) {
	l := &ikeLoop{log: log.New(new(bytes.Buffer), log.Info), limit: log.NewLimiter(eventInterval, eventKeys),
		now: func() ike.Time { return ike.Time{Mono: time.Hour} }}
	var got []string
	defer l.log.Subscribe(log.Debug, func(n *log.Line) {
		got = append(got, fmt.Sprintf("%s %d %s %d %s", n.Group, n.Grade, n.Conn, n.IKE, n.Text))
	})()
	for _, e := range []ike.Event{
		{Kind: ike.EvIKEUp, Conn: "plant", IKE: 3},
		{Kind: ike.EvChildUp, Conn: "plant", Child: "net", IKE: 3, ChildID: 7},
		{Kind: ike.EvTrace, Conn: "plant", IKE: 3, Text: "sending IKE_AUTH request 1 [ IDi ]"},
		{Kind: ike.EvNAT, Conn: "plant", IKE: 3},
		{Kind: ike.EvDropped, Err: errors.New("no")},
		{Kind: ike.EvTrust, Conn: "plant", Text: "old"},
		{Kind: ike.EvFailed, Conn: "plant", Err: errors.New("no"), Delay: time.Second},
	} {
		l.logEvent(&e)
	}
	want := []string{
		`IKE 0 plant 3 IKE SA established: conn=plant ike=3`,
		`IKE 0 plant 3 CHILD SA established, the tunnel is up: conn=plant child=net ike=3 child_id=7`,
		`ENC 1 plant 3 sending IKE_AUTH request 1 [ IDi ]: conn=plant ike=3`,
		`IKE 1 plant 3 there is a NAT on the way, ESP goes through UDP: conn=plant ike=3`,
		`NET 1  0 IKE message dropped: err=no`,
		`CFG 1 plant 0 a certificate is doubtful: conn=plant text=old`,
		`IKE 1 plant 0 the tunnel could not be established: conn=plant next_in=1s err=no`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("lines for control clients are\n%q\nwant\n%q", got, want)
	}
}

func TestTracesForListenersHaveABudget(t *testing.T) {
	now := time.Hour
	l := &ikeLoop{log: log.New(new(bytes.Buffer), log.Info), now: func() ike.Time { return ike.Time{Mono: now} }}
	count := func() (n int) {
		for range 10 * traceBurst {
			if l.traces() {
				n++
			}
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("%d messages are described though nobody listens, want none", n)
	}
	cancel := l.log.Subscribe(log.Debug, func(*log.Line) {})
	defer cancel()
	if n := count(); n != traceBurst {
		t.Errorf("%d of many messages at once are described for a listener, want %d: a flood would cost too much", n, traceBurst)
	}
	now += 3 * traceEvery
	if n := count(); n != 3 {
		t.Errorf("after %v %d more are described, want 3", 3*traceEvery, n)
	}
	l.log.SetLevel(log.IKE, log.Debug)
	if n := count(); n != 10*traceBurst {
		t.Errorf("with the level debug %d of %d messages are described, want all", n, 10*traceBurst)
	}
}
