package pki

import (
	"crypto/x509"
	"errors"
)

// DER returns the private key in clear and the word for its kind: "RSA" (in PKCS#1, RFC 8017
// A.1.2), "ECDSA" (in RFC 5915's form, with the curve and the public key) or "ED25519" (in
// PKCS#8, RFC 8410). It is for handing a key on within the device; the caller owns it, and clears
// it.
func (k *Key) DER() (kind string, der []byte, err error) {
	switch {
	case k.rsa != nil:
		return "RSA", x509.MarshalPKCS1PrivateKey(k.rsa), nil
	case k.ec != nil:
		der, err = x509.MarshalECPrivateKey(k.ec)
		return "ECDSA", der, err
	case k.ed != nil:
		der, err = x509.MarshalPKCS8PrivateKey(k.ed)
		return "ED25519", der, err
	}
	return "", nil, errors.New("the key has been wiped")
}
