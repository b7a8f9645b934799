package platform

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// Merged rules take exactly the packets that the rules took, whatever the packet has, and are
// never more.
func TestMergedRulesTakeTheSamePackets(t *testing.T) {
	addr := func(v6 bool, net, last byte) netip.Addr {
		if v6 {
			return netip.AddrFrom16([16]byte{0xfd, net, 15: last})
		}
		return netip.AddrFrom4([4]byte{10, net, 0, last})
	}
	fewer := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 77))
		v6 := seed%2 == 1
		bits := addr(v6, 0, 0).BitLen()
		prefix := func(net byte) netip.Prefix {
			switch rng.IntN(12) {
			case 0:
				return netip.Prefix{}
			case 1: // halves of everything, which must not become one
				return netip.PrefixFrom(addr(v6, net, 0), 1).Masked()
			case 2:
				return netip.PrefixFrom(netip.AddrFrom4([4]byte{0x80}), 1)
			}
			return netip.PrefixFrom(addr(v6, net, byte(rng.IntN(8))), bits-rng.IntN(4)).Masked()
		}
		var rules []Rule
		for range 1 + rng.IntN(24) {
			r := Rule{V6: v6, Action: unix.FR_ACT_BLACKHOLE, Protocol: routeProtocol, From: prefix(1), To: prefix(2)}
			if v6 && (r.From.Addr().Is4() || r.To.Addr().Is4()) {
				continue
			}
			if rng.IntN(6) == 0 {
				r.IPProto = 6
			}
			if !slices.Contains(rules, r) {
				rules = append(rules, r)
			}
		}
		merged := mergeRules(slices.Clone(rules))
		if len(merged) > len(rules) {
			t.Fatalf("seed %d: %d rules have become %d", seed, len(rules), len(merged))
		}
		if len(merged) < len(rules) {
			fewer++
		}
		takes := func(list []Rule, p packet) bool {
			return slices.ContainsFunc(list, func(r Rule) bool { return p.matches(r, false) })
		}
		for s := range byte(10) {
			for d := range byte(9) {
				for _, proto := range []uint8{6, 17} {
					p := packet{src: addr(v6, 1, s), dst: addr(v6, 2, d), proto: proto}
					switch s {
					case 8:
						p.src = addr(v6, 0xc0, 0)
					case 9:
						p.src = netip.Addr{} // this host's, which has none yet
					}
					if takes(rules, p) != takes(merged, p) {
						t.Fatalf("seed %d: %+v is taken %v by the merged rules\n%v, but %v by those that were\n%v",
							seed, p, takes(merged, p), merged, takes(rules, p), rules)
					}
				}
			}
		}
	}
	if fewer < 100 {
		t.Errorf("of 300 lists only %d became shorter: the test shows little", fewer)
	}
}

// Networks that are numbered through cost a packet as many rules as one network, also with
// an entry between them that does something else.
func TestNeighbouringPoliciesBecomeOneRule(t *testing.T) {
	lan, hole := sel("10.1.0.0/24"), sel("10.2.5.7/32")
	var policies []esp.Policy
	for i := range 1024 {
		far := netip.AddrFrom4([4]byte{10, 2, byte(4 + i>>8), byte(i)})
		policies = append(policies, policy(esp.Protect, lan, esp.SelectorFromPrefix(netip.PrefixFrom(far, 32))))
	}
	f, _ := planFor(t, false, policies)
	wantRuns(t, "all of 10.2.4.0/22", f.spd, "0: from 10.1.0.0/24 to 10.2.4.0/22 lookup 2204")
	wantRuns(t, "mirrored", f.in, "0: from 10.2.4.0/22 to 10.1.0.0/24 blackhole")

	f, _ = planFor(t, false, append([]esp.Policy{policy(esp.Bypass, lan, hole)}, policies...))
	wantRuns(t, "a hole before it", f.spd,
		"0: from 10.1.0.0/24 to 10.2.5.7/32 goto 999",
		"1: from 10.1.0.0/24 to 10.2.4.0/22 lookup 2204")

	f, _ = planFor(t, false, slices.Insert(slices.Clone(policies), 512, policy(esp.Bypass, lan, sel("10.2.0.0/16"))))
	wantRuns(t, "an entry between them", f.spd,
		"0: from 10.1.0.0/24 to 10.2.4.0/23 lookup 2204",
		"1: from 10.1.0.0/24 to 10.2.0.0/16 goto 999",
		"2: from 10.1.0.0/24 to 10.2.6.0/23 lookup 2204")
}

// Pairs of networks merge where both ends allow it, one after the other.
func TestMergeOfPairs(t *testing.T) {
	var policies []esp.Policy
	for _, l := range []string{"10.1.0.0/25", "10.1.0.128/25"} {
		for _, r := range []string{"10.2.0.0/24", "10.2.1.0/24"} {
			policies = append(policies, policy(esp.Protect, sel(l), sel(r)))
		}
	}
	f, _ := planFor(t, false, policies)
	wantRuns(t, "each with each", f.spd, "0: from 10.1.0.0/24 to 10.2.0.0/23 lookup 2204")
	f, _ = planFor(t, false, policies[:3])
	wantRuns(t, "all but one pair", f.spd,
		"0: from 10.1.0.0/24 to 10.2.0.0/24 lookup 2204",
		"0: from 10.1.0.0/25 to 10.2.1.0/24 lookup 2204")
	f, _ = planFor(t, false, []esp.Policy{
		policy(esp.Protect, sel("10.1.0.0/25"), sel("10.2.0.0/24")),
		policy(esp.Protect, sel("10.1.0.128/25"), sel("10.2.1.0/24")),
	})
	wantRuns(t, "of each side a half", f.spd,
		"0: from 10.1.0.0/25 to 10.2.0.0/24 lookup 2204",
		"0: from 10.1.0.128/25 to 10.2.1.0/24 lookup 2204")
}
