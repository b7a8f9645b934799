//go:build linux

package e2e

import (
	"bytes"
	"testing"
	"time"
)

// Without a tunnel the bench must find what goes in clear: a recording that cannot show
// a leak proves nothing.
func TestBenchFindsClearText(t *testing.T) {
	need(t, "mbpoll", "snmpget")
	t.Parallel()
	s := newSite(t)
	c := s.capture()
	s.pings(s.lanA, hostB4, 2, briefly)
	s.pings(s.lanA, hostB6, 2, briefly)
	s.mbpoll(s.lanA, "-o", "0.1", hostB4.String())
	s.snmp(s.lanA, "snmpget", hostB4, "-t", "1", "-r", "0")
	w := c.stop()
	found := map[string]int{}
	for _, p := range w {
		if p.class == classClear && p.link == "a0" {
			switch {
			case p.src == hostA4 && p.dport == 161 && bytes.Contains(p.data, []byte(mark)):
				found["SNMP"]++
			case p.src == hostA4 && bytes.Contains(p.data, []byte(mark)):
				found["ping"]++
			case p.src == hostA6 && bytes.Contains(p.data, []byte(mark)):
				found["ping, IPv6"]++
			case p.src == hostA4 && p.what == "10.1.0.10 > 10.2.0.10: protocol 6":
				found["Modbus"]++
			}
		}
	}
	for _, what := range []string{"SNMP", "ping", "ping, IPv6", "Modbus"} {
		if found[what] == 0 {
			t.Errorf("the recording does not show %s in clear, which went over the WAN: %s", what, w.summary())
		}
	}
	if n := w.count("a0", "b0", isESP); n != 0 {
		t.Errorf("%d packets of clear text were taken for ESP", n)
	}
}

// Two strongSwan daemons on the bench: when this fails, the bench or strongSwan is broken,
// and failures of postern's tests mean nothing.
func TestBenchCarriesStrongSwan(t *testing.T) {
	need(t, "tshark")
	p := pair{"charon", "charon"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := carries(t, s, p, ca, cb, false, "AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519", "AES_GCM_16-128")
	tsharkAgrees(t, s, "a0")
	a.stop()
	if !gone(b, 5*time.Second) {
		t.Error("the peer still has the SA")
	}
}
