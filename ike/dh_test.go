package ike

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"
)

// octets decodes hexadecimal that may hold white space.
func octets(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatalf("the test's own hexadecimal is wrong: %v", err)
	}
	return b
}

// stream returns n octets that depend on the label alone.
func stream(label string, n int) []byte {
	var out []byte
	for i := byte(0); len(out) < n; i++ {
		h := sha512.Sum512(append([]byte(label), i))
		out = append(out, h[:]...)
	}
	return out[:n]
}

func allGroups() []DHGroup {
	return []DHGroup{MODP2048, MODP3072, MODP4096, ECP256, ECP384, ECP521, Curve25519}
}

func mustPair(t testing.TB, g DHGroup, label string) *keyPair {
	t.Helper()
	k, err := newKeyPair(g, stream(label, g.seedLen()))
	if err != nil {
		t.Fatalf("%s: a key pair from %d random octets: %v", g, g.seedLen(), err)
	}
	return k
}

// padSeed makes a seed whose first candidate is the given private key.
func padSeed(g DHGroup, private []byte) []byte {
	return append(bytes.Clone(private), make([]byte, g.seedLen()-len(private))...)
}

func TestKeyExchangeVectors(t *testing.T) {
	for _, v := range []struct {
		name               string
		group              DHGroup
		i, gi, r, gr, girx string
	}{
		{"RFC 5903 section 8.1", ECP256,
			"C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433",
			`DAD0B653 94221CF9 B051E1FE CA5787D0 98DFE637 FC90B9EF 945D0C37 72581180
			 5271A046 1CDB8252 D61F1C45 6FA3E59A B1F45B33 ACCF5F58 389E0577 B8990BB3`,
			"C6EF9C5D 78AE012A 011164AC B397CE20 88685D8F 06BF9BE0 B283AB46 476BEE53",
			`D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63
			 56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB`,
			"D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE"},
		{"RFC 5903 section 8.2", ECP384,
			`099F3C70 34D4A2C6 99884D73 A375A67F 7624EF7C 6B3C0F16 0647B674 14DCE655
			 E35B5380 41E649EE 3FAEF896 783AB194`,
			`667842D7 D180AC2C DE6F74F3 7551F557 55C7645C 20EF73E3 1634FE72 B4C55EE6
			 DE3AC808 ACB4BDB4 C88732AE E95F41AA 9482ED1F C0EEB9CA FC498462 5CCFC23F
			 65032149 E0E144AD A0241815 35A0F38E EB9FCFF3 C2C947DA E69B4C63 4573A81C`,
			`41CB0779 B4BDB85D 47846725 FBEC3C94 30FAB46C C8DC5060 855CC9BD A0AA2942
			 E0308312 916B8ED2 960E4BD5 5A7448FC`,
			`E558DBEF 53EECDE3 D3FCCFC1 AEA08A89 A987475D 12FD950D 83CFA417 32BC509D
			 0D1AC43A 0336DEF9 6FDA41D0 774A3571 DCFBEC7A ACF31964 72169E83 8430367F
			 66EEBE3C 6E70C416 DD5F0C68 759DD1FF F83FA401 42209DFF 5EAAD96D B9E6386C`,
			`11187331 C279962D 93D60424 3FD592CB 9D0A926F 422E4718 7521287E 7156C5C4
			 D6031355 69B9E9D0 9CF5D4A2 70F59746`},
		{"RFC 5903 section 8.3", ECP521,
			`0037ADE9 319A89F4 DABDB3EF 411AACCC A5123C61 ACAB57B5 393DCE47 608172A0
			 95AA85A3 0FE1C295 2C6771D9 37BA9777 F5957B26 39BAB072 462F68C2 7A57382D 4A52`,
			`0015417E 84DBF28C 0AD3C278 713349DC 7DF153C8 97A1891B D98BAB43 57C9ECBE
			 E1E3BF42 E00B8E38 0AEAE57C 2D107564 94188594 2AF5A7F4 601723C4 195D176C ED3E
			 017CAE20 B6641D2E EB695786 D8C94614 6239D099 E18E1D5A 514C739D 7CB4A10A
			 D8A78801 5AC405D7 799DC75E 7B7D5B6C F2261A6A 7F150743 8BF01BEB 6CA3926F 9582`,
			`0145BA99 A847AF43 793FDD0E 872E7CDF A16BE30F DC780F97 BCCC3F07 8380201E
			 9C677D60 0B343757 A3BDBF2A 3163E4C2 F869CCA7 458AA4A4 EFFC311F 5CB15168 5EB9`,
			`00D0B397 5AC4B799 F5BEA16D 5E13E9AF 971D5E9B 984C9F39 728B5E57 39735A21
			 9B97C356 436ADC6E 95BB0352 F6BE64A6 C2912D4E F2D0433C ED2B6171 640012D9 460F
			 015C6822 6383956E 3BD066E7 97B623C2 7CE0EAC2 F551A10C 2C724D98 52077B87
			 220B6536 C5C408A1 D2AEBB8E 86D678AE 49CB5709 1F473229 6579AB44 FCD17F0F C56A`,
			`01144C7D 79AE6956 BC8EDB8E 7C787C45 21CB086F A64407F9 7894E5E6 B2D79B04
			 D1427E73 CA4BAA24 0A347868 59810C06 B3C715A3 A8CC3151 F2BEE417 996D19F3 DDEA`},
		{"RFC 7748 section 6.1", Curve25519,
			"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
			"8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
			"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
			"de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
			"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"},
		{"RFC 8031 appendix A", Curve25519,
			"70 1f b4 30 86 55 b4 76 b6 78 9b 73 25 f9 ea 8c dd d1 6a 58 53 3f f6 d9 e6 00 09 46 4a 5f 9d 54",
			"48 d5 dd d4 06 12 57 ba 16 6f a3 f9 bb db 74 f1 a4 e8 1c 08 93 84 fa 77 f7 90 70 9f 0d fb c7 66",
			"08 54 64 52 53 29 0d 60 dd ad d0 e0 30 ba cd 9e 55 01 ef dc 22 07 55 a1 e9 78 f1 b8 39 a0 56 48",
			"0b e7 c1 f5 aa d8 7d 7e 44 86 62 67 32 98 a4 43 47 8b 85 97 45 17 9e af 56 4c 79 c0 ef 6e ee 25",
			"c7 49 50 60 7a 12 32 7f 32 04 d9 4b 68 25 bf b0 68 b7 f8 31 9a 9e 37 08 ed 3d 43 ce 81 30 c9 50"},
	} {
		secret := octets(t, v.girx)
		i, err := newKeyPair(v.group, padSeed(v.group, octets(t, v.i)))
		if err != nil {
			t.Fatalf("%s: the initiator's private key was refused: %v", v.name, err)
		}
		r, err := newKeyPair(v.group, padSeed(v.group, octets(t, v.r)))
		if err != nil {
			t.Fatalf("%s: the responder's private key was refused: %v", v.name, err)
		}
		if !bytes.Equal(i.public(), octets(t, v.gi)) || !bytes.Equal(r.public(), octets(t, v.gr)) {
			t.Errorf("%s: the public values are %x and %x, not those of the vector", v.name, i.public(), r.public())
		}
		for _, side := range []struct{ k, peer *keyPair }{{i, r}, {r, i}} {
			if got, err := side.k.shared(side.peer.public()); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%s: g^ir is %x (%v), not that of the vector", v.name, got, err)
			}
		}
	}
}

func TestKeyExchangeAgrees(t *testing.T) {
	for _, g := range allGroups() {
		a, b := mustPair(t, g, "a"), mustPair(t, g, "b")
		if !g.known() || len(a.public()) != g.publicLen() {
			t.Errorf("%s: the public value has %d octets, a KE payload holds %d", g, len(a.public()), g.publicLen())
		}
		ab, err1 := a.shared(b.public())
		ba, err2 := b.shared(a.public())
		if err1 != nil || err2 != nil || !bytes.Equal(ab, ba) {
			t.Errorf("%s: the sides disagree: %x (%v), %x (%v)", g, ab, err1, ba, err2)
		}
		if bytes.Equal(a.public(), b.public()) {
			t.Errorf("%s: two seeds gave one key pair", g)
		}
		if again := mustPair(t, g, "a"); !bytes.Equal(again.public(), a.public()) {
			t.Errorf("%s: one seed gave two key pairs, so a run cannot be replayed", g)
		}
	}
}

func modpGroups() map[DHGroup]struct {
	bits int
	c    int64
} {
	return map[DHGroup]struct {
		bits int
		c    int64
	}{MODP2048: {2048, 124476}, MODP3072: {3072, 1690314}, MODP4096: {4096, 240904}}
}

// piBits returns floor(2^n pi) by Machin's formula.
func piBits(n uint) *big.Int {
	const guard = 64
	arctan := func(x int64) *big.Int { // 2^(n+guard) arctan(1/x)
		term := new(big.Int).Lsh(big.NewInt(1), n+guard)
		term.Quo(term, big.NewInt(x))
		sum := new(big.Int).Set(term)
		square := big.NewInt(x * x)
		for k := int64(1); term.Sign() != 0; k++ {
			term.Quo(term, square)
			part := new(big.Int).Quo(term, big.NewInt(2*k+1))
			if k%2 == 1 {
				sum.Sub(sum, part)
			} else {
				sum.Add(sum, part)
			}
		}
		return sum
	}
	pi := new(big.Int).Mul(big.NewInt(16), arctan(5))
	pi.Sub(pi, new(big.Int).Mul(big.NewInt(4), arctan(239)))
	return pi.Rsh(pi, guard)
}

func primeOf(g DHGroup) *big.Int {
	m := dhGroups[g].modulus()
	return new(big.Int).SetBytes(m.Nat().Bytes(m))
}

// The primes of RFC 3526 sections 3 to 5 are rebuilt from their formula.
func TestMODPPrimesFollowTheirFormula(t *testing.T) {
	for g, v := range modpGroups() {
		n := uint(v.bits)
		one := big.NewInt(1)
		want := piBits(n - 130)
		want.Add(want, big.NewInt(v.c))
		want.Lsh(want, 64)
		want.Sub(want, one)
		want.Add(want, new(big.Int).Lsh(one, n))
		want.Sub(want, new(big.Int).Lsh(one, n-64))
		if p := primeOf(g); p.Cmp(want) != 0 {
			t.Errorf("%s: the prime is %x, its formula gives %x", g, p, want)
		}
		if g.publicLen()*8 != v.bits {
			t.Errorf("%s: public values of %d octets for a prime of %d bits", g, g.publicLen(), v.bits)
		}
	}
}

func TestMODPPrimesAreSafe(t *testing.T) {
	if testing.Short() {
		t.Skip("tests of primality take long on a small CPU")
	}
	for g := range modpGroups() {
		p := primeOf(g)
		q := new(big.Int).Rsh(p, 1)
		if !p.ProbablyPrime(1) || !q.ProbablyPrime(1) {
			t.Errorf("%s: p and (p-1)/2 are not both prime, so short exponents would leak", g)
		}
		if new(big.Int).Exp(big.NewInt(2), q, p).Cmp(big.NewInt(1)) != 0 {
			t.Errorf("%s: 2 does not generate the subgroup of order (p-1)/2", g)
		}
	}
}

func TestMODPMatchesPlainArithmetic(t *testing.T) {
	for g := range modpGroups() {
		p := primeOf(g)
		a, b := mustPair(t, g, "x"), mustPair(t, g, "y")
		ea, eb := new(big.Int).SetBytes(a.exponent), new(big.Int).SetBytes(b.exponent)
		if ea.BitLen() != 8*dhGroups[g].private {
			t.Errorf("%s: an exponent of %d bits, want %d", g, ea.BitLen(), 8*dhGroups[g].private)
		}
		want := new(big.Int).Exp(big.NewInt(2), eb, p)
		if !bytes.Equal(b.public(), want.FillBytes(make([]byte, g.publicLen()))) {
			t.Errorf("%s: the public value is not 2^x mod p", g)
		}
		want.Exp(want, ea, p)
		got, err := a.shared(b.public())
		if err != nil || !bytes.Equal(got, want.FillBytes(make([]byte, g.publicLen()))) {
			t.Errorf("%s: g^ir is not the power of the public value (%v)", g, err)
		}
	}
}

// RFC 7296 section 2.14: g^ir is padded on the left to the length of the prime. The
// public value is chosen so that the secret is 4.
func TestMODPSecretKeepsLeadingZeros(t *testing.T) {
	for g := range modpGroups() {
		p := primeOf(g)
		q := new(big.Int).Rsh(p, 1)
		k := mustPair(t, g, "padding")
		inverse := new(big.Int).ModInverse(new(big.Int).SetBytes(k.exponent), q)
		y := new(big.Int).Exp(big.NewInt(4), inverse, p)
		want := make([]byte, g.publicLen())
		want[len(want)-1] = 4
		got, err := k.shared(y.FillBytes(make([]byte, g.publicLen())))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: g^ir is %x (%v), want 4 in %d octets", g, got, err, g.publicLen())
		}
	}
}

func TestPublicValuesOutsideTheGroupAreRefused(t *testing.T) {
	refused := func(g DHGroup, what string, peer []byte) {
		t.Helper()
		if secret, err := mustPair(t, g, "victim").shared(peer); !errors.Is(err, errPublic) || secret != nil {
			t.Errorf("%s: %s gave %x, %v; want %v", g, what, secret, err, errPublic)
		}
	}
	for _, g := range allGroups() {
		n := g.publicLen()
		refused(g, "an empty value", nil)
		refused(g, "a value one octet short", mustPair(t, g, "peer").public()[1:])
		refused(g, "a value one octet long", append([]byte{0}, mustPair(t, g, "peer").public()...))
		refused(g, "zero", make([]byte, n))
	}
	for g := range modpGroups() {
		p, one := primeOf(g), big.NewInt(1)
		wide := func(v *big.Int) []byte { return v.FillBytes(make([]byte, g.publicLen())) }
		refused(g, "1", wide(one))
		refused(g, "p-1", wide(new(big.Int).Sub(p, one)))
		refused(g, "p", wide(p))
		refused(g, "p+1", wide(new(big.Int).Add(p, one)))
		refused(g, "all ones", bytes.Repeat([]byte{0xff}, g.publicLen()))
		for name, v := range map[string]*big.Int{"2": big.NewInt(2), "p-2": new(big.Int).Sub(p, big.NewInt(2))} {
			if _, err := mustPair(t, g, "victim").shared(wide(v)); err != nil {
				t.Errorf("%s: %s is a legal public value, but: %v", g, name, err)
			}
		}
	}
	for _, g := range []DHGroup{ECP256, ECP384, ECP521} {
		off := bytes.Clone(mustPair(t, g, "peer").public())
		off[len(off)-1] ^= 1
		refused(g, "a point that is not on the curve", off)
		refused(g, "coordinates above the field's prime", bytes.Repeat([]byte{0xff}, g.publicLen()))
	}
	// The points of small order of RFC 7748's curve: X25519 of each is zero.
	for _, s := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		refused(Curve25519, "a point of small order", octets(t, s))
	}
}

func TestKeyPairSkipsCandidatesOutsideTheOrder(t *testing.T) {
	seed := bytes.Repeat([]byte{0xff}, ECP256.seedLen())
	if _, err := newKeyPair(ECP256, seed); !errors.Is(err, errSeed) {
		t.Errorf("a seed without any private key below the order gave %v, want %v", err, errSeed)
	}
	good := stream("third", 32)
	copy(seed[64:], good)
	k, err := newKeyPair(ECP256, seed)
	if err != nil {
		t.Fatalf("the third candidate is a private key, but: %v", err)
	}
	want, err := ecdh.P256().NewPrivateKey(good)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(k.public(), want.PublicKey().Bytes()[1:]) {
		t.Error("the key pair does not come from the first candidate that is in range")
	}
}

func TestKeyPairRefusesBadSeedsAndGroups(t *testing.T) {
	for _, g := range allGroups() {
		if _, err := newKeyPair(g, make([]byte, g.seedLen()-1)); !errors.Is(err, errSeed) {
			t.Errorf("%s: a seed one octet short gave %v, want %v", g, err, errSeed)
		}
	}
	for _, g := range []DHGroup{DHNone, 2, 5, 18, 65535} {
		if _, err := newKeyPair(g, make([]byte, 1000)); !errors.Is(err, errGroup) {
			t.Errorf("group %d gave %v, want %v", uint16(g), err, errGroup)
		}
		if g.known() || g.publicLen() != 0 || g.seedLen() != 0 {
			t.Errorf("group %d counts as known", uint16(g))
		}
	}
}

func TestWipedKeyPairIsUseless(t *testing.T) {
	for _, g := range allGroups() {
		k := mustPair(t, g, "gone")
		private := k.exponent
		k.wipe()
		if _, err := k.shared(mustPair(t, g, "peer").public()); !errors.Is(err, errKeyErased) {
			t.Errorf("%s: a wiped key pair gave %v, want %v", g, err, errKeyErased)
		}
		if !bytes.Equal(private, make([]byte, len(private))) {
			t.Errorf("%s: the exponent is still in memory", g)
		}
	}
}

func TestGroupNames(t *testing.T) {
	for g, want := range map[DHGroup]string{MODP2048: "MODP_2048", ECP521: "ECP_521", Curve25519: "CURVE_25519",
		DHNone: "NONE", 2: "DH_2"} {
		if g.String() != want {
			t.Errorf("group %d is called %q, want %q", uint16(g), g, want)
		}
	}
}
