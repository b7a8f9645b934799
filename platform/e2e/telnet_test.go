//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTelnetd starts busybox's telnetd, which is what small devices have, in a namespace, for
// each connection to port 23 as inetd does. In the place of login stands a script that wants the name given, a password, and a
// command that it repeats.
func (s *site) startTelnetd(ns string, at netip.Addr, name string) {
	s.t.Helper()
	script := filepath.Join(s.dir, "login")
	text := fmt.Sprintf(`#!/bin/sh
printf 'station login: '; read -r name
printf 'Password: '; read -r secret
[ "$name/$secret" = '%s/secret-%[1]s' ] || { echo 'Login incorrect'; exit 1; }
echo 'Welcome to station 7'
while read -r line; do echo "done: $line"; done
`, name)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
	var l *net.TCPListener
	if err := inNamespace(ns, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 23)))
		return err
	}); err != nil {
		s.t.Fatalf("telnet server: %v", err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			f, err := c.File()
			c.Close()
			if err != nil {
				continue
			}
			cmd := exec.Command("ip", "netns", "exec", ns, "busybox", "telnetd", "-i", "-l", script)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			_ = cmd.Run() // in its turn: a test has one client at a time
			f.Close()
		}
	}()
}

// telnet is a client that refuses every option.
type telnet struct {
	c    net.Conn
	text []byte // received, without commands
}

// dialTelnet connects from a namespace.
func (s *site) dialTelnet(ns string, to netip.Addr) (*telnet, error) {
	t := new(telnet)
	err := inNamespace(ns, func() (err error) {
		t.c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 23).String(), 20*time.Second)
		return err
	})
	if err == nil {
		s.t.Cleanup(func() { t.c.Close() })
	}
	return t, err
}

// expect waits for a text.
func (t *telnet) expect(text string) error {
	_ = t.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		if _, rest, ok := bytes.Cut(t.text, []byte(text)); ok {
			t.text = rest
			return nil
		}
		b := make([]byte, 4096)
		n, err := t.c.Read(b)
		if err != nil {
			return fmt.Errorf("waiting for %q after %q: %w", text, t.text, err)
		}
		if err := t.take(b[:n]); err != nil {
			return err
		}
	}
}

// take parts what came into text and commands (RFC 854), and refuses what these ask. That a
// command is torn apart does not happen with a server that sends them at once.
func (t *telnet) take(b []byte) error {
	const se, sb, will, wont, do, dont, iac = 240, 250, 251, 252, 253, 254, 255
	for len(b) > 0 {
		switch {
		case b[0] != iac || len(b) < 2:
			t.text = append(t.text, b[0])
			b = b[1:]
		case b[1] == sb:
			i := bytes.Index(b, []byte{iac, se})
			if i < 0 {
				return fmt.Errorf("a subnegotiation without an end: % x", b)
			}
			b = b[i+2:]
		case b[1] >= will && len(b) > 2:
			refusal := map[byte]byte{will: dont, do: wont}[b[1]]
			if refusal != 0 {
				if _, err := t.c.Write([]byte{iac, refusal, b[2]}); err != nil {
					return err
				}
			}
			b = b[3:]
		default:
			b = b[2:]
		}
	}
	return nil
}

func (t *telnet) say(line string) error {
	_, err := t.c.Write([]byte(line + "\r\n"))
	return err
}

// telnetSession logs in from LAN A to a device in LAN B.
func telnetSession(t *testing.T, s *site) {
	t.Helper()
	s.startTelnetd(s.lanB, hostB4, mark)
	c, err := s.dialTelnet(s.lanA, hostB4)
	if err != nil {
		t.Errorf("telnet: %v", err)
		return
	}
	for _, step := range [][2]string{
		{"station login: ", mark}, {"Password: ", "secret-" + mark}, {"Welcome to station 7", "open valve " + mark},
		{"done: open valve " + mark, ""},
	} {
		if err = c.expect(step[0]); err == nil && step[1] != "" {
			err = c.say(step[1])
		}
		if err != nil {
			t.Errorf("telnet: %v", err)
			return
		}
	}
}

// TestFieldProtocolsOverRouteBasedTunnel: what runs in plants has no protection of its own,
// and none of it can be read on the WAN.
func TestFieldProtocolsOverRouteBasedTunnel(t *testing.T) {
	need(t, "busybox", "mbpoll", "snmpd", "snmpget", "snmpbulkget", "iperf3", "tshark")
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := routeSpecs()
	c := s.capture()
	a, b := startPair(s, p, ca, cb)
	s.routeLANs()
	telnetSession(t, s)
	modbus(t, s)
	snmp(t, s) // v2c
	out, err := s.run(s.lanA, "snmpget", "-v1", "-c", mark, "-m", "", "-On", "-t", "2", "-r", "2", hostB4.String(), sysName)
	if err != nil || !strings.Contains(out, `"pump-station-7"`) {
		t.Errorf("snmpget with version 1: %v: %s%s", err, out, logs(a, b))
	}
	w := c.stop()
	// Names, passwords, community and the registers that were written are all the mark; the rest
	// is what the devices answered.
	w.nothingInClear(t, []byte(mark), []byte("pump-station-7"), []byte("station login"), []byte{0, 100, 0, 101, 0, 102, 0, 103})
	tsharkAgrees(t, s, "a0")

	// In large pieces, as the kernel hands them to such a device, too.
	for _, args := range [][]string{{"-t", "1"}, {"-t", "1", "-R"}} {
		if r, err := s.iperf3(hostB4, args...); err != nil || r.mbits < 5 {
			t.Errorf("TCP %v: %.1f Mbit/s, %v%s", args, r.mbits, err, logs(a, b))
		}
	}
}
