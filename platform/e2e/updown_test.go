//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Scripts of children: the same one under charon and under postern, each once as the side that calls and once as
// the one that is called, is told the same.

// udConn is a connection of both sides, from the view of side a.
type udConn struct {
	name       string
	v6         bool // outside
	idA, idB   string
	encap      bool
	client     bool // side a gets addresses from pools of side b
	children   []udChild
	hostAccess bool
}

type udChild struct {
	name string
	a, b []string // selectors; none: dynamic
	runs int      // pairs of them
}

var udConns = []udConn{
	{name: "four", idA: "a.example", idB: "b.example", children: []udChild{
		{"net4", []string{lanA4}, []string{"10.4.0.0/24"}, 1},
		{"net6", []string{lanA6}, []string{lanB6}, 1},
		{"ports", []string{lanA4 + "[tcp]", lanA4 + "[udp/53]"}, []string{lanB4 + "[tcp/502]", lanB4 + "[udp/1000-2000]"}, 2},
		{"ping", []string{lanA4 + "[icmp/8]"}, []string{lanC4 + "[icmp]"}, 1},
		{"more", []string{lanA4}, []string{"10.5.0.0/24", "10.6.0.0/24", lanB6}, 2},
	}},
	{name: "host", idA: "CN=a, O=Example", idB: "b@example.org", encap: true, hostAccess: true, children: []udChild{{"host4", nil, nil, 1}}},
	{name: "six", v6: true, idA: "2001:db8:a::1", idB: "203.0.113.1", children: []udChild{{"host6", nil, nil, 1}, {"mixed", []string{"dynamic"}, []string{lanB6}, 1}}},
	{name: "rw", idA: "c.example", idB: "b.example", client: true, children: []udChild{{"roam", []string{"dynamic"}, []string{lanB4, lanB6}, 2}}},
}

const udSecret = "sandpiper-and-sedge-nineteen"

// udScript appends what it is told to a file, one run at a time, and says something on both outputs.
const udScript = `#!/bin/sh
{ echo "run $*"; env | sort; ls /proc/$$/fd; echo end; } > "$1.$$"
cat "$1.$$" >> "$1"
rm "$1.$$"
echo "heard $PLUTO_VERB of $PLUTO_CONNECTION"
echo "on the other output" >&2
`

// udSide lays out the script of a side and returns its command.
func udSide(s *site, side byte) (command, runs string) {
	s.t.Helper()
	script := filepath.Join(s.dir, "updown-"+string(side))
	if err := os.WriteFile(script, []byte(udScript), 0o755); err != nil {
		s.t.Fatal(err)
	}
	runs = script + ".runs"
	return script + " " + runs + " 'two words'", runs
}

// udSwanctl starts a daemon with all connections.
func udSwanctl(s *site, side byte, kind daemonKind) (d daemon, runs string) {
	s.t.Helper()
	command, runs := udSide(s, side)
	var b strings.Builder
	b.WriteString("connections {\n")
	for _, c := range udConns {
		local, remote, me, other := gwAddr('a', c.v6), gwAddr('b', c.v6), c.idA, c.idB
		if side == 'b' {
			local, remote, me, other = remote, local, other, me
		}
		fmt.Fprintf(&b, "  %s { version = 2\n    local_addrs = %s\n    remote_addrs = %s\n    proposals = %s\n", c.name, local, remote, usualIKE)
		if c.encap {
			b.WriteString("    encap = yes\n")
		}
		if c.client && side == 'a' {
			b.WriteString("    vips = 0.0.0.0,::\n")
		} else if c.client {
			b.WriteString("    pools = p4,p6\n")
		}
		fmt.Fprintf(&b, "    local { auth = psk\n id = %q }\n    remote { auth = psk\n id = %q }\n    children {\n", me, other)
		for _, ch := range c.children {
			l, r := ch.a, ch.b
			if side == 'b' {
				l, r = r, l
			}
			fmt.Fprintf(&b, "      %s { esp_proposals = %s\n        updown = %s\n", ch.name, usualESP, command)
			if l != nil {
				fmt.Fprintf(&b, "        local_ts = %s\n", strings.Join(l, ","))
			}
			if r != nil {
				fmt.Fprintf(&b, "        remote_ts = %s\n", strings.Join(r, ","))
			}
			if c.hostAccess {
				b.WriteString("        hostaccess = yes\n")
			}
			b.WriteString("      }\n")
		}
		b.WriteString("    }\n  }\n")
	}
	fmt.Fprintf(&b, "}\nsecrets { ike { secret = %s } }\npools { p4 { addrs = 10.99.0.0/28\n dns = 10.2.0.53 }\n p6 { addrs = fd99::/64\n dns = fd02::53 } }\n", udSecret)
	v := startVICI(s, side, kind, swanctlDir{
		"swanctl.conf": b.String(),
		// Name servers are the script's affair, and nobody else takes them. What is between the gateways
		// themselves must not swallow IKE.
		"strongswan.conf": "load = " + strings.ReplaceAll(viciPlugins, " resolve", "") + `
plugins {
  updown { dns_handler = yes }
  kernel-libipsec { allow_peer_ts = yes }
  kernel-netlink { fwmark = !0x42 }
  socket-default { fwmark = 0x42 }
}
`,
	})
	v.load()
	return v, runs
}

// udRun is what one run was told: its variables, its arguments under "run", its descriptors under "fds".
type udRun map[string]string

// readRuns returns the runs that a script has noted, in their order.
func readRuns(t *testing.T, file string) (list []udRun) {
	t.Helper()
	text, _ := os.ReadFile(file)
	var r udRun
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, isVar := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "run "):
			r = udRun{"run": strings.Fields(line)[2]}
		case line == "end":
			list = append(list, r)
		case isVar:
			r[name] = value
		default:
			r["fds"] += line + " "
		}
	}
	return list
}

// waitRuns waits until a script has run so many times, and not once more.
func waitRuns(t *testing.T, file string, want int, ds ...daemon) []udRun {
	t.Helper()
	eventually(20*time.Second, func() bool { return len(readRuns(t, file)) >= want })
	got := readRuns(t, file)
	if len(got) != want {
		var told []string
		for _, r := range got {
			told = append(told, r["PLUTO_VERB"]+" "+r["PLUTO_CONNECTION"])
		}
		t.Fatalf("the script %s ran %d times, want %d: %v%s", filepath.Base(file), len(got), want, told, logs(ds...))
	}
	return got
}

// udPlay brings every child up and down again between the two daemons, rekeying some in between, and returns what
// both scripts were told.
func udPlay(t *testing.T, a daemon, runsA string, b daemon, runsB string) (toldA, toldB []udRun) {
	t.Helper()
	swanctl := func(args ...string) {
		t.Helper()
		if out, err := command("swanctl", append(args, "--uri", a.control())...); err != nil {
			t.Fatalf("swanctl %s: %v\n%s%s", strings.Join(args, " "), err, out, logs(a, b))
		}
	}
	n := 0
	wait := func() {
		t.Helper()
		waitRuns(t, runsA, n, a, b)
		waitRuns(t, runsB, n, a, b)
	}
	for _, c := range udConns {
		for _, ch := range c.children {
			swanctl("--initiate", "--child", ch.name, "--timeout", "30")
			n += ch.runs
			wait()
		}
		first := c.children[0]
		// Whatever has new keys is no new tunnel. Charon forgets the name servers when it rekeys an IKE SA.
		if c.name == "four" {
			rekeyed(t, a, c.name, "", swanctl)
		}
		if c.name == "four" || c.client {
			rekeyed(t, a, c.name, first.name, swanctl)
		}
		if c.name == "four" {
			swanctl("--terminate", "--child", first.name, "--timeout", "20") // one alone
			n += first.runs
			wait()
		}
		swanctl("--terminate", "--ike", c.name, "--timeout", "20")
		for i, ch := range c.children {
			if c.name != "four" || i > 0 {
				n += ch.runs
			}
		}
		wait()
	}
	// The end of a daemon takes down what is up, and its own script has run by then.
	last := udConns[0].children[0]
	swanctl("--initiate", "--child", last.name, "--timeout", "30")
	n += last.runs
	wait()
	a.stop()
	n += last.runs
	if got := len(readRuns(t, runsA)); got != n {
		t.Errorf("when %s has ended its script had run %d times, want %d%s", a.kind(), got, n, logs(a))
	}
	waitRuns(t, runsB, n, a, b)
	return readRuns(t, runsA), readRuns(t, runsB)
}

// rekeyed rekeys a child or ("") the IKE SA and waits until the old one has gone.
func rekeyed(t *testing.T, d daemon, conn, child string, swanctl func(...string)) {
	t.Helper()
	list := func() string {
		out, _ := command("swanctl", "--list-sas", "--ike", conn, "--raw", "--uri", d.control())
		return out
	}
	kind, name, before := "--ike", conn, conn+" {uniqueid="
	if child != "" {
		kind, name, before = "--child", child, child+"-"
	}
	_, rest, _ := strings.Cut(list(), before)
	old := before + rest[:strings.IndexFunc(rest+" ", func(r rune) bool { return r < '0' || r > '9' })] + " "
	swanctl("--rekey", kind, name)
	if !eventually(20*time.Second, func() bool {
		now := list()
		return strings.Contains(now, before) && !strings.Contains(now, old)
	}) {
		t.Fatalf("%s was not rekeyed: %q is still there\n%s%s", name, old, list(), logs(d))
	}
}

// Every variable that charon sets has the same value under postern, and postern sets no other, on either side of
// tunnels for hosts and networks, in both families, with ports and with virtual addresses, up and down.
func TestUpdownScriptIsToldTheSameAsByCharon(t *testing.T) {
	needCharon(t)
	t.Parallel()
	type told struct{ a, b []udRun }
	var by [2]told // side a by charon, and by postern
	for i, kind := range []daemonKind{kindCharon, kindPostern} {
		s := newSite(t)
		// Behind gwb there are more networks; charon wants an address of its own in each.
		s.ip(s.gwB, "addr add 10.4.0.1/24 dev lan0\naddr add 10.5.0.1/24 dev lan0\naddr add 10.6.0.1/24 dev lan0\n")
		other := map[daemonKind]daemonKind{kindCharon: kindPostern, kindPostern: kindCharon}[kind]
		b, runsB := udSwanctl(s, 'b', other)
		a, runsA := udSwanctl(s, 'a', kind)
		by[i].a, by[i].b = udPlay(t, a, runsA, b, runsB)
		for _, d := range []daemon{a, b} {
			for _, want := range []string{"updown: heard up-client of net4", "updown: on the other output", "updown: heard down-host of host4"} {
				if !strings.Contains(d.log(), want) {
					t.Errorf("the log of %s does not say %q (%s calls)%s", d.kind(), want, kind, logs(d))
				}
			}
		}
		b.stop()
	}
	compareRuns(t, "the side that calls", by[0].a, by[1].a)
	compareRuns(t, "the side that is called", by[1].b, by[0].b)
}

// compareRuns compares what charon has told a script with what postern has.
func compareRuns(t *testing.T, what string, charon, postern []udRun) {
	t.Helper()
	// The order of runs that belong together is not what scripts can rely on.
	key := func(r udRun) string {
		return r["PLUTO_VERB"] + " " + r["PLUTO_CONNECTION"] + " " + r["PLUTO_MY_CLIENT"] + " " + r["PLUTO_MY_PORT"] + " " + r["PLUTO_PEER_CLIENT"] + " " + r["PLUTO_PEER_PORT"]
	}
	sorted := func(list []udRun) []udRun {
		return slices.SortedFunc(slices.Values(list), func(a, b udRun) int { return strings.Compare(key(a), key(b)) })
	}
	charon, postern = sorted(charon), sorted(postern)
	if len(charon) != len(postern) {
		t.Errorf("%s: charon has run its script %d times, postern %d times", what, len(charon), len(postern))
		return
	}
	// These are each daemon's own; that they are numbers is enough.
	own := map[string]bool{"PLUTO_UNIQUEID": true, "PLUTO_REQID": true}
	here := map[string]bool{"PWD": true, "OLDPWD": true, "run": true}
	for i := range charon {
		c, p := charon[i], postern[i]
		all := maps.Clone(c)
		maps.Copy(all, p)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			cv, inC := c[name]
			pv, inP := p[name]
			switch {
			case here[name] && inC == inP:
			case own[name] && inC && inP && pv != "" && strings.Trim(pv, "0123456789") == "" && pv != "0":
			case inC != inP || cv != pv:
				t.Errorf("%s, %s of %s: %s is %q (set: %v) under charon and %q (set: %v) under postern", what, c["PLUTO_VERB"], c["PLUTO_CONNECTION"], name, cv, inC, pv, inP)
			}
		}
	}
}

// A script that hangs holds up neither the tunnel nor the daemon's end, and nothing of it is left.
func TestHangingUpdownScriptIsHarmless(t *testing.T) {
	need(t, "swanctl")
	t.Parallel()
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	script, pids := filepath.Join(s.dir, "hang"), filepath.Join(s.dir, "pids")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsigs=$(sed -n 's/^SigIgn:\t//p' /proc/self/status)\ntrap '' TERM\nsleep 600 &\necho $sigs $$ $! > "+pids+"\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ca.conns[0].children[0].more = fmt.Sprintf("updown = %q\n", script)
	a, b := startPair(s, pair{"postern", "postern"}, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	var list []string
	if !eventually(20*time.Second, func() bool {
		text, _ := os.ReadFile(pids)
		list = strings.Fields(string(text))
		return len(list) == 3
	}) {
		t.Fatalf("the script did not run%s", logs(a))
	}
	// But for what whoever runs the tests has left ignored.
	given, _ := command("sed", "-n", `s/^SigIgn:\t//p`, "/proc/self/status")
	if more := ignored(t, list[0]) &^ ignored(t, strings.TrimSpace(given)); more != 0 {
		t.Errorf("the script is started with signals ignored: %016x", more)
	}
	if err := a.terminate("net"); err != nil {
		t.Errorf("the child cannot be closed while its script hangs: %v", err)
	}
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	a.stop()
	for _, pid := range list[1:] {
		if !eventually(20*time.Second, func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		}) {
			t.Errorf("process %s of the script has outlived the daemon", pid)
		}
	}
	b.stop()
}

// ignored reads the set of signals that /proc has in a status file.
func ignored(t *testing.T, hex string) uint64 {
	t.Helper()
	set, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatalf("no set of signals: %q", hex)
	}
	return set
}
