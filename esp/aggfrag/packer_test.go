package aggfrag

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

func put(t testing.TB, p *Packer, packets ...[]byte) {
	t.Helper()
	for _, pkt := range packets {
		if err := p.Put(pkt); err != nil {
			t.Fatalf("packet of %d octets: %v", len(pkt), err)
		}
	}
}

func offset(payload []byte) int { return int(payload[2])<<8 | int(payload[3]) }

// TestPackerCutsAsTheExampleOfTheRFC is appendix A of RFC 9347: its block offsets, and where
// the octets stand.
func TestPackerCutsAsTheExampleOfTheRFC(t *testing.T) {
	p := NewPacker(1<<16, false)
	var stream []byte
	for i, n := range []int{750, 750, 60, 240, 3000} {
		pkt := ipPacket(4, n, byte(i))
		put(t, p, pkt)
		stream = append(stream, pkt...)
	}
	if n, octets := p.Queued(); n != 5 || octets != 4800 {
		t.Errorf("%d packets of %d octets wait, want 5 of 4800", n, octets)
	}
	for i, want := range []struct{ offset, inner int }{{0, 1400}, {100, 1400}, {2000, 1400}, {600, 600}, {0, 0}} {
		payload := bytes.Repeat([]byte{0xee}, 1404)
		inner := p.Fill(payload, &Header{})
		if offset(payload) != want.offset || inner != want.inner {
			t.Errorf("payload %d: offset %d with %d octets, want %d with %d", i+1, offset(payload), inner, want.offset, want.inner)
		}
		if !bytes.Equal(payload[4:4+inner], stream[:inner]) {
			t.Fatalf("payload %d has other octets than the packets", i+1)
		}
		stream = stream[inner:]
		if !bytes.Equal(payload[4+inner:], make([]byte, 1400-inner)) {
			t.Errorf("payload %d: padding is not zeros", i+1)
		}
	}
	if n, octets := p.Queued(); n != 0 || octets != 0 {
		t.Errorf("%d packets of %d octets are left", n, octets)
	}
}

func TestPackerFillsAsTheReferenceDoes(t *testing.T) {
	for seed := range seeds(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		packets := randomPackets(r, 60)
		whole, h := r.IntN(3) == 0, Header{Congestion: r.IntN(2) == 0, TVal: 5}
		sizes := make([]int, 100)
		size := 30 + r.IntN(1600)
		for i := range sizes {
			if r.IntN(10) == 0 {
				size = 30 + r.IntN(1600)
			}
			sizes[i] = size
		}
		// A small queue, filled up again whenever there is room; where packets that are too long are
		// dropped on the way, one for all.
		p := NewPacker(8192, whole)
		if whole {
			p = NewPacker(1<<17, whole)
		}
		next := 0
		for i, want := range refPack(packets, sizes, h, whole) {
			for next < len(packets) && p.Put(packets[next]) == nil {
				next++
			}
			got, got2 := bytes.Repeat([]byte{0xee}, sizes[i]), h
			inner := p.Fill(got, &got2)
			if !bytes.Equal(got, want.bytes) {
				t.Fatalf("seed %d, payload %d of %d octets, whole %v:\n%x\nwant\n%x", seed, i, sizes[i], whole, got, want.bytes)
			}
			if (inner > 0) != (len(want.whose) > 0) {
				t.Fatalf("seed %d, payload %d: %d inner octets, parts of %v", seed, i, inner, want.whose)
			}
		}
	}
}

// TestPackerBeginsNothingWithoutItsHeader: what is left of a payload has to take an IP header.
func TestPackerBeginsNothingWithoutItsHeader(t *testing.T) {
	for _, v := range []struct {
		version, first, inner, offset int
	}{
		{4, 1380, 1400, 80}, // 20 octets are left: the header
		{4, 1381, 1381, 0},
		{6, 1360, 1400, 60},
		{6, 1361, 1361, 0},
	} {
		p := NewPacker(1<<14, false)
		put(t, p, ipPacket(4, v.first, 1), ipPacket(v.version, 100, 2))
		payload := make([]byte, 1404)
		inner := p.Fill(payload, &Header{})
		next := make([]byte, 1404)
		p.Fill(next, &Header{})
		if inner != v.inner || offset(next) != v.offset {
			t.Errorf("IPv%d behind %d octets: %d are used and the next offset is %d, want %d and %d", v.version, v.first, inner, offset(next), v.inner, v.offset)
		}
	}
	// A payload that is smaller than a header carries it in parts all the same.
	p := NewPacker(1<<12, false)
	put(t, p, ipPacket(6, 50, 1))
	for _, want := range []int{0, 40, 30, 20, 10, 0} {
		payload := make([]byte, 14)
		if p.Fill(payload, &Header{}); offset(payload) != want {
			t.Errorf("offset %d, want %d", offset(payload), want)
		}
	}
}

func TestPackerOffsetsReachOverManyPayloads(t *testing.T) {
	p := NewPacker(1<<17, false)
	put(t, p, ipPacket(4, 65535, 1))
	left := 65535
	for i := 0; left > 0; i++ {
		payload := make([]byte, 1004)
		inner := p.Fill(payload, &Header{})
		if want := left % 65535; offset(payload) != want {
			t.Fatalf("payload %d: offset %d, want %d", i, offset(payload), want)
		}
		left -= inner
	}
}

func TestPackerKeepsPacketsWholeWhereThePeerWantsIt(t *testing.T) {
	p := NewPacker(1<<14, true)
	put(t, p, ipPacket(4, 900, 1), ipPacket(4, 600, 2), ipPacket(4, 1500, 3), ipPacket(4, 1400, 4))
	for i, want := range []int{900, 600, 1400, 0} {
		payload := make([]byte, 1404)
		if inner := p.Fill(payload, &Header{}); inner != want || offset(payload) != 0 {
			t.Errorf("payload %d: %d octets, offset %d; want %d and 0", i, inner, offset(payload), want)
		}
	}
	if p.Oversized() != 1 {
		t.Errorf("%d packets were too long for a payload, want 1", p.Oversized())
	}
}

func TestPackerDropsTheNewestWhenItIsFull(t *testing.T) {
	p := NewPacker(MinQueue, false)
	put(t, p, ipPacket(4, 1000, 1), ipPacket(4, 1000, 2))
	if err := p.Put(ipPacket(4, 49, 3)); err != ErrFull {
		t.Errorf("49 octets where 48 are free: %v, want %v", err, ErrFull)
	}
	put(t, p, ipPacket(4, 48, 4))
	payload := make([]byte, 1504)
	p.Fill(payload, &Header{})
	// The second packet's room is free only when it has left altogether: it may have to be sent again.
	if n, octets := p.Queued(); n != 2 || octets != 1048 {
		t.Errorf("%d packets of %d octets wait, want 2 of 1048", n, octets)
	}
	put(t, p, ipPacket(4, 1000, 5))
	if err := p.Put(ipPacket(4, 20, 3)); err != ErrFull {
		t.Errorf("beyond the queue: %v, want %v", err, ErrFull)
	}
}

func TestPackerQueueIsNoLongerThanAsked(t *testing.T) {
	for _, v := range []struct{ ask, get int }{{-1, MinQueue}, {0, MinQueue}, {4095, 2048}, {4096, 4096}, {4097, 4096}, {1 << 30, MaxQueue}} {
		if got := len(NewPacker(v.ask, false).ring); got != v.get {
			t.Errorf("asked for %d octets: %d, want %d", v.ask, got, v.get)
		}
	}
}

func TestPackerTakesWholeIPPacketsAlone(t *testing.T) {
	p := NewPacker(1<<17, false)
	long := ipPacket(6, 65576, 1)
	for _, v := range []struct {
		name string
		pkt  []byte
	}{
		{"nothing", nil},
		{"version 5", []byte{0x50, 0, 0, 20, 19: 0}},
		{"19 octets of IPv4", ipPacket(4, 20, 0)[:19]},
		{"IPv4 longer than there is", ipPacket(4, 30, 0)[:29]},
		{"IPv4 without length", []byte{0x45, 19: 0}},
		{"IPv6 of 39 octets", ipPacket(6, 40, 0)[:39]},
		{"IPv6 longer than there is", ipPacket(6, 60, 0)[:59]},
		{"IPv6 of 65,536 octets", append([]byte{0x60, 0, 0, 0, 0xff, 0xd8, 17}, long[7:65536]...)},
		{"IPv6 jumbogram", append([]byte{0x60, 0, 0, 0, 0, 0, 0}, long[7:80]...)},
	} {
		if err := p.Put(v.pkt); err != ErrMalformed {
			t.Errorf("%s: %v, want %v", v.name, err, ErrMalformed)
		}
	}
	put(t, p, append(ipPacket(4, 100, 1), 1, 2, 3), ipPacket(6, 40, 2))
	if n, octets := p.Queued(); n != 2 || octets != 140 {
		t.Errorf("%d packets of %d octets wait, want 2 of 140: what is behind a packet is left out", n, octets)
	}
}

func TestPackerRestartsAPacketForAnotherSA(t *testing.T) {
	p := NewPacker(1<<14, false)
	first, second := ipPacket(4, 1000, 1), ipPacket(4, 900, 2)
	put(t, p, first, second)
	payload := make([]byte, 1504)
	p.Fill(payload, &Header{})
	p.Restart()
	if inner := p.Fill(payload, &Header{}); offset(payload) != 0 || inner != 900 || !bytes.Equal(payload[4:904], second) {
		t.Errorf("the first payload of a new SA has offset %d and %d octets, want the whole second packet", offset(payload), inner)
	}
}

// TestPackerServesManyWorkers: what several put at once leaves once, whole, and in each one's
// order. Run with -race it also shows that the consumer needs no lock.
func TestPackerServesManyWorkers(t *testing.T) {
	const workers, each = 4, 500
	p := NewPacker(1<<13, false)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				pkt := ipPacket(4, 40+(i*37+w)%700, byte(w))
				pkt[4], pkt[5], pkt[6] = byte(w), byte(i>>8), byte(i)
				for p.Put(pkt) != nil {
					runtime.Gosched()
				}
			}
		})
	}
	r := NewReassembler(Limits{Inner: maxInner})
	var next [workers]int
	for got, seq := 0, uint64(1); got < workers*each; seq++ {
		payload := make([]byte, 504)
		p.Fill(payload, &Header{})
		if err := r.Push(0, seq, payload, &Header{}); err != nil {
			t.Fatal(err)
		}
		packets, errs := drain(r)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		for _, pkt := range packets {
			w, i := pkt[4], int(pkt[5])<<8|int(pkt[6])
			want := ipPacket(4, 40+(i*37+int(w))%700, w)
			want[4], want[5], want[6] = w, byte(i>>8), byte(i)
			if i != next[w] || !bytes.Equal(pkt, want) {
				t.Fatalf("worker %d: packet %d comes where %d is due, or is damaged", w, i, next[w])
			}
			next[w]++
			got++
		}
	}
	wg.Wait()
}
