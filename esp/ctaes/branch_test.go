package ctaes

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"testing"
)

// What the package's comment argues, in the compiler's own output for three kinds of processor:
// through what touches secrets leads one way. Allowed are the check of the stack's depth, where
// there is one, and the ends of loops that are counted by constants.
func TestNothingSecretDecidesABranch(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles for other processors: left out of the short tests")
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("the compiler is not here: ", err)
	}
	branches := regexp.MustCompile(`^(J[A-LN-Z][A-Z]?|B(EQ|NE|LT|LE|GT|GE|HI|LS|CC|CS|HS|LO|MI|PL|VS|VC|LTZ|LEZ|GTZ|GEZ|LTU|GEU|EQZ|NEZ)|CBN?ZW?|TBN?Z)$`)
	division := regexp.MustCompile(`DIV|REM`)
	for _, arch := range []string{runtime.GOARCH, "mipsle", "arm"} {
		allowed := map[string]int{
			"(*slice).sub": 1, "(*slice).affine": 1, "(*slice).inverseSub": 1, "(*slice).xor": 1,
			"mix0": 1, "mix1": 1, "mix2": 1, "mix3": 1,
			"(*slice).transpose": 4, // three loops
			"(*slice).align":     2,
			"multiply":           map[string]int{"mipsle": 1, "arm": 2}[arch], // one loop over the limbs, on 32-bit processors
			"(*hash).blocks":     4,                                           // over the blocks; nil checks that no data reaches
		}
		cmd := exec.Command(tool, "build", "-gcflags=-S", ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOMIPS=softfloat", "GOARM=7")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", arch, err, out)
		}
		seen, count, name := map[string]bool{}, 0, ""
		for line := range bytes.Lines(out) {
			if i := bytes.Index(line, []byte(" STEXT")); i > 0 && line[0] != '\t' {
				name, count = string(line[bytes.LastIndexByte(line[:i], '/')+1+len("ctaes."):i]), 0
				continue
			}
			limit, watched := allowed[name]
			fields := bytes.Split(line, []byte("\t"))
			if !watched || len(fields) < 4 || !bytes.HasPrefix(line, []byte("\t0x")) {
				continue
			}
			seen[name] = true
			switch op := fields[2]; {
			case division.Match(op):
				t.Errorf("%s: %s divides, which takes longer for some numbers: %s", arch, name, line)
			case branches.Match(op):
				if count++; count > limit {
					t.Errorf("%s: %s has more than %d branches: %s", arch, name, limit, line)
				}
			}
		}
		// The compiler may put small functions into others, but not these.
		for _, must := range []string{"(*slice).sub", "mix0", "mix1", "mix2", "mix3", "(*slice).transpose", "multiply"} {
			if !seen[must] {
				t.Errorf("%s: %s was not found in the compiler's output", arch, must)
			}
		}
	}
}
