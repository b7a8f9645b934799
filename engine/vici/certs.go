package vici

import (
	"errors"
	"slices"
	"time"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// The types of what list-certs shows, and the flags of certificates, in charon's words.
const (
	certX509, certPubkey = "X509", "PUBKEY"
	flagNone, flagCA     = "NONE", "CA"
	certAny              = "ANY"
)

// certView is a certificate or, without one, a bare public key of the configuration.
type certView struct {
	cert  *pki.Cert
	key   *pki.PublicKey
	owned bool // we have the private key
}

// configuredCerts returns each certificate and public key of a configuration once: ours, in the
// order of the connections and before those that lead to their CA, those of peers, and CAs.
func configuredCerts(cfg *ike.Config) (list []certView) {
	add := func(owned bool, certs ...*pki.Cert) {
		for _, c := range certs {
			if i := slices.IndexFunc(list, func(v certView) bool { return v.cert.Equal(c) }); i >= 0 {
				list[i].owned = list[i].owned || owned
			} else {
				list = append(list, certView{cert: c, owned: owned})
			}
		}
	}
	for _, c := range cfg.Conns {
		for i := range c.LocalAuth {
			if a := &c.LocalAuth[i]; len(a.Certs) > 0 {
				add(a.Key != nil, a.Certs[0])
				add(false, a.Certs[1:]...)
			}
		}
		for i := range c.RemoteAuth {
			add(false, c.RemoteAuth[i].Pinned...)
			add(false, c.RemoteAuth[i].Anchors...)
		}
	}
	if cfg.Trust != nil {
		for _, a := range cfg.Trust.Authorities() {
			add(false, a.Cert)
		}
	}
	bare := func(owned bool, k *pki.PublicKey) {
		if !slices.ContainsFunc(list, func(v certView) bool { return v.key != nil && v.key.Equal(k) }) {
			list = append(list, certView{key: k, owned: owned})
		}
	}
	for _, c := range cfg.Conns {
		for i := range c.LocalAuth {
			if a := &c.LocalAuth[i]; len(a.Certs) == 0 && a.Key != nil {
				bare(true, a.Key.Public())
			}
		}
	}
	for _, c := range cfg.Conns {
		for i := range c.RemoteAuth {
			for _, k := range c.RemoteAuth[i].Keys {
				bare(false, k)
			}
		}
	}
	return list
}

// listCerts streams the certificates and public keys of the configuration. Revocation lists and
// what peers have sent are none of them.
func (h Handler) listCerts(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	var list []certView
	if err := h.D.Do(func(l Loop) { list = configuredCerts(&l.Config().IKE) }); err != nil {
		return nil, err
	}
	kind, flag := req.Get(control.KeyCertType), req.Get(control.KeyCertFlag)
	var subject ike.ID
	if text := req.Get(control.KeySubject); text != "" {
		id, err := ike.ParseIDString(text)
		if err != nil {
			return nil, errors.New("the subject is no name: " + err.Error())
		}
		subject = id
	}
	wants := func(wanted, is string) bool { return wanted == certAny || fits(wanted, is) }
	for i := range list {
		v := &list[i]
		is, has := certX509, flagNone
		switch {
		case v.cert == nil:
			is = certPubkey
		case v.cert.IsCA():
			has = flagCA
		}
		if !wants(kind, is) || !wants(flag, has) || subject != (ike.ID{}) && !v.named(subject) {
			continue
		}
		if err := stream(control.EvListCert, v.message(is, has, ours(req))); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// named tells whether it has that subject or alternative name; a bare key has none.
func (v *certView) named(id ike.ID) bool {
	return v.cert != nil && v.cert.Confirms(uint8(id.Type), []byte(id.Data)) == nil
}

// message writes it, in charon's order. The subject and the times, which charon leaves to whoever
// reads the certificate, are ours.
func (v *certView) message(kind, flag string, ours bool) *control.Message {
	m := new(control.Message).Set(control.KeyCertType, kind)
	if v.cert == nil {
		yes(m, control.KeyHasPrivate, v.owned)
		return m.Set(control.KeyCertData, string(v.key.SPKI()))
	}
	m.Set(control.KeyCertFlag, flag)
	yes(m, control.KeyHasPrivate, v.owned)
	m.Set(control.KeyCertData, string(v.cert.Raw()))
	if !ours {
		return m
	}
	return m.Set(control.KeySubject, v.cert.Subject()).
		Set(control.KeyNotBefore, v.cert.NotBefore().UTC().Format(time.RFC3339)).
		Set(control.KeyNotAfter, v.cert.NotAfter().UTC().Format(time.RFC3339))
}
