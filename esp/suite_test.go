package esp

import "testing"

func TestSuiteNamesAndKeyLengths(t *testing.T) {
	for _, c := range []struct {
		s           Suite
		name        string
		encr, integ int
	}{
		{Suite{Encr: EncrAESGCM16, KeyBits: 128}, "AES_GCM_16_128", 20, 0},
		{Suite{Encr: EncrAESGCM16, KeyBits: 192}, "AES_GCM_16_192", 28, 0},
		{Suite{Encr: EncrAESGCM16, KeyBits: 256, ESN: true}, "AES_GCM_16_256/ESN", 36, 0},
		{Suite{Encr: EncrChaCha20Poly1305}, "CHACHA20_POLY1305", 36, 0},
		{Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: IntegHMACSHA196}, "AES_CBC_128/HMAC_SHA1_96", 16, 20},
		{Suite{Encr: EncrAESCBC, KeyBits: 192, Integ: IntegHMACSHA384_192}, "AES_CBC_192/HMAC_SHA2_384_192", 24, 48},
		{Suite{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA256_128}, "AES_CBC_256/HMAC_SHA2_256_128", 32, 32},
		{Suite{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA512_256, ESN: true}, "AES_CBC_256/HMAC_SHA2_512_256/ESN", 32, 64},
		{Suite{Encr: EncrNull, Integ: IntegAESXCBC96}, "NULL/AES_XCBC_96", 0, 16},
		{Suite{Encr: EncrAESCTR, KeyBits: 128, Integ: IntegAESCMAC96, ESN: true}, "AES_CTR_128/AES_CMAC_96/ESN", 20, 16},
		{Suite{Encr: EncrAESCTR, KeyBits: 256, Integ: IntegHMACSHA512_256}, "AES_CTR_256/HMAC_SHA2_512_256", 36, 64},
		{Suite{Encr: EncrAESCCM8, KeyBits: 128}, "AES_CCM_8_128", 19, 0},
		{Suite{Encr: EncrAESCCM12, KeyBits: 192}, "AES_CCM_12_192", 27, 0},
		{Suite{Encr: EncrAESCCM16, KeyBits: 256}, "AES_CCM_16_256", 35, 0},
		{Suite{Encr: EncrAESGCM8, KeyBits: 128}, "AES_GCM_8_128", 20, 0},
		{Suite{Encr: EncrAESGCM12, KeyBits: 256}, "AES_GCM_12_256", 36, 0},
		{Suite{Encr: EncrNullAuthAESGMAC, KeyBits: 192}, "NULL_AES_GMAC_192", 28, 0},
		{Suite{Encr: EncrAESCCM8IIV, KeyBits: 128}, "AES_CCM_8_IIV_128", 19, 0},
		{Suite{Encr: EncrAESGCM16IIV, KeyBits: 256, ESN: true}, "AES_GCM_16_IIV_256/ESN", 36, 0},
		{Suite{Encr: EncrChaCha20Poly1305IIV}, "CHACHA20_POLY1305_IIV", 36, 0},
	} {
		if err := c.s.Validate(); err != nil {
			t.Errorf("%v: %v", c.s, err)
		}
		if got := c.s.String(); got != c.name {
			t.Errorf("String() = %q, want %q", got, c.name)
		}
		if e, i := c.s.KeyLens(); e != c.encr || i != c.integ {
			t.Errorf("%v: KEYMAT of %d and %d octets, want %d and %d", c.s, e, i, c.encr, c.integ)
		}
	}
}

func TestSuiteValidateRejects(t *testing.T) {
	for _, s := range []Suite{
		{},
		{Encr: 3, Integ: IntegHMACSHA196},
		{Encr: EncrAESGCM16},
		{Encr: EncrAESGCM16, KeyBits: 129},
		{Encr: EncrAESGCM16, KeyBits: 128, Integ: IntegHMACSHA256_128},
		{Encr: EncrChaCha20Poly1305, KeyBits: 256},
		{Encr: EncrChaCha20Poly1305, Integ: IntegHMACSHA256_128},
		{Encr: EncrAESCBC, KeyBits: 128},
		{Encr: EncrAESCBC, KeyBits: 512, Integ: IntegHMACSHA256_128},
		{Encr: EncrAESCBC, KeyBits: 128, Integ: 1},
		{Encr: EncrNull},
		{Encr: EncrNull, KeyBits: 128, Integ: IntegHMACSHA256_128},
		{Encr: EncrAESCTR, KeyBits: 128},
		{Encr: EncrAESCTR, Integ: IntegHMACSHA256_128},
		{Encr: EncrAESCCM8},
		{Encr: EncrAESCCM8, KeyBits: 128, Integ: IntegAESXCBC96},
		{Encr: EncrNullAuthAESGMAC},
		{Encr: EncrNullAuthAESGMAC, KeyBits: 128, Integ: IntegHMACSHA256_128},
		{Encr: EncrChaCha20Poly1305IIV, KeyBits: 256},
		{Encr: EncrNull, Integ: IntegAES128GMAC},
	} {
		if err := s.Validate(); err == nil {
			t.Errorf("%v is accepted", s)
		}
		if e, i := s.KeyLens(); (e != 0 || i != 0) && s.ValidateAH() != nil || s.Overhead() != 0 || s.Front() != 0 || s.MaxInner(1500) != 0 {
			t.Errorf("%v is rejected but has lengths", s)
		}
	}
	if err := (Suite{Integ: IntegHMACSHA256_128}).Validate(); err == nil {
		t.Error("a suite of AH is accepted for ESP")
	}
	for _, c := range []struct{ got, want string }{
		{EncrID(99).String(), "ENCR_99"}, {EncrNone.String(), "NONE"}, {IntegID(99).String(), "INTEG_99"}, {IntegNone.String(), "NONE"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestRoomConstantsFitEverySuite(t *testing.T) {
	head, tail := 0, 0
	for _, s := range allSuites() {
		sh := s.shape()
		head, tail = max(head, sh.front), max(tail, sh.align-1+trailerLen+sh.icv)
		if s.Overhead() != sh.front+sh.align-1+trailerLen+sh.icv {
			t.Errorf("%v: Overhead is %d", s, s.Overhead())
		}
	}
	if HeadRoom != head || HeadRoom%4 != 0 {
		t.Errorf("HeadRoom is %d, the longest header and IV have %d octets", HeadRoom, head)
	}
	if TailRoom < tail || TailRoom >= tail+4 || TailRoom%4 != 0 {
		t.Errorf("TailRoom is %d, the longest trailer has %d octets", TailRoom, tail)
	}
}

// MaxInner is judged by what Seal really makes.
func TestMaxInnerIsTheLongestThatFits(t *testing.T) {
	for _, s := range allSuites() {
		o, _, _ := testPair(t, s, 64)
		for space := range 260 {
			n := s.MaxInner(space)
			if n > 0 && len(seal(t, o, make([]byte, n), 4)) > space {
				t.Errorf("%v: %d octets do not fit into %d", s, n, space)
			}
			if len(seal(t, o, make([]byte, n+1), 4)) <= space {
				t.Errorf("%v: %d octets fit into %d, MaxInner says %d", s, n+1, space, n)
			}
		}
	}
	if got := (Suite{Encr: EncrAESGCM16, KeyBits: 128}).MaxInner(1500 - 20); got != 1446 {
		t.Errorf("AES-GCM over IPv4 with an MTU of 1500 leaves %d octets, want 1446", got)
	}
}
