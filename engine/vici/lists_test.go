package vici

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/engine/control"
	"postern/engine/control/controltest"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// A connection is listed with charon's keys in its order, and nothing else unless it is asked for.
func TestConnectionsAreListedAsCharonDoes(t *testing.T) {
	d := newFake(t, fileConf)
	req := homeConn("home", "home.dpd_delay=30s", "home.children.net.start_action=trap", "home.children.net.dpd_action=restart",
		"home.children.net.close_action=trap", "home.children.net.rekey_bytes=1000000",
		"home.children.lan.mode=pass", "home.children.lan.local_ts[]=10.1.0.0/16", "home.children.lan.remote_ts[]=10.1.0.0/16", "home.children.lan.start_action=trap")
	if got, _ := d.run("load-conn", req); got != yesText {
		t.Fatal(got)
	}
	_, events := d.run("list-conns", controltest.Message("ike=home"))
	want := `list-conn home{local_addrs=["%any"] remote_addrs=["192.0.2.2"] version="IKEv2" reauth_time="0" rekey_time="14400" unique="UNIQUE_NO" dpd_delay="30" ` +
		`local-1{id="a.example" class="pre-shared key" groups=[] cert_policy=[] certs=[] cacerts=[]} ` +
		`remote-1{id="c.example" class="pre-shared key" groups=[] cert_policy=[] certs=[] cacerts=[]} ` +
		`children{net{mode="TUNNEL" rekey_time="3600" rekey_bytes="1000000" rekey_packets="0" dpd_action="start" close_action="trap" local-ts=["10.1.0.0/16"] remote-ts=["10.2.0.0/16"]} ` +
		`lan{mode="PASS" rekey_time="3600" rekey_bytes="0" rekey_packets="0" dpd_action="none" close_action="none" local-ts=["10.1.0.0/16"] remote-ts=["10.1.0.0/16"]}}}`
	if len(events) != 1 || events[0] != want {
		t.Errorf("list-conns streams\n%s\nwant\n%s", strings.Join(events, "\n"), want)
	}
	if _, events = d.run("list-conns", controltest.Message("ike=home", "postern=yes")); !strings.Contains(events[0], `start_action="trap"`) {
		t.Errorf("who asks for our keys gets %q", events)
	}
}

// A connection of nothing but children without SAs is listed, though it has no part in IKE.
func TestShuntsHaveTheirConnection(t *testing.T) {
	d := newFake(t, fileConf)
	if got, _ := d.run("load-conn", controltest.Message("lan.children.here.mode=drop", "lan.children.here.local_ts[]=10.1.0.0/16", "lan.children.here.remote_ts[]=10.8.0.0/16",
		"lan.children.here.start_action=trap")); got != yesText {
		t.Fatal(got)
	}
	_, events := d.run("list-conns", controltest.Message("ike=lan"))
	if len(events) != 1 || !strings.Contains(events[0], `children{here{mode="DROP" `) {
		t.Errorf("list-conns streams %q", events)
	}
}

// Policies come by kind, traps first, with the mode of the child.
func TestPoliciesAreListedByKind(t *testing.T) {
	d := newFake(t, fileConf)
	sel := func(s string) []esp.Selector {
		return []esp.Selector{esp.SelectorFromPrefix(netip.MustParsePrefix(s))}
	}
	a, b := sel("10.1.0.0/16"), sel("10.2.0.0/16")
	pol := func(act esp.Action) esp.Policy { return esp.Policy{Action: act, LocalTS: a, RemoteTS: b} }
	d.policies = []Policy{
		{Policy: pol(esp.Discard), Conn: "home", Child: "no"},
		{Policy: pol(esp.Protect), Conn: "home", Child: "net", Mode: esp.Transport, Trap: true},
		{Policy: pol(esp.Protect), Conn: "home", Child: "quiet"},
		{Policy: pol(esp.Bypass), Conn: "lan", Child: "lan"},
	}
	ts := `local-ts=["10.1.0.0/16"] remote-ts=["10.2.0.0/16"]}`
	net := `list-policy home/net{child="net" ike="home" mode="TRANSPORT" ` + ts
	no := `list-policy home/no{child="no" ike="home" mode="DROP" ` + ts
	lan := `list-policy lan/lan{child="lan" ike="lan" mode="PASS" ` + ts
	for _, x := range []struct {
		req  []string
		want []string
	}{
		{nil, nil}, {[]string{"trap=yes", "pass=yes", "drop=yes"}, []string{net, no, lan}}, {[]string{"drop=yes"}, []string{no}},
		{[]string{"trap=yes", "pass=yes", "drop=yes", "ike=lan"}, []string{lan}}, {[]string{"trap=yes", "child=no"}, nil},
	} {
		if _, got := d.run("list-policies", controltest.Message(x.req...)); !slices.Equal(got, x.want) {
			t.Errorf("list-policies %q streams\n%s\nwant\n%s", x.req, strings.Join(got, "\n"), strings.Join(x.want, "\n"))
		}
	}
}

// Certificates come by kind, as charon has them: bare keys, certificates, CAs, revocation lists,
// answers of responders. The private key may have been loaded by itself.
func TestLoadedCertificatesAreListed(t *testing.T) {
	d := newFake(t, fileConf)
	root := pkitest.Root("plant")
	gw := root.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256})
	for _, x := range []struct {
		command string
		req     *control.Message
	}{
		{"load-cert", controltest.Message("type=X509", "flag=CA", "data="+string(root.Raw()))}, {"load-cert", controltest.Message("type=X509", "data="+string(gw.Raw()))},
		{"load-key", controltest.Message("type=any", "data="+string(gw.KeyPEM()))},
	} {
		if got, _ := d.run(x.command, x.req); !strings.HasPrefix(got, yesText) {
			t.Fatal(got)
		}
	}
	crl := root.CRL(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	d.fetched[pki.FetchCRL], d.fetched[pki.FetchOCSP] = crl, []byte("answer")
	list := func(req ...string) (got []string) {
		_, err := Handler{D: d}.Command("list-certs", controltest.Message(req...), func(_ string, m *control.Message) error {
			got = append(got, strings.TrimSpace(m.Get("type")+" "+m.Get("flag")+" "+m.Get("has_privkey")))
			for _, e := range m.Elements() {
				if !slices.Contains([]string{"type", "flag", "has_privkey", "data"}, e.Name) {
					t.Errorf("%s is listed, which charon does not have", e.Name)
				}
			}
			return nil
		})
		if !err {
			t.Fatal("there is no list-certs")
		}
		return got
	}
	ours, ca := "X509 NONE yes", "X509 CA"
	for _, x := range []struct {
		req  []string
		want []string
	}{
		{nil, []string{ours, ca, "X509_CRL", "OCSP_RESPONSE"}}, {[]string{"type=X509"}, []string{ours, ca}},
		{[]string{"type=X509", "flag=CA"}, []string{ca}}, {[]string{"flag=CA"}, []string{ours, ca, "X509_CRL", "OCSP_RESPONSE"}},
		{[]string{"type=x509ca"}, []string{ca}}, {[]string{"type=X509_CRL"}, []string{"X509_CRL"}}, {[]string{"type=OCSP_RESPONSE"}, []string{"OCSP_RESPONSE"}},
		{[]string{"type=FOO"}, nil}, {[]string{"type=PUBKEY"}, nil}, {[]string{"type=X509_AC"}, nil},
		{[]string{"subject=C=CH, O=Weir, CN=plant"}, []string{ca, "X509_CRL"}},
	} {
		if got := list(x.req...); !slices.Equal(got, x.want) {
			t.Errorf("list-certs %q lists %q, want %q", x.req, got, x.want)
		}
	}
}

// A daemon that ends says so to every command that needs its loop.
func TestCommandsEndWithTheDaemon(t *testing.T) {
	d := newFake(t, fileConf)
	d.stopping = ike.ErrTerminated
	for _, c := range []string{"stats", "list-conns", "list-sas", "list-policies", "list-certs", "list-authorities", "get-pools", "flush-certs"} {
		if got, _ := d.run(c, nil); !strings.HasPrefix(got, noText) {
			t.Errorf("%s answers %s", c, got)
		}
	}
}
