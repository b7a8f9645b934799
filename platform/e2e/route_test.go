//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A route-based tunnel: its device on both sides, and b's addresses there.
const routeDevice = "ipsec0"

var (
	routeB4 = netip.MustParseAddr("10.255.0.2")
	routeB6 = netip.MustParseAddr("fd0f::2")
)

// routeSpecs returns configurations whose child "net" protects what is routed into ipsec0.
func routeSpecs() (a, b spec) {
	a, b = pairSpecs(false, false)
	for i, c := range []*child{&a.conns[0].children[0], &b.conns[0].children[0]} {
		c.localTS, c.remoteTS = []string{"0.0.0.0/0", "::/0"}, []string{"0.0.0.0/0", "::/0"}
		c.device = routeDevice
		c.deviceAddrs = []string{fmt.Sprintf("10.255.0.%d/30", i+1), fmt.Sprintf("fd0f::%d/64", i+1), fmt.Sprintf("fe80::%d/64", i+1)}
		c.start = "trap"
	}
	return a, b
}

// routeLANs routes each side's LAN into the other side's device.
func (s *site) routeLANs() {
	s.t.Helper()
	s.ip(s.gwA, "route add "+lanB4+" dev "+routeDevice+"\nroute add "+lanB6+" dev "+routeDevice+"\n")
	s.ip(s.gwB, "route add "+lanA4+" dev "+routeDevice+"\nroute add "+lanA6+" dev "+routeDevice+"\n")
}

// index returns the number of an interface in a namespace, "" if it is not there.
func (s *site) index(ns, dev string) string {
	out, err := s.run(ns, "cat", "/sys/class/net/"+dev+"/ifindex")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// sent returns how many packets the policy of a child has protected, over all its SAs.
func (d *postern) sent(child string) int {
	d.t.Helper()
	text, err := d.cli("policy", "--json")
	var v struct {
		Policies []struct {
			Child string
			Out   int `json:"packets_out"`
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &v)
	}
	for _, p := range v.Policies {
		if p.Child == child {
			return p.Out
		}
	}
	d.t.Fatalf("policy --json shows no child %s (%v):\n%s", child, err, text)
	return 0
}

// TestRouteBasedTunnel takes a tunnel that routes fill through its life.
func TestRouteBasedTunnel(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := routeSpecs()
	rules := s.settled(s.gwA)
	c := s.capture()
	da, db := startPair(s, p, ca, cb)
	a, b := da.(*postern), db.(*postern)
	s.routeLANs()
	index := s.index(s.gwA, routeDevice)
	if out, _ := command("ip", "-n", s.gwA, "link", "show", routeDevice); len(matching(out, "POINTOPOINT", "MULTICAST", "UP")) == 0 {
		t.Errorf("the device before there is an SA: %s", out)
	}
	if out, _ := command("ip", "-n", s.gwA, "rule"); len(matching(out, "from")) != 3 {
		t.Errorf("a route-based child alone has policy rules:\n%s", out)
	}
	// The first packets bring the SA up and wait for it.
	s.mustPing(t, false, a, b)
	s.mustPing(t, true, a, b)
	if r := s.pings(s.gwA, routeB4, 3); r.lost() != 0 {
		t.Errorf("from device to device: %v%s", r, logs(a, b))
	}
	if r := s.pings(s.gwA, routeB6, 3); r.lost() != 0 {
		t.Errorf("from device to device: %v%s", r, logs(a, b))
	}
	if n := a.counters()["acquires"]; n == 0 {
		t.Error("no packet has asked for an SA")
	}
	out, err := a.cli("policy")
	if err != nil || len(matching(out, "what is routed into ipsec0: 0.0.0.0/0 ::/0 === 0.0.0.0/0 ::/0")) != 1 {
		t.Errorf("postern policy does not show the child with its device (%v):\n%s", err, out)
	}
	w := c.stop()
	w.nothingInClear(t, []byte(mark))

	// New keys change nothing about the device.
	spi := installed(t, a, "net").spiIn
	if out, err := command("swanctl", "--rekey", "--child", "net", "--uri", a.control()); err != nil {
		t.Fatalf("rekey: %v\n%s", err, out)
	}
	if !eventually(20*time.Second, func() bool { k := children(a, "net"); return len(k) == 1 && k[0].spiIn != spi }) {
		t.Fatalf("the child was not rekeyed%s", logs(a, b))
	}
	s.mustPing(t, false, a, b)

	// A second device with the same selectors comes and goes by reload; the first stays.
	more := ca
	more.conns = append([]conn(nil), ca.conns...)
	second := ca.conns[0].children[0]
	second.name, second.device, second.deviceAddrs, second.start = "other", "ipsec1", []string{"10.255.1.1/30"}, "none"
	more.conns[0].children = append([]child{second}, ca.conns[0].children...)
	reload := func(sp spec) {
		t.Helper()
		a.write(a.toml(sp))
		if out, err := command("swanctl", "--reload-settings", "--uri", a.control()); err != nil {
			t.Fatalf("reload: %v\n%s%s", err, out, logs(a))
		}
	}
	spi = installed(t, a, "net").spiIn
	reload(more)
	if s.index(s.gwA, "ipsec1") == "" {
		t.Error("the second device is not there after the reload")
	}
	s.mustPing(t, false, a, b)
	reload(ca)
	if s.index(s.gwA, "ipsec1") != "" {
		t.Error("the second device is still there after its child has gone")
	}
	s.mustPing(t, false, a, b)
	if now := s.index(s.gwA, routeDevice); now != index || installed(t, a, "net").spiIn != spi {
		t.Errorf("the reload made another device (%s, then %s) or another SA", index, now)
	}

	a.stop()
	if after := s.routing(s.gwA); after != rules {
		t.Errorf("postern has ended and left something:\n%s", difference(rules, after))
	}
}

// TestRouteToThePeerIntoItsOwnDevice: the packets of a tunnel that are routed into it are
// dropped, and do not go round.
func TestRouteToThePeerIntoItsOwnDevice(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := routeSpecs()
	da, db := startPair(s, p, ca, cb)
	a, b := da.(*postern), db.(*postern)
	s.routeLANs()
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	peer := gwB4.String()
	s.ip(s.gwA, "route add "+peer+" dev "+routeDevice+"\n")
	before := a.counters()["out_packets"]
	s.pings(s.lanA, hostB4, 10, briefly)
	now := a.counters()
	if now["out_drop_loop"] < 10 {
		t.Errorf("%d packets of the tunnel itself were dropped, want all 10: %s%s", now["out_drop_loop"], "out_drop_loop", logs(a))
	}
	if n := now["out_packets"] - before; n > 60 {
		t.Errorf("%d packets were sealed for 10 echo requests: they go round", n)
	}
	if len(matching(a.log(), "the route to the peer leads into the tunnel's own device", routeDevice)) == 0 {
		t.Errorf("the log does not say why%s", logs(a))
	}
	s.ip(s.gwA, "route del "+peer+" dev "+routeDevice+"\n")
	if !eventually(30*time.Second, func() bool { return s.pings(s.lanA, hostB4, 2, briefly).lost() == 0 }) {
		t.Errorf("the tunnel does not work again with the right route%s", logs(a, b))
	}

	// A default route into the device works if the peer has a route of its own.
	s.ip(s.gwA, "route add "+peer+" via 198.51.100.254\nroute replace default dev "+routeDevice+"\n")
	s.mustPing(t, false, a, b)
	if err := a.terminate(""); err != nil {
		t.Fatal(err)
	}
	// An SA is asked for once in a second, and the last one may have been asked for a moment ago.
	back := func() bool { return s.pings(s.lanA, hostB4, 2, briefly).lost() == 0 }
	if !eventually(20*time.Second, back) {
		t.Errorf("with a default route into the device the tunnel does not come up%s", logs(a, b))
	}

	// And so does one in a table that is looked up behind all other routes, and not by what bears
	// postern's mark.
	s.ip(s.gwA, "route replace default via 198.51.100.254\nroute del "+peer+" via 198.51.100.254\nroute del "+lanB4+" dev "+routeDevice+
		"\nroute add default dev "+routeDevice+" table 100\nrule add lookup main suppress_prefixlength 0 priority 2000\nrule add not fwmark 0x50000000/0xff000000 lookup 100 priority 2001\n")
	if err := a.terminate(""); err != nil {
		t.Fatal(err)
	}
	if !eventually(20*time.Second, back) {
		t.Errorf("with a default route into the device in a table of its own the tunnel does not come up%s", logs(a, b))
	}
}

// TestRouteBasedBesidePolicies: policies come before routes. What they protect does not go
// into a child's device, and is not taken from it.
func TestRouteBasedBesidePolicies(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := routeSpecs()
	alone := cb
	alone.conns = append([]conn(nil), cb.conns...)
	for i, c := range []*conn{&ca.conns[0], &cb.conns[0]} {
		lan := child{name: "lan", localTS: []string{lanA4}, remoteTS: []string{lanC4}, esp: usualESP, start: "trap"}
		if i == 1 {
			lan.localTS, lan.remoteTS = lan.remoteTS, lan.localTS
		}
		// Which of them stands first does not matter: the device parts them.
		c.children = append(c.children, lan)
	}
	c := s.capture()
	da, db := startPair(s, p, ca, cb)
	a, b := da.(*postern), db.(*postern)
	s.routeLANs()
	s.ip(s.gwA, "route add "+lanC4+" dev "+routeDevice+"\n") // which the policy comes before
	s.mustPing(t, false, a, b)
	if r := s.pings(s.lanA, hostC4, 5); r.lost() != 0 {
		t.Errorf("between the networks of the policy: %v%s", r, logs(a, b))
	}
	if net, lan := a.sent("net"), a.sent("lan"); lan < 5 || net < 10 || net > 40 {
		t.Errorf("SA net has sent %d packets and SA lan %d, want 10 and 5 or a few more", net, lan)
	}
	c.stop().nothingInClear(t, []byte(mark))

	// Without its own child, b sends LAN C's packets into the device: they do not come through
	// the SA that a's policy wants.
	b.write(b.toml(alone))
	if text, err := command("swanctl", "--reload-settings", "--uri", b.control()); err != nil {
		t.Fatalf("reload: %v\n%s%s", err, text, logs(b))
	}
	heard, dropped := s.echoesSeen(s.lanA, false), a.counters()["in_packets"]
	if r := s.pings(s.lanB, hostA4, 5, echoOptions{from: hostC4, wait: briefly.wait}); r.answered != 0 {
		t.Errorf("%d packets came through another SA than the policy wants, and were answered", r.answered)
	}
	if n := s.echoesSeen(s.lanA, false) - heard; n != 0 {
		t.Errorf("%d packets that belong into SA lan came through SA net and reached LAN A", n)
	}
	if n := a.counters()["in_packets"] - dropped; n < 5 {
		t.Errorf("only %d packets came through SA net at all: the test shows nothing", n)
	}
	s.mustPing(t, false, a, b)
}

// TestRouteBasedTowardsPolicies: the other side need not know how this one chooses its packets.
func TestRouteBasedTowardsPolicies(t *testing.T) {
	p := pair{"postern", "charon"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	ca.conns[0].children[0].device = routeDevice
	ca.conns[0].children[0].start = "trap"
	c := s.capture()
	a, b := startPair(s, p, ca, cb)
	// Fail-closed by hand: without the device the packets go nowhere.
	s.ip(s.gwA, "route add "+lanB4+" dev "+routeDevice+"\nroute add unreachable "+lanB4+" metric 1000000\n")
	s.mustPing(t, false, a, b)
	a.kill()
	if r := s.pings(s.lanA, hostB4, 3, briefly); r.answered != 0 {
		t.Errorf("%d packets passed without postern", r.answered)
	}
	c.stop().nothingInClear(t, []byte(mark))
}
