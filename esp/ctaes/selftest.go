package ctaes

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"

	"postern/esp/aead"
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
// changes nothing. An error says which routine is wrong. If it is not Sliced, use the next of Routines
// instead; if it is, it was miscompiled or the processor is broken.
func SelfTest() error {
	r := Current()
	return selfTestOf(r, maker(r))
}

func maker(r Routine) aead.Maker {
	return func(key []byte) (cipher.AEAD, error) { return newAEAD(r, key, Overhead) }
}

// selfTestOf is SelfTest of the AEADs that newTested makes, said to be of r.
func selfTestOf(r Routine, newTested aead.Maker) error {
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
	sliced, err := newAEAD(Sliced, fromHex(vectorKey), Overhead)
	if err != nil {
		return err
	}
	got := sliced.Seal(nil, fromHex(vectorNonce), fromHex(vectorPlain), fromHex(vectorAdditional))
	if !bytes.Equal(got, fromHex(vectorSealed)) {
		return fmt.Errorf("%w: the %s does not compute the example for GCM", errSelfTest, Sliced)
	}
	if r == Sliced {
		return nil
	}
	if err := aead.Compare("the "+r.String(), "the "+Sliced.String(), newTested, maker(Sliced), 16, 24, 32); err != nil {
		return fmt.Errorf("%w: %w", errSelfTest, err)
	}
	return nil
}
