package ike

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ike/pki"
	"postern/ike/pki/pkitest"
)

// midway makes a pair in which the key exchange is over, and a has not sent IKE_AUTH.
func midway(t *testing.T, change func(a, b *Conn, ca, cb *Config)) *pair {
	t.Helper()
	p := signing(t, change)
	p.a.slow = func(w *Work) bool { return w.auth != nil }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	p.run()
	if len(p.a.held) != 1 {
		t.Fatal("a does not sign")
	}
	return p
}

// auth makes an IKE_AUTH request of a's of payloads that fill writes.
func (p *pair) auth(id uint32, fill func(*Builder)) []byte {
	b := NewBuilder(nil, Header{})
	fill(b)
	msg := b.Finish()
	return p.sealed(ExchangeAuth, id, PayloadType(msg[offNext]), msg[headerLen:])
}

// claimOf writes a round of a's with the certificates, signed by the key.
func (p *pair) claimOf(b *Builder, id ID, key *pki.Key, certs ...*pki.Cert) {
	method, data, err := key.Sign(&pki.Offer{Hashes: pki.Hashes()}, p.a.m.sas[0].octets(true, id.appendBody(nil)), nil)
	if err != nil {
		p.a.t.Fatal(err)
	}
	b.ID(PayloadIDi, id)
	for _, x := range certs {
		b.Cert(CertX509, x.Raw())
	}
	b.Auth(AuthMethod(method), data)
}

// A peer that has not authenticated may send what it likes: it gets one answer, and is gone.
func TestHostileAuthentication(t *testing.T) {
	x := certOf("a.test", pkitest.P256)
	id := ID{IDFQDN, "a.test"}
	sign := func(p *pair, b *Builder) { p.claimOf(b, id, x.Key, x.Chain()...) }
	with := func(e CertEncoding, data []byte, n int) func(*pair, *Builder) {
		return func(p *pair, b *Builder) {
			for range n {
				b.Cert(e, data)
			}
			p.claimOf(b, id, x.Key)
		}
	}
	for _, c := range []struct {
		name  string
		write func(p *pair, b *Builder)
		want  NotifyType
	}{
		{"nothing", func(*pair, *Builder) {}, NotifyInvalidSyntax},
		{"AUTH without an identity", func(_ *pair, b *Builder) { b.Auth(AuthSignature, []byte{1}) }, NotifyInvalidSyntax},
		{"an identity without AUTH", func(_ *pair, b *Builder) { b.ID(PayloadIDi, id) }, NotifyAuthenticationFailed},
		{"17 certificates", with(CertX509, x.Raw(), 17), NotifyInvalidSyntax},
		{"11 certificates", with(CertX509, x.Raw(), 11), NotifyAuthenticationFailed},
		{"a certificate that is none", with(CertX509, []byte("nonsense"), 1), NotifyAuthenticationFailed},
		{"a certificate of no octets", with(CertX509, nil, 1), NotifyAuthenticationFailed},
		{"the URL of a certificate", with(CertURL, bytes.Repeat([]byte{1}, 30), 1), NotifyAuthenticationFailed},
		{"a raw key", with(CertRawKey, x.Key.Public().SPKI(), 1), NotifyAuthenticationFailed},
		{"a raw key of 5,000 octets", with(CertRawKey, make([]byte, 5000), 1), NotifyAuthenticationFailed},
		{"the CA first", func(p *pair, b *Builder) { p.claimOf(b, id, x.Key, testMid.Cert, x.Cert) }, NotifyAuthenticationFailed},
		{"the CA as the peer", func(p *pair, b *Builder) { p.claimOf(b, id, testMid.Key, testMid.Cert) }, NotifyAuthenticationFailed},
		{"no intermediate CA", func(p *pair, b *Builder) { p.claimOf(b, id, x.Key, x.Cert) }, NotifyAuthenticationFailed},
		{"no certificate", func(p *pair, b *Builder) { p.claimOf(b, id, x.Key) }, NotifyAuthenticationFailed},
		{"a shared key", func(_ *pair, b *Builder) { b.ID(PayloadIDi, id); b.Auth(AuthPSK, make([]byte, 32)) }, NotifyAuthenticationFailed},
		{"an unknown method", func(_ *pair, b *Builder) {
			b.ID(PayloadIDi, id)
			b.Cert(CertX509, x.Raw())
			b.Auth(99, make([]byte, 32))
		}, NotifyAuthenticationFailed},
		{"a signature of nonsense", func(_ *pair, b *Builder) {
			b.ID(PayloadIDi, id)
			b.Cert(CertX509, x.Raw())
			b.Auth(AuthSignature, []byte{200, 1, 2, 3})
		}, NotifyAuthenticationFailed},
		{"a signature over the other side's octets", func(p *pair, b *Builder) {
			method, data, _ := x.Key.Sign(&pki.Offer{Hashes: pki.Hashes()}, p.a.m.sas[0].octets(false, id.appendBody(nil)), nil)
			b.ID(PayloadIDi, id)
			b.Cert(CertX509, x.Raw())
			b.Auth(AuthMethod(method), data)
		}, NotifyAuthenticationFailed},
		{"a round that does not follow", func(p *pair, b *Builder) {
			sign(p, b)
			b.Notify(NotifyAnotherAuthFollows, ProtoNone, nil, nil)
		}, NotifyAuthenticationFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := midway(t, nil)
			got := p.answer(toB, p.auth(1, func(b *Builder) { c.write(p, b) }))
			if len(got) != 1 || len(got[0].Payloads) != 1 {
				t.Fatalf("%d answers", len(got))
			}
			if _, ok := got[0].FindNotify(c.want); !ok {
				t.Errorf("the answer is %s, want %v", got[0].summary(), c.want)
			}
			if p.b.reason(EvRefused) == nil {
				t.Error("nothing says why")
			}
			p.b.m.List(func(sa *SAInfo) bool { t.Errorf("b still has %+v", sa); return true })
		})
	}
}

// What comes in the place of a second round, or after the rounds are over, is refused.
func TestHostileLaterRounds(t *testing.T) {
	x := certOf("a.test", pkitest.P256)
	id := ID{IDFQDN, "a.test"}
	another := func(b *Builder) { b.Notify(NotifyAnotherAuthFollows, ProtoNone, nil, nil) }
	for _, c := range []struct {
		name  string
		write func(p *pair, b *Builder)
		want  NotifyType
	}{
		{"nothing", func(*pair, *Builder) {}, NotifyInvalidSyntax},
		{"another child", func(p *pair, b *Builder) {
			p.claimOf(b, id, x.Key, x.Chain()...)
			b.SA(mustProposals(t, ProtoESP, "aes128gcm16"))
			b.TS(PayloadTSi, nil)
			b.TS(PayloadTSr, nil)
		}, NotifyInvalidSyntax},
		{"another identity", func(p *pair, b *Builder) { p.claimOf(b, ID{IDFQDN, "c.test"}, x.Key, x.Chain()...) }, NotifyAuthenticationFailed},
		{"one more that follows", func(p *pair, b *Builder) { p.claimOf(b, id, x.Key, x.Chain()...); another(b) }, NotifyAuthenticationFailed},
	} {
		p := midway(t, func(a, b *Conn, ca, cb *Config) {
			b.RemoteAuth = append(b.RemoteAuth, Auth{Kind: AuthKindPubkey, ID: id})
			b.Childless = ChildlessAllow
		})
		first := p.answer(toB, p.auth(1, func(b *Builder) {
			p.claimOf(b, id, x.Key, x.Chain()...)
			b.Notify(NotifyMultipleAuthSupported, ProtoNone, nil, nil)
			another(b)
		}))
		if len(first) != 1 || first[0].Find(PayloadAuth) == nil || p.b.info().State != StateConnecting {
			t.Fatalf("%s: the first round is not answered: %v", c.name, first)
		}
		got := p.answer(toB, p.auth(2, func(b *Builder) { c.write(p, b) }))
		if len(got) != 1 {
			t.Fatalf("%s: %d answers", c.name, len(got))
		}
		if _, ok := got[0].FindNotify(c.want); !ok {
			t.Errorf("%s: the answer is %s, want %v", c.name, got[0].summary(), c.want)
		}
		p.b.m.List(func(sa *SAInfo) bool { t.Errorf("%s: b still has %+v", c.name, sa); return true })
	}
}

// A peer that says it knows SHA-1 alone, or nothing, is not signed for with that under RFC 7427.
func TestHashesOfThePeerAreBelieved(t *testing.T) {
	for _, c := range []struct {
		hashes []byte
		ok     bool
	}{{[]byte{0, 2}, true}, {[]byte{0, 1}, false}, {nil, false}, {[]byte{0}, false}} {
		p := signing(t, nil)
		p.a.slow = func(w *Work) bool { return w.auth != nil }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		w := p.a.held[0]
		w.auth.sign.offer.Hashes = parseHashes(c.hashes)
		r := w.Run()
		if (r.auth.err == nil) != c.ok {
			t.Errorf("hashes % x: %v", c.hashes, r.auth.err)
		}
		p.a.m.Done(p.now, r)
		p.run()
		if !c.ok {
			p.pass(time.Second)
			p.done(p.a, 1, r.auth.err)
		}
	}
}

func FuzzCertPayloads(f *testing.F) {
	f.Add([]byte{4, 1, 2, 3})
	f.Add(append([]byte{4}, make([]byte, 40)...))
	f.Add([]byte{0, 2, 0, 3, 0, 4, 0, 5})
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, body, err := ParseCert(data); err == nil {
			b := NewBuilder(nil, Header{})
			b.Cert(e, body)
			if msg := b.Finish(); msg != nil && !bytes.Equal(msg[headerLen+payloadHdr:], data) {
				t.Fatalf("%x is written as %x", data, msg)
			}
		}
		if e, body, err := ParseCertReq(data); err == nil {
			if e == CertX509 && len(body)%keyIDLen != 0 {
				t.Fatalf("a list of %d octets", len(body))
			}
			b := NewBuilder(nil, Header{})
			b.CertReq(e, body)
			if msg := b.Finish(); msg != nil && !bytes.Equal(msg[headerLen+payloadHdr:], data) {
				t.Fatalf("%x is written as %x", data, msg)
			}
		}
		if h := parseHashes(data); h == nil || len(h) > maxHashes {
			t.Fatalf("%d hashes", len(h))
		}
	})
}

// Who takes SIGNATURE_HASH_ALGORITHMS out of a first message on its way, so that older and weaker
// signatures are made, is noticed: what is signed holds these messages.
func TestDowngradeOfHashesIsNoticed(t *testing.T) {
	for _, who := range []string{"request", "response"} {
		p := signing(t, nil)
		hidden := false
		hide := func(o *Output) bool {
			notify := []byte{0, 0, byte(NotifySignatureHashAlgorithms >> 8), byte(NotifySignatureHashAlgorithms & 0xff)}
			if i := bytes.Index(o.Data, notify); !hidden && i > 0 && o.Data[18] == byte(ExchangeInit) {
				o.Data[i+3], hidden = 0xff, true // a status that nobody knows
			}
			return true
		}
		if who == "request" {
			p.a.mangle = hide
		} else {
			p.b.mangle = hide
		}
		if err := p.initiate(); err == nil || !hidden {
			t.Errorf("%s: changed %v, and it ends with %v", who, hidden, err)
		}
		p.same(0)
	}
}

// With a peer that says nothing of hashes the signatures are those of RFC 4754.
func TestOldPeersGetOldSignatures(t *testing.T) {
	for kind, method := range map[pkitest.Kind]AuthMethod{pkitest.P256: AuthECDSA256, pkitest.P384: AuthECDSA384, pkitest.P521: AuthECDSA521} {
		p := midway(t, func(a, b *Conn, ca, cb *Config) { a.LocalAuth[0] = byCert(certOf("a.test", kind)) })
		w := p.a.held[0]
		w.auth.sign.offer.Hashes = nil
		r := w.Run()
		if r.auth.proof.method != method {
			t.Errorf("%v: the method is %v, want %v", kind, r.auth.proof.method, method)
		}
		p.a.slow = nil
		p.a.m.Done(p.now, r)
		p.run()
		p.same(1)
	}
}

// What a peer announces (RFC 9593) decides how we sign, in both roles.
func TestAnnouncedMethodsSteerSignatures(t *testing.T) {
	for _, who := range []string{"initiator", "responder"} {
		p := signing(t, func(a, b *Conn, _, _ *Config) {
			a.LocalAuth[0], b.LocalAuth[0] = byCert(certOf("a.test", pkitest.RSA2048)), byCert(certOf("b.test", pkitest.RSA2048))
		})
		h := map[string]*host{"initiator": p.a, "responder": p.b}[who]
		h.slow = func(w *Work) bool { return w.auth != nil && w.auth.sign != nil }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		offer := &h.held[0].auth.sign.offer
		all := pki.OurMethods(false, nil)
		if !slices.EqualFunc(offer.Methods, all, func(x, y pki.Announced) bool { return x.Method == y.Method && bytes.Equal(x.Algorithm, y.Algorithm) }) {
			t.Fatalf("%s: knows of the methods %v, the peer has announced %v", who, offer.Methods, all)
		}
		seen := map[string]bool{}
		for _, m := range all {
			if m.Method != pki.MethodSignature {
				continue
			}
			offer.Methods = []pki.Announced{m}
			if r := h.held[0].Run(); r.auth.err == nil {
				seen[r.auth.proof.scheme] = true
			}
		}
		for _, want := range []string{"RSA_EMSA_PKCS1_SHA2_256", "RSA_EMSA_PKCS1_SHA2_512", "RSA_EMSA_PSS_SHA2_256"} {
			if !seen[want] {
				t.Errorf("%s: nothing announced leads to %s, but to %v", who, want, seen)
			}
		}
	}
}

// A clock that is plainly wrong excuses certificates that are not yet valid, and says so.
func TestWrongClockIsTold(t *testing.T) {
	p := signing(t, func(_, _ *Conn, ca, cb *Config) { ca.Floor, cb.Floor = wall, wall })
	p.now.Wall = time.Unix(0, 0).UTC()
	if err := p.initiate(); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*host{p.a, p.b} {
		i := slices.IndexFunc(h.events, func(e Event) bool { return e.Kind == EvTrust })
		if i < 0 || !strings.Contains(h.events[i].Text, "plainly wrong") {
			t.Errorf("%v tells nothing of its clock", h.addr)
		}
	}
}

func TestNamesWithControlCharactersAreRefused(t *testing.T) {
	for _, id := range []ID{
		{IDFQDN, "a.test\x1b[2J"}, {IDRFC822, "a\n@test"},
		{IDDERDN, "\x30\x0f\x31\x0d\x30\x0b\x06\x03\x55\x04\x03\x0c\x04a\x1b[A"},
	} {
		p := newPair(t, func(a, b *Conn) { a.LocalID, b.RemoteID = id, id })
		for _, h := range []*host{p.a, p.b} {
			h.m.secrets = []Secret{{Key: []byte("a secret of the two")}}
		}
		var n *NotifyError
		if err := p.initiate(); !errors.As(err, &n) || n.Type != NotifyAuthenticationFailed {
			t.Errorf("%q: the initiator learns %v", id.Data, err)
		}
		if got := p.b.reason(EvRefused); got != ErrControl {
			t.Errorf("%q: the reason is %v, want %v", id.Data, got, ErrControl)
		}
	}
}
