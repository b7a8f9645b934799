//go:build 386 || (purego && (arm || mips || mipsle))

package chapoly

var routines = [...]Routine{Plain}
