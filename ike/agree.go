package ike

import (
	"bytes"
	"encoding/binary"

	"postern/esp"
)

// From two peers' proposals and selectors to an agreed CHILD SA, in IKE_AUTH and
// CREATE_CHILD_SA: parseCreated reads the answer to ours, parseCreate answers theirs.

// spiMin is the lowest SPI that may be used: those below are reserved (RFC 4303 section 2.1).
const spiMin = 256

// withoutDH returns the proposals as IKE_AUTH carries them: the first CHILD SA takes its
// keys from the IKE SA's exchange (RFC 7296 section 1.2).
func withoutDH(ps []Proposal) []Proposal {
	var out []Proposal
	for _, p := range ps {
		q := Proposal{Proto: p.Proto}
		for _, t := range p.Transforms {
			if t.Type != TransformDH && !t.Type.additional() {
				q.Transforms = append(q.Transforms, t)
			}
		}
		out = append(out, q)
	}
	return out
}

// withGroup returns the proposals with a DH group in each, where none has one; or nil.
func withGroup(ps []Proposal, g DHGroup) []Proposal {
	if g == DHNone || firstGroup(ps) != DHNone {
		return nil
	}
	out := withoutDH(ps)
	for i := range out {
		out[i].Transforms = append(out[i].Transforms, Transform{Type: TransformDH, ID: uint16(g)})
	}
	return out
}

// offerChild returns the proposals for a CHILD SA in a CREATE_CHILD_SA of ours: those of the
// configuration, with the IKE SA's group where the peer has shown that it wants PFS.
func (sa *ikeSA) offerChild(cfg *Child) []Proposal {
	if sa.pfs {
		if ps := withGroup(cfg.Proposals, sa.suite.DH); ps != nil {
			return ps
		}
	}
	return cfg.Proposals
}

// parseCreated takes the CHILD SA of the message into sa.req, and returns the peer's
// public value if there is one.
func (m *Machine) parseCreated(sa *ikeSA) (ke []byte, err error) {
	req := &sa.req
	body, tsi, tsr := m.msg.Find(PayloadSA), m.msg.Find(PayloadTSi), m.msg.Find(PayloadTSr)
	if body == nil || tsi == nil || tsr == nil {
		return nil, ErrNoProposal
	}
	offer, err := ParseSA(body.Body)
	if err != nil {
		return nil, err
	}
	if len(offer) != 1 || !checkChosen(offer[0], req.offered) || len(offer[0].SPI) != 4 ||
		binary.BigEndian.Uint32(offer[0].SPI) < spiMin {
		return nil, ErrNoProposal
	}
	req.chosen = offer[0]
	req.peerSPI = append([]byte(nil), offer[0].SPI...)
	suite, dh, err := offer[0].childSuite()
	if err == nil && suite.Encr == esp.EncrNone && sa.encap() {
		err = ErrAHNAT
	}
	if err != nil {
		return nil, err
	}
	local, err := ParseTS(tsi.Body)
	if err != nil {
		return nil, err
	}
	remote, err := ParseTS(tsr.Body)
	if err != nil {
		return nil, err
	}
	if local, remote, err = m.takeMode(sa, req, local, remote); err != nil {
		return nil, err
	}
	req.padding = m.takesPadding()
	if req.agg, req.refused = m.takeAggFrag(req.task.cfg, req.mode); req.refused == ErrMode {
		return nil, ErrMode
	}
	// The responder may only narrow (section 2.9). OpenIKED answers with all flows of its policy,
	// whichever of them were asked for: of these the ones that were offered hold, and nothing else is
	// sent or taken.
	if !within(local, req.ts[0]) || !within(remote, req.ts[1]) {
		if local, remote = narrowTS(req.ts[0], local), narrowTS(req.ts[1], remote); len(local) == 0 || len(remote) == 0 {
			return nil, ErrWidened
		}
	}
	if len(sa.remote.vips) > 0 && req.mode == esp.Tunnel {
		// Any address was offered as long as ours was not known.
		if local = narrowTS(resolveTS(req.task.cfg.LocalTS, sa.remote.vips...), local); len(local) == 0 {
			return nil, ErrNotAssigned
		}
	}
	req.gotTS = [2][]esp.Selector{local, remote}
	req.frags = m.agreeFragments(req.task.cfg, req.mode)
	_, req.perCPU = m.msg.FindNotify(NotifySAResourceInfo)
	if m.msg.Find(PayloadNonce) != nil { // IKE_AUTH has none
		req.nr = bytes.Clone(m.nonceAtHand())
	}
	if len(req.nr) == 0 {
		return nil, ErrNonce
	}
	if dh == DHNone {
		return nil, nil
	}
	return m.peerKE(dh, req)
}

// peerKE returns the public value of a response, which must be of the group that we sent ours for.
func (m *Machine) peerKE(dh DHGroup, req *request) ([]byte, error) {
	p := m.msg.Find(PayloadKE)
	if p == nil || req.pair == nil || dh != req.group {
		return nil, ErrGroup
	}
	g, ke, err := ParseKE(p.Body)
	if err == nil && (g != dh || len(ke) != g.answerLen()) {
		err = ErrGroup
	}
	return ke, err
}

// parseCreate chooses a CHILD SA of the connection for the proposals and selectors of the
// message, as responder. first is set in IKE_AUTH, where there is no key exchange.
func (m *Machine) parseCreate(sa *ikeSA, req *peerCreate, first bool) *refusal {
	bad := func(err error) *refusal { return &refusal{t: NotifyInvalidSyntax, err: err} }
	tsi, tsr := m.msg.Find(PayloadTSi), m.msg.Find(PayloadTSr)
	if tsi == nil || tsr == nil {
		return bad(ErrNoTS)
	}
	offered, err := ParseSA(m.msg.Find(PayloadSA).Body)
	if err != nil {
		return bad(err)
	}
	remoteTS, err := ParseTS(tsi.Body)
	if err != nil {
		return bad(err)
	}
	localTS, err := ParseTS(tsr.Body)
	if err != nil {
		return bad(err)
	}
	var group DHGroup
	var ke []byte
	if k := m.msg.Find(PayloadKE); k != nil && !first {
		if group, ke, err = ParseKE(k.Body); err != nil {
			return bad(err)
		}
	}
	var no *refusal
	if req.cp, no = m.grantAddresses(sa, req.alone); no != nil {
		return no
	}
	remoteTS = assignedTS(remoteTS, sa.remoteVIPs())
	no = &refusal{t: NotifyTSUnacceptable, err: ErrTSMismatch}
	best, exact := 0, false
	asked := m.askedMode(sa, localTS, remoteTS)
	for _, cfg := range sa.conn.Children {
		if req.kind == taskRekeyChild && cfg != req.cfg {
			continue
		}
		mode, localTS, remoteTS := asked.granted(cfg.Mode)
		local := narrowTS(resolveTS(cfg.LocalTS, sa.ourAddrs()...), localTS)
		remote := narrowTS(resolveTS(cfg.RemoteTS, sa.theirAddrs()...), remoteTS)
		if !sharedFamily(local, remote) {
			continue
		}
		agg, ok := m.grantAggFrag(cfg, mode, req.target)
		if !ok {
			if best == 0 {
				no = &refusal{t: NotifyNoProposalChosen, err: ErrIPTFS}
			}
			continue
		}
		chosen, ok := chooseProposal(cfg.Proposals, offered, group, first)
		if !ok && !first {
			// A peer may insist on PFS where we do not ask for it: libreswan does by default, with the
			// group of the IKE SA. That one is good enough for us, too.
			chosen, ok = chooseProposal(withGroup(cfg.Proposals, sa.suite.DH), offered, group, false)
		}
		var suite esp.Suite
		var dh DHGroup
		if ok {
			suite, dh, err = chosen.childSuite()
			if ok = suite.Encr != esp.EncrNone || !sa.encap(); !ok && best == 0 {
				no = &refusal{t: NotifyNoProposalChosen, err: ErrAHNAT}
				continue
			}
			ok = ok && err == nil && len(chosen.SPI) == 4 && binary.BigEndian.Uint32(chosen.SPI) >= spiMin
		}
		if !ok {
			if best == 0 {
				no = &refusal{t: NotifyNoProposalChosen, err: ErrNoProposal}
			}
			continue
		}
		// What takes the peer's selectors as they are fits better than what narrows them.
		score := 1
		if within(localTS, local) && within(remoteTS, remote) {
			score = 2
		}
		// The order of children with different devices says nothing: there the one fits better
		// that the peer asks for as it is here.
		whole := within(resolveTS(cfg.LocalTS, sa.ourAddrs()...), localTS) && within(resolveTS(cfg.RemoteTS, sa.theirAddrs()...), remoteTS)
		if score < best || score == best && (exact || !whole || cfg.Interface == req.cfg.Interface) {
			continue
		}
		best, exact = score, whole
		req.cfg, req.chosen, req.suite, req.dh = cfg, chosen, suite, dh
		req.local, req.remote, req.mode = local, remote, mode
		req.frags = m.agreeFragments(cfg, mode)
		req.padding, req.agg = m.takesPadding(), agg
		if req.seen = (seenAs{}); mode == esp.Transport {
			req.seen = asked.seen
		}
	}
	if best == 0 {
		return no
	}
	if first {
		req.dh = DHNone
	}
	req.spiOut = binary.BigEndian.Uint32(req.chosen.SPI)
	if req.dh == DHNone {
		return nil
	}
	return checkKE(req.dh, group, ke)
}
