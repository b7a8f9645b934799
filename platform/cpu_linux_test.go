package platform

import "testing"

func TestRelease2IsReadFromCPUInfo(t *testing.T) {
	const r2 = "isa\t\t\t: mips1 mips2 mips32r1 mips32r2\n"
	const r1 = "isa\t\t\t: mips1 mips2 mips32r1\n"
	for text, want := range map[string]bool{
		"":                           false,
		"model name\t: Some x86\n":   false,
		"cpu model\t: 24Kc\n" + r2:   true,
		"cpu model\t: 4Kc\n" + r1:    false,
		r2 + "processor\t: 1\n" + r1: false, // one of two lacks it
		"isa : mips32r20 mips32r1\n": false,
	} {
		if got := hasRelease2([]byte(text)); got != want {
			t.Errorf("%q: release 2 is %v, want %v", text, got, want)
		}
	}
}
