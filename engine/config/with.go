package config

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// fileParts is what With needs of a file beside its result.
type fileParts struct {
	order         ike.CipherOrder
	conns         []*conn
	pools         []*poolTable
	authorities   []*authority
	intermediates []*pki.Cert
	memo          *memo
}

// loaded tells whether a place is an element that a client has loaded: its line is negative and
// counts the names in Config.elements, or those of the part that its column is the number of.
func (p pos) loaded() bool { return p.line < 0 }

// inLine says for people, behind what stands there, in which line of the file a place is.
func (p pos) inLine() string {
	if p.loaded() {
		return ""
	}
	return " (line " + strconv.Itoa(p.line) + ")"
}

// clash notes what strongSwan takes, and what is yet a mistake in a file.
func (l *loader) clash(at pos, hint, format string, args ...any) {
	if l.vici != nil {
		l.warn(at, hint, format, args...)
		return
	}
	l.problem(at, hint, format, args...)
}

// placed gives problems with such places the names of their elements.
func (c *Config) placed(ps Problems) Problems {
	for i := range ps {
		names := c.elements
		if p := c.parts[ps[i].Col]; p != nil {
			names = p.cfg.elements
		}
		if n := -ps[i].Line; n > 0 && n <= len(names) {
			ps[i].File, ps[i].Line, ps[i].Col = names[n-1], 0, 0
		}
	}
	return ps
}

// With returns the configuration of the file together with what clients have loaded. c is not
// changed, and has to be what [Load] or [Parse] returned; the result shares with it what is never
// changed, and has the keys of manual SAs for itself. The error is Problems, which name the elements
// of messages.
//
// Credentials are for all connections, as with strongSwan: secrets, CAs and authorities that were
// loaded serve those of the file as well.
func (c *Config) With(l *Loaded) (*Config, error) {
	cfg := *c
	cfg.Manual = nil
	for _, m := range c.Manual {
		n := *m
		for _, k := range n.keys() {
			*k.to = bytes.Clone(*k.to)
		}
		cfg.Manual = append(cfg.Manual, &n)
	}
	l = l.copied()
	ld := &loader{cfg: &cfg, order: c.read.order, readSecret: readSecretFile, vici: &dialect{loaded: l},
		authorities: slices.Clip(c.read.authorities), intermediates: slices.Clip(c.read.intermediates)}
	ld.vici.l, ld.vici.fileAuthorities = ld, c.read.authorities
	c.read.memo.mu.Lock()
	defer c.read.memo.mu.Unlock()
	cfg.IKE.Conns, cfg.marks, cfg.warnings, cfg.elements = nil, nil, nil, nil
	cfg.shunts, cfg.domains, cfg.headers, cfg.updowns = slices.Clip(cfg.shunts), maps.Clone(cfg.domains), maps.Clone(cfg.headers), maps.Clone(cfg.updowns)
	cfg.devices = slices.Clone(cfg.devices)
	for i := range cfg.devices {
		cfg.devices[i].Addrs = slices.Clip(cfg.devices[i].Addrs)
	}

	parts := ld.readParts(c.read.memo)
	cfg.parts = make(map[int]*part, len(parts))
	ld.readLoaded("pools", l.pools)
	ld.readLoaded("authorities", l.authorities)
	ld.finishLoaded(c, parts)
	if len(ld.problems) > 0 {
		return nil, cfg.placed(ld.problems)
	}
	cfg.warnings = append(slices.Clip(c.warnings), cfg.placed(cfg.warnings)...)
	cfg.elements = nil
	cfg.authorities = ld.authorities
	c.read.memo.keep(l, parts)
	return &cfg, nil
}

// readLoaded walks sections that clients have loaded.
func (l *loader) readLoaded(kind string, list []loadedSection) {
	root := &scope{loader: l}
	sb := rootSection.sub(kind)
	for i := range list {
		s := &list[i]
		l.vici.cur = s
		t := l.vici.tree(s.m, s.name, kind+"."+s.name, 0)
		to := sb.scope(root, t)
		if c := to.conn; c != nil {
			c.DPDDelay, c.KeyingTries = 0, viciKeyingTries
		}
		l.walk(sb.sec, t, to)
		if c := to.conn; c != nil && c.ReauthTime > 0 && t.get("rekey_time") == nil {
			c.RekeyTime = 0
		}
	}
}

// finishLoaded fills in defaults and looks for contradictions, as check does for a file, in what
// was loaded, and between that and the file.
func (l *loader) finishLoaded(file *Config, parts []*part) {
	c := l.cfg
	l.loadSecrets()
	l.loadPools(file)
	l.loadTrust()
	for _, p := range parts {
		if p.new() {
			l.finishPart(file.read.memo, p)
		}
		l.add(p)
	}
	for _, conn := range l.conns {
		if file.Conn(conn.Name) != nil {
			l.problem(conn.t.key, "give one of the two another name", "the file has a connection %s as well", conn.Name)
		}
		if conn.Name == ManualConn && len(c.Manual) > 0 {
			l.problem(conn.t.key, "give it another name", "connection %s has the name that stands for all manual SAs, which the file has", conn.Name)
		}
	}
	c.IKE.Conns = append(slices.Clip(file.IKE.Conns), c.IKE.Conns...)
	c.marks = append(slices.Clip(file.marks), c.marks...)
	if len(l.problems) > 0 {
		return
	}
	// What comes first takes the packets: strongSwan lets people write that, so that it is no
	// reason to refuse what was loaded.
	l.soft = true
	l.conns = append(slices.Clip(file.read.conns), l.conns...)
	l.checkOrder()
	l.checkTableOrder()
	l.soft = false
}

// quietActions takes back actions that would have to call a peer which nobody can call: with
// strongSwan they do nothing, and gateways have them.
func (l *loader) quietActions(c *child) {
	calls := callable(c.conn.Conn)
	if n := c.t.get("start_action"); n != nil && !n.bad && c.StartAction != ike.StartNone &&
		(!calls || len(c.conn.Pools) > 0 && slices.ContainsFunc(c.RemoteTS, isDynamic)) {
		l.warn(n.at, "leave it out", "start_action %s does nothing: connection %s does not call its peer", n.text, c.conn.Name)
		c.StartAction, n.text = ike.StartNone, startWords[ike.StartNone]
	}
	if calls && len(c.conn.Pools) == 0 {
		return
	}
	for _, a := range []struct {
		name string
		to   *ike.PeerAction
	}{{"dpd_action", &c.DPDAction}, {"close_action", &c.CloseAction}} {
		if n := c.t.get(a.name); n != nil && !n.bad && *a.to != ike.ActionClear {
			l.warn(n.at, "leave it out", "%s %s does nothing: connection %s does not call its peer", a.name, n.text, c.conn.Name)
			*a.to, n.text = ike.ActionClear, peerWords[ike.ActionClear]
		}
	}
}

// loadPools adds the pools to those of the file.
func (l *loader) loadPools(file *Config) {
	all := slices.Clip(l.cfg.IKE.Pools)
	for _, p := range l.pools {
		if slices.ContainsFunc(file.read.pools, func(o *poolTable) bool { return o.Name == p.Name }) {
			l.problem(p.t.key, "give one of the two another name", "the file has a pool %s as well", p.Name)
		}
		if len(all) == maxPools {
			l.problem(p.t.key, "join some: a pool can have several ranges", "%d pools are too many", maxPools+1)
			break
		}
		l.checkPool(p)
		all = append(all, *p.Pool)
	}
	l.cfg.IKE.Pools = all
}

// loadSecrets adds the shared secrets to those of the file.
func (l *loader) loadSecrets() {
	secrets, ppks := slices.Clip(l.cfg.IKE.Secrets), slices.Clip(l.cfg.IKE.PPKs)
	for i := range l.vici.loaded.shared {
		s := &l.vici.loaded.shared[i]
		at := l.vici.place("secrets." + shown(s.name()))
		switch s.kind {
		case sharedIKE:
			secret := ike.Secret{Name: s.name(), Key: s.key, Any: true, IDs: s.ids}
			if len(s.key) < minSecretLen {
				l.warn(at, `"postern psk" makes a good one`, "the key is only %d octets long and can be guessed; use %d or more", len(s.key), minSecretLen)
			}
			secrets = append(secrets, secret)
		case sharedPPK:
			for _, o := range s.owners {
				id, err := ike.ParsePPKID(o)
				if err != nil {
					continue // LoadShared has seen to it
				}
				if slices.ContainsFunc(ppks, func(p ike.PPK) bool { return p.ID == id }) {
					l.problem(at, "give one of the two another id", "there is a ppk with the id %s already", shown(o))
					continue
				}
				ppks = append(ppks, ike.PPK{ID: id, Key: s.key})
			}
		default:
			l.warn(at, "take it out", "nothing here uses a secret for EAP or XAuth")
		}
	}
	l.cfg.IKE.Secrets, l.cfg.IKE.PPKs = secrets, ppks
}

// name is how a secret is called in messages for people, which are never to show the key.
func (s *loadedShared) name() string {
	switch {
	case s.id != "":
		return clipName(s.id)
	case len(s.owners) > 0:
		return clipName(strings.Join(s.owners, ","))
	}
	return "any"
}

// dialect is how VICI says what the schema knows: all values are texts, some keys differ from
// those of the file, and so do some defaults.
type dialect struct {
	l      *loader
	loaded *Loaded
	cur    *loadedSection // that is walked
	number int            // of its part

	fileAuthorities []*authority
}

// place makes a place of the name of an element.
func (d *dialect) place(path string) pos {
	d.l.cfg.elements = append(d.l.cfg.elements, path)
	return pos{-len(d.l.cfg.elements), d.number}
}

// viciKeyingTries is strongSwan's default, see defaultKeyingTries.
const viciKeyingTries = 1

// maxTreeDepth is more than any section of the schema needs.
const maxTreeDepth = 4

// tree makes a table of a message, as toml.go makes one of a file. What is empty is left out: VICI's
// clients send it for what nobody has set.
func (d *dialect) tree(m *control.Message, name, path string, depth int) *node {
	t := newTable(name, d.place(path), byHeader)
	for _, e := range m.Elements() {
		here := path + "." + shown(clipName(e.Name))
		if e.Kind == control.KindSection && depth == maxTreeDepth {
			d.l.problem(d.place(here), "", "sections are nested deeper than anything here")
			continue
		}
		if e.Kind != control.KindSection {
			e.Name = strings.ToLower(e.Name) // strongSwan takes keys either way
		}
		if t.get(e.Name) != nil {
			d.l.problem(d.place(here), "keep one of the two", "it is there twice")
			continue
		}
		switch e.Kind {
		case control.KindSection:
			t.add(d.tree(e.Section, e.Name, here, depth+1))
		case control.KindValue:
			if e.Value != "" {
				at := d.place(here)
				t.add(&node{kind: kindString, name: e.Name, key: at, at: at, text: e.Value})
			}
		case control.KindList:
			at := d.place(here)
			n := &node{kind: kindList, name: e.Name, key: at, at: at}
			for _, item := range e.Items {
				if item != "" {
					n.list = append(n.list, &node{kind: kindString, at: at, text: item})
				}
			}
			if len(n.list) > 0 {
				t.add(n)
			}
		}
	}
	return t
}

// aData is a list of certificates or keys, in which commas mean nothing.
var aData = &typ{[]kind{kindList}, "a list"}

// switchWords are the texts that VICI takes for yes and no.
var switchWords = map[string]string{"yes": "true", "true": "true", "enabled": "true", "1": "true",
	"no": "false", "false": "false", "disabled": "false", "0": "false"}

// coerce makes of a text what a key of that type has in a file. It returns false, and says why, if
// it cannot.
func (d *dialect) coerce(n *node, t *typ) bool {
	if t.takes(kindList) {
		if n.kind == kindString {
			if n.list = []*node{{kind: kindString, at: n.at, text: n.text}}; t != aData {
				n.list = split(n)
			}
			n.kind = kindList
		}
		return true
	}
	if n.kind == kindList && len(n.list) == 1 {
		n.kind, n.text, n.list = kindString, n.list[0].text, nil
	}
	if n.kind != kindString {
		d.l.wrongKind(n, "%s must be one value", n.name)
		return false
	}
	if t.takes(kindBool) {
		if w, ok := switchWords[strings.ToLower(n.text)]; ok {
			n.kind, n.text = kindBool, w
			return true
		}
	}
	if t.takes(kindString) && !t.takes(kindInteger) {
		if t.takes(kindBool) {
			return true // a word beside yes and no
		}
		return true
	}
	switch {
	case t.takes(kindInteger):
		if v, err := strconv.ParseInt(n.text, 0, 64); err == nil {
			n.kind, n.text = kindInteger, strconv.FormatInt(v, 10)
			return true
		}
		if t == aDuration || t == aVolume {
			// strongSwan takes capitals and blanks before the unit.
			n.text = strings.ReplaceAll(strings.ToLower(n.text), " ", "")
			return true
		}
		if t.takes(kindString) {
			return true
		}
		if t.takes(kindFloat) {
			if _, err := strconv.ParseFloat(n.text, 64); err == nil {
				n.kind = kindFloat
				return true
			}
		}
		d.l.problem(n.at, "write a number", "%s %s is no number", n.name, strconv.Quote(clipName(n.text)))
	default:
		d.l.problem(n.at, "write yes or no", "%s %s is neither yes nor no", n.name, strconv.Quote(clipName(n.text)))
	}
	n.bad = true
	return false
}

// split makes a list of a text with commas. Those in brackets, as names in certificates
// have them, do not matter here: such names are never in lists.
func split(n *node) (list []*node) {
	for _, s := range strings.Split(n.text, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, &node{kind: kindString, at: n.at, text: s})
		}
	}
	return list
}

// walk reads one element of a section, and returns false to leave it to the schema of the file.
func (d *dialect) walk(sec *section, n *node, s *scope) bool {
	if d.rounds(sec, n, s) {
		return true
	}
	if n.kind == kindTable || n.kind == kindTables {
		return false
	}
	if sec == poolSection && strings.Trim(n.name, "0123456789") == "" {
		n.bad = true
		d.l.problem(n.at, "take it out", "attribute %s cannot be honoured: only those that have names here are given to clients", n.name)
		return true
	}
	k := viciKeys[sec.path].find(n.name)
	if k == nil {
		if k = sec.key(n.name); k == nil {
			return false
		}
	}
	if k.typ != nil && !d.coerce(n, k.typ) {
		return true
	}
	before := len(d.l.problems)
	k.set(s, n)
	if len(d.l.problems) > before {
		n.bad = true
	}
	return true
}
