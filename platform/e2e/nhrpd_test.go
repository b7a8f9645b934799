//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nhrpd is FRR's daemon for dynamic multipoint tunnels, with its own client of the control
// protocol.
type nhrpd struct {
	s   *site
	ns  string
	dir string
	p   *process
}

// startNHRPD starts zebra and nhrpd in a namespace, with a daemon whose control socket is
// charon.vici in sockets. nhrpd asks the program ipsec, of strongSwan's old front end, where that is.
func (s *site) startNHRPD(ns, sockets, conf string) *nhrpd {
	s.t.Helper()
	n := &nhrpd{s: s, ns: ns, dir: filepath.Join(s.dir, "nhrpd")}
	bin := filepath.Join(n.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		s.t.Fatal(err)
	}
	os.Chmod(n.dir, 0o777) // they drop their privileges
	for name, text := range map[string]string{"bin/ipsec": "#!/bin/sh\necho " + sockets + "\n", "conf": "debug nhrp all\n" + conf} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, d := range []string{"zebra", "nhrpd"} {
		n.p = startIn(s.t, ns, filepath.Join(n.dir, d+".out"), []string{"PATH=" + bin + ":" + os.Getenv("PATH")}, filepath.Join(frrDir, d),
			"-f", os.DevNull, "-P", "0", "-z", filepath.Join(n.dir, "zserv"), "-i", filepath.Join(n.dir, d+".pid"),
			"--vty_socket", n.dir, "--log", "file:"+filepath.Join(n.dir, d+".log"), "--log-level", "debug")
		if !eventually(20*time.Second, func() bool {
			_, err := os.Stat(filepath.Join(n.dir, d+".vty"))
			return err == nil || !n.p.alive()
		}) || !n.p.alive() {
			s.t.Fatalf("%s did not start: %s", d, n.p.text())
		}
	}
	if out, err := s.run(ns, "vtysh", "--vty_socket", n.dir, "-f", filepath.Join(n.dir, "conf")); err != nil {
		s.t.Fatalf("FRR takes no configuration: %v\n%s", err, out)
	}
	return n
}

func (n *nhrpd) log() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "nhrpd.log"))
	return string(b)
}

// said counts the lines of its log that hold all the words.
func (n *nhrpd) said(words ...string) int { return len(matching(n.log(), words...)) }

// sas returns how many CHILD SAs it knows of between two hosts, and the peer's identity.
func (n *nhrpd) sas(from, to string) (count int, id string) {
	out, _ := n.s.run(n.ns, "vtysh", "--vty_socket", n.dir, "-c", "show dmvpn")
	for _, line := range strings.Split(out, "\n") {
		if m := regexp.MustCompile(`^(\S+) +(\S+) +(?:[a-z]+ +)?(\d+) *(\S*)`).FindStringSubmatch(line); m != nil && m[1] == from && m[2] == to {
			return atoi(m[3]), m[4]
		}
	}
	return -1, ""
}

// TestNHRPDIsAClient has FRR's nhrpd ask for tunnels: it connects, registers for its events, lists
// the SAs, has one made between the hosts that it names, follows it through rekeying and end, and
// comes back when postern has been restarted. (What it sends through the tunnel needs GRE, which
// a virtual machine has.)
func TestNHRPDIsAClient(t *testing.T) {
	need(t, frrDir+"/zebra", frrDir+"/nhrpd", "vtysh", "swanctl")
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	sockets := filepath.Join(s.dir, "sockets")
	toml := func(d *postern, ours, theirs string, more string) {
		d.write(fmt.Sprintf(`
[daemon]
control = %q
state_dir = %q
%s
[connections.site]
local_addrs = [%q]
remote_addrs = [%q]
[connections.site.local]
id = "%[4]s.example"
[connections.site.remote]
id = "%[5]s.example"
[connections.site.children.dmvpn]
mode = "transport"
local_ts = ["dynamic[gre]"]
remote_ts = ["dynamic[gre]"]
start_action = "none"
[secrets.all]
secret = "a secret that all of them know"
`, d.socket(), filepath.Join(d.dir, "state"), more, ours, theirs))
	}
	daemonOn := func(side byte) *postern {
		d := &postern{t: t, s: s, side: side, bin: posternBinary(t), dir: filepath.Join(s.dir, "postern-"+string(side))}
		if err := os.MkdirAll(d.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := daemonOn('a'), daemonOn('b')
	// Another connection with a child of that name comes first: only the addresses tell which is meant.
	toml(a, gwA4.String(), gwB4.String(), `[connections.another]
local_addrs = ["198.51.100.1"]
remote_addrs = ["203.0.113.9"]
local.id = "198.51.100.1.example"
remote.id = "another.example"
children.dmvpn = { mode = "transport", local_ts = ["dynamic[gre]"], remote_ts = ["dynamic[gre]"], start_action = "none" }
`)
	toml(b, gwB4.String(), gwA4.String(), "")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(a.socket(), filepath.Join(sockets, "charon.vici")); err != nil {
		t.Fatal(err)
	}
	b.start()
	a.start()
	s.ip("", fmt.Sprintf("link add mgre0 netns %s type veth peer name mgre1 netns %s\n", s.gwA, s.lanA))
	s.ip(s.lanA, "link set mgre1 up\n")
	s.ip(s.gwA, "link set mgre0 up\naddr add 10.255.0.1/32 dev mgre0\n")
	n := s.startNHRPD(s.gwA, sockets, fmt.Sprintf(`
interface mgre0
 tunnel source wan0
 ip nhrp network-id 1
 ip nhrp nhs 10.255.0.2 nbma %s
 tunnel protection vici profile dmvpn
`, gwB4))
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf(format+"\nnhrpd said:\n%s%s", append(args, tail(n.log(), 60), logs(a, b))...)
	}
	knows := func(when string) {
		t.Helper()
		var count int
		var id string
		if !eventually(30*time.Second, func() bool {
			count, id = n.sas(gwA4.String(), gwB4.String())
			return count == 1
		}) {
			fail("%s nhrpd knows of %d SAs, want 1", when, count)
		}
		if id != gwB4.String()+".example" {
			t.Errorf("%s nhrpd takes the peer for %q, want %s.example", when, id, gwB4)
		}
	}
	waits := func(what string, ok func() bool) {
		t.Helper()
		if !eventually(30*time.Second, ok) {
			fail("%s did not happen", what)
		}
	}

	knows("at first")
	if n.said("VICI: Event 'child-state-installed'") == 0 || n.said("unpatched") > 0 || n.said("VICI: strongSwan:") > 0 {
		fail("nhrpd does not have the events that it asks for, or was refused")
	}
	if sas, err := listSAs(a); err != nil || len(sas) != 1 || sas[0].conn != "site" || len(sas[0].children) != 1 {
		fail("nhrpd has asked for the wrong one: %+v %v", sas, err)
	}

	if out, err := command("swanctl", "--rekey", "--child", "dmvpn", "--uri", a.control()); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	waits("the rekeying's event", func() bool { return n.said("VICI: Event 'child-state-rekeyed'") > 0 })
	waits("the old SA's end", func() bool { return n.said("VICI: Event 'child-state-destroying'") > 0 })
	knows("after rekeying")
	if out, err := command("swanctl", "--terminate", "--ike", "site", "--uri", a.control()); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	waits("the end's event", func() bool { return n.said("VICI: Event 'child-state-destroying'") > 1 })

	// A new tunnel while nhrpd does not look: it knows of it because it lists the SAs.
	n.p.cmd.Process.Signal(syscall.SIGSTOP)
	a.kill()
	a.start()
	if err := a.initiate("dmvpn"); err != nil {
		t.Fatal(err)
	}
	before := n.said("VICI: Event 'list-sa'")
	n.p.cmd.Process.Signal(syscall.SIGCONT)
	waits("nhrpd's return", func() bool { return n.said("VICI: Event 'list-sa'") > before })
	knows("after a restart")
	if !n.p.alive() {
		fail("nhrpd has ended: %s", n.p.text())
	}
}
