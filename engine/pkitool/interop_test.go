package pkitool

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/engine/cli"
	"postern/ike/pki"
)

// other returns a function that runs another implementation in the folder of the bench, or skips
// the test where that is missing.
func (b *bench) other(program, pkg string) func(args ...string) (string, error) {
	b.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		reason := program + " is not here; apt-get install " + pkg
		if os.Getenv("CI") == "true" || os.Getenv("POSTERN_E2E") == "require" {
			b.t.Fatal(reason)
		}
		b.t.Skip("skipped: " + reason)
	}
	return func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Dir = b.dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// good runs the other implementation, which has to succeed and to say the words.
func (b *bench) good(run func(...string) (string, error), words string, args ...string) string {
	b.t.Helper()
	out, err := run(args...)
	if err != nil || !strings.Contains(flat(out), words) {
		b.t.Errorf("%q: %v, expected %q:\n%s", args, err, words, out)
	}
	return out
}

// bad runs the other implementation, which has to fail with the words.
func (b *bench) bad(run func(...string) (string, error), words string, args ...string) {
	b.t.Helper()
	out, err := run(args...)
	if err == nil || !strings.Contains(flat(out), words) {
		b.t.Errorf("%q: %v, expected a failure with %q:\n%s", args, err, words, out)
	}
}

// outside makes an authority, one below it, and two certificates, of which one is revoked; the time
// is the real one, by which the other implementations go.
func outside(t *testing.T, kind string) *bench {
	b := newBench(t)
	b.now = time.Now()
	b.ok("ca", "@root", "--dn", "C=CH, O=Weir, CN=Root", "--type", kind)
	b.ok("ca", "@mid", "--parent", "@root", "--dn", "C=CH, O=Weir, CN=Middle", "--type", kind, "--permit", "dns:plant.example")
	for _, n := range []string{"good", "lost"} {
		b.ok("key", "@"+n+".key", "--type", kind)
		b.ok("req", "@"+n+".key", "--dn", "C=CH, O=Weir, CN="+n, "--san", n+".plant.example", "--out", "@"+n+".req")
		b.ok("issue", "@"+n+".req", "--ca", "@mid", "--take", "all", "--flag", "ipsecIKE", "--flag", "clientAuth", "--out", "@"+n+".pem")
	}
	b.ok("crl", "@root")
	b.ok("crl", "@mid", "--revoke", "@lost.pem", "--reason", "key-compromise")
	return b
}

// someKinds are one of each family: the sizes differ in nothing that is made here.
var someKinds = []string{"p256", "p384", "p521", "ed25519", "rsa2048"}

func TestOpenSSLTakesWhatIsMade(t *testing.T) {
	for _, kind := range someKinds {
		t.Run(kind, func(t *testing.T) {
			b := outside(t, kind)
			openssl := b.other("openssl", "openssl")
			b.good(openssl, "good.pem: OK", "verify", "-x509_strict", "-CAfile", "root/ca.pem", "-untrusted", "good.pem", "good.pem")
			var crls []byte
			for _, f := range []string{"root/crl.pem", "mid/crl.pem"} {
				crls = append(crls, b.read(f)...)
			}
			b.write("crls", crls, 0o644)
			check := []string{"verify", "-x509_strict", "-crl_check_all", "-CRLfile", "crls", "-CAfile", "root/ca.pem", "-untrusted"}
			b.good(openssl, "good.pem: OK", append(check, "good.pem", "good.pem")...)
			b.bad(openssl, "certificate revoked", append(check, "lost.pem", "lost.pem")...)
			b.bad(openssl, "unable to get", "verify", "-CAfile", "root/ca.pem", "good.pem") // without the authority between
			for _, words := range []string{
				"Subject: C = CH, O = Weir, CN = good", "DNS:good.plant.example", "ipsec Internet Key Exchange",
				"X509v3 Key Usage: critical Digital Signature", "X509v3 Authority Key Identifier",
			} {
				b.good(openssl, words, "x509", "-in", "good.pem", "-noout", "-text")
			}
			b.good(openssl, "CA:TRUE, pathlen:0", "x509", "-in", "mid/ca.pem", "-noout", "-text")
			b.good(openssl, "X509v3 Name Constraints: critical Permitted: DNS:plant.example", "x509", "-in", "mid/ca.pem", "-noout", "-text")
			b.good(openssl, "verify OK", "req", "-in", "good.req", "-noout", "-verify")
			b.good(openssl, "Key Compromise", "crl", "-inform", "DER", "-in", "mid/ca.crl", "-noout", "-text", "-CAfile", "mid/ca.pem")
			b.good(openssl, "Key is valid", "pkey", "-in", "good.key", "-noout", "-check")
			// Both say the same of a certificate.
			serial := b.good(openssl, "serial=", "x509", "-in", "good.pem", "-noout", "-serial")
			shown, _ := b.ok("show", "@good.pem")
			if want := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(serial), "serial=")); !strings.Contains(shown, want) {
				t.Errorf("openssl has the serial number %s, and show says\n%s", want, shown)
			}
			print := b.good(openssl, "Fingerprint=", "x509", "-in", "good.pem", "-noout", "-fingerprint", "-sha256")
			_, print, _ = strings.Cut(print, "=")
			if want := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(print), ":", "")); !strings.Contains(shown, want) {
				t.Errorf("openssl has the fingerprint %s, and show says\n%s", want, shown)
			}
		})
	}
}

func TestWhatOpenSSLMakesIsTaken(t *testing.T) {
	b := newBench(t)
	openssl := b.other("openssl", "openssl")
	// An authority that began with openssl, its key protected.
	b.good(openssl, "", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-noenc", "-keyout", "plain.key",
		"-subj", "/O=Weir/CN=Old CA", "-days", "100", "-out", "old.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	b.good(openssl, "", "pkcs8", "-topk8", "-in", "plain.key", "-out", "ca.key", "-passout", "pass:tortoise", "-v2", "aes-256-cbc")
	if err := os.Mkdir(b.path("ca"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.write("ca/ca.pem", b.read("old.pem"), 0o644)
	b.write("ca/ca.key", b.read("ca.key"), 0o600)
	b.write("pass", []byte("tortoise\n"), 0o600)
	b.write("wrong", []byte("hare\n"), 0o600)
	b.good(openssl, "", "req", "-newkey", "rsa:2048", "-noenc", "-keyout", "r.key", "-subj", "/CN=plant", "-addext", "subjectAltName=DNS:plant.example,IP:10.0.0.1", "-out", "r.req")
	b.now = time.Now() // after the authority began
	issue := []string{"issue", "@r.req", "--ca", "@ca", "--take", "all", "--out", "@r.pem"}
	b.refused(cli.ExitFailed, "the key is protected: give --passphrase-file", issue...)
	b.refused(cli.ExitFailed, "ca.key", append(issue, "--ca-passphrase-file", "@wrong")...)
	b.ok(append(issue, "--ca-passphrase-file", "@pass")...)
	b.good(openssl, "r.pem: OK", "verify", "-x509_strict", "-CAfile", "old.pem", "r.pem")
	b.ok("crl", "@ca", "--passphrase-file", "@pass", "--revoke", "@r.pem")
	b.bad(openssl, "certificate revoked", "verify", "-crl_check", "-CRLfile", "ca/crl.pem", "-CAfile", "old.pem", "r.pem")
	for _, f := range []string{"@ca.key", "@r.req", "@r.key", "@old.pem"} {
		b.ok("show", f)
	}
	if shown, _ := b.ok("show", "--passphrase-file", "@pass", "@ca.key"); !strings.Contains(shown, "ECDSA P-384") {
		t.Errorf("show of a protected key: %s", shown)
	}
	b.good(openssl, "", "pkey", "-in", "plain.key", "-outform", "DER", "-out", "plain.der")
	b.ok("req", "@plain.der", "--dn", "CN=x")
}

func TestStrongSwanTakesWhatIsMade(t *testing.T) {
	for _, kind := range someKinds {
		t.Run(kind, func(t *testing.T) {
			b := outside(t, kind)
			swan := b.other("pki", "strongswan-pki")
			verify := []string{"--verify", "--cacert", "root/ca.pem", "--cacert", "mid/ca.pem", "--crl", "root/ca.crl", "--crl", "mid/ca.crl"}
			b.good(swan, "certificate trusted", append(verify, "--in", "good.pem")...)
			b.good(swan, "lifetimes valid", append(verify, "--in", "good.pem")...)
			b.bad(swan, "revoked", append(verify, "--in", "lost.pem")...)
			b.good(swan, `subject: "C=CH, O=Weir, CN=good"`, "--print", "--type", "x509", "--in", "good.pem")
			b.good(swan, "altNames: good.plant.example", "--print", "--type", "x509", "--in", "good.pem")
			b.good(swan, "flags: clientAuth", "--print", "--type", "x509", "--in", "good.pem")
			b.good(swan, "pathlen: 0", "--print", "--type", "x509", "--in", "mid/ca.pem")
			b.good(swan, "key compromise", "--print", "--type", "crl", "--in", "mid/ca.crl")
			// Its key id is the one that we tell.
			out := b.good(swan, "keyid:", "--print", "--type", "priv", "--in", "good.key")
			_, id, _ := strings.Cut(out, "keyid:")
			id, _, _ = strings.Cut(strings.TrimSpace(id), "\n")
			if shown, _ := b.ok("show", "@good.key"); !strings.Contains(shown, strings.ReplaceAll(strings.TrimSpace(id), ":", "")) {
				t.Errorf("strongSwan has the key id %s, and show says\n%s", id, shown)
			}
		})
	}
}

func TestWhatStrongSwanMakesIsTaken(t *testing.T) {
	b := newBench(t)
	b.now = time.Now()
	swan := b.other("pki", "strongswan-pki")
	save := func(name string, mode os.FileMode, args ...string) {
		t.Helper()
		cmd := exec.Command("pki", args...)
		cmd.Dir = b.dir
		data, err := cmd.Output()
		if err != nil {
			t.Fatalf("pki %q: %v", args, err)
		}
		b.write(name, data, mode)
	}
	for _, kind := range [][]string{{"--type", "rsa", "--size", "2048"}, {"--type", "ecdsa", "--size", "384"}, {"--type", "ed25519"}} {
		save("ca.key", 0o600, append([]string{"--gen", "--outform", "pem"}, kind...)...)
		save("k.key", 0o600, append([]string{"--gen"}, kind...)...) // DER
		save("ca.pem", 0o644, "--self", "--ca", "--in", "ca.key", "--dn", "C=CH, O=strongSwan, CN=CA", "--outform", "pem")
		save("r.req", 0o644, "--req", "--in", "k.key", "--type", "priv", "--dn", "C=CH, O=strongSwan, CN=moon", "--san", "moon.example", "--outform", "pem")
		save("k.pem", 0o644, "--issue", "--in", "r.req", "--type", "pkcs10", "--cacert", "ca.pem", "--cakey", "ca.key", "--flag", "serverAuth",
			"--san", "moon.example", "--crl", "http://moon.example/crl", "--outform", "pem")
		for _, f := range []string{"@ca.key", "@k.key", "@ca.pem", "@r.req", "@k.pem"} {
			b.ok("show", f)
		}
		certs, err := pki.ParseCerts(b.read("k.pem"))
		if err != nil || len(certs) != 1 || certs[0].Subject() != "C=CH, O=strongSwan, CN=moon" {
			t.Fatalf("%v: %v", kind, err)
		}
		b.now = time.Now() // after the authority began
		dir := filepath.Join(b.dir, "ca"+kind[1])
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		b.write("ca"+kind[1]+"/ca.pem", b.read("ca.pem"), 0o644)
		b.write("ca"+kind[1]+"/ca.key", b.read("ca.key"), 0o600)
		b.ok("issue", "@r.req", "--ca", dir, "--take", "all", "--out", "@mine"+kind[1])
		b.good(swan, "certificate trusted", "--verify", "--in", "mine"+kind[1], "--cacert", "ca.pem")
		b.ok("crl", dir, "--revoke", "@k.pem")
		b.bad(swan, "revoked", "--verify", "--in", "k.pem", "--cacert", "ca.pem", "--crl", "ca"+kind[1]+"/ca.crl")
	}
}
