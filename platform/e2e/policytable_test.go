//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// tableOf is the example table for a gateway with that LAN: its child is protected, port 443
// passes in clear, whatever else comes to the LAN has to come through an SA, the rest passes.
func tableOf(lan string) string {
	return fmt.Sprintf(`
[policies.site]
action = "protect"
child = "site/net"
[policies.https]
action = "bypass"
remote_ts = ["0.0.0.0/0[tcp/443]", "::/0[tcp/443]"]
[policies.https-here]
action = "bypass"
local_ts = ["0.0.0.0/0[tcp/443]", "::/0[tcp/443]"]
[policies.require]
action = "protect"
direction = "in"
local_ts = [%q]
[policies.rest]
action = "bypass"
`, lan)
}

// startTable starts postern with the example table.
func startTable(s *site, side byte, c spec, lan string) *postern {
	s.t.Helper()
	d := newPostern(s, side, c)
	d.write(d.toml(c) + tableOf(lan))
	d.start()
	return d
}

// knock connects to a TCP port from a namespace, and sends and gets a line.
func (s *site) knock(ns string, from, to netip.AddrPort) error {
	return inNamespace(ns, func() error {
		d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(from)}
		c, err := d.Dial("tcp4", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Write([]byte(mark)); err != nil {
			return err
		}
		b := make([]byte, len(mark))
		if n, err := c.Read(b); err != nil || string(b[:n]) != mark {
			return fmt.Errorf("got %q, %v", b[:n], err)
		}
		return nil
	})
}

// mirror answers every TCP connection to an address with what it gets.
func (s *site) mirror(ns string, at netip.AddrPort) {
	s.t.Helper()
	var l net.Listener
	if err := inNamespace(ns, func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 256)
				if n, err := c.Read(b); err == nil {
					_, _ = c.Write(b[:n])
				}
			}()
		}
	}()
}

// shownPolicy is an entry as 'postern policy --json' has it.
type shownPolicy struct {
	Name    string
	SAs     int
	Out     int `json:"packets_out"`
	In      int `json:"packets_in"`
	Clear   int `json:"packets_in_clear"`
	Counted string
}

func (d *postern) policies() map[string]shownPolicy {
	d.t.Helper()
	text, err := d.cli("policy", "--json")
	var v struct{ Policies []shownPolicy }
	if err == nil {
		err = json.Unmarshal([]byte(text), &v)
	}
	if err != nil {
		d.t.Fatalf("policy --json: %v\n%s", err, text)
	}
	m := map[string]shownPolicy{}
	for _, p := range v.Policies {
		m[p.Name] = p
	}
	return m
}

// A table of policies works as written: what it protects goes through the tunnel, what it
// has pass does so in clear, what arrives in clear and must not is dropped and counted.
func TestPolicyTable(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	elsewhere, guest := netip.MustParseAddr("198.51.100.254"), netip.MustParseAddr("10.7.0.10")
	s.ip(s.lanA, "addr add 10.7.0.10/32 dev lo\n")
	s.ip(s.gwA, "route add 10.7.0.0/24 via 10.1.0.10\n")
	s.ip(s.wan, "addr add 10.2.0.66/32 dev lo\nroute add 10.1.0.0/24 via 198.51.100.1\nroute add 10.7.0.0/24 via 198.51.100.1\n")
	port := func(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
	for _, n := range []uint16{443, 80} {
		s.mirror(s.wan, port(elsewhere, n))
		s.mirror(s.lanA, port(hostA4, n))
		s.mirror(s.lanB, port(hostB4, n))
	}
	ca, cb := pairSpecs(false, false)
	ca.conns[0].children[0].start = "trap"
	a, b := startTable(s, 'a', ca, lanA4), startTable(s, 'b', cb, lanB4)

	// The first entry: the packet waits for the SA, and nothing of it is seen outside, port
	// 443 included: the order decides.
	c := s.capture()
	s.mustPing(t, false, a, b)
	for _, n := range []uint16{443, 80} {
		if err := s.knock(s.lanA, port(hostA4, 0), port(hostB4, n)); err != nil {
			t.Errorf("LAN A to port %d in LAN B: %v%s", n, err, logs(a, b))
		}
	}
	c.stop().noClear(t, []byte(mark))
	got := a.policies()
	if site := got["site"]; site.SAs != 1 || site.Out < 10 || site.In < 10 || site.Clear != 0 {
		t.Errorf("the entry of the child has %+v, want 1 SA and what went through it", site)
	}
	if got["require"].Clear != 0 {
		t.Errorf("%d packets were counted that did not come in clear", got["require"].Clear)
	}

	// Port 443 passes in clear, both ways; others do not come back.
	if err := s.knock(s.lanA, port(hostA4, 0), port(elsewhere, 443)); err != nil {
		t.Errorf("LAN A to port 443 elsewhere: %v%s", err, logs(a))
	}
	if err := s.knock(s.wan, port(elsewhere, 0), port(hostA4, 443)); err != nil {
		t.Errorf("from elsewhere to port 443 in LAN A: %v%s", err, logs(a))
	}
	if err := s.knock(s.wan, port(elsewhere, 0), port(hostA4, 80)); err == nil {
		t.Errorf("port 80 in LAN A was reached from elsewhere in clear%s", logs(a))
	}

	// What comes to LAN A in clear is dropped and counted, that of the child on its own.
	before, echoes := a.policies(), s.echoesSeen(s.lanA, false)
	s.pings(s.wan, hostA4, 4, briefly)
	s.pings(s.wan, hostA4, 3, echoOptions{wait: briefly.wait, from: netip.MustParseAddr("10.2.0.66")})
	after := a.policies()
	if n := after["require"].Clear - before["require"].Clear; n != 4 || after["site"].Clear-before["site"].Clear != 3 {
		t.Errorf("%d and %d packets in clear were counted, want 4 and 3%s", n, after["site"].Clear-before["site"].Clear, logs(a))
	}
	if n := s.echoesSeen(s.lanA, false) - echoes; n != 0 {
		t.Errorf("%d packets in clear reached LAN A%s", n, logs(a))
	}
	if !strings.Contains(a.log(), "it arrived in clear and should have been protected") {
		t.Errorf("the log does not tell of packets in clear%s", logs(a))
	}

	// The rest passes.
	if r := s.pings(s.wan, guest, 4); r.lost() != 0 {
		t.Errorf("what no entry restricts: %v%s", r, logs(a))
	}
	s.mustPing(t, false, a, b)

	for args, want := range map[string]string{
		"10.1.0.10 10.2.0.10 tcp 40000 443":      "policy 1 site decides",
		"10.1.0.10 198.51.100.254 tcp 40000 443": "it passes in clear",
		"--in 198.51.100.254 10.1.0.10 icmp 8":   "policy 4 require decides",
		"198.51.100.254 10.7.0.10 icmp 8":        "policy 5 rest decides",
		"--in 10.2.0.10 10.1.0.10 icmp 0":        "it has to come through the CHILD SA site/net, SPI ",
	} {
		if out, err := a.cli(append([]string{"policy", "test"}, strings.Fields(args)...)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("policy test %s: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	if out, err := a.cli("policy"); err != nil || !strings.Contains(out, "https-here         bypass   both") || strings.Count(out, "kernel") != 3 || !strings.Contains(out, "arrived in clear") {
		t.Errorf("policy: %v\n%s", err, out)
	}

	// Without the daemon nothing of what has to be protected passes, either way.
	a.kill()
	echoes = s.echoesSeen(s.lanA, false)
	s.pings(s.wan, hostA4, 3, briefly)
	c = s.capture()
	s.pings(s.lanA, hostB4, 3, briefly)
	c.stop().noClear(t, []byte(mark))
	if n := s.echoesSeen(s.lanA, false) - echoes; n != 0 {
		t.Errorf("%d packets in clear reached LAN A after kill -9", n)
	}
}
