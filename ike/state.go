package ike

import "strconv"

// State is the state of an IKE SA, with charon's names.
type State uint8

// The states, in the order of a life.
const (
	StateFree        State = iota // the table slot is empty
	StateConnecting               // IKE_SA_INIT or IKE_AUTH under way
	StateEstablished              // authenticated
	StateRekeyed                  // replaced by a new IKE SA, about to be deleted
	StateDeleting                 // DELETE sent, its response awaited
	StateRekeying                 // of no IKE SA here: an established one that charon would say this of
)

var stateNames = [...]string{"CREATED", "CONNECTING", "ESTABLISHED", "REKEYED", "DELETING", "REKEYING"}

// String returns charon's name of the state.
func (s State) String() string { return enumName(stateNames[:], int(s), "STATE") }

// ChildState is the state of a CHILD SA, with charon's names.
type ChildState uint8

// The states, in the order of a life.
const (
	ChildFree      ChildState = iota // the table slot is empty
	ChildInstalled                   // both directions carry traffic
	ChildRekeying                    // CREATE_CHILD_SA for its successor is under way
	ChildRekeyed                     // replaced; kept for packets still on their way
	ChildDeleting                    // DELETE sent, its response awaited
	ChildDeleted                     // in a ChildInfo: a ChildRekeyed one that the peer has deleted, too, or one that has gone
)

var childStateNames = [...]string{"CREATED", "INSTALLED", "REKEYING", "REKEYED", "DELETING", "DELETED"}

// String returns charon's name of the state.
func (s ChildState) String() string { return enumName(childStateNames[:], int(s), "STATE") }

// enumName returns names[v], or prefix_v for a value without a name.
func enumName(names []string, v int, prefix string) string {
	if v >= 0 && v < len(names) && names[v] != "" {
		return names[v]
	}
	return prefix + "_" + strconv.Itoa(v)
}
