package config

import (
	"errors"
	"slices"
	"strings"
	"time"

	"postern/ike"
	"postern/ike/pki"
)

// How the two sides prove who they are: the sections [….local] and [….remote], and those of
// further rounds behind them.

// expirySoon is how long before the end of a certificate of ours it is worth a warning.
const expirySoon = 30 * 24 * time.Hour

// peer is one of these sections: a round of one side.
type peer struct {
	t     *node // nil if the file does not have the section
	id    *ike.ID
	auth  ike.Auth
	chain []*pki.Cert // what comes with a certificate of ours
	key   *node
	side  authSide // of one that a client has loaded
}

// rounds are the sections of one side, as far as the file has them.
type rounds [ike.MaxRounds]peer

// authSide says which side of a connection a section is of.
type authSide uint8

const (
	ourSide authSide = iota
	peersSide
)

// authSubs are the sections of the rounds after the first.
func authSubs() (subs []sub) {
	for _, side := range []struct {
		name  string
		first *section
		which authSide
	}{{"local", localSection, ourSide}, {"remote", remoteSection, peersSide}} {
		for i := 1; i < ike.MaxRounds; i++ {
			name := side.name + "-" + string(rune('1'+i))
			sec := &section{path: "connections.NAME." + name, rare: true, doc: "another round of authentication, after that of [connections.NAME." + side.name + "] (RFC 4739)",
				keys: slices.Clone(side.first.keys)}
			for k := range sec.keys {
				if sec.keys[k].name == "id" {
					sec.keys[k].doc = "the identity of this round; " + map[authSide]string{ourSide: "as in the first one", peersSide: "any that proves itself"}[side.which]
				}
			}
			subs = append(subs, sub{name: name, sec: sec, open: func(s *scope, n *node) *scope { return s.openRound(n, side.which, i) }})
		}
	}
	return subs
}

func (s *scope) openRound(n *node, side authSide, i int) *scope {
	p := &s.conn.rounds(side)[i]
	p.t = n
	if p.id == nil {
		p.id = &p.auth.ID
	}
	return &scope{loader: s.loader, conn: s.conn, peer: p}
}

func (c *conn) rounds(side authSide) *rounds {
	if side == ourSide {
		return c.locals
	}
	return c.remotes
}

var (
	revocationWords = []string{pki.RevokeRelaxed: "relaxed", pki.RevokeIfURI: "ifuri", pki.RevokeStrict: "strict", pki.RevokeOff: "off"}
	sendCertWords   = []string{ike.SendCertIfAsked: "ifasked", ike.SendCertAlways: "always", ike.SendCertNever: "never"}

	authKey = key{"auth", aText, `"psk", a pre-shared key; "pubkey", a signature; or of one kind only: "rsa", "rsa/pss", "ecdsa", "ed25519"; with hashes behind it nothing else is taken: "pubkey-sha256-sha384"; "pubkey" where a key or certificate is named, else "psk"`,
		(*scope).authMethod}

	localKeys = []key{
		authKey,
		{"id", aText, `our identity: an address, "name.example", "user@example", "C=CH, O=plant, CN=gw" or "keyid:…"; the subject of our certificate, or else our address`,
			func(s *scope, n *node) { s.identity(n, s.peer.id) }},
		{"certs", aList, `files with our certificate, first, and those that lead from it to the CA, PEM or DER; relative to the configuration`,
			(*scope).ownCerts},
		{"key", aText, `the file with the private key for it, PEM or DER (PKCS#8, PKCS#1, SEC 1), with mode 600`,
			(*scope).ownKey},
		{"pubkeys", aList, `instead of certs, the file with the public key: the peer has to have it, too`,
			(*scope).pubkeys},
	}
	remoteKeys = []key{
		authKey,
		{"id", aText, `the peer's identity, or a pattern: "*.example", "*@example", "C=CH, O=plant, CN=*"; any that proves itself`,
			func(s *scope, n *node) { s.identity(n, s.peer.id) }},
		{"cacerts", aList, `files with CA certificates to which the peer's must lead, beside those of [authorities] which count if there are none here; PEM or DER`,
			func(s *scope, n *node) { s.peer.auth.Anchors = append(s.peer.auth.Anchors, s.certFiles(n)...) }},
		{"certs", aList, `files with the peer's certificate itself: no other is accepted, and no CA is needed; PEM or DER`,
			func(s *scope, n *node) { s.peer.auth.Pinned = append(s.peer.auth.Pinned, s.certFiles(n)...) }},
		{"pubkeys", aList, `files with the peer's public key, PEM or DER: no certificate is needed (RFC 7670)`,
			(*scope).pubkeys},
		{"revocation", aText, `whether the peer's certificate was revoked, by CRL or OCSP: "strict": refuse it unless it is known to be good; "ifuri": so if it says where to ask; "relaxed": refuse it if it is known to be revoked; "off": do not look; "relaxed"`,
			func(s *scope, n *node) {
				s.word(n, revocationWords, func(i int) { s.peer.auth.Revocation = pki.Revocation(i) })
			}},
	}
)

// authMethod reads how a side proves who it is, in strongSwan's notation.
func (s *scope) authMethod(n *node) {
	a := &s.peer.auth
	words := strings.Split(n.text, "-")
	a.Kind = ike.AuthKindPubkey
	switch words[0] {
	case "psk":
		a.Kind = ike.AuthKindPSK
	case "pubkey":
	case "rsa":
		a.Scheme.Key = "RSA"
	case "rsa/pss":
		a.Scheme.Key, a.Scheme.PSS = "RSA", true
	case "ecdsa":
		a.Scheme.Key = "ECDSA"
	case "ed25519":
		a.Scheme.Key = "Ed25519"
	default:
		s.problem(n.at, `use "psk", "pubkey", "rsa", "rsa/pss", "ecdsa" or "ed25519"`, "auth %q is not known", n.text)
		return
	}
	for _, w := range words[1:] {
		h := slices.IndexFunc(pki.Hashes(), func(h pki.Hash) bool { return h.String() == w })
		if h < 0 || a.Kind == ike.AuthKindPSK {
			s.problem(n.at, `write hashes behind it so: "pubkey-sha256-sha384"`, "auth %q is not known: %q", n.text, w)
			return
		}
		a.Scheme.Hashes = append(a.Scheme.Hashes, pki.Hashes()[h])
	}
}

// eachFile reads the files of a list, of at most that many octets each, and hands them to take,
// whose error says why one holds no such thing.
func (s *scope) eachFile(n *node, most int, what string, take func(e *node, data []byte) error) {
	for _, e := range s.texts(n) {
		if data, ok := s.publicFile(e, e.text, most); ok {
			if err := take(e, data); err != nil {
				s.problem(e.at, "name a file with a "+what+", in PEM or DER", "%s holds no %s: %v", shownPath(e.text), what, err)
			}
		}
	}
}

// certFiles reads the certificates of a list of files.
func (s *scope) certFiles(n *node) (list []*pki.Cert) {
	s.eachFile(n, maxCertFile, "certificate", func(_ *node, data []byte) error {
		certs, err := pki.ParseCerts(data)
		list = append(list, certs...)
		return err
	})
	return list
}

// ownCerts reads our certificate and those that lead from it to the CA.
func (s *scope) ownCerts(n *node) {
	list := s.certFiles(n)
	if len(list) == 0 {
		return
	}
	if list[0].IsCA() && len(list) > 1 {
		s.problem(n.at, "put our own certificate first", "the first certificate of certs, %s, is that of a CA", list[0].Subject())
		return
	}
	s.peer.auth.Certs = list[:1]
	for _, c := range list[1:] {
		if !c.SelfSigned() {
			s.peer.chain = append(s.peer.chain, c)
		}
	}
	s.intermediates = append(s.intermediates, s.peer.chain...)
}

// ownKey reads our private key.
func (s *scope) ownKey(n *node) {
	s.peer.key = n
	data, ok := s.secretData(n, maxKeyFile)
	if !ok {
		return
	}
	defer clear(data)
	key, err := pki.ParseKey(data, nil)
	if err != nil {
		hint := "name the file with the private key, in PEM or DER"
		if errors.Is(err, pki.ErrPassphrase) {
			hint = "take the passphrase off (openssl pkey -in FILE -out NEW); the file's mode protects it"
		}
		s.problem(n.at, hint, "the file that key names holds no usable private key: %v", err)
		return
	}
	s.peer.auth.Key = key
}

// maxKeyFile bounds the file of a private key: one of RSA with 8192 bits has 6 KiB.
const maxKeyFile = 16 << 10

// secretData reads the file that n names, which nobody else must be able to read.
func (s *scope) secretData(n *node, most int) ([]byte, bool) {
	read := s.readKey
	if read == nil {
		read = readPrivateFile
	}
	data, err := read(s.inFolder(n.text), most)
	if err != nil {
		s.unreadableKey(n, err)
	}
	return data, err == nil
}

// pubkeys reads public keys.
func (s *scope) pubkeys(n *node) {
	s.eachFile(n, maxCertFile, "public key", func(_ *node, data []byte) error {
		key, err := pki.ParsePublicKey(data)
		if err == nil {
			s.peer.auth.Keys = append(s.peer.auth.Keys, key)
		}
		return err
	})
}

// finishAuth puts the rounds of a connection together, after finishTrust.
func (l *loader) finishAuth(c *conn) {
	c.LocalAuth = l.finishSide(c, ourSide)
	c.RemoteAuth = l.finishSide(c, peersSide)
}

// finishSide puts the rounds of one side together; none, if it is one of PSK.
func (l *loader) finishSide(c *conn, side authSide) (list []ike.Auth) {
	all := c.rounds(side)
	for i := range all {
		p := &all[i]
		if i > 0 && p.t == nil {
			continue
		}
		if i > 1 && all[i-1].t == nil {
			l.problem(p.t.key, "number the rounds 2, 3 without a gap", "the section before %s is missing", shown(p.t.name))
		}
		a := &p.auth
		if p.t != nil {
			if p.t.get("auth") == nil && (a.Key != nil || p.key != nil || len(a.Certs)+len(a.Keys)+len(a.Pinned)+len(a.Anchors) > 0) {
				a.Kind = ike.AuthKindPubkey
			}
			if !p.t.bad && !l.broken {
				l.checkRound(c, p, side, i)
			}
		}
		if side == ourSide {
			a.Keys = nil
			if len(a.Certs) > 0 {
				more := l.cfg.IKE.Trust.Issuing(a.Certs[0])
				if len(more) == 0 {
					more = p.chain
				}
				a.Certs = append(a.Certs, more...)
			}
			l.floor(a.Certs)
		}
		l.floor(a.Anchors)
		list = append(list, *a)
	}
	if len(list) == 1 && list[0].Kind == ike.AuthKindPSK {
		return nil
	}
	return list
}

// floor raises the time that has surely passed to when the certificates were made.
func (l *loader) floor(certs []*pki.Cert) {
	for _, c := range certs {
		if t := c.NotBefore(); t.After(l.cfg.IKE.Floor) {
			l.cfg.IKE.Floor = t
		}
	}
}

// checkRound notes what is missing in a round, and what does not fit together.
func (l *loader) checkRound(c *conn, p *peer, side authSide, i int) {
	a, t := &p.auth, p.t
	if !good(t, "auth") {
		return
	}
	if a.Kind == ike.AuthKindPSK {
		for _, name := range []string{"certs", "key", "pubkeys", "cacerts", "revocation", "ca_id", "cert_policy"} {
			if n := t.get(name); n != nil {
				l.problem(n.key, `take it out, or write auth = "pubkey"`, "%s has no meaning with auth \"psk\"", name)
			}
		}
		return
	}
	if side == ourSide {
		l.checkOwn(p, i)
		return
	}
	if !good(t, "cacerts", "certs", "pubkeys") {
		return
	}
	if len(a.Anchors)+len(a.Pinned)+len(a.Keys) == 0 && len(l.cfg.IKE.Trust.KeyIDs()) == 0 && l.vici == nil {
		l.problem(t.key, "name the file of the CA in cacerts, or in a section [authorities.NAME]", "nothing says whom the peer's certificate may come from")
	}
	for _, x := range a.Anchors {
		if !x.IsCA() {
			l.problem(where(t, "cacerts"), "put the peer's own certificate into certs", "%s is no certificate of a CA", x.Subject())
		}
	}
	// A certificate says whose it is; a bare key goes with whatever its holder claims to be.
	if id := *p.id; i == 0 && len(a.Keys) > 0 && (id == ike.ID{} || id.IsPattern()) && good(t, "id") {
		l.problem(where(t, "pubkeys"), `write id = "…" with the one name that goes with the key`, "whoever has one of these keys could claim any name")
	}
	if *p.id == (ike.ID{}) && len(a.Pinned)+len(a.Keys) == 0 && c.initiates() && good(t, "id") {
		l.warn(t.key, `write id = "…" with the name in the peer's certificate`, "whoever has a certificate of the CA can pose as the peer of connection %s", c.Name)
	}
}

// checkOwn notes what is wrong with our key and certificate.
func (l *loader) checkOwn(p *peer, i int) {
	a, t := &p.auth, p.t
	if p.key == nil && l.vici != nil {
		return // it may be loaded yet
	}
	if p.key == nil {
		l.problem(t.key, `write key = "…" with the file of the private key`, "no private key is named in %s", shown(t.name))
		return
	}
	if a.Key == nil || !good(t, "certs", "pubkeys", "auth", "id") {
		return
	}
	if !strings.HasPrefix(a.Key.Public().String(), a.Scheme.Key) {
		l.problem(where(t, "auth"), `write auth = "pubkey"`, "the key is of another kind (%s) than auth says", a.Key.Public())
	}
	for _, k := range a.Keys {
		if !k.Equal(a.Key.Public()) {
			l.problem(where(t, "pubkeys"), "name the two halves of one key", "the private key does not belong to the public key")
		}
	}
	if len(a.Certs) == 0 {
		return
	}
	leaf := a.Certs[0]
	if key, err := leaf.Public(); err != nil {
		l.problem(where(t, "certs"), "", "certificate %s: %v", leaf.Subject(), err)
		return
	} else if !key.Equal(a.Key.Public()) {
		l.problem(where(t, "key"), "name the key that the certificate was made for", "the private key (%s) does not belong to the certificate %s", a.Key.Public(), leaf.Subject())
	}
	id := *p.id
	if id == (ike.ID{}) && i == 0 {
		if typ, data := leaf.DefaultID(); typ == 0 {
			l.problem(t.key, `write id = "…"`, "the certificate names nobody")
		} else if len(data) > ike.MaxID {
			l.problem(where(t, "certs"), `write id = "…" with another name of the certificate`, "the subject of the certificate is too long for an identity")
		}
	}
	if id != (ike.ID{}) {
		if err := leaf.Confirms(uint8(id.Type), []byte(id.Data)); err != nil {
			l.problem(where(t, "id"), "write a name that the certificate has, or leave id out for its subject", "our certificate does not prove the id %s: %v", id, err)
		}
	}
	now := time.Now()
	switch end := leaf.NotAfter(); {
	case now.Before(leaf.NotBefore()):
		l.warn(where(t, "certs"), "set the clock, if that is wrong", "our certificate %s is not valid before %s", leaf.Subject(), day(leaf.NotBefore()))
	case now.After(end):
		l.warn(where(t, "certs"), "get a new one", "our certificate %s ended on %s: peers refuse it", leaf.Subject(), day(end))
	case end.Sub(now) < expirySoon:
		l.warn(where(t, "certs"), "get a new one in time", "our certificate %s ends on %s", leaf.Subject(), day(end))
	}
}

// usesSecret tells whether a round of the connection is one of a pre-shared key.
func (c *conn) usesSecret() bool {
	psk := func(list []ike.Auth) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(a ike.Auth) bool { return a.Kind == ike.AuthKindPSK })
	}
	return psk(c.LocalAuth) || psk(c.RemoteAuth)
}
