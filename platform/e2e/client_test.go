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

// A client with virtual addresses: gwa is the roaming device, gwb the gateway with pools.

const clientSecret = "marigold-quarry-seventeen"

// poolGateway is a charon that assigns addresses of the pools 10.8.N.0/24 and fd08:0:0:N::/64.
func poolGateway(s *site, pool int) *charon {
	s.t.Helper()
	d := startCharon(s, 'b', spec{conns: []conn{{name: "none", local: gwB4.String(), remote: "192.0.2.99", localID: "x", remoteID: "y", psk: clientSecret, ike: usualIKE}}})
	d.pools(pool)
	return d
}

// pools loads the configuration with other pools.
func (d *charon) pools(n int) {
	d.t.Helper()
	var pools strings.Builder // one that is in use cannot go
	for i := range n {
		fmt.Fprintf(&pools, "pools { four%[1]d { addrs = 10.8.%[1]d.0/24\n dns = %[2]s }\n six%[1]d { addrs = fd08:0:0:%[1]d::/112\n dns = %[3]s } }\n", i+1, hostB4, hostB6)
	}
	d.write("swanctl.conf", fmt.Sprintf(`
connections {
  site {
    version = 2
    local_addrs = %[1]s
    remote_addrs = %%any
    proposals = %[2]s
    pools = four%[4]d, six%[4]d
    local { auth = psk
            id = b.example }
    remote { auth = psk
             id = a.example }
    children { net { local_ts = 0.0.0.0/0,::/0
                     esp_proposals = %[3]s } }
  }
}
%[5]s
secrets { ike-1 { secret = %[6]s } }
`, gwB4, usualIKE, usualESP, n, pools.String(), clientSecret))
	d.loadAll()
}

// startClient starts postern on gwa as client, with what is to go into the tunnel, and more lines
// for [daemon] and for the connection.
func startClient(s *site, remoteTS, daemon, more string) *postern {
	s.t.Helper()
	d := newPostern(s, 'a', spec{})
	d.write(fmt.Sprintf(`
[daemon]
control = %q
state_dir = %q
%s
[connections.site]
remote_addrs = [%q]
proposals = [%q]
vips = ["0.0.0.0", "::"]
%s
[connections.site.local]
id = "a.example"
[connections.site.remote]
id = "b.example"
[connections.site.children.net]
remote_ts = [%s]
esp_proposals = [%q]
[secrets.x]
id = ["a.example", "b.example"]
secret = %q
`, d.socket(), filepath.Join(d.dir, "state"), daemon, gwB4, usualIKE, more, remoteTS, usualESP, clientSecret))
	d.start()
	return d
}

// virtual returns the addresses of the client's device.
func (d *postern) virtual() (list []string) {
	out, err := command("ip", "-n", d.ns(), "-o", "addr", "show", "dev", "postern0", "scope", "global")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 {
			list = append(list, f[3])
		}
	}
	slices.Sort(list)
	return list
}

func (d *postern) wantVirtual(want ...string) {
	d.t.Helper()
	if !eventually(20*time.Second, func() bool { return slices.Equal(d.virtual(), want) }) {
		d.t.Fatalf("the device has the addresses %v, want %v%s", d.virtual(), want, logs(d))
	}
}

// wantFile waits for what a file holds.
func (d *postern) wantFile(path, want string) {
	d.t.Helper()
	var got string
	if !eventually(20*time.Second, func() bool {
		b, _ := os.ReadFile(path)
		got = string(b)
		return got == want
	}) {
		d.t.Errorf("%s holds\n%s\nwant\n%s%s", filepath.Base(path), got, want, logs(d))
	}
}

// bothFamilies pings LAN B from gwa with a socket that chooses no source.
func (s *site) bothFamilies(when string, reached bool, ds ...daemon) {
	s.t.Helper()
	for _, to := range []netip.Addr{hostB4, hostB6} {
		opt := echoOptions{wait: 10 * time.Second}
		if !reached {
			opt = briefly
		}
		if r := s.pings(s.gwA, to, 3, opt); reached && r.lost() != 0 || !reached && r.answered != 0 {
			s.t.Errorf("%s: %v%s", when, r, logs(ds...))
		}
	}
}

// leaveClear routes LAN B's networks back to gwa's outer addresses and lets wan know the way to
// them, so that what leaves in clear would arrive and be answered.
func (s *site) leaveClear() {
	s.ip(s.wan, "route add "+lanB4+" via 203.0.113.1\nroute add "+lanB6+" via 2001:db8:b::1\n")
}

// A full tunnel in both families: it takes every packet whose source is not chosen, loses none
// of them to the outside while it is down, and leaves nothing behind, however it ends.
func TestClientFullTunnel(t *testing.T) {
	ready(t, pair{"postern", "charon"})
	s := newSite(t)
	s.leaveClear()
	before := s.settled(s.gwA)
	s.bothFamilies("without a tunnel", true)
	conf := filepath.Join(s.dir, "resolv.conf")
	const uplink = "nameserver 198.51.100.254\n"
	if err := os.WriteFile(conf, []byte(uplink), 0o644); err != nil {
		t.Fatal(err)
	}
	const begin, end = "# postern: what stands from here goes when the tunnel does\n", "# postern: end\n"
	withServers := begin + "nameserver " + hostB4.String() + "\nnameserver " + hostB6.String() + "\n" + end + uplink

	b := poolGateway(s, 1)
	c := s.capture()
	a := startClient(s, `"0.0.0.0/0", "::/0"`, fmt.Sprintf("dns = \"file\"\ndns_file = %q", conf), "")
	s.bothFamilies("before the tunnel is up", false, a)
	if err := a.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(a, b))
	}
	a.wantVirtual("10.8.1.1/32", "fd08:0:0:1::1/128")
	a.wantFile(conf, withServers)
	s.bothFamilies("through the tunnel", true, a, b)
	text, err := a.cli("status")
	if err != nil || len(matching(text, "our IP", "10.8.1.1", "fd08:0:0:1::1")) != 1 || len(matching(text, "DNS", hostB4.String(), "for all names")) != 1 {
		t.Errorf("status does not show what is assigned (%v):\n%s", err, text)
	}

	// It stays through new keys of IKE, and follows the gateway when we authenticate anew.
	if err := succeed("swanctl", "--rekey", "--ike", "site", "--uri", a.control()); err != nil {
		t.Error(err)
	}
	s.bothFamilies("after new keys", true, a, b)
	a.wantVirtual("10.8.1.1/32", "fd08:0:0:1::1/128")
	b.pools(2)
	if err := succeed("swanctl", "--rekey", "--reauth", "--ike", "site", "--uri", a.control()); err != nil {
		t.Error(err)
	}
	a.wantVirtual("10.8.2.1/32", "fd08:0:0:2::1/128")
	s.bothFamilies("with other addresses", true, a, b)

	// Down, and up again.
	if err := a.terminate(""); err != nil {
		t.Error(err)
	}
	a.wantVirtual()
	a.wantFile(conf, uplink)
	s.bothFamilies("after the end", false, a)
	if err := a.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(a, b))
	}
	s.bothFamilies("up again", true, a, b)
	a.wantFile(conf, withServers)

	// kill -9: still nothing leaves, and the next start cleans up.
	a.kill()
	s.bothFamilies("after kill -9", false, a)
	a.start()
	a.wantVirtual()
	a.wantFile(conf, uplink)
	s.bothFamilies("after the next start", false, a)
	if err := a.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(a, b))
	}
	s.bothFamilies("after all that", true, a, b)
	w := c.stop()
	w.nothingInClear(t, []byte(mark))

	// A program that chooses the outer address itself, as a DHCP client that renews a lease,
	// reaches the link.
	if r := s.pings(s.gwA, netip.MustParseAddr("198.51.100.254"), 2, echoOptions{from: gwA4, wait: 10 * time.Second}); r.lost() != 0 {
		t.Errorf("from the outer address on the link: %v", r)
	}
	a.stop()
	a.wantFile(conf, uplink)
	if after := s.settled(s.gwA); after != before {
		t.Errorf("the end leaves something behind; before:\n%s\nafter:\n%s", before, after)
	}
	s.bothFamilies("without a tunnel again", true)
}

func succeed(name string, args ...string) error {
	out, err := command(name, args...)
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// A split tunnel takes what its remote selectors name; name servers are asked for the domains that
// the configuration allows.
func TestClientSplitTunnel(t *testing.T) {
	ready(t, pair{"postern", "charon"})
	s := newSite(t)
	s.leaveClear()
	b := poolGateway(s, 1)
	file := filepath.Join(s.dir, "servers")
	a := startClient(s, fmt.Sprintf("%q, %q", lanB4, lanB6), fmt.Sprintf("dns = \"dnsmasq\"\ndns_file = %q", file), `dns_domains = ["plant.example"]`)
	c := s.capture()
	s.bothFamilies("before the tunnel is up", false, a)
	if err := a.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(a, b))
	}
	a.wantVirtual("10.8.1.1/32", "fd08:0:0:1::1/128")
	const head = "# postern writes this file: changes are lost\n"
	a.wantFile(file, head+fmt.Sprintf("server=/plant.example/%s\nserver=/plant.example/%s\n", hostB4, hostB6))
	s.bothFamilies("through the tunnel", true, a, b)
	w := c.stop()
	w.nothingInClear(t, []byte(mark))
	// The rest goes its way.
	for _, to := range []netip.Addr{wanB4, gwB6, hostC4} {
		c := s.capture()
		if to == hostC4 {
			s.ip(s.wan, "route add "+lanC4+" via 203.0.113.1\n")
		}
		if r := s.pings(s.gwA, to, 2, echoOptions{wait: 10 * time.Second}); r.lost() != 0 {
			t.Errorf("beside the tunnel: %v%s", r, logs(a, b))
		}
		if n := c.stop().count("a0", "b0", isESP); n != 0 {
			t.Errorf("%d packets to %v went into the tunnel", n, to)
		}
	}
	// The device moves to another outer address: the assigned ones stay, and are no way to the
	// gateway themselves.
	c = s.capture()
	s.ip(s.gwA, "addr del 198.51.100.1/24 dev wan0\naddr add 198.51.100.2/24 dev wan0\nroute replace default via 198.51.100.254\n")
	if !eventually(20*time.Second, func() bool {
		text, _ := a.cli("status")
		return len(matching(text, "local", "198.51.100.2")) > 0
	}) {
		t.Errorf("the tunnel does not move to the other outer address%s", logs(a, b))
	}
	s.bothFamilies("from another outer address", true, a, b)
	a.wantVirtual("10.8.1.1/32", "fd08:0:0:1::1/128")
	c.stop().noClear(t, []byte(mark))
	a.stop()
	a.wantFile(file, head)
}

// Both sides are postern, and the client's child has a device of its own, into which a route leads:
// the addresses are there, and the gateway's domains are asked at its servers.
func TestClientOfPosternWithADevice(t *testing.T) {
	ready(t, pair{"postern", "postern"})
	s := newSite(t)
	s.leaveClear()
	b := newPostern(s, 'b', spec{})
	b.write(fmt.Sprintf(`
[daemon]
control = %q
state_dir = %q
[pools.four]
addrs = ["10.8.0.0/24"]
dns = [%q]
dns_domains = ["lab.plant.example", "elsewhere.example"]
subnet = [%q]
[pools.six]
addrs = ["fd08::/64"]
[connections.site]
remote_addrs = ["%%any"]
proposals = [%q]
pools = ["four", "six"]
[connections.site.local]
id = "b.example"
[connections.site.remote]
id = "a.example"
[connections.site.children.net]
local_ts = ["0.0.0.0/0", "::/0"]
esp_proposals = [%q]
[secrets.x]
secret = %q
`, b.socket(), filepath.Join(b.dir, "state"), hostB4, lanB4, usualIKE, usualESP, clientSecret))
	b.start()
	file := filepath.Join(s.dir, "servers")
	before := s.settled(s.gwA)
	a := startClient(s, fmt.Sprintf("%q, %q", lanB4, lanB6), fmt.Sprintf("dns = \"dnsmasq\"\ndns_file = %q", file), `dns_domains = ["plant.example"]`)
	text, err := os.ReadFile(a.configFile())
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.write(strings.Replace(string(text), "[connections.site.children.net]\n", "[connections.site.children.net]\ninterface = \"ipsec0\"\n", 1))
	a.start()
	s.ip(s.gwA, "route add "+lanB4+" dev ipsec0\nroute add "+lanB6+" dev ipsec0\n")
	c := s.capture()
	if err := a.initiate("net"); err != nil {
		t.Fatalf("%v%s", err, logs(a, b))
	}
	var got string
	if !eventually(20*time.Second, func() bool {
		got, _ = command("ip", "-n", s.gwA, "-o", "addr", "show", "dev", "ipsec0")
		return len(matching(got, "10.8.0.")) == 1 && len(matching(got, "fd08::")) == 1
	}) {
		t.Errorf("the child's device has the addresses\n%s%s", got, logs(a, b))
	}
	if list := a.virtual(); len(list) != 0 {
		t.Errorf("the device of all has the addresses %v", list)
	}
	s.bothFamilies("through the device", true, a, b)
	a.wantFile(file, fmt.Sprintf("# postern writes this file: changes are lost\nserver=/lab.plant.example/%s\n", hostB4))
	if out, err := a.cli("status", "--json"); err != nil || !strings.Contains(out, `"internal_subnets": ["`+lanB4+`"]`) || !strings.Contains(out, `"dns_domains": ["lab.plant.example"]`) {
		t.Errorf("status --json does not show what is assigned (%v):\n%s", err, out)
	}
	c.stop().nothingInClear(t, []byte(mark))
	a.stop()
	if after := s.settled(s.gwA); after != before {
		t.Errorf("the end leaves something behind; before:\n%s\nafter:\n%s", before, after)
	}
}
