//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Remote access: a gateway that gives virtual addresses in both families from its pools.

const poolSecret = "larkspur-windmill-forty-two"

// startPoolGateway starts postern on gwb with an IPv4 pool of 14 addresses, and an IPv6 one in which
// a.example has an address of its own.
func startPoolGateway(s *site, more string) *postern {
	s.t.Helper()
	d := newPostern(s, 'b', spec{})
	d.write(fmt.Sprintf(`
[daemon]
control = %q
state_dir = %q
[pools.p4]
addrs = ["10.99.0.0/28"]
dns = ["10.2.0.53"]
[pools.p6]
addrs = ["fd99::/64"]
leases = ["a.example=fd99::77"]
[connections.site]
local_addrs = [%q]
pools = ["p4", "p6"]
proposals = [%q]
%s
[connections.site.local]
id = "b.example"
[connections.site.children.net]
local_ts = [%q, %q]
esp_proposals = [%q]
[secrets.x]
secret = %q
`, d.socket(), filepath.Join(d.dir, "state"), gwB4, usualIKE, more, lanB4, lanB6, usualESP, poolSecret))
	d.start()
	return d
}

// asClient makes charon a client with that identity that wants an address of each family.
func (d *charon) asClient(id string) {
	d.t.Helper()
	d.write("swanctl.conf", fmt.Sprintf(`
connections {
  site {
    version = 2
    mobike = no
    local_addrs = %s
    remote_addrs = %s
    proposals = %s
    vips = 0.0.0.0,::
    local { auth = psk
            id = %s }
    remote { auth = psk
             id = b.example }
    children { net { remote_ts = %s,%s
                     esp_proposals = %s } }
  }
}
secrets { ike-1 { secret = %s } }
`, gwA4, gwB4, usualIKE, id, lanB4, lanB6, usualESP, poolSecret))
	d.loadAll()
}

// vips returns what list-sas of a daemon shows under a key: local-vips or remote-vips.
func vips(d daemon, key string) (list []string) {
	out, err := command("swanctl", "--list-sas", "--raw", "--uri", d.control())
	if err != nil {
		return nil
	}
	if _, rest, ok := strings.Cut(out, key+"=["); ok {
		inner, _, _ := strings.Cut(rest, "]")
		list = strings.Fields(inner)
	}
	slices.Sort(list)
	return list
}

// wantVIPs waits for virtual addresses.
func wantVIPs(t *testing.T, d daemon, key string, want ...string) {
	t.Helper()
	if !eventually(20*time.Second, func() bool { return slices.Equal(vips(d, key), want) }) {
		t.Fatalf("%s lists %s %v, want %v%s", d.kind(), key, vips(d, key), want, logs(d))
	}
}

// reaches pings LAN B from gwa, from those addresses.
func (s *site) reaches(from4, from6 string, ds ...daemon) {
	s.t.Helper()
	for _, c := range []struct {
		from string
		to   netip.Addr
	}{{from4, hostB4}, {from6, hostB6}} {
		opt := echoOptions{wait: 10 * time.Second, from: netip.MustParseAddr(c.from)}
		if r := s.pings(s.gwA, c.to, 3, opt); r.lost() != 0 {
			s.t.Errorf("%s does not reach %s: %v%s", c.from, c.to, r, logs(ds...))
		}
	}
}

// Charon gets addresses from the pools of postern, in both families, a static one among them: they
// carry packets, both daemons and swanctl show them, they stay when keys are changed, and the
// next client gets others, also after the gateway was killed.
func TestCharonGetsAddressesFromPools(t *testing.T) {
	needCharon(t)
	t.Parallel()
	s := newSite(t)
	gw := startPoolGateway(s, "")
	ca, _ := pairSpecs(false, false)
	c := startCharon(s, 'a', ca)
	c.asClient("a.example")
	if err := c.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(c, gw))
	}
	wantVIPs(t, c, "local-vips", "10.99.0.1", "fd99::77")
	wantVIPs(t, gw, "remote-vips", "10.99.0.1", "fd99::77")
	s.reaches("10.99.0.1", "fd99::77", c, gw)
	if sa := installed(t, gw, "net"); !slices.Equal(sa.remoteTS, []string{"10.99.0.1/32", "fd99::77/128"}) {
		t.Errorf("the gateway's selectors for the client are %v", sa.remoteTS)
	}
	if !strings.Contains(c.log(), "INTERNAL_IP4_DNS") {
		t.Errorf("charon was not told of the resolver%s", logs(c))
	}
	out, err := command("swanctl", "--list-pools", "--leases", "--uri", gw.control())
	for _, want := range []string{"p4", "10.99.0.1", "a.example", "online"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("swanctl --list-pools (%v) does not show %q:\n%s", err, want, out)
			break
		}
	}
	if err := c.rekey(""); err != nil {
		t.Error(err)
	}
	if err := c.rekey("net"); err != nil {
		t.Error(err)
	}
	s.reaches("10.99.0.1", "fd99::77", c, gw)
	wantVIPs(t, gw, "remote-vips", "10.99.0.1", "fd99::77")

	gw.kill()
	gw.start()
	_ = c.do("--terminate", "--ike", "site", "--force", "--timeout", "5")
	for _, next := range []struct{ id, v4, v6 string }{{"c.example", "10.99.0.2", "fd99::1"}, {"a.example", "10.99.0.1", "fd99::77"}} {
		c.asClient(next.id)
		if err := c.initiate("net"); err != nil {
			t.Fatalf("%v%s", err, logs(c, gw))
		}
		wantVIPs(t, c, "local-vips", next.v4, next.v6)
		if next.id == "a.example" {
			s.reaches(next.v4, next.v6, c, gw)
		}
		if err := c.terminate(""); err != nil {
			t.Error(err)
		}
	}
	out, err = gw.cli("pools")
	for _, want := range []string{"10.99.0.2", "c.example", "offline", "0 in use, 2 kept"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("postern pools (%v) does not show %q:\n%s", err, want, out)
			break
		}
	}
}

// A gateway whose pool is empty keeps the IKE SA and refuses the CHILD SA alone; it says why, and so
// does the client.
func TestEmptyPoolIsRefusedCleanly(t *testing.T) {
	needCharon(t)
	t.Parallel()
	s := newSite(t)
	gw := startPoolGateway(s, "")
	text := strings.Replace(gw.config(), `addrs = ["10.99.0.0/28"]`, `leases = ["nobody.example=10.99.0.1"]`, 1)
	text = strings.Replace(text, `pools = ["p4", "p6"]`, `pools = ["p4"]`, 1)
	gw.write(text)
	if out, err := gw.cli("reload"); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	ca, _ := pairSpecs(false, false)
	c := startCharon(s, 'a', ca)
	c.asClient("a.example")
	if err := c.initiate("net"); err == nil {
		t.Errorf("charon is up without an address%s", logs(c, gw))
	}
	if !strings.Contains(c.log(), "INTERNAL_ADDRESS_FAILURE") || !strings.Contains(gw.log(), "no pool of the connection has a free address") {
		t.Errorf("the logs do not say that the pool is empty%s", logs(c, gw))
	}
}

// Postern on both sides: the client keeps its addresses over new keys, a new authentication, and
// the sudden end of the gateway, after which it comes back by itself.
func TestPosternGetsAddressesFromPools(t *testing.T) {
	need(t, "swanctl")
	t.Parallel()
	s := newSite(t)
	gw := startPoolGateway(s, "")
	d := newPostern(s, 'a', spec{})
	d.write(fmt.Sprintf(`
[daemon]
control = %q
state_dir = %q
[connections.site]
remote_addrs = [%q]
vips = ["0.0.0.0", "::"]
proposals = [%q]
dpd_delay = "2s"
retransmit_timeout = "1s"
retransmit_tries = 2
[connections.site.local]
id = "a.example"
[connections.site.remote]
id = "b.example"
[connections.site.children.net]
remote_ts = [%q, %q]
esp_proposals = [%q]
start_action = "start"
[secrets.x]
secret = %q
`, d.socket(), filepath.Join(d.dir, "state"), gwB4, usualIKE, lanB4, lanB6, usualESP, poolSecret))
	d.start()
	wantVIPs(t, d, "local-vips", "10.99.0.1", "fd99::77")
	s.reaches("10.99.0.1", "fd99::77", d, gw)
	for _, args := range [][]string{{"--rekey", "--ike", "site"}, {"--rekey", "--ike", "site", "--reauth"}, {"--rekey", "--child", "net"}} {
		if out, err := command("swanctl", append(args, "--uri", d.control())...); err != nil {
			t.Errorf("swanctl %v: %v\n%s", args, err, out)
		}
		s.reaches("10.99.0.1", "fd99::77", d, gw)
		wantVIPs(t, gw, "remote-vips", "10.99.0.1", "fd99::77")
	}
	gw.kill()
	gw.start()
	wantVIPs(t, gw, "remote-vips", "10.99.0.1", "fd99::77")
	s.reaches("10.99.0.1", "fd99::77", d, gw)
}

// config returns the daemon's configuration.
func (d *postern) config() string {
	d.t.Helper()
	b, err := os.ReadFile(d.configFile())
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}
