package aggfrag

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// seeds returns how many of the runs of a property are to be made: a tenth with -short, as on emulated processors.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return n / 10
	}
	return n
}

// ipPacket makes an inner packet of n octets whose content is told by tag.
func ipPacket(version, n int, tag byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = tag + byte(i*7)
	}
	if version == 4 {
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(n))
	} else {
		b[0] = 0x60
		binary.BigEndian.PutUint16(b[4:], uint16(n-40))
		b[6] = 17
	}
	return b
}

// randomPackets makes inner packets of sizes as on a network, and some of any size.
func randomPackets(r *rand.Rand, count int) [][]byte {
	list := make([][]byte, count)
	for i := range list {
		version, n := 4, 20
		if r.IntN(2) == 0 {
			version, n = 6, 40
		}
		switch r.IntN(8) {
		case 0:
			n += r.IntN(4000)
		case 1, 2:
			n += 1400
		case 3:
		default:
			n += r.IntN(300)
		}
		list[i] = ipPacket(version, n, byte(r.Uint32()))
	}
	return list
}

// refPayload is what the slow packer makes of one payload.
type refPayload struct {
	bytes  []byte
	whose  []int // the packets of which it has a part
	octets []int // and how long that is
}

// refPack cuts packets into one payload of each size, as RFC 9347 section 2.2 describes it: from the
// list of all packets, without a queue.
func refPack(packets [][]byte, sizes []int, h Header, whole bool) []refPayload {
	var out []refPayload
	rest := []byte(nil) // of the packet under way
	at := 0             // its number, or that of the next one
	for _, size := range sizes {
		var blocks []byte
		var p refPayload
		space := size - h.Len()
		h.BlockOffset = uint16(len(rest))
		for len(blocks) < space && (len(rest) > 0 || at < len(packets)) {
			if len(rest) == 0 {
				free, header := space-len(blocks), 20
				if packets[at][0]>>4 == 6 {
					header = 40
				}
				if len(packets[at]) > free {
					if whole && len(blocks) == 0 {
						at++
						continue
					}
					if whole || len(blocks) > 0 && free < header {
						break
					}
				}
				rest = packets[at]
			}
			n := min(len(rest), space-len(blocks))
			blocks = append(blocks, rest[:n]...)
			rest = rest[n:]
			p.whose, p.octets = append(p.whose, at), append(p.octets, n)
			if len(rest) == 0 {
				at++
			}
		}
		p.bytes = make([]byte, size)
		h.Put(p.bytes)
		copy(p.bytes[h.Len():], blocks)
		out = append(out, p)
	}
	return out
}

// refReorder says in which order a receiver gets to see payloads that arrive in the given order,
// with a window: a slow one, which keeps a list. Numbers that are left out are lost or late.
func refReorder(arrivals []uint64, window int) (seen []uint64) {
	next := uint64(1)
	var waiting []uint64
	flush := func(below uint64) {
		for len(waiting) > 0 && (waiting[0] < below || waiting[0] == next) {
			seen = append(seen, waiting[0])
			next = waiting[0] + 1
			waiting = waiting[1:]
		}
		next = max(next, below)
		for len(waiting) > 0 && waiting[0] == next {
			seen = append(seen, next)
			next++
			waiting = waiting[1:]
		}
	}
	for _, seq := range arrivals {
		if seq < next || slices.Contains(waiting, seq) {
			continue
		}
		waiting = append(waiting, seq)
		slices.Sort(waiting)
		below := uint64(0)
		if seq > uint64(window) {
			below = seq - uint64(window)
		}
		flush(below)
	}
	return seen
}

// drain calls Next to the end and returns copies of the packets, and how often each error came.
func drain(r *Reassembler) (packets [][]byte, errs map[error]int) {
	errs = map[error]int{}
	for {
		pkt, err := r.Next()
		switch {
		case pkt != nil:
			packets = append(packets, slices.Clone(pkt))
		case err != nil:
			errs[err]++
		default:
			return packets, errs
		}
	}
}
