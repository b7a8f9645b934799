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

// postern is the daemon under test.
type postern struct {
	t    *testing.T
	s    *site
	side byte
	bin  string
	dir  string
	p    *process
	env  []string // added to its environment
	logs []string // output files of earlier runs in the same place
}

// startPostern writes the configuration, starts the daemon on a gateway and waits until
// its control socket answers.
func startPostern(s *site, side byte, c spec) *postern {
	s.t.Helper()
	d := newPostern(s, side, c)
	d.start()
	return d
}

// newPostern writes the configuration and starts nothing.
func newPostern(s *site, side byte, c spec) *postern {
	s.t.Helper()
	need(s.t, "swanctl")
	d := &postern{t: s.t, s: s, side: side, bin: posternBinary(s.t), dir: filepath.Join(s.dir, "postern-"+string(side))}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	posternCredentials(s.t, d.dir, c)
	d.write(d.toml(c))
	return d
}

// ns is the namespace of the gateway that the daemon runs on.
func (d *postern) ns() string {
	switch d.side {
	case 'b':
		return d.s.gwB
	case 'w':
		return d.s.wan
	}
	return d.s.gwA
}

func (d *postern) socket() string     { return filepath.Join(d.dir, "control") }
func (d *postern) configFile() string { return filepath.Join(d.dir, "postern.toml") }

// write replaces the configuration file, which holds a secret.
func (d *postern) write(text string) {
	d.t.Helper()
	if err := os.WriteFile(d.configFile(), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// launch starts the daemon and waits for nothing. A wrapper is a program that starts it in
// its turn, with its arguments.
func (d *postern) launch(wrapper ...string) *process {
	d.t.Helper()
	out := filepath.Join(d.dir, fmt.Sprintf("out.%d", len(d.logs)))
	d.logs = append(d.logs, out)
	args := append(wrapper, d.bin, "run", "-c", d.configFile())
	d.p = startIn(d.t, d.ns(), out, d.env, args[0], args[1:]...)
	return d.p
}

// start starts the daemon (again) and waits until it answers.
func (d *postern) start() {
	d.t.Helper()
	d.launch()
	var out string
	var err error
	if !eventually(20*time.Second, func() bool {
		if !d.p.alive() {
			return true
		}
		if _, err = os.Stat(d.socket()); err != nil {
			return false
		}
		out, err = command("swanctl", "--version", "--daemon", "--uri", d.control())
		return err == nil
	}) || !d.p.alive() {
		d.t.Fatalf("postern did not start (%v: %s); it said:\n%s", err, out, d.p.text())
	}
}

// toml returns the configuration file.
func (d *postern) toml(c spec) string {
	var b, secrets strings.Builder
	list := func(items ...string) string {
		quoted := make([]string, len(items))
		for i, s := range items {
			quoted[i] = fmt.Sprintf("%q", s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	fmt.Fprintf(&b, "[daemon]\ncontrol = %q\nstate_dir = %q\n", d.socket(), filepath.Join(d.dir, "state"))
	if c.noQCD {
		b.WriteString("qcd = false\n")
	}
	if c.exportKeys {
		b.WriteString("export_keys = true\n")
	}
	if c.board != "" {
		fmt.Fprintf(&b, "board = %q\n", c.board)
	}
	for i, n := range c.conns {
		fmt.Fprintf(&b, "\n[connections.%s]\nremote_addrs = %s\nproposals = %s\n",
			n.name, list(n.remote), list(strings.Split(n.ike, ",")...))
		if n.local != "%any" {
			fmt.Fprintf(&b, "local_addrs = %s\n", list(strings.Split(n.local, ",")...))
		}
		if n.redirectTo != "" {
			fmt.Fprintf(&b, "redirect_to = %q\n", n.redirectTo)
		}
		if n.resumption {
			b.WriteString("resumption = true\n")
		}
		if n.mobike != "" {
			fmt.Fprintf(&b, "mobike = %v\n", n.mobike == "yes")
		}
		if n.encap {
			b.WriteString("encap = true\n")
		}
		if n.dpdDelay > 0 {
			fmt.Fprintf(&b, "dpd_delay = \"%ds\"\n", int(n.dpdDelay.Seconds()))
		}
		if n.fragmentSize > 0 {
			fmt.Fprintf(&b, "fragment_size = %d\n", n.fragmentSize)
		}
		if n.keyingTries > 0 {
			fmt.Fprintf(&b, "keyingtries = %d\n", n.keyingTries)
		}
		if n.rekeyTime > 0 {
			fmt.Fprintf(&b, "rekey_time = \"%ds\"\nover_time = \"%ds\"\nrand_time = 0\n", int(n.rekeyTime.Seconds()), int(n.rekeyTime.Seconds()))
		}
		b.WriteString(n.ppk.toml())
		if n.childless != "" {
			fmt.Fprintf(&b, "childless = %q\n", n.childless)
		}
		if n.reauthTime > 0 {
			fmt.Fprintf(&b, "reauth_time = \"%ds\"\nover_time = \"%ds\"\nrand_time = 0\n", int(n.reauthTime.Seconds()), int(n.reauthTime.Seconds()))
		}
		if c.retryTimeout > 0 {
			fmt.Fprintf(&b, "retransmit_timeout = \"%ds\"\n", int(c.retryTimeout.Seconds()))
		}
		if c.retryTries > 0 {
			fmt.Fprintf(&b, "retransmit_tries = %d\n", c.retryTries)
		}
		if c.retryBase > 0 {
			fmt.Fprintf(&b, "retransmit_base = %g\n", c.retryBase)
		}
		if len(n.localAuth)+len(n.remoteAuth) > 0 {
			b.WriteString(posternRounds(n))
		} else {
			fmt.Fprintf(&b, "[connections.%[1]s.local]\nid = %[2]q\n[connections.%[1]s.remote]\nid = %[3]q\n", n.name, n.localID, n.remoteID)
		}
		for _, ch := range n.children {
			fmt.Fprintf(&b, "[connections.%s.children.%s]\nlocal_ts = %s\nremote_ts = %s\nstart_action = %q\n",
				n.name, ch.name, list(ch.localTS...), list(ch.remoteTS...), ch.start)
			if ch.ah != "" {
				fmt.Fprintf(&b, "ah_proposals = %s\n", list(strings.Split(ch.ah, ",")...))
			} else {
				fmt.Fprintf(&b, "esp_proposals = %s\n", list(strings.Split(ch.esp, ",")...))
			}
			if ch.device != "" {
				fmt.Fprintf(&b, "interface = %q\n", ch.device)
			}
			if len(ch.deviceAddrs) > 0 {
				fmt.Fprintf(&b, "interface_addrs = %s\n", list(ch.deviceAddrs...))
			}
			if ch.mode != "" {
				fmt.Fprintf(&b, "mode = %q\n", ch.mode)
			}
			if ch.fragments != "" {
				fmt.Fprintf(&b, "non_first_fragments = %q\n", ch.fragments)
			}
			if ch.rekeyTime > 0 {
				fmt.Fprintf(&b, "rekey_time = \"%ds\"\nlife_time = \"%ds\"\nrand_time = 0\n", int(ch.rekeyTime.Seconds()), 4*int(ch.rekeyTime.Seconds()))
			}
			if ch.inactivity > 0 {
				fmt.Fprintf(&b, "inactivity = \"%ds\"\n", int(ch.inactivity.Seconds()))
			}
			if ch.rekeyBytes > 0 {
				fmt.Fprintf(&b, "rekey_bytes = %d\n", ch.rekeyBytes)
			}
			if ch.rekeyPackets > 0 {
				fmt.Fprintf(&b, "rekey_packets = %d\n", ch.rekeyPackets)
			}
			b.WriteString(ch.more)
			if ch.dpdAction != "" {
				fmt.Fprintf(&b, "dpd_action = %q\n", ch.dpdAction)
			}
			if ch.closeAction != "" {
				fmt.Fprintf(&b, "close_action = %q\n", ch.closeAction)
			}
		}
		if n.usesSecret() {
			fmt.Fprintf(&secrets, "\n[secrets.s%d]\nid = %s\nsecret = %q\n", i, list(n.localID, n.remoteID), n.psk)
		}
		secrets.WriteString(n.ppk.tomlSections())
	}
	return b.String() + secrets.String() + posternAuthorities(c)
}

func (d *postern) kind() string    { return "postern" }
func (d *postern) control() string { return "unix://" + d.socket() }
func (d *postern) alive() bool     { return d.p.alive() }
func (d *postern) kill()           { d.p.kill() }
func (d *postern) freeze()         { d.p.cmd.Process.Signal(syscall.SIGSTOP) }

// log returns what all runs of the daemon in this place have written.
func (d *postern) log() string {
	var b strings.Builder
	for _, f := range d.logs {
		text, _ := os.ReadFile(f)
		b.Write(text)
	}
	return b.String()
}

func (d *postern) stop() {
	if !d.p.terminate(10 * time.Second) {
		d.t.Errorf("postern did not stop within 10 s of SIGTERM%s", logs(d))
	} else if d.p.err != nil {
		d.t.Errorf("postern was asked to stop and ended with %v%s", d.p.err, logs(d))
	}
}

// cli runs a subcommand that talks to the daemon. It needs no namespace: the control
// socket is a file.
func (d *postern) cli(args ...string) (string, error) {
	return command(d.bin, append([]string{args[0], "--socket", d.socket()}, args[1:]...)...)
}

func (d *postern) initiate(child string) error {
	out, err := d.cli("up", "site", child)
	if err != nil {
		return fmt.Errorf("postern up site %s: %w\n%s", child, err, out)
	}
	return nil
}

func (d *postern) terminate(child string) error {
	args := []string{"down", "site"}
	if child != "" {
		args = append(args, child)
	}
	out, err := d.cli(args...)
	if err != nil {
		return fmt.Errorf("postern %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
