package esp

import (
	"crypto/cipher"
	"fmt"
	"sync"
	"sync/atomic"

	"postern/esp/chapoly"
	"postern/esp/ctaes"
)

// slots has the scratch of the first workers. It is apart from the keyring, so that an SA has
// it beside what else every packet needs.
type slots [3]atomic.Pointer[scratch]

// keyring holds one SA's keys and hands every worker its scratch when it first asks, so
// that idle workers cost one pointer.
//
// AEAD ciphers without state and AES key schedules are made once and shared: they do not change.
// An integrity transform's key is kept, since each scratch makes a mac of it.
type keyring struct {
	more     []atomic.Pointer[scratch] // of the workers that slots has no room for
	contexts int32

	mu    sync.Mutex // of all that follows; taken when a scratch is made and by wipe
	salt  [saltLen]byte
	integ []byte
	build func(c *scratch) error // fills in a worker's scratch; nil: the keys are wiped
}

// init checks the SA's keys and expands them. It keeps no reference to sa's slices.
func (k *keyring) init(sa *SA, outbound bool, first *slots, contexts int) error {
	if err := sa.Suite.validate(); err != nil {
		return err
	}
	row, _ := sa.Suite.Encr.row()
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
	case row.implicit && sa.Cycle:
		return fmt.Errorf("esp: SA %08x: %s makes its nonces of the 32 bits that are sent, which must not begin anew", sa.SPI, sa.Suite)
	case row.implicit && (sa.Local.Addr().IsMulticast() || sa.Remote.Addr().IsMulticast()):
		// Senders that share an SA would use one sequence number twice, which is the IV.
		return fmt.Errorf("esp: SA %08x: %s cannot be used with multicast (RFC 8750 section 7), use the cipher with an explicit IV", sa.SPI, sa.Suite)
	}
	k.contexts = int32(contexts)
	k.more = make([]atomic.Pointer[scratch], max(contexts-len(first), 0))
	k.integ = append([]byte(nil), sa.IntegKey...)
	key := sa.EncrKey[:encr-row.salt]
	copy(k.salt[saltLen-row.salt:], sa.EncrKey[encr-row.salt:])

	var err error
	esn := sa.Suite.ESN
	switch row.kind {
	case kindAH:
		integ, _ := sa.Suite.Integ.row()
		k.build = func(c *scratch) error {
			m, err := newAHScratch(integ, k.integ, esn)
			c.do = m
			return err
		}
	case kindGCM, kindCCM, kindChaPoly:
		var shared cipher.AEAD
		shared, err = NewAEAD(sa.Suite.Encr, key)
		k.build = func(c *scratch) error {
			c.aead = aeadScratch{aead: ctaes.Worker(shared), from: uint8(saltLen - row.salt), esn: esn, implicit: row.implicit}
			copy(c.aead.nonce[:], k.salt[:])
			c.do = &c.aead
			return nil
		}
	case kindGMAC:
		k.integ = append(k.integ, sa.EncrKey...)
		k.build = func(c *scratch) error {
			m, err := ctaes.NewGMAC(k.integ[:len(k.integ)-gmacSaltLen], k.salt[:])
			c.do = &gmac{mac: m, esn: esn}
			return err
		}
	default:
		var newCipher func() textCipher
		newCipher, err = k.textCipher(sa, row.kind, key, outbound)
		integ, _ := sa.Suite.Integ.row()
		k.build = func(c *scratch) error {
			m, err := integ.newMAC(k.integ)
			c.do = &pair{cipher: newCipher(), mac: m, esn: esn}
			return err
		}
	}
	if err != nil {
		k.wipe(first)
		return fmt.Errorf("esp: SA %08x: %s: %w", sa.SPI, sa.Suite, err)
	}
	return nil
}

// NewAEAD returns an encryption transform that protects integrity itself, with its key, which does not have the
// salt. It is for one goroutine. The error says that there is none, or that the key is of
// another length.
func NewAEAD(e EncrID, key []byte) (cipher.AEAD, error) {
	switch r, _ := e.row(); r.kind {
	case kindGCM:
		return ctaes.NewGCMWithTagSize(key, r.icv)
	case kindCCM:
		return ctaes.NewCCM(key, r.icv)
	case kindChaPoly:
		return chapoly.New(key)
	}
	return nil, fmt.Errorf("esp: %v is no cipher with integrity of its own", e)
}

// textCipher expands the key of a cipher that does not authenticate, and returns what makes a
// worker's.
func (k *keyring) textCipher(sa *SA, kind encrKind, key []byte, outbound bool) (func() textCipher, error) {
	if kind == kindNull {
		return func() textCipher { return nullCipher{} }, nil
	}
	block, err := ctaes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if kind == kindCTR {
		return func() textCipher {
			c := &ctrCipher{ctr: ctaes.NewCTR(block)}
			copy(c.nonce[:], k.salt[:])
			return c
		}, nil
	}
	var zero [aesBlockLen]byte
	if !outbound {
		return func() textCipher { return &cbcCipher{mode: cipher.NewCBCDecrypter(block, zero[:]).(cbcMode)} }, nil
	}
	integ, _ := sa.Suite.Integ.row()
	m, err := integ.newMAC(k.integ)
	if err != nil {
		return nil, err
	}
	ivGen, err := ivCipher(m, sa.IVSeed)
	return func() textCipher {
		return &cbcCipher{mode: cipher.NewCBCEncrypter(block, zero[:]).(cbcMode), ivGen: ivGen}
	}, err
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
	if k.build == nil {
		return nil, ErrWiped
	}
	c := new(scratch)
	if err := k.build(c); err != nil {
		return nil, err
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
	clear(k.integ)
	clear(k.salt[:])
	k.integ, k.build = nil, nil
	for i := range len(first) + len(k.more) {
		k.slot(first, i).Store(nil)
	}
}
