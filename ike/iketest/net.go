package iketest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"postern/ike"
)

// kind tells the two sorts of datagrams apart.
type kind uint8

const (
	ikes kind = iota // an IKE message
	esps             // an ESP packet, raw (ports 0) or in UDP
)

const (
	portIKE  = 500
	portNATT = 4500
)

// datagram is something on the network. The non-ESP marker is left out: kind says what
// it would say.
type datagram struct {
	number   uint64
	kind     kind
	src, dst netip.AddrPort
	data     []byte
	packet   *packet // of ESP: what is inside
	overtook *uint64 // number of the newest datagram of the link that has arrived
}

// NAT is a box between a host and everybody else. It gives each inside address and port
// an outside port of its own on first use; the forwarded ones keep theirs. It lets in
// whatever comes for a port that is given.
type NAT struct {
	Outside netip.Addr
	Forward bool // 500 and 4500 lead in from the start, for a responder

	// Only, if it is set, is the one address of the host that the box is in front of.
	Only netip.Addr

	next uint16
	maps []mapping
}

// before returns the NAT in front of an address of the host, or nil.
func (h *Host) before(a netip.Addr) *NAT {
	if h.NAT != nil && (!h.NAT.Only.IsValid() || h.NAT.Only == a) {
		return h.NAT
	}
	return nil
}

type mapping struct {
	inside  netip.AddrPort
	outside uint16
}

// Rebind makes the box forget what it has given away, as after a restart or an idle
// time. With an address, it has a new one from now on.
func (n *NAT) Rebind(outside netip.Addr) {
	n.maps = nil
	if outside.IsValid() {
		n.Outside = outside
	}
}

// out translates the source of a datagram that leaves.
func (n *NAT) out(src netip.AddrPort) netip.AddrPort {
	for _, m := range n.maps {
		if m.inside == src {
			return netip.AddrPortFrom(n.Outside, m.outside)
		}
	}
	if n.Forward && (src.Port() == portIKE || src.Port() == portNATT) {
		return netip.AddrPortFrom(n.Outside, src.Port())
	}
	if n.next == 0 {
		n.next = 30000
	}
	n.next += 7
	n.maps = append(n.maps, mapping{src, n.next})
	return netip.AddrPortFrom(n.Outside, n.next)
}

// in translates the destination of a datagram that arrives; ok is false when nobody
// inside is meant.
func (n *NAT) in(dst netip.AddrPort, inside netip.Addr) (netip.AddrPort, bool) {
	for _, m := range n.maps {
		if m.outside == dst.Port() {
			return m.inside, true
		}
	}
	if n.Forward && (dst.Port() == portIKE || dst.Port() == portNATT) {
		return netip.AddrPortFrom(inside, dst.Port()), true
	}
	return dst, false
}

// transmit puts a datagram of a host on the network.
func (s *Sim) transmit(from *Host, d datagram) {
	s.datagrams++
	d.number = s.datagrams
	if nat := from.before(d.src.Addr()); nat != nil {
		if d.src.Port() == 0 && nat.Only.IsValid() {
			return // no such protocol there: the sides have yet to find out
		}
		if d.src.Port() == 0 {
			s.Fail("%s sends ESP without UDP encapsulation through the NAT in front of it", from.Name)
			return
		}
		d.src = nat.out(d.src)
	}
	to := s.owner(d.dst.Addr())
	ladder := func(mark string) {
		if s.ladder != nil && d.kind == ikes {
			name := "nobody"
			if to != nil {
				name = to.Name
			}
			s.note("%-4s --> %-4s %s  (%d, %v > %v)%s", from.Name, name, s.ladder.summary(&d), d.number, d.src, d.dst, mark)
		}
	}
	if d.kind == ikes {
		s.stats.Sent++
		if h, err := ike.ParseHeader(d.data); err == nil && h.Next == ike.PayloadSKF {
			s.stats.Fragments++
		}
	}
	if to == nil {
		ladder("  no such host")
		return
	}
	l := s.Link(from, to)
	if l.Cut || s.Block != nil && s.Block(d.src.Addr(), d.dst.Addr()) || s.chance(l.Loss) {
		ladder("  LOST")
		if d.kind == ikes {
			s.stats.Lost++
		}
		return
	}
	copies, mark := 1, ""
	if s.chance(l.Dup) {
		copies, mark = 2, "  TWICE"
		if d.kind == ikes {
			s.stats.Doubled++
		}
	}
	ladder(mark)
	for range copies {
		c := d
		c.data = slices.Clone(d.data)
		if d.kind == ikes {
			s.flying++
			c.overtook = &from.newest
		}
		s.After(l.Delay+s.between(l.Jitter), func() { s.arrive(from, to, c) })
	}
}

// owner returns the host that datagrams for an address reach.
func (s *Sim) owner(a netip.Addr) *Host {
	for _, h := range s.hosts {
		if h.NAT != nil && h.NAT.Outside == a || h.before(a) == nil && slices.Contains(h.Addrs, a) {
			return h
		}
	}
	return nil
}

// arrive hands a datagram to the host that it is for.
func (s *Sim) arrive(from, to *Host, d datagram) {
	late := false
	if d.kind == ikes {
		s.flying--
		if late = d.number < *d.overtook; late {
			s.stats.Overtaken++
		}
		*d.overtook = max(*d.overtook, d.number)
	}
	if to.NAT != nil && d.dst.Addr() == to.NAT.Outside {
		if d.dst.Port() == 0 && to.NAT.Only.IsValid() {
			return
		}
		if d.dst.Port() == 0 {
			s.Fail("ESP without UDP encapsulation arrives at the NAT in front of %s", to.Name)
			return
		}
		inside := to.NAT.Only
		if !inside.IsValid() && len(to.Addrs) > 0 {
			inside = to.Addrs[0]
		}
		dst, ok := to.NAT.in(d.dst, inside)
		if !ok {
			s.note("%-4s X    the NAT in front knows nobody at %v (%d)", to.Name, d.dst, d.number)
			return
		}
		d.dst = dst
	}
	if !slices.Contains(to.Addrs, d.dst.Addr()) || to.Down {
		return // it has moved on
	}
	if s.ladder != nil && d.kind == ikes {
		mark := ""
		if late {
			mark = ", late"
		}
		s.note("%-4s <-- %-4s %s  (%d%s)", to.Name, from.Name, s.ladder.summary(&d), d.number, mark)
	}
	to.receive(&d)
}

// Pair sets both directions of the way between two hosts alike.
func (s *Sim) Pair(a, b *Host, l Link) {
	*s.Link(a, b), *s.Link(b, a) = l, l
}

// Cut stops everything between two hosts, or lets it pass again.
func (s *Sim) Cut(a, b *Host, cut bool) {
	s.Link(a, b).Cut, s.Link(b, a).Cut = cut, cut
	s.note("     the way between %s and %s is %s", a.Name, b.Name, map[bool]string{true: "cut", false: "open"}[cut])
}

// String describes the link.
func (l Link) String() string {
	return fmt.Sprintf("loss %.0f%%, dup %.0f%%, %v+%v", l.Loss*100, l.Dup*100,
		l.Delay.Round(time.Millisecond), l.Jitter.Round(time.Millisecond))
}
