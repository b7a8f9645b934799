package ctaes

import "math/bits"

const (
	blockLen = 16 // octets of AES's block
	wordBits = bits.UintSize
	lanes    = wordBits / 16         // blocks that a slice holds: 2 or 4
	field    = wordBits / 4          // bits of one row of all lanes
	ones     = ^uint(0)              // a word of ones
	each     = ones / (1<<field - 1) // the lowest bit of every row
	octet    = ones / 0xff           // the lowest bit of every octet
)

// slice is the state of as many blocks as a word has room for, bit by bit: word j has bit j
// of every octet. The octet in row r and column c (FIPS 197 section 3.4) of the block in lane
// l is bit r*field + c*lanes + l of each word, so that a row is a contiguous part of the
// word, turning the word by a row turns the columns, and shifting within a row moves
// whole columns.
type slice [8]uint

// transpose turns words that hold octets into words that hold bits, and back: bit k of octet
// q in word j changes places with bit j of octet q in word k.
func (s *slice) transpose() {
	for i := 0; i < 8; i += 2 {
		s[i], s[i+1] = swap(s[i], s[i+1], 1, octet*0x55)
	}
	for i := 0; i < 8; i += 4 {
		s[i], s[i+2] = swap(s[i], s[i+2], 2, octet*0x33)
		s[i+1], s[i+3] = swap(s[i+1], s[i+3], 2, octet*0x33)
	}
	for i := range 4 {
		s[i], s[i+4] = swap(s[i], s[i+4], 4, octet*0x0f)
	}
}

// swap exchanges the bits of a that are n above mask with those of b under mask.
func swap(a, b, n, mask uint) (uint, uint) {
	t := (a>>n ^ b) & mask
	return a ^ t<<n, b ^ t
}

// put sets the octets of one lane, before transpose: four columns, little-endian.
func (s *slice) put(lane int, c *[4]uint32) {
	if wordBits == 32 {
		s[lane], s[2+lane], s[4+lane], s[6+lane] = uint(c[0]), uint(c[1]), uint(c[2]), uint(c[3])
		return
	}
	s[lane] = uint(spread(c[0]) | spread(c[2])<<8)
	s[4+lane] = uint(spread(c[1]) | spread(c[3])<<8)
}

// get returns the octets of one lane, after transpose.
func (s *slice) get(lane int, c *[4]uint32) {
	if wordBits == 32 {
		c[0], c[1], c[2], c[3] = uint32(s[lane]), uint32(s[2+lane]), uint32(s[4+lane]), uint32(s[6+lane])
		return
	}
	a, b := uint64(s[lane]), uint64(s[4+lane])
	c[0], c[2] = gather(a), gather(a>>8)
	c[1], c[3] = gather(b), gather(b>>8)
}

// spread puts the octets of x at the even octets of the result; gather takes them from there.
func spread(x uint32) uint64 {
	y := uint64(x)
	y = (y | y<<16) & 0x0000ffff0000ffff
	return (y | y<<8) & 0x00ff00ff00ff00ff
}

func gather(y uint64) uint32 {
	y &= 0x00ff00ff00ff00ff
	y = (y | y>>8) & 0x0000ffff0000ffff
	return uint32(y | y>>16)
}

// sub is SubBytes (FIPS 197 section 5.1.1) without its constant 0x63, which the round keys
// have in them. The circuit is that of J. Boyar and R. Peralta, "A depth-16 circuit for the
// AES S-box" (2011), with the nots left out: the inversion in GF(2^8) by way of a tower of
// smaller fields, and the linear maps before and after it, in 34 ands and 81 exclusive-ors.
func (s *slice) sub() {
	u0, u1, u2, u3, u4, u5, u6, u7 := s[7], s[6], s[5], s[4], s[3], s[2], s[1], s[0]

	// into a tower of fields
	y14 := u3 ^ u5
	y13 := u0 ^ u6
	y9 := u0 ^ u3
	y8 := u0 ^ u5
	t0 := u1 ^ u2
	y1 := t0 ^ u7
	y4 := y1 ^ u3
	y12 := y13 ^ y14
	y2 := y1 ^ u0
	y5 := y1 ^ u6
	y3 := y5 ^ y8
	t1 := u4 ^ y12
	y15 := t1 ^ u5
	y20 := t1 ^ u1
	y6 := y15 ^ u7
	y10 := y15 ^ t0
	y11 := y20 ^ y9
	y7 := u7 ^ y11
	y17 := y10 ^ y11
	y19 := y10 ^ y8
	y16 := t0 ^ y11
	y21 := y13 ^ y16
	y18 := u0 ^ y16

	// the norm in GF(2^4)
	t2 := y12 & y15
	t4 := y3&y6 ^ t2
	t6 := y4&u7 ^ t2
	t7 := y13 & y16
	t9 := y5&y1 ^ t7
	t11 := y2&y7 ^ t7
	t12 := y9 & y11
	t14 := y14&y17 ^ t12
	t16 := y8&y10 ^ t12
	t21 := t4 ^ t14 ^ y20
	t22 := t6 ^ t16 ^ y19
	t23 := t9 ^ t14 ^ y21
	t24 := t11 ^ t16 ^ y18

	// its inverse
	t25 := t21 ^ t22
	t26 := t21 & t23
	t27 := t24 ^ t26
	t29 := t25&t27 ^ t22
	t30 := t23 ^ t24
	t31 := t22 ^ t26
	t33 := t31&t30 ^ t24
	t34 := t23 ^ t33
	t35 := t27 ^ t33
	t36 := t24 & t35
	t37 := t36 ^ t34
	t38 := t27 ^ t36
	t40 := t25 ^ t29&t38
	t41 := t40 ^ t37
	t42 := t29 ^ t33
	t43 := t29 ^ t40
	t44 := t33 ^ t37
	t45 := t42 ^ t41

	// times the conjugate
	z0 := t44 & y15
	z1 := t37 & y6
	z2 := t33 & u7
	z3 := t43 & y16
	z4 := t40 & y1
	z5 := t29 & y7
	z6 := t42 & y11
	z7 := t45 & y17
	z8 := t41 & y10
	z9 := t44 & y12
	z10 := t37 & y3
	z11 := t33 & y4
	z12 := t43 & y13
	z13 := t40 & y5
	z14 := t29 & y2
	z15 := t42 & y9
	z16 := t45 & y14
	z17 := t41 & y8

	// back, with the affine map's matrix
	t46 := z15 ^ z16
	t47 := z10 ^ z11
	t48 := z5 ^ z13
	t49 := z9 ^ z10
	t50 := z2 ^ z12
	t51 := z2 ^ z5
	t52 := z7 ^ z8
	t53 := z0 ^ z3
	t54 := z6 ^ z7
	t55 := z16 ^ z17
	t56 := z12 ^ t48
	t57 := t50 ^ t53
	t58 := z4 ^ t46
	t59 := z3 ^ t54
	t60 := t46 ^ t57
	t61 := z14 ^ t57
	t62 := t52 ^ t58
	t63 := t49 ^ t58
	t64 := z4 ^ t59
	t65 := t61 ^ t62
	t66 := z1 ^ t63
	t67 := t64 ^ t65
	v3 := t53 ^ t66
	s[7] = t59 ^ t63
	s[6] = t64 ^ v3
	s[5] = t55 ^ t67
	s[4] = v3
	s[3] = t51 ^ t66
	s[2] = t47 ^ t65
	s[1] = t56 ^ t62
	s[0] = t48 ^ t60
}

// affine is the inverse of the affine map's matrix.
func (s *slice) affine() {
	a0, a1, a2, a3, a4, a5, a6, a7 := s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
	s[0], s[1], s[2], s[3] = a2^a5^a7, a0^a3^a6, a1^a4^a7, a0^a2^a5
	s[4], s[5], s[6], s[7] = a1^a3^a6, a2^a4^a7, a0^a3^a5, a1^a4^a6
}

// inverseSub is InvSubBytes (FIPS 197 section 5.3.2), of which the round keys have the
// constant: the inversion is its own inverse, and between two matrices sub is just that.
func (s *slice) inverseSub() {
	s.affine()
	s.sub()
	s.affine()
}

func (s *slice) xor(k *slice) {
	s[0], s[1], s[2], s[3] = s[0]^k[0], s[1]^k[1], s[2]^k[2], s[3]^k[3]
	s[4], s[5], s[6], s[7] = s[4]^k[4], s[5]^k[5], s[6]^k[6], s[7]^k[7]
}
