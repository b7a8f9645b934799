package platform

import (
	"bytes"
	"os"
)

// MIPSRelease2 tells whether this is a MIPS processor with the instructions of MIPS32
// release 2, as the kernel says in the line "isa" of /proc/cpuinfo; false where it says
// nothing of the kind.
func MIPSRelease2() bool {
	b, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && hasRelease2(b)
}

// hasRelease2 reads the text of /proc/cpuinfo. Every processor of a board must have it.
func hasRelease2(cpuinfo []byte) bool {
	found := false
	for line := range bytes.Lines(cpuinfo) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(key)) != "isa" {
			continue
		}
		has := false
		for word := range bytes.FieldsSeq(value) {
			has = has || string(word) == "mips32r2"
		}
		if !has {
			return false
		}
		found = true
	}
	return found
}
