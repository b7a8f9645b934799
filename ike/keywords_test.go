package ike

import (
	"slices"
	"strings"
	"testing"
)

func TestProposalsInStrongSwansNotation(t *testing.T) {
	const ike, esp = ProtoIKE, ProtoESP
	for _, c := range []struct {
		proto   Protocol
		in, out string
	}{
		{ike, "aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-x25519"},
		{ike, "aes128gcm-prfsha256-curve25519", "aes128gcm16-prfsha256-x25519"},
		{ike, "aes256-sha256-modp2048", "aes256-sha256-modp2048"},
		{ike, "aes-sha-modp2048", "aes128-sha1-modp2048"},
		{ike, "modp2048-sha2_512-aes256", "aes256-sha512-modp2048"},
		{ike, "aes256-sha256-prfsha256-modp2048", "aes256-sha256-modp2048"},
		{ike, "aes256-sha256-prfsha512-modp2048", "aes256-sha256-prfsha512-modp2048"},
		{ike, "aes256-sha256-sha1-ecp256", "aes256-sha256-sha1-ecp256"},
		{ike, "aes256gcm16-sha384-ecp384", "aes256gcm16-prfsha384-ecp384"},
		{ike, "chacha20poly1305-aes256gcm128-prfsha512-prfsha1-ecp521-modp4096", "chacha20poly1305-aes256gcm16-prfsha512-prfsha1-ecp521-modp4096"},
		{esp, "aes128gcm16", "aes128gcm16"},
		{esp, "aes128gcm16-noesn", "aes128gcm16"},
		{esp, "aes128gcm16-esn-noesn", "aes128gcm16-esn-noesn"},
		{esp, "aes128gcm16-esn", "aes128gcm16-esn"},
		{esp, "chacha20poly1305-x25519", "chacha20poly1305-x25519"},
		{esp, "aes192-aes256-sha384-modp3072-modpnone", "aes192-aes256-sha384-modp3072-modpnone"},
		{esp, "null-sha256", "null-sha256"},
		{esp, "aes128ctr-aes256ctr-aesxcbc-aescmac", "aes128ctr-aes256ctr-aesxcbc-aescmac"},
		{esp, "aes128ccm64-aes192ccm96-aes256ccm128", "aes128ccm8-aes192ccm12-aes256ccm16"},
		{esp, "aes128ccm8-aes192ccm12-aes256ccm", "aes128ccm8-aes192ccm12-aes256ccm16"},
		{esp, "aes128gcm64-aes192gcm96-aes256gcm", "aes128gcm8-aes192gcm12-aes256gcm16"},
		{esp, "aes256gmac-esn", "aes256gmac-esn"},
		{esp, "aes128ccm8iiv-aes128gcm16iiv-chacha20poly1305iiv-aes128gcm16", "aes128ccm8iiv-aes128gcm16iiv-chacha20poly1305iiv-aes128gcm16"},
		{ike, "aes128ctr-aesxcbc-x25519", "aes128ctr-aesxcbc-x25519"},
		{ike, "aes128-aescmac-prfaescmac-x25519", "aes128-aescmac-x25519"},
		{ike, "aes128ccm16-aes128gcm64-prfaesxcbc-ecp256", "aes128ccm16-aes128gcm8-prfaesxcbc-ecp256"},
	} {
		ps, err := ParseProposal(c.proto, c.in, AESFirst)
		if err != nil || len(ps) != 1 {
			t.Errorf("%v %s: %v, %v", c.proto, c.in, ps, err)
			continue
		}
		if got := ps[0].String(); got != c.out {
			t.Errorf("%v %s is printed as %s, want %s", c.proto, c.in, got, c.out)
		}
		back, err := ParseProposal(c.proto, ps[0].String(), AESFirst)
		if err != nil || !sameProposal(back[0], ps[0]) {
			t.Errorf("%v %s: printed and read again it is %v, %v", c.proto, c.in, back, err)
		}
	}
}

func TestImpliedTransforms(t *testing.T) {
	p := proposals(t, ProtoIKE, "aes256-sha256-sha512-ecp256")[0]
	for _, want := range []Transform{prf(PRFHMACSHA256), prf(PRFHMACSHA512)} {
		if !p.has(want) {
			t.Errorf("%v lacks %v, which its integrity algorithms imply", p.Transforms, want)
		}
	}
	p = proposals(t, ProtoIKE, "aes256gcm16-sha384-ecp384")[0]
	if p.hasType(TransformInteg) || !p.has(prf(PRFHMACSHA384)) {
		t.Errorf("%v; beside an AEAD sha384 names the PRF alone", p.Transforms)
	}
	p = proposals(t, ProtoESP, "aes256gcm16")[0]
	if !p.has(Transform{Type: TransformESN}) {
		t.Errorf("%v; want the mandatory transform for no ESN", p.Transforms)
	}
	if !slices.IsSortedFunc(p.Transforms, func(a, b Transform) int { return int(a.Type) - int(b.Type) }) {
		t.Errorf("%v is not sorted by type", p.Transforms)
	}
}

func TestProposalsThatMakeNoSense(t *testing.T) {
	const ike, esp = ProtoIKE, ProtoESP
	for _, c := range []struct {
		proto    Protocol
		in, want string
	}{
		{ike, "", `unknown word ""`},
		{ike, "aes512-sha256-x25519", `unknown word "aes512"; known are aes128, aes192`},
		{ike, "aes128-sha256--x25519", `unknown word ""`},
		{ike, "AES128-sha256-x25519", `unknown word "AES128"`},
		{ike, "aes128-aes128gcm16-sha256-x25519", "two proposals"},
		{ike, "aes128-x25519", "no integrity algorithm"},
		{ike, "aes128gcm16-x25519", "no pseudorandom function"},
		{ike, "aes128-sha256", "no group"},
		{ike, "sha256-x25519", "no cipher"},
		{ike, "aes128-sha256-x25519-esn", "for ESP"},
		{ike, "aes128-sha256-modpnone", "cannot do without a group"},
		{ike, "aes128-aes-sha256-x25519", "twice"},
		{esp, "aes128", "no integrity algorithm"},
		{esp, "sha256", "no cipher"},
		{esp, "aes128gcm16-sha256", "leave it out"},
		{esp, "aes128-aes128gcm16-sha256", "two proposals"},
		{esp, "aes128gcm16-prfsha256", "for IKE"},
		{esp, "aes128gcm16-x25519-curve25519", "twice"},
		{esp, "aes128gcm16,aes256gcm16", "unknown word"},
		{esp, "null", "null without an integrity algorithm, which would protect nothing"},
		{esp, "null-aes128gcm16", "two proposals"},
		{esp, "aes128ctr", "no integrity algorithm"},
		{esp, "aes128gmac-sha256", "leave it out"},
		{esp, "aes128gcm16iiv-aesxcbc", "leave it out"},
		{esp, "aes128ctr256-sha256", "unknown word"},
		{ike, "null-sha256-x25519", `"null" is for ESP`},
		{ike, "aes128gmac-prfsha256-x25519", `"aes128gmac" is for ESP`},
		{ike, "aes128gcm16iiv-prfsha256-x25519", `"aes128gcm16iiv" is for ESP`},
		{ike, "aes128ccm8iiv-prfsha256-x25519", "is for ESP"},
		{ike, "chacha20poly1305iiv-prfsha256-x25519", "is for ESP"},
		{ProtoAH, "aes128-sha256", "AH does not encrypt"},
		{ProtoAH, "default", "unknown word"},
		{ProtoAH, "x25519", "no integrity algorithm"},
		{ProtoAH, "prfsha256-sha256", "AH has no pseudorandom function"},
	} {
		if ps, err := ParseProposal(c.proto, c.in, AESFirst); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %q: %v, %v; want an error with %q", c.proto, c.in, ps, err, c.want)
		}
	}
	_, err := ParseProposal(esp, "aes512", AESFirst)
	if s := err.Error(); strings.Contains(s, "prfsha") || !strings.Contains(s, "esn") || strings.Contains(s, "curve25519") {
		t.Errorf("%s: should name the words for ESP without synonyms", s)
	}
}

// Every word must lead to something that can be negotiated and carried out.
func TestEveryWordIsImplemented(t *testing.T) {
	for _, k := range keywords {
		w := k.name
		words := map[TransformType]string{TransformInteg: "aes128-" + w, TransformDH: "aes128gcm16-" + w, TransformESN: "aes128gcm16-" + w}
		s := words[k.Type]
		switch {
		case k.Type == TransformPRF:
			p := proposals(t, ProtoIKE, "aes128gcm16-x25519-"+w)[0]
			if _, err := p.ikeSuite(); err != nil {
				t.Errorf("%s: %v", w, err)
			}
			continue
		case k.Type == TransformEncr && combined(k.ID):
			s = w
		case k.Type == TransformEncr:
			s = w + "-sha256"
		}
		if k.Type == TransformEncr && !espOnly(k.ID) || k.Type == TransformInteg {
			if _, err := proposals(t, ProtoIKE, s+"-prfsha256-x25519")[0].ikeSuite(); err != nil {
				t.Errorf("%s for IKE: %v", w, err)
			}
		}
		if _, _, err := proposals(t, ProtoESP, s)[0].childSuite(); err != nil {
			t.Errorf("%s: %v", w, err)
		}
	}
}

func TestForeignTransformsArePrinted(t *testing.T) {
	p := Proposal{Proto: ProtoESP, Transforms: []Transform{
		{TransformEncr, 3, 0}, {TransformEncr, 23, 128}, {TransformEncr, 12, badAttr}, {TransformInteg, 99, 0},
		{TransformDH, 2, 0}, {TransformESN, 1, 0}, {6, 35, 0}, {13, 35, 0},
	}}
	if got, want := p.String(), "encr_3-encr_23_128-encr_12?-integ_99-dh_2-esn-ke1_dh_35-transform_13_35"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
