//go:build linux

package e2e

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pkiFolder runs 'postern pki' in a folder.
type pkiFolder struct {
	t        *testing.T
	bin, dir string
}

// do runs a command that has to succeed; words that begin with @ are names in the folder.
func (f pkiFolder) do(args ...string) {
	f.t.Helper()
	args = append([]string{"pki"}, args...)
	for i, w := range args {
		if name, ok := strings.CutPrefix(w, "@"); ok {
			args[i] = filepath.Join(f.dir, name)
		}
	}
	if out, err := command(f.bin, args...); err != nil {
		f.t.Fatalf("postern %q: %v\n%s", args, err, out)
	}
}

func (f pkiFolder) read(name string) string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// credential reads a certificate, and its key, in the form of the tests' own ones.
func (f pkiFolder) credential(cert, key string, issuer *credential) *credential {
	f.t.Helper()
	block, _ := pem.Decode([]byte(f.read(cert)))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.t.Fatal(err)
	}
	out := &credential{t: f.t, name: strings.ReplaceAll(c.Subject.CommonName, " ", "-"), cert: c, issuer: issuer}
	block, _ = pem.Decode([]byte(f.read(key)))
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		f.t.Fatal(err)
	}
	out.key = k.(crypto.Signer)
	return out
}

// pkiPair makes, with 'postern pki', a root, an authority below it for each gateway, and a certificate
// for each, and configurations that want revocation lists of all of them.
func pkiPair(s *site, kind string) (f pkiFolder, ca, cb spec) {
	s.t.Helper()
	f = pkiFolder{s.t, posternBinary(s.t), filepath.Join(s.dir, "pki")}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	authority := kind
	if kind == "rsa2048" {
		authority = "p256" // RSA keys take a while to make
	}
	f.do("ca", "@root", "--dn", "C=CH, O=Weir, CN=Root", "--type", authority)
	root := f.credential("root/ca.pem", "root/ca.key", nil)
	var ends [2]*credential
	for i, n := range []string{"a", "b"} {
		f.do("ca", "@mid-"+n, "--parent", "@root", "--dn", "C=CH, O=Weir, CN=Middle "+n, "--type", authority)
		f.do("key", "@"+n+".key", "--type", kind)
		f.do("req", "@"+n+".key", "--dn", "C=CH, O=Weir, CN="+n, "--san", n+".example", "--out", "@"+n+".req")
		f.do("issue", "@"+n+".req", "--ca", "@mid-"+n, "--take", "all", "--flag", "ipsecIKE", "--out", "@"+n+".pem")
		ends[i] = f.credential(n+".pem", n+".key", f.credential("mid-"+n+"/ca.pem", "mid-"+n+"/ca.key", root))
	}
	f.do("crl", "@root")
	f.do("crl", "@mid-a")
	f.do("crl", "@mid-b")
	ca, cb = pairSpecs(false, false)
	for i, c := range []*spec{&ca, &cb} {
		c.conns[0].localAuth = []round{{auth: "pubkey", cert: ends[i]}}
		c.conns[0].remoteAuth = []round{{auth: "pubkey", revocation: "strict"}}
		c.certs = credentials{[]*credential{root}, []string{f.read("root/crl.pem"), f.read("mid-a/crl.pem"), f.read("mid-b/crl.pem")}}
	}
	return f, ca, cb
}

// What 'postern pki' makes is what charon authenticates with, over an authority between the root
// and the gateways, and its revocation lists are believed.
func TestPKIForCharon(t *testing.T) {
	needCharon(t)
	for _, kind := range []string{"p256", "rsa2048", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f, ca, cb := pkiPair(s, kind)
			a, b := startPair(s, pair{"charon", "charon"}, ca, cb)
			mustInitiate(t, "net", a, b)
			if len(matching(b.log(), "certificate status is good")) < 2 {
				t.Errorf("the responder did not look into the lists%s", logs(b))
			}
			if err := a.terminate(""); err != nil {
				t.Fatal(err)
			}
			// With the initiator's certificate revoked it gets no tunnel any more.
			f.do("crl", "@mid-a", "--revoke", "@a.pem", "--reason", "key-compromise")
			cb.certs.crls[1] = f.read("mid-a/crl.pem")
			b.stop()
			b = start(s, "charon", 'b', cb)
			if err := a.initiate("net"); err == nil {
				t.Errorf("a revoked certificate is taken%s", logs(a, b))
			}
			if len(matching(b.log(), "certificate was revoked", "key compromise")) == 0 {
				t.Errorf("the responder does not say that it was revoked%s", logs(b))
			}
		})
	}
}

// The same with postern on one side and charon on the other.
func TestPKIBetweenPosternAndCharon(t *testing.T) {
	needCharon(t)
	for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			_, ca, cb := pkiPair(s, "p256")
			for kind, c := range map[string]*spec{p.a: &ca, p.b: &cb} {
				if kind == "postern" {
					// It takes lists of authorities that it has in its configuration; charon is strict.
					c.certs.crls, c.conns[0].remoteAuth[0].revocation = c.certs.crls[:1], ""
				}
			}
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
		})
	}
}
