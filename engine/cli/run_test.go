package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
)

const goodConfig = `[log]
ike = "warn"

[connections.plant]
remote_addrs = ["192.0.2.2"]

[connections.plant.local]
id = "a.example"

[connections.plant.remote]
id = "b.example"

[connections.plant.children.modbus]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24"]
start_action = "start"

[secrets.plant]
id = ["a.example", "b.example"]
secret = "a text of more than sixteen octets"
`

const badConfig = `[connections.plant]
remote_adrs = ["192.0.2.2"]
dpd_delay = "soon"
`

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postern.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// stubDaemon is an engine that does nothing.
type stubDaemon struct {
	hang     chan struct{} // if there is one, Run ends when it is closed
	result   error
	early    chan error
	reloaded chan *config.Config
	lg       *log.Logger
	path     string // that it was made with

	mu       sync.Mutex
	got      []string // commands
	refuse   string   // what a command that is refused holds
	onReload func() error
}

func (d *stubDaemon) Run(stop <-chan struct{}) error {
	select {
	case err := <-d.early:
		return err
	case <-stop:
	}
	if d.hang != nil {
		<-d.hang
	}
	return d.result
}

func (d *stubDaemon) Reload(cfg *config.Config) error {
	if d.result != nil {
		return d.result
	}
	d.reloaded <- cfg
	return nil
}

func (d *stubDaemon) Running() <-chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

func (d *stubDaemon) OnReload(f func() error) { d.onReload = f }

func (d *stubDaemon) Command(name string, req *control.Message, _ func(string, *control.Message) error) (*control.Message, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, name+" "+req.String())
	if d.refuse != "" && strings.Contains(req.String(), d.refuse) {
		return control.Failure(errors.New("refused")), true
	}
	return control.Success(), true
}

// commands returns what it was told since the last time.
func (d *stubDaemon) commands() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := strings.Join(d.got, "\n")
	d.got = nil
	return s
}

// lockedBuffer is what several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running starts 'postern run' with a stub in a bubble of virtual time.
func running(t *testing.T, d *stubDaemon, args ...string) (signals chan os.Signal, status chan int, errs *lockedBuffer) {
	t.Helper()
	if d.early == nil {
		d.early = make(chan error)
	}
	d.reloaded = make(chan *config.Config, 1)
	signals, status, errs = make(chan os.Signal, 4), make(chan int, 1), &lockedBuffer{}
	sys := System{
		Stdout: &lockedBuffer{}, Stderr: errs, Version: "1.2.3",
		Signals: func() <-chan os.Signal { return signals },
		NewDaemon: func(path string, cfg *config.Config, prof board.Profile, lg *log.Logger) (Daemon, error) {
			d.lg, d.path = lg, path
			return d, nil
		},
	}
	go func() { status <- Main(append([]string{"run"}, args...), sys) }()
	synctest.Wait()
	return signals, status, errs
}

func wantStatus(t *testing.T, status chan int, want int, errs *lockedBuffer) {
	t.Helper()
	select {
	case got := <-status:
		if got != want {
			t.Errorf("run exits with %d, want %d; it logged\n%s", got, want, errs)
		}
	case <-time.After(time.Minute):
		t.Fatalf("run does not end; it logged\n%s", errs)
	}
}

func TestRunEndsCleanlyOnSignals(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	path := writeConfig(t, goodConfig)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		synctest.Test(t, func(t *testing.T) {
			signals, status, errs := running(t, &stubDaemon{}, "-c", path)
			signals <- sig
			wantStatus(t, status, ExitOK, errs)
			for _, w := range []string{"msg=starting version=1.2.3", "connections=1", "msg=ending", "msg=ended"} {
				if !strings.Contains(errs.String(), w) {
					t.Errorf("%s: the log lacks %q:\n%s", sig, w, errs)
				}
			}
		})
	}
}

func TestRunEndsInBoundedTimeEvenIfTheEngineHangs(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	path := writeConfig(t, goodConfig)
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		signals, status, errs := running(t, &stubDaemon{hang: hang}, "--config", path)
		began := time.Now()
		signals <- syscall.SIGTERM
		signals <- syscall.SIGHUP // is of no interest any more
		wantStatus(t, status, ExitFailed, errs)
		if took := time.Since(began); took != endPatience {
			t.Errorf("it took %v to give up, want %v", took, endPatience)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		signals, status, errs := running(t, &stubDaemon{hang: hang}, "--config", path)
		began := time.Now()
		signals <- syscall.SIGTERM
		signals <- syscall.SIGINT
		wantStatus(t, status, ExitFailed, errs)
		if took := time.Since(began); took != 0 {
			t.Errorf("a second signal is obeyed after %v, want at once", took)
		}
	})
}

func TestHangUpReloadsAndKeepsTheOldOnErrors(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	path := writeConfig(t, goodConfig)
	synctest.Test(t, func(t *testing.T) {
		d := &stubDaemon{}
		signals, status, errs := running(t, d, "-c", path)
		if d.lg.Enabled(log.IKE, log.Info) || !d.lg.Enabled(log.ESP, log.Info) {
			t.Error("the configured log levels are not in force")
		}
		write := func(text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			signals <- syscall.SIGHUP
			synctest.Wait()
		}
		write(badConfig)
		select {
		case <-d.reloaded:
			t.Error("a configuration with errors reached the engine")
		default:
		}
		if n := strings.Count(errs.String(), "the old one stays"); n < 2 || !strings.Contains(errs.String(), path+":2:1") {
			t.Errorf("the log must name every problem with its place:\n%s", errs)
		}
		if d.lg.Enabled(log.IKE, log.Info) {
			t.Error("a configuration with errors changed the log levels")
		}
		write(strings.Replace(goodConfig, `"warn"`, `"debug"`, 1))
		select {
		case cfg := <-d.reloaded:
			if len(cfg.IKE.Conns) != 1 {
				t.Errorf("the reloaded configuration has %d connections", len(cfg.IKE.Conns))
			}
		default:
			t.Errorf("a good configuration did not reach the engine:\n%s", errs)
		}
		if !d.lg.Enabled(log.IKE, log.Debug) {
			t.Error("the reloaded log levels are not in force")
		}
		d.result = errors.New("no room")
		write(goodConfig)
		if !strings.Contains(errs.String(), `err="no room"`) || !d.lg.Enabled(log.IKE, log.Debug) {
			t.Errorf("what the engine refuses must be logged and change nothing:\n%s", errs)
		}
		d.result = nil
		signals <- syscall.SIGTERM
		wantStatus(t, status, ExitOK, errs)
	})
}

func TestLogLevelOptionOverridesTheConfiguration(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	path := writeConfig(t, goodConfig)
	synctest.Test(t, func(t *testing.T) {
		d := &stubDaemon{}
		signals, status, errs := running(t, d, "-c", path, "--log-level", "debug")
		signals <- syscall.SIGHUP
		synctest.Wait()
		if !d.lg.Enabled(log.IKE, log.Debug) || !d.lg.Enabled(log.Net, log.Debug) {
			t.Error("--log-level debug is not in force after a reload")
		}
		signals <- syscall.SIGINT
		wantStatus(t, status, ExitOK, errs)
	})
}

func TestKeysAreProtectedBeforeTheyAreRead(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	path := filepath.Join(t.TempDir(), "postern.toml") // written by Harden: it can only be read after it
	sys := System{
		Harden: func() error {
			if err := os.WriteFile(path, []byte(goodConfig), 0o600); err != nil {
				t.Fatal(err)
			}
			return errors.New("no prctl here")
		},
		Signals: func() <-chan os.Signal { return nil },
		NewDaemon: func(string, *config.Config, board.Profile, *log.Logger) (Daemon, error) {
			return nil, errors.New("enough")
		},
	}
	status, _, errs := call(sys, "run", "-c", path)
	if status != ExitFailed || !strings.Contains(errs, "no prctl here") || !strings.Contains(errs, "enough") {
		t.Errorf("status %d, %q, want a warning, and then the start", status, errs)
	}
}

func TestRunTellsWhyItCannotStart(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	good, bad := writeConfig(t, goodConfig), writeConfig(t, badConfig)
	fails := func(err error) System {
		return System{
			Signals: func() <-chan os.Signal { return nil },
			NewDaemon: func(string, *config.Config, board.Profile, *log.Logger) (Daemon, error) {
				return nil, fmt.Errorf("TUN device postern0: %w", err)
			},
		}
	}
	ended := fails(nil)
	ended.NewDaemon = func(string, *config.Config, board.Profile, *log.Logger) (Daemon, error) {
		early := make(chan error, 1)
		early <- &os.PathError{Op: "open", Path: "/dev/net/tun", Err: syscall.ENOENT}
		return &stubDaemon{early: early}, nil
	}
	for _, tc := range []struct {
		name   string
		sys    System
		path   string
		status int
		say    string
	}{
		{"bad configuration", System{}, bad, ExitConfig, "postern: " + bad + ":2:1"},
		{"no configuration", System{}, good + "x", ExitConfig, good + "x"},
		{"no privileges", System{Privileges: func() error { return errors.New("lacks CAP_NET_ADMIN") }}, good, ExitSystem, "lacks CAP_NET_ADMIN"},
		{"forbidden", fails(syscall.EPERM), good, ExitSystem, "operation not permitted"},
		{"no device", fails(syscall.ENODEV), good, ExitSystem, "no such device"},
		{"device lost", ended, good, ExitSystem, "/dev/net/tun"},
		{"port taken", fails(syscall.EADDRINUSE), good, ExitFailed, "address already in use"},
	} {
		status, _, errs := call(tc.sys, "run", "-c", tc.path)
		if status != tc.status || !strings.Contains(errs, tc.say) {
			t.Errorf("%s: status %d, %q, want %d and %q", tc.name, status, errs, tc.status, tc.say)
		}
	}
}

func TestCheckPrintsEveryProblemWithItsPlace(t *testing.T) {
	good, bad := writeConfig(t, goodConfig), writeConfig(t, badConfig)
	status, out, errs := call(System{}, "check", good)
	if status != ExitOK || out != good+": 1 connection, 1 child: no problems\ndefault proposals on this processor: ChaCha20-Poly1305, and AES-CBC for ESP only\n" || errs != "" {
		t.Errorf("a good file: status %d, %q, %q", status, out, errs)
	}
	status, out, errs = call(System{}, "check", bad)
	if status != ExitConfig || errs != "" || !strings.Contains(out, bad+":2:1: ") || !strings.Contains(out, bad+":3:") {
		t.Errorf("a bad file: status %d, %q, %q, want %d and both problems on standard output", status, out, errs, ExitConfig)
	}
	status, out, _ = call(System{}, "check", "--json", bad)
	var v struct {
		File     string
		OK       bool
		Problems []struct {
			File, Problem string
			Line, Column  int
		}
		Warnings []any
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != ExitConfig || v.OK || v.File != bad ||
		len(v.Problems) != strings.Count(outOf(t, "check", bad), "\n") || v.Problems[0].Line != 2 || v.Warnings == nil {
		t.Errorf("check --json: status %d, %v:\n%s", status, err, out)
	}
	status, out, _ = call(System{}, "check", "--json", good)
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != ExitOK || !v.OK {
		t.Errorf("check --json of a good file: status %d, %v:\n%s", status, err, out)
	}
	status, _, errs = call(System{}, "check", good+"x")
	if status != ExitConfig || !strings.Contains(errs, good+"x") {
		t.Errorf("a missing file: status %d, %q", status, errs)
	}
}

func outOf(t *testing.T, args ...string) string {
	t.Helper()
	_, out, _ := call(System{}, args...)
	return out
}

func TestCheckKnowsWhatTheDeviceHasRoomFor(t *testing.T) {
	var b strings.Builder
	b.WriteString("[daemon]\nboard = \"tiny\"\n")
	for i := range board.Tiny.ChildSAs + 1 {
		fmt.Fprintf(&b, "[connections.c%d]\nremote_addrs = [\"192.0.2.2\"]\n[connections.c%d.local]\nid = \"a\"\n[connections.c%d.remote]\nid = \"b\"\n"+
			"[connections.c%d.children.x]\nlocal_ts = [\"10.1.%d.0/24\"]\nremote_ts = [\"10.2.%d.0/24\"]\n", i, i, i, i, i, i)
	}
	b.WriteString("[secrets.s]\nsecret = \"a text of more than sixteen octets\"\n")
	status, out, _ := call(System{}, "check", writeConfig(t, b.String()))
	if status != ExitConfig || !strings.Contains(out, `board "tiny"`) {
		t.Errorf("more connections than the board has room for: status %d, %q", status, out)
	}
}
