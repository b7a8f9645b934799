//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"
)

// What the tunnel is for: a Modbus master, an SNMP manager, a bulk transfer and packets
// larger than the WAN's MTU.
func TestApplications(t *testing.T) {
	t.Parallel()
	for _, p := range matrixPairs() {
		t.Run(p.String(), func(t *testing.T) {
			need(t, "mbpoll", "snmpd", "snmpget", "snmpbulkget", "iperf3", "tshark")
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			c := s.capture()
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			modbus(t, s)
			snmp(t, s)
			for _, size := range []int{1300, 1372, 1400, 1472, 3000, 9000} {
				if r := s.pings(s.lanA, hostB4, 3, echoOptions{size: size}); r.lost() != 0 {
					t.Errorf("of %d octets, %v%s", size, r, logs(a, b))
				}
			}
			w := c.stop()
			w.nothingInClear(t, []byte(mark))
			tsharkAgrees(t, s, "a0")

			r, err := s.iperf3(hostB4, "-t", "2")
			if err != nil || r.mbits < 5 {
				t.Errorf("TCP through the tunnel: %.1f Mbit/s, %v%s", r.mbits, err, logs(a, b))
			}
			back, err := s.iperf3(hostB4, "-t", "2", "-R")
			if err != nil || back.mbits < 5 {
				t.Errorf("TCP back through the tunnel: %.1f Mbit/s, %v%s", back.mbits, err, logs(a, b))
			}
			// The best of a few: a machine that others keep busy loses packets by itself.
			u, err := s.iperf3(hostB4, "-u", "-b", "2M", "-l", "200", "-t", "1")
			for try := 0; try < 4 && err == nil && u.lost > 1; try++ {
				u, err = s.iperf3(hostB4, "-u", "-b", "2M", "-l", "200", "-t", "1")
			}
			if err != nil || u.lost > 1 {
				t.Errorf("UDP at 2 Mbit/s: %.2f %% lost, %v", u.lost, err)
			}
			t.Logf("TCP %.0f and back %.0f Mbit/s", r.mbits, back.mbits)
		})
	}
}

// modbus reads and writes registers of a device in LAN B with mbpoll.
func modbus(t *testing.T, s *site) {
	t.Helper()
	m := s.startModbus(s.lanB, hostB4)
	host := hostB4.String()
	// mbpoll's references start at 1, the registers on the wire at 0.
	got, err := s.mbpoll(s.lanA, "-t", "4", "-r", "101", "-c", "100", host)
	if err != nil || len(got) != 100 || got[101] != 100 || got[200] != 199 {
		t.Errorf("holding registers 100 to 199: got %d values, first %d, last %d (%v)", len(got), got[101], got[200], err)
	}
	got, err = s.mbpoll(s.lanA, "-t", "3", "-r", "8", "-c", "2", host)
	if err != nil || got[8] != 10007 || got[9] != 10008 {
		t.Errorf("input registers 7 and 8: got %v (%v)", got, err)
	}
	// The mark in four registers, so that it would be seen on the WAN both ways.
	words := make([]string, 0, 4)
	for i := 0; i < len(mark); i += 2 {
		words = append(words, itoa(int(mark[i])<<8|int(mark[i+1])))
	}
	if _, err = s.mbpoll(s.lanA, append([]string{"-t", "4", "-r", "301", host}, words...)...); err != nil {
		t.Errorf("write multiple registers: %v", err)
	}
	if got, err = s.mbpoll(s.lanA, "-t", "4", "-r", "301", "-c", "4", host); err != nil || itoa(got[301]) != words[0] || itoa(got[304]) != words[3] {
		t.Errorf("registers read back: got %v, want %v (%v)", got, words, err)
	}
	if _, err = s.mbpoll(s.lanA, "-t", "4", "-r", "401", host, "4711"); err != nil || m.register(400) != 4711 {
		t.Errorf("write one register: the device has %d, want 4711 (%v)", m.register(400), err)
	}
	if _, err = s.mbpoll(s.lanA, "-t", "4", "-r", "1001", host); err == nil || !strings.Contains(err.Error(), "Illegal data address") {
		t.Errorf("a register that is not there: mbpoll says %v, want the device's exception", err)
	}
	if n := m.seen(); n != 6 {
		t.Errorf("the device saw %d requests, want 6", n)
	}
}

// snmp asks an agent in LAN B.
func snmp(t *testing.T, s *site) {
	t.Helper()
	s.startSNMPD(hostB4)
	out, err := s.snmp(s.lanA, "snmpget", hostB4, "-t", "2", "-r", "1")
	if err != nil || !strings.Contains(out, `"pump-station-7"`) {
		t.Errorf("snmpget: %v: %s", err, out)
	}
	// An answer of more than a kilobyte.
	out, err = s.snmp(s.lanA, "snmpbulkget", hostB4, "-t", "2", "-r", "1", "-Cr40")
	if err != nil || strings.Count(out, "\n") < 20 {
		t.Errorf("snmpbulkget: %v: %s", err, out)
	}
}

// The first packet of a connection that is negotiated on demand waits for the tunnel.
func TestFirstPacketBringsTheTunnelUp(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].start = "trap"
		c := s.capture()
		a, b := startPair(s, p, ca, cb)
		if r := s.pings(s.lanA, hostB4, 20); r.lost() != 0 {
			t.Errorf("the first packet starts the tunnel and waits for it, but %v%s", r, logs(a, b))
		}
		installed(t, a, "net")
		c.stop().nothingInClear(t, []byte(mark))
	})
}

// A connection that starts by itself comes up as soon as the peer is there.
func TestConnectionStartsByItself(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		ca.conns[0].children[0].start = "start"
		ca.retryTimeout, ca.retryTries, ca.retryBase = time.Second, 3, 1
		a := start(s, p.a, 'a', ca)
		time.Sleep(1500 * time.Millisecond) // the first attempt finds nobody
		b := start(s, p.b, 'b', cb)
		if !eventually(20*time.Second, func() bool { return len(children(a, "net")) == 1 }) {
			t.Fatalf("no tunnel 20 s after the peer came%s", logs(a, b))
		}
		s.mustPing(t, false, a, b)
	})
}
