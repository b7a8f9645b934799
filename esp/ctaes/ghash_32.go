//go:build 386 || arm || mips || mipsle

package ctaes

import "encoding/binary"

// hashKey is H times x^-1 (see of) in limbs of 32 bits, the lowest first, and their
// sums, as Karatsuba's method wants them twice over: see sums.
type hashKey [9]uint32

func (k *hashKey) init(high, low uint64) {
	k.sums(uint32(low), uint32(low>>32), uint32(high), uint32(high>>32))
}

func (k *hashKey) sums(a0, a1, a2, a3 uint32) {
	k[0], k[1], k[2] = a0, a1, a0^a1
	k[3], k[4], k[5] = a2, a3, a2^a3
	k[6], k[7], k[8] = a0^a2, a1^a3, a0^a1^a2^a3
}

// hash is the sum so far, the lowest limb first.
type hash [4]uint32

// blocks adds the blocks of b: y = (y + block) * H, for each.
func (y *hash) blocks(k *hashKey, b []byte) {
	var (
		a hashKey
		p [9]uint64
	)
	y0, y1, y2, y3 := y[0], y[1], y[2], y[3]
	for len(b) >= blockLen {
		y3 ^= binary.BigEndian.Uint32(b)
		y2 ^= binary.BigEndian.Uint32(b[4:])
		y1 ^= binary.BigEndian.Uint32(b[8:])
		y0 ^= binary.BigEndian.Uint32(b[12:])
		b = b[blockLen:]
		a.sums(y0, y1, y2, y3)
		multiply(&p, &a, k)

		// Two products of 64 by 64 bits and one of their sums, each from three of 32 by 32.
		m := p[0] ^ p[1] ^ p[2]
		l0, l1 := p[0]^m<<32, p[1]^m>>32
		m = p[3] ^ p[4] ^ p[5]
		h0, h1 := p[3]^m<<32, p[4]^m>>32
		m = p[6] ^ p[7] ^ p[8]
		m0, m1 := p[6]^m<<32^l0^h0, p[7]^m>>32^l1^h1
		l1 ^= m0
		h0 ^= m1

		// The lower half is worth something above it, where x^128 is x^7 + x^2 + x + 1; the
		// highest bit is that of x^0.
		v0, v1, v2 := uint32(l0), uint32(l0>>32), uint32(l1)
		v3 := uint32(l1>>32) ^ v0<<31 ^ v0<<30 ^ v0<<25
		y0 = uint32(h0) ^ v0 ^ v0>>1 ^ v0>>2 ^ v0>>7 ^ v1<<31 ^ v1<<30 ^ v1<<25
		y1 = uint32(h0>>32) ^ v1 ^ v1>>1 ^ v1>>2 ^ v1>>7 ^ v2<<31 ^ v2<<30 ^ v2<<25
		y2 = uint32(h1) ^ v2 ^ v2>>1 ^ v2>>2 ^ v2>>7 ^ v3<<31 ^ v3<<30 ^ v3<<25
		y3 = uint32(h1>>32) ^ v3 ^ v3>>1 ^ v3>>2 ^ v3>>7
	}
	*y = hash{y0, y1, y2, y3}
}

// multiply sets p to the carry-less products of a and b, limb by limb. Three of four bits are
// masked out of every factor: in a product eight ones meet in one place at most, and
// their sum has room before the next place that counts, whose lowest bit it leaves alone.
func multiply(p *[9]uint64, a, b *hashKey) {
	_, _, _ = *p, *a, *b
	m0, m1, m2, m3 := holes[0], holes[1], holes[2], holes[3]
	for i := range p {
		x, y := a[i], b[i]
		x0, x1, x2, x3 := x&m0, x&m1, x&m2, x&m3
		y0, y1, y2, y3 := y&m0, y&m1, y&m2, y&m3
		p[i] = (mul(x0, y0)^mul(x1, y3)^mul(x2, y2)^mul(x3, y1))&twice(m0) |
			(mul(x0, y1)^mul(x1, y0)^mul(x2, y3)^mul(x3, y2))&twice(m1) |
			(mul(x0, y2)^mul(x1, y1)^mul(x2, y0)^mul(x3, y3))&twice(m2) |
			(mul(x0, y3)^mul(x1, y2)^mul(x2, y1)^mul(x3, y0))&twice(m3)
	}
}

// holes are the masks. They are variables, since the compiler makes constants of that size
// anew wherever they stand.
var holes = [4]uint32{0x11111111, 0x22222222, 0x44444444, 0x88888888}

func mul(x, y uint32) uint64 { return uint64(x) * uint64(y) }

func twice(m uint32) uint64 { return uint64(m)<<32 | uint64(m) }

// put writes the sum and clears it.
func (y *hash) put(out *[blockLen]byte) {
	for i, v := range y {
		binary.BigEndian.PutUint32(out[12-4*i:], v)
	}
	*y = hash{}
}
