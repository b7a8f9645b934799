package engine

import (
	"errors"
	"os"
	"slices"
	"time"

	"postern/engine/log"
)

// What follows from a change of the host's addresses, as DHCP makes it long after the
// start: the kernel learns which of them are sources of protected packets, and dynamic
// selectors get the address that the host has now.

// addressInterval is the least time between two such adjustments, and the time after a
// change at which what comes with an address, its routes, is expected to be there.
const addressInterval = time.Second

// addressPacer says when to adjust: at once, again addressInterval after the last change,
// and never more often than that in between. The zero value is ready.
type addressPacer struct {
	next  time.Duration // when to adjust; 0: never
	until time.Duration // what was adjusted before it does not count
	last  time.Duration // when it was adjusted
	ever  bool
}

// changed notes a change at now.
func (p *addressPacer) changed(now time.Duration) {
	p.until = now + addressInterval
	at := now
	if p.ever {
		at = max(now, p.last+addressInterval)
	}
	if p.next == 0 || at < p.next {
		p.next = at
	}
}

// due tells whether it is time to adjust, and counts on it being done.
func (p *addressPacer) due(now time.Duration) bool {
	if p.next == 0 || now < p.next {
		return false
	}
	p.last, p.ever, p.next = now, true, 0
	if now < p.until {
		p.next = max(p.until, now+addressInterval)
	}
	return true
}

// watchAddresses opens the watch; nil if there is none to be had.
func (e *Engine) watchAddresses(undo *undoList) AddressWatch {
	if e.o.OS.WatchAddresses == nil {
		return nil
	}
	w, err := e.o.OS.WatchAddresses()
	if err != nil {
		e.o.Log.Log(log.Net, log.Warn, "changes of this host's addresses will not be noticed: reload the settings after one", log.Err(err))
		return nil
	}
	undo.add("address watch", w.Close)
	return w
}

// followAddresses tells the IKE loop of changes until the watch is closed.
func (e *Engine) followAddresses(w AddressWatch) {
	for {
		if err := w.Wait(); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				e.o.Log.Log(log.Net, log.Warn, "changes of this host's addresses will not be noticed any more: reload the settings after one", log.Err(err))
			}
			return
		}
		select {
		case e.loop.addressed <- struct{}{}:
		default: // the loop has yet to see the one before
		}
	}
}

// readdress adjusts policies and kernel to the addresses that the host has now. It runs
// on the loop's goroutine.
func (e *Engine) readdress() {
	l, s := e.loop, e.d.spd
	spec, err := e.policySpecs(e.cfg)
	if err != nil {
		e.o.Log.Log(log.Net, log.Error, "the policies could not follow this host's addresses", log.Err(err))
		return
	}
	same := true
	for i := range spec {
		// Without a way to the peer there is no new address. Until there is one the old
		// policy stays, for without it packets would leave in clear.
		if was := &s.spec[i]; len(spec[i].LocalTS) == 0 {
			spec[i].LocalTS, spec[i].RemoteTS = was.LocalTS, was.RemoteTS
		} else if !slices.Equal(spec[i].LocalTS, was.LocalTS) || !slices.Equal(spec[i].RemoteTS, was.RemoteTS) {
			same = false
		}
	}
	if same {
		l.apply()
		return
	}
	// First the kernel, as with a new configuration.
	list := plainPolicies(s.compile(spec))
	if err := l.net.Apply(l.device, list); err != nil {
		e.o.Log.Log(log.Net, log.Error, "the routes for the policies could not be set", log.Err(err))
		l.apply()
		return
	}
	s.set(spec)
	l.applied = list
	l.out.flush()
	e.o.Log.Log(log.Net, log.Info, "the policies follow this host's new addresses")
}
