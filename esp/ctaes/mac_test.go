package ctaes

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand"
	"testing"

	"postern/esp/aead/aeadtest"
)

// eachRoutine runs f with each routine in use.
func eachRoutine(t *testing.T, f func(t *testing.T)) {
	defer Use(Current())
	for _, r := range append(ours(), Library) {
		if err := Use(r); err != nil {
			t.Fatal(err)
		}
		t.Run(r.String(), f)
	}
}

type tagger interface {
	Reset()
	Write([]byte) (int, error)
	Sum([]byte) []byte
}

// RFC 3566 section 4.6, and RFC 4493 section 4 with the two longer keys of NIST SP 800-38B
// appendix D.
func TestPublishedCBCMACs(t *testing.T) {
	const text = `6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
		30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710`
	xcbcKey := "000102030405060708090a0b0c0d0e0f"
	counting := make([]byte, 34)
	for i := range counting {
		counting[i] = byte(i)
	}
	eachRoutine(t, func(t *testing.T) {
		for _, v := range []struct {
			n    int
			want string
		}{
			{0, "75f0251d528ac01c4573dfd584d79f29"},
			{3, "5b376580ae2f19afe7219ceef172756f"},
			{16, "d2a246fa349b68a79998a4394ff7a263"},
			{20, "47f51b4564966215b8985c63055ed308"},
			{32, "f54f0ec8d2b9f3d36807734bd5283fd4"},
			{34, "becbb3bccdb518a30677d5481fb6b4d8"},
		} {
			m, err := NewXCBC(aeadtest.FromHex(t, xcbcKey))
			if err != nil {
				t.Fatal(err)
			}
			checkTag(t, fmt.Sprintf("XCBC of %d octets", v.n), m, counting[:v.n], aeadtest.FromHex(t, v.want))
		}
		thousand, _ := NewXCBC(aeadtest.FromHex(t, xcbcKey))
		checkTag(t, "XCBC of 1000 zeros", thousand, make([]byte, 1000), aeadtest.FromHex(t, "f0dafee895db30253761103b5d84528f"))

		for _, v := range []struct {
			key  string
			n    int
			want string
		}{
			{"2b7e151628aed2a6abf7158809cf4f3c", 0, "bb1d6929e95937287fa37d129b756746"},
			{"2b7e151628aed2a6abf7158809cf4f3c", 16, "070a16b46b4d4144f79bdd9dd04a287c"},
			{"2b7e151628aed2a6abf7158809cf4f3c", 40, "dfa66747de9ae63030ca32611497c827"},
			{"2b7e151628aed2a6abf7158809cf4f3c", 64, "51f0bebf7e3b9d92fc49741779363cfe"},
			{"8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", 0, "d17ddf46adaacde531cac483de7a9367"},
			{"8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", 40, "8a1de5be2eb31aad089a82e6ee908b0e"},
			{"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", 0, "028962f61b7bf89efc6b551f4667d983"},
			{"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", 40, "aaf3d8f1de5640c232f5b169b9c911e6"},
		} {
			m, err := NewCMAC(aeadtest.FromHex(t, v.key))
			if err != nil {
				t.Fatal(err)
			}
			checkTag(t, fmt.Sprintf("CMAC-%d of %d octets", len(v.key)*4, v.n), m, aeadtest.FromHex(t, text)[:v.n], aeadtest.FromHex(t, v.want))
		}
	})
}

// checkTag writes the message whole, octet by octet, and in two pieces of every length.
func checkTag(t *testing.T, what string, m tagger, msg, want []byte) {
	t.Helper()
	for cut := range min(len(msg), 70) + 1 {
		m.Reset()
		m.Write(msg[:cut])
		m.Write(msg[cut:])
		if got := m.Sum(nil); !bytes.Equal(got, want) {
			t.Fatalf("%s, written in pieces of %d and %d, is %x, want %x", what, cut, len(msg)-cut, got, want)
		}
	}
	m.Reset()
	for i := range msg {
		m.Write(msg[i : i+1])
	}
	if got := m.Sum([]byte{7}); !bytes.Equal(got[1:], want) || got[0] != 7 {
		t.Errorf("%s, octet by octet, is %x, want 07 and %x", what, got, want)
	}
}

// GMAC is GCM without text: test case 1 of McGrew and Viega's paper, and the library for the rest.
func TestGMACIsGCMOfAssociatedData(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		m, err := NewGMAC(make([]byte, 16), make([]byte, 4))
		if err != nil {
			t.Fatal(err)
		}
		m.SetIV(make([]byte, 8))
		checkTag(t, "GMAC of nothing", m, nil, aeadtest.FromHex(t, "58e2fccefa7e3061367f1d57a4e7455a"))
		rng := rand.New(rand.NewSource(1))
		for i := range 200 {
			key, nonce, msg := make([]byte, 16+8*(i%3)), make([]byte, 12), make([]byte, rng.Intn(100))
			for _, b := range [][]byte{key, nonce, msg} {
				rng.Read(b)
			}
			block, _ := aes.NewCipher(key)
			ref, _ := cipher.NewGCM(block)
			m, err := NewGMAC(key, nonce[:4])
			if err != nil {
				t.Fatal(err)
			}
			m.SetIV(nonce[4:])
			checkTag(t, fmt.Sprintf("GMAC of %d octets", len(msg)), m, msg, ref.Seal(nil, nonce, nil, msg))
		}
	})
}

func TestMACsRefuseOtherKeyLengths(t *testing.T) {
	for n := range 40 {
		key := make([]byte, n)
		_, x := NewXCBC(key)
		_, c := NewCMAC(key)
		_, g := NewGMAC(key, make([]byte, 4))
		aesLen := n == 16 || n == 24 || n == 32
		if (x == nil) != (n == 16) || (c == nil) != aesLen || (g == nil) != aesLen {
			t.Errorf("%d octets of key: XCBC %v, CMAC %v, GMAC %v", n, x, c, g)
		}
	}
	for _, n := range []int{0, 3, 5} {
		if _, err := NewGMAC(make([]byte, 16), make([]byte, n)); err == nil {
			t.Errorf("GMAC takes a salt of %d octets", n)
		}
	}
}

func TestMACsCostNoAllocation(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		x, _ := NewXCBC(make([]byte, 16))
		c, _ := NewCMAC(make([]byte, 32))
		g, _ := NewGMAC(make([]byte, 16), make([]byte, 4))
		msg, out := make([]byte, 1407), make([]byte, 0, 16)
		for _, m := range []tagger{x, c, g} {
			if n := testing.AllocsPerRun(20, func() {
				m.Reset()
				m.Write(msg[:5])
				m.Write(msg)
				out = m.Sum(out[:0])
			}); n != 0 {
				t.Errorf("%T: %v allocations for a message", m, n)
			}
		}
	})
}
