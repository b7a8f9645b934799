package engine

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"postern/esp"
)

// policy is one entry of the SPD: what it selects, what happens then and, for PROTECT,
// which child of which connection carries it. Readers find it through a snapshot and
// see it unchanged but for the atomics.
type policy struct {
	esp.Policy
	conn, child string
	wait        bool // a packet without an SA waits for one
	acquire     bool // and asks the IKE loop for it
	number      int  // of its place in the configuration, from 1
	hits        *hits
	via         *childDevice // decides about what is routed into that device; nil: the SPD's own

	// sas are the outbound SAs bound to the entry, the newest first: several where road
	// warriors have narrowed its selectors each to its own.
	sas atomic.Pointer[[]*outSA]
	// acquired is when an SA was last asked for.
	acquired atomic.Int64

	lanes   *laneSpec   // nil: none
	asked   *laneAsked  // nil without lanes
	several atomic.Bool // one of sas is for a lane
	lacks   atomic.Bool // a packet has gone without an SA for its lane
}

// label names the entry for people.
func (p *policy) label() string {
	if p.Name != "" || p.conn == "" {
		return p.Name
	}
	return p.conn + "/" + p.child
}

// way tells whether the entry is for packets that come in, or go out.
func (p *policy) way(in bool) bool {
	if in {
		return p.Dir.In()
	}
	return p.Dir.Out()
}

// matches tells whether the entry selects the flow of a packet that comes in, or goes out.
func (p *policy) matches(f *esp.Flow, in bool) bool {
	return p.way(in) && esp.MatchFlow(p.LocalTS, p.RemoteTS, f)
}

// carriedBy tells whether SAs of that child belong to a PROTECT entry: where it names none,
// those of any do.
func (p *policy) carriedBy(conn, child string) bool {
	return p.conn == conn && p.child == child || p.conn == ""
}

// carries tells whether the entry is served by SAs of that child which belong to that device.
func (p *policy) carries(conn, child string, via *childDevice) bool {
	return p.via == via && p.carriedBy(conn, child)
}

// bound returns how many SAs are bound to the entry.
func (p *policy) bound() int {
	if list := p.sas.Load(); list != nil {
		return len(*list)
	}
	return 0
}

const (
	// acquireInterval bounds how often one policy asks for an SA.
	acquireInterval = time.Second
	// acquireNarrow is the same for a policy that has SAs, none of which takes the packet:
	// the peer has narrowed the selectors and will most likely do it again.
	acquireNarrow = time.Minute
)

// mayAcquire tells whether the policy may ask for an SA at now, and notes that it did.
func (p *policy) mayAcquire(now time.Duration) bool {
	if !p.acquire {
		return false
	}
	interval := acquireInterval
	if p.bound() > 0 {
		interval = acquireNarrow
	}
	last := p.acquired.Load()
	if last != 0 && now-time.Duration(last) < interval {
		return false
	}
	return p.acquired.CompareAndSwap(last, int64(max(now, 1)))
}

// policySpec is an entry as the configuration has it. A dynamic one has selectors that
// only a CHILD SA makes known: its own selectors (which may be empty) are what is known
// without one.
type policySpec struct {
	esp.Policy
	conn, child   string
	wait, acquire bool
	dynamic       bool
	shunt         bool // conn and child name a child without SAs
	trap          bool // packets are to bring up an SA, as somebody has asked for
	mode          esp.Mode
	lanes         *laneSpec
	via           *childDevice
}

// key is by what the entry is known again after a reload.
func (s *policySpec) key() string {
	if s.Name != "" {
		return "[" + s.Name
	}
	return s.conn + "/" + s.child
}

// protects tells whether SAs of that child and no other carry what the entry protects.
func (s *policySpec) protects(conn, child string) bool {
	return s.Action == esp.Protect && s.conn == conn && s.child == child
}

// spdTable is a snapshot of the entries.
type spdTable struct {
	list  []*policy   // all
	main  []*policy   // those that are not of a device of their own
	index *classifier // of main; nil: it is short

	// simple: every entry protects, and each has a child of its own, so that a packet's
	// SA tells which entry it belongs to: that of byName.
	simple bool
	byName map[childKey]*hits
}

type childKey struct{ conn, child string }

// spd is the security policy database: an ordered table in which the first match wins
// (RFC 4301 section 4.4.1). Readers look up in an immutable snapshot; the IKE loop
// alone changes it, and raises gen with each change, so that what a flow cache
// remembers of an older one no longer counts. (A reader raises it that learns by which SA
// a class of packets comes.)
type spd struct {
	cur  atomic.Pointer[spdTable]
	gen  atomic.Uint64
	lane atomic.Bool // hasLanes
	max  int
	spec []policySpec
	sas  []*outSA // bound, the newest first
	hits map[string]*hits

	// ported: an entry or a bound SA has selectors for some ports.
	ported atomic.Bool
}

// newSPD returns an empty SPD of at most max entries.
func newSPD(max int) *spd {
	s := &spd{max: max}
	s.cur.Store(&spdTable{simple: true})
	s.gen.Store(1) // 0 is the generation of an empty cache entry
	return s
}

// lookup returns the first entry that the flow of a packet going out matches and, if that
// is PROTECT, its SA; both are nil if there is none. It may be called from any goroutine.
func (s *spd) lookup(f *esp.Flow) (*policy, *outSA) { return s.lookupVia(f, nil) }

// lookupVia is lookup among the entries of a device; nil: those of no device.
func (s *spd) lookupVia(f *esp.Flow, via *childDevice) (*policy, *outSA) {
	p, sa, _, _ := s.choose(f, via, 0, -1)
	return p, sa
}

// lookupIn returns the first entry that the flow of a packet coming in matches, or nil. It
// may be called from any goroutine.
func (s *spd) lookupIn(f *esp.Flow) *policy { return s.cur.Load().first(f, true) }

// firstVia returns the first entry of a device that the flow of a packet going out matches, or
// nil. A device has few entries, and there are few devices.
func (t *spdTable) firstVia(f *esp.Flow, via *childDevice) *policy {
	for _, p := range t.list {
		if p.via == via && p.matches(f, false) {
			return p
		}
	}
	return nil
}

// first returns the first entry that the flow matches, or nil.
func (t *spdTable) first(f *esp.Flow, in bool) *policy {
	if t.index != nil {
		return t.index.first(t.main, f, in)
	}
	for _, p := range t.main {
		if p.matches(f, in) {
			return p
		}
	}
	return nil
}

// check tells whether the entries fit the table.
func (s *spd) check(spec []policySpec) error {
	if len(spec) > s.max {
		return fmt.Errorf("the configuration has %d policies and the board profile allows %d: remove some or choose a larger board", len(spec), s.max)
	}
	return nil
}

// set replaces the entries. SAs stay bound, by the names of connection and child.
func (s *spd) set(spec []policySpec) {
	t := &spdTable{list: s.compile(spec), simple: true, byName: make(map[childKey]*hits, len(spec))}
	for _, p := range t.list {
		if p.via == nil {
			t.main = append(t.main, p)
		}
	}
	t.index = newClassifier(t.main)
	kept := make(map[string]*hits, len(spec))
	for i := range spec {
		sp := &spec[i]
		key := sp.key()
		h := s.hits[key]
		if h == nil {
			h = new(hits)
		}
		kept[key] = h
		k := childKey{sp.conn, sp.child}
		if t.byName[k] != nil || sp.Action != esp.Protect || sp.conn == "" || sp.Dir != esp.BothWays {
			t.simple = false
		}
		t.byName[k] = h
	}
	for _, p := range t.list {
		p.hits = kept[spec[p.number-1].key()]
	}
	s.spec, s.hits = spec, kept
	s.ported.Store(slices.ContainsFunc(t.list, func(p *policy) bool { return ported(p.LocalTS) || ported(p.RemoteTS) }) ||
		slices.ContainsFunc(s.sas, func(sa *outSA) bool { return sa.ported }))
	s.cur.Store(t)
	s.lane.Store(s.hasLanes())
	s.gen.Add(1)
}

// compile returns the entries that follow from the configuration and the bound SAs. It
// changes nothing.
func (s *spd) compile(spec []policySpec) []*policy {
	list := make([]*policy, 0, len(spec))
	for i := range spec {
		sp := &spec[i]
		if len(sp.LocalTS) > 0 && len(sp.RemoteTS) > 0 {
			list = s.entry(list, sp, i, sp.LocalTS, sp.RemoteTS)
		}
		if !sp.dynamic {
			continue
		}
		first := len(list)
		for _, sa := range slices.Backward(s.sas) { // where room is short, who came first stays
			if sa.conn == sp.conn && sa.child == sp.child && sa.via == sp.via && !covered(sp.LocalTS, sp.RemoteTS, sa) && !hasSelectors(list[first:], sa) {
				list = s.entry(list, sp, i, sa.localTS, sa.remoteTS)
			}
		}
	}
	return list
}

// entry appends one entry, if there is room, and binds what belongs to it.
func (s *spd) entry(list []*policy, sp *policySpec, i int, local, remote []esp.Selector) []*policy {
	if len(list) >= s.max {
		return list
	}
	p := &policy{
		Policy:  esp.Policy{Name: sp.Name, Action: sp.Action, Dir: sp.Dir, Own: sp.Own, Virtual: sp.Virtual, LocalTS: local, RemoteTS: remote},
		number:  i + 1,
		conn:    sp.conn,
		child:   sp.child,
		wait:    sp.wait,
		acquire: sp.acquire,
		lanes:   sp.lanes,
		via:     sp.via,
	}
	if p.lanes != nil {
		p.asked = new(laneAsked)
	}
	s.rebind(p)
	return append(list, p)
}

// rebind publishes in p the SAs that are bound to it.
func (s *spd) rebind(p *policy) {
	if p.Action != esp.Protect || !p.Dir.Out() {
		return
	}
	var sas []*outSA
	several := false
	for _, sa := range s.sas {
		if p.carries(sa.conn, sa.child, sa.via) && overlap(p.LocalTS, sa.localTS) && overlap(p.RemoteTS, sa.remoteTS) {
			sas = append(sas, sa)
			several = several || sa.lane > 0
		}
	}
	p.several.Store(several)
	if sas == nil {
		p.sas.Store(nil)
		return
	}
	p.sas.Store(&sas)
}

// bind makes an SA the newest of its entry. It tells whether the list of policies has
// changed with it, which the kernel must then be told, and whether any entry took it.
func (s *spd) bind(sa *outSA) (changed, taken bool) {
	s.sas = slices.Insert(s.sas, 0, sa)
	if sa.ported {
		s.ported.Store(true)
	}
	changed = s.refresh(sa)
	for _, p := range s.cur.Load().list {
		if list := p.sas.Load(); list != nil && slices.Contains(*list, sa) {
			return changed, true
		}
	}
	return changed, false
}

// unbind takes an SA away from its entry and tells whether the list of policies has
// changed with it.
func (s *spd) unbind(sa *outSA) (changed bool) {
	i := slices.Index(s.sas, sa)
	if i < 0 {
		return false
	}
	s.sas = slices.Delete(s.sas, i, i+1)
	return s.refresh(sa)
}

// refresh publishes a change of sa's binding. Only where its child is dynamic can the
// list of policies change.
func (s *spd) refresh(sa *outSA) (changed bool) {
	for i := range s.spec {
		if sp := &s.spec[i]; sp.dynamic && sp.conn == sa.conn && sp.child == sa.child {
			before := s.policies()
			s.set(s.spec)
			return !equalPolicies(before, s.policies())
		}
	}
	for _, p := range s.cur.Load().list {
		if p.carries(sa.conn, sa.child, sa.via) {
			s.rebind(p)
		}
	}
	s.lane.Store(s.hasLanes())
	s.gen.Add(1)
	return false
}

// policies returns the entries as the kernel wants them.
func (s *spd) policies() []esp.Policy { return s.plainPolicies(s.cur.Load().list) }

// plainPolicies returns entries that are to follow the present ones, or the latter, without
// those of devices: what goes into such a device, the system's own routes say.
func (s *spd) plainPolicies(list []*policy) []esp.Policy {
	out := make([]esp.Policy, 0, len(list))
	// Where entries come with SAs, they come before the kernel knows of them.
	count := !slices.ContainsFunc(s.spec, func(sp policySpec) bool { return sp.dynamic && sp.via == nil })
	now := s.cur.Load().list
	ours, oursNow := sentFrom(list), sentFrom(now)
	for _, p := range list {
		if p.via != nil {
			continue
		}
		plain := p.Policy
		plain.Count = count && p.Action != esp.Bypass && p.Dir.In() &&
			!(meet(ours, p.RemoteTS) && p.clearGoesOut(list)) && !(meet(oursNow, p.RemoteTS) && p.clearGoesOut(now))
		out = append(out, plain)
	}
	return out
}

// clearGoesOut tells whether one of the entries may have sent into a tunnel what comes in and
// matches p. What the TUN device brings does not say how it came there, so that such packets
// must not be handed over to be counted. Only addresses count: the kernel's rules may take
// more of a protocol than the entry does.
func (p *policy) clearGoesOut(list []*policy) bool {
	return slices.ContainsFunc(list, func(q *policy) bool {
		return q.protectsOut() && meet(q.LocalTS, p.RemoteTS) && meet(q.RemoteTS, p.LocalTS)
	})
}

func (p *policy) protectsOut() bool { return p.Action == esp.Protect && p.via == nil && p.Dir.Out() }

// sentFrom returns the ranges of addresses from which the entries send into tunnels, each once: mostly
// few, where the entries are many.
func sentFrom(list []*policy) (out []esp.Selector) {
	for _, p := range list {
		for i := 0; i < len(p.LocalTS) && p.protectsOut(); i++ {
			s := &p.LocalTS[i]
			if !slices.ContainsFunc(out, func(o esp.Selector) bool { return o.Start.Compare(s.Start) <= 0 && s.End.Compare(o.End) <= 0 }) {
				out = append(out, *s)
			}
		}
	}
	return out
}

// meet tells whether selectors of both lists have an address in common.
func meet(a, b []esp.Selector) bool {
	for i := range a {
		for j := range b {
			if a[i].Start.Compare(b[j].End) <= 0 && b[j].Start.Compare(a[i].End) <= 0 {
				return true
			}
		}
	}
	return false
}

func equalPolicies(a, b []esp.Policy) bool {
	return slices.EqualFunc(a, b, func(x, y esp.Policy) bool {
		return x.Action == y.Action && x.Dir == y.Dir && x.Count == y.Count && x.Own == y.Own && x.Virtual == y.Virtual && slices.Equal(x.LocalTS, y.LocalTS) && slices.Equal(x.RemoteTS, y.RemoteTS)
	})
}

// covered tells whether the selectors contain those of the SA.
func covered(local, remote []esp.Selector, sa *outSA) bool {
	return contain(local, sa.localTS) && contain(remote, sa.remoteTS)
}

func contain(outer, inner []esp.Selector) bool {
	for _, in := range inner {
		if !slices.ContainsFunc(outer, func(o esp.Selector) bool { return o.Contains(in) }) {
			return false
		}
	}
	return true
}

// overlap tells whether any selector of a has something in common with one of b.
func overlap(a, b []esp.Selector) bool {
	for _, x := range a {
		for _, y := range b {
			if _, ok := x.Intersect(y); ok {
				return true
			}
		}
	}
	return false
}

// hasSelectors tells whether one of the entries has exactly the SA's selectors.
func hasSelectors(list []*policy, sa *outSA) bool {
	return slices.ContainsFunc(list, func(p *policy) bool {
		return slices.Equal(p.LocalTS, sa.localTS) && slices.Equal(p.RemoteTS, sa.remoteTS)
	})
}
