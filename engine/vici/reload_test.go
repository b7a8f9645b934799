package vici

import (
	"errors"
	"fmt"
	"testing"

	"postern/engine/config"
	"postern/engine/control/controltest"
)

func TestReloadTellsOurClientEachProblem(t *testing.T) {
	d := newFake(t, fileConf)
	if got, _ := d.run("reload-settings", controltest.Message()); got != yesText {
		t.Errorf("a reload answers %s", got)
	}
	d.reload = fmt.Errorf("no file: %w", config.Problems{{File: "a.toml", Line: 3, What: "unknown key"}, {File: "b.toml", What: "it is empty"}})
	for req, want := range map[string]string{
		"name=x":      `success="no" errmsg="no file: a.toml:3: unknown key; b.toml: it is empty"`,
		"postern=yes": `success="no" errmsg="the configuration has problems, and the one before stays" problems=["a.toml:3: unknown key" "b.toml: it is empty"]`,
	} {
		if got, _ := d.run("reload-settings", controltest.Message(req)); got != want {
			t.Errorf("with %s the answer is %s, want %s", req, got, want)
		}
	}
	d.reload = errors.New("no such file")
	if got, _ := d.run("reload-settings", controltest.Message("postern=yes")); got != `success="no" errmsg="no such file"` {
		t.Errorf("another error is answered with %s", got)
	}
}
