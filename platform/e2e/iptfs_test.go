//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"
)

// iptfs makes both ends of a pair of configurations use IP-TFS.
func iptfs(a, b *spec, lines ...string) {
	both(a, b, func(c *conn) {
		c.children[0].more = strings.Join(append([]string{"iptfs = true"}, lines...), "\n") + "\n"
	})
}

// patient is for a path that is slow on purpose, on a machine with other things to do.
var patient = echoOptions{wait: 20 * time.Second}

// Every mode of IP-TFS carries echoes and TCP, over a rekeying, and nothing but packets of one
// length leaves where it hides anything.
func TestIPTFS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		lines  []string
		encap  bool
		outer6 bool
		length int // of packets on the WAN; 0: many. ESP has lengths in steps of 4
	}{
		{"constant", []string{`iptfs_mode = "constant"`, `iptfs_rate = "6M"`}, false, false, 1500},
		{"congestion in UDP", []string{`iptfs_mode = "congestion"`, `iptfs_rate = "6M"`}, true, false, 1500},
		{"aggregate", []string{`iptfs_mode = "aggregate"`}, true, false, 0},
		{"whole packets over IPv6", []string{`iptfs_mode = "constant"`, `iptfs_rate = "6M"`, `iptfs_dont_frag = true`, `iptfs_size = 1450`}, false, true, 1448},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(c.outer6, false)
			both(&ca, &cb, func(n *conn) { n.encap = c.encap })
			iptfs(&ca, &cb, c.lines...)
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			for _, d := range []daemon{a, b} {
				if len(matching(d.log(), "IP-TFS is in use")) == 0 {
					t.Errorf("nothing says that IP-TFS is in use%s", logs(d))
				}
			}
			w := s.capture()
			if r := s.pings(s.lanA, hostB4, 10, patient); r.lost() > 0 {
				t.Errorf("%v%s", r, logs(a, b))
			}
			if r := s.pings(s.lanB, hostA4, 10, echoOptions{size: 1300, wait: 20 * time.Second}); r.lost() > 0 {
				t.Errorf("back: %v%s", r, logs(a, b))
			}
			if err := s.tcpSome(s.lanA, s.lanB, hostB4, "200K"); err != nil {
				t.Errorf("TCP: %v%s", err, logs(a, b))
			}
			if out, err := command("swanctl", "--rekey", "--child", "net", "--uri", b.control()); err != nil {
				t.Errorf("rekeying: %v: %s%s", err, out, logs(a, b))
			}
			if r := s.pings(s.lanA, hostB4, 10, patient); r.lost() > 0 {
				t.Errorf("after rekeying: %v%s", r, logs(a, b))
			}
			got := w.stop()
			for _, link := range []string{"a0", "b0"} {
				sizes := got.lengths(link)
				if _, ok := sizes[c.length+14]; c.length != 0 && (len(sizes) != 1 || !ok) {
					t.Errorf("from the gateway at %s ESP packets have these lengths: %v, want %d with the Ethernet header alone", link, sizes, c.length+14)
				}
				if c.length == 0 && len(sizes) < 3 {
					t.Errorf("from the gateway at %s ESP packets have these lengths alone: %v", link, sizes)
				}
			}
			got.nothingInClear(t, []byte(mark))
			for _, d := range []*postern{a.(*postern), b.(*postern)} {
				n := d.counters()
				t.Logf("%d packets with %d inside (%d of padding alone, %d too late) out; %d with %d inside in, %d lost", n["out_iptfs"], n["out_packets"],
					n["out_iptfs_padding"], n["out_iptfs_late"], n["in_iptfs"], n["in_packets"], n["in_iptfs_lost"])
				for name, k := range n {
					if strings.HasPrefix(name, "in_drop_iptfs") && k > 5 {
						t.Errorf("%s is %d", name, k)
					}
				}
			}
		})
	}
}

// A peer that does not know IP-TFS: without it, or not at all, as configured.
func TestIPTFSWithAPeerThatDoesNotKnowIt(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].more = "iptfs = true\niptfs_mode = \"aggregate\"\n"
		a, b := startPair(s, p, ca, cb)
		w := s.capture()
		mustInitiate(t, "net", a, b)
		s.mustPing(t, false, a, b)
		if len(matching(a.log(), "IP-TFS is not in use")) == 0 {
			t.Errorf("nothing says that IP-TFS is not in use%s", logs(a))
		}
		if n := a.(*postern).counters()["out_iptfs"]; n != 0 {
			t.Errorf("%d packets left in a form that the peer does not know", n)
		}
		ca.conns[0].children[0].more = "iptfs = \"require\"\niptfs_mode = \"aggregate\"\n"
		a.(*postern).write(a.(*postern).toml(ca))
		if out, err := command("swanctl", "--reload-settings", "--uri", a.control()); err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
		err := a.initiate("net")
		if err == nil || !strings.Contains(err.Error(), "does not agree to IP-TFS") {
			t.Errorf("initiating a child that requires IP-TFS: %v%s", err, logs(a, b))
		}
		if r := s.pings(s.lanA, hostB4, 3, briefly); r.lost() != 3 {
			t.Errorf("without the IP-TFS that is required, %v", r)
		}
		if !eventually(20*time.Second, func() bool {
			out, err := command("swanctl", "--list-sas", "--uri", b.control())
			return err == nil && !strings.Contains(out, "INSTALLED")
		}) {
			t.Errorf("the peer still has a CHILD SA that is not used%s", logs(a, b))
		}
		w.stop().nothingInClear(t, []byte(mark))
	})
}

// What somebody beside the WAN sees of a constant stream does not tell whether anything passes
// through it.
func TestIPTFSTellsNothing(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	iptfs(&ca, &cb, `iptfs_mode = "constant"`, `iptfs_rate = "2400k"`) // 200 packets a second
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	if r := s.pings(s.lanA, hostB4, 3, patient); r.lost() > 0 {
		t.Fatalf("%v%s", r, logs(a, b))
	}
	if !idleAndBusy(t, s, a, b, false) {
		idleAndBusy(t, s, a, b, true)
	}
	for _, d := range []*postern{a.(*postern), b.(*postern)} {
		n := d.counters()
		t.Logf("%d packets out, %d of padding alone, %d too late", n["out_iptfs"], n["out_iptfs_padding"], n["out_iptfs_late"])
	}
}

// idleAndBusy captures a constant stream at idle and busy times by turns, and judges whether they can be told
// apart, at both ends of the WAN.
func idleAndBusy(t *testing.T, s *site, a, b daemon, last bool) (same bool) {
	w := s.capture()
	type span struct{ from, until time.Time }
	var spans [2][]span
	carried := 0
	for range minStretches + minStretches/2 { // some may be void
		for busy := range 2 {
			var load *pinger
			if busy == 1 {
				load = s.startPinger(s.lanA, hostB4, 100, echoOptions{size: 900})
			}
			time.Sleep(100 * time.Millisecond) // what is left of the stretch before, and what begins this one
			from := time.Now()
			time.Sleep(500 * time.Millisecond)
			spans[busy] = append(spans[busy], span{from, time.Now()})
			if load != nil {
				close(load.end)
				<-load.idle
				carried += load.finish(5 * time.Second).answered
			}
		}
	}
	got := w.stop()
	if carried < 200 {
		t.Errorf("%d echo requests were answered while the tunnel was meant to be busy: this proves nothing%s", carried, logs(a, b))
	}
	same = true
	for _, link := range []string{"a0", "b0"} {
		var list [2][]stretch
		for i := range spans[0] {
			idle := got.beats(link, spans[0][i].from, spans[0][i].until)
			busy := got.beats(link, spans[1][i].from, spans[1][i].until)
			if len(idle) < minBeats || len(busy) < minBeats {
				continue // the machine stood still; both go, so that neither kind is chosen
			}
			list[0], list[1] = append(list[0], idle), append(list[1], busy)
		}
		if !notToldApart(t, "from the gateway at "+link, list[0], list[1], last) {
			same = false
		}
	}
	return same
}
