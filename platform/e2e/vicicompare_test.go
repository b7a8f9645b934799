//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// vstep is what swanctl printed at one place of a scenario.
type vstep struct {
	scenario, name string
	nodes          []vnode
}

// vrun drives one daemon through all scenarios with Debian's swanctl and records what it prints. The
// daemon is on gateway A, its peer on B is charon whoever it is.
type vrun struct {
	t        *testing.T // of the scenario
	owner    *testing.T // of the daemons
	s        *site
	d, peer  *viciDaemon
	scenario string
	steps    []vstep
	watches  map[string]*process
	met      map[string]map[string]string // numbers of SAs by scenario: see inOrder
}

// record keeps what swanctl printed, with its exit status if that says something went wrong.
func (r *vrun) record(name, out string, err error) []vnode {
	r.t.Helper()
	nodes := r.read(name, out, err)
	r.add(name, nodes)
	return nodes
}

// add keeps a step.
func (r *vrun) add(name string, nodes []vnode) {
	r.steps = append(r.steps, vstep{r.scenario, name, nodes})
	// For those who look into a failure: what there was, in the folder that POSTERN_E2E_KEEP keeps.
	if f, err := os.OpenFile(filepath.Join(r.s.dir, "printed"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		fmt.Fprintf(f, "### %s: %s\n", r.scenario, name)
		for i := range nodes {
			fmt.Fprintln(f, nodes[i].render())
		}
		f.Close()
	}
}

// read makes comparable what swanctl printed.
func (r *vrun) read(name, out string, err error) []vnode {
	r.t.Helper()
	nodes, perr := parseVICI(strings.NewReplacer("disconnecting...\n", "", r.d.dir, "DIR").Replace(out))
	if perr != nil {
		r.t.Errorf("%s: %s: %v", r.scenario, name, perr)
	}
	nodes = r.inOrder(logForms(nodes))
	if err != nil {
		nodes = append(nodes, vnode{kind: vText, value: "exit status " + itoa(exitCode(err))})
	}
	return nodes
}

// show records what a command that changes nothing prints, in all three forms; --raw and --pretty have to
// say the same.
func (r *vrun) show(args ...string) {
	r.t.Helper()
	name := r.name(args)
	out, err := r.d.raw(args...)
	raw := r.record(name+" --raw", out, err)
	out, err = r.d.swanctl(append(slices.Clone(args), "--pretty")...)
	for _, d := range compareVICI(raw, r.read(name+" --pretty", out, err)) {
		r.t.Errorf("%s: %s: --raw and --pretty differ: %v", r.scenario, name, d)
	}
	out, err = r.d.swanctl(args...)
	r.record(name, out, err)
}

var saNumber = regexp.MustCompile(`(-id) \d+`)

// name is how a step is called: by its command and how often the scenario has had it.
func (r *vrun) name(args []string) string {
	name, n := strings.ReplaceAll(saNumber.ReplaceAllString(strings.Join(args, " "), "$1"), r.d.dir, "DIR"), 1
	for _, s := range r.steps {
		if s.scenario == r.scenario && (s.name == name || strings.HasPrefix(s.name, name+" (")) {
			n++
		}
	}
	if n > 1 {
		name += fmt.Sprintf(" (%d)", n)
	}
	return name
}

// run records what a command that changes something prints, with --raw where it knows that.
func (r *vrun) run(args ...string) {
	r.t.Helper()
	out, err := r.d.swanctl(args...)
	r.record(r.name(args), out, err)
}

// must is run for a command without which the rest makes no sense.
func (r *vrun) must(args ...string) {
	r.t.Helper()
	r.run(args...)
	last := r.steps[len(r.steps)-1].nodes
	for i := range last {
		if s := last[i].at("success"); s != nil && s.value != "yes" || strings.HasPrefix(last[i].value, "exit status") || strings.HasPrefix(last[i].value, "invalid config") {
			r.t.Fatalf("%s: swanctl %s: %v%s", r.scenario, strings.Join(args, " "), brief(last), logs(r.d, r.peer))
		}
	}
}

func brief(nodes []vnode) string {
	var b strings.Builder
	for i := range nodes {
		b.WriteString(nodes[i].brief() + "\n")
	}
	return b.String()
}

// begin starts a scenario: the directories are laid out, the peer's is loaded.
func (r *vrun) begin(scenario string, own, peers swanctlDir) {
	r.t.Helper()
	r.scenario = scenario
	r.d.lay(own)
	r.peer.replace(peers)
}

// loadAll loads everything of the directory.
func (r *vrun) loadAll() {
	r.t.Helper()
	r.must("--load-all", "--clear", "--noprompt", "--file", filepath.Join(r.d.dir, "swanctl.conf"), "--raw")
}

// end closes all connections of the subject and waits until both daemons have none.
func (r *vrun) end() {
	r.t.Helper()
	r.d.lay(swanctlDir{"swanctl.conf": "connections {}\n"})
	r.d.swanctl("--load-all", "--clear", "--noprompt", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	for range 3 {
		sas, _ := listSAs(r.d)
		for _, sa := range sas {
			r.d.swanctl("--terminate", "--ike-id", sa.unique, "--timeout", "10")
		}
		if gone(r.d, 3*time.Second) && gone(r.peer, 3*time.Second) {
			return
		}
		r.peer.swanctl("--terminate", "--ike", "site", "--force")
	}
	r.t.Errorf("%s: SAs are left at the end%s", r.scenario, logs(r.d, r.peer))
}

// settle waits until the subject has that many IKE SAs and CHILD SAs (-1: any) and nothing in progress.
func (r *vrun) settle(ikes, children int) {
	r.t.Helper()
	var out string
	if !eventually(25*time.Second, func() bool {
		out, _ = r.d.raw("--list-sas")
		nodes, err := parseVICI(out)
		i, c := 0, 0
		for _, n := range nodes {
			if n.name != "list-sa event" || len(n.kids) == 0 {
				continue
			}
			sa := &n.kids[0]
			if s := sa.at("state"); s == nil || s.value != "ESTABLISHED" || strings.Contains(out, " tasks-") {
				return false
			}
			i++
			if kids := sa.at("child-sas"); kids != nil {
				for _, k := range kids.kids {
					if s := k.at("state"); s == nil || s.value != "INSTALLED" {
						return false
					}
					c++
				}
			}
		}
		return err == nil && i == ikes && (c == children || children < 0)
	}) {
		r.t.Fatalf("%s: there are never %d IKE SAs and %d CHILD SAs at rest:\n%s%s", r.scenario, ikes, children, out, logs(r.d, r.peer))
	}
}

// watch starts a swanctl that prints events until stopWatch.
func (r *vrun) watch(args ...string) {
	r.t.Helper()
	name := strings.Join(args, " ")
	// Line by line, so that the test sees the events as they come.
	p := startIn(r.t, r.d.ns(), filepath.Join(r.d.dir, "daemon", "watch"+strings.ReplaceAll(r.scenario+name, " ", "-")), nil,
		"stdbuf", append(append([]string{"-oL", "swanctl"}, args...), "--uri", r.d.control())...)
	r.watches[name] = p
}

// stopWatch waits until the events printed so far contain the word that often and records them all.
func (r *vrun) stopWatch(word string, count int, args ...string) {
	r.t.Helper()
	name := strings.Join(args, " ")
	p := r.watches[name]
	if !eventually(20*time.Second, func() bool { return strings.Count(p.text(), word) >= count }) {
		r.t.Errorf("%s: %s never had %q %d times:\n%s", r.scenario, name, word, count, tail(p.text(), 20))
	}
	p.cmd.Process.Signal(syscall.SIGINT)
	if !p.wait(10 * time.Second) {
		r.t.Errorf("%s: %s does not end", r.scenario, name)
		p.kill()
	}
	r.record(name, p.text(), nil)
}

// client dials the daemon's socket.
func (r *vrun) client() *wireClient {
	r.t.Helper()
	w, err := dialWire(r.d.socket())
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

// register starts a client that gathers events, and records which of them the daemon knows.
func (r *vrun) register(names ...string) *wireClient {
	r.t.Helper()
	w := r.client()
	r.add("events", w.register(names...))
	w.collect()
	return w
}

// events waits for events of that name and records those that are not streamed with a command.
func (r *vrun) events(w *wireClient, name string, count int) {
	r.t.Helper()
	if !eventually(20*time.Second, func() bool { return w.count(name) >= count }) {
		r.t.Errorf("%s: there were %d events %s instead of %d", r.scenario, w.count(name), name, count)
	}
	nodes, err := w.stop()
	if err != nil {
		r.t.Errorf("%s: events: %v", r.scenario, err)
	}
	for i := range nodes {
		if nodes[i].name == "log event" || nodes[i].name == "control-log event" {
			nodes[i].name = "log" // as swanctl calls them
		}
	}
	r.add("events that came", r.inOrder(logForms(nodes)))
}

// commands records what the daemon answers to commands with nothing in them and with names that do not
// exist, which swanctl does not send so.
func (r *vrun) commands() {
	r.t.Helper()
	w := r.client()
	defer w.c.Close()
	for _, c := range []string{"get-conns", "get-keys", "get-shared", "get-pools", "get-authorities", "get-algorithms", "get-counters", "stats", "version",
		"load-conn", "unload-conn", "load-shared", "unload-shared", "load-cert", "load-key", "unload-key", "load-token", "load-pool", "unload-pool",
		"load-authority", "unload-authority", "clear-creds", "flush-certs", "initiate", "terminate", "rekey", "redirect", "install", "uninstall",
		"reset-counters", "reload-settings", "no-such-command", "list-sas",
		"unload-conn name=none", "unload-shared id=none", "unload-key id=0011", "unload-pool name=none", "unload-authority name=none",
		"load-shared type=none data=secret", "load-shared type=IKE id=x", "load-cert type=X509 flag=NONE data=none", "load-cert type=none data=none",
		"load-key type=any data=none", "load-key type=rsa", "get-counters name=none", "get-counters all=yes", "initiate child=none timeout=1000",
		"initiate ike=none", "terminate child-id=9 timeout=1000", "install child=none", "uninstall child=none", "flush-certs type=none", "flush-certs type=X509"} {
		f := strings.Fields(c)
		r.add("command "+c, w.call(f[0], f[1:]...))
	}
}

// charonGroups are the groups of charon's log and their levels are -1 to 4.
var charonGroups = strings.Fields("DMN MGR IKE CHD JOB CFG KNL NET ASN ENC TNC IMC IMV PTS TLS APP ESP LIB")

// vLogLine is a line of the log as swanctl prints it for people.
var vLogLine = regexp.MustCompile(`^(\d\d)?\[([A-Z]{3})\] (<([^|>]*)\|(\d+)> )?(.*)$`)

// logForms replaces the lines of a log, of which no two daemons have the same, by the forms that they have:
// the keys, and what is wrong with their values.
func logForms(nodes []vnode) []vnode {
	forms := vnode{kind: vSection, name: "log"}
	add := func(form string) {
		if !slices.ContainsFunc(forms.kids, func(k vnode) bool { return k.name == form }) {
			forms.kids = append(forms.kids, vnode{kind: vSection, name: form})
		}
	}
	var rest []vnode
	for _, n := range nodes {
		if m := vLogLine.FindStringSubmatch(n.value); n.kind == vText && m != nil {
			add(fmt.Sprintf("line thread=%v group=%v ikesa=%v", m[1] != "", slices.Contains(charonGroups, m[2]), m[3] != ""))
			continue
		}
		if n.name != "log" {
			rest = append(rest, n)
			continue
		}
		var keys []string
		for _, k := range n.kids {
			keys = append(keys, k.name)
			wrong := false
			switch k.name {
			case "group":
				wrong = !slices.Contains(charonGroups, k.value)
			case "level":
				wrong = !slices.Contains([]string{"-1", "0", "1", "2", "3", "4"}, k.value)
			case "thread", "ikesa-uniqueid":
				v, err := strconv.Atoi(k.value)
				wrong = err != nil || v < 0
			}
			if wrong || k.kind != vValue {
				add("wrong " + k.render())
			}
		}
		add(strings.Join(keys, "+"))
	}
	if len(forms.kids) > 0 {
		slices.SortFunc(forms.kids, func(a, b vnode) int { return strings.Compare(a.name, b.name) })
		rest = append(rest, forms)
	}
	return rest
}

// vpki is what the scenarios with certificates share: the same files for all daemons.
type vpki struct {
	root, a, b *credential
	crl        string
}

func newVPKI(t *testing.T) vpki {
	root := newRoot(t, "root", ecdsa256)
	p := vpki{root: root, a: root.issue(certSpec{name: "a.example"}), b: root.issue(certSpec{name: "b.example", kind: rsa2048, crlURIs: []string{"http://192.0.2.1/own.crl"}})}
	p.crl = root.crl(7, root.issue(certSpec{name: "lost.example"}))
	return p
}

// newVRun starts a daemon of that kind and its peer.
func newVRun(t *testing.T, kind daemonKind) *vrun {
	s := newSite(t)
	r := &vrun{t: t, owner: t, s: s, watches: map[string]*process{}, met: map[string]map[string]string{}}
	r.d = startVICI(s, 'a', kind, nil)
	r.peer = startVICI(s, 'b', kindCharon, nil)
	return r
}

// all goes through all scenarios, each a test below t.
func (r *vrun) all(t *testing.T, pki vpki) {
	use := func(t *testing.T) { r.t, r.s.t, r.d.t, r.peer.t = t, t, t, t }
	for _, f := range []struct {
		name string
		run  func(*vrun, vpki)
	}{{"secret", vSecret}, {"certificates", vCertificates}, {"gateway", vGateway}, {"client", vClient}, {"policies", vPolicies}, {"actions", vActions}} {
		t.Run(f.name, func(t *testing.T) {
			use(t)
			defer use(r.owner)
			f.run(r, pki)
		})
		r.end()
	}
	r.d.stop()
}

const vSecrets = `
secrets {
  ike-site { id-a = a.example
    id-b = b.example
    secret = thistle-and-thorn }
}
`

// vConn returns a connection "site" with a secret between the gateways; more goes into it.
func vConn(side byte, more string) string {
	me, other, local, remote := "a.example", "b.example", gwA4, gwB4
	if side == 'b' {
		me, other, local, remote = other, me, remote, local
	}
	return fmt.Sprintf(`  site {
    version = 2
    mobike = no
    local_addrs = %s
    remote_addrs = %s
    proposals = aes256-sha256-modp2048
    rand_time = 0
    local { auth = psk
      id = %s }
    remote { auth = psk
      id = %s }
%s  }
`, local, remote, me, other, more)
}

// vChild returns a child between the LANs; more goes into it.
func vChild(side byte, name, more string) string {
	local, remote := lanA4, lanB4
	if side == 'b' {
		local, remote = remote, local
	}
	return fmt.Sprintf(`      %s {
        local_ts = %s
        remote_ts = %s
        esp_proposals = aes128gcm16,aes256-sha256
        rand_time = 0
%s      }
`, name, local, remote, more)
}

func vKids(children ...string) string {
	return "    children {\n" + strings.Join(children, "") + "    }\n"
}

func vConf(parts ...string) swanctlDir {
	return swanctlDir{"swanctl.conf": "connections {\n" + strings.Join(parts, "") + "}\n" + vSecrets}
}

// vSecret: one tunnel with a secret, from the first command to the last.
func vSecret(r *vrun, _ vpki) {
	conf := func(side byte) swanctlDir { return vConf(vConn(side, vKids(vChild(side, "net", "")))) }
	r.begin("secret", conf('a'), conf('b'))
	file := []string{"--file", filepath.Join(r.d.dir, "swanctl.conf")}
	for _, c := range []string{"--list-conns", "--list-sas", "--list-pols", "--list-pools", "--list-certs", "--list-authorities", "--list-algs", "--stats", "--counters"} {
		r.show(c)
	}
	r.run("--version")
	r.show("--version", "--daemon")
	r.commands()
	// What names nothing that there is.
	for _, c := range [][]string{
		{"--initiate", "--child", "none"}, {"--initiate", "--ike", "none"}, {"--terminate", "--ike", "none"}, {"--terminate", "--child", "none"}, {"--terminate", "--ike-id", "77"},
		{"--terminate"}, {"--rekey"}, {"--initiate"}, {"--redirect"}, {"--redirect", "--gateway", "192.0.2.1"},
		{"--rekey", "--ike", "none"}, {"--rekey", "--child", "none"}, {"--redirect", "--ike", "none", "--gateway", "192.0.2.1"}, {"--counters", "--name", "none"},
	} {
		r.run(c...)
		r.run(append(c, "--raw")...)
	}
	for _, c := range []string{"--install", "--uninstall"} {
		r.run(c, "--child", "none")
		r.run(c, "--child", "net", "--ike", "none")
		r.run(c)
	}
	r.must(append([]string{"--load-creds", "--noprompt", "--raw"}, file...)...)
	r.must(append([]string{"--load-pools", "--raw"}, file...)...)
	r.must(append([]string{"--load-authorities", "--raw"}, file...)...)
	r.must(append([]string{"--load-conns", "--raw"}, file...)...)
	r.must(append([]string{"--load-creds", "--noprompt"}, file...)...)
	r.must(append([]string{"--load-conns"}, file...)...)
	r.must(append([]string{"--load-creds", "--clear", "--noprompt", "--pretty"}, file...)...)
	r.loadAll()
	r.show("--list-conns")
	r.run("--reload-settings", "--raw")
	r.run("--reload-settings")
	r.show("--list-conns")
	r.watch("--monitor-sa", "--raw")
	r.watch("--log", "--raw")
	r.watch("--log")
	r.watched()
	events := r.register("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey", "log", "control-log", "list-sa", "list-conn",
		"list-cert", "list-policy", "list-authority", "alert", "no-such-event")
	r.must("--initiate", "--child", "net", "--raw")
	r.settle(1, 1)
	r.show("--list-sas")
	r.pings()
	r.show("--list-sas")
	r.run("--list-sas", "--ike", "none", "--raw")
	r.run("--list-sas", "--child", "none", "--raw")
	r.run("--list-sas", "--ike-id", r.number("site"), "--raw")
	r.run("--list-sas", "--noblock", "--raw")
	r.must("--rekey", "--child", "net", "--raw")
	r.settle(1, 1)
	r.show("--list-sas")
	r.renewed("--rekey", "--ike", "site", "--raw")
	r.show("--list-sas")
	r.show("--counters")
	r.show("--counters", "--all")
	r.show("--counters", "--name", "site")
	r.run("--counters", "--reset", "--raw")
	r.show("--counters")
	r.run("--counters", "--reset", "--all", "--raw")
	r.show("--counters", "--all")
	r.run("--redirect", "--ike", "site", "--gateway", "192.0.2.1", "--raw")
	r.run("--install", "--child", "net")
	r.show("--list-pols")
	r.run("--install", "--child", "net")
	r.run("--uninstall", "--child", "net", "--ike", "site")
	r.show("--list-pols")
	r.must("--terminate", "--child", "net")
	r.settle(1, 0)
	r.show("--list-sas")
	r.must("--initiate", "--child", "net")
	r.settle(1, 1)
	r.run("--initiate", "--child", "net", "--raw") // a second one of the same
	r.settle(1, 1)
	r.must("--terminate", "--ike", "site", "--raw")
	r.show("--list-sas")
	r.events(events, "ike-updown", 2)
	r.stopWatch("ike-updown event {site", 1, "--monitor-sa", "--raw")
	r.stopWatch("log {", 5, "--log", "--raw")
	r.stopWatch("[", 5, "--log")
	// Authenticated anew, which the daemons do in another order: what is there at the end is the same.
	r.must("--initiate", "--child", "net", "--raw")
	r.settle(1, 1)
	r.renewed("--rekey", "--ike", "site", "--reauth", "--raw")
	r.show("--list-sas")
	r.must("--terminate", "--ike", "site", "--raw")
	// An IKE SA without a child, and one that is not waited for.
	r.must("--initiate", "--ike", "site", "--raw")
	r.settle(1, -1)
	r.show("--list-sas")
	r.must("--terminate", "--ike", "site", "--force", "--raw")
	if !gone(r.peer, 20*time.Second) {
		r.peer.swanctl("--terminate", "--ike", "site")
	}
}

// watched waits until the daemon knows those who watch: each has printed a line about an order that
// names nothing.
func (r *vrun) watched() {
	r.t.Helper()
	if !eventually(20*time.Second, func() bool {
		r.d.swanctl("--terminate", "--ike", "none")
		return r.watches["--log --raw"].text() != "" && r.watches["--log"].text() != ""
	}) {
		r.t.Errorf("%s: nothing is logged of what a client orders", r.scenario)
	}
}

// pings sends traffic through the tunnel both ways.
func (r *vrun) pings() {
	r.t.Helper()
	r.s.mustPing(r.t, false, r.d, r.peer)
}

// renewed runs a command that replaces the one IKE SA, and waits until that has happened.
func (r *vrun) renewed(args ...string) {
	r.t.Helper()
	old := r.number("site")
	r.must(args...)
	if !eventually(20*time.Second, func() bool {
		sas, err := listSAs(r.d)
		return err == nil && len(sas) == 1 && sas[0].unique != old
	}) {
		r.t.Errorf("%s: swanctl %s: there is no other IKE SA%s", r.scenario, strings.Join(args, " "), logs(r.d, r.peer))
	}
	r.settle(1, 1)
}

// number returns the number of the one IKE SA or CHILD SA of that name.
func (r *vrun) number(name string) string {
	r.t.Helper()
	sas, err := listSAs(r.d)
	for _, sa := range sas {
		if sa.conn == name {
			return sa.unique
		}
		for _, c := range sa.children {
			if c.name == name {
				return c.unique
			}
		}
	}
	r.t.Fatalf("%s: there is no SA %s (%v)%s", r.scenario, name, err, logs(r.d, r.peer))
	return ""
}

// inOrder replaces the numbers of SAs by the order in which a scenario meets them: an attempt that
// fails may take a number or not.
func (r *vrun) inOrder(nodes []vnode) []vnode {
	if r.met[r.scenario] == nil {
		r.met[r.scenario] = map[string]string{}
	}
	order := func(kind, n string) string {
		met := r.met[r.scenario]
		if met[kind+n] == "" {
			met[kind+n] = kind + itoa(len(met)+1)
		}
		return met[kind+n]
	}
	var walk func(kind string, nodes []vnode) []vnode
	walk = func(kind string, nodes []vnode) []vnode {
		nodes = slices.Clone(nodes)
		for i := range nodes {
			n := &nodes[i]
			switch {
			case n.kind == vText:
				for kind, re := range map[string]*regexp.Regexp{"ike": ikeLine, "child": childLine} {
					if m := re.FindStringSubmatch(n.value); m != nil {
						n.value = m[1] + order(kind, m[2]) + m[3]
					}
				}
			case n.name == "uniqueid" && kind != "":
				n.value = order(kind, n.value)
			case n.name == "child-sas":
				n.kids = walk("child", n.kids)
			case n.kind == vSection:
				inner := kind
				if inner == "" && n.at("uniqueid") != nil {
					inner = "ike"
				}
				if m := childName.FindStringSubmatch(n.name); m != nil && kind == "child" {
					n.name = m[1] + order(kind, m[2])
				}
				n.kids = walk(inner, n.kids)
			}
		}
		return nodes
	}
	return walk("", nodes)
}

var (
	ikeLine   = regexp.MustCompile(`^(\S+: )#(\d+)(, [A-Z]+, IKEv.*)$`)
	childLine = regexp.MustCompile(`^(  \S+: )#(\d+)(, reqid.*)$`)
	childName = regexp.MustCompile(`^(.*-)(\d+)$`)
)

// vCertificates: both prove themselves with certificates, with a revocation list at hand.
func vCertificates(r *vrun, pki vpki) {
	conf := func(own, other *credential, local, remote string) swanctlDir {
		return swanctlDir{
			"swanctl.conf": fmt.Sprintf(`connections {
  site {
    version = 2
    mobike = no
    local_addrs = %s
    remote_addrs = %s
    proposals = aes128gcm16-prfsha256-x25519
    rand_time = 0
    local { auth = pubkey
      certs = own.pem
      id = %s }
    remote { auth = pubkey
      id = "C=CH, O=Weir and Lock, CN=%s"
      cacerts = root.pem
      revocation = strict }
    children { net { local_ts = %s
      remote_ts = %s
      esp_proposals = aes256gcm16-ecp256
      rand_time = 0 } }
  }
}
authorities {
  weir { cacert = root.pem
    crl_uris = http://192.0.2.1/root.crl, http://192.0.2.2/root.crl
    ocsp_uris = http://192.0.2.1/ocsp }
}
`, local, remote, "\"C=CH, O=Weir and Lock, CN="+own.name+"\"", other.name, vLanOf(own.name), vLanOf(other.name)),
			"x509/own.pem": own.certPEM(), "private/own.pem": own.keyPEM(), "x509ca/root.pem": pki.root.certPEM(), "x509crl/root.pem": pki.crl,
			"pubkey/raw.pem": other.publicPEM(),
		}
	}
	r.begin("certificates", conf(pki.a, pki.b, gwA4.String(), gwB4.String()), conf(pki.b, pki.a, gwB4.String(), gwA4.String()))
	r.loadAll()
	r.show("--list-conns")
	r.show("--list-authorities")
	r.show("--list-authorities", "--name", "weir")
	r.show("--list-authorities", "--name", "none")
	r.show("--list-certs")
	for _, f := range [][]string{{"--type", "x509"}, {"--type", "x509_crl"}, {"--type", "pubkey"}, {"--type", "x509_ac"}, {"--type", "ocsp_response"},
		{"--flag", "ca"}, {"--flag", "none"}, {"--flag", "ocsp"}, {"--subject", "C=CH, O=Weir and Lock, CN=a.example"}, {"--subject", "a.example"}, {"--subject", "none"}} {
		r.run(append([]string{"--list-certs", "--raw"}, f...)...)
	}
	r.run("--list-certs", "--pem")
	r.run("--list-certs", "--short", "--utc")
	r.must("--initiate", "--child", "net", "--raw")
	r.settle(1, 1)
	r.show("--list-sas")
	r.show("--list-certs")
	r.run("--flush-certs", "--type", "x509_crl", "--raw")
	r.run("--list-certs", "--raw")
	r.run("--flush-certs")
	r.run("--list-certs", "--raw")
	r.must("--terminate", "--ike", "site", "--raw")
	// Loaded again there is nothing new, and without the credentials nothing is left.
	r.loadAll()
	r.run("--list-certs", "--raw")
	r.d.lay(swanctlDir{"swanctl.conf": "connections {}\n"})
	r.loadAll()
	r.show("--list-certs")
	r.show("--list-authorities")
}

func vLanOf(name string) string {
	if name == "a.example" {
		return lanA4
	}
	return lanB4
}

const vPools = `pools {
  four { addrs = 10.77.0.0/29
    dns = 10.1.0.53, 10.1.0.54 }
  six { addrs = fd77::/125
    dns = fd01::53 }
  spare { addrs = 10.78.0.10-10.78.0.12 }
}
`

// vRoam returns the two ends of a road warrior's connection.
func vRoam(side byte) (client, gateway string) {
	near, far := lanA4+","+lanA6, lanB4+","+lanB6
	other := byte('b')
	if side == 'b' {
		near, far, other = far, near, 'a'
	}
	_ = near
	kid := func(more string) string {
		return "    children { net { esp_proposals = aes128gcm16\n rand_time = 0\n " + more + " } }\n"
	}
	return "connections {\n" + vConn(side, "    vips = 0.0.0.0, ::\n"+kid("remote_ts = "+far)) + "}\n" + vSecrets,
		"connections {\n" + vConn(other, "    pools = four, six\n"+kid("local_ts = "+far)) + "}\n" + vPools + vSecrets
}

// vGateway: the daemon gives addresses of both families out of its pools.
func vGateway(r *vrun, _ vpki) {
	client, gateway := vRoam('b')
	r.begin("gateway", swanctlDir{"swanctl.conf": gateway}, swanctlDir{"swanctl.conf": client})
	r.loadAll()
	r.must("--load-pools", "--raw", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	r.show("--list-conns")
	r.show("--list-pools")
	r.watch("--monitor-sa", "--raw")
	time.Sleep(time.Second / 2)
	if err := r.peer.initiate("net"); err != nil {
		r.t.Fatalf("gateway: %v%s", err, logs(r.d, r.peer))
	}
	r.settle(1, 1)
	r.show("--list-sas")
	r.show("--list-pools")
	r.show("--list-pools", "--leases")
	r.show("--list-pools", "--name", "four", "--leases")
	r.run("--list-pools", "--name", "none", "--raw")
	// A pool in use stays, whatever the file says.
	r.d.lay(swanctlDir{"swanctl.conf": strings.Replace(gateway, "four {", "other {", 1)})
	r.run("--load-pools", "--raw", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	r.show("--list-pools")
	r.d.lay(swanctlDir{"swanctl.conf": gateway})
	r.must("--load-pools", "--raw", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	if err := r.peer.terminate(""); err != nil {
		r.t.Error(err)
	}
	r.settle(0, 0)
	r.show("--list-pools", "--leases")
	r.stopWatch("event {", 4, "--monitor-sa", "--raw")
	for _, by := range []string{"--ike=site", "--peer-ip=" + gwB4.String(), "--peer-id=b.example", "--peer-id=*.example"} {
		if err := r.peer.initiate("net"); err != nil {
			r.t.Fatalf("gateway: %v%s", err, logs(r.d, r.peer))
		}
		r.settle(1, 1)
		r.run("--redirect", by, "--gateway", "192.0.2.1", "--raw")
		// The peer goes for the other gateway, where nobody is.
		if !eventually(20*time.Second, func() bool {
			r.peer.swanctl("--terminate", "--ike", "site", "--force")
			r.d.swanctl("--terminate", "--ike", "site", "--force")
			return gone(r.peer, 0) && gone(r.d, 0)
		}) {
			r.t.Errorf("gateway: SAs are left after a redirection%s", logs(r.d, r.peer))
		}
	}
}

// vClient: the daemon is given addresses.
func vClient(r *vrun, _ vpki) {
	client, gateway := vRoam('a')
	r.begin("client", swanctlDir{"swanctl.conf": client}, swanctlDir{"swanctl.conf": gateway})
	r.loadAll()
	r.show("--list-conns")
	r.must("--initiate", "--child", "net", "--raw")
	r.settle(1, 1)
	r.show("--list-sas")
	r.must("--terminate", "--ike", "site", "--raw")
}

// vPolicies: many connections and children of all kinds, traps and shunts.
func vPolicies(r *vrun, _ vpki) {
	conf := vConf(vConn('a', `    dpd_delay = 30s
    unique = replace
    rekey_time = 2h
    reauth_time = 3h
`+vKids(vChild('a', "net", ""),
		"      ports { local_ts = 10.1.0.0/24[tcp/502],10.1.0.0/24[udp]\n remote_ts = 10.3.0.0/24[tcp],10.3.0.0/24[udp/161]\n esp_proposals = aes128gcm16\n rand_time = 0\n rekey_time = 20m\n rekey_bytes = 500000000\n rekey_packets = 1000000\n priority = 7 }\n",
		"      trapped { local_ts = fd01::/64\n remote_ts = fd02::/64\n esp_proposals = aes128gcm16\n start_action = trap\n close_action = trap\n dpd_action = restart }\n")), `
  hosts {
    remote_addrs = 192.0.2.7, 192.0.2.8
    local_addrs = %any
    local { auth = psk
      id = gw@weir.example }
    remote { auth = psk
      id = "@#0a0b0c" }
    children {
      direct { mode = transport
        esp_proposals = aes128gcm16
        dpd_action = trap
        close_action = start }
      icmp { local_ts = dynamic[icmp]
        remote_ts = dynamic[icmp]
        mode = transport }
      sctp { local_ts = 10.1.0.0/24[132/2905-2910]
        remote_ts = 0.0.0.0/0,::/0 }
    }
  }
  anyone {
    version = 2
    local_addrs = 198.51.100.1, 2001:db8:a::1
    unique = keep
    dpd_delay = 1m
    local { auth = psk }
    remote { auth = psk
      id = *@weir.example }
    local-second { auth = psk
      id = 192.0.2.9
      round = 2 }
    ppk_id = ours
    ppk_required = yes
    children { all { local_ts = 0.0.0.0/0
       start_action = none } }
  }
  shunts {
    remote_addrs = 127.0.0.1
    children {
      print { mode = pass
        local_ts = 10.1.0.0/24
        remote_ts = 10.9.0.0/24[tcp/9100]
        start_action = trap }
      never { mode = drop
        local_ts = 10.1.0.0/24
        remote_ts = 10.8.0.0/24
        start_action = trap }
      later { mode = pass
        local_ts = 10.1.0.0/24
        remote_ts = 10.7.0.0/24 }
    }
  }
`)
	peer := vConf(vConn('b', vKids(vChild('b', "net", ""), "      ports { local_ts = 10.3.0.0/24\n remote_ts = 10.1.0.0/24\n esp_proposals = aes128gcm16 }\n")))
	r.begin("policies", conf, peer)
	r.loadAll()
	r.show("--list-conns")
	r.show("--list-pols")
	for _, f := range []string{"--trap", "--pass", "--drop"} {
		r.show("--list-pols", f)
	}
	r.show("--list-pols", "--child", "print")
	r.show("--list-pols", "--child", "none")
	r.run("--install", "--child", "later")
	r.run("--install", "--child", "ports", "--ike", "site")
	r.show("--list-pols")
	r.run("--uninstall", "--child", "later", "--ike", "shunts")
	r.run("--uninstall", "--child", "print")
	r.run("--uninstall", "--child", "trapped")
	r.show("--list-pols")
	r.must("--initiate", "--child", "net", "--raw")
	r.must("--initiate", "--child", "ports", "--ike", "site", "--raw")
	r.settle(1, 2)
	r.show("--list-sas")
	r.run("--list-sas", "--child", "ports", "--raw")
	r.run("--list-sas", "--child-id", r.number("ports"), "--raw")
	r.must("--terminate", "--child", "ports", "--raw")
	r.settle(1, 1)
	r.run("--uninstall", "--child", "ports", "--ike", "site")
	// A connection that the file no longer has takes its traps along; the others stay.
	r.d.lay(vConf(vConn('a', vKids(vChild('a', "net", "")))))
	r.must("--load-conns", "--raw", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	r.show("--list-conns")
	r.show("--list-pols")
	r.show("--list-sas")
	// What cannot be is refused by name and changes nothing.
	for _, bad := range []string{"    proposals = aes512-sha256-modp2048\n", "    rekey_time = soon\n", "    unheard_of = yes\n"} {
		r.d.lay(vConf(strings.Replace(vConn('a', bad+vKids(vChild('a', "net", ""))), "    proposals = aes256-sha256-modp2048\n", "", 1)))
		r.run("--load-conns", "--raw", "--file", filepath.Join(r.d.dir, "swanctl.conf"))
	}
	r.show("--list-conns")
}

// vActions: what happens by itself: at the start, when the peer closes, and when it is silent.
func vActions(r *vrun, _ vpki) {
	own := vConf(vConn('a', "    dpd_delay = 2s\n"+vKids(vChild('a', "net", "        start_action = start\n        close_action = start\n        dpd_action = restart\n"),
		"      trapped { local_ts = fd01::/64\n remote_ts = fd02::/64\n esp_proposals = aes128gcm16\n start_action = trap }\n")))
	r.begin("actions", own, vConf(vConn('b', vKids(vChild('b', "net", "")))))
	r.watch("--monitor-sa", "--raw")
	time.Sleep(time.Second / 2)
	r.loadAll()
	r.settle(1, 1)
	r.show("--list-conns")
	r.show("--list-sas")
	r.show("--list-pols")
	if err := r.peer.terminate("net"); err != nil {
		r.t.Errorf("actions: %v", err)
	}
	again := func(d time.Duration) bool {
		return eventually(d, func() bool {
			found := children(r.d, "net")
			return len(found) == 1 && found[0].state == "INSTALLED" && found[0].unique != "1"
		})
	}
	if !again(20 * time.Second) {
		r.t.Errorf("actions: the child that the peer closed does not come back%s", logs(r.d, r.peer))
	}
	r.settle(1, 1)
	r.show("--list-sas")
	r.stopWatch("child-updown event {up=yes", 2, "--monitor-sa", "--raw")
	// A silent peer: what is shown while its answer to the check is waited for.
	r.peer.freeze()
	if !eventually(20*time.Second, func() bool {
		out, err := r.d.raw("--list-sas")
		return err == nil && strings.Contains(out, "tasks-active")
	}) {
		r.t.Errorf("actions: nothing shows that the peer is being checked%s", logs(r.d))
	}
	r.show("--list-sas")
	r.peer.p.cmd.Process.Signal(syscall.SIGCONT)
	r.settle(1, 1)
}

// vReport compares two recordings and returns the differences that are not allowed, each once with the
// steps that show it, and which of the allowed ones there were.
func vReport(want, got *vrun) (report []string, met map[int]bool) {
	by := map[string][]vnode{}
	for _, s := range got.steps {
		by[s.scenario+": "+s.name] = s.nodes
	}
	steps := map[string][]string{}
	met = map[int]bool{}
	unlike := map[string]bool{} // steps
	for _, s := range want.steps {
		name := s.scenario + ": " + s.name
		nodes, ok := by[name]
		if !ok {
			report = append(report, name+": not reached")
			continue
		}
		if unlike[name+" --raw"] {
			continue // swanctl makes its tables out of the same messages
		}
		for _, d := range compareVICI(s.nodes, nodes) {
			unlike[name] = true
			if i := slices.IndexFunc(vAllowed, func(a vAllow) bool { return a.covers(name, d) }); i >= 0 {
				met[i] = true
				continue
			}
			text := d.String()
			if steps[text] == nil {
				report = append(report, text)
			}
			steps[text] = append(steps[text], name)
		}
	}
	for i, text := range report {
		if in := steps[text]; len(in) > 0 {
			report[i] += fmt.Sprintf(" (%d times, first after %q)", len(in), in[0])
		}
	}
	return report, met
}

// vAllow is a difference from charon that is wanted.
type vAllow struct {
	step, path, what string // regular expressions for all of it
	reason           string
}

func (a vAllow) covers(step string, d vdiff) bool {
	is := func(re, s string) bool { return regexp.MustCompile("^(?:" + re + ")$").MatchString(s) }
	return is(a.step, step) && is(a.path, d.path) && is(a.what, d.what)
}

// vAllowed are the differences that are wanted. One that does not occur any more fails the test.
var vAllowed = []vAllow{
	{".*", "get-algorithms reply/[a-z-]+/[A-Z0-9_]+", "missing", "what is broken or of no use on a small router is not built in"},
	{".*", "get-algorithms reply/(aead|dh)/(NULL_AES_GMAC|[A-Z0-9_]+_IIV|ML_KEM_[0-9]+)", "extra", "this charon does not have them"},
	{".*", "get-algorithms reply/(integrity|prf|dh)/[A-Z0-9_]+", "order", "charon has them in the order in which its plugins were loaded"},
	{"secret: events", `text "alert: (confirmed|unknown)"`, "extra|missing", "newer versions of charon have it"},
	{"secret: --redirect --ike site .*", "redirect reply/(success|errmsg)", "value|extra", "charon says yes and does nothing: the gateway is the one that redirects, not the initiator"},
	{`secret: --initiate --child net --raw \(2\)`, "log|initiate reply/(success|errmsg)", "missing|value", "what was asked for is there: a script that asks twice has succeeded"},
	{".*", "(ike|child)-[a-z]+ event(#[0-9]+)?/.*/tasks-(active|passive|queued)", "missing", "what a daemon is busy with inside while it tells of something is its own affair"},
	{"gateway: .*", "get-pools reply/[a-z]+/base", "value", "a pool is made of ranges here, and begins with the first address that it gives out"},
	{"gateway: .*", "get-pools reply/[a-z]+", "order", "charon has them in the order of a hash table"},
	{"policies: .*", "list-(conn|policy|sa) event[^/]*(/ports)?/.*/remote-ts", "value", "ports are written as numbers: a small router has no /etc/services"},
	{"policies: --list-conns.*", "list-conn event(#[0-9]+)?/(hosts|shunts)/version", "value", "IKEv1 is not spoken, whatever the connection leaves open"},
	{"policies: --list-conns.*", "list-conn event(#[0-9]+)?/shunts/(local|remote)-1/class", "extra", "a round that says nothing means a secret here"},
	{`policies: --list-sas \(2\).*`, "list-sa event/site/(reauth-time|rekey-time)", "missing|value", "SAs that run take over the times of the connection that was loaded again"},
	{"certificates: .*", "list-cert event [0-9a-f]{8}", "missing", "certificates that peers send are kept no longer than their handshake takes"},
	{"certificates: --list-sas.*", "list-sa event/site/reauth-time", "extra", "before a certificate ends the IKE SA is authenticated anew"},
	{"client: --(initiate|terminate).*", `log/group\+level(\+ikesa-name)?\+msg`, "extra", "addresses that are assigned, and their routes, belong to the connection or to the whole daemon"},
	{"secret: --terminate --ike site --force.*", "log", "missing", "what is forced waits for nothing that could be logged"},
	{"policies: --list-pols.*", "list-policy event .*", "order", "policies stand in the order in which packets meet them"},
}

// spoiledVICI makes sure that the comparison sees whatever is altered in a recording.
func spoiledVICI(t *testing.T, r *vrun) {
	seen, tried := map[string]bool{}, 0
	for _, s := range r.steps {
		var text strings.Builder
		for i := range s.nodes {
			text.WriteString(s.nodes[i].render())
		}
		if seen[text.String()] || text.Len() > 1600 {
			continue
		}
		seen[text.String()] = true
		n, missed := doctorVICI(s.nodes)
		tried += n
		for _, m := range missed {
			t.Errorf("%s: %s: not seen: %s", s.scenario, s.name, m)
		}
	}
	t.Logf("%d altered recordings were told from what charon printed", tried)
}

// TestSwanctlShowsWhatCharonShows drives charon, charon again and postern through the same scenarios
// with Debian's swanctl, and compares what that prints.
func TestSwanctlShowsWhatCharonShows(t *testing.T) {
	needCharon(t)
	need(t, "swanctl", "stdbuf")
	t.Parallel()
	pki := newVPKI(t)
	names := []string{"charon", "charon again", "postern"}
	if only := os.Getenv("POSTERN_E2E_COMPARE"); only != "" {
		names = strings.Split(only, ",")
	}
	runs := make([]*vrun, len(names))
	t.Run("record", func(t *testing.T) {
		for i, n := range names {
			t.Run(n, func(t *testing.T) {
				t.Parallel()
				kind := kindCharon
				if n == "postern" {
					kind = kindPostern
				}
				runs[i] = newVRun(t, kind)
				runs[i].all(t, pki)
			})
		}
	})
	for i, n := range names[1:] {
		want, got := runs[0], runs[i+1]
		if want == nil || got == nil {
			continue // it has failed already
		}
		t.Run(n, func(t *testing.T) {
			report, met := vReport(want, got)
			for _, d := range report {
				t.Errorf("unlike charon: %s", d)
			}
			if n != "postern" {
				spoiledVICI(t, got)
			}
			for i, a := range vAllowed {
				if n == "postern" && !met[i] {
					t.Errorf("%s of %s after %s is allowed but does not occur any more: take it off the list", a.what, a.path, a.step)
				} else if n != "postern" && met[i] {
					t.Errorf("%s of %s after %s is allowed, but charon differs so from itself", a.what, a.path, a.step)
				}
			}
		})
	}
}
