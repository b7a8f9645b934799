package pki

import "errors"

var (
	// ErrSignature says that a signature does not fit the key and the octets.
	ErrSignature = errors.New("the signature is wrong")
	// ErrScheme says that a signature is of a kind that is not taken here: an algorithm unknown
	// or weak, one that does not fit the key, or one that the peer or the configuration rules out.
	ErrScheme = errors.New("signature algorithm refused")
	// ErrRevoked is wrapped by the refusal of a revoked certificate.
	ErrRevoked = errors.New("the certificate is revoked")
	// ErrExpired is wrapped by the refusal of an expired certificate.
	ErrExpired = errors.New("the certificate has expired")
)
