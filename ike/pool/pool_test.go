package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func span(s string) Range { return Prefix(netip.MustParsePrefix(s)) }

func never(netip.Addr) bool { return false }

// must assigns and checks the outcome; want "" stands for a full pool.
func must(t *testing.T, p *Pool, owner, ask, want string) {
	t.Helper()
	var a netip.Addr
	if ask != "" {
		a = addr(ask)
	}
	got, ok := p.Assign(owner, a, never)
	if want == "" && ok || want != "" && (!ok || got != addr(want)) {
		t.Fatalf("%s, who asks for %q, got %v (%v), want %q", owner, ask, got, ok, want)
	}
}

func TestPrefixLeavesOutFirstAndLast(t *testing.T) {
	for _, c := range []struct {
		prefix, first, last string
		size                int64
	}{
		{"10.9.0.0/24", "10.9.0.1", "10.9.0.254", 254},
		{"10.9.0.128/30", "10.9.0.129", "10.9.0.130", 2},
		{"10.9.0.4/31", "10.9.0.4", "10.9.0.5", 2},
		{"10.9.0.4/32", "10.9.0.4", "10.9.0.4", 1},
		{"0.0.0.0/0", "0.0.0.1", "255.255.255.254", 1<<32 - 2},
		{"fd00::/120", "fd00::1", "fd00::fe", 254},
		{"fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:fffe", maxSize},
		{"fd00::/66", "fd00::1", "fd00::3fff:ffff:ffff:fffe", 1<<62 - 2},
		{"::/0", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", maxSize},
	} {
		r := span(c.prefix)
		if r.First != addr(c.first) || r.Last != addr(c.last) || r.Size() != c.size {
			t.Errorf("%s is %v to %v, %d addresses; want %s to %s, %d", c.prefix, r.First, r.Last, r.Size(), c.first, c.last, c.size)
		}
	}
	if n := (Range{addr("fd00::ffff:ffff:ffff:fff0"), addr("fd00:0:0:1::f")}).Size(); n != 32 {
		t.Errorf("a range over a border of 64 bits has %d addresses, want 32", n)
	}
}

func TestEverybodyGetsTheSameAgain(t *testing.T) {
	p := New(Config{Ranges: []Range{{addr("10.9.0.1"), addr("10.9.0.4")}}, Max: 10})
	must(t, p, "a", "", "10.9.0.1")
	must(t, p, "b", "", "10.9.0.2")
	p.Release("a", addr("10.9.0.1"))
	must(t, p, "c", "", "10.9.0.3") // a's is remembered
	must(t, p, "a", "", "10.9.0.1")
	must(t, p, "a", "", "10.9.0.4") // a second device of a's
	must(t, p, "d", "", "")
	p.Release("b", addr("10.9.0.2"))
	p.Release("c", addr("10.9.0.3"))
	must(t, p, "d", "", "10.9.0.2") // the one that has been offline for longer
	must(t, p, "b", "", "10.9.0.3")
	must(t, p, "c", "", "")
}

func TestWantedAddressIsGivenIfItIsFree(t *testing.T) {
	p := New(Config{Ranges: []Range{span("10.9.0.0/24")}, Max: 10})
	must(t, p, "a", "10.9.0.77", "10.9.0.77")
	must(t, p, "b", "10.9.0.77", "10.9.0.1")
	must(t, p, "c", "10.8.0.1", "10.9.0.2")
	must(t, p, "d", "10.9.0.0", "10.9.0.3") // left out of the prefix
	p.Release("a", addr("10.9.0.77"))
	must(t, p, "e", "10.9.0.77", "10.9.0.4") // kept for a while there are others
	// Asking for ever new addresses does not fill the memory.
	for i := range 100 {
		must(t, p, "f", fmt.Sprint("10.9.0.", 100+i), fmt.Sprint("10.9.0.", 100+i))
		p.Release("f", addr(fmt.Sprint("10.9.0.", 100+i)))
	}
	if p.Offline() != 2 {
		t.Errorf("%d leases are remembered, want those of a and f", p.Offline())
	}
}

func TestStaticLeases(t *testing.T) {
	p := New(Config{Ranges: []Range{span("10.9.0.0/30")}, Max: 10,
		Static: []Static{{"a", addr("10.9.0.1")}, {"a", addr("10.9.7.7")}, {"b", addr("10.9.9.9")}}})
	if p.Size() != 4 {
		t.Errorf("size %d, want two of the range and two outside", p.Size())
	}
	must(t, p, "x", "10.9.0.1", "10.9.0.2")
	must(t, p, "y", "", "") // 10.9.0.1 is a's
	must(t, p, "b", "10.9.0.2", "10.9.9.9")
	must(t, p, "a", "10.9.7.7", "10.9.7.7")
	must(t, p, "a", "10.9.7.7", "10.9.0.1")
	must(t, p, "a", "", "")
	p.Release("a", addr("10.9.0.1"))
	must(t, p, "y", "10.9.0.1", "")
	must(t, p, "a", "", "10.9.0.1")
}

func TestSharedAddressIsFreeWhenTheLastUserGoes(t *testing.T) {
	p := New(Config{Ranges: []Range{{addr("10.9.0.1"), addr("10.9.0.2")}}, Max: 10})
	must(t, p, "a", "", "10.9.0.1")
	if a, ok := p.Assign("a", addr("10.9.0.1"), func(netip.Addr) bool { return true }); !ok || a != addr("10.9.0.1") {
		t.Fatalf("a got %v, want to share its own", a)
	}
	p.Release("a", addr("10.9.0.1"))
	must(t, p, "b", "10.9.0.1", "10.9.0.2")
	must(t, p, "c", "", "")
	p.Release("a", addr("10.9.0.1"))
	p.Release("a", addr("10.9.0.1")) // one too many is ignored
	if p.Online() != 1 || p.Offline() != 1 {
		t.Errorf("%d online and %d offline, want 1 and 1", p.Online(), p.Offline())
	}
	must(t, p, "c", "", "10.9.0.1")
}

func TestRestoredAndInheritedLeases(t *testing.T) {
	p := New(Config{Ranges: []Range{span("10.9.0.0/24")}, Max: 10})
	for i := range 20 {
		p.Restore(fmt.Sprint("o", i), addr(fmt.Sprint("10.9.0.", 1+i)))
	}
	p.Restore("x", addr("10.8.0.1"))
	if p.Offline() != 10 {
		t.Fatalf("%d leases were restored, want the 10 that there is room for", p.Offline())
	}
	must(t, p, "o3", "", "10.9.0.4")
	must(t, p, "new", "", "10.9.0.11")   // o0 is forgotten for it
	must(t, p, "newer", "", "10.9.0.12") // and o1
	must(t, p, "o0", "", "10.9.0.13")    // its own could be had, too, but nobody knows
	n := New(Config{Ranges: []Range{{addr("10.9.0.5"), addr("10.9.0.11")}}, Max: 10})
	n.Inherit(p)
	if n.Online() != 4 || n.Offline() != 6 {
		t.Errorf("%d online and %d offline were inherited, want all 4 and the 6 that fit", n.Online(), n.Offline())
	}
	n.Release("o3", addr("10.9.0.4"))
	must(t, n, "o3", "10.9.0.4", "10.9.0.5") // no address of the pool any more; o4 was the first to go
}

// Whatever happens, no two owners have one address, what is remembered stays within its bound,
// and an address can be had as long as one is free.
func TestRandomUse(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		size := 1 + rnd.IntN(12)
		c := Config{Ranges: []Range{{addr("10.0.0.1"), netip.AddrFrom4([4]byte{10, 0, 0, byte(size)})}}, Max: 1 + rnd.IntN(14)}
		if rnd.IntN(2) == 0 {
			c.Ranges = append(c.Ranges, Range{addr("10.0.1.1"), addr("10.0.1.3")})
			size += 3
		}
		if rnd.IntN(2) == 0 {
			c.Static = []Static{{"o1", addr("10.0.0.1")}}
		}
		p := New(c)
		users := map[netip.Addr][]string{}
		total := 0
		for range 3000 {
			owner := fmt.Sprint("o", rnd.IntN(10))
			if rnd.IntN(2) == 0 {
				want := netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(2)), byte(rnd.IntN(8))})
				share := rnd.IntN(3) == 0
				a, ok := p.Assign(owner, want, func(netip.Addr) bool { return share })
				free := len(users) < min(size-len(c.Static), c.Max-len(c.Static))
				switch {
				case !ok && free:
					t.Fatalf("seed %d: %d of %d addresses are in use (%d remembered), and %s gets none", seed, len(users), size, c.Max, owner)
				case !ok:
					continue
				case len(users[a]) > 0 && (users[a][0] != owner || !share):
					t.Fatalf("seed %d: %s gets %v, which %s has", seed, owner, a, users[a][0])
				case !p.inRange(a) || len(c.Static) > 0 && a == c.Static[0].Addr && owner != "o1":
					t.Fatalf("seed %d: %s gets %v", seed, owner, a)
				}
				users[a] = append(users[a], owner)
				total++
			} else {
				for a, list := range users {
					if list[0] == owner {
						p.Release(owner, a)
						total--
						if users[a] = list[1:]; len(users[a]) == 0 {
							delete(users, a)
						}
						break
					}
				}
			}
			if p.Online() != len(users) || p.Online()+p.Offline() > c.Max || p.Offline() < 0 {
				t.Fatalf("seed %d: %d online, %d offline; want %d online and at most %d in all", seed, p.Online(), p.Offline(), len(users), c.Max)
			}
			if rnd.IntN(200) == 0 {
				n := New(c)
				n.Inherit(p)
				if n.Online() != p.Online() || n.Offline() != p.Offline() || n.dynamic != p.dynamic {
					t.Fatalf("seed %d: a pool of the same addresses inherits %d+%d leases, want %d+%d", seed, n.Online(), n.Offline(), p.Online(), p.Offline())
				}
				p = n
			}
		}
		n, last := 0, 0
		p.Each(func(_ string, a netip.Addr, online bool) bool {
			if online {
				n++
			} else if last++; n > 0 {
				t.Errorf("seed %d: a lease that is offline comes behind those in use", seed)
			}
			return true
		})
		if n != p.Online() || last != p.Offline() {
			t.Errorf("seed %d: Each shows %d+%d leases, want %d+%d", seed, n, last, p.Online(), p.Offline())
		}
	}
}

func TestHugePoolCostsNoMoreThanItsLeases(t *testing.T) {
	p := New(Config{Ranges: []Range{span("fd00::/64")}, Max: 4})
	for i := range 1000 {
		owner := fmt.Sprint("o", i)
		a, ok := p.Assign(owner, netip.Addr{}, never)
		if !ok {
			t.Fatalf("no address for %s in a pool of 2^64", owner)
		}
		p.Release(owner, a)
	}
	if p.Offline() != 4 || len(p.owners) != 4 {
		t.Errorf("%d leases of %d owners are remembered, want 4", p.Offline(), len(p.owners))
	}
}
