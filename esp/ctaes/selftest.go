package ctaes

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
)

// Of FIPS 197 appendix C.3, and test case 16 of D. McGrew and J. Viega, "The Galois/Counter Mode
// of Operation (GCM)" (2004), appendix B.
const (
	fipsKey    = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	fipsPlain  = "00112233445566778899aabbccddeeff"
	fipsCipher = "8ea2b7ca516745bfeafc49904b496089"

	vectorKey        = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
	vectorNonce      = "cafebabefacedbaddecaf888"
	vectorAdditional = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
	vectorPlain      = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
		"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
	vectorSealed = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
		"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" + "76fc6ece0f4e1768cddf8853bb2d551b"
)

var errSelfTest = errors.New("ctaes: self-test failed")

// SelfTest checks Sliced by known answers, and the routine in use against Sliced over lengths
// that lead through all of its parts. It takes some milliseconds on the slowest router and
// changes nothing. An error says which routine is wrong. If it is Library, use Sliced instead;
// if it is Sliced, it was miscompiled or the processor is broken.
func SelfTest() error {
	r := Current()
	return selfTestOf(r, func(key []byte) (cipher.AEAD, error) { return newAEAD(r, key, Overhead) })
}

// selfTestOf is SelfTest of the AEADs that newTested makes, said to be of r.
func selfTestOf(r Routine, newTested func(key []byte) (cipher.AEAD, error)) error {
	fromHex := func(s string) []byte {
		b, _ := hex.DecodeString(s)
		return b
	}
	var block [blockLen]byte
	for _, r := range []Routine{Sliced, r} {
		b, err := newCipher(r, fromHex(fipsKey))
		if err != nil {
			return err
		}
		b.Encrypt(block[:], fromHex(fipsPlain))
		if !bytes.Equal(block[:], fromHex(fipsCipher)) {
			return fmt.Errorf("%w: the %s does not encrypt FIPS 197's example", errSelfTest, r)
		}
		b.Decrypt(block[:], block[:])
		if !bytes.Equal(block[:], fromHex(fipsPlain)) {
			return fmt.Errorf("%w: the %s does not decrypt FIPS 197's example", errSelfTest, r)
		}
	}
	sliced := func(key []byte) cipher.AEAD {
		b, _ := newBlock(key) // its length is one of the three
		return newGCM(b, Overhead)
	}
	key := fromHex(vectorKey)
	got := sliced(key).Seal(nil, fromHex(vectorNonce), fromHex(vectorPlain), fromHex(vectorAdditional))
	if !bytes.Equal(got, fromHex(vectorSealed)) {
		return fmt.Errorf("%w: the %s does not compute the example for GCM", errSelfTest, Sliced)
	}
	if r == Sliced {
		return nil
	}
	text := bytes.Repeat([]byte{0, 0xff, 0x80, 0x7f, 1, 0xfe, 0xaa}, 200)
	for i, n := range []int{0, 1, 16, 63, 64, 65, 321, 1400} {
		key := key[:16+8*(i%3)]
		key[0], key[15] = byte(i), byte(n)
		tested, err := newTested(key)
		if err != nil {
			return err
		}
		nonce, additional := text[i:i+NonceSize], text[i:2*i]
		want := sliced(key).Seal(nil, nonce, text[:n], additional)
		if got = tested.Seal(got[:0], nonce, text[:n], additional); !bytes.Equal(got, want) {
			return fmt.Errorf("%w: the %s and the %s seal %d octets differently", errSelfTest, r, Sliced, n)
		}
		if opened, err := tested.Open(nil, nonce, want, additional); err != nil || !bytes.Equal(opened, text[:n]) {
			return fmt.Errorf("%w: the %s does not open the %d octets that the %s sealed", errSelfTest, r, n, Sliced)
		}
		want[n/2] ^= 0x10
		if _, err := tested.Open(nil, nonce, want, additional); err == nil {
			return fmt.Errorf("%w: the %s opens %d octets that were changed", errSelfTest, r, n)
		}
	}
	return nil
}
