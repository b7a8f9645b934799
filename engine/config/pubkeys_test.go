package config

import (
	"crypto/ed25519"
	"crypto/x509"
	"testing"
)

// swanctl loads all public keys of its directory: they are listed, each once, until the credentials
// are cleared.
func TestLoadedPublicKeysAreKept(t *testing.T) {
	must := mustLoad(t)
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	load := vm("type", "PUBKEY", "data", string(der))
	one := must((*Loaded)(nil).LoadCert(load))
	two := must(one.LoadCert(load))
	if n := len(two.PublicKeys()); n != 1 {
		t.Errorf("a key that was loaded twice is there %d times", n)
	}
	if string(two.PublicKeys()[0].SPKI()) != string(der) {
		t.Error("another key is kept than was loaded")
	}
	if n := len(two.ClearCreds().PublicKeys()); n != 0 {
		t.Errorf("%d public keys are left after the credentials were cleared", n)
	}
	if _, err := two.LoadCert(vm("type", "PUBKEY", "data", "no key")); err == nil {
		t.Error("what is no key was loaded")
	}
}
