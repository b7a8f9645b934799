package engine

import (
	"errors"
	"fmt"
	"testing"

	"postern/board"
	"postern/ike"
)

// What is dropped or refused is counted once, by its reason, however rarely the log tells of it.
func TestDropsAndRefusalsOfIKEAreCounted(t *testing.T) {
	for _, c := range []struct {
		e    ike.Event
		want []counter
	}{
		{ike.Event{Kind: ike.EvDropped, Err: ike.ErrMessageID}, []counter{cIKEDropMessageID}},
		{ike.Event{Kind: ike.EvDropped, Err: ike.ErrUnknownSPI}, []counter{cIKEDropSPI}},
		{ike.Event{Kind: ike.EvDropped, Err: ike.ErrRepeated}, []counter{cIKEDropState}},
		{ike.Event{Kind: ike.EvDropped, Err: &ike.SyntaxError{Field: "x", Err: errors.New("y")}}, []counter{cIKEDropMalformed}},
		{ike.Event{Kind: ike.EvDropped, Err: fmt.Errorf("opening: %w", ike.ErrIntegrity)}, []counter{cIKEDropForged}},
		{ike.Event{Kind: ike.EvDropped, Err: ike.ErrHalfOpen}, []counter{cIKEDropFull}},
		{ike.Event{Kind: ike.EvDropped, Err: errors.New("another reason")}, []counter{cIKEDropOther}},
		{ike.Event{Kind: ike.EvRefused, Err: ike.ErrNoProposal}, []counter{cIKERefused}},
		{ike.Event{Kind: ike.EvRefused, Err: ike.ErrTooOften}, []counter{cIKERefused, cIKERefusedOften}},
		{ike.Event{Kind: ike.EvRedirected, Err: ike.ErrRedirectLoop}, []counter{cIKERedirectRefused}},
		{ike.Event{Kind: ike.EvRedirected}, nil},
		{ike.Event{Kind: ike.EvIKEUp}, nil},
	} {
		tp := newTestPath(t, board.Tiny)
		(&ikeLoop{d: tp.datapath}).countEvent(&c.e)
		for n := range numCounters {
			want := uint64(0)
			for _, w := range c.want {
				if w == n {
					want = 1
				}
			}
			tp.want(t, n, want)
		}
	}
}

// Every counter has a name of its own.
func TestCountersHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for c := range numCounters {
		if n := c.String(); n == "" || seen[n] {
			t.Errorf("counter %d is called %q, which is empty or another one's", c, n)
		} else {
			seen[n] = true
		}
	}
}
