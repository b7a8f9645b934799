package engine

import (
	"testing"

	"postern/board"
	"postern/engine/control/controltest"
)

// A shunt that a client loads without a start_action lets nothing pass until somebody installs it.
func TestShuntWithoutStartActionWaits(t *testing.T) {
	a := startEngine(t, (&fakeWire{}).host("192.0.2.1"), parse(t, ""), board.Tiny)
	a.say("load-conn", controltest.Message("way.children.out.mode=pass", "way.children.out.remote_ts[]=10.9.0.0/16"), ok)
	policies := func() int {
		_, list := a.command("list-policies", "trap", "yes", "pass", "yes", "drop", "yes")
		return len(list)
	}
	if n := policies(); n != 0 {
		t.Errorf("%d policies are there before anybody has installed one", n)
	}
	a.say("install", controltest.Message("child=out", "ike=way"), ok)
	if n := policies(); n != 1 {
		t.Errorf("%d policies are there, want the one that was installed", n)
	}
	a.say("uninstall", controltest.Message("child=out"), ok)
	if n := policies(); n != 0 {
		t.Errorf("%d policies are there after it was taken away", n)
	}
}
