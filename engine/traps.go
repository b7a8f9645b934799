package engine

import (
	"fmt"

	"postern/engine/config"
	"postern/engine/log"
	"postern/ike"
)

// traps is for which children somebody has installed (true) or taken away (false) the policy by
// hand: packets bring their SAs up, or no longer do. Of a child without SAs it is the policy
// itself. It belongs to the loop.
type traps map[childKey]bool

// of tells what somebody wants of a child, and whether anybody has said so.
func (t traps) of(conn, child string) (installed, byHand bool) {
	installed, byHand = t[childKey{conn, child}]
	return installed, byHand
}

// keep forgets what was said of children that the new configuration does not have, or that are to
// start in another way there.
func (t traps) keep(was, is *config.Config) {
	for k := range t {
		if a, b := findCarrier(was, k), findCarrier(is, k); !isShunt(is, k) && (a == nil || b == nil || a.StartAction != b.StartAction) {
			delete(t, k)
		}
	}
}

func findCarrier(cfg *config.Config, k childKey) *ike.Child {
	if c := cfg.Conn(k.conn); c != nil {
		for _, ch := range c.Children {
			if ch.Name == k.child {
				return ch
			}
		}
	}
	return nil
}

func isShunt(cfg *config.Config, k childKey) bool {
	for _, s := range cfg.Shunts() {
		if s.Conn == k.conn && s.Child == k.child {
			return true
		}
	}
	return false
}

// findTrap returns the first child of that name, of the connection or, if it is "", of any.
func findTrap(cfg *config.Config, conn, child string) (childKey, bool) {
	for _, c := range cfg.IKE.Conns {
		if k := (childKey{c.Name, child}); (conn == "" || conn == c.Name) && findCarrier(cfg, k) != nil {
			return k, true
		}
	}
	for _, s := range cfg.Shunts() {
		if (conn == "" || conn == s.Conn) && child == s.Child {
			return childKey{s.Conn, child}, true
		}
	}
	return childKey{}, false
}

// install adds the policy of a child by hand. It runs on the loop. found is false if there is no
// such child.
func (e *Engine) install(conn, child string) (found bool, err error) {
	k, ok := findTrap(e.cfg, conn, child)
	if !ok {
		return false, nil
	}
	if c := e.cfg.Conn(k.conn); c != nil && findCarrier(e.cfg, k) != nil && len(c.RemoteAddrs)+len(c.RemoteNames) == 0 {
		return true, fmt.Errorf("connection %s does not call its peer", k.conn)
	}
	return true, e.trap(k, true)
}

// uninstall takes the policy of a child away by hand. It runs on the loop. found is false if none is
// installed.
func (e *Engine) uninstall(conn, child string) (found bool, err error) {
	for i := range e.d.spd.spec {
		s := &e.d.spd.spec[i]
		if (conn == "" || conn == s.conn) && child == s.child && (s.trap || s.shunt) {
			return true, e.trap(childKey{s.conn, s.child}, false)
		}
	}
	return false, nil
}

// trap changes the policies as somebody wants it for a child.
func (e *Engine) trap(k childKey, on bool) error {
	was, had := e.traps[k]
	if e.traps == nil {
		e.traps = traps{}
	}
	e.traps[k] = on
	err := e.respec()
	if err != nil {
		delete(e.traps, k)
		if had {
			e.traps[k] = was
		}
	}
	return err
}

// respec brings the policies in line with the configuration that runs. It runs on the loop. An error
// means that nothing has changed.
func (e *Engine) respec() error {
	l, s := e.loop, e.d.spd
	spec, err := e.policySpecs(e.cfg)
	if err != nil {
		return err
	}
	// First the kernel, as with a new configuration.
	list := s.plainPolicies(s.compile(spec))
	if !equalPolicies(list, l.applied) {
		if err := l.net.Apply(l.device, list); err != nil {
			l.apply()
			l.log.Log(log.Kernel, log.Error, "the routes for the policies could not be set", log.Err(err))
			return fmt.Errorf("the routes for the policies could not be set: %w", err)
		}
	}
	s.set(spec)
	l.rejudge()
	if l.applied = list; !equalPolicies(list, s.policies()) {
		l.apply()
	}
	l.out.flush()
	return nil
}
