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
	p := &planner{policies: policies, tables: map[netip.Addr]uint32{}}
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
		"1: from 10.1.0.0/24 to 10.2.0.0/24 lookup 2204",
		"1: from 10.1.0.0/24 to 10.3.0.0/24 ipproto 17 sport 100-200 lookup 2204",
		"2: from 10.1.0.0/24 blackhole")
	wantRuns(t, "rules of a host with no address", f.own)
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
	opaque := ported("10.2.0.0/24", 17, 65535, 0)
	zero := ported("10.2.0.0/24", 17, 0, 0)
	for name, s := range map[string]esp.Selector{"ICMP type": echo, "OPAQUE": opaque, "port 0": zero, "ports of any protocol": ported("10.2.0.0/24", 0, 5, 6)} {
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
// were added. The packets of the tests have a source, a destination and a protocol, and
// are marked or not.
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
	i := slices.IndexFunc(m.rules, func(x Rule) bool {
		return x.Priority == r.Priority && kindOf(x) == kindOf(r) && (r.IPProto == 0 || x.IPProto == r.IPProto) &&
			(!r.From.IsValid() || x.From == r.From) && (!r.To.IsValid() || x.To == r.To) && (r.Mask == 0 || x.Mask == r.Mask)
	})
	if i >= 0 { // else another request took it already
		m.rules = slices.Delete(m.rules, i, i+1)
	}
}

func (m *model) decide(src, dst netip.Addr, proto uint8, marked bool) string {
	target := uint32(0)
	for _, r := range m.rules {
		if r.Priority < target {
			continue
		}
		if r.Mask != 0 && !marked || r.IPProto != 0 && r.IPProto != proto || r.To.IsValid() && !r.To.Contains(dst) {
			continue
		}
		if r.From.IsValid() && (!src.IsValid() && r.V6 || src.IsValid() && !r.From.Contains(src) || !src.IsValid() && r.From.Bits() != 32) {
			continue
		}
		switch r.Action {
		case unix.FR_ACT_GOTO:
			if slices.ContainsFunc(m.rules, func(x Rule) bool { return x.Priority == r.Goto }) {
				target = r.Goto
			}
		case unix.FR_ACT_NOP:
		default:
			return fmt.Sprintf("action %d table %d", r.Action, r.Table)
		}
	}
	return "go on"
}

// randomPolicies makes lists of overlapping entries over few addresses.
func randomPolicies(rng *rand.Rand, v6 bool) []esp.Policy {
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
		p := policy(esp.Action(rng.IntN(3)), net(1), net(2))
		if rng.IntN(3) == 0 {
			p.RemoteTS[0].Proto = 6
		}
		if rng.IntN(6) == 0 {
			p.LocalTS[0] = sel(map[bool]string{false: "0.0.0.0/0", true: "::/0"}[v6])
			p.LocalTS[0].Proto = p.RemoteTS[0].Proto
		}
		list = append(list, p)
	}
	return list
}

// Every step of every change leaves each packet with what it met before or what it is
// to meet; marked packets never meet anything.
func TestRuleChangesShowOldOrNewAndNothingBetween(t *testing.T) {
	for seed := range uint64(40) {
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
		type packet struct {
			src, dst netip.Addr
			proto    uint8
		}
		var packets []packet
		for d := range 8 {
			for _, proto := range []uint8{6, 17} {
				packets = append(packets, packet{netip.Addr{}, addr(2, d), proto})
				for s := range 8 {
					packets = append(packets, packet{addr(1, s), addr(2, d), proto})
				}
			}
		}
		all := func() (out []string) {
			for _, p := range packets {
				out = append(out, m.decide(p.src, p.dst, p.proto, false))
				if got := m.decide(p.src, p.dst, p.proto, true); got != "go on" {
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
			fresh, _, err := ruleDiff(nil, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range fresh {
				final.add(r)
			}
			before := all()
			var after []string
			for i, p := range packets {
				after = append(after, final.decide(p.src, p.dst, p.proto, false))
				if p.src.IsValid() {
					if want := meaning(policies, p.src, p.dst, p.proto); after[i] != want {
						t.Fatalf("seed %d round %d: %v to %v meets %q, the SPD says %q", seed, round, p.src, p.dst, after[i], want)
					}
				}
			}
			check := func(step string, r Rule) {
				for i, got := range all() {
					if got != before[i] && got != after[i] {
						t.Fatalf("seed %d round %d, %s %v: %v to %v meets %q, before it was %q, after it is %q",
							seed, round, step, r, packets[i].src, packets[i].dst, got, before[i], after[i])
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
			if len(policies) == 0 && len(m.rules) > 0 {
				t.Fatalf("seed %d round %d: without policies there are still the rules %v", seed, round, m.rules)
			}
		}
	}
}

// meaning is what the SPD says, read without rules.
func meaning(policies []esp.Policy, src, dst netip.Addr, proto uint8) string {
	for _, p := range policies {
		if contains(p.LocalTS, src, proto) && contains(p.RemoteTS, dst, proto) {
			switch p.Action {
			case esp.Protect:
				return fmt.Sprintf("action %d table %d", unix.FR_ACT_TO_TBL, tableFirst)
			case esp.Bypass:
				return "go on"
			}
			return fmt.Sprintf("action %d table 0", unix.FR_ACT_BLACKHOLE)
		}
	}
	return "go on"
}

func TestRuleDiffLeavesUnchangedRulesAlone(t *testing.T) {
	base := []esp.Policy{
		policy(esp.Bypass, sel("10.1.0.0/24"), sel("10.1.0.0/24")),
		policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/24")),
		policy(esp.Discard, sel("10.1.0.0/24"), sel("10.3.0.0/24")),
	}
	rules := func(policies []esp.Policy, have []Rule) (add, del []Rule) {
		f, _ := planFor(t, false, policies)
		add, del, err := ruleDiff(have, f)
		if err != nil {
			t.Fatal(err)
		}
		return add, del
	}
	have, _ := rules(base, nil)
	for name, c := range map[string]struct {
		policies []esp.Policy
		add, del int
	}{
		"nothing":           {base, 0, 0},
		"one more at front": {append([]esp.Policy{policy(esp.Discard, sel("10.1.0.9/32"), sel("10.2.0.0/24"))}, base...), 1, 0},
		"one more between":  {slices.Insert(slices.Clone(base), 2, policy(esp.Protect, sel("10.1.0.0/24"), sel("10.4.0.0/24"))), 1, 0},
		"first away":        {base[1:], 0, 1},
		"last away":         {base[:2], 0, 1},
		"middle changed":    {[]esp.Policy{base[0], policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.0.0/23")), base[2]}, 1, 1},
	} {
		if add, del := rules(c.policies, have); len(add) != c.add || len(del) != c.del {
			t.Errorf("%s: adds %v and deletes %v, want %d and %d", name, add, del, c.add, c.del)
		}
	}
	// A copy that two starts at once left is taken away; rules that others put among
	// ours under our name, too.
	double := append(slices.Clone(have), have[len(have)-1])
	if add, del := rules(base, double); len(add) != 0 || len(del) != 1 {
		t.Errorf("a double rule: adds %v, deletes %v, want one deleted", add, del)
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
		t.Error("600 turns between bypass and discard have no room in 548 priorities, but there was no error")
	}
	f, _ = planFor(t, false, alternating[:500])
	have, _, err := ruleDiff(nil, f)
	if err != nil {
		t.Errorf("500 turns: %v", err)
	}
	// Half of them on top of a full block: the other half of the room would be needed.
	f, _ = planFor(t, false, append([]esp.Policy{policy(esp.Protect, sel("10.1.0.0/24"), sel("10.3.0.0/24"))}, alternating[1:400]...))
	if _, _, err := ruleDiff(have, f); err != nil {
		t.Errorf("a front that changes: %v, want the rest to keep its place", err)
	}
}
