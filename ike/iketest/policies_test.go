package iketest

import (
	"net/netip"
	"slices"
	"time"

	"postern/ike"
)

// policies gives a life, or not, what has to do with policy: uniqueness, IKE SAs without CHILD
// SAs, traps, the end of idle SAs, gateways that redirect, reauthentication as soon as a
// connection is up, and reloads that take away what is in use. It has a generator of its own,
// as dialing has.
func (l *life) policies(seed uint64, trouble time.Duration) {
	r := New(seed^0x9011c7, false).Rand
	chance := func(percent int) bool { return r.IntN(100) < percent }
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from)+1)) }
	a, b, ca, cb := l.a, l.b, l.cfgA.Conns[0], l.cfgB.Conns[0]
	onlyA := len(cb.RemoteAddrs) == 0 // b cannot call a

	some := []ike.UniquePolicy{ike.UniqueNo, ike.UniqueNo, ike.UniqueKeep, ike.UniqueReplace, ike.UniqueReplace, ike.UniqueNever}
	if chance(50) {
		ca.Unique, cb.Unique = some[r.IntN(len(some))], some[r.IntN(len(some))]
		l.loose = ca.Unique == ike.UniqueNever || cb.Unique == ike.UniqueNever
	}
	if chance(40) {
		const allow, prefer, force, never = ike.ChildlessAllow, ike.ChildlessPrefer, ike.ChildlessForce, ike.ChildlessNever
		fit := [][2]ike.Childless{{allow, prefer}, {prefer, allow}, {prefer, prefer}, {prefer, never}, {never, prefer}, {never, never},
			{force, force}, {force, prefer}, {prefer, force}, {force, allow}}
		if !onlyA {
			fit = fit[:len(fit)-1] // b would call without
		}
		x := fit[r.IntN(len(fit))]
		ca.Childless, cb.Childless = x[0], x[1]
	}
	l.tell("unique %d and %d, childless %d and %d", ca.Unique, cb.Unique, ca.Childless, cb.Childless)

	// When the CHILD SAs come and go.
	for _, k := range cb.Children {
		if k.StartAction == ike.StartNone && chance(20) {
			k.StartAction = ike.StartTrap
		}
	}
	if chance(25) {
		for _, k := range ca.Children {
			k.StartAction = ike.StartAction(r.IntN(3))
		}
	}
	if chance(25) {
		l.idle = map[string]time.Duration{}
		for i := range ca.Children {
			which, d := r.IntN(4), span(8*time.Second, 90*time.Second)
			if which == 3 {
				continue
			}
			if which != 0 {
				ca.Children[i].Inactivity = d
			}
			if which != 1 {
				cb.Children[i].Inactivity = d
			}
			l.idle[ca.Children[i].Name] = d
		}
		l.tell("idle children are closed: %v", l.idle)
	} else if chance(30) {
		for i := range ca.Children {
			ca.Children[i].CloseAction, cb.Children[i].CloseAction = ike.PeerAction(r.IntN(3)), ike.PeerAction(r.IntN(3))
			l.restarts = l.restarts || cb.Children[i].CloseAction == ike.ActionRestart
		}
		l.tell("there are close actions")
	}

	// As soon as a connection is up, one side or the other has it authenticated anew.
	if chance(30) {
		left := 1 + r.IntN(4)
		for _, h := range []*Host{a, b} {
			if h == b && onlyA {
				continue
			}
			h.Saw = func(e *ike.Event) {
				if e.Kind != ike.EvIKEUp || left == 0 || l.Now() >= trouble || chance(40) {
					return
				}
				left--
				id := e.IKE
				after := span(0, 3*time.Second)
				if chance(30) {
					after = 0
				}
				l.After(after, func() { h.Command("reauthenticate at once", ike.Command{Kind: ike.CmdReauth, IKE: id}) })
			}
		}
		l.tell("up to %d reauthentications as soon as an IKE SA is up", left)
	}

	if len(ca.RemoteNames) == 0 && chance(20) {
		l.gateways(seed, trouble)
	}
	for range r.IntN(3) {
		if chance(60) { // a client is sent to where nobody is, or to where it is already
			to := l.dead()
			if chance(40) {
				to = l.home(b)
			}
			at := span(0, trouble)
			l.After(at, func() {
				b.Command("redirect", ike.Command{Kind: ike.CmdRedirect, Conn: connName, Gateway: ike.Gateway{Addr: to}})
			})
			l.tell("at %v b's clients are sent to %v", at, to)
		}
	}

	// Reloads that take away something, which comes back.
	for range r.IntN(3) {
		h, cfg := a, l.cfgA
		if chance(50) {
			h, cfg = b, l.cfgB
		}
		less := cfg
		what := r.IntN(4)
		switch what {
		case 0: // nothing has changed
		case 1: // one child
			c := *cfg.Conns[0]
			i := r.IntN(len(c.Children))
			c.Children = slices.Delete(slices.Clone(c.Children), i, i+1)
			less.Conns = []*ike.Conn{&c}
		case 2: // all
			less.Conns = nil
		case 3: // the actions
			c := *cfg.Conns[0]
			c.Children = slices.Clone(c.Children)
			for i, k := range c.Children {
				n := *k
				n.StartAction = ike.StartAction(r.IntN(3))
				c.Children[i] = &n
			}
			less.Conns = []*ike.Conn{&c}
		}
		at, back := span(0, trouble), span(0, 30*time.Second)
		l.tell("at %v %s gets less, %d, for %v", at, h.Name, what, back)
		configure := func(cfg ike.Config) func() {
			return func() {
				l.note("     %s gets a new configuration, %d connections", h.Name, len(cfg.Conns))
				if h.up {
					h.Configure(cfg)
				}
			}
		}
		l.After(at, configure(less))
		l.After(at+back, configure(cfg))
	}
}

// dead returns an address that nobody has.
func (l *life) dead() netip.Addr {
	if l.o.outer6 {
		return netip.MustParseAddr("2001:db8:dead::2")
	}
	return netip.MustParseAddr("203.0.113.78")
}

// home returns the address under which others see a host.
func (l *life) home(h *Host) netip.Addr {
	if h.NAT != nil {
		return h.NAT.Outside
	}
	return h.Addrs[0]
}

// gateways puts another gateway in front: a calls that one, which sends it to b, in its first
// answer, in that of IKE_AUTH, or only later in the session; and for a while b may send it
// back, so that it goes in a circle, or the other one may send it to where nobody is.
func (l *life) gateways(seed uint64, trouble time.Duration) {
	r := New(seed^0x6a7e, false).Rand
	chance := func(percent int) bool { return r.IntN(100) < percent }
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from)+1)) }
	ca, cb := l.cfgA.Conns[0], l.cfgB.Conns[0]
	addr := netip.MustParseAddr("203.0.113.5")
	if l.o.outer6 {
		addr = netip.MustParseAddr("2001:db8:6a7e::1")
	}
	to := l.home(l.b)
	i := slices.Index(ca.RemoteAddrs, netip.PrefixFrom(to, to.BitLen()))
	ca.RemoteAddrs[i] = netip.PrefixFrom(addr, addr.BitLen())
	ca.RemoteAddrs = append(ca.RemoteAddrs, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))

	front := l.AddHost("c", addr)
	l.front = front
	for _, h := range []*Host{l.a, l.b} {
		*l.Link(front, h), *l.Link(h, front) = *l.Link(l.a, l.b), *l.Link(l.b, l.a)
	}
	sends := func(to netip.Addr, auth bool) ike.Config {
		c := *cb
		c.RemoteAddrs, c.RedirectTo = nil, ike.Gateway{Addr: to}
		c.Children = nil
		for _, k := range cb.Children {
			n := *k
			n.StartAction = ike.StartNone
			c.Children = append(c.Children, &n)
		}
		cfg := ike.Config{Conns: []*ike.Conn{&c}, Secrets: l.cfgB.Secrets, PPKs: l.cfgB.PPKs}
		if auth { // there is somebody who is to stay: only IKE_AUTH tells who calls
			o := c
			o.Name, o.RemoteID, o.RedirectTo = "other", identity("other.example"), ike.Gateway{}
			cfg.Conns = append(cfg.Conns, &o)
		}
		return cfg
	}
	session := func() {
		front.Command("redirect", ike.Command{Kind: ike.CmdRedirect, Conn: connName, Gateway: ike.Gateway{Addr: to}})
	}
	first, final := sends(to, chance(50)), sends(to, chance(50))
	how := r.IntN(4)
	switch how {
	case 1:
		first = sends(netip.Addr{}, false)
		at := span(0, trouble)
		l.After(at, session)
	case 2:
		first = sends(l.dead(), chance(50))
	case 3: // in a circle
		loop := l.cfgB
		c := *cb
		c.RedirectTo = ike.Gateway{Addr: addr}
		loop.Conns = []*ike.Conn{&c}
		at, back := span(0, trouble), span(0, time.Minute)
		l.After(at, func() { l.b.Configure(loop) })
		l.After(at+back, func() { l.b.Configure(l.cfgB) })
	}
	l.tell("a calls c, which sends it to b, way %d", how)
	l.After(0, func() { front.Boot(first) })
	if chance(30) {
		at, away := span(0, trouble), span(0, 30*time.Second)
		l.After(at, front.Crash)
		l.After(at+away, func() { front.Boot(first) })
	}
	l.heals = func() {
		front.WorkTime = 10 * time.Millisecond
		if !front.up {
			front.Boot(final)
		} else {
			front.Configure(final)
		}
	}
	l.away = session
}
