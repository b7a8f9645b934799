//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runSwanctlConf is a gateway's swanctl.conf as people write them: a template, an include, a
// certificate, and a private key that is encrypted.
const runSwanctlConf = `
defaults {
  version = 2
  proposals = aes128gcm16-prfsha256-x25519
  local {
    auth = pubkey
    certs = gw.pem
  }
  remote { auth = pubkey }
}
connections {
  site : defaults {
    remote_addrs = %s
    local { id = %s }
    remote { id = %s }
    include conf.d/*.conf
  }
}
secrets { private-gw { file = gw.pem
                       secret = thistle } }
`

// TestRunSwanctl is a device without strongSwan's client: one daemon has nothing but a directory with a
// swanctl.conf and finds everything there by itself, the other, started without one, is given
// its directory by our own command. charon's clients find the first where they look for charon.
func TestRunSwanctl(t *testing.T) {
	need(t, "swanctl", "openssl")
	t.Parallel()
	s := newSite(t)
	root := newRoot(t, "root", ecdsa256)
	dir := func(side, me, other, peer, myNet, otherNet string) string {
		d := filepath.Join(s.dir, "swanctl-"+side)
		c := root.issue(certSpec{name: me, dns: []string{me}, kind: ecdsa256})
		writeFile(t, d, "swanctl.conf", fmt.Sprintf(runSwanctlConf, peer, me, other))
		writeFile(t, d, "conf.d/net.conf", fmt.Sprintf("children { net { local_ts = %s\n remote_ts = %s\n esp_proposals = aes128gcm16\n } }\n", myNet, otherNet))
		writeFile(t, d, "x509/gw.pem", c.certPEM())
		writeFile(t, d, "x509ca/root.pem", root.certPEM())
		writeFile(t, d, "plain.pem", c.keyPEM())
		if err := os.MkdirAll(filepath.Join(d, "private"), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := command("openssl", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:thistle",
			"-in", filepath.Join(d, "plain.pem"), "-out", filepath.Join(d, "private", "gw.pem")); err != nil {
			t.Fatal(err, out)
		}
		return d
	}
	dirA := dir("a", "a.example", "b.example", gwB4.String(), lanA4, lanB4)
	dirB := dir("b", "b.example", "a.example", gwA4.String(), lanB4, lanA4)
	bin := posternBinary(t)
	for _, d := range []string{dirA, dirB} {
		if out, err := command(bin, "check", "--swanctl", d); err != nil || !strings.Contains(out, "1 connection, 1 child: no problems") {
			t.Errorf("postern check --swanctl: %v\n%s", err, out)
		}
	}

	// A /run of its own, so that the default socket can be taken, and an /etc for the state.
	out := filepath.Join(s.dir, "run-swanctl.out")
	p := startIn(t, s.gwA, out, nil, "sh", "-ec", "mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /etc; exec "+bin+" run --swanctl "+dirA)
	sock := fmt.Sprintf("/proc/%d/root/run/charon.vici", p.cmd.Process.Pid)
	swanctl := func(args ...string) (string, error) {
		return command("swanctl", append(args, "--uri", "unix://"+sock)...)
	}
	var said string
	var err error
	if !eventually(30*time.Second, func() bool {
		said, err = swanctl("--list-conns")
		return strings.Contains(said, "site: IKEv2") || !p.alive()
	}) || !p.alive() {
		t.Fatalf("run --swanctl does not have the connection on the socket of charon: %v\n%s%s", err, said, p.text())
	}
	if said, err = command("nsenter", "-t", itoa(p.cmd.Process.Pid), "-m", bin, "status"); err != nil || !strings.Contains(said, "site") {
		t.Errorf("our own commands do not find the socket: %v\n%s", err, said)
	}
	b := startVICI(s, 'b', kindPostern, nil)
	said, err = command(bin, "swanctl", dirB, "--socket", b.socket())
	for _, want := range []string{"loaded certificate from '" + dirB + "/x509/gw.pem'", "loaded ECDSA key from '" + dirB + "/private/gw.pem'",
		"loaded connection 'site'", "successfully loaded 1 connections, 0 unloaded"} {
		if err != nil || !strings.Contains(said, want) {
			t.Fatalf("postern swanctl: %v, and %q is missing:\n%s", err, want, said)
		}
	}
	if said, err = swanctl("--initiate", "--child", "net", "--timeout", "30"); err != nil {
		t.Fatalf("%v\n%s%s%s", err, said, p.text(), logs(b))
	}
	s.mustPing(t, false, b)

	// SIGHUP reads the directory again: one connection more, and the first keeps its SA.
	more := fmt.Sprintf(runSwanctlConf, gwB4, "a.example", "b.example") +
		"connections { more : defaults { remote_addrs = " + gwB6.String() + "\n local { id = a.example\n } children { m { } } } }\n"
	writeFile(t, dirA, "swanctl.conf", more)
	if err = p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if !eventually(20*time.Second, func() bool {
		said, err = swanctl("--list-conns")
		return strings.Contains(said, "more: IKEv2")
	}) {
		t.Fatalf("SIGHUP does not load what is new: %v\n%s%s", err, said, p.text())
	}
	if said, err = swanctl("--list-sas"); err != nil || !strings.Contains(said, "site: #1, ESTABLISHED") || !strings.Contains(said, "INSTALLED") {
		t.Errorf("the SA is gone after SIGHUP: %v\n%s", err, said)
	}
	s.mustPing(t, false, b)

	// A client's reload-settings takes it away again; with an error in the file everything stays.
	writeFile(t, dirA, "swanctl.conf", "connections {\n site {")
	if said, err = swanctl("--reload-settings"); err == nil || !strings.Contains(said, "swanctl.conf:2: the section that begins here has no end") {
		t.Errorf("an error in the file: %v\n%s", err, said)
	}
	writeFile(t, dirA, "swanctl.conf", fmt.Sprintf(runSwanctlConf, gwB4, "a.example", "b.example"))
	if said, err = swanctl("--reload-settings"); err != nil {
		t.Errorf("%v\n%s%s", err, said, p.text())
	}
	if said, err = swanctl("--list-conns"); err != nil || strings.Contains(said, "more:") || !strings.Contains(said, "site:") {
		t.Errorf("after reload-settings: %v\n%s", err, said)
	}
	s.mustPing(t, false, b)
	text, _ := os.ReadFile(out)
	if strings.Contains(string(text), "thistle") {
		t.Error("a secret is in the log")
	}
	if !p.terminate(15 * time.Second) {
		t.Errorf("it does not end:\n%s", p.text())
	}
	b.stop()
}
