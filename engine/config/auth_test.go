package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

var (
	weir  = pkitest.Root("Weir")
	sites = weir.Issue(pkitest.Spec{Name: "Sites", CA: true})
	gw    = sites.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256})
	pump  = sites.Issue(pkitest.Spec{Name: "pump.example"})
)

// authFiles are files of certificates and keys.
var authFiles = map[string][]byte{
	"weir.pem": weir.PEM(), "sites.pem": sites.PEM(), "gw.pem": append(gw.PEM(), sites.PEM()...), "alone.pem": gw.PEM(),
	"gw.key": gw.KeyPEM(), "gw.pub": gw.PublicPEM(), "pump.pem": pump.PEM(), "pump.pub": pump.PublicPEM(), "pump.key": pump.KeyPEM(),
	"upside.pem": append(sites.PEM(), gw.PEM()...),
	"old.pem":    sites.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256, Until: time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)}).PEM(),
	"soon.pem":   sites.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256, Until: time.Now().Add(10 * 24 * time.Hour)}).PEM(),
	"later.pem":  sites.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256, From: time.Now().Add(24 * time.Hour)}).PEM(),
	"nothing":    []byte("nothing"),
}

// withAuthFiles lets a loader see them, beside the others that it sees.
func withAuthFiles(l *loader, others func(string, int) ([]byte, error)) *loader {
	l.readPublic = func(path string, most int) ([]byte, error) {
		if b, ok := authFiles[filepath.Base(path)]; ok {
			return b, nil
		}
		if others != nil {
			return others(path, most)
		}
		return nil, fs.ErrNotExist
	}
	l.readKey = func(path string, _ int) ([]byte, error) {
		b, ok := authFiles[filepath.Base(path)]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return append([]byte(nil), b...), nil // it is wiped
	}
	return l
}

func init() {
	type keyTest = struct {
		text string
		want any
		get  func(c *Config) any
	}
	keyTests["connections.NAME.send_cert"] = keyTest{`"always"`, ike.SendCertAlways, func(c *Config) any { return c.IKE.Conns[0].SendCert }}
	keyTests["connections.NAME.send_certreq"] = keyTest{`false`, true, func(c *Config) any { return c.IKE.Conns[0].NoCertReq }}
	ourCert, psk := []string{`certs = ["gw.pem"]`, `key = "gw.key"`}, []string{`auth = "psk"`}
	for i := range ike.MaxRounds {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		ours := func(c *Config) *ike.Auth { return &c.IKE.Conns[0].LocalAuth[i] }
		theirs := func(c *Config) *ike.Auth { return &c.IKE.Conns[0].RemoteAuth[i] }
		local := func(key, text string, want any, get func(c *Config) any, more ...string) {
			name := "connections.NAME.local" + suffix + "." + key
			keyTests[name] = keyTest{text, want, get}
			alongside[name] = more
		}
		remote := func(key, text string, want any, get func(c *Config) any, more ...string) {
			name := "connections.NAME.remote" + suffix + "." + key
			keyTests[name] = keyTest{text, want, get}
			alongside[name] = more
		}
		local("auth", `"ecdsa-sha256-sha384"`, "{ECDSA false [sha256 sha384] []}", func(c *Config) any { return fmt.Sprint(ours(c).Scheme) }, ourCert...)
		local("certs", `["gw.pem"]`, "C=CH, O=Weir, CN=gw.example/C=CH, O=Weir, CN=Sites", func(c *Config) any {
			return ours(c).Certs[0].Subject() + "/" + ours(c).Certs[1].Subject()
		}, ourCert[1])
		local("key", `"pump.key"`, true, func(c *Config) any { return ours(c).Key.Public().Equal(pump.Key.Public()) }, `certs = ["pump.pem", "sites.pem"]`)
		local("pubkeys", `["gw.pub"]`, "pubkey 0", func(c *Config) any {
			return fmt.Sprint(map[ike.AuthKind]string{ike.AuthKindPubkey: "pubkey"}[ours(c).Kind], " ", len(ours(c).Certs))
		}, ourCert[1])
		remote("auth", `"rsa/pss"`, "{RSA true [] []}", func(c *Config) any { return fmt.Sprint(theirs(c).Scheme) })
		remote("cacerts", `["weir.pem", "sites.pem"]`, "C=CH, O=Weir, CN=Sites", func(c *Config) any { return theirs(c).Anchors[1].Subject() })
		remote("certs", `["pump.pem"]`, "C=CH, O=Weir, CN=pump.example", func(c *Config) any { return theirs(c).Pinned[0].Subject() })
		remote("pubkeys", `["gw.pub", "pump.pub"]`, "ECDSA P-256", func(c *Config) any { return theirs(c).Keys[0].String() }, `id = "gw.example"`)
		remote("revocation", `"strict"`, pki.RevokeStrict, func(c *Config) any { return theirs(c).Revocation }, `auth = "pubkey"`)
		if i > 0 {
			local("id", `"c.example"`, "c.example", func(c *Config) any { return ours(c).ID.String() }, psk...)
			remote("id", `"C=CH, O=Weir, CN=*"`, "C=CH, O=Weir, CN=*", func(c *Config) any { return theirs(c).ID.String() }, `auth = "pubkey"`)
		}
	}
}

// laterRounds are the sections of rounds that the key of that name needs in its document.
func laterRounds(name string) (paths []string) {
	for _, side := range []string{"local", "remote"} {
		for i := 1; i < ike.MaxRounds; i++ {
			if strings.HasPrefix(name, fmt.Sprintf("connections.NAME.%s-%d.", side, i+1)) {
				for k := 1; k <= i; k++ {
					paths = append(paths, fmt.Sprintf("connections.NAME.%s-%d", side, k+1))
				}
			}
		}
	}
	return paths
}

const authBase = `
[connections.a]
remote_addrs = ["198.51.100.7"]
[connections.a.children.c]
remote_ts = ["10.2.0.0/24"]
`

func loadAuth(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return withAuthFiles(newLoader("test.toml", noSecretFiles), nil).load([]byte(text))
}

// A connection by certificates needs no secret. Our own comes with what leads to the CA, and its
// time is one that has passed.
func TestCertificatesInsteadOfSecrets(t *testing.T) {
	c, err := loadAuth(t, authBase+`
[authorities.weir]
cacert = "weir.pem"
[connections.a.local]
certs = ["alone.pem", "sites.pem", "weir.pem"]
key = "gw.key"
[connections.a.remote]
auth = "pubkey"
id = "pump.example"
`)
	if err != nil {
		t.Fatal(err)
	}
	a := c.IKE.Conns[0]
	if len(a.LocalAuth) != 1 || a.LocalAuth[0].Kind != ike.AuthKindPubkey || len(a.LocalAuth[0].Certs) != 2 || a.LocalID != (ike.ID{}) {
		t.Errorf("our side is %+v, want a key with its certificate and that of one CA, not of the root", a.LocalAuth)
	}
	if len(a.RemoteAuth) != 1 || a.RemoteAuth[0].Kind != ike.AuthKindPubkey || a.RemoteID.Data != "pump.example" {
		t.Errorf("the peer's side is %+v", a.RemoteAuth)
	}
	if !c.IKE.Floor.Equal(pkitest.From) {
		t.Errorf("the time that has passed is %v, want %v", c.IKE.Floor, pkitest.From)
	}
	if len(c.Warnings()) != 0 {
		t.Errorf("warnings: %v", c.Warnings())
	}
	if s := fmt.Sprintf("%v %+v", a.LocalAuth, a.LocalAuth[0]); strings.Contains(s, "BEGIN") || strings.Contains(s, "{{") && strings.Contains(s, "D:") {
		t.Errorf("a private key shows in %s", s)
	}
}

func TestAuthenticationProblems(t *testing.T) {
	local := func(s string) string {
		return authBase + "[authorities.w]\ncacert = \"weir.pem\"\n[connections.a.remote]\nauth = \"pubkey\"\nid = \"x.example\"\n[connections.a.local]\n" + s
	}
	remote := func(s string) string {
		return authBase + "[connections.a.local]\ncerts = [\"gw.pem\"]\nkey = \"gw.key\"\n[connections.a.remote]\n" + s
	}
	for _, c := range []struct {
		text, want string
		warning    bool
	}{
		{local(`auth = "pubkey"`), "no private key is named in", false},
		{local("auth = \"psk\"\nkey = \"gw.key\""), "key has no meaning with auth \"psk\"", false},
		{local(`auth = "eap"`), `auth "eap" is not known`, false},
		{local(`auth = "pubkey-md5"`), `auth "pubkey-md5" is not known`, false},
		{local(`auth = "psk-sha256"`), `auth "psk-sha256" is not known`, false},
		{local("certs = [\"gw.pem\"]\nkey = \"pump.key\""), "the private key (Ed25519) does not belong to the certificate", false},
		{local("certs = [\"upside.pem\"]\nkey = \"gw.key\""), "put our own certificate first", false},
		{local("certs = [\"nothing\"]\nkey = \"gw.key\""), "nothing holds no certificate", false},
		{local("certs = [\"absent.pem\"]\nkey = \"gw.key\""), "a relative name starts in the folder", false},
		{local("certs = [\"gw.pem\"]\nkey = \"nothing\""), "no usable private key", false},
		{local("certs = [\"gw.pem\"]\nkey = \"absent\""), "cannot read the file that key names", false},
		{local("pubkeys = [\"pump.pub\"]\nkey = \"gw.key\""), "does not belong to the public key", false},
		{local("certs = [\"gw.pem\"]\nkey = \"gw.key\"\nid = \"other.example\""), "our certificate does not prove the id other.example", false},
		{local("certs = [\"gw.pem\"]\nkey = \"gw.key\"\nauth = \"rsa\""), "of another kind (ECDSA P-256)", false},
		{local("certs = [\"old.pem\"]\nkey = \"gw.key\""), "ended on 2021-01-01", true},
		{local("certs = [\"soon.pem\"]\nkey = \"gw.key\""), "get a new one in time", true},
		{local("certs = [\"later.pem\"]\nkey = \"gw.key\""), "is not valid before", true},
		{local("certs = [\"gw.pem\"]\nkey = \"gw.key\"\n[connections.a.local-3]\nauth = \"pubkey\"\nkey = \"gw.key\""), "the section before local-3 is missing", false},
		{remote(`auth = "pubkey"`), "nothing says whom the peer's certificate may come from", false},
		{remote(`cacerts = ["pump.pem"]`), "is no certificate of a CA", false},
		{remote(`pubkeys = ["pump.pub"]`), "could claim any name", false},
		{remote("id = \"*.example\"\npubkeys = [\"pump.pub\"]"), "could claim any name", false},
		{remote("cacerts = [\"weir.pem\"]\nrevocation = \"maybe\""), `revocation "maybe" is not known`, false},
		{remote("auth = \"psk\"\ncacerts = [\"weir.pem\"]"), "cacerts has no meaning", false},
		{remote(`auth = "psk"`), "no secret fits connection a", false},
		{strings.Replace(remote(`cacerts = ["weir.pem"]`), "remote_ts", "start_action = \"start\"\nremote_ts", 1), "can pose as the peer", true},
	} {
		cfg, err := loadAuth(t, c.text)
		got := fmt.Sprint(err)
		if c.warning {
			if err != nil {
				t.Errorf("%s\nis refused: %v", c.text, err)
				continue
			}
			got = fmt.Sprint(cfg.Warnings())
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s\ngives %q, want %q", c.text, got, c.want)
		}
	}
}

// The file of a private key that others can read is refused, and that of a certificate that
// others can change.
func TestFilesOfKeysAreOurs(t *testing.T) {
	dir := t.TempDir()
	for name, data := range authFiles {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "postern.toml")
	text := authBase + "[connections.a.local]\ncerts = [\"gw.pem\"]\nkey = \"gw.key\"\n[connections.a.remote]\ncacerts = [\"weir.pem\"]\nid = \"pump.example\"\n"
	if _, err := Parse(file, []byte(text), ike.AESFirst); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mode os.FileMode
		want string
	}{"gw.key": {0o640, "chmod 600"}, "weir.pem": {0o666, "chmod go-w"}} {
		if err := os.Chmod(filepath.Join(dir, name), c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file, []byte(text), ike.AESFirst); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with mode %o: %v", name, c.mode, err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "gw.key"), make([]byte, maxKeyFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(file, []byte(text), ike.AESFirst); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a large file as a key: %v", err)
	}
}
