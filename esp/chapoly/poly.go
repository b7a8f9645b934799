package chapoly

import (
	"encoding/binary"
	"unsafe"
)

const polyLen = 16 // octets of Poly1305's block

// poly is Poly1305 (RFC 8439 section 2.5) in limbs of 32 bits: on a processor that
// multiplies 32 by 32 bits, sixteen products take a block, where the 64-bit limbs of the
// usual code would have to be taken apart and the 26-bit ones put together. The assembly
// knows its layout.
type poly struct {
	h [5]uint32 // the sum so far, below 2^130 + a little: h[4] < 8
	r [4]uint32 // clamped: r[0] < 2^28, the others also a multiple of 4
	t [3]uint32 // r[1..3] * 5/4: what r[i] is worth 130 bits further up, where 2^130 = 5
	s [4]uint32 // added at the end
}

// init takes the one-time key from a block of the key stream, as it lies in memory.
func (p *poly) init(key *[blockLen / 4]uint32) {
	p.r[0] = little(key[0]) & 0x0fffffff
	for i := 1; i < 4; i++ {
		p.r[i] = little(key[i]) & 0x0ffffffc
		p.t[i-1] = p.r[i] + p.r[i]>>2
	}
	for i := range p.s {
		p.s[i] = little(key[4+i])
	}
}

// sum adds b, padded with zeros to whole blocks (RFC 8439 section 2.8).
func (p *poly) sum(r Routine, b []byte) {
	if len(b) == 0 {
		return
	}
	if !aligned(b) {
		p.sumUnaligned(r, b)
		return
	}
	n := len(b) / polyLen
	if n > 0 {
		polyBlocks(r, p, word(b), n)
	}
	if n *= polyLen; n < len(b) {
		var buf [polyLen / 4]uint32
		copy(octets(buf[:]), b[n:])
		polyBlocks(r, p, &buf[0], 1)
	}
}

// sumUnaligned is sum by way of a buffer, as xorUnaligned.
//
//go:noinline
func (p *poly) sumUnaligned(r Routine, b []byte) {
	var buf [chunkLen / 4]uint32
	w := octets(buf[:])
	for len(b) > 0 {
		n := copy(w, b)
		full := (n + polyLen - 1) / polyLen
		clear(w[n : full*polyLen])
		polyBlocks(r, p, &buf[0], full)
		b = b[n:]
	}
}

// lengths adds the last block: how many octets of associated data and ciphertext there were.
func (p *poly) lengths(r Routine, additional, ciphertext int) {
	block := [4]uint32{
		little(uint32(additional)), little(uint32(uint64(additional) >> 32)),
		little(uint32(ciphertext)), little(uint32(uint64(ciphertext) >> 32)),
	}
	polyBlocks(r, p, &block[0], 1)
}

// sumPlain adds n blocks: h = (h + block + 2^128) * r modulo 2^130 - 5. No product reaches
// 2^61, since r is clamped, and so the sums of four and a carry fit 64 bits.
func sumPlain(p *poly, m *uint32, n int) {
	h0, h1, h2, h3, h4 := p.h[0], p.h[1], p.h[2], p.h[3], p.h[4]
	r0, r1, r2, r3 := p.r[0], p.r[1], p.r[2], p.r[3]
	t1, t2, t3 := p.t[0], p.t[1], p.t[2]
	for i := range n {
		b := (*[4]uint32)(unsafe.Add(unsafe.Pointer(m), i*polyLen))
		d := uint64(h0) + uint64(little(b[0]))
		h0 = uint32(d)
		d = d>>32 + uint64(h1) + uint64(little(b[1]))
		h1 = uint32(d)
		d = d>>32 + uint64(h2) + uint64(little(b[2]))
		h2 = uint32(d)
		d = d>>32 + uint64(h3) + uint64(little(b[3]))
		h3 = uint32(d)
		h4 += uint32(d>>32) + 1

		d = mul(h0, r0) + mul(h1, t3) + mul(h2, t2) + mul(h3, t1)
		g0 := uint32(d)
		d = d>>32 + mul(h0, r1) + mul(h1, r0) + mul(h2, t3) + mul(h3, t2) + uint64(h4*t1)
		g1 := uint32(d)
		d = d>>32 + mul(h0, r2) + mul(h1, r1) + mul(h2, r0) + mul(h3, t3) + uint64(h4*t2)
		g2 := uint32(d)
		d = d>>32 + mul(h0, r3) + mul(h1, r2) + mul(h2, r1) + mul(h3, r0) + uint64(h4*t3)
		h3 = uint32(d)
		h4 = uint32(d>>32) + h4*r0

		// What is 2^130 and more is worth five times as much at the bottom.
		d = uint64(g0) + uint64(h4>>2+h4&^3)
		h0 = uint32(d)
		d = d>>32 + uint64(g1)
		h1 = uint32(d)
		d = d>>32 + uint64(g2)
		h2 = uint32(d)
		d = d>>32 + uint64(h3)
		h3 = uint32(d)
		h4 = h4&3 + uint32(d>>32)
	}
	p.h = [5]uint32{h0, h1, h2, h3, h4}
}

func mul(a, b uint32) uint64 { return uint64(a) * uint64(b) }

// tag writes the sum: h modulo 2^130 - 5, plus s modulo 2^128. p is used up.
func (p *poly) tag(out *[Overhead]byte) {
	// h + 5 reaches 2^130 exactly if h is not below the modulus. h[4] is at most 4, so that
	// one subtraction is enough.
	var g [4]uint32
	c := uint64(5)
	for i := range g {
		c += uint64(p.h[i])
		g[i] = uint32(c)
		c >>= 32
	}
	mask := -((p.h[4] + uint32(c)) >> 2 & 1)
	c = 0
	for i := range g {
		c += uint64(p.h[i]&^mask|g[i]&mask) + uint64(p.s[i])
		binary.LittleEndian.PutUint32(out[4*i:], uint32(c))
		c >>= 32
	}
}
