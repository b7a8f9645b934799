package vici

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/ike"
	"postern/ike/pki"
)

// What clients load. The texts of what goes wrong are charon's where it has one for the case; what
// is wrong within a connection, a pool or a certificate the configuration says better.

// loadSections loads each section of a request: a connection, a pool or an authority. Those before
// one that is refused stay, as with charon.
func (h Handler) loadSections(req *control.Message, what string, how ike.Change, load func(l *config.Loaded, name string, m *control.Message) (*config.Loaded, error)) error {
	for _, e := range req.Elements() {
		// charon passes by what stands beside sections; its own client sends nothing there.
		if e.Kind != control.KindSection && e.Name != control.KeyOurs {
			return fmt.Errorf("%.255s stands outside of a section", e.Name)
		}
	}
	for _, e := range req.Elements() {
		if e.Kind != control.KindSection {
			continue
		}
		if err := h.D.Load(how, func(l *config.Loaded) (*config.Loaded, error) { return load(l, e.Name, e.Section) }); err != nil {
			h.D.Log().Log(log.Config, log.Warn, "refused what a control client loads", log.Str("what", what), log.Str("name", e.Name), log.Err(err))
			return err
		}
		h.D.Log().Log(log.Config, log.Info, "loaded by a control client", log.Str("what", what), log.Str("name", e.Name))
	}
	return nil
}

func (h Handler) loadConn(req *control.Message) error {
	return h.loadSections(req, "connection", ike.ChangeConns, (*config.Loaded).LoadConn)
}

func (h Handler) loadPool(req *control.Message) error {
	return h.loadSections(req, "pool", ike.ChangeConns, (*config.Loaded).LoadPool)
}

func (h Handler) loadAuthority(req *control.Message) error {
	return h.loadSections(req, "authority", ike.ChangeCreds, (*config.Loaded).LoadAuthority)
}

// unload takes away what has a name. What is not there is not found, even if the file has it.
func (h Handler) unload(what, name, missing, notFound string, have func(*config.Loaded) []string, how ike.Change,
	take func(*config.Loaded, string) (*config.Loaded, error)) error {
	if name == "" {
		return errors.New(missing)
	}
	err := h.D.Load(how, func(l *config.Loaded) (*config.Loaded, error) {
		for _, n := range have(l) {
			if n == name || what == privateKey && strings.EqualFold(n, name) {
				return take(l, name)
			}
		}
		return nil, fmt.Errorf(notFound, name)
	})
	if err == nil {
		h.D.Log().Log(log.Config, log.Info, "unloaded by a control client", log.Str("what", what), log.Str("name", name))
	}
	return err
}

// privateKey is what is named by the digits of an id, which may be capitals.
const privateKey = "private key"

func (h Handler) unloadConn(req *control.Message) error {
	return h.unload("connection", req.Get(control.KeyName), "unload: missing connection name", "unload: connection '%.255s' not found",
		(*config.Loaded).ConnNames, ike.ChangeConns, (*config.Loaded).UnloadConn)
}

func (h Handler) unloadAuthority(req *control.Message) error {
	return h.unload("authority", req.Get(control.KeyName), "unload: missing authority name", "unload: authority '%.255s' not found",
		(*config.Loaded).Authorities, ike.ChangeCreds, (*config.Loaded).UnloadAuthority)
}

func (h Handler) unloadPool(req *control.Message) error {
	name, online := req.Get(control.KeyName), 0
	if name != "" {
		if err := h.D.Do(func(l Loop) {
			l.Pools(func(p ike.PoolInfo) {
				if p.Pool.Name == name {
					online = p.Online
				}
			})
		}); err != nil {
			return err
		}
	}
	if online > 0 {
		return fmt.Errorf("%.255s has online leases, unable to unload", name)
	}
	return h.unload("pool", name, "missing pool name to unload", "%.255s not found",
		(*config.Loaded).Pools, ike.ChangeConns, (*config.Loaded).UnloadPool)
}

// unloadKey takes a private key away by its id.
func (h Handler) unloadKey(req *control.Message) error {
	return h.unload(privateKey, req.Get(control.KeyCredID), "key id missing", "key not found%.0s",
		(*config.Loaded).KeyIDs, ike.ChangeCreds, (*config.Loaded).UnloadKey)
}

// unloadShared takes a secret away by its id. One that is not there is no error, as with charon.
func (h Handler) unloadShared(req *control.Message) error {
	id := req.Get(control.KeyCredID)
	if id == "" {
		return errors.New("unique identifier missing")
	}
	return h.D.Load(ike.ChangeCreds, func(l *config.Loaded) (*config.Loaded, error) {
		for _, s := range l.SharedIDs() {
			if s == id {
				return l.UnloadShared(id)
			}
		}
		return l, nil
	})
}

// creds loads a message about credentials, without the key that only we send.
func (h Handler) creds(req *control.Message, load func(*config.Loaded, *control.Message) (*config.Loaded, error)) error {
	m := new(control.Message)
	for _, e := range req.Elements() {
		switch {
		case e.Name == control.KeyOurs:
		case slices.ContainsFunc(m.Elements(), func(o control.Element) bool { return o.Name == e.Name }):
			return fmt.Errorf("%.255s is there twice", e.Name)
		case e.Kind == control.KindValue:
			m.Set(e.Name, e.Value)
		case e.Kind == control.KindList:
			m.List(e.Name, e.Items...)
		default:
			return fmt.Errorf("%.255s is a section and should be a value", e.Name)
		}
	}
	return h.D.Load(ike.ChangeCreds, func(l *config.Loaded) (*config.Loaded, error) { return load(l, m) })
}

func (h Handler) loadShared(req *control.Message) error {
	switch kind := req.Get(control.KeyType); {
	case kind == "":
		return errors.New("shared key type missing")
	case !knownWord(kind, "ike", "eap", "xauth", "ntlm", "ppk"):
		return fmt.Errorf("invalid shared key type: %.64s", kind)
	case req.Get(control.KeyCertData) == "":
		return errors.New("shared key data missing")
	}
	return h.creds(req, (*config.Loaded).LoadShared)
}

func (h Handler) loadKey(req *control.Message) (*control.Message, error) {
	switch kind := req.Get(control.KeyType); {
	case kind == "":
		return nil, errors.New("key type missing")
	case !knownWord(kind, "any", "rsa", "ecdsa", "ed25519", "ed448", "bliss", "pkcs8"):
		return nil, fmt.Errorf("invalid key type: %.64s", kind)
	case req.Get(control.KeyCertData) == "":
		return nil, errors.New("key data missing")
	}
	id := ""
	err := h.creds(req, func(l *config.Loaded, m *control.Message) (n *config.Loaded, err error) {
		n, id, err = l.LoadKey(m)
		return n, err
	})
	return control.Success().Set(control.KeyCredID, id), err
}

func (h Handler) loadCert(req *control.Message) error {
	kind, flag := req.Get(control.KeyType), req.Get(control.KeyCertFlag)
	switch {
	case kind == "":
		return errors.New("certificate type missing")
	case !knownCert(kind):
		return fmt.Errorf("invalid certificate type '%.64s'", kind)
	case flag != "" && !knownWord(flag, "none", "ca", "aa", "ocsp", "any"):
		return fmt.Errorf("invalid certificate flag '%.64s'", flag)
	case req.Get(control.KeyCertData) == "":
		return errors.New("certificate data missing")
	}
	return h.creds(req, (*config.Loaded).LoadCert)
}

// knownWord tells whether a word is one of those in small letters, however it is written.
func knownWord(word string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

// knownCert tells whether charon knows that type of certificates, in its words or in those of old
// clients.
func knownCert(kind string) bool {
	return knownWord(kind, "x509", "x509_ac", "x509_crl", "x509_ocsp_response", "ocsp_response", "pubkey", "pgp", "any",
		"x509ca", "x509aa", "x509ac", "x509crl", "x509ocsp")
}

// errNoToken is the answer to load-token.
var errNoToken = errors.New("keys on tokens (PKCS#11, TPM) cannot be used here: there is no access to such devices; load the key itself with load-key")

func (h Handler) clearCreds() error {
	return h.D.Load(ike.ChangeCreds, func(l *config.Loaded) (*config.Loaded, error) { return l.ClearCreds(), nil })
}

// flushCerts forgets what was fetched about revoked certificates. Certificates that peers have sent
// are kept no longer than their handshake takes.
func (h Handler) flushCerts(req *control.Message) error {
	kind := req.Get(control.KeyType)
	if kind == "" {
		kind = certAny
	}
	if !knownCert(kind) {
		return fmt.Errorf("invalid certificate type '%.64s'", kind)
	}
	any := strings.EqualFold(kind, certAny)
	return h.D.Do(func(l Loop) {
		if any || knownWord(kind, "x509_crl", "x509crl") {
			l.Flush(pki.FetchCRL)
		}
		if any || knownWord(kind, "ocsp_response", "x509_ocsp_response", "x509ocsp") {
			l.Flush(pki.FetchOCSP)
		}
	})
}
