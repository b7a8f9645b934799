//go:build !purego

package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/cpu"

	"postern/esp/aead"
)

// wideKey is a key as the assembly wants it, which knows the offsets.
type wideKey struct {
	powers [16][blockLen]byte // of H, from the sixteenth down to the first, as hashKey has it
	_      [4][blockLen]byte  // zeros, which the assembly reads behind the last power
	keys   [15][blockLen]byte // of the rounds
	rounds int
}

// The offsets that the assembly has.
var (
	_ = [1]struct{}{}[unsafe.Offsetof(wideKey{}.keys)-320]
	_ = [1]struct{}{}[unsafe.Offsetof(wideKey{}.rounds)-560]
)

// widePowers fills in the other powers, from the first one.
//
//go:noescape
func widePowers(k *wideKey)

// wideCrypt encrypts or decrypts n octets from src to dst, with the counter blocks that follow
// first, and writes the tag of the whole length.
//
//go:noescape
func wideCrypt(k *wideKey, dst, src *byte, n int, additional *byte, na int, first, tag *[blockLen]byte, open bool)

// wide is AES-GCM by instructions that work on four blocks at once.
type wide struct {
	key wideKey
	tag int // octets of the tag that are kept
}

// detectWide tells whether the processor has all that the assembly uses, and the system saves its
// registers.
func detectWide() bool {
	x := &cpu.X86
	return x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ && x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ &&
		x.HasAVX2 && x.HasBMI2 && x.HasAES && x.HasPCLMULQDQ
}

func newWide(key []byte, tag int) (cipher.AEAD, error) {
	w, rounds, err := expand(key)
	if err != nil {
		return nil, err
	}
	defer clear(w[:])
	g := &wide{tag: tag}
	g.key.rounds = rounds
	for i := range 4 * (rounds + 1) {
		binary.LittleEndian.PutUint32(g.key.keys[i/4][i%4*4:], w[i])
	}
	b, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	var h [blockLen]byte
	b.Encrypt(h[:], h[:])
	high, low := divided(&h)
	clear(h[:])
	p := &g.key.powers[15]
	binary.LittleEndian.PutUint64(p[:], low)
	binary.LittleEndian.PutUint64(p[8:], high)
	widePowers(&g.key)
	return g, nil
}

func (g *wide) NonceSize() int { return NonceSize }
func (g *wide) Overhead() int  { return g.tag }

func (g *wide) Seal(dst, nonce, plaintext, additional []byte) []byte {
	ret, out := sealRoom(dst, plaintext, g.tag)
	var tag [Overhead]byte
	g.crypt(&tag, out, nonce, plaintext, additional, false)
	copy(out[len(plaintext):], tag[:])
	return ret
}

func (g *wide) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	ret, out, ok := openRoom(dst, nonce, ciphertext, g.tag)
	if !ok {
		return nil, errOpen
	}
	n := len(out)
	var want, got [Overhead]byte
	copy(got[:], ciphertext[n:])
	g.crypt(&want, out, nonce, ciphertext[:n], additional, true)
	if subtle.ConstantTimeCompare(want[:g.tag], got[:g.tag]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return ret, nil
}

// crypt encrypts or decrypts src to out, which is as long at least, and makes the tag.
func (g *wide) crypt(tag *[Overhead]byte, out, nonce, src, additional []byte, open bool) {
	aead.CheckNonce(nonce)
	var first [blockLen]byte
	copy(first[:], nonce)
	first[blockLen-1] = 1
	wideCrypt(&g.key, pointer(out), pointer(src), len(src), pointer(additional), len(additional), &first, tag, open)
}

// pointer returns where b begins; nil if it is empty.
func pointer(b []byte) *byte {
	if len(b) == 0 {
		return nil
	}
	return &b[0]
}
