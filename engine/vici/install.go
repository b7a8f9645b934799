package vici

import (
	"errors"
	"fmt"

	"postern/engine/control"
)

// install and uninstall add and take away the policy of a child by hand.

var errNoName = errors.New("missing configuration name")

func (h Handler) install(req *control.Message) error {
	child := req.Get(control.KeyChild)
	if child == "" {
		return errNoName
	}
	var found bool
	var err error
	if lerr := h.D.Do(func(l Loop) { found, err = l.Install(req.Get(control.KeyIKE), child) }); lerr != nil {
		return lerr
	}
	switch {
	case !found:
		return errors.New("configuration name not found")
	case err != nil:
		return fmt.Errorf("installing policy '%.255s' failed: %w", child, err)
	}
	return nil
}

func (h Handler) uninstall(req *control.Message) error {
	child := req.Get(control.KeyChild)
	if child == "" {
		return errNoName
	}
	var found bool
	var err error
	if lerr := h.D.Do(func(l Loop) { found, err = l.Uninstall(req.Get(control.KeyIKE), child) }); lerr != nil {
		return lerr
	}
	if !found {
		return fmt.Errorf("policy '%.255s' not found", child)
	}
	return err
}
