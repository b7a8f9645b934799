package engine

import (
	"postern/engine/config"
	"postern/engine/control"
	"postern/ike"
)

// viewManual adds the manual SAs that a request selects, each below an IKE SA that only stands for
// its addresses: clients know no others. It runs on the loop.
func (l *ikeLoop) viewManual(views []saView, s selection) []saView {
	if s.conn != "" && s.conn != config.ManualConn || s.ike != 0 {
		return views
	}
	for _, m := range l.manual {
		in := &m.In
		c := childView{reqid: l.reqid(config.ManualConn, m.Name), ChildInfo: ike.ChildInfo{
			Name: m.Name, State: ike.ChildInstalled, Mode: in.Mode, SPIIn: in.SPI, SPIOut: m.Out.SPI, Suite: in.Suite,
			Encap: in.Encap, LocalTS: in.LocalTS, RemoteTS: in.RemoteTS, Installed: m.installed,
		}}
		c.in, c.out, c.lastIn, c.lastOut = l.d.sad.usage(&l.d.turns, in.SPI)
		views = append(views, saView{manual: true, children: []childView{c}, SAInfo: ike.SAInfo{
			Conn: config.ManualConn, State: ike.StateEstablished, Established: m.installed,
			Path: ike.Path{Local: in.Local, Remote: in.Remote},
		}})
	}
	return views
}

// listManual lists the manual SAs as the children of one connection.
func (h viciHandler) listManual(only string, stream func(string, *control.Message) error) error {
	var list []*config.Manual
	if err := h.e.loop.do(func() { list = h.e.cfg.Manual }); err != nil {
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
