//go:build icount && linux

package ctaes

import (
	"crypto/cipher"
	"testing"

	"postern/esp/aead/aeadtest"
)

// TestCountInstructions is run by .ci/icount/run.
func TestCountInstructions(t *testing.T) {
	c, key := aeadtest.NewCounter(t), make([]byte, 16)
	buf := make([]byte, aeadtest.Octets)
	for _, x := range []struct {
		name string
		r    Routine
	}{{"library", Library}, {"constant time", Sliced}} {
		c.SealAndOpen(x.name, aeadtest.Make(t, maker(x.r), key))
		b := blockOf(t, x.r, key)
		const whole = aeadtest.Octets &^ (blockLen - 1)
		enc, dec := cipher.NewCBCEncrypter(b, key), cipher.NewCBCDecrypter(b, key)
		c.Count("CBC encrypt, "+x.name, func() { enc.CryptBlocks(buf[:whole], buf[:whole]) })
		c.Count("CBC decrypt, "+x.name, func() { dec.CryptBlocks(buf[:whole], buf[:whole]) })
	}
	var y hash
	g := aeadtest.Make(t, maker(Sliced), key).(*gcm)
	c.Count("GHASH", func() { y.padded(&g.hash, buf) })
}
