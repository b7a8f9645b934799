package platform

import (
	"cmp"
	"errors"
	"slices"

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
// One thing comes in between: what a request to delete does not name fits any rule, so
// the kernel may take a more special rule that stands before the one that is meant. See
// sureDeletions.

var errTooManyTurns = errors.New("the policies alternate too often between protect, bypass and discard for the priorities that routing rules have")

// placedRun is a run of the kernel's rules at one priority.
type placedRun struct {
	priority uint32
	kind     ruleKind
	mixed    bool // somebody else put rules of other kinds there: never kept
}

// runsOf collects what stands at each priority from lo to hi, in order.
func runsOf(rules []Rule, lo, hi uint32) []placedRun {
	var runs []placedRun
	for _, r := range rules {
		if r.Priority < lo || r.Priority > hi {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].priority == r.Priority {
			runs[n-1].mixed = runs[n-1].mixed || runs[n-1].kind != kindOf(r)
			continue
		}
		runs = append(runs, placedRun{priority: r.Priority, kind: kindOf(r)})
	}
	return runs
}

// place chooses a priority between lo and hi for each wanted run, in ascending order.
// Runs that stand in the kernel already keep theirs where that is possible; new ones go
// to priorities that nothing of ours uses now.
func place(have []placedRun, want []ruleRun, lo, hi uint32) ([]uint32, error) {
	keep := align(have, want)
	if prios, ok := spread(have, keep, lo, hi); ok {
		return prios, nil
	}
	// No room between the old ones: put all the new ones before or behind them.
	for i := range keep {
		keep[i] = -1
	}
	if len(have) == 0 {
		return nil, errTooManyTurns
	}
	before, behind := have[0].priority-lo, hi-have[len(have)-1].priority
	if max(before, behind) < uint32(len(want)) {
		return nil, errTooManyTurns
	}
	if before > behind {
		hi = have[0].priority - 1
	} else {
		lo = have[len(have)-1].priority + 1
	}
	prios, ok := spread(nil, keep, lo, hi)
	if !ok {
		return nil, errTooManyTurns
	}
	return prios, nil
}

// align says which run of the kernel each wanted run is, or -1: first what is equal at
// both ends, then, between, the next of the same kind.
func align(have []placedRun, want []ruleRun) []int {
	same := func(i, j int) bool { return !have[i].mixed && have[i].kind == want[j].kind }
	keep := make([]int, len(want))
	first := 0
	for ; first < len(want) && first < len(have) && same(first, first); first++ {
		keep[first] = first
	}
	h, w := len(have), len(want)
	for ; h > first && w > first && same(h-1, w-1); h, w = h-1, w-1 {
		keep[w-1] = h - 1
	}
	next := first
	for j := first; j < w; j++ {
		keep[j] = -1
		for i := next; i < h; i++ {
			if same(i, j) {
				keep[j], next = i, i+1
				break
			}
		}
	}
	return keep
}

// spread gives the runs that are not kept priorities between the kept ones, evenly, and
// none that the kernel has in use.
func spread(have []placedRun, keep []int, lo, hi uint32) ([]uint32, bool) {
	used := make(map[uint32]bool, len(have))
	for _, r := range have {
		used[r.priority] = true
	}
	prios := make([]uint32, len(keep))
	for i := 0; i < len(keep); {
		if keep[i] >= 0 {
			prios[i] = have[keep[i]].priority
			i++
			continue
		}
		n := 1
		for i+n < len(keep) && keep[i+n] < 0 {
			n++
		}
		from, to := lo, hi
		if i > 0 {
			from = prios[i-1] + 1
		}
		if i+n < len(keep) {
			to = have[keep[i+n]].priority - 1
		}
		var free []uint32
		for p := from; p <= to; p++ {
			if !used[p] {
				free = append(free, p)
			}
		}
		if len(free) < n {
			return nil, false
		}
		for k := range n {
			prios[i+k] = free[(2*k+1)*len(free)/(2*n)]
		}
		i += n
	}
	return prios, true
}

// ruleDiff returns what to do next: what to add and then what to delete, each in the order in
// which to do it, to come from the rules that the kernel has (ours, of one family) to the plan. It is
// called again with what the kernel has then, until there is nothing left to do.
func ruleDiff(have []Rule, f *familyPlan) (add, del []Rule, err error) {
	have = slices.Clone(have)
	slices.SortStableFunc(have, func(a, b Rule) int { return cmp.Compare(a.Priority, b.Priority) })
	var want []Rule
	if len(f.own)+len(f.spd) > 0 {
		want = frame(f.v6, f.device)
	}
	for _, section := range []struct {
		runs   []ruleRun
		lo, hi uint32
	}{{f.frag, prioFrag, prioWhole - 1}, {f.in, prioIn, prioOut - 1}, {f.own, prioOwn, prioMiddle - 1}, {f.spd, prioSPD, prioEnd - 1}} {
		prios, err := place(runsOf(have, section.lo, section.hi), section.runs, section.lo, section.hi)
		if err != nil {
			return nil, nil, err
		}
		for i, run := range section.runs {
			for _, r := range run.rules {
				r.Priority = prios[i]
				want = append(want, r)
			}
		}
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
	for step := stepClose; step <= stepOpen; step++ {
		other := func(of func(Rule) int) func(Rule) bool { return func(r Rule) bool { return of(r) != step } }
		nowAdd, nowDel := slices.DeleteFunc(slices.Clone(add), other(addStep)), slices.DeleteFunc(slices.Clone(del), other(delStep))
		if len(nowAdd)+len(nowDel) == 0 {
			continue
		}
		// The frame goes last, the ends of gotos at the very last, and only once the next
		// comparison shows that everything else is gone.
		slices.SortStableFunc(nowDel, func(a, b Rule) int { return cmp.Compare(frameRank(a), frameRank(b)) })
		if i := slices.IndexFunc(nowDel, func(r Rule) bool { return frameRank(r) > 0 }); i > 0 {
			nowDel = nowDel[:i]
		}
		return nowAdd, sureDeletions(have, nowDel), nil
	}
	return nil, nil, nil
}

// The steps of a change, each complete before the next begins.
const (
	stepClose = iota // the frame comes; the mirrored SPD only gets narrower
	stepTurn         // the SPD changes
	stepOpen         // the mirrored SPD only gets wider; the frame goes
)

func mirrored(r Rule) bool {
	return r.Priority >= prioFrag && r.Priority < prioOut && r.Priority != prioWhole
}

func addStep(r Rule) int {
	switch {
	case frameRank(r) > 0 || mirrored(r) && r.Action != unix.FR_ACT_GOTO:
		return stepClose
	case mirrored(r):
		return stepOpen
	}
	return stepTurn
}

func delStep(r Rule) int {
	switch {
	case mirrored(r) && r.Action == unix.FR_ACT_GOTO:
		return stepClose
	case mirrored(r) || frameRank(r) > 0:
		return stepOpen
	}
	return stepTurn
}

// sureDeletions cuts the list off behind the first priority at which the kernel could
// take another rule than the one that is meant: what stands before in the order may go
// only when that is done. The rule that goes in its place is of the same kind and more
// special, so the one that is meant stands in for it until it is put back.
func sureDeletions(have, del []Rule) []Rule {
	for i, r := range del {
		if !slices.ContainsFunc(have, func(x Rule) bool { return x != r && deletes(r, x) }) {
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
// anything.
func deletes(r, x Rule) bool {
	return r.Priority == x.Priority && r.V6 == x.V6 && kindOf(r) == kindOf(x) &&
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
	case prioWhole, prioOut, prioMiddle, prioEnd:
		return 3
	}
	return 0
}
