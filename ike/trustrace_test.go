package ike

import (
	"errors"
	"testing"

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
