package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// The reference: ESP written down as the RFCs say it, one allocation after the other, with
// nothing of the package but the names of algorithms. It judges what Seal made and makes
// what Open must judge, odd padding included. The published vectors judge it in turn.

// refMAC is the integrity half of a suite: hash and ICV length (RFC 2404, RFC 4868).
func refMAC(id IntegID) (func() hash.Hash, int) {
	switch id {
	case IntegHMACSHA196:
		return sha1.New, 12
	case IntegHMACSHA256_128:
		return sha256.New, 16
	case IntegHMACSHA384_192:
		return sha512.New384, 24
	case IntegHMACSHA512_256:
		return sha512.New, 32
	}
	panic("no such integrity transform")
}

// be returns v in network order in n octets.
func be(v uint64, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[n-1-i] = byte(v >> (8 * i))
	}
	return out
}

func refAEAD(sa *SA) (aead cipher.AEAD, salt []byte) {
	n := len(sa.EncrKey) - 4
	key, salt := sa.EncrKey[:n], sa.EncrKey[n:]
	var err error
	if sa.Suite.Encr == EncrChaCha20Poly1305 {
		aead, err = chacha20poly1305.New(key)
	} else {
		block, blockErr := aes.NewCipher(key)
		if blockErr != nil {
			panic(blockErr)
		}
		aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err)
	}
	return aead, salt
}

func refAAD(sa *SA, spi uint32, seq uint64) []byte {
	aad := be(uint64(spi), 4)
	if sa.Suite.ESN {
		return append(aad, be(seq, 8)...) // RFC 4106 section 5, figure 3
	}
	return append(aad, be(seq, 4)...) // figure 2
}

func refICV(sa *SA, covered []byte, seq uint64) []byte {
	h, n := refMAC(sa.Suite.Integ)
	mac := hmac.New(h, sa.IntegKey)
	mac.Write(covered)
	if sa.Suite.ESN {
		mac.Write(be(seq>>32, 4))
	}
	return mac.Sum(nil)[:n]
}

// refSeal builds the packet of a finished plaintext: payload, padding, pad length and next
// header.
func refSeal(sa *SA, seq uint64, iv, plain []byte) []byte {
	pkt := append(be(uint64(sa.SPI), 4), be(seq, 4)...)
	pkt = append(pkt, iv...)
	if sa.Suite.Encr != EncrAESCBC {
		aead, salt := refAEAD(sa)
		nonce := append(append([]byte{}, salt...), iv...)
		return append(pkt, aead.Seal(nil, nonce, plain, refAAD(sa, sa.SPI, seq))...)
	}
	block, err := aes.NewCipher(sa.EncrKey)
	if err != nil {
		panic(err)
	}
	out := make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, plain)
	pkt = append(pkt, out...)
	return append(pkt, refICV(sa, pkt, seq)...)
}

var errRef = errors.New("reference: the packet is not authentic")

// refOpen decrypts a packet, of which it knows the whole sequence number, to payload,
// padding and next header.
func refOpen(sa *SA, seq uint64, pkt []byte) (payload, padding []byte, next uint8, err error) {
	spi := uint32(pkt[0])<<24 | uint32(pkt[1])<<16 | uint32(pkt[2])<<8 | uint32(pkt[3])
	var plain []byte
	if sa.Suite.Encr != EncrAESCBC {
		aead, salt := refAEAD(sa)
		nonce := append(append([]byte{}, salt...), pkt[8:16]...)
		plain, err = aead.Open(nil, nonce, pkt[16:], refAAD(sa, spi, seq))
		if err != nil {
			return nil, nil, 0, errRef
		}
	} else {
		_, n := refMAC(sa.Suite.Integ)
		body, icv := pkt[:len(pkt)-n], pkt[len(pkt)-n:]
		if !hmac.Equal(icv, refICV(sa, body, seq)) {
			return nil, nil, 0, errRef
		}
		block, blockErr := aes.NewCipher(sa.EncrKey)
		if blockErr != nil {
			panic(blockErr)
		}
		plain = make([]byte, len(body)-24)
		cipher.NewCBCDecrypter(block, body[8:24]).CryptBlocks(plain, body[24:])
	}
	padLen := int(plain[len(plain)-2])
	return plain[:len(plain)-2-padLen], plain[len(plain)-2-padLen : len(plain)-2], plain[len(plain)-1], nil
}

// refPlain completes a payload to a plaintext with padding as RFC 4303 section 2.4 wants it, of
// the shortest length that fills blocks of align octets.
func refPlain(payload []byte, next uint8, align int) []byte {
	plain := append([]byte{}, payload...)
	padLen := 0
	for (len(payload)+padLen+2)%align != 0 {
		padLen++
		plain = append(plain, byte(padLen))
	}
	return append(plain, byte(padLen), next)
}

// refIV returns some IV of the suite's length, and the block that its plaintext must fill.
func refIV(s Suite, seed int64) (iv []byte, align int) {
	if s.Encr == EncrAESCBC {
		return fill(seed, 16), 16
	}
	return fill(seed, 8), 4
}

// refPacket builds the packet of a payload.
func refPacket(sa *SA, seq uint64, payload []byte, next uint8) []byte {
	iv, align := refIV(sa.Suite, int64(seq))
	return refSeal(sa, seq, iv, refPlain(payload, next, align))
}

func TestReferenceAgreesWithItself(t *testing.T) {
	for _, s := range allSuites() {
		sa := testSA(s, Out)
		pkt := refPacket(sa, 1<<33+7, []byte("payload"), 4)
		payload, _, next, err := refOpen(sa, 1<<33+7, pkt)
		if err != nil || string(payload) != "payload" || next != 4 {
			t.Errorf("%v: the reference reads back %q, next %d, %v", s, payload, next, err)
		}
		if _, _, _, err := refOpen(sa, 1<<34+7, pkt); s.ESN == (err == nil) {
			t.Errorf("%v: another high half gives %v; only ESN may depend on it", s, err)
		}
	}
}
