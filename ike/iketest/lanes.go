package iketest

import (
	"slices"
	"time"

	"postern/esp"
	"postern/ike"
)

// Lanes: hosts send the packets of a child that has lanes through all of them in turn, and ask
// for an SA for those that have none.

// inLane returns the SA for the next packet of a flow that first would carry, or nil, and what
// to ask for: nil if there is nothing.
func (h *Host) inLane(first *outSA, flow *esp.Flow) (o *outSA, ask *ike.Command) {
	cfg := h.check.child(first.sa.Conn, first.sa.Child)
	lane := uint8(0)
	if cfg != nil {
		lane = uint8(len(h.sim.packets) % (cfg.Lanes + 1))
	}
	for _, want := range []uint8{lane, 0} {
		i := slices.IndexFunc(h.outs, func(o *outSA) bool {
			return !o.standby && o.sa.Lane == want && o.sa.Child == first.sa.Child && esp.MatchFlow(o.sa.LocalTS, o.sa.RemoteTS, flow)
		})
		if i >= 0 {
			o = h.outs[i]
			break
		}
	}
	if o == nil && !first.sa.PerCPU {
		o = first
	}
	if o == nil {
		lane = 0 // which all can use
	} else if o.sa.Lane == lane || cfg == nil || cfg.Lanes == 0 {
		return o, nil
	}
	return o, &ike.Command{Kind: ike.CmdAcquire, Conn: first.sa.Conn, Child: first.sa.Child, Flow: *flow, Grow: true, Lane: lane}
}

// grow asks for an SA for a lane, but for any no more than once a second.
func (h *Host) grow(c *ike.Command) {
	if h.sim.now-h.grown < time.Second {
		return
	}
	h.grown = h.sim.now
	h.sim.stats.Grown++
	h.note("a packet wants lane %d of %s", c.Lane, c.Child)
	h.step(func(now ike.Time) { h.M.Command(now, *c) })
}
