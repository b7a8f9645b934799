package aggfrag

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const ms = time.Millisecond

func near(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > math.Abs(want)*share {
		t.Errorf("%s: %v, want %v within %v %%", what, got, want, 100*share)
	}
}

// TestRateEquation: the formula of RFC 9347 appendix B, calculated by hand for four loss rates.
func TestRateEquation(t *testing.T) {
	for _, v := range []struct{ p, want float64 }{
		{0.0001, 122.289}, // 0.0081650 + 12*0.0061237*0.0001*(1+32e-8) = 0.0081723 + 0.0000049
		{0.01, 11.2332},   // 0.0816497 + 12*0.0612372*0.01*1.0032     = 0.0816497 + 0.0073720
		{0.1, 1.77010},    // 0.2581989 + 12*0.1936492*0.1*1.32        = 0.2581989 + 0.3067403
		{1, 0.0041099},    // 0.8164966 + 12*0.6123724*1*33            = 0.8164966 + 242.4994847
	} {
		near(t, fmt.Sprint("p = ", v.p), perRTT(v.p), v.want, 0.001)
	}
}

// refLosses is RFC 5348 section 5 over lists of everything that was sent: which payloads arrived when. It
// knows nothing of reordering.
func refLosses(at []time.Duration, rtt time.Duration, first uint64) (inverse float64) {
	type event struct {
		seq  int
		time time.Duration
	}
	var events []event
	for s := 1; s < len(at); s++ {
		if at[s] >= 0 {
			continue
		}
		before, after := s, s
		for at[before] < 0 {
			before--
		}
		for after < len(at) && at[after] < 0 {
			after++
		}
		if after == len(at) {
			break
		}
		when := at[before] + (at[after]-at[before])*time.Duration(s-before)/time.Duration(after-before)
		if len(events) == 0 || when > events[len(events)-1].time+rtt {
			events = append(events, event{s, when})
		}
	}
	if len(events) == 0 {
		return 0
	}
	last := len(at) - 1
	for at[last] < 0 {
		last--
	}
	intervals := []float64{float64(last - events[len(events)-1].seq + 1)}
	for i := len(events) - 1; i > 0; i-- {
		intervals = append(intervals, float64(events[i].seq-events[i-1].seq))
	}
	intervals = append(intervals, float64(first))
	w := []float64{1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2}
	k := min(len(intervals)-1, 8)
	var with, without, sum float64
	for i := range k {
		with += intervals[i] * w[i]
		without += intervals[i+1] * w[i]
		sum += w[i]
	}
	return max(with, without) / sum
}

func TestLossEventRateIsTheReferences(t *testing.T) {
	several := 0
	for seed := range seeds(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		rtt := time.Duration(1+r.IntN(100)) * ms
		every := 1 + r.IntN(40)
		at := []time.Duration{0}
		var l losses
		now := time.Duration(0)
		l.arrived(0, 1, false, false, rtt)
		burst := 0
		var first uint64
		for seq := uint64(2); seq < 800; seq++ {
			now += time.Duration(r.IntN(10_000)) * time.Microsecond
			if r.IntN(every+1) == 0 {
				burst = 1 + r.IntN(12)
			}
			if burst > 0 {
				burst--
				at = append(at, -1)
				continue
			}
			at = append(at, now)
			l.arrived(now, seq, false, false, rtt)
			if l.known == 1 && first == 0 {
				first = uint64(l.ago[0])
			}
		}
		for i := range uint64(5) { // the last gap counts once three payloads are behind it
			at = append(at, now)
			l.arrived(now, 800+i, false, false, rtt)
			if l.known == 1 && first == 0 {
				first = uint64(l.ago[0])
			}
		}
		got, marks := l.rate()
		want := refLosses(at, rtt, first)
		// Times are rounded differently, which can put a loss into another event.
		if math.Abs(float64(got)-want) > 1+want/20 || marks {
			t.Errorf("seed %d: rate 1/%d, marks %v; want 1/%v without", seed, got, marks, want)
		}
		if l.known == lossIntervals {
			several++
		}
	}
	if several < int(seeds(200)) {
		t.Errorf("only %d of the runs had enough loss events", several)
	}
}

// TestLossIntervalsByHand: every hundredth payload is lost, and then no more: the open interval
// counts from when it makes the average longer.
func TestLossIntervalsByHand(t *testing.T) {
	var l losses
	seq := uint64(1)
	send := func(n int, lost bool) {
		for range n {
			if !lost {
				l.arrived(time.Duration(seq)*10*ms, seq, false, false, 50*ms)
			}
			seq++
		}
	}
	send(99, false)
	if rate, _ := l.rate(); rate != 0 {
		t.Errorf("1/%d without a loss, want 0", rate)
	}
	for range 10 {
		send(1, true)
		send(99, false)
	}
	if rate, _ := l.rate(); rate != 100 {
		t.Errorf("1/%d where every hundredth is lost", rate)
	}
	send(500, false) // 600 in the open interval: (600*5 + 100*(5+5+5+4+3+2+1)) / 30
	if rate, _ := l.rate(); rate != (600*5+100*25)/30 {
		t.Errorf("1/%d after 600 without loss, want 1/183", rate)
	}
	// A new SA counts from 1 again, and the open interval goes on.
	l.begun, seq = false, 1
	send(300, false)
	if rate, _ := l.rate(); rate != (900*5+100*25)/30 {
		t.Errorf("1/%d after 900 without loss and a new SA, want 1/233", rate)
	}
}

func TestLossesWithinARoundTripAreOneEvent(t *testing.T) {
	var l losses
	for seq := uint64(1); seq <= 100; seq++ {
		if seq%2 == 0 && seq >= 50 && seq < 60 {
			continue
		}
		l.arrived(time.Duration(seq)*ms, seq, false, false, 20*ms)
	}
	if l.known != 1 || l.start != 50 {
		t.Errorf("%d events, the last from %d; want one from 50", l.known, l.start)
	}
	// A long gap is several: one per round trip.
	l.arrived(200*ms, 200, false, false, 20*ms)
	l.arrived(201*ms, 201, false, false, 20*ms)
	if l.known != 1 {
		t.Error("a gap counts before three payloads are behind it")
	}
	l.arrived(202*ms, 202, false, false, 20*ms)
	if l.known != 1+5 {
		t.Errorf("%d events in 99 ms of losses with a round trip of 20 ms, want 5", l.known-1)
	}
}

func TestLossHistoryEdges(t *testing.T) {
	var l losses
	for _, seq := range []uint64{1000, 1001, 1003, 1004, 1002, 1005, 1005, 1002, 3} { // reordered, doubled, from before
		l.arrived(0, seq, false, false, ms)
	}
	if rate, _ := l.rate(); rate != 0 || l.done != 1005 {
		t.Errorf("rate 1/%d and %d done without a loss", rate, l.done)
	}
	// A gap of any length costs no time; without a round trip it is one event.
	for i := range uint64(3) {
		l.arrived(time.Second, 1<<63+i, false, false, 0)
	}
	if l.known != 1 {
		t.Errorf("%d events, want 1", l.known)
	}
	for i := range uint64(3) {
		l.arrived(time.Hour, 1<<63+1<<62+i, false, false, ms)
	}
	if rate, _ := l.rate(); l.known != lossIntervals || rate == 0 {
		t.Errorf("%d events, rate 1/%d", l.known, rate)
	}
	// What a search for the path's MTU loses is not congestion.
	var probing losses
	for _, seq := range []uint64{1, 3, 4, 5, 6, 7} {
		probing.arrived(0, seq, false, true, ms)
	}
	if rate, _ := probing.rate(); rate != 0 {
		t.Errorf("rate 1/%d while the path is probed", rate)
	}
}

func TestCongestionMarksCountAsLosses(t *testing.T) {
	var l losses
	for seq := uint64(1); seq <= 1000; seq++ {
		l.arrived(time.Duration(seq)*10*ms, seq, seq%50 == 0, false, 20*ms)
	}
	if rate, marks := l.rate(); rate != 50 || !marks {
		t.Errorf("1/%d, marks %v; want 1/50 with", rate, marks)
	}
	for seq := uint64(1001); seq <= 2000; seq++ { // marks leave the report with the intervals
		if seq%50 != 0 {
			l.arrived(time.Duration(seq)*10*ms, seq, false, false, 20*ms)
		}
	}
	if rate, marks := l.rate(); rate != 50 || marks {
		t.Errorf("1/%d, marks %v; want 1/50 without", rate, marks)
	}
}

// link carries payloads one way, at so many per second, with a queue, and may be cut.
type link struct {
	perSec float64
	queue  int
	delay  time.Duration
	busy   time.Duration
	cut    bool
	flying []flight
}

type flight struct {
	at  time.Duration
	seq uint64
	h   Header
}

func (l *link) send(now time.Duration, seq uint64, h Header) (lost bool) {
	each := time.Duration(float64(time.Second) / l.perSec)
	if l.cut || l.busy-now > time.Duration(l.queue)*each {
		return true
	}
	l.busy = max(now, l.busy) + each
	l.flying = append(l.flying, flight{l.busy + l.delay, seq, h})
	return false
}

// side is one end of a simulated tunnel.
type side struct {
	*Control
	link *link // towards the other
	due  time.Duration
	seq  uint64
	sent int
	lost int
}

// pair runs two ends in virtual time.
type pair struct {
	now  time.Duration
	a, b side
}

func (p *pair) run(until time.Duration) {
	p.a.sent, p.a.lost, p.b.sent, p.b.lost = 0, 0, 0, 0
	for {
		now := until
		for _, s := range []*side{&p.a, &p.b} {
			now = min(now, s.due)
			if len(s.link.flying) > 0 {
				now = min(now, s.link.flying[0].at)
			}
		}
		if p.now = now; now == until {
			return
		}
		for i, s := range []*side{&p.a, &p.b} {
			other := []*side{&p.b, &p.a}[i]
			for len(s.link.flying) > 0 && s.link.flying[0].at <= now {
				f := s.link.flying[0]
				s.link.flying = s.link.flying[1:]
				if other.In(now, f.seq, false, &f.h) {
					other.due = min(other.due, now+other.Interval())
				}
			}
			if s.due <= now {
				var h Header
				s.Out(now, &h)
				b := make([]byte, CongestionHeaderLen)
				h.Put(b)
				h.Parse(b)
				s.seq++
				s.sent++
				if s.link.send(now, s.seq, h) {
					s.lost++
				}
				s.due = now + s.Interval()
			}
		}
	}
}

func newPair(r Rate, ab, ba link) *pair {
	p := &pair{now: time.Hour}
	p.a = side{Control: NewControl(r, p.now), link: &ab, due: p.now}
	p.b = side{Control: NewControl(r, p.now), link: &ba, due: p.now}
	return p
}

// TestRateFindsWhatThePathCarries: slow start to the limit of the path, then about that much with
// few losses, and the other direction is not held back by it.
func TestRateFindsWhatThePathCarries(t *testing.T) {
	for _, known := range []time.Duration{0, 40 * ms} {
		r := Rate{Max: 2000, Adapt: true, Size: 1400, RTT: known}
		p := newPair(r, link{perSec: 400, queue: 20, delay: 20 * ms}, link{perSec: 50000, queue: 100, delay: 20 * ms})
		if x := p.a.Status().Rate; known == 0 && x != 1 || known > 0 && math.Abs(x-4380/1400.0/0.04) > 1e-6 {
			t.Errorf("first rate %v with a round trip of %v; want 1 without, 4380 octets in 40 ms with", x, known)
		}
		p.run(p.now + 20*time.Second)
		sum := 0.0
		for range 20 {
			p.run(p.now + time.Second)
			sum += float64(p.a.sent)
			if loss := float64(p.a.lost) / float64(p.a.sent); loss > 0.15 {
				t.Errorf("%.0f %% of a second's payloads are lost", loss*100)
			}
		}
		if mean := sum / 20; mean < 250 || mean > 440 {
			t.Errorf("%v payloads a second on a path for 400", mean)
		}
		near(t, "rate of the direction without limit", p.b.Status().Rate, 2000, 0.01)
		if rtt := p.a.Status().RTT; rtt < 40*ms || rtt > 110*ms {
			t.Errorf("round trip %v on a path of 40 ms with a queue of 50 ms", rtt)
		}
	}
}

func TestRateFollowsThePathDownAndUp(t *testing.T) {
	r := Rate{Max: 2000, Adapt: true, Size: 1400, RTT: 30 * ms}
	p := newPair(r, link{perSec: 1000, queue: 30, delay: 15 * ms}, link{perSec: 1000, queue: 30, delay: 15 * ms})
	for i, limit := range []float64{1000, 100, 800} {
		p.a.link.perSec = limit
		p.run(p.now + 40*time.Second)
		p.run(p.now + 10*time.Second)
		if x := float64(p.a.sent) / 10; x < 0.5*limit || x > 1.25*limit {
			t.Errorf("step %d: %v payloads a second on a path for %v", i, x, limit)
		}
	}
}

// TestRateIsHalvedWithoutFeedback: at 4 round trips at the earliest, down to the least rate; and when the
// path is back, so is the rate.
func TestRateIsHalvedWithoutFeedback(t *testing.T) {
	r := Rate{Max: 1000, Min: 2, Adapt: true, Size: 1400, RTT: 50 * ms}
	p := newPair(r, link{perSec: 1e5, queue: 100, delay: 25 * ms}, link{perSec: 1e5, queue: 100, delay: 25 * ms})
	p.run(p.now + 5*time.Second)
	near(t, "rate on a free path", p.a.Status().Rate, 1000, 0.01)
	p.a.link.cut = true // b still hears nothing new, and repeats what it heard
	p.run(p.now + 150*ms)
	near(t, "rate before feedback is missed", p.a.Status().Rate, 1000, 0.01)
	p.run(p.now + 150*ms)
	near(t, "rate after 4 round trips of silence", p.a.Status().Rate, 500, 0.01)
	p.run(p.now + 200*ms)
	near(t, "rate after 8", p.a.Status().Rate, 250, 0.01)
	p.run(p.now + 40*time.Minute)
	if x := p.a.Status().Rate; x != 2 {
		t.Errorf("rate %v after a long silence, want the least", x)
	}
	p.a.link.cut = false
	p.run(p.now + 30*time.Second)
	if x := p.a.Status().Rate; x < 100 {
		t.Errorf("rate %v half a minute after the path is back", x)
	}
}

// TestConstantRateIsConstant: losses change nothing, and the breaker trips after its time alone.
func TestConstantRateIsConstant(t *testing.T) {
	r := Rate{Max: 500, Size: 1400, TripLoss: 20, TripAfter: 3 * time.Second}
	p := newPair(r, link{perSec: 1000, queue: 10, delay: 10 * ms}, link{perSec: 1000, queue: 10, delay: 10 * ms})
	p.run(p.now + 10*time.Second)
	near(t, "round trip", float64(p.a.Status().RTT), float64(22*ms), 0.05)
	if p.a.Tripped() || p.b.Tripped() {
		t.Error("tripped without a loss")
	}
	p.a.link.perSec = 100
	p.run(p.now + 2*time.Second)
	if p.a.Tripped() {
		t.Error("tripped before losses lasted 3 s")
	}
	p.run(p.now + 5*time.Second)
	if !p.a.Tripped() || p.b.Tripped() {
		t.Errorf("tripped: %v and %v, want it of the side whose payloads are lost, and only there", p.a.Tripped(), p.b.Tripped())
	}
	if p.a.Interval() != 2*ms || p.a.sent != 2500 || p.b.Status().LossIn == 0 || p.a.Status().LossPeer != p.b.Status().LossIn {
		t.Errorf("interval %v, %d sent in 5 s, %+v, %+v", p.a.Interval(), p.a.sent, p.a.Status(), p.b.Status())
	}
	p.a.Rearm()
	p.a.link.perSec = 1000
	p.run(p.now + 10*time.Second)
	if p.a.Tripped() {
		t.Error("tripped again though the path is free")
	}
}

// TestRoundTripIsNoShorterThanBothIntervals: RFC 9347 section 3 has the longer of two estimates.
func TestRoundTripIsNoShorterThanBothIntervals(t *testing.T) {
	p := newPair(Rate{Max: 10}, link{perSec: 1e5, queue: 9, delay: ms}, link{perSec: 1e5, queue: 9, delay: ms})
	p.run(p.now + 5*time.Second)
	near(t, "round trip at 10 payloads a second on a path of 2 ms", float64(p.a.Status().RTT), float64(200*ms), 0.001)
}

func TestRekeyingKeepsRateAndLosses(t *testing.T) {
	r := Rate{Max: 1000, Adapt: true, Size: 1400, RTT: 40 * ms}
	p := newPair(r, link{perSec: 300, queue: 10, delay: 20 * ms}, link{perSec: 1e5, queue: 100, delay: 20 * ms})
	p.run(p.now + 20*time.Second)
	loss, rate := p.b.Status().LossIn, p.a.Status().Rate
	p.a.link.flying = nil
	p.a.seq = 0
	p.b.Rekeyed()
	p.run(p.now + 30*ms)
	if now := p.b.Status(); now.LossIn < loss || float64(now.LossIn) > 1.2*float64(loss) {
		t.Errorf("loss 1/%d becomes 1/%d with a new SA", loss, now.LossIn)
	}
	near(t, "rate with a new SA", p.a.Status().Rate, rate, 0.3)
}

// TestReportsThatLieDoNoHarm: headers at random, at random times: the rate stays within its limits, and
// what never was sent is no feedback.
func TestReportsThatLieDoNoHarm(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	c := NewControl(Rate{Max: 100, Min: 1, Adapt: true, Size: 1400, RTT: 10 * ms}, 0)
	now := time.Duration(0)
	for i := range 20_000 {
		now += time.Duration(r.IntN(50)) * ms
		h := Header{Congestion: true, LossEventRate: r.Uint32() >> r.IntN(32), RTT: r.Uint32() & MaxRTT, EchoDelay: r.Uint32() & MaxDelay, TransmitDelay: r.Uint32() & MaxDelay, TVal: r.Uint32(), TEcho: r.Uint32()}
		c.In(now, r.Uint64()>>r.IntN(64), r.IntN(2) == 0, &h)
		var out Header
		c.Out(now, &out)
		if s := c.Status(); s.Rate < 1 || s.Rate > 100 || s.RTT < 0 || s.RTT > 5*time.Second || c.Interval() < 10*ms || c.Interval() > time.Second {
			t.Fatalf("after %d headers: %+v, %v", i, s, c.Interval())
		}
	}
	quiet := NewControl(Rate{Max: 100, Adapt: true, RTT: 10 * ms}, time.Hour)
	for i := range 100 {
		quiet.In(time.Hour+time.Duration(i)*ms, uint64(i+1), false, &Header{Congestion: true, TVal: 1, TEcho: uint32((time.Hour + time.Minute) / time.Microsecond)})
	}
	if quiet.heard {
		t.Error("an echo of what was never sent is taken as feedback")
	}
}

func TestControlCostsNoAllocation(t *testing.T) {
	c, h, seq := NewControl(Rate{Max: 1000, Adapt: true, Size: 1400}, 0), Header{}, uint64(0)
	if n := testing.AllocsPerRun(500, func() {
		seq += 1 + seq%7/6
		now := time.Duration(seq) * ms
		c.Out(now, &h)
		h.TEcho = h.TVal
		c.In(now+ms/2, seq, seq%9 == 0, &h)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestRatesAreKeptInTheirRange(t *testing.T) {
	for _, v := range []struct {
		r    Rate
		want time.Duration
	}{
		{Rate{}, 64 * time.Second},
		{Rate{Max: 1e9}, time.Microsecond},
		{Rate{Max: -1, Min: 5}, 64 * time.Second},
		{Rate{Max: 0.5, Adapt: true}, 2 * time.Second},
		{Rate{Max: 100, Min: 1000, Adapt: true}, 10 * ms},
	} {
		if got := NewControl(v.r, 0).Interval(); got != v.want {
			t.Errorf("%+v: %v, want %v", v.r, got, v.want)
		}
	}
}

// TestFirstLossLeavesTheRateThatArrived: the first interval is made up so that the equation gives
// what the path has shown to carry (RFC 5348 section 6.3.1), whatever was sent until then.
func TestFirstLossLeavesTheRateThatArrived(t *testing.T) {
	for _, perSec := range []int{20, 200, 5000} {
		var l losses
		rtt, each := 100*ms, time.Second/time.Duration(perSec)
		for seq := uint64(1); seq < 40_000; seq++ {
			if seq != 30_000 {
				l.arrived(time.Duration(seq)*each, seq, false, false, rtt)
			}
			if l.known > 0 {
				near(t, fmt.Sprint("rate after the first loss at ", perSec), perRTT(1/float64(l.ago[0]))/rtt.Seconds(), float64(perSec), 0.15) // intervals are whole numbers
				break
			}
		}
		if l.known != 1 {
			t.Errorf("%d losses", l.known)
		}
	}
}

func TestMarksWithinARoundTripAreOneEvent(t *testing.T) {
	var l losses
	for seq := uint64(1); seq <= 100; seq++ {
		l.arrived(time.Duration(seq)*ms, seq, seq >= 50 && seq < 70, false, 20*ms)
	}
	if l.known != 1 || l.start != 50 {
		t.Errorf("%d events, the last from %d; want one from 50", l.known, l.start)
	}
}

// TestLongGapCostsNoTime: of a year of losses with a round trip of a nanosecond the last events count.
func TestLongGapCostsNoTime(t *testing.T) {
	var l losses
	l.arrived(0, 1, false, false, 1)
	last := uint64(1) << 62
	for i := range uint64(3) {
		l.arrived(365*24*time.Hour, last+i, false, false, 1)
	}
	if l.known < 5 || last-l.start > last/1e6 { // not all: floats are not that exact
		t.Errorf("%d events, the last %d before the end", l.known, last-l.start)
	}
}

// answer is what a peer says that has just received what Out has made at sent.
func answer(sent time.Duration, delay, loss uint32) *Header {
	return &Header{Congestion: true, TEcho: timestamp(sent), EchoDelay: delay, LossEventRate: loss, TVal: timestamp(sent) + 77}
}

func TestRateDoublesOnceInARoundTrip(t *testing.T) {
	c := NewControl(Rate{Max: 1e6, Adapt: true, Size: 1400, RTT: 100 * ms}, time.Second)
	first := c.Status().Rate
	for i := range 99 {
		c.In(time.Second+100*ms+time.Duration(i)*ms, uint64(i+1), false, answer(time.Second+time.Duration(i)*ms, 0, 0))
	}
	near(t, "rate after a round trip", c.Status().Rate, 2*first, 0.001)
	c.In(time.Second+200*ms, 200, false, answer(time.Second+100*ms, 0, 0))
	near(t, "rate after two", c.Status().Rate, 4*first, 0.001)
	// Losses are heeded at once.
	if !c.In(time.Second+201*ms, 201, false, answer(time.Second+101*ms, 0, 10)) {
		t.Error("a lower rate is not told")
	}
	near(t, "rate after losses", c.Status().Rate, perRTT(0.1)/0.1, 0.02)
	if c.Status().LossPeer != 10 {
		t.Errorf("loss 1/%d, want 1/10", c.Status().LossPeer)
	}
}

func TestRoundTripLeavesOutThePeersDelay(t *testing.T) {
	c := NewControl(Rate{Max: 1e6}, time.Second)
	c.In(2*time.Second, 1, false, answer(time.Second, 960_000, 0))
	near(t, "round trip", float64(c.Status().RTT), float64(40*ms), 0.001)
	c.In(3*time.Second, 2, false, answer(2900*ms, 20_000, 0)) // 80 ms: a tenth of it counts
	near(t, "smoothed round trip", float64(c.Status().RTT), float64(44*ms), 0.001)
	c.In(7*time.Second, 3, false, answer(3*time.Second, MaxDelay, 0)) // no measure: the delay may be longer
	c.In(8*time.Second, 4, false, answer(7900*ms, 100_001, 0))        // a delay that is longer than it was away
	near(t, "round trip after no measures", float64(c.Status().RTT), float64(44*ms), 0.001)
}

// TestEchoTellsSinceWhenAClockIsKnown: seeing the same TVal again does not make it younger (RFC
// 9347 section 3).
func TestEchoTellsSinceWhenAClockIsKnown(t *testing.T) {
	c := NewControl(Rate{Max: 10}, 0)
	var out Header
	if c.Out(ms, &out); out.TEcho != 0 || out.EchoDelay != 0 || out.RTT != 0 || out.LossEventRate != 0 || out.TVal != 1000 || out.TransmitDelay != 100_000 || !out.Congestion {
		t.Errorf("before anything has come: %+v", out)
	}
	c.In(10*ms, 1, false, &Header{Congestion: true, TVal: 7})
	c.In(30*ms, 2, false, &Header{Congestion: true, TVal: 7})
	if c.Out(40*ms, &out); out.TEcho != 7 || out.EchoDelay != 30_000 {
		t.Errorf("echo %d of %d µs ago, want 7 of 30,000", out.TEcho, out.EchoDelay)
	}
	c.In(50*ms, 3, false, &Header{Congestion: true, TVal: 8})
	if c.Out(51*ms, &out); out.TEcho != 8 || out.EchoDelay != 1000 {
		t.Errorf("echo %d of %d µs ago, want 8 of 1,000", out.TEcho, out.EchoDelay)
	}
	if c.Out(time.Hour, &out); out.EchoDelay != MaxDelay {
		t.Errorf("delay %d after an hour", out.EchoDelay)
	}
	c.In(2*time.Hour, 4, false, &Header{}) // sub-type 0 has none
	if c.Out(2*time.Hour, &out); out.TEcho != 8 {
		t.Errorf("echo %d after a plain header", out.TEcho)
	}
}

func TestBreakerTripsOnLossesWithoutABreakAlone(t *testing.T) {
	c := NewControl(Rate{Max: 10, TripLoss: 10, TripAfter: 5 * time.Second}, 0)
	for i := range 60 {
		loss := uint32(10)
		if i%5 == 4 {
			loss = 11
		}
		c.In(time.Duration(i+1)*time.Second, uint64(i+1), false, answer(time.Duration(i)*time.Second+900*ms, 0, loss))
	}
	if c.Tripped() {
		t.Error("tripped though losses were low every fifth second")
	}
	for i := 60; i < 66; i++ {
		if c.Tripped() {
			t.Errorf("tripped after %d s", i-60)
		}
		c.In(time.Duration(i+1)*time.Second, uint64(i+1), false, answer(time.Duration(i)*time.Second+900*ms, 0, 3))
	}
	if !c.Tripped() {
		t.Error("not tripped after 5 s of losses")
	}
	// The old answer again is no report.
	c.Rearm()
	for i := 66; i < 90; i++ {
		c.In(time.Duration(i+1)*time.Second, uint64(i+1), false, answer(65*time.Second+900*ms, 0, 3))
	}
	if c.Tripped() {
		t.Error("tripped by a report that was repeated")
	}
}
