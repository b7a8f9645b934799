package config

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"postern/ike"
	"postern/ike/pki"
)

// Credentials that clients have loaded, and what connections of theirs make of them. They are for
// all of these, and may come before or after them: which key goes with which certificate, and which
// certificate with which connection, is found out each time anew.

// viciCerts hands on the certificates of a list, which LoadConn has parsed.
func (s *scope) viciCerts(n *node, take func(c *pki.Cert)) {
	for _, e := range n.list {
		list := s.vici.cur.certs[e.text]
		if len(list) == 0 {
			s.problem(e.at, "", "%s holds no certificate", n.name)
			continue
		}
		for _, c := range list {
			take(c)
		}
	}
}

// viciRoundCerts reads the certificates of a round: ours, of which the one whose key was loaded is
// used, or those of which the peer must have one.
func (s *scope) viciRoundCerts(n *node) {
	p := s.peer
	s.viciCerts(n, func(c *pki.Cert) {
		switch {
		case p.side == peersSide:
			p.auth.Pinned = append(p.auth.Pinned, c)
		case c.IsCA() && !c.SelfSigned():
			p.chain = append(p.chain, c)
			s.intermediates = append(s.intermediates, c)
		case c.IsCA():
		default:
			p.auth.Certs = append(p.auth.Certs, c)
		}
	})
}

// viciCACert reads the certificate of an authority, or the file that it is in.
func (s *scope) viciCACert(n *node) {
	list := s.vici.cur.certs[n.text]
	switch {
	case len(list) != 1:
		s.problem(n.at, "give each CA an authority of its own", "%s holds %d certificates", n.name, len(list))
	case s.authority.Cert != nil:
		s.problem(n.at, "keep one of the two", "there are cacert and file")
	default:
		s.authority.Cert = list[0]
	}
}

func (s *scope) viciPubkeys(n *node) {
	for _, e := range n.list {
		if k := s.vici.cur.keys[e.text]; k != nil {
			s.peer.auth.Keys = append(s.peer.auth.Keys, k)
		} else {
			s.problem(e.at, "", "%s holds no public key", n.name)
		}
	}
}

// certSection reads a section cert… or cacert…: a certificate by its file.
func (d *dialect) certSection(n *node, s *scope) {
	ca := strings.HasPrefix(n.name, "cacert")
	for _, e := range n.entries {
		switch e.name {
		case "file":
			if !d.coerce(e, aText) {
				continue
			}
			list := d.cur.certs[e.text] // of LoadConn
			switch {
			case len(list) == 0:
				d.l.problem(e.at, "", "%s names no certificate", e.name)
			case ca:
				s.peer.auth.Anchors = append(s.peer.auth.Anchors, list...)
			case s.peer.side == peersSide:
				s.peer.auth.Pinned = append(s.peer.auth.Pinned, list...)
			default:
				s.peer.auth.Certs = append(s.peer.auth.Certs, list[0])
				s.peer.chain = append(s.peer.chain, list[1:]...)
				s.intermediates = append(s.intermediates, list[1:]...)
			}
		case "handle", "slot", "module":
			d.l.problem(e.at, "name the certificate in certs", "%s cannot be honoured: %s", e.name, noToken)
		default:
			d.l.problem(e.key, "there is file", "unknown key %s", shown(clipName(e.name)))
		}
	}
}

// rounds reads a section of local… or remote…, of which there is one for each round, or a section
// in one of these. It returns false for whatever is none.
func (d *dialect) rounds(sec *section, n *node, s *scope) bool {
	if n.kind != kindTable {
		return false
	}
	if sec == localSection || sec == remoteSection {
		if strings.HasPrefix(n.name, "cert") || sec == remoteSection && strings.HasPrefix(n.name, "cacert") {
			d.certSection(n, s)
			return true
		}
		return false
	}
	if sec != connSection {
		return false
	}
	side, to := ourSide, localSection
	switch {
	case strings.HasPrefix(n.name, "local"):
	case strings.HasPrefix(n.name, "remote"):
		side, to = peersSide, remoteSection
	default:
		return false
	}
	i := d.roundIndex(s.conn.t, n, to.name())
	if i >= ike.MaxRounds {
		d.l.problem(n.key, "join some", "more than %d rounds of authentication", ike.MaxRounds)
		return true
	}
	ps := s.openRound(n, side, i)
	ps.peer.side = side
	ps.peer.auth.Kind = ike.AuthKindPubkey // strongSwan's default
	d.l.walk(to, n, ps)
	return true
}

func (sec *section) name() string { return sec.path[strings.LastIndexByte(sec.path, '.')+1:] }

// roundIndex returns the place of a round among those of its side: by its number, and then in the
// order of the message.
func (d *dialect) roundIndex(conn, n *node, side string) (i int) {
	before := true
	for _, e := range conn.entries {
		switch {
		case e == n:
			before = false
		case e.kind != kindTable || !strings.HasPrefix(e.name, side):
		case roundNumber(e) < roundNumber(n), before && roundNumber(e) == roundNumber(n):
			i++
		}
	}
	return i
}

func roundNumber(t *node) int {
	n := t.get("round")
	if n == nil {
		return 0
	}
	v := 0
	for _, c := range n.text {
		if c < '0' || c > '9' || v > 1<<24 {
			return 0 // the walk says what is wrong with it
		}
		v = v*10 + int(c-'0')
	}
	return v
}

// findCreds finds the key and certificate of each round of ours, and the certificates that the
// peer's may be beside those of CAs. What is missing is no error here: it may come yet, and until
// then who initiates is told.
func (d *dialect) findCreds(c *conn) {
	if c.locals[0].t == nil {
		c.locals[0].auth.Kind = ike.AuthKindPubkey
	}
	if c.remotes[0].t == nil {
		c.remotes[0].auth.Kind = c.locals[0].auth.Kind
	}
	for i := range c.locals {
		if p := &c.locals[i]; (p.t != nil || i == 0) && p.auth.Kind == ike.AuthKindPubkey {
			d.findOwn(c, p)
		}
	}
	for i := range c.remotes {
		a := &c.remotes[i].auth
		if t := c.remotes[i].t; t != nil && len(a.Keys) > 0 && (a.CA != ike.ID{} || len(a.Policies) > 0) {
			d.l.problem(where(t, "pubkeys"), "take pubkeys out, or ca_id and cert_policy", "a public key by itself has no CA and no policies")
		}
		if c.remotes[i].t == nil || a.Kind != ike.AuthKindPubkey || len(a.Anchors)+len(a.Pinned)+len(a.Keys) > 0 {
			continue
		}
		id := *c.remotes[i].id
		if id == (ike.ID{}) || id.IsPattern() {
			continue
		}
		for _, l := range d.loaded.certs {
			if l.flag == certPlain && !l.IsCA() && l.Confirms(uint8(id.Type), []byte(id.Data)) == nil && d.ownKey(l.Cert) == nil {
				a.Known = append(a.Known, l.Cert)
			}
		}
	}
}

// ownKey returns the private key that goes with a certificate, nil if none was loaded.
func (d *dialect) ownKey(c *pki.Cert) *pki.Key {
	pub, err := c.Public()
	if err != nil {
		return nil
	}
	return d.loaded.keyFor(pub)
}

func (d *dialect) findOwn(c *conn, p *peer) {
	a := &p.auth
	id := ike.ID{}
	if p.id != nil {
		id = *p.id
	}
	switch {
	case len(a.Certs) > 0:
		i := slices.IndexFunc(a.Certs, func(c *pki.Cert) bool { return d.ownKey(c) != nil })
		a.Certs = []*pki.Cert{a.Certs[max(i, 0)]}
		a.Key = d.ownKey(a.Certs[0])
	case len(a.Keys) > 0:
		for _, k := range a.Keys {
			if a.Key = d.loaded.keyFor(k); a.Key != nil {
				a.Keys = []*pki.PublicKey{k}
				break
			}
		}
	default:
		for _, l := range d.loaded.certs {
			key := d.ownKey(l.Cert)
			if key == nil || id != (ike.ID{}) && l.Confirms(uint8(id.Type), []byte(id.Data)) != nil || a.Scheme.Key != "" && !strings.HasPrefix(key.Public().String(), a.Scheme.Key) {
				continue
			}
			a.Certs, a.Key = []*pki.Cert{l.Cert}, key
			break
		}
	}
	if a.Key != nil && p.t != nil {
		p.key = p.t
	}
	if len(a.Certs) == 0 || id == (ike.ID{}) {
		return
	}
	if err := a.Certs[0].Confirms(uint8(id.Type), []byte(id.Data)); err != nil {
		d.l.warn(where(p.t, "id"), "write a name that the certificate has", "our certificate does not prove the id %s, and its subject %s is used instead: %v", id, a.Certs[0].Subject(), err)
		*p.id = ike.ID{}
	}
}

// loadTrust makes of the CAs and authorities that were loaded, and of those of the file, what the
// machine trusts.
func (l *loader) loadTrust() {
	now := time.Now()
	var list []pki.Authority
	place := map[int]pos{}
	add := func(a pki.Authority, at pos) {
		i := slices.IndexFunc(list, func(o pki.Authority) bool { return o.Cert.Equal(a.Cert) })
		if i < 0 {
			place[len(list)] = at
			list = append(list, a)
			return
		}
		o := &list[i]
		o.CRLURIs = union(o.CRLURIs, a.CRLURIs)
		o.OCSPURIs = union(o.OCSPURIs, a.OCSPURIs)
		o.CRLs = append(slices.Clip(o.CRLs), a.CRLs...)
	}
	for i, a := range l.authorities {
		loaded := i >= len(l.vici.fileAuthorities)
		if a.Cert == nil {
			if loaded && good(a.t, "cacert", "file") {
				l.problem(a.t.key, "send its certificate in cacert", "the authority %s has no cacert", a.t.name)
			}
			continue
		}
		if loaded {
			if _, err := pki.NewTrust([]pki.Authority{a.Authority}, nil); err != nil {
				l.problem(a.t.key, "", "the authority %s cannot be used: %v", a.t.name, err)
				continue
			}
			if slices.ContainsFunc(l.vici.fileAuthorities, func(o *authority) bool { return o.t.name == a.t.name }) {
				l.problem(a.t.key, "give one of the two another name", "the file has an authority %s as well", a.t.name)
			}
			l.checkAuthority(a, now)
		}
		add(a.Authority, a.t.key)
	}
	for _, c := range l.vici.loaded.certs {
		switch {
		case c.flag == certCA:
			add(pki.Authority{Cert: c.Cert}, pos{})
		case c.IsCA():
			l.intermediates = append(l.intermediates, c.Cert)
		}
	}
	for _, crl := range l.vici.loaded.crls {
		i := slices.IndexFunc(list, func(a pki.Authority) bool { return bytes.Equal(a.Cert.RawSubject(), crl.RawIssuer()) })
		if i < 0 && len(list) > 0 {
			i = 0 // of an intermediate CA: whose list counts is what its issuer says
		}
		if i >= 0 {
			list[i].CRLs = append(slices.Clip(list[i].CRLs), crl)
		}
	}
	if len(list) == 0 && len(l.intermediates) == 0 {
		return
	}
	for _, a := range list {
		l.floor([]*pki.Cert{a.Cert})
	}
	trust, err := pki.NewTrust(list, l.intermediates)
	if err != nil {
		l.problem(place[len(list)-1], "", "the authorities cannot be used: %v", err)
		return
	}
	l.cfg.IKE.Trust = trust
}

// union returns both lists without repetitions, at most maxURIs.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) && len(out) < maxURIs {
			out = append(out, s)
		}
	}
	return out
}
