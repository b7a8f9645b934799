package ctaes

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/bits"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"
)

// both runs the test with either routine.
func both(t *testing.T, f func(t *testing.T, r Routine)) {
	for _, r := range []Routine{Sliced, Library} {
		t.Run(r.String(), func(t *testing.T) { f(t, r) })
	}
}

func aead(t testing.TB, r Routine, key []byte) cipher.AEAD {
	t.Helper()
	a, err := newAEAD(r, key, Overhead)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func blockOf(t testing.TB, r Routine, key []byte) cipher.Block {
	t.Helper()
	b, err := newCipher(r, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
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
		b := blockOf(t, Sliced, fromHex(t, v.key))
		out := make([]byte, 16)
		if b.Encrypt(out, fromHex(t, v.plain)); hex.EncodeToString(out) != v.sealed {
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
		both(t, func(t *testing.T, r Routine) {
			a := aead(t, r, fromHex(t, v.key))
			if got := a.Seal(nil, fromHex(t, v.nonce), fromHex(t, v.plain), fromHex(t, v.additional)); hex.EncodeToString(got) != v.sealed {
				t.Errorf("case %s seals to\n%x\nnot\n%s", v.name, got, v.sealed)
			}
			got, err := a.Open(nil, fromHex(t, v.nonce), fromHex(t, v.sealed), fromHex(t, v.additional))
			if err != nil || hex.EncodeToString(got) != v.plain {
				t.Errorf("case %s opens to %x, %v", v.name, got, err)
			}
		})
	}
}

func TestAllLengthsAsLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	lengths := []int{1399, 1400, 1401, 1500, 4096, 9000, 65535}
	for n := range 601 {
		lengths = append(lengths, n)
	}
	for i, n := range lengths {
		key, nonce := random(rng, 16+8*(i%3)), random(rng, NonceSize)
		text, additional := random(rng, n), random(rng, i/3%70)
		ours := aead(t, Sliced, key)
		want := aead(t, Library, key).Seal(nil, nonce, text, additional)
		if got := ours.Seal(nil, nonce, text, additional); !bytes.Equal(got, want) {
			t.Fatalf("%d octets with %d associated under %d of key seal differently than with the library", n, len(additional), len(key))
		}
		got, err := ours.Open(nil, nonce, want, additional)
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%d octets with %d associated under %d of key, sealed by the library, do not open: %v", n, len(additional), len(key), err)
		}
	}
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
	rng := rand.New(rand.NewPCG(3, 4))
	key, nonce := random(rng, 16), random(rng, NonceSize)
	ours, lib := aead(t, Sliced, key), aead(t, Library, key)
	for _, n := range []int{0, 1, 15, 16, 17, 63, 64, 65, 239, 240, 241, 255, 256, 257, 600} {
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
}

// Nothing around the destination is touched.
func TestWritesNothingBesideItsOutput(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	a := aead(t, Sliced, random(rng, 16))
	nonce := random(rng, NonceSize)
	for n := range 300 {
		buf := at(bytes.Repeat([]byte{0x5a}, n+Overhead+64), n%4, 0)
		a.Seal(buf[32:32], nonce, buf[32:32+n], buf[:8])
		for i, b := range buf {
			if (i < 32 || i >= 32+n+Overhead) && b != 0x5a {
				t.Fatalf("sealing %d octets at %d changed the octet at %d", n, 32, i)
			}
		}
	}
}

func TestOpenRejectsEveryChange(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	a := aead(t, Sliced, random(rng, 16))
	nonce, additional := random(rng, NonceSize), random(rng, 12)
	text := random(rng, 100)
	sealed := a.Seal(nil, nonce, text, additional)
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			before := bytes.Clone(sealed)
			if got, err := a.Open(sealed[:0], nonce, sealed, additional); err == nil || got != nil {
				t.Fatalf("opens with bit %d of octet %d changed", bit, i)
			}
			if !bytes.Equal(sealed, before) {
				t.Fatal("what fails to open was written to")
			}
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

func TestCBCAsLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	type mode interface {
		cipher.BlockMode
		SetIV([]byte)
	}
	for n := range 20 {
		for _, size := range []int{16, 24, 32} {
			key, iv, text := random(rng, size), random(rng, 16), random(rng, 16*n)
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
	a, b := aead(t, Sliced, make([]byte, 16)), make([]byte, 300)
	if a.NonceSize() != NonceSize || a.Overhead() != Overhead {
		t.Errorf("nonce of %d, overhead of %d octets", a.NonceSize(), a.Overhead())
	}
	cbc := blockOf(t, Sliced, b[:16]).(*block)
	for name, f := range map[string]func(){
		"a short nonce to seal":   func() { a.Seal(nil, b[:11], b[20:40], nil) },
		"a long nonce to open":    func() { a.Open(nil, b[:24], b[20:40], nil) },
		"a long nonce, short box": func() { a.Open(nil, b[:24], b[20:30], nil) },
		"sealing one octet on":    func() { a.Seal(b[101:101], b[:12], b[100:150], nil) },
		"sealing one octet back":  func() { a.Seal(b[99:99], b[:12], b[100:150], nil) },
		"opening one octet on":    func() { a.Open(b[101:101], b[:12], b[100:150], nil) },
		"sealing into the last":   func() { a.Seal(b[149:149], b[:12], b[100:150], nil) },
		"less than a block":       func() { cbc.Encrypt(b, b[:15]) },
		"less room than a block":  func() { cbc.Decrypt(b[:15], b) },
		"a short IV":              func() { cbc.NewCBCDecrypter(b[:15]) },
		"CBC of half a block":     func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b, b[:24]) },
		"CBC into less":           func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b[:16], b[:32]) },
		"CBC one octet on":        func() { cbc.NewCBCDecrypter(b[:16]).CryptBlocks(b[1:], b[:32]) },
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
}

func TestNoAllocations(t *testing.T) {
	a := aead(t, Sliced, make([]byte, 16))
	b := blockOf(t, Sliced, make([]byte, 32))
	buf, nonce := make([]byte, 1600), make([]byte, NonceSize)
	enc, dec := cipher.NewCBCEncrypter(b, buf[:16]), cipher.NewCBCDecrypter(b, buf[:16])
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
			enc.CryptBlocks(buf[off:off+160], buf[off:off+160])
			dec.CryptBlocks(buf[off:off+160], buf[off:off+160])
		})
		if n != 0 {
			t.Errorf("a packet at offset %d allocates %v times", off, n)
		}
	}
}

func TestOneKeyForManyGoroutines(t *testing.T) {
	key := []byte("0123456789abcdef")
	a, lib, b := aead(t, Sliced, key), aead(t, Library, key), blockOf(t, Sliced, key)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range 50 {
				nonce, text := random(rng, NonceSize), random(rng, rng.IntN(500))
				sealed := a.Seal(nil, nonce, text, key)
				if !bytes.Equal(sealed, lib.Seal(nil, nonce, text, key)) {
					t.Errorf("goroutine %d seals wrongly beside others", g)
				}
				if opened, err := a.Open(nil, nonce, sealed, key); err != nil || !bytes.Equal(opened, text) {
					t.Errorf("goroutine %d opens wrongly beside others: %v", g, err)
				}
				x := random(rng, 16)
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
	both(t, func(t *testing.T, r Routine) {
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
	for name, broken := range map[string]func(a cipher.AEAD) cipher.AEAD{
		"is wrong at 0 octets only":    func(a cipher.AEAD) cipher.AEAD { return wrongAt{a, 0} },
		"is wrong at 1400 octets only": func(a cipher.AEAD) cipher.AEAD { return wrongAt{a, 1400} },
		"does not check tags":          func(a cipher.AEAD) cipher.AEAD { return credulous{a} },
		"ignores its key":              func(cipher.AEAD) cipher.AEAD { return aead(t, Sliced, make([]byte, 16)) },
	} {
		if err := selfTestOf(Library, func(key []byte) (cipher.AEAD, error) {
			return broken(aead(t, Sliced, key)), nil
		}); !errors.Is(err, errSelfTest) {
			t.Errorf("a routine that %s passes: %v", name, err)
		}
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

func TestLibraryOnlyWithInstructions(t *testing.T) {
	before := Current()
	defer Use(before)
	if before != Best(Detect()) {
		t.Errorf("without being told, it uses the %s", before)
	}
	if Best(CPU{}) != Sliced || Best(CPU{AES: true}) != Library {
		t.Error("the library's tables are used where there are no instructions, or the other way round")
	}
	if Use(Library+1) == nil || Current() != before {
		t.Error("a routine that does not exist can be used")
	}
	for _, r := range []Routine{Sliced, Library} {
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
	f.Add([]byte("key"), []byte("nonce"), []byte(vectorPlain), []byte("associated"), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), bytes.Repeat([]byte{0xff}, 333), []byte{}, uint8(0x31))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, uint8(2))
	f.Fuzz(func(t *testing.T, k, n, text, additional []byte, offsets uint8) {
		key, nonce := make([]byte, 16+8*min(len(k)/16, 2)), make([]byte, NonceSize)
		copy(key, k)
		copy(nonce, n)
		lib, a := aead(t, Library, key), aead(t, Sliced, key)
		want := lib.Seal(nil, nonce, text, additional)
		in := at(text, int(offsets&15), Overhead)
		ad := at(additional, int(offsets>>4), 0)
		got := a.Seal(in[:0], nonce, in, ad)
		if !bytes.Equal(got, want) {
			t.Fatalf("seals to %x, the library to %x", got, want)
		}
		// What the fuzzer made is opened as well: both must agree that it is forged.
		if len(text) >= Overhead {
			ours, err := a.Open(nil, nonce, at(text, int(offsets&15), 0), ad)
			theirs, err2 := lib.Open(nil, nonce, text, additional)
			if (err == nil) != (err2 == nil) || !bytes.Equal(ours, theirs) {
				t.Fatalf("opens to %x, %v, the library to %x, %v", ours, err, theirs, err2)
			}
		}
		if opened, err := a.Open(got[:0], nonce, got, ad); err != nil || !bytes.Equal(opened, text) {
			t.Fatalf("opens its own to %x, %v", opened, err)
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
	for _, r := range []Routine{Sliced, Library} {
		b.Run(r.String(), func(b *testing.B) {
			a := aead(b, r, make([]byte, 16))
			buf, nonce := make([]byte, 1500), make([]byte, NonceSize)
			b.SetBytes(1400)
			for b.Loop() {
				a.Seal(buf[16:16], nonce, buf[16:1416], buf[:8])
			}
		})
	}
}
