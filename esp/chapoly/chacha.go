package chapoly

import (
	"math/bits"
	"runtime"
	"unsafe"
)

const (
	blockLen  = 64 // octets of ChaCha20's block
	chunkLen  = 4 * blockLen
	bigEndian = runtime.GOARCH == "mips" || runtime.GOARCH == "mips64" || runtime.GOARCH == "ppc64" || runtime.GOARCH == "s390x"
)

// state is the input of ChaCha20's block function (RFC 8439 section 2.3): constants, key,
// counter and nonce. The counter counts on with every block that is taken.
type state [16]uint32

// xor writes src XOR the key stream to dst, which is as long. A last part of a block uses
// up the whole block.
func (s *state) xor(r Routine, dst, src []byte) {
	if len(src) == 0 {
		return
	}
	if !aligned(dst) || !aligned(src) {
		s.xorUnaligned(r, dst, src)
		return
	}
	n := len(src) / blockLen
	if n > 0 {
		xorBlocks(r, word(dst), word(src), n, s)
	}
	if n *= blockLen; n < len(src) {
		var buf [blockLen / 4]uint32
		b := octets(buf[:])
		copy(b, src[n:])
		xorBlocks(r, &buf[0], &buf[0], 1, s)
		copy(dst[n:], b)
	}
}

// xorUnaligned is xor by way of a buffer; on its own, so that only those pay for the
// buffer who need it.
//
//go:noinline
func (s *state) xorUnaligned(r Routine, dst, src []byte) {
	var buf [chunkLen / 4]uint32
	b := octets(buf[:])
	for len(src) > 0 {
		n := copy(b, src)
		xorBlocks(r, &buf[0], &buf[0], (n+blockLen-1)/blockLen, s)
		copy(dst, b[:n])
		dst, src = dst[n:], src[n:]
	}
}

// xorPlain XORs n blocks of the key stream with the words at src into those at dst, and
// adds n to the counter. Words are in memory order: little-endian numbers.
func xorPlain(dst, src *uint32, n int, s *state) {
	for i := range n {
		d := (*state)(unsafe.Add(unsafe.Pointer(dst), i*blockLen))
		w := (*state)(unsafe.Add(unsafe.Pointer(src), i*blockLen))
		x0, x1, x2, x3 := s[0], s[1], s[2], s[3]
		x4, x5, x6, x7 := s[4], s[5], s[6], s[7]
		x8, x9, x10, x11 := s[8], s[9], s[10], s[11]
		x12, x13, x14, x15 := s[12], s[13], s[14], s[15]
		for range 10 {
			x0, x4, x8, x12 = quarter(x0, x4, x8, x12)
			x1, x5, x9, x13 = quarter(x1, x5, x9, x13)
			x2, x6, x10, x14 = quarter(x2, x6, x10, x14)
			x3, x7, x11, x15 = quarter(x3, x7, x11, x15)
			x0, x5, x10, x15 = quarter(x0, x5, x10, x15)
			x1, x6, x11, x12 = quarter(x1, x6, x11, x12)
			x2, x7, x8, x13 = quarter(x2, x7, x8, x13)
			x3, x4, x9, x14 = quarter(x3, x4, x9, x14)
		}
		d[0], d[1] = w[0]^little(x0+s[0]), w[1]^little(x1+s[1])
		d[2], d[3] = w[2]^little(x2+s[2]), w[3]^little(x3+s[3])
		d[4], d[5] = w[4]^little(x4+s[4]), w[5]^little(x5+s[5])
		d[6], d[7] = w[6]^little(x6+s[6]), w[7]^little(x7+s[7])
		d[8], d[9] = w[8]^little(x8+s[8]), w[9]^little(x9+s[9])
		d[10], d[11] = w[10]^little(x10+s[10]), w[11]^little(x11+s[11])
		d[12], d[13] = w[12]^little(x12+s[12]), w[13]^little(x13+s[13])
		d[14], d[15] = w[14]^little(x14+s[14]), w[15]^little(x15+s[15])
		s[12]++
	}
}

// quarter is ChaCha's quarter round (RFC 8439 section 2.1). The rotations are written out:
// for 32-bit MIPS, bits.RotateLeft32 becomes shifts whose distance is checked at run time.
func quarter(a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	a += b
	d ^= a
	d = d<<16 | d>>16
	c += d
	b ^= c
	b = b<<12 | b>>20
	a += b
	d ^= a
	d = d<<8 | d>>24
	c += d
	b ^= c
	b = b<<7 | b>>25
	return a, b, c, d
}

// little turns a word between its value and how it lies in memory as a little-endian number.
func little(x uint32) uint32 {
	if bigEndian {
		return bits.ReverseBytes32(x)
	}
	return x
}
