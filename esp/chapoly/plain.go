//go:build purego || !(arm || mips || mipsle)

package chapoly

func xorBlocks(_ Routine, dst, src *uint32, n int, s *state) { xorPlain(dst, src, n, s) }

func polyBlocks(_ Routine, p *poly, m *uint32, n int) { sumPlain(p, m, n) }
