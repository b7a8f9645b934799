package ike

import (
	"net/netip"

	"postern/esp"
)

// The modes beside tunnel mode. The initiator asks for one by a notify, and the responder
// grants it by the same notify, or leaves it out and the CHILD SA is in tunnel mode
// (RFC 7296 section 1.3.1). Transport mode is for the two hosts themselves; where a NAT
// stands between them, each side calls the two by other addresses (section 2.23.1).

// writeMode adds the notify that asks for a mode, or grants it.
func writeMode(b *Builder, mode esp.Mode) {
	switch mode {
	case esp.Transport:
		b.Notify(NotifyUseTransportMode, ProtoNone, nil, nil)
	case esp.BEET:
		b.Notify(NotifyUseBEETMode, ProtoNone, nil, nil)
	}
}

// sentMode returns the mode that the message asks for, or grants.
func (m *Machine) sentMode() esp.Mode {
	if _, ok := m.msg.FindNotify(NotifyUseTransportMode); ok {
		return esp.Transport
	}
	if _, ok := m.msg.FindNotify(NotifyUseBEETMode); ok {
		return esp.BEET
	}
	return esp.Tunnel
}

// singleHost returns the one address that all selectors are for; ok is false if there is none.
func singleHost(ts []esp.Selector) (a netip.Addr, ok bool) {
	for i, s := range ts {
		if s.Start != s.End || i > 0 && s.Start != a {
			return netip.Addr{}, false
		}
		a = s.Start
	}
	return a, len(ts) > 0
}

// atHost returns the selectors with another address.
func atHost(ts []esp.Selector, a netip.Addr) []esp.Selector {
	out := make([]esp.Selector, len(ts))
	for i, s := range ts {
		s.Start, s.End = a, a
		out[i] = s
	}
	return out
}

// offerMode returns the mode to ask for with selectors: the configured one, or tunnel mode if
// that is not possible with them.
func (m *Machine) offerMode(sa *ikeSA, mode esp.Mode, ts *[2][]esp.Selector) esp.Mode {
	l, one := singleHost(ts[0])
	r, other := singleHost(ts[1])
	switch {
	case !one || !other:
		return esp.Tunnel
	case mode == esp.Transport && (l != sa.path.Local.Addr() || r != sa.path.Remote.Addr()):
		return esp.Tunnel
	}
	return mode
}

// seenAs are the addresses by which the peer calls the two ends of an SA in transport mode,
// ours first; the zero value: as we do. TCP's and UDP's checksums cover them (RFC 3948 section
// 3.1.2).
type seenAs [2]netip.Addr

// localised puts our view of the two ends in place of the peer's in selectors of transport
// mode, where a NAT is in front of that end.
func (sa *ikeSA) localised(local, remote []esp.Selector) (l, r []esp.Selector, seen seenAs, ok bool) {
	la, one := singleHost(local)
	ra, other := singleHost(remote)
	if !one || !other {
		return local, remote, seen, false
	}
	seen = seenAs{la, ra}
	if a := sa.path.Local.Addr(); sa.natLocal && a.BitLen() == la.BitLen() {
		local, la = atHost(local, a), a
	}
	if a := sa.path.Remote.Addr(); sa.natPeer && a.BitLen() == ra.BitLen() {
		remote, ra = atHost(remote, a), a
	}
	if seen == (seenAs{la, ra}) {
		seen = seenAs{}
	}
	return local, remote, seen, true
}

// askedMode is what a peer's request asks for: the mode and the selectors, as they are and as
// they are for us in that mode.
type askedMode struct {
	mode                esp.Mode
	seen                seenAs
	local, remote       []esp.Selector
	ourLocal, ourRemote []esp.Selector
}

// askedMode reads what the request in m.msg asks for with the selectors.
func (m *Machine) askedMode(sa *ikeSA, local, remote []esp.Selector) askedMode {
	a := askedMode{mode: m.sentMode(), local: local, remote: remote, ourLocal: local, ourRemote: remote}
	switch a.mode {
	case esp.Transport:
		var ok bool
		a.ourLocal, a.ourRemote, a.seen, ok = sa.localised(local, remote)
		if l, r := a.ends(); !ok || l != sa.path.Local.Addr() || r != sa.path.Remote.Addr() {
			a.mode = esp.Tunnel
		}
	case esp.BEET:
		if _, ok := singleHost(local); !ok {
			a.mode = esp.Tunnel
		}
		if _, ok := singleHost(remote); !ok {
			a.mode = esp.Tunnel
		}
	}
	return a
}

func (a *askedMode) ends() (local, remote netip.Addr) {
	local, _ = singleHost(a.ourLocal)
	remote, _ = singleHost(a.ourRemote)
	return local, remote
}

// granted returns the mode in which a child that is configured for mode takes the request, and
// the selectors to choose from.
func (a *askedMode) granted(mode esp.Mode) (got esp.Mode, local, remote []esp.Selector) {
	if a.mode == mode && mode != esp.Tunnel {
		return mode, a.ourLocal, a.ourRemote
	}
	return esp.Tunnel, a.local, a.remote
}

// takeMode reads the mode that the response in m.msg grants into req, and returns its
// selectors as they are for us. A mode that was not asked for is ErrMode.
func (m *Machine) takeMode(sa *ikeSA, req *request, local, remote []esp.Selector) (l, r []esp.Selector, err error) {
	got := m.sentMode()
	if got != esp.Tunnel && got != req.mode {
		return nil, nil, ErrMode
	}
	req.mode = got
	if got != esp.Transport {
		return local, remote, nil
	}
	var ok bool
	if local, remote, req.seen, ok = sa.localised(local, remote); !ok {
		return nil, nil, ErrWidened
	}
	return local, remote, nil
}

// stranded tells whether a CHILD SA cannot go on along the path of its IKE SA: the addresses
// of transport mode are those of the hosts, which RFC 4555 does not move (section 1.2).
func (c *childSA) stranded(p Path) bool {
	if c.mode != esp.Transport {
		return false
	}
	l, _ := singleHost(c.local)
	r, _ := singleHost(c.remote)
	return l != p.Local.Addr() || r != p.Remote.Addr()
}

// Where selectors are for some ports, the fragments after the first one, which show none, pass in tunnel mode
// alone, and only if both sides say that they take them: the initiator by a notify, the responder by the same
// one (RFC 7296 section 1.3.1, RFC 4301 section 7.3). Without it the CHILD SA is made as well.

// writeFragments adds that notify.
func writeFragments(b *Builder, on bool) {
	if on {
		b.Notify(NotifyNonFirstFragmentsAlso, ProtoNone, nil, nil)
	}
}

// agreeFragments tells whether the peer's message and the configuration of a child in that mode
// both have it.
func (m *Machine) agreeFragments(cfg *Child, mode esp.Mode) bool {
	_, ok := m.msg.FindNotify(NotifyNonFirstFragmentsAlso)
	return ok && mode == esp.Tunnel && cfg.Fragments
}
