package esp

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// unhex decodes hexadecimal with any spaces in it.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// gcmVectors are the AES-GCM cases of draft-mcgrew-gcm-test-01, section 4. nonce is salt and
// IV, aad is SPI and sequence number, of 64 bits where it has 12 octets.
var gcmVectors = []struct{ key, nonce, aad, plain, sealed string }{
	{
		"4c80cdefbb5d10da906ac73c3613a634", "2e443b684956ed7e3b244cfe", "000043218765432100000000",
		"45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f736970045f756470037369700963796265726369747902646b000021000101020201",
		"fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732 459018148f6cbe722fd04796562dfdb4",
	},
	{
		"feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", "0000a5f80000000a",
		"4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000037369700963796265726369747902646b00000100010001",
		"deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1 83b70d3aa8bc6ee4c309e9d85a41ad4a",
	},
	{
		"abbccddef00112233445566778899aababbccddef00112233445566778899aab", "112233440102030405060708", "4a2cbfe300000002",
		"4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b40101040201020201",
		"ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99def842d8e b335f4eecfdbf831824b4c4915956c96",
	},
	{
		"00000000000000000000000000000000", "000000000000000000000000", "0000000000000001",
		"4500003c99c500008001cb7a40679318010101010800075c020044006162636465666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
		"4688daf2f973a392732909c331d56d60f694abaa414b5e7ff5fdcdfff5e9a284456476492719ffb64de7d9dca1e1d894bc3bd57873ed4d181d19d4d5c8c18af3 f821d496eeb096e98ad2b69e4799c71d",
	},
	{
		"3de09874b388e6491988d0c3607eae1f", "57690e434e280000a2fca1a3", "42f67e3f1010101010101010",
		"4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
		"fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b00d1138ec9c35791765acbd8701ad79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320a e0d731cc978ecafaeae88f00e80d6e48",
	},
	{
		"3de09874b388e6491988d0c3607eae1f", "57690e434e280000a2fca1a3", "42f67e3f1010101010101010",
		"4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
		"fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed 369f071f35e034be95f112e4e7d05d35",
	},
	{
		"feffe9928665731c6d6a8f9467308308feffe9928665731c", "cafebabefacedbaddecaf888", "0000a5f80000000a",
		"45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e501016d075680001",
		"a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0315b27452144cc77 95457b9652037f5318027b5b4cd7a636",
	},
	{
		"abbccddef00112233445566778899aab", "decaf888cafedebaceface74", "000001000000000000000001",
		"4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d500004e20001e8c18d75b81dc91baa0476b91b924b280389d92c963bac046ec959b6266c04722b14923010101",
		"18a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1c349c1d2fbec168f9190feebaf2cb01984e65863965d7472b79da345e0e780191f0d2f0e0f496c226f2127b27db35724e7845d68 651f57e65f354f75ff17015769623436",
	},
	{
		"abbccddef00112233445566778899aababbccddef00112233445566778899aab", "73616c74616e640169766563", "17405e67156f3126dd0db99b",
		"45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
		"f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e 451626c2415771e3b7eebca614c89b35",
	},
	{
		"3de09874b388e6491988d0c3607eae1f", "57690e434e280000a2fca1a3", "42f67e3f1010101010101010",
		"45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b000001e0001e8c18d65759d52284a0352c71475c8880391c764d6e5ee0496b325ae270c03899493915010101",
		"fba2cad12fc1f9f00d3cebf305410db83d7784b607323d220f24b0a97d54182800cadb0f68d99ef0e0c0c89ae9bea8884e52d65bc1afd0740f742444747b5b39ab533163aad4550ee5160975 cdb608c5769189609763b8e18caa81e2",
	},
	{
		"abbccddef00112233445566778899aababbccddef00112233445566778899aab", "73616c74616e640169766563", "17405e67156f3126dd0db99b",
		"636973636f0172756c657301746865016e6574776501646566696e6501746865746563686e6f6c6f67696573017468617477696c6c01646566696e65746f6d6f72726f7701020201",
		"d4b7ed86a1777f2ea13d6973d324c69e7b43f826fb56831226508bebd2dceb18d0a6df10e5487df074113e14c641024e3e6773d91a62ee429b043a10e3efe6b012a49363412364f8 c0cac587f249e56b11e24f30e44ccc76",
	},
	{
		"7d773d00c144c525ac619d18c84a3f47", "d966426743457e9182443bc6", "335467aeffffffff",
		"01020201",
		"437f866b cb3f699fe9b0822bac961c4504bef270",
	},
	{
		"abbccddef00112233445566778899aab", "decaf888cafedebaceface74", "000001000000000000000001",
		"746f016265016f72016e6f7401746f0162650001",
		"29c9fc69a197d038ccdd14e2ddfcaa0543332164 412503524303ed3c6c5f283843af8c3e",
	},
	{
		"6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961", "7475726e333021696765746d", "796b6963ffffffffffffffff",
		"45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768696a6b6c6d6e6f707172737401020201",
		"f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78ca4ae68a32b42458fb57dbe821dcc63b9 d0937ba2945f669368661a329fb4c053",
	},
}

// checkVector opens a published packet twice, with the package and with the reference, and
// expects the published plaintext, trailer included.
func checkVector(t *testing.T, sa *SA, seq uint64, pkt, plain []byte) {
	t.Helper()
	padLen := int(plain[len(plain)-2])
	payload, next := plain[:len(plain)-2-padLen], plain[len(plain)-1]

	got, _, gotNext, err := refOpen(sa, seq, pkt)
	if err != nil || !bytes.Equal(got, payload) || gotNext != next {
		t.Errorf("the reference reads %x, next %d, %v; published is %x, next %d", got, gotNext, err, payload, next)
	}
	if again := refSeal(sa, seq, pkt[8:len(pkt)-len(plain)-sa.Suite.shape().icv], plain); binary.BigEndian.Uint32(pkt) >= 256 && !bytes.Equal(again, pkt) {
		t.Errorf("the reference builds %x; published is %x", again, pkt)
	}

	in, err := NewInbound(sa, 1)
	if err != nil {
		t.Fatal(err)
	}
	in.win.top.Store(seq - 1) // as if all before it had arrived
	mine := append([]byte{}, pkt...)
	got, gotNext, err = in.Open(0, mine)
	if err != nil || !bytes.Equal(got, payload) || gotNext != next {
		t.Errorf("Open reads %x, next %d, %v; published is %x, next %d", got, gotNext, err, payload, next)
	}
	if top := in.win.top.Load(); top != seq {
		t.Errorf("the window's top is %x after packet %x", top, seq)
	}
}

func TestOpenPublishedGCM(t *testing.T) {
	for i, v := range gcmVectors {
		key, nonce, aad := unhex(t, v.key), unhex(t, v.nonce), unhex(t, v.aad)
		sa := &SA{
			SPI: max(256, binary.BigEndian.Uint32(aad)), Dir: In, ReplayWindow: 64, // one case has SPI 0
			Suite:   Suite{Encr: EncrAESGCM16, KeyBits: uint16(len(key) * 8), ESN: len(aad) == 12},
			EncrKey: append(key, nonce[:4]...),
		}
		seq := uint64(binary.BigEndian.Uint32(aad[4:]))
		if sa.Suite.ESN {
			seq = binary.BigEndian.Uint64(aad[4:])
		}
		pkt := append(append([]byte{}, aad[:4]...), aad[len(aad)-4:]...)
		pkt = append(append(pkt, nonce[4:]...), unhex(t, v.sealed)...)
		t.Logf("case %d: %v, sequence number %#x", i+1, sa.Suite, seq)
		checkVector(t, sa, seq, pkt, unhex(t, v.plain))
	}
}

// The packet of RFC 7634 appendix A, without its outer IP header.
func TestOpenPublishedChaCha20Poly1305(t *testing.T) {
	key := make([]byte, 36)
	for i := range key {
		key[i] = 0x80 + byte(i)
	}
	sa := &SA{SPI: 0x01020304, Dir: In, ReplayWindow: 64, Suite: Suite{Encr: EncrChaCha20Poly1305}, EncrKey: key}
	plain := unhex(t, `
		45000054a6f200004001e778c6336405 c000020508005b7a3a080000553bec10
		0007362708090a0b0c0d0e0f10111213 1415161718191a1b1c1d1e1f20212223
		2425262728292a2b2c2d2e2f30313233 3435363701020204`)
	pkt := unhex(t, `01020304000000051011121314151617
		24039428b97f417e3c13753a4f05087b 67c352e6a7fab1b982d466ef407ae5c6
		14ee8099d52844eb61aa95dfab4c02f7 2aa71e7c4c4f64c9befe2facc638e8f3
		cbec163fac469b502773f6fb94e664da 9165b82829f641e0
		76aaa8266b7fb0f7b11b369907e1ad43`)
	checkVector(t, sa, 5, pkt, plain)
}

// cbcVectors are the ESP packets of RFC 3602 section 4, cases 5 to 8. They end before the
// ICV, of which the RFC says nothing.
var cbcVectors = []struct{ key, packet, plain string }{
	{
		"90d382b410eeba7ad938c46cec1a82bf",
		`00004321 00000001 e96e8c08 ab465763 fd098d45 dd3ff893
		f663c25d 325c18c6 a9453e19 4e120849 a4870b66 cc6b9965 330013b4 898dc856
		a4699e52 3a55db08 0b59ec3a 8e4b7e52 775b07d1 db34ed9c 538ab50c 551b874a
		a269add0 47ad2d59 13ac19b7 cfbad4a6`,
		`08000ebd a70a0000 8e9c083d b95b0700 08090a0b 0c0d0e0f 10111213 14151617
		18191a1b 1c1d1e1f 20212223 24252627 28292a2b 2c2d2e2f 30313233 34353637
		01020304 05060708 090a0b0c 0d0e0e01`,
	},
	{
		"90d382b410eeba7ad938c46cec1a82bf",
		`00004321 00000008 69d08df7 d203329d b093fc49 24e5bd80
		f5199588 1ec4e0c4 488987ce 742e8109 689bb379 d2d750c0 d915dca3 46a89f75`,
		`0800b5e8 a80a0500 a69c083d 0b660e00 77777777 77777777 77777777 01020201`,
	},
	{
		"0123456789abcdef0123456789abcdef",
		`00008765 00000002 f4e76524 4f6407ad f13dc138 0f673f37
		773b5241 a4c44922 5e4f3ce5 ed611b0c 237ca96c f74a9301 3c1b0ea1 a0cf70f8
		e4ecaec7 8ac53aad 7a0f022b 859243c6 47752e94 a859352b 8a4d4d2d ecd136e5
		c177f132 ad3fbfb2 201ac990 4c74ee0a 109e0ca1 e4dfe9d5 a100b842 f1c22f0d`,
		`45000054 09040000 4001f988 c0a87b03 c0a87bc8 08009f76 a90a0100 b49c083d
		02a20400 08090a0b 0c0d0e0f 10111213 14151617 18191a1b 1c1d1e1f 20212223
		24252627 28292a2b 2c2d2e2f 30313233 34353637 01020304 05060708 090a0a04`,
	},
	{
		"0123456789abcdef0123456789abcdef",
		`00008765 00000005 85d47224 b5f3dd5d 2101d4ea 8dffab22
		15b92683 819596a8 047232cc 00f7048f e45318e1 1f8a0f62 ede3c3fc 61203bb5
		0f980a08 c9843fd3 a1b06d5c 07ff9639 b7eb7dfb 3512e5de 435e7207 ed971ef3
		d2726d9b 5ef6affc 6d17a0de cbb13892`,
		`45000044 090c0000 4001f990 c0a87b03 c0a87bc8 0800d63c aa0a0200 c69c083d
		a3de0300 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff
		ffffffff 01020304 05060708 090a0a04`,
	},
}

func TestOpenPublishedCBC(t *testing.T) {
	for _, v := range cbcVectors {
		for _, integ := range []IntegID{IntegHMACSHA196, IntegHMACSHA256_128, IntegHMACSHA384_192, IntegHMACSHA512_256} {
			s := Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: integ}
			_, integLen := s.KeyLens()
			pkt := unhex(t, v.packet)
			sa := &SA{SPI: SPIOf(pkt), Dir: In, Suite: s, ReplayWindow: 64, EncrKey: unhex(t, v.key), IntegKey: fill(7, integLen)}
			seq := uint64(binary.BigEndian.Uint32(pkt[4:]))
			checkVector(t, sa, seq, append(pkt, refICV(sa, pkt, seq)...), unhex(t, v.plain))
		}
	}
}

// HMAC vectors with keys of the lengths that ESP has: RFC 2202 section 3 cases 1, 3 and 5,
// RFC 4868 section 2.7.2 (whose AUTH512-4 prints the first line of its key once too often). The
// ICV is what the packet carries.
func TestPublishedHMAC(t *testing.T) {
	rep := func(b byte, n int) string { return strings.Repeat(hex.EncodeToString([]byte{b}), n) }
	hiThere, want, jefe := "4869205468657265", "7768617420646f2079612077616e7420666f72206e6f7468696e673f", "4a656665"
	for _, v := range []struct {
		integ          IntegID
		key, data, icv string
	}{
		{IntegHMACSHA196, rep(0x0b, 20), hiThere, "b617318655057264e28bc0b6"},
		{IntegHMACSHA196, rep(0xaa, 20), rep(0xdd, 50), "125d7342b9ac11cd91a39af4"},
		{IntegHMACSHA196, rep(0x0c, 20), hex.EncodeToString([]byte("Test With Truncation")), "4c1a03424b55e07fe7f27be1"},
		{IntegHMACSHA256_128, rep(0x0b, 32), hiThere, "198a607eb44bfbc69903a0f1cf2bbdc5"},
		{IntegHMACSHA256_128, strings.Repeat(jefe, 8), want, "167f928588c5cc2eef8e3093caa0e87c"},
		{IntegHMACSHA256_128, rep(0xaa, 32), rep(0xdd, 50), "cdcb1220d1ecccea91e53aba3092f962"},
		{IntegHMACSHA256_128, "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20", rep(0xcd, 50), "372efcf9b40b35c2115b1346903d2ef4"},
		{IntegHMACSHA384_192, rep(0x0b, 48), hiThere, "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"},
		{IntegHMACSHA384_192, strings.Repeat(jefe, 12), want, "2c7353974f1842fd66d53c452ca42122b28c0b594cfb184d"},
		{IntegHMACSHA384_192, rep(0xaa, 48), rep(0xdd, 50), "809f439be00274321d4a538652164b53554a508184a0c316"},
		{IntegHMACSHA384_192, "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f200a0b0c0d0e0f10111213141516171819", rep(0xcd, 50), "5b540085c6e6358096532b2493609ed1cb298f774f87bb5c"},
		{IntegHMACSHA512_256, rep(0x0b, 64), hiThere, "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8"},
		{IntegHMACSHA512_256, strings.Repeat(jefe, 16), want, "cb370917ae8a7ce28cfd1d8f4705d6141c173b2a9362c15df235dfb251b15454"},
		{IntegHMACSHA512_256, rep(0xaa, 64), rep(0xdd, 50), "2ee7acd783624ca9398710f3ee05ae41b9f9b0510c87e49e586cc9bf961733d8"},
		{IntegHMACSHA512_256, "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40", rep(0xcd, 50), "5e6688e5a3daec826ca32eaea224eff5e700628947470e13ad01302561bab108"},
	} {
		sa := testSA(Suite{Encr: EncrAESCBC, KeyBits: 128, Integ: v.integ}, In)
		sa.IntegKey = unhex(t, v.key)
		in, err := NewInbound(sa, 1)
		if err != nil {
			t.Fatal(err)
		}
		c, err := in.keys.get(&in.slots, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := c.do.(*pair)
		data, icv := unhex(t, v.data), unhex(t, v.icv)
		for range 2 { // the second time from the saved state
			if got := p.icv(data, 0)[:in.shape.icv]; !bytes.Equal(got, icv) {
				t.Errorf("%v of %x is %x, published is %x", v.integ, data, got, icv)
			}
		}
		n := len(data) - 4
		p.esn = true
		if got := p.icv(data[:n], uint64(binary.BigEndian.Uint32(data[n:]))<<32)[:in.shape.icv]; !bytes.Equal(got, icv) {
			t.Errorf("%v with the last 4 octets as the ESN's high half is %x, want %x", v.integ, got, icv)
		}
	}
}

// The IVs of CBC: one block of AES over the sequence number, under a key that neither the
// packets nor the other keys give away. Predictable ones would let who chooses plaintext
// test guesses of earlier plaintext (RFC 3602 section 3).
func TestCBCIVsFollowTheirKeyAlone(t *testing.T) {
	s := Suite{Encr: EncrAESCBC, KeyBits: 256, Integ: IntegHMACSHA256_128}
	o, _, sa := testPair(t, s, 64)
	row, _ := s.Integ.row()
	m, err := row.newMAC(sa.IntegKey)
	if err != nil {
		t.Fatal(err)
	}
	gen, err := ivCipher(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[16]byte]bool{}
	var block cipher.Block = gen
	for seq := uint64(1); seq <= 100; seq++ {
		iv := [16]byte(seal(t, o, []byte("same payload"), 4)[8:24])
		var in, want [16]byte
		binary.BigEndian.PutUint64(in[:], seq)
		block.Encrypt(want[:], in[:])
		if iv != want {
			t.Fatalf("packet %d has IV %x, want %x", seq, iv, want)
		}
		if seen[iv] {
			t.Fatalf("packet %d repeats an IV", seq)
		}
		seen[iv] = true
	}
	other := *sa
	other.IntegKey = append([]byte{}, sa.IntegKey...)
	other.IntegKey[0] ^= 1
	o2, err := NewOutbound(&other, 1)
	if err != nil {
		t.Fatal(err)
	}
	if iv := [16]byte(seal(t, o2, nil, 4)[8:24]); seen[iv] {
		t.Error("an SA with another integrity key has the same IVs")
	}
}

func TestOpenRejectsForeignKey(t *testing.T) {
	for _, s := range allSuites() {
		o, _, _ := testPair(t, s, 64)
		pkt := seal(t, o, []byte("payload"), 4)
		sa := testSA(s, In)
		if len(sa.IntegKey) > 0 {
			sa.IntegKey[len(sa.IntegKey)-1] ^= 1
		} else {
			sa.EncrKey[len(sa.EncrKey)-1] ^= 1 // the salt's last octet
		}
		in, err := NewInbound(sa, 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := in.Open(0, pkt); !errors.Is(err, ErrAuth) {
			t.Errorf("%v: a packet under another key gives %v, want %v", s, err, ErrAuth)
		}
	}
}
