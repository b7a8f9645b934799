package vici

import (
	"errors"

	"postern/engine/control"
)

// errNoExport is the answer where keys are asked for and not kept.
var errNoExport = errors.New("the keys are not kept: set export_keys = true in [daemon], reload, and have the SAs made anew")

// saKeys streams the keys of all SAs, if they are kept.
func (h Handler) saKeys(stream func(string, *control.Message) error) (*control.Message, error) {
	var lines []string
	kept := false
	if err := h.D.Do(func(l Loop) { lines, kept = l.Keys() }); err != nil {
		return nil, err
	}
	if !kept {
		return nil, errNoExport
	}
	for _, line := range lines {
		if err := stream(control.EvSAKey, new(control.Message).Set(control.KeyLine, line)); err != nil {
			return nil, err
		}
	}
	return control.Success(), nil
}
