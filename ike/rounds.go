package ike

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"postern/ike/pki"
)

// Rounds of authentication (RFC 4739): each side proves one identity or several, each in an
// IKE_AUTH exchange of its own, by a pre-shared key or by a signature.

// AuthKind is how an identity is proved.
type AuthKind uint8

// The kinds. EAP's rounds will have one of their own.
const (
	AuthKindPSK    AuthKind = iota // by a secret that both sides know
	AuthKindPubkey                 // by a signature
)

var authKindNames = [...]string{"pre-shared key", "public key"}

// String returns charon's name of the kind.
func (k AuthKind) String() string { return enumName(authKindNames[:], int(k), "AUTH_KIND") }

// Auth is one round of one side: how we prove who we are, or how the peer has to. It is not
// changed once the machine has it. A private key never shows, however the value is printed.
type Auth struct {
	Kind AuthKind
	// ID is the identity of a round after the first, whose identities are LocalID and
	// RemoteID of the connection. Zero: the same as in the first round, and for the peer any.
	ID ID
	// Scheme narrows the signatures that are made or taken.
	Scheme Scheme

	// Ours: the key, and the certificate for it followed by those that lead to the CA. Without a
	// certificate it is a raw public key (RFC 7670).
	Key   *pki.Key
	Certs []*pki.Cert

	// The peer's: its key must be one of Keys, or its certificate one of Pinned, or lead to one
	// of Anchors, or, if there are none, to a CA of Config.Trust.
	Keys       []*pki.PublicKey
	Pinned     []*pki.Cert
	Anchors    []*pki.Cert
	Revocation pki.Revocation
	// Known are certificates of peers that are trusted without a CA, beside what leads to one.
	Known []*pki.Cert
	// CA, unless zero, is a name that a CA of the chain must have; Policies are the certificate
	// policies that the certificate must have, as dotted numbers.
	CA       ID
	Policies []string
}

// Scheme narrows what signatures are made or taken. The zero value takes all that are not
// known to be weak.
type Scheme struct {
	Key    string     // "RSA", "ECDSA" or "Ed25519", as a key names itself; "": any
	PSS    bool       // RSA with PSS padding (RFC 8017 section 8.1): required of the peer, preferred by us
	Hashes []pki.Hash // nil: any
	// Limits are the kinds of keys that the peer may have, and how strong they have to be, those
	// of the CAs among them; nil: any.
	Limits []KeyLimit
}

// KeyLimit is a kind of keys, as a key names itself, and the least length of its numbers in bits.
type KeyLimit struct {
	Key  string
	Bits int
}

// MaxRounds bounds the rounds of one side.
const MaxRounds = 3

// SendCert says when our certificates are sent.
type SendCert uint8

// The choices, named as strongSwan names them.
const (
	SendCertIfAsked SendCert = iota // or when the peer sends its own and asks for nothing
	SendCertAlways
	SendCertNever
)

// Proof is how one side has proved who it is in one round.
type Proof struct {
	Kind   AuthKind
	ID     ID
	Scheme string // of a signature, in charon's words, such as "ECDSA_WITH_SHA256_DER"
	Cert   string // the subject of the certificate; "" without one
}

var onePSK = []Auth{{}}

// localRounds and remoteRounds return the rounds of a side; without any it is one of PSK.
func (c *Conn) localRounds() []Auth  { return orPSK(c.LocalAuth) }
func (c *Conn) remoteRounds() []Auth { return orPSK(c.RemoteAuth) }

func orPSK(rounds []Auth) []Auth {
	if len(rounds) == 0 {
		return onePSK
	}
	return rounds
}

// signs tells whether any round of the connection, of either side, is a signature.
func (c *Conn) signs() bool {
	pubkey := func(a Auth) bool { return a.Kind == AuthKindPubkey }
	return slices.ContainsFunc(c.LocalAuth, pubkey) || slices.ContainsFunc(c.RemoteAuth, pubkey)
}

// rounds tells whether a side of the connection has more than one round.
func (c *Conn) rounds() bool { return len(c.LocalAuth) > 1 || len(c.RemoteAuth) > 1 }

// ownID returns who we are on a connection: what is configured, else the name that our
// certificate has, else our address.
func (c *Conn) ownID(p Path) ID {
	if c.LocalID != (ID{}) {
		return c.LocalID
	}
	if a := &c.localRounds()[0]; len(a.Certs) > 0 {
		if t, data := a.Certs[0].DefaultID(); t != 0 && len(data) <= maxIDLen {
			return ID{IDType(t), string(data)}
		}
	}
	return idOfAddr(p.Local.Addr())
}

// ownRoundID returns who we are in round i; first is who we are in the first one.
func (c *Conn) ownRoundID(i int, first ID) ID {
	if a := &c.localRounds()[i]; i > 0 && a.ID != (ID{}) {
		return a.ID
	}
	return first
}

// peerRoundID returns the identity or the pattern that the peer has to have in round i.
func (c *Conn) peerRoundID(i int) ID {
	if i == 0 {
		return c.RemoteID
	}
	return c.remoteRounds()[i].ID
}

// exactRemote returns the peer's identity, zero if the configuration leaves it open.
func (c *Conn) exactRemote() ID {
	if c.RemoteID.IsPattern() {
		return ID{}
	}
	return c.RemoteID
}

// IsPattern tells whether an identity of the configuration is a pattern: "*.example.org",
// "*@example.org", or a distinguished name with a value "*".
func (id ID) IsPattern() bool {
	switch id.Type {
	case IDFQDN:
		return strings.HasPrefix(id.Data, "*.")
	case IDRFC822:
		return strings.HasPrefix(id.Data, "*@")
	case IDDERDN:
		_, wild, err := pki.ParseDN(pki.FormatDN([]byte(id.Data)))
		return err == nil && wild
	}
	return false
}

// Admits tells whether the peer may be peer where the configuration says id: the same, anybody
// if id is zero, or one that fits the pattern. As with strongSwan an asterisk stands for any
// text, dots in it too.
func (id ID) Admits(peer ID) bool {
	if id == (ID{}) || id.Equal(peer) {
		return true
	}
	if id.Type != peer.Type || !id.IsPattern() {
		return false
	}
	if id.Type == IDDERDN {
		return pki.MatchDN([]byte(id.Data), []byte(peer.Data))
	}
	tail := id.Data[1:]
	n := len(peer.Data) - len(tail)
	return n > 0 && strings.EqualFold(peer.Data[n:], tail)
}

// fits tells whether the key of a signature is of the kind that is asked for.
func (s *Scheme) fits(key *pki.PublicKey) bool {
	return (s.Key == "" || strings.HasPrefix(key.String(), s.Key)) && (len(s.Limits) == 0 ||
		slices.ContainsFunc(s.Limits, func(l KeyLimit) bool { return strings.HasPrefix(key.String(), l.Key) && key.Bits() >= l.Bits }))
}

// weak tells whether a key in a chain is weaker than keys of its kind may be.
func (s *Scheme) weak(key *pki.PublicKey) bool {
	return slices.ContainsFunc(s.Limits, func(l KeyLimit) bool { return strings.HasPrefix(key.String(), l.Key) && key.Bits() < l.Bits })
}

// sameRounds tells whether two lists of rounds prove the same by the same keys and ask for the
// same.
func sameRounds(a, b []Auth) bool {
	return slices.EqualFunc(orPSK(a), orPSK(b), func(x, y Auth) bool {
		return x.Kind == y.Kind && x.ID == y.ID && x.Scheme.Key == y.Scheme.Key && x.Scheme.PSS == y.Scheme.PSS &&
			slices.Equal(x.Scheme.Hashes, y.Scheme.Hashes) && slices.Equal(x.Scheme.Limits, y.Scheme.Limits) && x.Revocation == y.Revocation &&
			(x.Key == nil) == (y.Key == nil) && (x.Key == nil || x.Key.Public().Equal(y.Key.Public())) &&
			sameCerts(x.Certs, y.Certs) && sameCerts(x.Pinned, y.Pinned) && sameCerts(x.Anchors, y.Anchors) &&
			sameCerts(x.Known, y.Known) && x.CA.Equal(y.CA) && slices.Equal(x.Policies, y.Policies) &&
			slices.EqualFunc(x.Keys, y.Keys, (*pki.PublicKey).Equal)
	})
}

// trusts tells whether the CAs that an IKE SA rests on, or a round of one that is on its way, are
// still trusted.
func (m *Machine) trusts(sa *ikeSA) bool {
	return m.anchored(sa.anchors) && m.anchored(sa.init.auth.anchors)
}

// anchored tells whether these are CAs of Config.Trust.
func (m *Machine) anchored(anchors [][keyIDLen]byte) bool {
	if len(anchors) == 0 {
		return true
	}
	ids := m.trust.KeyIDs()
	return !slices.ContainsFunc(anchors, func(id [keyIDLen]byte) bool { return !slices.Contains(ids, id) })
}

func sameCerts(a, b []*pki.Cert) bool {
	return slices.EqualFunc(a, b, func(x, y *pki.Cert) bool { return bytes.Equal(x.Raw(), y.Raw()) })
}

const (
	// certMargin is how long before the end of the peer's certificate we authenticate anew, at
	// most; the shorter the certificate's remaining life, the shorter it is.
	certMargin = time.Hour
	// maxCertLife is a remaining life beyond which there is no end in sight.
	maxCertLife = 50 * 365 * 24 * time.Hour
)

// limit notes what an authentication rests on, and ends it no later than the certificates of a
// verdict, if the wall clock can be believed.
func (a *authState) limit(m *Machine, v *judgement) {
	if v.anchor != ([keyIDLen]byte{}) {
		a.anchors = append(a.anchors, v.anchor)
	}
	if v.notAfter.IsZero() || m.now.Wall.Before(m.floor) {
		return
	}
	left := max(v.notAfter.Sub(m.now.Wall), 0)
	if at := max(m.now.Mono+left, 1); left < maxCertLife && (a.until == 0 || at < a.until) {
		a.until = at
	}
}

// armCert sets when an IKE SA is authenticated anew and closed because of a certificate.
func (m *Machine) armCert(sa *ikeSA) {
	end := sa.origin.until
	if end == 0 {
		return
	}
	if end < sa.timers[tExpire] {
		m.arm(sa, tExpire, max(end-m.now.Mono, time.Second))
		sa.expireAt = sa.timers[tExpire]
	}
	life := end - sa.origin.at
	if soft := end - min(life/10, certMargin); sa.origin.ours && (sa.reauth.at == 0 || soft < sa.reauth.at) {
		sa.reauth.at = soft
		m.arm(sa, tReauth, max(soft-m.now.Mono, time.Second))
	}
}
