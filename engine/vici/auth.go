package vici

import (
	"strings"

	"postern/engine/control"
	"postern/ike"
)

// authSections writes how both sides of a connection prove who they are, round by round, with
// charon's keys.
func authSections(m *control.Message, c *ike.Conn) {
	sides := []struct {
		name  string
		first ike.ID
		list  []ike.Auth
	}{{control.KeyLocalAuth, c.LocalID, c.LocalAuth}, {control.KeyRemoteAuth, c.RemoteID, c.RemoteAuth}}
	for _, side := range sides {
		list := side.list
		if len(list) == 0 {
			list = make([]ike.Auth, 1)
		}
		for i := range list {
			a, id := &list[i], list[i].ID
			if i == 0 {
				id = side.first
			}
			name := strings.TrimSuffix(side.name, "1") + string(rune('1'+i))
			s := m.Section(name).Set(control.KeyClass, a.Kind.String()).Set(control.KeyID, idText(id))
			var certs, cas []string
			for _, x := range append(a.Certs[:min(len(a.Certs), 1):min(len(a.Certs), 1)], a.Pinned...) {
				certs = append(certs, x.Subject())
			}
			for _, x := range a.Anchors {
				cas = append(cas, x.Subject())
			}
			if len(certs) > 0 {
				s.List(control.KeyCerts, certs...)
			}
			if len(cas) > 0 {
				s.List(control.KeyCACerts, cas...)
			}
			if a.Kind == ike.AuthKindPubkey && side.name == control.KeyRemoteAuth {
				s.Set(control.KeyRevocation, a.Revocation.String())
			}
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
