package config

import "postern/ike"

// ppk is a post-quantum pre-shared key while it is read.
type ppk struct {
	ike.PPK
	name string
	t    *node
}

// minPPKLen is the length of keys with the 256 bits that RFC 8784 section 6 asks for: half of
// them remain against a quantum computer.
const minPPKLen = 32

// anyPPK is the ppk_id of a connection whose peers may each have a PPK of their own.
const anyPPK = "%any"

var ppkSection = &section{
	path: "ppks.NAME",
	doc:  "a post-quantum pre-shared key (RFC 8784): mixed into the keys of the tunnels, so that who records them and has a quantum computer one day still lacks it",
	keys: []key{
		{"id", aText, `by what name both sides know it, or "opaque:NAME" for a PPK_ID of type 1; NAME of the section`,
			func(s *scope, n *node) { s.ppkID(n, &s.ppk.ID) }},
		{"secret", aText, `the key, written as in [secrets.NAME]; 32 octets or more, by chance: "postern psk" makes a good one`,
			func(s *scope, n *node) {
				s.exposedKey(n)
				s.ppkKey(n, []byte(n.text))
				n.text = ""
			}},
		{"secret_file", aText, `or the file that holds it, with mode 600; relative to the configuration`,
			func(s *scope, n *node) {
				if data, ok := s.secretFile(n); ok {
					s.ppkKey(n, data)
				}
			}},
	},
}

// ppkKeys are the keys of a connection that are about its PPK.
var ppkKeys = []key{
	{"ppk_id", aText, `the post-quantum pre-shared key to use, by the id of one in [ppks.NAME]; "%any": whichever of them a peer that calls us has; none`,
		func(s *scope, n *node) {
			if s.conn.PPKAny = n.text == anyPPK; !s.conn.PPKAny {
				s.ppkID(n, &s.conn.PPK)
			}
		}},
	{"ppk_required", aSwitch, `no tunnel without it; else both sides go on without one where the peer does not have it; false`,
		func(s *scope, n *node) { s.boolean(n, &s.conn.PPKRequired) }},
}

func (s *scope) openPPK(n *node) *scope {
	p := &ppk{t: n, name: n.name, PPK: ike.PPK{ID: ike.PPKID{Type: ike.PPKIDFixed, Data: n.name}}}
	s.ppks = append(s.ppks, p)
	return &scope{loader: s.loader, ppk: p}
}

func (s *scope) ppkID(n *node, to *ike.PPKID) {
	id, err := ike.ParsePPKID(n.text)
	if err != nil || n.text == anyPPK {
		s.problem(n.at, `write 1 to 255 letters and digits, such as "site-a"`, "%q is no name of a post-quantum pre-shared key", n.text)
		return
	}
	*to = id
}

func (s *scope) ppkKey(n *node, text []byte) {
	key := s.decoded(n, text)
	if len(key) > 0 && len(key) < minPPKLen {
		s.warn(n.at, `"postern psk" makes a good one`, "the post-quantum pre-shared key is only %d octets long; RFC 8784 asks for 256 bits, which are %d",
			len(key), minPPKLen)
	}
	s.ppk.Key = key
}

// checkPPKs notes PPKs without a key or with the same name, and connections whose PPK is not there.
func (l *loader) checkPPKs() {
	allGood := true
	byID := make(map[ike.PPKID]*ppk)
	for _, p := range l.ppks {
		inline, file := p.t.get("secret"), p.t.get("secret_file")
		switch {
		case p.t.bad || !good(p.t, "id"):
			allGood = false
			continue
		case inline == nil && file == nil:
			l.problem(p.t.key, `write secret = "…" or secret_file = "…"`, "ppk %s has no key", p.name)
		case inline != nil && file != nil:
			l.problem(file.key, "keep one of the two", "ppk %s has both secret and secret_file", p.name)
		}
		if other := byID[p.ID]; other != nil {
			l.problem(where(p.t, "id"), "keep one of the two, or give them different ids", "ppks %s and %s (line %d) have the same id",
				p.name, other.name, other.t.key.line)
			continue
		}
		byID[p.ID] = p
	}
	used := make(map[ike.PPKID]bool)
	for _, c := range l.conns {
		if c.t.bad || !good(c.t, "ppk_id", "ppk_required") {
			allGood = false
			continue
		}
		at := where(c.t, "ppk_id")
		used[c.PPK] = true
		switch {
		case c.PPKAny && len(l.ppks) == 0:
			l.problem(at, "add a section [ppks.NAME] for each peer", "there are no ppks for the peers of connection %s", c.Name)
		case c.PPKAny && c.PPKRequired && c.initiates():
			l.problem(at, "name the one of the peer that is called", "connection %s calls its peer, and ppk_required cannot be met: ppk_id is %q", c.Name, anyPPK)
		case c.PPKAny:
			for id := range byID {
				used[id] = true
			}
		case c.PPK != (ike.PPKID{}) && byID[c.PPK] == nil && allGood:
			l.problem(at, "add a section [ppks.NAME] with that id and the key", "no ppk has the id %q of connection %s", c.PPK, c.Name)
		case c.PPK == (ike.PPKID{}) && c.PPKRequired:
			l.problem(where(c.t, "ppk_required"), `write ppk_id = "…", or ppk_id = "%any" if each peer has its own`, "connection %s requires a ppk and has no ppk_id", c.Name)
		}
	}
	for _, p := range l.ppks {
		if allGood && !used[p.ID] && len(l.conns) > 0 {
			l.warn(where(p.t, "id"), "compare its id with the ppk_id of the connections", "no connection uses ppk %s", p.name)
		}
	}
}
