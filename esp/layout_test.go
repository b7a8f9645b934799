package esp

import (
	"testing"
	"unsafe"
)

// What a packet touches of an SA is what a packet costs with many SAs.
func TestPacketsTouchFewCacheLines(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the layout is for 64-bit machines")
	}
	const line = 64
	var o Outbound
	var in Inbound
	for _, c := range []struct {
		what       string
		begin, end uintptr
	}{
		{"outbound, all", 0, unsafe.Offsetof(o.lim)},
		{"inbound, what is read", 0, unsafe.Offsetof(in.win) + unsafe.Offsetof(in.win.top)},
		{"inbound, what is written", unsafe.Offsetof(in.win) + unsafe.Offsetof(in.win.top), unsafe.Offsetof(in.lim)},
	} {
		if c.begin%line != 0 || c.end-c.begin > line {
			t.Errorf("%s: octets %d to %d are more than one cache line", c.what, c.begin, c.end)
		}
	}
	for what, size := range map[string]uintptr{"Outbound": unsafe.Sizeof(o), "Inbound": unsafe.Sizeof(in), "scratch": unsafe.Sizeof(scratch{})} {
		if size&(size-1) != 0 && size != 192 && size != 320 {
			t.Errorf("%s has %d octets: the allocator has no such class that is aligned to a line", what, size)
		}
	}
}
