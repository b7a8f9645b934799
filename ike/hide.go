package ike

import (
	"time"

	"postern/esp"
)

// What a CHILD SA in tunnel mode does so that the sizes and times of its packets tell less of
// what is in them. Padding (RFC 4303 section 2.7) and dummies (section 2.6) are the sender's
// alone, unless the receiver says that it cannot take the former (RFC 7296 section 3.10.1);
// AGGFRAG payloads (RFC 9347) need both sides.

// PadMTU as Hiding.Padding pads to the longest packet that the path takes.
const PadMTU = -1

// AskIPTFS says whether to use AGGFRAG payloads.
type AskIPTFS uint8

// The answers.
const (
	IPTFSNo      AskIPTFS = iota
	IPTFSYes              // if the peer does, too
	IPTFSRequire          // or there is no CHILD SA
)

// IPTFSMode says when AGGFRAG payloads leave (RFC 9347 section 2.4).
type IPTFSMode uint8

// The modes. In the first two packets of one size leave all the time, filled up with
// padding.
const (
	IPTFSCongestion IPTFSMode = iota // at a rate that the path allows
	IPTFSConstant                    // at the rate that is configured
	IPTFSAggregate                   // when there is something to send: fewer packets, nothing hidden
)

// Hiding is how we send. The zero value hides nothing.
type Hiding struct {
	Padding  int           // octets that inner packets are padded to; 0: none; or PadMTU
	Dummies  time.Duration // mean silence after which a dummy packet leaves; 0: none do
	IPTFS    AskIPTFS
	Mode     IPTFSMode
	Rate     uint64 // bits per second with outer IP headers; IPTFSCongestion: the most, 0: no limit
	Size     int    // octets of the outer IP packets; 0: as many as the path takes
	NoFrags  bool   // whole inner packets alone are sent, and taken
	TripLoss int    // IPTFSConstant: percent of packets lost for TripTime that stop it; 0: nothing does
	TripTime time.Duration
}

// aggHeader is the longer header of AGGFRAG payloads (RFC 9347 section 6.1.2).
const aggHeader = 24

// Longest returns the length of the longest packet that an SA like sa of the child carries in one packet of
// mtu octets, as esp.SA's MaxPacket does: with AGGFRAG payloads, which the peer may want to have
// whole packets in.
func (h *Hiding) Longest(sa *esp.SA, mtu int) int {
	if h.IPTFS == IPTFSNo || sa.Proto != esp.ESP {
		return sa.MaxPacket(mtu)
	}
	if h.NoFrags && h.Size > 0 {
		mtu = min(mtu, h.Size)
	}
	return max(sa.MaxPacket(mtu)-aggHeader, 0)
}

// AggFrag is what the peers agreed on about AGGFRAG payloads. The zero value: they are not
// used.
type AggFrag struct {
	On          bool
	PeerNoFrags bool // the peer does not take fragments
	PeerReports bool // the peer wants congestion information
}

// The flags of USE_AGGFRAG (RFC 9347 section 6.1.4).
const (
	aggNoFrags = 1 << 0 // D
	aggReports = 1 << 1 // C
)

// offers tells whether a CHILD SA in that mode asks for AGGFRAG payloads, which no other than
// tunnel mode has (RFC 9347 section 5.1).
func (h *Hiding) offers(mode esp.Mode) bool { return h.IPTFS != IPTFSNo && mode == esp.Tunnel }

// askAggFrag adds the notify that asks for AGGFRAG payloads, if cfg does and there is room. target
// is the CHILD SA that is replaced.
func (m *Machine) askAggFrag(b *Builder, cfg *Child, mode esp.Mode, target uint32) {
	cfg.Hiding.write(b, cfg.Hiding.offers(mode) && m.aggRoom(target))
}

// write adds the notify that asks for AGGFRAG payloads, or grants them, with what we require
// of the peer.
func (h *Hiding) write(b *Builder, on bool) {
	if !on {
		return
	}
	var flags byte
	if h.NoFrags {
		flags |= aggNoFrags
	}
	if h.Mode != IPTFSAggregate {
		flags |= aggReports // for the rate, or the circuit breaker
	}
	b.Notify(NotifyUseAGGFRAG, ProtoNone, nil, []byte{flags})
}

// sentAggFrag returns what the message asks for or grants. known is false if it requires
// something that is not known here.
func (m *Machine) sentAggFrag() (a AggFrag, known bool) {
	n, ok := m.msg.FindNotify(NotifyUseAGGFRAG)
	if !ok {
		return a, true
	}
	if len(n.Data) != 1 || n.Data[0]&^(aggNoFrags|aggReports) != 0 {
		return a, false
	}
	return AggFrag{true, n.Data[0]&aggNoFrags != 0, n.Data[0]&aggReports != 0}, true
}

// aggRoom tells whether there may be another CHILD SA with AGGFRAG payloads, for which tables are
// kept; one in place of another needs none.
func (m *Machine) aggRoom(target uint32) bool {
	n := 0
	for i := range m.children {
		if c := &m.children[i]; c.agg.On && c.unique != target && (c.state == ChildInstalled || c.state == ChildRekeying) {
			n++
		}
	}
	return m.aggFrags == 0 || n < m.aggFrags
}

// takesPadding tells whether the sender of the message takes padded packets.
func (m *Machine) takesPadding() bool {
	_, no := m.msg.FindNotify(NotifyESPTFCPaddingNotSupported)
	return !no
}

// grantAggFrag decides, as responder, on AGGFRAG payloads for a CHILD SA of cfg; ok is false if
// there can be none.
func (m *Machine) grantAggFrag(cfg *Child, mode esp.Mode, target uint32) (a AggFrag, ok bool) {
	if cfg.Hiding.offers(mode) && m.aggRoom(target) {
		if a, ok = m.sentAggFrag(); !ok {
			a = AggFrag{}
		}
	}
	return a, a.On || cfg.Hiding.IPTFS != IPTFSRequire
}

// takeAggFrag reads what the response in m.msg grants of what cfg asks for. ErrMode: it was
// not asked for. ErrIPTFS: the peer has a CHILD SA now that cannot be used.
func (m *Machine) takeAggFrag(cfg *Child, mode esp.Mode) (AggFrag, error) {
	a, known := m.sentAggFrag()
	switch {
	case a.On && !cfg.Hiding.offers(mode):
		return a, ErrMode
	case !known || !a.On && cfg.Hiding.IPTFS == IPTFSRequire:
		return AggFrag{}, ErrIPTFS
	}
	return a, nil
}

// hiding returns what a CHILD SA hides, in the mode and after what the peer has said.
func (c *Child) hiding(mode esp.Mode, padding bool, a AggFrag) Hiding {
	h := c.Hiding
	if mode != esp.Tunnel {
		return Hiding{}
	}
	if !padding || a.On { // AGGFRAG payloads are filled up themselves
		h.Padding = 0
	}
	if a.On {
		h.Dummies = 0
	}
	return h
}
