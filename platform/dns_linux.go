package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The servers that programs of this host ask for names, when a gateway says which ones. Who
// manages them differs from system to system, so there are three ways:
//
//   - "file": lines of ours in a resolv.conf(5), before all others. It knows no domains.
//   - "resolvconf": systemd-resolved, if it runs, by resolvectl(1), or else resolvconf(8),
//     which knows no domains either. Both forget what was set for a device.
//   - "dnsmasq": the file of dnsmasq(8)'s option servers-file, which has a line for each domain
//     and server and which dnsmasq reads again after SIGHUP. The file is ours alone.
//
// Each can be told again at any time, and told to forget by a process that knows nothing of the one
// before. What goes into a file or to a program is checked here as well, wherever it comes from.

const (
	dnsBegin    = "# postern: what stands from here goes when the tunnel does"
	dnsEnd      = "# postern: end"
	dnsFileHead = "# postern writes this file: changes are lost"
	// dnsProgramTime bounds how long a program may take; resolvconf runs scripts of others.
	dnsProgramTime = 5 * time.Second
	// maxDNSNames bounds the domains, and maxDNSServers the servers of one of them.
	maxDNSNames   = 64
	maxDNSServers = 8
	maxStderr     = 300
)

var (
	errNoDomains  = errors.New("it cannot ask other servers for some domains than for all")
	errNotOurFile = errors.New("somebody else wrote it")
	errTooMuchDNS = errors.New("more domains or servers than a gateway may assign")
	errConfSize   = errors.New("it is larger than such a file can be")
)

// nameServers is where the parts of the system are; tests have others.
type nameServers struct {
	programs []string // directories
	resolved string   // is there while systemd-resolved runs
	proc     string
	patience time.Duration
}

var hostNameServers = nameServers{
	programs: []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"},
	resolved: "/run/systemd/resolve",
	proc:     "/proc",
	patience: dnsProgramTime,
}

// SetDNS has the programs of this host ask these servers: all for every name, and those of
// domains for a domain and what is below it. It replaces what was set before, by this process or
// another; without servers it takes that away. How is "file", "resolvconf" or "dnsmasq"; file is
// the resolv.conf or the servers-file, and device that of the tunnel. Where domains cannot be had the
// rest is done, and the error says so. Not for several goroutines at once.
func SetDNS(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	return hostNameServers.set(how, file, device, all, domains)
}

func (s *nameServers) set(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	if err := checkDNS(all, domains); err != nil {
		return &OpError{Op: "set", Object: "name servers", Err: err}
	}
	object, hint := file, ""
	var err error
	switch how {
	case "file":
		if err = setResolvConf(file, all); err == nil && len(domains) > 0 {
			err, hint = errNoDomains, `use dns = "dnsmasq" or "resolvconf" (with systemd-resolved) for split tunnels`
		}
	case "dnsmasq":
		var changed bool
		if changed, err = setServersFile(file, all, domains); errors.Is(err, errNotOurFile) {
			hint = "name a file of its own as dns_file, and the same as servers-file of dnsmasq"
		}
		if changed {
			err = s.reloadDnsmasq()
		}
	case "resolvconf":
		object = "name servers of " + device
		if err = s.tellResolver(device, all, domains); errors.Is(err, errNoDomains) {
			hint = `use dns = "dnsmasq", or systemd-resolved, for split tunnels`
		}
	default:
		err = ErrUnsupported
	}
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return &OpError{Op: "set", Object: object, Err: err, Hint: hint}
}

// checkDNS lets nothing pass that could be anything else than an address or a name.
func checkDNS(all []netip.Addr, domains map[string][]netip.Addr) error {
	good := func(list []netip.Addr) bool {
		return len(list) <= maxDNSServers && !slices.ContainsFunc(list, func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" })
	}
	if len(domains) > maxDNSNames || !good(all) {
		return errTooMuchDNS
	}
	for name, list := range domains {
		if !good(list) {
			return errTooMuchDNS
		}
		if _, err := appendName(nil, name); err != nil || strings.ContainsFunc(name, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_' && r != '.'
		}) {
			return fmt.Errorf("%q: %w", name, errBadName)
		}
	}
	return nil
}

// setResolvConf puts our lines before all others, or takes them out.
func setResolvConf(file string, servers []netip.Addr) error {
	old, err := readConfFile(file)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	var b strings.Builder
	if len(servers) > 0 {
		b.WriteString(dnsBegin + "\n")
		for _, a := range servers {
			b.WriteString("nameserver " + a.String() + "\n")
		}
		b.WriteString(dnsEnd + "\n")
	}
	b.WriteString(withoutOurs(old))
	if b.String() == old {
		return nil
	}
	return writeConfFile(file, b.String())
}

// withoutOurs returns a resolv.conf without our lines. Where the end of them is lost, they end with
// the name servers.
func withoutOurs(text string) string {
	var b strings.Builder
	ended := strings.Contains(text, "\n"+dnsEnd)
	ours := false
	for line := range strings.Lines(text) {
		switch l := strings.TrimRight(line, "\r\n"); {
		case l == dnsBegin:
			ours = true
		case l == dnsEnd:
			ours = false
		case ours && (ended || strings.HasPrefix(l, "nameserver ")):
		default:
			ours = false
			b.WriteString(line)
		}
	}
	return b.String()
}

// setServersFile writes dnsmasq's file and tells whether it is another one now. An empty one
// stays: dnsmasq does not start without it.
func setServersFile(file string, all []netip.Addr, domains map[string][]netip.Addr) (changed bool, err error) {
	old, err := readConfFile(file)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, err
	}
	if strings.TrimSpace(old) != "" && !strings.HasPrefix(old, dnsFileHead) {
		return false, errNotOurFile
	}
	var b strings.Builder
	b.WriteString(dnsFileHead + "\n")
	for _, a := range all {
		b.WriteString("server=" + a.String() + "\n")
	}
	for _, name := range slices.Sorted(maps.Keys(domains)) {
		for _, a := range domains[name] {
			b.WriteString("server=/" + name + "/" + a.String() + "\n")
		}
	}
	if b.String() == old {
		return false, nil
	}
	return true, writeConfFile(file, b.String())
}

func readConfFile(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxConfFile+1))
	if err == nil && len(b) > maxConfFile {
		err = errConfSize
	}
	return string(b), err
}

// writeConfFile puts another file in the place of the one that the name leads to. Where that
// cannot be, since the file is mounted or its directory is read-only, it is written to instead.
func writeConfFile(file, text string) error {
	if to, err := filepath.EvalSymlinks(file); err == nil {
		file = to
	}
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(file); err == nil {
		mode = st.Mode().Perm()
	}
	if replaceFile(file, text, mode) == nil {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func replaceFile(file, text string, mode fs.FileMode) error {
	next := file + ".postern"
	_ = os.Remove(next)
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(next, file)
	}
	if err != nil {
		_ = os.Remove(next)
	}
	return err
}

// reloadDnsmasq has every dnsmasq of this network namespace read its servers-file again, which
// also empties its cache. That there is none is no error: it will read the file when it starts.
func (s *nameServers) reloadDnsmasq() error {
	here, err := os.Readlink(filepath.Join(s.proc, "thread-self/ns/net"))
	if err != nil {
		return err
	}
	list, err := os.ReadDir(s.proc)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 {
			continue
		}
		dir := filepath.Join(s.proc, e.Name())
		if name, err := os.ReadFile(filepath.Join(dir, "comm")); err != nil || string(name) != "dnsmasq\n" {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || ns != here {
			continue
		}
		if err := unix.Kill(pid, unix.SIGHUP); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("dnsmasq (process %d) cannot be told: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// tellResolver tells systemd-resolved, or resolvconf.
func (s *nameServers) tellResolver(device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	_, err := os.Stat(s.resolved)
	if ctl := s.find("resolvectl"); ctl != "" && err == nil {
		return s.tellResolved(ctl, device, all, domains)
	}
	conf := s.find("resolvconf")
	if conf == "" {
		return errors.New("there is neither systemd-resolved with resolvectl nor resolvconf")
	}
	if len(all) == 0 {
		err = s.run("", conf, "-d", device)
	} else {
		var b strings.Builder
		for _, a := range all {
			b.WriteString("nameserver " + a.String() + "\n")
		}
		// The first ones, and with openresolv the only ones; Debian's resolvconf takes no notice.
		err = s.run(b.String(), conf, "-a", device, "-m", "0", "-x")
	}
	if err == nil && len(domains) > 0 {
		err = errNoDomains
	}
	return err
}

// tellResolved tells systemd-resolved, for which all servers of a device have all its domains.
func (s *nameServers) tellResolved(ctl, device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	servers, names, route, mixed := all, []string{"~."}, "yes", false
	for i, name := range slices.Sorted(maps.Keys(domains)) {
		if i == 0 && len(all) == 0 {
			servers, names, route = domains[name], nil, "no"
		}
		if !slices.Equal(servers, domains[name]) {
			mixed = true
			continue
		}
		names = append(names, "~"+name)
	}
	if len(servers) == 0 {
		_ = s.run("", ctl, "revert", device) // which it does by itself when the device goes
		return s.run("", ctl, "flush-caches")
	}
	args := []string{"dns", device}
	for _, a := range servers {
		args = append(args, a.String())
	}
	err := s.run("", ctl, args...)
	if err == nil {
		err = s.run("", ctl, append([]string{"domain", device}, names...)...)
	}
	if err == nil {
		err = s.run("", ctl, "default-route", device, route)
	}
	if err == nil {
		err = s.run("", ctl, "flush-caches")
	}
	if err == nil && mixed {
		err = errors.New("systemd-resolved takes the servers of one connection only for a device; the domains of the other ones are left out")
	}
	return err
}

func (s *nameServers) find(program string) string {
	for _, dir := range s.programs {
		path := filepath.Join(dir, program)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// run runs a program with that input, which must fit into a pipe. It is ended, with what it has
// started, when it takes too long.
func (s *nameServers) run(input, program string, args ...string) error {
	fail := func(err error) error { return fmt.Errorf("%s %s: %w", filepath.Base(program), args[0], err) }
	in, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer func() { _ = in.Close() }()
	_, err = w.WriteString(input)
	if err = errors.Join(err, w.Close()); err != nil {
		return fail(err)
	}
	words, ew, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer func() { _ = words.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		_ = ew.Close()
		return fail(err)
	}
	p, err := os.StartProcess(program, append([]string{program}, args...), &os.ProcAttr{
		Files: []*os.File{in, null, ew},
		Env:   []string{"PATH=" + strings.Join(s.programs, ":"), "LC_ALL=C"},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	_ = ew.Close()
	_ = null.Close()
	if err != nil {
		return fail(err)
	}
	late := time.AfterFunc(s.patience, func() { _ = unix.Kill(-p.Pid, unix.SIGKILL) })
	st, err := p.Wait()
	switch {
	case !late.Stop():
		return fail(fmt.Errorf("no end after %v", s.patience))
	case err != nil:
		return fail(err)
	case st.Success():
		return nil
	}
	// What it says on its way out is there by now.
	var buf [maxStderr]byte
	_ = words.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	n, _ := words.Read(buf[:])
	said := strings.ToValidUTF8(strings.Join(strings.Fields(string(buf[:n])), " "), "?")
	if said == "" {
		said = st.String()
	}
	return fail(errors.New(said))
}
