package engine

import (
	"errors"
	"sync"

	"postern/engine/config"
	"postern/engine/log"
	"postern/ike"
)

// What is configured comes from two sides: the file, and what control clients load. Both are read
// into one configuration, and each can be changed without the other.

// loads keeps the two sides apart. mu is held during a whole change, so that there is one at a time.
type loads struct {
	mu     sync.Mutex
	file   *config.Config  // as it was read; the keys of its manual SAs are overwritten
	loaded *config.Loaded  // nil: nothing yet
	told   map[string]bool // what was unwise before, and has been logged
}

// known notes what is unwise in a file: whoever has read it tells of that.
func (s *loads) known(file *config.Config) {
	s.told = map[string]bool{}
	for _, w := range file.Warnings() {
		s.told[w.String()] = true
	}
}

// now returns what clients have loaded.
func (s *loads) now() *config.Loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded
}

// Reload changes over to another configuration, that of a file. What control clients have loaded
// stays, and connections that stay the same keep their SAs. An error means that nothing has
// changed. It may be called from any goroutine.
func (e *Engine) Reload(cfg *config.Config) error {
	s := &e.loads
	s.mu.Lock()
	defer s.mu.Unlock()
	defer wipeManual(cfg)
	all := cfg
	if s.loaded != nil {
		var err error
		if all, err = cfg.With(s.loaded); err != nil {
			return err
		}
	}
	if err := e.reconfigure(all, ike.ChangeAny); err != nil {
		return err
	}
	// What a reload cannot change is not told of again with what clients load.
	cfg.Daemon, cfg.IKE.Ports = all.Daemon, all.IKE.Ports
	s.file = cfg
	s.known(cfg)
	return nil
}

// load changes what control clients have loaded, beside the file; how says how much changes. An
// error means that nothing has changed. It may be called from any goroutine but the loop's.
func (e *Engine) load(how ike.Change, change func(*config.Loaded) (*config.Loaded, error)) error {
	s := &e.loads
	s.mu.Lock()
	defer s.mu.Unlock()
	loaded, err := change(s.loaded)
	if err != nil {
		return err
	}
	if loaded == s.loaded {
		return nil // clients send all they have, again and again
	}
	cfg, err := s.file.With(loaded)
	if err != nil {
		return err
	}
	if err := e.reconfigure(cfg, how); err != nil {
		return err
	}
	s.loaded = loaded
	s.tell(e.o.Log, cfg)
	return nil
}

// tell logs what is unwise in a configuration, unless it was so before.
func (s *loads) tell(lg *log.Logger, cfg *config.Config) {
	told := map[string]bool{}
	for _, w := range cfg.Warnings() {
		text := w.String()
		if told[text] = true; !s.told[text] {
			lg.Log(log.Config, log.Warn, "what was loaded is unwise", log.Str("at", text))
		}
	}
	s.told = told
}

// reload reads the configuration file again and changes over to it.
func (e *Engine) reload() error {
	if e.o.Path == "" {
		return errors.New("the daemon does not know its configuration file: restart it instead")
	}
	cfg, err := config.Load(e.o.Path, e.o.CPU.CipherOrder())
	if err != nil {
		return err
	}
	var was config.Log
	if err := e.loop.do(func() { was = e.cfg.Log }); err != nil {
		return err
	}
	if err := e.Reload(cfg); err != nil {
		return err
	}
	// A level that was given on the command line stays unless the file changed it.
	for _, a := range []struct {
		area    log.Area
		was, is log.Level
	}{{log.IKE, was.IKE, cfg.Log.IKE}, {log.ESP, was.ESP, cfg.Log.ESP}, {log.Net, was.Net, cfg.Log.Net}} {
		if a.was != a.is {
			e.o.Log.SetLevel(a.area, a.is)
		}
	}
	e.o.Log.Log(log.Config, log.Info, "configuration reloaded", log.Int("connections", len(cfg.IKE.Conns)))
	return nil
}
