package esp

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// The path of a packet that arrives, in Open:
//
//  1. the worker's scratch state
//  2. lengths
//  3. the whole sequence number is found, and the window asked whether it is new
//  4. ICV and decryption, in place
//  5. padding and next header
//  6. window and usage advance, under the SA's lock
//
// An authentic packet advances the window even when its padding is wrong (RFC 4303 section
// 3.4.4.1 has the window before the padding); no other error changes anything.

// Inbound is the receiving end of an SA. Open may be called by as many goroutines at the
// same time as there are contexts, each with its own; every other method by any goroutine
// at any time.
type Inbound struct {
	// What every packet reads is in the first cache line, and what it writes in the second,
	// where the window's second half begins: of many SAs, each line is one that has to be
	// fetched. The lengths are right for 64-bit machines.
	esn     bool
	limited bool // by lim
	shape   packedShape
	slots   slots
	win     window
	mu      sync.Mutex
	usage   Usage

	lim  *limits // nil: it has none
	form *form   // nil: ESP in tunnel mode
	keys keyring
	_    [40]byte // so that the allocator aligns it to a line
}

// NewInbound makes the receiving end of sa for workers that have the numbers 0 to
// contexts-1. It copies what it needs of the keys; sa is the caller's to wipe. The
// errors name what in sa is wrong.
func NewInbound(sa *SA, contexts int) (*Inbound, error) {
	if w := sa.ReplayWindow; w != 0 && (w < MinWindow || w > MaxWindow) {
		return nil, fmt.Errorf("esp: SA %08x: a replay window has %d to %d packets, or 0 for no check, not %d", sa.SPI, MinWindow, MaxWindow, w)
	}
	in := &Inbound{esn: sa.Suite.ESN}
	if err := in.keys.init(sa, false, &in.slots, contexts); err != nil {
		return nil, err
	}
	if err := in.shape.pack(sa, &in.form); err != nil {
		in.keys.wipe(&in.slots)
		return nil, err
	}
	in.lim = newLimits(sa)
	in.limited = in.lim != nil
	in.win.init(sa.ReplayWindow)
	in.win.resume(sa.Seq)
	return in, nil
}

// SPIOf returns the SPI of an ESP packet that begins at pkt[0], or 0, which is no SA's,
// when pkt is shorter than an ESP header.
func SPIOf(pkt []byte) uint32 {
	if len(pkt) < espHeaderLen {
		return 0
	}
	return binary.BigEndian.Uint32(pkt)
}

// Open verifies and decrypts an ESP packet in place; pkt begins at the SPI and ends with
// the ICV. inner is the payload without padding, a part of pkt; next is its protocol, 59
// for a dummy that is to be dropped in silence (RFC 4303 section 2.6). An IP packet may be
// followed by traffic-flow confidentiality padding: InnerLen finds its end. ctx is the
// worker's number, below the contexts of NewInbound, or Open panics.
//
// The errors are ErrShort, ErrReplay, ErrAuth, ErrExpired, ErrPadding and ErrWiped. After ErrAuth and
// ErrPadding the content of pkt is undefined.
func (in *Inbound) Open(ctx int, pkt []byte) (inner []byte, next uint8, err error) {
	inner, next, _, err = in.OpenSeq(ctx, pkt)
	return inner, next, err
}

// OpenSeq is Open for who needs the packet's sequence number, all 64 bits of it.
func (in *Inbound) OpenSeq(ctx int, pkt []byte) (inner []byte, next uint8, seq uint64, err error) {
	c, err := in.keys.get(&in.slots, ctx)
	if err != nil {
		return nil, 0, 0, err
	}

	front, tail := int(in.shape.front), len(pkt)-int(in.shape.icv)
	if tail-front < trailerLen {
		return nil, 0, 0, ErrShort
	}
	if (tail-front)&(int(in.shape.block)-1) != 0 {
		return nil, 0, 0, ErrShort
	}

	seq, ok := in.admit(binary.BigEndian.Uint32(pkt[4:]))
	if !ok {
		return nil, 0, 0, ErrReplay
	}

	if !c.do.open(pkt, seq, front, tail) {
		return nil, 0, 0, ErrAuth
	}
	inner, next, padOK := trim(pkt[front:tail])
	if err := in.accept(seq, len(inner), padOK); err != nil {
		return nil, 0, 0, err
	}
	return inner, next, seq, nil
}

// admit finds the whole sequence number of a packet that carries its low 32 bits, and
// whether the window would take it. A number ahead of the window, as nearly all are,
// needs no lock: accept asks again.
func (in *Inbound) admit(low uint32) (seq uint64, ok bool) {
	seq = uint64(low)
	if in.esn {
		if seq, ok = in.win.infer(low); !ok {
			return 0, false
		}
	}
	if seq > in.win.top.Load() {
		return seq, true
	}
	in.mu.Lock()
	ok = in.win.check(seq)
	in.mu.Unlock()
	return seq, ok
}

// accept marks an authentic packet's number as seen, if it is new and the hard limit lets it
// pass; a packet whose padding is right is counted with its n octets.
func (in *Inbound) accept(seq uint64, n int, padOK bool) (err error) {
	in.mu.Lock()
	switch {
	case in.limited && padOK && !in.lim.allows(in.usage, uint64(n)):
		err = ErrExpired
	case !in.win.advance(seq):
		err = ErrReplay
	case !padOK:
		err = ErrPadding
	default:
		in.usage.Packets++
		in.usage.Bytes += uint64(n)
		if in.limited && in.lim.reached(in.usage) {
			in.lim.due.Store(true)
		}
	}
	in.mu.Unlock()
	return err
}

// trim takes trailer and padding off a decrypted payload of at least 2 octets (RFC 4303
// sections 2.4 and 3.4.4.1): the padding must be 1, 2, 3 ...
func trim(text []byte) (inner []byte, next uint8, ok bool) {
	n := len(text) - trailerLen
	padLen, next := int(text[n]), text[n+1]
	if padLen > n {
		return nil, 0, false
	}
	inner = text[:n-padLen]
	var diff byte
	for i, b := range text[n-padLen : n] {
		diff |= b ^ byte(i+1)
	}
	return inner, next, diff == 0
}

// Limited tells whether the SA has limits in packets or octets.
func (in *Inbound) Limited() bool { return in.limited }

// Due tells whether the SA has reached its soft limit.
func (in *Inbound) Due() bool { return in.limited && in.lim.due.Load() }

// Usage returns what has been opened.
func (in *Inbound) Usage() Usage {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.usage
}

// Wipe forgets the keys; Open answers ErrWiped from then on, a packet that is being opened
// at this moment is finished. Own copies of keys are overwritten. The key schedules
// inside Go's cipher types cannot be: they are dropped and left to the collector.
func (in *Inbound) Wipe() { in.keys.wipe(&in.slots) }
