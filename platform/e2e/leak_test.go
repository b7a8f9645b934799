//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// postern runs and has no tunnel: what it has to protect does not leave, in neither
// family, and what is none of its business does.
func TestNothingLeaksWithoutATunnel(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, _ := pairSpecs(false, false)
	c6 := ca.conns[0].children[0]
	c6.name, c6.localTS, c6.remoteTS = "six", []string{lanA6}, []string{lanB6}
	ca.conns[0].children = append(ca.conns[0].children, c6)
	a := startPostern(s, 'a', ca)
	c := s.capture()
	s.pings(s.lanA, hostB4, 3, briefly)
	s.pings(s.lanA, hostB6, 3, briefly)
	s.pings(s.gwA, hostB4, 2, echoOptions{wait: briefly.wait, from: netip.MustParseAddr("10.1.0.1")})
	w := c.stop()
	w.noClear(t, []byte(mark))

	// Traffic that no policy selects goes where it always went.
	if r := s.pings(s.gwA, netip.MustParseAddr("198.51.100.254"), 3); r.lost() != 0 {
		t.Errorf("postern took traffic that is not its own: %v%s", r, logs(a))
	}
	c = s.capture()
	s.pings(s.lanA, netip.MustParseAddr("198.51.100.254"), 3, briefly)
	forwarded := 0
	for _, p := range c.stop() {
		if p.link == "a0" && p.class == classClear && p.src == hostA4 {
			forwarded++
		}
	}
	if forwarded < 3 {
		t.Errorf("%d of 3 packets from LAN A to an address of the WAN were forwarded%s", forwarded, logs(a))
	}
}

// What arrives in clear and ought to have come through the tunnel is dropped, whether the
// tunnel is up, down, or was killed.
func TestClearTextFromOutsideIsDropped(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	// wan poses as a host of LAN B, and knows the way to LAN A.
	s.ip(s.wan, "addr add 10.2.0.10/32 dev lo\naddr add fd02::10/128 dev lo nodad\nroute add 10.1.0.0/24 via 198.51.100.1\nroute add fd01::/64 via 2001:db8:a::1\n")
	forge := func(when string, want bool) {
		t.Helper()
		for _, v6 := range []bool{false, true} {
			to, from := hostA4, hostB4
			if v6 {
				to, from = hostA6, hostB6
			}
			before := s.echoesSeen(s.lanA, v6)
			s.pings(s.wan, to, 3, echoOptions{wait: briefly.wait, from: from})
			if got := s.echoesSeen(s.lanA, v6) > before; got != want {
				t.Errorf("%s: clear text that claims to come from %v reached LAN A: %v, want %v", when, from, got, want)
			}
		}
	}
	forge("without postern (the bench's control)", true)
	ca, cb := pairSpecs(false, false)
	for c, ts := range map[*spec][2]string{&ca: {lanA6, lanB6}, &cb: {lanB6, lanA6}} {
		six := c.conns[0].children[0]
		six.name, six.localTS, six.remoteTS = "six", []string{ts[0]}, []string{ts[1]}
		c.conns[0].children = append(c.conns[0].children, six)
	}
	a, b := startPair(s, p, ca, cb)
	forge("tunnel down", false)
	mustInitiate(t, "net", a, b)
	mustInitiate(t, "six", a, b)
	forge("tunnel up", false)
	s.mustPing(t, false, a, b)
	s.mustPing(t, true, a, b)
	a.kill()
	forge("after kill -9", false)
}

// echoesSeen returns how many echo requests the namespace's kernel has received.
func (s *site) echoesSeen(ns string, v6 bool) int {
	s.t.Helper()
	if v6 {
		out, err := s.run(ns, "cat", "/proc/net/snmp6")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, l := range matching(out, "Icmp6InEchos") {
			return atoi(strings.Fields(l)[1])
		}
	}
	out, err := s.run(ns, "cat", "/proc/net/snmp")
	if err != nil {
		s.t.Fatal(err)
	}
	lines := matching(out, "Icmp:")
	if len(lines) != 2 {
		s.t.Fatalf("/proc/net/snmp without a line for ICMP:\n%s", out)
	}
	for i, name := range strings.Fields(lines[0]) {
		if name == "InEchos" {
			return atoi(strings.Fields(lines[1])[i])
		}
	}
	s.t.Fatal("/proc/net/snmp without InEchos")
	return 0
}

// postern is killed as the kernel kills when memory is short: what it protected does not
// leave in clear, the next start finds its way, and an orderly end leaves nothing behind.
func TestKilledDaemonLeavesNoHole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		victim byte
		peer   string
	}{{'a', "postern"}, {'a', "charon"}, {'b', "postern"}, {'b', "charon"}} {
		name := "initiator, peer " + c.peer
		if c.victim == 'b' {
			name = "responder, peer " + c.peer
		}
		t.Run(name, func(t *testing.T) {
			p := pair{"postern", c.peer}
			ready(t, p)
			if c.victim == 'b' {
				p = pair{c.peer, "postern"}
			}
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			dead(&ca)
			dead(&cb)
			ca.conns[0].children[0].start = "start"
			ca.conns[0].children[0].dpdAction = "restart"
			victimNS := s.gwA
			if c.victim == 'b' {
				victimNS = s.gwB
			}
			untouched := s.settled(victimNS)
			a, b := startPair(s, p, ca, cb)
			if !eventually(10*time.Second, func() bool { return newest(a).spiIn != "" && newest(b).spiIn != "" }) {
				t.Fatalf("no tunnel%s", logs(a, b))
			}
			s.mustPing(t, false, a, b)

			rec := s.capture()
			ping, back := s.startPinger(s.lanA, hostB4, 50), s.startPinger(s.lanB, hostA4, 50)
			time.Sleep(300 * time.Millisecond)
			victim := a
			if c.victim == 'b' {
				victim = b
			}
			victim.kill()
			time.Sleep(1500 * time.Millisecond)
			answered := ping.answers()
			victim.(*postern).start()
			if !eventually(30*time.Second, func() bool { return ping.answers() > answered+20 }) {
				t.Errorf("the tunnel did not come back 30 s after postern was started again%s", logs(a, b))
			}
			ping.stop()
			back.stop()
			w := rec.stop()
			// What strongSwan does with the packets of a dead peer is its own affair.
			if c.peer == "postern" {
				w.nothingInClear(t, []byte(mark))
			}
			w.noClearFrom(t, c.victim)
			s.mustPing(t, false, a, b)
			victim.stop()
			if after := s.routing(victimNS); after != untouched {
				t.Errorf("after kill -9, a new start and an orderly end the system is not as before:\n%s", difference(untouched, after))
			}
		})
	}
}

// An orderly end takes back all that the start has set.
func TestOrderlyEndLeavesNothingBehind(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	before := s.settled(s.gwA)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	if s.routing(s.gwA) == before {
		t.Errorf("the bench does not see what postern sets in the kernel")
	}
	a.stop()
	if after := s.routing(s.gwA); after != before {
		t.Errorf("the system is not as it was before the start:\n%s", difference(before, after))
	}
}

// difference shows the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	old, new := strings.Split(before, "\n"), strings.Split(after, "\n")
	only := func(sign string, x, y []string) {
		for _, l := range x {
			found := false
			for _, m := range y {
				found = found || l == m
			}
			if !found {
				b.WriteString(sign + l + "\n")
			}
		}
	}
	only("- ", old, new)
	only("+ ", new, old)
	return b.String()
}

// Strict reverse path filtering, which many distributions switch on, lets the tunnel's
// packets pass.
func TestStrictReversePathFilter(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	for _, ns := range []string{s.gwA, s.gwB} {
		s.sysctl(ns, "net/ipv4/conf/all/rp_filter", "1")
		s.sysctl(ns, "net/ipv4/conf/default/rp_filter", "1")
	}
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
}
