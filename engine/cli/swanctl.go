package cli

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/engine/swanctl"
)

// DefaultSwanctl is where strongSwan's swanctl has its configuration.
const DefaultSwanctl = "/etc/swanctl"

var swanctlCommand = Command{
	Name:    "swanctl",
	Args:    "[FILE]",
	Summary: "load strongSwan's swanctl.conf into the daemon",
	Help: `Does what 'swanctl --load-all --noprompt' does, for devices without it: loads
the credentials, authorities, pools and connections of FILE, which is a
swanctl.conf or the directory that has one, and unloads what an earlier one had
beyond it. FILE is ` + DefaultSwanctl + ` if it is left out. What the daemon refuses
is reported, and the rest loads. If FILE has errors of syntax nothing changes.

  postern swanctl /etc/swanctl/swanctl.conf`,
	Run: runSwanctl,
}

// errNoSwanctl is what a build without the parser says.
var errNoSwanctl = errors.New("this postern was built without the parser for swanctl.conf (tag noswanctl): load it with strongSwan's swanctl, or take another build")

func runSwanctl(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	clear := o.Bool("clear", false, "have the daemon forget all other credentials first")
	socket := socketOption(o)
	rest, status, ok := o.parse(args, 0, 1)
	if !ok {
		return status
	}
	path := DefaultSwanctl
	if len(rest) == 1 {
		path = rest[0]
	}
	if !swanctl.Enabled {
		sys.errorf("swanctl: %v", errNoSwanctl)
		return ExitFailed
	}
	set, err := swanctl.Read(path)
	if err != nil {
		sys.errorf("%s", clean(err.Error()))
		return ExitConfig
	}
	c, status := dialDaemon(sys, *socket, 0)
	if c == nil {
		return status
	}
	defer func() { _ = c.Close() }()
	c.Ours = false // these requests are those of swanctl, to the last element
	call := func(command string, m *control.Message) (*control.Message, error) {
		_ = c.SetDeadline(time.Now().Add(patience))
		return c.Call(command, m)
	}
	if *clear {
		if _, err = call(control.CmdClearCreds, nil); err != nil {
			return complain(sys, "swanctl", err)
		}
	}
	failed, err := set.Load(call, func(bad bool, line string) {
		if bad {
			fmt.Fprintln(sys.Stderr, clean(line))
		} else {
			fmt.Fprintln(sys.Stdout, clean(line))
		}
	})
	switch {
	case err != nil:
		return complain(sys, "swanctl", err)
	case failed > 0:
		return ExitFailed
	}
	return ExitOK
}

// given tells whether one of the options stood on the command line.
func (o *options) given(names ...string) (yes bool) {
	o.Visit(func(f *flag.Flag) { yes = yes || slices.Contains(names, f.Name) })
	return yes
}

// swanctlSource is a swanctl.conf beside the daemon's own configuration.
type swanctlSource struct {
	path     string // "": there is none
	set      *swanctl.Set
	warnings []config.Problem // all, after check

	loading sync.Mutex                 // held while it is being loaded
	certs   map[[sha256.Size]byte]bool // what was last loaded with load-cert
}

// read reads it, if there is one.
func (s *swanctlSource) read() (err error) {
	if s.path == "" {
		return nil
	}
	if !swanctl.Enabled {
		return errNoSwanctl
	}
	s.set, err = swanctl.Read(s.path)
	return err
}

// loadConf loads what was read at the start, once the daemon runs.
func (r *runner) loadConf(d Daemon, stop <-chan struct{}) {
	select {
	case <-d.Running():
	case <-stop:
		return
	}
	r.conf.loading.Lock()
	defer r.conf.loading.Unlock()
	if swanctl.Enabled && r.conf.set != nil {
		_ = r.sendConf(d, r.conf.set)
		r.conf.set = nil // there are keys in it
	}
}

// reloadConf reads swanctl.conf again and has the daemon change over to it. It may be called from
// any goroutine, and does nothing if there is none.
func (r *runner) reloadConf(d Daemon) error {
	if !swanctl.Enabled || r.conf.path == "" {
		return nil
	}
	r.conf.loading.Lock()
	defer r.conf.loading.Unlock()
	set, err := swanctl.Read(r.conf.path)
	if err != nil {
		r.log.Log(log.Config, log.Error, "swanctl.conf not loaded, what was loaded before stays", log.Err(err))
		return err
	}
	select {
	case <-d.Running():
	default: // loadConf is still waiting for it
		r.conf.set = set
		return nil
	}
	r.conf.set = nil // that of the start is older
	return r.sendConf(d, set)
}

// sendConf loads a configuration into the daemon, and logs how it goes. The error is for the client
// that wanted it.
func (r *runner) sendConf(d Daemon, set *swanctl.Set) error {
	call := func(command string, m *control.Message) (*control.Message, error) {
		if m == nil {
			m = new(control.Message)
		}
		resp, ok := d.Command(command, m, func(string, *control.Message) error { return nil })
		if !ok {
			return nil, fmt.Errorf("%s: %w", command, control.ErrUnknownCommand)
		}
		return resp, nil
	}
	// There is no command that takes a certificate away, and one that is gone, of an authority
	// perhaps, must not be trusted until the next restart.
	if r.conf.lost(set) {
		r.log.Log(log.Config, log.Info, "certificates are gone from the directory: all credentials are loaded anew")
		if _, err := call(control.CmdClearCreds, nil); err != nil {
			return err
		}
	}
	failed, err := set.Load(call, func(bad bool, line string) {
		level := log.Info
		switch {
		case bad && strings.HasPrefix(line, "unloading "):
			level = log.Warn // what the daemon has from elsewhere stays, too
		case bad && !strings.HasPrefix(line, "no "): // nothing of a kind is no mistake
			level = log.Error
		case !bad && strings.HasPrefix(line, "loaded "):
			level = log.Debug // the daemon tells it, too
		}
		r.log.Log(log.Config, level, "swanctl.conf", log.Str("result", line))
	})
	switch {
	case err != nil:
		r.log.Log(log.Config, log.Error, "swanctl.conf not loaded to its end", log.Err(err))
	case failed > 0:
		err = errors.New("not all of swanctl.conf was loaded: look into the daemon's log")
	}
	return err
}

// lost tells whether certificates that were loaded are not in the set, whose it notes.
func (s *swanctlSource) lost(set *swanctl.Set) (lost bool) {
	certs := make(map[[sha256.Size]byte]bool)
	for i := range set.Requests {
		if m := set.Requests[i].Message; set.Requests[i].Command == control.CmdLoadCert {
			certs[sha256.Sum256([]byte(m.Get(control.KeyCertType)+m.Get(control.KeyCertFlag)+"\n"+m.Get(control.KeyCertData)))] = true
		}
	}
	for c := range s.certs {
		lost = lost || !certs[c]
	}
	s.certs = certs
	return lost
}

// check reads it and returns what cfg becomes with it. The error is config.Problems if it can be
// read at all.
func (s *swanctlSource) check(sys *System, cfg *config.Config) (*config.Config, error) {
	if !swanctl.Enabled {
		return nil, errNoSwanctl
	}
	if err := s.read(); err != nil {
		return nil, err
	}
	var problems config.Problems
	var at *swanctl.Error
	for _, w := range s.set.Warnings {
		s.warnings = append(s.warnings, config.Problem{File: w.File, Line: w.Line, What: what(w)})
	}
	l := new(config.Loaded)
	for i := range s.set.Requests {
		r := &s.set.Requests[i]
		next, err := l, r.Err
		if err == nil {
			next, err = loadInto(l, r)
		}
		switch {
		case err == nil:
			l = next
		case errors.As(err, &at):
			problems = append(problems, config.Problem{File: at.File, Line: at.Line, What: what(at)})
		default:
			problems = append(problems, s.place(r, err))
		}
	}
	all, err := cfg.With(l)
	if err == nil {
		var prof, perr = profile(sys, all)
		if err = perr; err == nil {
			err = all.Fits(prof)
		}
	}
	var more config.Problems
	switch {
	case errors.As(err, &more):
		for _, p := range more {
			problems = append(problems, s.find(p))
		}
	case err != nil:
		return nil, err
	}
	if len(problems) > 0 {
		return nil, problems
	}
	for _, w := range all.Warnings() {
		if w.File != "" { // "" is the empty configuration that stands for a file of our own
			s.warnings = append(s.warnings, s.find(w))
		}
	}
	return all, nil
}

// what is an error without its place.
func what(e *swanctl.Error) string { return strings.TrimPrefix(e.Error(), e.Position.String()+": ") }

// place gives a problem of a request the place of what it was made of.
func (s *swanctlSource) place(r *swanctl.Request, err error) config.Problem {
	p := config.Problem{File: r.Name, What: err.Error()}
	if part := parts[r.Command]; part != "" {
		if at, ok := s.set.Find(part + "." + r.Name); ok {
			p.File, p.Line = at.File, at.Line
		}
	}
	return p
}

// parts are where the sections of commands stand.
var parts = map[string]string{control.CmdLoadConn: "connections", control.CmdLoadPool: "pools", control.CmdLoadAuthority: "authorities",
	control.CmdLoadShared: "secrets", control.CmdLoadToken: "secrets"}

// find gives a problem that names an element the place in the file.
func (s *swanctlSource) find(p config.Problem) config.Problem {
	if p.Line != 0 {
		return p
	}
	if at, ok := s.set.Find(p.File); ok {
		p.What = p.File + ": " + p.What
		p.File, p.Line = at.File, at.Line
	}
	return p
}

// loadInto does with a request what the daemon does.
func loadInto(l *config.Loaded, r *swanctl.Request) (*config.Loaded, error) {
	m := r.Message
	switch r.Command {
	case control.CmdLoadCert:
		return l.LoadCert(m)
	case control.CmdLoadKey:
		l, _, err := l.LoadKey(m)
		return l, err
	case control.CmdLoadShared:
		return l.LoadShared(m)
	case control.CmdLoadAuthority:
		return l.LoadAuthority(r.Name, m.Sub(r.Name))
	case control.CmdLoadPool:
		return l.LoadPool(r.Name, m.Sub(r.Name))
	case control.CmdLoadConn:
		return l.LoadConn(r.Name, m.Sub(r.Name))
	}
	return l, errors.New("keys on tokens are not taken: put the key into a file in private/")
}
