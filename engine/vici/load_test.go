package vici

import (
	"slices"
	"strings"
	"testing"

	"postern/engine/control"
	"postern/engine/control/controltest"
	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// homeConn is a connection as swanctl sends it.
func homeConn(name string, more ...string) *control.Message {
	parts := []string{name + ".version=2", name + ".remote_addrs[]=192.0.2.2", name + ".local.auth=psk", name + ".local.id=a.example",
		name + ".remote.auth=psk", name + ".remote.id=c.example", name + ".children.net.local_ts[]=10.1.0.0/16",
		name + ".children.net.remote_ts[]=10.2.0.0/16"}
	return controltest.Message(append(parts, more...)...)
}

const yesText, noText = `success="yes"`, `success="no" errmsg="`

// What is wrong is answered with charon's texts, and changes nothing.
func TestLoadingSaysWhatIsWrong(t *testing.T) {
	d := newFake(t, fileConf)
	for _, x := range []struct {
		command string
		req     []string
		want    string
	}{
		{"load-conn", []string{"stray=1"}, noText + "stray stands outside"},
		{"load-conn", []string{"c.foo=bar"}, noText + "connections.c.foo"},
		{"load-conn", []string{"office.remote_addrs[]=192.0.2.9", "office.children.net.remote_ts[]=10.9.0.0/16"}, noText + "connections.office"},
		{"unload-conn", nil, noText + "unload: missing connection name"},
		{"unload-conn", []string{"name=office"}, noText + "unload: connection 'office' not found"},
		{"load-shared", nil, noText + "shared key type missing"},
		{"load-shared", []string{"type=foo"}, noText + "invalid shared key type: foo"},
		{"load-shared", []string{"type=IKE"}, noText + "shared key data missing"},
		{"unload-shared", nil, noText + "unique identifier missing"},
		{"unload-shared", []string{"id=zz"}, yesText},
		{"load-key", nil, noText + "key type missing"},
		{"load-key", []string{"type=foo"}, noText + "invalid key type: foo"},
		{"load-key", []string{"type=rsa"}, noText + "key data missing"},
		{"load-key", []string{"type=rsa", "data=x"}, noText + "data: no usable private key"},
		{"unload-key", nil, noText + "key id missing"},
		{"unload-key", []string{"id=ab"}, noText + "key not found\""},
		{"load-token", []string{"handle=1"}, noText + "keys on tokens"},
		{"load-cert", nil, noText + "certificate type missing"},
		{"load-cert", []string{"type=FOO"}, noText + "invalid certificate type 'FOO'"},
		{"load-cert", []string{"type=X509", "flag=FOO", "data=x"}, noText + "invalid certificate flag 'FOO'"},
		{"load-cert", []string{"type=X509"}, noText + "certificate data missing"},
		{"load-cert", []string{"type=X509", "data=x"}, noText + "data: no certificate"},
		{"load-pool", []string{"p.addrs=x"}, noText + "pools.p.addrs"},
		{"unload-pool", nil, noText + "missing pool name to unload"},
		{"unload-pool", []string{"name=zz"}, noText + "zz not found"},
		{"load-authority", []string{"a.cacert=x"}, noText + "authorities.a.cacert"},
		{"unload-authority", nil, noText + "unload: missing authority name"},
		{"unload-authority", []string{"name=zz"}, noText + "unload: authority 'zz' not found"},
		{"flush-certs", []string{"type=FOO"}, noText + "invalid certificate type 'FOO'"},
		{"install", nil, noText + "missing configuration name"},
		{"install", []string{"child=zz"}, noText + "configuration name not found"},
		{"uninstall", nil, noText + "missing configuration name"},
		{"uninstall", []string{"child=net"}, noText + "policy 'net' not found"},
		{"redirect", []string{"ike=office"}, noText + "missing target gateway"},
		{"redirect", []string{"gateway=a@b", "ike=office"}, noText + "unsupported gateway identity"},
		{"redirect", []string{"gateway=192.0.2.1", "peer-ip=x"}, noText + "invalid peer IP selector"},
		{"redirect", []string{"gateway=192.0.2.1"}, noText + "missing redirect selector"},
		{"initiate", nil, noText + "missing configuration name"},
		{"initiate", []string{"child=zz"}, noText + "CHILD_SA config 'zz' not found"},
		{"initiate", []string{"ike=zz"}, noText + "IKE_SA config 'zz' not found"},
		{"terminate", nil, noText + "missing terminate selector"},
		{"terminate", []string{"ike-id=9"}, `success="no" matches="0" terminated="0" errmsg="no matching SAs to terminate found"`},
		{"rekey", nil, noText + "missing rekey selector"},
		{"rekey", []string{"ike=zz"}, `success="no" matches="0" errmsg="no matching SAs to rekey found"`},
	} {
		got, _ := d.run(x.command, controltest.Message(x.req...))
		if !strings.HasPrefix(got, x.want) {
			t.Errorf("%s %q answers %s, want %s", x.command, x.req, got, x.want)
		}
	}
	for _, c := range []string{"get-conns", "get-shared", "get-keys", "get-pools", "get-authorities"} {
		if got, _ := d.run(c, nil); strings.Contains(got, `"`) {
			t.Errorf("after nothing but errors %s answers %s", c, got)
		}
	}
}

// What is loaded is listed by its command, replaced by the same name, and gone when it is unloaded;
// what the file brought is none of it, but works beside it.
func TestWhatIsLoadedIsListed(t *testing.T) {
	d := newFake(t, fileConf)
	must := func(command string, req *control.Message, want string) {
		t.Helper()
		if got, _ := d.run(command, req); got != want {
			t.Errorf("%s answers %s, want %s", command, got, want)
		}
	}
	must("load-conn", homeConn("home"), yesText)
	must("load-conn", homeConn("work", "work.children.more.remote_ts[]=10.3.0.0/16"), yesText)
	must("load-conn", homeConn("home"), yesText)
	must("get-conns", nil, `conns=["home" "work"]`)
	must("load-shared", controltest.Message("id=one", "type=IKE", "data=0123456789abcdef0123", "owners[]=a.example,c.example"), yesText)
	must("load-shared", controltest.Message("id=two", "type=EAP", "data=secret", "owners[]=carol"), yesText)
	must("get-shared", nil, `keys=["one" "two"]`)
	must("unload-shared", controltest.Message("id=two"), yesText)
	must("get-shared", nil, `keys=["one"]`)

	root := pkitest.Root("plant")
	gw := root.Issue(pkitest.Spec{Name: "gw.example", Kind: pkitest.P256})
	must("load-cert", controltest.Message("type=X509", "flag=CA", "data="+string(root.Raw())), yesText)
	must("load-cert", controltest.Message("type=X509", "flag=NONE", "data="+string(gw.PEM())), yesText)
	loaded, _ := d.run("load-key", controltest.Message("type=ecdsa", "data="+string(gw.KeyPEM())))
	id, ok := strings.CutPrefix(loaded, yesText+` id="`)
	if id = strings.TrimSuffix(id, `"`); !ok || len(id) != 40 {
		t.Errorf("load-key answers %s", loaded)
	}
	must("get-keys", nil, `keys=["`+id+`"]`)
	must("unload-key", controltest.Message("id="+strings.ToUpper(id)), yesText)
	must("get-keys", nil, `keys=[]`)

	must("load-pool", controltest.Message("p4.addrs=10.20.0.0/28", "p4.dns[]=10.1.0.1"), yesText)
	d.pools = []ike.PoolInfo{{Pool: &d.cfg.IKE.Pools[0], Size: 14, Online: 1}}
	must("unload-pool", controltest.Message("name=p4"), noText+`p4 has online leases, unable to unload"`)
	d.pools[0].Online = 0
	must("unload-pool", controltest.Message("name=p4"), yesText)
	must("load-authority", controltest.Message("plant.cacert="+string(root.PEM()), "plant.crl_uris[]=http://192.0.2.9/a.crl,http://192.0.2.9/b.crl"), yesText)
	must("get-authorities", nil, `authorities=["plant"]`)
	_, events := d.run("list-authorities", nil)
	want := []string{`list-authority plant{cacert="C=CH, O=Weir, CN=plant" crl_uris=["http://192.0.2.9/a.crl" "http://192.0.2.9/b.crl"] ocsp_uris=[]}`}
	if !slices.Equal(events, want) {
		t.Errorf("list-authorities streams %q", events)
	}
	if _, events = d.run("list-authorities", controltest.Message("name=other")); len(events) != 0 {
		t.Errorf("list-authorities of another name streams %q", events)
	}
	must("unload-authority", controltest.Message("name=plant"), yesText)
	must("clear-creds", nil, yesText)
	must("get-shared", nil, `keys=[]`)
	must("unload-conn", controltest.Message("name=work"), yesText)
	must("get-conns", nil, `conns=["home"]`)

	_, events = d.run("list-conns", nil)
	if len(events) != 2 || !strings.HasPrefix(events[0], "list-conn office{") || !strings.HasPrefix(events[1], "list-conn home{") {
		t.Errorf("list-conns streams %q", events)
	}
	for _, how := range d.how[:3] {
		if how != ike.ChangeConns {
			t.Errorf("a connection is loaded as change %v", how)
		}
	}
	for i, how := range d.how[3:8] {
		if how != ike.ChangeCreds {
			t.Errorf("credential %d is loaded as change %v, so that SAs which rest on it end", i, how)
		}
	}
}

// Sections before one that is refused stay, as with charon.
func TestSectionsAreLoadedOneByOne(t *testing.T) {
	d := newFake(t, fileConf)
	req := homeConn("home")
	for _, e := range homeConn("bad", "bad.foo=bar").Elements() {
		*req.Section(e.Name) = *e.Section
	}
	if got, _ := d.run("load-conn", req); !strings.HasPrefix(got, noText+"connections.bad.foo") {
		t.Errorf("load-conn answers %s", got)
	}
	if got, _ := d.run("get-conns", nil); got != `conns=["home"]` {
		t.Errorf("get-conns answers %s", got)
	}
}

// Policies are installed and taken away by hand; list-policies shows those that are there, traps
// first, of the kinds that are asked for.
func TestPoliciesByHand(t *testing.T) {
	d := newFake(t, fileConf)
	for _, x := range []struct{ command, child, conn, want string }{
		{"install", "net", "", yesText}, {"install", "net", "", yesText}, {"uninstall", "net", "home", noText + `policy 'net' not found"`},
		{"uninstall", "net", "office", yesText}, {"uninstall", "net", "", noText + `policy 'net' not found"`},
	} {
		req := controltest.Message("child=" + x.child)
		if x.conn != "" {
			req.Set("ike", x.conn)
		}
		if got, _ := d.run(x.command, req); got != x.want {
			t.Errorf("%s of %s/%s answers %s, want %s", x.command, x.conn, x.child, got, x.want)
		}
	}
}

// What was fetched is forgotten by its kind.
func TestFlushingIsByKind(t *testing.T) {
	for _, x := range []struct {
		kind string
		want []pki.FetchKind
	}{
		{"", []pki.FetchKind{pki.FetchCRL, pki.FetchOCSP}}, {"ANY", []pki.FetchKind{pki.FetchCRL, pki.FetchOCSP}},
		{"X509_CRL", []pki.FetchKind{pki.FetchCRL}}, {"OCSP_RESPONSE", []pki.FetchKind{pki.FetchOCSP}}, {"X509", nil},
	} {
		d := newFake(t, fileConf)
		req := new(control.Message)
		if x.kind != "" {
			req.Set("type", x.kind)
		}
		if got, _ := d.run("flush-certs", req); got != yesText || !slices.Equal(d.flushed, x.want) {
			t.Errorf("flush-certs %s answers %s and flushes %v", x.kind, got, d.flushed)
		}
	}
}
