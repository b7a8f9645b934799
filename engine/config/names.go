package config

import (
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// NamedAuthority is a CA under the name that the configuration has for it.
type NamedAuthority struct {
	Name string
	pki.Authority
}

// Authorities returns the CAs of the file and of what clients have loaded, in this order. Their
// slices are not to be changed.
func (c *Config) Authorities() []NamedAuthority {
	list := c.authorities
	if list == nil {
		list = c.read.authorities
	}
	var out []NamedAuthority
	for _, a := range list {
		if a.Cert != nil {
			out = append(out, NamedAuthority{a.t.name, a.Authority})
		}
	}
	return out
}

// Shunt is a child without SAs: its packets pass in clear or are dropped, as Action says.
type Shunt struct {
	Conn, Child       string
	Action            esp.Action
	LocalTS, RemoteTS []esp.Selector // not to be changed
	// Owner and As are what was configured: the connection, which may have no part in IKE, and the
	// child, of which hardly anything matters. Not to be changed.
	Owner *ike.Conn
	As    *ike.Child
}

// Priority returns the priority that a client has fixed for a child's policies, 0 for none.
func (c *Config) Priority(child *ike.Child) uint32 { return c.fixed[child] }

// Shunts returns the children that have no SAs, in the order in which they were read.
func (c *Config) Shunts() []Shunt {
	out := make([]Shunt, len(c.shunts))
	for i, s := range c.shunts {
		out[i] = Shunt{s.conn, s.child, s.action, s.local, s.remote, s.owner, s.as}
	}
	return out
}

// HasKey tells whether the private key that belongs to a public one was loaded.
func (l *Loaded) HasKey(pub *pki.PublicKey) bool { return l.copied().keyFor(pub) != nil }
