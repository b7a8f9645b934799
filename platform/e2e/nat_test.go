//go:build linux

package e2e

import (
	"testing"
	"time"
)

// natSpecs are pairSpecs for a site whose gwa is behind a NAT.
func natSpecs() (a, b spec) {
	a, b = pairSpecs(false, false)
	b.conns[0].remote = "%any"
	return a, b
}

// The initiator is behind a NAT: both move to port 4500, ESP goes in UDP, and the
// responder answers to where the packets come from.
func TestInitiatorBehindNAT(t *testing.T) {
	eachPair(t, func(t *testing.T, p pair) {
		s := newSite(t)
		s.hideA()
		ca, cb := natSpecs()
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		s.mustPing(t, false, a, b)
		sa, sb := established(t, a), established(t, b)
		if a.kind() == "postern" && b.kind() == "postern" && (!sa.natLocal || sa.natRemote) {
			t.Errorf("a thinks that a NAT is before it: %v, before the peer: %v; want true, false", sa.natLocal, sa.natRemote)
		}
		if !sb.natRemote || b.kind() == "postern" && p.a == "postern" && sb.natLocal {
			t.Errorf("b thinks that a NAT is before it: %v, before the peer: %v; want false, true", sb.natLocal, sb.natRemote)
		}
		if sb.remoteHost != nat4.String() || sb.remotePort == "4500" || sb.localPort != "4500" {
			t.Errorf("b: peer %s[%s], own port %s; want the NAT's address, a port of its, and 4500", sb.remoteHost, sb.remotePort, sb.localPort)
		}
		w := c.stop()
		w.nothingInClear(t, []byte(mark))
		for _, k := range w {
			if k.class == classESP {
				t.Errorf("ESP without UDP on the WAN: %s", k.what)
				break
			}
		}
		for _, k := range w.ike("a0", exAuth) {
			if k.dport != 4500 {
				t.Errorf("IKE_AUTH went to port %d behind a NAT, want 4500", k.dport)
			}
		}
	})
}

// The NAT forgets an idle mapping after 25 s. Whoever is behind it sends a keepalive more
// often than that (every 20 s, RFC 3948 section 4), so that the other side still gets in.
func TestKeepaliveHoldsTheMapping(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		s.hideA()
		s.sysctl(s.wan, "net/netfilter/nf_conntrack_udp_timeout", "25")
		s.sysctl(s.wan, "net/netfilter/nf_conntrack_udp_timeout_stream", "25")
		ca, cb := natSpecs()
		ca.conns[0].dpdDelay = 10 * time.Minute
		cb.conns[0].dpdDelay = 10 * time.Minute
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		mustInitiate(t, "net", a, b)
		s.mustPing(t, false, a, b)
		time.Sleep(32 * time.Second)
		// The peer speaks first: this gets through only if the mapping is still there.
		if r := s.pings(s.lanB, hostA4, 3); r.lost() != 0 {
			t.Errorf("towards the side behind the NAT, after 32 idle seconds: %v%s", r, logs(a, b))
		}
		w := c.stop()
		if n := w.count("a0", "b0", isClass(classKeepalive)); n < 1 || n > 3 {
			t.Errorf("%d keepalives in 32 idle seconds, want one or two", n)
		}
		if n := w.count("b0", "a0", isClass(classKeepalive)); p.b == "postern" && n != 0 {
			t.Errorf("the side that is not behind a NAT sent %d keepalives", n)
		}
	})
}

// The NAT forgets the mapping and gives out another port: the responder follows the peer's
// authenticated packets (RFC 7296 section 2.23).
func TestResponderFollowsANewMapping(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	s.hideA()
	s.sysctl(s.wan, "net/netfilter/nf_conntrack_udp_timeout", "1")
	s.sysctl(s.wan, "net/netfilter/nf_conntrack_udp_timeout_stream", "1")
	ca, cb := natSpecs()
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	before := established(t, b).remotePort
	time.Sleep(3 * time.Second)
	if r := s.pings(s.lanA, hostB4, 10); r.lost() > 1 {
		t.Errorf("after the NAT's mapping changed, %v%s", r, logs(a, b))
	}
	if after := established(t, b).remotePort; after == before {
		t.Errorf("the responder still shows the old port %s", before)
	}
}
