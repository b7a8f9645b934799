package config

import (
	"bytes"
	"maps"
	"slices"

	"postern/engine/control"
	"postern/ike/pki"
)

// has tells whether the list has exactly that section. The files that it names may have changed since.
func has(list []loadedSection, s *loadedSection) bool {
	i := slices.IndexFunc(list, func(o loadedSection) bool { return o.name == s.name })
	return i >= 0 && equalMessages(list[i].m, s.m) && maps.EqualFunc(list[i].certs, s.certs, func(a, b []*pki.Cert) bool {
		return slices.EqualFunc(a, b, (*pki.Cert).Equal)
	})
}

func equalMessages(a, b *control.Message) bool {
	return slices.EqualFunc(a.Elements(), b.Elements(), func(x, y control.Element) bool {
		return x.Kind == y.Kind && x.Name == y.Name && x.Value == y.Value && slices.Equal(x.Items, y.Items) && equalMessages(x.Section, y.Section)
	})
}

func (s *loadedShared) equal(o *loadedShared) bool {
	return s.id == o.id && s.kind == o.kind && slices.Equal(s.owners, o.owners) && bytes.Equal(s.key, o.key)
}
