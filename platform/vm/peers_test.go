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
// 10.1.N.1 and 10.2.N.1, of IPv6 likewise fd09:N::1, fd01:N::1 and so on.
type peers struct {
	scene
	toml strings.Builder // postern's configuration
	a, b strings.Builder // batches of the namespaces
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

func newPeers(name string) *peers {
	p := &peers{scene: scene{Name: name, Watch: "w", Hidden: []byte{syscall.IPPROTO_ICMP, syscall.IPPROTO_ICMPV6}, Files: map[string]file{}}}
	fmt.Fprintf(&p.toml, "[daemon]\nboard = \"small\"\ncontrol = %q\nstate_dir = \"/run/a/state\"\n", peerControl)
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
	return p
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

// echoes adds a check that echoes pass both ways between the hosts behind both gateways of
// connection n, or other two addresses.
func (p *peers) echoes(name string, n int) {
	p.echoesBetween(name, fmt.Sprintf("10.1.%d.1", n), fmt.Sprintf("10.2.%d.1", n))
}

func (p *peers) echoesBetween(name, ours, theirs string) {
	for _, c := range []check{{NS: "a", From: ours, To: theirs}, {NS: "b", From: theirs, To: ours}} {
		c.Name, c.Patience = fmt.Sprintf("%s: an echo from %s", name, c.NS), 20
		bits := map[bool]string{false: "/32", true: "/128"}[strings.Contains(ours, ":")]
		c.Control, c.Between = peerControl, [2]string{ours + bits, theirs + bits}
		p.Checks = append(p.Checks, c)
	}
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

// pluto is a scene with libreswan's daemon as the peer.
type pluto struct {
	*peers
	conf strings.Builder // ipsec.conf
	dir  string          // of the unpacked package's programs
	nss  string          // folder on this host with the daemon's certificates
}

const (
	plutoSocket = "/run/pluto/pluto.ctl"
	plutoDir    = "/usr/libexec/ipsec/" // where it looks for addconn, which feeds it its configuration
)

func newPluto(t *testing.T) *pluto {
	l := &pluto{peers: newPeers("pluto"), dir: filepath.Join(unpacked(t, "libreswan", nil), plutoDir), nss: t.TempDir()}
	l.conf.WriteString("config setup\n")
	l.Files["/etc/ipsec.secrets"] = file{0o600, fmt.Appendf(nil, ": PSK %q\n", peerSecret)}
	l.Files["/run/pluto/none"] = file{Mode: 0o644}
	l.Services[servicePeer] = service{NS: "b", Ready: plutoSocket, Args: []string{"/bin/pluto", "--nofork", "--stderrlog", "--log-no-time",
		"--config", "/etc/ipsec.conf", "--secretsfile", "/etc/ipsec.secrets", "--nssdir", "/etc/nss", "--rundir", "/run/pluto", "--no-dnssec"}}
	command(t, "", nil, "certutil", "-N", "-d", "sql:"+l.nss, "--empty-password")
	return l
}

// connection adds connection n on both sides. Lines of pluto's may say something else than what is
// there already.
func (l *pluto) connection(n int, conn, child, lines string) {
	l.peers.connection(n, conn, child)
	fmt.Fprintf(&l.conf, "conn n%d\n", n)
	for _, line := range strings.Split(fmt.Sprintf(`auto=add
ikev2=insist
authby=secret
left=10.9.%[1]d.2
leftid=@n%[1]d.peer
leftsubnet=10.2.%[1]d.1/32
right=10.9.%[1]d.1
rightid=@n%[1]d.postern
rightsubnet=10.1.%[1]d.1/32
leftupdown=%%disabled
`, n), "\n") {
		if key, _, _ := strings.Cut(line, "="); key != "" && !strings.Contains("\n"+lines, "\n"+key+"=") {
			fmt.Fprintf(&l.conf, "  %s\n", line)
		}
	}
	for _, line := range strings.Fields(lines) {
		fmt.Fprintf(&l.conf, "  %s\n", line)
	}
}

func whack(args ...string) []string {
	return append([]string{"/bin/whack", "--ctlsocket", plutoSocket}, args...)
}

func (l *pluto) run(t *testing.T) {
	for _, name := range []string{"cert9.db", "key4.db", "pkcs11.txt"} {
		data, err := os.ReadFile(filepath.Join(l.nss, name))
		if err != nil {
			t.Fatal(err)
		}
		l.Files["/etc/nss/"+name] = file{0o600, data}
	}
	l.Files["/etc/ipsec.conf"] = file{0o600, []byte(l.conf.String())}
	p := plan{memory: 768, programs: []string{filepath.Join(l.dir, "pluto"), filepath.Join(l.dir, "whack")}}
	addconn, err := os.ReadFile(filepath.Join(l.dir, "addconn"))
	if err != nil {
		t.Fatal(err)
	}
	l.Files[plutoDir+"addconn"] = file{0o755, addconn}
	for _, name := range []string{"libsoftokn3.so", "libfreeblpriv3.so", "libnssdbm3.so"} {
		p.plugins = append(p.plugins, "/usr/lib/x86_64-linux-gnu/"+name)
	}
	l.peers.run(t, p)
}

// loaded waits until pluto has taken the connections, which it does by itself after its start.
func (l *pluto) loaded() ask {
	return ask{Args: whack("--status"), Want: fmt.Sprintf(`connections: loaded %d,`, strings.Count(l.conf.String(), "conn n"))}
}

// TestPeerPluto has postern and libreswan's pluto make SAs with each other.
func TestPeerPluto(t *testing.T) {
	l := newPluto(t)
	l.connection(1, "", "", "")
	l.Checks = append(l.Checks,
		check{Name: "pluto takes the connections", NS: "b", Asks: []ask{l.loaded()}, Patience: 20},
		check{Name: "PSK: postern initiates", Do: [][]string{posternDoes("up", "n1")}})
	l.echoes("PSK", 1)
	l.Checks = append(l.Checks,
		check{Name: "PSK: postern deletes", NS: "b", Do: [][]string{posternDoes("down", "n1")}, Asks: []ask{{Args: whack("--trafficstatus"), Never: `"n1"`}}, Patience: 5},
		check{Name: "PSK: pluto initiates", NS: "b", Do: [][]string{whack("--initiate", "--name", "n1")}})
	l.echoes("PSK, initiated by pluto", 1)
	l.Checks = append(l.Checks, check{Name: "PSK: pluto deletes", NS: "b", Do: [][]string{whack("--terminate", "--name", "n1")},
		Asks: []ask{{Args: posternDoes("status", "n1"), Never: "established"}}, Patience: 5})
	l.run(t)
}
