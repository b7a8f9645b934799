//go:build !purego

package platform

import (
	"testing"

	"golang.org/x/sys/cpu"
)

func TestVectorsAreUsedIfTheyAreRight(t *testing.T) {
	if !cpu.X86.HasAVX2 {
		t.Skip("this processor has no AVX2")
	}
	if !vectors {
		t.Error("what AVX2 sums up differs from what Go does")
	}
	for _, wrong := range []int{minVectors, 64, 64 + 32 + 30} {
		if rightVectors(func(p *byte, n int) uint64 {
			if n == wrong {
				return sumVectors(p, n) + 1
			}
			return sumVectors(p, n)
		}) {
			t.Errorf("a wrong sum of %d octets is taken for right", wrong)
		}
	}
}
