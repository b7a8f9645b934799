package pki

import (
	"bytes"
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustKey(t testing.TB, k any) *Key {
	t.Helper()
	key, err := NewKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestRFC4754Vectors checks the signatures of RFC 4754 8 with its keys, over "abc".
func TestRFC4754Vectors(t *testing.T) {
	spki := map[uint8]string{
		MethodECDSA256: "3059301306072a8648ce3d020106082a8648ce3d03010703420004",
		MethodECDSA384: "3076301006072a8648ce3d020106052b8104002203620004",
		MethodECDSA521: "30819b301006072a8648ce3d020106052b81040023038186 0004",
	}
	for _, c := range []struct {
		method   uint8
		x, y, rs string
		name     string
	}{
		{MethodECDSA256, "2442A5CC 0ECD015F A3CA31DC 8E2BBC70 BF42D60C BCA20085 E0822CB0 4235E970",
			"6FC98BD7 E50211A4 A27102FA 3549DF79 EBCB4BF2 46B80945 CDDFE7D5 09BBFD7D",
			`CB28E099 9B9C7715 FD0A80D8 E47A7707 9716CBBF 917DD72E 97566EA1 C066957C
			86FA3BB4 E26CAD5B F90B7F81 899256CE 7594BB1E A0C89212 748BFF3B 3D5B0315`, "ECDSA-256"},
		{MethodECDSA384, `96281BF8 DD5E0525 CA049C04 8D345D30 82968D10 FEDF5C5A CA0C64E6 465A97EA
			5CE10C9D FEC21797 41571072 1F437922`, `447688BA 94708EB6 E2E4D59F 6AB6D7ED FF9301D2 49FE49C3 3096655F 5D502FAD
			3D383B91 C5E7EDAA 2B714CC9 9D5743CA`, `FB017B91 4E291494 32D8BAC2 9A514640 B46F53DD AB2C6994
			8084E293 0F1C8F7E 08E07C9C 63F2D21A 07DCB56A 6AF56EB3 B263A130 5E057F98
			4D38726A 1B468741 09F417BC A112674C 528262A4 0A629AF1 CBB9F516 CE0FA7D2
			FF630863 A00E8B9F`, "ECDSA-384"},
		{MethodECDSA521, `0151518F 1AF0F563 517EDD54 85190DF9 5A4BF57B 5CBA4CF2 A9A3F647 4725A35F
			7AFE0A6D DEB8BEDB CD6A197E 592D4018 8901CECD 650699C9 B5E456AE A5ADD190 52A8`,
			`006F3B14 2EA1BFFF 7E2837AD 44C9E4FF 6D2D34C7 3184BBAD 90026DD5 E6E85317
			D9DF45CA D7803C6C 20035B2F 3FF63AFF 4E1BA64D 1C077577 DA3F4286 C58F0AEA E643`,
			`0154FD38 36AF92D0 DCA57DD5 341D3053 988534FD E8318FC6 AAAAB68E 2E6F4339
			B19F2F28 1A7E0B22 C269D93C F8794A92 78880ED7 DBB8D936 2CAEACEE 54432055 2251
			017705A7 030290D1 CEB605A9 A1BB03FF 9CDD521E 87A696EC 926C8C10 C8362DF4
			97536710 1F67D1CF 9BCCBF2F 3D239534 FA509E70 AAC851AE 01AAC68D 62F86647 2660`, "ECDSA-521"},
	} {
		p, err := ParsePublicKey(unhex(t, spki[c.method]+c.x+c.y))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		sig := unhex(t, c.rs)
		if name, err := p.Verify(c.method, sig, []byte("abc"), nil); err != nil || name != c.name {
			t.Errorf("%s: the signature of RFC 4754 8 is refused: %s, %v", c.name, name, err)
		}
		for _, i := range []int{0, len(sig)/2 + 1, len(sig) - 1} {
			bad := bytes.Clone(sig)
			bad[i] ^= 1
			if _, err := p.Verify(c.method, bad, []byte("abc"), nil); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: a changed signature: %v", c.name, err)
			}
		}
		if _, err := p.Verify(c.method, sig[1:], []byte("abc"), nil); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: a short signature: %v", c.name, err)
		}
		if _, err := p.Verify(c.method, make([]byte, len(sig)), []byte("abc"), nil); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: a signature of zeros: %v", c.name, err)
		}
	}
}

// TestRFC7427Names holds the encodings of RFC 7427 appendix A and RFC 8420 appendix A.
func TestRFC7427Names(t *testing.T) {
	for _, c := range []struct {
		der  string
		s    scheme
		name string
	}{
		{"300d 0609 2a86 4886 f70d 0101 0505 00", scheme{fam: famPKCS1, hash: SHA1}, "RSA_EMSA_PKCS1_SHA1"},
		{"300d 0609 2a86 4886 f70d 0101 0b05 00", scheme{fam: famPKCS1, hash: SHA2_256}, "RSA_EMSA_PKCS1_SHA2_256"},
		{"300d 0609 2a86 4886 f70d 0101 0c05 00", scheme{fam: famPKCS1, hash: SHA2_384}, "RSA_EMSA_PKCS1_SHA2_384"},
		{"300d 0609 2a86 4886 f70d 0101 0d05 00", scheme{fam: famPKCS1, hash: SHA2_512}, "RSA_EMSA_PKCS1_SHA2_512"},
		{"3009 0607 2a86 48ce 3d04 01", scheme{fam: famECDSA, hash: SHA1}, "ECDSA_WITH_SHA1_DER"},
		{"300a 0608 2a86 48ce 3d04 0302", scheme{fam: famECDSA, hash: SHA2_256}, "ECDSA_WITH_SHA256_DER"},
		{"300a 0608 2a86 48ce 3d04 0303", scheme{fam: famECDSA, hash: SHA2_384}, "ECDSA_WITH_SHA384_DER"},
		{"300a 0608 2a86 48ce 3d04 0304", scheme{fam: famECDSA, hash: SHA2_512}, "ECDSA_WITH_SHA512_DER"},
		{"300d 0609 2a86 4886 f70d 0101 0a30 00", scheme{fam: famPSS, hash: SHA1, salt: 20}, "RSA_EMSA_PSS_SHA1"},
		{`3046 0609 2a86 4886 f70d 0101 0a30 39a0 0f30 0d06 0960 8648 0165 0304 0201 0500
		a11c 301a 0609 2a86 4886 f70d 0101 0830 0d06 0960 8648 0165 0304 0201 0500 a203
		0201 20a3 0302 0101`, scheme{fam: famPSS, hash: SHA2_256, salt: 32}, "RSA_EMSA_PSS_SHA2_256"},
		{"3005 0603 2b65 70", scheme{fam: famEd25519, hash: Identity}, "ED25519"},
	} {
		der := unhex(t, c.der)
		got, known, ok := parseAlg(der)
		if !ok || !known || got != c.s || got.String() != c.name {
			t.Errorf("%s: read as %+v (%v)", c.name, got, got)
		}
		out := c.s.alg()
		if c.s.fam == famPSS {
			// The trailer's default is left out by DER; RFC 7427's example has it.
			if again, known, ok := parseAlg(out); !ok || !known || again != c.s {
				t.Errorf("%s: written as %x, read as %+v", c.name, out, again)
			}
		} else if !bytes.Equal(out, der) {
			t.Errorf("%s: written as %x", c.name, out)
		}
		if _, _, ok := parseAlg(append(bytes.Clone(der), 0)); ok {
			t.Errorf("%s: an octet too many is taken", c.name)
		}
	}
	def := unhex(t, `303e 0609 2a86 4886 f70d 0101 0a30 31a0 0b30 0906 052b 0e03 021a 0500 a118 3016
	0609 2a86 4886 f70d 0101 0830 0906 052b 0e03 021a 0500 a203 0201 14a3 0302 0101`)
	if s, known, ok := parseAlg(def); !ok || !known || s != (scheme{fam: famPSS, hash: SHA1, salt: 20}) {
		t.Errorf("RSASSA-PSS with the defaults written out: %+v", s)
	}
	mixed := bytes.Replace(unhex(t, hex.EncodeToString(pssScheme(SHA2_256).alg())), []byte(oidSHA2+"\x01\x05\x00\xa2"), []byte(oidSHA2+"\x02\x05\x00\xa2"), 1)
	if _, known, _ := parseAlg(mixed); known {
		t.Error("RSASSA-PSS with two hashes is taken")
	}
}

// TestEd25519OfRFC8032 signs as RFC 8032 7.1, test 2, inside of method 14 (RFC 8420).
func TestEd25519OfRFC8032(t *testing.T) {
	key, err := ParseKey(unhex(t, "302e020100300506032b657004220420 4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"), nil)
	if err != nil {
		t.Fatal(err)
	}
	method, data, err := key.Sign(&Offer{Hashes: []Hash{SHA2_256, Identity}}, []byte{0x72}, nil)
	want := unhex(t, `07 3005 0603 2b65 70 92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da
	085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00`)
	if err != nil || method != MethodSignature || !bytes.Equal(data, want) {
		t.Errorf("method %d, data %x, error %v", method, data, err)
	}
}

func TestSignAndVerifyEveryKind(t *testing.T) {
	all := Hashes()
	r2048, r3072, r4096 := mustKey(t, rsaKey(t, "rsa2048.pem")), mustKey(t, rsaKey(t, "rsa3072.pem")), mustKey(t, rsaKey(t, "rsa4096.pem"))
	p256, p384, p521 := mustKey(t, ecKey(t, elliptic.P256(), "a")), mustKey(t, ecKey(t, elliptic.P384(), "a")), mustKey(t, ecKey(t, elliptic.P521(), "a"))
	ed := mustKey(t, edKey("a"))
	octets := []byte("what is signed")
	for _, c := range []struct {
		name   string
		k      *Key
		o      Offer
		method uint8
		scheme string // "": an error that says why
		why    string
	}{
		{"RSA 2048", r2048, Offer{Hashes: all}, 14, "RSA_EMSA_PKCS1_SHA2_256", ""},
		{"RSA 3072", r3072, Offer{Hashes: all}, 14, "RSA_EMSA_PKCS1_SHA2_256", ""},
		{"RSA 4096", r4096, Offer{Hashes: all}, 14, "RSA_EMSA_PKCS1_SHA2_384", ""},
		{"RSA 4096, peer has SHA-256", r4096, Offer{Hashes: []Hash{SHA1, SHA2_256}}, 14, "RSA_EMSA_PKCS1_SHA2_256", ""},
		{"PSS", r2048, Offer{Hashes: all, PSS: true}, 14, "RSA_EMSA_PSS_SHA2_256", ""},
		{"PSS with SHA-512", r2048, Offer{Hashes: all, PSS: true, Only: []Hash{SHA2_512}}, 14, "RSA_EMSA_PSS_SHA2_512", ""},
		{"only SHA-1", r2048, Offer{Hashes: []Hash{SHA1}}, 0, "", "takes no hash"},
		{"old RSA", r2048, Offer{}, 1, "RSA_EMSA_PKCS1_SHA1", ""},
		{"old RSA with a constraint", r2048, Offer{Only: []Hash{SHA2_384}}, 1, "RSA_EMSA_PKCS1_SHA2_384", ""},
		{"old RSA, constraint fits none", r2048, Offer{Only: []Hash{Identity}}, 0, "", "no hash that is configured"},
		{"PSS with an old peer", r2048, Offer{PSS: true}, 0, "", "does not speak RFC 7427"},
		{"P-256", p256, Offer{Hashes: all}, 14, "ECDSA_WITH_SHA256_DER", ""},
		{"P-384", p384, Offer{Hashes: all}, 14, "ECDSA_WITH_SHA384_DER", ""},
		{"P-521", p521, Offer{Hashes: all}, 14, "ECDSA_WITH_SHA512_DER", ""},
		{"P-521, PSS does not matter", p521, Offer{Hashes: []Hash{SHA2_256}, PSS: true}, 14, "ECDSA_WITH_SHA256_DER", ""},
		{"old P-256", p256, Offer{}, 9, "ECDSA-256", ""},
		{"old P-384", p384, Offer{}, 10, "ECDSA-384", ""},
		{"old P-521", p521, Offer{}, 11, "ECDSA-521", ""},
		{"old P-256 with a constraint", p256, Offer{Only: []Hash{SHA2_512}}, 0, "", "needs sha256"},
		{"Ed25519", ed, Offer{Hashes: all}, 14, "ED25519", ""},
		{"Ed25519, peer lacks Identity", ed, Offer{Hashes: []Hash{SHA2_256, SHA2_512}}, 0, "", "takes no hash"},
		{"old Ed25519", ed, Offer{}, 0, "", "which Ed25519 needs"},
		{"announced PSS", r2048, Offer{Hashes: all, Methods: []Announced{{Method: 14, Algorithm: pssScheme(SHA2_384).alg()}}}, 14, "RSA_EMSA_PSS_SHA2_384", ""},
		{"announced SHA-512", p256, Offer{Hashes: all, Methods: []Announced{{Method: 2}, {Method: 14, Algorithm: scheme{fam: famECDSA, hash: SHA2_512}.alg()}}}, 14, "ECDSA_WITH_SHA512_DER", ""},
		{"announced nothing that fits", p256, Offer{Hashes: all, Methods: []Announced{{Method: 2}}}, 14, "ECDSA_WITH_SHA256_DER", ""},
	} {
		method, data, err := c.k.Sign(&c.o, octets, zeros{})
		if c.scheme == "" {
			if err == nil || !errors.Is(err, ErrScheme) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: signed with method %d, or for another reason: %v", c.name, method, err)
			}
			continue
		}
		if err != nil || method != c.method {
			t.Errorf("%s: method %d, error %v", c.name, method, err)
			continue
		}
		name, err := c.k.Public().Verify(method, data, octets, nil)
		if err != nil || name != c.scheme {
			t.Errorf("%s: verified as %s instead of %s: %v", c.name, name, c.scheme, err)
		}
		if _, err := c.k.Public().Verify(method, data, []byte("something else"), nil); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: other octets: %v", c.name, err)
		}
		bad := bytes.Clone(data)
		bad[len(bad)-2] ^= 4
		if _, err := c.k.Public().Verify(method, bad, octets, nil); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: a changed signature: %v", c.name, err)
		}
		for _, other := range []*Key{r3072, p384, ed} {
			if other == c.k {
				continue
			}
			if _, err := other.Public().Verify(method, data, octets, nil); err == nil {
				t.Errorf("%s: verified with %v", c.name, other)
			}
		}
		if _, err := c.k.Public().Verify(method, data, octets, []Hash{}); !errors.Is(err, ErrScheme) {
			t.Errorf("%s: taken though the configuration takes no hash: %v", c.name, err)
		}
		again, data2, _ := c.k.Sign(&c.o, octets, zeros{})
		if again != method || !bytes.Equal(data, data2) {
			t.Errorf("%s: two signatures differ, so no simulation can be repeated", c.name)
		}
	}
}

func TestSHA1UnderMethod14IsRefused(t *testing.T) {
	k := mustKey(t, rsaKey(t, "rsa2048.pem"))
	octets := []byte("x")
	s := scheme{fam: famPKCS1, hash: SHA1}
	sig, err := k.sign(s, octets, nil)
	if err != nil {
		t.Fatal(err)
	}
	alg := s.alg()
	data := append(append([]byte{byte(len(alg))}, alg...), sig...)
	if name, err := k.Public().Verify(MethodSignature, data, octets, nil); !errors.Is(err, ErrScheme) || !strings.Contains(err.Error(), "SHA-1") || name != "RSA_EMSA_PKCS1_SHA1" {
		t.Errorf("%s, %v", name, err)
	}
	for name, data := range map[string][]byte{
		"empty":           {},
		"length too long": {9, 0x30},
		"no algorithm":    {0},
		"unknown":         append([]byte{6}, unhex(t, "3004 0602 2a03")...),
		"Ed448":           append([]byte{7}, unhex(t, "3005 0603 2b65 71")...),
	} {
		if _, err := k.Public().Verify(MethodSignature, data, octets, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, m := range []uint8{0, 2, 3, 12, 13, 15, 255} {
		if _, err := k.Public().Verify(m, sig, octets, nil); !errors.Is(err, ErrScheme) {
			t.Errorf("method %d: %v", m, err)
		}
	}
}

func TestAnnouncements(t *testing.T) {
	list := OurMethods(true, nil)
	data := AppendAnnounced(nil, list)
	got, err := ParseAnnounced(data)
	if err != nil || len(got) != len(list) || len(got) != 11 {
		t.Fatalf("%d announcements come back as %d: %v", len(list), len(got), err)
	}
	for i := range got {
		if got[i].Method != list[i].Method || !bytes.Equal(got[i].Algorithm, list[i].Algorithm) {
			t.Errorf("announcement %d: %+v", i, got[i])
		}
	}
	if got[0].Method != MethodPSK || data[0] != 2 {
		t.Errorf("the shared key's announcement: %x", data[:2])
	}
	if n := len(OurMethods(false, []Hash{SHA2_256})); n != 3 {
		t.Errorf("with SHA-256 alone %d methods instead of ECDSA, PSS and PKCS#1", n)
	}
	old := []Announced{{Method: MethodRSA, CertLink: 3}, {Method: MethodECDSA256}}
	if b := AppendAnnounced(nil, old); !bytes.Equal(b, []byte{3, 1, 3, 3, 9, 0}) {
		t.Errorf("the old methods: %x", b)
	}
	// What is not understood is left out, whatever it is (RFC 9593 3.2).
	odd := []byte{2, 2, 5, 77, 1, 2, 3, 3, 14, 0, 5, 14, 0, 0xff, 0xff, 4, 2, 0, 0, 2, 1, 3, 1, 0}
	if got, err := ParseAnnounced(odd); err != nil || len(got) != 2 || got[1].Method != MethodRSA {
		t.Errorf("what is not understood: %+v, %v", got, err)
	}
	for _, bad := range [][]byte{{0}, {1}, {2}, {3, 1}, {2, 2, 9, 14}} {
		if _, err := ParseAnnounced(bad); err == nil {
			t.Errorf("%x: a length that does not fit is taken", bad)
		}
	}
	if got, err := ParseAnnounced(nil); err != nil || got == nil {
		t.Error("an empty list is not told from none")
	}
	if got, _ := ParseAnnounced(bytes.Repeat([]byte{2, 2}, 500)); len(got) > maxAnnounced {
		t.Errorf("%d announcements are kept", len(got))
	}
}
