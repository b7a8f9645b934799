package engine

import (
	"encoding/binary"
	"math/bits"

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
	seed uint64       // so that nobody can choose flows that collide
	high uint32       // upper half of the generation for which the sets hold the lower one
	turn uint32       // which way is given up next
	via  *childDevice // among whose entries it looks; nil: those of no device

	worker int                                      // whose it is
	ask    func(p *policy, f *esp.Flow, lane uint8) // for an SA for a lane; nil: nobody does
}

const flowWays = 4

// flowSet are the places of the flows with one hash.
type flowSet [flowWays]flowEntry

// flowEntry is what is known of a flow: on a 64-bit machine one cache line.
type flowEntry struct {
	key flowKey
	gen uint32
	sa  *outSA
	pol *policy
}

// flowKey is a flow in a form that is quick to hash and to compare: the addresses as 16
// octets, ports, protocol, and what else tells flows apart.
type flowKey struct {
	addr [4]uint64
	rest uint64
}

// dscpShift is where in a key's rest the DSCP stands while the SPD has lanes.
const dscpShift = 48

// keyOf returns a flow's key.
func keyOf(f *esp.Flow) (k flowKey) {
	k.rest = uint64(f.LocalPort)<<32 | uint64(f.RemotePort)<<16 | uint64(f.Proto)<<8
	if f.NoPorts {
		k.rest |= 1
	}
	if f.Local.Is4() {
		a, b := f.Local.As4(), f.Remote.As4()
		k.addr[0] = uint64(binary.NativeEndian.Uint32(a[:]))<<32 | uint64(binary.NativeEndian.Uint32(b[:]))
		k.rest |= 2 // IPv4 has keys that IPv6 has not
		return k
	}
	a, b := f.Local.As16(), f.Remote.As16()
	k.addr = [4]uint64{
		binary.NativeEndian.Uint64(a[:]), binary.NativeEndian.Uint64(a[8:]),
		binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:]),
	}
	return k
}

// hash mixes the key with a seed.
func (k *flowKey) hash(seed uint64) uint32 {
	h := mix(seed^k.rest) ^ k.addr[0]
	if k.rest&2 == 0 {
		h = mix(h) ^ k.addr[1]
		h = mix(h) ^ k.addr[2]
		h = mix(h) ^ k.addr[3]
	}
	h = mix(h)
	return uint32(h ^ h>>32)
}

// newFlowCache returns a cache of n entries, n a power of two and at least flowWays.
func newFlowCache(n int, seed uint64) flowCache {
	return flowCache{sets: make([]flowSet, max(n/flowWays, 1)), seed: seed}
}

// set returns the places of the flows with that hash.
func (c *flowCache) set(hash uint32) *flowSet { return &c.sets[int(hash)&(len(c.sets)-1)] }

// begin prepares the cache for look-ups in the SPD of generation gen.
func (c *flowCache) begin(gen uint64) {
	if high := uint32(gen >> 32); high != c.high {
		c.high = high
		clear(c.sets) // or an entry of 2^32 generations ago would count again
	}
}

// lookup is spd.lookup through the cache, for a flow, its key and the key's hash. gen is the
// SPD's generation, read before the first look-up of a batch: an entry may be older than it
// says, never newer. That there is no SA, or no entry, is remembered as well.
func (c *flowCache) lookup(s *spd, f *esp.Flow, k *flowKey, hash uint32, gen uint64) (pol *policy, sa *outSA) {
	set := c.set(hash)
	var victim *flowEntry
	for i := range set {
		e := &set[i]
		if e.gen != uint32(gen) {
			if victim == nil {
				victim = e
			}
			continue
		}
		if e.key == *k {
			return e.pol, e.sa
		}
	}
	if victim == nil {
		c.turn++
		victim = &set[c.turn%flowWays]
	}
	pol, sa, lane, lacks := s.choose(f, c.via, uint8(k.rest>>dscpShift), c.worker)
	if lacks && c.ask != nil {
		c.ask(pol, f, lane)
	}
	*victim = flowEntry{key: *k, gen: uint32(gen), sa: sa, pol: pol}
	return pol, sa
}

// mix folds the 128-bit product of h and an odd constant.
func mix(h uint64) uint64 {
	hi, lo := bits.Mul64(h^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	return hi ^ lo
}
