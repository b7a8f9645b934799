package config

import (
	"postern/esp"
	"postern/ike"
)

func anyPorts(s esp.Selector) bool { return s.StartPort == 0 && s.EndPort == 65535 }
func opaque(s esp.Selector) bool   { return s.StartPort == opaqueStart && s.EndPort == opaqueEnd }

// joint narrows the selectors of the two ends to what one packet can match at both: it has one
// protocol, it shows its ports at both ends or at neither, and ICMP and the mobility header have
// one type in place of the two ports (RFC 4301 section 4.4.1.1). It returns false if no packet can.
// Addresses are not looked at.
func joint(l, r *esp.Selector) bool {
	if l.Proto != 0 && r.Proto != 0 && l.Proto != r.Proto {
		return false
	}
	l.Proto = max(l.Proto, r.Proto)
	r.Proto = l.Proto
	differ, start, end := opaque(*l) != opaque(*r), l.StartPort, l.EndPort
	switch {
	case !differ && !hasTypes(l.Proto):
		return true
	case anyPorts(*l):
		start, end = r.StartPort, r.EndPort
	case anyPorts(*r):
	case differ:
		return false
	case !opaque(*l):
		start, end = max(start, r.StartPort), min(end, r.EndPort)
		if start > end {
			return false
		}
	}
	l.StartPort, l.EndPort, r.StartPort, r.EndPort = start, end, start, end
	return true
}

// eachPair calls f for each selector of one list with each of the other one, narrowed to what one
// packet can match, until f returns true.
func eachPair(local, remote []esp.Selector, f func(l, r *esp.Selector) bool) bool {
	for i := range local {
		for j := range remote {
			l, r := local[i], remote[j]
			if joint(&l, &r) && f(&l, &r) {
				return true
			}
		}
	}
	return false
}

// joins tells whether a packet can match one selector of each list, whatever its addresses.
func joins(local, remote []esp.Selector) bool {
	return eachPair(local, remote, func(_, _ *esp.Selector) bool { return true })
}

// checkJoint notes selectors that no packet can match at both ends.
func (l *loader) checkJoint(at pos, what string, local, remote []esp.Selector) {
	if len(local) > 0 && len(remote) > 0 && !joins(local, remote) {
		l.problem(at, "give both the same protocol, the same ICMP types, and OPAQUE to both ends or to none",
			"%s has no local_ts and remote_ts that one packet can match, so no packet fits", what)
	}
}

// plain returns the selectors of a list without what is dynamic about them.
func plain(list []ike.TS) []esp.Selector {
	out := make([]esp.Selector, len(list))
	for i := range list {
		out[i] = list[i].Selector
	}
	return out
}

// mostPairs bounds how many pairs of pairs of selectors are compared.
const mostPairs = 4096

// coversBoth tells whether every packet that matches narrow, at both ends, matches wide.
func coversBoth(wideL, wideR, narrowL, narrowR []esp.Selector) bool {
	if !near(wideR, narrowR) || !near(wideL, narrowL) {
		return false // the most of those that are compared: each with all before it
	}
	if covers(wideL, narrowL) && covers(wideR, narrowR) {
		return true
	}
	if len(wideL)*len(wideR)*len(narrowL)*len(narrowR) > mostPairs {
		return false
	}
	some := false
	return !eachPair(narrowL, narrowR, func(nl, nr *esp.Selector) bool {
		if nl.Start.BitLen() != nr.Start.BitLen() {
			return false
		}
		some = true
		return !eachPair(wideL, wideR, func(wl, wr *esp.Selector) bool { return wl.Contains(*nl) && wr.Contains(*nr) })
	}) && some
}

// near tells whether the addresses of one selector in narrow, if there is any, lie within those of one
// in wide.
func near(wide, narrow []esp.Selector) bool {
	for i := range narrow {
		for j := range wide {
			if wide[j].Start.Compare(narrow[i].Start) <= 0 && narrow[i].End.Compare(wide[j].End) <= 0 {
				return true
			}
		}
	}
	return len(narrow) == 0
}

// overlap tells whether a packet can match both pairs of selectors.
func overlap(al, ar, bl, br esp.Selector) bool {
	if !joint(&al, &ar) || !joint(&bl, &br) {
		return false
	}
	l, ok1 := al.Intersect(bl)
	r, ok2 := ar.Intersect(br)
	return ok1 && ok2 && joint(&l, &r)
}
