package chapoly

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math"
	"unsafe"

	"postern/esp/aead"
)

var errOpen = errors.New("chapoly: message authentication failed")

// maxLen is the most that one nonce may seal (RFC 8439 section 2.8): 2^32 - 1 blocks, less
// than an int can say on the processors that use this code.
const maxLen = (1<<32 - 1) * blockLen

// own is the AEAD over the routines of this package.
type own struct {
	key     [8]uint32
	routine Routine
}

func newOwn(r Routine, key []byte) cipher.AEAD {
	a := &own{routine: r}
	for i := range a.key {
		a.key[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	return a
}

func (a *own) NonceSize() int { return NonceSize }
func (a *own) Overhead() int  { return Overhead }

func (a *own) Seal(dst, nonce, plaintext, additional []byte) []byte {
	if uint64(len(plaintext)) > maxLen || len(plaintext) > math.MaxInt-Overhead {
		panic("chapoly: plaintext too large")
	}
	ret, out := aead.Grow(dst, len(plaintext)+Overhead)
	aead.CheckOverlap(out, plaintext)
	var (
		s state
		p poly
	)
	a.start(&s, &p, nonce)
	p.sum(a.routine, additional)
	ciphertext := out[:len(plaintext)]
	s.xor(a.routine, ciphertext, plaintext)
	p.sum(a.routine, ciphertext)
	p.lengths(a.routine, len(additional), len(plaintext))
	p.tag((*[Overhead]byte)(out[len(plaintext):]))
	return ret
}

func (a *own) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	n := len(ciphertext) - Overhead
	if n < 0 || uint64(n) > maxLen {
		aead.CheckNonce(nonce)
		return nil, errOpen
	}
	ret, out := aead.Grow(dst, n)
	aead.CheckOverlap(out, ciphertext)
	var (
		s    state
		p    poly
		want [Overhead]byte
	)
	a.start(&s, &p, nonce)
	p.sum(a.routine, additional)
	p.sum(a.routine, ciphertext[:n])
	p.lengths(a.routine, len(additional), n)
	p.tag(&want)
	if subtle.ConstantTimeCompare(want[:], ciphertext[n:]) != 1 {
		return nil, errOpen
	}
	s.xor(a.routine, out, ciphertext[:n])
	return ret, nil
}

// start sets up the state of RFC 8439 section 2.3 with counter 1, and Poly1305 with the
// key stream's block 0 (section 2.6).
func (a *own) start(s *state, p *poly, nonce []byte) {
	aead.CheckNonce(nonce)
	s[0], s[1], s[2], s[3] = 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574
	copy(s[4:12], a.key[:])
	s[12] = 0
	s[13] = binary.LittleEndian.Uint32(nonce)
	s[14] = binary.LittleEndian.Uint32(nonce[4:])
	s[15] = binary.LittleEndian.Uint32(nonce[8:])
	var block [blockLen / 4]uint32
	xorBlocks(a.routine, &block[0], &block[0], 1, s)
	p.init(&block)
}

// aligned says whether b, which is not empty, begins at a word boundary.
func aligned(b []byte) bool { return uintptr(unsafe.Pointer(&b[0]))%4 == 0 }

// word is the first word of b, which is aligned and has at least four octets.
func word(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[0])) }

// octets is the memory of words, from the first one.
func octets(w []uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 4*len(w))
}
