package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
)

// someSuites has one suite for each way through Seal and Open.
var someSuites = []Suite{
	{Encr: EncrAESGCM16, KeyBits: 128},
	{Encr: EncrChaCha20Poly1305, ESN: true},
	{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA256_128, ESN: true},
}

const workers = 4

// each runs f for every worker at the same time and waits.
func each(f func(ctx int)) {
	var wg sync.WaitGroup
	for ctx := range workers {
		wg.Go(func() { f(ctx) })
	}
	wg.Wait()
}

func TestConcurrentSealNeverRepeatsANumberOrIV(t *testing.T) {
	count := 300
	if testing.Short() {
		count = 40
	}
	for _, s := range someSuites {
		o, err := NewOutbound(testSA(s, Out), workers)
		if err != nil {
			t.Fatal(err)
		}
		sa := testSA(s, Out)
		pkts := make([][][]byte, workers)
		each(func(ctx int) {
			for i := range count {
				payload := be(uint64(ctx)<<32|uint64(i), 8)
				buf := make([]byte, HeadRoom+len(payload)+TailRoom)
				copy(buf[HeadRoom:], payload)
				start, end, err := o.Seal(ctx, buf, HeadRoom, len(payload), 4)
				if err != nil {
					t.Errorf("%v: worker %d: %v", s, ctx, err)
					return
				}
				pkts[ctx] = append(pkts[ctx], buf[start:end])
			}
		})
		seqs, ivs := map[uint32]bool{}, map[string]bool{}
		for ctx := range pkts {
			var last uint32
			for i, pkt := range pkts[ctx] {
				seq := binary.BigEndian.Uint32(pkt[4:])
				if seqs[seq] || ivs[string(pkt[8:16])] {
					t.Fatalf("%v: sequence number %d or its IV was used twice", s, seq)
				}
				seqs[seq], ivs[string(pkt[8:16])] = true, true
				if seq <= last {
					t.Errorf("%v: worker %d went from number %d to %d", s, ctx, last, seq)
				}
				last = seq
				payload, _, _, err := refOpen(sa, uint64(seq), pkt)
				if err != nil || !bytes.Equal(payload, be(uint64(ctx)<<32|uint64(i), 8)) {
					t.Fatalf("%v: worker %d's packet %d reads %x, %v", s, ctx, i, payload, err)
				}
			}
		}
		if want := workers * count; o.Seq() != uint64(want) || len(seqs) != want {
			t.Errorf("%v: %d packets up to number %d, want %d", s, len(seqs), o.Seq(), want)
		}
	}
}

func TestConcurrentSealStopsExactlyAtTheLastNumber(t *testing.T) {
	for _, s := range someSuites {
		o, err := NewOutbound(testSA(s, Out), workers)
		if err != nil {
			t.Fatal(err)
		}
		const left = 25
		o.seq.Store(o.limit() - left)
		var sealed [workers]int
		each(func(ctx int) {
			for range 100 {
				_, _, err := o.Seal(ctx, make([]byte, 100), HeadRoom, 8, 4)
				switch {
				case err == nil:
					sealed[ctx]++
				case !errors.Is(err, ErrSeqExhausted):
					t.Errorf("%v: %v, want %v", s, err, ErrSeqExhausted)
				}
			}
		})
		total := 0
		for _, n := range sealed {
			total += n
		}
		if total != left || o.Seq() != o.limit() {
			t.Errorf("%v: %d packets were sealed and the counter is %#x, want %d and %#x", s, total, o.Seq(), left, o.limit())
		}
	}
}

// All workers get all packets; each packet must go through exactly once.
func TestConcurrentOpenDeliversOnce(t *testing.T) {
	count := 400
	if testing.Short() {
		count = 60
	}
	for _, s := range someSuites {
		o, _, _ := testPair(t, s, 64)
		sa := testSA(s, In)
		sa.ReplayWindow = 512
		in, err := NewInbound(sa, workers)
		if err != nil {
			t.Fatal(err)
		}
		var pkts [][]byte
		for i := range count {
			pkts = append(pkts, seal(t, o, be(uint64(i), 8), 4))
		}
		got := make([][]uint64, workers)
		each(func(ctx int) {
			for i := range pkts {
				inner, _, err := in.Open(ctx, append([]byte{}, pkts[(i^ctx)%len(pkts)]...))
				switch {
				case err == nil:
					got[ctx] = append(got[ctx], binary.BigEndian.Uint64(inner))
				case !errors.Is(err, ErrReplay):
					t.Errorf("%v: %v, want %v", s, err, ErrReplay)
				}
			}
		})
		times := map[uint64]int{}
		for _, list := range got {
			for _, i := range list {
				times[i]++
			}
		}
		for i := range count {
			if times[uint64(i)] != 1 {
				t.Errorf("%v: packet %d went through %d times", s, i, times[uint64(i)])
			}
		}
		if n := in.Usage().Packets; n != uint64(count) {
			t.Errorf("%v: %d packets are counted, want %d", s, n, count)
		}
	}
}

func TestWipeDuringTrafficEndsItCleanly(t *testing.T) {
	for _, s := range someSuites {
		o, err := NewOutbound(testSA(s, Out), workers)
		if err != nil {
			t.Fatal(err)
		}
		in, err := NewInbound(testSA(s, In), workers)
		if err != nil {
			t.Fatal(err)
		}
		sa := testSA(s, Out)
		first := seal(t, o, []byte("first"), 4)
		each(func(ctx int) {
			if ctx == 0 {
				o.Wipe()
				in.Wipe()
			}
			for {
				buf := make([]byte, 100)
				start, end, err := o.Seal(ctx, buf, HeadRoom, 8, 4)
				if errors.Is(err, ErrWiped) {
					break
				}
				if err != nil {
					t.Errorf("%v: Seal: %v", s, err)
					break
				}
				pkt := buf[start:end]
				if _, _, _, err := refOpen(sa, uint64(binary.BigEndian.Uint32(pkt[4:])), pkt); err != nil {
					t.Errorf("%v: a packet sealed while the SA was wiped: %v", s, err)
				}
			}
			for {
				_, _, err := in.Open(ctx, append([]byte{}, first...))
				if errors.Is(err, ErrWiped) {
					break
				}
				if err != nil && !errors.Is(err, ErrReplay) {
					t.Errorf("%v: Open: %v", s, err)
					break
				}
			}
		})
	}
}

func TestIdleWorkersHaveNoState(t *testing.T) {
	for _, s := range someSuites {
		o, err := NewOutbound(testSA(s, Out), 8)
		if err != nil {
			t.Fatal(err)
		}
		for _, ctx := range []int{2, 5, 2} {
			if _, _, err := o.Seal(ctx, make([]byte, 100), HeadRoom, 8, 4); err != nil {
				t.Fatal(err)
			}
		}
		for ctx := range 8 {
			if made := o.keys.slot(&o.slots, ctx).Load() != nil; made != (ctx == 2 || ctx == 5) {
				t.Errorf("%v: worker %d has state: %v", s, ctx, made)
			}
		}
	}
}

// Several workers reserve blocks of numbers and seal them in any order: each number is used
// once, the last one too, and the packets open.
func TestReservedBlocksNeverOverlapAndEndAtTheLastNumber(t *testing.T) {
	for _, s := range someSuites {
		o, err := NewOutbound(testSA(s, Out), workers)
		if err != nil {
			t.Fatal(err)
		}
		const left = 1000
		o.seq.Store(o.limit() - left)
		got := make([][]uint64, workers)
		each(func(ctx int) {
			for n := 1; ; n = n%17 + 1 {
				first, granted := o.Reserve(n, 0)
				if granted < 0 || granted > n {
					t.Errorf("%v: %d numbers were granted of %d", s, granted, n)
				}
				for i := range granted {
					seq := first + uint64(granted-1-i) // the order does not matter to the SA
					buf := make([]byte, 100)
					start, end, err := o.SealAt(ctx, seq, buf, HeadRoom, 8, 4)
					if err != nil {
						t.Errorf("%v: number %#x: %v", s, seq, err)
						return
					}
					if _, _, _, err := refOpen(testSA(s, Out), seq, buf[start:end]); err != nil {
						t.Errorf("%v: number %#x does not open: %v", s, seq, err)
					}
					got[ctx] = append(got[ctx], seq)
				}
				if granted < n {
					return
				}
			}
		})
		seen := map[uint64]bool{}
		for _, list := range got {
			for _, seq := range list {
				if seen[seq] {
					t.Fatalf("%v: number %#x was granted twice: its IV repeats under one key", s, seq)
				}
				seen[seq] = true
			}
		}
		if len(seen) != left || !seen[o.limit()] {
			t.Errorf("%v: %d numbers were granted, want the last %d", s, len(seen), left)
		}
		if _, granted := o.Reserve(1, 0); granted != 0 || o.Seq() != o.limit() {
			t.Errorf("%v: a number was granted after the last, %#x", s, o.Seq())
		}
	}
}
