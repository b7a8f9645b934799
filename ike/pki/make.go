package pki

import "crypto"

// Signer is the key for who signs certificates, requests and revocation lists with Go's library,
// nil if it has been wiped.
func (k *Key) Signer() crypto.Signer {
	switch {
	case k.rsa != nil:
		return k.rsa
	case k.ec != nil:
		return k.ec
	case k.ed != nil:
		return k.ed
	}
	return nil
}
