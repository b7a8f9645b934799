package ike

import (
	"bytes"
	"crypto/hmac"
	"testing"
)

func allPRFs() []PRFID {
	return []PRFID{PRFHMACSHA1, PRFHMACSHA256, PRFHMACSHA384, PRFHMACSHA512, PRFAES128XCBC, PRFAES128CMAC}
}

// RFC 4434 section 2.1 and RFC 4615 section 4.
func TestPRFVectorsOfAES(t *testing.T) {
	msg := octets(t, "000102030405060708090a0b0c0d0e0f10111213")
	for _, v := range []struct {
		prf       PRFID
		key, want string
	}{
		{PRFAES128XCBC, "000102030405060708090a0b0c0d0e0f", "47f51b4564966215b8985c63055ed308"},
		{PRFAES128XCBC, "00010203040506070809", "0fa087af7d866e7653434e602fdde835"},
		{PRFAES128XCBC, "000102030405060708090a0b0c0d0e0fedcb", "8cd3c93ae598a9803006ffb67c40e9e4"},
		{PRFAES128CMAC, "000102030405060708090a0b0c0d0e0fedcb", "84a348a4a45d235babfffc0d2b4da09a"},
		{PRFAES128CMAC, "000102030405060708090a0b0c0d0e0f", "980ae87b5f4c9c5214f5b6a8455e4c2d"},
		{PRFAES128CMAC, "00010203040506070809", "290d9e112edb09ee141fcf64c0b72f3d"},
	} {
		if got := v.prf.sum(octets(t, v.key), msg[:7], nil, msg[7:]); !bytes.Equal(got, octets(t, v.want)) {
			t.Errorf("%s with key %s is %x, the RFC says %s", v.prf, v.key, got, v.want)
		}
	}
}

// refPRF is the PRF, HMAC from the library; that of AES has the RFCs' vectors for every length of keys.
func refPRF(p PRFID, key []byte, data ...[]byte) []byte {
	if p.hash() == nil {
		return p.sum(key, bytes.Join(data, nil))
	}
	h := hmac.New(p.hash(), key)
	h.Write(bytes.Join(data, nil))
	return h.Sum(nil)
}

// Cases 1, 2 and 6 of RFC 4231, and of RFC 2202 for SHA-1 (whose case 6 has a key of 80
// octets; the third value is for RFC 4231's key of 131).
func TestPRFVectors(t *testing.T) {
	inputs := [3]struct{ key, data []byte }{
		{bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There")},
		{[]byte("Jefe"), []byte("what do ya want for nothing?")},
		{bytes.Repeat([]byte{0xaa}, 131), []byte("Test Using Larger Than Block-Size Key - Hash Key First")},
	}
	for p, want := range map[PRFID][3]string{
		PRFHMACSHA1: {"b617318655057264e28bc0b6fb378c8ef146be00",
			"effcdf6ae5eb2fa2d27416d5f184df9c259a7c79", "90d0dace1c1bdc957339307803160335bde6df2b"},
		PRFHMACSHA256: {"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
			"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
			"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
		PRFHMACSHA384: {`afd03944d84895626b0825f4ab46907f15f9dadbe4101ec6
			82aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6`,
			`af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47
			e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649`,
			`4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f
			3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952`},
		PRFHMACSHA512: {`87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde
			daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854`,
			`164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554
			9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737`,
			`80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352
			6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598`},
	} {
		for i, in := range inputs {
			w := octets(t, want[i])
			if got := p.sum(in.key, in.data[:3], nil, in.data[3:]); !bytes.Equal(got, w) {
				t.Errorf("%s, input %d: %x, the RFC says %x", p, i, got, w)
			}
		}
		if p.keyLen() != len(octets(t, want[0])) {
			t.Errorf("%s: key length %d, output length %d", p, p.keyLen(), len(octets(t, want[0])))
		}
	}
}

// refPlus is prf+ as RFC 7296 section 2.13 spells it, block by block.
func refPlus(p PRFID, key, seed []byte, n int) []byte {
	var out, block []byte
	for i := 1; len(out) < n; i++ {
		block = refPRF(p, key, block, seed, []byte{byte(i)})
		out = append(out, block...)
	}
	return out[:n]
}

func TestPRFPlusAtEveryBlockBoundary(t *testing.T) {
	key, seed := stream("key", 40), stream("seed", 77)
	for _, p := range allPRFs() {
		size := p.keyLen()
		for _, n := range []int{0, 1, size - 1, size, size + 1, 2*size - 1, 2 * size, 5*size + 3, 254*size + 1, 255 * size} {
			got := p.plus(key, seed, n)
			if len(got) != n || !bytes.Equal(got, refPlus(p, key, seed, n)) {
				t.Errorf("%s: %d octets of prf+ differ from the definition", p, n)
			}
			if rest := got[n:cap(got)]; !bytes.Equal(rest, make([]byte, len(rest))) {
				t.Errorf("%s: key material beyond the %d octets asked for is left in memory", p, n)
			}
		}
	}
}

func TestPRFPlusRefusesMoreThan255Blocks(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("prf+ went past its one-octet counter, and so repeats key material")
		}
	}()
	PRFHMACSHA256.plus([]byte("key"), []byte("seed"), 255*32+1)
}

func TestPRFNames(t *testing.T) {
	for p, want := range map[PRFID]string{PRFHMACSHA1: "PRF_HMAC_SHA1", PRFHMACSHA256: "PRF_HMAC_SHA2_256",
		PRFHMACSHA384: "PRF_HMAC_SHA2_384", PRFHMACSHA512: "PRF_HMAC_SHA2_512",
		PRFAES128XCBC: "PRF_AES128_XCBC", PRFAES128CMAC: "PRF_AES128_CMAC", 3: "PRF_3"} {
		if p.String() != want {
			t.Errorf("PRF %d is called %q, want %q", uint16(p), p, want)
		}
	}
	if n := PRFID(3).keyLen(); n != 0 {
		t.Errorf("an unknown PRF has a key length of %d, want 0", n)
	}
}
