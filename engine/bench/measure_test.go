package bench

import (
	"errors"
	"testing"
	"time"
)

// clock is a virtual one.
type clock struct{ t time.Duration }

func (c *clock) now() time.Duration { return c.t }

func TestMeasureTakesTheMedianOfRounds(t *testing.T) {
	var c clock
	turns := 0
	cost, err := measure(c.now, time.Second, 32, nil, func(n int) (round, error) {
		turns++
		r := round{n, time.Duration(n) * 1000, time.Duration(n) * 3000}
		switch {
		case turns == 1: // cold
			r.seal *= 50
		case turns%5 == 0: // something else had the processor
			r.seal += 10 * time.Millisecond
			r.open += 20 * time.Millisecond
		}
		c.t += r.seal + r.open
		return r, nil
	})
	if err != nil || cost != (Cost{1000, 3000}) {
		t.Errorf("cost is %v, %v; want 1000 and 3000 ns, whatever a fifth of the rounds met with", cost, err)
	}
	if c.t < time.Second || c.t > time.Second+50*time.Millisecond {
		t.Errorf("it took %v, and was to take a second", c.t)
	}
}

func TestMeasureOutlivesAStall(t *testing.T) {
	var c clock
	turns := 0
	cost, err := measure(c.now, time.Second, 32, nil, func(n int) (round, error) {
		r := round{n, time.Duration(n) * 1000, time.Duration(n) * 3000}
		if turns++; turns == 2 {
			r.seal += 1200 * time.Millisecond // more than there is time
		}
		c.t += r.seal + r.open
		return r, nil
	})
	if err != nil || cost != (Cost{1000, 3000}) || c.t > 2*time.Second {
		t.Errorf("cost is %v, %v after %v; want 1000 and 3000 ns: one stall must not be the figure", cost, err, c.t)
	}
}

func TestMeasureFitsRoundsToTheBoard(t *testing.T) {
	for _, tc := range []struct {
		name         string
		packet       time.Duration
		most, rounds int // the largest round that is wanted, and how many at least
	}{
		{"fast", time.Microsecond, 32, 1000},
		{"a packet takes half of what a round may", 5 * time.Millisecond, 2, 50},
		{"a packet takes longer than a round may", 20 * time.Millisecond, 1, 45},
		{"a packet takes longer than there is time", 3 * time.Second, 1, 1},
	} {
		var c clock
		most, rounds := 0, 0
		cost, err := measure(c.now, time.Second, 32, nil, func(n int) (round, error) {
			most, rounds = max(most, n), rounds+1
			r := round{n, time.Duration(n) * tc.packet / 2, time.Duration(n) * tc.packet / 2}
			c.t += r.seal + r.open
			return r, nil
		})
		if err != nil || cost.Seal != int64(tc.packet/2) || cost.Open != int64(tc.packet/2) {
			t.Errorf("%s: %v, %v, want half of %v for each", tc.name, cost, err, tc.packet)
		}
		if most != tc.most || rounds < tc.rounds {
			t.Errorf("%s: %d rounds of up to %d packets, want at least %d of up to %d", tc.name, rounds, most, tc.rounds, tc.most)
		}
	}
}

func TestMeasureEndsWhenToldOrBroken(t *testing.T) {
	var c clock
	stop := make(chan struct{})
	turns := 0
	_, err := measure(c.now, time.Hour, 1, stop, func(int) (round, error) {
		if turns++; turns == 3 {
			close(stop)
		}
		return round{1, 1, 1}, nil
	})
	if !errors.Is(err, ErrStopped) || turns != 3 {
		t.Errorf("stopped in turn 3, it ends after %d with %v", turns, err)
	}
	broken := errors.New("broken")
	if _, err = measure(c.now, time.Hour, 1, nil, func(int) (round, error) { return round{}, broken }); err != broken {
		t.Errorf("a turn that fails ends it with %v", err)
	}
}

func TestSeriesKeepsAnEvenSample(t *testing.T) {
	for _, n := range []int64{1, 2, 255, 256, 257, 1000, 100_000} {
		var s series
		for i := range n {
			s.add(i)
		}
		got, want := s.median(), (n-1)/2
		if d := got - want; d < -n/100-1 || d > n/100+1 {
			t.Errorf("the median of 0 to %d is %d, want about %d: the sample is not even", n-1, got, want)
		}
	}
	if (&series{}).median() != 0 {
		t.Error("nothing has a median")
	}
}
