package ike

// NAT traversal (RFC 7296 section 2.23): each side tells a hash of the addresses that it
// sees on its side; what does not match on the other has been translated on the way.

// natNotifies adds the two NAT detection notifies for a message that travels along p.
// With force our source hash is wrong on purpose, which makes the peer believe in a NAT
// and both sides use UDP encapsulation.
func (m *Machine) natNotifies(b *Builder, sa *ikeSA, p Path) {
	src := natHash(sa.spiI, sa.spiR, p.Local)
	if sa.force {
		src[0] ^= 0xff
	}
	dst := natHash(sa.spiI, sa.spiR, p.Remote)
	b.Notify(NotifyNATDetectionSourceIP, ProtoNone, nil, src[:])
	b.Notify(NotifyNATDetectionDestinationIP, ProtoNone, nil, dst[:])
}

// natDetect compares the peer's notifies in m.msg, which came along p, with what we see.
// spiR is the responder's SPI that the peer hashed: 0 in a request.
func (m *Machine) natDetect(sa *ikeSA, p Path, spiR uint64) {
	local, remote := natHash(sa.spiI, spiR, p.Local), natHash(sa.spiI, spiR, p.Remote)
	var sources, matches, destinations int
	var hit bool
	m.msg.EachNotify(func(n Notify) {
		switch n.Type {
		case NotifyNATDetectionSourceIP:
			if sources++; string(n.Data) == string(remote[:]) {
				matches++
			}
		case NotifyNATDetectionDestinationIP:
			if destinations++; string(n.Data) == string(local[:]) {
				hit = true
			}
		}
	})
	sa.natKnown = sources > 0 && destinations > 0
	if !sa.natKnown {
		return
	}
	sa.natPeer = matches == 0
	sa.natLocal = !hit
	if sa.force {
		sa.natLocal = true // the peer has been told so
	}
	if sa.natPeer || sa.natLocal {
		text := "in front of both"
		switch {
		case !sa.natLocal:
			text = "in front of the peer"
		case !sa.natPeer:
			text = "in front of us"
		}
		m.event(Event{Kind: EvNAT, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: text})
	}
}

// floated returns p moved to the NAT traversal ports.
func (m *Machine) floated(p Path) Path {
	if p.NATT {
		return p
	}
	p.NATT = true
	p.Local = withPort(p.Local, m.ports.NATT)
	p.Remote = withPort(p.Remote, 4500)
	return p
}

// follow takes over the address that a fresh, authentic message of the peer came from, if
// the peer is behind a NAT, which may have given it a new mapping, and we are not (RFC 7296
// section 2.23).
func (m *Machine) follow(sa *ikeSA, p Path) {
	if sa.state == StateConnecting || !sa.natPeer || sa.natLocal || !p.NATT || p == sa.path {
		return
	}
	sa.path = p
	for i := range m.children {
		if c := &m.children[i]; c.state != ChildFree && c.ike == sa.slot && !c.outGone {
			m.out = append(m.out, Output{Kind: OutMoveSA, SPI: c.spiOut, Inbound: c.spiIn, Path: p})
		}
	}
	m.event(Event{Kind: EvMoved, Conn: sa.connName(), IKE: sa.unique, Path: p})
}

// cmdMoved follows the data path, which has seen an authentic packet of a CHILD SA.
func (m *Machine) cmdMoved(c *Command) {
	for i := range m.children {
		if k := &m.children[i]; k.state != ChildFree && k.spiIn == c.SPI {
			m.follow(&m.sas[k.ike], c.Path)
			return
		}
	}
}
