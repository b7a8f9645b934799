package ike

import (
	"errors"
	"fmt"
	"slices"

	"postern/ike/pki"
)

// Certificates in messages: CERT and CERTREQ payloads (RFC 7296 sections 3.6 and 3.7), and what
// the two sides announce about signatures (RFC 7427 section 4, RFC 9593).

// CertEncoding is the encoding of a CERT payload, and what a CERTREQ payload asks for.
type CertEncoding uint8

// The encodings that mean something here. The two by URL are never asked for: whoever has not
// authenticated would have us fetch from anywhere.
const (
	CertX509       CertEncoding = 4
	CertCRL        CertEncoding = 7
	CertURL        CertEncoding = 12
	CertBundleURL  CertEncoding = 13
	CertOCSP       CertEncoding = 14 // RFC 4806
	CertRawKey     CertEncoding = 15 // RFC 7670
	keyIDLen                    = 20
	maxKeyIDs                   = 32   // of one CERTREQ of ours: IKE_SA_INIT must not need fragments of IP
	maxCertOctets               = 4096 // of a raw public key
	maxHashes                   = 16   // of a peer's list that are looked at
	maxAnnounceLen              = 1024 // octets of a peer's SUPPORTED_AUTH_METHODS that are looked at
)

// Why a certificate is not looked at, or none is there.
var (
	ErrNoCert   = errors.New("the peer sent no certificate, and none of its is configured (certs, pubkeys); have it send one (send_cert)")
	ErrCertURL  = errors.New("the peer sends the URL of its certificate, which is not fetched: have it send the certificate")
	ErrNoTrust  = errors.New("no CA is configured that the peer's certificate could lead to; set cacerts, or [authorities]")
	ErrRawKey   = errors.New("the peer's raw public key is none of those that are configured (pubkeys)")
	ErrNoKey    = errors.New("no private key is configured for this side")
	ErrRounds   = errors.New("the peer authenticates in another number of rounds than is configured; compare the sections local and remote of both sides")
	ErrOneRound = errors.New("the peer does not take part in several rounds of authentication (RFC 4739)")
	ErrChain    = errors.New("the peer's certificate is none of those that ca_id and cert_policy ask for")
	ErrKeyKind  = errors.New("the peer signs with a kind of key or padding that its auth does not admit")
)

// ParseCert reads a Certificate payload: its encoding and its data, which is not empty.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Cert Encoding |                                               |
//	+-+-+-+-+-+-+-+-+                                               +
//	~                       Certificate Data                        ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseCert(b []byte) (CertEncoding, []byte, error) {
	c := cursor{b: b}
	e := CertEncoding(c.u8())
	if !c.ok() || c.left() == 0 {
		return 0, nil, syntax(PayloadCert, "payload", errShort)
	}
	return e, c.rest(), nil
}

// ParseCertReq reads a Certificate Request payload of the same form: the encoding that is asked
// for and, for CertX509, the SHA-1 hashes of the keys of the CAs that are trusted; the data may
// be empty.
func ParseCertReq(b []byte) (CertEncoding, []byte, error) {
	c := cursor{b: b}
	e := CertEncoding(c.u8())
	if !c.ok() {
		return 0, nil, syntax(PayloadCertReq, "payload", errShort)
	}
	data := c.rest()
	if e == CertX509 && len(data)%keyIDLen != 0 {
		return 0, nil, syntax(PayloadCertReq, "list of CAs", errLength)
	}
	return e, data, nil
}

// Cert appends a Certificate payload.
func (b *Builder) Cert(e CertEncoding, data []byte) { b.encoded(PayloadCert, e, data) }

// CertReq appends a Certificate Request payload.
func (b *Builder) CertReq(e CertEncoding, data []byte) { b.encoded(PayloadCertReq, e, data) }

func (b *Builder) encoded(t PayloadType, e CertEncoding, data []byte) {
	off := b.begin(t)
	b.b = append(b.b, byte(e))
	b.b = append(b.b, data...)
	b.end(off)
}

// parseHashes reads the data of SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 4): numbers of two
// octets, of which the first maxHashes count. The result is not nil.
func parseHashes(b []byte) []pki.Hash {
	list := []pki.Hash{}
	for c := (cursor{b: b}); c.left() >= 2 && len(list) < maxHashes; {
		list = append(list, pki.Hash(c.u16()))
	}
	return list
}

// hashNotify says which hashes we verify signatures with.
func hashNotify(b *Builder) {
	var data []byte
	for _, h := range pki.Hashes() {
		data = append(data, byte(h>>8), byte(h))
	}
	b.Notify(NotifySignatureHashAlgorithms, ProtoNone, nil, data)
}

// methodsNotify says how the peer may authenticate (RFC 9593) under the connections, of which one
// will be its.
func methodsNotify(b *Builder, conns ...*Conn) {
	psk, pubkey := false, false
	for _, c := range conns {
		for i := range c.remoteRounds() {
			k := c.remoteRounds()[i].Kind
			psk, pubkey = psk || k == AuthKindPSK, pubkey || k == AuthKindPubkey
		}
	}
	if !pubkey {
		return // there is but one way
	}
	b.Notify(NotifySupportedAuthMethods, ProtoNone, nil, pki.AppendAnnounced(nil, pki.OurMethods(psk, nil)))
}

// learnAuth takes what the message in m.msg says about signatures.
func (m *Machine) learnAuth(sa *ikeSA) {
	a := &sa.init.auth
	if n, ok := m.msg.FindNotify(NotifySignatureHashAlgorithms); ok && m.msg.Exchange != ExchangeAuth {
		a.hashes = parseHashes(n.Data)
	}
	if n, ok := m.msg.FindNotify(NotifySupportedAuthMethods); ok && len(n.Data) > 0 && len(n.Data) <= maxAnnounceLen {
		if list, err := pki.ParseAnnounced(n.Data); err == nil {
			a.methods = list
		}
	}
	if _, ok := m.msg.FindNotify(NotifyMultipleAuthSupported); ok {
		a.many = true
	}
	for i := range m.msg.Payloads {
		switch p := &m.msg.Payloads[i]; p.Type {
		case PayloadCertReq:
			switch e, _, _ := ParseCertReq(p.Body); e {
			case CertX509:
				a.askedCert = true
			case CertRawKey:
				a.askedKey = true
			case CertOCSP:
				a.askedOCSP = true
			}
		case PayloadCert:
			if e, _, err := ParseCert(p.Body); err == nil && e == CertX509 {
				a.shownCert = true
			}
		}
	}
}

// certRequests asks for certificates of the CAs that the rounds of the connections lead to.
func (m *Machine) certRequests(b *Builder, conns ...*Conn) {
	var ids []byte
	seen := map[[keyIDLen]byte]bool{}
	add := func(id [keyIDLen]byte) {
		if !seen[id] && len(seen) < maxKeyIDs {
			seen[id] = true
			ids = append(ids, id[:]...)
		}
	}
	raw, ca := false, false
	for _, c := range conns {
		if c.NoCertReq {
			continue
		}
		for i := range c.remoteRounds() {
			a := &c.remoteRounds()[i]
			if a.Kind != AuthKindPubkey {
				continue
			}
			raw = raw || len(a.Keys) > 0
			for _, x := range a.Anchors {
				if key, err := x.Public(); err == nil {
					add(key.KeyID())
				}
			}
			ca = ca || len(a.Keys) == 0 && len(a.Anchors) == 0
		}
	}
	if ca {
		for _, id := range m.trust.KeyIDs() {
			add(id)
		}
	}
	if len(ids) > 0 {
		b.CertReq(CertX509, ids)
	}
	if raw {
		b.CertReq(CertRawKey, nil)
	}
	if slices.ContainsFunc(conns, func(c *Conn) bool { return !c.NoCertReq && c.wantsOCSP() }) {
		b.CertReq(CertOCSP, nil) // of whatever responder its CA trusts (RFC 4806 section 3.1)
	}
}

// peers returns the connections that a peer at the other end of a path may be of, and that have
// to do with signatures or rounds.
func (m *Machine) authConns(p Path) (list []*Conn) {
	for _, s := range m.conns {
		if c := s.conn; (c.signs() || c.rounds()) && m.matches(c, p) {
			list = append(list, c)
		}
	}
	return list
}

// authInit adds to an IKE_SA_INIT message of ours what IKE_AUTH will need: SIGNATURE_HASH_ALGORITHMS
// (RFC 7427 section 4), and in a response CERTREQ, MULTIPLE_AUTH_SUPPORTED (RFC 4739 section 2.1)
// and SUPPORTED_AUTH_METHODS.
func (m *Machine) authInit(b *Builder, sa *ikeSA) {
	if sa.initiator {
		if sa.conn.signs() {
			hashNotify(b)
		}
		return
	}
	if sa.resume.on {
		return
	}
	conns := m.authConns(sa.path)
	if len(conns) == 0 {
		return
	}
	m.certRequests(b, conns...)
	if sa.init.auth.hashes != nil {
		hashNotify(b)
	}
	for _, c := range conns {
		if c.rounds() {
			b.Notify(NotifyMultipleAuthSupported, ProtoNone, nil, nil)
			break
		}
	}
	methodsNotify(b, conns...)
}

// writeCerts adds the certificates or the raw public key of a round of ours, if they are to be
// sent. Who asks for nothing should not expect a certificate (RFC 4945 section 3.2.6), but
// libreswan does where it calls us and was not told our CA; so one that shows its own and asks for
// nothing gets ours.
func writeCerts(b *Builder, c *Conn, a *Auth, st *authState) {
	if a.Kind != AuthKindPubkey || c.SendCert == SendCertNever {
		return
	}
	always := c.SendCert == SendCertAlways
	if len(a.Certs) == 0 {
		if a.Key != nil && (always || st.askedKey) {
			b.Cert(CertRawKey, a.Key.Public().SPKI())
		}
		return
	}
	if !always && !st.askedCert && (!st.shownCert || st.askedKey) {
		return
	}
	for _, x := range a.Certs {
		b.Cert(CertX509, x.Raw())
	}
	if st.ocsp != nil {
		b.Cert(CertOCSP, st.ocsp)
	}
}

// evidence is what the CERT payloads of a message hold.
type evidence struct {
	certs, crls, ocsp [][]byte
	key               []byte // a raw public key
}

// takeCerts copies what the CERT payloads of m.msg hold.
func (m *Machine) takeCerts() (e evidence, err error) {
	octets := 0
	for i := range m.msg.Payloads {
		p := &m.msg.Payloads[i]
		if p.Type != PayloadCert {
			continue
		}
		enc, data, err := ParseCert(p.Body)
		if err != nil {
			return e, err
		}
		if octets += len(data); octets > pki.MaxCertOctets {
			return e, fmt.Errorf("the peer's certificates have more than %d octets", pki.MaxCertOctets)
		}
		data = append([]byte(nil), data...)
		switch enc {
		case CertX509:
			e.certs = append(e.certs, data)
		case CertCRL:
			e.crls = append(e.crls, data)
		case CertOCSP:
			e.ocsp = append(e.ocsp, data)
		case CertRawKey:
			if len(data) > maxCertOctets {
				return e, syntax(PayloadCert, "raw public key", errLength)
			}
			e.key = data
		case CertURL, CertBundleURL:
			return e, ErrCertURL
		}
	}
	return e, nil
}
