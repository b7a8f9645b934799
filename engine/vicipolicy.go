package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"postern/engine/control"
	"postern/esp"
)

// tableSpace stands for the connection in the names of entries of [policies], which have none.
const tableSpace = "policies"

// listPolicies lists traps and shunts as charon does, and as shunts what [policies] bypasses
// and discards.
func (h viciHandler) listPolicies(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	var specs []policySpec
	if err := h.e.loop.do(func() { specs = h.e.d.spd.spec }); err != nil {
		return nil, err
	}
	wants := func(key string) bool { _, ok := req.Lookup(key); return ok }
	all := !wants(control.KeyTrap) && !wants(control.KeyPass) && !wants(control.KeyDrop)
	for i := range specs {
		s := &specs[i]
		mode, kind := esp.Tunnel.String(), control.KeyTrap
		switch s.Action {
		case esp.Bypass:
			mode, kind = "PASS", control.KeyPass
		case esp.Discard:
			mode, kind = "DROP", control.KeyDrop
		default:
			if !s.acquire {
				continue
			}
		}
		ike, child := s.conn, s.child
		if ike == "" {
			ike, child = tableSpace, s.Name
		}
		if !all && !wants(kind) || !fits(req.Get(control.KeyIKE), ike) || !fits(req.Get(control.KeyChild), child) {
			continue
		}
		m := new(control.Message)
		m.Section(ike+"/"+child).
			Set(control.KeyChild, child).Set(control.KeyIKE, ike).Set(control.KeyMode, mode).
			List(control.KeyLocalTS, selectorTexts(s.LocalTS)...).List(control.KeyRemoteTS, selectorTexts(s.RemoteTS)...)
		if err := stream(control.EvListPolicy, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// fits tells whether a name is wanted; "" wants any.
func fits(wanted, name string) bool { return wanted == "" || wanted == name }

// spdView is an entry of the SPD with what it has done.
type spdView struct {
	policySpec
	number int
	sas    int
	hits   *hits
}

// viewSPD takes a snapshot of the entries. It runs on the loop.
func (l *ikeLoop) viewSPD() []spdView {
	s := l.d.spd
	l.foldAll()
	views := make([]spdView, len(s.spec))
	for i := range s.spec {
		views[i] = spdView{policySpec: s.spec[i], number: i + 1, hits: s.hits[s.spec[i].key()]}
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
						views[i].sas++
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
				views[i].sas++
			}
		}
	}
	return views
}

// entryMessage writes what an entry says.
func entryMessage(m *control.Message, number int, s *policySpec) {
	m.SetInt(control.KeyNumber, int64(number))
	if s.Name != "" {
		m.Set(control.KeyName, s.Name)
	}
	m.Set(control.KeyAction, s.Action.String())
	m.Set(control.KeyDirection, s.Dir.String())
	if s.conn != "" {
		m.Set(control.KeyIKE, s.conn).Set(control.KeyChild, s.child)
	}
	if s.via != nil {
		m.Set(control.KeyInterface, s.via.name)
	}
	yes(m, control.KeyDynamic, s.dynamic)
	m.List(control.KeyLocalTS, selectorTexts(s.LocalTS)...)
	m.List(control.KeyRemoteTS, selectorTexts(s.RemoteTS)...)
}

func (h viciHandler) listSPD(stream func(string, *control.Message) error) (*control.Message, error) {
	var views []spdView
	l := h.e.loop
	if err := l.do(func() { views = l.viewSPD() }); err != nil {
		return nil, err
	}
	for i := range views {
		v := &views[i]
		m := new(control.Message)
		entryMessage(m, v.number, &v.policySpec)
		switch v.Action {
		case esp.Protect:
			m.SetInt(control.KeySAs, int64(v.sas))
			m.SetUint(control.KeyPacketsOut, v.hits.outPackets.Load()).SetUint(control.KeyBytesOut, v.hits.outBytes.Load())
			m.SetUint(control.KeyPacketsIn, v.hits.inPackets.Load()).SetUint(control.KeyBytesIn, v.hits.inBytes.Load())
			m.SetUint(control.KeyInClear, v.hits.inClear.Load())
		case esp.Discard:
			m.SetUint(control.KeyDiscarded, v.hits.discarded.Load())
			m.SetUint(control.KeyInClear, v.hits.inClear.Load())
		}
		if err := stream(control.EvListSPD, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// testPolicy says what becomes of a packet.
func (h viciHandler) testPolicy(req *control.Message) (*control.Message, error) {
	f, in, err := testedFlow(req)
	if err != nil {
		return nil, err
	}
	m := control.Success()
	l := h.e.loop
	err = l.do(func() {
		p := l.d.spd.cur.Load().first(&f, in)
		if p == nil {
			m.Set(control.KeyFate, control.FateNone)
			return
		}
		s := l.d.spd.spec[p.number-1]
		s.LocalTS, s.RemoteTS = p.LocalTS, p.RemoteTS // of a dynamic one, those that match
		entryMessage(m, p.number, &s)
		l.fate(m, p, &f, in)
	})
	return m, err
}

// fate says what becomes of a packet that matches an entry.
func (l *ikeLoop) fate(m *control.Message, p *policy, f *esp.Flow, in bool) {
	switch p.Action {
	case esp.Bypass:
		m.Set(control.KeyFate, control.FateBypass)
		return
	case esp.Discard:
		m.Set(control.KeyFate, control.FateDiscard)
		return
	}
	if in {
		for i := range l.d.sad.slots {
			sa := l.d.sad.slots[i].in.Load()
			if sa != nil && p.carries(sa.conn, sa.child, sa.via) && esp.MatchFlow(sa.localTS, sa.remoteTS, f) {
				m.Set(control.KeyFate, control.FateSA)
				m.Section(control.KeyChildSA).Set(control.KeyIKE, sa.conn).Set(control.KeyChild, sa.child).
					Set(control.KeySPIIn, fmt.Sprintf("%08x", sa.spi))
				return
			}
		}
		m.Set(control.KeyFate, control.FateNoSA)
		return
	}
	fate := control.FateNoSA
	_, sa := l.d.spd.lookup(f)
	switch {
	case sa != nil:
		fate = control.FateSA
	case p.acquire:
		fate = control.FateAcquire
	case p.wait:
		fate = control.FateWait
	}
	m.Set(control.KeyFate, fate)
	if sa != nil {
		m.Section(control.KeyChildSA).Set(control.KeyIKE, sa.conn).Set(control.KeyChild, sa.child).
			SetUint(control.KeyUniqueID, uint64(sa.id)).Set(control.KeySPIOut, fmt.Sprintf("%08x", sa.spi))
	}
}

// testedFlow reads the packet that a request asks about.
func testedFlow(req *control.Message) (f esp.Flow, in bool, err error) {
	src, err1 := netip.ParseAddr(req.Get(control.KeySrc))
	dst, err2 := netip.ParseAddr(req.Get(control.KeyDst))
	proto, ok := req.GetUint(control.KeyProto)
	if err1 != nil || err2 != nil || src.BitLen() != dst.BitLen() || !ok || proto > 255 {
		return f, false, errors.New("src and dst must be addresses of one family, and proto a number up to 255")
	}
	sport, ok1 := req.GetUint(control.KeySport)
	dport, ok2 := req.GetUint(control.KeyDport)
	if ok1 != ok2 || sport > 65535 || dport > 65535 {
		return f, false, errors.New("sport and dport must be numbers up to 65535, or both be absent")
	}
	f = esp.Flow{Local: src, Remote: dst, Proto: uint8(proto), LocalPort: uint16(sport), RemotePort: uint16(dport), NoPorts: !ok1}
	switch req.Get(control.KeyDirection) {
	case "", esp.OnlyOut.String():
	case esp.OnlyIn.String():
		in = true
		f.Local, f.Remote, f.LocalPort, f.RemotePort = f.Remote, f.Local, f.RemotePort, f.LocalPort
	default:
		return f, false, errors.New("direction must be in or out")
	}
	return f, in, nil
}
