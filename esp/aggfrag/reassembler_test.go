package aggfrag

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// blocks makes a payload of sub-type 0.
func blocks(offset int, parts ...[]byte) []byte {
	b := make([]byte, HeaderLen)
	(&Header{BlockOffset: uint16(offset)}).Put(b)
	return append(b, bytes.Join(parts, nil)...)
}

func pad(n int) []byte { return make([]byte, n) }

// push gives one payload to r and returns what comes of it.
func push(t testing.TB, r *Reassembler, now time.Duration, seq uint64, p []byte) ([][]byte, map[error]int) {
	t.Helper()
	err := r.Push(now, seq, p, &Header{})
	packets, errs := drain(r)
	if err != nil {
		errs[err]++
	}
	return packets, errs
}

func same(t testing.TB, what string, got [][]byte, want ...[]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, bytes.Equal) {
		lens := func(list [][]byte) (n []int) {
			for _, b := range list {
				n = append(n, len(b))
			}
			return n
		}
		t.Fatalf("%s: packets of %v octets, want %v", what, lens(got), lens(want))
	}
}

// TestReassemblyIsTheReferencesForAnyLossAndOrder: random packets in payloads of random sizes,
// some of them between payloads of padding, lost, delayed and doubled. Delivered is exactly each packet all of whose payloads
// came in time, in its order.
func TestReassemblyIsTheReferencesForAnyLossAndOrder(t *testing.T) {
	lossy, fragments := 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		packets := randomPackets(r, 50)
		sizes := make([]int, 70)
		for i := range sizes {
			sizes[i] = 40 + r.IntN(1500)
		}
		h := Header{Congestion: r.IntN(2) == 0}
		list := refPack(packets, sizes, h, r.IntN(4) == 0)
		for i := 0; i < len(list); i++ { // all-pad payloads between them (RFC 9347 section 2.2.3)
			if r.IntN(6) == 0 {
				idle := refPayload{bytes: make([]byte, 100)}
				h := h
				h.BlockOffset = 0
				h.Put(idle.bytes)
				if i == 0 || len(list[i-1].whose) > 0 {
					list = slices.Insert(list, i, idle)
				}
			}
		}

		window := r.IntN(6)
		var arrivals []uint64
		for i := range list {
			if seed%4 != 0 && r.IntN(12) == 0 {
				continue
			}
			arrivals = append(arrivals, uint64(i+1))
		}
		if seed%3 != 0 {
			for i := range arrivals {
				if r.IntN(5) == 0 {
					j := min(len(arrivals)-1, i+r.IntN(5))
					arrivals[i], arrivals[j] = arrivals[j], arrivals[i]
				}
				if r.IntN(20) == 0 {
					arrivals = append(arrivals, arrivals[i])
				}
			}
		}

		seen := map[int]bool{}
		for _, seq := range refReorder(arrivals, window) {
			seen[int(seq)-1] = true
		}
		// A packet arrives if all payloads from its first to its last part do: of one that is
		// lost between them, nobody knows that it was padding.
		var want [][]byte
		for n := range packets {
			first, last, octets := -1, -1, 0
			for i, p := range list {
				if at := slices.Index(p.whose, n); at >= 0 {
					if first < 0 {
						first = i
					}
					last = i
					octets += p.octets[at]
				}
			}
			complete := octets == len(packets[n])
			for i := first; complete && i <= last; i++ {
				complete = seen[i]
			}
			if complete {
				want = append(want, packets[n])
				if last > first {
					fragments++
				}
			}
		}

		re := NewReassembler(Limits{Reorder: window, Payload: 2000, Inner: 5000})
		var got [][]byte
		for _, seq := range arrivals {
			p := bytes.Clone(list[seq-1].bytes)
			packets, errs := push(t, re, 0, seq, p)
			for err := range errs {
				if err != ErrLost && err != ErrLate {
					t.Fatalf("seed %d: %v", seed, err)
				}
				lossy++
			}
			got = append(got, packets...)
		}
		same(t, fmt.Sprintf("seed %d", seed), got, want...)
	}
	if fragments < 1000 || lossy < 1000 {
		t.Errorf("only %d packets in parts and %d losses were tried", fragments, lossy)
	}
}
