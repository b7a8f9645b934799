package iketest

import (
	"net/netip"
	"time"
)

// Flow is a pair of inner addresses whose packets a CHILD SA should carry.
type Flow struct {
	From, To *Host
	Src, Dst netip.Addr
	Port     uint16
	Child    string
}

func (f Flow) reverse() Flow {
	f.From, f.To, f.Src, f.Dst = f.To, f.From, f.Dst, f.Src
	return f
}

// Traffic sends packets both ways through a flow until the time is over, on average one
// per interval and direction. Where no SA wants a packet, it is dropped.
func (s *Sim) Traffic(f Flow, interval, until time.Duration) {
	var next func(f Flow)
	next = func(f Flow) {
		if s.now >= until {
			return
		}
		f.From.Send(f.Src, f.Dst, f.Port)
		s.After(s.between(2*interval)+1, func() { next(f) })
	}
	s.After(s.between(interval), func() { next(f) })
	s.After(s.between(interval), func() { next(f.reverse()) })
}

// Undelivered counts the packets of a child, sent in the given span of time, that have
// not been accepted.
func (s *Sim) Undelivered(from, to time.Duration) (lost, sent int) {
	for _, p := range s.packets {
		if p.sent >= from && p.sent < to {
			sent++
			if p.accepted == 0 {
				lost++
			}
		}
	}
	return lost, sent
}
