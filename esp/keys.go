package esp

import (
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"hash"
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
	mac   hash.Hash
	seqh  [4]byte
	tag   [64]byte // the longest hash, before it is cut to the ICV
}

// slots has the scratch of the first workers. It is apart from the keyring, so that an SA has
// it beside what else every packet needs.
type slots [3]atomic.Pointer[scratch]

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
	more     []atomic.Pointer[scratch] // of the workers that slots has no room for
	outbound bool
	wiped    bool // under mu
	contexts int32

	mu    sync.Mutex // of all that follows; taken when a scratch is made and by wipe
	aead  cipher.AEAD
	salt  [aeadSaltLen]byte
	block cipher.Block
	ivGen cipher.Block
	integ []byte
	hash  func() hash.Hash
}

// init checks the SA's keys and expands them. It keeps no reference to sa's slices.
func (k *keyring) init(sa *SA, outbound bool, first *slots, contexts int) error {
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
	k.outbound, k.contexts = outbound, int32(contexts)
	k.more = make([]atomic.Pointer[scratch], max(contexts-len(first), 0))

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
		k.hash = row.hash
		k.integ = append([]byte(nil), sa.IntegKey...)
		if k.block, err = ctaes.NewCipher(sa.EncrKey); err == nil && outbound {
			k.ivGen, err = ivCipher(row.hash, k.integ)
		}
	}
	if err != nil {
		k.wipe(first)
		return fmt.Errorf("esp: SA %08x: %s: %w", sa.SPI, sa.Suite, err)
	}
	return nil
}

// ivCipher returns the cipher that makes CBC's IVs; keyring says why it is sound.
func ivCipher(h func() hash.Hash, integ []byte) (cipher.Block, error) {
	mac := hmac.New(h, integ)
	mac.Write([]byte(ivLabel))
	key := mac.Sum(nil)
	defer clear(key)
	return ctaes.NewCipher(key[:aesBlockLen])
}

// get returns worker ctx's scratch: one load, after the first time.
func (k *keyring) get(first *slots, ctx int) (*scratch, error) {
	if uint(ctx) < uint(len(first)) {
		if c := first[ctx].Load(); c != nil {
			return c, nil
		}
	}
	return k.find(first, ctx)
}

// slot returns where worker ctx's scratch is.
func (k *keyring) slot(first *slots, ctx int) *atomic.Pointer[scratch] {
	if ctx < len(first) {
		return &first[ctx]
	}
	return &k.more[ctx-len(first)]
}

// find returns worker ctx's scratch, and builds it if there is none.
func (k *keyring) find(first *slots, ctx int) (*scratch, error) {
	if ctx >= int(k.contexts) {
		panic("esp: an SA is used by more workers than it was made for")
	}
	slot := k.slot(first, ctx)
	if c := slot.Load(); c != nil {
		return c, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wiped {
		return nil, ErrWiped
	}
	c := &scratch{aead: k.aead}
	copy(c.nonce[:], k.salt[:])
	if k.aead == nil {
		var zero [aesBlockLen]byte
		m := &cbcScratch{ivGen: k.ivGen, mac: hmac.New(k.hash, k.integ)}
		if k.outbound {
			m.mode = cipher.NewCBCEncrypter(k.block, zero[:]).(cbcMode)
		} else {
			m.mode = cipher.NewCBCDecrypter(k.block, zero[:]).(cbcMode)
		}
		m.mac.Reset() // the first one saves the keyed state and allocates, later ones restore it
		c.cbc = m
	}
	slot.Store(c)
	return c, nil
}

// wipe forgets the keys: own copies are overwritten; what the cipher types hold inside
// cannot be reached, its references are dropped and the collector frees it. A worker that
// is in the middle of a packet finishes it with the scratch that it has.
func (k *keyring) wipe(first *slots) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wiped = true
	clear(k.integ)
	clear(k.salt[:])
	k.aead, k.block, k.ivGen, k.integ = nil, nil, nil, nil
	for i := range len(first) + len(k.more) {
		k.slot(first, i).Store(nil)
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
