package ike

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"postern/ike/pki"
)

// Post-quantum pre-shared keys (RFC 8784). A key that both sides have beside what they
// authenticate with goes into SK_d, and so into the keys of all CHILD SAs and of all later IKE
// SAs: who records the traffic, and can undo the Diffie-Hellman exchange one day, still lacks
// it. The first IKE SA itself is protected without it.
//
//	1. initTransmit:  ppkAsk      USE_PPK
//	2. initRequest:   ppkOffered  is there one for the connections of that address?
//	   initReply:     ppkAgree    USE_PPK
//	3. initResponse:  ppkAnswer   without USE_PPK: go on waiting, if we must have it
//	4. authSend:      ppkStart    mix it into the keys, once these are the last ones of the IKE SA
//	   authTransmit:  ppkClaim    PPK_IDENTITY, and NO_PPK_AUTH if it may do without
//	5. candidates:    ppkAdmit    is it one for the peer?
//	   authRequest:   ppkTake     mix it, or take the proof from NO_PPK_AUTH
//	   proofWriter:   ppkConfirm  PPK_IDENTITY
//	6. authResponse:  ppkVerdict  keep the mixed keys, or go back to those before
//	7. establish:     ppkAudit
//
// A rekeyed IKE SA has it by the SK_d of the one before, a resumed one by that of the session;
// it is not mixed again (section 3).

// maxPPKID bounds the name of a PPK, in octets without its type.
const maxPPKID = 255

// Why an IKE SA does not come about for want of a post-quantum pre-shared key.
var (
	ErrPPKRefused = errors.New("ppk_required is set, but the peer does not take part in the use of a post-quantum pre-shared key (RFC 8784); configure it there, or take ppk_required out")
	ErrPPKMissing = errors.New("ppk_required is set, but no post-quantum pre-shared key is in use with this peer; compare ppk_id and [ppks] of both sides")
	ErrPPKUnnamed = errors.New("the peer agreed to use a post-quantum pre-shared key and does not say which")
	ErrPPKUnknown = errors.New("the peer names a post-quantum pre-shared key that the connection does not have, and insists on it, or ppk_required is set; compare ppk_id and [ppks] of both sides")

	// ErrPPKUnused goes with EvNoPPK.
	ErrPPKUnused = errors.New("the peer has no post-quantum pre-shared key for it, or another one; set ppk_required on both sides when both have it")

	errPPKID = errors.New("is no name of a post-quantum pre-shared key")
)

// PPKIDType tells how a PPK_ID is to be read (RFC 8784 section 5.1).
type PPKIDType uint8

// The types. Both stand for one fixed key here: a PPK_ID_OPAQUE hides from others what kind
// of key it names.
const (
	PPKIDOpaque PPKIDType = 1
	PPKIDFixed  PPKIDType = 2
)

// PPKID names a PPK. The zero value names none.
type PPKID struct {
	Type PPKIDType
	Data string // 1 to 255 octets
}

// opaquePrefix marks a PPK_ID_OPAQUE in the configuration.
const opaquePrefix = "opaque:"

// ParsePPKID reads a PPK_ID as people write it: a text is a PPK_ID_FIXED, "opaque:" and a text
// a PPK_ID_OPAQUE.
func ParsePPKID(s string) (PPKID, error) {
	id := PPKID{PPKIDFixed, s}
	if rest, ok := strings.CutPrefix(s, opaquePrefix); ok {
		id = PPKID{PPKIDOpaque, rest}
	}
	if len(id.Data) == 0 || len(id.Data) > maxPPKID {
		return PPKID{}, errPPKID
	}
	return id, nil
}

// String is the inverse of ParsePPKID; octets that do not print are shown as dots.
func (id PPKID) String() string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\uFFFD' {
			return '.'
		}
		return r
	}, id.Data)
	if id.Type == PPKIDOpaque {
		return opaquePrefix + s
	}
	return s
}

// parsePPKID reads the data of a PPK_IDENTITY notify. The type is not checked: one that is not
// known names no key that we have.
func parsePPKID(b []byte) (PPKID, error) {
	c := cursor{b: b}
	id := PPKID{Type: PPKIDType(c.u8()), Data: string(c.rest())}
	if !c.ok() || len(id.Data) == 0 || len(id.Data) > maxPPKID {
		return PPKID{}, syntax(PayloadNotify, "PPK_ID", errLength)
	}
	return id, nil
}

// appendBody appends the data of a PPK_IDENTITY notify.
func (id PPKID) appendBody(b []byte) []byte {
	return append(append(b, byte(id.Type)), id.Data...)
}

// PPK is a post-quantum pre-shared key. It should have 256 bits of entropy (RFC 8784 section 6).
type PPK struct {
	ID  PPKID
	Key []byte
}

// String names the key and keeps it to itself, however the value is printed.
func (p PPK) String() string { return "PPK " + p.ID.String() }

// GoString is String.
func (p PPK) GoString() string { return p.String() }

// same tells whether another PPK, or none, is the same.
func (p *PPK) same(o *PPK) bool { return o != nil && p.ID == o.ID && constantEqual(p.Key, o.Key) }

// ppkSA is an IKE SA's part.
type ppkSA struct {
	asked   bool  // initiator: USE_PPK is in our request
	agreed  bool  // both have said USE_PPK
	refused bool  // initiator: an answer came without it, though we must have it
	settled bool  // initiator: the peer has said whether it uses it
	id      PPKID // of the one that is in the keys; zero: none
}

// ppkFor returns the PPK of that name, if it is one for the connection, or nil.
func (m *Machine) ppkFor(c *Conn, id PPKID) *PPK {
	if id == (PPKID{}) || !c.PPKAny && c.PPK != id {
		return nil
	}
	return findPPK(m.ppks, id)
}

func findPPK(ppks []PPK, id PPKID) *PPK {
	for i := range ppks {
		if ppks[i].ID == id {
			return &ppks[i]
		}
	}
	return nil
}

// wantsPPK tells whether a PPK is configured for the connection.
func (c *Conn) wantsPPK() bool { return c.PPKAny || c.PPK != PPKID{} }

// keepsPPKs tells whether the IKE SAs of a connection have the PPK that the configuration c has
// for it in place of old.
func (m *Machine) keepsPPKs(s *connState, c *Conn, old []PPK) bool {
	same := func(id PPKID) bool {
		a, b := findPPK(old, id), findPPK(m.ppks, id)
		if a == nil || b == nil {
			return a == b
		}
		return constantEqual(a.Key, b.Key)
	}
	if !same(c.PPK) {
		return false
	}
	for i := range m.sas {
		if sa := &m.sas[i]; sa.state != StateFree && sa.conn == s.conn && !same(sa.ppk.id) {
			return false
		}
	}
	return true
}

// ppkAsk offers the use of a PPK in our IKE_SA_INIT request.
func (m *Machine) ppkAsk(b *Builder, sa *ikeSA) {
	if sa.ppk.asked = m.ppkFor(sa.conn, sa.conn.PPK) != nil; sa.ppk.asked {
		b.Notify(NotifyUsePPK, ProtoNone, nil, nil)
	}
}

// ppkOffered tells, as responder, whether the IKE_SA_INIT request in m.msg asks for a PPK and
// one of the connections that it can belong to has one.
func (m *Machine) ppkOffered(p Path) bool {
	if _, asked := m.msg.FindNotify(NotifyUsePPK); !asked {
		return false
	}
	for _, s := range m.conns {
		if c := s.conn; m.matches(c, p) && (c.PPKAny && len(m.ppks) > 0 || m.ppkFor(c, c.PPK) != nil) {
			return true
		}
	}
	return false
}

// ppkAgree answers it.
func (sa *ikeSA) ppkAgree(b *Builder) {
	if sa.ppk.agreed {
		b.Notify(NotifyUsePPK, ProtoNone, nil, nil)
	}
}

// ppkAnswer looks for USE_PPK in the answer to our IKE_SA_INIT request. If we must have a PPK,
// an answer without it is none: it may be forged, and the right one may be on its way (section
// 6).
func (m *Machine) ppkAnswer(sa *ikeSA) error {
	_, said := m.msg.FindNotify(NotifyUsePPK)
	sa.ppk.agreed = said && sa.ppk.asked
	if sa.ppk.refused = sa.conn.PPKRequired && sa.ppk.asked && !said; sa.ppk.refused {
		return ErrPPKRefused
	}
	return nil
}

// ppkStart mixes the PPK into the keys of an IKE SA that we begin, if both want it. The keys
// must be the last ones before IKE_AUTH.
func (m *Machine) ppkStart(sa *ikeSA) error {
	if sa.resume.on {
		return nil // redeem, and its counterpart resumeStart, have seen to it
	}
	p := m.ppkFor(sa.conn, sa.conn.PPK)
	if sa.ppk.agreed && p != nil {
		sa.mixPPK(p)
	} else if sa.conn.PPKRequired {
		return ErrPPKMissing
	}
	return nil
}

// mixPPK puts a PPK into the keys (section 3), and keeps those before until IKE_AUTH is over:
//
//	SK_d = prf+ (PPK, SK_d'), SK_pi = prf+ (PPK, SK_pi'), SK_pr = prf+ (PPK, SK_pr')
func (sa *ikeSA) mixPPK(p *PPK) {
	k, prf := &sa.keys, sa.suite.PRF
	sa.init.unmixed.wipe()
	sa.init.unmixed = ikeKeys{d: k.d, pi: k.pi, pr: k.pr}
	k.d, k.pi, k.pr = prf.plus(p.Key, k.d, len(k.d)), prf.plus(p.Key, k.pi, len(k.pi)), prf.plus(p.Key, k.pr, len(k.pr))
	sa.ppk.id = p.ID
}

// unmixPPK goes back to the keys before.
func (sa *ikeSA) unmixPPK() {
	old := &sa.init.unmixed
	for _, x := range [...][2]*[]byte{{&sa.keys.d, &old.d}, {&sa.keys.pi, &old.pi}, {&sa.keys.pr, &old.pr}} {
		clear(*x[0])
		*x[0], *x[1] = *x[1], nil
	}
	sa.ppk.id = PPKID{}
}

// octetsWithoutPPK returns what NO_PPK_AUTH proves, as initiator: what octets returns before the
// keys are mixed; nil if the peer must not do without, or has decided.
func (sa *ikeSA) octetsWithoutPPK(idBody []byte) []byte {
	if !sa.initiator || sa.init.unmixed.d == nil || sa.ppk.settled || sa.conn.PPKRequired {
		return nil
	}
	mixed := sa.keys.pi
	sa.keys.pi = sa.init.unmixed.pi
	octets := sa.octets(true, idBody)
	sa.keys.pi = mixed
	return octets
}

// ppkClaim names the PPK in an IKE_AUTH request with an AUTH payload. without is the AUTH data for
// octetsWithoutPPK, if there are any.
func (sa *ikeSA) ppkClaim(b *Builder, without [][]byte) {
	if sa.init.unmixed.d == nil {
		return
	}
	b.Notify(NotifyPPKIdentity, ProtoNone, nil, sa.ppk.id.appendBody(nil))
	for _, data := range without {
		b.Notify(NotifyNoPPKAuth, ProtoNone, nil, data)
	}
}

// ppkAdmit decides, as responder, whether the first IKE_AUTH request, which is in m.msg, goes with
// a PPK under the connection c, and with which (section 3, table 1).
func (m *Machine) ppkAdmit(sa *ikeSA, c *Conn) (*PPK, error) {
	if !sa.ppk.agreed {
		if c.PPKRequired {
			return nil, ErrPPKMissing
		}
		return nil, nil
	}
	n, named := m.msg.FindNotify(NotifyPPKIdentity)
	if !named {
		return nil, ErrPPKUnnamed
	}
	id, err := parsePPKID(n.Data)
	if p := m.ppkFor(c, id); err == nil && p != nil {
		return p, nil
	}
	if _, optional := m.msg.FindNotify(NotifyNoPPKAuth); c.PPKRequired || !optional {
		return nil, ErrPPKUnknown
	}
	return nil, nil
}

// ppkTake mixes the PPK that the candidates of the claim go with into the keys, or takes the proof
// from NO_PPK_AUTH, which ppkAdmit has seen; the method is that of the AUTH payload.
func (m *Machine) ppkTake(sa *ikeSA, c *claim, idBody []byte) {
	if c.ppk != nil {
		sa.mixPPK(c.ppk)
		c.octets = sa.octets(true, idBody)
	} else if sa.ppk.agreed {
		n, _ := m.msg.FindNotify(NotifyNoPPKAuth)
		c.data = bytes.Clone(n.Data)
	}
}

// ppkConfirm tells the initiator that its PPK is in use.
func (sa *ikeSA) ppkConfirm(b *Builder) {
	if sa.ppk.id != (PPKID{}) && !sa.resume.on {
		b.Notify(NotifyPPKIdentity, ProtoNone, nil, nil)
	}
}

// ppkVerdict takes from the first IKE_AUTH response, which is in m.msg, whether the peer uses the
// PPK. It has to come before the peer's AUTH payload is checked.
func (m *Machine) ppkVerdict(sa *ikeSA) error {
	if sa.init.unmixed.d == nil || sa.ppk.settled {
		return nil
	}
	sa.ppk.settled = true
	if _, used := m.msg.FindNotify(NotifyPPKIdentity); used {
		return nil
	}
	if sa.conn.PPKRequired {
		return ErrPPKMissing
	}
	sa.unmixPPK()
	return nil
}

// ppkDoubt adds to the error of a wrong signature that the PPK may be at fault, which is in what is
// signed.
func (sa *ikeSA) ppkDoubt(err error) error {
	if sa.ppk.id != (PPKID{}) && errors.Is(err, pki.ErrSignature) {
		return fmt.Errorf("%w; or the two sides have not the same PPK %v", err, sa.ppk.id)
	}
	return err
}

// ppkAudit tells of an IKE SA that goes without the PPK which its connection has (section 6).
func (m *Machine) ppkAudit(sa *ikeSA) {
	if sa.conn.wantsPPK() && sa.ppk.id == (PPKID{}) {
		m.event(Event{Kind: EvNoPPK, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Err: ErrPPKUnused})
	}
}

// ticketPPK returns what a ticket says of the PPK in the keys of its session, nil if there is none.
func (m *Machine) ticketPPK(k *sealKey, id PPKID) []byte {
	p := findPPK(m.ppks, id)
	if p == nil {
		return nil
	}
	mac := hmac.New(sha256.New, k.Key[:])
	mac.Write([]byte("post-quantum pre-shared key"))
	mac.Write(p.Key)
	return id.appendBody(mac.Sum(nil)[:pskMarkLen])
}

// ppkID returns the name of the PPK in the keys of a ticket's session.
func (s *sessionState) ppkID() PPKID {
	if len(s.ppk) < pskMarkLen {
		return PPKID{}
	}
	id, _ := parsePPKID(s.ppk[pskMarkLen:]) // it is our own
	return id
}

// admitsPPK tells whether what a ticket says of a PPK is still as the connection wants it.
func (m *Machine) admitsPPK(k *sealKey, c *Conn, said []byte) bool {
	if len(said) == 0 {
		return !c.PPKRequired
	}
	id := (&sessionState{ppk: said}).ppkID()
	return m.ppkFor(c, id) != nil && constantEqual(m.ticketPPK(k, id), said)
}
