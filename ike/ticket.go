package ike

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Tickets of session resumption (RFC 5723 section 6). The gateway gives its client all
// that it needs to go on with the session, sealed with a key of its own, and keeps
// nothing. The client keeps the same things beside the ticket, in memory only: on a
// router's flash they would outlive the session that they open.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|    Version    |                                               |
//	+-+-+-+-+-+-+-+-+        Key ID (8 octets)      +-+-+-+-+-+-+-+-+
//	|                                               |               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+               +
//	|                       Nonce (12 octets)                       |
//	+                                               +-+-+-+-+-+-+-+-+
//	|                                               |               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+               +
//	~           sealed with AES-256-GCM: sessionState               ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

const (
	ticketVersion  = 3 // 1 had no PPK and no additional key exchanges, 2 not what the authentication rests on
	ticketNonceLen = 12
	ticketHead     = 1 + 8 + ticketNonceLen
	// maxTicket bounds a ticket that we keep for a gateway; ours stay below 2 KiB with the
	// longest identities.
	maxTicket = 2048

	// ticketLife is the longest life of a ticket; that of its IKE SA bounds it too
	// (section 6.2).
	ticketLife = 24 * time.Hour
	// ticketLater is when we ask again a gateway that could not give a ticket at once.
	ticketLater = time.Minute
	// ticketSkew is by how much a ticket may seem to come from the future: clocks are set.
	ticketSkew = 5 * time.Minute

	// clockSet is a time before which a clock that has been set cannot stand: a router that
	// has just booted counts from 1970 or from its firmware's making.
	clockSet = 1_700_000_000

	// pskMarkLen is the length of the mark that tells whether the pre-shared key, or what takes
	// its place, is still the same.
	pskMarkLen = 16
)

// Why a ticket is refused.
var (
	errTicketForm    = errors.New("ticket is malformed")
	errTicketKey     = errors.New("ticket is sealed with a key that is not here any more")
	errTicketSeal    = errors.New("ticket was tampered with")
	errTicketOld     = errors.New("ticket has expired")
	errTicketClock   = errors.New("ticket cannot be judged while the clock is not set")
	errTicketUsed    = errors.New("ticket has been used, or its session was closed")
	errTicketRefused = errors.New("configuration has changed since the ticket was given, or does not allow resumption")
)

// TicketKey seals tickets. The ID tells which key it was.
type TicketKey struct {
	ID  [8]byte
	Key [32]byte
}

// String keeps the key to itself.
func (TicketKey) String() string { return "ticket key" }

// GoString is String.
func (k TicketKey) GoString() string { return k.String() }

// sessionState is what a ticket holds: what the table of section 5 has "from the ticket".
type sessionState struct {
	issued, expires int64 // seconds since 1970
	spiI, spiR      uint64
	suite           IKESuite
	pskMark         [pskMarkLen]byte
	conn            string
	client, gateway ID
	ppk             []byte // PPK_ID and mark of the PPK that is in skd; empty: none
	skd             []byte

	// What the authentication rests on, which a resumption does not renew: when it took place and
	// when it ends by the peer's certificate (0: never), in seconds since 1970, and the CAs.
	born, until int64
	anchors     [][keyIDLen]byte

	nonce [ticketNonceLen]byte // names the ticket; beside the seal
}

// ticketJar makes and opens tickets. used remembers the nonces of those that have been used
// or whose session was closed, the oldest of which is forgotten first (section 9.8).
type ticketJar struct {
	keys []sealKey // the first seals
	used [][ticketNonceLen]byte
	next int
}

type sealKey struct {
	TicketKey
	aead cipher.AEAD
}

// SetTicketKeys takes the keys that seal tickets: the first is used, the others only open
// what was sealed before. Without any no ticket is given out.
func (m *Machine) SetTicketKeys(keys []TicketKey) {
	m.tickets.keys = nil
	for _, k := range keys {
		block, err := aes.NewCipher(k.Key[:])
		if err != nil {
			continue // 32 octets are always right
		}
		if aead, err := cipher.NewGCM(block); err == nil {
			m.tickets.keys = append(m.tickets.keys, sealKey{k, aead})
		}
	}
}

// authMark returns the mark, under a ticket key, of what the two sides prove who they are with:
// secrets, our keys, and whom a certificate of the peer's may come from. ok is false if a secret
// is missing.
func (m *Machine) authMark(k *sealKey, c *Conn, local, remote ID) (mark [pskMarkLen]byte, ok bool) {
	mac := hmac.New(sha256.New, k.Key[:])
	part := func(what string, b []byte) {
		mac.Write([]byte(what))
		mac.Write(be32(uint32(len(b))))
		mac.Write(b)
	}
	secret := func(local, remote ID) bool {
		s := findSecret(m.secrets, local, remote)
		if s != nil {
			part("pre-shared key", s.Key)
		}
		return s != nil
	}
	for i, a := range c.localRounds() {
		part("our round", a.ID.appendBody(nil))
		switch {
		case a.Kind == AuthKindPSK && !secret(c.ownRoundID(i, local), remote), a.Kind == AuthKindPubkey && a.Key == nil:
			return mark, false
		case a.Kind == AuthKindPubkey:
			part("our key", a.Key.Public().SPKI())
		}
	}
	for i, a := range c.remoteRounds() {
		part("the peer's round", a.ID.appendBody(nil))
		part("scheme", append([]byte(a.Scheme.Key), fmt.Sprint(a.Scheme.PSS, a.Scheme.Hashes, a.Scheme.Limits)...))
		if a.Kind == AuthKindPSK {
			id := remote
			if i > 0 {
				id = a.ID
			}
			if !secret(local, id) {
				return mark, false
			}
			continue
		}
		part("revocation", []byte{byte(a.Revocation)})
		for _, key := range a.Keys {
			part("key", key.SPKI())
		}
		for _, x := range a.Pinned {
			part("certificate", x.Raw())
		}
		for _, x := range a.Anchors {
			part("CA", x.Raw())
		}
		for _, x := range a.Known {
			part("known certificate", x.Raw())
		}
		part("name of a CA", a.CA.appendBody(nil))
		for _, p := range a.Policies {
			part("policy", []byte(p))
		}
		if len(a.Keys)+len(a.Pinned)+len(a.Anchors) == 0 {
			for _, id := range m.trust.KeyIDs() {
				part("CA", id[:])
			}
		}
	}
	copy(mark[:], mac.Sum(nil))
	return mark, true
}

// seal returns the ticket of a session. s.nonce must be fresh.
func (k *sealKey) seal(s *sessionState) []byte {
	e := binary.BigEndian
	b := append([]byte{ticketVersion}, k.ID[:]...)
	b = append(b, s.nonce[:]...)
	head := len(b)
	b = e.AppendUint64(b, uint64(s.issued))
	b = e.AppendUint64(b, uint64(s.expires))
	b = e.AppendUint64(b, s.spiI)
	b = e.AppendUint64(b, s.spiR)
	for _, v := range [...]uint16{s.suite.Encr, s.suite.KeyBits, s.suite.Integ, uint16(s.suite.PRF), uint16(s.suite.DH)} {
		b = e.AppendUint16(b, v)
	}
	b = s.suite.KE.appendTo(b)
	b = append(b, byte(AuthPSK))
	b = append(b, s.pskMark[:]...)
	b = e.AppendUint64(b, uint64(s.born))
	b = e.AppendUint64(b, uint64(s.until))
	b = append(b, byte(len(s.anchors)))
	for i := range s.anchors {
		b = append(b, s.anchors[i][:]...)
	}
	for _, v := range [...][]byte{[]byte(s.conn), s.client.appendBody(nil), s.gateway.appendBody(nil), s.ppk, s.skd} {
		b = e.AppendUint16(b, uint16(len(v)))
		b = append(b, v...)
	}
	sealed := k.aead.Seal(nil, s.nonce[:], b[head:], b[:head-ticketNonceLen])
	clear(b[head:])
	return append(b[:head:head], sealed...)
}

// open returns what a ticket holds, and the key that it was sealed with. The caller checks
// whether it is still good.
func (j *ticketJar) open(t []byte) (*sessionState, *sealKey, error) {
	if len(t) < ticketHead || len(t) > maxTicket || t[0] != ticketVersion {
		return nil, nil, errTicketForm
	}
	i := slices.IndexFunc(j.keys, func(k sealKey) bool { return string(k.ID[:]) == string(t[1:9]) })
	if i < 0 {
		return nil, nil, errTicketKey
	}
	k := &j.keys[i]
	s := &sessionState{}
	copy(s.nonce[:], t[9:])
	plain, err := k.aead.Open(nil, s.nonce[:], t[ticketHead:], t[:9])
	if err != nil {
		return nil, nil, errTicketSeal
	}
	defer clear(plain)
	c := cursor{b: plain}
	s.issued, s.expires = int64(c.u64()), int64(c.u64())
	s.spiI, s.spiR = c.u64(), c.u64()
	s.suite = IKESuite{Encr: c.u16(), KeyBits: c.u16(), Integ: c.u16(), PRF: PRFID(c.u16()), DH: DHGroup(c.u16())}
	s.suite.KE.read(&c)
	method := AuthMethod(c.u8())
	copy(s.pskMark[:], c.take(pskMarkLen))
	s.born, s.until = int64(c.u64()), int64(c.u64())
	for range c.u8() {
		var id [keyIDLen]byte
		copy(id[:], c.take(keyIDLen))
		s.anchors = append(s.anchors, id)
	}
	name, client, gateway, ppk, skd := c.take(int(c.u16())), c.take(int(c.u16())), c.take(int(c.u16())), c.take(int(c.u16())), c.take(int(c.u16()))
	if !c.ok() || c.left() != 0 || method != AuthPSK || s.suite.validate() != nil || len(skd) != s.suite.PRF.keyLen() {
		return nil, nil, errTicketForm
	}
	if s.client, err = ParseID(client); err == nil {
		s.gateway, err = ParseID(gateway)
	}
	s.conn, s.ppk, s.skd = string(name), bytes.Clone(ppk), append([]byte(nil), skd...)
	return s, k, err
}

// revoke has a ticket refused from now on.
func (m *Machine) revoke(nonce [ticketNonceLen]byte) {
	j := &m.tickets
	if j.used == nil {
		j.used = make([][ticketNonceLen]byte, 4*len(m.sas))
	}
	j.used[j.next] = nonce
	j.next = (j.next + 1) % len(j.used)
}

// unix returns the wall clock's time, in seconds since 1970, at a time of the monotonic clock, and
// mono the reverse.
func (m *Machine) unix(at time.Duration) int64 { return m.now.Wall.Add(at - m.now.Mono).Unix() }

func (m *Machine) mono(at int64) time.Duration { return m.now.Mono + time.Unix(at, 0).Sub(m.now.Wall) }

// ticketNotify answers TICKET_REQUEST with a ticket for sa, or with a refusal.
func (m *Machine) ticketNotify(b *Builder, sa *ikeSA) {
	now := m.now.Wall.Unix()
	if len(m.tickets.keys) == 0 || !sa.conn.Resumption || now < clockSet {
		b.Notify(NotifyTicketNack, ProtoNone, nil, nil)
		return
	}
	life := ticketLife
	if sa.expireAt != 0 { // no later than the peer's certificate, too
		life = min(life, sa.expireAt-m.now.Mono)
	}
	k := &m.tickets.keys[0]
	mark, ok := m.authMark(k, sa.conn, sa.localID, sa.peerID)
	s := sessionState{
		issued: now, expires: now + int64(life/time.Second), spiI: sa.spiI, spiR: sa.spiR, suite: sa.suite,
		pskMark: mark, conn: sa.conn.Name, client: sa.peerID, gateway: sa.localID, skd: sa.keys.d,
		ppk: m.ticketPPK(k, sa.ppk.id), born: m.unix(sa.origin.at), anchors: sa.anchors,
	}
	if sa.origin.until != 0 {
		s.until = m.unix(sa.origin.until)
	}
	m.env.Random(s.nonce[:])
	sealed := k.seal(&s)
	if !ok || len(sealed) > maxTicket || life < time.Second {
		b.Notify(NotifyTicketNack, ProtoNone, nil, nil)
		return
	}
	if sa.resume.issued {
		m.revoke(sa.resume.nonce) // one session, one ticket
	}
	sa.resume.issued, sa.resume.nonce = true, s.nonce
	b.Notify(NotifyTicketLTOpaque, ProtoNone, nil, append(be32(uint32(life/time.Second)), sealed...))
}

// redeem opens a ticket and says whether the session may go on along p. It looks at the
// configuration as it is now: whatever would refuse the client today refuses its ticket.
func (m *Machine) redeem(p Path, t []byte) (*sessionState, *Conn, error) {
	s, k, err := m.tickets.open(t)
	if err != nil {
		return nil, nil, err
	}
	now := m.now.Wall.Unix()
	switch {
	case now < clockSet || s.issued > now+int64(ticketSkew/time.Second):
		return nil, nil, errTicketClock
	case now >= s.expires:
		return nil, nil, errTicketOld
	case slices.Contains(m.tickets.used, s.nonce):
		return nil, nil, errTicketUsed
	}
	for _, cs := range m.conns {
		c := cs.conn
		if c.Name != s.conn {
			continue
		}
		_, proposed := chooseProposal(c.Proposals, []Proposal{s.suite.proposal()}, s.suite.DH, false)
		if !c.Resumption || !m.matches(c, p) || !c.ownID(p).Equal(s.gateway) && !c.hasName(s.gateway) || !c.RemoteID.Admits(s.client) || !proposed {
			break
		}
		if mark, ok := m.authMark(k, c, s.gateway, s.client); !ok || !constantEqual(mark[:], s.pskMark[:]) {
			break
		}
		if !m.admitsPPK(k, c, s.ppk) {
			break
		}
		return s, c, nil
	}
	return nil, nil, errTicketRefused
}

// ticket is what a client keeps for the resumption of a session (section 4.2).
type ticket struct {
	opaque        []byte
	expires       time.Duration // on the monotonic clock
	suite         IKESuite
	skd           []byte
	local, remote ID
	ppk           PPKID      // that is in skd
	gateway       netip.Addr // where we connected to

	// What the gateway's authentication rests on; times of the monotonic clock.
	born, until time.Duration
	anchors     [][keyIDLen]byte
}

func (t *ticket) wipe() {
	if t != nil {
		clear(t.skd)
		*t = ticket{}
	}
}

// takeTicket keeps the ticket in the protected message at hand, if we have asked for one.
func (m *Machine) takeTicket(sa *ikeSA) {
	if _, ok := m.msg.FindNotify(NotifyTicketAck); ok && sa.resume.asked {
		m.arm(sa, tTicket, ticketLater) // it has one, but not now (section 4.1)
		return
	}
	n, ok := m.msg.FindNotify(NotifyTicketLTOpaque)
	if !ok || !sa.resume.asked || len(n.Data) <= 4 || len(n.Data) > 4+maxTicket {
		return
	}
	sa.resume.asked = false
	life := min(time.Duration(binary.BigEndian.Uint32(n.Data))*time.Second, ticketLife)
	if life <= 0 {
		return
	}
	sa.resume.ticket.wipe()
	sa.resume.ticket = &ticket{
		opaque: append([]byte(nil), n.Data[4:]...), expires: m.now.Mono + life, suite: sa.suite,
		skd: append([]byte(nil), sa.keys.d...), local: sa.localID, remote: sa.peerID, ppk: sa.ppk.id, gateway: sa.mobike.first,
		born: sa.origin.at, until: sa.origin.until, anchors: sa.anchors,
	}
	m.arm(sa, tTicket, life*3/4)
}
