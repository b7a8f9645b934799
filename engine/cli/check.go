package cli

import (
	"errors"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
)

var checkCommand = Command{
	Name:    "check",
	Args:    "[FILE]",
	Summary: "find everything that is wrong in a configuration",
	Help: `Reads a configuration as 'run' would, changes nothing, and prints every problem
with its line. FILE is ` + DefaultConfig + ` if it is left out.
Warnings go to standard error and do not change the exit status.

With --swanctl it checks strongSwan's swanctl.conf and the certificates and keys
beside it, together with FILE if one is given.

  postern check /tmp/new.toml && cp /tmp/new.toml /etc/postern/postern.toml
  postern check --swanctl /etc/swanctl`,
	Run: runCheck,
}

func runCheck(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	var conf swanctlSource
	o.StringVar(&conf.path, "swanctl", "", "check swanctl.conf in `DIR`")
	rest, status, ok := o.parse(args, 0, 1)
	if !ok {
		return status
	}
	path := DefaultConfig
	if conf.path != "" {
		path = ""
	}
	if len(rest) == 1 {
		path = rest[0]
	}
	cfg, err := loadConfig(sys, path)
	if conf.path != "" {
		path = conf.path
		if err == nil {
			cfg, err = conf.check(sys, cfg)
		}
	}
	var problems config.Problems
	if err != nil && !errors.As(err, &problems) {
		if *asJSON {
			problems = config.Problems{{File: path, What: err.Error()}}
		} else {
			sys.errorf("%v", err)
			return ExitConfig
		}
	}
	var warnings []config.Problem
	if cfg != nil {
		warnings = cfg.Warnings()
	}
	if conf.path != "" {
		warnings = conf.warnings
	}
	if *asJSON {
		var j jsonWriter
		j.open("", '{')
		j.str("file", path)
		j.bool("ok", err == nil)
		problemsJSON(&j, "problems", problems)
		problemsJSON(&j, "warnings", warnings)
		j.close('}')
		_, _ = sys.Stdout.Write(j.bytes())
	} else {
		for _, p := range problems {
			sys.printf("%s\n", p)
		}
		for _, p := range warnings {
			sys.errorf("warning: %s", p)
		}
		if err == nil {
			more := ""
			if n := len(cfg.Manual); n > 0 {
				more = ", " + count(n, "manual SA")
			}
			sys.printf("%s: %s, %s%s: no problems\n", path, count(len(cfg.IKE.Conns), "connection"), count(children(cfg), "child"), more)
			sys.printf("default proposals on this processor: %s\n", sys.Ciphers)
		}
	}
	if err != nil {
		return ExitConfig
	}
	return ExitOK
}

func problemsJSON(j *jsonWriter, key string, list []config.Problem) {
	j.open(key, '[')
	for _, p := range list {
		j.open("", '{')
		j.str("file", p.File)
		j.int("line", int64(p.Line))
		j.int("column", int64(p.Col))
		j.str("problem", p.What)
		if p.Hint != "" {
			j.str("hint", p.Hint)
		}
		j.close('}')
	}
	j.close(']')
}

// loadConfig reads a configuration and finds out whether this device has room for it. That of no
// file is empty, and for a daemon that gets everything from a swanctl.conf.
func loadConfig(sys *System, path string) (*config.Config, error) {
	var cfg *config.Config
	var err error
	if path == "" {
		cfg, err = config.Parse("", []byte("daemon.control = \""+control.CharonPath+"\""), sys.Ciphers)
	} else {
		cfg, err = config.Load(path, sys.Ciphers)
	}
	if err != nil {
		return nil, err
	}
	prof, err := profile(sys, cfg)
	if err != nil {
		return nil, err
	}
	if err = cfg.Fits(prof); err != nil {
		return nil, err
	}
	return cfg, nil
}

// profile returns the board profile that the configuration names, or the one for the
// memory of this device.
func profile(sys *System, cfg *config.Config) (board.Profile, error) {
	if name := cfg.Daemon.Board; name != "auto" && name != "" {
		return board.ByName(name)
	}
	var ram uint64
	if sys.MemoryTotal != nil {
		ram = sys.MemoryTotal()
	}
	return board.ForRAM(ram), nil
}

func children(cfg *config.Config) int {
	n := 0
	for _, c := range cfg.IKE.Conns {
		n += len(c.Children)
	}
	return n
}
