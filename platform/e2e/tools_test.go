//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// iperf is what a run of iperf3 measured.
type iperf struct {
	mbits float64 // per second, as received
	lost  float64 // per cent of datagrams
}

// iperf3 runs iperf3 from LAN A to the address of LAN B.
func (s *site) iperf3(to netip.Addr, args ...string) (iperf, error) {
	server := startIn(s.t, s.lanB, filepath.Join(s.dir, "iperf3-server"), nil, "iperf3", "-s", "-1", "-B", to.String())
	defer server.kill()
	var out string
	var err error
	// The server takes a moment until it listens.
	eventually(3*time.Second, func() bool {
		out, err = s.run(s.lanA, "iperf3", append([]string{"-J", "-c", to.String(), "--connect-timeout", "2000"}, args...)...)
		return !strings.Contains(out, "Connection refused")
	})
	if err != nil || strings.Contains(out, `"error":`) { // with -J its exit status says nothing
		return iperf{}, fmt.Errorf("iperf3: %v\n%s", err, tail(out, 10))
	}
	var r struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				Bits float64 `json:"bits_per_second"`
				Lost float64 `json:"lost_percent"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return iperf{}, fmt.Errorf("iperf3's report: %w", err)
	}
	return iperf{max(r.End.Received.Bits, r.End.Sum.Bits) / 1e6, r.End.Sum.Lost}, nil
}

// mbpoll runs the Modbus master against the device and returns the values it read, by
// reference number.
func (s *site) mbpoll(ns string, args ...string) (map[int]int, error) {
	out, err := s.run(ns, "mbpoll", append([]string{"-m", "tcp", "-a", "1", "-1", "-q", "-o", "5"}, args...)...)
	values := map[int]int{}
	for _, m := range mbpollLine.FindAllStringSubmatch(out, -1) {
		ref, _ := strconv.Atoi(m[1])
		values[ref], _ = strconv.Atoi(m[2])
	}
	if err != nil {
		return values, fmt.Errorf("mbpoll %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return values, nil
}

var mbpollLine = regexp.MustCompile(`(?m)^\[(\d+)\]:\s+(\d+)`)

// startSNMPD starts an SNMP agent in LAN B, on the one address there, and waits until it
// answers beside itself.
func (s *site) startSNMPD(addr netip.Addr) *process {
	s.t.Helper()
	dir := filepath.Join(s.dir, "snmpd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	conf := filepath.Join(dir, "snmpd.conf")
	text := "rocommunity " + mark + "\nsysName pump-station-7\nsysLocation " + strings.Repeat("behind the weir ", 12) + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p := startIn(s.t, s.lanB, filepath.Join(dir, "out"), []string{"SNMP_PERSISTENT_DIR=" + dir, "MIBS="},
		"snmpd", "-f", "-Lo", "-C", "-c", conf, "-p", filepath.Join(dir, "pid"), "udp:"+addr.String()+":161")
	if !eventually(15*time.Second, func() bool {
		out, err := s.snmp(s.lanB, "snmpget", addr, "-t", "1", "-r", "0")
		return err == nil && strings.Contains(out, "pump-station-7") || !p.alive()
	}) || !p.alive() {
		s.t.Fatalf("snmpd did not start: %s", p.text())
	}
	return p
}

// sysName is the object that snmpget asks for.
const sysName = ".1.3.6.1.2.1.1.5.0"

// snmp runs one of net-snmp's clients for the object sysName.
func (s *site) snmp(ns, tool string, to netip.Addr, args ...string) (string, error) {
	args = append(append([]string{"-v2c", "-c", mark, "-m", "", "-On"}, args...), to.String(), sysName)
	return s.run(ns, tool, args...)
}

func itoa(n int) string { return strconv.Itoa(n) }

// atoi reads a number that a kernel or a tool has printed.
func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic("e2e: not a number: " + s)
	}
	return n
}
