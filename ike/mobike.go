package ike

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// MOBIKE (RFC 4555): an IKE SA and its CHILD SAs move to other addresses. The initiator, by
// which the RFC means the side that connected first, decides; the responder follows when an
// authentic UPDATE_SA_ADDRESSES tells it to, and lets ESP go to the peer's new address only
// once the peer has answered from there.
//
//	initiator:  roam (addresses or routes changed)  -> setPath -> update ... updated
//	            retransmit (no answer)              -> detours ... heard -> setPath -> update
//	responder:  mobikeRequest -> peerMoved -> COOKIE2 ... routable -> moveChildren
//
// Which addresses may be used, and what happens without MOBIKE when ours has gone, is in
// roam.go.

const (
	// maxPeerAddrs is how many additional addresses of a peer are remembered.
	maxPeerAddrs = 16
	// maxOwnAddrs is how many additional addresses the peer is told.
	maxOwnAddrs = 8
	// cookie2Len is the length of our COOKIE2 (RFC 4555 section 4.2.5: 8 to 64).
	cookie2Len = 16
	// maxNATRetries is how often an update is repeated that the peer has refused because a
	// NAT changed it (section 3.9): somebody may have changed just one packet.
	maxNATRetries = 5
	// settleTime is how long after a move ESP packets from another address are taken for
	// late ones, and not for another move.
	settleTime = 2 * time.Second
)

// mobike is what an IKE SA knows about its paths.
type mobike struct {
	on       bool         // both sides support it
	first    netip.Addr   // the peer's, at which the IKE SA was established
	peers    []netip.Addr // further addresses of the peer, as it told last
	told     []netip.Addr // further addresses of ours, as the peer was told last
	unlisted netip.Addr   // our address, if it is on none of our interfaces
	stranded bool         // no path exists: nothing is sent until there is one
	moved    bool         // our address changed before IKE_AUTH was over
	movedAt  time.Duration
	faked    bool      // natLocal is only pretended, to force UDP encapsulation
	natSeen  string    // the NAT_DETECTION_DESTINATION_IP that the peer sent last
	refused  []Path    // the peer answered UNACCEPTABLE_ADDRESSES to these
	natTries int       // UNEXPECTED_NAT_DETECTED answers in a row
	suspect  Path      // without MOBIKE: where an authentic packet came from, to be checked
	checking bool      // the peer has yet to answer from its new address
	held     heldRoute // until then ESP goes on along this
	updates  newest    // requests of the peer to move the SAs
	lists    newest    // and those that told its further addresses
}

// newest is the message ID of the last request of a kind. With a window larger than one, an
// older request may come after it.
type newest struct {
	seen bool
	id   uint32
}

// take tells whether a request is newer than all before it.
func (n *newest) take(id uint32) bool {
	if n.seen && int32(id-n.id) < 0 {
		return false
	}
	n.seen, n.id = true, id
	return true
}

// heldRoute is the way of ESP as it was before the peer moved.
type heldRoute struct {
	path  Path
	encap bool
}

// asked is the part of a request that MOBIKE is about.
type asked struct {
	cookie2 string
	stale   bool   // the path has changed since the request was built
	detours []Path // where it was sent to beside the path of the IKE SA
}

// espRoute returns the way of the ESP packets.
func (sa *ikeSA) espRoute() heldRoute {
	if sa.mobike.checking {
		return sa.mobike.held
	}
	return heldRoute{sa.path, sa.encap()}
}

// leads tells whether we choose the path.
func (sa *ikeSA) leads() bool { return sa.mobike.on && sa.origin.ours }

// mobikeOffer adds to an IKE_AUTH message of ours that we have MOBIKE (RFC 4555 sections
// 3.2, 3.4 and 3.9).
func (m *Machine) mobikeOffer(b *Builder, sa *ikeSA) {
	if sa.conn.MOBIKE {
		b.Notify(NotifyMOBIKESupported, ProtoNone, nil, nil)
		m.addressNotifies(b, sa, false)
		if sa.initiator {
			m.protectNotify(b, sa)
		}
	}
}

// mobikeAgree takes the peer's word out of an IKE_AUTH message; spoiled tells that a NAT has
// changed the addresses of one that must not be changed.
func (m *Machine) mobikeAgree(sa *ikeSA, p Path) (spoiled bool) {
	if _, ok := m.msg.FindNotify(NotifyMOBIKESupported); !ok || !sa.conn.MOBIKE {
		return false
	}
	if m.natForbidden(p) {
		return true
	}
	sa.mobike.on = true
	sa.mobike.peers, _ = m.peerAddrs()
	return false
}

// natForbidden tells whether the message has a NO_NATS_ALLOWED that does not fit the
// addresses that it came with.
func (m *Machine) natForbidden(p Path) bool {
	n, ok := m.msg.FindNotify(NotifyNoNATsAllowed)
	return ok && string(n.Data) != string(noNATs(p.Remote, p.Local))
}

// noNATs returns the data of NO_NATS_ALLOWED (RFC 4555 section 4.2.6):
//
//	source address (4 or 16) | destination address | source port (2) | destination port (2)
func noNATs(from, to netip.AddrPort) []byte {
	d := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	d = binary.BigEndian.AppendUint16(d, from.Port())
	return binary.BigEndian.AppendUint16(d, to.Port())
}

// addressNotifies adds our further addresses. With whole, the peer learns also that there
// are none.
func (m *Machine) addressNotifies(b *Builder, sa *ikeSA, whole bool) {
	sa.mobike.told = m.furtherAddrs(sa)
	for _, a := range sa.mobike.told {
		t := NotifyAdditionalIP4Address
		if a.Is6() {
			t = NotifyAdditionalIP6Address
		}
		b.Notify(t, ProtoNone, nil, a.AsSlice())
	}
	if whole && len(sa.mobike.told) == 0 {
		b.Notify(NotifyNoAdditionalAddresses, ProtoNone, nil, nil)
	}
}

// protectNotify adds the prohibition of NATs to a request where NAT traversal is not used.
func (m *Machine) protectNotify(b *Builder, sa *ikeSA) {
	if !sa.natKnown {
		b.Notify(NotifyNoNATsAllowed, ProtoNone, nil, noNATs(sa.path.Local, sa.path.Remote))
	}
}

// peerAddrs returns the peer's further addresses of the message; said tells whether it
// speaks about them at all.
func (m *Machine) peerAddrs() (list []netip.Addr, said bool) {
	m.msg.EachNotify(func(n Notify) {
		switch n.Type {
		case NotifyAdditionalIP4Address, NotifyAdditionalIP6Address:
			said = true
			a, ok := netip.AddrFromSlice(n.Data)
			if ok && a.Is4() == (n.Type == NotifyAdditionalIP4Address) && routable(a) && !slices.Contains(list, a) && len(list) < maxPeerAddrs {
				list = append(list, a)
			}
		case NotifyNoAdditionalAddresses:
			said = true
		}
	})
	return list, said
}

// routable tells whether an address can be that of a peer.
func routable(a netip.Addr) bool {
	return !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// push puts an exchange about addresses in front of everything else that waits. One under
// way has been overtaken.
func (m *Machine) push(sa *ikeSA, kind taskKind) {
	if sa.state != StateEstablished || sa.closeErr != nil {
		return
	}
	if r := sa.outstanding(func(r *request) bool { return r.task.kind == kind }); r != nil {
		r.stale = true
	}
	if !slices.ContainsFunc(sa.tasks, func(t task) bool { return t.kind == kind }) {
		sa.tasks = slices.Insert(sa.tasks, 0, task{kind: kind})
	}
}

// setPath makes p the path of the IKE SA, and unless the peer has to be asked first, that
// of its CHILD SAs.
func (m *Machine) setPath(sa *ikeSA, p Path) {
	sa.frag.otherPath(sa.path, p)
	sa.path = p
	sa.mobike.movedAt = m.now.Mono
	if !sa.mobike.checking {
		m.moveChildren(sa)
		return
	}
	m.heldLeaves(sa)
}

// heldLeaves has ESP that still goes to where the peer was leave from an address of ours, if
// that from which it has left so far is gone.
func (m *Machine) heldLeaves(sa *ikeSA) {
	local, now := &sa.mobike.held.path.Local, sa.path.Local.Addr()
	list, known := m.env.Addresses()
	if !known || slices.Contains(list, local.Addr()) || local.Addr() == sa.mobike.unlisted || now.Is4() != local.Addr().Is4() || now == local.Addr() {
		return
	}
	*local = withAddr(*local, now)
	m.moveChildren(sa)
}

// moveChildren has the CHILD SAs use the way of ESP and its kind of encapsulation.
func (m *Machine) moveChildren(sa *ikeSA) {
	route := sa.espRoute()
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildFree || c.ike != sa.slot {
			continue
		}
		if c.stranded(route.path) {
			if c.state == ChildInstalled || c.state == ChildRekeying {
				m.closeChild(sa, c, ErrAddresses, nil)
				m.wishAgain(c.conn, c.cfg)
			}
			continue
		}
		if c.encap = route.encap; !c.outGone {
			m.out = append(m.out, Output{Kind: OutMoveSA, SPI: c.spiOut, Inbound: c.spiIn, Path: route.path, Encap: c.encap})
		}
	}
}

// moveTo changes over to a path: what is unanswered is repeated along it at once (RFC 4555
// section 3.5).
func (m *Machine) moveTo(sa *ikeSA, p Path) {
	m.setPath(sa, p)
	m.tell(Event{Kind: EvRoamed, Conn: sa.connName(), IKE: sa.unique, Path: p})
	m.resend(sa)
}

// resend repeats our requests along the path of the IKE SA at once and begins to count anew.
// It tells whether there are any.
func (m *Machine) resend(sa *ikeSA) (any bool) {
	sa.outstanding(func(r *request) bool {
		any = true
		m.repeat(sa, r)
		return false
	})
	m.rearm(sa)
	return any
}

// repeat sends one of our requests again, unless it has not been sent yet or its response is
// being processed.
func (m *Machine) repeat(sa *ikeSA, r *request) {
	if r.data == nil || r.due == 0 {
		return
	}
	d, _ := m.unanswered(sa, 0)
	r.tries, r.due = 0, m.now.Mono+d
	m.noteSent(sa, r)
	r.stale = r.stale || r.task.kind.ofAddresses()
	m.sendParts(sa.path, sa, r.data, r.cut, false)
}

// ofAddresses tells whether an exchange means something else on another path.
func (k taskKind) ofAddresses() bool {
	return k == taskUpdate || k == taskRoutable || k == taskAddresses
}

// updateStart sends UPDATE_SA_ADDRESSES.
func (m *Machine) updateStart(sa *ikeSA, t task) {
	sa.req = request{task: t, asked: asked{cookie2: m.cookie2()}}
	m.sendRequest(sa, ExchangeInformational, func(b *Builder) {
		b.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil)
		if sa.natKnown {
			m.natNotifies(b, sa, sa.path)
		}
		m.addressNotifies(b, sa, true)
		m.protectNotify(b, sa)
		b.Notify(NotifyCookie2, ProtoNone, nil, []byte(sa.req.cookie2))
	})
}

// routableStart asks the peer for an answer from its new address (RFC 4555 section 3.7).
func (m *Machine) routableStart(sa *ikeSA, t task) {
	if !sa.mobike.checking {
		return
	}
	sa.req = request{task: t, asked: asked{cookie2: m.cookie2()}}
	m.sendRequest(sa, ExchangeInformational, func(b *Builder) {
		b.Notify(NotifyCookie2, ProtoNone, nil, []byte(sa.req.cookie2))
	})
}

// addressesStart tells the peer our further addresses (RFC 4555 section 3.6).
func (m *Machine) addressesStart(sa *ikeSA, t task) {
	sa.req = request{task: t}
	m.sendRequest(sa, ExchangeInformational, func(b *Builder) {
		m.addressNotifies(b, sa, true)
		m.protectNotify(b, sa)
	})
}

// livenessStart asks whether the peer lives. Behind a NAT it says along the way whether
// the NAT still does what it did (RFC 4555 section 3.8); on a detour it tries the straight
// way first (section 3.10).
func (m *Machine) livenessStart(sa *ikeSA, t task) {
	sa.req = request{task: t}
	if sa.conn != nil {
		m.askAll(sa.conn, nameFresh) // it may have moved
	}
	var fill func(*Builder)
	home, back := m.wayBack(sa)
	if sa.leads() && sa.natLocal && sa.natKnown && !back {
		fill = func(b *Builder) { m.natNotifies(b, sa, sa.path) }
	}
	if !back {
		m.sendRequest(sa, ExchangeInformational, fill)
		return
	}
	was := sa.path
	sa.path = home
	m.sendRequest(sa, ExchangeInformational, fill)
	sa.path = was
	sa.req.detours = []Path{home}
}

func (m *Machine) cookie2() string {
	var b [cookie2Len]byte
	m.env.Random(b[:])
	return string(b[:])
}

// mobikeResponse handles the response, which came along p, to a request that is about
// addresses.
func (m *Machine) mobikeResponse(sa *ikeSA, p Path, kind taskKind, a asked) {
	if !sa.mobike.on {
		return
	}
	if n, _ := m.msg.FindNotify(NotifyCookie2); a.cookie2 != "" && !constantEqual(n.Data, []byte(a.cookie2)) {
		// Section 3.7: somebody answers who has not seen the question.
		m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: p, Err: ErrCookie2})
		m.closeIKE(sa, ErrCookie2, nil)
		return
	}
	if a.stale {
		m.push(sa, kind) // it told or asked about a path that is not ours any more
		return
	}
	switch kind {
	case taskUpdate:
		m.updated(sa, p)
	case taskAddresses:
		if _, no := m.msg.FindNotify(NotifyUnexpectedNATDetected); no {
			m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: p, Err: &NotifyError{NotifyUnexpectedNATDetected, ""}})
		}
	case taskRoutable:
		if sa.mobike.checking {
			sa.mobike.checking = false
			m.setPath(sa, sa.path)
			m.tell(Event{Kind: EvMoved, Conn: sa.connName(), IKE: sa.unique, Path: sa.path})
		}
	case taskLiveness:
		n, ok := m.msg.FindNotify(NotifyNATDetectionDestinationIP)
		if ok && sa.leads() && string(n.Data) != sa.mobike.natSeen {
			m.push(sa, taskUpdate) // the NAT has a new mapping for us
		}
	}
}

// updated handles the response to our UPDATE_SA_ADDRESSES.
func (m *Machine) updated(sa *ikeSA, p Path) {
	refused := m.notifyError()
	switch {
	case isNotify(refused, NotifyUnexpectedNATDetected):
		if sa.mobike.natTries++; sa.mobike.natTries <= maxNATRetries {
			m.queue(sa, task{kind: taskUpdate, notBefore: m.now.Mono + time.Second})
			return
		}
		fallthrough
	case isNotify(refused, NotifyUnacceptableAddresses):
		m.event(Event{Kind: EvNotify, Conn: sa.connName(), IKE: sa.unique, Path: p, Err: refused})
		sa.mobike.natTries = 0
		if len(sa.mobike.refused) < maxPeerAddrs {
			sa.mobike.refused = append(sa.mobike.refused, sa.path)
		}
		for _, c := range m.paths(sa) {
			if c != sa.path {
				m.moveTo(sa, c)
				m.push(sa, taskUpdate)
				return
			}
		}
		m.reestablish(sa, refused)
		return
	}
	sa.mobike.natTries, sa.mobike.refused = 0, nil
	if n, ok := m.msg.FindNotify(NotifyNATDetectionDestinationIP); ok {
		sa.mobike.natSeen = string(n.Data)
	}
	if was := sa.encap(); sa.natKnown {
		if m.natDetect(sa, p, sa.spiR); sa.encap() != was {
			m.moveChildren(sa)
		}
	}
	m.renewDynamic(sa)
}

// mobikeRequest handles what the peer's INFORMATIONAL request, which came along p, says
// about addresses, and returns what belongs into the response.
func (m *Machine) mobikeRequest(sa *ikeSA, p Path) func(b *Builder) {
	if !sa.mobike.on {
		return nil
	}
	_, update := m.msg.FindNotify(NotifyUpdateSAAddresses)
	_, nats := m.msg.FindNotify(NotifyNATDetectionSourceIP)
	cookie, asks := m.msg.FindNotify(NotifyCookie2)
	asks = asks && len(cookie.Data) >= 8 && len(cookie.Data) <= 64
	addrs, said := m.peerAddrs()
	// What a newer request has overtaken is only answered (sections 3.5 and 3.6).
	update = update && !sa.origin.ours && sa.mobike.updates.take(m.msg.ID)
	said = said && sa.mobike.lists.take(m.msg.ID)
	var no NotifyType
	switch {
	case (update || said) && m.natForbidden(p):
		no = NotifyUnexpectedNATDetected
	case update && !m.acceptable(sa, p):
		no = NotifyUnacceptableAddresses
	default:
		if said {
			sa.mobike.peers = addrs
		}
		if update {
			m.peerMoved(sa, p, nats)
		}
		if said && sa.origin.ours && sa.state == StateEstablished {
			m.peerReaddressed(sa, p)
		}
	}
	if no != 0 {
		m.event(Event{Kind: EvRefused, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: no.String()})
	}
	return func(b *Builder) {
		if no != 0 {
			b.Notify(no, ProtoNone, nil, nil)
		} else if nats {
			m.natNotifies(b, sa, p)
		}
		if asks {
			b.Notify(NotifyCookie2, ProtoNone, nil, cookie.Data) // as it is (section 3.7)
		}
	}
}

// acceptable tells whether the SAs may move to a path. Where the peer is does not matter:
// it has authenticated. Which addresses of ours are used is configured.
func (m *Machine) acceptable(sa *ikeSA, p Path) bool {
	return (p.NATT || !sa.path.NATT) && p.Remote.Port() != 0 && routable(p.Remote.Addr()) && sa.conn.uses(p.Local.Addr())
}

// peerMoved moves the IKE SA to where its initiator sent UPDATE_SA_ADDRESSES from. The
// CHILD SAs follow at once if the address is known to be the peer's, otherwise when it
// has answered from there: nobody shall be flooded because of a peer that lies.
func (m *Machine) peerMoved(sa *ikeSA, p Path, nats bool) {
	was := sa.espRoute()
	moved := sa.path != p
	sa.frag.otherPath(sa.path, p)
	sa.path = p
	if nats {
		m.natDetect(sa, p, sa.spiR)
	}
	sa.mobike.movedAt = m.now.Mono
	if p.Remote.Addr() == was.path.Remote.Addr() {
		sa.mobike.checking = false
		if now := sa.espRoute(); now != was {
			m.moveChildren(sa)
			m.tell(Event{Kind: EvMoved, Conn: sa.connName(), IKE: sa.unique, Path: p})
		}
	} else {
		sa.mobike.checking, sa.mobike.held = true, was
		m.heldLeaves(sa)
		m.push(sa, taskRoutable)
	}
	if moved {
		m.resend(sa)
	}
}

// peerReaddressed looks, after the responder told its addresses along p, whether the one
// that we use is still among them (RFC 4555 section 3.5).
func (m *Machine) peerReaddressed(sa *ikeSA, p Path) {
	now := sa.path.Remote.Addr()
	if p.Remote.Addr() == now || slices.Contains(sa.mobike.peers, now) || p.NATT != sa.path.NATT || !routable(p.Remote.Addr()) ||
		sa.natPeer { // what a peer behind a NAT says of its addresses is not what we see
		return
	}
	m.moveTo(sa, p)
	m.push(sa, taskUpdate)
}

// heard looks at the path of a fresh authentic message of the peer.
func (m *Machine) heard(sa *ikeSA, p Path, response bool) {
	sa.reauth.met = sa.reauth.met || sa.state != StateConnecting
	if p == sa.path || sa.state == StateConnecting {
		return
	}
	if response && slices.Contains(sa.req.detours, p) && m.passable(sa, p) {
		m.setPath(sa, p)
		sa.req.stale = sa.req.task.kind.ofAddresses()
		for i := range sa.window.parked { // those that have no answer yet
			m.repeat(sa, &sa.window.parked[i])
		}
		m.rearm(sa)
		if sa.leads() {
			m.tell(Event{Kind: EvRoamed, Conn: sa.connName(), IKE: sa.unique, Path: p})
			m.push(sa, taskUpdate)
		} else {
			m.tell(Event{Kind: EvMoved, Conn: sa.connName(), IKE: sa.unique, Path: p})
		}
		return
	}
	if !sa.mobike.on { // otherwise only UPDATE_SA_ADDRESSES moves anything (section 3.8)
		m.follow(sa, p)
	}
}

// mobikeInherit gives nsa, which takes the place of sa, what sa knows about paths.
func (m *Machine) mobikeInherit(sa, nsa *ikeSA) {
	nsa.path, nsa.mobike = sa.path, sa.mobike
	nsa.natLocal, nsa.natPeer, nsa.natKnown = sa.natLocal, sa.natPeer, sa.natKnown
	nsa.mobike.natSeen = ""                                   // the hash has the SPIs in it
	nsa.mobike.updates, nsa.mobike.lists = newest{}, newest{} // of message IDs
	if r := sa.outstanding(func(r *request) bool { return r.task.kind.ofAddresses() }); r != nil {
		m.push(nsa, r.task.kind) // under way on the old one, where it helps no more
	}
}
