package engine

import (
	"fmt"

	"postern/engine/control"
	"postern/ike"
)

// viciEvents tells control clients what happens to SAs, in charon's form. It runs on
// the IKE loop and builds nothing that nobody has registered for.
type viciEvents struct {
	l   *ikeLoop
	ctl *control.Server
}

// event sends the VICI event of an IKE event, if it has one.
func (v viciEvents) event(e *ike.Event) {
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
	if name == "" || !v.ctl.Wanted(name) {
		return
	}
	now := v.l.now().Mono
	sa := v.find(e.IKE, e)
	m := new(control.Message)
	if name == control.EvIKEUpdate {
		sa.hosts(m)
	}
	yes(m, control.KeyUp, e.Kind == ike.EvIKEUp || e.Kind == ike.EvChildUp)
	sec := m.Section(sa.name())
	switch e.Kind {
	case ike.EvIKEUp, ike.EvIKEDown, ike.EvMoved, ike.EvRoamed:
		sa.message(sec, now)
	case ike.EvIKERekeyed:
		old := v.find(e.Old, e)
		old.message(sec.Section("old"), now)
		sa.message(sec.Section("new"), now)
	case ike.EvChildUp, ike.EvChildDown:
		sa.message(sec, now)
		child := sa.child(e.ChildID, e.Child)
		child.message(sec.Section(control.KeyChildSAs).Section(fmt.Sprintf("%s-%d", e.Child, e.ChildID)), now)
	case ike.EvChildRekeyed:
		sa.message(sec, now)
		pair := sec.Section(control.KeyChildSAs).Section(e.Child)
		was, is := sa.child(e.Old, e.Child), sa.child(e.ChildID, e.Child)
		was.message(pair.Section("old"), now)
		is.message(pair.Section("new"), now)
	}
	v.ctl.Event(name, m)
}

// hosts writes the two ends of the path.
func (v *saView) hosts(m *control.Message) {
	m.Set(control.KeyLocalHost, v.Path.Local.Addr().Unmap().String())
	m.SetUint(control.KeyLocalPort, uint64(v.Path.Local.Port()))
	m.Set(control.KeyRemoteHost, v.Path.Remote.Addr().Unmap().String())
	m.SetUint(control.KeyRemotePort, uint64(v.Path.Remote.Port()))
}

// find returns the IKE SA of that number, or, if it is gone already, what the event
// tells about it.
func (v viciEvents) find(unique uint32, e *ike.Event) saView {
	sa := saView{SAInfo: ike.SAInfo{Unique: unique, Conn: e.Conn, State: ike.StateDeleting, Path: e.Path}}
	v.l.m.List(func(i *ike.SAInfo) bool {
		if i.Unique == unique {
			sa = v.l.view(i)
		}
		return i.Unique != unique
	})
	return sa
}

// child returns a CHILD SA of sa, or, if it is gone already, its name and number.
func (v *saView) child(unique uint32, name string) childView {
	for i := range v.children {
		if v.children[i].Unique == unique {
			return v.children[i]
		}
	}
	return childView{ChildInfo: ike.ChildInfo{Unique: unique, Name: name, State: ike.ChildDeleting}}
}
