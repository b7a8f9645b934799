package esp

import (
	"math/bits"
	"sync/atomic"
)

// Limits of the replay window, in packets.
const (
	// MinWindow is the size that RFC 4303 section 3.4.3 says should be the default.
	MinWindow = 64
	// MaxWindow keeps the bitmap of one SA at 1 KiB. It covers what multi-core senders
	// and links of several paths reorder at rates that user space reaches.
	MaxWindow = 4096
)

const (
	wordBits  = 32 // the same on every machine, so that every machine runs the same code
	wordShift = 5
)

// window is the receiver's anti-replay window (RFC 4303 section 3.4.3) as RFC 6479
// builds it: a ring of words with one block more than the window needs, so that moving
// ahead clears whole words and never shifts bits.
//
//	       top-size+1                  top
//	           |<------- size -------->|
//	...old | . . 1 0 1 1 . . | . . . 1 1 | next word, cleared on arrival
//
// It works on 64-bit numbers; infer makes them of the 32 bits that a packet carries. A
// size of 0 switches the check off, and top is still kept. It has no lock: its SA has one,
// which check and advance need. infer needs none, and neither does who only asks whether a
// number is above top: top never falls.
type window struct {
	size uint32
	mask uint32 // len(ring)-1
	ring []uint32

	// What changes is apart from what does not.
	top atomic.Uint64 // the highest number that has been accepted; 0: none yet
	own [8]uint32     // the ring of up to 224 packets, beside top in memory
}

// init makes an empty window of size packets: 0, or MinWindow to MaxWindow.
func (w *window) init(size int) {
	if size == 0 {
		return
	}
	words := (size+wordBits-1)/wordBits + 1
	n := 1 << bits.Len(uint(words-1))
	w.size, w.mask, w.ring = uint32(size), uint32(n-1), w.own[:]
	if n > len(w.own) {
		w.ring = make([]uint32, n)
	}
	w.ring = w.ring[:n]
}

// infer returns the whole sequence number of a packet that carries its low 32 bits (RFC
// 4303 appendix A2.2). ok is false where the number would lie past 2^64-1.
//
// In the very first subspace the RFC's "Th - 1" does not exist; what looks like a number
// from there can only be one far ahead in this subspace, and the integrity check decides.
// With the check off there is no window to place the number by, and the nearest candidate
// to top is taken, so that reordering does no harm.
func (w *window) infer(low uint32) (seq uint64, ok bool) {
	top, size := w.top.Load(), w.size
	if size == 0 {
		size = 1 << 31
	}
	th, tl := uint32(top>>32), uint32(top)
	bottom := tl - size + 1 // modulo 2^32, as in the appendix
	switch {
	case tl >= size-1: // case A: the window lies in one subspace
		if low < bottom {
			if th == 1<<32-1 {
				return 0, false
			}
			th++
		}
	case low >= bottom && th > 0: // case B: it began in the subspace before
		th--
	}
	return uint64(th)<<32 | uint64(low), true
}

// check tells whether seq is new. It changes nothing: the packet is not authentic yet.
func (w *window) check(seq uint64) bool {
	top := w.top.Load()
	switch {
	case w.size == 0 || seq > top:
		return true
	case seq == 0 || top-seq >= uint64(w.size):
		return false
	}
	return w.ring[uint32(seq>>wordShift)&w.mask]&(1<<(seq%wordBits)) == 0
}

// advance marks an authentic packet's number as seen and tells whether it was new. It
// checks again, because the same packet may have been verified twice at the same time.
func (w *window) advance(seq uint64) bool {
	top := w.top.Load()
	switch {
	case w.size == 0:
		w.top.Store(max(top, seq))
		return true
	case seq <= top:
		if !w.check(seq) {
			return false
		}
	default:
		from, to := top>>wordShift, seq>>wordShift
		if to-from > uint64(w.mask) {
			clear(w.ring)
		} else {
			for i := from + 1; i <= to; i++ {
				w.ring[uint32(i)&w.mask] = 0
			}
		}
		w.top.Store(seq)
	}
	w.ring[uint32(seq>>wordShift)&w.mask] |= 1 << (seq % wordBits)
	return true
}
