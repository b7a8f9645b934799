package engine

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"postern/board"
	"postern/esp"
)

func TestSPIsNameTheirSlot(t *testing.T) {
	s := newSAD(64, testRandom(1))
	seen := map[uint32]bool{}
	for range 64 {
		spi, ok := s.alloc()
		if !ok {
			t.Fatal("a table of 64 is full before 64 SPIs were given out")
		}
		if spi < minSPI {
			t.Errorf("SPI %d is reserved (RFC 4303 section 2.1)", spi)
		}
		if seen[spi&s.mask] {
			t.Errorf("SPI %08x names slot %d, which is taken", spi, spi&s.mask)
		}
		seen[spi&s.mask] = true
	}
	if spi, ok := s.alloc(); ok {
		t.Errorf("a full table gave out %08x: it must say that there is no room", spi)
	}
	if s.used() != 64 {
		t.Errorf("%d slots are used, want 64", s.used())
	}
}

func TestSPIsAreNeverReserved(t *testing.T) {
	// A source that likes small numbers: of each four octets the first two are zero, and
	// so is the third most of the time.
	r := rand.New(rand.NewPCG(3, 3))
	s := newSAD(32, func(b []byte) {
		clear(b)
		if b[3] = byte(r.Uint32()); r.Uint32()%4 == 0 {
			b[2] = byte(r.Uint32())
		}
	})
	for range 1000 {
		spi, ok := s.alloc()
		if !ok || spi < minSPI {
			t.Fatalf("SPI %d, ok %v: want 256 or more", spi, ok)
		}
		s.release(spi)
	}
}

func TestReusedSlotHasAnotherSPI(t *testing.T) {
	// Three bits of randomness above the slot: repetitions are certain.
	r := rand.New(rand.NewPCG(5, 5))
	s := newSAD(2, func(b []byte) {
		clear(b)
		b[2], b[3] = 1, byte(r.Uint32())&0xf
	})
	last := map[uint32]uint32{}
	for range 200 {
		spi, ok := s.alloc()
		if !ok {
			t.Fatal("no room")
		}
		if last[spi&s.mask] == spi {
			t.Fatalf("slot %d has the SPI %08x twice in a row: packets of the old SA would reach the new one", spi&s.mask, spi)
		}
		last[spi&s.mask] = spi
		s.release(spi)
	}
}

func TestFreedSlotIsUsedLast(t *testing.T) {
	s := newSAD(8, testRandom(2))
	first, _ := s.alloc()
	s.release(first)
	for range 7 {
		if spi, _ := s.alloc(); spi&s.mask == first&s.mask {
			t.Fatal("the slot that was freed last is used again while others are free")
		}
	}
}

func TestLookupFindsOnlyTheWholeSPI(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	in, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	if tp.sad.lookup(in.spi) != in {
		t.Fatal("the SA is not found under its SPI")
	}
	for bit := range 32 {
		if tp.sad.lookup(in.spi^1<<bit) != nil {
			t.Errorf("SPI %08x finds the SA of %08x", in.spi^1<<bit, in.spi)
		}
	}
	if tp.sad.delIn(in.spi) != in || tp.sad.lookup(in.spi) != nil {
		t.Error("the SA is still found after it was taken out")
	}
	if _, o := tp.sad.release(in.spi); o != out {
		t.Error("release does not return the outbound SA that was left")
	}
	if err := tp.sad.addIn(in); err == nil {
		t.Error("an SA was put under an SPI that is not reserved")
	}
	if a, b := tp.sad.release(in.spi); a != nil || b != nil || tp.sad.used() != 0 {
		t.Error("an SPI was given back twice")
	}
}

func TestOutboundSPIsOfTwoPeersMayBeEqual(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	_, a := tp.addLoop(t, testSuites[0], true, "a", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	_, b := tp.addLoop(t, testSuites[0], true, "b", "n", "10.1.0.0/16", "10.3.0.0/16", true)
	b.spi = a.spi
	if slot := tp.sad.findOut(b.spi, b.inbound); slot == nil || slot.out != b {
		t.Error("the pair's inbound SPI must decide between outbound SAs of equal SPI")
	}
	if slot := tp.sad.findOut(b.spi+1, b.inbound); slot != nil {
		t.Error("an outbound SA is found under a foreign SPI")
	}
}

func TestUnknownSPIFloodGrowsNothing(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	buf := make([]byte, 100)
	r := testRandom(9)
	flood := func(n int) {
		for range n {
			r(buf[:8])
			buf[0] |= 1
			tp.receive(sockNATT4, esp.Datagram{Buf: buf, N: len(buf)})
		}
	}
	flood(100)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	flood(20000)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > 200 {
		t.Errorf("20,000 packets of unknown SPIs cost %d allocations, want none", n)
	}
	tp.want(t, cInUnknownSPI, 20100)
	if tp.sad.used() != 1 {
		t.Errorf("%d slots are used after the flood, want 1", tp.sad.used())
	}
}
