package vici

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
func (h Handler) listPolicies(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	var specs []Policy
	if err := h.D.Do(func(l Loop) { specs = l.Policies() }); err != nil {
		return nil, err
	}
	wants := func(key string) bool { _, ok := req.Lookup(key); return ok }
	// As charon does, traps first.
	slices.SortStableFunc(specs, func(a, b Policy) int {
		return shuntOrder(a.Action) - shuntOrder(b.Action)
	})
	for i := range specs {
		s := &specs[i]
		mode, kind := s.Mode.String(), control.KeyTrap
		switch s.Action {
		case esp.Bypass:
			mode, kind = modePass, control.KeyPass
		case esp.Discard:
			mode, kind = modeDrop, control.KeyDrop
		default:
			if !s.Trap {
				continue
			}
		}
		ike, child := s.Conn, s.Child
		if ike == "" {
			ike, child = tableSpace, s.Name
		}
		if !wants(kind) || !fits(req.Get(control.KeyIKE), ike) || !fits(req.Get(control.KeyChild), child) {
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

// modePass and modeDrop are charon's words for children without SAs.
const modePass, modeDrop = "PASS", "DROP"

// shuntOrder is 0 for what is protected and 1 for the rest.
func shuntOrder(a esp.Action) int {
	if a == esp.Protect {
		return 0
	}
	return 1
}

// fits tells whether a name is wanted; "" wants any.
func fits(wanted, name string) bool { return wanted == "" || wanted == name }

// entryMessage writes what an entry says.
func entryMessage(m *control.Message, s *Policy) {
	m.SetInt(control.KeyNumber, int64(s.Number))
	if s.Name != "" {
		m.Set(control.KeyName, s.Name)
	}
	m.Set(control.KeyAction, s.Action.String())
	m.Set(control.KeyDirection, s.Dir.String())
	if s.Conn != "" {
		m.Set(control.KeyIKE, s.Conn).Set(control.KeyChild, s.Child)
	}
	if s.Device != "" {
		m.Set(control.KeyInterface, s.Device)
	}
	yes(m, control.KeyDynamic, s.Dynamic)
	m.List(control.KeyLocalTS, selectorTexts(s.LocalTS)...)
	m.List(control.KeyRemoteTS, selectorTexts(s.RemoteTS)...)
}

func (h Handler) listSPD(stream func(string, *control.Message) error) (*control.Message, error) {
	var views []Entry
	if err := h.D.Do(func(l Loop) { views = l.Entries() }); err != nil {
		return nil, err
	}
	for i := range views {
		v := &views[i]
		m := new(control.Message)
		entryMessage(m, &v.Policy)
		switch v.Action {
		case esp.Protect:
			m.SetInt(control.KeySAs, int64(v.SAs))
			m.SetUint(control.KeyPacketsOut, v.OutPackets).SetUint(control.KeyBytesOut, v.OutBytes)
			m.SetUint(control.KeyPacketsIn, v.InPackets).SetUint(control.KeyBytesIn, v.InBytes)
			m.SetUint(control.KeyInClear, v.InClear)
		case esp.Discard:
			m.SetUint(control.KeyDiscarded, v.Discarded)
			m.SetUint(control.KeyInClear, v.InClear)
		}
		if err := stream(control.EvListSPD, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// testPolicy says what becomes of a packet.
func (h Handler) testPolicy(req *control.Message) (*control.Message, error) {
	f, in, err := testedFlow(req)
	if err != nil {
		return nil, err
	}
	m := control.Success()
	err = h.D.Do(func(l Loop) {
		fate := l.Fate(&f, in)
		if fate.Entry != nil {
			entryMessage(m, fate.Entry)
		}
		m.Set(control.KeyFate, fate.What)
		if fate.Conn == "" {
			return
		}
		sa := m.Section(control.KeyChildSA).Set(control.KeyIKE, fate.Conn).Set(control.KeyChild, fate.Child)
		spi := control.KeySPIIn
		if !in {
			sa.SetUint(control.KeyUniqueID, uint64(fate.ID))
			spi = control.KeySPIOut
		}
		sa.Set(spi, fmt.Sprintf("%08x", fate.SPI))
	})
	return m, err
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
