//go:build (amd64 || arm64) && !purego

package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"

	"postern/esp/aead"
)

// shortGCM is the library's AES-GCM with shorter tags. The library makes none of 8 octets, and with
// its own of 12 its assembly writes whole blocks beyond the end of the output. So it seals aside,
// with the whole tag, and what is kept is copied. Opening seals twice, since GCM's key
// stream is the same in both directions: the ciphertext first, which gives the plaintext, and
// then that, which gives the tag that is due.
type shortGCM struct {
	aead cipher.AEAD // shared, it has no state
	tag  int         // octets of the tag that are kept
	buf  []byte      // grows to the longest message
}

func newShortGCM(key []byte, tag int) (cipher.AEAD, error) {
	a, err := newAEAD(Library, key, Overhead)
	return &shortGCM{aead: a, tag: tag}, err
}

func (g *shortGCM) worker() cipher.AEAD { return &shortGCM{aead: g.aead, tag: g.tag} }
func (g *shortGCM) NonceSize() int      { return NonceSize }
func (g *shortGCM) Overhead() int       { return g.tag }

func (g *shortGCM) Seal(dst, nonce, plaintext, additional []byte) []byte {
	g.buf = g.aead.Seal(g.buf[:0], nonce, plaintext, additional)
	ret, out := aead.Grow(dst, len(plaintext)+g.tag)
	aead.CheckOverlap(out, plaintext)
	copy(out, g.buf)
	return ret
}

func (g *shortGCM) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	n := len(ciphertext) - g.tag
	if n < 0 {
		if len(nonce) != NonceSize {
			panic("ctaes: the nonce must have 12 octets")
		}
		return nil, errOpen
	}
	var tag [Overhead]byte
	copy(tag[:], ciphertext[n:])
	g.buf = g.aead.Seal(g.buf[:0], nonce, ciphertext[:n], nil)
	ret, out := aead.Grow(dst, n)
	aead.CheckOverlap(out, ciphertext)
	copy(out, g.buf)
	g.buf = g.aead.Seal(g.buf[:0], nonce, g.buf[:n], additional)
	if subtle.ConstantTimeCompare(g.buf[n:n+g.tag], tag[:g.tag]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return ret, nil
}
