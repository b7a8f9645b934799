package ike

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
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
	ppkOne   = PPK{PPKID{PPKIDFixed, "one"}, []byte("a post-quantum key of 32 octets.")}
	ppkOther = PPK{PPKID{PPKIDFixed, "one"}, []byte("another key, under the same name")}
	ppkTwo   = PPK{PPKID{PPKIDOpaque, "two"}, []byte("the second post-quantum key: two")}
)

// ppkPair is a pair with these PPKs on each side, not up. change sets what the connections have.
func ppkPair(t testing.TB, a, b []PPK, change func(a, b *Conn)) *pair {
	p := newPair(t, change)
	p.setPPKs(p.a, a)
	p.setPPKs(p.b, b)
	return p
}

// setPPKs configures a host anew with these PPKs.
func (p *pair) setPPKs(h *host, ppks []PPK) {
	p.a.t.Helper()
	if err := h.m.Configure(p.now, Config{Conns: []*Conn{h.m.conns[0].conn}, Secrets: h.m.secrets, PPKs: ppks}); err != nil {
		p.a.t.Fatal(err)
	}
	p.run()
}

// ppkOf returns the PPK in the keys of the one IKE SA that h has.
func ppkOf(t *testing.T, h *host) (id PPKID) {
	t.Helper()
	n := 0
	h.m.List(func(sa *SAInfo) bool {
		n, id = n+1, sa.PPK
		return true
	})
	if n != 1 {
		t.Fatalf("%v has %d IKE SAs, want 1", h.addr, n)
	}
	return id
}

// TestPPKIsUsedAsBothSidesSay goes through table 1 of RFC 8784 and the initiator's rules in
// section 3.
func TestPPKIsUsedAsBothSidesSay(t *testing.T) {
	type side struct {
		keys     []PPK
		id       PPKID
		any      bool
		required bool
	}
	one, two := []PPK{ppkOne}, []PPK{ppkTwo}
	none := side{}
	opt, must := side{keys: one, id: ppkOne.ID}, side{keys: one, id: ppkOne.ID, required: true}
	opt2, must2 := side{keys: two, id: ppkTwo.ID}, side{keys: two, id: ppkTwo.ID, required: true}
	wrong, wrongMust := side{keys: []PPK{ppkOther}, id: ppkOther.ID}, side{keys: []PPK{ppkOther}, id: ppkOther.ID, required: true}
	anyOf := side{keys: []PPK{ppkOne, ppkTwo}, any: true}
	anyMust := side{keys: []PPK{ppkOne, ppkTwo}, any: true, required: true}
	refused := &NotifyError{NotifyAuthenticationFailed, ""}
	for _, c := range []struct {
		name       string
		a, b       side
		used       PPKID
		err, errB  error // of the initiator's command, and in the responder's EvRefused
		unused     int   // events EvNoPPK on both sides
		afterwards bool  // the command ends only with all retransmissions
	}{
		{name: "neither", a: none, b: none},
		{name: "both", a: opt, b: opt, used: ppkOne.ID},
		{name: "both, required", a: must, b: must, used: ppkOne.ID},
		{name: "required by the initiator", a: must, b: opt, used: ppkOne.ID},
		{name: "required by the responder", a: opt, b: must, used: ppkOne.ID},
		{name: "opaque", a: must2, b: must2, used: ppkTwo.ID},
		{name: "any, the first", a: must, b: anyMust, used: ppkOne.ID},
		{name: "any, the second", a: opt2, b: anyOf, used: ppkTwo.ID},
		{name: "any as initiator names none", a: anyOf, b: opt, unused: 2},
		{name: "initiator alone", a: opt, b: none, unused: 1},
		{name: "responder alone", a: none, b: opt, unused: 1},
		{name: "initiator alone requires it", a: must, b: none, err: ErrPPKRefused, afterwards: true},
		{name: "responder alone requires it", a: none, b: must, err: refused, errB: ErrPPKMissing},
		{name: "any responder requires it", a: none, b: anyMust, err: refused, errB: ErrPPKMissing},
		{name: "names differ", a: opt, b: opt2, unused: 2},
		{name: "names differ, initiator requires it", a: must, b: opt2, err: refused, errB: ErrPPKUnknown},
		{name: "names differ, responder requires it", a: opt, b: must2, err: refused, errB: ErrPPKUnknown},
		{name: "keys differ", a: opt, b: wrong, err: refused, errB: &AuthError{ID{IDFQDN, "a.test"}, ppkOne.ID}},
		{name: "keys differ, required", a: must, b: wrongMust, err: refused, errB: &AuthError{ID{IDFQDN, "a.test"}, ppkOne.ID}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := ppkPair(t, c.a.keys, c.b.keys, func(a, b *Conn) {
				a.PPK, a.PPKAny, a.PPKRequired = c.a.id, c.a.any, c.a.required
				b.PPK, b.PPKAny, b.PPKRequired = c.b.id, c.b.any, c.b.required
				a.KeyingTries = 1
			})
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			if c.afterwards {
				if p.a.count(EvDone) != 0 {
					t.Fatal("the first answer without USE_PPK ended the attempt; it may be forged (RFC 8784 section 6)")
				}
				p.pass(10 * time.Minute)
			}
			p.done(p.a, 1, c.err)
			if c.err != nil {
				p.same(0)
				if c.errB == nil {
					return
				}
				if !slices.ContainsFunc(p.b.events, func(e Event) bool {
					return e.Kind == EvRefused && (errors.Is(e.Err, c.errB) || e.Err.Error() == c.errB.Error())
				}) {
					t.Fatalf("the responder does not say %q: %+v", c.errB, p.b.events)
				}
				return
			}
			p.same(1)
			for _, h := range []*host{p.a, p.b} {
				if got := ppkOf(t, h); got != c.used {
					t.Errorf("%v has the PPK %q in its keys, want %q", h.addr, got, c.used)
				}
			}
			if n := p.a.count(EvNoPPK) + p.b.count(EvNoPPK); n != c.unused {
				t.Errorf("%d events say that a PPK is not in use, want %d", n, c.unused)
			}
		})
	}
}

// TestPPKIsMixedAsTheRFCSays computes the keys of RFC 8784 section 3 by hand.
func TestPPKIsMixedAsTheRFCSays(t *testing.T) {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) { a.PPK, b.PPK = ppkOne.ID, ppkOne.ID })
	var before ikeKeys
	look := p.a.m.env.(*host)
	look.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeAuth {
			k := p.a.m.sas[0].init.unmixed
			before = ikeKeys{d: bytes.Clone(k.d), pi: bytes.Clone(k.pi), pr: bytes.Clone(k.pr)}
			after := p.a.m.sas[0].keys
			for _, x := range []struct {
				name          string
				before, after []byte
			}{{"SK_pi", k.pi, after.pi}, {"SK_pr", k.pr, after.pr}} {
				mac := hmac.New(sha256.New, ppkOne.Key)
				mac.Write(x.before)
				mac.Write([]byte{1})
				if want := mac.Sum(nil); !bytes.Equal(x.after, want) {
					t.Errorf("%s = %x, want %x", x.name, x.after, want)
				}
			}
		}
		return true
	}
	p.up()
	for _, h := range []*host{p.a, p.b} {
		sa := h.m.established(h.m.conns[0].conn)
		mac := hmac.New(sha256.New, ppkOne.Key)
		mac.Write(before.d)
		mac.Write([]byte{1})
		if want := mac.Sum(nil); len(before.d) != 32 || !bytes.Equal(sa.keys.d, want) {
			t.Errorf("%v: SK_d = %x, want %x", h.addr, sa.keys.d, want)
		}
		if sa.init.unmixed.d != nil {
			t.Errorf("%v still has the keys before the PPK after IKE_AUTH", h.addr)
		}
	}
}

// TestPPKStaysInTheKeys checks what is made of an IKE SA with a PPK: it is not mixed again.
func TestPPKStaysInTheKeys(t *testing.T) {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, a.PPKRequired, b.PPK, b.PPKRequired = ppkOne.ID, true, ppkOne.ID, true
	})
	p.up()
	for i, h := range []*host{p.a, p.b} {
		old := h.m.established(h.m.conns[0].conn).unique
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(10 + i), Conn: "link"})
		p.run()
		p.done(h, uint64(10+i), nil)
		if h.m.established(h.m.conns[0].conn).unique == old {
			t.Fatal("the IKE SA was not rekeyed")
		}
		h.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(20 + i), Conn: "link", Child: "net"})
		p.run()
		p.done(h, uint64(20+i), nil)
		p.pass(2 * linger)
		p.same(1)
		for _, x := range []*host{p.a, p.b} {
			if got := ppkOf(t, x); got != ppkOne.ID {
				t.Errorf("%v: after rekeying %d the PPK is %q", x.addr, i, got)
			}
		}
	}
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 30, Conn: "link"})
	p.run()
	p.done(p.a, 30, nil)
	p.pass(2 * linger)
	p.same(1)
	if a, b := ppkOf(t, p.a), ppkOf(t, p.b); a != ppkOne.ID || b != ppkOne.ID {
		t.Errorf("after reauthentication the PPKs are %q and %q", a, b)
	}
}

func TestPPKWithoutAChildAndWithARedirect(t *testing.T) {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, a.PPKRequired, b.PPK, b.PPKRequired = ppkOne.ID, true, ppkOne.ID, true
		a.Childless = ChildlessForce
	})
	p.up()
	if got := ppkOf(t, p.b); got != ppkOne.ID {
		t.Errorf("childless: the PPK is %q", got)
	}
	// The responder redirects in IKE_AUTH only a peer that the addresses alone do not tell.
	p = ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, a.PPKRequired, b.PPK, b.PPKRequired = ppkOne.ID, true, ppkOne.ID, true
		a.LocalAddrs, b.LocalAddrs = nil, nil
	})
	c := p.b.m.conns[0].conn.clone()
	c.RedirectTo = Gateway{Addr: otherGateway}
	plain := c.clone()
	plain.Name, plain.RemoteID, plain.RedirectTo, plain.PPK, plain.PPKRequired = "plain", ID{IDFQDN, "c.test"}, Gateway{}, PPKID{}, false
	if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{plain, c}, Secrets: p.b.m.secrets, PPKs: p.b.m.ppks}); err != nil {
		t.Fatal(err)
	}
	p.up()
	if got := peerOf(t, p.a); got != otherGateway {
		t.Fatalf("the client is connected to %v, want %v", got, otherGateway)
	}
	if got := ppkOf(t, p.a); got != ppkOne.ID {
		t.Errorf("redirected: the PPK is %q", got)
	}
}

// TestForgedAnswerWithoutUsePPKIsNotBelieved: somebody who is faster than the responder cannot
// end the attempt of an initiator that must have a PPK.
func TestForgedAnswerWithoutUsePPKIsNotBelieved(t *testing.T) {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, a.PPKRequired, b.PPK = ppkOne.ID, true, ppkOne.ID
	})
	p.b.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeInit && h.Response() {
			p.b.out = append(p.b.out, Output{Kind: OutSend, Path: o.Path, Data: withoutNotify(t, o.Data, NotifyUsePPK)})
		}
		return true
	}
	p.up()
	if got := ppkOf(t, p.a); got != ppkOne.ID {
		t.Errorf("the PPK is %q", got)
	}
}

// TestTakingUsePPKOutIsNoticed: with a pre-shared key for authentication a downgrade by
// somebody in the middle fails even where both sides could do without a PPK (section 6).
func TestTakingUsePPKOutIsNoticed(t *testing.T) {
	for _, side := range []string{"request", "response"} {
		p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
			a.PPK, b.PPK, a.KeyingTries = ppkOne.ID, ppkOne.ID, 1
		})
		x := p.a
		if side == "response" {
			x = p.b
		}
		x.mangle = func(o *Output) bool {
			if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeInit {
				o.Data = withoutNotify(t, o.Data, NotifyUsePPK)
			}
			return true
		}
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		p.done(p.a, 1, &NotifyError{NotifyAuthenticationFailed, ""})
		p.same(0)
	}
}

// withoutNotify returns a clear message less its notifies of a type.
func withoutNotify(t *testing.T, b []byte, drop NotifyType) []byte {
	t.Helper()
	out := bytes.Clone(b[:headerLen])
	at := 16 // where the type of the next payload stands
	next, rest := PayloadType(b[16]), b[headerLen:]
	for next != PayloadNone {
		n := int(rest[2])<<8 | int(rest[3])
		one := rest[:n]
		if next != PayloadNotify || one[6] != byte(drop>>8) || one[7] != byte(drop) {
			out[at], at = byte(next), len(out)
			out = append(out, one...)
		}
		next, rest = PayloadType(one[0]), rest[n:]
	}
	out[at] = 0
	out[26], out[27] = byte(len(out)>>8), byte(len(out))
	return out
}

// hostilePPK brings up a pair in which the initiator's IKE_AUTH request has these notifies
// instead of PPK_IDENTITY, and returns the reason that the responder gives for refusing it.
func hostilePPK(t *testing.T, required bool, write func(sa *ikeSA, b *Builder)) error {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, b.PPK, b.PPKRequired, a.KeyingTries = ppkOne.ID, ppkOne.ID, required, 1
	})
	p.b.outputs = func(o *Output) {
		if o.Kind == OutSend {
			if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeAuth && len(o.Data) > 200 {
				t.Error("the responder does not answer with a mere error")
			}
		}
	}
	done := false
	p.a.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		if h.Exchange != ExchangeAuth || done {
			return true
		}
		done = true
		sa := &p.a.m.sas[0]
		idBody := sa.localID.appendBody(nil)
		auth := sa.authData(p.a.m.secrets[0].Key, sa.octets(true, idBody), true)
		o.Data = bytes.Clone(p.a.m.sealed(sa, sa.header(ExchangeAuth, 1, false), func(b *Builder) {
			b.ID(PayloadIDi, sa.localID)
			b.Auth(AuthPSK, auth)
			write(sa, b)
			b.SA(sa.init.offered)
			b.TS(PayloadTSi, sa.init.childTS[0])
			b.TS(PayloadTSr, sa.init.childTS[1])
		}))
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	if !done {
		t.Fatal("there was no IKE_AUTH request")
	}
	for _, e := range p.b.events {
		if e.Kind == EvRefused {
			p.done(p.a, 1, &NotifyError{NotifyAuthenticationFailed, ""})
			p.same(0)
			return e.Err
		}
	}
	return nil
}

func TestHostilePPKIdentities(t *testing.T) {
	wrongProof := bytes.Repeat([]byte{7}, 32)
	for name, c := range map[string]struct {
		required bool
		write    func(sa *ikeSA, b *Builder)
		want     error
	}{
		"none": {false, func(sa *ikeSA, b *Builder) {}, ErrPPKUnnamed},
		"none, but NO_PPK_AUTH": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyNoPPKAuth, ProtoNone, nil, wrongProof)
		}, ErrPPKUnnamed},
		"empty": {false, func(sa *ikeSA, b *Builder) { b.Notify(NotifyPPKIdentity, ProtoNone, nil, nil) }, ErrPPKUnknown},
		"type alone": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte{byte(PPKIDFixed)})
		}, ErrPPKUnknown},
		"other type": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x01one"))
		}, ErrPPKUnknown},
		"reserved type": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x00one"))
		}, ErrPPKUnknown},
		"too long": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, append([]byte{2}, bytes.Repeat([]byte("x"), 4000)...))
		}, ErrPPKUnknown},
		"unknown, with a wrong NO_PPK_AUTH": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x02none"))
			b.Notify(NotifyNoPPKAuth, ProtoNone, nil, wrongProof)
		}, &AuthError{Peer: ID{IDFQDN, "a.test"}}},
		"unknown, with an empty NO_PPK_AUTH": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x02none"))
			b.Notify(NotifyNoPPKAuth, ProtoNone, nil, nil)
		}, &AuthError{Peer: ID{IDFQDN, "a.test"}}},
		"unknown, with a right NO_PPK_AUTH, but required": {true, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x02none"))
			b.Notify(NotifyNoPPKAuth, ProtoNone, nil, pskAuth(sa.suite.PRF, []byte("a secret of the two"), sa.octetsWithoutPPK(sa.localID.appendBody(nil))))
		}, ErrPPKUnknown},
		"the AUTH that goes with the PPK as NO_PPK_AUTH": {false, func(sa *ikeSA, b *Builder) {
			b.Notify(NotifyPPKIdentity, ProtoNone, nil, []byte("\x02none"))
			b.Notify(NotifyNoPPKAuth, ProtoNone, nil, pskAuth(sa.suite.PRF, []byte("a secret of the two"), sa.octets(true, sa.localID.appendBody(nil))))
		}, &AuthError{Peer: ID{IDFQDN, "a.test"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := hostilePPK(t, c.required, c.write)
			if got == nil || got.Error() != c.want.Error() {
				t.Errorf("the responder says %v, want %v", got, c.want)
			}
		})
	}
}

func TestResponderThatDropsARequiredPPKIsRefused(t *testing.T) {
	p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
		a.PPK, a.PPKRequired, b.PPK, a.KeyingTries = ppkOne.ID, true, ppkOne.ID, 1
	})
	p.b.mangle = func(o *Output) bool {
		h, _ := ParseHeader(o.Data)
		if h.Exchange != ExchangeAuth {
			return true
		}
		sa := &p.b.m.sas[0]
		o.Data = bytes.Clone(p.b.m.sealed(sa, sa.header(ExchangeAuth, 1, true), func(b *Builder) {
			b.ID(PayloadIDr, sa.localID)
			b.Auth(AuthPSK, bytes.Repeat([]byte{1}, 32))
		}))
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.done(p.a, 1, ErrPPKMissing)
	if len(p.a.sas) != 0 || p.b.count(EvIKEDown) != 1 {
		t.Errorf("the responder was not told by AUTHENTICATION_FAILED: %+v", p.b.events)
	}
}

func TestPPKReload(t *testing.T) {
	for _, c := range []struct {
		name   string
		b      []PPK
		any    bool
		stays  bool
		change func(c *Conn)
	}{
		{name: "the same", b: []PPK{ppkOne}, stays: true},
		{name: "one more", b: []PPK{ppkTwo, ppkOne}, stays: true},
		{name: "one more of any", b: []PPK{ppkTwo, ppkOne}, any: true, stays: true},
		{name: "another key", b: []PPK{ppkOther}},
		{name: "another key of any", b: []PPK{ppkOther}, any: true},
		{name: "gone", b: nil, any: true},
		{name: "required", b: []PPK{ppkOne}, change: func(c *Conn) { c.PPKRequired = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := ppkPair(t, []PPK{ppkOne}, []PPK{ppkOne}, func(a, b *Conn) {
				a.PPK, b.PPK, b.PPKAny = ppkOne.ID, ppkOne.ID, c.any
				if c.any {
					b.PPK = PPKID{}
				}
			})
			p.up()
			was := p.b.m.established(p.b.m.conns[0].conn).unique
			conn := p.b.m.conns[0].conn.clone()
			if c.change != nil {
				c.change(conn)
			}
			if err := p.b.m.Configure(p.now, Config{Conns: []*Conn{conn}, Secrets: p.b.m.secrets, PPKs: c.b}); err != nil {
				t.Fatal(err)
			}
			p.run()
			sa := p.b.m.established(p.b.m.conns[0].conn)
			if stays := sa != nil && sa.unique == was; stays != c.stays {
				t.Errorf("the IKE SA stays: %v, want %v", stays, c.stays)
			}
		})
	}
}

// TestTicketsKnowTheirPPK resumes sessions with and without one.
func TestTicketsKnowTheirPPK(t *testing.T) {
	with := func(p *qcdPair, h *host, ppks []PPK, change func(c *Conn)) {
		cfg := p.cfg[h]
		c := cfg.Conns[0].clone()
		if change != nil {
			change(c)
		}
		cfg.Conns, cfg.PPKs = []*Conn{c}, ppks
		p.cfg[h] = cfg
	}
	for _, c := range []struct {
		name   string
		ppk    bool // in the first session
		after  []PPK
		change func(c *Conn)
		sent   string
	}{
		{"used, required", true, []PPK{ppkOne}, func(c *Conn) { c.PPKRequired = true }, "IKE_SESSION_RESUME IKE_AUTH"},
		{"used, the key is another one now", true, []PPK{ppkOther}, nil, "IKE_SESSION_RESUME IKE_SA_INIT IKE_AUTH"},
		{"used, the connection has none now", true, nil, func(c *Conn) { c.PPK = PPKID{} }, "IKE_SESSION_RESUME IKE_SA_INIT IKE_AUTH"},
		{"not used, required now", false, []PPK{ppkOne}, func(c *Conn) { c.PPK, c.PPKRequired = ppkOne.ID, true }, "IKE_SESSION_RESUME IKE_SA_INIT IKE_AUTH"},
		{"not used", false, nil, nil, "IKE_SESSION_RESUME IKE_AUTH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := resumePair(t, func(a, b *Conn) {
				if c.ppk {
					a.PPK, b.PPK = ppkOne.ID, ppkOne.ID
				}
			})
			if c.ppk { // once more, with the keys
				for _, h := range []*host{p.a, p.b} {
					with(p, h, []PPK{ppkOne}, nil)
					keys := h.m.tickets.keys
					p.restart(h)
					for _, k := range keys {
						h.m.SetTicketKeys([]TicketKey{k.TicketKey})
					}
				}
				p.a.events = nil
				p.up()
				if ppkOf(t, p.a) != ppkOne.ID {
					t.Fatal("the first session has no PPK")
				}
			}
			sent := exchanges(p.a)
			with(p, p.b, c.after, c.change)
			p.restartGateway()
			p.lose()
			p.run()
			wantExchanges(t, sent, c.sent)
			if resumed := !strings.Contains(c.sent, "INIT"); resumed && c.ppk {
				for _, h := range []*host{p.a, p.b} {
					if got := ppkOf(t, h); got != ppkOne.ID {
						t.Errorf("%v: the resumed session says that its PPK is %q", h.addr, got)
					}
				}
			}
		})
	}
}

func TestPPKsKeepTheirKeysToThemselves(t *testing.T) {
	for _, s := range []string{fmt.Sprint(ppkOne), fmt.Sprintf("%v %+v %#v %s", ppkOne, ppkOne, ppkOne, &ppkOne), fmt.Sprintf("%v", []PPK{ppkOne}), (&AuthError{ID{}, ppkOne.ID}).Error()} {
		if strings.Contains(s, "post-quantum key") || strings.Contains(s, "706f7374") || !strings.Contains(s, "one") {
			t.Errorf("%q", s)
		}
	}
}

func TestPPKIDs(t *testing.T) {
	for s, want := range map[string]PPKID{
		"site-a":                 {PPKIDFixed, "site-a"},
		"opaque:x":               {PPKIDOpaque, "x"},
		strings.Repeat("y", 255): {PPKIDFixed, strings.Repeat("y", 255)},
	} {
		id, err := ParsePPKID(s)
		if err != nil || id != want || id.String() != s {
			t.Errorf("%q is %v, %v", s, id, err)
		}
		back, err := parsePPKID(id.appendBody(nil))
		if err != nil || back != id {
			t.Errorf("%q comes back as %v, %v", s, back, err)
		}
	}
	for _, s := range []string{"", "opaque:", strings.Repeat("y", 256)} {
		if id, err := ParsePPKID(s); err == nil {
			t.Errorf("%q is taken as %v", s, id)
		}
	}
	if s := (PPKID{PPKIDFixed, "a\x1b[2J\xff\n"}).String(); s != "a.[2J.." {
		t.Errorf("a hostile name prints as %q", s)
	}
}

func FuzzPPKID(f *testing.F) {
	f.Add([]byte("\x02site"))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parsePPKID(b)
		if err != nil {
			if id != (PPKID{}) {
				t.Fatal("an error and a name")
			}
			return
		}
		if !bytes.Equal(id.appendBody(nil), b) {
			t.Fatalf("%x comes back as %x", b, id.appendBody(nil))
		}
		for _, r := range id.String() {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q has control characters", id.String())
			}
		}
	})
}

// TestPPKGoesWithSignatures: the PPK is in what is signed, NO_PPK_AUTH is made by the same method,
// and of several rounds each is about the same keys.
func TestPPKGoesWithSignatures(t *testing.T) {
	one, two, other := []PPK{ppkOne}, []PPK{ppkTwo}, []PPK{ppkOther}
	for _, c := range []struct {
		name     string
		b        []PPK
		required bool // by both
		used     PPKID
		refused  string // what b says
	}{
		{name: "both", b: one, used: ppkOne.ID},
		{name: "required", b: one, required: true, used: ppkOne.ID},
		{name: "another name", b: two},
		{name: "another key", b: other, refused: "PPK one"},
	} {
		for _, rounds := range []string{"c", "cp", "pc"} {
			t.Run(c.name+"/"+rounds, func(t *testing.T) {
				p := signing(t, func(a, b *Conn, ca, cb *Config) {
					side := func(id string) (ours, theirs []Auth) {
						for _, r := range rounds {
							if r == 'p' {
								ours, theirs = append(ours, Auth{}), append(theirs, Auth{})
							} else {
								ours, theirs = append(ours, byCert(certOf(id, pkitest.P256))), append(theirs, Auth{Kind: AuthKindPubkey})
							}
						}
						return ours, theirs
					}
					a.LocalAuth, b.RemoteAuth = side("a.test")
					b.LocalAuth, a.RemoteAuth = side("b.test")
					a.PPK, b.PPK = one[0].ID, c.b[0].ID
					a.PPKRequired, b.PPKRequired = c.required, c.required
					ca.PPKs, cb.PPKs = one, c.b
				})
				err := p.initiate()
				if c.refused != "" {
					if why := p.b.reason(EvRefused); !isNotify(err, NotifyAuthenticationFailed) || why == nil || !strings.Contains(why.Error(), c.refused) {
						t.Fatalf("the attempt ends with %v, and b says %v, want something about %s", err, why, c.refused)
					}
					p.same(0)
					return
				}
				if err != nil {
					t.Fatalf("%v; b says %v", err, p.b.reason(EvRefused))
				}
				p.same(1)
				for _, h := range []*host{p.a, p.b} {
					if got := h.info(); got.PPK != c.used || len(got.RemoteAuth) != len(rounds) {
						t.Errorf("%v: the PPK is %q after %d rounds, want %q after %d", h.addr, got.PPK, len(got.RemoteAuth), c.used, len(rounds))
					}
				}
			})
		}
	}
}

// TestPPKDecidesAmongConnections: of connections that one certificate may belong to, those are
// tried that go with the PPK of the first one.
func TestPPKDecidesAmongConnections(t *testing.T) {
	p := signing(t, func(a, b *Conn, ca, cb *Config) {
		a.PPK, a.PPKRequired, ca.PPKs = ppkOne.ID, true, []PPK{ppkOne}
		plain := b.clone()
		plain.Name = "plain"
		foreign := b.clone()
		foreign.Name, foreign.PPK = "foreign", ppkOne.ID
		foreign.RemoteAuth = []Auth{{Kind: AuthKindPubkey, Anchors: []*pki.Cert{otherRoot.Cert}}}
		b.PPK, b.PPKRequired, cb.PPKs = ppkOne.ID, true, []PPK{ppkOne}
		cb.Conns = []*Conn{plain, foreign, b}
	})
	if err := p.initiate(); err != nil {
		t.Fatalf("%v; b says %v", err, p.b.reason(EvRefused))
	}
	if got := p.b.info(); got.Conn != "link" || got.PPK != ppkOne.ID {
		t.Errorf("the peer belongs to connection %s with the PPK %q", got.Conn, got.PPK)
	}
}
