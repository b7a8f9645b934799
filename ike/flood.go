package ike

import "time"

// A peer that has authenticated can still ask for too much: new keys without end, or CHILD
// SAs without end. It is answered, and what it can take of our tables and of the processor
// is bounded, so that there is enough for the others.

const (
	// createBurst is how many CREATE_CHILD_SA requests a peer may send at once, beside some
	// for each child, and createEvery how long it has to wait for another one after that.
	createBurst    = 32
	createPerChild = 4
	createEvery    = time.Second
	// maxReplaced is how many SAs that a peer has replaced and not deleted it may leave with
	// us, beside one for each child.
	maxReplaced = 4
)

// floodState is when a peer that has sent no more than it should would have sent the last of
// its requests.
type floodState struct{ at time.Duration }

// flooded refuses a CREATE_CHILD_SA request of a peer that has asked for too much, with what
// has it try again later (TEMPORARY_FAILURE, RFC 7296 section 2.25) or not at all.
func (m *Machine) flooded(sa *ikeSA, kind taskKind) *refusal {
	kids := len(sa.conn.Children)
	at := max(sa.flood.at, m.now.Mono) + createEvery
	if at-m.now.Mono > time.Duration(createBurst+createPerChild*kids)*createEvery {
		return busy(ErrTooOften)
	}
	sa.flood.at = at
	own, used, left := 0, 0, 0
	for i := range m.children {
		c := &m.children[i]
		if c.state == ChildFree {
			continue
		}
		used++
		if c.ike == sa.slot {
			own++
			if c.state == ChildRekeyed && !c.outGone {
				left++
			}
		}
	}
	for i := range m.sas {
		// The chain of a rekeyed IKE SA has its origin in common.
		if o := &m.sas[i]; kind == taskRekeyIKE && o.state == StateRekeyed && o.origin == sa.origin && o.peerID.Equal(sa.peerID) {
			left++
		}
	}
	switch {
	case left >= maxReplaced && (kind == taskRekeyIKE || left >= maxReplaced+kids):
		return busy(ErrNotDeleted)
	case kind == taskCreateChild && used >= len(m.children)/2 && own >= maxReplaced+createPerChild*kids:
		return &refusal{t: NotifyNoAdditionalSAs, err: ErrTooMany}
	}
	return nil
}
