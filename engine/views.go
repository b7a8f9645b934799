package engine

import (
	"slices"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/vici"
	"postern/esp"
	"postern/ike"
)

// Snapshots of the tables for control clients, taken on the loop so that messages can be built
// elsewhere.

// view takes a snapshot. It runs on the loop.
func (l *ikeLoop) view(sa *ike.SAInfo) vici.SA {
	v := vici.SA{SAInfo: *sa, Children: make([]vici.Child, len(sa.Children))}
	if st := l.assignedTo(sa.Conn); st != nil && (sa.Initiator || len(sa.LocalVIPs) > 0) { // the peer may have rekeyed the IKE SA
		v.Assigned = st.is
		if st.dns.all || len(st.dns.domains) > 0 {
			v.DNSServers, v.DNSDomains = st.dns.servers, st.dns.domains
		}
	}
	for i := range sa.Children {
		c := vici.Child{ChildInfo: sa.Children[i], ReqID: l.reqid(sa.Conn, sa.Children[i].Name)}
		c.In, c.Out, c.LastIn, c.LastOut = l.d.sad.usage(&l.d.turns, c.SPIIn)
		if was := &c.Passed; c.In == (esp.Usage{}) && c.Out == (esp.Usage{}) {
			c.In, c.Out, c.LastIn, c.LastOut = was.In, was.Out, was.LastIn, was.LastOut
		}
		c.Class = l.d.spd.lanesOf(sa.Conn, c.Name).className(c.Lane)
		v.Children[i] = c
	}
	return v
}

// reqid numbers children as charon numbers its policies: in the order in which they are first
// used, and it stays the same when a CHILD SA is rekeyed or something else is configured.
func (l *ikeLoop) reqid(conn, child string) int {
	k := childKey{conn, child}
	if n := l.reqids[k]; n != 0 {
		return n
	}
	if !slices.ContainsFunc(l.d.spd.spec, func(s policySpec) bool { return s.protects(conn, child) }) {
		return 0
	}
	if l.reqids == nil {
		l.reqids = map[childKey]int{}
	}
	l.lastReqid++
	l.reqids[k] = l.lastReqid
	return l.lastReqid
}

// keepReqids forgets the numbers of children that are configured no more.
func (l *ikeLoop) keepReqids() {
	for k := range l.reqids {
		if !slices.ContainsFunc(l.d.spd.spec, func(s policySpec) bool { return s.protects(k.conn, k.child) }) {
			delete(l.reqids, k)
		}
	}
}

// viewManual returns the manual SAs, each below an IKE SA that only stands for its addresses:
// clients know no others. It runs on the loop.
func (l *ikeLoop) viewManual() (views []vici.SA) {
	for _, m := range l.manual {
		in := &m.In
		c := vici.Child{ReqID: l.reqid(config.ManualConn, m.Name), ChildInfo: ike.ChildInfo{
			Name: m.Name, State: ike.ChildInstalled, Mode: in.Mode, SPIIn: in.SPI, SPIOut: m.Out.SPI, Suite: in.Suite,
			Encap: in.Encap, LocalTS: in.LocalTS, RemoteTS: in.RemoteTS, Installed: m.installed,
		}}
		c.In, c.Out, c.LastIn, c.LastOut = l.d.sad.usage(&l.d.turns, in.SPI)
		views = append(views, vici.SA{Manual: true, Children: []vici.Child{c}, SAInfo: ike.SAInfo{
			Conn: config.ManualConn, State: ike.StateEstablished, Established: m.installed,
			Path: ike.Path{Local: in.Local, Remote: in.Remote},
		}})
	}
	return views
}

// view returns the entry as control clients see it.
func (s *policySpec) view(number int) vici.Policy {
	p := vici.Policy{Policy: s.Policy, Number: number, Conn: s.conn, Child: s.child, Mode: s.mode, Trap: s.trap, Dynamic: s.dynamic}
	if s.via != nil {
		p.Device = s.via.name
	}
	return p
}

// view returns all entries as control clients see them.
func (s *spd) view() []vici.Policy {
	list := make([]vici.Policy, len(s.spec))
	for i := range s.spec {
		list[i] = s.spec[i].view(i + 1)
	}
	return list
}

// viewSPD takes a snapshot of the entries. It runs on the loop.
func (l *ikeLoop) viewSPD() []vici.Entry {
	s := l.d.spd
	l.foldAll()
	views := make([]vici.Entry, len(s.spec))
	for i, p := range s.view() {
		h := s.hits[s.spec[i].key()]
		views[i] = vici.Entry{
			Policy: p, OutPackets: h.outPackets.Load(), OutBytes: h.outBytes.Load(), InPackets: h.inPackets.Load(),
			InBytes: h.inBytes.Load(), Discarded: h.discarded.Load(), InClear: h.inClear.Load(),
		}
	}
	bound := make([][]*outSA, len(views))
	inbound := make([]map[*inSA]bool, len(views))
	for _, p := range s.cur.Load().list {
		i := p.number - 1
		switch {
		case p.Action != esp.Protect:
		case p.Dir.Out():
			if list := p.sas.Load(); list != nil {
				for _, sa := range *list {
					if !slices.Contains(bound[i], sa) {
						bound[i] = append(bound[i], sa)
						views[i].SAs++
					}
				}
			}
		default:
			for j := range l.d.sad.slots {
				sa := l.d.sad.slots[j].in.Load()
				if sa == nil || inbound[i][sa] || !p.carries(sa.conn, sa.child, sa.via) || !overlap(p.LocalTS, sa.localTS) || !overlap(p.RemoteTS, sa.remoteTS) {
					continue
				}
				if inbound[i] == nil {
					inbound[i] = map[*inSA]bool{}
				}
				inbound[i][sa] = true
				views[i].SAs++
			}
		}
	}
	return views
}

// fate says what becomes of a packet. It runs on the loop.
func (l *ikeLoop) fate(f *esp.Flow, in bool) (fate vici.Fate) {
	p := l.d.spd.cur.Load().first(f, in)
	if p == nil {
		fate.What = control.FateNone
		return fate
	}
	entry := l.d.spd.spec[p.number-1].view(p.number)
	entry.LocalTS, entry.RemoteTS = p.LocalTS, p.RemoteTS // of a dynamic one, those that match
	fate.Entry = &entry
	switch p.Action {
	case esp.Bypass:
		fate.What = control.FateBypass
		return fate
	case esp.Discard:
		fate.What = control.FateDiscard
		return fate
	}
	fate.What = control.FateNoSA
	if in {
		for i := range l.d.sad.slots {
			sa := l.d.sad.slots[i].in.Load()
			if sa != nil && p.carries(sa.conn, sa.child, sa.via) && esp.MatchFlow(sa.localTS, sa.remoteTS, f) {
				fate.What, fate.Conn, fate.Child, fate.SPI = control.FateSA, sa.conn, sa.child, sa.spi
				break
			}
		}
		return fate
	}
	_, sa := l.d.spd.lookup(f)
	switch {
	case sa != nil:
		fate.What, fate.Conn, fate.Child, fate.ID, fate.SPI = control.FateSA, sa.conn, sa.child, sa.id, sa.spi
	case p.acquire:
		fate.What = control.FateAcquire
	case p.wait:
		fate.What = control.FateWait
	}
	return fate
}

// keys returns the keys of all SAs, if they are kept. It runs on the loop.
func (l *ikeLoop) keys() (lines []string, kept bool) {
	for i := range l.d.sad.slots {
		slot := &l.d.sad.slots[i]
		if in := slot.in.Load(); in != nil && in.export != nil {
			lines = append(lines, string(in.export))
		}
		if slot.out != nil && slot.out.export != nil {
			lines = append(lines, string(slot.out.export))
		}
	}
	return lines, l.exportKeys
}
