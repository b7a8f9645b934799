package engine

import (
	"errors"
	"io/fs"

	"postern/engine/log"
)

// What survives a restart: few, small secrets in a directory of their own. Without the
// directory the daemon works with secrets that end with it.

// stateQCD is the name of the secret of quick crash detection (RFC 6290 section 5.1).
const stateQCD = "qcd.secret"

const qcdSecretLen = 32

// keeper is the daemon's state directory, or none.
type keeper struct {
	dir    State // nil: none
	log    *log.Logger
	random func([]byte)
}

// openState opens the state directory and takes the secrets from there.
func (e *Engine) openState(undo *undoList) {
	e.keep = keeper{log: e.o.Log, random: env{e.loop}.Random}
	dir := e.cfg.Daemon.StateDir
	if e.o.OS.OpenState != nil && dir != "" {
		s, err := e.o.OS.OpenState(dir)
		if err != nil {
			e.o.Log.Log(log.Net, log.Warn, "nothing can be kept over a restart: peers will take longer to notice that this daemon has restarted",
				log.Str("state_dir", dir), log.Err(err))
		} else {
			e.keep.dir = s
			undo.add("state directory", s.Close)
		}
	}
	e.qcdSecret = e.keep.secret(stateQCD, qcdSecretLen)
}

// secret returns n random octets that are the same after every restart, if that can be had.
func (k *keeper) secret(name string, n int) []byte {
	b := k.load(name)
	if len(b) == n {
		return b
	}
	b = make([]byte, n)
	k.random(b)
	k.store(name, b)
	return b
}

// load returns what is kept under the name, or nil.
func (k *keeper) load(name string) []byte {
	if k.dir == nil {
		return nil
	}
	b, err := k.dir.Load(name)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			k.log.Log(log.Net, log.Warn, "a kept secret cannot be used and is made anew", log.Str("name", name), log.Err(err))
		}
		return nil
	}
	return b
}

// store keeps b under the name.
func (k *keeper) store(name string, b []byte) {
	if k.dir == nil {
		return
	}
	if err := k.dir.Store(name, b); err != nil {
		k.log.Log(log.Net, log.Warn, "a secret cannot be kept over a restart: is the file system full or read-only?",
			log.Str("name", name), log.Err(err))
	}
}
