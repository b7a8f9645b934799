package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"
)

// The signer of a key is that key: its signature verifies with the public half of what was read.
func TestSignerIsTheKey(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rs, _ := rsa.GenerateKey(rand.Reader, 2048)
	for _, made := range []crypto.Signer{ed, ec, rs} {
		der, err := x509.MarshalPKCS8PrivateKey(made)
		if err != nil {
			t.Fatal(err)
		}
		k, err := ParseKey(der, nil)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("text"))
		var ok bool
		switch p := made.Public().(type) {
		case ed25519.PublicKey:
			sig, err := k.Signer().Sign(rand.Reader, []byte("text"), crypto.Hash(0))
			ok = err == nil && ed25519.Verify(p, []byte("text"), sig)
		case *ecdsa.PublicKey:
			sig, err := k.Signer().Sign(rand.Reader, digest[:], crypto.SHA256)
			ok = err == nil && ecdsa.VerifyASN1(p, digest[:], sig)
		case *rsa.PublicKey:
			sig, err := k.Signer().Sign(rand.Reader, digest[:], crypto.SHA256)
			ok = err == nil && rsa.VerifyPKCS1v15(p, crypto.SHA256, digest[:], sig) == nil
		}
		if !ok {
			t.Errorf("%s: the signature is not the key's", k)
		}
		k.Wipe()
	}
	if (&Key{}).Signer() != nil {
		t.Error("no key has a signer")
	}
}
