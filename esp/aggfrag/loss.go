package aggfrag

import (
	"math"
	"time"
)

// reorderMin is how many later payloads must have arrived before a missing one is taken as lost
// (RFC 5348 section 5.1).
const reorderMin = 3

// lossIntervals is how many loss intervals are averaged, and weights how much each counts, the
// latest first: 1 to 0.2 in fifths (RFC 5348 section 5.4).
const lossIntervals = 8

var weights = [lossIntervals]uint64{5, 5, 5, 5, 4, 3, 2, 1}

// losses is what a receiver knows of what it has not received: the loss event rate of RFC
// 5348 section 5, which RFC 9347 appendix B uses. A loss event is all that is lost within a round
// trip; a loss interval is the number of payloads from the first of one event to the first of the
// next.
//
//	         interval ago[0]           the open one
//	    |<-------------------->|<----------------------->|
//	... x . x . . . . . . . .  x . . . . . . . . . . . . done  ?  ahead[0] ahead[1]
//	    one event              start, at startAt
type losses struct {
	begun  bool
	done   uint64 // all payloads up to it have arrived or are lost
	doneAt time.Duration
	ahead  [reorderMin]arrival // those after a gap, in their order
	n      int

	start   uint64 // the first payload of the latest event
	startAt time.Duration
	ago     [lossIntervals]uint32
	known   int    // how many of them there are; 0: there was no event yet
	marks   uint16 // bit i: event i, the latest being 0, was a congestion mark

	// The rate before the first event.
	winAt  time.Duration
	winSeq uint64
	perSec float64
}

type arrival struct {
	seq         uint64
	at          time.Duration
	mark, probe bool
}

// arrived takes note of a payload. mark: it had a congestion mark, and counts as lost; probe: what
// is missing before it was made to be lost.
func (l *losses) arrived(now time.Duration, seq uint64, mark, probe bool, rtt time.Duration) {
	if !l.begun {
		open := l.done - l.start // of an SA before this one
		l.begun, l.n = true, 0
		l.done, l.doneAt = seq-1, now
		l.start = l.done - open
		l.winAt, l.winSeq = now, seq
	}
	if seq <= l.done {
		return
	}
	at := l.n
	for at > 0 && l.ahead[at-1].seq >= seq {
		at--
		if l.ahead[at].seq == seq {
			return
		}
	}
	copy(l.ahead[at+1:], l.ahead[at:l.n])
	l.ahead[at] = arrival{seq, now, mark, probe}
	l.n++
	if elapsed := now - l.winAt; l.known == 0 && rtt > 0 && elapsed >= rtt {
		l.perSec = float64(seq-min(seq, l.winSeq)) / elapsed.Seconds()
		l.winAt, l.winSeq = now, seq
	}
	for l.n > 0 && (l.ahead[0].seq == l.done+1 || l.n == reorderMin) {
		a := l.ahead[0]
		copy(l.ahead[:], l.ahead[1:l.n])
		l.n--
		if a.seq != l.done+1 && !a.probe {
			l.gap(a, rtt)
		}
		l.done, l.doneAt = a.seq, max(l.doneAt, a.at)
		if a.mark && (l.known == 0 || a.at > l.startAt+rtt) {
			l.event(a.seq, a.at, rtt, true)
		}
	}
}

// gap makes events of the payloads between done and a, which are lost. They are taken to have
// been due at equal distances (RFC 5348 section 5.2). Without a round trip time they are one event.
func (l *losses) gap(a arrival, rtt time.Duration) {
	span, length := float64(a.seq-l.done), float64(max(0, a.at-l.doneAt))
	due := func(s uint64) time.Duration { return l.doneAt + time.Duration(length/span*float64(s-l.done)) }
	for s := l.done + 1; s < a.seq; s++ {
		at := due(s)
		if until := l.startAt + rtt; l.known > 0 && at <= until {
			// The first that is due after the event. Rounding may be off by one either way.
			steps := float64(until-l.doneAt)/length*span + 1
			if length == 0 || steps >= span {
				return
			}
			s = max(s, l.done+uint64(steps))
			at = max(until+1, due(s))
		}
		l.event(s, at, rtt, false)
		if rtt == 0 || length == 0 {
			return
		}
		// Of a very long gap the last events are enough: more are not averaged.
		if left := (lossIntervals + 1) * (float64(rtt)/length*span + 1); left < span && a.seq-s > uint64(left) {
			s = a.seq - uint64(left)
		}
	}
}

// event begins a loss event with payload seq.
func (l *losses) event(seq uint64, at, rtt time.Duration, mark bool) {
	n := seq - l.start
	if l.known == 0 {
		n = l.firstInterval(seq, rtt)
	}
	copy(l.ago[1:], l.ago[:])
	l.ago[0] = uint32(max(1, min(n, math.MaxUint32)))
	l.known = min(l.known+1, lossIntervals)
	l.start, l.startAt = seq, at
	l.marks <<= 1
	if mark {
		l.marks |= 1
	}
}

// firstInterval returns how long the interval before the first event shall have been: so that the rate
// which follows from it is the one at which payloads arrived (RFC 5348 section 6.3.1). How many
// there were says little, because the sender was still looking for its rate.
func (l *losses) firstInterval(seq uint64, rtt time.Duration) uint64 {
	target := l.perSec * rtt.Seconds()
	if target == 0 {
		return seq - min(seq, l.winSeq)
	}
	lo, hi := uint64(1), uint64(math.MaxUint32)
	for lo < hi {
		mid := (lo + hi) / 2
		if perRTT(1/float64(mid)) >= target {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// rate returns the inverse of the loss event rate, the average loss interval (RFC 5348 section
// 5.4): the open interval counts only where that makes it longer. 0: there was no loss. marks
// tells whether congestion marks have gone into it.
func (l *losses) rate() (inverse uint32, marks bool) {
	if l.known == 0 {
		return 0, false
	}
	interval := min(l.done-l.start+1, math.MaxUint32)
	var with, without, sum uint64
	for i := range l.known {
		with += interval * weights[i]
		interval = uint64(l.ago[i])
		without += interval * weights[i]
		sum += weights[i]
	}
	return uint32(max(1, max(with, without)/sum)), l.marks&(1<<(l.known+1)-1) != 0
}

// perRTT returns how many payloads of one size a sender may send in a round trip at loss event rate p: the
// equation of RFC 9347 appendix B, which is that of RFC 5348 section 3.1 for payloads.
func perRTT(p float64) float64 {
	return 1 / (math.Sqrt(2*p/3) + 12*math.Sqrt(3*p/8)*p*(1+32*p*p))
}
