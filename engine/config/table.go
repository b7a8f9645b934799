package config

import (
	"net/netip"
	"slices"
	"strings"

	"postern/esp"
	"postern/ike"
)

// childMode is what becomes of a child's packets: the modes of an SA, with the numbers that they
// have in package esp, and strongSwan's two shunts, which make none.
type childMode int

const (
	modeTunnel    = childMode(esp.Tunnel)
	modeTransport = childMode(esp.Transport)
	modeBEET      = childMode(esp.BEET)
	modePass      = childMode(iota)
	modeDrop      = childMode(iota)
)

// tableEntry is one section of [policies].
type tableEntry struct {
	name          string
	action        esp.Action
	dir           esp.Directions
	local, remote []esp.Selector // nil: not given
	conn, child   string         // "": any SA, or none is needed
	at            pos

	t      *node // only while the file is read
	target *child
}

// shunt is a child without an SA.
type shunt struct {
	conn, child   string
	action        esp.Action
	local, remote []esp.Selector
	at            pos
	priority      uint32 // as of a mark
	parked        bool   // as of an Entry
	owner         *ike.Conn
	as            *ike.Child
}

// anyAddress selects everything, of both families.
func anyAddress() []esp.Selector {
	var list []esp.Selector
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		list = append(list, esp.SelectorFromPrefix(netip.PrefixFrom(a, 0)))
	}
	return list
}

// openPolicy starts an entry of the table.
func (s *scope) openPolicy(n *node) *scope {
	e := &tableEntry{name: n.name, at: n.key, t: n}
	s.table = append(s.table, e)
	return &scope{loader: s.loader, policy: e}
}

// fixedSelectors reads a list of selectors that name their addresses.
func (s *scope) fixedSelectors(n *node, to *[]esp.Selector) {
	var list []ike.TS
	s.selectors(n, &list)
	for i, ts := range list {
		if ts.Dynamic {
			s.problem(n.list[min(i, len(n.list)-1)].at, "write the addresses, or leave the key out to get those of the child",
				"%s of a policy cannot be dynamic", n.name)
			continue
		}
		*to = append(*to, ts.Selector)
	}
}

// childName reads "connection/child".
func (s *scope) childName(n *node) {
	conn, child, ok := strings.Cut(n.text, "/")
	if !ok || conn == "" || child == "" {
		s.problem(n.at, `write "connection/child"`, "%q does not name a child", n.text)
		return
	}
	s.policy.conn, s.policy.child = conn, child
}

// partShunts takes the children without SAs out of their connections, and the connections
// that have no others, so that only what needs a peer is seen as something that does.
func (l *loader) partShunts() {
	conns := l.conns[:0]
	list := l.cfg.IKE.Conns[:0]
	for _, c := range l.conns {
		kept := c.children[:0]
		shunts := 0
		for _, ch := range c.children {
			if ch.mode < modePass {
				kept = append(kept, ch)
				continue
			}
			shunts++
			l.addShunt(ch)
		}
		c.children = kept
		c.Children = nil
		for _, ch := range kept {
			c.Children = append(c.Children, ch.Child)
		}
		if len(kept) == 0 && shunts > 0 {
			continue
		}
		conns, list = append(conns, c), append(list, c.Conn)
	}
	l.conns, l.cfg.IKE.Conns = conns, list
}

// shuntKeys are the keys of a child that mean something without an SA. strongSwan wants
// start_action for it to be installed; here it always is.
var shuntKeys = []string{"mode", "local_ts", "remote_ts", "start_action"}

// addShunt takes over a child without an SA. Where it has dynamic selectors, any address is
// meant, as strongSwan has it.
func (l *loader) addShunt(c *child) {
	mode := modeWords[c.mode]
	for _, n := range c.t.entries {
		switch {
		case l.vici != nil && n.name == "priority":
		case !slices.Contains(shuntKeys, n.name):
			l.clash(n.key, "take it out, or write mode = \"tunnel\"", "%s means nothing in a child with mode %q, which has no SA", n.name, mode)
		case n.name == "start_action" && !n.bad && c.StartAction == ike.StartNone && l.vici == nil:
			l.problem(n.at, "take it out, or take the child out", "a child with mode %q is always there", mode)
		}
	}
	s := shunt{parked: l.vici != nil && c.StartAction == ike.StartNone, owner: c.conn.Conn, as: c.Child, conn: c.conn.Name, child: c.Name, action: esp.Bypass, at: c.t.key, priority: c.priority,
		local: shuntSide(c.LocalTS), remote: shuntSide(c.RemoteTS)}
	if c.mode == modeDrop {
		s.action = esp.Discard
	}
	if !c.t.bad && good(c.t, "local_ts", "remote_ts") && !sameFamily(s.local, s.remote) {
		l.problem(where(c.t, "remote_ts"), "give local_ts and remote_ts a pair of the same address family",
			"child %s has no local_ts and remote_ts of one address family, so no packet fits", c.Name)
	}
	if !c.t.bad && good(c.t, "local_ts", "remote_ts") {
		l.checkJoint(where(c.t, "remote_ts"), "child "+c.Name, s.local, s.remote)
	}
	l.cfg.shunts = append(l.cfg.shunts, s)
}

func shuntSide(list []ike.TS) []esp.Selector {
	if len(list) == 0 {
		return anyAddress()
	}
	var out []esp.Selector
	for _, ts := range list {
		if !ts.Dynamic {
			out = append(out, ts.Selector)
			continue
		}
		for _, s := range anyAddress() {
			s.Proto, s.StartPort, s.EndPort = ts.Proto, ts.StartPort, ts.EndPort
			out = append(out, s)
		}
	}
	return out
}

func sameFamily(local, remote []esp.Selector) bool {
	var a, b families
	for _, s := range local {
		a.add(s.Start)
	}
	for _, s := range remote {
		b.add(s.Start)
	}
	return a&b != 0
}

// checkTable notes what is wrong in the entries of [policies], and takes them over.
func (l *loader) checkTable() {
	for _, e := range l.table {
		l.checkEntry(e)
		l.cfg.table = append(l.cfg.table, *e)
		l.cfg.table[len(l.cfg.table)-1].t = nil
		l.cfg.table[len(l.cfg.table)-1].target = nil
	}
}

func (l *loader) checkEntry(e *tableEntry) {
	if e.t.bad {
		return
	}
	action := e.t.get("action")
	if action == nil {
		l.problem(e.at, "write action = "+choice(actionWords), "policy %s does not say what to do", e.name)
		e.t.bad = true
		return
	}
	if !good(e.t, "action", "direction", "local_ts", "remote_ts", "child") {
		e.t.bad = true
		return
	}
	if n := e.t.get("child"); n != nil {
		if e.action != esp.Protect {
			l.problem(n.key, "take it out", "policy %s protects nothing, so no child belongs to it", e.name)
			return
		}
		if e.conn == ManualConn && l.findManual(e.child) != nil {
			l.checkEntryFamily(e)
			return
		}
		if e.target = l.findChild(e.conn, e.child); e.target == nil {
			l.problem(n.at, "write \"connection/child\", of a child with an SA", "there is no child %s in a connection %s", shown(e.child), shown(e.conn))
			e.t.bad = true
			return
		}
		if e.target.Interface != "" {
			l.problem(n.at, "take the entry out, or interface out of the child",
				"the routes into %s decide what child %s protects, and no policy does", e.target.Interface, shown(e.child))
			e.t.bad = true
			return
		}
		e.target.placed = true
		if !good(e.target.t, "local_ts", "remote_ts") {
			e.t.bad = true
			return
		}
		l.checkCarrier(e)
	}
	l.checkEntryFamily(e)
}

func (l *loader) checkEntryFamily(e *tableEntry) {
	local, remote := e.local, e.remote
	l.checkJoint(where(e.t, "remote_ts"), "policy "+e.name, local, remote)
	if local != nil && remote != nil && !sameFamily(local, remote) {
		l.problem(where(e.t, "remote_ts"), "give local_ts and remote_ts a pair of the same address family",
			"policy %s has no local_ts and remote_ts of one address family, so no packet fits", e.name)
	}
}

// checkCarrier notes selectors that do not go with those of the child.
func (l *loader) checkCarrier(e *tableEntry) {
	for _, side := range []struct {
		key   string
		own   []esp.Selector
		other []esp.Selector
		child []ike.TS
	}{
		{"local_ts", e.local, e.remote, e.target.LocalTS},
		{"remote_ts", e.remote, e.local, e.target.RemoteTS},
	} {
		dynamic := slices.ContainsFunc(side.child, isDynamic)
		if side.own == nil {
			if side.other != nil && dynamic {
				l.problem(e.at, "write it, or leave out the other one as well",
					"policy %s lacks %s: that of child %s is dynamic and not known", e.name, side.key, e.child)
			}
			continue
		}
		if dynamic {
			continue
		}
		for _, s := range side.own {
			if !slices.ContainsFunc(side.child, func(ts ike.TS) bool { return ts.Contains(s) }) {
				l.warn(where(e.t, side.key), "make it narrower, or the child's wider",
					"policy %s selects %s, which is not within %s of child %s: what is outside never finds an SA and is dropped",
					e.name, s, side.key, e.child)
				break
			}
		}
	}
}

func (l *loader) findChild(conn, child string) *child {
	for _, c := range l.conns {
		if c.Name != conn {
			continue
		}
		for _, ch := range c.children {
			if ch.Name == child {
				return ch
			}
		}
	}
	return nil
}

// placeName tells where an entry stands, for people.
func (e *Entry) placeName() string {
	what := "child " + e.Child + " of connection " + e.Conn
	if e.Manual {
		what = "manual SA " + e.Child
	}
	if e.Name != "" {
		what = "policy " + e.Name
	}
	return what + e.at.inLine()
}
