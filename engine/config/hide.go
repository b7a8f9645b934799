package config

import (
	"strconv"
	"strings"
	"time"

	"postern/ike"
)

// The keys of a child that hide its traffic.

var (
	aPadding = &typ{[]kind{kindInteger, kindString}, `a number of octets without quotes, or "mtu"`}
	aRequire = &typ{[]kind{kindBool, kindString}, `true or false without quotes, or "require"`}
	aRate    = &typ{[]kind{kindInteger, kindString}, `bits per second: 64000, or with a unit "500k", "20M"`}
)

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

func (s *scope) iptfs(n *node, to *ike.AskIPTFS) {
	switch {
	case n.kind == kindString && n.text == "require":
		*to = ike.IPTFSRequire
	case n.kind == kindString:
		s.problem(n.at, `write "require", or true or false without quotes`, "%s %q is not known", n.name, n.text)
	case n.text == "true":
		*to = ike.IPTFSYes
	default:
		*to = ike.IPTFSNo
	}
}

// The rates that make sense: a packet a second of the least size, and what one core could ever
// seal.
const (
	minRate = 2_000
	maxRate = 40_000_000_000
)

// rate reads bits per second, with units of 1000.
func (s *scope) rate(n *node, to *uint64) {
	text, unit := n.text, uint64(1)
	if i := len(text) - 1; n.kind == kindString && i >= 0 {
		if u := strings.IndexByte("kmg", text[i]|0x20); u >= 0 {
			text, unit = text[:i], [...]uint64{1e3, 1e6, 1e9}[u]
		}
	}
	v, err := strconv.ParseUint(text, 0, 64)
	if err != nil || v > maxRate/unit || v*unit < minRate {
		s.problem(n.at, `write bits per second from 2000 to "40G", such as "500k" or "20M"`, "%s %s is no rate", n.name, shown(n.text))
		return
	}
	*to = v * unit
}

// minWhole is the least iptfs_size that takes packets of 1280 octets, the least MTU of IPv6, with
// every cipher.
const minWhole = 1400

// checkHiding notes keys that hide traffic and do not go with the rest of a child.
func (l *loader) checkHiding(c *child) {
	h := &c.Hiding
	for _, k := range []struct {
		name string
		on   bool
	}{{"tfc_padding", h.Padding != 0}, {"dummy", h.Dummies != 0}, {"iptfs", h.IPTFS != ike.IPTFSNo}} {
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
	if h.IPTFS == ike.IPTFSNo || c.t.bad {
		for _, name := range []string{"iptfs_mode", "iptfs_rate", "iptfs_size", "iptfs_dont_frag", "iptfs_trip_loss", "iptfs_trip_time"} {
			if n := c.t.get(name); n != nil && good(c.t, "iptfs") && !c.t.bad {
				l.problem(n.key, `write iptfs = true or "require" as well, or take it out`, "%s does nothing without iptfs", name)
				break
			}
		}
		return
	}
	rate := c.t.get("iptfs_rate")
	switch {
	case !good(c.t, "iptfs_mode", "iptfs_rate"):
	case h.Mode == ike.IPTFSAggregate && rate != nil:
		l.problem(rate.key, `take it out, or write iptfs_mode = "constant" or "congestion"`, "iptfs_rate is for packets that leave all the time; iptfs_mode \"aggregate\" sends when there is something to send")
	case h.Mode != ike.IPTFSAggregate && rate == nil:
		l.problem(where(c.t, "iptfs"), `write iptfs_rate = "2M" or what else the path can spare, or iptfs_mode = "aggregate", which hides nothing`,
			"iptfs in mode %q sends all the time, and iptfs_rate does not say how much at most", iptfsWords[h.Mode])
	}
	if good(c.t, "iptfs_mode", "iptfs_trip_loss") && h.TripLoss > 0 && h.Mode != ike.IPTFSConstant {
		l.problem(where(c.t, "iptfs_trip_loss"), `take it out, or write iptfs_mode = "constant"`, "iptfs in mode %q does not go on in spite of losses", iptfsWords[h.Mode])
	}
	if good(c.t, "inactivity") && c.Inactivity > 0 && h.Mode != ike.IPTFSAggregate {
		l.problem(where(c.t, "inactivity"), "take one of the two out", "inactivity never comes while iptfs sends all the time")
	}
	if h.NoFrags && h.Size > 0 && h.Size < minWhole && good(c.t, "iptfs_size") {
		l.warn(where(c.t, "iptfs_size"), "make it "+strconv.Itoa(minWhole)+" or more, or take iptfs_dont_frag out", "iptfs_dont_frag with packets of %d octets drops longer ones, which every host may send", h.Size)
	}
	if h.Padding != 0 || h.Dummies != 0 {
		l.warn(where(c.t, "iptfs"), "take them out, unless the peer may not agree to iptfs", "tfc_padding and dummy do nothing where iptfs is in use")
	}
}
