package platform

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// The kernel tries one rule after the other for each packet, so a long run of rules is
// given another shape that says the same:
//
//   - Rules that together take exactly what one rule with a shorter prefix takes become
//     that one: see merge_linux.go.
//   - Rules that differ in their destinations alone become one rule that looks up a table
//     with a route for each destination, which the kernel finds at once; where there is
//     none, the next rule has its turn. Such a table is a group, its routes are members.
//   - What is left is cut into branches, and these into leaves, each with a guard before
//     it: a rule that goes past the leaf whatever is outside a prefix that covers all of
//     it. The guard before a branch, and the one before the run, do the same for the whole
//     of it. A guard never goes past a rule that could match, so it may come and go at any
//     time without a difference but in time.
//
// So a packet meets some 20 rules of 1,024 that have nothing in common, 45 at most, or one.

// shape bounds.
const (
	groupMin = 16 // destinations that are worth a table
	guardMin = 16 // rules that are worth a guard
	leafMin  = 16 // rules that are not cut further
	leavesOf = 48 // leaves of one run at most, two for each guard of a branch included

	branchesOf = 7 // branches of a run that has many leaves
)

// The tables of groups say by their number what their rule does, so that one without
// routes, or whose device is gone, is known for what it is: first those that discard,
// then those of tableFirst, then those of each source.
const (
	groupFirst    = 2304
	groupsPerKind = 16
	groupLast     = groupFirst + (2+maxSources)*groupsPerKind - 1
)

//go:noinline
func isGroup(table uint32) bool { return table >= groupFirst && table <= groupLast }

// groupKind is the kind of the rules that became members of a group.
func groupKind(table uint32) ruleKind {
	k := (table - groupFirst) / groupsPerKind
	if k == 0 {
		return blackhole
	}
	return ruleKind{action: unix.FR_ACT_TO_TBL, table: tableFirst + k - 1}
}

// groupBase is the first table for groups of that kind; 0 if routes cannot do what it does.
func groupBase(kind ruleKind) uint32 {
	switch {
	case kind == blackhole:
		return groupFirst
	case kind.action == unix.FR_ACT_TO_TBL:
		return groupFirst + (1+kind.table-tableFirst)*groupsPerKind
	}
	return 0
}

// isHead tells whether a rule looks up a group.
//
//go:noinline
func isHead(r Rule) bool { return r.Action == unix.FR_ACT_TO_TBL && isGroup(r.Table) }

// headOf returns the rule that looks up the group of a member.
func headOf(m Rule) Rule {
	m.To, m.Table, m.Action, m.Group = netip.Prefix{}, m.Group, unix.FR_ACT_TO_TBL, 0
	return m
}

// guardKind is the kind of all guards, wherever they go on. They alone are inverted.
var guardKind = ruleKind{action: unix.FR_ACT_GOTO}

// piece is what has one priority: rules, members of groups, or guards.
type piece struct {
	kind    ruleKind
	rules   []Rule
	grouped bool
	past    int // of guards: the number of the piece that they go on at
}

// Shapes from the best to the plainest, which needs the fewest priorities.
const (
	shapeTree = iota
	shapeGroups
	shapePlain
)

// shapeSection cuts the runs of a section, which has that many priorities, into pieces.
// Trees get a third of them, so that there is room for other ones.
func shapeSection(runs []ruleRun, priorities, shape int) []piece {
	large := 0
	for _, run := range runs {
		if len(run.rules) > 2*leafMin {
			large++
		}
	}
	leaves := 1
	if large > 0 {
		leaves = min(leavesOf, (priorities/3-3*len(runs))/(2*large))
	}
	var list []piece
	for _, run := range runs {
		rest := run.rules
		if shape < shapePlain {
			var members []Rule
			if members, rest = groupRules(run); len(members) > 0 {
				list = append(list, piece{kind: run.kind, rules: members, grouped: true})
			}
		}
		switch {
		case len(rest) == 0:
		case shape == shapeTree && len(rest) >= guardMin:
			list = appendTree(list, run.kind, rest, leaves)
		default:
			list = append(list, piece{kind: run.kind, rules: rest})
		}
	}
	return list
}

// groupRules parts the rules of a run that can be members of groups from the others.
func groupRules(run ruleRun) (members, rest []Rule) {
	if groupBase(run.kind) == 0 || len(run.rules) < groupMin {
		return nil, run.rules
	}
	count := map[Rule]int{}
	head := func(r Rule) Rule { r.To = netip.Prefix{}; return r }
	for _, r := range run.rules {
		if r.To.IsValid() {
			count[head(r)]++
		}
	}
	groups := 0
	for _, r := range run.rules {
		n := count[head(r)]
		if n >= groupMin && groups < groupsPerKind {
			groups++
			count[head(r)] = -1 // chosen
			n = -1
		}
		if n < 0 && r.To.IsValid() {
			members = append(members, r)
		} else {
			rest = append(rest, r)
		}
	}
	return members, rest
}

// appendTree appends the guards of a run and its branches, each behind its own guard, and
// in them the leaves, likewise.
func appendTree(list []piece, kind ruleKind, rules []Rule, leaves int) []piece {
	by, other := byFrom, byTo
	if distinct(rules, byTo) > distinct(rules, byFrom) {
		by, other = byTo, byFrom
	}
	at := len(list)
	if guards := append(guardsFor(rules, other), guardsFor(rules, by)...); len(guards) > 0 {
		list = append(list, piece{kind: guardKind, rules: guards})
	}
	branches := [][]Rule{rules}
	if leaves >= branchesOf*2 {
		branches = cutLeaves(rules, by, branchesOf)
		leaves -= len(branches) / 2 // which have a guard each
	}
	for _, branch := range branches {
		list = appendBranch(list, kind, branch, by, leaves*len(branch)/len(rules), len(branches) > 1)
	}
	if list[at].kind == guardKind && list[at].past == 0 {
		list[at].past = len(list)
	}
	return list
}

// appendBranch appends a branch of a tree in up to that many leaves, with a guard for all
// of them if it is not the only branch.
func appendBranch(list []piece, kind ruleKind, rules []Rule, by func(*Rule) *netip.Prefix, leaves int, guarded bool) []piece {
	parts := [][]Rule{rules}
	if leaves > 3 {
		parts = cutLeaves(rules, by, leaves)
	}
	guard := -1
	if guards := guardsFor(rules, by); guarded && len(guards) > 0 {
		guard = len(list)
		list = append(list, piece{kind: guardKind, rules: guards})
	}
	for _, part := range parts {
		if guards := guardsFor(part, by); len(parts) > 1 && len(guards) > 0 {
			list = append(list, piece{kind: guardKind, rules: guards, past: len(list) + 2})
		}
		list = append(list, piece{kind: kind, rules: part})
	}
	if guard >= 0 {
		list[guard].past = len(list)
	}
	return list
}

func byFrom(r *Rule) *netip.Prefix { return &r.From }
func byTo(r *Rule) *netip.Prefix   { return &r.To }

func distinct(rules []Rule, by func(*Rule) *netip.Prefix) int {
	seen := map[netip.Prefix]bool{}
	for i := range rules {
		seen[*by(&rules[i])] = true
	}
	return len(seen)
}

// guardsFor returns the guard that passes by what is outside all of the rules' prefixes,
// without priority and target; none if one of them takes everything.
func guardsFor(rules []Rule, by func(*Rule) *netip.Prefix) []Rule {
	cover := *by(&rules[0])
	for i := range rules {
		cover = coverOf(cover, *by(&rules[i]))
	}
	if !cover.IsValid() || cover.Bits() == 0 {
		return nil
	}
	g := Rule{V6: rules[0].V6, Invert: true, Action: unix.FR_ACT_GOTO, Protocol: routeProtocol}
	*by(&g) = cover
	return []Rule{g}
}

// coverOf returns the smallest prefix that holds both; the zero Prefix holds everything.
func coverOf(a, b netip.Prefix) netip.Prefix {
	if !a.IsValid() || !b.IsValid() {
		return netip.Prefix{}
	}
	if a.Bits() > b.Bits() {
		a, b = b, a
	}
	for !a.Contains(b.Addr()) {
		a = netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
	}
	return a
}

// cutLeaves cuts rules into up to n parts along the bits of their prefixes: always the
// largest part at the first bit in which its prefixes differ, so that no part's cover
// overlaps another's but where a prefix itself is the larger one, and one more rule
// leaves most parts as they are.
func cutLeaves(rules []Rule, by func(*Rule) *netip.Prefix, n int) [][]Rule {
	sorted := slices.Clone(rules)
	sort.SliceStable(sorted, func(i, j int) bool { return comparePrefixes(*by(&sorted[i]), *by(&sorted[j])) < 0 })
	parts := [][]Rule{sorted}
	whole := map[*Rule]bool{} // first rules of parts that cannot be cut
	for {
		best := -1
		for i, p := range parts {
			if len(p) > leafMin && !whole[&p[0]] && (best < 0 || len(p) > len(parts[best])) {
				best = i
			}
		}
		if best < 0 {
			return parts
		}
		cut := cutOnce(parts[best], by)
		if len(cut) == 1 {
			whole[&parts[best][0]] = true
			continue
		}
		if len(parts)+len(cut)-1 > n {
			return parts
		}
		parts = slices.Replace(parts, best, best+1, cut...)
	}
}

// cutOnce cuts sorted rules into those whose prefix is the cover of all, and the halves
// of the rest.
func cutOnce(rules []Rule, by func(*Rule) *netip.Prefix) [][]Rule {
	cover := *by(&rules[0])
	for i := range rules {
		cover = coverOf(cover, *by(&rules[i]))
	}
	stay := 0
	for stay < len(rules) && *by(&rules[stay]) == cover {
		stay++
	}
	var parts [][]Rule
	if stay > 0 {
		parts = append(parts, rules[:stay])
	}
	rest := rules[stay:]
	if len(rest) == 0 {
		return parts
	}
	bit := max(cover.Bits(), 0)
	half := slices.IndexFunc(rest, func(r Rule) bool { return bitOf(by(&r).Addr(), bit) })
	if half <= 0 {
		return append(parts, rest)
	}
	return append(parts, rest[:half], rest[half:])
}

func bitOf(a netip.Addr, bit int) bool {
	b := a.AsSlice()
	return b[bit/8]&(0x80>>(bit%8)) != 0
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
