package esp

import (
	"sync"
	"sync/atomic"
)

// limits are those in packets and octets of one end of an SA. Most SAs have none, so they
// are apart from what every packet needs.
type limits struct {
	soft, hard Usage // all ones where there is no limit

	mu     sync.Mutex // outbound: of octets, and held while numbers are reserved
	octets uint64     // outbound: reserved
	due    atomic.Bool
}

// newLimits returns the limits of sa, nil if it has none.
func newLimits(sa *SA) *limits {
	if sa.Soft == (Usage{}) && sa.Hard == (Usage{}) {
		return nil
	}
	return &limits{soft: sa.Soft.orNever(), hard: sa.Hard.orNever()}
}

// allows tells whether after u a packet of n octets stays within the hard limit.
func (l *limits) allows(u Usage, n uint64) bool {
	return u.Packets < l.hard.Packets && n <= l.hard.Bytes-u.Bytes
}

// reached tells whether u has reached the soft limit.
func (l *limits) reached(u Usage) bool {
	return u.Packets >= l.soft.Packets || u.Bytes >= l.soft.Bytes
}

// Limited tells whether the SA has limits in packets or octets.
func (o *Outbound) Limited() bool { return o.limited }

// Left returns what Reserve would still grant.
func (o *Outbound) Left() Usage {
	if !o.limited {
		return Usage{Packets: o.limit() - o.seq.Load(), Bytes: never}
	}
	o.lim.mu.Lock()
	defer o.lim.mu.Unlock()
	return o.left()
}

// left is Left of an SA with limits, under their lock.
func (o *Outbound) left() Usage {
	u := Usage{Packets: min(o.limit(), o.lim.hard.Packets) - o.seq.Load(), Bytes: never}
	if o.lim.hard.Bytes != never {
		u.Bytes = o.lim.hard.Bytes - o.lim.octets
	}
	return u
}

// reserveLimited is Reserve of an SA with limits.
func (o *Outbound) reserveLimited(n, octets int) (first uint64, granted int) {
	l := o.lim
	l.mu.Lock()
	defer l.mu.Unlock()
	left := o.left()
	if n == 0 || uint64(n) > left.Packets || uint64(octets) > left.Bytes {
		return 0, 0
	}
	l.octets += uint64(octets)
	last := o.seq.Add(uint64(n))
	return last - uint64(n) + 1, n
}

// Refusal returns why Reserve granted nothing: ErrExpired for an SA with limits that still
// has numbers, ErrSeqExhausted otherwise.
func (o *Outbound) Refusal() error {
	if o.limited && o.seq.Load() != o.limit() {
		return ErrExpired
	}
	return ErrSeqExhausted
}

// Due tells whether the SA has reached its soft limit.
func (o *Outbound) Due() bool {
	if !o.limited {
		return false
	}
	o.lim.mu.Lock()
	defer o.lim.mu.Unlock()
	return o.lim.reached(Usage{Packets: o.seq.Load(), Bytes: o.lim.octets})
}
