package platform

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// The block of rules, for each family (priorities; low is first):
//
//	300        fwmark MARK       goto 999   the tunnel's own packets go on below
//	301        iif lo, iif DEVICE goto 580  this host's packets, and what the tunnel brought
//	302..349   what shows no ports, if any entry protects ports: see fragmentPlan
//	350        nop
//	351..579   the SPD mirrored, in its order, for all that came in otherwise: what PROTECT
//	           and DISCARD select with the ends exchanged is a blackhole, or goes to a table
//	           of ours to be counted and dropped behind the device; BYPASS goes to 580
//	580        nop
//	581        (IPv6) from ::/1, 8000::/1 goto 730: these have a source
//	582..729   packets of this host whose source is not chosen yet
//	730        (IPv6) nop
//	731..778   what shows no ports, if any entry protects ports: see fragmentPlan
//	779        nop, if there is anything before it
//	780..998   the SPD, in its order: PROTECT looks a table of ours up, and DISCARD, which
//	           is counted and dropped behind the device; BYPASS goes to 999
//	999        nop; what comes here goes on with the rules of everybody else
//
// The block stands behind the table "local" (0), since what is for this host itself
// needs no tunnel, and before the rules of VRFs and mwan3 (1000 and up), which decide
// where a packet leaves that no policy protects. Entries of the SPD that follow one
// another and do the same share a priority, since their order among themselves does not
// matter; so the room is for as many changes between PROTECT, BYPASS and DISCARD.
//
// An entry for one direction is in one of the two parts alone.
//
// The mirrored part drops what must be protected and arrives in clear (RFC 4301 section
// 5.2). The SPD does not say which interfaces are inside, so a packet that is forwarded
// passes in clear only if neither reading of it, as going out or as coming in, has to be
// protected. Whatever the selectors, that costs no conversation: the mirrored part drops
// exactly those packets (and some fragments) whose answers the SPD's part keeps from going
// back in clear.
// The kernel's reverse path filter looks up the answer as if it had come in by lo, or by
// the interface that the packet leaves by; both give what the answer itself would get.
const (
	prioMark   = 300
	prioTrust  = 301
	prioFrag   = 302 // first for what shows no ports
	prioWhole  = 350
	prioIn     = 351 // first of the mirrored SPD
	prioOut    = 580
	prioSplit  = 581
	prioOwn    = 582 // first of the host's own packets without a source
	prioMiddle = 730
	prioLeave  = 731 // first for what shows no ports, on its way out
	prioShown  = 779
	prioSPD    = 780
	prioEnd    = 999
)

// Our routing tables. The first sends everything into the device; each of the others
// does so with one of the host's addresses as the source, for the host's own packets
// that have none yet. Each ends in an unreachable default route, which outlives the
// device and this process: then what must be protected is dropped, not sent in clear.
const (
	tableFirst = 2204
	maxSources = 16
)

// routeProtocol marks our rules and routes, so that a later start knows them for its
// own after this process was killed.
const routeProtocol = 204

// tableMetric is the metric of the route into the device, so that the unreachable
// route stands behind it.
const (
	tableMetric       = 1
	unreachableMetric = 0xffffffff
)

// maxRules bounds what one family's policies may become: selectors multiply.
const maxRules = 8192

// ruleKind is what a rule does. Rules of one kind may share a priority.
type ruleKind struct {
	action uint8
	table  uint32
	target uint32 // of a goto
}

var (
	blackhole = ruleKind{action: unix.FR_ACT_BLACKHOLE}
	toDevice  = ruleKind{action: unix.FR_ACT_TO_TBL, table: tableFirst}
	passIn    = ruleKind{action: unix.FR_ACT_GOTO, target: prioOut}
)

func kindOf(r Rule) ruleKind {
	switch {
	case r.Invert:
		return guardKind
	case isHead(r):
		return groupKind(r.Table)
	}
	return ruleKind{r.Action, r.Table, r.Goto}
}

// ruleRun is a run of rules of one kind; their priority is not set yet.
type ruleRun struct {
	kind  ruleKind
	rules []Rule
	seen  map[Rule]bool // the rules, once there are many
}

// familyPlan is what one family's policies need of the kernel.
type familyPlan struct {
	v6     bool
	device string    // whose packets were protected on their way here; "": none
	frag   []ruleRun // the SPD mirrored, for what shows no ports
	in     []ruleRun // the SPD mirrored
	own    []ruleRun // for the host's packets without a source
	leave  []ruleRun // the SPD, for what shows no ports
	spd    []ruleRun

	// The shape of each section. One that has no room between what is there gives way to a
	// plainer one, until that is in place and there may be room: then it is tried again.
	shapes [5]int
	again  bool
	left   map[uint32]bool // priorities that are given up, since there was no room between them
}

// planner turns policies into rules.
type planner struct {
	device   string         // the device, if it is there
	hosts    []netip.Addr   // this host's addresses, of both families
	links    []netip.Prefix // the networks of IPv6 that these are in
	tables   map[netip.Addr]uint32
	assign   func(src netip.Addr) (uint32, error)
	policies []esp.Policy
}

// plan makes the rules of one family. An entry that the kernel's rules cannot express
// without letting something through is an error that names it.
func (p *planner) plan(v6 bool) (*familyPlan, error) {
	f := &familyPlan{v6: v6, device: p.device}
	fragments := fragmentPlan{past: prioWhole, kind: blackhole}
	leaving := fragmentPlan{past: prioShown, kind: toDevice}
	total := 0
	for i := range p.policies {
		pol := &p.policies[i]
		matches, err := policyMatches(pol, v6)
		if err != nil {
			return nil, &OpError{Op: "set", Object: fmt.Sprintf("policy %d (%v === %v)", i+1, pol.LocalTS, pol.RemoteTS), Err: err}
		}
		if total += len(matches); total > maxRules {
			return nil, &OpError{Op: "set", Object: fmt.Sprintf("policy %d", i+1),
				Err:  fmt.Errorf("the policies need more than %d routing rules", maxRules),
				Hint: "name prefixes in place of address ranges, or fewer selectors"}
		}
		if len(matches) == 0 {
			continue
		}
		// What is discarded goes to the device as well, to be counted and dropped there.
		kind, back, fragment := toDevice, blackhole, blackhole
		if pol.Action == esp.Bypass {
			kind, back, fragment = ruleKind{action: unix.FR_ACT_GOTO, target: prioEnd}, passIn, passIn
		} else if pol.Count {
			back = toDevice
		}
		for _, m := range matches {
			if pol.Dir.Out() {
				r := m.rule(v6)
				if !m.blind {
					f.spd = appendRule(f.spd, kind, r)
				}
				leaving.add(pol.Action, kind, r, m.blind)
			}
			if pol.Dir.In() {
				r := m.mirrored().rule(v6)
				if !m.blind {
					f.in = appendDrop(f.in, back, r)
				}
				fragments.add(pol.Action, fragment, r, m.blind)
			}
		}
		if pol.Dir.Out() {
			if err := p.planOwn(f, i, matches); err != nil {
				return nil, err
			}
		}
	}
	if v6 {
		p.planStray(f)
	}
	if n := len(f.in); n > 0 && f.in[n-1].kind == passIn {
		f.in = f.in[:n-1] // nothing left to pass by
	}
	f.frag, f.leave = fragments.runs(), leaving.runs()
	for _, runs := range [][]ruleRun{f.frag, f.in, f.own, f.leave, f.spd} {
		for i := range runs {
			runs[i].rules = mergeRules(runs[i].rules)
		}
	}
	return f, nil
}

// fragmentPlan makes the rules for the fragments of packets that a PROTECT entry with ports
// selects: the kernel sees no ports in a fragment, not even in the first, so forged packets
// would come in past such an entry in pieces, and what it protects would leave in clear, in
// pieces. Whatever shows ports passes these rules by. The rest meets the SPD, on its way in the
// mirrored one, as far as its last such entry, where each of them stands for its whole
// protocol. On the way in that is dropped. On the way out it goes to the device, behind which
// each fragment is treated like the first one of its packet: what that entry does not select
// is dropped as well, since nobody could send it on from there. So this takes more than
// the entry says from the fragments of other ports between these networks, but only without
// connection tracking, which puts packets together before they are routed. The kernel also
// looks up the way back of what the device brings, if it filters by reverse paths, without
// ports: these rules let fragments pass there.
type fragmentPlan struct {
	past uint32   // where the rest of the rules begins
	kind ruleKind // what becomes of what such an entry may select

	ported, list       []ruleRun
	visible, upToPorts []ruleRun // both, with the last entry that protects ports
}

// add takes the next rule of the SPD, mirrored or not. blind says that it is for what shows no
// ports alone.
func (p *fragmentPlan) add(action esp.Action, kind ruleKind, r Rule, blind bool) {
	if r.SPort == (PortRange{}) && r.DPort == (PortRange{}) && !blind {
		p.list = appendRule(p.list, kind, r)
		return
	}
	// Of packets that show ports these leave out those that have 65535, or 0, at both ends.
	any := PortRange{1, maxRulePort}
	v := Rule{V6: r.V6, IPProto: r.IPProto, Protocol: routeProtocol}
	for _, ports := range [][2]PortRange{{any, {}}, {{}, any}} {
		v.SPort, v.DPort = ports[0], ports[1]
		p.ported = appendRule(p.ported, ruleKind{action: unix.FR_ACT_GOTO, target: p.past}, v)
	}
	if action != esp.Protect && !blind {
		return // of which the list knows nothing, so it is not for packets of that protocol with ports
	}
	r.SPort, r.DPort = PortRange{}, PortRange{}
	p.list = appendRule(p.list, p.kind, r)
	p.visible, p.upToPorts = slices.Clone(p.ported), slices.Clone(p.list)
}

func (p *fragmentPlan) runs() []ruleRun { return slices.Concat(p.visible, p.upToPorts) }

// planOwn adds the rules for packets that this host sends from no particular address.
// The route that they find also decides their source, so the entry of the SPD that
// applies is for us to choose:
//
//   - PROTECT: with a host's address inside the local selector, that becomes the source,
//     and the packet goes into the device. Without one the host cannot send what the
//     entry selects; but if that is whatever address the host has, it was another one until
//     now, and the packet is dropped.
//   - BYPASS: go on before a later entry takes the packet, if whatever source the host
//     chooses then is not for that entry; else the later entry takes it.
//   - DISCARD: only if every address of the host is inside the local selector.
func (p *planner) planOwn(f *familyPlan, at int, matches []ruleMatch) error {
	pol := &p.policies[at]
	for _, m := range matches {
		if m.from.Bits() == 0 || m.blind {
			continue // the rule of the SPD sees packets without a source, too; none is a fragment
		}
		kind, to := blackhole, []netip.Prefix{m.to}
		switch pol.Action {
		case esp.Protect:
			src := p.ownSource(at, m)
			if !src.IsValid() {
				// No address of before is left, and those of now are not in the entry yet. But
				// DHCPv6, which may be about to get one, needs its multicasts.
				if !pol.Own {
					continue
				}
				if f.v6 && m.to.Bits() == 0 {
					to = beyondLink
				}
				break
			}
			table, err := p.table(src)
			if err != nil {
				return err
			}
			kind = ruleKind{action: unix.FR_ACT_TO_TBL, table: table}
		case esp.Bypass:
			if !p.bypassOwn(at, m) {
				continue
			}
			kind = ruleKind{action: unix.FR_ACT_GOTO, target: prioEnd}
		default:
			if !p.allInside(m.from) {
				continue
			}
		}
		for _, m.to = range to {
			r := m.rule(f.v6)
			r.From = netip.Prefix{}
			if !f.v6 {
				r.From = netip.PrefixFrom(netip.IPv4Unspecified(), 32)
			}
			f.own = appendRule(f.own, kind, r)
		}
	}
	return nil
}

// beyondLink is all of IPv6 but what stays on a link: fe80::/10 and the multicasts, ff00::/8.
var beyondLink = []netip.Prefix{
	prefix6(0x00, 0, 1), prefix6(0x80, 0, 2), prefix6(0xc0, 0, 3), prefix6(0xe0, 0, 4), prefix6(0xf0, 0, 5),
	prefix6(0xf8, 0, 6), prefix6(0xfc, 0, 7), prefix6(0xfe, 0, 9), prefix6(0xfe, 0xc0, 10),
}

func prefix6(first, second byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{first, second}), bits)
}

// linkOnly is what never leaves a link: link-local addresses and multicasts, of which those that do
// are few.
var linkOnly = []netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
	netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8),
}

// planStray drops, at the end of the SPD, what this host sends to the remote selectors of an entry
// for virtual addresses from other ones. For a packet of IPv6 without a source for which planOwn
// has none, or whose way into the tunnel is gone, the kernel chooses any source that the host has
// and asks for a route again: to drop it there is too early, and here it cannot be told from one
// whose program has chosen that source. Networks on a link of this host are left out: it must go on to
// answer its neighbours. IPv4 gives up at once, so that packets with a source are what they seem.
func (p *planner) planStray(f *familyPlan) {
	pass := ruleKind{action: unix.FR_ACT_GOTO, target: prioEnd}
	var near, far []ruleRun
	for i := range p.policies {
		pol := &p.policies[i]
		if !pol.Virtual || pol.Action != esp.Protect || !pol.Dir.Out() {
			continue
		}
		matches, err := policyMatches(pol, true)
		if err != nil {
			continue // plan has told of it
		}
		for _, m := range matches {
			m.from = netip.Prefix{}
			r := m.rule(true)
			r.From, r.IIF = netip.Prefix{}, loopbackName
			far = appendRule(far, blackhole, r)
			for _, link := range slices.Concat(linkOnly, p.links) {
				if link.Bits() > m.to.Bits() && m.to.Contains(link.Addr()) {
					r.To = link
					near = appendRule(near, pass, r)
				}
			}
		}
	}
	for _, run := range slices.Concat(near, far) {
		for _, r := range run.rules {
			f.spd = appendRule(f.spd, run.kind, r)
		}
	}
}

// ownSource returns the first address of the host inside m.from that no earlier entry
// bypasses or discards on its way to the whole of m.to.
func (p *planner) ownSource(at int, m ruleMatch) netip.Addr {
	for _, host := range p.hosts {
		if m.from.Contains(host) && !p.takenBefore(at, host, m) {
			return host
		}
	}
	return netip.Addr{}
}

func (p *planner) takenBefore(at int, host netip.Addr, m ruleMatch) bool {
	for i := range p.policies[:at] {
		pol := &p.policies[i]
		if pol.Action == esp.Protect || !pol.Dir.Out() || !contains(pol.LocalTS, host, 0) {
			continue
		}
		for _, s := range pol.RemoteTS {
			if s.Proto != 0 && s.Proto != m.proto || !anyPorts(s) {
				continue
			}
			for _, r := range s.Prefixes() {
				if r.Bits() <= m.to.Bits() && r.Contains(m.to.Addr()) {
					return true
				}
			}
		}
	}
	return false
}

// bypassOwn tells whether a later entry protects or discards some address of the host on
// its way to some of m.to, and all such addresses are inside m.from, so bypassed anyway.
func (p *planner) bypassOwn(at int, m ruleMatch) bool {
	needed := false
	for i := range p.policies[at+1:] {
		pol := &p.policies[at+1+i]
		if pol.Action == esp.Bypass || !pol.Dir.Out() || !overlapsAny(pol.RemoteTS, m.to) {
			continue
		}
		needed = needed || pol.Own
		for _, host := range p.hosts {
			if contains(pol.LocalTS, host, m.proto) {
				if !m.from.Contains(host) {
					return false
				}
				needed = true
			}
		}
	}
	return needed
}

func (p *planner) allInside(prefix netip.Prefix) bool {
	any := false
	for _, host := range p.hosts {
		if host.Is6() != prefix.Addr().Is6() {
			continue
		}
		if !prefix.Contains(host) {
			return false
		}
		any = true
	}
	return any
}

func contains(ts []esp.Selector, ip netip.Addr, proto uint8) bool {
	return slices.ContainsFunc(ts, func(s esp.Selector) bool {
		return s.Start.Is6() == ip.Is6() && s.Start.Compare(ip) <= 0 && ip.Compare(s.End) <= 0 &&
			(proto == 0 || s.Proto == 0 || s.Proto == proto)
	})
}

func overlapsAny(ts []esp.Selector, p netip.Prefix) bool {
	return slices.ContainsFunc(ts, func(s esp.Selector) bool {
		return slices.ContainsFunc(s.Prefixes(), p.Overlaps)
	})
}

// table returns the routing table that leads into the device with that source.
func (p *planner) table(src netip.Addr) (uint32, error) {
	if t, ok := p.tables[src]; ok {
		return t, nil
	}
	t, err := p.assign(src)
	if err != nil {
		return 0, err
	}
	p.tables[src] = t
	return t, nil
}

// ruleMatch is one combination of a policy's selectors.
type ruleMatch struct {
	from, to     netip.Prefix
	proto        uint8
	sport, dport PortRange
	blind        bool // for what shows no ports alone
}

// mirrored returns what the answers to m are.
func (m ruleMatch) mirrored() ruleMatch {
	m.from, m.to = m.to, m.from
	m.sport, m.dport = m.dport, m.sport
	return m
}

func (m ruleMatch) rule(v6 bool) Rule {
	r := Rule{V6: v6, IPProto: m.proto, SPort: m.sport, DPort: m.dport, Protocol: routeProtocol}
	if m.from.Bits() > 0 {
		r.From = m.from
	}
	if m.to.Bits() > 0 {
		r.To = m.to
	}
	return r
}

// policyMatches multiplies the local by the remote selectors of one family.
func policyMatches(pol *esp.Policy, v6 bool) ([]ruleMatch, error) {
	var list []ruleMatch
	seen := map[ruleMatch]bool{}
	for _, l := range pol.LocalTS {
		for _, r := range pol.RemoteTS {
			if l.Start.Is6() != v6 || r.Start.Is6() != v6 {
				continue
			}
			base, ok, err := matchOf(pol.Action, l, r)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			for _, from := range l.Prefixes() {
				for _, to := range r.Prefixes() {
					m := base
					m.from, m.to = from, to
					if !seen[m] {
						seen[m] = true
						list = append(list, m)
					}
					if len(list) > maxRules {
						return list, nil
					}
				}
			}
		}
	}
	return list, nil
}

// matchOf returns protocol and ports of a pair of selectors; ok is false if no packet
// can match both. Rules know neither ICMP's types nor the ports 0 and 65535: PROTECT takes
// the whole protocol then and leaves the rest to the SPD, which drops what it does not select.
// OPAQUE ports are what shows none, which the kernel can tell, but for a first fragment: what
// protects or discards them takes that along, and BYPASS cannot have them.
func matchOf(action esp.Action, l, r esp.Selector) (m ruleMatch, ok bool, err error) {
	if l.Proto != 0 && r.Proto != 0 && l.Proto != r.Proto {
		return m, false, nil
	}
	m.proto = cmp.Or(l.Proto, r.Proto)
	if anyPorts(l) && anyPorts(r) {
		return m, true, nil
	}
	switch lo, ro := opaque(l), opaque(r); {
	case !lo && !ro:
	case !lo && !anyPorts(l), !ro && !anyPorts(r):
		return m, false, nil // it shows its ports at both ends or at neither
	case action != esp.Bypass && hasPorts(m.proto):
		m.blind = true
		return m, true, nil
	}
	sport, okL := portRange(l)
	dport, okR := portRange(r)
	if okL && okR && hasPorts(m.proto) {
		m.sport, m.dport = sport, dport
		return m, true, nil
	}
	if action == esp.Protect {
		return m, true, nil
	}
	return m, false, errors.New("routing rules cannot tell ICMP types, OPAQUE ports and the ports 0 and 65535 apart, and to bypass or discard the whole protocol would be wrong; name the protocol without them, or end the range at port 65534")
}

func opaque(s esp.Selector) bool { return s.StartPort > s.EndPort }

//go:noinline
func anyPorts(s esp.Selector) bool { return s.StartPort == 0 && s.EndPort == 65535 }

// maxRulePort is the last port that a rule can name.
const maxRulePort = 65534

// portRange returns a range that the kernel takes: it counts from port 1 to maxRulePort.
// Nobody uses port 0, so a range may begin there; 65535 is a port like any other.
func portRange(s esp.Selector) (PortRange, bool) {
	if anyPorts(s) {
		return PortRange{}, true
	}
	p := PortRange{max(s.StartPort, 1), s.EndPort}
	return p, p.First <= p.Last && p.Last <= maxRulePort
}

// hasPorts tells which protocols the kernel looks for ports in.
func hasPorts(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
		return true
	}
	return false
}

func appendRule(runs []ruleRun, kind ruleKind, r Rule) []ruleRun {
	r.Action, r.Table, r.Goto = kind.action, kind.table, kind.target
	if n := len(runs); n > 0 && runs[n-1].kind == kind {
		if run := &runs[n-1]; !run.has(r) {
			run.rules = append(run.rules, r)
		}
		return runs
	}
	return append(runs, ruleRun{kind: kind, rules: []Rule{r}})
}

// appendDrop is appendRule for the mirrored SPD, where rules that drop and those that have
// the device count what it drops need no order among themselves.
func appendDrop(runs []ruleRun, kind ruleKind, r Rule) []ruleRun {
	if n := len(runs); n > 1 && kind != passIn && runs[n-1].kind != passIn && runs[n-2].kind == kind {
		return append(appendRule(runs[:n-1], kind, r), runs[n-1])
	}
	return appendRule(runs, kind, r)
}

// has tells whether r is there, and otherwise expects it to come.
func (run *ruleRun) has(r Rule) bool {
	if len(run.rules) < groupMin {
		return slices.Contains(run.rules, r)
	}
	if run.seen == nil {
		run.seen = make(map[Rule]bool, 2*groupMin)
		for _, x := range run.rules {
			run.seen[x] = true
		}
	}
	had := run.seen[r]
	run.seen[r] = true
	return had
}

// frame returns the fixed rules of a family that has any others. In this order they may
// be added, in the other one deleted, while packets pass.
func frame(v6 bool, device string, leave bool) []Rule {
	rule := func(priority uint32, action uint8, target uint32) Rule {
		return Rule{V6: v6, Protocol: routeProtocol, Priority: priority, Action: action, Goto: target}
	}
	list := []Rule{rule(prioEnd, unix.FR_ACT_NOP, 0), rule(prioOut, unix.FR_ACT_NOP, 0), rule(prioWhole, unix.FR_ACT_NOP, 0)}
	if leave {
		list = append(list, rule(prioShown, unix.FR_ACT_NOP, 0))
	}
	if v6 {
		list = append(list, rule(prioMiddle, unix.FR_ACT_NOP, 0))
	}
	mark := rule(prioMark, unix.FR_ACT_GOTO, prioEnd)
	mark.Mark, mark.Mask = Mark, MarkMask
	list = append(list, mark)
	for _, name := range []string{loopbackName, device} {
		if name != "" {
			trust := rule(prioTrust, unix.FR_ACT_GOTO, prioOut)
			trust.IIF = name
			list = append(list, trust)
		}
	}
	if !v6 {
		return list
	}
	// A rule with a source never matches an IPv6 packet that has none yet, ::/128
	// included. So the ones that have one are sent past the rules for the others.
	low, high := rule(prioSplit, unix.FR_ACT_GOTO, prioMiddle), rule(prioSplit, unix.FR_ACT_GOTO, prioMiddle)
	low.From = netip.PrefixFrom(netip.IPv6Unspecified(), 1)
	high.From = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x80}), 1)
	return append(list, low, high)
}

// loopbackName is the interface by which this host's own packets come, for the rules.
const loopbackName = "lo"
