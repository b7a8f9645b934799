//go:build linux

package e2e

import (
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// span is a time in which something holds.
type span struct{ from, to time.Time }

// leakMargin is the longest time that a packet may be on its way before the gateway decides
// what becomes of it.
const leakMargin = 500 * time.Millisecond

// judge returns what was seen in clear of each class that side sent in that time, but must not be.
func judge(w wire, side byte, s span) map[string]int {
	found := map[string]int{}
	for _, p := range w {
		class, from, at, ok := readMark(p.data)
		if ok && from == side && leakClasses[class].fate != passes && at.After(s.from) && at.Before(s.to) {
			found[leakClasses[class].name]++
		}
	}
	return found
}

// clearOf returns the classes that side sent in clear at some time, whatever was to become of them.
func clearOf(w wire, side byte, s span) map[string]bool {
	seen := map[string]bool{}
	for _, p := range w {
		if class, from, at, ok := readMark(p.data); ok && from == side && at.After(s.from) && at.Before(s.to) {
			seen[leakClasses[class].name] = true
		}
	}
	return seen
}

// phase runs one thing that happens, and says how long it took.
func (l *leakBench) phase(name string, f func()) span {
	l.t.Helper()
	s := span{from: time.Now()}
	f()
	s.to = time.Now()
	l.t.Logf("%-34s %v", name, s.to.Sub(s.from).Round(10*time.Millisecond))
	return s
}

func all(fates ...fate) (names []string) {
	for i := range leakClasses {
		if slices.Contains(fates, leakClasses[i].fate) {
			names = append(names, leakClasses[i].name)
		}
	}
	return names
}

// mustSee fails unless all these classes were seen.
func (l *leakBench) mustSee(what string, seen map[string]bool, names []string) {
	l.t.Helper()
	for _, n := range names {
		if !seen[n] {
			l.t.Errorf("%s: nothing of class %q was seen in clear, so that the recording proves nothing about it", what, n)
		}
	}
}

// tight fails if anything of side was in clear.
func (l *leakBench) tight(w wire, side byte, s span) {
	l.t.Helper()
	s.to = s.to.Add(-leakMargin)
	if found := judge(w, side, s); len(found) > 0 {
		l.t.Errorf("LEAK: side %c sent over the WAN in clear between %v and %v: %v", side, s.from.Format("05.000"), s.to.Format("05.000"), found)
		n := 0
		for _, p := range w {
			if class, from, at, ok := readMark(p.data); ok && from == side && leakClasses[class].fate != passes && at.After(s.from) && at.Before(s.to) && n < 8 {
				l.t.Logf("%s on %s, sent at %s: %s", leakClasses[class].name, p.link, at.Format("05.000"), p.what)
				n++
			}
		}
	}
	if seen := clearOf(w, side, s); len(seen) == 0 {
		l.t.Errorf("nothing at all of side %c was seen in clear, not even what may pass", side)
	}
}

// noStrangers fails if there is a clear frame that is none of the test's.
func (l *leakBench) noStrangers(w wire) {
	l.t.Helper()
	found := map[string]int{}
	for _, p := range w {
		if _, _, _, ok := readMark(p.data); !ok && p.class == classClear {
			found[p.what]++
		}
	}
	for what, n := range found {
		l.t.Errorf("%d frames in clear that nobody knows: %s", n, what)
	}
}

// hold lets time pass in which traffic goes on.
func hold() { time.Sleep(800 * time.Millisecond) }

// Nothing leaks while the daemons are started, killed, reloaded, and stopped in order; an orderly
// end, and the removal of the rules by hand, are where the test is seen to see leaks.
func TestLeakWhileDaemonsComeAndGo(t *testing.T) {
	l := newLeakBench(t)
	free := l.phase("no daemon", hold)
	l.b.start()
	readyB := time.Now()
	l.a.start()
	tight := []span{{from: time.Now()}}
	l.phase("up", func() { l.carried("up") })
	l.phase("a is killed", func() { l.a.kill(); hold() })
	l.phase("a starts again", func() { l.a.start(); l.carried("after kill -9 of a") })
	l.phase("b is killed and starts again", func() { l.b.kill(); hold(); l.b.start(); l.carried("after kill -9 of b") })
	reload := func(d *postern) {
		if out, err := d.cli("reload"); err != nil {
			t.Errorf("reload: %v: %s", err, out)
		}
	}
	l.phase("unchanged configuration", func() { reload(l.a); reload(l.b); l.carried("reloaded") })
	l.phase("changed configuration", func() {
		// Another suite and other names: every SA goes, and every entry is another one.
		for _, d := range []struct {
			p          *postern
			c          spec
			own, other string
		}{{l.a, l.sa, "1", "2"}, {l.b, l.sb, "2", "1"}} {
			d.c.conns = slices.Clone(d.c.conns)
			d.c.conns[0].children = slices.Clone(d.c.conns[0].children)
			for i := range d.c.conns[0].children {
				d.c.conns[0].children[i].esp = "aes256gcm16"
			}
			slices.Reverse(d.c.conns[0].children[:3])
			d.p.write(d.p.toml(d.c) + strings.ReplaceAll(leakTable(d.own, d.other), "[policies.", "[policies.x-"))
			reload(d.p)
			hold()
		}
		l.carried("after a change")
	})
	l.phase("bad configuration", func() {
		l.a.write("nonsense")
		if out, err := l.a.cli("reload"); err == nil {
			t.Errorf("nonsense was taken: %s", out)
		}
		l.a.write(l.a.toml(l.sa) + leakTable("1", "2"))
		reload(l.a)
		l.b.write(l.b.toml(l.sb) + leakTable("2", "1"))
		reload(l.b)
	})
	tight[0].to = time.Now()
	stopped := l.phase("a ends in order", func() { l.a.stop(); hold() })
	l.phase("a starts", l.a.start)
	tight = append(tight, span{from: time.Now()})
	l.phase("up again", func() { l.carried("after an orderly end") })
	l.phase("a is killed", func() { l.a.kill(); hold() })
	tight[1].to = time.Now()
	mutant := l.phase("the rules are removed by hand", func() {
		for _, v := range []string{"-4", "-6"} {
			if out, err := command("ip", "-n", l.gwA, v, "rule", "flush", "protocol", "204"); err != nil {
				t.Fatalf("ip rule flush: %v: %s", err, out)
			}
		}
		hold()
	})
	end := time.Now()
	l.end()
	w := l.rec.stop()

	everything := all(protected, discarded, passes)
	l.mustSee("before the first start", clearOf(w, 'a', free), everything)
	l.mustSee("before the first start", clearOf(w, 'b', free), everything)
	for _, s := range tight {
		l.tight(w, 'a', s)
	}
	l.tight(w, 'b', span{readyB, end})
	for _, s := range append(slices.Clone(tight), span{readyB, end}) {
		l.mustSee("up", clearOf(w, 'b', s), all(passes))
	}
	l.mustSee("after an orderly end", clearOf(w, 'a', stopped), everything)
	if found := slices.Sorted(maps.Keys(judge(w, 'a', mutant))); len(found) != len(all(protected, discarded)) {
		t.Errorf("without rules the test sees leaks of %q alone, want those of %q", found, all(protected, discarded))
	}
	l.noStrangers(w)
}

// Nothing leaks while SAs are replaced, end and come back, and while the way between the two
// changes.
func TestLeakWhileTunnelsComeAndGo(t *testing.T) {
	l := newLeakBench(t)
	l.b.start()
	l.ip(l.gwA, "route del default via 198.51.100.254\n")
	l.a.start()
	s := span{from: time.Now()}
	l.phase("the way to the peer comes late", func() {
		hold()
		l.ip(l.gwA, "route add default via 198.51.100.254\n")
		l.carried("up")
	})
	ctl := func(args ...string) {
		t.Helper()
		if out, err := command("swanctl", append(args, "--uri", l.a.control())...); err != nil {
			t.Errorf("swanctl %v: %v: %s%s", args, err, out, logs(l.a, l.b))
		}
	}
	l.phase("children are rekeyed", func() {
		for _, c := range l.sa.conns[0].children {
			ctl("--rekey", "--child", c.name)
		}
		l.carried("after rekeying the children")
	})
	l.phase("the IKE SA is rekeyed", func() { ctl("--rekey", "--ike", "site"); l.carried("after rekeying the IKE SA") })
	l.phase("the IKE SA is reauthenticated", func() { ctl("--rekey", "--ike", "site", "--reauth"); l.carried("after reauthentication") })
	// What the user has closed stays so until it is asked for.
	again := func() {
		hold()
		for _, c := range l.sa.conns[0].children {
			if err := l.a.initiate(c.name); err != nil {
				t.Error(err)
			}
		}
	}
	l.phase("children are terminated", func() {
		for _, c := range l.sa.conns[0].children {
			ctl("--terminate", "--child", c.name)
		}
		again()
		l.carried("after the end of the children")
	})
	l.phase("the IKE SA is terminated", func() {
		ctl("--terminate", "--ike", "site")
		again()
		l.carried("after the end of the IKE SA")
	})
	l.phase("the peer vanishes", func() {
		l.b.freeze()
		if !eventually(20*time.Second, func() bool { sas, err := listSAs(l.a); return err == nil && !up(sas) }) {
			t.Errorf("a does not find out that b is gone%s", logs(l.a))
		}
	})
	l.phase("the peer comes back", func() { l.b.thaw(); l.carried("with the peer back") })
	l.phase("link of the WAN down and up", func() {
		l.ip(l.gwA, "link set wan0 down\n")
		hold()
		l.ip(l.gwA, "link set wan0 up\naddr replace 2001:db8:a::1/64 dev wan0\nroute replace default via 198.51.100.254\nroute replace default via 2001:db8:a::fe\n")
		l.carried("with the link back")
	})
	// As a lease that has run out: no address for longer than postern waits for what comes with
	// one, and then another one, whose route comes later.
	move := func(from, to string) {
		l.ip(l.gwA, "addr del "+from+"/24 dev wan0\n")
		hold()
		hold()
		l.ip(l.gwA, "addr add "+to+"/24 dev wan0\n")
		time.Sleep(50 * time.Millisecond)
		l.ip(l.gwA, "route replace default via 198.51.100.254\n")
		hold()
		hold()
	}
	l.phase("another address", func() { move("198.51.100.1", "198.51.100.7") })
	l.phase("the address is back", func() { move("198.51.100.7", "198.51.100.1"); l.carried("with the address back") })
	s.to = time.Now()
	l.end()
	w := l.rec.stop()
	for _, side := range []byte{'a', 'b'} {
		l.tight(w, side, s)
		l.mustSee("up", clearOf(w, side, s), all(passes))
	}
	l.noStrangers(w)
}

// up tells whether one of the IKE SAs is established.
func up(sas []ikeSA) bool {
	return slices.ContainsFunc(sas, func(s ikeSA) bool { return s.state == "ESTABLISHED" })
}

// thaw is the end of freeze.
func (d *postern) thaw() { d.p.cmd.Process.Signal(syscall.SIGCONT) }
