package ctaes

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

// CBCMAC is AES-XCBC-MAC (RFC 3566) or AES-CMAC (RFC 4493), which differ in their keys: CBC
// whose last block alone is the result, with a mask on that block which says whether it was a
// whole one. It has state: one goroutine at a time may use it. Nothing is allocated.
type CBCMAC struct {
	b          cipher.Block
	full, part [blockLen]byte // masks of a last block that is whole, and of one that is padded
	sum        [blockLen]byte // what has been encrypted, with the next block's octets so far added
	n          int            // octets of the next block
}

// NewXCBC returns AES-XCBC-MAC with a key of 16 octets, which is copied (RFC 3566 section 4).
func NewXCBC(key []byte) (*CBCMAC, error) {
	if len(key) != blockLen {
		return nil, macKeySizeError(len(key))
	}
	k, err := NewCipher(key)
	if err != nil {
		return nil, err
	}
	m := new(CBCMAC)
	var k1 [blockLen]byte
	defer clear(k1[:])
	derive := func(dst *[blockLen]byte, octet byte) {
		for i := range dst {
			dst[i] = octet
		}
		k.Encrypt(dst[:], dst[:])
	}
	derive(&k1, 1)
	derive(&m.full, 2)
	derive(&m.part, 3)
	m.b, err = NewCipher(k1[:])
	return m, err
}

// NewCMAC returns AES-CMAC with a key of 16, 24 or 32 octets, which is copied (RFC 4493
// section 2.3).
func NewCMAC(key []byte) (*CBCMAC, error) {
	b, err := NewCipher(key)
	if err != nil {
		return nil, err
	}
	m := &CBCMAC{b: b}
	b.Encrypt(m.full[:], m.full[:])
	double(&m.full)
	m.part = m.full
	double(&m.part)
	return m, nil
}

// double multiplies by x modulo x^128 + x^7 + x^2 + x + 1, in constant time.
func double(k *[blockLen]byte) {
	high, low := binary.BigEndian.Uint64(k[:]), binary.BigEndian.Uint64(k[8:])
	binary.BigEndian.PutUint64(k[:], high<<1|low>>63)
	binary.BigEndian.PutUint64(k[8:], low<<1^-(high>>63)&0x87)
}

// Reset begins a new message.
func (m *CBCMAC) Reset() { m.sum, m.n = [blockLen]byte{}, 0 }

// Write adds p to the message. The error is nil.
func (m *CBCMAC) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		// A whole block waits, since it may be the last.
		if m.n == blockLen {
			m.b.Encrypt(m.sum[:], m.sum[:])
			m.n = 0
		}
		n := subtle.XORBytes(m.sum[m.n:], m.sum[m.n:], p)
		m.n += n
		p = p[n:]
	}
	return written, nil
}

// Sum appends the 16 octets of the MAC to b. Reset has to follow.
func (m *CBCMAC) Sum(b []byte) []byte {
	mask := &m.full
	if m.n < blockLen {
		m.sum[m.n] ^= 0x80
		mask = &m.part
	}
	subtle.XORBytes(m.sum[:], m.sum[:], mask[:])
	m.b.Encrypt(m.sum[:], m.sum[:])
	return append(b, m.sum[:]...)
}

// Size returns how many octets Sum appends.
func (m *CBCMAC) Size() int { return blockLen }

// BlockSize returns AES's.
func (m *CBCMAC) BlockSize() int { return blockLen }

// GMACSaltLen and GMACIVLen are the lengths in octets of the two parts of a nonce of GMAC.
const (
	GMACSaltLen = 4
	GMACIVLen   = NonceSize - GMACSaltLen
)

// GMAC is AES-GMAC (SP 800-38D, RFC 4543 section 2): the tag of AES-GCM over associated data
// alone. It has state: one goroutine at a time may use it. With the library's routine the
// message is collected, so that memory of a message's length is allocated once; with Sliced nothing
// is.
type GMAC struct {
	nonce [NonceSize]byte

	aead cipher.AEAD // the library's; nil: what follows buf is used
	buf  []byte

	gcm   gcm
	y     hash
	rest  [blockLen]byte // the octets that do not fill a block yet
	total uint64
}

// NewGMAC returns AES-GMAC with a key of 16, 24 or 32 octets and a salt of GMACSaltLen, which are
// copied.
func NewGMAC(key, salt []byte) (*GMAC, error) {
	if len(salt) != GMACSaltLen {
		return nil, saltSizeError(len(salt))
	}
	m := new(GMAC)
	copy(m.nonce[:], salt)
	a, err := NewGCM(key)
	if err != nil {
		return nil, err
	}
	if g, ok := a.(*gcm); ok {
		m.gcm = *g
	} else {
		m.aead = a
	}
	return m, nil
}

// Reset begins a new message; the IV stays.
func (m *GMAC) Reset() {
	m.buf, m.y, m.total = m.buf[:0], hash{}, 0
}

// SetIV sets the GMACIVLen octets of the nonce that differ from message to message. Under one key
// none may serve twice for making a tag. It counts until the next one, and at the latest before Sum.
func (m *GMAC) SetIV(iv []byte) {
	if len(iv) != GMACIVLen {
		panic("ctaes: the IV must have 8 octets")
	}
	copy(m.nonce[GMACSaltLen:], iv)
}

// Write adds p to the message. The error is nil.
func (m *GMAC) Write(p []byte) (int, error) {
	if m.aead != nil {
		m.buf = append(m.buf, p...)
		return len(p), nil
	}
	written := len(p)
	at := int(m.total % blockLen)
	m.total += uint64(len(p))
	if at > 0 {
		n := copy(m.rest[at:], p)
		p = p[n:]
		if at+n < blockLen {
			return written, nil
		}
		m.y.blocks(&m.gcm.hash, m.rest[:])
	}
	m.y.blocks(&m.gcm.hash, p)
	copy(m.rest[:], p[len(p)&^(blockLen-1):])
	return written, nil
}

// Sum appends the 16 octets of the tag to b. Reset has to follow.
func (m *GMAC) Sum(b []byte) []byte {
	if m.aead != nil {
		return m.aead.Seal(b, m.nonce[:], nil, m.buf)
	}
	m.y.padded(&m.gcm.hash, m.rest[:m.total%blockLen])
	var tag [blockLen]byte
	binary.BigEndian.PutUint64(tag[:], 8*m.total)
	m.y.blocks(&m.gcm.hash, tag[:])
	m.y.put(&tag)
	var st stream
	st.start(&m.gcm.block, m.nonce[:], 0)
	subtle.XORBytes(tag[:], tag[:], st.mask[:])
	return append(b, tag[:]...)
}
