package esp

import (
	"fmt"
	"strconv"
)

const (
	espHeaderLen = 8  // SPI and sequence number
	trailerLen   = 2  // pad length and next header
	aeadSaltLen  = 4  // RFC 4106 section 4, RFC 7634 section 2
	aeadIVLen    = 8  // the explicit part of the nonce
	aeadICVLen   = 16 // GCM-16 and Poly1305
	aesBlockLen  = 16
	maxICVLen    = 32 // HMAC-SHA2-512-256

	// HeadRoom is how many octets must be free before a payload that Seal gets: the ESP
	// header and the longest IV. It is a multiple of 4, so that an aligned payload makes an
	// aligned packet.
	HeadRoom = espHeaderLen + aesBlockLen

	// TailRoom is how many octets must be free after a payload that Seal gets: the longest
	// padding that it writes (15, to fill a CBC block), the trailer and the longest ICV; 49
	// octets, rounded up to a multiple of 4.
	TailRoom = (aesBlockLen - 1 + trailerLen + maxICVLen + 3) &^ 3
)

// encrRow is what this package knows about one encryption transform.
type encrRow struct {
	name     string
	fixedKey int  // key length in octets where the transform has only one; 0: KeyBits says
	aead     bool // carries its own ICV and takes a salt
	iv       int  // octets of IV in the packet
	align    int  // the ciphertext is a multiple of this (RFC 4303 section 2.4: at least 4)
}

func (e EncrID) row() (encrRow, bool) {
	switch e {
	case EncrAESCBC:
		return encrRow{name: "AES_CBC", iv: aesBlockLen, align: aesBlockLen}, true
	case EncrAESGCM16:
		return encrRow{name: "AES_GCM_16", aead: true, iv: aeadIVLen, align: 4}, true
	case EncrChaCha20Poly1305:
		return encrRow{name: "CHACHA20_POLY1305", fixedKey: 32, aead: true, iv: aeadIVLen, align: 4}, true
	}
	return encrRow{}, false
}

// String returns charon's name of the transform: "AES_GCM_16".
func (e EncrID) String() string {
	if r, ok := e.row(); ok {
		return r.name
	}
	if e == EncrNone {
		return "NONE"
	}
	return "ENCR_" + strconv.Itoa(int(e))
}

// String returns charon's name of the transform: "HMAC_SHA2_256_128".
func (i IntegID) String() string {
	if r, ok := i.row(); ok {
		return r.name
	}
	if i == IntegNone {
		return "NONE"
	}
	return "INTEG_" + strconv.Itoa(int(i))
}

// Validate tells whether Seal and Open can do the suite: a known cipher with one of its
// key lengths, an AEAD alone, any other cipher with a known integrity transform.
func (s Suite) Validate() error {
	r, ok := s.Encr.row()
	if !ok {
		return fmt.Errorf("esp: encryption transform %d is not supported, use AES_GCM_16, CHACHA20_POLY1305 or AES_CBC", uint16(s.Encr))
	}
	switch {
	case r.fixedKey != 0 && s.KeyBits != 0:
		return fmt.Errorf("esp: %s has one key length, %d bits were asked for: leave it out", s.Encr, s.KeyBits)
	case r.fixedKey == 0 && s.KeyBits != 128 && s.KeyBits != 192 && s.KeyBits != 256:
		return fmt.Errorf("esp: %s has keys of 128, 192 or 256 bits, not %d", s.Encr, s.KeyBits)
	case r.aead && s.Integ != IntegNone:
		return fmt.Errorf("esp: %s protects integrity itself, %s cannot be added", s.Encr, s.Integ)
	case r.aead:
		return nil
	}
	if i, ok := s.Integ.row(); !ok || i.iv != 0 {
		return fmt.Errorf("esp: %s needs an integrity transform and %d is not supported, use HMAC_SHA2_256_128", s.Encr, uint16(s.Integ))
	}
	return nil
}

// KeyLens returns how many octets of KEYMAT one direction of the suite takes (RFC 7296
// section 2.17): encr for the cipher's key, followed by its 4-octet salt where the
// cipher is an AEAD (RFC 4106 section 8.1, RFC 7634 section 2), then integ for the
// integrity key. Both are 0 for a suite that Validate rejects.
func (s Suite) KeyLens() (encr, integ int) {
	if s.Validate() != nil {
		return 0, 0
	}
	r, _ := s.Encr.row()
	encr = r.fixedKey
	if encr == 0 {
		encr = int(s.KeyBits) / 8
	}
	if r.aead {
		return encr + aeadSaltLen, 0
	}
	i, _ := s.Integ.row()
	return encr, i.key
}

// String names the suite as charon does: "AES_GCM_16_128", "AES_CBC_256/HMAC_SHA2_256_128",
// with "/ESN" at the end for extended sequence numbers.
func (s Suite) String() string {
	out := s.Encr.String()
	if s.KeyBits != 0 {
		out += "_" + strconv.Itoa(int(s.KeyBits))
	}
	if s.Integ != IntegNone {
		out += "/" + s.Integ.String()
	}
	if s.ESN {
		out += "/ESN"
	}
	return out
}

// Overhead returns how many octets ESP adds at most to an inner packet: header, IV,
// padding, trailer and ICV, without the outer IP and UDP headers. It is 0 for a suite that
// Validate rejects. What fits into a given space is MaxInner's to say, which knows the
// padding exactly.
func (s Suite) Overhead() int {
	if s.Validate() != nil {
		return 0
	}
	sh := s.shape()
	return sh.front + sh.align - 1 + trailerLen + sh.icv
}

// MaxInner returns the length of the longest inner packet whose ESP packet, from the SPI
// to the ICV, fits into space octets: what is left of the path's MTU after the outer
// headers. It is 0 where nothing fits and for a suite that Validate rejects.
func (s Suite) MaxInner(space int) int {
	if s.Validate() != nil {
		return 0
	}
	sh := s.shape()
	return max((space-sh.front-sh.icv)&^(sh.align-1)-trailerLen, 0)
}

// shape is where the parts of a suite's packet lie.
type shape struct {
	front int // ESP header and IV
	align int // the ciphertext is a multiple of this; a power of two
	icv   int
}

// shape returns the layout of a suite that Validate accepts.
func (s Suite) shape() shape {
	r, _ := s.Encr.row()
	sh := shape{front: espHeaderLen + r.iv, align: r.align, icv: aeadICVLen}
	if i, ok := s.Integ.row(); ok && !r.aead {
		sh.icv = i.icv
	}
	return sh
}
