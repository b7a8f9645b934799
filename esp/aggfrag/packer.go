package aggfrag

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Limits of a Packer's queue, in octets.
const (
	MinQueue = 1 << 11
	MaxQueue = 1 << 24
)

// Packer queues inner packets and cuts payloads of them. The queue is a ring of octets in which the
// packets stand as they will in the payloads, one behind the other; their own headers tell
// where one ends.
//
//	          head            head+sent                      tail
//	           |                  |                            |
//	...free... | packet under way : rest | packet | packet ... | ...free...
//
// Any number of goroutines may Put at the same time: a lock is theirs alone. One at a time may
// call Fill, Restart and Oversized; it waits for nobody, so that the time of a packet's leaving does not
// tell how busy the queue is.
type Packer struct {
	ring  []byte // its length is a power of two
	mask  uint32
	whole bool

	// The producers'.
	put  sync.Mutex
	tail atomic.Uint32 // where the next packet goes, modulo 2^32
	in   atomic.Uint32 // packets that have been queued

	// The consumer's.
	head      atomic.Uint32 // of the oldest packet that has not left altogether
	out       atomic.Uint32 // packets that have left
	sent      int           // octets of it that have left
	oversized uint64
}

// NewPacker makes a Packer with a queue of the given octets, rounded down to a power of two and kept
// between MinQueue and MaxQueue. whole keeps every packet in one payload, as a peer demands
// that does not reassemble (the D bit of USE_AGGFRAG, RFC 9347 section 6.1.4).
func NewPacker(octets int, whole bool) *Packer {
	n := 1 << (bits.Len(uint(max(MinQueue, min(octets, MaxQueue)))) - 1)
	return &Packer{ring: make([]byte, n), mask: uint32(n - 1), whole: whole}
}

// Put queues a copy of an inner packet. Octets of pkt behind the packet's own length are left out.
// ErrFull: there is no room, the packet is to be dropped (it is the newest one: what waits is
// older). ErrMalformed: pkt is not a whole IP packet of at most 65,535 octets.
func (p *Packer) Put(pkt []byte) error {
	if len(pkt) == 0 {
		return ErrMalformed
	}
	least := ipv4MinLen
	switch pkt[0] >> 4 {
	case blockIPv4:
	case blockIPv6:
		least = ipv6Len
	default:
		return ErrMalformed
	}
	if len(pkt) < least {
		return ErrMalformed
	}
	n, err := blockLen(pkt)
	if err != nil || n > len(pkt) {
		return ErrMalformed
	}
	p.put.Lock()
	tail := p.tail.Load()
	if len(p.ring)-int(tail-p.head.Load()) < n {
		p.put.Unlock()
		return ErrFull
	}
	first := copy(p.ring[tail&p.mask:], pkt[:n])
	copy(p.ring, pkt[first:n])
	p.in.Add(1)
	p.tail.Store(tail + uint32(n))
	p.put.Unlock()
	return nil
}

// Queued returns how much waits, with all of the packet that is under way. Anybody may ask; the two numbers
// may be of slightly different moments.
func (p *Packer) Queued() (packets, octets int) {
	head, out := p.head.Load(), p.out.Load()
	return int(p.in.Load() - out), int(p.tail.Load() - head)
}

// Fill writes a whole payload: the header h, whose BlockOffset it sets, as many blocks as are there
// and fit, and padding of zeros. It returns how many octets of inner packets there are; 0
// means that all is padding. Without the padding, payload[:h.Len()+inner] is a payload as well, for who does not
// hide sizes. payload must be longer than h.Len(), and may have another length each time.
//
// A packet does not begin where not even its IP header has room, so that the receiver can read its
// length as soon as it has its first part; that end is padding. Neither does it begin where it would be
// cut, if packets are to stay whole; one that no payload of this length can take is dropped.
func (p *Packer) Fill(payload []byte, h *Header) (inner int) {
	space := payload[h.Len():]
	head, tail := p.head.Load(), p.tail.Load()
	h.BlockOffset = 0
	if p.sent > 0 && len(space) > 0 {
		n, _ := p.front(head)
		h.BlockOffset = uint16(n - p.sent)
	}
	done := uint32(0)
	for head != tail && inner < len(space) {
		n, least := p.front(head)
		room := len(space) - inner
		if p.sent == 0 && n > room {
			if p.whole && inner == 0 {
				p.oversized++
				head += uint32(n)
				done++
				continue
			}
			if p.whole || inner > 0 && room < least {
				break
			}
		}
		part := space[inner:]
		part = part[:min(n-p.sent, room)]
		first := copy(part, p.ring[(head+uint32(p.sent))&p.mask:])
		copy(part[first:], p.ring)
		inner += len(part)
		p.sent += len(part)
		if p.sent == n {
			head += uint32(n)
			p.sent = 0
			done++
		}
	}
	clear(space[inner:])
	h.Put(payload)
	p.out.Add(done)
	p.head.Store(head)
	return inner
}

// front returns the length of the packet that begins at head, and of its IP header without options.
func (p *Packer) front(head uint32) (n, header int) {
	at := func(i uint32) byte { return p.ring[(head+i)&p.mask] }
	if at(0)>>4 == blockIPv4 {
		return int(binary.BigEndian.Uint16([]byte{at(2), at(3)})), ipv4MinLen
	}
	return ipv6Len + int(binary.BigEndian.Uint16([]byte{at(4), at(5)})), ipv6Len
}

// Restart makes the next payload begin with the packet that is under way, from its first octet. It must be
// called before a payload for another SA is filled (RFC 9347 section 2.2.3).
func (p *Packer) Restart() { p.sent = 0 }

// Oversized returns how many packets Fill has dropped because they had to stay whole and were
// longer than the payload.
func (p *Packer) Oversized() uint64 { return p.oversized }
