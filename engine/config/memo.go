package config

import (
	"maps"
	"slices"
	"sync"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// Clients load one connection with each request, and most of them have many: what With has made of
// those that are the same as before it takes again. That depends on the connection itself, on the
// file, and on certificates and keys. What it depends on besides, the time and what a script's path leads
// to, is looked at when it is loaded.

// memo is what With keeps of the last time that all was well. It belongs to a file.
type memo struct {
	mu     sync.Mutex
	parts  map[partKey]*part
	last   int      // number of a part
	shared *Headers // of the last child
	// The parts are right as long as these are the same.
	keys        []*pki.Key
	certs       []loadedCert
	crls        []*pki.CRL
	authorities []loadedSection
	chain       []*pki.Cert // of all of them
}

type partKey struct {
	name string
	m    *control.Message
}

func (s *loadedSection) key() partKey { return partKey{s.name, s.m} }

// keep takes what was made with l in the place of what was there.
func (m *memo) keep(l *Loaded, parts []*part) {
	m.keys, m.certs, m.crls, m.authorities = l.keys, l.certs, l.crls, l.authorities
	m.parts, m.chain = make(map[partKey]*part, len(parts)), nil
	for i, p := range parts {
		m.parts[l.conns[i].key()] = p
		m.chain = append(m.chain, p.chain...)
	}
}

// part is what With makes of one connection that was loaded, or of its shunts alone. Once With has
// returned it nobody changes it.
type part struct {
	number int
	l      *loader // until it is finished
	cfg    Config  // what it adds to the configuration
	conns  []*conn // one; none, if there are only shunts
	chain  []*pki.Cert
}

func (p *part) new() bool { return p.l != nil }

func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// readParts walks the connections that are not known already.
func (l *loader) readParts(m *memo) []*part {
	loaded := l.vici.loaded
	known := sameSlice(m.keys, loaded.keys) && sameSlice(m.certs, loaded.certs) && sameSlice(m.crls, loaded.crls) &&
		sameSlice(m.authorities, loaded.authorities)
	parts := make([]*part, len(loaded.conns))
	var chain []*pki.Cert
	for i := range parts {
		if known {
			parts[i] = m.parts[loaded.conns[i].key()]
		}
		if parts[i] == nil {
			parts[i] = l.readPart(m, loaded.conns[i:i+1])
		}
		chain = append(chain, parts[i].chain...)
	}
	if !slices.Equal(chain, m.chain) { // our certificates have them behind them
		for i, p := range parts {
			if !p.new() {
				parts[i] = l.readPart(m, loaded.conns[i:i+1])
			}
		}
	}
	for _, p := range parts {
		l.intermediates = append(l.intermediates, p.chain...)
	}
	return parts
}

func (l *loader) readPart(m *memo, section []loadedSection) *part {
	m.last++
	p := &part{number: m.last, cfg: Config{File: l.cfg.File, Daemon: l.cfg.Daemon}}
	p.l = &loader{cfg: &p.cfg, order: l.order, readSecret: l.readSecret, vici: &dialect{loaded: l.vici.loaded, number: p.number}}
	p.l.vici.l = p.l
	p.l.readLoaded("connections", section)
	p.chain = p.l.intermediates
	return p
}

// finishPart fills in defaults and looks for contradictions within a connection. Problems are the
// loader's.
func (l *loader) finishPart(m *memo, p *part) {
	s, c := p.l, &p.cfg
	c.IKE.Trust, s.headers = l.cfg.IKE.Trust, m.shared
	s.partShunts()
	for _, conn := range s.conns {
		s.finishConn(conn)
		for _, ch := range conn.children {
			s.finishChild(ch)
			s.quietActions(ch)
			ch.KeepIKE = ch.Inactivity > 0 // as strongSwan does
			s.finishHeaders(ch)
			c.marks = append(c.marks, mark{conn.t.key, ch.t.key, ch.classes, ch.priority})
			if ch.priority > 0 {
				merge(&c.fixed, map[*ike.Child]uint32{ch.Child: ch.priority})
			}
			s.addDevice(ch)
		}
		s.vici.findCreds(conn)
		s.finishAuth(conn)
		s.checkConn(conn)
		s.checkLocalPort(conn)
		s.checkVirtual(conn)
		s.checkPooled(conn)
		for _, ch := range conn.children {
			s.checkChild(ch)
		}
	}
	m.shared = s.headers
	l.problems = append(l.problems, c.placed(s.problems)...)
	c.warnings = c.placed(c.warnings)
	p.conns = s.conns
	p.slim()
}

// slim forgets what is only needed to make the part: of the trees what order.go and checkOrder ask for,
// and the names of all other elements.
func (p *part) slim() {
	var kept []string
	keep := func(at *pos) {
		name := p.cfg.elements[-at.line-1]
		if len(kept) == 0 || kept[len(kept)-1] != name {
			kept = append(kept, name)
		}
		at.line = -len(kept)
	}
	table := func(t *node, names ...string) *node {
		n := newTable(t.name, t.key, t.origin)
		keep(&n.key)
		for _, name := range names {
			if e := t.get(name); e != nil {
				e = &node{kind: e.kind, name: name, key: e.at, at: e.at}
				keep(&e.at)
				n.add(e)
			}
		}
		return n
	}
	for _, c := range p.conns {
		c.t, c.locals, c.remotes = table(c.t), nil, nil
		for _, ch := range c.children {
			ch.t = table(ch.t, "remote_ts", "interface")
		}
	}
	for i := range p.cfg.marks {
		keep(&p.cfg.marks[i].conn)
		keep(&p.cfg.marks[i].child)
	}
	for i := range p.cfg.shunts {
		keep(&p.cfg.shunts[i].at)
	}
	for i := range p.cfg.devices {
		keep(&p.cfg.devices[i].at)
	}
	p.l, p.cfg.elements = nil, kept
}

// add puts a part behind what is there.
func (l *loader) add(p *part) {
	c, from := l.cfg, &p.cfg
	c.parts[p.number] = p
	l.conns = append(l.conns, p.conns...)
	c.IKE.Conns = append(c.IKE.Conns, from.IKE.Conns...)
	c.marks = append(c.marks, from.marks...)
	c.shunts = append(c.shunts, from.shunts...)
	c.warnings = append(c.warnings, from.warnings...)
	if from.IKE.Floor.After(c.IKE.Floor) {
		c.IKE.Floor = from.IKE.Floor
	}
	merge(&c.fixed, from.fixed)
	merge(&c.headers, from.headers)
	merge(&c.updowns, from.updowns)
	merge(&c.domains, from.domains)
	for _, d := range from.devices {
		i := slices.IndexFunc(c.devices, func(o Device) bool { return o.Name == d.Name })
		if i < 0 {
			d.Addrs = slices.Clip(d.Addrs)
			c.devices = append(c.devices, d)
			continue
		}
		c.devices[i].Addrs = append(c.devices[i].Addrs, d.Addrs...)
	}
}

func merge[K comparable, V any](to *map[K]V, from map[K]V) {
	if *to == nil && len(from) > 0 {
		*to = make(map[K]V, len(from))
	}
	maps.Copy(*to, from)
}
