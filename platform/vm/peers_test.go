//go:build linux

package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// peers is a scene with postern in namespace a and another IKE daemon, whose ESP is Linux's, in
// namespace b. They meet over a bridge in namespace w. Each pair of connections has a number, from 1
// to 99, and its own addresses: of the gateways 10.9.N.1 and 10.9.N.2, of what is behind them
// 10.1.N.1 and 10.2.N.1, of IPv6 likewise fd09:N::1, fd01:N::1 and so on. There can be 16 of them at
// most: postern sends from no more addresses of its own host.
type peers struct {
	scene
	toml strings.Builder // postern's configuration
	a, b strings.Builder // batches of the namespaces
	dir  string          // on this host, for certificates and the postern that makes them
}

const (
	peerSecret  = "a secret that both of them know, long enough for any PRF of the suites, and then some"
	peerControl = "/run/a/charon.vici"
)

// The services of a scene of peers.
const (
	servicePostern = iota
	servicePeer
)

func newPeers(t *testing.T, name string) *peers {
	p := &peers{dir: t.TempDir(), scene: scene{Name: name, Watch: "w", Hidden: []byte{syscall.IPPROTO_ICMP, syscall.IPPROTO_ICMPV6}, Files: map[string]file{}}}
	fmt.Fprintf(&p.toml, "[daemon]\nboard = \"large\"\ncontrol = %q\nstate_dir = \"/run/a/state\"\n[log]\nike = \"debug\"\n", peerControl)
	fmt.Fprintf(&p.toml, "[secrets.all]\nsecret = %q\n", peerSecret)
	for _, b := range []*strings.Builder{&p.a, &p.b} {
		b.WriteString("link set lo up\nlink set eth0 up\n")
	}
	p.b.WriteString("addr add 10.9.0.2/24 dev eth0\nroute add default via 10.9.0.1\naddr add fd09::2/64 dev eth0 nodad\nroute add default via fd09::1\n")
	p.a.WriteString("addr add 10.9.0.1/24 dev eth0\naddr add fd09::1/64 dev eth0 nodad\n")
	p.Services = []service{
		servicePostern: {NS: "a", Args: []string{"/postern", "run", "-c", "/run/a/postern.toml"}, Ready: peerControl},
		servicePeer:    {}, // the peer's own
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		lacks(t, "busybox is not installed; apt-get install busybox-static")
	}
	p.Files["/bin/busybox"] = file{0o755, busybox}
	command(t, "../..", []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", filepath.Join(p.dir, "postern"), ".")
	return p
}

// pki runs "postern pki" in the folder of the certificates.
func (p *peers) pki(t *testing.T, args ...string) {
	t.Helper()
	command(t, p.dir, nil, "./postern", append([]string{"pki"}, args...)...)
}

// copy puts a file of that folder into the machine: a key for root alone, the rest for all.
func (p *peers) copy(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, from))
	if err != nil {
		t.Fatal(err)
	}
	mode := uint32(0o644)
	if strings.HasSuffix(to, ".key") {
		mode = 0o600
	}
	p.Files[to] = file{mode, data}
}

// connection adds the addresses of connection n and its configuration in postern: lines of the
// connection, whose local and remote addresses, identities (nN.postern and nN.peer) and secret are
// there already, and lines of its only child, "net", which has selectors for IPv4 where the lines
// have none.
func (p *peers) connection(n int, conn, child string) {
	for _, end := range []struct {
		b    *strings.Builder
		host int
	}{{&p.a, 1}, {&p.b, 2}} {
		fmt.Fprintf(end.b, "addr add 10.9.%[1]d.%[2]d/24 dev eth0\naddr add 10.%[2]d.%[1]d.1/32 dev lo\n"+
			"addr add fd09:%[1]d::%[2]d/64 dev eth0 nodad\naddr add fd0%[2]d:%[1]d::1/128 dev lo nodad\n", n, end.host)
	}
	if !strings.Contains(conn, "local_addrs") {
		conn = fmt.Sprintf("local_addrs = [\"10.9.%[1]d.1\"]\nremote_addrs = [\"10.9.%[1]d.2\"]\n", n) + conn
	}
	if !strings.Contains(conn, "local.id") {
		conn += fmt.Sprintf("local.id = \"n%[1]d.postern\"\nremote.id = \"n%[1]d.peer\"\n", n)
	}
	if !strings.Contains(child, "local_ts") {
		child += fmt.Sprintf("local_ts = [\"10.1.%[1]d.1/32\"]\nremote_ts = [\"10.2.%[1]d.1/32\"]\n", n)
	}
	if !strings.Contains(child, "start_action") {
		child += "start_action = \"none\"\n"
	}
	fmt.Fprintf(&p.toml, "[connections.n%[1]d]\n%[2]s\n[connections.n%[1]d.children.net]\n%[3]s\n", n, conn, child)
}

// finished returns the scene.
func (p *peers) finished() scene {
	p.Files["/run/a/postern.toml"] = file{0o600, []byte(p.toml.String())}
	p.Setup = []step{
		{"", "netns add w\nnetns add a\nnetns add b\n" +
			"link add eth0 netns a type veth peer name to-a netns w\nlink add eth0 netns b type veth peer name to-b netns w\n"},
		{"w", "link set lo up\nlink add bridge type bridge\nlink set bridge up\n" +
			"link set to-a master bridge\nlink set to-a up\nlink set to-b master bridge\nlink set to-b up\n"},
		{"a", p.a.String()}, {"b", p.b.String()},
	}
	return p.scene
}

// posternDoes returns the arguments of postern's command with the socket of the daemon.
func posternDoes(command string, args ...string) []string {
	return append([]string{"/postern", command, "--socket", peerControl}, args...)
}

// add adds checks that what follows does not need.
func (p *peers) add(checks ...check) {
	for _, c := range checks {
		c.Alone = true
		if c.Patience == 0 {
			c.Patience = 60
		}
		p.Checks = append(p.Checks, c)
	}
}

// echoes adds checks that echoes pass both ways between the hosts behind both gateways of
// connection n, or two other addresses, through postern's SA for these.
func (p *peers) echoes(name string, n int) {
	p.echoesBetween(name, fmt.Sprintf("10.1.%d.1", n), fmt.Sprintf("10.2.%d.1", n))
}

func (p *peers) echoesBetween(name, ours, theirs string) {
	bits := map[bool]string{false: "/32", true: "/128"}[strings.Contains(ours, ":")]
	for _, c := range []check{{NS: "a", From: ours, To: theirs}, {NS: "b", From: theirs, To: ours}} {
		c.Name, c.Control, c.Between = fmt.Sprintf("%s: an echo from %s", name, c.NS), peerControl, [2]string{ours + bits, theirs + bits}
		p.add(c)
	}
}

// says is that a service's log has come to match the pattern.
func says(service int, pattern string) ask {
	return ask{Args: []string{"/bin/busybox", "cat", fmt.Sprintf("/tmp/service.%d", service)}, Want: pattern}
}

// run boots the scene.
func (p *peers) run(t *testing.T, pl plan) {
	sc := p.finished()
	pl.Scenes = []scene{sc}
	passed, failed, console := boot(t, pl, strings.Fields(modules+" bridge af_packet af_key"))
	for name, why := range failed {
		t.Errorf("%s: %s", name, why)
	}
	if want := len(sc.Checks) + 1; len(passed) != want {
		t.Errorf("%d of %d passed: %q", len(passed), want, passed)
	}
	if t.Failed() {
		t.Logf("the console:\n%s", console[max(0, len(console)-60000):])
	}
	fmt.Printf("virtual machine: %s\n", strings.Join(passed, "; "))
}
