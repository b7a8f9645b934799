package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"testing"
)

// TestKeysComeBackFromDER: what DER writes has the form of its kind and is the same key.
func TestKeysComeBackFromDER(t *testing.T) {
	r := rsaKey(t, "rsa2048.pem").(*rsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(ecKey(t, elliptic.P384(), "k"))
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(edKey("k"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		private any
		kind    string
		der     []byte
	}{
		{r, "RSA", x509.MarshalPKCS1PrivateKey(r)},
		{ecKey(t, elliptic.P384(), "k"), "ECDSA", sec1},
		{edKey("k"), "ED25519", pkcs8},
	} {
		k, err := NewKey(c.private)
		if err != nil {
			t.Fatal(err)
		}
		kind, der, err := k.DER()
		if err != nil || kind != c.kind || !bytes.Equal(der, c.der) {
			t.Errorf("%s: %q, %v", c.kind, kind, err)
		}
		back, err := ParseKey(der, nil)
		if err != nil || !back.Public().Equal(k.Public()) {
			t.Errorf("%s does not come back: %v", c.kind, err)
		}
	}
	var k Key
	if _, _, err := k.DER(); err == nil {
		t.Error("a key that has been wiped is written")
	}
}
