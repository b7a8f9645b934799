package swanctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/engine/control"
)

// TestProblemsNameTheirPlace holds what the errors and warnings say, and that none repeats what
// may be a secret.
func TestProblemsNameTheirPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"end missing", "a {\n b {\n }\n", "swanctl.conf:1: the section that begins here has no end: a '}' is missing"},
		{"end missing in an include", "a {\n include x.inc\n }\n", "x.inc:1: the section that begins here has no end"},
		{"end too many", "a { }\n }\n", "swanctl.conf:2: a '}' without the '{'"},
		{"end of another file", "a {\n include y.inc\n }", "y.inc:1: a '}' without the '{' that goes with it, in this file"},
		{"includes itself", "# x\ninclude loop.inc", "loop.inc: the file includes itself"},
		{"nothing to include", "include \"\"", "swanctl.conf:1: include needs the name of a file"},
		{"bad pattern", "include [", "swanctl.conf:1: the pattern of this include is wrong: syntax error in pattern"},
		{"secret on a line of its own", "secrets { ike { secret =\n  hush\n } }", "swanctl.conf:2: behind the name comes '='"},
		{"secret in open quotes", "secrets { ike { secret = \"hush\n } }", "swanctl.conf:1: the quotes that open here are never closed"},
		{"circle", "connections {\n a : connections.b { }\n b : x {}\n}\nx : connections.a {\n}", "goes in a circle: take one"},
		{"takes from itself", "a {\n b : a.b {\n } }", "swanctl.conf:2: the reference to \"a.b\" goes in a circle"},
		{"takes from around it", "t {\n s : t { }\n }", "nested deeper than 16 levels: does it take from one that it stands in?"},
		{"not ASCII", "a {\n \xc3\xa9 = 1\n}", "swanctl.conf:2: names hold printable ASCII alone"},
		{"long name", "\n" + strings.Repeat("x", 256) + " {}", "swanctl.conf:2: the name has more than 255 octets"},
		{"NUL", "a { x = a\x00hush\n}", "swanctl.conf:1: a NUL character in a value"},
		{"NUL in quotes", "a { x = \"a\x00hush\"\n}", "swanctl.conf:1: a NUL character in a value"},
		{"NUL in a name", "a\x00b { }", "swanctl.conf:1: names hold printable ASCII alone"},
		{"too deep", strings.Repeat("a {\n", 17), "swanctl.conf:17: sections are nested deeper than 16 levels"},
	} {
		dir := t.TempDir()
		write(t, dir, "x.inc", "s {")
		write(t, dir, "y.inc", "}")
		write(t, dir, "loop.inc", "include ./loop.inc")
		_, err := Parse(write(t, dir, "swanctl.conf", c.text))
		var at *Error
		if !errors.As(err, &at) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the error repeats a value: %v", c.name, err)
		}
	}
	for _, c := range []struct{ name, text, want string }{
		{"unknown section", "conections { a { } }", "swanctl.conf:1: nothing takes from the section \"conections\""},
		{"no such section", "connections { a : nosuch { } }", "there is no section \"nosuch\" to take from"},
		{"no file", "include nosuch.conf", "swanctl.conf:1: there is no file to include"},
		{"key beside connections", "connections {\n version = 2\n }", "swanctl.conf:2: the key \"version\" means nothing directly in connections"},
		{"two settings in a line", "connections { a { version = 2 mobike = no\n } }", "a '=' within a value"},
		{"unknown secret", "secrets { foo { secret = hush\n } }", "ignoring unsupported secret 'foo'"},
		{"no secret", "secrets { ike { id = x\n } }", "missing secret in 'ike', ignored"},
		{"bad hexadecimal", "secrets { ike { secret = 0xhush\n } }", "the secret of 'ike' is ignored: behind 0x stand others than hexadecimal digits"},
		{"bad Base64", "secrets { ike { secret = 0shush!\n } }", "the secret of 'ike' is ignored: what stands behind 0s is not Base64"},
		{"key of a secret", "secrets { ike { secret = hush\n file = x\n } }", "swanctl.conf:2: a secret of this kind has no key \"file\""},
		{"section in a secret", "secrets { ike { secret = hush\n s { } } }", "swanctl.conf:2: the section \"s\" means nothing in a secret"},
		{"section in a pool", "pools { p { addrs = x\n s { } } }", "swanctl.conf:2: the section \"s\" means nothing in a pool"},
		{"PKCS#12", "", "gw.p12: PKCS#12 is not read: take it apart with"},
		{"key too large", "", "big.pem: the file is skipped: it is too large"},
	} {
		dir := t.TempDir()
		write(t, dir, "pkcs12/gw.p12", "x")
		write(t, dir, "private/big.pem", strings.Repeat("hush", 20000))
		set, err := Read(write(t, dir, "swanctl.conf", c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		all := fmt.Sprint(set.Warnings)
		if !strings.Contains(all, c.want) {
			t.Errorf("%s: %s\nwant %q", c.name, all, c.want)
		}
		if strings.Contains(all, "hush") {
			t.Errorf("%s: a warning repeats a value: %s", c.name, all)
		}
	}
}

// TestQuietConfigurationHasNoWarnings keeps the warnings worth reading.
func TestQuietConfigurationHasNoWarnings(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "conf.d/a.conf", "")
	conf := write(t, dir, "swanctl.conf", `
base { local { auth = psk
 } }
connections { a : base { remote_addrs = 192.0.2.1
 } }
secrets { ike-a { id = x
 secret = 0x00
 } private { file = x
 secret = y
 } }
pools { p { addrs = 10.0.0.0/24
 } }
authorities { c { file = /x
 } }
include conf.d/*.conf
include none/*.conf
`)
	set, err := Read(conf)
	if err != nil || len(set.Warnings) > 0 || len(set.Requests) != 4 {
		t.Errorf("%v, warnings %v, %d requests", err, set.Warnings, len(set.Requests))
	}
	if set, err = Read(dir); err != nil || len(set.Requests) != 4 {
		t.Errorf("the directory instead of the file: %v", err)
	}
}

// TestTooMuchIsRefused holds the bounds that keep a configuration from taking a device's memory,
// also where references make much of little.
func TestTooMuchIsRefused(t *testing.T) {
	var double strings.Builder
	for i := range 15 {
		fmt.Fprintf(&double, "s%d { a : s%d { } b : s%d { } }\n", i+1, i, i)
	}
	var chain strings.Builder
	for i := range 300 {
		fmt.Fprintf(&chain, "s%d : s%d { }\n", i+1, i)
	}
	for i := range 300 {
		fmt.Fprintf(&chain, "r%d : r%d { }\n", i, i+1)
	}
	many := "a { \n" + strings.Repeat("x = 1\n", 9000) + "}\n"
	for _, c := range []struct{ name, text, want string }{
		{"elements", many + many, "more than 16384 sections and settings"},
		{"doubling", "s0 { x = 1\n }\n" + double.String(), "more than 16384 sections and settings"},
		{"chain", "s0 { x = 1\n }\n" + chain.String(), "a section takes from more than 256 others"},
		{"chain backwards", chain.String()[strings.Index(chain.String(), "r0"):], "more than 256 references lead from one to the next"},
		{"file", strings.Repeat("#\n", 150000), "it cannot be read: it is too large"},
		{"files", strings.Repeat("include many/*\n", 3), "more than 256 files are included"},
		{"octets", strings.Repeat("include large\n", 5), "more than 1048576 octets"},
		{"nested includes", "include n0", "more than 8 files include each other"},
	} {
		dir := t.TempDir()
		for i := range 100 {
			write(t, dir, fmt.Sprintf("many/%d", i), "")
		}
		for i := range 9 {
			write(t, dir, fmt.Sprint("n", i), fmt.Sprint("include n", i+1))
		}
		write(t, dir, "large", strings.Repeat("#\n", 120000))
		_, err := Parse(write(t, dir, "swanctl.conf", c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.300v, want %q", c.name, err, c.want)
		}
	}
}

// TestMarkOfUTF8IsSkipped: swanctl takes it for a part of the first name and ignores that section.
func TestMarkOfUTF8IsSkipped(t *testing.T) {
	s, err := Parse(write(t, t.TempDir(), "swanctl.conf", "\ufeffconnections { }"))
	if err != nil || s.Sub("connections") == nil {
		t.Errorf("%v, %v", s, err)
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	if _, err := Parse(filepath.Join(dir, "nosuch.conf")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Parse(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "swanctl.conf") {
		t.Error(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(fifo); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("a FIFO, which nobody writes to: %v", err)
	}
	set, err := Read(write(t, dir, "swanctl.conf", "connections { a { remote {\n cacerts = nosuch.pem\n } } b { } }\nauthorities { c { cacert = /nosuch/x.pem\n } }"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	failed, err := set.Load(func(name string, m *control.Message) (*control.Message, error) {
		if name == "load-conn" && m.Sub("b") == nil {
			t.Errorf("sent all the same: %s", m)
		}
		return control.Success(), nil
	}, func(bad bool, line string) { out = append(out, line) })
	if err != nil || failed != 2 {
		t.Errorf("%d failed, %v", failed, err)
	}
	for _, want := range []string{
		"swanctl.conf:2: loading cacerts certificate '" + dir + "/x509ca/nosuch.pem' failed: no such file or directory",
		"loading ca certificate '/nosuch/x.pem' failed: no such file or directory",
		"loaded 0 of 1 authorities, 1 failed to load, 0 unloaded",
		"loaded 1 of 2 connections, 1 failed to load, 0 unloaded",
	} {
		if !strings.Contains(strings.Join(out, "\n"), want) {
			t.Errorf("%q is missing:\n%s", want, strings.Join(out, "\n"))
		}
	}
}

// TestRefusalsDoNotStopTheRest: each refusal is reported with the daemon's reason.
func TestRefusalsDoNotStopTheRest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "x509/a.pem", "x")
	conf := write(t, dir, "swanctl.conf", "connections { a { } b { } }\npools { p { } }\nsecrets { ike { secret = x\n } }")
	set, err := Read(conf)
	if err != nil {
		t.Fatal(err)
	}
	rec := new(recorder)
	var out []string
	failed, err := set.Load(func(name string, m *control.Message) (*control.Message, error) {
		resp, _ := rec.Command(name, m, nil)
		if strings.HasPrefix(name, "load-") && m.Sub("b") == nil || name == control.CmdUnloadPool {
			resp = control.Failure(errors.New("because"))
		}
		return resp, nil
	}, func(bad bool, line string) { out = append(out, fmt.Sprint(bad, " ", line)) })
	want := `true loading '` + dir + `/x509/a.pem' failed: because
true loading shared secret failed: because
true no authorities found, 3 unloaded
true loading pool 'p' failed: because
true unloading pool 'gone' failed: because
true unloading pool 'p1' failed: because
true loaded 0 of 1 pools, 1 failed to load, 0 unloaded
true loading connection 'a' failed: because
false loaded connection 'b'
true loaded 1 of 2 connections, 1 failed to load, 1 unloaded`
	if got := strings.Join(out, "\n"); err != nil || failed != 2 || got != want {
		t.Errorf("%v, %d failed:\n%s\nwant\n%s", err, failed, got, want)
	}
	calls := 0
	_, err = set.Load(func(string, *control.Message) (*control.Message, error) {
		calls++
		return nil, control.ErrClosed
	}, func(bool, string) {})
	if !errors.Is(err, control.ErrClosed) || calls != 1 {
		t.Errorf("after the daemon is gone: %v, %d calls", err, calls)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("connections { a : t.u, w { x = \"y\" z # c\n local_ts = a, b } }"))
	f.Add([]byte("secrets { ike-1 { id = a\n secret = 0x01:2 } }"))
	f.Add([]byte("a : b { c = \"d\\\n\" }\nb { include x.inc\n}"))
	f.Add([]byte("a { b : a { } }"))
	f.Add([]byte("connections { a { local { certs = \\\"\x00"))
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.inc"), []byte("y : a { z = 1\n }"), 0o600); err != nil {
		f.Fatal(err)
	}
	conf := filepath.Join(dir, "swanctl.conf")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Parse(conf)
		var at *Error
		if (s == nil) == (err == nil) || err != nil && !errors.As(err, &at) {
			t.Fatalf("%v, %v", s, err)
		}
		if err != nil {
			return
		}
		set, err := Read(conf)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range set.Requests {
			if r.Err != nil {
				continue
			}
			b, err := r.Message.Append(nil)
			if err != nil {
				continue // a value longer than the protocol's
			}
			if _, err = control.Decode(b); err != nil {
				t.Fatalf("what we would send cannot be read: %v\n%s", err, r.Message)
			}
		}
	})
}
