package config

import (
	"time"

	"postern/ike"
)

// The keys of a child that hide its traffic.

var aPadding = &typ{[]kind{kindInteger, kindString}, `a number of octets without quotes, or "mtu"`}

// maxPadding is more than a packet can have, so that any length may be meant.
const maxPadding = 65535

func (s *scope) padding(n *node, to *int) {
	if n.kind == kindString && n.text == "mtu" {
		*to = ike.PadMTU
		return
	}
	if n.kind == kindString {
		s.problem(n.at, `write "mtu", or a number without quotes`, "%s %q is not known", n.name, n.text)
		return
	}
	s.number(n, 0, maxPadding, to)
}

// minDummies keeps dummies from being a stream: that is what iptfs is for.
const minDummies = 10 * time.Millisecond

func (s *scope) dummies(n *node, to *time.Duration) {
	if s.duration(n, to); *to > 0 && *to < minDummies {
		*to = 0
		s.problem(n.at, `use "10ms" or more, or 0 for none; a stream of packets is what iptfs is for`, "%s is too short", n.name)
	}
}

// checkHiding notes keys that hide traffic and do not go with the rest of a child.
func (l *loader) checkHiding(c *child) {
	h := &c.Hiding
	for _, k := range []struct {
		name string
		on   bool
	}{{"tfc_padding", h.Padding != 0}, {"dummy", h.Dummies != 0}} {
		if !k.on || !good(c.t, k.name) {
			continue
		}
		switch {
		case c.mode != modeTunnel && good(c.t, "mode"):
			l.problem(where(c.t, k.name), `write mode = "tunnel", or take it out`, "%s is for tunnel mode alone, not %q", k.name, modeWords[c.mode])
		case c.t.get("ah_proposals") != nil:
			l.problem(where(c.t, k.name), "use esp_proposals, or take it out", "%s hides traffic in ESP; AH hides nothing", k.name)
		}
	}
}
