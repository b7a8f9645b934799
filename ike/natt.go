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
	if sources == 0 || destinations == 0 {
		return
	}
	local0, peer0 := sa.natLocal, sa.natPeer
	sa.natKnown = true
	sa.natPeer = matches == 0
	sa.natLocal = !hit
	sa.mobike.faked = sa.force && hit
	if sa.force {
		sa.natLocal = true // the peer has been told so
	}
	if (sa.natPeer || sa.natLocal) && (sa.natPeer != peer0 || sa.natLocal != local0) {
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
// the peer is behind a NAT, which may have given it a new mapping (RFC 7296 section 2.23).
// A host that is behind a NAT itself should not, because one packet that somebody has
// redirected would break the connection: it asks first whether the peer answers from there.
func (m *Machine) follow(sa *ikeSA, p Path) {
	if sa.state == StateConnecting || !sa.natPeer || !p.NATT || p.Remote.Port() == 0 || p == sa.path || !m.passable(sa, p) {
		return // what has come to an address that has gone since says nothing
	}
	if sa.natLocal && !sa.mobike.faked {
		sa.mobike.suspect = p
		if sa.state == StateEstablished && sa.idle() {
			m.queue(sa, task{kind: taskLiveness})
		}
		return
	}
	m.setPath(sa, p)
	m.tell(Event{Kind: EvMoved, Conn: sa.connName(), IKE: sa.unique, Path: p})
}

// cmdMoved follows the data path, which has seen an authentic packet of a CHILD SA. With
// MOBIKE that is all that shows a new mapping (RFC 4555 section 3.8); but the last packets
// from the address before come late.
func (m *Machine) cmdMoved(c *Command) {
	for i := range m.children {
		if k := &m.children[i]; k.state != ChildFree && k.spiIn == c.SPI {
			sa := &m.sas[k.ike]
			late := sa.mobike.movedAt != 0 && m.now.Mono-sa.mobike.movedAt < settleTime
			if !sa.mobike.on || !sa.origin.ours && !sa.mobike.checking && !late {
				m.follow(sa, c.Path)
			}
			return
		}
	}
}
