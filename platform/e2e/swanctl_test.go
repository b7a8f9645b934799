//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What strongSwan's users have: a directory with swanctl.conf and the credentials beside it,
// which strongSwan's own client loads. Both daemons are given the same one.

// daemonKind names a daemon: "charon" or "postern".
type daemonKind string

const (
	kindCharon  daemonKind = "charon"
	kindPostern daemonKind = "postern"
)

// swanctlDir is such a directory: texts by path ("swanctl.conf", "x509/gw.pem",
// "private/gw.pem"). Two names stand beside it: "strongswan.conf" holds lines for charon's section of
// that file, "postern.toml" lines for postern's section [daemon].
type swanctlDir map[string]string

// with returns a copy with more files in it.
func (d swanctlDir) with(more swanctlDir) swanctlDir {
	c := maps.Clone(d)
	maps.Copy(c, more)
	return c
}

// viciPlugins is what charon loads: all that any of the tests needs, so that one daemon serves many.
// kernel-libipsec stands before kernel-netlink, because the first of them to register does ESP;
// kernel-netlink still does addresses and routes.
const viciPlugins = "random nonce openssl gcm ccm ctr cmac xcbc aes sha1 sha2 hmac kdf chapoly curve25519 gmp mgf1 " +
	"pem pkcs1 pkcs8 pubkey x509 constraints revocation counters kernel-libipsec kernel-netlink resolve socket-default vici updown"

// viaSwanctl runs strongSwan's client with a daemon's socket, and returns what it printed.
type viaSwanctl func(args ...string) (string, error)

// do is it with what it printed in the error.
func (run viaSwanctl) do(args ...string) error {
	if out, err := run(args...); err != nil {
		return fmt.Errorf("swanctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (run viaSwanctl) initiate(child string) error {
	return run.do("--initiate", "--child", child, "--timeout", "30")
}

// terminate closes a child, or ("") the IKE SA.
func (run viaSwanctl) terminate(child string) error {
	if child == "" {
		return run.do("--terminate", "--ike", "site", "--timeout", "20")
	}
	return run.do("--terminate", "--child", child, "--timeout", "20")
}

// rekey rekeys a child, or ("") the IKE SA.
func (run viaSwanctl) rekey(child string) error {
	if child == "" {
		return run.do("--rekey", "--ike", "site")
	}
	return run.do("--rekey", "--child", child)
}

// viciDaemon is a daemon on a gateway that gets its configuration through VICI alone.
type viciDaemon struct {
	viaSwanctl
	t    *testing.T
	s    *site
	side byte
	name daemonKind
	dir  string // of its files; the socket is in it
	p    *process
	outs []string // output files of its runs

	// credentials below it are cleared away before another directory is laid out.
	files []string
	bin   string
	skip  int // of the log's octets: those from before the configuration that is looked at
}

// startVICI starts a daemon with nothing but a control socket on the gateway of that side ('a', 'b';
// 'w' for wan) and waits until the socket answers. It lays the directory out and loads nothing: see load.
func startVICI(s *site, side byte, kind daemonKind, conf swanctlDir) *viciDaemon {
	s.t.Helper()
	d := newVICI(s, side, kind, conf)
	d.start()
	return d
}

// newVICI lays out the files and starts nothing.
func newVICI(s *site, side byte, kind daemonKind, conf swanctlDir) *viciDaemon {
	s.t.Helper()
	need(s.t, "swanctl")
	d := &viciDaemon{t: s.t, s: s, side: side, name: kind, dir: filepath.Join(s.dir, fmt.Sprintf("vici-%s-%c", kind, side))}
	d.viaSwanctl = d.swanctl
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if kind == kindCharon {
		needCharon(s.t)
		writeFile(s.t, d.dir, "daemon/strongswan.conf", d.strongswanConf(conf["strongswan.conf"]))
	} else {
		d.bin = posternBinary(s.t)
		writeFile(s.t, d.dir, "daemon/postern.toml", fmt.Sprintf("[daemon]\ncontrol = %q\nstate_dir = %q\n%s\n",
			d.socket(), filepath.Join(d.dir, "daemon", "state"), conf["postern.toml"]))
	}
	d.lay(conf)
	return d
}

// lay replaces the directory that swanctl reads; the daemon is told nothing.
func (d *viciDaemon) lay(conf swanctlDir) {
	d.t.Helper()
	for _, f := range d.files {
		os.Remove(filepath.Join(d.dir, f))
	}
	d.files = nil
	for name, text := range conf {
		if name != "strongswan.conf" && name != "postern.toml" {
			writeFile(d.t, d.dir, name, text)
			if strings.HasSuffix(name, ".sh") {
				os.Chmod(filepath.Join(d.dir, name), 0o700)
			}
			d.files = append(d.files, name)
		}
	}
}

func (d *viciDaemon) strongswanConf(more string) string {
	log := filepath.Join(d.dir, "daemon", "log")
	return fmt.Sprintf(`charon {
  load_modular = no
  delete_rekeyed_delay = 1
  load = %s
  plugins {
    vici { socket = %s }
    # Marked, so that what the daemon itself sends is not routed into a tunnel that is for the gateway itself.
    kernel-netlink { fwmark = !0x42 }
    socket-default { fwmark = 0x42 }
    kernel-libipsec { allow_peer_ts = yes }
    resolve { file = %s
              resolvconf { path = /nonexistent } }
  }
  filelog { log { path = %s
                  time_format = %%H:%%M:%%S
                  time_add_ms = yes
                  flush_line = yes
                  default = 1
                  enc = 1 } }
  syslog { daemon { default = -1 }
           auth { default = -1 } }
%s
}
`, viciPlugins, d.control(), filepath.Join(d.dir, "daemon", "resolv.conf"), log, more)
}

// ns is the namespace of the gateway that the daemon runs on.
func (d *viciDaemon) ns() string {
	switch d.side {
	case 'b':
		return d.s.gwB
	case 'w':
		return d.s.wan
	}
	return d.s.gwA
}

// start starts the daemon (again) and waits until it answers.
func (d *viciDaemon) start() {
	d.t.Helper()
	os.Remove(d.socket())
	out := filepath.Join(d.dir, "daemon", fmt.Sprintf("out.%d", len(d.outs)))
	d.outs = append(d.outs, out)
	if d.name == kindCharon {
		// charon keeps its pid file in /run: an empty one for each daemon keeps them apart.
		d.p = startIn(d.t, d.ns(), out, []string{"STRONGSWAN_CONF=" + filepath.Join(d.dir, "daemon", "strongswan.conf")},
			"sh", "-ec", "mount -t tmpfs tmpfs /run; exec "+charonPath)
	} else {
		d.p = startIn(d.t, d.ns(), out, nil, d.bin, "run", "-c", filepath.Join(d.dir, "daemon", "postern.toml"))
	}
	var said string
	var err error
	// The socket is there a moment before charon listens on it.
	if !eventually(30*time.Second, func() bool {
		if !d.p.alive() {
			return true
		}
		if _, err = os.Stat(d.socket()); err != nil {
			return false
		}
		said, err = d.swanctl("--version", "--daemon")
		return err == nil
	}) || !d.p.alive() {
		d.t.Fatalf("%s did not start (%v: %s); it said:\n%s%s", d.name, err, said, d.p.text(), logs(d))
	}
}

// swanctl runs strongSwan's client with the daemon's socket and directory, and returns what it printed on both
// outputs.
func (d *viciDaemon) swanctl(args ...string) (string, error) {
	return command("env", append(append([]string{"SWANCTL_DIR=" + d.dir, "swanctl"}, args...), "--uri", d.control())...)
}

// raw is swanctl with --raw: replies and events as they came.
func (d *viciDaemon) raw(args ...string) (string, error) {
	return d.swanctl(append(slices.Clone(args), "--raw")...)
}

// load has swanctl load all of the directory and unload what is no longer in it; it fails the test unless the
// daemon takes everything.
func (d *viciDaemon) load() {
	d.t.Helper()
	if out, err := d.swanctl("--load-all", "--clear", "--noprompt", "--file", filepath.Join(d.dir, "swanctl.conf")); err != nil {
		d.t.Fatalf("%s: swanctl --load-all: %v\n%s%s", d.name, err, out, logs(d))
	}
}

// replace lays out another directory and loads it.
func (d *viciDaemon) replace(conf swanctlDir) {
	d.t.Helper()
	d.lay(conf)
	d.load()
}

func (d *viciDaemon) socket() string  { return filepath.Join(d.dir, "control") }
func (d *viciDaemon) control() string { return "unix://" + d.socket() }
func (d *viciDaemon) kind() string    { return string(d.name) }
func (d *viciDaemon) alive() bool     { return d.p.alive() }
func (d *viciDaemon) kill()           { d.p.kill() }
func (d *viciDaemon) freeze()         { d.p.cmd.Process.Signal(syscall.SIGSTOP) }

func (d *viciDaemon) log() string {
	files := d.outs
	if d.name == kindCharon {
		files = []string{filepath.Join(d.dir, "daemon", "log")}
	}
	var b strings.Builder
	for _, f := range files {
		text, _ := os.ReadFile(f)
		b.Write(text)
	}
	return b.String()[min(d.skip, b.Len()):]
}

// forget leaves what was logged so far out of log.
func (d *viciDaemon) forget() {
	d.skip = 0
	d.skip = len(d.log())
}

func (d *viciDaemon) stop() {
	if !d.p.terminate(15 * time.Second) {
		d.t.Errorf("%s did not stop within 15 s%s", d.name, logs(d))
	}
}

// The harness by itself: what every test with it relies on, with charon on both gateways.
func TestSwanctlDirectory(t *testing.T) {
	needCharon(t)
	t.Parallel()
	s := newSite(t)
	text := func(me, other, myNet, otherNet string) swanctlDir {
		return swanctlDir{"swanctl.conf": fmt.Sprintf(`
connections { site { remote_addrs = %s
  local { auth = psk
          id = %s }
  remote { auth = psk
           id = %s }
  children { net { local_ts = %s
                   remote_ts = %s
                   esp_proposals = aes128gcm16 } } } }
secrets { ike { id = %s
                secret = thistle-and-thorn } }
`, other, me, other, myNet, otherNet, me)}
	}
	a := startVICI(s, 'a', kindCharon, text(gwA4.String(), gwB4.String(), lanA4, lanB4))
	b := startVICI(s, 'b', kindCharon, text(gwB4.String(), gwA4.String(), lanB4, lanA4))
	a.load()
	b.load()
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	if out, err := b.raw("--list-conns"); err != nil || !strings.Contains(out, "list-conn event {site {") {
		t.Errorf("swanctl --list-conns --raw: %v\n%s", err, out)
	}
	if err := b.terminate(""); err != nil {
		t.Error(err)
	}
	if !gone(a, 20*time.Second) {
		t.Error("side a keeps what side b has terminated")
	}
	a.replace(swanctlDir{"swanctl.conf": "connections {}\n"})
	if out, err := a.raw("--list-conns"); err != nil || strings.Contains(out, "site") {
		t.Errorf("a connection that the file no longer has is still there: %v\n%s", err, out)
	}
	p := newVICI(s, 'w', kindPostern, nil)
	p.start()
	if out, err := p.raw("--list-conns"); err != nil {
		t.Errorf("postern without a connection: %v\n%s", err, out)
	}
	p.stop()
}
