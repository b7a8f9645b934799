package vici

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// The types of what list-certs shows, and the flags of certificates, in charon's words.
const (
	certX509, certPubkey, certCRL, certOCSP = "X509", "PUBKEY", "X509_CRL", "OCSP_RESPONSE"

	flagNone, flagCA = "NONE", "CA"
	certAny          = "ANY"
)

// certView is a certificate or, without one, a bare public key or what was fetched.
type certView struct {
	cert  *pki.Cert
	key   *pki.PublicKey
	owner string // of key; "": nobody in particular
	owned bool   // we have the private key

	kind string // of data
	data []byte
	crl  *pki.CRL
}

// flag is what charon calls the certificate's purpose.
func (v *certView) flag() string {
	if v.cert != nil && v.cert.IsCA() {
		return flagCA
	}
	return flagNone
}

// certList gathers certificates, each once.
type certList []certView

func (l *certList) add(owned bool, certs ...*pki.Cert) {
	for _, c := range certs {
		if i := slices.IndexFunc(*l, func(v certView) bool { return v.cert != nil && v.cert.Equal(c) }); i >= 0 {
			(*l)[i].owned = (*l)[i].owned || owned
		} else {
			*l = append(*l, certView{cert: c, kind: certX509, owned: owned})
		}
	}
}

func (l *certList) bare(owned bool, k *pki.PublicKey, id ike.ID) {
	if slices.ContainsFunc(*l, func(v certView) bool { return v.key != nil && v.key.Equal(k) }) {
		return
	}
	v := certView{key: k, kind: certPubkey, owned: owned}
	if id != (ike.ID{}) && id.Type != ike.IDKeyID {
		v.owner = id.String()
	}
	*l = append(*l, v)
}

// round returns the identity of a round of authentication.
func round(list []ike.Auth, first ike.ID, i int) ike.ID {
	if i == 0 {
		return first
	}
	return list[i].ID
}

// configuredCerts returns each certificate and public key of a configuration, and of what clients
// have loaded, once, in charon's order: bare keys, certificates, those of CAs, revocation lists.
// Our own come in the order of the connections and before those of peers.
func configuredCerts(cfg *ike.Config, loaded *config.Loaded) (list certList) {
	for _, c := range cfg.Conns {
		for i := range c.LocalAuth {
			if a := &c.LocalAuth[i]; len(a.Certs) == 0 && a.Key != nil {
				list.bare(true, a.Key.Public(), round(c.LocalAuth, c.LocalID, i))
			}
		}
	}
	for _, c := range cfg.Conns {
		for i := range c.RemoteAuth {
			for _, k := range c.RemoteAuth[i].Keys {
				list.bare(false, k, round(c.RemoteAuth, c.RemoteID, i))
			}
		}
	}
	for _, c := range cfg.Conns {
		for i := range c.LocalAuth {
			if a := &c.LocalAuth[i]; len(a.Certs) > 0 {
				list.add(a.Key != nil, a.Certs[0])
				list.add(false, a.Certs[1:]...)
			}
		}
		for i := range c.RemoteAuth {
			list.add(false, c.RemoteAuth[i].Pinned...)
			list.add(false, c.RemoteAuth[i].Anchors...)
		}
	}
	loaded.Certs(func(c *pki.Cert, _ bool) {
		k, err := c.Public()
		list.add(err == nil && loaded.HasKey(k), c)
	})
	for _, k := range loaded.PublicKeys() {
		list.bare(loaded.HasKey(k), k, ike.ID{})
	}
	for _, a := range cfg.Trust.Authorities() {
		list.add(false, a.Cert)
	}
	slices.SortStableFunc(list, func(a, b certView) int { return certOrder(&a) - certOrder(&b) })
	crl := func(c *pki.CRL) {
		if !slices.ContainsFunc(list, func(v certView) bool { return v.crl != nil && bytes.Equal(v.crl.Raw(), c.Raw()) }) {
			list = append(list, certView{kind: certCRL, data: c.Raw(), crl: c})
		}
	}
	for _, a := range cfg.Trust.Authorities() {
		for _, c := range a.CRLs {
			crl(c)
		}
	}
	for _, c := range loaded.CRLs() {
		crl(c)
	}
	return list
}

// certOrder is charon's: bare keys, end entities, CAs.
func certOrder(v *certView) int {
	switch {
	case v.key != nil:
		return 0
	case v.flag() == flagNone:
		return 1
	}
	return 2
}

// oldCertTypes are the words of old clients for a type and a flag.
var oldCertTypes = map[string][2]string{
	"x509": {certX509, flagNone}, "x509ca": {certX509, flagCA}, "x509ac": {"X509_AC", ""}, "x509aa": {certX509, "AA"},
	"x509ocsp": {certX509, "OCSP"}, "x509crl": {certCRL, ""}, "pubkey": {certPubkey, ""},
}

// listCerts streams the certificates, public keys and revocation lists of the configuration, those
// that clients have loaded, and what was fetched. What peers have sent is none of them, for it is
// kept no longer than a handshake. As with charon, what is unknown has nothing to be listed.
func (h Handler) listCerts(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	kind, flag := req.Get(control.KeyCertType), certAny
	if old, ok := oldCertTypes[kind]; ok {
		kind, flag = old[0], old[1]
	}
	kind = strings.ToUpper(kind)
	if f := req.Get(control.KeyCertFlag); kind == certX509 && f != "" { // which old clients do not send
		flag = strings.ToUpper(f)
	}
	var subject ike.ID
	text := req.Get(control.KeySubject)
	if text != "" {
		id, err := ike.ParseIDString(text)
		if err != nil {
			return new(control.Message), nil
		}
		subject = id
	}
	loaded := h.D.Loaded()
	var cfg *config.Config
	var crls, answers certList
	if err := h.D.Do(func(l Loop) {
		cfg = l.Config()
		l.Revocation(func(kind pki.FetchKind, body []byte) {
			if kind == pki.FetchOCSP {
				answers = append(answers, certView{kind: certOCSP, data: body})
			} else {
				crls = append(crls, certView{kind: certCRL, data: body})
			}
		})
	}); err != nil {
		return nil, err
	}
	list := configuredCerts(&cfg.IKE, loaded)
	for _, v := range crls { // which may be long: not on the loop
		if c, err := pki.ParseCRL(v.data); err == nil {
			list = append(list, certView{kind: certCRL, data: c.Raw(), crl: c})
		}
	}
	list = append(list, answers...)
	for i := range list {
		v := &list[i]
		if kind != "" && kind != certAny && kind != v.kind || v.kind == certX509 && flag != certAny && flag != v.flag() ||
			text != "" && !v.named(subject, text) {
			continue
		}
		if err := stream(control.EvListCert, v.message(ours(req))); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// named tells whether it has that subject or alternative name, a bare key that owner, or a list that
// issuer.
func (v *certView) named(id ike.ID, text string) bool {
	switch {
	case v.cert != nil:
		return v.cert.Confirms(uint8(id.Type), []byte(id.Data)) == nil
	case v.crl != nil:
		return id.Type == ike.IDDERDN && id.Data == string(v.crl.RawIssuer())
	}
	return v.owner != "" && v.owner == text
}

// message writes it, in charon's order. The subject and the times of a certificate, which charon
// leaves to whoever reads it, are ours.
func (v *certView) message(ours bool) *control.Message {
	m := new(control.Message).Set(control.KeyCertType, v.kind)
	switch {
	case v.key != nil:
		yes(m, control.KeyHasPrivate, v.owned)
		m.Set(control.KeyCertData, string(v.key.SPKI()))
		if v.owner != "" {
			m.Set(control.KeySubject, v.owner)
		}
	case v.cert != nil:
		m.Set(control.KeyCertFlag, v.flag())
		yes(m, control.KeyHasPrivate, v.owned)
		m.Set(control.KeyCertData, string(v.cert.Raw()))
		if ours {
			m.Set(control.KeySubject, v.cert.Subject()).
				Set(control.KeyNotBefore, v.cert.NotBefore().UTC().Format(time.RFC3339)).
				Set(control.KeyNotAfter, v.cert.NotAfter().UTC().Format(time.RFC3339))
		}
	default:
		m.Set(control.KeyCertData, string(v.data))
	}
	return m
}
