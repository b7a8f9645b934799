//go:build icount && linux

package chapoly

import (
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/esp/aead/aeadtest"
)

// TestCountInstructions is run by .ci/icount/run.
func TestCountInstructions(t *testing.T) {
	c, key := aeadtest.NewCounter(t), make([]byte, KeySize)
	c.SealAndOpen("x/crypto", aeadtest.Make(t, chacha20poly1305.New, key))
	for _, r := range Routines() {
		c.SealAndOpen(r.String(), aeadtest.Make(t, maker(r), key))
	}
}
