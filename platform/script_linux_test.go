package platform

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script runs a command and returns its lines.
func script(t *testing.T, patience time.Duration, command string, env ...string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var lines []string
	err := RunScript(ctx, command, env, func(text []byte) { lines = append(lines, string(text)) })
	return lines, err
}

func TestScriptGetsItsEnvironmentAndNothingElse(t *testing.T) {
	fd, err := unix.Open("/", unix.O_RDONLY, 0) // as a daemon is started with, or a library opens
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	t.Setenv("POSTERN_SECRET", "no")
	t.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	lines, err := script(t, 20*time.Second, "pwd; env | grep -v -e ^_= -e ^SHLVL= | sort; cat; ls /proc/self/fd", "A=1 2 3", "B=$(id); x'\"")
	if err != nil {
		t.Fatal(err)
	}
	// ls itself has the directory open.
	want := []string{"/", "A=1 2 3", "B=$(id); x'\"", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/", "0", "1", "2", "3"}
	if !slices.Equal(lines, want) {
		t.Errorf("the script sees %q, want %q", lines, want)
	}
}

func TestScriptWithoutPathGetsTheUsualOne(t *testing.T) {
	t.Setenv("PATH", "")
	if lines, err := script(t, 20*time.Second, "echo $PATH"); err != nil || !slices.Equal(lines, []string{usualPath}) {
		t.Errorf("PATH is %q (%v), want %s", lines, err, usualPath)
	}
}

func TestScriptLinesOfBothOutputsAndTheirBounds(t *testing.T) {
	long := strings.Repeat("x", maxScriptLine+10)
	lines, err := script(t, 20*time.Second, "echo one; echo two >&2; echo; echo "+long+"; printf end")
	want := []string{"one", "two", "", long[:maxScriptLine], long[maxScriptLine:], "end"}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("the lines are %q (%v), want %q", lines, err, want)
	}
}

func TestScriptStatusIsAnError(t *testing.T) {
	for command, want := range map[string]string{"exit 3": "exit status 3", "kill -9 $$": "signal: killed", "/nonexistent/script": "exit status 127"} {
		if _, err := script(t, 20*time.Second, command); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", command, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := filepath.Join(t.TempDir(), "ran")
	if err := RunScript(ctx, "echo > "+ran, nil, func([]byte) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("a script without time: %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a script without time ran")
	}
}

// The time limit ends what the script has started as well, whatever signals it ignores.
func TestScriptTimeLimitEndsTheWholeGroup(t *testing.T) {
	begin := time.Now()
	lines, err := script(t, 300*time.Millisecond, `trap "" TERM INT HUP; sleep 600 & echo $!; echo $$; wait`)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the script ended with %v, want %v", err, context.DeadlineExceeded)
	}
	if time.Since(begin) > time.Minute {
		t.Error("the script was waited for")
	}
	if len(lines) != 2 {
		t.Fatalf("the script said %q, want two process numbers", lines)
	}
	for i, text := range lines {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			if err = unix.Kill(pid, 0); err != nil || i == 0 && zombie(pid) {
				break // an orphan's remains are init's
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err == nil && (i > 0 || !zombie(pid)) {
			t.Errorf("process %d of the script is still there", i)
		}
	}
}

func zombie(pid int) bool {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

// What a script leaves in the background neither holds up the next script nor ends with it.
func TestScriptLeavesItsBackgroundAlone(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	lines, err := script(t, 20*time.Second, "(trap '' PIPE; while [ ! -e "+done+".go ]; do sleep 0.05; done; echo > "+done+") & echo up")
	if err != nil || !slices.Equal(lines, []string{"up"}) {
		t.Fatalf("the script said %q (%v), want up", lines, err)
	}
	if err := os.WriteFile(done+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if _, err = os.Stat(done); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("what the script has left in the background was ended with it")
}
