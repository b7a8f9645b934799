package esp

import (
	"errors"
	"testing"
)

func noAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	runs := 50
	if testing.Short() {
		runs = 5
	}
	if n := testing.AllocsPerRun(runs, f); n != 0 {
		t.Errorf("%s: %v allocations, want 0", what, n)
	}
}

func TestPacketsCostNoAllocation(t *testing.T) {
	for _, s := range allSuites() {
		for _, size := range []int{0, 64, 1400} {
			o, in, _ := testPair(t, s, 64)
			buf := make([]byte, HeadRoom+size+TailRoom)
			var err error
			noAllocs(t, s.String()+" seal", func() {
				_, _, err = o.Seal(0, buf, HeadRoom, size, 4)
			})
			if err != nil {
				t.Fatal(err)
			}
			noAllocs(t, s.String()+" seal and open", func() {
				start, end, _ := o.Seal(0, buf, HeadRoom, size, 4)
				_, _, err = in.Open(0, buf[start:end])
			})
			if err != nil {
				t.Fatal(err)
			}
			start, end, _ := o.Seal(0, buf, HeadRoom, size, 4)
			pkt := buf[start:end]
			pkt[len(pkt)-1] ^= 1
			noAllocs(t, s.String()+" open of a forgery", func() {
				_, _, err = in.Open(0, pkt)
			})
			if !errors.Is(err, ErrAuth) {
				t.Fatal(err)
			}
			old := refPacket(testSA(s, Out), in.win.top.Load(), make([]byte, size), 4)
			noAllocs(t, s.String()+" open of a replay", func() {
				_, _, err = in.Open(0, old)
			})
			if !errors.Is(err, ErrReplay) {
				t.Fatal(err)
			}
		}
	}
}

func TestFlowsCostNoAllocation(t *testing.T) {
	local := []Selector{mustSelector("10.9.0.0/24"), mustSelector("10.1.0.0/24")}
	remote := []Selector{mustSelector("10.2.0.0/16")}
	pkt := ipv4Packet(ProtoTCP, 0, 40)
	var f Flow
	matched := false
	noAllocs(t, "ParseFlow and MatchFlow", func() {
		if err := ParseFlow(pkt, true, &f); err != nil {
			t.Fatal(err)
		}
		matched = MatchFlow(local, remote, &f)
	})
	if !matched {
		t.Error("the flow does not match")
	}
}
