package engine

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"postern/esp"
)

// flowCache remembers what the SPD said about a flow, so that the cost of a packet does
// not depend on the number of policies. It belongs to one goroutine. An entry counts only
// while the SPD has not changed since.
//
// Each flow has flowWays places: with one place, an eighth of 1,024 flows in a table of
// 8,192 would push each other out again and again, and pay for the whole SPD each time.
type flowCache struct {
	entries []flowEntry
	mask    uint32 // of a set's first entry
	seed    uint64 // so that nobody can choose flows that collide
	turn    uint32 // which way is given up next
}

const flowWays = 4

type flowEntry struct {
	gen  uint64
	hash uint32
	flow esp.Flow
	pol  *policy
	sa   *outSA
}

// newFlowCache returns a cache of n entries, n a power of two and at least flowWays.
func newFlowCache(n int, seed uint64) flowCache {
	n = max(n, flowWays)
	return flowCache{entries: make([]flowEntry, n), mask: uint32(n-1) &^ (flowWays - 1), seed: seed}
}

// lookup is spd.lookup through the cache. gen is the generation that the answer holds
// for. That there is no SA, or no entry, is remembered as well.
func (c *flowCache) lookup(s *spd, f *esp.Flow) (pol *policy, sa *outSA, gen uint64) {
	gen = s.gen.Load() // before the table is read: an entry may be older than it says, never newer
	h := c.hash(f)
	at := h & c.mask
	set := c.entries[at : at+flowWays : at+flowWays]
	victim := -1
	for i := range set {
		e := &set[i]
		if e.gen != gen {
			victim = i
			continue
		}
		if e.hash == h && e.flow == *f {
			return e.pol, e.sa, gen
		}
	}
	if victim < 0 {
		c.turn++
		victim = int(c.turn % flowWays)
	}
	pol, sa = s.lookup(f)
	set[victim] = flowEntry{gen: gen, hash: h, flow: *f, pol: pol, sa: sa}
	return pol, sa, gen
}

// hash mixes the flow's addresses, ports and protocol with the seed.
func (c *flowCache) hash(f *esp.Flow) uint32 {
	h := c.seed ^ (uint64(f.LocalPort)<<32 | uint64(f.RemotePort)<<16 | uint64(f.Proto))
	h = mixAddr(h, f.Local)
	h = mixAddr(h, f.Remote)
	return uint32(h ^ h>>32)
}

func mixAddr(h uint64, a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return mix(h ^ uint64(binary.NativeEndian.Uint32(b[:])))
	}
	b := a.As16()
	return mix(mix(h^binary.NativeEndian.Uint64(b[:8])) ^ binary.NativeEndian.Uint64(b[8:]))
}

// mix folds the 128-bit product of h and an odd constant.
func mix(h uint64) uint64 {
	hi, lo := bits.Mul64(h^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	return hi ^ lo
}
