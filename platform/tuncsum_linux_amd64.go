//go:build !purego

package platform

import "golang.org/x/sys/cpu"

// vectors tells that the processor has AVX2, and that what is computed with it is right: a
// wrong sum would cost every packet. Without it, sums take more time.
var vectors = cpu.X86.HasAVX2 && rightVectors(sumVectors)

// rightVectors compares sumVectors with sumPlain over lengths that lead through all of its
// parts, in less than a millisecond. It cannot catch what the processor refuses to execute at
// all: the program ends.
func rightVectors(sum func(*byte, int) uint64) bool {
	var b [64 + 32 + 30]byte
	for i := range b {
		b[i] = byte(^i * i)
	}
	for _, n := range []int{minVectors, 64, len(b)} {
		if fold(sum(&b[0], n)) != fold(sumPlain(b[:n], 0)) {
			return false
		}
	}
	return true
}

// sumVectors is the sum of n octets at p, with AVX2. n is even and at least minVectors.
//
//go:noescape
func sumVectors(p *byte, n int) uint64
