//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout bounds every helper program that is meant to end by itself.
const commandTimeout = 60 * time.Second

// command runs a program to its end and returns what it printed on both outputs.
func command(name string, args ...string) (string, error) {
	return commandInput("", name, args...)
}

// commandInput is command with something on standard input.
func commandInput(input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second // a loaded machine is slow to hand its output over
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("gave up after %v: %w", commandTimeout, err)
	}
	return string(out), err
}

// exitCode returns the exit status behind an error of command, -1 if there is none.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// staleName is the form of our namespaces' names.
var staleName = regexp.MustCompile(`^pt-(\d+)-`)

// removeStale removes the namespaces that runs of this package left when they were killed,
// and the daemons in them, which nobody else can have started: the name is ours and the
// process that it names is gone.
func removeStale() {
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		m := staleName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		exe, _ := os.Readlink("/proc/" + m[1] + "/exe")
		if strings.HasSuffix(strings.TrimSuffix(exe, " (deleted)"), ".test") {
			continue // a run that goes on beside this one
		}
		killInside(e.Name())
		command("ip", "netns", "del", e.Name())
	}
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), "pt-e2e-*"))
	for _, dir := range old {
		if b, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil {
			if _, err := os.Stat("/proc/" + strings.TrimSpace(string(b))); err != nil {
				os.RemoveAll(dir)
			}
		}
	}
	os.WriteFile(filepath.Join(workDir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600)
}

// killInside kills, one by one, the processes that live in the namespace.
func killInside(ns string) {
	out, err := command("ip", "netns", "pids", ns)
	if err != nil {
		return
	}
	for _, f := range strings.Fields(out) {
		if pid, err := strconv.Atoi(f); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// inNamespace calls f on a thread that is in the namespace. Sockets that f opens stay
// there. The thread is put back afterwards and not ended: a child process dies with the
// thread that started it (Pdeathsig).
func inNamespace(ns string, f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			errs <- fmt.Errorf("open the own namespace: %w", err)
			return
		}
		defer unix.Close(home)
		there, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			errs <- fmt.Errorf("open namespace %s: %w", ns, err)
			return
		}
		defer unix.Close(there)
		if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("enter namespace %s: %w", ns, err)
			return
		}
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			panic("e2e: cannot leave namespace " + ns + ": " + back.Error())
		}
		runtime.UnlockOSThread()
		errs <- err
	}()
	return <-errs
}

// process is a daemon or a long-running tool that a test has started. Its two outputs go
// to one file.
type process struct {
	name   string
	cmd    *exec.Cmd
	output string // path of the file
	done   chan struct{}
	err    error // of Wait, after done is closed
}

// startIn starts a program in the namespace. It ends with the test at the latest.
func startIn(t *testing.T, ns, output string, env []string, name string, args ...string) *process {
	t.Helper()
	f, err := os.OpenFile(output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// "ip netns exec" replaces itself by the program, which also gets a mount namespace
	// with the right /sys.
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &process{name: filepath.Base(name), cmd: cmd, output: output, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

// alive tells whether it still runs.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// wait waits for the process to end by itself.
func (p *process) wait(d time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(d):
		return false
	}
}

// kill ends the process as kill -9 does and waits until it is gone.
func (p *process) kill() {
	if p.alive() {
		p.cmd.Process.Signal(syscall.SIGKILL)
		<-p.done
	}
}

// terminate asks the process to end and waits; it reports whether it did so in time.
func (p *process) terminate(d time.Duration) bool {
	if p.alive() {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	if p.wait(d) {
		return true
	}
	p.kill()
	return false
}

// text returns what the process has printed so far.
func (p *process) text() string {
	b, _ := os.ReadFile(p.output)
	return string(b)
}

// eventually polls ok until it holds; it returns false after d.
func eventually(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
