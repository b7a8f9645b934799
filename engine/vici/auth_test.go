package vici

import (
	"slices"
	"testing"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// Each round of either side has a section of its own, with charon's keys; without any it is a
// shared key. The list of a connection's certificates has our own alone, not those of CAs.
func TestRoundsAreListed(t *testing.T) {
	root := pkitest.Root("plant")
	gw := root.Issue(pkitest.Spec{Name: "sites", CA: true}).Issue(pkitest.Spec{Name: "gw.example"})
	c := &ike.Conn{
		LocalID: ike.ID{Type: ike.IDFQDN, Data: "gw.example"},
		LocalAuth: []ike.Auth{{Kind: ike.AuthKindPubkey, Key: gw.Key, Certs: gw.Chain()}, {
			ID: ike.ID{Type: ike.IDFQDN, Data: "second.example"}}},
		RemoteAuth: []ike.Auth{{Kind: ike.AuthKindPubkey, Anchors: []*pki.Cert{root.Cert}, Revocation: pki.RevokeStrict}},
	}
	m := new(control.Message)
	authSections(m, c, true)
	get := func(section, key string) string { return m.Sub(section).Get(key) }
	for _, x := range []struct{ got, want string }{
		{get("local-1", "class"), "public key"}, {get("local-1", "id"), "gw.example"},
		{get("local-2", "class"), "pre-shared key"}, {get("local-2", "id"), "second.example"},
		{get("remote-1", "class"), "public key"}, {get("remote-1", "id"), "%any"}, {get("remote-1", "revocation"), "strict"},
	} {
		if x.got != x.want {
			t.Errorf("%q is listed, want %q", x.got, x.want)
		}
	}
	if got := m.Sub("local-1").Items("certs"); !slices.Equal(got, []string{"C=CH, O=Weir, CN=gw.example"}) {
		t.Errorf("our certificates are %q", got)
	}
	if got := m.Sub("remote-1").Items("cacerts"); !slices.Equal(got, []string{"C=CH, O=Weir, CN=plant"}) {
		t.Errorf("the peer's CAs are %q", got)
	}
	m = new(control.Message)
	authSections(m, new(ike.Conn), true)
	if get("local-1", "class") != "pre-shared key" || get("remote-1", "class") != "pre-shared key" {
		t.Error("without rounds it is not a shared key")
	}
	m = new(control.Message)
	proofLists(m, &ike.SAInfo{
		LocalAuth:  []ike.Proof{{Kind: ike.AuthKindPubkey, Scheme: "ED25519", Cert: "CN=gw"}, {}},
		RemoteAuth: []ike.Proof{{Kind: ike.AuthKindPubkey, Scheme: "ED25519"}},
	})
	if a, b := m.Items("local-auth"), m.Items("remote-auth"); !slices.Equal(a, []string{"public key ED25519 CN=gw", "pre-shared key"}) || !slices.Equal(b, []string{"public key ED25519"}) {
		t.Errorf("the proofs are %q and %q", a, b)
	}
}
