package esp

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"

	"postern/esp/ctaes"
)

// transform is what one worker does to the packets of one SA; suites differ here and in their
// shape, and in nothing else on a packet's way. pkt begins at the SPI and ends with the ICV,
// pkt[:front] are header and IV, pkt[front:tail] is the payload with padding and trailer.
// seq is the whole sequence number.
type transform interface {
	// seal writes the IV, encrypts the payload in place, and writes the ICV.
	seal(pkt []byte, seq uint64, front, tail int)
	// open verifies and decrypts in place. If it says no, nothing of the plaintext is
	// left in pkt.
	open(pkt []byte, seq uint64, front, tail int) bool
}

// scratch is one worker's state for one SA, so that workers share nothing that they
// write. What is handed to a cipher through an interface would escape to the heap if it
// were local; here it is allocated once. The size keeps two workers' scratch in different
// cache lines, and all that most suites need for a packet in one.
type scratch struct {
	do   transform   // of what follows if that is what the suite needs
	aead aeadScratch // zero otherwise
}

// aeadScratch is the transform of AES-GCM (RFC 4106), AES-CCM (RFC 4309) and ChaCha20-Poly1305
// (RFC 7634), with explicit and implicit IVs (RFC 8750).
type aeadScratch struct {
	aead     cipher.AEAD           // the worker's own, or one without state that all share
	nonce    [saltLen + ivLen]byte // salt | IV, with CCM from its second octet on
	aad      [12]byte              // SPI | Seqh | Seql, with extended sequence numbers
	from     uint8                 // where the nonce begins
	esn      bool
	implicit bool
}

func (a *aeadScratch) seal(pkt []byte, seq uint64, front, tail int) {
	// The sequence number is the IV: it never repeats under one key, which is all
	// that these ciphers ask for (RFC 4106 section 3.1, RFC 7634 section 2).
	binary.BigEndian.PutUint64(a.nonce[saltLen:], seq)
	if !a.implicit {
		binary.BigEndian.PutUint64(pkt[espHeaderLen:], seq)
	}
	a.aead.Seal(pkt[front:front], a.nonce[a.from:], pkt[front:tail], a.additional(pkt, seq))
}

func (a *aeadScratch) open(pkt []byte, seq uint64, front, tail int) bool {
	iv := seq
	if !a.implicit {
		iv = binary.BigEndian.Uint64(pkt[espHeaderLen:])
	}
	binary.BigEndian.PutUint64(a.nonce[saltLen:], iv)
	_, err := a.aead.Open(pkt[front:front], a.nonce[a.from:], pkt[front:], a.additional(pkt, seq))
	return err == nil
}

// additional returns what an AEAD authenticates beside the payload: SPI and sequence
// number, which stand so in the packet, or with extended sequence numbers all 64 bits of
// it (RFC 4106 section 5, RFC 7634 section 2.1). The result is valid until the next call.
func (a *aeadScratch) additional(pkt []byte, seq uint64) []byte {
	if !a.esn {
		return pkt[:espHeaderLen]
	}
	copy(a.aad[:4], pkt)
	binary.BigEndian.PutUint64(a.aad[4:], seq)
	return a.aad[:]
}

// pair is the transform of a cipher and an integrity transform beside it: first encrypted, then
// authenticated.
type pair struct {
	cipher textCipher
	mac    mac
	esn    bool
	seqh   [4]byte
	tag    [maxMACLen]byte // the whole output, before it is cut to the ICV
}

// textCipher is a cipher that does not authenticate.
type textCipher interface {
	// encrypt writes the packet's IV and encrypts text.
	encrypt(iv, text []byte, seq uint64)
	decrypt(iv, text []byte)
}

func (p *pair) seal(pkt []byte, seq uint64, front, tail int) {
	p.cipher.encrypt(pkt[espHeaderLen:front], pkt[front:tail], seq)
	copy(pkt[tail:], p.icv(pkt[:tail], seq))
}

func (p *pair) open(pkt []byte, seq uint64, front, tail int) bool {
	icv := pkt[tail:]
	if subtle.ConstantTimeCompare(p.icv(pkt[:tail], seq)[:len(icv)], icv) != 1 {
		return false
	}
	p.cipher.decrypt(pkt[espHeaderLen:front], pkt[front:tail])
	return true
}

// icv computes the MAC over pkt, the packet without its ICV, and with extended sequence
// numbers over the high-order bits that follow it invisibly (RFC 4303 section 2.2.1). The
// result is the mac's whole output; it is valid until the next call.
func (p *pair) icv(pkt []byte, seq uint64) []byte {
	p.mac.Reset()
	_, _ = p.mac.Write(pkt)
	if p.esn {
		binary.BigEndian.PutUint32(p.seqh[:], uint32(seq>>32))
		_, _ = p.mac.Write(p.seqh[:])
	}
	return p.mac.Sum(p.tag[:0])
}

// cbcMode is what cipher.NewCBCEncrypter and NewCBCDecrypter return for AES, the library's
// and ours: a mode that takes a new IV without being made anew.
type cbcMode interface {
	cipher.BlockMode
	SetIV([]byte)
}

// cbcCipher is AES-CBC (RFC 3602).
//
// Its IVs must be unpredictable (RFC 3602 section 3). They are made without a system
// call per packet as AES(IV key, sequence number), one block. The IV key is
// MAC(integrity key, ivLabel | SA.IVSeed), cut to 16 octets. Why that is sound: the label begins
// with SPI 0, which is never on the wire (RFC 4303 section 2.1), so no ICV is ever
// computed over it, and with the MAC as the pseudorandom function that ESP takes it for
// anyway, the IV key is independent of the encryption key and of every ICV. Under a key that is used
// for nothing else, a block cipher's outputs for inputs that never repeat cannot be told
// from random ones before about 2^64 packets, far more than one CBC key may protect.
type cbcCipher struct {
	mode  cbcMode
	ivGen cipher.Block // outbound only; shared, it has no state
	ivIn  [aesBlockLen]byte
}

// ivLabel is what the SA's integrity transform turns into the key of its CBC IVs. See cbcCipher.
const ivLabel = "\x00\x00\x00\x00CBC IV"

func (c *cbcCipher) encrypt(iv, text []byte, seq uint64) {
	binary.BigEndian.PutUint64(c.ivIn[:], seq)
	c.ivGen.Encrypt(iv, c.ivIn[:])
	c.decrypt(iv, text)
}

// decrypt does what the mode does, which is made for one direction.
func (c *cbcCipher) decrypt(iv, text []byte) {
	c.mode.SetIV(iv)
	c.mode.CryptBlocks(text, text)
}

// ivCipher returns the cipher that makes CBC's IVs; cbcCipher says why it is sound.
func ivCipher(m mac, seed []byte) (cipher.Block, error) {
	_, _ = m.Write([]byte(ivLabel))
	_, _ = m.Write(seed)
	key := m.Sum(nil)
	defer clear(key)
	return ctaes.NewCipher(key[:aesBlockLen])
}

// ctrCipher is AES-CTR (RFC 3686). The IV is the sequence number: it must not repeat, and that is
// all (section 3.1).
type ctrCipher struct {
	ctr   *ctaes.CTR
	nonce [saltLen + ivLen]byte
}

func (c *ctrCipher) encrypt(iv, text []byte, seq uint64) {
	binary.BigEndian.PutUint64(iv, seq)
	c.decrypt(iv, text)
}

func (c *ctrCipher) decrypt(iv, text []byte) {
	copy(c.nonce[saltLen:], iv)
	c.ctr.XORKeyStream(text, c.nonce[:])
}

// nullCipher is NULL (RFC 2410).
type nullCipher struct{}

func (nullCipher) encrypt([]byte, []byte, uint64) {}
func (nullCipher) decrypt([]byte, []byte)         {}

// gmac is the transform ENCR_NULL_AUTH_AES_GMAC (RFC 4543): the payload stays as it is. The MAC
// covers what stands in the packet before the ICV, the IV included (figure 4), and an extended
// sequence number as a whole in its place, where AES-GCM has it (section 3.3).
type gmac struct {
	mac *ctaes.GMAC
	esn bool
	seq [8]byte
	tag [16]byte
}

func (g *gmac) seal(pkt []byte, seq uint64, _, tail int) {
	binary.BigEndian.PutUint64(pkt[espHeaderLen:], seq)
	copy(pkt[tail:], g.icv(pkt[:tail], seq))
}

func (g *gmac) open(pkt []byte, seq uint64, _, tail int) bool {
	return subtle.ConstantTimeCompare(g.icv(pkt[:tail], seq), pkt[tail:]) == 1
}

func (g *gmac) icv(pkt []byte, seq uint64) []byte {
	g.mac.Reset()
	g.mac.SetIV(pkt[espHeaderLen : espHeaderLen+ivLen])
	if g.esn {
		binary.BigEndian.PutUint64(g.seq[:], seq)
		_, _ = g.mac.Write(pkt[:4])
		_, _ = g.mac.Write(g.seq[:])
		pkt = pkt[espHeaderLen:]
	}
	_, _ = g.mac.Write(pkt)
	return g.mac.Sum(g.tag[:0])
}
