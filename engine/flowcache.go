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

// plainKey sets k to the key of an IP packet's flow where that is easy to see: in a whole packet of
// TCP or UDP without options and extension headers. ParseFlow accepts such a packet, and keyOf
// makes of its flow the same key to the last bit. Otherwise plainKey returns false, and k is
// undefined.
func plainKey(pkt []byte, outbound bool, k *flowKey) bool {
	var ports uint32
	switch {
	case len(pkt) >= 24 && pkt[0] == 0x45:
		// Flags but DF, offset and protocol, which stand in one word.
		const mask = 0x3fff<<32 | 0xff<<16
		switch binary.BigEndian.Uint64(pkt[4:]) & mask {
		case esp.ProtoTCP << 16:
			k.rest = esp.ProtoTCP<<8 | 2
		case esp.ProtoUDP << 16:
			k.rest = esp.ProtoUDP<<8 | 2
		default:
			return false
		}
		if n := int(binary.BigEndian.Uint16(pkt[2:])); n < 24 || n > len(pkt) {
			return false
		}
		local, remote := binary.NativeEndian.Uint32(pkt[12:]), binary.NativeEndian.Uint32(pkt[16:])
		ports = binary.BigEndian.Uint32(pkt[20:])
		if !outbound {
			local, remote = remote, local
		}
		k.addr = [4]uint64{uint64(local)<<32 | uint64(remote)}
	case len(pkt) >= 44 && pkt[0]>>4 == 6 && (pkt[6] == esp.ProtoTCP || pkt[6] == esp.ProtoUDP):
		if n := int(binary.BigEndian.Uint16(pkt[4:])); n < 4 || n > len(pkt)-40 {
			return false
		}
		k.rest = uint64(pkt[6]) << 8
		local, remote := pkt[8:24], pkt[24:40]
		ports = binary.BigEndian.Uint32(pkt[40:])
		if !outbound {
			local, remote = remote, local
		}
		k.addr = [4]uint64{
			binary.NativeEndian.Uint64(local), binary.NativeEndian.Uint64(local[8:]),
			binary.NativeEndian.Uint64(remote), binary.NativeEndian.Uint64(remote[8:]),
		}
	default:
		return false
	}
	if !outbound {
		ports = bits.RotateLeft32(ports, 16)
	}
	k.rest |= uint64(ports) << 16
	return true
}

// is tells whether two keys are the same, without the call that == is for so many octets.
func (k *flowKey) is(o *flowKey) bool {
	return k.rest == o.rest && k.addr[0] == o.addr[0] &&
		(k.addr[1]^o.addr[1])|(k.addr[2]^o.addr[2])|(k.addr[3]^o.addr[3]) == 0
}

// addClass makes the DSCP of the flow's packet part of the key.
func (k *flowKey) addClass(pkt []byte) { k.rest |= uint64(esp.TrafficClass(pkt)>>2) << dscpShift }

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
		if e.key.is(k) {
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
