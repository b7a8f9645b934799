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
	// authBurst is how many IKE SAs a peer of one identity may make at once, and authEvery how
	// long it has to wait for another one after that. More than authEager of them are a peer
	// that takes the lifetime of its authentication for too short to wait: some subtract a
	// margin of their own from it, which may be longer. It is told none, and so ends that; it
	// hears when the time has come (reauthDue).
	authBurst = 30
	authEvery = 2 * time.Second
	authEager = 4
)

// authRate is how many IKE SAs a peer makes: at is when one that makes no more than it should
// would have made its last one. What lies in the past means nothing.
type authRate struct {
	conn string
	peer ID
	at   time.Duration
}

// overrun counts an IKE SA that the peer has just authenticated. tooMany tells that it is to
// be refused, eager that the peer makes more of them than it needs to.
func (m *Machine) overrun(sa *ikeSA) (eager, tooMany bool) {
	r := authRate{sa.conn.Name, sa.peerID, m.now.Mono}
	kept := m.auths[:0]
	for _, o := range m.auths {
		if o.conn == r.conn && o.peer == r.peer {
			r.at = max(r.at, o.at)
		} else if o.at > m.now.Mono {
			kept = append(kept, o)
		}
	}
	if len(kept) >= len(m.sas) {
		kept = kept[1:] // so many peers at once are all sites of a gateway that has just started
	}
	if tooMany = r.at+authEvery-m.now.Mono > authBurst*authEvery; !tooMany {
		r.at += authEvery
	}
	m.auths = append(kept, r)
	return r.at-m.now.Mono > authEager*authEvery, tooMany
}

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
