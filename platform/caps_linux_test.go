package platform

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMissingPrivilegesAreNamed(t *testing.T) {
	for _, c := range []struct {
		admin, raw bool
		want       []string
	}{
		{true, true, nil},
		{false, true, []string{"CAP_NET_ADMIN"}},
		{true, false, []string{"CAP_NET_RAW"}},
		{false, false, []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}},
	} {
		err := missingCaps(c.admin, c.raw)
		if (err == nil) != (c.want == nil) {
			t.Errorf("admin %v, raw %v: %v", c.admin, c.raw, err)
		}
		for _, w := range c.want {
			if !strings.Contains(strings.SplitN(err.Error(), ";", 2)[0], w) {
				t.Errorf("admin %v, raw %v: %v, want %s named", c.admin, c.raw, err, w)
			}
		}
	}
}

func TestMemoryTotalIsThatOfTheKernel(t *testing.T) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Skip("needs /proc/meminfo to compare with")
	}
	var kib uint64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	if got := MemoryTotal(); got/1024 != kib {
		t.Errorf("MemoryTotal() = %d octets, the kernel says %d KiB", got, kib)
	}
}

// In a child, since a process cannot take it back for the tests that follow.
func TestHardenedProcessLeavesNoCore(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=TestHardenedChild", "-test.v")
	cmd.Env = append(os.Environ(), "POSTERN_TEST_HARDEN=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestHardenedChild") {
		t.Errorf("the child failed: %v\n%s", err, out)
	}
}

func TestHardenedChild(t *testing.T) {
	if os.Getenv("POSTERN_TEST_HARDEN") == "" {
		t.Skip("runs as a child of TestHardenedProcessLeavesNoCore")
	}
	if err := HardenProcess(); err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil || lim.Cur != 0 || lim.Max != 0 {
		t.Errorf("core limit %+v, %v, want 0 for good", lim, err)
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d != 0 {
		t.Errorf("dumpable is %d, %v, want 0", d, err)
	}
}
