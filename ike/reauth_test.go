package ike

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"
)

// ids returns the unique numbers of a host's IKE SAs.
func (h *host) ids() (list []uint32) {
	h.m.List(func(s *SAInfo) bool {
		list = append(list, s.Unique)
		return true
	})
	return list
}

// withMore gives both sides a second child.
func withMore(a, b *Conn) {
	c, d := *a.Children[0], *b.Children[0]
	c.Name, c.LocalTS = "more", []TS{sel("10.3.0.0/24")}
	d.Name, d.RemoteTS = "more", []TS{sel("10.3.0.0/24")}
	a.Children, b.Children = append(a.Children, &c), append(b.Children, &d)
}

// The old IKE SA is deleted a moment after the new one has its CHILD SAs, and INITIAL_CONTACT,
// which would have the peer throw the old one away, is not said.
func TestReauthenticationDeletesTheOldIKESASoon(t *testing.T) {
	p := newPair(t, withMore)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.same(2)
	p.now.Mono += time.Minute
	contact := false
	p.b.m.Trace = func() bool { return true }
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	for _, e := range p.b.events {
		contact = contact || e.Kind == EvTrace && strings.HasPrefix(e.Text, "received") && strings.Contains(e.Text, "INITIAL_CONTACT")
	}
	if contact {
		t.Error("INITIAL_CONTACT was said though there is another IKE SA")
	}
	p.pass(reauthPause - time.Millisecond)
	for _, h := range []*host{p.a, p.b} {
		if ids := h.ids(); len(ids) != 2 || len(h.sas) != 8 {
			t.Errorf("%v has the IKE SAs %v and %d simplex SAs; the old ones must still take what is on its way", h.addr, ids, len(h.sas))
		}
	}
	p.pass(time.Millisecond)
	for _, h := range []*host{p.a, p.b} {
		if ids := h.ids(); len(ids) != 1 || ids[0] != 2 {
			t.Errorf("%v has the IKE SAs %v, want the second one alone", h.addr, ids)
		}
		if n := len(h.sas); n != 4+2 {
			t.Errorf("%v has %d simplex SAs, want two pairs and the two old inbound ones, which linger", h.addr, n)
		}
	}
	p.pass(2 * linger)
	p.same(2)
}

func TestAuthLifetimeIsFollowedInTime(t *testing.T) {
	for _, life := range []uint32{10, 100, 3600, 86400, 1<<32 - 1} {
		p := newPair(t, nil)
		p.up()
		a, b := &p.a.m.sas[0], &p.b.m.sas[0]
		n := &Notify{Type: NotifyAuthLifetime, Data: binary.BigEndian.AppendUint32(nil, life)}
		p.b.m.readLifetime(b, n)
		if b.reauth.at != 0 {
			t.Errorf("the side that was called follows AUTH_LIFETIME, which is not for it")
		}
		p.a.m.readLifetime(a, n)
		end := p.now.Mono + time.Duration(life)*time.Second
		left := end - a.reauth.at
		if a.reauth.at <= p.now.Mono || left < 0 || left > 2*lifetimeMargin || life >= 10 && (left < time.Second || a.reauth.at-p.now.Mono < time.Duration(life)*time.Second/2) {
			t.Errorf("AUTH_LIFETIME of %d s: reauthentication in %v, %v before its end", life, a.reauth.at-p.now.Mono, left)
		}
		// A later word that leaves more time changes nothing; one that leaves less does.
		at := a.reauth.at
		p.a.m.readLifetime(a, &Notify{Type: NotifyAuthLifetime, Data: []byte{255, 255, 255, 255}})
		if life != 1<<32-1 && a.reauth.at != at {
			t.Errorf("AUTH_LIFETIME of %d s was put off by a longer one", life)
		}
		p.a.m.readLifetime(a, &Notify{Type: NotifyAuthLifetime, Data: []byte{0, 0, 0}})
		p.a.m.readLifetime(a, &Notify{Type: NotifyAuthLifetime})
		p.a.m.readLifetime(a, &Notify{Type: NotifyAuthLifetime, Data: []byte{0, 0, 0, 0}})
		if d := a.reauth.at - p.now.Mono; d < lifetimeLeast/2 || d > lifetimeLeast {
			t.Errorf("AUTH_LIFETIME of 0 s sets %v, want what one of %v would (and the malformed ones before it nothing)", d, lifetimeLeast)
		}
	}
}

// A reauthentication that has failed is tried again as soon as the network has changed, and
// not more often than every hastenInterval because of that.
func TestNetworkChangeHastensAReauthenticationThatHasFailed(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.DPDDelay, b.DPDDelay = 0, 0 })
	p.up()
	old := p.a.ids()[0]
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Conn: "link"})
	for p.a.count(EvFailed) < 6 { // by then a minute lies between two attempts
		p.pass(time.Second)
	}
	p.a.mangle = nil
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.pass(time.Second)
	p.pass(2 * linger)
	if ids := p.a.ids(); len(ids) != 1 || ids[0] == old {
		t.Errorf("the IKE SAs are %v a second after the network has changed, want one that has taken the place of %d", ids, old)
	}
	p.same(1)
}

// While the peer has yet to answer for a CHILD SA on the old IKE SA, that one is not deleted:
// what comes of it moves with the others.
func TestReauthenticationWaitsForTheChildThatIsBeingMade(t *testing.T) {
	p := newPair(t, withMore)
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "net"})
	p.run()
	p.same(1)
	old := p.a.m.sas[0].spiI
	p.b.mangle = func(o *Output) bool { // the answers on the old IKE SA take long
		return be64(o.Data) != old || p.now.Mono > time.Minute
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 2, Conn: "link", Child: "more"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdReauth, Conn: "link"})
	p.run()
	if n := p.a.established(); n != 2 {
		t.Fatalf("%d IKE SAs while a request is unanswered on the old one, want both", n)
	}
	p.pass(2*time.Minute - p.now.Mono)
	p.done(p.a, 2, nil)
	if ids := p.a.ids(); len(ids) != 1 || ids[0] != 2 {
		t.Errorf("the IKE SAs are %v, want the second one alone", ids)
	}
	p.same(2)
}

// A client that takes every lifetime of its authentication for over and authenticates anew at
// once, as some do that subtract more from it than it is, is told none after a few times, and
// so comes to rest. At the end of the lifetime it hears of it again.
func TestAuthLifetimeDoesNotDriveAClientInCircles(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { b.ReauthTime = 5 * time.Minute })
	p.up()
	anew := 0
	for range 3000 {
		p.a.m.List(func(s *SAInfo) bool {
			if s.ReauthAt != 0 && s.State == StateEstablished && len(p.a.ids()) == 1 {
				defer p.a.m.Command(p.now, Command{Kind: CmdReauth, Conn: "link"})
				anew++
			}
			return false
		})
		p.run()
		p.pass(100 * time.Millisecond)
	}
	// Each takes a second, in which half of one is forgiven.
	if anew < authEager || anew > 2*authEager+1 {
		t.Errorf("it authenticated anew %d times in a lifetime of five minutes, want %d to %d", anew, authEager, 2*authEager+1)
	}
	p.pass(30 * time.Second) // over_time, in which it is told once more
	if up := p.b.count(EvIKEUp); up <= anew+1 {
		t.Errorf("b has had %d IKE SAs at the end of the lifetime, want another one by then", up)
	}
	p.pass(2 * linger)
	p.same(1)
}

// A peer that authenticates anew without end for whatever reason is refused after a while,
// and the tunnel stays.
func TestIKESAsWithoutEndAreBounded(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for range 3000 {
		p.a.m.Command(p.now, Command{Kind: CmdReauth, Conn: "link"})
		p.run()
		p.pass(100 * time.Millisecond)
	}
	if up, most := p.b.count(EvIKEUp), authBurst+int(5*time.Minute/authEvery)+1; up > most || up < authBurst {
		t.Errorf("b let its peer make %d IKE SAs in five minutes, want at most %d", up, most)
	}
	if n := p.b.refused()[ErrTooOften]; n < 100 {
		t.Errorf("%d attempts were refused for being too many, want more than 100: %v", n, p.b.refused())
	}
	if n := len(p.b.m.auths); n != 1 {
		t.Errorf("%d peers are being counted, want one", n)
	}
	p.pass(time.Minute)
	p.same(1)
	// Of many identities as many are counted as there is room for IKE SAs.
	sa := p.b.m.established(p.b.m.conns[0].conn)
	for i := range 1000 {
		sa.peerID = ID{IDFQDN, fmt.Sprint(i)}
		p.b.m.overrun(sa)
	}
	if n := len(p.b.m.auths); n > len(p.b.m.sas) {
		t.Errorf("%d peers are being counted with room for %d IKE SAs", n, len(p.b.m.sas))
	}
}

// A peer that takes the tunnel down as soon as it is up, without end, is left in peace.
func TestPeerThatClosesAtOnceIsCalledLessAndLess(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.Children[0].StartAction, a.Children[0].CloseAction = StartStart, ActionRestart })
	for range 1200 {
		p.b.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
		p.run()
		p.pass(100 * time.Millisecond)
	}
	if n := p.a.count(EvInitiate); n < 6 || n > 12 {
		t.Errorf("%d attempts in two minutes, want a few quick ones and then the back-off", n)
	}
	p.pass(2 * retryLast)
	p.same(1)
	// One that lasts makes up for it.
	p.pass(briefLife)
	p.a.events = nil
	p.b.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
	p.run()
	p.pass(time.Second)
	p.same(1)
}
