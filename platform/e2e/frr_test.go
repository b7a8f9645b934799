//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// frrDir is where Debian has FRR's daemons.
const frrDir = "/usr/lib/frr"

// frr is a set of FRR's daemons in one namespace.
type frr struct {
	s   *site
	ns  string
	dir string
}

// startFRR starts zebra and then these daemons in a namespace, all with one configuration.
func (s *site) startFRR(ns, name, conf string, daemons ...string) *frr {
	s.t.Helper()
	f := &frr{s, ns, filepath.Join(s.dir, "frr-"+name)}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	os.Chmod(f.dir, 0o777) // they drop their privileges
	file := filepath.Join(f.dir, "frr.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		s.t.Fatal(err)
	}
	for _, d := range append([]string{"zebra"}, daemons...) {
		p := startIn(s.t, ns, filepath.Join(f.dir, d+".out"), nil, filepath.Join(frrDir, d),
			"-f", os.DevNull, "-P", "0", "-z", filepath.Join(f.dir, "zserv"),
			"-i", filepath.Join(f.dir, d+".pid"), "--vty_socket", f.dir, "--log", "file:"+filepath.Join(f.dir, d+".log"))
		if !eventually(20*time.Second, func() bool {
			_, err := os.Stat(filepath.Join(f.dir, d+".vty"))
			return err == nil || !p.alive()
		}) || !p.alive() {
			s.t.Fatalf("%s did not start: %s", d, p.text())
		}
	}
	if out, err := s.run(ns, "vtysh", "--vty_socket", f.dir, "-f", file); err != nil {
		s.t.Fatalf("FRR takes no configuration: %v\n%s", err, out)
	}
	return f
}

// show asks FRR for something as JSON.
func (f *frr) show(command string, v any) error {
	out, err := f.s.run(f.ns, "vtysh", "--vty_socket", f.dir, "-c", "show "+command+" json")
	if err != nil {
		return fmt.Errorf("show %s: %w\n%s", command, err, out)
	}
	if i := strings.IndexByte(out, '{'); i > 0 {
		out = out[i:] // behind what it says about its own files
	}
	return json.Unmarshal([]byte(out), v)
}

// ospfConf is OSPF for both families between the two devices, and the LAN behind as a stub.
func ospfConf(n int) string {
	return fmt.Sprintf(`
interface ipsec0
 ip ospf network point-to-point
 ip ospf hello-interval 1
 ip ospf dead-interval 10
 ip ospf area 0
 ipv6 ospf6 area 0
 ipv6 ospf6 network point-to-point
 ipv6 ospf6 hello-interval 1
 ipv6 ospf6 dead-interval 10
interface lan0
 ip ospf passive
 ip ospf area 0
 ipv6 ospf6 passive
 ipv6 ospf6 area 0
router ospf
 ospf router-id 10.255.0.%[1]d
router ospf6
 ospf6 router-id 10.255.0.%[1]d
`, n)
}

// TestOSPFOverRouteBasedTunnel: routers become neighbours through the tunnel, by multicast,
// and what they learn from each other carries packets between the LANs.
func TestOSPFOverRouteBasedTunnel(t *testing.T) {
	need(t, frrDir+"/zebra", frrDir+"/ospfd", frrDir+"/ospf6d", "vtysh", "nft", "tshark")
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := routeSpecs()
	c := s.capture()
	a, b := startPair(s, p, ca, cb)
	s.nft(s.gwB, `
table inet seen {
  chain input {
    type filter hook input priority 0;
    iifname "ipsec0" ip daddr 224.0.0.5 counter
    iifname "ipsec0" ip6 daddr ff02::5 counter
  }
}
`)
	fa := s.startFRR(s.gwA, "a", ospfConf(1), "ospfd", "ospf6d")
	fb := s.startFRR(s.gwB, "b", ospfConf(2), "ospfd", "ospf6d")

	full := func(f *frr) error {
		var v4 struct {
			Neighbors map[string][]struct {
				State string `json:"nbrState"`
			}
		}
		var v6 struct {
			Neighbors []struct{ State string }
		}
		if err := f.show("ip ospf neighbor", &v4); err != nil {
			return err
		}
		if err := f.show("ipv6 ospf6 neighbor", &v6); err != nil {
			return err
		}
		for _, n := range v4.Neighbors {
			if len(n) == 1 && strings.HasPrefix(n[0].State, "Full") && len(v6.Neighbors) == 1 && v6.Neighbors[0].State == "Full" {
				return nil
			}
		}
		return fmt.Errorf("the neighbours are %+v and %+v, want one of each, Full", v4, v6)
	}
	learned := func(ns, lan4, lan6 string) error {
		for _, args := range [][]string{{"-4", "route", "show", lan4}, {"-6", "route", "show", lan6}} {
			out, err := command("ip", append([]string{"-n", ns}, args...)...)
			if err != nil || len(matching(out, "proto ospf", "dev ipsec0")) == 0 {
				return fmt.Errorf("ip %s: %q %v, want a route of OSPF into ipsec0", strings.Join(args, " "), out, err)
			}
		}
		return nil
	}
	var err error
	if !eventually(40*time.Second, func() bool {
		err = cmpErr(full(fa), full(fb), learned(s.gwA, lanB4, lanB6), learned(s.gwB, lanA4, lanA6))
		return err == nil
	}) {
		t.Fatalf("OSPF: %v%s", err, logs(a, b))
	}
	s.mustPing(t, false, a, b)
	s.mustPing(t, true, a, b)
	if out, err := s.run(s.gwB, "nft", "list", "table", "inet", "seen"); err != nil || strings.Count(out, "counter") != 2 || strings.Contains(out, "packets 0 ") {
		t.Errorf("not both of 224.0.0.5 and ff02::5 have come through the tunnel (%v):\n%s", err, out)
	}
	w := c.stop()
	w.nothingInClear(t, []byte(mark))
	tsharkAgrees(t, s, "a0")

	// A route that the other side withdraws goes here, and what it led to with it.
	s.ip(s.gwB, "link set lan0 down\n")
	if !eventually(20*time.Second, func() bool { return learned(s.gwA, lanB4, lanB6) != nil }) {
		t.Error("LAN B's route is still there after the link has gone down")
	}
}
