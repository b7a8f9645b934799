package ike

import (
	"crypto/mlkem"
	"fmt"
)

// ML-KEM (FIPS 203) as a key exchange method (draft-ietf-ipsecme-ikev2-mlkem): the initiator's
// KE payload holds its encapsulation key, the responder's the ciphertext for it, and the 32
// octets of the shared key take the place of g^ir.
//
// The randomness of the encapsulation is Go's own: crypto/mlkem takes none from outside. So the
// octets of a ciphertext differ from run to run where all else that the machine does follows
// from its inputs.

// decapsulator is the initiator's half of an ML-KEM exchange.
type decapsulator interface {
	Decapsulate(ciphertext []byte) (sharedKey []byte, err error)
}

// newKEM makes the decapsulation key of a seed d | z (FIPS 203 section 7.1) and returns it
// with its encapsulation key.
func newKEM(g DHGroup, seed []byte) (decapsulator, []byte, error) {
	if g == MLKEM1024 {
		k, err := mlkem.NewDecapsulationKey1024(seed)
		if err != nil {
			return nil, nil, errSeed
		}
		return k, k.EncapsulationKey().Bytes(), nil
	}
	k, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, nil, errSeed
	}
	return k, k.EncapsulationKey().Bytes(), nil
}

// encapsulate is the responder's half: it returns the ciphertext for the peer's encapsulation
// key, as the public value of a pair, and the shared key. The key must pass the checks of
// FIPS 203 section 7.2 (draft-ietf-ipsecme-ikev2-mlkem section 2.3); errPublic otherwise.
func encapsulate(g DHGroup, peer []byte) (*keyPair, []byte, error) {
	if len(peer) != g.publicLen() {
		return nil, nil, fmt.Errorf("%w: %s wants %d octets, not %d", errPublic, g, g.publicLen(), len(peer))
	}
	k := &keyPair{group: g}
	var shared []byte
	if g == MLKEM1024 {
		ek, err := mlkem.NewEncapsulationKey1024(peer)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: not an encapsulation key of %s", errPublic, g)
		}
		shared, k.pub = ek.Encapsulate()
		return k, shared, nil
	}
	ek, err := mlkem.NewEncapsulationKey768(peer)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: not an encapsulation key of %s", errPublic, g)
	}
	shared, k.pub = ek.Encapsulate()
	return k, shared, nil
}

// encapsulates tells whether the responder's half of the method needs the initiator's.
func (g DHGroup) encapsulates() bool {
	i := dhGroups[g]
	return i != nil && i.kind == dhKEM
}

// answerLen returns the length of the responder's value in a KE payload, in octets, or 0 for
// an unknown method.
func (g DHGroup) answerLen() int {
	switch g {
	case MLKEM768:
		return mlkem.CiphertextSize768
	case MLKEM1024:
		return mlkem.CiphertextSize1024
	}
	return g.publicLen()
}
