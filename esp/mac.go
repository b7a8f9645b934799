package esp

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"

	"postern/esp/ctaes"
)

// mac computes integrity check values with one key, for one worker at a time. Whoever wants
// an ICV calls Reset, then Write as often as there are pieces, then Sum. None of them
// allocates or fails. Sum appends the whole output, of at most maxMACLen octets; the ICV is its
// first integRow.icv octets.
//
// A mac that takes an IV (integRow.iv is not 0) is an ivMAC as well.
type mac interface {
	Reset()
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
}

// ivMAC is a mac that takes an IV of integRow.iv octets, by SetIV after Reset and before Sum.
// None may serve twice for making an ICV under the same key.
type ivMAC interface {
	mac
	SetIV(iv []byte)
}

// maxMACLen is how many octets Sum appends at most.
const maxMACLen = sha512.Size

// gmacSaltLen is how many octets of a GMAC's keying material follow the AES key (RFC 4543
// section 5.4).
const gmacSaltLen = 4

// integRow is what this package knows about one integrity transform.
type integRow struct {
	name string
	key  int // octets of KEYMAT: of a hash's output (RFC 2404 section 3, RFC 4868 section 2.1.1), of a cipher's key, with the salt of a GMAC
	iv   int // octets of IV that AH's ICV field has before the ICV; 0: this mac takes none, and ESP may use it
	icv  int // octets of the truncated output in the packet

	// newMAC makes one worker's mac. It keeps no reference to key, which has so many octets.
	newMAC func(key []byte) (mac, error)
}

func (i IntegID) row() (integRow, bool) {
	switch i {
	case IntegHMACSHA196:
		return integRow{"HMAC_SHA1_96", sha1.Size, 0, 12, newHMAC(sha1.New)}, true
	case IntegAESXCBC96:
		return integRow{"AES_XCBC_96", 16, 0, 12, newXCBC}, true
	case IntegAESCMAC96:
		return integRow{"AES_CMAC_96", 16, 0, 12, newCMAC}, true
	case IntegAES128GMAC:
		return integRow{"AES_128_GMAC", 16 + gmacSaltLen, 8, 16, newGMAC}, true
	case IntegAES192GMAC:
		return integRow{"AES_192_GMAC", 24 + gmacSaltLen, 8, 16, newGMAC}, true
	case IntegAES256GMAC:
		return integRow{"AES_256_GMAC", 32 + gmacSaltLen, 8, 16, newGMAC}, true
	case IntegHMACSHA256_128:
		return integRow{"HMAC_SHA2_256_128", sha256.Size, 0, 16, newHMAC(sha256.New)}, true
	case IntegHMACSHA384_192:
		return integRow{"HMAC_SHA2_384_192", sha512.Size384, 0, 24, newHMAC(sha512.New384)}, true
	case IntegHMACSHA512_256:
		return integRow{"HMAC_SHA2_512_256", sha512.Size, 0, 32, newHMAC(sha512.New)}, true
	}
	return integRow{}, false
}

func newHMAC(h func() hash.Hash) func(key []byte) (mac, error) {
	return func(key []byte) (mac, error) {
		m := hmac.New(h, key)
		m.Reset() // the first one saves the keyed state and allocates, later ones restore it
		return m, nil
	}
}

func newXCBC(key []byte) (mac, error) { return ctaes.NewXCBC(key) }
func newCMAC(key []byte) (mac, error) { return ctaes.NewCMAC(key) }

func newGMAC(key []byte) (mac, error) {
	n := len(key) - gmacSaltLen
	return ctaes.NewGMAC(key[:n], key[n:])
}
