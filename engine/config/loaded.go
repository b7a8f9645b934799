package config

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// Loaded is what control clients have loaded, beside the file: connections, credentials, pools
// and authorities, as VICI names them. It is immutable and may be shared; the zero value, and nil,
// are empty. Each change returns a new one, so that a change which fails has changed nothing; what is
// there already, just so, returns the same one.
//
// A change looks at what it is given by itself: its form, and whether keys, certificates and
// lists can be read. What connections say is read by [Config.With], together with everything else,
// because it depends on the file and on credentials that may come later.
type Loaded struct {
	conns       []loadedSection
	pools       []loadedSection
	authorities []loadedSection
	shared      []loadedShared
	keys        []*pki.Key
	certs       []loadedCert
	crls        []*pki.CRL
	pubkeys     []*pki.PublicKey // by themselves: only to be listed, as connections bring theirs
}

// loadedSection is a message and the name that the client gave it.
type loadedSection struct {
	name string
	m    *control.Message
	// certs and keys are those among the values of m, by these: they are parsed once.
	certs map[string][]*pki.Cert
	keys  map[string]*pki.PublicKey
}

// loadedShared is a shared secret.
type loadedShared struct {
	id     string // by which it is replaced and unloaded; "": by its owners
	kind   sharedKind
	owners []string
	ids    []ike.ID // the owners of one for IKE, but those that are anybody
	key    []byte   // nil of kinds that nothing here uses
}

// sharedKind is what a shared secret is for.
type sharedKind uint8

const (
	sharedIKE sharedKind = iota
	sharedPPK
	sharedEAP // and XAUTH, which strongSwan keeps as one
	sharedNTLM
)

// sharedKinds are the words of VICI, in small letters.
var sharedKinds = map[string]sharedKind{"ike": sharedIKE, "ppk": sharedPPK, "eap": sharedEAP, "xauth": sharedEAP, "ntlm": sharedNTLM}

// certFlag is what a client says of a certificate.
type certFlag uint8

const (
	certPlain certFlag = iota
	certCA
)

type loadedCert struct {
	*pki.Cert
	flag certFlag
}

// Bounds of what clients can load. What is to be in use at once has the bounds of the board
// beside these, which keep a client from filling the memory with what nobody uses.
const (
	maxLoaded     = 4096 // of each kind
	maxLoadedName = 255  // octets, as VICI's names
	maxOwners     = 64
)

func (l *Loaded) copied() *Loaded {
	if l == nil {
		return new(Loaded)
	}
	c := *l
	return &c
}

// put returns the list with s in the place of the one with the same name, or else behind all.
func put(list []loadedSection, s loadedSection) []loadedSection {
	list = slices.Clone(list)
	if i := slices.IndexFunc(list, func(o loadedSection) bool { return o.name == s.name }); i >= 0 {
		list[i] = s
		return list
	}
	return append(list, s)
}

// take returns the list without the one of that name.
func take(list []loadedSection, name string) ([]loadedSection, bool) {
	i := slices.IndexFunc(list, func(o loadedSection) bool { return o.name == name })
	if i < 0 {
		return list, false
	}
	return slices.Delete(slices.Clone(list), i, i+1), true
}

func sectionNames(list []loadedSection) []string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.name
	}
	return names
}

func checkLoad(what, name string, n int) error {
	switch {
	case !goodName(name):
		return fmt.Errorf("%s %s: use letters, digits, - , _ and . for the name, at most %d", what, shown(clipName(name)), maxName)
	case n >= maxLoaded:
		return fmt.Errorf("%s %s: %d are loaded already, and no more can be", what, name, n)
	}
	return nil
}

func clipName(s string) string { return s[:min(len(s), maxName)] }

// sectionKind is a kind of sections that clients load.
type sectionKind struct {
	what, path string // for people: "connection" and "connections"
	certs      bool   // there may be certificates in it, and files and scripts
	within     string // the name of what they stand in
	of         func(*Loaded) *[]loadedSection
}

var (
	loadedConns       = sectionKind{"connection", "connections", true, "", func(l *Loaded) *[]loadedSection { return &l.conns }}
	loadedPools       = sectionKind{"pool", "pools", false, "", func(l *Loaded) *[]loadedSection { return &l.pools }}
	loadedAuthorities = sectionKind{"authority", "authorities", true, "cacert", func(l *Loaded) *[]loadedSection { return &l.authorities }}
)

// load takes a section in the place of one of the same name.
func (k *sectionKind) load(l *Loaded, name string, m *control.Message) (*Loaded, error) {
	c := l.copied()
	list := *k.of(c)
	others, _ := take(list, name)
	if err := checkLoad(k.what, name, len(others)); err != nil {
		return nil, err
	}
	s := loadedSection{name: name, m: m}
	if k.certs {
		if err := s.parseCerts(k.path+"."+name, k.within, m, 0); err != nil {
			return nil, err
		}
	}
	if has(list, &s) {
		return l, nil
	}
	*k.of(c) = put(list, s)
	return c, nil
}

// unload takes a section away again.
func (k *sectionKind) unload(l *Loaded, name string) (*Loaded, error) {
	c := l.copied()
	list, ok := take(*k.of(c), name)
	if !ok {
		return nil, fmt.Errorf("no %s %s was loaded", k.what, shown(clipName(name)))
	}
	*k.of(c) = list
	return c, nil
}

// names are in the order in which the sections came.
func (k *sectionKind) names(l *Loaded) []string { return sectionNames(*k.of(l.copied())) }

// LoadConn takes a connection: m is the section that the connection's name stands before in
// load-conn. One of the same name is replaced.
func (l *Loaded) LoadConn(name string, m *control.Message) (*Loaded, error) {
	return loadedConns.load(l, name, m)
}

// UnloadConn takes a connection away again.
func (l *Loaded) UnloadConn(name string) (*Loaded, error) { return loadedConns.unload(l, name) }

// ConnNames returns the names of the connections, in the order in which they came.
func (l *Loaded) ConnNames() []string { return loadedConns.names(l) }

// LoadPool takes a pool of virtual addresses: m is the section of the pool's name in load-pool.
func (l *Loaded) LoadPool(name string, m *control.Message) (*Loaded, error) {
	return loadedPools.load(l, name, m)
}

// UnloadPool takes a pool away again. Whether somebody has an address of it is for the caller to
// see.
func (l *Loaded) UnloadPool(name string) (*Loaded, error) { return loadedPools.unload(l, name) }

// Pools returns the names of the pools, in the order in which they came.
func (l *Loaded) Pools() []string { return loadedPools.names(l) }

// LoadAuthority takes an authority: m is the section of its name in load-authority.
func (l *Loaded) LoadAuthority(name string, m *control.Message) (*Loaded, error) {
	return loadedAuthorities.load(l, name, m)
}

// UnloadAuthority takes an authority away again.
func (l *Loaded) UnloadAuthority(name string) (*Loaded, error) {
	return loadedAuthorities.unload(l, name)
}

// Authorities returns the names of the authorities, in the order in which they came.
func (l *Loaded) Authorities() []string { return loadedAuthorities.names(l) }

// parseCerts parses the certificates and public keys among the values of a message, and those in the
// files that it names, so that they need not be parsed with each change of something else, and
// files are read once, when they are loaded. Scripts are looked at then, too. in is the name of the
// section.
func (s *loadedSection) parseCerts(path, in string, m *control.Message, depth int) error {
	for _, e := range m.Elements() {
		here := path + "." + shown(clipName(e.Name))
		if e.Kind == control.KindSection {
			if depth < 4 { // deeper ones are refused with the connection
				if err := s.parseCerts(here, e.Name, e.Section, depth+1); err != nil {
					return err
				}
			}
			continue
		}
		values := e.Items
		if e.Kind == control.KindValue {
			values = []string{e.Value}
		}
		for _, v := range values {
			var err error
			switch strings.ToLower(e.Name) {
			case "certs", "cacerts", "cacert":
				err = s.parseCert(v)
			case "pubkeys":
				err = s.parseKey(v)
			case "updown":
				if what, hint, unwise := scriptProblem(v); what != "" && !unwise {
					err = errors.New("updown: " + what + "; " + hint)
				}
			case "file":
				if strings.HasPrefix(in, "cert") || strings.HasPrefix(in, "cacert") {
					err = s.readCert(v)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", here, err)
			}
		}
	}
	return nil
}

// parseCert parses a certificate under the text that it is.
func (s *loadedSection) parseCert(v string) error {
	if v == "" || s.certs[v] != nil {
		return nil
	}
	return s.keepCerts(v, []byte(v))
}

// readCert reads a certificate, or several, under the name of their file.
func (s *loadedSection) readCert(path string) error {
	if path == "" || s.certs[path] != nil {
		return nil
	}
	if !filepath.IsAbs(path) {
		return errors.New("write a path from the root")
	}
	data, err := readPublicFile(path, maxCertFile)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", shownPath(path), reason(err))
	}
	return s.keepCerts(path, data)
}

func (s *loadedSection) keepCerts(key string, data []byte) error {
	list, err := pki.ParseCerts(data)
	if err != nil {
		return fmt.Errorf("this is no certificate, in DER or PEM: %w", err)
	}
	if s.certs == nil {
		s.certs = map[string][]*pki.Cert{}
	}
	s.certs[key] = list
	return nil
}

func (s *loadedSection) parseKey(v string) error {
	if v == "" || s.keys[v] != nil {
		return nil
	}
	key, err := pki.ParsePublicKey([]byte(v))
	if err != nil {
		return fmt.Errorf("this is no public key, in DER or PEM: %w", err)
	}
	if s.keys == nil {
		s.keys = map[string]*pki.PublicKey{}
	}
	s.keys[v] = key
	return nil
}

// onlyKeys refuses elements of a message that nobody would look at.
func onlyKeys(m *control.Message, names ...string) error {
	for i, e := range m.Elements() {
		if !slices.Contains(names, e.Name) {
			return fmt.Errorf("%s is not known; there are %s", shown(clipName(e.Name)), strings.Join(names, ", "))
		}
		if slices.ContainsFunc(m.Elements()[:i], func(o control.Element) bool { return o.Name == e.Name }) {
			return fmt.Errorf("%s is there twice", e.Name)
		}
		if e.Kind == control.KindSection {
			return fmt.Errorf("%s is a section and should be a value", e.Name)
		}
	}
	return nil
}

// listOf returns the items of a list, or a value as a list of one.
func listOf(m *control.Message, name string) []string {
	if v, ok := m.Lookup(name); ok && v != "" {
		return []string{v}
	}
	return m.Items(name)
}

// LoadShared takes a shared secret: the message of load-shared, with its id, type, data and
// owners. One of the same id, or without an id one of the same type and owners, is replaced. What
// is for EAP and XAuth is kept by name only, because nothing here uses it.
func (l *Loaded) LoadShared(m *control.Message) (*Loaded, error) {
	c := l.copied()
	if err := onlyKeys(m, "id", "type", "data", "owners"); err != nil {
		return nil, err
	}
	s := loadedShared{id: m.Get("id"), owners: slices.Clone(listOf(m, "owners"))}
	kind, ok := sharedKinds[strings.ToLower(m.Get("type"))]
	switch {
	case !ok:
		return nil, fmt.Errorf("type: %s is not known; there are IKE, PPK, EAP, XAUTH and NTLM", shown(clipName(m.Get("type"))))
	case len(s.id) > maxLoadedName:
		return nil, fmt.Errorf("id: it has more than %d octets", maxLoadedName)
	case len(s.owners) > maxOwners:
		return nil, fmt.Errorf("owners: there are more than %d", maxOwners)
	}
	s.kind = kind
	data := m.Get("data")
	switch {
	case len(data) > maxSecretLen:
		return nil, fmt.Errorf("data: the secret has more than %d octets", maxSecretLen)
	case data == "":
		return nil, errors.New("data: the secret is empty")
	case kind == sharedIKE:
		for _, o := range s.owners {
			id, err := ike.ParseIDString(o)
			if err != nil {
				return nil, fmt.Errorf("owners: %w", err)
			}
			if id != (ike.ID{}) { // which does not narrow anything
				s.ids = append(s.ids, id)
			}
		}
	case kind == sharedPPK:
		if len(s.owners) == 0 {
			return nil, errors.New("owners: a PPK needs the id by which both sides know it")
		}
		for _, o := range s.owners {
			if _, err := ike.ParsePPKID(o); err != nil {
				return nil, fmt.Errorf("owners: %s %w", shown(clipName(o)), err)
			}
		}
	}
	if kind == sharedIKE || kind == sharedPPK {
		s.key = []byte(data)
	}
	c.shared = slices.Clone(c.shared)
	i := slices.IndexFunc(c.shared, func(o loadedShared) bool {
		if s.id != "" || o.id != "" {
			return s.id == o.id
		}
		return o.kind == s.kind && slices.Equal(o.owners, s.owners)
	})
	switch {
	case i >= 0 && c.shared[i].equal(&s):
		return l, nil
	case i >= 0:
		c.shared[i] = s
	case len(c.shared) >= maxLoaded:
		return nil, fmt.Errorf("%d secrets are loaded already, and no more can be", len(c.shared))
	default:
		c.shared = append(c.shared, s)
	}
	return c, nil
}

// UnloadShared takes the secret with that id away again.
func (l *Loaded) UnloadShared(id string) (*Loaded, error) {
	c := l.copied()
	i := slices.IndexFunc(c.shared, func(o loadedShared) bool { return o.id == id && id != "" })
	if i < 0 {
		return nil, fmt.Errorf("no secret with the id %s was loaded", shown(clipName(id)))
	}
	c.shared = slices.Delete(slices.Clone(c.shared), i, i+1)
	return c, nil
}

// SharedIDs returns the ids of the secrets that have one, in the order in which they came.
func (l *Loaded) SharedIDs() []string {
	var ids []string
	for _, s := range l.copied().shared {
		if s.id != "" {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// LoadKey takes a private key: the message of load-key, with its type and data, in DER or PEM.
// id is the hash of its public half by which VICI names it, see keyID.
func (l *Loaded) LoadKey(m *control.Message) (_ *Loaded, id string, err error) {
	c := l.copied()
	if err := onlyKeys(m, "type", "data"); err != nil {
		return nil, "", err
	}
	data := []byte(m.Get("data"))
	defer clear(data)
	key, err := pki.ParseKey(data, nil)
	if err != nil {
		return nil, "", fmt.Errorf("data: no usable private key: %w", err)
	}
	want := ""
	switch t := strings.ToLower(m.Get("type")); t {
	case "any", "pkcs8", "":
	case "rsa":
		want = "RSA"
	case "ecdsa":
		want = "ECDSA"
	case "ed25519":
		want = "Ed25519"
	case "bliss", "ed448":
		return nil, "", fmt.Errorf("type: there are no keys of kind %s here; RSA, ECDSA and Ed25519 are taken", t)
	default:
		return nil, "", fmt.Errorf("type: %s is not known; there are any, rsa, ecdsa, ed25519 and pkcs8", shown(clipName(t)))
	}
	if !strings.HasPrefix(key.Public().String(), want) {
		return nil, "", fmt.Errorf("type: the key is of another kind (%s)", key.Public())
	}
	id = keyID(key.Public())
	if slices.ContainsFunc(c.keys, func(k *pki.Key) bool { return k.Public().Equal(key.Public()) }) {
		return l, id, nil // the same again, which conns may rest on
	}
	if len(c.keys) >= maxLoaded {
		return nil, "", fmt.Errorf("%d keys are loaded already, and no more can be", len(c.keys))
	}
	c.keys = append(slices.Clone(c.keys), key)
	return c, id, nil
}

// UnloadKey takes the private key with that id away again.
func (l *Loaded) UnloadKey(id string) (*Loaded, error) {
	c := l.copied()
	i := slices.IndexFunc(c.keys, func(k *pki.Key) bool { return strings.EqualFold(keyID(k.Public()), id) })
	if i < 0 {
		return nil, fmt.Errorf("no private key with the id %s was loaded", shown(clipName(id)))
	}
	c.keys = slices.Delete(slices.Clone(c.keys), i, i+1)
	return c, nil
}

// KeyIDs returns the ids of the private keys, in the order in which they came.
func (l *Loaded) KeyIDs() []string {
	var ids []string
	for _, k := range l.copied().keys {
		ids = append(ids, keyID(k.Public()))
	}
	return ids
}

// LoadCert takes a certificate or a revocation list: the message of load-cert, with its type, flag
// and data, in DER or PEM.
func (l *Loaded) LoadCert(m *control.Message) (*Loaded, error) {
	c := l.copied()
	if err := onlyKeys(m, "type", "flag", "data"); err != nil {
		return nil, err
	}
	data := []byte(m.Get("data"))
	typ, flag := strings.ToUpper(m.Get("type")), strings.ToUpper(m.Get("flag"))
	switch typ {
	case "X509_CRL":
		list, err := pki.ParseCRL(data)
		if err != nil {
			return nil, fmt.Errorf("data: no revocation list: %w", err)
		}
		return c.putCRL(list)
	case "X509", "X509_CA": // the second one is of old clients
	case "X509_AC":
		return nil, errors.New("type: attribute certificates are not used here; groups of remote are refused, too")
	case "PUBKEY":
		// swanctl sends all of its directory, also those that connections bring along.
		k, err := pki.ParsePublicKey(data)
		if err != nil {
			return nil, fmt.Errorf("data: no public key: %w", err)
		}
		if slices.ContainsFunc(c.pubkeys, func(o *pki.PublicKey) bool { return o.Equal(k) }) {
			return l, nil
		}
		if len(c.pubkeys) >= maxLoaded {
			return nil, fmt.Errorf("%d public keys are loaded already, and no more can be", len(c.pubkeys))
		}
		c.pubkeys = append(slices.Clip(c.pubkeys), k)
		return c, nil
	default:
		return nil, fmt.Errorf("type: %s is not known; there are X509, X509_CRL and PUBKEY", shown(clipName(m.Get("type"))))
	}
	lc := loadedCert{}
	switch {
	case flag == "CA" || typ == "X509_CA":
		lc.flag = certCA
	case flag == "NONE" || flag == "":
	case flag == "OCSP":
		return nil, errors.New("flag: certificates of OCSP responders come with their answers, and are checked against the CA; leave them out")
	case flag == "AA":
		return nil, errors.New("flag: attribute certificates are not used here")
	default:
		return nil, fmt.Errorf("flag: %s is not known; there are NONE and CA", shown(clipName(flag)))
	}
	list, err := pki.ParseCerts(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("data: no certificate: %w", err)
	case len(list) != 1:
		return nil, fmt.Errorf("data: %d certificates; load them one by one", len(list))
	}
	lc.Cert = list[0]
	if lc.flag == certCA {
		if _, err := pki.NewTrust([]pki.Authority{{Cert: lc.Cert}}, nil); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
	}
	c.certs = slices.Clone(c.certs)
	i := slices.IndexFunc(c.certs, func(o loadedCert) bool { return o.Equal(lc.Cert) })
	switch {
	case i >= 0 && c.certs[i].flag >= lc.flag:
		return l, nil
	case i >= 0:
		c.certs[i] = lc
	case len(c.certs) >= maxLoaded:
		return nil, fmt.Errorf("%d certificates are loaded already, and no more can be", len(c.certs))
	default:
		c.certs = append(c.certs, lc)
	}
	return c, nil
}

// putCRL takes a revocation list in the place of an older one of the same CA.
func (l *Loaded) putCRL(list *pki.CRL) (*Loaded, error) {
	l.crls = slices.Clone(l.crls)
	i := slices.IndexFunc(l.crls, func(o *pki.CRL) bool { return bytes.Equal(o.RawIssuer(), list.RawIssuer()) })
	switch {
	case i >= 0 && list.ThisUpdate().Before(l.crls[i].ThisUpdate()):
		return l, nil // what we have is newer
	case i >= 0:
		l.crls[i] = list
	case len(l.crls) >= maxLoaded:
		return nil, fmt.Errorf("%d revocation lists are loaded already, and no more can be", len(l.crls))
	default:
		l.crls = append(l.crls, list)
	}
	return l, nil
}

// ClearCreds forgets all keys, certificates, revocation lists and secrets. Authorities stay, as
// with strongSwan.
func (l *Loaded) ClearCreds() *Loaded {
	c := l.copied()
	c.shared, c.keys, c.certs, c.crls, c.pubkeys = nil, nil, nil, nil, nil
	return c
}

// Certs returns the certificates that were loaded by themselves, and whether as those of CAs.
func (l *Loaded) Certs(visit func(c *pki.Cert, ca bool)) {
	for _, c := range l.copied().certs {
		visit(c.Cert, c.flag == certCA)
	}
}

// CRLs returns the revocation lists. The slice is not to be changed.
func (l *Loaded) CRLs() []*pki.CRL { return l.copied().crls }

// PublicKeys returns the public keys that were loaded by themselves. The slice is not to be changed.
func (l *Loaded) PublicKeys() []*pki.PublicKey { return l.copied().pubkeys }

// keyFor returns the private key that belongs to a public one, nil if none was loaded.
func (l *Loaded) keyFor(pub *pki.PublicKey) *pki.Key {
	if i := slices.IndexFunc(l.keys, func(k *pki.Key) bool { return k.Public().Equal(pub) }); i >= 0 {
		return l.keys[i]
	}
	return nil
}

// keyID is the SHA-1 hash of the BIT STRING in a SubjectPublicKeyInfo (RFC 5280 section 4.2.1.2,
// method 1), in hexadecimal.
func keyID(k *pki.PublicKey) string {
	in := cryptobyte.String(k.SPKI())
	var info cryptobyte.String
	var bits []byte
	if !in.ReadASN1(&info, asn1.SEQUENCE) || !info.SkipASN1(asn1.SEQUENCE) || !info.ReadASN1BitStringAsBytes(&bits) {
		return ""
	}
	id := sha1.Sum(bits)
	return hex.EncodeToString(id[:])
}
