// Package controltest helps tests that talk to control servers.
package controltest

import (
	"strings"

	"postern/engine/control"
)

// Message makes a request: "key=value", "key[]=a,b" for a list, and "a.b.key=value" within sections.
func Message(parts ...string) *control.Message {
	m := new(control.Message)
	for _, p := range parts {
		path, value, _ := strings.Cut(p, "=")
		to := m
		for {
			name, rest, deeper := strings.Cut(path, ".")
			if !deeper {
				break
			}
			if to.Sub(name) == nil {
				to.Section(name)
			}
			to, path = to.Sub(name), rest
		}
		if key, ok := strings.CutSuffix(path, "[]"); ok {
			to.List(key, strings.Split(value, ",")...)
		} else {
			to.Set(path, value)
		}
	}
	return m
}
