package config

import (
	"crypto/sha1"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// certConn is a connection whose sides prove themselves with certificates.
func certConn(local, remote *control.Message) *control.Message {
	return vm("remote_addrs", "192.0.2.2", "local", local, "remote", remote, "children", vm("net", vm("remote_ts", "10.2.0.0/24")))
}

func TestKeyIsFoundByTheCertificateInWhateverOrder(t *testing.T) {
	ca := pkitest.Root("CA")
	own := ca.Issue(pkitest.Spec{Name: "gw.example"})
	other := ca.Issue(pkitest.Spec{Name: "other.example"})
	type step func(*Loaded) (*Loaded, error)
	key := func(c *pkitest.Cert) step {
		return func(l *Loaded) (*Loaded, error) {
			l, _, err := l.LoadKey(vm("type", "any", "data", string(c.KeyPEM())))
			return l, err
		}
	}
	cert := func(c *pkitest.Cert, flag string) step {
		return func(l *Loaded) (*Loaded, error) {
			return l.LoadCert(vm("type", "X509", "flag", flag, "data", string(c.PEM())))
		}
	}
	conn := func(local *control.Message) step {
		return func(l *Loaded) (*Loaded, error) {
			return l.LoadConn("c", certConn(local, vm("auth", "pubkey", "id", "peer.example")))
		}
	}
	named := vm("certs", []string{string(own.Raw())})
	byID := vm("id", "gw.example")
	for name, steps := range map[string][]step{
		"credentials first, certs":   {key(other), key(own), cert(ca, "CA"), conn(named)},
		"connection first, certs":    {conn(named), cert(ca, "CA"), key(other), key(own)},
		"credentials first, by id":   {cert(other, "NONE"), cert(own, "NONE"), key(other), key(own), cert(ca, "CA"), conn(byID)},
		"connection first, by id":    {conn(byID), cert(ca, "CA"), cert(other, "NONE"), key(other), key(own), cert(own, "NONE")},
		"in PEM, a key loaded twice": {key(own), key(own), cert(ca, "CA"), conn(vm("certs", string(own.PEM()), "id", "gw.example"))},
	} {
		l, file := new(Loaded), emptyFile(t)
		var c *Config
		for _, s := range steps {
			var err error
			if l, err = s(l); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if c, err = file.With(l); err != nil {
				t.Fatalf("%s: on the way: %v", name, err)
			}
		}
		a := c.Conn("c").LocalAuth
		if len(a) != 1 || a[0].Key == nil || len(a[0].Certs) != 1 || !a[0].Certs[0].Equal(own.Cert) {
			t.Errorf("%s: our round is %+v", name, a)
		}
		if len(c.IKE.Trust.KeyIDs()) != 1 {
			t.Errorf("%s: %d CAs are trusted", name, len(c.IKE.Trust.KeyIDs()))
		}
		// Without the key the connection stays, and has nothing to prove itself with.
		if c, err := file.With(l.ClearCreds()); err != nil || c.Conn("c") == nil || c.Conn("c").LocalAuth[0].Key != nil {
			t.Errorf("%s: after clear-creds: %v", name, err)
		}
	}
}

func TestKeyIDIsTheHashOfThePublicKey(t *testing.T) {
	own := pkitest.Root("gw")
	l, id, err := (&Loaded{}).LoadKey(vm("type", "any", "data", string(own.KeyPEM())))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := own.Public()
	if err != nil {
		t.Fatal(err)
	}
	spki := pub.SPKI()
	sum := sha1.Sum(spki[len(spki)-32:]) // Ed25519: the key is what the bit string ends with
	if want := hex.EncodeToString(sum[:]); id != want || !slices.Equal(l.KeyIDs(), []string{want}) {
		t.Errorf("the id is %s, want %s", id, want)
	}
	if l, err = l.UnloadKey(strings.ToUpper(id)); err != nil || len(l.KeyIDs()) != 0 {
		t.Errorf("unload: %v, %v", l.KeyIDs(), err)
	}
	if _, err = l.UnloadKey(id); err == nil {
		t.Error("a key can be unloaded twice")
	}
}

func TestPeerCertificateThatWasLoadedIsTrusted(t *testing.T) {
	must := mustLoad(t)
	ca := pkitest.Root("CA")
	peer := pkitest.Root("self").Issue(pkitest.Spec{Name: "peer.example"})
	l := must((&Loaded{}).LoadConn("c", certConn(vm("auth", "psk"), vm("id", "peer.example"))))
	l = must(l.LoadConn("any", certConn(vm("auth", "psk"), vm("id", "*.example"))))
	l = must(l.LoadCert(vm("type", "X509", "flag", "CA", "data", string(ca.Raw()))))
	l = must(l.LoadCert(vm("type", "X509", "data", string(peer.Raw()))))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	a := c.Conn("c").RemoteAuth[0]
	if len(a.Known) != 1 || !a.Known[0].Equal(peer.Cert) || len(a.Pinned)+len(a.Anchors) != 0 {
		t.Errorf("the peer's round is %+v: its certificate, or one of the CA, should do", a)
	}
	if a = c.Conn("any").RemoteAuth[0]; len(a.Known) != 0 {
		t.Errorf("whoever fits a pattern has to come from the CA: %+v", a)
	}
}

// TestFilesOfCertificatesAreReadOnce: what is loaded stays usable when its files are gone.
func TestFilesOfCertificatesAreReadOnce(t *testing.T) {
	must := mustLoad(t)
	ca := pkitest.Root("CA")
	own := ca.Issue(pkitest.Spec{Name: "gw.example"})
	dir := t.TempDir()
	write := func(name string, c *pkitest.Cert) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.PEM(), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile, ownFile := write("ca.pem", ca), write("own.pem", own)
	l := must((&Loaded{}).LoadConn("c", certConn(vm("cert1", vm("file", ownFile)), vm("id", "peer.example", "cacert-a", vm("file", caFile), "cert-b", vm("file", ownFile)))))
	l = must(l.LoadAuthority("a", vm("file", caFile)))
	l, _, err := l.LoadKey(vm("type", "any", "data", string(own.KeyPEM())))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{caFile, ownFile} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := c.Conn("c").LocalAuth[0], c.Conn("c").RemoteAuth[0]
	if ours.Key == nil || len(theirs.Anchors) != 1 || len(theirs.Pinned) != 1 || len(c.IKE.Trust.Authorities()) != 1 {
		t.Errorf("the rounds are %+v and %+v", ours, theirs)
	}
	if _, err := l.LoadConn("d", certConn(vm("cert1", vm("file", ownFile)), vm())); err == nil || !strings.Contains(err.Error(), "connections.d.local.cert1.file: cannot read") {
		t.Errorf("a file that is gone: %v", err)
	}
}

func TestAuthoritiesAndRevocationLists(t *testing.T) {
	must := mustLoad(t)
	ca, sub := pkitest.Root("CA"), pkitest.Root("other")
	at := pkitest.From.Add(time.Hour)
	l := must((&Loaded{}).LoadCert(vm("type", "X509", "flag", "CA", "data", string(ca.PEM()))))
	l = must(l.LoadCert(vm("type", "X509_CRL", "data", string(ca.CRL(at)))))
	l = must(l.LoadAuthority("main", vm("cacert", string(ca.Raw()), "crl_uris", "http://a.example/ca.crl", "ocsp_uris", []string{"http://o.example/"})))
	l = must(l.LoadAuthority("more", vm("cacert", string(sub.Raw()))))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	list := c.IKE.Trust.Authorities()
	if len(list) != 2 || len(list[0].CRLURIs) != 1 || len(list[0].OCSPURIs) != 1 || len(list[0].CRLs) != 1 || !list[1].Cert.Equal(sub.Cert) {
		t.Errorf("the authorities are %+v", list)
	}
	if got := l.Authorities(); !slices.Equal(got, []string{"main", "more"}) {
		t.Errorf("the names are %v", got)
	}
	if l, err = l.UnloadAuthority("more"); err != nil {
		t.Fatal(err)
	}
	if c, err = emptyFile(t).With(l.ClearCreds()); err != nil || len(c.IKE.Trust.Authorities()) != 1 {
		t.Errorf("authorities stay when credentials go: %v", err)
	}
	if _, err = emptyFile(t).With(must(l.LoadAuthority("empty", vm("crl_uris", "http://a.example/")))); err == nil || !strings.Contains(err.Error(), "authorities.empty: ") {
		t.Errorf("an authority without a certificate: %v", err)
	}
}

func TestWhatCannotBeLoadedIsNamed(t *testing.T) {
	ca := pkitest.Root("CA")
	leaf := ca.Issue(pkitest.Spec{Name: "leaf"})
	for _, c := range []struct {
		f    func(*Loaded) error
		want string
	}{
		{func(l *Loaded) error { _, err := l.LoadShared(vm("type", "IKE", "owners", []string{"a"})); return err }, "data: "},
		{func(l *Loaded) error { _, err := l.LoadShared(vm("type", "pin", "data", "x")); return err }, "type: pin"},
		{func(l *Loaded) error { _, err := l.LoadShared(vm("type", "PPK", "data", "x")); return err }, "owners: "},
		{func(l *Loaded) error {
			_, err := l.LoadShared(vm("type", "IKE", "data", "x", "secret", "y"))
			return err
		}, "secret is not known"},
		{func(l *Loaded) error { _, err := l.UnloadShared("x"); return err }, "id x"},
		{func(l *Loaded) error {
			_, _, err := l.LoadKey(vm("type", "rsa", "data", string(leaf.KeyPEM())))
			return err
		}, "another kind (Ed25519"},
		{func(l *Loaded) error {
			_, _, err := l.LoadKey(vm("type", "any", "data", string(leaf.PEM())))
			return err
		}, "data: "},
		{func(l *Loaded) error { _, _, err := l.LoadKey(vm("type", "bliss", "data", "x")); return err }, "data: "},
		{func(l *Loaded) error {
			_, err := l.LoadCert(vm("type", "X509", "flag", "CA", "data", string(leaf.PEM())))
			return err
		}, "not a CA"},
		{func(l *Loaded) error { _, err := l.LoadCert(vm("type", "X509_AC", "data", "x")); return err }, "type: "},
		{func(l *Loaded) error {
			_, err := l.LoadCert(vm("type", "X509", "flag", "OCSP", "data", "x"))
			return err
		}, "flag: "},
		{func(l *Loaded) error { _, err := l.LoadCert(vm("type", "X509_CRL", "data", "x")); return err }, "data: "},
		{func(l *Loaded) error { _, err := l.LoadConn("a/b", vm()); return err }, "a/b"},
		{func(l *Loaded) error { _, err := l.LoadPool("", vm()); return err }, "pool"},
		{func(l *Loaded) error { _, err := l.UnloadConn("x"); return err }, "x was loaded"},
		{func(l *Loaded) error { _, err := l.UnloadPool("x"); return err }, "x was loaded"},
		{func(l *Loaded) error { _, err := l.UnloadAuthority("x"); return err }, "x was loaded"},
	} {
		if err := c.f(new(Loaded)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("the error is %v, want %q in it", err, c.want)
		}
	}
}

func TestSecretsServeWhomStrongSwanLetsThemServe(t *testing.T) {
	must := mustLoad(t)
	const key = "a key of more than 16 octets"
	l := must((&Loaded{}).LoadShared(vm("id", "1", "type", "IKE", "data", "1"+key, "owners", []string{"gw.example", "alice@example", "bob@example"})))
	l = must(l.LoadShared(vm("id", "2", "type", "ike", "data", "2"+key, "owners", []string{"*@other.example"})))
	l = must(l.LoadShared(vm("type", "IKE", "data", "3"+key)))
	l = must(l.LoadShared(vm("id", "4", "type", "EAP", "data", "secret of eap", "owners", []string{"carol"})))
	l = must(l.LoadShared(vm("id", "5", "type", "PPK", "data", "5"+key, "owners", []string{"site"})))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct{ local, remote, want string }{
		{"gw.example", "alice@example", "1"}, {"gw.example", "dave@else.example", "1"}, {"elsewhere", "eve@other.example", "2"}, {"elsewhere", "dave@else.example", "3"},
	} {
		local, _ := ike.ParseIDString(p.local)
		remote, _ := ike.ParseIDString(p.remote)
		best, score := "", 0
		for _, s := range c.IKE.Secrets {
			if n := s.Fits(local, remote); n > score {
				best, score = string(s.Key[:1]), n
			}
		}
		if best != p.want {
			t.Errorf("for %s and %s it is the key %s, want %s", p.local, p.remote, best, p.want)
		}
	}
	if len(c.IKE.PPKs) != 1 || c.IKE.PPKs[0].ID.Data != "site" {
		t.Errorf("the PPKs are %v", c.IKE.PPKs)
	}
	if !slices.Equal(l.SharedIDs(), []string{"1", "2", "4", "5"}) {
		t.Errorf("the ids are %v", l.SharedIDs())
	}
	if !slices.ContainsFunc(c.Warnings(), func(p Problem) bool { return p.File == "secrets.4" }) {
		t.Errorf("nothing says that the secret for EAP is not used: %v", c.Warnings())
	}
	for _, p := range c.Warnings() {
		if strings.Contains(p.String(), key) || strings.Contains(p.String(), "secret of eap") {
			t.Errorf("a warning has a secret in it: %v", p)
		}
	}
	l = must(l.LoadShared(vm("id", "2", "type", "IKE", "data", "6"+key)))
	if len(l.SharedIDs()) != 4 {
		t.Errorf("a secret with the same id is not replaced: %v", l.SharedIDs())
	}
	if l = must(l.UnloadShared("1")); len(l.SharedIDs()) != 3 {
		t.Errorf("after unload the ids are %v", l.SharedIDs())
	}
}

// FuzzLoaded feeds messages to what clients have loaded: whatever they are, the value before stays
// as it was, and what comes out keeps its promises.
func FuzzLoaded(f *testing.F) {
	add := func(op byte, m *control.Message) {
		if b, err := m.Append([]byte{op}); err == nil {
			f.Add(b)
		}
	}
	ca := pkitest.Root("CA")
	own := ca.Issue(pkitest.Spec{Name: "gw.example"})
	for i := range viciCases {
		c := &viciCases[i]
		m := vm(c.key, c.value)
		switch c.where {
		case "local", "remote":
			m = vm(c.where, m)
		case "child":
			m = vm("children", vm("net", m))
		}
		add(map[string]byte{"pool": 1, "authority": 2}[c.where], m)
	}
	add(0, pskConn(vm("local_ts", "10.1.0.0/24", "remote_ts", "10.2.0.0/24", "start_action", "trap")))
	add(0, certConn(vm("certs", []string{string(own.Raw())}), vm("cacerts", string(ca.Raw()))))
	add(2, vm("cacert", string(ca.Raw()), "crl_uris", "http://a.example/"))
	add(3, vm("id", "x", "type", "IKE", "data", "0123456789abcdef", "owners", []string{"a", "b"}))
	add(4, vm("type", "any", "data", string(own.KeyPEM())))
	add(5, vm("type", "X509", "flag", "CA", "data", string(ca.Raw())))
	add(5, vm("type", "X509_CRL", "data", string(ca.CRL(pkitest.From))))

	base, err := (&Loaded{}).LoadConn("base", pskConn(vm("local_ts", "10.1.0.0/16", "remote_ts", "10.2.0.0/16")))
	if err == nil {
		base, err = base.LoadPool("pool", vm("addrs", "10.9.0.0/24"))
	}
	if err != nil {
		f.Fatal(err)
	}
	file, err := Parse("f", nil, ike.AESFirst)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		m, err := control.Decode(data[1:])
		if err != nil {
			return
		}
		var l *Loaded
		switch data[0] % 6 {
		case 0:
			l, err = base.LoadConn("c", m)
		case 1:
			l, err = base.LoadPool("c", m)
		case 2:
			l, err = base.LoadAuthority("c", m)
		case 3:
			l, err = base.LoadShared(m)
		case 4:
			l, _, err = base.LoadKey(m)
		case 5:
			l, err = base.LoadCert(m)
		}
		if err == nil {
			var c *Config
			if c, err = file.With(l); err == nil {
				checkTogether(t, c)
			}
		}
		if err != nil && (strings.ContainsAny(err.Error(), "\x00\x1b\r") || len(err.Error()) > 1<<20) {
			t.Errorf("the error is no text for people: %q", err)
		}
		if len(base.ConnNames()) != 1 || len(base.Pools()) != 1 || len(base.Authorities())+len(base.SharedIDs())+len(base.KeyIDs())+len(base.certs)+len(base.crls) != 0 {
			t.Fatal("the value before has changed")
		}
		if before, err := file.With(base); err != nil || len(before.IKE.Conns) != 1 || len(file.IKE.Conns) != 0 {
			t.Fatalf("what was loaded before does not work any more: %v", err)
		}
	})
}

func checkTogether(t *testing.T, c *Config) {
	if len(c.marks) != len(c.Policies(nil)) || len(c.SPD(nil)) != c.entries() {
		t.Errorf("%d children, %d policies, %d entries of %d", len(c.marks), len(c.Policies(nil)), len(c.SPD(nil)), c.entries())
	}
	for _, conn := range c.IKE.Conns {
		if conn.Name == "" || len(conn.Proposals) == 0 || len(conn.LocalAuth) > ike.MaxRounds || len(conn.RemoteAuth) > ike.MaxRounds {
			t.Errorf("a connection that the machine cannot use: %+v", conn)
		}
		for _, ch := range conn.Children {
			if ch.Name == "" || len(ch.Proposals) == 0 || len(ch.LocalTS) == 0 || len(ch.RemoteTS) == 0 {
				t.Errorf("a child that the machine cannot use: %+v", ch)
			}
		}
		for _, a := range slices.Concat(conn.LocalAuth, conn.RemoteAuth) {
			if slices.ContainsFunc(slices.Concat(a.Certs, a.Pinned, a.Anchors), func(c *pki.Cert) bool { return c == nil }) {
				t.Errorf("a round with a certificate that is none: %+v", a)
			}
		}
	}
	for _, p := range c.warnings {
		if p.Line < 0 || strings.ContainsAny(p.String(), "\n\x00\x1b") {
			t.Errorf("a warning that nobody can read: %q", p.String())
		}
	}
	for _, e := range c.SPD(nil) {
		for _, ts := range slices.Concat(e.LocalTS, e.RemoteTS) {
			if !ts.Valid() {
				t.Errorf("an entry with the selector %v", ts)
			}
		}
	}
}

func TestStrengthOfKeysInAuth(t *testing.T) {
	must := mustLoad(t)
	for _, c := range []struct {
		auth, key string
		limits    []ike.KeyLimit
		hashes    int
	}{
		{"pubkey", "", nil, 0},
		{"ecdsa", "ECDSA", nil, 0},
		{"ike:rsa-sha384-sha256", "RSA", nil, 2},
		{"rsa-3072", "RSA", []ike.KeyLimit{{Key: "RSA", Bits: 3072}}, 0},
		{"rsa-3072-sha256-ecdsa-256-sha256", "", []ike.KeyLimit{{Key: "RSA", Bits: 3072}, {Key: "ECDSA", Bits: 256}}, 1},
		{"rsa-ecdsa-384", "", []ike.KeyLimit{{Key: "RSA"}, {Key: "ECDSA", Bits: 384}}, 0},
		{"rsa-4096-ed25519-ecdsa-sha512", "", []ike.KeyLimit{{Key: "RSA", Bits: 4096}, {Key: "Ed25519"}, {Key: "ECDSA"}}, 1},
	} {
		conn, err := emptyFile(t).With(must((&Loaded{}).LoadConn("c", certConn(vm("auth", "psk"), vm("auth", c.auth)))))
		if err != nil {
			t.Errorf("%s: %v", c.auth, err)
			continue
		}
		s := conn.Conn("c").RemoteAuth[0].Scheme
		if s.Key != c.key || !slices.Equal(s.Limits, c.limits) || len(s.Hashes) != c.hashes {
			t.Errorf("%s is %+v, want the kind %q, limits %v and %d hashes", c.auth, s, c.key, c.limits, c.hashes)
		}
	}
}
