package chapoly

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"

	"postern/esp/aead"
)

const (
	KeySize   = 32             // octets of key
	NonceSize = aead.NonceSize // octets of nonce; one must never seal twice under the same key
	Overhead  = aead.Overhead  // octets of tag that follow the ciphertext
)

// A Routine is one way of computing the cipher. All have the same results.
type Routine uint8

const (
	// Plain is the code in Go. Every processor has it.
	Plain Routine = iota
	// Library is golang.org/x/crypto's code, on 64-bit processors.
	Library
	// Assembly is for ARMv5 and later, and for MIPS32 of any release.
	Assembly
	// AssemblyRotate is Assembly with the rotate instruction of MIPS32 release 2.
	AssemblyRotate
)

// String returns the routine's name, as it stands in logs.
func (r Routine) String() string {
	switch r {
	case Plain:
		return "plain Go"
	case Library:
		return "library"
	case Assembly:
		return "assembly"
	case AssemblyRotate:
		return "assembly with rotate"
	}
	return "routine " + strconv.Itoa(int(r))
}

// CPU is what the caller found out about the processor. The zero value is always safe.
type CPU struct {
	// Rotate says that a MIPS processor has the instructions of MIPS32 release 2: Linux
	// lists mips32r2 in the line "isa" of /proc/cpuinfo. Other processors ignore it.
	Rotate bool
}

var errRoutine = errors.New("chapoly: this program has no such routine")

// current is the Routine of the AEADs that are made from now on.
var current atomic.Uint32

func init() { current.Store(uint32(Best(CPU{}))) }

// Routines returns those that this program has for its architecture, the slowest first.
// A processor of that architecture may lack what AssemblyRotate needs.
func Routines() []Routine { return slices.Clone(routines[:]) }

// Best returns the fastest routine that cpu can run. It changes nothing.
func Best(cpu CPU) Routine {
	best := routines[len(routines)-1]
	if best == AssemblyRotate && !cpu.Rotate {
		return Assembly
	}
	return best
}

// Use sets the routine of all AEADs that are made afterwards, those that exist keep
// theirs. Before the first call it is Best(CPU{}). An error means that the program has no
// such routine, and that nothing has changed. It may be called at any time.
func Use(r Routine) error {
	if !slices.Contains(routines[:], r) {
		return fmt.Errorf("%w: %s", errRoutine, r)
	}
	current.Store(uint32(r))
	return nil
}

// Current returns the routine that New uses.
func Current() Routine { return Routine(current.Load()) }

// New returns ChaCha20-Poly1305 with the given key of KeySize octets, which is copied. The
// AEAD has no state besides the key: any number of goroutines may use it at once. It
// allocates nothing if the destination has room. Seal and Open work in place
// (dst = plaintext[:0] or ciphertext[:0]); they panic if input and output overlap in any
// other way, or if the nonce is not of NonceSize octets. Open leaves its destination
// undefined if it returns an error.
func New(key []byte) (cipher.AEAD, error) {
	if len(key) != KeySize {
		return nil, errors.New("chapoly: the key has " + strconv.Itoa(len(key)) + " octets, it must have 32")
	}
	return newAEAD(Current(), key)
}
