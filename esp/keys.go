package esp

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"postern/esp/chapoly"
	"postern/esp/ctaes"
)

// ivLabel is what the SA's HMAC turns into the key of its CBC IVs. See keyring.
const ivLabel = "\x00\x00\x00\x00CBC IV"

// cbcMode is what cipher.NewCBCEncrypter and NewCBCDecrypter return for AES, the library's
// and ours: a mode that takes a new IV without being made anew.
type cbcMode interface {
	cipher.BlockMode
	SetIV([]byte)
}

// scratch is one worker's state for one SA, so that workers share nothing that they
// write. What is handed to a cipher through an interface would escape to the heap if it
// were local; here it is allocated once. The size keeps two workers' scratch in different
// cache lines.
type scratch struct {
	aead  cipher.AEAD // shared, it has no state; nil: cbc is set
	nonce [aeadSaltLen + aeadIVLen]byte
	aad   [12]byte // SPI | Seqh | Seql, with extended sequence numbers
	cbc   *cbcScratch
	_     [16]byte
}

// cbcScratch is the part of scratch that only CBC with HMAC needs.
type cbcScratch struct {
	mode  cbcMode
	ivGen cipher.Block // outbound only; shared, it has no state
	ivIn  [aesBlockLen]byte
	mac   mac
	seqh  [4]byte
	tag   [maxMACLen]byte // the whole output, before it is cut to the ICV
}

// keyring holds one SA's keys and hands every worker its scratch when it first asks, so
// that idle workers cost one pointer.
//
// AEAD ciphers and AES key schedules are made once and shared: they do not change. The
// HMAC's key is kept, since each scratch makes an HMAC of it.
//
// The IVs of CBC must be unpredictable (RFC 3602 section 3). They are made without a system
// call per packet as AES(IV key, sequence number), one block. The IV key is
// HMAC(integrity key, ivLabel), cut to 16 octets. Why that is sound: the label begins
// with SPI 0, which is never on the wire (RFC 4303 section 2.1), so no ICV is ever
// computed over it, and with HMAC as the pseudorandom function that ESP takes it for
// anyway, the IV key is independent of the encryption key and of every ICV. Under a key that is used
// for nothing else, a block cipher's outputs for inputs that never repeat cannot be told
// from random ones before about 2^64 packets, far more than one CBC key may protect.
type keyring struct {
	slots    []atomic.Pointer[scratch]
	outbound bool

	mu     sync.Mutex // of all that follows; taken when a scratch is made and by wipe
	wiped  bool
	aead   cipher.AEAD
	salt   [aeadSaltLen]byte
	block  cipher.Block
	ivGen  cipher.Block
	integ  []byte
	newMAC func(key []byte) (mac, error)
}

// init checks the SA's keys and expands them. It keeps no reference to sa's slices.
func (k *keyring) init(sa *SA, outbound bool, contexts int) error {
	if err := sa.Suite.Validate(); err != nil {
		return err
	}
	encr, integ := sa.Suite.KeyLens()
	switch {
	case sa.SPI < 256:
		return fmt.Errorf("esp: SPI %d is reserved, it must be 256 or more (RFC 4303 section 2.1)", sa.SPI)
	case (sa.Dir == Out) != outbound:
		return fmt.Errorf("esp: SA %08x is of the other direction", sa.SPI)
	case contexts < 1:
		return fmt.Errorf("esp: SA %08x needs at least one context, not %d", sa.SPI, contexts)
	case len(sa.EncrKey) != encr:
		return fmt.Errorf("esp: SA %08x: %s takes %d octets of encryption key and salt, not %d", sa.SPI, sa.Suite, encr, len(sa.EncrKey))
	case len(sa.IntegKey) != integ:
		return fmt.Errorf("esp: SA %08x: %s takes %d octets of integrity key, not %d", sa.SPI, sa.Suite, integ, len(sa.IntegKey))
	}
	k.outbound = outbound
	k.slots = make([]atomic.Pointer[scratch], contexts)

	var err error
	switch sa.Suite.Encr {
	case EncrAESGCM16:
		k.aead, err = ctaes.NewGCM(sa.EncrKey[:encr-aeadSaltLen])
		copy(k.salt[:], sa.EncrKey[encr-aeadSaltLen:])
	case EncrChaCha20Poly1305:
		k.aead, err = chapoly.New(sa.EncrKey[:encr-aeadSaltLen])
		copy(k.salt[:], sa.EncrKey[encr-aeadSaltLen:])
	case EncrAESCBC:
		row, _ := sa.Suite.Integ.row()
		k.newMAC = row.newMAC
		k.integ = append([]byte(nil), sa.IntegKey...)
		if k.block, err = ctaes.NewCipher(sa.EncrKey); err == nil && outbound {
			k.ivGen, err = ivCipher(row, k.integ)
		}
	}
	if err != nil {
		k.wipe()
		return fmt.Errorf("esp: SA %08x: %s: %w", sa.SPI, sa.Suite, err)
	}
	return nil
}

// ivCipher returns the cipher that makes CBC's IVs; keyring says why it is sound.
func ivCipher(row integRow, integ []byte) (cipher.Block, error) {
	mac, err := row.newMAC(integ)
	if err != nil {
		return nil, err
	}
	mac.Write([]byte(ivLabel))
	key := mac.Sum(nil)
	defer clear(key)
	return ctaes.NewCipher(key[:aesBlockLen])
}

// get returns worker ctx's scratch: one load, after the first time.
func (k *keyring) get(ctx int) (*scratch, error) {
	if c := k.slots[ctx].Load(); c != nil {
		return c, nil
	}
	return k.make(ctx)
}

// make builds worker ctx's scratch.
func (k *keyring) make(ctx int) (*scratch, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wiped {
		return nil, ErrWiped
	}
	c := &scratch{aead: k.aead}
	copy(c.nonce[:], k.salt[:])
	if k.aead == nil {
		var zero [aesBlockLen]byte
		mac, err := k.newMAC(k.integ)
		if err != nil {
			return nil, err
		}
		m := &cbcScratch{ivGen: k.ivGen, mac: mac}
		if k.outbound {
			m.mode = cipher.NewCBCEncrypter(k.block, zero[:]).(cbcMode)
		} else {
			m.mode = cipher.NewCBCDecrypter(k.block, zero[:]).(cbcMode)
		}
		c.cbc = m
	}
	k.slots[ctx].Store(c)
	return c, nil
}

// wipe forgets the keys: own copies are overwritten; what the cipher types hold inside
// cannot be reached, its references are dropped and the collector frees it. A worker that
// is in the middle of a packet finishes it with the scratch that it has.
func (k *keyring) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wiped = true
	clear(k.integ)
	clear(k.salt[:])
	k.aead, k.block, k.ivGen, k.integ = nil, nil, nil, nil
	for i := range k.slots {
		k.slots[i].Store(nil)
	}
}

// icv computes the HMAC over pkt, the packet without its ICV, and with extended sequence
// numbers over the high-order bits that follow it invisibly (RFC 4303 section 2.2.1). The
// result is the whole hash; it is valid until the next call.
func (m *cbcScratch) icv(pkt []byte, esn bool, seqh uint32) []byte {
	m.mac.Reset()
	m.mac.Write(pkt)
	if esn {
		binary.BigEndian.PutUint32(m.seqh[:], seqh)
		m.mac.Write(m.seqh[:])
	}
	return m.mac.Sum(m.tag[:0])
}
