package ike

import (
	"bytes"
	"time"

	"postern/ike/pki"
)

// OCSP inside IKE (RFC 4806): a peer that cannot, or does not want to, ask the responder about
// our certificate has us send what the responder says. It is fetched when the first peer asks for
// it; the caller keeps it then, so that only one handshake in its lifetime waits for it. Where it
// cannot be had, our certificate goes alone.

// stapling is a proof of ours that waits for what the OCSP responder says of its certificate,
// and after that what the responder said.
type stapling struct {
	auth         *Auth
	local, peer  ID
	octets       [][]byte
	cert, issuer *pki.Cert
	now          time.Time
	got          []pki.Fetched
}

// wantsOCSP tells whether the connection asks the peer for what OCSP says of its certificates.
func (c *Conn) wantsOCSP() bool {
	for i := range c.RemoteAuth {
		a := &c.RemoteAuth[i]
		if a.Kind == AuthKindPubkey && len(a.Keys) == 0 && (a.Revocation == pki.RevokeIfURI || a.Revocation == pki.RevokeStrict) {
			return true
		}
	}
	return false
}

// stapleFirst asks for what is to go with the certificate of a round of ours, and tells whether
// the proof has to wait for it.
func (m *Machine) stapleFirst(sa *ikeSA, lane int, a *Auth, local, peer ID, octets [][]byte) bool {
	st := &sa.init.auth
	if !st.askedOCSP || st.staple != nil && st.staple.auth == a || len(a.Certs) == 0 || sa.conn.SendCert == SendCertNever {
		return false
	}
	s := &stapling{auth: a, local: local, peer: peer, octets: octets, cert: a.Certs[0], now: m.now.Wall}
	st.staple = s
	if s.issuer = m.issuerOf(a); s.issuer == nil {
		return false
	}
	need := m.trust.OCSPFor(s.cert, s.issuer)
	if len(need) == 0 {
		return false
	}
	m.askFor(sa, lane, jobStaple, need)
	return true
}

// issuerOf returns the certificate of the CA that issued ours: it is sent along, or trusted.
func (m *Machine) issuerOf(a *Auth) *pki.Cert {
	if len(a.Certs) > 1 {
		return a.Certs[1]
	}
	for _, x := range m.trust.Authorities() {
		if bytes.Equal(x.Cert.RawSubject(), a.Certs[0].X509().RawIssuer) {
			return x.Cert
		}
	}
	return nil
}

// stapled goes on with the proof that has waited.
func (m *Machine) stapled(sa *ikeSA, lane int, got []pki.Fetched) {
	s := sa.init.auth.staple
	s.got = got
	m.prove(sa, lane, s.auth, s.local, s.peer, s.octets...)
}

// pick returns which of the answers is good to send: authentic, in time, and speaking for us.
// note says what speaks against us.
func (s *stapling) pick() (which int, note string) {
	for i := range s.got {
		if s.got[i].Err != nil {
			continue
		}
		a, err := pki.CheckOCSP(s.got[i].Body, s.cert, s.issuer, s.now)
		switch {
		case err != nil:
			note = s.got[i].URL + ": " + err.Error()
		case a.Status == pki.OCSPRevoked:
			return -1, "our own certificate " + s.cert.Subject() + " is revoked, says its OCSP responder: get another one"
		case a.Status == pki.OCSPGood && a.Fresh(s.now):
			return i, ""
		}
	}
	return -1, note
}
