package esp

import (
	"fmt"
	"strconv"
)

const (
	espHeaderLen = 8 // SPI and sequence number
	trailerLen   = 2 // pad length and next header
	saltLen      = 4 // RFC 3686 section 5.1, RFC 4106 section 4, RFC 7634 section 2
	ccmSaltLen   = 3 // RFC 4309 section 4
	ivLen        = 8 // the part of a nonce that differs from packet to packet
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
	kind     encrKind
	fixedKey int  // key length in octets where the transform has only one; 0: KeyBits says
	salt     int  // octets of KEYMAT behind the key: the constant part of the nonce
	iv       int  // octets of IV in the packet
	implicit bool // the IV is the sequence number and not sent (RFC 8750)
	align    int  // the ciphertext is a multiple of this (RFC 4303 section 2.4: at least 4)
	icv      int  // octets of an ICV of its own; 0: an integrity transform has to make one
}

// encrKind is how packets are transformed: keyring.init and NewAEAD have a case for each.
type encrKind uint8

const (
	kindNull encrKind = iota
	kindCBC
	kindCTR
	kindGCM
	kindCCM
	kindChaPoly
	kindGMAC
	kindAH
)

// encrRows is indexed by the transform's number.
var encrRows = [...]encrRow{
	EncrNone:                {name: "NONE", kind: kindAH, align: 1},
	EncrNull:                {name: "NULL", kind: kindNull, align: 4},
	EncrAESCBC:              {name: "AES_CBC", kind: kindCBC, iv: aesBlockLen, align: aesBlockLen},
	EncrAESCTR:              {name: "AES_CTR", kind: kindCTR, salt: saltLen, iv: ivLen, align: 4},
	EncrAESCCM8:             {name: "AES_CCM_8", kind: kindCCM, salt: ccmSaltLen, iv: ivLen, align: 4, icv: 8},
	EncrAESCCM12:            {name: "AES_CCM_12", kind: kindCCM, salt: ccmSaltLen, iv: ivLen, align: 4, icv: 12},
	EncrAESCCM16:            {name: "AES_CCM_16", kind: kindCCM, salt: ccmSaltLen, iv: ivLen, align: 4, icv: 16},
	EncrAESGCM8:             {name: "AES_GCM_8", kind: kindGCM, salt: saltLen, iv: ivLen, align: 4, icv: 8},
	EncrAESGCM12:            {name: "AES_GCM_12", kind: kindGCM, salt: saltLen, iv: ivLen, align: 4, icv: 12},
	EncrAESGCM16:            {name: "AES_GCM_16", kind: kindGCM, salt: saltLen, iv: ivLen, align: 4, icv: 16},
	EncrNullAuthAESGMAC:     {name: "NULL_AES_GMAC", kind: kindGMAC, salt: gmacSaltLen, iv: ivLen, align: 4, icv: 16},
	EncrChaCha20Poly1305:    {name: "CHACHA20_POLY1305", kind: kindChaPoly, fixedKey: 32, salt: saltLen, iv: ivLen, align: 4, icv: 16},
	EncrAESCCM8IIV:          {name: "AES_CCM_8_IIV", kind: kindCCM, salt: ccmSaltLen, implicit: true, align: 4, icv: 8},
	EncrAESGCM16IIV:         {name: "AES_GCM_16_IIV", kind: kindGCM, salt: saltLen, implicit: true, align: 4, icv: 16},
	EncrChaCha20Poly1305IIV: {name: "CHACHA20_POLY1305_IIV", kind: kindChaPoly, fixedKey: 32, salt: saltLen, implicit: true, align: 4, icv: 16},
}

// row returns what is known about the transform; it must not be written to.
func (e EncrID) row() (*encrRow, bool) {
	if int(e) < len(encrRows) && encrRows[e].name != "" {
		return &encrRows[e], true
	}
	return &encrRow{}, false
}

// String returns charon's name of the transform: "AES_GCM_16".
func (e EncrID) String() string {
	if r, ok := e.row(); ok {
		return r.name
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
// key lengths; one that protects integrity itself alone, any other, NULL before all, with a
// known integrity transform. It speaks of ESP, ValidateAH of AH.
func (s Suite) Validate() error {
	r, ok := s.Encr.row()
	if !ok || r.kind == kindAH {
		return fmt.Errorf("esp: encryption transform %d is not supported, use AES_GCM_16, CHACHA20_POLY1305 or AES_CBC", uint16(s.Encr))
	}
	i, known := s.Integ.row()
	keyed := r.fixedKey == 0 && r.kind != kindNull
	switch {
	case !keyed && s.KeyBits != 0:
		return fmt.Errorf("esp: %s has no choice of key lengths, %d bits were asked for: leave it out", s.Encr, s.KeyBits)
	case keyed && s.KeyBits != 128 && s.KeyBits != 192 && s.KeyBits != 256:
		return fmt.Errorf("esp: %s has keys of 128, 192 or 256 bits, not %d", s.Encr, s.KeyBits)
	case r.icv != 0 && s.Integ != IntegNone:
		return fmt.Errorf("esp: %s protects integrity itself, %s cannot be added", s.Encr, s.Integ)
	case r.icv != 0:
		return nil
	case s.Encr == EncrNull && s.Integ == IntegNone:
		return fmt.Errorf("esp: NULL without an integrity transform protects nothing (RFC 4303 section 5), add HMAC_SHA2_256_128")
	case !known:
		return fmt.Errorf("esp: %s needs an integrity transform and %d is not supported, use HMAC_SHA2_256_128", s.Encr, uint16(s.Integ))
	case i.iv != 0:
		return fmt.Errorf("esp: %s is for AH only (RFC 4543 section 5.3), use NULL_AES_GMAC without an integrity transform", s.Integ)
	}
	return nil
}

// KeyLens returns how many octets of KEYMAT one direction of the suite takes (RFC 7296
// section 2.17): encr for the cipher's key, followed by its salt where the cipher makes
// its nonces of one (RFC 3686 section 5.1, RFC 4106 section 8.1, RFC 4309 section 7.1, RFC 4543
// section 5.4, RFC 7634 section 2), then integ for the integrity key. Both are 0 for a suite that
// neither protocol has.
func (s Suite) KeyLens() (encr, integ int) {
	if s.validate() != nil {
		return 0, 0
	}
	r, _ := s.Encr.row()
	i, _ := s.Integ.row()
	return r.keyLen(s.KeyBits) + r.salt, i.key
}

// keyLen returns the length in octets of the cipher's own key.
func (r *encrRow) keyLen(bits uint16) int {
	if r.fixedKey != 0 {
		return r.fixedKey
	}
	return int(bits) / 8
}

// String names the suite as charon does: "AES_GCM_16_128", "AES_CBC_256/HMAC_SHA2_256_128",
// with "/ESN" at the end for extended sequence numbers.
func (s Suite) String() string {
	out := s.Encr.String()
	if s.KeyBits != 0 {
		out += "_" + strconv.Itoa(int(s.KeyBits))
	}
	switch {
	case s.Integ != IntegNone && s.Encr == EncrNone:
		out = s.Integ.String()
	case s.Integ != IntegNone:
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

// Front returns how many octets of a packet stand before the payload: SPI, sequence number and
// IV (RFC 4303 section 2). It is 0 for a suite that Validate rejects.
func (s Suite) Front() int {
	if s.Validate() != nil {
		return 0
	}
	return s.shape().front
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

// noPacket is longer than any packet: Seal and Open, which are ESP's, find no room for one of AH.
const noPacket = 1<<16 - 1

// shape is where the parts of a suite's packet lie.
type shape struct {
	front int // ESP header and IV
	align int // the ciphertext is filled up to a multiple of this; a power of two
	icv   int
}

// packedShape is a shape in few octets, for where many are kept, and what else tells an SA's
// packets from others.
type packedShape struct {
	front      uint16
	align, icv uint8
	block      uint8 // a ciphertext that is not a multiple of this cannot be decrypted; a power of two
	formed     bool  // the SA has a form
}

// pack takes the shape and the form of sa, which is nil for ESP in tunnel mode.
func (p *packedShape) pack(sa *SA, f **form) (err error) {
	if *f, err = newForm(sa); err != nil {
		return err
	}
	s := sa.Suite.shape()
	*p = packedShape{front: uint16(s.front), align: uint8(s.align), icv: uint8(s.icv), block: 1, formed: *f != nil}
	if r, _ := sa.Suite.Encr.row(); r.kind == kindCBC {
		p.block = aesBlockLen
	}
	return nil
}

// shape returns the layout of a suite that Validate accepts.
func (s Suite) shape() shape {
	r, _ := s.Encr.row()
	i, _ := s.Integ.row()
	if r.kind == kindAH {
		return shape{front: noPacket, align: 1}
	}
	return shape{front: espHeaderLen + r.iv, align: r.align, icv: r.icv + i.icv} // one of the two is 0
}

// CounterMode tells whether the suite fails under keys that protect two packets with one number,
// as all do that make a nonce of it (RFC 3686 section 3.1, RFC 4106 section 3, RFC 4309 section 4,
// RFC 4543 section 3.1, RFC 7634 section 2).
func (s Suite) CounterMode() bool {
	r, _ := s.Encr.row()
	i, _ := s.Integ.row()
	return r.salt != 0 || i.iv != 0
}
