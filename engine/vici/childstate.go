package vici

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"postern/engine/control"
	"postern/ike"
)

// nhrpd (FRR) asks for more than charon has: events for single states of CHILD SAs, and the
// addresses between which initiate is to make one. Where charon is to serve it, it is patched.

// childStates tells of the states of a CHILD SA, one event for each.
func (v Events) childStates(e *ike.Event) {
	switch e.Kind {
	case ike.EvChildUp:
		v.childState(control.EvChildInstalled, e, e.ChildID, ike.ChildInstalled)
	case ike.EvChildDown:
		v.childState(control.EvChildDestroying, e, e.ChildID, ike.ChildDeleting)
	case ike.EvChildRekeyed:
		// The new one first, so that who counts the SAs between two hosts never comes to none. What
		// the old one still takes was on its way, so that it is over for everybody else.
		v.childState(control.EvChildInstalled, e, e.ChildID, ike.ChildInstalled)
		v.childState(control.EvChildRekeyedState, e, e.Old, ike.ChildRekeyed)
		v.childState(control.EvChildDestroying, e, e.Old, ike.ChildDeleting)
	}
}

func (v Events) childState(name string, e *ike.Event, unique uint32, state ike.ChildState) {
	if !v.Server.Wanted(name) {
		return
	}
	now := v.L.Now()
	sa := v.view(e.SA, e.IKE, e)
	m := new(control.Message)
	sec := m.Section(sa.name())
	sa.Message(sec, now, false)
	child := sa.child(unique, e.Child)
	child.State = state
	child.Message(sec.Section(control.KeyChildSAs).Section(childKey(&child)), now, false)
	v.Server.Event(name, m)
}

// between returns the name of the connection by which initiate makes the child's SA from the
// address of ours to that of the peer: the first of those called conn ("": any) that has the child
// and calls that peer. Addresses that do not matter are "".
func between(cfg *ike.Config, conn, child, ours, peers string) (string, error) {
	addrs := [2]netip.Addr{}
	for i, s := range []string{ours, peers} {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return "", fmt.Errorf("%s: %q is no address", [...]string{control.KeyMyHost, control.KeyOtherHost}[i], s)
		}
		addrs[i] = a.Unmap()
	}
	found := false
	for _, c := range cfg.Conns {
		if name := findChild(&ike.Config{Conns: []*ike.Conn{c}}, conn, child); name == "" {
			continue
		}
		found = true
		if (!addrs[0].IsValid() || len(c.LocalAddrs) == 0 || slices.Contains(c.LocalAddrs, addrs[0])) &&
			(!addrs[1].IsValid() || slices.Contains(c.RemoteAddrs, netip.PrefixFrom(addrs[1], addrs[1].BitLen()))) {
			return c.Name, nil
		}
	}
	if !found {
		return "", nil
	}
	return "", errors.New("no connection with config '" + cmp.Or(child, conn) + "' is between " + cmp.Or(ours, "%any") + " and " + cmp.Or(peers, "%any") +
		": write the peer's address into remote_addrs of one, and ours into local_addrs or nothing")
}
