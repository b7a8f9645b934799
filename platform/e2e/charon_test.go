//go:build linux

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Where Debian has charon and its plugins.
const (
	charonPath    = "/usr/lib/ipsec/charon"
	charonPlugins = "/usr/lib/ipsec/plugins"
)

// charon is a strongSwan daemon with ESP in user space.
type charon struct {
	viaSwanctl
	t   *testing.T
	dir string
	p   *process
}

// needCharon skips the test without strongSwan and the plugins that the tests load.
func needCharon(t *testing.T) {
	t.Helper()
	need(t, "swanctl", "mount")
	for file, pkg := range map[string]string{
		charonPath: "strongswan-charon",
		charonPlugins + "/libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
		charonPlugins + "/libstrongswan-openssl.so":         "libstrongswan-standard-plugins",
		charonPlugins + "/libstrongswan-chapoly.so":         "libstrongswan-extra-plugins",
	} {
		if _, err := os.Stat(file); err != nil {
			lacks(t, "strongSwan is not complete: %v; apt-get install %s", err, pkg)
		}
	}
}

// startCharon starts charon on a gateway and loads its configuration.
func startCharon(s *site, side byte, c spec) *charon {
	s.t.Helper()
	needCharon(s.t)
	ns := s.gwA
	if side == 'b' {
		ns = s.gwB
	}
	d := &charon{t: s.t, dir: filepath.Join(s.dir, "charon-"+string(side))}
	d.viaSwanctl = func(args ...string) (string, error) {
		return command("swanctl", append(slices.Clone(args), "--uri", d.control())...)
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	conf := filepath.Join(d.dir, "strongswan.conf")
	d.write("strongswan.conf", d.strongswanConf(c))
	d.write("swanctl.conf", swanctlConf(c))
	os.Remove(filepath.Join(d.dir, "vici"))
	// charon keeps its pid file in /run: an empty one for each daemon keeps them apart.
	d.p = startIn(s.t, ns, filepath.Join(d.dir, "out"), []string{"STRONGSWAN_CONF=" + conf},
		"sh", "-ec", "mount -t tmpfs tmpfs /run; exec "+charonPath)
	if !eventually(20*time.Second, func() bool {
		_, err := os.Stat(filepath.Join(d.dir, "vici"))
		return err == nil || !d.p.alive()
	}) || !d.p.alive() {
		s.t.Fatalf("charon did not start: %s%s", d.p.text(), logs(d))
	}
	d.load(c)
	return d
}

// load replaces the configuration of a running charon.
func (d *charon) load(c spec) {
	d.t.Helper()
	d.write("swanctl.conf", swanctlConf(c))
	charonCredentials(d.t, d.dir, c)
	d.loadAll()
}

// loadAll has swanctl load what is in the daemon's folder.
func (d *charon) loadAll() {
	d.t.Helper()
	var out string
	var err error
	// The socket is there a moment before charon listens on it (ECONNREFUSED is the exit status).
	eventually(5*time.Second, func() bool {
		out, err = command("env", "SWANCTL_DIR="+d.dir, "swanctl", "--load-all", "--noprompt", "--file", filepath.Join(d.dir, "swanctl.conf"), "--uri", d.control())
		return exitCode(err) != int(syscall.ECONNREFUSED)
	})
	if err != nil {
		d.t.Fatalf("swanctl --load-all: %v\n%s%s", err, out, logs(d))
	}
}

func (d *charon) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// strongswanConf returns the daemon's settings. kernel-libipsec stands before
// kernel-netlink, because the first of them to register does ESP; kernel-netlink still
// does addresses and routes.
func (d *charon) strongswanConf(c spec) string {
	var b strings.Builder
	certs := ""
	if c.usesCerts() {
		certs = "pem pkcs1 pkcs8 pubkey x509 constraints revocation curl "
	}
	fmt.Fprintf(&b, `charon {
  load_modular = no
  delete_rekeyed_delay = 1
  load = random nonce openssl gcm ccm ctr cmac xcbc aes sha1 sha2 hmac kdf chapoly curve25519 gmp counters %skernel-libipsec kernel-netlink socket-default vici updown
  plugins { vici { socket = unix://%s/vici } }
  filelog { log { path = %s/log
                  time_format = %%H:%%M:%%S
                  time_add_ms = yes
                  flush_line = yes
                  default = 1
                  enc = 1 } }
  syslog { daemon { default = -1 }
           auth { default = -1 } }
`, certs, d.dir, d.dir)
	if c.cookieThreshold > 0 {
		fmt.Fprintf(&b, "  cookie_threshold = %d\n  block_threshold = 0\n", c.cookieThreshold)
	}
	if n := c.conns[0].fragmentSize; n > 0 {
		fmt.Fprintf(&b, "  fragment_size = %d\n", n)
	}
	if c.makeBeforeBreak {
		b.WriteString("  make_before_break = yes\n")
	}
	if c.keepalive > 0 {
		fmt.Fprintf(&b, "  keep_alive = %ds\n", int(c.keepalive.Seconds()))
	}
	if c.retryTimeout > 0 {
		fmt.Fprintf(&b, "  retransmit_timeout = %g\n", c.retryTimeout.Seconds())
	}
	if c.retryTries > 0 {
		fmt.Fprintf(&b, "  retransmit_tries = %d\n", c.retryTries)
	}
	if c.retryBase > 0 {
		fmt.Fprintf(&b, "  retransmit_base = %g\n", c.retryBase)
	}
	b.WriteString("}\n")
	return b.String()
}

// swanctlConf returns the connections and secrets.
func swanctlConf(c spec) string {
	var b, secrets strings.Builder
	b.WriteString("connections {\n")
	for i, n := range c.conns {
		fmt.Fprintf(&b, "  %s {\n    version = 2\n    mobike = %s\n    local_addrs = %s\n    remote_addrs = %s\n    proposals = %s\n",
			n.name, cmp.Or(n.mobike, "no"), n.local, n.remote, n.ike)
		if n.encap {
			b.WriteString("    encap = yes\n")
		}
		if n.dpdDelay > 0 {
			fmt.Fprintf(&b, "    dpd_delay = %ds\n", int(n.dpdDelay.Seconds()))
		}
		if n.rekeyTime > 0 {
			fmt.Fprintf(&b, "    rekey_time = %ds\n    rand_time = 0\n", int(n.rekeyTime.Seconds()))
		}
		if n.reauthTime > 0 {
			fmt.Fprintf(&b, "    reauth_time = %ds\n    over_time = %ds\n    rand_time = 0\n", int(n.reauthTime.Seconds()), int(n.reauthTime.Seconds()))
		}
		b.WriteString(n.ppk.swanctl())
		if n.childless != "" {
			fmt.Fprintf(&b, "    childless = %s\n", n.childless)
		}
		if n.overTime > 0 {
			fmt.Fprintf(&b, "    over_time = %ds\n", int(n.overTime.Seconds()))
		}
		if n.keyingTries > 0 {
			fmt.Fprintf(&b, "    keyingtries = %d\n", n.keyingTries)
		}
		if len(n.localAuth)+len(n.remoteAuth) > 0 {
			b.WriteString(charonRounds(n))
		} else {
			fmt.Fprintf(&b, "    local { auth = psk\n id = %q }\n    remote { auth = psk\n id = %q }\n", n.localID, n.remoteID)
		}
		b.WriteString("    children {\n")
		for _, ch := range n.children {
			fmt.Fprintf(&b, "      %s {\n        local_ts = %s\n        remote_ts = %s\n        esp_proposals = %s\n        start_action = %s\n",
				ch.name, strings.Join(ch.localTS, ","), strings.Join(ch.remoteTS, ","), ch.esp, ch.start)
			if ch.rekeyTime > 0 {
				fmt.Fprintf(&b, "        rekey_time = %ds\n        life_time = %ds\n        rand_time = 0\n",
					int(ch.rekeyTime.Seconds()), int(ch.rekeyTime.Seconds())*4)
			}
			if ch.inactivity > 0 {
				fmt.Fprintf(&b, "        inactivity = %ds\n", int(ch.inactivity.Seconds()))
			}
			if ch.dpdAction != "" {
				fmt.Fprintf(&b, "        dpd_action = %s\n", ch.dpdAction)
			}
			if ch.closeAction != "" {
				fmt.Fprintf(&b, "        close_action = %s\n", ch.closeAction)
			}
			b.WriteString("      }\n")
		}
		b.WriteString("    }\n  }\n")
		if n.usesSecret() {
			fmt.Fprintf(&secrets, "  ike-%d { id-1 = %q\n id-2 = %q\n secret = %q }\n", i, n.localID, n.remoteID, n.psk)
		}
		secrets.WriteString(n.ppk.swanctlSecrets())
	}
	return b.String() + "}\nsecrets {\n" + secrets.String() + "}\n"
}

func (d *charon) kind() string    { return "charon" }
func (d *charon) control() string { return "unix://" + filepath.Join(d.dir, "vici") }
func (d *charon) alive() bool     { return d.p.alive() }
func (d *charon) kill()           { d.p.kill() }
func (d *charon) freeze()         { d.p.cmd.Process.Signal(syscall.SIGSTOP) }

func (d *charon) log() string {
	b, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	return string(b)
}

func (d *charon) stop() {
	if !d.p.terminate(10 * time.Second) {
		d.t.Errorf("charon did not stop within 10 s")
	}
}
