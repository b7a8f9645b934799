package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// Quick crash detection (RFC 6290): each side gives the other a token that it can make
// again after it has lost everything but one secret. Shown in clear, in answer to a
// message for an IKE SA that is not there, the token proves that the SA is gone, and the
// peer need not wait for its liveness checks to time out.
//
//	maker:  qcdNotify (IKE_AUTH, rekeying) ... crash ... unknownSPI -> qcdAnswer
//	taker:  takeToken                      ...           unprotected -> destroy, connect
//
// A maker that has lost its SAs mostly sees ESP. It tells the sender so by an INVALID_SPI
// that proves nothing (RFC 7296 section 1.5); the sender takes it as a hint to check at
// once whether the peer lives, and that brings the token.

const (
	// qcdSecretLen is the length of Config.QCDSecret (section 5.1).
	qcdSecretLen = 32
	// The length of a peer's token (section 5). Ours have 32 octets.
	tokenMin, tokenMax = 16, 128
	// maxTokens is how many tokens of one message are looked at (section 4.5).
	maxTokens = 4

	// hintInterval is the least time between two checks of one IKE SA that unprotected
	// messages have caused. Anybody can send those.
	hintInterval = 2 * time.Second

	// tokensPerSource bounds, per second and source, the tokens that we show and those that
	// we verify (section 8.1).
	tokensPerSource = 5
)

// qcdState is the machine's part. Without a secret the extension is off, both ways.
type qcdState struct {
	secret []byte
	shown  sourceLimiter // tokens sent in clear
	seen   sourceLimiter // tokens in clear that were verified
	hints  sourceLimiter // INVALID_SPI sent
}

// qcdSA is an IKE SA's part: a digest of the peer's token, and when a hint was last followed.
type qcdSA struct {
	set    bool
	token  [sha256.Size]byte
	hinted time.Duration
	tell   bool // the peer does not have our token yet
}

// token returns our token for a pair of SPIs (section 5.1, with HMAC in the place of the
// plain hash).
func (q *qcdState) token(spiI, spiR uint64) []byte {
	mac := hmac.New(sha256.New, q.secret)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], spiI)
	binary.BigEndian.PutUint64(b[8:], spiR)
	mac.Write([]byte("QCD token"))
	mac.Write(b[:])
	return mac.Sum(nil)
}

func (m *Machine) configureQCD(secret []byte) {
	m.qcd.secret = nil
	if len(secret) == qcdSecretLen {
		m.qcd.secret = append([]byte(nil), secret...)
	}
}

// qcdNotify adds our token for the IKE SA to a protected message.
func (m *Machine) qcdNotify(b *Builder, sa *ikeSA) {
	if m.qcd.secret != nil {
		writeToken(b, m.qcd.token(sa.spiI, sa.spiR))
	}
}

// writeToken writes the notify of section 4.1: about an IKE SA, but without an SPI.
func writeToken(b *Builder, token []byte) {
	t := NotifyQuickCrashDetection
	b.Raw(PayloadNotify, false, append([]byte{byte(ProtoIKE), 0, byte(t >> 8), byte(t & 0xff)}, token...))
}

// sentToken returns the peer's token in the protected message at hand, or nil.
func (m *Machine) sentToken() []byte {
	n, ok := m.msg.FindNotify(NotifyQuickCrashDetection)
	if !ok || m.qcd.secret == nil || len(n.Data) < tokenMin || len(n.Data) > tokenMax {
		return nil
	}
	return append([]byte(nil), n.Data...)
}

// takeToken keeps the peer's token for sa; nil changes nothing.
func (sa *ikeSA) takeToken(token []byte) {
	if token != nil {
		sa.qcd.set, sa.qcd.token = true, sha256.Sum256(token)
	}
}

// expected tells whether a connection is for this pair of addresses.
func (m *Machine) expected(p Path) bool {
	for _, s := range m.conns {
		if m.matches(s.conn, p) {
			return true
		}
	}
	return false
}

// qcdAnswer returns the token to show for a protected request of an IKE SA that is not
// here, or nil. It must never be one of an SA that lives (section 9.2): not when somebody
// else sends the SPIs, exchanges them or turns a flag, and not for an SA of which we do
// not know the peer's SPI yet. So nothing is shown for any SPI that is ours at the moment.
func (m *Machine) qcdAnswer(p Path, h *Header, b []byte) []byte {
	if m.qcd.secret == nil || h.SPIi == 0 || h.SPIr == 0 || h.Exchange == ExchangeInit || !m.expected(p) {
		return nil
	}
	if err := m.msg.Parse(b); err != nil || !m.msg.Encrypted() {
		return nil
	}
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state != StateFree && (sa.localSPI() == h.SPIi || sa.localSPI() == h.SPIr) {
			return nil
		}
	}
	if !m.qcd.shown.allow(m, p) {
		return nil
	}
	return m.qcd.token(h.SPIi, h.SPIr)
}

// unprotected handles the message in m.msg, which names the IKE SA and is in clear. It
// returns what the log is to say. A token that matches ends the SA without a word to the
// peer (section 4.5); anything else is at best a hint.
func (m *Machine) unprotected(sa *ikeSA, p Path) error {
	if sa.state == StateConnecting || sa.state == StateFree {
		return ErrUnprotected
	}
	if shown, match := m.matchToken(sa, p); match {
		m.peerRestarted(sa)
		return nil
	} else if shown {
		return ErrWrongToken
	}
	if _, ok := m.msg.FindNotify(NotifyInvalidIKESPI); ok {
		m.hint(sa)
	}
	return ErrUnprotected
}

// matchToken tells whether the message in m.msg shows tokens, and whether one of them is
// that of sa. The address that it came from does not matter (section 3).
func (m *Machine) matchToken(sa *ikeSA, p Path) (shown, match bool) {
	n := 0
	m.msg.EachNotify(func(t Notify) {
		if t.Type != NotifyQuickCrashDetection || !sa.qcd.set || m.qcd.secret == nil {
			return
		}
		if shown = true; len(t.Data) < tokenMin || len(t.Data) > tokenMax {
			return
		}
		if n++; n > maxTokens || n == 1 && !m.qcd.seen.allow(m, p) {
			n = maxTokens
			return
		}
		digest := sha256.Sum256(t.Data)
		if constantEqual(digest[:], sa.qcd.token[:]) {
			match = true
		}
	})
	return shown, match
}

// peerRestarted ends an IKE SA of which the peer has proved that it does not have it any
// more, and connects again at once where it is ours to do.
func (m *Machine) peerRestarted(sa *ikeSA) {
	s := m.stateOf(sa.conn)
	err := ErrPeerRestarted
	if sa.state != StateEstablished && sa.closeErr != nil || sa.closeErr == ErrTerminated {
		err = sa.closeErr
	}
	m.destroy(sa, err)
	if s != nil && len(s.wanted) > 0 && m.attempt(s) == nil && m.established(s.conn) == nil {
		m.connect(s)
	}
}

// hint checks at once whether the peer still has the IKE SA, because an unprotected
// message says that it may not.
func (m *Machine) hint(sa *ikeSA) {
	if sa.state != StateEstablished || sa.mobike.stranded || sa.qcd.hinted != 0 && m.now.Mono-sa.qcd.hinted < hintInterval {
		return
	}
	sa.qcd.hinted = m.now.Mono
	if r := sa.outstanding(func(r *request) bool { return r.data != nil }); r != nil {
		m.sendParts(sa.path, sa, r.data, r.cut, false) // its answer tells; the next repetition may be far away
	} else if sa.idle() {
		m.queue(sa, task{kind: taskLiveness})
	}
}

// invalidSPI handles an unprotected INVALID_SPI (RFC 7296 section 1.5), which must not be
// answered.
func (m *Machine) invalidSPI(p Path, n *Notify) {
	spi := n.Data
	if len(spi) == 0 {
		spi = n.SPI
	}
	if len(spi) != 4 {
		m.drop(p, ErrUnknownSPI)
		return
	}
	out := binary.BigEndian.Uint32(spi)
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildFree || c.spiOut != out || c.outGone {
			continue
		}
		sa := &m.sas[c.ike]
		if !sameHost(sa.espRoute().path.Remote, p.Remote) {
			continue
		}
		// A maker that keeps its CHILD SAs' numbers shows the token right here (RFC 6290
		// section 8.2).
		if shown, match := m.matchToken(sa, p); match {
			m.peerRestarted(sa)
			return
		} else if shown {
			m.drop(p, ErrWrongToken)
		}
		m.hint(sa)
		return
	}
	m.drop(p, ErrUnknownSPI)
}

// cmdInvalidSPI tells the sender of an ESP packet that its SA is not here. With an IKE SA
// between the two, the sender will learn it there.
func (m *Machine) cmdInvalidSPI(c *Command) {
	p := c.Path
	p.Local = netip.AddrPortFrom(p.Local.Addr().Unmap(), p.Local.Port())
	p.Remote = netip.AddrPortFrom(p.Remote.Addr().Unmap(), p.Remote.Port())
	if !m.expected(p) {
		return
	}
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state == StateEstablished && sameHost(sa.path.Remote, p.Remote) {
			return
		}
	}
	if !m.qcd.hints.allow(m, p) {
		return
	}
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational, Flags: FlagInitiator})
	b.Notify(NotifyInvalidSPI, ProtoNone, nil, be32(c.SPI))
	out := b.Finish()
	m.traceMessage("sending", p, nil, out)
	m.send(p, out)
}

// sourceLimiter bounds something per second and source, so that one that floods does not
// use up what the others need. Sources that fall into the same place share its share.
type sourceLimiter struct {
	seed   uint64
	places [16]struct {
		since time.Duration
		n     int
	}
}

func (l *sourceLimiter) allow(m *Machine, p Path) bool {
	if l.seed == 0 {
		var b [8]byte
		m.env.Random(b[:])
		l.seed = be64(b[:]) | 1
	}
	h := l.seed
	for _, o := range p.Remote.Addr().As16() {
		h = (h ^ uint64(o)) * 0x100000001b3 // FNV-1a; the seed keeps the places from being chosen
	}
	place := &l.places[(h^h>>32)%uint64(len(l.places))]
	if now := m.now.Mono; now-place.since >= time.Second || now < place.since {
		place.since, place.n = now, 0
	}
	place.n++
	return place.n <= tokensPerSource
}
