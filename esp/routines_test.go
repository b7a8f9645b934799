package esp

import (
	"bytes"
	"testing"

	"postern/esp/ctaes"
)

// What one routine of AES seals, the next opens. The vectors
// and all other tests run with the routine of the processor that they run on.
func TestAESRoutinesOpenEachOther(t *testing.T) {
	defer ctaes.Use(ctaes.Current())
	use := func(r ctaes.Routine) {
		if err := ctaes.Use(r); err != nil {
			t.Fatal(err)
		}
	}
	routines := ctaes.Routines(ctaes.Detect())
	if len(routines) == 1 {
		routines = append(routines, ctaes.Library)
	}
	for _, s := range allSuites() {
		for i, r := range routines {
			use(r)
			out, err := NewOutbound(testSA(s, Out), 1)
			if err != nil {
				t.Fatal(err)
			}
			use(routines[(i+1)%len(routines)])
			in, err := NewInbound(testSA(s, In), 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{0, 1, 20, 64, 576, 1400} {
				want := fill(int64(n), n)
				buf := make([]byte, HeadRoom+n+TailRoom)
				copy(buf[HeadRoom:], want)
				start, end, err := out.Seal(0, buf, HeadRoom, n, ProtoIPv4)
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := in.Open(0, buf[start:end])
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s: %d octets sealed by the %s do not open with the other routine: %v", s, n, r, err)
				}
			}
			spare := make([]byte, HeadRoom+1300+TailRoom)
			allocs := testing.AllocsPerRun(20, func() {
				buf := spare[:]
				if start, end, err := out.Seal(0, buf, HeadRoom, 1300, ProtoIPv4); err != nil || end <= start {
					t.Fatal(err)
				}
			})
			if allocs != 0 {
				t.Errorf("%s: sealing with the %s allocates %v times", s, r, allocs)
			}
		}
	}
}
