package board

import "testing"

func TestProfilesGrowAndFitTheTables(t *testing.T) {
	all := All()
	for i, p := range all {
		for name, n := range map[string]int{"ChildSAs": p.ChildSAs, "FlowCache": p.FlowCache} {
			if n <= 0 || n&(n-1) != 0 {
				t.Errorf("%s: %s is %d, want a power of two: slots are masked out of SPIs and hashes", p.Name, name, n)
			}
		}
		if p.Cookies >= p.HalfOpen || p.HalfOpen >= p.IKESAs || p.ChildSAs < p.IKESAs {
			t.Errorf("%s: cookies are demanded from %d half-open IKE SAs, %d of them fit, and %d IKE SAs and %d CHILD SAs: want each below the next",
				p.Name, p.Cookies, p.HalfOpen, p.IKESAs, p.ChildSAs)
		}
		if p.Queues < 1 || p.Queues > 8 {
			t.Errorf("%s: %d workers of the data path, want 1 to 8", p.Name, p.Queues)
		}
		if i > 0 && (p.IKESAs <= all[i-1].IKESAs || p.MemoryMiB <= all[i-1].MemoryMiB) {
			t.Errorf("%s affords no more than %s", p.Name, all[i-1].Name)
		}
		if got, err := ByName(p.Name); err != nil || got != p {
			t.Errorf("ByName(%q) = %+v, %v", p.Name, got, err)
		}
	}
	if _, err := ByName("huge"); err == nil {
		t.Error("an unknown profile is no error")
	}
}

func TestProfileFollowsTheMemory(t *testing.T) {
	for mib, want := range map[uint64]string{0: "small", 32: "tiny", 64: "small", 128: "small", 256: "large", 4096: "large"} {
		if got := ForRAM(mib << 20).Name; got != want {
			t.Errorf("%d MiB of RAM get the profile %s, want %s", mib, got, want)
		}
	}
}
