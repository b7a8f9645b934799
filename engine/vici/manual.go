package vici

import (
	"postern/engine/config"
	"postern/engine/control"
	"postern/ike"
)

// listManual lists the manual SAs as the children of one connection.
func (h Handler) listManual(only string, stream func(string, *control.Message) error) error {
	var list []*config.Manual
	if err := h.D.Do(func(l Loop) { list = l.Config().Manual }); err != nil {
		return err
	}
	if len(list) == 0 || only != "" && only != config.ManualConn {
		return nil
	}
	m := new(control.Message)
	sec := m.Section(config.ManualConn)
	var local, remote []string
	for _, s := range list {
		local, remote = append(local, s.In.Local.Addr().String()), append(remote, s.In.Remote.Addr().String())
	}
	sec.List(control.KeyLocalAddrs, local...)
	sec.List(control.KeyRemoteAddrs, remote...)
	sec.Set(control.KeyVersion, "none")
	kids := sec.Section(control.KeyChildren)
	for _, s := range list {
		k := kids.Section(s.Name).Set(control.KeyMode, s.In.Mode.String()).Set(control.KeyStartAction, startNames[ike.StartStart])
		k.List(control.KeyLocalTS, selectorTexts(s.In.LocalTS)...)
		k.List(control.KeyRemoteTS, selectorTexts(s.In.RemoteTS)...)
	}
	return stream(control.EvListConn, m)
}
