package platform

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

var errTooManyTurns = errors.New("the policies alternate too often between protect, bypass and discard for the priorities that routing rules have")

// placedRun is what the kernel has of ours at one priority.
type placedRun struct {
	priority uint32
	kind     ruleKind
	rules    int
	mixed    bool // somebody else put rules of other kinds there: never kept
}

// placedRuns are the runs of a section in order.
type placedRuns struct {
	runs []placedRun
	at   map[Rule][]int // of each rule, without priority and group: the numbers of its runs
}

// content is what a rule says, wherever it stands.
func content(r Rule) Rule {
	r.Priority, r.Group = 0, 0
	return r
}

// headContent is what the rule says that looks up a group, whichever table that has.
func headContent(head Rule) Rule {
	head = content(head)
	head.Table = groupFirst
	return head
}

// runsOf collects what stands at each priority from lo to hi, in order.
func runsOf(rules []Rule, lo, hi uint32) placedRuns {
	p := placedRuns{at: make(map[Rule][]int, len(rules)/2)}
	for _, r := range rules {
		if r.Priority < lo || r.Priority > hi {
			continue
		}
		n := len(p.runs)
		if n == 0 || p.runs[n-1].priority != r.Priority {
			p.runs = append(p.runs, placedRun{priority: r.Priority, kind: kindOf(r)})
			n++
		}
		run := &p.runs[n-1]
		run.mixed = run.mixed || run.kind != kindOf(r)
		run.rules++
		c := content(r)
		if isHead(r) {
			c = headContent(r)
		}
		p.at[c] = append(p.at[c], n-1)
	}
	return p
}

// place chooses a priority between lo and hi for each wanted piece, in ascending order.
// Pieces that stand in the kernel already keep theirs where that is possible; new ones go
// to priorities that nothing of ours uses now. Priorities in left are not kept.
func place(have placedRuns, want []piece, lo, hi uint32, left map[uint32]bool) ([]uint32, error) {
	for i := range have.runs {
		have.runs[i].mixed = have.runs[i].mixed || left[have.runs[i].priority]
	}
	keep := align(have, want)
	if prios, ok := spread(have.runs, keep, lo, hi); ok {
		return prios, nil
	}
	// No room between the old ones: put all the new ones wherever there is any. No old one
	// is kept from then on, also once its rules stand in the new ones as well.
	for i := range keep {
		keep[i] = -1
	}
	prios, ok := spread(have.runs, keep, lo, hi)
	if !ok {
		return nil, errTooManyTurns
	}
	for _, r := range have.runs {
		left[r.priority] = true
	}
	return prios, nil
}

// align says which run of the kernel each wanted piece is, or -1: first by the rules that
// they share, as far as the order allows, then what is left between by kind, equal ones
// at both ends before others.
func align(have placedRuns, want []piece) []int {
	keep := anchors(have, want)
	first, h := 0, 0
	for j := 0; j <= len(want); j++ {
		if j < len(want) && keep[j] < 0 {
			continue
		}
		end := len(have.runs)
		if j < len(want) {
			end = keep[j]
		}
		alignKinds(have.runs[h:end], want[first:j], keep[first:j], h)
		first, h = j+1, end+1
	}
	return keep
}

// anchors finds the longest sequence of pieces that each have rules in common with a run
// of the kernel, in the same order.
func anchors(have placedRuns, want []piece) []int {
	n := len(want)
	keep, shared, length, before := make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	last := -1
	for j := range want {
		keep[j], before[j] = -1, -1
		if shared[j] = have.sharing(want[j]); shared[j] < 0 {
			continue
		}
		length[j] = 1
		for i := range j {
			if shared[i] >= 0 && shared[i] < shared[j] && length[i] >= length[j] {
				length[j], before[j] = length[i]+1, i
			}
		}
		if last < 0 || length[j] > length[last] {
			last = j
		}
	}
	for ; last >= 0; last = before[last] {
		keep[last] = shared[last]
	}
	return keep
}

// sharing returns the run that has most of a piece's rules, of equal ones the smallest,
// or -1.
func (p placedRuns) sharing(want piece) int {
	if want.kind == guardKind {
		return -1 // they follow what they guard
	}
	count := map[int]int{}
	best := -1
	add := func(c Rule) {
		for _, i := range p.at[c] {
			if !p.runs[i].mixed && p.runs[i].kind == want.kind {
				count[i]++
			}
		}
	}
	var head Rule
	for _, r := range want.rules {
		add(content(r))
		if h := headContent(headOf(r)); want.grouped && h != head {
			head = h
			add(h)
		}
	}
	for i, n := range count {
		if best < 0 {
			best = i
			continue
		}
		switch more, size := n-count[best], p.runs[i].rules-p.runs[best].rules; {
		case more > 0, more == 0 && size < 0, more == 0 && size == 0 && i < best:
			best = i
		}
	}
	return best
}

// alignKinds aligns what lies between two anchors; base is the number of have's first.
func alignKinds(have []placedRun, want []piece, keep []int, base int) {
	same := func(i, j int) bool { return !have[i].mixed && have[i].kind == want[j].kind }
	h, w := len(have), len(want)
	for ; h > 0 && w > 0 && same(h-1, w-1); h, w = h-1, w-1 {
		keep[w-1] = base + h - 1
	}
	first := 0
	for ; first < w && first < h && same(first, first); first++ {
		keep[first] = base + first
	}
	next := first
	for j := first; j < w; j++ {
		for i := next; i < h; i++ {
			if same(i, j) {
				keep[j], next = base+i, i+1
				break
			}
		}
	}
}

// spread gives the pieces that are not kept priorities between the kept ones, and none
// that the kernel has in use; if none is kept, evenly.
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
			if i > 0 {
				// Close behind what is there, since more may come in the same place.
				prios[i+k] = free[(k+1)*min(2, len(free)/n)-1]
			} else {
				prios[i+k] = free[(2*k+1)*len(free)/(2*n)]
			}
		}
		i += n
	}
	return prios, true
}

// layout returns the rules, with their priorities, and the members of groups that a plan
// comes to, given what the kernel has (in the order of the priorities).
func layout(have []Rule, f *familyPlan) ([]Rule, error) {
	if len(f.own)+len(f.spd)+len(f.in)+len(f.leave)+len(f.frag) == 0 {
		return nil, nil
	}
	if f.left == nil {
		f.left = map[uint32]bool{}
	}
	there := map[uint32]bool{}
	for _, r := range have {
		there[r.Priority] = true
	}
	for p := range f.left {
		if !there[p] {
			delete(f.left, p) // empty by now, so good for others
		}
	}
	want := frame(f.v6, f.device, len(f.leave) > 0)
	groups := groupsIn(have)
	// Plainer shapes have no guards, and those that are there go before anything comes.
	bare := slices.DeleteFunc(slices.Clone(have), func(r Rule) bool { return r.Invert })
	sections := []struct {
		runs   []ruleRun
		lo, hi uint32
	}{{f.frag, prioFrag, prioWhole - 1}, {f.in, prioIn, prioOut - 1}, {f.own, prioOwn, prioMiddle - 1}, {f.leave, prioLeave, prioShown - 1}, {f.spd, prioSPD, prioEnd - 1}}
	end := uint32(prioEnd)
	var parts [][]Rule
	for i, s := range slices.Backward(sections) {
		placed := runsOf(have, s.lo, s.hi)
		var pieces []piece
		var prios []uint32
		var err error
		for ; ; f.shapes[i]++ {
			pieces = shapeSection(s.runs, int(s.hi-s.lo)+1, f.shapes[i])
			if f.shapes[i] > shapeTree {
				placed = runsOf(bare, s.lo, s.hi)
			}
			if prios, err = place(placed, pieces, s.lo, s.hi, f.left); err == nil || f.shapes[i] == shapePlain {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		switch s.lo {
		case prioFrag:
			end = prioWhole
		case prioIn:
			end = prioOut
		case prioLeave:
			if len(pieces) > 0 {
				end = prioShown
			}
		}
		parts = append(parts, groups.rulesOf(pieces, append(prios, end)))
		if len(prios) > 0 {
			end = prios[0]
		}
		if s.lo == prioOwn && f.v6 {
			end = prioMiddle
		}
	}
	for _, p := range slices.Backward(parts) {
		want = append(want, p...)
	}
	return want, nil
}

// groupTables are the tables of groups that are in use, or to be, by the rule that looks
// them up, which is named without its table.
type groupTables struct {
	table map[groupKey]uint32
	taken map[uint32]bool
}

type groupKey struct {
	head Rule
	kind ruleKind
}

func keyOf(head Rule, kind ruleKind) groupKey {
	head.Table = 0
	return groupKey{head, kind}
}

func groupsIn(have []Rule) groupTables {
	g := groupTables{map[groupKey]uint32{}, map[uint32]bool{}}
	for _, r := range have {
		g.taken[r.Group] = true
		if isHead(r) && !g.taken[r.Table] {
			g.taken[r.Table] = true
			g.table[keyOf(r, groupKind(r.Table))] = r.Table
		}
	}
	return g
}

// tableFor returns the table of the group that r, which has its priority, belongs to.
func (g groupTables) tableFor(r Rule) uint32 {
	kind := kindOf(r)
	key := keyOf(headOf(r), kind)
	if t := g.table[key]; t != 0 {
		return t
	}
	base := groupBase(kind)
	for t := base; t < base+groupsPerKind; t++ {
		if !g.taken[t] {
			g.table[key], g.taken[t] = t, true
			return t
		}
	}
	return 0
}

// rulesOf returns the rules of pieces with these priorities, and the priority behind.
func (g groupTables) rulesOf(pieces []piece, prios []uint32) []Rule {
	var list []Rule
	for i, p := range pieces {
		heads := map[uint32]bool{}
		for _, r := range p.rules {
			r.Priority = prios[i]
			if p.kind == guardKind {
				r.Goto = prios[p.past]
			}
			if p.grouped {
				// Without a free table it stays a rule, which means the same.
				r.Group = g.tableFor(r)
			}
			if r.Group != 0 && !heads[r.Group] {
				heads[r.Group] = true
				list = append(list, headOf(r))
			}
			list = append(list, r)
		}
	}
	return list
}

// membersOf returns, of the kernel's routes, the members of groups that a rule looks up,
// each behind that rule.
func membersOf(rules []Rule, routes []Route) []Rule {
	byTable := map[uint32][]Route{}
	for _, t := range routes {
		if isGroup(t.Table) {
			byTable[t.Table] = append(byTable[t.Table], t)
		}
	}
	var list []Rule
	for _, head := range rules {
		list = append(list, head)
		if !isHead(head) {
			continue
		}
		seen := make(map[netip.Prefix]bool, len(byTable[head.Table]))
		kind := groupKind(head.Table)
		m := head
		m.Group, m.Action, m.Table = head.Table, kind.action, kind.table
		for _, t := range byTable[head.Table] {
			if m.To = t.Dst; !seen[t.Dst] {
				seen[t.Dst] = true
				list = append(list, m)
			}
		}
		delete(byTable, head.Table) // a second rule for it has nothing of its own
	}
	// What no rule looks up: a change was cut short. At no priority it has no effect.
	orphans := map[Rule]bool{}
	for _, t := range routes {
		if len(byTable[t.Table]) == 0 {
			continue
		}
		kind := groupKind(t.Table)
		m := Rule{V6: t.Dst.Addr().Is6(), To: t.Dst, Group: t.Table, Action: kind.action, Table: kind.table, Protocol: routeProtocol}
		if !orphans[m] {
			orphans[m] = true
			list = append(list, m)
		}
	}
	return list
}

// memberRoutes returns the routes of a member: the one that counts first.
func memberRoutes(m Rule, source map[uint32]netip.Addr, index int) []Route {
	last := Route{Table: m.Group, Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Dst: m.To, Metric: unreachableMetric}
	if m.V6 {
		last.Index = loopbackIndex // where the kernel hangs such routes of IPv6
	}
	if m.Action == unix.FR_ACT_BLACKHOLE {
		last.Type = unix.RTN_BLACKHOLE
		return []Route{last}
	}
	if index == 0 {
		return []Route{last}
	}
	return []Route{{
		Table: m.Group, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: m.To,
		Index: index, PrefSrc: source[m.Table], Metric: tableMetric,
	}, last}
}
