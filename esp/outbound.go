package esp

import (
	"encoding/binary"
	"sync/atomic"
)

// The path of a packet that leaves, in Seal:
//
//  1. the worker's scratch state
//  2. room for header, IV, padding, trailer and ICV is checked
//  3. the sequence number is taken; from here nothing can fail
//  4. header and IV are written before the payload, padding and trailer after it
//  5. encryption and ICV, in place
//  6. usage

// Outbound is the sending end of an SA. Seal may be called by as many goroutines at
// the same time as there are contexts, each with its own; every other method by any
// goroutine at any time.
type Outbound struct {
	spi   uint32
	esn   bool
	shape shape
	limit uint64 // the last sequence number
	soft  Usage  // all ones where there is no limit
	hard  Usage
	keys  keyring

	_     [64]byte // what every packet writes is not where every worker reads
	seq   atomic.Uint64
	bytes atomic.Uint64
	_     [48]byte
}

// NewOutbound makes the sending end of sa for workers that have the numbers 0 to
// contexts-1. It copies what it needs of the keys; sa is the caller's to wipe. The
// errors name what in sa is wrong.
func NewOutbound(sa *SA, contexts int) (*Outbound, error) {
	o := &Outbound{spi: sa.SPI, esn: sa.Suite.ESN, limit: 1<<32 - 1}
	if o.esn {
		o.limit = 1<<64 - 1
	}
	o.soft, o.hard = sa.Soft.orNever(), sa.Hard.orNever()
	o.limit = min(o.limit, o.hard.Packets)
	if err := o.keys.init(sa, true, contexts); err != nil {
		return nil, err
	}
	o.shape = sa.Suite.shape()
	return o, nil
}

// Seal turns the payload buf[off:off+n] into an ESP packet in place and returns it as
// buf[start:end], from the SPI to the ICV. next is the payload's protocol (4 for IPv4, 41
// for IPv6, 59 for a dummy, RFC 4303 section 2.6). HeadRoom octets before the payload and
// TailRoom after it, within len(buf), are always enough; ErrNoRoom says that there is too
// little. ctx is the worker's number, below the contexts of NewOutbound, or Seal panics.
//
// ErrSeqExhausted and ErrWiped are final, and so is ErrExpired for packets of that size. No error uses up a sequence number.
func (o *Outbound) Seal(ctx int, buf []byte, off, n int, next uint8) (start, end int, err error) {
	c, err := o.keys.get(ctx)
	if err != nil {
		return 0, 0, err
	}

	if uint(n) > uint(len(buf)) || uint(off) > uint(len(buf)) {
		return 0, 0, ErrNoRoom
	}
	padLen := -(n + trailerLen) & (o.shape.align - 1)
	trailer := off + n + padLen
	tail := trailer + trailerLen
	start, end = off-o.shape.front, tail+o.shape.icv
	if start < 0 || end > len(buf) {
		return 0, 0, ErrNoRoom
	}

	if o.hard.Bytes != never && !o.spend(uint64(n)) {
		return 0, 0, ErrExpired
	}
	seq, ok := o.nextSeq()
	if !ok {
		if o.hard.Bytes != never {
			o.bytes.Add(-uint64(n))
		}
		if o.limit == o.hard.Packets && o.limit != never {
			return 0, 0, ErrExpired
		}
		return 0, 0, ErrSeqExhausted
	}

	pkt := buf[start:end]
	binary.BigEndian.PutUint64(pkt, uint64(o.spi)<<32|seq&(1<<32-1))
	for i := 0; i < padLen; i++ {
		buf[off+n+i] = byte(i + 1)
	}
	buf[trailer] = byte(padLen)
	buf[trailer+1] = next

	if c.aead != nil {
		// The sequence number is the IV: it never repeats under one key, which is all
		// that GCM and ChaCha20 ask for (RFC 4106 section 3.1, RFC 7634 section 2).
		binary.BigEndian.PutUint64(pkt[espHeaderLen:], seq)
		binary.BigEndian.PutUint64(c.nonce[aeadSaltLen:], seq)
		o.count(uint64(n))
		c.aead.Seal(buf[off:off], c.nonce[:], buf[off:tail], c.additional(pkt, o.esn, seq))
	} else {
		o.count(uint64(n))
		m := c.cbc
		iv := pkt[espHeaderLen : espHeaderLen+aesBlockLen]
		binary.BigEndian.PutUint64(m.ivIn[:], seq)
		m.ivGen.Encrypt(iv, m.ivIn[:])
		m.mode.SetIV(iv)
		m.mode.CryptBlocks(buf[off:tail], buf[off:tail])
		copy(buf[tail:end], m.icv(buf[start:tail], o.esn, uint32(seq>>32)))
	}
	return start, end, nil
}

// nextSeq takes the next sequence number. It never passes the limit, however many workers
// ask at once: a number is taken only from the value that was compared with the limit.
func (o *Outbound) nextSeq() (seq uint64, ok bool) {
	for {
		last := o.seq.Load()
		if last == o.limit {
			return 0, false
		}
		if o.seq.CompareAndSwap(last, last+1) {
			return last + 1, true
		}
	}
}

// additional returns what an AEAD authenticates beside the payload: SPI and sequence
// number, which stand so in the packet, or with extended sequence numbers all 64 bits of
// it (RFC 4106 section 5, RFC 7634 section 2.1). The result is valid until the next call.
func (c *scratch) additional(pkt []byte, esn bool, seq uint64) []byte {
	if !esn {
		return pkt[:espHeaderLen]
	}
	copy(c.aad[:4], pkt)
	binary.BigEndian.PutUint64(c.aad[4:], seq)
	return c.aad[:]
}

// Seq returns the sequence number of the last packet that was sealed; 0: none yet.
func (o *Outbound) Seq() uint64 { return o.seq.Load() }

// count adds the octets of a packet, unless spend has done so.
func (o *Outbound) count(n uint64) {
	if o.hard.Bytes == never {
		o.bytes.Add(n)
	}
}

// spend takes the octets of a packet out of what the SA may still seal, for all contexts
// together.
func (o *Outbound) spend(n uint64) bool {
	if o.bytes.Add(n) <= o.hard.Bytes {
		return true
	}
	o.bytes.Add(-n)
	return false
}

// Due tells whether the SA has reached its soft limit.
func (o *Outbound) Due() bool {
	return o.seq.Load() >= o.soft.Packets || o.bytes.Load() >= o.soft.Bytes
}

// Usage returns what has been sealed. A packet is counted a moment before its octets, or after
// them where there is a hard limit of octets.
func (o *Outbound) Usage() Usage {
	return Usage{Packets: o.seq.Load(), Bytes: o.bytes.Load()}
}

// Wipe forgets the keys; Seal answers ErrWiped from then on, a packet that is being sealed
// at this moment is finished. Own copies of keys are overwritten. The key schedules
// inside Go's cipher types cannot be: they are dropped and left to the collector.
func (o *Outbound) Wipe() { o.keys.wipe() }
