package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A child with a device of its own is shown with it, and decides about no packet that is asked
// about: the system's routes do.
func TestPolicyShowsTheDeviceOfAChild(t *testing.T) {
	file := filepath.Join(t.TempDir(), "postern.toml")
	text := `
[connections.c]
remote_addrs = ["198.51.100.7"]
[connections.c.children.routed]
interface = "ipsec0"
local_ts = ["0.0.0.0/0"]
remote_ts = ["0.0.0.0/0"]
[connections.c.children.net]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24"]
[secrets.c]
secret = "an example of 24 octets."
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errs := call(System{}, "policy", "-c", file)
	want := `  # NAME               ACTION   WAY   CHILD
  1 -                  protect  both  c/routed
    what is routed into ipsec0: 0.0.0.0/0 === 0.0.0.0/0
  2 -                  protect  both  c/net
    10.1.0.0/24 === 10.2.0.0/24
`
	if status != ExitOK || errs != "" || out != want {
		t.Errorf("policy exits with %d, %q, and prints\n%s\nwant\n%s", status, errs, out, want)
	}
	_, out, _ = call(System{}, "policy", "--json", "-c", file)
	if strings.Count(out, `"interface": "ipsec0"`) != 1 || strings.Count(out, `"interface"`) != 1 {
		t.Errorf("policy --json does not name the device of the one child that has one:\n%s", out)
	}
	for args, want := range map[string]string{
		"10.1.0.5 10.2.0.7 tcp 1 2": "policy 2 decides",
		"10.9.0.5 10.2.0.7 tcp 1 2": "no policy selects it",
	} {
		_, out, _ := call(System{}, append([]string{"policy", "test", "-c", file}, strings.Fields(args)...)...)
		if !strings.Contains(out, want) {
			t.Errorf("policy test %s prints\n%s\nwant %s", args, out, want)
		}
	}
}
