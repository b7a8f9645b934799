package ike

import "time"

// UniquePolicy says what becomes of older IKE SAs between the same two identities when the
// peer establishes another one with us.
type UniquePolicy uint8

// The policies, named as strongSwan names them. UniqueNo is the default. A peer that has
// restarted says so (INITIAL_CONTACT), one that authenticates anew deletes the old IKE SA
// itself, and one that is gone without a word is found by the liveness check, while the
// traffic goes through what is newest: nothing is gained by force. UniqueReplace would
// have two devices that were given the same identity by mistake throw each other out for ever,
// and UniqueKeep locks one out whose address has changed.
const (
	UniqueNo      UniquePolicy = iota // those of which the peer says by INITIAL_CONTACT that they are gone go
	UniqueNever                       // all stay; INITIAL_CONTACT is neither sent nor believed
	UniqueKeep                        // they stay, and one from another address is refused
	UniqueReplace                     // the new one takes their place
)

// replaceGrace is how long an IKE SA goes on that UniqueReplace ends: a peer that
// authenticates anew still moves its CHILD SAs, and deletes it then itself.
const replaceGrace = 10 * time.Second

// unwanted tells whether sa, which the peer is establishing, must not be because of another
// one, which is asked whether it lives.
func (m *Machine) unwanted(sa *ikeSA, contact bool) bool {
	if sa.conn.Unique != UniqueKeep || contact {
		return false
	}
	found := false
	for i := range m.sas {
		o := &m.sas[i]
		if o != sa && o.state == StateEstablished && o.closeErr == nil && o.conn == sa.conn && o.localID.Equal(sa.localID) &&
			o.peerID.Equal(sa.peerID) && !sameHost(o.path.Remote, sa.path.Remote) {
			found = true
			m.queue(o, task{kind: taskLiveness})
		}
	}
	return found
}

// replaceLater ends an IKE SA whose place another one has taken by UniqueReplace.
func (m *Machine) replaceLater(o, by *ikeSA) {
	if !sameHost(o.path.Remote, by.path.Remote) {
		m.closeIKE(o, ErrReplaced, nil)
		return
	}
	o.replaced = by.origin.began
	if at := m.now.Mono + replaceGrace; at < o.timers[tExpire] {
		m.arm(o, tExpire, replaceGrace)
	}
}

// replacedStill tells whether the IKE SA is there, under new keys or the first ones, that has
// taken the place of o. If both sides had connected at once the peer may have closed that one.
func (m *Machine) replacedStill(o *ikeSA) bool {
	for i := range m.sas {
		if by := &m.sas[i]; by != o && by.state == StateEstablished && by.closeErr == nil && by.origin.began == o.replaced {
			return true
		}
	}
	return false
}

// startAgain has those CHILD SAs of o wanted again that are to be up for ever and that sa has not:
// o ends because the peer has said, by INITIAL_CONTACT under sa, that it does not have it any
// more (RFC 7296 section 2.4), and it may be for us alone to start them.
func (m *Machine) startAgain(o, sa *ikeSA) {
	for i := range m.children {
		if c := &m.children[i]; c.ike == o.slot && c.up() && c.cfg.StartAction == StartStart && !m.carries(sa, c.cfg) {
			m.wishAgain(c.conn, c.cfg)
		}
	}
}

// crosses tells whether two IKE SAs, one that we began and one that the peer began, were
// under way here at the same time: the later one began (for the peer's: its first message
// came) before the earlier one was established. Both sides connected then without knowing
// of the other's attempt. An IKE SA that begins when the other one is established was meant
// to: the peer authenticates anew, or, if it says INITIAL_CONTACT, has lost the other one.
//
// A message that took long may let one side alone see that they cross. It acts alone then,
// and the other side leaves to it what stays; where both see it, both come to the same result.
func (o *origin) crosses(other *origin) bool {
	first, second := o, other
	if second.began < first.began {
		first, second = second, first
	}
	return o.ours != other.ours && second.began <= first.done
}

// resolveDuplicates looks for other IKE SAs between the same two, after sa has been
// established. If the peer says that it knows of no other, those are gone. If both sides
// have connected at once, the SA with the higher initiator's SPI stays.
func (m *Machine) resolveDuplicates(sa *ikeSA, contact bool) {
	for i := range m.sas {
		o := &m.sas[i]
		if o == sa || o.state != StateEstablished || o.closeErr != nil || sa.conn.Unique == UniqueNever ||
			!o.localID.Equal(sa.localID) || !o.peerID.Equal(sa.peerID) || o.unique == sa.reauth.old {
			continue
		}
		both := o.conn == sa.conn && o.origin.ours != sa.origin.ours
		later := both && !sa.origin.ours && !o.origin.crosses(&sa.origin) // the peer began it beside ours, which it had
		loser, winner := o, sa
		switch {
		case later && contact:
			m.handTasks(o, sa) // it had ours, and has lost it
			m.startAgain(o, sa)
			m.destroy(o, ErrReplaced)
			continue
		case later && sa.conn.Unique == UniqueReplace:
			m.replaceLater(o, sa)
			continue
		case later:
			continue // it knows both, and what it wants: it may be reauthenticating
		case both && sa.origin.spiI < o.origin.spiI:
			loser, winner = sa, o
		case both:
		case contact:
			m.startAgain(o, sa)
			m.destroy(o, ErrReplaced)
			continue
		case sa.conn.Unique == UniqueReplace && !sa.origin.ours:
			m.replaceLater(o, sa)
			continue
		default:
			continue
		}
		m.handTasks(loser, winner)
		m.closeIKE(loser, ErrReplaced, nil)
	}
}
