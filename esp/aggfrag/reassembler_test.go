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
	for seed := range seeds(400) {
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
	if least := int(seeds(1000)); fragments < least || lossy < least {
		t.Errorf("only %d packets in parts and %d losses were tried", fragments, lossy)
	}
}

// TestPayloadsThatLieAreDroppedByReason: each is one step of a stream whose honest packets before
// and behind it must arrive all the same.
func TestPayloadsThatLieAreDroppedByReason(t *testing.T) {
	a, b, c := ipPacket(4, 100, 1), ipPacket(6, 120, 2), ipPacket(4, 60, 3)
	short6 := append([]byte(nil), b[:6]...) // of the length field, but not whether it is a jumbogram
	for _, v := range []struct {
		name     string
		payloads [][]byte
		err      error
		want     [][]byte
	}{
		{"offset beyond what is missing", [][]byte{blocks(0, a[:50]), blocks(60, a[50:], c)}, ErrOffset, [][]byte{c[10:][:0]}},
		{"offset short of what is missing", [][]byte{blocks(0, a[:50]), blocks(40, a[60:], c)}, ErrOffset, [][]byte{c}},
		{"offset 0 though a packet is under way", [][]byte{blocks(0, a[:50]), blocks(0, c)}, ErrOffset, [][]byte{c}},
		{"offset of many payloads, and too long", [][]byte{blocks(0, a[:50]), blocks(65535, a[50:])}, ErrOffset, nil},
		{"offset beyond the end, of nothing", [][]byte{blocks(9999, a)}, nil, nil},
		{"offset into nothing, then a packet", [][]byte{blocks(30, a[:30], c)}, nil, [][]byte{c}},
		{"ended before its length was there", [][]byte{blocks(0, short6), blocks(0, c)}, ErrOffset, [][]byte{c}},
		{"ended by an offset before its length was there", [][]byte{blocks(0, b[:3]), blocks(2, b[3:5], c)}, ErrLength, [][]byte{c}},
		{"length that does not agree with the offset", [][]byte{blocks(0, b[:3]), blocks(100, b[3:103], c)}, ErrOffset, [][]byte{c}},
		{"impossible length in the second part", [][]byte{blocks(0, []byte{0x45}), blocks(40, []byte{0, 0, 19}, pad(37), c)}, ErrLength, [][]byte{c}},
		{"unknown type", [][]byte{blocks(0, c, []byte{0x50}, a)}, ErrType, [][]byte{c}},
		{"type 15", [][]byte{blocks(0, []byte{0xff})}, ErrType, nil},
		{"IPv4 of length 0", [][]byte{blocks(0, c, []byte{0x45, 0, 0, 0}, a)}, ErrLength, [][]byte{c}},
		{"IPv4 shorter than its header", [][]byte{blocks(0, c, []byte{0x4f, 0, 0, 59}, a)}, ErrLength, [][]byte{c}},
		{"IPv6 jumbogram", [][]byte{blocks(0, c, []byte{0x60, 0, 0, 0, 0, 0, 0}, a)}, ErrLength, [][]byte{c}},
		{"longer than the buffer", [][]byte{blocks(0, c, ipPacket(4, 3001, 9)[:900]), blocks(2101, ipPacket(4, 3001, 9)[900:], c)}, ErrTooLong, [][]byte{c, c}},
		{"longer than the buffer, learned late", [][]byte{blocks(0, []byte{0x45, 0, 11}), blocks(3000, pad(500)), blocks(2500, pad(2500), c)}, ErrTooLong, [][]byte{c}},
		{"shorter than its header", [][]byte{blocks(0, a[:50]), {0, 0, 0}, blocks(50, a[50:], c)}, ErrShort, [][]byte{c}},
		{"empty", [][]byte{{}, blocks(0, c)}, ErrShort, [][]byte{c}},
		{"congestion header that is cut", [][]byte{append([]byte{1}, pad(22)...), blocks(0, c)}, ErrShort, [][]byte{c}},
		{"unknown sub-type", [][]byte{blocks(0, a[:50]), {2, 0, 0, 0, 1}, blocks(50, a[50:], c)}, ErrSubType, [][]byte{c}},
	} {
		if v.want != nil && len(v.want[0]) == 0 {
			v.want = nil
		}
		r := NewReassembler(Limits{Inner: 3000})
		got, errs := push(t, r, 0, 1, blocks(0, a))
		for i, p := range v.payloads {
			packets, more := push(t, r, 0, uint64(i+2), p)
			got = append(got, packets...)
			for err, n := range more {
				errs[err] += n
			}
		}
		last, more := push(t, r, 0, uint64(len(v.payloads)+2), blocks(0, b))
		same(t, v.name, append(got, last...), slices.Concat([][]byte{a}, v.want, [][]byte{b})...)
		if v.err == nil && len(errs) > 0 || v.err != nil && errs[v.err] != 1 {
			t.Errorf("%s: %v, want once %v", v.name, errs, v.err)
		}
		if len(more) > 0 && v.name != "offset of many payloads, and too long" {
			t.Errorf("%s: what follows gives %v", v.name, more)
		}
	}
}

func TestReassemblyOverPaddingAndEmptyPayloads(t *testing.T) {
	a := ipPacket(6, 200, 1)
	r := NewReassembler(Limits{Inner: 200})
	var got [][]byte
	for i, p := range [][]byte{blocks(0, a[:3]), blocks(0, pad(50)), blocks(197, a[3:100]), blocks(0), blocks(0, pad(1)), blocks(100, a[100:], pad(3))} {
		packets, errs := push(t, r, 0, uint64(i+1), p)
		got = append(got, packets...)
		if len(errs) > 0 {
			t.Errorf("payload %d: %v", i+1, errs)
		}
	}
	same(t, "a packet in three parts", got, a)
}

func TestReassemblyOfTheLongestPacketOctetByOctet(t *testing.T) {
	a := ipPacket(4, 65535, 1)
	r := NewReassembler(Limits{Inner: 1 << 20})
	for i := range a {
		offset := len(a) - i
		if i == 0 {
			offset = 0
		}
		packets, errs := push(t, r, 0, uint64(i+1), blocks(offset, a[i:i+1]))
		if len(errs) > 0 || (len(packets) > 0) != (i == len(a)-1) {
			t.Fatalf("octet %d: %d packets, %v", i, len(packets), errs)
		}
		if i == len(a)-1 {
			same(t, "65,535 octets", packets, a)
		}
	}
}

func TestFragmentsWhereNoneAreTaken(t *testing.T) {
	a, c := ipPacket(4, 100, 1), ipPacket(4, 60, 3)
	r := NewReassembler(Limits{})
	got, errs := push(t, r, 0, 1, blocks(0, c, a[:2]))
	same(t, "whole packet", got, c)
	if errs[ErrTooLong] != 1 {
		t.Errorf("a fragment gives %v, want %v", errs, ErrTooLong)
	}
	got, errs = push(t, r, 0, 2, blocks(98, a[2:], c))
	same(t, "behind the rest of it", got, c)
	if len(errs) > 0 {
		t.Errorf("the rest of it gives %v", errs)
	}
}

func TestLossTakesOnlyThePacketsItTouches(t *testing.T) {
	a, b, c := ipPacket(4, 1000, 1), ipPacket(4, 1000, 2), ipPacket(4, 300, 3)
	r := NewReassembler(Limits{Inner: 2000})
	got, _ := push(t, r, 0, 1, blocks(0, c, a[:700]))
	more, errs := push(t, r, 0, 3, blocks(500, b[500:], c))
	same(t, "around a lost payload", append(got, more...), c, c)
	if errs[ErrLost] != 1 || len(errs) != 1 || r.Lost() != 1 {
		t.Errorf("%v and %d lost, want one packet lost with one payload", errs, r.Lost())
	}
}

func TestReorderWindowMovesOnAndDropsWhatComesLate(t *testing.T) {
	p := func(i int) []byte { return blocks(0, ipPacket(4, 100, byte(i))) }
	want := func(list ...int) (packets [][]byte) {
		for _, i := range list {
			packets = append(packets, ipPacket(4, 100, byte(i)))
		}
		return packets
	}
	r := NewReassembler(Limits{Reorder: 3, Payload: 200})
	for _, v := range []struct {
		seq  uint64
		want [][]byte
		err  error
		lost uint64
	}{
		{2, nil, nil, 0},
		{2, nil, ErrLate, 0}, // twice
		{4, nil, nil, 0},
		{5, want(2), nil, 1},
		{1, nil, ErrLate, 1},
		{3, want(3, 4, 5), nil, 1},
		{3, nil, ErrLate, 1},
		{100, nil, nil, 92}, // what is below 97 is lost
		{97, want(97), nil, 92},
		{99, nil, nil, 92},
		{101, nil, nil, 92},
		{98, want(98, 99, 100, 101), nil, 92},
		{1 << 40, nil, nil, 1<<40 - 3 - 102 + 92}, // a jump costs no time
	} {
		got, errs := push(t, r, 0, v.seq, p(int(v.seq)))
		same(t, fmt.Sprintf("after payload %d", v.seq), got, v.want...)
		if v.err == nil && len(errs) > 0 || v.err != nil && errs[v.err] != 1 {
			t.Errorf("payload %d: %v, want %v", v.seq, errs, v.err)
		}
		if r.Lost() != v.lost {
			t.Errorf("after payload %d: %d lost, want %d", v.seq, r.Lost(), v.lost)
		}
	}
}

func TestTimerGivesUpWhatIsMissing(t *testing.T) {
	p := func(i int) []byte { return blocks(0, ipPacket(4, 100, byte(i))) }
	const ms = time.Millisecond
	r := NewReassembler(Limits{Reorder: 8, Payload: 200, Wait: 50 * ms})
	if _, ok := r.Deadline(); ok {
		t.Error("a deadline though nothing waits")
	}
	push(t, r, 10*ms, 3, p(3))
	push(t, r, 20*ms, 2, p(2))
	push(t, r, 30*ms, 6, p(6))
	if at, ok := r.Deadline(); !ok || at != 60*ms {
		t.Errorf("deadline %v, %v, want 60ms: payload 3 has waited longest", at, ok)
	}
	r.Tick(59 * ms)
	if got, _ := drain(r); len(got) > 0 {
		t.Error("given up before the time")
	}
	r.Tick(60 * ms)
	got, _ := drain(r)
	same(t, "at the first deadline", got, ipPacket(4, 100, 2), ipPacket(4, 100, 3))
	if at, ok := r.Deadline(); !ok || at != 80*ms {
		t.Errorf("deadline %v, %v, want 80ms: payload 6 still waits", at, ok)
	}
	// A payload that arrives after the time has the same effect as the timer.
	got, _ = push(t, r, 80*ms, 8, p(8))
	same(t, "after the second deadline", got, ipPacket(4, 100, 6))
	got, _ = push(t, r, 81*ms, 7, p(7))
	same(t, "in time again", got, ipPacket(4, 100, 7), ipPacket(4, 100, 8))
	if _, ok := r.Deadline(); ok || r.Lost() != 3 {
		t.Errorf("a deadline though nothing waits: %v; lost %d, want 3", ok, r.Lost())
	}
}

func TestPayloadThatCannotWaitIsLost(t *testing.T) {
	c := ipPacket(4, 300, 1)
	r := NewReassembler(Limits{Reorder: 2, Payload: 303, Wait: time.Second})
	if _, errs := push(t, r, 0, 2, blocks(0, c)); errs[ErrNoRoom] != 1 {
		t.Errorf("%v, want %v", errs, ErrNoRoom)
	}
	got, _ := push(t, r, 0, 1, blocks(0, c))
	same(t, "in its turn, of any size", got, c)
	got, _ = push(t, r, 0, 3, blocks(0, c[:0]))
	same(t, "nothing", got)
	got, _ = push(t, r, time.Second, 4, blocks(0, c))
	same(t, "behind what could not wait", got, c)
}

func TestPushGoesOnWhereNextWasNotCalled(t *testing.T) {
	a, b := ipPacket(4, 100, 1), ipPacket(4, 100, 2)
	r := NewReassembler(Limits{Reorder: 1, Payload: 500})
	r.Push(0, 1, blocks(0, a, a, a), &Header{})
	r.Next()
	got, errs := push(t, r, 0, 2, blocks(0, b))
	same(t, "the second payload", got, b)
	if len(errs) > 0 {
		t.Error(errs)
	}
}

// TestPacketsMayBeChanged: Next's packets are the caller's to write to, and nothing that is still to come
// changes with them.
func TestPacketsMayBeChanged(t *testing.T) {
	a := ipPacket(4, 100, 1)
	r := NewReassembler(Limits{Inner: 500})
	payload := blocks(0, a, a, a[:50])
	r.Push(0, 1, payload, &Header{})
	for i := range 3 {
		pkt, _ := r.Next()
		if i < 2 && !bytes.Equal(pkt, a) {
			t.Fatalf("packet %d is %x", i, pkt)
		}
		clear(pkt)
		if cap(pkt) != len(pkt) {
			t.Error("a packet can be appended to, over what follows it")
		}
	}
	got, _ := push(t, r, 0, 2, blocks(50, a[50:]))
	same(t, "over two payloads", got, a)
}

func TestPacketsCostNoAllocation(t *testing.T) {
	p, h := NewPacker(1<<14, false), &Header{Congestion: true}
	r := NewReassembler(Limits{Reorder: 3, Payload: 600, Inner: 2000, Wait: time.Second})
	pkt, first, second := ipPacket(4, 1400, 1), make([]byte, 600), make([]byte, 600)
	seq, got := uint64(1), 0
	next := func() {
		for {
			pkt, err := r.Next()
			if pkt == nil && err == nil {
				return
			}
			got++
		}
	}
	n := testing.AllocsPerRun(200, func() {
		p.Put(pkt)
		p.Fill(first, h)
		p.Fill(second, h)
		r.Push(time.Duration(seq), seq+1, second, h)
		next()
		r.Push(time.Duration(seq), seq, first, h)
		next()
		r.Push(time.Duration(seq), seq, first, h)
		r.Tick(0)
		next()
		seq += 2
	})
	if n != 0 || got < 100 {
		t.Errorf("%v allocations for a packet through a queue, two payloads and back, and %d packets; want none and 100 or more", n, got)
	}
}

// FuzzReassembler: whatever arrives, in whatever order, Next ends, returns packets of the
// length that they say, never more octets than have come, and the honest packet behind it all is delivered.
func FuzzReassembler(f *testing.F) {
	a := ipPacket(4, 100, 1)
	pieces := func(list ...[]byte) (out []byte) {
		for i, p := range list {
			out = append(out, byte(i+1), byte(len(p)))
			out = append(out, p...)
		}
		return out
	}
	f.Add(uint8(0), pieces(blocks(0, a[:50]), blocks(50, a[50:], a)))
	f.Add(uint8(3), append(pieces(blocks(0, a, a[:2])), pieces(blocks(98, a[2:], []byte{0x60}), blocks(0, pad(9)))...))
	f.Add(uint8(9), []byte{200, 5, 0, 0, 0, 9, 0x45, 1, 4, 0, 0, 0, 0, 255, 1, 2})
	f.Fuzz(func(t *testing.T, limits uint8, data []byte) {
		r := NewReassembler(Limits{Reorder: int(limits % 5), Payload: 80, Inner: int(limits/5%4) * 50, Wait: time.Duration(limits % 7)})
		now, seq, in, out := time.Duration(0), uint64(1<<40), 0, 0
		next := func(steps int) (packets [][]byte) {
			for {
				pkt, err := r.Next()
				if pkt == nil && err == nil {
					return packets
				}
				if steps--; steps < 0 {
					t.Fatal("Next does not end")
				}
				if pkt == nil {
					continue
				}
				if n, err := blockLen(pkt); err != nil || n != len(pkt) {
					t.Fatalf("a packet of %d octets says %d, %v", len(pkt), n, err)
				}
				out += len(pkt)
				packets = append(packets, pkt)
			}
		}
		var p []byte
		top := seq
		for len(data) >= 2 {
			now += time.Duration(data[0] >> 4)
			seq += uint64(data[0]&15) - 7
			top = max(top, seq)
			n := min(int(data[1]), len(data)-2)
			p, data = data[2:2+n], data[2+n:]
			in += n
			r.Push(now, seq, slices.Clone(p), &Header{})
			next(1000)
			if out > in {
				t.Fatalf("%d octets have come, %d are delivered", in, out)
			}
			if at, ok := r.Deadline(); ok && at <= now {
				t.Fatalf("a deadline of %v at %v", at, now)
			}
		}
		seq = top + 100 // ahead of all that came, or it would be too late itself
		a := ipPacket(4, 60, 1)
		r.Push(now, seq, blocks(0, a), &Header{})
		packets := next(1000)
		r.Tick(now + 100)
		packets = append(packets, next(1000)...)
		if r.wait == 0 && limits%5 > 0 {
			r.Push(now, seq+100, blocks(0, a), &Header{})
			packets = next(1000)
		}
		if len(packets) == 0 || !bytes.Equal(packets[len(packets)-1], a) {
			t.Fatal("an honest packet is not delivered any more")
		}
	})
}

// FuzzPacker: what is put in comes out of a Reassembler, whatever the sizes of the payloads.
func FuzzPacker(f *testing.F) {
	f.Add(false, []byte{1, 2, 3, 4, 200, 100, 50, 25})
	f.Add(true, []byte{255, 255, 0, 7, 128})
	f.Fuzz(func(t *testing.T, whole bool, data []byte) {
		p, r := NewPacker(4096, whole), NewReassembler(Limits{Inner: 4096})
		var want, got [][]byte
		for i, b := range data {
			version := 4 + 2*int(b&1)
			pkt := ipPacket(version, 40+int(b)*3, byte(i))
			switch err := p.Put(pkt); {
			case err == nil && !(whole && len(pkt) > 5*255+1):
				want = append(want, pkt)
			case err != nil && err != ErrFull:
				t.Fatal(err)
			}
			payload := bytes.Repeat([]byte{0xff}, HeaderLen+1+int(data[len(data)-1-i])*5)
			if whole {
				payload = make([]byte, HeaderLen+1+5*255)
			}
			h := &Header{}
			inner := p.Fill(payload, h)
			payload = payload[:h.Len()+inner+int(b&2)*(len(payload)-h.Len()-inner)/2] // with padding or without
			packets, errs := push(t, r, 0, uint64(i+1), payload)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			got = append(got, packets...)
		}
		for seq := len(data) + 1; ; seq++ {
			payload := make([]byte, 2000)
			if p.Fill(payload, &Header{}) == 0 {
				break
			}
			packets, _ := push(t, r, 0, uint64(seq), payload)
			got = append(got, packets...)
		}
		same(t, "through", got, want...)
	})
}
