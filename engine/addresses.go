package engine

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"postern/engine/log"
	"postern/esp"
)

// What follows from a change of the host's addresses, routes or links, as DHCP makes it
// long after the start, or a cable that is pulled: the machine looks for the path of each
// IKE SA, the kernel learns which addresses are sources of protected packets, and dynamic
// selectors get the address that the host has now.

// addressInterval is the least time between two such adjustments, and the time after a
// change at which what comes with an address, its routes, is expected to be there.
const addressInterval = time.Second

// roamInterval is the same for the machine, which looks up a few routes: tunnels that have
// lost their path carry nothing meanwhile.
const roamInterval = 200 * time.Millisecond

// addressPacer says when to adjust: at once, again an interval after the last change, and
// never more often than that in between. The zero value is ready, for addressInterval.
type addressPacer struct {
	every time.Duration
	next  time.Duration // when to adjust; 0: never
	until time.Duration // what was adjusted before it does not count
	last  time.Duration // when it was adjusted
	ever  bool
}

// changed notes a change at now.
func (p *addressPacer) changed(now time.Duration) {
	p.until = now + p.interval()
	at := now
	if p.ever {
		at = max(now, p.last+p.interval())
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
		p.next = max(p.until, now+p.interval())
	}
	return true
}

func (p *addressPacer) interval() time.Duration {
	if p.every > 0 {
		return p.every
	}
	return addressInterval
}

// addressAge is how long a list of the host's addresses is good without a word of change.
const addressAge = time.Second

// hostAddrs is what is known of the host's addresses. It belongs to the IKE loop.
type hostAddrs struct {
	ask   func() ([]netip.Addr, error) // nil: the system does not tell
	list  []netip.Addr
	known bool
	until time.Duration
}

func (h *hostAddrs) stale() { h.until = 0 }

// get returns the addresses.
func (h *hostAddrs) get(now time.Duration) ([]netip.Addr, bool) {
	if h.ask == nil {
		return nil, false
	}
	if now >= h.until {
		list, err := h.ask()
		h.list, h.known, h.until = list, err == nil, now+addressAge
	}
	return h.list, h.known
}

// watchAddresses opens the watch; nil if there is none to be had.
func (e *Engine) watchAddresses(undo *undoList) AddressWatch {
	if e.o.OS.WatchAddresses == nil {
		return nil
	}
	w, err := e.o.OS.WatchAddresses()
	if err != nil {
		e.o.Log.Log(log.Kernel, log.Warn, "changes of this host's addresses will not be noticed: reload the settings after one", log.Err(err))
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
				e.o.Log.Log(log.Kernel, log.Warn, "changes of this host's addresses will not be noticed any more: reload the settings after one", log.Err(err))
			}
			return
		}
		select {
		case e.loop.addressed <- struct{}{}:
		default: // the loop has yet to see the one before
		}
	}
}

// unknown tells whether selectors say that the host's address is not known.
func unknown(ts []esp.Selector) bool {
	return len(ts) == 0 || ts[0].Start == ts[0].End && ts[0].Start.IsUnspecified()
}

// readdress adjusts policies and kernel to the addresses that the host has now. It runs
// on the loop's goroutine.
func (e *Engine) readdress() {
	l, s := e.loop, e.d.spd
	l.fitAll() // a link may have another MTU, or another link leads to the peer
	spec, err := e.policySpecs(e.cfg)
	if err != nil {
		e.o.Log.Log(log.Kernel, log.Error, "the policies could not follow this host's addresses", log.Err(err))
		return
	}
	same := true
	for i := range spec {
		// Without a way to the peer there is no new address. Until there is one the old
		// policy stays, for without it packets would leave in clear.
		if was := &s.spec[i]; !spec[i].Virtual && unknown(spec[i].LocalTS) && !unknown(was.LocalTS) {
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
	list := e.d.spd.plainPolicies(s.compile(spec))
	if err := l.net.Apply(l.device, list); err != nil {
		e.o.Log.Log(log.Kernel, log.Error, "the routes for the policies could not be set", log.Err(err))
		l.apply()
		return
	}
	s.set(spec)
	l.rejudge()
	if l.applied = list; !equalPolicies(list, s.policies()) {
		l.apply()
	}
	l.out.flush()
	e.o.Log.Log(log.Kernel, log.Info, "the policies follow this host's new addresses")
}
