package ike

import "slices"

// Childless says whether an IKE SA may or must begin without a CHILD SA (RFC 6023): the first
// one is then made by CREATE_CHILD_SA as all others are, with a key exchange of its own. The
// responder says in IKE_SA_INIT that it takes part.
type Childless uint8

// The modes, named as strongSwan names them.
const (
	ChildlessAllow  Childless = iota // as responder yes, as initiator only where there is no CHILD SA to ask for
	ChildlessPrefer                  // as initiator too if the responder takes part
	ChildlessForce                   // in either role, or there is no IKE SA
	ChildlessNever                   // not as responder
)

// grantBare fulfils the wishes for an IKE SA alone, now that there is one, whoever has begun it.
func (m *Machine) grantBare(s *connState) {
	s.wanted = slices.DeleteFunc(s.wanted, func(w wish) bool {
		if w.cfg != nil {
			return false
		}
		m.settle(w.waiters, nil)
		return true
	})
}
