package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/ike/pki/pkitest"
)

const swanctlHead = `
connections {
  plant { version = 2
    remote_addrs = 192.0.2.2
    local { auth = psk
            id = a.example }
    remote { auth = psk
             id = b.example }
    children { net { local_ts = 10.1.0.0/16,2001:db8:1::/48
                     remote_ts = 10.2.0.0/16,2001:db8:2::/48
                     esp_proposals = aes128gcm16
                     start_action = trap }
               lan { mode = pass
                     local_ts = 10.1.0.0/16
                     remote_ts = 10.1.0.0/16
                     start_action = trap } } }
`

const swanctlRest = `
  office { version = 2
    pools = v4
    local { auth = pubkey
            certs = gw.pem
            id = gw.example }
    remote { auth = pubkey
             cacerts = root.pem
             revocation = strict }
    children { net { local_ts = 10.3.0.0/16 } } }
}
secrets {
  ike-plant { id-1 = a.example
              id-2 = b.example
              secret = "correct horse battery staple 42" }
}
pools { v4 { addrs = 10.20.0.0/28
             dns = 10.1.0.1 } }
authorities { plant { cacert = root.pem
                      crl_uris = http://192.0.2.9/a.crl } }
`

// strongSwan's client loads its files as into charon, finds what it has loaded, and takes back what
// the files no longer have.
func TestSwanctlLoadsItsFiles(t *testing.T) {
	swanctl, err := exec.LookPath("swanctl")
	if err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): what it loads is only tested without it")
	}
	wire := &fakeWire{}
	a, path := withControl(t, wire.host("192.0.2.1"), "")
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), a.o.Profile)
	dir := t.TempDir()
	root := pkitest.Root("plant")
	gw := root.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256})
	for _, sub := range []string{"x509", "x509ca", "x509aa", "x509ac", "x509crl", "x509ocsp", "pubkey", "private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(files map[string]string) {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(map[string]string{"x509/gw.pem": string(gw.PEM()), "x509ca/root.pem": string(root.PEM()), "private/gw.key": string(gw.KeyPEM()),
		"swanctl.conf": swanctlHead + swanctlRest})
	run := func(args string, want ...string) {
		t.Helper()
		cmd := exec.Command(swanctl, append(strings.Fields(args), "--uri", "unix://"+path)...)
		cmd.Env = append(os.Environ(), "SWANCTL_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("swanctl %s: %v\n%s", args, err, out)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("swanctl %s lacks %q:\n%s", args, w, out)
			}
		}
	}
	load := "--load-all --noprompt --file " + filepath.Join(dir, "swanctl.conf")
	run(load, "loaded ike secret 'ike-plant'", "loaded private key from", "successfully loaded 1 authorities, 0 unloaded",
		"successfully loaded 1 pools, 0 unloaded", "successfully loaded 2 connections, 0 unloaded")
	run("--list-conns --raw", "list-conn event {plant {local_addrs=[%any] remote_addrs=[192.0.2.2] version=IKEv2 reauth_time=0 rekey_time=14400 unique=UNIQUE_NO "+
		"local-1 {id=a.example class=pre-shared key groups=[] cert_policy=[] certs=[] cacerts=[]} ",
		"remote-1 {class=public key revocation=GOOD groups=[] cert_policy=[] certs=[] cacerts=[C=CH, O=Weir, CN=plant]}")
	run("--list-pols --raw", "plant/net {child=net ike=plant mode=TUNNEL ", "plant/lan {child=lan ike=plant mode=PASS ")
	run("--list-certs --raw", "type=X509 flag=NONE has_privkey=yes", "type=X509 flag=CA data")
	run("--list-authorities --raw", "plant {cacert=C=CH, O=Weir, CN=plant crl_uris=[http://192.0.2.9/a.crl] ocsp_uris=[]}")
	run("--list-pools --raw", "get-pools reply {v4 {base=10.20.0.")
	run("--uninstall --child lan", "uninstall completed successfully")
	run("--install --child lan", "install completed successfully")
	run("--initiate --child net", "initiate completed successfully")
	was := a.numbers()
	run(load, "successfully loaded 2 connections, 0 unloaded")
	run("--flush-certs")
	if got := a.numbers(); got != was || was == "" {
		t.Errorf("after the same was loaded again the SAs are %q, were %q", got, was)
	}
	write(map[string]string{"swanctl.conf": swanctlHead + "}\nsecrets { ike-plant { id-1 = a.example\n id-2 = b.example\n secret = \"correct horse battery staple 42\" } }\n"})
	if err := os.Remove(filepath.Join(dir, "private/gw.key")); err != nil {
		t.Fatal(err)
	}
	run(load, "no authorities found, 1 unloaded", "no pools found, 1 unloaded", "successfully loaded 1 connections, 1 unloaded")
	if got := a.numbers(); got != was {
		t.Errorf("after others were unloaded the SAs are %q, were %q", got, was)
	}
	for command, want := range map[string]string{"get-conns": `conns=["plant"]`, "get-keys": `keys=[]`, "get-authorities": `authorities=[]`, "get-shared": `keys=["ike-plant"]`} {
		a.say(command, nil, want)
	}
}
