package ike

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAdditionalKeyExchangesInWords(t *testing.T) {
	for _, s := range []string{
		"aes128gcm16-prfsha256-x25519-ke1_mlkem768",
		"aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none",
		"aes128gcm16-prfsha256-ecp256-ke2_mlkem1024-ke2_x25519-ke7_mlkem768-ke7_none",
		"aes128gcm16-prfsha256-mlkem768-ke1_x25519",
	} {
		p := mustProposals(t, ProtoIKE, s)[0]
		if p.String() != s {
			t.Errorf("%s comes back as %s", s, p)
		}
	}
	p := mustProposals(t, ProtoESP, "aes128gcm16-mlkem1024-ke1_ecp384")[0]
	suite, group, err := p.childSuite()
	if err != nil || group != MLKEM1024 || p.additional() != (AddKE{ECP384}) {
		t.Errorf("%v, %v, %v, %v", suite, group, p.additional(), err)
	}
	for s, want := range map[string]string{
		"aes128gcm16-prfsha256-x25519-ke1_x25519":            "of its own",
		"aes128gcm16-prfsha256-x25519-ke1_ecp256-ke2_ecp256": "of its own",
		"aes128gcm16-prfsha256-x25519-ke8_mlkem768":          "unknown word",
		"aes128gcm16-prfsha256-x25519-ke0_mlkem768":          "unknown word",
		"aes128gcm16-prfsha256-x25519-ke1_modpnone":          "unknown word",
		"aes128gcm16-prfsha256-x25519-ke1_aes128":            "unknown word",
		"aes128gcm16-prfsha256-x25519-ke1_":                  "unknown word",
		"aes128gcm16-prfsha256-x25519-ke1_mlkem512":          "unknown word",
		"aes128gcm16-prfsha256-x25519-ke1_none-ke1_none":     "twice",
		"aes128gcm16-prfsha256-ke1_mlkem768":                 "no group",
		"aes128gcm16-prfsha256-mlkem1024":                    "write x25519-ke1_mlkem1024",
	} {
		if _, err := ParseProposal(ProtoIKE, s, AESFirst); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that says %q", s, err, want)
		}
	}
	if _, err := ParseProposal(ProtoESP, "aes128gcm16-ke1_mlkem768", AESFirst); err == nil || !strings.Contains(err.Error(), "no group") {
		t.Errorf("ESP with an additional key exchange and no first one: %v", err)
	}
	if _, err := ParseSuite(ProtoESP, "aes128gcm16-x25519-ke1_mlkem768"); err == nil {
		t.Error("an SA with keys from the configuration has additional key exchanges")
	}
}

// RFC 9370 section 2.2.1: no method twice, an omitted type is NONE, and whoever does not list NONE
// wants the exchange. The responder's order decides, except where a first choice would
// leave a later type without a method.
func TestResponderChoosesMethods(t *testing.T) {
	const base = "aes128gcm16-prfsha256-"
	for _, c := range []struct{ own, offer, want string }{
		{"x25519-ke1_mlkem768", "x25519-ke1_mlkem768", "x25519-ke1_mlkem768"},
		{"x25519-ke1_mlkem768-ke1_none", "x25519-ke1_mlkem768-ke1_none", "x25519-ke1_mlkem768"},
		{"x25519-ke1_none-ke1_mlkem768", "x25519-ke1_mlkem768-ke1_none", "x25519-ke1_none"},
		{"x25519-ke1_mlkem768", "x25519", ""},
		{"x25519", "x25519-ke1_mlkem768", ""},
		{"x25519", "x25519-ke1_mlkem768-ke1_none", "x25519-ke1_none"},
		{"x25519-ke1_mlkem768-ke1_none", "x25519", "x25519"},
		{"x25519-ke2_mlkem768-ke2_mlkem1024-ke3_mlkem768", "x25519-ke2_mlkem768-ke2_mlkem1024-ke3_mlkem768-ke3_mlkem1024",
			"x25519-ke2_mlkem1024-ke3_mlkem768"},
		{"x25519-ke2_mlkem768-ke2_mlkem1024-ke3_mlkem768", "x25519-ke2_mlkem768-ke3_mlkem768-ke3_mlkem1024", ""},
		{"x25519-ecp256-ke1_x25519", "x25519-ecp256-ke1_x25519", "ecp256-ke1_x25519"},
		{"x25519-ke2_mlkem768-ke2_mlkem1024-ke3_mlkem768-ke3_mlkem1024-ke5_ecp521-ke5_none",
			"x25519-ke2_mlkem768-ke2_mlkem1024-ke3_mlkem768-ke3_mlkem1024-ke5_ecp384-ke5_none", "x25519-ke2_mlkem768-ke3_mlkem1024-ke5_none"},
	} {
		own, offer := mustProposals(t, ProtoIKE, base+c.own), mustProposals(t, ProtoIKE, base+c.offer)
		p, ok := chooseProposal(own, offer, Curve25519, false)
		if !ok {
			if c.want != "" {
				t.Errorf("%s answers %s: no choice, want %s", c.own, c.offer, c.want)
			}
			continue
		}
		if got := strings.TrimPrefix(p.String(), base); got != c.want {
			t.Errorf("%s answers %s: %s, want %q", c.own, c.offer, got, c.want)
		}
		if _, err := p.ikeSuite(); err != nil || !checkChosen(p, numbered(offer, nil)) {
			t.Errorf("%s answers %s: %v, and the initiator does not take that: %v", c.own, c.offer, p, err)
		}
	}
}

// What an initiator must not take: a method twice, an exchange left out that it wants, one that
// it has not asked for (section 2.2.1).
func TestInitiatorChecksTheMethods(t *testing.T) {
	offer := mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519-ecp256-ke1_mlkem768-ke1_ecp256-ke2_mlkem768-ke2_mlkem1024-ke3_ecp384-ke3_none")
	head := offer[0].Transforms[:2]
	add := func(n, id int) Transform { return Transform{Type: TransformType(5 + n), ID: uint16(id)} }
	group := func(id DHGroup) Transform { return Transform{Type: TransformDH, ID: uint16(id)} }
	for _, c := range []struct {
		what string
		ts   []Transform
		ok   bool
	}{
		{"all", []Transform{group(Curve25519), add(1, 36), add(2, 37), add(3, 20)}, true},
		{"what may be left out", []Transform{group(Curve25519), add(1, 36), add(2, 37), add(3, 0)}, true},
		{"what may be left out, unsaid", []Transform{group(Curve25519), add(1, 36), add(2, 37)}, true},
		{"one twice", []Transform{group(Curve25519), add(1, 36), add(2, 36), add(3, 0)}, false},
		{"the group again", []Transform{group(ECP256), add(1, 19), add(2, 36), add(3, 0)}, false},
		{"one left out", []Transform{group(Curve25519), add(1, 36), add(3, 0)}, false},
		{"NONE where it is not offered", []Transform{group(Curve25519), add(1, 0), add(2, 36), add(3, 0)}, false},
		{"a type that is not offered", []Transform{group(Curve25519), add(1, 36), add(2, 37), add(3, 0), add(4, 21)}, false},
		{"a method that is not offered", []Transform{group(Curve25519), add(1, 36), add(2, 20), add(3, 0)}, false},
		{"two of a type", []Transform{group(Curve25519), add(1, 36), add(1, 19), add(2, 37), add(3, 0)}, false},
	} {
		p := Proposal{Num: 1, Proto: ProtoIKE, Transforms: slices.Concat(head, c.ts)}
		_, err := p.ikeSuite()
		if ok := checkChosen(p, numbered(offer, nil)) && err == nil; ok != c.ok {
			t.Errorf("%s: taken %v, want %v (%v)", c.what, ok, c.ok, err)
		}
	}
}

// However many alternatives a hostile offer has, choosing takes no time to speak of.
func TestChoosingMethodsIsBounded(t *testing.T) {
	var all, few []string
	for n := '1'; n <= '7'; n++ {
		for _, m := range []string{"mlkem768", "mlkem1024", "ecp256", "ecp384", "ecp521", "modp2048", "modp3072", "modp4096"} {
			all = append(all, "ke"+string(n)+"_"+m)
			if m < "modp" && m != "ecp521" {
				few = append(few, "ke"+string(n)+"_"+m)
			}
		}
	}
	own := mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519-"+strings.Join(all, "-"))
	offer := Proposal{Num: 1, Proto: ProtoIKE, Transforms: slices.Clone(own[0].Transforms[:3])}
	for _, w := range few {
		tr, _ := wordTransform(w)
		offer.Transforms = append(offer.Transforms, tr)
	}
	start := time.Now()
	for range 64 {
		if _, ok := chooseProposal(own, []Proposal{offer}, Curve25519, false); ok {
			t.Fatal("seven exchanges with four methods")
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("64 proposals took %v", d)
	}
}

func TestSuiteNamesItsMethods(t *testing.T) {
	s, err := mustProposals(t, ProtoIKE, "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke3_ecp256")[0].ikeSuite()
	if want := "AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519/KE1_ML_KEM_768/KE3_ECP_256"; err != nil || s.String() != want {
		t.Errorf("%s, %v; want %s", s, err, want)
	}
	if p := s.proposal(); p.String() != "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke3_ecp256" {
		t.Errorf("as a proposal it is %s", p)
	}
}

// The first message of the default stays well below the size of a datagram that every path
// passes, and has proposals without additional key exchanges for those who do not know them.
func TestFirstMessageOfTheDefaultIsSmall(t *testing.T) {
	for _, order := range orders {
		p := newPair(t, func(a, b *Conn) {
			a.Proposals, b.Proposals = DefaultProposals(ProtoIKE, order), DefaultProposals(ProtoIKE, order)
		})
		n := 0
		p.a.mangle = func(o *Output) bool {
			if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeInit {
				n = len(o.Data)
			}
			return true
		}
		p.up()
		if n == 0 || n > 900 {
			t.Errorf("%v: a datagram of %d octets", order, n)
		}
		p.b.m.List(func(s *SAInfo) bool {
			if s.Suite.DH != Curve25519 || s.Suite.KE != (AddKE{MLKEM768}) {
				t.Errorf("two sides with the default agree on %v", s.Suite)
			}
			return true
		})
		plain := withoutAddKE(DefaultProposals(ProtoIKE, order))
		if len(plain)*2 != len(DefaultProposals(ProtoIKE, order)) || offersAddKE(plain) {
			t.Errorf("%v: %d proposals without additional key exchanges", order, len(plain))
		}
	}
}
