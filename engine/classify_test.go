package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"postern/esp"
)

// randomAddr is one of few addresses, so that selectors and flows meet.
func randomAddr(rng *rand.Rand, v6 bool) netip.Addr {
	if !v6 {
		return netip.AddrFrom4([4]byte{byte(10 + rng.IntN(2)), byte(rng.IntN(3)), byte(rng.IntN(4) * 85), byte(rng.IntN(256))})
	}
	var b [16]byte
	b[0], b[1], b[7], b[15] = 0xfd, byte(rng.IntN(2)*255), byte(rng.IntN(3)), byte(rng.IntN(4))
	if rng.IntN(20) == 0 {
		for i := range b {
			b[i] = 0xff
		}
	}
	return netip.AddrFrom16(b)
}

var randomProtos = []uint8{0, 0, 1, 6, 6, 17, 47, 58, 132, 255}

func randomSelector(rng *rand.Rand, v6 bool) esp.Selector {
	s := esp.Selector{Proto: randomProtos[rng.IntN(len(randomProtos))], EndPort: 65535}
	a := randomAddr(rng, v6)
	switch rng.IntN(4) {
	case 0:
		s.Start, s.End = a, randomAddr(rng, v6)
		if s.End.Less(s.Start) {
			s.Start, s.End = s.End, s.Start
		}
	case 1:
		s.Start, s.End = a, a
	default:
		p := esp.SelectorFromPrefix(netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)))
		s.Start, s.End = p.Start, p.End
	}
	switch rng.IntN(6) {
	case 0:
		s.StartPort, s.EndPort = 65535, 0 // OPAQUE
	case 1:
		s.StartPort = randomPort(rng)
		s.EndPort = s.StartPort
	case 2:
		s.StartPort, s.EndPort = randomPort(rng), randomPort(rng)
		if s.EndPort < s.StartPort {
			s.StartPort, s.EndPort = s.EndPort, s.StartPort
		}
	}
	return s
}

func randomPort(rng *rand.Rand) uint16 {
	return [...]uint16{0, 1, 8 << 8, 3<<8 | 4, 443, 502, 65534, 65535}[rng.IntN(8)]
}

func randomTable(rng *rand.Rand, n int) []policySpec {
	spec := make([]policySpec, n)
	for i := range spec {
		p := &spec[i]
		p.Name, p.Action, p.Dir = fmt.Sprint(i), esp.Action(rng.IntN(3)), esp.Directions(rng.IntN(3))
		for _, side := range []*[]esp.Selector{&p.LocalTS, &p.RemoteTS} {
			for range 1 + rng.IntN(3) {
				*side = append(*side, randomSelector(rng, rng.IntN(4) == 0))
			}
		}
	}
	return spec
}

func randomFlow(rng *rand.Rand) *esp.Flow {
	v6 := rng.IntN(4) == 0
	f := &esp.Flow{Local: randomAddr(rng, v6), Remote: randomAddr(rng, v6), Proto: randomProtos[rng.IntN(len(randomProtos))]}
	if f.NoPorts = rng.IntN(4) == 0; !f.NoPorts {
		f.LocalPort, f.RemotePort = randomPort(rng), randomPort(rng)
		if f.Proto == 1 || f.Proto == 58 {
			f.RemotePort = f.LocalPort
		}
	}
	return f
}

// The index answers as trying one entry after the other does, whatever the table: ranges
// and prefixes, both families in one entry, ports, ICMP types, OPAQUE and fragments,
// directions.
func TestClassifierAgreesWithTheOrderOfTheTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 4))
	found := 0
	for _, n := range []int{linearMost + 1, 40, 63, 64, 65, 200, 1024} {
		for range 4 {
			s := newSPD(n)
			s.set(randomTable(rng, n))
			table := s.cur.Load()
			if table.index == nil {
				t.Fatalf("a table of %d entries has no index", n)
			}
			for range 1500 {
				f, in := randomFlow(rng), rng.IntN(2) == 0
				var want *policy
				for _, p := range table.list {
					if p.matches(f, in) {
						want = p
						break
					}
				}
				if want != nil {
					found++
				}
				if got := table.first(f, in); got != want {
					t.Fatalf("%d entries, %+v, in %v: the index says %v, the order of the table %v", n, *f, in, got, want)
				}
			}
		}
	}
	if found < 5000 {
		t.Errorf("only %d flows matched an entry at all: the test says too little", found)
	}
}

// Tables that differ in one dimension alone, whichever it is, are found in without trying
// more than a few entries.
func TestClassifierTriesFewEntries(t *testing.T) {
	const n = 1024
	any, lan := sel("0.0.0.0/0"), sel("10.1.0.0/16")
	for name, make := range map[string]func(i int) (local, remote []esp.Selector){
		"remote prefixes": func(i int) (l, r []esp.Selector) { return lan, sel(netip.PrefixFrom(benchAddr(i), 24).String()) },
		"local prefixes":  func(i int) (l, r []esp.Selector) { return sel(netip.PrefixFrom(benchAddr(i), 24).String()), any },
		"ports": func(i int) (l, r []esp.Selector) {
			r = sel("0.0.0.0/0")
			r[0].Proto, r[0].StartPort, r[0].EndPort = 6, uint16(1000+i), uint16(1000+i)
			return lan, r
		},
	} {
		spec := []policySpec{}
		for i := range n {
			l, r := make(i)
			spec = append(spec, policySpec{Policy: esp.Policy{Action: esp.Protect, LocalTS: l, RemoteTS: r}, conn: "c", child: fmt.Sprint(i)})
		}
		s := newSPD(n)
		s.set(spec)
		c := s.cur.Load().index
		f := &esp.Flow{Local: netip.MustParseAddr("10.1.0.9"), Remote: benchAddr(n - 1).Next(), Proto: 6, LocalPort: 7, RemotePort: 1000 + n - 1}
		if name == "local prefixes" {
			f.Local, f.Remote = f.Remote, f.Local
		}
		if p := s.lookupIn(f); p == nil || p.number != n {
			t.Errorf("%s: found %v, want the last entry", name, p)
		}
		sets := len(c.addr[0].local.sets) + len(c.addr[0].remote.sets) + len(c.lport.sets) + len(c.rport.sets) + len(c.proto.sets)
		if octets := 8 * sets; octets > 300<<10 {
			t.Errorf("%s: the index of %d entries takes %d octets", name, n, octets)
		}
		if allocs := testing.AllocsPerRun(100, func() { s.lookupIn(f) }); allocs != 0 {
			t.Errorf("%s: a look-up allocates %v times", name, allocs)
		}
	}
}

// BenchmarkSPD measures a look-up with 1, 16, 256 and 1,024 policies by turns: through the
// flow cache, that of a flow the cache does not know, and what the latter would cost without
// an index. The ratios are those of the best rounds to one policy.
func BenchmarkSPD(b *testing.B) {
	const round = 4096
	sizes := []int{1, 16, 256, 1024}
	type bench struct {
		s     *spd
		cache flowCache
		flows []*esp.Flow
	}
	var list []*bench
	for _, n := range sizes {
		x := &bench{s: newSPD(n), cache: newFlowCache(8192, 5)}
		var spec []policySpec
		for i := range n {
			spec = append(spec, protect("c", fmt.Sprint(i), "10.1.0.0/16", netip.PrefixFrom(benchAddr(i), 24).String()))
		}
		x.s.set(spec)
		for i := range 1024 {
			x.flows = append(x.flows, &esp.Flow{Local: netip.MustParseAddr(srcHost), Remote: benchAddr(i % n).Next(), Proto: 17, LocalPort: uint16(i), RemotePort: 502})
		}
		list = append(list, x)
	}
	ways := []struct {
		name string
		look func(x *bench, f *esp.Flow, gen uint64) *policy
	}{
		{"cache", func(x *bench, f *esp.Flow, gen uint64) *policy {
			k := keyOf(f)
			p, _ := x.cache.lookup(x.s, f, &k, k.hash(x.cache.seed), gen)
			return p
		}},
		{"miss", func(x *bench, f *esp.Flow, gen uint64) *policy { p, _ := x.s.lookup(f); return p }},
		{"linear", func(x *bench, f *esp.Flow, gen uint64) *policy {
			for _, p := range x.s.cur.Load().list {
				if p.matches(f, false) {
					return p
				}
			}
			return nil
		}},
	}
	for _, way := range ways {
		b.Run(way.name, func(b *testing.B) {
			best := make([]time.Duration, len(list))
			b.ReportAllocs()
			for b.Loop() {
				for i, x := range list {
					gen := x.s.gen.Load()
					begin := time.Now()
					for j := range round {
						if way.look(x, x.flows[j%len(x.flows)], gen) == nil {
							b.Fatal("a flow matched nothing")
						}
					}
					if took := time.Since(begin); best[i] == 0 || took < best[i] {
						best[i] = took
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, n := range sizes {
				b.ReportMetric(float64(best[i].Nanoseconds())/round, fmt.Sprintf("ns/%d", n))
			}
			b.ReportMetric(float64(best[len(best)-1])/float64(best[0]), "ratio")
			b.ReportMetric(float64(slices.Max(best))/float64(best[0]), "worst")
		})
	}
}
