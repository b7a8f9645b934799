package ctaes

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"

	"postern/esp/aead/aeadtest"
)

// RFC 3686 section 6: key, nonce and IV, plaintext, ciphertext.
var ctrVectors = []struct{ key, nonce, plain, cipher string }{
	{
		"ae6852f8121067cc4bf7a5765577f39e", "000000300000000000000000",
		"53696e676c6520626c6f636b206d7367",
		"e4095d4fb7a7b3792d6175a3261311b8",
	},
	{
		"7e24067817fae0d743d6ce1f32539163", "006cb6dbc0543b59da48d90b",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
		"5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
	},
	{
		"7691be035e5020a8ac6e618529f9a0dc", "00e0017b27777f3f4a1786f0",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
		"c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f",
	},
	{
		"16af5b145fc9f579c175f93e3bfb0eed863d06ccfdb78515", "0000004836733c147d6d93cb",
		"53696e676c6520626c6f636b206d7367",
		"4b55384fe259c9c84e7935a003cbe928",
	},
	{
		"7c5cb2401b3dc33c19e7340819e0f69c678c3db8e6f6a91a", "0096b03b020c6eadc2cb500d",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
		"453243fc609b23327edfaafa7131cd9f8490701c5ad4a79cfc1fe0ff42f4fb00",
	},
	{
		"02bf391ee8ecb159b959617b0965279bf59b60a786d3e0fe", "0007bdfd5cbd60278dcc0912",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
		"96893fc55e5c722f540b7dd1ddf7e758d288bc95c69165884536c811662f2188abee0935",
	},
	{
		"776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104", "00000060db5672c97aa8f0b2",
		"53696e676c6520626c6f636b206d7367",
		"145ad01dbf824ec7560863dc71e3e0c0",
	},
	{
		"f6d66d6bd52d59bb0796365879eff886c66dd51a5b6a99744b50590c87a23884", "00faac24c1585ef15a43d875",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
		"f05e231b3894612c49ee000b804eb2a9b8306b508f839d6a5530831d9344af1c",
	},
	{
		"ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d", "001cc5b751a51d70a1c11148",
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
		"eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8",
	},
}

func TestPublishedCTR(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		for i, v := range ctrVectors {
			b, err := NewCipher(aeadtest.FromHex(t, v.key))
			if err != nil {
				t.Fatal(err)
			}
			text := aeadtest.FromHex(t, v.plain)
			NewCTR(b).XORKeyStream(text, aeadtest.FromHex(t, v.nonce))
			if !bytes.Equal(text, aeadtest.FromHex(t, v.cipher)) {
				t.Errorf("vector %d is %x, want %s", i+1, text, v.cipher)
			}
		}
	})
}

func TestCTRAsLibraryAtAllLengths(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 700 {
			key, nonce, text := aeadtest.Random(rng, 16+8*(n%3)), aeadtest.Random(rng, NonceSize), aeadtest.Random(rng, n)
			lib, _ := aes.NewCipher(key)
			want := make([]byte, n)
			cipher.NewCTR(lib, append(bytes.Clone(nonce), 0, 0, 0, 1)).XORKeyStream(want, text)
			b, err := NewCipher(key)
			if err != nil {
				t.Fatal(err)
			}
			buf := append(text, 0x5a)
			NewCTR(b).XORKeyStream(buf[:n], nonce)
			if !bytes.Equal(buf[:n], want) || buf[n] != 0x5a {
				t.Fatalf("%d octets are encrypted to %x, want %x", n, buf, want)
			}
		}
	})
}

// AES-CCM with nonces of 11 octets, which neither RFC 3610 nor SP 800-38C has: NIST's CAVS, as in the
// tests of Linux and strongSwan.
var ccmVectors = []struct{ key, nonce, additional, plain, sealed string }{
	{
		"83ac5466c2ebe5052e01d1fc5d82662e", "96ac593007a1e2a2c75524", "",
		"19c881f6e986ff930b7867e5bbb7fc6e8377b3a60c8c9f9c352eade062f991a1",
		"ab6fe1691d1999a892a0c46f7ee28bb170bb8ca64c6e978a572bbe5d98a6b132" + "da24ead9a13998fda4bed9f21a6d22a8",
	},
	{
		"1e2c7e01419aefc00d58966e5ca24bd3", "4fa319d3015ad830601556", "dae6289c452dfd635eda4cb6e6fcf9b70c56cbe4e0057ae10a630978bc2c55de",
		"87a336fd96b39378a92863ba12a31485571e06c97b21ef767f387e8e29a43e7e",
		"8a1e11f0026be219fc70c46d8eb799abc54ba2acd3f348ff3bb5ce53efdebb02" + "a986156c13feda0a22b8293dd8399a23",
	},
	{
		"f46bc27562feb4e1a3f0ffdd4e4b1275531473668d88f680", "a0203526f2218d5020dae2", "5b9e1367025eefc16cf9d71e528f7a47e9d4cf20146ef02dd89e2b56102356e7",
		"", "36ea7a7008dc6abcad0c7a63f661fd9b",
	},
	{
		"56df5c8f263f0e42ef7ad3cefc846062cab440af5fc9c901", "d63c8c8684b6cdef092e94", "0265783ce9213091b1b9da769a786d95f28832a3f250cb4ce300736984698779",
		"9fd2024b5249313c43693a2d8e70ad7ee0e54609808913b28c8bd93f86fbb56b",
		"39df7c3c5a29b9625d51c216d8bd069f9b6a0970c15183c266881d4f9adae01e" + "c7791158e56b20407aea46428be46fe1",
	},
	{
		"e08d997160d7971abd0199d58adf713ad3df244b5e3d4b4e307ab9d8530a5e2b", "1e2991ad8ec1530acf2dbe", "19b61f57c4f3f08b782b9402290f42276b75cb9834087e79e43e490d848b2287",
		"e1d9d813eb3a753f9dbd5f66bedcbb66bf1799624a39271f1ddc24ae192f984c",
		"19b86133452b43966f51d020307d9bc6263df8c96516a89ff0621734f21e8d75" + "4e13ccc0c32a542d",
	},
	{
		"7cc8183b8d99e07c4541b8bd5ca7c2328ab80259a4fea92c09759a9b3c9b2739", "f9d94e63b53d9d43f61e50", "57f56b8b575c3d3b1302010c834c96358ed639cf7d149b94b03936e68f57e013",
		"3b6c2936b6ef07a68372074fcffa66895fcab1bad58f2c2730db750993d465e4",
		"b0885a33aae5c71d8523c7c62ff41e3dcc63442507784f9e96b888ebbc481f06" + "39af39acd84a80397b728af7",
	},
	{
		"abd0e9330726e5838c7695d4b6dcf346f98fade3021383773fb0f1a1a1220f2b", "24a78b07cbcc0ee633bff5", "d4db301d03fefd5f87d48cb6b6f17a5dab90658d8eca4d4f160c40904bc73673",
		"f5c67d48c1b7e692975acac4a96df93d6cdebcf190ea6ab2358636af5cfe4b3a",
		"836f408772cfc113efbb8021046c5809071bfcdfc03f5bc7e079a86e717c3fcf" + "5cdab233e513e20d74d1efb50f3ab5f8",
	},
	{"ab2f8a74b71cd2b1ff802e487d82f8b9", "af9487783582817f889468", "", "", "413cb88773cbf3f3"},
	{
		"585da096651a04d796e5c568aa9535e029a0ba9e4878d1ba", "ee4983e9a9ffe957bafd9e", "44a62c05e9e143b1587cf25c6d390a64a4f01305d17799" + "6711c4c6db00563661",
		"85346642c8920f3658e06b913c985cbb0a85cc02ad7a96e96543a4c30fdc5581",
		"fbe55d34bee5e8e75aef2fbf1f7fd4b266ca611e967a61b31c164552ba049c9f" + "b1d240bc527c6fb1",
	},
}

func TestPublishedCCM(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		for i, v := range ccmVectors {
			plain, sealed := aeadtest.FromHex(t, v.plain), aeadtest.FromHex(t, v.sealed)
			a, err := NewCCM(aeadtest.FromHex(t, v.key), len(sealed)-len(plain))
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Seal(nil, aeadtest.FromHex(t, v.nonce), plain, aeadtest.FromHex(t, v.additional)); !bytes.Equal(got, sealed) {
				t.Errorf("vector %d is %x, want %s", i, got, v.sealed)
			}
			if got, err := a.Open(nil, aeadtest.FromHex(t, v.nonce), sealed, aeadtest.FromHex(t, v.additional)); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("vector %d opens to %x, %v", i, got, err)
			}
		}
	})
}

// refCCM is SP 800-38C section 6.1, by its letters.
func refCCM(key []byte, tag int, nonce, plain, additional []byte) []byte {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	q := 15 - len(nonce)
	be := func(v, n int) []byte {
		out := make([]byte, n)
		for i := range out {
			out[n-1-i] = byte(v >> (8 * i))
		}
		return out
	}
	flags := byte(8*((tag-2)/2) + q - 1)
	if len(additional) > 0 {
		flags += 64
	}
	formatted := append(append([]byte{flags}, nonce...), be(len(plain), q)...)
	fillUp := func() {
		for len(formatted)%16 != 0 {
			formatted = append(formatted, 0)
		}
	}
	if n := len(additional); n > 0 && n < 1<<16-1<<8 {
		formatted = append(formatted, be(n, 2)...)
	} else if n > 0 {
		formatted = append(append(formatted, 0xff, 0xfe), be(n, 4)...)
	}
	formatted = append(formatted, additional...)
	fillUp()
	formatted = append(formatted, plain...)
	fillUp()
	cbc := make([]byte, len(formatted))
	cipher.NewCBCEncrypter(b, make([]byte, 16)).CryptBlocks(cbc, formatted)
	stream := make([]byte, 16+len(plain))
	copy(stream, cbc[len(cbc)-16:])
	copy(stream[16:], plain)
	ctr := append(append([]byte{byte(q - 1)}, nonce...), be(0, q)...)
	cipher.NewCTR(b, ctr).XORKeyStream(stream, stream)
	return append(append([]byte{}, stream[16:]...), stream[:tag]...)
}

// refGCM is the library's GCM with a tag that is cut, as SP 800-38D section 7.1 step 6 says.
func refGCM(key []byte, tag int, nonce, plain, additional []byte) []byte {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return g.Seal(nil, nonce, plain, additional)[:len(plain)+tag]
}

// modes are the AEADs that are not simply the library's.
var modes = []struct {
	name  string
	nonce int
	make  func(key []byte, tag int) (cipher.AEAD, error)
	ref   func(key []byte, tag int, nonce, plain, additional []byte) []byte
}{
	{"CCM", CCMNonceSize, NewCCM, refCCM},
	{"GCM", NonceSize, NewGCMWithTagSize, refGCM},
}

func TestTagSizesAsDefinedAtAllLengths(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		for _, m := range modes {
			for _, tag := range []int{8, 12, 16} {
				rng := rand.New(rand.NewPCG(uint64(tag), 3))
				lengths := []int{65279, 65280, 70000} // of associated data, where CCM's format changes
				for i := range 330 {
					key, nonce := aeadtest.Random(rng, 16+8*(i%3)), aeadtest.Random(rng, m.nonce)
					plain, additional := aeadtest.Random(rng, i), aeadtest.Random(rng, i%70)
					if i < len(lengths) {
						additional = aeadtest.Random(rng, lengths[i])
					}
					a, err := m.make(key, tag)
					if err != nil {
						t.Fatal(err)
					}
					want := m.ref(key, tag, nonce, plain, additional)
					what := fmt.Sprintf("%s-%d of %d octets and %d beside", m.name, tag, len(plain), len(additional))
					for _, a := range []cipher.AEAD{a, Worker(a)} {
						buf := append(make([]byte, 0, 32+len(want)+1), bytes.Repeat([]byte{0x5a}, 32+len(want)+1)...)
						copy(buf[32:], plain)
						got := a.Seal(buf[32:32], nonce, buf[32:32+i], additional)
						if !bytes.Equal(got, want) || &got[0] != &buf[32] || buf[31] != 0x5a || buf[32+len(want)] != 0x5a {
							t.Fatalf("%s: sealed in place to %x, want %x and nothing beside it", what, buf[31:], want)
						}
						if apart := a.Seal([]byte{1, 2}, nonce, plain, additional); !bytes.Equal(apart[2:], want) || apart[0] != 1 {
							t.Fatalf("%s: sealed to %x, want %x", what, apart, want)
						}
						opened, err := a.Open(got[:0], nonce, got, additional)
						if err != nil || !bytes.Equal(opened, plain) || buf[31] != 0x5a || !bytes.Equal(buf[32+i:32+len(want)], want[i:]) {
							t.Fatalf("%s: opened in place to %x, %v, want %x", what, opened, err, plain)
						}
					}
				}
			}
		}
	})
}

// A tag is worth its whole length, and what is not authentic leaves no plaintext behind.
func TestTagSizesRejectEveryChange(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, m := range modes {
			for _, tag := range []int{8, 12, 16} {
				key, nonce, additional := aeadtest.Random(rng, 16), aeadtest.Random(rng, m.nonce), aeadtest.Random(rng, 12)
				plain := aeadtest.Random(rng, 45)
				a, _ := m.make(key, tag)
				good := a.Seal(nil, nonce, plain, additional)
				try := func(what string, sealed, additional []byte) {
					t.Helper()
					work := bytes.Clone(sealed)
					if out, err := a.Open(work[:0], nonce, work, additional); err == nil || out != nil {
						t.Errorf("%s-%d: %s is accepted as %x", m.name, tag, what, out)
					}
					if n := len(work) - tag; n > 16 && bytes.Contains(work, plain[:16]) {
						t.Errorf("%s-%d: %s is rejected, but its plaintext stands there", m.name, tag, what)
					}
				}
				for i := range good {
					for bit := range 8 {
						bad := bytes.Clone(good)
						bad[i] ^= 1 << bit
						try(fmt.Sprintf("octet %d changed in bit %d", i, bit), bad, additional)
					}
					try(fmt.Sprintf("the first %d octets", i), good[:i], additional)
				}
				try("with an octet behind it", append(bytes.Clone(good), 0), additional)
				try("without associated data", good, nil)
				try("with more associated data", good, append(bytes.Clone(additional), 0))
				if out, err := a.Open(nil, nonce, good, additional); err != nil || !bytes.Equal(out, plain) {
					t.Errorf("%s-%d: the good one opens to %x, %v after all that", m.name, tag, out, err)
				}
			}
		}
	})
}

func TestModesCostNoAllocation(t *testing.T) {
	eachRoutine(t, func(t *testing.T) {
		for _, m := range modes {
			for _, tag := range []int{8, 12, 16} {
				a, _ := m.make(make([]byte, 32), tag)
				buf, nonce, additional := make([]byte, 1407+16), make([]byte, m.nonce), make([]byte, 12)
				if n := testing.AllocsPerRun(20, func() {
					sealed := a.Seal(buf[:0], nonce, buf[:1407], additional)
					if _, err := a.Open(buf[:0], nonce, sealed, additional); err != nil {
						t.Fatal(err)
					}
					buf[3] ^= 1
					if _, err := a.Open(buf[:0], nonce, buf[:1407+tag], additional); err == nil {
						t.Fatal("accepted")
					}
				}); n != 0 {
					t.Errorf("%s-%d: %v allocations", m.name, tag, n)
				}
			}
		}
		b, _ := NewCipher(make([]byte, 16))
		c, text, nonce := NewCTR(b), make([]byte, 1407), make([]byte, NonceSize)
		if n := testing.AllocsPerRun(20, func() { c.XORKeyStream(text, nonce) }); n != 0 {
			t.Errorf("CTR: %v allocations", n)
		}
	})
}

func TestModesMisuse(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s does not panic", what)
			}
		}()
		f()
	}
	eachRoutine(t, func(t *testing.T) {
		for _, m := range modes {
			for _, n := range []int{0, 15, 17, 31, 33} {
				if _, err := m.make(make([]byte, n), 16); err == nil {
					t.Errorf("%s takes a key of %d octets", m.name, n)
				}
			}
			for _, tag := range []int{0, 4, 7, 9, 13, 17} {
				if _, err := m.make(make([]byte, 16), tag); err == nil {
					t.Errorf("%s takes tags of %d octets", m.name, tag)
				}
			}
			for _, tag := range []int{8, 12, 16} {
				a, _ := m.make(make([]byte, 16), tag)
				if a.NonceSize() != m.nonce || a.Overhead() != tag {
					t.Errorf("%s-%d says that its nonce has %d octets, its tag %d", m.name, tag, a.NonceSize(), a.Overhead())
				}
				buf, nonce := make([]byte, 200), make([]byte, m.nonce)
				panics(m.name+" with a long nonce", func() { a.Seal(nil, make([]byte, m.nonce+1), nil, nil) })
				panics(m.name+" opening with a short nonce", func() { _, _ = a.Open(nil, nonce[1:], make([]byte, 20), nil) })
				panics(m.name+" opening nothing with a short nonce", func() { _, _ = a.Open(nil, nonce[1:], nil, nil) })
				panics(m.name+" sealing to one octet on", func() { a.Seal(buf[1:1], nonce, buf[:50], nil) })
				panics(m.name+" opening to one octet on", func() { _, _ = a.Open(buf[1:1], nonce, buf[:50], nil) })
			}
		}
		b, _ := NewCipher(make([]byte, 16))
		panics("CTR with a short nonce", func() { NewCTR(b).XORKeyStream(make([]byte, 5), make([]byte, 11)) })
	})
}
