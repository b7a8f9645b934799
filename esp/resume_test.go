package esp

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// A window that goes on is like one that has seen all up to its highest number.
func TestResumedWindowHasSeenWhatIsBelow(t *testing.T) {
	for _, size := range windowSizes {
		for _, top := range []uint64{0, 1, 31, 32, 33, 63, 1000, 1<<32 - 1, 1<<32 + 5} {
			w, ref := makeWindow(size), makeWindow(size)
			w.resume(top)
			for seq := top - min(top, uint64(3*size)); seq <= top; seq++ {
				if ref.advance(seq); seq > 0 && w.check(seq) {
					t.Fatalf("size %d: %d is new after going on at %d", size, seq, top)
				}
			}
			for d := uint64(1); d < uint64(3*size); d += 1 + d%3 + uint64(size)/80 {
				if !w.advance(top+d) || !ref.advance(top+d) {
					t.Fatalf("size %d: %d is not new after going on at %d", size, top+d, top)
				}
				for back := uint64(0); back < min(uint64(size)+40, top+d); back += 1 + uint64(size)/150 {
					if seq := top + d - back; w.check(seq) != ref.check(seq) {
						t.Fatalf("size %d from %d, at +%d: check(%d) is %v", size, top, d, seq, w.check(seq))
					}
				}
			}
		}
	}
}

// Both ends of keys that are used again go on where they stood, and every suite's packets open.
func TestNumbersGoOn(t *testing.T) {
	for _, s := range allSuites() {
		sa, rev := testSA(s, Out), testSA(s, In)
		sa.Seq, rev.Seq = 1000, 990
		sa.Soft, sa.Hard = Usage{Packets: 1002}, Usage{Packets: 1003}
		o, err := NewOutbound(sa, 1)
		if err != nil {
			t.Fatal(err)
		}
		in, err := NewInbound(rev, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if i == 3 {
				if _, err := trySeal(o, 50); err != ErrExpired || !o.Due() {
					t.Fatalf("%v: beyond the reserved numbers: %v, due %v", s, err, o.Due())
				}
				if o.Extend(2000, 3000); o.Due() {
					t.Errorf("%v: more is wanted as soon as there is more", s)
				}
			}
			pkt, err := trySeal(o, 50)
			if err != nil {
				t.Fatal(err)
			}
			if n := binary.BigEndian.Uint32(pkt[4:]); n != uint32(1001+i) {
				t.Errorf("%v: packet %d has the number %d", s, i, n)
			}
			again := bytes.Clone(pkt)
			if _, _, err := in.Open(0, pkt); err != nil {
				t.Errorf("%v: packet %d: %v", s, i, err)
			}
			if _, _, err := in.Open(0, again); err != ErrReplay {
				t.Errorf("%v: packet %d again: %v", s, i, err)
			}
		}
		if in.Top() != 1005 || o.Stop() != 1005 {
			t.Errorf("%v: they stand at %d and %d", s, in.Top(), o.Stop())
		}
		if _, err := trySeal(o, 50); err != ErrExpired {
			t.Errorf("%v: after the stop: %v", s, err)
		}
	}
}

// Without a check for replays the 32 bits begin anew, and what is made of the whole number does not.
func TestNumbersBeginAnew(t *testing.T) {
	for _, s := range allSuites() {
		sa, rev := testSA(s, Out), testSA(s, In)
		sa.Seq, sa.Cycle, rev.ReplayWindow = 1<<32-2, true, 0
		o, err := NewOutbound(sa, 1)
		if row, _ := s.Encr.row(); row.implicit {
			if err == nil {
				t.Errorf("%v has nonces that come again", s)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.ESN {
			continue
		}
		in, err := NewInbound(rev, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []uint32{1<<32 - 1, 0, 1} {
			pkt, err := trySeal(o, 50)
			if err != nil {
				t.Fatalf("%v: packet %d: %v", s, i, err)
			}
			if n := binary.BigEndian.Uint32(pkt[4:]); n != want {
				t.Errorf("%v: packet %d has the number %d", s, i, n)
			}
			if _, _, err := in.Open(0, pkt); err != nil {
				t.Errorf("%v: packet %d: %v", s, i, err)
			}
		}
	}
}

// Under the same keys, CBC's IVs differ with the seed.
func TestIVsFollowTheSeed(t *testing.T) {
	s := Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: IntegHMACSHA256_128}
	seen := map[string]bool{}
	for _, seed := range []string{"", "a", "b"} {
		sa := testSA(s, Out)
		sa.IVSeed = []byte(seed)
		o, err := NewOutbound(sa, 1)
		if err != nil {
			t.Fatal(err)
		}
		pkt, err := trySeal(o, 50)
		if err != nil {
			t.Fatal(err)
		}
		seen[string(pkt[8:24])] = true
		in, _ := NewInbound(testSA(s, In), 1)
		if _, _, err := in.Open(0, pkt); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("three seeds make %d IVs", len(seen))
	}
}

func TestSuitesWhoseNumbersMustNotComeAgain(t *testing.T) {
	for _, s := range allSuites() {
		want := s.Encr != EncrNull && s.Encr != EncrAESCBC
		if s.CounterMode() != want {
			t.Errorf("%v: counter mode %v, want %v", s, !want, want)
		}
	}
	for i, want := range map[IntegID]bool{IntegAES128GMAC: true, IntegHMACSHA256_128: false} {
		if (Suite{Integ: i}).CounterMode() != want {
			t.Errorf("AH with %v: counter mode %v, want %v", i, !want, want)
		}
	}
}
