//go:build arm && !purego

package chapoly

var routines = [...]Routine{Plain, Assembly}

// xorAssembly is xorPlain in assembly.
//
//go:noescape
func xorAssembly(dst, src *uint32, n int, s *state)

// sumAssembly is sumPlain in assembly.
//
//go:noescape
func sumAssembly(p *poly, m *uint32, n int)

// xorBlocks XORs n > 0 blocks of the key stream with what is at src into dst, and counts
// them in s.
func xorBlocks(r Routine, dst, src *uint32, n int, s *state) {
	if r == Plain {
		xorPlain(dst, src, n, s)
		return
	}
	xorAssembly(dst, src, n, s)
}

// polyBlocks adds n > 0 blocks to the sum.
func polyBlocks(r Routine, p *poly, m *uint32, n int) {
	if r == Plain {
		sumPlain(p, m, n)
		return
	}
	sumAssembly(p, m, n)
}
