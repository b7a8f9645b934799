//go:build linux

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// workDir is where all tests of this run keep their files. It must not lie under /run,
// which every charon finds replaced by an empty tmpfs.
var workDir string

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait for daemons and timers, so more of them than there are
	// processors may run at once.
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		flag.Set("test.parallel", "6")
	}
	os.Exit(func() int {
		var err error
		if workDir, err = os.MkdirTemp("", "pt-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		// Daemons that have dropped their privileges must get through to their files.
		os.Chmod(workDir, 0o755)
		if os.Geteuid() == 0 {
			removeStale()
		}
		code := m.Run()
		if code == 0 || os.Getenv("POSTERN_E2E_KEEP") == "" {
			os.RemoveAll(workDir)
		} else {
			os.Remove(filepath.Join(workDir, "pid")) // or the next run takes it for a killed one's
			fmt.Fprintln(os.Stderr, "e2e: kept", workDir)
		}
		return code
	}())
}

// required tells whether a missing tool is a failure instead of a reason to skip.
func required() bool {
	return os.Getenv("CI") == "true" || os.Getenv("POSTERN_E2E") == "require"
}

// lacks skips the test for the reason given, or fails it where everything is required.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if required() {
		t.Fatalf("%s, and CI=true or POSTERN_E2E=require says that every test has to run", reason)
	}
	t.Skip("skipped: " + reason)
}

// packageOf tells which Debian package has a tool.
var packageOf = map[string]string{
	"ip": "iproute2", "nft": "nftables", "swanctl": "strongswan-swanctl",
	"mbpoll": "mbpoll", "snmpd": "snmpd", "snmpget": "snmp", "snmpbulkget": "snmp", "tshark": "tshark",
	"busybox": "busybox-static", frrDir + "/ospfd": "frr", frrDir + "/nhrpd": "frr", frrDir + "/zebra": "frr", "vtysh": "frr",
	"iperf3": "iperf3", "setpriv": "util-linux", "mount": "mount",
}

// need skips the test unless it may lay out namespaces and finds the tools named.
func need(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped: -short leaves out what needs network namespaces")
	}
	if os.Geteuid() != 0 {
		lacks(t, "end-to-end tests need root for network namespaces; run them as root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		lacks(t, "end-to-end tests need the tun driver: %v", err)
	}
	for _, tool := range append([]string{"ip"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			lacks(t, "%s is not installed; apt-get install %s", tool, packageOf[tool])
		}
	}
	namespaceOnce.Do(func() {
		name := fmt.Sprintf("pt-%d-probe", os.Getpid())
		if out, err := command("ip", "netns", "add", name); err != nil {
			namespaceErr = fmt.Errorf("ip netns add: %w: %s", err, out)
			return
		}
		command("ip", "netns", "del", name)
	})
	if namespaceErr != nil {
		lacks(t, "network namespaces cannot be made here: %v", namespaceErr)
	}
}

var (
	namespaceOnce sync.Once
	namespaceErr  error

	buildOnce sync.Once
	buildPath string
	buildErr  error
)

// posternBinary returns the program to test: POSTERN_BIN, or what the module's main package
// builds to, with the flags that devices get.
func posternBinary(t *testing.T) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildPath = os.Getenv("POSTERN_BIN"); buildPath != "" {
			_, buildErr = os.Stat(buildPath)
			return
		}
		root := filepath.Join("..", "..")
		// go test caches a passed run and looks at the files that the test opened; the
		// sources of the program are among them only if the test looks at them itself.
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") {
				os.Stat(path)
			}
			return nil
		})
		buildPath = filepath.Join(workDir, "postern")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", buildPath, ".")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if buildErr != nil {
		var miss *exec.Error
		if errors.As(buildErr, &miss) {
			lacks(t, "the go command is needed to build postern (or POSTERN_BIN=FILE): %v", buildErr)
		}
		t.Fatalf("postern does not build: %v", buildErr)
	}
	return buildPath
}
