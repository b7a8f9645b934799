package ike

import "slices"

// Command takes a wish of the user or of the data path.
func (m *Machine) Command(now Time, c Command) {
	m.now = now
	w := &waiter{tag: c.Tag, left: 1}
	var err error
	switch c.Kind {
	case CmdInitiate, CmdAcquire:
		err = m.cmdInitiate(&c, w)
	case CmdTerminate:
		err = m.cmdTerminate(&c, w)
	case CmdRekey, CmdReauth:
		err = m.cmdRekey(&c, w)
	case CmdMoved:
		m.cmdMoved(&c)
	case CmdRedirect:
		err = m.cmdRedirect(&c, w)
	case CmdInvalidSPI:
		m.cmdInvalidSPI(&c)
	case CmdLimit:
		m.cmdLimit(&c)
	case CmdAddresses:
		m.cmdAddresses()
	case CmdUnreachable:
		m.unreachable(c.Path)
	}
	m.settle([]*waiter{w}, err)
	m.finish()
}

func (m *Machine) cmdInitiate(c *Command, w *waiter) error {
	found := false
	for _, s := range m.conns {
		if c.Conn != "" && s.conn.Name != c.Conn {
			continue
		}
		children := s.conn.Children
		if c.Bare && c.Child == "" {
			children = []*Child{nil}
		}
		for _, cfg := range children {
			if c.Child != "" && cfg.Name != c.Child {
				continue
			}
			found = true
			if c.Kind == CmdAcquire && c.Grow {
				m.wantLane(s, cfg, c)
				continue
			}
			if c.Kind == CmdAcquire {
				// A permanent one is wanted anyway, unless the user has closed it, or nobody has used it.
				if !cfg.permanent() || cfg.Inactivity > 0 && !s.held[cfg] {
					m.want(s, wish{cfg: cfg, flow: c.Flow})
				}
				m.press(s)
				continue
			}
			w.left++
			if m.established(s.conn) == nil {
				s.retryAt = never // asked for: no back-off
			}
			m.want(s, wish{cfg: cfg, waiters: []*waiter{w}})
		}
	}
	if !found {
		return ErrNotFound
	}
	return nil
}

func (m *Machine) cmdTerminate(c *Command, w *waiter) error {
	found := false
	whole := c.Child == "" && c.ChildID == 0
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state == StateFree || c.IKE != 0 && sa.unique != c.IKE || c.Conn != "" && sa.connName() != c.Conn {
			continue
		}
		if whole {
			if sa.state == StateConnecting && sa.conn == nil {
				continue // nobody knows yet whose it is
			}
			found = true
			w.left++
			m.closeIKE(sa, ErrTerminated, w)
			if c.Force {
				m.abandon(sa)
			}
			continue
		}
		for j := range m.children {
			k := &m.children[j]
			if k.state != ChildInstalled && k.state != ChildRekeying || k.ike != sa.slot ||
				c.Child != "" && k.cfg.Name != c.Child || c.ChildID != 0 && k.unique != c.ChildID {
				continue
			}
			found = true
			w.left++
			m.closeChild(sa, k, ErrTerminated, w)
		}
		if c.ChildID == 0 && m.dropCreating(sa, c.Child) {
			found = true
		}
	}
	for _, s := range m.conns {
		if c.IKE != 0 || c.ChildID != 0 || c.Conn != "" && s.conn.Name != c.Conn {
			continue
		}
		if c.Child == "" {
			s.dropTicket()
		}
		for _, cfg := range s.conn.Children {
			if c.Child == "" || cfg.Name == c.Child {
				if s.held == nil {
					s.held = make(map[*Child]bool)
				}
				s.held[cfg] = true
			}
		}
		s.wanted = slices.DeleteFunc(s.wanted, func(x wish) bool {
			if c.Child != "" && (x.cfg == nil || x.cfg.Name != c.Child) {
				return false
			}
			found = true
			m.settle(x.waiters, ErrTerminated)
			return true
		})
		if len(s.wanted) == 0 {
			s.retryAt, s.dial.waiting, s.dial.moving = never, false, false
		}
	}
	if !found {
		return ErrNotFound
	}
	return nil
}

// dropCreating ends our attempts to make a CHILD SA of that name on an IKE SA, and tells whether
// there were any. What the peer may have made already is closed when it is known.
func (m *Machine) dropCreating(sa *ikeSA, child string) (found bool) {
	var waiters []*waiter
	creates := func(t *task) bool {
		if t.kind != taskCreateChild || t.cfg == nil || t.cfg.Name != child {
			return false
		}
		found = true
		waiters = append(waiters, t.waiters...)
		t.waiters = nil
		return true
	}
	sa.tasks = slices.DeleteFunc(sa.tasks, func(t task) bool { return creates(&t) })
	sa.outstanding(func(r *request) bool {
		if creates(&r.task) {
			r.dropped = true
		}
		return false
	})
	m.settle(waiters, ErrTerminated)
	return found
}

func (m *Machine) cmdRekey(c *Command, w *waiter) error {
	found := false
	whole := c.Child == "" && c.ChildID == 0
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state != StateEstablished || c.Kind == CmdReauth && sa.closeErr != nil || c.IKE != 0 && sa.unique != c.IKE || c.Conn != "" && sa.connName() != c.Conn {
			continue
		}
		if whole && c.Kind == CmdReauth {
			found = true
			m.reauthenticate(sa)
			continue
		}
		if whole {
			found = true
			w.left++
			m.queue(sa, task{kind: taskRekeyIKE, waiters: []*waiter{w}})
			continue
		}
		for j := range m.children {
			k := &m.children[j]
			if k.state != ChildInstalled || k.ike != i || c.Child != "" && k.cfg.Name != c.Child || c.ChildID != 0 && k.unique != c.ChildID {
				continue
			}
			found = true
			w.left++
			m.queue(sa, task{kind: taskRekeyChild, cfg: k.cfg, target: k.unique, waiters: []*waiter{w}})
		}
	}
	if !found {
		return ErrNotFound
	}
	return nil
}
