package ike

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

var (
	testRoot  = pkitest.Root("Weir root")
	testMid   = testRoot.Issue(pkitest.Spec{Name: "Weir sites", CA: true})
	otherRoot = pkitest.Root("Lock root")

	wall = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
)

// certOf returns the certificate of a name below the intermediate CA.
func certOf(name string, kind pkitest.Kind) *pkitest.Cert {
	return testMid.Issue(pkitest.Spec{Name: name, Kind: kind})
}

func byCert(c *pkitest.Cert) Auth {
	return Auth{Kind: AuthKindPubkey, Key: c.Key, Certs: c.Chain()}
}

// signing makes a pair that authenticates with certificates below the same root, which change may
// edit, together with a's and b's configuration.
func signing(t *testing.T, change func(a, b *Conn, ca, cb *Config)) *pair {
	t.Helper()
	p := newPair(t, nil)
	p.now.Wall = wall
	a, b := *p.a.m.conns[0].conn, *p.b.m.conns[0].conn
	a.LocalAuth, a.RemoteAuth = []Auth{byCert(certOf("a.test", pkitest.P256))}, []Auth{{Kind: AuthKindPubkey}}
	b.LocalAuth, b.RemoteAuth = []Auth{byCert(certOf("b.test", pkitest.P256))}, []Auth{{Kind: AuthKindPubkey}}
	ca := Config{Conns: []*Conn{&a}, Secrets: p.a.m.secrets, Trust: pkitest.Trust(testRoot), Floor: pkitest.From}
	cb := Config{Conns: []*Conn{&b}, Secrets: p.b.m.secrets, Trust: pkitest.Trust(testRoot), Floor: pkitest.From}
	if change != nil {
		change(&a, &b, &ca, &cb)
	}
	for h, c := range map[*host]Config{p.a: ca, p.b: cb} {
		if err := h.m.Configure(p.now, c); err != nil {
			t.Fatal(err)
		}
	}
	p.run()
	return p
}

// info returns the only IKE SA of a host.
func (h *host) info() (sa SAInfo) {
	h.m.List(func(s *SAInfo) bool { sa = *s; return false })
	return sa
}

// proofs writes how both sides of an IKE SA have proved who they are.
func proofs(sa SAInfo) string {
	var words []string
	for _, list := range [][]Proof{sa.LocalAuth, sa.RemoteAuth} {
		for _, p := range list {
			words = append(words, strings.TrimSpace(fmt.Sprintf("%v %v %s", p.Kind, p.ID, p.Scheme)))
		}
		words = append(words, "|")
	}
	return strings.Join(words, ", ")
}

// reason returns the error of the last event of the kind.
func (h *host) reason(k EventKind) error {
	for _, e := range slices.Backward(h.events) {
		if e.Kind == k {
			return e.Err
		}
	}
	return nil
}

// initiate has a connect, and returns how that ended.
func (p *pair) initiate() error {
	p.a.events = nil
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 77, Conn: "link"})
	p.run()
	for _, e := range p.a.events {
		if e.Kind == EvDone && e.Tag == 77 {
			return e.Err
		}
	}
	return nil
}

func TestSignaturesOfEveryKindOfKeyAuthenticate(t *testing.T) {
	for kind, scheme := range map[pkitest.Kind]string{
		pkitest.Ed25519: "ED25519", pkitest.P256: "ECDSA_WITH_SHA256_DER", pkitest.P384: "ECDSA_WITH_SHA384_DER",
		pkitest.P521: "ECDSA_WITH_SHA512_DER", pkitest.RSA2048: "RSA_EMSA_PKCS1_SHA2_256",
	} {
		p := signing(t, func(a, b *Conn, ca, cb *Config) {
			a.LocalAuth[0] = byCert(certOf("a.test", kind))
		})
		p.up()
		want := "public key a.test " + scheme + ", |, public key b.test ECDSA_WITH_SHA256_DER, |"
		if got := proofs(p.a.info()); got != want {
			t.Errorf("a shows %q, want %q", got, want)
		}
		if got := p.b.info().RemoteAuth[0]; got.Scheme != scheme || got.Cert != "C=CH, O=Weir, CN=a.test" {
			t.Errorf("b shows that a has proved itself by %+v, want %s", got, scheme)
		}
	}
}

func TestPSSIsUsedAndRequired(t *testing.T) {
	rsa := byCert(certOf("a.test", pkitest.RSA2048))
	rsa.Scheme = Scheme{Key: "RSA", PSS: true}
	p := signing(t, func(a, b *Conn, ca, cb *Config) { a.LocalAuth[0], b.RemoteAuth[0].Scheme = rsa, rsa.Scheme })
	p.up()
	if s := p.b.info().RemoteAuth[0].Scheme; !strings.HasPrefix(s, "RSA_EMSA_PSS_SHA2_") {
		t.Errorf("the scheme is %s, want PSS", s)
	}
	rsa.Scheme = Scheme{}
	p = signing(t, func(a, b *Conn, ca, cb *Config) {
		a.LocalAuth[0], b.RemoteAuth[0].Scheme = rsa, Scheme{Key: "RSA", PSS: true}
	})
	if err := p.initiate(); err == nil || !errors.Is(p.b.reason(EvRefused), ErrKeyKind) {
		t.Errorf("PKCS#1 where PSS is required: %v, %v", err, p.b.reason(EvRefused))
	}
}

// Every mix of rounds: c is a certificate, p the shared key, k a raw public key.
func TestRoundsOfEitherSideInAnyMix(t *testing.T) {
	for _, rounds := range [][2]string{{"p", "c"}, {"c", "p"}, {"k", "k"}, {"k", "c"}, {"cp", "c"}, {"c", "cp"}, {"pc", "cp"}, {"ccp", "p"}, {"p", "kcp"}, {"cc", "ccc"}} {
		side := func(word, id string) (ours, theirs []Auth) {
			for i, r := range word {
				name := id
				if i > 0 {
					name = fmt.Sprintf("%d.%s", i, id)
				}
				x := certOf(name, pkitest.Ed25519)
				o, v := Auth{}, Auth{}
				switch r {
				case 'c':
					o, v = byCert(x), Auth{Kind: AuthKindPubkey}
				case 'k':
					o, v = Auth{Kind: AuthKindPubkey, Key: x.Key}, Auth{Kind: AuthKindPubkey, Keys: []*pki.PublicKey{certOf("other", pkitest.P256).Key.Public(), x.Key.Public()}}
				}
				if i > 0 && r != 'p' {
					o.ID, v.ID = ID{IDFQDN, name}, ID{IDFQDN, "*." + id}
				}
				ours, theirs = append(ours, o), append(theirs, v)
			}
			return ours, theirs
		}
		p := signing(t, func(a, b *Conn, ca, cb *Config) {
			a.LocalAuth, b.RemoteAuth = side(rounds[0], "a.test")
			b.LocalAuth, a.RemoteAuth = side(rounds[1], "b.test")
		})
		if err := p.initiate(); err != nil {
			t.Errorf("rounds %v: %v; b says %v", rounds, err, p.b.reason(EvRefused))
			continue
		}
		p.same(1)
		ia, ib := p.a.info(), p.b.info()
		if len(ia.LocalAuth) != len(rounds[0]) || len(ia.RemoteAuth) != len(rounds[1]) {
			t.Errorf("rounds %v: a shows %s", rounds, proofs(ia))
		}
		ib.LocalAuth, ib.RemoteAuth = ib.RemoteAuth, ib.LocalAuth
		if proofs(ia) != proofs(ib) {
			t.Errorf("rounds %v: a shows %s, and b %s", rounds, proofs(ia), proofs(ib))
		}
	}
}

// What is refused is refused with nothing but AUTHENTICATION_FAILED on the wire, whoever refuses,
// and with the reason in an event.
func TestWhatDoesNotProveTheIdentityIsRefused(t *testing.T) {
	pub := Auth{Kind: AuthKindPubkey}
	for _, c := range []struct {
		name   string
		change func(ours *Conn, theirs *Conn, cfg *Config) // ours is refused, cfg is the other's
		want   string
	}{
		{"another name", func(o, x *Conn, _ *Config) { o.LocalAuth[0] = byCert(certOf("c.test", pkitest.P256)) }, "c.test"},
		{"another CA", func(_, _ *Conn, cfg *Config) { cfg.Trust = pkitest.Trust(otherRoot) }, "is not who it says"},
		{"no CA", func(_, _ *Conn, cfg *Config) { cfg.Trust = nil }, "no CA is configured"},
		{"expired", func(o, _ *Conn, _ *Config) {
			o.LocalAuth[0] = byCert(testMid.Issue(pkitest.Spec{Name: o.LocalID.Data, Until: wall.Add(-time.Hour)}))
		}, "expired"},
		{"not yet valid", func(o, _ *Conn, _ *Config) {
			o.LocalAuth[0] = byCert(testMid.Issue(pkitest.Spec{Name: o.LocalID.Data, From: wall.Add(time.Hour)}))
		}, "not valid before"},
		{"the key of somebody else", func(o, _ *Conn, _ *Config) { o.LocalAuth[0].Key = certOf("c.test", pkitest.P256).Key }, "signature"},
		{"no certificate", func(o, _ *Conn, _ *Config) { o.SendCert = SendCertNever }, "sent no certificate"},
		{"not the pinned one", func(_, x *Conn, _ *Config) {
			x.RemoteAuth[0].Pinned = []*pki.Cert{certOf("c.test", pkitest.P256).Cert}
		}, "is not who it says"},
		{"not by the CA of the connection", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].Anchors = []*pki.Cert{otherRoot.Cert} }, "is not who it says"},
		{"not below the CA of that name", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].CA = ID{IDFQDN, "ca.test"} }, "ca_id"},
		{"without the policy", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].Policies = []string{"1.3.6.1.4.1.99999.1"} }, "policy 1.3.6.1.4.1.99999.1"},
		{"another one is known", func(_, x *Conn, cfg *Config) {
			cfg.Trust = nil
			x.RemoteAuth[0].Known = []*pki.Cert{certOf("c.test", pkitest.P256).Cert}
		}, "is not who it says"},
		{"another kind of key", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].Scheme.Key = "RSA" }, "ECDSA P-256"},
		{"a key that is too weak", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].Scheme.Limits = []KeyLimit{{"RSA", 0}, {"ECDSA", 384}} }, "ECDSA P-256"},
		{"a CA that is too weak", func(_, x *Conn, _ *Config) {
			x.RemoteAuth[0].Scheme.Limits = []KeyLimit{{"ECDSA", 256}, {"Ed25519", 384}}
		}, "CN=Weir"},
		{"another hash", func(_, x *Conn, _ *Config) { x.RemoteAuth[0].Scheme.Hashes = []pki.Hash{pki.SHA2_512} }, "refused"},
		{"a shared key instead", func(o, _ *Conn, _ *Config) { o.LocalAuth = nil }, "another method"},
		{"a signature instead", func(_, x *Conn, _ *Config) { x.RemoteAuth = nil }, "another method"},
		{"a round too few", func(_, x *Conn, _ *Config) { x.RemoteAuth = append(x.RemoteAuth, pub) }, "rounds"},
		{"a round too many", func(o, _ *Conn, _ *Config) { o.LocalAuth = append(o.LocalAuth, o.LocalAuth[0]) }, "rounds"},
		{"another raw key", func(_, x *Conn, _ *Config) {
			x.RemoteAuth[0] = Auth{Kind: AuthKindPubkey, Keys: []*pki.PublicKey{certOf("c.test", pkitest.P256).Key.Public()}}
		}, "signature"},
		{"the second round by somebody else", func(o, x *Conn, _ *Config) {
			o.LocalAuth, x.RemoteAuth = append(o.LocalAuth, o.LocalAuth[0]), append(x.RemoteAuth, Auth{Kind: AuthKindPubkey, ID: ID{IDFQDN, "c.test"}})
		}, "does not go together with c.test"},
	} {
		for _, who := range []string{"initiator", "responder"} {
			t.Run(c.name+"/"+who, func(t *testing.T) {
				p := signing(t, func(a, b *Conn, ca, cb *Config) {
					if who == "initiator" {
						c.change(a, b, cb)
					} else {
						c.change(b, a, ca)
					}
				})
				err := p.initiate()
				if err == nil {
					t.Fatal("it was let in")
				}
				got := err
				if who == "initiator" {
					var n *NotifyError
					// That there are not several rounds is known before.
					if !(errors.As(err, &n) && n.Type == NotifyAuthenticationFailed) && err != ErrOneRound {
						t.Errorf("the initiator learns %v, want AUTHENTICATION_FAILED alone", err)
					}
					if got = p.b.reason(EvRefused); err == ErrOneRound {
						got = ErrRounds
					}
				}
				if n := (*NotifyError)(nil); errors.As(got, &n) && c.name == "a round too many" {
					got = ErrRounds // the other one says so
					if r := p.b.reason(EvRefused); r != ErrOneRound {
						t.Errorf("b's reason is %v, want %v", r, ErrOneRound)
					}
				}
				if got == nil || !strings.Contains(got.Error(), c.want) {
					t.Errorf("the reason is %q, want one with %q", got, c.want)
				}
				for _, h := range []*host{p.a, p.b} {
					if len(h.sas)+len(h.spis) != 0 {
						t.Errorf("%v is left with %d SAs and %d SPIs", h.addr, len(h.sas), len(h.spis))
					}
				}
			})
		}
	}
}

// TestConstraintsOfCertificates: known certificates need no CA, and the names of CAs and the
// policies of certificates may be asked for.
func TestConstraintsOfCertificates(t *testing.T) {
	const policy = "1.3.6.1.4.1.99999.1"
	mid := testRoot.Issue(pkitest.Spec{Name: "policy CA", CA: true, Policies: []string{"2.5.29.32.0"}})
	leaf := func(name string) *pkitest.Cert {
		return mid.Issue(pkitest.Spec{Name: name, Policies: []string{"1.2.3", policy}})
	}
	dn, err := ParseIDString("C=CH, O=Weir, CN=policy CA")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(o, x *Conn, cfg *Config){
		"policy": func(o, x *Conn, _ *Config) {
			o.LocalAuth[0], x.RemoteAuth[0].Policies = byCert(leaf(o.LocalID.Data)), []string{policy}
		},
		"name of the CA": func(o, x *Conn, _ *Config) {
			o.LocalAuth[0], x.RemoteAuth[0].CA = byCert(leaf(o.LocalID.Data)), dn
		},
		"strength": func(_, x *Conn, _ *Config) {
			x.RemoteAuth[0].Scheme.Limits = []KeyLimit{{"RSA", 4096}, {"ECDSA", 256}, {"Ed25519", 0}}
		},
		"known": func(o, x *Conn, cfg *Config) {
			cfg.Trust = pkitest.Trust(otherRoot)
			x.RemoteAuth[0].Known = []*pki.Cert{o.LocalAuth[0].Certs[0]}
		},
		"known, not sent": func(o, x *Conn, cfg *Config) {
			o.SendCert = SendCertNever
			x.RemoteAuth[0].Known = []*pki.Cert{o.LocalAuth[0].Certs[0]}
		},
		"beside the known one": func(o, x *Conn, _ *Config) {
			x.RemoteAuth[0].Known = []*pki.Cert{certOf("c.test", pkitest.P256).Cert}
		},
	} {
		if err := signing(t, func(a, b *Conn, ca, cb *Config) { change(a, b, cb); change(b, a, ca) }).initiate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPatternsOfIdentities(t *testing.T) {
	id := func(s string) ID {
		i, err := ParseIDString(s)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	for _, c := range []struct {
		pattern, peer string
		want          bool
	}{
		{"%any", "a.test", true}, {"a.test", "A.TEST", true}, {"a.test", "b.test", false},
		{"*.test", "a.test", true}, {"*.test", "a.b.test", true}, {"*.test", "test", false}, {"*.test", ".test", false}, {"*.test", "a.testy", false},
		{"@*.test", "x@a.test", false}, {"*@a.test", "x@a.test", true}, {"*@a.test", "@a.test", false}, {"*@a.test", "x@b.test", false},
		{"C=CH, O=Weir, CN=*", "C=CH, O=Weir, CN=a.test", true}, {"C=CH, O=Weir, CN=*", "C=CH, O=weir, CN=a.test", true},
		{"C=CH, O=Weir, CN=*", "C=CH, O=Lock, CN=a.test", false}, {"C=CH, O=Weir, CN=*", "C=CH, O=Weir, OU=x, CN=a.test", false},
		{"C=CH, CN=a", "C=CH, CN=*", false}, {"a.test", "*.test", false},
	} {
		if got := id(c.pattern).Admits(id(c.peer)); got != c.want {
			t.Errorf("%s admits %s: %v, want %v", c.pattern, c.peer, got, c.want)
		}
	}
	p := signing(t, func(a, b *Conn, ca, cb *Config) {
		b.RemoteID, a.RemoteID = id("C=CH, O=Weir, CN=*"), id("*.test")
		a.LocalID = ID{} // the subject of the certificate
	})
	p.up()
	if got := p.b.info().RemoteID.String(); got != "C=CH, O=Weir, CN=a.test" {
		t.Errorf("b takes a for %s", got)
	}
}

// The connection is the first one whose identities fit and that takes the certificate.
func TestCertificateDecidesAmongConnections(t *testing.T) {
	p := signing(t, func(a, b *Conn, ca, cb *Config) {
		b.RemoteID = ID{}
		first := *b
		first.Name, first.RemoteAuth = "first", []Auth{{Kind: AuthKindPubkey, Anchors: []*pki.Cert{otherRoot.Cert}}}
		shared := *b
		shared.Name, shared.RemoteAuth = "shared", nil
		cb.Conns = []*Conn{&shared, &first, b}
	})
	p.up()
	if got := p.b.info().Conn; got != "link" {
		t.Errorf("the connection is %s, want link", got)
	}
}

// While a signature is being verified, what is repeated is dropped, and what happens otherwise
// ends the attempt cleanly.
func TestWhatHappensWhileASignatureIsComputed(t *testing.T) {
	begin := func(t *testing.T, which int, at func(p *pair) *host) *pair {
		p := signing(t, nil)
		n := 0
		at(p).slow = func(w *Work) bool {
			if w.auth == nil {
				return false
			}
			n++
			return n == which
		}
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if len(at(p).held) != 1 {
			t.Fatalf("%d jobs are out, want one", len(at(p).held))
		}
		return p
	}
	a, b := func(p *pair) *host { return p.a }, func(p *pair) *host { return p.b }
	for name, c := range map[string]struct {
		which int
		at    func(p *pair) *host
	}{"signing/initiator": {1, a}, "verifying/initiator": {2, a}, "verifying/responder": {1, b}, "signing/responder": {2, b}} {
		t.Run(name+"/late", func(t *testing.T) {
			p := begin(t, c.which, c.at)
			p.pass(6 * time.Second) // retransmissions, where there is something to repeat
			if n := p.b.count(EvRefused) + p.a.count(EvIKEUp)*2; n > 1 && c.at(p) != p.b || len(c.at(p).held) != 1 {
				t.Fatalf("%d things happened without the job, %d jobs are out", n, len(c.at(p).held))
			}
			c.at(p).finish(p.now)
			p.run()
			p.done(p.a, 1, nil)
			p.same(1)
		})
		t.Run(name+"/terminate", func(t *testing.T) {
			p := begin(t, c.which, c.at)
			p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
			p.run()
			c.at(p).finish(p.now)
			p.run()
			p.pass(4 * time.Minute)
			p.done(p.a, 2, nil)
			p.same(0)
		})
		t.Run(name+"/reload", func(t *testing.T) {
			p := begin(t, c.which, c.at)
			h := c.at(p)
			n := *h.m.conns[0].conn
			n.Name, n.RemoteID = "another", ID{IDFQDN, "c.test"}
			if err := h.m.Configure(p.now, Config{Conns: []*Conn{&n}, Trust: h.m.trust}); err != nil {
				t.Fatal(err)
			}
			p.run()
			h.finish(p.now)
			p.run()
			p.pass(4 * time.Minute)
			p.same(0)
		})
		t.Run(name+"/never", func(t *testing.T) {
			p := begin(t, c.which, c.at)
			c.at(p).held = nil
			p.pass(halfOpenLife + time.Second)
			if h := c.at(p); h == p.b {
				p.b.m.List(func(sa *SAInfo) bool { t.Errorf("b still has %+v", sa); return true })
			}
		})
	}
}

// fetching makes a pair in which b has to ask the network about a's certificate.
func fetching(t *testing.T, policy pki.Revocation, answer func(h *host, o *Output, now Time)) *pair {
	x := testMid.Issue(pkitest.Spec{Name: "a.test", Kind: pkitest.P256, CRL: "http://crl.test/weir.crl"})
	p := signing(t, func(a, b *Conn, ca, cb *Config) {
		a.LocalAuth[0], b.RemoteAuth[0] = byCert(x), Auth{Kind: AuthKindPubkey, Anchors: []*pki.Cert{testMid.Cert}, Revocation: policy}
		cb.Trust = nil
	})
	p.b.outputs = func(o *Output) {
		if o.Kind == OutFetch && answer != nil {
			answer(p.b, o, p.now)
		}
	}
	return p
}

func TestRevocationIsFetched(t *testing.T) {
	x := testMid.Issue(pkitest.Spec{Name: "a.test", Kind: pkitest.P256, CRL: "http://crl.test/weir.crl"})
	good, bad := testMid.CRL(wall.Add(-time.Minute)), testMid.CRL(wall.Add(-time.Minute), x)
	for _, c := range []struct {
		name   string
		policy pki.Revocation
		body   []byte // nil: an error
		want   string // of the refusal; "": it is let in
	}{
		{"good", pki.RevokeStrict, good, ""}, {"revoked", pki.RevokeRelaxed, bad, "revoked"},
		{"unreachable, relaxed", pki.RevokeRelaxed, nil, ""}, {"unreachable, ifuri", pki.RevokeIfURI, nil, "is not who it says"},
		{"nonsense", pki.RevokeStrict, []byte("nonsense"), "is not who it says"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			p := fetching(t, c.policy, func(h *host, o *Output, now Time) {
				asked++
				var got []pki.Fetched
				for _, f := range o.Fetches {
					g := pki.Fetched{Fetch: f, Body: c.body}
					if c.body == nil {
						g.Err = errors.New("no route")
					}
					got = append(got, g)
				}
				h.m.Fetched(now, o.FetchID+1, got) // nobody waits for that
				h.m.Fetched(now, o.FetchID, got)
				h.m.Fetched(now, o.FetchID, got) // twice
			})
			err := p.initiate()
			if asked == 0 || asked > pki.MaxRounds {
				t.Errorf("%d fetches", asked)
			}
			if (err == nil) != (c.want == "") {
				t.Fatalf("it ends with %v; b says %v", err, p.b.reason(EvRefused))
			}
			if r := p.b.reason(EvRefused); c.want != "" && !strings.Contains(r.Error(), c.want) {
				t.Errorf("the reason is %v, want one with %q", r, c.want)
			}
		})
	}
	p := fetching(t, pki.RevokeStrict, nil)
	p.initiate()
	if p.b.info().State != StateConnecting {
		t.Fatal("nothing waits for the fetch")
	}
	p.pass(halfOpenLife)
	p.b.m.List(func(sa *SAInfo) bool { t.Errorf("b still has %+v", sa); return true })

	// Somebody who shows the certificate without its key has nothing fetched.
	asked := 0
	p = fetching(t, pki.RevokeStrict, func(*host, *Output, Time) { asked++ })
	p.a.m.conns[0].conn.LocalAuth[0].Key = certOf("c.test", pkitest.P256).Key
	if err := p.initiate(); err == nil || asked != 0 {
		t.Errorf("a wrong signature: %v, and %d fetches", err, asked)
	}
}

// An attempt whose fetch is never answered ends.
func TestAttemptOutlivesNoFetch(t *testing.T) {
	x := testMid.Issue(pkitest.Spec{Name: "b.test", Kind: pkitest.P256, CRL: "http://crl.test/weir.crl"})
	p := signing(t, func(a, b *Conn, ca, cb *Config) {
		b.LocalAuth[0], a.RemoteAuth[0].Revocation, a.KeyingTries = byCert(x), pki.RevokeStrict, 1
		a.RemoteAuth[0].Anchors, ca.Trust = []*pki.Cert{testMid.Cert}, nil
	})
	p.initiate()
	if p.a.info().State != StateConnecting {
		t.Fatal("nothing waits for the fetch")
	}
	p.pass(fetchMax + time.Second)
	p.done(p.a, 77, ErrTimeout)
}

func TestAuthenticationEndsWithTheCertificate(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		p := signing(t, func(a, b *Conn, ca, cb *Config) {
			side := map[string]*Conn{"a": a, "b": b}[who]
			side.LocalAuth[0] = byCert(testMid.Issue(pkitest.Spec{Name: who + ".test", Until: wall.Add(10 * time.Minute)}))
		})
		p.up()
		h := p.b
		if who == "b" {
			h = p.a
		}
		if sa := h.info(); sa.ExpireAt == 0 || sa.ExpireAt-p.now.Mono > 10*time.Minute || who == "b" && (sa.ReauthAt == 0 || sa.ReauthAt >= sa.ExpireAt) {
			t.Errorf("the certificate of %s ends in 10 minutes, and the IKE SA in %v, authenticated anew in %v", who, sa.ExpireAt-p.now.Mono, sa.ReauthAt-p.now.Mono)
		}
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 5, Conn: "link"})
		p.run()
		p.done(p.a, 5, nil)
		if sa := h.info(); sa.ExpireAt == 0 || sa.ExpireAt-p.now.Mono > 10*time.Minute || len(sa.RemoteAuth) != 1 {
			t.Errorf("new keys prolong an authentication: it ends in %v", sa.ExpireAt-p.now.Mono)
		}
	}
}

func TestReloadAuthenticatesAnewWhatProvesDifferently(t *testing.T) {
	for name, c := range map[string]struct {
		change func(c *Conn, cfg *Config)
		stays  bool
	}{
		"nothing":        {func(*Conn, *Config) {}, true},
		"the same files": {func(c *Conn, _ *Config) { c.LocalAuth = []Auth{byCert(certOf("a.test", pkitest.P256))} }, true},
		"send_cert":      {func(c *Conn, _ *Config) { c.SendCert = SendCertAlways }, true},
		"a new certificate": {func(c *Conn, _ *Config) {
			c.LocalAuth = []Auth{byCert(testMid.Issue(pkitest.Spec{Name: "a.test", Kind: pkitest.P256, Until: pkitest.Until.AddDate(1, 0, 0)}))}
		}, false},
		"another CA": {func(c *Conn, _ *Config) {
			c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Anchors: []*pki.Cert{testMid.Cert}}}
		}, false},
		"a CA less":     {func(_ *Conn, cfg *Config) { cfg.Trust = pkitest.Trust(otherRoot) }, false},
		"one CA more":   {func(_ *Conn, cfg *Config) { cfg.Trust = pkitest.Trust(testRoot, otherRoot) }, true},
		"a new policy":  {func(c *Conn, _ *Config) { c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Revocation: pki.RevokeStrict}} }, false},
		"another round": {func(c *Conn, _ *Config) { c.LocalAuth = append(c.LocalAuth[:1:1], c.LocalAuth[0]) }, false},
	} {
		p := signing(t, nil)
		p.up()
		before := p.a.info().Unique
		n := *p.a.m.conns[0].conn
		cfg := Config{Conns: []*Conn{&n}, Trust: p.a.m.trust, Floor: p.a.m.floor, Secrets: p.a.m.secrets}
		c.change(&n, &cfg)
		if err := p.a.m.Configure(p.now, cfg); err != nil {
			t.Fatal(err)
		}
		p.run()
		p.pass(replaceMax + 6*time.Second)
		if stays := p.a.info().Unique == before; stays != c.stays {
			t.Errorf("%s: the IKE SA stays: %v, want %v", name, stays, c.stays)
		}
	}
}

func TestCertificatesAreSentWhenAsked(t *testing.T) {
	for _, c := range []struct {
		name  string
		send  SendCert
		noReq bool
		certs int
		first SendCert // of the side that calls, where it differs
	}{
		{"if asked, asked", SendCertIfAsked, false, 2, 0},
		{"if asked, not asked", SendCertIfAsked, true, 0, 0},
		{"if asked, not asked by one that shows its own", SendCertIfAsked, true, 2, SendCertAlways},
		{"always", SendCertAlways, true, 2, 0},
		{"never", SendCertNever, false, 0, 0},
		{"never, not asked by one that shows its own", SendCertNever, true, 0, SendCertAlways},
	} {
		p := signing(t, func(a, b *Conn, ca, cb *Config) {
			a.SendCert, b.SendCert, a.NoCertReq, b.NoCertReq = c.send, c.send, c.noReq, c.noReq
			if c.first != 0 {
				a.SendCert = c.first
			}
			a.RemoteAuth[0].Pinned = []*pki.Cert{certOf("b.test", pkitest.P256).Cert}
			b.RemoteAuth[0].Pinned = []*pki.Cert{certOf("a.test", pkitest.P256).Cert}
		})
		seen := [2]int{}
		for i, h := range []*host{p.a, p.b} {
			h.m.Trace = func() bool { return true }
			h.outputs = func(o *Output) {
				if o.Kind == OutEvent && o.Event.Kind == EvTrace && strings.Contains(o.Event.Text, "sending") && strings.Contains(o.Event.Text, "IKE_AUTH") {
					for _, w := range strings.Fields(o.Event.Text) {
						if w == "CERT" {
							seen[i]++
						}
					}
				}
			}
		}
		p.up()
		want := [2]int{c.certs, c.certs}
		if c.first == SendCertAlways {
			want[0] = 2
		}
		if seen != want {
			t.Errorf("%s: %v certificates were sent, want %v", c.name, seen, want)
		}
	}
}

func TestResumptionGoesOnWithoutCertificates(t *testing.T) {
	p := signing(t, func(a, b *Conn, ca, cb *Config) { a.Resumption, b.Resumption = true, true })
	p.b.m.SetTicketKeys([]TicketKey{{ID: [8]byte{1}}})
	p.up()
	if p.a.m.sas[0].resume.ticket == nil {
		t.Fatal("there is no ticket")
	}
	mark := func(change func(c *Conn, m *Machine)) (v [pskMarkLen]byte) {
		c := *p.b.m.conns[0].conn
		m := *p.b.m
		change(&c, &m)
		v, ok := m.authMark(&p.b.m.tickets.keys[0], &c, c.LocalID, c.RemoteID)
		if !ok {
			t.Error("there is no mark")
		}
		return v
	}
	same := mark(func(*Conn, *Machine) {})
	for name, change := range map[string]func(c *Conn, m *Machine){
		"CA": func(_ *Conn, m *Machine) { m.trust = pkitest.Trust(otherRoot) },
		"anchor": func(c *Conn, _ *Machine) {
			c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Anchors: []*pki.Cert{testMid.Cert}}}
		},
		"revocation": func(c *Conn, _ *Machine) { c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Revocation: pki.RevokeStrict}} },
		"scheme":     func(c *Conn, _ *Machine) { c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Scheme: Scheme{Key: "ECDSA"}}} },
		"hash": func(c *Conn, _ *Machine) {
			c.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Scheme: Scheme{Hashes: []pki.Hash{pki.SHA2_384}}}}
		},
		"our key": func(c *Conn, _ *Machine) { c.LocalAuth = []Auth{byCert(certOf("b.test", pkitest.Ed25519))} },
	} {
		if mark(change) == same {
			t.Errorf("another %s leaves tickets good", name)
		}
	}
	if mark(func(*Conn, *Machine) {}) != same {
		t.Error("the same configuration has two marks")
	}
}
