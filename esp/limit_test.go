package esp

import (
	"errors"
	"sync"
	"testing"
)

// limited is testPair with limits on both ends.
func limited(t *testing.T, s Suite, soft, hard Usage) (*Outbound, *Inbound) {
	t.Helper()
	sa := testSA(s, Out)
	sa.Soft, sa.Hard = soft, hard
	o, err := NewOutbound(sa, 2)
	if err != nil {
		t.Fatal(err)
	}
	rev := testSA(s, In)
	rev.ReplayWindow, rev.Soft, rev.Hard = 64, soft, hard
	in, err := NewInbound(rev, 1)
	if err != nil {
		t.Fatal(err)
	}
	return o, in
}

// trySeal returns a new ESP packet around n octets, or the error.
func trySeal(o *Outbound, n int) ([]byte, error) {
	buf := make([]byte, HeadRoom+n+TailRoom)
	start, end, err := o.Seal(0, buf, HeadRoom, n, 4)
	return buf[start:end], err
}

func TestHardLimitsHoldToThePacketAndOctet(t *testing.T) {
	for _, s := range allSuites() {
		for _, c := range []struct {
			name       string
			soft, hard Usage
			due        int // packets of 100 octets until the soft limit
		}{
			{"packets", Usage{Packets: 7}, Usage{Packets: 10}, 7},
			{"octets", Usage{Bytes: 601}, Usage{Bytes: 1099}, 7},
			{"the first of both", Usage{Packets: 9, Bytes: 700}, Usage{Packets: 10, Bytes: 5000}, 7},
		} {
			o, in := limited(t, s, c.soft, c.hard)
			_, free, _ := testPair(t, s, 64) // opens what in refuses
			sent := 10
			for i := range sent {
				pkt, err := trySeal(o, 100)
				if err != nil {
					t.Fatalf("%v, %s: packet %d of %d: %v", s, c.name, i+1, sent, err)
				}
				if _, _, err := in.Open(0, append([]byte(nil), pkt...)); err != nil {
					t.Fatalf("%v, %s: opening packet %d of %d: %v", s, c.name, i+1, sent, err)
				}
				if want := i+1 >= c.due; o.Due() != want || in.Due() != want {
					t.Errorf("%v, %s: after %d packets the soft limit is reached out %v, in %v; want %v", s, c.name, i+1, o.Due(), in.Due(), want)
				}
				if _, _, err := free.Open(0, pkt); err != nil {
					t.Fatal(err)
				}
			}
			before := o.Left()
			if _, err := trySeal(o, 100); !errors.Is(err, ErrExpired) {
				t.Errorf("%v, %s: packet %d is sealed with %v, want ErrExpired", s, c.name, sent+1, err)
			}
			if c.hard.Bytes == 1099 {
				if _, err := trySeal(o, 99); err != nil {
					t.Errorf("%v: the last 99 octets below the limit: %v", s, err)
				}
			} else if o.Left() != before {
				t.Errorf("%v, %s: a refused packet was counted: %+v, before %+v", s, c.name, o.Left(), before)
			}
			// A peer that goes on is not listened to any more, and the window stays.
			beyond, _, _ := testPair(t, s, 64)
			for range sent {
				_, _ = trySeal(beyond, 100)
			}
			pkt, _ := trySeal(beyond, 100)
			was := state(in)
			if _, _, err := in.Open(0, pkt); !errors.Is(err, ErrExpired) {
				t.Errorf("%v, %s: the peer's packet %d is opened with %v, want ErrExpired", s, c.name, sent+1, err)
			}
			if state(in) != was {
				t.Errorf("%v, %s: a packet beyond the limit changed the state", s, c.name)
			}
		}
	}
}

// Two workers together seal not one octet more than the limit.
func TestHardLimitOfOctetsHoldsForAllWorkersTogether(t *testing.T) {
	o, _ := limited(t, allSuites()[0], Usage{}, Usage{Bytes: 100_050})
	var wg sync.WaitGroup
	var sealed [2]int
	for w := range sealed {
		wg.Go(func() {
			buf := make([]byte, HeadRoom+100+TailRoom)
			for range 2000 {
				if _, _, err := o.Seal(w, buf, HeadRoom, 100, 4); err == nil {
					sealed[w]++
				}
			}
		})
	}
	wg.Wait()
	if n := sealed[0] + sealed[1]; n != 1000 || o.Left().Bytes != 50 || o.Seq() != 1000 {
		t.Errorf("%d packets of 100 octets were sealed under a limit of 100,050, which leaves %+v, up to number %d; want 1000", n, o.Left(), o.Seq())
	}
}
