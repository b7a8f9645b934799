package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDistinguishedNames(t *testing.T) {
	for _, c := range []struct{ in, out, hex string }{
		{"C=CH, O=strongSwan, CN=moon", "", "3031310b3009060355040613024348 311330110603550 40a130a7374726f6e675377616e 310d300b060355040313046d6f6f6e"},
		{"/C=CH/O=strongSwan/CN=moon", "C=CH, O=strongSwan, CN=moon", ""},
		{"c=CH,o=x,cn=a b", "C=CH, O=x, CN=a b", ""},
		{`O="Acme, Inc.", CN=x`, "", ""},
		{`O=Acme\, Inc., CN=x`, `O="Acme, Inc.", CN=x`, ""},
		{`CN="a \"b\" \\ c"`, "", ""},
		{"CN=http://a/b?c=d", "", ""},
		{"emailAddress=joe@example.org", "E=joe@example.org", ""},
		{"DC=org, DC=example, UID=7", "", ""},
		{"2.5.4.3=x", "CN=x", ""},
		{"1.2.840.113549.1.9.7=x, 2.999.3=y", "", ""},
		{"CN=Zürich", "", ""},
		{"serialNumber=12", "SN=12", ""},
		{"2.5.4.45=#03020640", "", ""},
		{"CN=", "", ""},
		{`CN=" x "`, "", ""},
	} {
		der, wild, err := ParseDN(c.in)
		if err != nil || wild {
			t.Errorf("%s: wild %v, error %v", c.in, wild, err)
			continue
		}
		if c.hex != "" && !bytes.Equal(der, unhex(t, c.hex)) {
			t.Errorf("%s: %x", c.in, der)
		}
		out := c.out
		if out == "" {
			out = c.in
		}
		if got := FormatDN(der); got != out {
			t.Errorf("%s: written as %s instead of %s", c.in, got, out)
		}
		again, _, err := ParseDN(FormatDN(der))
		if err != nil || !bytes.Equal(again, der) {
			t.Errorf("%s: does not come back: %v", c.in, err)
		}
	}
	for _, bad := range []string{"", "/", "moon", "CN", "XY=1", "CN=a,", "CN=a,,O=b", `CN="a`, `CN="a"b`, "3.1=x", "1.40=x", "2.5.4.99999999999=x", "CN=#zz", "CN=#0c05", "CN=\xff", "CN=" + strings.Repeat("x", maxDNOctets)} {
		if der, _, err := ParseDN(bad); err == nil {
			t.Errorf("%.40q is taken, as %s", bad, FormatDN(der))
		}
	}
	for _, bad := range [][]byte{nil, {0x30}, {0x30, 2, 0x31, 0}, {0x30, 0, 0}, {4, 0}} {
		if got := FormatDN(bad); got != "(not a distinguished name)" {
			t.Errorf("%x is written as %s", bad, got)
		}
	}
	der, _, _ := ParseDN("CN=a\x1b[31m\nb\u202e")
	if got := FormatDN(der); got != "CN=#0c0b611b5b33316d0a62e280ae" {
		t.Errorf("control characters reach the log, or are lost: %q", got)
	}
}

func TestDNMatching(t *testing.T) {
	parse := func(s string) []byte {
		der, _, err := ParseDN(s)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for _, c := range []struct {
		pattern, name string
		match, equal  bool
	}{
		{"C=CH, O=x, CN=moon", "C=CH, O=x, CN=moon", true, true},
		{"C=ch, O=X, CN=Moon", "C=CH, O=x, CN=moon", true, true},
		{"O=a  b", "O= a b", true, true},
		{"C=CH, O=x, CN=*", "C=CH, O=x, CN=moon", true, false},
		{"C=*, O=*, CN=*", "C=CH, O=x, CN=", true, false},
		{"C=CH, O=x, CN=m*", "C=CH, O=x, CN=moon", false, false},
		{"C=CH, CN=*", "C=CH, O=x, CN=moon", false, false},
		{"C=CH, O=x, CN=*", "C=CH, O=x", false, false},
		{"O=x, C=CH", "C=CH, O=x", false, false},
		{"C=CH, O=x, OU=*", "C=CH, O=x, CN=moon", false, false},
		{"CN=moon", "CN=*", false, false}, // the star of the other side means nothing
		{"CN=*", "CN=*", true, true},
		{"CN=é", "CN=É", false, false},
		{"CN=K", "CN=\u212a", false, false}, // the Kelvin sign is no K
	} {
		if got := MatchDN(parse(c.pattern), parse(c.name)); got != c.match {
			t.Errorf("%s against %s: matches %v", c.pattern, c.name, got)
		}
		if got := EqualDN(parse(c.pattern), parse(c.name)); got != c.equal {
			t.Errorf("%s and %s: equal %v", c.pattern, c.name, got)
		}
	}
	if _, wild, _ := ParseDN("C=CH, CN=*"); !wild {
		t.Error("a star is not seen")
	}
	// One string in several types.
	utf := parse("CN=moon")
	of := func(tag byte, s string) []byte {
		out := bytes.Clone(utf[:len(utf)-6])
		out = append(append(out, tag, byte(len(s))), s...)
		for _, i := range []int{1, 3, 5} {
			out[i] += byte(len(s) - 4)
		}
		return out
	}
	for name, der := range map[string][]byte{"UTF8String": of(12, "MOON"), "T61String": of(20, "moon"), "BMPString": of(30, "\x00m\x00o\x00o\x00n"), "IA5String": of(22, "moon")} {
		if !EqualDN(utf, der) || FormatDN(der) != "CN=moon" && name != "UTF8String" {
			t.Errorf("%s: %s", name, FormatDN(der))
		}
	}
	if EqualDN(nil, nil) || MatchDN(utf, utf[:4]) {
		t.Error("what is no name matches")
	}
}

func TestIdentitiesAgainstCertificates(t *testing.T) {
	c := issue(t, "moon", edKey("moon"), nil, func(c *x509.Certificate) {
		c.DNSNames = []string{"Moon.example.org", "*.wild.example.org"}
		c.EmailAddresses = []string{"Joe@example.org"}
		c.IPAddresses = []net.IP{{192, 0, 2, 1}, net.ParseIP("2001:db8::1")}
	}).cert
	dn := func(s string) []byte {
		der, _, err := ParseDN(s)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for _, k := range []struct {
		typ  uint8
		data []byte
		ok   bool
	}{
		{idFQDN, []byte("moon.EXAMPLE.org"), true},
		{idFQDN, []byte("a.wild.example.org"), false},
		{idFQDN, []byte("example.org"), false},
		{idFQDN, []byte("moon"), false}, // only the common name
		{idFQDN, []byte("moon.example.org\x00"), false},
		{idFQDN, nil, false},
		{idFQDN, []byte("Joe@example.org"), false}, // of another type
		{idRFC822, []byte("joe@EXAMPLE.org"), true},
		{idRFC822, []byte("jim@example.org"), false},
		{idIPv4, []byte{192, 0, 2, 1}, true},
		{idIPv4, []byte{192, 0, 2, 2}, false},
		{idIPv4, []byte{192, 0, 2}, false},
		{idIPv6, net.ParseIP("2001:db8::1"), true},
		{idIPv6, []byte{192, 0, 2, 1}, false},
		{idDN, dn("C=CH, O=plant, CN=moon"), true},
		{idDN, dn("C=ch, O=Plant, CN=MOON"), true},
		{idDN, dn("C=CH, O=plant, CN=*"), false}, // the peer's star means nothing
		{idDN, dn("C=CH, O=plant"), false},
		{idDN, []byte{0x30, 0}, false},
		{idDN, []byte{1, 2}, false},
		{11, []byte("moon.example.org"), false},
	} {
		if err := c.Confirms(k.typ, k.data); (err == nil) != k.ok {
			t.Errorf("identity of type %d, %q: %v", k.typ, k.data, err)
		}
	}
	err := c.Confirms(idFQDN, []byte("sun.example.org"))
	if want := `certificate "C=CH, O=plant, CN=moon" does not name "sun.example.org", but DNS:Moon.example.org, DNS:*.wild.example.org, email:Joe@example.org, IP:192.0.2.1, IP:2001:db8::1`; err == nil || err.Error() != want {
		t.Errorf("the refusal reads %v", err)
	}
	if typ, data := c.DefaultID(); typ != idDN || !bytes.Equal(data, c.RawSubject()) {
		t.Errorf("the identity by default: type %d", typ)
	}
	if got := c.SubjectRFC4514(); got != "CN=moon,O=plant,C=CH" {
		t.Errorf("RFC 4514: %s", got)
	}
	nameless := issue(t, "x", edKey("x"), nil, func(c *x509.Certificate) { c.Subject = pkix.Name{} }).cert
	if typ, data := nameless.DefaultID(); typ != idFQDN || string(data) != "x.example.org" {
		t.Errorf("without a subject the identity is of type %d: %q", typ, data)
	}
	if nameless.Confirms(idDN, []byte{0x30, 0}) == nil {
		t.Error("an empty subject confirms an empty name")
	}
	// An RDN of several attributes.
	multi := issue(t, "x", edKey("x"), nil, func(c *x509.Certificate) {
		rdn := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 6}, Value: "CH"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "x"}}}
		c.RawSubject, _ = asn1.Marshal(rdn)
	}).cert
	if got := multi.Subject(); got != "CN=x + C=CH" && got != "C=CH + CN=x" {
		t.Errorf("an RDN of several attributes: %s", got)
	}
	if EqualDN(multi.RawSubject(), dn("C=CH, CN=x")) {
		t.Error("one RDN of two attributes is taken for two RDNs")
	}
}

// TestCertificatesOfOthers lets OpenSSL and strongSwan's pki make a CA, an end entity and a CRL.
func TestCertificatesOfOthers(t *testing.T) {
	run := func(t *testing.T, dir, out string, args ...string) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		var stderr strings.Builder
		cmd.Stderr = &stderr
		b, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, stderr.String())
		}
		if out != "" {
			if err := os.WriteFile(filepath.Join(dir, out), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// RSA keys are at hand: making them takes long.
	keys := func(t *testing.T, dir string, rsa bool, gen ...string) {
		t.Helper()
		for out, file := range map[string]string{"ca.key": "rsa3072.pem", "leaf.key": "rsa2048.pem"} {
			if !rsa {
				run(t, dir, out, gen...)
			} else if err := os.WriteFile(filepath.Join(dir, out), read(t, file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(t *testing.T, dir string, crl bool) {
		t.Helper()
		load := func(name string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		ca, err := ParseCerts(load("ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ParseCerts(load("leaf.crt"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := ParseKey(load("leaf.key"), nil)
		if err != nil || !key.Public().Equal(leaf[0].key) {
			t.Fatalf("the key does not fit the certificate: %v", err)
		}
		der, _, err := ParseDN("C=CH, O=plant, CN=moon")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(der, leaf[0].RawSubject()) && !EqualDN(der, leaf[0].RawSubject()) {
			t.Errorf("the subject is %s", leaf[0].Subject())
		}
		a := Authority{Cert: ca[0]}
		r := &Request{Now: leaf[0].NotBefore().Add(1e9), Certs: [][]byte{leaf[0].Raw()}, IDType: idFQDN, IDData: []byte("moon.example.org")}
		if _, err := mustTrust(t, []Authority{a}).Verify(r); err != nil {
			t.Errorf("refused: %v", err)
		}
		if !crl {
			return
		}
		a.CRLs = []*CRL{mustCRL(t, load("crl"))}
		r.Now = a.CRLs[0].ThisUpdate().Add(1e9)
		if _, err := mustTrust(t, []Authority{a}).Verify(r); err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("the CRL's entry is not honoured: %v", err)
		}
	}
	t.Run("OpenSSL", func(t *testing.T) {
		need(t, "openssl")
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "c"), []byte("[req]\ndistinguished_name=d\n[d]\n[ca]\nbasicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"+
			"[leaf]\nsubjectAltName=DNS:moon.example.org\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,1.3.6.1.5.5.7.3.17\nauthorityKeyIdentifier=keyid\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, alg := range [][]string{{"RSA"}, {"EC", "ec_paramgen_curve:P-384"}, {"ED25519"}} {
			gen := []string{"openssl", "genpkey", "-algorithm", alg[0]}
			if len(alg) > 1 {
				gen = append(gen, "-pkeyopt", alg[1])
			}
			keys(t, dir, alg[0] == "RSA", gen...)
			run(t, dir, "ca.crt", "openssl", "req", "-x509", "-config", "c", "-extensions", "ca", "-key", "ca.key", "-subj", "/C=CH/O=plant/CN=CA", "-days", "9")
			run(t, dir, "req", "openssl", "req", "-new", "-config", "c", "-key", "leaf.key", "-subj", "/C=CH/O=plant/CN=moon")
			run(t, dir, "leaf.crt", "openssl", "x509", "-req", "-in", "req", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "c", "-extensions", "leaf", "-days", "3")
			check(t, dir, false)
		}
	})
	t.Run("pki", func(t *testing.T) {
		need(t, "pki")
		for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
			dir := t.TempDir()
			gen := []string{"pki", "--gen", "--type", kind, "--outform", "pem"}
			keys(t, dir, kind == "rsa", gen...)
			run(t, dir, "ca.crt", "pki", "--self", "--ca", "--in", "ca.key", "--type", "priv", "--dn", "C=CH, O=plant, CN=CA", "--outform", "pem")
			run(t, dir, "leaf.pub", "pki", "--pub", "--in", "leaf.key", "--type", "priv")
			run(t, dir, "leaf.crt", "pki", "--issue", "--in", "leaf.pub", "--cacert", "ca.crt", "--cakey", "ca.key", "--dn", "C=CH, O=plant, CN=moon", "--san", "moon.example.org", "--flag", "serverAuth", "--flag", "ikeIntermediate")
			run(t, dir, "crl", "pki", "--signcrl", "--cacert", "ca.crt", "--cakey", "ca.key", "--reason", "superseded", "--cert", "leaf.crt")
			check(t, dir, true)
		}
	})
}
