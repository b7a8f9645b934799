//go:build (mips || mipsle) && !purego

package chapoly

import "testing"

// A processor of release 1 that is said to have the rotate instruction executes it as a
// shift, or not at all. The self-test has to notice the first, and Best without the claim
// has to work.
func TestSelfTestFindsThatRotateIsMissing(t *testing.T) {
	before := Current()
	defer Use(before)
	if err := Use(Best(CPU{Rotate: true})); err != nil || Current() != AssemblyRotate {
		t.Fatalf("a processor with rotate gets %s, %v", Current(), err)
	}
	if err := SelfTest(); (err != nil) != releaseOne() {
		t.Errorf("with rotate, on a processor that lacks it (%v), the self-test says %v", releaseOne(), err)
	}
	if err := Use(Best(CPU{})); err != nil || Current() != Assembly {
		t.Fatalf("a processor without rotate gets %s, %v", Current(), err)
	}
	if err := SelfTest(); err != nil {
		t.Error(err)
	}
}
