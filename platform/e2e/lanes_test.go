//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// byLane returns the CHILD SAs of the child "net" by what they are for: a class, a CPU, or "".
func byLane(d daemon) map[string]childSA {
	m := map[string]childSA{}
	for _, c := range children(d, "net") {
		switch {
		case c.state != "INSTALLED":
		case c.cpu != "":
			m["CPU "+c.cpu] = c
		default:
			m[c.class] = c
		}
	}
	return m
}

// counts quotes what the SAs of a daemon have carried.
func counts(d daemon) (s string) {
	for _, c := range children(d, "net") {
		s += fmt.Sprintf("\n%s {%s} %s class %q cpu %q in %d out %d", d.kind(), c.unique, c.state, c.class, c.cpu, c.packetsIn, c.packetsOut)
	}
	return s
}

// pingClass sends n echo requests of a class from lana to lanb, and tells whether all were
// answered.
func (s *site) pingClass(dscp, n int) bool {
	_, err := s.run(s.lanA, "ping", "-n", "-q", "-c", fmt.Sprint(n), "-i", "0.02", "-W", "5", "-Q", fmt.Sprint(dscp<<2), hostB4.String())
	return err == nil
}

// Each class goes through an SA of its own, there and back, whether the peer has classes or not:
// a peer without them answers each class by the SA by which it came.
func TestClassesTakeTheirOwnSAs(t *testing.T) {
	need(t, "swanctl", "ping")
	t.Parallel()
	for _, peer := range []string{"postern with classes", "postern without", "charon"} {
		t.Run(peer, func(t *testing.T) {
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			ca.conns[0].children[0].more = "dscp_classes = [\"46\", \"8,10-14\"]\n"
			kind := "postern"
			switch peer {
			case "postern with classes":
				cb.conns[0].children[0].more = "dscp_classes = [\"8-14\", \"40-46\"]\n"
			case "charon":
				needCharon(t)
				kind = peer
			}
			a, b := startPair(s, pair{"postern", kind}, ca, cb)
			mustInitiate(t, "net", a, b)
			for _, c := range []struct {
				dscp int
				lane string
			}{{46, "46"}, {12, "8,10-14"}, {0, ""}} {
				if !eventually(20*time.Second, func() bool {
					_, up := byLane(a)[c.lane]
					return s.pingClass(c.dscp, 1) && up
				}) {
					t.Fatalf("no SA for the class %q, or no answer:%s%s%s", c.lane, counts(a), counts(b), logs(a, b))
				}
				s.pingClass(c.dscp, 3) // by the new one, so that b knows it
				before := byLane(a)
				if !s.pingClass(c.dscp, 10) {
					t.Errorf("DSCP %d is not answered%s%s", c.dscp, counts(a), counts(b))
				}
				for lane, now := range byLane(a) {
					out, in := now.packetsOut-before[lane].packetsOut, now.packetsIn-before[lane].packetsIn
					want := 0
					if lane == c.lane {
						want = 10
					}
					// charon sends through whichever is its newest, and postern with classes of its own
					// through what those say.
					if out != want || peer == "postern without" && in != want {
						t.Errorf("DSCP %d: the SA for %q has carried %d out and %d in, want %d%s%s", c.dscp, lane, out, in, want, counts(a), counts(b))
					}
				}
			}
			if n := len(byLane(a)); n != 3 {
				t.Errorf("%d SAs, want one for each class and one for the rest%s%s", n, counts(a), counts(b))
			}
			if err := a.terminate(""); err != nil || !gone(a, 20*time.Second) || !gone(b, 20*time.Second) {
				t.Errorf("the end: %v%s", err, logs(a, b))
			}
		})
	}
}

// sendFlows sends one UDP datagram from each of n ports of lana to lanb.
func (s *site) sendFlows(conns []*net.UDPConn) {
	s.t.Helper()
	for _, c := range conns {
		_, _ = c.Write([]byte(mark)) // nobody listens there: an ICMP error may be the answer
	}
}

// openFlows opens n flows from lana to lanb.
func (s *site) openFlows(n int) (list []*net.UDPConn) {
	s.t.Helper()
	for range n {
		err := inNamespace(s.lanA, func() error {
			c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(hostB4, 9)))
			if err == nil {
				list = append(list, c)
				s.t.Cleanup(func() { c.Close() })
			}
			return err
		})
		if err != nil {
			s.t.Fatalf("UDP socket in %s: %v", s.lanA, err)
		}
	}
	return list
}

// Each worker sends through an SA of its own, and the first SA carries nothing any more when
// all have one.
func TestEachWorkerHasItsOwnSA(t *testing.T) {
	need(t, "swanctl", "ping")
	t.Parallel()
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	both(&ca, &cb, func(c *conn) { c.encap, c.children[0].more = true, "per_cpu_sas = true\n" })
	ca.board, cb.board = "large", "large"
	a, b := newPostern(s, 'a', ca), newPostern(s, 'b', cb)
	a.env, b.env = []string{"GOMAXPROCS=2"}, []string{"GOMAXPROCS=2"}
	b.start()
	a.start()
	mustInitiate(t, "net", a, b)
	flows := s.openFlows(16)
	if !eventually(20*time.Second, func() bool {
		s.sendFlows(flows)
		m := byLane(a)
		return m["CPU 0"].packetsOut > 0 && m["CPU 1"].packetsOut > 0
	}) {
		t.Fatalf("the workers have no SAs of their own:%s%s%s", counts(a), counts(b), logs(a, b))
	}
	before := byLane(a)
	for range 20 {
		s.sendFlows(flows)
	}
	if !s.pingClass(0, 5) {
		t.Errorf("no answers%s%s", counts(a), counts(b))
	}
	now := byLane(a)
	if n := now[""].packetsOut - before[""].packetsOut; n != 0 || before["CPU 0"].packetsOut == now["CPU 0"].packetsOut || before["CPU 1"].packetsOut == now["CPU 1"].packetsOut {
		t.Errorf("the first SA has carried %d packets, want all of them on the two others:%s\nbefore %v", n, counts(a), before)
	}
	// What the workers of a send, those of b receive, each at the socket that its SA is for.
	in := map[string]int{}
	for _, c := range children(b, "net") {
		in[c.spiIn] = c.packetsIn
	}
	for _, cpu := range []string{"CPU 0", "CPU 1"} {
		if in[now[cpu].spiOut] == 0 {
			t.Errorf("b has received nothing through the SA for %s of a%s%s", cpu, counts(a), counts(b))
		}
	}
	if err := a.terminate(""); err != nil || !gone(a, 20*time.Second) || !gone(b, 20*time.Second) {
		t.Errorf("the end: %v%s", err, logs(a, b))
	}
}

// strongSwan of before RFC 9611 does not know the notify: the first SA stays the only one, and
// nothing is said about it.
func TestCharonWithoutRFC9611HasOneSA(t *testing.T) {
	needCharon(t)
	need(t, "ping")
	t.Parallel()
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	ca.conns[0].children[0].more = "per_cpu_sas = true\n"
	ca.board = "large"
	b := startCharon(s, 'b', cb)
	a := newPostern(s, 'a', ca)
	a.env = []string{"GOMAXPROCS=2"}
	a.start()
	mustInitiate(t, "net", a, b)
	flows := s.openFlows(16)
	for range 10 {
		s.sendFlows(flows)
	}
	if !s.pingClass(0, 10) {
		t.Errorf("no answers%s%s", counts(a), logs(a, b))
	}
	if n := len(children(a, "net")); n != 1 {
		t.Errorf("%d SAs, want 1%s%s", n, counts(a), logs(a, b))
	}
	if lines := matching(a.log(), "error"); len(lines) > 0 {
		t.Errorf("postern complains: %q", lines)
	}
}
