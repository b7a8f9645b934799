package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/engine/control"
)

func init() {
	test := keyTests["daemon.mtu"]
	of := func(c *Config) any { return c.Updown(c.IKE.Conns[0].Name, firstChild(c).Name) }
	test.text, test.want, test.get = `" /bin/sh -c true "`, Updown{Command: "/bin/sh -c true"}, of
	keyTests[childSection.path+".updown"] = test
	test.text, test.want = "true\nupdown = \"run-parts /etc/ipsec.d\"", Updown{Command: "run-parts /etc/ipsec.d", HostAccess: true}
	keyTests[childSection.path+".hostaccess"] = test
}

func TestChildWithoutUpdownHasNone(t *testing.T) {
	c := mustParse(t, fmt.Sprintf(minimal, "", `updown = ""`))
	if got := c.Updown("a", "c"); got != (Updown{}) {
		t.Errorf("the child has %+v, want none", got)
	}
	if got := c.Updown("a", "d"); got != (Updown{}) {
		t.Errorf("a child that is not there has %+v", got)
	}
}

// What file a command means is looked at where that can be told; the rest is the shell's affair.
func TestUpdownScriptIsLookedAt(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, plain, open := file("good", 0o700), file("plain", 0o600), file("open", 0o757)
	for _, c := range []struct{ command, problem, warning string }{
		{command: good + " eth0 'a b'"},
		{command: "ipsec _updown"},
		{command: "logger up"},
		{command: "TABLE=7 /nonexistent/script"},
		{command: `"/nonexistent/a b"`},
		{command: "test -x /nonexistent/x && /nonexistent/x"},
		{command: dir + "/missing eth0", problem: "updown: " + dir + "/missing cannot be run: no such file"},
		{command: good + "/below", problem: "cannot be run: not a directory"},
		{command: dir, problem: "is not a file"},
		{command: plain, problem: "is not executable; chmod 755"},
		{command: open, warning: "the group or others can change " + open},
		{command: "scripts/updown", problem: `"scripts/updown" depends on the directory`},
		{command: "./updown eth0", problem: `"./updown" depends on the directory`},
		{command: "/bin/true\nreboot", problem: "one line without control characters"},
		{command: "/bin/true \x7f", problem: "one line without control characters"},
		{command: "logger " + strings.Repeat("x", maxCommand), problem: "at most 1024 octets"},
	} {
		l := newLoader("test.toml", noSecretFiles)
		text := fmt.Sprintf(minimal, "", fmt.Sprintf("updown = %s", tomlText(c.command)))
		cfg, err := l.load([]byte(text))
		switch {
		case c.problem == "" && err != nil:
			t.Errorf("%q: %v", c.command, err)
		case c.problem != "" && (err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), c.problem)):
			t.Errorf("%q: %v, want a problem that says %q", c.command, err, c.problem)
		case c.problem == "":
			warned := fmt.Sprint(cfg.Warnings())
			if c.warning == "" && len(cfg.Warnings()) > 0 || !strings.Contains(warned, c.warning) {
				t.Errorf("%q: warnings %v, want %q", c.command, warned, c.warning)
			}
		}
	}
}

// tomlText writes a basic string of TOML.
func tomlText(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '"' || r == '\\' {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return `"` + b.String() + `"`
}

func TestUpdownNeedsAnSAAndHostAccessAScript(t *testing.T) {
	text := fmt.Sprintf(minimal, "", "mode = \"pass\"\nupdown = \"/bin/true\" #! updown means nothing in a child with mode \"pass\"\n")
	_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
	got, _ := err.(Problems)
	compare(t, "problem", text, got)
	text = fmt.Sprintf(minimal, "", "hostaccess = true #! hostaccess means nothing without a script")
	compare(t, "warning", text, mustParse(t, text).Warnings())
	compare(t, "warning", "", mustParse(t, fmt.Sprintf(minimal, "", "hostaccess = false")).Warnings())
}

// Scripts that clients load stand beside those of the file, which stays as it is.
func TestLoadedChildrenHaveScripts(t *testing.T) {
	must := mustLoad(t)
	file := mustParse(t, fmt.Sprintf(minimal, "", `updown = "logger file"`))
	l := must((&Loaded{}).LoadConn("home", pskConn(vm("remote_ts", []string{"10.3.0.0/16"}, "updown", "/bin/sh -c true", "hostaccess", "yes"))))
	one, err := file.With(l)
	if err != nil {
		t.Fatal(err)
	}
	l = must(l.LoadConn("home", pskConn(vm("remote_ts", []string{"10.3.0.0/16"}, "updown", "logger two", "hostaccess", "0"))))
	two, err := file.With(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  *Config
		want Updown
	}{{"the file alone", file, Updown{}}, {"one", one, Updown{"/bin/sh -c true", true}}, {"two", two, Updown{"logger two", false}}} {
		if got := c.cfg.Updown("home", "net"); got != c.want {
			t.Errorf("%s: the loaded child has %+v, want %+v", c.name, got, c.want)
		}
		if got := c.cfg.Updown("a", "c"); got != (Updown{Command: "logger file"}) {
			t.Errorf("%s: the file's child has %+v", c.name, got)
		}
	}
	const want = "connections.home.children.net.updown: updown: /nonexistent/updown cannot be run"
	scripted := func(path string) *control.Message {
		return pskConn(vm("remote_ts", []string{"10.3.0.0/16"}, "updown", path+" x"))
	}
	if _, err := (&Loaded{}).LoadConn("home", scripted("/nonexistent/updown")); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a script that is not there: %v, want %q", err, want)
	}
	// One that goes later must not be in the way of what others load.
	path := filepath.Join(t.TempDir(), "updown")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	l = must((&Loaded{}).LoadConn("home", scripted(path)))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if c, err := file.With(l); err != nil || c.Updown("home", "net").Command != path+" x" {
		t.Errorf("with a script that is gone by now: %v", err)
	}
}
