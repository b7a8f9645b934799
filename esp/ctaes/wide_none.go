//go:build !amd64 || purego

package ctaes

import "crypto/cipher"

func detectWide() bool { return false }

// newWide is never called: detectWide says no.
func newWide(key []byte, tag int) (cipher.AEAD, error) { return newAEAD(Library, key, tag) }
