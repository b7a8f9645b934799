package esp

import (
	"encoding/binary"
	"sync/atomic"
)

// The path of packets that leave:
//
//  1. Fits: room for header, IV, padding, trailer and ICV
//  2. Reserve: sequence numbers, for a batch at once, and octets if there are limits
//  3. SealAt, by several workers at the same time: the worker's scratch state, header and
//     IV before the payload, padding and trailer after it, encryption and ICV in place
//
// Seal is all of it for one packet.

// Outbound is the sending end of an SA. SealAt and Seal may be called by as many goroutines
// at the same time as there are contexts, each with its own; every other method by any
// goroutine at any time.
type Outbound struct {
	// What every packet needs is in the first cache line, with the number that is written
	// once per batch: of many SAs, each line is one that has to be fetched.
	seq     atomic.Uint64 // the last sequence number that was taken
	spi     uint32
	esn     bool // the numbers have 64 bits here, whatever of them is sent
	limited bool // by lim
	shape   packedShape
	slots   slots
	lim     *limits // nil: it has none
	form    *form   // nil: ESP in tunnel mode
	keys    keyring
	_       [56]byte // so that on 64-bit machines the allocator aligns it to a line
}

// NewOutbound makes the sending end of sa for workers that have the numbers 0 to
// contexts-1. It copies what it needs of the keys; sa is the caller's to wipe. The
// errors name what in sa is wrong.
func NewOutbound(sa *SA, contexts int) (*Outbound, error) {
	o := &Outbound{spi: sa.SPI, esn: sa.Suite.ESN || sa.Cycle}
	o.seq.Store(sa.Seq)
	if err := o.keys.init(sa, true, &o.slots, contexts); err != nil {
		return nil, err
	}
	if err := o.shape.pack(sa, &o.form); err != nil {
		o.keys.wipe(&o.slots)
		return nil, err
	}
	o.lim = newLimits(sa)
	o.limited = o.lim != nil
	return o, nil
}

// Seal turns the payload buf[off:off+n] into an ESP packet in place, under the next
// sequence number, and returns it as buf[start:end], from the SPI to the ICV. next is the
// payload's protocol (4 for IPv4, 41 for IPv6, 59 for a dummy, RFC 4303 section 2.6).
// HeadRoom octets before the payload and TailRoom after it, within len(buf), are always
// enough; ErrNoRoom says that there is too little. ctx is the worker's number, below the
// contexts of NewOutbound, or Seal panics.
//
// ErrSeqExhausted and ErrWiped are final, and so is ErrExpired for packets of that size. No
// error but an ErrWiped that meets the call half-way uses up a sequence number.
func (o *Outbound) Seal(ctx int, buf []byte, off, n int, next uint8) (start, end int, err error) {
	if _, err := o.keys.get(&o.slots, ctx); err != nil {
		return 0, 0, err
	}
	if !o.Fits(buf, off, n) {
		return 0, 0, ErrNoRoom
	}
	seq, granted := o.Reserve(1, n)
	if granted == 0 {
		return 0, 0, o.Refusal()
	}
	return o.SealAt(ctx, seq, buf, off, n, next)
}

// Fits tells whether there is room in buf to seal the payload buf[off:off+n].
func (o *Outbound) Fits(buf []byte, off, n int) bool {
	_, _, ok := o.place(len(buf), off, n)
	return ok
}

// place returns where padding ends and the trailer begins, and where the ICV ends, of a
// payload in a buffer of size octets.
func (o *Outbound) place(size, off, n int) (trailer, end int, ok bool) {
	if uint(n) > uint(size) || uint(off) > uint(size) {
		return 0, 0, false
	}
	trailer = off + n + -(n+trailerLen)&(int(o.shape.align)-1)
	end = trailer + trailerLen + int(o.shape.icv)
	return trailer, end, off >= int(o.shape.front) && end <= size
}

// limit returns the last sequence number that there is.
func (o *Outbound) limit() uint64 {
	if o.esn {
		return 1<<64 - 1
	}
	return 1<<32 - 1
}

// Reserve takes the next n sequence numbers for the caller's packets alone, whose payloads
// have that many octets together: first to first+granted-1. Fewer than n are granted where
// the SA's numbers end, and none after that (RFC 4303 section 3.3.3); an SA with limits
// grants all or nothing, and what Left says is granted. Refusal tells why nothing is. A
// number that is not used afterwards is a gap, which harms nobody; none must be used twice.
func (o *Outbound) Reserve(n, octets int) (first uint64, granted int) {
	if o.limited {
		return o.reserveLimited(n, octets)
	}
	for {
		last := o.seq.Load()
		granted = int(min(uint64(n), o.limit()-last))
		if granted == 0 {
			return 0, 0
		}
		if o.seq.CompareAndSwap(last, last+uint64(granted)) {
			return last + 1, granted
		}
	}
}

// SealAt is Seal with a sequence number that Reserve has granted.
// The errors are ErrNoRoom, where Fits says no, and ErrWiped; both leave buf as it is.
func (o *Outbound) SealAt(ctx int, seq uint64, buf []byte, off, n int, next uint8) (start, end int, err error) {
	c, err := o.keys.get(&o.slots, ctx)
	if err != nil {
		return 0, 0, err
	}
	trailer, end, ok := o.place(len(buf), off, n)
	if !ok {
		return 0, 0, ErrNoRoom
	}
	start = off - int(o.shape.front)
	tail := trailer + trailerLen
	padLen := trailer - (off + n)

	pkt := buf[start:end]
	binary.BigEndian.PutUint64(pkt, uint64(o.spi)<<32|seq&(1<<32-1))
	for i := 0; i < padLen; i++ {
		buf[off+n+i] = byte(i + 1)
	}
	buf[trailer] = byte(padLen)
	buf[trailer+1] = next

	c.do.seal(pkt, seq, int(o.shape.front), tail-start)
	return start, end, nil
}

// Seq returns the last sequence number that was taken; 0: none yet. What is sealed is
// not counted otherwise, unless there are limits: who seals a batch counts its octets with
// less effort.
func (o *Outbound) Seq() uint64 { return o.seq.Load() }

// Wipe forgets the keys; Seal and SealAt answer ErrWiped from then on, a packet that is being sealed
// at this moment is finished. Own copies of keys are overwritten. The key schedules
// inside Go's cipher types cannot be: they are dropped and left to the collector.
func (o *Outbound) Wipe() { o.keys.wipe(&o.slots) }
