package esp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"testing"
)

func TestRoundTripOfAllSuitesAndSizes(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 8
	}
	for _, s := range allSuites() {
		t.Run(testName(s), func(t *testing.T) {
			rng := rand.New(rand.NewSource(int64(s.KeyBits) + int64(s.Integ)))
			o, in, sa := testPair(t, s, 64)
			var packets, octets uint64
			for i := range rounds {
				n := i // each remainder of the block length, dummies of no length included
				if i >= 20 {
					n = rng.Intn(1800)
				}
				payload := fill(int64(i), n)
				next := [...]uint8{ProtoIPv4, ProtoIPv6, ProtoNoNext, 253}[i%4]

				// Room: HeadRoom and TailRoom, and nothing outside the packet may change.
				off := HeadRoom + rng.Intn(16)
				buf := bytes.Repeat([]byte{0xa5}, off+n+TailRoom+rng.Intn(16))
				copy(buf[off:], payload)
				start, end, err := o.Seal(0, buf, off, n, next)
				if err != nil {
					t.Fatalf("Seal of %d octets: %v", n, err)
				}
				for j, b := range buf {
					if (j < start || j >= end) && b != 0xa5 {
						t.Fatalf("Seal of %d octets at %d wrote at %d, outside of its packet %d to %d", n, off, j, start, end)
					}
				}
				if extra := end - start - n; extra > s.Overhead() {
					t.Errorf("%d octets were added to %d, Overhead says at most %d", extra, n, s.Overhead())
				}
				pkt := buf[start:end]
				seq := uint64(i + 1)
				if SPIOf(pkt) != sa.SPI || !bytes.Equal(pkt[4:8], be(seq, 4)) {
					t.Fatalf("packet %d begins with %x", seq, pkt[:8])
				}

				got, padding, gotNext, err := refOpen(sa, seq, pkt)
				if err != nil || !bytes.Equal(got, payload) || gotNext != next {
					t.Fatalf("the reference reads %d octets, next %d, %v of what was sealed with %d, next %d", len(got), gotNext, err, n, next)
				}
				for j, b := range padding {
					if int(b) != j+1 {
						t.Fatalf("the padding is %x, want 1, 2, 3 ...", padding)
					}
				}
				_, align := refIV(s, 0)
				if len(padding) >= align {
					t.Errorf("%d octets of padding, fewer than %d are enough", len(padding), align)
				}

				inner, gotNext, err := in.Open(0, pkt)
				if err != nil || !bytes.Equal(inner, payload) || gotNext != next {
					t.Fatalf("Open gives %d octets, next %d, %v of %d, next %d", len(inner), gotNext, err, n, next)
				}
				packets++
				octets += uint64(n)
			}
			if want := (Usage{packets, octets}); in.Usage() != want {
				t.Errorf("usage is %+v, want %+v", in.Usage(), want)
			}
			if o.Seq() != packets {
				t.Errorf("Seq is %d after %d packets", o.Seq(), packets)
			}
		})
	}
}

// Open reads what another implementation made: the reference, with an IV that is no counter.
func TestOpenReadsForeignPackets(t *testing.T) {
	for _, s := range allSuites() {
		_, in, _ := testPair(t, s, 64)
		sa := testSA(s, Out)
		for n := range 40 {
			payload := fill(int64(n), n)
			inner, next, err := in.Open(0, refPacket(sa, uint64(n+1), payload, 41))
			if err != nil || next != 41 || !bytes.Equal(inner, payload) {
				t.Fatalf("%v: Open of %d octets: %x, next %d, %v", s, n, inner, next, err)
			}
		}
	}
}

// state is all that a rejected packet must leave as it was.
func state(in *Inbound) string {
	return fmt.Sprint(in.win.top.Load(), in.win.ring, in.usage)
}

func TestOpenRejectsEveryFlippedOctet(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		for range 3 { // so that the window is not empty
			if _, _, err := in.Open(0, seal(t, o, []byte("before"), 4)); err != nil {
				t.Fatal(err)
			}
		}
		good := seal(t, o, fill(1, 50), 4)
		before := state(in)
		for i := range good {
			for _, bit := range []byte{0x01, 0x80} {
				bad := append([]byte{}, good...)
				bad[i] ^= bit
				inner, _, err := in.Open(0, bad)
				if inner != nil || !errors.Is(err, ErrAuth) && !errors.Is(err, ErrReplay) {
					t.Fatalf("%v: octet %d of %d flipped by %#x: Open gives %d octets, %v", s, i, len(good), bit, len(inner), err)
				}
				if i >= espHeaderLen && !errors.Is(err, ErrAuth) {
					t.Errorf("%v: octet %d of %d flipped: %v, want %v", s, i, len(good), err, ErrAuth)
				}
				if after := state(in); after != before {
					t.Fatalf("%v: octet %d flipped: the state went from %s to %s", s, i, before, after)
				}
			}
		}
		if _, _, err := in.Open(0, good); err != nil {
			t.Errorf("%v: the untouched packet is rejected after its forgeries: %v", s, err)
		}
	}
}

func TestOpenRejectsEveryTruncation(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		good := seal(t, o, fill(1, 70), 4)
		before := state(in)
		least := s.shape().front + trailerLen + s.shape().icv
		for n := range good {
			inner, _, err := in.Open(0, append([]byte{}, good[:n]...))
			if inner != nil || err == nil {
				t.Fatalf("%v: %d of %d octets are accepted", s, n, len(good))
			}
			if n < least && !errors.Is(err, ErrShort) {
				t.Errorf("%v: %d octets: %v, want %v", s, n, err, ErrShort)
			}
		}
		for n := 1; n <= 33; n++ { // and with octets added
			if inner, _, err := in.Open(0, append(append([]byte{}, good...), make([]byte, n)...)); inner != nil || err == nil {
				t.Fatalf("%v: %d octets appended are accepted", s, n)
			}
		}
		if after := state(in); after != before {
			t.Errorf("%v: truncated packets changed the state from %s to %s", s, before, after)
		}
		if _, _, err := in.Open(0, good); err != nil {
			t.Errorf("%v: the whole packet is rejected after its truncations: %v", s, err)
		}
	}
}

func TestOpenRejectsReplay(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		var pkts [][]byte
		for i := range 80 {
			pkts = append(pkts, seal(t, o, fill(int64(i), 30), 4))
		}
		open := func(i int) error {
			_, _, err := in.Open(0, append([]byte{}, pkts[i]...))
			return err
		}
		for _, i := range []int{5, 3, 79} {
			if err := open(i); err != nil {
				t.Fatalf("%v: packet %d: %v", s, i+1, err)
			}
		}
		// With ESN a number left of the window reads as one of the next subspace (RFC 4303
		// appendix A2.2), and the ICV tells.
		old := ErrReplay
		if s.ESN {
			old = ErrAuth
		}
		for _, c := range []struct {
			i    int
			want error
		}{{79, ErrReplay}, {5, old}, {3, old}, {0, old}, {15, old}} { // the last is the newest of the old
			if err := open(c.i); !errors.Is(err, c.want) {
				t.Errorf("%v: packet %d again or too late: %v, want %v", s, c.i+1, err, c.want)
			}
		}
		if err := open(16); err != nil { // number 17: the oldest of the 64 up to 80
			t.Errorf("%v: the oldest packet of the window: %v", s, err)
		}
		if got := in.Usage().Packets; got != 4 {
			t.Errorf("%v: %d packets are counted, want 4", s, got)
		}
	}
}

func TestOpenWithoutWindowTakesReplays(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 0)
		pkt := seal(t, o, []byte("again"), 4)
		for range 3 {
			if _, _, err := in.Open(0, append([]byte{}, pkt...)); err != nil {
				t.Errorf("%v: %v with the replay check off", s, err)
			}
		}
		if got := in.win.top.Load(); got != 1 {
			t.Errorf("%v: the highest number is %d, want 1: it is kept with the check off too", s, got)
		}
	}
}

// A sequence number that is 0 in 64 bits is never sent (RFC 4303 section 2.2).
func TestOpenRejectsSequenceNumberZero(t *testing.T) {
	for _, s := range allSuites() {
		_, in, _ := testPair(t, s, 64)
		if _, _, err := in.Open(0, refPacket(testSA(s, Out), 0, []byte("zero"), 4)); !errors.Is(err, ErrReplay) {
			t.Errorf("%v: sequence number 0: %v, want %v", s, err, ErrReplay)
		}
	}
}

// The window lies in one subspace (case A) or spans two (case B); packets come from this
// subspace, from the one before and from the one after (RFC 4303 appendix A2).
func TestESNAcrossTheLowHalfsWrap(t *testing.T) {
	for _, s := range allSuites() {
		if !s.ESN {
			continue
		}
		for _, window := range []int{64, 4096} {
			o, in, _ := testPair(t, s, window)
			base := uint64(3)<<32 - 40
			o.seq.Store(base)
			in.win.top.Store(base)
			pkts := map[uint64][]byte{}
			for range 80 {
				pkt := seal(t, o, be(o.Seq()+1, 8), 4)
				pkts[o.Seq()] = pkt
			}
			edge := uint64(3) << 32
			for i, c := range []struct {
				seq  uint64
				want error
				why  string
			}{
				{edge - 20, nil, "case A, this subspace, ahead"},
				{edge - 25, nil, "case A, this subspace, inside"},
				{edge - 25, ErrReplay, "case A, replay"},
				{edge + 2, nil, "case A, next subspace: the high half goes up"},
				{edge + 1, nil, "case B, this subspace, inside"},
				{edge, nil, "case B, low half 0"},
				{edge - 1, nil, "case B, subspace before, inside"},
				{edge - 20, ErrReplay, "case B, subspace before, replay"},
				{edge + 2, ErrReplay, "case B, this subspace, replay"},
				{edge - 2, nil, "case B, subspace before, inside"},
				{edge + 30, nil, "case B, ahead"},
				{edge - 3, nil, "case B, subspace before, still inside"},
				{edge - 3, ErrReplay, "case B, subspace before, replay"},
			} {
				inner, _, err := in.Open(0, append([]byte{}, pkts[c.seq]...))
				if !errors.Is(err, c.want) {
					t.Fatalf("%v, window %d, step %d (%s): packet %#x: %v, want %v", s, window, i, c.why, c.seq, err, c.want)
				}
				if err == nil && !bytes.Equal(inner, be(c.seq, 8)) {
					t.Fatalf("%v, window %d, step %d: packet %#x brought %x", s, window, i, c.seq, inner)
				}
			}
		}
	}
}

// Without ESN the same numbers 2^32 later are the same packets.
func TestSequenceNumbersNeverWrap(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		last := uint64(1<<32 - 1)
		if s.ESN {
			last = 1<<64 - 1
		}
		o.seq.Store(last - 2)
		in.win.top.Store(last - 2)
		for range 2 {
			if _, _, err := in.Open(0, seal(t, o, []byte("one of the last"), 4)); err != nil {
				t.Fatalf("%v: packet %#x: %v", s, o.Seq(), err)
			}
		}
		if o.Seq() != last {
			t.Fatalf("%v: the last packet has number %#x, want %#x", s, o.Seq(), last)
		}
		buf := make([]byte, HeadRoom+8+TailRoom)
		for range 3 {
			if _, _, err := o.Seal(0, buf, HeadRoom, 8, 4); !errors.Is(err, ErrSeqExhausted) {
				t.Errorf("%v: a packet after number %#x: %v, want %v", s, last, err, ErrSeqExhausted)
			}
		}
		if !bytes.Equal(buf, make([]byte, len(buf))) {
			t.Errorf("%v: a packet that could not be sealed was written to", s)
		}
		if o.Seq() != last {
			t.Errorf("%v: the counter moved to %#x without a packet", s, o.Seq())
		}
		// The receiver's last number is the last too: nothing that follows can be placed.
		if _, _, err := in.Open(0, refPacket(testSA(s, Out), last+1, []byte("wrapped"), 4)); !errors.Is(err, ErrReplay) {
			t.Errorf("%v: a wrapped sequence number: %v, want %v", s, err, ErrReplay)
		}
	}
}

func TestSealNeedsRoomAndUsesNoNumberWithoutIt(t *testing.T) {
	for _, s := range allSuites() {
		o, _, _ := testPair(t, s, 64)
		sh := s.shape()
		for n := range 40 {
			_, tail, end := bounds(s, n)
			full := end - sh.front // payload, padding, trailer and ICV
			for _, c := range []struct {
				off, size int
				want      error
			}{
				{sh.front, sh.front + full, nil},
				{sh.front - 1, sh.front + full, ErrNoRoom},
				{sh.front, sh.front + full - 1, ErrNoRoom},
				{0, 2000, ErrNoRoom},
				{1999, 2000, ErrNoRoom},
				{sh.front, tail, ErrNoRoom},
			} {
				before := o.Seq()
				_, _, err := o.Seal(0, make([]byte, c.size), c.off, n, 4)
				if !errors.Is(err, c.want) {
					t.Fatalf("%v: %d octets at %d of %d: %v, want %v", s, n, c.off, c.size, err, c.want)
				}
				if used := o.Seq() - before; (used == 1) != (err == nil) {
					t.Errorf("%v: %v used %d sequence numbers", s, err, used)
				}
			}
		}
		const huge = int(^uint(0) >> 1)
		buf := make([]byte, 200)
		for _, c := range [][2]int{{-1, 10}, {24, -1}, {huge, 10}, {24, huge}, {huge, huge}, {-huge, huge}, {huge - 4, 4}, {201, 0}, {24, 201}} {
			if _, _, err := o.Seal(0, buf, c[0], c[1], 4); !errors.Is(err, ErrNoRoom) {
				t.Errorf("%v: offset %d, length %d: %v, want %v", s, c[0], c[1], err, ErrNoRoom)
			}
		}
	}
}

func TestOpenChecksPadding(t *testing.T) {
	count := func(n int) []byte {
		out := make([]byte, n)
		for i := range out {
			out[i] = byte(i + 1)
		}
		return out
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, s := range allSuites() {
		_, align := refIV(s, 0)
		block := func(b []byte) []byte { // grows the payload in front until the plaintext is whole blocks
			for len(b)%align != 0 {
				b = append([]byte{'p'}, b...)
			}
			return b
		}
		for i, c := range []struct {
			plain []byte
			want  error
			n     int // octets of payload behind what block adds
			why   string
		}{
			{join([]byte("payload"), []byte{0, 4}), nil, 7, "none"},
			{join([]byte("payload"), count(3), []byte{3, 4}), nil, 7, "1 2 3"},
			{join([]byte("payload"), count(255), []byte{255, 4}), nil, 7, "the longest that there is"},
			{join(count(254), []byte{254, 59}), nil, 0, "nothing but padding"},
			{join([]byte("payload"), []byte{1, 2, 4, 3, 4}), ErrPadding, 0, "wrong at its end"},
			{join([]byte("payload"), []byte{2, 2, 3, 3, 4}), ErrPadding, 0, "wrong at its beginning"},
			{join([]byte("payload"), []byte{0, 0, 0, 3, 4}), ErrPadding, 0, "zeros"},
			{join([]byte("payload"), []byte{3, 2, 1, 3, 4}), ErrPadding, 0, "backwards"},
			{join(count(14), []byte{15, 4}), ErrPadding, 0, "one longer than the packet"},
			{join(count(14), []byte{255, 4}), ErrPadding, 0, "much longer than the packet"},
		} {
			_, in, _ := testPair(t, s, 64)
			iv, _ := refIV(s, 9)
			plain := block(c.plain)
			inner, _, err := in.Open(0, refSeal(testSA(s, Out), 1, iv, plain))
			if !errors.Is(err, c.want) {
				t.Errorf("%v, case %d (%s): %v, want %v", s, i, c.why, err, c.want)
			}
			if err == nil && len(inner) != c.n+len(plain)-len(c.plain) {
				t.Errorf("%v, case %d (%s): %d octets of payload, want %d", s, i, c.why, len(inner), c.n+len(plain)-len(c.plain))
			}
			if got := in.win.top.Load(); got != 1 {
				t.Errorf("%v, case %d (%s): an authentic packet left the window at %d, want 1", s, i, c.why, got)
			}
			if (in.Usage().Packets == 1) != (err == nil) {
				t.Errorf("%v, case %d (%s): usage is %+v after %v", s, i, c.why, in.Usage(), err)
			}
		}
	}
}

func TestNewRejectsWrongSAs(t *testing.T) {
	base := Suite{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA256_128}
	for _, c := range []struct {
		name string
		edit func(sa *SA)
	}{
		{"reserved SPI", func(sa *SA) { sa.SPI = 255 }},
		{"other direction", func(sa *SA) { sa.Dir ^= 1 }},
		{"short key", func(sa *SA) { sa.EncrKey = sa.EncrKey[1:] }},
		{"long key", func(sa *SA) { sa.EncrKey = append(sa.EncrKey, 0) }},
		{"short integrity key", func(sa *SA) { sa.IntegKey = sa.IntegKey[1:] }},
		{"no integrity key", func(sa *SA) { sa.IntegKey = nil }},
		{"suite", func(sa *SA) { sa.Suite.KeyBits = 64 }},
	} {
		for _, dir := range []Direction{In, Out} {
			sa := testSA(base, dir)
			c.edit(sa)
			var err error
			if dir == Out {
				_, err = NewOutbound(sa, 1)
			} else {
				_, err = NewInbound(sa, 1)
			}
			if err == nil {
				t.Errorf("%s: an SA of direction %d was made", c.name, dir)
			}
		}
	}
	for _, window := range []int{-1, 1, 63, 4097} {
		sa := testSA(base, In)
		sa.ReplayWindow = window
		if _, err := NewInbound(sa, 1); err == nil {
			t.Errorf("a window of %d packets was made", window)
		}
	}
	if _, err := NewInbound(testSA(base, In), 0); err == nil {
		t.Error("an SA without contexts was made")
	}
}

func TestKeysAreCopiedAndWiped(t *testing.T) {
	for _, s := range allSuites() {
		sa, rev := testSA(s, Out), testSA(s, In)
		o, err := NewOutbound(sa, 2)
		if err != nil {
			t.Fatal(err)
		}
		in, err := NewInbound(rev, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range [][]byte{sa.EncrKey, sa.IntegKey, rev.EncrKey, rev.IntegKey} {
			clear(key) // the caller's slices are the caller's
		}
		pkt := seal(t, o, []byte("payload"), 4)
		if _, _, _, err := refOpen(testSA(s, Out), 1, pkt); err != nil {
			t.Errorf("%v: the packet is not under the keys that NewOutbound got: %v", s, err)
		}
		if inner, _, err := in.Open(1, append([]byte{}, pkt...)); err != nil || string(inner) != "payload" {
			t.Errorf("%v: Open after the caller wiped its keys: %q, %v", s, inner, err)
		}

		outKey, inKey := o.keys.integ, in.keys.integ
		seq := o.Seq()
		o.Wipe()
		in.Wipe()
		in.Wipe() // twice does no harm
		for _, key := range [][]byte{outKey, inKey, o.keys.salt[:], in.keys.salt[:]} {
			if !bytes.Equal(key, make([]byte, len(key))) {
				t.Errorf("%v: a key is left after Wipe", s)
			}
		}
		for ctx := range 2 {
			if _, _, err := o.Seal(ctx, make([]byte, 200), HeadRoom, 10, 4); !errors.Is(err, ErrWiped) {
				t.Errorf("%v: Seal after Wipe: %v, want %v", s, err, ErrWiped)
			}
			if _, _, err := in.Open(ctx, append([]byte{}, pkt...)); !errors.Is(err, ErrWiped) {
				t.Errorf("%v: Open after Wipe: %v, want %v", s, err, ErrWiped)
			}
		}
		if o.Seq() != seq {
			t.Errorf("%v: the sequence number went from %d to %d with Wipe", s, seq, o.Seq())
		}
	}
}

func TestSPIOf(t *testing.T) {
	pkt := []byte{0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 1}
	if got := SPIOf(pkt); got != 0xdeadbeef {
		t.Errorf("SPIOf = %#x", got)
	}
	for n := range pkt {
		if got := SPIOf(pkt[:n]); got != 0 {
			t.Errorf("SPIOf of %d octets = %#x, want 0", n, got)
		}
	}
}
