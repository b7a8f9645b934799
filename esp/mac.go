package esp

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
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

	hash func() hash.Hash // of HMAC; nil: aes makes the mac
	aes  func(key []byte) (mac, error)
}

// integRows is indexed by the transform's number.
var integRows = [...]integRow{
	IntegHMACSHA196:     {name: "HMAC_SHA1_96", key: sha1.Size, icv: 12, hash: sha1.New},
	IntegAESXCBC96:      {name: "AES_XCBC_96", key: 16, icv: 12, aes: newXCBC},
	IntegAESCMAC96:      {name: "AES_CMAC_96", key: 16, icv: 12, aes: newCMAC},
	IntegAES128GMAC:     {name: "AES_128_GMAC", key: 16 + gmacSaltLen, iv: 8, icv: 16, aes: newGMAC},
	IntegAES192GMAC:     {name: "AES_192_GMAC", key: 24 + gmacSaltLen, iv: 8, icv: 16, aes: newGMAC},
	IntegAES256GMAC:     {name: "AES_256_GMAC", key: 32 + gmacSaltLen, iv: 8, icv: 16, aes: newGMAC},
	IntegHMACSHA256_128: {name: "HMAC_SHA2_256_128", key: sha256.Size, icv: 16, hash: sha256.New},
	IntegHMACSHA384_192: {name: "HMAC_SHA2_384_192", key: sha512.Size384, icv: 24, hash: sha512.New384},
	IntegHMACSHA512_256: {name: "HMAC_SHA2_512_256", key: sha512.Size, icv: 32, hash: sha512.New},
}

// row returns what is known about the transform; it must not be written to.
func (i IntegID) row() (*integRow, bool) {
	if int(i) < len(integRows) && integRows[i].name != "" {
		return &integRows[i], true
	}
	return &integRow{}, false
}

// newMAC makes one worker's mac. It keeps no reference to key, which has so many octets as the row
// says.
func (r *integRow) newMAC(key []byte) (mac, error) {
	if r.hash == nil {
		return r.aes(key)
	}
	m := hmac.New(r.hash, key)
	m.Reset() // the first one saves the keyed state and allocates, later ones restore it
	return m, nil
}

// NewMAC returns an integrity transform that ESP can use, with its key, and how many octets of its
// output are the ICV. It is for one goroutine; Reset, Write and Sum allocate nothing and never
// fail. The error says that there is no such transform, or that the key is not as long as
// Suite.KeyLens says.
func NewMAC(i IntegID, key []byte) (m interface {
	Reset()
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
}, icv int, err error) {
	r, ok := i.row()
	if !ok || r.iv != 0 || len(key) != r.key {
		return nil, 0, fmt.Errorf("esp: no integrity transform %v with a key of %d octets", i, len(key))
	}
	m, err = r.newMAC(key)
	return m, r.icv, err
}

func newXCBC(key []byte) (mac, error) { return ctaes.NewXCBC(key) }
func newCMAC(key []byte) (mac, error) { return ctaes.NewCMAC(key) }

func newGMAC(key []byte) (mac, error) {
	n := len(key) - gmacSaltLen
	return ctaes.NewGMAC(key[:n], key[n:])
}
