package chapoly

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"
)

// releaseOne says that the emulator was told to be a MIPS32 of release 1. Otherwise it is one
// of release 2.
func releaseOne() bool { return os.Getenv("QEMU_CPU") == "4Kc" }

// runnable returns the routines that this processor can run.
func runnable() []Routine {
	return slices.DeleteFunc(Routines(), func(r Routine) bool { return r == AssemblyRotate && releaseOne() })
}

// each runs the test with every one of them.
func each(t *testing.T, f func(t *testing.T, r Routine)) {
	for _, r := range runnable() {
		t.Run(r.String(), func(t *testing.T) { f(t, r) })
	}
}

func aead(t testing.TB, r Routine, key []byte) cipher.AEAD {
	t.Helper()
	a, err := newAEAD(r, key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func reference(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := chacha20poly1305.New(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// at returns a copy of b that begins offset octets past a boundary of 16, with room behind it.
func at(b []byte, offset, room int) []byte {
	buf := make([]byte, 16+offset+len(b)+room)
	for uintptr(unsafe.Pointer(&buf[0]))%16 != 0 {
		buf = buf[1:]
	}
	out := buf[offset : offset+len(b) : offset+len(b)+room]
	copy(out, b)
	return out
}

func TestRFC8439Example(t *testing.T) {
	key, nonce := fromHex(t, vectorKey), fromHex(t, vectorNonce)
	additional, want := fromHex(t, vectorAdditional), fromHex(t, vectorSealed)
	each(t, func(t *testing.T, r Routine) {
		a := aead(t, r, key)
		if got := a.Seal(nil, nonce, []byte(vectorPlaintext), additional); !bytes.Equal(got, want) {
			t.Errorf("section 2.8.2 seals to\n%x\nnot\n%x", want, got)
		}
		got, err := a.Open(nil, nonce, want, additional)
		if err != nil || string(got) != vectorPlaintext {
			t.Errorf("section 2.8.2 opens to %q, %v", got, err)
		}
	})
}

// Appendix A.5 of RFC 8439, which is to be opened.
func TestRFC8439DecryptionVector(t *testing.T) {
	key := fromHex(t, "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
	nonce := fromHex(t, "000000000102030405060708")
	additional := fromHex(t, "f33388860000000000004e91")
	sealed := fromHex(t, "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2"+
		"4c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf"+
		"332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855"+
		"9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4"+
		"b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523e"+
		"af4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a"+
		"0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10"+
		"49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29"+
		"a6ad5cb4022b02709b"+"eead9d67890cbb22392336fea1851f38")
	want := "Internet-Drafts are draft documents valid for a maximum of six months and may be updated, " +
		"replaced, or obsoleted by other documents at any time. It is inappropriate to use Internet-Drafts " +
		"as reference material or to cite them other than as /“work in progress./”"
	each(t, func(t *testing.T, r Routine) {
		got, err := aead(t, r, key).Open(nil, nonce, sealed, additional)
		if err != nil || string(got) != want {
			t.Errorf("appendix A.5 opens to %q, %v", got, err)
		}
	})
}

// Section 2.5.2 and appendix A.3 of RFC 8439: the sums at the edges of the modulus and of
// every limb. The vectors that are not a multiple of 16 octets long do not occur in the AEAD,
// which pads.
func TestPoly1305Vectors(t *testing.T) {
	for _, v := range []struct{ name, key, message, tag string }{
		{"A.3 1", "0000000000000000000000000000000000000000000000000000000000000000",
			"0000000000000000000000000000000000000000000000000000000000000000", "00000000000000000000000000000000"},
		{"A.3 7", "0200000000000000000000000000000000000000000000000000000000000000",
			"ffffffffffffffffffffffffffffffff", "03000000000000000000000000000000"},
		{"A.3 8", "02000000000000000000000000000000ffffffffffffffffffffffffffffffff",
			"02000000000000000000000000000000", "03000000000000000000000000000000"},
		{"A.3 9", "0100000000000000000000000000000000000000000000000000000000000000",
			"fffffffffffffffffffffffffffffffff0ffffffffffffffffffffffffffffff11000000000000000000000000000000",
			"05000000000000000000000000000000"},
		{"A.3 10", "0100000000000000000000000000000000000000000000000000000000000000",
			"fffffffffffffffffffffffffffffffffbfefefefefefefefefefefefefefefe01010101010101010101010101010101",
			"00000000000000000000000000000000"},
		{"A.3 11", "0200000000000000000000000000000000000000000000000000000000000000",
			"fdffffffffffffffffffffffffffffff", "faffffffffffffffffffffffffffffff"},
		{"A.3 12", "0100000000000000040000000000000000000000000000000000000000000000",
			"e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001000000000000000000000000000000",
			"14000000000000005500000000000000"},
		{"A.3 13", "0100000000000000040000000000000000000000000000000000000000000000",
			"e33594d7505e43b900000000000000003394d7505e4379cd010000000000000000000000000000000000000000000000",
			"13000000000000000000000000000000"},
	} {
		each(t, func(t *testing.T, r Routine) {
			var (
				block [blockLen / 4]uint32
				p     poly
				tag   [Overhead]byte
			)
			copy(octets(block[:]), fromHex(t, v.key))
			p.init(&block)
			p.sum(r, at(fromHex(t, v.message), 0, 0))
			p.tag(&tag)
			if hex.EncodeToString(tag[:]) != v.tag {
				t.Errorf("%s: the tag is %x, not %s", v.name, tag, v.tag)
			}
		})
	}
}

// Limbs of all ones and of all zeros, in every combination of message and key, against the
// plain code, which the vectors hold.
func TestPoly1305CarriesAgainstPlain(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	words := []uint32{0, 1, 0xffffffff, 0xfffffffe, 0x80000000, 0x7fffffff, 0x0ffffffc}
	each(t, func(t *testing.T, r Routine) {
		for i := range 4000 {
			var (
				key     [blockLen / 4]uint32
				message [12]uint32
				a, b    poly
			)
			for i := range key {
				key[i] = words[rng.IntN(len(words))]
			}
			for i := range message {
				message[i] = words[rng.IntN(len(words))]
			}
			a.init(&key)
			b.init(&key)
			n := 1 + i%3
			polyBlocks(r, &a, &message[0], n)
			sumPlain(&b, &message[0], n)
			if a != b {
				t.Fatalf("after %d blocks %08x of the key %08x the sum is %08x, not %08x", n, message, key[:4], a.h, b.h)
			}
		}
	})
}

func TestChaCha20CounterPasses32Bits(t *testing.T) {
	each(t, func(t *testing.T, r Routine) {
		var a, b state
		for i := range a {
			a[i] = uint32(i) * 0x01234567
		}
		a[12] = 0xfffffffe
		b = a
		var got, want [3 * blockLen / 4]uint32
		xorBlocks(r, &got[0], &got[0], 3, &a)
		for i := range 3 {
			xorPlain(&want[16*i], &want[16*i], 1, &b)
		}
		if got != want || a != b {
			t.Errorf("the counter goes on to %#x, not %#x", a[12], b[12])
		}
	})
}

func TestAllLengthsAsLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	lengths := []int{511, 512, 513, 1399, 1400, 1401, 1500, 4096, 9000, 65535}
	for n := range 301 {
		lengths = append(lengths, n)
	}
	each(t, func(t *testing.T, r Routine) {
		for _, n := range lengths {
			key, nonce := random(rng, KeySize), random(rng, NonceSize)
			text, additional := random(rng, n), random(rng, rng.IntN(40))
			ours := aead(t, r, key)
			want := reference(t, key).Seal(nil, nonce, text, additional)
			if got := ours.Seal(nil, nonce, text, additional); !bytes.Equal(got, want) {
				t.Fatalf("%d octets with %d associated seal differently than with the library", n, len(additional))
			}
			got, err := ours.Open(nil, nonce, want, additional)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d octets with %d associated, sealed by the library, do not open: %v", n, len(additional), err)
			}
		}
	})
}

func TestAllAlignmentsInPlaceAndApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	each(t, func(t *testing.T, r Routine) {
		key, nonce := random(rng, KeySize), random(rng, NonceSize)
		ours, lib := aead(t, r, key), reference(t, key)
		for _, n := range []int{0, 1, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257, 600} {
			text := random(rng, n)
			for from := range 5 {
				additional := at(random(rng, 8+4*from), from, 0)
				want := lib.Seal(nil, nonce, text, additional)
				for to := range 5 {
					dst := at([]byte("head"), to, n+Overhead)
					sealed := ours.Seal(dst, nonce, at(text, from, 0), additional)
					if string(sealed[:4]) != "head" || !bytes.Equal(sealed[4:], want) {
						t.Fatalf("%d octets from offset %d to offset %d seal wrongly", n, from, to)
					}
					opened, err := ours.Open(at([]byte("head"), to, n), nonce, at(want, from, 0), additional)
					if err != nil || string(opened[:4]) != "head" || !bytes.Equal(opened[4:], text) {
						t.Fatalf("%d octets from offset %d to offset %d open wrongly: %v", n, from, to, err)
					}
				}
				in := at(text, from, Overhead)
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
	})
}

// Nothing around the destination is touched.
func TestWritesNothingBesideItsOutput(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	each(t, func(t *testing.T, r Routine) {
		a := aead(t, r, random(rng, KeySize))
		nonce := random(rng, NonceSize)
		for n := range 200 {
			for offset := range 4 {
				buf := at(bytes.Repeat([]byte{0x5a}, n+Overhead+64), offset, 0)
				a.Seal(buf[32:32], nonce, buf[32:32+n], buf[:8])
				for i, b := range buf {
					if (i < 32 || i >= 32+n+Overhead) && b != 0x5a {
						t.Fatalf("sealing %d octets at %d changed the octet at %d", n, 32, i)
					}
				}
			}
		}
	})
}

func TestOpenRejectsEveryChange(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	each(t, func(t *testing.T, r Routine) {
		a := aead(t, r, random(rng, KeySize))
		nonce, additional := random(rng, NonceSize), random(rng, 12)
		text := random(rng, 100)
		sealed := a.Seal(nil, nonce, text, additional)
		for i := range sealed {
			for bit := range 8 {
				sealed[i] ^= 1 << bit
				before := bytes.Clone(sealed)
				if _, err := a.Open(sealed[:0], nonce, sealed, additional); err == nil {
					t.Fatalf("opens with bit %d of octet %d changed", bit, i)
				}
				if bytes.Contains(sealed, text[:8]) || bytes.Contains(sealed, text[80:88]) {
					t.Fatal("what fails to open was decrypted all the same")
				}
				copy(sealed, before) // the library clears it
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
	})
}

func TestMisuse(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a key of %d octets is taken", n)
		}
	}
	each(t, func(t *testing.T, r Routine) {
		a := aead(t, r, make([]byte, KeySize))
		if a.NonceSize() != NonceSize || a.Overhead() != Overhead {
			t.Errorf("nonce of %d, overhead of %d octets", a.NonceSize(), a.Overhead())
		}
		b := make([]byte, 300)
		for name, f := range map[string]func(){
			"a short nonce to seal":   func() { a.Seal(nil, b[:11], b[20:40], nil) },
			"a long nonce to open":    func() { a.Open(nil, b[:24], b[20:40], nil) },
			"a long nonce, short box": func() { a.Open(nil, b[:24], b[20:30], nil) },
			"sealing one octet on":    func() { a.Seal(b[101:101], b[:12], b[100:150], nil) },
			"sealing one octet back":  func() { a.Seal(b[99:99], b[:12], b[100:150], nil) },
			"opening one octet on":    func() { a.Open(b[101:101], b[:12], b[100:150], nil) },
			"sealing into the last":   func() { a.Seal(b[149:149], b[:12], b[100:150], nil) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s does not panic", name)
					}
				}()
				f()
			}()
		}
	})
}

func TestNoAllocations(t *testing.T) {
	each(t, func(t *testing.T, r Routine) {
		a := aead(t, r, make([]byte, KeySize))
		buf, nonce := make([]byte, 1600), make([]byte, NonceSize)
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
			})
			if n != 0 {
				t.Errorf("a packet at offset %d allocates %v times", off, n)
			}
		}
	})
}

func TestSelfTestPassesAndFindsBrokenRoutine(t *testing.T) {
	before := Current()
	defer Use(before)
	each(t, func(t *testing.T, r Routine) {
		if err := Use(r); err != nil {
			t.Fatal(err)
		}
		if Current() != r {
			t.Errorf("after Use(%s) it is %s", r, Current())
		}
		if err := SelfTest(); err != nil {
			t.Error(err)
		}
	})
	if err := selfTestOf(Library, func([]byte) (cipher.AEAD, error) {
		return newOwn(Plain, make([]byte, KeySize)), nil
	}); !errors.Is(err, errSelfTest) {
		t.Errorf("a routine that ignores its key passes: %v", err)
	}
	for _, length := range []int{0, 63, 1400} {
		if err := selfTestOf(Library, func(key []byte) (cipher.AEAD, error) {
			return wrongAt{newOwn(Plain, key), length}, nil
		}); !errors.Is(err, errSelfTest) {
			t.Errorf("a routine that is wrong at %d octets only passes: %v", length, err)
		}
	}
	if err := selfTestOf(Library, func(key []byte) (cipher.AEAD, error) {
		return credulous{newOwn(Plain, key)}, nil
	}); !errors.Is(err, errSelfTest) {
		t.Errorf("a routine that does not check tags passes: %v", err)
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
		out = ciphertext[:len(ciphertext)-Overhead]
	}
	return out, nil
}

func TestUseRefusesWhatTheProgramLacks(t *testing.T) {
	before := Current()
	defer Use(before)
	have := map[Routine]bool{}
	for _, r := range Routines() {
		have[r] = true
	}
	for r := range AssemblyRotate + 2 {
		err := Use(r)
		if (err == nil) != have[r] {
			t.Errorf("Use(%s): %v, and the program has it: %v", r, err, have[r])
		}
		if err != nil && !have[Current()] {
			t.Errorf("a refused Use leaves %s", Current())
		}
	}
	if !have[Plain] {
		t.Error("there is nothing to fall back to")
	}
	if Best(CPU{}) == AssemblyRotate {
		t.Error("the rotate instruction would be used without knowing that the processor has it")
	}
}

func FuzzAsLibrary(f *testing.F) {
	f.Add([]byte("key"), []byte("nonce"), []byte(vectorPlaintext), []byte("associated"), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), bytes.Repeat([]byte{0xff}, 333), []byte{}, uint8(0x31))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, uint8(2))
	f.Fuzz(func(t *testing.T, k, n, text, additional []byte, offsets uint8) {
		key, nonce := make([]byte, KeySize), make([]byte, NonceSize)
		copy(key, k)
		copy(nonce, n)
		lib := reference(t, key)
		want := lib.Seal(nil, nonce, text, additional)
		for _, r := range runnable() {
			a := aead(t, r, key)
			in := at(text, int(offsets&15), Overhead)
			ad := at(additional, int(offsets>>4), 0)
			got := a.Seal(in[:0], nonce, in, ad)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s seals to %x, the library to %x", r, got, want)
			}
			// What the fuzzer made is opened as well: both must agree that it is forged.
			if len(text) >= Overhead {
				ours, err := a.Open(nil, nonce, at(text, int(offsets&15), 0), ad)
				theirs, err2 := lib.Open(nil, nonce, text, additional)
				if (err == nil) != (err2 == nil) || !bytes.Equal(ours, theirs) {
					t.Fatalf("%s opens to %x, %v, the library to %x, %v", r, ours, err, theirs, err2)
				}
			}
			if opened, err := a.Open(got[:0], nonce, got, ad); err != nil || !bytes.Equal(opened, text) {
				t.Fatalf("%s opens its own to %x, %v", r, opened, err)
			}
		}
	})
}

// BenchmarkSeal is what .ci/icount counts the instructions of.
func BenchmarkSeal(b *testing.B) {
	key, nonce := make([]byte, KeySize), make([]byte, NonceSize)
	seal := func(b *testing.B, a cipher.AEAD) {
		buf := make([]byte, 1500)
		b.SetBytes(1400)
		b.ReportAllocs()
		for b.Loop() {
			a.Seal(buf[16:16], nonce, buf[16:1416], buf[:8])
		}
	}
	b.Run("x-crypto", func(b *testing.B) { seal(b, reference(b, key)) })
	for _, r := range Routines() {
		b.Run(r.String(), func(b *testing.B) { seal(b, aead(b, r, key)) })
	}
}
