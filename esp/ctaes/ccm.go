package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"math"

	"postern/esp/aead"
)

// CCMNonceSize is how many octets of nonce AES-CCM takes here: what its counter of four octets
// leaves (RFC 4309 section 4).
const CCMNonceSize = 11

// ccm is AES-CCM (SP 800-38C, RFC 3610) with a counter of four octets. Its two encryptions of every
// block, for the key stream and for the CBC-MAC, are made together, the key stream one block
// ahead: in one slice with this package's code.
type ccm struct {
	b   cipher.Block
	tag int

	mac  [blockLen]byte
	ctr  [blockLen]byte // the next counter block
	ks   [blockLen]byte // the key stream of the one before
	mask [blockLen]byte // of the tag
}

// NewCCM returns AES-CCM with a key of 16, 24 or 32 octets, which is copied, nonces of
// CCMNonceSize octets and tags of 8, 12 or 16. It is for one goroutine: [Worker] makes one for
// each other. It allocates nothing if the destination has room. Seal and Open work in place
// and panic as those of NewGCM do. Open has to decrypt before it can verify: if it returns an
// error, the destination has been cleared.
func NewCCM(key []byte, tag int) (cipher.AEAD, error) {
	if tag != 8 && tag != 12 && tag != 16 {
		return nil, tagSizeError(tag)
	}
	b, err := NewCipher(key)
	if err != nil {
		return nil, err
	}
	return &ccm{b: b, tag: tag}, nil
}

func (c *ccm) worker() cipher.AEAD { return &ccm{b: c.b, tag: c.tag} }
func (c *ccm) NonceSize() int      { return CCMNonceSize }
func (c *ccm) Overhead() int       { return c.tag }

func (c *ccm) Seal(dst, nonce, plaintext, additional []byte) []byte {
	if uint64(len(plaintext)) > math.MaxUint32 || len(plaintext) > math.MaxInt-c.tag {
		panic("ctaes: plaintext too large")
	}
	ret, out := aead.Grow(dst, len(plaintext)+c.tag)
	aead.CheckOverlap(out, plaintext)
	c.start(nonce, additional, len(plaintext))
	for p, to := plaintext, out; len(p) > 0; {
		subtle.XORBytes(c.mac[:], c.mac[:], p[:min(len(p), blockLen)])
		n := subtle.XORBytes(to, p, c.ks[:])
		c.step()
		p, to = p[n:], to[n:]
	}
	subtle.XORBytes(c.mac[:], c.mac[:], c.mask[:])
	copy(out[len(plaintext):], c.mac[:])
	return ret
}

func (c *ccm) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	n := len(ciphertext) - c.tag
	if n < 0 || uint64(n) > math.MaxUint32 {
		if len(nonce) != CCMNonceSize {
			panic("ctaes: the nonce must have 11 octets")
		}
		return nil, errOpen
	}
	ret, out := aead.Grow(dst, n)
	aead.CheckOverlap(out, ciphertext)
	c.start(nonce, additional, n)
	for p, to := ciphertext[:n], out; len(p) > 0; {
		n := subtle.XORBytes(to, p, c.ks[:])
		subtle.XORBytes(c.mac[:], c.mac[:], to[:n])
		c.step()
		p, to = p[n:], to[n:]
	}
	subtle.XORBytes(c.mac[:], c.mac[:], c.mask[:])
	if subtle.ConstantTimeCompare(c.mac[:c.tag], ciphertext[n:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return ret, nil
}

// start begins a message of n octets: its first block (RFC 3610 section 2.2), its associated data,
// the tag's mask, and the first block of key stream.
func (c *ccm) start(nonce, additional []byte, n int) {
	if len(nonce) != CCMNonceSize {
		panic("ctaes: the nonce must have 11 octets")
	}
	const countOctets = 4
	c.ctr = [blockLen]byte{countOctets - 1}
	copy(c.ctr[1:], nonce)
	c.mac = c.ctr
	c.mac[0] |= byte(c.tag-2) / 2 << 3
	binary.BigEndian.PutUint32(c.mac[blockLen-countOctets:], uint32(n))
	if len(additional) > 0 {
		c.mac[0] |= 1 << 6
	}
	c.step()
	c.mask = c.ks

	// The associated data's length stands before it, in two octets or in six.
	var first [blockLen]byte
	at := 2
	if len(additional) < 0xff00 {
		binary.BigEndian.PutUint16(first[:], uint16(len(additional)))
	} else {
		at = 6
		binary.BigEndian.PutUint16(first[:], 0xfffe)
		binary.BigEndian.PutUint32(first[2:], uint32(len(additional)))
	}
	rest := additional[copy(first[at:], additional):]
	if len(additional) > 0 {
		subtle.XORBytes(c.mac[:], c.mac[:], first[:])
		for len(rest) > 0 {
			c.b.Encrypt(c.mac[:], c.mac[:])
			rest = rest[subtle.XORBytes(c.mac[:], c.mac[:], rest):]
		}
		c.step()
		return
	}
	mac := c.mac
	c.step()
	c.mac = mac
}

// step encrypts the MAC, and the next counter block for key stream.
func (c *ccm) step() {
	if b, ok := c.b.(*block); ok {
		var (
			s slice
			w [4]uint32
		)
		load(&w, c.mac[:])
		s.put(0, &w)
		load(&w, c.ctr[:])
		s.put(1, &w)
		b.encrypt(&s)
		s.get(0, &w)
		store(c.mac[:], &w)
		s.get(1, &w)
		store(c.ks[:], &w)
	} else {
		c.b.Encrypt(c.mac[:], c.mac[:])
		c.b.Encrypt(c.ks[:], c.ctr[:])
	}
	count := c.ctr[blockLen-4:]
	binary.BigEndian.PutUint32(count, binary.BigEndian.Uint32(count)+1)
}
