package chapoly

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/esp/aead"
	"postern/esp/aead/aeadtest"
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

func zeroKeyed(t testing.TB, r Routine) cipher.AEAD {
	t.Helper()
	return aeadtest.Make(t, maker(r), make([]byte, KeySize))
}

func TestRFC8439Example(t *testing.T) {
	key, nonce := aeadtest.FromHex(t, vectorKey), aeadtest.FromHex(t, vectorNonce)
	additional, want := aeadtest.FromHex(t, vectorAdditional), aeadtest.FromHex(t, vectorSealed)
	each(t, func(t *testing.T, r Routine) {
		a := aeadtest.Make(t, maker(r), key)
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
	key := aeadtest.FromHex(t, "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
	nonce := aeadtest.FromHex(t, "000000000102030405060708")
	additional := aeadtest.FromHex(t, "f33388860000000000004e91")
	sealed := aeadtest.FromHex(t, "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2"+
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
		got, err := aeadtest.Make(t, maker(r), key).Open(nil, nonce, sealed, additional)
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
			copy(octets(block[:]), aeadtest.FromHex(t, v.key))
			p.init(&block)
			p.sum(r, aeadtest.At(aeadtest.FromHex(t, v.message), 0, 0))
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
	each(t, func(t *testing.T, r Routine) {
		aeadtest.Lengths(t, maker(r), chacha20poly1305.New, []int{KeySize}, 301, 511, 512, 513, 1399, 1400, 1401, 1500, 4096, 9000, 65535)
	})
}

func TestAllAlignmentsInPlaceAndApart(t *testing.T) {
	key := aeadtest.Random(rand.New(rand.NewPCG(3, 5)), KeySize)
	each(t, func(t *testing.T, r Routine) {
		aeadtest.Alignments(t, aeadtest.Make(t, maker(r), key), aeadtest.Make(t, chacha20poly1305.New, key),
			0, 1, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257, 600)
	})
}

func TestWritesNothingBesideItsOutput(t *testing.T) {
	each(t, func(t *testing.T, r Routine) { aeadtest.WritesNothingBeside(t, zeroKeyed(t, r)) })
}

func TestOpenRejectsEveryChange(t *testing.T) {
	each(t, func(t *testing.T, r Routine) { aeadtest.RejectsEveryChange(t, zeroKeyed(t, r)) })
}

func TestMisuse(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a key of %d octets is taken", n)
		}
	}
	each(t, func(t *testing.T, r Routine) { aeadtest.Misuse(t, zeroKeyed(t, r)) })
}

func TestNoAllocations(t *testing.T) {
	each(t, func(t *testing.T, r Routine) { aeadtest.NoAllocations(t, zeroKeyed(t, r), func([]byte) {}) })
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
	aeadtest.SelfTestFinds(t, errSelfTest, func(m aead.Maker) error { return selfTestOf(Library, m) }, maker(Plain))
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
	aeadtest.Seeds(f)
	f.Fuzz(func(t *testing.T, k, nonce, text, additional []byte, offsets uint8) {
		key := make([]byte, KeySize)
		copy(key, k)
		lib := aeadtest.Make(t, chacha20poly1305.New, key)
		for _, r := range runnable() {
			aeadtest.Fuzz(t, r.String(), aeadtest.Make(t, maker(r), key), lib, nonce, text, additional, offsets)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	b.Run("x-crypto", func(b *testing.B) {
		aeadtest.BenchmarkSeal(b, aeadtest.Make(b, chacha20poly1305.New, make([]byte, KeySize)))
	})
	for _, r := range Routines() {
		b.Run(r.String(), func(b *testing.B) { aeadtest.BenchmarkSeal(b, zeroKeyed(b, r)) })
	}
}
