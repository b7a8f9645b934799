package bench

import "time"

// round is one turn of both halves of the work: so many packets, and what each half took.
type round struct {
	packets    int
	seal, open time.Duration
}

// roundsPerPart is how many rounds are made room for at least, where a board is not so slow
// that a single packet takes longer: the shorter a round, the fewer of them meet with what
// else happens on the machine.
const roundsPerPart = 64

// leastRounds is how many rounds there should be before the budget ends them, so that one
// that something stopped for long is not the median; for them it may be overdrawn by as much.
const leastRounds = 5

// measure takes turns for the time of budget, the first one to warm up, and returns the
// median over the rounds of what a packet cost. turn is told how many packets the round
// should have, 1 at first and at most most; it may take another number. At least one round
// is measured, however long it takes.
func measure(now func() time.Duration, budget time.Duration, most int, stop <-chan struct{}, turn func(n int) (round, error)) (Cost, error) {
	var seal, open series
	began := now()
	for n, first := 1, true; ; first = false {
		if stopped(stop) {
			return Cost{}, ErrStopped
		}
		r, err := turn(n)
		if err != nil {
			return Cost{}, err
		}
		spent := now() - began
		over := spent >= 2*budget || spent >= budget && seal.n >= leastRounds
		// Caches and branch prediction were cold in the first. A board so slow that this
		// round alone ate the budget must live with it.
		if !first || over {
			seal.add(int64(r.seal) / int64(r.packets))
			open.add(int64(r.open) / int64(r.packets))
		}
		if over {
			return Cost{seal.median(), open.median()}, nil
		}
		if n < most && 2*(r.seal+r.open) <= budget/roundsPerPart {
			n = min(2*n, most)
		}
	}
}

// series keeps a sample of the figures that it is given: all at first, and each time that
// there is no more room, every second one of those that it has and of those to come.
type series struct {
	v      [256]int64
	n      int
	stride int // of the figures one is kept; 0 is 1
	seen   int
}

// Not inlined, as are others here: it is called at many places, where only room counts.
//
//go:noinline
func (s *series) add(v int64) {
	s.stride = max(s.stride, 1)
	s.seen++
	if s.seen%s.stride != 0 {
		return
	}
	if s.n == len(s.v) {
		for i := range s.n / 2 {
			s.v[i] = s.v[2*i+1]
		}
		s.n /= 2
		s.stride *= 2
		if s.seen%s.stride != 0 {
			return
		}
	}
	s.v[s.n] = v
	s.n++
}

// median returns the middle of what was kept, which it sorts; 0 if there is nothing. That
// is little and happens seldom, so the shortest code will do.
//
//go:noinline
func (s *series) median() int64 {
	if s.n == 0 {
		return 0
	}
	v := s.v[:s.n]
	for i := range v {
		for ; i > 0 && v[i-1] > v[i]; i-- {
			v[i-1], v[i] = v[i], v[i-1]
		}
	}
	return (v[(s.n-1)/2] + v[s.n/2]) / 2
}
