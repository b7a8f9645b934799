package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki/pkitest"
)

// certified starts an engine with certificates and bare keys, and returns its control socket.
func certified(t *testing.T) (path string, gw, root *pkitest.Cert) {
	t.Helper()
	dir := t.TempDir()
	root = pkitest.Root("plant")
	sites := root.Issue(pkitest.Spec{Name: "sites", CA: true})
	gw = sites.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256})
	bare := root.Issue(pkitest.Spec{Name: "bare.example"})
	for name, data := range map[string][]byte{
		"gw.pem": append(gw.PEM(), sites.PEM()...), "gw.key": gw.KeyPEM(), "root.pem": root.PEM(),
		"bare.key": bare.KeyPEM(), "pump.pub": sites.Issue(pkitest.Spec{Name: "pump.example"}).PublicPEM(),
		"test.toml": []byte(`
[authorities.plant]
cacert = "root.pem"
[connections.a]
remote_addrs = ["192.0.2.2"]
[connections.a.local]
certs = ["gw.pem"]
key = "gw.key"
[connections.a.remote]
auth = "pubkey"
id = "x.example"
cacerts = ["root.pem"]
[connections.a.children.net]
remote_ts = ["10.2.0.0/24"]
[connections.b]
remote_addrs = ["192.0.2.3"]
[connections.b.local]
id = "bare.example"
key = "bare.key"
[connections.b.remote]
id = "pump.example"
pubkeys = ["pump.pub"]
[connections.b.children.net]
remote_ts = ["10.3.0.0/24"]
`)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "test.toml"), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Daemon.Control = filepath.Join(dir, "vici")
	startEngine(t, (&fakeWire{}).host("192.0.2.1"), cfg, board.Tiny)
	return cfg.Daemon.Control, gw, root
}

// Each certificate and bare key is there once, with whether the private key is ours.
func TestCertificatesAreListed(t *testing.T) {
	path, gw, root := certified(t)
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	c.Ours = true
	list := func(keys ...string) (got []string, all []*control.Message) {
		req := new(control.Message)
		for i := 0; i < len(keys); i += 2 {
			req.Set(keys[i], keys[i+1])
		}
		resp, err := c.CallStream(control.CmdListCerts, control.EvListCert, req, func(m *control.Message) error {
			_, cn, _ := strings.Cut(m.Get("subject"), "CN=")
			got = append(got, strings.TrimSpace(strings.Join([]string{m.Get("type"), m.Get("flag"), m.Get("has_privkey"), cn}, " ")))
			all = append(all, m)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Get(control.KeyErrmsg) != "" {
			got = []string{resp.Get(control.KeyErrmsg)}
		}
		return got, all
	}
	ours, sites, plant := "X509 NONE yes gw.example", "X509 CA  sites", "X509 CA  plant"
	for _, x := range []struct {
		keys []string
		want []string
	}{
		{nil, []string{"PUBKEY  yes", "PUBKEY", ours, sites, plant}},
		{[]string{"type", "ANY", "flag", "ANY"}, []string{"PUBKEY  yes", "PUBKEY", ours, sites, plant}},
		{[]string{"type", "X509"}, []string{ours, sites, plant}},
		{[]string{"type", "X509", "flag", "CA"}, []string{sites, plant}},
		{[]string{"type", "PUBKEY"}, []string{"PUBKEY  yes", "PUBKEY"}},
		{[]string{"type", "X509_CRL"}, nil},
		{[]string{"subject", "gw.example"}, []string{ours}},
		{[]string{"subject", "C=CH, O=Weir, CN=plant"}, []string{plant}},
		{[]string{"subject", "nobody.example"}, nil},
	} {
		if got, _ := list(x.keys...); !slices.Equal(got, x.want) {
			t.Errorf("%q lists %q, want %q", x.keys, got, x.want)
		}
	}
	_, all := list("type", "X509")
	if all[0].Get("data") != string(gw.Raw()) || all[2].Get("data") != string(root.Raw()) {
		t.Error("data is not the certificate")
	}
	if a, b := all[0].Get("not-before"), all[0].Get("not-after"); a != "2020-01-01T00:00:00Z" || b != "2040-01-01T00:00:00Z" {
		t.Errorf("it is valid from %q to %q", a, b)
	}
}

func TestSwanctlListsCertificates(t *testing.T) {
	swanctl, err := exec.LookPath("swanctl")
	if err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): the list is only tested without it")
	}
	path, _, _ := certified(t)
	b, err := exec.Command(swanctl, "--list-certs", "--uri", "unix://"+path).CombinedOutput()
	out := string(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"List of X.509 End Entity Certificates", "List of X.509 CA Certificates", `"C=CH, O=Weir, CN=gw.example"`, "ECDSA 256 bits, has private key",
		`"C=CH, O=Weir, CN=plant"`, "List of Raw Public Keys"} {
		if !strings.Contains(out, want) {
			t.Errorf("swanctl --list-certs lacks %q:\n%s", want, out)
		}
	}
}
