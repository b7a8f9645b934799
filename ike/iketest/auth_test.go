package iketest

import (
	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

var (
	plantRoot = pkitest.Root("plant")
	plantCA   = plantRoot.Issue(pkitest.Spec{Name: "sites", CA: true})
	certA     = plantCA.Issue(pkitest.Spec{Name: "a.example"})
	certB     = plantCA.Issue(pkitest.Spec{Name: "b.example"})
)

// rounds has some pairs authenticate by certificates, by different means on both sides, or in
// several rounds. What they do follows from the seed alone, so that all else stays what it was.
func (l *life) rounds(seed uint64) {
	secret := ike.Auth{}
	ours := func(c *pkitest.Cert) ike.Auth {
		return ike.Auth{Kind: ike.AuthKindPubkey, Key: c.Key, Certs: c.Chain()}
	}
	theirs := ike.Auth{Kind: ike.AuthKindPubkey, Anchors: []*pki.Cert{plantRoot.Cert}}
	raw := func(c *pkitest.Cert) ike.Auth {
		return ike.Auth{Kind: ike.AuthKindPubkey, Keys: []*pki.PublicKey{c.Key.Public()}}
	}
	a, b := l.cfgA.Conns[0], l.cfgB.Conns[0]
	switch seed % 9 {
	case 1, 4:
		a.LocalAuth, b.RemoteAuth = []ike.Auth{ours(certA)}, []ike.Auth{theirs}
		b.LocalAuth, a.RemoteAuth = []ike.Auth{ours(certB)}, []ike.Auth{theirs}
	case 6:
		a.LocalAuth, b.RemoteAuth = []ike.Auth{{Kind: ike.AuthKindPubkey, Key: certA.Key}}, []ike.Auth{raw(certA)}
	case 7:
		a.LocalAuth, b.RemoteAuth = []ike.Auth{ours(certA), secret}, []ike.Auth{theirs, secret}
		b.LocalAuth, a.RemoteAuth = []ike.Auth{secret, ours(certB), ours(certB)}, []ike.Auth{secret, theirs, theirs}
	default:
		return
	}
	l.tell("rounds of authentication: %d and %d", len(a.LocalAuth), len(b.LocalAuth))
}
