package ike

import (
	"reflect"
	"slices"
	"time"
)

// A new configuration touches what it changes, and nothing else:
//
//   - what only says when something is done (lifetimes, liveness checks, retransmission,
//     actions), or how the next IKE SA begins, is taken over in place; limits in packets and
//     octets belong to keys, so a change of them brings new keys soon
//   - a child that is added, removed or changed otherwise costs its own CHILD SAs; a changed
//     one is negotiated anew before the old one is deleted
//   - a connection that is changed otherwise (identities, secret, proposals, addresses that
//     do not lead to the peer as it is) gets a new IKE SA, and the old one goes when that is
//     there, or after replaceMax; where we cannot call the peer, at once
//
// The machine works on copies of what it is configured with, so that it can change them in
// place: whatever points to a connection or child that stays goes on being right.

// replaceMax is how long an IKE SA outlives its configuration while its successor is made.
const replaceMax = 30 * time.Second

// lateMax is how long after a change an exchange that was under way may still bring up a
// CHILD SA of a child that is configured no more.
const lateMax = 10 * time.Minute

// lifeMin is the least time that an SA has for its rekeying after a change of lifetimes.
const lifeMin = 10 * time.Second

// clone returns a copy of a connection that the machine may change.
func (c *Conn) clone() *Conn {
	n := *c
	n.Children = make([]*Child, len(c.Children))
	for i, ch := range c.Children {
		k := *ch
		n.Children[i] = &k
	}
	return &n
}

// essence returns what of a connection its IKE SAs are made of, beside the addresses.
func (c *Conn) essence() Conn {
	e := *c
	e.LocalAddrs, e.LocalNets, e.RemoteAddrs, e.RemoteNames, e.Children = nil, nil, nil, nil, nil
	e.LocalAuth, e.RemoteAuth, e.SendCert, e.NoCertReq = nil, nil, 0, false
	e.DPDDelay, e.KeyingTries = 0, 0
	e.RekeyTime, e.ReauthTime, e.OverTime, e.RandTime = 0, 0, 0, 0
	e.Unique, e.Childless = 0, 0
	e.RetryTimeout, e.RetryBase, e.RetryTries, e.RetryLimit, e.RetryJitter = 0, 0, 0, 0, 0
	e.FragmentSize, e.Resumption, e.IgnoreRedirects, e.RedirectTo = 0, false, false, Gateway{}
	return e
}

// essence returns what of a child its CHILD SAs are made of.
func (c *Child) essence() Child {
	e := *c
	e.RekeyTime, e.LifeTime, e.RandTime, e.Inactivity, e.KeepIKE = 0, 0, 0, 0, false
	e.RekeyBytes, e.LifeBytes, e.RandBytes = 0, 0, 0
	e.RekeyPackets, e.LifePackets, e.RandPackets = 0, 0, 0
	e.StartAction, e.DPDAction, e.CloseAction = 0, 0, 0
	return e
}

// keeps tells whether the IKE SAs of s can go on under the configuration c. rekeyed says that old and
// now differ at all.
func (m *Machine) keeps(s *connState, c *Conn, old, now []Secret, rekeyed bool) bool {
	if rekeyed && !sameKey(old, now, c) {
		return false
	}
	if s.from != c && (!reflect.DeepEqual(s.conn.essence(), c.essence()) ||
		!sameRounds(s.conn.LocalAuth, c.LocalAuth) || !sameRounds(s.conn.RemoteAuth, c.RemoteAuth)) {
		return false
	}
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state != StateFree && sa.conn == s.conn && !m.trusts(sa) {
			return false
		}
	}
	if slices.Equal(s.conn.LocalAddrs, c.LocalAddrs) && slices.Equal(s.conn.LocalNets, c.LocalNets) && slices.Equal(s.conn.RemoteAddrs, c.RemoteAddrs) &&
		slices.Equal(s.conn.RemoteNames, c.RemoteNames) {
		return true
	}
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state != StateFree && sa.conn == s.conn && !m.matches(c, sa.path) {
			return false
		}
	}
	return true
}

// configureConns takes the connections in place of those before, and returns the children that
// are new or start otherwise than before. With creds they differ in credentials alone.
func (m *Machine) configureConns(conns []*Conn, oldSecrets []Secret, oldPPKs []PPK, creds bool) map[*Child]bool {
	type change struct {
		s    *connState
		gone []*Child
	}
	old := m.conns
	m.conns = nil
	var changed []change
	replaced := map[*connState]*connState{}
	fresh := map[*Child]bool{}
	rekeyed := !slices.EqualFunc(oldSecrets, m.secrets, func(a, b Secret) bool {
		return a.Any == b.Any && slices.Equal(a.IDs, b.IDs) && constantEqual(a.Key, b.Key)
	})
	for _, c := range conns {
		i := slices.IndexFunc(old, func(s *connState) bool { return s != nil && s.conn.Name == c.Name })
		if i >= 0 && (creds || m.keeps(old[i], c, oldSecrets, m.secrets, rekeyed) && m.keepsPPKs(old[i], c, oldPPKs)) {
			s := old[i]
			old[i] = nil
			m.conns = append(m.conns, s)
			changed = append(changed, change{s, m.adapt(s, c, fresh)})
			continue
		}
		n := &connState{conn: c.clone(), from: c, retryAt: never}
		m.conns = append(m.conns, n)
		for _, k := range n.conn.Children {
			fresh[k] = true
		}
		if i >= 0 {
			replaced[old[i]] = n
			n.counts = old[i].counts
		}
	}
	m.configureNames()
	for _, s := range old {
		if s == nil {
			continue
		}
		if n := replaced[s]; n == nil || !m.supersede(s, n) {
			m.closeConn(s)
		}
	}
	for _, c := range changed {
		m.dropChildren(c.s, c.gone)
	}
	return fresh
}

// adapt changes the configuration of a connection in place and returns the children that
// are configured no more. It adds those to fresh that are new or start otherwise than before.
func (m *Machine) adapt(s *connState, c *Conn, fresh map[*Child]bool) (gone []*Child) {
	if s.from == c {
		return nil
	}
	s.from = c
	was, had := *s.conn, s.conn.Children
	var kids []*Child
	for _, n := range c.Children {
		i := slices.IndexFunc(had, func(o *Child) bool { return o.Name == n.Name && reflect.DeepEqual(o.essence(), n.essence()) })
		if i < 0 {
			k := *n
			kids = append(kids, &k)
			fresh[&k] = true
			continue
		}
		o := had[i]
		before := *o
		*o = *n
		kids = append(kids, o)
		if before.StartAction != o.StartAction {
			delete(s.held, o)
			fresh[o] = true
		}
		if before.RekeyTime != o.RekeyTime || before.LifeTime != o.LifeTime || before.RandTime != o.RandTime {
			m.childLifeChanged(o)
		}
		if before.Inactivity != o.Inactivity || before.volumes() != o.volumes() {
			m.useChanged(o, before.volumes() != o.volumes())
		}
	}
	*s.conn = *c
	s.conn.Children = kids
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.conn != s.conn || sa.state != StateEstablished || sa.closeErr != nil {
			continue
		}
		if was.RekeyTime != c.RekeyTime || was.ReauthTime != c.ReauthTime || was.OverTime != c.OverTime || was.RandTime != c.RandTime {
			m.lifeChanged(sa)
		}
		if was.ReauthTime != c.ReauthTime && c.ReauthTime > 0 && !sa.origin.ours {
			m.queue(sa, task{kind: taskAuthLifetime}) // the peer has to know
		}
		if was.DPDDelay != c.DPDDelay {
			sa.timers[tLiveness] = never
			if c.DPDDelay > 0 || sa.mobike.moved {
				m.arm(sa, tLiveness, 0) // which sees how long it is
			}
		}
	}
	for _, o := range had {
		if !slices.Contains(kids, o) {
			gone = append(gone, o)
		}
	}
	return gone
}

// lifeChanged gives an IKE SA the lifetimes that its connection has now, counted from when
// it was made.
func (m *Machine) lifeChanged(sa *ikeSA) {
	sa.timers[tRekey], sa.timers[tExpire] = never, never
	sa.rekeyAt, sa.expireAt = 0, 0
	m.armRekey(sa)
	m.aged(sa.established, &sa.timers[tRekey], &sa.timers[tExpire], &sa.rekeyAt, &sa.expireAt)
	m.reauthChanged(sa)
}

// reauthChanged does the same for its reauthentication, counted from the first one. The time
// that the peer has set stays.
func (m *Machine) reauthChanged(sa *ikeSA) {
	sa.timers[tReauth] = never
	sa.reauth.at = sa.reauth.asked
	if c := sa.conn; c.ReauthTime > 0 {
		soft, hard := m.now.Mono+c.ReauthTime, m.now.Mono+c.ReauthTime+c.overTime()
		if sa.origin.ours {
			soft -= m.random(c.RandTime)
		}
		m.aged(sa.origin.at, &soft, &hard, &soft, &hard)
		if sa.reauth.at == 0 || soft < sa.reauth.at {
			sa.reauth.at = soft
		}
		if hard < sa.timers[tExpire] {
			sa.timers[tExpire], sa.expireAt = hard, hard
		}
	}
	if sa.reauth.at != 0 {
		m.arm(sa, tReauth, max(sa.reauth.at-m.now.Mono, time.Second))
	}
}

// useChanged gives the CHILD SAs of a child its new Inactivity, and if its limits in packets
// or octets are others, has them rekeyed soon: each has the limits of its keys.
func (m *Machine) useChanged(cfg *Child, limits bool) {
	for i := range m.children {
		c := &m.children[i]
		if c.cfg != cfg || c.state != ChildInstalled && c.state != ChildRekeying {
			continue
		}
		c.timers[tcIdle] = never
		if cfg.Inactivity > 0 {
			m.armChild(c, tcIdle, 0) // which sees how long it is
		}
		if at := m.now.Mono + m.random(lifeMin); limits && at < c.timers[tcRekey] {
			m.armChild(c, tcRekey, at-m.now.Mono)
		}
	}
}

// volumes returns the limits of a child in octets and packets.
func (c *Child) volumes() [6]uint64 {
	return [...]uint64{c.RekeyBytes, c.LifeBytes, c.RandBytes, c.RekeyPackets, c.LifePackets, c.RandPackets}
}

// childLifeChanged does the same for the CHILD SAs of a child.
func (m *Machine) childLifeChanged(cfg *Child) {
	for i := range m.children {
		c := &m.children[i]
		if c.cfg != cfg || c.state != ChildInstalled {
			continue
		}
		c.timers[tcRekey], c.timers[tcExpire] = never, never
		c.rekeyAt, c.expireAt = 0, 0
		m.armChildLife(c)
		if cfg.Inactivity > 0 {
			m.armChild(c, tcIdle, 0)
		}
		m.aged(c.installed, &c.timers[tcRekey], &c.timers[tcExpire], &c.rekeyAt, &c.expireAt)
	}
}

// aged moves deadlines that were counted from now to where they are when counted from
// made. An SA that is too old already is rekeyed soon, and has time for it.
func (m *Machine) aged(made time.Duration, soft, hard, rekeyAt, expireAt *time.Duration) {
	age := m.now.Mono - made
	rest := lifeMin
	if *soft != never {
		if *hard != never {
			rest = max(*hard-*soft, lifeMin)
		}
		*soft = max(*soft-age, m.now.Mono+m.random(lifeMin))
		*rekeyAt = *soft
		m.wake = min(m.wake, *soft)
	}
	if *hard != never {
		*hard = max(*hard-age, m.now.Mono+lifeMin+rest)
		*expireAt = *hard
		m.wake = min(m.wake, *hard)
	}
}

// dropChildren ends what belongs to children that are configured no more. Where there is
// another one of the same name it is negotiated first.
func (m *Machine) dropChildren(s *connState, gone []*Child) {
	if len(gone) == 0 {
		return
	}
	m.lateUntil = m.now.Mono + lateMax
	for _, cfg := range gone {
		delete(s.held, cfg)
		successor := s.conn.child(cfg.Name)
		heirs := []*waiter(nil)
		wanted := false
		s.wanted = slices.DeleteFunc(s.wanted, func(w wish) bool {
			if w.cfg != cfg {
				return false
			}
			wanted, heirs = true, append(heirs, w.waiters...)
			return true
		})
		for i := range m.sas {
			sa := &m.sas[i]
			if sa.state == StateFree || sa.conn != s.conn {
				continue
			}
			sa.tasks = slices.DeleteFunc(sa.tasks, func(t task) bool {
				if t.kind != taskCreateChild || t.cfg != cfg {
					return false
				}
				wanted, heirs = true, append(heirs, t.waiters...)
				return true
			})
		}
		var up []*childSA
		for i := range m.children {
			if c := &m.children[i]; c.cfg == cfg && (c.state == ChildInstalled || c.state == ChildRekeying) {
				up = append(up, c)
			}
		}
		err := ErrTerminated
		if successor != nil && (wanted || len(up) > 0) {
			err = ErrReplaced
			m.want(s, wish{cfg: successor, waiters: heirs})
		} else {
			m.settle(heirs, ErrTerminated)
		}
		for _, c := range up {
			m.closeChild(&m.sas[c.ike], c, err, nil)
		}
	}
	if len(s.wanted) == 0 {
		s.retryAt, s.dial.waiting, s.dial.moving = never, false, false
	}
}

// child returns the child of that name, or nil.
func (c *Conn) child(name string) *Child {
	for _, ch := range c.Children {
		if ch.Name == name {
			return ch
		}
	}
	return nil
}

// dropLate closes what an exchange under way has brought up for a child that is configured
// no more.
func (m *Machine) dropLate() {
	for i := range m.children {
		c := &m.children[i]
		if (c.state == ChildInstalled || c.state == ChildRekeying) && m.stateOf(c.conn) != nil && !slices.Contains(c.conn.Children, c.cfg) {
			m.closeChild(&m.sas[c.ike], c, ErrTerminated, nil)
		}
	}
}

// leftOver tells whether an IKE SA is of a configuration that is no more: it stays only until the
// one that supersede has asked for is there.
func (m *Machine) leftOver(sa *ikeSA) bool { return sa.conn != nil && m.stateOf(sa.conn) == nil }

// supersede makes a new IKE SA under the configuration of n for what those of s carry, and
// keeps these until it is there. It returns false if that is not for us to do.
func (m *Machine) supersede(s, n *connState) bool {
	var list []*ikeSA
	var wishes []*Child
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state != StateEstablished || sa.conn != s.conn || sa.closeErr != nil || !sa.origin.ours {
			continue
		}
		list = append(list, sa)
		for j := range m.children {
			c := &m.children[j]
			if c.ike != sa.slot || c.state != ChildInstalled && c.state != ChildRekeying {
				continue
			}
			if k := n.conn.child(c.cfg.Name); k != nil && !slices.Contains(wishes, k) {
				wishes = append(wishes, k)
			}
		}
	}
	if len(wishes) == 0 || !m.callable(n.conn) {
		return false
	}
	for _, sa := range list {
		sa.timers[tRekey], sa.timers[tReauth], sa.timers[tLiveness] = never, never, never
		sa.reauth.old, sa.reauth.tried = 0, nil
		m.arm(sa, tExpire, replaceMax)
	}
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state != StateFree && sa.conn == s.conn && !slices.Contains(list, sa) {
			if sa.conns == s {
				sa.conns = nil
			}
			m.closeIKE(sa, ErrTerminated, nil)
		}
	}
	n.dial.replaced = true
	for _, w := range s.wanted {
		if w.cfg == nil {
			m.want(n, w)
		} else if k := n.conn.child(w.cfg.Name); k != nil {
			m.want(n, wish{cfg: k, flow: w.flow, waiters: w.waiters})
		} else {
			m.settle(w.waiters, ErrTerminated)
		}
	}
	s.wanted = nil
	for _, k := range wishes {
		m.want(n, wish{cfg: k})
	}
	return true
}
