package ike

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"strconv"
)

// hash returns the hash function under the PRF, or nil for an unknown PRF.
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
	}
	return 0
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
	}
	return "PRF_" + strconv.Itoa(int(p))
}

// sum returns prf(key, parts[0] | parts[1] | …) in keyLen octets. The PRF must be a
// known one: suites are validated before anything is computed with them.
func (p PRFID) sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(p.hash(), key)
	for _, b := range parts {
		h.Write(b)
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
	h := hmac.New(p.hash(), key)
	for counter := byte(1); len(out) < n; counter++ {
		h.Reset()
		h.Write(out[max(0, len(out)-size):])
		h.Write(seed)
		h.Write([]byte{counter})
		out = h.Sum(out)
	}
	clear(out[n:])
	return out[:n]
}
