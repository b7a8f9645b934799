//go:build (mips || mipsle) && !purego

package chapoly

var routines = [...]Routine{Plain, Assembly, AssemblyRotate}

// xorShift and xorRotate are xorPlain in assembly.
//
//go:noescape
func xorShift(dst, src *uint32, n int, s *state)

//go:noescape
func xorRotate(dst, src *uint32, n int, s *state)

// sumAssembly is sumPlain in assembly.
//
//go:noescape
func sumAssembly(p *poly, m *uint32, n int)

// xorBlocks XORs n > 0 blocks of the key stream with what is at src into dst, and counts
// them in s.
func xorBlocks(r Routine, dst, src *uint32, n int, s *state) {
	switch r {
	case AssemblyRotate:
		xorRotate(dst, src, n, s)
	case Assembly:
		xorShift(dst, src, n, s)
	default:
		xorPlain(dst, src, n, s)
	}
}

// polyBlocks adds n > 0 blocks to the sum. There is nothing to rotate in Poly1305.
func polyBlocks(r Routine, p *poly, m *uint32, n int) {
	if r == Plain {
		sumPlain(p, m, n)
		return
	}
	sumAssembly(p, m, n)
}
