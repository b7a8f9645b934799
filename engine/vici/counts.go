package vici

import (
	"errors"
	"slices"
	"strings"

	"postern/engine/control"
	"postern/ike"
)

// errNoCounters is charon's text.
var errNoCounters = errors.New("no counters found for this connection")

// getCounters returns the counters of IKE messages: of one connection, of each, or without
// either key of all messages, under the name "".
func (h Handler) getCounters(req *control.Message) (*control.Message, error) {
	type set struct {
		conn string
		c    ike.Counters
	}
	var sets []set
	conn, each := req.Get(control.KeyName), req.GetBool(control.KeyAll)
	if err := h.D.Do(func(l Loop) {
		l.Messages(func(name string, c *ike.Counters) {
			if each && name != "" || !each && name == conn {
				sets = append(sets, set{name, *c})
			}
		})
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(sets, func(a, b set) int { return strings.Compare(a.conn, b.conn) })
	m := new(control.Message)
	list := m.Section("counters")
	for i := range sets {
		s := list.Section(sets[i].conn)
		for c, v := range sets[i].c {
			s.SetUint(ike.Counter(c).String(), v)
		}
	}
	if !each && len(sets) == 0 {
		return withReason(m.SetBool(control.KeySuccess, false), errNoCounters), nil
	}
	return m.SetBool(control.KeySuccess, true), nil
}

func (h Handler) resetCounters(req *control.Message) (*control.Message, error) {
	conn, each := req.Get(control.KeyName), req.GetBool(control.KeyAll)
	return control.Success(), h.D.Do(func(l Loop) { l.ResetMessages(conn, each) })
}
