package ike

import "slices"

// Secret is a pre-shared key and the identities that it is for. With no identity it
// serves any pair. Of several that fit, the one that names more of the two wins.
type Secret struct {
	Name string
	IDs  []ID
	Key  []byte
	// Any: of several identities one suffices, ours or the peer's, and they may be patterns, as
	// strongSwan has it.
	Any bool
}

// Fits tells how well the secret fits a pair of identities; 0 means not at all. A zero
// identity is one that is not known yet. It fits best if it names both, then if it names
// only the peer, then only us, then if it is for anybody, or for one of the two while the
// other is not known.
func (s *Secret) Fits(local, remote ID) int {
	l, r := s.names(local), s.names(remote)
	one := len(s.IDs) == 1 || s.Any
	switch {
	case l && r:
		return 4
	case r && one:
		return 3
	case l && one:
		return 2
	case len(s.IDs) == 0, l && remote == ID{}, r && local == ID{}:
		return 1
	}
	return 0
}

// names tells whether the secret is for that identity, if it is known.
func (s *Secret) names(id ID) bool {
	return id != ID{} && slices.ContainsFunc(s.IDs, func(o ID) bool { return o.Equal(id) || s.Any && o.Admits(id) })
}

// String names the secret and keeps its key to itself, however the value is printed.
func (s Secret) String() string { return "secret " + s.Name }

// GoString is String.
func (s Secret) GoString() string { return s.String() }
