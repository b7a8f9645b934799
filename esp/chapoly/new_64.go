//go:build !(386 || arm || mips || mipsle)

package chapoly

import (
	"crypto/cipher"

	"golang.org/x/crypto/chacha20poly1305"
)

var routines = [...]Routine{Plain, Library}

// newAEAD makes the AEAD of one of the routines; the key's length has been checked.
func newAEAD(r Routine, key []byte) (cipher.AEAD, error) {
	if r == Library {
		return chacha20poly1305.New(key)
	}
	return newOwn(r, key), nil
}
