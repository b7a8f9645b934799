package ike

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"filippo.io/bigmod"
)

// Key exchange errors. They concern one message's KE payload or one seed; no state of
// an IKE SA advanced.
var (
	errGroup     = errors.New("ike: unknown Diffie-Hellman group")
	errSeed      = errors.New("ike: the random seed of a key pair is too short or has no usable value")
	errPublic    = errors.New("ike: the peer's Diffie-Hellman public value is not valid for its group")
	errKeyErased = errors.New("ike: the Diffie-Hellman private key was erased already")
)

// dhKind is the arithmetic behind a group.
type dhKind uint8

const (
	dhMODP dhKind = iota // RFC 3526: exponentiation modulo a safe prime, generator 2
	dhECP                // RFC 5903: a NIST curve, points as x|y without the 0x04 octet
	dhX                  // RFC 8031: X25519
	dhKEM                // draft-ietf-ipsecme-ikev2-mlkem: ML-KEM (kem.go)
)

// dhInfo describes a group. Lengths are in octets.
type dhInfo struct {
	name    string
	kind    dhKind
	public  int // length of the KE payload's key exchange data, of the initiator where they differ
	private int // length of one candidate for the private key
	tries   int // candidates in a seed
	curve   func() ecdh.Curve
	topMask byte // what of a candidate's first octet counts
	modulus func() *bigmod.Modulus
}

// dhGroups are the groups that can be negotiated.
//
// The exponents of the MODP groups have the larger of the two sizes that RFC 3526
// section 8 estimates for the group's strength (320, 420 and 480 bits), rounded up to
// octets. Short exponents are safe there because the primes are safe primes and 2
// generates the subgroup of prime order (p-1)/2.
//
// A private key of a NIST curve is an integer in [1, n-1]; a candidate outside it is
// thrown away and the next one taken, so that the choice stays uniform. That is why a
// seed for ECP_256, whose n is 2^-32 short of 2^256, holds four candidates: it is of
// no use with probability 2^-128. For the other two curves n is closer to a power of 2
// (2^-194 and 2^-262), and one candidate does.
var dhGroups = map[DHGroup]*dhInfo{
	MODP2048: {name: "MODP_2048", kind: dhMODP, public: 256, private: 40, tries: 1, topMask: 0xff,
		modulus: modulusOnce(modpHead + "15728e5a8aacaa68ffffffffffffffff")},
	MODP3072: {name: "MODP_3072", kind: dhMODP, public: 384, private: 53, tries: 1, topMask: 0xff,
		modulus: modulusOnce(modpHead + modpMiddle + "4b82d120a93ad2caffffffffffffffff")},
	MODP4096: {name: "MODP_4096", kind: dhMODP, public: 512, private: 60, tries: 1, topMask: 0xff,
		modulus: modulusOnce(modpHead + modpMiddle + modpTail + "ffffffffffffffff")},
	ECP256:     {name: "ECP_256", kind: dhECP, public: 64, private: 32, tries: 4, topMask: 0xff, curve: ecdh.P256},
	ECP384:     {name: "ECP_384", kind: dhECP, public: 96, private: 48, tries: 1, topMask: 0xff, curve: ecdh.P384},
	ECP521:     {name: "ECP_521", kind: dhECP, public: 132, private: 66, tries: 1, topMask: 0x01, curve: ecdh.P521},
	Curve25519: {name: "CURVE_25519", kind: dhX, public: 32, private: 32, tries: 1, topMask: 0xff, curve: ecdh.X25519},
	MLKEM768:   {name: "ML_KEM_768", kind: dhKEM, public: mlkem.EncapsulationKeySize768, private: mlkem.SeedSize, tries: 1},
	MLKEM1024:  {name: "ML_KEM_1024", kind: dhKEM, public: mlkem.EncapsulationKeySize1024, private: mlkem.SeedSize, tries: 1},
}

// The primes of RFC 3526 sections 3 to 5 are 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + c)
// and so begin alike; these are their common parts in hexadecimal.
const (
	modpHead = "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74" +
		"020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437" +
		"4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed" +
		"ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05" +
		"98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb" +
		"9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b" +
		"e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf695581718" +
		"3995497cea956ae515d2261898fa0510"
	modpMiddle = "15728e5a8aaac42dad33170d04507a33a85521abdf1cba64ecfb850458dbef0a" +
		"8aea71575d060c7db3970f85a6e1e4c7abf5ae8cdb0933d71e8c94e04a25619d" +
		"cee3d2261ad2ee6bf12ffa06d98a0864d87602733ec86a64521f2b18177b200c" +
		"bbe117577a615d6c770988c0bad946e208e24fa074e5ab3143db5bfce0fd108e"
	modpTail = "4b82d120a92108011a723c12a787e6d788719a10bdba5b2699c327186af4e23c" +
		"1a946834b6150bda2583e9ca2ad44ce8dbbbc2db04de8ef92e8efc141fbecaa6" +
		"287c59474e6bc05d99b2964fa090c3a2233ba186515be7ed1f612970cee2d7af" +
		"b81bdd762170481cd0069127d5b05aa993b4ea988d8fddc186ffb7dc90a6c08f" +
		"4df435c934063199"
)

// modulusOnce prepares a modulus when it is first needed: a router that never meets a
// group pays neither the time nor the memory. It is safe for concurrent use.
func modulusOnce(prime string) func() *bigmod.Modulus {
	return sync.OnceValue(func() *bigmod.Modulus {
		b, err := hex.DecodeString(prime)
		if err != nil {
			panic("ike: a MODP prime is not hexadecimal: " + err.Error())
		}
		m, err := bigmod.NewModulus(b)
		if err != nil {
			panic("ike: a MODP prime is no modulus: " + err.Error())
		}
		return m
	})
}

// String returns charon's name of the group.
func (g DHGroup) String() string {
	if i := dhGroups[g]; i != nil {
		return i.name
	}
	if g == DHNone {
		return "NONE"
	}
	return "DH_" + strconv.Itoa(int(g))
}

// known reports whether key pairs of the group can be made.
func (g DHGroup) known() bool { return dhGroups[g] != nil }

// publicLen returns the length of the group's public values in a KE payload, in
// octets, or 0 for an unknown group. With ML-KEM it is that of the initiator's (answerLen).
func (g DHGroup) publicLen() int {
	if i := dhGroups[g]; i != nil {
		return i.public
	}
	return 0
}

// seedLen returns how many random octets newKeyPair wants, or 0 for an unknown group.
func (g DHGroup) seedLen() int {
	if i := dhGroups[g]; i != nil {
		return i.private * i.tries
	}
	return 0
}

// keyPair is one side's half of a key exchange. It is not safe for concurrent use.
type keyPair struct {
	group    DHGroup
	exponent []byte           // MODP: the private exponent, big-endian
	curveKey *ecdh.PrivateKey // the other groups
	kem      decapsulator     // ML-KEM, of the initiator; nil once it is erased
	pub      []byte
}

// newKeyPair makes a key pair out of seedLen octets of randomness, which the caller
// wipes; the same seed gives the same pair. The error is for an unknown group, a short
// seed, or a seed without a usable candidate, which chance does not bring about.
func newKeyPair(g DHGroup, seed []byte) (*keyPair, error) {
	i := dhGroups[g]
	if i == nil {
		return nil, fmt.Errorf("%w: %s", errGroup, g)
	}
	if len(seed) < i.private*i.tries {
		return nil, errSeed
	}
	k := &keyPair{group: g}
	if i.kind == dhMODP {
		k.exponent = append([]byte(nil), seed[:i.private]...)
		// The highest bit set: never zero, and of the size that the group wants.
		k.exponent[0] |= 0x80
		m := i.modulus()
		two, err := bigmod.NewNat().SetBytes([]byte{2}, m)
		if err != nil {
			return nil, err
		}
		k.pub = bigmod.NewNat().Exp(two, k.exponent, m).Bytes(m)
		return k, nil
	}
	if i.kind == dhKEM {
		var err error
		k.kem, k.pub, err = newKEM(g, seed[:i.private])
		return k, err
	}
	candidate := make([]byte, i.private)
	defer clear(candidate)
	for t := range i.tries {
		copy(candidate, seed[t*i.private:])
		candidate[0] &= i.topMask
		key, err := i.curve().NewPrivateKey(candidate)
		if err != nil {
			continue // zero, or not below the curve's order
		}
		k.curveKey = key
		k.pub = key.PublicKey().Bytes()
		if i.kind == dhECP {
			k.pub = k.pub[1:] // RFC 5903 section 7: x|y, without the form octet
		}
		return k, nil
	}
	return nil, errSeed
}

// public returns the public value as it stands in a KE payload (publicLen octets). It
// is the pair's own memory.
func (k *keyPair) public() []byte { return k.pub }

// shared returns the shared secret g^ir for the peer's public value, as RFC 7296
// section 2.14 wants it: for MODP padded on the left to the length of the prime, for
// ECP the x coordinate (RFC 5903 section 7), for Curve25519 the 32 octets of X25519.
// It fails with errPublic for a public value of the wrong length or one that RFC 6989
// section 2 (1 < y < p-1; a point on the curve) or RFC 8031 section 3.2 (an all-zero
// result) says to refuse. The caller wipes the result.
func (k *keyPair) shared(peer []byte) ([]byte, error) {
	i := dhGroups[k.group]
	if i == nil {
		return nil, fmt.Errorf("%w: %s", errGroup, k.group)
	}
	if want := k.group.answerLen(); len(peer) != want { // of a ciphertext it is the one check (FIPS 203 section 7.3)
		return nil, fmt.Errorf("%w: %s wants %d octets, not %d", errPublic, i.name, want, len(peer))
	}
	if i.kind == dhKEM {
		if k.kem == nil {
			return nil, errKeyErased
		}
		return k.kem.Decapsulate(peer)
	}
	if i.kind == dhMODP {
		return k.sharedMODP(i, peer)
	}
	if k.curveKey == nil {
		return nil, errKeyErased
	}
	if i.kind == dhECP {
		point := make([]byte, 1+len(peer))
		point[0] = 4
		copy(point[1:], peer)
		peer = point
	}
	pub, err := i.curve().NewPublicKey(peer)
	if err != nil {
		return nil, fmt.Errorf("%w: not a point of %s", errPublic, i.name)
	}
	secret, err := k.curveKey.ECDH(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %s gives the neutral element", errPublic, i.name)
	}
	return secret, nil
}

func (k *keyPair) sharedMODP(i *dhInfo, peer []byte) ([]byte, error) {
	if len(k.exponent) == 0 {
		return nil, errKeyErased
	}
	m := i.modulus()
	y, err := bigmod.NewNat().SetBytes(peer, m)
	if err != nil || y.IsZero() == 1 || y.IsOne() == 1 || y.IsMinusOne(m) == 1 {
		return nil, fmt.Errorf("%w: not between 1 and p-1 of %s", errPublic, i.name)
	}
	z := bigmod.NewNat().Exp(y, k.exponent, m)
	secret := z.Bytes(m)
	clear(z.Bits())
	return secret, nil
}

// wipe overwrites the private exponent. Keys of curves and of ML-KEM are kept by crypto/ecdh and
// crypto/mlkem, which offer no way to overwrite them: they are let go of. A nil key pair has nothing to wipe.
func (k *keyPair) wipe() {
	if k == nil {
		return
	}
	clear(k.exponent)
	k.exponent = nil
	k.curveKey, k.kem = nil, nil
}
