// Package aead is what this room's own AEADs share: chapoly and ctaes have the same shape
// around different mathematics.
package aead

import (
	"slices"
	"unsafe"
)

const (
	NonceSize = 12 // octets of nonce; one must never seal twice under the same key
	Overhead  = 16 // octets of tag that follow the ciphertext
)

// Grow appends n octets to dst, of which out is the new part; it allocates only if dst lacks
// the room.
func Grow(dst []byte, n int) (all, out []byte) {
	all = slices.Grow(dst, n)[:len(dst)+n]
	return all, all[len(dst):]
}

// CheckOverlap panics if input and output have an octet in common at different indexes: a
// cipher works in place or apart.
func CheckOverlap(out, in []byte) {
	if len(out) == 0 || len(in) == 0 || &out[0] == &in[0] {
		return
	}
	firstOut, firstIn := uintptr(unsafe.Pointer(&out[0])), uintptr(unsafe.Pointer(&in[0]))
	if firstOut <= firstIn+uintptr(len(in)-1) && firstIn <= firstOut+uintptr(len(out)-1) {
		panic("aead: input and output overlap, but do not begin together")
	}
}

// CheckNonce panics if the nonce is not of NonceSize octets.
func CheckNonce(nonce []byte) {
	if len(nonce) != NonceSize {
		panic("aead: the nonce must have 12 octets")
	}
}
