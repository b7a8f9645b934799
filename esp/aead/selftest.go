package aead

import (
	"bytes"
	"crypto/cipher"
	"fmt"
)

// A Maker makes the AEAD of one routine with the key.
type Maker func(key []byte) (cipher.AEAD, error)

// Compare has tested and plain, which are said to be of the routines of these names, seal and
// open the same packets, of lengths that lead through all parts of a cipher, and tested refuse
// changed ones. An error says where tested errs, or is a Maker's. The keys have the lengths of
// sizes, by turns.
func Compare(name, plainName string, tested, plain Maker, sizes ...int) error {
	text := bytes.Repeat([]byte{0, 0xff, 0x80, 0x7f, 1, 0xfe, 0xaa}, 200)
	var got []byte
	for i, n := range []int{0, 1, 16, 63, 64, 65, 321, 1400} {
		key := bytes.Clone(text[:sizes[i%len(sizes)]])
		key[0], key[len(key)-1] = byte(i), byte(n) // another one each time
		a, err := tested(key)
		if err != nil {
			return err
		}
		p, err := plain(key)
		if err != nil {
			return err
		}
		nonce, additional := text[i:i+NonceSize], text[i:2*i]
		want := p.Seal(nil, nonce, text[:n], additional)
		if got = a.Seal(got[:0], nonce, text[:n], additional); !bytes.Equal(got, want) {
			return fmt.Errorf("%s and %s seal %d octets differently", name, plainName, n)
		}
		if opened, err := a.Open(nil, nonce, want, additional); err != nil || !bytes.Equal(opened, text[:n]) {
			return fmt.Errorf("%s does not open the %d octets that %s sealed", name, n, plainName)
		}
		want[n/2] ^= 0x10
		if _, err := a.Open(nil, nonce, want, additional); err == nil {
			return fmt.Errorf("%s opens %d octets that were changed", name, n)
		}
	}
	return nil
}
