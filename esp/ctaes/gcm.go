package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math"
	"math/bits"

	"postern/esp/aead"
)

const (
	NonceSize = aead.NonceSize // octets of nonce; one must never seal twice under the same key
	Overhead  = aead.Overhead  // octets of tag that follow the ciphertext, unless a shorter one is asked for
)

// maxLen is the most that one nonce may seal: the counter has 32 bits, and two of its values
// are not for the text (SP 800-38D section 5.2.1.1).
const maxLen = (1<<32 - 2) * blockLen

var errOpen = errors.New("ctaes: message authentication failed")

// gcm is AES-GCM (SP 800-38D) over block.
type gcm struct {
	block block
	hash  hashKey
	tag   int // octets of the tag that are kept
}

func newGCM(b *block, tag int) cipher.AEAD {
	g := &gcm{block: *b, tag: tag}
	var h [blockLen]byte
	b.Encrypt(h[:], h[:])
	g.hash.of(&h)
	clear(h[:])
	return g
}

// of makes the key of GHASH from H. A product of two numbers of 128 bits has 255, one less than
// two blocks; H is divided by x beforehand, so that nothing has to be shifted later.
func (k *hashKey) of(h *[blockLen]byte) { k.init(divided(h)) }

// divided returns H divided by x.
func divided(h *[blockLen]byte) (high, low uint64) {
	high, low = binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:])
	mask := -(high >> 63)
	high, low = high<<1|low>>63, low<<1
	return high ^ mask&(0xc2<<56), low ^ mask&1
}

func (g *gcm) NonceSize() int { return NonceSize }
func (g *gcm) Overhead() int  { return g.tag }

func (g *gcm) Seal(dst, nonce, plaintext, additional []byte) []byte {
	ret, out := sealRoom(dst, plaintext, g.tag)
	var st stream
	st.start(&g.block, nonce, len(plaintext))
	ciphertext := out[:len(plaintext)]
	st.xor(&g.block, ciphertext, plaintext)
	var tag [Overhead]byte
	g.sum(&tag, additional, ciphertext)
	subtle.XORBytes(tag[:], tag[:], st.mask[:])
	copy(out[len(plaintext):], tag[:])
	return ret
}

func (g *gcm) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	ret, out, ok := openRoom(dst, nonce, ciphertext, g.tag)
	if !ok {
		return nil, errOpen
	}
	n := len(out)
	var (
		st   stream
		want [Overhead]byte
	)
	st.start(&g.block, nonce, n)
	g.sum(&want, additional, ciphertext[:n])
	subtle.XORBytes(want[:], want[:], st.mask[:])
	if subtle.ConstantTimeCompare(want[:g.tag], ciphertext[n:]) != 1 {
		return nil, errOpen
	}
	st.xor(&g.block, out, ciphertext[:n])
	return ret, nil
}

// sealRoom appends to dst what the plaintext and a tag of that length need, which is out. It panics
// where GCM cannot seal so much, or input and output overlap.
func sealRoom(dst, plaintext []byte, tag int) (ret, out []byte) {
	if uint64(len(plaintext)) > maxLen || len(plaintext) > math.MaxInt-Overhead {
		panic("ctaes: plaintext too large")
	}
	ret, out = aead.Grow(dst, len(plaintext)+tag)
	aead.CheckOverlap(out, plaintext)
	return ret, out
}

// openRoom appends to dst what the plaintext needs, which is out. ok is false where the ciphertext
// has a length that nothing is sealed to.
func openRoom(dst, nonce, ciphertext []byte, tag int) (ret, out []byte, ok bool) {
	n := len(ciphertext) - tag
	if n < 0 || uint64(n) > maxLen {
		aead.CheckNonce(nonce)
		return nil, nil, false
	}
	ret, out = aead.Grow(dst, n)
	aead.CheckOverlap(out, ciphertext)
	return ret, out, true
}

// sum sets out to GHASH over the associated data, the ciphertext and their lengths (SP
// 800-38D section 6.4).
func (g *gcm) sum(out *[blockLen]byte, additional, ciphertext []byte) {
	var y hash
	y.padded(&g.hash, additional)
	y.padded(&g.hash, ciphertext)
	binary.BigEndian.PutUint64(out[:], 8*uint64(len(additional)))
	binary.BigEndian.PutUint64(out[8:], 8*uint64(len(ciphertext)))
	y.blocks(&g.hash, out[:])
	y.put(out)
}

// padded adds b with zeros up to whole blocks.
func (y *hash) padded(k *hashKey, b []byte) {
	y.blocks(k, b)
	if n := len(b) % blockLen; n > 0 {
		var last [blockLen]byte
		copy(last[:], b[len(b)-n:])
		y.blocks(k, last[:])
	}
}

const streamLen = 256 // octets of key stream that are made at once, at most

// stream is the key stream of one nonce. What of it has not been used begins at next.
type stream struct {
	col  [4]uint32 // of the counter block (SP 800-38D section 6.5), but for the counter
	ctr  uint32
	next int
	_    [0]uint64 // words are XORed faster at their boundaries
	buf  [streamLen]byte
	mask [blockLen]byte // of the tag: the counter block with 1
}

// init makes the counter block with 1 the next.
func (st *stream) init(nonce []byte) {
	aead.CheckNonce(nonce)
	for i := range 3 {
		st.col[i] = binary.LittleEndian.Uint32(nonce[4*i:])
	}
	st.ctr = 1
}

// start makes mask, and with it the first part of the key stream for n octets.
func (st *stream) start(b *block, nonce []byte, n int) {
	st.init(nonce)
	st.fill(b, min(n, streamLen-blockLen)+blockLen)
	copy(st.mask[:], st.buf[:blockLen])
	st.next = blockLen
}

// xor writes src XOR the key stream to dst, which is as long.
func (st *stream) xor(b *block, dst, src []byte) {
	for len(src) > 0 {
		if st.next == streamLen {
			st.fill(b, min(len(src), streamLen))
		}
		n := subtle.XORBytes(dst, src, st.buf[st.next:])
		st.next += n
		dst, src = dst[n:], src[n:]
	}
}

// fill makes n octets of key stream, or up to a slice more.
func (st *stream) fill(b *block, n int) {
	st.next = 0
	for at := 0; at < n; at += lanes * blockLen {
		var s slice
		for lane := range lanes {
			c := [4]uint32{st.col[0], st.col[1], st.col[2], bits.ReverseBytes32(st.ctr)}
			s.put(lane, &c)
			st.ctr++
		}
		b.encrypt(&s)
		for lane := range lanes {
			var c [4]uint32
			s.get(lane, &c)
			store(st.buf[at+lane*blockLen:], &c)
		}
	}
}
