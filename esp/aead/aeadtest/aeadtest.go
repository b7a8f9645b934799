// Package aeadtest checks what every AEAD of package esp's rooms has to keep, for the tests of
// chapoly and ctaes: each holds its routines to the library's results with it.
package aeadtest

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"postern/esp/aead"
)

// FromHex returns the octets that s spells; white space does not count.
func FromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Random returns n octets.
func Random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// At returns a copy of b that begins offset octets past a boundary of 16, with room behind it.
func At(b []byte, offset, room int) []byte {
	buf := make([]byte, 16+offset+len(b)+room)
	for uintptr(unsafe.Pointer(&buf[0]))%16 != 0 {
		buf = buf[1:]
	}
	out := buf[offset : offset+len(b) : offset+len(b)+room]
	copy(out, b)
	return out
}

// Make is the AEAD that the Maker makes.
func Make(t testing.TB, m aead.Maker, key []byte) cipher.AEAD {
	t.Helper()
	a, err := m(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Lengths compares ours with the library's over all lengths below n and the further ones, with
// keys of the given sizes by turns.
func Lengths(t *testing.T, ours, lib aead.Maker, sizes []int, n int, further ...int) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n + len(further) {
		length := i
		if i >= n {
			length = further[i-n]
		}
		key, nonce := Random(rng, sizes[i%len(sizes)]), Random(rng, aead.NonceSize)
		text, additional := Random(rng, length), Random(rng, i/3%70)
		a := Make(t, ours, key)
		want := Make(t, lib, key).Seal(nil, nonce, text, additional)
		if got := a.Seal(nil, nonce, text, additional); !bytes.Equal(got, want) {
			t.Fatalf("%d octets with %d associated under %d of key seal differently than with the library", length, len(additional), len(key))
		}
		got, err := a.Open(nil, nonce, want, additional)
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%d octets with %d associated under %d of key, sealed by the library, do not open: %v", length, len(additional), len(key), err)
		}
	}
}

// Alignments compares ours with the library's with input and output at offsets from a boundary,
// apart and in place.
func Alignments(t *testing.T, ours, lib cipher.AEAD, lengths ...int) {
	rng := rand.New(rand.NewPCG(3, 4))
	nonce := Random(rng, aead.NonceSize)
	for _, n := range lengths {
		text := Random(rng, n)
		for from := range 5 {
			additional := At(Random(rng, 8+4*from), from, 0)
			want := lib.Seal(nil, nonce, text, additional)
			for to := range 5 {
				dst := At([]byte("head"), to, n+aead.Overhead)
				sealed := ours.Seal(dst, nonce, At(text, from, 0), additional)
				if string(sealed[:4]) != "head" || !bytes.Equal(sealed[4:], want) {
					t.Fatalf("%d octets from offset %d to offset %d seal wrongly", n, from, to)
				}
				opened, err := ours.Open(At([]byte("head"), to, n), nonce, At(want, from, 0), additional)
				if err != nil || string(opened[:4]) != "head" || !bytes.Equal(opened[4:], text) {
					t.Fatalf("%d octets from offset %d to offset %d open wrongly: %v", n, from, to, err)
				}
			}
			in := At(text, from, aead.Overhead)
			sealed := ours.Seal(in[:0], nonce, in, additional)
			if !bytes.Equal(sealed, want) || n > 0 && &sealed[0] != &in[0] {
				t.Fatalf("%d octets at offset %d seal wrongly in place", n, from)
			}
			opened, err := ours.Open(sealed[:0], nonce, sealed, additional)
			if err != nil || !bytes.Equal(opened, text) {
				t.Fatalf("%d octets at offset %d open wrongly in place: %v", n, from, err)
			}
		}
	}
}

// WritesNothingBeside checks that nothing around the destination is touched.
func WritesNothingBeside(t *testing.T, a cipher.AEAD) {
	nonce := Random(rand.New(rand.NewPCG(8, 9)), aead.NonceSize)
	const from = 32
	for n := range 300 {
		for offset := range 4 {
			buf := At(bytes.Repeat([]byte{0x5a}, n+aead.Overhead+64), offset, 0)
			a.Seal(buf[from:from], nonce, buf[from:from+n], buf[:8])
			for i, b := range buf {
				if (i < from || i >= from+n+aead.Overhead) && b != 0x5a {
					t.Fatalf("sealing %d octets at %d changed the octet at %d", n, from, i)
				}
			}
		}
	}
}

// RejectsEveryChange checks that a packet with one bit changed, or cut, does not open, and that
// none of it is decrypted: what fails to open stays as it was or, by the library, is cleared.
func RejectsEveryChange(t *testing.T, a cipher.AEAD) {
	rng := rand.New(rand.NewPCG(5, 6))
	nonce, additional := Random(rng, aead.NonceSize), Random(rng, 12)
	text := Random(rng, 100)
	sealed := a.Seal(nil, nonce, text, additional)
	cleared := make([]byte, len(text))
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			before := bytes.Clone(sealed)
			if got, err := a.Open(sealed[:0], nonce, sealed, additional); err == nil || got != nil {
				t.Fatalf("opens with bit %d of octet %d changed", bit, i)
			}
			if !bytes.Equal(sealed, before) && !bytes.Equal(sealed[:len(text)], cleared) {
				t.Fatal("what fails to open was decrypted all the same")
			}
			copy(sealed, before)
			sealed[i] ^= 1 << bit
		}
	}
	for i := range additional {
		additional[i] ^= 4
		if _, err := a.Open(nil, nonce, sealed, additional); err == nil {
			t.Fatalf("opens with octet %d of the associated data changed", i)
		}
		additional[i] ^= 4
	}
	for n := range len(sealed) {
		if _, err := a.Open(nil, nonce, sealed[:n], additional); err == nil {
			t.Fatalf("opens when cut to %d octets", n)
		}
	}
	if _, err := a.Open(nil, nonce, sealed, additional); err != nil {
		t.Fatal("does not open unchanged")
	}
}

// Misuse checks the sizes that a tells, and that it panics when it is called wrongly.
func Misuse(t *testing.T, a cipher.AEAD) {
	if a.NonceSize() != aead.NonceSize || a.Overhead() != aead.Overhead {
		t.Errorf("nonce of %d, overhead of %d octets", a.NonceSize(), a.Overhead())
	}
	b := make([]byte, 300)
	Panics(t, map[string]func(){
		"a short nonce to seal":   func() { a.Seal(nil, b[:11], b[20:40], nil) },
		"a long nonce to open":    func() { a.Open(nil, b[:24], b[20:40], nil) },
		"a long nonce, short box": func() { a.Open(nil, b[:24], b[20:30], nil) },
		"sealing one octet on":    func() { a.Seal(b[101:101], b[:12], b[100:150], nil) },
		"sealing one octet back":  func() { a.Seal(b[99:99], b[:12], b[100:150], nil) },
		"opening one octet on":    func() { a.Open(b[101:101], b[:12], b[100:150], nil) },
		"sealing into the last":   func() { a.Seal(b[149:149], b[:12], b[100:150], nil) },
	})
}

// Panics checks that every function does.
func Panics(t *testing.T, calls map[string]func()) {
	for name, f := range calls {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			f()
		}()
	}
}

// NoAllocations checks that sealing, opening and refusing packets in place allocate nothing;
// nor does more, which gets a buffer of 160 octets.
func NoAllocations(t *testing.T, a cipher.AEAD, more func(buf []byte)) {
	buf, nonce := make([]byte, 1600), make([]byte, aead.NonceSize)
	for _, off := range []int{64, 65} {
		n := testing.AllocsPerRun(100, func() {
			sealed := a.Seal(buf[off:off], nonce, buf[off:off+1399], buf[:8])
			if _, err := a.Open(sealed[:0], nonce, sealed, buf[:8]); err != nil {
				t.Fatal(err)
			}
			sealed[0] ^= 1
			if _, err := a.Open(sealed[:0], nonce, sealed, buf[:8]); err == nil {
				t.Fatal("opens a changed packet")
			}
			more(buf[off : off+160])
		})
		if n != 0 {
			t.Errorf("a packet at offset %d allocates %v times", off, n)
		}
	}
}

// SelfTestFinds checks that the self-test of a package fails by the error want when the routine
// that it tests is wrong in one way. good makes what the routine should be.
func SelfTestFinds(t *testing.T, want error, selfTest func(aead.Maker) error, good aead.Maker) {
	for name, broken := range map[string]func(a cipher.AEAD, size int) cipher.AEAD{
		"is wrong at 0 octets only":    func(a cipher.AEAD, _ int) cipher.AEAD { return wrongAt{a, 0} },
		"is wrong at 63 octets only":   func(a cipher.AEAD, _ int) cipher.AEAD { return wrongAt{a, 63} },
		"is wrong at 1400 octets only": func(a cipher.AEAD, _ int) cipher.AEAD { return wrongAt{a, 1400} },
		"does not check tags":          func(a cipher.AEAD, _ int) cipher.AEAD { return credulous{a} },
		"ignores its key":              func(_ cipher.AEAD, size int) cipher.AEAD { return Make(t, good, make([]byte, size)) },
	} {
		err := selfTest(func(key []byte) (cipher.AEAD, error) { return broken(Make(t, good, key), len(key)), nil })
		if !errors.Is(err, want) {
			t.Errorf("a routine that %s passes: %v", name, err)
		}
	}
	if err := selfTest(good); err != nil {
		t.Errorf("a routine that is right does not pass: %v", err)
	}
}

// wrongAt seals wrongly at one length, as a processor that lacks an instruction of one path.
type wrongAt struct {
	cipher.AEAD
	length int
}

func (w wrongAt) Seal(dst, nonce, plaintext, additional []byte) []byte {
	out := w.AEAD.Seal(dst, nonce, plaintext, additional)
	if len(plaintext) == w.length {
		out[len(out)-1] ^= 1
	}
	return out
}

type credulous struct{ cipher.AEAD }

func (c credulous) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	out, _ := c.AEAD.Open(dst, nonce, ciphertext, additional)
	if out == nil {
		out = ciphertext[:len(ciphertext)-aead.Overhead]
	}
	return out, nil
}

// Seeds are those of a fuzz target that hands its arguments to Fuzz: a key, a nonce, a text,
// associated data, and offsets.
func Seeds(f *testing.F) {
	f.Add([]byte("key"), []byte("nonce"), bytes.Repeat([]byte("If I could offer you only one tip. "), 3), []byte("associated"), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), bytes.Repeat([]byte{0xff}, 333), []byte{}, uint8(0x31))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, uint8(2))
}

// Fuzz compares a, called name, with the library's: it seals the text, and opens what it has
// sealed and the text itself. Text and associated data begin offsets&15 and offsets>>4 octets
// past a boundary.
func Fuzz(t *testing.T, name string, a, lib cipher.AEAD, n, text, additional []byte, offsets uint8) {
	nonce := make([]byte, aead.NonceSize)
	copy(nonce, n)
	want := lib.Seal(nil, nonce, text, additional)
	in := At(text, int(offsets&15), aead.Overhead)
	ad := At(additional, int(offsets>>4), 0)
	got := a.Seal(in[:0], nonce, in, ad)
	if !bytes.Equal(got, want) {
		t.Fatalf("%s seals to %x, the library to %x", name, got, want)
	}
	// What the fuzzer made is opened as well: both must agree that it is forged.
	if len(text) >= aead.Overhead {
		ours, err := a.Open(nil, nonce, At(text, int(offsets&15), 0), ad)
		theirs, err2 := lib.Open(nil, nonce, text, additional)
		if (err == nil) != (err2 == nil) || !bytes.Equal(ours, theirs) {
			t.Fatalf("%s opens to %x, %v, the library to %x, %v", name, ours, err, theirs, err2)
		}
	}
	if opened, err := a.Open(got[:0], nonce, got, ad); err != nil || !bytes.Equal(opened, text) {
		t.Fatalf("%s opens its own to %x, %v", name, opened, err)
	}
}

// BenchmarkSeal seals packets of 1400 octets in place.
func BenchmarkSeal(b *testing.B, a cipher.AEAD) {
	buf, nonce := make([]byte, 1500), make([]byte, aead.NonceSize)
	b.SetBytes(1400)
	b.ReportAllocs()
	for b.Loop() {
		a.Seal(buf[16:16], nonce, buf[16:1416], buf[:8])
	}
}
