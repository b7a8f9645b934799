package ike

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"postern/esp"
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

// counterIVLen is the length in octets of an IV that only must not repeat: the explicit part of the nonces
// of AEADs (RFC 5282 section 3.1) and of AES-CTR (RFC 5930 section 2.1).
const counterIVLen = 8

// skCipher protects the Encrypted payloads of one direction of one IKE SA. Exactly one
// may be made to seal with a key: the IV of an AEAD and of AES-CTR is a counter that starts anew
// in each. It is not safe for concurrent use.
type skCipher struct {
	aead  cipher.AEAD // nil: one of ctr and block is set, and mac
	ctr   *ctaes.CTR
	nonce []byte // salt | IV, of AEADs and AES-CTR
	next  uint64 // IV of the next message sealed

	block  cipher.Block
	mac    macState
	icvLen int
	tag    [sha512.Size]byte
}

// newSKCipher makes the cipher of one direction: ek is SK_ei or SK_er (with the salt of
// an AEAD or of AES-CTR), ak is SK_ai or SK_ar (empty with an AEAD). It keeps neither slice. The
// construction for ChaCha20-Poly1305 is that of RFC 5282 as well (RFC 7634 section 3).
// The error says which part of the suite is at fault, never a key.
func newSKCipher(s IKESuite, ek, ak []byte) (*skCipher, error) {
	encr, integ := s.keyLens()
	if encr == 0 {
		return nil, fmt.Errorf("%w: cipher %d with a key of %d bits and integrity algorithm %d", errSuite, s.Encr, s.KeyBits, s.Integ)
	}
	if len(ek) != encr || len(ak) != integ {
		return nil, fmt.Errorf("%w: keys of %d and %d octets where %d and %d are due",
			errSuite, len(ek), len(ak), encr, integ)
	}
	salt := len(ek) % 8 // keys are of 16, 24 or 32 octets
	key := ek[:len(ek)-salt]
	c := &skCipher{nonce: append(slices.Clone(ek[len(key):]), make([]byte, counterIVLen)...)}
	var err error
	switch id := esp.EncrID(s.Encr); id {
	case esp.EncrAESCBC, esp.EncrAESCTR:
		if c.block, err = ctaes.NewCipher(key); err != nil {
			return nil, err
		}
		if id == esp.EncrAESCTR {
			c.ctr = ctaes.NewCTR(c.block)
		}
		c.mac, c.icvLen, err = esp.NewMAC(esp.IntegID(s.Integ), ak)
		return c, err
	default:
		if c.aead, err = esp.NewAEAD(id, key); err != nil {
			return nil, err
		}
	}
	c.icvLen = c.aead.Overhead()
	return c, nil
}

// align returns of how many octets inner payloads, padding and Pad Length are a multiple.
func (c *skCipher) align() int {
	if c.aead != nil || c.ctr != nil {
		return 1
	}
	return aes.BlockSize
}

// ivLen returns the length of the Encrypted payload's IV in octets.
func (c *skCipher) ivLen() int {
	if c.aead != nil || c.ctr != nil {
		return counterIVLen
	}
	return aes.BlockSize
}

// overhead returns how many octets seal adds at most behind the inner payloads.
func (c *skCipher) overhead() int {
	return c.align() + c.icvLen
}

// room returns how many octets of inner payloads fit into n octets behind the headers of an
// Encrypted payload, together with IV, padding, Pad Length and ICV. It is negative when
// nothing fits.
func (c *skCipher) room(n int) int {
	n -= c.ivLen() + c.icvLen
	if n > 0 {
		n -= n % c.align()
	}
	return n - 1
}

// seal turns msg into a protected message and returns it; it may have grown and moved.
// On entry msg is the IKE header, payloads in clear, the Encrypted payload's generic
// header at skOff, ivLen octets for the IV at ivOff and the inner payloads up to the
// end. seal appends padding, Pad Length and ICV, writes the IV, sets the lengths in both
// headers and encrypts in place. random fills its argument from a secure source; it is
// asked for a CBC IV, which must be unpredictable, while the AEADs and AES-CTR count theirs, which
// must never repeat (RFC 5282 section 3.1, RFC 5930 section 2.1). The result is nil when the payload would
// not fit its 16-bit length.
func (c *skCipher) seal(msg []byte, skOff, ivOff int, random func([]byte)) []byte {
	start := ivOff + c.ivLen()
	// Inner payloads, padding and Pad Length fill whole blocks.
	pad := c.align() - 1 - (len(msg)-start)%c.align()
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
	if c.align() > 1 {
		random(msg[ivOff:start])
		cipher.NewCBCEncrypter(c.block, msg[ivOff:start]).CryptBlocks(msg[start:], msg[start:])
		return append(msg, c.icv(msg)...)
	}
	if c.next == 1<<64-1 {
		return nil
	}
	iv := c.nonce[len(c.nonce)-counterIVLen:]
	binary.BigEndian.PutUint64(iv, c.next)
	c.next++
	copy(msg[ivOff:start], iv)
	if c.ctr != nil {
		c.ctr.XORKeyStream(msg[start:], c.nonce)
		return append(msg, c.icv(msg)...)
	}
	msg = slices.Grow(msg, c.icvLen)
	c.aead.Seal(msg[start:start], c.nonce, msg[start:], msg[:ivOff])
	return msg[:total]
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
	if c.align() == 1 {
		copy(c.nonce[len(c.nonce)-counterIVLen:], msg[ivOff:start])
	}
	if c.aead != nil {
		inner, err = c.aead.Open(msg[start:start], c.nonce, msg[start:], msg[:ivOff])
		if err != nil {
			return nil, ErrIntegrity
		}
	} else {
		if (end-start)%c.align() != 0 || !hmac.Equal(c.icv(msg[:end]), msg[end:]) {
			return nil, ErrIntegrity
		}
		inner = msg[start:end]
		if c.ctr != nil {
			c.ctr.XORKeyStream(inner, c.nonce)
		} else {
			cipher.NewCBCDecrypter(c.block, msg[ivOff:start]).CryptBlocks(inner, inner)
		}
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
	_, _ = c.mac.Write(b)
	return c.mac.Sum(c.tag[:0])[:c.icvLen]
}

// wipe forgets the keys. The key schedules inside the ciphers cannot be overwritten:
// they are let go of. The cipher must not be used afterwards.
func (c *skCipher) wipe() { *c = skCipher{} }
