package engine

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"time"

	"postern/board"
	"postern/engine/fetch"
	"postern/engine/log"
	"postern/ike/pki"
)

// What tells whether certificates are revoked is fetched for the machine by package fetch. Its
// connections bear the tunnel's own mark and pass by it, as lookups of names do: they are needed
// before there is a tunnel, and if the server were behind it both would wait for each other. All
// of it is public and signed. A server that can be reached through the tunnel alone has to hand
// its lists out otherwise: as files of the configuration, or with the peer's certificates.

var errNoDial = errors.New("nothing can be fetched on this system")

// stateCRLs is the directory in state_dir for what was fetched.
const stateCRLs = "crls"

// newFetches returns the queue for what this system can do.
func (l *ikeLoop) newFetches(system OS, p board.Profile) *fetch.Queue {
	return fetch.NewQueue(fetch.Options{
		Client: fetch.Client{Resolve: system.Resolve, Dial: func(ctx context.Context, to netip.AddrPort) (fetch.Conn, error) {
			if system.Dial == nil {
				return nil, errNoDial
			}
			return system.Dial(ctx, to)
		}},
		MaxCRL: p.FetchOctets(), Room: p.Fetches(),
		Clock: func() (time.Duration, time.Time) { now := l.now(); return now.Mono, now.Wall },
		Told:  l.fetched,
	})
}

// openFiles opens the directory for what was fetched, below the state directory.
func (e *Engine) openFiles() {
	dir := e.cfg.Daemon.StateDir
	if e.o.OS.OpenFiles == nil || e.keep.dir == nil {
		return // that has been told of
	}
	f, err := e.o.OS.OpenFiles(filepath.Join(dir, stateCRLs), e.o.Profile.Fetches(), int64(e.o.Profile.FetchOctets()))
	if err != nil {
		e.o.Log.Log(log.Config, log.Warn, "revocation lists cannot be kept over a restart: they are fetched anew then",
			log.Str("directory", filepath.Join(dir, stateCRLs)), log.Err(err))
		return
	}
	e.loop.fetches.SetFiles(f)
}

// tellFetched hands answers to the machine that are complete.
func (l *ikeLoop) tellFetched() (any bool) {
	for {
		id, got, ok := l.fetches.Next()
		if !ok {
			return any
		}
		any = true
		l.m.Fetched(l.now(), id, got)
	}
}

// fetched counts and logs what a server has answered. What fails is not tried again for a
// minute, so these lines are few.
func (l *ikeLoop) fetched(o fetch.Outcome) {
	what := "revocation list"
	if o.Kind == pki.FetchOCSP {
		what = "answer of an OCSP responder"
	}
	if o.Err != nil {
		l.d.counts.inc(cFetchFailed)
		l.log.Log(log.IKEConfig, log.Warn, "what tells of revoked certificates cannot be fetched; it is tried again after a minute, when it is needed",
			log.Str("what", what), log.Err(o.Err))
		return
	}
	l.d.counts.inc(cFetched)
	f := []log.Field{log.Str("what", what), log.Str("url", o.URL), log.Int("octets", o.Octets)}
	if !o.Next.IsZero() {
		f = append(f, log.Str("next", o.Next.UTC().Format(time.RFC3339)))
	}
	l.log.Log(log.IKEConfig, log.Info, "fetched what tells of revoked certificates", f...)
}
