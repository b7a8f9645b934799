package ike

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/esp"
	"postern/esp/ctaes"
)

// skKeys are SK_e and SK_a of a suite in these tests.
func skKeys(s IKESuite) (ek, ak []byte) {
	n, m := s.keyLens()
	return stream("SK_e", n), stream("SK_a", m)
}

func mustCipher(t testing.TB, s IKESuite) *skCipher {
	t.Helper()
	ek, ak := skKeys(s)
	c, err := newSKCipher(s, ek, ak)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return c
}

// unsealed returns a message as seal takes it: header, clear octets before the
// Encrypted payload, its generic header, room for the IV, and the inner payloads.
func unsealed(clearLen, ivLen int, inner []byte) (msg []byte, skOff, ivOff int) {
	msg = append(stream("header", headerLen), stream("clear", clearLen)...)
	skOff = len(msg)
	msg = append(msg, byte(PayloadNotify), 0, 0, 0)
	ivOff = len(msg)
	msg = append(msg, make([]byte, ivLen)...)
	return append(msg, inner...), skOff, ivOff
}

func noRandom([]byte) { panic("a cipher with a counter for its IV asked for randomness") }

func someRandom(b []byte) { copy(b, stream("IV", len(b))) }

// refSeal protects plain, which holds its own padding and Pad Length, the plain way:
// out of place, straight from RFC 7296 section 3.14 and RFC 5282 section 3.
func refSeal(t testing.TB, s IKESuite, head, iv, plain []byte, skOff int) []byte {
	ek, ak := skKeys(s)
	icv := refICVLen(s)
	msg := bytes.Clone(head)
	total := len(head) + len(iv) + len(plain) + icv
	binary.BigEndian.PutUint32(msg[24:], uint32(total))
	binary.BigEndian.PutUint16(msg[skOff+2:], uint16(total-skOff))
	if a := refAEAD(t, s, ek); a != nil {
		nonce := append(bytes.Clone(ek[len(ek)-refSaltLen(s):]), iv...)
		return append(append(bytes.Clone(msg), iv...), a.Seal(nil, nonce, plain, msg)...)
	}
	ct := make([]byte, len(plain))
	if s.Encr == uint16(esp.EncrAESCTR) {
		refCTR(t, ek, iv).XORKeyStream(ct, plain)
	} else {
		cipher.NewCBCEncrypter(refBlock(t, ek), iv).CryptBlocks(ct, plain)
	}
	msg = append(append(msg, iv...), ct...)
	return append(msg, refMAC(s, ak, msg)...)
}

// refOpen is the inverse of refSeal; ok is false when the message is not authentic. The
// plaintext holds the padding and Pad Length.
func refOpen(t testing.TB, s IKESuite, msg []byte, ivOff int) (plain []byte, ok bool) {
	ek, ak := skKeys(s)
	if a := refAEAD(t, s, ek); a != nil {
		nonce := append(bytes.Clone(ek[len(ek)-refSaltLen(s):]), msg[ivOff:ivOff+8]...)
		plain, err := a.Open(nil, nonce, msg[ivOff+8:], msg[:ivOff])
		return plain, err == nil
	}
	end := len(msg) - refICVLen(s)
	if !bytes.Equal(refMAC(s, ak, msg[:end]), msg[end:]) {
		return nil, false
	}
	if s.Encr == uint16(esp.EncrAESCTR) {
		plain = make([]byte, end-ivOff-8)
		refCTR(t, ek, msg[ivOff:ivOff+8]).XORKeyStream(plain, msg[ivOff+8:end])
		return plain, true
	}
	plain = make([]byte, end-ivOff-16)
	cipher.NewCBCDecrypter(refBlock(t, ek), msg[ivOff:ivOff+16]).CryptBlocks(plain, msg[ivOff+16:end])
	return plain, true
}

func refBlock(t testing.TB, key []byte) cipher.Block {
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// refCTR is AES-CTR as RFC 5930 has it: the counter block is nonce, IV, and 1.
func refCTR(t testing.TB, ek, iv []byte) cipher.Stream {
	n := len(ek) - 4
	return cipher.NewCTR(refBlock(t, ek[:n]), append(append(bytes.Clone(ek[n:]), iv...), 0, 0, 0, 1))
}

// refICVLen is the length of a suite's ICV.
func refICVLen(s IKESuite) int {
	if s.Integ != 0 {
		return map[uint16]int{2: 12, 5: 12, 8: 12, 12: 16, 13: 24, 14: 32}[s.Integ]
	}
	return map[uint16]int{14: 8, 15: 12, 16: 16, 18: 8, 19: 12, 20: 16, 28: 16}[s.Encr]
}

// refSaltLen is the length of an AEAD's salt.
func refSaltLen(s IKESuite) int {
	if s.Encr >= 14 && s.Encr <= 16 {
		return 3
	}
	return 4
}

// inBlocks tells whether the suite's plaintexts are whole blocks.
func inBlocks(s IKESuite) bool { return s.Encr == uint16(esp.EncrAESCBC) }

func refAEAD(t testing.TB, s IKESuite, ek []byte) cipher.AEAD {
	var a cipher.AEAD
	var err error
	switch esp.EncrID(s.Encr) {
	case esp.EncrAESGCM16:
		a, err = cipher.NewGCM(refBlock(t, ek[:len(ek)-4]))
	case esp.EncrAESGCM8, esp.EncrAESGCM12: // their own tests compare them with the library's
		a, err = ctaes.NewGCMWithTagSize(ek[:len(ek)-4], refICVLen(s))
	case esp.EncrAESCCM8, esp.EncrAESCCM12, esp.EncrAESCCM16:
		a, err = ctaes.NewCCM(ek[:len(ek)-3], refICVLen(s))
	case esp.EncrChaCha20Poly1305:
		a, err = chacha20poly1305.New(ek[:32])
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func refMAC(s IKESuite, ak, msg []byte) []byte {
	switch esp.IntegID(s.Integ) {
	case esp.IntegAESXCBC96, esp.IntegAESCMAC96: // their own tests have the RFCs' vectors
		m, _ := ctaes.NewCMAC(ak)
		if s.Integ == uint16(esp.IntegAESXCBC96) {
			m, _ = ctaes.NewXCBC(ak)
		}
		m.Write(msg)
		return m.Sum(nil)[:12]
	case esp.IntegHMACSHA196:
		h := hmac.New(sha1.New, ak)
		h.Write(msg)
		return h.Sum(nil)[:12]
	case esp.IntegHMACSHA256_128:
		h := hmac.New(sha256.New, ak)
		h.Write(msg)
		return h.Sum(nil)[:16]
	case esp.IntegHMACSHA384_192:
		h := hmac.New(sha512.New384, ak)
		h.Write(msg)
		return h.Sum(nil)[:24]
	}
	h := hmac.New(sha512.New, ak)
	h.Write(msg)
	return h.Sum(nil)[:32]
}

// RFC 7634 appendix B.
func TestSKChaCha20Poly1305Vector(t *testing.T) {
	ek := make([]byte, 36)
	for i := range ek {
		ek[i] = 0x80 + byte(i)
	}
	want := octets(t, `c0c1c2c3c4c5c6c7 d0d1d2d3d4d5d6d7 2e202500 00000009 00000045 29000029
		1011121314151617 610394701f8d017f7c12924889 6b71bfe25236efd7cdc67066906315b2`)
	inner := octets(t, "0000000c 00004001 0000000a")
	c, err := newSKCipher(IKESuite{Encr: uint16(esp.EncrChaCha20Poly1305)}, ek, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.next = 0x1011121314151617
	msg := append(bytes.Clone(want[:headerLen]), 0x29, 0, 0, 0)
	binary.BigEndian.PutUint32(msg[24:], 0)
	msg = append(append(msg, make([]byte, c.ivLen())...), inner...)
	if got := c.seal(msg, 28, 32, noRandom); !bytes.Equal(got, want) {
		t.Errorf("the message is\n%x, RFC 7634 says\n%x", got, want)
	}
	if got, err := c.open(want, 28, 32); err != nil || !bytes.Equal(got, inner) {
		t.Errorf("the RFC's message opens to %x (%v), want %x", got, err, inner)
	}
}

// With the library's AES and with ours, whatever this processor has.
func TestSKSealMatchesDefinition(t *testing.T) {
	defer ctaes.Use(ctaes.Current())
	for _, r := range append(ctaes.Routines(ctaes.Detect()), ctaes.Library) {
		t.Run(r.String(), func(t *testing.T) {
			if err := ctaes.Use(r); err != nil {
				t.Fatal(err)
			}
			sealMatchesDefinition(t)
		})
	}
}

func sealMatchesDefinition(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		for n := range 50 {
			inner := stream("inner", 64)[:n]
			msg, skOff, ivOff := unsealed(12*(n%2), c.ivLen(), inner)
			head := bytes.Clone(msg[:ivOff])
			random, iv := someRandom, make([]byte, c.ivLen())
			if !inBlocks(s) {
				random = noRandom
				binary.BigEndian.PutUint64(iv, uint64(n))
			} else {
				someRandom(iv)
			}
			plain := append(bytes.Clone(inner), 0)
			for inBlocks(s) && len(plain)%16 != 0 {
				plain = append(plain[:len(plain)-1], 0, plain[len(plain)-1]+1)
			}
			want := refSeal(t, s, head, iv, plain, skOff)
			before := len(msg)
			sealed := c.seal(msg, skOff, ivOff, random)
			if !bytes.Equal(sealed, want) {
				t.Fatalf("%s, %d octets: sealed as\n%x, by the definition\n%x", s, n, sealed, want)
			}
			if len(sealed)-before > c.overhead() {
				t.Errorf("%s: seal added %d octets, overhead promises at most %d", s, len(sealed)-before, c.overhead())
			}
			got, err := mustCipher(t, s).open(sealed, skOff, ivOff)
			if err != nil || !bytes.Equal(got, inner) {
				t.Fatalf("%s, %d octets: opened to %x (%v), want %x", s, n, got, err, inner)
			}
		}
	}
}

func TestSKOpenRefusesEveryFlippedBit(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		msg, skOff, ivOff := unsealed(8, c.ivLen(), stream("inner", 21))
		sealed := c.seal(msg, skOff, ivOff, someRandom)
		for bit := range len(sealed) * 8 {
			bad := bytes.Clone(sealed)
			bad[bit/8] ^= 1 << (bit % 8)
			if inner, err := c.open(bad, skOff, ivOff); err != ErrIntegrity || inner != nil {
				t.Fatalf("%s: with octet %d changed the message opened to %x, %v; want %v", s, bit/8, inner, err, ErrIntegrity)
			}
		}
		if inner, err := c.open(sealed, skOff, ivOff); err != nil || !bytes.Equal(inner, stream("inner", 21)) {
			t.Errorf("%s: after forgeries the true message opens to %x, %v", s, inner, err)
		}
	}
}

func TestSKOpenRefusesEveryTruncation(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		msg, skOff, ivOff := unsealed(0, c.ivLen(), stream("inner", 40))
		sealed := c.seal(msg, skOff, ivOff, someRandom)
		for n := range sealed {
			if inner, err := c.open(bytes.Clone(sealed[:n]), skOff, ivOff); err != ErrIntegrity || inner != nil {
				t.Fatalf("%s: the first %d of %d octets opened to %x, %v; want %v", s, n, len(sealed), inner, err, ErrIntegrity)
			}
		}
		if _, err := c.open(append(bytes.Clone(sealed), 0), skOff, ivOff); err != ErrIntegrity {
			t.Errorf("%s: with an octet behind the ICV: %v, want %v", s, err, ErrIntegrity)
		}
	}
}

// RFC 7296 section 3.14: the recipient accepts any length of padding, of any content.
func TestSKOpenAcceptsAnyPadding(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		for pad := range 256 {
			inner := stream("inner", 100)[:37]
			if inBlocks(s) {
				inner = stream("inner", 100)[:15+(256-pad)%16] // whole blocks with this padding
			}
			plain := append(append(bytes.Clone(inner), stream("padding", pad)...), byte(pad))
			msg, skOff, ivOff := unsealed(0, 0, nil)
			sealed := refSeal(t, s, msg, stream("IV", c.ivLen()), plain, skOff)
			if got, err := c.open(sealed, skOff, ivOff); err != nil || !bytes.Equal(got, inner) {
				t.Fatalf("%s: with %d octets of padding: %x, %v; want %x", s, pad, got, err, inner)
			}
		}
	}
}

func TestSKOpenRefusesPaddingLongerThanContent(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		msg, skOff, ivOff := unsealed(0, 0, nil)
		plain := make([]byte, 32)
		for _, pad := range []byte{32, 33, 255} {
			plain[31] = pad
			sealed := refSeal(t, s, msg, stream("IV", c.ivLen()), plain, skOff)
			if inner, err := c.open(sealed, skOff, ivOff); err != ErrPadding || inner != nil {
				t.Errorf("%s: Pad Length %d of 32 octets gave %x, %v; want %v", s, pad, inner, err, ErrPadding)
			}
		}
		plain[31] = 31
		sealed := refSeal(t, s, msg, stream("IV", c.ivLen()), plain, skOff)
		if inner, err := c.open(sealed, skOff, ivOff); err != nil || len(inner) != 0 {
			t.Errorf("%s: padding and nothing else gave %x, %v; an empty chain is legal", s, inner, err)
		}
	}
}

func TestSKNeverRepeatsANonce(t *testing.T) {
	for _, s := range ciphers() {
		if inBlocks(s) {
			continue
		}
		c := mustCipher(t, s)
		seen := map[string]bool{}
		for range 500 {
			msg, skOff, ivOff := unsealed(0, c.ivLen(), []byte("the same content"))
			sealed := c.seal(msg, skOff, ivOff, noRandom)
			iv := string(sealed[ivOff : ivOff+c.ivLen()])
			if seen[iv] {
				t.Fatalf("%s: IV %x came twice, which gives the keys away", s, iv)
			}
			seen[iv] = true
			// A message that arrives meanwhile must not disturb the count.
			_, _ = c.open(sealed, skOff, ivOff)
		}
		c.next = 1<<64 - 1
		msg, skOff, ivOff := unsealed(0, c.ivLen(), nil)
		if sealed := c.seal(msg, skOff, ivOff, noRandom); sealed != nil {
			t.Errorf("%s: the counter wrapped around", s)
		}
	}
}

func TestSKSealRefusesWhatDoesNotFit(t *testing.T) {
	for _, s := range ciphers() {
		c := mustCipher(t, s)
		_, skOff, ivOff := unsealed(0, c.ivLen(), nil)
		room := 0xffff - payloadHdr - c.ivLen() - c.icvLen - 1
		if inBlocks(s) {
			room -= (room + 1) % 16
		}
		msg, _, _ := unsealed(0, c.ivLen(), make([]byte, room))
		sealed := c.seal(msg, skOff, ivOff, someRandom)
		if sealed == nil || int(binary.BigEndian.Uint16(sealed[skOff+2:])) != len(sealed)-skOff {
			t.Errorf("%s: %d octets, the most that a payload can hold, were refused or given a wrong length", s, room)
		}
		msg, _, _ = unsealed(0, c.ivLen(), make([]byte, room+1))
		if c.seal(msg, skOff, ivOff, someRandom) != nil {
			t.Errorf("%s: %d octets do not fit the payload's length field, but were sealed", s, room+1)
		}
	}
}

func TestSKCipherRefusesKeysOfTheWrongLength(t *testing.T) {
	for _, s := range ciphers() {
		ek, ak := skKeys(s)
		if _, err := newSKCipher(s, ek[1:], ak); !errors.Is(err, errSuite) {
			t.Errorf("%s: a short SK_e gave %v, want %v", s, err, errSuite)
		}
		if _, err := newSKCipher(s, ek, append(ak, 0)); !errors.Is(err, errSuite) {
			t.Errorf("%s: a long SK_a gave %v, want %v", s, err, errSuite)
		}
	}
	if _, err := newSKCipher(IKESuite{Encr: 99}, nil, nil); !errors.Is(err, errSuite) {
		t.Errorf("an unknown cipher gave %v, want %v", err, errSuite)
	}
	if _, err := newSKCipher(IKESuite{Encr: uint16(esp.EncrAESCBC), KeyBits: 128}, make([]byte, 16), nil); !errors.Is(err, errSuite) {
		t.Errorf("CBC without integrity gave %v, want %v", err, errSuite)
	}
}

// FuzzSKOpen opens arbitrary messages, and messages sealed over arbitrary plaintext
// (forged is false), whose padding the fuzzer chooses.
func FuzzSKOpen(f *testing.F) {
	for i, s := range ciphers() {
		c := mustCipher(f, s)
		msg, skOff, ivOff := unsealed(4, c.ivLen(), stream("inner", 30))
		f.Add(uint8(i), true, uint8(skOff), uint8(ivOff), c.seal(msg, skOff, ivOff, someRandom))
		f.Add(uint8(i), false, uint8(0), uint8(0), append(stream("inner", 45), 5, 5, 2))
		f.Add(uint8(i), false, uint8(0), uint8(0), append(make([]byte, 31), 32))
		f.Add(uint8(i), true, uint8(28), uint8(32), []byte{})
	}
	f.Fuzz(func(t *testing.T, kind uint8, forged bool, skOff8, ivOff8 uint8, data []byte) {
		suites := ciphers()
		s := suites[int(kind)%len(suites)]
		c := mustCipher(t, s)
		if forged {
			skOff, ivOff := int(skOff8), int(ivOff8)
			inner, err := c.open(bytes.Clone(data), skOff, ivOff)
			if err == ErrIntegrity {
				if inner != nil {
					t.Errorf("a message that fails its check still opened to %x", inner)
				}
				return
			}
			// It passed: then it must pass the plain way too, and hold the same.
			plain, ok := refOpen(t, s, data, ivOff)
			if !ok {
				t.Fatalf("%s: a message was accepted that its sender cannot have sealed: %x", s, data)
			}
			if pad := int(plain[len(plain)-1]); pad >= len(plain) {
				if err != ErrPadding {
					t.Errorf("%s: Pad Length %d of %d octets gave %v, want %v", s, pad, len(plain), err, ErrPadding)
				}
			} else if err != nil || !bytes.Equal(inner, plain[:len(plain)-1-pad]) {
				t.Errorf("%s: opened to %x (%v), the plain way to %x", s, inner, err, plain)
			}
			return
		}
		if len(data) == 0 || len(data) > 0x8000 || inBlocks(s) && len(data)%16 != 0 {
			return
		}
		msg, skOff, ivOff := unsealed(0, 0, nil)
		inner, err := c.open(refSeal(t, s, msg, stream("IV", c.ivLen()), data, skOff), skOff, ivOff)
		if pad := int(data[len(data)-1]); pad >= len(data) {
			if err != ErrPadding {
				t.Errorf("%s: Pad Length %d of %d octets gave %v, want %v", s, pad, len(data), err, ErrPadding)
			}
		} else if err != nil || !bytes.Equal(inner, data[:len(data)-1-pad]) {
			t.Errorf("%s: opened to %x (%v), sealed was %x", s, inner, err, data)
		}
	})
}
