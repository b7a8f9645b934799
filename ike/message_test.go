package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// recorded returns a message that was captured between two strongSwan 5.9.8 daemons.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return octets(t, string(b))
}

func parsed(t testing.TB, b []byte) *Message {
	t.Helper()
	m := new(Message)
	if err := m.Parse(b); err != nil {
		t.Fatalf("a well-formed message is refused: %v", err)
	}
	return m
}

// rebuild writes the payloads of a message in clear anew, each through its parser and the
// Builder's method for it.
func rebuild(t testing.TB, m *Message) []byte {
	t.Helper()
	b := NewBuilder(nil, m.Header)
	for _, p := range m.Payloads {
		var err error
		switch p.Type {
		case PayloadSA:
			var ps []Proposal
			ps, err = ParseSA(p.Body)
			b.SA(ps)
		case PayloadKE:
			g, pub, e := ParseKE(p.Body)
			b.KE(g, pub)
			err = e
		case PayloadNonce:
			n, e := ParseNonce(p.Body)
			b.Nonce(n)
			err = e
		case PayloadNotify:
			n, e := ParseNotify(p.Body)
			b.Notify(n.Type, n.Proto, n.SPI, n.Data)
			err = e
		default:
			b.Raw(p.Type, false, p.Body)
		}
		if err != nil {
			t.Fatalf("%v payload of a real message: %v", p.Type, err)
		}
	}
	return b.Finish()
}

func TestRecordedInitRequestIsUnderstood(t *testing.T) {
	b := recorded(t, "charon-init-request.hex")
	m := parsed(t, b)
	if m.Exchange != ExchangeInit || m.Response() || !m.FromInitiator() || m.ID != 0 || m.SPIr != 0 ||
		m.SPIi != 0x33eb6053f0a47c93 || m.Major != 2 || m.Minor != 0 {
		t.Errorf("header %+v is not what was sent", m.Header)
	}
	if err := checkRules(m, ExchangeInit, false, false); err != nil {
		t.Errorf("a real request breaks our rules: %v", err)
	}
	ps, err := ParseSA(m.Find(PayloadSA).Body)
	if err != nil || len(ps) != 2 {
		t.Fatalf("proposals: %v, %v; want two", ps, err)
	}
	for i, want := range []string{
		"aes128gcm16-aes256gcm16-chacha20poly1305-prfsha256-prfsha384-x25519-ecp256",
		"aes256-sha256-sha512-modp2048",
	} {
		if got := ps[i].String(); got != want {
			t.Errorf("proposal %d is %s, strongSwan was configured with %s", i+1, got, want)
		}
	}
	if g, pub, err := ParseKE(m.Find(PayloadKE).Body); g != Curve25519 || len(pub) != 32 || err != nil {
		t.Errorf("KE: group %v, %d octets, %v; want CURVE_25519 with 32", g, len(pub), err)
	}
	var names []string
	m.EachNotify(func(n Notify) { names = append(names, n.Type.String()) })
	want := "NAT_DETECTION_SOURCE_IP NAT_DETECTION_DESTINATION_IP IKEV2_FRAGMENTATION_SUPPORTED SIGNATURE_HASH_ALGORITHMS REDIRECT_SUPPORTED"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("notifies %s, tshark names %s", got, want)
	}
	if n, ok := m.FindNotify(NotifySignatureHashAlgorithms); !ok || !bytes.Equal(n.Data, octets(t, "0002000300040005")) {
		t.Errorf("signature hash algorithms %x, %v; want SHA2-256, -384, -512 and identity", n.Data, ok)
	}
	if again := rebuild(t, m); !bytes.Equal(again, b) {
		t.Errorf("written again the message differs:\n got %x\nwant %x", again, b)
	}
}

func TestRecordedInitResponseAnswersTheRequest(t *testing.T) {
	b := recorded(t, "charon-init-response.hex")
	m := parsed(t, b)
	if !m.Response() || m.FromInitiator() {
		t.Errorf("flags %#x are not those of a responder's response", m.Flags)
	}
	if err := checkRules(m, ExchangeInit, true, false); err != nil {
		t.Errorf("a real response breaks our rules: %v", err)
	}
	ps, err := ParseSA(m.Find(PayloadSA).Body)
	if err != nil || len(ps) != 1 {
		t.Fatalf("proposals: %v, %v; want the chosen one", ps, err)
	}
	req := parsed(t, recorded(t, "charon-init-request.hex"))
	offered, err := ParseSA(req.Find(PayloadSA).Body)
	if err != nil {
		t.Fatal(err)
	}
	if !checkChosen(ps[0], offered) {
		t.Error("strongSwan's answer is not taken for one of what was offered")
	}
	if s, err := ps[0].ikeSuite(); err != nil || s.String() != "AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519" {
		t.Errorf("suite %v, %v", s, err)
	}
	mine, ok := chooseProposal(offered, offered, Curve25519, false)
	if !ok || mine.String() != ps[0].String() || mine.Num != ps[0].Num {
		t.Errorf("with the same configuration we choose %d: %s, strongSwan chose %d: %s", mine.Num, mine, ps[0].Num, ps[0])
	}
	if again := rebuild(t, m); !bytes.Equal(again, b) {
		t.Errorf("written again the message differs:\n got %x\nwant %x", again, b)
	}
}

func TestEveryTruncationOfAMessageIsRefused(t *testing.T) {
	b := recorded(t, "charon-init-request.hex")
	var m Message
	for n := range len(b) {
		short := bytes.Clone(b[:n])
		if err := m.Parse(short); !errors.Is(err, ErrSyntax) {
			t.Fatalf("%d of %d octets: %v; want a syntax error, the header's length is that of the whole", n, len(b), err)
		}
		if n < headerLen {
			continue
		}
		binary.BigEndian.PutUint32(short[offLength:], uint32(n))
		if err := m.Parse(short); !errors.Is(err, ErrSyntax) {
			t.Fatalf("%d of %d octets with a matching length: %v; want a syntax error, the chain is cut", n, len(b), err)
		}
	}
}

// message puts a chain of payloads, whose first has the type next, behind a header.
func message(t testing.TB, next PayloadType, chain string) []byte {
	t.Helper()
	b := NewBuilder(nil, Header{SPIi: 1, Exchange: ExchangeInit, Flags: FlagInitiator}).Finish()
	b[offNext] = byte(next)
	b = append(b, octets(t, chain)...)
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)))
	return b
}

func TestChainsThatDoNotFit(t *testing.T) {
	for _, c := range []struct {
		what  string
		next  PayloadType
		chain string
	}{
		{"octets behind an empty chain", PayloadNone, "00"},
		{"a chain that is missing", PayloadVendor, ""},
		{"a generic header that is cut", PayloadVendor, "000000"},
		{"a payload shorter than its header", PayloadVendor, "00000003"},
		{"a payload of length zero", PayloadVendor, "00000000"},
		{"a payload that passes the end", PayloadVendor, "0000000699"},
		{"a last payload that ends early", PayloadVendor, "0000000499"},
		{"a payload behind the last one", PayloadVendor, "0000000400000004"},
		{"an unknown payload that passes the end", 200, "00000009aabb"},
		{"octets behind the SK payload", PayloadSK, "2100000421000004"},
		{"a nonce of 15 octets", PayloadNonce, "00000013" + strings.Repeat("11", 15)},
		{"a nonce of 257 octets", PayloadNonce, "00000105" + strings.Repeat("11", 257)},
		{"a notify without its header", PayloadNotify, "00000007000000"},
		{"a notify whose SPI passes its end", PayloadNotify, "0000000b0304400911aabb"},
	} {
		var m Message
		err := m.Parse(message(t, c.next, c.chain))
		var s *SyntaxError
		if !errors.As(err, &s) || !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v; want a SyntaxError", c.what, err)
		}
	}
}

func TestHeaderLengthMustBeThatOfTheDatagram(t *testing.T) {
	b := message(t, PayloadNone, "")
	for _, n := range []uint32{0, 27, 29, 1 << 31, 0xFFFFFFFF} {
		binary.BigEndian.PutUint32(b[offLength:], n)
		h, err := ParseHeader(b)
		if !errors.Is(err, ErrSyntax) {
			t.Errorf("length %d in a datagram of 28 octets: %v; want a syntax error", n, err)
		}
		if h.SPIi != 1 || h.Length != n {
			t.Errorf("length %d: the header %+v should be filled in all the same, for the log", n, h)
		}
	}
	if _, err := ParseHeader(b[:27]); !errors.Is(err, ErrSyntax) {
		t.Errorf("27 octets: %v; want a syntax error, a header has 28", err)
	}
}

func TestReservedBitsAreIgnored(t *testing.T) {
	b := recorded(t, "charon-init-request.hex")
	b[19] |= 0xC7 // header flags without a meaning: R, V and I are 0x38
	b[17] |= 0x0F // a higher minor version
	b[headerLen+1] |= 0x7F
	b[headerLen+4+1] = 0xFF  // of the first proposal
	b[headerLen+12+1] = 0xFF // of the first transform
	b[headerLen+12+5] = 0xFF
	m := parsed(t, b)
	if m.Payloads[0].Critical {
		t.Error("a reserved bit is taken for the critical bit")
	}
	ps, err := ParseSA(m.Find(PayloadSA).Body)
	if err != nil || ps[0].Transforms[0] != (Transform{TransformEncr, 20, 128}) {
		t.Errorf("%v, %v: reserved octets change what a proposal says", ps, err)
	}
	if m.Minor != 15 || m.Response() || !m.FromInitiator() {
		t.Errorf("header %+v: reserved flags change the known ones", m.Header)
	}
}

func TestCriticalBitOfKnownPayloadsIsIgnored(t *testing.T) {
	var m Message
	for typ := PayloadSA; typ <= PayloadEAP; typ++ {
		chain := "00800014" + strings.Repeat("00", 16)
		if typ == PayloadNotify {
			chain = "0080000800004000"
		}
		if err := m.Parse(message(t, typ, chain)); err != nil {
			t.Errorf("%v with its critical bit set: %v; a payload that is understood has nothing critical", typ, err)
		} else if len(m.Payloads) != 1 || !m.Payloads[0].Critical {
			t.Errorf("%v: %+v; want one payload, marked critical", typ, m.Payloads)
		}
	}
}

func TestUnknownPayloadsAreSkippedUnlessCritical(t *testing.T) {
	var m Message
	for typ := 1; typ < 256; typ++ {
		typ := PayloadType(typ)
		if typ >= PayloadSA && typ <= PayloadEAP || typ == PayloadSKF {
			continue
		}
		// unknown | V | unknown
		if err := m.Parse(message(t, typ, "2b000005aa"+"0000000699ff")); err != nil {
			t.Errorf("type %d, not critical: %v; it has to be skipped", typ, err)
		} else if len(m.Payloads) != 1 || m.Payloads[0].Type != PayloadVendor || string(m.Payloads[0].Body) != "\x99\xff" {
			t.Errorf("type %d: payloads %+v; want the Vendor ID behind it alone", typ, m.Payloads)
		}
		err := m.Parse(message(t, typ, "2b800005aa"+"0000000699ff"))
		var c *CriticalError
		if !errors.As(err, &c) || c.Type != typ {
			t.Errorf("type %d, critical: %v; want a CriticalError that names it", typ, err)
		}
		if errors.Is(err, ErrSyntax) {
			t.Errorf("type %d: unknown and critical is not a syntax error", typ)
		}
		if m.Find(PayloadVendor) == nil {
			t.Errorf("type %d: what follows a critical unknown payload must still be parsed", typ)
		}
	}
}

func TestSyntaxErrorsGoBeforeCriticalOnes(t *testing.T) {
	var m Message
	err := m.Parse(message(t, 200, "2b800004"+"00000009"))
	if !errors.Is(err, ErrSyntax) {
		t.Errorf("%v; want a syntax error: the message behind the critical payload is cut", err)
	}
}

func TestFirstCriticalPayloadIsReported(t *testing.T) {
	var m Message
	err := m.Parse(message(t, 200, "c9800004"+"00800004"))
	var c *CriticalError
	if !errors.As(err, &c) || c.Type != 200 {
		t.Errorf("%v; want the first of two, type 200", err)
	}
}

func TestOtherMajorVersionsStopBehindTheHeader(t *testing.T) {
	for _, v := range []byte{0x10, 0x30, 0xF0, 0x00} {
		b := message(t, 1, "ffffffff")
		b[17] = v
		var m Message
		if err := m.Parse(b); !errors.Is(err, ErrVersion) || m.Major != v>>4 {
			t.Errorf("version %#x: %v, major %d; want ErrVersion with the header filled in", v, err, m.Major)
		}
	}
}

func TestPayloadsOfOneMessageAreBounded(t *testing.T) {
	b := NewBuilder(nil, Header{Exchange: ExchangeInit})
	for range maxPayloads {
		b.Vendor([]byte{1})
	}
	full := bytes.Clone(b.Finish())
	m := parsed(t, full)
	if len(m.Payloads) != maxPayloads {
		t.Errorf("%d payloads; want all %d", len(m.Payloads), maxPayloads)
	}
	b.Reset(nil, Header{Exchange: ExchangeInit})
	for range maxPayloads + 1 {
		b.Vendor([]byte{1})
	}
	if err := m.Parse(b.Finish()); !errors.Is(err, ErrSyntax) {
		t.Errorf("%d payloads: %v; want an error", maxPayloads+1, err)
	}
}

func TestParsingAllocatesNothing(t *testing.T) {
	b := recorded(t, "charon-init-request.hex")
	var m Message
	n := testing.AllocsPerRun(100, func() {
		if m.Parse(b) != nil || checkRules(&m, ExchangeInit, false, false) != nil {
			t.Fatal("refused")
		}
		if _, ok := m.FindNotify(NotifyNATDetectionSourceIP); !ok {
			t.Fatal("not found")
		}
	})
	if n != 0 {
		t.Errorf("parsing a message allocates %v times; a flood of datagrams must cost no memory", n)
	}
}

func TestViewsHaveNoRoomToGrow(t *testing.T) {
	m := parsed(t, recorded(t, "charon-init-request.hex"))
	for _, p := range m.Payloads {
		if cap(p.Body) != len(p.Body) {
			t.Errorf("%v: appending to its body would overwrite the next payload", p.Type)
		}
	}
}

func TestEncryptedPayloadEndsTheOuterChain(t *testing.T) {
	used := bytes.Repeat([]byte{0xEE}, 512)
	b := NewBuilder(used[:0], Header{SPIi: 1, SPIr: 2, Exchange: ExchangeInformational, ID: 7})
	b.Vendor([]byte("outside"))
	b.BeginSK(8)
	b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
	b.Delete(ProtoESP, []uint32{0x01020304, 0xAABBCCDD})
	msg := b.Finish()
	if want := headerLen + 4 + len("outside"); b.SKOff() != want {
		t.Fatalf("SK payload at %d, want %d", b.SKOff(), want)
	}
	m := parsed(t, msg)
	if !m.Encrypted() || m.SKOff != b.SKOff() || m.SKNext != PayloadNotify || len(m.Payloads) != 2 {
		t.Fatalf("SKOff %d, SKNext %v, %d payloads; want %d, N and V+SK", m.SKOff, m.SKNext, len(m.Payloads), b.SKOff())
	}
	inner := m.Find(PayloadSK).Body
	if !bytes.Equal(inner[:8], make([]byte, 8)) {
		t.Errorf("the IV's place holds %x, want zeros", inner[:8])
	}
	if err := m.ParseInner(m.SKNext, inner[8:]); err != nil {
		t.Fatalf("inner chain: %v", err)
	}
	var got []string
	for _, p := range m.Payloads {
		got = append(got, p.Type.String())
	}
	if strings.Join(got, " ") != "V N D" {
		t.Errorf("payloads %v; want V, then N and D in the place of SK", got)
	}
	if d, err := ParseDelete(m.Find(PayloadDelete).Body); err != nil || len(d.SPIs) != 2 || d.SPIs[1] != 0xAABBCCDD {
		t.Errorf("Delete inside: %+v, %v", d, err)
	}
	if err := checkRules(m, ExchangeInformational, false, true); err == nil {
		t.Error("a payload in clear in front of the Encrypted payload passes the rules")
	}
}

func TestEmptyEncryptedPayload(t *testing.T) {
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational})
	b.BeginSK(16)
	m := parsed(t, b.Finish())
	if m.SKNext != PayloadNone {
		t.Errorf("first payload inside an empty SK payload is %v", m.SKNext)
	}
	if err := m.ParseInner(m.SKNext, nil); err != nil || len(m.Payloads) != 0 {
		t.Errorf("%d payloads, %v; a liveness check holds none", len(m.Payloads), err)
	}
	if err := m.ParseInner(PayloadNone, []byte{0}); !errors.Is(err, ErrSyntax) {
		t.Errorf("octets without a payload: %v; want a syntax error", err)
	}
}

func TestEncryptedPayloadsDoNotNest(t *testing.T) {
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational})
	b.BeginSK(0)
	m := parsed(t, b.Finish())
	for _, typ := range []PayloadType{PayloadSK, PayloadSKF} {
		if err := m.ParseInner(typ, octets(t, "00000008aabbccdd")); !errors.Is(err, ErrSyntax) {
			t.Errorf("%v inside SK: %v; want a syntax error", typ, err)
		}
	}
}

func TestCriticalPayloadInsideIsReported(t *testing.T) {
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational})
	b.BeginSK(0)
	b.Raw(199, true, nil)
	b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
	m := parsed(t, b.Finish())
	err := m.ParseInner(m.SKNext, m.Find(PayloadSK).Body)
	var c *CriticalError
	if !errors.As(err, &c) || c.Type != 199 {
		t.Errorf("%v; want a CriticalError of type 199", err)
	}
	if _, ok := m.FindNotify(NotifyInitialContact); !ok {
		t.Error("the notify behind the critical payload is not parsed")
	}
}

func TestBuilderAppendsToTheCallersSlice(t *testing.T) {
	dst := append(make([]byte, 0, 512), 0, 0, 0, 0)
	b := NewBuilder(dst, Header{SPIi: 0x0102030405060708, SPIr: 0x1112131415161718, Exchange: ExchangeAuth,
		Flags: FlagInitiator, ID: 0x21222324, Major: 9, Minor: 9, Next: 99, Length: 99})
	b.BeginSK(0)
	b.Auth(AuthPSK, []byte{0xAA})
	got := b.Finish()
	want := octets(t, "00000000"+
		"0102030405060708"+"1112131415161718"+"2e202308"+"21222324"+"00000029"+
		"2700000d"+"00000009"+"02000000aa")
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if &got[0] != &dst[0] {
		t.Error("the message is not in the caller's slice although it fits")
	}
	if b.SKOff() != headerLen {
		t.Errorf("SKOff %d counts from the slice, not from the message", b.SKOff())
	}
}

func TestBuilderRefusesWhatDoesNotFit(t *testing.T) {
	for what, f := range map[string]func(b *Builder){
		"a payload of 64 KiB":         func(b *Builder) { b.Vendor(make([]byte, 65532)) },
		"payloads of 64 KiB":          func(b *Builder) { b.Vendor(make([]byte, 40000)); b.Vendor(make([]byte, 40000)) },
		"256 selectors":               func(b *Builder) { b.TS(PayloadTSi, manySelectors(256)) },
		"a selector without an end":   func(b *Builder) { b.TS(PayloadTSi, manySelectors(1)[:1:1]); b.TS(PayloadTSr, emptySelector) },
		"an SPI of 256 octets":        func(b *Builder) { b.Notify(NotifyCookie, ProtoESP, make([]byte, 256), nil) },
		"256 transforms":              func(b *Builder) { b.SA([]Proposal{{Proto: ProtoIKE, Transforms: make([]Transform, 256)}}) },
		"an Encrypted payload's SPIs": func(b *Builder) { b.BeginSK(8); b.Delete(ProtoESP, make([]uint32, 20000)) },
	} {
		b := NewBuilder(nil, Header{})
		f(b)
		if out := b.Finish(); out != nil || b.Err() == nil {
			t.Errorf("%s: %d octets, %v; a length field cannot say that, nothing may be sent", what, len(out), b.Err())
		}
	}
}
