package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// 'policy test' and 'check' know ICMP's types, those of mobility headers, and packets without ports.
func TestPolicyTestKnowsTypesAndOpaquePorts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.toml")
	text := `
[policies.echo]
action = "discard"
remote_ts = ["10.2.0.0/16[icmp/8]"]
[policies.errors]
action = "discard"
local_ts = ["0.0.0.0/0[icmp/768-1023]"]
[policies.binding]
action = "discard"
remote_ts = ["fd00::/8[mobility-header/5]"]
[policies.ports]
action = "discard"
remote_ts = ["10.2.0.0/16[udp/2000-3000]"]
[policies.pieces]
action = "discard"
remote_ts = ["10.2.0.0/16[udp/opaque]"]
[policies.rest]
action = "bypass"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for packet, want := range map[string]string{
		"10.1.0.1 10.2.0.1 icmp 8":             "echo",
		"10.1.0.1 10.2.0.1 icmp 8 1":           "rest",
		"10.1.0.1 10.2.0.1 icmp 3 4":           "errors",
		"10.1.0.1 10.2.0.1 icmp 4":             "rest",
		"10.1.0.1 10.2.0.1 icmp":               "rest",
		"fd01::1 fd02::1 mh 5":                 "binding",
		"fd01::1 fd02::1 mobility-header 6":    "rest",
		"10.1.0.1 10.2.0.1 udp 9 2500":         "ports",
		"10.1.0.1 10.2.0.1 udp 9 65535":        "rest",
		"10.1.0.1 10.2.0.1 udp":                "pieces",
		"10.1.0.1 10.2.0.1 tcp":                "rest",
		"--in 10.2.0.1 10.1.0.1 udp 2500 9":    "ports",
		"--in 10.2.0.1 10.1.0.1 udp":           "pieces",
		"--in 10.2.0.1 10.1.0.1 icmp 8":        "echo",
		"--in 10.2.0.1 10.1.0.1 icmp 3 13":     "errors",
		"--in fd02::1 fd01::1 mobility-header": "rest",
	} {
		status, out, errs := call(System{}, append([]string{"policy", "test", "-c", file}, strings.Fields(packet)...)...)
		if status != ExitOK || !strings.Contains(out, " "+want+" decides") {
			t.Errorf("policy test %s exits with %d and says %q and %q, want that policy %s decides", packet, status, out, errs, want)
		}
	}
	if status, out, errs := call(System{}, "check", file); status != ExitOK || strings.Contains(out+errs, "never decides") {
		t.Errorf("check exits with %d and says %q and %q, want no complaint", status, out, errs)
	}
}
