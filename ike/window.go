package ike

import (
	"encoding/binary"
	"math"
)

// window is the message window of an IKE SA (RFC 7296 section 2.3). A new one starts with a
// window of one, after a rekeying too.
type window struct {
	peer int // how many requests of ours the peer has said that it takes at once; 0: nothing
}

// size returns how many requests of ours may be outstanding for all that the peer says.
func (w *window) size() int { return max(w.peer, 1) }

// learnWindow takes what the peer says about its window in m.msg. It can only grow: there is
// no way to take back what has been promised.
func (m *Machine) learnWindow(sa *ikeSA) {
	n, ok := m.msg.FindNotify(NotifySetWindowSize)
	if !ok || len(n.Data) != 4 {
		return
	}
	if v := binary.BigEndian.Uint32(n.Data); v <= math.MaxInt32 {
		sa.window.peer = max(sa.window.peer, int(v))
	}
}
