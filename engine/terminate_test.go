package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/ike"
)

// A forced terminate answers at once whether the peer is there or not, and a peer that is
// there follows.
func TestForcedTerminateDoesNotWait(t *testing.T) {
	for _, cut := range []bool{false, true} {
		wire := &fakeWire{}
		a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none")), board.Tiny)
		b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
		a.command(control.CmdInitiate, "child", "net")
		if cut {
			wire.mu.Lock()
			wire.cut = true
			wire.mu.Unlock()
		}
		sas := func(e *Engine) (n int) {
			_ = e.loop.do(func() { e.loop.m.List(func(*ike.SAInfo) bool { n++; return true }) })
			return n
		}
		if sas(a.Engine) != 1 || sas(b.Engine) != 1 {
			t.Fatal("there is no IKE SA to end")
		}
		begin := time.Now()
		resp, _ := a.command(control.CmdTerminate, "ike-id", "1", "force", "yes")
		if d := time.Since(begin); d > 300*time.Millisecond || !strings.Contains(resp, `success="yes"`) {
			t.Errorf("with the wire cut (%v): %s after %v", cut, resp, d)
		}
		if n := sas(a.Engine); n != 0 {
			t.Errorf("with the wire cut (%v): %d IKE SAs are left", cut, n)
		}
		if !cut {
			eventually(t, "the peer follows", func() bool { return sas(b.Engine) == 0 })
		}
		_ = b.loop.do(func() { b.loop.patience = time.Millisecond })
	}
}
