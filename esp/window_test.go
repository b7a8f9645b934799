package esp

import (
	"fmt"
	"math/rand"
	"testing"
)

var windowSizes = []int{64, 65, 96, 127, 128, 1000, 1024, 2048, 4095, 4096}

func makeWindow(size int) *window {
	w := new(window)
	w.init(size)
	return w
}

func TestReplayWindowTable(t *testing.T) {
	for _, n := range windowSizes {
		size := uint64(n)
		type step struct {
			seq  uint64
			want bool
			why  string
		}
		for _, c := range []struct {
			name  string
			steps []step
		}{
			{"start", []step{
				{0, false, "0 is never sent"},
				{1, true, "the first"},
				{1, false, "again"},
				{0, false, "0 is never sent"},
				{2, true, "in order"},
			}},
			{"reordered", []step{
				{3, true, "ahead"},
				{1, true, "late, inside"},
				{2, true, "late, inside"},
				{1, false, "again"},
				{2, false, "again"},
				{3, false, "again"},
			}},
			{"left edge", []step{
				{size + 1, true, "the window is 2 to size+1"},
				{1, false, "one left of it"},
				{2, true, "its first number"},
				{2, false, "again"},
				{3, true, "its second number"},
				{size + 2, true, "moves by one"},
				{2, false, "left of it now"},
				{3, false, "its first number, again"},
				{4, true, "its second number"},
			}},
			{"jump of one window", []step{
				{10, true, "ahead"},
				{10 + size, true, "10 is just outside now"},
				{10, false, "left of it"},
				{11, true, "its first number"},
			}},
			{"jump of less than a window", []step{
				{10, true, "ahead"},
				{9 + size, true, "10 is the first inside"},
				{10, false, "seen"},
				{11, true, "inside"},
			}},
			{"jump over the whole ring", []step{
				{5, true, "ahead"},
				{5 + 8192, true, "the same word of the ring"},
				{5, false, "left of it"},
				{5 + 8192 - size + 1, true, "its first number is new"},
				{5 + 8192 - 1, true, "the one before is new"},
				{5 + 8192, false, "again"},
			}},
			{"end of 32 bits", []step{
				{1<<32 - 1, true, "the last without ESN"},
				{1<<32 - 1, false, "again"},
				{1<<32 + 1, true, "over the edge"},
				{1 << 32, true, "late, over the edge"},
				{1<<32 - 2, true, "late, before the edge"},
				{1<<32 - 2, false, "again"},
				{1 << 32, false, "again"},
			}},
			{"end of 64 bits", []step{
				{1<<64 - 2, true, "ahead"},
				{1<<64 - 1, true, "the last of all"},
				{1<<64 - 1, false, "again"},
				{1<<64 - 1 - (size - 1), true, "the window's first"},
				{1<<64 - 1 - size, false, "left of it"},
				{1, false, "numbers do not wrap"},
			}},
		} {
			w := makeWindow(n)
			for i, s := range c.steps {
				if got := w.check(s.seq); got != s.want {
					t.Errorf("size %d, %s, step %d: check(%d) = %v, want %v: %s", n, c.name, i, s.seq, got, s.want, s.why)
				}
				if got := w.advance(s.seq); got != s.want {
					t.Errorf("size %d, %s, step %d: advance(%d) = %v, want %v: %s", n, c.name, i, s.seq, got, s.want, s.why)
				}
			}
		}
	}
}

// A set of all numbers ever seen is the window's specification.
func TestReplayWindowAgainstSet(t *testing.T) {
	steps := 20000
	if testing.Short() {
		steps = 3000
	}
	for _, n := range windowSizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			rng := rand.New(rand.NewSource(int64(n)))
			w := makeWindow(n)
			seen := map[uint64]bool{}
			top := uint64(0)
			accepted := 0
			for i := range steps {
				var seq uint64
				switch rng.Intn(20) {
				case 0:
					seq = top + uint64(rng.Intn(3*n)) // jumps, some past the whole ring
				case 1:
					seq = top - min(top, uint64(rng.Intn(2*n))) // often too old
				case 2, 3, 4, 5:
					seq = top - min(top, uint64(rng.Intn(n+2))) // about the left edge
				default:
					seq = top + uint64(rng.Intn(4))
				}
				want := seq != 0 && !seen[seq] && (seq > top || top-seq < uint64(n))
				if got := w.check(seq); got != want {
					t.Fatalf("step %d: check(%d) = %v with top %d, want %v", i, seq, got, top, want)
				}
				if rng.Intn(4) == 0 {
					continue // as after a failed integrity check: nothing may have changed
				}
				if got := w.advance(seq); got != want {
					t.Fatalf("step %d: advance(%d) = %v with top %d, want %v", i, seq, got, top, want)
				}
				if want {
					accepted++
					seen[seq] = true
					top = max(top, seq)
				}
			}
			if accepted < steps/10 || accepted > steps*9/10 {
				t.Errorf("%d of %d steps were accepted: the test has lost its meaning", accepted, steps)
			}
		})
	}
}

func TestReplayWindowOffTakesEverythingAndCounts(t *testing.T) {
	w := makeWindow(0)
	for _, seq := range []uint64{5, 5, 0, 1, 1 << 40, 3} {
		if !w.check(seq) || !w.advance(seq) {
			t.Errorf("a window of size 0 rejected %d", seq)
		}
	}
	if got := w.top.Load(); got != 1<<40 {
		t.Errorf("the highest number is %d, want %d", got, uint64(1<<40))
	}
	if w.ring != nil {
		t.Error("a window that checks nothing has a bitmap")
	}
}

func TestReplayWindowMemory(t *testing.T) {
	for _, c := range []struct{ size, words int }{{64, 4}, {65, 4}, {96, 4}, {97, 8}, {128, 8}, {1024, 64}, {4096, 256}} {
		if got := len(makeWindow(c.size).ring); got != c.words {
			t.Errorf("a window of %d packets has %d words, want %d", c.size, got, c.words)
		}
	}
}

// appendixSeqh is the choice of Seqh in RFC 4303 appendix A2.3, in its own variables.
func appendixSeqh(th, tl, w, seql uint32) uint32 {
	if tl >= w-1 { // Case A
		if seql >= tl-w+1 {
			return th
		}
		return th + 1
	}
	if seql >= tl-w+1 { // Case B
		return th - 1
	}
	return th
}

func TestInferFollowsAppendixA(t *testing.T) {
	const last = 1<<32 - 1
	for _, n := range windowSizes {
		w := makeWindow(n)
		size := uint32(n)
		for _, th := range []uint32{0, 1, 5, 1 << 31, last} {
			for _, tl := range []uint32{0, 1, size - 2, size - 1, size, 1 << 16, 1 << 31, last - size, last - 1, last} {
				top := uint64(th)<<32 | uint64(tl)
				w.top.Store(top)
				for _, d := range []uint32{0, 1, 2, size - 2, size - 1, size, size + 1, 1 << 31} {
					for _, low := range []uint32{tl + d, tl - d, d, last - d} {
						seq, ok := w.infer(low)
						seqh := appendixSeqh(th, tl, size, low)
						want, wantOK := uint64(seqh)<<32|uint64(low), true
						caseA := tl >= size-1
						switch {
						case !caseA && seqh != th && th == 0:
							want = uint64(low) // there is no subspace before the first
						case caseA && seqh != th && th == last:
							want, wantOK = 0, false // nor one after the last
						}
						if seq != want || ok != wantOK {
							t.Errorf("size %d, top %#x: infer(%#x) = %#x, %v, want %#x, %v", n, top, low, seq, ok, want, wantOK)
						}
						// What makes it right: the only candidate that is in the window or ahead of
						// it by less than 2^32.
						bottom := top - uint64(size) + 1
						if ok && top >= uint64(size) && seq-bottom >= 1<<32 {
							t.Errorf("size %d, top %#x: infer(%#x) = %#x is not among the 2^32 numbers from the window's first", n, top, low, seq)
						}
					}
				}
			}
		}
	}
}

func TestInferWithoutWindowTakesTheNearest(t *testing.T) {
	w := makeWindow(0)
	for _, c := range []struct{ top, want uint64 }{
		{0, 1}, {0, 1<<32 - 1}, {5, 4}, {1<<32 + 5, 1<<32 - 9}, {1<<32 - 9, 1<<32 + 5},
		{3<<32 + 77, 3<<32 + 76}, {3 << 32, 3<<32 + 1<<31}, {3 << 32, 3<<32 - 1<<31 + 1},
	} {
		w.top.Store(c.top)
		if got, ok := w.infer(uint32(c.want)); got != c.want || !ok {
			t.Errorf("top %#x: infer(%#x) = %#x, %v, want %#x", c.top, uint32(c.want), got, ok, c.want)
		}
	}
}
