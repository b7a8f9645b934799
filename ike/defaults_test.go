package ike

import (
	"slices"
	"testing"

	"postern/esp"
)

var orders = []CipherOrder{ChaChaFirst, AESFirst}

func TestDefaultProposalsAreCompleteAndSeparate(t *testing.T) {
	for _, order := range orders {
		for _, proto := range []Protocol{ProtoIKE, ProtoESP} {
			ps, err := ParseProposal(proto, "default", order)
			if err != nil || len(ps) == 0 {
				t.Fatalf("%v, %v: %v, %v; want proposals", order, proto, ps, err)
			}
			for i, p := range ps {
				aead := !p.hasType(TransformInteg) && p.Transforms[0].Type == TransformEncr && combined(p.Transforms[0].ID)
				for _, tr := range p.Transforms {
					if tr.Type == TransformEncr && combined(tr.ID) != aead {
						t.Errorf("%v, %v proposal %d: %v does not belong there", order, proto, i+1, tr)
					}
				}
				if p.hasType(TransformInteg) == aead {
					t.Errorf("%v, %v proposal %d: %v; integrity algorithms go with what is not an AEAD", order, proto, i+1, p)
				}
				one, ok := chooseProposal(ps[i:i+1], offer(t, proto, ps), DHNone, false)
				if !ok {
					t.Errorf("%v, %v proposal %d does not fit itself", order, proto, i+1)
				} else if proto == ProtoESP {
					_, _, err = one.childSuite()
				} else {
					_, err = one.ikeSuite()
				}
				if err != nil {
					t.Errorf("%v, %v proposal %d: %v", order, proto, i+1, err)
				}
			}
		}
		if DefaultProposals(ProtoAH, order) != nil {
			t.Error("there are proposals for AH, which nobody can carry out")
		}
	}
}

// offer returns the proposals as the other side reads them.
func offer(t *testing.T, proto Protocol, ps []Proposal) []Proposal {
	t.Helper()
	ps = slices.Clone(ps)
	for i := range ps {
		ps[i].Num = uint8(i + 1)
		if proto == ProtoESP {
			ps[i].SPI = []byte{1, 2, 3, byte(i)}
		}
	}
	read, err := ParseSA(saBody(t, ps))
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// AES-GCM where it is fast and in constant time only; elsewhere it has to be named. The zero
// order, and one that does not exist, are good everywhere.
func TestDefaultsFollowTheProcessor(t *testing.T) {
	first := func(proto Protocol, o CipherOrder) string {
		return DefaultProposals(proto, o)[0].Transforms[0].String()
	}
	for _, proto := range []Protocol{ProtoIKE, ProtoESP} {
		if got := first(proto, AESFirst); got != "aes128gcm16" {
			t.Errorf("%v with AES instructions begins with %s", proto, got)
		}
		for _, o := range []CipherOrder{0, ChaChaFirst, AESFirst + 1} {
			if got := first(proto, o); got != "chacha20poly1305" {
				t.Errorf("%v without AES instructions begins with %s", proto, got)
			}
			for i, p := range DefaultProposals(proto, o) {
				for _, tr := range p.Transforms {
					if tr.IsAES() && (proto == ProtoIKE || tr.ID == uint16(esp.EncrAESGCM16) || i == 0) {
						t.Errorf("%v without AES instructions has %v in proposal %d", proto, tr, i+1)
					}
				}
			}
		}
	}
	for s, want := range map[string]bool{"aes128gcm16": true, "aes256-sha256": true, "chacha20poly1305": false} {
		ps, err := ParseProposal(ProtoESP, s, ChaChaFirst)
		if err != nil || ps[0].Transforms[0].IsAES() != want {
			t.Errorf("%s by name without AES instructions: %v, %v", s, ps, err)
		}
	}
}

// strongSwanDefaults are the proposals of strongSwan 5.9.8 where nothing is configured, in
// its order. That for ESP was read from its library; in that for IKE the AEADs are those
// of its plugins aes, gcm, ccm and chapoly, which Debian's charon loads.
func strongSwanDefaults(t *testing.T, proto Protocol) []Proposal {
	other := func(p Proposal, kind TransformType, id, bits uint16) Proposal {
		p.Transforms = append(p.Transforms, Transform{Type: kind, ID: id, KeyBits: bits})
		return p
	}
	const ccm16, xcbc96, x448, modp8192 = 16, 5, 32, 18
	if proto == ProtoESP {
		return []Proposal{
			proposals(t, proto, "aes128gcm16-aes192gcm16-aes256gcm16-noesn")[0],
			other(proposals(t, proto, "aes128-aes192-aes256-sha256-sha384-sha512-sha1-noesn")[0], TransformInteg, xcbc96, 0),
		}
	}
	const groups = "-prfsha256-prfsha384-prfsha512-prfsha1-ecp256-ecp384-ecp521-x25519-modp3072-modp4096-modp2048"
	cbc := proposals(t, proto, "aes128-aes192-aes256-sha256-sha384-sha512-sha1"+groups)[0]
	cbc = other(other(other(cbc, TransformInteg, xcbc96, 0), TransformDH, x448, 0), TransformDH, modp8192, 0)
	aead := proposals(t, proto, "aes128gcm16-aes192gcm16-aes256gcm16-chacha20poly1305"+groups)[0]
	aead = other(other(other(aead, TransformEncr, ccm16, 128), TransformDH, x448, 0), TransformDH, modp8192, 0)
	return []Proposal{cbc, aead}
}

// Two sides that configure nothing must come to terms, in both directions and with any
// processors; strongSwan 5.9 is one of them. The responder's order decides.
func TestDefaultsMeet(t *testing.T) {
	for _, proto := range []Protocol{ProtoIKE, ProtoESP} {
		with, without, strongSwan := DefaultProposals(proto, AESFirst), DefaultProposals(proto, ChaChaFirst), strongSwanDefaults(t, proto)
		for _, c := range []struct {
			name                 string
			responder, initiator []Proposal
			ike, esp             string
		}{
			{"AES answers AES", with, with, "aes128gcm16", "aes128gcm16"},
			{"AES answers none", with, without, "chacha20poly1305", "chacha20poly1305"},
			{"none answers AES", without, with, "chacha20poly1305", "chacha20poly1305"},
			{"none answers none", without, without, "chacha20poly1305", "chacha20poly1305"},
			{"AES answers strongSwan", with, strongSwan, "aes128gcm16", "aes128gcm16"},
			{"none answers strongSwan", without, strongSwan, "chacha20poly1305", "aes128"},
			{"strongSwan answers AES", strongSwan, with, "aes128", "aes128gcm16"},
			{"strongSwan answers none", strongSwan, without, "chacha20poly1305", "aes128"},
		} {
			want := c.ike
			if proto == ProtoESP {
				want = c.esp
			}
			got, ok := chooseProposal(c.responder, offer(t, proto, c.initiator), Curve25519, false)
			if !ok || got.Transforms[0].String() != want {
				t.Errorf("%s, %v: %v, %v; expected %s", c.name, proto, got, ok, want)
			} else if !checkChosen(got, offer(t, proto, c.initiator)) {
				t.Errorf("%s, %v: the initiator does not take %v", c.name, proto, got)
			}
		}
	}
}
