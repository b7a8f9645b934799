package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"postern/esp"
)

// payloadAgain writes a payload through its parser: what parsed must be writable, and
// must say the same when it is read again.
func payloadAgain(t *testing.T, b *Builder, p *Payload) {
	switch p.Type {
	case PayloadSA:
		if ps, err := ParseSA(p.Body); err == nil {
			b.SA(ps)
			return
		}
	case PayloadKE:
		if g, pub, err := ParseKE(p.Body); err == nil {
			b.KE(g, pub)
			return
		}
	case PayloadIDi, PayloadIDr:
		if id, err := ParseID(p.Body); err == nil {
			b.ID(p.Type, id)
			return
		}
	case PayloadAuth:
		if m, data, err := ParseAuth(p.Body); err == nil {
			b.Auth(m, data)
			return
		}
	case PayloadNonce:
		b.Nonce(p.Body)
		return
	case PayloadNotify:
		n, err := ParseNotify(p.Body)
		if err != nil {
			t.Fatalf("Parse let a malformed notify pass: %v", err)
		}
		b.Notify(n.Type, n.Proto, n.SPI, n.Data)
		return
	case PayloadDelete:
		if d, err := ParseDelete(p.Body); err == nil && d.Proto >= ProtoIKE && d.Proto <= ProtoESP {
			b.Delete(d.Proto, d.SPIs)
			return
		}
	case PayloadTSi, PayloadTSr:
		if ts, err := ParseTS(p.Body); err == nil {
			if len(ts) > 0 {
				b.TS(p.Type, ts)
				return
			}
		}
	}
	b.Raw(p.Type, p.Critical, p.Body)
}

// again writes a parsed message anew. The Encrypted payload is copied as it stands.
func again(t *testing.T, m *Message) []byte {
	b := NewBuilder(nil, m.Header)
	for i := range m.Payloads {
		if p := &m.Payloads[i]; p.Type != PayloadSK && p.Type != PayloadSKF {
			payloadAgain(t, b, p)
		}
	}
	return b.Finish()
}

func FuzzMessage(f *testing.F) {
	for _, name := range []string{"charon-init-request.hex", "charon-init-response.hex"} {
		f.Add(recorded(f, name))
	}
	b := NewBuilder(nil, Header{SPIi: 1, SPIr: 2, Exchange: ExchangeAuth, Flags: FlagInitiator, ID: 1})
	b.ID(PayloadIDi, ID{IDFQDN, "moon.example"})
	b.Auth(AuthPSK, make([]byte, 32))
	b.SA(proposals(f, ProtoESP, "aes128gcm16-x25519-esn-noesn", "aes256-sha256"))
	b.TS(PayloadTSi, manySelectors(3))
	b.TS(PayloadTSr, []esp.Selector{selector(f, "2001:db8::/64", 17, 65535, 0)})
	b.Delete(ProtoESP, []uint32{256, 257})
	b.Raw(200, false, []byte{1})
	b.BeginSK(8)
	b.Raw(PayloadVendor, false, []byte{1})
	f.Add(b.Finish())
	f.Add(message(f, 200, "2b800004"+"00000005ff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Message
		if len(data) >= headerLen && m.Parse(data) != nil {
			// get mutations past the header's length and version
			data = bytes.Clone(data)
			binary.BigEndian.PutUint32(data[offLength:], uint32(len(data)))
			data[17] = 0x20
		}
		err := m.Parse(data)
		for _, ex := range []Exchange{ExchangeInit, ExchangeAuth, ExchangeCreateChild, ExchangeInformational, m.Exchange} {
			for i := range 4 {
				if err := checkRules(&m, ex, i&1 != 0, i&2 != 0); err != nil && err.Error() == "" {
					t.Fatal("an error without a text")
				}
			}
		}
		var critical *CriticalError
		if err != nil && !errors.As(err, &critical) {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrVersion) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		if critical != nil && critical.Type.known() {
			t.Fatalf("%v is known and reported as unknown", critical.Type)
		}
		first := again(t, &m)
		if first == nil {
			t.Fatal("what was read cannot be written")
		}
		if len(first) > len(data) {
			t.Fatalf("%d octets became %d", len(data), len(first))
		}
		var n Message
		if err := n.Parse(first); err != nil {
			t.Fatalf("what we wrote is refused: %v\n%x", err, first)
		}
		if second := again(t, &n); !bytes.Equal(first, second) {
			t.Fatalf("written twice it differs:\n%x\n%x", first, second)
		}
		if m.Encrypted() {
			sk := m.Payloads[len(m.Payloads)-1]
			if len(data)-len(sk.Body)-payloadHdr != m.SKOff {
				t.Fatalf("SK payload at %d with %d octets in a message of %d", m.SKOff, len(sk.Body), len(data))
			}
			err := m.ParseInner(m.SKNext, sk.Body)
			if err == nil && (m.Find(PayloadSK) != nil || m.Find(PayloadSKF) != nil) {
				t.Fatal("an Encrypted payload inside another passes")
			}
		}
	})
}

func FuzzSA(f *testing.F) {
	f.Add(saBody(f, DefaultProposals(ProtoIKE, AESFirst)))
	f.Add(saBody(f, proposals(f, ProtoESP, "aes128gcm16-x25519-esn-noesn", "aes256-sha256", "default")))
	f.Add(octets(f, "00000017"+"01010001"+"0000000f"+"0100000c"+"00100003aabbcc"))
	ike, child := DefaultProposals(ProtoIKE, AESFirst), DefaultProposals(ProtoESP, AESFirst)
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, err := ParseSA(data)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		if len(ps) == 0 {
			t.Fatal("an SA payload without proposals passes")
		}
		back, err := ParseSA(saBody(t, ps))
		if err != nil || !slices.EqualFunc(ps, back, sameProposal) {
			t.Fatalf("written and read again:\n%v\n%v, %v", ps, back, err)
		}
		for _, p := range ps {
			_ = p.String()
		}
		if p, ok := chooseProposal(ike, ps, Curve25519, false); ok {
			if _, err := p.ikeSuite(); err != nil || !checkChosen(p, ps) {
				t.Fatalf("chosen %v from %v: %v", p, ps, err)
			}
		}
		for _, ignore := range []bool{false, true} {
			if p, ok := chooseProposal(child, ps, DHNone, ignore); ok {
				if _, _, err := p.childSuite(); err != nil || !ignore && !checkChosen(p, ps) {
					t.Fatalf("chosen %v from %v: %v", p, ps, err)
				}
			}
		}
	})
}

func FuzzTS(f *testing.F) {
	f.Add(octets(f, "02000000"+"07060010"+"01f601f6"+"0a010005"+"0a010009"+"0a000008deadbeef"))
	f.Add(octets(f, "01000000"+"08110028"+"ffff0000"+"20010db8000000000000000000000000"+"20010db800000000ffffffffffffffff"))
	conf := []esp.Selector{selector(f, "10.0.0.0/8"), selector(f, "2001:db8::/32", 17)}
	f.Fuzz(func(t *testing.T, data []byte) {
		ts, err := ParseTS(data)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		for _, s := range ts {
			if !s.Valid() {
				t.Fatalf("%v selects nothing and passes", s)
			}
		}
		narrow := narrowTS(conf, ts)
		if len(narrow) > maxNarrowed {
			t.Fatalf("%d selectors", len(narrow))
		}
		for i, s := range narrow {
			if !slices.ContainsFunc(conf, func(c esp.Selector) bool { return c.Contains(s) }) {
				t.Fatalf("%v is more than what is configured", s)
			}
			for j, o := range narrow {
				if i != j && o.Contains(s) {
					t.Fatalf("%v is part of %v", s, o)
				}
			}
		}
		if len(ts) == 0 {
			return
		}
		b := NewBuilder(nil, Header{})
		b.TS(PayloadTSi, ts)
		back, err := ParseTS(b.Finish()[headerLen+payloadHdr:])
		if err != nil || !slices.Equal(ts, back) {
			t.Fatalf("written and read again:\n%v\n%v, %v", ts, back, err)
		}
	})
}

func FuzzID(f *testing.F) {
	for _, s := range []string{"10.9.0.1", "2001:db8::1", "moon.example", "carol@moon", "keyid:site 7", "@#0a0b", "asn1dn:#3000", "{13}:"} {
		id, err := ParseIDString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(id.appendBody(nil), s)
	}
	f.Fuzz(func(t *testing.T, body []byte, text string) {
		check := func(id ID) {
			s := id.String()
			if !printable(s) {
				t.Fatalf("%q holds what cannot be printed", s)
			}
			if back, err := ParseIDString(s); err != nil || back != id {
				t.Fatalf("%d %q is printed as %q, which is %v, %v", id.Type, id.Data, s, back, err)
			}
			if id == (ID{}) {
				return
			}
			if back, err := ParseID(id.appendBody(nil)); err != nil || back != id && id.Type != idNull {
				t.Fatalf("%v written and read again: %v, %v", id, back, err)
			}
		}
		if id, err := ParseID(body); err == nil {
			check(id)
		}
		if id, err := ParseIDString(text); err == nil {
			check(id)
		}
	})
}

func FuzzProposalString(f *testing.F) {
	for _, s := range slices.Concat([]string{"aes128gcm16-sha256-x25519", "aes-sha-modp2048"}, defaultIKE[AESFirst], defaultIKE[ChaChaFirst], defaultESP[AESFirst]) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, proto := range []Protocol{ProtoIKE, ProtoESP} {
			ps, err := ParseProposal(proto, s, AESFirst)
			if err != nil {
				continue
			}
			for _, p := range ps {
				back, err := ParseProposal(proto, p.String(), AESFirst)
				if err != nil || len(back) != 1 || !sameProposal(back[0], p) {
					t.Fatalf("%q is printed as %q, which is %v, %v", s, p, back, err)
				}
				chosen, ok := chooseProposal([]Proposal{p}, []Proposal{p}, DHNone, false)
				if !ok || !checkChosen(chosen, []Proposal{p}) {
					t.Fatalf("%q does not fit itself", p)
				}
			}
		}
	})
}
