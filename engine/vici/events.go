package vici

import (
	"errors"
	"fmt"

	"postern/engine/control"
	"postern/ike"
)

// Events tells control clients what happens to SAs, in charon's form. It runs on
// the IKE loop and builds nothing that nobody has registered for.
type Events struct {
	L      Loop
	Server *control.Server
}

// Event sends the VICI events of an IKE event, if it has any.
func (v Events) Event(e *ike.Event) {
	v.alert(e)
	v.childStates(e)
	name := ""
	switch e.Kind {
	case ike.EvIKEUp, ike.EvIKEDown:
		name = control.EvIKEUpDown
	case ike.EvIKERekeyed:
		name = control.EvIKERekey
	case ike.EvMoved, ike.EvRoamed:
		name = control.EvIKEUpdate
	case ike.EvChildUp, ike.EvChildDown:
		name = control.EvChildUpDown
	case ike.EvChildRekeyed:
		name = control.EvChildRekey
	}
	if name == "" || !v.Server.Wanted(name) {
		return
	}
	v.Server.Event(name, v.message(e))
}

// message writes the event of an IKE event. States are those that charon has at that moment.
func (v Events) message(e *ike.Event) *control.Message {
	now := v.L.Now()
	sa := v.view(e.SA, e.IKE, e)
	m := new(control.Message)
	if e.Kind == ike.EvMoved || e.Kind == ike.EvRoamed {
		sa.hosts(m)
	}
	yes(m, control.KeyUp, e.Kind == ike.EvIKEUp || e.Kind == ike.EvChildUp)
	sec := m.Section(sa.name())
	switch e.Kind {
	case ike.EvIKERekeyed:
		old := v.view(e.Was, e.Old, e)
		old.State = ike.StateEstablished
		if sa.Initiator {
			old.State = ike.StateRekeying
		}
		old.Message(sec.Section("old"), now, false)
		sa.Message(sec.Section("new"), now, false)
	case ike.EvChildUp, ike.EvChildDown:
		sa.Message(sec, now, false)
		child := sa.child(e.ChildID, e.Child)
		if e.Kind == ike.EvChildDown && sa.State == ike.StateEstablished && !errors.Is(e.Err, ike.ErrTimeout) {
			child.State = ike.ChildDeleted
		}
		child.Message(sec.Section(control.KeyChildSAs).Section(childKey(&child)), now, false)
	case ike.EvChildRekeyed:
		sa.Message(sec, now, false)
		pair := sec.Section(control.KeyChildSAs).Section(e.Child)
		was, is := sa.child(e.Old, e.Child), sa.child(e.ChildID, e.Child)
		was.State = ike.ChildRekeyed
		was.Message(pair.Section("old"), now, false)
		is.Message(pair.Section("new"), now, false)
	default:
		sa.Message(sec, now, false)
	}
	return m
}

// childKey is what a CHILD SA is listed under.
func childKey(c *Child) string { return fmt.Sprintf("%s-%d", c.Name, c.Unique) }

// hosts writes the two ends of the path.
func (v *SA) hosts(m *control.Message) {
	m.Set(control.KeyLocalHost, v.Path.Local.Addr().Unmap().String())
	m.SetUint(control.KeyLocalPort, uint64(v.Path.Local.Port()))
	m.Set(control.KeyRemoteHost, v.Path.Remote.Addr().Unmap().String())
	m.SetUint(control.KeyRemotePort, uint64(v.Path.Remote.Port()))
}

// view returns an IKE SA of an event, or, if there is none any more, what the event tells about it.
func (v Events) view(sa *ike.SAInfo, unique uint32, e *ike.Event) SA {
	if sa == nil {
		sa = &ike.SAInfo{Unique: unique, Conn: e.Conn, State: ike.StateDeleting, Path: e.Path}
	}
	return v.L.View(sa)
}

// child returns a CHILD SA of sa, or, if it is gone already, its name and number.
func (v *SA) child(unique uint32, name string) Child {
	for i := range v.Children {
		if v.Children[i].Unique == unique {
			return v.Children[i]
		}
	}
	return Child{ChildInfo: ike.ChildInfo{Unique: unique, Name: name, State: ike.ChildDeleting}}
}
