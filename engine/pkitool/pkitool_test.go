package pkitool

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"postern/engine/cli"
)

// noon is the time of day that tests start at.
var noon = time.Date(2027, time.March, 4, 12, 0, 0, 0, time.UTC)

// bench runs commands in a folder of their own, with a clock and locks that the test has.
type bench struct {
	t     *testing.T
	dir   string
	now   time.Time
	mu    sync.Mutex
	locks map[string]bool
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, dir: t.TempDir(), now: noon, locks: map[string]bool{}}
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) lock(path string) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.locks[path] {
		return nil, errors.New("lock " + path + ": taken; wait")
	}
	b.locks[path] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.locks, path)
	}, nil
}

// run runs a command; words that begin with @ are names of files in the folder.
func (b *bench) run(line ...string) (status int, stdout, stderr string) {
	b.t.Helper()
	var out, errs bytes.Buffer
	args := []string{"pki"}
	for _, w := range line {
		if name, ok := strings.CutPrefix(w, "@"); ok {
			w = b.path(name)
		}
		args = append(args, w)
	}
	status = cli.Main(args, cli.System{
		Stdout: &out, Stderr: &errs, Version: "test",
		Commands: []cli.Command{Command(System{Now: func() time.Time { return b.now }, Lock: b.lock, Replace: replaceFile, Rename: os.Rename})},
	})
	if len(b.locks) > 0 {
		b.t.Errorf("%q: a lock was not given back", line)
	}
	return status, out.String(), errs.String()
}

// ok runs a command that has to succeed.
func (b *bench) ok(line ...string) (stdout, stderr string) {
	b.t.Helper()
	status, stdout, stderr := b.run(line...)
	if status != cli.ExitOK {
		b.t.Fatalf("%q: status %d: %s", line, status, stderr)
	}
	return stdout, stderr
}

// refused runs a command that has to fail with that status and with words in its error, whatever
// the line breaks.
func (b *bench) refused(status int, words string, line ...string) {
	b.t.Helper()
	got, stdout, stderr := b.run(line...)
	if said := flat(stderr); got != status || !strings.Contains(said, words) {
		b.t.Errorf("%q: status %d and %q; expected status %d and %q", line, got, said, status, words)
	}
	if stdout != "" {
		b.t.Errorf("%q: failed and printed %q", line, stdout)
	}
}

// flat is a text on one line.
func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

func (b *bench) read(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

func (b *bench) write(name string, data []byte, mode os.FileMode) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), data, mode); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(b.path(name), mode); err != nil {
		b.t.Fatal(err)
	}
}

// certs returns the certificates of a file.
func (b *bench) certs(name string) []*x509.Certificate {
	b.t.Helper()
	var list []*x509.Certificate
	for rest := b.read(name); ; {
		block, next := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = next
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		b.t.Fatalf("%s has no certificate", name)
	}
	return list
}

// verify checks that a certificate is good at the time of the test with that root alone.
func (b *bench) verify(name, root string) error {
	b.t.Helper()
	chain := b.certs(name)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(b.certs(root)[0])
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: b.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestKeysOfEveryKind(t *testing.T) {
	b := newBench(t)
	words := map[string]string{
		"p256": "ECDSA P-256", "p384": "ECDSA P-384", "p521": "ECDSA P-521", "ed25519": "Ed25519",
		"rsa2048": "RSA 2048", "rsa3072": "RSA 3072", "rsa4096": "RSA 4096",
	}
	if len(words) != len(keyKinds) {
		t.Fatalf("%d kinds are made and %d are tested", len(keyKinds), len(words))
	}
	for kind, word := range words {
		if testing.Short() && (kind == "rsa3072" || kind == "rsa4096") {
			continue // some seconds
		}
		_, said := b.ok("key", "@"+kind, "--type", kind)
		if !strings.Contains(said, word) {
			t.Errorf("%s: it says %q, not %q", kind, said, word)
		}
		if m := mode(t, b.path(kind)); m != 0o600 {
			t.Errorf("%s: mode %o", kind, m)
		}
		block, rest := pem.Decode(b.read(kind))
		if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
			t.Fatalf("%s: no PKCS#8 in PEM", kind)
		}
		if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		public, _ := b.ok("key", "--public", "@"+kind)
		block, _ = pem.Decode([]byte(public))
		if block == nil || block.Type != "PUBLIC KEY" {
			t.Fatalf("%s: the public half is %q", kind, public)
		}
		if shown, _ := b.ok("show", "@"+kind); !strings.Contains(shown, word) {
			t.Errorf("%s: show says %s", kind, shown)
		}
		// Whatever the kind, it signs a certificate and a request.
		b.ok("self", "@"+kind, "--dn", "CN="+kind, "--out", "@"+kind+".pem")
		if err := b.verify(kind+".pem", kind+".pem"); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		b.ok("req", "@"+kind, "--dn", "CN="+kind, "--out", "@"+kind+".req")
	}
	b.ok("key", "@der", "--der", "--type", "ed25519")
	if _, err := x509.ParsePKCS8PrivateKey(b.read("der")); err != nil {
		t.Errorf("a key in DER: %v", err)
	}
	b.ok("show", "@der")
	b.refused(cli.ExitUsage, "--type p224 is not known; take one of p256,", "key", "@x", "--type", "p224")
}

func TestNothingIsOverwritten(t *testing.T) {
	b := newBench(t)
	b.ok("key", "@k")
	before := b.read("k")
	b.refused(cli.ExitFailed, "this file exists; take another name, or --force", "key", "@k")
	if !bytes.Equal(before, b.read("k")) {
		t.Fatal("the key was overwritten")
	}
	for _, line := range [][]string{
		{"self", "@k", "--dn", "CN=x", "--out", "@k"},
		{"req", "@k", "--dn", "CN=x", "--out", "@k"},
		{"key", "@k", "--public", "--out", "@k"},
	} {
		b.refused(cli.ExitFailed, "this file exists", line...)
	}
	b.ok("key", "@k", "--force")
	if bytes.Equal(before, b.read("k")) {
		t.Error("--force did not overwrite the key")
	}
	// What a power cut leaves: an empty file, and the file that was being written.
	b.write("cut", nil, 0o600)
	b.write("cut.new", []byte("-----BEGIN"), 0o600)
	b.ok("key", "@cut")
	if _, err := os.Stat(b.path("cut.new")); err == nil {
		t.Error("the unfinished file is still there")
	}
	b.ok("show", "@cut")
	// Not through a link either, and not on a folder.
	if err := os.Symlink("k", b.path("link")); err != nil {
		t.Fatal(err)
	}
	b.refused(cli.ExitFailed, "something other than a file", "key", "@link", "--force")
	b.refused(cli.ExitFailed, "something other than a file", "key", b.dir)
	b.refused(cli.ExitFailed, "no such file or directory; name one that exists", "key", "@no/such/folder")
}

func TestAuthorityIssues(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "C=CH, O=Weir, CN=Weir CA", "--type", "p384")
	root := b.certs("ca/ca.pem")[0]
	if !root.IsCA || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || root.MaxPathLen != -1 ||
		!root.NotBefore.Equal(noon.Add(-time.Hour)) || !root.NotAfter.Equal(noon.AddDate(0, 0, 3650)) {
		t.Errorf("the root: CA %v, usage %b, path length %d, %v to %v", root.IsCA, root.KeyUsage, root.MaxPathLen, root.NotBefore, root.NotAfter)
	}
	if m := mode(t, b.path("ca/ca.key")); m != 0o600 {
		t.Errorf("the authority's key has mode %o", m)
	}
	if m := mode(t, b.path("ca")); m != 0o700 {
		t.Errorf("the authority's folder has mode %o", m)
	}
	b.ok("ca", "@north", "--parent", "@ca", "--dn", "O=Weir, CN=North", "--crl", "http://weir.example/ca.crl")
	north := b.certs("north/ca.pem")
	if len(north) != 1 || !north[0].IsCA || !north[0].MaxPathLenZero || north[0].MaxPathLen != 0 || north[0].CRLDistributionPoints[0] != "http://weir.example/ca.crl" {
		t.Errorf("the intermediate authority is not what was asked for: %+v", north[0])
	}

	// From a request, a new key, a private key, a public key, a certificate.
	b.ok("key", "@a.key")
	b.ok("req", "@a.key", "--dn", "O=Weir, CN=a", "--san", "a.example", "--san", "10.0.0.1", "--san", "ip:2001:db8::1", "--san", "me@a.example", "--out", "@a.req")
	b.ok("issue", "@a.req", "--ca", "@north", "--take", "all", "--out", "@a.pem", "--flag", "ipsecIKE", "--flag", "serverauth",
		"--crl", "http://weir.example/north.crl", "--ocsp", "http://weir.example/ocsp", "--days", "30")
	a := b.certs("a.pem")
	leaf := a[0]
	if len(a) != 2 || !a[1].Equal(north[0]) {
		t.Errorf("the certificate is followed by %d others, expected the intermediate authority", len(a)-1)
	}
	if err := b.verify("a.pem", "ca/ca.pem"); err != nil {
		t.Error(err)
	}
	if leaf.Subject.CommonName != "a" || leaf.DNSNames[0] != "a.example" || len(leaf.IPAddresses) != 2 || leaf.EmailAddresses[0] != "me@a.example" ||
		len(leaf.IPAddresses[0]) != 4 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || leaf.UnknownExtKeyUsage[0].String() != "1.3.6.1.5.5.7.3.17" ||
		leaf.OCSPServer[0] != "http://weir.example/ocsp" || leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA {
		t.Errorf("the certificate is not what was asked for: %+v", leaf)
	}
	if !leaf.NotAfter.Equal(noon.AddDate(0, 0, 30)) || !bytes.Equal(leaf.AuthorityKeyId, north[0].SubjectKeyId) || len(leaf.SubjectKeyId) != 20 {
		t.Errorf("valid until %v, key ids %x %x", leaf.NotAfter, leaf.SubjectKeyId, leaf.AuthorityKeyId)
	}
	b.ok("key", "@a.key", "--public", "--out", "@a.pub")
	serials := map[string]bool{serialText(leaf.SerialNumber): true}
	for _, from := range []string{"a.key", "a.pub", "a.pem"} {
		b.ok("issue", "@"+from, "--ca", "@ca", "--dn", "CN="+from, "--out", "@out."+from)
		c := b.certs("out." + from)[0]
		if !bytes.Equal(c.RawSubjectPublicKeyInfo, leaf.RawSubjectPublicKeyInfo) || c.Subject.CommonName != from {
			t.Errorf("from %s: another key or name", from)
		}
		if err := b.verify("out."+from, "ca/ca.pem"); err != nil {
			t.Errorf("from %s: %v", from, err)
		}
		if s := serialText(c.SerialNumber); serials[s] || len(s) < 24 {
			t.Errorf("serial number %s", s)
		} else {
			serials[s] = true
		}
	}
	b.ok("issue", "@b.key", "--new", "--type", "ed25519", "--ca", "@ca", "--san", "b.example", "--out", "@b.pem")
	if c := b.certs("b.pem")[0]; c.PublicKeyAlgorithm != x509.Ed25519 || mode(t, b.path("b.key")) != 0o600 {
		t.Errorf("a new key: %v", c.PublicKeyAlgorithm)
	}
	stdout, _ := b.ok("issue", "@a.key", "--ca", "@north", "--dn", "CN=x", "--no-chain")
	if strings.Count(stdout, "BEGIN CERTIFICATE") != 1 {
		t.Error("--no-chain leaves the chain")
	}
	stdout, _ = b.ok("issue", "@a.key", "--ca", "@north", "--dn", "CN=x", "--der")
	if _, err := x509.ParseCertificate([]byte(stdout)); err != nil {
		t.Errorf("--der: %v", err)
	}
	stdout, _ = b.ok("issue", "@a.key", "--ca", "@north", "--dn", "CN=responder", "--der", "--flag", "ocspSigning")
	if c, err := x509.ParseCertificate([]byte(stdout)); err != nil || c.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning || c.CheckSignatureFrom(north[0]) != nil {
		t.Errorf("a responder's certificate: %v", err)
	}
	// All of it is in the index, and a copy of each is kept.
	x, err := parseIndex(b.read("ca/index"))
	if err != nil || len(x.issued) != 5 {
		t.Fatalf("%v; the index has %d of the 5 that were issued", err, len(x.issued))
	}
	for _, i := range x.issued {
		if c := b.certs("ca/certs/" + i.serial + ".pem")[0]; serialText(c.SerialNumber) != i.serial || !c.NotAfter.Equal(i.to) {
			t.Errorf("the index says %+v, the copy of the certificate does not", i)
		}
	}
}

func TestNamesAreTakenOnlyIfAskedFor(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "CN=CA")
	b.ok("key", "@k", "--type", "ed25519")
	b.ok("req", "@k", "--dn", "CN=admin", "--san", "admin.example", "--out", "@r")
	b.refused(cli.ExitUsage, "the request has these names: dn CN=admin; admin.example.", "issue", "@r", "--ca", "@ca")
	for _, c := range []struct {
		line    []string
		cn, dns string
	}{
		{[]string{"--take", "dn"}, "admin", ""},
		{[]string{"--take", "san"}, "", "admin.example"},
		{[]string{"--take", "all"}, "admin", "admin.example"},
		{[]string{"--take", "san", "--dn", "CN=plant"}, "plant", "admin.example"},
		{[]string{"--take", "dn", "--san", "plant.example"}, "admin", "plant.example"},
		{[]string{"--take", "san", "--san", "plant.example"}, "", "plant.example admin.example"},
		{[]string{"--dn", "CN=plant"}, "plant", ""},
		{[]string{"--san", "plant.example"}, "", "plant.example"},
	} {
		stdout, stderr := b.ok(append([]string{"issue", "@r", "--ca", "@ca", "--der"}, c.line...)...)
		x, err := x509.ParseCertificate([]byte(stdout))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(x.DNSNames, " "); x.Subject.CommonName != c.cn || got != c.dns {
			t.Errorf("%q: CN %q and %q, expected %q and %q", c.line, x.Subject.CommonName, got, c.cn, c.dns)
		}
		if all := c.cn == "admin" && strings.Contains(c.dns, "admin.example"); all == strings.Contains(stderr, "not all names") {
			t.Errorf("%q: the note says %q", c.line, stderr)
		}
	}
	b.refused(cli.ExitUsage, "cannot both be taken", "issue", "@r", "--ca", "@ca", "--take", "all", "--dn", "CN=x")
	b.refused(cli.ExitUsage, "--take none: write dn, san or all", "issue", "@r", "--ca", "@ca", "--take", "none")
	b.refused(cli.ExitUsage, "a key has no names", "issue", "@k", "--ca", "@ca", "--take", "all")
	b.refused(cli.ExitUsage, "it has no name", "issue", "@k", "--ca", "@ca")
	b.refused(cli.ExitUsage, "the authority's own name", "issue", "@k", "--ca", "@ca", "--dn", "CN=CA")
	// A request that somebody else's key has signed, or whose names were changed.
	block, _ := pem.Decode(b.read("r"))
	at := bytes.Index(block.Bytes, []byte("admin.example"))
	block.Bytes[at] = 'x'
	b.write("forged", pem.EncodeToMemory(block), 0o644)
	b.refused(cli.ExitFailed, "not signed with its own key", "issue", "@forged", "--ca", "@ca", "--take", "all")
	if shown, _ := b.ok("show", "@forged"); !strings.Contains(shown, "issue nothing for it") {
		t.Errorf("show of a forged request says nothing: %s", shown)
	}
	b.refused(cli.ExitFailed, "the authority's own key", "issue", "@ca/ca.key", "--ca", "@ca", "--dn", "CN=x")
}

func TestNamesThatAreNone(t *testing.T) {
	b := newBench(t)
	b.ok("key", "@k", "--type", "ed25519")
	for san, words := range map[string]string{
		"-x.example":                         "no DNS name",
		"a..b":                               "no DNS name",
		"two words":                          "no DNS name",
		"dns:10.0.0/24":                      "no DNS name",
		"müller.ch":                          "no DNS name",
		"ip:10.0.0.300":                      "no IP address",
		"ip:fe80::1%lo":                      "no IP address",
		"@x.example":                         "no mail address",
		"a b@x.example":                      "no mail address",
		"email:plain":                        "no mail address",
		"http://x":                           "no DNS name",
		"a.example\n":                        "no DNS name",
		"*.*.example":                        "no DNS name",
		strings.Repeat("a", 64) + ".example": "no DNS name",
	} {
		b.refused(cli.ExitUsage, words, "req", "@k", "--san=dns:ok.example", "--san="+san)
	}
	b.refused(cli.ExitUsage, "without wildcards", "req", "@k", "--dn", "CN=*")
	b.refused(cli.ExitUsage, "--dn:", "req", "@k", "--dn", "plant")
	b.refused(cli.ExitUsage, "it has no name", "req", "@k")
	b.refused(cli.ExitUsage, "--dn is missing", "self", "@k", "--san", "x.example")
	for _, san := range []string{"*.example.org", "dns:host_1.example", "10.0.0.1", "::ffff:10.0.0.1", "a@b.example"} {
		b.ok("req", "@k", "--san", san)
	}
}

func TestClock(t *testing.T) {
	b := newBench(t)
	b.ok("key", "@k", "--type", "ed25519")
	b.now = time.Date(1970, 1, 1, 0, 3, 0, 0, time.UTC)
	for _, line := range [][]string{
		{"ca", "@ca", "--dn", "CN=CA"},
		{"self", "@k", "--dn", "CN=x"},
		{"bundle", "@link", "--left", "a.example", "--left-addr", "192.0.2.1", "--right", "b.example", "--right-addr", "192.0.2.2"},
	} {
		b.refused(cli.ExitFailed, "clock says 1970-01-01 00:03 UTC, which is plainly wrong: set the clock first, or tell the time with --now", line...)
	}
	if entries, _ := os.ReadDir(b.dir); len(entries) != 1 {
		t.Errorf("something was made: %v", entries)
	}
	b.ok("ca", "@ca", "--dn", "CN=CA", "--now", "2027-03-04T12:00", "--days", "100")
	if c := b.certs("ca/ca.pem")[0]; !c.NotBefore.Equal(noon.Add(-time.Hour)) || !c.NotAfter.Equal(noon.AddDate(0, 0, 100)) {
		t.Errorf("with --now: %v to %v", c.NotBefore, c.NotAfter)
	}
	b.refused(cli.ExitFailed, "plainly wrong", "crl", "@ca")
	b.ok("self", "@k", "--dn", "CN=x", "--not-before", "2027-03-04", "--not-after", "2027-03-05T01:02:03Z", "--out", "@s.pem")
	if c := b.certs("s.pem")[0]; !c.NotBefore.Equal(noon.Add(-12*time.Hour)) || !c.NotAfter.Equal(time.Date(2027, 3, 5, 1, 2, 3, 0, time.UTC)) {
		t.Errorf("with --not-before: %v to %v", c.NotBefore, c.NotAfter)
	}
	if shown, _ := b.ok("show", "@s.pem"); !strings.Contains(flat(shown), "cannot be told") {
		t.Errorf("show does not say that the clock is wrong: %s", shown)
	}
	// Set, but late: before the authority begins.
	b.now = noon.AddDate(0, 0, -10)
	b.refused(cli.ExitFailed, "begins on 2027-03-04 11:00 UTC, and it is 2027-02-22 12:00 UTC by this device's clock", "issue", "@k", "--ca", "@ca", "--dn", "CN=x")
	b.refused(cli.ExitFailed, "begins on", "crl", "@ca")
	// A certificate ends with its authority, and begins no earlier.
	b.now = noon
	b.ok("issue", "@k", "--ca", "@ca", "--dn", "CN=x", "--out", "@x.pem")
	if c := b.certs("x.pem")[0]; !c.NotBefore.Equal(noon.Add(-time.Hour)) || !c.NotAfter.Equal(noon.AddDate(0, 0, 100)) {
		t.Errorf("it is valid from %v to %v, its authority not", c.NotBefore, c.NotAfter)
	}
	shown := func() string {
		s, _ := b.ok("show", "@x.pem")
		return flat(s)
	}
	for days, words := range map[int]string{0: "", 71: "it ends in 29 days", 101: "it ended on 2027-06-12 12:00 UTC", -2: "it begins only on"} {
		b.now = noon.AddDate(0, 0, days)
		if s := shown(); !strings.Contains(s, words) || words == "" && strings.Contains(s, "it ") && strings.Contains(s, "warning it e") {
			t.Errorf("after %d days show says %s", days, s)
		}
	}
	b.now = noon.AddDate(0, 0, 101)
	b.refused(cli.ExitFailed, "ended on 2027-06-12", "issue", "@k", "--ca", "@ca", "--dn", "CN=x")
	b.refused(cli.ExitFailed, "nobody would take its list", "crl", "@ca")
	b.refused(cli.ExitUsage, "--days must be from 1 to 36500, not 0", "self", "@k", "--dn", "CN=x", "--days", "0")
	b.refused(cli.ExitUsage, "is no time; write 2026-11-22", "self", "@k", "--dn", "CN=x", "--not-before", "tomorrow")
	b.refused(cli.ExitUsage, "before it begins", "self", "@k", "--dn", "CN=x", "--not-after", "2027-01-01")
}

func TestRevocation(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "CN=CA")
	b.ok("ca", "@other", "--dn", "CN=CA") // the same name, another key
	serial := func(name string) string { return serialText(b.certs(name)[0].SerialNumber) }
	for _, n := range []string{"a", "b", "c"} {
		b.ok("issue", "@"+n+".key", "--new", "--type", "ed25519", "--ca", "@ca", "--dn", "CN="+n, "--out", "@"+n+".pem")
	}
	list := func() *x509.RevocationList {
		t.Helper()
		l, err := x509.ParseRevocationList(b.read("ca/ca.crl"))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckSignatureFrom(b.certs("ca/ca.pem")[0]); err != nil {
			t.Error(err)
		}
		if block, _ := pem.Decode(b.read("ca/crl.pem")); block == nil || block.Type != "X509 CRL" || !bytes.Equal(block.Bytes, l.Raw) {
			t.Error("crl.pem is not ca.crl")
		}
		return l
	}
	b.ok("crl", "@ca")
	if l := list(); l.Number.Int64() != 1 || len(l.RevokedCertificateEntries) != 0 || !l.ThisUpdate.Equal(noon) || !l.NextUpdate.Equal(noon.AddDate(0, 0, 30)) {
		t.Errorf("the first list: %+v", l)
	}
	b.now = noon.Add(time.Hour)
	b.ok("crl", "@ca", "--revoke", "@a.pem", "--reason", "KeyCompromise", "--days", "7")
	l := list()
	if e := l.RevokedCertificateEntries; l.Number.Int64() != 2 || len(e) != 1 || serialText(e[0].SerialNumber) != serial("a.pem") || e[0].ReasonCode != 1 ||
		!e[0].RevocationTime.Equal(b.now) || !l.NextUpdate.Equal(b.now.AddDate(0, 0, 7)) {
		t.Errorf("the second list: %+v", l)
	}
	// By serial number, as openssl writes it; revoked once more nothing changes.
	b.now = noon.Add(2 * time.Hour)
	colons := strings.ToUpper(serial("b.pem"))
	for i := len(colons) - 2; i > 0; i -= 2 {
		colons = colons[:i] + ":" + colons[i:]
	}
	b.ok("crl", "@ca", "--serial", colons, "--reason", "superseded")
	_, note := b.ok("crl", "@ca", "--revoke", "@a.pem")
	if !strings.Contains(flat(note), "has been revoked since 2027-03-04 13:00 UTC") {
		t.Errorf("revoked twice: %s", note)
	}
	if l := list(); l.Number.Int64() != 4 || len(l.RevokedCertificateEntries) != 2 || l.RevokedCertificateEntries[0].ReasonCode != 1 || l.RevokedCertificateEntries[1].ReasonCode != 4 {
		t.Errorf("the fourth list: %+v", l)
	}
	used := b.read("ca/index")
	b.refused(cli.ExitFailed, "has no certificate with the serial number 0badcafe", "crl", "@ca", "--serial", "badcafe")
	b.refused(cli.ExitUsage, "is no serial number", "crl", "@ca", "--serial", "xyz")
	b.refused(cli.ExitFailed, "this authority has not issued the certificate", "crl", "@other", "--revoke", "@c.pem")
	b.refused(cli.ExitUsage, "--reason lost is not known; take one of unspecified, key-compromise", "crl", "@ca", "--reason", "lost")
	b.now = noon
	b.refused(cli.ExitFailed, "the last list was made on 2027-03-04 14:00 UTC, and it is 2027-03-04 12:00 UTC", "crl", "@ca")
	if !bytes.Equal(used, b.read("ca/index")) {
		t.Error("a refused command changed the index")
	}
	// An index that was restored from an old copy does not give a number out again.
	b.now = noon.Add(3 * time.Hour)
	b.write("ca/index", bytes.Replace(used, []byte("crl 4\n"), []byte("crl 1\n"), 1), 0o600)
	b.ok("crl", "@ca")
	if l := list(); l.Number.Int64() != 5 {
		t.Errorf("after the index was restored the list has number %d", l.Number)
	}
	b.write("ca/ca.crl", []byte("x"), 0o644)
	b.refused(cli.ExitFailed, "restore the file, or remove it", "crl", "@ca")
}

func TestWhatIsIssuedIsInTheIndexFirst(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "CN=CA")
	b.write("ca/certs", nil, 0o600) // no copy can be kept
	b.refused(cli.ExitFailed, "certs", "issue", "@k", "--new", "--type", "ed25519", "--ca", "@ca", "--dn", "CN=x")
	if x, err := parseIndex(b.read("ca/index")); err != nil || len(x.issued) != 1 {
		t.Errorf("%v: a certificate may exist that the index does not have", err)
	}
	before := b.read("ca/index")
	if err := os.Remove(b.path("ca/certs")); err != nil {
		t.Fatal(err)
	}
	// What cannot be written is not issued.
	b.refused(cli.ExitFailed, "this file exists", "issue", "@k", "--ca", "@ca", "--dn", "CN=y", "--out", "@k")
	if !bytes.Equal(before, b.read("ca/index")) {
		t.Error("a certificate was issued that could not be written")
	}
}

func TestAuthoritiesBelowAuthorities(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@root", "--dn", "CN=Root", "--pathlen", "1")
	b.refused(cli.ExitUsage, "the parent's path length is 1: give --pathlen below that", "ca", "@x", "--parent", "@root", "--dn", "CN=Mid", "--pathlen", "1")
	b.ok("ca", "@mid", "--parent", "@root", "--dn", "CN=Mid", "--permit", "dns:plant.example", "--permit", "ip:10.0.0.0/8", "--exclude", "dns:office.plant.example", "--permit", "email:plant.example")
	b.refused(cli.ExitFailed, "the parent's path length is 0", "ca", "@x", "--parent", "@mid", "--dn", "CN=Low")
	b.refused(cli.ExitUsage, "the parent's own name", "ca", "@x", "--parent", "@root", "--dn", "CN=Root")
	b.refused(cli.ExitFailed, "something is in this folder already", "ca", "@mid", "--dn", "CN=Mid")
	b.refused(cli.ExitUsage, "--dn is missing", "ca", "@x")
	b.refused(cli.ExitUsage, "write dns:DOMAIN", "ca", "@x", "--dn", "CN=x", "--permit", "plant.example")
	b.refused(cli.ExitUsage, "write dns:DOMAIN", "ca", "@x", "--dn", "CN=x", "--exclude", "ip:10.0.0.1")
	b.refused(cli.ExitUsage, "write http://HOST/PATH", "ca", "@x", "--dn", "CN=x", "--parent", "@root", "--crl", "https://x/y")
	b.refused(cli.ExitUsage, "that of a root is not", "ca", "@x", "--dn", "CN=x", "--crl", "http://x/y")
	if _, err := os.Stat(b.path("x")); err == nil {
		t.Error("a refused command left a folder")
	}
	b.ok("key", "@k", "--type", "ed25519")
	for _, san := range []string{"a.plant.example", "10.1.2.3", "a@plant.example"} {
		b.ok("issue", "@k", "--ca", "@mid", "--san", san, "--out", "@ok", "--force")
		if err := b.verify("ok", "root/ca.pem"); err != nil {
			t.Errorf("%s: %v", san, err)
		}
	}
	for _, san := range []string{"a.example", "x.office.plant.example", "192.0.2.1", "a@b.example"} {
		b.refused(cli.ExitFailed, "nobody would take this certificate", "issue", "@k", "--ca", "@mid", "--san", san)
	}
	if x, err := parseIndex(b.read("mid/index")); err != nil || len(x.issued) != 3 {
		t.Errorf("%v: what nobody would take is in the index", err)
	}
	if shown, _ := b.ok("show", "@mid/ca.pem"); !strings.Contains(shown, "dns:plant.example, ip:10.0.0.0/8, email:plant.example") || !strings.Contains(shown, "dns:office.plant.example") {
		t.Errorf("show does not tell the constraints: %s", shown)
	}
	// An authority with a key from elsewhere.
	b.ok("ca", "@given", "--dn", "CN=Given", "--key", "@k")
	if c := b.certs("given/ca.pem")[0]; c.PublicKeyAlgorithm != x509.Ed25519 {
		t.Error("--key was not taken")
	}
}

func TestFilesThatAreWrong(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "CN=CA")
	b.ok("ca", "@other", "--dn", "CN=Other")
	b.ok("key", "@k", "--type", "ed25519")
	b.ok("self", "@k", "--dn", "CN=x", "--out", "@self.pem")
	b.ok("crl", "@ca")
	b.write("open", b.read("k"), 0o640)
	b.write("empty", nil, 0o600)
	b.write("text", []byte("hello\n"), 0o600)
	issue := func(file string) []string { return []string{"issue", "@" + file, "--ca", "@ca", "--dn", "CN=y"} }
	b.refused(cli.ExitFailed, "others can read or change this file, and it holds a secret: chmod 600", issue("open")...)
	b.refused(cli.ExitFailed, "chmod 600", "req", "@open", "--dn", "CN=y")
	b.refused(cli.ExitFailed, "the file is empty", issue("empty")...)
	b.refused(cli.ExitFailed, "neither a request nor a key nor a certificate", issue("text")...)
	b.refused(cli.ExitFailed, "a revocation list; name a request", issue("ca/ca.crl")...)
	b.refused(cli.ExitFailed, "no such file", issue("none")...)
	b.refused(cli.ExitFailed, "this is no file", "req", b.dir, "--dn", "CN=y")
	b.refused(cli.ExitFailed, "", "req", "@self.pem", "--dn", "CN=y")
	b.refused(cli.ExitFailed, "no key, certificate, request or revocation list is in it", "show", "@text")
	b.refused(cli.ExitUsage, "--ca is missing", "issue", "@k", "--dn", "CN=y")
	b.refused(cli.ExitFailed, "is not the folder of an authority", "issue", "@k", "--ca", b.dir, "--dn", "CN=y")
	b.refused(cli.ExitFailed, "is not the folder of an authority", "crl", "@none")
	// Folders whose files do not fit together.
	key := b.read("ca/ca.key")
	b.write("ca/ca.key", b.read("other/ca.key"), 0o600)
	b.refused(cli.ExitFailed, "is not the key of the certificate", issue("k")...)
	b.write("ca/ca.key", key, 0o644)
	b.refused(cli.ExitFailed, "chmod 600", issue("k")...)
	b.write("ca/ca.key", key, 0o600)
	index := b.read("ca/index")
	b.write("ca/index", append(bytes.Clone(index), "nonsense\n"...), 0o600)
	b.refused(cli.ExitFailed, "line 3: this line is of no known kind: restore the file", issue("k")...)
	b.write("ca/index", nil, 0o600)
	b.refused(cli.ExitFailed, "the index is empty: restore the file", issue("k")...)
	b.write("ca/index", index, 0o600)
	b.ok(issue("k")...)
	b.write("ca/ca.pem", b.read("self.pem"), 0o644)
	b.write("ca/ca.key", b.read("k"), 0o600)
	b.refused(cli.ExitFailed, "is not the certificate of an authority", issue("k")...)
	// Another process has it.
	unlock, err := b.lock(b.path("other/lock"))
	if err != nil {
		t.Fatal(err)
	}
	status, _, said := b.runHeld("issue", "@k", "--ca", "@other", "--dn", "CN=y")
	if status != cli.ExitFailed || !strings.Contains(said, "taken") {
		t.Errorf("with the lock held: status %d, %s", status, said)
	}
	unlock()
	// An authority from elsewhere has no index, and gets one.
	if err := os.Remove(b.path("other/index")); err != nil {
		t.Fatal(err)
	}
	b.ok("issue", "@k", "--ca", "@other", "--dn", "CN=y")
	if x, err := parseIndex(b.read("other/index")); err != nil || len(x.issued) != 1 {
		t.Errorf("%v: no index was made", err)
	}
}

// runHeld is run while the test holds a lock.
func (b *bench) runHeld(line ...string) (status int, stdout, stderr string) {
	held := b.locks
	b.locks = map[string]bool{}
	lock := func(path string) (func(), error) {
		if held[path] {
			return nil, errors.New("lock " + path + ": taken; wait")
		}
		return b.lock(path)
	}
	defer func() { b.locks = held }()
	var out, errs bytes.Buffer
	args := []string{"pki"}
	for _, w := range line {
		if name, ok := strings.CutPrefix(w, "@"); ok {
			w = b.path(name)
		}
		args = append(args, w)
	}
	status = cli.Main(args, cli.System{
		Stdout: &out, Stderr: &errs,
		Commands: []cli.Command{Command(System{Now: func() time.Time { return b.now }, Lock: lock, Replace: replaceFile, Rename: os.Rename})},
	})
	return status, out.String(), errs.String()
}

func TestShowTellsNoSecretAndFitsTheTerminal(t *testing.T) {
	b := newBench(t)
	b.ok("ca", "@ca", "--dn", "C=CH, O=A company with a name that is too long for one line of a terminal, CN=Authority of the company")
	b.ok("issue", "@k", "--new", "--type", "p521", "--ca", "@ca", "--dn", "CN=x", "--out", "@x.pem")
	b.ok("req", "@k", "--dn", "CN=x", "--san", strings.Repeat("long.", 40)+"example", "--out", "@x.req")
	b.ok("crl", "@ca", "--revoke", "@x.pem")
	block, _ := pem.Decode(b.read("k"))
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	d, err := k.(interface{ Bytes() ([]byte, error) }).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"@x.pem", "@x.req", "@k", "@ca/ca.crl", "@ca/ca.pem"}
	text, _ := b.ok(append([]string{"show"}, files...)...)
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("%d characters: %s", n, line)
		}
	}
	data, _ := b.ok(append([]string{"show", "--json"}, files...)...)
	var list []map[string]any
	if err := json.Unmarshal([]byte(data), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != len(files) || list[0]["serial"] == "" || list[3]["revoked_count"] != 1.0 || list[4]["ca"] != true {
		t.Errorf("JSON: %v", list)
	}
	hex := serialText(new(big.Int).SetBytes(d[2 : len(d)-2]))
	for _, out := range []string{text, data} {
		if strings.Contains(strings.Join(strings.Fields(out), ""), hex) {
			t.Error("the private key is shown")
		}
	}
	b.refused(cli.ExitFailed, "no such file", "show", "@none")
	// Names that would do something to a terminal.
	if status, out, _ := b.run("show", "@x.pem", "@\x1b[31m"); status == cli.ExitOK || strings.Contains(out, "\x1b") {
		t.Errorf("status %d: %q", status, out)
	}
}

func TestHelpFitsTheTerminal(t *testing.T) {
	b := newBench(t)
	lines := [][]string{{"help"}, {"--help"}}
	for _, p := range parts() {
		lines = append(lines, []string{"help", p.Name}, []string{p.Name, "--help"})
	}
	for _, line := range lines {
		stdout, stderr := b.ok(line...)
		if len(stdout) < 200 || stderr != "" {
			t.Errorf("%q: little help: %q %q", line, stdout, stderr)
		}
		for l := range strings.Lines(stdout) {
			if n := utf8.RuneCountInString(strings.TrimRight(l, "\n")); n > 80 {
				t.Errorf("%q: %d characters: %s", line, n, l)
			}
		}
	}
	if status, _, stderr := b.run(); status != cli.ExitUsage || !strings.Contains(stderr, "Usage: postern pki WHAT") {
		t.Errorf("without a word: status %d, %s", status, stderr)
	}
	b.refused(cli.ExitUsage, "there is no command 'pki sign'", "sign")
	b.refused(cli.ExitUsage, "KEY is missing", "req")
	var out bytes.Buffer
	if status := cli.Main([]string{"help", "pki", "issue"}, cli.System{Stdout: &out, Stderr: &out, Commands: []cli.Command{Command(System{})}}); status != 0 || !strings.Contains(out.String(), "postern pki issue FILE") {
		t.Errorf("help pki issue: status %d: %s", status, out.String())
	}
}

// What has its first bit set is written with one more octet, and strongSwan 5.9 does not know such
// a number again in an answer of OCSP.
func TestSerialNumbersHaveNoOctetOfZeros(t *testing.T) {
	most := 0
	for range 100 {
		n := newSerial()
		most = max(most, n.BitLen())
		if n.Sign() <= 0 || n.BitLen() > 127 {
			t.Fatalf("the serial number %x has %d bits", n, n.BitLen())
		}
	}
	if most < 120 {
		t.Errorf("the longest of 100 serial numbers has %d bits, which is not random", most)
	}
}

// replaceFile stands for the system's writing of whole files.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
