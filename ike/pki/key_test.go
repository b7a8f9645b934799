package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The encrypted keys in testdata were made from p256.pem with "openssl pkcs8 -topk8 -v2
// aes-256-cbc" and "-v2 aes-128-cbc -v2prf hmacWithSHA1 -outform DER", passphrase "postern".

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPrivateKeysInEveryForm(t *testing.T) {
	block := func(typ string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}) }
	must := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r := rsaKey(t, "rsa2048.pem").(*rsa.PrivateKey)
	for _, c := range []struct {
		public any
		sec1   []byte
		pkcs1  []byte
		pkcs8  []byte
		want   string
	}{
		{&r.PublicKey, nil, x509.MarshalPKCS1PrivateKey(r), must(x509.MarshalPKCS8PrivateKey(r)), "RSA 2048"},
		{ecKey(t, elliptic.P256(), "k").Public(), must(x509.MarshalECPrivateKey(ecKey(t, elliptic.P256(), "k"))), nil, must(x509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P256(), "k"))), "ECDSA P-256"},
		{ecKey(t, elliptic.P384(), "k").Public(), must(x509.MarshalECPrivateKey(ecKey(t, elliptic.P384(), "k"))), nil, must(x509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P384(), "k"))), "ECDSA P-384"},
		{ecKey(t, elliptic.P521(), "k").Public(), must(x509.MarshalECPrivateKey(ecKey(t, elliptic.P521(), "k"))), nil, must(x509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P521(), "k"))), "ECDSA P-521"},
		{edKey("k").Public(), nil, nil, must(x509.MarshalPKCS8PrivateKey(edKey("k"))), "Ed25519"},
	} {
		pub, err := NewPublicKey(c.public)
		if err != nil {
			t.Fatal(err)
		}
		forms := map[string][]byte{
			"PKCS#8 DER": c.pkcs8,
			"PKCS#8 PEM": block("PRIVATE KEY", c.pkcs8),
			"PKCS#8 PEM behind text and parameters": append([]byte("a key of ours\n"),
				append(block("EC PARAMETERS", []byte{6, 1, 1}), block("PRIVATE KEY", c.pkcs8)...)...),
		}
		if c.pkcs1 != nil {
			forms["PKCS#1 DER"], forms["PKCS#1 PEM"] = c.pkcs1, block("RSA PRIVATE KEY", c.pkcs1)
		}
		if c.sec1 != nil {
			forms["SEC 1 DER"], forms["SEC 1 PEM"] = c.sec1, block("EC PRIVATE KEY", c.sec1)
		}
		for name, data := range forms {
			k, err := ParseKey(data, nil)
			if err != nil {
				t.Errorf("%s, %s: %v", c.want, name, err)
				continue
			}
			if !k.Public().Equal(pub) || k.Public().String() != c.want {
				t.Errorf("%s, %s: read as %v", c.want, name, k.Public())
			}
		}
		again, err := ParsePublicKey(pub.SPKI())
		if err != nil || !again.Equal(pub) || again.KeyID() != sha1.Sum(pub.SPKI()) {
			t.Errorf("%s: the public key does not come back: %v", c.want, err)
		}
		if again, err = ParsePublicKey(block("PUBLIC KEY", pub.SPKI())); err != nil || !again.Equal(pub) {
			t.Errorf("%s: the public key in PEM: %v", c.want, err)
		}
	}
	if p, err := ParsePublicKey(x509.MarshalPKCS1PublicKey(&r.PublicKey)); err != nil || p.String() != "RSA 2048" {
		t.Errorf("a public key in PKCS#1: %v", err)
	}
}

func TestEncryptedKeys(t *testing.T) {
	plain, err := ParseKey(read(t, "p256.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"p256-aes256.pem", "p256-aes128-sha1.der"} {
		data := read(t, name)
		if k, err := ParseKey(data, []byte("postern")); err != nil || !k.Public().Equal(plain.Public()) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ParseKey(data, nil); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), "needed") {
			t.Errorf("%s without a passphrase: %v", name, err)
		}
		if _, err := ParseKey(data, []byte("wrong")); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), "does not open") {
			t.Errorf("%s with a wrong passphrase: %v", name, err)
		}
	}
}

func TestWhatIsNoKeySaysWhatItIs(t *testing.T) {
	ca := issue(t, "root", edKey("root"), nil, asCA)
	crl := ca.revoke(t, theDay, theDay.AddDate(0, 0, 1))
	r1024, _ := x509.MarshalPKCS8PrivateKey(rsaKey(t, "rsa1024.pem"))
	p224, _ := x509.MarshalECPrivateKey(ecKey(t, elliptic.P224(), "p224"))
	block := func(typ string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}) }
	for want, data := range map[string][]byte{
		"neither PEM nor DER":                  []byte("hello"),
		"no private key":                       {},
		"this is a certificate in DER":         ca.cert.Raw(),
		"this is a certificate in PEM":         block("CERTIFICATE", ca.cert.Raw()),
		"this is a public key in DER":          ca.cert.key.SPKI(),
		"this is a public key in PEM":          block("PUBLIC KEY", ca.cert.key.SPKI()),
		"this is a certificate revocation":     crl,
		"this is a certificate request in PEM": block("CERTIFICATE REQUEST", []byte{0x30, 0}),
		"something else in PEM":                block("WHAT\x1b[31m", []byte{0x30, 0}),
		"OpenSSH's form":                       block("OPENSSH PRIVATE KEY", []byte("openssh-key-v1\x00")),
		"damaged PEM":                          []byte("-----BEGIN PRIVATE KEY-----\nMIGH"),
		"has 1024 bits":                        r1024,
		"other than P-256":                     p224,
		"damaged PKCS#8":                       block("PRIVATE KEY", []byte{0x30, 3, 2, 1, 0}),
		"of a kind that is not known":          unhex(t, "302e020100300506032b656e04220420 4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"), // X25519
		"too large":                            make([]byte, maxFileOctets+1),
	} {
		_, err := ParseKey(data, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
		if err != nil && clean(err.Error()) != err.Error() {
			t.Errorf("the error has control characters: %q", err)
		}
	}
	for want, data := range map[string][]byte{
		"this is a private key in PEM": read(t, "p256.pem"),
		"no public key":                []byte("x"),
		"not known":                    unhex(t, "302a300506032b656e032100 4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"),
	} {
		if _, err := ParsePublicKey(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("public key: error %v does not say %q", err, want)
		}
	}
	for want, data := range map[string][]byte{
		"this is a private key in PEM": read(t, "p256.pem"),
		"this is a public key in DER":  ca.cert.key.SPKI(),
		"certificate 2 of the file":    append(block("CERTIFICATE", ca.cert.Raw()), block("CERTIFICATE", []byte{1})...),
		"damaged certificate":          []byte("x"),
	} {
		if _, err := ParseCerts(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("certificates: error %v does not say %q", err, want)
		}
	}
	two := append(block("CERTIFICATE", ca.cert.Raw()), append(block("X509 CRL", crl), block("CERTIFICATE", ca.cert.Raw())...)...)
	if list, err := ParseCerts(two); err != nil || len(list) != 2 {
		t.Errorf("a file of two certificates and a CRL: %d, %v", len(list), err)
	}
	if l, err := ParseCRL(block("X509 CRL", crl)); err != nil || l.Issuer() != ca.cert.Subject() {
		t.Errorf("a CRL in PEM: %v", err)
	}
}

func TestKeysTellNothingAndAreWiped(t *testing.T) {
	r := rsaKey(t, "rsa2048.pem").(*rsa.PrivateKey)
	e := ecKey(t, elliptic.P256(), "wipe")
	d := edKey("wipe")
	for _, private := range []any{r, e, d} {
		k := mustKey(t, private)
		for _, s := range []string{k.String(), k.GoString(), fmt.Sprint(k), fmt.Sprintf("%#v", k), fmt.Sprintf("%+v", k), fmt.Sprintf("%x", k)} {
			if len(s) > 80 {
				t.Errorf("a private key is printed as %q", s)
			}
		}
		k.Wipe()
		if _, _, err := k.Sign(&Offer{Hashes: Hashes()}, []byte("x"), zeros{}); err == nil {
			t.Error("a wiped key signs")
		}
		k.Wipe()
	}
	if !bytes.Equal(d, make([]byte, len(d))) {
		t.Error("the Ed25519 key is still there")
	}
	//lint:ignore SA1019 what Wipe overwrites is looked at
	if left := (*ecdsa.PrivateKey)(e).D; left.Sign() != 0 || r.D.Sign() != 0 || r.Primes[0].Sign() != 0 {
		t.Error("private numbers are still there")
	}
	(*Key)(nil).Wipe()
}

// What a new configuration has replaced is wiped when nobody computes with it any more.
func TestForgottenKeyIsWiped(t *testing.T) {
	der, err := x509.MarshalPKCS8PrivateKey(edKey("forgotten"))
	if err != nil {
		t.Fatal(err)
	}
	number := func() []byte {
		k, err := ParseKey(der, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k.ed
	}()
	for range 100 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // finalizers run on a goroutine of their own
		if bytes.Equal(number, make([]byte, len(number))) {
			return
		}
	}
	t.Error("the private number is still there")
}

// openssl runs it in a directory of the test's.
func openssl(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s is not installed", tool)
	}
}

func TestKeysOfOpenSSL(t *testing.T) {
	need(t, "openssl")
	dir := t.TempDir()
	src, err := filepath.Abs("testdata/p256.pem")
	if err != nil {
		t.Fatal(err)
	}
	rsaSrc, _ := filepath.Abs("testdata/rsa2048.pem")
	want := map[string]string{}
	make := func(name, say string, args ...string) {
		openssl(t, dir, append(args, "-out", name)...)
		want[name] = say
	}
	for _, cipher := range []string{"aes-128-cbc", "aes-192-cbc", "aes-256-cbc"} {
		for _, prf := range []string{"hmacWithSHA1", "hmacWithSHA256", "hmacWithSHA384", "hmacWithSHA512"} {
			make(cipher+prf, "", "pkcs8", "-topk8", "-in", src, "-v2", cipher, "-v2prf", prf, "-iter", "64", "-passout", "pass:postern")
		}
	}
	make("sec1", "", "ec", "-in", src)
	make("traditional", "", "rsa", "-in", rsaSrc, "-traditional")
	make("sec1.der", "", "ec", "-in", src, "-outform", "DER")
	make("ed25519", "", "genpkey", "-algorithm", "ED25519")
	make("p384", "", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
	make("p521", "", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521")
	make("old", "the old way of PEM", "rsa", "-in", rsaSrc, "-traditional", "-aes128", "-passout", "pass:postern")
	make("3des", "3DES", "pkcs8", "-topk8", "-in", src, "-v2", "des3", "-passout", "pass:postern")
	make("pbes1", "PBES1", "pkcs8", "-topk8", "-in", src, "-v1", "PBE-SHA1-3DES", "-passout", "pass:postern")
	make("scrypt", "scrypt", "pkcs8", "-topk8", "-in", src, "-scrypt", "-passout", "pass:postern")
	make("ed448", "not known", "genpkey", "-algorithm", "ED448")
	make("secp256k1", "other than P-256", "ecparam", "-name", "secp256k1", "-genkey", "-noout")
	for name, say := range want {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		k, err := ParseKey(data, []byte("postern"))
		switch {
		case say == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case say != "" && (err == nil || !strings.Contains(err.Error(), say)):
			t.Errorf("%s: read as %v, error %v, which does not say %q", name, k, err, say)
		}
	}
}
