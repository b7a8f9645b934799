package ike

import (
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"postern/esp"
)

// errSuite means that an IKE suite holds an algorithm that is not known, or algorithms
// that do not go together.
var errSuite = errors.New("ike: algorithms that cannot protect an IKE SA")

// keyPad is the constant of RFC 7296 section 2.15, without a terminating zero.
const keyPad = "Key Pad for IKEv2"

// esp returns the suite that protects ESP packets with the same algorithms: keys have the same
// lengths there (RFC 5282 section 7, RFC 5930 section 2.2). ok is false where an IKE SA cannot have it: NULL
// encryption, which IKE does not know, the GMAC of RFC 4543, and implicit IVs, since message IDs
// repeat (RFC 8750 section 7).
func (s IKESuite) esp() (suite esp.Suite, ok bool) {
	suite = esp.Suite{Encr: esp.EncrID(s.Encr), KeyBits: s.KeyBits, Integ: esp.IntegID(s.Integ)}
	return suite, !espOnly(s.Encr) && suite.Validate() == nil
}

// espOnly tells whether an encryption transform is for ESP and never for IKE.
func espOnly(encr uint16) bool {
	switch esp.EncrID(encr) {
	case esp.EncrNull, esp.EncrNullAuthAESGMAC, esp.EncrAESCCM8IIV, esp.EncrAESGCM16IIV, esp.EncrChaCha20Poly1305IIV:
		return true
	}
	return false
}

// keyLens returns the lengths in octets of SK_ei and SK_er, salt included, and of SK_ai and
// SK_ar, 0 for an AEAD; twice 0 for algorithms that cannot protect an IKE SA.
func (s IKESuite) keyLens() (encr, integ int) {
	if suite, ok := s.esp(); ok {
		return suite.KeyLens()
	}
	return 0, 0
}

// validate reports whether an IKE SA can be protected with the suite: every algorithm
// known, an integrity algorithm exactly when the cipher is not an AEAD (RFC 5282
// section 8).
func (s IKESuite) validate() error {
	suite, ok := s.esp()
	switch {
	case !ok && espOnly(s.Encr):
		return fmt.Errorf("%w: %v is for ESP only", errSuite, suite.Encr)
	case !ok:
		return fmt.Errorf("%w: %w", errSuite, suite.Validate())
	case s.PRF.keyLen() == 0:
		return fmt.Errorf("%w: %s", errSuite, s.PRF)
	case !s.DH.known():
		return fmt.Errorf("%w: group %s", errSuite, s.DH)
	}
	return s.KE.validate(s.DH)
}

// String returns the suite in charon's words:
// "AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519",
// "AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048".
func (s IKESuite) String() string {
	name := fmt.Sprint(esp.EncrID(s.Encr))
	if s.KeyBits != 0 {
		name += fmt.Sprintf("_%d", s.KeyBits)
	}
	if s.Integ != 0 {
		name += fmt.Sprintf("/%v", esp.IntegID(s.Integ))
	}
	return name + "/" + s.PRF.String() + "/" + s.DH.String() + s.KE.String()
}

// skeyseed returns SKEYSEED = prf(Ni | Nr, g^ir) of an IKE_SA_INIT exchange (RFC 7296
// section 2.14).
func skeyseed(prf PRFID, ni, nr, shared []byte) []byte {
	return prf.sum(prf.seedKey(ni, nr), shared)
}

// skeyseedRekey returns SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr) of an IKE SA
// that was made by rekeying (RFC 7296 section 2.18). The PRF is the old IKE SA's. more is
// SK(1) | ... SK(n) of the IKE_FOLLOWUP_KE exchanges, if there were any (RFC 9370 section
// 2.2.4). An additional key exchange of IKE_INTERMEDIATE has the same formula, with the keys
// before it and the nonces of IKE_SA_INIT (section 2.2.2).
func skeyseedRekey(prf PRFID, skd, shared, ni, nr []byte, more ...[]byte) []byte {
	return prf.sum(skd, append([][]byte{shared, ni, nr}, more...)...)
}

// ikeKeys are the keys of one IKE SA; the names follow RFC 7296 section 2.14 without
// their SK_. The slices share one array.
type ikeKeys struct {
	d      []byte // SK_d: derives the keys of CHILD SAs and of the next IKE SA
	ai, ar []byte // SK_a: integrity of what the initiator, the responder sends; empty with an AEAD
	ei, er []byte // SK_e: encryption; an AEAD's salt at the end
	pi, pr []byte // SK_p: enter the AUTH payloads
}

// deriveKeys returns the seven keys of RFC 7296 section 2.14:
//
//	{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+ (SKEYSEED, Ni | Nr | SPIi | SPIr)
//
// The suite must be valid. spiI and spiR are those of the new IKE SA.
func (s IKESuite) deriveKeys(skeyseed, ni, nr []byte, spiI, spiR uint64) ikeKeys {
	seed := make([]byte, 0, len(ni)+len(nr)+16)
	seed = append(append(seed, ni...), nr...)
	seed = binary.BigEndian.AppendUint64(seed, spiI)
	seed = binary.BigEndian.AppendUint64(seed, spiR)
	p := s.PRF.keyLen()
	e, a := s.keyLens()
	mat := s.PRF.plus(skeyseed, seed, 3*p+2*a+2*e)
	take := func(n int) []byte {
		b := mat[:n:n]
		mat = mat[n:]
		return b
	}
	return ikeKeys{d: take(p), ai: take(a), ar: take(a), ei: take(e), er: take(e), pi: take(p), pr: take(p)}
}

// wipe overwrites the keys and lets go of them.
func (k *ikeKeys) wipe() {
	for _, b := range [...][]byte{k.d, k.ai, k.ar, k.ei, k.er, k.pi, k.pr} {
		clear(b)
	}
	*k = ikeKeys{}
}

// childKeymat returns n octets of KEYMAT = prf+(SK_d, Ni | Nr), or with a Diffie-Hellman
// exchange of its own prf+(SK_d, g^ir (new) | Ni | Nr) (RFC 7296 section 2.17). shared is
// empty without one. The initiator-to-responder SA takes its keys first, and for each SA
// the encryption key stands before the integrity key. The caller wipes the result. more is
// SK(1) | ... SK(n) of the IKE_FOLLOWUP_KE exchanges, if there were any: they come last in
// the seed (RFC 9370 section 2.2.4).
func childKeymat(prf PRFID, skd, shared, ni, nr []byte, n int, more ...[]byte) []byte {
	seed := slices.Concat(append([][]byte{shared, ni, nr}, more...)...)
	mat := prf.plus(skd, seed, n)
	clear(seed)
	return mat
}

// signedOctets returns what an AUTH payload is about (RFC 7296 section 2.15), whatever proves it:
//
//	RealMessage | Nonce | prf(SK_p, IDPayload without its generic header)
//
// realMessage and skp are the signer's, nonce is the other side's, idBody is the body of
// the signer's ID payload, its type and reserved octets included.
func signedOctets(prf PRFID, realMessage, nonce, skp, idBody []byte) []byte {
	return slices.Concat(realMessage, nonce, prf.sum(skp, idBody))
}

// pskAuth returns the AUTH data of a shared key (RFC 7296 section 2.15):
//
//	AUTH = prf( prf(Shared Secret, "Key Pad for IKEv2"), <SignedOctets>)
func pskAuth(prf PRFID, psk, octets []byte) []byte {
	key := prf.sum(psk, []byte(keyPad))
	auth := prf.sum(key, octets)
	clear(key)
	return auth
}

// natHash returns the data of NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP:
// SHA-1(SPIi | SPIr | address | port) (RFC 7296 section 2.23). SHA-1 is the protocol's
// choice and protects nothing here. An IPv4 address counts as 4 octets, however it is held.
func natHash(spiI, spiR uint64, a netip.AddrPort) [20]byte {
	var buf [8 + 8 + 16 + 2]byte
	b := binary.BigEndian.AppendUint64(buf[:0], spiI)
	b = binary.BigEndian.AppendUint64(b, spiR)
	b = append(b, a.Addr().Unmap().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, a.Port())
	return sha1.Sum(b)
}
