package engine

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/ike"
)

// What survives a restart: few, small secrets in a directory of their own. Without the
// directory the daemon works with secrets that end with it.

// stateQCD is the name of the secret of quick crash detection (RFC 6290 section 5.1).
const stateQCD = "qcd.secret"

const qcdSecretLen = 32

// stateTickets is the name of the keys that seal the tickets of session resumption.
const stateTickets = "ticket.keys"

const (
	// rotateInterval is how often the age of the ticket keys is looked at.
	rotateInterval = time.Hour
	// A ticket key seals for a week, which is much longer than an IKE SA lives (RFC 5723
	// section 6.2), and opens for another day: so long a ticket is good.
	ticketKeySeals = 7 * 24 * time.Hour
	ticketKeyOpens = 24 * time.Hour
	// clockSet is a time before which no clock that has been set stands. Without a clock
	// no tickets are given, and their keys do not age.
	clockSet = 1_700_000_000
)

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
			e.o.Log.Log(log.Daemon, log.Warn, "nothing can be kept over a restart: peers will take longer to notice that this daemon has restarted",
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
			k.log.Log(log.Daemon, log.Warn, "a kept secret cannot be used and is made anew", log.Str("name", name), log.Err(err))
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
		k.log.Log(log.Daemon, log.Warn, "a secret cannot be kept over a restart: is the file system full or read-only?",
			log.Str("name", name), log.Err(err))
	}
}

// ticketKeys are the keys of tickets, the newest first, and when each was made (0: before
// the clock was set).
type ticketKeys struct {
	loaded bool
	list   []agedKey
}

type agedKey struct {
	ike.TicketKey
	made int64 // seconds since 1970
}

// The kept form: a version, then for each key when it was made, its ID and itself.
const (
	ticketFileVersion = 1
	ticketRecord      = 8 + 8 + 32
	ticketKeysMax     = 2
)

func (k *ticketKeys) encode() []byte {
	b := []byte{ticketFileVersion}
	for i := range k.list {
		b = binary.BigEndian.AppendUint64(b, uint64(k.list[i].made))
		b = append(b, k.list[i].ID[:]...)
		b = append(b, k.list[i].Key[:]...)
	}
	return b
}

// decode takes what encode has made, or nothing.
func (k *ticketKeys) decode(b []byte) {
	k.list = nil
	if len(b) == 0 || b[0] != ticketFileVersion || (len(b)-1)%ticketRecord != 0 || len(b) > 1+ticketKeysMax*ticketRecord {
		return
	}
	for b = b[1:]; len(b) > 0; b = b[ticketRecord:] {
		a := agedKey{made: int64(binary.BigEndian.Uint64(b))}
		copy(a.ID[:], b[8:])
		copy(a.Key[:], b[16:])
		k.list = append(k.list, a)
	}
}

// age makes a new key if the present one is too old, or there is none, and drops one whose
// tickets have all expired. It tells whether something has changed.
func (k *ticketKeys) age(now time.Time, random func([]byte)) (changed bool) {
	wall := now.Unix()
	if wall < clockSet {
		wall = 0
	}
	if len(k.list) > 0 && k.list[0].made == 0 && wall != 0 {
		k.list[0].made, changed = wall, true
	}
	stale := func(a *agedKey, life time.Duration) bool {
		// One from the future is of a clock that was wrong: nobody knows how old it is.
		return wall != 0 && (wall-a.made >= int64(life/time.Second) || a.made > wall+int64(ticketKeyOpens/time.Second))
	}
	if len(k.list) == 0 || stale(&k.list[0], ticketKeySeals) {
		a := agedKey{made: wall}
		random(a.ID[:])
		random(a.Key[:])
		k.list = slices.Insert(k.list, 0, a)
		changed = true
	}
	kept := k.list[:1]
	for i := 1; i < len(k.list) && len(kept) < ticketKeysMax; i++ {
		if !stale(&k.list[i], ticketKeySeals+ticketKeyOpens) {
			kept = append(kept, k.list[i])
		}
	}
	changed = changed || len(kept) != len(k.list)
	clear(k.list[len(kept):])
	k.list = kept
	return changed
}

// rotateTicketKeys has the machine seal tickets with keys that are not too old, if a
// connection allows them at all.
func (e *Engine) rotateTicketKeys(cfg *config.Config) {
	if !slices.ContainsFunc(cfg.IKE.Conns, func(c *ike.Conn) bool { return c.Resumption }) {
		return
	}
	first := !e.tickets.loaded
	if first {
		e.tickets.loaded = true
		b := e.keep.load(stateTickets)
		e.tickets.decode(b)
		clear(b)
	}
	changed := e.tickets.age(e.loop.now().Wall, e.keep.random)
	if changed {
		b := e.tickets.encode()
		e.keep.store(stateTickets, b)
		clear(b)
	}
	if first || changed {
		var keys []ike.TicketKey
		for i := range e.tickets.list {
			keys = append(keys, e.tickets.list[i].TicketKey)
		}
		e.loop.m.SetTicketKeys(keys)
	}
}
