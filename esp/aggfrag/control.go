package aggfrag

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// slowest is the least rate, in payloads per second (t_mbi of RFC 5348 section 4.3).
	slowest = 1.0 / 64
	// fastest keeps intervals above a microsecond.
	fastest = 1e6

	// noFeedbackFirst is how long feedback is waited for at the start (RFC 5348 section 4.2).
	noFeedbackFirst = 2 * time.Second
)

// Rate says how fast payloads are to leave. Rates are in payloads per second, which have one size.
type Rate struct {
	// Max is the rate: all the time in non-congestion-controlled mode (RFC 9347 section 2.4.1), at
	// most if Adapt is set. Up to a million.
	Max float64

	// Min is what congestion control never goes below, at least 1/64. The SA finds out that its path
	// is back no faster than this.
	Min float64

	// Adapt switches congestion control on (RFC 9347 section 2.4.2): TFRC (RFC 5348), without its
	// optional history discounting and oscillation reduction.
	Adapt bool

	// Size is that of the payload, in octets: what may leave in the first round trip depends on it.
	Size int

	// RTT is the round trip time if it is known, as from IKE's own exchanges; 0: it is not. Without
	// it the first rate is one payload per second.
	RTT time.Duration

	// TripLoss and TripAfter are the circuit breaker (RFC 9347 section 2.4.2.1): it trips when the peer
	// reports one loss event in TripLoss payloads, or more, for TripAfter without a break. 0: there
	// is none. A peer that reports nothing does not trip it; whether it lives is IKE's to find out.
	//
	// A loss event is all that is lost in a round trip. At a constant rate the peer is not told the
	// round trip, so that each gap is one: then no less than one payload in TripLoss is lost.
	TripLoss  uint32
	TripAfter time.Duration
}

// Control is both halves of congestion information of a pair of SAs (RFC 9347 section 3): what arrives is
// reported to the peer, and what the peer reports sets the rate. It outlives the
// SAs. All methods may be called by anyone at any time; Interval and Tripped wait for nobody. Times are
// of one clock that never goes back.
type Control struct {
	interval atomic.Int64 // between two payloads, in nanoseconds
	tripped  atomic.Bool

	mu sync.Mutex
	r  Rate

	// What the peer is told.
	in     losses
	echo   uint32 // the TVal that arrived last; 0: none yet
	echoAt time.Duration
	peer   time.Duration // its round trip time

	// What the peer has told.
	x         float64       // the rate
	path      time.Duration // the smoothed round trip on the path; 0: not known
	rtt       time.Duration // what counts: no less than both sides' intervals
	heard     bool          // feedback has come
	answered  time.Duration // when the latest payload left that the peer has answered, counted in microseconds
	lossRate  uint32        // the LossEventRate of that answer
	adaptedAt time.Duration // when the rate was last computed
	giveUpAt  time.Duration // when the rate is halved, without feedback
	highSince time.Duration // since when losses are high
	high      bool
}

// NewControl makes a Control for an SA pair that begins at now. What is out of range is moved
// into it.
func NewControl(r Rate, now time.Duration) *Control {
	r.Max = max(slowest, min(r.Max, fastest))
	r.Min = max(slowest, min(r.Min, r.Max))
	c := &Control{r: r, path: max(0, r.RTT), rtt: max(0, r.RTT), giveUpAt: now + noFeedbackFirst, adaptedAt: now}
	switch {
	case !r.Adapt:
		c.setRate(r.Max)
	case c.rtt > 0:
		c.setRate(c.initial())
	default:
		c.setRate(1)
	}
	return c
}

// Interval returns the time between two payloads. It changes only through In and Out.
func (c *Control) Interval() time.Duration { return time.Duration(c.interval.Load()) }

// Tripped tells whether the circuit breaker has tripped: nothing may be sent through the SA but what
// IKE needs, and somebody has to be told.
func (c *Control) Tripped() bool { return c.tripped.Load() }

// Rearm closes the circuit again.
func (c *Control) Rearm() {
	c.mu.Lock()
	c.high = false
	c.tripped.Store(false)
	c.mu.Unlock()
}

// Rekeyed says that In will be given the numbers of a new SA from now on, and no more of the old one.
// Rate and losses so far stay.
func (c *Control) Rekeyed() {
	c.mu.Lock()
	c.in.begun = false
	c.mu.Unlock()
}

// In takes note of an authentic payload as it arrives, in its turn or not: its number, whether the outer
// header was marked CE and that is to be heeded (RFC 9347 section 3.1; not by default, section 8), and its
// header. It tells whether Interval has changed: who waits to send the next payload
// should look again.
func (c *Control) In(now time.Duration, seq uint64, ce bool, h *Header) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Congestion {
		c.peer = time.Duration(h.RTT) * time.Microsecond
		if h.TVal != c.echo {
			c.echo, c.echoAt = h.TVal, now
		}
	}
	c.in.arrived(now, seq, ce, h.Probe, c.peer)
	before := c.interval.Load()
	if h.Congestion {
		c.feedback(now, h)
	}
	return c.interval.Load() != before
}

// Out makes h the header of sub-type 1 for a payload that leaves now, but for Probe, which is the caller's,
// and BlockOffset, which Fill sets. Where congestion control or the breaker are on,
// every payload should have it.
func (c *Control) Out(now time.Duration, h *Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silence(now)
	h.Congestion = true
	h.LossEventRate, h.CE = c.in.rate()
	h.RTT = 0
	if c.r.Adapt {
		h.RTT = micros(c.rtt, MaxRTT)
	}
	h.TransmitDelay = micros(c.Interval(), MaxDelay)
	h.TVal = timestamp(now)
	h.TEcho, h.EchoDelay = c.echo, 0
	if c.echo != 0 {
		h.EchoDelay = micros(now-c.echoAt, MaxDelay)
	}
}

// Status is the state of a Control at one moment. Loss rates are the inverse ones of the header.
type Status struct {
	Rate             float64 // payloads per second
	RTT              time.Duration
	LossIn, LossPeer uint32 // of what arrives here, and at the peer
}

// Status tells what is going on, for who looks on.
func (c *Control) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, _ := c.in.rate()
	return Status{c.x, c.rtt, in, c.lossRate}
}

// timestamp is the clock that a TVal tells, in microseconds; never 0, which stands for none.
func timestamp(now time.Duration) uint32 { return max(1, uint32(now/time.Microsecond)) }

func micros(d time.Duration, limit uint32) uint32 {
	return uint32(max(0, min(d/time.Microsecond, time.Duration(limit))))
}

// setRate sets the rate, within its limits.
func (c *Control) setRate(x float64) {
	c.x = max(c.r.Min, min(x, c.r.Max))
	c.interval.Store(int64(float64(time.Second) / c.x))
}

// initial is the rate of the first round trip: two to four payloads (RFC 5348 section 4.2).
func (c *Control) initial() float64 {
	size := float64(max(1, c.r.Size))
	return min(4, max(2, 4380/size)) / c.rtt.Seconds()
}

// feedback takes what the peer reports (RFC 5348 section 4.3). It is news only if it
// answers a payload that none has answered before: a peer that hears nothing repeats itself.
func (c *Control) feedback(now time.Duration, h *Header) {
	age := timestamp(now) - h.TEcho
	left := now/time.Microsecond - time.Duration(age)
	if h.TEcho == 0 || age > 1<<31 || c.heard && left <= c.answered {
		return
	}
	first := !c.heard && c.rtt == 0
	c.heard, c.answered = true, left
	c.breaker(now, h.LossEventRate)
	worse := h.LossEventRate != 0 && (c.lossRate == 0 || h.LossEventRate < c.lossRate)
	due := first || now-c.adaptedAt >= c.rtt
	if due || worse {
		c.lossRate = h.LossEventRate
	}
	if due {
		c.adaptedAt = now
		if sample := age - h.EchoDelay; h.EchoDelay < MaxDelay && sample <= MaxRTT { // one below 0 is larger
			sample := time.Duration(max(1, sample)) * time.Microsecond
			if c.path == 0 {
				c.path = sample
			} else {
				c.path = (9*c.path + sample) / 10
			}
		}
	}
	// RFC 9347 section 3: a round trip is no shorter than what both sides wait before they send.
	c.rtt = max(c.path, time.Duration(h.TransmitDelay)*time.Microsecond+c.Interval())
	if c.r.Adapt && (due || worse) {
		c.adapt(first, due)
	}
	c.giveUpAt = now + c.patience()
}

// adapt computes the rate. What the peer receives is taken to be what is sent (RFC 9347 appendix B),
// so that the rate at most doubles in a round trip.
func (c *Control) adapt(first, due bool) {
	x := c.x
	switch {
	case first:
		x = c.initial()
	case due:
		x *= 2
		if c.lossRate == 0 {
			x = max(x, c.initial())
		}
	}
	if c.lossRate != 0 {
		x = min(x, perRTT(1/float64(c.lossRate))/c.rtt.Seconds())
	}
	c.setRate(x)
}

// patience is how long feedback is waited for: four round trips, and two payloads at least.
func (c *Control) patience() time.Duration { return max(4*c.rtt, 2*c.Interval()) }

// silence halves the rate if there was no feedback for too long (RFC 5348 section 4.4). The
// SA is never idle, so that section's exceptions for an idle sender do not arise.
func (c *Control) silence(now time.Duration) {
	if !c.r.Adapt || now < c.giveUpAt {
		return
	}
	c.setRate(c.x / 2)
	c.giveUpAt = now + c.patience()
}

// breaker looks whether losses have been high for too long.
func (c *Control) breaker(now time.Duration, rate uint32) {
	switch {
	case c.r.TripLoss == 0 || rate == 0 || rate > c.r.TripLoss:
		c.high = false
	case !c.high:
		c.high, c.highSince = true, now
	case now-c.highSince >= c.r.TripAfter:
		c.tripped.Store(true)
	}
}
