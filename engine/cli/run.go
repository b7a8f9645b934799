package cli

import (
	"cmp"
	"errors"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
)

var runCommand = Command{
	Name:    "run",
	Summary: "run the daemon in the foreground",
	Help: `Runs the daemon until it is told to end (SIGTERM or SIGINT; a second one ends it
at once). SIGHUP has it read the configuration again; if that has errors the
daemon keeps what it has. It needs root, or CAP_NET_ADMIN and CAP_NET_RAW, and
/dev/net/tun.

With --swanctl it also loads strongSwan's swanctl.conf and the directories of
certificates and keys beside it, at the start and on SIGHUP; without --config
these are the whole configuration then, and the control socket is where charon
has it, ` + control.CharonPath + `. What cannot be loaded is logged.

  postern run -c /etc/postern/postern.toml
  postern run --swanctl /etc/swanctl`,
	Run: runRun,
}

// endPatience is how long the daemon may take to close its SAs and to undo what it
// did to the system. A service manager kills after 5 (procd) to 90 seconds (systemd).
const endPatience = 4 * time.Second

// runner is the daemon's process: what stays the same over reloads.
type runner struct {
	sys   *System
	path  string // of the configuration, "" if there is none
	conf  swanctlSource
	level *log.Level // --log-level; nil: as configured
	cfg   *config.Config
	log   *log.Logger
}

func runRun(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	r := &runner{sys: sys, path: DefaultConfig}
	o.StringVar(&r.path, "config", r.path, "configuration `FILE`")
	o.StringVar(&r.path, "c", r.path, "the same")
	o.StringVar(&r.conf.path, "swanctl", "", "load swanctl.conf in `DIR`")
	level := o.String("log-level", "", "`LEVEL` of all log lines instead of the configured ones: error, warn, info, debug")
	if _, status, ok := o.parse(args, 0, 0); !ok {
		return status
	}
	if *level != "" {
		l, err := log.ParseLevel(*level)
		if err != nil {
			sys.errorf("run: %v", err)
			return ExitUsage
		}
		r.level = &l
	}
	// Before the first secret is read.
	var soft error
	if sys.Harden != nil {
		soft = sys.Harden()
	}
	if r.conf.path != "" && !o.given("config", "c") {
		r.path = ""
	}
	cfg, err := loadConfig(sys, r.path)
	if err == nil {
		err = r.conf.read()
	}
	if err != nil {
		return r.badConfig(err)
	}
	r.cfg = cfg
	if sys.Privileges != nil {
		if err = sys.Privileges(); err != nil {
			sys.errorf("run: %v", err)
			return ExitSystem
		}
	}
	prof, err := profile(sys, cfg)
	if err != nil {
		return r.badConfig(err)
	}
	r.openLog()
	if soft != nil {
		r.log.Log(log.Daemon, log.Warn, "keys may reach core dumps or other processes", log.Err(soft))
	}
	return r.run(prof)
}

// badConfig reports why a configuration cannot be used.
func (r *runner) badConfig(err error) int {
	var problems config.Problems
	if !errors.As(err, &problems) {
		r.sys.errorf("run: %v", err)
		return ExitConfig
	}
	for _, p := range problems {
		r.sys.errorf("%s", p)
	}
	return ExitConfig
}

// openLog makes the logger that the configuration asks for.
func (r *runner) openLog() {
	if r.cfg.Log.Target == "syslog" {
		r.log = log.NewSyslog("", log.Info)
	} else {
		r.log = log.New(r.sys.Stderr, log.Info)
	}
	r.setLevels()
	r.warn()
}

func (r *runner) setLevels() {
	if r.level != nil {
		r.log.SetAll(*r.level)
		return
	}
	r.log.SetLevel(log.IKE, r.cfg.Log.IKE)
	r.log.SetLevel(log.ESP, r.cfg.Log.ESP)
	r.log.SetLevel(log.Net, r.cfg.Log.Net)
}

func (r *runner) warn() {
	if r.path == "" {
		return // it has no connections, and is not meant to have
	}
	for _, w := range r.cfg.Warnings() {
		r.log.Log(log.Config, log.Warn, "the configuration is unwise", log.Str("at", w.String()))
	}
}

// run prepares the daemon, runs it, and passes it the signals.
func (r *runner) run(prof board.Profile) int {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(prof.MemoryMiB) << 20)
	}
	// Signals come first: one that arrives while the system is being changed must not
	// end the process half-way.
	signals := r.sys.Signals()
	d, err := r.sys.NewDaemon(r.path, r.cfg, prof, r.log)
	if err != nil {
		return r.failed("cannot start", err)
	}
	r.log.Log(log.Daemon, log.Info, "starting", log.Str("version", r.sys.Version), log.Str("config", cmp.Or(r.path, r.conf.path)),
		log.Str("board", prof.Name), log.Int("connections", len(r.cfg.IKE.Conns)))
	stop := make(chan struct{})
	ended := make(chan error, 1)
	if r.conf.path != "" {
		d.OnReload(func() error { return r.reloadConf(d) })
		go r.loadConf(d, stop)
	}
	go func() { ended <- d.Run(stop) }()
	var late <-chan time.Time
	for {
		select {
		case err := <-ended:
			if err != nil {
				return r.failed("ended with an error", err)
			}
			r.log.Log(log.Daemon, log.Info, "ended")
			return ExitOK
		case sig := <-signals:
			switch {
			case sig == syscall.SIGHUP && late == nil:
				r.reload(d)
			case sig == syscall.SIGHUP:
			case late != nil:
				r.log.Log(log.Daemon, log.Warn, "ending at once, asked for a second time")
				return ExitFailed
			default:
				r.log.Log(log.Daemon, log.Info, "ending", log.Str("signal", sig.String()))
				close(stop)
				t := time.NewTimer(endPatience)
				defer t.Stop()
				late = t.C
			}
		case <-late:
			r.log.Log(log.Daemon, log.Error, "did not end in time, ending at once", log.Dur("after", endPatience))
			return ExitFailed
		}
	}
}

// failed reports an error that ends the daemon, in the log and to whoever started it.
func (r *runner) failed(what string, err error) int {
	r.log.Log(log.Daemon, log.Error, what, log.Err(err))
	if r.cfg.Log.Target == "syslog" {
		r.sys.errorf("run: %s: %v", what, err)
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) ||
		errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO) {
		return ExitSystem
	}
	return ExitFailed
}

// reload reads the configuration again and has the daemon change over to it.
func (r *runner) reload(d Daemon) {
	if r.path != "" && !r.reloadFile(d) {
		return
	}
	_ = r.reloadConf(d) // it is in the log
}

func (r *runner) reloadFile(d Daemon) bool {
	cfg, err := loadConfig(r.sys, r.path)
	if err != nil {
		var problems config.Problems
		if !errors.As(err, &problems) {
			r.log.Log(log.Config, log.Error, "configuration not reloaded, the old one stays", log.Err(err))
			return false
		}
		for _, p := range problems {
			r.log.Log(log.Config, log.Error, "configuration not reloaded, the old one stays", log.Str("at", p.String()))
		}
		return false
	}
	if err = d.Reload(cfg); err != nil {
		r.log.Log(log.Config, log.Error, "configuration not reloaded, the old one stays", log.Err(err))
		return false
	}
	if cfg.Log.Target != r.cfg.Log.Target {
		r.log.Log(log.Daemon, log.Warn, "the log keeps its target until a restart", log.Str("target", r.cfg.Log.Target))
		cfg.Log.Target = r.cfg.Log.Target
	}
	r.cfg = cfg
	r.setLevels()
	r.warn()
	r.log.Log(log.Config, log.Info, "configuration reloaded", log.Int("connections", len(cfg.IKE.Conns)))
	return true
}
