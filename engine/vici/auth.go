package vici

import (
	"strconv"
	"strings"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// revocationWords are charon's words for what is demanded of certificates; "" where it says nothing.
var revocationWords = [...]string{pki.RevokeStrict: "GOOD", pki.RevokeIfURI: "SKIPPED", pki.RevokeOff: ""}

// authSections writes how both sides of a connection prove who they are, round by round, with
// charon's keys in its order. Any identity has no id there.
func authSections(m *control.Message, c *ike.Conn, ours bool) {
	for _, side := range [...]struct {
		name  string
		first ike.ID
		list  []ike.Auth
	}{{control.KeyLocalAuth, c.LocalID, c.LocalAuth}, {control.KeyRemoteAuth, c.RemoteID, c.RemoteAuth}} {
		list, remote := side.list, side.name == control.KeyRemoteAuth
		if len(list) == 0 {
			list = make([]ike.Auth, 1)
		}
		for i := range list {
			a, id := &list[i], list[i].ID
			if i == 0 {
				id = side.first
			}
			s := m.Section(strings.TrimSuffix(side.name, "1") + strconv.Itoa(i+1))
			switch {
			case id != (ike.ID{}):
				s.Set(control.KeyID, idName(id))
			case len(a.Certs) > 0:
				s.Set(control.KeyID, a.Certs[0].Subject())
			case ours:
				s.Set(control.KeyID, idText(id))
			}
			s.Set(control.KeyClass, a.Kind.String())
			if remote && a.Kind == ike.AuthKindPubkey {
				switch word := revocationWords[a.Revocation]; {
				case ours:
					s.Set(control.KeyRevocation, a.Revocation.String())
				case word != "":
					s.Set(control.KeyRevocation, word)
				}
			}
			var certs, cas []string
			for _, x := range append(a.Certs[:min(len(a.Certs), 1):min(len(a.Certs), 1)], a.Pinned...) {
				certs = append(certs, x.Subject())
			}
			if len(a.Keys) > 0 || a.Key != nil && len(a.Certs) == 0 {
				certs = append(certs, idText(id)) // a bare key has the name of its owner
			}
			for _, x := range a.Anchors {
				cas = append(cas, x.Subject())
			}
			s.List(control.KeyGroups).List(control.KeyCertPolicy).List(control.KeyCerts, certs...).List(control.KeyCACerts, cas...)
		}
	}
}

// proofLists writes how both sides of an IKE SA have proved who they are.
func proofLists(m *control.Message, v *ike.SAInfo) {
	write := func(key string, list []ike.Proof) {
		words := make([]string, len(list))
		for i := range list {
			words[i] = proofText(&list[i])
		}
		if len(words) > 0 {
			m.List(key, words...)
		}
	}
	write(control.KeyLocalProofs, v.LocalAuth)
	write(control.KeyRemoteProofs, v.RemoteAuth)
}

// proofText says how somebody has proved an identity: "public key RSA_EMSA_PSS_SHA2_256 C=CH, CN=gw".
func proofText(p *ike.Proof) string {
	s := p.Kind.String()
	for _, more := range []string{p.Scheme, p.Cert} {
		if more != "" {
			s += " " + more
		}
	}
	return s
}
