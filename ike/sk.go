package ike

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"

	"postern/esp"
	"postern/esp/chapoly"
	"postern/esp/ctaes"
)

// The Encrypted payload (RFC 7296 section 3.14). With an AEAD the ICV is part of the
// ciphertext and there is no separate checksum (RFC 5282 section 3).
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next Payload  |C|  RESERVED   |         Payload Length        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                     Initialization Vector                     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                    Encrypted IKE Payloads                     ~
//	+               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|               |             Padding (0-255 octets)            |
//	+-+-+-+-+-+-+-+-+                               +-+-+-+-+-+-+-+-+
//	|                                               |  Pad Length   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                    Integrity Checksum Data                    ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

// Errors of opening an Encrypted payload. Nothing advanced: a message that fails is
// dropped, and an attacker gets no answer to learn from.
var (
	ErrIntegrity = errors.New("ike: the message fails its integrity check")
	ErrPadding   = errors.New("ike: the padding of an Encrypted payload is longer than its content")
)

// aeadIVLen is the explicit part of an AEAD's nonce (RFC 5282 section 3.1).
const aeadIVLen = 8

// skCipher protects the Encrypted payloads of one direction of one IKE SA. Exactly one
// may be made to seal with a key: an AEAD's IV is a counter that starts anew in each.
// It is not safe for concurrent use.
type skCipher struct {
	aead  cipher.AEAD
	nonce [chapoly.NonceSize]byte // salt | IV
	next  uint64                  // IV of the next message sealed

	block  cipher.Block
	mac    hash.Hash
	icvLen int
	tag    [sha512.Size]byte
}

// newSKCipher makes the cipher of one direction: ek is SK_ei or SK_er (with the salt of
// an AEAD), ak is SK_ai or SK_ar (empty with an AEAD). It keeps neither slice. The
// construction for ChaCha20-Poly1305 is that of RFC 5282 as well (RFC 7634 section 3).
// The error says which part of the suite is at fault, never a key.
func newSKCipher(s IKESuite, ek, ak []byte) (*skCipher, error) {
	n, aead := s.encrLen()
	if n == 0 {
		return nil, fmt.Errorf("%w: cipher %d with a key of %d bits", errSuite, s.Encr, s.KeyBits)
	}
	if len(ek) != n || len(ak) != s.integLen() {
		return nil, fmt.Errorf("%w: keys of %d and %d octets where %d and %d are due",
			errSuite, len(ek), len(ak), n, s.integLen())
	}
	c := &skCipher{}
	if aead {
		var err error
		key := ek[:n-saltLen]
		if esp.EncrID(s.Encr) == esp.EncrChaCha20Poly1305 {
			c.aead, err = chapoly.New(key)
		} else {
			c.aead, err = ctaes.NewGCM(key)
		}
		if err != nil {
			return nil, err
		}
		copy(c.nonce[:saltLen], ek[n-saltLen:])
		c.icvLen = c.aead.Overhead()
		return c, nil
	}
	var h func() hash.Hash
	switch esp.IntegID(s.Integ) {
	case esp.IntegHMACSHA196:
		h, c.icvLen = sha1.New, 12
	case esp.IntegHMACSHA256_128:
		h, c.icvLen = sha256.New, 16
	case esp.IntegHMACSHA384_192:
		h, c.icvLen = sha512.New384, 24
	case esp.IntegHMACSHA512_256:
		h, c.icvLen = sha512.New, 32
	default:
		return nil, fmt.Errorf("%w: integrity algorithm %d", errSuite, s.Integ)
	}
	var err error
	if c.block, err = ctaes.NewCipher(ek); err != nil {
		return nil, err
	}
	c.mac = hmac.New(h, ak)
	return c, nil
}

// ivLen returns the length of the Encrypted payload's IV in octets.
func (c *skCipher) ivLen() int {
	if c.aead != nil {
		return aeadIVLen
	}
	return aes.BlockSize
}

// overhead returns how many octets seal adds at most behind the inner payloads.
func (c *skCipher) overhead() int {
	if c.aead != nil {
		return 1 + c.icvLen
	}
	return aes.BlockSize + c.icvLen
}

// seal turns msg into a protected message and returns it; it may have grown and moved.
// On entry msg is the IKE header, payloads in clear, the Encrypted payload's generic
// header at skOff, ivLen octets for the IV at ivOff and the inner payloads up to the
// end. seal appends padding, Pad Length and ICV, writes the IV, sets the lengths in both
// headers and encrypts in place. random fills its argument from a secure source; it is
// asked for a CBC IV, which must be unpredictable, while the AEADs count theirs, which
// must never repeat (RFC 5282 section 3.1). The result is nil when the payload would
// not fit its 16-bit length.
func (c *skCipher) seal(msg []byte, skOff, ivOff int, random func([]byte)) []byte {
	start := ivOff + c.ivLen()
	pad := 0
	if c.aead == nil {
		// Inner payloads, padding and Pad Length fill whole blocks.
		pad = aes.BlockSize - 1 - (len(msg)-start)%aes.BlockSize
	}
	total := len(msg) + pad + 1 + c.icvLen
	if total-skOff > 0xffff {
		return nil
	}
	for range pad {
		msg = append(msg, 0)
	}
	msg = append(msg, byte(pad))
	binary.BigEndian.PutUint32(msg[headerLen-4:], uint32(total))
	binary.BigEndian.PutUint16(msg[skOff+2:], uint16(total-skOff))
	if c.aead != nil {
		if c.next == 1<<64-1 {
			return nil
		}
		binary.BigEndian.PutUint64(c.nonce[saltLen:], c.next)
		c.next++
		copy(msg[ivOff:start], c.nonce[saltLen:])
		msg = slices.Grow(msg, c.icvLen)
		c.aead.Seal(msg[start:start], c.nonce[:], msg[start:], msg[:ivOff])
		return msg[:total]
	}
	random(msg[ivOff:start])
	cipher.NewCBCEncrypter(c.block, msg[ivOff:start]).CryptBlocks(msg[start:], msg[start:])
	return append(msg, c.icv(msg)...)
}

// open verifies the message and decrypts it in place; inner is the chain of inner
// payloads, inside msg. ErrIntegrity is the answer to anything that the peer cannot have
// sealed, a message too short included, and leaves msg useless. ErrPadding is a mistake
// of the peer itself: the integrity check has passed.
func (c *skCipher) open(msg []byte, skOff, ivOff int) (inner []byte, err error) {
	start := ivOff + c.ivLen()
	end := len(msg) - c.icvLen
	if skOff < headerLen || ivOff < skOff+payloadHdr || end <= start {
		return nil, ErrIntegrity
	}
	if c.aead != nil {
		copy(c.nonce[saltLen:], msg[ivOff:start])
		inner, err = c.aead.Open(msg[start:start], c.nonce[:], msg[start:], msg[:ivOff])
		if err != nil {
			return nil, ErrIntegrity
		}
	} else {
		if (end-start)%aes.BlockSize != 0 || !hmac.Equal(c.icv(msg[:end]), msg[end:]) {
			return nil, ErrIntegrity
		}
		inner = msg[start:end]
		cipher.NewCBCDecrypter(c.block, msg[ivOff:start]).CryptBlocks(inner, inner)
	}
	pad := int(inner[len(inner)-1])
	if pad+1 > len(inner) {
		return nil, ErrPadding
	}
	return inner[:len(inner)-1-pad], nil
}

// icv returns the checksum over b, valid until the next call.
func (c *skCipher) icv(b []byte) []byte {
	c.mac.Reset()
	c.mac.Write(b)
	return c.mac.Sum(c.tag[:0])[:c.icvLen]
}

// wipe forgets the keys. The key schedules inside the ciphers cannot be overwritten:
// they are let go of. The cipher must not be used afterwards.
func (c *skCipher) wipe() { *c = skCipher{} }
