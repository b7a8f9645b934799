//go:build linux

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/engine/control"
)

// What a control client is told in the life of a tunnel, by charon and by postern, key by key.

var (
	digits = regexp.MustCompile(`^\d+$`)
	hexes  = regexp.MustCompile(`^[0-9a-f]+$`)
	number = regexp.MustCompile(`-\d+$`)
)

// shape is what of a value two runs have in common.
func shape(key, v string) string {
	switch {
	case (strings.HasPrefix(key, "spi-") || strings.HasSuffix(key, "-spi")) && hexes.MatchString(v):
		return fmt.Sprintf("hex%d", len(v))
	case digits.MatchString(v) && !strings.HasSuffix(key, "keysize") && key != "version":
		return "number"
	}
	return v
}

// shapes lists what is in a message, in its order. What a daemon has to do at the moment is its own
// affair: the two divide their work into other tasks. Whether it has noticed packets yet is chance.
func shapes(m *control.Message, at string, out []string) []string {
	for _, e := range m.Elements() {
		switch {
		case strings.HasPrefix(e.Name, "tasks-"), strings.HasPrefix(e.Name, "use-"):
		case e.Kind == control.KindValue:
			out = append(out, at+e.Name+"="+shape(e.Name, e.Value))
		case e.Kind == control.KindList:
			out = append(out, at+e.Name+"=["+strings.Join(e.Items, " ")+"]")
		default:
			name := at + number.ReplaceAllString(e.Name, "-N") + "."
			out = shapes(e.Section, name, append(out, name))
		}
	}
	return out
}

// listen collects the events until the test ends.
func listen(t *testing.T, d daemon, got func(event string, m *control.Message), events ...string) {
	t.Helper()
	c, err := control.Dial(strings.TrimPrefix(d.control(), "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		_ = c.Listen(func(event string, m *control.Message) error { got(event, m); return nil }, events...)
	}()
}

// lifeOfTunnel takes a tunnel through its life on one daemon, with charon as its peer, and returns what was
// told of it by name of the event, and the counters at the end.
func lifeOfTunnel(t *testing.T, kind string) (events map[string][]string, counters, lines, monitor string) {
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	both(&ca, &cb, func(c *conn) { c.mobike, c.rekeyTime = "no", time.Hour })
	ca.noQCD = true // charon does not have it, and its messages would be counted
	a, b := startPair(s, pair{kind, "charon"}, ca, cb)
	var mu sync.Mutex
	events = map[string][]string{}
	order := []string{}
	listen(t, a, func(event string, m *control.Message) {
		mu.Lock()
		defer mu.Unlock()
		events[event] = append(events[event], strings.Join(shapes(m, "", nil), "\n"))
		order = append(order, event)
	}, control.EvIKEUpDown, control.EvIKERekey, control.EvChildUpDown, control.EvChildRekey)
	wait := func(event string, n int) {
		t.Helper()
		if !eventually(20*time.Second, func() bool { mu.Lock(); defer mu.Unlock(); return len(events[event]) >= n }) {
			t.Fatalf("%s: %d events %s did not come: %v%s", kind, n, event, order, logs(a, b))
		}
	}
	watch := func(args ...string) *process {
		return startIn(t, s.gwA, s.dir+"/watch"+args[0], nil, "swanctl", append(args, "--uri", a.control())...)
	}
	log, mon := watch("--log"), watch("--monitor-sa", "--raw")
	time.Sleep(300 * time.Millisecond) // until swanctl has registered; what is missed before does not matter

	mustInitiate(t, "net", a, b)
	wait(control.EvChildUpDown, 1)
	if lost := s.pings(s.lanA, hostB4, 3, briefly).lost(); lost != 0 {
		t.Fatalf("%s: %d of 3 pings are lost%s", kind, lost, logs(a, b))
	}
	for _, r := range []struct{ option, name, event string }{
		{"--child", "net", control.EvChildRekey}, {"--ike", "site", control.EvIKERekey},
	} {
		if out, err := command("swanctl", "--rekey", r.option, r.name, "--uri", a.control()); err != nil {
			t.Fatalf("%s: swanctl --rekey %s %s: %v\n%s", kind, r.option, r.name, err, out)
		}
		wait(r.event, 1)
	}
	// The deletes that follow are part of it.
	var out string
	eventually(20*time.Second, func() bool {
		out, _ = command("swanctl", "--counters", "--all", "--raw", "--uri", a.control())
		return strings.Contains(out, "info-out-req=2")
	})
	counters = out
	if err := a.terminate("net"); err != nil {
		t.Fatal(err)
	}
	wait(control.EvChildUpDown, 2)
	mustInitiate(t, "net", a, b)
	wait(control.EvChildUpDown, 3)
	if err := a.terminate(""); err != nil {
		t.Fatal(err)
	}
	wait(control.EvIKEUpDown, 2)
	wait(control.EvChildUpDown, 4)
	mu.Lock()
	defer mu.Unlock()
	events["order"] = order
	for _, p := range []*process{log, mon} {
		p.terminate(10 * time.Second) // swanctl prints what it has when it ends
	}
	said := func(p *process) string { return strings.ReplaceAll(p.text(), "disconnecting...\n", "") } // it breaks into lines
	return events, counters, said(log), said(mon)
}

// What dashboards read of events, counters and the log is the same, whichever daemon answers.
func TestControlClientsAreToldWhatCharonTells(t *testing.T) {
	ready(t, pair{"charon", "postern"})
	type result struct {
		events                   map[string][]string
		counters, lines, monitor string
	}
	var got [2]result
	for i, kind := range []string{"charon", "postern"} {
		if !t.Run(kind, func(t *testing.T) {
			r := &got[i]
			r.events, r.counters, r.lines, r.monitor = lifeOfTunnel(t, kind)
		}) {
			return
		}
	}
	want, ours := got[0], got[1]
	for name, list := range want.events {
		for i, w := range list {
			if i >= len(ours.events[name]) {
				t.Errorf("%s: postern tells of %d, charon of %d", name, len(ours.events[name]), len(list))
				break
			}
			differ(t, fmt.Sprintf("%s %d", name, i), strings.Split(w, "\n"), strings.Split(ours.events[name][i], "\n"))
		}
		if len(ours.events[name]) > len(list) {
			t.Errorf("%s: postern tells of %d, charon of %d", name, len(ours.events[name]), len(list))
		}
	}
	differ(t, "--counters --all", strings.Fields(want.counters), strings.Fields(ours.counters))

	// Lines of both: a thread, a group, a text. The texts are each daemon's own.
	form := regexp.MustCompile(`^\d\d\[(IKE|ENC|NET|CFG|CHD|KNL|DMN|ESP|MGR|JOB|LIB)\] \S`)
	for _, r := range []result{want, ours} {
		groups := map[string]int{}
		for line := range strings.Lines(r.lines) {
			if m := form.FindStringSubmatch(line); m != nil {
				groups[m[1]]++
			} else {
				t.Errorf("line %q of swanctl --log has not the form 00[GRP] text", line)
			}
		}
		if groups["IKE"] < 4 || groups["ENC"] < 10 {
			t.Errorf("swanctl --log shows lines by group %v, want more of IKE and ENC:\n%s", groups, r.lines)
		}
	}
	if c, p := strings.Count(want.monitor, "updown event"), strings.Count(ours.monitor, "updown event"); c != p || p < 6 {
		t.Errorf("swanctl --monitor-sa shows %d events of charon and %d of postern, want the same, 6:\n%s\n%s", c, p, want.monitor, ours.monitor)
	}
}

// differ reports the first places where two lists are not the same.
func differ(t *testing.T, what string, charon, postern []string) {
	t.Helper()
	if slices.Equal(charon, postern) {
		return
	}
	var b strings.Builder
	for _, l := range charon {
		if !slices.Contains(postern, l) {
			fmt.Fprintf(&b, "\n  only charon: %s", l)
		}
	}
	for _, l := range postern {
		if !slices.Contains(charon, l) {
			fmt.Fprintf(&b, "\n  only postern: %s", l)
		}
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "\n  another order: charon %v\n  postern %v", charon, postern)
	}
	t.Errorf("%s: not the same:%s", what, b.String())
}
