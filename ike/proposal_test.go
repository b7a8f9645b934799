package ike

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"postern/esp"
)

// saBody returns the body of an SA payload with the proposals.
func saBody(t testing.TB, ps []Proposal) []byte {
	t.Helper()
	b := NewBuilder(nil, Header{})
	b.SA(ps)
	msg := b.Finish()
	if msg == nil {
		t.Fatal(b.Err())
	}
	return msg[headerLen+payloadHdr:]
}

// proposals reads words, one proposal each, and gives those for ESP an SPI.
func proposals(t testing.TB, proto Protocol, words ...string) []Proposal {
	t.Helper()
	var ps []Proposal
	for _, w := range words {
		p, err := ParseProposal(proto, w, AESFirst)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p...)
	}
	for i := range ps {
		if proto == ProtoESP {
			ps[i].SPI = []byte{1, 2, 3, byte(i)}
		}
	}
	return ps
}

func sameProposal(a, b Proposal) bool {
	return a.Num == b.Num && a.Proto == b.Proto && bytes.Equal(a.SPI, b.SPI) && slices.Equal(a.Transforms, b.Transforms)
}

func TestProposalsOnTheWire(t *testing.T) {
	got := saBody(t, proposals(t, ProtoESP, "aes128gcm16-x25519-esn-noesn", "aes256-sha256"))
	want := octets(t,
		"02000034"+"01030404"+"01020300"+
			"0300000c"+"01000014"+"800e0080"+
			"03000008"+"0400001f"+
			"03000008"+"05000001"+
			"00000008"+"05000000"+
			"00000028"+"02030403"+"01020301"+
			"0300000c"+"0100000c"+"800e0100"+
			"03000008"+"0300000c"+
			"00000008"+"05000000")
	want[3] = byte(8 + 4 + 12 + 8 + 8 + 8)
	if !bytes.Equal(got, want) {
		t.Fatalf("got  %x\nwant %x", got, want)
	}
	ps, err := ParseSA(got)
	if err != nil || len(ps) != 2 || ps[0].Num != 1 || ps[1].Num != 2 || ps[1].String() != "aes256-sha256" {
		t.Errorf("read back: %v, %v", ps, err)
	}
}

func TestMalformedProposalsAreRefused(t *testing.T) {
	ok := "0000001c" + "01010002" + "0300000c" + "01000014" + "800e0080" + "00000008" + "02000005"
	if ps, err := ParseSA(octets(t, ok)); err != nil || len(ps) != 1 {
		t.Fatalf("the proposal that the cases vary: %v, %v", ps, err)
	}
	// at replaces one octet
	at := func(i int, v string) string { return ok[:2*i] + v + ok[2*i+2:] }
	for what, s := range map[string]string{
		"nothing":                                "",
		"a header that is cut":                   "000000",
		"a length of 3":                          "00000003",
		"a length of 7":                          "00000007010100",
		"a length past the end":                  at(3, "1d"),
		"a length before the end":                at(3, "1b"),
		"octets behind the last proposal":        ok + "00",
		"more proposals announced than there":    at(0, "02"),
		"another proposal than announced":        ok + ok,
		"a Last Substruc of 1":                   at(0, "01"),
		"a proposal number of 0":                 at(4, "00"),
		"a second proposal with the same number": "02" + ok[2:] + ok,
		"a second proposal with a lower number":  "02" + ok[2:8] + "02" + ok[10:] + ok,
		"IKE with an SPI of 4 octets":            "00000020" + "01010402" + "aabbccdd" + ok[16:],
		"ESP without an SPI":                     at(5, "03"),
		"AH without an SPI":                      at(5, "02"),
		"an SPI past the end":                    at(6, "ff"),
		"more transforms counted than there":     at(7, "03"),
		"fewer transforms counted than there":    at(7, "01"),
		"no transform counted":                   at(7, "00"),
		"129 transforms counted":                 at(7, "81"),
		"a last transform that is not":           at(8, "00"),
		"a transform behind the last":            at(20, "03"),
		"a transform mark of 2":                  at(8, "02"),
		"a transform length of 3":                at(11, "03"),
		"a transform length of 7":                "0000000f" + "01010001" + "00000007" + "010000",
		"a transform past the proposal":          at(23, "09"),
		"an attribute that is cut":               "00000012" + "01010001" + "0000000a" + "01000014" + "800e",
		"a long attribute past the transform":    "00000014" + "01010001" + "0000000c" + "01000014" + "00100001",
	} {
		if ps, err := ParseSA(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, %v; want a syntax error", what, ps, err)
		}
	}
	many := make([]Proposal, maxProposals+1)
	for i := range many {
		many[i].Proto = ProtoIKE
	}
	if _, err := ParseSA(saBody(t, many[:maxProposals])); err != nil {
		t.Errorf("%d proposals: %v; want them read", maxProposals, err)
	}
	if _, err := ParseSA(saBody(t, many)); !errors.Is(err, ErrSyntax) {
		t.Errorf("%d proposals: %v; want a syntax error", len(many), err)
	}
}

// An attribute that is not understood makes its transform unusable, and that one only
// (RFC 7296 section 3.3.6).
func TestUnknownAttributesMakeATransformUnusable(t *testing.T) {
	local := proposals(t, ProtoIKE, "aes128-aes256-sha256-x25519")
	for what, attr := range map[string]string{
		"unknown, short":               "800f0001",
		"unknown, long":                "00100003aabbcc",
		"key length and unknown":       "800e0080800f0001",
		"unknown and key length":       "800f0001800e0080",
		"two key lengths":              "800e0080800e0080",
		"key length in the long form":  "000e00020080",
		"a key length of zero":         "800e0000",
		"key length, then one of zero": "800e0080800e0000",
	} {
		rest := "0300000c" + "0100000c" + "800e0100" + "03000008" + "02000005" + "03000008" + "0300000c" + "00000008" + "0400001f"
		first := octets(t, "03000000"+"0100000c"+attr)
		first[3] = byte(len(first))
		body := append(append(octets(t, "00000000"+"01010005"), first...), octets(t, rest)...)
		body[3] = byte(len(body))
		ps, err := ParseSA(body)
		if err != nil {
			t.Errorf("%s: %v; it is not a syntax error", what, err)
			continue
		}
		p, ok := chooseProposal(local, ps, Curve25519, false)
		if !ok || p.Transforms[0] != (Transform{TransformEncr, 12, 256}) {
			t.Errorf("%s: chosen %v, %v; want the AES-256 that follows the unusable AES-128", what, p, ok)
		}
		again, err := ParseSA(saBody(t, ps))
		if err != nil || !slices.EqualFunc(again, ps, sameProposal) {
			t.Errorf("%s: written and read again %v, %v", what, again, err)
		}
	}
}

func TestResponderChoosesInItsOwnOrder(t *testing.T) {
	const ike, esp = ProtoIKE, ProtoESP
	for _, c := range []struct {
		what           string
		proto          Protocol
		local, offered string
		prefer         DHGroup
		ignoreDH       bool
		want           string // with the number of the offer in front; "" for none
	}{
		{"the only one", ike, "aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-x25519", Curve25519, false, "1 aes128gcm16-prfsha256-x25519"},
		{"first of ours", ike, "aes256gcm16-prfsha256-x25519 aes128gcm16-prfsha256-x25519",
			"aes128gcm16-prfsha256-x25519 aes256gcm16-prfsha256-x25519", Curve25519, false, "2 aes256gcm16-prfsha256-x25519"},
		{"first alternative of ours", ike, "aes256-aes128-sha512-sha256-ecp384-x25519", "aes128-aes256-sha256-sha512-x25519-ecp384", DHNone, false,
			"1 aes256-sha512-ecp384"},
		{"the group of the KE payload", ike, "aes256-sha256-ecp384-x25519", "aes256-sha256-x25519-ecp384", Curve25519, false, "1 aes256-sha256-x25519"},
		{"a KE payload that we do not allow", ike, "aes256-sha256-ecp384", "aes256-sha256-modp2048-ecp384", MODP2048, false, "1 aes256-sha256-ecp384"},
		{"a KE payload that is not in the offer", ike, "aes256-sha256-x25519-ecp384", "aes256-sha256-ecp384", Curve25519, false, "1 aes256-sha256-ecp384"},
		{"no group in common", ike, "aes256-sha256-x25519", "aes256-sha256-ecp384", ECP384, false, ""},
		{"another key length", ike, "aes128-sha256-x25519", "aes256-sha256-x25519", Curve25519, false, ""},
		{"another PRF", ike, "aes128-sha256-prfsha512-x25519", "aes128-sha256-x25519", Curve25519, false, ""},
		{"ESP without PFS", esp, "aes128gcm16", "aes128gcm16", DHNone, false, "1 aes128gcm16"},
		{"ESP with PFS", esp, "aes128gcm16-x25519", "aes128gcm16-ecp256-x25519", Curve25519, false, "1 aes128gcm16-x25519"},
		{"we want PFS, they do not", esp, "aes128gcm16-x25519", "aes128gcm16", DHNone, false, ""},
		{"they want PFS, we do not", esp, "aes128gcm16", "aes128gcm16-x25519", Curve25519, false, ""},
		{"they allow to leave PFS out", esp, "aes128gcm16", "aes128gcm16-x25519-modpnone", Curve25519, false, "1 aes128gcm16-modpnone"},
		{"we allow to leave PFS out", esp, "aes128gcm16-x25519-modpnone", "aes128gcm16", DHNone, false, "1 aes128gcm16"},
		{"both allow to leave it out and there is no KE", esp, "aes128gcm16-x25519-modpnone", "aes128gcm16-x25519-modpnone", DHNone, false, "1 aes128gcm16-modpnone"},
		{"IKE_AUTH: our group does not matter", esp, "aes128gcm16-x25519", "aes128gcm16", DHNone, true, "1 aes128gcm16"},
		{"IKE_AUTH: theirs neither", esp, "aes128gcm16", "aes128gcm16-x25519", DHNone, true, "1 aes128gcm16"},
		{"IKE_AUTH: NONE is given back", esp, "aes128gcm16-x25519", "aes128gcm16-modpnone", DHNone, true, "1 aes128gcm16-modpnone"},
		{"ESN if we like it better", esp, "aes128gcm16-esn-noesn", "aes128gcm16-noesn-esn", DHNone, false, "1 aes128gcm16-esn"},
		{"no ESN if they cannot", esp, "aes128gcm16-esn-noesn", "aes128gcm16-noesn", DHNone, false, "1 aes128gcm16"},
		{"ESN demanded by one", esp, "aes128gcm16-esn", "aes128gcm16-noesn", DHNone, false, ""},
		{"AEAD or not", esp, "chacha20poly1305 aes256-sha256", "aes256-sha256 chacha20poly1305", DHNone, false, "2 chacha20poly1305"},
		{"CBC without a common integrity algorithm", esp, "aes256-sha256", "aes256-sha1", DHNone, false, ""},
	} {
		local := proposals(t, c.proto, strings.Fields(c.local)...)
		offered, err := ParseSA(saBody(t, proposals(t, c.proto, strings.Fields(c.offered)...)))
		if err != nil {
			t.Fatal(err)
		}
		p, ok := chooseProposal(local, offered, c.prefer, c.ignoreDH)
		got := ""
		if ok {
			got = string('0'+p.Num) + " " + p.String()
		}
		if got != c.want {
			t.Errorf("%s: chosen %q, want %q", c.what, got, c.want)
			continue
		}
		if !ok {
			continue
		}
		if !bytes.Equal(p.SPI, offered[p.Num-1].SPI) {
			t.Errorf("%s: SPI %x is not that of the offer", c.what, p.SPI)
		}
		if !c.ignoreDH && !checkChosen(p, offered) {
			t.Errorf("%s: the initiator would refuse the choice", c.what)
		}
		if c.proto == ProtoESP {
			_, _, err = p.childSuite()
		} else {
			_, err = p.ikeSuite()
		}
		if err != nil {
			t.Errorf("%s: no suite: %v", c.what, err)
		}
	}
}

func TestKeyLengthOfZeroIsNotNoKeyLength(t *testing.T) {
	offered, err := ParseSA(octets(t, "0000002c"+"01010004"+"0300000c"+"0100001c"+"800e0000"+
		"03000008"+"02000005"+"03000008"+"04000013"+"00000008"+"0400001f"))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := chooseProposal(proposals(t, ProtoIKE, "chacha20poly1305-prfsha256-x25519"), offered, Curve25519, false); ok {
		t.Errorf("chosen %v; ChaCha20-Poly1305 has no key length (RFC 7634), an answer without it would differ from the offer", p)
	}
}

func TestCBCIsNeverChosenWithoutIntegrity(t *testing.T) {
	cbc, none := Transform{TransformEncr, uint16(esp.EncrAESCBC), 128}, Transform{Type: TransformInteg}
	for _, ts := range [][]Transform{{cbc}, {cbc, none}} {
		ps := []Proposal{{Proto: ProtoESP, SPI: []byte{0, 0, 1, 0}, Transforms: ts}}
		if p, ok := chooseProposal(ps, ps, DHNone, false); ok {
			t.Errorf("chosen %v; encryption without integrity protects nothing, even if both sides want it", p)
		}
	}
}

// The choice must not alias the datagram: it outlives it.
func TestChoiceOutlivesTheDatagram(t *testing.T) {
	body := saBody(t, proposals(t, ProtoESP, "aes128gcm16"))
	offered, err := ParseSA(body)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := chooseProposal(proposals(t, ProtoESP, "aes128gcm16"), offered, DHNone, false)
	clear(body)
	if !ok || !bytes.Equal(p.SPI, []byte{1, 2, 3, 0}) {
		t.Errorf("SPI %x, %v; want it as it was received", p.SPI, ok)
	}
}

func TestOffersWithNONEAndWithGaps(t *testing.T) {
	gcm := Transform{TransformEncr, uint16(esp.EncrAESGCM16), 128}
	none := Transform{Type: TransformInteg}
	noESN := Transform{Type: TransformESN}
	spi := []byte{0, 0, 1, 0}
	local := proposals(t, ProtoESP, "aes128gcm16-esn-noesn")
	for _, c := range []struct {
		what  string
		offer []Transform
		want  []Transform
	}{
		{"AEAD with the integrity NONE", []Transform{gcm, none, noESN}, []Transform{gcm, none, noESN}},
		{"AEAD with NONE as an alternative", []Transform{gcm, integ(esp.IntegHMACSHA256_128), none, noESN}, []Transform{gcm, none, noESN}},
		{"AEAD with an integrity algorithm", []Transform{gcm, integ(esp.IntegHMACSHA256_128), noESN}, nil},
		{"ESN left out", []Transform{gcm}, []Transform{gcm}},
		{"an unknown transform type", []Transform{gcm, noESN, {Type: 13, ID: 35}}, nil},
		{"a PRF in an offer for ESP", []Transform{gcm, noESN, prf(PRFHMACSHA256)}, nil},
		{"an unknown alternative", []Transform{{TransformEncr, 99, 0}, gcm, {TransformESN, 7, 0}, noESN}, []Transform{gcm, noESN}},
		{"only unknown sequence numbers", []Transform{gcm, {TransformESN, 7, 0}}, nil},
		{"no cipher", []Transform{noESN}, nil},
		{"nothing at all", nil, nil},
	} {
		offered := []Proposal{{Num: 1, Proto: ProtoESP, SPI: spi, Transforms: c.offer}}
		p, ok := chooseProposal(local, offered, DHNone, false)
		if ok != (c.want != nil) || !slices.Equal(p.Transforms, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.what, p.Transforms, ok, c.want)
		}
	}
}

func TestUnusableProposalsDoNotHideOthers(t *testing.T) {
	offered := proposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519", "aes256-sha256-x25519")
	offered[0].Transforms = append(offered[0].Transforms, Transform{Type: 13, ID: 36})
	p, ok := chooseProposal(proposals(t, ProtoIKE, "default"), offered, Curve25519, false)
	if !ok || p.Num != 2 {
		t.Errorf("chosen %d: %v, %v; want the second, the first needs a transform type that we do not know", p.Num, p, ok)
	}
}

func TestInitiatorChecksTheChoice(t *testing.T) {
	offered := proposals(t, ProtoESP, "aes128gcm16-x25519-ecp256-noesn-esn", "aes256-sha256-modpnone-x25519")
	gcm := Transform{TransformEncr, uint16(esp.EncrAESGCM16), 128}
	cbc := Transform{TransformEncr, uint16(esp.EncrAESCBC), 256}
	sha := integ(esp.IntegHMACSHA256_128)
	no, yes := Transform{Type: TransformESN}, Transform{Type: TransformESN, ID: 1}
	for _, c := range []struct {
		what string
		num  uint8
		ts   []Transform
		want bool
	}{
		{"one of each", 1, []Transform{gcm, group(ECP256), yes}, true},
		{"in another order", 1, []Transform{no, group(Curve25519), gcm}, true},
		{"the second", 2, []Transform{cbc, sha, group(Curve25519), no}, true},
		{"NONE for a group", 2, []Transform{cbc, sha, group(DHNone), no}, true},
		{"no group where NONE was offered", 2, []Transform{cbc, sha, no}, true},
		{"NONE for the integrity of an AEAD", 1, []Transform{gcm, {Type: TransformInteg}, group(ECP256), no}, true},
		{"no sequence numbers, which means no ESN", 1, []Transform{gcm, group(ECP256)}, true},
		{"a number that was not offered", 3, []Transform{gcm, group(ECP256), yes}, false},
		{"number 0", 0, []Transform{gcm, group(ECP256), yes}, false},
		{"the transforms of another number", 2, []Transform{gcm, group(ECP256), yes}, false},
		{"two groups", 1, []Transform{gcm, group(ECP256), group(Curve25519), no}, false},
		{"the same group twice", 1, []Transform{gcm, group(ECP256), group(ECP256), no}, false},
		{"no group", 1, []Transform{gcm, no}, false},
		{"no cipher", 1, []Transform{group(ECP256), no}, false},
		{"no integrity", 2, []Transform{cbc, group(DHNone), no}, false},
		{"NONE for the integrity of CBC", 2, []Transform{cbc, {Type: TransformInteg}, no}, false},
		{"another key length", 1, []Transform{{TransformEncr, 20, 256}, group(ECP256), no}, false},
		{"no key length", 1, []Transform{{TransformEncr, 20, 0}, group(ECP256), no}, false},
		{"a group that was not offered", 1, []Transform{gcm, group(ECP384), no}, false},
		{"an unknown type", 1, []Transform{gcm, group(ECP256), no, {Type: 6, ID: 35}}, false},
		{"ESN where only no ESN was offered", 2, []Transform{cbc, sha, yes}, false},
		{"an attribute that is not understood", 1, []Transform{{TransformEncr, 20, badAttr}, group(ECP256), no}, false},
	} {
		chosen := Proposal{Num: c.num, Proto: ProtoESP, SPI: []byte{0, 0, 1, 0}, Transforms: c.ts}
		if got := checkChosen(chosen, offered); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	if checkChosen(Proposal{Num: 1, Proto: ProtoAH, Transforms: offered[0].Transforms[:1]}, offered) {
		t.Error("AH is taken for an answer to an offer of ESP")
	}
}

func TestSuitesOfChoices(t *testing.T) {
	s, g, err := Proposal{Proto: ProtoESP, Transforms: proposals(t, ProtoESP, "aes256-sha512-ecp521-esn")[0].Transforms}.childSuite()
	if want := (esp.Suite{Encr: esp.EncrAESCBC, KeyBits: 256, Integ: esp.IntegHMACSHA512_256, ESN: true}); err != nil || s != want || g != ECP521 {
		t.Errorf("%v, %v, %v; want %v with ECP_521", s, g, err, want)
	}
	k, err := proposals(t, ProtoIKE, "chacha20poly1305-prfsha384-modp3072")[0].ikeSuite()
	if want := (IKESuite{Encr: 28, PRF: PRFHMACSHA384, DH: MODP3072}); err != nil || k != want {
		t.Errorf("%v, %v; want %v", k, err, want)
	}
	gcm := Transform{TransformEncr, 20, 128}
	for what, p := range map[string]Proposal{
		"alternatives":              proposals(t, ProtoESP, "aes128gcm16-aes256gcm16")[0],
		"IKE":                       proposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519")[0],
		"unknown sequence numbers":  {Proto: ProtoESP, Transforms: []Transform{gcm, {TransformESN, 2, 0}}},
		"an unknown group":          {Proto: ProtoESP, Transforms: []Transform{gcm, {TransformDH, 2, 0}}},
		"an unknown type":           {Proto: ProtoESP, Transforms: []Transform{gcm, {200, 2, 0}}},
		"a group with a key length": {Proto: ProtoESP, Transforms: []Transform{gcm, {TransformDH, 31, 256}}},
		"an AEAD with integrity":    {Proto: ProtoESP, Transforms: []Transform{gcm, {TransformInteg, 12, 0}}},
		"CBC without integrity":     {Proto: ProtoESP, Transforms: []Transform{{TransformEncr, 12, 128}}},
		"nothing":                   {Proto: ProtoESP},
	} {
		if s, _, err := p.childSuite(); err == nil {
			t.Errorf("%s: suite %v for ESP, want an error", what, s)
		}
	}
	for what, p := range map[string]Proposal{
		"ESP":          proposals(t, ProtoESP, "aes128gcm16")[0],
		"no PRF":       {Proto: ProtoIKE, Transforms: []Transform{gcm, group(Curve25519)}},
		"no group":     {Proto: ProtoIKE, Transforms: []Transform{gcm, prf(PRFHMACSHA256)}},
		"group NONE":   {Proto: ProtoIKE, Transforms: []Transform{gcm, prf(PRFHMACSHA256), group(DHNone)}},
		"ESN":          {Proto: ProtoIKE, Transforms: []Transform{gcm, prf(PRFHMACSHA256), group(Curve25519), {TransformESN, 0, 0}}},
		"alternatives": proposals(t, ProtoIKE, "default")[0],
	} {
		if s, err := p.ikeSuite(); err == nil {
			t.Errorf("%s: suite %v for IKE, want an error", what, s)
		}
	}
}
