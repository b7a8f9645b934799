package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/ike"
)

// testCA returns a certificate and its key that signs itself; both follow from the name.
func testCA(t testing.TB, name string, end time.Time, ca bool) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name[:1]), ed25519.SeedSize))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: end,
		BasicConstraintsValid: true, IsCA: ca, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func testCRL(t testing.TB, ca *x509.Certificate, key ed25519.PrivateKey, end time.Time) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(nil, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NextUpdate: end,
	}, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// publicFiles stands for the file system with the files of some authorities.
func publicFiles(t testing.TB) func(path string, most int) ([]byte, error) {
	t.Helper()
	far, past := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2021, 2, 3, 0, 0, 0, 0, time.UTC)
	a, aKey := testCA(t, "A", far, true)
	b, bKey := testCA(t, "B", far, true)
	old, _ := testCA(t, "Old", past, true)
	leaf, _ := testCA(t, "Leaf", far, false)
	files := map[string][]byte{
		"a.pem":    pemOf("CERTIFICATE", a.Raw),
		"a.der":    a.Raw,
		"ab.pem":   append(pemOf("CERTIFICATE", a.Raw), pemOf("CERTIFICATE", b.Raw)...),
		"old.pem":  pemOf("CERTIFICATE", old.Raw),
		"leaf.pem": pemOf("CERTIFICATE", leaf.Raw),
		"a.crl":    testCRL(t, a, aKey, far),
		"a2.crl":   pemOf("X509 CRL", testCRL(t, a, aKey, far)),
		"past.crl": testCRL(t, a, aKey, past),
		"b.crl":    testCRL(t, b, bKey, far),
		"text":     []byte("hello"),
	}
	forger, forgerKey := testCA(t, "X", far, true)
	forger.RawSubject = a.RawSubject
	files["forged.crl"] = testCRL(t, forger, forgerKey, far)
	return func(path string, most int) ([]byte, error) {
		data, ok := files[path]
		switch {
		case path == "open.pem":
			return nil, errChangeable
		case !ok:
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		case len(data) > most:
			return nil, errFileSize
		}
		return data, nil
	}
}

// loadAuthorities reads a configuration that is right but for its authorities.
func loadAuthorities(t *testing.T, text string) (*Config, error) {
	t.Helper()
	l := newLoader("test.toml", noSecretFiles)
	l.readPublic = publicFiles(t)
	return l.load([]byte(text + fmt.Sprintf(minimal, "", "")))
}

func TestAuthoritiesAreTrusted(t *testing.T) {
	c, err := loadAuthorities(t, `[authorities.a]
cacert = "a.der"
crls = ["a.crl", "a2.crl"]
crl_uris = ["http://crl.example/a.crl", "http://192.0.2.1:8080/a.crl"]
ocsp_uris = ["http://[2001:db8::1]/ocsp"]
`)
	if err != nil {
		t.Fatal(err)
	}
	list := c.IKE.Trust.Authorities()
	if len(list) != 1 || list[0].Cert.Subject() != "CN=A" || len(list[0].CRLs) != 2 ||
		strings.Join(list[0].CRLURIs, " ") != "http://crl.example/a.crl http://192.0.2.1:8080/a.crl" ||
		strings.Join(list[0].OCSPURIs, " ") != "http://[2001:db8::1]/ocsp" {
		t.Errorf("%+v", list)
	}
	if len(c.Warnings()) != 0 {
		t.Errorf("warnings %v", c.Warnings())
	}
	if made := list[0].Cert.NotBefore(); made.IsZero() || !c.IKE.Floor.Equal(made) {
		t.Errorf("a device without a clock believes that %v has passed; the CA was made at %v", c.IKE.Floor, made)
	}
	if c, err := loadAuthorities(t, ""); err != nil || c.IKE.Trust != nil {
		t.Errorf("without authorities: %v, %v", c.IKE.Trust, err)
	}
}

func TestAuthorityProblems(t *testing.T) {
	for _, text := range []string{
		"[authorities.a]  #! has no cacert\ncrl_uris = [\"http://x.example/\"]\n",
		"[authorities.a]\ncacert = \"none.pem\"  #! relative name starts in the folder\n",
		"[authorities.a]\ncacert = \"open.pem\"  #! chmod go-w the file\n",
		"[authorities.a]\ncacert = \"text\"  #! holds no certificate\n",
		"[authorities.a]\ncacert = \"ab.pem\"  #! holds 2 certificates\n",
		"[authorities.a]\ncacert = \"leaf.pem\"  #! is no CA to be trusted\n",
		"[authorities.a]\ncacert = \"a.crl\"  #! holds no certificate\n",
		"[authorities.a]\ncacert = 5  #! must be a text\n",
		"[authorities.a]\ncacert = \"a.pem\"\ncrls = [\"a.crl\",\n\"none.crl\",  #! cannot read \"none.crl\"\n\"text\",  #! holds no revocation list\n\"forged.crl\"]  #! is no revocation list of CN=A\n",
		"[authorities.a]\ncacert = \"a.pem\"\ncrl_uris = [\"https://x.example/\"]  #! only http://\n",
		"[authorities.a]\ncacert = \"a.pem\"\ncrl_uris = [\"ldap://x.example/\",  #! only http://\n\"http://u@x.example/\",  #! no URL that can be fetched\n\"http://x.example/\\u001b\"]  #! no URL that can be fetched\n",
		"[authorities.a]\ncacert = \"a.pem\"\nocsp_uris = [\"http://x.example/\",\n\"http://x.example/\"]  #! stands here twice\n",
		"[authorities.a]\ncacert = \"a.pem\"\nocsp_uris = [\"http://x.example/1\", \"http://x.example/2\", \"http://x.example/3\", \"http://x.example/4\",\n\"http://x.example/5\"]  #! more than 4 URIs\n",
	} {
		_, err := loadAuthorities(t, text)
		ps, ok := err.(Problems)
		if !ok {
			t.Errorf("accepted (%v):\n%s", err, text)
			continue
		}
		compare(t, "problem", text, ps)
		for _, r := range ps.Error() {
			if r < ' ' && r != '\n' {
				t.Errorf("the problem has %q in it: %q", r, ps.Error())
			}
		}
	}
}

func TestAuthorityWarnings(t *testing.T) {
	text := `[authorities.old]
cacert = "old.pem"  #! the certificate of the CA CN=Old ended on 2021-02-03
[authorities.a]
cacert = "a.pem"
crls = ["a.crl",
"past.crl",  #! the revocation list of CN=A ended on 2021-02-03
"b.crl"]  #! "b.crl" is the revocation list of another CA, CN=B
`
	c, err := loadAuthorities(t, text)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "warning", text, c.Warnings())
}

func TestPublicFilesAreThoseOfTheirOwner(t *testing.T) {
	dir := t.TempDir()
	ca, _ := testCA(t, "A", time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), true)
	name := filepath.Join(dir, "ca.pem")
	load := func() error {
		_, err := Parse(filepath.Join(dir, "postern.toml"), []byte("[authorities.a]\ncacert = \"ca.pem\"\n"), ike.ChaChaFirst)
		return err
	}
	write := func(mode os.FileMode, data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	for mode, want := range map[os.FileMode]string{0o644: "", 0o600: "", 0o664: "can change it", 0o646: "can change it"} {
		write(mode, pemOf("CERTIFICATE", ca.Raw))
		if err := load(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("mode %v: error %v, expected %q", mode, err, want)
		}
	}
	write(0o600, make([]byte, maxCertFile+1))
	if err := load(); err == nil || !strings.Contains(err.Error(), "64 KiB") {
		t.Errorf("a large file: error %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := load(); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a folder: error %v", err)
	}
}
