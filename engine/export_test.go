package engine

import (
	"bytes"
	"testing"

	"postern/board"
	"postern/esp"
)

// The keys are kept only while the configuration says so.
func TestKeysAreForgottenWhenTheyAreNotToBeTold(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	in, out := tp.addLoop(t, testSuites[0], true, "c", "k", "10.1.0.0/16", "10.2.0.0/16", true)
	sa := testSA(testSuites[0], esp.Out, out.spi, "192.0.2.1:4500", "192.0.2.2:4500")
	in.export, out.export = exported(&sa), exported(&sa)
	line := out.export
	if !bytes.HasPrefix(line, []byte(`"IPv4","*","*","0x`)) || cap(line) != exportLen {
		t.Fatalf("the line has %d of %d octets, and begins with %.20s", len(line), cap(line), line)
	}
	l := &ikeLoop{d: tp.datapath}
	l.setExport(true)
	if out.export == nil || !l.exportKeys {
		t.Error("the keys are gone while they are to be told")
	}
	l.setExport(false)
	if in.export != nil || out.export != nil || bytes.ContainsAny(line, "0123456789abcdef") {
		t.Errorf("of the keys is left: %s", line)
	}
}

// No suite has a line that outgrows its room; what Wireshark cannot decrypt has none.
func TestEverySuiteFitsItsLine(t *testing.T) {
	lines := 0
	for _, s := range everySuite() {
		sa := testSA(s, esp.Out, 0xffffffff, "[2001:db8::1]:4500", "[2001:db8::2]:4500")
		if line := exported(&sa); line != nil {
			lines++
			if cap(line) != exportLen {
				t.Errorf("%v: the line of %d octets has grown", s, len(line))
			}
		}
	}
	if lines < 50 {
		t.Errorf("only %d suites have a line", lines)
	}
}
