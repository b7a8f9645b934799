package ctaes

import (
	"crypto/cipher"

	"postern/esp/aead"
)

// cbcDecrypter is CBC (SP 800-38A section 6.2) backwards, where the blocks do not wait for
// each other.
type cbcDecrypter struct {
	b  *block
	iv [4]uint32
}

// NewCBCDecrypter is what cipher.NewCBCDecrypter calls instead of going block by block. The
// result has SetIV, as the library's has.
func (b *block) NewCBCDecrypter(iv []byte) cipher.BlockMode {
	d := &cbcDecrypter{b: b}
	d.SetIV(iv)
	return d
}

func (d *cbcDecrypter) SetIV(iv []byte) {
	if len(iv) != blockLen {
		panic("ctaes: the IV must have 16 octets")
	}
	load(&d.iv, iv)
}

func (d *cbcDecrypter) BlockSize() int { return blockLen }

func (d *cbcDecrypter) CryptBlocks(dst, src []byte) {
	switch {
	case len(src)%blockLen != 0:
		panic("ctaes: the text is not of whole blocks")
	case len(dst) < len(src):
		panic("ctaes: the output is shorter than the text")
	}
	aead.CheckOverlap(dst[:len(src)], src)
	for len(src) > 0 {
		n := min(len(src)/blockLen, lanes)
		var (
			s  slice
			in [lanes][4]uint32
		)
		for lane := range n {
			load(&in[lane], src[lane*blockLen:])
			s.put(lane, &in[lane])
		}
		d.b.decrypt(&s)
		for lane := range n {
			var c [4]uint32
			s.get(lane, &c)
			for i := range c {
				c[i] ^= d.iv[i]
			}
			store(dst[lane*blockLen:], &c)
			d.iv = in[lane]
		}
		dst, src = dst[n*blockLen:], src[n*blockLen:]
	}
}
