//go:build !(amd64 || arm64) || purego

package ctaes

import "crypto/cipher"

// newShortGCM is for the processors on which Detect finds nothing that the library would use: nobody
// takes the library's routine there but for tests.
func newShortGCM(key []byte, tag int) (cipher.AEAD, error) { return newAEAD(Sliced, key, tag) }
