package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"postern/engine/control"
	"postern/engine/swanctl"
)

// writeSwanctl makes a directory with a swanctl.conf.
func writeSwanctl(t *testing.T, text string) string {
	t.Helper()
	if !swanctl.Enabled {
		t.Skip("built without the parser for swanctl.conf")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "swanctl.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const goodSwanctl = `connections {
  plant {
    version = 2
    remote_addrs = 192.0.2.2
    local { auth = psk
      id = a.example }
    remote { auth = psk
      id = b.example }
    children { net { local_ts = 10.1.0.0/24
      remote_ts = 10.2.0.0/24 } }
  }
}
secrets { ike-plant { id = b.example
  secret = "a text of more than sixteen octets" } }
`

// loads is what goodSwanctl becomes.
const loads = `get-keys 
get-shared 
load-shared id="ike-plant" type="ike" data="a text of more than sixteen octets" owners=["b.example"]
get-authorities 
get-pools 
get-conns 
load-conn plant{version="2" remote_addrs=["192.0.2.2"] local{auth="psk" id="a.example"} remote{auth="psk" id="b.example"} children{net{local_ts=["10.1.0.0/24"] remote_ts=["10.2.0.0/24"]}}}`

// TestRunLoadsSwanctlConf: at the start, on SIGHUP and when a client asks for it; errors are logged
// and change nothing.
func TestRunLoadsSwanctlConf(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off")
	dir := writeSwanctl(t, goodSwanctl)
	synctest.Test(t, func(t *testing.T) {
		d := &stubDaemon{}
		signals, status, errs := running(t, d, "--swanctl", dir)
		if got := d.commands(); got != loads || d.path != "" {
			t.Errorf("at the start, with the file %q:\n%s\nwant\n%s\nit logged\n%s", d.path, got, loads, errs)
		}
		signals <- syscall.SIGHUP
		synctest.Wait()
		if got := d.commands(); got != loads {
			t.Errorf("after SIGHUP:\n%s", got)
		}
		d.mu.Lock()
		d.refuse = "plant{"
		d.mu.Unlock()
		if err := d.onReload(); err == nil || !strings.Contains(err.Error(), "log") || d.commands() != loads {
			t.Errorf("a client's reload, with a connection that is refused: %v", err)
		}
		if want := "loading connection 'plant' failed: refused"; !strings.Contains(errs.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, errs)
		}
		if err := os.WriteFile(filepath.Join(dir, "swanctl.conf"), []byte("connections {"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.onReload(); err == nil || !strings.Contains(err.Error(), "swanctl.conf:1: ") || d.commands() != "" {
			t.Errorf("with an error of syntax: %v", err)
		}
		for _, w := range []string{"swanctl.conf not loaded, what was loaded before stays", "successfully loaded 1 connections, 0 unloaded"} {
			if !strings.Contains(errs.String(), w) {
				t.Errorf("the log lacks %q:\n%s", w, errs)
			}
		}
		for _, w := range []string{"sixteen", "there are no connections", "level=error area=net msg=swanctl.conf result=\"no "} {
			if strings.Contains(errs.String(), w) {
				t.Errorf("the log has %q:\n%s", w, errs)
			}
		}
		signals <- syscall.SIGTERM
		wantStatus(t, status, ExitOK, errs)
	})
	// A certificate that is gone is not trusted any more.
	dir = writeSwanctl(t, "")
	ca := filepath.Join(dir, "x509ca", "ca.pem")
	if err := os.MkdirAll(filepath.Dir(ca), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		d := &stubDaemon{}
		signals, status, errs := running(t, d, "--swanctl", dir)
		for i, want := range []string{`get-keys `, `get-keys `, "clear-creds \nget-keys ", `get-keys `} {
			if got := d.commands(); !strings.HasPrefix(got, want) || strings.Contains(got, "load-cert") != (i < 2) {
				t.Errorf("load %d: %s", i+1, got)
			}
			if i == 1 {
				if err := os.Remove(ca); err != nil {
					t.Fatal(err)
				}
			}
			signals <- syscall.SIGHUP
			synctest.Wait()
		}
		signals <- syscall.SIGTERM
		wantStatus(t, status, ExitOK, errs)
	})
	// With a file of our own beside it.
	toml := writeConfig(t, goodConfig)
	dir = writeSwanctl(t, goodSwanctl)
	synctest.Test(t, func(t *testing.T) {
		d := &stubDaemon{}
		signals, status, errs := running(t, d, "--swanctl", dir, "-c", toml)
		if got := d.commands(); got != loads || d.path != toml {
			t.Errorf("with the file %q:\n%s", d.path, got)
		}
		signals <- syscall.SIGHUP
		synctest.Wait()
		select {
		case <-d.reloaded:
		default:
			t.Error("SIGHUP does not read the file again")
		}
		if d.commands() != loads {
			t.Error("SIGHUP does not read swanctl.conf again")
		}
		signals <- syscall.SIGTERM
		wantStatus(t, status, ExitOK, errs)
	})
	// One that cannot be read at all ends it, as with a file of our own.
	dir = writeSwanctl(t, "connections {\n a {")
	synctest.Test(t, func(t *testing.T) {
		_, status, errs := running(t, &stubDaemon{}, "--swanctl", dir)
		wantStatus(t, status, ExitConfig, errs)
		if !strings.Contains(errs.String(), "swanctl.conf:2: ") {
			t.Errorf("the place is missing: %s", errs)
		}
	})
}

// TestBuildWithoutSwanctlConfSaysSo is for the tag noswanctl.
func TestBuildWithoutSwanctlConfSaysSo(t *testing.T) {
	if swanctl.Enabled {
		t.Skip("built with the parser for swanctl.conf")
	}
	for args, want := range map[string]int{"swanctl": ExitFailed, "run --swanctl /nosuch": ExitConfig, "check --swanctl /nosuch": ExitConfig} {
		status, out, errs := call(System{}, strings.Fields(args)...)
		if status != want || out != "" || !strings.Contains(errs, "built without the parser for swanctl.conf (tag noswanctl)") {
			t.Errorf("%s: status %d, %s%s", args, status, out, errs)
		}
	}
}

// TestCheckReadsSwanctlConf: with the lines of what is wrong in it.
func TestCheckReadsSwanctlConf(t *testing.T) {
	toml := writeConfig(t, goodConfig)
	for _, c := range []struct {
		name, text string
		args       []string
		want       []string
		status     int
	}{
		{"good", goodSwanctl, nil, []string{": 1 connection, 1 child: no problems"}, ExitOK},
		{"with a file of our own", strings.ReplaceAll(goodSwanctl, "plant", "other"), []string{toml}, []string{": 2 connections, 2 children: no problems"}, ExitOK},
		{"the name in both", goodSwanctl, []string{toml}, []string{"swanctl.conf:2: connections.plant: "}, ExitConfig},
		{"syntax", "connections {\n a {", nil, []string{"swanctl.conf:2: the section that begins here has no end"}, ExitConfig},
		{"unknown key", strings.ReplaceAll(goodSwanctl, "version = 2", "verson = 2"), nil, []string{"swanctl.conf:3: connections.plant.verson: "}, ExitConfig},
		{"bad value in a child", strings.ReplaceAll(goodSwanctl, "remote_ts = 10.2.0.0/24", "remote_ts = 10.2.0.0/99"), nil, []string{"swanctl.conf:10: connections.plant.children.net.remote_ts"}, ExitConfig},
		{"file that is missing", strings.ReplaceAll(goodSwanctl, "id = a.example", "certs = x.pem"), nil, []string{"swanctl.conf:6: loading certs certificate '", "x509/x.pem' failed: no such file or directory"}, ExitConfig},
		{"token", "secrets { token-x { handle = 01\n } }\n" + goodSwanctl, nil, []string{"swanctl.conf:1: keys on tokens are not taken"}, ExitConfig},
	} {
		dir := writeSwanctl(t, c.text)
		status, out, errs := call(System{}, append([]string{"check", "--swanctl", dir}, c.args...)...)
		if status != c.status {
			t.Errorf("%s: status %d, want %d", c.name, status, c.status)
		}
		for _, w := range c.want {
			if !strings.Contains(out+errs, w) {
				t.Errorf("%s: %q is missing:\n%s%s", c.name, w, out, errs)
			}
		}
	}
	// A public key beside it is no mistake, and what is none is one.
	dir := writeSwanctl(t, goodSwanctl)
	if err := os.Mkdir(filepath.Join(dir, "pubkey"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text   string
		status int
	}{
		{"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n", ExitOK},
		{"x", ExitConfig},
	} {
		if err := os.WriteFile(filepath.Join(dir, "pubkey", "k.pem"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, out, errs := call(System{}, "check", "--swanctl", dir); status != c.status || c.status != ExitOK && !strings.Contains(out, "pubkey/k.pem: data: no public key") {
			t.Errorf("pubkey/k.pem with %.20q: status %d, %s%s", c.text, status, out, errs)
		}
	}
	dir = writeSwanctl(t, goodSwanctl+"conections { }\n")
	if status, _, errs := call(System{}, "check", "--swanctl", dir); status != ExitOK || !strings.Contains(errs, "warning: "+dir+"/swanctl.conf:15: nothing takes from") {
		t.Errorf("a warning: status %d, %s", status, errs)
	}
	if status, out, _ := call(System{}, "check", "--json", "--swanctl", writeSwanctl(t, "a {")); status != ExitConfig || !strings.Contains(out, `swanctl.conf:1: the section`) {
		t.Errorf("status %d, %s", status, out)
	}
}

// swanctlDaemon answers the commands of swanctl.
type swanctlDaemon struct{ got chan string }

func (d swanctlDaemon) Command(name string, m *control.Message, _ func(string, *control.Message) error) (*control.Message, bool) {
	d.got <- name + " " + m.String()
	switch {
	case name == "get-conns":
		return new(control.Message).List("conns", "gone"), true
	case name == "load-conn" && m.Sub("bad") != nil:
		return control.Failure(errors.New("too bad")), true
	case name == "get-pools", name == "get-keys", name == "get-shared", name == "get-authorities":
		return new(control.Message), true
	}
	return control.Success(), true
}

// TestSwanctlLoadsIntoTheRunningDaemon: the requests, the words and the exit status.
func TestSwanctlLoadsIntoTheRunningDaemon(t *testing.T) {
	sock, err := os.MkdirTemp("", "vici")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sock) })
	sock = filepath.Join(sock, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := swanctlDaemon{make(chan string, 100)}
	srv := control.NewServer(l, d, control.Options{})
	go func() { _ = srv.Serve() }()
	t.Cleanup(func() { _ = srv.Close() })
	told := func() string {
		var list []string
		for len(d.got) > 0 {
			list = append(list, <-d.got)
		}
		return strings.Join(list, "\n")
	}
	dir := writeSwanctl(t, goodSwanctl)
	status, out, errs := call(System{}, "swanctl", dir, "--socket", sock)
	want := "loaded ike secret 'ike-plant'\nno pools found, 0 unloaded\nloaded connection 'plant'\nsuccessfully loaded 1 connections, 1 unloaded\n"
	if status != ExitOK || out != want || errs != "no authorities found, 0 unloaded\n" {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	if got := told(); got != loads+"\nunload-conn name=\"gone\"" {
		t.Errorf("the daemon was told\n%s", got)
	}
	status, _, errs = call(System{}, "swanctl", "--clear", writeSwanctl(t, goodSwanctl+"connections { bad { } }"), "--socket", sock)
	if status != ExitFailed || !strings.Contains(errs, "loading connection 'bad' failed: too bad\nloaded 1 of 2 connections, 1 failed to load, 1 unloaded\n") {
		t.Errorf("status %d, %s", status, errs)
	}
	if got := told(); !strings.HasPrefix(got, "clear-creds ") {
		t.Errorf("the daemon was told\n%s", got)
	}
	status, _, errs = call(System{}, "swanctl", writeSwanctl(t, "x"), "--socket", sock)
	if status != ExitConfig || !strings.Contains(errs, "swanctl.conf:1: ") || told() != "" {
		t.Errorf("an error of syntax: status %d, %s", status, errs)
	}
	if status, _, errs = call(System{}, "swanctl", dir, "--socket", sock+"x"); status != ExitNoDaemon {
		t.Errorf("without a daemon: status %d, %s", status, errs)
	}
	if status, _, errs = call(System{}, "swanctl", filepath.Join(dir, "nosuch")); status != ExitConfig || !strings.Contains(errs, "nosuch: it cannot be read: no such file") {
		t.Errorf("without a file: status %d, %s", status, fmt.Sprint(errs))
	}
}
