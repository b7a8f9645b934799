package platform

import (
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func ips(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Our lines stand before those of the uplink and go again; the rest stays as it is, whoever has
// written it meanwhile.
func TestResolvConfGetsAndLosesOurLines(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	const uplink = "# of the uplink\nsearch lan\nnameserver 192.168.1.1\noptions ndots:2\n"
	const ours = dnsBegin + "\nnameserver 10.9.0.1\nnameserver fd09::1\n" + dnsEnd + "\n"
	writeText(t, path, uplink)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	set := func(servers ...string) {
		t.Helper()
		if err := SetDNS("file", path, "postern0", ips(servers...), nil); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, text string) {
		t.Helper()
		if got := readText(t, path); got != text {
			t.Errorf("%s the file is\n%s\nwant\n%s", when, got, text)
		}
	}
	set("10.9.0.1", "fd09::1")
	want("with servers", ours+uplink)
	before, _ := os.Stat(path)
	set("10.9.0.1", "fd09::1")
	if after, _ := os.Stat(path); !os.SameFile(before, after) || after.Mode().Perm() != 0o640 {
		t.Errorf("what is there already was written again, or has the mode %v", after.Mode())
	}
	set("10.9.0.2")
	want("with another server", dnsBegin+"\nnameserver 10.9.0.2\n"+dnsEnd+"\n"+uplink)
	set()
	want("at the end", uplink)
	set()
	want("at the end again", uplink)

	// Somebody has cut the end of our lines off, or written below them.
	writeText(t, path, dnsBegin+"\nnameserver 10.9.0.1\n"+uplink)
	set()
	want("without our last line", uplink)
	writeText(t, path, "nameserver 1.1.1.1\n"+ours+"nameserver 9.9.9.9")
	set("10.9.0.3")
	want("in the midst", dnsBegin+"\nnameserver 10.9.0.3\n"+dnsEnd+"\nnameserver 1.1.1.1\nnameserver 9.9.9.9")

	// The name is a link, which stays one.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("resolv.conf", link); err != nil {
		t.Fatal(err)
	}
	if err := SetDNS("file", link, "postern0", nil, nil); err != nil {
		t.Fatal(err)
	}
	want("through a link", "nameserver 1.1.1.1\nnameserver 9.9.9.9")
	if st, _ := os.Lstat(link); st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link has become a file")
	}
	// One that is not there comes with the first server, and not without.
	none := filepath.Join(dir, "none")
	if err := SetDNS("file", none, "postern0", nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("a file was made for nothing")
	}
	err := SetDNS("file", none, "postern0", ips("10.9.0.1"), map[string][]netip.Addr{"plant.example": ips("10.9.0.1")})
	if err == nil || !strings.Contains(err.Error(), "dnsmasq") {
		t.Errorf("domains in resolv.conf: %v, want an error that names what can have them", err)
	}
	if !strings.Contains(readText(t, none), "10.9.0.1") {
		t.Error("what can be had was not done")
	}
}

// In a container, and under ip-netns(8), resolv.conf is a mount: nothing can be put into its place.
func TestResolvConfThatIsAMount(t *testing.T) {
	dir := t.TempDir()
	path, under := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "under")
	writeText(t, path, "")
	writeText(t, under, "nameserver 192.168.1.1\n")
	if err := unix.Mount(under, path, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("nothing can be mounted here: %v", err)
	}
	defer func() { _ = unix.Unmount(path, 0) }()
	if err := SetDNS("file", path, "postern0", ips("10.9.0.1"), nil); err != nil {
		t.Fatal(err)
	}
	if got := readText(t, under); got != dnsBegin+"\nnameserver 10.9.0.1\n"+dnsEnd+"\nnameserver 192.168.1.1\n" {
		t.Errorf("the mounted file is\n%s", got)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "*.postern")); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
}

// The resolver that looks up the peer's name does not ask a server behind the tunnel, and does not
// depend on a forwarder whose own packets go into the tunnel.
func TestResolverPassesByTheServersOfTheTunnel(t *testing.T) {
	dir := t.TempDir()
	conf, auto := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "auto")
	writeText(t, conf, "nameserver 192.168.1.1\n")
	writeText(t, auto, "nameserver 192.168.1.2\nnameserver 127.0.0.1\nnameserver 192.168.1.3\nnameserver 192.168.1.4\n")
	r := &Resolver{Conf: conf, uplinks: []string{filepath.Join(dir, "no"), auto}}
	check := func(want string) {
		t.Helper()
		if got := fmt.Sprint(r.readConf().servers); got != want {
			t.Errorf("it asks %s, want %s", got, want)
		}
	}
	check("[192.168.1.1]")
	if err := SetDNS("file", conf, "postern0", ips("10.9.0.1"), nil); err != nil {
		t.Fatal(err)
	}
	check("[192.168.1.1]")
	writeText(t, conf, "nameserver 127.0.0.1\n")
	check("[127.0.0.1 192.168.1.2 192.168.1.3]")
	if err := SetDNS("file", conf, "postern0", ips("10.9.0.1"), nil); err != nil {
		t.Fatal(err)
	}
	check("[127.0.0.1 192.168.1.2 192.168.1.3]")
}

// fakePrograms is a system with programs that write down how they were called.
func fakePrograms(t *testing.T, scripts map[string]string) (s *nameServers, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	for name, script := range scripts {
		text := "#!/bin/sh\n{ echo " + name + " \"$@\"; cat; } >>" + log + "\n" + script + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s = &nameServers{programs: []string{filepath.Join(dir, "missing"), dir, "/usr/bin", "/bin"}, resolved: filepath.Join(dir, "resolved"), proc: "/proc", patience: 10 * time.Second}
	return s, func() string {
		b, _ := os.ReadFile(log)
		_ = os.Remove(log)
		return string(b)
	}
}

func TestResolvconfIsTold(t *testing.T) {
	s, calls := fakePrograms(t, map[string]string{"resolvconf": "", "resolvectl": ""})
	if err := s.set("resolvconf", "", "postern0", ips("10.9.0.1", "fd09::1"), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := calls(), "resolvconf -a postern0 -m 0 -x\nnameserver 10.9.0.1\nnameserver fd09::1\n"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	if err := s.set("resolvconf", "", "postern0", nil, map[string][]netip.Addr{"a.example": ips("10.9.0.1")}); err == nil || !strings.Contains(err.Error(), "dnsmasq") {
		t.Errorf("domains: %v, want an error that names what can have them", err)
	}
	if got, want := calls(), "resolvconf -d postern0\n"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}

	// With systemd-resolved.
	if err := os.Mkdir(s.resolved, 0o755); err != nil {
		t.Fatal(err)
	}
	one, two := ips("10.9.0.1", "fd09::1"), ips("10.8.0.1")
	for _, c := range []struct {
		all     []netip.Addr
		domains map[string][]netip.Addr
		want    string
		fails   bool
	}{
		{one, nil, "resolvectl dns postern0 10.9.0.1 fd09::1\nresolvectl domain postern0 ~.\nresolvectl default-route postern0 yes\nresolvectl flush-caches\n", false},
		{nil, map[string][]netip.Addr{"b.example": one, "a.example": one},
			"resolvectl dns postern0 10.9.0.1 fd09::1\nresolvectl domain postern0 ~a.example ~b.example\nresolvectl default-route postern0 no\nresolvectl flush-caches\n", false},
		{nil, map[string][]netip.Addr{"b.example": one, "a.example": two},
			"resolvectl dns postern0 10.8.0.1\nresolvectl domain postern0 ~a.example\nresolvectl default-route postern0 no\nresolvectl flush-caches\n", true},
		{nil, nil, "resolvectl revert postern0\nresolvectl flush-caches\n", false},
	} {
		err := s.set("resolvconf", "", "postern0", c.all, c.domains)
		if got := calls(); got != c.want || (err != nil) != c.fails {
			t.Errorf("%v %v: %v, calls\n%s\nwant\n%s", c.all, c.domains, err, got, c.want)
		}
	}
}

func TestProgramsThatFail(t *testing.T) {
	s, _ := fakePrograms(t, map[string]string{"resolvconf": "echo no such interface >&2; exit 3"})
	err := s.set("resolvconf", "", "postern0", ips("10.9.0.1"), nil)
	if err == nil || !strings.Contains(err.Error(), "resolvconf -a: no such interface") {
		t.Errorf("a program that fails: %v, want what it has said", err)
	}
	// One that hangs, with a child that holds its outputs.
	s, _ = fakePrograms(t, map[string]string{"resolvconf": "sleep 60 & sleep 60"})
	s.patience = 300 * time.Millisecond
	began := time.Now()
	if err := s.set("resolvconf", "", "postern0", ips("10.9.0.1"), nil); err == nil || !strings.Contains(err.Error(), "no end after") {
		t.Errorf("a program that hangs: %v", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("a program that hangs held us up for %v", d)
	}
	s, _ = fakePrograms(t, nil)
	s.programs = s.programs[:2]
	if err := s.set("resolvconf", "", "postern0", nil, nil); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("without any program: %v", err)
	}
}

// dnsmasq's file has a line for each domain and server, and dnsmasq is told to read it again.
func TestServersFileOfDnsmasq(t *testing.T) {
	s, _ := fakePrograms(t, nil)
	s.proc = t.TempDir()
	// Processes 2000000001 and up cannot be: the only one that is told is this one.
	got := make(chan os.Signal, 8)
	notifyHUP(t, got)
	self := fmt.Sprint(os.Getpid())
	for pid, p := range map[string][2]string{self: {"dnsmasq\n", "net:[1]"}, "2000000001": {"dnsmasq\n", "net:[2]"}, "2000000002": {"bash\n", "net:[1]"}, "thread-self": {"", "net:[1]"}, "1": {"dnsmasq\n", "net:[1]"}} {
		if err := os.MkdirAll(filepath.Join(s.proc, pid, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeText(t, filepath.Join(s.proc, pid, "comm"), p[0])
		if err := os.Symlink(p[1], filepath.Join(s.proc, pid, "ns", "net")); err != nil {
			t.Fatal(err)
		}
	}
	told := func(want bool) {
		t.Helper()
		limit := 20 * time.Second
		if !want {
			limit = 100 * time.Millisecond
		}
		select {
		case <-got:
			if !want {
				t.Error("dnsmasq is told of nothing")
			}
		case <-time.After(limit):
			if want {
				t.Error("dnsmasq is not told")
			}
		}
	}
	path := filepath.Join(s.proc, "servers")
	set := func(all []netip.Addr, domains map[string][]netip.Addr, want string) {
		t.Helper()
		if err := s.set("dnsmasq", path, "postern0", all, domains); err != nil {
			t.Fatal(err)
		}
		if text := readText(t, path); text != dnsFileHead+"\n"+want {
			t.Errorf("the file is\n%s\nwant\n%s", text, want)
		}
	}
	domains := map[string][]netip.Addr{"b.example": ips("10.9.0.1"), "a.example": ips("10.9.0.1", "fd09::1")}
	set(ips("10.8.0.1"), domains, "server=10.8.0.1\nserver=/a.example/10.9.0.1\nserver=/a.example/fd09::1\nserver=/b.example/10.9.0.1\n")
	told(true)
	set(ips("10.8.0.1"), domains, "server=10.8.0.1\nserver=/a.example/10.9.0.1\nserver=/a.example/fd09::1\nserver=/b.example/10.9.0.1\n")
	told(false)
	set(nil, nil, "")
	told(true)

	writeText(t, path, "server=1.1.1.1\n")
	if err := s.set("dnsmasq", path, "postern0", nil, domains); err == nil || !strings.Contains(err.Error(), "somebody else wrote it; name a file of its own") {
		t.Errorf("another's file: %v", err)
	}
	if text := readText(t, path); text != "server=1.1.1.1\n" {
		t.Errorf("another's file was changed to %q", text)
	}
}

// Nothing that is not a plain name or address reaches a file or a program.
func TestNamesCannotInject(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	many := map[string][]netip.Addr{}
	for i := range maxDNSNames + 1 {
		many[fmt.Sprintf("d%d.example", i)] = ips("10.9.0.1")
	}
	for name, domains := range map[string]map[string][]netip.Addr{
		"a newline": {"a\nserver=6.6.6.6": ips("10.9.0.1")}, "a slash": {"a/6.6.6.6#": ips("10.9.0.1")}, "an option": {"--help me": ips("10.9.0.1")},
		"nothing": {"": ips("10.9.0.1")}, "the root": {".": ips("10.9.0.1")}, "a zone": {"a.example": ips("fe80::1%eth0;reboot")}, "too many": many,
		"no address": {"a.example": {netip.Addr{}}}, "too many servers": {"a.example": make([]netip.Addr, maxDNSServers+1)},
	} {
		for _, how := range []string{"file", "dnsmasq", "resolvconf"} {
			if err := SetDNS(how, path, "postern0", nil, domains); err == nil {
				t.Errorf("%s passes to %s", name, how)
			}
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("something was written")
	}
	if err := SetDNS("unbound", path, "postern0", nil, nil); err == nil {
		t.Error("an unknown way is no error")
	}
}

func notifyHUP(t *testing.T, to chan os.Signal) {
	t.Helper()
	signal.Notify(to, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(to) })
}

// FuzzResolvConf: whatever a resolv.conf holds, our lines come and go without a trace.
func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1\n")
	f.Add(dnsBegin + "\nnameserver 10.9.0.1\n" + dnsEnd + "\nsearch x\n")
	f.Add(dnsBegin + "\nnameserver 10.9.0.1\nsearch x")
	f.Add("a\r\n" + dnsEnd + "\n" + dnsBegin)
	f.Fuzz(func(t *testing.T, text string) {
		clean := withoutOurs(text)
		if strings.Contains(clean, dnsBegin+"\n") && !strings.Contains(text, dnsBegin+"\n") {
			t.Fatalf("%q has lines of ours that %q had not", clean, text)
		}
		with := dnsBegin + "\nnameserver 10.9.0.1\n" + dnsEnd + "\n" + clean
		if got := withoutOurs(with); got != clean {
			t.Fatalf("from %q our lines do not go: %q", with, got)
		}
	})
}
