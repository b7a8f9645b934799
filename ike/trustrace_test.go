package ike

import (
	"errors"
	"slices"
	"testing"
	"time"

	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// What is trusted when an authentication ends decides, and not what was when it began: a CA that
// is taken out while a certificate below it is being looked at, while we sign, or between two
// rounds lets nobody in.
func TestCAIsTakenOutDuringAuthentication(t *testing.T) {
	for name, c := range map[string]struct {
		initiator bool // it is the initiator whose configuration changes
		which     int  // of its jobs with signatures is out
		rounds    int  // of the other one
	}{
		"verifying/responder":            {false, 1, 1},
		"signing/responder":              {false, 2, 1},
		"verifying/initiator":            {true, 2, 1},
		"the second round/responder":     {false, 3, 2},
		"the second round/initiator":     {true, 3, 2},
		"signing the 1st of 2/responder": {false, 2, 2},
	} {
		for _, less := range []bool{true, false} {
			p := signing(t, func(a, b *Conn, _, _ *Config) {
				a.KeyingTries, b.KeyingTries = 1, 1
				if c.initiator {
					a, b = b, a
				}
				if c.rounds == 2 {
					a.LocalAuth, b.RemoteAuth = append(a.LocalAuth, a.LocalAuth[0]), append(b.RemoteAuth, b.RemoteAuth[0])
				}
			})
			h := p.b
			if c.initiator {
				h = p.a
			}
			n := 0
			h.slow = func(w *Work) bool {
				if w.auth == nil {
					return false
				}
				n++
				return n == c.which
			}
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			if len(h.held) != 1 {
				t.Fatalf("%s: %d jobs are out, want one", name, len(h.held))
			}
			same := *h.m.conns[0].conn
			cfg := Config{Conns: []*Conn{&same}, Trust: pkitest.Trust(otherRoot, testRoot), Floor: h.m.floor, Secrets: h.m.secrets}
			if less {
				cfg.Trust = pkitest.Trust(otherRoot)
			}
			if err := h.m.Configure(p.now, cfg); err != nil {
				t.Fatal(err)
			}
			h.slow = nil
			p.run()
			h.finish(p.now)
			p.run()
			if up := h.count(EvIKEUp); up != 0 == less {
				t.Errorf("%s, the CA taken out: %v: %d IKE SAs came up", name, less, up)
			}
		}
	}
}

// A list that comes with a new configuration while a certificate is being looked at counts.
func TestListThatComesDuringAuthenticationCounts(t *testing.T) {
	p := signing(t, func(_, b *Conn, _, _ *Config) { b.KeyingTries = 1 })
	p.b.slow = func(w *Work) bool { return w.auth != nil }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	own := certOf("a.test", pkitest.P256)
	list, err := pki.ParseCRL(testMid.CRL(wall, own))
	if err != nil {
		t.Fatal(err)
	}
	trust, err := pki.NewTrust([]pki.Authority{{Cert: testRoot.Cert}, {Cert: testMid.Cert, CRLs: []*pki.CRL{list}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	same := *p.b.m.conns[0].conn
	if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{&same}, Trust: trust, Floor: p.b.m.floor, Secrets: p.b.m.secrets}); err != nil {
		t.Fatal(err)
	}
	p.b.slow = nil
	p.b.finish(p.now)
	p.run()
	if err := p.b.reason(EvRefused); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("the certificate is revoked by the time of the verdict, and the attempt ended with %v", err)
	}
}

// The same holds for a post-quantum pre-shared key.
func TestPPKIsTakenOutDuringAuthentication(t *testing.T) {
	for name, c := range map[string]struct {
		now  []PPK
		want error
	}{"it stays": {[]PPK{ppkTwo, ppkOne}, nil}, "it goes": {[]PPK{ppkTwo}, ErrPPKUnknown}, "it is another": {[]PPK{ppkOther}, ErrPPKUnknown}} {
		p := signing(t, func(a, b *Conn, ca, cb *Config) {
			a.PPK, b.PPKAny, a.KeyingTries = ppkOne.ID, true, 1
			ca.PPKs, cb.PPKs = []PPK{ppkOne}, []PPK{ppkOne}
		})
		p.b.slow = func(w *Work) bool { return w.auth != nil }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		same := *p.b.m.conns[0].conn
		if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{&same}, Trust: p.b.m.trust, Floor: p.b.m.floor, Secrets: p.b.m.secrets, PPKs: c.now}); err != nil {
			t.Fatal(err)
		}
		p.b.slow = nil
		p.b.finish(p.now)
		p.run()
		if got := p.b.reason(EvRefused); got != c.want || p.b.count(EvIKEUp) != 0 == (c.want != nil) {
			t.Errorf("%s: the attempt ended with %v, want %v", name, got, c.want)
		}
	}
}

// A session that was lost and goes on by its ticket, again and again, has the authentication of
// the first: when that ends by the certificate, by reauth_time or with a CA, so does the session.
func TestResumptionProlongsNoAuthentication(t *testing.T) {
	const left = 20 * time.Minute
	start := func(change func(a, b *Conn)) *pair {
		p := signing(t, func(a, b *Conn, _, _ *Config) {
			for _, c := range []*Conn{a, b} {
				c.Resumption, c.KeyingTries, c.RekeyTime = true, 0, 0
				c.Children[0].DPDAction = ActionRestart
			}
			change(a, b)
		})
		p.b.m.SetTicketKeys([]TicketKey{{ID: [8]byte{1}}})
		p.up()
		return p
	}
	again := func(p *pair) {
		p.a.events, p.b.events = nil, nil
		p.a.m.peerRestarted(p.a.m.established(p.a.m.conns[0].conn))
		p.run()
	}
	brief := func(name string) Auth {
		return byCert(testMid.Issue(pkitest.Spec{Name: name, Until: wall.Add(left)}))
	}
	for name, c := range map[string]struct {
		change func(a, b *Conn)
		a, b   bool // whose end is to come
	}{
		"the client's certificate":  {func(a, b *Conn) { a.LocalAuth[0] = brief("a.test") }, false, true},
		"the gateway's certificate": {func(a, b *Conn) { b.LocalAuth[0] = brief("b.test") }, true, false},
		"reauth_time": {func(a, b *Conn) {
			a.ReauthTime, b.ReauthTime, a.OverTime, b.OverTime = left-time.Minute, left-time.Minute, time.Minute, time.Minute
		}, true, true},
	} {
		p := start(c.change)
		began := p.now.Mono
		for range 3 {
			p.pass(5 * time.Minute)
			p.now.Wall = wall.Add(p.now.Mono - began)
			if again(p); !resumedUp(p.a) || !resumedUp(p.b) {
				t.Fatalf("%s: the session was not resumed", name)
			}
			for h, ends := range map[*host]bool{p.a: c.a, p.b: c.b} {
				if sa := h.info(); ends && (sa.ExpireAt == 0 || sa.ExpireAt > began+left+5*time.Second) {
					t.Errorf("%s: %v after it was authenticated the session is to end in %v, which is more than %v in all",
						name, p.now.Mono-began, sa.ExpireAt-p.now.Mono, left)
				}
			}
		}
	}

	p := start(func(a, b *Conn) {})
	again(p)
	for _, h := range []*host{p.a, p.b} {
		same := *h.m.conns[0].conn
		if err := h.m.Configure(p.now, Config{Conns: []*Conn{&same}, Trust: pkitest.Trust(otherRoot), Floor: h.m.floor, Secrets: h.m.secrets}); err != nil {
			t.Fatal(err)
		}
		if h.m.established(h.m.conns[0].conn) != nil {
			t.Errorf("%v keeps a resumed session that rests on a CA that is trusted no more", h.addr)
		}
	}

	p = start(func(a, b *Conn) {})
	kept := *p.a.m.established(p.a.m.conns[0].conn).resume.ticket
	kept.skd = slices.Clone(kept.skd)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.a.m.conns[0].ticket = &kept
	same := *p.a.m.conns[0].conn
	if err := p.a.m.Configure(p.now, Config{Conns: []*Conn{&same}, Trust: pkitest.Trust(otherRoot), Floor: p.a.m.floor, Secrets: p.a.m.secrets}); err != nil {
		t.Fatal(err)
	}
	sent := exchanges(p.a)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 3, Conn: "link"})
	p.run()
	if len(*sent) == 0 || (*sent)[0] != "IKE_SA_INIT" {
		t.Errorf("the client started %q: it must not go on with a gateway whose CA it does not trust any more", *sent)
	}
}

// A stranger's signature is checked once, however many connections it may be for.
func TestStrangersSignatureIsCheckedOnce(t *testing.T) {
	p := signing(t, nil)
	x := otherRoot.Issue(pkitest.Spec{Name: "a.test", Kind: pkitest.P256})
	octets := []byte("what is signed")
	method, data, err := x.Key.Sign(&pki.Offer{Hashes: pki.Hashes()}, octets, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &claim{peer: ID{IDFQDN, "a.test"}, method: AuthMethod(method), data: data, octets: octets}
	c.certs = [][]byte{x.Raw()}
	conn := p.b.m.conns[0].conn
	for range maxCandidates {
		c.cands = append(c.cands, candidate{conn, conn.RemoteAuth[0], conn.LocalID})
	}
	w := &judgeWork{claim: c, trust: p.b.m.trust, now: wall}
	if _, err := w.run(); err == nil || len(w.tried) != 1 {
		t.Errorf("%d signatures were checked, want 1; the verdict is %v", len(w.tried), err)
	}
	c.cands[maxCandidates-1].round.Scheme.Hashes = []pki.Hash{pki.SHA2_512}
	w = &judgeWork{claim: c, trust: pkitest.Trust(otherRoot), now: wall}
	c.cands = c.cands[maxCandidates-1:]
	if _, err := w.run(); !errors.Is(err, pki.ErrScheme) {
		t.Errorf("a signature with a hash that is not taken: %v", err)
	}
}
