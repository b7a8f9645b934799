package platform

import (
	"net/netip"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// The rules of a family are changed while packets pass, so each step must leave them in
// a state where every packet meets either the old or the new policy. With new rules at
// their places between the old ones that holds if
//
//   - new rules are added front to back: one that decides has all the new ones before it
//     present, so it is the one that decides in the end, and
//   - old ones are deleted back to front afterwards: one that decides still has all the
//     old ones before it, so it is the one that decided at first, and
//   - no priority has rules of two kinds at any time, since there the order is that in
//     which they were added.
//
// A packet passes two such sections, though: the SPD mirrored, and the SPD. The old
// verdict of the one with the new one of the other could let it out in clear, which
// neither policy does. So the first narrows before the second changes, and widens
// afterwards; in between it drops what either policy drops there. A packet that both
// policies let in by a BYPASS entry may be lost for that moment, if that entry moves.
//
// Neither guards nor the rules that look groups up decide anything, and a member of a
// group counts as the rule that it stands for, so all this holds for them as well. Guards
// that would not hold for the new rules go before these come; new guards come at the end.
//
// One thing comes in between: what a request to delete does not name fits any rule, so
// the kernel may take a more special rule that stands before the one that is meant. See
// sureDeletions.

// ruleDiff returns what to do next: what to add and then what to delete, each in the order in
// which to do it, to come from the rules that the kernel has (ours, of one family) to the plan. It is
// called again with what the kernel has then, until there is nothing left to do.
func ruleDiff(have []Rule, f *familyPlan) (add, del []Rule, err error) {
	have = slices.Clone(have)
	sort.SliceStable(have, func(i, j int) bool { return have[i].Priority < have[j].Priority })
	want, err := layout(have, f)
	if err != nil {
		return nil, nil, err
	}
	wanted, present := make(map[Rule]bool, len(want)), make(map[Rule]bool, len(have))
	for _, r := range want {
		wanted[r] = true
	}
	for _, r := range have {
		// A second copy of a rule, from two starts at once, is deleted.
		if !wanted[r] || present[r] {
			del = append(del, r)
		}
		present[r] = true
	}
	for _, r := range want {
		if !present[r] {
			add = append(add, r)
		}
	}
	slices.Reverse(del)
	for step := stepBare; step <= stepGuard; step++ {
		other := func(of func(Rule) int) func(Rule) bool { return func(r Rule) bool { return of(r) != step } }
		nowAdd, nowDel := slices.DeleteFunc(slices.Clone(add), other(addStep)), slices.DeleteFunc(slices.Clone(del), other(delStep))
		if len(nowAdd)+len(nowDel) == 0 {
			continue
		}
		if step == stepGuard {
			slices.Reverse(nowAdd) // what they go on at first
		}
		// The frame goes last, the ends of gotos at the very last, and only once the next
		// comparison shows that everything else is gone.
		sort.SliceStable(nowDel, func(i, j int) bool { return frameRank(nowDel[i]) < frameRank(nowDel[j]) })
		if i := slices.IndexFunc(nowDel, func(r Rule) bool { return frameRank(r) > 0 }); i > 0 {
			nowDel = nowDel[:i]
		}
		return nowAdd, sureDeletions(have, nowDel), nil
	}
	if f.shapes != [5]int{} && !f.again {
		f.shapes, f.again, f.left = [5]int{}, true, nil
		return ruleDiff(have, f)
	}
	return nil, nil, nil
}

// The steps of a change, each complete before the next begins.
const (
	stepBare  = iota // guards go that will not hold for what comes
	stepClose        // the frame and groups come; the mirrored SPD only gets narrower
	stepTurn         // the SPD changes
	stepOpen         // the mirrored SPD only gets wider; the frame and groups go
	stepGuard        // guards come
)

func mirrored(r Rule) bool {
	return r.Priority >= prioFrag && r.Priority < prioOut && r.Priority != prioWhole
}

func addStep(r Rule) int {
	switch {
	case r.Invert:
		return stepGuard
	case frameRank(r) > 0 || mirrored(r) && r.Action != unix.FR_ACT_GOTO:
		return stepClose
	case mirrored(r):
		return stepOpen
	}
	return stepTurn
}

func delStep(r Rule) int {
	switch {
	case r.Invert:
		return stepBare
	case frameRank(r) > 0:
		return stepOpen
	case mirrored(r) && r.Action == unix.FR_ACT_GOTO:
		return stepClose
	case mirrored(r):
		return stepOpen
	}
	return stepTurn
}

// sureDeletions cuts the list off behind the first priority at which the kernel could
// take another rule than the one that is meant: what stands before in the order may go
// only when that is done. The rule that goes in its place is of the same kind and more
// special, so the one that is meant stands in for it until it is put back.
func sureDeletions(have, del []Rule) []Rule {
	// By what a request could name, so that each meets few that it could fit.
	type named struct {
		priority uint32
		from, to netip.Prefix
	}
	all := map[named][]Rule{}
	touched := map[uint32]bool{}
	for _, r := range del {
		touched[r.Priority] = r.Group == 0 || touched[r.Priority]
	}
	for _, x := range have {
		if !touched[x.Priority] || x.Group != 0 {
			continue
		}
		keys := []named{{x.Priority, x.From, x.To}, {x.Priority, x.From, netip.Prefix{}}, {x.Priority, netip.Prefix{}, x.To}, {priority: x.Priority}}
		for i, k := range keys {
			if !slices.Contains(keys[:i], k) {
				all[k] = append(all[k], x)
			}
		}
	}
	for i, r := range del {
		if !slices.ContainsFunc(all[named{r.Priority, r.From, r.To}], func(x Rule) bool { return x != r && deletes(r, x) }) {
			continue
		}
		end := i + 1
		for end < len(del) && del[end].Priority == r.Priority {
			end++
		}
		return del[:end]
	}
	return del
}

// deletes tells whether a request to delete r fits x, too: what it does not name may be
// anything. Where a goto leads and whether a rule is inverted count for nothing; members
// of groups are routes, which are named in full.
func deletes(r, x Rule) bool {
	return r.Group == 0 && x.Group == 0 && r.Priority == x.Priority && r.V6 == x.V6 &&
		r.Action == x.Action && (r.Table == 0 || r.Table == x.Table) &&
		(!r.From.IsValid() || r.From == x.From) && (!r.To.IsValid() || r.To == x.To) &&
		(r.IIF == "" || r.IIF == x.IIF) && (r.IPProto == 0 || r.IPProto == x.IPProto) &&
		(r.SPort == PortRange{} || r.SPort == x.SPort) && (r.DPort == PortRange{} || r.DPort == x.DPort)
}

func frameRank(r Rule) int {
	switch r.Priority {
	case prioTrust, prioSplit:
		return 1
	case prioMark:
		return 2
	case prioWhole, prioOut, prioMiddle, prioShown, prioEnd:
		return 3
	}
	if isHead(r) {
		return 1
	}
	return 0
}
