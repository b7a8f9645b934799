package engine

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"postern/engine/config"
	"postern/esp"
)

// inSA is an inbound SA as the data path sees it. What a reader finds in the SAD stays
// as it is but for the atomics.
type inSA struct {
	// What every packet needs comes first, in one cache line.
	in     *esp.Inbound
	remote atomic.Pointer[netip.AddrPort] // where the peer was last
	lastIn atomic.Int64                   // when the last packet passed; 0: none did
	nets   netPair                        // of the selectors
	spi    uint32
	proto  esp.Protocol
	ported bool // a selector is for some ports, or for OPAQUE ones
	routed bool // via is not nil
	frags  bool // later fragments are accepted all the same (RFC 4301 section 7.3)
	is     inFlags
	// headers are headerBits.
	headers atomic.Uint32

	localTS  []esp.Selector
	remoteTS []esp.Selector
	movedAt  atomic.Int64 // when a packet came from another address; 0: none did
	limits   *limits      // nil: it has none
	conn     string
	child    string
	share    share
	export   []byte       // the keys, for the control socket; nil: not kept
	came     *cameBy      // of a lane that only the peer knows what for; nil: it is none
	via      *childDevice // where its packets come out; nil: the TUN device of all
	unpacker *unpacker    // nil: it has no AGGFRAG payloads
	_        [16]byte     // so that on 64-bit machines the allocator aligns it to a line
}

// inFlags is what may change of an inbound SA and every packet has to know.
type inFlags struct{ v atomic.Uint32 }

const (
	inEncap  = 1 << iota // it comes in UDP
	inMixed              // as in share, which the loop alone reads
	inAround             // it has to be in AH (nest.go)
	inAgg                // AGGFRAG payloads arrive, and nothing else
)

// has may be called by anyone.
func (f *inFlags) has(flag uint32) bool { return f.v.Load()&flag != 0 }

// set belongs to the IKE loop.
func (f *inFlags) set(flag uint32, on bool) {
	v := f.v.Load() &^ flag
	if on {
		v |= flag
	}
	f.v.Store(v)
}

// netPair is what most SAs have for selectors, in few octets: one range of IPv4 addresses
// at each end, for all protocols and ports. The zero value holds no packet.
type netPair struct {
	local, remote   uint32 // first addresses
	nLocal, nRemote uint32 // addresses after the first
	holds           bool
}

// netPairOf returns the pair of these selectors, or the zero value if they are not such.
func netPairOf(local, remote []esp.Selector) (p netPair) {
	if len(local) != 1 || len(remote) != 1 {
		return p
	}
	ip := func(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }
	for _, s := range []esp.Selector{local[0], remote[0]} {
		if !s.Valid() || !s.Start.Is4() || s.Proto != 0 || s.StartPort != 0 || s.EndPort != 65535 {
			return p
		}
	}
	l, r := &local[0], &remote[0]
	return netPair{ip(l.Start), ip(r.Start), ip(l.End) - ip(l.Start), ip(r.End) - ip(r.Start), true}
}

// has tells whether the flow is between the two; if not the selectors may still have it.
func (p *netPair) has(f *esp.Flow) bool {
	if !p.holds || !f.Local.Is4() || !f.Remote.Is4() {
		return false
	}
	l, r := f.Local.As4(), f.Remote.As4()
	return binary.BigEndian.Uint32(l[:])-p.local <= p.nLocal && binary.BigEndian.Uint32(r[:])-p.remote <= p.nRemote
}

// outSA is an outbound SA as the data path sees it: immutable but for the atomics, what
// turns and workers keep in it, and standby, which is the IKE loop's alone.
type outSA struct {
	// What every packet needs comes first, in one cache line.
	out  *esp.Outbound
	path atomic.Pointer[outerPath]
	mark [maxQueues + 1]uint16 // of each worker: where the SA is in its batch's turns
	hide uint16                // length to which packets are padded; 0: none are; hideStream

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
	proto    esp.Protocol
	mode     esp.Mode
	suite    esp.Suite
	esn      bool
	ported   bool // as of an inSA
	frags    bool
	standby  bool
	lane     uint8
	rekeying bool // asked for because the sequence numbers run out; the IKE loop's
	limits   *limits
	share    share
	export   []byte // as of an inSA
	came     *cameBy
	own      *ownUse // of an SA through which one worker alone sends
	via      *childDevice
	stream   *stream
	first    uint64 // the sequence number after which it began

	_ [40]byte // so that on 64-bit machines the allocator aligns it to a line
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
	nested bool // AH goes around it (nest.go)
	local  netip.Addr
	remote netip.AddrPort

	// What links.go adds: values that are equal are one in memory, so far as SAs share a path.
	mtu     uint16 // octets that the path carries in one packet; 0: the system's to know
	most    uint16 // and those of a packet that is to be sealed
	bits    headerBits
	tunnel  bool            // tunnel mode: the outer header is ours to make
	blind   bool            // nobody would tell that a packet with DF was lost
	after   bool            // what may be cut is cut after it was sealed
	odd     bool            // the outer header is not the one that package esp makes
	headers *config.Headers // nil: not known yet, all is as by default
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
// table cannot grow. lookup and awaits may be called from any goroutine; everything else
// belongs to the IKE loop.
type sad struct {
	slots []sadSlot
	mask  uint32
	// awaited is, for each slot, the SPI that is reserved and has had no inbound SA yet; 0:
	// there is none. It is apart, so that two slots fill a cache line.
	awaited []atomic.Uint32
	free    []uint32 // a ring, of nfree from head on: a slot that was given back is used again last
	head    int
	nfree   int
	random  func([]byte)

	// displaced are the slots of SPIs that somebody chose and whose own slot was taken: a reader
	// who misses looks there.
	displaced atomic.Pointer[map[uint32]uint32]

	// The newest of each: the SAs of one peer share them, also in the processor's caches.
	path   *outerPath
	fitted *outerPath // by the IKE loop's fit
	remote *netip.AddrPort
}

// pathOf returns the path of packets from local to remote.
func (s *sad) pathOf(proto esp.Protocol, local netip.Addr, remote netip.AddrPort, encap bool) *outerPath {
	if p := outerPathOf(proto, local, remote, encap); s.path == nil || *s.path != *p {
		s.path = p
	}
	return s.path
}

// remoteAt returns where that address is kept.
func (s *sad) remoteAt(a netip.AddrPort) *netip.AddrPort {
	if s.remote == nil || *s.remote != a {
		s.remote = &a
	}
	return s.remote
}

// errSlot says that an SA arrived for an SPI that AllocSPI had not given out. The SAD
// is unchanged.
var errSlot = errors.New("the SPI is not reserved in the SAD")

// minSPI is the first SPI that is not reserved (RFC 4303 section 2.1).
const minSPI = 256

// newSAD returns a SAD of n slots, n a power of two.
func newSAD(n int, random func([]byte)) *sad {
	s := &sad{slots: make([]sadSlot, n), mask: uint32(n - 1), awaited: make([]atomic.Uint32, n), free: make([]uint32, n), nfree: n, random: random}
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

// peek returns what lookup looks at first, without a look at it.
func (s *sad) peek(spi uint32) *inSA { return s.slots[spi&s.mask].in.Load() }

// awaits tells whether spi is reserved and has had no inbound SA yet. Whoever has found no
// SA and then no reservation has to look for the SA once more.
func (s *sad) awaits(spi uint32) bool {
	return spi != 0 && s.awaited[spi&s.mask].Load() == spi
}

// alloc reserves a slot and returns the SPI for it.
func (s *sad) alloc() (uint32, bool) { return s.take(0, 1) }

// take is alloc of an SPI that is rest modulo n, where the slot that is next has such ones.
func (s *sad) take(rest, n uint32) (uint32, bool) {
	if s.nfree == 0 {
		return 0, false
	}
	i := s.free[s.head]
	slot := &s.slots[i]
	for {
		var b [4]byte
		s.random(b[:])
		spi := binary.BigEndian.Uint32(b[:])&^s.mask | i
		if spi < minSPI || spi == slot.last || spi%n != rest || s.at(spi) != i {
			continue
		}
		s.head = (s.head + 1) % len(s.free)
		s.nfree--
		slot.spi = spi
		s.awaited[i].Store(spi)
		return spi, true
	}
}

// slot returns the slot that spi reserves, or nil.
func (s *sad) slot(spi uint32) *sadSlot {
	if slot := &s.slots[s.at(spi)]; spi != 0 && slot.spi == spi {
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
	i := s.at(spi)
	s.awaited[i].Store(0)
	in, out = slot.in.Swap(nil), slot.out
	slot.out, slot.spent, slot.last, slot.spi = nil, nil, spi, 0
	s.free[(s.head+s.nfree)%len(s.free)] = i
	s.nfree++
	s.displace(spi, i, false)
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
	s.awaited[s.at(sa.spi)].Store(0) // after the SA: see awaits
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
