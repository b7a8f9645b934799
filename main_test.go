//go:build demo

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/engine/cli"
)

// TestMain lets the test binary be the program: the demonstration starts itself again,
// as the daemon and in a user namespace.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "demo" || os.Args[1] == "run") {
		main()
	}
	os.Exit(m.Run())
}

// startDemo starts the demonstration with a directory of its own for what it writes.
func startDemo(t *testing.T) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	t.Helper()
	out, errs = new(bytes.Buffer), new(bytes.Buffer)
	cmd = exec.Command("/proc/self/exe", "demo")
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out, errs
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// leftBehind returns what a demonstration left in its directory, and which processes
// still have to do with it.
func leftBehind(t *testing.T, cmd *exec.Cmd) (left []string) {
	t.Helper()
	dir := strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], "TMPDIR=")
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(dir)) {
			left = append(left, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}

func TestDemoShowsATunnelAndLeavesNothingBehind(t *testing.T) {
	began := time.Now()
	cmd, out, errs := startDemo(t)
	status := exitStatus(cmd.Wait())
	if status == cli.ExitSystem {
		t.Skipf("this machine does not allow network namespaces: %s", errs)
	}
	if status != cli.ExitOK {
		t.Fatalf("the demonstration exits with %d:\n%s%s", status, out, errs)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v, and promises less than 20 s", took)
	}
	for i, l := range strings.Split(out.String(), "\n") {
		if len(l) > 80 || i > 24 {
			t.Errorf("the summary does not fit on a screen of 80 by 24: line %d, %q", i+1, l)
		}
	}
	for _, want := range []string{"INSTALLED", "handshake", "nothing in clear", "Mbit/s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, out)
		}
	}
	if left := leftBehind(t, cmd); len(left) > 0 {
		t.Errorf("it left behind: %q", left)
	}
}

func TestInterruptedDemoLeavesNothingBehind(t *testing.T) {
	cmd, out, errs := startDemo(t)
	time.Sleep(2 * time.Second)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	status := exitStatus(cmd.Wait())
	if status == cli.ExitSystem {
		t.Skipf("this machine does not allow network namespaces: %s", errs)
	}
	if status != cli.ExitFailed || !strings.Contains(errs.String(), "interrupted") || out.Len() > 0 {
		t.Errorf("interrupted, it exits with %d:\n%s%s", status, out, errs)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if left := leftBehind(t, cmd); len(left) > 0 {
		t.Errorf("it left behind: %q", left)
	}
}
