package log

import (
	"sync"
	"time"
)

// Limiter thins out lines that somebody else can provoke: of each key one passes per
// interval, the others are counted. Its table is bounded: keys that find no room share
// one place, so that at most Keys+1 lines pass per interval, whatever a peer sends. It
// may be used from any goroutine.
type Limiter struct {
	mu    sync.Mutex
	every time.Duration
	keys  int
	slots map[string]*limit
	rest  limit
}

type limit struct {
	last       time.Duration
	used       bool
	suppressed int
}

// NewLimiter returns a limiter that lets one line per key pass in each interval and
// remembers at most keys keys.
func NewLimiter(every time.Duration, keys int) *Limiter {
	return &Limiter{every: every, keys: keys, slots: make(map[string]*limit, keys)}
}

// Allow tells whether a line of that key may be written at now, a reading of a
// monotonic clock, and if so, how many of its key were suppressed before it.
func (l *Limiter) Allow(key string, now time.Duration) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[key]
	if s == nil {
		if len(l.slots) >= l.keys {
			l.expire(now)
		}
		if len(l.slots) >= l.keys {
			s = &l.rest
		} else {
			s = &limit{}
			l.slots[key] = s
		}
	}
	if s.used && now-s.last < l.every {
		s.suppressed++
		return 0, false
	}
	n := s.suppressed
	*s = limit{last: now, used: true}
	return n, true
}

// expire forgets the keys whose interval is over. What was suppressed under them is
// added to the shared place, so that it is not lost from the count.
func (l *Limiter) expire(now time.Duration) {
	for k, s := range l.slots {
		if now-s.last >= l.every {
			l.rest.suppressed += s.suppressed
			delete(l.slots, k)
		}
	}
}
