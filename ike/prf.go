package ike

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"slices"
	"strconv"

	"postern/esp/ctaes"
)

// hash returns the hash function under the PRF, or nil for an unknown PRF and one made of a cipher.
func (p PRFID) hash() func() hash.Hash {
	switch p {
	case PRFHMACSHA1:
		return sha1.New
	case PRFHMACSHA256:
		return sha256.New
	case PRFHMACSHA384:
		return sha512.New384
	case PRFHMACSHA512:
		return sha512.New
	}
	return nil
}

// macState is a PRF, or an integrity algorithm, with a key.
type macState interface {
	Reset()
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
}

// keyed returns the PRF with a key of any length. Those made of AES take one of 16 octets, which is
// made of others: shorter ones get zeros with XCBC (RFC 4434 section 2); of all that remain
// the PRF itself makes one, under a key of zeros (RFC 4615 section 3).
func (p PRFID) keyed(key []byte) macState {
	var of func(key []byte) (*ctaes.CBCMAC, error)
	switch p {
	case PRFAES128XCBC:
		of = ctaes.NewXCBC
	case PRFAES128CMAC:
		of = ctaes.NewCMAC
	default:
		return hmac.New(p.hash(), key)
	}
	var fixed [aes.BlockSize]byte
	defer clear(fixed[:])
	switch {
	case len(key) == len(fixed), len(key) < len(fixed) && p == PRFAES128XCBC:
		copy(fixed[:], key)
	default:
		m, _ := of(fixed[:]) // the one error is that of a key's length
		_, _ = m.Write(key)
		m.Sum(fixed[:0])
	}
	m, _ := of(fixed[:])
	return m
}

// keyLen returns the preferred key length of the PRF, which for every PRF here is also
// the length of its output, in octets (RFC 7296 section 2.13); 0 for an unknown one.
func (p PRFID) keyLen() int {
	switch p {
	case PRFHMACSHA1:
		return sha1.Size
	case PRFHMACSHA256:
		return sha256.Size
	case PRFHMACSHA384:
		return sha512.Size384
	case PRFHMACSHA512:
		return sha512.Size
	case PRFAES128XCBC, PRFAES128CMAC:
		return aes.BlockSize
	}
	return 0
}

// seedKey returns the key of SKEYSEED = prf(Ni | Nr, g^ir) (RFC 7296 section 2.14): both nonces, of
// which the PRFs made of AES take the first 64 bits each.
func (p PRFID) seedKey(ni, nr []byte) []byte {
	if p == PRFAES128XCBC || p == PRFAES128CMAC {
		const half = aes.BlockSize / 2
		ni, nr = ni[:min(len(ni), half)], nr[:min(len(nr), half)]
	}
	return slices.Concat(ni, nr)
}

// String returns charon's name of the PRF.
func (p PRFID) String() string {
	switch p {
	case PRFHMACSHA1:
		return "PRF_HMAC_SHA1"
	case PRFHMACSHA256:
		return "PRF_HMAC_SHA2_256"
	case PRFHMACSHA384:
		return "PRF_HMAC_SHA2_384"
	case PRFHMACSHA512:
		return "PRF_HMAC_SHA2_512"
	case PRFAES128XCBC:
		return "PRF_AES128_XCBC"
	case PRFAES128CMAC:
		return "PRF_AES128_CMAC"
	}
	return "PRF_" + strconv.Itoa(int(p))
}

// sum returns prf(key, parts[0] | parts[1] | …) in keyLen octets. The PRF must be a
// known one: suites are validated before anything is computed with them.
func (p PRFID) sum(key []byte, parts ...[]byte) []byte {
	h := p.keyed(key)
	for _, b := range parts {
		_, _ = h.Write(b)
	}
	return h.Sum(nil)
}

// plus returns the first n octets of prf+(key, seed) (RFC 7296 section 2.13):
//
//	prf+ (K,S) = T1 | T2 | T3 | T4 | ...
//	T1 = prf (K, S | 0x01)
//	T2 = prf (K, T1 | S | 0x02)
//
// The counter is one octet, so n above 255 times keyLen is a mistake of the caller,
// and panics.
func (p PRFID) plus(key, seed []byte, n int) []byte {
	size := p.keyLen()
	if n > 255*size {
		panic("ike: prf+ was asked for more than 255 blocks")
	}
	// Room for whole blocks, so that no block of key material is left behind by growth.
	out := make([]byte, 0, (n+size-1)/size*size)
	h := p.keyed(key)
	for counter := byte(1); len(out) < n; counter++ {
		h.Reset()
		_, _ = h.Write(out[max(0, len(out)-size):])
		_, _ = h.Write(seed)
		_, _ = h.Write([]byte{counter})
		out = h.Sum(out)
	}
	clear(out[n:])
	return out[:n]
}
