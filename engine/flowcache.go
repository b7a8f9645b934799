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
	sets []flowSet
	seed uint64 // so that nobody can choose flows that collide
	high uint32 // upper half of the generation for which the sets hold the lower one
	turn uint32 // which way is given up next
}

const flowWays = 4

// flowSet are the places of the flows with one hash: what tells them apart is in one
// cache line of its own, so that a look-up reads this line and that of one flow.
type flowSet struct {
	hash [flowWays]uint32
	gen  [flowWays]uint32
	pol  [flowWays]*policy
	ways [flowWays]flowEntry
}

type flowEntry struct {
	flow esp.Flow
	sa   *outSA
}

// newFlowCache returns a cache of n entries, n a power of two and at least flowWays.
func newFlowCache(n int, seed uint64) flowCache {
	return flowCache{sets: make([]flowSet, max(n/flowWays, 1)), seed: seed}
}

// set returns the places of the flows with that hash.
func (c *flowCache) set(hash uint32) *flowSet { return &c.sets[int(hash)&(len(c.sets)-1)] }

// touch reads the first line of the set for a hash; Touch of package esp says why.
func (c *flowCache) touch(hash uint32) uint32 { return c.set(hash).hash[0] }

// begin prepares the cache for look-ups in the SPD of generation gen.
func (c *flowCache) begin(gen uint64) {
	if high := uint32(gen >> 32); high != c.high {
		c.high = high
		clear(c.sets) // or an entry of 2^32 generations ago would count again
	}
}

// lookup is spd.lookup through the cache, for a flow and its hash. gen is the SPD's
// generation, read before the first look-up of a batch: an entry may be older than it
// says, never newer. That there is no SA, or no entry, is remembered as well.
func (c *flowCache) lookup(s *spd, f *esp.Flow, h uint32, gen uint64) (pol *policy, sa *outSA) {
	set := c.set(h)
	victim := -1
	for i := range set.ways {
		if set.gen[i] != uint32(gen) {
			victim = i
			continue
		}
		if e := &set.ways[i]; set.hash[i] == h && e.flow == *f {
			return set.pol[i], e.sa
		}
	}
	if victim < 0 {
		c.turn++
		victim = int(c.turn % flowWays)
	}
	pol, sa = s.lookup(f)
	set.hash[victim], set.gen[victim], set.pol[victim] = h, uint32(gen), pol
	set.ways[victim] = flowEntry{*f, sa}
	return pol, sa
}

// hashFlow mixes the flow's addresses, ports and protocol with a seed.
func hashFlow(seed uint64, f *esp.Flow) uint32 {
	h := seed ^ (uint64(f.LocalPort)<<32 | uint64(f.RemotePort)<<16 | uint64(f.Proto))
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
