package ctaes

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"strconv"
	"sync/atomic"
)

// A Routine is one way of computing the cipher. All have the same results.
type Routine uint8

const (
	// Sliced is this package's code, in constant time on every processor.
	Sliced Routine = iota
	// Library is crypto/aes, which is in constant time with AES instructions only.
	Library
	// Wide is this package's assembly for AES-GCM by the vector instructions of amd64 (VAES and
	// VPCLMULQDQ on 64 octets), which the library does not use. All else is Library's.
	Wide
)

// String returns the routine's name, as it stands in logs.
func (r Routine) String() string {
	switch r {
	case Sliced:
		return "constant-time code"
	case Library:
		return "library"
	case Wide:
		return "vector AES"
	}
	return "routine " + strconv.Itoa(int(r))
}

// CPU is what the caller knows about the processor. The zero value is always safe.
type CPU struct {
	// AES says that the processor has instructions for AES and for carry-less
	// multiplication, and that the library uses them.
	AES bool
	// Wide says that it has those on vectors of 64 octets as well.
	Wide bool
}

// current is the Routine of the ciphers that are made from now on.
var current atomic.Uint32

func init() { current.Store(uint32(Routines(Detect())[0])) }

// Routines returns what computes in constant time on cpu, the fastest first. The last is Sliced,
// which every processor has.
func Routines(cpu CPU) []Routine {
	switch {
	case cpu.AES && cpu.Wide:
		return []Routine{Wide, Library, Sliced}
	case cpu.AES:
		return []Routine{Library, Sliced}
	}
	return []Routine{Sliced}
}

// Use sets the routine of all ciphers that are made afterwards, those that exist keep
// theirs. Before the first call it is the first of Routines(Detect()). An error means that there is no such
// routine here, and that nothing has changed. It may be called at any time.
func Use(r Routine) error {
	if r > Wide || r == Wide && !detectWide() {
		return fmt.Errorf("ctaes: there is no %s here", r)
	}
	current.Store(uint32(r))
	return nil
}

// Current returns the routine that NewCipher and NewGCM use.
func Current() Routine { return Routine(current.Load()) }

// NewCipher returns AES with a key of 16, 24 or 32 octets, which is copied. It has no state
// besides the key: any number of goroutines may use it at once. The modes of crypto/cipher
// take it as they take the library's. With Sliced, CBC decrypts all blocks of a slice at
// once; encrypting goes block by block in any case, and leaves half of every word idle on
// 32-bit processors, three quarters on the others.
func NewCipher(key []byte) (cipher.Block, error) { return newCipher(Current(), key) }

func newCipher(r Routine, key []byte) (cipher.Block, error) {
	if r == Sliced {
		return newBlock(key)
	}
	return aes.NewCipher(key)
}

// NewGCM returns AES-GCM with a key of 16, 24 or 32 octets, which is copied, for nonces of
// NonceSize octets and tags of Overhead. The AEAD has no state besides the key: any number of
// goroutines may use it at once. It allocates nothing if the destination has room. Seal and
// Open work in place (dst = plaintext[:0] or ciphertext[:0]); they panic if input and
// output overlap in any other way, or if the nonce is of another length. Open leaves its
// destination undefined if it returns an error, and nothing decrypted in it.
func NewGCM(key []byte) (cipher.AEAD, error) { return newAEAD(Current(), key, Overhead) }

// NewGCMWithTagSize is NewGCM with tags cut to 8, 12 or 16 octets (SP 800-38D section 5.2.1.2).
// With less than 16 the AEAD may have state and is for one goroutine: [Worker] makes one for
// each other.
func NewGCMWithTagSize(key []byte, tag int) (cipher.AEAD, error) {
	if tag != 8 && tag != 12 && tag != Overhead {
		return nil, tagSizeError(tag)
	}
	return newAEAD(Current(), key, tag)
}

func newAEAD(r Routine, key []byte, tag int) (cipher.AEAD, error) {
	if r == Wide {
		return newWide(key, tag)
	}
	if r == Library && tag != Overhead {
		return newShortGCM(key, tag)
	}
	if r == Library {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	}
	b, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	return newGCM(b, tag), nil
}

// Worker returns an AEAD with the same key for another goroutine: a itself, if it has no state,
// a copy otherwise. What is not of this package is taken for one without state.
func Worker(a cipher.AEAD) cipher.AEAD {
	if w, ok := a.(interface{ worker() cipher.AEAD }); ok {
		return w.worker()
	}
	return a
}
