package esp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"postern/esp/ctaes"
)

// What the other tests go through is all that there is.
func TestNoSuiteIsForgotten(t *testing.T) {
	known := allSuites()
	found := 0
	for encr := range EncrID(1 << 10) {
		for integ := range IntegID(64) {
			for _, bits := range []uint16{0, 64, 128, 192, 256, 512} {
				s := Suite{Encr: encr, KeyBits: bits, Integ: integ}
				if s.Validate() != nil {
					continue
				}
				found++
				if !slices.Contains(known, s) {
					t.Errorf("%v is accepted, and not tested", s)
				}
			}
		}
	}
	if 2*found != len(known) {
		t.Errorf("%d suites are accepted, with and without ESN, %d are tested", 2*found, len(known))
	}
}

// RFC 4303 section 5: at least one of the two has to be there.
func TestNothingAtAllIsRefusedEverywhere(t *testing.T) {
	for _, s := range []Suite{{Encr: EncrNull}, {Encr: EncrNone}, {Encr: EncrNull, ESN: true}} {
		for _, dir := range []Direction{In, Out} {
			sa := &SA{SPI: 300, Dir: dir, Suite: s}
			var err error
			if dir == In {
				_, err = NewInbound(sa, 1)
			} else {
				_, err = NewOutbound(sa, 1)
			}
			if err == nil {
				t.Errorf("%v: an SA was made that protects nothing", s)
			}
		}
	}
	if err := (Suite{Encr: EncrNull}).Validate(); err == nil || !strings.Contains(err.Error(), "protects nothing") {
		t.Errorf("NULL without integrity: %v, which does not say what is wrong", err)
	}
	for _, integ := range []IntegID{IntegAES128GMAC, IntegAES192GMAC, IntegAES256GMAC} {
		if err := (Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: integ}).Validate(); err == nil || !strings.Contains(err.Error(), "AH") {
			t.Errorf("%v in ESP: %v, want to read that it is for AH", integ, err)
		}
	}
}

// Senders that share a multicast SA count alike.
func TestImplicitIVsAreNotForMulticast(t *testing.T) {
	group, host := netip.MustParseAddrPort("239.1.2.3:0"), netip.MustParseAddrPort("192.0.2.1:0")
	group6 := netip.MustParseAddrPort("[ff02::5]:0")
	for _, s := range allSuites() {
		implicit := s.Encr >= EncrAESCCM8IIV && s.Encr <= EncrChaCha20Poly1305IIV
		for _, c := range []struct {
			local, remote netip.AddrPort
			refused       bool
		}{
			{host, group, true}, {host, group6, true}, {group, host, true}, {host, host, false},
		} {
			sa := testSA(s, Out)
			sa.Local, sa.Remote = c.local, c.remote
			_, err := NewOutbound(sa, 1)
			if (err != nil) != (implicit && c.refused) {
				t.Errorf("%v from %v to %v: %v", s, c.local, c.remote, err)
			}
			sa.Dir = In
			if _, err := NewInbound(sa, 1); (err != nil) != (implicit && c.refused) {
				t.Errorf("%v from %v to %v, inbound: %v", s, c.local, c.remote, err)
			}
		}
	}
}

// RFC 8750 defines nothing but the IV: a packet with an implicit one is the packet that the
// cipher makes with that IV in it, without it.
func TestImplicitIVIsTheSequenceNumberNotSent(t *testing.T) {
	for implicit, explicit := range map[EncrID]EncrID{
		EncrAESCCM8IIV: EncrAESCCM8, EncrAESGCM16IIV: EncrAESGCM16, EncrChaCha20Poly1305IIV: EncrChaCha20Poly1305,
	} {
		for _, esn := range []bool{false, true} {
			for _, seq := range []uint64{1, 77, 1<<32 - 2, 5<<32 + 9} {
				if !esn && seq>>32 != 0 {
					continue
				}
				s := Suite{Encr: explicit, KeyBits: 128, ESN: esn}
				if explicit == EncrChaCha20Poly1305 {
					s.KeyBits = 0
				}
				sa := testSA(s, Out)
				payload := fill(int64(seq), 90)
				with := refSeal(sa, seq, be(seq, 8), refPlain(payload, 4, 4))
				want := slices.Concat(with[:8], with[16:])

				sa.Suite.Encr = implicit
				o, err := NewOutbound(sa, 1)
				if err != nil {
					t.Fatal(err)
				}
				o.seq.Store(seq - 1)
				pkt := seal(t, o, payload, 4)
				if !bytes.Equal(pkt, want) {
					t.Fatalf("%v: packet %#x is\n%x, with the IV taken out it is\n%x", sa.Suite, seq, pkt, want)
				}
				sa.Dir, sa.ReplayWindow = In, 64
				in, err := NewInbound(sa, 1)
				if err != nil {
					t.Fatal(err)
				}
				in.win.top.Store(seq - 1)
				if inner, _, err := in.Open(0, pkt); err != nil || !bytes.Equal(inner, payload) {
					t.Errorf("%v: packet %#x opens to %x, %v", sa.Suite, seq, inner, err)
				}
			}
		}
	}
}

// The case of draft-mcgrew-gcm-test-01 for ENCR_NULL_AUTH_AES_GMAC.
func TestOpenPublishedGMAC(t *testing.T) {
	plain := unhex(t, `45000030da3a00008001df3bc0a80005c0a800010800c6cd02000700
		6162636465666768696a6b6c6d6e6f707172737401020201`)
	sa := &SA{
		SPI: 0x4321, Dir: In, ReplayWindow: 64, Suite: Suite{Encr: EncrNullAuthAESGMAC, KeyBits: 128},
		EncrKey: unhex(t, "4c80cdefbb5d10da906ac73c3613a634 22433c64"),
	}
	pkt := slices.Concat(unhex(t, "00004321 00000007 0000000000000000"), plain, unhex(t, "f2a9a836e155106aa8dcd618e4099aaa"))
	checkVector(t, sa, 7, pkt, plain)
}

// The packets of RFC 3686 section 6, with its longest texts as plaintexts: they are whole ones when
// their last octets are read as padding, pad length and next header.
func TestOpenPublishedCTR(t *testing.T) {
	for _, v := range []struct{ key, nonce, iv, cipher string }{
		{"7691be035e5020a8ac6e618529f9a0dc", "00e0017b", "27777f3f4a1786f0",
			"c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f"},
		{"02bf391ee8ecb159b959617b0965279bf59b60a786d3e0fe", "0007bdfd", "5cbd60278dcc0912",
			"96893fc55e5c722f540b7dd1ddf7e758d288bc95c69165884536c811662f2188abee0935"},
		{"ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d", "001cc5b7", "51a51d70a1c11148",
			"eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8"},
	} {
		for _, integ := range espMACs {
			s := Suite{Encr: EncrAESCTR, KeyBits: uint16(len(v.key) * 4), Integ: integ}
			_, n := s.KeyLens()
			sa := &SA{SPI: 0x1000, Dir: In, Suite: s, EncrKey: unhex(t, v.key+v.nonce), IntegKey: fill(3, n)}
			text := slices.Concat(unhex(t, v.cipher), nil)
			pkt := slices.Concat(be(uint64(sa.SPI), 4), be(1, 4), unhex(t, v.iv), text)
			pkt = append(pkt, refICV(sa, pkt, 1)...)
			in, err := NewInbound(sa, 1)
			if err != nil {
				t.Fatal(err)
			}
			c, err := in.keys.get(&in.slots, 0)
			if err != nil {
				t.Fatal(err)
			}
			// The plaintext counts from 0 to 0x23; as a packet its padding would be wrong.
			if !c.do.open(pkt, 1, int(in.shape.front), int(in.shape.front)+len(text)) {
				t.Fatalf("%v: the packet is not authentic", s)
			}
			want := make([]byte, len(text))
			for i := range want {
				want[i] = byte(i)
			}
			if got := pkt[16 : 16+len(text)]; !bytes.Equal(got, want) {
				t.Errorf("%v: the text is %x, want %x", s, got, want)
			}
		}
	}
}

// The macs that AH takes: RFC 3566, RFC 4494 section 4, and GMAC as GCM over nothing, with the
// lengths that AH needs.
func TestPublishedIntegrityTransforms(t *testing.T) {
	defer ctaes.Use(ctaes.Current())
	for _, r := range append(ctaes.Routines(ctaes.Detect()), ctaes.Library) {
		if err := ctaes.Use(r); err != nil {
			t.Fatal(err)
		}
		for _, v := range []struct {
			integ          IntegID
			key, data, icv string
		}{
			{IntegAESXCBC96, "000102030405060708090a0b0c0d0e0f", "", "75f0251d528ac01c4573dfd5"},
			{IntegAESXCBC96, "000102030405060708090a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f10111213", "47f51b4564966215b8985c63"},
			{IntegAESCMAC96, "2b7e151628aed2a6abf7158809cf4f3c", "", "bb1d6929e95937287fa37d12"},
			{IntegAESCMAC96, "2b7e151628aed2a6abf7158809cf4f3c", "6bc1bee22e409f96e93d7e117393172a", "070a16b46b4d4144f79bdd9d"},
			{IntegAESCMAC96, "2b7e151628aed2a6abf7158809cf4f3c",
				"6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411", "dfa66747de9ae63030ca3261"},
			{IntegAES128GMAC, strings.Repeat("00", 20), "", "58e2fccefa7e3061367f1d57a4e7455a"},
			{IntegAES256GMAC, strings.Repeat("00", 36), "", "530f8afbc74536b9a963b4f1c4cb738b"},
		} {
			row, ok := v.integ.row()
			if !ok {
				t.Fatalf("%v is not there", v.integ)
			}
			key, want := unhex(t, v.key), unhex(t, v.icv)
			if len(key) != row.key || len(want) != row.icv || row.iv%4 != 0 || (row.iv+row.icv)%4 != 0 {
				t.Errorf("%v: key of %d, ICV of %d, IV of %d octets", v.integ, row.key, row.icv, row.iv)
			}
			m, err := row.newMAC(key)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				m.Reset()
				if iv, ok := m.(ivMAC); ok {
					iv.SetIV(make([]byte, row.iv))
				}
				_, _ = m.Write(unhex(t, v.data))
				if got := m.Sum(nil)[:row.icv]; !bytes.Equal(got, want) {
					t.Errorf("%v of %s is %x, published is %s", v.integ, v.data, got, v.icv)
				}
			}
		}
	}
}

// An AEAD's tag is compared in its whole length: a packet whose ICV is right but for its last octet is a
// forgery, also where the ICV has 8 octets of what the cipher would make.
func TestShortICVsAreCheckedWhole(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		good := seal(t, o, fill(4, 33), 4)
		text := bytes.Clone(good[in.shape.front : len(good)-int(in.shape.icv)])
		for i := range int(in.shape.icv) {
			bad := bytes.Clone(good)
			bad[len(bad)-1-i] ^= 0x40
			if _, _, err := in.Open(0, bad); err != ErrAuth {
				t.Fatalf("%v: octet %d of the ICV changed: %v, want %v", s, int(in.shape.icv)-1-i, err, ErrAuth)
			}
			// The plaintext may not stand where the ciphertext did, unless it always does.
			if left := bad[in.shape.front : len(bad)-int(in.shape.icv)]; s.Encr != EncrNull && s.Encr != EncrNullAuthAESGMAC &&
				bytes.Contains(left, fill(4, 33)[:16]) && !bytes.Equal(left, text) {
				t.Fatalf("%v: the plaintext of a forgery is left in the buffer", s)
			}
		}
		if n := binary.BigEndian.Uint32(good[4:]); n != 1 {
			t.Fatalf("%v: sequence number %d, want 1", s, n)
		}
	}
}
