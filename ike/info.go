package ike

import "errors"

// INFORMATIONAL (RFC 7296 section 1.4): deletes, errors, and the empty one that asks
// whether the peer is alive.

// maxGone is how many deleted SPIs are remembered for the answer to our CREATE_CHILD_SA:
// a peer that made more SAs than the one meanwhile is not one that we lose track of.
const maxGone = 8

// infoRequest handles the peer's INFORMATIONAL request.
func (m *Machine) infoRequest(sa *ikeSA, p Path) {
	m.learnWindow(sa)
	var spis [2][]uint32 // of ESP and of AH
	var over error
	for i := range m.msg.Payloads {
		pl := &m.msg.Payloads[i]
		switch pl.Type {
		case PayloadDelete:
			d, err := ParseDelete(pl.Body)
			switch {
			case err != nil:
				no := &refusal{t: NotifyInvalidSyntax, err: err}
				m.refuse(sa, p, ExchangeInformational, no)
				m.destroy(sa, err)
				return
			case d.Proto == ProtoIKE:
				over = ErrPeerDeleted
			case d.Proto == ProtoESP || d.Proto == ProtoAH:
				for _, spi := range d.SPIs {
					c := m.childOf(sa, d.Proto, spi)
					if c == nil {
						// It may be one that an unanswered request of ours has made.
						sa.outstanding(func(r *request) bool {
							if (r.exchange == ExchangeCreateChild || r.exchange == ExchangeFollowupKE) && len(r.gone) < maxGone {
								r.gone = append(r.gone, spi)
							}
							return false
						})
					}
					if c != nil {
						if c.state != ChildDeleting && !c.outGone {
							i := ProtoESP - d.Proto
							spis[i] = append(spis[i], c.spiIn)
						}
						m.deletedByPeer(c)
					}
				}
			}
		case PayloadNotify:
			n, err := ParseNotify(pl.Body)
			if err == nil {
				m.readLifetime(sa, &n)
			}
			if err != nil || !n.Type.IsError() {
				continue // unknown status notifies are to be ignored (section 3.10.1)
			}
			err = &NotifyError{n.Type, ""}
			m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: p, Err: err})
			if n.Type == NotifyAuthenticationFailed || n.Type == NotifyInvalidSyntax {
				over = err // section 2.21.2 and 2.21.3
			}
		}
	}
	sa.takeToken(m.sentToken())
	_, ticket := m.msg.FindNotify(NotifyTicketRequest)
	var addresses func(*Builder)
	if over == nil {
		addresses = m.mobikeRequest(sa, p)
	}
	if over == ErrPeerDeleted {
		m.useHeirs(sa)
	}
	m.respond(sa, p, ExchangeInformational, func(b *Builder) {
		for i, list := range spis {
			if over == nil && len(list) > 0 {
				b.Delete(ProtoESP-Protocol(i), list)
			}
		}
		if ticket && over == nil && !sa.origin.ours {
			m.ticketNotify(b, sa)
		}
		if addresses != nil {
			addresses(b)
		}
		if over == nil {
			m.infoCP(b)
		}
	})
	if over == nil {
		m.sessionRedirected(sa, p)
		return
	}
	if sa.collision.slot != 0 {
		if m.outlives(sa) {
			return
		}
		m.adoptRival(sa)
	}
	switch {
	case sa.state == StateRekeyed || sa.state == StateDeleting && sa.closeErr != nil:
		over = sa.closeErr
	}
	m.destroy(sa, over)
}

// deletedByPeer takes a CHILD SA out because the peer says so. If both sides delete it at
// the same time, ours goes on and finds nothing left.
func (m *Machine) deletedByPeer(c *childSA) {
	sa := &m.sas[c.ike]
	if r := sa.rivaled(c.unique); r != nil {
		r.rival = 0 // the peer has lost the collision, and our answer is on its way
		m.retire(c)
		return
	}
	if c.state == ChildInstalled || c.state == ChildRekeying {
		if rival := m.rivalOf(c); rival != nil {
			m.superseded(c, rival) // the peer's own rekeying was faster
		} else {
			m.childLost(c, ErrPeerDeleted)
			m.childDown(c, ErrPeerDeleted)
			m.dropChildTasks(sa, c)
		}
	}
	m.retire(c)
}

// deleteChildStart sends the DELETE for one CHILD SA. It names the SPI of our inbound SA,
// the one that the peer uses (section 1.4.1).
func (m *Machine) deleteChildStart(sa *ikeSA, t task) {
	c := m.findChild(t.target)
	if c == nil || c.ike != sa.slot || c.state != ChildDeleting {
		m.settle(t.waiters, nil)
		return
	}
	m.deleteOut(c)
	sa.req = request{task: t}
	m.sendRequest(sa, ExchangeInformational, func(b *Builder) { b.Delete(c.proto(), []uint32{c.spiIn}) })
}

// infoResponse handles the response to our INFORMATIONAL request. What its Delete payloads
// name is the other half of what we deleted.
func (m *Machine) infoResponse(sa *ikeSA, p Path) {
	m.learnWindow(sa)
	asked := sa.req.asked
	t := m.answered(sa)
	m.settle(t.waiters, nil)
	sa.takeToken(m.sentToken())
	switch t.kind {
	case taskDeleteIKE:
		err := sa.closeErr
		if err == nil {
			err = ErrTerminated
		}
		m.destroy(sa, err)
	case taskDeleteChild:
		if c := m.findChild(t.target); c != nil && c.state == ChildDeleting {
			m.retire(c)
		}
	case taskTell:
		sa.qcd.tell = false
		m.takeTicket(sa)
	case taskLiveness:
		if err := m.notifyError(); err != nil {
			m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Err: err})
		}
		fallthrough
	case taskUpdate, taskRoutable, taskAddresses:
		m.mobikeResponse(sa, p, t.kind, asked)
	}
}

// isNotify tells whether err is the peer's error notify of that type.
func isNotify(err error, t NotifyType) bool {
	var n *NotifyError
	return errors.As(err, &n) && n.Type == t
}
