package ike

import (
	"encoding/binary"
	"slices"
)

// IKE_INTERMEDIATE (RFC 9242) between IKE_SA_INIT and IKE_AUTH, one exchange for each additional
// key exchange that IKE_SA_INIT has agreed on (RFC 9370 section 2.2.2). What is too large for
// IKE_SA_INIT travels here, since encrypted messages can be split.
//
//	initiator:  initKeyed -> interStart -> (key pair) -> interSend
//	            ... interResponse -> (shared) -> interKeyed -> the next one, or authSend
//	responder:  initRespond ... interRequest -> (key pair and shared) -> interRespond ... authRequest
//
// Nobody has authenticated yet. So a responder takes exactly as many of these requests as were
// agreed on, one after the other and each once, and gives the whole up at the first that is
// wrong. It has checked the cookie, if it asks for them, and limits how many peers are so far.
//
// Each exchange makes new keys. The peer repeats its request under the former ones if it does
// not get our response, which is why these are kept until it has gone on.

// intermediate is what an IKE SA keeps of these exchanges until IKE_AUTH is over.
type intermediate struct {
	done int // additional key exchanges that are over

	// IntAuth_i and IntAuth_r of RFC 9242 section 3.3.2: what both have said so far.
	i, r []byte

	sealer, opener *skCipher // responder: of the last exchange that is over
}

// wipe forgets all of it.
func (s *intermediate) wipe() {
	if s.opener != nil {
		s.sealer.wipe()
		s.opener.wipe()
	}
	*s = intermediate{}
}

// dueKE returns the method of the additional key exchange that comes next before IKE_AUTH,
// DHNone if there is none. A resumed session has made all that belong to its suite before.
func (sa *ikeSA) dueKE() DHGroup {
	if list := sa.suite.KE.list(); !sa.resume.on && sa.inter.done < len(list) {
		return list[sa.inter.done]
	}
	return DHNone
}

// expects tells whether an authentic request may be of that exchange now.
func (sa *ikeSA) expects(ex Exchange) bool {
	switch {
	case sa.state != StateConnecting:
		return ex != ExchangeAuth && ex != ExchangeIntermediate
	case sa.initiator:
		return false
	case sa.dueKE() != DHNone:
		return ex == ExchangeIntermediate
	}
	return ex == ExchangeAuth
}

// openerOf returns the cipher that opens the peer's message with that header: the former one,
// if it is the request of an additional key exchange that we have answered, and after which
// there were new keys.
func (sa *ikeSA) openerOf(h *Header) *skCipher {
	if sa.inter.opener != nil && h.Exchange == ExchangeIntermediate && !h.Response() && sa.reply.valid && sa.reply.id == h.ID {
		return sa.inter.opener
	}
	return sa.opener
}

// withFormerKeys runs f while the cipher in use is that of the response to the last request of
// an additional key exchange.
func (m *Machine) withFormerKeys(sa *ikeSA, f func()) {
	if sa.inter.sealer == nil || sa.state != StateConnecting {
		f()
		return
	}
	sa.sealer, sa.inter.sealer = sa.inter.sealer, sa.sealer
	f()
	sa.sealer, sa.inter.sealer = sa.inter.sealer, sa.sealer
}

// covered returns what IntAuth covers of the message, which has been received: IntAuth_A, from
// the first octet of the header to the last of the Encrypted payload's generic header, and
// IntAuth_P, the inner payloads. Both lengths are those without initialization vector, padding
// and checksum, so that they do not depend on whether the message came in fragments.
func (m *Message) covered() []byte {
	b := make([]byte, 0, headerLen+payloadHdr+len(m.inner))
	b = append(b, m.raw[:headerLen]...)
	b[offNext] = byte(PayloadSK)
	b = append(b, byte(m.SKNext), m.skBits, 0, 0)
	return adjusted(append(b, m.inner...))
}

// coveredOf returns the same of a message of ours that is ready to be sealed.
func coveredOf(msg []byte, skOff, ivLen int) []byte {
	return adjusted(slices.Concat(msg[:skOff+payloadHdr], msg[skOff+payloadHdr+ivLen:]))
}

// adjusted writes the two lengths into what IntAuth covers.
func adjusted(b []byte) []byte {
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)))
	binary.BigEndian.PutUint16(b[headerLen+2:], uint16(len(b)-headerLen))
	return b
}

// cover takes a message of IKE_INTERMEDIATE into IntAuth, the initiator's or the responder's:
//
//	IntAuth_n = prf(SK_p, IntAuth_n-1 | IntAuth_nA | IntAuth_nP)
//
// with the SK_p from before the exchange.
func (sa *ikeSA) cover(initiators bool, message []byte) {
	if initiators {
		sa.inter.i = sa.suite.PRF.sum(sa.keys.pi, sa.inter.i, message)
	} else {
		sa.inter.r = sa.suite.PRF.sum(sa.keys.pr, sa.inter.r, message)
	}
	clear(message)
}

// intAuth returns IntAuth = IntAuth_i | IntAuth_r | IKE_AUTH_MID, which ends what an AUTH payload
// is about; it is empty if there was no IKE_INTERMEDIATE. The last part is the message ID of
// the first IKE_AUTH request.
func (sa *ikeSA) intAuth() []byte {
	if sa.inter.done == 0 {
		return nil
	}
	return slices.Concat(sa.inter.i, sa.inter.r, be32(uint32(sa.inter.done)+1))
}

// interStart begins the next additional key exchange, or IKE_AUTH if all are over.
func (m *Machine) interStart(sa *ikeSA) {
	g := sa.dueKE()
	if g == DHNone {
		m.authSend(sa)
		return
	}
	sa.req = request{active: true, task: task{kind: taskInit}, exchange: ExchangeIntermediate, group: g}
	m.startWork(sa, laneOurs, jobInterPair, g, nil, nil)
}

// interSend sends our request once the key pair is there.
func (m *Machine) interSend(sa *ikeSA, r Result) {
	if r.err != nil {
		m.destroy(sa, r.err)
		return
	}
	sa.req.pair = r.pair
	m.sendRequest(sa, ExchangeIntermediate, func(b *Builder) { b.KE(sa.req.group, r.pair.public()) })
}

// interResponse handles the peer's answer.
func (m *Machine) interResponse(sa *ikeSA) {
	k := m.msg.Find(PayloadKE)
	if k == nil {
		err := m.notifyError()
		if err == nil {
			err = ErrGroup
		}
		m.destroy(sa, err)
		return
	}
	g, ke, err := ParseKE(k.Body)
	if err == nil && g != sa.req.group {
		err = ErrGroup
	}
	if err == nil && len(ke) != g.answerLen() {
		err = ErrKELength
	}
	if err != nil {
		m.destroy(sa, err)
		return
	}
	sa.cover(false, m.msg.covered())
	m.startWork(sa, laneOurs, jobInterShared, g, sa.req.pair, ke)
}

// interKeyed goes on with new keys once the shared secret is there.
func (m *Machine) interKeyed(sa *ikeSA, r Result) {
	err := r.err
	if err == nil {
		sealer, opener := sa.sealer, sa.opener
		err = m.interKeys(sa, r.shared)
		sealer.wipe()
		opener.wipe()
	}
	if err != nil {
		m.destroy(sa, err)
		return
	}
	m.answered(sa)
	m.interStart(sa)
}

// interKeys makes the keys that follow an additional key exchange (RFC 9370 section 2.2.2).
func (m *Machine) interKeys(sa *ikeSA, shared []byte) error {
	old := sa.keys
	defer old.wipe()
	sa.inter.done++
	return m.keyed(sa, skeyseedRekey(sa.suite.PRF, old.d, shared, sa.ni, sa.nr))
}

// interRequest handles the peer's request, which is the one that is due.
func (m *Machine) interRequest(sa *ikeSA, p Path) {
	k := m.msg.Find(PayloadKE)
	g, ke, err := ParseKE(k.Body)
	if err == nil && g != sa.dueKE() {
		err = ErrGroup
	}
	if err == nil && len(ke) != g.publicLen() {
		err = ErrKELength
	}
	if err != nil {
		m.interFailed(sa, p, err)
		return
	}
	sa.cover(true, m.msg.covered())
	sa.peer = peerCreate{path: p, id: m.msg.ID}
	m.startWork(sa, lanePeers, jobInterRespond, g, nil, ke)
}

// interFailed refuses the peer's request and forgets the peer.
func (m *Machine) interFailed(sa *ikeSA, p Path, err error) {
	m.refuse(sa, p, ExchangeIntermediate, &refusal{t: NotifyInvalidSyntax, err: err})
	m.destroy(sa, err)
}

// interRespond answers once the shared secret is there, and goes on with new keys.
func (m *Machine) interRespond(sa *ikeSA, r Result) {
	p := sa.peer.path
	sa.window.at = sa.peer.id
	sa.peer = peerCreate{}
	if r.err != nil {
		m.interFailed(sa, p, r.err)
		return
	}
	g := sa.dueKE()
	m.respond(sa, p, ExchangeIntermediate, func(b *Builder) { b.KE(g, r.pair.public()) })
	r.pair.wipe()
	if sa.inter.opener != nil {
		sa.inter.sealer.wipe()
		sa.inter.opener.wipe()
	}
	sa.inter.sealer, sa.inter.opener = sa.sealer, sa.opener
	if err := m.interKeys(sa, r.shared); err != nil {
		m.destroy(sa, err)
		return
	}
	m.arm(sa, tConnect, halfOpenLife)
}
