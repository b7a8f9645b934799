package config

import (
	"strings"

	"postern/esp"
)

// checkTableOrder notes entries that an earlier one leaves nothing to, or less than one may
// think: the first that fits a packet decides (RFC 4301 section 4.4.1). Two children that
// [policies] does not name are the business of checkOrder.
func (l *loader) checkTableOrder() {
	if len(l.cfg.table)+len(l.cfg.shunts)+len(l.cfg.Manual) == 0 || len(l.problems) > 0 {
		return // what could not be read may have said something else
	}
	list := l.cfg.SPD(nil)
	for i := range list {
		later := &list[i]
		if len(later.LocalTS) == 0 {
			continue
		}
		for j := range list[:i] {
			if earlier := &list[j]; l.compareEntries(earlier, later) {
				break
			}
		}
	}
}

// plainChild tells whether the entry is a child that stands where children do.
func (e *Entry) plainChild() bool { return e.Name == "" && e.Carrier != nil }

// compareEntries notes what two entries do to each other, and tells whether that is enough
// for the later one.
func (l *loader) compareEntries(earlier, later *Entry) (noted bool) {
	if earlier.Parked || later.Parked || len(earlier.LocalTS) == 0 || earlier.Device != later.Device || earlier.plainChild() && later.plainChild() {
		return false
	}
	name, other := later.placeName(), earlier.placeName()
	name, _, _ = strings.Cut(name, " (")
	whole := earlier.Dir == esp.BothWays || earlier.Dir == later.Dir
	if whole && coversBoth(earlier.LocalTS, earlier.RemoteTS, later.LocalTS, later.RemoteTS) {
		if earlier.Action == later.Action {
			l.warn(later.at, "take one of the two out, or put the narrower one first", "%s never decides: %s takes all its packets, with the same action", name, other)
		} else {
			l.problem(later.at, "put the narrower one first, or take one of the two out", "%s never decides: %s takes all its packets and says %s, not %s",
				name, other, earlier.Action, later.Action)
		}
		return true
	}
	if earlier.Action == esp.Bypass && later.Action == esp.Protect && meet(earlier.Dir, later.Dir) && surprises(earlier, later) {
		l.warn(later.at, "put the one first that is to decide, or make the other one narrower",
			"%s and %s overlap: what both select is not protected", name, other)
		return true
	}
	return false
}

// meet tells whether both entries see packets of one direction.
func meet(a, b esp.Directions) bool {
	return a.Out() && b.Out() || a.In() && b.In()
}

// surprises tells whether a BYPASS takes something from a later PROTECT that does not look
// like an exception: it neither lies within it nor names a protocol that the other one leaves
// open.
func surprises(bypass, protect *Entry) bool {
	if coversBoth(protect.LocalTS, protect.RemoteTS, bypass.LocalTS, bypass.RemoteTS) {
		return false
	}
	for _, bl := range bypass.LocalTS {
		for _, br := range bypass.RemoteTS {
			proto, ports := max(bl.Proto, br.Proto), !anyPorts(bl) || !anyPorts(br)
			for _, pl := range protect.LocalTS {
				for _, pr := range protect.RemoteTS {
					if !overlap(bl, br, pl, pr) {
						continue
					}
					exception := proto != 0 && pl.Proto == 0 && pr.Proto == 0 || ports && anyPorts(pl) && anyPorts(pr)
					if !exception {
						return true
					}
				}
			}
		}
	}
	return false
}
