package bench

import (
	"slices"
	"testing"

	"postern/ike"
)

// speeds are the algorithms, with these costs of a large packet in both directions.
func speeds(gcm128, gcm256, chacha, cbc int64) []Algorithm {
	list := slices.Clone(algorithms)
	for i, c := range []int64{gcm128, gcm256, chacha, cbc} {
		list[i].Large = Cost{c, c}
	}
	return list
}

func TestReasonComesFromTheFigures(t *testing.T) {
	all := speeds(100, 140, 210, 600)
	slow := speeds(5000, 6000, 1000, 4000)
	for _, tc := range []struct {
		chosen   int
		measured []Algorithm
		aes      AES
		want     string
	}{
		{0, all, AESHardware, "AES-128-GCM is 2.1 × faster here than ChaCha20-Poly1305, and the processor has instructions for AES"},
		{0, all, AESUnknown, "AES-128-GCM is 2.1 × faster here than ChaCha20-Poly1305"},
		{2, slow, AESConstant, "ChaCha20-Poly1305 is 4.0 × faster here than AES-128-CBC, HMAC-SHA256, and AES has no instructions here"},
		{0, slow, AESConstant, "it is preferred by default, though ChaCha20-Poly1305 is 5.0 × faster here"},
		{0, speeds(100, 100, 102, 600), AESUnknown, "AES-128-GCM is as fast here as ChaCha20-Poly1305"},
		{0, all[:1], AESUnknown, "it is the first of the default proposals"},
		{0, all[1:], AESUnknown, "it is the first of the default proposals; it was not measured"},
	} {
		if got := why(algorithms[tc.chosen].Suite, tc.measured, tc.aes); got != tc.want {
			t.Errorf("the reason is\n%q, want\n%q", got, tc.want)
		}
	}
}

func TestChoiceFollowsTheProposalsOfTheDevice(t *testing.T) {
	sys := &System{AES: AESConstant, Proposals: func(p ike.Protocol) []ike.Proposal {
		s := "chacha20poly1305-aes128gcm16-prfsha256-prfsha512-x25519-ecp256"
		if p == ike.ProtoESP {
			s = "chacha20poly1305-aes128gcm16-noesn-esn"
		}
		list, err := ike.ParseProposal(p, s, ike.ChaChaFirst)
		if err != nil {
			t.Fatal(err)
		}
		more, err := ike.ParseProposal(p, "aes256-sha256-modp2048", ike.ChaChaFirst)
		if err != nil {
			t.Fatal(err)
		}
		return append(list, more...)
	}}
	c := choose(sys, speeds(5000, 6000, 1000, 4000))
	if c.ESP != "chacha20poly1305" || c.IKE != "chacha20poly1305-prfsha256-x25519" || c.Suite != algorithms[2].Suite {
		t.Errorf("it chooses %q, %q and %v: the first of each kind was wanted", c.ESP, c.IKE, c.Suite)
	}
	if want := []string{"chacha20poly1305", "aes128gcm16", "aes256"}; !slices.Equal(c.Order, want) {
		t.Errorf("the order is %q, want %q", c.Order, want)
	}
	for _, none := range []*System{{}, {Proposals: func(ike.Protocol) []ike.Proposal { return nil }}} {
		if c := choose(none, nil); c.Suite.Validate() == nil {
			t.Errorf("without proposals it chooses %v", c)
		}
	}
}
