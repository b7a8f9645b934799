package ike

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"postern/esp"
)

// ciphers are all pairs of cipher and integrity algorithm that an IKE SA can use.
func ciphers() []IKESuite {
	var out []IKESuite
	for _, bits := range []uint16{128, 192, 256} {
		for _, encr := range []esp.EncrID{esp.EncrAESGCM16, esp.EncrAESGCM12, esp.EncrAESGCM8,
			esp.EncrAESCCM16, esp.EncrAESCCM12, esp.EncrAESCCM8} {
			out = append(out, IKESuite{Encr: uint16(encr), KeyBits: bits})
		}
		for _, integ := range []esp.IntegID{esp.IntegHMACSHA196, esp.IntegHMACSHA256_128,
			esp.IntegHMACSHA384_192, esp.IntegHMACSHA512_256, esp.IntegAESXCBC96, esp.IntegAESCMAC96} {
			out = append(out, IKESuite{Encr: uint16(esp.EncrAESCBC), KeyBits: bits, Integ: uint16(integ)})
			out = append(out, IKESuite{Encr: uint16(esp.EncrAESCTR), KeyBits: bits, Integ: uint16(integ)})
		}
	}
	out = append(out, IKESuite{Encr: uint16(esp.EncrChaCha20Poly1305)})
	for i := range out {
		out[i].PRF, out[i].DH = allPRFs()[i%6], allGroups()[i%7]
	}
	return out
}

// A vector of NIST's CAVP for the IKEv2 key derivation of SP 800-135, with HMAC-SHA-1:
// SKEYSEED, DKM, DKM of a CHILD SA without and with its own key exchange, SKEYSEED of
// a rekeyed IKE SA. The vector's SK_d is the first 20 octets of DKM.
func TestKeyDerivationVector(t *testing.T) {
	const prf = PRFHMACSHA1
	gir := octets(t, "4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52")
	girNew := octets(t, "863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330")
	ni, nr := octets(t, "32b50d5f4a3763f3"), octets(t, "9206a04b26564cb1")
	const spiI, spiR = 0x34c9e7c188868785, 0x3ff77d760d2b2199
	dkm := octets(t, `a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062
		768b76606f9fa5e992204fc5a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed
		41efa9c549fd11198af1670b143d384bd275c5f594cf266b05ebadca855e4249520a441a81157435a7a56cc4`)
	check := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s is %x, the vector says %x", what, got, want)
		}
	}

	seed := skeyseed(prf, ni, nr, gir)
	check("SKEYSEED", seed, octets(t, "a9a7b222b59f8f48645f28a1db5b5f5d7479cba7"))
	// The vector's 132 octets are those of a suite with 3 PRF keys, 2 integrity keys of 20
	// and 2 cipher keys of 16 octets.
	s := IKESuite{Encr: uint16(esp.EncrAESCBC), KeyBits: 128, Integ: uint16(esp.IntegHMACSHA196), PRF: prf, DH: MODP2048}
	k := s.deriveKeys(seed, ni, nr, spiI, spiR)
	check("the key schedule", bytes.Join([][]byte{k.d, k.ai, k.ar, k.ei, k.er, k.pi, k.pr}, nil), dkm)
	check("SK_d", k.d, dkm[:20])
	check("KEYMAT of a CHILD SA", childKeymat(prf, k.d, nil, ni, nr, 132),
		octets(t, `8059e3ee8810e6c3a91bc8bcd2a7a41151b8d0e6ae239c7b38093ad85ef4c5811a8e7b5d1cdabd9560b2d5e092d1f24e
		2d4b85eccdf0ad0dc9abd94b51ee71814ca6dbc8bb51b6309f5b9545c7eb35cf5580b1e521a8fe20754a2d883ba0c2cf
		285f524aea6545b33106bc03e614296d319d41d4b50b3f510b1c0a22f3e664994d234cb4`))
	check("KEYMAT of a CHILD SA with its own key exchange", childKeymat(prf, k.d, girNew, ni, nr, 132),
		octets(t, `bb43244c1860ad65ee1e211ffe8bb3661750c8f89cb9f547df7f4fa61d37301628190e38c66232eab4b3ab14c400a519
		7dd3730ed4820a8a10394d51e1c0400052f63ebd36b0e7ef53aaed31eba4a5080d7d4b5666023a8bbb5ffb7857240f9a
		05884d1b7d2f933708450b7b3288f1fc863ab49fa901227cffc06e27899c7054d56fd74c`))
	check("SKEYSEED of a rekeyed IKE SA", skeyseedRekey(prf, k.d, girNew, ni, nr),
		octets(t, "63e81194946ebd05df7df5ebf5d8750056bf1f1d"))
}

// refSchedule is RFC 7296 section 2.14 once more, written as the RFC's text stands:
// key lengths by name, one long string that is cut up.
func refSchedule(s IKESuite, ni, nr, shared []byte, spiI, spiR uint64) [7][]byte {
	seedKey := append(bytes.Clone(ni), nr...)
	if s.PRF == PRFAES128XCBC || s.PRF == PRFAES128CMAC {
		seedKey = append(bytes.Clone(ni[:8]), nr[:8]...) // "only the first 64 bits of Ni and the first 64 bits of Nr"
	}
	seed := refPRF(s.PRF, seedKey, shared)
	p := map[PRFID]int{PRFHMACSHA1: 20, PRFHMACSHA256: 32, PRFHMACSHA384: 48, PRFHMACSHA512: 64, PRFAES128XCBC: 16, PRFAES128CMAC: 16}[s.PRF]
	a := map[uint16]int{0: 0, 2: 20, 5: 16, 8: 16, 12: 32, 13: 48, 14: 64}[s.Integ]
	e := int(s.KeyBits)/8 + map[uint16]int{13: 4, 14: 3, 15: 3, 16: 3, 18: 4, 19: 4, 20: 4, 28: 36}[s.Encr]
	context := binary.BigEndian.AppendUint64(append(bytes.Clone(ni), nr...), spiI)
	context = binary.BigEndian.AppendUint64(context, spiR)
	all := refPlus(s.PRF, seed, context, p+a+a+e+e+p+p)
	var out [7][]byte
	for i, n := range [7]int{p, a, a, e, e, p, p} {
		out[i], all = all[:n], all[n:]
	}
	return out
}

func TestKeyScheduleOfEverySuite(t *testing.T) {
	ni, nr, shared := stream("Ni", 32), stream("Nr", 48), stream("g^ir", 256)
	const spiI, spiR = 0x0102030405060708, 0xf1f2f3f4f5f6f7f8
	for _, s := range ciphers() {
		for _, s.PRF = range allPRFs() {
			if err := s.validate(); err != nil {
				t.Errorf("%s is a suite of ours, but: %v", s, err)
				continue
			}
			k := s.deriveKeys(skeyseed(s.PRF, ni, nr, shared), ni, nr, spiI, spiR)
			want := refSchedule(s, ni, nr, shared, spiI, spiR)
			names := [7]string{"SK_d", "SK_ai", "SK_ar", "SK_ei", "SK_er", "SK_pi", "SK_pr"}
			for i, got := range [7][]byte{k.d, k.ai, k.ar, k.ei, k.er, k.pi, k.pr} {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("%s: %s is %x, the definition gives %x", s, names[i], got, want[i])
				}
			}
		}
	}
}

func TestChildKeymatStartsWithTheSharedSecret(t *testing.T) {
	skd, ni, nr, gir := stream("SK_d", 32), stream("Ni", 32), stream("Nr", 32), stream("new", 32)
	seed := append(append(bytes.Clone(gir), ni...), nr...)
	if got := childKeymat(PRFHMACSHA256, skd, gir, ni, nr, 144); !bytes.Equal(got, refPlus(PRFHMACSHA256, skd, seed, 144)) {
		t.Error("KEYMAT is not prf+(SK_d, g^ir | Ni | Nr)")
	}
	if got := childKeymat(PRFHMACSHA256, skd, nil, ni, nr, 40); !bytes.Equal(got, refPlus(PRFHMACSHA256, skd, seed[32:], 40)) {
		t.Error("KEYMAT without a key exchange of its own is not prf+(SK_d, Ni | Nr)")
	}
}

func TestSharedKeyAuthentication(t *testing.T) {
	psk, msg, nonce := []byte("correct horse"), stream("IKE_SA_INIT", 300), stream("Nr", 32)
	skp, id := stream("SK_pi", 32), append([]byte{2, 0, 0, 0}, "site.example"...)
	mac := func(key []byte, data ...[]byte) []byte {
		h := hmac.New(PRFHMACSHA256.hash(), key)
		h.Write(bytes.Join(data, nil))
		return h.Sum(nil)
	}
	want := mac(mac(psk, []byte("Key Pad for IKEv2")), msg, nonce, mac(skp, id))
	if got := pskAuth(PRFHMACSHA256, psk, signedOctets(PRFHMACSHA256, msg, nonce, skp, id)); !bytes.Equal(got, want) {
		t.Errorf("AUTH is %x, RFC 7296 section 2.15 gives %x", got, want)
	}
	if bytes.Equal(want, pskAuth(PRFHMACSHA256, psk, signedOctets(PRFHMACSHA256, msg, nonce, skp, append([]byte{3}, id[1:]...)))) {
		t.Error("the type of the identity does not enter AUTH, so identities could be exchanged")
	}
}

func TestWipedKeysAreGone(t *testing.T) {
	s := IKESuite{Encr: uint16(esp.EncrAESCBC), KeyBits: 128, Integ: uint16(esp.IntegHMACSHA256_128), PRF: PRFHMACSHA256, DH: Curve25519}
	k := s.deriveKeys(stream("SKEYSEED", 32), stream("Ni", 32), stream("Nr", 32), 1, 2)
	held := [][]byte{k.d, k.ai, k.ar, k.ei, k.er, k.pi, k.pr}
	k.wipe()
	for i, b := range held {
		if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("key %d of the schedule is still in memory after wipe", i)
		}
	}
	if k.d != nil || k.pr != nil {
		t.Error("wiped keys can still be reached")
	}
}

func TestSuitesThatCannotProtectAreRefused(t *testing.T) {
	good := IKESuite{Encr: uint16(esp.EncrAESGCM16), KeyBits: 128, PRF: PRFHMACSHA256, DH: Curve25519}
	if err := good.validate(); err != nil {
		t.Fatalf("%s: %v", good, err)
	}
	cbc := good
	cbc.Encr, cbc.Integ = uint16(esp.EncrAESCBC), uint16(esp.IntegHMACSHA256_128)
	for name, s := range map[string]IKESuite{
		"no algorithms":                 {},
		"an AEAD and integrity":         {Encr: good.Encr, KeyBits: 128, Integ: cbc.Integ, PRF: good.PRF, DH: good.DH},
		"CBC without integrity":         {Encr: cbc.Encr, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"an unknown integrity":          {Encr: cbc.Encr, KeyBits: 128, Integ: 1, PRF: good.PRF, DH: good.DH},
		"an unknown cipher":             {Encr: 3, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"NULL":                          {Encr: 11, Integ: cbc.Integ, PRF: good.PRF, DH: good.DH},
		"NULL without integrity":        {Encr: 11, PRF: good.PRF, DH: good.DH},
		"GMAC":                          {Encr: 21, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"GMAC for AH":                   {Encr: cbc.Encr, KeyBits: 128, Integ: 9, PRF: good.PRF, DH: good.DH},
		"CCM with an implicit IV":       {Encr: 29, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"GCM with an implicit IV":       {Encr: 30, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"ChaCha20 with an implicit IV":  {Encr: 31, PRF: good.PRF, DH: good.DH},
		"CTR without integrity":         {Encr: 13, KeyBits: 128, PRF: good.PRF, DH: good.DH},
		"AES without a key length":      {Encr: good.Encr, PRF: good.PRF, DH: good.DH},
		"AES with an odd key length":    {Encr: good.Encr, KeyBits: 136, PRF: good.PRF, DH: good.DH},
		"ChaCha20 with a key length":    {Encr: uint16(esp.EncrChaCha20Poly1305), KeyBits: 256, PRF: good.PRF, DH: good.DH},
		"no PRF":                        {Encr: good.Encr, KeyBits: 128, DH: good.DH},
		"no group":                      {Encr: good.Encr, KeyBits: 128, PRF: good.PRF},
		"a group that is not supported": {Encr: good.Encr, KeyBits: 128, PRF: good.PRF, DH: 2},
	} {
		if err := s.validate(); !errors.Is(err, errSuite) {
			t.Errorf("%s: %v, want %v", name, err, errSuite)
		}
	}
}

func TestSuiteNames(t *testing.T) {
	for want, s := range map[string]IKESuite{
		"AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519": {Encr: 20, KeyBits: 128, PRF: PRFHMACSHA256, DH: Curve25519},
		"AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_384/MODP_2048": {Encr: 12, KeyBits: 256, Integ: 12,
			PRF: PRFHMACSHA384, DH: MODP2048},
		"AES_CCM_8_128/PRF_AES128_CMAC/CURVE_25519":           {Encr: 14, KeyBits: 128, PRF: PRFAES128CMAC, DH: Curve25519},
		"AES_CTR_128/AES_XCBC_96/PRF_AES128_XCBC/CURVE_25519": {Encr: 13, KeyBits: 128, Integ: 5, PRF: PRFAES128XCBC, DH: Curve25519},
		"CHACHA20_POLY1305/PRF_HMAC_SHA2_512/ECP_384":         {Encr: 28, PRF: PRFHMACSHA512, DH: ECP384},
	} {
		if s.String() != want {
			t.Errorf("a suite is called %q, charon says %q", s, want)
		}
	}
}

func TestNATDetectionHash(t *testing.T) {
	spis := octets(t, "0102030405060708 1112131415161718")
	for addr, tail := range map[string]string{
		"192.0.2.1:500":          "c0000201 01f4",
		"[::ffff:192.0.2.1]:500": "c0000201 01f4",
		"[2001:db8::1]:4500":     "20010db8000000000000000000000001 1194",
	} {
		want := sha1.Sum(append(bytes.Clone(spis), octets(t, tail)...))
		if got := natHash(0x0102030405060708, 0x1112131415161718, netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %x, RFC 7296 section 2.23 gives %x", addr, got, want)
		}
	}
}
