package engine

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"postern/esp"
)

// inSA is an inbound SA as the data path sees it. What a reader finds in the SAD stays
// as it is but for the atomics.
type inSA struct {
	// What every packet reads comes first, in one cache line.
	in       *esp.Inbound
	localTS  []esp.Selector
	remoteTS []esp.Selector
	spi      uint32
	innerOff uint8 // where the inner packet starts in the ESP packet

	remote  atomic.Pointer[netip.AddrPort] // where the peer was last
	encap   atomic.Bool
	lastIn  atomic.Int64 // when the last packet passed; 0: none did
	movedAt atomic.Int64 // when a packet came from another address; 0: none did
	limits  *limits      // nil: it has none
	share   share

	conn  string
	child string
}

// outSA is an outbound SA as the data path sees it: immutable but for the atomics, what
// turns and workers keep in it, and standby, which is the IKE loop's alone.
type outSA struct {
	// What every packet needs comes first, in one cache line.
	out  *esp.Outbound
	path atomic.Pointer[outerPath]
	mark [maxQueues + 1]uint16 // of each worker: where the SA is in its batch's turns

	mixed atomic.Bool // as in share, which the loop alone reads

	// Under the data path's turns.mu:
	issued, served uint32        // tickets, modulo 2^32: there are never more than workers open
	octets         uint64        // of inner packets that have left
	lastOut        time.Duration // when the last one did; 0: none did

	spi      uint32
	inbound  uint32 // SPI of the pair's inbound SA: its slot
	localTS  []esp.Selector
	remoteTS []esp.Selector
	conn     string
	child    string
	ike, id  uint32
	esn      bool
	standby  bool
	rekeying bool // asked for because the sequence numbers run out; the IKE loop's
	limits   *limits
	share    share

	_ [16]byte // so that on 64-bit machines the allocator aligns it to a line
}

// limits is when the IKE loop was told that an SA has reached its soft and its hard limit in
// packets or octets; 0: it was not.
type limits struct{ soft, hard atomic.Int64 }

// limitInterval is after what time the IKE loop is told again of a limit: what it did about
// it may have been overtaken by something else.
const limitInterval = 10 * time.Second

// reached tells the IKE loop that the SA of a pair has reached a limit.
func (l *limits) reached(d *datapath, spi uint32, hard bool, now time.Duration) {
	at := &l.soft
	if hard {
		at = &l.hard
	}
	last := at.Load()
	if last != 0 && now-time.Duration(last) < limitInterval || !at.CompareAndSwap(last, int64(max(now, 1))) {
		return
	}
	if !d.limit(spi, hard) {
		at.Store(last) // the next packet tells it
	}
}

// sock returns the socket that carries the SA at present.
func (sa *outSA) sock() sockID { return sa.path.Load().sock }

// outerPath is where the packets of an SA go, from which address and through which socket;
// port 0 without encapsulation.
type outerPath struct {
	sock   sockID
	local  netip.Addr
	remote netip.AddrPort
}

// sadSlot is one CHILD SA: an inbound and an outbound SA. All but in belongs to the IKE loop.
type sadSlot struct {
	in   atomic.Pointer[inSA]
	spi  uint32 // reserved or in use; 0: the slot is free
	last uint32 // the SPI that the slot had before
	out  *outSA

	// spent is the outbound SA after its deletion, wiped: while the inbound one still
	// takes what is on its way, it is known what has passed through the pair.
	spent *outSA
}

// sad is the security association database. Its low SPI bits are the slot, the rest is
// random: a look-up is one index and one compare, a stale SPI finds nothing, and the
// table cannot grow. lookup may be called from any goroutine; everything else belongs
// to the IKE loop.
type sad struct {
	slots  []sadSlot
	mask   uint32
	free   []uint32 // a ring: a slot that was given back is used again last
	head   int
	nfree  int
	random func([]byte)
}

// errSlot says that an SA arrived for an SPI that AllocSPI had not given out. The SAD
// is unchanged.
var errSlot = errors.New("the SPI is not reserved in the SAD")

// minSPI is the first SPI that is not reserved (RFC 4303 section 2.1).
const minSPI = 256

// newSAD returns a SAD of n slots, n a power of two.
func newSAD(n int, random func([]byte)) *sad {
	s := &sad{slots: make([]sadSlot, n), mask: uint32(n - 1), free: make([]uint32, n), nfree: n, random: random}
	for i := range s.free {
		s.free[i] = uint32(i)
	}
	return s
}

// lookup returns the inbound SA of spi, or nil.
func (s *sad) lookup(spi uint32) *inSA {
	if sa := s.slots[spi&s.mask].in.Load(); sa != nil && sa.spi == spi {
		return sa
	}
	return nil
}

// alloc reserves a slot and returns the SPI for it.
func (s *sad) alloc() (uint32, bool) {
	if s.nfree == 0 {
		return 0, false
	}
	i := s.free[s.head]
	slot := &s.slots[i]
	for {
		var b [4]byte
		s.random(b[:])
		spi := binary.BigEndian.Uint32(b[:])&^s.mask | i
		if spi < minSPI || spi == slot.last {
			continue
		}
		s.head = (s.head + 1) % len(s.free)
		s.nfree--
		slot.spi = spi
		return spi, true
	}
}

// slot returns the slot that spi reserves, or nil.
func (s *sad) slot(spi uint32) *sadSlot {
	if slot := &s.slots[spi&s.mask]; spi != 0 && slot.spi == spi {
		return slot
	}
	return nil
}

// release gives back what alloc reserved. It returns what was still in the slot.
func (s *sad) release(spi uint32) (in *inSA, out *outSA) {
	slot := s.slot(spi)
	if slot == nil {
		return nil, nil
	}
	in, out = slot.in.Swap(nil), slot.out
	slot.out, slot.spent, slot.last, slot.spi = nil, nil, spi, 0
	s.free[(s.head+s.nfree)%len(s.free)] = spi & s.mask
	s.nfree++
	return in, out
}

// used returns how many slots are not free.
func (s *sad) used() int { return len(s.slots) - s.nfree }

// addIn publishes an inbound SA in the slot that its SPI reserves.
func (s *sad) addIn(sa *inSA) error {
	slot := s.slot(sa.spi)
	if slot == nil {
		return errSlot
	}
	slot.in.Store(sa)
	return nil
}

// delIn takes an inbound SA out; the slot stays reserved until release.
func (s *sad) delIn(spi uint32) *inSA {
	if slot := s.slot(spi); slot != nil {
		return slot.in.Swap(nil)
	}
	return nil
}

// addOut puts an outbound SA into its pair's slot and returns the one that it replaces.
func (s *sad) addOut(sa *outSA) (old *outSA, err error) {
	slot := s.slot(sa.inbound)
	if slot == nil {
		return nil, errSlot
	}
	old, slot.out = slot.out, sa
	return old, nil
}

// delOut takes the outbound SA out of its slot.
func (slot *sadSlot) delOut() *outSA {
	slot.spent, slot.out = slot.out, nil
	return slot.spent
}

// findOut returns the slot with the outbound SA spi. Outbound SPIs are the peers'
// choice, so two peers may have chosen the same one: inbound, the SPI of the pair's
// inbound SA, decides, and only if it is 0 the first one that is found.
func (s *sad) findOut(spi, inbound uint32) *sadSlot {
	if inbound != 0 {
		if slot := s.slot(inbound); slot != nil && slot.out != nil && slot.out.spi == spi {
			return slot
		}
		return nil
	}
	for i := range s.slots {
		if o := s.slots[i].out; o != nil && o.spi == spi {
			return &s.slots[i]
		}
	}
	return nil
}

// usage returns what passed through the pair of the inbound spi, and when the last
// packets did (0: none).
func (s *sad) usage(q *turns, spi uint32) (in, out esp.Usage, lastIn, lastOut time.Duration) {
	slot := s.slot(spi)
	if slot == nil {
		return
	}
	if sa := slot.in.Load(); sa != nil {
		in, lastIn = sa.in.Usage(), time.Duration(sa.lastIn.Load())
	}
	o := slot.out
	if o == nil {
		o = slot.spent
	}
	if o != nil {
		out, lastOut = q.usage(o)
	}
	return
}

// innerOffset returns where the payload starts in an ESP packet of that suite: behind
// SPI, sequence number and IV (RFC 4303 section 2).
func innerOffset(s esp.Suite) uint8 {
	if s.Encr == esp.EncrAESCBC {
		return 8 + 16
	}
	return 8 + 8
}
