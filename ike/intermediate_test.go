package ike

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
)

const hybrid = "aes128gcm16-prfsha256-x25519-ke1_mlkem768"

// hybridPair is a pair whose IKE SAs have these proposals; change may edit more.
func hybridPair(t testing.TB, proposal string, change func(a, b *Conn)) *pair {
	return newPair(t, func(a, b *Conn) {
		a.Proposals, b.Proposals = mustProposals(t, ProtoIKE, proposal), mustProposals(t, ProtoIKE, proposal)
		if change != nil {
			change(a, b)
		}
	})
}

// observer follows an IKE SA with AES-128-GCM-16 and HMAC-SHA-256 from outside: it sees the
// datagrams and the shared secrets, and computes all else as the texts of the RFCs have it,
// with none of the machine's code but that which reads payloads.
type observer struct {
	t       *testing.T
	all     [][]byte // datagrams in the order in which they left
	secrets [][]byte // of the responder's jobs, in their order
	ni, nr  []byte
	keys    [7][]byte
}

func observe(t *testing.T, p *pair) *observer {
	o := &observer{t: t}
	see := func(d *Output) bool { o.all = append(o.all, bytes.Clone(d.Data)); return true }
	p.a.mangle, p.b.mangle = see, see
	p.b.ran = func(r *Result) { o.secrets = append(o.secrets, bytes.Clone(r.shared)) }
	return o
}

// message returns a message's header and, decrypted and put together, its inner payloads with
// the type of the first.
func (o *observer) message(ex Exchange, id uint32, response bool) (header, inner []byte, next PayloadType) {
	var parts [][]byte
	for _, d := range o.all {
		if Exchange(d[18]) != ex || binary.BigEndian.Uint32(d[20:]) != id || (d[19]&0x20 != 0) != response {
			continue
		}
		key, off := o.keys[3], 32
		if response {
			key = o.keys[4]
		}
		number := 1
		if d[16] == 53 { // SKF
			number, off = int(binary.BigEndian.Uint16(d[32:])), 36
		}
		block, _ := aes.NewCipher(key[:16])
		gcm, _ := cipher.NewGCM(block)
		plain, err := gcm.Open(nil, append(bytes.Clone(key[16:]), d[off:off+8]...), d[off+8:], d[:off])
		if err != nil {
			o.t.Fatalf("%v %d: %v with the keys that are due", ex, id, err)
		}
		plain = plain[:len(plain)-1-int(plain[len(plain)-1])]
		if number == 1 {
			header, next = d[:28], PayloadType(d[28])
		}
		for len(parts) < number {
			parts = append(parts, nil)
		}
		parts[number-1] = plain
	}
	if header == nil {
		o.t.Fatalf("there is no %v %d, response %v", ex, id, response)
	}
	return header, bytes.Join(parts, nil), next
}

// body returns the body of the first payload of type t in a chain.
func (o *observer) body(inner []byte, next, t PayloadType) []byte {
	for next != PayloadNone && len(inner) >= 4 {
		n := int(binary.BigEndian.Uint16(inner[2:]))
		if next == t {
			return inner[4:n]
		}
		next, inner = PayloadType(inner[0]), inner[n:]
	}
	o.t.Fatalf("no %v in the message", t)
	return nil
}

// chunks is IntAuth_A | IntAuth_P of figure 1 in RFC 9242.
func chunks(header, inner []byte, next PayloadType) []byte {
	a := append(bytes.Clone(header), byte(next), 0, 0, 0)
	a[16] = 46 // SK, whatever it came in
	binary.BigEndian.PutUint32(a[24:], uint32(len(a)+len(inner)))
	binary.BigEndian.PutUint16(a[30:], uint16(4+len(inner)))
	return append(a, inner...)
}

// derive cuts the seven keys of an SKEYSEED.
func (o *observer) derive(seed []byte, spis []byte) {
	mat := refPlus(PRFHMACSHA256, seed, slices.Concat(o.ni, o.nr, spis), 3*32+2*20)
	for i, n := range [7]int{32, 0, 0, 20, 20, 32, 32} {
		o.keys[i], mat = mat[:n:n], mat[n:]
	}
}

// init reads Ni and Nr out of IKE_SA_INIT and derives the first keys.
func (o *observer) init() (first, second []byte) {
	first, second = o.all[0], o.all[1]
	o.ni, o.nr = o.body(first[28:], PayloadType(first[16]), PayloadNonce), o.body(second[28:], PayloadType(second[16]), PayloadNonce)
	o.derive(refPRF(PRFHMACSHA256, slices.Concat(o.ni, o.nr), o.secrets[0]), second[:16])
	return first, second
}

// The whole establishment with n additional key exchanges, recomputed: keys after each of them
// (RFC 9370 section 2.2.2), IntAuth (RFC 9242 section 3.3.2) and both AUTH payloads (RFC 7296
// section 2.15), with whole messages and with fragments, in which IntAuth is the same.
func TestIntermediateExchangesAsTheRFCsHaveThem(t *testing.T) {
	for _, c := range []struct {
		proposal string
		size     int
	}{
		{hybrid, 9000}, {hybrid, 0}, {hybrid, 300},
		{"aes128gcm16-prfsha256-x25519-ke1_mlkem1024-ke2_mlkem768", 576},
		{"aes128gcm16-prfsha256-mlkem768-ke2_ecp256-ke7_mlkem1024", 0},
		{"aes128gcm16-prfsha256-x25519-ke1_ecp256-ke2_ecp384-ke3_ecp521-ke4_mlkem768-ke5_mlkem1024-ke6_modp2048-ke7_modp3072", 0},
	} {
		t.Run(fmt.Sprintf("%s/%d", c.proposal, c.size), func(t *testing.T) {
			p := hybridPair(t, c.proposal, func(a, b *Conn) { a.FragmentSize, b.FragmentSize = c.size, c.size })
			o := observe(t, p)
			p.up()
			suite, err := mustProposals(t, ProtoIKE, c.proposal)[0].ikeSuite()
			if err != nil {
				t.Fatal(err)
			}
			n := len(suite.KE.list())
			if len(o.secrets) != 1+n {
				t.Fatalf("%d jobs of the responder, want %d", len(o.secrets), 1+n)
			}
			first, second := o.init()
			var intI, intR []byte
			for i := 1; i <= n; i++ {
				h, in, next := o.message(ExchangeIntermediate, uint32(i), false)
				if g := DHGroup(binary.BigEndian.Uint16(o.body(in, next, PayloadKE))); g != suite.KE.list()[i-1] {
					t.Fatalf("exchange %d is of %v, want %v", i, g, suite.KE.list()[i-1])
				}
				intI = refPRF(PRFHMACSHA256, o.keys[5], slices.Concat(intI, chunks(h, in, next)))
				h, in, next = o.message(ExchangeIntermediate, uint32(i), true)
				intR = refPRF(PRFHMACSHA256, o.keys[6], slices.Concat(intR, chunks(h, in, next)))
				o.derive(refPRF(PRFHMACSHA256, o.keys[0], slices.Concat(o.secrets[i], o.ni, o.nr)), second[:16])
			}
			intAuth := slices.Concat(intI, intR, []byte{0, 0, 0, byte(n + 1)})
			key := refPRF(PRFHMACSHA256, []byte("a secret of the two"), []byte("Key Pad for IKEv2"))
			for _, side := range []struct {
				response    bool
				real, nonce []byte
				skp         []byte
				id          PayloadType
			}{{false, first, o.nr, o.keys[5], PayloadIDi}, {true, second, o.ni, o.keys[6], PayloadIDr}} {
				_, in, next := o.message(ExchangeAuth, uint32(n+1), side.response)
				maced := refPRF(PRFHMACSHA256, side.skp, o.body(in, next, side.id))
				want := refPRF(PRFHMACSHA256, key, slices.Concat(side.real, side.nonce, maced, intAuth))
				if got := o.body(in, next, PayloadAuth)[4:]; !bytes.Equal(got, want) {
					t.Errorf("AUTH, response %v: %x, the RFCs' formulas give %x", side.response, got, want)
				}
			}
			if sa := &p.b.m.sas[0]; sa.inter.i != nil || sa.inter.opener != nil || sa.inter.done != 0 {
				t.Error("what IKE_AUTH has needed is still there after it")
			}
		})
	}
}

// feed gives b what a has sent, each datagram n times, and keeps what b answers.
func (p *pair) feed(n int, list []Output) {
	for _, o := range list {
		for range n {
			p.b.m.Datagram(p.now, p.arriving(o.Path), bytes.Clone(o.Data))
			p.b.drain(p.now)
		}
	}
}

// responders returns b's only IKE SA, or nil.
func (p *pair) responders() *ikeSA {
	for i := range p.b.m.sas {
		if p.b.m.sas[i].state != StateFree {
			return &p.b.m.sas[i]
		}
	}
	return nil
}

// The request of an additional key exchange is repeated under the keys from before it, also
// when the responder has those after it: it gets the same answer, and nothing is computed
// twice.
func TestRepeatedIntermediateRequestGetsTheSameAnswer(t *testing.T) {
	for _, size := range []int{9000, 576} {
		p := hybridPair(t, "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_mlkem1024", func(a, b *Conn) { a.FragmentSize, b.FragmentSize = size, size })
		jobs := 0
		p.b.ran = func(*Result) { jobs++ }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.a.drain(p.now)
		for step := 0; p.b.count(EvIKEUp) == 0; step++ {
			if step > 10 {
				t.Fatal("it does not come up")
			}
			request := p.a.out
			p.a.out = nil
			p.feed(1, request)
			first := p.b.out
			p.b.out = nil
			p.feed(1, request)
			second := p.b.out
			p.b.out = nil
			if len(first) == 0 || len(first) != len(second) {
				t.Fatalf("size %d, step %d: %d datagrams, then %d", size, step, len(first), len(second))
			}
			for i := range first {
				if !bytes.Equal(first[i].Data, second[i].Data) {
					t.Errorf("size %d, step %d: the second answer is another one", size, step)
				}
			}
			for _, o := range append(first, second...) { // and a gets each twice
				p.a.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, o.Data)
				p.a.drain(p.now)
			}
		}
		if jobs != 3 {
			t.Errorf("size %d: the responder has computed %d times, want 3", size, jobs)
		}
		p.run()
		p.same(1)
	}
}

// A response that does not get through is sent in smaller fragments, under the keys that it was
// made with.
func TestResponseOfAnAdditionalKeyExchangeShrinks(t *testing.T) {
	p := hybridPair(t, hybrid, nil)
	p.b.mangle = func(o *Output) bool { return len(o.Data) <= fragmentLow-28 }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(30 * time.Second)
	p.done(p.a, 1, nil)
	p.same(1)
}

// halfWay brings an initiator to where it sends its first IKE_INTERMEDIATE request, which is
// returned and not delivered.
func halfWay(t *testing.T, p *pair) []Output {
	t.Helper()
	var held []Output
	p.a.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); h.Exchange != ExchangeInit {
			held = append(held, *o)
			return false
		}
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	if h, _ := ParseHeader(held[0].Data); h.Exchange != ExchangeIntermediate || h.ID != 1 {
		t.Fatalf("after IKE_SA_INIT comes %v %d, want IKE_INTERMEDIATE 1", h.Exchange, h.ID)
	}
	return held
}

// crafted is a message of a's with the keys of the moment.
func (p *pair) crafted(ex Exchange, id uint32, fill func(*Builder)) []byte {
	sa := &p.a.m.sas[0]
	b := NewBuilder(nil, sa.header(ex, id, false))
	b.BeginSK(sa.sealer.ivLen())
	fill(b)
	return sa.sealer.seal(b.Finish(), b.SKOff(), b.SKOff()+payloadHdr, p.a.Random)
}

// What a peer that has not authenticated may not do: nothing of it makes us compute, and what
// breaks the agreement ends its attempt.
func TestHostileIntermediateRequests(t *testing.T) {
	good, _ := newKeyPair(MLKEM768, stream("another", 64))
	type step struct {
		ex   Exchange
		id   uint32
		fill func(*Builder)
	}
	ke := func(g DHGroup, v []byte) func(*Builder) { return func(b *Builder) { b.KE(g, v) } }
	for _, c := range []struct {
		what string
		step step
		gone bool
	}{
		{"IKE_AUTH before its time", step{ExchangeAuth, 1, func(b *Builder) {
			b.ID(PayloadIDi, ID{IDFQDN, "a.test"})
			b.Auth(AuthPSK, make([]byte, 32))
		}}, false},
		{"INFORMATIONAL", step{ExchangeInformational, 1, func(b *Builder) { b.Delete(ProtoIKE, nil) }}, false},
		{"CREATE_CHILD_SA", step{ExchangeCreateChild, 1, ke(MLKEM768, good.public())}, false},
		{"IKE_FOLLOWUP_KE", step{ExchangeFollowupKE, 1, ke(MLKEM768, good.public())}, false},
		{"a message ID out of turn", step{ExchangeIntermediate, 2, ke(MLKEM768, good.public())}, false},
		{"the first message's ID", step{ExchangeIntermediate, 0, ke(MLKEM768, good.public())}, false},
		{"another method", step{ExchangeIntermediate, 1, ke(MLKEM1024, make([]byte, 1568))}, true},
		{"the group again", step{ExchangeIntermediate, 1, ke(Curve25519, make([]byte, 32))}, true},
		{"a short key", step{ExchangeIntermediate, 1, ke(MLKEM768, good.public()[1:])}, true},
		{"a long key", step{ExchangeIntermediate, 1, ke(MLKEM768, append(bytes.Clone(good.public()), 0))}, true},
		{"a key that is none", step{ExchangeIntermediate, 1, ke(MLKEM768, bytes.Repeat([]byte{255}, 1184))}, true},
		{"no key", step{ExchangeIntermediate, 1, func(*Builder) {}}, true},
		{"two keys", step{ExchangeIntermediate, 1, func(b *Builder) { b.KE(MLKEM768, good.public()); b.KE(MLKEM768, good.public()) }}, true},
		{"an empty KE payload", step{ExchangeIntermediate, 1, func(b *Builder) { b.Raw(PayloadKE, false, nil) }}, true},
	} {
		p := hybridPair(t, hybrid, nil)
		held := halfWay(t, p)
		jobs := 0
		p.b.ran = func(r *Result) {
			if r.err == nil {
				jobs++
			}
		}
		p.b.out = nil
		p.b.m.Datagram(p.now, toB, p.crafted(c.step.ex, c.step.id, c.step.fill))
		p.b.drain(p.now)
		if jobs != 0 || p.b.count(EvIKEUp) != 0 {
			t.Errorf("%s: %d jobs, %d IKE SAs up", c.what, jobs, p.b.count(EvIKEUp))
		}
		if gone := p.responders() == nil; gone != c.gone {
			t.Errorf("%s: given up %v, want %v", c.what, gone, c.gone)
		}
		if c.gone && len(p.b.out) != 1 {
			t.Errorf("%s: %d answers, want INVALID_SYNTAX", c.what, len(p.b.out))
		}
		if c.gone {
			continue
		}
		// Nothing is lost by it: the one that is due is still taken.
		p.b.out = nil
		p.a.mangle = nil
		p.feed(1, held)
		p.run()
		p.done(p.a, 1, nil)
		p.same(1)
	}
}

// After the last agreed exchange only IKE_AUTH may come: an eighth, or a second where one was
// agreed on, is dropped; and there is no IKE_INTERMEDIATE where none was agreed on, nor once
// the IKE SA is up.
func TestNoMoreIntermediateExchangesThanAgreed(t *testing.T) {
	seven := "aes128gcm16-prfsha256-x25519-ke1_ecp256-ke2_ecp384-ke3_ecp521-ke4_mlkem768-ke5_mlkem1024-ke6_modp2048-ke7_modp3072"
	for proposal, n := range map[string]uint32{seven: 7, hybrid: 1, "aes128gcm16-prfsha256-x25519": 0} {
		p := hybridPair(t, proposal, nil)
		p.a.mangle = func(o *Output) bool { h, _ := ParseHeader(o.Data); return h.Exchange != ExchangeAuth }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		jobs := 0
		p.b.ran = func(*Result) { jobs++ }
		ke, _ := newKeyPair(ECP256, stream("x", ECP256.seedLen()))
		p.b.out = nil
		p.b.m.Datagram(p.now, toB, p.crafted(ExchangeIntermediate, n+1, func(b *Builder) { b.KE(ECP256, ke.public()) }))
		p.b.drain(p.now)
		if jobs != 0 || len(p.b.out) != 0 || p.responders() == nil {
			t.Errorf("after %d exchanges: %d jobs, %d answers, still there %v", n, jobs, len(p.b.out), p.responders() != nil)
		}
		p.a.mangle = nil
		p.pass(10 * time.Second)
		p.same(1)
		p.b.m.Datagram(p.now, toB, p.crafted(ExchangeIntermediate, p.a.m.sas[0].sendID, func(b *Builder) { b.KE(ECP256, ke.public()) }))
		p.b.drain(p.now)
		if jobs != 0 || len(p.b.out) != 0 {
			t.Errorf("after IKE_AUTH: %d jobs, %d answers", jobs, len(p.b.out))
		}
	}
}

// A man in the middle who changes what IKE_SA_INIT offers or chooses gets no further than
// IKE_AUTH, and one who changes IKE_INTERMEDIATE not that far.
func TestDowngradeIsNoticed(t *testing.T) {
	both := func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			c.Proposals = append(mustProposals(t, ProtoIKE, hybrid), mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519")...)
			c.KeyingTries = 1
		}
	}
	rewrite := func(o *Output, proposals func([]Proposal) []Proposal) {
		var m Message
		if h, _ := ParseHeader(o.Data); h.Exchange != ExchangeInit || m.Parse(o.Data) != nil {
			return
		}
		b := NewBuilder(nil, m.Header)
		for _, pl := range m.Payloads {
			n, _ := ParseNotify(pl.Body)
			switch {
			case pl.Type == PayloadSA:
				ps, _ := ParseSA(pl.Body)
				b.SA(proposals(ps))
			case pl.Type == PayloadNotify && n.Type == NotifyIntermediateSupported && proposals != nil:
			default:
				b.Raw(pl.Type, false, pl.Body)
			}
		}
		o.Data = b.Finish()
	}
	t.Run("the offer loses its first proposal", func(t *testing.T) {
		p := newPair(t, both)
		p.a.mangle = func(o *Output) bool { rewrite(o, func(ps []Proposal) []Proposal { return ps[1:] }); return true }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if p.a.count(EvIKEUp)+p.b.count(EvIKEUp) != 0 || len(p.b.sas) != 0 {
			t.Error("an IKE SA is up without ML-KEM that both sides wanted")
		}
	})
	t.Run("the notify is taken out", func(t *testing.T) {
		p := newPair(t, both)
		p.a.mangle = func(o *Output) bool { rewrite(o, func(ps []Proposal) []Proposal { return ps }); return true }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if p.a.count(EvIKEUp)+p.b.count(EvIKEUp) != 0 || len(p.b.sas) != 0 {
			t.Error("an IKE SA is up without ML-KEM that both sides wanted")
		}
	})
	t.Run("the answer lacks the notify", func(t *testing.T) {
		p := newPair(t, both)
		p.b.mangle = func(o *Output) bool { rewrite(o, func(ps []Proposal) []Proposal { return ps }); return true }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if p.a.count(EvIKEUp)+p.b.count(EvIKEUp) != 0 || p.a.count(EvDropped) == 0 {
			t.Error("a choice with additional key exchanges and without IKE_INTERMEDIATE is taken")
		}
	})
	t.Run("a side that demands it", func(t *testing.T) {
		for _, demands := range []string{"a", "b"} {
			p := newPair(t, func(a, b *Conn) {
				c := map[string]*Conn{"a": a, "b": b}[demands]
				c.Proposals = mustProposals(t, ProtoIKE, hybrid)
				a.KeyingTries, b.KeyingTries = 1, 1
			})
			p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
			p.run()
			if p.a.count(EvIKEUp)+p.b.count(EvIKEUp) != 0 {
				t.Errorf("%s demands ML-KEM and is up without", demands)
			}
		}
	})
}

// A side that prefers it, in whatever place the other has it, gets it; one that does not know it
// gets a connection without, and both say which.
func TestPreferredOrLeftOut(t *testing.T) {
	plain := "aes128gcm16-prfsha256-x25519"
	list := func(words ...string) (ps []Proposal) {
		for _, w := range words {
			ps = append(ps, mustProposals(t, ProtoIKE, w)...)
		}
		return ps
	}
	for _, c := range []struct {
		a, b []Proposal
		want string
	}{
		{list(hybrid, plain), list(hybrid, plain), "/KE1_ML_KEM_768"},
		{list(plain, hybrid), list(hybrid, plain), "/KE1_ML_KEM_768"},
		{list(hybrid, plain), list(plain), ""},
		{list(plain), list(hybrid, plain), ""},
		{list(hybrid), list(plain, hybrid), "/KE1_ML_KEM_768"},
		{list(hybrid + "-ke1_none"), list(hybrid), "/KE1_ML_KEM_768"},
		{list(hybrid + "-ke1_none"), list(plain), ""},
		{list("aes128gcm16-prfsha256-ecp256-x25519-ke1_mlkem768"), list(hybrid), "/KE1_ML_KEM_768"}, // after INVALID_KE_PAYLOAD
	} {
		p := newPair(t, func(a, b *Conn) { a.Proposals, b.Proposals = c.a, c.b })
		p.up()
		want := "AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519" + c.want
		for _, h := range []*host{p.a, p.b} {
			h.m.List(func(s *SAInfo) bool {
				if s.Suite.String() != want {
					t.Errorf("%v and %v: %s, want %s", c.a, c.b, s.Suite, want)
				}
				return true
			})
			for _, e := range h.events {
				if e.Kind == EvIKEUp && e.Suite != want {
					t.Errorf("the event says %q, want %q", e.Suite, want)
				}
			}
		}
	}
}

// An attempt ends at once when the answer to an additional key exchange is of no use.
func TestIntermediateRefusedByThePeer(t *testing.T) {
	for _, c := range []struct {
		what string
		fill func(*Builder)
	}{
		{"a short ciphertext", func(b *Builder) { b.KE(MLKEM768, make([]byte, 1087)) }},
		{"the length of a key", func(b *Builder) { b.KE(MLKEM768, make([]byte, 1184)) }},
		{"another method", func(b *Builder) { b.KE(MLKEM1024, make([]byte, 1568)) }},
		{"an error", func(b *Builder) { b.Notify(NotifyInvalidSyntax, ProtoNone, nil, nil) }},
		{"nothing but a status", func(b *Builder) { b.Notify(NotifyIntermediateSupported, ProtoNone, nil, nil) }},
	} {
		p := hybridPair(t, hybrid, func(a, b *Conn) { a.KeyingTries = 1 })
		halfWay(t, p)
		sa := p.responders()
		b := NewBuilder(nil, sa.header(ExchangeIntermediate, 1, true))
		b.BeginSK(sa.sealer.ivLen())
		c.fill(b)
		msg := sa.sealer.seal(b.Finish(), b.SKOff(), b.SKOff()+payloadHdr, p.b.Random)
		p.a.m.Datagram(p.now, Path{Local: toB.Remote, Remote: toB.Local}, msg)
		p.a.drain(p.now)
		if p.a.count(EvFailed) != 1 {
			t.Errorf("%s: %d attempts have failed, want one", c.what, p.a.count(EvFailed))
		}
	}
}

// A resumed session has the protection of the one before, and needs no exchange for it.
func TestResumedSessionKeepsItsMethods(t *testing.T) {
	p := resumePair(t, func(a, b *Conn) {
		a.Proposals, b.Proposals = mustProposals(t, ProtoIKE, hybrid), mustProposals(t, ProtoIKE, hybrid)
	})
	list := exchanges(p.a)
	p.restartGateway()
	p.lose()
	p.run()
	wantExchanges(t, list, "IKE_SESSION_RESUME IKE_AUTH")
	if !resumedUp(p.a) {
		t.Fatal("the session was not resumed")
	}
	for _, h := range []*host{p.a, p.b} {
		h.m.List(func(s *SAInfo) bool {
			if s.Suite.KE != (AddKE{MLKEM768}) {
				t.Errorf("a resumed session says %v", s.Suite)
			}
			return true
		})
	}
}

// Peers that have not authenticated hold no more than their places, however far they go, and
// leave them after a while.
func TestHalfOpenHybridsAreBounded(t *testing.T) {
	p := hybridPair(t, hybrid, nil)
	halfWay(t, p)
	sa := p.responders()
	if sa == nil || sa.timers[tConnect] == never {
		t.Fatal("nothing ends a peer that does not go on")
	}
	p.now.Mono += halfOpenLife + time.Second
	p.b.m.Timeout(p.now)
	p.b.drain(p.now)
	if p.responders() != nil {
		t.Error("a peer that does not go on keeps its place")
	}
}
