//go:build linux

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// AH goes around the ESP of a tunnel where a child between the gateways selects ESP, over a
// rekeying of either; without that AH nothing of the tunnel passes, in either direction.
func TestAHAroundESP(t *testing.T) {
	t.Parallel()
	for _, outer6 := range []bool{false, true} {
		name := "IPv4"
		if outer6 {
			name = "IPv6"
		}
		t.Run(name, func(t *testing.T) {
			need(t, "tshark")
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(outer6, false)
			for _, n := range []*spec{&ca, &cb} {
				n.conns[0].children = append(n.conns[0].children, child{name: "around", ah: "sha256", mode: "transport",
					localTS: []string{"dynamic[esp]"}, remoteTS: []string{"dynamic[esp]"}, start: "trap"})
			}
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			w := s.capture()
			// The first packet of the tunnel asks for AH and is lost, nothing else is.
			if !eventually(20*time.Second, func() bool { return s.pings(s.lanA, hostB4, 1, briefly).lost() == 0 }) {
				t.Fatalf("the tunnel does not come to work%s", logs(a, b))
			}
			s.mustPing(t, false, a, b)
			if err := s.tcpBetween(s.lanA, s.lanB, hostB4); err != nil {
				t.Errorf("TCP: %v%s", err, logs(a, b))
			}
			// No echo is lost while the keys of both are changed, from either side.
			ping := s.startPinger(s.lanA, hostB4, 100)
			for i, child := range []string{"around", "net", "around", "net"} {
				d := []daemon{a, b}[i/2]
				if out, err := command("swanctl", "--rekey", "--child", child, "--uri", d.control()); err != nil {
					t.Errorf("rekeying %s: %v: %s%s", child, err, out, logs(a, b))
				}
				time.Sleep(300 * time.Millisecond)
			}
			if r := ping.stop(); r.lost() > 0 {
				t.Errorf("while keys were changed: %v%s", r, logs(a, b))
			}
			got := w.stop()
			for _, link := range []string{"a0", "b0"} {
				if n := got.count(link, "", isClass(classAH)); n < 100 {
					t.Errorf("%d datagrams of AH on %s, want those of echoes and TCP: %s", n, link, got.summary())
				}
			}
			if n := got.count("a0", "", isESP) + got.count("b0", "", isESP); n != 0 {
				t.Errorf("%d datagrams of ESP alone", n)
			}
			got.noClear(t, []byte(mark))
			// What an independent program makes of it: IP, AH and ESP, and no more.
			for _, link := range []string{"a0", "b0"} {
				file := filepath.Join(s.dir, link+".pcap")
				out, err := command("tshark", "-n", "-r", file, "-Y", "ah", "-T", "fields", "-e", "frame.protocols")
				lines := matching(out, "eth:")
				if err != nil || len(lines) < 100 {
					t.Fatalf("tshark -r %s: %v: %d packets of AH", file, err, len(lines))
				}
				for _, l := range lines {
					if !strings.HasSuffix(strings.TrimSpace(l), ":ah:esp") {
						t.Fatalf("tshark sees %q, want ESP in AH", l)
					}
				}
			}

			// b forgets the policy: its ESP comes bare, and a takes none of it.
			cb.conns[0].children = cb.conns[0].children[:1]
			bp := b.(*postern)
			bp.write(bp.toml(cb))
			if out, err := bp.cli("reload"); err != nil {
				t.Fatalf("reload: %v: %s", err, out)
			}
			before := a.(*postern).counters()["in_drop_bare"]
			if r := s.pings(s.lanB, hostA4, 5, briefly); r.answered > 0 {
				t.Errorf("a takes ESP without the AH that its policy demands: %v%s", r, logs(a, b))
			}
			if n := a.(*postern).counters()["in_drop_bare"] - before; n != 5 {
				t.Errorf("a has counted %d packets without AH, want 5%s", n, logs(a, b))
			}
		})
	}
}
