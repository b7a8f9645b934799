package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

// CTR is AES in counter mode (SP 800-38A section 6.5) with counter blocks as RFC 3686 section 4
// has them: NonceSize octets of nonce, then 32 bits that count from 1. It has state: one
// goroutine at a time may use it. Nothing is allocated.
type CTR struct {
	b cipher.Block

	// For the library's cipher, to whom nothing can be handed that is on the stack.
	in  [blockLen]byte
	out [4 * blockLen]byte
}

// NewCTR returns counter mode with b, which NewCipher has made. b is shared, not copied.
func NewCTR(b cipher.Block) *CTR { return &CTR{b: b} }

// XORKeyStream adds the key stream of the nonce, which has NonceSize octets, to text. Under one key a nonce
// must never encrypt twice. text has fewer than 2^32 blocks.
func (c *CTR) XORKeyStream(text, nonce []byte) {
	if b, ok := c.b.(*block); ok {
		var st stream
		st.init(nonce)
		st.next = streamLen
		st.xor(b, text, text)
		return
	}
	if copy(c.in[:], nonce) != NonceSize {
		panic("ctaes: the nonce must have 12 octets")
	}
	for ctr := uint32(1); len(text) > 0; {
		for i := 0; i < min(len(text), len(c.out)); i += blockLen {
			binary.BigEndian.PutUint32(c.in[NonceSize:], ctr)
			c.b.Encrypt(c.out[i:], c.in[:])
			ctr++
		}
		text = text[subtle.XORBytes(text, text, c.out[:]):]
	}
}
