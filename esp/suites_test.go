package esp

import (
	"math/rand"
	"strings"
	"testing"
)

// The transforms that there are, by what goes with them.
var (
	keyBits  = []uint16{128, 192, 256}
	espMACs  = []IntegID{IntegHMACSHA196, IntegAESXCBC96, IntegAESCMAC96, IntegHMACSHA256_128, IntegHMACSHA384_192, IntegHMACSHA512_256}
	aesAEADs = []EncrID{EncrAESGCM16, EncrAESGCM12, EncrAESGCM8, EncrAESCCM16, EncrAESCCM12, EncrAESCCM8,
		EncrAESGCM16IIV, EncrAESCCM8IIV, EncrNullAuthAESGMAC}
)

// allSuites returns every suite that Validate accepts, without and with ESN.
func allSuites() []Suite {
	var out []Suite
	for _, esn := range []bool{false, true} {
		for _, e := range aesAEADs {
			for _, bits := range keyBits {
				out = append(out, Suite{Encr: e, KeyBits: bits, ESN: esn})
			}
		}
		out = append(out, Suite{Encr: EncrChaCha20Poly1305, ESN: esn}, Suite{Encr: EncrChaCha20Poly1305IIV, ESN: esn})
		for _, integ := range espMACs {
			for _, bits := range keyBits {
				for _, e := range []EncrID{EncrAESCBC, EncrAESCTR} {
					out = append(out, Suite{Encr: e, KeyBits: bits, Integ: integ, ESN: esn})
				}
			}
			out = append(out, Suite{Encr: EncrNull, Integ: integ, ESN: esn})
		}
	}
	return out
}

// testName is the suite's name as one element of a test's name.
func testName(s Suite) string { return strings.ReplaceAll(s.String(), "/", "+") }

// fill returns n octets that depend on seed alone.
func fill(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// testSA describes an SA of the suite with keys that depend on the suite alone.
func testSA(s Suite, dir Direction) *SA {
	encr, integ := s.KeyLens()
	seed := int64(s.Encr)<<32 | int64(s.KeyBits)<<8 | int64(s.Integ)
	return &SA{
		SPI: 0xc0ffee42, Dir: dir, Suite: s, ReplayWindow: 64,
		EncrKey: fill(seed, encr), IntegKey: fill(seed+1, integ),
	}
}

// testPair returns both ends of an SA, with its description.
func testPair(t testing.TB, s Suite, window int) (*Outbound, *Inbound, *SA) {
	t.Helper()
	sa := testSA(s, Out)
	o, err := NewOutbound(sa, 1)
	if err != nil {
		t.Fatalf("NewOutbound(%v): %v", s, err)
	}
	rev := testSA(s, In)
	rev.ReplayWindow = window
	in, err := NewInbound(rev, 1)
	if err != nil {
		t.Fatalf("NewInbound(%v): %v", s, err)
	}
	return o, in, sa
}

// seal returns a new ESP packet around payload.
func seal(t testing.TB, o *Outbound, payload []byte, next uint8) []byte {
	t.Helper()
	buf := make([]byte, HeadRoom+len(payload)+TailRoom)
	copy(buf[HeadRoom:], payload)
	start, end, err := o.Seal(0, buf, HeadRoom, len(payload), next)
	if err != nil {
		t.Fatalf("Seal of %d octets: %v", len(payload), err)
	}
	return buf[start:end]
}
