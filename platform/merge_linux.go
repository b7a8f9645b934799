package platform

import (
	"net/netip"
	"slices"
	"sort"
)

// mergeRules returns rules that take the same packets as those of a run, which do all the
// same: two whose prefixes are the halves of another become one with that, and one that
// another takes in goes. So what a site's networks are numbered through, as most are, costs
// a packet as little as one network.
//
// No prefix becomes empty: rules without a source also see the packets of this host that
// have none yet, which those with one do not see.
func mergeRules(rules []Rule) []Rule {
	for len(rules) > 1 {
		n := len(rules)
		rules = mergeBy(mergeBy(rules, byFrom), byTo)
		if len(rules) == n {
			break
		}
	}
	return rules
}

// mergeBy merges rules that differ in one of their prefixes alone. If there are none it
// returns them as they are.
func mergeBy(rules []Rule, by func(*Rule) *netip.Prefix) []Rule {
	type set struct {
		rest     Rule
		prefixes []netip.Prefix
	}
	sorted := slices.Clone(rules)
	sort.SliceStable(sorted, func(i, j int) bool { return comparePrefixes(*by(&sorted[i]), *by(&sorted[j])) < 0 })
	at := make(map[Rule]int, len(rules))
	var sets []set
	for _, r := range sorted {
		p := *by(&r)
		*by(&r) = netip.Prefix{}
		i, ok := at[r]
		if !ok {
			i = len(sets)
			at[r] = i
			sets = append(sets, set{rest: r})
		}
		sets[i].prefixes = append(sets[i].prefixes, p)
	}
	if len(sets) == len(rules) {
		return rules
	}
	list := make([]Rule, 0, len(rules))
	for _, s := range sets {
		for _, p := range mergePrefixes(s.prefixes) {
			*by(&s.rest) = p
			list = append(list, s.rest)
		}
	}
	if len(list) == len(rules) {
		return rules
	}
	return list
}

// mergePrefixes returns the fewest prefixes, none of them empty, that hold the same
// addresses as these, which are in order; the zero Prefix, which is the first, holds all.
func mergePrefixes(prefixes []netip.Prefix) []netip.Prefix {
	if !prefixes[0].IsValid() {
		return prefixes[:1]
	}
	// In this order a prefix stands before all that it holds, and a lower half, or what
	// it came to, before the upper one.
	var list []netip.Prefix
	for _, p := range prefixes {
		if n := len(list); n > 0 && list[n-1].Bits() <= p.Bits() && list[n-1].Contains(p.Addr()) {
			continue
		}
		list = append(list, p)
		for n := len(list); n > 1; n-- {
			whole, ok := halves(list[n-2], list[n-1])
			if !ok {
				break
			}
			list = append(list[:n-2], whole)
		}
	}
	return list
}

// halves returns the prefix of which a and b are the two halves, in this order.
func halves(a, b netip.Prefix) (whole netip.Prefix, ok bool) {
	if a.Bits() != b.Bits() || a.Bits() < 2 || a == b {
		return whole, false
	}
	whole = netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
	return whole, whole.Contains(b.Addr())
}
