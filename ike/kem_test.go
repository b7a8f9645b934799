package ike

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha3"
	"encoding/hex"
	"errors"
	"testing"
)

// The accumulated known answers for ML-KEM-768 of C2SP's CCTV (ML-KEM/accumulated): key pairs,
// ciphertexts, shared keys, and what decapsulation makes of random ciphertexts, all from one
// stream. Here the key pairs and the decapsulation are those that the exchange uses.
func TestMLKEMKnownAnswers(t *testing.T) {
	const n, want = 100, "1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415"
	in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = in.Read(b)
		return b
	}
	write := func(b []byte) { _, _ = out.Write(b) }
	for range n {
		k, err := newKeyPair(MLKEM768, read(MLKEM768.seedLen()))
		if err != nil {
			t.Fatal(err)
		}
		write(k.public())
		ek, err := mlkem.NewEncapsulationKey768(k.public())
		if err != nil {
			t.Fatal(err)
		}
		shared, ct, err := mlkemtest.Encapsulate768(ek, read(32))
		if err != nil {
			t.Fatal(err)
		}
		write(ct)
		write(shared)
		if got, err := k.shared(ct); err != nil || !bytes.Equal(got, shared) {
			t.Fatalf("the initiator gets %x, %v; the responder has %x", got, err, shared)
		}
		implicit, err := k.shared(read(MLKEM768.answerLen()))
		if err != nil {
			t.Fatalf("a ciphertext of the right length is to be taken (FIPS 203 section 7.3): %v", err)
		}
		write(implicit)
	}
	var sum [32]byte
	_, _ = out.Read(sum[:])
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("the accumulated answers are %s, want %s", got, want)
	}
}

func TestBothHalvesOfMLKEMAgree(t *testing.T) {
	for g, lens := range map[DHGroup][2]int{MLKEM768: {1184, 1088}, MLKEM1024: {1568, 1568}} {
		if g.publicLen() != lens[0] || g.answerLen() != lens[1] || !g.encapsulates() || !g.known() {
			t.Errorf("%s: %d and %d octets, want those of the draft's table, %v", g, g.publicLen(), g.answerLen(), lens)
		}
		seed := stream("d | z", 64)
		first := Work{group: g, seed: bytes.Clone(seed)}
		a := first.Run()
		if a.err != nil || len(a.pair.public()) != lens[0] {
			t.Fatalf("%s: %v", g, a.err)
		}
		if again, err := newKeyPair(g, seed); err != nil || !bytes.Equal(again.public(), a.pair.public()) {
			t.Errorf("%s: the same seed gives another key: %v", g, err)
		}
		second := Work{group: g, peer: a.pair.public()}
		b := second.Run()
		if b.err != nil || len(b.pair.public()) != lens[1] || len(b.shared) != 32 {
			t.Fatalf("%s: %v, %d and %d octets", g, b.err, len(b.pair.public()), len(b.shared))
		}
		third := Work{group: g, pair: a.pair, peer: b.pair.public()}
		if c := third.Run(); c.err != nil || !bytes.Equal(c.shared, b.shared) {
			t.Errorf("%s: the initiator has another key than the responder: %v", g, c.err)
		}
		spoiled := bytes.Clone(b.pair.public())
		spoiled[7] ^= 1
		if c, err := a.pair.shared(spoiled); err != nil || bytes.Equal(c, b.shared) {
			t.Errorf("%s: a changed ciphertext gives the same key, or an error: %v", g, err)
		}
		a.pair.wipe()
		if _, err := a.pair.shared(b.pair.public()); err == nil {
			t.Errorf("%s: an erased key still works", g)
		}
	}
}

// FIPS 203 sections 7.2 and 7.3: the lengths, and the modulus check of an encapsulation key, all
// coefficients of which have to be below 3329.
func TestMalformedMLKEMValuesAreRefused(t *testing.T) {
	for _, g := range []DHGroup{MLKEM768, MLKEM1024} {
		k, err := newKeyPair(g, stream("seed", 64))
		if err != nil {
			t.Fatal(err)
		}
		coefficient := bytes.Clone(k.public())
		coefficient[0], coefficient[1] = 0x01, coefficient[1]&0xf0|0x0d // 3329
		for what, ek := range map[string][]byte{
			"empty": {}, "short": k.public()[1:], "long": append(bytes.Clone(k.public()), 0), "not reduced": coefficient,
			"all ones": bytes.Repeat([]byte{0xff}, g.publicLen()),
		} {
			w := Work{group: g, peer: ek}
			if r := w.Run(); !errors.Is(r.err, errPublic) || r.shared != nil {
				t.Errorf("%s, an encapsulation key that is %s: %v, want errPublic", g, what, r.err)
			}
		}
		for _, n := range []int{0, 1, g.answerLen() - 1, g.answerLen() + 1, 65535} {
			if _, err := k.shared(make([]byte, n)); !errors.Is(err, errPublic) {
				t.Errorf("%s, a ciphertext of %d octets: %v, want errPublic", g, n, err)
			}
		}
		if _, err := newKeyPair(g, make([]byte, 63)); err == nil {
			t.Errorf("%s: a seed of 63 octets is taken", g)
		}
	}
}

func FuzzEncapsulate(f *testing.F) {
	k, _ := newKeyPair(MLKEM768, make([]byte, 64))
	f.Add(false, k.public())
	k, _ = newKeyPair(MLKEM1024, make([]byte, 64))
	f.Add(true, k.public())
	f.Fuzz(func(t *testing.T, large bool, ek []byte) {
		g := MLKEM768
		if large {
			g = MLKEM1024
		}
		pair, shared, err := encapsulate(g, ek)
		if err == nil && (len(ek) != g.publicLen() || len(pair.public()) != g.answerLen() || len(shared) != 32) ||
			err != nil && !errors.Is(err, errPublic) {
			t.Fatalf("%d octets: %v", len(ek), err)
		}
	})
}
