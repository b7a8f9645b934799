package ike

import "testing"

// shown returns the window that List shows of the one established IKE SA of a host.
func shown(h *host) (n int) {
	h.m.List(func(s *SAInfo) bool {
		if s.State == StateEstablished {
			n = s.Window
		}
		return true
	})
	return n
}

func TestWindowOfThePeerIsRememberedAndOnlyGrows(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	before := shown(p.b)
	tell := func(data ...byte) {
		sa := &p.a.m.sas[0]
		b := NewBuilder(nil, Header{})
		b.Notify(NotifySetWindowSize, ProtoNone, nil, data)
		if got := p.answer(toB, p.sealed(ExchangeInformational, p.peerOf(sa).recvID, PayloadNotify, b.Finish()[headerLen:])); len(got) != 1 {
			t.Fatalf("SET_WINDOW_SIZE got %d answers", len(got))
		}
	}
	for _, c := range []struct {
		data []byte
		want int
	}{
		{[]byte{0, 0, 0, 0}, before}, {[]byte{0, 0, 0, 7}, 7}, {[]byte{0, 0, 0, 2}, 7}, {[]byte{9}, 7}, {[]byte{0, 0, 0, 0, 9}, 7},
		{nil, 7}, {[]byte{255, 255, 255, 255}, 7}, {[]byte{0, 1, 0, 0}, 65536},
	} {
		tell(c.data...)
		if got := shown(p.b); got != c.want {
			t.Errorf("after SET_WINDOW_SIZE %x the window is %d, want %d", c.data, got, c.want)
		}
	}
	p.a.m.sas[0].sendID = p.b.m.sas[0].recvID
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	if got := shown(p.b); got != before {
		t.Errorf("a new IKE SA begins with a window of %d, want %d", got, before)
	}
}
