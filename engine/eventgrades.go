package engine

import (
	"time"

	"postern/engine/log"
	"postern/ike"
)

// eventPlaces says where the line of an event stands in strongSwan's division, if not where
// its level puts it: SAs that come and go are for an audit, and messages are told to whoever
// listens, though they are not written.
var eventPlaces = [...]struct {
	kind  ike.EventKind
	area  log.Area
	grade log.Grade
}{
	{ike.EvIKEUp, log.IKE, log.Audit},
	{ike.EvIKEDown, log.IKE, log.Audit},
	{ike.EvIKERekeyed, log.IKE, log.Audit},
	{ike.EvChildUp, log.IKE, log.Audit},
	{ike.EvChildDown, log.IKE, log.Audit},
	{ike.EvChildRekeyed, log.IKE, log.Audit},
	{ike.EvInitiate, log.IKE, log.Audit},
	{ike.EvRetransmit, log.IKE, log.Control},
	{ike.EvDropped, log.Packets, log.Control},
	{ike.EvCookies, log.Packets, log.Control},
	{ike.EvTrace, log.Messages, log.Control},
	{ike.EvTrust, log.IKEConfig, log.Control},
}

// place appends to the fields of an event's line what its level does not tell, and returns the
// line's area.
func place(k ike.EventKind, f []log.Field) (log.Area, []log.Field) {
	for i := range eventPlaces {
		if p := &eventPlaces[i]; p.kind == k {
			return p.area, append(f, log.At(p.grade))
		}
	}
	return log.IKE, f
}

// Traces for listeners alone: anybody can provoke messages at any rate, and nobody reads so fast.
const (
	traceBurst = 64
	traceEvery = 20 * time.Millisecond
)

// traceBudget tells whether one more message may be described for listeners.
type traceBudget struct {
	spent time.Duration // the time up to which the budget is used up, less the burst
}

// allow takes one piece of the budget at now.
func (b *traceBudget) allow(now time.Duration) bool {
	b.spent = max(b.spent, now-traceBurst*traceEvery)
	if b.spent > now-traceEvery {
		return false
	}
	b.spent += traceEvery
	return true
}

// traces tells whether the machine is to describe a message: for the log, or for listeners.
func (l *ikeLoop) traces() bool {
	return l.log.Writes(log.IKE, log.Debug) || l.log.Enabled(log.IKE, log.Debug) && l.traced.allow(l.now().Mono)
}
