package vici

import (
	"postern/engine/config"
	"postern/engine/control"
)

// listAuthorities streams the CAs that have a name, of the file and of clients.
func (h Handler) listAuthorities(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	var all []config.NamedAuthority
	if err := h.D.Do(func(l Loop) { all = l.Config().Authorities() }); err != nil {
		return nil, err
	}
	only := req.Get(control.KeyName)
	for i := range all {
		a := &all[i]
		if only != "" && a.Name != only {
			continue
		}
		m := new(control.Message)
		m.Section(a.Name).Set(control.KeyCACert, a.Cert.Subject()).
			List(control.KeyCRLURIs, a.CRLURIs...).List(control.KeyOCSPURIs, a.OCSPURIs...)
		if err := stream(control.EvListAuthority, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}
