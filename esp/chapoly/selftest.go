package chapoly

import (
	"bytes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"

	"postern/esp/aead"
)

// Of RFC 8439 section 2.8.2: key, nonce, associated data, plaintext and what seals it.
const (
	vectorKey        = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"
	vectorNonce      = "070000004041424344454647"
	vectorAdditional = "50515253c0c1c2c3c4c5c6c7"
	vectorPlaintext  = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
	vectorSealed     = "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6" +
		"3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36" +
		"92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc" +
		"3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd060" + "0691"
)

var errSelfTest = errors.New("chapoly: self-test failed")

// SelfTest checks Plain by RFC 8439's example, and the routine in use against Plain over
// lengths that lead through all of its parts. It takes some ten thousand multiplications,
// a few milliseconds on the slowest router, and changes nothing. An error says which
// routine is wrong: use Plain instead, unless it is Plain itself, which then was
// miscompiled or runs on a broken processor.
//
// It cannot catch what the processor refuses to execute at all: the program ends. MIPS32
// releases before the second are free to do that with the rotate instruction.
func SelfTest() error {
	r := Current()
	return selfTestOf(r, maker(r))
}

func maker(r Routine) aead.Maker {
	return func(key []byte) (cipher.AEAD, error) { return newAEAD(r, key) }
}

// selfTestOf is SelfTest of the AEADs that newTested makes, said to be of r.
func selfTestOf(r Routine, newTested aead.Maker) error {
	fromHex := func(s string) []byte {
		b, _ := hex.DecodeString(s)
		return b
	}
	plain := newOwn(Plain, fromHex(vectorKey))
	got := plain.Seal(nil, fromHex(vectorNonce), []byte(vectorPlaintext), fromHex(vectorAdditional))
	if !bytes.Equal(got, fromHex(vectorSealed)) {
		return fmt.Errorf("%w: %s does not compute RFC 8439's example", errSelfTest, Plain)
	}
	if r == Plain {
		return nil
	}
	if err := aead.Compare(r.String(), Plain.String(), newTested, maker(Plain), KeySize); err != nil {
		return fmt.Errorf("%w: %w", errSelfTest, err)
	}
	return nil
}
