//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every protocol and mode carries echoes and TCP between real kernels, over IPv4 and IPv6, in UDP,
// through a NAT, and over a rekeying. strongSwan's kernel-libipsec has tunnel mode alone, so
// both ends are postern.
func TestModes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		mode, ah string
		v6       bool
		encap    bool
		nat      bool
		class    class
	}{
		{name: "ESP transport", mode: "transport", class: classESP},
		{name: "ESP transport IPv6", mode: "transport", v6: true, class: classESP},
		{name: "ESP transport in UDP", mode: "transport", encap: true, class: classUDPESP},
		{name: "ESP transport through NAT", mode: "transport", nat: true, class: classUDPESP},
		{name: "BEET", mode: "beet", class: classESP},
		{name: "BEET IPv6 in UDP", mode: "beet", v6: true, encap: true, class: classUDPESP},
		{name: "AH transport", mode: "transport", ah: "sha256", class: classAH},
		{name: "AH transport IPv6", mode: "transport", ah: "aes128gmac-esn", v6: true, class: classAH},
		{name: "AH tunnel", mode: "tunnel", ah: "sha384", class: classAH},
		{name: "AH tunnel IPv6", mode: "tunnel", ah: "aesxcbc", v6: true, class: classAH},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(c.v6, c.v6)
			from, to, nsA, nsB := hostA4, hostB4, s.lanA, s.lanB
			if c.v6 {
				from, to = hostA6, hostB6
			}
			if c.mode == "transport" {
				from, to, nsA, nsB = gwAddr('a', c.v6), gwAddr('b', c.v6), s.gwA, s.gwB
			}
			for i, n := range []*spec{&ca, &cb} {
				n.conns[0].encap = c.encap
				ch := &n.conns[0].children[0]
				ch.mode, ch.ah = c.mode, c.ah
				switch {
				case c.mode == "transport":
					ch.localTS, ch.remoteTS = []string{"dynamic"}, []string{"dynamic"}
				case i == 0:
					ch.localTS, ch.remoteTS = []string{from.String()}, []string{to.String()}
				default:
					ch.localTS, ch.remoteTS = []string{to.String()}, []string{from.String()}
				}
			}
			if c.nat {
				s.hideA()
				cb.conns[0].remote = "%any"
			}
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			for _, d := range []daemon{a, b} {
				out, err := d.(*postern).cli("status", "--json")
				if want := strings.ToUpper(c.mode); err != nil || !strings.Contains(out, want) {
					t.Errorf("the CHILD SA is not in mode %s: %v %s", want, err, out)
				}
			}
			w := s.capture()
			if r := s.pings(nsA, to, 10); r.lost() > 0 {
				t.Errorf("%v%s", r, logs(a, b))
			}
			if !c.nat { // behind which it has another address
				if r := s.pings(nsB, from, 5); r.lost() > 0 {
					t.Errorf("back: %v%s", r, logs(a, b))
				}
			}
			if err := s.tcpBetween(nsA, nsB, to); err != nil {
				t.Errorf("TCP: %v%s", err, logs(a, b))
			}
			if out, err := command("swanctl", "--rekey", "--child", "net", "--uri", b.(*postern).control()); err != nil {
				t.Errorf("rekeying: %v: %s%s", err, out, logs(a, b))
			}
			if r := s.pings(nsA, to, 10); r.lost() > 0 {
				t.Errorf("after rekeying: %v%s", r, logs(a, b))
			}
			got := w.stop()
			seen := map[class]int{}
			for _, x := range got {
				if x.link == "a0" {
					seen[x.class]++
				}
			}
			if seen[c.class] < 30 || seen[classClear] > 0 {
				t.Errorf("over the WAN went %v, want nothing but %v and IKE", seen, c.class)
			}
			got.uniqueSequence(t)
			if c.ah == "" {
				got.nothingInClear(t, []byte(mark))
			}
		})
	}
}

// tcpBetween sends a megabyte from one namespace to another, each way.
func (s *site) tcpBetween(from, at string, to netip.Addr) error { return s.tcpSome(from, at, to, "1M") }

// tcpSome sends that much instead.
func (s *site) tcpSome(from, at string, to netip.Addr, much string) error {
	server := startIn(s.t, at, filepath.Join(s.dir, "iperf3-server-"+at), nil, "iperf3", "-s", "-B", to.String())
	defer server.kill()
	for _, way := range [][]string{nil, {"-R"}} {
		var out string
		var err error
		if !eventually(10*time.Second, func() bool {
			out, err = s.run(from, "iperf3", append([]string{"-J", "-c", to.String(), "-n", much, "--connect-timeout", "2000"}, way...)...)
			return err == nil && !strings.Contains(out, `"error":`)
		}) {
			return fmt.Errorf("iperf3 %v: %v\n%s", way, err, tail(out, 10))
		}
	}
	return nil
}
