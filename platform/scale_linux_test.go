package platform

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"postern/esp"
)

// manyPolicies is one LAN and n remote addresses that no prefix holds alone, or the same
// from the other end.
func manyPolicies(n int, v6, exchanged bool) []esp.Policy {
	lan := sel(map[bool]string{false: "10.1.0.0/24", true: "fd01::/64"}[v6])
	var list []esp.Policy
	for i := range n {
		ip := manyAddr(i, v6)
		far := esp.SelectorFromPrefix(netip.PrefixFrom(ip, ip.BitLen()))
		if exchanged {
			list = append(list, policy(esp.Protect, far, lan))
		} else {
			list = append(list, policy(esp.Protect, lan, far))
		}
	}
	return list
}

// manyAddr is the remote address of the policy i: every other one there is.
func manyAddr(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0xfd, 2, 14: byte(i >> 7), 15: byte(i << 1)})
	}
	return netip.AddrFrom4([4]byte{10, 2, byte(4 + i>>7), byte(i << 1)})
}

// A packet meets few of the rules of 1,024 policies, whichever end has them and whatever
// way it goes.
func TestManyPoliciesCostFewComparisons(t *testing.T) {
	const many, atMost = 1024, 60
	rng := rand.New(rand.NewPCG(1024, 1))
	for _, v6 := range []bool{false, true} {
		for _, exchanged := range []bool{false, true} {
			policies := manyPolicies(many, v6, exchanged)
			hosts := []string{"10.1.0.1", "192.0.2.1"}
			if v6 {
				hosts = []string{"fd01::1", "2001:db8::1"}
			}
			f, _ := planFor(t, v6, policies, hosts...)
			m := &model{}
			if _, err := m.bring(f); err != nil {
				t.Fatal(err)
			}
			worst, worstAt, total := 0, packet{}, 0
			const packets = 500
			for range packets {
				p := randomPacket(rng, policies)
				_, n := m.walk(p, false)
				if total += n; n > worst {
					worst, worstAt = n, p
				}
				if p.src.IsValid() {
					if got, want := m.decide(p, false), meaning(policies, p); got != want {
						t.Fatalf("%+v meets %q, the SPD says %q", p, got, want)
					}
				}
			}
			if worst > atMost {
				t.Errorf("IPv6 %v, exchanged %v: %+v meets %d rules, at most %d are wanted", v6, exchanged, worstAt, worst, atMost)
			}
			t.Logf("IPv6 %v, exchanged %v: %d comparisons on average, at most %d", v6, exchanged, total/packets, worst)
		}
	}
}

// randomPacket has the ends of some policy, or somewhere beside them, in any role.
func randomPacket(rng *rand.Rand, policies []esp.Policy) packet {
	of := func(s esp.Selector) netip.Addr {
		p := s.Prefixes()[0]
		b := p.Addr().AsSlice()
		for i := p.Bits(); i < len(b)*8; i++ {
			if rng.IntN(2) == 0 {
				b[i/8] ^= 0x80 >> (i % 8)
			}
		}
		if rng.IntN(4) == 0 {
			b[len(b)-1-rng.IntN(2)] ^= 1 << rng.IntN(8)
		}
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	l, r := policies[rng.IntN(len(policies))], policies[rng.IntN(len(policies))]
	if rng.IntN(2) == 0 {
		r = l
	}
	p := packet{iif: []string{loopbackName, "pt0", "lan"}[rng.IntN(3)], src: of(l.LocalTS[0]), dst: of(r.RemoteTS[0]), proto: []uint8{6, 17}[rng.IntN(2)]}
	switch rng.IntN(4) {
	case 0, 1:
		p.src, p.dst = p.dst, p.src
	case 2:
		if p.iif == loopbackName {
			p.src = netip.Addr{}
		}
	}
	if rng.IntN(4) > 0 {
		p.sport, p.dport = uint16(3+rng.IntN(8)), uint16(3+rng.IntN(8))
	}
	return p
}

// longPolicies are up to n entries over overlapping prefixes, in stretches of one action.
func longPolicies(rng *rand.Rand, v6 bool, n int) []esp.Policy {
	end := func(base int) esp.Selector {
		bits := []int{14, 24, 30, 32, 32, 32, 32}[rng.IntN(7)]
		a := netip.AddrFrom4([4]byte{10, byte(base), byte(rng.IntN(3)), byte(rng.IntN(256))})
		if v6 {
			bits += 96
			a = netip.AddrFrom16([16]byte{0xfd, 13: byte(base), 14: byte(rng.IntN(3)), 15: byte(rng.IntN(256))})
		}
		return esp.SelectorFromPrefix(netip.PrefixFrom(a, bits).Masked())
	}
	var list []esp.Policy
	for len(list) < n {
		action := esp.Action(rng.IntN(3))
		near, far := end(16), end(32)
		fixed := rng.IntN(4) // 0: both ends vary, 1: the local one is the same, 2: the remote one
		proto, port := uint8([]int{0, 0, 6, 17}[rng.IntN(4)]), uint16(rng.IntN(3)*3)
		for range 1 + rng.IntN(n/2+1) {
			if fixed != 1 {
				near = end(16)
			}
			if fixed != 2 {
				far = end(32)
			}
			p := policy(action, near, far)
			if proto != 0 && rng.IntN(2) == 0 {
				p.RemoteTS[0].Proto = proto
				if port != 0 {
					p.RemoteTS[0].StartPort, p.RemoteTS[0].EndPort = port, port+uint16(rng.IntN(3))
				}
			}
			list = append(list, p)
		}
	}
	return list[:n]
}

// Whatever lists follow one another, the rules and tables say in the end what the list
// says, for packets in all roles, and at each step what the old or the new list says.
func TestLongListsMeanWhatTheySay(t *testing.T) {
	const rounds, probes = 4, 200
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 2304))
		v6 := seed%2 == 1
		m := &model{}
		var policies []esp.Policy
		for round := range rounds {
			old := policies
			switch {
			case round == 0 || rng.IntN(2) == 0:
				policies = longPolicies(rng, v6, 20+rng.IntN(280))
			case rng.IntN(2) == 0:
				policies = slices.Insert(slices.Clone(policies), rng.IntN(len(policies)), longPolicies(rng, v6, 1+rng.IntN(40))...)
			default:
				at := rng.IntN(len(policies) / 2)
				policies = slices.Delete(slices.Clone(policies), at, at+len(policies)/4)
			}
			host := map[bool]string{false: "10.16.1.7", true: "fd00::10:107"}[v6]
			f, _ := planFor(t, v6, policies, host)
			var packets []packet
			var want [2][]string
			for range probes {
				from := policies
				if len(old) > 0 && rng.IntN(2) == 0 {
					from = old
				}
				p := randomPacket(rng, from)
				packets = append(packets, p)
			}
			for _, p := range packets {
				want[0] = append(want[0], m.decide(p, false))
			}
			final := &model{}
			if _, err := final.bring(f); err != nil {
				t.Fatalf("seed %d round %d: %v", seed, round, err)
			}
			for i, p := range packets {
				got := final.decide(p, false)
				want[1] = append(want[1], got)
				if p.src.IsValid() {
					if says := meaning(policies, p); got != says {
						t.Fatalf("seed %d round %d: %+v meets %q, the SPD says %q", seed, round, packets[i], got, says)
					}
				}
			}
			changeStepwise(t, m, f, func(step string) {
				for range 3 {
					i := rng.IntN(len(packets))
					got := m.decide(packets[i], false)
					if got != want[0][i] && got != want[1][i] && (got != dropped || packets[i].iif != "lan") {
						t.Fatalf("seed %d round %d, %s: %+v meets %q, before it was %q, after it is %q",
							seed, round, step, packets[i], got, want[0][i], want[1][i])
					}
				}
			})
			for i, p := range packets {
				if got := m.decide(p, false); got != want[1][i] {
					t.Fatalf("seed %d round %d: after the change %+v meets %q, want %q", seed, round, p, got, want[1][i])
				}
			}
		}
		if changeStepwise(t, m, &familyPlan{v6: v6}, func(string) {}); len(m.rules) > 0 {
			t.Fatalf("seed %d: without policies there are still the rules %v", seed, m.rules)
		}
	}
}

// changeStepwise brings the model to a plan and calls check after each step.
func changeStepwise(t *testing.T, m *model, f *familyPlan, check func(step string)) (steps int) {
	t.Helper()
	for pass := 0; ; pass++ {
		add, del, err := ruleDiff(m.rules, f)
		if err != nil || pass == maxPasses {
			t.Fatalf("pass %d: %v, still adds %v and deletes %v", pass, err, add, del)
		}
		if len(add)+len(del) == 0 {
			return steps
		}
		for _, r := range add {
			m.add(r)
			check("add " + r.String())
		}
		for _, r := range del {
			m.del(r)
			check("delete " + r.String())
		}
		steps += len(add) + len(del)
	}
}

// Policies that come a few at a time, or one by one, take few changes each.
func TestPoliciesOneByOneTakeFewChanges(t *testing.T) {
	const many = 1024
	for _, exchanged := range []bool{false, true} {
		policies := manyPolicies(many, false, exchanged)
		m := &model{}
		total, most := 0, 0
		for n := 1; n <= many; n += max(1, n/8) {
			f, _ := planFor(t, false, policies[:n], "10.1.0.1", "192.0.2.1")
			steps := changeStepwise(t, m, f, func(string) {})
			total, most = total+steps, max(most, steps)
		}
		t.Logf("exchanged %v: %d changes in all, at most %d at once", exchanged, total, most)
		if total > 16*many {
			t.Errorf("exchanged %v: %d policies, an eighth more each time, took %d changes, more than 16 for each", exchanged, many, total)
		}
		// Then one by one. Among so many, once the leaves may have to be laid out anew.
		one := 0
		for n := many; n < many+32; n++ {
			f, _ := planFor(t, false, manyPolicies(n+1, false, exchanged), "10.1.0.1", "192.0.2.1")
			one += changeStepwise(t, m, f, func(string) {})
		}
		t.Logf("exchanged %v: 32 more one by one take %d changes", exchanged, one)
		if one > 32*150 {
			t.Errorf("exchanged %v: 32 more than %d policies took %d changes, more than 150 each", exchanged, many, one)
		}
	}
}

// The kernel agrees with what the list says, and Apply of many is quick.
func TestApplyManyPolicies(t *testing.T) {
	g := newGateway(t)
	openTUN(t, g.ns, "pt0", 1400)
	before := g.state()
	policies := append(manyPolicies(1024, false, false), manyPolicies(300, true, false)...)
	timed := func(what string, p []esp.Policy) {
		t.Helper()
		begin := time.Now()
		g.apply("pt0", p...)
		t.Logf("%s: %v", what, time.Since(begin).Round(time.Microsecond))
	}
	timed("all at once", policies)
	timed("the same again", policies)
	more := append(slices.Clone(policies), policy(esp.Protect, sel("10.1.0.0/24"), sel("10.2.9.9/32")))
	if n := g.changes(func() { g.apply("pt0", more...) }); n == 0 || n > 200 {
		t.Errorf("one more of 1,024 changed the kernel %d times, want a few", n)
	}
	if n := g.changes(func() { g.apply("pt0", more...) }); n != 0 {
		t.Errorf("the same again changed the kernel %d times, want 0", n)
	}
	timed("one less", policies)
	ways := func(protected, own, in string) map[query]string {
		w := map[query]string{
			{src: "10.1.0.5", dst: "10.2.8.1", forward: true}: "wan",
			{src: "10.2.8.1", dst: "10.1.0.5", iif: "wan"}:    "lan",
			{src: "10.9.0.5", dst: "10.2.5.1", forward: true}: "wan",
			{src: "fd01::5", dst: "fd02::1:1", forward: true}: "wan",
		}
		for _, i := range []int{0, 1, 31, 32, 255, 256, 700, 1023} {
			far := manyAddr(i, false).String()
			w[query{src: "10.1.0.5", dst: far, forward: true}] = protected
			w[query{src: far, dst: "10.1.0.5", iif: "wan"}] = "blackhole"
			w[query{src: far, dst: "10.1.0.5", iif: "pt0"}] = in
			w[query{src: "10.1.0.1", dst: far}] = protected
			w[query{src: "192.0.2.1", dst: far}] = "wan"
			w[query{dst: far}] = own
		}
		for _, i := range []int{0, 1, 255, 299} {
			far := manyAddr(i, true).String()
			w[query{src: "fd01::5", dst: far, forward: true}] = protected
			w[query{src: far, dst: "fd01::5", iif: "wan"}] = "blackhole"
			w[query{src: "fd01::1", dst: far}] = protected
		}
		return w
	}
	g.wantWays("with the tunnel", ways("pt0", "pt0 from 10.1.0.1", "lan"))
	g.apply("", policies...)
	g.wantWays("without a device", ways("unreachable", "unreachable", "blackhole"))
	g.net = g.openNetwork() // another process
	g.apply("pt0", policies...)
	g.wantWays("once it is there again", ways("pt0", "pt0 from 10.1.0.1", "lan"))
	begin := time.Now()
	if err := g.net.Clear(); err != nil {
		t.Fatal(err)
	}
	t.Logf("clear: %v", time.Since(begin).Round(time.Microsecond))
	if after := g.state(); after != before {
		t.Errorf("after Clear:\n%s\nwant as before Apply:\n%s", after, before)
	}
	if rules, routes, err := g.openNetwork().list(false); err != nil || len(rules)+len(routes) > 0 {
		t.Errorf("after Clear there are %d rules and %d routes of ours, %v", len(rules), len(routes), err)
	}
}
