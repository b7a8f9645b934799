//go:build linux

package e2e

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// beat is one packet of a tunnel as somebody beside the link sees it: when, and how long.
type beat struct {
	at     time.Time
	octets int
}

// stretch is what passes in one direction while the tunnel is idle, or while it is busy.
type stretch []beat

// beats returns the ESP packets that came from the gateway at a link from one time until the other.
func (w wire) beats(link string, from, until time.Time) stretch {
	var s stretch
	for _, p := range w {
		if p.link == link && p.fromGateway(link) && isESP(p) && !p.at.Before(from) && p.at.Before(until) {
			s = append(s, beat{p.at, p.wire})
		}
	}
	return s
}

const (
	// minStretches is how many stretches of each kind a verdict needs. They should be taken by
	// turns, idle, busy, idle, busy ..., so that what else the machine does falls on both.
	minStretches = 10

	// minBeats is how many packets a stretch needs, and minTotal all of a kind together. A stretch may
	// be short of packets because the machine was.
	minBeats = window + 1
	minTotal = minStretches * 3 * window

	// window is over how many packets in a row the rate is looked at.
	window = 16

	// exchanges is how often the stretches are dealt anew. It makes 1/5000 the least that a test's p can be.
	exchanges = 4999
)

// verdict says whether idle and busy stretches can be told apart.
type verdict struct {
	sizes   []int         // the lengths of all packets; one is what it should be
	p       float64       // the smaller p-value of spacing and rate, times two because there are two
	spacing test          // between two packets in a row
	rate    test          // over window packets
	idle    time.Duration // mean spacing
	busy    time.Duration
}

// test is a comparison of two samples.
type test struct {
	d float64 // the largest distance of the two distributions (Kolmogorov and Smirnov)
	// p is how often a distance this large comes about if stretches are called idle and
	// busy at random. Within a stretch packets may depend on each other as they like.
	p float64
	// pKS is the usual p-value of d, which takes all packets to be independent.
	pKS     float64
	n, m    int
	samples []sample
}

// sample is one value, in seconds, and the number of the stretch that it is from.
type sample struct {
	value float64
	from  int
}

func (v verdict) String() string {
	return fmt.Sprintf("sizes %v; mean spacing idle %v, busy %v; spacing: D = %.4f of %d and %d, p = %.4f (as if independent %.4f); rate over %d packets: D = %.4f of %d and %d, p = %.4f; together p = %.4f",
		v.sizes, v.idle, v.busy, v.spacing.d, v.spacing.n, v.spacing.m, v.spacing.p, v.spacing.pKS, window, v.rate.d, v.rate.n, v.rate.m, v.rate.p, v.p)
}

// equalSizes tells whether all packets were of the same length.
func (v verdict) equalSizes() bool { return len(v.sizes) == 1 }

// tellApart tries to tell idle stretches of a tunnel from busy ones by the sizes of their packets, the times between
// them, and the time that several in a row take. The same stretches give the same verdict.
// The error says what is missing for one.
//
// A p of 0.01 comes about in one of a hundred runs, at most, though nothing tells them apart.
func tellApart(idle, busy []stretch) (verdict, error) {
	var v verdict
	if len(idle) < minStretches || len(busy) < minStretches {
		return v, fmt.Errorf("%d idle and %d busy stretches are too few, %d of each are needed", len(idle), len(busy), minStretches)
	}
	all := slices.Concat(idle, busy)
	sizes := map[int]bool{}
	var sum [2]time.Duration
	var count [2]int
	for i, s := range all {
		if len(s) < minBeats {
			return v, fmt.Errorf("stretch %d has %d packets, %d are needed", i, len(s), minBeats)
		}
		kind := 0
		if i >= len(idle) {
			kind = 1
		}
		sum[kind] += s[len(s)-1].at.Sub(s[0].at)
		count[kind] += len(s) - 1
		for j, b := range s {
			sizes[b.octets] = true
			if j >= 1 {
				v.spacing.samples = append(v.spacing.samples, sample{b.at.Sub(s[j-1].at).Seconds(), i})
			}
			if j >= window && j%window == 0 {
				v.rate.samples = append(v.rate.samples, sample{b.at.Sub(s[j-window].at).Seconds(), i})
			}
		}
	}
	if min(count[0], count[1]) < minTotal {
		return v, fmt.Errorf("%d spacings of idle packets and %d of busy ones are too few, %d of each are needed", count[0], count[1], minTotal)
	}
	for n := range sizes {
		v.sizes = append(v.sizes, n)
	}
	slices.Sort(v.sizes)
	v.idle, v.busy = sum[0]/time.Duration(count[0]), sum[1]/time.Duration(count[1])
	v.spacing.compare(len(idle), len(all))
	v.rate.compare(len(idle), len(all))
	v.p = min(1, 2*min(v.spacing.p, v.rate.p))
	return v, nil
}

// compare fills in a test of its samples, of which those from stretches below idle are one side.
func (t *test) compare(idle, stretches int) {
	slices.SortFunc(t.samples, func(a, b sample) int {
		switch {
		case a.value < b.value:
			return -1
		case a.value > b.value:
			return 1
		}
		return 0
	})
	first := make([]bool, stretches)
	for i := range idle {
		first[i] = true
	}
	t.d, t.n, t.m = distance(t.samples, first)
	t.pKS = kolmogorov(t.d, t.n, t.m)
	r := rand.New(rand.NewPCG(uint64(len(t.samples)), 1))
	more := 0
	for range exchanges {
		r.Shuffle(stretches, func(i, j int) { first[i], first[j] = first[j], first[i] })
		if d, _, _ := distance(t.samples, first); d >= t.d-1e-12 {
			more++
		}
	}
	t.p = float64(more+1) / (exchanges + 1)
}

// distance returns the largest distance between the distributions of the samples from stretches
// for which first is set and of the others, and how many there are of each. The samples are sorted.
func distance(samples []sample, first []bool) (d float64, n, m int) {
	for i := range samples {
		if first[samples[i].from] {
			n++
		}
	}
	m = len(samples) - n
	gap, most := 0, 0 // how far they are apart, times n times m
	for i := range samples {
		if s := &samples[i]; first[s.from] {
			gap += m
		} else {
			gap -= n
		}
		if (gap > most || -gap > most) && (i+1 == len(samples) || samples[i+1].value != samples[i].value) {
			most = max(gap, -gap)
		}
	}
	return float64(most) / float64(n) / float64(m), n, m
}

// kolmogorov returns the probability that two samples of one distribution, n and m independent values,
// lie at least d apart: Kolmogorov's limit with Stephens's correction for small samples.
func kolmogorov(d float64, n, m int) float64 {
	e := math.Sqrt(float64(n) * float64(m) / float64(n+m))
	x := (e + 0.12 + 0.11/e) * d
	if x < 0.2 {
		return 1 // the series below converges too slowly to tell it from 1
	}
	p, sign := 0.0, 2.0
	for k := 1.0; k <= 100; k++ {
		p += sign * math.Exp(-2*k*k*x*x)
		sign = -sign
	}
	return max(0, min(p, 1))
}

// notToldApart fails the test if the tunnel's idle and busy stretches differ in the sizes or times of
// their packets. It prints the p-value.
//
// It returns false if they are told apart by their times, which one honest run of a thousand is as well, or if
// there is too little for a verdict: the caller measures once more, and for the last time it is an error.
func notToldApart(t *testing.T, what string, idle, busy []stretch, last bool) bool {
	t.Helper()
	v, err := tellApart(idle, busy)
	if err != nil {
		t.Logf("%s: no verdict: %v", what, err)
		if last {
			t.Fail()
		}
		return false
	}
	t.Logf("p-value: %s: p = %.4f that idle and busy do not differ; %v", what, v.p, v)
	if !v.equalSizes() {
		t.Errorf("%s: packets of %v octets; all should have the same size", what, v.sizes)
	}
	if v.p < apart && last {
		t.Errorf("%s: idle and busy are told apart by their times, p = %.4f is below %v: %v", what, v.p, apart, v)
	}
	return v.p >= apart
}

// apart is the p below which two kinds of stretches are told apart: for one run of a thousand that
// is wrong.
const apart = 0.001

// pace is a simulated tunnel: packets at a spacing, each late by a time of its own.
type pace struct {
	spacing  time.Duration
	jitter   time.Duration // mean of how late a packet is; now and then one is much later
	drift    bool          // the jitter of each stretch is another one, as on a machine that does other things
	double   int           // every so many packets one waits for the next; 0: none does
	relative bool          // lateness adds up, as where a timer is set anew after each packet
}

// stretches makes some of them, of n packets each.
func (p pace) stretches(r *rand.Rand, count, n int) []stretch {
	out := make([]stretch, count)
	for i := range out {
		at, scale := time.Unix(int64(i), 0), 1.0
		if p.drift {
			scale = 0.5 + 1.5*r.Float64()
		}
		for range n {
			late := time.Duration(r.ExpFloat64() * scale * float64(p.jitter))
			if r.IntN(100) == 0 {
				late *= 10
			}
			if p.double > 0 && r.IntN(p.double) == 0 {
				late += p.spacing
			}
			at = at.Add(p.spacing)
			out[i] = append(out[i], beat{at.Add(late), 1400})
			if p.relative {
				at = at.Add(late)
			}
			if n := len(out[i]); n > 1 && out[i][n-1].at.Before(out[i][n-2].at) {
				out[i][n-1].at = out[i][n-2].at
			}
		}
	}
	return out
}

// TestJudgeTakesTheSameForTheSame: where nothing differs, p is below any limit no more often than the limit
// says, whatever the jitter is like.
func TestJudgeTakesTheSameForTheSame(t *testing.T) {
	const ms = time.Millisecond
	runs, below := 0, map[float64]int{}
	seeds := uint64(15)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		for _, p := range []pace{
			{spacing: 5 * ms, jitter: 100 * time.Microsecond},
			{spacing: 5 * ms, jitter: 100 * time.Microsecond, drift: true},
			{spacing: 5 * ms, jitter: 100 * time.Microsecond, relative: true},
			{spacing: 2 * ms, jitter: ms, drift: true},
		} {
			r := rand.New(rand.NewPCG(seed, 7))
			v, err := tellApart(p.stretches(r, minStretches, 60), p.stretches(r, minStretches+1, 70))
			if err != nil {
				t.Fatal(err)
			}
			runs++
			for _, limit := range []float64{apart, 0.05, 0.2} {
				if v.p < limit {
					below[limit]++
				}
			}
			if !v.equalSizes() {
				t.Errorf("seed %d: sizes %v", seed, v.sizes)
			}
		}
	}
	t.Logf("of %d comparisons of the same %v were below these limits", runs, below)
	for limit, n := range below {
		if mean := limit * float64(runs); float64(n) > mean+3*math.Sqrt(mean)+1 {
			t.Errorf("p is below %v in %d of %d runs though nothing differs", limit, n, runs)
		}
	}
	if below[0.2] == 0 {
		t.Error("p is never below 0.2: it is not a p-value")
	}
}

// TestJudgeTellsApartWhatDiffers: small differences, each hidden in the jitter of single packets.
func TestJudgeTellsApartWhatDiffers(t *testing.T) {
	const ms = time.Millisecond
	idle := pace{spacing: 5 * ms, jitter: 250 * time.Microsecond, drift: true}
	faster := idle
	faster.spacing = 4850 * time.Microsecond // 3 % shorter
	late := pace{spacing: 5 * ms, jitter: 250 * time.Microsecond}
	jittery := late
	jittery.jitter *= 2
	double := late
	double.double = 8
	relative := pace{spacing: 5 * ms, jitter: 250 * time.Microsecond, relative: true}
	fasterRelative := relative
	fasterRelative.spacing = faster.spacing
	for _, v := range []struct {
		what       string
		idle, busy pace
	}{
		{"spacing 3 % shorter, with jitter", idle, faster},
		{"the same where jitter adds up", relative, fasterRelative},
		{"twice the jitter", late, jittery},
		{"now and then two at once", late, double},
	} {
		for seed := range uint64(3) {
			r := rand.New(rand.NewPCG(seed, 8))
			got, err := tellApart(v.idle.stretches(r, 12, 100), v.busy.stretches(r, 12, 100))
			if err != nil {
				t.Fatal(err)
			}
			if got.p >= apart {
				t.Errorf("%s, seed %d: not told apart: %v", v.what, seed, got)
			}
		}
	}
}

// TestBeatsAreOneGatewaysESP: what a verdict is made of is what the tunnel's one end has sent in that time.
func TestBeatsAreOneGatewaysESP(t *testing.T) {
	begin := time.Unix(100, 0)
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Millisecond) }
	esp := packet{class: classUDPESP, src: gwA4}
	var w wire
	for i := range 100 {
		p := esp
		p.frame = frame{link: "a0", at: at(i), wire: 1400}
		switch i % 10 {
		case 1:
			p.class = classIKE
		case 2:
			p.src = gwB4
		case 3:
			p.link = "b0"
		case 4:
			p.class = classESP
		}
		w = append(w, p)
	}
	got := w.beats("a0", at(10), at(30))
	if len(got) != 14 || got[0] != (beat{at(10), 1400}) || got[1] != (beat{at(14), 1400}) {
		t.Errorf("%v; want the 14 ESP packets of gwa from 10 to 29", got)
	}
	r := rand.New(rand.NewPCG(2, 9))
	p := pace{spacing: time.Millisecond, jitter: 100 * time.Microsecond}
	notToldApart(t, "the same twice", p.stretches(r, minStretches, 3*window+1), p.stretches(r, minStretches, 3*window+1), true)
}

func TestJudgeSeesOneSizeThatDiffers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	p := pace{spacing: time.Millisecond, jitter: 10 * time.Microsecond}
	idle, busy := p.stretches(r, minStretches, 3*window+1), p.stretches(r, minStretches, 3*window+1)
	busy[3][17].octets++
	v, err := tellApart(idle, busy)
	if err != nil || v.equalSizes() || !slices.Equal(v.sizes, []int{1400, 1401}) {
		t.Errorf("sizes %v, %v; one packet is an octet longer", v.sizes, err)
	}
	if !strings.Contains(v.String(), "p = ") {
		t.Error("the verdict does not tell its p-value")
	}
}

func TestJudgeGivesNoVerdictOnLittle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	p := pace{spacing: time.Millisecond}
	enough := p.stretches(r, minStretches, 3*window+1)
	if _, err := tellApart(enough, enough[1:]); err == nil {
		t.Error("a verdict on 10 and 9 stretches")
	}
	short := slices.Clone(enough)
	short[2] = short[2][:minBeats-1]
	if _, err := tellApart(enough, short); err == nil {
		t.Error("a verdict though one stretch has too few packets")
	}
	short[2] = enough[2][1:]
	if _, err := tellApart(enough, short); err == nil {
		t.Error("a verdict though all have a packet too few together")
	}
	if _, err := tellApart(enough, enough); err != nil {
		t.Error(err)
	}
}

// TestKolmogorovSmirnovByHand: distances of small samples, and the limit's table.
func TestKolmogorovSmirnovByHand(t *testing.T) {
	for _, v := range []struct {
		a, b []float64
		d    float64
	}{
		{[]float64{1, 2, 3, 4}, []float64{5, 6, 7}, 1},
		{[]float64{1, 2, 3, 4}, []float64{1, 2, 3, 4}, 0},
		{[]float64{1, 2, 3, 4}, []float64{3, 4, 5, 6}, 0.5},
		{[]float64{1, 1, 1, 2}, []float64{1, 2, 2, 2}, 0.5},
		{[]float64{5, 5}, []float64{5, 5, 5}, 0},
	} {
		var samples []sample
		for from, list := range [][]float64{v.a, v.b} {
			for _, x := range list {
				samples = append(samples, sample{x, from})
			}
		}
		slices.SortFunc(samples, func(a, b sample) int { return int(a.value - b.value) })
		if d, n, m := distance(samples, []bool{true, false}); d != v.d || n != len(v.a) || m != len(v.b) {
			t.Errorf("%v and %v: D = %v of %d and %d, want %v", v.a, v.b, d, n, m, v.d)
		}
	}
	// Critical values of many samples: 1.2238, 1.3581, 1.6276, 1.9495 times the root of (n+m)/nm.
	const n = 1_000_000
	for x, want := range map[float64]float64{1.2238: 0.10, 1.3581: 0.05, 1.6276: 0.01, 1.9495: 0.001, 0: 1, 5: 0} {
		if p := kolmogorov(x*math.Sqrt(2.0/n), n, n); math.Abs(p-want) > 0.005*want+1e-9 {
			t.Errorf("p = %v at %v, want %v", p, x, want)
		}
	}
}

// TestFramesCarryTheKernelsTime: the time is when the packet passed, not when it was read.
func TestFramesCarryTheKernelsTime(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := unix.Send(pair[0], []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	sent := time.Now()
	time.Sleep(20 * time.Millisecond)
	buf, oob := make([]byte, 10), make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(pair[1], buf, oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	const tick = 10 * time.Millisecond // of a coarse clock
	if at := stamp(oob[:n], time.Time{}); at.Before(begin.Add(-tick)) || at.After(sent.Add(tick)) {
		t.Errorf("sent between %v and %v, the stamp says %v", begin, sent, at)
	}
	if other := time.Unix(1, 2); stamp(nil, other) != other {
		t.Error("no stamp, and not the time that was given for this case")
	}
}
