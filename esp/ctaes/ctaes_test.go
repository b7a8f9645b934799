package ctaes

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"postern/esp/aead"
	"postern/esp/aead/aeadtest"
)

// eachRoutineOf runs the test with every routine that the processor has.
func eachRoutineOf(t *testing.T, f func(t *testing.T, r Routine)) {
	eachOf(t, append(ours(), Library), f)
}

// eachOurs runs the test with the routines of this package, which are held to the library.
func eachOurs(t *testing.T, f func(t *testing.T, r Routine)) { eachOf(t, ours(), f) }

func eachOf(t *testing.T, list []Routine, f func(t *testing.T, r Routine)) {
	for _, r := range list {
		t.Run(r.String(), func(t *testing.T) { f(t, r) })
	}
}

func ours() []Routine {
	if detectWide() {
		return []Routine{Sliced, Wide}
	}
	return []Routine{Sliced}
}

func made(t testing.TB, r Routine, key []byte) cipher.AEAD {
	t.Helper()
	return aeadtest.Make(t, maker(r), key)
}

func blockOf(t testing.TB, r Routine, key []byte) cipher.Block {
	t.Helper()
	b, err := newCipher(r, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The circuit against the definition: the inverse in GF(2^8), then the affine map, less the
// constant that the round keys carry. All 256 octets pass through every bit of a word.
func TestSubIsTheSBoxForEveryOctet(t *testing.T) {
	times := func(a, b byte) (p byte) {
		for ; b != 0; b >>= 1 {
			if b&1 != 0 {
				p ^= a
			}
			a = a<<1 ^ a>>7*0x1b
		}
		return p
	}
	for x := range 256 {
		inverse := byte(0)
		for y := range 256 {
			if times(byte(x), byte(y)) == 1 {
				inverse = byte(y)
			}
		}
		want := inverse
		for i := 1; i <= 4; i++ {
			want ^= bits.RotateLeft8(inverse, i)
		}
		var s slice
		for j := range s {
			s[j] = -(uint(x) >> j & 1)
		}
		before := s
		s.sub()
		for j := range s {
			if s[j] != -(uint(want) >> j & 1) {
				t.Fatalf("bit %d of the S-box at %#x is %#x in the lanes, not that of %#x", j, x, s[j], want)
			}
		}
		s.inverseSub()
		if s != before {
			t.Fatalf("inverseSub does not undo sub at %#x", x)
		}
	}
}

func TestLanesAndTransposeAreInverse(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for range 100 {
		var s slice
		var in [lanes][4]uint32
		for lane := range in {
			for i := range in[lane] {
				in[lane][i] = rng.Uint32()
			}
			s.put(lane, &in[lane])
		}
		before := s
		s.transpose()
		for lane := range in {
			for c := range 4 {
				for r := range 4 {
					for j := range s {
						if uint32(s[j]>>(r*field+c*lanes+lane))&1 != in[lane][c]>>(8*r+j)&1 {
							t.Fatalf("bit %d of row %d, column %d of lane %d is not where it belongs", j, r, c, lane)
						}
					}
				}
			}
		}
		s.transpose()
		if s != before {
			t.Fatal("transpose does not undo itself")
		}
		for lane := range in {
			var c [4]uint32
			if s.get(lane, &c); c != in[lane] {
				t.Fatalf("lane %d comes out as %08x, not as %08x", lane, c, in[lane])
			}
		}
	}
}

// FIPS 197 appendix C and SP 800-38A's first block of F.1.
func TestFIPS197Examples(t *testing.T) {
	for _, v := range []struct{ key, plain, sealed string }{
		{fipsKey[:32], fipsPlain, "69c4e0d86a7b0430d8cdb78070b4c55a"},
		{fipsKey[:48], fipsPlain, "dda97ca4864cdfe06eaf70a0ec0d7191"},
		{fipsKey, fipsPlain, fipsCipher},
		{"2b7e151628aed2a6abf7158809cf4f3c", "6bc1bee22e409f96e93d7e117393172a", "3ad77bb40d7a3660a89ecaf32466ef97"},
		{"8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "6bc1bee22e409f96e93d7e117393172a", "bd334f1d6e45f25ff712a214571fa5cc"},
		{"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", "6bc1bee22e409f96e93d7e117393172a", "f3eed1bdb5d2a03c064b5a7e3db181f8"},
	} {
		b := blockOf(t, Sliced, aeadtest.FromHex(t, v.key))
		out := make([]byte, 16)
		if b.Encrypt(out, aeadtest.FromHex(t, v.plain)); hex.EncodeToString(out) != v.sealed {
			t.Errorf("%s under %s becomes %x, not %s", v.plain, v.key, out, v.sealed)
		}
		if b.Decrypt(out, out); hex.EncodeToString(out) != v.plain {
			t.Errorf("%s under %s decrypts to %x, not %s", v.sealed, v.key, out, v.plain)
		}
	}
}

// Appendix B of "The Galois/Counter Mode of Operation (GCM)" by D. McGrew and J. Viega, the cases
// with nonces of 96 bits. The test cases of draft-mcgrew-gcm-test run in package esp.
func TestMcGrewViegaVectors(t *testing.T) {
	const (
		key    = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
		long   = vectorPlain + "1aafd255"
		zeros  = "0000000000000000000000000000000000000000000000000000000000000000"
		nonce0 = "000000000000000000000000"
	)
	for _, v := range []struct{ name, key, nonce, plain, additional, sealed string }{
		{"1", zeros[:32], nonce0, "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
		{"2", zeros[:32], nonce0, zeros[:32], "", "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"},
		{"3", key[:32], vectorNonce, long, "",
			"42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" +
				"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985" + "4d5c2af327cd64a62cf35abd2ba6fab4"},
		{"4", key[:32], vectorNonce, vectorPlain, vectorAdditional,
			"42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" +
				"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091" + "5bc94fbc3221a5db94fae95ae7121a47"},
		{"7", zeros[:48], nonce0, "", "", "cd33b28ac773f74ba00ed1f312572435"},
		{"8", zeros[:48], nonce0, zeros[:32], "", "98e7247c07f0fe411c267e4384b0f6002ff58d80033927ab8ef4d4587514f0fb"},
		{"9", key[:48], vectorNonce, long, "",
			"3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c" +
				"7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710acade256" + "9924a7c8587336bfb118024db8674a14"},
		{"13", zeros, nonce0, "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
		{"14", zeros, nonce0, zeros[:32], "", "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
		{"16", key, vectorNonce, vectorPlain, vectorAdditional, vectorSealed},
	} {
		eachRoutineOf(t, func(t *testing.T, r Routine) {
			a := made(t, r, aeadtest.FromHex(t, v.key))
			if got := a.Seal(nil, aeadtest.FromHex(t, v.nonce), aeadtest.FromHex(t, v.plain), aeadtest.FromHex(t, v.additional)); hex.EncodeToString(got) != v.sealed {
				t.Errorf("case %s seals to\n%x\nnot\n%s", v.name, got, v.sealed)
			}
			got, err := a.Open(nil, aeadtest.FromHex(t, v.nonce), aeadtest.FromHex(t, v.sealed), aeadtest.FromHex(t, v.additional))
			if err != nil || hex.EncodeToString(got) != v.plain {
				t.Errorf("case %s opens to %x, %v", v.name, got, err)
			}
		})
	}
}

func TestAllLengthsAsLibrary(t *testing.T) {
	eachOurs(t, func(t *testing.T, r Routine) {
		aeadtest.Lengths(t, maker(r), maker(Library), []int{16, 24, 32}, 601, 1399, 1400, 1401, 1500, 4096, 9000, 65535)
	})
}

// Zeros and ones in every combination of H and the sum, where the products of masked integers
// are as large as they become, against SP 800-38D's definition (section 6.3).
func TestHashOfExtremesAsDefined(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	words := []uint64{0, 1, 1<<64 - 1, 1 << 63, 0x1111111111111111, 0x8888888888888888, 1<<32 - 1, 1<<64 - 1<<32}
	for range 3000 {
		var w [4]uint64 // H and one block
		var in [32]byte
		for i := range w {
			w[i] = words[rng.IntN(len(words))]
			binary.BigEndian.PutUint64(in[8*i:], w[i])
		}
		var z1, z0 uint64
		v1, v0, x1, x0 := w[0], w[1], w[2], w[3]
		for range 128 {
			z1, z0 = z1^v1&-(x1>>63), z0^v0&-(x1>>63)
			x1, x0 = x1<<1|x0>>63, x0<<1
			v1, v0 = v1>>1^v0&1*(0xe1<<56), v0>>1|v1<<63
		}
		var (
			k         hashKey
			y         hash
			got, want [blockLen]byte
		)
		k.of((*[blockLen]byte)(in[:]))
		y.blocks(&k, in[16:])
		y.put(&got)
		binary.BigEndian.PutUint64(want[:], z1)
		binary.BigEndian.PutUint64(want[8:], z0)
		if got != want {
			t.Fatalf("%x times %x is %x, not %x", in[16:], in[:16], got, want)
		}
	}
}

func TestAllAlignmentsInPlaceAndApart(t *testing.T) {
	key := aeadtest.Random(rand.New(rand.NewPCG(3, 5)), 16)
	eachOurs(t, func(t *testing.T, r Routine) {
		aeadtest.Alignments(t, made(t, r, key), made(t, Library, key), 0, 1, 15, 16, 17, 63, 64, 65, 239, 240, 241, 255, 256, 257, 600)
	})
}

func TestWritesNothingBesideItsOutput(t *testing.T) {
	eachOurs(t, func(t *testing.T, r Routine) { aeadtest.WritesNothingBeside(t, made(t, r, make([]byte, 16))) })
}

func TestOpenRejectsEveryChange(t *testing.T) {
	eachOurs(t, func(t *testing.T, r Routine) { aeadtest.RejectsEveryChange(t, made(t, r, make([]byte, 16))) })
}

func TestCBCAsLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	type mode interface {
		cipher.BlockMode
		SetIV([]byte)
	}
	for n := range 20 {
		for _, size := range []int{16, 24, 32} {
			key, iv, text := aeadtest.Random(rng, size), aeadtest.Random(rng, 16), aeadtest.Random(rng, 16*n)
			ours, lib := blockOf(t, Sliced, key), blockOf(t, Library, key)
			sealed := make([]byte, len(text))
			cipher.NewCBCEncrypter(lib, iv).CryptBlocks(sealed, text)
			got := bytes.Clone(text)
			enc := cipher.NewCBCEncrypter(ours, make([]byte, 16)).(mode)
			enc.SetIV(iv)
			if enc.CryptBlocks(got, got); !bytes.Equal(got, sealed) {
				t.Fatalf("%d blocks encrypt differently than with the library", n)
			}
			// In place and apart, at once and in two parts, which the IV joins.
			dec := cipher.NewCBCDecrypter(ours, make([]byte, 16)).(mode)
			dec.SetIV(iv)
			if dec.CryptBlocks(got, got); !bytes.Equal(got, text) {
				t.Fatalf("%d blocks decrypt wrongly in place", n)
			}
			dec.SetIV(iv)
			part := 16 * rng.IntN(n+1)
			apart := make([]byte, len(text))
			dec.CryptBlocks(apart, sealed[:part])
			if dec.CryptBlocks(apart[part:], sealed[part:]); !bytes.Equal(apart, text) {
				t.Fatalf("%d octets of %d blocks and then the rest decrypt wrongly", part, n)
			}
			if _, ok := cipher.BlockMode(dec).(*cbcDecrypter); !ok {
				t.Fatalf("crypto/cipher decrypts block by block, with %T", dec)
			}
		}
	}
}

func TestMisuse(t *testing.T) {
	for n := range 40 {
		_, err := NewGCM(make([]byte, n))
		_, err2 := newBlock(make([]byte, n))
		_, err3 := NewCipher(make([]byte, n))
		if good := n == 16 || n == 24 || n == 32; (err == nil) != good || (err2 == nil) != good || (err3 == nil) != good {
			t.Errorf("a key of %d octets: %v, %v, %v", n, err, err2, err3)
		}
	}
	aeadtest.Misuse(t, made(t, Sliced, make([]byte, 16)))
	b := make([]byte, 300)
	cbc := blockOf(t, Sliced, b[:16]).(*block)
	aeadtest.Panics(t, map[string]func(){
		"less than a block":      func() { cbc.Encrypt(b, b[:15]) },
		"less room than a block": func() { cbc.Decrypt(b[:15], b) },
		"a short IV":             func() { cbc.NewCBCDecrypter(b[:15]) },
		"CBC of half a block":    func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b, b[:24]) },
		"CBC into less":          func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b[:16], b[:32]) },
		"CBC one octet on":       func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b[1:], b[:32]) },
	})
}

func TestNoAllocations(t *testing.T) {
	b := blockOf(t, Sliced, make([]byte, 32))
	enc, dec := cipher.NewCBCEncrypter(b, make([]byte, 16)), cipher.NewCBCDecrypter(b, make([]byte, 16))
	eachOurs(t, func(t *testing.T, r Routine) {
		aeadtest.NoAllocations(t, made(t, r, make([]byte, 16)), func(buf []byte) {
			enc.CryptBlocks(buf, buf)
			dec.CryptBlocks(buf, buf)
		})
	})
}

func TestOneKeyForManyGoroutines(t *testing.T) {
	eachOurs(t, testOneKeyForManyGoroutines)
}

func testOneKeyForManyGoroutines(t *testing.T, r Routine) {
	key := []byte("0123456789abcdef")
	a, lib, b := made(t, r, key), made(t, Library, key), blockOf(t, r, key)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range 50 {
				nonce, text := aeadtest.Random(rng, NonceSize), aeadtest.Random(rng, rng.IntN(500))
				sealed := a.Seal(nil, nonce, text, key)
				if !bytes.Equal(sealed, lib.Seal(nil, nonce, text, key)) {
					t.Errorf("goroutine %d seals wrongly beside others", g)
				}
				if opened, err := a.Open(nil, nonce, sealed, key); err != nil || !bytes.Equal(opened, text) {
					t.Errorf("goroutine %d opens wrongly beside others: %v", g, err)
				}
				x := aeadtest.Random(rng, 16)
				y := bytes.Clone(x)
				b.Encrypt(y, y)
				if b.Decrypt(y, y); !bytes.Equal(x, y) {
					t.Errorf("goroutine %d decrypts wrongly beside others", g)
				}
			}
		})
	}
	wg.Wait()
}

func TestSelfTestPassesAndFindsBrokenRoutine(t *testing.T) {
	before := Current()
	defer Use(before)
	eachRoutineOf(t, func(t *testing.T, r Routine) {
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
	for _, r := range []Routine{Library, Wide} {
		aeadtest.SelfTestFinds(t, errSelfTest, func(m aead.Maker) error { return selfTestOf(r, m) }, maker(Sliced))
	}
}

func TestLibraryOnlyWithInstructions(t *testing.T) {
	before := Current()
	defer Use(before)
	if before != Routines(Detect())[0] {
		t.Errorf("without being told, it uses the %s", before)
	}
	for cpu, want := range map[CPU][]Routine{
		{}:                      {Sliced},
		{Wide: true}:            {Sliced},
		{AES: true}:             {Library, Sliced},
		{AES: true, Wide: true}: {Wide, Library, Sliced},
	} {
		if got := Routines(cpu); !slices.Equal(got, want) {
			t.Errorf("for %+v the routines are %v, not %v", cpu, got, want)
		}
	}
	if Use(Wide+1) == nil || Current() != before {
		t.Error("a routine that does not exist can be used")
	}
	if !detectWide() && (Use(Wide) == nil || Current() != before) {
		t.Error("a routine that the processor has not can be used")
	}
	for _, r := range append(ours(), Library) {
		if err := Use(r); err != nil {
			t.Fatal(err)
		}
		g, _ := NewGCM(make([]byte, 16))
		b, _ := NewCipher(make([]byte, 16))
		_, oursG := g.(*gcm)
		_, oursB := b.(*block)
		if oursG != (r == Sliced) || oursB != oursG {
			t.Errorf("after Use(%s) the ciphers are %T and %T", r, g, b)
		}
	}
}

func FuzzAsLibrary(f *testing.F) {
	aeadtest.Seeds(f)
	f.Fuzz(func(t *testing.T, k, nonce, text, additional []byte, offsets uint8) {
		key := make([]byte, 16+8*min(len(k)/16, 2))
		copy(key, k)
		for _, r := range ours() {
			aeadtest.Fuzz(t, r.String(), made(t, r, key), made(t, Library, key), nonce, text, additional, offsets)
		}
		if len(text) >= blockLen {
			block, libBlock := blockOf(t, Sliced, key), blockOf(t, Library, key)
			text = text[:len(text)&^(blockLen-1)]
			want, got := make([]byte, len(text)), make([]byte, len(text))
			cipher.NewCBCDecrypter(libBlock, text[:blockLen]).CryptBlocks(want, text)
			if cipher.NewCBCDecrypter(block, text[:blockLen]).CryptBlocks(got, text); !bytes.Equal(got, want) {
				t.Fatalf("CBC decrypts to %x, the library's to %x", got, want)
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, r := range append(ours(), Library) {
		b.Run(r.String(), func(b *testing.B) { aeadtest.BenchmarkSeal(b, made(b, r, make([]byte, 16))) })
	}
}
