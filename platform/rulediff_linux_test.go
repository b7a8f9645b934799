package platform

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// planFor plans one family for a host with these addresses. Sources get tables in order.
func planFor(t testing.TB, v6 bool, policies []esp.Policy, hosts ...string) (*familyPlan, map[netip.Addr]uint32) {
	t.Helper()
	p := &planner{policies: policies, device: "pt0", tables: map[netip.Addr]uint32{}}
	for _, h := range hosts {
		p.hosts = append(p.hosts, netip.MustParseAddr(h))
	}
	next := uint32(tableFirst)
	p.assign = func(netip.Addr) (uint32, error) { next++; return next, nil }
	f, err := p.plan(v6)
	if err != nil {
		t.Fatal(err)
	}
	return f, p.tables
}

func describe(runs []ruleRun) string {
	var b strings.Builder
	for i, run := range runs {
		for _, r := range run.rules {
			r.Priority = uint32(i)
			fmt.Fprintln(&b, r)
		}
	}
	return b.String()
}

func wantRuns(t *testing.T, what string, got []ruleRun, want ...string) {
	t.Helper()
	w := strings.Join(want, "\n")
	if w != "" {
		w += "\n"
	}
	if g := describe(got); g != w {
		t.Errorf("%s:\n%swant\n%s", what, g, w)
	}
}

func TestPlanKeepsTheOrderOfTheSPD(t *testing.T) {
	f, _ := planFor(t, false, []esp.Policy{
		policy(esp.Bypass, sel("10.1.0.0/24"), ported("10.2.0.0/24", 6, 22, 22)),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Protect, ported("10.1.0.0/24", 17, 100, 200), ported("10.3.0.0/24", 0, 0, 65535)),
		policy(esp.Protect, sel("fd01::/64"), sel("fd02::/64")),
		policy(esp.Discard, sel("10.1.0.0/24"), sel("0.0.0.0/0")),
	})
	wantRuns(t, "rules of the SPD", f.spd,
		"0: from 10.1.0.0/24 to 10.2.0.0/24 ipproto 6 dport 22-22 goto 999",
		"1: from 10.1.0.0/24 lookup 2204", // DISCARD, and what PROTECT has between two of these networks
		"1: from 10.1.0.0/24 to 10.3.0.0/24 ipproto 17 sport 100-200 lookup 2204")
	wantRuns(t, "rules for fragments on their way out", f.leave,
		"0: ipproto 6 sport 1-65534 goto 779",
		"0: ipproto 6 dport 1-65534 goto 779",
		"0: ipproto 17 sport 1-65534 goto 779",
		"0: ipproto 17 dport 1-65534 goto 779",
		"1: from 10.1.0.0/24 to 10.2.0.0/24 lookup 2204",
		"1: from 10.1.0.0/24 to 10.3.0.0/24 ipproto 17 lookup 2204")
	wantRuns(t, "rules of a host with no address", f.own)
	wantRuns(t, "mirrored rules", f.in,
		"0: from 10.2.0.0/24 to 10.1.0.0/24 ipproto 6 sport 22-22 goto 580",
		"1: to 10.1.0.0/24 blackhole",
		"1: from 10.3.0.0/24 to 10.1.0.0/24 ipproto 17 dport 100-200 blackhole")
	wantRuns(t, "rules for fragments", f.frag,
		"0: ipproto 6 sport 1-65534 goto 350",
		"0: ipproto 6 dport 1-65534 goto 350",
		"0: ipproto 17 sport 1-65534 goto 350",
		"0: ipproto 17 dport 1-65534 goto 350",
		"1: from 10.2.0.0/24 to 10.1.0.0/24 blackhole",
		"1: from 10.3.0.0/24 to 10.1.0.0/24 ipproto 17 blackhole")
}

func TestPlanMirrorsOnlyWhatCanDrop(t *testing.T) {
	for name, c := range map[string]struct {
		policies []esp.Policy
		want     []string
	}{
		"bypass alone": {[]esp.Policy{policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.2.0.0/24"))}, nil},
		"bypass behind": {[]esp.Policy{
			policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
			policy(esp.Bypass, sel("10.1.0.0/24"), sel("0.0.0.0/0")),
		}, []string{"0: from 10.2.0.0/24 to 10.1.0.0/24 blackhole"}},
		"everything remote": {[]esp.Policy{
			policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.1.0.0/24")),
			policy(esp.Protect, sel("10.1.0.0/24"), sel("0.0.0.0/0")),
		}, []string{"0: from 10.1.0.0/24 to 10.1.0.0/24 goto 580", "1: to 10.1.0.0/24 blackhole"}},
		"ICMP type": {[]esp.Policy{policy(esp.Protect, sel("10.1.0.0/24"), ported("10.2.0.0/24", 1, 8<<8, 8<<8))},
			[]string{"0: from 10.2.0.0/24 to 10.1.0.0/24 ipproto 1 blackhole"}},
		"discarded ports leave fragments alone": {[]esp.Policy{policy(esp.Discard, sel("10.1.0.0/24"), ported("10.2.0.0/24", 6, 25, 25))},
			[]string{"0: from 10.2.0.0/24 to 10.1.0.0/24 ipproto 6 sport 25-25 blackhole"}},
	} {
		f, _ := planFor(t, false, c.policies)
		wantRuns(t, name, f.in, c.want...)
		wantRuns(t, name+", fragments", f.frag)
		wantRuns(t, name+", fragments on their way out", f.leave)
	}
}

func TestPlanKeepsDirectionsApart(t *testing.T) {
	in := policy(esp.Protect, sel("10.1.0.0/24"), sel("0.0.0.0/0"))
	in.Dir = esp.OnlyIn
	out := policy(esp.Discard, sel("10.1.0.0/24"), sel("10.3.0.0/24"))
	out.Dir = esp.OnlyOut
	pass := policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.4.0.0/24"))
	pass.Dir = esp.OnlyIn
	f, _ := planFor(t, false, []esp.Policy{pass, out, in}, "10.1.0.1")
	wantRuns(t, "rules of the SPD", f.spd, "0: from 10.1.0.0/24 to 10.3.0.0/24 lookup 2204")
	wantRuns(t, "mirrored rules", f.in, "0: from 10.4.0.0/24 to 10.1.0.0/24 goto 580", "1: to 10.1.0.0/24 blackhole")
	wantRuns(t, "rules of the host's own packets", f.own, "0: from 0.0.0.0/32 to 10.3.0.0/24 blackhole")
}

// What is to be counted goes to the device, among what is just dropped, and neither
// passes an entry that has packets come in clear.
func TestPlanHandsOverWhatIsToBeCounted(t *testing.T) {
	list := []esp.Policy{
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.3.0.0/24")),
		policy(esp.Discard, sel("10.1.0.0/24"), sel("10.4.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), ported("10.5.0.0/24", 6, 5, 9)),
		policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.6.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.7.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.8.0.0/24")),
	}
	for _, i := range []int{0, 2, 3, 6} {
		list[i].Count = true
	}
	f, _ := planFor(t, false, list)
	wantRuns(t, "mirrored rules", f.in,
		"0: from 10.2.0.0/24 to 10.1.0.0/24 lookup 2204",
		"0: from 10.4.0.0/24 to 10.1.0.0/24 lookup 2204",
		"0: from 10.5.0.0/24 to 10.1.0.0/24 ipproto 6 sport 5-9 lookup 2204",
		"1: from 10.3.0.0/24 to 10.1.0.0/24 blackhole",
		"2: from 10.6.0.0/24 to 10.1.0.0/24 goto 580",
		"3: from 10.7.0.0/24 to 10.1.0.0/24 blackhole",
		"4: from 10.8.0.0/24 to 10.1.0.0/24 lookup 2204")
	for _, run := range f.frag {
		if run.kind == toDevice {
			t.Errorf("fragments go to the device by %v: it could not tell them apart", run.rules)
		}
	}
}

func TestPlanMultipliesSelectors(t *testing.T) {
	r := esp.Selector{Proto: 6, StartPort: 0, EndPort: 502, Start: netip.MustParseAddr("10.2.0.2"), End: netip.MustParseAddr("10.2.0.5")}
	f, _ := planFor(t, false, []esp.Policy{{
		Action:   esp.Protect,
		LocalTS:  []esp.Selector{sel("10.1.0.1/32"), sel("10.1.0.1/32"), ported("10.1.0.2/32", 17, 0, 65535), sel("fd00::/8")},
		RemoteTS: []esp.Selector{r},
	}})
	wantRuns(t, "rules", f.spd,
		"0: from 10.1.0.1/32 to 10.2.0.2/31 ipproto 6 dport 1-502 lookup 2204",
		"0: from 10.1.0.1/32 to 10.2.0.4/31 ipproto 6 dport 1-502 lookup 2204")
}

func TestPlanChoosesSourcesForTheHostsOwnPackets(t *testing.T) {
	lan, far := sel("10.1.0.0/24"), sel("10.2.0.0/24")
	all := sel("0.0.0.0/0")
	for _, c := range []struct {
		name     string
		policies []esp.Policy
		hosts    []string
		want     []string
	}{
		{"an address inside becomes the source", []esp.Policy{policy(esp.Protect, lan, far)},
			[]string{"192.0.2.1", "10.1.0.1", "10.1.0.2"},
			[]string{"0: from 0.0.0.0/32 to 10.2.0.0/24 lookup 2205"}},
		{"without one the host is not concerned", []esp.Policy{policy(esp.Protect, lan, far)},
			[]string{"192.0.2.1"}, nil},
		{"a LAN that is bypassed stays reachable for the host",
			[]esp.Policy{policy(esp.Bypass, lan, lan), policy(esp.Protect, lan, all)},
			[]string{"192.0.2.1", "10.1.0.1"},
			[]string{"0: from 0.0.0.0/32 to 10.1.0.0/24 goto 999", "1: from 0.0.0.0/32 lookup 2205"}},
		{"a bypass for one address leaves another protected",
			[]esp.Policy{policy(esp.Bypass, sel("10.1.0.1/32"), far), policy(esp.Protect, lan, far)},
			[]string{"10.1.0.1", "10.1.0.2"},
			[]string{"0: from 0.0.0.0/32 to 10.2.0.0/24 lookup 2205"}},
		{"an address that is bypassed is no source",
			[]esp.Policy{policy(esp.Bypass, sel("10.1.0.1/32"), far), policy(esp.Protect, lan, far)},
			[]string{"10.1.0.1"},
			[]string{"0: from 0.0.0.0/32 to 10.2.0.0/24 goto 999"}},
		{"any source is the business of the SPD's rule", []esp.Policy{policy(esp.Protect, all, far)},
			[]string{"192.0.2.1"}, nil},
		{"discarded if whatever source is", []esp.Policy{policy(esp.Discard, lan, far)},
			[]string{"10.1.0.1"}, []string{"0: from 0.0.0.0/32 to 10.2.0.0/24 blackhole"}},
		{"not discarded if another source may be chosen", []esp.Policy{policy(esp.Discard, lan, far)},
			[]string{"10.1.0.1", "192.0.2.1"}, nil},
	} {
		f, _ := planFor(t, false, c.policies, c.hosts...)
		wantRuns(t, c.name, f.own, c.want...)
	}
	p := []esp.Policy{policy(esp.Bypass, sel("10.1.0.1/32"), far), policy(esp.Protect, lan, far)}
	if _, tables := planFor(t, false, p, "10.1.0.1", "10.1.0.2"); tables[netip.MustParseAddr("10.1.0.2")] == 0 {
		t.Errorf("sources are %v, want 10.1.0.2: the other one is bypassed", tables)
	}
	f, _ := planFor(t, true, []esp.Policy{policy(esp.Protect, sel("fd01::/64"), sel("fd02::/64"))}, "fd01::1")
	wantRuns(t, "IPv6 has the split before it", f.own, "IPv6 0: to fd02::/64 lookup 2205")
}

func TestPlanRefusesWhatRulesCannotTell(t *testing.T) {
	echo := ported("10.2.0.0/24", 1, 8<<8, 8<<8)
	opaque := ported("10.2.0.0/24", 1, 65535, 0)
	zero := ported("10.2.0.0/24", 17, 0, 0)
	last := ported("10.2.0.0/24", 17, 1024, 65535)
	for name, s := range map[string]esp.Selector{"ICMP type": echo, "OPAQUE of ICMP": opaque, "port 0": zero, "port 65535": last, "ports of any protocol": ported("10.2.0.0/24", 0, 5, 6)} {
		for _, a := range []esp.Action{esp.Bypass, esp.Discard} {
			p := &planner{policies: []esp.Policy{policy(a, sel("10.1.0.0/24"), s)}}
			if _, err := p.plan(false); err == nil || !strings.Contains(err.Error(), "policy 1") {
				t.Errorf("%s, action %d: %v, want an error that names the policy: more than it says would be let through or lost", name, a, err)
			}
		}
		f, _ := planFor(t, false, []esp.Policy{policy(esp.Protect, sel("10.1.0.0/24"), s)})
		want := fmt.Sprintf("0: from 10.1.0.0/24 to 10.2.0.0/24 ipproto %d lookup 2204", s.Proto)
		wantRuns(t, name+" protected by protocol", f.spd, strings.Replace(want, " ipproto 0", "", 1))
	}
	many := esp.Policy{Action: esp.Protect}
	for i := range 100 {
		many.LocalTS = append(many.LocalTS, sel(fmt.Sprintf("10.1.%d.0/24", i)))
		many.RemoteTS = append(many.RemoteTS, sel(fmt.Sprintf("10.2.%d.0/24", i)))
	}
	p := &planner{policies: []esp.Policy{many}}
	if _, err := p.plan(false); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("10,000 rules: %v, want an error", err)
	}
}

// model evaluates rules as the kernel does: by priority, then in the order in which they
// were added. The packets of the tests have a source, a destination, a protocol, ports
// (0 in fragments) and an interface that they came by, and are marked or not.
type model struct{ rules []Rule }

func (m *model) add(r Rule) {
	i := 0
	for i < len(m.rules) && m.rules[i].Priority <= r.Priority {
		i++
	}
	m.rules = slices.Insert(m.rules, i, r)
}

// del deletes as the kernel does: the first rule that is not different in what r names.
func (m *model) del(r Rule) {
	if r.Group != 0 {
		m.rules = slices.DeleteFunc(m.rules, func(x Rule) bool { return x == r })
		return
	}
	i := slices.IndexFunc(m.rules, func(x Rule) bool {
		return x.Group == 0 && x.Priority == r.Priority && x.Action == r.Action && (r.Table == 0 || x.Table == r.Table) && (r.IPProto == 0 || x.IPProto == r.IPProto) &&
			(!r.From.IsValid() || x.From == r.From) && (!r.To.IsValid() || x.To == r.To) && (r.Mask == 0 || x.Mask == r.Mask) &&
			(r.SPort == PortRange{} || x.SPort == r.SPort) && (r.DPort == PortRange{} || x.DPort == r.DPort) &&
			(r.IIF == "" || x.IIF == r.IIF)
	})
	if i >= 0 { // else another request took it already
		m.rules = slices.Delete(m.rules, i, i+1)
	}
}

// bring brings the rules to a plan and returns what it took to do it.
func (m *model) bring(f *familyPlan) (changes []string, err error) {
	for range maxPasses {
		add, del, err := ruleDiff(m.rules, f)
		if err != nil || len(add)+len(del) == 0 {
			return changes, err
		}
		for _, r := range add {
			m.add(r)
			changes = append(changes, "add "+r.String())
		}
		for _, r := range del {
			m.del(r)
			changes = append(changes, "delete "+r.String())
		}
	}
	return changes, fmt.Errorf("still not there after %d passes", maxPasses)
}

// packet is what rules look at.
type packet struct {
	iif          string
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

func (m *model) decide(p packet, marked bool) string {
	verdict, _ := m.walk(p, marked)
	return verdict
}

// matches tells whether a rule fits a packet, as the kernel does: an inverted rule fits
// if any of what it names does not.
func (p packet) matches(r Rule, marked bool) bool {
	misses := func(r PortRange, port uint16) bool {
		return r != PortRange{} && (port < r.First || port > r.Last)
	}
	src, fits := p.src, true
	switch {
	case r.Mask != 0 && !marked, r.IPProto != 0 && r.IPProto != p.proto, r.To.IsValid() && !r.To.Contains(p.dst),
		r.IIF != "" && r.IIF != p.iif, misses(r.SPort, p.sport), misses(r.DPort, p.dport),
		r.From.IsValid() && (!src.IsValid() && r.V6 || src.IsValid() && !r.From.Contains(src) || !src.IsValid() && !r.From.Contains(netip.IPv4Unspecified())):
		fits = false
	}
	return fits != r.Invert
}

// walk also returns how many rules the kernel looks at. Members of groups are routes,
// which are found at once, but only by a rule that looks their table up.
// What the mirrored SPD sends to the device is dropped there.
func (m *model) walk(p packet, marked bool) (verdict string, compared int) {
	tell := func(at Rule, k ruleKind) string {
		if mirrored(at) && k == toDevice {
			return dropped
		}
		return fmt.Sprintf("action %d table %d", k.action, k.table)
	}
	target := uint32(0)
	for _, r := range m.rules {
		if r.Priority < target || r.Group != 0 {
			continue
		}
		compared++
		if !p.matches(r, marked) {
			continue
		}
		switch {
		case r.Action == unix.FR_ACT_GOTO:
			if slices.ContainsFunc(m.rules, func(x Rule) bool { return x.Priority == r.Goto }) {
				target = r.Goto
			}
		case r.Action == unix.FR_ACT_NOP:
		case isHead(r):
			for _, x := range m.rules {
				if x.Group == r.Table && x.To.Contains(p.dst) {
					return tell(r, groupKind(r.Table)), compared
				}
			}
		default:
			return tell(r, ruleKind{action: r.Action, table: r.Table}), compared
		}
	}
	return "go on", compared
}

// randomPolicies makes lists of overlapping entries over few addresses.
func randomPolicies(rng *rand.Rand, v6 bool) []esp.Policy {
	// Now and then both ends are of the same network, or exchanged.
	near, far := 1, 2
	switch rng.IntN(4) {
	case 0:
		far = 1
	case 1:
		near, far = 2, 1
	}
	net := func(base int) esp.Selector {
		bits := 29 + rng.IntN(4)
		last := byte(rng.IntN(8))
		if v6 {
			return sel(netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(base), 15: last}), 96+bits).Masked().String())
		}
		return sel(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(base), 0, last}), bits).Masked().String())
	}
	var list []esp.Policy
	for range rng.IntN(12) {
		p := policy(esp.Action(rng.IntN(3)), net(near), net(far))
		if rng.IntN(4) == 0 {
			p = policy(p.Action, net(far), net(near))
		}
		if rng.IntN(3) == 0 {
			p.RemoteTS[0].Proto = 6
			switch rng.IntN(4) {
			case 3:
				if p.Action != esp.Bypass {
					p.RemoteTS[0].StartPort, p.RemoteTS[0].EndPort = 65535, 0 // OPAQUE
				}
			case 0:
				p.RemoteTS[0].StartPort, p.RemoteTS[0].EndPort = 5, 5
			case 1:
				p.RemoteTS[0].StartPort, p.RemoteTS[0].EndPort = 4, 9
			}
		}
		if rng.IntN(6) == 0 {
			p.LocalTS[0] = sel(map[bool]string{false: "0.0.0.0/0", true: "::/0"}[v6])
			p.LocalTS[0].Proto = p.RemoteTS[0].Proto
		}
		if rng.IntN(3) == 0 {
			p.Dir = esp.Directions(rng.IntN(3))
		}
		p.Count = rng.IntN(2) == 0
		list = append(list, p)
	}
	return list
}

// Every step of every change leaves each packet with what it met before or what it is
// to meet; marked packets never meet anything.
func TestRuleChangesShowOldOrNewAndNothingBetween(t *testing.T) {
	for seed := range uint64(24) {
		rng := rand.New(rand.NewPCG(seed, 2204))
		v6 := seed%2 == 1
		m := &model{}
		host := "10.1.0.3"
		if v6 {
			host = "fd01::3"
		}
		addr := func(base, last int) netip.Addr {
			if v6 {
				return netip.AddrFrom16([16]byte{0xfd, byte(base), 15: byte(last)})
			}
			return netip.AddrFrom4([4]byte{10, byte(base), 0, byte(last)})
		}
		var packets []packet
		for d := range 8 {
			for _, kind := range []packet{{proto: 17}, {proto: 6}, {proto: 6, sport: 9, dport: 5}, {proto: 6, sport: 5, dport: 7}} {
				p := kind
				p.iif, p.dst = loopbackName, addr(2, d)
				packets = append(packets, p)
				for s := d % 2; s < 8; s += 2 {
					for _, p.iif = range []string{loopbackName, "pt0", "lan"} {
						for _, nets := range [][2]int{{1, 2}, {2, 1}, {1, 1}} {
							p.src, p.dst = addr(nets[0], s), addr(nets[1], d)
							packets = append(packets, p)
						}
					}
				}
			}
		}
		all := func() (out []string) {
			for _, p := range packets {
				out = append(out, m.decide(p, false))
				if got := m.decide(p, true); got != "go on" {
					t.Fatalf("seed %d: a marked packet to %v meets %q: the tunnel would loop", seed, p.dst, got)
				}
			}
			return out
		}
		for round := range 6 {
			policies := randomPolicies(rng, v6)
			if round == 5 {
				policies = nil
			}
			f, _ := planFor(t, v6, policies, host)
			add, del, err := ruleDiff(m.rules, f)
			if err != nil {
				t.Fatalf("seed %d round %d: %v", seed, round, err)
			}
			final := &model{}
			if _, err := final.bring(f); err != nil {
				t.Fatal(err)
			}
			before := all()
			var after []string
			for i, p := range packets {
				after = append(after, final.decide(p, false))
				if p.src.IsValid() {
					if want := meaning(policies, p); after[i] != want {
						t.Fatalf("seed %d round %d: %v -> %v %+v meets %q, the SPD says %q, of\n%v, by\n%v", seed, round, p.src, p.dst, p, after[i], want, policies, final.rules)
					}
				}
			}
			// Only where a BYPASS entry of the mirrored SPD moves may packets be lost that
			// neither policy drops; a loss is judged when all the moves are known.
			lost, moved := "", false
			check := func(step string, r Rule) {
				moved = moved || mirrored(r) && r.Action == unix.FR_ACT_GOTO
				for i, got := range all() {
					if got != before[i] && got != after[i] {
						what := fmt.Sprintf("seed %d round %d, %s %v: %+v meets %q, before it was %q, after it is %q",
							seed, round, step, r, packets[i], got, before[i], after[i])
						if got != dropped || packets[i].iif != "lan" {
							t.Fatal(what)
						}
						lost = what
					}
				}
			}
			for pass := 0; len(add)+len(del) > 0; pass++ {
				if pass == maxPasses {
					t.Fatalf("seed %d round %d: still adds %v and deletes %v after %d passes", seed, round, add, del, pass)
				}
				for _, r := range add {
					m.add(r)
					check("add", r)
				}
				for _, r := range del {
					m.del(r)
					check("delete", r)
				}
				if add, del, err = ruleDiff(m.rules, f); err != nil {
					t.Fatalf("seed %d round %d: %v", seed, round, err)
				}
			}
			if lost != "" && !moved {
				t.Fatalf("%s, and no BYPASS entry moved", lost)
			}
			if len(policies) == 0 && len(m.rules) > 0 {
				t.Fatalf("seed %d round %d: without policies there are still the rules %v", seed, round, m.rules)
			}
		}
	}
}

var dropped = fmt.Sprintf("action %d table 0", unix.FR_ACT_BLACKHOLE)

// meaning is what the SPD says, read without rules. Of fragments an entry that protects ports
// takes all.
func meaning(policies []esp.Policy, p packet) string {
	matches := func(s esp.Selector, ip netip.Addr, port uint16, fragments bool) bool {
		return contains([]esp.Selector{s}, ip, p.proto) &&
			(anyPorts(s) || (fragments || opaque(s)) && port == 0 || s.StartPort <= port && port <= s.EndPort)
	}
	first := func(local, remote netip.Addr, lport, rport uint16, mirrored bool) esp.Action {
		for _, e := range policies {
			all := e.Action == esp.Protect
			way := e.Dir.Out()
			if mirrored {
				way = e.Dir.In()
			}
			if way && matches(e.LocalTS[0], local, lport, all) && matches(e.RemoteTS[0], remote, rport, all) {
				return e.Action
			}
		}
		return esp.Bypass
	}
	if p.iif == "lan" && first(p.dst, p.src, p.dport, p.sport, true) != esp.Bypass {
		return dropped
	}
	if first(p.src, p.dst, p.sport, p.dport, false) == esp.Bypass {
		return "go on"
	}
	return fmt.Sprintf("action %d table %d", unix.FR_ACT_TO_TBL, tableFirst)
}

func TestRuleDiffLeavesUnchangedRulesAlone(t *testing.T) {
	base := []esp.Policy{
		policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.1.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Discard, sel("10.1.0.0/24"), sel("10.3.0.0/24")),
	}
	bring := func(m *model, policies []esp.Policy) []string {
		f, _ := planFor(t, false, policies)
		changes, err := m.bring(f)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	have := &model{}
	bring(have, base)
	for name, c := range map[string]struct {
		policies []esp.Policy
		add, del int // of them half in the mirrored SPD
	}{
		"nothing":           {base, 0, 0},
		"one more at front": {append([]esp.Policy{policy(esp.Discard, sel("10.1.0.9/32"), sel("10.2.0.0/24"))}, base...), 2, 0},
		"one more between":  {slices.Insert(slices.Clone(base), 2, policy(esp.Protect, sel("10.1.0.0/24"), sel("10.4.0.0/24"))), 2, 0},
		"first away":        {base[1:], 0, 2},
		"last away":         {base[:2], 0, 2},
		"middle changed":    {[]esp.Policy{base[0], policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/23")), base[2]}, 2, 2},
	} {
		changes := bring(&model{slices.Clone(have.rules)}, c.policies)
		add := 0
		for _, s := range changes {
			if strings.HasPrefix(s, "add") {
				add++
			}
		}
		if add != c.add || len(changes)-add != c.del {
			t.Errorf("%s: %q, want %d added and %d deleted", name, changes, c.add, c.del)
		}
	}
	// A copy that two starts at once left is taken away; rules that others put among
	// ours under our name, too.
	double := &model{append(slices.Clone(have.rules), have.rules[len(have.rules)-1])}
	if changes := bring(double, base); len(changes) != 1 || !strings.HasPrefix(changes[0], "delete") {
		t.Errorf("a double rule: %q, want one deleted", changes)
	}
}

func TestRuleDiffRefusesTooManyTurns(t *testing.T) {
	var alternating []esp.Policy
	for i := range 600 {
		s := sel(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 32).String())
		alternating = append(alternating, policy(esp.Action(i%2), sel("10.1.0.0/24"), s))
	}
	f, _ := planFor(t, false, alternating)
	if _, _, err := ruleDiff(nil, f); err == nil {
		t.Error("600 turns between bypass and discard have no room in 219 priorities, but there was no error")
	}
	f, _ = planFor(t, false, alternating[:200])
	m := &model{}
	if _, err := m.bring(f); err != nil {
		t.Errorf("200 turns: %v", err)
	}
	// Most of them again behind another front: there is no room for a second block.
	f, _ = planFor(t, false, append([]esp.Policy{policy(esp.Protect, sel("10.1.0.0/24"), sel("10.3.0.0/24"))}, alternating[1:190]...))
	if _, err := m.bring(f); err != nil {
		t.Errorf("a front that changes: %v, want the rest to keep its place", err)
	}
}
