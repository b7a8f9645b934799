package vici

import (
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

// Event sends the VICI event of an IKE event, if it has one.
func (v Events) Event(e *ike.Event) {
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
	now := v.L.Now()
	sa := v.find(e.IKE, e)
	m := new(control.Message)
	if name == control.EvIKEUpdate {
		sa.hosts(m)
	}
	yes(m, control.KeyUp, e.Kind == ike.EvIKEUp || e.Kind == ike.EvChildUp)
	sec := m.Section(sa.name())
	switch e.Kind {
	case ike.EvIKEUp, ike.EvIKEDown, ike.EvMoved, ike.EvRoamed:
		sa.Message(sec, now, false)
	case ike.EvIKERekeyed:
		old := v.find(e.Old, e)
		old.Message(sec.Section("old"), now, false)
		sa.Message(sec.Section("new"), now, false)
	case ike.EvChildUp, ike.EvChildDown:
		sa.Message(sec, now, false)
		child := sa.child(e.ChildID, e.Child)
		child.Message(sec.Section(control.KeyChildSAs).Section(fmt.Sprintf("%s-%d", e.Child, e.ChildID)), now, false)
	case ike.EvChildRekeyed:
		sa.Message(sec, now, false)
		pair := sec.Section(control.KeyChildSAs).Section(e.Child)
		was, is := sa.child(e.Old, e.Child), sa.child(e.ChildID, e.Child)
		was.Message(pair.Section("old"), now, false)
		is.Message(pair.Section("new"), now, false)
	}
	v.Server.Event(name, m)
}

// hosts writes the two ends of the path.
func (v *SA) hosts(m *control.Message) {
	m.Set(control.KeyLocalHost, v.Path.Local.Addr().Unmap().String())
	m.SetUint(control.KeyLocalPort, uint64(v.Path.Local.Port()))
	m.Set(control.KeyRemoteHost, v.Path.Remote.Addr().Unmap().String())
	m.SetUint(control.KeyRemotePort, uint64(v.Path.Remote.Port()))
}

// find returns the IKE SA of that number, or, if it is gone already, what the event
// tells about it.
func (v Events) find(unique uint32, e *ike.Event) SA {
	sa := SA{SAInfo: ike.SAInfo{Unique: unique, Conn: e.Conn, State: ike.StateDeleting, Path: e.Path}}
	v.L.List(func(i *ike.SAInfo) bool {
		if i.Unique == unique {
			sa = v.L.View(i)
		}
		return i.Unique != unique
	})
	return sa
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
