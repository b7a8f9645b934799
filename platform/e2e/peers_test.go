//go:build linux && peers

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The comparison with other VPNs in user space: "make bench-peers", or with the tag peers
// and -run TestPeers. Each contender has a pair of namespaces of its own, joined by one
// link, with a gateway process in each; what is measured runs between the pair's inner
// addresses, which nothing but the tunnel reaches. All pairs stand at once and take turns:
// a slow moment of the machine meets all of them.
var (
	peersRounds  = flag.Int("rounds", 3, "how often each contender's turn comes")
	peersSeconds = flag.Int("seconds", 4, "length of each run")
	peersOnly    = flag.String("only", os.Getenv("BENCH_ONLY"), "contenders, comma separated, by the beginning of their names; empty: all (BENCH_ONLY)")
	peersRuns    = flag.String("runs", "", "measurements, by the beginning of their names in the output, such as \"TCP, 1\"; empty: all")
	peersBoard   = flag.String("board", os.Getenv("BENCH_BOARD"), "board profile of postern; empty: what it finds fit (BENCH_BOARD)")
	peersWindow  = flag.Int("window", 256, "UDP packets under way at most where the load follows the gateways")
	peersStrict  = flag.Bool("strict", false, "fail when a wanted ratio is not met")
)

// contender is one way to carry packets between the two namespaces of its pair.
type contender struct {
	name  string // as BENCH_ONLY and the tables have it
	start func(s *site) (a, b *process, version string)

	version  string
	s        *site
	a, b     *process // the gateways; nil for the bare link
	measured [measures][]float64
}

// contenders lists all, in the order of the tables.
func contenders() []*contender {
	return []*contender{
		{name: posternGCM, start: startTunnel("postern", "aes128gcm16", true)},
		{name: posternChaCha, start: startTunnel("postern", "chacha20poly1305", true)},
		{name: posternESP, start: startTunnel("postern", "aes128gcm16", false)},
		{name: wireguardGo, start: startWireGuard},
		{name: strongSwan, start: startTunnel("charon", "aes128gcm16", true)},
		{name: bareLink, start: startNothing},
	}
}

// The contenders' names.
const (
	posternGCM    = "postern-gcm-udp"
	posternChaCha = "postern-chacha-udp"
	posternESP    = "postern-gcm-esp"
	wireguardGo   = "wireguard-go"
	strongSwan    = "strongswan-gcm-udp"
	bareLink      = "bare-link"
)

// wanted tells whether the selection has this contender.
func (c *contender) wanted(only string) bool {
	for word := range strings.SplitSeq(only, ",") {
		if word = strings.TrimSpace(word); word != "" && strings.HasPrefix(c.name, word) {
			return true
		}
	}
	return strings.Trim(only, ", ") == ""
}

// measurement is one kind of run, of which each contender has one in each round.
type measurement struct {
	what string // as the -runs flag and the output have it
	do   func(c *contender, d time.Duration) (string, error)
}

// measurements lists all, in the order of a round.
func measurements() []measurement {
	return []measurement{
		{"TCP, 1 stream", (*contender).oneStream},
		{"TCP, 4 streams", (*contender).fourStreams},
		{"UDP, at capacity", (*contender).atCapacity},
		{"UDP, overload", (*contender).overload},
		{"TCP, calls", (*contender).streamCalls},
		{"UDP, calls", (*contender).packetCalls},
	}
}

// TestPeers runs the comparison and prints its tables.
func TestPeers(t *testing.T) {
	need(t, "iperf3", "swanctl", "mount")
	var all []*contender
	for _, c := range contenders() {
		if c.wanted(*peersOnly) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		t.Fatalf("no contender's name begins with %q", *peersOnly)
	}
	runs := slices.DeleteFunc(measurements(), func(m measurement) bool { return !strings.HasPrefix(m.what, *peersRuns) })
	if len(runs) == 0 {
		t.Fatalf("no measurement's name begins with %q", *peersRuns)
	}
	if *peersRounds < 1 || *peersSeconds < 1 || *peersWindow < 1 {
		t.Fatal("-rounds, -seconds and -window must be 1 at least")
	}
	if most := int(commandTimeout.Seconds()) - 10; *peersSeconds > most {
		t.Fatalf("-seconds must be %d at most", most)
	}
	// An interrupt ends the run by its ordinary way out, which takes everything down.
	var interrupted atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		for range signals {
			interrupted.Store(true)
		}
	}()
	proceed := func() {
		if interrupted.Load() {
			t.Fatal("interrupted")
		}
	}

	for _, c := range all {
		proceed()
		c.s = newPair(t)
		c.a, c.b, c.version = c.start(c.s)
		if c.a != nil {
			if r := c.s.pings(c.s.lanA, hostB4, 5); r.lost() != 0 {
				t.Fatalf("%s is up but does not carry pings: %v", c.name, r)
			}
		}
		fmt.Printf("up: %-18s  %s\n", c.name, c.version)
	}
	length := time.Duration(*peersSeconds) * time.Second
	for round := range *peersRounds {
		for _, run := range runs {
			for i := range all {
				proceed()
				c := all[(i+round)%len(all)] // another one is the first in each round
				said, err := run.do(c, length)
				if err == nil && c.a != nil && !(c.a.alive() && c.b.alive()) {
					err = fmt.Errorf("a gateway has ended:\n%s\n%s", tail(c.a.text(), 20), tail(c.b.text(), 20))
				}
				proceed()
				if err != nil {
					t.Fatalf("round %d, %s, %s: %v", round+1, run.what, c.name, err)
				}
				fmt.Printf("round %d/%d  %-16s  %-18s  %s\n", round+1, *peersRounds, run.what, c.name, said)
			}
		}
	}
	for _, c := range all {
		if err := c.memory(); err != nil {
			t.Fatal(err)
		}
	}
	missed := report(os.Stdout, all)
	if missed > 0 && *peersStrict {
		t.Errorf("%d of the wanted ratios are not met", missed)
	}
}

// newPair lays out a site without a WAN and without LANs: two gateways, joined by one
// link, that have the hosts' addresses themselves. Neither has a default route.
func newPair(t *testing.T) *site {
	t.Helper()
	n := siteCount.Add(1)
	s := &site{t: t, dir: filepath.Join(workDir, fmt.Sprint(n))}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.gwA, s.gwB = fmt.Sprintf("pt-%d-%d-a", os.Getpid(), n), fmt.Sprintf("pt-%d-%d-b", os.Getpid(), n)
	s.lanA, s.lanB = s.gwA, s.gwB
	t.Cleanup(func() {
		for _, ns := range []string{s.gwA, s.gwB} {
			killInside(ns)
			command("ip", "netns", "del", ns)
		}
	})
	s.ip("", fmt.Sprintf("netns add %[1]s\nnetns add %[2]s\nlink add wan0 netns %[1]s type veth peer name wan0 netns %[2]s\n", s.gwA, s.gwB))
	for _, side := range []struct{ ns, inner, outer, peer string }{
		{s.gwA, hostA4.String(), gwA4.String(), gwB4.String()},
		{s.gwB, hostB4.String(), gwB4.String(), gwA4.String()},
	} {
		s.ip(side.ns, fmt.Sprintf("link set lo up\nlink set wan0 up\naddr add %s/32 dev lo\naddr add %s peer %s dev wan0\n",
			side.inner, side.outer, side.peer))
	}
	if out, err := command("ip", "-n", s.gwA, "route", "get", hostB4.String()); err == nil {
		t.Fatalf("without a tunnel there is a way to %s, and figures would say nothing about tunnels: %s", hostB4, out)
	}
	return s
}

// startNothing joins the inner addresses by the bare link: what the tools of the
// measurement can do at most.
func startNothing(s *site) (a, b *process, version string) {
	s.ip(s.gwA, fmt.Sprintf("route add %s via %s src %s\n", lanB4, gwB4, hostA4))
	s.ip(s.gwB, fmt.Sprintf("route add %s via %s src %s\n", lanA4, gwA4, hostB4))
	return nil, nil, "no tunnel"
}

// startTunnel returns what starts a pair of IKE daemons of that kind and sees to it that
// they agree on what is to be measured.
func startTunnel(kind, esp string, encap bool) func(s *site) (a, b *process, version string) {
	return func(s *site) (*process, *process, string) {
		s.t.Helper()
		if kind == "charon" {
			needCharon(s.t)
		}
		ca, cb := pairSpecs(false, false)
		suite(&ca, &cb, usualIKE, esp)
		both(&ca, &cb, func(c *conn) { c.encap = encap })
		ca.board, cb.board = *peersBoard, *peersBoard
		a, b := startPair(s, pair{kind, kind}, ca, cb)
		mustInitiate(s.t, "net", a, b)
		want := map[string]string{"aes128gcm16": "AES_GCM_16-128", "chacha20poly1305": "CHACHA20_POLY1305"}[esp]
		if ch := installed(s.t, a, "net"); ch.suite() != want || ch.encap != encap {
			s.t.Fatalf("%s carries %s with encap=%v, and what is to be measured is %s with encap=%v", kind, ch.suite(), ch.encap, want, encap)
		}
		version, err := command("swanctl", "--version", "--daemon", "--uri", a.control())
		if err != nil {
			s.t.Fatalf("the version of %s: %v: %s", kind, err, version)
		}
		if version = strings.TrimSpace(version); kind == "postern" {
			version = strings.TrimPrefix(version, "strongSwan ") // swanctl's word for whatever answers
		}
		return processOf(a), processOf(b), version
	}
}

// processOf returns the process behind a daemon.
func processOf(d daemon) *process {
	switch d := d.(type) {
	case *postern:
		return d.p
	case *charon:
		return d.p
	}
	panic("e2e: no process behind a " + d.kind())
}

// cpuTime returns what the process has used so far, in user and kernel mode.
func (p *process) cpuTime() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may hold anything; after its parenthesis the third comes.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has only %d fields after the name", p.cmd.Process.Pid, len(f))
	}
	const tick = time.Second / 100 // USER_HZ, the same on all of Linux but Alpha
	return time.Duration(atoi(f[11])+atoi(f[12])) * tick, nil
}

// peakRSS returns the most memory that the process has had resident, in MiB.
func (p *process) peakRSS() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d tells no VmHWM", p.cmd.Process.Pid)
}
