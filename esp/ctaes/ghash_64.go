//go:build !(386 || arm || mips || mipsle)

package ctaes

import (
	"encoding/binary"
	"math/bits"
)

// hashKey is H times x^-1 (see of) in limbs of 64 bits, the lower one first, and their
// sum, as Karatsuba's method wants it; then the same with the bits of each limb reversed.
type hashKey [6]uint64

func (k *hashKey) init(high, low uint64) {
	k[0], k[1], k[2] = low, high, low^high
	for i := range 3 {
		k[3+i] = bits.Reverse64(k[i])
	}
}

// hash is the sum so far, the lower limb first.
type hash [2]uint64

// blocks adds the blocks of b: y = (y + block) * H, for each. What is left over is ignored.
func (y *hash) blocks(k *hashKey, b []byte) {
	y0, y1 := y[0], y[1]
	for len(b) >= blockLen {
		y1 ^= binary.BigEndian.Uint64(b)
		y0 ^= binary.BigEndian.Uint64(b[8:])
		b = b[blockLen:]

		// The upper half of a product is the lower half of that of the reversed factors,
		// reversed.
		r0, r1 := bits.Reverse64(y0), bits.Reverse64(y1)
		l0, l1, lm := multiply(y0, k[0]), multiply(y1, k[1]), multiply(y0^y1, k[2])
		h0, h1, hm := multiply(r0, k[3]), multiply(r1, k[4]), multiply(r0^r1, k[5])
		v0 := l0
		v1 := lm ^ l0 ^ l1 ^ bits.Reverse64(h0)>>1
		v2 := l1 ^ bits.Reverse64(hm^h0^h1)>>1
		v3 := bits.Reverse64(h1) >> 1

		// The lower half is worth something above it, where x^128 is x^7 + x^2 + x + 1; the
		// highest bit is that of x^0.
		v1 ^= v0<<63 ^ v0<<62 ^ v0<<57
		y0 = v2 ^ v0 ^ v0>>1 ^ v0>>2 ^ v0>>7 ^ v1<<63 ^ v1<<62 ^ v1<<57
		y1 = v3 ^ v1 ^ v1>>1 ^ v1>>2 ^ v1>>7
	}
	*y = hash{y0, y1}
}

// multiply returns the lower half of the carry-less product. Three of four bits are masked
// out of every factor: in a product fifteen ones meet in one place at most, and their sum has
// room before the next place that counts, whose lowest bit it leaves alone. Only at the
// highest place there may be sixteen, and that carry is lost with the upper half.
func multiply(x, y uint64) uint64 {
	const m0, m1, m2, m3 = 0x1111111111111111, 0x2222222222222222, 0x4444444444444444, 0x8888888888888888
	x0, x1, x2, x3 := x&m0, x&m1, x&m2, x&m3
	y0, y1, y2, y3 := y&m0, y&m1, y&m2, y&m3
	return (x0*y0^x1*y3^x2*y2^x3*y1)&m0 | (x0*y1^x1*y0^x2*y3^x3*y2)&m1 |
		(x0*y2^x1*y1^x2*y0^x3*y3)&m2 | (x0*y3^x1*y2^x2*y1^x3*y0)&m3
}

// put writes the sum and clears it.
func (y *hash) put(out *[blockLen]byte) {
	binary.BigEndian.PutUint64(out[:], y[1])
	binary.BigEndian.PutUint64(out[8:], y[0])
	*y = hash{}
}
